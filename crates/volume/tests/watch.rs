//! The watcher on real file systems, by fanotify and by inotify: every change has its hint.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind::PermissionDenied;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anabranch_model::{Owner, Timestamp};
use anabranch_volume::fs::{Fs, Lease, Object};
use anabranch_volume::linux::LinuxFs;
use anabranch_volume::watch::{Hint, Options, WatchKind, Watcher};
use common::mirror::Mirror;
use common::{Mounted, has, must, on_each, run};

const BOTH: [WatchKind; 2] = [WatchKind::Fanotify, WatchKind::Inotify];
/// Nothing here takes longer, unless hints are missing.
const PATIENCE: Duration = Duration::from_secs(20);

/// A watched folder with all hints so far.
struct Watched {
    path: PathBuf,
    fs: LinuxFs,
    watcher: Watcher,
    /// Directory, name, closed after write.
    entries: BTreeSet<(Object, Vec<u8>, bool)>,
    directories: BTreeSet<Object>,
    everything: u32,
    sentinels: u32,
}

impl Watched {
    fn new(path: PathBuf, options: Options) -> Self {
        let fs = LinuxFs::open(&path).unwrap();
        let best = options.best;
        let (watcher, kind) = Watcher::start(&fs, options).unwrap();
        assert_eq!(kind, best);
        Self { path, fs, watcher, entries: BTreeSet::new(), directories: BTreeSet::new(), everything: 0, sentinels: 0 }
    }

    fn take(&mut self, batch: Vec<Hint>) {
        for hint in batch {
            match hint {
                Hint::Entry { directory, name, closed_after_write } => {
                    self.entries.insert((directory, name, closed_after_write));
                }
                Hint::Directory { directory } => {
                    self.directories.insert(directory);
                }
                Hint::Everything => self.everything += 1,
            }
        }
    }

    /// Waits until all that happened before has come out: until a file made now has. Twice, since one batch may be
    /// cut in two.
    fn settle(&mut self) {
        for _ in 0..2 {
            self.sentinels += 1;
            let name = format!("sentinel {}", self.sentinels).into_bytes();
            let (root, everything) = (self.fs.root_object().clone(), self.everything);
            drop(self.fs.create_file(&self.fs.root(), &name).unwrap());
            let until = Instant::now() + PATIENCE;
            while !self.entries.contains(&(root.clone(), name.clone(), true)) && self.everything == everything {
                let left = until.saturating_duration_since(Instant::now());
                let batch = self.watcher.hints().recv_timeout(left).expect("a hint of the sentinel");
                self.take(batch);
            }
        }
    }

    fn object(&self, path: &str) -> Object {
        let mut dir = self.fs.root();
        for name in path.split('/').filter(|n| !n.is_empty()) {
            dir = self.fs.open_dir(&dir, name.as_bytes()).unwrap();
        }
        self.fs.stat_dir(&dir).unwrap().object
    }

    /// Was there a hint of this entry, or of all of a directory that is newly watched? Forgets it.
    #[track_caller]
    fn expect(&mut self, directory: &Object, name: &str, closed: bool) {
        if self.directories.contains(directory) {
            return;
        }
        let plain = self.entries.remove(&(directory.clone(), name.into(), false));
        let written = self.entries.remove(&(directory.clone(), name.into(), true));
        assert!(plain || written, "no hint of {name} by {:?}", self.watcher.kind());
        if closed {
            assert!(written, "no close of {name}");
        }
    }

    fn forget(&mut self) {
        self.entries.clear();
        self.directories.clear();
        self.everything = 0;
    }
}

fn quick(best: WatchKind) -> Options {
    let (settle, written) = (Duration::from_millis(1), Duration::from_millis(100));
    Options { best, settle, written, ..Options::default() }
}

/// On each file system, by both means; the folder is not the file system's root.
fn on_each_by_both(test: impl Fn(&Mounted, Watched)) {
    on_each(|m| {
        for best in BOTH {
            let path = m.dir(&format!("{best:?}"));
            test(m, Watched::new(path, quick(best)));
        }
    });
}

