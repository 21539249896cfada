//! Both databases against plain maps, under operations at random; and what a copy of its files, whole or cut, opens to.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anabranch_engine::kv::{Kv, Pair, Table};
use anabranch_store::{MemoryKv, Options, SqliteKv};
use proptest::prelude::*;

/// So little cache that pages of an open transaction go to the log before its commit.
const SMALL: Options = Options { cache_bytes: 40 << 10 };
const TABLES: [Table; 3] = [Table::Meta, Table::Records, Table::Tombstones];

type Model = BTreeMap<(Table, Vec<u8>), Vec<u8>>;

#[derive(Clone, Debug)]
enum Step {
    Put(Table, Vec<u8>, Vec<u8>),
    Delete(Table, Vec<u8>),
    Commit,
    Rollback,
    Reopen,
    Copy,
    Range(Table, Vec<u8>, Option<Vec<u8>>, usize),
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    // Few distinct keys, so that operations meet; some that share a prefix or hold the lowest and highest byte.
    prop_oneof![
        prop::collection::vec(prop::sample::select(vec![0u8, 1, b'a', 0xff]), 0..4),
        prop::collection::vec(any::<u8>(), 1..40),
    ]
}

fn table() -> impl Strategy<Value = Table> {
    prop::sample::select(TABLES.to_vec())
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    (any::<u8>(), prop_oneof![0..300usize, 0..20_000usize]).prop_map(|(byte, length)| vec![byte; length])
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => (table(), key(), value()).prop_map(|(t, k, v)| Step::Put(t, k, v)),
        6 => (table(), key()).prop_map(|(t, k)| Step::Delete(t, k)),
        3 => Just(Step::Commit),
        1 => Just(Step::Rollback),
        1 => Just(Step::Reopen),
        1 => Just(Step::Copy),
        4 => (table(), key(), prop::option::of(key()), 0..6usize).prop_map(|(t, from, to, l)| Step::Range(t, from, to, l)),
    ]
}

fn rows(model: &Model, table: Table) -> Vec<Pair> {
    model.iter().filter(|((t, _), _)| *t == table).map(|((_, k), v)| (k.clone(), v.clone())).collect()
}

fn content(kv: &impl Kv) -> Model {
    let all = |t| kv.range(t, b"", None, usize::MAX).unwrap().into_iter().map(move |(k, v)| ((t, k), v));
    TABLES.into_iter().flat_map(all).collect()
}

fn copy(from: &Path, to: &Path, log_bytes: Option<usize>) {
    let log = |p: &Path| p.with_extension("db-wal");
    fs::copy(from, to).unwrap();
    let mut bytes = fs::read(log(from)).unwrap_or_default();
    bytes.truncate(log_bytes.unwrap_or(usize::MAX));
    fs::write(log(to), bytes).unwrap();
}

fn begin(one: &mut impl Kv, other: &mut impl Kv) {
    one.begin().unwrap();
    other.begin().unwrap();
}

