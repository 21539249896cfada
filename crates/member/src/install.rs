//! The tree is made to show the view (design, section 8).
//!
//! Work is done in batches of two transactions. The first one plans: directories are made and moved, attributes applied,
//! private files prepared and made durable, install intents written. The second one puts names in place, looks at what
//! came out, makes the directories durable, and only then says in the database what is held. A crash at any point
//! leaves the old content or the new one at every name, and the database tells which.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use anabranch_engine::Rule;
use anabranch_engine::kv::{Kv, Table};
use anabranch_model::{
    AttributesFacet, ChangeNumber, Content, ContentFacet, Hash, Hlc, Record, Timestamp, Uid, Version,
};
use anabranch_net::message::{Bytes, Message};
use anabranch_volume::fs::{FileStamp, Fs, Kind, Object, Stat};
use anabranch_volume::walk::share_out;

use crate::events::EventKind;
use crate::fetch::{private_name, room_for_contents};
use crate::nodes::{self, Node, NodeId, ROOT_NODE, STAGING_NODE};
use crate::observe::written_since;
use crate::replica::{Phase, Replica, Result, Waiting};
use crate::steps::{Step, broken};
use crate::tables::{self, Intent, Preserved, Reason, Work};
use crate::undone::{Given, Put};

pub(crate) use ahead::{Ahead, Arrived};
use ahead::{MadeFor, Prepared, write_private};

mod ahead;
mod place;

/// A content that is here, verified, and not yet in the tree.
pub(crate) enum Ready<File> {
    /// A small one, in memory.
    Bytes { bytes: Bytes, hash: Hash },
    /// A small one that is being written to its private file.
    Writing { size: u64, hash: Hash },
    /// A small one in its private file, which is complete but for what has changed since it was wanted.
    Written { size: u64, hash: Hash, made_for: MadeFor, prepared: Box<Prepared<File>> },
    /// In a private file in staging.
    Staged { name: Vec<u8>, size: u64, hash: Hash },
}

impl<File> Ready<File> {
    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::Bytes { bytes, .. } => bytes.len() as u64,
            Self::Writing { size, .. } | Self::Written { size, .. } | Self::Staged { size, .. } => *size,
        }
    }

    fn hash(&self) -> &Hash {
        match self {
            Self::Bytes { hash, .. }
            | Self::Writing { hash, .. }
            | Self::Written { hash, .. }
            | Self::Staged { hash, .. } => hash,
        }
    }

    /// Does it lie in a private file?
    pub(crate) fn has_file(&self) -> bool {
        !matches!(self, Self::Bytes { .. })
    }
}

/// What is ready, with its sums at hand: they are asked for with every piece that comes.
pub(crate) struct ReadySet<File> {
    items: BTreeMap<Uid, Ready<File>>,
    small_bytes: u64,
    large_bytes: u64,
}

impl<File> Default for ReadySet<File> {
    fn default() -> Self {
        Self { items: BTreeMap::new(), small_bytes: 0, large_bytes: 0 }
    }
}

impl<File> ReadySet<File> {
    pub(crate) fn insert(&mut self, uid: Uid, ready: Ready<File>) {
        self.remove(uid);
        *self.sum(&ready) += ready.size();
        self.items.insert(uid, ready);
    }

    pub(crate) fn remove(&mut self, uid: Uid) -> Option<Ready<File>> {
        let ready = self.items.remove(&uid)?;
        *self.sum(&ready) -= ready.size();
        Some(ready)
    }

    pub(crate) fn get(&self, uid: Uid) -> Option<&Ready<File>> {
        self.items.get(&uid)
    }

    /// Takes what was written ahead for just this content; its private file stays, as of one that waits in staging.
    fn take_written(&mut self, uid: Uid, content: &Content) -> Option<(MadeFor, Prepared<File>)> {
        let Content::File { hash: wanted, .. } = content else { return None };
        if !matches!(self.items.get(&uid), Some(Ready::Written { hash, .. }) if hash == wanted) {
            return None;
        }
        let Some(Ready::Written { size, hash, made_for, prepared }) = self.remove(uid) else { return None };
        self.insert(uid, Ready::Staged { name: private_name(uid), size, hash });
        Some((made_for, *prepared))
    }

    /// Contents in private files, whoever wrote them.
    pub(crate) fn in_files(&self) -> impl Iterator<Item = Uid> {
        self.items.iter().filter(|(_, ready)| ready.has_file()).map(|(uid, _)| *uid)
    }

    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    /// Files that wait in staging: UID, size, hash.
    pub(crate) fn staged(&self) -> impl Iterator<Item = (Uid, u64, Hash)> {
        self.items.iter().filter_map(|(uid, ready)| match ready {
            Ready::Staged { size, hash, .. } => Some((*uid, *size, *hash)),
            Ready::Bytes { .. } | Ready::Writing { .. } | Ready::Written { .. } => None,
        })
    }

    /// Bytes of small contents.
    pub(crate) fn small_bytes(&self) -> u64 {
        self.small_bytes
    }

    /// Bytes that wait in staging.
    pub(crate) fn large_bytes(&self) -> u64 {
        self.large_bytes
    }

    /// Contents of which nothing is known yet but that they are being written.
    fn being_written(&self) -> Vec<Uid> {
        let writing = self.items.iter().filter(|(_, ready)| matches!(ready, Ready::Writing { .. }));
        writing.map(|(uid, _)| *uid).collect()
    }

    /// Contents that were written ahead.
    fn written(&self) -> usize {
        self.items.values().filter(|ready| matches!(ready, Ready::Written { .. })).count()
    }

    fn sum(&mut self, ready: &Ready<File>) -> &mut u64 {
        match ready {
            Ready::Bytes { .. } | Ready::Writing { .. } | Ready::Written { .. } => &mut self.small_bytes,
            Ready::Staged { .. } => &mut self.large_bytes,
        }
    }
}

/// What came of looking at one item.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Looked {
    /// The tree shows the view there.
    Done,
    /// It is part of the batch.
    Planned,
    /// Later, and why.
    Wait(Waiting),
}

/// A file or symlink that is to be prepared and put in place.
struct Planned<F: Fs> {
    uid: Uid,
    facet: ContentFacet,
    wanted: Option<AttributesFacet>,
    parent: NodeId,
    dir: F::Dir,
    name: Vec<u8>,
    replaces: Option<Node>,
    preserved: u64,
}

/// A file or symlink that is to be put in place.
struct Install<F: Fs> {
    uid: Uid,
    facet: ContentFacet,
    attributes_version: Version,
    parent: NodeId,
    dir: F::Dir,
    name: Vec<u8>,
    private: Vec<u8>,
    /// The private file as it was prepared.
    prepared: Stat,
    attributes: anabranch_model::Attributes,
    /// What has the name now: an older content of this UID, or another file that leaves.
    replaces: Option<Node>,
    preserved: u64,
    /// Of the file to be replaced, while the lease is held.
    guard: Option<(F::File, FileStamp)>,
    exchanged: bool,
    /// Why that is preserved.
    reason: Reason,
    outcome: Outcome,
}

/// A file that is to be taken out of the tree.
struct Removal<F: Fs> {
    node: Node,
    dir: F::Dir,
    reason: Reason,
    number: u64,
    guard: Option<(F::File, FileStamp)>,
    outcome: Outcome,
}

/// How an item of a batch ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outcome {
    Under,
    Done,
    Wait(Waiting),
}