#[test]
fn each_kind_of_change_gives_its_hint() {
    on_each_by_both(|_, mut w| {
        let root = w.fs.root_object().clone();
        let path = w.path.clone();
        let at = |name: &str| path.join(name);

        fs::write(at("made"), b"1").unwrap();
        fs::create_dir(at("dir")).unwrap();
        symlink("/", at("link")).unwrap();
        w.settle();
        w.expect(&root, "made", true);
        w.expect(&root, "dir", false);
        w.expect(&root, "link", false);
        let dir = w.object("dir");
        w.forget();

        // In a directory made after the watching began.
        fs::write(at("dir/written"), b"1").unwrap();
        w.settle();
        w.expect(&dir, "written", true);
        w.forget();

        let mut file = fs::OpenOptions::new().append(true).open(at("dir/written")).unwrap();
        file.write_all(b"2").unwrap();
        drop(file);
        w.settle();
        w.expect(&dir, "written", true);
        w.forget();

        fs::rename(at("made"), at("renamed")).unwrap();
        fs::rename(at("dir/written"), at("crossed")).unwrap();
        w.settle();
        w.expect(&root, "made", false);
        w.expect(&root, "renamed", false);
        w.expect(&dir, "written", false);
        w.expect(&root, "crossed", false);
        w.forget();

        let r = w.fs.root();
        w.fs.exchange(&r, b"renamed", &r, b"crossed").unwrap();
        w.settle();
        w.expect(&root, "renamed", false);
        w.expect(&root, "crossed", false);
        w.forget();

        fs::rename(at("renamed"), at("crossed")).unwrap();
        w.settle();
        w.expect(&root, "renamed", false);
        w.expect(&root, "crossed", false);
        w.forget();

        fs::set_permissions(at("crossed"), fs::Permissions::from_mode(0o640)).unwrap();
        fs::hard_link(at("crossed"), at("second")).unwrap();
        w.settle();
        w.expect(&root, "crossed", false);
        w.expect(&root, "second", false);
        w.forget();
        w.fs.set_mtime(&r, b"link", Timestamp { seconds: 5, nanoseconds: 0 }).unwrap();
        must("setfattr", &["-n", "user.x", "-v", "y"], &at("crossed"));
        w.settle();
        w.expect(&root, "crossed", false);
        // The modification time alone: as a write, which waits for a close.
        while !w.entries.contains(&(root.clone(), b"link".to_vec(), false)) {
            let batch = w.watcher.hints().recv_timeout(PATIENCE).expect("a hint of the link");
            w.take(batch);
        }
        w.forget();

        // Of a directory: by its place in its parent.
        if has("setfacl") {
            must("setfacl", &["-m", "u:1000:rx"], &at("dir"));
            w.settle();
            w.expect(&root, "dir", false);
            w.forget();
        }
        fs::set_permissions(at("dir"), fs::Permissions::from_mode(0o711)).unwrap();
        w.settle();
        w.expect(&root, "dir", false);
        w.forget();
        // Of the root itself.
        fs::set_permissions(&w.path, fs::Permissions::from_mode(0o711)).unwrap();
        w.settle();
        assert!(w.directories.contains(&root));
        w.forget();

        fs::remove_file(at("crossed")).unwrap();
        fs::remove_dir(at("dir")).unwrap();
        w.settle();
        w.expect(&root, "crossed", false);
        w.expect(&root, "dir", false);
        assert_eq!(w.everything, 0);
    });
}

