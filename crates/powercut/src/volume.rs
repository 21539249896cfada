//! A file system on a loop device on a [`Disk`].

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::{Disk, Error};

/// How long something that the kernel still uses is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// The file systems that are tested.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileSystem {
    /// ext4.
    Ext4,
    /// XFS; the disk must have 300 MiB at least.
    Xfs,
    /// btrfs.
    Btrfs,
}

impl fmt::Display for FileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FileSystem {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Ext4, Self::Xfs, Self::Btrfs];

    /// Its name to `mount`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }

    /// The command that makes it, in full at once, so that no later thread of the kernel goes on with it.
    const fn make(self) -> &'static [&'static str] {
        match self {
            Self::Ext4 => {
                &["mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0", "-b", "4096"]
            }
            Self::Xfs => &["mkfs.xfs", "-q", "-f", "-K"],
            Self::Btrfs => &["mkfs.btrfs", "-q", "-f", "-K"],
        }
    }

    /// The command that looks for damage and changes nothing.
    const fn check(self) -> &'static [&'static str] {
        match self {
            Self::Ext4 => &["fsck.ext4", "-f", "-n"],
            Self::Xfs => &["xfs_repair", "-n"],
            Self::Btrfs => &["btrfs", "check", "--readonly"],
        }
    }

    /// An image has the identity of the disk that it was taken from.
    const fn options(self) -> Option<&'static std::ffi::CStr> {
        match self {
            Self::Xfs => Some(c"nouuid"),
            Self::Ext4 | Self::Btrfs => None,
        }
    }
}

/// Can this file system be tested here?
///
/// # Errors
/// [`Error::Unavailable`] says what is missing.
pub fn available(file_system: FileSystem) -> Result<(), Error> {
    let missing = |what: String| Err(Error::Unavailable(what));
    if !rustix::process::geteuid().is_root() {
        return missing("it needs root".to_owned());
    }
    for device in ["/dev/fuse", "/dev/loop-control"] {
        if !Path::new(device).exists() {
            return missing(format!("there is no {device}"));
        }
    }
    for command in ["losetup", file_system.make()[0], file_system.check()[0]] {
        if !in_path(command) {
            return missing(format!("the command `{command}` is not installed"));
        }
    }
    Ok(())
}

fn in_path(command: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(command).is_file())
}

/// Runs a command to its end and returns what it printed.
pub(crate) fn run(command: &[&str], arguments: &[&OsStr]) -> Result<String, Error> {
    let [program, options @ ..] = command else { return Ok(String::new()) };
    let mut command = Command::new(program);
    command.args(options).args(arguments).stdin(Stdio::null());
    let output = command.output().map_err(|e| Error::io("run", Path::new(program), e))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    let output_text = format!("{}\n{}", text(&output.stdout), text(&output.stderr));
    Err(Error::Command {
        command: format!("{command:?}"),
        status: output.status.to_string(),
        output: output_text.trim().to_owned(),
    })
}

/// Tries again while it is busy: the kernel lets go of a loop device or a mount a little later than it says so, and
/// offers nothing to wait for.
fn patiently(mut attempt: impl FnMut() -> Result<(), Errno>) -> Result<(), Errno> {
    let start = Instant::now();
    loop {
        match attempt() {
            Err(Errno::BUSY) if start.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(2)),
            other => return other,
        }
    }
}

/// Unmounts; if it stays busy, takes it out of the tree at least, and returns the error.
pub(crate) fn unmount(directory: &Path) -> Result<(), Errno> {
    patiently(|| rustix::mount::unmount(directory, UnmountFlags::empty())).inspect_err(|_| {
        // Best effort: there is nothing else to be done about it.
        let _ = rustix::mount::unmount(directory, UnmountFlags::DETACH);
    })
}

/// A loop device, detached when it is dropped.
#[derive(Debug)]
pub(crate) struct Loop {
    device: PathBuf,
    file_system: FileSystem,
}

impl Loop {
    fn attach(disk: &Disk, file_system: FileSystem) -> Result<Self, Error> {
        let path = disk.path();
        // Another process may take the free device between the question and the answer.
        let attach = || run(&["losetup", "--find", "--show"], &[path.as_os_str()]);
        let device = attach().or_else(|_| attach()).or_else(|_| attach())?;
        Ok(Self { device: device.into(), file_system })
    }

    /// Looks for damage.
    ///
    /// # Errors
    /// [`Error::Command`] with what it found.
    pub(crate) fn check(&self) -> Result<(), Error> {
        run(self.file_system.check(), &[self.device.as_os_str()]).map(drop)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        if self.file_system == FileSystem::Btrfs {
            // The kernel remembers devices by their identity, and the next image has the same one.
            let _ = run(&["btrfs", "device", "scan", "--forget"], &[self.device.as_os_str()]);
        }
        detach(&self.device);
    }
}

/// Detaches a loop device; one that is in use goes with its last user.
pub(crate) fn detach(device: &Path) {
    let _ = run(&["losetup", "--detach"], &[device.as_os_str()]);
    // Only then can what is beneath it be unmounted.
    let backing = Path::new("/sys/block").join(device.file_name().unwrap_or_default()).join("loop/backing_file");
    let _ = patiently(|| if fs::exists(&backing).unwrap_or(false) { Err(Errno::BUSY) } else { Ok(()) });
}

/// A mounted file system. A drop unmounts it, and detaches the loop device.
#[derive(Debug)]
pub struct Volume {
    directory: PathBuf,
    mounted: bool,
    // After the mount.
    device: Option<Loop>,
}

impl Volume {
    /// Makes a file system on a disk and mounts it.
    ///
    /// # Errors
    /// [`Error`] of the commands.
    pub fn make(disk: &Disk, file_system: FileSystem, directory: &Path) -> Result<Self, Error> {
        let device = Loop::attach(disk, file_system)?;
        run(file_system.make(), &[device.device.as_os_str()])?;
        Self::on(device, directory)
    }

    /// Mounts what is on the disk, read-write: the file system recovers as after a power cut.
    ///
    /// # Errors
    /// [`Error::Io`] if it does not mount.
    pub fn mount(disk: &Disk, file_system: FileSystem, directory: &Path) -> Result<Self, Error> {
        Self::on(Loop::attach(disk, file_system)?, directory)
    }

    fn on(device: Loop, directory: &Path) -> Result<Self, Error> {
        let file_system = device.file_system;
        rustix::mount::mount(&device.device, directory, file_system.name(), MountFlags::empty(), file_system.options())
            .map_err(|e| Error::io("mount", &device.device, e))?;
        Ok(Self { directory: directory.to_owned(), mounted: true, device: Some(device) })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.directory
    }

    /// Unmounts it, and looks for damage on the device.
    ///
    /// # Errors
    /// [`Error::Io`] if a process still uses it; [`Error::Command`] with the damage.
    pub fn unmount_and_check(mut self) -> Result<(), Error> {
        self.mounted = false;
        unmount(&self.directory).map_err(|e| Error::io("unmount", &self.directory, e))?;
        self.device.take().map_or(Ok(()), |device| device.check())
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if self.mounted {
            let _ = unmount(&self.directory);
        }
    }
}
