//! Room on the disk that is kept for the database, so that a full disk does not stop it (design, section 7).
//!
//! Blocks are allocated behind the end of the database file and of its write-ahead log, where only SQLite can use them:
//! whoever else fills the disk to the last byte cannot. While the disk is nearly full the log is taken into the database
//! after each commit, so that the room in the log serves again and again. Where the file system cannot allocate so, there
//! is no reserve; where it writes never in place (btrfs), the reserve serves once.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, OFlags, fallocate, fstatvfs};

/// Most bytes kept for each of the two files.
const BYTES_MAX: u64 = 32 << 20;
/// The part of a file system that is kept for each of the two files, where that is less.
const SHARE: u64 = 32;
/// The disk is nearly full with less than this many times the reserve free.
const SHORT: u64 = 4;
/// After so many commits it is looked whether the reserve is whole.
const EVERY: u64 = 64;
/// What `st_blocks` counts, bytes.
const BLOCK: u64 = 512;

/// The reserve of one database. It holds the database file open, so it must be dropped after SQLite has closed it: a
/// process that closes any descriptor of a file gives up all its locks of it.
#[derive(Debug)]
pub(crate) struct Reserve {
    database: File,
    log: PathBuf,
    commits: u64,
}

/// Opens a file to allocate blocks for it; like SQLite, not through a symlink.
fn open(path: &Path) -> io::Result<File> {
    let not_followed = i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or_default();
    OpenOptions::new().read(true).write(true).custom_flags(not_followed).open(path)
}

/// What is to be done after a commit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Room {
    Enough,
    /// The disk is nearly full: the log should not grow.
    Short,
}

impl Reserve {
    /// Of the database in this file, which is there.
    pub(crate) fn of(database: &Path, log: PathBuf) -> io::Result<Self> {
        Ok(Self { database: open(database)?, log, commits: 0 })
    }

    /// To be called after each commit.
    pub(crate) fn after_commit(&mut self) -> Room {
        self.commits += 1;
        let Ok(disk) = fstatvfs(&self.database) else { return Room::Enough };
        let (unit, free) = (disk.f_frsize.max(1), disk.f_bavail);
        let bytes = (disk.f_blocks.saturating_mul(unit) / SHARE).min(BYTES_MAX);
        if free.saturating_mul(unit) < bytes * SHORT {
            return Room::Short;
        }
        if self.commits % EVERY == 1 {
            // What cannot be had is not: there is no reserve then, and all else is as before.
            let _ = self.fill(bytes);
        }
        Room::Enough
    }

    fn fill(&self, bytes: u64) -> io::Result<()> {
        let log = open(&self.log)?;
        if log.metadata()?.blocks() * BLOCK < bytes {
            fallocate(&log, FallocateFlags::KEEP_SIZE, 0, bytes)?;
        }
        let database = self.database.metadata()?;
        if database.blocks() * BLOCK < database.size() + bytes / 2 {
            fallocate(&self.database, FallocateFlags::KEEP_SIZE, database.size(), bytes)?;
        }
        Ok(())
    }
}