/// One batch.
struct Batch<F: Fs> {
    planned: Vec<Planned<F>>,
    installs: Vec<Install<F>>,
    removals: Vec<Removal<F>>,
    /// UIDs looked at in this batch, and what came of it.
    visited: BTreeMap<Uid, Option<Looked>>,
    /// What was put aside, and how often.
    aside: BTreeMap<Uid, u32>,
    /// Directories whose entries changed.
    dirs: BTreeSet<NodeId>,
    /// Those in which directories were made, in order: made durable first, since other directories' entries go there.
    grown: Vec<NodeId>,
    /// Private files whose data is not durable yet.
    files: Vec<F::File>,
    /// What came of giving the first of them to the disk while the others were written.
    begun: io::Result<()>,
    /// Nodes that were made, moved or changed in place.
    moved: BTreeSet<NodeId>,
    /// What was changed or made without a descriptor of its own: attributes in place, symlinks. Only a sync of everything
    /// makes it durable.
    unopened: usize,
    next_preserved: u64,
    /// Where the records stood when it was planned.
    planned_at: ChangeNumber,
    /// Bytes on the disk that contents may take, asked once.
    room: Option<u64>,
}

/// Rows of Todo looked at in one step.
const ROWS: usize = 4096;
/// How often one thing is put aside in one step before it waits.
const ASIDE_MAX: u32 = 4;
/// Directories remembered that could be neither finished nor removed.
const HALF_MADE_MAX: usize = 1024;
/// Rows of Todo asked, each time nothing is under way, whether they were forgotten.
const FORGOTTEN_ROWS: usize = 16;
/// Moves remembered for hints that come late; beyond it the whole tree is compared.
const MOVED_AWAY_MAX: usize = 100_000;
/// From so many private files on, the first half of them is flushed while the second one is written.
const HALVED_FROM: usize = 256;
/// From so many private files on that were written ahead, they are flushed while the batch is planned.
const FLUSHED_AHEAD_FROM: usize = 64;

