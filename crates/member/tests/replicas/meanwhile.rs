//! Somebody changes what is being looked at, before any of the calls of the look: it is seen then or later, never missed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::couple::{Couple, expect_equal, expect_known, settle};
use anabranch_member::{EventKind, Limits};
use anabranch_model::{Timestamp, Uid};
use anabranch_volume::simulated::{Call, DiskConfig, Mode, SimFs};

fn start(limits: Limits) -> Couple {
    start_on(limits, DiskConfig::default())
}

fn start_on(limits: Limits, disk: DiskConfig) -> Couple {
    let mut couple = Couple::new(limits, disk, |fs| {
        fs.mkdir(b"d").unwrap();
        fs.mkdir(b"e").unwrap();
        for file in [&b"f"[..], b"d/g", b"e/h"] {
            fs.write(file, b"one").unwrap();
        }
    });
    couple.connect();
    couple
}

/// `first` is done at the first member, and `second` once before each call that the member in this place makes then; when it
/// rests, `expect` must hold.
fn before_each_call_of(
    place: usize,
    (limits, merged): (Limits, bool),
    first: fn(&SimFs),
    second: fn(&SimFs),
    expect: fn(&Couple, &str),
) {
    let mut at = 0;
    loop {
        let mut couple = start(limits);
        couple.merged = merged;
        settle(&mut couple);
        let fs = couple.members[place].fs.clone();
        first(&couple.members[0].fs);
        let calls = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&calls);
        fs.set_interloper_everywhere(Box::new(move |fs, _| {
            if count.fetch_add(1, Ordering::Relaxed) == at {
                second(fs);
            }
        }));
        settle(&mut couple);
        fs.set_interloper(None);
        expect(&couple, &format!("before call {at}"));
        if calls.load(Ordering::Relaxed) <= at {
            assert!(at > 5, "only {at} calls");
            return;
        }
        at += 1;
    }
}

/// As the files are, as large ones are, which are hashed a slice at a time, and with hints that were merged.
fn before_each_call(first: fn(&SimFs), second: fn(&SimFs)) {
    let sliced = Limits { slice_bytes: 1, ..Limits::default() };
    for (limits, merged) in [(Limits::default(), false), (sliced, false), (Limits::default(), true)] {
        before_each_call_of(0, (limits, merged), first, second, expect_equal);
    }
}

fn before_each_call_of_who_follows(first: fn(&SimFs), second: fn(&SimFs)) {
    before_each_call_of(1, (Limits::default(), false), first, second, expect_known);
}

fn saved(fs: &SimFs, path: &[u8]) {
    fs.write(b"new~", b"two").unwrap();
    fs.rename(b"new~", path).unwrap();
}

#[test]
fn a_renamed_file_is_replaced() {
    before_each_call(|fs| fs.rename(b"f", b"z").unwrap(), |fs| saved(fs, b"z"));
}

#[test]
fn a_renamed_file_is_written() {
    before_each_call(|fs| fs.rename(b"f", b"z").unwrap(), |fs| fs.write(b"z", b"two").unwrap());
}

#[test]
fn a_written_file_is_replaced() {
    before_each_call(|fs| fs.write(b"f", b"three").unwrap(), |fs| saved(fs, b"f"));
}

#[test]
fn a_written_file_is_renamed() {
    before_each_call(|fs| fs.write(b"f", b"two").unwrap(), |fs| fs.rename(b"f", b"d/f").unwrap());
}

#[test]
fn a_renamed_directory_is_replaced() {
    before_each_call(
        |fs| fs.rename(b"d", b"x").unwrap(),
        |fs| {
            fs.rename(b"x", b"y").unwrap();
            fs.mkdir(b"x").unwrap();
            fs.write(b"x/g", b"two").unwrap();
        },
    );
}

#[test]
fn a_renamed_directory_is_swapped_with_another() {
    before_each_call(|fs| fs.rename(b"d", b"x").unwrap(), |fs| fs.swap(b"x", b"e").unwrap());
}

#[test]
fn a_new_directory_is_filled_and_moved() {
    before_each_call(
        |fs| {
            fs.mkdir(b"n").unwrap();
            fs.write(b"n/a", b"one").unwrap();
        },
        |fs| {
            saved(fs, b"n/a");
            fs.write(b"n/b", b"one").unwrap();
            fs.rename(b"n", b"d/n").unwrap();
        },
    );
}

