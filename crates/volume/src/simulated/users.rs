//! What people's programs do on a simulated disk: by path, at any moment, in the middle of a member's calls too.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use anabranch_model::{Attributes, Timestamp};

use super::disk::{Data, Disk, Inode, ROOT, error};
use super::{SimClock, SimFs};
use crate::fs::Kind;
use crate::layout::{PRIVATE_DIR, STAGING};

/// Content of a file, or a symlink's target. Cheap to clone; compares by kind and bytes.
#[derive(Clone, Debug)]
pub struct Thing {
    link: bool,
    data: Arc<Data>,
}

impl Thing {
    /// A file's content.
    #[must_use]
    pub fn file(bytes: &[u8]) -> Self {
        Self { link: false, data: Arc::new(Data::full(bytes.to_vec())) }
    }

    /// A symlink's target.
    #[must_use]
    pub fn link(target: &[u8]) -> Self {
        Self { link: true, data: Arc::new(Data::full(target.to_vec())) }
    }

    pub(super) fn of(inode: &Inode) -> Option<Self> {
        let link = match inode.kind {
            Kind::File => false,
            Kind::Symlink => true,
            Kind::Directory | Kind::Other => return None,
        };
        Some(Self { link, data: Arc::clone(&inode.now.data) })
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.data.bytes
    }

    /// Is it a symlink's target?
    #[must_use]
    pub fn is_link(&self) -> bool {
        self.link
    }
}

impl PartialEq for Thing {
    fn eq(&self, other: &Self) -> bool {
        self.link == other.link && (Arc::ptr_eq(&self.data, &other.data) || self.data.bytes == other.data.bytes)
    }
}
impl Eq for Thing {}
impl PartialOrd for Thing {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Thing {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.link, &self.data.bytes).cmp(&(other.link, &other.data.bytes))
    }
}

/// What a user did with content, in order; for whoever checks that nothing is lost.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Deed {
    /// Finished writing this at the path at which the file is by then.
    Finished {
        /// From the root.
        path: Vec<u8>,
        /// What the file or symlink holds.
        content: Thing,
    },
    /// Replaced, changed or removed what was there, having had it before the eyes. What nobody has finished yet ends without
    /// that: something else may hold the same bytes by then.
    Ended {
        /// From the root.
        path: Vec<u8>,
        /// What was there.
        content: Thing,
        /// He writes into that very file.
        rewritten: bool,
    },
    /// Gave what holds this one more name.
    Linked {
        /// What is there.
        content: Thing,
        /// The name, where it was given just now: who writes into a file by one of several gives all of them the new content.
        to: Option<Vec<u8>>,
    },
    /// Took one of several names from what holds this, having had it before the eyes.
    Unlinked {
        /// What was there.
        content: Thing,
    },
    /// Nobody did this: a sync failed, and the kernel dropped what a user had written.
    Damaged {
        /// What he had written.
        before: Thing,
        /// What is there now.
        after: Thing,
    },
}

/// How a user opens a file for writing. A file that is not there is made, but for `Update`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// `O_TRUNC`.
    Truncate,
    /// `O_APPEND`.
    Append,
    /// In place.
    Update,
}

/// A file that a user holds open for writing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct UserHandle(u64);

#[derive(Debug)]
pub(super) struct UserOpen {
    pub(super) inode: u64,
    /// False while the open waits for a lease to go, or is still on its way from the path to the file.
    pub(super) opened: bool,
    arrived: bool,
    path: Vec<u8>,
    mode: Mode,
    pub(super) wrote: bool,
    /// It wrote since somebody finished what the file holds.
    half: bool,
    /// It stored through its mapping, and the page is still writable there.
    stored: bool,
    todo: Vec<Step>,
}

#[derive(Debug)]
enum Step {
    Put { offset: Option<usize>, bytes: Vec<u8>, stamps: bool },
    Close,
}

/// One entry of a tree.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TreeEntry {
    /// What it is.
    pub kind: Kind,
    /// What a file or symlink holds.
    pub content: Option<Thing>,
    /// Mode, owners, xattrs.
    pub attributes: Arc<Attributes>,
    /// Last change of data.
    pub mtime: Timestamp,
}

/// A tree by path from the root.
pub type Tree = BTreeMap<Vec<u8>, TreeEntry>;

