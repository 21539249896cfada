//! The tree to copy: found, listed, and copied into the first member's tree.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anabranch_console::Failure;

use super::compare::RESERVED;
use super::voice::{Voice, bytes, counted, grouped, shown};
use super::{Cancel, Outcome};

/// What is taken of a tree that nobody named.
const DEFAULT_MAX: Bound = Bound { files: 5_000, bytes: 200_000_000 };
/// A tree that nobody named is worth showing from so many files on.
const WORTH_SHOWING: u64 = 200;
/// How long `rustc` may take to say where its documentation lies.
const RUSTC_LIMIT: Duration = Duration::from_secs(5);
/// What a small file takes on a disk, about.
const BLOCK_BYTES: u64 = 4096;

/// How much of a tree is taken.
#[derive(Clone, Copy, Debug)]
struct Bound {
    files: u64,
    bytes: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    File,
    Symlink,
    Directory,
}

/// A tree that is to be copied.
#[derive(Debug)]
pub(crate) struct Source {
    root: PathBuf,
    /// Parents before children.
    entries: Vec<(PathBuf, Kind)>,
    /// Files and links.
    pub(crate) files: u64,
    bytes: u64,
    /// What a copy takes on a disk, about.
    disk_bytes: u64,
    /// What is not taken, with why.
    left_out: LeftOut,
    /// There is more than was asked for.
    cut: bool,
}

/// What is not copied: the number, and the first in words.
#[derive(Clone, Debug, Default)]
pub(crate) struct LeftOut {
    pub(crate) count: u64,
    first: Option<String>,
}

impl LeftOut {
    fn add(&mut self, path: &Path, why: &str) {
        self.count += 1;
        self.first.get_or_insert_with(|| format!("{}: {why}", shown(path.as_os_str().as_bytes())));
    }

    /// In words; `None` if there is nothing.
    pub(crate) fn words(&self) -> Option<String> {
        let first = self.first.as_ref()?;
        Some(format!("{} left out, such as {first}", counted(self.count, "entry is", "entries are")))
    }
}

/// How far the copying is.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    pub(crate) files: AtomicU64,
}

/// Finds and lists the tree, and says what it is.
pub(crate) async fn choose(from: Option<PathBuf>, voice: &mut Voice, cancel: &Cancel) -> Outcome<Source> {
    let source = match from {
        Some(dir) => named(&dir, cancel.clone()).await?,
        None => found(cancel).await?,
    };
    let which = if source.cut { "the first " } else { "" };
    let what = counted(source.files, "file", "files");
    voice.line(&format!("The tree: {}", shown(source.root.as_os_str().as_bytes())))?;
    voice.line(&format!("  {which}{what} and links, {} (name another with --from DIR)", bytes(source.bytes)))?;
    if let Some(words) = source.left_out.words() {
        voice.line(&format!("  {words}"))?;
    }
    Ok(source)
}

async fn named(dir: &Path, cancel: Cancel) -> Outcome<Source> {
    let refused = |cause: String| {
        Failure::usage(format!("--from {} cannot be shown", shown(dir.as_os_str().as_bytes())))
            .because(cause)
            .hint("name a directory that you may read")
    };
    let root = fs::canonicalize(dir).map_err(|e| refused(e.to_string()))?;
    if !root.is_dir() {
        return Err(refused("it is not a directory".into()).into());
    }
    fs::read_dir(&root).map_err(|e| refused(e.to_string()))?;
    let source = list_elsewhere(root, None, cancel).await?;
    if source.entries.is_empty() {
        return Err(refused("there is nothing in it that can be copied".into()).into());
    }
    Ok(source)
}

/// A real tree that this machine has: the first that is worth showing, else the largest.
async fn found(cancel: &Cancel) -> Outcome<Source> {
    let mut best: Option<Source> = None;
    for dir in candidates().await {
        let Ok(root) = fs::canonicalize(&dir) else { continue };
        let source = list_elsewhere(root, Some(DEFAULT_MAX), cancel.clone()).await?;
        if source.files >= WORTH_SHOWING {
            return Ok(source);
        }
        if source.files > best.as_ref().map_or(0, |b| b.files) {
            best = Some(source);
        }
    }
    best.ok_or_else(|| {
        Failure::failed("no tree worth showing was found on this machine").hint("name one with --from DIR").into()
    })
}

async fn candidates() -> Vec<PathBuf> {
    let mut dirs = Vec::new();
    // From the root directory: a toolchain file of the present one must not make rustup fetch anything.
    let mut rustc = tokio::process::Command::new("rustc");
    rustc.args(["--print", "sysroot"]).current_dir("/").stdin(std::process::Stdio::null()).kill_on_drop(true);
    // No Rust here, or none that answers: there are other trees.
    if let Ok(Ok(said)) = tokio::time::timeout(RUSTC_LIMIT, rustc.output()).await
        && said.status.success()
    {
        let sysroot = String::from_utf8_lossy(&said.stdout).trim().to_owned();
        dirs.push(Path::new(&sysroot).join("share/doc"));
    }
    dirs.extend(
        ["/usr/share/doc", "/usr/share/man", "/usr/share/zoneinfo", "/usr/include", "/usr/share"].map(PathBuf::from),
    );
    dirs
}

