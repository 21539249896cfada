//! A whole tree as a value: everything that the program carries, by path.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context, Result};

/// What there is at one path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Item {
    /// Type and permission bits (type only, for a symlink).
    pub mode: u32,
    /// Owner and group by number.
    pub owner: (u32, u32),
    /// Seconds and nanoseconds; 0 for a directory, whose time follows what happens in it.
    pub mtime: (i64, i64),
    /// A file's size and hash, a symlink's target.
    pub content: Content,
    /// Extended attributes, ACLs among them.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mode, owner: (user, group), mtime: (seconds, nanoseconds), content, xattrs } = self;
        write!(f, "mode {mode:o}, owner {user}:{group}, mtime {seconds}.{nanoseconds:09}, ")?;
        match content {
            Content::File(size, hash) => write!(f, "{size} bytes {}", &hash.to_hex()[..16])?,
            Content::Symlink(target) => write!(f, "link to {}", shown(target))?,
            Content::Directory => f.write_str("directory")?,
            Content::Other => f.write_str("neither file, link nor directory")?,
        }
        for (name, value) in xattrs {
            write!(f, ", {} of {} bytes {}", shown(name), value.len(), &blake3::hash(value).to_hex()[..8])?;
        }
        Ok(())
    }
}

/// Bytes as text for people: escaped, and cut where they are long.
fn shown(bytes: &[u8]) -> String {
    let text = bytes.escape_ascii().to_string();
    if text.len() <= 120 { format!("\"{text}\"") } else { format!("\"{}…\" ({} bytes)", &text[..120], bytes.len()) }
}

/// What an item holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Content {
    /// Size and BLAKE3.
    File(u64, blake3::Hash),
    /// Target.
    Symlink(Vec<u8>),
    /// Children stand under their own paths.
    Directory,
    /// Socket, device, FIFO.
    Other,
}

/// A tree: path from its root to what is there.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Snapshot {
    /// Ascending by bytes.
    pub items: BTreeMap<Vec<u8>, Item>,
}

impl Snapshot {
    /// Reads a tree, the program's own directory left out.
    ///
    /// # Errors
    /// When anything cannot be read, or vanishes meanwhile.
    pub fn take(root: &Path) -> Result<Self> {
        let mut snapshot = Self::default();
        snapshot.walk(root, b"")?;
        snapshot.items.retain(|_, item| item.content != Content::Other);
        Ok(snapshot)
    }

    /// The files by path, with their hash.
    pub fn files(&self) -> impl Iterator<Item = (&[u8], blake3::Hash)> {
        self.items.iter().filter_map(|(path, item)| match item.content {
            Content::File(_, hash) => Some((path.as_slice(), hash)),
            _ => None,
        })
    }

    fn walk(&mut self, dir: &Path, prefix: &[u8]) -> Result<()> {
        for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
            let entry = entry.with_context(|| format!("list {}", dir.display()))?;
            let name = entry.file_name();
            if prefix.is_empty() && name == ".anabranch" {
                continue;
            }
            let path = [prefix, name.as_bytes()].concat();
            let item = look(&entry.path())?;
            let directory = item.content == Content::Directory;
            self.items.insert(path.clone(), item);
            if directory {
                self.walk(&entry.path(), &[&path, b"/".as_slice()].concat())?;
            }
        }
        Ok(())
    }
}

fn look(path: &Path) -> Result<Item> {
    let meta = path.symlink_metadata().with_context(|| format!("look at {}", path.display()))?;
    let kind = meta.file_type();
    let content = if kind.is_file() {
        let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
        Content::File(bytes.len() as u64, blake3::hash(&bytes))
    } else if kind.is_symlink() {
        let target = fs::read_link(path).with_context(|| format!("read the link {}", path.display()))?;
        Content::Symlink(target.into_os_string().into_vec())
    } else if kind.is_dir() {
        Content::Directory
    } else {
        Content::Other
    };
    let mtime = if kind.is_dir() { (0, 0) } else { (meta.mtime(), meta.mtime_nsec()) };
    let xattrs = xattrs(path).with_context(|| format!("read the xattrs of {}", path.display()))?;
    Ok(Item { mode: meta.mode(), owner: (meta.uid(), meta.gid()), mtime, content, xattrs })
}

fn xattrs(path: &Path) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut names = vec![0_u8; 1 << 16];
    let mut xattrs = BTreeMap::new();
    let length = match rustix::fs::llistxattr(path, &mut names) {
        Ok(length) => length,
        Err(rustix::io::Errno::NOTSUP) => return Ok(xattrs),
        Err(error) => return Err(error.into()),
    };
    for name in names[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0_u8; 1 << 16];
        let length = rustix::fs::lgetxattr(path, name, &mut value)?;
        value.truncate(length);
        xattrs.insert(name.to_vec(), value);
    }
    Ok(xattrs)
}

/// The first differences of two trees in words.
#[must_use]
pub fn explain(name_one: &str, one: &Snapshot, name_two: &str, two: &Snapshot) -> String {
    let mut lines = Vec::new();
    for (path, item) in &one.items {
        let shown = shown(path);
        match two.items.get(path) {
            None => lines.push(format!("{shown} only on {name_one}: {item}")),
            Some(other) if other != item => {
                lines.push(format!("{shown} differs:\n  {name_one}: {item}\n  {name_two}: {other}"));
            }
            Some(_) => {}
        }
    }
    for (path, item) in two.items.iter().filter(|(path, _)| !one.items.contains_key(*path)) {
        lines.push(format!("{} only on {name_two}: {item}", shown(path)));
    }
    let count = lines.len();
    lines.truncate(20);
    format!("{count} differences:\n{}", lines.join("\n"))
}

/// Hashes of every file that a member keeps outside its tree: what was preserved.
///
/// # Errors
/// When a directory cannot be read.
pub fn preserved_hashes(root: &Path) -> Result<Vec<blake3::Hash>> {
    let mut hashes = Vec::new();
    for store in ["ConflictAndDeleted", "PreExisting"] {
        let dir = root.join(".anabranch").join(store);
        if dir.is_dir() {
            hashes.extend(Snapshot::take(&dir)?.files().map(|(_, hash)| hash));
        }
    }
    Ok(hashes)
}
