//! What somebody decides to do next: contents, places and programs.

use std::collections::VecDeque;

use anabranch_model::{Names, Timestamp};
use anabranch_volume::fs::Kind;
use anabranch_volume::simulated::{Mode, Thing, Tree};

use super::{Crowd, KINDS, Op, Path, join, orderly_weight, parent};

impl Crowd {
    pub(super) fn content(&mut self) -> Vec<u8> {
        // Where each file is its writer's, no two are alike.
        if self.orderly.is_none()
            && self.rng.chance(1, 10)
            && let Some(earlier) = self.rng.pick(&self.earlier)
        {
            return earlier.clone();
        }
        self.written += 1;
        let mut bytes = format!("{}:{};", self.member, self.written).into_bytes();
        match self.rng.below(10) {
            0..=4 => {}
            5..=7 => bytes.resize(bytes.len() + self.rng.index(200), b'.'),
            8 => bytes.resize(bytes.len() + self.rng.index(3000), b'x'),
            // People's files have runs of zeros too.
            _ => bytes.resize(bytes.len() + self.rng.index(3000), 0),
        }
        self.earlier.push(bytes.clone());
        bytes
    }

    /// Where a new symlink points: nowhere.
    pub(super) fn target(&mut self) -> Vec<u8> {
        self.written += 1;
        format!("to/{}:{}", self.member, self.written).into_bytes()
    }

    pub(super) fn directory(&mut self, tree: &Tree) -> Path {
        let found: Vec<&Path> = tree.iter().filter(|(_, e)| e.kind == Kind::Directory).map(|(p, _)| p).collect();
        if found.is_empty() || self.rng.chance(2, 5) {
            return Path::new();
        }
        found[self.rng.index(found.len())].clone()
    }

    pub(super) fn of_kind(&mut self, tree: &Tree, kind: Option<Kind>) -> Option<Path> {
        let found: Vec<&Path> = tree.iter().filter(|(_, e)| kind.is_none_or(|k| e.kind == k)).map(|(p, _)| p).collect();
        self.rng.pick(&found).map(|p| (*p).clone())
    }

    pub(super) fn file(&mut self, tree: &Tree) -> Option<Path> {
        self.of_kind(tree, Some(Kind::File))
    }

    pub(super) fn any(&mut self, tree: &Tree) -> Option<Path> {
        self.of_kind(tree, None)
    }

    /// A path that may or may not be taken, not deep.
    pub(super) fn somewhere(&mut self, tree: &Tree) -> Path {
        let mut dir = self.directory(tree);
        while !dir.is_empty() && dir.iter().filter(|&&b| b == b'/').count() >= self.depth {
            dir = parent(&dir).to_vec();
        }
        let name = self.called[self.rng.index(self.names)];
        join(&dir, name)
    }

    pub(super) fn write(&mut self, tree: &Tree) -> Op {
        let path = match self.file(tree) {
            Some(path) if self.rng.chance(1, 2) => path,
            _ => self.somewhere(tree),
        };
        Op::Write(path, self.content())
    }

    pub(super) fn delay(&mut self) -> u64 {
        match self.rng.below(4) {
            0 => 0,
            1 => self.rng.below(20_000),
            2 => self.rng.below(500_000),
            _ => self.rng.below(5_000_000),
        }
    }

    /// Chooses what to do; nothing where the tree has nothing to do it with.
    pub(super) fn choose(&mut self, tree: &Tree) -> (usize, VecDeque<(u64, Op)>) {
        let orderly = self.orderly;
        let weight = |kind: usize| match orderly {
            None => KINDS[kind].1,
            Some(steward) => orderly_weight(KINDS[kind].0, steward),
        };
        let mut at = self.rng.below((0..KINDS.len()).map(weight).sum());
        let mut kind = 0;
        while at >= weight(kind) {
            at -= weight(kind);
            kind += 1;
        }
        let ops = match orderly {
            None => self.program(KINDS[kind].0, tree),
            Some(_) => self.orderly_program(KINDS[kind].0, tree),
        };
        let ops = ops.unwrap_or_default();
        // Programs do their steps at once more often than not, or people would never see a whole save.
        let slow = self.rng.chance(1, 3);
        (kind, ops.into_iter().map(|op| (if slow { self.delay() } else { self.rng.below(2000) }, op)).collect())
    }

