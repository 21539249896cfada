//! End-to-end tests: real `anabranch` processes on loopback, each with its own state, root and port, and an independent
//! referee. This library starts, kills and asks them; the scenarios beside it say what must come of it.
//!
//! It knows the program only by its command line, its exit codes and the files it leaves, as an administrator's script
//! would. It must never link the program's crates, nor wait for time to pass: every wait names its condition
//! ([`until`]).
//!
//! Settings from the environment: `ANABRANCH_BIN` (the program; else the one built beside the tests), `E2E_SEED`,
//! `E2E_DIR` (where trees are made), `E2E_JOURNAL` (1: print what users do, with the time), `KILLS`, `CUTS`, `INSTALLS`,
//! `REAL_FILES`.

pub mod closed;
pub mod cluster;
pub mod load;
pub mod member;
pub mod mount;
pub mod program;
pub mod random;
pub mod referee;
pub mod skip;
pub mod snapshot;
pub mod trees;
pub mod until;

/// A number from the environment, or what holds without it.
#[must_use]
pub fn setting(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(otherwise)
}
