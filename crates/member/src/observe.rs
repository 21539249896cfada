//! Local changes become versions (design, section 5).
//!
//! A batch of entries that may have changed is compared with the nodes. What was found is hashed, made durable, and then
//! recorded in one transaction, parents before children and deletes last, so that partners see a closed set. An error is
//! never an absence: only an entry that `stat` says is absent can become a delete, and only where its object is found
//! nowhere else beneath the root.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use anabranch_engine::kv::{Kv, Table};
use anabranch_engine::{ChangeError, NewThing};
use anabranch_model::{
    Attributes, Content, Hlc, Knowledge, Name, Names, Record, Timestamp, Uid, Version, fold, is_reserved,
};
use anabranch_volume::fs::{Fs, Kind, Object, Stat};
use anabranch_volume::hash::{Hashing, hash_file};

use crate::events::EventKind;
use crate::nodes::{self, Node, NodeId, OnDisk, ROOT_NODE};
use crate::replica::{Phase, Replica, Result};
use crate::steps::{Step, broken};
use crate::tables::Meta;

/// How often, in microseconds, directories that something is mounted over are looked at, and how many at most; the others
/// wait for the next comparison of everything.
const COVERED: u64 = 60_000_000;
const COVERED_MAX: usize = 1024;

/// How far up the directories of something are looked for that moved with them; what lies deeper waits for the events of
/// its own directories.
const DEEPEST: usize = 128;

/// Where a found entry lies: in a directory that the database has, or in one found in the same batch.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Parent {
    Node(NodeId),
    Found(usize),
}

/// An entry that the database does not have so.
struct Found<D> {
    parent: Parent,
    name: Name,
    stat: Stat,
    /// The node that had this name until now.
    occupant: Option<Node>,
    /// The node that this object had until now, elsewhere.
    moved: Option<Node>,
    /// Of a directory: its handle.
    dir: Option<D>,
    content: Option<(Content, bool)>,
    attributes: Attributes,
    /// In use or unreadable: left for later, with all that it touches.
    dropped: bool,
    uid: Option<Uid>,
    /// It continues a file that had its name a short while ago: what its user had seen of that one.
    memory: Option<Knowledge>,
    /// It was given this UID because the view shows just such a thing here: our own work, attributes not yet applied.
    leftover: bool,
    /// Our own exchange put it there, on its way to where the view shows it.
    swapped: bool,
    node: Option<NodeId>,
}

/// An entry that is still the same thing, but whose stamp differs.
struct Modified {
    node: Node,
    stat: Stat,
    content: Option<(Content, bool)>,
    attributes: Option<Attributes>,
    dropped: bool,
}

/// Everything that one look at some entries found.
struct Batch<D> {
    found: Vec<Found<D>>,
    modified: Vec<Modified>,
    /// Nodes whose name no longer leads to them.
    gone: BTreeMap<NodeId, Node>,
    /// UIDs of what was recorded as new.
    made: BTreeSet<Uid>,
    /// It is part of a comparison of everything.
    scanning: bool,
    /// The directory in which something was recorded last, and as which UID it goes on: it and what it lies in are live.
    last_parent: Option<(Uid, Uid)>,
}

impl<D> Batch<D> {
    /// Nodes whose objects were found elsewhere.
    fn claimed(&self) -> BTreeSet<NodeId> {
        self.found.iter().filter(|f| !f.dropped).filter_map(|f| f.moved.as_ref()).map(|n| n.id).collect()
    }

    /// One of those found, if it counts and has no UID yet.
    fn unidentified(&self, at: usize) -> Option<&Found<D>> {
        self.found.get(at).filter(|f| !f.dropped && f.uid.is_none())
    }

    /// Gives what was found a UID, if no other has it; returns it then.
    fn identify(&mut self, at: usize, uid: Option<Uid>, claimed: &mut BTreeSet<Uid>) -> Option<Uid> {
        let uid = uid.filter(|uid| claimed.insert(*uid))?;
        self.found.get_mut(at)?.uid = Some(uid);
        Some(uid)
    }

    /// A directory of another object at the same name, while the old object is nowhere: it continues the old one.
    fn heir(&self, id: NodeId) -> Option<usize> {
        self.found.iter().position(|f| {
            !f.dropped
                && f.stat.kind == Kind::Directory
                && f.moved.is_none()
                && f.occupant.as_ref().is_some_and(|n| n.id == id && n.is_dir())
        })
    }
}

/// A file or directory of the batch, by its parent's handle and its name: what is to be hashed.
pub(crate) struct Task<D> {
    /// Bytes to be hashed, about.
    pub(crate) size: u64,
    pub(crate) dir: D,
    pub(crate) name: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) content: bool,
    pub(crate) attributes: bool,
}

/// What came of a [`Task`].
pub(crate) struct Read {
    pub(crate) content: Option<(Content, bool)>,
    pub(crate) attributes: Option<Attributes>,
    pub(crate) stat: Option<Stat>,
    pub(crate) in_use: bool,
    pub(crate) error: Option<io::Error>,
}

