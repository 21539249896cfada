//! The bytes of the protocol: what stands on a connection between two members.
//!
//! Pure: bytes in, values out. Sockets are in [`crate::link`]. Integers outside protobuf are little-endian.
//!
//! | bytes | what |
//! | --- | --- |
//! | 4 | `ANBR`, each side once, first |
//! | 2 | version of the protocol, 1: another one is refused with an error that names both |
//! | 4, n | frames, each its length n (at most [`MESSAGE_BYTES_MAX`]) and that many bytes: one protobuf message `Envelope` |
//!
//! All that goes over a connection after the first six bytes is frames. The first one of each side belongs to the
//! greeting (`greeting`), all others are envelopes. A frame of length 0 is the keep-alive (kind 0, no folder,
//! no body).
//!
//! `Envelope`: 1 folder id (16 bytes), 2 kind (number), 3 body (a message). In the bodies a *replica* is 16 bytes, a
//! *version* or *UID* is replica and sequence (24 bytes), a *hash* 32 bytes. *Knowledge* is: 1 replicas (16 bytes each,
//! ascending), 2 as many sequences (packed varints). A *mark* is: 1 replica, 2 highest, 3 digest.
//!
//! | kind | message | fields of the body |
//! | --- | --- | --- |
//! | 0 | keep-alive | |
//! | 1 | Open | 1 member (text), 2 replica, 3 echo (mark), 4 known (knowledge), 5 closed (24 bytes each: version; distinct replicas), 6 clock, 7 names (text) |
//! | 2 | Opened | as Open to 6, 7 change number, 8 names (text), 9 joining (0 or 1) |
//! | 3 | Refused | 1 reason (text) |
//! | 4 | Grown | 1 change number |
//! | 5 | Pull | 1 after (change number), 2 known (knowledge), 3 part (0 or 1) |
//! | 6 | Page | 1 replicas (16 bytes each), 2 attribute value (each), 3 row (each), 4 through; where complete: 5 knowledge, 6 mark |
//! | 7 | Fetch | 1 request, 2 want (each: 1 UID, 2 version, 3 hash, 4 offset, 5 length) |
//! | 8 | Pieces | 1 request, 2 first, 3 piece (each: 1 outcome: 0 data, 1 not held, 2 busy; 2 data) |
//! | 9 | Acknowledged | 1 member (each: 1 name, 2 replica, 3 serial, 4 held (knowledge)) |
//! | 10 | AskSums | 1 request |
//! | 11 | Sums | 1 request, 2 outstanding, 3 sums (34 bytes each: bucket, 2 bytes; hash; ascending) |
//! | 12 | AskBucket | 1 request, 2 bucket |
//! | 13 | Bucket | 1 request, 2 rows (56 bytes each: UID, hash; UIDs are distinct) |
//! | 14 | AskRecords | 1 request, 2 UIDs (24 bytes each, distinct) |
//! | 15 | Records | 1 request, 2 count, 3 bits (the first is the lowest of the first byte; the rest of the last byte is 0) |
//! | 16 | Held | 1 UIDs (24 bytes each) |
//! | 17 | Echo | 1 mark |
//!
//! Unknown fields are ignored, unknown kinds are [`PeerError::Unknown`]. Decoders take any bytes: limits are checked
//! before anything is allocated.

pub(crate) mod proto;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use anabranch_model::codec::{KNOWLEDGE_ENTRIES_MAX, RECORD_BYTES_MAX};
use anabranch_model::{ChangeNumber, FolderId, Hash, Hlc, Knowledge, ReplicaId, Sequence, Uid, Version};
use bytes::Bytes;
use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};

use crate::PeerError;
use crate::message::{
    Acknowledgement, Envelope, MESSAGE_BYTES_MAX, Mark, Message, PAGE_BYTES_MAX, PIECE_BYTES_MAX, Page, Piece, Sum,
    WANTS_MAX, Want,
};

