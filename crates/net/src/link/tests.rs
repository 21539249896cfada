//! Links over connections in memory, in paused time: no test waits for the clock.

use anabranch_model::{ChangeNumber, FolderId};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::time::Instant;

use super::*;

const FOLDER: FolderId = FolderId([9; 16]);

fn envelope(message: Message) -> Envelope {
    Envelope { folder: FOLDER, message }
}

fn grown(number: u64) -> Envelope {
    envelope(Message::Grown { number: ChangeNumber(number) })
}

fn pieces(request: u64, bytes: usize) -> Envelope {
    envelope(Message::Pieces { request, first: 0, pieces: vec![Piece::Data(vec![7; bytes].into())] })
}

fn request_of(envelope: &Envelope) -> u64 {
    match envelope.message {
        Message::Pieces { request, .. } => request,
        _ => panic!("{envelope:?}"),
    }
}

/// What the sockets between the two sides hold.
const SOCKET_BYTES: usize = 64 << 10;

fn link_over(lanes: [DuplexStream; 2], limits: LinkLimits) -> Link {
    let lanes = lanes.map(|stream| (stream, Arc::default()));
    Link::over(lanes, KeyFingerprint([1; 32]), SocketAddr::from(([127, 0, 0, 1], 1)), String::new(), limits)
}

/// Two ends of one link.
fn pair(limits: LinkLimits) -> (Link, Link) {
    let [(a, x), (b, y)] = [duplex(SOCKET_BYTES), duplex(SOCKET_BYTES)];
    (link_over([a, b], limits), link_over([x, y], limits))
}

/// One end, and the bare connections of the other.
fn half(limits: LinkLimits) -> (Link, [DuplexStream; 2]) {
    let [(a, x), (b, y)] = [duplex(SOCKET_BYTES), duplex(SOCKET_BYTES)];
    (link_over([a, b], limits), [x, y])
}

async fn next(link: &mut Link) -> Envelope {
    link.receiver.recv().await.unwrap().unwrap()
}

