//! The first words on a connection, once TLS knows the keys: which link it belongs to, and what it is for.
//!
//! The listening side speaks first, so that a dialing side whose key was refused reads that refusal, and not a reset
//! caused by words of its own that nobody read. All frames are as in [`crate::wire`].
//!
//! | who | sends |
//! | --- | --- |
//! | listening | the preamble |
//! | dialing | the preamble, then a frame `Preface`: 1 link id (16 bytes), 2 lane (0 control, 1 bulk), 3 purpose (0 replicate, 1 join), 4 where it listens itself (text, `host:port`; absent where it does not say) |
//! | listening | a frame `Answer`: 1 reason of a refusal (text; absent where the connection is welcome) |
//! | dialing, to join | a frame `JoinRequest`: 1 secret (16 bytes), 2 name (text), 3 address (text) |
//! | listening, to that | a frame `JoinReply`: 1 payload (bytes), or 2 reason of a refusal (text); then it closes |

use std::io;

use bytes::Bytes;
use prost::Message as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::PeerError;
use crate::error::LinkCause;
use crate::join::{JoinReply, JoinRequest, PAYLOAD_BYTES_MAX};
use crate::link::Lane;
use crate::wire::proto::{Limit, bytes, check, number};
use crate::wire::{FRAME_HEAD_BYTES, PREAMBLE_BYTES, REASON_BYTES_MAX, check_preamble, cut, frame_length, preamble};

/// What a connection is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Purpose {
    Replicate,
    Join,
}

/// What the dialing side says first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Preface {
    /// Random: the same on the lanes of one link.
    pub(crate) link_id: [u8; 16],
    pub(crate) lane: Lane,
    pub(crate) purpose: Purpose,
    /// Where the dialing side listens itself, `host:port`; empty where it does not say.
    pub(crate) listens: String,
}

/// Room for a preface and for what later versions may add to it.
const PREFACE_BYTES_MAX: usize = 1024;
const ANSWER_BYTES_MAX: usize = REASON_BYTES_MAX + 1024;
const REQUEST_BYTES_MAX: usize = 4096;
const REPLY_BYTES_MAX: usize = PAYLOAD_BYTES_MAX + 1024;
const NAME_BYTES_MAX: usize = 255;
const ADDRESS_BYTES_MAX: usize = 512;

/// Listening side: sends the preamble, reads the peer's and the preface.
pub(crate) async fn hear<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> Result<Preface, LinkCause> {
    stream.write_all(&preamble()).await?;
    stream.flush().await?;
    read_preamble(stream).await?;
    let frame = read_frame(stream, PREFACE_BYTES_MAX, "the preface").await?;
    Ok(PrefaceMessage::read(frame)?)
}

/// Listening side: welcomes, or refuses with a reason.
pub(crate) async fn answer<S: AsyncWrite + Unpin>(stream: &mut S, refusal: Option<&str>) -> Result<(), LinkCause> {
    let answer = Answer { refused: refusal.map(|reason| cut(reason.to_owned(), REASON_BYTES_MAX)) };
    write_frame(stream, &[], &answer.encode_to_vec()).await
}

/// Dialing side: the whole greeting. Where the listening side refuses, [`LinkCause::Refused`].
pub(crate) async fn greet<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    preface: &Preface,
) -> Result<(), LinkCause> {
    read_preamble(stream).await?;
    write_frame(stream, &preamble(), &PrefaceMessage::of(preface).encode_to_vec()).await?;
    let frame = read_frame(stream, ANSWER_BYTES_MAX, "the answer").await?;
    check(&frame, ANSWER)?;
    match Answer::decode(frame).map_err(|_| PeerError::Malformed("the answer"))?.refused {
        Some(reason) => Err(LinkCause::Refused { reason }),
        None => Ok(()),
    }
}

