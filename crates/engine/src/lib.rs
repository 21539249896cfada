//! The replication rules: pure, deterministic, no I/O, no clock, no randomness of its own (design, sections 4, 6, 12).
//!
//! Owns what a record becomes when a user changes something here or a partner's record arrives, what the records derive
//! (the tree), and how a pass is taken in as one step. Must never read a clock, draw a random number, start a thread,
//! touch a file or a socket, or let a hash map's order reach an output. Time and fresh replica ids come in as arguments;
//! everything that lasts goes through [`kv::Kv`].
//!
//! ```text
//! a user's change ──> Records::{add, place, remove, write, touch, set_attributes} ─┐
//!                                                                                  ├─> records ──> the view ──> touched
//! a partner's page ─> Records::lay_aside ... Records::complete_pass ───────────────┘
//! records ──> Records::page ──> a partner
//! ```
//!
//! ```
//! use anabranch_engine::{MemoryKv, NewThing, Records, Settings};
//! use anabranch_model::{Hlc, Name, ReplicaId, Uid};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut here = Records::create(MemoryKv::default(), ReplicaId([1; 16]), Settings::default())?;
//! here.begin()?;
//! let docs = here.add(Hlc(1_000), NewThing::directory(Uid::ROOT, Name::new(*b"docs")?))?;
//! here.commit()?;
//! assert_eq!(here.shown_at(Uid::ROOT, b"docs")?, Some(docs));
//! # Ok(())
//! # }
//! ```

mod changes;
mod dictionary;
mod keys;
pub mod kv;
pub mod memory;
mod passes;
pub mod plain;
mod query;
mod records;
mod resolve;
mod restamp;
pub mod rules;
mod tombstones;
mod view;

pub use changes::{ChangeError, NewThing};
pub use memory::MemoryKv;
pub use passes::{PageOut, PassEnd, PassState, TakenCounts};
pub use query::Shown;
pub use records::{Policy, Records, Settings, TakeTouched};
pub use resolve::{Resolution, ResolveScope};
pub use restamp::Reissued;
pub use rules::{Case, Rule, Taken, broken, must_preserve, must_preserve_deleted};
