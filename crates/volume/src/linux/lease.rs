//! Read leases (`F_SETLEASE`): granted only while nobody has the file open, or mapped shared, for writing.
#![allow(unsafe_code, reason = "leases and signal dispositions are not in rustix")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Once;

use crate::fs::Lease;

/// Makes lease breaks harmless to the process.
///
/// The kernel tells a lease's holder of a break by SIGIO, whose default is to end the process. Nobody here needs to be
/// told, since `F_GETLEASE` is asked. So the signal is ignored, once for the whole process, unless somebody handles it.
pub(super) fn ignore_break_signals() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: an all-zero `sigaction` is a valid value to be overwritten, and both pointers live through the calls.
        unsafe {
            let mut now: libc::sigaction = std::mem::zeroed();
            if libc::sigaction(libc::SIGIO, std::ptr::null(), &raw mut now) == 0 && now.sa_sigaction == libc::SIG_DFL {
                now.sa_sigaction = libc::SIG_IGN;
                libc::sigaction(libc::SIGIO, &raw const now, std::ptr::null_mut());
            }
        }
    });
}

/// Does the kernel give leases at all? Whether this file system does shows with the first file.
pub(super) fn available() -> bool {
    std::fs::read("/proc/sys/fs/leases-enable").map_or(true, |text| text.first() != Some(&b'0'))
}

/// Takes a read lease.
pub(super) fn take(fd: BorrowedFd<'_>) -> io::Result<Lease> {
    match control(fd, libc::F_SETLEASE, libc::F_RDLCK) {
        Ok(_) => Ok(Lease::Granted),
        Err(e) => match e.raw_os_error() {
            Some(libc::EAGAIN) => Ok(Lease::InUse),
            // Not our file and no CAP_LEASE; a kernel or a file system without leases.
            Some(libc::EACCES | libc::EPERM | libc::EINVAL | libc::EOPNOTSUPP | libc::ENOLCK) => Ok(Lease::Unavailable),
            _ => Err(e),
        },
    }
}

/// Is it granted and not being broken? While it is being broken `F_GETLEASE` says what it is to become: none.
pub(super) fn unbroken(fd: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(control(fd, libc::F_GETLEASE, 0)? == libc::F_RDLCK)
}

/// Gives it back; nothing happens if there is none.
pub(super) fn release(fd: BorrowedFd<'_>) -> io::Result<()> {
    match control(fd, libc::F_SETLEASE, libc::F_UNLCK) {
        Ok(_) => Ok(()),
        // No lease of ours on it.
        Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => Ok(()),
        Err(e) => Err(e),
    }
}

fn control(fd: BorrowedFd<'_>, command: libc::c_int, value: libc::c_int) -> io::Result<libc::c_int> {
    loop {
        // SAFETY: both commands take and give plain integers.
        let answer = unsafe { libc::fcntl(fd.as_raw_fd(), command, value) };
        if answer >= 0 {
            return Ok(answer);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
