//! A large file on its way while the daemon dies, loses power, or finds something else in its private file.

use crate::couple::Couple;
use anabranch_engine::kv::{Kv, Table};
use anabranch_member::{Input, Limits};
use anabranch_volume::fs::Fs;
use anabranch_volume::layout;
use anabranch_volume::simulated::{DiskConfig, SimFs};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 12 * MIB;

fn limits() -> Limits {
    Limits { note_bytes: MIB, note_every: 0, ..Limits::default() }
}

fn content() -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(SIZE).unwrap()];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

/// The first one has a large file, and small ones of these names.
fn couple_with(limits: Limits, small: &[&[u8]]) -> Couple {
    Couple::new(limits, DiskConfig::default(), |fs| {
        for name in small {
            fs.write(name, b"small").unwrap();
        }
        fs.write(b"big", &content()).unwrap();
    })
}

impl Couple {
    /// Until so many messages with pieces have come in all.
    fn until_pieces(&mut self, count: usize) {
        while self.pieces < count {
            assert!(self.step(), "nothing is under way after {} messages with pieces", self.pieces);
        }
    }

    fn until_installed(&mut self) {
        for _ in 0..100_000 {
            if self.members[1].fs.exists(b"big") && self.members[1].replica.as_ref().unwrap().settled().unwrap() {
                assert!(self.members[1].fs.read(b"big").unwrap().bytes() == content(), "another content");
                // The row has gone with it.
                assert!(self.members[1].database.range(Table::Staged, &[], None, 9).unwrap().is_empty());
                return;
            }
            assert!(self.step(), "it does not come");
        }
        panic!("it does not come to an end");
    }

    fn counters(&self) -> (u64, u64) {
        let counters = self.members[1].replica.as_ref().unwrap().counters();
        (counters.resumed, counters.content_received)
    }

    /// The private file of the one content on its way.
    fn private_name(&self) -> Vec<u8> {
        let fs = &self.members[1].fs;
        let names: Vec<_> = fs.list(&self.staging()).unwrap().into_iter().map(|e| e.name).collect();
        assert_eq!(names.len(), 1, "{names:?}");
        names.into_iter().next().unwrap()
    }

    fn staging(&self) -> <SimFs as Fs>::Dir {
        let fs = &self.members[1].fs;
        let top = fs.open_dir(&fs.root(), layout::PRIVATE_DIR).unwrap();
        fs.open_dir(&top, layout::STAGING).unwrap()
    }
}

#[test]
fn a_large_file_goes_on_after_the_daemon_died() {
    let mut couple = couple_with(limits(), &[]);
    couple.connect();
    couple.until_pieces(8);
    couple.members[1].fs.process_died();
    couple.restart(limits());
    couple.until_installed();
    assert_eq!(couple.counters(), (8 * MIB, SIZE - 8 * MIB));
}

#[test]
fn one_that_was_complete_is_not_fetched_again() {
    let mut couple = couple_with(limits(), &[]);
    couple.connect();
    // The last piece came, and somebody keeps the daemon from its install.
    couple.until_pieces(11);
    couple.members[1].replica.as_mut().unwrap().close().unwrap();
    couple.members[1].fs.process_died();
    couple.restart(limits());
    couple.until_installed();
    assert_eq!(couple.counters(), (11 * MIB, MIB));
}

#[test]
fn after_a_power_cut_only_what_is_still_there_counts() {
    let mut resumed = 0;
    for seed in 0..40 {
        let mut couple = couple_with(limits(), &[]);
        couple.connect();
        couple.until_pieces(9);
        if seed % 2 == 0 {
            couple.members[1].fs.write_back(true);
        }
        couple.members[1].replica = None;
        drop(couple.members[1].fs.crash(seed));
        couple.restart(limits());
        couple.until_installed();
        let (kept, received) = couple.counters();
        assert_eq!(kept + received, SIZE, "seed {seed}");
        resumed += u64::from(kept > 0);
    }
    assert!(resumed > 0, "no power cut left anything");
}

#[test]
fn what_was_changed_meanwhile_is_fetched_from_there_on() {
    let mut couple = couple_with(limits(), &[]);
    couple.connect();
    couple.until_pieces(8);
    couple.members[1].fs.process_died();
    let (fs, staging, name) = (couple.members[1].fs.clone(), couple.staging(), couple.private_name());
    let file = fs.open_private(&staging, &name).unwrap();
    fs.write_at(&file, b"garbage", 5 * MIB + 17).unwrap();
    // What comes may have holes: nothing may be left behind the point at which it goes on.
    fs.write_at(&file, &[7; 4096], 8 * MIB).unwrap();
    drop(file);
    couple.restart(limits());
    couple.until_installed();
    assert_eq!(couple.counters(), (5 * MIB, SIZE - 5 * MIB));
}

#[test]
fn where_the_whole_is_wrong_it_begins_again_once() {
    let mut couple = couple_with(limits(), &[]);
    couple.connect();
    couple.spoil = true;
    couple.until_pieces(8);
    couple.members[1].fs.process_died();
    couple.restart(limits());
    couple.until_installed();
    // The rest, found wrong with what was kept; then all of it.
    assert_eq!(couple.counters(), (8 * MIB, SIZE - 8 * MIB + SIZE));
}

#[test]
fn what_nobody_wants_any_more_is_removed_at_the_start() {
    let mut couple = couple_with(limits(), &[]);
    couple.connect();
    couple.until_pieces(4);
    let name = couple.private_name();
    couple.members[1].replica = None;
    couple.members[1].fs.process_died();
    // Another file has its place: as if the row were about something of long ago.
    let (fs, staging) = (couple.members[1].fs.clone(), couple.staging());
    fs.remove_file(&staging, &name).unwrap();
    fs.create_file(&staging, &name).unwrap();
    couple.open(1, limits());
    assert!(fs.list(&staging).unwrap().is_empty());
    assert!(couple.members[1].database.range(Table::Staged, &[], None, 9).unwrap().is_empty());
}

#[test]
fn what_was_begun_comes_first_and_counts_towards_the_quota() {
    let limits = Limits { staging_bytes: 13 * MIB, ..limits() };
    let mut couple = couple_with(limits, &[b"another"]);
    couple.connect();
    couple.until_pieces(2);
    // Its row stands before the other's, and the quota is for one of them at a time.
    couple.members[0].fs.write(b"another", &content()[..7 << 20]).unwrap();
    let hints = couple.members[0].fs.take_hints();
    couple.queue.push_back((0, Input::Hints(hints)));
    couple.until_pieces(9);
    couple.members[1].fs.process_died();
    couple.restart(limits);
    let (fs, staging) = (couple.members[1].fs.clone(), couple.staging());
    let mut most = 0;
    while !(fs.read(b"big").is_ok() && fs.read(b"another").is_ok_and(|c| c.bytes().len() == 7 << 20)) {
        let sizes = fs.list(&staging).unwrap().into_iter().map(|e| fs.stat(&staging, &e.name).unwrap().unwrap());
        let sum: u64 = sizes.map(|s| s.stamp.size).sum();
        most = most.max(sum);
        assert!(couple.step(), "they do not come");
    }
    assert!(most <= 13 * MIB, "{most} bytes in staging");
    assert!(couple.counters().0 >= 8 * MIB, "{:?}", couple.counters());
}
