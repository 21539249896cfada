//! What the member relies on of a file system, tried on the simulated one and on a real one, so that the twin is
//! honest. Each check works in an empty root.

use std::io::ErrorKind;

use anabranch_model::{Attributes, Timestamp};

use crate::fs::{Fs, Kind, Lease, Stat};

/// The name of a check's directory, and the check.
type Check<F> = (&'static [u8], fn(&F, &<F as Fs>::Dir));

/// Runs all checks, each in a directory of its own beneath the root.
pub(crate) fn conformance<F: Fs>(fs: &F) {
    let checks: [Check<F>; 10] = [
        (b"files", files),
        (b"names", names),
        (b"directories", directories),
        (b"symlinks", symlinks),
        (b"renames", renames),
        (b"exchanges", exchanges),
        (b"attributes", attributes),
        (b"handles", handles),
        (b"displaced", displaced),
        (b"sparse", sparse),
    ];
    for (name, check) in checks {
        fs.create_dir(&fs.root(), name).unwrap();
        check(fs, &fs.open_dir(&fs.root(), name).unwrap());
    }
}

fn put<F: Fs>(fs: &F, dir: &F::Dir, name: &[u8], bytes: &[u8]) -> Stat {
    let file = fs.create_file(dir, name).unwrap();
    fs.write_at(&file, bytes, 0).unwrap();
    fs.sync_file(&file).unwrap();
    fs.stat_file(&file).unwrap()
}

fn get<F: Fs>(fs: &F, dir: &F::Dir, name: &[u8]) -> Vec<u8> {
    let file = fs.open_file(dir, name).unwrap();
    let mut out = vec![0; 4096];
    let count = fs.read_at(&file, &mut out, 0).unwrap();
    out.truncate(count);
    out
}

fn kind<T>(result: std::io::Result<T>) -> ErrorKind {
    result.err().unwrap().kind()
}

fn stat<F: Fs>(fs: &F, dir: &F::Dir, name: &[u8]) -> Stat {
    fs.stat(dir, name).unwrap().unwrap()
}

fn files<F: Fs>(fs: &F, dir: &F::Dir) {
    assert_eq!(fs.stat(dir, b"a").unwrap(), None);
    assert_eq!(kind(fs.open_file(dir, b"a")), ErrorKind::NotFound);
    let made = put(fs, dir, b"a", b"hello");
    assert_eq!((made.kind, made.stamp.size, made.mode & 0o7777, made.links), (Kind::File, 5, 0o600, 1));
    assert_eq!(stat(fs, dir, b"a").object, made.object);
    assert_eq!(kind(fs.create_file(dir, b"a")), ErrorKind::AlreadyExists);
    assert_eq!(get(fs, dir, b"a"), b"hello");

    let file = fs.open_private(dir, b"a").unwrap();
    fs.write_at(&file, b"!!", 7).unwrap();
    assert_eq!(get(fs, dir, b"a"), b"hello\0\0!!");
    fs.set_size(&file, 4).unwrap();
    let mut part = [0; 8];
    assert_eq!(fs.read_at(&file, &mut part, 2).unwrap(), 2);
    assert_eq!(&part[..2], b"ll");
    assert_eq!(fs.read_at(&file, &mut part, 9).unwrap(), 0);
    let reading = fs.open_file(dir, b"a").unwrap();
    assert!(fs.write_at(&reading, b"x", 0).is_err(), "opened for reading only");

    fs.remove_file(dir, b"a").unwrap();
    assert_eq!(fs.stat(dir, b"a").unwrap(), None);
    assert_eq!(fs.stat_file(&file).unwrap().links, 0);
    assert_eq!(fs.read_at(&reading, &mut part, 0).unwrap(), 4, "an open file outlives its name");
    assert_eq!(kind(fs.remove_file(dir, b"a")), ErrorKind::NotFound);
}

fn names<F: Fs>(fs: &F, dir: &F::Dir) {
    let odd: [&[u8]; 4] = [b"\xff\xfe", b"a\nb", b" ", &[b'x'; 255]];
    for name in odd {
        put(fs, dir, name, name);
    }
    let mut listed: Vec<_> = fs.list(dir).unwrap().into_iter().map(|e| e.name).collect();
    listed.sort();
    let mut wanted: Vec<_> = odd.iter().map(|n| n.to_vec()).collect();
    wanted.sort();
    assert_eq!(listed, wanted);
    assert!(fs.create_file(dir, &[b'x'; 256]).is_err());
}

fn directories<F: Fs>(fs: &F, dir: &F::Dir) {
    fs.create_dir(dir, b"d").unwrap();
    assert_eq!(stat(fs, dir, b"d").mode & 0o7777, 0o700);
    assert_eq!(kind(fs.create_dir(dir, b"d")), ErrorKind::AlreadyExists);
    let d = fs.open_dir(dir, b"d").unwrap();
    assert_eq!(fs.stat_dir(&d).unwrap().object, stat(fs, dir, b"d").object);
    put(fs, &d, b"f", b"1");
    assert_eq!(kind(fs.remove_dir(dir, b"d")), ErrorKind::DirectoryNotEmpty);
    assert!(fs.remove_file(dir, b"d").is_err());
    assert!(fs.remove_dir(&d, b"f").is_err());
    assert!(fs.open_file(dir, b"d").is_err());
    assert_ne!(kind(fs.open_dir(&d, b"f")), ErrorKind::NotFound);
    fs.remove_file(&d, b"f").unwrap();
    fs.remove_dir(dir, b"d").unwrap();
    assert_eq!(kind(fs.create_file(&d, b"late")), ErrorKind::NotFound, "a removed directory takes nothing in");
    assert_eq!(kind(fs.open_dir(dir, b"d")), ErrorKind::NotFound);
}

fn symlinks<F: Fs>(fs: &F, dir: &F::Dir) {
    fs.create_symlink(dir, b"l", b"/nowhere/at all").unwrap();
    assert_eq!(stat(fs, dir, b"l").kind, Kind::Symlink);
    assert_eq!(fs.read_link(dir, b"l").unwrap(), b"/nowhere/at all");
    for result in [fs.open_file(dir, b"l").err(), fs.open_dir(dir, b"l").err()] {
        assert_ne!(result.unwrap().kind(), ErrorKind::NotFound, "a link is never followed, and is not absent");
    }
    assert_eq!(kind(fs.create_symlink(dir, b"l", b"x")), ErrorKind::AlreadyExists);
    let mtime = Timestamp { seconds: -2, nanoseconds: 7 };
    fs.set_mtime(dir, b"l", mtime).unwrap();
    assert_eq!(stat(fs, dir, b"l").stamp.mtime, mtime);
    fs.remove_file(dir, b"l").unwrap();
}

fn renames<F: Fs>(fs: &F, dir: &F::Dir) {
    fs.create_dir(dir, b"d").unwrap();
    let d = fs.open_dir(dir, b"d").unwrap();
    let a = put(fs, dir, b"a", b"1");
    put(fs, &d, b"b", b"2");
    assert_eq!(kind(fs.rename_new(dir, b"a", &d, b"b")), ErrorKind::AlreadyExists);
    assert_eq!(kind(fs.rename_new(dir, b"gone", &d, b"c")), ErrorKind::NotFound);
    fs.rename_new(dir, b"a", &d, b"c").unwrap();
    assert_eq!((fs.stat(dir, b"a").unwrap(), stat(fs, &d, b"c").object), (None, a.object));
    assert!(fs.rename_new(dir, b"d", &d, b"in itself").is_err());
    fs.rename_new(dir, b"d", dir, b"e").unwrap();
    assert_eq!(get(fs, &d, b"c"), b"1", "a handle stays with the directory");
}

fn exchanges<F: Fs>(fs: &F, dir: &F::Dir) {
    fs.create_dir(dir, b"d").unwrap();
    let d = fs.open_dir(dir, b"d").unwrap();
    let (a, b) = (put(fs, dir, b"a", b"1"), put(fs, &d, b"b", b"2"));
    fs.exchange(dir, b"a", &d, b"b").unwrap();
    assert_eq!((stat(fs, dir, b"a").object, stat(fs, &d, b"b").object), (b.object, a.object));
    assert_eq!(stat(fs, dir, b"a").stamp.mtime, b.stamp.mtime);
    assert_eq!(kind(fs.exchange(dir, b"a", &d, b"gone")), ErrorKind::NotFound);
    put(fs, dir, b"file", b"3");
    fs.exchange(dir, b"file", dir, b"d").unwrap();
    assert_eq!((stat(fs, dir, b"file").kind, stat(fs, dir, b"d").kind), (Kind::Directory, Kind::File));
    assert!(fs.exchange(dir, b"file", &d, b"b").is_err(), "a directory cannot go into itself");
}

fn attributes<F: Fs>(fs: &F, dir: &F::Dir) {
    put(fs, dir, b"a", b"1");
    let before = fs.read_attributes(dir, b"a").unwrap();
    assert_eq!(before.mode & 0o7777, 0o600);
    let mut wanted = Attributes { mode: 0o750, ..before };
    wanted.xattrs.insert((*b"user.one").into(), (*b"\0\xff").into());
    wanted.xattrs.insert((*b"user.empty").into(), Box::default());
    let is = fs.write_attributes(dir, b"a", &wanted).unwrap();
    assert_eq!(is, fs.read_attributes(dir, b"a").unwrap(), "what is said is what is there");
    assert_eq!((is.mode & 0o7777, is.xattrs.len()), (0o750, 2));
    wanted.xattrs.remove(&b"user.one"[..]);
    assert_eq!(fs.write_attributes(dir, b"a", &wanted).unwrap().xattrs.len(), 1, "what is not wanted goes");
    for mtime in [(-1, 999_999_999), (5_000_000_000, 1)] {
        let mtime = Timestamp { seconds: mtime.0, nanoseconds: mtime.1 };
        fs.set_mtime(dir, b"a", mtime).unwrap();
        assert_eq!(stat(fs, dir, b"a").stamp.mtime, mtime);
    }
}

fn handles<F: Fs>(fs: &F, dir: &F::Dir) {
    if !fs.abilities().handles {
        return;
    }
    let made = put(fs, dir, b"a", b"1");
    let here = fs.stat_dir(dir).unwrap().object;
    assert_eq!(fs.locate(&made.object).unwrap(), Some((here.clone(), b"a".to_vec())));
    fs.rename_new(dir, b"a", dir, b"b").unwrap();
    assert_eq!(fs.locate(&made.object).unwrap(), Some((here, b"b".to_vec())));
    fs.remove_file(dir, b"b").unwrap();
    assert_eq!(fs.locate(&made.object).unwrap(), None);
    assert_ne!(put(fs, dir, b"a", b"1").object, made.object, "never repeats");
}

/// The install order on one file: lease, exchange, look.
fn displaced<F: Fs>(fs: &F, dir: &F::Dir) {
    put(fs, dir, b"a", b"old");
    put(fs, dir, b"private", b"new");
    let old = fs.open_file(dir, b"a").unwrap();
    let writer = fs.open_private(dir, b"a").unwrap();
    if fs.abilities().leases {
        assert_eq!(fs.lease(&old).unwrap(), Lease::InUse);
        drop(writer);
        assert_eq!(fs.lease(&old).unwrap(), Lease::Granted);
        assert!(fs.lease_unbroken(&old).unwrap());
    }
    fs.exchange(dir, b"a", dir, b"private").unwrap();
    let out = stat(fs, dir, b"private");
    assert_eq!(out.object, fs.stat_file(&old).unwrap().object);
    if fs.abilities().leases {
        assert!(fs.lease_unbroken(&old).unwrap());
        fs.release(&old).unwrap();
        assert!(!fs.lease_unbroken(&old).unwrap());
    }
    assert_eq!(get(fs, dir, b"a"), b"new");
    fs.sync_dir(dir).unwrap();
    fs.sync_all().unwrap();
}

fn sparse<F: Fs>(fs: &F, dir: &F::Dir) {
    const HOLE: u64 = 1 << 20;
    let file = fs.create_file(dir, b"a").unwrap();
    fs.set_size(&file, 3 * HOLE).unwrap();
    fs.write_at(&file, &[7; 4096], HOLE).unwrap();
    fs.sync_file(&file).unwrap();
    let stat = fs.stat_file(&file).unwrap();
    assert!(stat.blocks * 512 < stat.stamp.size, "{} blocks", stat.blocks);
    let (from, to) = fs.data_range(&file, 0).unwrap().unwrap();
    assert!(from <= HOLE && (HOLE + 4096..3 * HOLE).contains(&to), "{from} {to}");
    assert_eq!(fs.data_range(&file, to).unwrap(), None);
    assert_eq!(fs.data_range(&file, 3 * HOLE).unwrap(), None);
    let mut bytes = [1; 16];
    assert_eq!(fs.read_at(&file, &mut bytes, 16).unwrap(), 16);
    assert_eq!(bytes, [0; 16]);
}
