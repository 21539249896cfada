//! The four cases as tables, and what must hold for any three facets.

#![allow(clippy::unwrap_used, reason = "a test stops at the first thing that is not as it should be")]

use anabranch_model::{Attributes, Hlc, Name, Placement, ReplicaId, Sequence, Time, Timestamp};

use super::*;

const A: u8 = 1;
const B: u8 = 2;

fn version(replica: u8, sequence: u64) -> Version {
    Version { replica: ReplicaId([replica; 16]), sequence: Sequence(sequence) }
}

fn written(replica: u8, sequence: u64, clock: u64) -> Written {
    let version = version(replica, sequence);
    let time = Time { clock: Hlc(clock), change: version, resolutions: 0 };
    Written { version, time, history: Knowledge::of(version), merged: false }
}

/// A content facet in the making.
#[derive(Clone)]
struct Edit(ContentFacet);

/// An edit of value "l" at the clock of its number.
fn edit(replica: u8, sequence: u64) -> Edit {
    let written = written(replica, sequence, sequence);
    let value = Content::Symlink { target: (*b"l").into() };
    Edit(ContentFacet { value, mtime: Timestamp::default(), birth: None, bytes: written.stamp(), written })
}

impl Edit {
    fn of(mut self, target: &str) -> Self {
        self.0.value = Content::Symlink { target: target.as_bytes().into() };
        self
    }

    fn at(mut self, clock: u64) -> Self {
        self.0.written.time.clock = Hlc(clock);
        self.0.bytes = self.0.written.stamp();
        self
    }

    /// Its author had seen this.
    fn after(mut self, seen: &Self) -> Self {
        self.0.written.history.join(&seen.0.written.history);
        self
    }

    /// Its author touched this.
    fn touches(mut self, seen: &Self) -> Self {
        (self.0.value, self.0.bytes) = (seen.0.value.clone(), seen.0.bytes);
        self.after(seen)
    }
}

fn merge_contents(local: &Edit, remote: &Edit) -> (ContentFacet, Case, bool) {
    let merged =
        merge(&local.0, &remote.0, &Knowledge::default(), |l, history| history.covers(l.bytes.version), &mut |_| None);
    (merged.facet, merged.case, merged.lost)
}

#[test]
fn what_stays_and_what_is_preserved() {
    let (keep, take) = (false, true);
    let first = edit(A, 1).of("first");
    let second = edit(B, 2).of("second").after(&first);
    let touched = edit(B, 9).touches(&first);
    let cases = [
        // what decides                 local                    remote                           case                              outcome preserve
        ("the same", first.clone(), first.clone(), Case::Old, keep, false),
        ("an old one", second.clone(), first.clone(), Case::Old, keep, false),
        ("a descendant", first.clone(), second.clone(), Case::Descendant, take, false),
        ("equal, later there", edit(A, 1), edit(B, 2), Case::Equal, take, false),
        ("equal, later here", edit(A, 2), edit(B, 1), Case::Equal, keep, false),
        (
            "concurrent, later there",
            edit(A, 1).of("x"),
            edit(B, 2).of("y"),
            Case::Concurrent { taken: true },
            take,
            true,
        ),
        (
            "concurrent, later here",
            edit(A, 2).of("x"),
            edit(B, 1).of("y"),
            Case::Concurrent { taken: false },
            keep,
            false,
        ),
        (
            "one clock, the higher version",
            edit(A, 1).of("x"),
            edit(B, 1).of("y"),
            Case::Concurrent { taken: true },
            take,
            true,
        ),
        // The touch has the later stamp, and still the write wins: its bytes are later.
        (
            "a write against a touch",
            touched.clone(),
            edit(A, 3).of("y").after(&first),
            Case::Concurrent { taken: true },
            take,
            false,
        ),
        (
            "a touch against a write",
            edit(A, 3).of("y").after(&first),
            touched.clone(),
            Case::Concurrent { taken: false },
            keep,
            false,
        ),
        ("a touch of what is here", first.clone(), touched.clone(), Case::Descendant, take, false),
        // The author of the winner had seen the bytes, though not the touch of them.
        (
            "a later write, the touch unseen",
            touched,
            edit(A, 30).of("y").after(&first),
            Case::Concurrent { taken: true },
            take,
            false,
        ),
        (
            "one number, two values, higher there",
            edit(A, 1).of("x"),
            edit(A, 1).of("y"),
            Case::Twice { taken: true },
            take,
            true,
        ),
        (
            "one number, two values, higher here",
            edit(A, 1).of("y"),
            edit(A, 1).of("x"),
            Case::Twice { taken: false },
            keep,
            false,
        ),
        (
            "one number, the later clock",
            edit(A, 1).of("y"),
            edit(A, 1).of("x").at(5),
            Case::Twice { taken: true },
            take,
            true,
        ),
    ];
    for (what, local, remote, case, taken, preserve) in cases {
        let (facet, found, lost) = merge_contents(&local, &remote);
        let winner = if taken { &remote.0 } else { &local.0 };
        assert_eq!((found, lost), (case, preserve), "{what}");
        assert_eq!((&facet.value, facet.written.stamp()), (&winner.value, winner.written.stamp()), "{what}");
        assert_eq!(facet.written.merged, facet.written.history != winner.written.history, "{what}");
    }
}

