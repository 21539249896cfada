//! Partly fetched large files, over a restart of the daemon (design, section 6: partly fetched content is kept).
//!
//! While a large file comes, a row in the database says now and then how far it has come, with the hashes of all that was
//! there at the last few of these points. Nothing is made durable for it, and nothing in it is trusted: after a start the
//! private file is read again and counts up to the last point whose hash is right, so what a power cut took, or made into
//! something else, is fetched again. The hash of the whole decides at the end in any case; where it is wrong, the file
//! begins again from nothing, and its row is gone.
//!
//! Rows of the table Staged: UID -> when noted, hash and size of the whole, object of the private file, points (length,
//! hash of so many bytes), ascending.

use std::collections::BTreeSet;
use std::io;

use anabranch_engine::kv::{Kv, Table};
use anabranch_model::codec::{DecodeError, Reader, Writer};
use anabranch_model::{Content, Hash, Hlc, Uid};
use anabranch_volume::fs::{Fs, Kind, Object};
use anabranch_volume::hash::read_into;

use crate::events::EventKind;
use crate::fetch::private_name;
use crate::install::Ready;
use crate::nodes::{read_uid, uid_key};
use crate::replica::{Replica, Result, Stop};

/// Points remembered of one file: some are older than anything that a disk keeps in memory.
const POINTS: usize = 16;
/// Private files remembered that could not be removed; the next start removes what is beyond it.
const LEFTOVERS_MAX: usize = 65_536;

/// So many bytes of a file had this hash.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Point {
    pub(crate) length: u64,
    pub(crate) hash: Hash,
}

/// What was fetched of one content into its private file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Partial {
    when: Hlc,
    pub(crate) hash: Hash,
    pub(crate) size: u64,
    object: Object,
    points: Vec<Point>,
}

impl Partial {
    /// Bytes that may be there.
    pub(crate) fn received(&self) -> u64 {
        self.points.last().map_or(0, |p| p.length)
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.number(self.when.0);
        out.raw(&self.hash);
        out.number(self.size);
        out.bytes(&self.object.0);
        for point in &self.points {
            out.number(point.length);
            out.raw(&point.hash);
        }
        out.0
    }

    fn decode(bytes: &[u8]) -> std::result::Result<Self, DecodeError> {
        let mut input = Reader(bytes);
        let when = Hlc(input.number()?);
        let hash = input.array()?;
        let size = input.number()?;
        let object = Object(input.bytes(255, "an object")?.into());
        let mut points = Vec::new();
        let mut before = 0;
        while !input.0.is_empty() {
            let point = Point { length: input.number()?, hash: input.array()? };
            if point.length <= before || point.length > size {
                return Err(DecodeError::Range("a length"));
            }
            before = point.length;
            points.push(point);
        }
        Ok(Self { when, hash, size, object, points })
    }
}

/// A large file on its way: its private file, the hash of what was received, and the points noted of it.
pub(crate) struct Incoming<File> {
    pub(crate) file: File,
    pub(crate) hasher: Box<blake3::Hasher>,
    pub(crate) points: Vec<Point>,
    /// A part of it was received before the last start.
    pub(crate) resumed: bool,
}

impl<File> Incoming<File> {
    pub(crate) fn new(file: File) -> Self {
        Self { file, hasher: Box::default(), points: Vec::new(), resumed: false }
    }

    /// Bytes that the database knows of.
    pub(crate) fn noted(&self) -> u64 {
        self.points.last().map_or(0, |p| p.length)
    }
}

