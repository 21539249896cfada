//! The bed tests itself: what was synced is there after any power cut, on each file system, and a missing fsync shows.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test that cannot go on fails; one that is skipped says why"
)]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anabranch_powercut::{Bed, Error, FileSystem, LastEpoch, Recording, Replayed};

const SIZE: u64 = 512 << 20;
const FILES: usize = 20;
const ROUNDS: usize = 20;

fn start(file_system: FileSystem) -> Option<Bed> {
    match Bed::start(file_system, SIZE) {
        Ok(bed) => Some(bed),
        Err(e @ Error::Unavailable(_)) => {
            eprintln!("skipped for {file_system}: {e}");
            None
        }
        Err(e) => panic!("{file_system}: {e}: {:?}", std::error::Error::source(&e)),
    }
}

/// Content of a few blocks that names itself throughout, so that a torn or mixed one shows.
fn content(name: &str) -> Vec<u8> {
    format!("{name}\n").repeat(1_500).into_bytes()
}

fn write(path: &Path, bytes: &[u8], fsync: bool) {
    let mut file = File::create(path).unwrap();
    file.write_all(bytes).unwrap();
    if fsync {
        file.sync_all().unwrap();
    }
}

/// Twenty synced files, then twenty rounds of: write a temporary file, fsync, rename it to `current`.
fn work(bed: &Bed, fsync: bool) {
    let directory = File::open(bed.path()).unwrap();
    for n in 0..FILES {
        let name = format!("file-{n}");
        write(&bed.path().join(&name), &content(&name), true);
        directory.sync_all().unwrap();
        bed.mark(name);
    }
    for n in 1..=ROUNDS {
        let temporary = bed.path().join("temporary");
        write(&temporary, &content(&format!("round-{n}")), fsync);
        fs::rename(&temporary, bed.path().join("current")).unwrap();
        if fsync {
            directory.sync_all().unwrap();
        }
        bed.mark(format!("round-{n}"));
    }
    // A later flush, of something else.
    write(&bed.path().join("last"), b"last", true);
    directory.sync_all().unwrap();
}

/// The round that `current` shows, 0 if there is none. It is whole.
fn round(path: &Path) -> Result<usize, String> {
    let Ok(bytes) = fs::read(path.join("current")) else { return Ok(0) };
    let whole = (1..=ROUNDS).find(|n| content(&format!("round-{n}")) == bytes);
    whole.ok_or_else(|| format!("current has {} bytes that nobody wrote", bytes.len()))
}

/// What is wrong with a replayed file system.
fn wrong(replayed: &Replayed<'_>) -> Result<usize, String> {
    let files = replayed.marks.iter().filter(|m| m.starts_with("file-"));
    for name in files {
        if fs::read(replayed.path.join(name)).ok() != Some(content(name)) {
            return Err(format!("{name} was synced and is lost"));
        }
    }
    let marked = replayed.marks.iter().filter(|m| m.starts_with("round-")).count();
    let found = round(replayed.path)?;
    // The next round may have been under way.
    if (marked..=marked + 1).contains(&found) {
        Ok(found)
    } else {
        Err(format!("{marked} rounds marked, {found} found"))
    }
}

fn show_prefixes(file_system: FileSystem) {
    let Some(bed) = start(file_system) else { return };
    work(&bed, true);
    let recording = bed.finish().unwrap();
    assert!(recording.barriers().count() > FILES + ROUNDS, "each fsync of a file flushes the disk");
    let mut rounds = BTreeSet::new();
    for cut in recording.cuts(36, 0x5eed) {
        match recording.replay(cut, wrong).unwrap() {
            Ok(round) => drop(rounds.insert(round)),
            Err(what) => panic!("{file_system}, {cut}: {what}"),
        }
    }
    assert!(rounds.len() > 5, "the cuts fall into different rounds: {rounds:?}");
    use_again(&recording);
}

