//! The small tables of a member's database beside records and nodes.
//!
//! | table | key | value |
//! | --- | --- | --- |
//! | Meta | text | see [`Meta`] |
//! | Todo | UID, or 0xff and a node number | - |
//! | Intents | number of the row, 4 bytes | some of a batch: UID and length of each, [`Intent`] |
//! | Intents | UID | [`Intent`], as it was written before there were rows of many |
//! | Preserved | number, 8 bytes | [`Preserved`] |
//! | NodeHashes | first 8 bytes of the hash, number with the highest bit set | - |
//! | Partners | partner's replica id | mark: highest (8 bytes), digest; the name of its member |
//! | Acknowledged | member's name | replica id, serial, knowledge |

use anabranch_engine::kv::{Kv, KvError, Table};
use anabranch_model::codec::{DecodeError, Reader, Writer};
use anabranch_model::{ChangeNumber, Hash, Hlc, ReplicaId, Sequence, Uid, Version};
use anabranch_net::message::{Acknowledgement, Mark};
use anabranch_volume::fs::{FileStamp, Object};

use crate::nodes::{
    NodeId, read_knowledge, read_stamp, read_uid, read_version, uid_key, write_knowledge, write_stamp, write_version,
};

fn damaged(error: DecodeError) -> KvError {
    KvError::damaged("read a row", error)
}

/// Keys of the table Meta that belong to the member (the engine has its own).
pub(crate) struct Meta;

impl Meta {
    /// One byte: 1 joining, 2 normal, 3 returning (fresh id after a rollback or copy).
    pub(crate) const PHASE: &'static [u8] = b"member.phase";
    /// There while the tree has not been compared since a return: what is absent may be so for the sake of the image.
    pub(crate) const ABSENCE_DOUBTED: &'static [u8] = b"member.absence-doubted";
    /// There until the primary has compared all of its tree for the first time.
    pub(crate) const FIRST_SCAN: &'static [u8] = b"member.first-scan";
    /// One byte, one of the three below.
    pub(crate) const CLEAN: &'static [u8] = b"member.clean";
    /// It is open, or was when its process ended.
    pub(crate) const SERVING: u8 = 0;
    /// It was closed properly.
    pub(crate) const STOPPED: u8 = 1;
    /// It was closed properly before all had been looked at that a power cut may have changed.
    pub(crate) const STOPPED_DOUBTING: u8 = 2;
    /// The boot id under which the database was last open.
    pub(crate) const BOOT: &'static [u8] = b"member.boot";
    /// The durability checkpoint: microseconds since 1970, 8 bytes big-endian.
    pub(crate) const CHECKPOINT: &'static [u8] = b"member.checkpoint";
    /// Machine and file system that the database belongs to.
    pub(crate) const PLACE: &'static [u8] = b"member.place";
    /// The root's token, 16 bytes.
    pub(crate) const TOKEN: &'static [u8] = b"member.token";
    /// Replica ids that this member had before, 16 bytes each.
    pub(crate) const FORMER: &'static [u8] = b"member.former";
    /// What the numbers of this replica id passed over, see [`Gap`].
    pub(crate) const GAPS: &'static [u8] = b"member.gaps";
    /// When this member, put back, had compared its records with a partner: microseconds since 1970, 8 bytes.
    pub(crate) const COMPARED: &'static [u8] = b"member.compared";
    /// Closed replica ids: versions of 24 bytes.
    pub(crate) const CLOSED: &'static [u8] = b"member.closed";
    /// Prefix, then a partner's name: our highest number when it last confirmed that it knew all that we had told it.
    pub(crate) const CONFIRMED: &'static [u8] = b"confirmed.";
    /// Own marks: prefix, then highest, 8 bytes big-endian.
    pub(crate) const MARKS: &'static [u8] = b"mark.";
}

