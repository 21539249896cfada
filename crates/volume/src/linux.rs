//! The real file system: [`Fs`] by Linux system calls.
//!
//! Owns every system call that touches a replicated folder. It never follows a symlink, crosses a mount, enters another
//! subvolume or leaves the root: each operation takes a directory's descriptor and one component, and a component with
//! a slash, or `..`, is refused. What acts on an entry in more than one call (attributes, opening) pins it first by an
//! `O_PATH` descriptor, looks at what it got, and goes on through that descriptor alone, so that swapping the name in
//! between changes nothing outside the root.
//!
//! Needs Linux 5.8 and `/proc`. A directory is held by an `O_PATH` descriptor: it costs no read permission, and two
//! users of it share no position.
//!
//! # Source
//! Design, sections 5 and 8.

mod attributes;
mod data;
mod handle;
mod lease;
mod listed;
mod locate;
mod look;
mod open;
mod principals;
mod project;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anabranch_model::{Attributes, Timestamp};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;

use crate::fs::{Abilities, Entry, Fs, Kind, Lease, Object, Room, Stat};

pub(crate) use locate::Whereabouts;
use look::Place;
use open::component;
pub(crate) use open::proc_path;

/// A replicated folder's root on a real file system. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct LinuxFs {
    inner: Arc<Inner>,
}

struct Inner {
    /// The path given, made absolute but not resolved: what [`Fs::root_in_place`] looks at anew.
    path: PathBuf,
    root: LinuxDir,
    /// The root again, opened for reading: `syncfs` and `open_by_handle_at` take no `O_PATH` descriptor. Kept open, so
    /// that a write error between two `syncfs` is not missed.
    readable: OwnedFd,
    place: Place,
    object: Object,
    abilities: Abilities,
    principals: principals::Principals,
    parallelism: usize,
}

/// A directory, open. Clones share the descriptor.
#[derive(Clone)]
pub struct LinuxDir(Arc<OwnedFd>);

/// A file, open.
pub struct LinuxFile {
    fd: OwnedFd,
    /// Asked once: what is open stays the same object.
    object: OnceLock<Object>,
}

impl LinuxFile {
    fn new(fd: OwnedFd) -> Self {
        Self { fd, object: OnceLock::new() }
    }
}

impl AsFd for LinuxDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsFd for LinuxFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl fmt::Debug for LinuxFs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinuxFs").field("path", &self.inner.path).finish_non_exhaustive()
    }
}

impl fmt::Debug for LinuxDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LinuxDir").field(&self.0).finish()
    }
}

impl fmt::Debug for LinuxFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LinuxFile").field(&self.fd).finish()
    }
}

impl LinuxFs {
    /// Opens the directory at `root`. Symlinks in this path itself are followed, here and nowhere else.
    ///
    /// # Errors
    /// Where the path is no directory that can be read, or `/proc` is not mounted.
    pub fn open(root: &Path) -> io::Result<Self> {
        let path = std::path::absolute(root)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(&path, flags, Mode::empty())?;
        let readable =
            rustix::fs::openat(&fd, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        if rustix::fs::statx(CWD, proc_path(fd.as_fd()).path(), AtFlags::empty(), look::MASK).is_err() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "/proc is not mounted: attributes need it"));
        }
        let (place, object) = look::root(fd.as_fd())?;
        lease::ignore_break_signals();
        let abilities = Abilities {
            owners: attributes::may_give_away(),
            leases: lease::available(),
            reflinks: data::clones(readable.as_fd()),
            handles: locate::works(readable.as_fd(), &object),
        };
        let inner = Inner {
            path,
            root: LinuxDir(Arc::new(fd)),
            readable,
            place,
            object,
            abilities,
            principals: principals::Principals::default(),
            parallelism: std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 8)),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The root's path as it was given, absolute.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// The root's object.
    #[must_use]
    pub fn root_object(&self) -> &Object {
        &self.inner.object
    }

    /// The root, opened for reading: for marks and for opening by handle.
    pub(crate) fn root_readable(&self) -> BorrowedFd<'_> {
        self.inner.readable.as_fd()
    }

    /// Opens a directory beneath the root for reading; no symlink and no mount is crossed.
    pub(crate) fn readable_beneath(&self, path: &[u8]) -> io::Result<OwnedFd> {
        open::readable(open::pin_path(self.root_readable(), path)?.as_fd())
    }

    /// Is this a network file system, which others change without this kernel's seeing it?
    pub(crate) fn is_remote(&self) -> io::Result<bool> {
        look::is_remote(self.root_readable())
    }

    /// Enumerates once, whatever changes meanwhile: for who hears of changes by other means.
    pub(crate) fn list_once(&self, dir: &LinuxDir) -> io::Result<Vec<Entry>> {
        open::list_unsteady(dir.as_fd())
    }

    /// Where a directory is, as far as a look at its path tells.
    pub(crate) fn whereabouts(&self, directory: &Object) -> Whereabouts {
        locate::whereabouts(self.root_readable(), directory)
    }
}

