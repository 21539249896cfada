//! fanotify on the whole file system: one mark sees every directory, those to come included.
//!
//! Events name a directory by its file handle, which says nothing of where it is. So each directory is looked up once
//! (opened by its handle, its path compared with the root's) and the answer kept until some directory is renamed.
//!
//! The answer is of now and not of the event's time. So an event may be dropped because its directory is outside for the
//! moment, though it was inside before or will be again, with the very name that it had. Therefore directories of which
//! events were dropped are remembered, and hinted at as a whole when they are found inside.
#![allow(unsafe_code, reason = "fanotify is not in rustix")]

use std::collections::HashMap;
use std::ffi::c_uint;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use anabranch_model::is_reserved;
use rustix::io::Errno;

use super::pending::Pending;
use super::{Known, Options, Source};
use crate::fs::{Fs, Object};
use crate::linux::{LinuxFs, Whereabouts};

/// MODIFY is needed beside CLOSE_WRITE: `truncate` by path, and setting the modification time alone, give nothing else.
const MASK: u64 =
    libc::FAN_CREATE | libc::FAN_DELETE | libc::FAN_MODIFY | libc::FAN_CLOSE_WRITE | libc::FAN_ATTRIB | libc::FAN_ONDIR;
/// Of what happens in a quiet directory, what gives no event. Not renames: their other end may be in the tree.
const QUIET: u64 = libc::FAN_CREATE
    | libc::FAN_DELETE
    | libc::FAN_MODIFY
    | libc::FAN_CLOSE_WRITE
    | libc::FAN_ATTRIB
    | libc::FAN_EVENT_ON_CHILD;
/// One read.
const BUFFER_BYTES: usize = 64 * 1024;
/// Reads in a row, before what was read is passed on.
const READS_MAX: usize = 256;
/// Verdicts kept, and directories remembered, of about 100 bytes each.
const VERDICTS_MAX: usize = 100_000;

/// A group with its mark.
pub(super) struct Fanotify {
    fs: LinuxFs,
    group: OwnedFd,
    known: Option<Known>,
    verdicts: HashMap<Object, Verdict>,
    /// Directories of which events were dropped, and why.
    dropped: HashMap<Object, Verdict>,
    /// There were too many of them to remember.
    forgot: bool,
    /// The process whose events on what is no directory are not looked at.
    ignored: Option<i32>,
    /// Names of the quiet directories, and of those that they are in.
    quiet: Vec<Vec<u8>>,
    /// Of which of the dropped ones some may be inside now, since a directory was renamed out of such a place.
    recall: Option<Verdict>,
    buffer: Vec<u8>,
}

/// Where a directory is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Verdict {
    /// In the folder.
    Inside,
    /// In what the program keeps to itself beneath the root.
    Reserved,
    /// Elsewhere, or gone.
    Outside,
}

impl Fanotify {
    /// Marks the root's file system.
    pub(super) fn start(fs: &LinuxFs, options: &Options) -> io::Result<Self> {
        let flags = libc::FAN_CLASS_NOTIF | libc::FAN_REPORT_DFID_NAME | libc::FAN_CLOEXEC | libc::FAN_NONBLOCK;
        // Without the capability for an unlimited queue, one that overflows is still better than none.
        let group = init(flags | libc::FAN_UNLIMITED_QUEUE).or_else(|_| init(flags))?;
        let file_system = libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM;
        let rename = mark(&group, file_system, MASK | libc::FAN_RENAME, fs.root_readable());
        // Before Linux 5.17 a rename was two events.
        rename.or_else(|e| match e.raw_os_error() {
            Some(libc::EINVAL) => {
                mark(&group, file_system, MASK | libc::FAN_MOVED_FROM | libc::FAN_MOVED_TO, fs.root_readable())
            }
            _ => Err(e),
        })?;
        let mut quiet = Vec::new();
        for path in &options.quiet {
            // Without it there are events more, and none less.
            if hush(&group, fs, path).is_ok() {
                quiet.extend(path.split(|b| *b == b'/').map(<[u8]>::to_vec));
            }
        }
        Ok(Self {
            fs: fs.clone(),
            group,
            known: options.known.clone(),
            ignored: if options.own { None } else { Some(std::process::id().cast_signed()) },
            quiet,
            verdicts: HashMap::new(),
            dropped: HashMap::new(),
            forgot: false,
            recall: None,
            buffer: vec![0; BUFFER_BYTES],
        })
    }

