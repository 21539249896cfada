//! Clears away what a test bed left that was killed: mounts and loop devices whose process is gone.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::mount::UnmountFlags;

use crate::volume::detach;

/// What a served disk is called in the list of mounts, before the number of the process that serves it.
pub(crate) const SOURCE_PREFIX: &str = "anabranch-powercut:";

/// What the directories of a bed begin with.
pub(crate) const SCRATCH_PREFIX: &str = "powercut-";
/// Where in them the volume is mounted.
pub(crate) const VOLUME_DIRECTORY: &str = "volume";

/// One line of the list of mounts.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Mount {
    directory: PathBuf,
    source: OsString,
}

/// Undoes the octal escapes of the list of mounts.
fn unescaped(field: &str) -> OsString {
    let mut out = Vec::new();
    let mut rest = field.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let escape = (first == b'\\').then(|| after.split_at_checked(3)).flatten();
        let code = escape.and_then(|(digits, _)| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match (code, escape) {
            (Some(code), Some((_, after))) => {
                out.push(code);
                rest = after;
            }
            _ => {
                out.push(first);
                rest = after;
            }
        }
    }
    OsString::from_vec(out)
}

/// Reads `/proc/self/mountinfo`.
fn mounts(text: &str) -> Vec<Mount> {
    let line = |line: &str| {
        let (head, tail) = line.split_once(" - ")?;
        let directory = unescaped(head.split(' ').nth(4)?).into();
        Some(Mount { directory, source: unescaped(tail.split(' ').nth(1)?) })
    };
    text.lines().filter_map(line).collect()
}

/// The process that serves this mount, if it is one of ours.
fn owner(mount: &Mount) -> Option<u32> {
    mount.source.to_str()?.strip_prefix(SOURCE_PREFIX)?.parse().ok()
}

/// The loop devices whose file lies in this directory.
fn devices_on(directory: &Path) -> Vec<PathBuf> {
    let on = |entry: fs::DirEntry| {
        let backing = fs::read(entry.path().join("loop/backing_file")).ok()?;
        let backing = PathBuf::from(OsString::from_vec(backing));
        backing.starts_with(directory).then(|| Path::new("/dev").join(entry.file_name()))
    };
    fs::read_dir("/sys/block").into_iter().flatten().flatten().filter_map(on).collect()
}

/// Unmounts and detaches what processes that are gone have left in this mount namespace. What a living one uses stays.
/// Returns how many disks there were.
pub fn sweep() -> usize {
    // Whoever comes second returns when the work is done, not while the first is at it.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mounts = mounts(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default());
    let gone = |mount: &&Mount| owner(mount).is_some_and(|process| !Path::new(&format!("/proc/{process}")).exists());
    let stale: Vec<&Mount> = mounts.iter().filter(gone).collect();
    for disk in &stale {
        for device in devices_on(&disk.directory) {
            for volume in mounts.iter().filter(|m| Path::new(&m.source) == device) {
                // The disk beneath is dead, so nothing can be flushed to it.
                let _ = rustix::mount::unmount(&volume.directory, UnmountFlags::DETACH);
            }
            detach(&device);
        }
        let _ = rustix::mount::unmount(&disk.directory, UnmountFlags::DETACH);
        remove_scratch(&disk.directory);
    }
    stale.len()
}

/// Removes the directories of a bed, whose disk was served in this one, where nothing is in them.
fn remove_scratch(disk: &Path) {
    let Some(scratch) = disk.parent().filter(|s| s.file_name().is_some_and(is_scratch)) else { return };
    for directory in [disk, &scratch.join(VOLUME_DIRECTORY), scratch] {
        let _ = fs::remove_dir(directory);
    }
}

fn is_scratch(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| name.starts_with(SCRATCH_PREFIX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_mounts_is_read() {
        let text = "36 35 98:0 /a /mnt/a\\040b rw,noatime master:1 - ext4 /dev/loop3 rw\n\
            37 35 0:50 / /tmp/x rw - fuse anabranch-powercut:123 rw,user_id=0\nnonsense\n";
        let read = mounts(text);
        assert_eq!(read.len(), 2);
        assert_eq!(read[0], Mount { directory: "/mnt/a b".into(), source: "/dev/loop3".into() });
        assert_eq!((owner(&read[0]), owner(&read[1])), (None, Some(123)));
    }

    #[test]
    fn escapes_that_are_none_stay() {
        assert_eq!(unescaped("a\\134b\\x\\9"), "a\\b\\x\\9");
    }
}
