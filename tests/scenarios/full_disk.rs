//! Disks that are full: what has no room waits, everything else goes on, and nothing is lost.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::cluster::{Cluster, FOLDER};
use e2e::member::User;
use e2e::mount::Mount;
use e2e::random::Random;
use e2e::skip;
use e2e::trees;
use e2e::until::until_true;

const PATIENCE: Duration = Duration::from_secs(60);

/// Takes the disk to the last byte.
fn fill(file: &Path) -> Result<()> {
    let mut filler = fs::File::create(file)?;
    for bytes in [1 << 20, 4096, 1] {
        let piece = vec![1; bytes];
        while filler.write_all(&piece).is_ok() {}
    }
    Ok(())
}

fn free_bytes(at: &Path) -> Result<u64> {
    let disk = rustix::fs::statvfs(at)?;
    Ok(disk.f_bavail * disk.f_frsize)
}

#[test]
fn a_full_disk_waits_for_room_and_the_rest_goes_on() -> Result<()> {
    if !skip::root_or_skip("mounting a small file system") {
        return Ok(());
    }
    let cluster = Cluster::joined(2, User::Same)?;
    let (one, two) = (&cluster.members[0], &cluster.members[1]);
    let mount = Mount::memory(&two.tree(), 24)?;
    cluster.create_folder("mesh")?;
    cluster.settle()?;
    let large = Random::for_test("full disk").bytes(40 << 20);
    trees::write(&one.tree().join("large"), &large)?;
    trees::write(&one.tree().join("small"), b"fits")?;
    until_true("the small file to arrive", Duration::from_secs(60), || two.tree().join("small").exists())?;
    let waited = one.ask(&["folder", "wait", FOLDER, "--timeout", "5s"])?;
    ensure!(waited.code == 1, "the large file cannot be there: {waited}");
    ensure!(format!("{}{}", waited.out, waited.err).contains("large"), "what is outstanding is not named: {waited}");
    two.event_with(&["large", "space"])?;
    ensure!(!two.tree().join("large").exists(), "a part of a file is shown");
    // It still writes and sends what is done there.
    trees::write(&two.tree().join("back"), b"from the full disk")?;
    until_true("a file of the full member", Duration::from_secs(60), || one.tree().join("back").exists())?;

    mount.change("size=256m")?;
    cluster.settle()?;
    cluster.expect_verified()?;
    drop(cluster);
    drop(mount);
    Ok(())
}

#[test]
fn a_member_whose_disk_is_full_to_the_last_byte_relays_deletes_and_renames_on_ext4() -> Result<()> {
    relays_though_full("ext4", 320)
}

#[test]
fn a_member_whose_disk_is_full_to_the_last_byte_relays_deletes_and_renames_on_xfs() -> Result<()> {
    relays_though_full("xfs", 320)
}

fn relays_though_full(kind: &str, mebibytes: u64) -> Result<()> {
    let make = format!("mkfs.{kind}");
    if !skip::root_or_skip("mounting a small file system") || !skip::programs_or_skip(&[&make]) {
        return Ok(());
    }
    let cluster = Cluster::joined(3, User::Same)?;
    let [one, two, three] = [0, 1, 2].map(|at| cluster.members[at].tree());
    let image = cluster.dir().join("disk.img");
    let mount = Mount::image(&image, kind, mebibytes, &two)?;
    if kind == "ext4" {
        fs::remove_dir(two.join("lost+found"))?;
    }
    cluster.create_folder("chain")?;
    for at in 0..400 {
        trees::write(&one.join(format!("files/{at}")), format!("file {at}").as_bytes())?;
    }
    cluster.settle()?;

    fill(&two.join("filler"))?;
    ensure!(free_bytes(&two)? < 1 << 20, "there is room left");
    for at in 0..400 {
        let file = one.join(format!("files/{at}"));
        if at % 2 == 0 {
            fs::remove_file(file)?;
        } else {
            fs::rename(file, one.join(format!("files/renamed {at}")))?;
        }
    }
    for end in [&two, &three] {
        let arrived = || (0..400).all(|at| end.join(format!("files/renamed {at}")).exists() == (at % 2 == 1));
        until_true("renames to pass the full member", PATIENCE, arrived)?;
        until_true("deletes to pass the full member", PATIENCE, || {
            (0..400).all(|at| !end.join(format!("files/{at}")).exists())
        })?;
    }
    // What is written waits, by name, and the folder is not stopped.
    trees::write(&one.join("waits"), &[7; 1000])?;
    cluster.members[1].event_with(&["waits", "space"])?;
    ensure!(cluster.members[1].events(2106)?.is_empty(), "the folder was stopped");

    fs::remove_file(two.join("filler"))?;
    cluster.settle()?;
    cluster.expect_verified()?;
    drop(cluster);
    drop(mount);
    Ok(())
}

#[test]
fn replication_leaves_room_on_a_disk_and_deletes_elsewhere_make_more() -> Result<()> {
    if !skip::root_or_skip("mounting a small file system") {
        return Ok(());
    }
    let cluster = Cluster::joined(2, User::Same)?;
    let [one, two] = [0, 1].map(|at| cluster.members[at].tree());
    let mount = Mount::memory(&two, 64)?;
    cluster.create_folder("mesh")?;
    cluster.settle()?;
    let mut random = Random::for_test("replication leaves room");
    for at in 0..90 {
        trees::write(&one.join(format!("first/{at}")), &random.bytes(1 << 20))?;
    }
    cluster.members[1].event_with(&["first/", "space"])?;
    let left = free_bytes(&two)?;
    ensure!(left > 1 << 20, "replication left {left} bytes");

    fs::remove_dir_all(one.join("first"))?;
    for at in 0..40 {
        trees::write(&one.join(format!("second/{at}")), &random.bytes(1 << 20))?;
    }
    cluster.settle()?;
    cluster.expect_verified()?;
    ensure!(cluster.members[1].events(2106)?.is_empty(), "the folder was stopped");
    drop(cluster);
    drop(mount);
    Ok(())
}
