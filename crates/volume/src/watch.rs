//! The journal: a stream of "this directory entry may have changed".
//!
//! A hint says where to look and nothing else: hints merge, come in no order that means anything, may be about the
//! program's own writes, and may be wrong; the truth is always `statx` and the bytes. What must never happen is a change
//! without a hint. Where one may have been lost (a queue overflows, the root is replaced), [`Hint::Everything`] says so.
//!
//! ```text
//! fanotify on the file system | inotify per directory  ->  own thread: merge, wait a little  ->  bounded channel
//! ```
//!
//! A hint is about a directory wherever that is now. If it cannot be found inside the folder, it may be outside for a
//! moment and come back under its old name, and then no further hint tells of what changed in it before. So such a hint is
//! kept by whoever reads hints, and tried again with each later batch, until the directory is found or is known to be
//! gone. What changes while it is outside is the watcher's to tell: it hints at such directories when they come inside.
//!
//! When [`Watcher::start`] returns the marks are set, so that a scan begun then misses nothing.
//!
//! # Source
//! Design, section 5.

mod fanotify;
mod inotify;
mod pending;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, poll};

use crate::fs::{Fs, Object};
use crate::linux::LinuxFs;
use pending::Pending;

/// Something may have changed.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Hint {
    /// An entry of a directory: made, removed, renamed, written, or its attributes.
    Entry {
        /// The directory, as [`Fs::stat_dir`] names it. It may lie outside the root by now, or be gone.
        directory: Object,
        /// The entry's name; it may be absent by now.
        name: Vec<u8>,
        /// Somebody who had it open for writing closed it: a hash taken before is out of date whatever the stamp says.
        closed_after_write: bool,
    },
    /// All of a directory (it is new here, perhaps with what it holds), and the directory itself.
    Directory {
        /// Which.
        directory: Object,
    },
    /// Hints were lost, or the root is not what it was: journal wrap (event 13568). Close events may be among what
    /// was lost, so provisional hashes count no more. Look at [`Fs::root_in_place`] first.
    Everything,
}

/// What gives the hints.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WatchKind {
    /// fanotify marks on the whole file system: no cost a directory, no gap. Needs CAP_SYS_ADMIN and opening by handle.
    Fanotify,
    /// inotify watches on each directory.
    Inotify,
    /// Nothing does, or not everywhere: only scans find all changes. Hints may still come.
    ScanOnly,
}

/// Says whether a directory is known to be in the folder, which saves looking. A wrong "no" costs time, not hints.
pub type Known = Arc<dyn Fn(&Object) -> bool + Send + Sync>;

/// How to watch.
#[derive(Clone)]
pub struct Options {
    /// How long the first hint of a batch waits for more.
    pub settle: Duration,
    /// How long writes to a file wait for its close before they are hinted at by themselves.
    pub written: Duration,
    /// Hints merged while nobody takes them; at more they become [`Hint::Everything`].
    pub pending_max: usize,
    /// Batches that the channel holds.
    pub batches: usize,
    /// Hints in a batch, at most.
    pub batch_max: usize,
    /// How often the root is looked at, for what no event tells (a mount over it, an ancestor renamed).
    pub root_check: Duration,
    /// Directories known to be in the folder.
    pub known: Option<Known>,
    /// Hints also at what this process itself does to entries that are no directories, where that can be told from what
    /// others do (fanotify). An installer knows what it did itself.
    pub own: bool,
    /// Directories beneath the root, as paths, in which what is made, written and removed is of no interest: no event of it
    /// comes at all where that can be had (fanotify, since Linux 6.0). What is renamed into them or out of them is hinted
    /// at, and a directory that was moved itself is as any other.
    pub quiet: Vec<Vec<u8>>,
    /// The best kind to try first; the ones after it are fallen back on.
    pub best: WatchKind,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            settle: Duration::from_millis(5),
            written: Duration::from_secs(1),
            pending_max: 1_000_000,
            batches: 16,
            batch_max: 8192,
            root_check: Duration::from_secs(5),
            known: None,
            own: true,
            quiet: Vec::new(),
            best: WatchKind::Fanotify,
        }
    }
}

/// Makes the watcher hand out at once what it has, and then an empty batch: everything that happened before the call is
/// in the batches before that one.
#[derive(Clone)]
pub struct Flusher {
    wake: Arc<OwnedFd>,
    ending: Arc<AtomicBool>,
}

impl Flusher {
    /// Asks for it. Calls that come close together may be answered by one empty batch.
    pub fn flush(&self) {
        // The counter of an eventfd cannot be full after so few writes.
        let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
    }
}

