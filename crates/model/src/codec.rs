//! The one encoding of a record, for the database and for the wire.
//!
//! Integers are LEB128 varints of at most ten bytes, signed ones zigzag. A record is a sequence of fields, each
//! `field number, byte length, bytes`, ascending by number: 1 UID, 2 placement, 3 content, 4 attributes. Fields from 16
//! on are of later versions of the program and are kept byte for byte; they must not use the dictionary. Inside a field the layout is fixed.
//! Replica ids and attribute values are named by small numbers of a [`Dictionary`] that goes with the database or the
//! page. Sequences and clocks are written as the difference to the UID's sequence: all are microseconds, so most
//! differences are short.
//!
//! | field | bytes within |
//! | --- | --- |
//! | UID | replica, sequence |
//! | placement | facet head, flags (1 directory, 2 deleted, 4 seen follows, 8 author follows), parent, name, seen?, author? |
//! | content | facet head, flags (1 symlink, 2 birth, 4 own stamp of bytes), stamp?, mtime, birth?, size and hash, or target |
//! | attributes | facet head, flags (1 directory mtime), attribute value, mtime? |
//! | facet head | flags (1 version is the UID, 2 change is the version, 4 history is the version, 8 merged, 16 resolved), version?, clock, change?, resolutions?, history? |
//!
//! A question mark: only where the flags announce it.
//!
//! Decoders take any bytes: limits are checked before anything is allocated, and what is left over is an error.

use std::collections::BTreeMap;

use crate::{
    Attributes, AttributesFacet, Content, ContentFacet, Hlc, Knowledge, Name, NameError, Owner, Placement,
    PlacementFacet, Record, ReplicaId, Sequence, Stamp, Time, Timestamp, Uid, Version, Written,
};

/// The longest encoded record (design, section 20).
pub const RECORD_BYTES_MAX: usize = 256 * 1024;
/// The most entries of one causal map.
pub const KNOWLEDGE_ENTRIES_MAX: usize = 4096;
/// The most bytes of extended attributes of one file (design, section 20).
pub const XATTR_BYTES_MAX: usize = 64 * 1024;
/// The longest target of a symlink.
pub const TARGET_BYTES_MAX: usize = 4095;

