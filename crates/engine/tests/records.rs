//! Single promises of the records, each in a small case.

#![allow(clippy::unwrap_used, reason = "a test stops at the first thing that is not as it should be")]

mod world;

use std::cell::Cell;
use std::collections::BTreeSet;

use anabranch_engine::kv::{Kv, KvError, Pair, Table};
use anabranch_engine::{
    Case, ChangeError, MemoryKv, NewThing, PassEnd, Policy, Records, ResolveScope, Settings, must_preserve_deleted,
};
use anabranch_model::codec::decode_record;
use anabranch_model::{Attributes, ChangeNumber, Hlc, Knowledge, Names, ReplicaId, Sequence, Timestamp, Uid, Version};
use world::{content, users::name};

const A: ReplicaId = ReplicaId([1; 16]);
const B: ReplicaId = ReplicaId([2; 16]);
const MTIME: Timestamp = Timestamp { seconds: 1, nanoseconds: 0 };
const LIMIT: u64 = 600_000_000;

fn replica(id: ReplicaId) -> Records<MemoryKv> {
    Records::create(MemoryKv::default(), id, Settings::default()).unwrap()
}

fn file(parent: Uid, text: &str, value: u64) -> NewThing {
    NewThing::file(parent, name(text), content(value), MTIME)
}

fn directory(parent: Uid, text: &str) -> NewThing {
    NewThing::directory(parent, name(text))
}

fn step<K: Kv, T>(records: &mut Records<K>, act: impl FnOnce(&mut Records<K>) -> T) -> T {
    records.begin().unwrap();
    let out = act(records);
    records.commit().unwrap();
    out
}

/// Rows of the next page, laid aside; says whether the pass is complete.
fn fetch(here: &mut Records<MemoryKv>, upstream: &Records<MemoryKv>) -> (ChangeNumber, Option<Knowledge>) {
    let reached = here.pass_state(upstream.replica()).unwrap().reached;
    let page = upstream.page(reached, here.known(), usize::MAX).unwrap();
    for row in &page.rows {
        here.lay_aside(upstream.replica(), &decode_record(row, &page.dictionary).unwrap()).unwrap();
    }
    here.set_reached(upstream.replica(), page.through, page.through).unwrap();
    (page.through, page.complete)
}

fn pull(here: &mut Records<MemoryKv>, upstream: &Records<MemoryKv>, now: Hlc) -> PassEnd {
    step(here, |here| {
        let (through, known) = fetch(here, upstream);
        here.complete_pass(upstream.replica(), Vec::new(), through, &known.unwrap(), now, LIMIT).unwrap()
    })
}

#[test]
fn numbers_are_not_dense_and_never_below_the_clock() {
    let mut a = replica(A);
    let issued = |a: &Records<MemoryKv>, uid| a.record(uid).unwrap().unwrap().placement.written;
    let first = step(&mut a, |a| a.add(Hlc(5000), directory(Uid::ROOT, "x")).unwrap());
    assert_eq!(first.0, Version { replica: A, sequence: Sequence(5000) });
    let second = step(&mut a, |a| a.add(Hlc(10), directory(Uid::ROOT, "y")).unwrap());
    assert_eq!((second.0.sequence, issued(&a, second).time.clock), (Sequence(5001), Hlc(5001)));
    step(&mut a, |a| a.jump(Hlc(9000), 100, 7));
    let third = step(&mut a, |a| a.add(Hlc(10), directory(Uid::ROOT, "z")).unwrap());
    assert_eq!((third.0.sequence, issued(&a, third).time.clock), (Sequence(9001), Hlc(5002)));
    // The clock was set back.
    step(&mut a, |a| a.jump(Hlc(10), 100, 7));
    assert_eq!((a.highest(), a.change_number().0), (Sequence(9108), 9108));
    step(&mut a, |a| a.set_replica(B));
    let fourth = step(&mut a, |a| a.add(Hlc(10), directory(Uid::ROOT, "w")).unwrap());
    assert_eq!(fourth.0.replica, B);
    assert!(a.known().covers(third.0) && a.known().covers(fourth.0));
}

#[test]
fn a_number_that_others_have_seen_is_never_issued_again() {
    let (mut old, mut b) = (replica(A), replica(B));
    let image = old.kv().clone();
    step(&mut old, |a| a.add(Hlc(7000), directory(Uid::ROOT, "x")).unwrap());
    pull(&mut b, &old, Hlc(7000));
    // The image of before comes back, with a clock that stands still.
    let mut a = Records::open(image, Settings::default()).unwrap().unwrap();
    pull(&mut a, &b, Hlc(7000));
    let next = step(&mut a, |a| a.add(Hlc(1), directory(Uid::ROOT, "y")).unwrap());
    assert_eq!(next.0.sequence, Sequence(7001));
}

#[test]
fn nothing_of_a_transaction_taken_back_stays() {
    let mut a = replica(A);
    let docs = step(&mut a, |a| a.add(Hlc(1), directory(Uid::ROOT, "docs")).unwrap());
    a.drain_touched();
    let before = (a.kv().clone(), a.highest(), a.clock(), a.change_number(), a.known().clone(), a.unresolved());
    let mode = |mode| Attributes { mode, ..Attributes::default() };
    a.begin().unwrap();
    a.set_attributes(Hlc(2), docs, mode(0o700), None).unwrap();
    // A cycle of its own, a partner with an id never seen, a file that loses its name.
    let (x, y) = (a.add(Hlc(3), directory(docs, "x")).unwrap(), a.add(Hlc(3), directory(docs, "y")).unwrap());
    a.place(Hlc(4), x, y, name("x")).unwrap();
    a.place(Hlc(4), y, x, name("y")).unwrap();
    let lost = a.add(Hlc(5), file(Uid::ROOT, "docs", 1)).unwrap();
    assert_eq!(a.loser(lost).unwrap(), Some(docs));
    assert!(a.unresolved() > 0);
    a.lay_aside(B, &a.record(docs).unwrap().unwrap()).unwrap();
    a.rollback().unwrap();
    let after = (a.kv().clone(), a.highest(), a.clock(), a.change_number(), a.known().clone(), a.unresolved());
    assert_eq!(format!("{before:?}"), format!("{after:?}"));
    assert_eq!(a.drain_touched(), BTreeSet::new());
    // The numbers given to attributes are given again, to others.
    step(&mut a, |a| a.set_attributes(Hlc(6), docs, mode(0o755), None).unwrap());
    assert_eq!(a.record(docs).unwrap().unwrap().attributes.unwrap().value, mode(0o755));
    let reopened = Records::open(a.kv().committed(), Settings::default()).unwrap().unwrap();
    assert_eq!(reopened.record(docs).unwrap(), a.record(docs).unwrap());
    assert_eq!((reopened.known(), reopened.highest(), reopened.clock()), (a.known(), a.highest(), a.clock()));
}