/// The first bytes of a connection, from each side.
pub const MAGIC: [u8; 4] = *b"ANBR";
/// The version of the protocol that follows [`MAGIC`].
pub const PROTOCOL_VERSION: u16 = 1;
/// Bytes of [`preamble`].
pub const PREAMBLE_BYTES: usize = 6;
/// Bytes of a frame's length.
pub const FRAME_HEAD_BYTES: usize = 4;
/// The longest name of a member.
pub const MEMBER_BYTES_MAX: usize = 255;
/// The longest word for what counts as one name.
pub const NAMES_BYTES_MAX: usize = 64;
/// The longest reason of a refusal; longer ones are cut when they are encoded.
pub const REASON_BYTES_MAX: usize = 4096;
/// The most replica ids in the dictionary of a page.
pub const PAGE_REPLICAS_MAX: usize = 65_536;
/// The most attribute values in the dictionary of a page.
pub const ATTRIBUTES_MAX: usize = 65_536;
/// The most rows of a page.
pub const ROWS_MAX: usize = 65_536;
/// The most closed replica ids in an opening.
pub const CLOSED_MAX: usize = 4096;
/// The most members of one [`Message::Acknowledged`].
pub const ACKNOWLEDGEMENTS_MAX: usize = 1024;
/// Buckets of the sums (design, section 14).
pub const BUCKETS: usize = 65_536;
/// The most rows of one [`Message::Bucket`].
pub const BUCKET_ROWS_MAX: usize = 65_536;
/// The most UIDs of one [`Message::AskRecords`].
pub const RECORDS_MAX: usize = 4096;

/// The first bytes that each side sends.
#[must_use]
pub fn preamble() -> [u8; PREAMBLE_BYTES] {
    let [low, high] = PROTOCOL_VERSION.to_le_bytes();
    let [a, b, c, d] = MAGIC;
    [a, b, c, d, low, high]
}

/// Checks the first bytes of the peer.
///
/// # Errors
/// [`PeerError::Magic`] where another program speaks, [`PeerError::Version`] where another version does.
pub fn check_preamble(bytes: [u8; PREAMBLE_BYTES]) -> Result<(), PeerError> {
    let [a, b, c, d, low, high] = bytes;
    if [a, b, c, d] != MAGIC {
        return Err(PeerError::Magic);
    }
    match u16::from_le_bytes([low, high]) {
        PROTOCOL_VERSION => Ok(()),
        theirs => Err(PeerError::Version { theirs, ours: PROTOCOL_VERSION }),
    }
}

/// Reads the head of a frame: how many bytes follow.
///
/// # Errors
/// [`PeerError::TooLong`] above [`MESSAGE_BYTES_MAX`].
pub fn frame_length(head: [u8; FRAME_HEAD_BYTES]) -> Result<usize, PeerError> {
    match usize::try_from(u32::from_le_bytes(head)) {
        Ok(length) if length <= MESSAGE_BYTES_MAX => Ok(length),
        _ => Err(PeerError::TooLong { what: "a frame", max: MESSAGE_BYTES_MAX }),
    }
}

/// Encodes an envelope, without a frame around it. Copies the bulk bytes twice; [`frame`] does once.
#[must_use]
pub fn encode(envelope: &Envelope) -> Vec<u8> {
    let body = Body::of(envelope.message.clone());
    let mut out = Vec::with_capacity(body.envelope_bytes());
    body.put(envelope.folder, &mut out);
    out
}

/// Encodes an envelope as a frame, length and message. The bulk bytes are copied once, into the frame.
///
/// # Errors
/// [`PeerError::TooLong`] if the message passes [`MESSAGE_BYTES_MAX`]: the mistake is then ours.
pub fn frame(envelope: Envelope) -> Result<Vec<u8>, PeerError> {
    let body = Body::of(envelope.message);
    let length = body.envelope_bytes();
    if length > MESSAGE_BYTES_MAX {
        return Err(PeerError::TooLong { what: "a frame", max: MESSAGE_BYTES_MAX });
    }
    let mut out = Vec::with_capacity(FRAME_HEAD_BYTES + length);
    out.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
    body.put(envelope.folder, &mut out);
    Ok(out)
}

