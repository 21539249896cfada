//! How many files a second the database takes in: 7 puts a file, 2,000 files a commit, 200,000 files.
//!
//! The keys have the shapes that a scan of a new folder makes: rising UIDs and change numbers, names by parent, file
//! handles that rise, and hashes at random. Run it with `--release`; arguments: directory, count of files.

use std::error::Error;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anabranch_engine::kv::{Kv, Table};
use anabranch_store::{Options, SqliteKv};

const FILES_PER_COMMIT: u64 = 2_000;
const FILES_PER_DIRECTORY: u64 = 200;

/// A well mixed number made of another one.
fn mixed(n: u64) -> u64 {
    let n = (n ^ (n >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (n ^ (n >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ (n >> 32)
}

fn key(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

fn put_file(kv: &mut SqliteKv, n: u64) -> Result<(), Box<dyn Error>> {
    let uid = key(&[&1u32.to_be_bytes(), &(1_700_000_000_000_000 + n * 40).to_be_bytes()]);
    let parent = key(&[&1u32.to_be_bytes(), &(n / FILES_PER_DIRECTORY).to_be_bytes()]);
    let name = format!("file-{:06}.txt", mixed(n) % 1_000_000);
    let node = n.to_be_bytes();
    let record = [n.to_le_bytes().as_slice(); 15].concat();
    kv.put(Table::Records, &uid, &record)?;
    kv.put(Table::Changes, &n.to_be_bytes(), &uid)?;
    kv.put(Table::Slots, &key(&[&parent, name.as_bytes(), &uid]), &[])?;
    kv.put(Table::Children, &key(&[&parent, &uid]), &[])?;
    kv.put(Table::Nodes, &node, &record[..80])?;
    kv.put(Table::NodeNames, &key(&[&parent, name.as_bytes()]), &node)?;
    kv.put(Table::NodeHashes, &key(&[&mixed(n ^ 0x5555).to_be_bytes(), &node]), &[])?;
    Ok(())
}

fn rate(count: u64, time: Duration) -> u64 {
    count * 1_000_000 / u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1)
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let scratch = tempfile::tempdir()?;
    let directory = arguments.next().map_or_else(|| scratch.path().to_owned(), PathBuf::from);
    let files: u64 = arguments.next().map_or(Ok(200_000), |n| n.parse())?;
    let path = directory.join("inserts.db");
    let (mut kv, _) = SqliteKv::open(&path, Options::default())?;
    let mut out = std::io::stdout().lock();

    let (start, mut committing) = (Instant::now(), Duration::ZERO);
    for first in (0..files).step_by(usize::try_from(FILES_PER_COMMIT)?) {
        kv.begin()?;
        for n in first..(first + FILES_PER_COMMIT).min(files) {
            put_file(&mut kv, n)?;
        }
        let commit = Instant::now();
        kv.commit()?;
        committing += commit.elapsed();
    }
    let took = start.elapsed();
    writeln!(
        out,
        "insert: {files} files in {took:.2?}: {} files/s, {} puts/s; {} commits took {committing:.2?}; {} bytes a file",
        rate(files, took),
        rate(files * 7, took),
        kv.commits(),
        std::fs::metadata(&path)?.len() / files.max(1),
    )?;

    let gets = files.min(200_000);
    let start = Instant::now();
    for n in 0..gets {
        kv.get(Table::Nodes, &(mixed(n) % files).to_be_bytes())?.ok_or("a node is missing")?;
    }
    writeln!(out, "get at random, no transaction: {} a second", rate(gets, start.elapsed()))?;

    let (start, mut from, mut seen) = (Instant::now(), vec![], 0);
    loop {
        let page = kv.range(Table::Changes, &from, None, 1_000)?;
        let Some((last, _)) = page.last() else { break };
        from = [last.as_slice(), &[0]].concat();
        seen += page.len() as u64;
    }
    writeln!(out, "range by change number, pages of 1,000: {} rows a second", rate(seen, start.elapsed()))?;
    kv.close()?;
    Ok(())
}
