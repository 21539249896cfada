//! An independent look at the trees: they are walked and read with nothing of the members' own machinery.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use anabranch_console::Failure;

use super::voice::shown;
use super::{Cancel, Outcome};

/// What begins so is the members' own and not replicated.
pub(crate) const RESERVED: &[u8] = b".anabranch";

/// What there is at one path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Item {
    pub(crate) content: Content,
    /// Type and permissions; the type only, for a link.
    pub(crate) mode: u32,
    /// User and group.
    pub(crate) owner: (u32, u32),
    /// Seconds and nanoseconds, of files.
    pub(crate) mtime: Option<(i64, i64)>,
}

/// What an item holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Content {
    /// Size and hash.
    File(u64, blake3::Hash),
    /// Target.
    Symlink(Vec<u8>),
    Directory,
    /// Not replicated.
    Other,
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.content {
            Content::File(size, hash) => write!(f, "file of {size} bytes {}", &hash.to_hex()[..12])?,
            Content::Symlink(target) => write!(f, "link to {}", shown(target))?,
            Content::Directory => f.write_str("directory")?,
            Content::Other => f.write_str("neither file, link nor directory")?,
        }
        write!(f, ", mode {:o}, owner {}:{}", self.mode & 0o7777, self.owner.0, self.owner.1)?;
        if let Some((seconds, nanoseconds)) = self.mtime {
            write!(f, ", mtime {seconds}.{nanoseconds:09}")?;
        }
        Ok(())
    }
}

/// A tree: what there is, by path.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Tree(pub(crate) BTreeMap<Vec<u8>, Item>);

/// How much a tree holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) files: u64,
    pub(crate) links: u64,
    pub(crate) directories: u64,
    pub(crate) bytes: u64,
}

impl Tree {
    /// Walks and reads a tree.
    pub(crate) fn take(root: &Path, cancel: &Cancel) -> Outcome<Self> {
        let mut tree = Self::default();
        let mut open = vec![(root.to_path_buf(), Vec::new())];
        while let Some((dir, prefix)) = open.pop() {
            let failed = |path: &Path, e: io::Error| {
                Failure::failed(format!("cannot read {}", shown(path.as_os_str().as_bytes()))).because(e.to_string())
            };
            for entry in fs::read_dir(&dir).map_err(|e| failed(&dir, e))? {
                if cancel.load(Ordering::Relaxed) {
                    return Err(Failure::failed("the comparison was ended early").into());
                }
                let entry = entry.map_err(|e| failed(&dir, e))?;
                let name = entry.file_name();
                if name.as_bytes().starts_with(RESERVED) {
                    continue;
                }
                let within = joined(&prefix, name.as_bytes());
                let item = look(&entry.path()).map_err(|e| failed(&entry.path(), e))?;
                match item.content {
                    Content::Other => continue,
                    Content::Directory => open.push((entry.path(), within.clone())),
                    Content::File(..) | Content::Symlink(_) => {}
                }
                tree.0.insert(within, item);
            }
        }
        Ok(tree)
    }

    pub(crate) fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for item in self.0.values() {
            match &item.content {
                Content::File(size, _) => {
                    totals.files += 1;
                    totals.bytes += size;
                }
                Content::Symlink(_) => totals.links += 1,
                Content::Directory => totals.directories += 1,
                Content::Other => {}
            }
        }
        totals
    }

    /// The directory with the most files and links beneath it, and how many these are. Of several the first, that is the
    /// outermost.
    pub(crate) fn largest_directory(&self) -> Option<(Vec<u8>, u64)> {
        let mut beneath: BTreeMap<&[u8], u64> = BTreeMap::new();
        for (path, item) in &self.0 {
            if item.content == Content::Directory {
                beneath.entry(path).or_default();
                continue;
            }
            for (place, byte) in path.iter().enumerate() {
                if *byte == b'/' {
                    *beneath.entry(path.get(..place).unwrap_or_default()).or_default() += 1;
                }
            }
        }
        let most = beneath.values().max().copied()?;
        beneath.into_iter().find(|(_, count)| *count == most).map(|(path, count)| (path.to_vec(), count))
    }

    /// Up to `count` files that the owner may write and that are small, from all over the tree.
    pub(crate) fn small_files(&self, count: usize) -> Vec<Vec<u8>> {
        let fit = |item: &Item| {
            matches!(item.content, Content::File(size, _) if (1..=256 << 10).contains(&size)) && item.mode & 0o200 != 0
        };
        let fitting: Vec<&Vec<u8>> = self.0.iter().filter(|(_, item)| fit(item)).map(|(path, _)| path).collect();
        let step = (fitting.len() / count.max(1)).max(1);
        fitting.into_iter().step_by(step).take(count).cloned().collect()
    }
}

fn look(path: &Path) -> io::Result<Item> {
    let meta = path.symlink_metadata()?;
    let kind = meta.file_type();
    let content = if kind.is_file() {
        let mut hasher = blake3::Hasher::new();
        let size = io::copy(&mut File::open(path)?, &mut hasher)?;
        Content::File(size, hasher.finalize())
    } else if kind.is_symlink() {
        Content::Symlink(fs::read_link(path)?.into_os_string().into_vec())
    } else if kind.is_dir() {
        Content::Directory
    } else {
        Content::Other
    };
    let mtime = kind.is_file().then(|| (meta.mtime(), meta.mtime_nsec()));
    Ok(Item { content, mode: meta.mode(), owner: (meta.uid(), meta.gid()), mtime })
}