    fn take(&mut self, event: &Event<'_>, pending: &mut Pending) {
        if event.mask & libc::FAN_Q_OVERFLOW != 0 {
            self.verdicts.clear();
            self.dropped.clear();
            self.forgot = false;
            self.hear_all();
            pending.everything();
            return;
        }
        let renamed = event.mask & (libc::FAN_RENAME | libc::FAN_MOVED_FROM | libc::FAN_MOVED_TO) != 0;
        let on_directory = event.mask & libc::FAN_ONDIR != 0;
        // Events of several processes are never merged into one.
        if !on_directory && self.ignored == Some(event.process) {
            return;
        }
        if renamed && on_directory {
            // Where things are changed for all below it.
            self.verdicts.clear();
            if event.places.iter().flatten().any(|place| self.quiet.iter().any(|name| name == place.name)) {
                self.hear_all();
            }
            // Of old kernels: where it comes from is in another event.
            if event.mask & libc::FAN_MOVED_TO != 0 {
                self.recall = Some(Verdict::Outside);
            }
        }
        for place in event.places.iter().flatten() {
            let directory = Object(place.directory.into());
            // Private files of our own are not even looked up: cheapest out.
            let verdict = if is_reserved(place.name) {
                Verdict::Reserved
            } else {
                let verdict = self.verdict(&directory);
                if verdict != Verdict::Inside {
                    self.drop_one(directory.clone(), verdict);
                }
                verdict
            };
            if verdict != Verdict::Inside {
                if renamed && on_directory && place.is_old {
                    self.recall = self.recall.max(Some(verdict));
                }
                if verdict == Verdict::Outside && on_directory && (renamed || event.mask & libc::FAN_DELETE != 0) {
                    // Perhaps the root, or what it stands in.
                    pending.check_root();
                }
                continue;
            }
            match place.name {
                b"" | b"." => self.itself(&directory, pending),
                name if event.mask == libc::FAN_MODIFY => pending.written(&directory, name),
                name => pending.entry(&directory, name, event.mask & libc::FAN_CLOSE_WRITE != 0),
            }
        }
    }

    /// An event of a directory itself (its attributes) names no parent.
    /// A quiet directory may be elsewhere now: none is quiet any more. It was not before this event that anything in it could
    /// matter, and what has changed in it since is found by looking at all that came with it.
    fn hear_all(&mut self) {
        if std::mem::take(&mut self.quiet).is_empty() {
            return;
        }
        // The marks of single directories, all of which are there to hush.
        if let Err(error) = mark(&self.group, libc::FAN_MARK_FLUSH, 0, self.fs.root_readable()) {
            tracing::warn!(%error, path = %self.fs.path().display(), "a directory that was moved cannot be watched");
        }
    }

    fn itself(&self, directory: &Object, pending: &mut Pending) {
        match self.fs.locate(directory) {
            Ok(Some((parent, name))) => pending.entry(&parent, &name, false),
            // The root, or unknown; where it is gone, its parent has an event of that.
            _ => pending.directory(directory),
        }
    }

    fn verdict(&mut self, directory: &Object) -> Verdict {
        if let Some(verdict) = self.verdicts.get(directory) {
            return *verdict;
        }
        let known = self.known.as_ref().is_some_and(|known| known(directory));
        let verdict = if known { Verdict::Inside } else { self.look(directory) };
        if self.verdicts.len() >= VERDICTS_MAX {
            self.verdicts.clear();
        }
        self.verdicts.insert(directory.clone(), verdict);
        verdict
    }

    fn look(&self, directory: &Object) -> Verdict {
        match self.fs.whereabouts(directory) {
            Whereabouts::Inside(path) if path.split(|b| *b == b'/').any(is_reserved) => Verdict::Reserved,
            Whereabouts::Inside(_) | Whereabouts::Unknown => Verdict::Inside,
            // Gone, and the directory that it was in has an event of that.
            Whereabouts::Outside | Whereabouts::Gone => Verdict::Outside,
        }
    }

    fn drop_one(&mut self, directory: Object, why: Verdict) {
        if self.dropped.len() >= VERDICTS_MAX {
            self.dropped.clear();
            self.forgot = true;
        }
        self.dropped.insert(directory, why);
    }

