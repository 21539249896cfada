//! Mode, owners and extended attributes of a pinned entry.
//!
//! Carried are `user.*`, `security.NTACL` and the POSIX ACLs; nothing else is read, written or removed. What the pinned
//! descriptor's own calls cannot do goes through its path in `/proc`, which leads to the pinned thing and not by names.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;

use anabranch_model::Attributes;
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Statx, Uid, XattrFlags};
use rustix::io::Errno;
use rustix::thread::CapabilitySet;

use super::open::{ProcPath, proc_path};
use super::principals::Principals;
use super::{listed, look};
use crate::fs::Stat;

const ACL_ACCESS: &[u8] = b"system.posix_acl_access";
const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";
const NTACL: &[u8] = b"security.NTACL";
const USER: &[u8] = b"user.";

/// The kernel's limit of one value (`XATTR_SIZE_MAX`) and of a list of names (`XATTR_LIST_MAX`).
const XATTR_BYTES_MAX: usize = 64 * 1024;
/// What is tried first.
const XATTR_BYTES: usize = 1024;

type Xattrs = BTreeMap<Box<[u8]>, Box<[u8]>>;

/// May this process give files away?
pub(super) fn may_give_away() -> bool {
    rustix::thread::capabilities(None).is_ok_and(|c| c.effective.contains(CapabilitySet::CHOWN))
}

/// How a thing is reached by the calls that a pinned descriptor does not take.
enum Reach<'a> {
    /// By its path in `/proc`.
    Pinned(ProcPath),
    /// By its descriptor, which is open for reading or writing: a walk through `/proc` less for each call.
    Open(BorrowedFd<'a>),
}

impl Reach<'_> {
    fn list(&self, buffer: &mut [u8]) -> rustix::io::Result<usize> {
        match self {
            Self::Pinned(path) => rustix::fs::listxattr(path.path(), buffer),
            Self::Open(fd) => rustix::fs::flistxattr(fd, buffer),
        }
    }

    fn get(&self, name: &[u8], buffer: &mut [u8]) -> rustix::io::Result<usize> {
        match self {
            Self::Pinned(path) => rustix::fs::getxattr(path.path(), name, buffer),
            Self::Open(fd) => rustix::fs::fgetxattr(fd, name, buffer),
        }
    }

    fn set(&self, name: &[u8], value: &[u8]) -> rustix::io::Result<()> {
        match self {
            Self::Pinned(path) => rustix::fs::setxattr(path.path(), name, value, XattrFlags::empty()),
            Self::Open(fd) => rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty()),
        }
    }

    fn remove(&self, name: &[u8]) -> rustix::io::Result<()> {
        match self {
            Self::Pinned(path) => rustix::fs::removexattr(path.path(), name),
            Self::Open(fd) => rustix::fs::fremovexattr(fd, name),
        }
    }

    fn set_mode(&self, mode: Mode) -> rustix::io::Result<()> {
        match self {
            Self::Pinned(path) => rustix::fs::chmodat(CWD, path.path(), mode, AtFlags::empty()),
            Self::Open(fd) => rustix::fs::fchmod(fd, mode),
        }
    }
}

/// Reads the attributes of a pinned file or directory, of which `s` was just read; of a symlink only the owners (mode
/// 0, no xattrs).
pub(super) fn read(fd: BorrowedFd<'_>, s: &Statx, principals: &Principals) -> io::Result<Attributes> {
    let (mode, xattrs) = match file_type(s)? {
        FileType::Symlink => (0, Xattrs::new()),
        kind => (permissions(s), read_xattrs(&Reach::Pinned(proc_path(fd)), kind == FileType::Directory)?),
    };
    Ok(Attributes { mode, owner: principals.user(s.stx_uid)?, group: principals.group(s.stx_gid)?, xattrs })
}

/// As [`read`], of a file that is open for reading or writing.
pub(super) fn read_file(fd: BorrowedFd<'_>, s: &Stat, principals: &Principals) -> io::Result<Attributes> {
    let xattrs = read_xattrs(&Reach::Open(fd), false)?;
    Ok(Attributes { mode: s.mode, owner: principals.user(s.uid)?, group: principals.group(s.gid)?, xattrs })
}

