//! Projects: directories, on XFS and ext4, that hand a number down to what is made in them, mostly for a quota. The
//! kernel refuses, with `EXDEV`, to rename something of another project into such a directory. What we put there joins
//! its project first, as a copy made there would have done (docs/adr/0006).
//!
//! A symlink cannot be given a number by a call on it, so one is made where it is handed the right one.
#![allow(unsafe_code, reason = "FS_IOC_FSGETXATTR and FS_IOC_FSSETXATTR are not in rustix")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::look::{self, Place};
use super::open;
use crate::fs::Kind;

/// `struct fsxattr` of `linux/fs.h`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Attributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
    padding: [u8; 8],
}

/// `FS_IOC_FSGETXATTR` and `FS_IOC_FSSETXATTR`.
const GET: libc::c_ulong = 0x801c_581f;
const SET: libc::c_ulong = 0x401c_5820;
/// `FS_XFLAG_PROJINHERIT`: the number is handed down.
const INHERITED: u32 = 0x200;
/// Directories in one another that are gone through at most.
const DEPTH_MAX: usize = 1024;

fn get(fd: BorrowedFd<'_>) -> io::Result<Attributes> {
    let mut attributes = Attributes::default();
    // SAFETY: the request fills a structure of this layout, which lives through the call.
    if unsafe { libc::ioctl(fd.as_raw_fd(), GET as _, &raw mut attributes) } == 0 {
        return Ok(attributes);
    }
    Err(io::Error::last_os_error())
}

fn set(fd: BorrowedFd<'_>, attributes: &Attributes) -> io::Result<()> {
    // SAFETY: the request reads a structure of this layout, which lives through the call.
    if unsafe { libc::ioctl(fd.as_raw_fd(), SET as _, std::ptr::from_ref(attributes)) } == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}

/// The project that a directory hands down; `None` where it does not, or its file system knows none.
fn handed_down(dir: BorrowedFd<'_>) -> io::Result<Option<u32>> {
    let dir = open::readable(dir)?;
    match get(dir.as_fd()) {
        Ok(attributes) => Ok((attributes.flags & INHERITED != 0).then_some(attributes.project)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EOPNOTSUPP | libc::EINVAL)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes an entry part of the project that a directory hands down. `false`: there is nothing to be done, or nothing that
/// can be done.
///
/// # Errors
/// The project's quota has no room, or anything else that the kernel says.
pub(super) fn join(dir: BorrowedFd<'_>, name: &[u8], to: BorrowedFd<'_>, place: &Place) -> io::Result<bool> {
    let Some(project) = handed_down(to)? else { return Ok(false) };
    let pinned = open::pin(dir, name, OFlags::empty())?;
    match open::kind(look::file_type(&look::check_home(pinned.as_fd(), place)?)) {
        Some(Kind::File) => {
            let file = open::regular(dir, name, place, OFlags::RDONLY)?;
            change(file.as_fd(), project, false)
        }
        Some(Kind::Directory) => {
            let directory = open::readable(pinned.as_fd())?;
            let before = get(directory.as_fd())?.project;
            join_all(directory, before, project, place, 0)
        }
        _ => Ok(false),
    }
}

fn change(fd: BorrowedFd<'_>, project: u32, directory: bool) -> io::Result<bool> {
    let mut attributes = get(fd)?;
    if attributes.project == project {
        return Ok(false);
    }
    attributes.project = project;
    if directory {
        attributes.flags |= INHERITED;
    }
    set(fd, &attributes)?;
    Ok(true)
}

/// A directory with all in it that is of the project that it was of; what is in it first, so that a try that is cut off
/// is made again.
fn join_all(dir: OwnedFd, before: u32, project: u32, place: &Place, depth: usize) -> io::Result<bool> {
    if depth > DEPTH_MAX {
        return Err(io::Error::from_raw_os_error(libc::EXDEV));
    }
    for entry in open::list(dir.as_fd())? {
        let pinned = match open::pin(dir.as_fd(), &entry.name, OFlags::empty()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            // Mounted there: not part of the folder.
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => continue,
            other => other?,
        };
        let Ok(found) = look::check_home(pinned.as_fd(), place) else { continue };
        match open::kind(look::file_type(&found)) {
            Some(Kind::Directory) => {
                let inner = open::readable(pinned.as_fd())?;
                if get(inner.as_fd())?.project == before {
                    join_all(inner, before, project, place, depth + 1)?;
                }
            }
            Some(Kind::File) => {
                let file = open::regular(dir.as_fd(), &entry.name, place, OFlags::RDONLY)?;
                if get(file.as_fd())?.project == before {
                    change(file.as_fd(), project, false)?;
                }
            }
            _ => {}
        }
    }
    change(dir.as_fd(), project, true)
}

/// Makes a symlink that may be renamed into `home`: where that hands down a project, in a directory of the same project
/// beside its name first. Such directories stay, one a project.
pub(super) fn symlink_for(
    dir: BorrowedFd<'_>,
    name: &[u8],
    target: &[u8],
    home: BorrowedFd<'_>,
    place: &Place,
) -> io::Result<()> {
    let name = open::component(name)?;
    let Some(project) = handed_down(home)?.filter(|project| handed_down(dir).is_ok_and(|own| own != Some(*project)))
    else {
        return Ok(rustix::fs::symlinkat(target, dir, name)?);
    };
    let beside = format!("project-{project}").into_bytes();
    match rustix::fs::mkdirat(dir, &*beside, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let beside = open::readable(open::pin(dir, &beside, OFlags::DIRECTORY)?.as_fd())?;
    look::check_home(beside.as_fd(), place)?;
    change(beside.as_fd(), project, true)?;
    // One may be left of a try that was cut off.
    match rustix::fs::unlinkat(&beside, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    rustix::fs::symlinkat(target, &beside, name)?;
    Ok(rustix::fs::renameat_with(&beside, name, dir, name, RenameFlags::NOREPLACE)?)
}
