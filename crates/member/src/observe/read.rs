//! Reads what must be read of what was found, leaves for later what would be no complete set, and makes the rest durable:
//! nothing is published that a power cut could take back (design, section 5).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anabranch_engine::kv::Kv;
use anabranch_model::{Content, Hlc, Names, fold};
use anabranch_volume::fs::{Fs, Kind, Stat};
use anabranch_volume::hash::{Hashing, hash_known};

use super::large::Later;
use super::{Batch, Found, Parent};
use super::{Read, Task, Unrecorded};
use crate::beside::Beside;
use crate::events::EventKind;
use crate::nodes::{self, Node, NodeId, OnDisk, ROOT_NODE};
use crate::replica::{Replica, Result};
use crate::steps::{Step, broken};

/// The longest tick of a kernel's clock, whose beginning is what a change is stamped with, microseconds.
const TICK: i64 = 10_000;

/// The same where stamps are whole seconds.
const TICK_OF_SECONDS: i64 = 2_000_000;

/// A stamp that is further ahead than this is not of a change that was made in this call, microseconds.
const LONGEST_CALL: i64 = 60_000_000;

impl<F: Fs + Sync, K: Kv> Replica<F, K>
where
    F::Dir: Send + Sync,
    F::File: Send,
{
    /// Hashes what must be hashed, reads attributes, and makes all of it durable: nothing is published that a power cut
    /// could take back.
    pub(super) fn read_batch(&mut self, batch: &mut Batch<F::Dir>) -> Result<()> {
        let mut tasks = Vec::new();
        let mut whose = Vec::new();
        for at in 0..batch.found.len() {
            let Some(found) = batch.found.get(at).filter(|f| !f.dropped) else { continue };
            let (parent, name, kind) = (found.parent, found.name.bytes().to_vec(), found.stat.kind);
            let seen = found.stat.clone();
            // A move alone changes neither size nor mtime; the bytes are then known.
            let stamp = found.stat.stamp;
            let closed = match found.parent {
                Parent::Node(id) => self.closed.contains(&(id, name.clone())),
                Parent::Found(_) => false,
            };
            let doubted = self.suspect && written_since(&found.stat, self.checkpoint)
                || self.unsynced.is_former(&found.stat.object);
            let same_bytes = |n: &&OnDisk, node: &Node| {
                let closed = closed || self.closed.contains(&(node.parent, node.name.clone()));
                !n.provisional
                    && !closed
                    && !doubted
                    && (node.stamp.size, node.stamp.mtime) == (stamp.size, stamp.mtime)
                    && kind == Kind::File
            };
            let known = found
                .moved
                .as_ref()
                .and_then(|node| node.content.as_ref().filter(|c| same_bytes(c, node)))
                .map(|c| (c.value.clone(), false));
            let content = kind != Kind::Directory && known.is_none();
            let Some(dir) = self.found_dir(batch, parent)? else {
                self.drop_found(batch, at)?;
                continue;
            };
            let hashed = match content && kind == Kind::File {
                true => match self.hashed(&dir, &name, &seen, batch.looked_up_by(parent, &name))? {
                    Ok(hashed) => hashed,
                    Err(Later) => {
                        self.drop_found(batch, at)?;
                        continue;
                    }
                },
                false => None,
            };
            if let Some(found) = batch.found.get_mut(at) {
                found.content = known;
            }
            tasks.push(Task { size: stamp.size, dir, name, kind, content, attributes: true, seen, known: hashed });
            whose.push((true, at));
        }
        for at in 0..batch.modified.len() {
            let Some(m) = batch.modified.get(at) else { continue };
            let (parent, name, kind) = (m.node.parent, m.node.name.clone(), m.node.kind);
            let (size, content) = (m.stat.stamp.size, kind != Kind::Directory);
            let stat = m.stat.clone();
            let Some(dir) = self.dir(parent)? else {
                // What was not read must not count as compared.
                self.again_later(parent, &name);
                if let Some(m) = batch.modified.get_mut(at) {
                    m.dropped = true;
                }
                continue;
            };
            let known = match kind {
                Kind::File => match self.hashed(&dir, &name, &stat, Some((parent, name.clone())))? {
                    Ok(known) => known,
                    Err(Later) => {
                        self.again_later(parent, &name);
                        if let Some(m) = batch.modified.get_mut(at) {
                            m.dropped = true;
                        }
                        continue;
                    }
                },
                _ => None,
            };
            tasks.push(Task { size, dir, name, kind, content, attributes: true, seen: stat, known });
            whose.push((false, at));
        }
        let results = read_all(&self.fs, &self.beside, self.now, &tasks.into());
        for ((is_found, at), read) in whose.into_iter().zip(results) {
            let gone = read.stat.is_none() && read.error.is_none();
            if let Some(error) = &read.error {
                let (parent, name) = match (is_found, batch.found.get(at), batch.modified.get(at)) {
                    (true, Some(f), _) => (f.parent, f.name.bytes().to_vec()),
                    (false, _, Some(m)) => (Parent::Node(m.node.parent), m.node.name.clone()),
                    _ => continue,
                };
                if let Parent::Node(id) = parent {
                    self.cannot_read(id, &name, error)?;
                }
            }
            // Who it is was decided by what was looked at, and bytes that are known are known by its stamp: something else
            // may have taken its name since.
            let other =
                is_found
                    && batch.found.get(at).zip(read.stat.as_ref()).is_some_and(|(f, s)| {
                        s.object != f.stat.object || f.content.is_some() && s.stamp != f.stat.stamp
                    });
            let dropped = read.in_use || gone || other || read.error.is_some();
            if is_found {
                if dropped {
                    let place = batch.found.get(at).and_then(|f| batch.looked_up_by(f.parent, f.name.bytes()));
                    self.drop_found(batch, at)?;
                    if let Some((id, name)) = place.filter(|_| read.in_use) {
                        self.unsettled_for(id, &name, Unrecorded::InUse);
                    }
                } else if let Some(found) = batch.found.get_mut(at) {
                    found.content = found.content.take().or(read.content);
                    found.attributes = read.attributes.unwrap_or_default();
                    if let Some(stat) = read.stat {
                        found.stat = stat;
                    }
                }
            } else if let Some(m) = batch.modified.get_mut(at) {
                m.dropped = dropped;
                m.content = read.content;
                m.attributes = read.attributes;
                if let Some(stat) = read.stat {
                    m.stat = stat;
                }
                if dropped {
                    let (parent, name) = (m.node.parent, m.node.name.clone());
                    self.again_later(parent, &name);
                    if read.in_use {
                        self.unsettled_for(parent, &name, Unrecorded::InUse);
                    }
                }
            }
        }
        self.close_set(batch)?;
        let synced = if broken(Step::PublishedDurable) { Ok(()) } else { self.sync_batch(batch)? };
        if let Err(error) = synced {
            // A failed sync leaves data in doubt: nothing of the batch is published, and all of it is looked at again.
            self.report_once(EventKind::CannotRead, format!("cannot make local changes durable: {error}"));
            self.note_unsynced(batch, |_| true)?;
            self.drop_batch(batch)?;
            self.distrust_staging()?;
        } else if let Some(failed) = self.unsynced.failed() {
            // One that was to write something else may have been to write these as well.
            let behind = Hlc(failed.0.saturating_sub(self.config.limits.verify_after_power_cut));
            let later = Hlc(failed.0.saturating_add(1_000_000));
            self.note_unsynced(batch, |stat| written_since(stat, behind) && !written_since(stat, later))?;
        }
        Ok(())
    }

    /// The next sync of these says that all is well, and what was to be written may be on no disk: the kernel may drop it.
    fn note_unsynced(&mut self, batch: &Batch<F::Dir>, which: impl Fn(&Stat) -> bool) -> Result<()> {
        let found = batch.found.iter().filter(|f| !f.dropped).map(|f| &f.stat);
        let modified = batch.modified.iter().filter(|m| !m.dropped).map(|m| &m.stat);
        let files: Vec<_> = found.chain(modified).filter(|stat| stat.kind == Kind::File && which(stat)).collect();
        if files.is_empty() {
            return Ok(());
        }
        self.records.begin()?;
        for stat in files {
            self.unsynced.add(self.records.kv_mut(), &stat.object)?;
        }
        self.records.commit()?;
        Ok(())
    }

    /// Leaves all of a batch for later, as if none of it had been seen.
    pub(super) fn drop_batch(&mut self, batch: &mut Batch<F::Dir>) -> Result<()> {
        for at in 0..batch.found.len() {
            if batch.found.get(at).is_some_and(|f| !f.dropped) {
                self.drop_found(batch, at)?;
            }
        }
        for modified in batch.modified.iter_mut().filter(|m| !m.dropped) {
            modified.dropped = true;
            let (parent, name) = (modified.node.parent, modified.node.name.clone());
            self.again_later(parent, &name);
        }
        for node in std::mem::take(&mut batch.gone).into_values() {
            self.again_later(node.parent, &node.name);
        }
        Ok(())
    }

    /// What is left for later takes along what would be no complete set without it (design, section 5): a directory stays
    /// while something in it stays, and a name stays taken while what had it stays.
    pub(super) fn close_set(&mut self, batch: &mut Batch<F::Dir>) -> Result<()> {
        loop {
            self.drop_orphans(batch)?;
            let claimed = batch.claimed();
            let mut stay = Vec::new();
            for dir in batch.gone.values().filter(|n| n.is_dir() && !claimed.contains(&n.id)) {
                let children = nodes::children(self.records.kv(), dir.id, None, usize::MAX)?;
                if batch.heir(dir.id).is_none() && children.iter().any(|c| !batch.gone.contains_key(&c.id)) {
                    stay.push(dir.clone());
                }
            }
            let stays = |f: &Found<F::Dir>| {
                // A file goes on under its name wherever its object is. A directory that is not nowhere is somewhere else: what
                // lies in it is not in this one.
                let continued = |o: &Node| !o.is_dir() && f.stat.kind != Kind::Directory;
                f.occupant.as_ref().is_some_and(|o| !batch.gone.contains_key(&o.id) && !continued(o))
            };
            let mut drop: Vec<_> =
                batch.found.iter().enumerate().filter(|(_, f)| !f.dropped && stays(f)).map(|(at, _)| at).collect();
            let waiting = self.waiting_names(batch);
            for (at, found) in batch.found.iter().enumerate().filter(|(_, f)| !f.dropped && !stays(f)) {
                if self.is_left_by_another_case(batch, found, &waiting)? {
                    drop.push(at);
                }
            }
            for at in 0..batch.found.len() {
                if self.would_lie_in_itself(batch, at)? {
                    drop.push(at);
                }
            }
            if stay.is_empty() && drop.is_empty() {
                return Ok(());
            }
            for dir in stay {
                batch.gone.remove(&dir.id);
                self.again_later(dir.parent, &dir.name);
            }
            for at in drop {
                self.drop_found(batch, at)?;
            }
        }
    }

    /// Was a directory moved into one that the database has in it, since that one's own move is left for later?
    fn would_lie_in_itself(&self, batch: &Batch<F::Dir>, at: usize) -> Result<bool> {
        let Some(found) = batch.found.get(at).filter(|f| !f.dropped) else { return Ok(false) };
        let Some(own) = found.moved.as_ref().filter(|n| n.is_dir()).map(|n| n.id) else { return Ok(false) };
        let mut above = found.parent;
        for _ in 0..4096 {
            let (id, moved) = match above {
                Parent::Found(at) => match batch.found.get(at) {
                    Some(found) => (found.moved.as_ref().map(|n| n.id), Some(found)),
                    None => return Ok(false),
                },
                Parent::Node(id) => {
                    let is = |f: &&Found<F::Dir>| !f.dropped && f.moved.as_ref().is_some_and(|n| n.id == id);
                    (Some(id), batch.found.iter().find(is))
                }
            };
            if id == Some(own) {
                return Ok(true);
            }
            above = match (moved, id) {
                (Some(found), _) => found.parent,
                (None, Some(id)) if id != ROOT_NODE => match nodes::get(self.records.kv(), id)? {
                    Some(node) => Parent::Node(node.parent),
                    None => return Ok(false),
                },
                _ => return Ok(false),
            };
        }
        Ok(false)
    }

    /// Where names that differ may be one name: those of the entries that are still to be looked at, in the directories of
    /// what was found, by their keys.
    pub(super) fn waiting_names(&self, batch: &Batch<F::Dir>) -> BTreeMap<(NodeId, Vec<u8>), Vec<Vec<u8>>> {
        let mut waiting: BTreeMap<_, Vec<_>> = BTreeMap::new();
        if self.config.names == Names::Bytes {
            return waiting;
        }
        let parent = |f: &Found<F::Dir>| match f.parent {
            Parent::Node(id) if !f.dropped => Some(id),
            _ => None,
        };
        for id in batch.found.iter().filter_map(parent).collect::<BTreeSet<_>>() {
            let later =
                self.later.range((id, Vec::new())..).map(|(key, _)| key).take_while(|(parent, _)| *parent == id);
            let next = self.changed.range((id, Vec::new())..).take_while(|(parent, _)| *parent == id);
            for (_, name) in later.chain(next) {
                waiting.entry((id, fold(name, self.config.names).into_owned())).or_default().push(name.clone());
            }
        }
        waiting
    }

    /// Does something that is not at its name any more, and of which nothing is recorded yet, still have a name that is
    /// one with this by the folder's rule? The name is taken then: recorded now, this would lose it to what is gone.
    pub(super) fn is_left_by_another_case(
        &mut self,
        batch: &Batch<F::Dir>,
        found: &Found<F::Dir>,
        waiting: &BTreeMap<(NodeId, Vec<u8>), Vec<Vec<u8>>>,
    ) -> Result<bool> {
        let Parent::Node(id) = found.parent else { return Ok(false) };
        if waiting.is_empty() {
            return Ok(false);
        }
        let key = (id, fold(found.name.bytes(), self.config.names).into_owned());
        let alike = waiting.get(&key).into_iter().flatten().filter(|name| *name != found.name.bytes());
        for name in alike.cloned().collect::<Vec<_>>() {
            let name = &name;
            let Some(node) = nodes::at(self.records.kv(), id, name)? else { continue };
            if batch.gone.contains_key(&node.id) || found.moved.as_ref().is_some_and(|m| m.id == node.id) {
                continue;
            }
            let there = match self.dir(id)? {
                Some(dir) => self.fs.stat(&dir, name).map_or(true, |s| s.is_some_and(|s| s.object == node.object)),
                None => true,
            };
            if !there {
                // Both at one time: what left it may lie in what was found, and can be recorded only together with that. The
                // time that is set stays: what was found may be looked at more often than that, and would put it off for ever.
                let retry = Hlc(self.now.0 + self.config.limits.retry);
                let both = *self.later.entry((id, name.clone())).or_insert(retry);
                self.later.insert((id, found.name.bytes().to_vec()), both);
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What lies in a directory that is left for later is left for later, too.
    pub(super) fn drop_orphans(&mut self, batch: &mut Batch<F::Dir>) -> Result<()> {
        for at in 0..batch.found.len() {
            let orphan = match batch.found.get(at) {
                Some(f) if !f.dropped => {
                    matches!(f.parent, Parent::Found(p) if batch.found.get(p).is_none_or(|p| p.dropped))
                }
                _ => false,
            };
            if orphan {
                self.drop_found(batch, at)?;
            }
        }
        Ok(())
    }

    pub(super) fn sync_batch(&mut self, batch: &Batch<F::Dir>) -> Result<io::Result<()>> {
        let count = batch.found.iter().filter(|f| !f.dropped).count()
            + batch.modified.iter().filter(|m| !m.dropped).count()
            + batch.gone.len();
        match count {
            0 => Ok(Ok(())),
            _ if count >= self.config.limits.sync_all_from => Ok(self.fs.sync_all()),
            _ => self.sync_each(batch),
        }
    }

    pub(super) fn sync_each(&mut self, batch: &Batch<F::Dir>) -> Result<io::Result<()>> {
        if batch.modified.iter().any(|m| !m.dropped && m.stat.kind == Kind::Symlink) {
            // No descriptor leads to a symlink by which its attributes could be made durable.
            return Ok(self.fs.sync_all());
        }
        let found = batch.found.iter().filter(|f| !f.dropped && f.stat.kind == Kind::File);
        let found = found.map(|f| (f.parent, f.name.bytes().to_vec()));
        let modified = batch.modified.iter().filter(|m| !m.dropped && m.stat.kind == Kind::File);
        let modified = modified.map(|m| (Parent::Node(m.node.parent), m.node.name.clone()));
        for (parent, name) in found.chain(modified) {
            // What cannot be opened now, or was moved meanwhile, is made durable with everything: an error is not an absence.
            let Some(dir) = self.found_dir(batch, parent)? else { return Ok(self.fs.sync_all()) };
            let synced = match self.fs.open_file(&dir, &name) {
                Ok(file) => self.fs.sync_file(&file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(error) => Err(error),
            };
            if synced.is_err() {
                return Ok(synced);
            }
        }
        // Where new directories were made before the others: what was moved from those may lie in these.
        let mut dirs: BTreeSet<NodeId> = batch.gone.values().map(|n| n.parent).collect();
        // Their own attributes, too.
        dirs.extend(batch.modified.iter().filter(|m| !m.dropped && m.node.is_dir()).map(|m| m.node.id));
        let (made, other): (Vec<_>, Vec<_>) =
            batch.found.iter().filter(|f| !f.dropped).partition(|f| f.stat.kind == Kind::Directory);
        let mut done = BTreeSet::new();
        for parent in made.into_iter().chain(other).map(|f| f.parent).filter(|parent| done.insert(*parent)) {
            if let Parent::Node(id) = parent {
                dirs.remove(&id);
            }
            let Some(dir) = self.found_dir(batch, parent)? else { return Ok(self.fs.sync_all()) };
            if let Err(error) = self.fs.sync_dir(&dir) {
                return Ok(Err(error));
            }
        }
        let mut open = Vec::new();
        // What was in a directory that is gone itself is gone with it.
        for id in dirs.into_iter().filter(|id| !batch.gone.contains_key(id)) {
            match self.dir(id)? {
                Some(dir) => open.push(dir),
                None => return Ok(self.fs.sync_all()),
            }
        }
        let unsynced = |(at, f): &(usize, &Found<F::Dir>)| !f.dropped && !done.contains(&Parent::Found(*at));
        open.extend(batch.found.iter().enumerate().filter(unsynced).filter_map(|(_, f)| f.dir.clone()));
        for dir in open {
            match self.fs.sync_dir(&dir) {
                Ok(()) => {}
                // One that may not be opened for reading.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(self.fs.sync_all()),
                Err(error) => return Ok(Err(error)),
            }
        }
        Ok(Ok(()))
    }
}

/// Reads all tasks, on as many threads as the file system bears; results in the order of the tasks.
pub(crate) fn read_all<F: Fs>(fs: &F, beside: &Beside, now: Hlc, tasks: &Arc<[Task<F::Dir>]>) -> Vec<Read> {
    // To wake a thread costs about as much as it takes to hash a few small files.
    let bytes: u64 = tasks.iter().filter(|task| task.content).map(|task| task.size).sum();
    let worth = tasks.len() / 16 + usize::try_from(bytes >> 18).unwrap_or(usize::MAX);
    let threads = fs.parallelism().min(tasks.len()).min(worth).max(1);
    if threads == 1 {
        return tasks.iter().map(|task| read_one(fs, now, task)).collect();
    }
    let next = Arc::new(AtomicUsize::new(0));
    let workers: Vec<_> = (0..threads)
        .map(|_| {
            let (fs, tasks, next) = (fs.clone(), Arc::clone(tasks), Arc::clone(&next));
            beside.run(move || {
                let mut mine = Vec::new();
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(task) = tasks.get(at) else { return mine };
                    mine.push((at, read_one(&fs, now, task)));
                }
            })
        })
        .collect();
    let mut results: Vec<(usize, Read)> =
        workers.into_iter().flat_map(|worker| worker.wait().expect("a reader does not panic")).collect();
    results.sort_unstable_by_key(|(at, _)| *at);
    results.into_iter().map(|(_, read)| read).collect()
}

/// Was it changed after this instant, as far as its stamp says?
pub(crate) fn written_since(stat: &Stat, instant: Hlc) -> bool {
    let seconds = i64::try_from(instant.0 / 1_000_000).unwrap_or(i64::MAX);
    stat.stamp.ctime.seconds >= seconds
}

/// Was it changed so lately that a change after this may bear the same stamp? Then the stamp does not prove that the bytes are
/// the same (design, section 5). What is read by the end of a call may have been changed after its `now`.
fn changed_in_this_tick(stat: &Stat, now: Hlc) -> bool {
    let ctime = stat.stamp.ctime;
    let tick = if ctime.nanoseconds == 0 { TICK_OF_SECONDS } else { TICK };
    let changed = ctime.seconds.saturating_mul(1_000_000).saturating_add(i64::from(ctime.nanoseconds / 1_000));
    let age = i64::try_from(now.0).unwrap_or(i64::MAX).saturating_sub(changed);
    (-LONGEST_CALL..tick).contains(&age)
}

fn read_one<F: Fs>(fs: &F, now: Hlc, task: &Task<F::Dir>) -> Read {
    let mut read = Read { content: None, attributes: None, stat: None, in_use: false, error: None };
    let done = (|| -> io::Result<()> {
        if task.content && task.kind == Kind::File {
            let known = task.known.as_ref().map(|(stat, hash)| (stat, hash));
            // In this tick it may have lost its name without a trace.
            let seen = Some(&task.seen).filter(|seen| !changed_in_this_tick(seen, now));
            match hash_known(fs, &task.dir, &task.name, seen, known)? {
                Hashing::Done { content, stat, attributes, provisional } => {
                    let provisional = provisional || changed_in_this_tick(&stat, now);
                    read.content = Some((content, provisional));
                    read.stat = Some(stat);
                    read.attributes = Some(*attributes);
                }
                Hashing::InUse => read.in_use = true,
                Hashing::Gone => {}
            }
        } else {
            read.stat = fs.stat(&task.dir, &task.name)?.filter(|s| s.kind == task.kind);
            if task.content && read.stat.is_some() {
                let target = fs.read_link(&task.dir, &task.name)?;
                read.content = Some((Content::Symlink { target: target.into() }, false));
            }
        }
        if task.attributes && read.stat.is_some() && read.attributes.is_none() {
            read.attributes = Some(fs.read_attributes(&task.dir, &task.name)?);
        }
        Ok(())
    })();
    match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => read.stat = None,
        Err(error) => read.error = Some(error),
        Ok(()) => {}
    }
    read
}

/// Does a file have a block of 4 KiB of zeros?
pub(super) fn has_zeros<F: Fs>(fs: &F, dir: &F::Dir, name: &[u8]) -> io::Result<bool> {
    let file = fs.open_file(dir, name)?;
    let mut buffer = vec![0; 64 * 1024];
    let mut offset = 0;
    loop {
        let count = fs.read_at(&file, &mut buffer, offset)?;
        if count == 0 {
            return Ok(false);
        }
        if buffer[..count].chunks(4096).any(|block| block.iter().all(|b| *b == 0)) {
            return Ok(true);
        }
        offset += count as u64;
    }
}