/// Sets the modification time of an open or pinned thing.
fn set_mtime(fd: BorrowedFd<'_>, mtime: Timestamp) -> io::Result<()> {
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: mtime.seconds, tv_nsec: i64::from(mtime.nanoseconds) },
    };
    Ok(rustix::fs::utimensat(fd, c"", &times, AtFlags::EMPTY_PATH)?)
}

impl Fs for LinuxFs {
    type Dir = LinuxDir;
    type File = LinuxFile;

    fn root(&self) -> LinuxDir {
        self.inner.root.clone()
    }

    fn root_in_place(&self) -> io::Result<bool> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = match rustix::fs::open(&self.inner.path, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(false),
            Err(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE | rustix::io::Errno::NOMEM) => {
                // It says nothing of the directory, and what needs no descriptor tells enough.
                let (there, ours) = (rustix::fs::stat(&self.inner.path)?, rustix::fs::fstat(&self.inner.readable)?);
                return Ok((there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino));
            }
            Err(e) => return Err(e.into()),
        };
        let (place, object) = look::root(fd.as_fd())?;
        Ok(place == self.inner.place && object == self.inner.object)
    }

    fn abilities(&self) -> Abilities {
        self.inner.abilities
    }

    fn room(&self) -> io::Result<Room> {
        let v = rustix::fs::fstatvfs(&self.inner.readable)?;
        Ok(Room { free: v.f_bavail.saturating_mul(v.f_frsize), total: v.f_blocks.saturating_mul(v.f_frsize) })
    }

    fn open_dir(&self, dir: &LinuxDir, name: &[u8]) -> io::Result<LinuxDir> {
        let fd = open::pin(dir.as_fd(), name, OFlags::DIRECTORY)?;
        look::check_home(fd.as_fd(), &self.inner.place)?;
        Ok(LinuxDir(Arc::new(fd)))
    }

    fn list(&self, dir: &LinuxDir) -> io::Result<Vec<Entry>> {
        open::list(dir.as_fd())
    }

    fn stat(&self, dir: &LinuxDir, name: &[u8]) -> io::Result<Option<Stat>> {
        look::entry(dir.as_fd(), name, &self.inner.place)
    }

    fn stat_dir(&self, dir: &LinuxDir) -> io::Result<Stat> {
        look::open(dir.as_fd(), &self.inner.place)
    }

    fn stat_file(&self, file: &LinuxFile) -> io::Result<Stat> {
        look::again(file.as_fd(), &self.inner.place, &file.object)
    }

    fn open_file(&self, dir: &LinuxDir, name: &[u8]) -> io::Result<LinuxFile> {
        let fd = open::regular(dir.as_fd(), name, &self.inner.place, OFlags::RDONLY | OFlags::NOATIME);
        match fd {
            // Only the owner and root may leave the access time alone.
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                Ok(LinuxFile::new(open::regular(dir.as_fd(), name, &self.inner.place, OFlags::RDONLY)?))
            }
            other => Ok(LinuxFile::new(other?)),
        }
    }

    fn open_object(&self, object: &Object) -> Option<LinuxFile> {
        if !self.inner.abilities.handles {
            return None;
        }
        let fd = handle::open_file(self.root_readable(), object).ok()?;
        Some(LinuxFile { fd, object: OnceLock::from(object.clone()) })
    }

    fn read_at(&self, file: &LinuxFile, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        data::read_at(file.as_fd(), buffer, offset)
    }

    fn read_vec(&self, file: &LinuxFile, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        data::read_vec(file.as_fd(), offset, length)
    }

    fn data_range(&self, file: &LinuxFile, offset: u64) -> io::Result<Option<(u64, u64)>> {
        data::range(file.as_fd(), offset)
    }

    fn read_link(&self, dir: &LinuxDir, name: &[u8]) -> io::Result<Vec<u8>> {
        let target = rustix::fs::readlinkat(dir, component(name)?, Vec::new())?;
        Ok(target.into_bytes())
    }

    fn lease(&self, file: &LinuxFile) -> io::Result<Lease> {
        lease::take(file.as_fd())
    }

    fn lease_unbroken(&self, file: &LinuxFile) -> io::Result<bool> {
        lease::unbroken(file.as_fd())
    }

    fn release(&self, file: &LinuxFile) -> io::Result<()> {
        lease::release(file.as_fd())
    }

    fn pause(&self, time: Duration) {
        std::thread::sleep(time);
    }

    fn create_file(&self, dir: &LinuxDir, name: &[u8]) -> io::Result<LinuxFile> {
        Ok(LinuxFile::new(open::create(dir.as_fd(), name, Mode::RUSR | Mode::WUSR)?))
    }

    fn create_file_for(&self, dir: &LinuxDir, name: &[u8], mode: u32) -> io::Result<LinuxFile> {
        // Set-user-ID and the like only when the owner is right.
        Ok(LinuxFile::new(open::create(dir.as_fd(), name, Mode::from_raw_mode(mode & 0o777))?))
    }

    fn open_private(&self, dir: &LinuxDir, name: &[u8]) -> io::Result<LinuxFile> {
        let fd = open::regular(dir.as_fd(), name, &self.inner.place, OFlags::RDWR)?;
        if look::links(fd.as_fd())? > 1 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a private file has a second name"));
        }
        Ok(LinuxFile::new(fd))
    }

    fn write_at(&self, file: &LinuxFile, bytes: &[u8], offset: u64) -> io::Result<()> {
        data::write_at(file.as_fd(), bytes, offset)
    }

    fn begin_write_back(&self, file: &LinuxFile, offset: u64, length: u64) {
        data::begin_write_back(file.as_fd(), offset, length);
    }

    fn set_size(&self, file: &LinuxFile, size: u64) -> io::Result<()> {
        Ok(rustix::io::retry_on_intr(|| rustix::fs::ftruncate(file, size))?)
    }

    fn clone_range(&self, from: &LinuxFile, to: &LinuxFile, length: u64) -> io::Result<()> {
        data::clone_range(from.as_fd(), to.as_fd(), length)
    }

    fn create_dir(&self, dir: &LinuxDir, name: &[u8]) -> io::Result<()> {
        Ok(rustix::fs::mkdirat(dir, component(name)?, Mode::RWXU)?)
    }

    fn create_symlink(&self, dir: &LinuxDir, name: &[u8], target: &[u8]) -> io::Result<()> {
        Ok(rustix::fs::symlinkat(target, dir, component(name)?)?)
    }

    fn create_symlink_for(&self, dir: &LinuxDir, name: &[u8], target: &[u8], home: &LinuxDir) -> io::Result<()> {
        project::symlink_for(dir.as_fd(), name, target, home.as_fd(), &self.inner.place)
    }

    fn read_attributes(&self, dir: &LinuxDir, name: &[u8]) -> io::Result<Attributes> {
        let fd = open::pin(dir.as_fd(), name, OFlags::empty())?;
        let s = look::check_home(fd.as_fd(), &self.inner.place)?;
        attributes::read(fd.as_fd(), &s, &self.inner.principals)
    }

    fn write_attributes(&self, dir: &LinuxDir, name: &[u8], wanted: &Attributes) -> io::Result<Attributes> {
        let fd = open::pin(dir.as_fd(), name, OFlags::empty())?;
        let s = look::check_home(fd.as_fd(), &self.inner.place)?;
        attributes::write(fd.as_fd(), &s, wanted, &self.inner.principals, self.inner.abilities.owners)?;
        attributes::read(fd.as_fd(), &look::by_descriptor(fd.as_fd())?, &self.inner.principals)
    }

    fn file_attributes(&self, _: &LinuxDir, _: &[u8], file: &LinuxFile, stat: &Stat) -> io::Result<Attributes> {
        attributes::read_file(file.as_fd(), stat, &self.inner.principals)
    }

    fn has_attributes(&self, dir: &LinuxDir, name: &[u8], stat: &Stat, wanted: &Attributes) -> io::Result<bool> {
        let owners = (stat.uid, stat.gid) == (wanted.owner.number, wanted.group.number);
        if stat.kind == Kind::File && !stat.foreign && wanted.xattrs.is_empty() {
            return Ok(owners && stat.mode == wanted.mode && !attributes::has_xattrs(dir.as_fd(), component(name)?)?);
        }
        Ok(self.read_attributes(dir, name)? == *wanted)
    }

    fn finish_private(
        &self,
        _: &LinuxDir,
        _: &[u8],
        file: &LinuxFile,
        wanted: Option<&Attributes>,
        mtime: Timestamp,
    ) -> io::Result<(Stat, Attributes)> {
        let fd = file.as_fd();
        if let Some(wanted) = wanted {
            attributes::write_file(fd, wanted, &self.inner.principals, self.inner.abilities.owners)?;
        }
        set_mtime(fd, mtime)?;
        let stat = look::open(fd, &self.inner.place)?;
        let attributes = attributes::read_file(fd, &stat, &self.inner.principals)?;
        Ok((stat, attributes))
    }

    fn set_mode(&self, dir: &LinuxDir, mode: u32) -> io::Result<()> {
        let path = proc_path(dir.as_fd());
        Ok(rustix::fs::chmodat(CWD, path.path(), Mode::from_raw_mode(mode), AtFlags::empty())?)
    }

    fn set_mtime(&self, dir: &LinuxDir, name: &[u8], mtime: Timestamp) -> io::Result<()> {
        let fd = open::pin(dir.as_fd(), name, OFlags::empty())?;
        look::check_home(fd.as_fd(), &self.inner.place)?;
        set_mtime(fd.as_fd(), mtime)
    }

    fn rename_new(&self, from: &LinuxDir, old: &[u8], to: &LinuxDir, new: &[u8]) -> io::Result<()> {
        let (before, after) = (component(old)?, component(new)?);
        let rename = || rustix::fs::renameat_with(from, before, to, after, RenameFlags::NOREPLACE);
        match rename() {
            Err(Errno::XDEV) if project::join(from.as_fd(), old, to.as_fd(), &self.inner.place)? => Ok(rename()?),
            other => Ok(other?),
        }
    }

    fn exchange(&self, one: &LinuxDir, name: &[u8], other: &LinuxDir, with: &[u8]) -> io::Result<()> {
        let (here, there) = (component(name)?, component(with)?);
        let exchange = || rustix::fs::renameat_with(one, here, other, there, RenameFlags::EXCHANGE);
        match exchange() {
            Err(Errno::XDEV) => {
                let joined = project::join(one.as_fd(), name, other.as_fd(), &self.inner.place)?;
                let back = project::join(other.as_fd(), with, one.as_fd(), &self.inner.place)?;
                if joined || back { Ok(exchange()?) } else { Err(Errno::XDEV.into()) }
            }
            done => Ok(done?),
        }
    }

    fn remove_file(&self, dir: &LinuxDir, name: &[u8]) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(dir, component(name)?, AtFlags::empty())?)
    }

    fn remove_dir(&self, dir: &LinuxDir, name: &[u8]) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(dir, component(name)?, AtFlags::REMOVEDIR)?)
    }

    fn sync_file(&self, file: &LinuxFile) -> io::Result<()> {
        Ok(rustix::io::retry_on_intr(|| rustix::fs::fsync(file))?)
    }

    fn sync_dir(&self, dir: &LinuxDir) -> io::Result<()> {
        let fd = open::readable(dir.as_fd())?;
        Ok(rustix::io::retry_on_intr(|| rustix::fs::fsync(&fd))?)
    }

    fn sync_all(&self) -> io::Result<()> {
        Ok(rustix::io::retry_on_intr(|| rustix::fs::syncfs(&self.inner.readable))?)
    }

    fn locate(&self, object: &Object) -> io::Result<Option<(Object, Vec<u8>)>> {
        locate::locate(self, object)
    }

    /// As many as there are processors, at least 2 (one waits for the disk meanwhile) and at most 8.
    fn parallelism(&self) -> usize {
        self.inner.parallelism
    }
}
