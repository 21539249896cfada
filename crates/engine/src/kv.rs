//! What the rules need of a database: ordered tables of bytes with transactions.
//!
//! The `store` crate implements [`Kv`] with SQLite and in memory. Everything above is written once, against this trait,
//! so the simulator and the real program run the same code.

use std::fmt;

/// The tables of a metadata database. The number is part of the on-disk format: never reuse one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
#[repr(u8)]
pub enum Table {
    /// Single values: replica id, highest number, clock, marks, checkpoints.
    Meta = 0,
    /// Interned replica ids: number -> id.
    Replicas = 1,
    /// Interned attribute values: number -> encoded value.
    Attributes = 2,
    /// Attribute value's hash -> number.
    AttributesByHash = 3,
    /// UID -> change number and encoded record.
    Records = 4,
    /// Change number -> UID.
    Changes = 5,
    /// (placed parent, name, UID) of live records.
    Slots = 6,
    /// (recorded parent, UID): live directories that the view places elsewhere.
    Children = 7,
    /// UID -> what the view derives beyond the record; only where there is anything.
    Derived = 8,
    /// UIDs whose conflict waits for a resolution to be written.
    Unresolved = 9,
    /// UID -> work to be done so that the tree shows the view.
    Todo = 10,
    /// Node number -> what is on disk there.
    Nodes = 11,
    /// (parent node, name) -> node.
    NodeNames = 12,
    /// Object -> nodes.
    NodeObjects = 13,
    /// UID -> node.
    NodeUids = 14,
    /// First 8 bytes of a content hash -> nodes.
    NodeHashes = 15,
    /// (upstream replica id, UID) -> record laid aside by a pass under way.
    Aside = 16,
    /// Upstream replica id -> cursor and state of the pass under way.
    Cursors = 17,
    /// Install intents.
    Intents = 18,
    /// The manifest of preserved items.
    Preserved = 19,
    /// UID -> what was fetched of its content into its private file.
    Staged = 20,
    /// Partner replica id -> what each side has seen of the other.
    Partners = 21,
    /// Member -> its replica id and what it has acknowledged.
    Acknowledged = 22,
    /// Sums over live held records, by bucket.
    Sums = 23,
    /// (time, number) -> event.
    Events = 24,
    /// Tombstones: UID, to be collected when acknowledged.
    Tombstones = 25,
}

impl Table {
    /// All tables, ascending.
    pub const ALL: [Self; 26] = [
        Self::Meta,
        Self::Replicas,
        Self::Attributes,
        Self::AttributesByHash,
        Self::Records,
        Self::Changes,
        Self::Slots,
        Self::Children,
        Self::Derived,
        Self::Unresolved,
        Self::Todo,
        Self::Nodes,
        Self::NodeNames,
        Self::NodeObjects,
        Self::NodeUids,
        Self::NodeHashes,
        Self::Aside,
        Self::Cursors,
        Self::Intents,
        Self::Preserved,
        Self::Staged,
        Self::Partners,
        Self::Acknowledged,
        Self::Sums,
        Self::Events,
        Self::Tombstones,
    ];
}

/// A database operation failed, or the database holds what it cannot hold.
#[derive(Debug)]
pub struct KvError {
    /// What was being done.
    pub doing: &'static str,
    /// The database is damaged, not merely unable (full disk, I/O error).
    pub damaged: bool,
    /// The cause.
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl KvError {
    /// The database holds something that it cannot hold.
    pub fn damaged(doing: &'static str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { doing, damaged: true, source: source.into() }
    }

    /// The database could not do it.
    pub fn failed(doing: &'static str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { doing, damaged: false, source: source.into() }
    }
}

impl fmt::Display for KvError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.damaged { "the metadata database is damaged" } else { "the metadata database failed" };
        write!(f, "{what} ({})", self.doing)
    }
}

impl std::error::Error for KvError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.source)
    }
}

/// A key and its value.
pub type Pair = (Vec<u8>, Vec<u8>);

/// Ordered tables of bytes. Keys are at most 1,024 bytes, values at most 1 MiB.
///
/// All writes happen between [`Kv::begin`] and [`Kv::commit`]; reads see the writes of the transaction under way.
/// A commit is atomic, and durable when it returns. One writer.
pub trait Kv {
    /// The value of a key.
    ///
    /// # Errors
    /// [`KvError`] when the database cannot be read; the same holds for every method.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, KvError>;
    /// Sets the value of a key.
    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), KvError>;
    /// Removes a key; absent is no error.
    fn delete(&mut self, table: Table, key: &[u8]) -> Result<(), KvError>;
    /// Pairs with `from <= key`, and `key < to` where `to` is given; ascending, at most `limit` of them.
    fn range(&self, table: Table, from: &[u8], to: Option<&[u8]>, limit: usize) -> Result<Vec<Pair>, KvError>;
    /// The pair with the highest key.
    fn last(&self, table: Table) -> Result<Option<Pair>, KvError>;
    /// Begins a transaction.
    fn begin(&mut self) -> Result<(), KvError>;
    /// Makes the transaction durable and visible.
    fn commit(&mut self) -> Result<(), KvError>;
    /// Takes the transaction back.
    fn rollback(&mut self) -> Result<(), KvError>;
}

/// The lowest key above all keys that begin with `prefix`; `None` if there is none (only bytes 255).
#[must_use]
pub fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let keep = prefix.iter().rposition(|&b| b != 255)?;
    let mut out = prefix[..=keep].to_vec();
    out[keep] += 1;
    Some(out)
}
