//! inotify: a watch on every directory, kept in step with the tree by its own events.
//!
//! A directory is watched first and enumerated then, so that what appears in it in between shows in one of the two.
//! Events are worked through in order against a picture of the tree as it was at each event; the real tree is ahead of
//! it. So a directory found under a name may be another one than the event meant, and the event that put it there will
//! still come and set the picture right.

use std::collections::{BTreeMap, HashMap};
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
    /// Directories that moved away, by cookie, until the other half of their rename comes, and whether they were here
    /// before the last read: if so, they left the folder.
    moved: HashMap<u32, (Watch, bool)>,
    gaps: Arc<AtomicBool>,
    buffer: Vec<MaybeUninit<u8>>,
}

/// A watched directory, and where it is in the picture.
struct Node {
    object: Object,
    parent: Watch,
    name: Box<[u8]>,
    children: BTreeMap<Box<[u8]>, Watch>,
}

/// An event, out of the buffer.
struct Event {
    watch: Watch,
    what: ReadFlags,
    cookie: u32,
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
        let node =
            Node { object: fs.root_object().clone(), parent: watch, name: Box::default(), children: BTreeMap::new() };
        let above = fs.path().parent().and_then(|parent| inotify::add_watch(&instance, parent, ABOVE_MASK).ok());
        let mut source = Self {
            fs: fs.clone(),
            instance,
            nodes: HashMap::from([(watch, node)]),
            root: watch,
            above,
            moved: HashMap::new(),
            gaps,
            buffer: vec![MaybeUninit::uninit(); BUFFER_BYTES],
        };
        source.adopt_below(watch, &root, None);
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
        if directory && event.what.intersects(ReadFlags::MOVED_FROM | ReadFlags::DELETE) {
            self.leave(event, name);
        } else if directory && event.what.contains(ReadFlags::MOVED_TO) {
            self.arrive(event, name, pending);
        } else if directory && event.what.contains(ReadFlags::CREATE) && !node.children.contains_key(name) {
            self.adopt(event.watch, name, Some(pending));
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

    fn leave(&mut self, event: &Event, name: &[u8]) {
        let child = self.nodes.get_mut(&event.watch).and_then(|node| node.children.remove(name));
        if let Some(child) = child
            && event.what.contains(ReadFlags::MOVED_FROM)
        {
            self.moved.insert(event.cookie, (child, false));
        }
    }

    fn arrive(&mut self, event: &Event, name: &[u8], pending: &mut Pending) {
        // What stood here before was replaced; an exchange moves it on with events of its own.
        let known = self.moved.remove(&event.cookie).map(|(watch, _)| watch);
        match known {
            Some(child) if self.nodes.contains_key(&child) && !is_reserved(name) => {
                self.hang(child, event.watch, name);
            }
            Some(child) if is_reserved(name) => self.unwatch(child),
            _ => self.adopt(event.watch, name, Some(pending)),
        }
    }

    /// Puts a known directory at a place of the picture.
    fn hang(&mut self, child: Watch, parent: Watch, name: &[u8]) {
        let Some(node) = self.nodes.get_mut(&child) else { return };
        let (old_parent, old_name) = (node.parent, std::mem::replace(&mut node.name, name.into()));
        node.parent = parent;
        if let Some(old) = self.nodes.get_mut(&old_parent)
            && old.children.get(&old_name) == Some(&child)
        {
            old.children.remove(&old_name);
        }
        if let Some(new) = self.nodes.get_mut(&parent) {
            new.children.insert(name.into(), child);
        }
    }

    /// Watches the directory of this name, and all below it. With `pending`, hints at all that is found.
    fn adopt(&mut self, parent: Watch, name: &[u8], pending: Option<&mut Pending>) {
        if is_reserved(name) {
            return;
        }
        // What is not there any more has events to come.
        let Some(dir) = self.open(parent).and_then(|dir| self.fs.open_dir(&dir, name).ok()) else { return };
        self.adopt_all(vec![(parent, name.into(), Opened::Itself(dir))], pending);
    }

    fn adopt_below(&mut self, watch: Watch, dir: &LinuxDir, pending: Option<&mut Pending>) {
        let work = self.subdirectories(watch, dir);
        self.adopt_all(work, pending);
    }

    fn adopt_all(&mut self, mut work: Vec<(Watch, Box<[u8]>, Opened)>, mut pending: Option<&mut Pending>) {
        while let Some((parent, name, opened)) = work.pop() {
            let dir = match opened {
                Opened::Itself(dir) => dir,
                // A mount, another subvolume, or gone since.
                Opened::Parent(dir) => match self.fs.open_dir(&dir, &name) {
                    Ok(dir) => dir,
                    Err(_) => continue,
                },
            };
            let Ok(stat) = self.fs.stat_dir(&dir) else { continue };
            let watch = match inotify::add_watch(&self.instance, proc_path(dir.as_fd()).path(), MASK) {
                Ok(watch) => watch,
                Err(Errno::NOENT) => continue,
                Err(error) => {
                    self.gap(error, pending.as_deref_mut());
                    continue;
                }
            };
            self.moved.retain(|_, (moved, _)| *moved != watch);
            if let std::collections::hash_map::Entry::Vacant(vacant) = self.nodes.entry(watch) {
                let object = stat.object.clone();
                vacant.insert(Node { object, parent, name: name.clone(), children: BTreeMap::new() });
            }
            self.hang(watch, parent, &name);
            if let Some(pending) = pending.as_deref_mut() {
                pending.directory(&stat.object);
            }
            work.append(&mut self.subdirectories(watch, &dir));
        }
    }

    /// The directories in a directory, to be watched. One that is missed for being renamed meanwhile has an event.
    fn subdirectories(&self, watch: Watch, dir: &LinuxDir) -> Vec<(Watch, Box<[u8]>, Opened)> {
        // Where it cannot be enumerated a scan cannot either, and says so.
        let entries = self.fs.list_once(dir).unwrap_or_default();
        entries
            .into_iter()
            .filter(|e| matches!(e.kind, Some(Kind::Directory) | None) && !is_reserved(&e.name))
            .map(|e| (watch, e.name.into(), Opened::Parent(dir.clone())))
            .collect()
    }

    /// Opens a watched directory by its place in the picture.
    fn open(&self, watch: Watch) -> Option<LinuxDir> {
        let mut names = Vec::new();
        let mut at = watch;
        while at != self.root {
            let node = self.nodes.get(&at)?;
            names.push(&node.name);
            at = node.parent;
            // More steps than directories: two moves crossed, and the picture is for now a ring.
            if names.len() > self.nodes.len() {
                return None;
            }
        }
        let mut dir = self.fs.root();
        for name in names.into_iter().rev() {
            dir = self.fs.open_dir(&dir, name).ok()?;
        }
        Some(dir)
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
        self.moved.clear();
        let old: Vec<Watch> = self.nodes.keys().copied().filter(|w| *w != self.root).collect();
        if let Some(root) = self.nodes.get_mut(&self.root) {
            root.children.clear();
        }
        self.nodes.retain(|watch, _| *watch == self.root);
        self.adopt_below(self.root, &self.fs.root(), None);
        for watch in old {
            if !self.nodes.contains_key(&watch) {
                // It fails where the directory is gone.
                let _ = inotify::remove_watch(&self.instance, watch);
            }
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

    /// What moved away before the last read, and did not come back in this one, left the folder.
    fn settle_moves(&mut self) {
        let mut left = Vec::new();
        self.moved.retain(|_, (watch, before)| {
            if *before {
                left.push(*watch);
            }
            !std::mem::replace(before, true)
        });
        for watch in left {
            self.unwatch(watch);
        }
    }
}

/// How a directory to be watched is reached: a parent's descriptor is shared by all that wait below it.
enum Opened {
    Itself(LinuxDir),
    Parent(LinuxDir),
}

impl Source for Inotify {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.instance.as_fd()
    }

    fn read(&mut self, pending: &mut Pending) -> io::Result<()> {
        let mut done = 0;
        while done < EVENTS_MAX {
            let events = match read_once(&self.instance, &mut self.buffer) {
                Err(Errno::AGAIN) => break,
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
            cookie: event.cookie(),
            name: event.file_name().map(|name| name.to_bytes().into()),
        });
        if reader.is_buffer_empty() {
            return Ok(events);
        }
    }
}
