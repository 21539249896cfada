//! What a batch made or moved and could not make durable (design, section 8).
//!
//! The database takes back its note of such a batch, and the disk shows what was done. Until it has been looked at, the view
//! may go on, and what lies there would look like a user's doing; so it is written down that it is ours, also for the next
//! start.

use std::collections::BTreeMap;

use anabranch_engine::kv::{Kv, KvError, Table};
use anabranch_model::Uid;
use anabranch_volume::fs::Object;

use crate::nodes;

/// Rows of the table Meta: this, and the object; then the UID, that of the directory, each of 24 bytes, and the name.
const PREFIX: &[u8] = b"undone.";
/// Behind every key with that prefix.
const BEHIND: &[u8] = b"undone/";
/// Most that are remembered; more than a few batches fail only where the disk is broken.
const UNDONE_MAX: usize = 100_000;
const UID_BYTES: usize = 24;

/// For which UID something was put where: the UID of the directory, and the name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Put {
    pub(crate) uid: Uid,
    pub(crate) within: Uid,
    pub(crate) name: Vec<u8>,
}

/// What was done and not noted, by its object.
#[derive(Default)]
pub(crate) struct Undone {
    objects: BTreeMap<Object, Put>,
    /// Noted since, or somebody else's by now: their rows go with the next transaction.
    noted: Vec<Object>,
}

fn key(object: &Object) -> Vec<u8> {
    [PREFIX, &object.0].concat()
}

impl Undone {
    /// What was left by the last life.
    pub(crate) fn load(kv: &impl Kv) -> Result<Self, KvError> {
        let mut objects = BTreeMap::new();
        for (key, value) in kv.range(Table::Meta, PREFIX, Some(BEHIND), UNDONE_MAX)? {
            let uid = |from: usize| nodes::read_uid(value.get(from..from + UID_BYTES).unwrap_or_default());
            let name = value.get(2 * UID_BYTES..).unwrap_or_default().to_vec();
            let put = Put { uid: uid(0)?, within: uid(UID_BYTES)?, name };
            objects.insert(Object(key[PREFIX.len()..].into()), put);
        }
        Ok(Self { objects, noted: Vec::new() })
    }

    /// Remembers one. In a transaction.
    pub(crate) fn add(&mut self, kv: &mut impl Kv, object: Object, put: Put) -> Result<(), KvError> {
        if self.objects.len() >= UNDONE_MAX {
            return Ok(());
        }
        let value = [&nodes::uid_key(put.uid)[..], &nodes::uid_key(put.within), &put.name].concat();
        kv.put(Table::Meta, &key(&object), &value)?;
        self.noted.retain(|noted| *noted != object);
        self.objects.insert(object, put);
        Ok(())
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
            self.noted.push(object.clone());
        }
    }

    /// Are there rows to be removed?
    pub(crate) fn is_owed(&self) -> bool {
        !self.noted.is_empty()
    }

    /// Removes the rows of what was forgotten. In a transaction.
    pub(crate) fn settle(&mut self, kv: &mut impl Kv) -> Result<(), KvError> {
        for object in std::mem::take(&mut self.noted) {
            kv.delete(Table::Meta, &key(&object))?;
        }
        Ok(())
    }
}
