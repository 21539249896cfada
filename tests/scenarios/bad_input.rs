//! What goes wrong in an administrator's hands: each gets its exit code (0 done, 1 the answer is no, 2 usage or
//! configuration, 3 operation failed), a message that names the cause, an event where it lasts, and nothing is lost.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Cluster, FOLDER, lone};
use e2e::member::{Member, User, ordinary_user};
use e2e::mount::Mount;
use e2e::random::Random;
use e2e::skip;
use e2e::snapshot::Snapshot;
use e2e::trees;
use e2e::until::until_true;

#[test]
fn invitations_that_are_wrong_used_late_or_for_another_name_are_refused() -> Result<()> {
    let cluster = lone(User::Same)?;
    let inviter = &cluster.members[0];
    let newcomer = Member::prepare(cluster.dir(), "hq2", User::Same)?;

    newcomer.ask_to_join("nonsense")?.refused(2, &["invitation"])?;

    // One character of the secret is another one.
    let good = inviter.invite("hq2")?;
    let middle = good.len() / 2;
    let other = if good.as_bytes()[middle] == b'a' { "b" } else { "a" };
    let mut wrong = good.clone();
    wrong.replace_range(middle..=middle, other);
    let refused = newcomer.ask_to_join(&wrong)?;
    ensure!(matches!(refused.code, 2 | 3), "{refused}");
    refused.refused(refused.code, &["invitation"])?;

    let for_another = inviter.invite("hq7")?;
    newcomer.ask_to_join(&for_another)?.refused(3, &["invitation", "name"])?;

    let late = inviter.run(&["invite", "--name", "hq2", "--valid", "1s"])?;
    let made = Instant::now();
    until_true("an invitation of one second to be late", Duration::from_secs(10), || {
        made.elapsed() > Duration::from_millis(1_500)
    })?;
    newcomer.ask_to_join(&late)?.refused(3, &["invitation", "expired"])?;

    // After all these refusals the good one still works, in the same place.
    newcomer.ask_to_join(&good)?.done()?;
    let third = Member::prepare(cluster.dir(), "hq3", User::Same)?;
    let used = third.ask_to_join(&good)?;
    used.refused(3, &["invitation"])
}

#[test]
fn nobody_answers_at_the_inviters_address() -> Result<()> {
    let mut cluster = lone(User::Same)?;
    let invitation = cluster.members[0].invite("hq2")?;
    cluster.members[0].stop()?;
    let newcomer = Member::prepare(cluster.dir(), "hq2", User::Same)?;
    let address = cluster.members[0].address();
    newcomer.ask_to_join(&invitation)?.refused(3, &[&address])
}

#[test]
fn usage_errors_end_with_2_and_asking_without_a_daemon_with_3() -> Result<()> {
    let mut cluster = lone(User::Same)?;
    let member = &mut cluster.members[0];
    member.ask(&["no-such-command"])?.refused(2, &["no-such-command"])?;
    member.ask(&["folder", "wait", "no/such"])?.refused(2, &["no/such"])?;
    member.ask(&["group", "create", "web", "--members", "hq1,nobody"])?.refused(2, &["nobody"])?;
    member.ask(&["group", "create", "web", "--members", "hq1", "--topology", "star"])?.refused(2, &["star"])?;
    // A second `init` must not destroy the first member's identity.
    member.ask(&["init", "--name", "again"])?.refused(2, &["already"])?;
    member.stop()?;
    member.ask(&["status"])?.refused(3, &["serve"])?;
    let empty = Member::prepare(cluster.dir(), "empty", User::Same)?;
    empty.ask(&["serve"])?.refused(2, &["init"])
}

#[test]
fn what_cannot_be_printed_or_logged_is_an_error_and_ends_no_daemon() -> Result<()> {
    let mut cluster = lone(User::Same)?;
    let member = &mut cluster.members[0];
    member.stop()?;
    let log = member.data().with_file_name("log");
    fs::rename(&log, log.with_extension("old"))?;
    std::os::unix::fs::symlink("/dev/full", &log)?;
    member.serve()?;
    member.expect_running()?;
    let full = fs::File::options().write(true).open("/dev/full")?;
    let status = member.command(&["invite"]).stdout(full.try_clone()?).output()?;
    let said = String::from_utf8_lossy(&status.stderr).into_owned();
    ensure!(status.status.code() == Some(3) && said.contains("standard output"), "{:?}: {said}", status.status);
    let status = member.command(&["filehash", "/nowhere"]).stderr(full).status()?;
    ensure!(status.code() == Some(1), "{status}");
    member.stop()
}