/// What the database says before an install about what it will put where (design, section 8).
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Intent {
    pub(crate) uid: Uid,
    /// The content facet's version.
    pub(crate) version: Version,
    pub(crate) hash: Hash,
    pub(crate) parent: NodeId,
    pub(crate) name: Vec<u8>,
    /// The private file, in staging.
    pub(crate) private: Vec<u8>,
    pub(crate) object: Object,
    /// What it replaces, if anything.
    pub(crate) replaces: Option<(Object, FileStamp)>,
    /// The number under which what it replaces will be preserved.
    pub(crate) preserved: u64,
}

impl Intent {
    fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        write_version(&mut out, self.version);
        out.raw(&self.hash);
        out.number(self.parent.0);
        out.bytes(&self.name);
        out.bytes(&self.private);
        out.bytes(&self.object.0);
        out.number(self.preserved);
        out.number(self.replaces.is_some().into());
        if let Some((object, stamp)) = &self.replaces {
            out.bytes(&object.0);
            write_stamp(&mut out, stamp);
        }
        out.0
    }

    fn decode(uid: Uid, bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut input = Reader(bytes);
        Ok(Self {
            uid,
            version: read_version(&mut input)?,
            hash: input.array()?,
            parent: NodeId(input.number()?),
            name: input.bytes(255, "a name")?.to_vec(),
            private: input.bytes(255, "a name")?.to_vec(),
            object: Object(input.bytes(255, "an object")?.into()),
            preserved: input.number()?,
            replaces: match input.number()? {
                0 => None,
                _ => Some((Object(input.bytes(255, "an object")?.into()), read_stamp(&mut input)?)),
            },
        })
    }
}

/// Intents in one row: they are written and dropped together.
const INTENTS_A_ROW: usize = 256;
/// The longest intent, encoded, bytes.
const INTENT_BYTES_MAX: usize = 2048;

/// Writes down those of a batch; there are no others then.
pub(crate) fn put_intents(kv: &mut impl Kv, intents: &[Intent]) -> Result<(), KvError> {
    for (number, some) in (0u32..).zip(intents.chunks(INTENTS_A_ROW)) {
        let mut row = Writer::default();
        for intent in some {
            write_version(&mut row, intent.uid.0);
            row.bytes(&intent.encode());
        }
        kv.put(Table::Intents, &number.to_be_bytes(), &row.0)?;
    }
    Ok(())
}

/// Drops those of a batch of so many.
pub(crate) fn drop_intents(kv: &mut impl Kv, count: usize) -> Result<(), KvError> {
    for (number, _) in (0u32..).zip((0..count).step_by(INTENTS_A_ROW)) {
        kv.delete(Table::Intents, &number.to_be_bytes())?;
    }
    Ok(())
}

/// Takes all intents out.
pub(crate) fn take_intents(kv: &mut impl Kv) -> Result<Vec<Intent>, KvError> {
    let mut intents = Vec::new();
    for (key, value) in kv.range(Table::Intents, &[], None, usize::MAX)? {
        kv.delete(Table::Intents, &key)?;
        if key.len() != size_of::<u32>() {
            intents.push(Intent::decode(read_uid(&key)?, &value).map_err(damaged)?);
            continue;
        }
        let mut row = Reader(&value);
        while !row.0.is_empty() {
            let uid = Uid(read_version(&mut row).map_err(damaged)?);
            let encoded = row.bytes(INTENT_BYTES_MAX, "an intent").map_err(damaged)?;
            intents.push(Intent::decode(uid, encoded).map_err(damaged)?);
        }
    }
    Ok(intents)
}

/// Why replication took something out of the tree (design, section 9).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// Deleted by somebody who had seen it.
    Deleted,
    /// Overwritten by somebody who had seen it.
    Overwritten,
    /// Lost a conflict between two edits.
    LostEdit,
    /// Lost its name to another file.
    LostName,
    /// Was there before the first sync, and partners do not have it.
    PreExisting,
    /// Differed at the first sync or after a recovery.
    Differed,
}

impl Reason {
    const ALL: [Self; 6] =
        [Self::Deleted, Self::Overwritten, Self::LostEdit, Self::LostName, Self::PreExisting, Self::Differed];