#[tokio::test(start_paused = true)]
async fn messages_arrive_in_order_on_each_lane() {
    let (here, mut there) = pair(LinkLimits::default());
    let sender = here.sender.clone();
    let sending = tokio::spawn(async move {
        for at in 0..500 {
            sender.send(grown(at)).await.unwrap();
            sender.send(pieces(at, (at as usize * 97) % 100_000)).await.unwrap();
        }
        sender.send(envelope(Message::Refused { reason: "end".into() })).await.unwrap();
    });
    let (mut control, mut bulk) = (0, 0);
    while control < 501 || bulk < 500 {
        match next(&mut there).await.message {
            Message::Grown { number } => {
                assert_eq!(number.0, control);
                control += 1;
            }
            Message::Pieces { request, pieces, .. } => {
                assert_eq!(
                    (request, pieces),
                    (bulk, vec![Piece::Data(vec![7; (bulk as usize * 97) % 100_000].into())])
                );
                bulk += 1;
            }
            message => {
                assert_eq!((message, control), (Message::Refused { reason: "end".into() }, 500));
                control += 1;
            }
        }
    }
    sending.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_consumer_that_stops_holds_the_sender_within_its_bounds() {
    let limits = LinkLimits { queue_bytes: 3 << 20, received_bytes: 5 << 20, ..LinkLimits::default() };
    let (here, mut there) = pair(limits);
    const PIECE: usize = 256 << 10;
    let mut taken = 0;
    // Time passes only when nothing can move any more: then this send is held up for good.
    while tokio::time::timeout(Duration::from_secs(1), here.sender.send(pieces(taken, PIECE))).await.is_ok() {
        taken += 1;
    }
    let bytes = taken as usize * PIECE;
    // The queue, the receiver's room, the socket, and one frame on its way in each.
    let bound = limits.queue_bytes + limits.received_bytes + SOCKET_BYTES + 3 * PIECE;
    assert!((limits.queue_bytes..bound).contains(&bytes), "{bytes} of {bound}");
    match here.sender.try_send(pieces(taken, PIECE)) {
        Err(TrySendError::Full(back)) => assert_eq!(*back, pieces(taken, PIECE)),
        other => panic!("{other:?}"),
    }
    // Control does not wait behind content, and a slow consumer is not a dead peer.
    here.sender.send(grown(1)).await.unwrap();
    tokio::time::advance(limits.silence * 3).await;
    assert_eq!(next(&mut there).await, grown(1));
    for request in 0..taken {
        assert_eq!(request_of(&next(&mut there).await), request);
    }
    here.sender.send(pieces(taken, PIECE)).await.unwrap();
    assert_eq!(request_of(&next(&mut there).await), taken);
}

#[tokio::test(start_paused = true)]
async fn a_message_larger_than_the_queue_goes_alone() {
    let (here, mut there) = pair(LinkLimits { queue_bytes: 1000, ..LinkLimits::default() });
    for at in 0..3 {
        here.sender.send(pieces(at, 1 << 20)).await.unwrap();
        assert_eq!(request_of(&next(&mut there).await), at);
    }
    let much = Piece::Data(vec![0; 1 << 20].into());
    let too_long = envelope(Message::Pieces { request: 0, first: 0, pieces: vec![much; 5] });
    assert!(matches!(here.sender.send(too_long).await, Err(SendError::Message(PeerError::TooLong { .. }))));
    here.sender.send(grown(1)).await.unwrap();
    assert_eq!(next(&mut there).await, grown(1));
}

#[tokio::test(start_paused = true)]
async fn an_idle_link_lives_and_a_dead_peer_is_noticed() {
    let limits = LinkLimits::default();
    let (here, mut there) = pair(limits);
    tokio::time::sleep(limits.silence * 10).await;
    here.sender.send(grown(1)).await.unwrap();
    assert_eq!(next(&mut there).await, grown(1));

    let (mut here, _silent) = half(limits);
    let start = Instant::now();
    assert!(here.receiver.recv().await.is_none());
    assert_eq!(start.elapsed(), limits.silence);
    assert!(matches!(here.receiver.ended(), Some(Ended::Silent(after)) if after == limits.silence));
    assert_eq!(here.sender.send(grown(1)).await, Err(SendError::Closed));
}

#[tokio::test(start_paused = true)]
async fn closing_delivers_what_was_queued() {
    let (mut here, mut there) = pair(LinkLimits::default());
    for at in 0..20 {
        here.sender.send(pieces(at, 300_000)).await.unwrap();
    }
    here.sender.send(grown(5)).await.unwrap();
    here.sender.close();
    assert_eq!(here.sender.send(grown(6)).await, Err(SendError::Closed));
    let mut requests = Vec::new();
    while let Some(message) = there.receiver.recv().await {
        match message.unwrap() {
            m if m == grown(5) => {}
            m => requests.push(request_of(&m)),
        }
    }
    assert_eq!(requests, (0..20).collect::<Vec<_>>());
    assert!(matches!(there.receiver.ended(), Some(Ended::ByPeer)));
    assert!(here.receiver.recv().await.is_none());
    assert!(matches!(here.sender.ended().await, Ended::Here));
}

#[tokio::test(start_paused = true)]
async fn dropping_closes_for_both() {
    let (here, mut there) = pair(LinkLimits::default());
    here.sender.send(grown(5)).await.unwrap();
    drop(here);
    assert_eq!(next(&mut there).await, grown(5));
    assert!(there.receiver.recv().await.is_none());
    assert!(matches!(there.receiver.ended(), Some(Ended::ByPeer)));

    // A peer that goes on talking to a closed link, and never closes, is left after a while.
    let limits = LinkLimits::default();
    let (here, mut peer) = half(limits);
    let sender = here.sender.clone();
    let start = Instant::now();
    drop(here);
    peer[0].write_all(&wire::frame(grown(1)).unwrap()).await.unwrap();
    assert!(matches!(sender.ended().await, Ended::Here));
    assert_eq!(start.elapsed(), limits.close);
}

#[tokio::test(start_paused = true)]
async fn one_lane_that_dies_takes_the_link_with_it() {
    // Cut inside a frame.
    let (mut here, [mut control, bulk]) = half(LinkLimits::default());
    control.write_all(&[5, 0, 0, 0, 1]).await.unwrap();
    drop(control);
    assert!(here.receiver.recv().await.is_none());
    assert!(matches!(here.receiver.ended(), Some(Ended::Lost(_))));
    drop(bulk);

    // Closed in order, while the other one stays: the link ends, after the time that an orderly close may take.
    let limits = LinkLimits::default();
    let (mut here, [control, mut bulk]) = half(limits);
    drop(control);
    let start = Instant::now();
    bulk.write_all(&wire::frame(pieces(3, 10)).unwrap()).await.unwrap();
    assert_eq!(next(&mut here).await, pieces(3, 10), "what was sent before still arrives");
    assert!(here.receiver.recv().await.is_none());
    assert!(matches!(here.receiver.ended(), Some(Ended::Lost(_))));
    assert_eq!(start.elapsed(), limits.close);
}

#[tokio::test(start_paused = true)]
async fn the_senders_half_can_be_closed_alone() {
    let (mut here, [mut control, mut bulk]) = half(LinkLimits::default());
    here.sender.close();
    assert_eq!(control.read(&mut [0; 8]).await.unwrap(), 0);
    assert_eq!(bulk.read(&mut [0; 8]).await.unwrap(), 0);
    control.write_all(&wire::frame(grown(8)).unwrap()).await.unwrap();
    assert_eq!(next(&mut here).await, grown(8));
    drop((control, bulk));
    assert!(here.receiver.recv().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn what_breaks_a_rule_ends_the_link_and_what_is_unknown_does_not() {
    let (mut here, [mut control, _bulk]) = half(LinkLimits::default());
    let unknown = [&[0x0a, 16][..], &[9; 16], &[0x10, 99]].concat();
    let head = u32::try_from(unknown.len()).unwrap().to_le_bytes();
    control.write_all(&[&head[..], &unknown].concat()).await.unwrap();
    control.write_all(&wire::frame(grown(1)).unwrap()).await.unwrap();
    assert_eq!(here.receiver.recv().await, Some(Err(PeerError::Unknown { folder: FOLDER, kind: 99 })));
    assert_eq!(next(&mut here).await, grown(1));
    control.write_all(b"\x03\0\0\0???").await.unwrap();
    assert!(matches!(here.receiver.recv().await, Some(Err(PeerError::Malformed(_)))));
    assert_eq!(here.receiver.recv().await, None);
    assert!(matches!(here.receiver.ended(), Some(Ended::Broke(_))));

    let (mut here, [mut control, _bulk]) = half(LinkLimits::default());
    control.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
    assert!(matches!(here.receiver.recv().await, Some(Err(PeerError::TooLong { .. }))));
    assert_eq!(here.receiver.recv().await, None);
}

#[tokio::test(start_paused = true)]
async fn aborting_is_at_once() {
    let (mut here, mut there) = pair(LinkLimits::default());
    let start = Instant::now();
    here.sender.abort();
    assert!(here.receiver.recv().await.is_none());
    assert!(there.receiver.recv().await.is_none());
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn small_messages_are_gathered_into_few_writes() {
    /// Counts the writes.
    struct Counting(DuplexStream, Arc<AtomicUsize>);
    use std::pin::Pin;
    use std::task::{Context, Poll};
    impl AsyncRead for Counting {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut tokio::io::ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(cx, buf)
        }
    }
    impl AsyncWrite for Counting {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            self.1.fetch_add(1, Ordering::Relaxed);
            Pin::new(&mut self.0).poll_write(cx, buf)
        }
        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(cx)
        }
        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(cx)
        }
    }
    let writes = Arc::new(AtomicUsize::new(0));
    let [(a, x), (b, y)] = [duplex(1 << 20), duplex(1 << 20)];
    let lanes = [a, b].map(|stream| (Counting(stream, Arc::clone(&writes)), Arc::default()));
    let here =
        Link::over(lanes, KeyFingerprint([1; 32]), ([127, 0, 0, 1], 1).into(), String::new(), LinkLimits::default());
    let mut there = link_over([x, y], LinkLimits::default());
    for at in 0..10_000 {
        here.sender.send(grown(at)).await.unwrap();
    }
    for at in 0..10_000 {
        assert_eq!(next(&mut there).await, grown(at));
    }
    let writes = writes.load(Ordering::Relaxed);
    assert!(writes < 100, "{writes}");
}