#[test]
fn equal_values_join_their_histories_and_say_so() {
    let (facet, ..) = merge_contents(&edit(A, 1), &edit(B, 2));
    assert!(facet.written.merged);
    assert!(facet.written.history.covers(version(A, 1)) && facet.written.history.covers(version(B, 2)));
    let (again, case, _) = merge_contents(&Edit(facet.clone()), &edit(B, 2));
    assert_eq!((again, case), (facet, Case::Old));
}

fn placement(replica: u8, sequence: u64, name: &str, deleted: bool, seen: &[Version]) -> PlacementFacet {
    let name = Name::new(name.as_bytes()).unwrap();
    let author = format!("member {replica}").into();
    PlacementFacet {
        value: Placement { parent: Uid::ROOT, name, directory: false, deleted, author },
        written: written(replica, sequence, sequence),
        seen: seen.iter().map(|v| (v.replica, v.sequence)).collect(),
    }
}

#[test]
fn what_deletes_had_seen_is_joined_whoever_wins() {
    let (v1, v2) = (version(A, 10), version(B, 20));
    let deletes = [placement(A, 1, "x", true, &[v1]), placement(B, 2, "y", true, &[v2])];
    let moved = placement(B, 3, "z", false, &[]);
    for (l, r) in [(&deletes[0], &deletes[1]), (&deletes[1], &deletes[0])] {
        let merged = merge(l, r, &Knowledge::default(), |_, _| true, &mut |_| None).facet;
        assert_eq!(merged.value.name.bytes(), b"y");
        assert!(merged.seen.covers(v1) && merged.seen.covers(v2) && merged.written.merged);
    }
    let merged = merge(&moved, &deletes[0], &Knowledge::default(), |_, _| true, &mut |_| None).facet;
    assert!(!merged.value.deleted && merged.seen.covers(v1));
}

#[test]
fn who_placed_it_is_no_part_of_the_place() {
    let merged = merge(
        &placement(A, 1, "x", false, &[]),
        &placement(B, 2, "x", false, &[]),
        &Knowledge::default(),
        |_, _| false,
        &mut |_| None,
    );
    assert_eq!((merged.case, merged.lost), (Case::Equal, false));
}

#[test]
fn a_file_is_live_until_its_deleters_have_seen_its_bytes() {
    let file = |seen: &[Version], content: Edit| Record {
        uid: Uid(version(A, 1)),
        placement: placement(A, 5, "x", true, seen),
        content: Some(content.0),
        attributes: None,
        unknown: [].into(),
    };
    let first = edit(A, 2);
    assert!(!live_by_record(&file(&[version(A, 2)], first.clone())));
    assert!(live_by_record(&file(&[version(A, 2)], edit(B, 3).after(&first))));
    assert!(!live_by_record(&file(&[version(A, 2)], edit(B, 3).touches(&first))));
}

#[test]
fn what_is_held_is_preserved_unless_the_winner_had_seen_it() {
    let (first, second) = (edit(A, 1).of("x"), edit(B, 2).of("y"));
    let held = |edit: &Edit| (edit.0.value.clone(), edit.0.bytes.version);
    let cases = [
        ("unseen", &second, held(&first), true),
        ("seen", &second.clone().after(&first), held(&first), false),
        ("equal bytes", &second.clone().of("x"), held(&first), false),
        ("a number used twice", &edit(A, 1).of("y"), held(&first), true),
    ];
    for (what, winner, (value, bytes), want) in cases {
        assert_eq!(must_preserve(&winner.0, &value, bytes), want, "{what}");
    }
}