/// Lists on another thread, so that a signal is heard meanwhile.
async fn list_elsewhere(root: PathBuf, max: Option<Bound>, cancel: Cancel) -> Outcome<Source> {
    let done = tokio::task::spawn_blocking(move || list(root, max, &cancel)).await;
    done.map_err(|e| {
        Failure { code: 4, ..Failure::failed("listing the tree ended early").because(e.to_string()) }.into()
    })
}

fn list(root: PathBuf, max: Option<Bound>, cancel: &Cancel) -> Source {
    let (entries, left_out) = (Vec::new(), LeftOut::default());
    let mut source = Source { root, entries, files: 0, bytes: 0, disk_bytes: 0, left_out, cut: false };
    let mut open = vec![PathBuf::new()];
    while let Some(dir) = open.pop() {
        let names = fs::read_dir(source.root.join(&dir))
            .and_then(|entries| entries.map(|entry| entry.map(|e| e.file_name())).collect::<io::Result<Vec<_>>>());
        let mut names = match names {
            Ok(names) => names,
            Err(error) => {
                source.left_out.add(&dir, &error.to_string());
                continue;
            }
        };
        names.sort();
        let mut directories = Vec::new();
        for name in names {
            let path = dir.join(&name);
            let meta = source.root.join(&path).symlink_metadata();
            match meta {
                _ if name.as_bytes().starts_with(RESERVED) => source.left_out.add(&path, "the name is reserved"),
                Err(error) => source.left_out.add(&path, &error.to_string()),
                Ok(meta) if meta.is_dir() => directories.push(path),
                Ok(meta) if meta.is_file() || meta.is_symlink() => {
                    let size = if meta.is_file() { meta.len() } else { 0 };
                    let beyond = |max: Bound| source.files >= max.files || source.bytes + size > max.bytes;
                    if max.is_some_and(beyond) || cancel.load(Ordering::Relaxed) {
                        source.cut = true;
                        return source;
                    }
                    source.files += 1;
                    source.bytes += size;
                    source.disk_bytes += size.div_ceil(BLOCK_BYTES) * BLOCK_BYTES;
                    source.entries.push((path, if meta.is_file() { Kind::File } else { Kind::Symlink }));
                }
                Ok(_) => source.left_out.add(&path, "it is neither file, link nor directory"),
            }
        }
        source.disk_bytes += BLOCK_BYTES * directories.len() as u64;
        source.entries.extend(directories.iter().map(|d| (d.clone(), Kind::Directory)));
        open.extend(directories.into_iter().rev());
    }
    source
}

impl Source {
    /// What three copies and what the members keep beside them take, about.
    pub(crate) fn need_bytes(&self) -> u64 {
        const MEMBERS_BYTES: u64 = 30_000_000;
        self.disk_bytes.saturating_mul(3).saturating_add(self.files * 6_000).saturating_add(MEMBERS_BYTES)
    }

    /// Copies the tree: names, types, bytes, permissions, times of files, as root also owners. What cannot be read, or
    /// vanished since it was listed, is left out.
    ///
    /// # Errors
    /// Where the copy cannot be written, or `cancel` is set.
    pub(crate) fn copy(&self, to: &Path, progress: &Progress, cancel: &Cancel) -> Result<LeftOut, Failure> {
        let mut left_out = LeftOut::default();
        let root = rustix::process::geteuid().is_root();
        for (path, kind) in &self.entries {
            if cancel.load(Ordering::Relaxed) {
                return Err(Failure::failed("copying was ended early"));
            }
            let (from, to) = (self.root.join(path), to.join(path));
            let done = from.symlink_metadata().and_then(|meta| match kind {
                Kind::Directory => copy_directory(&meta, &to, root),
                Kind::Symlink => copy_link(&from, &meta, &to, root),
                Kind::File => copy_file(&from, &to, root, cancel),
            });
            match done {
                Ok(()) if *kind == Kind::Directory => {}
                Ok(()) => {
                    progress.files.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) if fatal(&error) => {
                    let path = shown(to.as_os_str().as_bytes());
                    return Err(Failure::failed(format!("cannot copy to {path}"))
                        .because(error.to_string())
                        .hint("set TMPDIR to a directory with more room, or name a smaller tree with --from DIR"));
                }
                Err(error) => {
                    // Nothing half copied stays; if there is nothing to remove that is as well.
                    let _ = fs::remove_file(&to);
                    left_out.add(path, &error.to_string());
                }
            }
        }
        if progress.files.load(Ordering::Relaxed) == 0 && self.files > 0 {
            let cause = left_out.words().unwrap_or_default();
            return Err(Failure::failed("nothing of the tree could be copied").because(cause));
        }
        Ok(left_out)
    }

