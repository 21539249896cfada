//! Listening: who comes, with which key, and for what. A stranger can hold few connections, for a short time.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::{TlsAcceptor, server};

use crate::connect::Counted;
use crate::error::{LinkCause, LinkError};
use crate::greeting::{self, Preface, Purpose};
use crate::identity::fingerprint_of;
use crate::join::{JoinRate, JoinReply, JoinRequest, network_of};
use crate::link::{Lane, LaneCounters, Link, LinkLimits};
use crate::tls::{self, KeyNotPinned, Pins};
use crate::{Identity, KeyFingerprint, PeerError};

/// Connections at once that have not shown a pinned key yet; more are closed at once.
pub const STRANGERS_MAX: usize = 64;
/// Of these, from one address.
pub const STRANGERS_PER_ADDRESS: usize = 32;
/// Connections of one key that wait for their other lane.
pub const HALVES_PER_KEY: usize = 16;
/// How long a request to join waits for the caller's reply.
pub const REPLY_LIMIT: Duration = Duration::from_secs(60);

/// Who has come.
#[derive(Debug)]
pub enum Accepted {
    /// A member with a pinned key, to replicate.
    Link(Link),
    /// Somebody with an invitation, or who says so: the caller compares the secret.
    Join(JoinAttempt),
    /// Somebody who was turned away: for the log. Left out where the caller is slow to take them.
    Refused(LinkError),
}

/// A request to join that waits for its reply.
#[derive(Debug)]
pub struct JoinAttempt {
    /// What was asked.
    pub request: JoinRequest,
    /// The key of who asks: it is pinned if the request is granted.
    pub fingerprint: KeyFingerprint,
    /// Where it comes from.
    pub address: SocketAddr,
    /// Takes the reply, within [`REPLY_LIMIT`]. Dropping it refuses.
    pub reply: oneshot::Sender<JoinReply>,
}

/// Opens and closes the door for keys that are not pinned.
#[derive(Clone, Debug, Default)]
pub struct JoinGate(Arc<AtomicBool>);

impl JoinGate {
    /// Lets strangers ask to join, or not. To be open only while an invitation is outstanding: while it is closed, a
    /// stranger gets no further than the TLS handshake.
    pub fn set_open(&self, open: bool) {
        self.0.store(open, Ordering::Release);
    }

    /// Is it open?
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Listens on one address. Dropping it stops listening; links that were handed out live on.
#[derive(Debug)]
pub struct Listener {
    local: SocketAddr,
    joins: JoinGate,
    accepted: mpsc::Receiver<Accepted>,
    // Aborts the accepting task, and with it all that are not handed out yet.
    _tasks: JoinSet<()>,
}

impl Listener {
    /// Listens on `address`; port 0 takes a free one. `pins` says which keys may replicate.
    ///
    /// # Errors
    /// [`LinkCause::Io`] where the address cannot be taken.
    pub async fn bind(address: SocketAddr, identity: &Identity, pins: Pins) -> Result<Self, LinkError> {
        Self::bind_with(address, identity, pins, LinkLimits::default()).await
    }

    /// As [`Self::bind`], with other limits of the links.
    ///
    /// # Errors
    /// As [`Self::bind`].
    pub async fn bind_with(
        address: SocketAddr,
        identity: &Identity,
        pins: Pins,
        limits: LinkLimits,
    ) -> Result<Self, LinkError> {
        let failed = |cause: LinkCause| cause.with(address.to_string());
        let socket = TcpListener::bind(address).await.map_err(|e| failed(LinkCause::Io(e)))?;
        let local = socket.local_addr().map_err(|e| failed(LinkCause::Io(e)))?;
        let (door, accepted) = Door::new(identity, pins, limits).map_err(|e| failed(LinkCause::Tls(e)))?;
        let joins = door.joins.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(accept_all(socket, Arc::new(door)));
        Ok(Self { local, joins, accepted, _tasks: tasks })
    }

    /// Where it listens.
    #[must_use]
    pub fn local_address(&self) -> SocketAddr {
        self.local
    }

    /// The door for strangers, closed at first.
    #[must_use]
    pub fn joins(&self) -> JoinGate {
        self.joins.clone()
    }