/// Decodes the bytes of one frame. Pieces of content share the frame's memory; other bulk bytes are copied once.
///
/// # Errors
/// [`PeerError`] names the rule that was broken; [`PeerError::Unknown`] is a kind of a later version.
pub fn decode(input: Bytes) -> Result<Envelope, PeerError> {
    if input.len() > MESSAGE_BYTES_MAX {
        return Err(PeerError::TooLong { what: "a frame", max: MESSAGE_BYTES_MAX });
    }
    proto::check(&input, proto::ENVELOPE)?;
    let outer = proto::Envelope::decode(input).map_err(|_| PeerError::Malformed("an envelope"))?;
    let folder = FolderId(fixed(&outer.folder, "the folder id")?);
    let message = message(outer.kind, outer.body, folder)?;
    Ok(Envelope { folder, message })
}

/// A body ready to be written, so that its length is known before.
enum Body {
    Open(proto::Open),
    Opened(proto::Opened),
    Refused(proto::Refused),
    Grown(proto::Grown),
    Pull(proto::Pull),
    Page(proto::Page),
    Fetch(proto::Fetch),
    Pieces(proto::Pieces),
    Acknowledged(proto::Acknowledged),
    AskSums(proto::AskSums),
    Sums(proto::Sums),
    AskBucket(proto::AskBucket),
    Bucket(proto::Bucket),
    AskRecords(proto::AskRecords),
    Records(proto::Records),
    Held(proto::Held),
    Echo(proto::Echo),
}

macro_rules! bodies {
    ($($kind:literal $name:ident $limits:ident,)*) => {
        impl Body {
            fn kind(&self) -> u32 {
                match self { $(Self::$name(_) => $kind,)* }
            }

            fn bytes(&self) -> usize {
                match self { $(Self::$name(body) => body.encoded_len(),)* }
            }

            fn put_body(&self, out: &mut Vec<u8>) {
                match self { $(Self::$name(body) => body.encode_raw(out),)* }
            }

            fn decode(kind: u32, body: Bytes, folder: FolderId) -> Result<Self, PeerError> {
                match kind {
                    $($kind => {
                        proto::check(&body, proto::$limits)?;
                        proto::$name::decode(body)
                            .map(Self::$name)
                            .map_err(|_| PeerError::Malformed(concat!("the message ", stringify!($name))))
                    })*
                    kind => Err(PeerError::Unknown { folder, kind }),
                }
            }
        }
    };
}
bodies! {
    1 Open OPEN,
    2 Opened OPENED,
    3 Refused REFUSED,
    4 Grown GROWN,
    5 Pull PULL,
    6 Page PAGE,
    7 Fetch FETCH,
    8 Pieces PIECES,
    9 Acknowledged ACKNOWLEDGED,
    10 AskSums ASK_SUMS,
    11 Sums SUMS,
    12 AskBucket ASK_BUCKET,
    13 Bucket BUCKET,
    14 AskRecords ASK_RECORDS,
    15 Records RECORDS,
    16 Held HELD,
    17 Echo ECHO,
}

impl Body {
    /// Bytes of the envelope around it. Every kind is below 128 and so one byte, and so are the keys.
    fn envelope_bytes(&self) -> usize {
        let body = self.bytes();
        2 + 16 + 2 + 1 + encoded_len_varint(body as u64) + body
    }

    /// Writes the envelope by hand, so that the body goes straight into it and is not copied once more.
    fn put(&self, folder: FolderId, out: &mut Vec<u8>) {
        encode_key(1, WireType::LengthDelimited, out);
        encode_varint(16, out);
        out.extend_from_slice(&folder.0);
        encode_key(2, WireType::Varint, out);
        encode_varint(self.kind().into(), out);
        encode_key(3, WireType::LengthDelimited, out);
        encode_varint(self.bytes() as u64, out);
        self.put_body(out);
    }

