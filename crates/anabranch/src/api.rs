//! What the daemon answers on its local socket.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anabranch_console::{Failure, Request};
use anabranch_domain::{
    FolderName, Names, ObjectName, Policy, Topology, create, object::check_path, parse_topology, problems_of_change,
};
use anabranch_member::Preserved;
use anabranch_member::host::{Host, chain, random_id};
use anabranch_model::FolderId;
use serde_json::{Value, json};

use crate::daemon::{DOMAIN, Daemon};

/// How long a comparison of sums may take.
const VERIFY_LIMIT: Duration = Duration::from_secs(600);
/// Items that are counted; that there are more is as good.
const OUTSTANDING_MAX: usize = 1 << 20;

/// Answers a request.
pub(crate) async fn handle(daemon: Arc<Daemon>, request: Request) -> Result<Value, Failure> {
    let with = &request.with;
    match request.call.as_str() {
        "status" => status(&daemon).await,
        "invite" => {
            let valid = with["valid"].as_u64().unwrap_or(3600);
            crate::invitations::invite(&daemon, text(with, "name"), valid).map(Value::String)
        }
        "member.list" => Ok(member_list(&daemon)),
        "group.list" => Ok(group_list(&daemon)),
        "group.create" => group_create(&daemon, with),
        "folder.list" => Ok(folder_list(&daemon)),
        "folder.create" => folder_create(&daemon, with).await,
        "folder.wait" => folder_wait(&daemon, with).await,
        "folder.verify" => folder_verify(&daemon, with).await,
        "preserved.list" => preserved_list(&daemon, with).await,
        "preserved.restore" => preserved_restore(&daemon, with).await,
        "events" => {
            let after = with["after"].as_u64().unwrap_or(0);
            let events = daemon.journal.last(after, 10_000);
            events.map(Value::Array).map_err(|e| Failure::failed("cannot read the events").because(e.to_string()))
        }
        "recovery.resume" => {
            find(&daemon, with)?.0.resume().await;
            Ok(Value::Null)
        }
        other => Err(Failure::usage(format!("the daemon knows no call {other:?}")).hint("is it an older version?")),
    }
}

fn text(with: &Value, key: &str) -> Option<String> {
    with[key].as_str().map(str::to_owned)
}

fn name(with: &Value, key: &str) -> Result<ObjectName, Failure> {
    let text = text(with, key).ok_or_else(|| Failure::usage(format!("{key} is missing")))?;
    parse_name(&text)
}

fn parse_name(text: &str) -> Result<ObjectName, Failure> {
    text.parse().map_err(|e| Failure::usage(format!("{text:?} is no name")).because(format!("{e}")))
}

fn folder_name(with: &Value) -> Result<FolderName, Failure> {
    let text = text(with, "name").ok_or_else(|| Failure::usage("the folder's name is missing"))?;
    text.parse().map_err(|e| {
        Failure::usage(format!("{text:?} is no folder's name"))
            .because(format!("{e}"))
            .hint("it is GROUP/FOLDER, such as web/site")
    })
}

/// The folder that a request names, running here.
fn find(daemon: &Daemon, with: &Value) -> Result<(Arc<Host>, String), Failure> {
    let wanted = text(with, "name").unwrap_or_default();
    let folders = daemon.folders.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(running) = folders.values().find(|r| r.name == wanted) {
        return Ok((Arc::clone(&running.host), running.name.clone()));
    }
    let names: Vec<&str> = folders.values().map(|r| r.name.as_str()).filter(|n| *n != DOMAIN).collect();
    let known = daemon.domain.read().unwrap_or_else(PoisonError::into_inner);
    let exists = known.0.folders.keys().any(|f| f.to_string() == wanted);
    let refused = daemon.refused.lock().unwrap_or_else(PoisonError::into_inner);
    let failure = if let Some(refused) = refused.values().find(|r| r.name == wanted) {
        Failure::failed(format!("the folder {wanted} cannot be kept on {}", daemon.local.name))
            .because(format!("{}: {}", refused.path, refused.cause))
            .hint("remove the cause; it is tried again by itself")
    } else if exists {
        Failure::failed(format!("the folder {wanted} is not kept on {}", daemon.local.name))
            .hint("see `anabranch events` if it should be")
    } else {
        Failure::usage(format!("there is no folder {wanted}")).hint(if names.is_empty() {
            "there are none yet".into()
        } else {
            format!("kept here: {}", names.join(", "))
        })
    };
    Err(failure)
}

