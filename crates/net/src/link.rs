//! Links: two TLS connections between one dialing and one listening member, as one stream of messages each way.
//!
//! The *control* lane carries records, pushes and questions, the *bulk* lane content ([`Message::Fetch`] and
//! [`Message::Pieces`]), so that control never waits behind content. Order is kept within a lane, not between the two.
//!
//! Memory is bounded on both sides: [`LinkSender::send`] waits while a lane's queue holds [`LinkLimits::queue_bytes`],
//! and a lane whose messages are not taken by [`LinkReceiver::recv`] stops reading its socket, so that the sender waits.
//! A link ends as a whole: a lane that breaks, breaks both.

mod lane;
#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, mpsc, watch};

use crate::message::{Envelope, MESSAGE_BYTES_MAX, Message, Piece};
use crate::{KeyFingerprint, PeerError, wire};
use lane::{Arrived, Queued};

/// Which of the two connections of a link.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Lane {
    /// Records, pushes, questions and their answers.
    Control,
    /// Content.
    Bulk,
}

impl Lane {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Control, Self::Bulk];

    /// The lane of a message.
    #[must_use]
    pub fn of(message: &Message) -> Self {
        match message {
            Message::Fetch { .. } | Message::Pieces { .. } => Self::Bulk,
            Message::Open { .. }
            | Message::Opened { .. }
            | Message::Refused { .. }
            | Message::Grown { .. }
            | Message::Pull { .. }
            | Message::Page(_)
            | Message::Held { .. }
            | Message::Acknowledged { .. }
            | Message::AskSums { .. }
            | Message::Sums { .. }
            | Message::AskBucket { .. }
            | Message::Bucket { .. }
            | Message::AskRecords { .. }
            | Message::Echo(_)
            | Message::Records { .. } => Self::Control,
        }
    }

    fn index(self) -> usize {
        match self {
            Self::Control => 0,
            Self::Bulk => 1,
        }
    }
}

/// What a link may take, in bytes and time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkLimits {
    /// Bytes that wait to be sent, of each lane.
    pub queue_bytes: usize,
    /// Bytes that were received and wait to be taken, of each lane; at least [`MESSAGE_BYTES_MAX`] is used.
    pub received_bytes: usize,
    /// A lane on which nothing was sent for so long sends a keep-alive.
    pub keep_alive: Duration,
    /// A peer of whom nothing was heard on a lane for so long is taken for dead.
    pub silence: Duration,
    /// From the first byte of a connection until it is greeted, and again until its other lane is there.
    pub handshake: Duration,
    /// How long an orderly close may take.
    pub close: Duration,
}

impl Default for LinkLimits {
    fn default() -> Self {
        Self {
            queue_bytes: 8 << 20,
            received_bytes: 8 << 20,
            keep_alive: Duration::from_secs(15),
            silence: Duration::from_secs(45),
            handshake: Duration::from_secs(10),
            close: Duration::from_secs(10),
        }
    }
}

/// Bytes of one connection as the network carries them: TLS and handshake included, TCP and IP not.
#[derive(Debug, Default)]
pub struct LaneCounters {
    sent: AtomicU64,
    received: AtomicU64,
}

