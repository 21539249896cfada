//! What was done before an unclean end and not noted any more (design, section 11).
//!
//! Directories are made and things moved in batches, of which the database takes note at the end. Where a batch ended half
//! way, the disk shows some of it, and the view still shows why: it is as it was then. So before anything is taken in or
//! compared, what lies just where the view wants it is taken for our own work. Later the view may have gone on, and
//! the same would look like what a user did.
//!
//! The same holds for attributes and times that something was given where it lies. Files are put in place with intents; here
//! they are only moved.

use anabranch_engine::kv::{Kv, Table};
use anabranch_model::{ContentFacet, Uid, Version};
use anabranch_volume::fs::{FileStamp, Fs, Kind, Stat};

use crate::nodes::{self, Node, NodeId, OnDisk, ROOT_NODE};
use crate::replica::{Replica, Result};
use crate::tables::{self, Work};
use crate::undone::known_with;

/// Is a name free for what lies there?
enum Vacated {
    Yes,
    /// What came has it by now.
    Taken,
    /// It is not known where the other one is.
    No,
}

/// Rows of Todo read at a time.
const ROWS: usize = 4096;

impl<F: Fs + Sync, K: Kv> Replica<F, K>
where
    F::Dir: Send + Sync,
    F::File: Send,
{
    /// Notes what lies where the view shows it and the database has it elsewhere or not at all.
    pub(crate) fn take_up_unnoted(&mut self) -> Result<()> {
        self.records.begin()?;
        let mut left = self.listed()?;
        // Each may wait for another: a directory for the one that it is in, a name for what had it before.
        loop {
            let mut waiting = Vec::new();
            let before = left.len();
            for uid in left {
                if !self.take_up(uid)? {
                    waiting.push(uid);
                }
            }
            if waiting.is_empty() || waiting.len() == before {
                break;
            }
            left = waiting;
        }
        self.records.commit()?;
        self.dirs.clear();
        Ok(())
    }

    /// UIDs on the list of work that are not where the view shows them.
    fn listed(&self) -> Result<Vec<Uid>> {
        let (mut from, mut out) = (Vec::new(), Vec::new());
        loop {
            let rows = self.records.kv().range(Table::Todo, &from, None, ROWS)?;
            for (key, _) in &rows {
                let Work::Uid(uid) = tables::read_work(key)? else { continue };
                let node = nodes::of(self.records.kv(), uid)?;
                let directory = self.records.record(uid)?.is_some_and(|r| r.placement.value.directory);
                if node.is_some() || directory {
                    out.push(uid);
                }
            }
            match rows.last() {
                Some((last, _)) if rows.len() == ROWS => from = [last.as_slice(), &[0]].concat(),
                _ => return Ok(out),
            }
        }
    }

    /// `true`: there is nothing more to do for it.
    fn take_up(&mut self, uid: Uid) -> Result<bool> {
        let Some(shown) = self.records.shown(uid)? else {
            return match nodes::of(self.records.kv(), uid)? {
                Some(node) => self.take_away(&node),
                None => Ok(true),
            };
        };
        let parent = match shown.parent {
            Uid::ROOT => ROOT_NODE,
            above => match nodes::of(self.records.kv(), above)? {
                Some(above) => above.id,
                None => return Ok(false),
            },
        };
        let name = shown.name.bytes();
        let node = nodes::of(self.records.kv(), uid)?;
        if let Some(node) = node.as_ref().filter(|n| n.parent == parent && n.name == name) {
            self.take_up_given(node)?;
            return Ok(true);
        }
        let Some(stat) = self.stat_at(parent, name)? else { return Ok(false) };
        let mine = match &node {
            Some(node) => node.object == stat.object && node.kind == stat.kind,
            // A directory that nobody knows, and that we did not make for another one: the view may have gone on since.
            None => {
                let for_another = self.undone.get(&stat.object).is_some_and(|put| put.uid != uid);
                let new = stat.kind == Kind::Directory && !stat.foreign && !for_another;
                new && self.dir_node(&stat.object)?.is_none()
            }
        };
        if !mine {
            return Ok(false);
        }
        match self.vacate(parent, name, node.as_ref())? {
            Vacated::Yes => {}
            Vacated::Taken => return self.take_up(uid),
            Vacated::No => return Ok(false),
        }
        tracing::debug!(member = self.config.member, name = %name.escape_ascii(), ?uid, "not noted before the end");
        match node {
            // Its stamp stays: it is compared with what is there now.
            Some(node) => {
                let moved = Node { parent, name: name.to_vec(), ..node.clone() };
                nodes::put(self.records.kv_mut(), Some(&node), &moved)?;
                self.take_up_given(&moved)?;
            }
            None => {
                let Some(attributes) = self.dir(parent)?.and_then(|dir| self.fs.read_attributes(&dir, name).ok())
                else {
                    return Ok(false);
                };
                let id = self.new_node_id();
                let made = self.node_after(id, parent, name, uid, &stat, None, false, attributes)?;
                let made = Node { attributes_version: Version::default(), ..made };
                nodes::put(self.records.kv_mut(), None, &made)?;
            }
        }
        Ok(true)
    }

    /// Notes those attributes, and the time, of something in its place that are as its record wants them and not as the database
    /// has them. What is still missing is given to it later.
    fn take_up_given(&mut self, node: &Node) -> Result<()> {
        let Some(record) = node.uid.map(|uid| self.records.record(uid)).transpose()?.flatten() else { return Ok(()) };
        let attributes = record.attributes.filter(|facet| facet.written.version != node.attributes_version);
        let touched = |disk: &OnDisk, facet: &ContentFacet| {
            disk.value == facet.value && disk.version != facet.written.version && node.stamp.mtime != facet.mtime
        };
        let time = record.content.filter(|facet| node.content.as_ref().is_some_and(|disk| touched(disk, facet)));
        if attributes.is_none() && time.is_none() {
            return Ok(());
        }
        let Some(dir) = self.dir(node.parent)? else { return Ok(()) };
        let there = self.fs.stat(&dir, &node.name).ok().flatten();
        let Some(stat) = there.filter(|s| s.object == node.object && s.kind == node.kind) else { return Ok(()) };
        let mut noted = node.clone();
        if let Some(facet) = attributes
            && let Ok(now) = self.fs.read_attributes(&dir, &node.name)
        {
            noted.attributes = known_with(&node.attributes, &facet.value, &now);
            if noted.attributes != node.attributes {
                noted.attributes_version = Version::default();
            }
        }
        if let Some(facet) = time.filter(|facet| facet.mtime == stat.stamp.mtime) {
            // The comparison that follows reads the bytes: who wrote them may have set the time as well.
            noted.stamp = FileStamp::doubted(facet.mtime);
        }
        if noted != *node {
            tracing::debug!(member = self.config.member, name = %node.name.escape_ascii(), "given before the end");
            nodes::put(self.records.kv_mut(), Some(node), &noted)?;
        }
        Ok(())
    }

    /// What the database has under this name is not there any more: it was exchanged with what came, moved on, or removed.
    fn vacate(&mut self, parent: NodeId, name: &[u8], came: Option<&Node>) -> Result<Vacated> {
        let Some(other) = nodes::at(self.records.kv(), parent, name)? else { return Ok(Vacated::Yes) };
        if let Some(came) = came
            && self.stat_at(came.parent, &came.name)?.is_some_and(|s| s.object == other.object && s.kind == other.kind)
        {
            // Both rows change places, over a name that nothing has.
            let aside = self.row_aside(&other)?;
            let away = Node { parent, name: name.to_vec(), ..came.clone() };
            nodes::put(self.records.kv_mut(), Some(came), &away)?;
            let there = Node { parent: came.parent, name: came.name.clone(), ..other };
            nodes::put(self.records.kv_mut(), Some(&aside), &there)?;
            return Ok(Vacated::Taken);
        }
        let cleared = self.follow(parent, name)?;
        let now = nodes::at(self.records.kv(), parent, name)?;
        Ok(match came {
            _ if !cleared => Vacated::No,
            Some(came) if now.is_some_and(|now| now.id == came.id) => Vacated::Taken,
            _ => Vacated::Yes,
        })
    }

    /// Notes where what the database has under a name is now, if that is where the view shows it; and so on with what the
    /// database has there. It is found by its object: the path to it may lead through what waits for this very name.
    /// `false`: something on the way may be anywhere, and the rows are as they were.
    fn follow(&mut self, parent: NodeId, name: &[u8]) -> Result<bool> {
        let (mut at, mut rows) = ((parent, name.to_vec()), Vec::new());
        let free = loop {
            let Some(other) = nodes::at(self.records.kv(), at.0, &at.1)? else { break true };
            if self.take_away(&other)? {
                break true;
            }
            let Some(place) = self.found_where_shown(&other)? else { break false };
            // Where they took each other's names in a ring, the first of these is free by the time that one comes round to it.
            let aside = self.row_aside(&other)?;
            at.clone_from(&place);
            rows.push((other, aside, place));
        };
        for (was, aside, (parent, name)) in rows.into_iter().rev() {
            let row = if free { Node { parent, name, ..was } } else { was };
            nodes::put(self.records.kv_mut(), Some(&aside), &row)?;
        }
        Ok(free)
    }

    /// Where the view shows something that the database has elsewhere, if it lies there.
    fn found_where_shown(&self, node: &Node) -> Result<Option<(NodeId, Vec<u8>)>> {
        let place = node.uid.map(|uid| self.shown_place(uid)).transpose()?.flatten();
        let Some(place) = place.filter(|place| (place.0, &place.1) != (node.parent, &node.name)) else {
            return Ok(None);
        };
        let Some(above) = nodes::get(self.records.kv(), place.0)? else { return Ok(None) };
        let there = self.fs.locate(&node.object).ok().flatten().is_some_and(|at| at == (above.object, place.1.clone()));
        Ok(there.then_some(place))
    }

    /// Gives a row a name that nothing has, until its own is free.
    fn row_aside(&mut self, node: &Node) -> Result<Node> {
        let name = format!("x-{}", node.id.0).into_bytes();
        let aside = Node { parent: nodes::STAGING_NODE, name, ..node.clone() };
        nodes::put(self.records.kv_mut(), Some(node), &aside)?;
        Ok(aside)
    }

    /// A directory that the view does not show, and that is nowhere: we removed it. `false`: it may be somewhere.
    fn take_away(&mut self, node: &Node) -> Result<bool> {
        let shown = match node.uid {
            Some(uid) => self.records.shown(uid)?.is_some(),
            None => false,
        };
        let removed = node.is_dir()
            && !shown
            && nodes::children(self.records.kv(), node.id, None, 1)?.is_empty()
            // An error says nothing: only what the file system knows no more is gone.
            && matches!(self.fs.locate(&node.object), Ok(None));
        if removed {
            nodes::remove(self.records.kv_mut(), node)?;
        }
        Ok(removed)
    }

    fn stat_at(&mut self, parent: NodeId, name: &[u8]) -> Result<Option<Stat>> {
        let Some(dir) = self.dir(parent)? else { return Ok(None) };
        Ok(self.fs.stat(&dir, name).ok().flatten())
    }
}