    fn of(message: Message) -> Self {
        match message {
            Message::Open { member, replica, echo, closed, clock, known, names } => Self::Open(proto::Open {
                member,
                replica: copied(&replica.0),
                echo: Some(put_mark(echo)),
                known: Some(put_knowledge(&known)),
                closed: closed.into_iter().flat_map(version_bytes).collect(),
                clock: clock.0,
                names,
            }),
            Message::Opened { member, replica, echo, closed, clock, number, known, names, joining } => {
                Self::Opened(proto::Opened {
                    member,
                    replica: copied(&replica.0),
                    echo: Some(put_mark(echo)),
                    known: Some(put_knowledge(&known)),
                    closed: closed.into_iter().flat_map(version_bytes).collect(),
                    clock: clock.0,
                    number: number.0,
                    names,
                    joining,
                })
            }
            Message::Refused { reason } => Self::Refused(proto::Refused { reason: cut(reason, REASON_BYTES_MAX) }),
            Message::Grown { number } => Self::Grown(proto::Grown { number: number.0 }),
            Message::Pull { after, known, part } => {
                Self::Pull(proto::Pull { after: after.0, known: Some(put_knowledge(&known)), part: part.into() })
            }
            Message::Page(page) => Self::Page(put_page(page)),
            Message::Fetch { request, wants } => {
                Self::Fetch(proto::Fetch { request, wants: wants.into_iter().map(put_want).collect() })
            }
            Message::Pieces { request, first, pieces } => {
                Self::Pieces(proto::Pieces { request, first, pieces: pieces.into_iter().map(put_piece).collect() })
            }
            Message::Acknowledged { members } => Self::Acknowledged(proto::Acknowledged {
                members: members.into_iter().map(put_acknowledgement).collect(),
            }),
            Message::AskSums { request } => Self::AskSums(proto::AskSums { request }),
            Message::Sums { request, outstanding, sums } => {
                let rows = sums.iter().flat_map(|s| s.bucket.to_le_bytes().into_iter().chain(s.sum));
                Self::Sums(proto::Sums { request, outstanding, sums: rows.collect() })
            }
            Message::AskBucket { request, bucket } => {
                Self::AskBucket(proto::AskBucket { request, bucket: bucket.into() })
            }
            Message::Bucket { request, rows } => {
                let rows = rows.iter().flat_map(|(uid, hash)| version_bytes(uid.0).into_iter().chain(*hash));
                Self::Bucket(proto::Bucket { request, rows: rows.collect() })
            }
            Message::AskRecords { request, uids } => {
                let uids = uids.iter().flat_map(|uid| version_bytes(uid.0)).collect();
                Self::AskRecords(proto::AskRecords { request, uids })
            }
            Message::Records { request, present } => Self::Records(proto::Records {
                request,
                count: u32::try_from(present.len()).unwrap_or(u32::MAX),
                present: present
                    .chunks(8)
                    .map(|bits| bits.iter().enumerate().fold(0, |byte, (at, &bit)| byte | u8::from(bit) << at))
                    .collect(),
            }),
            Message::Held { uids } => {
                Self::Held(proto::Held { uids: uids.iter().flat_map(|uid| version_bytes(uid.0)).collect() })
            }
            Message::Echo(mark) => Self::Echo(proto::Echo { mark: Some(put_mark(mark)) }),
        }
    }
}