    /// Is it of the class *unseen*: nobody who replaced it had seen it?
    #[must_use]
    pub fn unseen(self) -> bool {
        !matches!(self, Self::Deleted | Self::Overwritten)
    }

    /// A word for listings.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Deleted => "deleted",
            Self::Overwritten => "overwritten",
            Self::LostEdit => "lost-edit",
            Self::LostName => "lost-name",
            Self::PreExisting => "pre-existing",
            Self::Differed => "differed",
        }
    }
}

/// A manifest entry: something that replication took out of the tree.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Preserved {
    /// Its number; also its file name, in hexadecimal.
    pub number: u64,
    /// Why.
    pub reason: Reason,
    /// When, microseconds since 1970.
    pub when: Hlc,
    /// Whose content, where it had a UID.
    pub uid: Option<Uid>,
    /// The version that it had.
    pub version: Option<Version>,
    /// The version that replaced it.
    pub replaced_by: Option<Version>,
    /// Path from the root, components joined by slashes.
    pub path: Vec<u8>,
    /// Bytes.
    pub size: u64,
    /// BLAKE3 of the data, where it was known.
    pub hash: Option<Hash>,
    /// A directory with all that is in it.
    pub directory: bool,
    /// Announced, not yet seen to be there, or about to be removed: what a crash may leave.
    pub pending: bool,
}

impl Preserved {
    /// The name of its file in `ConflictAndDeleted` or `PreExisting`.
    #[must_use]
    pub fn file_name(&self) -> Vec<u8> {
        format!("{:016x}", self.number).into_bytes()
    }

    /// The directory below `.anabranch` that it is kept in.
    #[must_use]
    pub fn directory_name(&self) -> &'static [u8] {
        if self.reason == Reason::PreExisting {
            anabranch_volume::layout::PRE_EXISTING
        } else {
            anabranch_volume::layout::CONFLICT_AND_DELETED
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        let reason = Reason::ALL.iter().position(|r| *r == self.reason).unwrap_or_default();
        out.number(reason as u64);
        out.number(self.when.0);
        let flags = u64::from(self.uid.is_some())
            | u64::from(self.version.is_some()) << 1
            | u64::from(self.replaced_by.is_some()) << 2
            | u64::from(self.hash.is_some()) << 3
            | u64::from(self.directory) << 4
            | u64::from(self.pending) << 5;
        out.number(flags);
        for version in [self.uid.map(|u| u.0), self.version, self.replaced_by].into_iter().flatten() {
            write_version(&mut out, version);
        }
        if let Some(hash) = &self.hash {
            out.raw(hash);
        }
        out.number(self.size);
        // What is longer loses its beginning: a row that cannot be read again would be a damaged database.
        out.bytes(&self.path[self.path.len().saturating_sub(PATH_BYTES_MAX)..]);
        out.0
    }

    fn decode(number: u64, bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut input = Reader(bytes);
        let reason = usize::try_from(input.number()?).ok().and_then(|r| Reason::ALL.get(r).copied());
        let when = Hlc(input.number()?);
        let flags = input.number()?;
        let mut version = |bit: u64| (flags & bit != 0).then(|| read_version(&mut input)).transpose();
        let (uid, own, by) = (version(1)?, version(2)?, version(4)?);
        Ok(Self {
            number,
            reason: reason.ok_or(DecodeError::Range("a reason"))?,
            when,
            uid: uid.map(Uid),
            version: own,
            replaced_by: by,
            hash: if flags & 8 == 0 { None } else { Some(input.array()?) },
            size: input.number()?,
            path: input.bytes(PATH_BYTES_MAX, "a path")?.to_vec(),
            directory: flags & 16 != 0,
            pending: flags & 32 != 0,
        })
    }
}

/// Bytes of a path: as many names as [`crate::replica::PATH_NAMES_MAX`], each with what parts it from the next.
const PATH_BYTES_MAX: usize = crate::replica::PATH_NAMES_MAX * 256;