#[test]
fn a_write_without_a_close_is_hinted_at_after_a_while_and_with_one_at_once() {
    on_each(|m| {
        for best in BOTH {
            let mut w = Watched::new(m.dir(&format!("{best:?}")), Options { written: PATIENCE * 100, ..quick(best) });
            let root = w.fs.root_object().clone();
            let mut file = fs::File::create(w.path.join("log")).unwrap();
            w.settle();
            w.forget();
            file.write_all(b"1").unwrap();
            w.settle();
            assert!(!w.entries.iter().any(|(_, name, _)| name == b"log"));
            drop(file);
            w.settle();
            w.expect(&root, "log", true);

            let options = Options { written: Duration::from_millis(30), ..quick(best) };
            let mut w = Watched::new(m.dir(&format!("{best:?} quick")), options);
            let root = w.fs.root_object().clone();
            let mut wait = |change: &dyn Fn(&Path), name: &str| {
                w.settle();
                w.forget();
                change(&w.path.join(name));
                while !w.entries.iter().any(|(dir, n, _)| *dir == root && n == name.as_bytes()) {
                    let batch = w.watcher.hints().recv_timeout(PATIENCE).expect(name);
                    w.take(batch);
                }
            };
            let held = fs::File::create(m.path().join(format!("{best:?} quick/held"))).unwrap();
            wait(&|_| (&held).write_all(b"2").unwrap(), "held");
            fs::write(m.path().join(format!("{best:?} quick/file")), b"12345678").unwrap();
            wait(&|path| must("touch", &["-m", "-d", "2001-01-01"], path), "file");
            wait(
                &|path| {
                    let program = "import os,sys; os.truncate(sys.argv[1], 3)";
                    run(Command::new("python3").args(["-c", program]).arg(path));
                    assert_eq!(fs::read(path).unwrap(), b"123");
                },
                "file",
            );
            fs::create_dir(m.path().join(format!("{best:?} quick/dir"))).unwrap();
            wait(&|path| must("touch", &["-m", "-d", "2001-01-01"], path), "dir");
        }
    });
}

#[test]
fn what_is_stored_through_a_mapping_shows_when_it_is_let_go() {
    on_each_by_both(|_, mut w| {
        fs::write(w.path.join("mapped"), b"12345678").unwrap();
        w.settle();
        w.forget();
        let program = "import mmap,sys\nf=open(sys.argv[1],'r+b')\nm=mmap.mmap(f.fileno(),8)\nf.close()\nm[0:1]=b'x'\n";
        if !run(Command::new("python3").args(["-c", program]).arg(w.path.join("mapped"))) {
            return;
        }
        w.settle();
        let root = w.fs.root_object().clone();
        w.expect(&root, "mapped", true);
    });
}

#[test]
fn reserved_names_and_other_folders_give_no_hints() {
    on_each_by_both(|m, mut w| {
        w.settle();
        w.forget();
        let private = w.path.join(".anabranch");
        fs::create_dir_all(private.join("staging/deep")).unwrap();
        fs::write(private.join("staging/deep/file"), b"1").unwrap();
        fs::write(w.path.join(".anabranch-private"), b"1").unwrap();
        m.dir("other/dir");
        fs::write(m.path().join("other/dir/file"), b"1").unwrap();
        // The name of the root, prolonged, is not in the root.
        let mut prolonged = w.path.clone().into_os_string();
        prolonged.push("-too");
        fs::create_dir(&prolonged).unwrap();
        fs::write(Path::new(&prolonged).join("file"), b"1").unwrap();
        w.settle();
        w.entries.retain(|(_, name, _)| !name.starts_with(b"sentinel"));
        assert_eq!((&w.entries, &w.directories, w.everything), (&BTreeSet::new(), &BTreeSet::new(), 0));
        // What comes out of staging under a name does.
        fs::rename(private.join("staging/deep/file"), w.path.join("installed")).unwrap();
        fs::rename(w.path.join(".anabranch-private"), w.path.join("too")).unwrap();
        fs::rename(private.join("staging/deep"), w.path.join("dir")).unwrap();
        w.settle();
        let (root, dir) = (w.fs.root_object().clone(), w.object("dir"));
        w.expect(&root, "installed", false);
        w.expect(&root, "too", false);
        w.expect(&root, "dir", false);
        fs::write(w.path.join("dir/file"), b"1").unwrap();
        w.settle();
        w.expect(&dir, "file", true);
        // And what goes back in is out again.
        fs::rename(w.path.join("dir"), private.join("back")).unwrap();
        w.settle();
        w.expect(&root, "dir", false);
        w.forget();
        fs::write(private.join("back/file"), b"2").unwrap();
        w.settle();
        w.settle();
        assert!(!w.entries.iter().any(|(_, name, _)| name == b"file"));
        fs::remove_dir_all(&prolonged).unwrap();
    });
}

