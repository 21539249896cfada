//! Changed bytes at random, from a fixed seed: the smaller sister of the targets in `fuzz/`, which need a nightly
//! compiler. No bytes may make a decoder panic, and what is accepted must come back the same from its own encoding.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use anabranch_model::codec::{Dictionary, Writer, decode_attributes, decode_record, encode_attributes, encode_record};
use anabranch_model::{
    Attributes, AttributesFacet, Content, ContentFacet, Hlc, Knowledge, Name, Owner, Placement, PlacementFacet, Record,
    ReplicaId, Sequence, Stamp, Time, Timestamp, Uid, Version, Written,
};

const CASES: u32 = 100_000;

/// A small generator of numbers (xorshift*): the same run every time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap()
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let length = self.below(most + 1);
        (0..length).map(|_| self.next() as u8).collect()
    }

    /// Numbers of every size.
    fn number(&mut self) -> u64 {
        let bits = self.below(64);
        self.next() >> bits
    }

    fn version(&mut self) -> Version {
        Version { replica: ReplicaId([self.below(5) as u8; 16]), sequence: Sequence(1 + self.number() / 2) }
    }

    fn knowledge(&mut self) -> Knowledge {
        (0..self.below(4)).map(|_| self.version()).map(|v| (v.replica, v.sequence)).collect()
    }

    fn time(&mut self, version: Version) -> Time {
        let change = if self.one_in(3) { self.version() } else { version };
        let resolutions = if self.one_in(4) { self.below(9) as u32 } else { 0 };
        Time { clock: Hlc(self.number()), change, resolutions }
    }

    fn written(&mut self, uid: Uid) -> Written {
        let version = if self.one_in(2) { uid.0 } else { self.version() };
        let mut history = if self.one_in(3) { self.knowledge() } else { Knowledge::default() };
        history.learn(version);
        Written { version, time: self.time(version), history, merged: self.one_in(5) }
    }

    fn timestamp(&mut self) -> Timestamp {
        Timestamp { seconds: self.number().cast_signed(), nanoseconds: self.below(1_000_000_000) as u32 }
    }

    fn name(&mut self) -> Name {
        loop {
            let most = if self.one_in(20) { 255 } else { 12 };
            if let Ok(name) = Name::new(self.bytes(most)) {
                return name;
            }
        }
    }

    fn owner(&mut self) -> Owner {
        let name = (!self.one_in(3)).then(|| format!("user{}", self.below(9)).into());
        Owner { number: self.number() as u32, name }
    }

    fn attributes(&mut self) -> Attributes {
        let xattrs = (0..self.below(4)).map(|_| {
            let name = format!("user.{}", self.below(99)).into_bytes();
            (name.into(), self.bytes(30).into())
        });
        let xattrs = xattrs.collect();
        Attributes { mode: self.below(0o10000) as u32, owner: self.owner(), group: self.owner(), xattrs }
    }

    fn content(&mut self, uid: Uid) -> ContentFacet {
        let written = self.written(uid);
        let value = if self.one_in(4) {
            let target = [b"/".to_vec(), self.bytes(20).into_iter().map(|b| b.max(1)).collect()].concat();
            Content::Symlink { target: target.into() }
        } else {
            Content::File { size: self.number() >> 1, hash: [self.next() as u8; 32] }
        };
        let own = Stamp { time: self.time(uid.0), version: self.version() };
        let bytes = if self.one_in(3) { own } else { written.stamp() };
        let birth = self.one_in(2).then(|| self.timestamp());
        ContentFacet { value, mtime: self.timestamp(), birth, written, bytes }
    }

    fn record(&mut self) -> Record {
        let uid = Uid(self.version());
        let directory = self.one_in(4);
        let author: Box<str> = if self.one_in(4) { "läptop".into() } else { "".into() };
        let value = Placement {
            parent: Some(Uid(self.version())).filter(|&p| p != uid).unwrap_or(Uid::ROOT),
            name: self.name(),
            directory,
            deleted: self.one_in(4),
            author,
        };
        let seen = if self.one_in(3) { self.knowledge() } else { Knowledge::default() };
        let attributes = (!self.one_in(4)).then(|| AttributesFacet {
            value: self.attributes(),
            directory_mtime: self.one_in(2).then(|| self.timestamp()),
            written: self.written(uid),
        });
        let mut unknown = Writer::default();
        if self.one_in(4) {
            unknown.number(16 + self.number() / 4);
            unknown.bytes(&self.bytes(10));
        }
        Record {
            uid,
            placement: PlacementFacet { value, written: self.written(uid), seen },
            content: (!directory).then(|| self.content(uid)),
            attributes,
            unknown: unknown.0.into(),
        }
    }

    /// Changes a few places: a bit, a byte, a run removed, doubled, or put in.
    fn change(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(3) {
            let at = self.below(bytes.len().max(1));
            let length = self.below(8).min(bytes.len() - at.min(bytes.len()));
            match self.below(6) {
                0 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
                1 if at < bytes.len() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][self.below(5)],
                2 => drop(bytes.drain(at..at + length)),
                3 => {
                    let run = bytes[at..at + length].to_vec();
                    drop(bytes.splice(at..at, run));
                }
                4 => {
                    let run = self.bytes(6);
                    drop(bytes.splice(at..at, run));
                }
                _ => bytes.truncate(at),
            }
        }
    }
}

#[test]
fn records() {
    let mut random = Random(0x5eed_0001);
    let (mut accepted, mut refused) = (0, 0);
    for case in 0..CASES {
        let mut dictionary = Dictionary::default();
        let record = random.record();
        let mut bytes = encode_record(&record, &mut dictionary);
        assert_eq!(decode_record(&bytes, &dictionary).as_ref(), Ok(&record), "case {case}");
        random.change(&mut bytes);
        let Ok(taken) = decode_record(&bytes, &dictionary) else {
            refused += 1;
            continue;
        };
        accepted += 1;
        let mut fresh = Dictionary::default();
        let again = encode_record(&taken, &mut fresh);
        assert_eq!(decode_record(&again, &fresh).as_ref(), Ok(&taken), "case {case}");
    }
    // Both ways are taken often enough to mean something.
    assert!(accepted > CASES / 20 && refused > CASES / 3, "{accepted} accepted, {refused} refused");
}

#[test]
fn attribute_values() {
    let mut random = Random(0x5eed_0002);
    let (mut accepted, mut refused) = (0, 0);
    for case in 0..CASES {
        let value = random.attributes();
        let mut bytes = encode_attributes(&value);
        assert_eq!(decode_attributes(&bytes).as_ref(), Ok(&value), "case {case}");
        random.change(&mut bytes);
        let Ok(taken) = decode_attributes(&bytes) else {
            refused += 1;
            continue;
        };
        accepted += 1;
        assert_eq!(decode_attributes(&encode_attributes(&taken)).as_ref(), Ok(&taken), "case {case}");
    }
    assert!(accepted > CASES / 20 && refused > CASES / 3, "{accepted} accepted, {refused} refused");
}
