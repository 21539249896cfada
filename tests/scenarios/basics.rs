//! The main job: what happens on one member happens on the others.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::cluster::{Cluster, FOLDER};
use e2e::member::free_port;
use e2e::random::Random;
use e2e::snapshot::Snapshot;
use e2e::trees;
use e2e::until::{Look, until, until_true};

/// Without any command in between: changes are pushed, and seen by their watchers, within seconds.
const SOON: Duration = Duration::from_secs(20);

#[test]
fn a_file_written_edited_renamed_and_deleted_appears_so_on_two_others() -> Result<()> {
    let cluster = Cluster::mesh(3)?;
    let trees: Vec<_> = cluster.members.iter().map(e2e::member::Member::tree).collect();
    let everywhere = |what: &str, name: &str, bytes: Option<&[u8]>| {
        until_true(what, SOON, || trees.iter().all(|tree| fs::read(tree.join(name)).ok().as_deref() == bytes))
    };

    trees::write(&trees[0].join("plan.txt"), b"first")?;
    everywhere("a new file", "plan.txt", Some(b"first"))?;
    // Every member is a writer: the edit is made elsewhere than the file was.
    fs::write(trees[1].join("plan.txt"), b"second")?;
    everywhere("an edit", "plan.txt", Some(b"second"))?;
    fs::rename(trees[2].join("plan.txt"), trees[2].join("report.txt"))?;
    everywhere("a new name", "report.txt", Some(b"second"))?;
    everywhere("the old name's end", "plan.txt", None)?;
    fs::remove_file(trees[1].join("report.txt"))?;
    everywhere("a delete", "report.txt", None)?;

    cluster.settle()?;
    cluster.expect_intent(&Snapshot::default())
}

#[test]
fn a_directory_is_renamed_and_moved_with_all_that_is_in_it() -> Result<()> {
    let cluster = Cluster::mesh(3)?;
    let tree = cluster.members[0].tree();
    trees::many(&tree.join("old"), 300, &mut Random::for_test("directories"))?;
    cluster.settle()?;
    fs::rename(tree.join("old"), tree.join("new"))?;
    cluster.settle()?;
    fs::create_dir(tree.join("below"))?;
    fs::rename(tree.join("new"), tree.join("below/newer"))?;
    cluster.settle()?;
    ensure!(!cluster.members[2].tree().join("old").exists());
    cluster.expect_intent(&Snapshot::take(&tree)?)?;
    cluster.expect_verified()
}

#[test]
fn directories_that_swap_names_swap_them_everywhere() -> Result<()> {
    let cluster = Cluster::mesh(3)?;
    let tree = cluster.members[0].tree();
    for name in ["site", "site.new"] {
        trees::write(&tree.join(name).join("index"), name.as_bytes())?;
    }
    cluster.settle()?;
    // The usual way to put a new site in place.
    fs::rename(tree.join("site"), tree.join("site.old"))?;
    fs::rename(tree.join("site.new"), tree.join("site"))?;
    cluster.settle()?;
    for member in &cluster.members {
        ensure!(fs::read(member.tree().join("site/index"))? == b"site.new", "{}", member.name);
        ensure!(fs::read(member.tree().join("site.old/index"))? == b"site", "{}", member.name);
    }
    cluster.expect_intent(&Snapshot::take(&tree)?)
}

#[test]
fn a_member_that_comes_to_listen_elsewhere_is_found_again() -> Result<()> {
    let mut cluster = Cluster::mesh(3)?;
    let old = cluster.members[0].address();
    cluster.members[0].stop()?;
    cluster.members[0].port = free_port()?;
    let new = cluster.members[0].address();
    let file = cluster.members[0].data().join("anabranch.toml");
    let text = fs::read_to_string(&file)?;
    ensure!(text.contains(&old), "{text}");
    fs::write(&file, text.replace(&old, &new))?;
    cluster.members[0].serve()?;

    // The others pull from where it is now, though nobody but itself could tell them.
    trees::write(&cluster.members[0].tree().join("from.txt"), b"its new place")?;
    for member in &cluster.members {
        let there = member.tree().join("from.txt");
        until_true(&format!("{} to have it", member.name), SOON, || there.exists())?;
        until(&format!("{} to list the new address", member.name), SOON, || {
            let status = member.run(&["status", "--json"])?;
            Ok(Look::when(status.contains(&new) && !status.contains(&old), || status))
        })?;
    }
    cluster.settle()?;
    cluster.expect_intent(&Snapshot::take(&cluster.members[0].tree())?)
}

#[test]
fn folder_wait_covers_what_was_written_before_it() -> Result<()> {
    let cluster = Cluster::mesh(2)?;
    let (one, two) = (&cluster.members[0], &cluster.members[1]);
    for round in 0..10 {
        let name = format!("round{round}");
        trees::write(&one.tree().join(&name), name.as_bytes())?;
        one.run(&["folder", "wait", FOLDER, "--timeout", "60s"])?;
        ensure!(fs::read(two.tree().join(&name)).ok() == Some(name.into_bytes()), "round {round} was not waited for");
    }
    Ok(())
}

