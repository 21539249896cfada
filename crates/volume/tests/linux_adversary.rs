//! While every method works on a folder, somebody swaps its components for symlinks that lead outside. Nothing outside
//! is read, written or touched: not a byte, not an attribute, not a time.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anabranch_model::{Attributes, Owner, Timestamp};
use anabranch_volume::fs::{Fs, Kind};
use anabranch_volume::linux::LinuxFs;
use anabranch_volume::walk::scan_directories;
use common::on_each;
use rustix::fs::{CWD, RenameFlags};

const SECRET: &[u8] = b"this lies outside";
const ROUNDS: u32 = 300;

/// Everything that can be seen of a tree, with times to the nanosecond (but for access times).
fn picture(at: &Path, into: &mut BTreeMap<PathBuf, String>) {
    let m = fs::symlink_metadata(at).unwrap();
    let times = (m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec());
    let mut line = format!("{:o} {} {} {} {} {times:?}", m.mode(), m.ino(), m.uid(), m.gid(), m.nlink());
    if m.is_file() {
        line += &format!(" {:?}", fs::read(at).unwrap());
    }
    into.insert(at.to_path_buf(), line);
    if m.is_dir() {
        for entry in fs::read_dir(at).unwrap() {
            picture(&entry.unwrap().path(), into);
        }
    }
}

