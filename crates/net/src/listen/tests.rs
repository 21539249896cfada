//! The door for connections in memory, in paused time: who is slow, who is too many, who brings one lane only.

use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio_rustls::{TlsConnector, client};

use super::*;
use crate::greeting::Preface;

struct Town {
    door: Arc<Door<DuplexStream>>,
    accepted: mpsc::Receiver<Accepted>,
    listening: Identity,
    member: Identity,
}

impl Town {
    /// A door that knows one member.
    fn new() -> Self {
        let [listening, member] = std::array::from_fn(|_| Identity::in_memory().unwrap());
        let pinned = member.fingerprint();
        let pins: Pins = Arc::new(move |found| *found == pinned);
        let (door, accepted) = Door::new(&listening, pins, LinkLimits::default()).unwrap();
        Self { door: Arc::new(door), accepted, listening, member }
    }

    /// A bare connection from 10.0.0.`host`.
    fn knock(&self, host: u8) -> DuplexStream {
        let (here, there) = duplex(64 << 10);
        let door = Arc::clone(&self.door);
        tokio::spawn(async move { door.admit(there, SocketAddr::from(([10, 0, 0, host], 1))).await });
        here
    }

    /// A connection with TLS.
    async fn shake(&self, identity: &Identity) -> client::TlsStream<DuplexStream> {
        let config = tls::dialing(identity, self.listening.fingerprint()).unwrap();
        let name = ServerName::try_from("anabranch").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, self.knock(1)).await.unwrap()
    }

    /// One lane of the member, greeted.
    async fn lane(&self, link: u8, lane: Lane) -> Result<client::TlsStream<DuplexStream>, LinkCause> {
        let mut stream = self.shake(&self.member).await;
        let preface = Preface { link_id: [link; 16], lane, purpose: Purpose::Replicate, listens: String::new() };
        greeting::greet(&mut stream, &preface).await.map(|()| stream)
    }

    async fn refused(&mut self) -> LinkCause {
        match self.accepted.recv().await.unwrap() {
            Accepted::Refused(error) => error.cause,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_slow_is_turned_away_in_time() {
    let mut town = Town::new();
    let limit = LinkLimits::default().handshake;
    let start = Instant::now();

    // Says nothing.
    let silent = town.knock(1);
    assert!(matches!(town.refused().await, LinkCause::Timeout(_)));
    assert_eq!(start.elapsed(), limit);
    drop(silent);

    // A byte a second, of a TLS record that promises more.
    let mut trickle = town.knock(1);
    let trickling = tokio::spawn(async move {
        for byte in [0x16, 3, 1, 0x10, 0].into_iter().chain(std::iter::repeat(0)) {
            if trickle.write_all(&[byte]).await.is_err() {
                return;
            }
            sleep(Duration::from_secs(1)).await;
        }
    });
    assert!(matches!(town.refused().await, LinkCause::Timeout(_)));
    trickling.await.unwrap();
    assert!(start.elapsed() < limit * 2 + Duration::from_secs(2));

    // With a good key, but without a preface.
    let _mute = town.shake(&town.member).await;
    assert!(matches!(town.refused().await, LinkCause::Timeout(_)));

    // With a good preface that comes bytewise.
    let mut slow = town.shake(&town.member).await;
    slow.write_all(&crate::wire::preamble()).await.unwrap();
    slow.write_all(&[20, 0, 0, 0, 1]).await.unwrap();
    assert!(matches!(town.refused().await, LinkCause::Timeout(_)));
    assert!(locked(&town.door.strangers).is_empty());
}

#[tokio::test(start_paused = true)]
async fn strangers_are_few() {
    let mut town = Town::new();
    let limit = LinkLimits::default().handshake;
    let start = Instant::now();
    let mut held: Vec<_> = (0..STRANGERS_PER_ADDRESS).map(|_| town.knock(1)).collect();
    held.push(town.knock(1));
    assert!(matches!(town.refused().await, LinkCause::Refused { .. }), "too many of one address");
    held.extend((0..STRANGERS_MAX - STRANGERS_PER_ADDRESS).map(|_| town.knock(2)));
    held.push(town.knock(3));
    assert!(matches!(town.refused().await, LinkCause::Refused { .. }), "too many in all");
    assert_eq!(start.elapsed(), Duration::ZERO);
    for _ in 0..STRANGERS_MAX {
        assert!(matches!(town.refused().await, LinkCause::Timeout(_)));
    }
    assert_eq!(start.elapsed(), limit);
    // They are forgotten, and the member gets in.
    let _lanes = [town.lane(1, Lane::Bulk).await.unwrap(), town.lane(1, Lane::Control).await.unwrap()];
    assert!(matches!(town.accepted.recv().await, Some(Accepted::Link(_))));
}

#[tokio::test(start_paused = true)]
async fn garbage_is_turned_away_at_once() {
    let mut town = Town::new();
    let mut web = town.knock(1);
    web.write_all(b"GET / HTTP/1.1\r\nHost: hq1\r\n\r\n").await.unwrap();
    assert!(matches!(town.refused().await, LinkCause::Tls(_)));
    let mut answer = Vec::new();
    web.read_to_end(&mut answer).await.unwrap();

    let mut noise = town.shake(&town.member).await;
    noise.write_all(b"noise!").await.unwrap();
    assert!(matches!(town.refused().await, LinkCause::Peer(PeerError::Magic)));

    let mut future = town.shake(&town.member).await;
    future.write_all(b"ANBR\x02\0").await.unwrap();
    assert!(matches!(town.refused().await, LinkCause::Peer(PeerError::Version { theirs: 2, ours: 1 })));

    let mut long = town.shake(&town.member).await;
    long.write_all(&[&crate::wire::preamble()[..], &[0xff; 4]].concat()).await.unwrap();
    assert!(matches!(town.refused().await, LinkCause::Peer(PeerError::TooLong { .. })));

    let mut gone = town.shake(&town.member).await;
    gone.write_all(&crate::wire::preamble()).await.unwrap();
    gone.shutdown().await.unwrap();
    drop(gone);
    assert!(matches!(town.refused().await, LinkCause::Io(_)));
}

#[tokio::test(start_paused = true)]
async fn lanes_find_each_other() {
    let mut town = Town::new();
    // Two links at once, lanes in any order.
    let _lanes = [
        town.lane(1, Lane::Bulk).await.unwrap(),
        town.lane(2, Lane::Control).await.unwrap(),
        town.lane(1, Lane::Control).await.unwrap(),
        town.lane(2, Lane::Bulk).await.unwrap(),
    ];
    for _ in 0..2 {
        match town.accepted.recv().await.unwrap() {
            Accepted::Link(link) => assert_eq!(link.peer, town.member.fingerprint()),
            other => panic!("{other:?}"),
        }
    }
    // One lane only.
    let start = Instant::now();
    let mut alone = town.lane(3, Lane::Control).await.unwrap();
    assert!(matches!(town.refused().await, LinkCause::Timeout(_)));
    assert_eq!(start.elapsed(), LinkLimits::default().handshake);
    assert!(!matches!(alone.read(&mut [0; 8]).await, Ok(1..)));
    // The same lane twice.
    let _same = [town.lane(4, Lane::Control).await.unwrap(), town.lane(4, Lane::Control).await.unwrap()];
    for _ in 0..2 {
        assert!(matches!(town.refused().await, LinkCause::Lanes));
    }
    // Too many of them.
    let mut halves = Vec::new();
    for link in 0..=u8::try_from(HALVES_PER_KEY).unwrap() {
        halves.push(town.lane(10 + link, Lane::Control).await.unwrap());
    }
    assert!(matches!(town.refused().await, LinkCause::Halves));
    for _ in 0..HALVES_PER_KEY {
        assert!(matches!(town.refused().await, LinkCause::Timeout(_)));
    }
    assert!(locked(&town.door.halves).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_stranger_may_only_ask_to_join_and_only_while_the_gate_is_open() {
    let mut town = Town::new();
    let stranger = Identity::in_memory().unwrap();
    let found = stranger.fingerprint();

    // Closed: no further than the handshake.
    let mut stream = town.shake(&stranger).await;
    let alert = stream.read(&mut [0; 8]).await.unwrap_err();
    assert!(matches!(LinkCause::from(alert).of_dialing(found), LinkCause::KeyRefused { own } if own == found));
    assert!(matches!(town.refused().await, LinkCause::Key(key) if key == KeyNotPinned { expected: None, found }));

    // Open, but to replicate: refused in words that name the key.
    town.door.joins.set_open(true);
    let mut stream = town.shake(&stranger).await;
    let preface =
        Preface { link_id: [1; 16], lane: Lane::Control, purpose: Purpose::Replicate, listens: String::new() };
    match greeting::greet(&mut stream, &preface).await {
        Err(LinkCause::Refused { reason }) => assert!(reason.contains(&found.to_string()), "{reason}"),
        other => panic!("{other:?}"),
    }
    drop(stream);
    assert!(matches!(town.refused().await, LinkCause::Key(key) if key.found == found));

    // Open, to join; the caller drops the question.
    let request = JoinRequest { secret: [3; 16], name: "hq2".into(), address: "hq2:7400".into() };
    let preface = Preface { purpose: Purpose::Join, ..preface.clone() };
    let mut stream = town.shake(&stranger).await;
    greeting::greet(&mut stream, &preface).await.unwrap();
    let (reply, ()) = tokio::join!(greeting::ask_to_join(&mut stream, &request), async {
        match town.accepted.recv().await.unwrap() {
            Accepted::Join(attempt) => assert_eq!((attempt.request, attempt.fingerprint), (request.clone(), found)),
            other => panic!("{other:?}"),
        }
    });
    assert!(matches!(reply, Ok(JoinReply::Refused { .. })));
    drop(stream);

    // The caller never decides.
    let start = Instant::now();
    let mut stream = town.shake(&stranger).await;
    greeting::greet(&mut stream, &preface).await.unwrap();
    let asked = tokio::spawn(async move { greeting::ask_to_join(&mut stream, &request).await });
    let attempt = town.accepted.recv().await.unwrap();
    assert!(matches!(asked.await.unwrap(), Ok(JoinReply::Refused { .. })));
    assert_eq!(start.elapsed(), REPLY_LIMIT);
    drop(attempt);

    // A request that breaks a rule.
    let mut stream = town.shake(&stranger).await;
    greeting::greet(&mut stream, &preface).await.unwrap();
    stream.write_all(b"\xff\xff\0\0").await.unwrap();
    assert!(matches!(town.refused().await, LinkCause::Peer(PeerError::TooLong { .. })));
}
