//! What a simulated disk holds, and the changes of names and data on it, whoever makes them.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use anabranch_model::{Attributes, Owner, Timestamp};

use super::users::{Deed, Thing, UserOpen};
use super::{DiskConfig, Faults, Power, Rng, SimClock};
use crate::fs::{FileStamp, Kind, Object, Stat};

/// Bytes of a block: what is written to the disk, torn, or left a hole as a whole. Small, so that small files tear.
pub(super) const BLOCK: usize = 512;
/// The root's inode.
pub(super) const ROOT: u64 = 1;
/// What lies beneath the mount point: seen while the volume is not mounted.
pub(super) const BENEATH: u64 = 2;

/// A name in a directory; shared between the directory, the way back from the inode, and the log.
pub(super) type Name = Arc<[u8]>;

/// A file's bytes, or a symlink's target, and which blocks were ever written.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Data {
    pub(super) bytes: Vec<u8>,
    pub(super) written: Vec<bool>,
}

impl Data {
    pub(super) fn full(bytes: Vec<u8>) -> Self {
        let written = vec![true; bytes.len().div_ceil(BLOCK)];
        Self { bytes, written }
    }

    pub(super) fn resize(&mut self, size: usize) {
        self.bytes.resize(size, 0);
        self.written.resize(size.div_ceil(BLOCK), false);
    }

    pub(super) fn write(&mut self, bytes: &[u8], offset: usize) {
        let end = offset + bytes.len();
        if end > self.bytes.len() {
            self.resize(end);
        }
        self.bytes[offset..end].copy_from_slice(bytes);
        for block in offset / BLOCK..end.div_ceil(BLOCK) {
            self.written[block] = true;
        }
    }

    /// The next run of blocks that were written, from `offset` on.
    pub(super) fn range(&self, offset: u64) -> Option<(u64, u64)> {
        let offset = usize::try_from(offset).ok().filter(|&o| o < self.bytes.len())?;
        let first = (offset / BLOCK..self.written.len()).find(|&b| self.written[b])?;
        let after = (first..self.written.len()).find(|&b| !self.written[b]).unwrap_or(self.written.len());
        Some(((first * BLOCK).max(offset) as u64, (after * BLOCK).min(self.bytes.len()) as u64))
    }

    pub(super) fn blocks(&self) -> u64 {
        self.written.iter().filter(|&&w| w).count() as u64
    }
}

/// All of an inode that is made durable with it.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) data: Arc<Data>,
    pub(super) attributes: Arc<Attributes>,
    pub(super) mtime: Timestamp,
    pub(super) ctime: Timestamp,
}

#[derive(Clone, Debug)]
pub(super) struct Inode {
    pub(super) generation: u64,
    pub(super) kind: Kind,
    pub(super) birth: Timestamp,
    pub(super) now: Facts,
    pub(super) durable: Facts,
    /// `now` may differ from `durable`.
    pub(super) dirty: bool,
    /// Data was dropped by a sync that failed: later ones say that all is well and write nothing.
    pub(super) lost: bool,
    pub(super) entries: BTreeMap<Name, u64>,
    pub(super) durable_entries: BTreeMap<Name, u64>,
    pub(super) links: u32,
    /// One of its places.
    pub(super) place: Option<(u64, Name)>,
    /// Its data was last changed by a user.
    pub(super) by_user: bool,
    /// Its last name was taken by a user.
    pub(super) removed_by_user: bool,
    /// Something else is mounted on it.
    pub(super) foreign: bool,
    pub(super) cookie: u64,
    /// Descriptors open, of whomever.
    pub(super) opens: u32,
    /// Of these, the ones that may write.
    pub(super) writers: u32,
    /// The handle that has the lease.
    pub(super) lease: Option<u64>,
    /// User handles whose open waits for the lease to go.
    pub(super) waiting: Vec<u64>,
}

