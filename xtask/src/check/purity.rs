//! The pure crates: same inputs, same outputs. They may neither depend on nor name anything that brings in time,
//! randomness, threads, I/O, or an order that differs between two runs (design, section 3).

use super::Finding;
use super::layers::Workspace;
use crate::code;
use crate::repository::Repository;

/// Directories of the pure crates.
const PURE: [&str; 3] = ["crates/model", "crates/domain", "crates/engine"];

/// What a pure crate may depend on besides other pure crates. A list of what is allowed, since nobody can list
/// everything that reads a clock.
const ALLOWED: [&str; 7] =
    ["blake3", "serde", "serde_json", "thiserror", "toml", "unicode-case-mapping", "unicode-normalization"];

/// What its tests may use besides.
const ALLOWED_IN_TESTS: [&str; 1] = ["proptest"];

/// Paths that the sources may not name, with what to do instead. A path covers what lies below it.
const FORBIDDEN: [(&str, &str); 13] = [
    ("std::time::Instant", "take the time as an argument"),
    ("std::time::SystemTime", "take the time as an argument"),
    ("std::fs", "ask for I/O by an action"),
    ("std::net", "ask for I/O by an action"),
    ("std::os", "ask for I/O by an action"),
    ("std::io::stdin", "ask for I/O by an action"),
    ("std::thread", "be called from one"),
    ("std::env", "take configuration as an argument"),
    ("std::process", "return an error"),
    ("std::collections::HashMap", "use BTreeMap: its order is the same in every run"),
    ("std::collections::HashSet", "use BTreeSet: its order is the same in every run"),
    ("std::collections::hash_map", "use BTreeMap: its order is the same in every run"),
    ("std::hash::RandomState", "take randomness as an argument"),
];

/// Names that are forbidden however they were brought in.
const FORBIDDEN_NAMES: [&str; 6] = ["Instant", "SystemTime", "HashMap", "HashSet", "RandomState", "UNIX_EPOCH"];

/// What the `clippy.toml` of a pure crate must disallow, so that the compiler sees what a text scan cannot.
const LINTED: [(&str, &str); 4] = [
    ("disallowed-methods", "std::time::Instant::now"),
    ("disallowed-methods", "std::time::SystemTime::now"),
    ("disallowed-types", "std::collections::HashMap"),
    ("disallowed-types", "std::collections::HashSet"),
];

/// Dependencies of pure crates that are not on the list.
pub(crate) fn dependencies(workspace: &Workspace) -> Vec<Finding> {
    let pure = |dir: &str| PURE.contains(&dir);
    let pure_names: Vec<&str> =
        workspace.members.iter().filter(|member| pure(&member.dir)).map(|member| member.name.as_str()).collect();
    let mut findings = Vec::new();
    for member in workspace.members.iter().filter(|member| pure(&member.dir)) {
        for (kind, name) in &member.dependencies {
            let name = name.as_str();
            let test = *kind == "dev-dependency" && ALLOWED_IN_TESTS.contains(&name);
            if !(test || ALLOWED.contains(&name) || pure_names.contains(&name)) {
                let text = format!("{kind} on {name}: a pure crate may use only {}", ALLOWED.join(", "));
                findings.push(Finding::new(&member.manifest(), 0, "purity", text));
            }
        }
    }
    findings
}

/// Pure crates whose `clippy.toml` is missing or lets through what it must not.
pub(crate) fn lint_files(repository: &Repository) -> Vec<Finding> {
    let mut findings = Vec::new();
    for dir in PURE {
        let path = format!("{dir}/clippy.toml");
        let Some(text) = repository.text(&path) else {
            findings.push(Finding::new(&path, 0, "purity", "is missing: a pure crate lists what it disallows"));
            continue;
        };
        let table = match text.parse::<toml::Table>() {
            Ok(table) => table,
            Err(error) => {
                findings.push(Finding::new(&path, 0, "purity", format!("cannot be read: {error}")));
                continue;
            }
        };
        for (list, wanted) in LINTED {
            let entries = table.get(list).and_then(toml::Value::as_array).map(Vec::as_slice).unwrap_or_default();
            let named = |entry: &toml::Value| {
                entry.as_str().or_else(|| entry.get("path").and_then(toml::Value::as_str)) == Some(wanted)
            };
            if !entries.iter().any(named) {
                findings.push(Finding::new(&path, 0, "purity", format!("{list} lacks {wanted}")));
            }
        }
    }
    findings
}

/// Forbidden paths and names in the sources of pure crates.
pub(crate) fn sources(repository: &Repository) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, text) in repository.rust() {
        if !PURE.iter().any(|dir| path.strip_prefix(dir).is_some_and(|rest| rest.starts_with("/src/"))) {
            continue;
        }
        for (at, named) in code::paths(&code::blank(text)) {
            if let Some(why) = reason(&named) {
                let line = code::line_of(text, at);
                findings.push(Finding::new(path, line, "purity", format!("a pure crate names {named}: {why}")));
            }
        }
    }
    findings
}

fn reason(named: &str) -> Option<&'static str> {
    let named = named.strip_prefix("::").unwrap_or(named);
    let below = |path: &str| named == path || named.strip_prefix(path).is_some_and(|rest| rest.starts_with("::"));
    if let Some((_, why)) = FORBIDDEN.iter().find(|(path, _)| below(path)) {
        return Some(why);
    }
    let foreign = named.split("::").any(|part| FORBIDDEN_NAMES.contains(&part));
    foreign.then_some("time, randomness and order come in from outside")
}