/// Watches one folder until it is dropped.
pub struct Watcher {
    hints: Receiver<Vec<Hint>>,
    kind: WatchKind,
    /// Some directory could not be watched.
    gaps: Arc<AtomicBool>,
    flusher: Flusher,
    thread: Option<JoinHandle<()>>,
    /// Keeps the channel open where there is no thread.
    _sender: SyncSender<Vec<Hint>>,
}

impl Watcher {
    /// Watches a folder by the best means that this process and the file system have. All marks are set when it
    /// returns; with inotify that takes a walk over all directories.
    ///
    /// # Errors
    /// Where no thread or channel can be had. That nothing can be watched is no error but [`WatchKind::ScanOnly`].
    pub fn start(fs: &LinuxFs, options: Options) -> io::Result<(Self, WatchKind)> {
        let (sender, hints) = sync_channel(options.batches.max(1));
        let wake = Arc::new(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let flusher = Flusher { wake, ending: Arc::new(AtomicBool::new(false)) };
        let gaps = Arc::new(AtomicBool::new(false));
        let (source, kind) = source(fs, &options, &gaps)?;
        let thread = match source {
            None => None,
            Some(source) => {
                let turn = Turn {
                    fs: fs.clone(),
                    source,
                    pending: Pending::new(options.pending_max),
                    outbox: None,
                    sender: sender.clone(),
                    in_place: fs.root_in_place().unwrap_or(false),
                    flusher: flusher.clone(),
                    options,
                };
                Some(std::thread::Builder::new().name("watch".into()).spawn(move || turn.run())?)
            }
        };
        let watcher = Self { hints, kind, gaps, flusher, thread, _sender: sender };
        let kind = watcher.kind();
        Ok((watcher, kind))
    }

    /// Where the batches come out. It stays empty, and open, where there is nothing to watch with.
    #[must_use]
    pub fn hints(&self) -> &Receiver<Vec<Hint>> {
        &self.hints
    }

    /// For asking that everything seen so far be handed out. Without a source there is nobody who would answer.
    #[must_use]
    pub fn flusher(&self) -> Option<Flusher> {
        self.thread.is_some().then(|| self.flusher.clone())
    }

    /// What gives the hints now: `ScanOnly` once a directory could not be watched (the limit of inotify watches, say).
    #[must_use]
    pub fn kind(&self) -> WatchKind {
        if self.gaps.load(Ordering::Relaxed) { WatchKind::ScanOnly } else { self.kind }
    }

    /// Ends the thread and waits for that, which takes no longer than what it just does.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.flusher.ending.store(true, Ordering::Release);
        self.flusher.flush();
        if let Some(thread) = self.thread.take() {
            // A panic in there was already reported by the panic hook; there is nothing to undo.
            let _ = thread.join();
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.end();
    }
}

/// Where events come from.
trait Source: Send {
    /// Readable when there are events.
    fn descriptor(&self) -> BorrowedFd<'_>;
    /// Reads what is there without waiting, up to a bound.
    fn read(&mut self, pending: &mut Pending) -> io::Result<()>;
}

/// The best source that can be had.
fn source(fs: &LinuxFs, options: &Options, gaps: &Arc<AtomicBool>) -> io::Result<(Option<Box<dyn Source>>, WatchKind)> {
    if fs.is_remote()? || options.best == WatchKind::ScanOnly {
        return Ok((None, WatchKind::ScanOnly));
    }
    if options.best == WatchKind::Fanotify && fs.abilities().handles {
        match fanotify::Fanotify::start(fs, options) {
            Ok(source) => return Ok((Some(Box::new(source)), WatchKind::Fanotify)),
            Err(error) => tracing::info!(%error, path = %fs.path().display(), "no fanotify here"),
        }
    }
    match inotify::Inotify::start(fs, gaps.clone()) {
        Ok(source) => Ok((Some(Box::new(source)), WatchKind::Inotify)),
        Err(error) => {
            tracing::warn!(%error, path = %fs.path().display(), "this folder cannot be watched, only scanned");
            Ok((None, WatchKind::ScanOnly))
        }
    }
}

/// The thread's own state.
struct Turn {
    fs: LinuxFs,
    source: Box<dyn Source>,
    pending: Pending,
    /// A batch that the channel had no room for.
    outbox: Option<Vec<Hint>>,
    sender: SyncSender<Vec<Hint>>,
    in_place: bool,
    flusher: Flusher,
    options: Options,
}

/// How long to wait when the channel is full.
const FULL: Duration = Duration::from_millis(5);
/// How long to wait after the source failed.
const BROKEN: Duration = Duration::from_millis(500);

impl Turn {
    fn run(mut self) {
        let mut next_check = Instant::now() + self.options.root_check;
        let mut next_release = None;
        loop {
            let next = next_release.unwrap_or(next_check).min(next_check);
            let mut wait = next.saturating_duration_since(Instant::now());
            if self.outbox.is_some() || !self.pending.is_empty() {
                wait = wait.min(FULL);
            }
            let Ok((woken, readable)) = wait_for(&self.flusher.wake, Some(self.source.descriptor()), wait) else {
                return;
            };
            if woken {
                if !self.flush() {
                    return;
                }
                continue;
            }
            if readable {
                // More may come at once, and will be merged.
                if wait_for(&self.flusher.wake, None, self.options.settle).is_err() {
                    return;
                }
                if let Err(error) = self.source.read(&mut self.pending) {
                    tracing::warn!(%error, path = %self.fs.path().display(), "cannot read events");
                    self.pending.everything();
                    if wait_for(&self.flusher.wake, None, BROKEN).is_err()
                        || self.flusher.ending.load(Ordering::Acquire)
                    {
                        return;
                    }
                }
            }
            let now = Instant::now();
            if self.pending.take_root_check() || now >= next_check {
                self.check_root();
                next_check = now + self.options.root_check;
            }
            if next_release.is_some_and(|at| now >= at) {
                self.pending.release_written();
            }
            next_release = self.pending.has_written().then(|| next_release.unwrap_or(now + self.options.written));
            if !self.send() {
                return;
            }
        }
    }