impl Disk {
    /// Finds the directory and the last name of a path. No symlink is followed; the private directory is closed to
    /// users.
    fn resolve<'p>(&self, path: &'p [u8]) -> io::Result<(u64, &'p [u8])> {
        let mut dir = ROOT;
        let mut parts = path.split(|&b| b == b'/');
        let mut name = parts.next().unwrap_or_default();
        if name == PRIVATE {
            return Err(error(libc::EACCES));
        }
        for next in parts {
            dir = self.existing(dir, name)?;
            match self.inode(dir)?.kind {
                Kind::Directory if self.inode(dir)?.foreign => return Err(error(libc::EXDEV)),
                Kind::Directory => {}
                Kind::Symlink => return Err(error(libc::ELOOP)),
                Kind::File | Kind::Other => return Err(error(libc::ENOTDIR)),
            }
            name = next;
        }
        Ok((dir, name))
    }

    fn lookup(&self, path: &[u8]) -> io::Result<u64> {
        let (dir, name) = self.resolve(path)?;
        self.existing(dir, name)
    }

    /// As [`Self::lookup`], for a change: of a file with several names the watcher hears the one by which it was reached.
    fn reach(&mut self, path: &[u8]) -> io::Result<u64> {
        let (dir, name) = self.resolve(path)?;
        let number = self.existing(dir, name)?;
        self.reached_by(number, dir, name);
        Ok(number)
    }

    fn reached_by(&mut self, number: u64, dir: u64, name: &[u8]) {
        if let Ok(inode) = self.inode_mut(number) {
            inode.place = Some((dir, name.into()));
        }
    }

    /// What somebody does who takes this name from a file: what it holds ends with the last one. Another hard link keeps it, or
    /// what was one, if it is one that people see.
    fn without_name(&self, path: &[u8], number: u64) -> Option<Deed> {
        if self.half_written(number) {
            return None;
        }
        let inode = self.inode(number).ok()?;
        let content = Thing::of(inode)?;
        let was_linked = self.linked.contains(&content);
        let mut names = 0;
        if inode.links > 1 || was_linked {
            self.walk(ROOT, &mut Vec::new(), &mut |found, path| {
                let same = found == number
                    || was_linked && self.inode(found).ok().and_then(Thing::of).as_ref() == Some(&content);
                names += u64::from(same && !path.starts_with(PRIVATE));
            });
        }
        let (path, rewritten) = (path.to_vec(), false);
        Some(if names <= 1 { Deed::Ended { path, content, rewritten } } else { Deed::Unlinked { content } })
    }

    /// Is somebody in the middle of writing it?
    fn half_written(&self, number: u64) -> bool {
        self.users.values().any(|user| user.inode == number && user.half)
    }

    /// Where a file is that was opened under this path: whoever writes to it does so wherever somebody has moved it since.
    fn path_by_now(&self, number: u64, opened: &[u8]) -> Vec<u8> {
        let mut now = Some(opened.to_vec()).filter(|path| self.lookup(path).is_ok_and(|found| found == number));
        if now.is_none() {
            self.walk(ROOT, &mut Vec::new(), &mut |found, path| {
                if found == number && now.is_none() && !path.starts_with(PRIVATE) {
                    now = Some(path.to_vec());
                }
            });
        }
        now.unwrap_or_else(|| opened.to_vec())
    }

    fn end(&mut self, path: &[u8], number: u64) {
        if let Some(content) = self.inode(number).ok().and_then(Thing::of) {
            self.deeds.push(Deed::Ended { path: path.to_vec(), content, rewritten: true });
        }
    }

    fn finish(&mut self, path: &[u8], number: u64) {
        // What people removed while somebody wrote it is gone by their own doing; not so what replication removed.
        if self.inode(number).is_ok_and(|i| i.removed_by_user) && !self.is_seen(number) {
            return;
        }
        if let Some(content) = self.inode(number).ok().and_then(Thing::of) {
            let more = self.inode(number).map_or(0, |inode| inode.links.saturating_sub(1));
            if more > 0 {
                self.linked.push(content.clone());
            }
            self.deeds.extend((0..more).map(|_| Deed::Linked { content: content.clone(), to: None }));
            self.deeds.push(Deed::Finished { path: path.to_vec(), content });
        }
        self.users.values_mut().filter(|user| user.inode == number).for_each(|user| user.half = false);
    }

    fn user_open(&mut self, path: &[u8], mode: Mode) -> io::Result<UserHandle> {
        let handle = self.user_look_up(path, mode)?;
        self.arrive(handle.0);
        Ok(handle)
    }

    /// The first half of an open: the path is looked up, and what it leads to is not yet opened.
    fn user_look_up(&mut self, path: &[u8], mode: Mode) -> io::Result<UserHandle> {
        let (dir, name) = self.resolve(path)?;
        let inode = match self.entry(dir, name)? {
            Some(number) => match self.inode(number)?.kind {
                Kind::File => {
                    self.reached_by(number, dir, name);
                    number
                }
                Kind::Directory => return Err(error(libc::EISDIR)),
                Kind::Symlink => return Err(error(libc::ELOOP)),
                Kind::Other => return Err(error(libc::ENXIO)),
            },
            None if mode == Mode::Update => return Err(error(libc::ENOENT)),
            None => {
                let attributes = self.default_attributes(0o644, self.config.user);
                self.put_new(dir, name, |disk| disk.add_inode(Kind::File, attributes, Arc::clone(&disk.no_data)))?
            }
        };
        self.next_handle += 1;
        let id = self.next_handle;
        let found = self.inode_mut(inode)?;
        found.opens += 1;
        let path = path.to_vec();
        let (opened, arrived, wrote, half, stored) = (false, false, false, false, false);
        self.users.insert(id, UserOpen { inode, opened, arrived, path, mode, wrote, half, stored, todo: Vec::new() });
        Ok(UserHandle(id))
    }

    /// The second half: the open takes effect, or waits for the lease on what was looked up.
    fn arrive(&mut self, id: u64) {
        let Some(user) = self.users.get_mut(&id).filter(|u| !u.arrived) else { return };
        user.arrived = true;
        let number = user.inode;
        match self.inode_mut(number) {
            Ok(inode) if inode.lease.is_some() => {
                inode.waiting.push(id);
                self.opens_that_waited += 1;
            }
            _ => self.finish_open(id),
        }
    }

    /// Every open that is on its way arrives.
    pub(super) fn arrive_all(&mut self) {
        let ids: Vec<u64> = self.users.iter().filter(|(_, u)| !u.arrived).map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| self.arrive(id));
    }

    /// The open takes effect: on the inode that was looked up, wherever its name is by now.
    pub(super) fn finish_open(&mut self, id: u64) {
        let Some(user) = self.users.get_mut(&id) else { return };
        (user.opened, user.arrived) = (true, true);
        let (number, mode, todo) = (user.inode, user.mode, std::mem::take(&mut user.todo));
        if let Ok(inode) = self.inode_mut(number) {
            inode.writers += 1;
        }
        if mode == Mode::Truncate {
            self.user_change(id, true, |data| data.resize(0));
        }
        for step in todo {
            self.user_step(id, step);
        }
    }

    fn user_change(&mut self, id: u64, stamps: bool, change: impl FnOnce(&mut Data)) {
        let Some(user) = self.users.get_mut(&id) else { return };
        let (number, path) = (user.inode, user.path.clone());
        user.wrote = true;
        // Each time: another program on this machine may have finished something in between, and what one program
        // does to another's file here is their affair. An empty file is nothing that anybody had seen, but for what the disk
        // emptied: its writer goes on with what he sees, and what was there is no content of it any more.
        let before = self.emptied.remove(&number);
        if self.inode(number).is_ok_and(|i| !i.now.data.bytes.is_empty()) && !self.half_written(number) {
            self.end(&self.path_by_now(number, &path), number);
        } else if let Some(content) = before {
            self.deeds.push(Deed::Ended { path: self.path_by_now(number, &path), content, rewritten: true });
        }
        self.users.get_mut(&id).into_iter().for_each(|user| user.half = true);
        // A store through a mapping moves the stamps when its page was clean there, and not again before it is written back.
        let dirty = self.inode(number).is_ok_and(|i| i.dirty);
        let first = self.users.get_mut(&id).is_some_and(|u| !std::mem::replace(&mut u.stored, !stamps) || !dirty);
        // The inode is there as long as the handle is.
        let _ = self.change_data(number, true, stamps || first, change);
        if stamps {
            self.hint_inode(number, false);
        }
    }

    fn user_step(&mut self, id: u64, step: Step) {
        let Some(user) = self.users.get_mut(&id) else { return };
        if !user.opened {
            user.todo.push(step);
            return;
        }
        let append = user.mode == Mode::Append;
        match step {
            Step::Put { offset, bytes, stamps } => self.user_change(id, stamps, |data| {
                let at = if append { data.bytes.len() } else { offset.unwrap_or(data.bytes.len()) };
                // A mapping cannot make a file longer.
                let room = if stamps { bytes.len() } else { data.bytes.len().saturating_sub(at).min(bytes.len()) };
                data.write(&bytes[..room], at);
            }),
            Step::Close => {
                if let Some(user) = self.users.remove(&id) {
                    if user.wrote {
                        self.finish(&self.path_by_now(user.inode, &user.path), user.inode);
                    }
                    self.close(user.inode, true);
                }
            }
        }
    }

    /// Has it a name that people see? One under which it was preserved is none.
    fn is_seen(&self, number: u64) -> bool {
        let mut seen = false;
        if self.inode(number).is_ok_and(|inode| inode.links > 0) {
            self.walk(ROOT, &mut Vec::new(), &mut |found, path| {
                seen |= found == number && !path.starts_with(PRIVATE);
            });
        }
        seen
    }

    /// Is it in staging, on its way from one place to another?
    fn is_parked(&self, number: u64) -> bool {
        let staging = [PRIVATE, STAGING].join(&b"/"[..]);
        let mut parked = false;
        self.walk(ROOT, &mut Vec::new(), &mut |found, path| {
            parked |= found == number && path.starts_with(&staging);
        });
        parked
    }

    /// A name that people took from it was its last one, unless it is parked on its way from one place to another.
    fn note_removed(&mut self, number: u64) {
        let seen = self.is_seen(number) || self.is_parked(number);
        if let Ok(inode) = self.inode_mut(number) {
            inode.removed_by_user = !seen;
        }
    }

    fn remove_all(&mut self, path: &[u8]) -> io::Result<()> {
        let (dir, name) = self.resolve(path)?;
        let number = self.existing(dir, name)?;
        if self.inode(number)?.kind != Kind::Directory {
            let deed = self.without_name(path, number);
            self.deeds.extend(deed);
            self.remove(dir, name, false)?;
            self.note_removed(number);
            return Ok(());
        }
        let names: Vec<_> = self.inode(number)?.entries.keys().cloned().collect();
        for child in names {
            self.remove_all(&[path, b"/", &child].concat())?;
        }
        self.remove(dir, name, true).map(drop)
    }

    /// A symlink has no mode and no xattrs of users on Linux.
    fn not_a_symlink(&mut self, path: &[u8], refused: i32) -> io::Result<()> {
        let number = self.reach(path)?;
        if self.inode(number)?.kind == Kind::Symlink { Err(error(refused)) } else { Ok(()) }
    }

    fn set_attributes(&mut self, path: &[u8], change: impl FnOnce(&mut Attributes)) -> io::Result<()> {
        let number = self.reach(path)?;
        let inode = self.inode_mut(number)?;
        change(Arc::make_mut(&mut inode.now.attributes));
        self.touch(number, false)?;
        self.hint_inode(number, false);
        Ok(())
    }

    fn tree_of(&self, root: u64) -> Tree {
        let mut tree = Tree::new();
        self.walk_seen(root, &mut Vec::new(), &mut |number, path| {
            if root == ROOT && path.starts_with(PRIVATE) && matches!(path.get(PRIVATE.len()), None | Some(b'/')) {
                return;
            }
            if let Ok(inode) = self.inode(number) {
                let entry = TreeEntry {
                    kind: inode.kind,
                    content: Thing::of(inode),
                    attributes: Arc::clone(&inode.now.attributes),
                    mtime: inode.now.mtime,
                };
                tree.insert(path.to_vec(), entry);
            }
        });
        tree
    }
}