impl<F: Fs + Sync, K: Kv> Replica<F, K>
where
    F::Dir: Send + Sync,
    F::File: Send,
{
    /// Looks at what may have changed, one batch of it, and records what did.
    pub(crate) fn observe(&mut self) -> Result<()> {
        self.observe_at = None;
        if !self.root_is_there()? {
            return Ok(());
        }
        if self.ahead_of_all() {
            // Our own clock may be wrong: what we would issue now could win everything for ever (section 4).
            self.report_once(EventKind::ClockAhead, self.config.member.clone());
            self.observe_at = Some(Hlc(self.now.0 + self.config.limits.retry));
            return Ok(());
        }
        if let Some(until) = self.hold_until {
            let heard = self.links.values().any(|l| l.passed);
            if !heard && self.now < until {
                self.observe_at = Some(until.min(Hlc(self.now.0 + self.config.limits.retry)));
                return Ok(());
            }
            self.hold_until = None;
        }
        self.remove_half_made()?;
        let mut batch = Batch {
            found: Vec::new(),
            modified: Vec::new(),
            gone: BTreeMap::new(),
            made: BTreeSet::new(),
            scanning: self.comparison_owed(),
            last_parent: None,
        };
        let mut seen = BTreeSet::new();
        let limit = self.batch_entries();
        while seen.len() < limit {
            if let Some(key) = self.changed.pop_first() {
                self.look(&mut batch, &mut seen, key.0, key.1)?;
            } else if let Some(dir) = self.scan.pop() {
                self.look_whole(&mut batch, &mut seen, dir)?;
            } else {
                break;
            }
        }
        if self.scanning && self.scan.is_empty() && self.changed.is_empty() {
            self.scanning = false;
            self.looked_for = std::mem::take(&mut self.missing);
            for id in self.looked_for.clone() {
                if let Some(node) = nodes::get(self.records.kv(), id)? {
                    self.look(&mut batch, &mut seen, node.parent, node.name)?;
                }
            }
        }
        self.enter_found(&mut batch, &mut seen)?;
        self.match_objects(&mut batch, &mut seen)?;
        self.looked_for.clear();
        self.read_batch(&mut batch)?;
        if self.suspect {
            self.doubt(&mut batch)?;
        }
        if self.phase == Phase::Normal {
            self.record_batch(batch)?;
        } else {
            self.note_batch(batch)?;
        }
        if self.suspect && !self.scanning {
            self.suspect = false;
            // Not before: who dies in the middle of it begins anew.
            self.records.begin()?;
            self.records.kv_mut().put(Table::Meta, Meta::BOOT, &self.config.boot)?;
            self.advance_checkpoint()?;
            self.commit()?;
        }
        if !self.changed.is_empty() || !self.scan.is_empty() {
            self.observe_at = Some(self.now);
        }
        let keep = self.now.0.saturating_sub(self.config.limits.name_memory);
        self.recent.retain(|_, (_, at, _)| at.0 >= keep);
        self.moved_away.retain(|_, (_, at)| at.0 >= keep);
        Ok(())
    }

    /// Entries looked at in one batch. Of a first scan fewer, and at its start still fewer: partners fetch what is
    /// recorded while the rest is hashed.
    fn batch_entries(&self) -> usize {
        let limit = self.config.limits.batch_entries;
        let share = match self.first_scan {
            false => 1,
            true if self.records.change_number().0 - self.first_number.0 < limit as u64 / 8 => 16,
            true => 4,
        };
        limit.div_ceil(share)
    }

    /// After a power cut: what is empty, has runs of zeros, or comes from the future, is no edit (design, section 11).
    fn doubt(&mut self, batch: &mut Batch<F::Dir>) -> Result<()> {
        let mut doubtful = Vec::new();
        for modified in batch.modified.iter_mut().filter(|m| !m.dropped && m.stat.kind == Kind::File) {
            let Some((value, provisional)) = modified.content.clone() else { continue };
            let recorded = modified.node.content.as_ref();
            if recorded.is_none_or(|c| c.value == value || c.bytes.is_none()) {
                continue;
            }
            let seconds = i64::try_from(self.now.0 / 1_000_000).unwrap_or(i64::MAX);
            let torn = modified.stat.stamp.size == 0
                || modified.stat.stamp.mtime.seconds > seconds + 60
                || match self.dir(modified.node.parent)? {
                    Some(dir) => has_zeros(&self.fs, &dir, &modified.node.name).unwrap_or(true),
                    None => false,
                };
            if torn {
                modified.dropped = true;
                doubtful.push((modified.node.clone(), modified.stat.clone(), value, provisional));
            }
        }
        if doubtful.is_empty() {
            return Ok(());
        }
        self.records.begin()?;
        for (old, stat, value, provisional) in doubtful {
            let node =
                Node { stamp: stat.stamp, content: Some(crate::adopt::candidate(value, provisional)), ..old.clone() };
            nodes::put(self.records.kv_mut(), Some(&old), &node)?;
            if let Some(uid) = node.uid {
                self.records.kv_mut().put(Table::Todo, &nodes::uid_key(uid), &[])?;
                self.due.insert(nodes::uid_key(uid).to_vec());
            }
        }
        self.records.commit()?;
        self.work_at = Some(self.now);
        Ok(())
    }

    /// Looks at an entry again after a while; with an empty name at the whole of the directory.
    #[track_caller]
    fn again_later(&mut self, parent: NodeId, name: &[u8]) {
        // Where the decision was made is what one wants to know of an entry that never comes to rest.
        let decided = std::panic::Location::caller().line();
        tracing::debug!(member = self.config.member, name = %name.escape_ascii(), decided, "looked at again later");
        self.later.insert((parent, name.to_vec()), Hlc(self.now.0 + self.config.limits.retry));
    }

    /// Compares one entry with its node.
    fn look(
        &mut self,
        batch: &mut Batch<F::Dir>,
        seen: &mut BTreeSet<(NodeId, Vec<u8>)>,
        parent: NodeId,
        name: Vec<u8>,
    ) -> Result<()> {
        if !seen.insert((parent, name.clone())) {
            return Ok(());
        }
        let dir = match self.open_node(parent)? {
            Ok(Some(dir)) => dir,
            Ok(None) => {
                // The directory itself is in flux. If it is still in the database its own entry will be looked at, and
                // what this hint was about as soon as it is found again or known to be gone.
                seen.remove(&(parent, name.clone()));
                if let Some(node) = nodes::get(self.records.kv(), parent)? {
                    let above = (node.parent, node.name);
                    if seen.contains(&above) {
                        // It was looked at just now.
                    } else if self.later.contains_key(&(parent, name.clone())) {
                        // And before this as well, to no avail.
                        self.again_later(above.0, &above.1);
                    } else {
                        self.changed.insert(above);
                    }
                    self.again_later(parent, &name);
                }
                return Ok(());
            }
            Err(error) => return self.cannot_read(parent, &name, &error),
        };
        match self.fs.stat(&dir, &name) {
            Ok(stat) => self.compare(batch, parent, name, stat),
            Err(_) if broken(Step::ErrorIsNotAbsence) => self.compare(batch, parent, name, None),
            Err(error) => self.cannot_read(parent, &name, &error),
        }
    }

    /// Compares a whole directory with its nodes.
    fn look_whole(
        &mut self,
        batch: &mut Batch<F::Dir>,
        seen: &mut BTreeSet<(NodeId, Vec<u8>)>,
        id: NodeId,
    ) -> Result<()> {
        let dir = match self.open_node(id)? {
            Ok(Some(dir)) => dir,
            Ok(None) => {
                if let Some(node) = nodes::get(self.records.kv(), id)? {
                    if !seen.contains(&(node.parent, node.name.clone())) {
                        self.changed.insert((node.parent, node.name));
                    }
                    self.again_later(id, b"");
                    self.unread.insert(id);
                } else {
                    self.unread.remove(&id);
                }
                return Ok(());
            }
            Err(error) => {
                self.unread.insert(id);
                return self.cannot_read(id, b"", &error);
            }
        };
        self.unread.remove(&id);
        tracing::debug!(member = self.config.member, node = id.0, "compared whole");
        let listed = anabranch_volume::walk::scan_directories(&self.fs, vec![(id.0, dir)]);
        for (_, entries) in listed {
            let entries = match entries {
                Ok(entries) => entries,
                Err(_) if broken(Step::ErrorIsNotAbsence) => Vec::new(),
                Err(error) => {
                    self.unread.insert(id);
                    self.cannot_read(id, b"", &error)?;
                    continue;
                }
            };
            let mut names: BTreeMap<Vec<u8>, (Option<Node>, Option<Stat>)> = BTreeMap::new();
            let mut after: Option<Vec<u8>> = None;
            loop {
                let page = nodes::children(self.records.kv(), id, after.as_deref(), 4096)?;
                let Some(last) = page.last() else { break };
                after = Some(last.name.clone());
                names.extend(page.into_iter().map(|n| (n.name.clone(), (Some(n), None))));
            }
            for (entry, stat) in entries {
                names.entry(entry.name).or_default().1 = Some(stat);
            }
            for (name, (node, stat)) in names {
                if id == ROOT_NODE && is_reserved(&name) {
                    continue;
                }
                if self.scanning
                    && let Some(node) = &node
                    && node.is_dir()
                {
                    self.scan.push(node.id);
                }
                if !seen.insert((id, name.clone())) {
                    continue;
                }
                self.compare_with(batch, id, name, stat, node)?;
            }
        }
        Ok(())
    }

    /// Is there a directory that a comparison has not come to, or could not read? What moves out of it is looked into.
    pub(crate) fn comparison_owed(&self) -> bool {
        self.scanning || !self.unread.is_empty()
    }

    fn cannot_read(&mut self, parent: NodeId, name: &[u8], error: &io::Error) -> Result<()> {
        let path = String::from_utf8_lossy(&self.node_path(parent, name)?).into_owned();
        self.report_once(EventKind::CannotRead, format!("{path}: {error}"));
        self.again_later(parent, name);
        Ok(())
    }

    /// One entry, as it is and as the database has it.
    fn compare(&mut self, batch: &mut Batch<F::Dir>, parent: NodeId, name: Vec<u8>, stat: Option<Stat>) -> Result<()> {
        let node = nodes::at(self.records.kv(), parent, &name)?;
        self.compare_with(batch, parent, name, stat, node)
    }

    /// As [`Self::compare`], with the node that has the name.
    fn compare_with(
        &mut self,
        batch: &mut Batch<F::Dir>,
        parent: NodeId,
        name: Vec<u8>,
        stat: Option<Stat>,
        node: Option<Node>,
    ) -> Result<()> {
        // In staging only what was put aside there is looked at: somebody may still have it open. Nothing new is there.
        let stat = match &node {
            _ if parent != nodes::STAGING_NODE => stat,
            None => return Ok(()),
            Some(node) => stat.filter(|s| s.object == node.object && s.kind == node.kind),
        };
        let Some(stat) = stat else {
            if node.is_none() {
                self.closed.remove(&(parent, name));
            }
            if let Some(node) = node {
                batch.gone.insert(node.id, node);
            }
            return Ok(());
        };
        if stat.foreign {
            // A mount point or another subvolume: nothing is known of what the database has there.
            if self.covered.len() < COVERED_MAX {
                self.covered.insert((parent, name));
                self.covered_at.get_or_insert(Hlc(self.now.0 + COVERED));
            }
            return Ok(());
        }
        if let Some(node) = &node
            && node.object == stat.object
            && node.kind == stat.kind
        {
            if self.suspect && node.kind == Kind::File && written_since(&stat, self.checkpoint) {
                // Until it is read; also if it is in use now.
                self.closed.insert((parent, name.clone()));
            }
            let provisional =
                node.content.as_ref().is_some_and(|c| c.provisional) || self.closed.contains(&(parent, name.clone()));
            // These, too: somebody's chmod in the same tick of the clock as our own call leaves the stamp as it was.
            let differs = node.attributes.owner.number != stat.uid
                || node.attributes.group.number != stat.gid
                || node.kind != Kind::Symlink && node.attributes.mode != stat.mode
                || match node.is_dir() {
                    true => node.stamp.ctime != stat.stamp.ctime,
                    false => node.stamp != stat.stamp || provisional,
                };
            if differs {
                let node = node.clone();
                if !node.is_dir() && stat.links > 1 {
                    // A hard link: whoever wrote by this name wrote by the others, and no hint names them.
                    let others = nodes::by_object(self.records.kv(), &stat.object)?;
                    let others = others.into_iter().filter(|n| n.id != node.id).map(|n| (n.parent, n.name));
                    // What waits already, while the file is in use, waits on: else each name would call for the other at once.
                    self.changed.extend(others.filter(|other| !self.later.contains_key(other)));
                }
                batch.modified.push(Modified { node, stat, content: None, attributes: None, dropped: false });
            }
            return Ok(());
        }
        if let Some(node) = &node {
            batch.gone.insert(node.id, node.clone());
        }
        if stat.kind == Kind::Other {
            let path = String::from_utf8_lossy(&self.node_path(parent, &name)?).into_owned();
            self.report_once(EventKind::Skipped, path);
            return Ok(());
        }
        let Ok(name) = Name::new(name.clone()) else {
            let path = String::from_utf8_lossy(&self.node_path(parent, &name)?).into_owned();
            self.report_once(EventKind::ReservedName, path);
            return Ok(());
        };
        batch.found.push(Found {
            parent: Parent::Node(parent),
            name,
            stat,
            occupant: node,
            moved: None,
            dir: None,
            content: None,
            attributes: Attributes::default(),
            dropped: false,
            uid: None,
            memory: None,
            leftover: false,
            swapped: false,
            node: None,
        });
        Ok(())
    }

    /// The handle of the directory that a found entry lies in.
    fn found_dir(&mut self, batch: &Batch<F::Dir>, parent: Parent) -> Result<Option<F::Dir>> {
        match parent {
            Parent::Node(id) => self.dir(id),
            Parent::Found(at) => Ok(batch.found.get(at).and_then(|f| f.dir.clone())),
        }
    }

    /// Enters the directories found whose object the database does not know, up to the limit of a batch; what is beyond
    /// it is scanned once they are recorded.
    fn enter_found(&mut self, batch: &mut Batch<F::Dir>, seen: &mut BTreeSet<(NodeId, Vec<u8>)>) -> Result<()> {
        let mut at = 0;
        while at < batch.found.len() {
            let (parent, name, stat) = match batch.found.get(at) {
                Some(f) => (f.parent, f.name.clone(), f.stat.clone()),
                None => break,
            };
            at += 1;
            // Each directory is entered once, however often more is found.
            let done = batch.found.get(at - 1).is_none_or(|f| f.dropped || f.dir.is_some());
            if stat.kind != Kind::Directory || done {
                continue;
            }
            let Some(handle) = self.found_dir(batch, parent)? else {
                if let Some(f) = batch.found.get_mut(at - 1) {
                    f.dropped = true;
                }
                continue;
            };
            let opened = self.fs.open_dir(&handle, name.bytes());
            let dir = match opened {
                Ok(dir) if self.fs.stat_dir(&dir).is_ok_and(|s| s.object == stat.object) => dir,
                Ok(_) => {
                    self.drop_found(batch, at - 1)?;
                    continue;
                }
                Err(error) => {
                    self.drop_found(batch, at - 1)?;
                    if let Parent::Node(id) = parent {
                        self.cannot_read(id, name.bytes(), &error)?;
                    }
                    continue;
                }
            };
            if let Some(f) = batch.found.get_mut(at - 1) {
                f.dir = Some(dir.clone());
            }
            let known = self.dir_node(&stat.object)?;
            if let Some(id) = known {
                // Where its node says it is no more: what is looked for in it is looked for here.
                self.dirs.insert(id, dir.clone());
            }
            if known.is_some() || seen.len() + batch.found.len() > self.batch_entries() {
                continue;
            }
            let mut listed = anabranch_volume::walk::scan_directories(&self.fs, vec![(0, dir)]);
            match listed.pop().map(|(_, entries)| entries) {
                Some(Ok(entries)) => {
                    for (entry, stat) in entries {
                        self.add_child(batch, at - 1, entry.name, stat);
                    }
                }
                Some(Err(error)) => {
                    // Nothing is known of what is in it, and of what was in the directory that had its name.
                    self.drop_found(batch, at - 1)?;
                    if let Parent::Node(id) = parent {
                        self.cannot_read(id, name.bytes(), &error)?;
                    }
                }
                None => {}
            }
        }
        Ok(())
    }

    fn add_child(&mut self, batch: &mut Batch<F::Dir>, parent: usize, name: Vec<u8>, stat: Stat) {
        if stat.foreign {
            return;
        }
        if stat.kind == Kind::Other {
            self.report_once(EventKind::Skipped, String::from_utf8_lossy(&name).into_owned());
            return;
        }
        let Ok(name) = Name::new(name.clone()) else {
            self.report_once(EventKind::ReservedName, String::from_utf8_lossy(&name).into_owned());
            return;
        };
        batch.found.push(Found {
            parent: Parent::Found(parent),
            name,
            stat,
            occupant: None,
            moved: None,
            dir: None,
            content: None,
            attributes: Attributes::default(),
            dropped: false,
            uid: None,
            memory: None,
            leftover: false,
            swapped: false,
            node: None,
        });
    }

    /// Leaves a found entry for later. What had its name, and what had its object, is not gone then: nothing is known.
    #[track_caller]
    fn drop_found(&mut self, batch: &mut Batch<F::Dir>, at: usize) -> Result<()> {
        let decided = std::panic::Location::caller().line();
        let Some(found) = batch.found.get_mut(at) else { return Ok(()) };
        tracing::debug!(member = self.config.member, name = %found.name, parent = ?found.parent, decided, "left for later");
        found.dropped = true;
        let (parent, name, occupant, moved) =
            (found.parent, found.name.clone(), found.occupant.take(), found.moved.take());
        for node in [occupant, moved].into_iter().flatten() {
            batch.gone.remove(&node.id);
            self.again_later(node.parent, &node.name);
        }
        let mut top = (parent, name.bytes().to_vec());
        while let Parent::Found(above) = top.0 {
            let Some(f) = batch.found.get(above) else { break };
            top = (f.parent, f.name.bytes().to_vec());
        }
        if let Parent::Node(id) = top.0 {
            if let Parent::Found(_) = parent {
                // Its directory is recorded with this batch; it is scanned for what was left out.
                self.later.insert((id, top.1), Hlc(self.now.0 + self.config.limits.retry));
            } else {
                self.again_later(id, name.bytes());
            }
        }
        Ok(())
    }

    /// Decides for each object found whether it was elsewhere before, and for each node gone whether it is elsewhere now.
    fn match_objects(&mut self, batch: &mut Batch<F::Dir>, seen: &mut BTreeSet<(NodeId, Vec<u8>)>) -> Result<()> {
        let (mut at, mut entered) = (0, batch.found.len());
        let (mut located, mut emptied) = (BTreeSet::new(), BTreeSet::new());
        loop {
            while at < batch.found.len() {
                self.match_found(batch, seen, at)?;
                at += 1;
            }
            // What was found meanwhile is entered like everything found.
            if batch.found.len() > entered {
                self.enter_found(batch, seen)?;
                entered = batch.found.len();
                continue;
            }
            let claimed = batch.claimed();
            let lost: Vec<_> = batch.gone.values().filter(|n| !claimed.contains(&n.id)).cloned().collect();
            for node in lost {
                if located.insert(node.id) {
                    self.locate_gone(batch, seen, &node)?;
                }
            }
            if batch.found.len() > entered {
                continue;
            }
            // What was in directories that are nowhere is gone with them, unless it is found elsewhere.
            let dirs: Vec<_> =
                batch.gone.values().filter(|n| n.is_dir() && !claimed.contains(&n.id)).cloned().collect();
            let mut grown = false;
            for dir in dirs.into_iter().filter(|n| emptied.insert(n.id)) {
                let heir = batch.heir(dir.id);
                for child in nodes::children(self.records.kv(), dir.id, None, usize::MAX)? {
                    // Another directory took its place: what has the same name in there continues the file.
                    let name = child.name.as_slice();
                    let same = batch.found.iter_mut().find(|f| {
                        heir.is_some_and(|h| f.parent == Parent::Found(h)) && f.name.bytes() == name && !f.dropped
                    });
                    if let Some(same) = same {
                        same.occupant = Some(child.clone());
                    }
                    grown |= batch.gone.insert(child.id, child).is_none();
                }
            }
            if !grown {
                return Ok(());
            }
        }
    }

    fn match_found(
        &mut self,
        batch: &mut Batch<F::Dir>,
        seen: &mut BTreeSet<(NodeId, Vec<u8>)>,
        at: usize,
    ) -> Result<()> {
        let Some((object, kind)) =
            batch.found.get(at).filter(|f| !f.dropped).map(|f| (f.stat.object.clone(), f.stat.kind))
        else {
            return Ok(());
        };
        for node in nodes::by_object(self.records.kv(), &object)? {
            if node.kind != kind {
                continue;
            }
            let taken = batch.found.iter().any(|f| f.moved.as_ref().is_some_and(|m| m.id == node.id));
            if taken {
                continue;
            }
            if !batch.gone.contains_key(&node.id) {
                // Is it still where the database has it? Then this is a second name of it.
                self.look(batch, seen, node.parent, node.name.clone())?;
                let under_gone = self.ancestor_gone(batch, &node)?;
                if !batch.gone.contains_key(&node.id) && !under_gone {
                    let still = match self.dir(node.parent)? {
                        Some(dir) => match self.fs.stat(&dir, &node.name) {
                            Ok(Some(stat)) => stat.object == object,
                            Ok(None) => false,
                            Err(_) => true,
                        },
                        None => false,
                    };
                    if still {
                        if kind != Kind::Directory {
                            self.report_once(EventKind::HardLinks, self.config.folder_name.clone());
                        }
                        continue;
                    }
                }
                batch.gone.insert(node.id, node.clone());
            }
            if let Some(found) = batch.found.get_mut(at) {
                found.moved = Some(node);
            }
            break;
        }
        Ok(())
    }

    fn ancestor_gone(&self, batch: &Batch<F::Dir>, node: &Node) -> Result<bool> {
        let mut id = node.parent;
        for _ in 0..4096 {
            if batch.gone.contains_key(&id) {
                return Ok(true);
            }
            match nodes::get(self.records.kv(), id)? {
                Some(node) if id != ROOT_NODE => id = node.parent,
                _ => return Ok(false),
            }
        }
        Ok(false)
    }

    /// A node is not where it was and not among what was found: asks the file system where its object is now.
    fn locate_gone(
        &mut self,
        batch: &mut Batch<F::Dir>,
        seen: &mut BTreeSet<(NodeId, Vec<u8>)>,
        node: &Node,
    ) -> Result<()> {
        if batch.found.iter().any(|f| f.moved.as_ref().is_some_and(|m| m.id == node.id)) {
            return Ok(());
        }
        match self.fs.locate(&node.object) {
            Ok(None) => {}
            Ok(Some((directory, name))) => {
                if let Some(parent) = self.dir_node(&directory)? {
                    let here = (parent, name);
                    if is_reserved(&here.1) {
                        return Ok(());
                    }
                    if parent == nodes::STAGING_NODE {
                        // On its way through our hands; unnoted where somebody swapped it in for what was to go there.
                        if node.parent != nodes::STAGING_NODE {
                            self.unnoted_parked = true;
                            self.work_at = Some(self.now);
                        }
                        batch.gone.remove(&node.id);
                        self.again_later(node.parent, &node.name);
                        return Ok(());
                    }
                    let owner = nodes::at(self.records.kv(), here.0, &here.1)?;
                    if owner.is_some_and(|n| n.id != node.id && n.object == node.object) {
                        // Known there already, so nothing new will be found there: this one is gone.
                        return Ok(());
                    }
                    if seen.contains(&here) {
                        let found = batch.found.iter().any(|f| f.stat.object == node.object);
                        if !found && here != (node.parent, node.name.clone()) {
                            // Seen before it came there: the next batch will find it. Until then it is not gone.
                            batch.gone.remove(&node.id);
                            self.again_later(here.0, &here.1);
                            self.again_later(node.parent, &node.name);
                        }
                        return Ok(());
                    }
                    self.reach(batch, seen, &directory, 0)?;
                    self.look(batch, seen, here.0, here.1)?;
                    let found = batch.found.iter().any(|f| f.stat.object == node.object);
                    let shown = node.uid.map(|uid| self.records.shown(uid)).transpose()?.flatten().is_some();
                    if !found && (shown || !self.is_preserved_below(&directory)) {
                        // What it lies in is in flux: it is somewhere, so it is not gone.
                        batch.gone.remove(&node.id);
                        self.again_later(node.parent, &node.name);
                    }
                } else if !batch.found.iter().any(|f| f.stat.object == directory) {
                    // In a directory that the database does not have yet.
                    if !self.is_private(&directory) {
                        batch.gone.remove(&node.id);
                        self.again_later(node.parent, &node.name);
                        self.look_at_unknown(directory)?;
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                // Where things can be opened by handle this one was, and is somewhere: beneath the root perhaps. Only a
                // look at the whole tree tells. Where nothing can be opened by handle the hints are all there is.
                let exists = self.fs.abilities().handles && !self.looked_for.contains(&node.id);
                if self.scanning || exists {
                    batch.gone.remove(&node.id);
                    self.missing.insert(node.id);
                    if !self.scanning {
                        self.scan_everything();
                    }
                }
            }
            Err(_) if broken(Step::ErrorIsNotAbsence) => {}
            Err(error) => {
                batch.gone.remove(&node.id);
                self.cannot_read(node.parent, &node.name, &error)?;
            }
        }
        Ok(())
    }

    /// Opens a directory that is not where its node says, by what it lies in now: what left a name for a place in there
    /// can be recorded in one batch with what took the name only if both are found.
    fn reach(
        &mut self,
        batch: &mut Batch<F::Dir>,
        seen: &mut BTreeSet<(NodeId, Vec<u8>)>,
        directory: &Object,
        depth: usize,
    ) -> Result<bool> {
        let Some(id) = self.dir_node(directory)? else { return Ok(false) };
        if matches!(self.open_node(id)?, Ok(Some(_))) {
            return Ok(true);
        }
        let Ok(Some((above, name))) = self.fs.locate(directory) else { return Ok(false) };
        if depth == DEEPEST || is_reserved(&name) || !self.reach(batch, seen, &above, depth + 1)? {
            return Ok(false);
        }
        if let Some(parent) = self.dir_node(&above)? {
            self.look(batch, seen, parent, name)?;
            self.enter_found(batch, seen)?;
        }
        Ok(matches!(self.open_node(id)?, Ok(Some(_))))
    }

    /// A directory that the database does not have holds what it knows: the place where it became visible is looked at
    /// again. No event may ever tell of it, as when what was mounted over it is taken away.
    fn look_at_unknown(&mut self, mut directory: Object) -> Result<()> {
        for _ in 0..DEEPEST {
            let Ok(Some((above, name))) = self.fs.locate(&directory) else { return Ok(()) };
            if let Some(parent) = self.dir_node(&above)? {
                if parent != nodes::STAGING_NODE && !is_reserved(&name) {
                    self.again_later(parent, &name);
                }
                return Ok(());
            }
            directory = above;
        }
        Ok(())
    }

    /// Does a directory lie in one that was preserved whole?
    fn is_preserved_below(&self, directory: &Object) -> bool {
        let preserved = [&self.private.conflict, &self.private.pre_existing]
            .map(|dir| self.fs.stat_dir(dir).ok().map(|stat| stat.object));
        let mut at = directory.clone();
        for _ in 0..DEEPEST {
            let Ok(Some((above, _))) = self.fs.locate(&at) else { return false };
            if preserved.iter().flatten().any(|dir| *dir == above) {
                return true;
            }
            at = above;
        }
        false
    }

    fn is_private(&self, object: &Object) -> bool {
        [&self.private.top, &self.private.conflict, &self.private.pre_existing, &self.private.staging]
            .into_iter()
            .any(|dir| self.fs.stat_dir(dir).is_ok_and(|s| s.object == *object))
    }

    /// Hashes what must be hashed, reads attributes, and makes all of it durable: nothing is published that a power cut
    /// could take back.
    fn read_batch(&mut self, batch: &mut Batch<F::Dir>) -> Result<()> {
        let mut tasks = Vec::new();
        let mut whose = Vec::new();
        for at in 0..batch.found.len() {
            let Some(found) = batch.found.get(at).filter(|f| !f.dropped) else { continue };
            let (parent, name, kind) = (found.parent, found.name.bytes().to_vec(), found.stat.kind);
            // A move alone changes neither size nor mtime; the bytes are then known.
            let stamp = found.stat.stamp;
            let closed = match found.parent {
                Parent::Node(id) => self.closed.contains(&(id, name.clone())),
                Parent::Found(_) => false,
            };
            let doubted = self.suspect && written_since(&found.stat, self.checkpoint);
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
            if let Some(found) = batch.found.get_mut(at) {
                found.content = known;
            }
            tasks.push(Task { size: stamp.size, dir, name, kind, content, attributes: true });
            whose.push((true, at));
        }
        for at in 0..batch.modified.len() {
            let Some(m) = batch.modified.get(at) else { continue };
            let (parent, name, kind) = (m.node.parent, m.node.name.clone(), m.node.kind);
            let Some(dir) = self.dir(parent)? else { continue };
            let (size, content) = (m.stat.stamp.size, kind != Kind::Directory);
            tasks.push(Task { size, dir, name, kind, content, attributes: true });
            whose.push((false, at));
        }
        let results = read_all(&self.fs, &tasks);
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
                    self.drop_found(batch, at)?;
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
                }
            }
        }
        self.close_set(batch)?;
        let synced = if broken(Step::PublishedDurable) { Ok(()) } else { self.sync_batch(batch)? };
        if let Err(error) = synced {
            // A failed sync leaves data in doubt: nothing of the batch is published, and all of it is looked at again.
            self.report_once(EventKind::CannotRead, format!("cannot make local changes durable: {error}"));
            self.drop_batch(batch)?;
            self.distrust_staging()?;
        }
        Ok(())
    }

    /// Leaves all of a batch for later, as if none of it had been seen.
    fn drop_batch(&mut self, batch: &mut Batch<F::Dir>) -> Result<()> {
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
    fn close_set(&mut self, batch: &mut Batch<F::Dir>) -> Result<()> {
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
                let continued =
                    |o: &Node| o.is_dir() == (f.stat.kind == Kind::Directory) && (!o.is_dir() || f.moved.is_none());
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

    /// Where names that differ may be one name: those of the entries that are still to be looked at, in the directories of
    /// what was found, by their keys.
    fn waiting_names(&self, batch: &Batch<F::Dir>) -> BTreeMap<(NodeId, Vec<u8>), Vec<Vec<u8>>> {
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
    fn is_left_by_another_case(
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
        for name in alike {
            let Some(node) = nodes::at(self.records.kv(), id, name)? else { continue };
            if batch.gone.contains_key(&node.id) || found.moved.as_ref().is_some_and(|m| m.id == node.id) {
                continue;
            }
            let there = match self.dir(id)? {
                Some(dir) => self.fs.stat(&dir, name).map_or(true, |s| s.is_some_and(|s| s.object == node.object)),
                None => true,
            };
            if !there {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What lies in a directory that is left for later is left for later, too.
    fn drop_orphans(&mut self, batch: &mut Batch<F::Dir>) -> Result<()> {
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

    fn sync_batch(&mut self, batch: &Batch<F::Dir>) -> Result<io::Result<()>> {
        let count = batch.found.iter().filter(|f| !f.dropped).count()
            + batch.modified.iter().filter(|m| !m.dropped).count()
            + batch.gone.len();
        match count {
            0 => Ok(Ok(())),
            _ if count >= self.config.limits.sync_all_from => Ok(self.fs.sync_all()),
            _ => self.sync_each(batch),
        }
    }

    fn sync_each(&mut self, batch: &Batch<F::Dir>) -> Result<io::Result<()>> {
        if batch.modified.iter().any(|m| !m.dropped && m.stat.kind == Kind::Symlink) {
            // No descriptor leads to a symlink by which its attributes could be made durable.
            return Ok(self.fs.sync_all());
        }
        let mut files = Vec::new();
        for found in batch.found.iter().filter(|f| !f.dropped && f.stat.kind == Kind::File) {
            files.extend(self.found_dir(batch, found.parent)?.map(|d| (d, found.name.bytes().to_vec())));
        }
        for m in batch.modified.iter().filter(|m| !m.dropped && m.stat.kind == Kind::File) {
            files.extend(self.dir(m.node.parent)?.map(|d| (d, m.node.name.clone())));
        }
        for (dir, name) in files {
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
            if let Some(dir) = self.found_dir(batch, parent)?
                && let Err(error) = self.fs.sync_dir(&dir)
            {
                return Ok(Err(error));
            }
        }
        let mut open = Vec::new();
        for id in dirs {
            open.extend(self.dir(id)?);
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

    /// Records the batch: new versions in one transaction.
    fn record_batch(&mut self, mut batch: Batch<F::Dir>) -> Result<()> {
        self.closed_seen(&batch);
        let nothing =
            batch.gone.is_empty() && batch.found.iter().all(|f| f.dropped) && batch.modified.iter().all(|m| m.dropped);
        if nothing {
            return Ok(());
        }
        self.records.begin()?;
        let mut relabel = Vec::new();
        let claimed = self.identify(&mut batch, &mut relabel)?;
        for at in 0..batch.found.len() {
            let swapped = batch.found.get(at).is_some_and(|f| !f.dropped && self.is_swapped(&batch, f));
            if let Some(found) = batch.found.get_mut(at) {
                found.swapped = swapped;
            }
        }
        // One set: both sides of a swap, the whole of a moved tree, become visible together.
        self.records.begin_changes(self.now)?;
        for at in 0..batch.found.len() {
            self.record_found(&mut batch, at, &relabel)?;
        }
        for modified in &batch.modified {
            // Its UID went to what took its name: what was written into it since is not written into that.
            if let Some(at) = relabel.iter().position(|id| *id == modified.node.id) {
                self.record_relabelled(relabel.swap_remove(at))?;
            }
            self.record_modified(modified)?;
        }
        self.record_gone(&batch, &claimed)?;
        for id in relabel {
            self.record_relabelled(id)?;
        }
        self.records.end_changes()?;
        self.note_touched_but(&batch.made)?;
        self.advance_checkpoint()?;
        self.commit()?;
        self.resolve(anabranch_engine::ResolveScope::Own)
    }

    /// Decides which UID each found thing goes on with; none: it is new. Directories first: where a file lies says which one
    /// it is. Returns the UIDs taken, and in `relabel` the nodes whose UID went to another object at their old name.
    fn identify(&mut self, batch: &mut Batch<F::Dir>, relabel: &mut Vec<NodeId>) -> Result<BTreeSet<Uid>> {
        let mut claimed = BTreeSet::new();
        self.identify_moved(batch, &mut claimed, true)?;
        // A directory that is nowhere is continued by another one that has its name.
        for at in 0..batch.found.len() {
            let Some(found) = batch.unidentified(at).filter(|f| f.stat.kind == Kind::Directory) else { continue };
            let before = found.occupant.as_ref().filter(|n| n.is_dir() && found.moved.is_none()).and_then(|n| n.uid);
            let uid = self.recorded(before, Kind::Directory)?;
            batch.identify(at, uid, &mut claimed);
        }
        self.match_view(batch, true)?;
        // The view has it just here: our own move, of which a crash left no note, or a user's of the same kind.
        for at in 0..batch.found.len() {
            let Some(found) = batch.unidentified(at).filter(|f| f.stat.kind != Kind::Directory) else { continue };
            let own = found.moved.as_ref().and_then(|n| n.uid).filter(|own| self.is_shown_at(batch, found, *own));
            let uid = self.recorded(own, found.stat.kind)?;
            batch.identify(at, uid, &mut claimed);
        }
        // A name is stronger than its object: what has the name of a file goes on with its UID.
        for at in 0..batch.found.len() {
            let Some(found) = batch.unidentified(at).filter(|f| f.stat.kind != Kind::Directory) else { continue };
            let mut memory = None;
            let mut uid = found.occupant.as_ref().filter(|n| !n.is_dir()).and_then(|n| n.uid);
            if uid.is_none() {
                let own = found.moved.as_ref().and_then(|n| n.uid);
                let hit = self.remembered(batch, found)?.filter(|(uid, _)| Some(*uid) != own);
                (uid, memory) = hit.map_or((None, None), |(uid, seen)| (Some(uid), seen));
            }
            let uid = self.recorded(uid, found.stat.kind)?;
            let Some(uid) = batch.identify(at, uid, &mut claimed) else { continue };
            let occupant = batch.found.get_mut(at).and_then(|found| {
                found.memory = memory;
                found.occupant.as_ref()
            });
            if let Some(other) = nodes::of(self.records.kv(), uid)?
                && occupant.is_none_or(|o| o.id != other.id)
                && !batch.gone.contains_key(&other.id)
            {
                relabel.push(other.id);
            }
        }
        self.identify_moved(batch, &mut claimed, false)?;
        self.match_view(batch, false)?;
        Ok(claimed)
    }

    /// An object that was elsewhere before takes its UID along.
    fn identify_moved(&self, batch: &mut Batch<F::Dir>, claimed: &mut BTreeSet<Uid>, directories: bool) -> Result<()> {
        for at in 0..batch.found.len() {
            let Some(found) = batch.unidentified(at) else { continue };
            if (found.stat.kind == Kind::Directory) != directories {
                continue;
            }
            let uid = self.recorded(found.moved.as_ref().and_then(|n| n.uid), found.stat.kind)?;
            batch.identify(at, uid, claimed);
        }
        Ok(())
    }

    /// What was closed after writing has been read since: its hash counts again.
    fn closed_seen(&mut self, batch: &Batch<F::Dir>) {
        if self.closed.is_empty() {
            return;
        }
        for found in batch.found.iter().filter(|f| !f.dropped) {
            if let Parent::Node(id) = found.parent {
                self.closed.remove(&(id, found.name.bytes().to_vec()));
            }
        }
        let modified = batch.modified.iter().filter(|m| !m.dropped).map(|m| &m.node);
        for node in modified.chain(batch.gone.values()) {
            self.closed.remove(&(node.parent, node.name.clone()));
        }
    }

    /// The view already has such a thing at that place, and it is not on disk: our own work that a crash left behind.
    fn match_view(&mut self, batch: &mut Batch<F::Dir>, directories: bool) -> Result<()> {
        for at in 0..batch.found.len() {
            let Some(found) = batch.unidentified(at) else { continue };
            if (found.stat.kind == Kind::Directory) != directories {
                continue;
            }
            let parent = match found.parent {
                Parent::Node(id) => self.node_uid(id)?,
                Parent::Found(p) => batch.found.get(p).and_then(|p| p.uid),
            };
            let Some(parent) = parent else { continue };
            let Some(shown) = self.records.shown_at(parent, found.name.bytes())? else { continue };
            if self.records.shown(shown)?.is_none_or(|s| s.name != found.name) {
                // One name by the folder's rule, in another case: we would have put it there just as it is shown.
                continue;
            }
            let directory = found.stat.kind == Kind::Directory;
            let absent = nodes::of(self.records.kv(), shown)?.is_none();
            let same = self.records.record(shown)?.is_some_and(|r| {
                let value = found.content.as_ref().map(|(c, _)| c);
                r.placement.value.directory == directory && (directory || r.content.as_ref().map(|c| &c.value) == value)
            });
            let free = !batch.found.iter().any(|f| f.uid == Some(shown));
            if let Some(found) = batch.found.get_mut(at).filter(|_| absent && same && free) {
                found.uid = Some(shown);
                found.leftover = true;
            }
        }
        Ok(())
    }

    /// Does the view show this UID at the place of what was found?
    fn is_shown_at(&self, batch: &Batch<F::Dir>, found: &Found<F::Dir>, uid: Uid) -> bool {
        let parent = match found.parent {
            Parent::Node(id) => self.node_uid(id).ok().flatten(),
            Parent::Found(p) => batch.found.get(p).and_then(|p| p.uid),
        };
        let shown = self.records.shown(uid).ok().flatten();
        shown.is_some_and(|s| Some(s.parent) == parent && s.name == found.name)
    }

    /// Was it put there by our own exchange with what the view shows where it was?
    fn is_swapped(&self, batch: &Batch<F::Dir>, found: &Found<F::Dir>) -> bool {
        let (Some(moved), Some(occupant)) = (&found.moved, &found.occupant) else { return false };
        moved.uid.is_some()
            && moved.uid == found.uid
            && batch.found.iter().any(|other| {
                other.moved.as_ref().is_some_and(|n| n.id == occupant.id)
                    && other.parent == Parent::Node(moved.parent)
                    && other.name.bytes() == moved.name
                    && other.uid.is_some_and(|uid| self.is_shown_at(batch, other, uid))
            })
    }

    /// The UID of a file that had this name a short while ago, and what whoever took it away had seen of it.
    fn remembered(&self, batch: &Batch<F::Dir>, found: &Found<F::Dir>) -> Result<Option<(Uid, Option<Knowledge>)>> {
        let Parent::Node(id) = found.parent else { return Ok(None) };
        if self.recent.is_empty() {
            return Ok(None);
        }
        let Some(parent) = self.node_uid(id)? else { return Ok(None) };
        let keep = self.now.0.saturating_sub(self.config.limits.name_memory);
        let (exact, others) = self.memory_keys(found.name.bytes());
        let mut hit = self.recent.get(&(parent, exact)).filter(|(_, at, _)| at.0 >= keep);
        if let Some((from, to)) = others.filter(|_| hit.is_none()) {
            // The last of those whose names are one name with it, unless that is a thing with a name of its own by now.
            let alike = self.recent.range((parent, from)..(parent, to)).map(|(_, vacated)| vacated);
            hit = alike.filter(|(_, at, _)| at.0 >= keep).max_by_key(|(uid, at, _)| (*at, *uid));
            if let Some((uid, ..)) = hit
                && self.records.live(*uid)?
            {
                hit = None;
            }
        }
        let Some((uid, _, seen)) = hit else { return Ok(None) };
        let uid = *uid;
        // If the file itself came back to its name it is a move, not a new content.
        let back = found.moved.as_ref().is_some_and(|n| n.uid == Some(uid));
        // Its tombstone may be collected by now: then there is nothing to continue.
        if self.records.record(uid)?.is_none() {
            return Ok(None);
        }
        // It has been made again meanwhile, and lies elsewhere: kept beside what won its name, say.
        let live = batch.found.iter().any(|f| f.uid == Some(uid)) || nodes::of(self.records.kv(), uid)?.is_some();
        let free = !back && !live && found.stat.kind != Kind::Directory;
        Ok(free.then(|| (uid, seen.clone())))
    }

    /// The key of a vacated name in the memory of names, and where there is one the range in which all names lie that are
    /// one name with it.
    #[expect(clippy::type_complexity, reason = "a key and a range of keys")]
    fn memory_keys(&self, name: &[u8]) -> (Vec<u8>, Option<(Vec<u8>, Vec<u8>)>) {
        match self.config.names {
            Names::Bytes => (name.to_vec(), None),
            Names::Windows => {
                // No name holds a zero byte, so the range holds nothing else.
                let folded = fold(name, Names::Windows);
                let of = |end: u8, name: &[u8]| [&*folded, &[end], name].concat();
                (of(0, name), Some((of(0, b""), of(1, b""))))
            }
        }
    }

    /// A UID that can still be written to by something of this kind: tombstones are collected, records forgotten after a
    /// rollback, and a record of another kind is another thing's.
    fn recorded(&self, uid: Option<Uid>, kind: Kind) -> Result<Option<Uid>> {
        let Some(uid) = uid else { return Ok(None) };
        let record = self.records.record(uid)?;
        Ok(record.filter(|r| r.placement.value.directory == (kind == Kind::Directory)).map(|r| r.uid))
    }

    /// The UID that a directory node shows.
    pub(crate) fn node_uid(&self, id: NodeId) -> Result<Option<Uid>> {
        if id == ROOT_NODE {
            return Ok(Some(Uid::ROOT));
        }
        let Some(node) = nodes::get(self.records.kv(), id)? else { return Ok(None) };
        if node.uid.is_some() {
            return Ok(node.uid);
        }
        // A directory that is being emptied into another counts as that one.
        let into = self.records.kv().get(Table::Todo, &crate::tables::dissolving_key(id))?;
        Ok(into.filter(|key| !key.is_empty()).map(|key| nodes::read_uid(&key)).transpose()?)
    }

    fn record_found(&mut self, batch: &mut Batch<F::Dir>, at: usize, relabel: &[NodeId]) -> Result<()> {
        let Some(found) = batch.found.get(at).filter(|f| !f.dropped) else { return Ok(()) };
        let (parent_node, parent) = match found.parent {
            Parent::Node(id) => (Some(id), self.node_uid(id)?),
            Parent::Found(p) => batch.found.get(p).map_or((None, None), |p| (p.node, p.uid)),
        };
        let (Some(parent_node), Some(parent_asked)) = (parent_node, parent) else {
            return self.drop_found(batch, at);
        };
        let directory = found.stat.kind == Kind::Directory;
        let parent = match batch.last_parent {
            Some((asked, parent)) if asked == parent_asked => parent,
            _ => {
                let Some(parent) = self.anew(parent_asked)? else { return self.drop_found(batch, at) };
                self.revive(parent)?;
                batch.last_parent = Some((parent_asked, parent));
                parent
            }
        };
        let Some(found) = batch.found.get(at) else { return Ok(()) };
        let (name, stat) = (found.name.clone(), found.stat.clone());
        let value = found.content.as_ref().map(|(c, _)| c.clone());
        // What the database last saw of this very UID on disk: only a difference from that is a local change.
        let base = [&found.occupant, &found.moved].into_iter().flatten().find(|n| n.uid == found.uid).cloned();
        let (attributes, leftover, memory) = (found.attributes.clone(), found.leftover, found.memory.clone());
        let unchanged = base.as_ref().and_then(|n| n.content.clone()).filter(|c| Some(&c.value) == value.as_ref());
        let mtime = stat.stamp.mtime;
        let uid = found.uid;
        let swapped = found.swapped;
        let uid = match uid {
            Some(uid) => {
                let in_place = self.records.shown(uid)?.is_some_and(|s| s.parent == parent && s.name == name);
                if swapped {
                    self.records.kv_mut().put(Table::Todo, &nodes::uid_key(uid), &[])?;
                    self.due_now(uid);
                } else if !in_place {
                    match self.records.place(self.now, uid, parent, name.clone()) {
                        // A partner's change makes it part of where it was moved to: the view decides.
                        Err(ChangeError::IntoItself(_)) => {
                            self.records.kv_mut().put(Table::Todo, &nodes::uid_key(uid), &[])?;
                        }
                        other => other?,
                    }
                }
                match (&value, &base) {
                    // A newer content may be on its way here: where it lies is no reason to write the old one anew.
                    (Some(value), Some(base)) if unchanged.as_ref().is_some_and(|c| c.bytes.is_some()) => {
                        if base.stamp.mtime != mtime {
                            self.record_content_touch(uid, value, mtime)?;
                        }
                    }
                    (Some(value), base) => {
                        // The history of a candidate is empty: whoever changed it has not seen what is recorded.
                        let seen = base.as_ref().and_then(|n| n.content.as_ref()).map(|c| &c.history);
                        self.record_content(uid, value, mtime, stat.birth, seen.or(memory.as_ref()))?;
                    }
                    (None, _) => {}
                }
                if !leftover {
                    self.record_attributes(uid, base.as_ref().map(|n| &n.attributes), &attributes)?;
                }
                uid
            }
            None => {
                let content = value.clone().map(|v| (v, mtime, stat.birth));
                let attributes = Some((attributes.clone(), directory.then_some(mtime)));
                let uid = self
                    .records
                    .add(self.now, NewThing { parent, name: name.clone(), directory, content, attributes })?;
                batch.made.insert(uid);
                uid
            }
        };
        tracing::debug!(member = self.config.member, name = ?name, ?uid, ?parent, leftover, swapped, "found");
        let mut old = nodes::of(self.records.kv(), uid)?.filter(|n| !relabel.contains(&n.id));
        if old.is_none()
            && let Some(id) = batch.found.get(at).and_then(|f| f.moved.as_ref()).filter(|n| n.is_dir()).map(|n| n.id)
        {
            // A directory that was being emptied into another, until somebody moved it.
            old = nodes::get(self.records.kv(), id)?.filter(|n| n.uid.is_none() && n.object == stat.object);
            if old.is_some() {
                self.records.kv_mut().delete(Table::Todo, &crate::tables::dissolving_key(id))?;
                self.children_due(id)?;
            }
        }
        let id = match &old {
            Some(node) => node.id,
            None => self.new_node_id(),
        };
        let provisional = found_provisional(batch, at);
        let record = self.records.record(uid)?;
        let mut node =
            Self::node_of(id, parent_node, name.bytes(), uid, &stat, value, provisional, attributes, record.as_ref());
        if let Some(content) = node.content.as_mut().filter(|c| c.bytes.is_none()) {
            // Still the content that the database knew, while a newer one is recorded.
            *content = unchanged.map_or(content.clone(), |before| OnDisk { provisional, ..before });
        }
        let applied = |n: &Node| n.attributes_version == node.attributes_version && n.attributes == node.attributes;
        let facet = record.and_then(|r| r.attributes);
        if facet.is_some_and(|f| f.value != node.attributes) && !base.as_ref().is_some_and(applied) {
            // A part of what is recorded is not on disk yet.
            node.attributes_version = Version::default();
            self.records.kv_mut().put(Table::Todo, &nodes::uid_key(uid), &[])?;
            self.due_now(uid);
        }
        if node.content.as_ref().is_some_and(|c| c.bytes.is_some() && c.version == Version::default()) {
            self.records.kv_mut().put(Table::Todo, &nodes::uid_key(uid), &[])?;
            self.due_now(uid);
        }
        if let Some(other) = nodes::at(self.records.kv(), parent_node, name.bytes())?.filter(|n| n.id != id) {
            // No two nodes have one name: what had it is elsewhere, or gone.
            batch.gone.entry(other.id).or_insert(other);
        }
        nodes::put(self.records.kv_mut(), old.as_ref(), &node)?;
        let known_before = old.is_some_and(|old| old.object == node.object);
        if let Some(found) = batch.found.get_mut(at) {
            found.uid = Some(uid);
            found.node = Some(id);
            if directory && (batch.scanning || !known_before) {
                // A new one was entered already, unless the batch was full; a second look costs little and closes the gap.
                // One that was moved has not been looked into by a scan that passed its old place.
                self.scan.insert(0, id);
                self.scanning |= batch.scanning;
            }
        }
        batch.gone.remove(&id);
        Ok(())
    }

    /// A directory whose record is forgotten, since it was deleted elsewhere while we were away, and in which somebody
    /// made something: it is a new directory. Returns its UID; `None` if it has no node either.
    fn anew(&mut self, uid: Uid) -> Result<Option<Uid>> {
        if uid == Uid::ROOT || self.records.record(uid)?.is_some() {
            return Ok(Some(uid));
        }
        let Some(node) = nodes::of(self.records.kv(), uid)?.filter(Node::is_dir) else { return Ok(None) };
        let above = match self.node_uid(node.parent)? {
            Some(above) => self.anew(above)?,
            None => None,
        };
        let (Some(parent), Ok(name)) = (above, Name::new(node.name.clone())) else { return Ok(None) };
        self.revive(parent)?;
        let attributes = Some((node.attributes.clone(), None));
        let uid = self.records.add(self.now, NewThing { parent, name, directory: true, content: None, attributes })?;
        let facet = self.records.record(uid)?.and_then(|r| r.attributes);
        let attributes_version = facet.map_or(Version::default(), |f| f.written.version);
        nodes::put(self.records.kv_mut(), Some(&node), &Node { uid: Some(uid), attributes_version, ..node.clone() })?;
        Ok(Some(uid))
    }

    /// Somebody wrote a file whose directory's record is forgotten: it goes on in the directory that is made of that one.
    pub(crate) fn keep_within(&mut self, uid: Uid) -> Result<()> {
        let Some(record) = self.records.record(uid)? else { return Ok(()) };
        let placement = record.placement.value;
        let mut made = self.anew(placement.parent)?;
        if made.is_none()
            && let Some(node) = nodes::of(self.records.kv(), uid)?
        {
            // For the sake of another thing in there the directory was made anew already.
            made = match self.node_uid(node.parent)? {
                Some(above) => self.anew(above)?,
                None => None,
            };
        }
        if let Some(parent) = made.filter(|parent| *parent != placement.parent) {
            self.records.place(self.now, uid, parent, placement.name)?;
        }
        Ok(())
    }

    /// Somebody made something in a directory that is recorded as deleted, and is live again thereby. It is recorded so:
    /// others may have collected the tombstone, and the new thing would have no directory there.
    fn revive(&mut self, uid: Uid) -> Result<()> {
        let mut at = uid;
        for _ in 0..4096 {
            let Some(placement) = self.records.record(at)?.map(|r| r.placement.value) else { return Ok(()) };
            if placement.deleted {
                match self.records.place(self.now, at, placement.parent, placement.name) {
                    Err(ChangeError::IntoItself(_)) => return Ok(()),
                    other => other?,
                }
            }
            at = placement.parent;
        }
        Ok(())
    }

    /// The node of something that lies on disk just as its record says now.
    #[expect(clippy::too_many_arguments, reason = "all of these make up one row")]
    pub(crate) fn node_after(
        &self,
        id: NodeId,
        parent: NodeId,
        name: &[u8],
        uid: Uid,
        stat: &Stat,
        value: Option<Content>,
        provisional: bool,
        attributes: Attributes,
    ) -> Result<Node> {
        let record = self.records.record(uid)?;
        Ok(Self::node_of(id, parent, name, uid, stat, value, provisional, attributes, record.as_ref()))
    }

    /// As [`Self::node_after`], with the record at hand.
    #[expect(clippy::too_many_arguments, reason = "all of these make up one row")]
    fn node_of(
        id: NodeId,
        parent: NodeId,
        name: &[u8],
        uid: Uid,
        stat: &Stat,
        value: Option<Content>,
        provisional: bool,
        attributes: Attributes,
        record: Option<&Record>,
    ) -> Node {
        let facet = record.and_then(|r| r.content.as_ref());
        let content = value.map(|value| {
            let same = facet.filter(|f| f.value == value);
            OnDisk {
                value,
                bytes: same.map(|f| f.bytes.version),
                // With another time it is not yet what is recorded: a touch of somebody else is on its way here.
                version: same.filter(|f| f.mtime == stat.stamp.mtime).map_or(Version::default(), |f| f.written.version),
                history: same.map(|f| f.written.history.clone()).unwrap_or_default(),
                provisional,
            }
        });
        Node {
            id,
            parent,
            name: name.to_vec(),
            uid: Some(uid),
            kind: stat.kind,
            object: stat.object.clone(),
            stamp: stat.stamp,
            content,
            attributes_version: record
                .and_then(|r| r.attributes.as_ref())
                .map_or(Version::default(), |f| f.written.version),
            attributes,
        }
    }

    fn record_content(
        &mut self,
        uid: Uid,
        value: &Content,
        mtime: Timestamp,
        birth: Option<Timestamp>,
        base: Option<&Knowledge>,
    ) -> Result<()> {
        let record = self.records.record(uid)?;
        let facet = record.as_ref().and_then(|r| r.content.as_ref());
        match facet {
            Some(f) if f.value == *value => {
                if f.mtime != mtime {
                    self.records.touch(self.now, uid, mtime)?;
                }
            }
            _ => self.records.write_from(self.now, uid, value.clone(), mtime, birth, base)?,
        }
        Ok(())
    }

    /// Only what differs from what was on disk is a local change; the other parts stay as the record has them.
    fn record_attributes(&mut self, uid: Uid, before: Option<&Attributes>, now: &Attributes) -> Result<()> {
        let record = self.records.record(uid)?;
        let Some(facet) = record.as_ref().and_then(|r| r.attributes.as_ref()) else {
            self.records.set_attributes(self.now, uid, now.clone(), None)?;
            return Ok(());
        };
        let Some(before) = before else {
            // A new thing that continues the UID: all of it is as its user made it.
            if facet.value != *now {
                let mtime = facet.directory_mtime;
                self.records.set_attributes(self.now, uid, now.clone(), mtime)?;
            }
            return Ok(());
        };
        if before == now {
            return Ok(());
        }
        let mut wanted = facet.value.clone();
        if before.mode != now.mode {
            wanted.mode = now.mode;
        }
        if before.owner != now.owner {
            wanted.owner = now.owner.clone();
        }
        if before.group != now.group {
            wanted.group = now.group.clone();
        }
        for (name, value) in &now.xattrs {
            if before.xattrs.get(name) != Some(value) {
                wanted.xattrs.insert(name.clone(), value.clone());
            }
        }
        for name in before.xattrs.keys() {
            if !now.xattrs.contains_key(name) {
                wanted.xattrs.remove(name);
            }
        }
        if wanted != facet.value {
            let mtime = facet.directory_mtime;
            self.records.set_attributes(self.now, uid, wanted, mtime)?;
        }
        Ok(())
    }

    fn record_modified(&mut self, modified: &Modified) -> Result<()> {
        let Some(old) = nodes::get(self.records.kv(), modified.node.id)? else { return Ok(()) };
        let Some(uid) = old.uid.filter(|_| !modified.dropped && old.object == modified.stat.object) else {
            return Ok(());
        };
        let value = modified.content.as_ref().map(|(c, _)| c.clone());
        let content = value.as_ref().map(crate::describe::value);
        tracing::debug!(member = self.config.member, name = %old.name.escape_ascii(), ?uid, content, "modified");
        let known = self.recorded(Some(uid), modified.stat.kind)?.is_some();
        if let Some(value) = value.as_ref().filter(|_| known) {
            let before = old.content.as_ref();
            let same = before.is_some_and(|c| c.value == *value && c.bytes.is_some());
            if !same {
                // The history of a candidate is empty: whoever changed it has not seen what is recorded.
                let base = before.map(|c| c.history.clone());
                self.record_content(uid, value, modified.stat.stamp.mtime, modified.stat.birth, base.as_ref())?;
                self.keep_within(uid)?;
            } else if old.stamp.mtime != modified.stat.stamp.mtime {
                // The same bytes with another time: a touch, unless a newer content is on its way here.
                self.record_content_touch(uid, value, modified.stat.stamp.mtime)?;
            }
        }
        if let Some(attributes) = modified.attributes.as_ref().filter(|_| known) {
            self.record_attributes(uid, Some(&old.attributes), attributes)?;
        }
        let mut node = old.clone();
        node.stamp = modified.stat.stamp;
        let record = self.records.record(uid)?;
        if let Some((value, provisional)) = &modified.content {
            let facet = record.as_ref().and_then(|r| r.content.as_ref()).filter(|f| f.value == *value);
            let keep = node.content.take().filter(|c| c.value == *value);
            node.content = Some(match (facet, keep) {
                (Some(f), _) => OnDisk {
                    value: value.clone(),
                    bytes: Some(f.bytes.version),
                    version: if f.mtime == node.stamp.mtime { f.written.version } else { Version::default() },
                    history: f.written.history.clone(),
                    provisional: *provisional,
                },
                (None, Some(keep)) => OnDisk { provisional: *provisional, ..keep },
                (None, None) => OnDisk {
                    value: value.clone(),
                    bytes: None,
                    version: Version::default(),
                    history: Knowledge::default(),
                    provisional: *provisional,
                },
            });
        }
        if node.content.as_ref().is_some_and(|c| c.bytes.is_some() && c.version == Version::default()) {
            self.records.kv_mut().put(Table::Todo, &nodes::uid_key(uid), &[])?;
            self.due_now(uid);
        }
        if let Some(attributes) = &modified.attributes {
            node.attributes = attributes.clone();
            if let Some(facet) = record.as_ref().and_then(|r| r.attributes.as_ref())
                && *attributes == facet.value
            {
                node.attributes_version = facet.written.version;
            }
        }
        nodes::put(self.records.kv_mut(), Some(&old), &node)?;
        Ok(())
    }

    fn record_content_touch(&mut self, uid: Uid, value: &Content, mtime: Timestamp) -> Result<()> {
        let record = self.records.record(uid)?;
        if record.and_then(|r| r.content).is_some_and(|f| f.value == *value && f.mtime != mtime) {
            self.records.touch(self.now, uid, mtime)?;
        }
        Ok(())
    }

    /// Deletes, children before parents.
    fn record_gone(&mut self, batch: &Batch<F::Dir>, claimed: &BTreeSet<Uid>) -> Result<()> {
        let mut gone: Vec<(usize, Node)> = Vec::new();
        for id in batch.gone.keys() {
            // Read anew: it may have been given another place by what was found.
            let Some(node) = nodes::get(self.records.kv(), *id)? else { continue };
            let mut depth = 0;
            let mut above = node.parent;
            while above != ROOT_NODE && depth < 4096 {
                depth += 1;
                above = nodes::get(self.records.kv(), above)?.map_or(ROOT_NODE, |n| n.parent);
            }
            gone.push((depth, node));
        }
        gone.sort_by_key(|(depth, node)| (std::cmp::Reverse(*depth), node.id));
        for (_, node) in gone {
            if node.is_dir() && !nodes::children(self.records.kv(), node.id, None, 1)?.is_empty() {
                // Something of what was in it stays for now: then so does this.
                self.again_later(node.parent, &node.name);
                continue;
            }
            nodes::remove(self.records.kv_mut(), &node)?;
            let Some(uid) = node.uid.filter(|uid| !claimed.contains(uid)) else { continue };
            tracing::debug!(member = self.config.member, name = %node.name.escape_ascii(), ?uid, "gone");
            let seen = node.content.as_ref().map(|c| c.history.clone());
            if let Some(parent) = self.node_uid(node.parent)?
                && !node.is_dir()
            {
                let (key, _) = self.memory_keys(&node.name);
                self.recent.insert((parent, key), (uid, self.now, seen.clone()));
            }
            // A directory that the view does not show is not there as it should be: taken out by ourselves, before a crash
            // or a failed sync, or emptied into another.
            if !node.is_dir() || self.records.shown(uid)?.is_some() {
                self.records.remove_from(self.now, uid, seen.as_ref())?;
            }
        }
        Ok(())
    }

    /// A file whose name was taken over keeps its bytes under its new name as a thing of its own.
    fn record_relabelled(&mut self, id: NodeId) -> Result<()> {
        let Some(old) = nodes::get(self.records.kv(), id)? else { return Ok(()) };
        let Some(parent) = self.node_uid(old.parent)? else { return Ok(()) };
        let (Ok(name), Some(on_disk)) = (Name::new(old.name.clone()), old.content.clone()) else { return Ok(()) };
        let content = Some((on_disk.value.clone(), old.stamp.mtime, None));
        let attributes = Some((old.attributes.clone(), None));
        let uid = self.records.add(self.now, NewThing { parent, name, directory: false, content, attributes })?;
        let stat = Stat {
            kind: old.kind,
            object: old.object.clone(),
            stamp: old.stamp,
            mode: 0,
            uid: 0,
            gid: 0,
            links: 1,
            birth: None,
            blocks: 0,
            foreign: false,
        };
        let new = self.node_after(
            old.id,
            old.parent,
            &old.name,
            uid,
            &stat,
            Some(on_disk.value),
            on_disk.provisional,
            old.attributes.clone(),
        )?;
        // The UID now belongs to the node at the old name: take care not to drop that index row.
        nodes::put(self.records.kv_mut(), Some(&old), &new)?;
        Ok(())
    }

    /// While no versions may be issued: what differs is noted as a candidate, and partners' state is put back.
    fn note_batch(&mut self, batch: Batch<F::Dir>) -> Result<()> {
        self.records.begin()?;
        // What was found elsewhere keeps its node, and so does a directory with something in it that is not gone.
        let claimed = batch.claimed();
        let mut gone: Vec<&Node> = batch.gone.values().filter(|n| !claimed.contains(&n.id)).collect();
        loop {
            let before = gone.len();
            let mut stay = Vec::new();
            for node in gone {
                if !nodes::children(self.records.kv(), node.id, None, 1)?.is_empty() {
                    stay.push(node);
                    continue;
                }
                if let Some(uid) = node.uid {
                    self.records.kv_mut().put(Table::Todo, &nodes::uid_key(uid), &[])?;
                }
                nodes::remove(self.records.kv_mut(), node)?;
            }
            if stay.is_empty() || stay.len() == before {
                break;
            }
            gone = stay;
        }
        for modified in batch.modified.iter().filter(|m| !m.dropped) {
            let Some(old) = nodes::get(self.records.kv(), modified.node.id)? else { continue };
            let mut node = old.clone();
            node.stamp = modified.stat.stamp;
            if let Some((value, provisional)) = &modified.content
                && node.content.as_ref().is_none_or(|c| c.value != *value)
            {
                node.content = Some(OnDisk {
                    value: value.clone(),
                    bytes: None,
                    version: Version::default(),
                    history: Knowledge::default(),
                    provisional: *provisional,
                });
            }
            if let Some(attributes) = &modified.attributes
                && node.attributes != *attributes
            {
                node.attributes = attributes.clone();
                node.attributes_version = Version::default();
            }
            nodes::put(self.records.kv_mut(), Some(&old), &node)?;
            if let Some(uid) = node.uid {
                self.records.kv_mut().put(Table::Todo, &nodes::uid_key(uid), &[])?;
            }
        }
        self.records.commit()?;
        self.work_at = Some(self.now);
        // What was found beyond the database is taken up once versions may be issued again: by a scan.
        Ok(())
    }
}

fn found_provisional<D>(batch: &Batch<D>, at: usize) -> bool {
    batch.found.get(at).and_then(|f| f.content.as_ref()).is_some_and(|(_, provisional)| *provisional)
}

/// Reads all tasks, on as many threads as the file system bears; results in the order of the tasks.
pub(crate) fn read_all<F: Fs + Sync>(fs: &F, tasks: &[Task<F::Dir>]) -> Vec<Read>
where
    F::Dir: Send + Sync,
{
    // A thread costs about as much as it takes to hash a few small files.
    let bytes: u64 = tasks.iter().filter(|task| task.content).map(|task| task.size).sum();
    let worth = tasks.len() / 16 + usize::try_from(bytes >> 18).unwrap_or(usize::MAX);
    let threads = fs.parallelism().min(tasks.len()).min(worth).max(1);
    if threads == 1 {
        return tasks.iter().map(|task| read_one(fs, task)).collect();
    }
    let next = std::sync::atomic::AtomicUsize::new(0);
    let mut results: Vec<(usize, Read)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    let mut mine = Vec::new();
                    loop {
                        let at = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        let Some(task) = tasks.get(at) else { return mine };
                        mine.push((at, read_one(fs, task)));
                    }
                })
            })
            .collect();
        workers.into_iter().flat_map(|w| w.join().expect("a reader does not panic")).collect()
    });
    results.sort_by_key(|(at, _)| *at);
    results.into_iter().map(|(_, read)| read).collect()
}

/// Was it changed after this instant, as far as its stamp says?
fn written_since(stat: &Stat, instant: Hlc) -> bool {
    let seconds = i64::try_from(instant.0 / 1_000_000).unwrap_or(i64::MAX);
    stat.stamp.ctime.seconds >= seconds
}

fn read_one<F: Fs>(fs: &F, task: &Task<F::Dir>) -> Read {
    let mut read = Read { content: None, attributes: None, stat: None, in_use: false, error: None };
    let done = (|| -> io::Result<()> {
        if task.content && task.kind == Kind::File {
            match hash_file(fs, &task.dir, &task.name)? {
                Hashing::Done { content, stat, attributes, provisional } => {
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
fn has_zeros<F: Fs>(fs: &F, dir: &F::Dir, name: &[u8]) -> io::Result<bool> {
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
