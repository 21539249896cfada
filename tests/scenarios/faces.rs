//! What scripts may rely on: data on standard output, `--json` on every listing, `--data` and `$ANABRANCH_DATA` alike.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Cluster, FOLDER};
use e2e::program::run;
use e2e::trees;
use e2e::until::{Look, until};

#[test]
fn every_listing_is_json_on_request() -> Result<()> {
    let cluster = Cluster::mesh(2)?;
    let member = &cluster.members[0];
    trees::write(&member.tree().join("file"), b"bytes")?;
    cluster.settle()?;
    fs::remove_file(member.tree().join("file"))?;
    cluster.settle()?;
    for words in [vec!["status"], vec!["events"], vec!["preserved", "list", FOLDER], vec!["folder", "verify", FOLDER]] {
        let mut words = words;
        words.push("--json");
        let out = member.run(&words)?;
        let mut values = serde_json::Deserializer::from_str(&out).into_iter::<serde_json::Value>();
        ensure!(values.all(|value| value.is_ok()), "{words:?} printed something else than JSON:\n{out}");
    }
    let status: serde_json::Value = serde_json::from_str(&member.run(&["status", "--json"])?)?;
    ensure!(status.to_string().contains("hq2") && status.to_string().contains(FOLDER), "{status}");
    // What was deleted on the first member is preserved on the second, whose listing leads to the file.
    let preserved = cluster.members[1].preserved(FOLDER, "seen")?;
    let item = preserved.iter().find(|item| item["path"].as_str() == Some("file")).context("`file` is not listed")?;
    let kept = item["kept"].as_str().context("a preserved item says where it lies")?;
    ensure!(fs::read(cluster.members[1].tree().join(kept))? == b"bytes", "{item}");
    Ok(())
}

#[test]
fn filehash_tells_data_and_attributes_apart_and_is_the_same_on_every_member() -> Result<()> {
    let cluster = Cluster::mesh(2)?;
    let paths: Vec<_> = cluster.members.iter().map(|member| member.tree().join("seed").display().to_string()).collect();
    trees::write(paths[0].as_ref(), b"seed")?;
    cluster.settle()?;
    let hashes = |place: usize| -> Result<Vec<String>> {
        let out = cluster.members[place].run(&["filehash", &paths[place]])?;
        // The path itself differs between members.
        Ok(out.replace(&paths[place], "").split_whitespace().map(str::to_owned).collect())
    };
    let before = hashes(0)?;
    ensure!(before.contains(&blake3::hash(b"seed").to_hex().to_string()), "no BLAKE3 of the data in {before:?}");
    ensure!(before == hashes(1)?, "members disagree on equal files");
    fs::set_permissions(&paths[0], fs::Permissions::from_mode(0o600))?;
    let after = hashes(0)?;
    ensure!(after != before, "the mode is in no hash");
    ensure!(after.contains(&blake3::hash(b"seed").to_hex().to_string()), "the mode is in the hash of the data");
    Ok(())
}

#[test]
fn a_closed_pipe_is_no_error() -> Result<()> {
    let cluster = Cluster::mesh(2)?;
    for words in [["status", "--json"], ["events", "--json"]] {
        let mut command = cluster.members[0].command(&words);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        drop(child.stdout.take());
        let status = until("a command whose reader went away", Duration::from_secs(30), || {
            Ok(child.try_wait()?.map_or_else(|| Look::NotYet("it is running".to_owned()), Look::Yes))
        })?;
        let mut said = String::new();
        std::io::Read::read_to_string(&mut child.stderr.take().context("standard error was piped")?, &mut said)?;
        ensure!(status.code() == Some(0) && said.is_empty(), "{words:?} ended with {status}: {said}");
    }
    Ok(())
}

#[test]
fn the_place_of_local_state_is_named_by_flag_or_environment() -> Result<()> {
    let cluster = Cluster::mesh(2)?;
    let member = &cluster.members[0];
    let data = member.data().display().to_string();
    let mut command = member.command(&["--data", &data, "status"]);
    command.env("ANABRANCH_DATA", "/nonexistent");
    run(&mut command, Duration::from_secs(30))?.done()?;
    let mut command = member.command(&["status", "--data", &data]);
    command.env_remove("ANABRANCH_DATA");
    run(&mut command, Duration::from_secs(30))?.done()?;
    let mut command = member.command(&["status"]);
    command.env("ANABRANCH_DATA", "/nonexistent");
    run(&mut command, Duration::from_secs(30))?.refused(2, &["/nonexistent"])
}
