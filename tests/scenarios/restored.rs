//! A member is put back from a backup of its files.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::cluster::{Cluster, FOLDER};
use e2e::program::run;
use e2e::trees::write;

fn copy(from: &Path, to: &Path) -> Result<()> {
    run(Command::new("cp").arg("-a").args([from, to]), Duration::from_secs(60))?.done().map(drop)
}

/// Every file is another one than the database says; what others have that is newer stays, and so does what they deleted.
#[test]
fn what_a_backup_of_the_files_brings_back_is_older_than_what_the_others_have() -> Result<()> {
    let mut cluster = Cluster::mesh(2)?;
    let (one, two) = (cluster.members[0].tree(), cluster.members[1].tree());
    for path in ["a", "b", "deleted", "moved", "deep/er/file", "as it was"] {
        fs::create_dir_all(one.join(path).parent().unwrap_or(&one))?;
        write(&one.join(path), format!("{path}, old").as_bytes())?;
    }
    cluster.settle()?;
    let (data, backup) = (cluster.members[1].data(), cluster.dir().join("backup"));
    cluster.members[1].stop()?;
    fs::create_dir(&backup)?;
    copy(&data, &backup.join("data"))?;
    copy(&two, &backup.join("tree"))?;
    cluster.members[1].serve()?;
    write(&one.join("a"), b"newer, of the first member")?;
    write(&two.join("b"), b"newer, of the second member")?;
    write(&two.join("deep/er/file"), b"newer, deep")?;
    fs::remove_file(one.join("deleted"))?;
    fs::rename(one.join("moved"), one.join("deep/moved"))?;
    cluster.settle()?;
    cluster.members[1].stop()?;
    fs::remove_dir_all(&data)?;
    fs::remove_dir_all(&two)?;
    copy(&backup.join("data"), &data)?;
    copy(&backup.join("tree"), &two)?;
    cluster.members[1].serve()?;
    cluster.settle()?;
    for tree in [&one, &two] {
        ensure!(fs::read(tree.join("a"))? == b"newer, of the first member");
        ensure!(fs::read(tree.join("b"))? == b"newer, of the second member");
        ensure!(fs::read(tree.join("deep/er/file"))? == b"newer, deep");
        ensure!(fs::read(tree.join("deep/moved"))? == b"moved, old" && !tree.join("moved").exists());
        ensure!(!tree.join("deleted").exists() && fs::read(tree.join("as it was"))? == b"as it was, old");
    }
    let unseen = cluster.members[0].preserved(FOLDER, "unseen")?;
    ensure!(unseen.is_empty(), "a newer version lost to the backup: {unseen:?}");
    Ok(())
}
