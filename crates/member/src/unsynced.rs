//! Files for which a sync failed (design, section 8): what was to be written may be on no disk, the next sync says that all is
//! well, and what comes back when the kernel reads the file anew was done by no user.
//!
//! It is written down, so that a daemon that is started anew knows it, too. The kernel's cache does not outlive the machine:
//! a file that has been looked at after another boot is what the disk has, and is forgotten here.

use std::collections::BTreeMap;

use anabranch_engine::kv::{Kv, KvError, Table, after_prefix};
use anabranch_model::Hlc;
use anabranch_volume::fs::Object;

use crate::nodes;

/// Rows of the table Meta: this, and the object; then the boot id under which the sync failed.
const PREFIX: &[u8] = b"unsynced.";
/// A row of the table Meta: when a sync failed last, 8 bytes big-endian, and the boot id.
const FAILED: &[u8] = b"member.sync-failed";
/// Most files of which it is remembered; more only where the disk is broken.
const UNSYNCED_MAX: usize = 100_000;

/// Files for which a sync failed before what is in them was recorded.
#[derive(Default)]
pub(crate) struct Unsynced {
    boot: Vec<u8>,
    /// Whether it failed before the machine was started last.
    files: BTreeMap<Object, bool>,
    /// When a sync failed last since then, whatever it was to write.
    failed: Option<Hlc>,
    /// Rows that go with the next transaction.
    settled: Vec<Object>,
}

fn key(object: &Object) -> Vec<u8> {
    [PREFIX, &object.0].concat()
}

impl Unsynced {
    /// What was left by the last life. In a transaction.
    pub(crate) fn load(kv: &mut impl Kv, boot: &[u8]) -> Result<Self, KvError> {
        let mut out = Self { boot: boot.to_vec(), ..Self::default() };
        for (key, value) in kv.range(Table::Meta, PREFIX, after_prefix(PREFIX).as_deref(), UNSYNCED_MAX)? {
            let object = Object(key[PREFIX.len()..].into());
            let former = value != boot;
            // One that was not recorded before another boot is read from the disk when it is found.
            if former && nodes::by_object(kv, &object)?.is_empty() {
                kv.delete(Table::Meta, &key)?;
            } else {
                out.files.insert(object, former);
            }
        }
        if let Some((at, failed)) = kv.get(Table::Meta, FAILED)?.as_deref().and_then(<[u8]>::split_first_chunk) {
            if failed == boot {
                out.failed = Some(Hlc(u64::from_be_bytes(*at)));
            } else {
                kv.delete(Table::Meta, FAILED)?;
            }
        }
        Ok(out)
    }

    /// A sync of this file failed, perhaps. In a transaction.
    pub(crate) fn add(&mut self, kv: &mut impl Kv, object: &Object) -> Result<(), KvError> {
        if self.files.get(object) == Some(&false) || self.files.len() >= UNSYNCED_MAX {
            return Ok(());
        }
        kv.put(Table::Meta, &key(object), &self.boot)?;
        self.settled.retain(|settled| settled != object);
        self.files.insert(object.clone(), false);
        Ok(())
    }

    /// A sync failed, and it is not known what it was to write. In a transaction.
    pub(crate) fn sync_failed(&mut self, kv: &mut impl Kv, now: Hlc) -> Result<(), KvError> {
        kv.put(Table::Meta, FAILED, &[&now.0.to_be_bytes()[..], &self.boot].concat())?;
        self.failed = Some(now);
        Ok(())
    }

    /// When a sync failed last since the machine was started.
    pub(crate) fn failed(&self) -> Option<Hlc> {
        self.failed
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    pub(crate) fn contains(&self, object: &Object) -> bool {
        self.files.contains_key(object)
    }

    /// It failed before the machine was started last: the file is read again, whatever its stamp says.
    pub(crate) fn is_former(&self, object: &Object) -> bool {
        self.files.get(object) == Some(&true)
    }

    /// The file was read, and what came of it is recorded.
    pub(crate) fn looked_at(&mut self, object: &Object) {
        if self.is_former(object) {
            self.files.remove(object);
            self.settled.push(object.clone());
        }
    }

    /// Are there rows to be removed?
    pub(crate) fn is_owed(&self) -> bool {
        !self.settled.is_empty()
    }

    /// Removes the rows of what was looked at. In a transaction.
    pub(crate) fn settle(&mut self, kv: &mut impl Kv) -> Result<(), KvError> {
        for object in std::mem::take(&mut self.settled) {
            kv.delete(Table::Meta, &key(&object))?;
        }
        Ok(())
    }
}
