//! What was found becomes versions and nodes (design, sections 4 and 5).

use std::collections::{BTreeMap, BTreeSet};

use anabranch_engine::kv::{Kv, Table};
use anabranch_engine::{ChangeError, NewThing};
use anabranch_model::{Attributes, Content, Knowledge, Name, Record, Timestamp, Uid, Version};
use anabranch_volume::fs::{Fs, Kind, Stat};

use super::{Batch, Found, Modified, Parent};
use crate::nodes::{self, Node, NodeId, OnDisk, ROOT_NODE};
use crate::replica::{Replica, Result};
use crate::undone::known_with;

impl<F: Fs + Sync, K: Kv> Replica<F, K>
where
    F::Dir: Send + Sync,
    F::File: Send,
{
    /// Records the batch: new versions in one transaction.
    pub(super) fn record_batch(&mut self, mut batch: Batch<F::Dir>) -> Result<()> {
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
            let swapped = batch.found.get(at).is_some_and(|f| {
                !f.dropped && (self.is_swapped(&batch, f) || f.uid.is_some() && self.undone_there(&batch, f) == f.uid)
            });
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
        self.undone.settle(self.records.kv_mut())?;
        self.unsynced.settle(self.records.kv_mut())?;
        self.commit()?;
        self.look_at_other_links(&batch)?;
        self.resolve(anabranch_engine::ResolveScope::Own)
    }

    pub(super) fn record_found(&mut self, batch: &mut Batch<F::Dir>, at: usize, relabel: &[NodeId]) -> Result<()> {
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
            // No user put it there: it is no reason to keep the directory.
            _ if found.swapped => parent_asked,
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
        let base = base.map(|base| self.with_what_was_given(base, &stat, Some(&attributes)));
        let unchanged = base.as_ref().and_then(|n| n.content.clone()).filter(|c| Some(&c.value) == value.as_ref());
        let mtime = stat.stamp.mtime;
        let uid = found.uid;
        let swapped = found.swapped;
        // A user moved another thing's file onto it. We never do: what is found to be as recorded may else be our own install
        // that a crash left no note of.
        let other = found.moved.as_ref().and_then(|n| n.uid).filter(|_| !leftover && !swapped);
        let brought = other.is_some_and(|other| Some(other) != uid);
        // What a disk that failed to write took back is what its user moved here, whichever UID it goes on with.
        let moved = found.moved.clone().filter(|n| !leftover || n.uid == uid);
        let moved = moved.map(|moved| self.with_what_was_given(moved, &stat, Some(&attributes)));
        let lost = moved.filter(|moved| value.as_ref().is_some_and(|value| self.is_lost(moved, &stat, value)));
        let lost = lost.and_then(|moved| moved.content);
        let wrote = lost.as_ref().map(|content| &content.value).or(value.as_ref());
        let uid = match uid {
            Some(uid) => {
                let within = self.shown_in_its_place(parent)?;
                let in_place = self.records.shown(uid)?.is_some_and(|s| s.parent == within && s.name == name);
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
                match (wrote, &base) {
                    // It is recorded, and has another place.
                    (Some(_), Some(base)) if lost.is_some() && base.object == stat.object => {}
                    // A newer content may be on its way here: where it lies is no reason to write the old one anew.
                    (Some(value), Some(base))
                        if lost.is_none() && unchanged.as_ref().is_some_and(|c| c.bytes.is_some()) =>
                    {
                        if base.stamp.mtime != mtime {
                            self.record_content_touch(uid, value, mtime)?;
                        }
                    }
                    (Some(value), base) => {
                        let seen = base.as_ref().and_then(|n| n.content.as_ref()).map(OnDisk::seen);
                        if brought && self.is_recorded_as(uid, value)? {
                            self.records.write_again(self.now, uid, mtime, stat.birth)?;
                        } else {
                            self.record_content(uid, value, mtime, stat.birth, seen.as_ref().or(memory.as_ref()))?;
                        }
                    }
                    (None, _) => {}
                }
                if !leftover {
                    self.record_attributes(uid, base.as_ref().map(|n| &n.attributes), &attributes)?;
                }
                uid
            }
            None => {
                let content = wrote.cloned().map(|v| (v, mtime, stat.birth));
                let attributes = Some((attributes.clone(), directory.then_some(mtime)));
                let uid = self
                    .records
                    .add(self.now, NewThing { parent, name: name.clone(), directory, content, attributes })?;
                batch.made.insert(uid);
                uid
            }
        };
        tracing::debug!(member = self.config.member, name = ?name, ?uid, ?parent, leftover, swapped, "found");
        if lost.is_some() {
            self.records.kv_mut().put(Table::Todo, &nodes::uid_key(uid), &[])?;
            self.due_now(uid);
        }
        let mut old = nodes::of(self.records.kv(), uid)?.filter(|n| !relabel.contains(&n.id));
        if old.is_none()
            && let Some(id) = batch.found.get(at).and_then(|f| f.moved.as_ref()).filter(|n| n.is_dir()).map(|n| n.id)
        {
            // A directory that was being emptied into another, until somebody moved it, or one whose record is forgotten: what
            // lies in it stays there.
            old = nodes::get(self.records.kv(), id)?.filter(|n| n.object == stat.object && !relabel.contains(&n.id));
            if let Some(forgotten) = old.as_ref().and_then(|n| n.uid)
                && self.records.record(forgotten)?.is_some()
            {
                old = None;
            }
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
            if let Some(lost) = lost.filter(|_| content.bytes.is_none()) {
                let facet = record.as_ref().and_then(|r| r.content.as_ref()).filter(|f| f.value == lost.value);
                content.history = facet.map_or(lost.history, |f| f.written.history.clone());
            }
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
        self.undone.forget(&stat.object);
        self.undone.forget_given(&stat.object);
        self.unsynced.looked_at(&stat.object);
        let known_before = old.is_some_and(|old| old.object == node.object);
        if let Some(found) = batch.found.get_mut(at) {
            found.uid = Some(uid);
            found.node = Some(id);
            if directory && (batch.scanning || !known_before) {
                // A new one was entered already, unless the batch was full; a second look costs little and closes the gap.
                // One that was moved has not been looked into by a scan that passed its old place.
                self.scan.at_last(id);
                self.scanning |= batch.scanning;
            }
        }
        batch.gone.remove(&id);
        Ok(())
    }

    /// A directory whose record is forgotten, since it was deleted elsewhere while we were away, and in which somebody
    /// made something: it is a new directory. Returns its UID; `None` if it has no node either.
    pub(super) fn anew(&mut self, uid: Uid) -> Result<Option<Uid>> {
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
    pub(super) fn revive(&mut self, uid: Uid) -> Result<()> {
        let mut at = uid;
        for _ in 0..4096 {
            let Some(placement) = self.records.record(at)?.map(|r| r.placement.value) else { return Ok(()) };
            if placement.deleted {
                self.records.revive(self.now, at)?;
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
    pub(super) fn node_of(
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

    /// Did a disk that failed to write make this of a file: other bytes than the database has, under the time that they had?
    pub(super) fn is_lost(&self, node: &Node, stat: &Stat, value: &Content) -> bool {
        self.unsynced.contains(&stat.object)
            && node.object == stat.object
            && node.content.as_ref().is_some_and(|c| c.bytes.is_some() && c.value != *value)
            && node.stamp.mtime == stat.stamp.mtime
    }

    /// Is this the content that is recorded?
    fn is_recorded_as(&self, uid: Uid, value: &Content) -> Result<bool> {
        let record = self.records.record(uid)?;
        Ok(record.and_then(|r| r.content).is_some_and(|f| f.value == *value))
    }

    pub(super) fn record_content(
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
    pub(super) fn record_attributes(&mut self, uid: Uid, before: Option<&Attributes>, now: &Attributes) -> Result<()> {
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

    pub(super) fn record_modified(&mut self, modified: &Modified) -> Result<()> {
        let Some(old) = nodes::get(self.records.kv(), modified.node.id)? else { return Ok(()) };
        let Some(uid) = old.uid.filter(|_| !modified.dropped && old.object == modified.stat.object) else {
            return Ok(());
        };
        let known_as = self.with_what_was_given(old.clone(), &modified.stat, modified.attributes.as_ref());
        self.undone.forget_given(&old.object);
        let value = modified.content.as_ref().map(|(c, _)| c.clone());
        let content = value.as_ref().map(crate::describe::value);
        tracing::debug!(member = self.config.member, name = %old.name.escape_ascii(), ?uid, content, "modified");
        let known = self.recorded(Some(uid), modified.stat.kind)?.is_some();
        if let Some(value) = value.as_ref().filter(|_| known) {
            let before = old.content.as_ref();
            // A candidate that is read again as it was when it became one is nobody's edit.
            let untouched = known_as.stamp == modified.stat.stamp;
            let same = before.is_some_and(|c| c.value == *value && (c.bytes.is_some() || untouched));
            if !same {
                let base = before.map(OnDisk::seen);
                self.record_content(uid, value, modified.stat.stamp.mtime, modified.stat.birth, base.as_ref())?;
                self.keep_within(uid)?;
            } else if known_as.stamp.mtime != modified.stat.stamp.mtime {
                // The same bytes with another time: a touch, unless a newer content is on its way here.
                self.record_content_touch(uid, value, modified.stat.stamp.mtime)?;
            }
        }
        if let Some(attributes) = modified.attributes.as_ref().filter(|_| known) {
            self.record_attributes(uid, Some(&known_as.attributes), attributes)?;
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
            node.attributes_version = known_as.attributes_version;
            match record.as_ref().and_then(|r| r.attributes.as_ref()) {
                Some(facet) if *attributes == facet.value => node.attributes_version = facet.written.version,
                Some(_) if node.attributes_version == Version::default() => {
                    self.records.kv_mut().put(Table::Todo, &nodes::uid_key(uid), &[])?;
                    self.due_now(uid);
                }
                Some(_) | None => {}
            }
        }
        nodes::put(self.records.kv_mut(), Some(&old), &node)?;
        if modified.content.is_some() {
            self.unsynced.looked_at(&node.object);
        }
        Ok(())
    }

    /// What the database has of something, with what a batch gave it that could not be noted, as far as that is there.
    pub(super) fn with_what_was_given(&self, mut node: Node, now: &Stat, attributes: Option<&Attributes>) -> Node {
        let Some(given) = self.undone.given(&node.object).filter(|_| node.object == now.object) else { return node };
        if given.mtime == now.stamp.mtime {
            node.stamp.mtime = given.mtime;
        }
        if let Some(attributes) = attributes {
            let known = known_with(&node.attributes, &given.attributes, attributes);
            // What is recorded may have become again what the database had by then, which is not what is there.
            if known != node.attributes {
                (node.attributes, node.attributes_version) = (known, Version::default());
            }
        }
        node
    }

    pub(super) fn record_content_touch(&mut self, uid: Uid, value: &Content, mtime: Timestamp) -> Result<()> {
        let record = self.records.record(uid)?;
        if record.and_then(|r| r.content).is_some_and(|f| f.value == *value && f.mtime != mtime) {
            self.records.touch(self.now, uid, mtime)?;
        }
        Ok(())
    }

    /// Deletes, children before parents.
    pub(super) fn record_gone(&mut self, batch: &Batch<F::Dir>, claimed: &BTreeSet<Uid>) -> Result<()> {
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
                self.node_again_later(&node)?;
                continue;
            }
            nodes::remove(self.records.kv_mut(), &node)?;
            self.undone.forget_given(&node.object);
            let Some(uid) = node.uid.filter(|uid| !claimed.contains(uid)) else { continue };
            if batch.put_back.contains(&node.id) && self.records.shown(uid)?.is_some() {
                self.records.kv_mut().put(Table::Todo, &nodes::uid_key(uid), &[])?;
                self.due_now(uid);
                continue;
            }
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
            if node.is_dir() && self.part_in_its_place(batch, uid)? {
                self.records.kv_mut().put(Table::Todo, &nodes::uid_key(uid), &[])?;
                self.due_now(uid);
            } else if !node.is_dir() || self.records.shown(uid)?.is_some() {
                self.records.remove_from(self.now, uid, seen.as_ref())?;
            }
        }
        Ok(())
    }

    /// Does one that is shown as this directory lie where the view shows it? Then this one was emptied into that, which could
    /// not be noted, and its going is nobody's removal of what is still there.
    fn part_in_its_place(&self, batch: &Batch<F::Dir>, uid: Uid) -> Result<bool> {
        let Some(shown) = self.records.shown(uid)? else { return Ok(false) };
        let parent = match shown.parent {
            Uid::ROOT => Some(ROOT_NODE),
            above => nodes::of(self.records.kv(), above)?.map(|node| node.id),
        };
        let Some(parent) = parent else { return Ok(false) };
        let there = nodes::at(self.records.kv(), parent, shown.name.bytes())?;
        let Some(there) = there.filter(|n| n.is_dir() && !batch.gone.contains_key(&n.id)) else { return Ok(false) };
        match there.uid.filter(|other| *other != uid) {
            Some(other) => Ok(self.records.shown_as(other)? == Some(uid)),
            None => Ok(false),
        }
    }

    /// A file whose name was taken over keeps its bytes under its new name as a thing of its own.
    pub(super) fn record_relabelled(&mut self, id: NodeId) -> Result<()> {
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

    /// While no versions may be issued: what differs is noted as a candidate, and partners' state is put back. What somebody
    /// made, changed, moved or removed since the tree was compared is taken up once versions may be issued again: by a scan.
    pub(super) fn note_batch(&mut self, batch: Batch<F::Dir>) -> Result<()> {
        self.records.begin()?;
        // What was found elsewhere keeps its node, and so does a directory with something in it that is not gone, and what is
        // another object in its place: a copy of the tree, as a backup brings it back.
        let claimed = batch.claimed();
        let copied = |found: &Found<F::Dir>| {
            let occupant = found.occupant.as_ref().filter(|n| n.kind == found.stat.kind && found.moved.is_none());
            occupant.filter(|n| self.absence_doubted && !claimed.contains(&n.id)).map(|n| n.id)
        };
        let copied: BTreeMap<NodeId, &Found<F::Dir>> =
            batch.found.iter().filter_map(|found| Some((copied(found)?, found))).collect();
        let absent = |n: &&Node| self.absence_doubted && !claimed.contains(&n.id) && !copied.contains_key(&n.id);
        let mut gone: Vec<&Node> = batch.gone.values().filter(absent).collect();
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
            let (content, attributes) = (modified.content.as_ref(), modified.attributes.as_ref());
            let changed = !old.is_dir() && old.stamp.mtime != modified.stat.stamp.mtime
                || content.is_some_and(|(value, _)| old.content.as_ref().is_none_or(|c| c.value != *value))
                || attributes.is_some_and(|attributes| *attributes != old.attributes);
            if changed && !self.absence_doubted && old.stamp != modified.stat.stamp {
                // Whoever changed it saw what was there. By its stamp it is found again.
                continue;
            }
            self.note_candidate(modified.node.id, &modified.stat, content, attributes)?;
        }
        for (id, found) in copied.into_iter().filter(|(_, found)| !found.dropped) {
            self.note_candidate(id, &found.stat, found.content.as_ref(), Some(&found.attributes))?;
            if found.stat.kind == Kind::Directory {
                self.scan.at_last(id);
                self.scanning = true;
            }
        }
        self.records.commit()?;
        self.work_at = Some(self.now);
        Ok(())
    }

    /// In the transaction under way: what lies there is noted, and differs from what is recorded until it was compared.
    fn note_candidate(
        &mut self,
        id: NodeId,
        stat: &Stat,
        content: Option<&(Content, bool)>,
        attributes: Option<&Attributes>,
    ) -> Result<()> {
        let Some(old) = nodes::get(self.records.kv(), id)? else { return Ok(()) };
        let mut node = old.clone();
        (node.object, node.stamp) = (stat.object.clone(), stat.stamp);
        match (content, &mut node.content) {
            // A touch: the recorded time is put back.
            (Some((value, _)), Some(content)) if content.value == *value => {
                if old.stamp.mtime != node.stamp.mtime {
                    content.version = Version::default();
                }
            }
            (Some((value, provisional)), content) => {
                *content = Some(crate::adopt::candidate(value.clone(), *provisional));
            }
            (None, _) => {}
        }
        if let Some(attributes) = attributes
            && node.attributes != *attributes
        {
            node.attributes = attributes.clone();
            node.attributes_version = Version::default();
        }
        nodes::put(self.records.kv_mut(), Some(&old), &node)?;
        self.unsynced.looked_at(&node.object);
        if let Some(uid) = node.uid {
            self.records.kv_mut().put(Table::Todo, &nodes::uid_key(uid), &[])?;
        }
        Ok(())
    }
}

fn found_provisional<D>(batch: &Batch<D>, at: usize) -> bool {
    batch.found.get(at).and_then(|f| f.content.as_ref()).is_some_and(|(_, provisional)| *provisional)
}
