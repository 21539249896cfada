//! Local changes become versions (design, section 5).
//!
//! A batch of entries that may have changed is compared with the nodes. What was found is hashed, made durable, and then
//! recorded in one transaction, parents before children and deletes last, so that partners see a closed set. An error is
//! never an absence: only an entry that `stat` says is absent can become a delete, and only where its object is found
//! nowhere else beneath the root.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use anabranch_engine::kv::{Kv, Table};
use anabranch_model::{Attributes, Content, Hash, Hlc, Knowledge, Name, Uid, is_reserved};
use anabranch_volume::fs::{Fs, Kind, Stat};

use crate::events::EventKind;
use crate::nodes::{self, Node, NodeId, ROOT_NODE};
use crate::replica::{Phase, Replica, Result};
use crate::steps::{Step, broken};
use crate::tables::Meta;

mod doubt;
mod identify;
mod large;
mod moves;
mod read;
mod record;

pub(crate) use large::Large;
pub(crate) use read::{read_all, written_since};

/// How often, in microseconds, directories that something is mounted over are looked at, and how many at most; the others
/// wait for the next comparison of everything.
const COVERED: u64 = 60_000_000;
const COVERED_MAX: usize = 1024;

/// A change of an entry within the tick of the clock in which we wrote it was made at most this long ago when it is compared
/// for the first time, microseconds.
const LATELY: u64 = 2_000_000;

/// What is not recorded after so long, microseconds, is reported.
const LONG: u64 = 120_000_000;

/// How far up the directories of something are looked for that moved with them; what lies deeper waits for the events of
/// its own directories.
const DEEPEST: usize = 128;

/// Why an entry is looked at again and again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unrecorded {
    InUse,
    Unreadable,
    /// Its name was left, or taken by something else, or it lies in what was: all of that is recorded together.
    Together,
}

impl Unrecorded {
    /// For people.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::InUse => "in use",
            Self::Unreadable => "not readable; the events say why",
            Self::Together => "to be recorded together with other things that were moved",
        }
    }
}

/// An entry that could not be recorded when it was looked at.
pub(crate) struct Unsettled {
    since: Hlc,
    pub(crate) why: Unrecorded,
    /// When that was found.
    at: Hlc,
    reported: bool,
}