    /// A file whose content was written here.
    pub(super) fn own_file(&mut self, tree: &Tree) -> Option<Path> {
        let tag = format!("{}:", self.member).into_bytes();
        let own = |thing: &Thing| !thing.is_link() && thing.bytes().starts_with(&tag);
        let found: Vec<&Path> =
            tree.iter().filter(|(_, e)| e.content.as_ref().is_some_and(own)).map(|(p, _)| p).collect();
        self.rng.pick(&found).map(|p| (*p).clone())
    }

    /// A path that is not taken, as far as can be seen here, and was no file's a short while ago.
    pub(super) fn free_path(&mut self, tree: &Tree) -> Option<Path> {
        for _ in 0..8 {
            let path = self.somewhere(tree);
            if !self.was_used(&path) && self.there(tree, &path).is_none() {
                return Some(path);
            }
        }
        None
    }

    /// A path for a directory that is not taken: few names, so that many members make directories of one name.
    pub(super) fn free_directory(&mut self, tree: &Tree) -> Option<Path> {
        let path = self.free_path(tree)?;
        let mut name = *self.rng.pick(&[&b"d"[..], b"site", b"index"])?;
        if self.rule == Names::Windows {
            name = *self.rng.pick(&[&b"d"[..], b"D", b"site", b"SITE", b"index"])?;
        }
        Some(join(parent(&path), name)).filter(|path| self.there(tree, path).is_none())
    }

    /// As [`Self::program`], of somebody who keeps to his own files.
    pub(super) fn orderly_program(&mut self, kind: &str, tree: &Tree) -> Option<Vec<Op>> {
        let path = match kind {
            "write" if self.rng.chance(1, 2) => self.free_path(tree)?,
            "write" | "append" | "rename" => self.own_file(tree)?,
            "remove" | "touch" => self.file(tree)?,
            "mkdir" => self.free_directory(tree)?,
            "rename directory" | "remove tree" => self.of_kind(tree, Some(Kind::Directory))?,
            _ => self.any(tree)?,
        };
        Some(vec![match kind {
            "write" => Op::Write(path, self.content()),
            "append" => Op::Append(path, self.content()),
            "rename" => Op::Rename(path, self.free_path(tree)?),
            "rename directory" => Op::Rename(path, self.free_directory(tree)?),
            "remove" => Op::Remove(path),
            "remove tree" => Op::RemoveTree(path),
            "mkdir" => Op::Mkdir(path),
            "touch" => Op::Touch(path, None),
            _ => Op::Chmod(path, *self.rng.pick(&[0o644, 0o600, 0o755])?),
        }])
    }

