//! What the view shows: questions only.

use anabranch_model::{Name, Record, Uid, fold};

use crate::keys;
use crate::kv::{Kv, KvError, Table, after_prefix};
use crate::records::{Policy, Records};
use crate::rules::live_by_record;
use crate::view::{Place, derived_slot, shown_slot, slot_name_of};

/// Rows read at a time.
const CHUNK: usize = 256;

/// Where the view shows something.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shown {
    /// The directory in which it is shown.
    pub parent: Uid,
    /// The name under which it is shown.
    pub name: Name,
    /// A directory.
    pub directory: bool,
}

impl<K: Kv> Records<K> {
    /// Where a UID is shown; `None` if it is not: deleted, merged into another directory, or without its name (policy
    /// [`Policy::Preserve`]).
    ///
    /// # Errors
    /// [`KvError`]; the same holds for every question here.
    pub fn shown(&self, uid: Uid) -> Result<Option<Shown>, KvError> {
        Ok(self.record_and_shown(uid)?.and_then(|(_, shown)| shown))
    }

    /// A record, and as [`Self::shown`] where it is shown: for who needs both, at the price of one.
    pub fn record_and_shown(&self, uid: Uid) -> Result<Option<(Record, Option<Shown>)>, KvError> {
        let Some(record) = self.record(uid)? else { return Ok(None) };
        let shown = self.shown_of(&record)?;
        Ok(Some((record, shown)))
    }

    fn shown_of(&self, record: &Record) -> Result<Option<Shown>, KvError> {
        let uid = record.uid;
        let (place, derived) = (Place::of(record), self.derived(uid)?);
        let lost = derived.loser.is_some();
        if !(place.live || derived.kept) || derived.merged.is_some() || lost && self.settings.policy == Policy::Preserve
        {
            return Ok(None);
        }
        let (parent, name) = Self::placed(uid, &place, &derived);
        let name = if lost { name.kept_beside(&place.author, uid) } else { name };
        Ok(Some(Shown { parent: self.representative(parent)?, name, directory: place.directory }))
    }

    /// Does the view show every live thing just where its record says, with nothing left to resolve?
    pub fn shows_records(&self) -> bool {
        self.counters.derived == 0 && self.counters.unresolved == 0
    }

    /// Is it live: not deleted, or kept by an edit that no deleter had seen, or by something live in it?
    pub fn live(&self, uid: Uid) -> Result<bool, KvError> {
        let Some(record) = self.record(uid)? else { return Ok(false) };
        Ok(live_by_record(&record) || self.derived(uid)?.kept)
    }

    /// The directory as which a live directory is shown: itself, if it is not merged into another.
    pub fn shown_as(&self, uid: Uid) -> Result<Option<Uid>, KvError> {
        if uid == Uid::ROOT {
            return Ok(Some(uid));
        }
        let Some(record) = self.record(uid)? else { return Ok(None) };
        let live = live_by_record(&record) || self.derived(uid)?.kept;
        if live && record.placement.value.directory { self.representative(uid).map(Some) } else { Ok(None) }
    }

    /// All live directories of which the directory consists that this one is shown as, that one first, the others
    /// ascending. A file, or what is not live, is alone.
    pub fn group(&self, uid: Uid) -> Result<Vec<Uid>, KvError> {
        let shown = self.representative(uid)?;
        let group = self.derived(shown)?.group;
        Ok(if group.is_empty() { vec![shown] } else { group })
    }

    /// What is shown under a name in a shown directory: also under another name that is one with it by the folder's rule.
    pub fn shown_at(&self, parent: Uid, name: &[u8]) -> Result<Option<Uid>, KvError> {
        if self.derived(parent)?.merged.is_some() {
            return Ok(None);
        }
        let (mut beside, name) = (None, fold(name, self.settings.names));
        for directory in self.group(parent)? {
            let Some(directory) = self.numbers.find_key(directory) else { continue };
            let mut from = keys::slot_name(directory, &name);
            let to = after_prefix(&from);
            loop {
                let rows = self.kv.range(Table::Slots, &from, to.as_deref(), CHUNK)?;
                for (key, flags) in &rows {
                    let Some((_, _, uid)) = keys::split_slot(key) else { continue };
                    if derived_slot(flags) {
                        beside = Some(self.numbers.uid(&uid)?);
                    } else if shown_slot(flags).is_some() {
                        return self.numbers.uid(&uid).map(Some);
                    }
                }
                match rows.last() {
                    Some((key, _)) if rows.len() == CHUNK => from = [key, &[0][..]].concat(),
                    _ => break,
                }
            }
        }
        Ok(beside)
    }

    /// What is shown in a shown directory, after the name `after`, at most `limit` of it: names, UIDs, and whether it is a
    /// directory. In the order of the names' keys (bytes, ascending), which are the names where those are compared as bytes.
    pub fn shown_children(
        &self,
        parent: Uid,
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Name, Uid, bool)>, KvError> {
        let mut out: Vec<(Vec<u8>, Name, Uid, bool)> = Vec::new();
        if self.derived(parent)?.merged.is_some() {
            return Ok(Vec::new());
        }
        let after = after.map(|name| fold(name, self.settings.names));
        for directory in self.group(parent)? {
            let Some(directory) = self.numbers.find_key(directory) else { continue };
            let mut from = match &after {
                Some(key) => after_prefix(&keys::slot_name(directory, key)).unwrap_or_default(),
                None => directory.to_vec(),
            };
            let (to, end) = (after_prefix(&directory), out.len().saturating_add(limit));
            while out.len() < end {
                let rows = self.kv.range(Table::Slots, &from, to.as_deref(), (end - out.len()).min(CHUNK) + 1)?;
                let Some((last, _)) = rows.last() else { break };
                from = [last, &[0][..]].concat();
                for (slot, value) in &rows {
                    let (Some((_, key, uid)), Some(is_directory)) = (keys::split_slot(slot), shown_slot(value)) else {
                        continue;
                    };
                    let name = slot_name_of(key, value);
                    let name = Name::new(name).map_err(|e| KvError::damaged("list a directory", e))?;
                    out.push((key.to_vec(), name, self.numbers.uid(&uid)?, is_directory));
                }
            }
            out.truncate(end);
        }
        out.sort();
        out.truncate(limit);
        Ok(out.into_iter().map(|(_, name, uid, is_directory)| (name, uid, is_directory)).collect())
    }

    /// What has the name of a live file that lost it (of the policy [`Policy::Preserve`], the file is not shown then).
    pub fn loser(&self, uid: Uid) -> Result<Option<Uid>, KvError> {
        Ok(self.derived(uid)?.loser)
    }
}
