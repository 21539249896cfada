//! Without root: a user's own files, with what that allows.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::Path;

use anyhow::{Result, ensure};
use e2e::cluster::Cluster;
use e2e::member::{User, ordinary_user};
use e2e::random::Random;
use e2e::snapshot::Snapshot;
use e2e::trees;

/// Gives a whole tree to the members' user, as if he had made it.
fn give(path: &Path, user: User) -> Result<()> {
    let User::Number(number) = user else { return Ok(()) };
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        std::os::unix::fs::lchown(entry.path(), Some(number), Some(number))?;
        if entry.file_type()?.is_dir() {
            give(&entry.path(), user)?;
        }
    }
    chown(path, Some(number), Some(number)).map_err(Into::into)
}

#[test]
fn members_of_an_ordinary_user_replicate_his_files() -> Result<()> {
    let Some(user) = ordinary_user() else { return Ok(()) };
    let cluster = Cluster::start(3, "mesh", user)?;
    let made = cluster.dir().join("made");
    trees::many(&made.join("files"), 200, &mut Random::for_test("ordinary user"))?;
    trees::write(&made.join("odd \n name"), b"odd")?;
    std::os::unix::fs::symlink("nowhere", made.join("link"))?;
    give(&made, user)?;
    let tree = cluster.members[0].tree();
    fs::rename(&made, tree.join("made"))?;
    cluster.settle()?;
    fs::rename(tree.join("made/files/d000"), tree.join("moved"))?;
    fs::remove_dir_all(tree.join("made/files/d001"))?;
    cluster.settle()?;
    cluster.expect_intent(&Snapshot::take(&tree)?)?;
    cluster.expect_verified()
}

#[test]
fn directories_that_their_owner_may_not_write_are_filled_and_keep_their_mode() -> Result<()> {
    let Some(user) = ordinary_user() else { return Ok(()) };
    let cluster = Cluster::start(2, "mesh", user)?;
    let set = |path: &Path, mode: u32| fs::set_permissions(path, fs::Permissions::from_mode(mode));
    let made = cluster.dir().join("made");
    for name in ["a", "b", "inner/c"] {
        trees::write(&made.join(name), name.as_bytes())?;
    }
    trees::set_mtime(&made.join("inner"), 1_000_000_000, 7)?;
    give(&made, user)?;
    let tree = cluster.members[0].tree();
    let locked = tree.join("locked");
    fs::rename(&made, &locked)?;
    set(&locked.join("inner"), 0o555)?;
    set(&locked, 0o555)?;
    cluster.settle()?;
    // An edit, a new file, a rename and a delete, by somebody who opens the directory for it.
    set(&locked, 0o755)?;
    fs::write(locked.join("a"), b"edited")?;
    fs::rename(locked.join("b"), locked.join("moved"))?;
    fs::remove_file(locked.join("inner/c"))?;
    trees::write(&locked.join("inner/new"), b"new")?;
    give(&locked, user)?;
    set(&locked, 0o555)?;
    cluster.settle()?;
    for member in &cluster.members {
        for name in ["locked", "locked/inner"] {
            let mode = fs::metadata(member.tree().join(name))?.mode() & 0o7777;
            ensure!(mode == 0o555, "{name} of {} has mode {mode:o}", member.name);
        }
    }
    // A whole tree of them moves, and goes.
    fs::rename(&locked, tree.join("elsewhere"))?;
    cluster.settle()?;
    fs::remove_dir_all(tree.join("elsewhere"))?;
    cluster.settle()?;
    cluster.expect_intent(&Snapshot::take(&tree)?)?;
    cluster.expect_verified()
}

#[test]
fn an_owner_that_an_ordinary_user_cannot_give_is_not_taken_from_the_others() -> Result<()> {
    let Some(User::Number(number)) = ordinary_user() else {
        e2e::skip::skip("not root: a member of root and one of another user are needed");
        return Ok(());
    };
    // The first member runs as root, the second as somebody else.
    let mut cluster = Cluster::joined(1, User::Same)?;
    let mut other = e2e::member::Member::prepare(cluster.dir(), "hq2", User::Number(number))?;
    let invitation = cluster.members[0].invite("hq2")?;
    other.ask_to_join(&invitation)?.done()?;
    other.serve()?;
    cluster.members.push(other);
    cluster.create_folder("mesh")?;
    let (one, two) = (cluster.members[0].tree(), cluster.members[1].tree());
    trees::write(&one.join("owned"), b"by user 1")?;
    chown(one.join("owned"), Some(1), Some(1))?;
    e2e::until::until_true("the file to arrive", std::time::Duration::from_secs(60), || two.join("owned").exists())?;
    // An edit there carries the bytes, not the owner that it could not hold.
    fs::write(two.join("owned"), b"edited there")?;
    e2e::until::until_true("the edit to come back", std::time::Duration::from_secs(60), || {
        fs::read(one.join("owned")).is_ok_and(|bytes| bytes == b"edited there")
    })?;
    let meta = fs::metadata(one.join("owned"))?;
    ensure!((meta.uid(), meta.gid()) == (1, 1), "the owner became {}:{}", meta.uid(), meta.gid());
    Ok(())
}