/// The program's own directory in the root (design, section 9).
const PRIVATE: &[u8] = PRIVATE_DIR;

/// Paths are bytes from the root, without a slash in front.
impl SimFs {
    /// Opens for writing. Where the member has a lease on the file, the open waits and takes effect when it goes:
    /// writes and the close are kept until then, as a process would be that is stopped in `open`.
    ///
    /// # Errors
    /// As the system call; the same holds for all that users do.
    pub fn user_open(&self, path: &[u8], mode: Mode) -> io::Result<UserHandle> {
        self.disk().user_open(path, mode)
    }

    /// The first half of [`Self::user_open`]: the path is looked up, and the open is somewhere in the kernel on its way
    /// to the file that it found, wherever that is by then. It gets there within a millisecond: in the member's next
    /// pause, or when [`Self::users_arrive`] says so.
    ///
    /// # Errors
    /// As [`Self::user_open`].
    pub fn user_look_up(&self, path: &[u8], mode: Mode) -> io::Result<UserHandle> {
        self.disk().user_look_up(path, mode)
    }

    /// Every open that was on its way takes effect, or waits for a lease.
    pub fn users_arrive(&self) {
        self.disk().arrive_all();
    }

    /// How many opens had to wait for a lease so far.
    #[must_use]
    pub fn opens_that_waited(&self) -> u64 {
        self.disk().opens_that_waited
    }