fn stopped(folder: &str, host: &Host) -> Failure {
    let failure = Failure::failed(format!("the folder {folder} is not open now"));
    match host.status().error {
        Some(cause) => failure.because(cause).hint("it is tried again by itself; see `anabranch events`"),
        None => failure,
    }
}

async fn status(daemon: &Arc<Daemon>) -> Result<Value, Failure> {
    let running: Vec<_> = {
        let folders = daemon.folders.lock().unwrap_or_else(PoisonError::into_inner);
        folders
            .iter()
            .map(|(id, r)| (*id, r.name.clone(), r.path.clone(), Arc::clone(&r.host), r.members.clone()))
            .collect()
    };
    let mut folders = Vec::new();
    for (id, name, path, host, members) in running {
        let host_status = host.status();
        let seen = host
            .ask(|replica| {
                let words = replica.outstanding_words().unwrap_or_default();
                let (files, outstanding) = replica.counts().unwrap_or_default();
                let partly = replica.partly_fetched();
                (replica.phase(), files, outstanding, words, (replica.counters(), partly), replica.replica_id())
            })
            .await;
        let links = daemon.links.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let partners: Vec<Value> = links
            .iter()
            .filter(|((folder, _, _), _)| *folder == id)
            .map(|((_, partner, upstream), count)| {
                json!({"partner": partner, "role": if *upstream { "upstream" } else { "downstream" }, "connected": *count > 0})
            })
            .collect();
        let (phase, files, outstanding, words, counters, replica) = match seen {
            Some((phase, files, outstanding, words, counters, replica)) => (
                match phase {
                    anabranch_member::Phase::Joining => "initial sync",
                    anabranch_member::Phase::Normal => "normal",
                    anabranch_member::Phase::Returning => "comparing",
                },
                files,
                outstanding,
                words,
                Some(counters),
                Some(replica.to_string()),
            ),
            None => ("stopped", 0, 0, Vec::new(), None, None),
        };
        let (counters, partly) = counters.unzip();
        let installed = counters.map_or(0, |c| c.installs);
        let wire = daemon.wire_bytes(id);
        folders.push(json!({
            "name": name,
            "id": id.to_string(),
            "path": path.display().to_string(),
            "members": members,
            "state": phase,
            "error": host_status.error,
            "watching": host_status.watching,
            "files": files,
            "outstanding": outstanding,
            "in_step": phase == "normal" && words.is_empty(),
            "waits_for": words,
            "partners": partners,
            "installed": installed,
            "content_sent": counters.map_or(0, |c| c.content_sent),
            "content_received": counters.map_or(0, |c| c.content_received),
            "resumed": counters.map_or(0, |c| c.resumed),
            "partly_fetched": partly.map_or(0, |(received, _)| received),
            "partly_fetched_noted": partly.map_or(0, |(_, noted)| noted),
            "wire_sent": wire.0,
            "wire_received": wire.1,
            "replica": replica,
        }));
    }
    let refused = daemon.refused.lock().unwrap_or_else(PoisonError::into_inner).clone();
    for (id, refused) in refused {
        // With the fields of a folder that runs, as far as there is anything to say.
        folders.push(json!({
            "name": refused.name, "id": id.to_string(), "path": refused.path, "members": refused.members,
            "state": "not kept", "error": refused.cause, "watching": "", "files": 0, "outstanding": 0, "in_step": false,
            "waits_for": [], "partners": [], "installed": 0, "content_sent": 0, "content_received": 0, "resumed": 0,
            "partly_fetched": 0, "partly_fetched_noted": 0, "wire_sent": 0, "wire_received": 0, "replica": null,
        }));
    }
    let problems = daemon.domain.read().unwrap_or_else(PoisonError::into_inner).2.clone();
    Ok(json!({
        "member": daemon.local.name,
        "listen": daemon.local.listen.to_string(),
        "key": daemon.identity.fingerprint().to_string(),
        "members": member_list(daemon),
        "folders": folders,
        "problems": problems,
    }))
}

