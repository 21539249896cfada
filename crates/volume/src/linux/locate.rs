//! From an object to its place in the tree.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;

use super::{LinuxFs, handle, look, open};
use crate::fs::Object;

/// How often a place is looked for again when it moved between finding and verifying.
const ATTEMPTS: u32 = 4;

/// Can things be opened by handle here?
pub(super) fn works(mount: BorrowedFd<'_>, object: &Object) -> bool {
    handle::open(mount, object).is_ok()
}

/// Where an object is now. See [`crate::fs::Fs::locate`].
///
/// The kernel's own idea of the path is only where to look: the answer is given when the entry there, found beneath
/// the root without symlinks and mounts, is this very object.
pub(super) fn locate(fs: &LinuxFs, object: &Object) -> io::Result<Option<(Object, Vec<u8>)>> {
    if object == fs.root_object() {
        return Ok(None);
    }
    let fd = match handle::open(fs.root_readable(), object) {
        Ok(fd) => fd,
        Err(Errno::STALE | Errno::NOENT) => return Ok(None),
        Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Err(e) => return Err(e.into()),
    };
    for _ in 0..ATTEMPTS {
        if look::links(fd.as_fd())? == 0 {
            return Ok(None);
        }
        let path = match beneath_root(fs.root_readable(), fd.as_fd()) {
            Ok(Some(path)) => path,
            Ok(None) => return outside_or_unknown(fd.as_fd()),
            // Deeper than the kernel words it.
            Err(e) if e.raw_os_error() == Some(libc::ENAMETOOLONG) => return Err(unknown()),
            Err(e) => return Err(e),
        };
        if let Some(found) = verify(fs, object, &path)? {
            return Ok(Some(found));
        }
    }
    // It moves faster than it can be found, or the kernel remembers another, lost, name of it.
    Err(unknown())
}

/// Where a directory is, as far as a look at its path tells: quicker than [`locate`], and not verified.
pub(crate) enum Whereabouts {
    /// Beneath the root, at this path relative to it (empty: the root).
    Inside(Vec<u8>),
    /// Elsewhere.
    Outside,
    /// It exists no more.
    Gone,
    /// It cannot be told.
    Unknown,
}

/// Looks where a directory is.
pub(super) fn whereabouts(root: BorrowedFd<'_>, directory: &Object) -> Whereabouts {
    let fd = match handle::open(root, directory) {
        Ok(fd) => fd,
        Err(Errno::STALE | Errno::NOENT) => return Whereabouts::Gone,
        Err(_) => return Whereabouts::Unknown,
    };
    match beneath_root(root, fd.as_fd()) {
        Ok(Some(path)) => Whereabouts::Inside(path),
        Ok(None) => Whereabouts::Outside,
        Err(_) => Whereabouts::Unknown,
    }
}

/// The path of `fd` relative to the root; `None` when the kernel does not place it beneath the root. Empty for the root.
fn beneath_root(root: BorrowedFd<'_>, fd: BorrowedFd<'_>) -> io::Result<Option<Vec<u8>>> {
    let root = open::proc_link(root)?;
    let path = open::proc_link(fd)?;
    if root == path {
        return Ok(Some(Vec::new()));
    }
    let rest = if root == b"/" { Some(path.as_slice()) } else { path.strip_prefix(root.as_slice()) };
    Ok(rest.and_then(|r| r.strip_prefix(b"/")).map(<[u8]>::to_vec))
}

/// A directory that the kernel does not place beneath the root is elsewhere. Of a file the kernel may have another name
/// at hand, or none at all, and then nothing is known of where it is.
fn outside_or_unknown(fd: BorrowedFd<'_>) -> io::Result<Option<(Object, Vec<u8>)>> {
    let s = look::by_descriptor(fd)?;
    let directory = look::file_type(&s) == rustix::fs::FileType::Directory;
    // A file without a name at hand is shown as `/`.
    let named = open::proc_link(fd)?.len() > 1;
    if directory || (named && s.stx_nlink == 1) { Ok(None) } else { Err(unknown()) }
}

fn unknown() -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, "the kernel cannot say where this is")
}

fn verify(fs: &LinuxFs, object: &Object, path: &[u8]) -> io::Result<Option<(Object, Vec<u8>)>> {
    let (parent, name) = match path.iter().rposition(|b| *b == b'/') {
        Some(slash) => (Some(&path[..slash]), &path[slash + 1..]),
        None => (None, path),
    };
    let place = &fs.inner.place;
    let opened;
    let dir = match parent {
        None => fs.inner.root.as_fd(),
        Some(parent) => match open::pin_path(fs.inner.root.as_fd(), parent) {
            Ok(fd) => {
                opened = fd;
                opened.as_fd()
            }
            // Moved since, or in a mount or behind what is now a symlink: not there.
            Err(e) if is_not_there(&e) => return Ok(None),
            Err(e) => return Err(e),
        },
    };
    let parent = look::open(dir, place)?;
    match look::entry(dir, name, place) {
        Ok(Some(found)) if found.object == *object && !found.foreign && !parent.foreign => {
            Ok(Some((parent.object, name.to_vec())))
        }
        Ok(_) => Ok(None),
        Err(e) if is_not_there(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

fn is_not_there(e: &io::Error) -> bool {
    matches!(
        e.raw_os_error(),
        Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::EXDEV | libc::ENAMETOOLONG | libc::ESTALE)
    )
}