#[test]
fn a_pass_from_the_future_takes_in_nothing_and_moves_nothing() {
    let (mut a, mut b) = (replica(A), replica(B));
    let now = Hlc(1_000_000_000);
    let early = step(&mut a, |a| a.add(now, file(Uid::ROOT, "early", 1)).unwrap());
    let late = Hlc(now.0 + LIMIT + 50);
    step(&mut a, |a| a.touch(late, early, MTIME).unwrap());
    assert_eq!(pull(&mut b, &a, now), PassEnd::AheadOfClock { clock: late });
    assert_eq!((b.record(early).unwrap(), b.known().is_empty()), (None, true));
    assert_eq!(b.pass_state(A).unwrap().cursor, ChangeNumber(0));
    assert!(b.clock() < late);
    // Until that time is no longer ahead.
    assert!(matches!(pull(&mut b, &a, Hlc(now.0 + 50)), PassEnd::Complete(_)));
    assert!(b.record(early).unwrap().is_some() && b.clock() >= late);
}

#[test]
fn a_time_that_was_stamped_anew_is_not_ahead_any_more() {
    let (mut a, mut b) = (replica(A), replica(B));
    let now = Hlc(1_000_000_000);
    let uid = step(&mut a, |a| a.add(now, file(Uid::ROOT, "x", 1)).unwrap());
    let mut future = a.record(uid).unwrap().unwrap();
    future.placement.written.time.clock = Hlc(now.0 + 2 * LIMIT);
    step(&mut b, |b| b.lay_aside(A, &future).unwrap());
    assert!(matches!(pull(&mut b, &a, now), PassEnd::Complete(_)), "the row was fetched again");
    assert!(b.shown(uid).unwrap().is_some());
}

#[test]
fn a_clock_that_leapt_twice_leaves_what_was_stamped_later_than_what_it_had_seen() {
    let (now, hour) = (Hlc(10 * LIMIT), 3_600_000_000);
    let (mut a, mut b) = (replica(A), replica(B));
    let uid = step(&mut b, |b| b.add(now, file(Uid::ROOT, "f", 1)).unwrap());
    pull(&mut a, &b, now);
    // The clock is ahead by an hour, then by two days; the first change would come before what it has seen if both were
    // brought back by two days.
    let made = step(&mut a, |a| {
        a.remove(Hlc(now.0 + hour), uid).unwrap();
        let first = a.add(Hlc(now.0 + hour + 5), file(Uid::ROOT, "f", 2)).unwrap();
        a.write(Hlc(now.0 + 48 * hour), first, content(3), MTIME, None).unwrap();
        first
    });
    let later = Hlc(now.0 + 60_000_000);
    assert_eq!(step(&mut a, |a| a.restamp(later, LIMIT, &[]).unwrap()), 2);
    assert!(matches!(pull(&mut b, &a, later), PassEnd::Complete(_)));
    for records in [&a, &b] {
        assert!(!records.live(uid).unwrap());
        let record = records.record(made).unwrap().unwrap();
        let removed = records.record(uid).unwrap().unwrap().placement.written.time.clock;
        let written = record.content.as_ref().unwrap().written.time.clock;
        assert!(now < removed && removed < record.placement.written.time.clock);
        assert!(record.placement.written.time.clock < written && written.0 <= later.0 + 3);
    }
}

#[test]
fn what_was_taken_in_of_the_future_wins_nothing() {
    let (now, hour) = (Hlc(10 * LIMIT), 3_600_000_000);
    let (mut a, mut b) = (replica(A), replica(B));
    let leapt = Hlc(now.0 + 48 * hour);
    let uid = step(&mut a, |a| a.add(leapt, file(Uid::ROOT, "f", 1)).unwrap());
    // Its clock is ahead as well, so it takes that in.
    assert!(matches!(pull(&mut b, &a, leapt), PassEnd::Complete(_)));
    assert_eq!(step(&mut a, |a| a.restamp(now, LIMIT, &[]).unwrap()), 1);
    let change = Hlc(now.0 + 1_000_000);
    step(&mut a, |a| a.write(change, uid, content(2), MTIME, None).unwrap());
    // The old version is still there, and known: it keeps nothing back and does not return.
    let shows = |records: &Records<MemoryKv>| records.record(uid).unwrap().unwrap().content.unwrap().value;
    assert!(matches!(pull(&mut a, &b, change), PassEnd::Complete(_)));
    assert_eq!(shows(&a), content(2));
    assert!(matches!(pull(&mut b, &a, change), PassEnd::Complete(_)));
    assert_eq!(shows(&b), content(2));
    assert_eq!(a.record(uid).unwrap(), b.record(uid).unwrap());
    assert!(a.record(uid).unwrap().unwrap().clock().0 <= change.0 + LIMIT);
}