fn run(steps: Vec<Step>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("database.db");
    let (mut kv, _) = SqliteKv::open(&path, SMALL).unwrap();
    let mut memory = MemoryKv::default();
    let (mut committed, mut model) = (Model::new(), Model::new());
    begin(&mut kv, &mut memory);
    for (at, step) in steps.into_iter().enumerate() {
        match step {
            Step::Put(table, key, value) => {
                kv.put(table, &key, &value).unwrap();
                memory.put(table, &key, &value).unwrap();
                model.insert((table, key), value);
            }
            Step::Delete(table, key) => {
                kv.delete(table, &key).unwrap();
                memory.delete(table, &key).unwrap();
                model.remove(&(table, key));
            }
            Step::Commit => {
                kv.commit().unwrap();
                memory.commit().unwrap();
                committed = model.clone();
                begin(&mut kv, &mut memory);
            }
            Step::Rollback => {
                kv.rollback().unwrap();
                memory.rollback().unwrap();
                model = committed.clone();
                begin(&mut kv, &mut memory);
            }
            Step::Reopen => {
                drop(kv);
                (kv, _) = SqliteKv::open(&path, SMALL).unwrap();
                memory = memory.committed();
                model = committed.clone();
                begin(&mut kv, &mut memory);
            }
            Step::Copy => {
                let other = dir.path().join(format!("copy{at}.db"));
                copy(&path, &other, None);
                let (other, _) = SqliteKv::open(&other, SMALL).unwrap();
                assert!(content(&other) == committed, "the copy holds what was committed");
            }
            Step::Range(table, from, to, limit) => {
                let all = rows(&model, table);
                let inside = |k: &Vec<u8>| *k >= from && to.as_ref().is_none_or(|to| k < to);
                let expected: Vec<Pair> = all.iter().filter(|(k, _)| inside(k)).take(limit).cloned().collect();
                for kv in [&kv as &dyn Kv, &memory] {
                    assert_eq!(kv.range(table, &from, to.as_deref(), limit).unwrap(), expected);
                    assert_eq!(kv.last(table).unwrap(), all.last().cloned());
                    assert_eq!(kv.get(table, &from).unwrap(), model.get(&(table, from.clone())).cloned());
                }
            }
        }
    }
    assert!(content(&kv) == model && content(&memory) == model);
    kv.check().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn it_does_what_plain_maps_do(steps in prop::collection::vec(step(), 0..120)) {
        run(steps);
    }
}

/// Twelve transactions of several pages each: state `n` holds the number `n`, and as many rows.
fn twelve(path: &Path) -> SqliteKv {
    let (mut kv, _) = SqliteKv::open(path, SMALL).unwrap();
    for n in 1..=12u8 {
        kv.begin().unwrap();
        kv.put(Table::Meta, b"n", &[n]).unwrap();
        for row in 0..n {
            kv.put(Table::Records, &[row], &[n; 3_000]).unwrap();
        }
        kv.commit().unwrap();
    }
    kv
}

/// The number of the state that a database shows, which must be whole; 0 for one that holds nothing.
fn state(path: &Path) -> u8 {
    let (kv, _) = SqliteKv::open(path, SMALL).unwrap();
    let n = kv.get(Table::Meta, b"n").unwrap().map_or(0, |v| v[0]);
    let rows: Vec<Pair> = (0..n).map(|row| (vec![row], vec![n; 3_000])).collect();
    assert!(kv.range(Table::Records, b"", None, 100).unwrap() == rows, "state {n} is whole");
    kv.check().unwrap();
    n
}

#[test]
fn a_log_cut_anywhere_opens_to_a_whole_state() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("database.db");
    let kv = twelve(&path);
    let log = fs::metadata(dir.path().join("database.db-wal")).unwrap().len() as usize;
    let mut before = 0;
    let mut seen = std::collections::BTreeSet::new();
    for bytes in (0..=log).step_by(1_371).chain([log]) {
        let cut = dir.path().join("cut.db");
        copy(&path, &cut, Some(bytes));
        let n = state(&cut);
        assert!(n >= before, "a longer log never shows an older state");
        before = n;
        seen.insert(n);
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), (0..=12).collect::<Vec<_>>());
    drop(kv);
}

#[test]
fn a_log_with_a_torn_end_opens_to_a_whole_state() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("database.db");
    let kv = twelve(&path);
    let log = fs::read(dir.path().join("database.db-wal")).unwrap();
    for torn in (512..40_000).step_by(4_096) {
        let cut = dir.path().join("torn.db");
        copy(&path, &cut, None);
        let mut bytes = log.clone();
        let end = bytes.len();
        bytes[end - torn..][..512].fill(0xa5);
        fs::write(dir.path().join("torn.db-wal"), bytes).unwrap();
        let n = state(&cut);
        assert!((10..12).contains(&n), "torn {torn} bytes before the end: {n}");
    }
    drop(kv);
}
