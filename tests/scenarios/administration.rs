//! An administrator with only the manual in hand: what he gets wrong is said with its path, its cause and the next step, and
//! what comes back is taken up by itself.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Cluster, FOLDER};
use e2e::member::{Member, User};
use e2e::mount::Mount;
use e2e::random::Random;
use e2e::skip;
use e2e::snapshot::Snapshot;
use e2e::trees;
use e2e::until::{Look, until};
use serde_json::Value;

/// The folder's root is gone, or another one.
const EVENT_ROOT: u64 = 2004;
/// Initial sync is complete.
const EVENT_INITIAL_SYNC: u64 = 4104;
/// The private directory cannot be used.
const EVENT_PRIVATE: u64 = 7010;
/// What lay here went to `PreExisting`.
const EVENT_PRE_EXISTING: u64 = 7011;

fn event(member: &Member, number: u64, words: &[&str]) -> Result<Value> {
    until(&format!("event {number} of {} with {words:?}", member.name), Duration::from_secs(60), || {
        let events = member.events(number)?;
        let found = events.iter().find(|event| words.iter().all(|word| event.to_string().contains(word)));
        Ok(found.cloned().map_or_else(|| Look::NotYet(format!("{events:?}")), Look::Yes))
    })
}

/// How a folder stands by `status`.
fn folder(member: &Member, name: &str) -> Result<Option<Value>> {
    let status: Value = serde_json::from_str(&member.run(&["status", "--json"])?)?;
    let folders = status["folders"].as_array().context("status lists folders")?;
    Ok(folders.iter().find(|folder| folder["name"] == name).cloned())
}

#[test]
fn a_disk_that_was_unmounted_lazily_is_taken_up_when_it_is_mounted_again() -> Result<()> {
    if !skip::root_or_skip("mounting a directory") {
        return Ok(());
    }
    let cluster = Cluster::joined(2, User::Same)?;
    let (one, two) = (&cluster.members[0], &cluster.members[1]);
    let disk = two.home.join("disk");
    fs::create_dir(&disk)?;
    let mount = Mount::bind(&disk, &two.tree())?;
    cluster.create_folder("mesh")?;
    trees::many(&one.tree(), 50, &mut Random::for_test("unmounted lazily"))?;
    cluster.settle()?;

    drop(mount);
    let path = two.tree().display().to_string();
    event(two, EVENT_ROOT, &[&path, "mount"])?;
    let stands = folder(two, FOLDER)?.context("the folder is listed")?;
    ensure!(stands["state"] == "stopped" && stands["error"].to_string().contains(&path), "{stands}");
    // Nothing is made in the bare mount point, and nothing is removed anywhere: not even what people do meanwhile goes wrong.
    trees::write(&one.tree().join("made meanwhile"), b"by one")?;
    trees::write(&disk.join("made on the disk meanwhile"), b"by two")?;
    let expected = Snapshot::take(&one.tree())?;
    ensure!(fs::read_dir(two.tree())?.next().is_none(), "something was made in the mount point");

    let mount = Mount::bind(&disk, &two.tree())?;
    cluster.settle()?;
    ensure!(two.tree().join("made meanwhile").exists() && one.tree().join("made on the disk meanwhile").exists());
    fs::remove_file(one.tree().join("made on the disk meanwhile"))?;
    ensure!(Snapshot::take(&one.tree())? == expected, "something was removed while the disk was away");
    for member in &cluster.members {
        ensure!(member.preserved(FOLDER, "unseen")?.is_empty(), "{}", member.name);
    }
    drop(cluster);
    drop(mount);
    Ok(())
}

#[test]
fn a_private_directory_that_is_moved_away_stops_the_folder_until_it_is_back() -> Result<()> {
    let cluster = Cluster::mesh(2)?;
    let (one, two) = (&cluster.members[0], &cluster.members[1]);
    trees::write(&one.tree().join("before"), b"before")?;
    cluster.settle()?;
    let (private, away) = (two.tree().join(".anabranch"), two.home.join("away"));
    fs::rename(&private, &away)?;
    event(two, EVENT_PRIVATE, &[&private.display().to_string(), "No such file"])?;
    trees::write(&one.tree().join("after"), b"after")?;
    event(two, EVENT_ROOT, &[&private.display().to_string(), "is missing"])?;
    ensure!(!private.exists(), "the private directory was begun anew");
    fs::rename(&away, &private)?;
    cluster.settle()?;
    ensure!(fs::read(two.tree().join("after"))? == b"after" && one.tree().join("before").exists());
    Ok(())
}