#[test]
fn a_change_that_has_seen_what_beats_it_stands_on_every_member() {
    let now = Hlc(10 * LIMIT);
    let (mut a, mut b, mut c) = (replica(A), replica(B), replica(ReplicaId([7; 16])));
    let ahead = Hlc(now.0 + LIMIT + 60_000_000);
    let uid = step(&mut a, |a| a.add(ahead, file(Uid::ROOT, "f", 1)).unwrap());
    // B's clock is a minute ahead too, so it takes that in and goes on holding it: to B its time is tolerable.
    let there = Hlc(now.0 + 90_000_000);
    assert!(matches!(pull(&mut b, &a, there), PassEnd::Complete(_)));
    assert_eq!(step(&mut a, |a| a.restamp(now, LIMIT, &[]).unwrap()), 1);
    pull(&mut c, &a, now);
    pull(&mut b, &a, there);
    // While B's resolution is on its way, A changes the file and C its name.
    step(&mut a, |a| a.write(Hlc(now.0 + 1), uid, content(2), MTIME, None).unwrap());
    step(&mut c, |c| c.place(Hlc(now.0 + 1), uid, Uid::ROOT, name("g")).unwrap());
    let late = Hlc(now.0 + 120_000_000);
    for _ in 0..3 {
        pull(&mut b, &a, late);
        pull(&mut c, &b, late);
        pull(&mut a, &c, late);
    }
    let record = a.record(uid).unwrap().unwrap();
    assert_eq!(record.content.as_ref().unwrap().value, content(2));
    assert_eq!(record.placement.value.name, name("g"));
    assert_eq!(b.record(uid).unwrap().unwrap(), record);
    assert_eq!(c.record(uid).unwrap().unwrap(), record);
    // A removal that has seen the bytes removes them.
    step(&mut a, |a| a.remove(late, uid).unwrap());
    pull(&mut b, &a, late);
    assert!(!b.live(uid).unwrap());
}

#[test]
fn a_removal_that_has_seen_what_beats_it_is_no_resolution() {
    let now = Hlc(10 * LIMIT);
    let (mut a, mut b, mut c) = (replica(A), replica(B), replica(ReplicaId([7; 16])));
    let ahead = Hlc(now.0 + LIMIT + 60_000_000);
    let uid = step(&mut a, |a| a.add(ahead, file(Uid::ROOT, "f", 1)).unwrap());
    // B's clock is ahead too, so it takes that in, and goes on holding it.
    let there = Hlc(now.0 + 90_000_000);
    assert!(matches!(pull(&mut b, &a, there), PassEnd::Complete(_)));
    assert_eq!(step(&mut a, |a| a.restamp(now, LIMIT, &[]).unwrap()), 1);
    // Somebody who saw the file removes it.
    step(&mut a, |a| a.remove(Hlc(now.0 + 1), uid).unwrap());
    pull(&mut b, &a, there);
    pull(&mut c, &b, there);
    for records in [&b, &c] {
        let record = records.record(uid).unwrap().unwrap();
        assert!(!records.live(uid).unwrap());
        assert_eq!(record.placement.written.version.replica, B, "written again");
        let held = record.content.unwrap().bytes.version;
        assert!(!must_preserve_deleted(&record.placement, held), "he had seen what was in it");
    }
    // What is done to it there afterwards is later than that.
    step(&mut b, |b| b.place(there, uid, Uid::ROOT, name("g")).unwrap());
    pull(&mut c, &b, there);
    assert!(c.live(uid).unwrap());
}

#[test]
fn what_a_member_stamped_in_the_future_and_forgot_is_taken_in_and_stamped_anew() {
    let (now, hour) = (Hlc(10 * LIMIT), 3_600_000_000);
    let (mut a, mut b) = (replica(A), replica(B));
    let leapt = Hlc(now.0 + 9 * hour);
    let uid = step(&mut a, |a| a.add(leapt, file(Uid::ROOT, "f", 1)).unwrap());
    assert!(matches!(pull(&mut b, &a, leapt), PassEnd::Complete(_)));
    // It was put back to an image of before that, and has another id now.
    let mut back = replica(ReplicaId([3; 16]));
    assert!(matches!(pull(&mut back, &b, now), PassEnd::AheadOfClock { .. }));
    back.set_former(vec![A]);
    assert!(matches!(pull(&mut back, &b, now), PassEnd::Complete(_)));
    assert_eq!(step(&mut back, |back| back.restamp(now, LIMIT, &[A]).unwrap()), 1);
    assert!(matches!(pull(&mut b, &back, now), PassEnd::Complete(_)));
    assert_eq!(b.record(uid).unwrap(), back.record(uid).unwrap());
    assert!(b.record(uid).unwrap().unwrap().clock().0 <= now.0 + LIMIT);
}

#[test]
fn a_touch_of_bytes_of_the_future_beats_no_write_that_has_seen_them() {
    let now = Hlc(10 * LIMIT);
    let (mut a, mut b) = (replica(A), replica(B));
    let ahead = Hlc(now.0 + LIMIT + 60_000_000);
    let uid = step(&mut a, |a| a.add(ahead, file(Uid::ROOT, "f", 1)).unwrap());
    let there = Hlc(now.0 + 90_000_000);
    assert!(matches!(pull(&mut b, &a, there), PassEnd::Complete(_)));
    assert_eq!(step(&mut a, |a| a.restamp(now, LIMIT, &[]).unwrap()), 1);
    pull(&mut b, &a, there);
    let touched = Timestamp { seconds: 7, nanoseconds: 0 };
    step(&mut b, |b| b.touch(there, uid, touched).unwrap());
    step(&mut a, |a| a.write(Hlc(now.0 + 1), uid, content(2), MTIME, None).unwrap());
    let late = Hlc(now.0 + 120_000_000);
    for _ in 0..2 {
        pull(&mut b, &a, late);
        pull(&mut a, &b, late);
    }
    for records in [&a, &b] {
        let held = records.record(uid).unwrap().unwrap().content.unwrap();
        assert_eq!((held.value, held.mtime), (content(2), MTIME));
    }
}

#[test]
fn what_was_beaten_by_a_time_of_the_future_comes_back_once_that_was_stamped_anew() {
    let (now, hour) = (Hlc(10 * LIMIT), 3_600_000_000);
    let (mut a, mut b) = (replica(A), replica(B));
    let uid = step(&mut a, |a| a.add(now, file(Uid::ROOT, "f", 1)).unwrap());
    pull(&mut b, &a, now);
    // A changes it with a clock that is hours ahead, and takes B's later change in, which loses to that.
    let leapt = Hlc(now.0 + 19 * hour);
    step(&mut a, |a| a.place(leapt, uid, Uid::ROOT, name("ahead")).unwrap());
    let change = Hlc(now.0 + 400_000_000);
    step(&mut b, |b| b.place(change, uid, Uid::ROOT, name("later")).unwrap());
    pull(&mut a, &b, leapt);
    assert_eq!(step(&mut a, |a| a.restamp(now, LIMIT, &[]).unwrap()), 1);
    for _ in 0..2 {
        pull(&mut b, &a, change);
        pull(&mut a, &b, change);
    }
    let record = a.record(uid).unwrap().unwrap();
    assert_eq!(record.placement.value.name, name("later"));
    assert_eq!(b.record(uid).unwrap().unwrap(), record);
    let number = b.change_number();
    pull(&mut b, &a, change);
    assert_eq!(b.change_number(), number, "it is told once");
}

