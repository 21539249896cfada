//! A replica in the real world: its thread, its watcher, its database file, and its links.
//!
//! One thread a folder owns the replica. Whatever comes in, hints, messages, orders, passes one bounded channel, so a
//! partner that sends faster than the folder takes in is held back by its connection. The thread never waits for a
//! partner: what goes out is queued with the link, and a link whose queue is long gets no more requests in.
//!
//! Where the root's path names something else than what is held open (a disk was unmounted, and mounted again perhaps), or
//! the private directory is not what it was, the folder is closed, and opened again as soon as it can be: nothing of what is
//! then missing counts as removed (design, section 5).

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anabranch_model::{Hlc, ReplicaId};
use anabranch_net::message::Envelope;
use anabranch_net::{Link, LinkReceiver};
use anabranch_store::{Options as StoreOptions, SqliteKv};
use anabranch_volume::layout;
use anabranch_volume::linux::LinuxFs;
use anabranch_volume::watch::{Hint, Options as WatchOptions, WatchKind, Watcher};
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, watch};

use crate::config::Config;
use crate::events::{Event, EventKind};
use crate::replica::{Input, LinkId, Output, Partner, Replica, Stop};

mod standing;

use standing::Standing;

/// The replica that the real program runs.
pub type LinuxReplica = Replica<LinuxFs, SqliteKv>;

/// Room for the work that goes from a directory to its parents.
const STACK_BYTES: usize = 16 << 20;
/// Commands queued for one folder.
const QUEUE: usize = 256;
/// Bytes queued for a link, beyond which no more of its requests are taken in.
const OUTBOX_BYTES: usize = 4 << 20;
/// Messages taken in before the next step.
const MESSAGES_MAX: usize = 64;
/// How long until a folder that stopped is opened again.
const REOPEN: Duration = Duration::from_secs(1);
/// How often everything is compared where nothing watches.
const SCAN_EVERY: Duration = Duration::from_secs(60);
/// How often the root and the private directory are looked at by their paths: no event tells of an unmount.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Takes a folder's name and what happened to it.
pub type EventSink = Arc<dyn Fn(&str, &Event) + Send + Sync>;
/// Takes the token of a root.
pub type TokenSink = Arc<dyn Fn(&[u8]) + Send + Sync>;

type Order = Box<dyn FnOnce(&mut LinuxReplica) + Send>;

enum Command {
    Hints(Vec<Hint>),
    /// Answered once everything that people did until now was looked at.
    Flush(tokio::sync::oneshot::Sender<()>),
    LinkUp(LinkId, Partner, Outbox),
    Received(LinkId, Box<anabranch_net::message::Message>),
    LinkDown(LinkId),
    Order(Order),
    Members(Vec<String>),
    Resume,
    Stop,
}

/// What is queued for one link.
#[derive(Clone)]
struct Outbox {
    queue: mpsc::UnboundedSender<Envelope>,
    bytes: Arc<AtomicUsize>,
    shorter: Arc<Notify>,
    close: Arc<Notify>,
}

/// How a folder stands.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HostStatus {
    /// It is open and replicates.
    pub running: bool,
    /// Why it is not, as a chain of sentences.
    pub error: Option<String>,
    /// What tells of local changes: `fanotify`, `inotify` or `scan`.
    pub watching: &'static str,
}

/// What a host needs to begin.
pub struct HostSpec {
    /// About the replica.
    pub config: Config,
    /// The folder's root.
    pub root: PathBuf,
    /// The database's cache, bytes.
    pub cache_bytes: u64,
    /// This process writes in the folder by other ways than replication.
    pub own_writes: bool,
    /// Where events go.
    pub events: EventSink,
    /// Told the token of the root once it is known.
    pub token: TokenSink,
}

/// A folder at work. Dropping it stops the thread without closing the database properly; use [`Host::stop`].
pub struct Host {
    commands: mpsc::Sender<Command>,
    thread: Mutex<Option<JoinHandle<()>>>,
    status: Arc<Mutex<HostStatus>>,
    changes: watch::Receiver<u64>,
    links: std::sync::atomic::AtomicU64,
    runtime: Handle,
}

