//! The demonstration: three members on this machine replicate a real tree, and what they do is measured and shown.
//!
//! The members are processes of this same executable, each with a data directory, a tree and a loopback port of its own
//! in one temporary folder; they talk over TLS as they would between servers. What changes the domain is done with the
//! program's own commands, what is asked goes over the local socket as the command line itself does it. The processes end
//! and the folder is removed whatever happens, short of `kill -9` on this process, which still ends the members.

mod acts;
mod compare;
mod source;
mod stage;
mod voice;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anabranch_console::Failure;
use tokio::signal::unix::{Signal, SignalKind, signal};

use stage::Stage;
use voice::Voice;

/// Why the demonstration stops before its end.
#[derive(Debug)]
pub(crate) enum Stop {
    /// Something went wrong.
    Failed(Failure),
    /// A signal came.
    Interrupted(&'static str),
    /// Standard output was closed: nobody looks any more, which is no error.
    Unseen,
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// What the steps of the demonstration give.
pub(crate) type Outcome<T> = Result<T, Stop>;

/// Set when work on other threads is to end early.
pub(crate) type Cancel = Arc<AtomicBool>;

/// Shows the demonstration; with `once` it ends with a summary, else it stays until Ctrl-C.
pub(crate) fn run(from: Option<PathBuf>, once: bool) -> Result<u8, Failure> {
    if let Some(parent) = std::env::var_os(stage::PARENT) {
        return Err(stage::become_member(&parent));
    }
    // On this thread alone: members die with the thread that started them.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::failed("cannot start").because(e.to_string()))?;
    runtime.block_on(show(from, once))
}

async fn show(from: Option<PathBuf>, once: bool) -> Result<u8, Failure> {
    let mut signals = Signals::listen()?;
    let cancel = Cancel::default();
    let mut voice = Voice::new();
    let source = tokio::select! {
        source = source::choose(from, &mut voice, &cancel) => source,
        name = signals.next() => Err(Stop::Interrupted(name)),
    };
    let source = match source {
        Ok(source) => Arc::new(source),
        Err(stop) => {
            cancel.store(true, Ordering::Relaxed);
            return end_of(Err(stop));
        }
    };
    let mut stage = Stage::new(source.need_bytes())?;
    let mut over = false;
    let played = tokio::select! {
        played = acts::play(&mut stage, &mut voice, &source, &cancel) => played,
        name = signals.next() => Err(Stop::Interrupted(name)),
    };
    let mut outcome = played;
    if outcome.is_ok() && !once {
        over = true;
        outcome = tokio::select! {
            stayed = acts::stay(&mut stage, &mut voice) => stayed,
            _ = signals.next() => Ok(()),
        };
    }
    cancel.store(true, Ordering::Relaxed);
    voice.end_progress();
    if over && outcome.is_ok() {
        // Nobody may be looking any more.
        let _ = voice.line("\nEnding the three members and removing their folder.");
    }
    if let Err(Stop::Failed(failure)) = &mut outcome {
        crate::complain(stage.logs().trim_end());
        if let Some(words) = stage.no_room_left() {
            failure.hint = Some(words);
        }
    }
    let ended = stage.end().await;
    end_of(outcome.and(ended.map_err(Stop::Failed)))
}

fn end_of(outcome: Outcome<()>) -> Result<u8, Failure> {
    match outcome {
        Ok(()) | Err(Stop::Unseen) => Ok(0),
        Err(Stop::Failed(failure)) => Err(failure),
        Err(Stop::Interrupted(name)) => {
            Err(Failure::failed("the demonstration was interrupted").because(format!("{name} came before its end")))
        }
    }
}

/// The signals that end the demonstration.
struct Signals(Signal, Signal, Signal);

impl Signals {
    fn listen() -> Result<Self, Failure> {
        let on = |kind| signal(kind).map_err(|e| Failure::failed("cannot take signals").because(e.to_string()));
        Ok(Self(on(SignalKind::interrupt())?, on(SignalKind::terminate())?, on(SignalKind::hangup())?))
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.0.recv() => "SIGINT (Ctrl-C)",
            _ = self.1.recv() => "SIGTERM",
            _ = self.2.recv() => "SIGHUP",
        }
    }
}