#[test]
fn trees_that_move_in_and_out_are_followed() {
    on_each_by_both(|m, mut w| {
        let outside = m.dir("outside");
        fs::create_dir_all(outside.join("tree/a/b/c")).unwrap();
        fs::write(outside.join("tree/a/b/c/file"), b"1").unwrap();
        w.settle();
        w.forget();
        fs::write(outside.join("tree/a/unseen"), b"1").unwrap();
        fs::rename(outside.join("tree"), w.path.join("tree")).unwrap();
        w.settle();
        let root = w.fs.root_object().clone();
        w.expect(&root, "tree", false);
        let (a, c) = (w.object("tree/a"), w.object("tree/a/b/c"));
        w.forget();
        fs::write(w.path.join("tree/a/b/c/file"), b"2").unwrap();
        fs::write(w.path.join("tree/a/new"), b"2").unwrap();
        w.settle();
        w.expect(&c, "file", true);
        w.expect(&a, "new", true);
        w.forget();
        // Within the folder, under another name: the same directories go on.
        fs::create_dir(w.path.join("below")).unwrap();
        fs::rename(w.path.join("tree"), w.path.join("below/moved")).unwrap();
        fs::write(w.path.join("below/moved/a/b/c/file"), b"3").unwrap();
        fs::create_dir(w.path.join("below/moved/a/b/new")).unwrap();
        fs::write(w.path.join("below/moved/a/b/new/file"), b"3").unwrap();
        w.settle();
        let (below, new) = (w.object("below"), w.object("below/moved/a/b/new"));
        w.expect(&root, "tree", false);
        w.expect(&below, "moved", false);
        w.expect(&c, "file", true);
        assert!(w.entries.contains(&(new.clone(), b"file".to_vec(), true)) || w.directories.contains(&new));
        w.forget();
        fs::rename(w.path.join("below/moved"), outside.join("gone")).unwrap();
        w.settle();
        w.expect(&below, "moved", false);
        w.settle();
        w.forget();
        fs::write(outside.join("gone/a/b/c/file"), b"4").unwrap();
        w.settle();
        assert!(!w.entries.iter().any(|(_, name, _)| name == b"file"));
        fs::remove_dir_all(outside.join("gone")).unwrap();
        // A new directory under the name of one that just left.
        fs::create_dir(w.path.join("name")).unwrap();
        w.settle();
        fs::rename(w.path.join("name"), outside.join("name")).unwrap();
        fs::create_dir(w.path.join("name")).unwrap();
        w.settle();
        let name = w.object("name");
        w.forget();
        fs::write(w.path.join("name/file"), b"5").unwrap();
        w.settle();
        w.expect(&name, "file", true);
        assert_eq!(w.everything, 0);
    });
}

#[test]
fn what_changed_outside_shows_when_it_comes_back_to_its_old_name() {
    on_each_by_both(|m, mut w| {
        let outside = m.dir("outside");
        fs::create_dir_all(w.path.join("x/d")).unwrap();
        fs::write(w.path.join("x/d/file"), b"1").unwrap();
        w.settle();
        let d = w.object("x/d");
        // As one that is outside, and in what is ours.
        for away in [outside.join("x"), w.path.join(".anabranch-x")] {
            fs::rename(w.path.join("x"), &away).unwrap();
            w.settle();
            w.settle();
            fs::write(away.join("d/file"), b"2").unwrap();
            w.settle();
            w.settle();
            w.forget();
            fs::rename(&away, w.path.join("x")).unwrap();
            w.settle();
            w.expect(&d, "file", false);
        }
        // The inner one comes back by itself.
        fs::rename(w.path.join("x"), outside.join("x")).unwrap();
        fs::write(outside.join("x/d/file"), b"3").unwrap();
        w.settle();
        w.settle();
        w.forget();
        fs::rename(outside.join("x/d"), w.path.join("d")).unwrap();
        w.settle();
        w.expect(&d, "file", false);
        fs::remove_dir(outside.join("x")).unwrap();
        assert_eq!(w.everything, 0);
    });
}

