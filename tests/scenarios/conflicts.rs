//! Members that part, change on their own, and come together again with nothing lost.

use std::fs;

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Cluster, EVENT_CONFLICT, FOLDER};
use e2e::member::Member;
use e2e::snapshot::preserved_hashes;
use e2e::trees;

/// Stops the second member, lets `apart` change both, and brings it back.
fn parted(cluster: &mut Cluster, apart: impl FnOnce(&Cluster) -> Result<()>) -> Result<()> {
    cluster.members[1].stop()?;
    apart(cluster)?;
    cluster.members[1].serve()?;
    cluster.settle()
}

#[test]
fn the_losing_edit_is_preserved_listed_and_can_be_restored() -> Result<()> {
    let mut cluster = Cluster::mesh(3)?;
    trees::write(&cluster.members[0].tree().join("plan.txt"), b"as it was")?;
    cluster.settle()?;
    parted(&mut cluster, |cluster| {
        fs::write(cluster.members[0].tree().join("plan.txt"), b"as hq1 wants it")?;
        fs::write(cluster.members[1].tree().join("plan.txt"), b"as hq2 wants it")?;
        Ok(())
    })?;
    let winner = fs::read(cluster.members[2].tree().join("plan.txt"))?;
    let [one, two] = [b"as hq1 wants it".as_slice(), b"as hq2 wants it"];
    ensure!(winner == one || winner == two, "neither edit stands: {}", String::from_utf8_lossy(&winner));
    let loser = if winner == one { two } else { one };

    let mut listed = None;
    let mut kept = false;
    let mut events = 0;
    for member in &cluster.members {
        kept |= preserved_hashes(&member.tree())?.contains(&blake3::hash(loser));
        events += member.events(EVENT_CONFLICT)?.len();
        for item in member.preserved(FOLDER, "unseen")? {
            if item["path"].as_str() == Some("plan.txt") {
                listed = Some((member, item));
            }
        }
    }
    ensure!(kept, "the losing content is nowhere");
    ensure!(events > 0, "no member reported a conflict");
    let (member, item) = listed.context("no member lists the losing copy as unseen")?;
    let id = item["id"].as_str().context("a preserved item has an id")?;
    member.run(&["preserved", "restore", FOLDER, id])?;
    cluster.settle()?;
    let restored = fs::read_dir(cluster.members[2].tree())?
        .map_while(Result::ok)
        .any(|entry| fs::read(entry.path()).is_ok_and(|bytes| bytes == loser));
    ensure!(restored, "the restored copy did not come to the others");
    Ok(())
}

#[test]
fn an_edit_that_the_deleter_had_not_seen_keeps_the_file() -> Result<()> {
    let mut cluster = Cluster::mesh(2)?;
    trees::write(&cluster.members[0].tree().join("kept"), b"before")?;
    trees::write(&cluster.members[0].tree().join("gone"), b"before")?;
    cluster.settle()?;
    parted(&mut cluster, |cluster| {
        fs::write(cluster.members[1].tree().join("kept"), b"edited unseen")?;
        fs::remove_file(cluster.members[0].tree().join("kept"))?;
        fs::remove_file(cluster.members[0].tree().join("gone"))?;
        Ok(())
    })?;
    for member in &cluster.members {
        ensure!(fs::read(member.tree().join("kept"))? == b"edited unseen", "{}", member.name);
        ensure!(!member.tree().join("gone").exists(), "what was deleted came back on {}", member.name);
    }
    Ok(())
}

#[test]
fn a_rename_here_and_an_edit_there_are_no_conflict() -> Result<()> {
    let mut cluster = Cluster::mesh(2)?;
    trees::write(&cluster.members[0].tree().join("old"), b"before")?;
    cluster.settle()?;
    parted(&mut cluster, |cluster| {
        fs::rename(cluster.members[0].tree().join("old"), cluster.members[0].tree().join("new"))?;
        fs::write(cluster.members[1].tree().join("old"), b"edited")?;
        Ok(())
    })?;
    for member in &cluster.members {
        ensure!(fs::read(member.tree().join("new"))? == b"edited", "{}", member.name);
        ensure!(!member.tree().join("old").exists(), "{}", member.name);
        ensure!(member.events(EVENT_CONFLICT)?.is_empty(), "{} saw a conflict", member.name);
    }
    Ok(())
}

#[test]
fn two_new_directories_of_one_name_become_one_and_of_two_files_one_is_preserved() -> Result<()> {
    let mut cluster = Cluster::mesh(2)?;
    parted(&mut cluster, |cluster| {
        for member in &cluster.members {
            let name = member.name.as_bytes();
            trees::write(&member.tree().join("docs").join(&member.name), name)?;
            trees::write(&member.tree().join("docs/same"), name)?;
        }
        Ok(())
    })?;
    let mut contents = Vec::new();
    for member in &cluster.members {
        ensure!(member.tree().join("docs/hq1").is_file() && member.tree().join("docs/hq2").is_file());
        contents.push(blake3::hash(&fs::read(member.tree().join("docs/same"))?));
        contents.extend(preserved_hashes(&member.tree())?);
    }
    for member in &cluster.members {
        ensure!(contents.contains(&blake3::hash(member.name.as_bytes())), "what {} wrote is lost", member.name);
    }
    Ok(())
}