/// What a replay changes is not in the image; a second power cut while the first is recovered is possible.
fn use_again(recording: &Recording) {
    let cut = *recording.cuts(10, 7).last().unwrap();
    let change = |r: &Replayed<'_>| fs::write(r.path.join("file-0"), b"changed").unwrap();
    recording.replay(cut, change).unwrap();
    assert!(recording.replay(cut, wrong).unwrap().is_ok());
    let bed = recording.restart(cut).unwrap();
    let before = bed.barriers();
    write(&bed.path().join("after"), b"the cut", true);
    File::open(bed.path()).unwrap().sync_all().unwrap();
    bed.mark("after");
    assert!(bed.barriers() > before);
    let second = bed.finish().unwrap();
    let last = *second.barriers().end();
    for cut in second.cuts(6, 3) {
        let there = second.replay(cut, |r| (r.marks.len(), r.path.join("after").exists(), round(r.path))).unwrap();
        assert!(there.0 == 0 || there.1, "{cut}");
        assert!(there.2.is_ok(), "{cut}: {there:?}");
    }
    let cut = anabranch_powercut::Cut { barrier: last, last: LastEpoch::None };
    assert_eq!(second.replay(cut, |r| fs::read(r.path.join("after")).unwrap()).unwrap(), b"the cut");
}

#[test]
fn ext4_shows_what_was_synced() {
    show_prefixes(FileSystem::Ext4);
}

#[test]
fn xfs_shows_what_was_synced() {
    show_prefixes(FileSystem::Xfs);
}

#[test]
fn btrfs_shows_what_was_synced() {
    show_prefixes(FileSystem::Btrfs);
}

#[test]
fn a_missing_fsync_is_caught() {
    for file_system in FileSystem::ALL {
        let Some(bed) = start(file_system) else { continue };
        work(&bed, false);
        let recording = bed.finish().unwrap();
        let caught = recording.cuts(60, 0x5eed).into_iter().any(|cut| recording.replay(cut, wrong).unwrap().is_err());
        assert!(caught, "{file_system}");
    }
}

/// Is anything mounted beneath this directory, or a loop device on a file of it?
fn in_use(scratch: &Path) -> bool {
    let scratch = scratch.to_str().unwrap();
    let backing = |e: fs::DirEntry| fs::read_to_string(e.path().join("loop/backing_file")).ok();
    fs::read_to_string("/proc/self/mountinfo").unwrap().contains(scratch)
        || fs::read_dir("/sys/block").unwrap().flatten().filter_map(backing).any(|file| file.contains(scratch))
}

#[test]
fn a_panic_leaves_no_mount_and_no_loop_device() {
    let Some(bed) = start(FileSystem::Ext4) else { return };
    let scratch = bed.path().parent().unwrap().to_owned();
    assert!(in_use(&scratch));
    let died = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        write(&bed.path().join("file"), b"text", true);
        panic!("on purpose");
    }));
    assert!(died.is_err());
    assert!(!in_use(&scratch) && !scratch.exists());
}

const CHILD: &str = "ANABRANCH_POWERCUT_CHILD";

/// Not a test of its own: what the killed process runs.
#[test]
fn child() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let bed = start(FileSystem::Xfs).unwrap();
    write(&bed.path().join("file"), &content("file"), false);
    say_path(bed.path());
    // Until it is killed.
    let _ = std::io::stdin().lines().next();
}

fn say_path(path: &Path) {
    let mut out = std::io::stdout();
    out.write_all(format!("mounted {}\n", path.display()).as_bytes()).and_then(|()| out.flush()).unwrap();
}

#[test]
fn what_a_killed_process_left_is_cleared_away() {
    if start(FileSystem::Xfs).is_none() {
        return;
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["child", "--exact", "--nocapture"])
        .env(CHILD, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let path = lines.find_map(|line| line.split_once("mounted ").map(|(_, path)| PathBuf::from(path))).unwrap();
    let scratch = path.parent().unwrap();
    assert!(in_use(scratch));
    child.kill().unwrap();
    child.wait().unwrap();
    anabranch_powercut::sweep();
    assert!(!in_use(scratch) && !scratch.exists());
    assert_eq!(anabranch_powercut::sweep(), 0);
}
