//! A large file on its way while the daemon that fetches it is killed: it does not begin again.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Cluster, FOLDER};
use e2e::member::Member;
use e2e::random::Random;
use e2e::until::{Look, until};
use serde_json::Value;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 256 * MIB;

/// One number of the folder's status.
fn figure(member: &Member, name: &str) -> Result<u64> {
    let status: Value = serde_json::from_str(&member.run(&["status", "--json"])?).context("read the status")?;
    let folder = status["folders"].as_array().and_then(|folders| folders.iter().find(|f| f["name"] == FOLDER));
    folder.and_then(|f| f[name].as_u64()).with_context(|| format!("no {name} in {status}"))
}

#[test]
fn a_large_file_goes_on_after_its_fetcher_was_killed() -> Result<()> {
    let mut cluster = Cluster::mesh(2)?;
    let (one, two) = (cluster.members[0].tree(), cluster.members[1].tree());
    let bytes = Random::for_test("a large file").bytes(usize::try_from(SIZE)?);
    // Beside the tree first, so that it comes into it whole.
    let made = cluster.dir().join("made");
    fs::write(&made, &bytes)?;
    fs::rename(&made, one.join("large"))?;
    let minute = Duration::from_secs(60);
    until("a third of it to arrive", minute, || {
        let received = figure(&cluster.members[1], "partly_fetched")?;
        ensure!(!two.join("large").exists(), "it came faster than anybody could look");
        Ok(Look::when(received >= SIZE / 3, || format!("{received} bytes")))
    })?;
    cluster.members[0].freeze()?;
    let noted = until("what arrived to be noted", minute, || {
        let received = figure(&cluster.members[1], "partly_fetched")?;
        let noted = figure(&cluster.members[1], "partly_fetched_noted")?;
        Ok(match noted + 8 * MIB > received {
            true => Look::Yes(noted),
            false => Look::NotYet(format!("{noted} of {received} bytes")),
        })
    })?;
    ensure!(noted > SIZE / 4, "only {noted} bytes were noted");
    cluster.members[1].kill()?;
    cluster.members[0].thaw()?;
    cluster.members[1].serve()?;
    cluster.settle()?;
    ensure!(fs::read(two.join("large"))? == bytes, "another content");
    let (resumed, wire) = (figure(&cluster.members[1], "resumed")?, figure(&cluster.members[1], "wire_received")?);
    eprintln!("noted {noted}, resumed {resumed}, {wire} bytes on the wire after the start, of {SIZE}");
    ensure!(resumed >= noted, "{resumed} bytes were kept, {noted} were noted");
    ensure!(wire < SIZE - noted + 16 * MIB, "{wire} bytes on the wire after {noted} were noted");
    let left = fs::read_dir(two.join(".anabranch/staging"))?.count();
    ensure!(left == 0, "{left} files were left in staging");
    cluster.expect_verified()
}
