//! The protobuf shapes of the messages, and the limits that are checked before anything is allocated for them.
//!
//! prost allocates for whatever the bytes ask for: two bytes on the wire can become a structure of a hundred. So
//! [`check`] walks the bytes first, against a table of how often each field may come and how long it may be.

use anabranch_model::codec::{KNOWLEDGE_ENTRIES_MAX, RECORD_BYTES_MAX};
use bytes::Bytes;

use super::{
    ACKNOWLEDGEMENTS_MAX, ATTRIBUTES_MAX, BUCKET_ROWS_MAX, BUCKETS, CLOSED_MAX, MEMBER_BYTES_MAX, NAMES_BYTES_MAX,
    PAGE_REPLICAS_MAX, REASON_BYTES_MAX, RECORDS_MAX, ROWS_MAX,
};
use crate::PeerError;
use crate::message::{MESSAGE_BYTES_MAX, PIECE_BYTES_MAX, WANTS_MAX};

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Envelope {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) folder: Bytes,
    #[prost(uint32, tag = "2")]
    pub(super) kind: u32,
    #[prost(bytes = "bytes", tag = "3")]
    pub(super) body: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Knowledge {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) replicas: Bytes,
    #[prost(uint64, repeated, tag = "2")]
    pub(super) sequences: Vec<u64>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Mark {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) replica: Bytes,
    #[prost(uint64, tag = "2")]
    pub(super) highest: u64,
    #[prost(bytes = "bytes", tag = "3")]
    pub(super) digest: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Open {
    #[prost(string, tag = "1")]
    pub(super) member: String,
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) replica: Bytes,
    #[prost(message, optional, tag = "3")]
    pub(super) echo: Option<Mark>,
    #[prost(message, optional, tag = "4")]
    pub(super) known: Option<Knowledge>,
    #[prost(bytes = "bytes", tag = "5")]
    pub(super) closed: Bytes,
    #[prost(uint64, tag = "6")]
    pub(super) clock: u64,
    #[prost(string, tag = "7")]
    pub(super) names: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Opened {
    #[prost(string, tag = "1")]
    pub(super) member: String,
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) replica: Bytes,
    #[prost(message, optional, tag = "3")]
    pub(super) echo: Option<Mark>,
    #[prost(message, optional, tag = "4")]
    pub(super) known: Option<Knowledge>,
    #[prost(bytes = "bytes", tag = "5")]
    pub(super) closed: Bytes,
    #[prost(uint64, tag = "6")]
    pub(super) clock: u64,
    #[prost(uint64, tag = "7")]
    pub(super) number: u64,
    #[prost(string, tag = "8")]
    pub(super) names: String,
    #[prost(bool, tag = "9")]
    pub(super) joining: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Refused {
    #[prost(string, tag = "1")]
    pub(super) reason: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Grown {
    #[prost(uint64, tag = "1")]
    pub(super) number: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Pull {
    #[prost(uint64, tag = "1")]
    pub(super) after: u64,
    #[prost(message, optional, tag = "2")]
    pub(super) known: Option<Knowledge>,
    #[prost(uint32, tag = "3")]
    pub(super) part: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Page {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) replicas: Bytes,
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub(super) attributes: Vec<Bytes>,
    #[prost(bytes = "bytes", repeated, tag = "3")]
    pub(super) rows: Vec<Bytes>,
    #[prost(uint64, tag = "4")]
    pub(super) through: u64,
    #[prost(message, optional, tag = "5")]
    pub(super) complete: Option<Knowledge>,
    #[prost(message, optional, tag = "6")]
    pub(super) mark: Option<Mark>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Want {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) uid: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) version: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    pub(super) hash: Bytes,
    #[prost(uint64, tag = "4")]
    pub(super) offset: u64,
    #[prost(uint32, tag = "5")]
    pub(super) length: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Fetch {
    #[prost(uint64, tag = "1")]
    pub(super) request: u64,
    #[prost(message, repeated, tag = "2")]
    pub(super) wants: Vec<Want>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Piece {
    #[prost(uint32, tag = "1")]
    pub(super) outcome: u32,
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) data: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Pieces {
    #[prost(uint64, tag = "1")]
    pub(super) request: u64,
    #[prost(uint32, tag = "2")]
    pub(super) first: u32,
    #[prost(message, repeated, tag = "3")]
    pub(super) pieces: Vec<Piece>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Acknowledgement {
    #[prost(string, tag = "1")]
    pub(super) member: String,
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) replica: Bytes,
    #[prost(uint64, tag = "3")]
    pub(super) serial: u64,
    #[prost(message, optional, tag = "4")]
    pub(super) held: Option<Knowledge>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Acknowledged {
    #[prost(message, repeated, tag = "1")]
    pub(super) members: Vec<Acknowledgement>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct AskSums {
    #[prost(uint64, tag = "1")]
    pub(super) request: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Sums {
    #[prost(uint64, tag = "1")]
    pub(super) request: u64,
    #[prost(uint64, tag = "2")]
    pub(super) outstanding: u64,
    #[prost(bytes = "bytes", tag = "3")]
    pub(super) sums: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct AskBucket {
    #[prost(uint64, tag = "1")]
    pub(super) request: u64,
    #[prost(uint32, tag = "2")]
    pub(super) bucket: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Bucket {
    #[prost(uint64, tag = "1")]
    pub(super) request: u64,
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) rows: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct AskRecords {
    #[prost(uint64, tag = "1")]
    pub(super) request: u64,
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) uids: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Records {
    #[prost(uint64, tag = "1")]
    pub(super) request: u64,
    #[prost(uint32, tag = "2")]
    pub(super) count: u32,
    #[prost(bytes = "bytes", tag = "3")]
    pub(super) present: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Held {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) uids: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Echo {
    #[prost(message, optional, tag = "1")]
    pub(super) mark: Option<Mark>,
}

/// How often a field may come, and how long it may be where it has a length.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limit {
    field: u32,
    what: &'static str,
    count: usize,
    bytes: usize,
    inside: &'static [Limit],
}

/// A number.
pub(crate) const fn number(field: u32, what: &'static str) -> Limit {
    Limit { field, what, count: 1, bytes: 0, inside: &[] }
}

/// Bytes or text of at most `bytes`.
pub(crate) const fn bytes(field: u32, what: &'static str, bytes: usize) -> Limit {
    Limit { field, what, count: 1, bytes, inside: &[] }
}

/// At most `count` values of at most `bytes` each.
pub(crate) const fn texts(field: u32, what: &'static str, count: usize, bytes: usize) -> Limit {
    Limit { field, what, count, bytes, inside: &[] }
}

/// One message within.
const fn one(field: u32, what: &'static str, inside: &'static [Limit]) -> Limit {
    Limit { field, what, count: 1, bytes: MESSAGE_BYTES_MAX, inside }
}

/// At most `count` messages within.
const fn many(field: u32, what: &'static str, count: usize, inside: &'static [Limit]) -> Limit {
    Limit { field, what, count, bytes: MESSAGE_BYTES_MAX, inside }
}

pub(super) const ENVELOPE: &[Limit] =
    &[bytes(1, "the folder id", 16), number(2, "the kind"), bytes(3, "the body", MESSAGE_BYTES_MAX)];
const KNOWLEDGE: &[Limit] = &[
    bytes(1, "knowledge", 16 * KNOWLEDGE_ENTRIES_MAX),
    // Packed varints of at most ten bytes.
    bytes(2, "knowledge", 10 * KNOWLEDGE_ENTRIES_MAX),
];
const MARK: &[Limit] = &[bytes(1, "a replica id", 16), number(2, "a sequence"), bytes(3, "a digest", 32)];
pub(super) const OPEN: &[Limit] = &[
    bytes(1, "a member's name", MEMBER_BYTES_MAX),
    bytes(2, "a replica id", 16),
    one(3, "the echo", MARK),
    one(4, "knowledge", KNOWLEDGE),
    bytes(5, "the list of closed replica ids", 24 * CLOSED_MAX),
    number(6, "a clock"),
    bytes(7, "the rule for names", NAMES_BYTES_MAX),
];
pub(super) const OPENED: &[Limit] = &[
    bytes(1, "a member's name", MEMBER_BYTES_MAX),
    bytes(2, "a replica id", 16),
    one(3, "the echo", MARK),
    one(4, "knowledge", KNOWLEDGE),
    bytes(5, "the list of closed replica ids", 24 * CLOSED_MAX),
    number(6, "a clock"),
    number(7, "a change number"),
    bytes(8, "the rule for names", NAMES_BYTES_MAX),
];
pub(super) const REFUSED: &[Limit] = &[bytes(1, "a reason", REASON_BYTES_MAX)];
pub(super) const GROWN: &[Limit] = &[number(1, "a change number")];
pub(super) const PULL: &[Limit] =
    &[number(1, "a change number"), one(2, "knowledge", KNOWLEDGE), number(3, "whether a part will do")];
pub(super) const PAGE: &[Limit] = &[
    bytes(1, "a page's replica ids", 16 * PAGE_REPLICAS_MAX),
    texts(2, "a page's attribute value", ATTRIBUTES_MAX, RECORD_BYTES_MAX),
    texts(3, "a page's row", ROWS_MAX, RECORD_BYTES_MAX),
    number(4, "a change number"),
    one(5, "knowledge", KNOWLEDGE),
    one(6, "the mark", MARK),
];
const WANT: &[Limit] = &[
    bytes(1, "a UID", 24),
    bytes(2, "a version", 24),
    bytes(3, "a hash", 32),
    number(4, "an offset"),
    number(5, "a length"),
];
pub(super) const FETCH: &[Limit] = &[number(1, "a request"), many(2, "the list of wants", WANTS_MAX, WANT)];
const PIECE: &[Limit] = &[number(1, "an outcome"), bytes(2, "a piece", PIECE_BYTES_MAX as usize)];
pub(super) const PIECES: &[Limit] =
    &[number(1, "a request"), number(2, "an index"), many(3, "the list of pieces", WANTS_MAX, PIECE)];
const ACKNOWLEDGEMENT: &[Limit] = &[
    bytes(1, "a member's name", MEMBER_BYTES_MAX),
    bytes(2, "a replica id", 16),
    number(3, "a serial"),
    one(4, "knowledge", KNOWLEDGE),
];
pub(super) const ACKNOWLEDGED: &[Limit] =
    &[many(1, "the list of acknowledgements", ACKNOWLEDGEMENTS_MAX, ACKNOWLEDGEMENT)];
pub(super) const ASK_SUMS: &[Limit] = &[number(1, "a request")];
pub(super) const SUMS: &[Limit] =
    &[number(1, "a request"), number(2, "a count"), bytes(3, "the list of sums", 34 * BUCKETS)];
pub(super) const ASK_BUCKET: &[Limit] = &[number(1, "a request"), number(2, "a bucket")];
pub(super) const BUCKET: &[Limit] = &[number(1, "a request"), bytes(2, "a bucket's list", 56 * BUCKET_ROWS_MAX)];
pub(super) const ASK_RECORDS: &[Limit] = &[number(1, "a request"), bytes(2, "the list of UIDs", 24 * RECORDS_MAX)];
pub(super) const RECORDS: &[Limit] =
    &[number(1, "a request"), number(2, "a count"), bytes(3, "the list of bits", RECORDS_MAX / 8)];
pub(super) const ECHO: &[Limit] = &[one(1, "the mark", MARK)];
pub(super) const HELD: &[Limit] = &[bytes(1, "the list of UIDs", 24 * WANTS_MAX)];

/// Walks a message and what is nested in it, and refuses what passes the limits. Fields that are not in the table
/// are of later versions: they are skipped here and ignored by prost.
///
/// # Errors
/// [`PeerError::TooMany`], [`PeerError::TooLong`], [`PeerError::Twice`], [`PeerError::Malformed`]. What this lets
/// through may still be no message.
pub(crate) fn check(mut input: &[u8], limits: &[Limit]) -> Result<(), PeerError> {
    // No message has more fields than this; `field_tables_fit` tests it.
    let mut counts = [0usize; FIELDS_MAX];
    while !input.is_empty() {
        let key = varint(&mut input)?;
        let field = u32::try_from(key >> 3).map_err(|_| PeerError::Malformed("a field number"))?;
        let body = match key & 7 {
            0 => {
                varint(&mut input)?;
                None
            }
            1 => take(&mut input, 8).map(|_| None)?,
            2 => {
                let length = varint(&mut input)?;
                Some(take(&mut input, length)?)
            }
            5 => take(&mut input, 4).map(|_| None)?,
            // Groups are not used, and skipping them would need a stack.
            _ => return Err(PeerError::Malformed("a field's type")),
        };
        let Some((limit, count)) = limits.iter().zip(&mut counts).find(|(limit, _)| limit.field == field) else {
            continue;
        };
        *count += 1;
        if *count > limit.count {
            return Err(match limit.count {
                1 => PeerError::Twice(limit.what),
                max => PeerError::TooMany { what: limit.what, max },
            });
        }
        let Some(body) = body else { continue };
        if body.len() > limit.bytes {
            return Err(PeerError::TooLong { what: limit.what, max: limit.bytes });
        }
        if !limit.inside.is_empty() {
            check(body, limit.inside)?;
        }
    }
    Ok(())
}

/// The most fields of one message.
const FIELDS_MAX: usize = 8;

fn varint(input: &mut &[u8]) -> Result<u64, PeerError> {
    prost::encoding::decode_varint(input).map_err(|_| PeerError::Malformed("a number"))
}

fn take<'a>(input: &mut &'a [u8], count: u64) -> Result<&'a [u8], PeerError> {
    let (head, tail) = usize::try_from(count)
        .ok()
        .and_then(|count| input.split_at_checked(count))
        .ok_or(PeerError::Malformed("a field's length"))?;
    *input = tail;
    Ok(head)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_tables_fit() {
        fn depth_first(limits: &[Limit]) {
            assert!(limits.len() <= FIELDS_MAX);
            limits.iter().for_each(|limit| depth_first(limit.inside));
        }
        for table in [
            ENVELOPE,
            OPEN,
            OPENED,
            REFUSED,
            GROWN,
            PULL,
            PAGE,
            FETCH,
            PIECES,
            ACKNOWLEDGED,
            ASK_SUMS,
            SUMS,
            ASK_BUCKET,
            BUCKET,
            ASK_RECORDS,
            RECORDS,
            HELD,
            ECHO,
        ] {
            depth_first(table);
        }
    }
}