/// B's clock is ahead as well: it takes A's bytes in, and removes them. A removes them by what it had of them on its disk before
/// they were stamped anew.
#[test]
fn what_was_removed_stays_so_when_its_bytes_are_stamped_anew() {
    let (now, hour) = (Hlc(10 * LIMIT), 3_600_000_000);
    for (by_author, touched) in [(false, false), (false, true), (true, false), (true, true)] {
        let (mut a, mut b) = (replica(A), replica(B));
        let leapt = Hlc(now.0 + 48 * hour);
        let uid = step(&mut a, |a| a.add(leapt, file(Uid::ROOT, "f", 1)).unwrap());
        if touched {
            step(&mut a, |a| a.touch(leapt, uid, Timestamp { seconds: 7, nanoseconds: 0 }).unwrap());
        }
        assert!(matches!(pull(&mut b, &a, leapt), PassEnd::Complete(_)));
        let seen = a.record(uid).unwrap().unwrap().content.unwrap().written.history;
        if !by_author {
            step(&mut b, |b| b.remove(leapt, uid).unwrap());
        }
        assert_eq!(step(&mut a, |a| a.restamp(now, LIMIT, &[]).unwrap()), 1);
        step(&mut b, |b| b.restamp(now, LIMIT, &[]).unwrap());
        if by_author {
            step(&mut a, |a| a.remove_from(now, uid, Some(&seen)).unwrap());
        }
        for _ in 0..2 {
            assert!(matches!(pull(&mut b, &a, now), PassEnd::Complete(_)));
            assert!(matches!(pull(&mut a, &b, now), PassEnd::Complete(_)));
        }
        assert!(!a.live(uid).unwrap() && !b.live(uid).unwrap(), "by its author: {by_author}, touched: {touched}");
        assert_eq!(a.record(uid).unwrap(), b.record(uid).unwrap());
    }
}

/// B's clock is ahead as well, so it has seen A's change; and it is set right earlier, so its own gets the earlier time.
#[test]
fn what_had_seen_a_change_of_the_future_stands_when_both_are_stamped_anew() {
    let (now, hour) = (Hlc(10 * LIMIT), 3_600_000_000);
    let later = Hlc(now.0 + 60_000_000);
    let (mut a, mut b) = (replica(A), replica(B));
    let [removed, renamed, written] =
        ["f", "g", "h"].map(|text| step(&mut a, |a| a.add(now, file(Uid::ROOT, text, 1)).unwrap()));
    pull(&mut b, &a, now);
    let leapt = Hlc(now.0 + 48 * hour);
    step(&mut a, |a| {
        a.place(leapt, removed, Uid::ROOT, name("f by a")).unwrap();
        a.place(leapt, renamed, Uid::ROOT, name("g by a")).unwrap();
        a.write(leapt, written, content(2), MTIME, None).unwrap();
    });
    assert!(matches!(pull(&mut b, &a, leapt), PassEnd::Complete(_)));
    step(&mut b, |b| {
        b.remove(leapt, removed).unwrap();
        b.place(leapt, renamed, Uid::ROOT, name("g by b")).unwrap();
        b.write(leapt, written, content(3), MTIME, None).unwrap();
    });
    assert_eq!(step(&mut b, |b| b.restamp(now, LIMIT, &[]).unwrap()), 3);
    assert_eq!(step(&mut a, |a| a.restamp(later, LIMIT, &[]).unwrap()), 3);
    for _ in 0..3 {
        assert!(matches!(pull(&mut b, &a, later), PassEnd::Complete(_)));
        assert!(matches!(pull(&mut a, &b, later), PassEnd::Complete(_)));
    }
    for records in [&a, &b] {
        assert!(!records.live(removed).unwrap());
        assert_eq!(records.record(renamed).unwrap().unwrap().placement.value.name, name("g by b"));
        assert_eq!(records.record(written).unwrap().unwrap().content.unwrap().value, content(3));
    }
    for uid in [removed, renamed, written] {
        assert_eq!(a.record(uid).unwrap(), b.record(uid).unwrap());
    }
}

#[test]
fn a_resolution_of_a_change_of_the_future_is_stamped_anew_by_who_wrote_it() {
    let (mut a, mut b) = (replica(A), replica(B));
    let now = Hlc(1_000_000_000);
    let future = Hlc(now.0 + LIMIT + 50);
    let lost = step(&mut a, |a| a.add(future, file(Uid::ROOT, "x", 1)).unwrap());
    // Its clock is ahead as well, and is set right.
    assert!(matches!(pull(&mut b, &a, future), PassEnd::Complete(_)));
    step(&mut b, |b| assert_eq!(b.restamp(now, LIMIT, &[]).unwrap(), 0));
    assert!(b.clock().0 <= now.0 + LIMIT);
    step(&mut b, |b| b.add(now, directory(Uid::ROOT, "x")).unwrap());
    step(&mut b, |b| assert_eq!(b.resolve(now, ResolveScope::All).unwrap(), 1));
    assert!(b.clock().0 > now.0 + LIMIT);
    step(&mut b, |b| assert_eq!(b.restamp(now, LIMIT, &[]).unwrap(), 1));
    let written = b.record(lost).unwrap().unwrap().placement.written;
    assert_eq!((written.version.replica, written.time.change, written.time.resolutions), (B, lost.0, 1));
    assert!(written.time.clock.0 <= now.0 + LIMIT && b.clock().0 <= now.0 + LIMIT);
}

#[test]
fn what_a_former_replica_id_stamped_in_the_future_is_stamped_anew_too() {
    let (now, hour) = (Hlc(10 * LIMIT), 3_600_000_000);
    let (mut a, mut b) = (replica(A), replica(B));
    let uid = step(&mut a, |a| a.add(Hlc(now.0 + 48 * hour), file(Uid::ROOT, "f", 1)).unwrap());
    step(&mut a, |a| a.set_replica(ReplicaId([3; 16])));
    assert_eq!(step(&mut a, |a| a.restamp(now, LIMIT, &[A]).unwrap()), 1);
    assert!(matches!(pull(&mut b, &a, now), PassEnd::Complete(_)));
    assert!(b.live(uid).unwrap());
    assert_eq!(a.record(uid).unwrap(), b.record(uid).unwrap());
}