/// One change of names: atomic, and durable in the order of each directory that it touches.
#[derive(Clone, Debug)]
pub(super) struct NameChange {
    /// (directory, name, what it names from now on).
    pub(super) sets: [Option<(u64, Name, Option<u64>)>; 2],
    /// Directories that were moved or removed by it: they change too, and what follows in them comes later.
    pub(super) moved: [Option<u64>; 2],
}

impl NameChange {
    pub(super) fn touches(&self) -> impl Iterator<Item = u64> + '_ {
        self.sets.iter().flatten().map(|s| s.0).chain(self.moved.iter().flatten().copied())
    }

    /// What it gave a name and took none from: if that is a new directory, nothing gets into it before this.
    pub(super) fn made(&self) -> Option<u64> {
        match &self.sets {
            [Some((_, _, made)), None] => *made,
            _ => None,
        }
    }
}

/// All that an image of the disk holds.
#[derive(Clone, Debug)]
pub(super) struct State {
    /// By inode number; never used twice.
    pub(super) inodes: Vec<Option<Box<Inode>>>,
    /// Changes of names that are not durable yet, in order.
    pub(super) log: Vec<NameChange>,
    /// Inodes that may be dirty, with repetitions.
    pub(super) dirty: Vec<u64>,
    /// Inodes that lost their last name.
    pub(super) orphans: Vec<u64>,
    /// Bytes in use.
    pub(super) used: u64,
}

pub(super) struct Disk {
    pub(super) config: DiskConfig,
    pub(super) state: State,
    /// Handles of earlier epochs (before a crash) are dead.
    pub(super) epoch: u64,
    pub(super) next_handle: u64,
    pub(super) clock: SimClock,
    pub(super) power: Power,
    pub(super) faults: Faults,
    pub(super) rng: Rng,
    pub(super) mounted: bool,
    pub(super) hints: super::hints::Hints,
    pub(super) users: BTreeMap<u64, UserOpen>,
    pub(super) deeds: Vec<Deed>,
    /// Contents of files that users gave several names: one of these may have become a file of its own since.
    pub(super) linked: Vec<Thing>,
    /// What files held that a failed sync left empty, by inode: whoever writes into one ends that.
    pub(super) emptied: BTreeMap<u64, Thing>,
    pub(super) opens_that_waited: u64,
    /// Shared empties, so that new inodes cost nothing.
    pub(super) no_data: Arc<Data>,
}

