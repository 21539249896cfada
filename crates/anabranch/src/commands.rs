//! The commands: what they ask the daemon, and how the answers are shown.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use anabranch_console::{Failure, ask};
use anabranch_domain::{ObjectName, create};
use anabranch_member::host::{chain, random_id};
use anabranch_net::{Identity, Invitation, JoinReply, JoinRequest};
use serde_json::{Value, json};

use crate::invitations::{INVITATION_SECONDS_MAX, Welcome};
use crate::local::{Data, Local, write_whole_by};
use crate::reach::dialable;
use crate::{Cli, Command, FolderCommand, GroupCommand, MemberCommand, PreservedCommand, RecoveryCommand};

/// Reads a duration such as 500ms, 30s, 15m, 1h or 2d.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let number: u64 = number.parse().map_err(|_| format!("{text:?} is no duration; write it like 30s, 15m or 1h"))?;
    let factor = match unit {
        "ms" => return Ok(Duration::from_millis(number)),
        "s" | "" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(format!("{unit:?} is no unit of time; write ms, s, m, h or d")),
    };
    number.checked_mul(factor).map(Duration::from_secs).ok_or_else(|| format!("{text:?} is too long"))
}

/// How long an invitation can be redeemed: from a second to a year.
pub(crate) fn validity(text: &str) -> Result<Duration, String> {
    let valid = duration(text)?;
    if (1..=INVITATION_SECONDS_MAX).contains(&valid.as_secs()) {
        Ok(valid)
    } else {
        Err(format!("an invitation is valid for at least 1s and at most {}d", INVITATION_SECONDS_MAX / 86_400))
    }
}

/// Why some of the output could not be written.
static UNPRINTED: OnceLock<String> = OnceLock::new();

/// Why some of the output could not be written, if so.
pub(crate) fn unprinted() -> Option<&'static str> {
    UNPRINTED.get().map(String::as_str)
}

/// Writes data; a closed pipe is not an error. For others see [`unprinted`].
pub(crate) fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush());
    if let Err(error) = written
        && error.kind() != std::io::ErrorKind::BrokenPipe
    {
        UNPRINTED.get_or_init(|| error.to_string());
    }
}

fn print_json(value: &Value) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| print(&item.to_string())),
        other => print(&other.to_string()),
    }
}

fn field(value: &Value, key: &str) -> String {
    match &value[key] {
        Value::Null => "-".into(),
        Value::Array(items) => items.iter().map(shown).collect::<Vec<_>>().join(","),
        other => shown(other),
    }
}

/// For a terminal: a control character, as names of files may hold, is shown and not obeyed.
fn shown(value: &Value) -> String {
    let Some(text) = value.as_str() else { return value.to_string() };
    text.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
}

/// A table with aligned columns.
fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: Vec<&str>| {
        let padded: Vec<String> = cells.iter().zip(&widths).map(|(c, w)| format!("{c:<w$}")).collect();
        padded.join("  ").trim_end().to_owned()
    };
    let mut out = vec![line(head.to_vec())];
    out.extend(rows.iter().map(|r| line(r.iter().map(String::as_str).collect())));
    out.join("\n")
}

/// Carries a command out; the exit code.
pub(crate) fn run(cli: Cli) -> Result<u8, Failure> {
    let data = Data(cli.data);
    if let Command::Demo { from, once } = cli.command {
        return crate::demo::run(from, once);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| Failure::failed("cannot start").because(e.to_string()))?;
    runtime.block_on(dispatch(data, cli.command))
}