#[test]
fn a_pass_shows_nothing_until_it_is_complete_and_goes_on_where_it_was() {
    let (mut a, mut b) = (replica(A), replica(B));
    let uids: Vec<Uid> =
        (0..5).map(|i| step(&mut a, |a| a.add(Hlc(i), file(Uid::ROOT, &format!("f{i}"), i)).unwrap())).collect();
    let mut after = ChangeNumber(0);
    for (at, &uid) in uids.iter().enumerate() {
        let page = a.page(after, b.known(), 1).unwrap();
        let last = at + 1 == uids.len();
        assert_eq!((page.rows.len(), page.through.0, page.complete.is_some()), (1, at as u64 + 1, last));
        let record = decode_record(&page.rows[0], &page.dictionary).unwrap();
        assert_eq!(record.uid, uid);
        step(&mut b, |b| {
            b.lay_aside(A, &record).unwrap();
            b.set_reached(A, page.through, page.through).unwrap();
        });
        after = b.pass_state(A).unwrap().reached;
        assert_eq!((b.record(uid).unwrap(), b.pass_state(A).unwrap().cursor), (None, ChangeNumber(0)));
        assert_eq!(b.drain_touched(), BTreeSet::new());
        b = Records::open(b.kv().committed(), Settings::default()).unwrap().unwrap();
    }
    assert!(matches!(pull(&mut b, &a, Hlc(9)), PassEnd::Complete(counts) if counts.records == 5));
    assert_eq!(b.drain_touched(), uids.iter().copied().collect());
    assert_eq!((b.known(), b.pass_state(A).unwrap().cursor), (a.known(), ChangeNumber(5)));
    assert_eq!(a.page(ChangeNumber(5), b.known(), 1).unwrap().complete.as_ref(), Some(a.known()));
    // All of it is known to both: nothing has to be said again.
    assert_eq!(a.page(ChangeNumber(0), b.known(), 1).unwrap().rows.len(), 0);
}

#[test]
fn what_lies_aside_can_be_dropped() {
    let (mut a, mut b) = (replica(A), replica(B));
    step(&mut a, |a| a.add(Hlc(1), directory(Uid::ROOT, "x")).unwrap());
    step(&mut b, |b| fetch(b, &a));
    step(&mut b, |b| b.drop_pass(A).unwrap());
    assert_eq!((b.kv().rows(Table::Aside), b.pass_state(A).unwrap().reached), (0, ChangeNumber(0)));
}

#[test]
fn a_closed_id_is_asked_for_again() {
    let (mut a, mut b) = (replica(A), replica(B));
    let uid = step(&mut a, |a| a.add(Hlc(5), directory(Uid::ROOT, "x")).unwrap());
    pull(&mut b, &a, Hlc(9));
    step(&mut b, |b| b.lower_known(A, Sequence(4)).unwrap());
    assert_eq!((b.known().sequence(A), b.pass_state(A).unwrap().cursor), (Sequence(4), ChangeNumber(0)));
    assert_eq!(a.page(ChangeNumber(0), b.known(), 1).unwrap().rows.len(), 1);
    pull(&mut b, &a, Hlc(9));
    assert!(b.known().covers(uid.0) && b.record(uid).unwrap().is_some());
}

#[test]
fn a_number_used_twice_is_a_conflict_of_both_values_on_every_member() {
    let mut before = replica(A);
    let uid = step(&mut before, |a| a.add(Hlc(5), file(Uid::ROOT, "x", 1)).unwrap());
    let write = |value| {
        let mut a = Records::open(before.kv().clone(), Settings::default()).unwrap().unwrap();
        step(&mut a, |a| a.write(Hlc(50), uid, content(value), MTIME, None).unwrap());
        a.record(uid).unwrap().unwrap()
    };
    let (one, two) = (write(10), write(20));
    assert_eq!(one.content.as_ref().unwrap().written.version, two.content.as_ref().unwrap().written.version);
    let mut ends = Vec::new();
    for (first, second, preserved) in [(&one, &two, true), (&two, &one, false)] {
        let mut b = replica(B);
        let taken = step(&mut b, |b| {
            b.take_in(first.clone()).unwrap();
            b.take_in(second.clone()).unwrap()
        });
        assert_eq!(taken.content, Some(Case::Twice { taken: preserved }));
        assert_eq!(taken.lost_content.is_some(), preserved);
        ends.push(b.record(uid).unwrap());
    }
    assert_eq!(ends[0], ends[1]);
}

#[test]
fn a_touch_of_unknown_bytes_is_a_touch_and_a_write_of_others_is_concurrent() {
    let (mut a, mut b) = (replica(A), replica(B));
    let uid = step(&mut a, |a| a.add(Hlc(1), file(Uid::ROOT, "x", 1)).unwrap());
    let base = a.record(uid).unwrap().unwrap().content.unwrap().written.history;
    pull(&mut b, &a, Hlc(2));
    step(&mut b, |b| b.write(Hlc(2), uid, content(2), MTIME, None).unwrap());
    pull(&mut a, &b, Hlc(2));
    let newer = a.record(uid).unwrap().unwrap().content.unwrap();
    // Whoever wrote this saw the first content, not the second one, and wrote the same bytes as the second one has.
    step(&mut a, |a| a.write_from(Hlc(3), uid, content(2), MTIME, None, Some(&base)).unwrap());
    let touched = a.record(uid).unwrap().unwrap().content.unwrap();
    assert_eq!(touched.bytes, newer.bytes);
    assert!(touched.written.history.covers(newer.written.version), "else no delete would ever cover the bytes");
    step(&mut a, |a| a.write_from(Hlc(4), uid, content(3), MTIME, None, Some(&base)).unwrap());
    let written = a.record(uid).unwrap().unwrap().content.unwrap();
    assert!(!written.written.history.covers(newer.written.version));
    pull(&mut b, &a, Hlc(5));
    step(&mut b, |b| b.remove_from(Hlc(5), uid, Some(&base)).unwrap());
    pull(&mut a, &b, Hlc(5));
    assert!(a.live(uid).unwrap(), "the deleter had not seen what is there");
    step(&mut a, |a| a.remove(Hlc(6), uid).unwrap());
    assert!(!a.live(uid).unwrap());
    step(&mut a, |a| a.place(Hlc(7), uid, Uid::ROOT, name("again")).unwrap());
    assert_eq!(a.shown_at(Uid::ROOT, b"again").unwrap(), Some(uid));
}