#[test]
fn of_a_burst_nothing_is_missed() {
    const FILES: usize = 5000;
    on_each_by_both(|_, mut w| {
        // The channel is not read meanwhile: it fills, and the rest is merged.
        for i in 0..FILES {
            if i % 500 == 0 {
                fs::create_dir(w.path.join(format!("d{}", i / 500))).unwrap();
            }
            fs::write(w.path.join(format!("d{}/{i}", i / 500)), b"1").unwrap();
        }
        w.settle();
        let dirs: Vec<Object> = (0..FILES / 500).map(|d| w.object(&format!("d{d}"))).collect();
        for i in 0..FILES {
            let dir = &dirs[i / 500];
            let name = i.to_string().into_bytes();
            // By inotify a file may be older than the watch; then all of the directory is to be looked at.
            let hinted = w.entries.contains(&(dir.clone(), name, true)) || w.directories.contains(dir);
            assert!(hinted, "{i}");
        }
        assert_eq!(w.everything, 0);
    });
}

#[test]
fn what_this_process_does_to_files_itself_can_be_left_out() {
    on_each(|m| {
        let options = Options { own: false, ..quick(WatchKind::Fanotify) };
        let mut w = Watched::new(m.dir("others"), options);
        let by_another = |what: &str| run(Command::new("sh").current_dir(&w.path).args(["-c", what]));
        for name in ["mine", "ours"] {
            fs::write(w.path.join(name), b"1").unwrap();
        }
        fs::create_dir(w.path.join("dir")).unwrap();
        by_another("echo 2 >> ours; echo 3 > theirs; echo 4 > last");
        let root = w.fs.root_object().clone();
        let seen = |w: &Watched, name: &str| w.entries.iter().any(|(d, n, _)| *d == root && n == name.as_bytes());
        let until = Instant::now() + PATIENCE;
        while !seen(&w, "last") {
            let left = until.saturating_duration_since(Instant::now());
            let batch = w.watcher.hints().recv_timeout(left).expect("a hint of the last file");
            w.take(batch);
        }
        assert!(seen(&w, "theirs") && seen(&w, "ours") && seen(&w, "dir"));
        assert!(!seen(&w, "mine"));
    });
}

#[test]
fn in_a_quiet_directory_only_renames_are_heard_until_it_is_moved() {
    on_each(|m| {
        let path = m.dir("quiet-ones");
        fs::create_dir_all(path.join("above/hushed")).unwrap();
        let options =
            Options { quiet: vec![b"above/hushed".to_vec(), b"missing".to_vec()], ..quick(WatchKind::Fanotify) };
        let mut w = Watched::new(path, options);
        let hushed = w.object("above/hushed");
        fs::write(w.path.join("above/hushed/private"), b"1").unwrap();
        fs::write(w.path.join("above/hushed/other"), b"1").unwrap();
        fs::write(w.path.join("above/hushed/other"), b"2").unwrap();
        fs::remove_file(w.path.join("above/hushed/other")).unwrap();
        w.settle();
        assert!(!w.entries.iter().any(|(directory, _, _)| *directory == hushed), "{:?}", w.entries);
        w.forget();
        fs::rename(w.path.join("above/hushed/private"), w.path.join("above/placed")).unwrap();
        w.settle();
        let above = w.object("above");
        w.expect(&above, "placed", false);
        w.expect(&hushed, "private", false);
        fs::write(w.path.join("above/placed"), b"3").unwrap();
        w.settle();
        w.expect(&above, "placed", true);
        w.forget();
        fs::rename(w.path.join("above"), w.path.join("elsewhere")).unwrap();
        w.settle();
        w.forget();
        fs::write(w.path.join("elsewhere/hushed/late"), b"1").unwrap();
        w.settle();
        w.expect(&hushed, "late", true);
    });
}