#[test]
fn a_private_directory_that_belongs_to_somebody_else_is_said_with_its_path_and_cause() -> Result<()> {
    if !(skip::root_or_skip("another user") && skip::programs_or_skip(&["setpriv"])) {
        return Ok(());
    }
    let user = 65_534;
    let cluster = Cluster::start(2, "mesh", User::Number(user))?;
    let (one, two) = (&cluster.members[0], &cluster.members[1]);
    let private = two.tree().join(".anabranch");
    std::os::unix::fs::chown(&private, Some(0), Some(0))?;
    event(two, EVENT_PRIVATE, &[&private.display().to_string(), "Permission denied"])?;
    std::os::unix::fs::chown(&private, Some(user), Some(user))?;
    trees::write(&one.tree().join("file"), b"file")?;
    std::os::unix::fs::chown(one.tree().join("file"), Some(user), Some(user))?;
    cluster.settle()
}

#[test]
fn after_a_damaged_database_it_is_said_how_many_items_went_aside() -> Result<()> {
    let mut cluster = Cluster::mesh(2)?;
    trees::write(&cluster.members[0].tree().join("both have it"), b"both")?;
    cluster.settle()?;
    let ended = cluster.members[1].events(EVENT_INITIAL_SYNC)?.len();
    cluster.members[1].stop()?;
    let tree = cluster.members[1].tree();
    fs::write(tree.join(".anabranch/database"), [0x5a; 65_536])?;
    for name in ["one", "two", "directory/three", "directory/four"] {
        trees::write(&tree.join(name), name.as_bytes())?;
    }
    cluster.members[1].serve()?;
    cluster.settle()?;
    let two = &cluster.members[1];
    event(two, EVENT_PRE_EXISTING, &["3 "])?;
    ensure!(two.events(EVENT_PRE_EXISTING)?.len() == 1);
    ensure!(two.events(EVENT_INITIAL_SYNC)?.len() > ended, "the end of the comparison is not said");

    // All of them come back with one command, and not with a number that is none.
    let count = two.preserved(FOLDER, "unseen")?.len();
    ensure!(count == 3, "{count}");
    let numbers: Vec<String> = two.preserved(FOLDER, "unseen")?.iter().map(|item| item["number"].to_string()).collect();
    two.ask(&["preserved", "restore", FOLDER, &numbers[0], "999"])?.refused(2, &["999", "preserved list"])?;
    ensure!(two.preserved(FOLDER, "unseen")?.len() == 3, "something was restored beside a wrong number");
    let head = two.run(&["preserved", "list", FOLDER])?;
    ensure!(head.contains("WHEN") && head.contains(" UTC  "), "no time in\n{head}");
    let restored = two.run(&["preserved", "restore", FOLDER, &numbers[0], &numbers[1]])?;
    ensure!(restored.lines().count() == 2, "{restored}");
    two.ask(&["preserved", "restore", FOLDER])?.refused(2, &["--all"])?;
    two.ask(&["preserved", "restore", FOLDER, &numbers[2], "--all"])?.refused(2, &["--all"])?;
    two.run(&["preserved", "restore", FOLDER, "--all"])?;
    ensure!(two.preserved(FOLDER, "unseen")?.is_empty());
    cluster.settle()?;
    let one = cluster.members[0].tree();
    ensure!(["one", "two", "directory/three", "directory/four"].iter().all(|name| one.join(name).exists()));
    Ok(())
}

#[test]
fn an_item_that_cannot_be_restored_stops_none_of_the_others() -> Result<()> {
    let cluster = Cluster::mesh(2)?;
    let (one, two) = (&cluster.members[0], &cluster.members[1]);
    for name in ["a", "b", "c"] {
        trees::write(&one.tree().join(name), name.as_bytes())?;
    }
    cluster.settle()?;
    for name in ["a", "b", "c"] {
        fs::remove_file(one.tree().join(name))?;
    }
    cluster.settle()?;
    let items = two.preserved(FOLDER, "seen")?;
    let kept = items.iter().find(|item| item["path"] == "b").context("`b` is preserved")?;
    fs::remove_file(two.tree().join(kept["kept"].as_str().context("it says where")?))?;
    let done = two.ask(&["preserved", "restore", FOLDER, "--all"])?;
    done.refused(3, &["1 of 3", &format!("item {} ", kept["number"])])?;
    ensure!(done.out.lines().collect::<Vec<_>>().len() == 2, "{done}");
    cluster.settle()?;
    ensure!(one.tree().join("a").exists() && one.tree().join("c").exists() && !one.tree().join("b").exists());
    Ok(())
}