/// He opens the old file just before the new one comes, so it is taken back; and just before that he puts a directory in its
/// place, which comes out instead.
#[test]
fn a_file_changes_places_with_a_directory_while_it_is_taken_back() {
    let mut couple = start(Limits::default());
    settle(&mut couple);
    let [one, two] = [0, 1].map(|at| couple.members[at].fs.clone());
    let (mut open, mut exchanges) = (None, 0);
    two.set_interloper_everywhere(Box::new(move |fs, call| {
        if call == Call::Exchange {
            match exchanges {
                0 => open = fs.user_look_up(b"f", Mode::Append).ok(),
                1 => {
                    fs.swap(b"f", b"d").unwrap();
                    fs.user_put(open.unwrap(), None, b" and more");
                    fs.user_close(open.unwrap());
                }
                _ => {}
            }
            exchanges += 1;
        }
    }));
    one.write(b"f", b"three").unwrap();
    settle(&mut couple);
    two.set_interloper(None);
    expect_known(&couple, "after the swap");
    assert_eq!(two.read(b"f/g").unwrap().bytes(), b"one");
    assert_eq!(two.read(b"d").unwrap().bytes(), b"three");
    let kept = couple.members[1].replica.as_ref().unwrap().preserved(0, 100).unwrap();
    assert!(kept.iter().all(|item| !item.directory && item.reason.unseen()), "{kept:?}");
    assert!(two.private_tree().values().any(|e| e.content.as_ref().is_some_and(|c| c.bytes() == b"one and more")));
}

#[test]
fn a_file_is_written_while_its_time_is_set() {
    // As many bytes as before: only the time would show it.
    const OLD: Timestamp = Timestamp { seconds: 1_000_000_000, nanoseconds: 5 };
    before_each_call_of_who_follows(|fs| fs.touch(b"f", Some(OLD)).unwrap(), |fs| fs.write(b"f", b"two").unwrap());
}

#[test]
fn a_file_is_touched_while_its_time_is_set() {
    const OLD: Timestamp = Timestamp { seconds: 1_000_000_000, nanoseconds: 5 };
    const OTHER: Timestamp = Timestamp { seconds: 1_100_000_000, nanoseconds: 5 };
    let expect = |couple: &Couple, when: &str| {
        let second = &couple.members[1];
        let records = second.replica.as_ref().unwrap().records();
        let uid = records.shown_at(Uid::ROOT, b"f").unwrap().unwrap();
        let recorded = records.record(uid).unwrap().unwrap().content.unwrap().mtime;
        assert_eq!(second.fs.tree()[&b"f"[..]].mtime, recorded, "{when}");
    };
    let touched = |fs: &SimFs| fs.touch(b"f", Some(OTHER)).unwrap();
    before_each_call_of(1, (Limits::default(), false), |fs| fs.touch(b"f", Some(OLD)).unwrap(), touched, expect);
}

#[test]
fn a_file_is_written_while_its_mode_is_set() {
    before_each_call_of_who_follows(|fs| fs.chmod(b"f", 0o600).unwrap(), |fs| fs.write(b"f", b"two").unwrap());
}

#[test]
fn a_file_with_a_new_second_name_is_written() {
    before_each_call(|fs| fs.link(b"f", b"d/f").unwrap(), |fs| fs.append(b"f", b"two").unwrap());
}

#[test]
fn a_large_file_does_not_keep_small_ones_waiting_and_comes_with_what_was_written_last() {
    let limits = Limits { slice_bytes: 10, ..Limits::default() };
    let mut couple = start(limits);
    settle(&mut couple);
    let [one, two] = [0, 1].map(|at| couple.members[at].fs.clone());
    one.write(b"large", &[1; 5000]).unwrap();
    one.mkdir(b"new").unwrap();
    one.write(b"new/large", &[2; 5000]).unwrap();
    let mut small = 0;
    while two.read(b"large").is_err() || two.read(b"new/large").is_err() {
        if small < 3 && two.read(format!("small {small}").as_bytes()).is_ok() || small == 0 {
            small += 1;
            one.write(format!("small {small}").as_bytes(), b"small").unwrap();
        }
        couple.hear();
        assert!(couple.step(), "the large files never arrive");
    }
    assert_eq!(small, 3, "small files waited for the large ones");

    // Somebody writes while it is being hashed, into what was read already, and leaves the time as it was.
    one.write(b"large", &[3; 5000]).unwrap();
    for _ in 0..40 {
        couple.hear();
        couple.step();
    }
    assert_ne!(two.read(b"large").unwrap().bytes(), [3; 5000], "it was hashed before anybody could write");
    one.write(b"large", &[4; 5000]).unwrap();
    settle(&mut couple);
    expect_equal(&couple, "after a write in the middle");
    assert_eq!(two.read(b"large").unwrap().bytes(), [4; 5000]);
}

