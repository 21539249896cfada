//! A running member: joins engine, volume, store and net (design, sections 5 to 12).
//!
//! Owns one replica's life: local changes become versions, partners' passes are taken in, content is fetched and
//! installed, losers are preserved. Must never wait, look at a clock or draw randomness itself: time, ids and events come
//! from the caller, so the simulator can replay any history. Decisions about records are the engine's, system calls the
//! volume's.
//!
//! ```text
//! hints ──> observe ──> records ──> push ──> partners
//! partners' pages ──> pull ──> records ──> todo ──> fetch ──> install ──> the tree
//! ```

mod acknowledged;
mod adopt;
mod beside;
mod config;
mod describe;
mod events;
mod fetch;
pub mod host;
mod install;
mod kept;
mod lift;
mod link;
mod lost;
mod nodes;
mod observe;
mod partial;
mod replica;
mod returned;
mod scan;
mod serve;
mod start;
pub mod steps;
mod sums;
mod tables;
mod undone;
mod unnoted;
mod unsynced;

pub use config::{Config, FreshIds, Limits, RecoveryPolicy};
pub use events::{Event, EventKind, Level};
pub use replica::{Counters, Input, LinkId, Output, Partner, Phase, Replica, Stop, Waiting};
pub use sums::Comparison;
pub use tables::{Preserved, Reason};
