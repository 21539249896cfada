//! What is durable when, and what a power cut leaves. The table stands in the head of [`super`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::disk::{BENEATH, BLOCK, Data, Disk, Facts, Inode, NameChange, ROOT};
use super::{Deed, Rng, SimFs, Thing};
use crate::fs::Kind;

/// What a power cut did to the disk.
#[derive(Clone, Debug, Default)]
pub struct Wreck {
    /// Files whose bytes are now others than before, by path from the root (private ones too).
    pub changed: Vec<Changed>,
    /// Contents that were somewhere on the disk before and are nowhere on it now.
    pub vanished: Vec<Vanished>,
    /// Changes of names that were lost, and all that had not been durable.
    pub names_lost: usize,
    /// See [`Self::names_lost`].
    pub names_pending: usize,
}

/// A file whose bytes a power cut changed.
#[derive(Clone, Debug)]
pub struct Changed {
    /// Where it is now.
    pub path: Vec<u8>,
    /// What it holds now.
    pub after: Thing,
    /// How it came about.
    pub damage: Damage,
    /// A user wrote it last (else the member did).
    pub by_user: bool,
}

/// Content that a power cut took from the disk.
#[derive(Clone, Debug)]
pub struct Vanished {
    /// The content.
    pub content: Thing,
    /// A user wrote it here (else the member did).
    pub by_user: bool,
}

/// What happened to data that was not durable.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Damage {
    /// The bytes from before.
    Old,
    /// Length zero.
    Empty,
    /// The new length, with zeros in blocks that were not written.
    Zeros,
    /// Old and new blocks mixed.
    Torn,
    /// Nothing, but that its writer had not closed it and never will.
    Unfinished,
    /// Nothing, but that it had no name any more and has one again.
    Revived,
}

impl Disk {
    fn apply(&mut self, change: &NameChange) {
        for (dir, name, to) in change.sets.iter().flatten() {
            let Ok(inode) = self.inode_mut(*dir) else { continue };
            match to {
                Some(number) => inode.durable_entries.insert(Arc::clone(name), *number),
                None => inode.durable_entries.remove(name),
            };
        }
    }

    /// Makes the names of one directory durable: its changes, and whatever must not come later than they.
    pub(super) fn sync_names(&mut self, dir: u64) {
        let mut touched = BTreeSet::from([dir]);
        let mut due = vec![false; self.state.log.len()];
        for (change, due) in self.state.log.iter().zip(&mut due).rev() {
            if change.touches().any(|d| touched.contains(&d)) {
                *due = true;
                touched.extend(change.touches());
            }
        }
        for (change, due) in std::mem::take(&mut self.state.log).into_iter().zip(due) {
            if due {
                self.apply(&change);
            } else {
                self.state.log.push(change);
            }
        }
    }

    /// Makes an inode durable: its data and attributes, not its names.
    pub(super) fn sync_inode(&mut self, number: u64) {
        let Ok(inode) = self.inode_mut(number) else { return };
        if inode.lost {
            // An earlier sync dropped data: the kernel holds it for clean, and says that all is well.
            let data = Arc::clone(&inode.durable.data);
            inode.durable = Facts { data, ..inode.now.clone() };
        } else {
            inode.durable = inode.now.clone();
        }
        inode.dirty = inode.lost;
    }

    /// A sync failed: what it was to write may be dropped from memory, and no later sync will write it.
    pub(super) fn fail_sync(&mut self, number: u64) {
        let (drop, evict) = (self.rng.chance(1, 2), self.rng.chance(1, 2));
        let Ok(inode) = self.inode_mut(number) else { return };
        if !drop || !inode.dirty || inode.kind != Kind::File {
            return;
        }
        inode.lost = true;
        if evict && inode.now.data != inode.durable.data {
            let before = Thing::of(inode);
            inode.now.data = Arc::clone(&inode.durable.data);
            if let (true, Some(before), Some(after)) = (inode.by_user, before, Thing::of(inode)) {
                if after.bytes().is_empty() {
                    self.emptied.insert(number, before.clone());
                }
                self.deeds.push(Deed::Damaged { before, after });
            }
        }
    }

    pub(super) fn sync_everything(&mut self) {
        for change in std::mem::take(&mut self.state.log) {
            self.apply(&change);
        }
        for number in std::mem::take(&mut self.state.dirty) {
            self.sync_inode(number);
        }
        self.free_orphans();
    }

    /// A sync of everything failed half way.
    pub(super) fn sync_something(&mut self) {
        let through = self.rng.index(self.state.log.len() + 1);
        let later = self.state.log.split_off(through);
        for change in std::mem::replace(&mut self.state.log, later) {
            self.apply(&change);
        }
        for number in std::mem::take(&mut self.state.dirty) {
            if self.rng.chance(1, 2) {
                self.sync_inode(number);
            } else {
                self.fail_sync(number);
                self.state.dirty.push(number);
            }
        }
    }

