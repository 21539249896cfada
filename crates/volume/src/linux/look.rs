//! Looking at entries: `statx` and the file handle, made into a [`Stat`].

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::OnceLock;

use anabranch_model::Timestamp;
use rustix::fs::{AtFlags, FileType, OFlags, Statx, StatxAttributes, StatxFlags, StatxTimestamp};
use rustix::io::Errno;

use super::{handle, open};
use crate::fs::{FileStamp, Kind, Object, Stat};

/// What is asked of `statx`. Both mount ids: a kernel before 6.8 has only the one that may come again after an unmount.
pub(super) const MASK: StatxFlags = StatxFlags::BASIC_STATS
    .union(StatxFlags::BTIME)
    .union(StatxFlags::MNT_ID)
    .union(StatxFlags::from_bits_retain(libc::STATX_MNT_ID_UNIQUE));

/// btrfs: the inode number of every subvolume's root.
const SUBVOLUME_ROOT: u64 = 256;
/// btrfs: the inode number of the empty directory that stands in a snapshot where the original had a subvolume.
const SUBVOLUME_LEFT_OUT: u64 = 2;
/// `f_type` of btrfs.
const BTRFS_MAGIC: u64 = 0x9123_683e;

/// `f_type` of NFS, SMB (old and new), 9p, Ceph and AFS.
const REMOTE_MAGICS: [u64; 6] = [0x6969, 0xff53_4d42, 0xfe53_4d42, 0x0102_1997, 0x00c3_6400, 0x5346_414f];

/// Which part of which file system the root is in: what is elsewhere is foreign.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    device: (u32, u32),
    mount: u64,
    root_inode: u64,
    btrfs: bool,
    handles: bool,
}

impl Place {
    /// Is this in another mount or subvolume, or the root of one?
    fn is_foreign(&self, s: &Statx) -> bool {
        if (s.stx_dev_major, s.stx_dev_minor) != self.device || mount(s) != self.mount {
            return true;
        }
        if s.stx_ino == self.root_inode {
            return false;
        }
        s.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)
            || (self.btrfs && matches!(s.stx_ino, SUBVOLUME_ROOT | SUBVOLUME_LEFT_OUT))
    }
}

/// Looks at the root: its place and object.
pub(super) fn root(fd: BorrowedFd<'_>) -> io::Result<(Place, Object)> {
    let s = by_descriptor(fd)?;
    let handle = handle::of(fd, b"")?;
    let place = Place {
        device: (s.stx_dev_major, s.stx_dev_minor),
        mount: mount(&s),
        root_inode: s.stx_ino,
        btrfs: rustix::fs::fstatfs(fd)?.f_type as u64 == BTRFS_MAGIC,
        handles: handle.is_some(),
    };
    Ok((place, handle.unwrap_or_else(|| handle::fallback(&s))))
}

/// Is this directory on a network file system?
pub(super) fn is_remote(fd: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(REMOTE_MAGICS.contains(&(rustix::fs::fstatfs(fd)?.f_type as u64)))
}

