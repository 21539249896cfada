//! Somebody on a member who wants replication to write where it must not.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use e2e::cluster::Cluster;
use e2e::random::Random;
use e2e::snapshot::{self, Snapshot};
use e2e::trees;
use e2e::until::until_true;

/// Swaps `dir` for a symlink to `outside` and back, as fast as it goes.
///
/// The link is relative, so that on the other member, where it is replicated to, it leads nowhere.
fn swap_until(stop: &AtomicBool, dir: &Path, outside: &str) -> u64 {
    let aside = dir.with_extension("aside");
    let mut swaps = 0;
    while !stop.load(Ordering::Relaxed) {
        // Every step may fail, because replication is at work in the same place: that is the point.
        if fs::rename(dir, &aside).is_ok() {
            let _ = symlink(outside, dir);
            swaps += 1;
        }
        let _ = fs::remove_file(dir);
        let _ = fs::rename(&aside, dir);
    }
    let _ = fs::remove_file(dir);
    let _ = fs::rename(&aside, dir);
    swaps
}

#[test]
fn swapping_directories_for_symlinks_changes_nothing_outside_the_root() -> Result<()> {
    let cluster = Cluster::mesh(2)?;
    let mut random = Random::for_test("adversary");
    let (one, two) = (cluster.members[0].tree(), cluster.members[1].tree());
    trees::many(&one.join("target"), 100, &mut random)?;
    cluster.settle()?;
    // The same names as inside: an overwrite or delete that went astray would find something to hit.
    let outside = cluster.members[1].home.join("outside");
    trees::many(&outside, 100, &mut Random::for_test("outside"))?;
    let before = Snapshot::take(&outside)?;

    let stop = Arc::new(AtomicBool::new(false));
    let adversary = {
        let (stop, dir) = (Arc::clone(&stop), two.join("target"));
        thread::spawn(move || swap_until(&stop, &dir, "../outside"))
    };
    for round in 0..30 {
        // These fail where the adversary's link has just arrived; the next round finds the directory again.
        let _ = trees::many(&one.join("target"), 100, &mut random);
        let _ = fs::remove_dir_all(one.join("target/d001"));
        trees::write(&one.join(format!("marker{round}")), b"round")?;
        // The marker arrives, so the round's work was under way while the directories were swapped.
        until_true("a round to arrive", Duration::from_secs(60), || two.join(format!("marker{round}")).exists())?;
    }
    stop.store(true, Ordering::Relaxed);
    let swaps = adversary.join().map_err(|_| anyhow!("the adversary panicked"))?;
    eprintln!("{swaps} swaps");
    ensure!(swaps > 0, "the adversary never came to swap");
    cluster.settle_within(Duration::from_secs(180))?;
    let after = Snapshot::take(&outside)?;
    ensure!(after == before, "outside changed: {}", snapshot::explain("before", &before, "after", &after));
    Ok(())
}

#[test]
fn a_symlink_in_the_place_of_a_directory_is_replicated_and_never_followed() -> Result<()> {
    let cluster = Cluster::mesh(2)?;
    let (one, two) = (cluster.members[0].tree(), cluster.members[1].tree());
    let outside = cluster.members[1].home.join("outside");
    trees::write(&outside.join("secret"), b"secret")?;
    trees::write(&one.join("dir/inner"), b"inner")?;
    cluster.settle()?;
    fs::remove_dir_all(two.join("dir"))?;
    symlink(&outside, two.join("dir"))?;
    cluster.settle()?;
    ensure!(fs::read_link(one.join("dir"))? == outside, "the link itself is what is replicated");
    ensure!(fs::read(outside.join("secret"))? == b"secret");
    ensure!(!outside.join("inner").exists());
    Ok(())
}

#[test]
fn reserved_names_are_not_replicated_and_the_programs_own_directory_is_closed_to_others() -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let cluster = Cluster::mesh(2)?;
    let (one, two) = (cluster.members[0].tree(), cluster.members[1].tree());
    trees::write(&one.join("below/.anabranch-mine"), b"a user's file of a reserved name")?;
    trees::write(&one.join("below/marker"), b"marker")?;
    until_true("the marker", Duration::from_secs(60), || two.join("below/marker").exists())?;
    cluster.members[0].event_with(&["below/.anabranch-mine"])?;
    ensure!(!two.join("below/.anabranch-mine").exists(), "a reserved name was replicated");
    ensure!(one.join("below/.anabranch-mine").exists(), "what was not replicated was taken away");
    let mode = fs::metadata(two.join(".anabranch"))?.permissions().mode();
    ensure!(mode & 0o077 == 0, "mode {mode:o} lets others in");
    Ok(())
}