/// What is wrong with some bytes that should be a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end inside a value.
    #[error("the bytes end too early")]
    Short,
    /// Bytes are left over.
    #[error("bytes are left over")]
    Long,
    /// A number outside its range, or a limit passed.
    #[error("{0} is out of range")]
    Range(&'static str),
    /// A number that the dictionary does not have.
    #[error("the dictionary has no such {0}")]
    Dictionary(&'static str),
    /// A forbidden name.
    #[error("a forbidden name: {0}")]
    Name(#[from] NameError),
    /// Fields out of order, or a needed one missing.
    #[error("the field {0} is missing or out of order")]
    Field(&'static str),
    /// Not UTF-8.
    #[error("{0} is not UTF-8")]
    Text(&'static str),
}

/// Gives small numbers to replica ids and attribute values when writing.
pub trait Intern {
    /// The number of this replica id.
    fn replica(&mut self, replica: ReplicaId) -> u32;
    /// The number of this attribute value.
    fn attributes(&mut self, value: &Attributes) -> u32;
}

/// Gives back what the numbers stand for when reading.
pub trait Lookup {
    /// The replica id of this number.
    fn replica(&self, number: u32) -> Option<ReplicaId>;
    /// The attribute value of this number.
    fn attributes(&self, number: u32) -> Option<Attributes>;
}

/// A dictionary in memory, as each page on the wire carries one.
#[derive(Clone, Default, Debug, PartialEq, Eq)]
pub struct Dictionary {
    /// Replica ids by number.
    pub replicas: Vec<ReplicaId>,
    /// Attribute values by number.
    pub attributes: Vec<Attributes>,
    replica_numbers: BTreeMap<ReplicaId, u32>,
    attribute_numbers: BTreeMap<Attributes, u32>,
}

impl Dictionary {
    /// A dictionary with these entries, numbered in order.
    #[must_use]
    pub fn new(replicas: Vec<ReplicaId>, attributes: Vec<Attributes>) -> Self {
        let number = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
        Self {
            replica_numbers: replicas.iter().enumerate().map(|(at, &r)| (r, number(at))).collect(),
            attribute_numbers: attributes.iter().enumerate().map(|(at, a)| (a.clone(), number(at))).collect(),
            replicas,
            attributes,
        }
    }
}

impl Intern for Dictionary {
    fn replica(&mut self, replica: ReplicaId) -> u32 {
        *self.replica_numbers.entry(replica).or_insert_with(|| {
            self.replicas.push(replica);
            u32::try_from(self.replicas.len() - 1).unwrap_or(u32::MAX)
        })
    }

    fn attributes(&mut self, value: &Attributes) -> u32 {
        if let Some(&number) = self.attribute_numbers.get(value) {
            return number;
        }
        let number = u32::try_from(self.attributes.len()).unwrap_or(u32::MAX);
        self.attributes.push(value.clone());
        self.attribute_numbers.insert(value.clone(), number);
        number
    }
}

impl Lookup for Dictionary {
    fn replica(&self, number: u32) -> Option<ReplicaId> {
        self.replicas.get(number as usize).copied()
    }

    fn attributes(&self, number: u32) -> Option<Attributes> {
        self.attributes.get(number as usize).cloned()
    }
}

/// Writes the basic values. Public, so that the database's other tables use the same forms.
#[derive(Default, Debug)]
pub struct Writer(pub Vec<u8>);

impl Writer {
    /// A varint.
    pub fn number(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.0.push((value & 0x7f) as u8);
    }

    /// A zigzag varint.
    pub fn signed(&mut self, value: i64) {
        self.number(((value << 1) ^ (value >> 63)).cast_unsigned());
    }

    /// Length and bytes.
    pub fn bytes(&mut self, value: &[u8]) {
        self.number(value.len() as u64);
        self.0.extend_from_slice(value);
    }

    /// Exactly these bytes.
    pub fn raw(&mut self, value: &[u8]) {
        self.0.extend_from_slice(value);
    }

    /// Seconds, nanoseconds.
    pub fn timestamp(&mut self, value: Timestamp) {
        self.signed(value.seconds);
        self.number(value.nanoseconds.into());
    }
}

/// Reads the basic values.
#[derive(Debug)]
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// A varint.
    ///
    /// # Errors
    /// [`DecodeError::Short`] at the end, [`DecodeError::Range`] above 64 bits.
    pub fn number(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = *self.raw(1)?.first().ok_or(DecodeError::Short)?;
            if shift == 63 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(DecodeError::Range("a number"))
    }

    /// A varint of at most 32 bits.
    ///
    /// # Errors
    /// As [`Self::number`].
    pub fn small(&mut self) -> Result<u32, DecodeError> {
        u32::try_from(self.number()?).map_err(|_| DecodeError::Range("a number"))
    }

    /// A zigzag varint.
    ///
    /// # Errors
    /// As [`Self::number`].
    pub fn signed(&mut self) -> Result<i64, DecodeError> {
        let value = self.number()?;
        Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
    }

    /// Length and bytes, at most `max` of them.
    ///
    /// # Errors
    /// [`DecodeError::Range`] above `max`.
    pub fn bytes(&mut self, max: usize, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let length = usize::try_from(self.number()?).map_err(|_| DecodeError::Range(what))?;
        if length > max {
            return Err(DecodeError::Range(what));
        }
        self.raw(length)
    }

    /// Exactly `count` bytes.
    ///
    /// # Errors
    /// [`DecodeError::Short`].
    pub fn raw(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let (head, tail) = self.0.split_at_checked(count).ok_or(DecodeError::Short)?;
        self.0 = tail;
        Ok(head)
    }

    /// Exactly `N` bytes.
    ///
    /// # Errors
    /// [`DecodeError::Short`].
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        self.raw(N)?.try_into().map_err(|_| DecodeError::Short)
    }

    /// Seconds, nanoseconds below 10^9.
    ///
    /// # Errors
    /// [`DecodeError::Range`].
    pub fn timestamp(&mut self) -> Result<Timestamp, DecodeError> {
        let (seconds, nanoseconds) = (self.signed()?, self.small()?);
        if nanoseconds >= 1_000_000_000 {
            return Err(DecodeError::Range("nanoseconds"));
        }
        Ok(Timestamp { seconds, nanoseconds })
    }

    /// Nothing may be left.
    ///
    /// # Errors
    /// [`DecodeError::Long`].
    pub fn end(&self) -> Result<(), DecodeError> {
        if self.0.is_empty() { Ok(()) } else { Err(DecodeError::Long) }
    }
}

fn base(uid: Uid) -> u64 {
    uid.0.sequence.0
}

struct FacetWriter<'a, I> {
    out: Writer,
    dictionary: &'a mut I,
    uid: Uid,
}

impl<I: Intern> FacetWriter<'_, I> {
    fn near(&mut self, value: u64) {
        self.out.signed(value.wrapping_sub(base(self.uid)).cast_signed());
    }

    fn version(&mut self, version: Version) {
        let replica = self.dictionary.replica(version.replica);
        self.out.number(replica.into());
        self.near(version.sequence.0);
    }

    fn time(&mut self, time: Time) {
        self.near(time.clock.0);
        self.version(time.change);
        self.out.number(time.resolutions.into());
    }

    fn knowledge(&mut self, map: &Knowledge) {
        self.out.number(map.len() as u64);
        for (replica, sequence) in map.iter() {
            self.version(Version { replica, sequence });
        }
    }

    fn head(&mut self, w: &Written) {
        let is_uid = w.version == self.uid.0;
        let own_change = w.time.change == w.version;
        let own_history = w.history == Knowledge::of(w.version);
        let resolved = w.time.resolutions > 0;
        self.out.0.push(
            u8::from(is_uid)
                | u8::from(own_change) << 1
                | u8::from(own_history) << 2
                | u8::from(w.merged) << 3
                | u8::from(resolved) << 4,
        );
        if !is_uid {
            self.version(w.version);
        }
        self.near(w.time.clock.0);
        if !own_change {
            self.version(w.time.change);
        }
        if resolved {
            self.out.number(w.time.resolutions.into());
        }
        if !own_history {
            self.knowledge(&w.history);
        }
    }

    fn placement(&mut self, facet: &PlacementFacet) {
        self.head(&facet.written);
        let p = &facet.value;
        let (seen, author) = (!facet.seen.is_empty(), !p.author.is_empty());
        self.out.0.push(u8::from(p.directory) | u8::from(p.deleted) << 1 | u8::from(seen) << 2 | u8::from(author) << 3);
        self.version(p.parent.0);
        self.out.bytes(p.name.bytes());
        if seen {
            self.knowledge(&facet.seen);
        }
        if author {
            self.out.bytes(p.author.as_bytes());
        }
    }

    fn content(&mut self, facet: &ContentFacet) {
        self.head(&facet.written);
        let own = facet.bytes != facet.written.stamp();
        let link = matches!(facet.value, Content::Symlink { .. });
        self.out.0.push(u8::from(link) | u8::from(facet.birth.is_some()) << 1 | u8::from(own) << 2);
        if own {
            self.time(facet.bytes.time);
            self.version(facet.bytes.version);
        }
        self.out.timestamp(facet.mtime);
        if let Some(birth) = facet.birth {
            self.out.timestamp(birth);
        }
        match &facet.value {
            Content::File { size, hash } => {
                self.out.number(*size);
                self.out.raw(hash);
            }
            Content::Symlink { target } => self.out.bytes(target),
        }
    }

    fn attributes(&mut self, facet: &AttributesFacet) {
        self.head(&facet.written);
        self.out.0.push(u8::from(facet.directory_mtime.is_some()));
        let number = self.dictionary.attributes(&facet.value);
        self.out.number(number.into());
        if let Some(mtime) = facet.directory_mtime {
            self.out.timestamp(mtime);
        }
    }
}