/// Names in the root of a member's tree, without the program's own.
fn names(member: &Member) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(member.tree())? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.retain(|name| !name.starts_with(".anabranch"));
    names.sort();
    Ok(names)
}

#[test]
fn where_case_does_not_count_two_files_of_one_name_both_stay() -> Result<()> {
    let mut cluster = Cluster::pair_with(&["--names", "windows", "--policy", "keep"])?;
    let listed = cluster.members[1].listing(&["folder", "list"])?;
    ensure!(listed[0]["names"].as_str() == Some("windows"), "{listed:?}");
    parted(&mut cluster, |cluster| {
        trees::write(&cluster.members[0].tree().join("Report.txt"), b"of hq1")?;
        trees::write(&cluster.members[1].tree().join("report.TXT"), b"of hq2")?;
        // One name too: composed here, decomposed there. Of directories it makes one.
        trees::write(&cluster.members[0].tree().join("Caf\u{e9}/one"), b"1")?;
        trees::write(&cluster.members[1].tree().join("cafe\u{301}/two"), b"2")
    })?;
    let there = names(&cluster.members[0])?;
    ensure!(names(&cluster.members[1])? == there && there.len() == 3, "{there:?}");
    let derived = |name: &&String| name.contains("-hq") && name.to_lowercase().starts_with("report-hq");
    let beside = there.iter().find(derived).with_context(|| format!("no derived name: {there:?}"))?;
    let taken = there.iter().find(|name| name.eq_ignore_ascii_case("report.txt"));
    let taken = taken.with_context(|| format!("nobody has the name: {there:?}"))?;
    let docs = there.iter().find(|name| name.to_lowercase().starts_with("caf"));
    let docs = docs.with_context(|| format!("no directory: {there:?}"))?;
    for member in &cluster.members {
        let mut contents = [fs::read(member.tree().join(beside))?, fs::read(member.tree().join(taken))?];
        contents.sort();
        ensure!(contents == [b"of hq1", b"of hq2"], "{}: {contents:?}", member.name);
        ensure!(fs::read_dir(member.tree().join(docs))?.count() == 2, "{}: not one directory", member.name);
        ensure!(member.preserved(FOLDER, "unseen")?.is_empty(), "{} preserved something", member.name);
    }
    cluster.expect_verified()
}

#[test]
fn where_case_does_not_count_the_loser_is_preserved_and_a_change_of_case_is_a_rename() -> Result<()> {
    let mut cluster = Cluster::pair_with(&["--names", "windows"])?;
    trees::write(&cluster.members[0].tree().join("plan.txt"), b"the plan")?;
    trees::write(&cluster.members[0].tree().join("docs/inside"), b"inside")?;
    cluster.settle()?;
    for (from, to) in [("plan.txt", "Plan.TXT"), ("docs", "Docs")] {
        fs::rename(cluster.members[1].tree().join(from), cluster.members[1].tree().join(to))?;
    }
    cluster.settle()?;
    for member in &cluster.members {
        ensure!(names(member)? == ["Docs", "Plan.TXT"], "{}: {:?}", member.name, names(member)?);
        ensure!(fs::read(member.tree().join("Plan.TXT"))? == b"the plan", "{}", member.name);
        ensure!(fs::read(member.tree().join("Docs/inside"))? == b"inside", "{}", member.name);
        ensure!(member.events(EVENT_CONFLICT)?.is_empty(), "{} saw a conflict", member.name);
        ensure!(member.preserved(FOLDER, "unseen")?.is_empty(), "{} preserved something", member.name);
    }
    parted(&mut cluster, |cluster| {
        trees::write(&cluster.members[0].tree().join("new.txt"), b"of hq1")?;
        trees::write(&cluster.members[1].tree().join("NEW.txt"), b"of hq2")
    })?;
    let mut contents = Vec::new();
    for member in &cluster.members {
        let new: Vec<_> = names(member)?.into_iter().filter(|name| name.to_lowercase().starts_with("new")).collect();
        ensure!(new.len() == 1, "{}: {new:?}", member.name);
        contents.push(blake3::hash(&fs::read(member.tree().join(&new[0]))?));
        contents.extend(preserved_hashes(&member.tree())?);
    }
    for content in [b"of hq1", b"of hq2"] {
        ensure!(contents.contains(&blake3::hash(content)), "{} is lost", String::from_utf8_lossy(content));
    }
    Ok(())
}
