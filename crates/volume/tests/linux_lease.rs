//! Read leases on real file systems: granted, refused, broken.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::fs;
use std::io::{self, BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anabranch_volume::fs::{Fs, Lease};
use anabranch_volume::linux::LinuxFs;
use common::on_each;
use rustix::fs::{Mode, OFlags};

/// Another process that does something to a file, says so, and keeps it until it is dropped.
struct Other(Child);

impl Other {
    /// `None` where there is no Python.
    fn new(program: &str, path: &Path) -> Option<Self> {
        let program = format!(
            "import fcntl,mmap,os,signal,sys\npath=sys.argv[1]\n{program}\nprint('ready',flush=True)\nsys.stdin.read()\n"
        );
        let mut child = Command::new("python3")
            .args(["-c", &program])
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .ok()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Some(Self(child))
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

#[test]
fn a_quiet_file_gets_a_lease_that_lasts_until_it_is_let_go() {
    on_each(|m| {
        let path = m.dir("root");
        let fs = LinuxFs::open(&path).unwrap();
        assert!(fs.abilities().leases);
        fs::write(path.join("file"), b"1").unwrap();
        let file = fs.open_file(&fs.root(), b"file").unwrap();
        assert!(!fs.lease_unbroken(&file).unwrap());
        assert_eq!(fs.lease(&file).unwrap(), Lease::Granted);
        assert!(fs.lease_unbroken(&file).unwrap());
        // Readers do not break it, nor does a rename or a change of attributes.
        assert_eq!(fs::read(path.join("file")).unwrap(), b"1");
        fs::rename(path.join("file"), path.join("renamed")).unwrap();
        assert!(fs.lease_unbroken(&file).unwrap());
        fs.release(&file).unwrap();
        assert!(!fs.lease_unbroken(&file).unwrap());
        fs.release(&file).unwrap();
        fs::write(path.join("renamed"), b"2").unwrap();
        // Dropped with the file.
        assert_eq!(fs.lease(&file).unwrap(), Lease::Granted);
        drop(file);
        fs::write(path.join("renamed"), b"3").unwrap();
    });
}

#[test]
fn whoever_can_write_refuses_it() {
    on_each(|m| {
        let path = m.dir("root");
        let fs = LinuxFs::open(&path).unwrap();
        fs::write(path.join("file"), b"12345678").unwrap();
        let file = fs.open_file(&fs.root(), b"file").unwrap();
        let writer = fs::OpenOptions::new().append(true).open(path.join("file")).unwrap();
        assert_eq!(fs.lease(&file).unwrap(), Lease::InUse);
        drop(writer);
        assert_eq!(fs.lease(&file).unwrap(), Lease::Granted);
        fs.release(&file).unwrap();
        // A shared mapping outlives its descriptor.
        let mapping = "f=open(path,'r+b')\nm=mmap.mmap(f.fileno(),8)\nf.close()";
        if let Some(other) = Other::new(mapping, &path.join("file")) {
            assert_eq!(fs.lease(&file).unwrap(), Lease::InUse);
            drop(other);
        }
        assert_eq!(fs.lease(&file).unwrap(), Lease::Granted);
    });
}

#[test]
fn who_comes_to_write_breaks_it_and_waits_and_we_live() {
    on_each(|m| {
        let path = m.dir("root");
        let fs = LinuxFs::open(&path).unwrap();
        fs::write(path.join("file"), b"1").unwrap();
        let file = fs.open_file(&fs.root(), b"file").unwrap();
        // One that does not wait is turned away, and the break stands.
        assert_eq!(fs.lease(&file).unwrap(), Lease::Granted);
        let no_wait = OFlags::WRONLY | OFlags::NONBLOCK;
        let open = rustix::fs::open(path.join("file"), no_wait, Mode::empty());
        assert_eq!(open.map(drop), Err(rustix::io::Errno::AGAIN));
        assert!(!fs.lease_unbroken(&file).unwrap());
        fs.release(&file).unwrap();

        // One that waits gets the file as soon as the lease is gone.
        assert_eq!(fs.lease(&file).unwrap(), Lease::Granted);
        let name = path.join("file");
        let writer = std::thread::spawn(move || fs::write(name, b"2"));
        let until = Instant::now() + Duration::from_secs(20);
        while fs.lease_unbroken(&file).unwrap() {
            assert!(Instant::now() < until, "nobody broke it");
            fs.pause(Duration::from_millis(1));
        }
        assert!(!writer.is_finished());
        assert_eq!(fs::read(path.join("file")).unwrap(), b"1");
        fs.release(&file).unwrap();
        writer.join().unwrap().unwrap();
        assert_eq!(fs::read(path.join("file")).unwrap(), b"2");

        // A truncation by path breaks it too.
        assert_eq!(fs.lease(&file).unwrap(), Lease::Granted);
        if let Ok(mut truncating) = Command::new("python3")
            .args(["-c", "import os,sys; os.truncate(sys.argv[1],0)"])
            .arg(path.join("file"))
            .spawn()
        {
            let until = Instant::now() + Duration::from_secs(20);
            while fs.lease_unbroken(&file).unwrap() {
                assert!(Instant::now() < until, "nobody broke it");
                fs.pause(Duration::from_millis(1));
            }
            fs.release(&file).unwrap();
            assert!(truncating.wait().unwrap().success());
        }
    });
}

#[test]
fn a_file_under_a_write_lease_is_not_waited_for() {
    on_each(|m| {
        let path = m.dir("root");
        let fs = LinuxFs::open(&path).unwrap();
        fs::write(path.join("file"), b"1").unwrap();
        // F_SETLEASE with F_WRLCK, as smbd with kernel oplocks does.
        let lease = "signal.signal(signal.SIGIO,signal.SIG_IGN)\nf=open(path,'r+b')\nfcntl.fcntl(f.fileno(),1024,1)";
        let Some(other) = Other::new(lease, &path.join("file")) else { return };
        let began = Instant::now();
        let error = fs.open_file(&fs.root(), b"file").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(began.elapsed() < Duration::from_secs(5));
        // Looking at it and at its attributes needs no opening.
        assert!(fs.stat(&fs.root(), b"file").unwrap().is_some());
        fs.read_attributes(&fs.root(), b"file").unwrap();
        drop(other);
        drop(fs.open_file(&fs.root(), b"file").unwrap());
    });
}