async fn dispatch(data: Data, command: Command) -> Result<u8, Failure> {
    let local = matches!(
        command,
        Command::Init { .. } | Command::Join { .. } | Command::Filehash { .. } | Command::Demo { .. } | Command::Serve
    );
    if !local && !data.exists()? {
        return Err(Failure::usage(format!("{} holds no member's state", data.0.display()))
            .hint("name the data directory with --data or $ANABRANCH_DATA, or make one with `anabranch init`"));
    }
    let socket = data.socket();
    let call = |name: &'static str, with: Value| {
        let socket = socket.clone();
        async move { ask(&socket, name, with).await }
    };
    match command {
        Command::Init { name, listen, root } => init(&data, &name, listen, root)?,
        Command::Serve => crate::daemon::Daemon::run(data).await?,
        Command::Invite { name, valid } => {
            let text = call("invite", json!({"name": name, "valid": valid.as_secs()})).await?;
            print(text.as_str().unwrap_or_default());
        }
        Command::Join { invitation, name, listen, root } => join(&data, &invitation, &name, listen, root).await?,
        Command::Member(MemberCommand::List { json }) => {
            let list = call("member.list", Value::Null).await?;
            show(&list, json, &["NAME", "ADDRESSES", "KEY"], &["name", "addresses", "key"]);
        }
        Command::Group(GroupCommand::Create { name, members, topology }) => {
            call("group.create", json!({"name": name, "members": members, "topology": topology})).await?;
        }
        Command::Group(GroupCommand::List { json }) => {
            let list = call("group.list", Value::Null).await?;
            show(&list, json, &["NAME", "MEMBERS"], &["name", "members"]);
        }
        Command::Folder(command) => return folder(&socket, command).await,
        Command::Status { json } => {
            let status = call("status", Value::Null).await?;
            if json { print(&status.to_string()) } else { print(&status_text(&status)) }
        }
        Command::Preserved(PreservedCommand::List { name, json }) => {
            let list = call("preserved.list", json!({"name": name})).await?;
            show_preserved(&list, json);
        }
        Command::Preserved(PreservedCommand::Restore { name, numbers, all }) => {
            restore(&socket, &name, numbers, all).await?;
        }
        Command::Events { follow, json } => events(&socket, follow, json).await?,
        Command::Filehash { paths, json } => return crate::filehash::run(&paths, json),
        Command::Recovery(RecoveryCommand::Resume { name }) => {
            call("recovery.resume", json!({"name": name})).await?;
        }
        Command::Demo { .. } => {}
    }
    Ok(0)
}

fn show(list: &Value, json: bool, head: &[&str], keys: &[&str]) {
    if json {
        return print_json(list);
    }
    let rows: Vec<Vec<String>> = list
        .as_array()
        .map(|items| items.iter().map(|item| keys.iter().map(|k| field(item, k)).collect()).collect())
        .unwrap_or_default();
    print(&table(head, &rows));
}

fn show_preserved(list: &Value, json: bool) {
    if json {
        return print_json(list);
    }
    let rows = list.as_array().into_iter().flatten().map(|item| {
        let when = clock(item["when"].as_u64().unwrap_or(0));
        let [number, class, reason, size, path] =
            ["number", "class", "reason", "size", "path"].map(|key| field(item, key));
        vec![number, when, class, reason, size, path]
    });
    print(&table(&["NUMBER", "WHEN", "CLASS", "REASON", "SIZE", "PATH"], &rows.collect::<Vec<_>>()));
}

/// Items put back with one request: the folder does nothing else meanwhile.
const RESTORE_AT_ONCE: usize = 100;

/// Puts items back and prints where each of them is now. A number that is not in the list is a mistake, and nothing is put
/// back then; an item that cannot be put back stops none of the others.
async fn restore(socket: &Path, folder: &str, mut numbers: Vec<u64>, all: bool) -> Result<(), Failure> {
    if numbers.is_empty() && !all {
        return Err(Failure::usage("which items to restore is not said")
            .hint(format!("name their numbers, which `anabranch preserved list {folder}` shows, or say --all")));
    }
    let list = ask(socket, "preserved.list", json!({"name": folder})).await?;
    let listed: Vec<u64> = list.as_array().into_iter().flatten().filter_map(|item| item["number"].as_u64()).collect();
    if all {
        numbers = listed;
    } else {
        let unknown: Vec<String> = numbers.iter().filter(|n| !listed.contains(n)).map(u64::to_string).collect();
        if !unknown.is_empty() {
            return Err(Failure::usage(format!("nothing of {folder} is restored"))
                .because(format!("there is no preserved item {}", unknown.join(", ")))
                .hint(format!("`anabranch preserved list {folder}` shows what there is")));
        }
        numbers.sort_unstable();
        numbers.dedup();
    }
    let (mut left, asked) = (0, numbers.len());
    for some in numbers.chunks(RESTORE_AT_ONCE) {
        let done = ask(socket, "preserved.restore", json!({"name": folder, "numbers": some})).await?;
        for item in done.as_array().into_iter().flatten() {
            match item["error"].as_str() {
                None => print(&field(item, "path")),
                Some(cause) => {
                    left += 1;
                    crate::complain(&format!("item {} of {folder} is not restored: {cause}", field(item, "number")));
                }
            }
        }
    }
    if left == 0 {
        return Ok(());
    }
    Err(Failure::failed(format!("{left} of {asked} items of {folder} are not restored"))
        .because("see above; the others are where the output says")
        .hint("they stay preserved: remove the causes and restore them again"))
}

