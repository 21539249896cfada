//! The names of the xattrs of an entry of a directory, without a walk through `/proc` (`listxattrat`, since Linux 6.13).
#![allow(unsafe_code, reason = "listxattrat is not in rustix")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;

use super::handle::NAME_ROOM;

/// The call's number, the same on every architecture whose calls are numbered as most are; where it is not, the kernel
/// says that it has no such call.
const LISTXATTRAT: libc::c_long = 465;

/// The kernel has no such call, or a filter of calls does not know it.
static MISSING: AtomicBool = AtomicBool::new(cfg!(not(any(target_arch = "x86_64", target_arch = "aarch64"))));

/// Lists them into the buffer; a symlink is not followed. `None`: this kernel cannot.
pub(super) fn list(dir: BorrowedFd<'_>, name: &[u8], buffer: &mut [u8]) -> Option<rustix::io::Result<usize>> {
    if MISSING.load(Ordering::Relaxed) {
        return None;
    }
    let mut path = [0u8; NAME_ROOM];
    if name.is_empty() || name.len() >= NAME_ROOM {
        return None;
    }
    path[..name.len()].copy_from_slice(name);
    // SAFETY: `path` ends in NUL, and the buffer has as many bytes as is said; both live through the call.
    let done = unsafe {
        libc::syscall(
            LISTXATTRAT,
            dir.as_raw_fd(),
            path.as_ptr(),
            libc::AT_SYMLINK_NOFOLLOW,
            buffer.as_mut_ptr(),
            buffer.len(),
        )
    };
    if let Ok(length) = usize::try_from(done) {
        return Some(Ok(length));
    }
    match Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO) {
        Errno::NOSYS | Errno::PERM => {
            MISSING.store(true, Ordering::Relaxed);
            None
        }
        e => Some(Err(e)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::fs::XattrFlags;

    use super::*;

    #[test]
    fn it_says_what_the_path_says_where_the_kernel_has_the_call() {
        let dir = tempfile::tempdir().unwrap();
        let fd = std::fs::File::open(dir.path()).unwrap();
        std::fs::write(dir.path().join("plain"), b"1").unwrap();
        std::fs::write(dir.path().join("marked"), b"1").unwrap();
        std::os::unix::fs::symlink("marked", dir.path().join("link")).unwrap();
        if rustix::fs::setxattr(dir.path().join("marked"), "user.note", b"1", XattrFlags::empty()).is_err() {
            eprintln!("skipped: no user xattrs here");
            return;
        }
        for name in ["plain", "marked", "link"] {
            let mut by_path = vec![0; 256];
            let length = rustix::fs::llistxattr(dir.path().join(name), &mut by_path[..]).unwrap();
            let mut buffer = vec![0; 256];
            if let Some(found) = list(fd.as_fd(), name.as_bytes(), &mut buffer) {
                assert_eq!(&buffer[..found.unwrap()], &by_path[..length], "{name}");
            }
        }
        let missing = list(fd.as_fd(), b"missing", &mut [0; 8]);
        assert!(missing.is_none_or(|found| found == Err(Errno::NOENT)), "{missing:?}");
        let short = list(fd.as_fd(), b"marked", &mut [0; 2]);
        assert!(short.is_none_or(|found| found == Err(Errno::RANGE)), "{short:?}");
    }
}