#[test]
fn hub_and_chain_carry_changes_of_every_member_to_every_other() -> Result<()> {
    for topology in ["hub:hq1", "chain"] {
        let cluster = Cluster::start(4, topology, e2e::member::User::Same)?;
        for member in &cluster.members {
            trees::many(&member.tree().join(&member.name), 50, &mut Random::for_test(&member.name))?;
        }
        cluster.settle()?;
        cluster.expect_intent(&Snapshot::take(&cluster.members[3].tree())?)?;
    }
    Ok(())
}

#[test]
fn a_member_that_was_away_catches_up_and_brings_what_it_has() -> Result<()> {
    let mut cluster = Cluster::mesh(3)?;
    let mut random = Random::for_test("away");
    trees::many(&cluster.members[0].tree().join("before"), 100, &mut random)?;
    cluster.settle()?;
    cluster.members[2].stop()?;
    // Both sides work meanwhile, in different places.
    trees::many(&cluster.members[0].tree().join("here"), 100, &mut random)?;
    fs::remove_dir_all(cluster.members[1].tree().join("before/d000"))?;
    trees::many(&cluster.members[2].tree().join("there"), 100, &mut random)?;
    fs::rename(cluster.members[2].tree().join("before/d001"), cluster.members[2].tree().join("moved"))?;
    cluster.settle()?;
    cluster.members[2].serve()?;
    cluster.settle()?;
    for member in &cluster.members {
        let tree = member.tree();
        ensure!(!tree.join("before/d000").exists() && !tree.join("before/d001").exists(), "{}", member.name);
        ensure!(tree.join("moved").is_dir() && tree.join("here").is_dir() && tree.join("there").is_dir());
    }
    cluster.expect_intent(&Snapshot::take(&cluster.members[2].tree())?)
}

#[test]
fn directories_moved_into_each_other_while_a_member_is_down_are_taken_up_by_it() -> Result<()> {
    let mut cluster = Cluster::mesh(2)?;
    let tree = cluster.members[0].tree();
    for dir in ["a", "b", "p", "p/k"] {
        trees::write(&tree.join(dir).join("file"), dir.as_bytes())?;
    }
    cluster.settle()?;
    cluster.members[0].stop()?;
    // What had the name `a` is found only by what it lies in now: moved, new, moved, new, and below what has the name.
    fs::rename(tree.join("a"), tree.join("p/k/a"))?;
    fs::create_dir(tree.join("b/new"))?;
    fs::rename(tree.join("p/k"), tree.join("b/new/k"))?;
    fs::create_dir_all(tree.join("a/new"))?;
    fs::rename(tree.join("b"), tree.join("a/new/b"))?;
    fs::create_dir(tree.join("b"))?;
    fs::rename(tree.join("p"), tree.join("b/p"))?;
    let left = Snapshot::take(&tree)?;
    cluster.members[0].serve()?;
    cluster.settle()?;
    cluster.expect_intent(&left)
}

#[test]
fn a_frozen_partner_stops_nobody_else() -> Result<()> {
    let cluster = Cluster::mesh(3)?;
    let frozen = &cluster.members[2];
    frozen.freeze()?;
    let tree = cluster.members[0].tree();
    trees::many(&tree, 100, &mut Random::for_test("frozen"))?;
    let other = cluster.members[1].tree();
    until_true("the other partner to have it", Duration::from_secs(60), || {
        e2e::referee::difference(&tree, &other).is_ok_and(|difference| difference.is_empty())
    })?;
    frozen.thaw()?;
    cluster.settle()
}

#[test]
fn equal_trees_are_adopted_and_others_preserved_at_the_initial_sync() -> Result<()> {
    let cluster = Cluster::joined(2, e2e::member::User::Same)?;
    let (one, two) = (cluster.members[0].tree(), cluster.members[1].tree());
    trees::many(&one, 100, &mut Random::for_test("seed"))?;
    e2e::program::tool(&one, "cp", &["-a", "--", &format!("{}/.", one.display()), &two.display().to_string()])?;
    trees::write(&one.join("both"), b"of the primary")?;
    trees::write(&two.join("both"), b"of the other")?;
    trees::write(&two.join("only there"), b"that nobody else has")?;
    let expected = Snapshot::take(&one)?;
    cluster.create_folder("mesh")?;
    cluster.settle()?;
    for member in &cluster.members {
        ensure!(Snapshot::take(&member.tree())? == expected, "{} has not the primary's tree", member.name);
    }
    let kept = e2e::snapshot::preserved_hashes(&two)?;
    for bytes in [b"of the other".as_slice(), b"that nobody else has"] {
        ensure!(kept.contains(&blake3::hash(bytes)), "{} was lost", String::from_utf8_lossy(bytes));
    }
    // Equal files were adopted: nothing of them was replaced.
    ensure!(kept.len() == 2, "{} files were preserved, 2 differed", kept.len());
    Ok(())
}
