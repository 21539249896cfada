//! The oracle's own rules, tried one by one.

use anabranch_volume::simulated::{DiskConfig, SimClock};

use super::*;

/// One user puts the old text aside, writes the new one under its name, and removes it when his clock shows 50; another one
/// moves the file meanwhile, which holds the old text for him, and his member looks when no clock shows more than `looked`.
/// How often it is held against the program that the new one is there.
fn held_against(name_memory: u64, looked: Option<u64>) -> usize {
    let fs = SimFs::new(DiskConfig::default(), SimClock::at(0), 0);
    let write = |bytes: &[u8]| {
        assert!(fs.write(b"letter", bytes).is_ok());
        fs.tree().remove(&b"letter"[..]).and_then(|entry| entry.content)
    };
    let (Some(old), Some(new)) = (write(b"old"), write(b"new")) else { return usize::MAX };
    let finished = |content: &Thing| Deed::Finished { path: b"letter".to_vec(), content: content.clone() };
    let mut oracle = Oracle::new(name_memory);
    oracle.deed(1, (10, 10), finished(&old), &|_| true);
    oracle.moved(1, 20, old.clone(), b"letter~".to_vec(), true);
    oracle.noticed(1, 20);
    oracle.deed(1, (30, 30), finished(&new), &|_| true);
    oracle.moved(0, 25, old, b"sent".to_vec(), true);
    looked.into_iter().for_each(|latest| oracle.noticed(0, latest));
    let ended = Deed::Ended { path: b"letter".to_vec(), content: new, rewritten: false };
    oracle.deed(1, (50, 50), ended, &|_| true);
    let mut out = Vec::new();
    oracle.resurrected(&[at_rest(&fs)], &mut out);
    out.len()
}

fn at_rest(fs: &SimFs) -> AtRest {
    AtRest {
        name: "hq0".into(),
        tree: fs.tree(),
        private: Tree::default(),
        kept: Vec::new(),
        versions: Vec::new(),
        records: Vec::new(),
    }
}

#[test]
fn who_takes_the_last_of_several_names_ends_it_whoever_took_the_others() {
    let content = Thing::file(b"old");
    let mut oracle = Oracle::new(0);
    let lost = |oracle: &Oracle| {
        let mut out = Vec::new();
        oracle.lost(&[], &mut out);
        out.len()
    };
    oracle.deed(0, (10, 10), Deed::Finished { path: b"one".to_vec(), content: content.clone() }, &|_| true);
    oracle.deed(0, (20, 20), Deed::Linked { content: content.clone() }, &|_| true);
    oracle.deed(1, (30, 30), Deed::Unlinked { content: content.clone() }, &|_| true);
    assert_eq!(lost(&oracle), 1);
    oracle.deed(0, (40, 40), Deed::Unlinked { content }, &|_| true);
    assert_eq!(lost(&oracle), 0);
}

#[test]
fn what_takes_a_name_soon_goes_on_with_the_file_that_left_it() {
    assert_eq!(held_against(15_000_000, Some(60)), 0);
    assert_eq!(held_against(5, Some(60)), 1);
}

/// One user moves a file, which somebody else writes and removes meanwhile, over another one; his member has looked at that
/// one or not, and was put back since or not. How often it is held against the program that the file is there with what
/// the other one wrote.
fn moved_over(looked: bool, returned: bool) -> usize {
    let fs = SimFs::new(DiskConfig::default(), SimClock::at(0), 0);
    let write = |bytes: &[u8]| {
        assert!(fs.write(b"sent", bytes).is_ok());
        fs.tree().remove(&b"sent"[..]).and_then(|entry| entry.content)
    };
    let (Some(other), Some(old), Some(new)) = (write(b"other"), write(b"old"), write(b"new")) else {
        return usize::MAX;
    };
    let finished = |path: &[u8], content: &Thing| Deed::Finished { path: path.to_vec(), content: content.clone() };
    let ended = |path: &[u8], content: &Thing, rewritten| Deed::Ended {
        path: path.to_vec(),
        content: content.clone(),
        rewritten,
    };
    let mut oracle = Oracle::new(0);
    oracle.deed(1, (10, 10), finished(b"letter", &old), &|_| true);
    oracle.deed(1, (15, 15), ended(b"letter", &old, true), &|_| true);
    oracle.deed(1, (15, 15), finished(b"letter", &new), &|_| true);
    oracle.deed(0, (20, 20), finished(b"sent", &other), &|_| true);
    if looked {
        oracle.noticed(0, 20);
    }
    if returned {
        oracle.rolled_back((0, "hq0"), 5, &BTreeSet::new(), &[], &|_| true);
    }
    oracle.deed(0, (30, 30), ended(b"sent", &other, false), &|_| true);
    oracle.moved(0, 30, old, b"sent".to_vec(), true);
    oracle.deed(1, (40, 40), ended(b"letter", &new, false), &|_| true);
    let mut out = Vec::new();
    oracle.resurrected(&[at_rest(&fs)], &mut out);
    out.len()
}

#[test]
fn what_is_moved_over_something_nobody_has_seen_has_another_path() {
    assert_eq!(moved_over(false, false), 0);
    assert_eq!(moved_over(true, false), 1, "the other one goes on, with what was moved onto it");
    assert_eq!(moved_over(true, true), 0, "the other one is perhaps not what the image has there");
}

#[test]
fn each_name_goes_on_with_its_file_where_two_change_places() {
    let fs = SimFs::new(DiskConfig::default(), SimClock::at(0), 0);
    let write = |bytes: &[u8]| {
        assert!(fs.write(b"sent", bytes).is_ok());
        fs.tree().remove(&b"sent"[..]).and_then(|entry| entry.content)
    };
    let (Some(old), Some(new)) = (write(b"old"), write(b"new")) else { panic!("two contents") };
    let finished = |path: &[u8], content: &Thing| Deed::Finished { path: path.to_vec(), content: content.clone() };
    for swapped in [false, true] {
        let mut oracle = Oracle::new(0);
        oracle.deed(1, (10, 10), finished(b"letter", &old), &|_| true);
        oracle.deed(1, (20, 20), finished(b"draft", &new), &|_| true);
        if swapped {
            oracle.swapped([(new.clone(), b"letter".to_vec()), (old.clone(), b"draft".to_vec())]);
        }
        let ended = Deed::Ended { path: b"letter".to_vec(), content: new.clone(), rewritten: false };
        oracle.deed(1, (30, 30), ended, &|_| true);
        // The other one has the file with what it held first, and moves it.
        oracle.files[0].movers.insert(0, u64::MAX);
        let mut out = Vec::new();
        oracle.resurrected(&[at_rest(&fs)], &mut out);
        assert_eq!(out.len(), usize::from(!swapped));
    }
}

#[test]
fn a_move_counts_from_when_the_member_looked() {
    assert_eq!(held_against(15_000_000, Some(40)), 1, "the removal is later");
    assert_eq!(held_against(15_000_000, None), 0, "it has not looked yet");
}