/// Exchanges pairs of names without pause until told to stop; says how often.
fn swap(pairs: Vec<(PathBuf, PathBuf)>, stop: &AtomicBool, swaps: &AtomicU64) {
    while !stop.load(Ordering::Relaxed) {
        for (one, other) in &pairs {
            if rustix::fs::renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).is_ok() {
                swaps.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Lays out a folder: directories `d`, `d/e` and a file in each, and beside them symlinks outside, to be exchanged.
fn lay_out(root: &Path, outside: &Path) -> Vec<(PathBuf, PathBuf)> {
    for base in [root, outside] {
        fs::create_dir_all(base.join("d/e")).unwrap();
        for file in ["f", "d/f", "d/e/f"] {
            fs::write(base.join(file), if base == root { b"inside" } else { SECRET }).unwrap();
        }
    }
    let mut pairs = Vec::new();
    for (real, evil) in
        [("d", "d-evil"), ("f", "f-evil"), ("d/e", "d/e-evil"), ("d/f", "d/f-evil"), ("d/e/f", "d/e/f-evil")]
    {
        symlink(outside.join(real), root.join(evil)).unwrap();
        pairs.push((root.join(real), root.join(evil)));
    }
    // A way up, too: by a relative link.
    symlink("../../outside", root.join("d/up")).unwrap();
    pairs
}

/// Calls every method on what is where the adversary is at work. Most calls fail, and some succeed inside.
fn exercise(fs: &LinuxFs, round: u32) -> u64 {
    let root = fs.root();
    let mut worked = 0;
    let mut dirs = vec![root.clone()];
    for path in [&[&b"d"[..]][..], &[b"d", b"e"], &[b"d", b"up"]] {
        let mut dir = Some(root.clone());
        for name in path {
            dir = dir.and_then(|d| fs.open_dir(&d, name).ok());
        }
        dirs.extend(dir);
    }
    let attributes = |dir: &_| {
        fs.read_attributes(dir, b"f").unwrap_or(Attributes {
            mode: 0o4777,
            owner: Owner { number: 12, name: None },
            group: Owner { number: 34, name: None },
            xattrs: BTreeMap::new(),
        })
    };
    for dir in &dirs {
        let mut wanted = attributes(dir);
        wanted.mode ^= 0o111;
        wanted.owner = Owner { number: round % 100, name: None };
        wanted.xattrs.insert(b"user.round"[..].into(), round.to_le_bytes().into());
        for name in [&b"f"[..], b"e", b"d"] {
            if let Ok(held) = fs.write_attributes(dir, name, &wanted) {
                worked += 1;
                // A symlink was pinned and got an owner, or the real one got everything.
                assert!(held.mode == 0 || held.mode == wanted.mode);
            }
            let _ = fs.set_mtime(dir, name, Timestamp { seconds: i64::from(round), nanoseconds: 5 });
        }
        if let Ok(file) = fs.open_file(dir, b"f") {
            worked += 1;
            let mut buffer = [0; 64];
            let length = fs.read_at(&file, &mut buffer, 0).unwrap();
            assert_ne!(&buffer[..length], SECRET);
            let _ = (fs.lease(&file), fs.release(&file), fs.data_range(&file, 0), fs.stat_file(&file));
        }
        if let Ok(file) = fs.open_private(dir, b"f") {
            worked += 1;
            fs.write_at(&file, b"insider", 0).unwrap();
            fs.set_size(&file, 6).unwrap();
            if let Ok(new) = fs.create_file(dir, b"new") {
                let _ = fs.clone_range(&file, &new, 6);
                let _ = (fs.sync_file(&new), fs.sync_dir(dir));
            }
        }
        if let Ok(Some(stat)) = fs.stat(dir, b"f") {
            assert!(matches!(stat.kind, Kind::File | Kind::Symlink));
            assert!(stat.kind == Kind::Symlink || stat.stamp.size != SECRET.len() as u64);
            if let Ok(Some((_, name))) = fs.locate(&stat.object) {
                assert!(name == b"f" || name == b"f-evil");
            }
        }
        // To be created where a symlink waits: refused, and not made where it leads.
        for name in [&b"f-evil"[..], b"up"] {
            let _ = fs.create_file(dir, name).map(|_| fs.remove_file(dir, name));
        }
        let _ = (fs.create_dir(dir, b"made"), fs.create_symlink(dir, b"link", b"/etc"), fs.read_link(dir, b"f"));
        for other in &dirs {
            let _ = fs.rename_new(dir, b"new", other, b"moved");
            let _ = fs.exchange(dir, b"moved", other, b"made");
            let _ = fs.remove_file(other, b"moved");
        }
        for name in [&b"new"[..], b"moved", b"made", b"link"] {
            let _ = (fs.remove_file(dir, name), fs.remove_dir(dir, name));
        }
        // A directory, even an empty one, is not removed through a link.
        let _ = fs.remove_dir(dir, b"e-evil");
    }
    for (_, listing) in scan_directories(fs, dirs.into_iter().map(|d| (0, d)).collect()) {
        if let Ok(listing) = listing {
            worked += 1;
            assert!(!listing.iter().any(|(e, _)| e.name == b"only outside"));
        }
    }
    worked
}

#[test]
fn nothing_outside_is_touched_by_any_method() {
    on_each(|m| {
        let (root, outside) = (m.dir("root"), m.dir("outside"));
        let pairs = lay_out(&root, &outside);
        fs::write(outside.join("only outside"), b"").unwrap();
        fs::write(outside.join("d/only outside"), b"").unwrap();
        let fs = LinuxFs::open(&root).unwrap();
        let mut before = BTreeMap::new();
        picture(&outside, &mut before);

        let (stop, swaps) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let adversary = {
            let (stop, swaps) = (stop.clone(), swaps.clone());
            std::thread::spawn(move || swap(pairs, &stop, &swaps))
        };
        let mut worked = 0;
        for round in 0..ROUNDS {
            worked += exercise(&fs, round);
        }
        stop.store(true, Ordering::Relaxed);
        adversary.join().unwrap();
        let mut after = BTreeMap::new();
        picture(&outside, &mut after);
        assert_eq!(before, after, "{}", m.kind);
        // The attack took place, and the work did too.
        let swaps = swaps.load(Ordering::Relaxed);
        assert!(swaps > u64::from(ROUNDS) && worked > u64::from(ROUNDS), "{swaps} swaps, {worked} calls worked");
    });
}

#[test]
fn a_directory_that_is_held_is_the_same_whatever_its_name_becomes() {
    on_each(|m| {
        let (root, outside) = (m.dir("root"), m.dir("outside"));
        let pairs = lay_out(&root, &outside);
        let fs = LinuxFs::open(&root).unwrap();
        let dir = fs.open_dir(&fs.root(), b"d").unwrap();
        for (one, other) in &pairs {
            rustix::fs::renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).unwrap_or_default();
        }
        assert!(fs.open_dir(&fs.root(), b"d").is_err());
        drop(fs.create_file(&dir, b"here").unwrap());
        assert!(root.join("d-evil/here").exists() && !outside.join("d/here").exists());
        assert_eq!(fs.stat(&fs.root(), b"d").unwrap().unwrap().kind, Kind::Symlink);
    });
}