fn member_list(daemon: &Daemon) -> Value {
    let domain = daemon.domain.read().unwrap_or_else(PoisonError::into_inner);
    let members = domain.0.members.iter().map(|(name, member)| {
        json!({"name": name.to_string(), "addresses": member.addresses, "key": member.key.to_string()})
    });
    Value::Array(members.collect())
}

fn group_list(daemon: &Daemon) -> Value {
    let domain = daemon.domain.read().unwrap_or_else(PoisonError::into_inner);
    let groups = domain.0.groups.iter().map(|(name, group)| {
        let members: Vec<String> = group.members.iter().map(ToString::to_string).collect();
        let connections: Vec<Value> = group
            .connections
            .iter()
            .map(|c| json!({"downstream": c.downstream.to_string(), "upstream": c.upstream.to_string()}))
            .collect();
        json!({"name": name.to_string(), "members": members, "connections": connections})
    });
    Value::Array(groups.collect())
}

fn folder_list(daemon: &Daemon) -> Value {
    let domain = daemon.domain.read().unwrap_or_else(PoisonError::into_inner);
    let folders = domain.0.folders.iter().map(|(name, folder)| {
        let paths: serde_json::Map<String, Value> =
            folder.memberships.iter().map(|(m, membership)| (m.to_string(), json!(membership.path))).collect();
        json!({
            "name": name.to_string(), "id": folder.id.to_string(), "primary": folder.primary.to_string(),
            "names": folder.names.word(), "paths": paths,
        })
    });
    Value::Array(folders.collect())
}

fn check(daemon: &Daemon, what: &str, put: &[anabranch_domain::Object]) -> Result<(), Failure> {
    let domain = daemon.domain.read().unwrap_or_else(PoisonError::into_inner);
    for object in put {
        if domain.1.iter().any(|o| o.key() == object.key()) {
            return Err(Failure::usage(format!("there is a {} already", object.key())).hint("choose another name"));
        }
    }
    match problems_of_change(&domain.1, put, &[]).first() {
        None => Ok(()),
        Some(problem) => Err(Failure::usage(what.to_owned())
            .because(format!("{}: {}", problem.object, problem.cause))
            .hint(problem.next.clone())),
    }
}

fn group_create(daemon: &Arc<Daemon>, with: &Value) -> Result<Value, Failure> {
    let group = name(with, "name")?;
    let members = with["members"].as_array().cloned().unwrap_or_default();
    let members: Vec<ObjectName> =
        members.iter().filter_map(Value::as_str).map(parse_name).collect::<Result<_, _>>()?;
    let asked = text(with, "topology").unwrap_or_else(|| "mesh".into());
    let topology = parse_topology(&asked).map_err(|cause| {
        Failure::usage(format!("{asked:?} is no topology")).because(cause).hint("it is mesh, hub:MEMBER or chain")
    })?;
    if matches!(topology, Topology::Custom(_)) {
        return Err(Failure::usage("a custom topology cannot be made by this command")
            .because("it has no connections, and there is no command yet that makes them")
            .hint("use mesh, hub:MEMBER or chain"));
    }
    let object = create::group(group.clone(), members, topology, Vec::new()).map_err(Failure::usage)?;
    check(daemon, &format!("the group {group} cannot be made"), std::slice::from_ref(&object))?;
    daemon.write_objects(&[object])?;
    Ok(json!({"group": group.to_string()}))
}

