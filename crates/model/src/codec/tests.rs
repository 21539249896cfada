//! Golden bytes, round trips, refusals.

use super::*;

fn version(replica: u8, sequence: u64) -> Version {
    Version { replica: ReplicaId([replica; 16]), sequence: Sequence(sequence) }
}

fn written(v: Version) -> Written {
    let time = Time { clock: Hlc(1_000_000), change: v, resolutions: 0 };
    Written { version: v, time, history: Knowledge::of(v), merged: false }
}

fn sample() -> Record {
    let uid = Uid(version(1, 1_000_000));
    let content = written(version(1, 1_000_001));
    Record {
        uid,
        placement: PlacementFacet {
            value: Placement {
                parent: Uid::ROOT,
                name: Name::new(*b"plan").unwrap(),
                directory: false,
                deleted: false,
                author: "".into(),
            },
            written: written(uid.0),
            seen: Knowledge::default(),
        },
        content: Some(ContentFacet {
            value: Content::File { size: 5, hash: [7; 32] },
            mtime: Timestamp { seconds: -1, nanoseconds: 999_999_999 },
            birth: None,
            bytes: content.stamp(),
            written: content,
        }),
        attributes: Some(AttributesFacet {
            value: Attributes { mode: 0o644, ..Attributes::default() },
            directory_mtime: None,
            written: written(version(1, 1_000_002)),
        }),
        unknown: [].into(),
    }
}

/// A record with everything in it that the sample has not.
fn full() -> Record {
    let mut r = sample();
    r.placement.seen = [(ReplicaId([3; 16]), Sequence(9))].into_iter().collect();
    r.placement.value.author = "laptop".into();
    r.placement.written.time.resolutions = 2;
    r.placement.written.time.change = version(2, 40);
    r.placement.written.merged = true;
    r.placement.written.history.learn(version(4, 4));
    let content = r.content.as_mut().unwrap();
    content.value = Content::Symlink { target: (*b"../\xff").into() };
    content.birth = Some(Timestamp { seconds: 1 << 40, nanoseconds: 0 });
    content.bytes.version = version(5, 5);
    r.attributes.as_mut().unwrap().directory_mtime = Some(Timestamp::default());
    r.unknown = (*b"\x10\x02hi\x20\x00").into();
    r
}

#[test]
fn golden_bytes() {
    let mut dictionary = Dictionary::default();
    let bytes = encode_record(&sample(), &mut dictionary);
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    let seven = "07".repeat(32);
    assert_eq!(
        hex,
        format!("010400c0843d020c07000001ff887a04706c616e032c060002000001ff93ebdc0305{seven}0406060004000000")
    );
    assert_eq!(decode_record(&bytes, &dictionary), Ok(sample()));
}

#[test]
fn everything_comes_back_and_unknown_fields_are_kept() {
    let mut dictionary = Dictionary::default();
    let bytes = encode_record(&full(), &mut dictionary);
    assert_eq!(decode_record(&bytes, &dictionary), Ok(full()));
}

#[test]
fn no_cut_and_no_changed_byte_panics_and_no_cut_is_taken() {
    let mut dictionary = Dictionary::default();
    let bytes = encode_record(&full(), &mut dictionary);
    let known = bytes.len() - full().unknown.len();
    for end in 0..bytes.len() {
        let cut = decode_record(&bytes[..end], &dictionary);
        // A cut between whole fields beyond the needed ones is a shorter record, everything else an error.
        assert!(cut.is_err() || end == known || end == known + 4 || cut.unwrap().attributes.is_none(), "{end}");
    }
    for at in 0..bytes.len() {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut changed = bytes.clone();
            changed[at] = value;
            let _ = decode_record(&changed, &dictionary);
        }
    }
}

#[test]
fn refusals() {
    let mut dictionary = Dictionary::default();
    let mut directory = sample();
    directory.placement.value.directory = true;
    let with_content = encode_record(&directory, &mut dictionary);
    assert_eq!(decode_record(&with_content, &dictionary), Err(DecodeError::Field("content")));
    let empty = Dictionary::default();
    assert_eq!(decode_record(&with_content, &empty), Err(DecodeError::Dictionary("replica id")));
    let mut own_parent = sample();
    own_parent.placement.value.parent = own_parent.uid;
    let bytes = encode_record(&own_parent, &mut dictionary);
    assert_eq!(decode_record(&bytes, &dictionary), Err(DecodeError::Range("a parent")));
}

#[test]
fn attributes_come_back_and_disorder_is_refused() {
    let mut value = Attributes { mode: 0o2755, ..Attributes::default() };
    value.owner = Owner { number: 1000, name: Some("anna".into()) };
    value.xattrs.insert((*b"user.a").into(), (*b"1").into());
    value.xattrs.insert((*b"user.b").into(), (*b"").into());
    let bytes = encode_attributes(&value);
    assert_eq!(decode_attributes(&bytes), Ok(value));
    let twice = [&[0, 0, 0, 0, 0, 2][..], &[1, b'b', 0, 1, b'a', 0]].concat();
    assert_eq!(decode_attributes(&twice), Err(DecodeError::Range("an xattr")));
    assert!(decode_attributes(&[0xff; 40]).is_err());
}