/// Dialing side, after the greeting: the request and its reply.
pub(crate) async fn ask_to_join<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    request: &JoinRequest,
) -> Result<JoinReply, LinkCause> {
    let message = JoinRequestMessage {
        secret: Bytes::copy_from_slice(&request.secret),
        name: request.name.clone(),
        address: request.address.clone(),
    };
    write_frame(stream, &[], &message.encode_to_vec()).await?;
    let frame = read_frame(stream, REPLY_BYTES_MAX, "the reply to a join").await?;
    Ok(JoinReplyMessage::read(frame)?)
}

/// Listening side: reads the request.
pub(crate) async fn read_request<S: AsyncRead + Unpin>(stream: &mut S) -> Result<JoinRequest, LinkCause> {
    let frame = read_frame(stream, REQUEST_BYTES_MAX, "the request to join").await?;
    Ok(JoinRequestMessage::read(frame)?)
}

/// Listening side: sends the reply.
pub(crate) async fn write_reply<S: AsyncWrite + Unpin>(stream: &mut S, reply: JoinReply) -> Result<(), LinkCause> {
    let message = match reply {
        JoinReply::Accepted { payload } if payload.len() > PAYLOAD_BYTES_MAX => {
            return Err(PeerError::TooLong { what: "the payload of a join", max: PAYLOAD_BYTES_MAX }.into());
        }
        JoinReply::Accepted { payload } => JoinReplyMessage { payload: Some(payload.into()), refused: None },
        JoinReply::Refused { reason } => {
            JoinReplyMessage { payload: None, refused: Some(cut(reason, REASON_BYTES_MAX)) }
        }
    };
    write_frame(stream, &[], &message.encode_to_vec()).await
}

/// Closes so that the peer reads what was sent last: closing a socket with unread bytes in it resets the connection,
/// and a reset throws away what the peer has not read yet. Takes as long as the peer keeps it open: the caller limits it.
pub(crate) async fn part<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) {
    if stream.shutdown().await.is_err() {
        return;
    }
    let mut scratch = [0; 1024];
    for _ in 0..64 {
        if !matches!(stream.read(&mut scratch).await, Ok(1..)) {
            return;
        }
    }
}

async fn read_preamble<S: AsyncRead + Unpin>(stream: &mut S) -> Result<(), LinkCause> {
    let mut bytes = [0; PREAMBLE_BYTES];
    stream.read_exact(&mut bytes).await?;
    Ok(check_preamble(bytes)?)
}

