//! Trees to replicate: one with an example of everything that is carried, one of many files, and real ones.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, XattrFlags, lsetxattr, utimensat};

use crate::program::tool;
use crate::random::Random;
use crate::skip;

/// Names that programs stumble over: blanks, quotes, newlines, control characters, bytes that are not UTF-8, composed and
/// decomposed letters, pairs that differ in case, and the longest one.
#[must_use]
pub fn odd_names() -> Vec<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = [
        " lead",
        "trail ",
        "a'b\"c",
        "a\nb",
        "a\tb\r",
        "\u{1b}[31m",
        "-rf",
        "--",
        "*?[x]",
        "$(x)`y`",
        "a\\b",
        "%s%n",
        "#x#",
        "~x",
        "x~",
        ".hidden",
        "...",
        "NFC-\u{e9}",
        "NFD-e\u{301}",
        "Case",
        "case",
        "日本語",
        "a:b",
        "con",
        "x.",
    ]
    .iter()
    .map(|name| name.as_bytes().to_vec())
    .collect();
    names.push(b"not-utf8-\xff\xfe".to_vec());
    names.push(vec![b'n'; 255]);
    names.push(vec![0xff; 255]);
    names
}

/// One of everything that an ordinary user can make; as root, owners and set-id bits besides.
///
/// # Errors
/// When something cannot be made.
pub fn everything(root: &Path) -> Result<()> {
    for name in odd_names() {
        let name = OsStr::from_bytes(&name);
        write(&root.join("names").join(name), name.as_bytes())?;
        fs::create_dir_all(root.join("directories").join(name)).context("make a directory")?;
    }
    fs::create_dir_all(root.join("empty/in/empty")).context("make empty directories")?;
    write(&root.join("empty file"), b"")?;
    links(root)?;
    modes(root)?;
    times(root)?;
    sparse(&root.join("sparse"))?;
    xattrs(root)?;
    acls(root)?;
    deep(root)
}

fn links(root: &Path) -> Result<()> {
    let dir = root.join("links");
    fs::create_dir_all(&dir).context("make a directory")?;
    let targets: [(&str, &str); 5] =
        [("dangling", "no/such"), ("absolute", "/etc/passwd"), ("self", "self"), ("up", "../../.."), ("odd", "a\nb ")];
    for (name, target) in targets {
        symlink(target, dir.join(name)).with_context(|| format!("link {name}"))?;
    }
    symlink(OsStr::from_bytes(&[0xff; 1000]), dir.join("long")).context("make a long link")
}

fn modes(root: &Path) -> Result<()> {
    for mode in [0o400, 0o600, 0o644, 0o755, 0o777, 0o1644] {
        let path = root.join(format!("modes/{mode:o}"));
        write(&path, b"mode")?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).context("set a mode")?;
    }
    if skip::is_root() {
        for (number, mode) in [(1, 0o4755), (65_534, 0o2755), (123_456, 0o640)] {
            let path = root.join(format!("modes/owner {number}"));
            write(&path, b"owner")?;
            std::os::unix::fs::chown(&path, Some(number), Some(number)).context("set an owner")?;
            // After the owner: changing that clears set-id bits.
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).context("set a mode")?;
        }
    }
    Ok(())
}

/// Times before 1970, to the nanosecond, and beyond 2038 and 2106.
fn times(root: &Path) -> Result<()> {
    let seconds =
        [("before 1970", -1_000_000), ("1970", 0), ("beyond 2038", 2_200_000_000), ("beyond 2106", 4_400_000_000)];
    for (name, seconds) in seconds {
        let path = root.join("times").join(name);
        write(&path, name.as_bytes())?;
        set_mtime(&path, seconds, 123_456_789)?;
    }
    Ok(())
}

/// Sets a modification time, not following symlinks.
///
/// # Errors
/// When the file system refuses.
pub fn set_mtime(path: &Path, seconds: i64, nanoseconds: i64) -> Result<()> {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
        .with_context(|| format!("set the time of {}", path.display()))
}

