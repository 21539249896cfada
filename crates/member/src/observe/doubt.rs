//! Whether what is found is anybody's doing: what a power cut or a failing disk made of a file, what a backup brought back file
//! by file, and what no stamp tells of (design, sections 5, 8 and 11).

use anabranch_engine::kv::{Kv, Table};
use anabranch_model::Hlc;
use anabranch_volume::fs::{Fs, Kind, Stat};

use super::read::has_zeros;
use super::{Batch, Modified};
use crate::nodes::{self, Node};
use crate::replica::{Replica, Result};

impl<F: Fs + Sync, K: Kv> Replica<F, K>
where
    F::Dir: Send + Sync,
    F::File: Send,
{
    /// After a power cut: what is empty, has runs of zeros, or comes from the future, is no edit (design, section 11). Nor is
    /// what a disk that failed to write made of a file: other bytes under the time that they had.
    pub(super) fn doubt(&mut self, batch: &mut Batch<F::Dir>) -> Result<()> {
        let mut doubtful = Vec::new();
        for modified in batch.modified.iter_mut().filter(|m| !m.dropped && m.stat.kind == Kind::File) {
            let Some((value, provisional)) = modified.content.clone() else { continue };
            let recorded = modified.node.content.as_ref();
            if recorded.is_none_or(|c| c.value == value || c.bytes.is_none()) {
                continue;
            }
            let known_as = self.with_what_was_given(modified.node.clone(), &modified.stat, None);
            let lost = self.is_lost(&known_as, &modified.stat, &value);
            // What was recorded since the start lay there after the power was cut: no cut made anything else of it.
            let recorded_since = recorded
                .and_then(|c| c.bytes)
                .is_some_and(|bytes| bytes.replica == self.records.replica() && bytes.sequence > self.issued_at_start);
            if lost || self.suspect && !recorded_since && self.is_torn(modified)? {
                modified.dropped = true;
                let mut candidate = crate::adopt::candidate(value, provisional);
                if let Some(known) = recorded.filter(|_| lost) {
                    // No user of this machine has seen this instead of that.
                    candidate.history.clone_from(&known.history);
                }
                doubtful.push((modified.node.clone(), modified.stat.clone(), candidate));
            }
        }
        if doubtful.is_empty() {
            return Ok(());
        }
        self.records.begin()?;
        for (old, stat, candidate) in doubtful {
            let node = Node { stamp: stat.stamp, content: Some(candidate), ..old.clone() };
            nodes::put(self.records.kv_mut(), Some(&old), &node)?;
            self.unsynced.looked_at(&node.object);
            if let Some(uid) = node.uid {
                self.records.kv_mut().put(Table::Todo, &nodes::uid_key(uid), &[])?;
                self.due.insert(nodes::uid_key(uid).to_vec());
            }
        }
        self.records.commit()?;
        self.work_at = Some(self.now);
        Ok(())
    }

    /// Is it empty, or has it runs of zeros, or does it come from the future?
    fn is_torn(&mut self, modified: &Modified) -> Result<bool> {
        let seconds = |at: Hlc| i64::try_from(at.0 / 1_000_000).unwrap_or(i64::MAX);
        let written = modified.stat.stamp.mtime.seconds;
        if self.compared_at.is_some_and(|at| (seconds(at)..=seconds(self.now)).contains(&written)) {
            return Ok(false);
        }
        Ok(modified.stat.stamp.size == 0
            || written > seconds(self.now) + 60
            || match self.open_node(modified.node.parent)? {
                Ok(Some(dir)) => has_zeros(&self.fs, &dir, &modified.node.name).unwrap_or(true),
                Ok(None) => false,
                Err(_) => true,
            })
    }

    /// Is what is there a copy of what the database has there, which is nowhere any more? So it is where a backup brought a
    /// tree back file by file: nobody did anything to it.
    pub(super) fn is_copy(&self, node: &Node, stat: &Stat, scanning: bool) -> Result<bool> {
        let same = node.stamp.mtime == stat.stamp.mtime && (node.is_dir() || node.stamp.size == stat.stamp.size);
        // What is made and removed in a directory moves its time. Whoever made it anew while we were away put something into it,
        // or it is nothing to keep.
        let continued = scanning && node.is_dir();
        let alike = node.kind == stat.kind && node.object != stat.object && (same || continued);
        Ok(alike
            && nodes::by_object(self.records.kv(), &stat.object)?.is_empty()
            && matches!(self.fs.locate(&node.object), Ok(None)))
    }

    /// Notes the objects of copies.
    pub(super) fn take_copies(&mut self, batch: &mut Batch<F::Dir>) -> Result<()> {
        if batch.copies.is_empty() {
            return Ok(());
        }
        self.records.begin()?;
        for copy in std::mem::take(&mut batch.copies) {
            let Some(old) = nodes::get(self.records.kv(), copy.id)? else { continue };
            nodes::put(self.records.kv_mut(), Some(&old), &Node { object: copy.object, ..old.clone() })?;
            if copy.kind == Kind::Directory {
                // What lies in it could not be looked at as what it is.
                self.scan.at_last(copy.id);
                self.scanning |= batch.scanning;
            }
        }
        Ok(self.records.commit()?)
    }

    /// Something happened to an entry, and its stamp is as the database has it: somebody may have set an xattr or an ACL in
    /// the very tick of the clock in which we wrote it.
    pub(super) fn differs_unseen(&self, dir: &F::Dir, stat: &Stat, node: &Node) -> bool {
        // What is made in a directory moves all of its stamp, and counts for itself.
        let same = match node.is_dir() {
            true => stat.stamp.ctime == node.stamp.ctime,
            false => stat.stamp == node.stamp,
        };
        same && stat.object == node.object
            && !stat.foreign
            && self.fs.has_attributes(dir, &node.name, stat, &node.attributes).is_ok_and(|has| !has)
    }
}
