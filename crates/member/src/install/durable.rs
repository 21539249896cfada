//! A batch becomes durable before any name of it is put in place: private files, directories, intents. Where the disk refuses,
//! what was done is taken back or written down as ours (design, section 8).

use std::collections::BTreeSet;
use std::io;

use anabranch_engine::kv::Kv;
use anabranch_model::{Content, Hlc, Uid, Version};
use anabranch_volume::fs::{Fs, Object};
use anabranch_volume::walk::share_out;

use super::{Batch, Install, MadeFor, Outcome, Planned, Prepared, Ready, write_private};
use crate::events::EventKind;
use crate::fetch::private_name;
use crate::nodes::{self, Node, NodeId, ROOT_NODE, STAGING_NODE};
use crate::replica::{Replica, Result, Waiting};
use crate::steps::{Step, broken};
use crate::tables::{self, Intent, Preserved, Reason};
use crate::undone::{Given, Put};

/// So many directories are made durable one by one, where nothing else is to be: they share what it takes to write the first.
pub(super) const DIRECTORIES_EACH: usize = 64;
/// From so many private files on, the first half of them is flushed while the second one is written.
const HALVED_FROM: usize = 256;

impl<F: Fs + Sync, K: Kv> Replica<F, K>
where
    F::Dir: Send + Sync,
    F::File: Send,
{
    /// Writes the private files of a batch, on as many threads as the file system bears. What cannot be prepared waits.
    pub(super) fn prepare_batch(&mut self, batch: &mut Batch<F>) -> Result<()> {
        // Of many no descriptor is kept: a sync of everything makes them durable.
        let few = batch.planned.len() < self.config.limits.sync_all_from;
        let (mut planned, mut prepared) = (Vec::new(), Vec::with_capacity(batch.planned.len()));
        for plan in std::mem::take(&mut batch.planned) {
            match self.ready.take_written(plan.uid, &plan.facet.value) {
                Some((made_for, written, flushed)) => {
                    let as_wanted = made_for == MadeFor::of(plan.facet.mtime, plan.wanted.as_ref());
                    let finished = if as_wanted { Ok(written) } else { self.finish_anew(&plan, written) };
                    prepared.push((plan, finished, flushed && as_wanted));
                }
                None => planned.push(plan),
            }
        }
        let threads = self.fs.parallelism().min(planned.len().div_ceil(16));
        let (fs, staging, ready) = (&self.fs, &self.private.staging, &self.ready);
        let act = |plan: Planned<F>| {
            let prepared = prepare(fs, staging, &plan, ready.get(plan.uid));
            (plan, prepared.map(|prepared| prepared.keep_open(few)), false)
        };
        let mut rest = if threads > 1 && planned.len() >= HALVED_FROM {
            let rest = planned.split_off(planned.len() / 2);
            let mut prepared = share_out(planned, threads, act);
            std::thread::scope(|scope| {
                // The disk works while the rest is written. What counts is the flush at the end, and this one's error.
                let flush = scope.spawn(|| fs.sync_all());
                prepared.append(&mut share_out(rest, threads, act));
                batch.begun = flush.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()));
            });
            prepared
        } else {
            share_out(planned, threads, act)
        };
        prepared.append(&mut rest);
        for (plan, prepared, flushed) in prepared {
            match prepared {
                Ok(Prepared { private, stat, attributes, file }) => {
                    // A symlink has no descriptor by which it could be made durable alone.
                    match file.filter(|_| few) {
                        _ if flushed => {}
                        Some(file) => batch.files.push(file),
                        None => batch.unopened += 1,
                    }
                    let reason = match &plan.replaces {
                        Some(node) => self.replaced_reason(plan.uid, &plan.facet, node)?,
                        None => Reason::Overwritten,
                    };
                    batch.installs.push(Install {
                        uid: plan.uid,
                        facet: plan.facet,
                        attributes_version: plan.wanted.map_or(Version::default(), |f| f.written.version),
                        parent: plan.parent,
                        dir: plan.dir,
                        name: plan.name,
                        private,
                        prepared: stat,
                        attributes,
                        replaces: plan.replaces,
                        preserved: plan.preserved,
                        reason,
                        guard: None,
                        exchanged: false,
                        outcome: Outcome::Under,
                    });
                }
                Err(error) => {
                    if self.ready.get(plan.uid).is_none_or(|ready| !ready.has_file()) {
                        self.leave_for_later(plan.uid);
                    }
                    let why = match error.kind() {
                        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                            self.report_once(EventKind::StagingFull, error.to_string());
                            Waiting::Failed
                        }
                        _ => self.failed(plan.parent, &plan.name, &error)?,
                    };
                    self.wait(nodes::uid_key(plan.uid).to_vec(), why);
                }
            }
        }
        Ok(())
    }

    /// Finishes a private file that was written ahead for other attributes or another time than are wanted now.
    fn finish_anew(&self, plan: &Planned<F>, written: Prepared<F::File>) -> io::Result<Prepared<F::File>> {
        let Prepared { private, file, .. } = written;
        let file = match file {
            Some(file) => file,
            None => self.fs.open_private(&self.private.staging, &private)?,
        };
        let wanted = plan.wanted.as_ref().map(|facet| &facet.value);
        let (stat, attributes) =
            self.fs.finish_private(&self.private.staging, &private, &file, wanted, plan.facet.mtime)?;
        Ok(Prepared { private, stat, attributes, file: Some(file) })
    }

    /// Data of the batch, and names of the directories made and moved, become durable.
    pub(super) fn make_durable(&mut self, batch: &mut Batch<F>) -> Result<io::Result<()>> {
        if broken(Step::DataDurable) {
            return Ok(Ok(()));
        }
        let others = batch.dirs.iter().filter(|id| !batch.grown.contains(id));
        let mut seen = BTreeSet::new();
        let dirs: Vec<_> = batch.grown.iter().chain(others).copied().filter(|id| seen.insert(*id)).collect();
        let count = batch.files.len() + dirs.len() + batch.unopened;
        if let Err(error) = std::mem::replace(&mut batch.begun, Ok(())) {
            batch.files.clear();
            return Ok(Err(error));
        }
        if count == 0 {
            return Ok(Ok(()));
        }
        // By directories where nothing else is left: a sync of everything would wait for the private files of the next batch.
        let by_directories = batch.files.is_empty() && dirs.len() <= DIRECTORIES_EACH;
        let result = if batch.unopened > 0 || count >= self.config.limits.sync_all_from && !by_directories {
            self.fs.sync_all()
        } else {
            let mut result = batch.files.iter().try_for_each(|file| self.fs.sync_file(file));
            if !batch.installs.is_empty() && result.is_ok() {
                result = self.fs.sync_dir(&self.private.staging);
            }
            for id in dirs {
                if result.is_ok() {
                    result = self.sync_node_dir(id)?;
                }
            }
            result
        };
        batch.files.clear();
        Ok(result)
    }

    /// Data or names of a batch could not be made durable: the database takes back what it says of them, and all of it is
    /// done again later. What was made or moved already is found by looking at its places; it is remembered that we did that,
    /// so no version comes of it, even where the view has gone on before they can be looked at.
    pub(super) fn undo_batch(&mut self, batch: &Batch<F>, error: &io::Error) -> Result<()> {
        self.report_once(EventKind::CannotInstall, format!("cannot make a batch durable: {error}"));
        let mut after = Vec::new();
        for id in &batch.moved {
            let Some(node) = nodes::get(self.records.kv(), *id)? else { continue };
            let directory = nodes::get(self.records.kv(), node.parent)?.map(|parent| parent.object);
            after.push((self.node_uid(node.parent)?.zip(directory), node));
        }
        self.records.rollback()?;
        let mut places = Vec::new();
        self.records.begin()?;
        for (within, node) in after {
            let before = nodes::get(self.records.kv(), node.id)?;
            let elsewhere = before.as_ref().is_none_or(|b| (b.parent, &b.name) != (node.parent, &node.name));
            if let (true, Some((within, directory)), Some(uid)) = (elsewhere, within, node.uid) {
                let put = Put { uid, within, directory, name: node.name.clone() };
                self.undone.add(self.records.kv_mut(), node.object.clone(), put)?;
            }
            let changed = before.as_ref().is_some_and(|b| {
                let touched = !node.is_dir() && b.stamp.mtime != node.stamp.mtime;
                b.object == node.object && (touched || b.attributes != node.attributes)
            });
            if changed {
                let given = Given { attributes: node.attributes, mtime: node.stamp.mtime };
                self.undone.add_given(self.records.kv_mut(), node.object, given)?;
            }
            places.extend(before.map(|n| (n.parent, n.name)));
            places.push((node.parent, node.name));
        }
        self.records.commit()?;
        for (parent, name) in places {
            self.local_change(parent, &name);
        }
        self.take_up_parked()?;
        self.distrust_staging()?;
        self.waiting.clear();
        self.walk_done = false;
        self.work_from.clear();
        self.work_at = Some(Hlc(self.now.0 + self.config.limits.retry));
        Ok(())
    }

    /// Is something of this UID there that we made or moved, and of which the database took back its note? Then it is looked for.
    pub(super) fn is_unnoted(&mut self, uid: Uid) -> Result<bool> {
        let Some((object, put)) = self.undone.of(uid) else { return Ok(false) };
        let within = match put.within {
            Uid::ROOT => Some(ROOT_NODE),
            above => nodes::of(self.records.kv(), above)?.map(|n| n.id),
        };
        let put = within.map(|within| (within, put.name));
        let place = match self.fs.locate(&object) {
            Ok(Some((directory, name))) if !self.is_private(&directory) && !self.is_preserved_below(&directory) => {
                self.dir_node(&directory)?.map(|parent| (parent, name)).or(put)
            }
            Err(error) if error.kind() != io::ErrorKind::Unsupported => put,
            // Where nothing can be opened by handle, only a look at its place tells.
            Err(_) if self.is_at(&object, put.as_ref())? => put,
            // Somebody removed it, or nobody can tell.
            Ok(_) | Err(_) => {
                self.undone.forget(&object);
                return Ok(false);
            }
        };
        if let Some((parent, name)) = place {
            self.local_change(parent, &name);
        }
        Ok(true)
    }

    /// Does this object lie there, as far as can be told?
    fn is_at(&mut self, object: &Object, place: Option<&(NodeId, Vec<u8>)>) -> Result<bool> {
        let Some((parent, name)) = place else { return Ok(false) };
        let Some(dir) = self.dir(*parent)? else { return Ok(true) };
        Ok(self.fs.stat(&dir, name).map_or(true, |stat| stat.is_some_and(|stat| stat.object == *object)))
    }

    fn sync_node_dir(&mut self, id: NodeId) -> Result<io::Result<()>> {
        // A directory that was removed since leaves nothing to be made durable but the entry that led to it.
        let removed = id != ROOT_NODE && nodes::get(self.records.kv(), id)?.is_none();
        Ok(match self.dir(id)? {
            Some(dir) => sync_dir(&self.fs, &dir),
            None if removed => Ok(()),
            // It cannot be opened now, or people moved it meanwhile: an error is not an absence.
            None => self.fs.sync_all(),
        })
    }

    pub(super) fn write_intents(&mut self, batch: &Batch<F>) -> Result<()> {
        if broken(Step::Intents) {
            return Ok(());
        }
        let mut intents = Vec::with_capacity(batch.installs.len());
        for install in &batch.installs {
            let hash = match &install.facet.value {
                Content::File { hash, .. } => *hash,
                Content::Symlink { target } => *blake3::hash(target).as_bytes(),
            };
            intents.push(Intent {
                uid: install.uid,
                version: install.facet.written.version,
                hash,
                parent: install.parent,
                name: install.name.clone(),
                private: install.private.clone(),
                object: install.prepared.object.clone(),
                replaces: install.replaces.as_ref().map(|n| (n.object.clone(), n.stamp)),
                preserved: install.preserved,
            });
            if let Some(node) = &install.replaces {
                let by = Some(install.facet.written.version);
                let mut item = self.manifest(install.preserved, install.reason, node, by)?;
                item.pending = true;
                tables::put_preserved(self.records.kv_mut(), &item)?;
            }
        }
        tables::put_intents(self.records.kv_mut(), &intents)?;
        for removal in &batch.removals {
            let mut item = self.manifest(removal.number, removal.reason, &removal.node, None)?;
            item.pending = true;
            tables::put_preserved(self.records.kv_mut(), &item)?;
        }
        Ok(())
    }

    pub(crate) fn manifest(
        &self,
        number: u64,
        reason: Reason,
        node: &Node,
        replaced_by: Option<Version>,
    ) -> Result<Preserved> {
        let value = node.content.as_ref().map(|c| &c.value);
        Ok(Preserved {
            number,
            reason,
            when: self.now,
            uid: node.uid,
            version: node.content.as_ref().and_then(|c| c.bytes),
            replaced_by,
            path: match node.uid.filter(|_| node.parent == STAGING_NODE) {
                Some(uid) => self.record_path(uid)?.into_bytes(),
                None => self.node_path(node.parent, &node.name)?,
            },
            size: node.stamp.size,
            hash: match value {
                Some(Content::File { hash, .. }) => Some(*hash),
                _ => None,
            },
            directory: node.is_dir(),
            pending: false,
        })
    }
}