    /// Does the open still wait for a lease?
    #[must_use]
    pub fn user_waits(&self, handle: UserHandle) -> bool {
        self.disk().users.get(&handle.0).is_some_and(|u| u.arrived && !u.opened)
    }

    /// Writes at an offset; `None` is at the end.
    pub fn user_put(&self, handle: UserHandle, offset: Option<usize>, bytes: &[u8]) {
        let step = Step::Put { offset, bytes: bytes.to_vec(), stamps: true };
        self.disk().user_step(handle.0, step);
    }

    /// Stores through a shared mapping: the bytes change and no watcher hears of it. The stamps move with the first store
    /// into a clean page only, as on ext4, XFS and btrfs.
    pub fn user_store(&self, handle: UserHandle, offset: usize, bytes: &[u8]) {
        let step = Step::Put { offset: Some(offset), bytes: bytes.to_vec(), stamps: false };
        self.disk().user_step(handle.0, step);
    }

    /// Closes (and unmaps).
    pub fn user_close(&self, handle: UserHandle) {
        self.disk().user_step(handle.0, Step::Close);
    }

    /// What is in files that users hold open for writing: not finished yet, and nobody's business.
    #[must_use]
    pub fn unfinished(&self) -> Vec<Thing> {
        let disk = self.disk();
        disk.users.values().filter_map(|u| disk.inode(u.inode).ok().and_then(Thing::of)).collect()
    }