impl<F: Fs + Sync, K: Kv> Replica<F, K>
where
    F::Dir: Send + Sync,
    F::File: Send,
{
    /// At the start: which private files may go on. All others, and rows without a file, are removed.
    pub(crate) fn clear_staging(&mut self) -> Result<()> {
        let failed = |source| Stop::Private { path: "staging".into(), source };
        let staging = self.private.staging.clone();
        self.records.begin()?;
        let mut keep = BTreeSet::new();
        for (key, row) in self.records.kv().range(Table::Staged, &[], None, usize::MAX)? {
            let uid = read_uid(&key)?;
            let content = self.records.record(uid)?.and_then(|r| r.content).map(|f| f.value);
            let outstanding = self.records.kv().get(Table::Todo, &uid_key(uid))?.is_some();
            let name = private_name(uid);
            // A row that cannot be read is as good as none.
            let partial = Partial::decode(&row).ok().filter(|partial| {
                outstanding && content == Some(Content::File { size: partial.size, hash: partial.hash })
            });
            let there = self.fs.stat(&staging, &name).map_err(failed)?.filter(|s| s.kind == Kind::File);
            match partial.filter(|p| there.is_some_and(|s| s.object == p.object)) {
                Some(partial) => {
                    self.fetching.kept.insert(uid, partial);
                    self.fetching.noted.insert(uid);
                    keep.insert(name);
                    // Before all others: what is here counts towards the quota.
                    self.due_now(uid);
                }
                None => self.records.kv_mut().delete(Table::Staged, &key)?,
            }
        }
        // None of the others is in the tree, and all of them can be had again.
        for entry in self.fs.list(&staging).map_err(failed)? {
            if entry.name.starts_with(b"f-") && !keep.contains(&entry.name) {
                self.fs.remove_file(&staging, &entry.name).map_err(failed)?;
            }
        }
        self.records.commit()?;
        Ok(())
    }

    /// What was kept of a content, as far as it is still what it was: the file and how long it is. `None`: begin anew.
    /// In a transaction.
    pub(crate) fn go_on_with(&mut self, uid: Uid, hash: &Hash) -> Result<Option<(Incoming<F::File>, u64)>> {
        let Some(partial) = self.fetching.kept.remove(&uid).filter(|p| p.hash == *hash) else { return Ok(None) };
        let read = self.read_again(uid, &partial);
        match read {
            Ok((incoming, length)) if length > 0 => {
                self.counters.resumed += length;
                return Ok(Some((incoming, length)));
            }
            Ok(_) => {}
            Err(error) => tracing::info!(%uid, %error, "what was fetched before the start cannot be used"),
        }
        self.drop_partial(uid)?;
        Ok(None)
    }

    /// All of a content was here before the start, and waited for its install. In a transaction.
    pub(crate) fn kept_whole(&mut self, uid: Uid, size: u64, hash: &Hash) -> Result<Option<Ready<F::File>>> {
        let kept = self.fetching.kept.get(&uid);
        if !kept.is_some_and(|p| p.hash == *hash && p.size == size && p.received() == size) {
            return Ok(None);
        }
        match self.go_on_with(uid, hash)? {
            Some((incoming, length)) if length == size && incoming.hasher.finalize() == *hash => {
                Ok(Some(Ready::Staged { name: private_name(uid), size, hash: *hash }))
            }
            _ => {
                self.drop_partial(uid)?;
                Ok(None)
            }
        }
    }

    fn read_again(&self, uid: Uid, partial: &Partial) -> io::Result<(Incoming<F::File>, u64)> {
        let file = self.fs.open_private(&self.private.staging, &private_name(uid))?;
        let mut incoming = Incoming { resumed: true, ..Incoming::new(file) };
        // A second name would be somebody's who found it while it was in the tree for a moment.
        let stat = self.fs.stat_file(&incoming.file)?;
        if stat.object != partial.object || stat.links != 1 {
            return Ok((incoming, 0));
        }
        let mut length = 0;
        for point in &partial.points {
            let mut hasher = incoming.hasher.clone();
            if !read_into(&self.fs, &incoming.file, &mut hasher, length, point.length)?
                || *hasher.finalize().as_bytes() != point.hash
            {
                break;
            }
            incoming.hasher = hasher;
            incoming.points.push(point.clone());
            length = point.length;
        }
        // Nothing may lie behind it: what comes leaves out blocks of zeros.
        self.fs.set_size(&incoming.file, length)?;
        Ok((incoming, length))
    }

    /// Notes how far all large files have come. With `all`, those that are complete too, and however little is new.
    pub(crate) fn note_partials(&mut self, all: bool) -> Result<()> {
        self.fetching.note_at = None;
        let least = if all { 1 } else { self.config.limits.note_bytes };
        let mut rows = Vec::new();
        for (uid, wanted) in self.fetching.incoming() {
            let Some(incoming) = &mut wanted.file else { continue };
            if wanted.received < incoming.noted() + least {
                continue;
            }
            let Ok(stat) = self.fs.stat_file(&incoming.file) else { continue };
            if incoming.points.len() >= POINTS {
                incoming.points.remove(0);
            }
            incoming.points.push(Point { length: wanted.received, hash: *incoming.hasher.finalize().as_bytes() });
            let (hash, size, points) = (wanted.hash, wanted.size, incoming.points.clone());
            rows.push((*uid, Partial { when: self.now, hash, size, object: stat.object, points }));
        }
        for (uid, size, hash) in self.ready.staged().filter(|_| all) {
            if let Ok(Some(stat)) = self.fs.stat(&self.private.staging, &private_name(uid)) {
                let points = vec![Point { length: size, hash }];
                rows.push((uid, Partial { when: self.now, hash, size, object: stat.object, points }));
            }
        }
        if rows.is_empty() {
            return Ok(());
        }
        self.records.begin()?;
        for (uid, partial) in rows {
            self.records.kv_mut().put(Table::Staged, &uid_key(uid), &partial.encode())?;
            self.fetching.noted.insert(uid);
        }
        self.records.commit()?;
        Ok(())
    }

    /// A content is no longer fetched: what was fetched of it goes, and so does its row. In a transaction.
    pub(crate) fn stop_fetching(&mut self, uid: Uid) -> Result<()> {
        let begun = self.fetching.forget(uid);
        if begun || self.fetching.kept.contains_key(&uid) {
            self.drop_partial(uid)?;
        }
        Ok(())
    }

    /// Removes a private file that is not complete, and its row. In a transaction.
    pub(crate) fn drop_partial(&mut self, uid: Uid) -> Result<()> {
        self.drop_private(uid);
        self.drop_note(uid)
    }

    /// Removes a private file; one that cannot be removed is tried again with the next batch.
    pub(crate) fn drop_private(&mut self, uid: Uid) {
        if let Err(error) = self.fs.remove_file(&self.private.staging, &private_name(uid))
            && error.kind() != io::ErrorKind::NotFound
        {
            self.leave_for_later(uid);
            self.report_once(EventKind::CannotInstall, format!("cannot remove a private file: {error}"));
        }
    }

    /// A private file is nobody's any more and may still be there. (What is forgotten here leaves with the next start.)
    pub(crate) fn leave_for_later(&mut self, uid: Uid) {
        if self.leftovers.len() < LEFTOVERS_MAX {
            self.leftovers.insert(uid);
        }
        let retry = Hlc(self.now.0 + self.config.limits.retry);
        self.work_at = Some(self.work_at.map_or(retry, |at| at.min(retry)));
    }

    /// Removes private files that are nobody's. Before a batch: then there are none but those that are fetched or staged.
    pub(crate) fn remove_leftovers(&mut self) {
        for uid in std::mem::take(&mut self.leftovers) {
            let staged = self.ready.get(uid).is_some_and(Ready::has_file);
            if staged || self.fetching.wants_any(uid) || self.fetching.kept.contains_key(&uid) {
                // Its name is in use again. Whether that takes the file along is seen when it is not any more.
                self.leftovers.insert(uid);
            } else {
                self.drop_private(uid);
            }
        }
    }

    /// Removes the row of a private file that is complete, installed or gone. In a transaction.
    pub(crate) fn drop_note(&mut self, uid: Uid) -> Result<()> {
        self.fetching.kept.remove(&uid);
        if self.fetching.noted.remove(&uid) {
            self.records.kv_mut().delete(Table::Staged, &uid_key(uid))?;
        }
        Ok(())
    }

    /// Something could not be made durable: what lies in staging may be lost though it can still be read, and later calls
    /// would not say so. It is fetched again. What users wrote and is not recorded yet may be lost as well. Not in a transaction.
    pub(crate) fn distrust_staging(&mut self) -> Result<()> {
        self.records.begin()?;
        self.unsynced.sync_failed(self.records.kv_mut(), self.now)?;
        self.records.commit()?;
        let fetched: Vec<Uid> = self.fetching.incoming().map(|(uid, _)| *uid).collect();
        self.take_up_written();
        let ready: Vec<Uid> = self.ready.in_files().collect();
        let kept: Vec<Uid> = self.fetching.kept.keys().copied().collect();
        let all: BTreeSet<Uid> = fetched.iter().chain(&ready).chain(&kept).copied().collect();
        if all.is_empty() {
            return Ok(());
        }
        tracing::warn!(files = all.len(), "what lies in staging is fetched again");
        self.records.begin()?;
        for uid in fetched {
            self.begin_again(uid);
        }
        for uid in ready {
            self.ready.remove(uid);
            self.due_now(uid);
        }
        for uid in all {
            self.drop_partial(uid)?;
        }
        self.records.commit()?;
        Ok(())
    }

    /// As [`Self::distrust_staging`], where the replica stops: the next start removes the files. Takes the transaction
    /// under way back.
    pub(crate) fn forget_staged(&mut self) -> Result<()> {
        self.records.rollback()?;
        self.records.begin()?;
        self.unsynced.sync_failed(self.records.kv_mut(), self.now)?;
        for (key, _) in self.records.kv().range(Table::Staged, &[], None, usize::MAX)? {
            self.records.kv_mut().delete(Table::Staged, &key)?;
        }
        self.records.commit()?;
        Ok(())
    }

    /// What was kept and is not gone on with yet leaves, the oldest first, until the rest and `size` more bytes fit into
    /// the lower watermark of the staging quota (design, section 7). In a transaction.
    pub(crate) fn make_room_in_staging(&mut self, uid: Uid, size: u64) -> Result<()> {
        let quota = self.config.limits.staging_bytes;
        if self.staged_bytes(uid) + size <= quota / 10 * 9 {
            return Ok(());
        }
        while self.staged_bytes(uid) + size > quota / 10 * 6 && self.drop_oldest_kept(uid)? {}
        Ok(())
    }

    /// Bytes that are missing on the disk for a content, after what was kept of others has left for it. In a transaction.
    pub(crate) fn room_missing_for(&mut self, uid: Uid, size: u64) -> Result<u64> {
        let here = self.fetching.kept.get(&uid).map_or(0, Partial::received);
        loop {
            let missing = self.room_missing(size.saturating_sub(here));
            if missing == 0 || !self.drop_oldest_kept(uid)? {
                return Ok(missing);
            }
        }
    }

    /// `false`: nothing was kept, but for that UID.
    fn drop_oldest_kept(&mut self, but: Uid) -> Result<bool> {
        let others = self.fetching.kept.iter().filter(|(uid, _)| **uid != but);
        let Some(oldest) = others.min_by_key(|(_, partial)| partial.when).map(|(uid, _)| *uid) else {
            return Ok(false);
        };
        self.drop_partial(oldest)?;
        Ok(true)
    }

    /// Bytes of large files that are on their way: received, and of these those that would outlive the daemon.
    #[must_use]
    pub fn partly_fetched(&self) -> (u64, u64) {
        let kept: u64 = self.fetching.kept.values().map(Partial::received).sum();
        let mut sums = (kept, kept);
        for wanted in self.fetching.wanted() {
            if let Some(incoming) = &wanted.file {
                sums.0 += wanted.received;
                sums.1 += incoming.noted();
            }
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_comes_back_as_it_was_and_never_claims_more_than_the_file() {
        let partial = Partial {
            when: Hlc(5),
            hash: [1; 32],
            size: 100,
            object: Object([9; 20].into()),
            points: vec![Point { length: 10, hash: [2; 32] }, Point { length: 100, hash: [3; 32] }],
        };
        let bytes = partial.encode();
        assert_eq!(Partial::decode(&bytes).unwrap(), partial);
        assert_eq!(partial.received(), 100);
        for cut in 0..bytes.len() {
            // Cut between two points it is a row that knows less.
            if let Ok(less) = Partial::decode(&bytes[..cut]) {
                assert!(less.received() < 100, "cut at {cut}");
            }
        }
        let beyond = Partial { points: vec![Point { length: 101, hash: [2; 32] }], ..partial.clone() };
        assert!(Partial::decode(&beyond.encode()).is_err());
        let mut back = partial;
        back.points.swap(0, 1);
        assert!(Partial::decode(&back.encode()).is_err());
    }
}