/// Has an entry that is no directory any xattr that is carried? Looks by name; a symlink is not followed.
pub(super) fn has_xattrs(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<bool> {
    let names = grown(|buffer| {
        listed::list(dir, name, buffer).unwrap_or_else(|| {
            let path = [proc_path(dir).path(), b"/", name].concat();
            rustix::fs::llistxattr(&path[..], buffer)
        })
    });
    match names {
        Err(Errno::OPNOTSUPP) => Ok(false),
        names => Ok(names?.split(|b| *b == 0).any(|name| is_carried(name, false))),
    }
}

/// Applies attributes to a pinned entry, of which `before` was just read. See [`crate::fs::Fs::write_attributes`].
pub(super) fn write(
    fd: BorrowedFd<'_>,
    before: &Statx,
    wanted: &Attributes,
    principals: &Principals,
    owners: bool,
) -> io::Result<()> {
    write_by(&Reach::Pinned(proc_path(fd)), fd, before, wanted, principals, owners)
}

/// As [`write`], to a file that is open for writing.
pub(super) fn write_file(
    fd: BorrowedFd<'_>,
    wanted: &Attributes,
    principals: &Principals,
    owners: bool,
) -> io::Result<()> {
    write_by(&Reach::Open(fd), fd, &look::by_descriptor(fd)?, wanted, principals, owners)
}

fn write_by(
    reach: &Reach<'_>,
    fd: BorrowedFd<'_>,
    before: &Statx,
    wanted: &Attributes,
    principals: &Principals,
    owners: bool,
) -> io::Result<()> {
    let kind = file_type(before)?;
    let chowned = write_owners(fd, before, wanted, principals, owners)?;
    if kind == FileType::Symlink {
        return Ok(());
    }
    let now = read_xattrs(reach, kind == FileType::Directory)?;
    let is_acl = |name: &[u8]| name == ACL_ACCESS || name == ACL_DEFAULT;
    let acl_written = write_xattrs(reach, &now, wanted, is_acl)?;
    let mode = if chowned || acl_written { permissions(&look::by_descriptor(fd)?) } else { permissions(before) };
    write_mode(reach, mode, wanted.mode)?;
    write_xattrs(reach, &now, wanted, |name| name.starts_with(USER))?;
    write_xattrs(reach, &now, wanted, |name| name == NTACL)?;
    Ok(())
}

/// What can carry attributes; sockets, devices and FIFOs are left alone.
fn file_type(s: &Statx) -> io::Result<FileType> {
    match look::file_type(s) {
        kind @ (FileType::RegularFile | FileType::Directory | FileType::Symlink) => Ok(kind),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "neither file, directory nor symlink")),
    }
}

fn permissions(s: &Statx) -> u32 {
    u32::from(s.stx_mode) & 0o7777
}

/// Owner and group, where they differ; says whether anything was tried. Without the capability the owner stays, and the
/// group changes only to one of the process's own.
fn write_owners(
    fd: BorrowedFd<'_>,
    before: &Statx,
    wanted: &Attributes,
    principals: &Principals,
    owners: bool,
) -> io::Result<bool> {
    let user = principals.user_number(&wanted.owner)?;
    let group = principals.group_number(&wanted.group)?;
    // The highest number means "leave as it is" to the kernel, and belongs to nobody.
    let user = (owners && user != before.stx_uid && user != u32::MAX).then(|| Uid::from_raw(user));
    let group = (group != before.stx_gid && group != u32::MAX).then(|| Gid::from_raw(group));
    if user.is_none() && group.is_none() {
        return Ok(false);
    }
    held(rustix::fs::chownat(fd, c"", user, group, AtFlags::EMPTY_PATH))?;
    Ok(true)
}

/// The mode, after owner and ACL, since both may take set-id bits away and an ACL sets the permission bits. Where ACL
/// and mode disagree (two users changed them on different members), the mode has the last word: the kernel fits the
/// ACL's owner, mask and other entries to it.
fn write_mode(reach: &Reach<'_>, now: u32, mode: u32) -> io::Result<()> {
    let mode = mode & 0o7777;
    if now == mode { Ok(()) } else { held(reach.set_mode(Mode::from_raw_mode(mode))) }
}

/// Brings the carried xattrs that `which` names from `now` to what is wanted; says whether anything was tried.
fn write_xattrs(
    reach: &Reach<'_>,
    now: &Xattrs,
    wanted: &Attributes,
    which: impl Fn(&[u8]) -> bool,
) -> io::Result<bool> {
    let mut tried = false;
    for name in now.keys().filter(|name| which(name) && !wanted.xattrs.contains_key(*name)) {
        tried = true;
        match reach.remove(name) {
            Err(Errno::NODATA) => {}
            done => held(done)?,
        }
    }
    for (name, value) in wanted.xattrs.iter().filter(|(name, _)| which(name)) {
        if now.get(name) != Some(value) {
            tried = true;
            held(reach.set(name, value))?;
        }
    }
    Ok(tried)
}

/// A part that this process or file system cannot hold is left out; the reading back shows it. A full disk or a broken
/// one is an error.
fn held(done: rustix::io::Result<()>) -> io::Result<()> {
    match done {
        // `EINVAL`: an owner that the user namespace does not map, an ACL on what takes none.
        Ok(()) | Err(Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP | Errno::INVAL) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

fn is_carried(name: &[u8], directory: bool) -> bool {
    name == ACL_ACCESS || (directory && name == ACL_DEFAULT) || name == NTACL || name.starts_with(USER)
}

fn read_xattrs(reach: &Reach<'_>, directory: bool) -> io::Result<Xattrs> {
    let mut xattrs = Xattrs::new();
    let names = match grown(|buffer| reach.list(buffer)) {
        Err(Errno::OPNOTSUPP) => return Ok(xattrs),
        other => other?,
    };
    for name in names.split(|b| *b == 0).filter(|name| is_carried(name, directory)) {
        match grown(|buffer| reach.get(name, buffer)) {
            Ok(value) => xattrs.insert(name.into(), value.into()),
            // Removed since it was listed; or listed, and yet not readable by this process at all.
            Err(Errno::NODATA | Errno::OPNOTSUPP) => None,
            Err(e) => return Err(e.into()),
        };
    }
    Ok(xattrs)
}

/// Calls with a buffer that may be too small, and then with the largest that there is.
fn grown(call: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    let mut first = [0; XATTR_BYTES];
    let mut buffer;
    let length = match call(&mut first) {
        Err(Errno::RANGE) => {
            buffer = vec![0; XATTR_BYTES_MAX];
            call(&mut buffer)?
        }
        length => {
            let length = length?;
            return Ok(first.get(..length).unwrap_or_default().to_vec());
        }
    };
    buffer.truncate(length);
    Ok(buffer)
}
