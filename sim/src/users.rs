//! People at one member: what they do, when, and with which content.
//!
//! Each content is new, marked with who wrote it and a number, but for one in ten that repeats an earlier one. Names are
//! few, so that people meet. What programs do in several steps (saving, deploying, writing slowly) is spread over time,
//! so that replication comes in between.

use std::collections::{BTreeMap, VecDeque};
use std::io;

use anabranch_model::{Names, Timestamp, fold};
use anabranch_volume::fs::Kind;
use anabranch_volume::simulated::{Call, Mode, Rng, SimFs, Thing, Tree, UserHandle};

use crate::plan::{Habits, Plan};

mod choice;

/// A path in the tree.
pub(crate) type Path = Vec<u8>;

/// A user gave what holds this another path: `itself`, or a directory that it is in.
pub(crate) struct Moved {
    pub(crate) content: Thing,
    pub(crate) from: Path,
    pub(crate) to: Path,
    pub(crate) itself: bool,
}

/// One step of a program.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Write(Path, Vec<u8>),
    Append(Path, Vec<u8>),
    Rename(Path, Path),
    Swap(Path, Path),
    Mkdir(Path),
    Remove(Path),
    RemoveTree(Path),
    Chmod(Path, u32),
    Chown(Path, u32),
    Touch(Path, Option<Timestamp>),
    Xattr(Path, Option<Vec<u8>>),
    Symlink(Path, Vec<u8>),
    Link(Path, Path),
    Sync(Path),
    Open(Path, Mode),
    /// The first half of it: the open takes effect a little later, wherever the file is by then.
    LookUp(Path, Mode),
    /// To the file opened last by this program.
    Put(Vec<u8>),
    /// The same, through a mapping.
    Store(Vec<u8>),
    Close,
}

/// What one program still does, and when.
struct Program {
    at: u64,
    steps: VecDeque<(u64, Op)>,
    open: Option<UserHandle>,
}

/// What a planned stop of the machine waits for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ambush {
    /// This call, so many times; then the power goes so many steps later.
    Call { call: Call, left: u64, steps: u64 },
    /// That somebody changes something; then it goes so many microseconds later.
    Deed { delay: u64 },
}

/// The people at one member.
pub(crate) struct Crowd {
    member: usize,
    rng: Rng,
    /// Names in use, and how deep they go.
    names: usize,
    depth: usize,
    /// What counts as one name, and the names in use.
    rule: Names,
    called: &'static [&'static [u8]; 9],
    /// They reach the files as Windows does: a name leads to what is there under another case. Else, from a shell, they can
    /// make two things of one name.
    careful: bool,
    /// Each keeps to his own (see [`Habits::Orderly`]); does he look after the directories?
    orderly: Option<bool>,
    /// Where files were, and when they were seen there last: nobody takes such a name before it was seen to be free. By path, and
    /// by the number of the directory and the name in it, wherever it was moved to.
    used: BTreeMap<Path, u64>,
    used_in: BTreeMap<(u64, Path), u64>,
    /// The numbers of the directories, where they are now.
    directories: BTreeMap<Path, u64>,
    /// When time last went on.
    now: u64,
    /// The machine stops when this comes.
    pub(crate) ambush: Option<Ambush>,
    written: u64,
    earlier: Vec<Vec<u8>>,
    programs: Vec<Program>,
    /// How often in a thousand calls somebody acts just before one.
    pub(crate) worst_moment: u64,
    /// Operations done so far.
    pub(crate) done: u64,
    /// Of these, in the middle of a call.
    pub(crate) interloped: u64,
    /// Opens caught between their halves.
    pub(crate) looked_up: u64,
    /// Stops that came where they were waited for.
    pub(crate) ambushed: u64,
    /// No more new programs begin.
    pub(crate) retired: bool,
    /// Contents whose place or attributes somebody here changed.
    handled: Vec<Thing>,
    /// Contents that somebody here gave another path.
    moved: Vec<Moved>,
    /// Files that somebody here made change places: what each name holds now, and the name.
    swapped: Vec<[(Thing, Path); 2]>,
    log: Vec<String>,
    pub(crate) prints: bool,
    kinds: [u64; KINDS.len()],
}