impl<F: Fs + Sync, K: Kv> Replica<F, K>
where
    F::Dir: Send + Sync,
    F::File: Send,
{
    /// An item can be gone on with: at once if nothing else is on its way, else in a batch with what is.
    pub(crate) fn due_now(&mut self, uid: Uid) {
        let key = nodes::uid_key(uid).to_vec();
        self.waiting.remove(&key);
        self.due.insert(key);
        let limits = &self.config.limits;
        let full = self.ready.len() >= limits.batch_installs || self.ready.small_bytes() >= limits.batch_bytes;
        let wait = match self.fetching.len() {
            _ if full || !self.fetching.under_way() => 0,
            // Much is on its way: larger batches cost fewer flushes.
            len if len >= limits.batch_installs / 8 => limits.batch_wait_many,
            _ => limits.batch_wait,
        };
        let at = Hlc(self.now.0 + wait);
        self.work_at = Some(self.work_at.map_or(at, |before| before.min(at)));
    }

    /// An item waits.
    pub(crate) fn due_at(&mut self, uid: Uid, why: Waiting) {
        self.wait(nodes::uid_key(uid).to_vec(), why);
        self.work_at = Some(self.work_at.map_or(Hlc(self.now.0 + self.config.limits.retry), |at| at));
    }

    /// Does one batch of what is to be done so that the tree shows the view.
    pub(crate) fn work(&mut self) -> Result<()> {
        self.work_at = None;
        if self.phase == Phase::Joining || !self.root_is_there()? {
            return Ok(());
        }
        if std::mem::take(&mut self.unnoted_parked) {
            self.take_up_parked()?;
        }
        self.take_up_written();
        self.remove_leftovers();
        self.lift()?;
        let done = self.remove_half_made().and_then(|()| self.work_on_batch());
        let lowered = self.lower(done.is_ok());
        done.and(lowered)
    }

    fn work_on_batch(&mut self) -> Result<()> {
        let now = self.now;
        let late: Vec<_> = self.waiting.iter().filter(|(_, (at, _))| *at <= now).map(|(k, _)| k.clone()).collect();
        for key in late {
            self.waiting.remove(&key);
            self.due.insert(key);
        }
        // The disk works while the batch is planned. What counts is the flush at the end, and this one's error.
        let begun = (self.ready.written() >= FLUSHED_AHEAD_FROM).then(|| {
            let fs = self.fs.clone();
            self.beside.run(move || fs.sync_all())
        });
        self.records.begin()?;
        let mut batch = Batch {
            planned: Vec::new(),
            installs: Vec::new(),
            removals: Vec::new(),
            visited: BTreeMap::new(),
            aside: BTreeMap::new(),
            dirs: BTreeSet::new(),
            grown: Vec::new(),
            files: Vec::new(),
            begun: Ok(()),
            moved: BTreeSet::new(),
            unopened: 0,
            next_preserved: tables::next_preserved(self.records.kv())?,
            planned_at: self.records.change_number(),
            room: None,
        };
        let mut rows = 0;
        while rows < ROWS && batch.planned.len() + batch.removals.len() < self.config.limits.batch_installs {
            let Some(key) = self.next_row()? else { break };
            rows += 1;
            if !self.look_at_row(&mut batch, &key)? {
                break;
            }
        }
        // While the window is full the walk stands still; content that arrives wakes it.
        if !self.due.is_empty() || !(self.walk_done || self.window_full) {
            self.work_at = Some(now);
        }
        self.prepare_batch(&mut batch)?;
        if let Some(begun) = begun {
            let begun = begun.wait().unwrap_or_else(|| Err(io::ErrorKind::Other.into()));
            batch.begun = std::mem::replace(&mut batch.begun, Ok(())).and(begun);
        }
        if let Err(error) = self.make_durable(&mut batch)? {
            return self.undo_batch(&batch, &error);
        }
        self.write_intents(&batch)?;
        self.advance_checkpoint()?;
        self.records.commit()?;
        if !batch.installs.is_empty() || !batch.removals.is_empty() {
            self.put_in_place(batch)?;
        }
        let next = self.waiting.values().map(|(at, _)| *at).filter(|at| at.0 != u64::MAX).min();
        self.work_at = [self.work_at, next].into_iter().flatten().min();
        Ok(())
    }

    /// The next row of Todo to look at: what is due first, then on with the walk through the table.
    fn next_row(&mut self) -> Result<Option<Vec<u8>>> {
        while let Some(key) = self.due.pop_first() {
            if self.records.kv().get(Table::Todo, &key)?.is_some() {
                return Ok(Some(key));
            }
        }
        while !self.walk_done {
            let rows = self.records.kv().range(Table::Todo, &self.work_from, None, 1)?;
            let Some((key, _)) = rows.into_iter().next() else {
                self.walk_done = true;
                self.work_from.clear();
                break;
            };
            self.work_from.clone_from(&key);
            self.work_from.push(0);
            if !self.waiting.contains_key(&key) {
                return Ok(Some(key));
            }
        }
        Ok(None)
    }

    /// `false`: no more rows in this batch.
    fn look_at_row(&mut self, batch: &mut Batch<F>, key: &[u8]) -> Result<bool> {
        let looked = match tables::read_work(key)? {
            Work::Uid(uid) => self.look_at(batch, uid, 0)?,
            Work::Dissolve(id) => self.dissolve(batch, id)?,
        };
        match looked {
            Looked::Done => self.records.kv_mut().delete(Table::Todo, key)?,
            Looked::Planned => {}
            Looked::Wait(Waiting::Content) if !self.content_wanted(key)? => {
                // The window is full: the walk goes on from here when there is room.
                self.walk_again_from(key);
                self.window_full = true;
                return Ok(false);
            }
            Looked::Wait(why) => self.wait(key.to_vec(), why),
        }
        Ok(true)
    }

    /// Nothing on the list of work may be forgotten: a row that neither waits nor will be come by is walked to again.
    pub(crate) fn look_for_forgotten(&mut self) -> Result<()> {
        if !self.walk_done || !self.due.is_empty() || self.work_at.is_some_and(|at| at <= self.now) {
            return Ok(());
        }
        for (key, _) in self.records.kv().range(Table::Todo, &[], None, FORGOTTEN_ROWS)? {
            let forgotten = match self.waiting.get(&key) {
                None => true,
                Some((_, Waiting::Content)) => !self.content_on_its_way(&key)?,
                Some(_) => false,
            };
            if forgotten {
                tracing::debug!(member = self.config.member, row = ?tables::read_work(&key)?, "walked to again");
                self.waiting.remove(&key);
                self.walk_again_from(&[]);
                let at = Hlc(self.now.0 + self.config.limits.retry / 4);
                self.work_at = Some(self.work_at.map_or(at, |before| before.min(at)));
                break;
            }
        }
        Ok(())
    }

    /// Of a row that was just looked at: is its content on the list of what is fetched, or was there no room there?
    fn content_wanted(&self, key: &[u8]) -> Result<bool> {
        Ok(matches!(tables::read_work(key)?, Work::Uid(uid) if self.fetching.wants_any(uid)))
    }

    fn content_on_its_way(&self, key: &[u8]) -> Result<bool> {
        let Work::Uid(uid) = tables::read_work(key)? else { return Ok(false) };
        let record = self.records.record(uid)?;
        Ok(match record.and_then(|r| r.content).map(|f| f.value) {
            Some(Content::File { hash, .. }) => self.fetching.wants(uid, &hash),
            _ => false,
        })
    }

    fn wait(&mut self, key: Vec<u8>, why: Waiting) {
        let until = match why {
            Waiting::Content => Hlc(u64::MAX),
            Waiting::Order => Hlc(self.now.0 + self.config.limits.retry / 4),
            _ => Hlc(self.now.0 + self.config.limits.retry),
        };
        // Bounded: what is not noted is met again by the next walk.
        if self.waiting.len() < 100_000 {
            self.waiting.insert(key, (until, why));
        } else {
            self.walk_again_from(&[]);
        }
    }

    /// The walk through Todo comes by this row once more: it never goes past a row that nobody else will look at.
    pub(crate) fn walk_again_from(&mut self, key: &[u8]) {
        if self.walk_done || self.work_from.as_slice() > key {
            self.work_from = key.to_vec();
        }
        self.walk_done = false;
    }

    /// What the view wants of one UID, against what is on disk.
    fn look_at(&mut self, batch: &mut Batch<F>, uid: Uid, depth: usize) -> Result<Looked> {
        // What waited for the order while another was looked at may put things aside when its own turn comes.
        let again = |before: &Option<Looked>| depth == 0 && *before == Some(Looked::Wait(Waiting::Order));
        if let Some(before) = batch.visited.get(&uid).filter(|before| !again(before)) {
            return Ok(before.unwrap_or(Looked::Wait(Waiting::Order)));
        }
        if depth > 64 {
            return Ok(Looked::Wait(Waiting::Order));
        }
        batch.visited.insert(uid, None);
        let looked = self.look_at_new(batch, uid, depth)?;
        batch.visited.insert(uid, Some(looked));
        if looked == Looked::Done {
            self.records.kv_mut().delete(Table::Todo, &nodes::uid_key(uid))?;
        }
        Ok(looked)
    }

    fn look_at_new(&mut self, batch: &mut Batch<F>, uid: Uid, depth: usize) -> Result<Looked> {
        let Some((record, Some(shown))) = self.records.record_and_shown(uid)? else {
            self.drop_content(uid)?;
            return match nodes::of(self.records.kv(), uid)? {
                // It has to be noted before it can be taken out; and who has none of it has let its record go.
                None if self.is_unnoted(uid)? => Ok(Looked::Wait(Waiting::LocalChange)),
                None => Ok(Looked::Done),
                Some(node) if node.is_dir() => self.take_out_dir(batch, uid, &node, depth),
                Some(node) => self.plan_removal(batch, uid, node),
            };
        };
        // The directory first: so it is at its final place, and nothing is moved into itself.
        if shown.parent != Uid::ROOT {
            let key = nodes::uid_key(shown.parent);
            if self.records.kv().get(Table::Todo, &key)?.is_some() {
                self.look_at(batch, shown.parent, depth + 1)?;
            }
        }
        let Some(parent) = nodes::of(self.records.kv(), shown.parent)?.filter(Node::is_dir) else {
            return Ok(Looked::Wait(Waiting::Order));
        };
        let name = shown.name.bytes();
        // Only now: the look at its directory may have moved it, parked it or made it part of another.
        let node = match nodes::of(self.records.kv(), uid)? {
            Some(node) if (node.parent, &node.name[..]) != (parent.id, name) => {
                match self.move_node(batch, &node, &parent, name, depth)? {
                    Ok(node) => Some(node),
                    Err(why) => return Ok(Looked::Wait(why)),
                }
            }
            node => node,
        };
        if shown.directory {
            return match node {
                Some(node) => self.fix_attributes(batch, &record, node),
                // A second one would be left where the first is by now, and look like a user's own.
                None if self.is_unnoted(uid)? => Ok(Looked::Wait(Waiting::LocalChange)),
                None => self.make_dir(batch, &record, &parent, name, depth),
            };
        }
        let Some(facet) = record.content.clone() else { return Ok(Looked::Done) };
        match node {
            Some(node)
                if node.content.as_ref().is_some_and(|c| c.value == facet.value)
                    && !self.would_write_through_a_link(&record, &facet, &node)? =>
            {
                self.drop_content(uid)?;
                self.same_content(batch, &record, &facet, node)
            }
            node => self.plan_install(batch, &record, facet, &parent, name, node, depth),
        }
    }

    fn drop_content(&mut self, uid: Uid) -> Result<()> {
        self.stop_fetching(uid)?;
        if matches!(self.ready.get(uid), Some(Ready::Writing { .. })) {
            self.take_up_written();
        }
        match self.ready.remove(uid) {
            Some(ready) if ready.has_file() => self.drop_partial(uid),
            _ => Ok(()),
        }
    }

    /// Looks at an entry of the tree; what the database does not expect there is a local change.
    fn expect_at(
        &mut self,
        parent: NodeId,
        name: &[u8],
        node: Option<&Node>,
    ) -> Result<std::result::Result<F::Dir, Waiting>> {
        let Some(dir) = self.dir(parent)? else {
            if let Some(above) = nodes::get(self.records.kv(), parent)? {
                self.local_change(above.parent, &above.name);
            }
            return Ok(Err(Waiting::LocalChange));
        };
        match self.fs.stat(&dir, name) {
            Ok(found) => {
                let same = match (&found, node) {
                    (None, None) => true,
                    (Some(stat), Some(node)) => stat.object == node.object,
                    _ => false,
                };
                if same && found.is_some_and(|stat| self.is_doubted(node, &stat)) {
                    self.observe_at.get_or_insert(self.now);
                    Ok(Err(Waiting::LocalChange))
                } else if same {
                    Ok(Ok(dir))
                } else {
                    self.local_change(parent, name);
                    Ok(Err(Waiting::LocalChange))
                }
            }
            Err(error) => Ok(Err(self.failed(parent, name, &error)?)),
        }
    }

    /// After a power cut: may a file have other bytes than its stamp says? Somebody's last ones may have reached the disk and
    /// the time not. Until all is compared nothing of it is taken out: it would be preserved as what it is not.
    fn is_doubted(&self, node: Option<&Node>, stat: &Stat) -> bool {
        let known = node.and_then(|node| node.content.as_ref()).is_some_and(|content| content.bytes.is_some());
        let comparing = self.suspect && self.phase == Phase::Normal && stat.kind == Kind::File;
        comparing && known && written_since(stat, self.checkpoint)
    }

    /// Something in the tree is not as the database has it: it is compared soon. What waits already to be looked at again waits
    /// on: two things that can only be recorded together would be looked at by turns else, each for its own row, for ever.
    pub(crate) fn local_change(&mut self, parent: NodeId, name: &[u8]) {
        let key = (parent, name.to_vec());
        if self.later.contains_key(&key) {
            return;
        }
        self.changed.insert(key);
        self.observe_at = Some(self.now);
    }

    fn failed(&mut self, parent: NodeId, name: &[u8], error: &io::Error) -> Result<Waiting> {
        if self.denied(&[parent], error) {
            return Ok(Waiting::Order);
        }
        let path = String::from_utf8_lossy(&self.node_path(parent, name)?).into_owned();
        self.report_once(EventKind::CannotInstall, format!("{path}: {error}"));
        Ok(Waiting::Failed)
    }

    /// Makes a name free for something of the view: what has it must leave. `Ok(None)`: it is free.
    /// `Ok(Some(node))`: a file has it that is to be taken out of the tree, so it can be exchanged.
    fn make_room(
        &mut self,
        batch: &mut Batch<F>,
        uid: Uid,
        parent: NodeId,
        name: &[u8],
        depth: usize,
    ) -> Result<std::result::Result<Option<Node>, Waiting>> {
        let Some(occupant) = nodes::at(self.records.kv(), parent, name)?.filter(|n| n.uid != Some(uid)) else {
            return Ok(Ok(None));
        };
        let Some(other) = occupant.uid else { return Ok(Err(Waiting::Order)) };
        if self.records.shown(other)?.is_none() {
            if occupant.is_dir() {
                self.look_at(batch, other, depth + 1)?;
                let still = nodes::at(self.records.kv(), parent, name)?.is_some_and(|n| n.uid != Some(uid));
                return Ok(if still { Err(Waiting::Order) } else { Ok(None) });
            }
            return Ok(Ok(Some(occupant)));
        }
        self.look_at(batch, other, depth + 1)?;
        match nodes::at(self.records.kv(), parent, name)?.filter(|n| n.uid != Some(uid)) {
            None => Ok(Ok(None)),
            Some(still) if still.id == occupant.id => {
                let away = match self.records.shown(other)? {
                    Some(shown) => {
                        let above = match shown.parent {
                            Uid::ROOT => Some(nodes::ROOT_NODE),
                            above => nodes::of(self.records.kv(), above)?.map(|n| n.id),
                        };
                        shown.name.bytes() != name || above != Some(parent)
                    }
                    None => false,
                };
                if away && depth == 0 { self.park(batch, still) } else { Ok(Err(Waiting::Order)) }
            }
            Some(_) => Ok(Err(Waiting::Order)),
        }
    }

    /// Puts something that cannot reach its place yet aside, into staging, so that its name is free.
    fn park(&mut self, batch: &mut Batch<F>, node: Node) -> Result<std::result::Result<Option<Node>, Waiting>> {
        let dir = match self.expect_at(node.parent, &node.name, Some(&node))? {
            Ok(dir) => dir,
            Err(why) => return Ok(Err(why)),
        };
        let known = self.as_known(&dir, &node);
        let name = match self.take_into_staging(&dir, &node.name, &node) {
            Ok(Some(name)) => name,
            Ok(None) => {
                self.local_change(node.parent, &node.name);
                return Ok(Err(Waiting::LocalChange));
            }
            Err(error) if self.denied(&[node.parent, node.id], &error) => return Ok(Err(Waiting::Order)),
            Err(error) => return Ok(Err(self.failed(node.parent, &node.name, &error)?)),
        };
        batch.dirs.extend([node.parent, STAGING_NODE]);
        self.note_move(batch, &node, (STAGING_NODE, &name), known)?;
        self.put_aside(batch, node.uid)?;
        Ok(Ok(None))
    }

    /// Takes something out of the tree for a moment; its name in staging. `None`: somebody put another thing at its name
    /// meanwhile, which went back, or is taken up before the next batch.
    fn take_into_staging(&mut self, dir: &F::Dir, name: &[u8], node: &Node) -> io::Result<Option<Vec<u8>>> {
        let (staging, parked) = (self.private.staging.clone(), parked_name(node));
        self.fs.rename_new(dir, name, &staging, &parked)?;
        let came = self.fs.stat(&staging, &parked);
        if came.is_ok_and(|stat| stat.is_some_and(|s| s.object == node.object)) || broken(Step::LookAtWhatCameOut) {
            return Ok(Some(parked));
        }
        if self.fs.rename_new(&staging, &parked, dir, name).is_err() {
            self.unnoted_parked = true;
            self.work_at = Some(self.now);
        }
        Ok(None)
    }

    /// What was put aside goes on from there in this batch. What is put aside over and over has no place: it waits.
    fn put_aside(&mut self, batch: &mut Batch<F>, uid: Option<Uid>) -> Result<()> {
        let Some(uid) = uid else { return Ok(()) };
        let key = nodes::uid_key(uid);
        self.records.kv_mut().put(Table::Todo, &key, &[])?;
        let times = batch.aside.entry(uid).or_default();
        *times += 1;
        if *times > ASIDE_MAX {
            batch.visited.insert(uid, Some(Looked::Wait(Waiting::Order)));
            self.due.remove(&key[..]);
            self.wait(key.to_vec(), Waiting::Order);
        } else {
            batch.visited.remove(&uid);
            self.due.insert(key.to_vec());
        }
        Ok(())
    }

    /// Moves a node to where the view shows it. A name in use by something that leaves is exchanged.
    fn move_node(
        &mut self,
        batch: &mut Batch<F>,
        node: &Node,
        parent: &Node,
        name: &[u8],
        depth: usize,
    ) -> Result<std::result::Result<Node, Waiting>> {
        let Some(uid) = node.uid else { return Ok(Err(Waiting::Order)) };
        let mut occupant = nodes::at(self.records.kv(), parent.id, name)?.filter(|n| n.id != node.id);
        if let Some(other) = occupant.as_ref().and_then(|n| n.uid) {
            if node.is_dir() && self.records.shown_as(other)? == Some(uid) && other != uid {
                return self.merge_dirs(node, occupant.take());
            }
            if occupant.as_ref().is_some_and(Node::is_dir) && self.records.shown(other)?.is_none() {
                match self.make_room(batch, uid, parent.id, name, depth)? {
                    Ok(_) => {}
                    // What is in it waits for its turn, this very thing perhaps.
                    Err(Waiting::Order) => {
                        if let Some(other) = nodes::at(self.records.kv(), parent.id, name)?.filter(|n| n.id != node.id)
                            && let Err(why) = self.park(batch, other)?
                        {
                            return Ok(Err(why));
                        }
                    }
                    Err(why) => return Ok(Err(why)),
                }
                occupant = None;
            } else if self.records.shown(other)?.is_some() {
                self.look_at(batch, other, depth + 1)?;
                occupant = nodes::at(self.records.kv(), parent.id, name)?.filter(|n| n.id != node.id);
            }
        }
        // Two things of one place, as where somebody gives a name that was made for a file kept beside: what is there stays.
        if let Some(other) = occupant.as_ref().and_then(|n| n.uid)
            && self.shown_place(other)?.is_some_and(|place| place.0 == parent.id && place.1 == name)
        {
            return Ok(Err(Waiting::Order));
        }
        // Looking at the others may have moved this one.
        let Some(node) = nodes::get(self.records.kv(), node.id)? else { return Ok(Err(Waiting::Order)) };
        if let Some(other) = occupant.take_if(|other| other.is_dir()) {
            // A directory cannot change places with something that is in it.
            if self.is_below(&node, other.id)? {
                if let Err(why) = self.park(batch, other)? {
                    return Ok(Err(why));
                }
            } else {
                occupant = Some(other);
            }
        }
        let from = match self.expect_at(node.parent, &node.name, Some(&node))? {
            Ok(dir) => dir,
            Err(why) => return Ok(Err(why)),
        };
        let to = match self.expect_at(parent.id, name, occupant.as_ref())? {
            Ok(dir) => dir,
            Err(why) => return Ok(Err(why)),
        };
        let times = [self.fs.stat_dir(&from).ok(), self.fs.stat_dir(&to).ok()];
        let known = self.as_known(&from, &node);
        let other_known = occupant.as_ref().is_some_and(|n| self.as_known(&to, n));
        let renamed = match &occupant {
            None => self.fs.rename_new(&from, &node.name, &to, name),
            // So that the name is never without a file. What had it is in the other's place for a moment.
            Some(_) => self.fs.exchange(&from, &node.name, &to, name),
        };
        if let Err(error) = renamed {
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::AlreadyExists) {
                self.local_change(node.parent, &node.name);
                self.local_change(parent.id, name);
                return Ok(Err(Waiting::LocalChange));
            }
            // Its own ".." is written too where it is a directory.
            if self.denied(&[node.parent, parent.id, node.id], &error) {
                return Ok(Err(Waiting::Order));
            }
            return Ok(Err(self.failed(parent.id, name, &error)?));
        }
        let mut aside = None;
        if let Some(other) = &occupant {
            let swapped = other.uid.map(|other| self.shown_place(other)).transpose()?.flatten();
            if swapped != Some((node.parent, node.name.clone())) {
                match self.take_into_staging(&from, &node.name, other) {
                    Ok(Some(parked)) => aside = Some(parked),
                    // Hints tell where the other one is.
                    Ok(None) => self.local_change(node.parent, &node.name),
                    // It stays where the other one was, and goes on from there.
                    Err(error) => drop(self.failed(node.parent, &node.name, &error)?),
                }
            }
        }
        self.put_back_times(node.parent, parent.id, times)?;
        batch.dirs.extend([node.parent, parent.id]);
        if aside.is_some() {
            batch.dirs.insert(STAGING_NODE);
        }
        let moved = self.note_move(batch, &node, (parent.id, name), known)?;
        if let Some(other) = occupant {
            let place = aside.map_or((node.parent, node.name.clone()), |parked| (STAGING_NODE, parked));
            self.note_move(batch, &other, (place.0, &place.1), other_known)?;
            self.put_aside(batch, other.uid)?;
        }
        Ok(Ok(moved))
    }

    /// Is a node somewhere in a directory?
    fn is_below(&self, node: &Node, directory: NodeId) -> Result<bool> {
        let mut at = node.parent;
        for _ in 0..4096 {
            if at == directory {
                return Ok(true);
            }
            match nodes::get(self.records.kv(), at)? {
                Some(above) if at != nodes::ROOT_NODE => at = above.parent,
                _ => return Ok(false),
            }
        }
        Ok(false)
    }

    /// Where the view shows something, as a node and a name.
    fn shown_place(&self, uid: Uid) -> Result<Option<(NodeId, Vec<u8>)>> {
        let Some(shown) = self.records.shown(uid)? else { return Ok(None) };
        let parent = nodes::of(self.records.kv(), shown.parent)?;
        Ok(parent.map(|parent| (parent.id, shown.name.bytes().to_vec())))
    }

    /// Is an entry just as the database has it?
    fn as_known(&self, dir: &F::Dir, node: &Node) -> bool {
        self.fs.stat(dir, &node.name).is_ok_and(|s| s.is_some_and(|s| s.object == node.object && s.stamp == node.stamp))
    }

    /// The database follows a rename of ours. A local change that was not looked at before is looked at at the new place:
    /// its stamp stays the old one, and its hint names the old place.
    fn note_move(&mut self, batch: &mut Batch<F>, node: &Node, to: (NodeId, &[u8]), known: bool) -> Result<Node> {
        let mut moved = node.clone();
        (moved.parent, moved.name) = (to.0, to.1.to_vec());
        tracing::debug!(
            member = self.config.member, uid = ?node.uid, from = %node.name.escape_ascii(), parent = to.0.0,
            to = %to.1.escape_ascii(), known, "moved"
        );
        let stat = match self.dir(to.0)? {
            Some(dir) => self.fs.stat(&dir, to.1).ok().flatten(),
            None => None,
        };
        let same = stat.filter(|s| {
            known && s.object == node.object && (s.stamp.size, s.stamp.mtime) == (node.stamp.size, node.stamp.mtime)
        });
        match same {
            // The rename may have moved the ctime, and nothing else.
            Some(stat) => moved.stamp = stat.stamp,
            None if !node.is_dir() => self.local_change(to.0, to.1),
            None => {}
        }
        if node.is_dir() && self.comparison_owed() {
            // The scan may be past its new place, and never came to the old one.
            self.scan.at_last(node.id);
            self.scanning = true;
            self.observe_at = Some(self.now);
        }
        let old = (node.parent, node.name.clone());
        if self.closed.remove(&old) {
            self.closed.insert((to.0, to.1.to_vec()));
            self.local_change(to.0, to.1);
        }
        self.note_moved_away(old, node.id);
        batch.moved.insert(node.id);
        nodes::put(self.records.kv_mut(), Some(node), &moved)?;
        Ok(moved)
    }

    /// Hints that come late name the place from which something was moved.
    fn note_moved_away(&mut self, place: (NodeId, Vec<u8>), id: NodeId) {
        if self.moved_away.len() >= MOVED_AWAY_MAX {
            self.moved_away.clear();
            self.scan_everything();
        }
        self.moved_away.insert(place, (id, self.now));
    }

    /// An install puts back the directory's mtime that it found (design, section 5).
    fn put_back_times(&mut self, one: NodeId, other: NodeId, times: [Option<Stat>; 2]) -> Result<()> {
        for (id, stat) in [one, other].into_iter().zip(times) {
            let (Some(stat), Some(node)) = (stat, nodes::get(self.records.kv(), id)?) else { continue };
            if id == STAGING_NODE || id == nodes::ROOT_NODE {
                continue;
            }
            if let Some(above) = self.dir(node.parent)? {
                // Of no consequence if it fails: a directory's mtime triggers nothing.
                let _ = self.fs.set_mtime(&above, &node.name, stat.stamp.mtime);
            }
        }
        Ok(())
    }

    /// The shown directory lies elsewhere, and one that is part of it lies where it should be: the second becomes the
    /// shown one, and the first is emptied into it.
    fn merge_dirs(&mut self, node: &Node, occupant: Option<Node>) -> Result<std::result::Result<Node, Waiting>> {
        let Some(other) = occupant else { return Ok(Err(Waiting::Order)) };
        let mut dissolving = node.clone();
        dissolving.uid = None;
        nodes::put(self.records.kv_mut(), Some(node), &dissolving)?;
        let mut shown = other.clone();
        shown.uid = node.uid;
        shown.attributes_version = Version::default();
        nodes::put(self.records.kv_mut(), Some(&other), &shown)?;
        self.children_due(node.id)?;
        // The row says into which one, for what people still make in it.
        let into = node.uid.map(nodes::uid_key);
        let into = into.as_ref().map_or(&[][..], |key| &key[..]);
        self.records.kv_mut().put(Table::Todo, &tables::dissolving_key(node.id), into)?;
        self.due.insert(tables::dissolving_key(node.id));
        Ok(Ok(shown))
    }

    pub(crate) fn children_due(&mut self, id: NodeId) -> Result<()> {
        let mut after: Option<Vec<u8>> = None;
        loop {
            let page = nodes::children(self.records.kv(), id, after.as_deref(), 1024)?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.name.clone());
            for uid in page.iter().filter_map(|n| n.uid) {
                self.records.kv_mut().put(Table::Todo, &nodes::uid_key(uid), &[])?;
                self.waiting.remove(&nodes::uid_key(uid)[..]);
            }
            self.walk_again_from(&[]);
        }
    }

    fn dissolve(&mut self, batch: &mut Batch<F>, id: NodeId) -> Result<Looked> {
        let Some(node) = nodes::get(self.records.kv(), id)?.filter(|n| n.uid.is_none()) else {
            return Ok(Looked::Done);
        };
        self.empty_dir(batch, &node, 0)
    }

    /// A directory that the view does not show: part of another now, or deleted.
    fn take_out_dir(&mut self, batch: &mut Batch<F>, uid: Uid, node: &Node, depth: usize) -> Result<Looked> {
        if let Some(into) = self.records.shown_as(uid)?.filter(|into| *into != uid) {
            match nodes::of(self.records.kv(), into)? {
                None if self.is_unnoted(into)? => return Ok(Looked::Wait(Waiting::LocalChange)),
                None => {
                    // The shown one is not on disk: this directory becomes it.
                    let mut shown = node.clone();
                    shown.uid = Some(into);
                    shown.attributes_version = Version::default();
                    nodes::put(self.records.kv_mut(), Some(node), &shown)?;
                    self.records.kv_mut().put(Table::Todo, &nodes::uid_key(into), &[])?;
                    batch.visited.remove(&into);
                    self.due.insert(nodes::uid_key(into).to_vec());
                    return Ok(Looked::Done);
                }
                Some(_) => self.children_due(node.id)?,
            }
        }
        self.empty_dir(batch, node, depth)
    }

    /// Removes a directory once nothing is in it. What is in it and not in the database is a local change.
    fn empty_dir(&mut self, batch: &mut Batch<F>, node: &Node, depth: usize) -> Result<Looked> {
        for child in nodes::children(self.records.kv(), node.id, None, 1024)? {
            if let Some(uid) = child.uid
                && !batch.visited.contains_key(&uid)
            {
                self.look_at(batch, uid, depth + 1)?;
            }
        }
        if !nodes::children(self.records.kv(), node.id, None, 1)?.is_empty() {
            return Ok(Looked::Wait(Waiting::Order));
        }
        let dir = match self.expect_at(node.parent, &node.name, Some(node))? {
            Ok(dir) => dir,
            Err(why) => return Ok(Looked::Wait(why)),
        };
        match self.fs.remove_dir(&dir, &node.name) {
            Ok(()) => {
                tracing::debug!(member = self.config.member, name = %node.name.escape_ascii(), "directory removed");
                nodes::remove(self.records.kv_mut(), node)?;
                batch.dirs.insert(node.parent);
                batch.moved.insert(node.id);
                Ok(Looked::Done)
            }
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                self.scan.next(node.id);
                self.observe_at = Some(self.now);
                Ok(Looked::Wait(Waiting::LocalChange))
            }
            Err(error) => Ok(Looked::Wait(self.failed(node.parent, &node.name, &error)?)),
        }
    }

    fn make_dir(
        &mut self,
        batch: &mut Batch<F>,
        record: &Record,
        parent: &Node,
        name: &[u8],
        depth: usize,
    ) -> Result<Looked> {
        let occupant = nodes::at(self.records.kv(), parent.id, name)?;
        if let Some(other) = &occupant {
            // One that is part of this one, is deleted, or is being emptied into another, serves as well: what is in it
            // goes where it belongs, and what belongs here may lie in it already.
            let free = match other.uid {
                Some(uid) => self.records.shown(uid)?.is_none(),
                None => true,
            };
            if other.is_dir() && free {
                self.records.kv_mut().delete(Table::Todo, &tables::dissolving_key(other.id))?;
                self.children_due(other.id)?;
                let mut shown = other.clone();
                shown.uid = Some(record.uid);
                shown.attributes_version = Version::default();
                nodes::put(self.records.kv_mut(), Some(other), &shown)?;
                return self.fix_attributes(batch, record, shown);
            }
            match self.make_room(batch, record.uid, parent.id, name, depth)? {
                Ok(None) => {}
                Ok(Some(file)) => {
                    // A file leaves and a directory comes: the file first, in a batch of its own.
                    if let Some(uid) = file.uid {
                        self.look_at(batch, uid, depth + 1)?;
                    }
                    return Ok(Looked::Wait(Waiting::Order));
                }
                Err(why) => return Ok(Looked::Wait(why)),
            }
        }
        let dir = match self.expect_at(parent.id, name, None)? {
            Ok(dir) => dir,
            Err(why) => return Ok(Looked::Wait(why)),
        };
        let times = [self.fs.stat_dir(&dir).ok(), None];
        let made = self.fs.create_dir(&dir, name).and_then(|()| {
            // Somebody may have put something else there by now.
            let dir_stat = || {
                self.fs
                    .stat(&dir, name)?
                    .filter(|s| s.kind == Kind::Directory)
                    .ok_or(io::ErrorKind::AlreadyExists.into())
            };
            let object = dir_stat()
                .inspect_err(|error: &io::Error| {
                    if error.kind() != io::ErrorKind::AlreadyExists {
                        drop(self.fs.remove_dir(&dir, name));
                    }
                })?
                .object;
            let finish = || {
                let attributes = match &record.attributes {
                    Some(facet) => self.fs.write_attributes(&dir, name, &facet.value)?,
                    None => self.fs.read_attributes(&dir, name)?,
                };
                if let Some(mtime) = record.attributes.as_ref().and_then(|f| f.directory_mtime) {
                    self.fs.set_mtime(&dir, name, mtime)?;
                }
                Ok((dir_stat()?, attributes))
            };
            Ok((object, finish()))
        });
        let (stat, attributes) = match made {
            Ok((_, Ok(made))) => made,
            Err(error) | Ok((_, Err(error))) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.local_change(parent.id, name);
                return Ok(Looked::Wait(Waiting::LocalChange));
            }
            Ok((object, Err(error))) => {
                self.half_made.push_back((parent.id, name.to_vec(), object));
                self.remove_half_made()?;
                self.put_back_times(parent.id, parent.id, times)?;
                return Ok(Looked::Wait(self.failed(parent.id, name, &error)?));
            }
            Err(error) => return Ok(Looked::Wait(self.failed(parent.id, name, &error)?)),
        };
        self.put_back_times(parent.id, parent.id, times)?;
        let id = self.new_node_id();
        let node = self.node_after(id, parent.id, name, record.uid, &stat, None, false, attributes)?;
        nodes::put(self.records.kv_mut(), None, &node)?;
        batch.grown.push(parent.id);
        batch.dirs.insert(id);
        batch.moved.insert(id);
        Ok(Looked::Done)
    }

    /// Directories that were made and could not be finished leave again: unknown to the database, they would look like a
    /// user's own. One that has something in it by now is somebody's.
    pub(crate) fn remove_half_made(&mut self) -> Result<()> {
        for (parent, name, object) in std::mem::take(&mut self.half_made) {
            if self.dir_node(&object)?.is_some() {
                // It was looked at meanwhile and is noted: it is finished, or taken out, like any other.
                continue;
            }
            let removed = match self.dir(parent)? {
                None if nodes::get(self.records.kv(), parent)?.is_none() => continue,
                None => Err(io::ErrorKind::Other.into()),
                Some(dir) => match self.fs.stat(&dir, &name) {
                    Ok(stat) if stat.as_ref().is_none_or(|s| s.object != object) => continue,
                    Ok(_) => self.fs.remove_dir(&dir, &name),
                    Err(error) => Err(error),
                },
            };
            let gone =
                |error: &io::Error| matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty);
            if removed.as_ref().is_err_and(|error| !gone(error)) && self.half_made.len() < HALF_MADE_MAX {
                self.half_made.push_back((parent, name, object));
            }
        }
        Ok(())
    }

    /// Would a time or attributes be written to a file that has other names, too? Each path is a file of its own (design,
    /// section 5): it is installed anew then.
    fn would_write_through_a_link(&mut self, record: &Record, facet: &ContentFacet, node: &Node) -> Result<bool> {
        let attributes = record.attributes.as_ref().is_some_and(|attributes| {
            node.attributes_version != attributes.written.version && node.attributes != attributes.value
        });
        let time = node.content.as_ref().is_some_and(|c| c.version != facet.written.version)
            && node.stamp.mtime != facet.mtime;
        if !attributes && !time {
            return Ok(false);
        }
        let Some(dir) = self.dir(node.parent)? else { return Ok(false) };
        Ok(self.fs.stat(&dir, &node.name).is_ok_and(|s| s.is_some_and(|s| s.object == node.object && s.links > 1)))
    }

    /// The content is there; its time and the attributes may differ.
    fn same_content(
        &mut self,
        batch: &mut Batch<F>,
        record: &Record,
        facet: &ContentFacet,
        mut node: Node,
    ) -> Result<Looked> {
        let old = node.clone();
        let disk = node.content.as_mut();
        let newer =
            disk.as_ref().is_some_and(|c| c.version != facet.written.version || c.history != facet.written.history);
        if newer {
            let mtime_differs = node.stamp.mtime != facet.mtime;
            if mtime_differs {
                let dir = match self.expect_at(old.parent, &old.name, Some(&old))? {
                    Ok(dir) => dir,
                    Err(why) => return Ok(Looked::Wait(why)),
                };
                // A write between the look and this call would bear our time afterwards, and a ctime that is ours: the lease
                // keeps it out. A link's target does not change.
                let guard = match old.kind == Kind::File {
                    true => match self.guard(&dir, &old.name, &old)? {
                        Ok(guard) => Some(guard),
                        Err(why) => return Ok(Looked::Wait(why)),
                    },
                    false => None,
                };
                match self.set_time(&dir, &old, facet.mtime) {
                    Ok(Some(stamp)) => node.stamp = stamp,
                    Ok(None) => {
                        self.local_change(old.parent, &old.name);
                        return Ok(Looked::Wait(Waiting::LocalChange));
                    }
                    Err(error) => return Ok(Looked::Wait(self.failed(old.parent, &old.name, &error)?)),
                }
                if let (Some((_, _, leased)), Some(disk)) = (&guard, node.content.as_mut()) {
                    disk.provisional |= !leased;
                }
                batch.unopened += 1;
                batch.moved.insert(node.id);
            }
            if let Some(disk) = node.content.as_mut() {
                disk.bytes = Some(facet.bytes.version);
                disk.version = facet.written.version;
                disk.history.clone_from(&facet.written.history);
            }
            nodes::put(self.records.kv_mut(), Some(&old), &node)?;
        }
        self.fix_attributes(batch, record, node)
    }

    /// Sets the mtime if nothing changed since the database's stamp; returns the stamp afterwards, with the time that we set:
    /// another one that is there by then is somebody's touch, and shows when it is compared.
    fn set_time(&self, dir: &F::Dir, node: &Node, mtime: Timestamp) -> io::Result<Option<FileStamp>> {
        let unchanged = |stat: &Stat| stat.object == node.object && stat.stamp == node.stamp;
        if !self.fs.stat(dir, &node.name)?.is_some_and(|s| unchanged(&s)) {
            return Ok(None);
        }
        self.fs.set_mtime(dir, &node.name, mtime)?;
        let after = self.fs.stat(dir, &node.name)?;
        let after = after.filter(|s| s.object == node.object && s.stamp.size == node.stamp.size).map(|s| s.stamp);
        // Where times are coarser than ours, it is what is left of ours.
        let ours = |there: Timestamp| there <= mtime && there.seconds == mtime.seconds;
        Ok(after.map(|stamp| if ours(stamp.mtime) { stamp } else { FileStamp::doubted(mtime) }))
    }

    /// Applies attributes in place where they are not the record's.
    fn fix_attributes(&mut self, batch: &mut Batch<F>, record: &Record, node: Node) -> Result<Looked> {
        let Some(facet) = &record.attributes else { return Ok(Looked::Done) };
        if node.attributes_version == facet.written.version {
            return Ok(Looked::Done);
        }
        let mut after = node.clone();
        if node.attributes != facet.value {
            let dir = match self.expect_at(node.parent, &node.name, Some(&node))? {
                Ok(dir) => dir,
                Err(why) => return Ok(Looked::Wait(why)),
            };
            let written = (|| -> io::Result<Option<(anabranch_model::Attributes, Stat)>> {
                let before = self.fs.stat(&dir, &node.name)?.filter(|s| s.object == node.object);
                if before.is_none_or(|s| !node.is_dir() && s.stamp != node.stamp)
                    || self.fs.read_attributes(&dir, &node.name)? != node.attributes
                {
                    return Ok(None);
                }
                let attributes = self.fs.write_attributes(&dir, &node.name, &facet.value)?;
                let mut after = self.fs.stat(&dir, &node.name)?.filter(|s| s.object == node.object);
                if self.fs.read_attributes(&dir, &node.name)? != attributes {
                    // Somebody came right after us: the stamp stays what it was, so that it shows.
                    after = after.map(|s| Stat { stamp: node.stamp, ..s });
                }
                Ok(after.map(|s| (attributes, s)))
            })();
            match written {
                Ok(Some((attributes, stat))) => {
                    if attributes != facet.value {
                        let path = self.record_path(record.uid)?;
                        self.report_once(EventKind::AttributesNotHeld, path);
                    }
                    after.attributes = attributes;
                    let same = (stat.stamp.size, stat.stamp.mtime) == (node.stamp.size, node.stamp.mtime);
                    if same || node.is_dir() {
                        after.stamp = stat.stamp;
                    }
                    batch.unopened += 1;
                    batch.moved.insert(node.id);
                }
                Ok(None) => {
                    // The stamp may not show it: two changes within a tick of the clock.
                    let doubted = Node { stamp: FileStamp::doubted(node.stamp.mtime), ..node.clone() };
                    nodes::put(self.records.kv_mut(), Some(&node), &doubted)?;
                    self.local_change(node.parent, &node.name);
                    return Ok(Looked::Wait(Waiting::LocalChange));
                }
                Err(error) => return Ok(Looked::Wait(self.failed(node.parent, &node.name, &error)?)),
            }
        }
        after.attributes_version = facet.written.version;
        nodes::put(self.records.kv_mut(), Some(&node), &after)?;
        Ok(Looked::Done)
    }

    /// Prepares a private file for a content, if it is here.
    #[expect(clippy::too_many_arguments, reason = "what the view wants and what is on disk")]
    fn plan_install(
        &mut self,
        batch: &mut Batch<F>,
        record: &Record,
        facet: ContentFacet,
        parent: &Node,
        name: &[u8],
        node: Option<Node>,
        depth: usize,
    ) -> Result<Looked> {
        let uid = record.uid;
        if matches!(facet.value, Content::Symlink { .. }) && self.ready.get(uid).is_some() {
            // It was a file when that was fetched.
            self.drop_content(uid)?;
        }
        if let Content::File { size, hash } = &facet.value {
            if self.ready.get(uid).is_some_and(|r| r.hash() != hash) {
                self.drop_content(uid)?;
            }
            if self.ready.get(uid).is_none() {
                let here = if *size == 0 {
                    Some(Ready::Bytes { bytes: Bytes::new(), hash: *hash })
                } else if self.fetching.wants(uid, hash) {
                    None
                } else {
                    match self.kept_whole(uid, *size, hash)? {
                        None => {
                            let missing = self.small_room_missing(batch, *size);
                            if missing > 0 {
                                return self.no_room(uid, missing);
                            }
                            self.reuse(uid, *size, hash)?.inspect(|_| self.counters.reused += 1)
                        }
                        whole => whole,
                    }
                };
                match here {
                    Some(ready) => {
                        self.ready.insert(uid, ready);
                    }
                    None => {
                        let large = *size > u64::from(self.config.limits.piece_bytes);
                        let missing = if large && !self.fetching.wants(uid, hash) {
                            self.room_missing_for(uid, *size)?
                        } else {
                            0
                        };
                        if missing > 0 {
                            return self.no_room(uid, missing);
                        }
                        self.want(uid, &facet, record.attributes.as_ref())?;
                        return Ok(Looked::Wait(Waiting::Content));
                    }
                }
            }
        }
        let replaces = match node {
            Some(node) => Some(node),
            None => match self.make_room(batch, uid, parent.id, name, depth)? {
                Ok(occupant) => occupant,
                Err(why) => return Ok(Looked::Wait(why)),
            },
        };
        let dir = match self.expect_at(parent.id, name, replaces.as_ref())? {
            Ok(dir) => dir,
            Err(why) => return Ok(Looked::Wait(why)),
        };
        let number = batch.next_preserved;
        batch.next_preserved += u64::from(replaces.is_some());
        if let Some(other) = replaces.as_ref().and_then(|n| n.uid).filter(|o| *o != uid) {
            batch.visited.insert(other, Some(Looked::Planned));
        }
        let (wanted, name) = (record.attributes.clone(), name.to_vec());
        batch.planned.push(Planned { uid, facet, wanted, parent: parent.id, dir, name, replaces, preserved: number });
        Ok(Looked::Planned)
    }

    /// Bytes that are missing on the disk for a small content, besides what is on its way.
    fn small_room_missing(&self, batch: &mut Batch<F>, size: u64) -> u64 {
        if size > u64::from(self.config.limits.piece_bytes) {
            return 0;
        }
        let room = *batch.room.get_or_insert_with(|| self.fs.room().map_or(u64::MAX, room_for_contents));
        (size + self.fetching.bytes() + self.ready.small_bytes()).saturating_sub(room)
    }

    /// A content waits for room on the disk.
    fn no_room(&mut self, uid: Uid, missing: u64) -> Result<Looked> {
        let path = self.record_path(uid)?;
        self.report_once(EventKind::StagingFull, format!("{path}: no space: {missing} bytes are missing"));
        Ok(Looked::Wait(Waiting::Failed))
    }

    /// Writes the private files of a batch, on as many threads as the file system bears. What cannot be prepared waits.
    fn prepare_batch(&mut self, batch: &mut Batch<F>) -> Result<()> {
        // Of many no descriptor is kept: a sync of everything makes them durable.
        let few = batch.planned.len() < self.config.limits.sync_all_from;
        let (mut planned, mut prepared) = (Vec::new(), Vec::with_capacity(batch.planned.len()));
        for plan in std::mem::take(&mut batch.planned) {
            match self.ready.take_written(plan.uid, &plan.facet.value) {
                Some((made_for, written)) => {
                    let wanted = MadeFor::of(plan.facet.mtime, plan.wanted.as_ref());
                    let finished = if made_for == wanted { Ok(written) } else { self.finish_anew(&plan, written) };
                    prepared.push((plan, finished));
                }
                None => planned.push(plan),
            }
        }
        let threads = self.fs.parallelism().min(planned.len().div_ceil(16));
        let (fs, staging, ready) = (&self.fs, &self.private.staging, &self.ready);
        let act = |plan: Planned<F>| {
            let prepared = prepare(fs, staging, &plan, ready.get(plan.uid));
            (plan, prepared.map(|prepared| prepared.keep_open(few)))
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
        for (plan, prepared) in prepared {
            match prepared {
                Ok(Prepared { private, stat, attributes, file }) => {
                    // A symlink has no descriptor by which it could be made durable alone.
                    match file.filter(|_| few) {
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

    fn plan_removal(&mut self, batch: &mut Batch<F>, uid: Uid, node: Node) -> Result<Looked> {
        let dir = match self.expect_at(node.parent, &node.name, Some(&node))? {
            Ok(dir) => dir,
            Err(why) => return Ok(Looked::Wait(why)),
        };
        let reason = self.reason_for(uid, &node, None)?;
        let number = batch.next_preserved;
        batch.next_preserved += 1;
        batch.removals.push(Removal { node, dir, reason, number, guard: None, outcome: Outcome::Under });
        Ok(Looked::Planned)
    }

    /// Which class something belongs to that replication takes out of the tree (design, sections 4 and 9).
    fn reason_for(&self, uid: Uid, node: &Node, winner: Option<&ContentFacet>) -> Result<Reason> {
        if self.phase == Phase::Returning {
            let known = self.records.record(uid)?.is_some();
            return Ok(if known { Reason::Differed } else { Reason::PreExisting });
        }
        let Some(disk) = node.content.as_ref() else { return Ok(Reason::Deleted) };
        let Some(held) = disk.bytes else { return Ok(Reason::Differed) };
        if let Some(facet) = winner {
            let elsewhere = anabranch_engine::broken(Rule::PreserveWhatLostElsewhere)
                && self.partner_known.values().any(|known| known.covers(held));
            // The very bytes that are installed: only the name is taken from a file that has others.
            let same = disk.value == facet.value;
            let seen = (facet.written.history.covers(held) && facet.bytes.version != held) || same || elsewhere;
            return Ok(if seen { Reason::Overwritten } else { Reason::LostEdit });
        }
        let beside = |other: Option<Uid>| -> Result<bool> {
            let Some(other) = other else { return Ok(false) };
            let record = self.records.record(other)?;
            Ok(record.and_then(|r| r.content).is_some_and(|f| f.value == disk.value))
        };
        let Some(record) = self.records.record(uid)? else { return Ok(Reason::PreExisting) };
        if let Some(winner) = self.records.loser(uid)? {
            return Ok(if beside(Some(winner))? { Reason::Deleted } else { Reason::LostName });
        }
        let placement = &record.placement;
        if placement.value.deleted && placement.written.time.resolutions > 0 {
            let at = self.records.shown_at(placement.value.parent, placement.value.name.bytes())?;
            return Ok(if beside(at)? { Reason::Deleted } else { Reason::LostName });
        }
        // It had lost to another content that nobody brought here before both were deleted: whoever deleted saw that one.
        if record.content.as_ref().is_some_and(|facet| anabranch_engine::must_preserve(facet, &disk.value, held)) {
            return Ok(Reason::LostEdit);
        }
        Ok(match anabranch_engine::must_preserve_deleted(placement, held) {
            // Somebody deleted an earlier content, and a resolution that took its name from this one lost against that.
            true if placement.seen.covers(held) => Reason::LostName,
            true => Reason::LostEdit,
            false => Reason::Deleted,
        })
    }

    /// Data of the batch, and names of the directories made and moved, become durable.
    fn make_durable(&mut self, batch: &mut Batch<F>) -> Result<io::Result<()>> {
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
        let result = if count >= self.config.limits.sync_all_from || batch.unopened > 0 {
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
    fn undo_batch(&mut self, batch: &Batch<F>, error: &io::Error) -> Result<()> {
        self.report_once(EventKind::CannotInstall, format!("cannot make a batch durable: {error}"));
        let mut after = Vec::new();
        for id in &batch.moved {
            let Some(node) = nodes::get(self.records.kv(), *id)? else { continue };
            after.push((self.node_uid(node.parent)?, node));
        }
        self.records.rollback()?;
        let mut places = Vec::new();
        self.records.begin()?;
        for (within, node) in after {
            let before = nodes::get(self.records.kv(), node.id)?;
            let elsewhere = before.as_ref().is_none_or(|b| (b.parent, &b.name) != (node.parent, &node.name));
            if let (true, Some(within), Some(uid)) = (elsewhere, within, node.uid) {
                let put = Put { uid, within, name: node.name.clone() };
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
    fn is_unnoted(&mut self, uid: Uid) -> Result<bool> {
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
            Some(dir) => self.fs.sync_dir(&dir),
            None if removed => Ok(()),
            // It cannot be opened now, or people moved it meanwhile: an error is not an absence.
            None => self.fs.sync_all(),
        })
    }

    fn write_intents(&mut self, batch: &Batch<F>) -> Result<()> {
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

    fn replaced_reason(&self, uid: Uid, facet: &ContentFacet, node: &Node) -> Result<Reason> {
        match node.uid {
            Some(other) if other != uid => self.reason_for(other, node, None),
            _ => self.reason_for(uid, node, Some(facet)),
        }
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

    /// Tells downstream partners of content that they asked for before it was here.
    pub(crate) fn tell_held(&mut self, held: &[Uid]) {
        let mut news = Vec::new();
        for (id, link) in &mut self.links {
            let uids: Vec<Uid> = held.iter().copied().filter(|uid| link.refused.remove(uid)).collect();
            if !uids.is_empty() {
                news.push((*id, uids));
            }
        }
        for (id, uids) in news {
            for part in uids.chunks(anabranch_net::message::WANTS_MAX) {
                self.send(id, Message::Held { uids: part.to_vec() });
            }
        }
    }
}

/// The name of something that is put aside in staging.
pub(crate) fn parked_name(node: &Node) -> Vec<u8> {
    format!("p-{}", node.id.0).into_bytes()
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