async fn folder(socket: &Path, command: FolderCommand) -> Result<u8, Failure> {
    match command {
        FolderCommand::Create { name, primary, paths, policy, names } => {
            let mut listed = Vec::new();
            for entry in &paths {
                let (member, path) = entry.split_once('=').ok_or_else(|| {
                    Failure::usage(format!("--path {entry:?} is not MEMBER=PATH"))
                        .hint("write it like --path hq1=/srv/site")
                })?;
                listed.push(json!({"member": member, "path": path}));
            }
            let with = json!({"name": name, "primary": primary, "paths": listed, "policy": policy, "names": names});
            ask(socket, "folder.create", with).await?;
        }
        FolderCommand::List { json } => {
            let list = ask(socket, "folder.list", Value::Null).await?;
            show(&list, json, &["NAME", "PRIMARY", "NAMES", "PATHS"], &["name", "primary", "names", "paths"]);
        }
        FolderCommand::Wait { name, timeout, json } => {
            let limit = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
            let done = ask(socket, "folder.wait", json!({"name": name, "timeout_ms": limit})).await?;
            if json {
                print(&done.to_string());
            }
        }
        FolderCommand::Verify { name, read_data, json } => {
            let found = ask(socket, "folder.verify", json!({"name": name, "data": read_data})).await?;
            let equal = found["equal"].as_bool().unwrap_or(false);
            if json {
                print(&found.to_string());
            } else {
                print(&verify_text(&found));
            }
            return Ok(u8::from(!equal));
        }
    }
    Ok(0)
}

/// Of paths that differ, so many are printed for people.
const DIFFER_SHOWN: usize = 20;

fn verify_text(found: &Value) -> String {
    let mut lines = Vec::new();
    for partner in found["partners"].as_array().unwrap_or(&Vec::new()) {
        let differ = partner["differ"].as_array().map_or(0, Vec::len);
        let name = field(partner, "partner");
        let at = clock(partner["compared_at"].as_u64().unwrap_or(0));
        let waiting = partner["outstanding"].as_u64().unwrap_or(0);
        if differ == 0 && waiting > 0 {
            let items = if waiting == 1 { "item is" } else { "items are" };
            lines.push(format!(
                "{name}: equal as of the comparison at {at}, but {waiting} {items} not in place there yet"
            ));
        } else if differ == 0 {
            lines.push(format!("{name}: equal as of the comparison at {at}"));
        } else {
            let paths = if differ == 1 { "path differs" } else { "paths differ" };
            lines.push(format!("{name}: {differ} {paths} as of the comparison at {at}"));
            let paths = partner["differ"].as_array().map(Vec::as_slice).unwrap_or_default();
            lines.extend(paths.iter().take(DIFFER_SHOWN).map(|path| format!("  {}", shown(path))));
            if let Some(more) = paths.len().checked_sub(DIFFER_SHOWN).filter(|more| *more > 0) {
                lines.push(format!("  and {more} more; --json lists all"));
            }
        }
    }
    match found["not_in_place"].as_u64().unwrap_or(0) {
        0 => {}
        1 => lines
            .push("here 1 item is not in place or not looked at yet; `anabranch status` says which, and why".into()),
        many => lines.push(format!(
            "here {many} items are not in place or not looked at yet; `anabranch status` says which, and why"
        )),
    }
    for partner in found["not_compared"].as_array().unwrap_or(&Vec::new()) {
        lines.push(format!("{}: not connected, so it was not compared", shown(partner)));
    }
    for path in found["unreadable_or_changed"].as_array().unwrap_or(&Vec::new()) {
        lines.push(format!("the bytes here are not the recorded ones: {}", shown(path)));
    }
    if found["partners"].as_array().is_none_or(Vec::is_empty)
        && found["not_compared"].as_array().is_none_or(Vec::is_empty)
    {
        lines.push("the folder has no partner to compare with".into());
    }
    lines.join("\n")
}

/// Time of day, UTC.
fn clock(micros: u64) -> String {
    let seconds = micros / 1_000_000;
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Civil date from days since 1970 (proleptic Gregorian calendar).
    let z = i64::try_from(days).unwrap_or(0) + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = yoe + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC", rest / 3600, rest / 60 % 60, rest % 60)
}

