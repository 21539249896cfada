//! The tree is made to show the view (design, section 8).
//!
//! Work is done in batches of two transactions. The first one plans: directories are made and moved, attributes applied,
//! private files prepared and made durable, install intents written. The second one puts names in place, looks at what
//! came out, makes the directories durable, and only then says in the database what is held. A crash at any point
//! leaves the old content or the new one at every name, and the database tells which.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use anabranch_engine::kv::{Kv, Table};
use anabranch_model::{AttributesFacet, ChangeNumber, Content, ContentFacet, Hlc, Uid, Version};
use anabranch_net::message::Message;
use anabranch_volume::fs::{FileStamp, Fs, Stat};

use crate::events::EventKind;
use crate::nodes::{self, Node, NodeId};
use crate::replica::{Phase, Replica, Result, Waiting};
use crate::tables::{self, Reason, Work};

pub(crate) use ahead::{Ahead, Arrived};
use ahead::{MadeFor, Prepared, write_private};
pub(crate) use durable::write_sparse;
pub(crate) use ready::{Ready, ReadySet};

mod ahead;
mod dirs;
mod durable;
mod place;
mod plan;
mod ready;

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
    /// Rows of Todo whose contents are still being written ahead: the next batch's.
    unwritten: Vec<Vec<u8>>,
}

/// Rows of Todo looked at in one step.
const ROWS: usize = 4096;
/// Rows of Todo asked, each time nothing is under way, whether they were forgotten.
const FORGOTTEN_ROWS: usize = 16;
/// A batch waits until this part of its files has been written ahead: the rest is written meanwhile.
const ENOUGH_SHARE: usize = 4;
/// From so many private files on that were written ahead, they are flushed while the batch is planned; or from as
/// many as make a batch full.
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
        self.due_with_the_rest();
    }

    /// What is due goes on at once if nothing else is on its way, else in a batch with what is.
    fn due_with_the_rest(&mut self) {
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
        self.take_up_some(self.config.limits.batch_installs / ENOUGH_SHARE);
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
        // The disk works while the batch is planned.
        let begun = (self.ready.written() >= FLUSHED_AHEAD_FROM.min(self.config.limits.batch_installs)).then(|| {
            self.ready.flush_begins();
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
            unwritten: Vec::new(),
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
        if !batch.unwritten.is_empty() {
            self.due.extend(batch.unwritten.drain(..));
            self.due_with_the_rest();
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
            Work::Uid(uid) if self.ready.is_being_written(uid) => {
                batch.unwritten.push(key.to_vec());
                return Ok(true);
            }
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
