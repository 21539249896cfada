//! Runs a command on a disk that records, then a check on what power cuts would have left. See the library.
//!
//! Exit codes: 0 every check passed; 1 one did not; 2 usage; 3 it could not be done here.

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use anabranch_powercut::{Bed, FileSystem, Replayed};
use clap::{Parser, ValueEnum};
use rustix::process::{Pid, Signal, kill_process_group};

/// Shows what power cuts do to a program's files
#[derive(Parser, Debug)]
#[command(name = "powercut", version)]
struct Arguments {
    /// File system to run on
    #[arg(long, value_enum, default_value = "ext4")]
    fs: Kind,
    /// Size of the disk, MiB (XFS needs 300)
    #[arg(long, default_value_t = 512)]
    size_mib: u64,
    /// How many power cuts to look at
    #[arg(long, default_value_t = 40)]
    cuts: usize,
    /// Decides where the cuts fall and what they leave
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Kill the work after so many seconds; else it runs to its end
    #[arg(long)]
    seconds: Option<u64>,
    /// Shell command that works in $POWERCUT_DIR; each line that it prints is a mark: what must hold from then on
    #[arg(long)]
    work: String,
    /// Shell command that looks at $POWERCUT_DIR after each cut; the marks until then are lines of $POWERCUT_MARKS
    #[arg(long)]
    check: String,
}

#[derive(Clone, Copy, ValueEnum, Debug)]
enum Kind {
    Ext4,
    Xfs,
    Btrfs,
}

impl From<Kind> for FileSystem {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Ext4 => Self::Ext4,
            Kind::Xfs => Self::Xfs,
            Kind::Btrfs => Self::Btrfs,
        }
    }
}

fn shell(command: &str, directory: &Path) -> Command {
    let mut shell = Command::new("/bin/sh");
    shell.arg("-c").arg(command).env("POWERCUT_DIR", directory).stdin(Stdio::null()).process_group(0);
    shell
}

/// Ends a command and all that it started, as a power cut would.
fn kill(child: &Child) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // It may have ended by itself.
        let _ = kill_process_group(group, Signal::KILL);
    }
}

/// Runs the work; its lines become marks.
fn work(bed: &Bed, arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let mut child = shell(&arguments.work, bed.path()).stdout(Stdio::piped()).spawn()?;
    let lines = BufReader::new(child.stdout.take().ok_or("no standard output")?).lines();
    let marker = bed.marker();
    let (ended, end) = channel::<()>();
    let reader = thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            marker.mark(line);
        }
        drop(ended);
    });
    match arguments.seconds {
        Some(seconds) => {
            let timed_out = end.recv_timeout(Duration::from_secs(seconds)) == Err(RecvTimeoutError::Timeout);
            kill(&child);
            child.wait()?;
            if !timed_out {
                writeln!(std::io::stderr(), "the work ended by itself")?;
            }
        }
        None => {
            let status = child.wait()?;
            kill(&child);
            if !status.success() {
                return Err(format!("the work failed ({status})").into());
            }
        }
    }
    reader.join().map_err(|_| "the reader of marks panicked")?;
    Ok(())
}

/// Runs the check; says whether it passed.
fn check(arguments: &Arguments, replayed: &Replayed<'_>) -> Result<bool, Box<dyn Error>> {
    let mut marks = tempfile::NamedTempFile::new()?;
    for mark in replayed.marks {
        writeln!(marks, "{mark}")?;
    }
    let mut child = shell(&arguments.check, replayed.path).env("POWERCUT_MARKS", marks.path()).spawn()?;
    let status = child.wait()?;
    kill(&child);
    Ok(status.success())
}

fn run(arguments: &Arguments) -> Result<bool, Box<dyn Error>> {
    let bed = Bed::start(arguments.fs.into(), arguments.size_mib << 20)?;
    work(&bed, arguments)?;
    let recording = bed.finish()?;
    let (mut looked, mut failed) = (0, 0);
    let mut out = std::io::stdout();
    for cut in recording.cuts(arguments.cuts, arguments.seed) {
        looked += 1;
        if !recording.replay(cut, |replayed| check(arguments, replayed))?? {
            failed += 1;
            writeln!(out, "the check failed: {cut}")?;
        }
    }
    writeln!(out, "{looked} power cuts among {} barriers: {failed} failed", recording.barriers().count())?;
    Ok(failed == 0)
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(e) => {
            let mut text = format!("error: {e}");
            let mut cause = e.source();
            while let Some(e) = cause {
                text.push_str(&format!("\n  caused by: {e}"));
                cause = e.source();
            }
            // Nobody reads it where standard error is closed.
            let _ = writeln!(std::io::stderr(), "{text}");
            ExitCode::from(3)
        }
    }
}