/// 64 MiB with 8 KiB of data: at the start, in the middle, not at the end.
fn sparse(path: &Path) -> Result<()> {
    let file = File::create(path).context("make a sparse file")?;
    file.set_len(64 << 20).context("set a length")?;
    file.write_all_at(&[1; 4096], 0).context("write at the start")?;
    file.write_all_at(&[2; 4096], 32 << 20).context("write in the middle")
}

fn xattrs(root: &Path) -> Result<()> {
    let dir = root.join("xattrs");
    fs::create_dir_all(&dir).context("make a directory")?;
    let path = dir.join("file");
    write(&path, b"xattrs")?;
    // 2 KiB: ext4 with small blocks takes little more in all.
    for (name, value) in [("user.empty", vec![]), ("user.binary", vec![0, 255, 10]), ("user.large", vec![b'x'; 2048])] {
        if let Err(error) = lsetxattr(&path, name, &value, XattrFlags::empty()) {
            skip::skip(&format!("no user xattrs on this file system: {error}"));
            return Ok(());
        }
    }
    lsetxattr(&dir, "user.directory", b"yes", XattrFlags::empty()).context("set an xattr of a directory")?;
    if skip::is_root() {
        let acl = [4_u8, 0, 4, 0, 0, 0, 0, 0].repeat(8);
        lsetxattr(&path, "security.NTACL", &acl, XattrFlags::empty()).context("set security.NTACL")?;
    }
    Ok(())
}

fn acls(root: &Path) -> Result<()> {
    if !skip::has_program("setfacl") {
        skip::skip("setfacl is not installed: a tree without ACLs");
        return Ok(());
    }
    let dir = root.join("acls");
    fs::create_dir_all(&dir).context("make a directory")?;
    write(&dir.join("file"), b"acl")?;
    tool(&dir, "setfacl", &["-m", "u:1:rw,g:2:r,m::rwx", "file"])?;
    tool(&dir, "setfacl", &["-d", "-m", "u:1:rwx", "."])?;
    write(&dir.join("inherited"), b"acl by default")
}

/// A path longer than the kernel takes in one piece would not be made by a user; one of 3,000 bytes is.
fn deep(root: &Path) -> Result<()> {
    let mut path = root.join("deep");
    for _ in 0..15 {
        path.push("d".repeat(200));
    }
    fs::create_dir_all(&path).context("make a deep directory")?;
    write(&path.join("bottom"), b"deep")
}

/// Writes a file, making its directory first.
///
/// # Errors
/// When it cannot be written.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
    }
    fs::write(path, bytes).with_context(|| format!("write {}", path.display()))
}

/// Many small files, some 25 to a directory.
///
/// # Errors
/// When one cannot be written.
pub fn many(root: &Path, files: u64, random: &mut Random) -> Result<()> {
    for number in 0..files {
        let length = random.within(1..8192);
        let bytes = random.bytes(usize::try_from(length).unwrap_or(1));
        write(&root.join(format!("d{:03}/f{number:05}", number / 25)), &bytes)?;
    }
    Ok(())
}

/// Copies a real tree as it is: whole directories, until there are about so many files. Gives how many there are.
///
/// # Errors
/// When copying fails.
pub fn real(from: &Path, to: &Path, files: usize) -> Result<usize> {
    let mut copied = 0;
    let mut entries: Vec<PathBuf> = fs::read_dir(from)
        .with_context(|| format!("list {}", from.display()))?
        .map_while(Result::ok)
        .map(|entry| entry.path())
        .collect();
    entries.sort();
    for entry in entries {
        let size = count(&entry);
        // One huge directory must not use up the whole allowance, nor exceed it.
        if copied + size > files {
            continue;
        }
        let paths = [entry.as_os_str(), to.as_os_str()];
        tool(to, "cp", &[OsStr::new("-a"), OsStr::new("--"), paths[0], paths[1]])?;
        copied += size;
    }
    Ok(copied)
}

fn count(path: &Path) -> usize {
    let directory = path.symlink_metadata().is_ok_and(|meta| meta.is_dir());
    let Some(entries) = directory.then(|| fs::read_dir(path).ok()).flatten() else { return 1 };
    1 + entries.map_while(Result::ok).map(|entry| count(&entry.path())).sum::<usize>()
}