pub(crate) fn put_preserved(kv: &mut impl Kv, item: &Preserved) -> Result<(), KvError> {
    if let Some(hash) = item.hash.filter(|_| item.size > 0) {
        kv.put(Table::NodeHashes, &preserved_hash_key(&hash, item.number), &[])?;
    }
    kv.put(Table::Preserved, &item.number.to_be_bytes(), &item.encode())
}

pub(crate) fn drop_preserved(kv: &mut impl Kv, number: u64) -> Result<(), KvError> {
    if let Some(hash) = preserved_one(kv, number)?.and_then(|item| item.hash) {
        kv.delete(Table::NodeHashes, &preserved_hash_key(&hash, number))?;
    }
    kv.delete(Table::Preserved, &number.to_be_bytes())
}

/// Preserved items share the index of nodes by hash; their numbers have the highest bit set there.
const PRESERVED: u64 = 1 << 63;

fn preserved_hash_key(hash: &Hash, number: u64) -> [u8; 16] {
    let mut key = [0; 16];
    let (head, tail) = key.split_at_mut(8);
    head.copy_from_slice(hash.first_chunk::<8>().expect("a hash has 32 bytes"));
    tail.copy_from_slice(&(PRESERVED | number).to_be_bytes());
    key
}

/// Some preserved files with this hash.
pub(crate) fn preserved_by_hash(kv: &impl Kv, hash: &Hash) -> Result<Vec<Preserved>, KvError> {
    let from = preserved_hash_key(hash, 0);
    let to = anabranch_engine::kv::after_prefix(from.first_chunk::<8>().expect("a key has 16 bytes"));
    let mut out = Vec::new();
    for (key, _) in kv.range(Table::NodeHashes, &from, to.as_deref(), 8)? {
        let item = preserved_one(kv, read_number(key.get(8..).unwrap_or_default())? & !PRESERVED)?;
        out.extend(item.filter(|i| i.hash == Some(*hash) && !i.pending && !i.directory));
    }
    Ok(out)
}

/// Manifest entries with numbers above `after`, ascending.
///
/// # Errors
/// [`KvError`] when the database cannot be read.
pub(crate) fn preserved(kv: &impl Kv, after: u64, limit: usize) -> Result<Vec<Preserved>, KvError> {
    let rows = kv.range(Table::Preserved, &after.saturating_add(1).to_be_bytes(), None, limit)?;
    rows.into_iter().map(|(key, value)| Preserved::decode(read_number(&key)?, &value).map_err(damaged)).collect()
}

pub(crate) fn preserved_one(kv: &impl Kv, number: u64) -> Result<Option<Preserved>, KvError> {
    let bytes = kv.get(Table::Preserved, &number.to_be_bytes())?;
    bytes.map(|b| Preserved::decode(number, &b).map_err(damaged)).transpose()
}

pub(crate) fn next_preserved(kv: &impl Kv) -> Result<u64, KvError> {
    Ok(kv.last(Table::Preserved)?.map(|(key, _)| read_number(&key)).transpose()?.unwrap_or(0) + 1)
}

pub(crate) fn read_number(bytes: &[u8]) -> Result<u64, KvError> {
    bytes.try_into().map(u64::from_be_bytes).map_err(|_| KvError::damaged("read a number", "not 8 bytes"))
}

/// The mark of a partner that it gave us last.
pub(crate) fn partner_mark(kv: &impl Kv, replica: ReplicaId) -> Result<Mark, KvError> {
    let Some(bytes) = kv.get(Table::Partners, &replica.0)? else { return Ok(Mark { replica, ..Mark::default() }) };
    let mut input = Reader(&bytes);
    let mark = (|| {
        let highest = Sequence(u64::from_be_bytes(input.array()?));
        Ok(Mark { replica, highest, digest: input.array()? })
    })();
    mark.map_err(damaged)
}

