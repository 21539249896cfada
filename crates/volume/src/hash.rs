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

/// A file that is being hashed: open, under a read lease where there are any.
pub struct Reading<F: Fs> {
    file: F::File,
    before: Stat,
    provisional: bool,
    hasher: blake3::Hasher,
    offset: u64,
}

/// How far the hashing of a file has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Slice {
    /// There is more to read.
    More,
    /// It has been read to its end, and nothing was written meanwhile.
    Whole(Hash),
    /// Somebody has it open for writing, or changed it meanwhile.
    InUse,
}

impl<F: Fs> Reading<F> {
    /// Opens a file and takes the lease. `seen`: what was found there a moment ago; with a stamp that proves that it is there
    /// still, if it is the same. The inner error says why it cannot be hashed now.
    ///
    /// # Errors
    /// Any error of the file system but the absence of the file.
    pub fn begin(fs: &F, dir: &F::Dir, name: &[u8], seen: Option<&Stat>) -> io::Result<Result<Self, Hashing>> {
        if let Some(seen) = seen
            && let Some(file) = fs.open_object(&seen.object)
            && let Ok(reading) = Self::guard(fs, file)?
            && reading.before.stamp == seen.stamp
        {
            return Ok(Ok(reading));
        }
        let file = match fs.open_file(dir, name) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Err(Hashing::Gone)),
            Err(e) => {
                return match fs.stat(dir, name)? {
                    Some(stat) if stat.kind == Kind::File => Err(e),
                    _ => Ok(Err(Hashing::Gone)),
                };
            }
        };
        Self::guard(fs, file)
    }

    /// Takes the lease.
    fn guard(fs: &F, file: F::File) -> io::Result<Result<Self, Hashing>> {
        let provisional = match fs.lease(&file)? {
            Lease::Granted => false,
            Lease::InUse => return Ok(Err(Hashing::InUse)),
            Lease::Unavailable => true,
        };
        let before = fs.stat_file(&file)?;
        Ok(Ok(Self { file, before, provisional, hasher: blake3::Hasher::new(), offset: 0 }))
    }

    /// What it was when the lease was taken.
    pub fn stat(&self) -> &Stat {
        &self.before
    }

    /// No lease stands guard.
    pub fn provisional(&self) -> bool {
        self.provisional
    }

    /// Hashes at most so many bytes more.
    ///
    /// # Errors
    /// Any error of the file system.
    pub fn go_on(&mut self, fs: &F, bytes: u64) -> io::Result<Slice> {
        let to = self.before.stamp.size.min(self.offset.saturating_add(bytes));
        let whole = read_into(fs, &self.file, &mut self.hasher, self.offset, to);
        self.offset = to;
        if !(self.undisturbed(fs)? && whole?) {
            return Ok(Slice::InUse);
        }
        Ok(if to < self.before.stamp.size { Slice::More } else { Slice::Whole(*self.hasher.finalize().as_bytes()) })
    }

    /// Has nobody opened it to write since the lease was taken, and is it still what it was?
    fn undisturbed(&self, fs: &F) -> io::Result<bool> {
        let unbroken = self.provisional || fs.lease_unbroken(&self.file)?;
        Ok(fs.stat_file(&self.file)?.stamp == self.before.stamp && unbroken)
    }
}

/// Hashes one file. Reads it once.
///
/// # Errors
/// Any error of the file system but the absence of the file.
pub fn hash_file<F: Fs>(fs: &F, dir: &F::Dir, name: &[u8]) -> io::Result<Hashing> {
    hash_known(fs, dir, name, None, None)
}

/// As [`hash_file`]; what was hashed a short while ago, under a lease, is not read again while the file has the same stamp.
/// `seen` as for [`Reading::begin`].
///
/// # Errors
/// As [`hash_file`].
pub fn hash_known<F: Fs>(
    fs: &F,
    dir: &F::Dir,
    name: &[u8],
    seen: Option<&Stat>,
    known: Option<(&Stat, &Hash)>,
) -> io::Result<Hashing> {
    let mut reading = match Reading::begin(fs, dir, name, seen)? {
        Ok(reading) => reading,
        Err(why) => return Ok(why),
    };
    let before = reading.before.clone();
    let slice = match known {
        Some((stat, hash)) if stat.object == before.object && stat.stamp == before.stamp => Slice::Whole(*hash),
        _ => reading.go_on(fs, u64::MAX)?,
    };
    let Slice::Whole(hash) = slice else { return Ok(Hashing::InUse) };
    // The lease goes with the descriptor.
    let attributes = Box::new(fs.file_attributes(dir, name, &reading.file, &before)?);
    let content = Content::File { size: before.stamp.size, hash };
    Ok(Hashing::Done { content, stat: before, attributes, provisional: reading.provisional })
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::simulated::{DiskConfig, SimClock, SimFs};

    /// Somebody writes the whole file anew before one of the calls: the hash is that of all of the old bytes, or of all of
    /// the new ones, or there is none; in one go as slice by slice.
    #[test]
    fn no_hash_is_of_bytes_of_which_some_were_written_meanwhile() {
        let (old, new) = (vec![1; BUFFER_BYTES * 2 + 10], vec![2; BUFFER_BYTES * 2 + 10]);
        let of = |bytes: &[u8]| *blake3::hash(bytes).as_bytes();
        for slice in [u64::MAX, 100_000] {
            let (mut at, mut none) = (0, 0);
            loop {
                let fs = SimFs::new(DiskConfig::default(), SimClock::at(1_700_000_000_000_000_000), 1);
                fs.write(b"file", &old).unwrap();
                let calls = Arc::new(AtomicUsize::new(0));
                let (count, bytes) = (Arc::clone(&calls), new.clone());
                fs.set_interloper_everywhere(Box::new(move |fs, _| {
                    if count.fetch_add(1, Ordering::Relaxed) == at {
                        fs.write(b"file", &bytes).unwrap();
                    }
                }));
                let root = fs.root();
                let hash = match Reading::begin(&fs, &root, b"file", None).unwrap() {
                    Ok(mut reading) => loop {
                        match reading.go_on(&fs, slice).unwrap() {
                            Slice::More => {}
                            Slice::Whole(hash) => break Some(hash),
                            Slice::InUse => break None,
                        }
                    },
                    Err(_) => None,
                };
                assert!(hash.is_none_or(|h| h == of(&old) || h == of(&new)), "before call {at}");
                none += u32::from(hash.is_none());
                if calls.load(Ordering::Relaxed) <= at {
                    assert_eq!(hash, Some(of(&old)));
                    assert!(none > 0, "nothing was ever noticed");
                    break;
                }
                at += 1;
            }
        }
    }
}
