//! Everything that is carried goes to real file systems and comes back.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Command;

use anabranch_model::{Attributes, Owner, Timestamp};
use anabranch_volume::fs::{Fs, Kind};
use anabranch_volume::linux::LinuxFs;
use common::{has, must, on_each};

fn owner(number: u32) -> Owner {
    Owner { number, name: None }
}

fn attributes(mode: u32) -> Attributes {
    Attributes { mode, owner: owner(1234), group: owner(4321), xattrs: BTreeMap::new() }
}

/// An ACL as the kernel keeps it: version 2, then (tag, permissions, id) each.
fn acl(entries: &[(u16, u16, u32)]) -> Box<[u8]> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&permissions.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes.into()
}

const NOBODY: u32 = u32::MAX;

/// rw-, user 1000 rwx, group r--, mask as given, other ---.
fn acl_with_mask(mask: u16) -> Box<[u8]> {
    acl(&[(1, 6, NOBODY), (2, 7, 1000), (4, 4, NOBODY), (0x10, mask, NOBODY), (0x20, 0, NOBODY)])
}

#[test]
fn odd_names_are_listed_and_looked_at() {
    on_each(|m| {
        let fs = LinuxFs::open(&m.dir("root")).unwrap();
        let root = fs.root();
        let names: Vec<Vec<u8>> = vec![
            b"plain".to_vec(),
            b"new\nline".to_vec(),
            b"\xff\xfe not UTF-8".to_vec(),
            b" leading and trailing ".to_vec(),
            b"-rf".to_vec(),
            vec![b'x'; 255],
            "e\u{301}".as_bytes().to_vec(),
            "\u{e9}".as_bytes().to_vec(),
            b"\\back:slash*?\"<>|".to_vec(),
            b"...".to_vec(),
        ];
        for name in &names {
            drop(fs.create_file(&root, name).unwrap());
            assert_eq!(fs.create_file(&root, name).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        }
        let mut listed: Vec<_> = fs.list(&root).unwrap().into_iter().map(|e| (e.name, e.kind)).collect();
        listed.sort_by(|a, b| a.0.cmp(&b.0));
        let mut expected: Vec<_> = names.iter().map(|n| (n.clone(), Some(Kind::File))).collect();
        expected.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(listed, expected);
        for name in &names {
            let stat = fs.stat(&root, name).unwrap().unwrap();
            assert_eq!((stat.kind, stat.mode, stat.links, stat.foreign), (Kind::File, 0o600, 1, false));
            let file = fs.open_file(&root, name).unwrap();
            assert_eq!(fs.stat_file(&file).unwrap(), stat);
            fs.remove_file(&root, name).unwrap();
            assert_eq!(fs.stat(&root, name).unwrap(), None);
        }
        for bad in [&b""[..], b".", b"..", b"a/b", b"/", b"a\0b"] {
            assert_eq!(fs.stat(&root, bad).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{bad:?}");
            assert_eq!(fs.create_dir(&root, bad).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{bad:?}");
        }
        assert!(fs.stat(&root, &[b'x'; 256]).is_err());
    });
}

#[test]
fn times_far_away_come_back_in_nanoseconds() {
    on_each(|m| {
        let fs = LinuxFs::open(&m.dir("root")).unwrap();
        let root = fs.root();
        drop(fs.create_file(&root, b"file").unwrap());
        fs.create_dir(&root, b"dir").unwrap();
        fs.create_symlink(&root, b"link", b"/nowhere").unwrap();
        // ext4 and XFS (with large timestamps, the default) hold 1901 to beyond 2106; ext4 ends in 2446.
        for (seconds, nanoseconds) in
            [(0, 0), (-1, 999_999_999), (-2_000_000_000, 1), (2_147_483_648, 5), (4_300_000_000, 123_456_789)]
        {
            let wanted = Timestamp { seconds, nanoseconds };
            for name in [&b"file"[..], b"dir", b"link"] {
                fs.set_mtime(&root, name, wanted).unwrap();
                let stat = fs.stat(&root, name).unwrap().unwrap();
                assert_eq!(stat.stamp.mtime, wanted, "{}", m.kind);
                assert!(stat.birth.is_some());
            }
        }
    });
}

#[test]
fn attributes_come_back_as_they_were_written() {
    on_each(|m| {
        let fs = LinuxFs::open(&m.dir("root")).unwrap();
        let root = fs.root();
        drop(fs.create_file(&root, b"file").unwrap());
        fs.create_dir(&root, b"dir").unwrap();
        let mut with_xattrs = attributes(0o4750);
        for (name, value) in [
            ("user.empty", &b""[..]),
            ("user.comment", b"\0any \xff bytes"),
            ("user.long", &[7; 2000]),
            ("security.NTACL", b"\x04\0\x04\0 opaque"),
        ] {
            with_xattrs.xattrs.insert(name.as_bytes().into(), value.into());
        }
        let mut with_acl = with_xattrs.clone();
        // The mode's group bits are the mask.
        with_acl.mode = 0o2660;
        with_acl.xattrs.insert(b"system.posix_acl_access"[..].into(), acl_with_mask(6));
        let mut with_default = with_acl.clone();
        with_default.xattrs.insert(b"system.posix_acl_default"[..].into(), acl_with_mask(7));
        // A change of owner takes set-id bits away, so it must come first.
        drop(fs.create_file(&root, b"fresh").unwrap());
        assert_eq!(fs.write_attributes(&root, b"fresh", &attributes(0o6755)).unwrap(), attributes(0o6755));
        for mode in [0o600, 0o0, 0o7777, 0o1777, 0o2755, 0o4711] {
            for name in [&b"file"[..], b"dir"] {
                assert_eq!(fs.write_attributes(&root, name, &attributes(mode)).unwrap(), attributes(mode));
            }
        }
        for wanted in [&with_xattrs, &with_acl, &attributes(0o640), &with_acl, &with_xattrs] {
            for name in [&b"file"[..], b"dir"] {
                assert_eq!(&fs.write_attributes(&root, name, wanted).unwrap(), wanted, "{}", m.kind);
                assert_eq!(&fs.read_attributes(&root, name).unwrap(), wanted);
            }
        }
        assert_eq!(fs.write_attributes(&root, b"dir", &with_default).unwrap(), with_default);
        // A file has no default ACL: that part cannot be held, and the rest is.
        assert_eq!(fs.write_attributes(&root, b"file", &with_default).unwrap(), with_acl);

        // What was there already is not written again: no change, no event.
        let before = fs.stat(&root, b"dir").unwrap();
        fs.write_attributes(&root, b"dir", &with_default).unwrap();
        assert_eq!(fs.stat(&root, b"dir").unwrap(), before);
    });
}

#[test]
fn where_acl_and_mode_disagree_the_mode_has_the_last_word() {
    on_each(|m| {
        let fs = LinuxFs::open(&m.dir("root")).unwrap();
        let root = fs.root();
        drop(fs.create_file(&root, b"file").unwrap());
        let mut wanted = attributes(0o640);
        wanted.xattrs.insert(b"system.posix_acl_access"[..].into(), acl_with_mask(7));
        let held = fs.write_attributes(&root, b"file", &wanted).unwrap();
        wanted.xattrs.insert(b"system.posix_acl_access"[..].into(), acl_with_mask(4));
        assert_eq!(held, wanted);
    });
}

#[test]
fn what_is_not_carried_is_neither_read_nor_removed() {
    on_each(|m| {
        let path = m.dir("root");
        let fs = LinuxFs::open(&path).unwrap();
        let root = fs.root();
        drop(fs.create_file(&root, b"file").unwrap());
        let file = path.join("file");
        for name in ["trusted.overlay.opaque", "security.other", "user.mine"] {
            rustix::fs::setxattr(&file, name, b"y", rustix::fs::XattrFlags::empty()).unwrap();
        }
        let read = fs.read_attributes(&root, b"file").unwrap();
        assert_eq!(read.xattrs.keys().map(|k| &**k).collect::<Vec<_>>(), [b"user.mine"]);
        let mut wanted = attributes(0o600);
        wanted.xattrs.insert(b"trusted.other"[..].into(), b"n"[..].into());
        wanted.xattrs.insert(b"security.capability"[..].into(), b"n"[..].into());
        assert_eq!(fs.write_attributes(&root, b"file", &wanted).unwrap(), attributes(0o600));
        let mut buffer = [0; 8];
        for kept in ["trusted.overlay.opaque", "security.other"] {
            assert_eq!(rustix::fs::getxattr(&file, kept, &mut buffer), Ok(1), "{kept}");
        }
        for never in ["trusted.other", "security.capability", "user.mine"] {
            assert_eq!(rustix::fs::getxattr(&file, never, &mut buffer), Err(rustix::io::Errno::NODATA), "{never}");
        }
    });
}

#[test]
fn a_symlink_has_owners_only() {
    on_each(|m| {
        let path = m.dir("root");
        let fs = LinuxFs::open(&path).unwrap();
        let root = fs.root();
        let target = m.path().join("target");
        fs::write(&target, b"t").unwrap();
        // XFS ends at 1,024 bytes.
        let long = [b"x".as_slice(), &[b'/'; 1000]].concat();
        fs.create_symlink(&root, b"link", target.as_os_str().as_encoded_bytes()).unwrap();
        fs.create_symlink(&root, b"long", &long).unwrap();
        assert_eq!(fs.read_link(&root, b"long").unwrap(), long);
        let mut wanted = attributes(0o777);
        wanted.xattrs.insert(b"user.x"[..].into(), b"y"[..].into());
        let held = fs.write_attributes(&root, b"link", &wanted).unwrap();
        assert_eq!(held, attributes(0));
        assert_eq!(fs.stat(&root, b"link").unwrap().unwrap().uid, 1234);
        let untouched = fs::metadata(&target).unwrap();
        assert_eq!((untouched.uid(), untouched.mode() & 0o777), (0, 0o644));
        assert_eq!(fs.open_file(&root, b"link").unwrap_err().kind(), io::ErrorKind::InvalidInput);
    });
}

#[test]
fn holes_stay_holes_and_clones_share() {
    on_each(|m| {
        let fs = LinuxFs::open(&m.dir("root")).unwrap();
        let root = fs.root();
        let file = fs.create_file(&root, b"sparse").unwrap();
        fs.write_at(&file, &[1; 65_536], 0).unwrap();
        fs.write_at(&file, &[2; 65_536], 32 << 20).unwrap();
        fs.set_size(&file, 64 << 20).unwrap();
        fs.sync_file(&file).unwrap();
        assert_eq!(fs.data_range(&file, 0).unwrap(), Some((0, 65_536)));
        assert_eq!(fs.data_range(&file, 65_536).unwrap(), Some((32 << 20, (32 << 20) + 65_536)));
        assert_eq!(fs.data_range(&file, 33 << 20).unwrap(), None);
        assert_eq!(fs.data_range(&file, u64::MAX).unwrap(), None);
        let stat = fs.stat_file(&file).unwrap();
        assert!(stat.blocks * 512 < 1 << 20, "{stat:?}");
        let mut buffer = vec![9; 100];
        assert_eq!(fs.read_at(&file, &mut buffer, 65_486).unwrap(), 100);
        assert_eq!((&buffer[..50], &buffer[50..]), (&[1; 50][..], &[0; 50][..]));
        assert_eq!(fs.read_at(&file, &mut buffer, (64 << 20) - 10).unwrap(), 10);

        let clone = fs.create_file(&root, b"clone").unwrap();
        let cloned = fs.clone_range(&file, &clone, 64 << 20);
        assert_eq!(cloned.is_ok(), fs.abilities().reflinks);
        match m.kind {
            "ext4" => assert_eq!(cloned.unwrap_err().kind(), io::ErrorKind::Unsupported),
            _ => assert_eq!(fs.data_range(&clone, 1 << 20).unwrap(), Some((32 << 20, (32 << 20) + 65_536))),
        }
        // Nothing was left behind by finding out.
        assert_eq!(fs.list(&root).unwrap().len(), 2);
    });
}

#[test]
fn handles_are_stable_over_renames_and_never_come_again() {
    on_each(|m| {
        let path = m.dir("root");
        let fs = LinuxFs::open(&path).unwrap();
        let root = fs.root();
        fs.create_dir(&root, b"one").unwrap();
        fs.create_dir(&root, b"two").unwrap();
        let (one, two) = (fs.open_dir(&root, b"one").unwrap(), fs.open_dir(&root, b"two").unwrap());
        drop(fs.create_file(&one, b"a").unwrap());
        let a = fs.stat(&one, b"a").unwrap().unwrap();
        assert_eq!(fs.locate(&a.object).unwrap(), Some((fs.stat_dir(&one).unwrap().object, b"a".to_vec())));
        fs.rename_new(&one, b"a", &two, b"b").unwrap();
        assert_eq!(fs.stat(&two, b"b").unwrap().unwrap().object, a.object);
        assert_eq!(fs.locate(&a.object).unwrap(), Some((fs.stat_dir(&two).unwrap().object, b"b".to_vec())));

        drop(fs.create_file(&one, b"c").unwrap());
        let c = fs.stat(&one, b"c").unwrap().unwrap();
        assert_eq!(fs.rename_new(&one, b"c", &two, b"b").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        fs.exchange(&one, b"c", &two, b"b").unwrap();
        assert_eq!(fs.stat(&one, b"c").unwrap().unwrap().object, a.object);
        assert_eq!(fs.stat(&two, b"b").unwrap().unwrap().object, c.object);
        assert_eq!(fs.exchange(&one, b"c", &two, b"gone").unwrap_err().kind(), io::ErrorKind::NotFound);

        // Directories too, also after the whole tree moved, and not by where they were.
        let two_object = fs.stat_dir(&two).unwrap().object;
        fs.rename_new(&root, b"two", &one, b"below").unwrap();
        assert_eq!(fs.locate(&two_object).unwrap(), Some((fs.stat_dir(&one).unwrap().object, b"below".to_vec())));
        assert_eq!(fs.locate(fs.root_object()).unwrap(), None);
        fs::rename(path.join("one/below"), m.path().join("outside")).unwrap();
        assert_eq!(fs.locate(&two_object).unwrap(), None);
        assert_eq!(fs.locate(&c.object).unwrap(), None);

        // Inode numbers come again, objects do not.
        let mut seen = std::collections::HashSet::new();
        for _ in 0..200 {
            drop(fs.create_file(&root, b"again").unwrap());
            let object = fs.stat(&root, b"again").unwrap().unwrap().object;
            fs.remove_file(&root, b"again").unwrap();
            assert_eq!(fs.locate(&object).unwrap(), None);
            assert!(seen.insert(object));
        }
    });
}

#[test]
fn a_file_whose_name_the_kernel_forgot_is_found_or_unknown_but_not_absent() {
    on_each(|m| {
        let fs = LinuxFs::open(&m.dir("root")).unwrap();
        let root = fs.root();
        fs.create_dir(&root, b"dir").unwrap();
        let dir = fs.open_dir(&root, b"dir").unwrap();
        drop(fs.create_file(&dir, b"file").unwrap());
        fs.create_dir(&dir, b"below").unwrap();
        let (file, below) = (fs.stat(&dir, b"file").unwrap().unwrap(), fs.stat(&dir, b"below").unwrap().unwrap());
        let dir_object = fs.stat_dir(&dir).unwrap().object;
        drop(dir);
        fs.sync_all().unwrap();
        fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        assert_eq!(fs.locate(&below.object).unwrap(), Some((dir_object.clone(), b"below".to_vec())));
        match fs.locate(&file.object) {
            Ok(place) => assert_eq!(place, Some((dir_object, b"file".to_vec()))),
            Err(e) => assert_eq!(e.kind(), io::ErrorKind::Unsupported),
        }
    });
}

#[test]
fn mounts_and_subvolumes_are_foreign_and_never_entered() {
    on_each(|m| {
        let path = m.dir("root");
        let fs = LinuxFs::open(&path).unwrap();
        let root = fs.root();
        let mut foreign = vec![&b"tmpfs"[..], b"bound", b"bound file"];
        fs.create_dir(&root, b"tmpfs").unwrap();
        fs.create_dir(&root, b"bound").unwrap();
        drop(fs.create_file(&root, b"bound file").unwrap());
        must("mount", &["-t", "tmpfs", "none"], &path.join("tmpfs"));
        let elsewhere = m.dir("elsewhere");
        must("mount", &["--bind", elsewhere.to_str().unwrap()], &path.join("bound"));
        fs::write(m.path().join("elsewhere/file"), b"1").unwrap();
        must("mount", &["--bind", elsewhere.join("file").to_str().unwrap()], &path.join("bound file"));
        if m.kind == "btrfs" {
            must("btrfs", &["subvolume", "create"], &path.join("subvolume"));
            foreign.push(b"subvolume");
        }
        for name in &foreign {
            let stat = fs.stat(&root, name).unwrap().unwrap();
            assert!(stat.foreign, "{name:?}");
            let name_error = |e: io::Error| e.kind();
            let kind = io::ErrorKind::CrossesDevices;
            if stat.kind == Kind::Directory {
                assert_eq!(fs.open_dir(&root, name).map_err(name_error).unwrap_err(), kind, "{name:?}");
            } else {
                assert_eq!(fs.open_file(&root, name).map_err(name_error).unwrap_err(), kind, "{name:?}");
            }
            assert_eq!(fs.read_attributes(&root, name).map_err(name_error).unwrap_err(), kind);
            assert_eq!(fs.write_attributes(&root, name, &attributes(0)).map_err(name_error).unwrap_err(), kind);
            assert_eq!(fs.set_mtime(&root, name, Timestamp::default()).map_err(name_error).unwrap_err(), kind);
        }
        for name in ["tmpfs", "bound", "bound file"] {
            must("umount", &[], &path.join(name));
            assert!(!fs.stat(&root, name.as_bytes()).unwrap().unwrap().foreign);
        }
        // A folder whose root is itself a subvolume is at home there.
        if m.kind == "btrfs" {
            let inner = LinuxFs::open(&path.join("subvolume")).unwrap();
            inner.create_dir(&inner.root(), b"dir").unwrap();
            assert!(!inner.stat(&inner.root(), b"dir").unwrap().unwrap().foreign);
            assert!(!inner.stat_dir(&inner.root()).unwrap().foreign);
            inner.open_dir(&inner.root(), b"dir").unwrap();
        }
    });
}

#[test]
fn a_root_that_is_replaced_unmounted_or_covered_is_not_in_place() {
    on_each(|m| {
        let path = m.dir("root");
        let fs = LinuxFs::open(&path).unwrap();
        assert!(fs.root_in_place().unwrap());
        fs::rename(&path, m.path().join("away")).unwrap();
        assert!(!fs.root_in_place().unwrap());
        fs::create_dir(&path).unwrap();
        assert!(!fs.root_in_place().unwrap());
        fs::remove_dir(&path).unwrap();
        fs::rename(m.path().join("away"), &path).unwrap();
        assert!(fs.root_in_place().unwrap());
        must("mount", &["-t", "tmpfs", "none"], &path);
        assert!(!fs.root_in_place().unwrap());
        must("umount", &[], &path);
        // The same directory through another mount of the same file system.
        must("mount", &["--bind", path.to_str().unwrap()], &path);
        assert!(!fs.root_in_place().unwrap());
        must("umount", &[], &path);
        assert!(fs.root_in_place().unwrap());
        // Work goes on beneath the descriptor that is held.
        fs.create_dir(&fs.root(), b"dir").unwrap();
    });
}

#[test]
fn directories_are_removed_only_when_empty_and_room_is_told() {
    on_each(|m| {
        let fs = LinuxFs::open(&m.dir("root")).unwrap();
        let root = fs.root();
        fs.create_dir(&root, b"dir").unwrap();
        assert_eq!(fs.stat(&root, b"dir").unwrap().unwrap().mode, 0o700);
        let dir = fs.open_dir(&root, b"dir").unwrap();
        drop(fs.create_file(&dir, b"file").unwrap());
        assert_eq!(fs.remove_dir(&root, b"dir").unwrap_err().kind(), io::ErrorKind::DirectoryNotEmpty);
        assert!(fs.remove_file(&root, b"dir").is_err());
        assert_eq!(fs.open_dir(&dir, b"file").unwrap_err().kind(), io::ErrorKind::NotADirectory);
        assert_eq!(fs.open_dir(&dir, b"none").unwrap_err().kind(), io::ErrorKind::NotFound);
        fs.remove_file(&dir, b"file").unwrap();
        fs.sync_dir(&dir).unwrap();
        fs.remove_dir(&root, b"dir").unwrap();
        fs.sync_all().unwrap();
        // The directory held is gone: enumerating it is no empty listing.
        assert!(fs.list(&dir).is_err());
        assert!(fs.create_file(&dir, b"file").is_err());
        let room = fs.room().unwrap();
        assert!(room.free > 0 && room.total >= room.free && room.total <= 400 << 20, "{room:?}");
        assert!((2..=8).contains(&fs.parallelism()));
    });
}

#[test]
fn fifos_and_devices_are_seen_and_never_opened() {
    on_each(|m| {
        let path = m.dir("root");
        let fs = LinuxFs::open(&path).unwrap();
        let root = fs.root();
        must("mkfifo", &[], &path.join("fifo"));
        assert!(Command::new("mknod").arg(path.join("null")).args(["c", "1", "3"]).status().unwrap().success());
        symlink("/etc", path.join("link")).unwrap();
        for name in [&b"fifo"[..], b"null"] {
            assert_eq!(fs.stat(&root, name).unwrap().unwrap().kind, Kind::Other);
            assert_eq!(fs.open_file(&root, name).unwrap_err().kind(), io::ErrorKind::InvalidInput);
            assert_eq!(fs.open_private(&root, name).unwrap_err().kind(), io::ErrorKind::InvalidInput);
            assert!(fs.read_attributes(&root, name).is_err());
        }
        assert!(fs.open_dir(&root, b"link").is_err_and(|e| e.kind() != io::ErrorKind::NotFound));
        // A private file that got a second name is not written to.
        drop(fs.create_file(&root, b"private").unwrap());
        fs.open_private(&root, b"private").unwrap();
        fs::hard_link(path.join("private"), path.join("second")).unwrap();
        assert_eq!(fs.open_private(&root, b"private").unwrap_err().kind(), io::ErrorKind::InvalidInput);
        fs::set_permissions(path.join("second"), fs::Permissions::from_mode(0o600)).unwrap();
    });
}

#[test]
fn what_the_system_s_own_tools_set_is_read_and_given_to_another_file_as_it_is() {
    if !has("setfacl") {
        return;
    }
    on_each(|m| {
        let path = m.dir("root");
        let fs = LinuxFs::open(&path).unwrap();
        let root = fs.root();
        for name in ["one", "two"] {
            fs::create_dir(path.join(name)).unwrap();
        }
        must("setfacl", &["-m", "u:1000:rwx,g:2000:r-x,m::rx"], &path.join("one"));
        must("setfacl", &["-d", "-m", "u:1000:rwx,g:2000:---"], &path.join("one"));
        must("setfattr", &["-n", "user.tool", "-v", "value"], &path.join("one"));
        must("chown", &["daemon:daemon"], &path.join("one"));
        must("chmod", &["g+s,+t"], &path.join("one"));
        let wanted = fs.read_attributes(&root, b"one").unwrap();
        assert_eq!(wanted.owner.name.as_deref(), Some("daemon"));
        assert_eq!(fs.write_attributes(&root, b"two", &wanted).unwrap(), wanted);
        let shown = |name: &str| {
            let output = Command::new("getfacl").args(["-c", "-n"]).arg(path.join(name)).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        assert_eq!(shown("one"), shown("two"));
        assert!(shown("two").contains("default:user:1000:rwx"), "{}", shown("two"));
        // And all of it goes again.
        let plain = attributes(0o755);
        assert_eq!(fs.write_attributes(&root, b"two", &plain).unwrap(), plain);
        // The name counts where it resolves, whatever number it has elsewhere.
        let mut elsewhere = plain;
        elsewhere.owner = Owner { number: 54_321, name: Some("daemon".into()) };
        assert_eq!(fs.write_attributes(&root, b"two", &elsewhere).unwrap().owner, wanted.owner);
    });
}