    /// After a directory was renamed out of a place that is not inside: what was dropped in it, and below it, counts
    /// after all if it is inside now. All dropped ones are looked at, for nothing tells which are below it.
    ///
    /// That no rename from one place inside to another asks for this is enough: of the directories above a dropped one,
    /// one was renamed out of a place that is still not inside, else the dropped one would not be inside either.
    fn recall(&mut self, pending: &mut Pending) {
        let Some(which) = self.recall.take() else { return };
        if which == Verdict::Outside && std::mem::take(&mut self.forgot) {
            self.dropped.clear();
            pending.everything();
        }
        let suspects: Vec<Object> =
            self.dropped.iter().filter(|(_, why)| **why <= which).map(|(object, _)| object.clone()).collect();
        for directory in suspects {
            match self.look(&directory) {
                Verdict::Inside => {
                    self.dropped.remove(&directory);
                    pending.directory(&directory);
                }
                why => {
                    self.dropped.insert(directory, why);
                }
            }
        }
    }
}

impl Source for Fanotify {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.group.as_fd()
    }

    fn read(&mut self, pending: &mut Pending) -> io::Result<()> {
        for _ in 0..READS_MAX {
            let mut buffer = std::mem::take(&mut self.buffer);
            let read = rustix::io::read(&self.group, &mut buffer[..]);
            let mut whole = true;
            if let Ok(length) = read {
                whole = parse(&buffer[..length], |event| self.take(event, pending));
            }
            self.buffer = buffer;
            if !whole {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "not the events of a known kernel"));
            }
            match read {
                Ok(0) | Err(Errno::AGAIN) => break,
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        self.recall(pending);
        Ok(())
    }
}