/// Encodes a record; adds what it names to the dictionary.
pub fn encode_record(record: &Record, dictionary: &mut impl Intern) -> Vec<u8> {
    let mut out = Writer::default();
    let mut uid = Writer::default();
    uid.number(dictionary.replica(record.uid.0.replica).into());
    uid.number(base(record.uid));
    out.number(1);
    out.bytes(&uid.0);
    let mut field = |number: u64, write: &dyn Fn(&mut FacetWriter<'_, _>)| {
        let mut facet = FacetWriter { out: Writer::default(), dictionary: &mut *dictionary, uid: record.uid };
        write(&mut facet);
        out.number(number);
        out.bytes(&facet.out.0);
    };
    field(2, &|w| w.placement(&record.placement));
    if let Some(content) = &record.content {
        field(3, &|w| w.content(content));
    }
    if let Some(attributes) = &record.attributes {
        field(4, &|w| w.attributes(attributes));
    }
    out.raw(&record.unknown);
    out.0
}

struct FacetReader<'a, L> {
    input: Reader<'a>,
    dictionary: &'a L,
    uid: Uid,
}

impl<L: Lookup> FacetReader<'_, L> {
    fn near(&mut self) -> Result<u64, DecodeError> {
        Ok(base(self.uid).wrapping_add(self.input.signed()?.cast_unsigned()))
    }

    fn version(&mut self) -> Result<Version, DecodeError> {
        let replica = self.dictionary.replica(self.input.small()?).ok_or(DecodeError::Dictionary("replica id"))?;
        Ok(Version { replica, sequence: Sequence(self.near()?) })
    }

    fn time(&mut self) -> Result<Time, DecodeError> {
        Ok(Time { clock: Hlc(self.near()?), change: self.version()?, resolutions: self.input.small()? })
    }

    fn knowledge(&mut self) -> Result<Knowledge, DecodeError> {
        let count = self.input.number()?;
        if count > KNOWLEDGE_ENTRIES_MAX as u64 {
            return Err(DecodeError::Range("a causal map"));
        }
        (0..count).map(|_| self.version().map(|v| (v.replica, v.sequence))).collect()
    }

    fn flags(&mut self, known: u8) -> Result<u8, DecodeError> {
        match self.input.array::<1>()? {
            [flags] if flags & !known == 0 => Ok(flags),
            _ => Err(DecodeError::Range("flags")),
        }
    }

    fn head(&mut self) -> Result<Written, DecodeError> {
        let flags = self.flags(0x1f)?;
        let version = if flags & 1 == 0 { self.version()? } else { self.uid.0 };
        let clock = Hlc(self.near()?);
        let change = if flags & 2 == 0 { self.version()? } else { version };
        let resolutions = if flags & 16 == 0 { 0 } else { self.input.small()? };
        let history = if flags & 4 == 0 { self.knowledge()? } else { Knowledge::of(version) };
        if !history.covers(version) {
            return Err(DecodeError::Range("a history"));
        }
        Ok(Written { version, time: Time { clock, change, resolutions }, history, merged: flags & 8 != 0 })
    }

    fn placement(&mut self) -> Result<PlacementFacet, DecodeError> {
        let written = self.head()?;
        let flags = self.flags(0x0f)?;
        let parent = Uid(self.version()?);
        let name = Name::new(self.input.bytes(crate::NAME_BYTES_MAX, "a name")?)?;
        let seen = if flags & 4 == 0 { Knowledge::default() } else { self.knowledge()? };
        let author = if flags & 8 == 0 { &[][..] } else { self.input.bytes(64, "an author")? };
        let author = std::str::from_utf8(author).map_err(|_| DecodeError::Text("an author"))?.into();
        let value = Placement { parent, name, directory: flags & 1 != 0, deleted: flags & 2 != 0, author };
        self.input.end()?;
        Ok(PlacementFacet { value, written, seen })
    }

    fn content(&mut self) -> Result<ContentFacet, DecodeError> {
        let written = self.head()?;
        let flags = self.flags(0x07)?;
        let bytes =
            if flags & 4 == 0 { written.stamp() } else { Stamp { time: self.time()?, version: self.version()? } };
        let mtime = self.input.timestamp()?;
        let birth = if flags & 2 == 0 { None } else { Some(self.input.timestamp()?) };
        let value = if flags & 1 == 0 {
            let size = self.input.number()?;
            if size > i64::MAX as u64 {
                return Err(DecodeError::Range("a size"));
            }
            Content::File { size, hash: self.input.array()? }
        } else {
            let target = self.input.bytes(TARGET_BYTES_MAX, "a link target")?;
            if target.is_empty() || target.contains(&0) {
                return Err(DecodeError::Range("a link target"));
            }
            Content::Symlink { target: target.into() }
        };
        self.input.end()?;
        Ok(ContentFacet { value, mtime, birth, written, bytes })
    }

    fn attributes(&mut self) -> Result<AttributesFacet, DecodeError> {
        let written = self.head()?;
        let flags = self.flags(0x01)?;
        let value =
            self.dictionary.attributes(self.input.small()?).ok_or(DecodeError::Dictionary("attribute value"))?;
        let directory_mtime = if flags & 1 == 0 { None } else { Some(self.input.timestamp()?) };
        self.input.end()?;
        Ok(AttributesFacet { value, directory_mtime, written })
    }
}