/// The marks that this partner gave us, under each replica id that it ever had here.
pub(crate) fn partner_marks(kv: &impl Kv, member: &str) -> Result<Vec<Mark>, KvError> {
    let mut marks = Vec::new();
    for (key, value) in kv.range(Table::Partners, &[], None, usize::MAX)? {
        let name = value.get(MARK_BYTES..).unwrap_or_default();
        if let (true, Ok(replica)) = (name == member.as_bytes(), key.try_into().map(ReplicaId)) {
            marks.push(partner_mark(kv, replica)?);
        }
    }
    Ok(marks)
}

/// Of a row of Partners: what is in front of the member's name.
const MARK_BYTES: usize = 40;

pub(crate) fn put_partner_mark(kv: &mut impl Kv, member: &str, mark: &Mark) -> Result<(), KvError> {
    let value = [&mark.highest.0.to_be_bytes()[..], &mark.digest, member.as_bytes()].concat();
    kv.put(Table::Partners, &mark.replica.0, &value)
}

pub(crate) fn put_acknowledgement(kv: &mut impl Kv, ack: &Acknowledgement) -> Result<(), KvError> {
    let mut out = Writer::default();
    out.raw(&ack.replica.0);
    out.number(ack.serial);
    write_knowledge(&mut out, &ack.held);
    kv.put(Table::Acknowledged, ack.member.as_bytes(), &out.0)
}

pub(crate) fn acknowledgements(kv: &impl Kv) -> Result<Vec<Acknowledgement>, KvError> {
    let rows = kv.range(Table::Acknowledged, &[], None, 4096)?;
    let read = |key: Vec<u8>, value: Vec<u8>| {
        let mut input = Reader(&value);
        Ok(Acknowledgement {
            member: String::from_utf8(key).map_err(|_| DecodeError::Text("a member's name"))?,
            replica: ReplicaId(input.array()?),
            serial: input.number()?,
            held: read_knowledge(&mut input)?,
        })
    };
    rows.into_iter().map(|(key, value)| read(key, value).map_err(damaged)).collect()
}

pub(crate) fn closed(kv: &impl Kv) -> Result<Vec<Version>, KvError> {
    let bytes = kv.get(Table::Meta, Meta::CLOSED)?.unwrap_or_default();
    bytes.chunks_exact(24).map(|c| read_uid(c).map(|u| u.0)).collect()
}

pub(crate) fn put_closed(kv: &mut impl Kv, closed: &[Version]) -> Result<(), KvError> {
    let bytes: Vec<u8> = closed.iter().flat_map(|v| uid_key(Uid(*v))).collect();
    kv.put(Table::Meta, Meta::CLOSED, &bytes)
}

/// Numbers that were passed over when the database was opened: they were never issued here. Who was told one of them was
/// told it by a life of this database that it does not remember (design, section 11).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Gap {
    /// The highest sequence number before it, and the highest that was passed over.
    pub(crate) sequences: (Sequence, Sequence),
    /// The change number before, and that which counts from then on.
    pub(crate) numbers: (ChangeNumber, ChangeNumber),
}

impl Gap {
    /// Was this sequence number passed over?
    pub(crate) fn has_sequence(&self, sequence: Sequence) -> bool {
        self.sequences.0 < sequence && sequence <= self.sequences.1
    }

    /// Was this change number passed over? Partners may be told the last one: all before it is here.
    pub(crate) fn has_number(&self, number: ChangeNumber) -> bool {
        self.numbers.0 < number && number < self.numbers.1
    }
}

/// Gaps that are remembered: those of the last starts.
const GAPS_MAX: usize = 1024;

pub(crate) fn gaps(kv: &impl Kv) -> Result<Vec<Gap>, KvError> {
    let bytes = kv.get(Table::Meta, Meta::GAPS)?.unwrap_or_default();
    let read = |gap: &[u8]| {
        let number = |at: usize| read_number(gap.get(8 * at..8 * at + 8).unwrap_or_default());
        let sequences = (Sequence(number(0)?), Sequence(number(1)?));
        Ok(Gap { sequences, numbers: (ChangeNumber(number(2)?), ChangeNumber(number(3)?)) })
    };
    bytes.chunks_exact(32).map(read).collect()
}