/// Looks at an entry by its name; `None` when it is absent.
pub(super) fn entry(dir: BorrowedFd<'_>, name: &[u8], place: &Place) -> io::Result<Option<Stat>> {
    let name = open::component(name)?;
    match entry_fast(dir, name, place) {
        Ok(Some(stat)) => Ok(Some(stat)),
        // The name was given to another thing between the two calls: hold on to one of them.
        Ok(None) => entry_pinned(dir, name, place),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Two calls by name: 2 µs instead of 4 for a pinned entry. `None` when they saw different things, or when the handle
/// does not tell its inode.
///
/// RACE: in between, the thing may be removed and another one with the same inode number get its name. Then this says
/// the old stamp with the new object. Both changes give events, so the path is looked at again (design, section 5).
fn entry_fast(dir: BorrowedFd<'_>, name: &[u8], place: &Place) -> rustix::io::Result<Option<Stat>> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let s = rustix::fs::statx(dir, name, flags, MASK)?;
    if !place.handles {
        return Ok(Some(stat(&s, handle::fallback(&s), place)));
    }
    let Some(object) = handle::of(dir, name)? else {
        return Ok(None);
    };
    // A mount point: the handle is that of what is mounted there, and may be of any type.
    if place.is_foreign(&s) || handle::names_inode(&object, s.stx_ino) == Some(true) {
        return Ok(Some(stat(&s, object, place)));
    }
    Ok(None)
}

/// By a descriptor: certain. Crosses into a mount, as `statx` by name does; what it finds there is foreign.
fn entry_pinned(dir: BorrowedFd<'_>, name: &[u8], place: &Place) -> io::Result<Option<Stat>> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::io::retry_on_intr(|| rustix::fs::openat(dir, name, flags, rustix::fs::Mode::empty()));
    match opened {
        Ok(fd) => Ok(Some(self::open(std::os::fd::AsFd::as_fd(&fd), place)?)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Looks at an open thing.
pub(super) fn open(fd: BorrowedFd<'_>, place: &Place) -> io::Result<Stat> {
    let s = by_descriptor(fd)?;
    let object = if place.handles { handle::of(fd, b"")? } else { None };
    Ok(stat(&s, object.unwrap_or_else(|| handle::fallback(&s)), place))
}

/// As [`open`], of a thing whose object is kept where it is open.
pub(super) fn again(fd: BorrowedFd<'_>, place: &Place, object: &OnceLock<Object>) -> io::Result<Stat> {
    if let Some(object) = object.get() {
        return Ok(stat(&by_descriptor(fd)?, object.clone(), place));
    }
    let first = open(fd, place)?;
    // Another thread may have asked at the same time, and got the same.
    let _ = object.set(first.object.clone());
    Ok(first)
}

/// Refuses what is in another mount or subvolume; says what it is.
pub(super) fn check_home(fd: BorrowedFd<'_>, place: &Place) -> io::Result<Statx> {
    let s = by_descriptor(fd)?;
    if place.is_foreign(&s) {
        return Err(io::Error::new(io::ErrorKind::CrossesDevices, "another mount or subvolume"));
    }
    Ok(s)
}

/// The type that a `statx` tells.
pub(super) fn file_type(s: &Statx) -> FileType {
    FileType::from_raw_mode(u32::from(s.stx_mode))
}

/// The hard links of an open thing.
pub(super) fn links(fd: BorrowedFd<'_>) -> io::Result<u32> {
    Ok(by_descriptor(fd)?.stx_nlink)
}

/// When the thing last changed: in data, and in anything.
pub(super) fn change_times(fd: BorrowedFd<'_>) -> io::Result<(Timestamp, Timestamp)> {
    let s = by_descriptor(fd)?;
    Ok((timestamp(s.stx_mtime), timestamp(s.stx_ctime)))
}

/// `statx` of a descriptor itself.
pub(super) fn by_descriptor(fd: BorrowedFd<'_>) -> io::Result<Statx> {
    Ok(rustix::fs::statx(fd, c"", open::ITSELF, MASK)?)
}

fn stat(s: &Statx, object: Object, place: &Place) -> Stat {
    let mode = u32::from(s.stx_mode);
    Stat {
        kind: open::kind(FileType::from_raw_mode(mode)).unwrap_or(Kind::Other),
        object,
        stamp: FileStamp {
            size: s.stx_size,
            mtime: timestamp(s.stx_mtime),
            ctime: timestamp(s.stx_ctime),
            // The kernel keeps its change cookie to itself (for its NFS server): `statx` never shows it.
            cookie: 0,
        },
        mode: mode & 0o7777,
        uid: s.stx_uid,
        gid: s.stx_gid,
        links: s.stx_nlink,
        birth: (s.stx_mask & StatxFlags::BTIME.bits() != 0).then(|| timestamp(s.stx_btime)),
        blocks: s.stx_blocks,
        foreign: place.is_foreign(s),
    }
}

/// The mount's id; 0 where the kernel does not say.
fn mount(s: &Statx) -> u64 {
    let known = StatxFlags::MNT_ID.bits() | libc::STATX_MNT_ID_UNIQUE;
    if s.stx_mask & known == 0 { 0 } else { s.stx_mnt_id }
}

fn timestamp(t: StatxTimestamp) -> Timestamp {
    Timestamp { seconds: t.tv_sec, nanoseconds: t.tv_nsec }
}