/// What people do, and how often, in parts of the sum.
pub(crate) const KINDS: [(&str, u64); 25] = [
    ("write", 26),
    ("append", 6),
    ("vim save", 6),
    ("office save", 5),
    ("atomic save", 7),
    ("rename", 8),
    ("rename over", 4),
    ("swap", 3),
    ("mkdir", 8),
    ("rename directory", 6),
    ("remove", 8),
    ("remove tree", 3),
    ("chmod", 4),
    ("chown", 1),
    ("touch", 4),
    ("xattr", 3),
    ("symlink", 3),
    ("hard link", 1),
    ("directory becomes symlink", 1),
    ("directory becomes file", 1),
    ("file becomes directory", 2),
    ("slow write", 5),
    ("mapped store", 2),
    ("deploy", 2),
    ("write, close, sync", 4),
];

/// How long a name that a file had is left alone where people keep to their own, microseconds: longer than a member is ever
/// down, so that what left it was seen to be gone, and what takes it is another file.
const USED_FOR: u64 = 100_000_000;

/// Where case and normalisation form do not count: some are one name, and not the same bytes.
const WINDOWS_NAMES: [&[u8]; 9] =
    [b"a", b"A", b"caf\xc3\xa9", b"CAFE\xcc\x81", b"Plan.txt", b"plan.TXT", b"site", b"Site", b"\xff\n"];

const NAMES: [&[u8]; 9] = [b"a", b"b", b"c", b"plan.txt", b"site", b"d", b"\xff\n", b"index", b"e e"];

fn join(dir: &[u8], name: &[u8]) -> Path {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}

fn parent(path: &[u8]) -> &[u8] {
    path.iter().rposition(|&b| b == b'/').map_or(b"", |at| &path[..at])
}

/// The keys of a path's names.
pub(crate) fn fold_path(path: &[u8], rule: Names) -> Path {
    path.split(|&b| b == b'/').map(|name| fold(name, rule)).collect::<Vec<_>>().join(&b'/')
}

impl Crowd {
    /// Nobody has done anything yet.
    pub(crate) fn new(member: usize, rng: Rng, plan: &Plan) -> Self {
        Self {
            member,
            rng,
            names: plan.names.clamp(1, NAMES.len()),
            depth: plan.depth,
            rule: plan.rule,
            called: if plan.rule == Names::Windows { &WINDOWS_NAMES } else { &NAMES },
            careful: plan.rule == Names::Windows && (plan.writer.is_some() || plan.habits != Habits::Free),
            orderly: match plan.habits {
                Habits::Free => None,
                Habits::Orderly { steward } => Some(steward == member),
            },
            used: BTreeMap::new(),
            used_in: BTreeMap::new(),
            directories: BTreeMap::new(),
            now: 0,
            ambush: None,
            written: 0,
            earlier: Vec::new(),
            programs: Vec::new(),
            worst_moment: 0,
            done: 0,
            interloped: 0,
            looked_up: 0,
            ambushed: 0,
            retired: false,
            handled: Vec::new(),
            moved: Vec::new(),
            swapped: Vec::new(),
            log: Vec::new(),
            prints: false,
            kinds: [0; KINDS.len()],
        }
    }

    /// What was done, by kind.
    pub(crate) fn kinds(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        KINDS.iter().zip(&self.kinds).map(|((name, _), count)| (*name, *count))
    }

    /// Contents that somebody here moved, or gave other attributes, since this was last asked.
    pub(crate) fn take_handled(&mut self) -> Vec<Thing> {
        std::mem::take(&mut self.handled)
    }

