//! Everything that is carried arrives as it was: odd names, modes, owners, times, xattrs, ACLs, links, holes; and real
//! trees.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::cluster::Cluster;
use e2e::snapshot::Snapshot;
use e2e::{skip, trees};

#[test]
fn one_of_everything_arrives_as_it_was() -> Result<()> {
    let cluster = Cluster::mesh(3)?;
    let tree = cluster.members[0].tree();
    trees::everything(&tree)?;
    let written = Snapshot::take(&tree)?;
    cluster.settle()?;
    cluster.expect_intent(&written)?;
    let blocks = fs::metadata(cluster.members[2].tree().join("sparse"))?.blocks();
    ensure!(blocks * 512 < 1 << 20, "64 MiB with 8 KiB of data take {blocks} blocks: the holes are gone");
    cluster.expect_verified()
}

#[test]
fn changes_of_attributes_alone_arrive() -> Result<()> {
    let cluster = Cluster::mesh(2)?;
    let tree = cluster.members[0].tree();
    trees::everything(&tree)?;
    cluster.settle()?;
    for name in ["644", "755"] {
        fs::set_permissions(tree.join("modes").join(name), fs::Permissions::from_mode(0o600))?;
    }
    trees::set_mtime(&tree.join("times/1970"), 1_600_000_000, 1)?;
    fs::set_permissions(tree.join("empty"), fs::Permissions::from_mode(0o700))?;
    if skip::has_program("setfacl") {
        e2e::program::tool(&tree, "setfacl", &["-b", "acls/file"])?;
    }
    let written = Snapshot::take(&tree)?;
    cluster.settle()?;
    cluster.expect_intent(&written)
}

#[test]
fn a_file_becomes_a_directory_and_a_directory_a_file() -> Result<()> {
    let cluster = Cluster::mesh(2)?;
    let tree = cluster.members[0].tree();
    trees::write(&tree.join("file"), b"file")?;
    trees::write(&tree.join("dir/inner"), b"inner")?;
    std::os::unix::fs::symlink("target", tree.join("link"))?;
    cluster.settle()?;
    fs::remove_file(tree.join("file"))?;
    trees::write(&tree.join("file/inner"), b"now below")?;
    fs::remove_dir_all(tree.join("dir"))?;
    trees::write(&tree.join("dir"), b"now a file")?;
    fs::remove_file(tree.join("link"))?;
    trees::write(&tree.join("link"), b"now a file")?;
    let written = Snapshot::take(&tree)?;
    cluster.settle()?;
    cluster.expect_intent(&written)
}

#[test]
fn sockets_and_fifos_are_skipped_and_said() -> Result<()> {
    let cluster = Cluster::mesh(2)?;
    let tree = cluster.members[0].tree();
    e2e::program::tool(&tree, "mkfifo", &["pipe"])?;
    trees::write(&tree.join("beside"), b"beside")?;
    cluster.settle()?;
    ensure!(!cluster.members[1].tree().join("pipe").exists());
    ensure!(cluster.members[1].tree().join("beside").is_file());
    cluster.members[0].event_with(&["pipe"]).map(drop)
}

#[test]
fn a_hard_link_is_a_file_of_its_own_and_no_install_writes_through_it() -> Result<()> {
    let cluster = Cluster::mesh(2)?;
    let (one, two) = (cluster.members[0].tree(), cluster.members[1].tree());
    trees::write(&two.join("name"), b"before")?;
    let outside = cluster.dir().join("outside");
    fs::hard_link(two.join("name"), &outside)?;
    cluster.settle()?;
    fs::write(one.join("name"), b"after")?;
    cluster.settle()?;
    ensure!(fs::read(two.join("name"))? == b"after");
    ensure!(fs::read(&outside)? == b"before", "an install wrote through a hard link");
    Ok(())
}

/// A real tree goes to all members as it is.
fn carry_real_tree(from: &Path) -> Result<()> {
    let wanted = usize::try_from(e2e::setting("REAL_FILES", 3_000)).context("REAL_FILES is out of range")?;
    let cluster = Cluster::mesh(3)?;
    let tree = cluster.members[0].tree();
    let copied = trees::real(from, &tree, wanted)?;
    ensure!(copied > 0, "nothing to copy in {}", from.display());
    eprintln!("{copied} entries of {}", from.display());
    let written = Snapshot::take(&tree)?;
    cluster.settle_within(Duration::from_secs(300))?;
    cluster.expect_intent(&written)?;
    cluster.expect_verified()
}

#[test]
fn usr_share_arrives_as_it_was() -> Result<()> {
    carry_real_tree(Path::new("/usr/share"))
}

#[test]
fn the_rust_documentation_arrives_as_it_was() -> Result<()> {
    let output = Command::new("rustc").args(["--print", "sysroot"]).output().context("ask rustc where it lives")?;
    let html = Path::new(String::from_utf8_lossy(&output.stdout).trim()).join("share/doc/rust/html");
    if !html.is_dir() {
        skip::skip("the rust documentation is not installed (rustup component add rust-docs)");
        return Ok(());
    }
    carry_real_tree(&html)
}
