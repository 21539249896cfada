//! Large files are hashed a slice at a time, so that everything else of the folder has its turn between two slices (design,
//! section 5). While one is hashed its entry is left for later; then it is looked at again, and its hash counts if it is
//! still the file that was hashed.

use std::collections::{BTreeMap, BTreeSet};

use anabranch_engine::kv::Kv;
use anabranch_model::Hash;
use anabranch_volume::fs::{Fs, Object, Stat};
use anabranch_volume::hash::{Reading, Slice};
use anabranch_volume::walk::share_out;

use crate::events::EventKind;
use crate::nodes::NodeId;
use crate::replica::{Replica, Result};

/// Hashes that are kept until their entries are looked at again. Beyond these, files are hashed once more.
const KNOWN_MAX: usize = 1024;
/// Entries that are looked at again as soon as there is a place for them; the others wait for their turn as all do that
/// are in use.
const QUEUE_MAX: usize = 1024;

/// A file cannot be recorded yet: it is being hashed, or waits for that.
pub(super) struct Later;

/// One that is being hashed.
struct Under<F: Fs> {
    reading: Reading<F>,
    /// By which entry it is found again.
    entry: Option<(NodeId, Vec<u8>)>,
}

/// One that has been hashed.
struct Known {
    stat: Stat,
    hash: Hash,
    entry: Option<(NodeId, Vec<u8>)>,
}

/// The large files of a folder.
pub(crate) struct Large<F: Fs> {
    under: Vec<Under<F>>,
    known: BTreeMap<Object, Known>,
    queue: BTreeSet<(NodeId, Vec<u8>)>,
}

impl<F: Fs> Default for Large<F> {
    fn default() -> Self {
        Self { under: Vec::new(), known: BTreeMap::new(), queue: BTreeSet::new() }
    }
}

impl<F: Fs> Large<F> {
    /// Nothing is being hashed.
    pub(crate) fn is_idle(&self) -> bool {
        self.under.is_empty()
    }

    /// Somebody who had this entry, or this file, open to write has closed it: what was read before does not count.
    pub(crate) fn closed(&mut self, entry: &(NodeId, Vec<u8>), object: Option<&Object>) {
        let same = |of: &Stat, at: &Option<(NodeId, Vec<u8>)>| Some(&of.object) == object || at.as_ref() == Some(entry);
        self.known.retain(|_, known| !same(&known.stat, &known.entry));
        for under in self.under.extract_if(.., |under| same(under.reading.stat(), &under.entry)) {
            self.queue.extend(under.entry);
        }
    }
}

impl<F: Fs + Sync, K: Kv> Replica<F, K>
where
    F::Dir: Send + Sync,
    F::File: Send,
{
    /// The hash of a large file, if it has been read; nothing of one that is read with the batch. Else it is begun.
    pub(super) fn hashed(
        &mut self,
        dir: &F::Dir,
        name: &[u8],
        stat: &Stat,
        entry: Option<(NodeId, Vec<u8>)>,
    ) -> Result<std::result::Result<Option<(Stat, Hash)>, Later>> {
        if stat.stamp.size <= self.config.limits.slice_bytes {
            return Ok(Ok(None));
        }
        // It is kept: whatever its entry waits for, the file is not read again for that.
        if let Some(known) = self.large.known.get(&stat.object).filter(|known| known.stat.stamp == stat.stamp) {
            return Ok(Ok(Some((known.stat.clone(), known.hash))));
        }
        let same = |under: &Under<F>| under.reading.stat().object == stat.object;
        if self.large.under.iter().any(same) {
            return Ok(Err(Later));
        }
        if self.large.under.len() >= self.fs.parallelism() {
            if self.large.queue.len() < QUEUE_MAX {
                self.large.queue.extend(entry);
            }
            return Ok(Err(Later));
        }
        match Reading::begin(&self.fs, dir, name, None) {
            Ok(Ok(reading)) if !reading.provisional() && reading.stat().object == stat.object => {
                self.large.under.push(Under { reading, entry });
                Ok(Err(Later))
            }
            // Where no lease stands guard nothing would tell of a write between two slices; and what cannot be read is
            // found out again, and reported, where all are.
            _ => Ok(Ok(None)),
        }
    }

    /// Hashes a slice of each large file that is under way.
    pub(crate) fn hash_large(&mut self) -> Result<()> {
        let (fs, bytes) = (&self.fs, self.config.limits.slice_bytes);
        let act = |mut under: Under<F>| {
            let slice = under.reading.go_on(fs, bytes);
            (under, slice)
        };
        let under = std::mem::take(&mut self.large.under);
        let threads = self.fs.parallelism().min(under.len());
        let mut hashed = false;
        let done = if threads > 1 { share_out(under, threads, act) } else { under.into_iter().map(act).collect() };
        for (under, slice) in done {
            match slice {
                Ok(Slice::More) => {
                    self.large.under.push(under);
                    continue;
                }
                Ok(Slice::Whole(hash)) => {
                    hashed = true;
                    if self.large.known.len() >= KNOWN_MAX {
                        self.large.known.pop_first();
                    }
                    let stat = under.reading.stat().clone();
                    self.large.known.insert(stat.object.clone(), Known { stat, hash, entry: under.entry.clone() });
                }
                // It is looked at again when its turn comes, and not at once: so it may go on for long.
                Ok(Slice::InUse) => continue,
                Err(error) => {
                    if let Some((parent, name)) = &under.entry {
                        let path = String::from_utf8_lossy(&self.node_path(*parent, name)?).into_owned();
                        self.report_once(EventKind::CannotRead, format!("{path}: {error}"));
                    }
                    continue;
                }
            }
            if let Some(entry) = under.entry {
                self.later.remove(&entry);
                self.changed.insert(entry);
            }
        }
        if hashed {
            for entry in std::mem::take(&mut self.large.queue) {
                self.later.remove(&entry);
                self.changed.insert(entry);
            }
            self.observe_at = Some(self.now);
        }
        Ok(())
    }
}
