//! inotify: a watch on every directory, kept in step with the tree by its own events.
//!
//! A directory is watched first and enumerated then, so that what appears in it in between shows in one of the two.
//! Events are worked through in order, but the tree is ahead of them. So no event is taken for what is under a name now:
//! when a directory came to a name, or left it, its parent is opened, checked to be that parent, and what is really
//! there is hung there. The last event at each name is then the one that puts it right. Where the parent is not where
//! the picture has it (it moved again, or is gone), that is settled when all events are read, if need be by drawing the
//! whole picture anew.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anabranch_model::is_reserved;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;

use super::Source;
use super::pending::Pending;
use crate::fs::{Fs, Kind, Object};
use crate::linux::{LinuxDir, LinuxFs, proc_path};

const MASK: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MODIFY)
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::ONLYDIR)
    .union(WatchFlags::EXCL_UNLINK);
/// On the root beside that.
const ROOT_MASK: WatchFlags = MASK.union(WatchFlags::DELETE_SELF).union(WatchFlags::MOVE_SELF);
/// On the directory that the root stands in.
const ABOVE_MASK: WatchFlags = WatchFlags::DELETE.union(WatchFlags::MOVED_FROM).union(WatchFlags::ONLYDIR);

/// One read.
const BUFFER_BYTES: usize = 64 * 1024;
/// Events worked through in a row, before what they gave is passed on.
const EVENTS_MAX: usize = 100_000;

/// The kernel's number of a watch. Never given twice by one instance.
type Watch = i32;

/// All watches of a folder.
pub(super) struct Inotify {
    fs: LinuxFs,
    instance: OwnedFd,
    nodes: HashMap<Watch, Node>,
    root: Watch,
    above: Option<Watch>,
    /// Directories that moved away and are not yet seen anywhere else, and whether that was before the last read: if
    /// so, they left the folder.
    moved: HashMap<Watch, bool>,
    /// Directories that were not where the picture has them when something happened in them.
    doubtful: BTreeSet<Watch>,
    gaps: Arc<AtomicBool>,
    buffer: Vec<MaybeUninit<u8>>,
}

/// A watched directory, and where it is in the picture.
struct Node {
    object: Object,
    parent: Watch,
    name: Box<[u8]>,
    children: BTreeMap<Box<[u8]>, Watch>,
    /// While this was away from the picture, something below it was not taken up.
    incomplete: bool,
}

/// An event, out of the buffer.
struct Event {
    watch: Watch,
    what: ReadFlags,
    name: Option<Box<[u8]>>,
}

impl Inotify {
    /// Watches every directory of the folder.
    ///
    /// # Errors
    /// Where not even the root can be watched.
    pub(super) fn start(fs: &LinuxFs, gaps: Arc<AtomicBool>) -> io::Result<Self> {
        let instance = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let root = fs.root();
        let watch = inotify::add_watch(&instance, proc_path(root.as_fd()).path(), ROOT_MASK)?;
        let node = Node {
            object: fs.root_object().clone(),
            parent: watch,
            name: Box::default(),
            children: BTreeMap::new(),
            incomplete: false,
        };
        let above = fs.path().parent().and_then(|parent| inotify::add_watch(&instance, parent, ABOVE_MASK).ok());
        let mut source = Self {
            fs: fs.clone(),
            instance,
            nodes: HashMap::from([(watch, node)]),
            root: watch,
            above,
            moved: HashMap::new(),
            doubtful: BTreeSet::new(),
            gaps,
            buffer: vec![MaybeUninit::uninit(); BUFFER_BYTES],
        };
        source.adopt(source.subdirectories(watch, &root), None);
        Ok(source)
    }

    fn take(&mut self, event: &Event, pending: &mut Pending) {
        if event.what.contains(ReadFlags::QUEUE_OVERFLOW) {
            return self.start_again(pending);
        }
        if self.above == Some(event.watch) {
            return pending.check_root();
        }
        let Some(node) = self.nodes.get(&event.watch) else { return };
        let Some(name) = &event.name else { return self.itself(event, pending) };
        let directory = event.what.contains(ReadFlags::ISDIR);
        if is_reserved(name) {
            // Own staging; but a directory that leaves it, or goes in, counts below.
        } else if event.what == ReadFlags::MODIFY {
            pending.written(&node.object, name);
        } else {
            pending.entry(&node.object, name, event.what.contains(ReadFlags::CLOSE_WRITE));
        }
        if !directory {
            return;
        }
        // Of an exchange, what comes to a name is told before what leaves it.
        if event.what.intersects(ReadFlags::MOVED_FROM | ReadFlags::MOVED_TO) {
            let watch = event.watch;
            if let Some(child) = self.take_off(watch, name) {
                self.moved.insert(child, false);
            }
            self.look(watch, name, pending);
        } else if event.what.contains(ReadFlags::DELETE) {
            self.take_off(event.watch, name);
        } else if event.what.intersects(ReadFlags::CREATE | ReadFlags::ATTRIB) && !node.children.contains_key(name) {
            // By its attributes: one that could not be read before, and perhaps can be now.
            self.look(event.watch, name, pending);
        }
    }

