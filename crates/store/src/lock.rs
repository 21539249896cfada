//! One opener at a time: an exclusive lock on a file beside the database.
//!
//! The kernel drops the lock with the process that holds it, however that ends, so a lock file that is left lying about
//! locks nobody out. The file is never removed: between removal and creation two openers could each lock their own.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anabranch_engine::kv::KvError;

/// The lock of a database, held until it is dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
}

#[derive(Debug, thiserror::Error)]
enum InUse {
    #[error("the database is in use by process {0}")]
    By(u32),
    #[error("the database is in use by another process")]
    BySomebody,
}

const DOING: &str = "lock";
/// Digits of the longest process number.
const NUMBER_BYTES: usize = 10;

impl Lock {
    /// Takes the lock, and leaves this process's number in the file for the next one to read.
    ///
    /// # Errors
    /// [`KvError`], not damaged: in use, or the file cannot be made or locked.
    pub(crate) fn take(path: &Path) -> Result<Self, KvError> {
        let failed = |e: io::Error| KvError::failed(DOING, e);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                // The holder may be between locking and writing its number.
                let mut text = String::new();
                let holder = file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
                return Err(KvError::failed(DOING, holder.map_or(InUse::BySomebody, InUse::By)));
            }
            Err(TryLockError::Error(e)) => return Err(failed(e)),
        }
        // Always as long: it is written over the last one, for which a full disk has room.
        let mut leave_number = || {
            file.rewind()?;
            writeln!(file, "{:<NUMBER_BYTES$}", std::process::id())
        };
        leave_number().map_err(failed)?;
        Ok(Self { file })
    }
}

impl Drop for Lock {
    /// Closing alone would leave it to whoever has a copy of the descriptor: a child that another thread has just forked has
    /// one until it runs its program.
    fn drop(&mut self) {
        drop(self.file.unlock());
    }
}

#[cfg(test)]
mod tests {
    use super::Lock;

    #[test]
    fn a_lock_that_is_dropped_is_free_though_a_child_has_a_copy_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let lock = Lock::take(&path).unwrap();
        let copy = lock.file.try_clone().unwrap();
        assert!(Lock::take(&path).is_err());
        drop(lock);
        assert!(Lock::take(&path).is_ok());
        drop(copy);
    }
}