#[test]
fn a_swap_in_one_set_of_changes_takes_no_name_away() {
    let mut a = replica(A);
    let (x, y) = step(&mut a, |a| {
        (a.add(Hlc(1), file(Uid::ROOT, "x", 1)).unwrap(), a.add(Hlc(1), file(Uid::ROOT, "y", 2)).unwrap())
    });
    step(&mut a, |a| {
        a.begin_changes(Hlc(2)).unwrap();
        a.place(Hlc(2), x, Uid::ROOT, name("y")).unwrap();
        a.place(Hlc(2), y, Uid::ROOT, name("x")).unwrap();
        a.end_changes().unwrap();
    });
    assert_eq!(a.unresolved(), 0);
    assert_eq!([a.shown_at(Uid::ROOT, b"x").unwrap(), a.shown_at(Uid::ROOT, b"y").unwrap()], [Some(y), Some(x)]);
    assert!([x, y].iter().all(|&uid| a.record(uid).unwrap().unwrap().placement.written.time.resolutions == 0));
}

#[test]
fn a_read_only_membership_issues_no_versions() {
    let (mut a, mut b) = (replica(A), replica(B));
    step(&mut a, |a| a.add(Hlc(1), directory(Uid::ROOT, "x")).unwrap());
    let lost = step(&mut b, |b| b.add(Hlc(1), file(Uid::ROOT, "x", 1)).unwrap());
    let read_only = Settings { read_only: true, ..Settings::default() };
    let mut c = Records::create(MemoryKv::default(), ReplicaId([3; 16]), read_only).unwrap();
    pull(&mut c, &a, Hlc(9));
    pull(&mut c, &b, Hlc(9));
    assert_eq!((c.shown(lost).unwrap(), c.unresolved()), (None, 1));
    step(&mut c, |c| assert_eq!(c.resolve(Hlc(9), ResolveScope::All).unwrap(), 0));
    c.begin().unwrap();
    assert!(matches!(c.add(Hlc(9), directory(Uid::ROOT, "y")), Err(ChangeError::ReadOnly)));
    assert_eq!(c.highest(), Sequence(0));
}

#[test]
fn the_author_of_the_winner_resolves_at_once_and_others_later() {
    let (mut a, mut b) = (replica(A), replica(B));
    let older = step(&mut a, |a| a.add(Hlc(1), file(Uid::ROOT, "x", 1)).unwrap());
    step(&mut b, |b| b.add(Hlc(5), file(Uid::ROOT, "x", 2)).unwrap());
    pull(&mut a, &b, Hlc(9));
    pull(&mut b, &a, Hlc(9));
    step(&mut a, |a| assert_eq!(a.resolve(Hlc(9), ResolveScope::Own).unwrap(), 0));
    step(&mut b, |b| assert_eq!(b.resolve(Hlc(9), ResolveScope::Own).unwrap(), 1));
    let record = b.record(older).unwrap().unwrap();
    assert_eq!((record.placement.value.deleted, record.placement.written.time.resolutions), (true, 1));
    assert_eq!(record.placement.written.time.clock, Hlc(1));
}

#[test]
fn what_a_user_does_to_a_merged_directory_is_done_to_all_of_it() {
    let (mut a, mut b) = (replica(A), replica(B));
    let one = step(&mut a, |a| a.add(Hlc(1), directory(Uid::ROOT, "docs")).unwrap());
    let two = step(&mut b, |b| b.add(Hlc(2), directory(Uid::ROOT, "docs")).unwrap());
    let inside = step(&mut b, |b| b.add(Hlc(3), file(two, "f", 1)).unwrap());
    pull(&mut a, &b, Hlc(9));
    assert_eq!(a.group(two).unwrap(), [one, two]);
    assert_eq!(a.shown_at(one, b"f").unwrap(), Some(inside));
    a.drain_touched();
    let value = Attributes { mode: 0o700, ..Attributes::default() };
    step(&mut a, |a| {
        a.set_attributes(Hlc(10), one, value.clone(), None).unwrap();
        a.place(Hlc(11), one, Uid::ROOT, name("papers")).unwrap();
    });
    for uid in [one, two] {
        let record = a.record(uid).unwrap().unwrap();
        assert_eq!((record.attributes.unwrap().value, record.placement.value.name), (value.clone(), name("papers")));
    }
    assert_eq!(a.drain_touched(), [one, two].into(), "the group moved as one, so nothing in it did");
    // New children get the lowest UID.
    let new = step(&mut a, |a| a.add(Hlc(12), file(two, "g", 2)).unwrap());
    assert_eq!(a.record(new).unwrap().unwrap().placement.value.parent, one);
    step(&mut a, |a| {
        a.remove(Hlc(13), one).unwrap();
        a.remove(Hlc(13), inside).unwrap();
        a.remove(Hlc(13), new).unwrap();
    });
    assert_eq!(a.shown_children(Uid::ROOT, None, 9).unwrap(), []);
    step(&mut a, |a| assert!(matches!(a.place(Hlc(14), one, one, name("x")), Err(ChangeError::IntoItself(_)))));
}

#[test]
fn a_tombstone_goes_when_all_have_acknowledged_it() {
    let mut a = replica(A);
    let uid = step(&mut a, |a| a.add(Hlc(1), file(Uid::ROOT, "x", 1)).unwrap());
    let kept = step(&mut a, |a| a.add(Hlc(2), directory(Uid::ROOT, "d")).unwrap());
    let child = step(&mut a, |a| a.add(Hlc(3), file(kept, "f", 1)).unwrap());
    let before = a.known().clone();
    step(&mut a, |a| {
        a.remove(Hlc(4), uid).unwrap();
        a.remove(Hlc(5), kept).unwrap();
    });
    let all = a.known().clone();
    assert_eq!((a.collectable(&before, 9).unwrap(), a.collectable(&all, 9).unwrap()), (0, 1));
    step(&mut a, |a| assert_eq!(a.collect(&all, 9).unwrap(), 1));
    assert_eq!((a.record(uid).unwrap(), a.live(kept).unwrap()), (None, true));
    step(&mut a, |a| a.remove(Hlc(6), child).unwrap());
    let all = a.known().clone();
    step(&mut a, |a| assert_eq!(a.collect(&all, 1).unwrap(), 1));
    step(&mut a, |a| assert_eq!(a.collect(&all, 9).unwrap(), 1));
    let rows: Vec<usize> = [Table::Records, Table::Changes, Table::Slots, Table::Derived, Table::Tombstones]
        .map(|table| a.kv().rows(table))
        .to_vec();
    assert_eq!(rows, [0; 5]);
}