impl LaneCounters {
    /// Bytes sent.
    #[must_use]
    pub fn sent_bytes(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Bytes received.
    #[must_use]
    pub fn received_bytes(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    pub(crate) fn add_sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn add_received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// The counters of a link; they stay readable after it has ended.
#[derive(Clone, Debug, Default)]
pub struct LinkCounters([Arc<LaneCounters>; 2]);

impl LinkCounters {
    /// Those of one lane.
    #[must_use]
    pub fn lane(&self, lane: Lane) -> &LaneCounters {
        &self.0[lane.index()]
    }

    /// Is the link over, and are these the last that look at its counters?
    #[must_use]
    pub fn is_last(&self) -> bool {
        self.0.iter().all(|lane| Arc::strong_count(lane) == 1)
    }

    /// Bytes sent on both lanes.
    #[must_use]
    pub fn sent_bytes(&self) -> u64 {
        self.0.iter().map(|lane| lane.sent_bytes()).sum()
    }

    /// Bytes received on both lanes.
    #[must_use]
    pub fn received_bytes(&self) -> u64 {
        self.0.iter().map(|lane| lane.received_bytes()).sum()
    }
}

/// Why a link ended.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Ended {
    /// It was closed on this side.
    #[error("closed here")]
    Here,
    /// The peer closed it in order.
    #[error("closed by the peer")]
    ByPeer,
    /// Nothing was heard of the peer for so long.
    #[error("nothing heard of the peer for {} s", .0.as_secs())]
    Silent(Duration),
    /// A connection broke.
    #[error("the connection broke")]
    Lost(#[source] Arc<io::Error>),
    /// The peer broke a rule.
    #[error("the peer broke a rule")]
    Broke(#[source] PeerError),
}

/// A link with one peer.
#[derive(Debug)]
pub struct Link {
    /// The peer's key, which both connections have shown.
    pub peer: KeyFingerprint,
    /// Where the peer is, as seen from here.
    pub address: SocketAddr,
    /// Where the peer says that it listens, `host:port`, where it dialed and said so; else empty. Not checked.
    pub listens: String,
    /// For sending; clone it as needed.
    pub sender: LinkSender,
    /// For receiving. Dropping it closes the link.
    pub receiver: LinkReceiver,
    /// Bytes of the connections.
    pub counters: LinkCounters,
}

impl Link {
    /// Makes a link of two connections, control first, and starts its tasks.
    pub(crate) fn over<S>(
        lanes: [(S, Arc<LaneCounters>); 2],
        peer: KeyFingerprint,
        address: SocketAddr,
        listens: String,
        limits: LinkLimits,
    ) -> Self
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let room_bytes = limits.received_bytes.max(MESSAGE_BYTES_MAX);
        let shared = Arc::new(Shared {
            limits,
            ended: watch::Sender::new(None),
            closing: watch::Sender::new(false),
            reading: AtomicUsize::new(Lane::ALL.len()),
            queue_room: std::array::from_fn(|_| Arc::new(Semaphore::new(limits.queue_bytes))),
            received_room: std::array::from_fn(|_| Arc::new(Semaphore::new(room_bytes))),
        });
        let counters = LinkCounters([Arc::clone(&lanes[0].1), Arc::clone(&lanes[1].1)]);
        let start = |lane: Lane, stream: S| {
            let (reader, writer) = tokio::io::split(stream);
            let (queue, queued) = mpsc::unbounded_channel();
            let (arrive, arrived) = mpsc::unbounded_channel();
            tokio::spawn(lane::write(writer, queued, Arc::clone(&shared)));
            tokio::spawn(lane::read(reader, lane, arrive, Arc::clone(&shared)));
            (queue, arrived)
        };
        let [control, bulk] = lanes;
        let (control_queue, control) = start(Lane::Control, control.0);
        let (bulk_queue, bulk) = start(Lane::Bulk, bulk.0);
        Self {
            peer,
            address,
            listens,
            sender: LinkSender { queues: [control_queue, bulk_queue], shared: Arc::clone(&shared) },
            receiver: LinkReceiver { control, bulk, shared },
            counters,
        }
    }
}

/// What the tasks and handles of a link have in common.
#[derive(Debug)]
struct Shared {
    limits: LinkLimits,
    /// Set once; all tasks stop then.
    ended: watch::Sender<Option<Ended>>,
    /// Nothing more is queued; what is queued still goes out.
    closing: watch::Sender<bool>,
    /// Lanes that the peer has not closed yet.
    reading: AtomicUsize,
    queue_room: [Arc<Semaphore>; 2],
    received_room: [Arc<Semaphore>; 2],
}

impl Shared {
    /// Ends the link, unless it has ended before.
    fn end(&self, cause: Ended) {
        let first = self.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            if first {
                *ended = Some(cause);
            }
            first
        });
        if first {
            self.queue_room.iter().chain(&self.received_room).for_each(|room| room.close());
        }
    }

    fn close(&self) {
        self.closing.send_replace(true);
    }

    /// Comes back once the link has ended.
    async fn until_ended(&self) -> Ended {
        let mut ended = self.ended.subscribe();
        // The sender is in `self`, so it outlives the wait.
        match ended.wait_for(Option::is_some).await {
            Ok(ended) => ended.clone().unwrap_or(Ended::Here),
            Err(_) => Ended::Here,
        }
    }

    async fn until_closing(&self) {
        // As above: it cannot fail.
        let _ = self.closing.subscribe().wait_for(|closing| *closing).await;
    }
}

/// Sends messages on a link.
#[derive(Clone, Debug)]
pub struct LinkSender {
    queues: [mpsc::UnboundedSender<Queued>; 2],
    shared: Arc<Shared>,
}

/// Why a message was not sent.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SendError {
    /// The link is closed, or closing.
    #[error("the link is closed")]
    Closed,
    /// The message passes the limits of the protocol: a mistake on this side.
    #[error("the message cannot be sent")]
    Message(#[source] PeerError),
}

/// Why a message was not sent at once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TrySendError {
    /// The lane's queue is full: here the message is again. [`LinkSender::send`] would wait.
    Full(Box<Envelope>),
    /// It can never be sent.
    Never(SendError),
}

impl LinkSender {
    /// Queues a message, and waits before it while the lane's queue is full. Can be dropped at any time: then the
    /// message was not sent.
    ///
    /// # Errors
    /// [`SendError`]. A message that was queued may still be lost, if the link breaks.
    pub async fn send(&self, envelope: Envelope) -> Result<(), SendError> {
        let lane = Lane::of(&envelope.message);
        let room = Arc::clone(&self.shared.queue_room[lane.index()]);
        let permit = room.acquire_many_owned(self.cost(&envelope)).await.map_err(|_| SendError::Closed)?;
        self.queue(lane, envelope, permit)
    }