    /// What files with several names hold, of which one is this path or below it, and that name.
    #[must_use]
    pub fn linked_below(&self, path: &[u8]) -> Vec<(Thing, Vec<u8>)> {
        let disk = self.disk();
        let mut out = Vec::new();
        disk.walk_seen(ROOT, &mut Vec::new(), &mut |number, at| {
            let below = at.strip_prefix(path).is_some_and(|rest| matches!(rest.first(), None | Some(b'/')));
            if let Some(inode) = disk.inode(number).ok().filter(|i| below && i.links > 1) {
                out.extend(Thing::of(inode).map(|thing| (thing, at.to_vec())));
            }
        });
        out
    }

    /// Files that users hold open, or wait for.
    #[must_use]
    pub fn users_open(&self) -> usize {
        self.disk().users.len()
    }

    /// Makes or overwrites a file, and closes it.
    ///
    /// # Errors
    /// As [`Self::user_open`]; the same holds for all below.
    pub fn write(&self, path: &[u8], bytes: &[u8]) -> io::Result<()> {
        self.whole(path, Mode::Truncate, bytes)
    }

    /// Appends to a file, and closes it.
    pub fn append(&self, path: &[u8], bytes: &[u8]) -> io::Result<()> {
        self.whole(path, Mode::Append, bytes)
    }

