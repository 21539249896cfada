//! Content that is asked for: answers that come late, and windows that are full of what nobody has.

use std::collections::BTreeSet;

use anabranch_member::{Input, Limits, LinkId};
use anabranch_net::message::{Message, Piece};

use crate::three::{MESH, World};

/// In [`MESH`]: the links on which the third one pulls from the first, and from the second. It asks on the first of them
/// where it may.
const FROM_FIRST: LinkId = LinkId(3);
const FROM_SECOND: LinkId = LinkId(5);
/// Requests that may be under way on a link.
const REQUESTS: u8 = 6;

/// The first one pulls from nobody, so that it has nothing of what the second one writes from now on.
fn apart() -> World {
    let mut w = World::new(MESH, |i, fs| {
        if i == 0 {
            fs.write(b"f", b"first").unwrap();
        }
    });
    w.equal();
    for (at, link) in [(0, 0), (1, 0), (0, 2), (2, 2)] {
        w.give(at, Input::LinkDown(LinkId(link)));
    }
    w
}

/// The first one says late that it has not got a content: meanwhile others were wanted, and this one again, of the second.
#[test]
fn a_late_refusal_does_not_end_what_somebody_else_was_asked() {
    let mut w = apart();
    w.hold = vec![FROM_FIRST, FROM_SECOND];
    w.asked.clear();
    for content in (1..=REQUESTS).chain([1]) {
        w.members[1].fs.write(b"f", &[content; 10]).unwrap();
        w.run(2);
    }
    // As many more as may be under way: nothing could be asked of the second one again.
    for name in [b"a", b"b", b"c", b"d", b"e"] {
        w.members[1].fs.write(name, name).unwrap();
        w.run(2);
    }
    let wanted = *blake3::hash(&[1; 10]).as_bytes();
    let asked = |w: &World| w.asked.iter().filter(|(_, want)| want.hash == wanted).map(|(link, _)| *link).collect();
    let before: Vec<LinkId> = asked(&w);
    assert_eq!(before, [FROM_FIRST, FROM_SECOND], "the two that were asked for it");
    let mut late = std::mem::take(&mut w.held);
    // The refusal comes first, and what the second one sends for the second request next.
    late.sort_by_key(|(_, link, _)| *link != FROM_FIRST);
    let data = late.iter().position(|(_, link, _)| *link == FROM_SECOND).unwrap();
    late.swap(1, data);
    for (to, link, message) in late {
        w.give(to, Input::Received(link, message));
    }
    w.hold.clear();
    w.run(5);
    let again: Vec<LinkId> = asked(&w);
    assert_eq!(again.iter().filter(|link| **link == FROM_SECOND).count(), 1, "it was sent once: {again:?}");
    assert_eq!(w.members[2].fs.read(b"f").unwrap().bytes(), [1; 10]);
}

/// There is room for one content in the window, and it is taken by one that nobody has (the rest of): what somebody has
/// comes all the same.
#[test]
fn what_nobody_has_does_not_keep_out_what_somebody_has() {
    for begun in [false, true] {
        let limits = Limits { window_items: 1, piece_bytes: 1000, ..Limits::default() };
        let mut w = World::with_limits(MESH, limits, |i, fs| {
            if i == 0 {
                fs.write(b"f", b"first").unwrap();
            }
        });
        w.equal();
        // The second one knows of this file of the first one's, and does not get it.
        w.hold = vec![LinkId(1), FROM_FIRST];
        w.members[0].fs.write(b"large", &[7; 5000]).unwrap();
        w.run(2);
        let mut first = w.held.iter().find(|(to, ..)| *to == 2).unwrap().clone();
        if let (true, Message::Pieces { pieces, .. }) = (begun, &mut first.2) {
            pieces.truncate(1);
            w.give(2, Input::Received(first.1, first.2));
            assert_eq!(w.members[2].replica.partly_fetched().0, 1000);
        }
        for (at, link) in [(0, 3), (2, 3)] {
            w.give(at, Input::LinkDown(LinkId(link)));
        }
        w.run(5);
        w.members[1].fs.write(b"small", b"somebody has it").unwrap();
        w.run(30);
        assert!(w.members[2].fs.exists(b"small"), "begun: {begun}");
        assert!(!w.members[2].fs.exists(b"large"));
        for (to, link, message) in std::mem::take(&mut w.held) {
            if link == LinkId(1) {
                w.hold.clear();
                w.give(to, Input::Received(link, message));
            }
        }
        w.equal();
    }
}

/// A partner sends a piece of each large file and then has not got the rest: beside what nobody has there is room in staging
/// for one file more, and not for all of them.
#[test]
fn a_partner_that_never_sends_all_of_anything_does_not_fill_staging() {
    let limits = Limits { piece_bytes: 1000, staging_bytes: 6000, ..Limits::default() };
    let mut w = World::with_limits(MESH, limits, |i, fs| {
        if i == 0 {
            fs.write(b"f", b"first").unwrap();
        }
    });
    w.equal();
    for (at, link) in [(1, 5), (2, 5)] {
        w.give(at, Input::LinkDown(LinkId(link)));
    }
    w.hold = vec![FROM_FIRST];
    for name in [b"a", b"b", b"c", b"d", b"e"] {
        w.members[0].fs.write(name, &[name[0]; 5000]).unwrap();
    }
    let (mut most, mut given) = (0, BTreeSet::new());
    for _ in 0..100 {
        w.run(1);
        for (to, link, mut message) in std::mem::take(&mut w.held) {
            if let Message::Pieces { pieces, .. } = &mut message {
                for piece in pieces {
                    let again = matches!(piece, Piece::Data(bytes) if !given.insert(bytes[0]));
                    if again {
                        *piece = Piece::NotHeld;
                    }
                }
            }
            w.give(to, Input::Received(link, message));
        }
        let staged = w.members[2].fs.private_tree();
        most = most.max(staged.keys().filter(|path| path.starts_with(b"staging/f-")).count());
    }
    assert!((1..=2).contains(&most), "{most} parts of files");
    w.hold.clear();
    w.equal();
}
