//! Repository tasks: `check` enforces what the compiler does not, `test` runs everything in order and sums it up.
//!
//! Owns the rules of layout (layers, purity, module heads, size of the lock file) and the order of `make test`. It must
//! never be needed to build or run the program.

use std::env;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

mod check;
mod code;
mod repository;
mod run;

const USAGE: &str = "usage: cargo xtask check | test | torture";

fn main() -> ExitCode {
    match dispatch() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Runs the task that the command line names; `false` when it found something wrong.
fn dispatch() -> Result<bool> {
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let root = workspace_root()?;
    match words.as_slice() {
        ["check"] => check_repository(&root),
        ["test"] => run::everything(&root, &run::Plan::test()),
        ["torture"] => run::everything(&root, &run::Plan::torture()),
        _ => bail!("{USAGE}"),
    }
}

fn check_repository(root: &Path) -> Result<bool> {
    let repository = repository::Repository::load(root).context("read the repository")?;
    let findings = check::all(&repository);
    for finding in &findings {
        eprintln!("{finding}");
    }
    eprintln!("xtask check: {} files, {} findings", repository.files.len(), findings.len());
    Ok(findings.is_empty())
}

/// The workspace's root: where cargo built this program from, else the working directory.
fn workspace_root() -> Result<PathBuf> {
    let here = env::var_os("CARGO_MANIFEST_DIR").map_or_else(env::current_dir, |dir| Ok(PathBuf::from(dir)));
    let here = here.context("find the working directory")?;
    here.ancestors()
        .find(|dir| dir.join("Cargo.lock").is_file())
        .map(Path::to_path_buf)
        .context("no Cargo.lock here or above")
}