    /// Who comes next. Can be dropped at any time without losing anybody.
    pub async fn accept(&mut self) -> Option<Accepted> {
        self.accepted.recv().await
    }
}

async fn accept_all(socket: TcpListener, door: Arc<Door<TcpStream>>) {
    let mut visitors = JoinSet::new();
    loop {
        tokio::select! {
            accepted = socket.accept() => match accepted {
                Ok((stream, address)) => {
                    // Without it answers wait for acknowledgements; a connection that cannot take it is broken anyway.
                    if stream.set_nodelay(true).is_ok() {
                        let door = Arc::clone(&door);
                        visitors.spawn(async move { door.admit(stream, address).await });
                    }
                }
                // Out of descriptors or memory: it passes, and trying again at once would only burn the processor.
                Err(error) => {
                    tracing::warn!(%error, "cannot accept connections");
                    sleep(Duration::from_millis(200)).await;
                }
            },
            Some(_) = visitors.join_next() => {}
        }
    }
}

/// A connection after TLS.
type Stream<S> = server::TlsStream<Counted<S>>;

/// What all connections that come in have in common. Generic, so that tests use connections in memory.
struct Door<S> {
    tls: TlsAcceptor,
    pins: Pins,
    joins: JoinGate,
    limits: LinkLimits,
    strangers: Mutex<BTreeMap<IpAddr, usize>>,
    rate: Mutex<JoinRate>,
    halves: Mutex<BTreeMap<LinkKey, Half<S>>>,
    accepted: mpsc::Sender<Accepted>,
}

/// Whose link, and which of them.
type LinkKey = (KeyFingerprint, [u8; 16]);

/// A lane that waits for the other one.
struct Half<S> {
    lane: Lane,
    other: oneshot::Sender<(Stream<S>, Arc<LaneCounters>)>,
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // What is behind these locks is valid between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts a connection among the strangers until it is dropped.
struct Stranger<'a> {
    counts: &'a Mutex<BTreeMap<IpAddr, usize>>,
    network: IpAddr,
}

impl<'a> Stranger<'a> {
    fn enter(counts: &'a Mutex<BTreeMap<IpAddr, usize>>, address: IpAddr) -> Option<Self> {
        let network = network_of(address);
        let mut locked = locked(counts);
        let here = locked.get(&network).copied().unwrap_or(0);
        if here >= STRANGERS_PER_ADDRESS || locked.values().sum::<usize>() >= STRANGERS_MAX {
            return None;
        }
        locked.insert(network, here + 1);
        Some(Self { counts, network })
    }
}

impl Drop for Stranger<'_> {
    fn drop(&mut self) {
        let mut counts = locked(self.counts);
        if let Some(count) = counts.get_mut(&self.network) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.network);
            }
        }
    }
}