/// Decodes one record, which must fill `bytes`.
///
/// # Errors
/// [`DecodeError`] for anything that [`encode_record`] would not have written: a limit passed, a forbidden name, a
/// directory with content, a file without, fields out of order.
pub fn decode_record<L: Lookup>(bytes: &[u8], dictionary: &L) -> Result<Record, DecodeError> {
    if bytes.len() > RECORD_BYTES_MAX {
        return Err(DecodeError::Range("a record"));
    }
    let mut input = Reader(bytes);
    let (mut last, mut uid, mut placement, mut content, mut attributes) = (0, None, None, None, None);
    let mut unknown: &[u8] = &[];
    while !input.0.is_empty() {
        let start = input.0;
        let number = input.number()?;
        if number <= last {
            return Err(DecodeError::Field("after the last one"));
        }
        last = number;
        let body = input.bytes(RECORD_BYTES_MAX, "a field")?;
        let reader = |uid: Option<Uid>| {
            let uid = uid.ok_or(DecodeError::Field("UID"))?;
            Ok::<_, DecodeError>(FacetReader { input: Reader(body), dictionary, uid })
        };
        match number {
            1 => {
                let mut body = Reader(body);
                let replica = dictionary.replica(body.small()?).ok_or(DecodeError::Dictionary("replica id"))?;
                let sequence = Sequence(body.number()?);
                body.end()?;
                uid = Some(Uid(Version { replica, sequence })).filter(|&u| u != Uid::ROOT);
            }
            2 => placement = Some(reader(uid)?.placement()?),
            3 => content = Some(reader(uid)?.content()?),
            4 => attributes = Some(reader(uid)?.attributes()?),
            0..16 => return Err(DecodeError::Field("below 16")),
            _ => {
                unknown = start;
                while !input.0.is_empty() {
                    let number = input.number()?;
                    if number <= last {
                        return Err(DecodeError::Field("after the last one"));
                    }
                    last = number;
                    input.bytes(RECORD_BYTES_MAX, "a field")?;
                }
            }
        }
    }
    let uid = uid.ok_or(DecodeError::Field("UID"))?;
    let placement = placement.ok_or(DecodeError::Field("placement"))?;
    if placement.value.directory == content.is_some() {
        return Err(DecodeError::Field("content"));
    }
    if placement.value.parent == uid {
        return Err(DecodeError::Range("a parent"));
    }
    Ok(Record { uid, placement, content, attributes, unknown: unknown.into() })
}