async fn folder_create(daemon: &Arc<Daemon>, with: &Value) -> Result<Value, Failure> {
    let folder = folder_name(with)?;
    let primary = name(with, "primary")?;
    let mut paths = Vec::new();
    for entry in with["paths"].as_array().cloned().unwrap_or_default() {
        let (member, path) = (entry["member"].as_str().unwrap_or_default(), entry["path"].as_str().unwrap_or_default());
        paths.push((parse_name(member)?, path.to_owned()));
    }
    let policy = match text(with, "policy").as_deref() {
        None | Some("preserve") => Policy::Preserve,
        Some("keep") => Policy::Keep,
        Some(other) => return Err(Failure::usage(format!("{other:?} is no policy")).hint("it is preserve or keep")),
    };
    let names =
        text(with, "names").map_or(Ok(Names::default()), |word| Names::of_word(&word)).map_err(Failure::usage)?;
    let what = format!("the folder {folder} cannot be made");
    for (member, path) in &paths {
        let refused = |cause: String| {
            Failure::usage(what.clone())
                .because(format!("{path} on {member}: {cause}"))
                .hint("remove the cause, or name another directory with --path")
        };
        check_path(path).map_err(&refused)?;
        if member.to_string() == daemon.local.name {
            let trimmed = path.strip_suffix('/').filter(|p| !p.is_empty()).unwrap_or(path);
            daemon.check_path(trimmed).map_err(&refused)?;
        }
    }
    let id = FolderId(random_id().0);
    let objects = create::folder(&folder, id, primary, &paths, policy, names)
        .map_err(|cause| Failure::usage(what.clone()).because(cause))?;
    check(daemon, &what, &objects)?;
    // The folder's own object comes last: with it the memberships take effect, all at once.
    let mut objects = objects;
    objects.rotate_left(1);
    daemon.write_objects(&objects)?;
    Ok(json!({"folder": folder.to_string(), "id": id.to_string()}))
}

