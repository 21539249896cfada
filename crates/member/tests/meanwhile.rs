//! Somebody changes what is being looked at, before any of the calls of the look: it is seen then or later, never missed.

#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod couple;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anabranch_member::Limits;
use anabranch_model::Timestamp;
use anabranch_volume::simulated::{DiskConfig, SimFs};
use couple::{Couple, expect_equal, expect_known, settle};

fn start() -> Couple {
    let mut couple = Couple::new(Limits::default(), DiskConfig::default(), |fs| {
        fs.mkdir(b"d").unwrap();
        fs.mkdir(b"e").unwrap();
        for file in [&b"f"[..], b"d/g", b"e/h"] {
            fs.write(file, b"one").unwrap();
        }
    });
    couple.connect();
    couple
}

/// `first` is done, and `second` before each call of the looks at it once.
fn before_each_call(first: fn(&SimFs), second: fn(&SimFs)) {
    let mut at = 0;
    loop {
        let mut couple = start();
        settle(&mut couple);
        let fs = couple.members[0].fs.clone();
        first(&fs);
        let calls = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&calls);
        fs.set_interloper_everywhere(Box::new(move |fs, _| {
            if count.fetch_add(1, Ordering::Relaxed) == at {
                second(fs);
            }
        }));
        settle(&mut couple);
        fs.set_interloper(None);
        expect_equal(&couple, &format!("before call {at}"));
        if calls.load(Ordering::Relaxed) <= at {
            assert!(at > 5, "only {at} calls");
            return;
        }
        at += 1;
    }
}

/// `first` is done at the first member, and `second` before each call by which the second one follows.
fn before_each_call_of_who_follows(first: fn(&SimFs), second: fn(&SimFs)) {
    let mut at = 0;
    loop {
        let mut couple = start();
        settle(&mut couple);
        first(&couple.members[0].fs);
        let calls = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&calls);
        let fs = couple.members[1].fs.clone();
        fs.set_interloper_everywhere(Box::new(move |fs, _| {
            if count.fetch_add(1, Ordering::Relaxed) == at {
                second(fs);
            }
        }));
        settle(&mut couple);
        fs.set_interloper(None);
        expect_known(&couple, &format!("before call {at}"));
        if calls.load(Ordering::Relaxed) <= at {
            assert!(at > 5, "only {at} calls");
            return;
        }
        at += 1;
    }
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

#[test]
fn a_file_is_written_while_its_time_is_set() {
    // As many bytes as before: only the time would show it.
    const OLD: Timestamp = Timestamp { seconds: 1_000_000_000, nanoseconds: 5 };
    before_each_call_of_who_follows(|fs| fs.touch(b"f", Some(OLD)).unwrap(), |fs| fs.write(b"f", b"two").unwrap());
}

#[test]
fn a_file_is_written_while_its_mode_is_set() {
    before_each_call_of_who_follows(|fs| fs.chmod(b"f", 0o600).unwrap(), |fs| fs.write(b"f", b"two").unwrap());
}
