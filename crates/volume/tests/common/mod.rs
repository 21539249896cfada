//! File systems of their own for tests: images in a temporary folder, mounted through loop devices. Needs root and the
//! `mkfs` programs; what cannot be had is said and left out.
#![allow(dead_code, reason = "each test program uses a part of it")]
#![allow(clippy::print_stdout, reason = "a test that leaves something out says so")]

pub(crate) mod mirror;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// The file systems that replication supports.
pub(crate) const KINDS: [&str; 3] = ["ext4", "xfs", "btrfs"];

/// A mounted file system, unmounted and gone when dropped.
pub(crate) struct Mounted {
    pub(crate) kind: &'static str,
    folder: TempDir,
}

impl Mounted {
    /// Makes one; `None`, and a line that says why, where it cannot be had.
    pub(crate) fn new(kind: &'static str) -> Option<Self> {
        if !is_root() {
            println!("left out on {kind}: only root can mount");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        fs::File::create(&image).unwrap().set_len(400 << 20).unwrap();
        // As on volumes of ordinary size: inodes of 256 bytes hold times after 2038, blocks of 4,096 the xattrs.
        let options: &[&str] = if kind == "ext4" { &["-q", "-I", "256", "-b", "4096"] } else { &["-q"] };
        if !run(Command::new(format!("mkfs.{kind}")).args(options).arg(&image)) {
            println!("left out on {kind}: mkfs.{kind} is missing or fails");
            return None;
        }
        let at = folder.path().join("mnt");
        fs::create_dir(&at).unwrap();
        if !run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&at)) {
            println!("left out on {kind}: it cannot be mounted");
            return None;
        }
        // The root of the folder must be enterable for the tests that run as somebody else.
        fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        Some(Self { kind, folder })
    }

    /// The mount point.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("mnt")
    }

    /// A folder beneath the mount point, made if need be.
    pub(crate) fn dir(&self, name: &str) -> PathBuf {
        let path = self.path().join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let at = self.path();
        if !run(Command::new("umount").arg(&at)) {
            run(Command::new("umount").arg("-l").arg(&at));
        }
    }
}

/// One after another, every file system that can be had here.
pub(crate) fn on_each(test: impl Fn(&Mounted)) {
    for kind in KINDS {
        if let Some(mounted) = Mounted::new(kind) {
            println!("on {kind}");
            test(&mounted);
        }
    }
}

/// Runs a program; did it end well?
pub(crate) fn run(command: &mut Command) -> bool {
    command.output().is_ok_and(|o| o.status.success())
}

/// Runs a program of the test itself, which must end well.
pub(crate) fn must(program: &str, arguments: &[&str], path: &Path) {
    let output = Command::new(program).args(arguments).arg(path).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?} {path:?}: {}", String::from_utf8_lossy(&output.stderr));
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Is this program installed?
pub(crate) fn has(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok()
}
