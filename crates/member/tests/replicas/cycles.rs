//! Directories that are moved into each other: what becomes of them is said with their paths.

use crate::couple::{Couple, expect_equal, settle};
use anabranch_member::{EventKind, Limits};
use anabranch_volume::simulated::{DiskConfig, SimFs};

#[test]
fn a_cycle_of_moves_is_an_event_that_names_both_directories_and_their_places() {
    let mut couple = Couple::new(Limits::default(), DiskConfig::default(), |fs: &SimFs| {
        fs.mkdir(b"a").unwrap();
        fs.mkdir(b"b").unwrap();
    });
    couple.connect();
    settle(&mut couple);
    couple.disconnect();
    couple.members[0].fs.rename(b"b", b"a/b").unwrap();
    while couple.step() {}
    couple.hear();
    while couple.step() {}
    // The second one's move is the later one, so it is the one that writes the way out down.
    couple.now += 1_000_000;
    couple.tell_time();
    couple.members[1].fs.rename(b"a", b"b/a").unwrap();
    couple.hear();
    while couple.step() {}
    couple.connect();
    settle(&mut couple);
    let said: Vec<&str> =
        couple.reports.iter().filter(|(_, e)| e.kind == EventKind::CycleCut).map(|(_, e)| &e.detail[..]).collect();
    let [said] = said[..] else { panic!("{said:?}") };
    // The earlier move is undone: `b` hangs from the root.
    assert!(said.contains("`b` into `a`, `a` into `b`: now `b~"), "{said}");
    let paths: Vec<String> = couple.members[1].fs.tree().keys().map(|p| p.escape_ascii().to_string()).collect();
    let [at, within] = &paths[..] else { panic!("{paths:?}") };
    assert_eq!(*within, format!("{at}/a"));
    assert!(said.ends_with(&format!("now `{at}`, `{within}`")), "{said}: {paths:?}");
}

/// A symlink leaves and a directory gets its name in one batch: the symlink is put aside, and nothing is taken out of its name.
#[test]
fn a_directory_that_gets_the_name_of_what_leaves_is_not_taken_out_for_it() {
    let mut couple = Couple::new(Limits::default(), DiskConfig::default(), |fs: &SimFs| {
        fs.symlink(b"c", b"d").unwrap();
        fs.mkdir(b"d").unwrap();
        fs.mkdir(b"d/c").unwrap();
        fs.write(b"d/c/f", b"stays in its directory").unwrap();
    });
    couple.connect();
    settle(&mut couple);
    couple.disconnect();
    couple.change(&[&|fs| {
        fs.remove(b"c").unwrap();
        fs.rename(b"d/c", b"c").unwrap();
    }]);
    couple.connect();
    settle(&mut couple);
    expect_equal(&couple, "a directory for a symlink");
    let counters = couple.members[1].replica.as_ref().unwrap().counters();
    assert_eq!(counters.taken_back, 0, "what was put in place was taken out and put back");
}

/// A symlink leaves and another one gets its name in one batch: it comes out once, and the other one stays.
#[test]
fn a_symlink_that_gets_the_name_of_what_leaves_is_not_taken_out_for_it() {
    let mut couple =
        Couple::new(Limits::default(), DiskConfig::default(), |fs: &SimFs| fs.symlink(b"c", b"d").unwrap());
    couple.connect();
    settle(&mut couple);
    couple.disconnect();
    couple.change(&[&|fs| fs.remove(b"c").unwrap()]);
    couple.now += 60_000_000;
    couple.tell_time();
    couple.change(&[&|fs| fs.symlink(b"c", b"e").unwrap()]);
    couple.connect();
    settle(&mut couple);
    expect_equal(&couple, "a symlink for a symlink");
    let counters = couple.members[1].replica.as_ref().unwrap().counters();
    assert_eq!(counters.taken_back, 0, "what was put in place was taken out and put back");
}

/// A file gets a second name, and the directory of its first one is moved, before anybody looks: both names are recorded.
#[test]
fn a_file_keeps_its_name_in_a_directory_that_moves_while_it_gets_another() {
    let mut couple = Couple::new(Limits::default(), DiskConfig::default(), |fs: &SimFs| {
        fs.mkdir(b"b").unwrap();
        fs.write(b"b/f", b"of two names").unwrap();
        fs.mkdir(b"new").unwrap();
    });
    couple.connect();
    settle(&mut couple);
    couple.disconnect();
    couple.change(&[&|fs| {
        fs.link(b"b/f", b"a").unwrap();
        fs.rename(b"b", b"new/b").unwrap();
    }]);
    couple.connect();
    settle(&mut couple);
    expect_equal(&couple, "two names");
}