/// In the tick of the clock in which the second one wrote an entry, and before it hears of that: no stamp shows it.
#[test]
fn an_xattr_is_set_in_the_tick_in_which_an_entry_was_written() {
    for at in 0..8 {
        let [path, merged, cookies] = [1, 2, 4].map(|bit| at & bit != 0);
        let path = if path { &b"new"[..] } else { b"made" };
        let mut couple = start_on(Limits::default(), DiskConfig { cookies, ..DiskConfig::default() });
        couple.merged = merged;
        settle(&mut couple);
        let [one, two] = [0, 1].map(|at| couple.members[at].fs.clone());
        one.write(b"new", b"one").unwrap();
        one.mkdir(b"made").unwrap();
        while !two.exists(path) {
            couple.hear();
            assert!(couple.step(), "the second one does not follow");
        }
        two.setxattr(path, b"user.note", Some(b"mine")).unwrap();
        settle(&mut couple);
        let records = couple.members[1].replica.as_ref().unwrap().records();
        let uid = records.shown_at(Uid::ROOT, path).unwrap().unwrap();
        let recorded = records.record(uid).unwrap().unwrap().attributes.unwrap().value;
        let noted = recorded.xattrs.iter().any(|(_, value)| value[..] == *b"mine");
        assert!(noted, "{}, merged: {merged}, cookies: {cookies}", path.escape_ascii());
    }
}

/// As many bytes are written in the very tick of the clock in which the file was hashed, and the hint names no more than its
/// directory: the stamp is the same, and nobody says that the file was closed.
#[test]
fn what_is_written_in_the_tick_in_which_it_was_hashed_is_seen_though_only_its_directory_is_named() {
    // The content is not asked for by the name of the one that is written: whoever sends it would find out.
    let mut couple = Couple::new(Limits::default(), DiskConfig::default(), |fs| {
        fs.write(b"a", b"one").unwrap();
        fs.write(b"f", b"one").unwrap();
    });
    couple.merged = true;
    let is_known = |couple: &Couple| {
        let records = couple.members[0].replica.as_ref().unwrap().records();
        records.shown_at(Uid::ROOT, b"f").unwrap().is_some()
    };
    while !is_known(&couple) {
        assert!(couple.step(), "it is not seen at all");
    }
    let fs = couple.members[0].fs.clone();
    let mtime = |fs: &SimFs| fs.tree()[&b"f"[..]].mtime;
    let before = mtime(&fs);
    fs.write(b"f", b"two").unwrap();
    assert_eq!(mtime(&fs), before, "the clock has ticked");
    couple.connect();
    couple.hear();
    settle(&mut couple);
    assert_eq!(couple.members[1].fs.read(b"f").unwrap().bytes(), b"two");
}

/// What is said of a change that cannot be recorded is true, and when it lasts an event says it.
#[test]
fn what_is_open_for_long_is_said_to_be_in_use() {
    let mut couple = start(Limits::default());
    settle(&mut couple);
    let fs = couple.members[0].fs.clone();
    fs.write(b"log", b"one").unwrap();
    let open = fs.user_open(b"log", Mode::Append).unwrap();
    fs.user_put(open, None, b"two");
    fs.mkdir(b"other").unwrap();
    let waits = |couple: &Couple| couple.reports.iter().filter(|(_, e)| e.kind == EventKind::ChangeWaits).count();
    let until = |couple: &mut Couple, seconds: u64| {
        let until = couple.now + seconds * 1_000_000;
        while couple.now < until {
            couple.hear();
            assert!(couple.step());
        }
    };
    until(&mut couple, 60);
    let said = couple.members[0].replica.as_ref().unwrap().outstanding_words().unwrap();
    assert!(said.contains(&"m0: log (in use)".to_owned()), "{said:?}");
    assert_eq!(waits(&couple), 0);
    until(&mut couple, 600);
    assert_eq!(waits(&couple), 1);
    fs.user_close(open);
    settle(&mut couple);
    expect_equal(&couple, "once it was closed");
    assert_eq!(waits(&couple), 1);
}