    /// Forgets inodes that nothing names. Only while no change of names is pending.
    fn free_orphans(&mut self) {
        let mut open = Vec::new();
        for number in std::mem::take(&mut self.state.orphans) {
            match self.inode(number) {
                Ok(inode) if inode.links > 0 => {}
                Ok(inode) if inode.opens > 0 => open.push(number),
                _ => self.state.inodes[number as usize] = None,
            }
        }
        self.state.orphans = open;
    }

    /// All contents reachable from the root, those that something is mounted over too.
    pub(super) fn contents(&self) -> Vec<(u64, Thing, bool)> {
        let mut out = Vec::new();
        self.walk(ROOT, &mut Vec::new(), &mut |number, _| {
            if let Ok(inode) = self.inode(number)
                && let Some(thing) = Thing::of(inode)
            {
                out.push((number, thing, inode.by_user));
            }
        });
        out
    }

    /// Visits everything below a directory, the directory first, names ascending; what is mounted over hides nothing from it.
    pub(super) fn walk(&self, dir: u64, path: &mut Vec<u8>, visit: &mut dyn FnMut(u64, &[u8])) {
        self.walk_where(&|_| true, dir, path, visit);
    }

    /// Visits what can be seen below a directory, the directory first, names ascending.
    pub(super) fn walk_seen(&self, dir: u64, path: &mut Vec<u8>, visit: &mut dyn FnMut(u64, &[u8])) {
        self.walk_where(&|inode| !inode.foreign, dir, path, visit);
    }

    fn walk_where(
        &self,
        enter: &dyn Fn(&Inode) -> bool,
        dir: u64,
        path: &mut Vec<u8>,
        visit: &mut dyn FnMut(u64, &[u8]),
    ) {
        let Ok(inode) = self.inode(dir) else { return };
        for (name, &number) in &inode.entries {
            let length = path.len();
            if length > 0 {
                path.push(b'/');
            }
            path.extend_from_slice(name);
            visit(number, path);
            if self.inode(number).is_ok_and(|i| i.kind == Kind::Directory && enter(i)) {
                self.walk_where(enter, number, path, visit);
            }
            path.truncate(length);
        }
    }

    pub(super) fn crash(&mut self, seed: u64) -> Wreck {
        let mut rng = Rng::new(seed);
        let before = self.contents();
        let named: BTreeSet<u64> = before.iter().map(|(number, ..)| *number).collect();
        let unfinished: BTreeSet<u64> = self.users.values().filter(|u| u.wrote).map(|u| u.inode).collect();
        let mut wreck = Wreck { names_pending: self.state.log.len(), ..Wreck::default() };
        wreck.names_lost = self.lose_names(&mut rng);
        self.forget_processes(true);
        self.adopt_durable_names();
        let mut damaged = BTreeMap::new();
        for number in std::mem::take(&mut self.state.dirty) {
            if let Some(damage) = self.lose_data(number, &mut rng) {
                damaged.insert(number, damage);
            }
        }
        self.state.used = 0;
        let mut after = BTreeSet::new();
        let mut used = 0;
        self.walk(ROOT, &mut Vec::new(), &mut |number, path| {
            let Ok(inode) = self.inode(number) else { return };
            used += inode.now.data.bytes.len() as u64;
            let Some(thing) = Thing::of(inode) else { return };
            let open = unfinished.contains(&number).then_some(&Damage::Unfinished);
            let back = (!named.contains(&number)).then_some(&Damage::Revived);
            if let Some(&damage) = damaged.get(&number).or(open).or(back) {
                wreck.changed.push(Changed {
                    path: path.to_vec(),
                    after: thing.clone(),
                    damage,
                    by_user: inode.by_user,
                });
            }
            after.insert(thing);
        });
        self.state.used = used;
        for (_, content, by_user) in before {
            if !after.contains(&content) {
                wreck.vanished.push(Vanished { content, by_user });
            }
        }
        wreck
    }

    /// Decides which changes of names survive, and applies these. Returns how many were lost.
    fn lose_names(&mut self, rng: &mut Rng) -> usize {
        let log = std::mem::take(&mut self.state.log);
        let pending = log.len();
        // Most real journals keep a prefix of all; per-directory prefixes are the weakest that any file system shows.
        let (prefix, survive) = match rng.below(4) {
            0 => (Some(0), 0),
            1 => (Some(rng.index(pending + 1)), 0),
            2 => (Some(pending), 0),
            _ => (None, rng.between(10, 90)),
        };
        let mut cut_off = BTreeSet::new();
        let mut survived = 0;
        for (at, change) in log.iter().enumerate() {
            let lives = match prefix {
                Some(prefix) => at < prefix,
                None => !change.touches().any(|d| cut_off.contains(&d)) && rng.chance(survive, 100),
            };
            if lives {
                self.apply(change);
                survived += 1;
            } else {
                cut_off.extend(change.touches());
                cut_off.extend(change.made());
            }
        }
        pending - survived
    }

