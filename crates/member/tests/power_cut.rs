//! What a power cut leaves of a file that was written in place: new bytes under the old time and length, perhaps.

#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod couple;

use anabranch_member::Limits;
use anabranch_model::{Content, Uid};
use anabranch_volume::fs::Fs;
use anabranch_volume::simulated::{DiskConfig, SimFs, Tree};
use couple::{Couple, settle};

const NAME: &[u8] = b"notes";

fn start() -> Couple {
    let mut couple = Couple::new(Limits::default(), DiskConfig::default(), |fs: &SimFs| {
        fs.mkdir(b"desk").unwrap();
        fs.write(NAME, b"what was written first, and published").unwrap();
    });
    couple.connect();
    settle(&mut couple);
    couple
}

/// The second one's user writes the file while the service is down, and perhaps gives it another place; then its power is
/// cut. Returns whether the file has other bytes and its old stamp.
fn cut(couple: &mut Couple, seed: u64, moved: bool) -> bool {
    couple.disconnect();
    couple.members[1].replica = None;
    couple.members[1].fs.process_died();
    let fs = couple.members[1].fs.clone();
    let before = fs.tree();
    let mut name = NAME;
    if moved {
        name = b"desk/notes";
        fs.rename(NAME, name).unwrap();
        fs.sync_all().unwrap();
    }
    fs.write(name, b"2nd,").unwrap();
    drop(fs.crash(seed));
    let after = fs.tree();
    let at =
        |tree: &Tree, name: &[u8]| tree.get(name).map(|e| (e.mtime, e.content.as_ref().map(|c| c.bytes().to_vec())));
    let (Some((old, was)), Some((new, is))) = (at(&before, NAME), at(&after, name)) else { return false };
    old == new && was.as_ref().map(Vec::len) == is.as_ref().map(Vec::len) && was != is
}

/// The second one's records say what is in its tree.
fn expect_known(couple: &Couple, when: &str) {
    let second = &couple.members[1];
    let records = second.replica.as_ref().unwrap().records();
    for (path, entry) in second.fs.tree() {
        let Some(content) = entry.content else { continue };
        let mut at = Uid::ROOT;
        for name in path.split(|&byte| byte == b'/') {
            at = records.shown_at(at, name).unwrap().unwrap_or_else(|| panic!("{when}: {name:?} is not recorded"));
        }
        let recorded = records.record(at).unwrap().unwrap().content.unwrap().value;
        let Content::File { hash, .. } = recorded else { panic!("{when}: {recorded:?}") };
        assert_eq!(hash, *blake3::hash(content.bytes()).as_bytes(), "{when}: {}", content.bytes().escape_ascii());
    }
}

#[test]
fn what_was_written_lately_is_read_again_whatever_its_stamp_says() {
    let mut silent = [0, 0];
    for seed in 0..300 {
        for moved in [false, true] {
            let mut couple = start();
            silent[usize::from(moved)] += u64::from(cut(&mut couple, seed, moved));
            couple.restart(Limits::default());
            settle(&mut couple);
            expect_known(&couple, &format!("power cut {seed}, moved: {moved}"));
        }
    }
    assert!(silent.iter().all(|&count| count > 0), "no power cut left new bytes under an old stamp: {silent:?}");
}