    fn whole(&self, path: &[u8], mode: Mode, bytes: &[u8]) -> io::Result<()> {
        let mut disk = self.disk();
        let handle = disk.user_open(path, mode)?;
        // Not even an empty write: the truncation, or nothing, is what changes then.
        if !bytes.is_empty() {
            disk.user_step(handle.0, Step::Put { offset: None, bytes: bytes.to_vec(), stamps: true });
        } else if let Some(user) = disk.users.get_mut(&handle.0) {
            user.wrote |= mode == Mode::Truncate;
        }
        disk.user_step(handle.0, Step::Close);
        Ok(())
    }

    /// Renames, replacing what is there.
    pub fn rename(&self, from: &[u8], to: &[u8]) -> io::Result<()> {
        let mut disk = self.disk();
        let (one, other) = (disk.resolve(from)?, disk.resolve(to)?);
        let number = disk.existing(one.0, one.1)?;
        let victim = disk.entry(other.0, other.1)?.filter(|&v| v != number);
        let deed = victim.and_then(|v| disk.without_name(to, v));
        disk.rename(one, other, true)?;
        victim.into_iter().for_each(|v| disk.note_removed(v));
        disk.deeds.extend(deed);
        Ok(())
    }

    /// Exchanges two entries.
    pub fn swap(&self, one: &[u8], other: &[u8]) -> io::Result<()> {
        let mut disk = self.disk();
        let (a, b) = (disk.resolve(one)?, disk.resolve(other)?);
        disk.exchange(a, b)
    }

    /// Makes a directory.
    pub fn mkdir(&self, path: &[u8]) -> io::Result<()> {
        let mut disk = self.disk();
        let (dir, name) = disk.resolve(path)?;
        let attributes = disk.default_attributes(0o755, disk.config.user);
        disk.put_new(dir, name, |disk| disk.add_inode(Kind::Directory, attributes, Arc::clone(&disk.no_data)))?;
        Ok(())
    }

    /// Makes a symlink.
    pub fn symlink(&self, path: &[u8], target: &[u8]) -> io::Result<()> {
        let mut disk = self.disk();
        let (dir, name) = disk.resolve(path)?;
        if target.is_empty() || target.len() > 4095 || target.contains(&0) {
            return Err(error(libc::EINVAL));
        }
        let attributes = disk.default_attributes(0o777, disk.config.user);
        let data = Arc::new(Data::full(target.to_vec()));
        let number = disk.put_new(dir, name, |disk| disk.add_inode(Kind::Symlink, attributes, data))?;
        if let Ok(inode) = disk.inode_mut(number) {
            inode.by_user = true;
        }
        disk.finish(path, number);
        Ok(())
    }

    /// Makes a hard link.
    pub fn link(&self, from: &[u8], to: &[u8]) -> io::Result<()> {
        let mut disk = self.disk();
        let number = disk.lookup(from)?;
        if disk.inode(number)?.kind == Kind::Directory {
            return Err(error(libc::EPERM));
        }
        let (dir, name) = disk.resolve(to)?;
        let content = Thing::of(disk.inode(number)?);
        disk.add_link(dir, name, number)?;
        disk.linked.extend(content.clone());
        disk.deeds.extend(content.map(|content| Deed::Linked { content, to: Some(to.to_vec()) }));
        Ok(())
    }

    /// Removes a file, a symlink or an empty directory.
    pub fn remove(&self, path: &[u8]) -> io::Result<()> {
        let mut disk = self.disk();
        let (dir, name) = disk.resolve(path)?;
        let number = disk.existing(dir, name)?;
        let directory = disk.inode(number)?.kind == Kind::Directory;
        let deed = disk.without_name(path, number);
        disk.remove(dir, name, directory)?;
        disk.note_removed(number);
        disk.deeds.extend(deed);
        Ok(())
    }

    /// Removes a directory with all that is in it.
    pub fn remove_tree(&self, path: &[u8]) -> io::Result<()> {
        self.disk().remove_all(path)
    }

    /// Sets permission bits.
    pub fn chmod(&self, path: &[u8], mode: u32) -> io::Result<()> {
        let mut disk = self.disk();
        disk.not_a_symlink(path, libc::EOPNOTSUPP)?;
        disk.set_attributes(path, |a| a.mode = mode & 0o7777)
    }

    /// Sets the owner and the group.
    pub fn chown(&self, path: &[u8], owner: u32, group: u32) -> io::Result<()> {
        let mut disk = self.disk();
        let (owner, group) = (disk.owner(owner), disk.owner(group));
        disk.set_attributes(path, |a| (a.owner, a.group) = (owner, group))
    }