    /// Hands out everything that happened until now, and an empty batch behind it; false when it is to end.
    fn flush(&mut self) -> bool {
        let mut count = [0; 8];
        // Another wake-up comes by another write.
        let _ = rustix::io::read(&*self.flusher.wake, &mut count);
        if self.flusher.ending.load(Ordering::Acquire) {
            return false;
        }
        while let Ok((_, true)) = wait_for(&self.flusher.wake, Some(self.source.descriptor()), Duration::ZERO) {
            if let Err(error) = self.source.read(&mut self.pending) {
                tracing::warn!(%error, path = %self.fs.path().display(), "cannot read events");
                self.pending.everything();
                break;
            }
        }
        let mut mark = Some(Vec::new());
        loop {
            if !self.send() {
                return false;
            }
            if self.outbox.is_none() {
                match mark.take().map(|mark| self.sender.try_send(mark)) {
                    None | Some(Ok(())) => return true,
                    Some(Err(TrySendError::Full(back))) => mark = Some(back),
                    Some(Err(TrySendError::Disconnected(_))) => return false,
                }
            }
            if self.flusher.ending.load(Ordering::Acquire) {
                return false;
            }
            std::thread::sleep(FULL);
        }
    }

    /// The root went, or came back: whatever was seen meanwhile was not the folder.
    fn check_root(&mut self) {
        let in_place = self.fs.root_in_place().unwrap_or(false);
        if in_place != self.in_place {
            self.in_place = in_place;
            self.pending.everything();
        }
    }

    /// Sends what there is while the channel has room; false when nobody listens any more.
    fn send(&mut self) -> bool {
        loop {
            let batch = match self.outbox.take() {
                Some(batch) => batch,
                None if self.pending.is_empty() => return true,
                None => self.pending.take(self.options.batch_max),
            };
            match self.sender.try_send(batch) {
                Ok(()) => {}
                Err(TrySendError::Full(batch)) => {
                    self.outbox = Some(batch);
                    return true;
                }
                Err(TrySendError::Disconnected(_)) => return false,
            }
        }
    }
}

/// Waits until told to stop, or the other descriptor can be read, or the time is over: (stop, readable).
fn wait_for(stop: &OwnedFd, other: Option<BorrowedFd<'_>>, time: Duration) -> io::Result<(bool, bool)> {
    let until = Instant::now() + time;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs().min(3600).cast_signed(), tv_nsec: left.subsec_nanos().into() };
        let mut fds =
            [PollFd::new(stop, PollFlags::IN), PollFd::from_borrowed_fd(other.unwrap_or(stop.as_fd()), PollFlags::IN)];
        let asked = if other.is_some() { 2 } else { 1 };
        match poll(&mut fds[..asked], Some(&timeout)) {
            Ok(_) => {
                let stopped = !fds[0].revents().is_empty();
                return Ok((stopped, asked == 2 && !fds[1].revents().is_empty()));
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}
