//! See `anabranch_fuzz::record`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| anabranch_fuzz::record(input));
