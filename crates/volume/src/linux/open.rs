//! Opening and enumerating: one component at a time, beneath a directory's descriptor.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags};
use rustix::io::Errno;

use super::look::{self, Place};
use crate::fs::{Entry, Kind};

/// How often a directory is enumerated again when it changed meanwhile.
const LIST_ATTEMPTS: u32 = 6;
/// Bytes of one `getdents64`.
const LIST_BUFFER: usize = 64 * 1024;

const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_XDEV);

/// Passes a name on if it is one component: no slash, no NUL, not empty, `.` or `..`.
pub(super) fn component(name: &[u8]) -> io::Result<&[u8]> {
    if matches!(name, b"" | b"." | b"..") || name.iter().any(|b| matches!(b, b'/' | 0)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a single component"));
    }
    Ok(name)
}

/// Opens an entry by `O_PATH`: nothing is read, no lease broken, no FIFO waited for. A symlink is pinned itself.
///
/// # Errors
/// `NotFound` exactly when the entry is absent; `EXDEV` at a mount point; `ENOTDIR` for `extra = O_DIRECTORY`.
pub(super) fn pin(dir: BorrowedFd<'_>, name: &[u8], extra: OFlags) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC | extra;
    beneath(dir, component(name)?, flags, Mode::empty())
}

/// Opens a path of components beneath the directory, by `O_PATH`, no symlink and no mount crossed anywhere in it.
pub(super) fn pin_path(dir: BorrowedFd<'_>, path: &[u8]) -> io::Result<OwnedFd> {
    beneath(dir, path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

fn beneath(dir: BorrowedFd<'_>, name: &[u8], flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
    loop {
        match rustix::fs::openat2(dir, name, flags, mode, BENEATH) {
            // `EAGAIN`: a rename somewhere made the kernel unsure whether the walk stayed beneath.
            Err(Errno::INTR | Errno::AGAIN) => {}
            other => return Ok(other?),
        }
    }
}

/// Opens the directory itself for reading, with a position of its own.
pub(super) fn readable(dir: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::io::retry_on_intr(|| rustix::fs::openat(dir, c".", flags, Mode::empty()))?)
}

/// Opens a regular file at home here; `WouldBlock` while somebody holds a write lease on it.
///
/// It is pinned and looked at first, so that a device is never opened, not even for an instant.
pub(super) fn regular(dir: BorrowedFd<'_>, name: &[u8], place: &Place, flags: OFlags) -> io::Result<OwnedFd> {
    let pinned = pin(dir, name, OFlags::empty())?;
    if look::file_type(&look::check_home(pinned.as_fd(), place)?) != FileType::RegularFile {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let flags = flags | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let path = proc_path(pinned.as_fd());
    Ok(rustix::io::retry_on_intr(|| rustix::fs::open(path.path(), flags, Mode::empty()))?)
}

/// Makes a new file for reading and writing.
pub(super) fn create(dir: BorrowedFd<'_>, name: &[u8], mode: Mode) -> io::Result<OwnedFd> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    beneath(dir, component(name)?, flags, mode)
}

/// Enumerates a directory: all of it, or an error.
///
/// POSIX lets an entry that is renamed meanwhile show twice or not at all, and a missing name would read as a delete.
/// So the directory's times are compared around the enumeration, which is done again when they moved.
///
/// # Errors
/// `ResourceBusy` for a directory that changes faster than it can be read; anything the kernel says.
pub(super) fn list(dir: BorrowedFd<'_>) -> io::Result<Vec<Entry>> {
    let fd = readable(dir)?;
    let mut buffer = vec![MaybeUninit::uninit(); LIST_BUFFER];
    let mut before = look::change_times(fd.as_fd())?;
    for _ in 0..LIST_ATTEMPTS {
        rustix::fs::seek(&fd, rustix::fs::SeekFrom::Start(0))?;
        let entries = list_once(fd.as_fd(), &mut buffer)?;
        let after = look::change_times(fd.as_fd())?;
        if before == after {
            return Ok(entries);
        }
        before = after;
    }
    Err(io::Error::new(io::ErrorKind::ResourceBusy, "the directory changes faster than it can be enumerated"))
}

/// Enumerates once. An entry that stands still is shown; one that is renamed meanwhile may not be.
pub(super) fn list_unsteady(dir: BorrowedFd<'_>) -> io::Result<Vec<Entry>> {
    list_once(readable(dir)?.as_fd(), &mut vec![MaybeUninit::uninit(); LIST_BUFFER])
}

fn list_once(fd: BorrowedFd<'_>, buffer: &mut [MaybeUninit<u8>]) -> io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    let mut raw = RawDir::new(fd, buffer);
    while let Some(entry) = raw.next() {
        let entry = match entry {
            Err(Errno::INTR) => continue,
            other => other?,
        };
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            entries.push(Entry { name: name.to_vec(), kind: kind(entry.file_type()) });
        }
    }
    Ok(entries)
}

/// What kind of thing; `None` where it is not known.
pub(super) fn kind(file_type: FileType) -> Option<Kind> {
    match file_type {
        FileType::RegularFile => Some(Kind::File),
        FileType::Directory => Some(Kind::Directory),
        FileType::Symlink => Some(Kind::Symlink),
        FileType::Unknown => None,
        _ => Some(Kind::Other),
    }
}

/// The path of an open descriptor in `/proc`: the way to act on a pinned entry with calls that take only paths.
pub(crate) struct ProcPath {
    bytes: [u8; 32],
    length: usize,
}

/// The path of this descriptor; valid as long as it is open.
pub(crate) fn proc_path(fd: BorrowedFd<'_>) -> ProcPath {
    use io::Write as _;
    let mut bytes = [0; 32];
    let mut rest = &mut bytes[..];
    write!(rest, "/proc/self/fd/{}", fd.as_raw_fd()).expect("14 bytes and a number of at most 10 digits fit in 32");
    let left = rest.len();
    ProcPath { bytes, length: 32 - left }
}

impl ProcPath {
    /// The path.
    pub(crate) fn path(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// Where a descriptor points now, as the kernel words it: a path, or a path with ` (deleted)`.
pub(super) fn proc_link(fd: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    Ok(rustix::fs::readlink(proc_path(fd).path(), Vec::with_capacity(256))?.into_bytes())
}

/// Only names a descriptor's own path when nothing else is asked.
pub(super) const ITSELF: AtFlags = AtFlags::EMPTY_PATH;
