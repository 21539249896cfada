//! What a test needs of the machine. One that cannot run prints `skipped: …`, which `make test` collects, and passes.

use std::env;

/// Says why a test does not run here.
pub fn skip(reason: &str) {
    eprintln!("skipped: {reason}");
}

/// Whether this is root; else says that the test is skipped, and for what it needs root.
#[must_use]
pub fn root_or_skip(what_for: &str) -> bool {
    let root = is_root();
    if !root {
        skip(&format!("not root: {what_for}"));
    }
    root
}

/// Whether all programs are there; else says which is not.
#[must_use]
pub fn programs_or_skip(programs: &[&str]) -> bool {
    for program in programs {
        if !has_program(program) {
            skip(&format!("{program} is not installed"));
            return false;
        }
    }
    true
}

/// Whether this process is root.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether a program is on the path or where administrators' programs are.
#[must_use]
pub fn has_program(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]).any(|dir| dir.join(program).is_file())
}