async fn read_frame<S: AsyncRead + Unpin>(stream: &mut S, max: usize, what: &'static str) -> Result<Bytes, LinkCause> {
    let mut head = [0; FRAME_HEAD_BYTES];
    stream.read_exact(&mut head).await?;
    let length = frame_length(head)?;
    if length > max {
        return Err(PeerError::TooLong { what, max }.into());
    }
    // Grows with what has come, not with what was promised.
    let mut out = Vec::new();
    stream.take(length as u64).read_to_end(&mut out).await?;
    if out.len() < length {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(out.into())
}

async fn write_frame<S: AsyncWrite + Unpin>(stream: &mut S, before: &[u8], message: &[u8]) -> Result<(), LinkCause> {
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_le_bytes();
    stream.write_all(&[before, &length, message].concat()).await?;
    Ok(stream.flush().await?)
}

#[derive(Clone, PartialEq, prost::Message)]
struct PrefaceMessage {
    #[prost(bytes = "bytes", tag = "1")]
    link_id: Bytes,
    #[prost(uint32, tag = "2")]
    lane: u32,
    #[prost(uint32, tag = "3")]
    purpose: u32,
    #[prost(string, tag = "4")]
    listens: String,
}

const PREFACE: &[Limit] = &[
    bytes(1, "the link id", 16),
    number(2, "the lane"),
    number(3, "the purpose"),
    bytes(4, "where the peer listens", ADDRESS_BYTES_MAX),
];

impl PrefaceMessage {
    fn of(preface: &Preface) -> Self {
        Self {
            link_id: Bytes::copy_from_slice(&preface.link_id),
            lane: match preface.lane {
                Lane::Control => 0,
                Lane::Bulk => 1,
            },
            purpose: match preface.purpose {
                Purpose::Replicate => 0,
                Purpose::Join => 1,
            },
            listens: preface.listens.clone(),
        }
    }

    fn read(frame: Bytes) -> Result<Preface, PeerError> {
        check(&frame, PREFACE)?;
        let sent = Self::decode(frame).map_err(|_| PeerError::Malformed("the preface"))?;
        Ok(Preface {
            link_id: sent.link_id.as_ref().try_into().map_err(|_| PeerError::Range("the link id"))?,
            lane: match sent.lane {
                0 => Lane::Control,
                1 => Lane::Bulk,
                _ => return Err(PeerError::Range("the lane")),
            },
            purpose: match sent.purpose {
                0 => Purpose::Replicate,
                1 => Purpose::Join,
                _ => return Err(PeerError::Range("the purpose")),
            },
            listens: sent.listens,
        })
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct Answer {
    #[prost(string, optional, tag = "1")]
    refused: Option<String>,
}

const ANSWER: &[Limit] = &[bytes(1, "a reason", REASON_BYTES_MAX)];

#[derive(Clone, PartialEq, prost::Message)]
struct JoinRequestMessage {
    #[prost(bytes = "bytes", tag = "1")]
    secret: Bytes,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    address: String,
}

const JOIN_REQUEST: &[Limit] =
    &[bytes(1, "the secret", 16), bytes(2, "the name", NAME_BYTES_MAX), bytes(3, "the address", ADDRESS_BYTES_MAX)];

impl JoinRequestMessage {
    fn read(frame: Bytes) -> Result<JoinRequest, PeerError> {
        check(&frame, JOIN_REQUEST)?;
        let sent = Self::decode(frame).map_err(|_| PeerError::Malformed("the request to join"))?;
        let secret = sent.secret.as_ref().try_into().map_err(|_| PeerError::Range("the secret"))?;
        Ok(JoinRequest { secret, name: sent.name, address: sent.address })
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct JoinReplyMessage {
    #[prost(bytes = "bytes", optional, tag = "1")]
    payload: Option<Bytes>,
    #[prost(string, optional, tag = "2")]
    refused: Option<String>,
}

const JOIN_REPLY: &[Limit] =
    &[bytes(1, "the payload of a join", PAYLOAD_BYTES_MAX), bytes(2, "a reason", REASON_BYTES_MAX)];

impl JoinReplyMessage {
    fn read(frame: Bytes) -> Result<JoinReply, PeerError> {
        check(&frame, JOIN_REPLY)?;
        let sent = Self::decode(frame).map_err(|_| PeerError::Malformed("the reply to a join"))?;
        match (sent.payload, sent.refused) {
            (Some(payload), None) => Ok(JoinReply::Accepted { payload: payload.into() }),
            (None, Some(reason)) => Ok(JoinReply::Refused { reason }),
            _ => Err(PeerError::Malformed("the reply to a join")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFACE_GOLDEN: Preface =
        Preface { link_id: [7; 16], lane: Lane::Bulk, purpose: Purpose::Join, listens: String::new() };

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn golden_bytes() {
        let preface = PrefaceMessage::of(&PREFACE_GOLDEN).encode_to_vec();
        assert_eq!(hex(&preface), format!("0a10{}10011801", "07".repeat(16)));
        assert_eq!(PrefaceMessage::read(preface.into()), Ok(PREFACE_GOLDEN));
        let told = Preface { listens: "hq2:7400".into(), ..PREFACE_GOLDEN };
        let preface = PrefaceMessage::of(&told).encode_to_vec();
        assert_eq!(hex(&preface), format!("0a10{}1001180122086871323a37343030", "07".repeat(16)));
        assert_eq!(PrefaceMessage::read(preface.into()), Ok(told));
        assert_eq!(hex(&Answer { refused: None }.encode_to_vec()), "");
        assert_eq!(hex(&Answer { refused: Some(String::new()) }.encode_to_vec()), "0a00");
        let request = JoinRequestMessage { secret: vec![8; 16].into(), name: "hq2".into(), address: "hq2:7400".into() };
        let bytes = request.encode_to_vec();
        assert_eq!(hex(&bytes), format!("0a10{}12036871321a086871323a37343030", "08".repeat(16)));
        let want = JoinRequest { secret: [8; 16], name: "hq2".into(), address: "hq2:7400".into() };
        assert_eq!(JoinRequestMessage::read(bytes.into()), Ok(want));
        let accepted = JoinReplyMessage { payload: Some(Bytes::new()), refused: None }.encode_to_vec();
        assert_eq!(hex(&accepted), "0a00");
        assert_eq!(JoinReplyMessage::read(accepted.into()), Ok(JoinReply::Accepted { payload: vec![] }));
        let refused = JoinReplyMessage { payload: None, refused: Some("No.".into()) }.encode_to_vec();
        assert_eq!(hex(&refused), "12034e6f2e");
        assert_eq!(JoinReplyMessage::read(refused.into()), Ok(JoinReply::Refused { reason: "No.".into() }));
    }

    #[test]
    fn what_breaks_a_rule_is_refused() {
        let cases: [(&str, &[u8], PeerError); 4] = [
            ("no link id", b"", PeerError::Range("the link id")),
            ("lane", b"\x0a\x100123456789abcdef\x10\x02", PeerError::Range("the lane")),
            ("purpose", b"\x0a\x100123456789abcdef\x18\x02", PeerError::Range("the purpose")),
            ("lane twice", b"\x10\x01\x10\x01", PeerError::Twice("the lane")),
        ];
        for (what, bytes, error) in cases {
            assert_eq!(PrefaceMessage::read(Bytes::from_static(bytes)), Err(error), "{what}");
        }
        assert_eq!(JoinReplyMessage::read(Bytes::new()), Err(PeerError::Malformed("the reply to a join")));
        assert_eq!(JoinRequestMessage::read(Bytes::new()), Err(PeerError::Range("the secret")));
    }

    #[tokio::test]
    async fn both_sides_hear_each_other() {
        let (mut here, mut there) = tokio::io::duplex(4096);
        let preface = PREFACE_GOLDEN;
        let (greeted, heard) = tokio::join!(greet(&mut here, &preface), async {
            let heard = hear(&mut there).await;
            answer(&mut there, Some("Not today.")).await.unwrap();
            heard
        });
        assert_eq!(heard.unwrap(), PREFACE_GOLDEN);
        assert!(matches!(greeted, Err(LinkCause::Refused { reason }) if reason == "Not today."));
    }

    #[tokio::test]
    async fn another_version_and_another_program_are_named() {
        for (bytes, want) in
            [(*b"ANBR\x09\0", PeerError::Version { theirs: 9, ours: 1 }), (*b"GET / ", PeerError::Magic)]
        {
            let (mut here, mut there) = tokio::io::duplex(4096);
            here.write_all(&bytes).await.unwrap();
            assert!(matches!(hear(&mut there).await, Err(LinkCause::Peer(e)) if e == want));
            let mut first = [0; 6];
            here.read_exact(&mut first).await.unwrap();
            assert_eq!(first, preamble(), "the peer can say which version is older, too");
        }
    }

    #[tokio::test]
    async fn long_and_cut_prefaces_are_refused() {
        let (mut here, mut there) = tokio::io::duplex(4096);
        here.write_all(&[&preamble()[..], &2000u32.to_le_bytes()].concat()).await.unwrap();
        assert!(matches!(hear(&mut there).await, Err(LinkCause::Peer(PeerError::TooLong { max: 1024, .. }))));
        let (mut here, mut there) = tokio::io::duplex(4096);
        here.write_all(&[&preamble()[..], &20u32.to_le_bytes(), b"short"].concat()).await.unwrap();
        here.shutdown().await.unwrap();
        assert!(matches!(hear(&mut there).await, Err(LinkCause::Io(_))));
    }
}