#[test]
fn beyond_the_bound_there_is_one_everything_and_watching_goes_on() {
    on_each(|m| {
        for best in BOTH {
            let options = Options { pending_max: 100, batches: 1, batch_max: 10, ..quick(best) };
            let mut w = Watched::new(m.dir(&format!("{best:?}")), options);
            let until = Instant::now() + PATIENCE;
            let mut made = 0;
            // Until it collapsed; nobody reads before each round is over.
            while w.everything == 0 {
                assert!(Instant::now() < until);
                for _ in 0..1000 {
                    made += 1;
                    fs::write(w.path.join(made.to_string()), b"").unwrap();
                }
                while let Ok(batch) = w.watcher.hints().recv_timeout(Duration::from_millis(50)) {
                    assert!(batch.len() <= 10);
                    w.take(batch);
                }
            }
            w.settle();
            w.forget();
            fs::write(w.path.join("after"), b"1").unwrap();
            w.settle();
            let root = w.fs.root_object().clone();
            w.expect(&root, "after", true);
        }
    });
}

#[test]
fn an_overflow_of_the_kernels_queue_is_everything_and_new_directories_are_watched() {
    let limit = Path::new("/proc/sys/fs/inotify/max_queued_events");
    if !common::is_root() {
        return;
    }
    let Ok(before) = fs::read_to_string(limit) else { return };
    on_each(|m| {
        // Read when an instance is made.
        fs::write(limit, "50").unwrap();
        let options = Options { settle: Duration::from_millis(300), ..quick(WatchKind::Inotify) };
        let mut w = Watched::new(m.dir("folder"), options);
        fs::write(limit, before.trim()).unwrap();
        let until = Instant::now() + PATIENCE;
        let mut made = 0;
        while w.everything == 0 {
            assert!(Instant::now() < until);
            for _ in 0..200 {
                made += 1;
                fs::create_dir_all(w.path.join(format!("{made}/sub"))).unwrap();
            }
            if let Ok(batch) = w.watcher.hints().recv_timeout(PATIENCE) {
                w.take(batch);
            }
        }
        while let Ok(batch) = w.watcher.hints().recv_timeout(Duration::from_millis(400)) {
            w.take(batch);
        }
        w.forget();
        for d in [1, made / 2, made] {
            let object = w.object(&format!("{d}/sub"));
            fs::write(w.path.join(format!("{d}/sub/file")), b"1").unwrap();
            w.settle();
            w.expect(&object, "file", true);
        }
    });
}

#[test]
fn a_root_that_goes_or_comes_back_is_everything() {
    on_each_by_both(|m, mut w| {
        w.settle();
        w.forget();
        let wait = |w: &mut Watched| {
            let until = Instant::now() + PATIENCE;
            while w.everything == 0 {
                let left = until.saturating_duration_since(Instant::now());
                let batch = w.watcher.hints().recv_timeout(left).expect("a hint that the root changed");
                w.take(batch);
            }
            w.forget();
        };
        let away = m.path().join("away");
        fs::rename(&w.path, &away).unwrap();
        wait(&mut w);
        assert!(!w.fs.root_in_place().unwrap());
        fs::rename(&away, &w.path).unwrap();
        wait(&mut w);
        assert!(w.fs.root_in_place().unwrap());
        w.settle();
        w.forget();
        fs::remove_dir_all(&w.path).unwrap();
        wait(&mut w);
        let Watched { watcher, .. } = w;
        let began = Instant::now();
        watcher.stop();
        assert!(began.elapsed() < Duration::from_secs(1));
    });
}

#[test]
fn a_mount_over_the_root_is_everything() {
    on_each(|m| {
        for best in BOTH {
            let options = Options { root_check: Duration::from_millis(20), ..quick(best) };
            let w = Watched::new(m.dir(&format!("{best:?}")), options);
            must("mount", &["-t", "tmpfs", "none"], &w.path);
            let batch = w.watcher.hints().recv_timeout(PATIENCE).unwrap();
            must("umount", &[], &w.path);
            assert_eq!(batch, [Hint::Everything]);
            assert_eq!(w.watcher.hints().recv_timeout(PATIENCE).unwrap(), [Hint::Everything]);
        }
    });
}

