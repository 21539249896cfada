//! Which of what was found is what the database has elsewhere, and where what is gone from its place is now (design,
//! section 5).

use std::collections::BTreeSet;
use std::io;

use anabranch_engine::kv::Kv;
use anabranch_model::{Name, Names, fold, is_reserved};
use anabranch_volume::fs::{Fs, Kind, Object};

use super::DEEPEST;
use super::{Batch, Parent};
use crate::events::EventKind;
use crate::nodes::{self, Node, NodeId, ROOT_NODE};
use crate::replica::{Replica, Result};
use crate::steps::{Step, broken};

impl<F: Fs + Sync, K: Kv> Replica<F, K>
where
    F::Dir: Send + Sync,
    F::File: Send,
{
    /// Decides for each object found whether it was elsewhere before, and for each node gone whether it is elsewhere now.
    pub(super) fn match_objects(
        &mut self,
        batch: &mut Batch<F::Dir>,
        seen: &mut BTreeSet<(NodeId, Vec<u8>)>,
    ) -> Result<()> {
        let (mut at, mut entered) = (0, batch.found.len());
        let (mut located, mut emptied, mut alike) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
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
            if batch.found.len() > entered || self.look_at_other_cases(batch, seen, &mut alike)? {
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

    /// What was found is recorded only with what left a name that is one with its own by the folder's rule: that is looked at
    /// now. In a directory that was moved itself it can be only after that was found. Is there more in the batch by this?
    fn look_at_other_cases(
        &mut self,
        batch: &mut Batch<F::Dir>,
        seen: &mut BTreeSet<(NodeId, Vec<u8>)>,
        asked: &mut BTreeSet<(NodeId, Vec<u8>)>,
    ) -> Result<bool> {
        if self.config.names == Names::Bytes {
            return Ok(false);
        }
        let waiting = self.waiting_names(batch);
        let known = (batch.found.len(), batch.gone.len());
        for at in 0..batch.found.len() {
            let Some(found) = batch.found.get(at).filter(|f| !f.dropped) else { continue };
            let Parent::Node(id) = found.parent else { continue };
            let name = found.name.bytes().to_vec();
            let mut alike =
                waiting.get(&(id, fold(&name, self.config.names).into_owned())).cloned().unwrap_or_default();
            if let Some(parent) = self.node_uid(id)?
                && let Some(shown) = self.records.shown_at(parent, &name)?
            {
                let node = nodes::of(self.records.kv(), shown)?;
                alike.extend(node.filter(|node| node.parent == id).map(|node| node.name));
            }
            for other in alike.into_iter().filter(|other| *other != name) {
                if asked.insert((id, other.clone())) {
                    self.look(batch, seen, id, other)?;
                }
            }
        }
        Ok((batch.found.len(), batch.gone.len()) != known)
    }

    pub(super) fn match_found(
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
        // Another name of it in a directory that moved at the same time moved with that: it comes last.
        let mut last = Vec::new();
        for node in nodes::by_object(self.records.kv(), &object)?.into_iter().filter(|n| n.kind == kind) {
            let taken = batch.found.iter().any(|f| f.moved.as_ref().is_some_and(|m| m.id == node.id));
            if taken {
                continue;
            }
            if !batch.gone.contains_key(&node.id) {
                // Is it still where the database has it? Then this is a second name of it.
                self.look(batch, seen, node.parent, node.name.clone())?;
            }
            if !batch.gone.contains_key(&node.id) {
                if self.ancestor_gone(batch, &node)? {
                    last.push(node);
                    continue;
                }
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
            Self::found_moved(batch, at, node);
            return Ok(());
        }
        if let Some(node) = last.into_iter().next() {
            Self::found_moved(batch, at, node);
        }
        Ok(())
    }

    fn found_moved(batch: &mut Batch<F::Dir>, at: usize, node: Node) {
        batch.gone.entry(node.id).or_insert_with(|| node.clone());
        if let Some(found) = batch.found.get_mut(at) {
            found.moved = Some(node);
        }
    }

    pub(super) fn ancestor_gone(&self, batch: &Batch<F::Dir>, node: &Node) -> Result<bool> {
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
    pub(super) fn locate_gone(
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
                    let owner = nodes::at(self.records.kv(), here.0, &here.1)?;
                    if owner.is_some_and(|n| n.id != node.id && n.object == node.object) {
                        // Known there already, so nothing new will be found there: this one is gone.
                        return Ok(());
                    }
                    if parent == nodes::STAGING_NODE {
                        // On its way through our hands; unnoted where somebody swapped it in for what was to go there.
                        if node.parent != nodes::STAGING_NODE {
                            self.unnoted_parked = true;
                            self.work_at = Some(self.now);
                        }
                        batch.gone.remove(&node.id);
                        self.node_again_later(node)?;
                        return Ok(());
                    }
                    if seen.contains(&here) {
                        let found = batch.found.iter().any(|f| f.stat.object == node.object);
                        if !found && here != (node.parent, node.name.clone()) {
                            // Seen before it came there: the next batch will find it. Until then it is not gone.
                            batch.gone.remove(&node.id);
                            self.again_later(here.0, &here.1);
                            self.node_again_later(node)?;
                        }
                        return Ok(());
                    }
                    self.reach(batch, seen, &directory, 0)?;
                    self.look(batch, seen, here.0, here.1)?;
                    let found = batch.found.iter().any(|f| f.stat.object == node.object);
                    if !found && self.is_preserved_below(&directory) {
                        batch.put_back.insert(node.id);
                    } else if !found {
                        // What it lies in is in flux: it is somewhere, so it is not gone.
                        batch.gone.remove(&node.id);
                        self.node_again_later(node)?;
                    }
                } else {
                    // In a directory that the database does not have yet.
                    let entered = Self::entered(batch, &directory).is_some();
                    if !entered && self.is_preserved_below(&directory) {
                        // Another name of it was preserved with what it lies in, or it was moved in there before: nobody
                        // can tell which. What the view shows is put back; of the rest nothing is left in the tree.
                        batch.put_back.insert(node.id);
                    } else if !entered && self.is_private(&directory) {
                        // A directory has one name only, and it was we who gave it this one.
                        if node.is_dir() {
                            batch.put_back.insert(node.id);
                        }
                    } else if Name::new(name.clone()).is_ok() {
                        if !entered || !batch.found.iter().any(|f| f.stat.object == node.object) {
                            self.look_at_unknown(batch, seen, &directory, &name)?;
                        }
                        if !batch.found.iter().any(|f| f.stat.object == node.object) {
                            batch.gone.remove(&node.id);
                            self.node_again_later(node)?;
                        }
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

    /// Opens a directory that is not where its node says, or that the database does not have, by what it lies in now: what
    /// left a name for a place in there can be recorded in one batch with what took the name only if both are found. Of what
    /// it lies in one may be known and moved and the next new, in any order.
    pub(super) fn reach(
        &mut self,
        batch: &mut Batch<F::Dir>,
        seen: &mut BTreeSet<(NodeId, Vec<u8>)>,
        directory: &Object,
        depth: usize,
    ) -> Result<bool> {
        let known = self.dir_node(directory)?;
        let open = match known {
            Some(id) => matches!(self.open_node(id)?, Ok(Some(_))),
            None => Self::entered(batch, directory).is_some(),
        };
        if open {
            return Ok(true);
        }
        let Ok(Some((above, name))) = self.fs.locate(directory) else { return Ok(false) };
        if depth == DEEPEST || is_reserved(&name) || !self.reach(batch, seen, &above, depth + 1)? {
            return Ok(false);
        }
        self.look_in_reached(batch, seen, &above, &name)?;
        let Some(id) = known else { return Ok(Self::entered(batch, directory).is_some()) };
        if matches!(self.open_node(id)?, Ok(Some(_))) {
            return Ok(true);
        }
        // Its move is not recorded yet, and may wait for what lies in it.
        let above = match self.dir_node(&above)? {
            Some(parent) => self.dir(parent)?,
            None => Self::entered(batch, &above).and_then(|at| batch.found.get(at)?.dir.clone()),
        };
        let Some(above) = above else { return Ok(false) };
        let opened = self.fs.open_dir(&above, &name).and_then(|dir| Ok((self.fs.stat_dir(&dir)?.object, dir)));
        Ok(match opened {
            Ok((object, dir)) if object == *directory => {
                self.dirs.insert(id, dir);
                true
            }
            Ok(_) | Err(_) => false,
        })
    }

    /// Which of those found is this directory, opened.
    fn entered(batch: &Batch<F::Dir>, directory: &Object) -> Option<usize> {
        batch.found.iter().position(|f| f.dir.is_some() && f.stat.object == *directory)
    }

    /// Looks at an entry of a directory that was reached, and enters what it finds.
    fn look_in_reached(
        &mut self,
        batch: &mut Batch<F::Dir>,
        seen: &mut BTreeSet<(NodeId, Vec<u8>)>,
        directory: &Object,
        name: &[u8],
    ) -> Result<()> {
        if let Some(parent) = self.dir_node(directory)? {
            self.look(batch, seen, parent, name.to_vec())?;
        } else if let Some(at) = Self::entered(batch, directory)
            && !batch.found.iter().any(|f| f.parent == Parent::Found(at) && f.name.bytes() == name)
        {
            // The batch was full when it was opened, or this came into it since.
            let dir = batch.found.get(at).and_then(|f| f.dir.clone());
            if let Some(Ok(Some(stat))) = dir.map(|dir| self.fs.stat(&dir, name)) {
                self.add_child(batch, at, name.to_vec(), stat)?;
            }
        }
        self.enter_found(batch, seen)
    }

    /// An entry of a directory that the database does not have is something that it has elsewhere: it is looked at, or where
    /// it cannot be reached now, the place where that directory became visible is looked at later. No event may ever tell of
    /// it, as when what was mounted over it is taken away.
    pub(super) fn look_at_unknown(
        &mut self,
        batch: &mut Batch<F::Dir>,
        seen: &mut BTreeSet<(NodeId, Vec<u8>)>,
        directory: &Object,
        name: &[u8],
    ) -> Result<()> {
        if self.reach(batch, seen, directory, 0)? {
            return self.look_in_reached(batch, seen, directory, name);
        }
        let mut at = directory.clone();
        for _ in 0..DEEPEST {
            let Ok(Some((above, name))) = self.fs.locate(&at) else { return Ok(()) };
            if let Some(parent) = self.dir_node(&above)? {
                if parent != nodes::STAGING_NODE && !is_reserved(&name) {
                    self.again_later(parent, &name);
                }
                return Ok(());
            }
            at = above;
        }
        Ok(())
    }

    /// Does a directory lie in one that was preserved whole?
    pub(crate) fn is_preserved_below(&self, directory: &Object) -> bool {
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

    pub(crate) fn is_private(&self, object: &Object) -> bool {
        [&self.private.top, &self.private.conflict, &self.private.pre_existing, &self.private.staging]
            .into_iter()
            .any(|dir| self.fs.stat_dir(dir).is_ok_and(|s| s.object == *object))
    }
}