impl Unsettled {
    /// The clock was set back by so much.
    pub(crate) fn set_back(&mut self, by: u64) {
        self.since.0 = self.since.0.saturating_sub(by);
    }
}

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
    /// Those of them that lie in a directory that was preserved whole, or are one: no user need have deleted them.
    put_back: BTreeSet<NodeId>,
    /// Nodes that have another object now, see [`Replica::is_copy`].
    copies: Vec<Node>,
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

    /// By which entry of a directory that the database has an entry is found again.
    fn looked_up_by(&self, parent: Parent, name: &[u8]) -> Option<(NodeId, Vec<u8>)> {
        let mut top = (parent, name.to_vec());
        loop {
            match top.0 {
                Parent::Node(id) => return Some((id, top.1)),
                Parent::Found(above) => {
                    let found = self.found.get(above)?;
                    top = (found.parent, found.name.bytes().to_vec());
                }
            }
        }
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
    /// What was found there.
    pub(crate) seen: Stat,
    /// Of a large file: what it was when it was hashed, slice by slice, and the hash.
    pub(crate) known: Option<(Stat, Hash)>,
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
            self.clocks_differ();
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
        self.lower(true)?;
        let mut batch = Batch {
            found: Vec::new(),
            modified: Vec::new(),
            gone: BTreeMap::new(),
            put_back: BTreeSet::new(),
            copies: Vec::new(),
            made: BTreeSet::new(),
            scanning: self.comparison_owed(),
            last_parent: None,
        };
        let mut seen = BTreeSet::new();
        let limit = self.batch_entries();
        while seen.len() < limit {
            if let Some(key) = self.changed.pop_first() {
                self.look(&mut batch, &mut seen, key.0, key.1)?;
            } else if let Some(dir) = self.scan.take() {
                self.look_whole(&mut batch, &mut seen, dir)?;
            } else {
                break;
            }
        }
        if self.scanning && self.scan.is_empty() && self.changed.is_empty() {
            self.scanning = false;
            self.looked_for = std::mem::take(&mut self.missing);
            for id in self.looked_for.clone() {
                let Some(node) = nodes::get(self.records.kv(), id)? else { continue };
                if self.displaced(&node)? {
                    batch.gone.insert(id, node);
                } else {
                    self.look(&mut batch, &mut seen, node.parent, node.name)?;
                }
            }
        }
        self.enter_found(&mut batch, &mut seen)?;
        self.match_objects(&mut batch, &mut seen)?;
        self.looked_for.clear();
        self.take_copies(&mut batch)?;
        self.read_batch(&mut batch)?;
        if self.suspect || !self.unsynced.is_empty() {
            self.doubt(&mut batch)?;
        }
        if self.phase == Phase::Normal {
            self.record_batch(batch)?;
        } else {
            self.note_batch(batch)?;
        }
        if self.suspect && !self.scanning && self.comparison_owed() {
            self.compared_at.get_or_insert(self.now);
        }
        if self.suspect && !self.comparison_owed() {
            self.suspect = false;
            self.compared_at = None;
            // Not before: who dies in the middle of it begins anew.
            self.records.begin()?;
            self.records.kv_mut().put(Table::Meta, Meta::BOOT, &self.config.boot)?;
            self.advance_checkpoint()?;
            self.commit()?;
        }
        if !self.changed.is_empty() || !self.scan.is_empty() {
            self.observe_at = Some(self.now);
        }
        if self.undone.is_owed() || self.unsynced.is_owed() {
            self.records.begin()?;
            self.undone.settle(self.records.kv_mut())?;
            self.unsynced.settle(self.records.kv_mut())?;
            self.records.commit()?;
        }
        self.report_unsettled()?;
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

    /// Looks at an entry again after a while; with an empty name at the whole of the directory. What waits for that already is
    /// not put off: each of many things that wait for it would do so in turn.
    #[track_caller]
    fn again_later(&mut self, parent: NodeId, name: &[u8]) {
        // Where the decision was made is what one wants to know of an entry that never comes to rest.
        let decided = std::panic::Location::caller().line();
        tracing::debug!(member = self.config.member, name = %name.escape_ascii(), decided, "looked at again later");
        self.later.entry((parent, name.to_vec())).or_insert(Hlc(self.now.0 + self.config.limits.retry));
        self.unsettled_for(parent, name, Unrecorded::Together);
    }

    /// Notes why an entry is looked at again; of several reasons found at one time the one that is its own.
    fn unsettled_for(&mut self, parent: NodeId, name: &[u8], why: Unrecorded) {
        let now = self.now;
        let new = Unsettled { since: now, why, at: now, reported: false };
        let noted = self.unsettled.entry((parent, name.to_vec())).or_insert(new);
        if noted.at != now || noted.why == Unrecorded::Together {
            (noted.at, noted.why) = (now, why);
        }
    }

    /// Says what could not be recorded for long, and why.
    fn report_unsettled(&mut self) -> Result<()> {
        if !self.changed.is_empty() || !self.scan.is_empty() {
            return Ok(());
        }
        let (later, now) = (&self.later, self.now);
        self.unsettled.retain(|key, _| later.contains_key(key));
        let mut waiting = Vec::new();
        for ((parent, name), noted) in &mut self.unsettled {
            if !noted.reported && now.0.saturating_sub(noted.since.0) >= LONG {
                noted.reported = true;
                waiting.push((*parent, name.clone(), noted.why));
            }
        }
        for (parent, name, why) in waiting {
            let path = String::from_utf8_lossy(&self.node_path(parent, &name)?).into_owned();
            self.report_once(EventKind::ChangeWaits, format!("{path}: {}", why.words()));
        }
        Ok(())
    }

    /// Has another node the name of this one, or had it and left it? Then it is elsewhere or gone, and no look at its name
    /// tells.
    fn displaced(&self, node: &Node) -> Result<bool> {
        let named = node.id != ROOT_NODE && node.id != nodes::STAGING_NODE;
        Ok(named && nodes::at(self.records.kv(), node.parent, &node.name)?.is_none_or(|found| found.id != node.id))
    }

    /// As [`Self::again_later`], of what a node stands for.
    #[track_caller]
    fn node_again_later(&mut self, node: &Node) -> Result<()> {
        match self.displaced(node)? {
            true => self.again_later(node.id, b""),
            false => self.again_later(node.parent, &node.name),
        }
        Ok(())
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
            // A scan follows once the records were compared.
            Ok(None) if self.phase == Phase::Returning && !self.absence_doubted => return Ok(()),
            Ok(None) => {
                // The directory itself is in flux. If it is still in the database its own entry will be looked at, and
                // what this hint was about as soon as it is found again or known to be gone.
                seen.remove(&(parent, name.clone()));
                if let Some(node) = nodes::get(self.records.kv(), parent)? {
                    if self.displaced(&node)? {
                        let child = nodes::at(self.records.kv(), parent, &name)?;
                        batch.gone.extend(child.into_iter().chain([node]).map(|n| (n.id, n)));
                        return Ok(());
                    }
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
            Ok(stat) => {
                let node = nodes::at(self.records.kv(), parent, &name)?;
                let hidden = stat.as_ref().zip(node.as_ref()).is_some_and(|(s, n)| self.differs_unseen(&dir, s, n));
                self.compare_with(batch, parent, name, stat, node, hidden)
            }
            Err(_) if broken(Step::ErrorIsNotAbsence) => {
                let node = nodes::at(self.records.kv(), parent, &name)?;
                self.compare_with(batch, parent, name, None, node, false)
            }
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
                    if self.displaced(&node)? {
                        self.unread.remove(&id);
                        batch.gone.insert(id, node);
                        return Ok(());
                    }
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
        let listed = anabranch_volume::walk::scan_directories(&self.fs, vec![(id.0, dir.clone())]);
        // After a power cut everything: what somebody set before it may have reached the disk, and the new ctime not.
        let lately = if self.suspect { Hlc(0) } else { Hlc(self.now.0.saturating_sub(LATELY)) };
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
                    self.scan.next(node.id);
                }
                if !seen.insert((id, name.clone())) {
                    continue;
                }
                let changed = stat.as_ref().filter(|s| written_since(s, lately)).zip(node.as_ref());
                let hidden = changed.is_some_and(|(s, n)| self.differs_unseen(&dir, s, n));
                self.compare_with(batch, id, name, stat, node, hidden)?;
            }
        }
        Ok(())
    }

    /// Is there a directory that a comparison has not come to, or could not read? What moves out of it is looked into.
    pub(crate) fn comparison_owed(&self) -> bool {
        self.scanning || !self.unread.is_empty()
    }

    fn cannot_read(&mut self, parent: NodeId, name: &[u8], error: &io::Error) -> Result<()> {
        if self.suspect && !name.is_empty() {
            // It is read when it can be, though everything else may have been compared by then.
            self.closed.insert((parent, name.to_vec()));
        }
        let path = String::from_utf8_lossy(&self.node_path(parent, name)?).into_owned();
        self.report_once(EventKind::CannotRead, format!("{path}: {error}"));
        self.again_later(parent, name);
        self.unsettled_for(parent, name, Unrecorded::Unreadable);
        Ok(())
    }

    /// One entry, as it is and as the database has it. `hidden`: it differs though its stamp does not.
    fn compare_with(
        &mut self,
        batch: &mut Batch<F::Dir>,
        parent: NodeId,
        name: Vec<u8>,
        stat: Option<Stat>,
        node: Option<Node>,
        hidden: bool,
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
        let node = match node {
            Some(node) if self.is_copy(&node, &stat, batch.scanning)? => {
                let copy = Node { object: stat.object.clone(), ..node };
                batch.copies.push(copy.clone());
                Some(copy)
            }
            other => other,
        };
        if let Some(node) = &node
            && node.object == stat.object
            && node.kind == stat.kind
        {
            // It is where the database has it: what it was moved to is not ours any more.
            self.undone.forget(&node.object);
            if self.lifting.holds(node.id) {
                // Its mode is of our making still.
                self.again_later(parent, &name);
                return Ok(());
            }
            let doubted = self.suspect && node.kind == Kind::File && written_since(&stat, self.checkpoint);
            if doubted || self.unsynced.is_former(&node.object) {
                // Until it is read; also if it is in use now.
                self.closed.insert((parent, name.clone()));
            }
            let provisional =
                node.content.as_ref().is_some_and(|c| c.provisional) || self.closed.contains(&(parent, name.clone()));
            // These, too: somebody's chmod in the same tick of the clock as our own call leaves the stamp as it was.
            let differs = hidden
                || node.attributes.owner.number != stat.uid
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
                        self.add_child(batch, at - 1, entry.name, stat)?;
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

    /// The path of something in a directory that was found, for people.
    fn path_in_found(&self, batch: &Batch<F::Dir>, directory: usize, name: &[u8]) -> Result<String> {
        let (mut parent, mut path) = (Parent::Found(directory), name.to_vec());
        while let Parent::Found(at) = parent {
            let Some(above) = batch.found.get(at) else { break };
            path = [above.name.bytes(), b"/", &path].concat();
            parent = above.parent;
        }
        if let Parent::Node(id) = parent {
            path = self.node_path(id, &path)?;
        }
        Ok(String::from_utf8_lossy(&path).into_owned())
    }

    fn add_child(&mut self, batch: &mut Batch<F::Dir>, parent: usize, name: Vec<u8>, stat: Stat) -> Result<()> {
        if stat.foreign {
            return Ok(());
        }
        let left_out = match (stat.kind, Name::new(name.clone())) {
            (Kind::Other, _) => EventKind::Skipped,
            (_, Err(_)) => EventKind::ReservedName,
            (_, Ok(name)) => {
                Self::push_child(batch, parent, name, stat);
                return Ok(());
            }
        };
        let path = self.path_in_found(batch, parent, &name)?;
        self.report_once(left_out, path);
        Ok(())
    }

    fn push_child(batch: &mut Batch<F::Dir>, parent: usize, name: Name, stat: Stat) {
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
        if let Some((id, top)) = batch.looked_up_by(parent, name.bytes()) {
            if let Parent::Found(_) = parent {
                // Its directory is recorded with this batch; it is scanned for what was left out.
                self.later.insert((id, top), Hlc(self.now.0 + self.config.limits.retry));
            } else {
                self.again_later(id, name.bytes());
            }
        }
        Ok(())
    }
}
