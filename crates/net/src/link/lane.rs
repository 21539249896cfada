//! The two tasks of a lane: one writes what is queued, the other reads what comes.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::{Ended, Lane, Shared};
use crate::PeerError;
use crate::message::Envelope;
use crate::wire::{self, FRAME_HEAD_BYTES};

/// Small frames are gathered up to about so many bytes, so that TLS and the socket see few large writes.
const BATCH_BYTES: usize = 128 << 10;
/// Frames from here on are written as they are, without another copy.
const LARGE_BYTES: usize = 32 << 10;
/// What is read at once, at least.
const READ_BYTES: usize = 64 << 10;

/// A frame that waits to be sent, with its share of the queue's room.
#[derive(Debug)]
pub(super) struct Queued {
    pub(super) frame: Vec<u8>,
    pub(super) permit: OwnedSemaphorePermit,
}

/// What has come, with its share of the room.
#[derive(Debug)]
pub(super) struct Arrived {
    pub(super) message: Result<Envelope, PeerError>,
    #[expect(dead_code, reason = "held for its room, which is given back when it is dropped")]
    permit: Option<OwnedSemaphorePermit>,
}

/// Writes until the link ends, or until it is closing and the queue is empty.
pub(super) async fn write<W: AsyncWrite + Unpin>(
    mut out: W,
    mut queue: mpsc::UnboundedReceiver<Queued>,
    shared: Arc<Shared>,
) {
    let ended = tokio::select! {
        biased;
        ended = shared.until_ended() => Some(ended),
        written = write_all_queued(&mut out, &mut queue, &shared) => match written {
            Ok(()) => None,
            Err(error) => {
                shared.end(lost(error));
                return;
            }
        },
    };
    // An orderly end is said to the peer. Where the link broke there is nobody to say it to.
    if matches!(ended, None | Some(Ended::ByPeer | Ended::Here)) {
        // The reader judges how it went; a peer that has gone is no news here.
        let _ = timeout(shared.limits.close, out.shutdown()).await;
    }
}

async fn write_all_queued<W: AsyncWrite + Unpin>(
    out: &mut W,
    queue: &mut mpsc::UnboundedReceiver<Queued>,
    shared: &Shared,
) -> io::Result<()> {
    let mut batch = Vec::with_capacity(BATCH_BYTES + LARGE_BYTES);
    let mut closing = false;
    loop {
        let first = tokio::select! {
            biased;
            queued = queue.recv() => match queued {
                Some(queued) => queued,
                None => return Ok(()),
            },
            () = shared.until_closing(), if !closing => {
                // What was queued before is still received, and then none.
                queue.close();
                closing = true;
                continue;
            }
            () = sleep(shared.limits.keep_alive) => {
                out.write_all(&[0; FRAME_HEAD_BYTES]).await?;
                out.flush().await?;
                continue;
            }
        };
        // Permits go back only once the bytes have left the queue.
        let mut permits = Vec::new();
        let mut next = Some(first);
        while let Some(Queued { frame, permit }) = next {
            permits.push(permit);
            if frame.len() < LARGE_BYTES {
                batch.extend_from_slice(&frame);
            } else {
                out.write_all(&batch).await?;
                batch.clear();
                out.write_all(&frame).await?;
                permits.clear();
            }
            next = if batch.len() < BATCH_BYTES { queue.try_recv().ok() } else { None };
        }
        out.write_all(&batch).await?;
        batch.clear();
        drop(permits);
        out.flush().await?;
    }
}

/// Reads until the link ends or the peer closes the lane.
pub(super) async fn read<R: AsyncRead + Unpin>(
    mut input: R,
    lane: Lane,
    arrive: mpsc::UnboundedSender<Arrived>,
    shared: Arc<Shared>,
) {
    let frames = tokio::select! {
        biased;
        _ = shared.until_ended() => return,
        frames = read_frames(&mut input, lane, arrive, &shared) => frames,
        () = closed_too_long(&shared) => Err(Ended::Here),
    };
    let closing = *shared.closing.borrow();
    match frames {
        // Whatever happens to the connection once we have closed it is the close.
        Err(Ended::Lost(_)) if closing => shared.end(Ended::Here),
        Err(cause) => shared.end(cause),
        Ok(()) if shared.reading.fetch_sub(1, Ordering::AcqRel) == 1 => {
            shared.end(if closing { Ended::Here } else { Ended::ByPeer });
        }
        // The peer has closed this lane in order; the other one may still carry what was sent before. A link of one
        // lane for long is none.
        Ok(()) => {
            tokio::select! {
                _ = shared.until_ended() => {}
                () = sleep(shared.limits.close) => {
                    shared.end(lost(io::Error::new(io::ErrorKind::BrokenPipe, "the peer closed one lane only")));
                }
            }
        }
    }
}

async fn closed_too_long(shared: &Shared) {
    shared.until_closing().await;
    sleep(shared.limits.close).await;
}

async fn read_frames<R: AsyncRead + Unpin>(
    input: &mut R,
    lane: Lane,
    arrive: mpsc::UnboundedSender<Arrived>,
    shared: &Shared,
) -> Result<(), Ended> {
    let mut buffer = BytesMut::with_capacity(READ_BYTES);
    loop {
        while buffer.len() < FRAME_HEAD_BYTES {
            if fill(input, &mut buffer, shared).await? == 0 {
                return if buffer.is_empty() { Ok(()) } else { Err(cut_off()) };
            }
        }
        let length = match wire::frame_length(std::array::from_fn(|at| buffer[at])) {
            Ok(length) => length,
            Err(error) => return Err(broke(error, &arrive)),
        };
        buffer.advance(FRAME_HEAD_BYTES);
        if length == 0 {
            continue;
        }
        // Room first, memory after. While there is none nothing is read, so the peer's silence is not its fault and
        // is not timed.
        let room = Arc::clone(&shared.received_room[lane.index()]);
        let permit =
            room.acquire_many_owned(u32::try_from(length).unwrap_or(u32::MAX)).await.map_err(|_| Ended::Here)?;
        buffer.reserve(length.saturating_sub(buffer.len()));
        while buffer.len() < length {
            if fill(input, &mut buffer, shared).await? == 0 {
                return Err(cut_off());
            }
        }
        match wire::decode(buffer.split_to(length).freeze()) {
            Err(error) if !error.is_harmless() => return Err(broke(error, &arrive)),
            // Where the receiver is gone the link is closing: what comes is read and dropped until the peer closes.
            message => drop(arrive.send(Arrived { message, permit: Some(permit) })),
        }
    }
}

/// Reads some bytes; 0 is the end. A peer that says nothing for too long is dead: a living one sends keep-alives.
async fn fill<R: AsyncRead + Unpin>(input: &mut R, buffer: &mut BytesMut, shared: &Shared) -> Result<usize, Ended> {
    if buffer.capacity() == buffer.len() {
        buffer.reserve(READ_BYTES);
    }
    match timeout_at(Instant::now() + shared.limits.silence, input.read_buf(buffer)).await {
        Ok(read) => read.map_err(lost),
        Err(_) => Err(Ended::Silent(shared.limits.silence)),
    }
}

/// Hands the error to the receiver, after all that came before it.
fn broke(error: PeerError, arrive: &mpsc::UnboundedSender<Arrived>) -> Ended {
    drop(arrive.send(Arrived { message: Err(error.clone()), permit: None }));
    Ended::Broke(error)
}

fn cut_off() -> Ended {
    lost(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended inside a message"))
}

fn lost(error: io::Error) -> Ended {
    Ended::Lost(Arc::new(error))
}