/// A connection that was let in to replicate.
struct Welcome<S> {
    stream: Stream<S>,
    counters: Arc<LaneCounters>,
    peer: KeyFingerprint,
    link_id: [u8; 16],
    lane: Lane,
    listens: String,
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Door<S> {
    fn new(
        identity: &Identity,
        pins: Pins,
        limits: LinkLimits,
    ) -> Result<(Self, mpsc::Receiver<Accepted>), rustls::Error> {
        let joins = JoinGate::default();
        let shown: Pins = {
            let (pins, joins) = (Arc::clone(&pins), joins.clone());
            Arc::new(move |found| joins.is_open() || pins(found))
        };
        let (accepted, receiver) = mpsc::channel(STRANGERS_MAX);
        let door = Self {
            tls: TlsAcceptor::from(Arc::new(tls::listening(identity, shown)?)),
            pins,
            joins,
            limits,
            strangers: Mutex::default(),
            rate: Mutex::default(),
            halves: Mutex::default(),
            accepted,
        };
        Ok((door, receiver))
    }

    /// Sees a connection through until it is part of a link, or closed.
    async fn admit(&self, stream: S, address: SocketAddr) {
        let result = match self.greet(stream, address).await {
            Ok(Some(welcome)) => self.pair(welcome, address).await,
            Ok(None) => Ok(()),
            Err(cause) => Err(cause),
        };
        if let Err(cause) = result {
            // Whoever is turned away often must not fill the memory, nor hold up the others.
            let _ = self.accepted.try_send(Accepted::Refused(cause.with(address.to_string())));
        }
    }

    /// As far as the welcome; nothing where it was a request to join, which is answered here.
    async fn greet(&self, stream: S, address: SocketAddr) -> Result<Option<Welcome<S>>, LinkCause> {
        let Some(_stranger) = Stranger::enter(&self.strangers, address.ip()) else {
            return Err(LinkCause::Refused { reason: "too many connections at once are not greeted yet".into() });
        };
        let counters = Arc::<LaneCounters>::default();
        let counted = Counted { inner: stream, counters: Arc::clone(&counters) };
        let limit = self.limits.handshake;
        let heard = timeout(limit, async {
            let mut stream = self.tls.accept(counted).await?;
            let peer = peer_of(&stream)?;
            let preface = greeting::hear(&mut stream).await?;
            Ok::<_, LinkCause>((stream, peer, preface))
        });
        let (mut stream, peer, preface) = heard.await.map_err(|_| LinkCause::Timeout(limit))??;
        if let Err(refusal) = self.may(preface.purpose, peer, address) {
            let goodbye = async {
                greeting::answer(&mut stream, Some(&refusal.to_string())).await?;
                greeting::part(&mut stream).await;
                Ok::<_, LinkCause>(())
            };
            // The refusal is what counts, not how it was taken.
            let _ = timeout(limit, goodbye).await;
            return Err(refusal);
        }
        timeout(limit, greeting::answer(&mut stream, None)).await.map_err(|_| LinkCause::Timeout(limit))??;
        match preface.purpose {
            Purpose::Replicate => {
                let Preface { link_id, lane, listens, .. } = preface;
                Ok(Some(Welcome { stream, counters, peer, link_id, lane, listens }))
            }
            Purpose::Join => self.serve_join(stream, peer, address).await.map(|()| None),
        }
    }

    fn may(&self, purpose: Purpose, peer: KeyFingerprint, address: SocketAddr) -> Result<(), LinkCause> {
        match purpose {
            Purpose::Replicate if (self.pins)(&peer) => Ok(()),
            Purpose::Replicate => Err(LinkCause::Key(KeyNotPinned { expected: None, found: peer })),
            Purpose::Join if !self.joins.is_open() => {
                Err(LinkCause::Refused { reason: "no invitation is outstanding at this member".into() })
            }
            Purpose::Join if !locked(&self.rate).allow(address.ip(), Instant::now()) => {
                Err(LinkCause::Refused { reason: "too many attempts to join; try again in a minute".into() })
            }
            Purpose::Join => Ok(()),
        }
    }

    async fn serve_join(
        &self,
        mut stream: Stream<S>,
        fingerprint: KeyFingerprint,
        address: SocketAddr,
    ) -> Result<(), LinkCause> {
        let limit = self.limits.handshake;
        let request =
            timeout(limit, greeting::read_request(&mut stream)).await.map_err(|_| LinkCause::Timeout(limit))??;
        let (reply, replied) = oneshot::channel();
        let attempt = JoinAttempt { request, fingerprint, address, reply };
        let refused = |reason: &str| JoinReply::Refused { reason: reason.into() };
        let answered = async {
            if self.accepted.send(Accepted::Join(attempt)).await.is_err() {
                return refused("This member is shutting down.");
            }
            replied.await.unwrap_or_else(|_| refused("This member cannot answer now."))
        };
        let reply = timeout(REPLY_LIMIT, answered).await;
        let reply = reply.unwrap_or_else(|_| refused("This member did not decide in time."));
        let written = async {
            greeting::write_reply(&mut stream, reply).await?;
            greeting::part(&mut stream).await;
            Ok(())
        };
        timeout(limit, written).await.map_err(|_| LinkCause::Timeout(limit))?
    }

    /// Joins the lanes of one link: who comes first waits for the other.
    async fn pair(&self, welcome: Welcome<S>, address: SocketAddr) -> Result<(), LinkCause> {
        let key = (welcome.peer, welcome.link_id);
        let (other, arrives) = oneshot::channel();
        {
            let mut halves = locked(&self.halves);
            if let Some(half) = halves.remove(&key) {
                // Where both are the same lane, both are dropped.
                if half.lane == welcome.lane {
                    return Err(LinkCause::Lanes);
                }
                // One that has given up since then is gone with the link, and the peer dials anew.
                let _ = half.other.send((welcome.stream, welcome.counters));
                return Ok(());
            }
            let first = (welcome.peer, [0; 16])..=(welcome.peer, [0xff; 16]);
            if halves.range(first).count() >= HALVES_PER_KEY {
                return Err(LinkCause::Halves);
            }
            halves.insert(key, Half { lane: welcome.lane, other });
        }
        let limit = self.limits.handshake;
        let other = match timeout(limit, arrives).await {
            Ok(Ok(other)) => other,
            Ok(Err(_)) => return Err(LinkCause::Lanes),
            Err(_) => {
                locked(&self.halves).remove(&key);
                return Err(LinkCause::Timeout(limit));
            }
        };
        let this = (welcome.stream, welcome.counters);
        let lanes = match welcome.lane {
            Lane::Control => [this, other],
            Lane::Bulk => [other, this],
        };
        let link = Link::over(lanes, welcome.peer, address, welcome.listens, self.limits);
        // Where the listener is gone, the link closes as it is dropped.
        let _ = self.accepted.send(Accepted::Link(link)).await;
        Ok(())
    }
}

/// The key that the peer has shown. A peer that did not ask for our protocol by name is another program.
fn peer_of<S>(stream: &Stream<S>) -> Result<KeyFingerprint, LinkCause> {
    let (_, connection) = stream.get_ref();
    if connection.alpn_protocol() != Some(tls::ALPN) {
        return Err(PeerError::Magic.into());
    }
    let certificate = connection.peer_certificates().and_then(|all| all.first());
    let certificate = certificate.ok_or(LinkCause::Tls(rustls::Error::NoCertificatesPresented))?;
    fingerprint_of(certificate).map_err(LinkCause::Tls)
}