/// Makes a directory's entries durable; with everything else where it may not be opened for that.
pub(super) fn sync_dir<F: Fs>(fs: &F, dir: &F::Dir) -> io::Result<()> {
    match fs.sync_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => fs.sync_all(),
        synced => synced,
    }
}

/// Prepares the private file, or symlink, of a plan.
fn prepare<F: Fs>(
    fs: &F,
    staging: &F::Dir,
    plan: &Planned<F>,
    ready: Option<&Ready<F::File>>,
) -> io::Result<Prepared<F::File>> {
    let private = private_name(plan.uid);
    let wanted = plan.wanted.as_ref().map(|facet| &facet.value);
    match (&plan.facet.value, ready) {
        (Content::Symlink { target }, _) => {
            match fs.remove_file(staging, &private) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            fs.create_symlink_for(staging, &private, target, &plan.dir)?;
            let attributes = match wanted {
                Some(wanted) => fs.write_attributes(staging, &private, wanted)?,
                None => fs.read_attributes(staging, &private)?,
            };
            fs.set_mtime(staging, &private, plan.facet.mtime)?;
            let stat = fs.stat(staging, &private)?.ok_or(io::ErrorKind::NotFound)?;
            Ok(Prepared { private, stat, attributes, file: None })
        }
        (Content::File { .. }, Some(Ready::Bytes { bytes, .. })) => {
            write_private(fs, staging, plan.uid, bytes, wanted, plan.facet.mtime)
        }
        (Content::File { .. }, Some(Ready::Staged { name, .. })) => {
            let file = fs.open_private(staging, name)?;
            let (stat, attributes) = fs.finish_private(staging, &private, &file, wanted, plan.facet.mtime)?;
            Ok(Prepared { private, stat, attributes, file: Some(file) })
        }
        // What was written ahead is taken up before a batch.
        (Content::File { .. }, Some(Ready::Writing { .. } | Ready::Written { .. }) | None) => {
            Err(io::ErrorKind::NotFound.into())
        }
    }
}

/// Writes bytes at or behind the end of a file; blocks of zeros become holes: sparseness is carried (design, section 5).
pub(crate) fn write_sparse<F: Fs>(fs: &F, file: &F::File, bytes: &[u8], start: u64) -> io::Result<()> {
    const BLOCK: usize = 32 * 1024;
    if bytes.len() <= BLOCK {
        return if bytes.is_empty() { Ok(()) } else { fs.write_at(file, bytes, start) };
    }
    let is_hole = |block: &[u8]| block.iter().all(|b| *b == 0);
    let mut rest = bytes;
    let mut offset = start;
    while !rest.is_empty() {
        // As far as blocks are alike, in one call.
        let hole = is_hole(rest.get(..BLOCK).unwrap_or(rest));
        let length: usize = rest.chunks(BLOCK).take_while(|block| is_hole(block) == hole).map(<[u8]>::len).sum();
        let (run, after) = rest.split_at(length);
        if !hole {
            fs.write_at(file, run, offset)?;
        } else if after.is_empty() {
            fs.set_size(file, offset + length as u64)?;
        }
        offset += length as u64;
        rest = after;
    }
    Ok(())
}
