//! The replication rules: pure, deterministic, no I/O, no clock, no randomness of its own (design, sections 4, 6, 12).
pub mod kv;