    /// Contents that somebody here gave another path since this was last asked.
    pub(crate) fn take_moved(&mut self) -> Vec<Moved> {
        std::mem::take(&mut self.moved)
    }

    /// Files that somebody here made change places since this was last asked: what each name holds now, and the name.
    pub(crate) fn take_swapped(&mut self) -> Vec<[(Thing, Path); 2]> {
        std::mem::take(&mut self.swapped)
    }

    /// Lines for the printed history.
    pub(crate) fn take_log(&mut self) -> Vec<String> {
        std::mem::take(&mut self.log)
    }

    /// When the next step of a running program is due.
    pub(crate) fn next(&self) -> Option<u64> {
        self.programs.iter().map(|p| p.at).min()
    }

    /// The machine lost its power: programs end where they are.
    pub(crate) fn die(&mut self) {
        self.programs.clear();
        self.ambush = None;
    }

    /// Does what is due.
    pub(crate) fn run(&mut self, fs: &SimFs, now: u64) {
        self.now = now;
        // What was on its way into a file has got there by now.
        fs.users_arrive();
        while let Some(at) = self.programs.iter().position(|p| p.at <= now) {
            let Some((_, op)) = self.programs[at].steps.pop_front() else {
                self.programs.swap_remove(at);
                continue;
            };
            let mut open = self.programs[at].open;
            let result = self.act(fs, &op, &mut open);
            let program = &mut self.programs[at];
            program.open = open;
            // A program that is told of an error gives up, but what it has open is closed.
            if result.is_err() {
                program.steps.retain(|(_, step)| matches!(step, Op::Close));
            }
            match program.steps.front() {
                Some((delay, _)) => program.at = now + delay,
                None => drop(self.programs.swap_remove(at)),
            }
        }
    }

    /// Begins something new. `looked`: the member has looked at all that was done so far.
    pub(crate) fn begin(&mut self, fs: &SimFs, now: u64, looked: bool) {
        if self.retired {
            return;
        }
        self.now = now;
        fs.users_arrive();
        let tree = fs.tree();
        if self.orderly.is_some() {
            self.note_used(fs, &tree, looked);
        }
        let (kind, steps) = self.choose(&tree);
        if steps.is_empty() {
            return;
        }
        self.kinds[kind] += 1;
        self.programs.push(Program { at: now, steps, open: None });
        self.run(fs, now);
    }

    /// Notes which names files have now, and which are free again.
    fn note_used(&mut self, fs: &SimFs, tree: &Tree, looked: bool) {
        if looked {
            let since = self.now.saturating_sub(USED_FOR);
            self.used.retain(|_, at| *at > since);
            self.used_in.retain(|_, at| *at > since);
        }
        let directories = tree.iter().filter(|(_, e)| e.kind == Kind::Directory).map(|(path, _)| path.as_slice());
        self.directories =
            directories.chain([&b""[..]]).filter_map(|path| Some((path.to_vec(), fs.number(path)?))).collect();
        for (path, _) in tree.iter().filter(|(_, e)| e.content.is_some()) {
            let name = fold_path(path.get(parent(path).len()..).unwrap_or_default(), self.rule);
            let directory = self.directories.get(parent(path));
            self.used_in.extend(directory.map(|directory| ((*directory, name), self.now)));
            self.used.insert(fold_path(path, self.rule), self.now);
        }
    }

    /// Was this a file's name a short while ago, here or where its directory was then?
    fn was_used(&self, path: &[u8]) -> bool {
        let name = fold_path(path.get(parent(path).len()..).unwrap_or_default(), self.rule);
        let directory = self.directories.get(parent(path));
        self.used.contains_key(&fold_path(path, self.rule))
            || directory.is_some_and(|directory| self.used_in.contains_key(&(*directory, name)))
    }