fn status_text(status: &Value) -> String {
    let mut lines = vec![format!("member {} on {}", field(status, "member"), field(status, "listen"))];
    let mut folders: Vec<&Value> = status["folders"].as_array().into_iter().flatten().collect();
    // The domain's own folder after those of the users.
    folders.sort_by_key(|folder| {
        let name = field(folder, "name");
        (name.starts_with('$'), name)
    });
    for folder in folders {
        if folder["state"].as_str() == Some("not kept") {
            let words = [field(folder, "name"), field(folder, "path"), field(folder, "error")];
            lines.push(format!("folder {}: not kept here, at {}", words[0], words[1]));
            lines.push(format!("  stopped: {}", words[2]));
            continue;
        }
        let state = if folder["in_step"].as_bool() == Some(true) { "in step".into() } else { field(folder, "state") };
        let watching = match folder["watching"].as_str() {
            Some(by) if !by.is_empty() => format!(" (changes seen by {by})"),
            _ => String::new(),
        };
        lines.push(format!(
            "folder {}: {state}, {} items, {} outstanding here, at {}{watching}",
            field(folder, "name"),
            field(folder, "files"),
            field(folder, "outstanding"),
            field(folder, "path"),
        ));
        lines.push(format!(
            "  on the wire since the start: {} bytes sent, {} received",
            field(folder, "wire_sent"),
            field(folder, "wire_received"),
        ));
        if let Some(error) = folder["error"].as_str() {
            lines.push(format!("  stopped: {}", error.split_whitespace().collect::<Vec<_>>().join(" ")));
        }
        for partner in folder["partners"].as_array().unwrap_or(&Vec::new()) {
            let connected = if partner["connected"].as_bool() == Some(true) { "connected" } else { "not connected" };
            lines.push(format!("  {} {}: {connected}", field(partner, "role"), field(partner, "partner")));
        }
        for words in folder["waits_for"].as_array().unwrap_or(&Vec::new()) {
            lines.push(format!("  waits: {}", shown(words)));
        }
    }
    for problem in status["problems"].as_array().unwrap_or(&Vec::new()) {
        lines.push(format!("problem: {}", shown(problem)));
    }
    lines.join("\n")
}

