//! When the record of something deleted may go (design, section 12).
//!
//! A tombstone may go when every replica that counts has acknowledged it. Its versions tell that, unless its maps were joined
//! since their authors wrote them: then another replica may know the same versions without having joined the same maps. Of
//! such a row the table Tombstones keeps what was known here when it last changed; who has acknowledged that has them too.
//!
//! The same row is kept of a directory that was live, though deleted, for the sake of something in it, and died with it:
//! others may have it live still, when what is in it was changed there meanwhile.
//!
//! While a row of the same UID lies aside here, the tombstone stays: the row may be of before the delete, and the upstream,
//! which has collected its own tombstone since, sends no later one. For the same reason the caller collects nothing while it waits
//! for a page.

use anabranch_model::{Knowledge, Record, Uid};

use crate::kv::{Kv, KvError, Table};
use crate::records::{Old, Records};

/// Rows read at a time.
const CHUNK: usize = 256;

impl<K: Kv> Records<K> {
    /// Counts tombstones that may go: deleted, not live, all versions acknowledged. Stops at `limit`.
    ///
    /// # Errors
    /// [`KvError`].
    pub fn collectable(&self, acknowledged_by_all: &Knowledge, limit: usize) -> Result<usize, KvError> {
        let (mut from, mut count) = (Vec::new(), 0);
        loop {
            let (found, next) = self.collectable_from(from, acknowledged_by_all)?;
            count += found.len();
            match next {
                Some(next) if count < limit => from = next,
                _ => return Ok(count.min(limit)),
            }
        }
    }

    /// Drops tombstones that may go, at most `limit`, and says how many.
    ///
    /// # Errors
    /// [`KvError`].
    pub fn collect(&mut self, acknowledged_by_all: &Knowledge, limit: usize) -> Result<usize, KvError> {
        let (mut from, mut count) = (Vec::new(), 0);
        loop {
            let (found, next) = self.collectable_from(from, acknowledged_by_all)?;
            for uid in found.into_iter().take(limit - count) {
                self.forget(uid)?;
                count += 1;
            }
            match next {
                Some(next) if count < limit => from = next,
                _ => return Ok(count),
            }
        }
    }

    /// Those among some tombstones that may go, and where the next ones are.
    fn collectable_from(
        &self,
        from: Vec<u8>,
        acknowledged: &Knowledge,
    ) -> Result<(Vec<Uid>, Option<Vec<u8>>), KvError> {
        let rows = self.kv.range(Table::Tombstones, &from, None, CHUNK)?;
        let next = rows.last().filter(|_| rows.len() == CHUNK).map(|(key, _)| [&key[..], &[0]].concat());
        let mut out = Vec::new();
        let upstreams = match self.kv.range(Table::Aside, &[], None, 1)?.is_empty() {
            true => Vec::new(),
            false => self.kv.range(Table::Cursors, &[], None, usize::MAX)?,
        };
        'rows: for (key, known) in rows {
            for (upstream, _) in &upstreams {
                if self.kv.get(Table::Aside, &[&upstream[..], &key].concat())?.is_some() {
                    continue 'rows;
                }
            }
            let uid = self.numbers.uid(&key)?;
            let covered = |record: &Record| record.versions().all(|version| acknowledged.covers(version));
            let joined = known.is_empty() || acknowledged.includes(&self.numbers.read_knowledge(&known)?);
            if joined && self.record(uid)?.as_ref().is_some_and(covered) && !self.derived(uid)?.kept {
                out.push(uid);
            }
        }
        Ok((out, next))
    }

    /// Drops a record, live or not: whoever knows its versions has no record of it, so it was deleted and collected
    /// (design, section 12). The caller preserves what it held.
    ///
    /// # Errors
    /// [`KvError`].
    pub fn forget(&mut self, uid: Uid) -> Result<(), KvError> {
        if let Some((number, old)) = self.row(uid)? {
            self.replace(uid, Some(Old::of(number, &old)), None, false)?;
            self.settle()?;
        }
        Ok(())
    }
}
