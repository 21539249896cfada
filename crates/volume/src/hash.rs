//! Hashing a file that people may be writing to (design, section 5).
//!
//! A hash is taken under a read lease that is granted and unbroken to the end, so that no write, not even one through a
//! mapping, can fall into it. Where there are no leases it is *provisional*: only the stamps before and after say that
//! nothing changed.

use std::io;

use anabranch_model::{Attributes, Content, Hash};

use crate::fs::{Fs, Kind, Lease, Stat};

/// Bytes read at a time.
const BUFFER_BYTES: usize = 256 * 1024;

/// What came of hashing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Hashing {
    /// The file's content, and the stat that it belongs to.
    Done {
        /// Size and hash.
        content: Content,
        /// Taken while the bytes were the hashed ones.
        stat: Stat,
        /// Read together with it.
        attributes: Box<Attributes>,
        /// No lease stood guard: read again at the next close event, whatever the stamp says.
        provisional: bool,
    },
    /// Somebody has it open for writing, or changed it meanwhile: try again when it is closed.
    InUse,
    /// No regular file has this name.
    Gone,
}

/// Hashes one file. Reads it once; holes are not read.
///
/// # Errors
/// Any error of the file system but the absence of the file.
pub fn hash_file<F: Fs>(fs: &F, dir: &F::Dir, name: &[u8]) -> io::Result<Hashing> {
    let file = match fs.open_file(dir, name) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Hashing::Gone),
        Err(e) => {
            return match fs.stat(dir, name)? {
                Some(stat) if stat.kind == Kind::File => Err(e),
                _ => Ok(Hashing::Gone),
            };
        }
    };
    let provisional = match fs.lease(&file)? {
        Lease::Granted => false,
        Lease::InUse => return Ok(Hashing::InUse),
        Lease::Unavailable => true,
    };
    let before = fs.stat_file(&file)?;
    let read = read_hash(fs, &file, before.stamp.size);
    let unbroken = provisional || fs.lease_unbroken(&file)?;
    let after = fs.stat_file(&file)?;
    // The lease goes with the descriptor.
    match read? {
        Some(hash) if unbroken && before.stamp == after.stamp => {
            let attributes = Box::new(fs.file_attributes(dir, name, &file, &after)?);
            let content = Content::File { size: before.stamp.size, hash };
            Ok(Hashing::Done { content, stat: after, attributes, provisional })
        }
        _ => Ok(Hashing::InUse),
    }
}

/// Hashes `size` bytes of an open file; `None` if it is shorter.
///
/// # Errors
/// Any error of the file system.
pub fn read_hash<F: Fs>(fs: &F, file: &F::File, size: u64) -> io::Result<Option<Hash>> {
    let mut hasher = blake3::Hasher::new();
    let whole = read_into(fs, file, &mut hasher, 0, size)?;
    Ok(whole.then(|| *hasher.finalize().as_bytes()))
}

/// Hashes the bytes of an open file from `from` up to `to`; `false` if it is shorter.
///
/// # Errors
/// Any error of the file system.
pub fn read_into<F: Fs>(fs: &F, file: &F::File, hasher: &mut blake3::Hasher, from: u64, to: u64) -> io::Result<bool> {
    let mut offset = from;
    let left = |offset: u64| usize::try_from(to.saturating_sub(offset)).unwrap_or(BUFFER_BYTES).min(BUFFER_BYTES);
    let mut buffer = vec![0; left(offset).max(1)];
    while offset < to {
        let Some(part) = buffer.get_mut(..left(offset)) else { break };
        let count = fs.read_at(file, part, offset)?;
        if count == 0 {
            return Ok(false);
        }
        hasher.update(&part[..count]);
        offset += count as u64;
    }
    Ok(true)
}
