//! Rules for every Rust file: a head that says what it owns, nothing unfinished, no test that waits by sleeping or is
//! left out, `unsafe` only where system calls are made.

use super::Finding;
use crate::code;
use crate::repository::Repository;

/// Crates whose modules may lift `unsafe_code` one by one.
const UNSAFE_ALLOWED: [&str; 2] = ["crates/volume/", "crates/powercut/"];

/// The one helper that polls a condition in the end-to-end tests: it alone may sleep between two looks.
const SLEEP_ALLOWED: [&str; 1] = ["tests/src/until.rs"];

/// Macros that stand for code that is not there.
const UNFINISHED: [&str; 2] = ["todo!", "unimplemented!"];

/// All findings in Rust files.
pub(crate) fn all(repository: &Repository) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, text) in repository.rust() {
        let code = code::blank(text);
        findings.extend(head(path, text));
        findings.extend(unfinished(path, &code));
        findings.extend(sleeps(path, &code));
        findings.extend(lifted_unsafe(path, &code));
    }
    findings
}

fn head(path: &str, text: &str) -> Option<Finding> {
    let missing = !text.starts_with("//!");
    missing.then(|| Finding::new(path, 1, "head", "does not begin with //! and what the module owns"))
}

fn unfinished(path: &str, code: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for word in UNFINISHED {
        for (at, _) in code.match_indices(word) {
            let joined = at > 0 && (code.as_bytes()[at - 1].is_ascii_alphanumeric() || code.as_bytes()[at - 1] == b'_');
            if !joined {
                findings.push(Finding::new(path, code::line_of(code, at), "unfinished", format!("{word} is a stub")));
            }
        }
    }
    for (at, _) in code.match_indices("#[ignore") {
        findings.push(Finding::new(path, code::line_of(code, at), "ignored", "a test that never runs proves nothing"));
    }
    findings
}

fn sleeps(path: &str, code: &str) -> Vec<Finding> {
    if SLEEP_ALLOWED.contains(&path) {
        return Vec::new();
    }
    let whole = path.starts_with("sim/")
        || path.split('/').any(|part| part == "tests" || part == "tests.rs" || part == "benches");
    let modules = code::test_modules(code);
    code::paths(code)
        .into_iter()
        .filter(|(_, named)| named.ends_with("thread::sleep"))
        .filter(|(at, _)| whole || modules.iter().any(|range| range.contains(at)))
        .map(|(at, _)| {
            Finding::new(path, code::line_of(code, at), "sleep", "wait for a condition with a deadline, not for time")
        })
        .collect()
}

fn lifted_unsafe(path: &str, code: &str) -> Vec<Finding> {
    if UNSAFE_ALLOWED.iter().any(|dir| path.starts_with(dir)) {
        return Vec::new();
    }
    ["allow(unsafe_code", "expect(unsafe_code"]
        .iter()
        .flat_map(|word| code.match_indices(word))
        .map(|(at, _)| Finding::new(path, code::line_of(code, at), "unsafe", "unsafe code belongs in crates/volume"))
        .collect()
}