#[test]
fn a_number_used_twice_for_a_directory_and_a_file_stays_one_kind() {
    let file = Record {
        uid: Uid(version(A, 1)),
        placement: placement(A, 1, "x", false, &[]),
        content: Some(edit(A, 2).0),
        attributes: None,
        unknown: [].into(),
    };
    let mut directory = Record { content: None, ..file.clone() };
    directory.placement.value.directory = true;
    let known = Knowledge::default();
    let (one, taken) = merge_records(&file, &directory, &known, &mut |_| None);
    assert!(taken.changed && one.content.is_none() && one.placement.value.directory);
    assert_eq!(merge_records(&directory, &file, &known, &mut |_| None).0, one);
}

#[test]
fn unknown_fields_of_both_are_kept() {
    let (a, b): (&[u8], &[u8]) = (b"\x10\x02hi\x20\x00", b"\x10\x02ho\x11\x01x");
    let joined = join_unknown(a, b);
    assert_eq!(&*joined, b"\x10\x02ho\x11\x01x\x20\x00");
    assert_eq!(join_unknown(b, a), joined);
    assert_eq!(&*join_unknown(a, b""), a);
    assert_eq!(&*join_unknown(b"", a), a);
}

/// Facets that learned of each other in any order and grouping come to one.
#[test]
fn merging_is_commutative_associative_and_idempotent() {
    let first = edit(A, 1).of("x");
    let mut facets = vec![first.clone(), edit(B, 2).of("y"), edit(B, 3).of("y").after(&first), edit(A, 4).of("x")];
    facets.push(edit(B, 5).touches(&first));
    facets.push(edit(A, 4).of("z"));
    facets.push(edit(3, 4).of("y").after(&edit(B, 2)));
    let join = |a: &Edit, b: &Edit| {
        let mut facet = merge_contents(a, b).0;
        facet.written.merged = false;
        Edit(facet)
    };
    for a in &facets {
        assert_eq!(join(a, a).0, a.0);
        for b in &facets {
            assert_eq!(join(a, b).0, join(b, a).0);
            for c in &facets {
                let (left, right) = (join(&join(a, b), c).0, join(a, &join(b, c)).0);
                assert_eq!((&left.value, left.written.stamp()), (&right.value, right.written.stamp()));
            }
        }
    }
}

#[test]
fn attributes_that_lost_unseen_are_told() {
    let facet = |replica, sequence, mode| AttributesFacet {
        value: Attributes { mode, ..Attributes::default() },
        directory_mtime: None,
        written: written(replica, sequence, sequence),
    };
    let record = |facet| Record {
        uid: Uid(version(A, 1)),
        placement: placement(A, 1, "x", false, &[]),
        content: Some(edit(A, 2).0),
        attributes: Some(facet),
        unknown: [].into(),
    };
    let (local, remote) = (record(facet(A, 3, 0o600)), record(facet(B, 4, 0o644)));
    let (kept, taken) = merge_records(&local, &remote, &Knowledge::default(), &mut |_| None);
    assert_eq!(taken.lost_attributes, local.attributes);
    assert_eq!((kept.attributes, taken.content), (remote.attributes, Some(Case::Old)));
}

#[test]
fn what_a_delete_takes_out_is_preserved_unless_its_deleter_had_seen_it() {
    let held = version(A, 10);
    let plain = placement(B, 2, "x", true, &[held]);
    let mut resolution = plain.clone();
    resolution.written.time.resolutions = 1;
    // What had seen the bytes may be a resolution that lost against this delete.
    let joined = merge(
        &placement(B, 2, "x", true, &[version(B, 1)]),
        &placement(A, 1, "y", true, &[held]),
        &Knowledge::default(),
        |_, _| true,
        &mut |_| None,
    );
    let cases = [
        ("seen", &plain, false),
        ("unseen", &placement(B, 2, "x", true, &[]), true),
        ("a resolution", &resolution, true),
        ("joined", &joined.facet, true),
    ];
    for (what, placement, want) in cases {
        assert_eq!(must_preserve_deleted(placement, held), want, "{what}");
    }
}