/// `--data` behind `verify` reads all bytes; the directory of a member's state is meant where one follows.
#[test]
fn the_state_may_be_named_behind_verify_too() -> Result<()> {
    let cluster = Cluster::joined(2, User::Same)?;
    cluster.create_folder("mesh")?;
    cluster.settle()?;
    let member = &cluster.members[0];
    let data = member.data();
    let data = data.to_str().context("the path of a test is no text")?;
    for words in [
        &["folder", "verify", FOLDER, "--data", data][..],
        &["folder", "verify", "--data", data, FOLDER],
        &["folder", "verify", "--data", FOLDER],
        &["folder", "verify", "--data", data, FOLDER, "--data"],
    ] {
        member.run(words)?;
    }
    Ok(())
}

#[test]
fn two_daemons_do_not_share_one_state() -> Result<()> {
    let cluster = lone(User::Same)?;
    cluster.members[0].ask(&["serve"])?.refused(3, &["already"])
}

#[test]
fn unknown_keys_of_the_local_file_are_named_with_their_line() -> Result<()> {
    let mut cluster = lone(User::Same)?;
    let member = &mut cluster.members[0];
    member.stop()?;
    let file = fs::read_dir(member.data())?
        .map_while(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .context("no TOML file in the local state")?;
    let text = fs::read_to_string(&file)?;
    let line = text.lines().count() + 1;
    fs::write(&file, format!("{}\nno_such_key = 1\n", text.trim_end()))?;
    let name = file.file_name().context("a file has a name")?.to_string_lossy().into_owned();
    let said = member.ask(&["serve"])?;
    said.refused(2, &["no_such_key", &name])?;
    ensure!(said.err.contains(&line.to_string()), "the line {line} is not named: {said}");
    Ok(())
}

/// A folder on the only member at `path`, which must be refused with a text that has the words.
fn expect_path_refused(member: &Member, path: &str, words: &[&str]) -> Result<()> {
    let at = format!("{}={path}", member.name);
    let mut wanted = vec![path];
    wanted.extend(words);
    member.ask(&["folder", "create", "web/other", "--primary", &member.name, "--path", &at])?.refused(2, &wanted)?;
    let listed = member.run(&["status", "--json"])?;
    ensure!(!listed.contains("web/other"), "a refused folder is listed: {listed}");
    Ok(())
}

#[test]
fn paths_that_cannot_hold_a_folder_are_refused() -> Result<()> {
    let cluster = lone(User::Same)?;
    cluster.create_folder("mesh")?;
    let member = &cluster.members[0];
    let inside = |name: &str| member.home.join(name).display().to_string();
    fs::create_dir_all(member.tree().join("nested"))?;
    trees::write(&member.home.join("file"), b"file")?;
    std::os::unix::fs::symlink("/etc", member.home.join("link"))?;

    expect_path_refused(member, &inside("missing"), &["exist"])?;
    expect_path_refused(member, &inside("tree/nested"), &["inside", FOLDER])?;
    expect_path_refused(member, &inside("tree"), &[FOLDER])?;
    expect_path_refused(member, &member.home.display().to_string(), &[FOLDER])?;
    expect_path_refused(member, &inside("file"), &["directory"])?;
    expect_path_refused(member, "/etc", &["root"])?;
    expect_path_refused(member, &inside("link"), &["root"])?;
    expect_path_refused(member, &inside("../../../etc"), &[])?;
    expect_path_refused(member, "relative/path", &["absolute"])?;

    if skip::root_or_skip("mounting a read-only file system") {
        let dir = member.home.join("readonly");
        fs::create_dir(&dir)?;
        let mount = Mount::itself(&dir)?;
        mount.change("bind,ro")?;
        expect_path_refused(member, &dir.display().to_string(), &["read-only"])?;
    }
    Ok(())
}

#[test]
fn a_path_that_another_member_does_not_allow_is_an_event_there_and_stops_nobody() -> Result<()> {
    let cluster = Cluster::joined(2, User::Same)?;
    let (one, two) = (&cluster.members[0], &cluster.members[1]);
    one.run(&["group", "create", "web", "--members", "hq1,hq2", "--topology", "mesh"])?;
    let (path, foreign) = (format!("hq1={}", one.tree().display()), "hq2=/etc/anabranch-must-not-write-here");
    let created = one.ask(&["folder", "create", FOLDER, "--primary", "hq1", "--path", &path, "--path", foreign])?;
    // The other member's roots are known to it alone, so the command may succeed; the member itself refuses.
    if created.code == 0 {
        two.event_with(&["/etc/anabranch-must-not-write-here", "root"])?;
    } else {
        created.refused(2, &["root"])?;
    }
    ensure!(!std::path::Path::new("/etc/anabranch-must-not-write-here").exists());
    Ok(())
}

#[test]
fn a_partner_with_another_key_is_refused_and_said() -> Result<()> {
    let mut cluster = Cluster::mesh(2)?;
    trees::write(&cluster.members[0].tree().join("secret"), b"for members only")?;
    cluster.settle()?;
    // Somebody takes the second member's place: same name, same address, a domain of his own.
    cluster.members[1].kill()?;
    let real = cluster.members[1].data().with_extension("real");
    fs::rename(cluster.members[1].data(), &real)?;
    fs::create_dir(cluster.members[1].data())?;
    cluster.members[1].init()?;
    cluster.members[1].serve()?;
    trees::write(&cluster.members[0].tree().join("another secret"), b"for members only")?;
    cluster.members[0].event_with(&["hq2", "key"])?;
    ensure!(!cluster.members[1].tree().join("another secret").exists());

    // The real one comes back: all is well again by itself.
    cluster.members[1].kill()?;
    fs::remove_dir_all(cluster.members[1].data())?;
    fs::rename(&real, cluster.members[1].data())?;
    cluster.members[1].serve()?;
    cluster.settle()
}

#[test]
fn a_mount_that_becomes_read_only_waits_and_loses_nothing() -> Result<()> {
    if !skip::root_or_skip("mounting a file system") {
        return Ok(());
    }
    let mut cluster = Cluster::joined(2, User::Same)?;
    let mount = Mount::memory(&cluster.members[1].tree(), 64)?;
    cluster.create_folder("mesh")?;
    trees::write(&cluster.members[0].tree().join("before"), b"before")?;
    cluster.settle()?;
    cluster.members[1].stop()?;
    mount.change("ro")?;
    cluster.members[1].serve()?;
    trees::write(&cluster.members[0].tree().join("after"), b"after")?;
    cluster.members[1].event_with(&["read-only"])?;
    ensure!(cluster.members[0].tree().join("before").exists(), "a read-only mount deleted elsewhere");
    mount.change("rw")?;
    cluster.settle()?;
    drop(cluster);
    drop(mount);
    Ok(())
}

#[test]
fn a_root_that_is_missing_deletes_nothing_elsewhere() -> Result<()> {
    let mut cluster = Cluster::mesh(2)?;
    trees::many(&cluster.members[0].tree(), 50, &mut Random::for_test("missing root"))?;
    cluster.settle()?;
    let before = Snapshot::take(&cluster.members[0].tree())?;
    let (tree, away) = (cluster.members[1].tree(), cluster.members[1].home.join("away"));
    // While it runs: as when a disk is unmounted and its empty mount point stays.
    fs::rename(&tree, &away)?;
    fs::create_dir(&tree)?;
    cluster.members[1].event_with(&["root"])?;
    ensure!(Snapshot::take(&cluster.members[0].tree())? == before, "a missing root deleted elsewhere");
    // And at a start.
    cluster.members[1].kill()?;
    cluster.members[1].serve()?;
    cluster.members[1].event_with(&["root"])?;
    ensure!(Snapshot::take(&cluster.members[0].tree())? == before, "a missing root deleted elsewhere");
    fs::remove_dir_all(&tree)?;
    fs::rename(&away, &tree)?;
    cluster.members[1].stop()?;
    cluster.members[1].serve()?;
    cluster.settle()?;
    ensure!(Snapshot::take(&cluster.members[1].tree())? == before);
    Ok(())
}

#[test]
fn a_directory_without_permission_is_said_and_stops_nothing_else() -> Result<()> {
    let Some(user) = ordinary_user() else { return Ok(()) };
    let cluster = Cluster::start(2, "mesh", user)?;
    let (one, two) = (cluster.members[0].tree(), cluster.members[1].tree());
    let as_user = |member: &Member, words: &[&str]| member_does(member, user, words);
    as_user(&cluster.members[0], &["mkdir", "locked"])?;
    as_user(&cluster.members[0], &["touch", "locked/inside"])?;
    cluster.settle()?;
    ensure!(two.join("locked/inside").exists());

    // On the second member nobody may write or look there any more.
    fs::set_permissions(two.join("locked"), fs::Permissions::from_mode(0o000))?;
    as_user(&cluster.members[0], &["touch", "elsewhere"])?;
    until_true("the rest to go on", Duration::from_secs(60), || two.join("elsewhere").exists())?;
    ensure!(one.join("locked/inside").exists(), "an unreadable directory deleted elsewhere");
    fs::set_permissions(two.join("locked"), fs::Permissions::from_mode(0o755))?;
    cluster.settle()
}

fn member_does(member: &Member, user: User, words: &[&str]) -> Result<()> {
    let tree = member.tree();
    match user {
        User::Same => e2e::program::tool(&tree, words[0], &words[1..]).map(drop),
        User::Number(number) => {
            let ids = [format!("--reuid={number}"), format!("--regid={number}")];
            let mut all = vec![ids[0].as_str(), ids[1].as_str(), "--clear-groups", "--"];
            all.extend(words);
            e2e::program::tool(&tree, "setpriv", &all).map(drop)
        }
    }
}
