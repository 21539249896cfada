//! A writer that opens, writes and closes one file in a loop, against a stream of installs of the same file: no write of
//! his is lost.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use e2e::cluster::Cluster;
use e2e::random::Random;
use e2e::until::until_true;

/// Lines that the writer adds to one version of the other side at most: files stay small.
const LINES_MAX: u64 = 2_000;

/// The first line: which version of the other side this file goes back to.
fn base_of(file: &File) -> Result<String> {
    let mut head = [0; 32];
    let length = file.read_at(&mut head, 0).context("read the contended file")?;
    Ok(String::from_utf8_lossy(&head[..length]).lines().next().unwrap_or_default().to_owned())
}

/// Appends lines, each with an open and a close of its own, in bursts that begin at any moment: while an install is far,
/// near, or under way. Gives how many lines it closed.
fn write_until(stop: &AtomicBool, path: &Path, installs: &AtomicU64) -> Result<u64> {
    let mut random = Random::for_test("contention");
    let (mut number, mut base, mut added) = (0, String::new(), 0);
    let open = || OpenOptions::new().read(true).append(true).open(path).context("open the contended file");
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..random.within(1..40) {
            let mut file = open()?;
            // What is read through the descriptor that writes is what this user saw when he wrote.
            let now = base_of(&file)?;
            if now != base {
                base = now;
                added = 0;
                installs.fetch_add(1, Ordering::Relaxed);
            }
            if added < LINES_MAX {
                file.write_all(format!("writer {number}\n").as_bytes()).context("append to the contended file")?;
                number += 1;
                added += 1;
            }
        }
        let patience = Duration::from_millis(random.within(0..200));
        let new_base = || File::open(path).is_ok_and(|file| base_of(&file).is_ok_and(|now| now != base));
        // In vain is as good: then the next burst comes before, or into, the install.
        let _ = until_true("an install", patience, || stop.load(Ordering::Relaxed) || new_base());
    }
    Ok(number)
}

/// Every line of the writer that stands in some file beneath `dir`.
fn collect(dir: &Path, lines: &mut BTreeSet<u64>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), lines)?;
        } else if let Ok(text) = fs::read_to_string(entry.path()) {
            lines.extend(text.lines().filter_map(|line| line.strip_prefix("writer ")?.parse::<u64>().ok()));
        }
    }
    Ok(())
}

#[test]
fn a_writer_in_a_loop_loses_no_write_to_installs_of_the_same_file() -> Result<()> {
    let wanted = e2e::setting("INSTALLS", 500);
    let cluster = Cluster::mesh(2)?;
    let (one, two) = (cluster.members[0].tree(), cluster.members[1].tree());
    let name = "contended";
    fs::write(one.join(name), "base 0\n")?;
    cluster.settle()?;

    let (stop, installs) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writer = {
        let (stop, installs, path) = (Arc::clone(&stop), Arc::clone(&installs), two.join(name));
        thread::spawn(move || write_until(&stop, &path, &installs))
    };
    let mut round = 0;
    let (begun, limit) = (Instant::now(), Duration::from_secs(120 + wanted));
    while installs.load(Ordering::Relaxed) < wanted && begun.elapsed() < limit && !writer.is_finished() {
        round += 1;
        // Renamed over: the other user's version is one file, too.
        fs::write(one.join("beside"), format!("base {round}\n"))?;
        fs::rename(one.join("beside"), one.join(name))?;
        let before = installs.load(Ordering::Relaxed);
        // Where the writer's own version wins no install comes of this round: the next one goes back to that version.
        let _ = until_true("an install", Duration::from_millis(500), || installs.load(Ordering::Relaxed) > before);
    }
    stop.store(true, Ordering::Relaxed);
    let written = writer.join().map_err(|_| anyhow!("the writer panicked"))??;
    let installs = installs.load(Ordering::Relaxed);
    eprintln!("{written} writes, {installs} installs, {round} versions from the other side");
    ensure!(installs >= wanted, "only {installs} of {wanted} installs within {} s", limit.as_secs());
    cluster.settle_within(Duration::from_secs(300))?;

    // Trees and everything preserved, on both members.
    let mut found = BTreeSet::new();
    for tree in [&one, &two] {
        collect(tree, &mut found)?;
    }
    let lost: Vec<u64> = (0..written).filter(|number| !found.contains(number)).take(20).collect();
    ensure!(lost.is_empty(), "of {written} writes these are nowhere: {lost:?}");
    Ok(())
}