    /// Makes what lies here before anything is replicated.
    pub(crate) fn populate(&mut self, fs: &SimFs, count: u64) {
        for _ in 0..count {
            let tree = fs.tree();
            let op = if self.rng.chance(1, 3) { Op::Mkdir(self.somewhere(&tree)) } else { self.write(&tree) };
            // A name that is taken is left as it is.
            let _ = self.act(fs, &op, &mut None);
        }
    }

    /// Moves directories into each other and into new ones, so often, under few names: so that most names are left by one and
    /// taken by another.
    pub(crate) fn reorder(&mut self, fs: &SimFs, times: u64) {
        let done = self.done;
        for _ in 0..times {
            let tree = fs.tree();
            let into = if self.rng.chance(1, 4) { Path::new() } else { self.directory(&tree) };
            let to = join(&into, self.called[self.rng.index(3)]);
            let from = self.of_kind(&tree, Some(Kind::Directory)).filter(|_| self.rng.chance(2, 3));
            let op = match from {
                Some(from) if !to.starts_with(&join(&from, b"")) => Op::Rename(from, to),
                _ => Op::Mkdir(to),
            };
            let taken = matches!(&op, Op::Mkdir(to) | Op::Rename(_, to) if self.there(&tree, to).is_some());
            if !taken {
                // A move into itself by another case of its name fails.
                let _ = self.act(fs, &op, &mut None);
            }
        }
        self.done = done;
    }

    /// The member is in the middle of something: somebody may act, or the machine stop.
    pub(crate) fn interlope(&mut self, fs: &SimFs, call: Call) {
        if let Some(Ambush::Call { call: awaited, left, steps }) = &mut self.ambush
            && call == *awaited
        {
            if *left > 0 {
                *left -= 1;
            } else {
                fs.power().cut_after(*steps);
                self.ambushed += 1;
                self.ambush = None;
            }
        }
        if self.retired || !self.rng.chance(self.worst_moment, 1000) {
            return;
        }
        let tree = fs.tree();
        let op = match self.rng.below(11) {
            0..=3 => self.write(&tree),
            10 => return self.look_up(fs, &tree, call),
            4 => match self.file(&tree) {
                Some(path) => Op::Append(path, self.content()),
                None => return,
            },
            5 => match self.file(&tree) {
                Some(path) => Op::Remove(path),
                None => return,
            },
            6 | 7 => match self.any(&tree) {
                Some(path) => Op::Rename(path, self.somewhere(&tree)),
                None => return,
            },
            8 => Op::Mkdir(self.somewhere(&tree)),
            _ => match (self.any(&tree), self.any(&tree)) {
                (Some(one), Some(other)) => Op::Swap(one, other),
                _ => return,
            },
        };
        self.note_call(call);
        let _ = self.act(fs, &op, &mut None);
    }

    /// Somebody begins to open a file: his path was looked up before what the member does now, and he gets there after.
    fn look_up(&mut self, fs: &SimFs, tree: &Tree, call: Call) {
        let (Some(path), Some(mode)) = (self.file(tree), self.rng.pick(&[Mode::Truncate, Mode::Append]).copied())
        else {
            return;
        };
        self.note_call(call);
        let mut open = None;
        if self.act(fs, &Op::LookUp(path, mode), &mut open).is_ok() {
            self.looked_up += 1;
            let content = self.content();
            let steps = [(0, Op::Put(content)), (self.rng.below(2000), Op::Close)].into();
            self.programs.push(Program { at: self.now, steps, open });
        }
    }

    fn note_call(&mut self, call: Call) {
        if self.prints {
            self.log.push(format!("(before {call:?})"));
        }
        self.interloped += 1;
    }

    /// The path under which this name is there, if it is.
    fn there(&self, tree: &Tree, path: &Path) -> Option<Path> {
        if tree.contains_key(path) {
            return Some(path.clone());
        }
        let key = fold_path(path, self.rule);
        let same = |other: &&Path| parent(other) == parent(path) && fold_path(other, self.rule) == key;
        tree.keys().find(same).cloned()
    }

