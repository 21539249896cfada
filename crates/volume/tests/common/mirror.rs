//! A reader of hints that keeps a picture of the tree by them alone, and somebody who changes the tree wildly.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anabranch_volume::fs::{Fs, Kind, Object, Stat};
use anabranch_volume::linux::{LinuxDir, LinuxFs};
use anabranch_volume::watch::Hint;

type Names = BTreeMap<Vec<u8>, Stat>;

/// The picture: what each directory holds, by its object.
pub(crate) struct Mirror {
    fs: LinuxFs,
    directories: HashMap<Object, Names>,
    /// Hinted at, and not found inside then.
    missing: BTreeSet<Object>,
}

impl Mirror {
    /// Scans.
    pub(crate) fn new(fs: LinuxFs) -> Self {
        let mut mirror = Self { fs, directories: HashMap::new(), missing: BTreeSet::new() };
        mirror.rescan();
        mirror
    }

    pub(crate) fn rescan(&mut self) {
        self.directories.clear();
        self.scan(&self.fs.root());
    }

    pub(crate) fn follow(&mut self, batch: &[Hint]) {
        for hint in batch {
            match hint {
                Hint::Everything => self.rescan(),
                Hint::Directory { directory } => match self.find(directory) {
                    Some(dir) => self.scan(&dir),
                    None => drop(self.missing.insert(directory.clone())),
                },
                Hint::Entry { directory, name, .. } => match self.find(directory) {
                    // What is not known yet is about to be, by a hint of where it is.
                    Some(dir) if self.directories.contains_key(directory) => self.look(directory, &dir, name),
                    Some(_) => {}
                    None => drop(self.missing.insert(directory.clone())),
                },
            }
        }
        for directory in std::mem::take(&mut self.missing) {
            match self.find(&directory) {
                Some(dir) => self.scan(&dir),
                None => drop(self.missing.insert(directory)),
            }
        }
    }

    pub(crate) fn root_has(&self, name: &[u8]) -> bool {
        self.directories[self.fs.root_object()].contains_key(name)
    }

    /// Every path from the root with what the picture says of it.
    pub(crate) fn shown(&self) -> BTreeMap<PathBuf, String> {
        let mut shown = BTreeMap::new();
        let mut work = vec![(PathBuf::new(), self.fs.root_object().clone())];
        while let Some((path, object)) = work.pop() {
            for (name, stat) in self.directories.get(&object).into_iter().flatten() {
                let path = path.join(String::from_utf8_lossy(name).as_ref());
                let mut line = format!("{:?} {:o} {:?}", stat.kind, stat.mode, stat.object);
                if stat.kind == Kind::Directory {
                    work.push((path.clone(), stat.object.clone()));
                } else {
                    line += &format!(" {:?}", stat.stamp);
                }
                shown.insert(path, line);
            }
        }
        shown
    }

    /// The directories of the picture, by path.
    pub(crate) fn folders(&self) -> Vec<PathBuf> {
        self.shown().into_iter().filter(|(_, line)| line.starts_with("Directory")).map(|(path, _)| path).collect()
    }

    fn look(&mut self, directory: &Object, dir: &LinuxDir, name: &[u8]) {
        let Ok(stat) = self.fs.stat(dir, name) else { return };
        let names = self.directories.entry(directory.clone()).or_default();
        let Some(stat) = stat else {
            names.remove(name);
            return;
        };
        let before = names.insert(name.to_vec(), stat.clone());
        // A directory that was not here before may have come from anywhere, with anything in it.
        if stat.kind == Kind::Directory
            && before.is_none_or(|b| b.object != stat.object)
            && let Ok(dir) = self.fs.open_dir(dir, name)
        {
            self.scan(&dir);
        }
    }

    fn scan(&mut self, dir: &LinuxDir) {
        let Ok(stat) = self.fs.stat_dir(dir) else { return };
        for _ in 0..100 {
            let Ok(entries) = self.fs.list(dir) else { continue };
            self.directories.insert(stat.object.clone(), Names::new());
            for entry in entries {
                self.look(&stat.object, dir, &entry.name);
            }
            return;
        }
    }

    /// Opens a directory by its object.
    fn find(&self, object: &Object) -> Option<LinuxDir> {
        for _ in 0..5 {
            let mut names = Vec::new();
            let mut at = object.clone();
            while at != *self.fs.root_object() {
                let (parent, name) = self.fs.locate(&at).ok()??;
                names.push(name);
                at = parent;
            }
            let mut dir = Some(self.fs.root());
            for name in names.iter().rev() {
                dir = dir.and_then(|d| self.fs.open_dir(&d, name).ok());
            }
            if let Some(dir) = dir
                && self.fs.stat_dir(&dir).is_ok_and(|s| s.object == *object)
            {
                return Some(dir);
            }
        }
        None
    }
}

/// Changes a tree at random: files and directories made, written, renamed, replaced, exchanged, removed, moved out of
/// the folder and back in. With odd seeds directories only.
pub(crate) fn change_wildly(folder: &Path, outside: &Path, seed: u64, steps: u32) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut below = |n: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % n
    };
    for step in 0..steps {
        // Few names, so that they meet; up to three deep.
        let mut path = || {
            let mut path = if below(8) == 0 { outside.to_path_buf() } else { folder.to_path_buf() };
            for _ in 0..=below(3) {
                path.push(format!("{}", below(5)));
            }
            path
        };
        let (one, other) = (path(), path());
        let what = if seed % 2 == 1 { [0, 0, 0, 6, 6, 6, 8, 8, 8, 10][below(10) as usize] } else { below(10) };
        // Most of these fail for want of a parent, or over one that is not empty: that is as it should be.
        let _ = match what {
            0..3 => fs::create_dir_all(&one),
            3..5 => fs::write(&one, vec![b'x'; step as usize % 100]),
            5 => fs::set_permissions(&one, fs::Permissions::from_mode(0o700 + step % 64)),
            6..8 => fs::rename(&one, &other),
            8 => {
                let exchange = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(rustix::fs::CWD, &one, rustix::fs::CWD, &other, exchange).map_err(Into::into)
            }
            10 => fs::remove_dir_all(&one),
            _ if below(3) == 0 => fs::remove_dir_all(&one),
            _ => fs::remove_file(&one),
        };
    }
}
