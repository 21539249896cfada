//! See `anabranch_fuzz::message`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| anabranch_fuzz::message(input));