/// The differences of two trees in words, the first few of them and their number; `None` if there are none.
pub(crate) fn difference(one: (&str, &Tree), two: (&str, &Tree)) -> Option<String> {
    let mut words = Vec::new();
    for (path, item) in &one.1.0 {
        match two.1.0.get(path) {
            None => words.push(format!("{} is only on {} ({item})", shown(path), one.0)),
            Some(other) if other != item => {
                words.push(format!("{}: on {} {item}; on {} {other}", shown(path), one.0, two.0));
            }
            Some(_) => {}
        }
    }
    for (path, item) in two.1.0.iter().filter(|(path, _)| !one.1.0.contains_key(*path)) {
        words.push(format!("{} is only on {} ({item})", shown(path), two.0));
    }
    let count = words.len();
    words.truncate(5);
    (count > 0).then(|| format!("{count} differences, such as:\n    {}", words.join("\n    ")))
}

/// How many files and links there are beneath a directory; what vanishes meanwhile or cannot be read is not counted.
pub(crate) fn count(root: &Path) -> u64 {
    let mut count = 0;
    let mut open = vec![root.to_path_buf()];
    while let Some(dir) = open.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            if entry.file_name().as_bytes().starts_with(RESERVED) {
                continue;
            }
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => open.push(entry.path()),
                Ok(kind) if kind.is_file() || kind.is_symlink() => count += 1,
                _ => {}
            }
        }
    }
    count
}

/// A path below another, as bytes.
pub(crate) fn joined(prefix: &[u8], name: &[u8]) -> Vec<u8> {
    if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
}

/// A path within a tree, as a path of this machine.
pub(crate) fn below(root: &Path, within: &[u8]) -> PathBuf {
    root.join(std::ffi::OsStr::from_bytes(within))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(content: Content, mode: u32) -> Item {
        Item { content, mode, owner: (0, 0), mtime: None }
    }

    fn file(text: &str) -> Item {
        item(Content::File(text.len() as u64, blake3::hash(text.as_bytes())), 0o100_644)
    }

    fn tree(items: &[(&str, Item)]) -> Tree {
        Tree(items.iter().map(|(path, item)| (path.as_bytes().to_vec(), item.clone())).collect())
    }

    #[test]
    fn each_kind_of_difference_is_named() {
        let dir = item(Content::Directory, 0o40_755);
        let base = tree(&[("a", file("1")), ("d", dir.clone())]);
        assert_eq!(difference(("x", &base), ("y", &base)), None);
        let cases = [
            ("bytes", tree(&[("a", file("2")), ("d", dir.clone())]), "a: on x file"),
            ("mode", tree(&[("a", item(file("1").content, 0o100_600)), ("d", dir.clone())]), "mode 600"),
            ("type", tree(&[("a", dir.clone()), ("d", dir.clone())]), "on y directory"),
            ("missing", tree(&[("d", dir.clone())]), "a is only on x"),
            ("more", tree(&[("a", file("1")), ("b", file("")), ("d", dir)]), "b is only on y"),
        ];
        for (name, other, want) in cases {
            let words = difference(("x", &base), ("y", &other)).unwrap_or_default();
            assert!(words.contains(want) && words.starts_with("1 differences"), "{name}: {words}");
        }
    }

    #[test]
    fn mtimes_count_for_files() {
        let mut later = file("1");
        later.mtime = Some((1, 5));
        let words = difference(("x", &tree(&[("a", file("1"))])), ("y", &tree(&[("a", later)])));
        assert!(words.unwrap_or_default().contains("mtime 1.000000005"));
    }

    #[test]
    fn the_largest_directory_is_the_outermost_with_most_beneath() {
        let dir = || item(Content::Directory, 0o40_755);
        assert_eq!(tree(&[("a", file("1"))]).largest_directory(), None);
        let tree = tree(&[
            ("a", dir()),
            ("a/b", dir()),
            ("a/b/1", file("1")),
            ("a/b/2", file("2")),
            ("c", dir()),
            ("c/1", file("1")),
            ("empty", dir()),
        ]);
        assert_eq!(tree.largest_directory(), Some((b"a".to_vec(), 2)));
        assert_eq!(tree.totals(), Totals { files: 3, links: 0, directories: 4, bytes: 3 });
    }

    #[test]
    fn small_files_are_writable_and_spread() {
        let mut items: Vec<(String, Item)> = (0..10).map(|n| (format!("f{n}"), file("x"))).collect();
        items.push(("empty".into(), file("")));
        items.push(("closed".into(), item(file("x").content, 0o100_444)));
        let tree = Tree(items.into_iter().map(|(path, item)| (path.into_bytes(), item)).collect());
        assert_eq!(tree.small_files(3), [b"f0".to_vec(), b"f3".to_vec(), b"f6".to_vec()]);
        assert_eq!(tree.small_files(100).len(), 10);
        assert!(tree.small_files(0).is_empty());
    }
}
