//! Dialing: to replicate, and to join by an invitation.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::pki_types::{IpAddr as TlsAddress, Ipv4Addr as TlsIpv4, ServerName};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::{TlsConnector, client};

use crate::error::{LinkCause, LinkError};
use crate::greeting::{self, Preface, Purpose};
use crate::join::{JoinReply, JoinRequest};
use crate::link::{Lane, LaneCounters, Link, LinkLimits};
use crate::{Identity, KeyFingerprint, tls};

/// How long [`join`] waits for the reply: somebody may have to confirm it.
pub const JOIN_LIMIT: Duration = Duration::from_secs(75);

/// Dials a member and makes a link with it, to replicate. `address` is `host:port`; all that the name resolves to are
/// tried in turn. It is linked only if the peer has exactly the key `expected`, and lets in ours. `listens`, `host:port`, is
/// where we listen ourselves: the peer is told, for it may know an older address; empty tells nothing.
///
/// # Errors
/// [`LinkError`] names the address and the cause; a wrong key with what was expected and found.
pub async fn dial(
    address: &str,
    identity: &Identity,
    expected: KeyFingerprint,
    listens: &str,
    limit: Duration,
) -> Result<Link, LinkError> {
    dial_with(address, identity, expected, listens, limit, LinkLimits::default()).await
}

/// As [`dial`], with other limits of the link.
///
/// # Errors
/// As [`dial`].
pub async fn dial_with(
    address: &str,
    identity: &Identity,
    expected: KeyFingerprint,
    listens: &str,
    limit: Duration,
    limits: LinkLimits,
) -> Result<Link, LinkError> {
    let mut link_id = [0; 16];
    getrandom::fill(&mut link_id).map_err(|e| LinkCause::Io(io::Error::other(e.to_string())).with(address))?;
    let lane = |lane| {
        let preface = Preface { link_id, lane, purpose: Purpose::Replicate, listens: listens.to_owned() };
        connect(address, identity, expected, preface)
    };
    let both = async { tokio::try_join!(lane(Lane::Control), lane(Lane::Bulk)) };
    let (control, bulk) = match timeout(limit, both).await {
        Ok(both) => both.map_err(|cause| cause.with(address))?,
        Err(_) => return Err(LinkCause::Timeout(limit).with(address)),
    };
    let peer_address = control.address;
    let lanes = [(control.stream, control.counters), (bulk.stream, bulk.counters)];
    Ok(Link::over(lanes, expected, peer_address, String::new(), limits))
}

/// Dials the member that gave an invitation, which must have exactly the key `expected`, and asks to join.
///
/// # Errors
/// [`LinkError`]. A refusal in reply to the request itself is a [`JoinReply::Refused`].
pub async fn join(
    address: &str,
    identity: &Identity,
    expected: KeyFingerprint,
    request: &JoinRequest,
) -> Result<JoinReply, LinkError> {
    let preface = Preface { link_id: [0; 16], lane: Lane::Control, purpose: Purpose::Join, listens: String::new() };
    let asked = async {
        let mut stream = connect(address, identity, expected, preface).await?.stream;
        let reply = greeting::ask_to_join(&mut stream, request).await?;
        greeting::part(&mut stream).await;
        Ok(reply)
    };
    match timeout(JOIN_LIMIT, asked).await {
        Ok(reply) => reply.map_err(|cause: LinkCause| cause.with(address)),
        Err(_) => Err(LinkCause::Timeout(JOIN_LIMIT).with(address)),
    }
}

struct Connection {
    stream: client::TlsStream<Counted<TcpStream>>,
    counters: Arc<LaneCounters>,
    address: SocketAddr,
}

async fn connect(
    address: &str,
    identity: &Identity,
    expected: KeyFingerprint,
    preface: Preface,
) -> Result<Connection, LinkCause> {
    let (socket, address) = reach(address).await?;
    let counters = Arc::<LaneCounters>::default();
    let socket = Counted { inner: socket, counters: Arc::clone(&counters) };
    let config = tls::dialing(identity, expected).map_err(LinkCause::Tls)?;
    // The name is asked for by the interface and never sent (no SNI).
    let name = ServerName::IpAddress(TlsAddress::V4(TlsIpv4::from([0, 0, 0, 0])));
    let greeted = async {
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, socket).await?;
        greeting::greet(&mut stream, &preface).await?;
        Ok(stream)
    };
    let stream = greeted.await.map_err(|cause: LinkCause| cause.of_dialing(identity.fingerprint()))?;
    Ok(Connection { stream, counters, address })
}

/// Connects to the first address that answers.
async fn reach(address: &str) -> Result<(TcpStream, SocketAddr), LinkCause> {
    let mut last = None;
    for address in lookup_host(address).await.map_err(LinkCause::Resolve)? {
        match TcpStream::connect(address).await {
            Ok(socket) => {
                socket.set_nodelay(true)?;
                return Ok((socket, address));
            }
            Err(error) => last = Some(error),
        }
    }
    match last {
        Some(error) => Err(LinkCause::Connect(error)),
        None => Err(LinkCause::Resolve(io::Error::new(io::ErrorKind::NotFound, "the name has no address"))),
    }
}

/// A connection whose bytes are counted.
#[derive(Debug)]
pub(crate) struct Counted<S> {
    pub(crate) inner: S,
    pub(crate) counters: Arc<LaneCounters>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let poll = Pin::new(&mut self.inner).poll_read(cx, buf);
        self.counters.add_received(buf.filled().len() - before);
        poll
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.inner).poll_write(cx, buf);
        if let Poll::Ready(Ok(written)) = poll {
            self.counters.add_sent(written);
        }
        poll
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        if let Poll::Ready(Ok(written)) = poll {
            self.counters.add_sent(written);
        }
        poll
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