#[test]
fn a_merged_tombstone_waits_for_what_was_known_when_it_was_merged() {
    let (mut a, mut b) = (replica(A), replica(B));
    let uid = step(&mut a, |a| a.add(Hlc(1), file(Uid::ROOT, "x", 1)).unwrap());
    pull(&mut b, &a, Hlc(9));
    step(&mut a, |a| {
        a.write(Hlc(10), uid, content(3), MTIME, None).unwrap();
        a.remove(Hlc(10), uid).unwrap();
    });
    step(&mut b, |b| {
        b.place(Hlc(21), uid, Uid::ROOT, name("y")).unwrap();
        b.write(Hlc(21), uid, content(2), MTIME, None).unwrap();
        b.remove(Hlc(22), uid).unwrap();
    });
    let of_b = b.known().clone();
    pull(&mut a, &b, Hlc(20));
    let record = a.record(uid).unwrap().unwrap();
    assert!(record.versions().all(|version| of_b.covers(version)) && record.placement.written.merged);
    assert_eq!(a.collectable(&of_b, 9).unwrap(), 0, "who knows only this much may not have joined the maps");
    assert_eq!(a.collectable(a.known(), 9).unwrap(), 1);
}

#[test]
fn what_was_collected_does_not_come_back_with_a_later_pass() {
    let (mut a, mut b) = (replica(A), replica(B));
    let uid = step(&mut a, |a| a.add(Hlc(1), file(Uid::ROOT, "x", 1)).unwrap());
    step(&mut a, |a| a.remove(Hlc(2), uid).unwrap());
    pull(&mut b, &a, Hlc(9));
    let all = b.known().clone();
    step(&mut b, |b| assert_eq!(b.collect(&all, 9).unwrap(), 1));
    step(&mut b, |b| b.lay_aside(A, &a.record(uid).unwrap().unwrap()).unwrap());
    pull(&mut b, &a, Hlc(9));
    assert_eq!(b.record(uid).unwrap(), None);
}

#[test]
fn what_is_kept_comes_back_to_whoever_has_forgotten_it_and_beats_no_change_of_a_user() {
    let (mut a, mut b) = (replica(A), replica(B));
    let now = Hlc(1_000_000);
    let forgotten = step(&mut a, |a| a.add(now, file(Uid::ROOT, "forgotten", 1)).unwrap());
    let moved = step(&mut a, |a| a.add(now, file(Uid::ROOT, "there", 2)).unwrap());
    pull(&mut b, &a, now);
    step(&mut b, |b| b.forget(forgotten).unwrap());
    step(&mut b, |b| b.place(now, moved, Uid::ROOT, name("elsewhere")).unwrap());
    step(&mut a, |a| {
        a.keep(now, forgotten).unwrap();
        a.keep(now, moved).unwrap();
    });
    pull(&mut b, &a, now);
    pull(&mut a, &b, now);
    for records in [&a, &b] {
        let at = |name: &[u8]| records.shown_at(Uid::ROOT, name).unwrap();
        assert_eq!((at(b"forgotten"), at(b"elsewhere"), at(b"there")), (Some(forgotten), Some(moved), None));
    }
    assert_eq!(a.record(moved).unwrap(), b.record(moved).unwrap());
}

#[test]
fn a_directory_that_lives_again_for_what_was_made_in_it_keeps_the_name_that_somebody_gave_it() {
    let (mut a, mut b) = (replica(A), replica(B));
    let dir = step(&mut a, |a| a.add(Hlc(1), directory(Uid::ROOT, "d")).unwrap());
    pull(&mut b, &a, Hlc(9));
    step(&mut b, |b| b.add(Hlc(10), file(dir, "one", 1)).unwrap());
    step(&mut a, |a| a.remove(Hlc(11), dir).unwrap());
    pull(&mut a, &b, Hlc(12));
    pull(&mut b, &a, Hlc(12));
    // Both know that it was removed, and that it lives for the sake of what is in it.
    step(&mut a, |a| a.place(Hlc(20), dir, Uid::ROOT, name("e")).unwrap());
    step(&mut b, |b| {
        b.revive(Hlc(30), dir).unwrap();
        b.add(Hlc(30), file(dir, "two", 2)).unwrap();
    });
    assert!(!b.record(dir).unwrap().unwrap().placement.value.deleted);
    pull(&mut a, &b, Hlc(40));
    pull(&mut b, &a, Hlc(40));
    for records in [&a, &b] {
        let at = |parent, name: &[u8]| records.shown_at(parent, name).unwrap();
        assert_eq!((at(Uid::ROOT, b"e"), at(Uid::ROOT, b"d")), (Some(dir), None));
        assert!(at(dir, b"one").is_some() && at(dir, b"two").is_some());
    }
    // What is live is left as it is.
    let before = a.record(dir).unwrap();
    step(&mut a, |a| a.revive(Hlc(50), dir).unwrap());
    assert_eq!(a.record(dir).unwrap(), before);
}

#[test]
fn fields_of_later_versions_are_passed_on() {
    let (mut a, mut b) = (replica(A), replica(B));
    let uid = step(&mut a, |a| a.add(Hlc(1), file(Uid::ROOT, "x", 1)).unwrap());
    let mut record = a.record(uid).unwrap().unwrap();
    record.unknown = (*b"\x10\x02hi").into();
    step(&mut a, |a| assert!(a.take_in(record.clone()).unwrap().changed));
    pull(&mut b, &a, Hlc(9));
    step(&mut b, |b| b.touch(Hlc(10), uid, MTIME).unwrap());
    assert_eq!(b.record(uid).unwrap().unwrap().unknown, record.unknown);
}

