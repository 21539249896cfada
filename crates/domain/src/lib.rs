//! Configuration objects of the domain and the effective configuration, a function of all objects.
//!
//! Owns the text forms of objects and what they mean together. Must never do I/O, read a clock, or draw randomness.

pub mod base32;
mod fingerprint;

pub use fingerprint::{FingerprintError, KeyFingerprint};
