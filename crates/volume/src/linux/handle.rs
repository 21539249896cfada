//! File handles: the bytes of [`Object`].
//!
//! | bytes | meaning |
//! | --- | --- |
//! | 0..4 | the kernel's handle type, little-endian |
//! | 4.. | the handle as `name_to_handle_at` gives it, at most 124 bytes |
//!
//! Where the file system makes no handles the type is `0xffff_ffff`, followed by device (two `u32`), inode (`u64`) and
//! birth time (`i64`, `u32`), all little-endian: the best that is left, and never opened.
#![allow(unsafe_code, reason = "the handle calls are not in rustix")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::fs::Statx;
use rustix::io::Errno;

use crate::fs::Object;

/// The type of an object made from device, inode and birth time.
const NO_HANDLE: u32 = u32::MAX;
/// What fits beside the type in an object's 128 bytes; the kernel's own limit is 128, and the largest known is 40.
const HANDLE_BYTES_MAX: usize = 124;
/// Room for a component and its NUL.
pub(super) const NAME_ROOM: usize = 256;

/// `struct file_handle` with room for the bytes.
#[repr(C)]
struct Raw {
    bytes: u32,
    kind: i32,
    data: [u8; HANDLE_BYTES_MAX],
}

/// The object from a handle's type and bytes; `None` if it is too long.
pub(crate) fn object(kind: u32, handle: &[u8]) -> Option<Object> {
    if handle.len() > HANDLE_BYTES_MAX {
        return None;
    }
    let mut bytes = Vec::with_capacity(4 + handle.len());
    bytes.extend_from_slice(&kind.to_le_bytes());
    bytes.extend_from_slice(handle);
    Some(Object(bytes.into()))
}

/// The handle of an entry of a directory (not followed), or with an empty name of the descriptor itself. `None` where
/// the file system makes none.
pub(super) fn of(fd: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<Option<Object>> {
    let mut path = [0u8; NAME_ROOM];
    if name.len() >= NAME_ROOM {
        return Err(Errno::NAMETOOLONG);
    }
    path[..name.len()].copy_from_slice(name);
    let flags = if name.is_empty() { libc::AT_EMPTY_PATH } else { 0 };
    let mut raw = Raw { bytes: HANDLE_BYTES_MAX as u32, kind: 0, data: [0; HANDLE_BYTES_MAX] };
    let mut mount = 0;
    // SAFETY: `path` ends in NUL; `raw` has the layout of `struct file_handle` and as many bytes as its first field
    // says; `mount` is an int; all live through the call.
    let done = unsafe {
        libc::name_to_handle_at(fd.as_raw_fd(), path.as_ptr().cast(), (&raw mut raw).cast(), &raw mut mount, flags)
    };
    if done == 0 {
        let length = (raw.bytes as usize).min(HANDLE_BYTES_MAX);
        return Ok(object(raw.kind as u32, &raw.data[..length]));
    }
    match last_error() {
        // `EOVERFLOW`: an automount not yet mounted, or a handle longer than any known.
        Errno::OPNOTSUPP | Errno::OVERFLOW => Ok(None),
        e => Err(e),
    }
}

/// Does the handle name this inode? `None` where its type does not say. The numbers of a handle are in the machine's
/// own byte order.
pub(super) fn names_inode(object: &Object, inode: u64) -> Option<bool> {
    let (kind, handle) = object.0.split_first_chunk::<4>()?;
    let wide = || handle.first_chunk::<8>().map(|b| u64::from_ne_bytes(*b) == inode);
    match u32::from_le_bytes(*kind) {
        // FILEID_INO32_GEN (ext4): 32 bits of inode number.
        1 => handle.first_chunk::<4>().map(|b| u64::from(u32::from_ne_bytes(*b)) == inode),
        // FILEID_BTRFS_WITHOUT_PARENT, FILEID_INO64_GEN (XFS): 64 bits of inode number.
        0x4d | 0x81 => wide(),
        _ => None,
    }
}

/// The object of a thing whose file system makes no handles.
pub(super) fn fallback(s: &Statx) -> Object {
    let mut bytes = Vec::with_capacity(32);
    bytes.extend_from_slice(&NO_HANDLE.to_le_bytes());
    bytes.extend_from_slice(&s.stx_dev_major.to_le_bytes());
    bytes.extend_from_slice(&s.stx_dev_minor.to_le_bytes());
    bytes.extend_from_slice(&s.stx_ino.to_le_bytes());
    bytes.extend_from_slice(&s.stx_btime.tv_sec.to_le_bytes());
    bytes.extend_from_slice(&s.stx_btime.tv_nsec.to_le_bytes());
    Object(bytes.into())
}

/// Opens a thing by its handle, `O_PATH`, on the file system of `mount` (a descriptor opened for reading).
///
/// # Errors
/// `ESTALE` when it is gone, `EPERM` without the capability, `EOPNOTSUPP` for an object that holds no handle.
pub(crate) fn open(mount: BorrowedFd<'_>, object: &Object) -> rustix::io::Result<OwnedFd> {
    open_with(mount, object, libc::O_PATH | libc::O_NOFOLLOW)
}

/// Opens a regular file by its handle for reading, as it is opened by its name. What was a regular file under this handle is
/// none that is not.
///
/// # Errors
/// As [`open`]; `EWOULDBLOCK` while somebody holds a write lease on it.
pub(super) fn open_file(mount: BorrowedFd<'_>, object: &Object) -> rustix::io::Result<OwnedFd> {
    open_with(mount, object, libc::O_RDONLY | libc::O_NOATIME | libc::O_NONBLOCK | libc::O_NOCTTY)
}

fn open_with(mount: BorrowedFd<'_>, object: &Object, flags: libc::c_int) -> rustix::io::Result<OwnedFd> {
    let Some((kind, handle)) = object.0.split_first_chunk::<4>() else {
        return Err(Errno::STALE);
    };
    let kind = u32::from_le_bytes(*kind);
    if kind == NO_HANDLE {
        return Err(Errno::OPNOTSUPP);
    }
    if handle.len() > HANDLE_BYTES_MAX {
        return Err(Errno::STALE);
    }
    let mut raw = Raw { bytes: handle.len() as u32, kind: kind as i32, data: [0; HANDLE_BYTES_MAX] };
    raw.data[..handle.len()].copy_from_slice(handle);
    let flags = flags | libc::O_CLOEXEC;
    // SAFETY: `raw` has the layout of `struct file_handle` with at least as many bytes as it says, and lives through
    // the call.
    let fd = unsafe { libc::open_by_handle_at(mount.as_raw_fd(), (&raw mut raw).cast(), flags) };
    if fd < 0 {
        return Err(last_error());
    }
    // SAFETY: the call succeeded, so this is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn last_error() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}