    /// An event of the watched directory itself. Of most, the watch on its parent tells too.
    fn itself(&mut self, event: &Event, pending: &mut Pending) {
        if event.what.contains(ReadFlags::IGNORED) {
            // The kernel took the watch away: the directory, or the file system, is gone.
            self.forget(event.watch);
        }
        if event.watch == self.root {
            let lost = ReadFlags::IGNORED | ReadFlags::UNMOUNT | ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF;
            if event.what.intersects(lost) {
                pending.everything();
                pending.check_root();
            } else {
                pending.directory(self.fs.root_object());
            }
        } else if event.what.contains(ReadFlags::UNMOUNT) {
            pending.everything();
        }
    }

    /// Takes what the picture has under a name off it.
    fn take_off(&mut self, parent: Watch, name: &[u8]) -> Option<Watch> {
        self.nodes.get_mut(&parent)?.children.remove(name)
    }

    /// Hangs the directory that is under this name now, if there is one.
    fn look(&mut self, parent: Watch, name: &[u8], pending: &mut Pending) {
        if is_reserved(name) {
            return;
        }
        if self.mark_away(parent) {
            return;
        }
        match self.open(parent) {
            Some(dir) => self.adopt(vec![(parent, name.into(), dir)], Some(pending)),
            None => drop(self.doubtful.insert(parent)),
        }
    }

    /// Is this directory, or one above it, away? Then all of them are to be gone through when they are seen again.
    fn mark_away(&mut self, watch: Watch) -> bool {
        let away = self.away(watch);
        for watch in &away {
            if let Some(node) = self.nodes.get_mut(watch) {
                node.incomplete = true;
            }
        }
        !away.is_empty()
    }

    /// After all events: what is still not where the picture has it.
    fn settle_doubts(&mut self, pending: &mut Pending) {
        for watch in std::mem::take(&mut self.doubtful) {
            // Gone, as an event told meanwhile.
            if !self.nodes.contains_key(&watch) || self.mark_away(watch) {
                continue;
            }
            if let Some(dir) = self.open(watch) {
                self.adopt(self.subdirectories(watch, &dir), Some(pending));
            } else {
                return self.draw_anew(pending);
            }
        }
    }

    /// Puts a watched directory at a place of the picture; says whether what is below it has to be gone through.
    fn hang(&mut self, child: Watch, parent: Watch, name: &[u8]) -> bool {
        let Some(node) = self.nodes.get_mut(&child) else { return false };
        let (old_parent, old_name) = (node.parent, std::mem::replace(&mut node.name, name.into()));
        let incomplete = std::mem::take(&mut node.incomplete);
        node.parent = parent;
        if let Some(old) = self.nodes.get_mut(&old_parent)
            && old.children.get(&old_name) == Some(&child)
        {
            old.children.remove(&old_name);
        }
        if let Some(new) = self.nodes.get_mut(&parent)
            && let Some(other) = new.children.insert(name.into(), child)
            && other != child
        {
            // It is somewhere else, or outside; if inside, an event of that is still to come.
            self.moved.insert(other, false);
        }
        self.moved.remove(&child);
        incomplete
    }

    /// Watches directories (a name in an open parent), and all that is below those that were not watched before. With
    /// `pending`, hints at all that is found.
    fn adopt(&mut self, mut work: Vec<(Watch, Box<[u8]>, LinuxDir)>, mut pending: Option<&mut Pending>) {
        while let Some((parent, name, dir)) = work.pop() {
            // A mount, another subvolume, or gone: then events of that are to come.
            let Ok(dir) = self.fs.open_dir(&dir, &name) else { continue };
            let Ok(stat) = self.fs.stat_dir(&dir) else { continue };
            let watch = match inotify::add_watch(&self.instance, proc_path(dir.as_fd()).path(), MASK) {
                Ok(watch) => watch,
                // Not readable, so not to be scanned either; a change of that shows as one of its attributes.
                Err(Errno::NOENT | Errno::ACCESS) => continue,
                Err(error) => {
                    self.gap(error, pending.as_deref_mut());
                    continue;
                }
            };
            let new = !self.nodes.contains_key(&watch);
            if new {
                let (name, object, children) = (name.clone(), stat.object.clone(), BTreeMap::new());
                self.nodes.insert(watch, Node { object, parent, name, children, incomplete: false });
                if let Some(pending) = pending.as_deref_mut() {
                    pending.directory(&stat.object);
                }
            }
            if self.hang(watch, parent, &name) || new {
                work.append(&mut self.subdirectories(watch, &dir));
            }
        }
    }

    /// The directories in a directory, to be watched. One that is missed for being renamed meanwhile has an event.
    fn subdirectories(&self, watch: Watch, dir: &LinuxDir) -> Vec<(Watch, Box<[u8]>, LinuxDir)> {
        // Where it cannot be enumerated a scan cannot either, and says so.
        let entries = self.fs.list_once(dir).unwrap_or_default();
        entries
            .into_iter()
            .filter(|e| matches!(e.kind, Some(Kind::Directory) | None) && !is_reserved(&e.name))
            .map(|e| (watch, e.name.into(), dir.clone()))
            .collect()
    }

