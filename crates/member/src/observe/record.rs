//! What was found becomes versions and nodes (design, sections 4 and 5).

use std::collections::BTreeSet;

use anabranch_engine::kv::{Kv, Table};
use anabranch_engine::{ChangeError, NewThing};
use anabranch_model::{Attributes, Content, Knowledge, Name, Names, Record, Timestamp, Uid, Version, fold};
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
        self.commit()?;
        self.look_at_other_links(&batch)?;
        self.resolve(anabranch_engine::ResolveScope::Own)
    }

    /// Of two names of one file, one was read before somebody wrote by the other: it is looked at again. No hint names it, and
    /// when the hint for the other came the database did not have it yet.
    fn look_at_other_links(&mut self, batch: &Batch<F::Dir>) -> Result<()> {
        let found = batch.found.iter().filter(|f| !f.dropped).map(|f| &f.stat);
        let modified = batch.modified.iter().filter(|m| !m.dropped).map(|m| &m.stat);
        for stat in found.chain(modified).filter(|stat| stat.kind == Kind::File && stat.links > 1) {
            for other in nodes::by_object(self.records.kv(), &stat.object)? {
                if other.stamp != stat.stamp {
                    self.local_change(other.parent, &other.name);
                }
            }
        }
        Ok(())
    }

    /// Decides which UID each found thing goes on with; none: it is new. Directories first: where a file lies says which one
    /// it is. Returns the UIDs taken, and in `relabel` the nodes whose UID went to another object at their old name.
    pub(super) fn identify(&mut self, batch: &mut Batch<F::Dir>, relabel: &mut Vec<NodeId>) -> Result<BTreeSet<Uid>> {
        let mut claimed = BTreeSet::new();
        self.identify_moved(batch, &mut claimed, true)?;
        // Directories that we made, and the database has forgotten.
        for at in 0..batch.found.len() {
            let Some(found) = batch.unidentified(at).filter(|f| f.stat.kind == Kind::Directory) else { continue };
            let made = self
                .undone_there(batch, found)
                .filter(|uid| nodes::of(self.records.kv(), *uid).is_ok_and(|n| n.is_none()));
            let uid = self.recorded(made, Kind::Directory)?;
            if batch.identify(at, uid, &mut claimed).is_some()
                && let Some(found) = batch.found.get_mut(at)
            {
                found.leftover = true;
            }
        }
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
            let own = found.moved.as_ref().and_then(|n| n.uid);
            let own =
                own.filter(|own| self.is_shown_at(batch, found, *own) || self.undone_there(batch, found).is_some());
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
    pub(super) fn identify_moved(
        &self,
        batch: &mut Batch<F::Dir>,
        claimed: &mut BTreeSet<Uid>,
        directories: bool,
    ) -> Result<()> {
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
    pub(super) fn closed_seen(&mut self, batch: &Batch<F::Dir>) {
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
    pub(super) fn match_view(&mut self, batch: &mut Batch<F::Dir>, directories: bool) -> Result<()> {
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
    pub(super) fn is_shown_at(&self, batch: &Batch<F::Dir>, found: &Found<F::Dir>, uid: Uid) -> bool {
        let parent = match found.parent {
            Parent::Node(id) => self.node_uid(id).ok().flatten(),
            Parent::Found(p) => batch.found.get(p).and_then(|p| p.uid),
        };
        let parent = parent.and_then(|parent| self.shown_in_its_place(parent).ok());
        let shown = self.records.shown(uid).ok().flatten();
        shown.is_some_and(|s| Some(s.parent) == parent && s.name == found.name)
    }

    /// The directory as which one is shown. What of several that are one lies on the disk may be any of them: for a moment, or since
    /// what was done about it could not be noted.
    fn shown_in_its_place(&self, uid: Uid) -> Result<Uid> {
        Ok(self.records.shown_as(uid)?.unwrap_or(uid))
    }

    /// Did we make it or move it there ourselves, and could not make that durable? Then the UID for which we did.
    pub(super) fn undone_there(&self, batch: &Batch<F::Dir>, found: &Found<F::Dir>) -> Option<Uid> {
        let put = self.undone.get(&found.stat.object)?;
        let within = match found.parent {
            Parent::Node(id) => self.node_uid(id).ok().flatten(),
            Parent::Found(above) => batch.found.get(above).and_then(|above| above.uid),
        };
        let within = self.shown_in_its_place(within?).ok()?;
        let there = within == self.shown_in_its_place(put.within).ok()? && found.name.bytes() == put.name;
        there.then_some(put.uid)
    }

    /// Was it put there by our own exchange with what the view shows where it was?
    pub(super) fn is_swapped(&self, batch: &Batch<F::Dir>, found: &Found<F::Dir>) -> bool {
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
    pub(super) fn remembered(
        &self,
        batch: &Batch<F::Dir>,
        found: &Found<F::Dir>,
    ) -> Result<Option<(Uid, Option<Knowledge>)>> {
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
    pub(super) fn memory_keys(&self, name: &[u8]) -> (Vec<u8>, Option<(Vec<u8>, Vec<u8>)>) {
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
    pub(super) fn recorded(&self, uid: Option<Uid>, kind: Kind) -> Result<Option<Uid>> {
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
            let same = before.is_some_and(|c| c.value == *value && c.bytes.is_some());
            if !same {
                // The history of a candidate is empty: whoever changed it has not seen what is recorded.
                let base = before.map(|c| c.history.clone());
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
        Ok(())
    }

    /// What the database has of something, with what a batch gave it that could not be noted, as far as that is there.
    fn with_what_was_given(&self, mut node: Node, now: &Stat, attributes: Option<&Attributes>) -> Node {
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

    /// While no versions may be issued: what differs is noted as a candidate, and partners' state is put back.
    pub(super) fn note_batch(&mut self, batch: Batch<F::Dir>) -> Result<()> {
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
            match (&modified.content, &mut node.content) {
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
