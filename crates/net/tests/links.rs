//! Two members over loopback, as the program uses them.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anabranch_model::{ChangeNumber, FolderId};
use anabranch_net::message::{Envelope, Message, Piece};
use anabranch_net::{
    Accepted, Ended, Identity, JoinReply, JoinRequest, Lane, LinkCause, Listener, Pins, dial, join, secrets_equal,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Far beyond what loopback needs: it is never waited for in full.
const LIMIT: Duration = Duration::from_secs(30);

fn identities<const N: usize>() -> [Identity; N] {
    std::array::from_fn(|_| Identity::in_memory().unwrap())
}

fn pins_of(identity: &Identity) -> Pins {
    let pinned = identity.fingerprint();
    Arc::new(move |found| *found == pinned)
}

async fn listen(identity: &Identity, pins: Pins) -> (Listener, String) {
    let listener = Listener::bind(SocketAddr::from(([127, 0, 0, 1], 0)), identity, pins).await.unwrap();
    let address = listener.local_address().to_string();
    (listener, address)
}

fn grown(number: u64) -> Envelope {
    Envelope { folder: FolderId([9; 16]), message: Message::Grown { number: ChangeNumber(number) } }
}

fn pieces(bytes: usize) -> Envelope {
    let pieces = vec![Piece::Data((0..bytes).map(|at| at as u8).collect())];
    Envelope { folder: FolderId([9; 16]), message: Message::Pieces { request: 1, first: 0, pieces } }
}

#[tokio::test]
async fn members_link_and_talk() {
    let [up, down] = identities();
    let (mut listener, address) = listen(&up, pins_of(&down)).await;
    let mut here = dial(&address, &down, up.fingerprint(), "", LIMIT).await.unwrap();
    let Some(Accepted::Link(mut there)) = listener.accept().await else { panic!("no link") };
    assert_eq!((here.peer, there.peer), (up.fingerprint(), down.fingerprint()));

    here.sender.send(grown(1)).await.unwrap();
    assert_eq!(there.receiver.recv().await, Some(Ok(grown(1))));
    for _ in 0..20 {
        there.sender.send(pieces(1_000_000)).await.unwrap();
        assert_eq!(here.receiver.recv().await, Some(Ok(pieces(1_000_000))));
    }
    // Content goes on its own lane, at little more than its size.
    let bulk = here.counters.lane(Lane::Bulk).received_bytes();
    assert!((20_000_000..20_200_000).contains(&bulk), "{bulk}");
    let control = here.counters.lane(Lane::Control);
    assert!(control.received_bytes() < 4000 && control.sent_bytes() < 4000);

    there.sender.send(grown(2)).await.unwrap();
    there.sender.close();
    assert_eq!(here.receiver.recv().await, Some(Ok(grown(2))));
    assert_eq!(here.receiver.recv().await, None);
    assert!(matches!(here.receiver.ended(), Some(Ended::ByPeer)));
    assert_eq!(there.receiver.recv().await, None);
    assert_eq!(there.counters.sent_bytes(), here.counters.received_bytes());
}

#[tokio::test]
async fn a_wrong_key_is_refused_on_either_side_by_name() {
    let [up, down, other] = identities();
    let (mut listener, address) = listen(&up, pins_of(&down)).await;

    let wrong = dial(&address, &down, other.fingerprint(), "", LIMIT).await.unwrap_err();
    assert_eq!(wrong.to_string(), format!("cannot link with {address}"));
    let want =
        format!("the peer has another key: expected the key {}, found {}", other.fingerprint(), up.fingerprint());
    assert_eq!(wrong.cause.to_string(), want);
    // Both lanes were dialed, and each or one of them is seen here.
    assert!(matches!(listener.accept().await, Some(Accepted::Refused(_))));

    let wrong = dial(&address, &other, up.fingerprint(), "", LIMIT).await.unwrap_err();
    assert_eq!(wrong.cause.to_string(), format!("the peer does not know our key {}", other.fingerprint()));
    loop {
        match listener.accept().await {
            Some(Accepted::Refused(refused)) => {
                if let LinkCause::Key(key) = refused.cause {
                    assert_eq!((key.expected, key.found), (None, other.fingerprint()));
                    break;
                }
            }
            accepted => panic!("{accepted:?}"),
        }
    }
}

#[tokio::test]
async fn a_key_that_is_taken_back_gets_no_new_link() {
    let [up, down] = identities();
    let known = Arc::new(AtomicBool::new(true));
    let pins: Pins = {
        let known = Arc::clone(&known);
        Arc::new(move |_| known.load(Ordering::Relaxed))
    };
    let (mut listener, address) = listen(&up, pins).await;
    let mut here = dial(&address, &down, up.fingerprint(), "", LIMIT).await.unwrap();
    let Some(Accepted::Link(there)) = listener.accept().await else { panic!("no link") };
    known.store(false, Ordering::Relaxed);
    there.sender.abort();
    assert_eq!(here.receiver.recv().await, None);
    let again = dial(&address, &down, up.fingerprint(), "", LIMIT).await.unwrap_err();
    assert!(matches!(again.cause, LinkCause::KeyRefused { own } if own == down.fingerprint()), "{again:?}");
}

#[tokio::test]
async fn nobody_there_is_said() {
    let [up, down] = identities();
    let (listener, address) = listen(&up, pins_of(&down)).await;
    drop(listener);
    // The listening task is stopped before the socket is free.
    let mut cause;
    loop {
        cause = dial(&address, &down, up.fingerprint(), "", LIMIT).await.unwrap_err().cause;
        if matches!(cause, LinkCause::Connect(_)) {
            break;
        }
    }
    let nowhere = dial("no such host:1", &down, up.fingerprint(), "", LIMIT).await.unwrap_err();
    assert!(matches!(nowhere.cause, LinkCause::Resolve(_)), "{nowhere:?}");

    // Somebody is there and says nothing.
    let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = mute.local_addr().unwrap().to_string();
    let waited = dial(&address, &down, up.fingerprint(), "", Duration::from_millis(20)).await.unwrap_err();
    assert!(matches!(waited.cause, LinkCause::Timeout(_)));

    // Somebody is there and talks otherwise.
    let talking = tokio::spawn(async move {
        loop {
            let (mut socket, _) = mute.accept().await.unwrap();
            let _ = socket.write_all(b"220 mail.example.org ESMTP\r\n").await;
            let _ = socket.read(&mut [0; 1024]).await;
        }
    });
    let other = dial(&address, &down, up.fingerprint(), "", LIMIT).await.unwrap_err();
    assert!(matches!(other.cause, LinkCause::Tls(_)), "{other:?}");
    talking.abort();
}

#[tokio::test]
async fn an_invitation_is_redeemed() {
    let [inviter, new] = identities();
    let (mut listener, address) = listen(&inviter, Arc::new(|_| false)).await;
    let gate = listener.joins();
    let request = |secret| JoinRequest { secret: [secret; 16], name: "hq2".into(), address: "127.0.0.1:7400".into() };
    let closed = join(&address, &new, inviter.fingerprint(), &request(7)).await.unwrap_err();
    assert!(matches!(closed.cause, LinkCause::KeyRefused { .. }), "{closed:?}");

    gate.set_open(true);
    let fingerprint = new.fingerprint();
    let serving = tokio::spawn(async move {
        while let Some(accepted) = listener.accept().await {
            if let Accepted::Join(attempt) = accepted {
                assert_eq!(attempt.fingerprint, fingerprint);
                assert!(attempt.address.ip().is_loopback());
                let reply = if secrets_equal(&attempt.request.secret, &[7; 16]) {
                    JoinReply::Accepted { payload: vec![5; 1 << 20] }
                } else {
                    JoinReply::Refused { reason: "This invitation is not known.".into() }
                };
                attempt.reply.send(reply).unwrap();
            }
        }
    });
    for (secret, want) in [
        (8, JoinReply::Refused { reason: "This invitation is not known.".into() }),
        (7, JoinReply::Accepted { payload: vec![5; 1 << 20] }),
        (9, JoinReply::Refused { reason: "This invitation is not known.".into() }),
        (9, JoinReply::Refused { reason: "This invitation is not known.".into() }),
        (9, JoinReply::Refused { reason: "This invitation is not known.".into() }),
    ] {
        assert_eq!(join(&address, &new, inviter.fingerprint(), &request(secret)).await.unwrap(), want);
    }
    // Five in a minute are enough for anybody who has an invitation.
    let sixth = join(&address, &new, inviter.fingerprint(), &request(7)).await.unwrap_err();
    assert!(matches!(&sixth.cause, LinkCause::Refused { reason } if reason.contains("too many")), "{sixth:?}");
    // Somebody else at the inviter's address gets nothing, not even the secret.
    let [impostor] = identities();
    let fooled = join(&address, &new, impostor.fingerprint(), &request(7)).await.unwrap_err();
    assert!(matches!(fooled.cause, LinkCause::Key(_)), "{fooled:?}");
    serving.abort();
}