    /// In words, after copying.
    pub(crate) fn copied_words(&self, progress: &Progress) -> String {
        format!("{} of {} copied", grouped(progress.files.load(Ordering::Relaxed)), grouped(self.files))
    }
}

/// Is there no point in going on?
fn fatal(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | ReadOnlyFilesystem)
}

fn copy_directory(meta: &Metadata, to: &Path, root: bool) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o700).create(to)?;
    let mut mode = meta.mode() & 0o7777;
    if root {
        std::os::unix::fs::lchown(to, Some(meta.uid()), Some(meta.gid()))?;
    } else {
        // An ordinary user can fill and empty only what he may write.
        mode |= 0o700;
    }
    fs::set_permissions(to, fs::Permissions::from_mode(mode))
}

fn copy_link(from: &Path, meta: &Metadata, to: &Path, root: bool) -> io::Result<()> {
    std::os::unix::fs::symlink(fs::read_link(from)?, to)?;
    if root {
        std::os::unix::fs::lchown(to, Some(meta.uid()), Some(meta.gid()))?;
    }
    Ok(())
}

fn copy_file(from: &Path, to: &Path, root: bool, cancel: &Cancel) -> io::Result<()> {
    /// Between two looks whether to end.
    const STEP_BYTES: u64 = 64 << 20;
    let source = File::open(from)?;
    let meta = source.metadata()?;
    let mut target = File::options().write(true).create_new(true).mode(0o600).open(to)?;
    while io::copy(&mut (&source).take(STEP_BYTES), &mut target)? == STEP_BYTES {
        if cancel.load(Ordering::Relaxed) {
            break;
        }
    }
    if root {
        std::os::unix::fs::fchown(&target, Some(meta.uid()), Some(meta.gid()))?;
    }
    // After the owner, whose change clears set-id bits.
    target.set_permissions(fs::Permissions::from_mode(meta.mode() & 0o7777))?;
    let times = fs::FileTimes::new().set_modified(meta.modified()?);
    // Before the close, so that members see the file once, complete.
    target.set_times(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("anabranch-test-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[test]
    fn a_tree_is_listed_parents_first_and_copied_as_it_is() {
        let dir = scratch("copy");
        let from = dir.join("from");
        fs::create_dir_all(from.join("d/e")).unwrap();
        fs::create_dir_all(from.join(".anabranch")).unwrap();
        fs::write(from.join(".anabranch/database"), "x").unwrap();
        fs::write(from.join("d/e/file"), "hello").unwrap();
        fs::set_permissions(from.join("d/e/file"), fs::Permissions::from_mode(0o640)).unwrap();
        let time = std::time::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
        File::options().write(true).open(from.join("d/e/file")).unwrap().set_modified(time).unwrap();
        std::os::unix::fs::symlink("nowhere", from.join("link")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, from.join("fifo"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
            .unwrap();
        let source = list(from, None, &Cancel::default());
        assert_eq!((source.files, source.bytes, source.cut, source.left_out.count), (2, 5, false, 2));
        let to = dir.join("to");
        fs::create_dir(&to).unwrap();
        let progress = Progress::default();
        let left_out = source.copy(&to, &progress, &Cancel::default()).unwrap();
        assert_eq!((left_out.count, progress.files.load(Ordering::Relaxed)), (0, 2));
        assert_eq!(fs::read(to.join("d/e/file")).unwrap(), b"hello");
        let meta = to.join("d/e/file").metadata().unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.modified().unwrap()), (0o640, time));
        assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("nowhere"));
        assert!(!to.join(".anabranch").exists() && !to.join("fifo").exists());
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn the_bound_holds_in_files_and_in_bytes() {
        let dir = scratch("bound");
        for number in 0..10 {
            fs::write(dir.join(format!("f{number}")), [0; 100]).unwrap();
        }
        let of = |files, bytes| {
            let source = list(dir.clone(), Some(Bound { files, bytes }), &Cancel::default());
            (source.files, source.bytes, source.cut)
        };
        assert_eq!(of(3, 1_000_000), (3, 300, true));
        assert_eq!(of(100, 450), (4, 400, true));
        assert_eq!(of(10, 1_000), (10, 1_000, false));
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn what_vanished_is_left_out_and_the_rest_is_copied() {
        let dir = scratch("vanished");
        let (from, to) = (dir.join("from"), dir.join("to"));
        fs::create_dir_all(&from).unwrap();
        fs::create_dir_all(&to).unwrap();
        fs::write(from.join("a"), "a").unwrap();
        fs::write(from.join("b"), "b").unwrap();
        let source = list(from.clone(), None, &Cancel::default());
        fs::remove_file(from.join("a")).unwrap();
        let left_out = source.copy(&to, &Progress::default(), &Cancel::default()).unwrap();
        assert!(left_out.words().is_some_and(|w| w.starts_with("1 entry is left out, such as a: ")));
        assert!(!to.join("a").exists() && to.join("b").exists());
        fs::remove_dir_all(&dir).unwrap();
    }
}
