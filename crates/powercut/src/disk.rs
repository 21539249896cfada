//! A disk image served by FUSE: one directory with one file, whose writes and flushes go to the [`Log`].
//!
//! The kernel keeps none of its pages (direct I/O), so a write of the loop device above has reached the log when it is
//! answered. The loop device reports a write-back cache, so the file system's flushes arrive here as fsync.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyWrite, Request, WriteFlags,
};

use crate::Error;
use crate::log::{BLOCK_BYTES, Content, Cut, LastEpoch, Log};
use crate::stale::SOURCE_PREFIX;
use crate::volume::unmount;

const IMAGE: &str = "disk.img";
const IMAGE_NUMBER: INodeNo = INodeNo(2);
const VALID: Duration = Duration::from_secs(3600);
const REQUEST_BYTES: u32 = 1 << 20;

type Shared = Arc<Mutex<Log>>;

fn lock(log: &Shared) -> MutexGuard<'_, Log> {
    // A log is whole between any two of its statements that can panic.
    log.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A disk image that can be written through its file, and remembers.
#[derive(Debug)]
pub struct Disk {
    log: Shared,
    directory: PathBuf,
    session: Option<BackgroundSession>,
}

/// What a disk holds after a power cut. Cheap: it shares the blocks with the disk.
#[derive(Clone, Debug)]
pub struct Image(Content);

/// Notes moments in a disk's log; goes to other threads.
#[derive(Clone, Debug)]
pub struct Marker(Shared);

impl Marker {
    /// Notes that this has been said by now: it must hold after every later power cut.
    pub fn mark(&self, label: impl Into<String>) {
        lock(&self.0).mark(label.into());
    }
}

impl Image {
    /// Writes it to a file, sparse.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let write = || {
            let file = File::create(path)?;
            file.set_len(self.0.size)?;
            let mut bytes = vec![0; BLOCK_BYTES];
            for (number, address) in self.0.blocks() {
                self.0.store.read(&[address], &mut bytes)?;
                file.write_all_at(&bytes, u64::from(number) * BLOCK_BYTES as u64)?;
            }
            Ok::<_, io::Error>(())
        };
        write().map_err(|e| Error::io("write image", path, e))
    }

    /// Serves it as a disk of its own: writes go to that disk, and leave the image as it is.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn serve(&self, directory: &Path) -> Result<Disk, Error> {
        Disk::mount(directory, Log::above(&self.0))
    }
}

impl Disk {
    /// Serves an empty disk of `size_bytes` as a file in `directory`, which must exist.
    ///
    /// # Errors
    /// [`Error::Io`] where FUSE cannot be mounted or there is no room for temporary files.
    pub fn serve(directory: &Path, size_bytes: u64) -> Result<Self, Error> {
        Self::mount(directory, Log::empty(size_bytes))
    }

    fn mount(directory: &Path, log: io::Result<Log>) -> Result<Self, Error> {
        let failed = |e| Error::io("serve a disk in", directory, e);
        let log = Arc::new(Mutex::new(log.map_err(failed)?));
        let mut config = Config::default();
        let source = format!("{SOURCE_PREFIX}{}", std::process::id());
        config.mount_options = vec![MountOption::FSName(source), MountOption::NoDev, MountOption::NoSuid];
        let served = Served { log: log.clone(), since: SystemTime::now() };
        let session = fuser::spawn_mount(served, directory, &config).map_err(failed)?;
        Ok(Self { log, directory: directory.to_owned(), session: Some(session) })
    }

    /// The file to put a loop device on.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.directory.join(IMAGE)
    }

    /// How many flushes it has seen.
    #[must_use]
    pub fn barriers(&self) -> usize {
        lock(&self.log).barriers()
    }

    /// Notes that this has been said by now: it must hold after every later power cut.
    pub fn mark(&self, label: impl Into<String>) {
        self.marker().mark(label);
    }

    /// Notes moments from other threads.
    #[must_use]
    pub fn marker(&self) -> Marker {
        Marker(self.log.clone())
    }

    /// The labels of all marks that come before a cut, in their order.
    #[must_use]
    pub fn marks(&self, cut: Cut) -> Vec<String> {
        lock(&self.log).marks(cut)
    }

    /// Goes on serving, but logs nothing more.
    pub fn stop(&self) {
        lock(&self.log).stop();
    }

    /// What a power cut after so many barriers leaves.
    ///
    /// # Errors
    /// [`Error::Barrier`] beyond [`Self::barriers`].
    pub fn image_at(&self, barrier: usize, last: LastEpoch) -> Result<Image, Error> {
        let mut log = lock(&self.log);
        let seen = log.barriers();
        log.content(Cut { barrier, last }).map(Image).ok_or(Error::Barrier { seen, asked: barrier })
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let Some(session) = self.session.take() else { return };
        // The thread that serves ends with the mount; if that is still in use, it ends when its last user does.
        if unmount(&self.directory).is_ok() {
            drop(session.umount_and_join());
        }
    }
}

/// The file system with one file.
#[derive(Debug)]
struct Served {
    log: Shared,
    since: SystemTime,
}

impl Served {
    fn attributes(&self, number: INodeNo) -> Option<FileAttr> {
        let (kind, perm, size) = match number {
            INodeNo::ROOT => (FileType::Directory, 0o700, 0),
            IMAGE_NUMBER => (FileType::RegularFile, 0o600, lock(&self.log).size()),
            _ => return None,
        };
        let t = self.since;
        Some(FileAttr {
            ino: number,
            size,
            blocks: size / 512,
            atime: t,
            mtime: t,
            ctime: t,
            crtime: t,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: BLOCK_BYTES as u32,
            flags: 0,
        })
    }

    fn bytes(&self, offset: u64, size: u32) -> io::Result<Vec<u8>> {
        let (whole, store, addresses) = {
            let log = lock(&self.log);
            let left = log.size().saturating_sub(offset).min(size.into());
            let whole = usize::try_from(left).unwrap_or(0);
            let (store, addresses) = log.addresses(offset, whole);
            (whole, store, addresses)
        };
        let mut out = vec![0; addresses.len() * BLOCK_BYTES];
        store.read(&addresses, &mut out)?;
        let within = usize::try_from(offset % BLOCK_BYTES as u64).unwrap_or(0);
        out.drain(..within.min(out.len()));
        out.truncate(whole);
        Ok(out)
    }
}

impl Filesystem for Served {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // The nearest that the kernel takes will do.
        let _ = config.set_max_write(REQUEST_BYTES);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.attributes(IMAGE_NUMBER).filter(|_| parent == INodeNo::ROOT && name == IMAGE) {
            Some(attributes) => reply.entry(&VALID, &attributes, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(number) {
            Some(attributes) => reply.attr(&VALID, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn readdir(&self, _: &Request, _: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        if offset == 0 {
            let _ = reply.add(IMAGE_NUMBER, 1, FileType::RegularFile, IMAGE);
        }
        reply.ok();
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.bytes(offset, size) {
            Ok(bytes) => reply.data(&bytes),
            Err(e) => reply.error(e.into()),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match (lock(&self.log).write(offset, data), u32::try_from(data.len())) {
            (Ok(()), Ok(length)) => reply.written(length),
            (Err(e), _) => reply.error(e.into()),
            (Ok(()), Err(_)) => reply.error(Errno::EFBIG),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // That a descriptor is closed says nothing of the disk's cache.
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        lock(&self.log).barrier();
        reply.ok();
    }
}