impl Host {
    /// Starts a folder's thread. Opening the folder happens there, and is tried again as long as it fails.
    ///
    /// # Errors
    /// Where no thread can be had.
    pub fn start(spec: HostSpec, runtime: Handle) -> io::Result<Self> {
        let (commands, queue) = mpsc::channel(QUEUE);
        let status = Arc::new(Mutex::new(HostStatus::default()));
        let (changed, changes) = watch::channel(0);
        let body = Body {
            spec,
            commands: commands.downgrade(),
            queue,
            status: Arc::clone(&status),
            changed,
            runtime: runtime.clone(),
            links: BTreeMap::new(),
            reported: None,
        };
        let thread =
            std::thread::Builder::new().name("folder".into()).stack_size(STACK_BYTES).spawn(move || body.run())?;
        let links = std::sync::atomic::AtomicU64::new(1);
        Ok(Self { commands, thread: Mutex::new(Some(thread)), status, changes, links, runtime })
    }

    /// How it stands.
    #[must_use]
    pub fn status(&self) -> HostStatus {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Counts up with every change of the tree or the records.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    /// Runs something on the replica, between two of its steps. `None`: the folder is not open now.
    pub async fn ask<T: Send + 'static>(
        &self,
        order: impl FnOnce(&mut LinuxReplica) -> T + Send + 'static,
    ) -> Option<T> {
        let (answer, answered) = tokio::sync::oneshot::channel();
        let order: Order = Box::new(move |replica| {
            // Whoever asked may have gone away meanwhile.
            let _ = answer.send(order(replica));
        });
        self.commands.send(Command::Order(order)).await.ok()?;
        answered.await.ok()
    }

    /// Comes back once everything that people did in the tree before the call has been taken note of. Nothing waits where the
    /// folder is not open.
    pub async fn take_note(&self) {
        let (answer, answered) = tokio::sync::oneshot::channel();
        if self.commands.send(Command::Flush(answer)).await.is_ok() {
            // Dropped unanswered: the folder stopped, and looks at everything when it is opened again.
            let _ = answered.await;
        }
    }

    /// Ends the wait of the recovery policy `manual`.
    pub async fn resume(&self) {
        // A folder that is gone needs no resumption.
        let _ = self.commands.send(Command::Resume).await;
    }

    /// Carries a link's messages until it ends. `first` is a message that was already read.
    pub async fn carry(&self, link: Link, partner: Partner, first: Option<Envelope>) -> anabranch_net::Ended {
        let id = LinkId(self.links.fetch_add(1, Ordering::Relaxed));
        let (queue, mut queued) = mpsc::unbounded_channel::<Envelope>();
        let outbox = Outbox {
            queue,
            bytes: Arc::new(AtomicUsize::new(0)),
            shorter: Arc::new(Notify::new()),
            close: Arc::new(Notify::new()),
        };
        let sender = link.sender.clone();
        let (bytes, shorter) = (Arc::clone(&outbox.bytes), Arc::clone(&outbox.shorter));
        let writer = self.runtime.spawn(async move {
            while let Some(envelope) = queued.recv().await {
                let size = weight(&envelope);
                if sender.send(envelope).await.is_err() {
                    break;
                }
                bytes.fetch_sub(size, Ordering::AcqRel);
                shorter.notify_one();
            }
            // All that was queued goes out before the link is closed.
            sender.close();
        });
        let close = Arc::clone(&outbox.close);
        let (gate, shorter) = (Arc::clone(&outbox.bytes), Arc::clone(&outbox.shorter));
        if self.commands.send(Command::LinkUp(id, partner, outbox)).await.is_ok() {
            // However this ends: whoever dials may be stopped while the link stands.
            let down = Down { id, commands: self.commands.clone(), runtime: self.runtime.clone() };
            let Link { receiver, sender, .. } = link;
            let read = self.read(id, receiver, first, &gate, &shorter);
            tokio::select! {
                () = read => {}
                () = close.notified() => {}
            }
            drop(down);
            drop(writer);
            let ended = tokio::time::timeout(Duration::from_secs(1), sender.ended()).await;
            sender.abort();
            return ended.unwrap_or(anabranch_net::Ended::Here);
        }
        anabranch_net::Ended::Here
    }