pub(crate) fn put_gaps(kv: &mut impl Kv, gaps: &[Gap]) -> Result<(), KvError> {
    let latest = gaps.get(gaps.len().saturating_sub(GAPS_MAX)..).unwrap_or_default();
    let numbers = |g: &Gap| [g.sequences.0.0, g.sequences.1.0, g.numbers.0.0, g.numbers.1.0];
    let bytes: Vec<u8> = latest.iter().flat_map(numbers).flat_map(u64::to_be_bytes).collect();
    kv.put(Table::Meta, Meta::GAPS, &bytes)
}

/// The key under which a directory without UID waits to be emptied into another.
pub(crate) fn dissolving_key(node: NodeId) -> Vec<u8> {
    [&[0xff; 17][..], &node.0.to_be_bytes()].concat()
}

/// What a row of Todo is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Work {
    Uid(Uid),
    Dissolve(NodeId),
}

pub(crate) fn read_work(key: &[u8]) -> Result<Work, KvError> {
    if key.len() == 25 {
        return Ok(Work::Dissolve(NodeId(read_number(key.get(17..).unwrap_or_default())?)));
    }
    read_uid(key).map(Work::Uid)
}

#[cfg(test)]
mod tests {
    use anabranch_engine::MemoryKv;

    use super::*;

    #[test]
    fn a_path_of_any_length_can_be_read_again() {
        for length in [0, 1, 1 << 16, PATH_BYTES_MAX, PATH_BYTES_MAX + 1] {
            let path: Vec<u8> = (0..length).map(|at| if at % 256 == 255 { b'/' } else { b'n' }).collect();
            let item = Preserved {
                number: 7,
                reason: Reason::Deleted,
                when: Hlc(1),
                uid: None,
                version: None,
                replaced_by: None,
                path: path.clone(),
                size: 0,
                hash: None,
                directory: false,
                pending: false,
            };
            let read = Preserved::decode(7, &item.encode()).expect("what was written can be read");
            assert!(path.ends_with(&read.path) && read.path.len() == length.min(PATH_BYTES_MAX), "{length} bytes");
        }
    }

    #[test]
    fn intents_are_rows_of_many_and_those_of_one_are_read_as_well() {
        let intent = |number: usize| Intent {
            uid: Uid(Version { replica: ReplicaId([7; 16]), sequence: Sequence(number as u64) }),
            version: Version { replica: ReplicaId([8; 16]), sequence: Sequence(number as u64 + 1) },
            hash: [number as u8; 32],
            parent: NodeId(number as u64),
            name: vec![b'n'; 1 + number % 255],
            private: b"f-1".to_vec(),
            object: Object(vec![1; 12].into()),
            replaces: number.is_multiple_of(2).then(|| (Object(vec![2; 128].into()), FileStamp::default())),
            preserved: number as u64,
        };
        for count in [0, 1, INTENTS_A_ROW, INTENTS_A_ROW + 1, 2048] {
            let mut kv = MemoryKv::default();
            kv.begin().expect("begin");
            let intents: Vec<_> = (0..count).map(intent).collect();
            put_intents(&mut kv, &intents).expect("put");
            let single = intent(1 << 20);
            kv.put(Table::Intents, &uid_key(single.uid), &single.encode()).expect("put");
            let rows = kv.range(Table::Intents, &[], None, usize::MAX).expect("range").len();
            assert_eq!(rows, count.div_ceil(INTENTS_A_ROW) + 1);
            let mut taken = take_intents(&mut kv).expect("take");
            assert_eq!(taken.pop().as_ref(), Some(&single), "keys of one row are longer, and these begin later");
            assert_eq!(taken, intents);
            assert_eq!(take_intents(&mut kv).expect("take"), []);
            put_intents(&mut kv, &intents).expect("put");
            drop_intents(&mut kv, count).expect("drop");
            assert_eq!(take_intents(&mut kv).expect("take"), []);
        }
    }
}