    /// What becomes of an operation where a name leads to what is there under another case: a rename of that very thing
    /// changes its case.
    fn carefully(&self, fs: &SimFs, op: &Op) -> Op {
        let (tree, mut op) = (fs.tree(), op.clone());
        match &mut op {
            Op::Write(path, _) | Op::Mkdir(path) | Op::Symlink(path, _) | Op::Link(_, path) => {
                *path = self.there(&tree, path).unwrap_or_else(|| path.clone());
            }
            Op::Rename(from, to) => *to = self.there(&tree, to).filter(|at| at != from).unwrap_or_else(|| to.clone()),
            _ => {}
        }
        op
    }

    fn act(&mut self, fs: &SimFs, op: &Op, open: &mut Option<UserHandle>) -> io::Result<()> {
        let op = &if self.careful { self.carefully(fs, op) } else { op.clone() };
        self.note_handled(fs, op);
        let removed = self.linked(fs, op);
        let result = match op {
            Op::Write(path, bytes) => fs.write(path, bytes),
            Op::Append(path, bytes) => fs.append(path, bytes),
            Op::Rename(from, to) => fs.rename(from, to),
            Op::Swap(one, other) => fs.swap(one, other),
            Op::Mkdir(path) => fs.mkdir(path),
            Op::Remove(path) => fs.remove(path),
            Op::RemoveTree(path) => fs.remove_tree(path),
            Op::Chmod(path, mode) => fs.chmod(path, *mode),
            Op::Chown(path, owner) => fs.chown(path, *owner, *owner),
            Op::Touch(path, time) => fs.touch(path, *time),
            Op::Xattr(path, value) => fs.setxattr(path, b"user.note", value.as_deref()),
            Op::Symlink(path, target) => fs.symlink(path, target),
            Op::Link(from, to) => fs.link(from, to),
            Op::Sync(path) => fs.user_sync(path),
            Op::Open(path, mode) => fs.user_open(path, *mode).map(|handle| *open = Some(handle)),
            Op::LookUp(path, mode) => fs.user_look_up(path, *mode).map(|handle| *open = Some(handle)),
            Op::Put(bytes) => {
                open.iter().for_each(|h| fs.user_put(*h, None, bytes));
                Ok(())
            }
            Op::Store(bytes) => {
                open.iter().for_each(|h| fs.user_store(*h, 0, bytes));
                Ok(())
            }
            Op::Close => {
                open.take().into_iter().for_each(|h| fs.user_close(h));
                Ok(())
            }
        };
        self.done += 1;
        if result.is_ok() {
            self.note_moved(fs, op);
            self.note_left(fs, removed);
        }
        if self.prints {
            let said = result.as_ref().err().map_or(String::new(), |e| format!(" -> {e}"));
            self.log.push(format!("member {} user: {}{said}", self.member, show(op)));
        }
        result
    }

    /// Notes which contents an operation gave another path. Two files that change places leave each name with the file that it
    /// had, which has another content then.
    fn note_moved(&mut self, fs: &SimFs, op: &Op) {
        let tree = fs.tree();
        let places = match op {
            Op::Rename(from, to) => vec![(from, to)],
            Op::Swap(one, other) => {
                let file = |path: &Path| Some((tree.get(path)?.content.clone()?, path.clone()));
                if let (Some(one), Some(other)) = (file(one), file(other)) {
                    self.swapped.push([one, other]);
                    return;
                }
                vec![(other, one), (one, other)]
            }
            _ => return,
        };
        for (at, entry) in &tree {
            let below = |to: &Path| at == to || (at.starts_with(to) && at.get(to.len()) == Some(&b'/'));
            if let (Some(content), Some((from, to))) = (&entry.content, places.iter().find(|(_, to)| below(to))) {
                let from = [from, at.get(to.len()..).unwrap_or_default()].concat();
                self.moved.push(Moved { content: content.clone(), from, to: at.clone(), itself: at == *to });
            }
        }
    }

