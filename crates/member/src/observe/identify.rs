//! Which record is what was found: known by its object, by what was moved, by the view that shows just such a thing there, or
//! by what had the name a short while ago (design, section 5).

use std::collections::BTreeSet;

use anabranch_engine::kv::{Kv, Table};
use anabranch_model::{Knowledge, Names, Uid, fold};
use anabranch_volume::fs::{Fs, Kind};

use super::{Batch, Found, Parent};
use crate::nodes::{self, NodeId, ROOT_NODE};
use crate::replica::{Replica, Result};

impl<F: Fs + Sync, K: Kv> Replica<F, K>
where
    F::Dir: Send + Sync,
    F::File: Send,
{
    /// Of two names of one file, one was read before somebody wrote by the other: it is looked at again. No hint names it, and
    /// when the hint for the other came the database did not have it yet.
    pub(super) fn look_at_other_links(&mut self, batch: &Batch<F::Dir>) -> Result<()> {
        let found = batch.found.iter().filter(|f| !f.dropped).map(|f| &f.stat);
        let modified = batch.modified.iter().filter(|m| !m.dropped).map(|m| &m.stat);
        for stat in found.chain(modified).filter(|stat| stat.kind == Kind::File && stat.links > 1) {
            for other in nodes::by_object(self.records.kv(), &stat.object)? {
                if other.stamp != stat.stamp {
                    self.local_change(other.parent, &other.name);
                }
            }
        }
        // It may have kept the name that it had, too, in a directory that was moved at the same time: no hint names it there.
        for found in batch.found.iter().filter(|f| !f.dropped && f.stat.kind == Kind::File && f.stat.links > 1) {
            if let Some(moved) = &found.moved {
                self.local_change(moved.parent, &moved.name);
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
    pub(super) fn shown_in_its_place(&self, uid: Uid) -> Result<Uid> {
        Ok(self.records.shown_as(uid)?.unwrap_or(uid))
    }

    /// Did we make it or move it there ourselves, and could not make that durable? Then the UID for which we did.
    pub(super) fn undone_there(&self, batch: &Batch<F::Dir>, found: &Found<F::Dir>) -> Option<Uid> {
        let put = self.undone.get(&found.stat.object).filter(|put| found.name.bytes() == put.name)?;
        let (within, directory) = match found.parent {
            Parent::Node(id) => {
                (self.node_uid(id).ok().flatten(), nodes::get(self.records.kv(), id).ok().flatten().map(|n| n.object))
            }
            Parent::Found(above) => {
                let above = batch.found.get(above)?;
                (above.uid, Some(above.stat.object.clone()))
            }
        };
        // That the directory had become another's may have been taken back, too.
        let there = directory == Some(put.directory.clone())
            || self.shown_in_its_place(within?).ok()? == self.shown_in_its_place(put.within).ok()?;
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
}