    async fn read(
        &self,
        id: LinkId,
        mut receiver: LinkReceiver,
        first: Option<Envelope>,
        gate: &AtomicUsize,
        shorter: &Notify,
    ) {
        let mut next = first;
        loop {
            let envelope = match next.take() {
                Some(envelope) => envelope,
                None => match receiver.recv().await {
                    Some(Ok(envelope)) => envelope,
                    Some(Err(error)) => {
                        tracing::warn!(%error, "a message that cannot be read");
                        return;
                    }
                    None => return,
                },
            };
            while gate.load(Ordering::Acquire) > OUTBOX_BYTES {
                shorter.notified().await;
            }
            if self.commands.send(Command::Received(id, Box::new(envelope.message))).await.is_err() {
                return;
            }
        }
    }

    /// Tells the replica who keeps the folder, now and whenever it is opened again.
    pub async fn set_members(&self, members: Vec<String>) {
        // A folder that is gone has no members.
        let _ = self.commands.send(Command::Members(members)).await;
    }

    /// Asks the thread to close the folder properly and end; [`Self::stop`] waits for it.
    pub async fn request_stop(&self) {
        // If the thread is gone there is nothing to stop.
        let _ = self.commands.send(Command::Stop).await;
    }

    /// Closes the folder properly and ends the thread, whoever else still has this host: its links are closed as well.
    pub async fn stop(&self) {
        self.request_stop().await;
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && !matches!(tokio::task::spawn_blocking(move || thread.join()).await, Ok(Ok(())))
        {
            tracing::error!("a folder's thread did not end in order");
        }
    }
}

/// Tells the folder's thread, when it is dropped, that a link is no more: what is asked of it is asked of others.
struct Down {
    id: LinkId,
    commands: mpsc::Sender<Command>,
    runtime: Handle,
}

impl Drop for Down {
    fn drop(&mut self) {
        let (id, commands) = (self.id, self.commands.clone());
        self.runtime.spawn(async move {
            // The folder may be gone already.
            let _ = commands.send(Command::LinkDown(id)).await;
        });
    }
}

/// Roughly the bytes of a message while it is queued.
fn weight(envelope: &Envelope) -> usize {
    use anabranch_net::message::{Message, Piece};
    64 + match &envelope.message {
        Message::Page(page) => page.rows.iter().chain(&page.attributes).map(|r| r.len() + 8).sum(),
        Message::Pieces { pieces, .. } => pieces
            .iter()
            .map(|p| match p {
                Piece::Data(data) => data.len() + 16,
                Piece::NotHeld | Piece::Busy => 16,
            })
            .sum(),
        Message::Fetch { wants, .. } => wants.len() * 96,
        _ => 0,
    }
}

