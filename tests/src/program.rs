//! Running programs: the one under test and the tools of the scenarios, always with a limit.

use std::env;
use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::until::{Look, until};

/// What came of a command.
#[derive(Clone, Debug)]
pub struct Ran {
    /// The command, for messages.
    pub command: String,
    /// Exit code; -1 where a signal ended it.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Ran {
    /// Standard output without the blank around it, of a command that succeeded.
    ///
    /// # Errors
    /// When the exit code is not 0: with everything it said.
    pub fn done(&self) -> Result<String> {
        ensure!(self.code == 0, "{self}");
        Ok(self.out.trim().to_owned())
    }

    /// Holds the command to an exit code and to words (in any case) that standard error must have.
    ///
    /// # Errors
    /// When it ended otherwise or said something else.
    pub fn refused(&self, code: i32, words: &[&str]) -> Result<()> {
        ensure!(self.code == code, "expected exit code {code}: {self}");
        ensure!(!self.err.trim().is_empty(), "failed without a word: {self}");
        let said = self.err.to_lowercase();
        for word in words {
            ensure!(said.contains(&word.to_lowercase()), "standard error does not mention `{word}`: {self}");
        }
        ensure!(!said.contains("panicked"), "a bug, not an error: {self}");
        Ok(())
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` ended with {}", self.command, self.code)?;
        write!(f, "\n--- standard output\n{}\n--- standard error\n{}", self.out.trim(), self.err.trim())
    }
}

/// Runs a command to its end.
///
/// # Errors
/// When it does not start, or is not done within `limit` (it is ended then).
pub fn run(command: &mut Command, limit: Duration) -> Result<Ran> {
    let shown = show(command);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("start `{shown}`"))?;
    // Both pipes are read while it runs: a full one would stop it.
    let out = child.stdout.take().map(|pipe| thread::spawn(move || slurp(pipe)));
    let err = child.stderr.take().map(|pipe| thread::spawn(move || slurp(pipe)));
    let ended = until(&format!("`{shown}` to end"), limit, || {
        let status = child.try_wait().context("ask for the state of a child")?;
        Ok(status.map_or(Look::NotYet("it is running".to_owned()), Look::Yes))
    });
    let status = match ended {
        Ok(status) => status,
        Err(error) => {
            child.kill().context("end a command")?;
            child.wait().context("wait for a command")?;
            return Err(error);
        }
    };
    let text = |reader: Option<thread::JoinHandle<String>>| reader.and_then(|r| r.join().ok()).unwrap_or_default();
    Ok(Ran { command: shown, code: status.code().unwrap_or(-1), out: text(out), err: text(err) })
}

fn slurp(mut pipe: impl Read) -> String {
    let mut bytes = Vec::new();
    // What came before an error is still worth showing.
    let _ = pipe.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn show(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Runs a tool in a directory, with nothing of the user's configuration, and expects success.
///
/// # Errors
/// When it fails or takes more than ten minutes.
pub fn tool<S: AsRef<OsStr>>(dir: &Path, program: &str, arguments: &[S]) -> Result<String> {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(dir);
    command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null");
    for (name, value) in [("NAME", "A Writer"), ("EMAIL", "writer@example.org")] {
        command.env(format!("GIT_AUTHOR_{name}"), value).env(format!("GIT_COMMITTER_{name}"), value);
    }
    let path = env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    run(&mut command, Duration::from_secs(600))?.done()
}

/// The program under test.
///
/// # Errors
/// When there is none: with what to do.
pub fn anabranch() -> Result<PathBuf> {
    if let Some(path) = env::var_os("ANABRANCH_BIN") {
        let path = PathBuf::from(path);
        ensure!(path.is_file(), "ANABRANCH_BIN names {}, which is not there", path.display());
        return Ok(path);
    }
    // The test binary is in TARGET/PROFILE/deps; the program stands in the same profile, or a sibling.
    let this = env::current_exe().context("find this test's own binary")?;
    let Some(profile) = this.ancestors().nth(2) else { bail!("{} lies in no target folder", this.display()) };
    let siblings = profile.parent().map(|target| [target.join("release"), target.join("debug")]);
    std::iter::once(profile.to_path_buf())
        .chain(siblings.into_iter().flatten())
        .map(|dir| dir.join("anabranch"))
        .find(|path| path.is_file())
        .with_context(|| "no anabranch program: run `cargo build -p anabranch` first, or set ANABRANCH_BIN")
}
