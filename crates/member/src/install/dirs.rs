//! Directories, and whatever has another name now: made, moved, parked, merged and emptied while a batch is planned, since
//! the rows that follow rest on it (design, section 8).

use std::io;

use anabranch_engine::kv::{Kv, Table};
use anabranch_model::{Name, Record, Uid, Version};
use anabranch_volume::fs::{Fs, Kind, Stat};

use super::{Batch, Looked, parked_name};
use crate::events::EventKind;
use crate::nodes::{self, Node, NodeId, STAGING_NODE};
use crate::replica::{Replica, Result, Waiting};
use crate::steps::{Step, broken};
use crate::tables;

/// How often one thing is put aside in one step before it waits.
const ASIDE_MAX: u32 = 4;
/// Directories remembered that could be neither finished nor removed.
const HALF_MADE_MAX: usize = 1024;
/// Moves remembered for hints that come late; beyond it the whole tree is compared.
const MOVED_AWAY_MAX: usize = 100_000;

impl<F: Fs + Sync, K: Kv> Replica<F, K>
where
    F::Dir: Send + Sync,
    F::File: Send,
{
    /// Puts something that cannot reach its place yet aside, into staging, so that its name is free.
    pub(super) fn park(
        &mut self,
        batch: &mut Batch<F>,
        node: Node,
    ) -> Result<std::result::Result<Option<Node>, Waiting>> {
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
        // It was to be taken out of where something else is now.
        batch.removals.retain(|removal| removal.node.uid != Some(uid));
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
    pub(super) fn move_node(
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
                    Err(error) => {
                        let why = match self.denied(&[node.parent, other.id], &error) {
                            true => Waiting::Order,
                            false => self.failed(node.parent, &node.name, &error)?,
                        };
                        if self.exchanged_back([(&from, &node), (&to, other)]) {
                            self.put_back_times(node.parent, parent.id, times)?;
                            batch.dirs.extend([node.parent, parent.id]);
                            // Their stamps may have moved.
                            self.local_change(node.parent, &node.name);
                            self.local_change(parent.id, name);
                            return Ok(Err(why));
                        }
                        // It stays where the other one was, and goes on from there.
                    }
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

    /// Two things that changed places, and one of which cannot go on from there, get their names back: under the other's name
    /// people would take it for that one, for as long as it cannot go on. `false`: somebody did something to them meanwhile,
    /// and they are as they were.
    fn exchanged_back(&self, [(from, node), (to, other)]: [(&F::Dir, &Node); 2]) -> bool {
        let exchange = || self.fs.exchange(from, &node.name, to, &other.name).is_ok();
        let is = |dir: &F::Dir, node: &Node| {
            self.fs.stat(dir, &node.name).is_ok_and(|stat| stat.is_some_and(|s| s.object == node.object))
        };
        if !exchange() {
            return false;
        }
        let back = (is(from, node) && is(to, other)) || broken(Step::LookAtWhatCameOut);
        back || !exchange()
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
    pub(crate) fn shown_place(&self, uid: Uid) -> Result<Option<(NodeId, Vec<u8>)>> {
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
        // It may come from a directory in which nothing could be compared since a power cut.
        let doubted = self.compared_at.is_some() && node.kind == Kind::File;
        if self.closed.remove(&old) || doubted {
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

    pub(super) fn dissolve(&mut self, batch: &mut Batch<F>, id: NodeId) -> Result<Looked> {
        let Some(node) = nodes::get(self.records.kv(), id)?.filter(|n| n.uid.is_none()) else {
            return Ok(Looked::Done);
        };
        self.empty_dir(batch, &node, 0)
    }

    /// A directory that the view does not show: part of another now, or deleted.
    pub(super) fn take_out_dir(&mut self, batch: &mut Batch<F>, uid: Uid, node: &Node, depth: usize) -> Result<Looked> {
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
        // Looking at what is in it may have moved it, or made another directory of it, which stays.
        let Some(node) = &nodes::get(self.records.kv(), node.id)?.filter(|now| now.uid == node.uid) else {
            return Ok(Looked::Done);
        };
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
                if let Some(name) = self.kept_by(node.id)? {
                    let within = self.node_path(node.id, &name)?;
                    let path = self.node_path(node.parent, &node.name)?;
                    let [path, within] = [path, within].map(|path| String::from_utf8_lossy(&path).into_owned());
                    let text =
                        format!("{path} cannot be removed: {within} is in it, which is not replicated; remove that");
                    self.report_once(EventKind::CannotInstall, text);
                    return Ok(Looked::Wait(Waiting::Failed));
                }
                self.scan.next(node.id);
                self.observe_at = Some(self.now);
                Ok(Looked::Wait(Waiting::LocalChange))
            }
            Err(error) => Ok(Looked::Wait(self.failed(node.parent, &node.name, &error)?)),
        }
    }

    /// What keeps a directory of which all that is replicated is gone: something that never is. `None`: there is something
    /// else in it.
    fn kept_by(&mut self, id: NodeId) -> Result<Option<Vec<u8>>> {
        let Ok(Some(dir)) = self.open_node(id)? else { return Ok(None) };
        let Ok(entries) = self.fs.list(&dir) else { return Ok(None) };
        for entry in &entries {
            let never = Name::new(entry.name.clone()).is_err()
                || matches!(self.fs.stat(&dir, &entry.name), Ok(Some(stat)) if stat.kind == Kind::Other || stat.foreign);
            if !never {
                return Ok(None);
            }
        }
        Ok(entries.into_iter().next().map(|entry| entry.name))
    }

    pub(super) fn make_dir(
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
}
