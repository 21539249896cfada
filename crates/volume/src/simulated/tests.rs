//! The durability table by seeds, leases, faults, images, and the checks that both file systems must pass.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::conformance::conformance;
use super::*;
use crate::fs::{Fs, Lease};
use crate::watch::Hint;

fn disk(seed: u64) -> SimFs {
    SimFs::new(DiskConfig::default(), SimClock::at(1_700_000_000_123_456_789), seed)
}

fn bytes(fs: &SimFs, path: &[u8]) -> Option<Vec<u8>> {
    fs.read(path).ok().map(|t| t.bytes().to_vec())
}

fn private(fs: &SimFs, name: &[u8], bytes: &[u8]) -> SimFile {
    let file = fs.create_file(&fs.root(), name).unwrap();
    fs.write_at(&file, bytes, 0).unwrap();
    file
}

#[test]
fn behaves_as_the_trait_says() {
    conformance(&disk(1));
}

#[test]
fn an_equal_seed_gives_an_equal_disk() {
    let run = |seed| {
        let fs = disk(seed);
        for name in [&b"a"[..], b"b", b"c"] {
            fs.write(name, &[name[0]; 2000]).unwrap();
        }
        fs.crash(seed);
        (fs.tree(), fs.stat_dir(&fs.root()).unwrap())
    };
    assert_eq!(run(7), run(7));
    let trees: BTreeSet<_> = (0..50).map(|s| format!("{:?}", run(s).0)).collect();
    assert!(trees.len() > 10, "seeds differ: {}", trees.len());
}

/// Runs one history on many disks, cuts the power, and collects what `path` may hold then.
fn outcomes(history: impl Fn(&SimFs), path: &[u8]) -> BTreeSet<Option<Vec<u8>>> {
    (0..300)
        .map(|seed| {
            let fs = disk(seed);
            history(&fs);
            fs.crash(seed);
            bytes(&fs, path)
        })
        .collect()
}