fn init(flags: c_uint) -> io::Result<OwnedFd> {
    // SAFETY: takes plain integers.
    let fd = unsafe { libc::fanotify_init(flags, (libc::O_RDONLY | libc::O_CLOEXEC | libc::O_LARGEFILE) as c_uint) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so this is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Lets what is made, written and removed in a directory give no events.
fn hush(group: &OwnedFd, fs: &LinuxFs, path: &[u8]) -> io::Result<()> {
    let directory = fs.readable_beneath(path)?;
    mark(group, libc::FAN_MARK_ADD | libc::FAN_MARK_IGNORE_SURV, QUIET, directory.as_fd())
}

fn mark(group: &OwnedFd, flags: c_uint, mask: u64, on: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: a null path means the descriptor itself.
    let done = unsafe { libc::fanotify_mark(group.as_raw_fd(), flags, mask, on.as_raw_fd(), std::ptr::null()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// One event: what happened, and in which one or two places.
struct Event<'a> {
    mask: u64,
    process: i32,
    places: [Option<Place<'a>>; 2],
}

/// A directory's object and a name in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Place<'a> {
    /// In the encoding of [`Object`].
    directory: &'a [u8],
    name: &'a [u8],
    /// Where a renamed thing was, not where it is.
    is_old: bool,
}

/// Takes a read apart; false if it is not made as this kernel interface makes it, and then the rest is not looked at.
///
/// | bytes | event |
/// | --- | --- |
/// | 4 | its length, with all records |
/// | 1, 1, 2 | version (3), reserved, length of this header |
/// | 8 | mask |
/// | 4, 4 | descriptor (none here), process |
///
/// Then records: type (1), padding (1), length (2); for those with a directory: file system id (8), the handle's length
/// (4), type (4) and bytes, and a name that ends in NUL. Numbers are in the machine's own order.
fn parse(mut bytes: &[u8], mut each: impl FnMut(&Event<'_>)) -> bool {
    let mut scratch = [Vec::new(), Vec::new()];
    while !bytes.is_empty() {
        let Some(header) = bytes.first_chunk::<24>() else { return false };
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let records_at = usize::from(u16::from_ne_bytes([header[6], header[7]]));
        let mask = u64::from_ne_bytes([
            header[8], header[9], header[10], header[11], header[12], header[13], header[14], header[15],
        ]);
        if header[4] != libc::FANOTIFY_METADATA_VERSION
            || records_at < 24
            || length < records_at
            || length > bytes.len()
        {
            return false;
        }
        let (event, rest) = bytes.split_at(length);
        bytes = rest;
        let Some(places) = records(&event[records_at..], &mut scratch) else { return false };
        let process = i32::from_ne_bytes([header[20], header[21], header[22], header[23]]);
        each(&Event { mask, process, places });
    }
    true
}

/// The places that the records of one event name; `None` if they are malformed. `scratch` holds the objects.
fn records<'a>(mut bytes: &'a [u8], scratch: &'a mut [Vec<u8>; 2]) -> Option<[Option<Place<'a>>; 2]> {
    let mut names: [Option<(&[u8], bool)>; 2] = [None; 2];
    let mut count = 0;
    while let Some(header) = bytes.first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([header[2], header[3]]));
        if length < 4 || length > bytes.len() {
            return None;
        }
        let (record, rest) = bytes.split_at(length);
        bytes = rest;
        let is_place = matches!(
            header[0],
            libc::FAN_EVENT_INFO_TYPE_DFID_NAME
                | libc::FAN_EVENT_INFO_TYPE_DFID
                | libc::FAN_EVENT_INFO_TYPE_OLD_DFID_NAME
                | libc::FAN_EVENT_INFO_TYPE_NEW_DFID_NAME
        );
        if !is_place || count == 2 {
            continue;
        }
        let handle = record.get(12..)?;
        let (size, handle) = handle.split_first_chunk::<4>()?;
        let (kind, handle) = handle.split_first_chunk::<4>()?;
        let (handle, name) = handle.split_at_checked(u32::from_ne_bytes(*size) as usize)?;
        scratch[count].clear();
        scratch[count].extend_from_slice(&u32::from_ne_bytes(*kind).to_le_bytes());
        scratch[count].extend_from_slice(handle);
        let name = name.split(|b| *b == 0).next().unwrap_or_default();
        names[count] = Some((name, header[0] == libc::FAN_EVENT_INFO_TYPE_OLD_DFID_NAME));
        count += 1;
    }
    let [one, other] = scratch;
    Some([
        names[0].map(|(name, is_old)| Place { directory: one, name, is_old }),
        names[1].map(|(name, is_old)| Place { directory: other, name, is_old }),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u8, handle: &[u8], name: &[u8]) -> Vec<u8> {
        let mut r = vec![kind, 0, 0, 0];
        r.extend_from_slice(&[9; 8]);
        r.extend_from_slice(&(handle.len() as u32).to_ne_bytes());
        r.extend_from_slice(&1u32.to_ne_bytes());
        r.extend_from_slice(handle);
        r.extend_from_slice(name);
        r.push(0);
        while r.len() % 4 != 0 {
            r.push(0);
        }
        let length = (r.len() as u16).to_ne_bytes();
        r[2..4].copy_from_slice(&length);
        r
    }

    fn event(mask: u64, records: &[Vec<u8>]) -> Vec<u8> {
        let records = records.concat();
        let mut e = (24 + records.len() as u32).to_ne_bytes().to_vec();
        e.extend_from_slice(&[3, 0]);
        e.extend_from_slice(&24u16.to_ne_bytes());
        e.extend_from_slice(&mask.to_ne_bytes());
        e.extend_from_slice(&(-1i32).to_ne_bytes());
        e.extend_from_slice(&77i32.to_ne_bytes());
        e.extend_from_slice(&records);
        e
    }

    type Seen = Vec<(u64, Vec<(Vec<u8>, Vec<u8>)>)>;

    fn seen(bytes: &[u8]) -> (bool, Seen) {
        let mut all = Vec::new();
        let whole = parse(bytes, |e| {
            let places = e.places.iter().flatten().map(|p| (p.directory.to_vec(), p.name.to_vec()));
            all.push((e.mask, places.collect()));
        });
        (whole, all)
    }

    fn sample() -> Vec<u8> {
        [
            event(libc::FAN_CREATE, &[record(2, b"12345678", b"new")]),
            event(
                libc::FAN_RENAME,
                &[record(10, b"old!", b"from"), record(12, b"new!", b"to"), record(1, b"child", b"")],
            ),
            event(libc::FAN_Q_OVERFLOW, &[]),
            // A record type to come.
            event(libc::FAN_ATTRIB, &[record(99, b"x", b"y"), record(3, b"dir", b"")]),
        ]
        .concat()
    }

    #[test]
    fn events_are_taken_apart() {
        let object = |handle: &[u8]| [&[1, 0, 0, 0], handle].concat();
        let (whole, all) = seen(&sample());
        assert!(whole);
        let expected: Seen = vec![
            (libc::FAN_CREATE, vec![(object(b"12345678"), b"new".to_vec())]),
            (libc::FAN_RENAME, vec![(object(b"old!"), b"from".to_vec()), (object(b"new!"), b"to".to_vec())]),
            (libc::FAN_Q_OVERFLOW, vec![]),
            (libc::FAN_ATTRIB, vec![(object(b"dir"), b"".to_vec())]),
        ];
        assert_eq!(all, expected);
    }

    #[test]
    fn malformed_bytes_are_refused_and_never_panic() {
        let good = sample();
        for cut in 0..good.len() {
            seen(&good[..cut]);
        }
        for at in 0..good.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bad = good.clone();
                bad[at] = value;
                seen(&bad);
            }
        }
        let mut other_version = good;
        other_version[4] = 2;
        assert_eq!(seen(&other_version), (false, vec![]));
    }
}