#[test]
fn a_btrfs_subvolume_falls_back_on_inotify() {
    let Some(m) = Mounted::new("btrfs") else { return };
    must("btrfs", &["subvolume", "create"], &m.path().join("sub"));
    // Mounted by itself, or beneath the top volume: neither takes a mark.
    let fs = LinuxFs::open(&m.path().join("sub")).unwrap();
    let (watcher, kind) = Watcher::start(&fs, quick(WatchKind::Fanotify)).unwrap();
    assert_eq!((kind, watcher.kind()), (WatchKind::Inotify, WatchKind::Inotify));
    fs::write(m.path().join("sub/file"), b"1").unwrap();
    let batch = watcher.hints().recv_timeout(PATIENCE).unwrap();
    assert!(batch.iter().any(|h| matches!(h, Hint::Entry { name, .. } if name == b"file")));
}

#[test]
fn scan_only_has_an_open_and_silent_channel() {
    let folder = tempfile::tempdir().unwrap();
    let fs = LinuxFs::open(folder.path()).unwrap();
    let (watcher, kind) = Watcher::start(&fs, quick(WatchKind::ScanOnly)).unwrap();
    assert_eq!(kind, WatchKind::ScanOnly);
    fs::write(folder.path().join("file"), b"1").unwrap();
    assert_eq!(watcher.hints().try_recv(), Err(std::sync::mpsc::TryRecvError::Empty));
    watcher.stop();
}

/// What follows the hints ends with the very tree that is there, however wild the changes.
#[test]
fn a_mirror_that_follows_the_hints_stays_true() {
    const ROUNDS: u64 = 12;
    const STEPS: u32 = 60;
    on_each(|m| {
        for best in BOTH {
            for seed in 1..=2 {
                let path = m.dir(&format!("{best:?}{seed}"));
                let outside = m.dir(&format!("out{best:?}{seed}"));
                // The longer the watcher waits, the further the tree is ahead of the events.
                let settle = Duration::from_millis(seed * 3);
                let w = Watched::new(path.clone(), Options { settle, ..quick(best) });
                let mut mirror = Mirror::new(w.fs.clone());
                for round in 0..ROUNDS {
                    let (inside, outside) = (path.clone(), outside.clone());
                    let changes = std::thread::spawn(move || {
                        common::mirror::change_wildly(&inside, &outside, seed * 1000 + round, STEPS);
                    });
                    while !changes.is_finished() {
                        if let Ok(batch) = w.watcher.hints().recv_timeout(Duration::from_millis(1)) {
                            mirror.follow(&batch);
                        }
                    }
                    changes.join().unwrap();
                    agree(&w, &mut mirror, &format!("{best:?}, seed {seed}, round {round}"));
                    // A directory that is not watched any more would show now.
                    let probes: Vec<_> = mirror.folders().iter().map(|f| w.path.join(f).join("probe")).collect();
                    probes.iter().for_each(|probe| fs::write(probe, b"").unwrap());
                    agree(&w, &mut mirror, &format!("{best:?}, seed {seed}, probe {round}"));
                    probes.iter().for_each(|probe| fs::remove_file(probe).unwrap());
                }
            }
        }
    });
}

/// Waits until all that happened came out, and compares the mirror with the tree.
fn agree(w: &Watched, mirror: &mut Mirror, when: &str) {
    // Twice, as in `settle`; all files are closed, so no write waits.
    for end in [format!("end of {when}"), format!("very end of {when}")] {
        fs::write(w.path.join(&end), b"").unwrap();
        while !mirror.root_has(end.as_bytes()) {
            let batch = w.watcher.hints().recv_timeout(PATIENCE).expect("a hint of the end");
            mirror.follow(&batch);
        }
    }
    let (shown, truth) = (mirror.shown(), Mirror::new(w.fs.clone()).shown());
    let missed: Vec<_> = truth.iter().filter(|(path, line)| shown.get(*path) != Some(line)).collect();
    assert_eq!(missed, [], "{when}");
    assert_eq!(shown.len(), truth.len(), "{when}");
}