    pub(super) fn program(&mut self, kind: &str, tree: &Tree) -> Option<Vec<Op>> {
        let with = |path: &Path, suffix: &[u8]| [path.as_slice(), suffix].concat();
        Some(match kind {
            "write" => vec![self.write(tree)],
            "append" => vec![Op::Append(self.file(tree)?, self.content())],
            // Vim with its defaults: the old file moves aside, the new one is written under its name.
            "vim save" => {
                let (path, new) = (self.file(tree)?, self.content());
                let aside = with(&path, b"~");
                vec![Op::Rename(path.clone(), aside.clone()), Op::Write(path, new), Op::Remove(aside)]
            }
            // Word: the new text under a name of its own, then two renames, then the old text goes.
            "office save" => {
                let (path, new) = (self.file(tree)?, self.content());
                let (fresh, aside) = (with(&path, b".WRD1.tmp"), with(&path, b".WRL2.tmp"));
                vec![
                    Op::Write(fresh.clone(), new),
                    Op::Rename(path.clone(), aside.clone()),
                    Op::Rename(fresh, path),
                    Op::Remove(aside),
                ]
            }
            // LibreOffice, git, rsync: beside it, then over it.
            "atomic save" => {
                let (path, new) = (self.file(tree)?, self.content());
                let fresh = with(&path, b".part");
                vec![Op::Write(fresh.clone(), new), Op::Rename(fresh, path)]
            }
            "rename" => vec![Op::Rename(self.any(tree)?, self.somewhere(tree))],
            "rename over" => vec![Op::Rename(self.file(tree)?, self.file(tree)?)],
            "swap" => vec![Op::Swap(self.any(tree)?, self.any(tree)?)],
            "mkdir" => vec![Op::Mkdir(self.somewhere(tree))],
            "rename directory" => vec![Op::Rename(self.of_kind(tree, Some(Kind::Directory))?, self.somewhere(tree))],
            "remove" => vec![Op::Remove(self.any(tree)?)],
            "remove tree" => vec![Op::RemoveTree(self.of_kind(tree, Some(Kind::Directory))?)],
            "chmod" => vec![Op::Chmod(self.any(tree)?, *self.rng.pick(&[0o644, 0o600, 0o755, 0o4755])?)],
            "chown" => vec![Op::Chown(self.any(tree)?, *self.rng.pick(&[0, 1000, 1001, 7777])?)],
            "touch" => {
                let old = Timestamp { seconds: 1_000_000_000, nanoseconds: 5 };
                vec![Op::Touch(self.file(tree)?, self.rng.chance(1, 2).then_some(old))]
            }
            "xattr" => {
                let value = self.content();
                vec![Op::Xattr(self.any(tree)?, self.rng.chance(3, 4).then_some(value))]
            }
            "hard link" => vec![Op::Link(self.file(tree)?, self.somewhere(tree))],
            "symlink" => vec![Op::Symlink(self.somewhere(tree), self.target())],
            "directory becomes symlink" => {
                let path = self.of_kind(tree, Some(Kind::Directory))?;
                vec![Op::RemoveTree(path.clone()), Op::Symlink(path, self.target())]
            }
            "directory becomes file" => {
                let path = self.of_kind(tree, Some(Kind::Directory))?;
                vec![Op::RemoveTree(path.clone()), Op::Write(path, self.content())]
            }
            "file becomes directory" => {
                let path = self.file(tree)?;
                let inside = join(&path, self.called[0]);
                vec![Op::Remove(path.clone()), Op::Mkdir(path), Op::Write(inside, self.content())]
            }
            "slow write" => {
                let mode = *self.rng.pick(&[Mode::Truncate, Mode::Append, Mode::Update])?;
                let (path, content) = (self.file(tree)?, self.content());
                let (one, two) = content.split_at(content.len() / 2);
                vec![Op::Open(path, mode), Op::Put(one.to_vec()), Op::Put(two.to_vec()), Op::Close]
            }
            "mapped store" => {
                let path = self.file(tree)?;
                vec![Op::Open(path, Mode::Update), Op::Store(self.content()), Op::Close]
            }
            // The usual way to put a new site in the place of an old one.
            "deploy" => {
                let site = self.of_kind(tree, Some(Kind::Directory))?;
                let (new, old) = (with(&site, b".new"), with(&site, b".old"));
                vec![
                    Op::Mkdir(new.clone()),
                    Op::Write(join(&new, b"index"), self.content()),
                    Op::Rename(site.clone(), old.clone()),
                    Op::Rename(new, site),
                    Op::RemoveTree(old),
                ]
            }
            "write, close, sync" => {
                let path = self.somewhere(tree);
                vec![Op::Write(path.clone(), self.content()), Op::Sync(path)]
            }
            other => unreachable!("{other} is not in the table"),
        })
    }
}