async fn folder_wait(daemon: &Arc<Daemon>, with: &Value) -> Result<Value, Failure> {
    let limit = Duration::from_millis(with["timeout_ms"].as_u64().unwrap_or(60_000));
    let until = tokio::time::Instant::now() + limit;
    let wanted = text(with, "name").unwrap_or_default();
    let mut words;
    if let Ok((host, _)) = find(daemon, with) {
        // What was written before the command counts.
        if tokio::time::timeout_at(until, host.take_note()).await.is_err() {
            tracing::warn!(folder = wanted, "local changes were not all looked at in time");
        }
    }
    loop {
        // A folder that was just made may not run here yet.
        let found = find(daemon, with);
        match found {
            Err(failure) if failure.code == 2 => return Err(failure),
            Err(failure) => words = vec![failure.error],
            Ok((host, name)) => {
                words = match host.ask(|replica| replica.outstanding_words()).await {
                    Some(Ok(words)) => words,
                    Some(Err(stop)) => vec![chain(&stop)],
                    None => vec![stopped(&name, &host).cause.unwrap_or_else(|| "the folder is not open".into())],
                };
                if words.is_empty() {
                    return Ok(json!({"folder": name, "in_step": true}));
                }
                let mut changes = host.changes();
                changes.mark_unchanged();
                let wait = tokio::time::sleep(Duration::from_millis(10));
                tokio::pin!(wait);
                tokio::select! {
                    _ = changes.changed() => {}
                    () = &mut wait => {}
                }
            }
        }
        if tokio::time::Instant::now() >= until {
            break;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let mut failure = Failure { code: 1, ..Failure::failed(format!("the folder {wanted} is not in step")) };
    failure.cause = Some(words.join("; "));
    Err(failure.hint("see `anabranch status`, or wait longer with --timeout"))
}

async fn folder_verify(daemon: &Arc<Daemon>, with: &Value) -> Result<Value, Failure> {
    let (host, folder) = find(daemon, with)?;
    let data = with["data"].as_bool().unwrap_or(false);
    let began = host.ask(|replica| replica.begin_verify().map_err(|e| chain(&e))).await;
    began
        .ok_or_else(|| stopped(&folder, &host))?
        .map_err(|e| Failure::failed(format!("cannot compare {folder}")).because(e))?;
    let until = tokio::time::Instant::now() + VERIFY_LIMIT;
    let outcome = loop {
        let outcome = host.ask(|replica| replica.verify_outcome()).await.ok_or_else(|| stopped(&folder, &host))?;
        if let Some(outcome) = outcome {
            break outcome;
        }
        if tokio::time::Instant::now() >= until {
            return Err(Failure::failed(format!("the partners of {folder} did not answer in time")));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let mut rot = Vec::new();
    if data {
        let read = host.ask(|replica| replica.verify_data().map_err(|e| chain(&e))).await;
        let read = read.ok_or_else(|| stopped(&folder, &host))?;
        rot = read.map_err(|e| Failure::failed(format!("cannot read {folder}")).because(e))?;
    }
    // A proof needs every upstream partner: one that is away, or went away meanwhile, proves nothing.
    let missing: Vec<String> = {
        let domain = daemon.domain.read().unwrap_or_else(PoisonError::into_inner);
        let own = parse_name(&daemon.local.name)?;
        let upstreams =
            folder.parse().map(|name| domain.0.upstreams(&name, &own).into_iter().map(ToString::to_string).collect());
        let upstreams: Vec<String> = upstreams.unwrap_or_default();
        upstreams.into_iter().filter(|u| !outcome.iter().any(|c| c.partner == *u && c.complete)).collect()
    };
    // Records that are equal prove nothing of what is not in place yet, here or there, and of what could not be read.
    let here = host.ask(|replica| replica.outstanding(OUTSTANDING_MAX).map_err(|e| chain(&e))).await;
    let here = here.ok_or_else(|| stopped(&folder, &host))?;
    let here = here.map_err(|e| Failure::failed(format!("cannot compare {folder}")).because(e))?;
    let alone = outcome.is_empty() && missing.is_empty();
    let equal = rot.is_empty()
        && missing.is_empty()
        && here == 0
        && outcome.iter().all(|c| c.paths.is_empty() && c.outstanding == 0)
        // Where nothing was compared, nothing is proved; the bytes here may have been all that was asked for.
        && (!alone || data);
    let partners: Vec<Value> = outcome
        .iter()
        .map(|c| json!({"partner": c.partner, "compared_at": c.at, "outstanding": c.outstanding, "differ": c.paths}))
        .collect();
    Ok(
        json!({"folder": folder, "equal": equal, "not_in_place": here, "partners": partners, "not_compared": missing, "unreadable_or_changed": rot, "data": data}),
    )
}

fn preserved_json(item: &Preserved) -> Value {
    json!({
        "id": item.number.to_string(),
        "number": item.number,
        "class": if item.reason.unseen() { "unseen" } else { "seen" },
        "reason": item.reason.word(),
        "path": String::from_utf8_lossy(&item.path),
        "path_bytes": item.path.escape_ascii().to_string(),
        "when": item.when.0,
        "size": item.size,
        "directory": item.directory,
        "hash": item.hash.map(|h| h.iter().map(|b| format!("{b:02x}")).collect::<String>()),
        "version": item.version.map(|v| v.to_string()),
        "replaced_by": item.replaced_by.map(|v| v.to_string()),
        "kept": format!(".anabranch/{}/{}", String::from_utf8_lossy(item.directory_name()), String::from_utf8_lossy(&item.file_name())),
    })
}

async fn preserved_list(daemon: &Arc<Daemon>, with: &Value) -> Result<Value, Failure> {
    let (host, folder) = find(daemon, with)?;
    let mut out = Vec::new();
    let mut after = 0;
    loop {
        let page = host.ask(move |replica| replica.preserved(after, 1000).map_err(|e| chain(&e))).await;
        let page = page
            .ok_or_else(|| stopped(&folder, &host))?
            .map_err(|e| Failure::failed("cannot read the manifest").because(e))?;
        let Some(last) = page.last() else { return Ok(Value::Array(out)) };
        after = last.number;
        out.extend(page.iter().filter(|i| !i.pending).map(preserved_json));
    }
}

/// Puts items back, each by itself: an array with the path of each, or why it could not be.
async fn preserved_restore(daemon: &Arc<Daemon>, with: &Value) -> Result<Value, Failure> {
    let (host, folder) = find(daemon, with)?;
    let numbers = with["numbers"].as_array().map(|numbers| numbers.iter().map(Value::as_u64).collect());
    let Some(Some(numbers)) = numbers else {
        return Err(Failure::usage("the numbers of the preserved items are missing"));
    };
    let numbers: Vec<u64> = numbers;
    let done = host.ask(move |replica| {
        let restore = |number| match replica.restore(number) {
            Ok(Ok(path)) => json!({"number": number, "path": path}),
            Ok(Err(cause)) => json!({"number": number, "error": cause}),
            Err(stop) => json!({"number": number, "error": chain(&stop)}),
        };
        numbers.into_iter().map(restore).collect()
    });
    Ok(Value::Array(done.await.ok_or_else(|| stopped(&folder, &host))?))
}