fn encode_owner(out: &mut Writer, owner: &Owner) {
    out.number(owner.number.into());
    out.bytes(owner.name.as_deref().unwrap_or("").as_bytes());
}

fn decode_owner(input: &mut Reader<'_>) -> Result<Owner, DecodeError> {
    let number = input.small()?;
    let name = std::str::from_utf8(input.bytes(255, "an owner's name")?).map_err(|_| DecodeError::Text("an owner"))?;
    Ok(Owner { number, name: Some(name).filter(|n| !n.is_empty()).map(Into::into) })
}

/// Encodes an attribute value: mode, owner, group, count of xattrs, then name and value of each, ascending.
#[must_use]
pub fn encode_attributes(value: &Attributes) -> Vec<u8> {
    let mut out = Writer::default();
    out.number(value.mode.into());
    encode_owner(&mut out, &value.owner);
    encode_owner(&mut out, &value.group);
    out.number(value.xattrs.len() as u64);
    for (name, bytes) in &value.xattrs {
        out.bytes(name);
        out.bytes(bytes);
    }
    out.0
}

/// Decodes an attribute value, which must fill `bytes`.
///
/// # Errors
/// [`DecodeError`]: limits, names of xattrs out of order or with NUL, a mode above `0o7777`.
pub fn decode_attributes(bytes: &[u8]) -> Result<Attributes, DecodeError> {
    let mut input = Reader(bytes);
    let mode = input.small()?;
    if mode > 0o7777 {
        return Err(DecodeError::Range("a mode"));
    }
    let (owner, group) = (decode_owner(&mut input)?, decode_owner(&mut input)?);
    let (count, mut total) = (input.number()?, 0);
    let mut xattrs: BTreeMap<Box<[u8]>, Box<[u8]>> = BTreeMap::new();
    for _ in 0..count {
        let name = input.bytes(255, "an xattr's name")?;
        let value = input.bytes(XATTR_BYTES_MAX, "an xattr's value")?;
        total += name.len() + value.len();
        let ordered = xattrs.last_key_value().is_none_or(|(last, _)| **last < *name);
        if !ordered || name.is_empty() || name.contains(&0) || total > XATTR_BYTES_MAX {
            return Err(DecodeError::Range("an xattr"));
        }
        xattrs.insert(name.into(), value.into());
    }
    input.end()?;
    Ok(Attributes { mode, owner, group, xattrs })
}

#[cfg(test)]
mod tests;