    /// This directory and those above it up to the topmost that moved away and is not seen elsewhere; none if it hangs
    /// from the root.
    fn away(&self, watch: Watch) -> Vec<Watch> {
        let (mut path, mut away, mut at) = (Vec::new(), 0, watch);
        while at != self.root {
            let Some(node) = self.nodes.get(&at) else { break };
            path.push(at);
            if self.nodes.get(&node.parent).and_then(|parent| parent.children.get(&node.name)) != Some(&at) {
                away = path.len();
            }
            at = node.parent;
            // More steps than directories: two moves crossed, and the picture is for now a ring.
            if path.len() > self.nodes.len() {
                away = path.len();
                break;
            }
        }
        path.truncate(away);
        path
    }

    /// Opens a watched directory by its place in the picture; `None` if it is not there.
    fn open(&self, watch: Watch) -> Option<LinuxDir> {
        let mut names = Vec::new();
        let mut at = watch;
        while at != self.root {
            let node = self.nodes.get(&at)?;
            names.push(&node.name);
            at = node.parent;
            if names.len() > self.nodes.len() {
                return None;
            }
        }
        let mut dir = self.fs.root();
        for name in names.into_iter().rev() {
            dir = self.fs.open_dir(&dir, name).ok()?;
        }
        let found = self.fs.stat_dir(&dir).ok()?.object;
        (found == self.nodes.get(&watch)?.object).then_some(dir)
    }

    /// Takes back the watches of a directory that left the folder, and of all below it.
    fn unwatch(&mut self, watch: Watch) {
        let mut work = vec![watch];
        while let Some(watch) = work.pop() {
            if watch == self.root {
                continue;
            }
            if let Some(node) = self.forget(watch) {
                work.extend(node.children.into_values());
            }
            // It fails where the kernel was faster.
            let _ = inotify::remove_watch(&self.instance, watch);
        }
    }

    fn forget(&mut self, watch: Watch) -> Option<Node> {
        let node = self.nodes.remove(&watch)?;
        if let Some(parent) = self.nodes.get_mut(&node.parent)
            && parent.children.get(&node.name) == Some(&watch)
        {
            parent.children.remove(&node.name);
        }
        Some(node)
    }

    /// Events were lost: the picture is worth nothing, the watches on what is still here are.
    fn start_again(&mut self, pending: &mut Pending) {
        pending.everything();
        pending.check_root();
        self.draw_anew(pending);
    }

    /// Goes through the whole tree. What is newly watched is hinted at.
    fn draw_anew(&mut self, pending: &mut Pending) {
        self.doubtful.clear();
        self.moved.clear();
        for node in self.nodes.values_mut() {
            node.children.clear();
            // Whatever is found is gone through.
            node.incomplete = true;
        }
        self.adopt(self.subdirectories(self.root, &self.fs.root()), Some(pending));
        let lost: Vec<Watch> = self.nodes.keys().copied().filter(|w| !self.away(*w).is_empty()).collect();
        for watch in lost {
            self.unwatch(watch);
        }
        if let Some(root) = self.nodes.get_mut(&self.root) {
            root.incomplete = false;
        }
    }

    /// A directory cannot be watched: from now on only scans find everything.
    fn gap(&self, error: Errno, pending: Option<&mut Pending>) {
        if !self.gaps.swap(true, Ordering::Relaxed) {
            tracing::warn!(%error, path = %self.fs.path().display(), "not every directory can be watched");
        }
        if let Some(pending) = pending {
            pending.everything();
        }
    }

    /// What moved away before the last read, and was not seen in this one, left the folder.
    fn settle_moves(&mut self) {
        let left: Vec<Watch> = self.moved.iter().filter(|(_, before)| **before).map(|(watch, _)| *watch).collect();
        self.moved.values_mut().for_each(|before| *before = true);
        for watch in left {
            self.moved.remove(&watch);
            self.unwatch(watch);
        }
    }
}

impl Source for Inotify {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.instance.as_fd()
    }

    fn read(&mut self, pending: &mut Pending) -> io::Result<()> {
        let mut done = 0;
        while done < EVENTS_MAX {
            let events = match read_once(&self.instance, &mut self.buffer) {
                Err(Errno::AGAIN) => {
                    self.settle_doubts(pending);
                    break;
                }
                other => other?,
            };
            done += events.len();
            for event in &events {
                self.take(event, pending);
            }
        }
        self.settle_moves();
        Ok(())
    }
}

/// One read's events.
fn read_once(instance: &OwnedFd, buffer: &mut [MaybeUninit<u8>]) -> rustix::io::Result<Vec<Event>> {
    let mut reader = inotify::Reader::new(instance, buffer);
    let mut events = Vec::new();
    loop {
        let event = match reader.next() {
            Err(Errno::INTR) => continue,
            other => other?,
        };
        events.push(Event {
            watch: event.wd(),
            what: event.events(),
            name: event.file_name().map(|name| name.to_bytes().into()),
        });
        if reader.is_buffer_empty() {
            return Ok(events);
        }
    }
}
