//! The metadata database through power cuts: every commit that had returned is there, whole, and in order.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test that cannot go on fails; one that is skipped says why"
)]

use std::collections::BTreeMap;
use std::path::Path;

use anabranch_engine::kv::{Kv, Pair, Table};
use anabranch_powercut::{Bed, Error, FileSystem};
use anabranch_store::{Options, SqliteKv};

const COMMITS: u64 = 60;
const ROWS: u64 = 400;
/// Little cache, so that pages of open transactions go to the log early.
const OPTIONS: Options = Options { cache_bytes: 256 << 10 };

/// Commit `n` writes a part of the rows, of which some have their own size; every tenth a large one.
fn written(n: u64) -> impl Iterator<Item = (u64, Vec<u8>)> {
    let rows = if n.is_multiple_of(10) { ROWS } else { 40 };
    (0..rows).map(move |row| ((n * 97 + row * 13) % ROWS, n.to_be_bytes().repeat(20 + (n % 7) as usize * 30)))
}

fn commit(kv: &mut SqliteKv, n: u64) {
    kv.begin().unwrap();
    kv.put(Table::Meta, b"n", &n.to_be_bytes()).unwrap();
    for (row, value) in written(n) {
        kv.put(Table::Records, &row.to_be_bytes(), &value).unwrap();
    }
    kv.commit().unwrap();
}

fn expected(n: u64) -> Vec<Pair> {
    let rows: BTreeMap<u64, Vec<u8>> = (1..=n).flat_map(written).collect();
    rows.into_iter().map(|(row, value)| (row.to_be_bytes().to_vec(), value)).collect()
}

/// The last commit that the database shows, which must be whole; it must go on working, too.
fn last(path: &Path) -> u64 {
    let (mut kv, _) = SqliteKv::open(path, OPTIONS).unwrap();
    kv.check().unwrap();
    let n = kv.get(Table::Meta, b"n").unwrap().map_or(0, |v| u64::from_be_bytes(v.try_into().unwrap()));
    assert!(kv.range(Table::Records, b"", None, usize::MAX).unwrap() == expected(n), "commit {n} is whole");
    commit(&mut kv, n + 1);
    kv.close().unwrap();
    n
}

fn cut_it(file_system: FileSystem) {
    let bed = match Bed::start(file_system, 512 << 20) {
        Ok(bed) => bed,
        Err(e @ Error::Unavailable(_)) => return eprintln!("skipped for {file_system}: {e}"),
        Err(e) => panic!("{file_system}: {e}: {:?}", std::error::Error::source(&e)),
    };
    let path = bed.path().join("database.db");
    for half in [1..=COMMITS / 2, COMMITS / 2 + 1..=COMMITS] {
        let (mut kv, opened) = SqliteKv::open(&path, OPTIONS).unwrap();
        if opened.created {
            bed.mark("opened");
        }
        for n in half {
            commit(&mut kv, n);
            bed.mark("commit");
        }
        // The close takes the log into the file, and removes it.
        kv.close().unwrap();
    }
    let recording = bed.finish().unwrap();
    let mut seen = Vec::new();
    for cut in recording.cuts(40, 0xdb) {
        let (marked, found) = recording
            .replay(cut, |replayed| {
                let path = replayed.path.join("database.db");
                assert!(replayed.marks.is_empty() || path.exists(), "{cut}: once opened, it exists");
                (replayed.marks.len().saturating_sub(1) as u64, last(&path))
            })
            .unwrap();
        assert!((marked..=marked + 1).contains(&found), "{file_system}, {cut}: {marked} committed, {found} found");
        seen.push(found);
    }
    seen.dedup();
    assert!(seen.len() > 15, "the cuts fall between different commits: {seen:?}");
}

#[test]
fn ext4_keeps_every_commit() {
    cut_it(FileSystem::Ext4);
}

#[test]
fn xfs_keeps_every_commit() {
    cut_it(FileSystem::Xfs);
}

#[test]
fn btrfs_keeps_every_commit() {
    cut_it(FileSystem::Btrfs);
}