/// Decodes the body of this kind and checks what the tables of [`proto`] cannot say.
fn message(kind: u32, body: Bytes, folder: FolderId) -> Result<Message, PeerError> {
    Ok(match Body::decode(kind, body, folder)? {
        Body::Open(m) => Message::Open {
            member: m.member,
            replica: replica(&m.replica)?,
            echo: mark(m.echo)?,
            closed: closed(&m.closed)?,
            clock: Hlc(m.clock),
            known: knowledge(m.known)?,
            names: m.names,
        },
        Body::Opened(m) => Message::Opened {
            member: m.member,
            replica: replica(&m.replica)?,
            echo: mark(m.echo)?,
            closed: closed(&m.closed)?,
            clock: Hlc(m.clock),
            number: ChangeNumber(m.number),
            known: knowledge(m.known)?,
            names: m.names,
            joining: m.joining,
        },
        Body::Refused(m) => Message::Refused { reason: m.reason },
        Body::Grown(m) => Message::Grown { number: ChangeNumber(m.number) },
        Body::Pull(m) => {
            if m.part > 1 {
                return Err(PeerError::Range("whether a part will do"));
            }
            Message::Pull { after: ChangeNumber(m.after), known: knowledge(m.known)?, part: m.part == 1 }
        }
        Body::Page(m) => Message::Page(page(m)?),
        Body::Fetch(m) => {
            Message::Fetch { request: m.request, wants: m.wants.iter().map(want).collect::<Result<_, _>>()? }
        }
        Body::Pieces(m) => {
            if m.first as usize + m.pieces.len() > WANTS_MAX {
                return Err(PeerError::Range("an index of pieces"));
            }
            let pieces = m.pieces.into_iter().map(piece).collect::<Result<_, _>>()?;
            Message::Pieces { request: m.request, first: m.first, pieces }
        }
        Body::Acknowledged(m) => {
            let members = m.members.into_iter().map(acknowledgement).collect::<Result<Vec<_>, _>>()?;
            distinct(members.iter().map(|a| a.member.as_str()), "an acknowledging member")?;
            Message::Acknowledged { members }
        }
        Body::AskSums(m) => Message::AskSums { request: m.request },
        Body::Sums(m) => {
            let sums = rows(&m.sums, "the list of sums")?.map(sum).collect::<Vec<_>>();
            if sums.windows(2).any(|pair| pair[0].bucket >= pair[1].bucket) {
                return Err(PeerError::Twice("a bucket"));
            }
            Message::Sums { request: m.request, outstanding: m.outstanding, sums }
        }
        Body::AskBucket(m) => {
            let bucket = u16::try_from(m.bucket).map_err(|_| PeerError::Range("a bucket"))?;
            Message::AskBucket { request: m.request, bucket }
        }
        Body::Bucket(m) => {
            let rows = rows(&m.rows, "a bucket's list")?.map(bucket_row).collect::<Vec<_>>();
            distinct(rows.iter().map(|row| row.0), "a UID")?;
            Message::Bucket { request: m.request, rows }
        }
        Body::AskRecords(m) => {
            let uids = rows(&m.uids, "the list of UIDs")?.map(|bytes| Uid(version_of(bytes))).collect::<Vec<_>>();
            distinct(uids.iter(), "a UID")?;
            Message::AskRecords { request: m.request, uids }
        }
        Body::Records(m) => Message::Records { request: m.request, present: bits(m.count, &m.present)? },
        Body::Held(m) => {
            Message::Held { uids: rows(&m.uids, "the list of UIDs")?.map(|bytes| Uid(version_of(bytes))).collect() }
        }
        Body::Echo(m) => Message::Echo(mark(m.mark)?),
    })
}

fn copied(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

fn fixed<const N: usize>(bytes: &[u8], what: &'static str) -> Result<[u8; N], PeerError> {
    match bytes.try_into() {
        Ok(array) => Ok(array),
        Err(_) if bytes.is_empty() => Err(PeerError::Missing(what)),
        Err(_) => Err(PeerError::Range(what)),
    }
}

/// Bytes as rows of `N` bytes.
fn rows<'a, const N: usize>(
    bytes: &'a [u8],
    what: &'static str,
) -> Result<impl Iterator<Item = &'a [u8; N]>, PeerError> {
    match bytes.as_chunks() {
        (rows, []) => Ok(rows.iter()),
        _ => Err(PeerError::Range(what)),
    }
}

fn distinct<T: Ord>(values: impl Iterator<Item = T>, what: &'static str) -> Result<(), PeerError> {
    let mut seen = BTreeSet::new();
    for value in values {
        if !seen.insert(value) {
            return Err(PeerError::Twice(what));
        }
    }
    Ok(())
}