/// This program again, as an ordinary user without any capability, on a folder of his.
#[test]
fn an_ordinary_user_watches_by_inotify() {
    const FOLDER: &str = "ANABRANCH_TEST_FOLDER";
    let test = "an_ordinary_user_watches_by_inotify";
    if let Some(folder) = std::env::var_os(FOLDER) {
        let fs = LinuxFs::open(Path::new(&folder)).unwrap();
        assert!(!fs.abilities().owners && !fs.abilities().handles);
        let (watcher, kind) = Watcher::start(&fs, quick(WatchKind::Fanotify)).unwrap();
        assert_eq!(kind, WatchKind::Inotify);
        drop(watcher);
        let mut w = Watched::new(folder.into(), quick(WatchKind::Inotify));
        let mut mirror = Mirror::new(w.fs.clone());
        fs::create_dir_all(w.path.join("a/b")).unwrap();
        fs::write(w.path.join("a/b/file"), b"1").unwrap();
        w.settle();
        let b = w.object("a/b");
        assert!(w.directories.contains(&b) || w.entries.contains(&(b, b"file".to_vec(), true)));
        mirror.rescan();
        // What could not be read is watched as soon as it can be.
        fs::DirBuilder::new().mode(0o0).create(w.path.join("shut")).unwrap();
        w.settle();
        fs::set_permissions(w.path.join("shut"), fs::Permissions::from_mode(0o700)).unwrap();
        w.settle();
        let shut = w.object("shut");
        w.forget();
        fs::write(w.path.join("shut/file"), b"1").unwrap();
        w.settle();
        w.expect(&shut, "file", true);
        assert_eq!(w.watcher.kind(), WatchKind::Inotify);
        // Root alone may give files away; a part that cannot be held is left, and no error.
        let mut wanted = w.fs.read_attributes(&w.fs.root(), b"a").unwrap();
        let held = wanted.clone();
        wanted.owner.number = 0;
        wanted.owner.name = None;
        assert_eq!(w.fs.write_attributes(&w.fs.root(), b"a", &wanted).unwrap(), held);
        // A group of his own he may set, another one not.
        wanted.group = Owner { number: 65533, name: None };
        assert_eq!(w.fs.write_attributes(&w.fs.root(), b"a", &wanted).unwrap().group.number, 65533);
        wanted.group.number = 1;
        assert_eq!(w.fs.write_attributes(&w.fs.root(), b"a", &wanted).unwrap().group.number, 65533);
        // A lease on another's file needs a capability, and so does finding by handle.
        let foreign = w.fs.open_file(&w.fs.root(), b"of root").unwrap();
        assert_eq!(w.fs.lease(&foreign).unwrap(), Lease::Unavailable);
        let object = w.fs.stat_file(&foreign).unwrap().object;
        assert_eq!(w.fs.locate(&object).unwrap_err().kind(), std::io::ErrorKind::Unsupported);
        // What he may not read is an error, and not an empty listing.
        assert_eq!(w.fs.list(&w.fs.open_dir(&w.fs.root(), b"closed").unwrap()).unwrap_err().kind(), PermissionDenied);
        return;
    }
    on_each(|m| {
        let folder = m.dir("folder");
        must("chown", &["65534:65534"], &folder);
        fs::write(folder.join("of root"), b"1").unwrap();
        fs::create_dir(folder.join("closed")).unwrap();
        fs::set_permissions(folder.join("closed"), fs::Permissions::from_mode(0o700)).unwrap();
        let program = m.path().join("program");
        fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let output = Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--groups=65533", "--inh-caps=-all", "--bounding-set=-all"])
            .arg(&program)
            .args(["--exact", test, "--nocapture"])
            .env(FOLDER, &folder)
            .current_dir("/")
            .output();
        let output = output.unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && said.contains("1 passed"),
            "{said}{}",
            String::from_utf8_lossy(&output.stderr)
        );
    });
}
