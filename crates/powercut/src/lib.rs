//! Power cuts of real file systems, without device-mapper: a disk that records what is written to it.
//!
//! Owns a disk image that is served by FUSE and lies beneath a loop device. Every write is logged, every flush is a
//! *barrier*; afterwards the disk can be shown as a power cut at any barrier would have left it. For tests only; root
//! only. It must never know what is tested: it hands out directories.
//!
//! # The fault model
//! The disk has a write-back cache, and keeps blocks of 4 KiB whole. What was written before a flush that was answered
//! is there after a power cut. Of what was written since, any block may be there or not, whatever was written first
//! ([`LastEpoch`]). Blocks never change by themselves, and the disk never lies about a flush.
//!
//! # Use
//! ```no_run
//! use anabranch_powercut::{Bed, FileSystem};
//!
//! let bed = Bed::start(FileSystem::Ext4, 512 << 20)?;
//! // Start a program that works in `bed.path()`; each time that it says something is durable:
//! bed.mark("member A acknowledged 17");
//! // Kill it, then look at what power cuts would have left.
//! let recording = bed.finish()?;
//! for cut in recording.cuts(100, 1) {
//!     recording.replay(cut, |replayed| {
//!         // All that `replayed.marks` name must be found in `replayed.path`.
//!         assert!(replayed.path.is_dir(), "{cut}");
//!     })?;
//! }
//! # Ok::<(), anabranch_powercut::Error>(())
//! ```

mod bed;
mod disk;
mod log;
mod stale;
mod volume;

use std::io;
use std::path::{Path, PathBuf};

pub use bed::{Bed, Recording, Replayed};
pub use disk::{Disk, Image, Marker};
pub use log::{BLOCK_BYTES, Cut, LastEpoch};
pub use stale::sweep;
pub use volume::{FileSystem, Volume, available};

/// Why the test bed cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something that it needs is missing on this machine, so a test must be skipped, and say this.
    #[error("power cuts cannot be tested here: {0}")]
    Unavailable(String),
    /// An operation failed.
    #[error("cannot {doing} {path}")]
    Io {
        /// What.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A command failed, among them the check of a file system.
    #[error("`{command}` failed ({status}): {output}")]
    Command {
        /// The command.
        command: String,
        /// How it ended.
        status: String,
        /// What it printed.
        output: String,
    },
    /// A barrier that the log does not have.
    #[error("the disk has seen {seen} barriers, not {asked}")]
    Barrier {
        /// How many there are.
        seen: usize,
        /// Which was asked for.
        asked: usize,
    },
}

impl Error {
    pub(crate) fn io(doing: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Io { doing, path: path.to_owned(), source: source.into() }
    }
}
