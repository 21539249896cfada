//! Whole replicas on simulated disks: one program, so that their code is built once for all of these tests.

#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod another_root;
mod couple;
mod crashes;
mod cycles;
mod failing;
mod fetched;
mod meanwhile;
mod merged;
mod names;
mod offline;
mod parked;
mod power_cut;
mod resume;
mod returned;
mod sums;
mod three;
mod unwritable;
