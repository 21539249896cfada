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
    oracle.moved(1, (20, 20), moved(&old, b"letter", b"letter~"));
    oracle.noticed(1, 20);
    oracle.deed(1, (30, 30), finished(&new), &|_| true);
    oracle.moved(0, (25, 25), moved(&old, b"letter", b"sent"));
    looked.into_iter().for_each(|latest| oracle.noticed(0, latest));
    let ended = Deed::Ended { path: b"letter".to_vec(), content: new, rewritten: false };
    oracle.deed(1, (50, 50), ended, &|_| true);
    let mut out = Vec::new();
    oracle.resurrected(&[at_rest(&fs)], &mut out);
    out.len()
}

fn moved(content: &Thing, from: &[u8], to: &[u8]) -> Moved {
    Moved { content: content.clone(), from: from.to_vec(), to: to.to_vec(), itself: true }
}

fn finished(path: &[u8], content: &Thing) -> Deed {
    Deed::Finished { path: path.to_vec(), content: content.clone() }
}

fn ended(path: &[u8], content: &Thing, rewritten: bool) -> Deed {
    Deed::Ended { path: path.to_vec(), content: content.clone(), rewritten }
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
    oracle.deed(0, (20, 20), Deed::Linked { content: content.clone(), to: None }, &|_| true);
    oracle.deed(1, (30, 30), Deed::Unlinked { content: content.clone() }, &|_| true);
    assert_eq!(lost(&oracle), 1);
    oracle.deed(0, (40, 40), Deed::Unlinked { content }, &|_| true);
    assert_eq!(lost(&oracle), 0);
}

