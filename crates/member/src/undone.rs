//! What a batch made, moved or changed in place and could not make durable (design, section 8).
//!
//! The database takes back its note of such a batch, and the disk shows what was done. Until it has been looked at, the view
//! may go on, and what lies there would look like a user's doing; so it is written down that it is ours, also for the next
//! start.

use std::collections::BTreeMap;

use anabranch_engine::kv::{Kv, KvError, Table, after_prefix};
use anabranch_model::codec::{DecodeError, Reader, Writer, decode_attributes, encode_attributes};
use anabranch_model::{Attributes, Timestamp, Uid};
use anabranch_volume::fs::Object;

use crate::nodes;

/// Rows of the table Meta: this, and the object; then the UID, that of the directory, each of 24 bytes, the object of the
/// directory behind its length, and the name.
const PREFIX: &[u8] = b"put.";
/// Rows of the table Meta: this, and the object; then the time, and the attributes.
const GIVEN: &[u8] = b"given.";
/// Most that are remembered; more than a few batches fail only where the disk is broken.
const UNDONE_MAX: usize = 100_000;
const UID_BYTES: usize = 24;

/// For which UID something was put where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Put {
    pub(crate) uid: Uid,
    /// The UID of the directory, as it was by then: the database may have taken that back as well.
    pub(crate) within: Uid,
    /// The directory itself.
    pub(crate) directory: Object,
    pub(crate) name: Vec<u8>,
}

impl Put {
    fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.raw(&nodes::uid_key(self.uid));
        out.raw(&nodes::uid_key(self.within));
        out.bytes(&self.directory.0);
        out.raw(&self.name);
        out.0
    }

    fn decode(bytes: &[u8]) -> Result<Self, KvError> {
        let damaged = |error: DecodeError| KvError::damaged("read what was put somewhere", error);
        let mut input = Reader(bytes);
        let uid = nodes::read_uid(&input.array::<UID_BYTES>().map_err(damaged)?)?;
        let within = nodes::read_uid(&input.array::<UID_BYTES>().map_err(damaged)?)?;
        let directory = Object(input.bytes(255, "an object").map_err(damaged)?.into());
        Ok(Self { uid, within, directory, name: input.0.to_vec() })
    }
}

/// What something was given where it lies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Given {
    pub(crate) attributes: Attributes,
    pub(crate) mtime: Timestamp,
}

impl Given {
    fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.timestamp(self.mtime);
        out.raw(&encode_attributes(&self.attributes));
        out.0
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut input = Reader(bytes);
        Ok(Self { mtime: input.timestamp()?, attributes: decode_attributes(input.0)? })
    }
}

/// What is known of attributes, with those parts of what we gave that are there `now`: only what differs from that is a user's.
pub(crate) fn known_with(known: &Attributes, given: &Attributes, now: &Attributes) -> Attributes {
    let mut out = known.clone();
    if now.mode == given.mode {
        out.mode = given.mode;
    }
    if now.owner == given.owner {
        out.owner = given.owner.clone();
    }
    if now.group == given.group {
        out.group = given.group.clone();
    }
    for name in known.xattrs.keys().chain(given.xattrs.keys()) {
        match (now.xattrs.get(name), given.xattrs.get(name)) {
            (None, None) => drop(out.xattrs.remove(name)),
            (Some(there), Some(ours)) if there == ours => drop(out.xattrs.insert(name.clone(), ours.clone())),
            _ => {}
        }
    }
    out
}

/// What was done and not noted, by its object.
#[derive(Default)]
pub(crate) struct Undone {
    objects: BTreeMap<Object, Put>,
    given: BTreeMap<Object, Given>,
    /// Rows of what is noted since, or somebody else's by now: they go with the next transaction.
    noted: Vec<Vec<u8>>,
}

fn key(prefix: &[u8], object: &Object) -> Vec<u8> {
    [prefix, &object.0].concat()
}

impl Undone {
    /// What was left by the last life.
    pub(crate) fn load(kv: &impl Kv) -> Result<Self, KvError> {
        let mut objects = BTreeMap::new();
        for (key, value) in kv.range(Table::Meta, PREFIX, after_prefix(PREFIX).as_deref(), UNDONE_MAX)? {
            objects.insert(Object(key[PREFIX.len()..].into()), Put::decode(&value)?);
        }
        let mut given = BTreeMap::new();
        for (key, value) in kv.range(Table::Meta, GIVEN, after_prefix(GIVEN).as_deref(), UNDONE_MAX)? {
            let row = Given::decode(&value).map_err(|error| KvError::damaged("read what was given", error))?;
            given.insert(Object(key[GIVEN.len()..].into()), row);
        }
        Ok(Self { objects, given, noted: Vec::new() })
    }

    /// Remembers one. In a transaction.
    pub(crate) fn add(&mut self, kv: &mut impl Kv, object: Object, put: Put) -> Result<(), KvError> {
        if self.objects.len() >= UNDONE_MAX {
            return Ok(());
        }
        let key = key(PREFIX, &object);
        kv.put(Table::Meta, &key, &put.encode())?;
        self.noted.retain(|noted| *noted != key);
        self.objects.insert(object, put);
        Ok(())
    }

    /// Remembers what something was given where it lies. In a transaction.
    pub(crate) fn add_given(&mut self, kv: &mut impl Kv, object: Object, given: Given) -> Result<(), KvError> {
        if self.given.len() >= UNDONE_MAX {
            return Ok(());
        }
        let key = key(GIVEN, &object);
        kv.put(Table::Meta, &key, &given.encode())?;
        self.noted.retain(|noted| *noted != key);
        self.given.insert(object, given);
        Ok(())
    }

    pub(crate) fn given(&self, object: &Object) -> Option<&Given> {
        self.given.get(object)
    }

    /// It has been looked at since.
    pub(crate) fn forget_given(&mut self, object: &Object) {
        if self.given.remove(object).is_some() {
            self.noted.push(key(GIVEN, object));
        }
    }

    pub(crate) fn get(&self, object: &Object) -> Option<&Put> {
        self.objects.get(object)
    }

    /// That of this UID.
    pub(crate) fn of(&self, uid: Uid) -> Option<(Object, Put)> {
        self.objects.iter().find(|(_, put)| put.uid == uid).map(|(object, put)| (object.clone(), put.clone()))
    }

    /// It is noted, or where it is now is not our doing.
    pub(crate) fn forget(&mut self, object: &Object) {
        if self.objects.remove(object).is_some() {
            self.noted.push(key(PREFIX, object));
        }
    }

    /// Are there rows to be removed?
    pub(crate) fn is_owed(&self) -> bool {
        !self.noted.is_empty()
    }

    /// Removes the rows of what was forgotten. In a transaction.
    pub(crate) fn settle(&mut self, kv: &mut impl Kv) -> Result<(), KvError> {
        for key in std::mem::take(&mut self.noted) {
            kv.delete(Table::Meta, &key)?;
        }
        Ok(())
    }
}
