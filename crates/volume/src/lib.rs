//! The file system: scan, watch, metadata in full, race-free install; Linux and simulated.
pub mod fs;
pub mod hash;
pub mod layout;
pub mod linux;
pub mod simulated;
pub mod walk;
pub mod watch;