    /// What is in memory becomes what is on the disk; what cannot be reached is gone.
    fn adopt_durable_names(&mut self) {
        for inode in self.state.inodes.iter_mut().flatten() {
            inode.entries.clone_from(&inode.durable_entries);
            inode.links = 0;
            inode.place = None;
        }
        let mut queue = vec![ROOT, BENEATH];
        let mut found = Vec::new();
        while let Some(dir) = queue.pop() {
            found.push((None, dir));
            let Ok(inode) = self.inode(dir) else { continue };
            for (name, &number) in &inode.entries {
                match self.inode(number) {
                    Ok(i) if i.kind == Kind::Directory => queue.push(number),
                    Ok(_) => {}
                    Err(_) => continue,
                }
                found.push((Some((dir, Arc::clone(name))), number));
            }
        }
        for (place, number) in found {
            let Ok(inode) = self.inode_mut(number) else { continue };
            match place {
                Some(place) => {
                    inode.links += 1;
                    inode.place = Some(place);
                }
                None if number <= BENEATH => inode.links = 1,
                None => {}
            }
        }
        for slot in &mut self.state.inodes {
            if slot.as_ref().is_some_and(|i| i.links == 0) {
                *slot = None;
            }
        }
        self.state.orphans.clear();
    }

    /// Decides what is left of an inode that was not durable. Says so where its bytes changed.
    fn lose_data(&mut self, number: u64, rng: &mut Rng) -> Option<Damage> {
        let inode = self.inode_mut(number).ok()?;
        if !inode.dirty {
            return None;
        }
        let (old, new) = (Arc::clone(&inode.durable.data), Arc::clone(&inode.now.data));
        let mut damage = None;
        if inode.lost {
            inode.now.data = Arc::clone(&old);
            damage = Some(Damage::Old);
        } else if old != new {
            let (data, how) = match rng.below(6) {
                0 => (old, Some(Damage::Old)),
                1 => (Arc::default(), Some(Damage::Empty)),
                2 => (Arc::new(zeros(&new, rng)), Some(Damage::Zeros)),
                3 => (Arc::new(torn(&old, &new, rng)), Some(Damage::Torn)),
                _ => (Arc::clone(&new), None),
            };
            damage = how;
            inode.now.data = data;
        }
        if inode.now.data.bytes == new.bytes {
            damage = None;
        }
        if rng.chance(1, 3) {
            inode.now.attributes = Arc::clone(&inode.durable.attributes);
        }
        if rng.chance(1, 3) {
            inode.now.mtime = inode.durable.mtime;
            inode.now.ctime = inode.durable.ctime;
        }
        inode.durable = inode.now.clone();
        inode.dirty = false;
        inode.lost = false;
        damage
    }

    /// Every descriptor that the member holds is closed; after a power cut (`all`) those of the users too.
    pub(super) fn forget_processes(&mut self, all: bool) {
        self.epoch += 1;
        if all {
            self.users.clear();
        }
        for inode in self.state.inodes.iter_mut().flatten() {
            inode.opens = 0;
            inode.writers = 0;
            inode.lease = None;
        }
        let users: Vec<_> = self.users.iter().map(|(&id, user)| (id, user.inode, user.opened)).collect();
        for (id, number, opened) in users {
            let Ok(inode) = self.inode_mut(number) else { continue };
            inode.opens += 1;
            if opened {
                inode.writers += 1;
            } else {
                inode.waiting.retain(|&w| w != id);
                self.finish_open(id);
            }
        }
        if all {
            for inode in self.state.inodes.iter_mut().flatten() {
                inode.waiting.clear();
            }
            self.hints = super::hints::Hints::default();
        }
    }
}

/// The new length, with some blocks never written.
fn zeros(new: &Data, rng: &mut Rng) -> Data {
    let mut out = new.clone();
    for (block, chunk) in out.bytes.chunks_mut(BLOCK).enumerate() {
        if rng.chance(1, 2) {
            chunk.fill(0);
            out.written[block] = false;
        }
    }
    out
}

/// Blocks of the old and of the new content, with the length of either.
fn torn(old: &Data, new: &Data, rng: &mut Rng) -> Data {
    let length = if rng.chance(1, 2) { old.bytes.len() } else { new.bytes.len() };
    let mut out = old.clone();
    out.resize(length);
    for at in (0..length.min(new.bytes.len())).step_by(BLOCK) {
        if rng.chance(1, 2) {
            let end = (at + BLOCK).min(length).min(new.bytes.len());
            out.write(&new.bytes[at..end], at);
        }
    }
    out
}

impl SimFs {
    /// Power cut: leaves what was durable and, as `seed` decides, some of what was not. All handles die, users' too.
    /// Afterwards the power is on again.
    pub fn crash(&self, seed: u64) -> Wreck {
        let mut disk = self.disk();
        let wreck = disk.crash(seed);
        disk.power.restore();
        wreck
    }

    /// The member's process ends without warning; the machine goes on. Its handles die and its leases go.
    /// Afterwards the switch that stopped it is on again.
    pub fn process_died(&self) {
        let mut disk = self.disk();
        disk.forget_processes(false);
        disk.power.restore();
    }

    /// What the kernel does by itself every few seconds: names and attributes become durable, data perhaps later.
    pub fn write_back(&self, data_too: bool) {
        let mut disk = self.disk();
        if data_too {
            disk.sync_everything();
            return;
        }
        for change in std::mem::take(&mut disk.state.log) {
            disk.apply(&change);
        }
    }
}
