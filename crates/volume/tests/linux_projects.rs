//! Directories of other projects (quotas), on XFS: what is renamed into them, or exchanged, joins them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(clippy::print_stdout, reason = "a test that leaves something out says so")]

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use anabranch_volume::fs::Fs;
use anabranch_volume::linux::LinuxFs;
use common::{Mounted, must};

/// The project of an entry, as `lsattr` tells.
fn project(path: &Path) -> String {
    let output = Command::new("lsattr").args(["-d", "-p"]).arg(path).output().unwrap();
    String::from_utf8_lossy(&output.stdout).split_whitespace().next().unwrap_or_default().to_owned()
}

/// A folder with a directory `a` of project 41, `b` of project 42, and staging of none.
fn folder() -> Option<(Mounted, LinuxFs)> {
    let mounted = Mounted::new("xfs")?;
    for (name, project) in [("a", "41"), ("b", "42"), ("staging", "0")] {
        let path = mounted.dir(&format!("root/{name}"));
        if project != "0" {
            must("chattr", &["-p", project, "+P"], &path);
        }
    }
    let fs = LinuxFs::open(&mounted.path().join("root")).unwrap();
    Some((mounted, fs))
}

#[test]
fn what_is_put_into_another_project_joins_it() {
    let Some((mounted, fs)) = folder() else { return };
    let root = mounted.path().join("root");
    let open = |name: &[u8]| fs.open_dir(&fs.root(), name).unwrap();
    let (a, b, staging) = (open(b"a"), open(b"b"), open(b"staging"));

    // A new file, and one that takes the place of another and goes back again.
    drop(fs.create_file(&staging, b"one").unwrap());
    fs.rename_new(&staging, b"one", &a, b"one").unwrap();
    assert_eq!(project(&root.join("a/one")), "41");
    drop(fs.create_file(&staging, b"two").unwrap());
    let before = fs.stat(&a, b"one").unwrap().unwrap();
    fs.exchange(&staging, b"two", &a, b"one").unwrap();
    let out = fs.stat(&staging, b"two").unwrap().unwrap();
    assert_eq!((&out.object, out.stamp.mtime), (&before.object, before.stamp.mtime));
    assert_eq!(project(&root.join("a/one")), "41");
    fs.exchange(&staging, b"two", &a, b"one").unwrap();
    assert_eq!(fs.stat(&a, b"one").unwrap().unwrap().object, before.object);

    // From one project to the other, and both ways at once.
    fs.rename_new(&a, b"one", &b, b"one").unwrap();
    fs::write(root.join("a/here"), b"here").unwrap();
    fs::write(root.join("b/there"), b"there").unwrap();
    fs.exchange(&a, b"here", &b, b"there").unwrap();
    assert_eq!(fs::read(root.join("a/here")).unwrap(), b"there");
    let projects = ["b/one", "a/here", "b/there"].map(|name| project(&root.join(name)));
    assert_eq!(projects, ["42", "41", "42"]);

    // A name that is taken stays what it was.
    drop(fs.create_file(&staging, b"late").unwrap());
    let taken = fs.rename_new(&staging, b"late", &a, b"here").unwrap_err();
    assert_eq!(taken.kind(), std::io::ErrorKind::AlreadyExists);
}

#[test]
fn a_directory_joins_with_all_that_is_in_it() {
    let Some((mounted, fs)) = folder() else { return };
    let root = mounted.path().join("root");
    fs::create_dir_all(root.join("a/tree/deep")).unwrap();
    fs::write(root.join("a/tree/deep/file"), b"1").unwrap();
    fs::create_dir(root.join("a/tree/own")).unwrap();
    must("chattr", &["-p", "43"], &root.join("a/tree/own"));
    let open = |name: &[u8]| fs.open_dir(&fs.root(), name).unwrap();
    fs.rename_new(&open(b"a"), b"tree", &open(b"b"), b"tree").unwrap();
    for name in ["b/tree", "b/tree/deep", "b/tree/deep/file"] {
        assert_eq!(project(&root.join(name)), "42", "{name}");
    }
    // What somebody gave a project of its own keeps it.
    assert_eq!(project(&root.join("b/tree/own")), "43");
    fs::write(root.join("b/tree/new"), b"2").unwrap();
    assert_eq!(project(&root.join("b/tree/new")), "42");
}

#[test]
fn a_symlink_is_made_where_it_may_be_renamed_from() {
    let Some((mounted, fs)) = folder() else { return };
    let root = mounted.path().join("root");
    let open = |name: &[u8]| fs.open_dir(&fs.root(), name).unwrap();
    let (a, staging) = (open(b"a"), open(b"staging"));
    for target in ["first", "second"] {
        fs.create_symlink_for(&staging, b"link", target.as_bytes(), &a).unwrap();
        if target == "first" {
            fs.rename_new(&staging, b"link", &a, b"link").unwrap();
        } else {
            fs.exchange(&staging, b"link", &a, b"link").unwrap();
        }
        assert_eq!(fs::read_link(root.join("a/link")).unwrap(), Path::new(target));
    }
    // Where no project is handed down nothing is made beside it.
    fs.create_symlink_for(&staging, b"plain", b"third", &fs.root()).unwrap();
    let mut names: Vec<_> = fs.list(&staging).unwrap().into_iter().map(|e| e.name).collect();
    names.sort();
    assert_eq!(names, [&b"link"[..], b"plain", b"project-41"]);
}