async fn events(socket: &Path, follow: bool, json: bool) -> Result<(), Failure> {
    let mut after = 0;
    loop {
        let list = ask(socket, "events", json!({"after": after})).await?;
        for event in list.as_array().unwrap_or(&Vec::new()) {
            after = event["time"].as_u64().unwrap_or(after).max(after);
            if json {
                print(&event.to_string());
            } else {
                print(&format!(
                    "{}  {:>5}  {:<11}  {:<12}  {}: {}",
                    clock(event["time"].as_u64().unwrap_or(0)),
                    field(event, "number"),
                    field(event, "level"),
                    field(event, "folder"),
                    field(event, "text"),
                    field(event, "detail")
                ));
                if ["warning", "error"].contains(&field(event, "level").to_lowercase().as_str()) {
                    print(&format!("    {}", field(event, "remedy")));
                }
            }
        }
        if !follow {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

fn check_roots(roots: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let mut out = Vec::new();
    for root in roots {
        let absolute = std::path::absolute(root)
            .map_err(|e| Failure::usage(format!("--root {} cannot be used", root.display())).because(e.to_string()))?;
        let refused = |cause: String| {
            Failure::usage(format!("--root {} cannot be used", root.display()))
                .because(cause)
                .hint("make the directory first, or name another one: folders are kept beneath it")
        };
        match std::fs::metadata(&absolute) {
            Ok(found) if found.is_dir() => out.push(absolute),
            Ok(_) => return Err(refused("it is not a directory".into())),
            Err(error) => return Err(refused(error.to_string())),
        }
    }
    Ok(out)
}

/// What was made, and the next step, on standard error: standard output carries data, and this is none.
fn made(data: &Data, what: &str) {
    let dir = data.0.display();
    crate::complain(&format!("{what}; its state is in {dir}. Next: `anabranch serve`"));
}

fn fresh(data: &Data) -> Result<(), Failure> {
    if data.exists()? {
        return Err(Failure::usage(format!("{} already holds the state of a member", data.0.display()))
            .hint("run `anabranch serve`, or name another directory with --data"));
    }
    Ok(())
}

fn identity(data: &Data) -> Result<Identity, Failure> {
    let keys = data.keys();
    if keys.exists() {
        // Of an attempt that did not come to its end: the key was never used.
        Identity::load(&keys).map_err(|e| Failure::failed(chain(&e)))
    } else {
        std::fs::create_dir_all(&keys)
            .map_err(|e| Failure::failed(format!("cannot make {}", keys.display())).because(e.to_string()))?;
        Identity::create(&keys).map_err(|e| Failure::failed(chain(&e)))
    }
}

fn init(data: &Data, name: &str, listen: SocketAddr, roots: Vec<PathBuf>) -> Result<(), Failure> {
    let parsed: ObjectName =
        name.parse().map_err(|e| Failure::usage(format!("{name:?} is no name")).because(format!("{e}")))?;
    fresh(data)?;
    let roots = check_roots(&roots)?;
    data.create()?;
    let identity = identity(data)?;
    let member = create::member(parsed, identity.fingerprint(), vec![dialable(listen)]).map_err(Failure::usage)?;
    write_object(data, &member.file(), &member.to_text())?;
    let local = Local {
        name: name.into(),
        listen,
        roots,
        domain: random_id().to_string(),
        founder: true,
        recovery: "auto".into(),
    };
    data.save(&local)?;
    data.note_listened(listen)?;
    made(data, &format!("made a domain with the member {name}"));
    Ok(())
}

fn write_object(data: &Data, file: &str, text: &str) -> Result<(), Failure> {
    let path = data.domain().join(file);
    let write = || {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        write_whole_by(&path, &data.0, text.as_bytes())
    };
    write().map_err(|e| Failure::failed(format!("cannot write {}", path.display())).because(e.to_string()))
}

async fn join(
    data: &Data,
    invitation: &str,
    name: &str,
    listen: SocketAddr,
    roots: Vec<PathBuf>,
) -> Result<(), Failure> {
    let invitation: Invitation = invitation.trim().parse().map_err(|e: anabranch_net::InvitationError| {
        Failure::usage("the invitation cannot be used")
            .because(chain(&e))
            .hint("copy the whole line that `anabranch invite` printed")
    })?;
    let _: ObjectName =
        name.parse().map_err(|e| Failure::usage(format!("{name:?} is no name")).because(format!("{e}")))?;
    fresh(data)?;
    let roots = check_roots(&roots)?;
    data.create()?;
    let identity = identity(data)?;
    let address = if listen.ip().is_unspecified() { listen.to_string() } else { dialable(listen) };
    let request = JoinRequest { secret: invitation.secret, name: name.into(), address };
    let mut last = Failure::failed("the invitation names no address");
    for inviter in &invitation.addresses {
        match anabranch_net::join(inviter, &identity, invitation.inviter, &request).await {
            Ok(JoinReply::Accepted { payload }) => {
                let welcome: Welcome = serde_json::from_slice(&payload).map_err(|e| {
                    Failure::failed(format!("the answer of {inviter} cannot be read")).because(e.to_string())
                })?;
                let files: BTreeMap<String, String> = welcome.files;
                for (file, text) in &files {
                    let object = anabranch_domain::parse(file, text).map_err(|e| {
                        Failure::failed(format!("the answer of {inviter} cannot be used")).because(e.to_string())
                    })?;
                    write_object(data, &object.file(), text)?;
                }
                let local = Local {
                    name: name.into(),
                    listen,
                    roots,
                    domain: welcome.domain,
                    founder: false,
                    recovery: "auto".into(),
                };
                data.save(&local)?;
                data.note_listened(listen)?;
                made(data, &format!("joined the domain by {inviter} as the member {name}"));
                return Ok(());
            }
            Ok(JoinReply::Refused { reason }) => {
                let text =
                    if reason.contains("invitation") { reason } else { format!("{reason} (invitation refused)") };
                return Err(Failure::failed(format!("{inviter} refused: {text}"))
                    .hint("ask for a new one: `anabranch invite --name NAME` on a member"));
            }
            Err(error) => {
                last = Failure::failed(format!("cannot join by {inviter}"))
                    .because(chain(&error))
                    .hint("is the inviting member running, is the invitation still valid, and can this machine reach its address?");
            }
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_their_mistakes() {
        for (text, want) in [("30s", 30_000), ("15m", 900_000), ("1h", 3_600_000), ("250ms", 250), ("7", 7_000)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(want)), "{text}");
        }
        for bad in ["", "h", "1y", "-1s", "99999999999999999999s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert_eq!(validity("365d"), Ok(Duration::from_secs(INVITATION_SECONDS_MAX)));
        for bad in ["0s", "999ms", "366d", "18446744073709551615s"] {
            assert!(validity(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn time_of_day() {
        assert_eq!(clock(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(clock(951_782_399_000_000), "2000-02-28 23:59:59 UTC");
        assert_eq!(clock(1_709_251_200_000_000), "2024-03-01 00:00:00 UTC");
    }
}
