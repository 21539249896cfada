//! The independent referee: rsync, asked what it would do to make one tree the other.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::program;
use crate::skip;

/// What rsync would change in `two` to make it `one`, a line an item; empty when they are equal. Names, types, contents,
/// modes, owners, times, ACLs and xattrs; not the times of directories, nor our own directory.
///
/// Without rsync it says so, once a call, and finds nothing: the snapshots still compare.
///
/// # Errors
/// When rsync fails.
pub fn difference(one: &Path, two: &Path) -> Result<String> {
    if !skip::has_program("rsync") {
        skip::skip("rsync is not installed: the referee is missing, only our own comparison was made");
        return Ok(String::new());
    }
    let mut command = Command::new("rsync");
    command.args(["-aAXOn", "--checksum", "--delete", "--itemize-changes", "--exclude=/.anabranch/"]);
    command.arg(format!("{}/", one.display())).arg(format!("{}/", two.display())).env("LC_ALL", "C");
    let ran = program::run(&mut command, Duration::from_secs(600))?;
    // 24: a file vanished meanwhile. The trees are not at rest, which is a difference like any other.
    ensure!(matches!(ran.code, 0 | 24), "{ran}");
    // Sockets, devices and FIFOs are not replicated, and the program says so; rsync run by root would make them.
    let out: Vec<&str> = ran
        .out
        .lines()
        .filter(|line| !["cS+++++++++", "cD+++++++++"].iter().any(|made| line.starts_with(made)))
        .collect();
    let vanished = if ran.code == 24 { ran.err.trim() } else { "" };
    Ok(format!("{}{vanished}", out.join("\n").trim()))
}
