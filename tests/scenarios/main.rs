//! The scenarios, by topic. Each test is one story that an administrator could live through, with its end checked.

mod administration;
mod adversary;
mod bad_input;
mod basics;
mod conflicts;
mod contention;
mod demonstration;
mod faces;
mod fidelity;
mod full_disk;
mod kills;
mod one_writer;
mod ordinary_user;
mod power_cuts;
mod restored;
mod resume;