    /// Sets an extended attribute, or removes it.
    pub fn setxattr(&self, path: &[u8], name: &[u8], value: Option<&[u8]>) -> io::Result<()> {
        let mut disk = self.disk();
        disk.not_a_symlink(path, libc::EPERM)?;
        disk.set_attributes(path, |a| {
            match value {
                Some(value) => a.xattrs.insert(name.into(), value.into()),
                None => a.xattrs.remove(name),
            };
        })
    }

    /// Sets the modification time; `None` is now.
    pub fn touch(&self, path: &[u8], mtime: Option<Timestamp>) -> io::Result<()> {
        let mut disk = self.disk();
        let number = disk.reach(path)?;
        let time = mtime.unwrap_or_else(|| SimClock::timestamp(disk.clock.nanoseconds()));
        disk.touch(number, false)?;
        disk.inode_mut(number)?.now.mtime = time;
        disk.hint_inode(number, false);
        Ok(())
    }

    /// Mounts something over a directory, or takes it away again.
    pub fn mount_over(&self, path: &[u8], mounted: bool) -> io::Result<()> {
        let mut disk = self.disk();
        let number = disk.lookup(path)?;
        disk.inode_mut(number)?.foreign = mounted;
        Ok(())
    }

    /// Takes away all that was mounted over directories.
    pub fn unmount_all(&self) {
        self.disk().state.inodes.iter_mut().flatten().for_each(|inode| inode.foreign = false);
    }

    /// Makes one user's file durable, as a program does that calls `fsync`: data, and the names above it.
    pub fn user_sync(&self, path: &[u8]) -> io::Result<()> {
        let mut disk = self.disk();
        let number = disk.lookup(path)?;
        disk.sync_inode(number);
        let mut at = number;
        while let Some((dir, _)) = disk.inode(at)?.place.clone() {
            disk.sync_names(dir);
            at = dir;
        }
        Ok(())
    }

    /// What a file holds, or where a symlink points.
    pub fn read(&self, path: &[u8]) -> io::Result<Thing> {
        let disk = self.disk();
        Thing::of(disk.inode(disk.lookup(path)?)?).ok_or_else(|| error(libc::EISDIR))
    }

    /// Is anything at this path?
    #[must_use]
    pub fn exists(&self, path: &[u8]) -> bool {
        self.disk().lookup(path).is_ok()
    }

    /// Names in a directory of the tree, ascending; the empty path is the root, whose private directory is left out.
    pub fn names(&self, path: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        let disk = self.disk();
        let number = if path.is_empty() { ROOT } else { disk.lookup(path)? };
        let inode = disk.inode(number)?;
        if inode.kind != Kind::Directory {
            return Err(error(libc::ENOTDIR));
        }
        let hidden = |name: &[u8]| number == ROOT && name == PRIVATE;
        Ok(inode.entries.keys().filter(|n| !hidden(n)).map(|n| n.to_vec()).collect())
    }

    /// The whole tree without the program's own directory.
    #[must_use]
    pub fn tree(&self) -> Tree {
        self.disk().tree_of(ROOT)
    }

    /// The number of what is at a path: it keeps it wherever it is moved to.
    #[must_use]
    pub fn number(&self, path: &[u8]) -> Option<u64> {
        if path.is_empty() { Some(ROOT) } else { self.disk().lookup(path).ok() }
    }

    /// The program's own directory: paths are from there.
    #[must_use]
    pub fn private_tree(&self) -> Tree {
        let disk = self.disk();
        match disk.entry(ROOT, PRIVATE) {
            Ok(Some(private)) => disk.tree_of(private),
            Ok(None) | Err(_) => Tree::new(),
        }
    }

    /// All contents on the disk, private ones and those that something is mounted over too.
    #[must_use]
    pub fn contents(&self) -> BTreeSet<Thing> {
        self.disk().contents().into_iter().map(|(_, content, _)| content).collect()
    }

    /// What users did with content since this was last asked, in order.
    #[must_use]
    pub fn take_deeds(&self) -> Vec<Deed> {
        std::mem::take(&mut self.disk().deeds)
    }
}
