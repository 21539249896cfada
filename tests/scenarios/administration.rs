//! An administrator with only the manual in hand: what he gets wrong is said with its path, its cause and the next step, and
//! what comes back is taken up by itself.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Cluster, FOLDER, lone};
use e2e::member::{Member, User, free_port};
use e2e::mount::Mount;
use e2e::program::run;
use e2e::random::Random;
use e2e::skip;
use e2e::snapshot::Snapshot;
use e2e::trees;
use e2e::until::{Look, until};
use serde_json::Value;

/// The folder's root is gone, or another one.
const EVENT_ROOT: u64 = 2004;
/// Something from a partner cannot be put in place.
const EVENT_CANNOT_INSTALL: u64 = 4304;
/// Initial sync is complete.
const EVENT_INITIAL_SYNC: u64 = 4104;
/// An object of the domain is invalid.
const EVENT_INVALID: u64 = 6806;
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

/// Changes a line of the local file.
fn configure(member: &Member, key: &str, value: &str) -> Result<()> {
    let file = member.data().join("anabranch.toml");
    let text = fs::read_to_string(&file)?;
    let begin = format!("{key} = ");
    ensure!(text.lines().any(|line| line.starts_with(&begin)), "no `{key}` in {text}");
    let changed = |line: &str| if line.starts_with(&begin) { format!("{begin}\"{value}\"") } else { line.to_owned() };
    Ok(fs::write(&file, text.lines().map(changed).collect::<Vec<_>>().join("\n"))?)
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
    let said = event(two, EVENT_PRIVATE, &[&private.display().to_string(), "No such file"])?;
    let remedy = said["remedy"].as_str().context("an event has a remedy")?;
    let text = two.run(&["events"])?;
    ensure!(
        !remedy.is_empty() && text.lines().any(|line| line == format!("    {remedy}")),
        "{remedy:?} is not in: {text}"
    );
    for valid in ["0s", "366d", "18446744073709551615s"] {
        let refused = two.ask(&["invite", "--valid", valid])?;
        ensure!(refused.code == 2 && refused.err.contains("at most 365d"), "--valid {valid}: {}", refused.err);
    }
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
fn a_folder_that_cannot_be_kept_is_in_the_status_with_its_reason() -> Result<()> {
    let cluster = Cluster::joined(2, User::Same)?;
    let (one, two) = (&cluster.members[0], &cluster.members[1]);
    fs::remove_dir(two.tree())?;
    cluster.create_folder("mesh")?;
    let kept = until("the folder in the status", Duration::from_secs(60), || {
        Ok(folder(two, FOLDER)?.map_or_else(|| Look::NotYet("it is not listed".into()), Look::Yes))
    })?;
    ensure!(kept["state"] == "not kept" && kept["error"].to_string().contains("does not exist"), "{kept}");
    let shown = two.run(&["status"])?;
    ensure!(shown.contains("not kept here") && shown.contains(&two.tree().display().to_string()), "{shown}");
    two.ask(&["preserved", "list", FOLDER])?.refused(3, &["does not exist", &two.tree().display().to_string()])?;
    fs::create_dir(two.tree())?;
    cluster.settle()?;
    // What belonged together came one after the other: no advice to remove anything.
    for member in [one, two] {
        let said = member.events(EVENT_INVALID)?;
        ensure!(said.is_empty(), "{}: {said:?}", member.name);
    }
    Ok(())
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

#[test]
fn an_address_that_is_corrected_before_the_first_start_counts() -> Result<()> {
    let mut cluster = lone(User::Same)?;
    let mut two = Member::prepare(cluster.dir(), "hq2", User::Same)?;
    two.ask_to_join(&cluster.members[0].invite("hq2")?)?.done()?;
    two.port = free_port()?;
    let address = two.address();
    configure(&two, "listen", &address)?;
    two.serve()?;
    cluster.members.push(two);
    for member in &cluster.members {
        until(&format!("{} to know the address", member.name), Duration::from_secs(60), || {
            let listed = member.listing(&["member", "list"])?;
            let known = listed.iter().any(|m| m["name"] == "hq2" && m["addresses"] == serde_json::json!([address]));
            Ok(Look::when(known, || format!("{listed:?}")))
        })?;
        let aside = member.preserved("$domain", "unseen")?;
        ensure!(aside.is_empty(), "{}: {aside:?}", member.name);
    }
    cluster.create_folder("mesh")?;
    trees::write(&cluster.members[1].tree().join("file"), b"by the new address")?;
    cluster.settle()
}

#[test]
fn a_name_that_was_changed_in_the_local_file_is_refused() -> Result<()> {
    let mut cluster = Cluster::joined(2, User::Same)?;
    let two = &mut cluster.members[1];
    two.stop()?;
    configure(two, "name", "hq1")?;
    two.ask(&["serve"])?.refused(2, &["anabranch.toml", "hq1", "name = \"hq2\""])?;
    configure(two, "name", "hq2")?;
    two.serve()
}

#[test]
fn an_address_that_is_taken_is_named_with_its_cause() -> Result<()> {
    let mut cluster = lone(User::Same)?;
    let member = &mut cluster.members[0];
    member.stop()?;
    let taken = TcpListener::bind(member.address())?;
    let said = member.ask(&["serve"])?;
    said.refused(3, &[&member.address(), "already in use", "listen", "anabranch.toml"])?;
    let words = said.err.to_lowercase();
    ensure!(!words.contains("link") && !words.contains("connection"), "{said}");
    drop(taken);
    member.serve()
}

#[test]
fn init_and_join_say_what_they_made_and_what_comes_next() -> Result<()> {
    let mut cluster = lone(User::Same)?;
    let one = Member::prepare(cluster.dir(), "other", User::Same)?;
    let (file, missing) = (one.home.join("file"), one.home.join("missing"));
    trees::write(&file, b"no directory")?;
    for root in [&file, &missing] {
        let root = root.display().to_string();
        one.ask(&["init", "--name", "other", "--root", &root])?.refused(2, &[&root, "directory"])?;
        ensure!(!one.data().join("anabranch.toml").exists(), "something was made");
    }
    let home = one.home.display().to_string();
    let made = one.ask(&["init", "--name", "other", "--listen", &one.address(), "--root", &home])?;
    let data = one.data().display().to_string();
    ensure!(made.code == 0 && made.out.is_empty() && made.err.lines().count() == 1, "{made}");
    ensure!([&data, "other", "anabranch serve"].iter().all(|word| made.err.contains(*word)), "{made}");
    let two = Member::prepare(cluster.dir(), "hq2", User::Same)?;
    let made = two.ask_to_join(&cluster.members[0].invite("hq2")?)?;
    ensure!(made.code == 0 && made.out.is_empty() && made.err.contains("anabranch serve"), "{made}");
    // How long it takes to end is nobody's guess.
    cluster.members[0].stop()?;
    let log = cluster.members[0].log_tail();
    ensure!(log.contains("stopping") && log.contains("stopped"), "{log}");
    Ok(())
}

#[test]
fn another_user_is_told_that_he_may_not_look() -> Result<()> {
    if !(skip::root_or_skip("another user") && skip::programs_or_skip(&["setpriv"])) {
        return Ok(());
    }
    let cluster = lone(User::Same)?;
    let member = &cluster.members[0];
    // The directories on the way are open to him, and so is the program.
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(cluster.dir(), fs::Permissions::from_mode(0o755))?;
    let program = cluster.dir().join("program");
    fs::copy(e2e::program::anabranch()?, &program)?;
    let status = |data: &Path| {
        let mut command = std::process::Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(&program).arg("status");
        run(command.env("ANABRANCH_DATA", data).current_dir("/"), Duration::from_secs(30))
    };
    fs::set_permissions(member.data(), fs::Permissions::from_mode(0o700))?;
    let said = status(&member.data())?;
    said.refused(3, &["cannot be read by this user", "permission denied", "root"])?;
    ensure!(!said.err.contains("init") && !said.err.contains("serve"), "{said}");
    // The directory is open, the socket is not.
    fs::set_permissions(member.data(), fs::Permissions::from_mode(0o755))?;
    let said = status(&member.data())?;
    said.refused(3, &["this user may not open", "socket", "root"])?;
    ensure!(!said.err.contains("`anabranch serve`"), "{said}");
    Ok(())
}

/// Not even the newline in a name ends a line of a listing, and nothing in it reaches the terminal as it is.
#[test]
fn names_with_control_characters_are_shown_and_not_obeyed() -> Result<()> {
    let cluster = Cluster::mesh(2)?;
    let (one, two) = (&cluster.members[0], &cluster.members[1]);
    let name = "red\u{1b}[31m\nline";
    trees::write(&one.tree().join(name), b"one")?;
    cluster.settle()?;
    trees::write(&two.tree().join(name), b"two, longer")?;
    cluster.settle()?;
    let listed = one.run(&["preserved", "list", FOLDER])?;
    ensure!(listed.contains("red\\u{1b}[31m\\nline") && !listed.contains('\u{1b}'), "{listed}");
    Ok(())
}

/// What keeps it is named where it lies, and once that is gone so is the directory.
#[test]
fn a_directory_that_something_unreplicated_keeps_is_said_with_what_keeps_it() -> Result<()> {
    let cluster = Cluster::mesh(2)?;
    let (one, two) = (&cluster.members[0], &cluster.members[1]);
    fs::create_dir(one.tree().join("kept"))?;
    trees::write(&one.tree().join("kept/file"), b"file")?;
    cluster.settle()?;
    let _socket = std::os::unix::net::UnixListener::bind(one.tree().join("kept/socket"))?;
    fs::remove_dir_all(two.tree().join("kept"))?;
    event(one, EVENT_CANNOT_INSTALL, &["kept cannot be removed", "kept/socket"])?;
    fs::remove_file(one.tree().join("kept/socket"))?;
    cluster.settle()?;
    ensure!(!one.tree().join("kept").exists(), "it is still there");
    Ok(())
}

#[test]
fn a_comparison_that_compared_nothing_or_not_all_proves_nothing() -> Result<()> {
    let cluster = Cluster::mesh(2)?;
    let (one, two) = (&cluster.members[0], &cluster.members[1]);
    one.ask(&["group", "create", "other", "--members", "m1,m2", "--topology", "custom"])?
        .refused(2, &["custom", "mesh"])?;
    trees::write(&one.tree().join("file"), b"file")?;
    cluster.settle()?;
    one.run(&["folder", "verify", FOLDER])?;
    let held = fs::OpenOptions::new().append(true).open(one.tree().join("file"))?;
    std::io::Write::write_all(&mut &held, b", and more")?;
    until("the open file to be waited for", Duration::from_secs(60), || {
        let here = folder(one, FOLDER)?.context("it is kept")?["outstanding"].as_u64() != Some(0);
        Ok(Look::when(here, || "nothing is outstanding".into()))
    })?;
    let compared = one.ask(&["folder", "verify", FOLDER])?;
    ensure!(compared.code == 1 && compared.out.contains("not looked at yet"), "{compared}");
    let compared = two.ask(&["folder", "verify", FOLDER])?;
    ensure!(compared.code == 1 && compared.out.contains("not in place there yet"), "{compared}");
    drop(held);
    cluster.settle()?;
    one.run(&["folder", "verify", FOLDER]).map(drop)
}
