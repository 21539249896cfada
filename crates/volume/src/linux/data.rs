//! Bytes of files: at offsets, in their data ranges, cloned.
#![allow(unsafe_code, reason = "FICLONERANGE and sync_file_range are not in rustix")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

/// Reads until the buffer is full or the file ends.
pub(super) fn read_at(fd: BorrowedFd<'_>, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        let Some(at) = offset.checked_add(done as u64) else { break };
        match rustix::io::pread(fd, &mut buffer[done..], at) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(done)
}

/// As [`read_at`], into new memory, which is not cleared before.
pub(super) fn read_vec(fd: BorrowedFd<'_>, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        let Some(at) = offset.checked_add(bytes.len() as u64) else { break };
        match rustix::io::pread(fd, rustix::buffer::spare_capacity(&mut bytes), at) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    // The memory may have had room for more.
    bytes.truncate(length);
    Ok(bytes)
}

/// Lets the kernel write these bytes to the disk, without waiting. Only a hint: an error shows with the sync that counts.
pub(super) fn begin_write_back(fd: BorrowedFd<'_>, offset: u64, length: u64) {
    let (Ok(offset), Ok(length)) = (i64::try_from(offset), i64::try_from(length)) else { return };
    // SAFETY: takes plain integers.
    unsafe { libc::sync_file_range(fd.as_raw_fd(), offset, length, libc::SYNC_FILE_RANGE_WRITE) };
}

/// Writes everything.
pub(super) fn write_at(fd: BorrowedFd<'_>, bytes: &[u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match rustix::io::pwrite(fd, &bytes[done..], offset.saturating_add(done as u64)) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => done += n,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// The next range with data. A file system that knows no holes has one range, the whole file.
pub(super) fn range(fd: BorrowedFd<'_>, offset: u64) -> io::Result<Option<(u64, u64)>> {
    // Beyond what the kernel's signed offsets can say nothing is.
    if i64::try_from(offset).is_err() {
        return Ok(None);
    }
    let start = match rustix::fs::seek(fd, SeekFrom::Data(offset)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => {
            let size = super::look::by_descriptor(fd)?.stx_size;
            return Ok((offset < size).then_some((offset, size)));
        }
        Err(e) => return Err(e.into()),
    };
    match rustix::fs::seek(fd, SeekFrom::Hole(start)) {
        Ok(end) => Ok(Some((start, end))),
        // Cut short in between.
        Err(Errno::NXIO) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Clones (reflinks) the first `length` bytes.
pub(super) fn clone_range(from: BorrowedFd<'_>, to: BorrowedFd<'_>, length: u64) -> io::Result<()> {
    // To the kernel a length of 0 means all that there is.
    if length == 0 {
        return Ok(());
    }
    let range = libc::file_clone_range {
        src_fd: i64::from(from.as_raw_fd()),
        src_offset: 0,
        src_length: length,
        dest_offset: 0,
    };
    // SAFETY: the request takes a pointer to this structure, which lives through the call.
    if unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONERANGE, &raw const range) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::EXDEV | libc::EINVAL | libc::ENOTTY | libc::ENOSYS) => {
            Err(io::Error::new(io::ErrorKind::Unsupported, error))
        }
        _ => Err(error),
    }
}

/// Can the file system of this directory clone? Asked with two nameless files, so that nothing shows in the tree.
pub(super) fn clones(dir: BorrowedFd<'_>) -> bool {
    use rustix::fs::{Mode, OFlags};
    use std::os::fd::AsFd;
    let nameless =
        || rustix::fs::openat(dir, c".", OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR);
    let (Ok(one), Ok(other)) = (nameless(), nameless()) else { return false };
    write_at(one.as_fd(), b"?", 0).is_ok() && clone_range(one.as_fd(), other.as_fd(), 1).is_ok()
}