/// One user gives a file a second name, and takes that away; somebody else moves the file to that name, or to another one, of
/// which the first one has not heard.
#[test]
fn a_second_name_and_what_is_moved_to_it_elsewhere_are_one_file() {
    let content = Thing::file(b"old");
    for (to, ended) in [(&b"two"[..], true), (b"three", false)] {
        let mut oracle = Oracle::new(0);
        oracle.deed(0, (10, 10), Deed::Finished { path: b"one".to_vec(), content: content.clone() }, &|_| true);
        let linked = Deed::Linked { content: content.clone(), to: Some(b"two".to_vec()) };
        oracle.deed(0, (20, 20), linked, &|_| true);
        oracle.moved(1, (30, 30), moved(&content, b"one", to));
        oracle.deed(0, (40, 40), Deed::Unlinked { content: content.clone() }, &|_| true);
        let mut out = Vec::new();
        oracle.lost(&[], &mut out);
        assert_eq!(out.is_empty(), ended);
    }
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
    oracle.moved(0, (30, 30), moved(&old, b"letter", b"sent"));
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
    for swapped in [false, true] {
        let mut oracle = Oracle::new(0);
        oracle.deed(1, (10, 10), finished(b"letter", &old), &|_| true);
        oracle.deed(1, (20, 20), finished(b"draft", &new), &|_| true);
        if swapped {
            oracle.swapped(1, [(new.clone(), b"letter".to_vec()), (old.clone(), b"draft".to_vec())]);
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

/// One user has a file, which somebody else moves, and puts the old text aside, writes the new one and removes it: in the order
/// in which the oracle hears of the moves. How often it is held against the program that the new one is there.
fn held_against_where_two_move(other_first: bool) -> usize {
    let fs = SimFs::new(DiskConfig::default(), SimClock::at(0), 0);
    let [old, new] = two_contents(&fs);
    let finished = |content: &Thing| Deed::Finished { path: b"letter".to_vec(), content: content.clone() };
    let mut oracle = Oracle::new(100);
    oracle.deed(1, (10, 10), finished(&old), &|_| true);
    let mut moves = [(1, moved(&old, b"letter", b"letter~")), (0, moved(&old, b"letter", b"sent"))];
    if other_first {
        moves.reverse();
    }
    moves.into_iter().for_each(|(member, moved)| oracle.moved(member, (20, 20), moved));
    oracle.deed(1, (30, 30), finished(&new), &|_| true);
    oracle.deed(1, (50, 50), Deed::Ended { path: b"letter".to_vec(), content: new, rewritten: false }, &|_| true);
    let mut out = Vec::new();
    oracle.resurrected(&[at_rest(&fs)], &mut out);
    out.len()
}

fn two_contents(fs: &SimFs) -> [Thing; 2] {
    [&b"old"[..], b"new"].map(|bytes| {
        assert!(fs.write(b"letter", bytes).is_ok());
        let there = fs.tree().remove(&b"letter"[..]).and_then(|entry| entry.content);
        there.unwrap_or_else(|| panic!("it was written"))
    })
}

#[test]
fn a_user_leaves_the_name_that_it_has_for_him_wherever_somebody_else_moved_it() {
    assert_eq!([false, true].map(held_against_where_two_move), [0, 0]);
}

/// Two files change places on one member. On another one, where nobody has heard of it, each holds what it held.
#[test]
fn a_file_is_what_it_was_where_nobody_has_heard_that_two_changed_places() {
    let fs = SimFs::new(DiskConfig::default(), SimClock::at(0), 0);
    let [old, new] = two_contents(&fs);
    let draft = Thing::file(b"draft");
    let ended =
        |content: &Thing, rewritten| Deed::Ended { path: b"letter".to_vec(), content: content.clone(), rewritten };
    for (mover, held_against) in [(0, 0), (1, 1)] {
        let mut oracle = Oracle::new(0);
        oracle.deed(1, (10, 10), finished(b"letter", &old), &|_| true);
        oracle.deed(1, (10, 10), finished(b"draft", &draft), &|_| true);
        oracle.swapped(1, [(draft.clone(), b"letter".to_vec()), (old.clone(), b"draft".to_vec())]);
        oracle.deed(1, (20, 20), ended(&draft, true), &|_| true);
        oracle.deed(1, (20, 20), finished(b"letter", &new), &|_| true);
        oracle.moved(mover, (30, 30), moved(&old, b"letter", b"sent"));
        oracle.deed(1, (40, 40), ended(&new, false), &|_| true);
        let mut out = Vec::new();
        oracle.resurrected(&[at_rest(&fs)], &mut out);
        assert_eq!(out.len(), held_against, "moved by {mover}");
    }
}

/// One user moves a file over another one, perhaps writes the file anew under its name, and then writes the other one; somebody
/// else moves the file, and his member looks when no clock shows more than `looked`. How often it is held against the program that
/// the file is there with what was moved over the other one.
fn moved_over_another(looked: u64, again: bool) -> usize {
    let fs = SimFs::new(DiskConfig::default(), SimClock::at(0), 0);
    let [old, new] = two_contents(&fs);
    let [draft, last] = [&b"draft"[..], b"last"].map(Thing::file);
    let mut oracle = Oracle::new(100);
    oracle.deed(1, (10, 10), finished(b"letter", &old), &|_| true);
    oracle.deed(1, (10, 10), finished(b"draft", &draft), &|_| true);
    oracle.moved(0, (20, 20), moved(&old, b"letter", b"sent"));
    oracle.deed(1, (30, 30), ended(b"letter", &old, true), &|_| true);
    oracle.deed(1, (30, 30), finished(b"letter", &new), &|_| true);
    oracle.deed(1, (40, 40), ended(b"draft", &draft, false), &|_| true);
    oracle.moved(1, (40, 40), moved(&new, b"letter", b"draft"));
    if again {
        oracle.deed(1, (45, 45), finished(b"letter", &last), &|_| true);
    }
    oracle.deed(1, (50, 50), ended(b"draft", &new, true), &|_| true);
    oracle.noticed(0, looked);
    let mut out = Vec::new();
    oracle.resurrected(&[at_rest(&fs)], &mut out);
    out.len()
}

#[test]
fn who_moves_a_file_over_another_one_removes_it_with_what_it_held_then() {
    assert_eq!(moved_over_another(60, false), 0);
    assert_eq!(moved_over_another(45, false), 0, "the file went before what was moved over the other one did");
    assert_eq!(moved_over_another(35, false), 1, "its removal is later");
    assert_eq!(moved_over_another(60, true), 1, "it held something else by then");
}

/// A directory that its member has looked at or not comes to the name of one that was removed, with a file whose name a file
/// in that one had; somebody else removes that one, and what was written into the other is there under a name of that one. How
/// often it is held against the program.
fn came_with_its_directory(looked: bool) -> usize {
    let fs = SimFs::new(DiskConfig::default(), SimClock::at(0), 0);
    let write = |bytes: &[u8]| {
        assert!(fs.write(b"letter", bytes).is_ok());
        fs.tree().remove(&b"letter"[..]).and_then(|entry| entry.content)
    };
    let (Some(old), Some(new), Some(last)) = (write(b"old"), write(b"new"), write(b"last")) else { return usize::MAX };
    let mut oracle = Oracle::new(0);
    oracle.deed(1, (10, 10), finished(b"site/index", &old), &|_| true);
    oracle.noticed(1, 10);
    oracle.deed(1, (20, 20), ended(b"site/index", &old, false), &|_| true);
    if looked {
        oracle.noticed(1, 20);
    }
    oracle.deed(1, (30, 30), finished(b"new/index", &new), &|_| true);
    oracle.moved(1, (40, 40), Moved { itself: false, ..moved(&new, b"new/index", b"site/index") });
    oracle.deed(1, (50, 50), ended(b"site/index", &new, true), &|_| true);
    oracle.deed(1, (50, 50), finished(b"site/index", &last), &|_| true);
    oracle.deed(0, (25, 25), ended(b"letter", &old, false), &|_| true);
    let mut out = Vec::new();
    oracle.reversed(&[at_rest(&fs)], 1, &Plan::of(0), &mut out);
    out.len()
}

#[test]
fn what_comes_to_a_name_with_its_directory_goes_on_with_what_had_it() {
    assert_eq!(came_with_its_directory(false), 0);
    assert_eq!(came_with_its_directory(true), 1, "the directory was seen to be gone");
}

#[test]
fn what_a_failed_sync_made_of_a_file_is_preserved_as_unseen() {
    let [written, made] = [&b"written"[..], b"made"].map(Thing::file);
    let fs = SimFs::new(DiskConfig::default(), SimClock::at(0), 0);
    assert!(fs.write(b"kept", b"made").is_ok());
    let (place, path, reason) = (b"kept".to_vec(), b"letter".to_vec(), "differed".to_owned());
    let kept = Kept { place, path, unseen: true, pending: false, reason };
    let member = AtRest { private: fs.tree(), tree: Tree::default(), kept: vec![kept], ..at_rest(&fs) };
    let held = |oracle: &Oracle| {
        let mut out = Vec::new();
        oracle.intent(std::slice::from_ref(&member), &Tree::default(), &mut out);
        out.len()
    };
    let mut oracle = Oracle::new(0);
    assert_eq!(held(&oracle), 1);
    oracle.deed(0, (10, 10), Deed::Damaged { before: written, after: made }, &|_| true);
    assert_eq!(held(&oracle), 0);
}

/// Somebody has a file open to write while its user moves it; another one moves the file as well, and may have the later time.
#[test]
fn what_is_moved_while_somebody_writes_into_it_is_the_same_file() {
    let fs = SimFs::new(DiskConfig::default(), SimClock::at(0), 0);
    let [old, new] = two_contents(&fs);
    let half = Thing::file(b"half");
    for (mover, held_against) in [(0, 0), (1, 1)] {
        let mut oracle = Oracle::new(0);
        oracle.deed(1, (10, 10), finished(b"draft", &old), &|_| true);
        oracle.deed(1, (20, 20), ended(b"draft", &old, true), &|_| true);
        oracle.moved(1, (30, 30), moved(&half, b"draft", b"letter"));
        oracle.deed(1, (40, 40), finished(b"letter", &new), &|_| true);
        oracle.moved(mover, (50, 50), moved(&old, b"draft", b"sent"));
        oracle.deed(1, (60, 60), ended(b"letter", &new, false), &|_| true);
        let mut out = Vec::new();
        oracle.resurrected(&[at_rest(&fs)], &mut out);
        assert_eq!(out.len(), held_against, "moved by {mover}");
    }
}

/// A user moves a file over another one and on from there; somebody else removes the one or the other meanwhile, with what he had
/// written into it. Where the member has not looked in between it is the first one that has another path.
#[test]
fn what_is_moved_on_from_a_name_that_it_took_is_what_it_was_unless_its_member_looked_there() {
    let fs = SimFs::new(DiskConfig::default(), SimClock::at(0), 0);
    let [old, new] = two_contents(&fs);
    let other = Thing::file(b"other");
    for looked in [false, true] {
        let mut oracle = Oracle::new(0);
        oracle.deed(0, (10, 10), finished(b"draft", &old), &|_| true);
        oracle.deed(1, (10, 10), finished(b"sent", &other), &|_| true);
        oracle.noticed(0, 10);
        oracle.noticed(1, 10);
        oracle.deed(0, (15, 15), ended(b"draft", &old, true), &|_| true);
        oracle.deed(0, (15, 15), finished(b"draft", &new), &|_| true);
        oracle.deed(1, (20, 20), ended(b"sent", &other, false), &|_| true);
        oracle.moved(1, (20, 20), moved(&old, b"draft", b"sent"));
        if looked {
            oracle.noticed(1, 20);
        }
        oracle.moved(1, (60, 60), moved(&old, b"sent", b"archive"));
        oracle.deed(0, (40, 40), ended(b"draft", &new, false), &|_| true);
        let mut out = Vec::new();
        oracle.resurrected(&[at_rest(&fs)], &mut out);
        assert_eq!(out.len(), usize::from(looked), "looked: {looked}");
    }
}