    /// Queues a message if there is room now.
    ///
    /// # Errors
    /// [`TrySendError::Full`] gives it back.
    pub fn try_send(&self, envelope: Envelope) -> Result<(), TrySendError> {
        let lane = Lane::of(&envelope.message);
        let room = Arc::clone(&self.shared.queue_room[lane.index()]);
        match room.try_acquire_many_owned(self.cost(&envelope)) {
            Ok(permit) => self.queue(lane, envelope, permit).map_err(TrySendError::Never),
            Err(tokio::sync::TryAcquireError::NoPermits) => Err(TrySendError::Full(Box::new(envelope))),
            Err(tokio::sync::TryAcquireError::Closed) => Err(TrySendError::Never(SendError::Closed)),
        }
    }

    /// Closes the link in order: what is queued still goes out, nothing more is taken, and the peer sees the end.
    /// [`LinkReceiver::recv`] goes on until the peer has closed too, at most [`LinkLimits::close`].
    pub fn close(&self) {
        self.shared.close();
    }

    /// Ends the link at once; what is queued is lost. For a peer that is no longer let in.
    pub fn abort(&self) {
        self.shared.end(Ended::Here);
    }

    /// Comes back once the link has ended, and says why.
    pub async fn ended(&self) -> Ended {
        self.shared.until_ended().await
    }

    /// Bytes that a lane's queue has room for now.
    #[must_use]
    pub fn room_bytes(&self, lane: Lane) -> usize {
        self.shared.queue_room[lane.index()].available_permits()
    }

    /// What a message takes of the queue's room. One that is larger than the queue may go when it is empty.
    fn cost(&self, envelope: &Envelope) -> u32 {
        let cost = cost_bytes(&envelope.message).min(self.shared.limits.queue_bytes);
        u32::try_from(cost).unwrap_or(u32::MAX)
    }

    fn queue(
        &self,
        lane: Lane,
        envelope: Envelope,
        permit: tokio::sync::OwnedSemaphorePermit,
    ) -> Result<(), SendError> {
        if *self.shared.closing.borrow() {
            return Err(SendError::Closed);
        }
        let frame = wire::frame(envelope).map_err(SendError::Message)?;
        self.queues[lane.index()].send(Queued { frame, permit }).map_err(|_| SendError::Closed)
    }
}

/// About how many bytes a message takes in a queue, before it is encoded.
fn cost_bytes(message: &Message) -> usize {
    const HEAD: usize = 128;
    const ENTRY: usize = 28;
    HEAD + match message {
        Message::Open { known, closed, .. } | Message::Opened { known, closed, .. } => {
            ENTRY * (known.len() + closed.len())
        }
        Message::Pull { known, .. } => ENTRY * known.len(),
        Message::Page(page) => {
            let known = page.complete.as_ref().map_or(0, |(known, _)| known.len());
            let bytes: usize = page.rows.iter().chain(&page.attributes).map(|row| row.len() + 4).sum();
            ENTRY * (known + page.replicas.len()) + bytes
        }
        Message::Fetch { wants, .. } => 112 * wants.len(),
        Message::Pieces { pieces, .. } => pieces
            .iter()
            .map(|piece| match piece {
                Piece::Data(data) => 12 + data.len(),
                Piece::NotHeld | Piece::Busy => 12,
            })
            .sum(),
        Message::Acknowledged { members } => members.iter().map(|m| HEAD + m.member.len() + ENTRY * m.held.len()).sum(),
        Message::Sums { sums, .. } => 34 * sums.len(),
        Message::Bucket { rows, .. } => 56 * rows.len(),
        Message::Held { uids } | Message::AskRecords { uids, .. } => 24 * uids.len(),
        Message::Refused { reason } => reason.len(),
        Message::Records { present, .. } => present.len() / 8,
        Message::Grown { .. } | Message::AskSums { .. } | Message::AskBucket { .. } | Message::Echo(_) => 0,
    }
}

/// Receives the messages of a link. Dropping it closes the link in order.
#[derive(Debug)]
pub struct LinkReceiver {
    control: mpsc::UnboundedReceiver<Arrived>,
    bulk: mpsc::UnboundedReceiver<Arrived>,
    shared: Arc<Shared>,
}

impl LinkReceiver {
    /// The next message, those of the control lane first; none once the link has ended and all that came was taken.
    /// Can be dropped at any time without losing one.
    ///
    /// An error is what the peer did wrong; the link goes on only after one that [`PeerError::is_harmless`].
    pub async fn recv(&mut self) -> Option<Result<Envelope, PeerError>> {
        let arrived = tokio::select! {
            biased;
            Some(arrived) = self.control.recv() => arrived,
            Some(arrived) = self.bulk.recv() => arrived,
            else => return None,
        };
        // Its room is given back here: from now on the message counts as the caller's.
        Some(arrived.message)
    }

    /// Why the link ended; none while it has not.
    #[must_use]
    pub fn ended(&self) -> Option<Ended> {
        self.shared.ended.borrow().clone()
    }
}

impl Drop for LinkReceiver {
    fn drop(&mut self) {
        self.shared.close();
    }
}