#[test]
fn many_touched_are_handed_over_in_the_transaction() {
    fn put(kv: &mut MemoryKv, touched: &BTreeSet<Uid>) -> Result<(), KvError> {
        touched.iter().try_for_each(|uid| kv.put(Table::Todo, &uid.0.sequence.0.to_be_bytes(), &[]))
    }
    let (mut a, mut b) = (replica(A), replica(B));
    let count = 40_000;
    step(&mut a, |a| {
        for i in 0..count {
            a.add(Hlc(i), directory(Uid::ROOT, &format!("d{i}"))).unwrap();
        }
    });
    b.hand_over_touched(put);
    pull(&mut b, &a, Hlc(count));
    let left = b.drain_touched().len();
    assert_eq!(b.kv().rows(Table::Todo) + left, count as usize);
    assert!(left < count as usize);
}

/// Counts what is asked of the database.
#[derive(Default)]
struct Counting {
    kv: MemoryKv,
    asked: Cell<u64>,
}

impl Counting {
    fn count(&self) {
        self.asked.set(self.asked.get() + 1);
    }
}

impl Kv for Counting {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        self.count();
        self.kv.get(table, key)
    }
    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), KvError> {
        self.count();
        self.kv.put(table, key, value)
    }
    fn delete(&mut self, table: Table, key: &[u8]) -> Result<(), KvError> {
        self.count();
        self.kv.delete(table, key)
    }
    fn range(&self, table: Table, from: &[u8], to: Option<&[u8]>, limit: usize) -> Result<Vec<Pair>, KvError> {
        self.count();
        self.kv.range(table, from, to, limit)
    }
    fn last(&self, table: Table) -> Result<Option<Pair>, KvError> {
        self.count();
        self.kv.last(table)
    }
    fn begin(&mut self) -> Result<(), KvError> {
        self.kv.begin()
    }
    fn commit(&mut self) -> Result<(), KvError> {
        self.kv.commit()
    }
    fn rollback(&mut self) -> Result<(), KvError> {
        self.kv.rollback()
    }
}

/// What one change asks of the database, within its transaction.
fn cost(records: &mut Records<Counting>, act: impl FnOnce(&mut Records<Counting>)) -> u64 {
    records.begin().unwrap();
    records.kv().asked.set(0);
    act(records);
    let cost = records.kv().asked.get();
    records.commit().unwrap();
    cost
}

#[test]
fn a_change_costs_the_same_however_much_is_in_the_directory() {
    for policy in [Policy::Preserve, Policy::KeepBeside] {
        let settings = Settings { policy, ..Settings::default() };
        let mut a = Records::create(Counting::default(), A, settings).unwrap();
        let docs = step(&mut a, |a| a.add(Hlc(1), directory(Uid::ROOT, "docs")).unwrap());
        let mut last = docs;
        let filling = cost(&mut a, |a| {
            for i in 0..20_000 {
                last = a.add(Hlc(2 + i), file(docs, &format!("f{i}"), i)).unwrap();
            }
        });
        // A record, a change number, a slot, and a look at the slot.
        assert!(filling <= 4 * 20_000 + 16, "{filling}");
        let now = Hlc(1_000_000);
        let moved = cost(&mut a, |a| a.place(now, docs, Uid::ROOT, name("papers")).unwrap());
        let edited = cost(&mut a, |a| a.write(now, last, content(7), MTIME, None).unwrap());
        let deleted = cost(&mut a, |a| a.remove(now, last).unwrap());
        assert!(moved <= 16 && edited <= 4 && deleted <= 12, "{moved} {edited} {deleted}");
        assert_eq!(a.shown(last).unwrap(), None);
    }
}

fn under(policy: Policy) -> Records<MemoryKv> {
    let settings = Settings { policy, author: "hq1".into(), names: Names::Windows, ..Settings::default() };
    Records::create(MemoryKv::default(), A, settings).unwrap()
}

#[test]
fn where_case_does_not_count_a_change_of_case_is_a_rename() {
    let mut a = under(Policy::Preserve);
    let report = step(&mut a, |a| a.add(Hlc(1), file(Uid::ROOT, "report.txt", 1)).unwrap());
    step(&mut a, |a| a.place(Hlc(2), report, Uid::ROOT, name("Report.TXT")).unwrap());
    let shown = a.shown(report).unwrap().unwrap();
    assert_eq!((shown.name, a.unresolved()), (name("Report.TXT"), 0));
    for other in [&b"report.txt"[..], b"REPORT.txt", b"Report.TXT"] {
        assert_eq!(a.shown_at(Uid::ROOT, other).unwrap(), Some(report));
    }
    let listed = a.shown_children(Uid::ROOT, None, 10).unwrap();
    assert_eq!(listed, [(name("Report.TXT"), report, false)]);
    assert_eq!(a.shown_children(Uid::ROOT, Some(b"rEPORT.txt"), 10).unwrap(), []);
}

#[test]
fn where_case_does_not_count_two_files_of_one_name_are_a_conflict() {
    for policy in [Policy::Preserve, Policy::KeepBeside] {
        let mut a = under(policy);
        let first = step(&mut a, |a| a.add(Hlc(1), file(Uid::ROOT, "caf\u{e9}", 1)).unwrap());
        let second = step(&mut a, |a| a.add(Hlc(2), file(Uid::ROOT, "CAFE\u{301}", 2)).unwrap());
        // The later placement has the name; each keeps its own spelling.
        assert_eq!(a.loser(first).unwrap(), Some(second));
        assert_eq!(a.shown(second).unwrap().unwrap().name, name("CAFE\u{301}"));
        let beside = name("caf\u{e9}").kept_beside("hq1", first);
        let shown = a.shown(first).unwrap().map(|shown| shown.name);
        assert_eq!(shown, (policy == Policy::KeepBeside).then(|| beside.clone()));
        step(&mut a, |a| a.resolve(Hlc(3), ResolveScope::All).unwrap());
        assert_eq!((a.unresolved(), a.shown_at(Uid::ROOT, "caf\u{e9}".as_bytes()).unwrap()), (0, Some(second)));
        if policy == Policy::KeepBeside {
            assert_eq!(a.shown_at(Uid::ROOT, beside.bytes()).unwrap(), Some(first));
        }
    }
}
