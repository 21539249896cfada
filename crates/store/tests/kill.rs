//! A process killed while it writes leaves a database that holds every commit that it was told of, whole.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anabranch_engine::kv::{Kv, Table};
use anabranch_store::{Options, SqliteKv};

const PATH: &str = "ANABRANCH_STORE_KILL_PATH";
const OPTIONS: Options = Options { cache_bytes: 64 << 10 };

/// Commit `n` writes `n` here and to a hundred rows that a walk with step 37 spreads over a thousand.
fn write(kv: &mut SqliteKv, n: u64) {
    kv.begin().unwrap();
    kv.put(Table::Meta, b"n", &n.to_be_bytes()).unwrap();
    for row in 0..100 {
        kv.put(Table::Records, &((n * 37 + row) % 1_000).to_be_bytes(), &n.to_be_bytes().repeat(40)).unwrap();
    }
    kv.commit().unwrap();
}

fn last(kv: &SqliteKv) -> u64 {
    kv.get(Table::Meta, b"n").unwrap().map_or(0, |v| u64::from_be_bytes(v.try_into().unwrap()))
}

/// Not a test of its own: what the killed process runs.
#[test]
fn child() {
    let Some(path) = std::env::var_os(PATH).map(PathBuf::from) else { return };
    let (mut kv, _) = SqliteKv::open(&path, OPTIONS).unwrap();
    let mut out = std::io::stdout();
    for n in last(&kv) + 1.. {
        write(&mut kv, n);
        out.write_all(format!("committed {n}\n").as_bytes()).and_then(|()| out.flush()).unwrap();
    }
}

/// Runs the child until it has told of `count` commits, kills it, and returns the last that it told of.
fn run_and_kill(path: &Path, count: usize) -> u64 {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["child", "--exact", "--nocapture", "--test-threads=1"])
        .env(PATH, path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut told = || lines.by_ref().map(Result::unwrap).find_map(|l| l.rsplit_once("committed ")?.1.parse().ok());
    let mut n: u64 = 0;
    for _ in 0..count {
        n = told().expect("the child goes on");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // What it wrote to the pipe before it died was committed too.
    while let Some(later) = told() {
        n = later;
    }
    n
}

#[test]
fn every_commit_that_was_told_is_there_after_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("database.db");
    let mut expected = std::collections::BTreeMap::new();
    let mut done = 0;
    for round in 0..12 {
        let told = run_and_kill(&path, 1 + round * 7);
        let (kv, opened) = SqliteKv::open(&path, OPTIONS).unwrap();
        assert!(opened.log_left);
        let n = last(&kv);
        // The one that it was committing when it died may be there or not.
        assert!(n == told || n == told + 1, "told {told}, found {n}");
        for n in done + 1..=n {
            expected.extend((0..100).map(|row| ((n * 37 + row) % 1_000, n)));
        }
        done = n;
        let rows = kv.range(Table::Records, b"", None, usize::MAX).unwrap();
        let expected = expected.iter().map(|(row, n)| (row.to_be_bytes().to_vec(), n.to_be_bytes().repeat(40)));
        assert!(rows.into_iter().eq(expected), "round {round}");
        kv.check().unwrap();
    }
}