pub(super) fn error(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

impl Disk {
    pub(super) fn new(config: DiskConfig, clock: SimClock, seed: u64) -> Self {
        let mut disk = Self {
            config,
            state: State { inodes: vec![None], log: Vec::new(), dirty: Vec::new(), orphans: Vec::new(), used: 0 },
            epoch: 1,
            next_handle: 1,
            clock,
            power: Power::default(),
            faults: Faults::default(),
            rng: Rng::new(seed),
            mounted: true,
            hints: super::hints::Hints::default(),
            users: BTreeMap::new(),
            deeds: Vec::new(),
            linked: Vec::new(),
            emptied: BTreeMap::new(),
            opens_that_waited: 0,
            no_data: Arc::new(Data::default()),
        };
        for _ in [ROOT, BENEATH] {
            let attributes = disk.default_attributes(0o755, disk.config.user);
            let inode = disk.add_inode(Kind::Directory, attributes, Arc::clone(&disk.no_data));
            if let Some(inode) = disk.state.inodes[inode as usize].as_mut() {
                inode.links = 1;
                inode.durable = inode.now.clone();
                inode.dirty = false;
            }
        }
        disk.state.dirty.clear();
        disk
    }

    pub(super) fn inode(&self, number: u64) -> io::Result<&Inode> {
        self.state.inodes.get(number as usize).and_then(Option::as_deref).ok_or_else(|| error(libc::ENOENT))
    }

    pub(super) fn inode_mut(&mut self, number: u64) -> io::Result<&mut Inode> {
        self.state.inodes.get_mut(number as usize).and_then(Option::as_deref_mut).ok_or_else(|| error(libc::ENOENT))
    }

    /// The time that the file system stamps: in steps of its granularity.
    pub(super) fn time(&self) -> Timestamp {
        let step = self.config.granularity_ns.max(1);
        let now = self.clock.nanoseconds();
        SimClock::timestamp(now - now.rem_euclid(step))
    }

    pub(super) fn owner(&self, number: u32) -> Owner {
        Owner { number, name: self.config.owner_names.get(&number).cloned() }
    }

    pub(super) fn default_attributes(&self, mode: u32, user: u32) -> Arc<Attributes> {
        Arc::new(Attributes { mode, owner: self.owner(user), group: self.owner(user), xattrs: BTreeMap::new() })
    }

    pub(super) fn add_inode(&mut self, kind: Kind, attributes: Arc<Attributes>, data: Arc<Data>) -> u64 {
        let time = self.time();
        let number = self.state.inodes.len() as u64;
        let now = Facts { data: Arc::clone(&data), attributes: Arc::clone(&attributes), mtime: time, ctime: time };
        // A link's target is durable with its name; a file's data is not.
        let unsynced = if kind == Kind::Symlink { data } else { Arc::clone(&self.no_data) };
        let durable = Facts { data: unsynced, ..now.clone() };
        self.state.used += now.data.bytes.len() as u64;
        self.state.inodes.push(Some(Box::new(Inode {
            generation: self.rng.bits(),
            kind,
            birth: time,
            now,
            durable,
            dirty: true,
            lost: false,
            entries: BTreeMap::new(),
            durable_entries: BTreeMap::new(),
            links: 0,
            place: None,
            by_user: false,
            removed_by_user: false,
            foreign: false,
            cookie: 1,
            opens: 0,
            writers: 0,
            lease: None,
            waiting: Vec::new(),
        })));
        self.state.dirty.push(number);
        number
    }

    pub(super) fn object(&self, number: u64) -> io::Result<Object> {
        let inode = self.inode(number)?;
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        bytes[8..].copy_from_slice(&inode.generation.to_le_bytes());
        Ok(Object(Box::new(bytes)))
    }

    pub(super) fn by_object(&self, object: &Object) -> Option<u64> {
        let bytes: &[u8; 16] = (&*object.0).try_into().ok()?;
        let (number, generation) = bytes.split_at(8);
        let number = u64::from_le_bytes(number.try_into().ok()?);
        let inode = self.inode(number).ok()?;
        (inode.generation.to_le_bytes() == generation && (inode.links > 0 || number == ROOT)).then_some(number)
    }

    pub(super) fn stat(&self, number: u64) -> io::Result<Stat> {
        let inode = self.inode(number)?;
        let size = if inode.kind == Kind::Directory { 4096 } else { inode.now.data.bytes.len() as u64 };
        Ok(Stat {
            kind: inode.kind,
            object: self.object(number)?,
            stamp: FileStamp {
                size,
                mtime: inode.now.mtime,
                ctime: inode.now.ctime,
                cookie: if self.config.cookies { inode.cookie } else { 0 },
            },
            mode: inode.now.attributes.mode,
            uid: inode.now.attributes.owner.number,
            gid: inode.now.attributes.group.number,
            links: inode.links,
            birth: self.config.birth_times.then_some(inode.birth),
            blocks: inode.now.data.blocks(),
            foreign: inode.foreign,
        })
    }

    /// The inode of an entry, where there is one.
    pub(super) fn entry(&self, dir: u64, name: &[u8]) -> io::Result<Option<u64>> {
        let inode = self.inode(dir)?;
        if inode.kind != Kind::Directory {
            return Err(error(libc::ENOTDIR));
        }
        Ok(inode.entries.get(name).copied())
    }

    pub(super) fn existing(&self, dir: u64, name: &[u8]) -> io::Result<u64> {
        self.entry(dir, name)?.ok_or_else(|| error(libc::ENOENT))
    }

    /// A directory into which something may be put: it has a name itself.
    fn living_directory(&self, dir: u64) -> io::Result<()> {
        let inode = self.inode(dir)?;
        match inode.kind {
            Kind::Directory if inode.links > 0 => Ok(()),
            Kind::Directory => Err(error(libc::ENOENT)),
            _ => Err(error(libc::ENOTDIR)),
        }
    }

    /// Marks an inode changed now: `data` moves its mtime too.
    pub(super) fn touch(&mut self, number: u64, data: bool) -> io::Result<()> {
        let time = self.time();
        let inode = self.inode_mut(number)?;
        inode.now.ctime = time;
        if data {
            inode.now.mtime = time;
        }
        inode.cookie += 1;
        if !inode.dirty {
            inode.dirty = true;
            self.state.dirty.push(number);
        }
        Ok(())
    }

    fn check_name(name: &[u8]) -> io::Result<Name> {
        match name {
            [] | b"." | b".." => Err(error(libc::EINVAL)),
            n if n.len() > 255 => Err(error(libc::ENAMETOOLONG)),
            n if n.contains(&b'/') || n.contains(&0) => Err(error(libc::EINVAL)),
            n => Ok(n.into()),
        }
    }

    /// Puts a new inode at a free name.
    pub(super) fn put_new(&mut self, dir: u64, name: &[u8], make: impl FnOnce(&mut Self) -> u64) -> io::Result<u64> {
        let name = Self::check_name(name)?;
        self.living_directory(dir)?;
        if self.entry(dir, &name)?.is_some() {
            return Err(error(libc::EEXIST));
        }
        let number = make(self);
        self.link(dir, &name, number)?;
        self.state.log.push(NameChange { sets: [Some((dir, name, Some(number))), None], moved: [None, None] });
        self.touch(dir, true)?;
        Ok(number)
    }

    /// One more name for an inode, in memory only: the caller writes the log.
    fn link(&mut self, dir: u64, name: &Name, number: u64) -> io::Result<()> {
        self.inode_mut(dir)?.entries.insert(Arc::clone(name), number);
        let inode = self.inode_mut(number)?;
        inode.links += 1;
        inode.place = Some((dir, Arc::clone(name)));
        self.hints.entry(dir, name, false, self.config.hints_max);
        Ok(())
    }

    /// One name less, in memory only. The inode stays: somebody may have it open, or the disk may still name it.
    fn unlink(&mut self, dir: u64, name: &Name, number: u64) -> io::Result<()> {
        self.inode_mut(dir)?.entries.remove(name);
        let inode = self.inode_mut(number)?;
        inode.links -= 1;
        if inode.links == 0 {
            inode.place = None;
            let (opens, size) = (inode.opens, inode.now.data.bytes.len() as u64);
            self.state.orphans.push(number);
            if opens == 0 {
                self.state.used = self.state.used.saturating_sub(size);
            }
        } else if inode.place.as_ref().is_some_and(|(d, n)| *d == dir && n == name) {
            let place = self.find_place(number);
            self.inode_mut(number)?.place = place;
        }
        self.hints.entry(dir, name, false, self.config.hints_max);
        Ok(())
    }

    /// Looks through all directories for a name of an inode that has several.
    fn find_place(&self, number: u64) -> Option<(u64, Name)> {
        self.state.inodes.iter().enumerate().find_map(|(dir, inode)| {
            let (name, _) = inode.as_ref()?.entries.iter().find(|&(_, n)| *n == number)?;
            Some((dir as u64, Arc::clone(name)))
        })
    }

    pub(super) fn add_link(&mut self, dir: u64, name: &[u8], number: u64) -> io::Result<()> {
        self.put_new(dir, name, |_| number)?;
        self.touch(number, false)
    }

    /// Is `inside` the directory `dir`, or somewhere in it?
    fn lies_in(&self, mut inside: u64, dir: u64) -> bool {
        loop {
            if inside == dir {
                return true;
            }
            match self.inode(inside).ok().and_then(|i| i.place.as_ref()) {
                Some(&(parent, _)) => inside = parent,
                None => return false,
            }
        }
    }

    /// A directory that something is mounted over is not renamed, exchanged, replaced or removed (rename(2), EBUSY).
    fn not_mounted_over(&self, number: u64) -> io::Result<()> {
        if self.inode(number)?.foreign { Err(error(libc::EBUSY)) } else { Ok(()) }
    }

    /// Renames; what is in the way is replaced if `replace`, else it is an error. Returns what was replaced.
    pub(super) fn rename(
        &mut self,
        (from, old): (u64, &[u8]),
        (to, new): (u64, &[u8]),
        replace: bool,
    ) -> io::Result<Option<u64>> {
        let (old, new) = (Self::check_name(old)?, Self::check_name(new)?);
        let number = self.existing(from, &old)?;
        self.living_directory(to)?;
        let in_the_way = self.entry(to, &new)?;
        let is_dir = self.inode(number)?.kind == Kind::Directory;
        self.not_mounted_over(number)?;
        if let Some(other) = in_the_way {
            if !replace {
                return Err(error(libc::EEXIST));
            }
            if other == number {
                return Ok(None);
            }
            self.not_mounted_over(other)?;
            let other = self.inode(other)?;
            match (is_dir, other.kind == Kind::Directory) {
                (true, false) => return Err(error(libc::ENOTDIR)),
                (false, true) => return Err(error(libc::EISDIR)),
                (true, true) if !other.entries.is_empty() => return Err(error(libc::ENOTEMPTY)),
                _ => {}
            }
        }
        if is_dir && self.lies_in(to, number) {
            return Err(error(libc::EINVAL));
        }
        if let Some(other) = in_the_way {
            self.unlink(to, &new, other)?;
            self.touch(other, false)?;
        }
        self.unlink(from, &old, number)?;
        self.state.orphans.retain(|&o| o != number);
        if self.inode(number)?.opens == 0 && self.inode(number)?.links == 0 {
            self.state.used += self.inode(number)?.now.data.bytes.len() as u64;
        }
        self.link(to, &new, number)?;
        self.state.log.push(NameChange {
            sets: [Some((from, old, None)), Some((to, new, Some(number)))],
            moved: [is_dir.then_some(number), in_the_way],
        });
        self.touch(number, false)?;
        self.touch(from, true)?;
        self.touch(to, true)?;
        Ok(in_the_way)
    }

    /// Exchanges two entries.
    pub(super) fn exchange(&mut self, (one, name): (u64, &[u8]), (other, with): (u64, &[u8])) -> io::Result<()> {
        let (name, with) = (Self::check_name(name)?, Self::check_name(with)?);
        let (a, b) = (self.existing(one, &name)?, self.existing(other, &with)?);
        if a == b {
            return Ok(());
        }
        for (moving, to) in [(a, other), (b, one)] {
            self.not_mounted_over(moving)?;
            if self.inode(moving)?.kind == Kind::Directory && self.lies_in(to, moving) {
                return Err(error(libc::EINVAL));
            }
        }
        self.inode_mut(one)?.entries.insert(Arc::clone(&name), b);
        self.inode_mut(other)?.entries.insert(Arc::clone(&with), a);
        self.inode_mut(a)?.place = Some((other, Arc::clone(&with)));
        self.inode_mut(b)?.place = Some((one, Arc::clone(&name)));
        self.hints.entry(one, &name, false, self.config.hints_max);
        self.hints.entry(other, &with, false, self.config.hints_max);
        let directory = |n| matches!(self.inode(n), Ok(i) if i.kind == Kind::Directory).then_some(n);
        let moved = [directory(a), directory(b)];
        self.state.log.push(NameChange { sets: [Some((one, name, Some(b))), Some((other, with, Some(a)))], moved });
        if self.config.exchange_moves_ctime {
            self.touch(a, false)?;
            self.touch(b, false)?;
        }
        self.touch(one, true)?;
        self.touch(other, true)
    }

    /// Removes an entry: a directory if `directory` (and it must be empty), else anything but one.
    pub(super) fn remove(&mut self, dir: u64, name: &[u8], directory: bool) -> io::Result<u64> {
        let name = Self::check_name(name)?;
        let number = self.existing(dir, &name)?;
        let inode = self.inode(number)?;
        match (inode.kind == Kind::Directory, directory) {
            (true, false) => return Err(error(libc::EISDIR)),
            (false, true) => return Err(error(libc::ENOTDIR)),
            (true, true) if inode.foreign => return Err(error(libc::EBUSY)),
            (true, true) if !inode.entries.is_empty() => return Err(error(libc::ENOTEMPTY)),
            _ => {}
        }
        self.unlink(dir, &name, number)?;
        self.state
            .log
            .push(NameChange { sets: [Some((dir, name, None)), None], moved: [directory.then_some(number), None] });
        self.touch(number, false)?;
        self.touch(dir, true)?;
        Ok(number)
    }

    /// Refuses what would not fit any more.
    pub(super) fn room_for(&self, more: u64) -> io::Result<()> {
        if self.state.used + more > self.config.capacity { Err(error(libc::ENOSPC)) } else { Ok(()) }
    }

    /// Changes a file's bytes. `stamps`: whether its times change, as with every way but a further store through a mapping.
    pub(super) fn change_data(
        &mut self,
        number: u64,
        by_user: bool,
        stamps: bool,
        change: impl FnOnce(&mut Data),
    ) -> io::Result<()> {
        let inode = self.inode_mut(number)?;
        let before = inode.now.data.bytes.len() as u64;
        change(Arc::make_mut(&mut inode.now.data));
        let after = inode.now.data.bytes.len() as u64;
        inode.by_user = by_user;
        if after == 0 {
            inode.lost = false;
        }
        let newly = !inode.dirty;
        inode.dirty = true;
        if newly {
            self.state.dirty.push(number);
        }
        self.state.used = (self.state.used + after).saturating_sub(before);
        if stamps {
            self.touch(number, true)?;
        }
        Ok(())
    }

    /// Tells the watcher of a change of the thing itself, at its place.
    pub(super) fn hint_inode(&mut self, number: u64, closed_after_write: bool) {
        let Some(inode) = self.state.inodes.get(number as usize).and_then(Option::as_deref) else { return };
        if let Some((dir, name)) = &inode.place {
            self.hints.entry(*dir, name, closed_after_write, self.config.hints_max);
        }
    }

    /// A descriptor is closed.
    pub(super) fn close(&mut self, number: u64, writable: bool) {
        let Ok(inode) = self.inode_mut(number) else { return };
        inode.opens = inode.opens.saturating_sub(1);
        if writable {
            inode.writers = inode.writers.saturating_sub(1);
        }
        let (gone, size) = (inode.links == 0 && inode.opens == 0, inode.now.data.bytes.len() as u64);
        if gone {
            self.state.used = self.state.used.saturating_sub(size);
        }
        if writable {
            self.hint_inode(number, true);
        }
    }

    /// The lease goes; whoever waited for it opens now.
    pub(super) fn drop_lease(&mut self, number: u64, handle: u64) {
        let Ok(inode) = self.inode_mut(number) else { return };
        if inode.lease == Some(handle) {
            inode.lease = None;
            for user in std::mem::take(&mut inode.waiting) {
                self.finish_open(user);
            }
        }
    }
}