    /// What an operation takes a name from that is a hard link.
    fn linked(&self, fs: &SimFs, op: &Op) -> Vec<(Thing, Path)> {
        match op {
            Op::Remove(path) | Op::RemoveTree(path) => fs.linked_below(path),
            _ => Vec::new(),
        }
    }

    /// Who links a file elsewhere and removes the name that it had has moved it.
    fn note_left(&mut self, fs: &SimFs, removed: Vec<(Thing, Path)>) {
        if removed.is_empty() {
            return;
        }
        let tree = fs.tree();
        for (content, from) in removed {
            let left = tree.iter().find(|(_, entry)| entry.content.as_ref() == Some(&content));
            if let Some((at, _)) = left {
                self.moved.push(Moved { content, from, to: at.clone(), itself: true });
            }
        }
    }

    /// Notes which contents an operation gives another place or other attributes.
    fn note_handled(&mut self, fs: &SimFs, op: &Op) {
        let paths: Vec<&Path> = match op {
            Op::Rename(a, b) | Op::Swap(a, b) | Op::Link(a, b) => vec![a, b],
            Op::Chmod(a, _) | Op::Chown(a, _) | Op::Touch(a, _) | Op::Xattr(a, _) => vec![a],
            _ => return,
        };
        for (at, entry) in fs.tree() {
            let below = |p: &&Path| at == **p || (at.starts_with(p) && at.get(p.len()) == Some(&b'/'));
            if let Some(content) = entry.content.filter(|_| paths.iter().any(below)) {
                self.handled.push(content);
            }
        }
    }
}

/// How often people do what, where each keeps to his own.
fn orderly_weight(kind: &str, steward: bool) -> u64 {
    match kind {
        "write" => 30,
        "append" => 10,
        "rename" | "remove" | "touch" | "mkdir" | "chmod" => 12,
        "rename directory" if steward => 16,
        "remove tree" if steward => 4,
        _ => 0,
    }
}

/// An operation as one line.
fn show(op: &Op) -> String {
    let text = |bytes: &[u8]| {
        let (start, more) = (&bytes[..bytes.len().min(24)], bytes.len() > 24);
        format!("\"{}\"{}", start.escape_ascii(), if more { format!("… {} bytes", bytes.len()) } else { String::new() })
    };
    let path = |p: &[u8]| format!("/{}", p.escape_ascii());
    match op {
        Op::Write(p, b) => format!("write {} {}", path(p), text(b)),
        Op::Append(p, b) => format!("append {} {}", path(p), text(b)),
        Op::Rename(a, b) => format!("rename {} {}", path(a), path(b)),
        Op::Swap(a, b) => format!("swap {} {}", path(a), path(b)),
        Op::Mkdir(p) => format!("mkdir {}", path(p)),
        Op::Remove(p) => format!("remove {}", path(p)),
        Op::RemoveTree(p) => format!("remove tree {}", path(p)),
        Op::Chmod(p, mode) => format!("chmod {mode:o} {}", path(p)),
        Op::Chown(p, owner) => format!("chown {owner} {}", path(p)),
        Op::Touch(p, time) => format!("touch {} {}", path(p), if time.is_some() { "old" } else { "now" }),
        Op::Xattr(p, value) => format!("xattr {} {}", path(p), value.as_ref().map_or("none".into(), |v| text(v))),
        Op::Symlink(p, target) => format!("symlink {} {}", path(p), text(target)),
        Op::Link(a, b) => format!("link {} {}", path(a), path(b)),
        Op::Sync(p) => format!("sync {}", path(p)),
        Op::Open(p, mode) => format!("open {} {mode:?}", path(p)),
        Op::LookUp(p, mode) => format!("look up {} to open it {mode:?}", path(p)),
        Op::Put(b) => format!("put {}", text(b)),
        Op::Store(b) => format!("store {}", text(b)),
        Op::Close => "close".into(),
    }
}