#[test]
fn what_is_durable_when() {
    type Case = (&'static str, fn(&SimFs), &'static [Option<&'static [u8]>]);
    const LOST: Option<&[u8]> = None;
    let cases: [Case; 8] = [
        (
            "nothing synced: all or nothing or empty",
            |fs| drop(private(fs, b"a", b"new")),
            &[LOST, Some(b""), Some(b"new"), Some(b"\0\0\0")],
        ),
        (
            "data alone: the name may be lost, never the bytes",
            |fs| fs.sync_file(&private(fs, b"a", b"new")).unwrap(),
            &[LOST, Some(b"new")],
        ),
        (
            "data and name",
            |fs| {
                fs.sync_file(&private(fs, b"a", b"new")).unwrap();
                fs.sync_dir(&fs.root()).unwrap();
            },
            &[Some(b"new")],
        ),
        (
            "the name alone: the bytes may be lost",
            |fs| {
                private(fs, b"a", b"new");
                fs.sync_dir(&fs.root()).unwrap();
            },
            &[Some(b""), Some(b"new"), Some(b"\0\0\0")],
        ),
        (
            "everything",
            |fs| {
                private(fs, b"a", b"new");
                fs.sync_all().unwrap();
            },
            &[Some(b"new")],
        ),
        (
            "an exchange is whole or not at all, and never loses synced bytes",
            |fs| {
                private(fs, b"a", b"old");
                fs.sync_all().unwrap();
                fs.sync_file(&private(fs, b"p", b"new")).unwrap();
                fs.exchange(&fs.root(), b"a", &fs.root(), b"p").unwrap();
            },
            &[Some(b"old"), Some(b"new")],
        ),
        (
            "an exchange before the data may leave what nobody wrote",
            |fs| {
                private(fs, b"a", b"old");
                fs.sync_all().unwrap();
                private(fs, b"p", b"new");
                fs.exchange(&fs.root(), b"a", &fs.root(), b"p").unwrap();
            },
            &[Some(b"old"), Some(b"new"), Some(b""), Some(b"\0\0\0")],
        ),
        (
            "syncing a directory does not keep its own name",
            |fs| {
                fs.mkdir(b"d").unwrap();
                fs.write(b"d/a", b"new").unwrap();
                let d = fs.open_dir(&fs.root(), b"d").unwrap();
                fs.sync_file(&fs.open_file(&d, b"a").unwrap()).unwrap();
                fs.sync_dir(&d).unwrap();
            },
            &[LOST, Some(b"new")],
        ),
    ];
    for (what, history, wanted) in cases {
        let path: &[u8] = if what.starts_with("syncing a directory") { b"d/a" } else { b"a" };
        let found = outcomes(history, path);
        let wanted: BTreeSet<_> = wanted.iter().map(|w| w.map(<[u8]>::to_vec)).collect();
        assert_eq!(found, wanted, "{what}");
    }
}

#[test]
fn a_crash_keeps_prefixes_of_each_directory_and_moves_whole() {
    for seed in 0..500 {
        let fs = disk(seed);
        fs.mkdir(b"d").unwrap();
        fs.mkdir(b"e").unwrap();
        fs.write(b"d/moves", b"here").unwrap();
        fs.sync_all().unwrap();
        for name in [&b"1"[..], b"2", b"3"] {
            fs.mkdir(name).unwrap();
        }
        fs.rename(b"d/moves", b"e/moved").unwrap();
        let wreck = fs.crash(seed);
        assert_eq!(wreck.names_pending, 4);
        let made: Vec<bool> = [&b"1"[..], b"2", b"3"].iter().map(|n| fs.exists(n)).collect();
        assert!(made.is_sorted_by(|a, b| a >= b), "seed {seed}: {made:?}");
        assert!(fs.exists(b"d/moves") != fs.exists(b"e/moved"), "seed {seed}: in exactly one place");
        assert!(wreck.vanished.is_empty(), "seed {seed}: {wreck:?}");
    }
}

#[test]
fn crossing_moves_of_directories_never_lose_both() {
    for seed in 0..500 {
        let fs = disk(seed);
        for dir in [&b"x"[..], b"x/a", b"y", b"y/b"] {
            fs.mkdir(dir).unwrap();
        }
        fs.sync_all().unwrap();
        fs.rename(b"x/a", b"y/b/a").unwrap();
        fs.rename(b"y/b/a", b"x/a").unwrap();
        fs.rename(b"y/b", b"x/a/b").unwrap();
        fs.crash(seed);
        let names: Vec<_> = fs.tree().into_keys().collect();
        for name in [&b"a"[..], b"b"] {
            let count = names.iter().filter(|p| p.ends_with(&[b"/", name].concat())).count();
            assert_eq!(count, 1, "seed {seed}: {names:?}");
        }
    }
}

#[test]
fn a_crash_says_what_it_did() {
    let mut seen = BTreeSet::new();
    for seed in 0..200 {
        let fs = disk(seed);
        fs.write(b"a", &[1; 1500]).unwrap();
        fs.sync_all().unwrap();
        fs.write(b"a", &[2; 1500]).unwrap();
        let wreck = fs.crash(seed);
        let now = fs.read(b"a").unwrap();
        match wreck.changed.as_slice() {
            [] => assert_eq!(now.bytes(), [2; 1500]),
            [one] => {
                assert_eq!((&one.path[..], &one.after, one.by_user), (&b"a"[..], &now, true));
                assert_eq!(wreck.vanished.len(), 1);
                seen.insert(one.damage);
            }
            more => panic!("{more:?}"),
        }
    }
    assert_eq!(seen.len(), 4, "{seen:?}");
}

#[test]
fn a_failed_sync_may_drop_what_it_was_to_write() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..100 {
        let fs = disk(seed);
        let file = private(&fs, b"a", b"new");
        fs.sync_dir(&fs.root()).unwrap();
        fs.faults(|f| f.set(Call::SyncFile, Fault::Io, 1_000_000));
        assert_eq!(fs.sync_file(&file).unwrap_err().raw_os_error(), Some(libc::EIO));
        fs.faults(Faults::clear);
        fs.sync_file(&file).unwrap();
        assert_eq!(fs.faults(|f| f.happened(Call::SyncFile, Fault::Io)), 1);
        fs.crash(seed);
        outcomes.insert(bytes(&fs, b"a").unwrap());
    }
    assert_eq!(outcomes, BTreeSet::from([b"".to_vec(), b"new".to_vec()]));
}

#[test]
fn faults_come_at_their_rate_and_as_planned() {
    let fs = disk(3);
    fs.faults(|f| f.set(Call::List, Fault::Io, 250_000));
    let failed = (0..4000).filter(|_| fs.list(&fs.root()).is_err()).count();
    assert!((850..1150).contains(&failed), "{failed}");
    assert_eq!(fs.faults(|f| f.happened(Call::List, Fault::Io)), failed as u64);
    fs.faults(Faults::clear);

    let file = fs.create_file(&fs.root(), b"a").unwrap();
    fs.faults(|f| f.plan(1, Fault::NoSpace));
    fs.write_at(&file, &[1; 100], 0).unwrap();
    assert_eq!(fs.write_at(&file, &[2; 100], 100).unwrap_err().kind(), ErrorKind::StorageFull);
    assert!(fs.faults(|f| f.planned_came()));
    assert!(fs.stat_file(&file).unwrap().stamp.size < 200, "a part at most");

    fs.configure(|c| c.capacity = 150);
    assert_eq!(fs.write_at(&file, &[3; 160], 0).unwrap_err().kind(), ErrorKind::StorageFull);
    assert!(fs.room().unwrap().free <= 50);
    drop(file);
    fs.remove(b"a").unwrap();
    assert_eq!(fs.room().unwrap().free, 150);
}

#[test]
fn nothing_happens_without_power() {
    let fs = disk(4);
    let power = fs.power();
    power.cut_after(1);
    fs.create_dir(&fs.root(), b"one").unwrap();
    assert!(fs.create_dir(&fs.root(), b"two").is_err());
    assert!(!power.is_on());
    assert!(fs.list(&fs.root()).is_err());
    fs.process_died();
    assert_eq!(fs.list(&fs.root()).unwrap().len(), 1);
}

#[test]
fn a_writer_waits_for_the_lease_and_writes_into_what_it_looked_up() {
    let fs = disk(5);
    let root = fs.root();
    fs.write(b"a", b"old").unwrap();
    private(&fs, b"p", b"new");
    let file = fs.open_file(&root, b"a").unwrap();
    assert_eq!(fs.lease(&file).unwrap(), Lease::Granted);
    fs.exchange(&root, b"a", &root, b"p").unwrap();
    assert!(fs.lease_unbroken(&file).unwrap());
    fs.exchange(&root, b"a", &root, b"p").unwrap();

    let _ = fs.take_deeds();
    fs.write(b"a", b"theirs").unwrap();
    assert!(!fs.lease_unbroken(&file).unwrap());
    assert_eq!((bytes(&fs, b"a"), fs.users_open()), (Some(b"old".to_vec()), 1));
    assert!(fs.take_deeds().is_empty());
    fs.exchange(&root, b"a", &root, b"p").unwrap();
    fs.release(&file).unwrap();
    assert_eq!((bytes(&fs, b"p"), bytes(&fs, b"a")), (Some(b"theirs".to_vec()), Some(b"new".to_vec())));
    // Where the file is by now.
    let path = b"p".to_vec();
    assert_eq!(
        fs.take_deeds(),
        [
            Deed::Ended { path: path.clone(), content: Thing::file(b"old"), rewritten: true },
            Deed::Finished { path, content: Thing::file(b"theirs") },
        ]
    );
    assert_eq!(fs.lease(&file).unwrap(), Lease::Granted);
}

#[test]
fn what_people_removed_while_they_wrote_it_is_theirs_though_another_name_of_it_was_preserved() {
    let fs = disk(5);
    let root = fs.root();
    fs.create_dir(&root, b".anabranch").unwrap();
    let private_dir = fs.open_dir(&root, b".anabranch").unwrap();
    fs.write(b"a", b"old").unwrap();
    fs.link(b"a", b"b").unwrap();
    let open = fs.user_open(b"a", Mode::Append).unwrap();
    fs.rename_new(&root, b"b", &private_dir, b"kept").unwrap();
    fs.remove(b"a").unwrap();
    let _ = fs.take_deeds();
    fs.user_put(open, None, b", new");
    fs.user_close(open);
    let finished = |deed: &Deed| matches!(deed, Deed::Finished { .. });
    assert!(!fs.take_deeds().iter().any(finished));
}

#[test]
fn what_somebody_removes_while_it_is_written_ends_nothing_that_was_finished() {
    let fs = disk(13);
    fs.write(b"a", b"old").unwrap();
    let open = fs.user_open(b"a", Mode::Truncate).unwrap();
    let old = Deed::Ended { path: b"a".to_vec(), content: Thing::file(b"old"), rewritten: true };
    assert_eq!(fs.take_deeds().last(), Some(&old));
    fs.user_put(open, None, b"the ");
    fs.user_put(open, None, b"same");
    assert!(fs.take_deeds().is_empty(), "nobody had finished what he goes on with");
    fs.write(b"b", b"the same").unwrap();
    let _ = fs.take_deeds();
    fs.remove(b"a").unwrap();
    fs.user_close(open);
    assert!(fs.take_deeds().is_empty(), "what is at the other path was not ended");
    let open = fs.user_open(b"b", Mode::Append).unwrap();
    fs.user_put(open, None, b", longer");
    fs.append(b"b", b", by another program").unwrap();
    let _ = fs.take_deeds();
    fs.user_put(open, None, b".");
    assert!(matches!(&fs.take_deeds()[..], [Deed::Ended { .. }]), "he changes what that one finished");
}

#[test]
fn who_writes_into_what_a_failed_sync_emptied_ends_what_was_there() {
    let emptied = (0..64).filter(|seed| {
        let fs = disk(*seed);
        fs.write(b"a", b"old").unwrap();
        fs.faults(|f| f.set(Call::SyncFile, Fault::Io, 1_000_000));
        assert!(fs.sync_file(&fs.open_file(&fs.root(), b"a").unwrap()).is_err());
        let _ = fs.take_deeds();
        let empty = bytes(&fs, b"a").unwrap().is_empty();
        fs.append(b"a", b"new").unwrap();
        let old = Deed::Ended { path: b"a".to_vec(), content: Thing::file(b"old"), rewritten: true };
        assert_eq!(fs.take_deeds()[0], old, "empty: {empty}");
        empty
    });
    assert!(emptied.count() > 5);
}

#[test]
fn an_open_past_its_lookup_shows_in_a_pause() {
    let fs = disk(12);
    let root = fs.root();
    fs.write(b"a", b"old").unwrap();
    private(&fs, b"p", b"new");
    let file = fs.open_file(&root, b"a").unwrap();
    assert_eq!(fs.lease(&file).unwrap(), Lease::Granted);
    let user = fs.user_look_up(b"a", Mode::Truncate).unwrap();
    fs.exchange(&root, b"a", &root, b"p").unwrap();
    assert!(fs.lease_unbroken(&file).unwrap(), "it is not there yet");
    fs.pause(std::time::Duration::from_millis(1));
    assert!(!fs.lease_unbroken(&file).unwrap() && fs.user_waits(user));
    fs.user_put(user, None, b"theirs");
    fs.user_close(user);
    fs.release(&file).unwrap();
    assert_eq!(bytes(&fs, b"p"), Some(b"theirs".to_vec()), "into what was looked up");
    let user = fs.user_look_up(b"a", Mode::Append).unwrap();
    fs.users_arrive();
    assert!(!fs.user_waits(user));
    assert_eq!(fs.lease(&fs.open_file(&root, b"a").unwrap()).unwrap(), Lease::InUse);
}

#[test]
fn a_lease_is_refused_while_somebody_writes() {
    let fs = disk(6);
    fs.write(b"a", b"1").unwrap();
    let user = fs.user_open(b"a", Mode::Update).unwrap();
    let file = fs.open_file(&fs.root(), b"a").unwrap();
    assert_eq!(fs.lease(&file).unwrap(), Lease::InUse);
    let _ = fs.take_hints();
    fs.user_store(user, 0, b"3");
    let before = fs.stat_file(&file).unwrap();
    fs.user_store(user, 0, b"2");
    assert_eq!((fs.stat_file(&file).unwrap(), fs.has_hints()), (before, false), "a mapped dirty page moves no stamp");
    assert_eq!(bytes(&fs, b"a"), Some(b"2".to_vec()));
    fs.user_close(user);
    let directory = fs.stat_dir(&fs.root()).unwrap().object;
    assert_eq!(fs.take_hints(), [Hint::Entry { directory, name: b"a".to_vec(), closed_after_write: true }]);
    assert_eq!(fs.lease(&file).unwrap(), Lease::Granted);
    drop(file);
    let again = fs.open_file(&fs.root(), b"a").unwrap();
    assert_eq!(fs.lease(&again).unwrap(), Lease::Granted, "a closed file keeps no lease");
}

#[test]
fn the_interloper_acts_before_calls_and_never_within_itself() {
    let fs = disk(7);
    let count = Arc::new(AtomicU32::new(0));
    let seen = Arc::clone(&count);
    fs.set_interloper(Some(Box::new(move |fs, call| {
        seen.fetch_add(1, Ordering::Relaxed);
        assert!(call.lets_others_in());
        let _ = fs.create_dir(&fs.root(), b"inner");
        fs.append(b"log", b"x").unwrap();
    })));
    fs.stat(&fs.root(), b"a").unwrap();
    assert_eq!(count.load(Ordering::Relaxed), 0);
    fs.create_dir(&fs.root(), b"a").unwrap();
    fs.pause(std::time::Duration::from_millis(1));
    assert_eq!((count.load(Ordering::Relaxed), bytes(&fs, b"log")), (2, Some(b"xx".to_vec())));
    fs.set_interloper(None);
    fs.create_dir(&fs.root(), b"b").unwrap();
    assert_eq!(count.load(Ordering::Relaxed), 2);
}

#[test]
fn an_image_comes_back_and_objects_never_repeat() {
    let fs = disk(8);
    fs.write(b"a", b"1").unwrap();
    let image = fs.image();
    let root = fs.root();
    let stale = fs.open_file(&root, b"a").unwrap();
    let later = {
        fs.write(b"b", b"2").unwrap();
        fs.stat(&root, b"b").unwrap().unwrap().object
    };
    fs.restore(&image);
    assert!(fs.stat_file(&stale).is_err() && fs.stat(&root, b"a").is_err(), "handles die");
    assert_eq!(fs.tree().len(), 1);
    assert_eq!(fs.locate(&later).unwrap(), None);
    fs.write(b"c", b"3").unwrap();
    assert_ne!(fs.stat(&fs.root(), b"c").unwrap().unwrap().object, later);
    let copy = SimFs::from_image(DiskConfig::default(), SimClock::at(0), 99, &image);
    let object = |fs: &SimFs| fs.stat(&fs.root(), b"a").unwrap().unwrap().object;
    assert_eq!(object(&copy), object(&fs));
}

#[test]
fn users_do_what_their_programs_do() {
    let fs = disk(9);
    fs.mkdir(b"d").unwrap();
    fs.write(b"d/a", b"1").unwrap();
    fs.write(b"d/tmp", b"2").unwrap();
    let _ = fs.take_deeds();
    fs.rename(b"d/tmp", b"d/a").unwrap();
    let ended = Deed::Ended { path: b"d/a".to_vec(), content: Thing::file(b"1"), rewritten: false };
    assert_eq!(fs.take_deeds(), [ended]);
    fs.symlink(b"l", b"d").unwrap();
    assert!(fs.write(b"l/x", b"no").is_err(), "links are not followed");
    fs.link(b"d/a", b"hard").unwrap();
    assert_eq!(fs.stat(&fs.root(), b"hard").unwrap().unwrap().links, 2);
    let object = fs.stat(&fs.root(), b"hard").unwrap().unwrap().object;
    let _ = fs.take_deeds();
    fs.remove(b"hard").unwrap();
    assert_eq!(fs.take_deeds(), [Deed::Unlinked { content: Thing::file(b"2") }], "its other name keeps it");
    let d = fs.stat(&fs.root(), b"d").unwrap().unwrap().object;
    assert_eq!(fs.locate(&object).unwrap(), Some((d, b"a".to_vec())));
    fs.chmod(b"d/a", 0o600).unwrap();
    fs.setxattr(b"d/a", b"user.k", Some(b"v")).unwrap();
    let tree = fs.tree();
    assert_eq!(tree[&b"d/a"[..]].attributes.xattrs.len(), 1);
    assert_eq!(tree[&b"d/a"[..]].attributes.mode, 0o600);
    fs.create_dir(&fs.root(), b".anabranch").unwrap();
    assert!(fs.write(b".anabranch/x", b"no").is_err());
    assert_eq!((fs.tree().len(), fs.private_tree().len()), (3, 0));
    fs.remove_tree(b"d").unwrap();
    assert_eq!(fs.tree().len(), 1);
}

#[test]
fn hints_overflow_and_name_what_changed() {
    let fs = disk(10);
    fs.configure(|c| c.hints_max = 3);
    for name in [&b"a"[..], b"b", b"c"] {
        fs.write(name, b"1").unwrap();
    }
    assert_eq!(fs.take_hints().len(), 3);
    assert_eq!(fs.take_hints(), []);
    for name in [&b"a"[..], b"b", b"c", b"d"] {
        fs.write(name, b"2").unwrap();
    }
    assert_eq!(fs.take_hints(), [Hint::Everything]);
    fs.configure(|c| c.coarse_hints = true);
    fs.swap(b"a", b"b").unwrap();
    assert_eq!(fs.take_hints(), [Hint::Directory { directory: fs.stat_dir(&fs.root()).unwrap().object }]);
    fs.overflow_hints();
    assert_eq!(fs.take_hints(), [Hint::Everything]);
}

#[test]
fn the_real_file_system_behaves_so_too() {
    let dir = tempfile::tempdir().unwrap();
    conformance(&crate::linux::LinuxFs::open(dir.path()).unwrap());
}