/// Cuts a text at the end of a character.
pub(crate) fn cut(mut text: String, bytes_max: usize) -> String {
    if text.len() > bytes_max {
        let end = (0..=bytes_max).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

fn replica(bytes: &[u8]) -> Result<ReplicaId, PeerError> {
    fixed(bytes, "a replica id").map(ReplicaId)
}

fn version_bytes(version: Version) -> [u8; 24] {
    let mut out = [0; 24];
    out[..16].copy_from_slice(&version.replica.0);
    out[16..].copy_from_slice(&version.sequence.0.to_le_bytes());
    out
}

fn version_of(bytes: &[u8; 24]) -> Version {
    let mut out = Version::default();
    out.replica.0.copy_from_slice(&bytes[..16]);
    let mut sequence = [0; 8];
    sequence.copy_from_slice(&bytes[16..]);
    out.sequence = Sequence(u64::from_le_bytes(sequence));
    out
}

fn version(bytes: &[u8], what: &'static str) -> Result<Version, PeerError> {
    fixed(bytes, what).map(|bytes| version_of(&bytes))
}

fn put_knowledge(known: &Knowledge) -> proto::Knowledge {
    proto::Knowledge {
        replicas: known.iter().flat_map(|(replica, _)| replica.0).collect(),
        sequences: known.iter().map(|(_, sequence)| sequence.0).collect(),
    }
}

/// Absent knowledge is that of nothing.
fn knowledge(sent: Option<proto::Knowledge>) -> Result<Knowledge, PeerError> {
    let sent = sent.unwrap_or_default();
    let replicas = rows(&sent.replicas, "knowledge")?.map(|bytes| ReplicaId(*bytes)).collect::<Vec<_>>();
    if replicas.len() != sent.sequences.len() {
        return Err(PeerError::Malformed("knowledge"));
    }
    if replicas.len() > KNOWLEDGE_ENTRIES_MAX {
        return Err(PeerError::TooMany { what: "knowledge", max: KNOWLEDGE_ENTRIES_MAX });
    }
    if replicas.windows(2).any(|pair| pair[0] >= pair[1]) {
        return Err(PeerError::Twice("a replica id of knowledge"));
    }
    Ok(replicas.into_iter().zip(sent.sequences.into_iter().map(Sequence)).collect())
}

fn closed(bytes: &[u8]) -> Result<Vec<Version>, PeerError> {
    let closed = rows(bytes, "the list of closed replica ids")?.map(version_of).collect::<Vec<_>>();
    distinct(closed.iter().map(|version| version.replica), "a closed replica id")?;
    Ok(closed)
}

fn put_mark(mark: Mark) -> proto::Mark {
    proto::Mark { replica: copied(&mark.replica.0), highest: mark.highest.0, digest: copied(&mark.digest) }
}

fn mark(sent: Option<proto::Mark>) -> Result<Mark, PeerError> {
    let sent = sent.ok_or(PeerError::Missing("the mark"))?;
    Ok(Mark {
        replica: replica(&sent.replica)?,
        highest: Sequence(sent.highest),
        digest: fixed(&sent.digest, "a digest")?,
    })
}

fn put_page(page: Page) -> proto::Page {
    let (complete, mark) = page.complete.unzip();
    proto::Page {
        replicas: page.replicas.iter().flat_map(|replica| replica.0).collect(),
        attributes: page.attributes.into_iter().map(Bytes::from).collect(),
        rows: page.rows.into_iter().map(Bytes::from).collect(),
        through: page.through.0,
        complete: complete.as_ref().map(put_knowledge),
        mark: mark.map(put_mark),
    }
}

fn page(sent: proto::Page) -> Result<Page, PeerError> {
    let replicas = rows(&sent.replicas, "a page's replica ids")?.map(|bytes| ReplicaId(*bytes)).collect::<Vec<_>>();
    distinct(replicas.iter(), "a replica id of a page")?;
    if sent.attributes.iter().chain(&sent.rows).any(Bytes::is_empty) {
        return Err(PeerError::Missing("a row or attribute value of a page"));
    }
    if sent.rows.iter().map(Bytes::len).sum::<usize>() > PAGE_BYTES_MAX + RECORD_BYTES_MAX {
        return Err(PeerError::TooLong { what: "a page", max: PAGE_BYTES_MAX + RECORD_BYTES_MAX });
    }
    let complete = match (sent.complete, sent.mark) {
        (None, None) => None,
        (None, Some(_)) => return Err(PeerError::Missing("a complete page's knowledge")),
        (known, sent) => Some((knowledge(known)?, mark(sent)?)),
    };
    Ok(Page {
        replicas,
        attributes: sent.attributes.into_iter().map(Vec::from).collect(),
        rows: sent.rows.into_iter().map(Vec::from).collect(),
        through: ChangeNumber(sent.through),
        complete,
    })
}

fn put_want(want: Want) -> proto::Want {
    proto::Want {
        uid: copied(&version_bytes(want.uid.0)),
        version: copied(&version_bytes(want.version)),
        hash: copied(&want.hash),
        offset: want.offset,
        length: want.length,
    }
}

fn want(sent: &proto::Want) -> Result<Want, PeerError> {
    if sent.length > PIECE_BYTES_MAX || sent.offset.checked_add(sent.length.into()).is_none() {
        return Err(PeerError::Range("the length of a want"));
    }
    Ok(Want {
        uid: version(&sent.uid, "a UID").map(Uid)?,
        version: version(&sent.version, "a version")?,
        hash: fixed(&sent.hash, "a hash")?,
        offset: sent.offset,
        length: sent.length,
    })
}

fn put_piece(piece: Piece) -> proto::Piece {
    match piece {
        Piece::Data(data) => proto::Piece { outcome: 0, data },
        Piece::NotHeld => proto::Piece { outcome: 1, data: Bytes::new() },
        Piece::Busy => proto::Piece { outcome: 2, data: Bytes::new() },
    }
}

fn piece(sent: proto::Piece) -> Result<Piece, PeerError> {
    match sent.outcome {
        0 => Ok(Piece::Data(sent.data)),
        _ if !sent.data.is_empty() => Err(PeerError::Malformed("a piece")),
        1 => Ok(Piece::NotHeld),
        2 => Ok(Piece::Busy),
        _ => Err(PeerError::Range("the outcome of a piece")),
    }
}

fn put_acknowledgement(one: Acknowledgement) -> proto::Acknowledgement {
    proto::Acknowledgement {
        replica: copied(&one.replica.0),
        serial: one.serial,
        held: Some(put_knowledge(&one.held)),
        member: one.member,
    }
}

fn acknowledgement(sent: proto::Acknowledgement) -> Result<Acknowledgement, PeerError> {
    Ok(Acknowledgement {
        replica: replica(&sent.replica)?,
        serial: sent.serial,
        held: knowledge(sent.held)?,
        member: sent.member,
    })
}

fn sum(row: &[u8; 34]) -> Sum {
    let mut sum = Hash::default();
    sum.copy_from_slice(&row[2..]);
    Sum { bucket: u16::from_le_bytes([row[0], row[1]]), sum }
}

fn bucket_row(row: &[u8; 56]) -> (Uid, Hash) {
    let (mut uid, mut hash) = ([0; 24], Hash::default());
    uid.copy_from_slice(&row[..24]);
    hash.copy_from_slice(&row[24..]);
    (Uid(version_of(&uid)), hash)
}

fn bits(count: u32, bytes: &[u8]) -> Result<Vec<bool>, PeerError> {
    let count = count as usize;
    if count > RECORDS_MAX {
        return Err(PeerError::TooMany { what: "the list of bits", max: RECORDS_MAX });
    }
    let mut bits: Vec<bool> = bytes.iter().flat_map(|byte| (0..8).map(move |at| byte >> at & 1 == 1)).collect();
    if bytes.len() != count.div_ceil(8) || bits[count..].contains(&true) {
        return Err(PeerError::Malformed("the list of bits"));
    }
    bits.truncate(count);
    Ok(bits)
}
