//! What members say to each other about one replicated folder, as plain values.
//!
//! A link has fixed roles: the downstream partner dials, asks and pulls; the upstream partner answers and pushes change
//! numbers (design, section 6). Each message belongs to one folder; the frame names it. The simulator carries these
//! values as they are; the real link encodes them (see [`crate::wire`]).

pub use bytes::Bytes;

use anabranch_model::{ChangeNumber, FolderId, Hash, Hlc, Knowledge, ReplicaId, Sequence, Uid, Version};

/// A point in the life of a replica id: its highest sequence at a commit, and a hash over all that it had issued by
/// then. An upstream partner gives one with each complete pass; a downstream partner echoes the last one it was given
/// (design, section 11).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Mark {
    /// The replica id spoken of; zeros where none is known yet.
    pub replica: ReplicaId,
    /// Highest sequence at that commit.
    pub highest: Sequence,
    /// Hash over all that was issued until then.
    pub digest: Hash,
}

/// What a member of the folder has acknowledged: held, durably, deletes included (design, section 12).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Acknowledgement {
    /// The member's name in the domain.
    pub member: String,
    /// Its replica id.
    pub replica: ReplicaId,
    /// Counts up whenever the member says something new of itself: the higher one counts.
    pub serial: u64,
    /// All versions up to these are held there.
    pub held: Knowledge,
}

/// One piece of content that a downstream partner asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Want {
    /// Whose content.
    pub uid: Uid,
    /// The version of the content facet that the downstream partner knows.
    pub version: Version,
    /// BLAKE3 of the whole content.
    pub hash: Hash,
    /// First byte wanted.
    pub offset: u64,
    /// Bytes wanted; at most [`PIECE_BYTES_MAX`].
    pub length: u32,
}

/// The most bytes of one piece.
pub const PIECE_BYTES_MAX: u32 = 1 << 20;
/// The most pieces in one [`Message::Fetch`].
pub const WANTS_MAX: usize = 1024;
/// The most bytes of one encoded message: a page of 1 MiB and its dictionary, or pieces.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// The most bytes of the records in one page (one record may pass it).
pub const PAGE_BYTES_MAX: usize = 1 << 20;

/// What came of one wanted piece.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Piece {
    /// The bytes at the offset asked for.
    Data(Bytes),
    /// Not held there, or no longer that content: ask somebody else, or wait for the next pass.
    NotHeld,
    /// Held, but it cannot be read now (in use, changing, an error): ask again later.
    Busy,
}

/// Rows of one pass.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Page {
    /// Replica ids named by the rows.
    pub replicas: Vec<ReplicaId>,
    /// Encoded attribute values named by the rows ([`anabranch_model::codec::encode_attributes`]).
    pub attributes: Vec<Vec<u8>>,
    /// Encoded records ([`anabranch_model::codec::encode_record`]), ascending by change number.
    pub rows: Vec<Vec<u8>>,
    /// All rows up to this number were looked at.
    pub through: ChangeNumber,
    /// Where no row is beyond `through`: the upstream's knowledge and mark of the same transaction.
    pub complete: Option<(Knowledge, Mark)>,
}

/// One node of the comparison of sums (design, section 14): a bucket with its sum.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sum {
    /// 0 to 65,535.
    pub bucket: u16,
    /// Sum over the bucket's live held records.
    pub sum: Hash,
}

/// What is said about one folder.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// Downstream: begins. Nothing else is served before it was answered.
    Open {
        /// Name of the asking member.
        member: String,
        /// Its replica id.
        replica: ReplicaId,
        /// The last mark of the upstream that it was given.
        echo: Mark,
        /// Replica ids that were closed by a rollback, with the last number that counts of each.
        closed: Vec<Version>,
        /// Its clock, microseconds since 1970.
        clock: Hlc,
        /// Its own knowledge, which lets rows be skipped.
        known: Knowledge,
        /// What counts as one name there, and by which table; empty for bytes. Who differs derives another tree.
        names: String,
    },
    /// Upstream: answers [`Message::Open`].
    Opened {
        /// Name of the answering member.
        member: String,
        /// Its replica id.
        replica: ReplicaId,
        /// The last mark of the downstream that it was given, by the link in the other direction.
        echo: Mark,
        /// Replica ids that were closed by a rollback, with the last number that counts of each.
        closed: Vec<Version>,
        /// Its clock, microseconds since 1970.
        clock: Hlc,
        /// Its newest change number.
        number: ChangeNumber,
        /// Its knowledge, of the same instant.
        known: Knowledge,
        /// What counts as one name there, as in [`Message::Open`].
        names: String,
        /// It has not completed its own initial sync: whoever compares what lies in its tree does that with somebody else, or
        /// once it hears of [`Message::Grown`].
        joining: bool,
    },
    /// Downstream, once it knows who answers: the last mark of the upstream that it was given.
    Echo(Mark),
    /// Either: cannot go on with this folder, and why. Another try is made later.
    Refused {
        /// A full sentence for the administrator.
        reason: String,
    },
    /// Upstream: its change number has grown.
    Grown {
        /// Newest change number.
        number: ChangeNumber,
    },
    /// Downstream: asks for a page of the pass.
    Pull {
        /// Rows above this number.
        after: ChangeNumber,
        /// What the downstream's knowledge gained since it was last said on this link.
        known: Knowledge,
        /// It will not take what a pass lacks for what nobody has: a pass may be complete though the upstream has not
        /// looked at all of its own tree yet.
        part: bool,
    },
    /// Upstream: the page.
    Page(Page),
    /// Downstream: asks for pieces of content.
    Fetch {
        /// Comes back with the answer.
        request: u64,
        /// What is wanted, at most [`WANTS_MAX`].
        wants: Vec<Want>,
    },
    /// Upstream: pieces, in the order asked; several answers may serve one request.
    Pieces {
        /// Of the request.
        request: u64,
        /// Index of the first of these in the request's list.
        first: u32,
        /// What came of each.
        pieces: Vec<Piece>,
    },
    /// Upstream: content that it had to refuse is held now. An empty list means: ask again for whatever was refused.
    Held {
        /// At most [`WANTS_MAX`].
        uids: Vec<Uid>,
    },
    /// Either: what members have acknowledged, as far as it is news on this link.
    Acknowledged {
        /// The members.
        members: Vec<Acknowledgement>,
    },
    /// Downstream: asks for the sums of all buckets that are not zero.
    AskSums {
        /// Comes back with the answer.
        request: u64,
    },
    /// Upstream: its sums.
    Sums {
        /// Of the request.
        request: u64,
        /// Outstanding items at this member.
        outstanding: u64,
        /// Buckets with a sum, ascending.
        sums: Vec<Sum>,
    },
    /// Downstream: asks which UIDs one bucket holds.
    AskBucket {
        /// Comes back with the answer.
        request: u64,
        /// Which.
        bucket: u16,
    },
    /// Upstream: the bucket's live held records.
    Bucket {
        /// Of the request.
        request: u64,
        /// UID and hash over the versions of its facets.
        rows: Vec<(Uid, Hash)>,
    },
    /// Downstream, after its database was restored or replaced: which of these UIDs have you a record of? (design, section 12)
    AskRecords {
        /// Comes back with the answer.
        request: u64,
        /// At most 4,096.
        uids: Vec<Uid>,
    },
    /// Upstream: one bit for each UID asked about.
    Records {
        /// Of the request.
        request: u64,
        /// Has a record, in the order asked.
        present: Vec<bool>,
    },
}

/// A message and the folder it is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Envelope {
    /// The folder.
    pub folder: FolderId,
    /// What is said.
    pub message: Message,
}