/// The present, by this machine's clock.
#[must_use]
pub fn now() -> Hlc {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Hlc(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

/// A random replica id.
///
/// # Panics
/// If the system gives no random bytes: nothing safe can be done then.
#[must_use]
pub fn random_id() -> ReplicaId {
    let mut id = [0; 16];
    getrandom::fill(&mut id).expect("the system gives random bytes");
    ReplicaId(id)
}

/// The thread's side.
struct Body {
    spec: HostSpec,
    commands: mpsc::WeakSender<Command>,
    queue: mpsc::Receiver<Command>,
    status: Arc<Mutex<HostStatus>>,
    changed: watch::Sender<u64>,
    runtime: Handle,
    links: BTreeMap<LinkId, Outbox>,
    reported: Option<String>,
}

/// How a life of the replica ended.
enum Life {
    Over,
}

impl Body {
    fn run(mut self) {
        let mut resume = false;
        loop {
            let error = match self.open(resume) {
                Ok((replica, watcher, standing)) => match self.live(replica, watcher, &standing) {
                    Ok(Life::Over) => return self.close_links(),
                    Err(stop) => stop,
                },
                Err(stop) => stop,
            };
            let text = match &error {
                Stop::Private { path, .. } if !Path::new(path).is_absolute() => {
                    format!("{}: {}", self.spec.root.display(), chain(&error))
                }
                _ => chain(&error),
            };
            if self.reported.as_deref() != Some(&text) {
                tracing::error!(folder = self.spec.config.folder_name, error = text, "the folder stopped");
                let kind = match &error {
                    Stop::RecoveryWaits => EventKind::RecoveryWaits,
                    Stop::Root(_) => EventKind::RootChanged,
                    Stop::Names { .. } => EventKind::NamesChanged,
                    Stop::Private { .. } => EventKind::PrivateUnusable,
                    Stop::Database(_) => EventKind::DatabaseFailed,
                };
                (self.spec.events)(&self.spec.config.folder_name, &Event::new(kind, text.clone()));
                self.reported = Some(text.clone());
            }
            self.set(|status| {
                status.running = false;
                status.error = Some(text);
            });
            self.close_links();
            match self.pause(matches!(error, Stop::RecoveryWaits)) {
                Some(ordered) => resume = ordered,
                None => return,
            }
        }
    }

    fn close_links(&mut self) {
        for (_, outbox) in std::mem::take(&mut self.links) {
            outbox.close.notify_one();
        }
    }

    /// Waits a little, or for the order to resume; `None`: stop.
    fn pause(&mut self, only_by_order: bool) -> Option<bool> {
        let until = std::time::Instant::now() + REOPEN;
        loop {
            let left = until.saturating_duration_since(std::time::Instant::now());
            let command = if only_by_order {
                self.runtime.block_on(self.queue.recv())
            } else if left.is_zero() {
                return Some(false);
            } else {
                match self.runtime.block_on(async { tokio::time::timeout(left, self.queue.recv()).await }) {
                    Ok(command) => command,
                    Err(_) => return Some(false),
                }
            };
            match command? {
                Command::Stop => return None,
                Command::Resume => return Some(true),
                Command::LinkUp(_, _, outbox) => outbox.close.notify_one(),
                Command::Members(members) => self.spec.config.members = members,
                Command::Hints(_)
                | Command::Flush(_)
                | Command::Received(..)
                | Command::LinkDown(_)
                | Command::Order(_) => {}
            }
        }
    }

    fn set(&self, change: impl FnOnce(&mut HostStatus)) {
        change(&mut self.status.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn open(&mut self, resume: bool) -> Result<(LinuxReplica, Watcher, Standing), Stop> {
        let root = &self.spec.root.clone();
        let failed = |path: &Path, source| Stop::Private { path: path.display().to_string(), source };
        let fs = LinuxFs::open(root).map_err(|e| standing::root_fails(root, e))?;
        let [private, staging, ..] = standing::private_paths(root);
        if self.spec.config.token.is_some() {
            standing::expect_private(&private)?;
        }
        for (path, above) in [(&private, root), (&staging, &private)] {
            match std::fs::DirBuilder::new().mode(0o700).create(path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => made.and_then(|()| std::fs::File::open(above)?.sync_all()).map_err(|e| failed(path, e))?,
            }
        }
        let path = private.join(standing::text(layout::DATABASE));
        let kv = match SqliteKv::open(&path, StoreOptions { cache_bytes: self.spec.cache_bytes }) {
            Ok((kv, _)) => kv,
            Err(error) if error.damaged => {
                self.set_aside(&path).map_err(|e| failed(&path, e))?;
                SqliteKv::open(&path, StoreOptions { cache_bytes: self.spec.cache_bytes })?.0
            }
            Err(error) => return Err(error.into()),
        };
        let watch = if self.spec.own_writes {
            // Few directories: an event of anything else on its file system would cost more than their watches.
            WatchOptions { best: WatchKind::Inotify, ..WatchOptions::default() }
        } else {
            // Nobody else makes anything there, and what comes out of it or goes into it is renamed.
            let quiet = vec![[layout::PRIVATE_DIR, b"/", layout::STAGING].concat()];
            WatchOptions { own: false, quiet, ..WatchOptions::default() }
        };
        let (watcher, kind) = Watcher::start(&fs, watch).map_err(|e| failed(root, e))?;
        let mut config = self.spec.config.clone();
        config.place.extend_from_slice(&place_of(root));
        let replica = Replica::open(fs.clone(), kv, config, Box::new(random_id), now(), resume)?;
        let token = replica.token()?;
        (self.spec.token)(&token);
        // Whatever is found at the path from now on must be this.
        self.spec.config.token = Some(token);
        let standing = Standing::of(fs, root)?;
        self.set(|status| {
            status.watching = match kind {
                WatchKind::Fanotify => "fanotify",
                WatchKind::Inotify => "inotify",
                WatchKind::ScanOnly => "scan",
            };
        });
        Ok((replica, watcher, standing))
    }

    /// A damaged database is set aside; the folder is then compared with partners as at the initial sync.
    fn set_aside(&mut self, path: &Path) -> io::Result<()> {
        let name = format!("database.damaged-{}", now().0);
        for end in ["", "-wal"] {
            let from = PathBuf::from(format!("{}{end}", path.display()));
            match std::fs::rename(&from, path.with_file_name(format!("{name}{end}"))) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        // The token in the root stays: it is taken over by the new database. This member is no primary any more.
        self.spec.config.token = None;
        self.spec.config.primary = false;
        let event = Event::new(EventKind::DatabaseRebuilt, format!("the old one is kept as {name}"));
        (self.spec.events)(&self.spec.config.folder_name, &event);
        Ok(())
    }

    fn live(&mut self, mut replica: LinuxReplica, watcher: Watcher, standing: &Standing) -> Result<Life, Stop> {
        self.reported = None;
        self.set(|status| {
            status.running = true;
            status.error = None;
        });
        let flusher = watcher.flusher();
        let mut flushing: [Vec<tokio::sync::oneshot::Sender<()>>; 2] = [Vec::new(), Vec::new()];
        let watcher = self.forward(watcher).map_err(|source| Stop::Private { path: "the watcher".into(), source })?;
        let scan_only = self.status.lock().unwrap_or_else(PoisonError::into_inner).watching == "scan";
        let mut scan_at = std::time::Instant::now() + SCAN_EVERY;
        let mut look_at = std::time::Instant::now() + LOOK_EVERY;
        let mut put_off: Option<Command> = None;
        let mut seen = (replica.records().change_number(), replica.counters().installs);
        let result = loop {
            let due = replica.deadline().map(|at| Duration::from_micros(at.0.saturating_sub(now().0)));
            let mut wait = due.unwrap_or(SCAN_EVERY).min(look_at.saturating_duration_since(std::time::Instant::now()));
            if scan_only {
                wait = wait.min(scan_at.saturating_duration_since(std::time::Instant::now()));
            }
            let command = match put_off.take().map_or_else(|| self.queue.try_recv(), Ok) {
                Ok(command) => Some(command),
                Err(mpsc::error::TryRecvError::Disconnected) => break Ok(Life::Over),
                Err(mpsc::error::TryRecvError::Empty) if wait.is_zero() => None,
                Err(mpsc::error::TryRecvError::Empty) => {
                    let next = self.runtime.block_on(async { tokio::time::timeout(wait, self.queue.recv()).await });
                    match next {
                        Ok(Some(command)) => Some(command),
                        Ok(None) => break Ok(Life::Over),
                        Err(_) => None,
                    }
                }
            };
            if scan_only && std::time::Instant::now() >= scan_at {
                replica.scan_everything();
                scan_at = std::time::Instant::now() + SCAN_EVERY;
            }
            let done = match command {
                None => replica.handle(now(), Input::Time),
                Some(Command::Flush(answer)) => match &flusher {
                    // One at a time: an empty batch that is on its way already may not cover this one.
                    Some(flusher) if flushing[0].is_empty() => {
                        flushing[0].push(answer);
                        flusher.flush();
                        Ok(())
                    }
                    Some(_) => {
                        flushing[1].push(answer);
                        Ok(())
                    }
                    None => {
                        replica.scan_everything();
                        let done = replica.handle(now(), Input::Time);
                        // Whoever asked may have gone away.
                        let _ = answer.send(());
                        done
                    }
                },
                Some(Command::Hints(hints)) if hints.is_empty() => {
                    replica.look_now(now());
                    let done = replica.handle(now(), Input::Time);
                    for answer in std::mem::take(&mut flushing[0]) {
                        // Whoever asked may have gone away.
                        let _ = answer.send(());
                    }
                    flushing.swap(0, 1);
                    if let (Some(flusher), false) = (&flusher, flushing[0].is_empty()) {
                        flusher.flush();
                    }
                    done
                }
                Some(Command::Hints(hints)) => replica.handle(now(), Input::Hints(hints)),
                Some(Command::LinkUp(id, partner, outbox)) => {
                    self.links.insert(id, outbox);
                    replica.handle(now(), Input::LinkUp(id, partner))
                }
                Some(Command::Received(id, message)) => {
                    let mut done = replica.take(now(), Input::Received(id, *message));
                    // What else has come is taken in first: one step for all of it makes larger batches.
                    for _ in 1..MESSAGES_MAX {
                        self.drain(&mut replica);
                        match self.queue.try_recv() {
                            Ok(Command::Received(id, message)) if done.is_ok() => {
                                done = replica.take(now(), Input::Received(id, *message));
                            }
                            Ok(other) => {
                                put_off = Some(other);
                                break;
                            }
                            Err(_) => break,
                        }
                    }
                    done.and_then(|()| replica.handle(now(), Input::Time))
                }
                Some(Command::LinkDown(id)) => {
                    self.links.remove(&id);
                    replica.handle(now(), Input::LinkDown(id))
                }
                Some(Command::Order(order)) => {
                    order(&mut replica);
                    replica.handle(now(), Input::Time)
                }
                Some(Command::Members(members)) => {
                    self.spec.config.members.clone_from(&members);
                    replica.set_members(members);
                    replica.handle(now(), Input::Time)
                }
                Some(Command::Resume) => Ok(()),
                Some(Command::Stop) => {
                    self.drain(&mut replica);
                    break replica.close().map(|()| Life::Over);
                }
            };
            self.drain(&mut replica);
            if let Err(stop) = done {
                break Err(stop);
            }
            if replica.root_is_lost() || std::time::Instant::now() >= look_at {
                look_at = std::time::Instant::now() + LOOK_EVERY;
                if let Some(stop) = standing.lost() {
                    // What it knows goes with the disk; where that cannot be written any more, it is recovered.
                    if let Err(error) = replica.close() {
                        tracing::warn!(
                            error = chain(&error),
                            "a folder that is not in its place was not closed properly"
                        );
                    }
                    break Err(stop);
                }
            }
            let now_seen = (replica.records().change_number(), replica.counters().installs);
            if now_seen != seen {
                seen = now_seen;
                self.changed.send_modify(|count| *count += 1);
            }
        };
        watcher.stop();
        result
    }

    /// Hands hints on from the watcher's channel.
    fn forward(&self, watcher: Watcher) -> io::Result<Forwarder> {
        let Some(commands) = self.commands.upgrade() else { return Err(io::ErrorKind::BrokenPipe.into()) };
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("hints".into()).spawn(move || {
            while !stopped.load(Ordering::Acquire) {
                match watcher.hints().recv_timeout(Duration::from_millis(200)) {
                    Ok(hints) => {
                        let mut command = Command::Hints(hints);
                        // The folder's thread may be waiting for us to end: never block on it for good.
                        while let Err(mpsc::error::TrySendError::Full(back)) = commands.try_send(command) {
                            if stopped.load(Ordering::Acquire) {
                                return;
                            }
                            command = back;
                            std::thread::sleep(Duration::from_millis(1));
                        }
                    }
                    Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {}
                    Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return,
                }
            }
            watcher.stop();
        })?;
        Ok(Forwarder { stop, thread })
    }

    fn drain(&mut self, replica: &mut LinuxReplica) {
        while let Some(output) = replica.poll() {
            match output {
                Output::Send(id, envelope) => {
                    if let Some(outbox) = self.links.get(&id) {
                        outbox.bytes.fetch_add(weight(&envelope), Ordering::AcqRel);
                        // A link that is going down takes nothing more; its end is reported by its own way.
                        let _ = outbox.queue.send(envelope);
                    }
                }
                Output::Close(id, reason) => {
                    tracing::info!(reason, "closing a link");
                    if let Some(outbox) = self.links.remove(&id) {
                        outbox.close.notify_one();
                    }
                }
                // It is said with its cause when the folder is closed for it.
                Output::Report(event) if event.kind == EventKind::RootChanged => {}
                Output::Report(event) => (self.spec.events)(&self.spec.config.folder_name, &event),
            }
        }
    }
}

struct Forwarder {
    stop: Arc<std::sync::atomic::AtomicBool>,
    thread: JoinHandle<()>,
}

impl Forwarder {
    fn stop(self) {
        self.stop.store(true, Ordering::Release);
        if self.thread.join().is_err() {
            tracing::error!("the thread of the hints did not end in order");
        }
    }
}

/// An error and its causes, as one sentence.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

/// The file system and directory that the root is: a copied database finds itself elsewhere.
fn place_of(root: &Path) -> Vec<u8> {
    use std::os::unix::fs::MetadataExt;
    // Only the inode: device numbers change between boots.
    std::fs::metadata(root).map(|m| m.ino().to_be_bytes().to_vec()).unwrap_or_default()
}
