//! What is read while others change it is whole: enumerations show every file, looks never mix two things.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;

use anabranch_model::Content;
use anabranch_volume::fs::Fs;
use anabranch_volume::hash::{Hashing, hash_known};
use anabranch_volume::linux::LinuxFs;
use common::on_each;
use rustix::fs::{CWD, RenameFlags};

/// A file that is renamed while its directory is enumerated shows under one name at least. Left to the kernel, it is
/// missing now and then, on btrfs most of the time, and would be taken for deleted.
#[test]
fn an_enumeration_misses_no_file_that_is_renamed_meanwhile() {
    on_each(|m| {
        let path = m.dir("root");
        let fs = LinuxFs::open(&path).unwrap();
        for i in 0..4000 {
            fs::write(path.join(format!("a name of some length {i}")), b"").unwrap();
        }
        fs::write(path.join("wanderer 0"), b"").unwrap();
        let (go, start) = channel::<u32>();
        let (said, done) = channel();
        let folder = path.clone();
        let wanderer = std::thread::spawn(move || {
            let mut at = 0;
            for round in start {
                // At a different moment of the enumeration each time.
                for _ in 0..(round % 50) * 200 {
                    std::hint::spin_loop();
                }
                let next = (at + 7) % 100;
                fs::rename(folder.join(format!("wanderer {at}")), folder.join(format!("wanderer {next}"))).unwrap();
                at = next;
                said.send(()).unwrap();
            }
        });
        let mut shown = 0;
        for round in 0..300 {
            go.send(round).unwrap();
            match fs.list(&fs.root()) {
                Ok(entries) => {
                    shown += 1;
                    let names: BTreeSet<_> = entries.iter().map(|e| e.name.as_slice()).collect();
                    assert!(names.iter().any(|n| n.starts_with(b"wanderer")), "missed on {}", m.kind);
                    assert_eq!(names.iter().filter(|n| n.starts_with(b"a name")).count(), 4000);
                }
                Err(e) => assert_eq!(e.kind(), io::ErrorKind::ResourceBusy),
            }
            done.recv().unwrap();
        }
        drop(go);
        wanderer.join().unwrap();
        assert!(shown > 250, "{shown}");
    });
}

/// Two files exchange their names without pause: the object and the rest of a look are always of the same one.
#[test]
fn a_look_never_mixes_two_things() {
    on_each(|m| {
        let path = m.dir("root");
        let fs = LinuxFs::open(&path).unwrap();
        let root = fs.root();
        fs::write(path.join("one"), b"1").unwrap();
        fs::write(path.join("two"), b"22").unwrap();
        let one = fs.stat(&root, b"one").unwrap().unwrap();
        let two = fs.stat(&root, b"two").unwrap().unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let (one, two) = (path.join("one"), path.join("two"));
                    rustix::fs::renameat_with(CWD, one, CWD, two, RenameFlags::EXCHANGE).unwrap();
                }
            });
            let mut mixed = 0;
            for _ in 0..100_000 {
                let stat = fs.stat(&root, b"one").unwrap().unwrap();
                let whole = [&one, &two].iter().any(|s| s.object == stat.object && s.stamp.size == stat.stamp.size);
                mixed += u32::from(!whole);
            }
            stop.store(true, Ordering::Relaxed);
            assert_eq!(mixed, 0, "on {}", m.kind);
        });
    });
}

/// What was seen is hashed by its object, without a walk to its name. Once something else has that name, or nothing, the
/// name decides: the stamp of what was seen has moved with the rename.
#[test]
fn what_lost_its_name_since_it_was_seen_is_not_hashed_under_that_name() {
    on_each(|m| {
        let path = m.dir("root");
        let fs = LinuxFs::open(&path).unwrap();
        let root = fs.root();
        fs::write(path.join("file"), b"one").unwrap();
        let seen = fs.stat(&root, b"file").unwrap().unwrap();
        let opened = fs.open_object(&seen.object);
        assert_eq!(opened.is_some(), fs.abilities().handles, "{}", m.kind);
        if let Some(file) = opened {
            assert_eq!(fs.stat_file(&file).unwrap(), seen, "{}", m.kind);
        }
        let hashed = || match hash_known(&fs, &root, b"file", Some(&seen), None).unwrap() {
            Hashing::Done { content, stat, .. } => Some((content, stat.object)),
            Hashing::Gone => None,
            Hashing::InUse => panic!("nobody has it open"),
        };
        let content = |bytes: &[u8]| Content::File { size: 3, hash: *blake3::hash(bytes).as_bytes() };
        assert_eq!(hashed(), Some((content(b"one"), seen.object.clone())), "{}", m.kind);
        fs::rename(path.join("file"), path.join("elsewhere")).unwrap();
        assert_eq!(hashed(), None, "{}", m.kind);
        fs::write(path.join("file"), b"two").unwrap();
        let (found, object) = hashed().unwrap();
        assert_eq!(found, content(b"two"), "{}", m.kind);
        assert_ne!(object, seen.object, "{}", m.kind);
    });
}
