//! What replication needs of a file system, as narrow as it can be: one method a system call or nearly so.
//!
//! [`crate::linux::LinuxFs`] does it with real system calls, [`crate::simulated::SimFs`] in memory with crashes and
//! faults. The order of operations that the design's section 8 demands stands above this trait, in code that both share.
//!
//! Paths never appear: every operation names a directory handle and one component, so nothing is ever followed out of
//! the root.

use std::io;
use std::time::Duration;

use anabranch_model::{Attributes, Timestamp};

/// What kind of thing an entry is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Socket, device or FIFO: skipped, and said.
    Other,
}

/// Which thing this is: the file handle within (file system, subvolume) (design, section 2). At most 128 bytes; equal
/// bytes are the same thing, and a handle never repeats for another one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct Object(pub Box<[u8]>);

/// Whether a thing may have changed: (size, mtime, ctime, change cookie where there is one) (design, section 2).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct FileStamp {
    /// Bytes.
    pub size: u64,
    /// Last change of data.
    pub mtime: Timestamp,
    /// Last change of anything.
    pub ctime: Timestamp,
    /// `statx` change cookie; 0 where there is none.
    pub cookie: u64,
}

impl FileStamp {
    /// Equal to no real one, so that a comparison reads what it is of. Its mtime stays: what differs from that was touched.
    #[must_use]
    pub fn doubted(mtime: Timestamp) -> Self {
        Self { mtime, ..Self::default() }
    }
}

/// One look at an entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stat {
    /// What it is.
    pub kind: Kind,
    /// Which one it is.
    pub object: Object,
    /// Whether it may have changed.
    pub stamp: FileStamp,
    /// Permission and set-id bits.
    pub mode: u32,
    /// Owner's number.
    pub uid: u32,
    /// Group's number.
    pub gid: u32,
    /// Hard links.
    pub links: u32,
    /// Birth time where the file system has it.
    pub birth: Option<Timestamp>,
    /// Blocks of 512 bytes in use: fewer than the size needs means a sparse file.
    pub blocks: u64,
    /// A mount point or another subvolume's root: never entered.
    pub foreign: bool,
}

/// An entry as enumeration gives it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Name, any bytes.
    pub name: Vec<u8>,
    /// What kind, as the directory says; `None` where it does not.
    pub kind: Option<Kind>,
}

/// Free room and identity of the file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Room {
    /// Bytes that may still be written.
    pub free: u64,
    /// All bytes.
    pub total: u64,
}

/// What a file system (and this process on it) can hold; parts that it cannot hold are neither applied nor taken for
/// local changes (design, section 5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Abilities {
    /// May give files to other owners (root).
    pub owners: bool,
    /// Gives read leases to this process.
    pub leases: bool,
    /// Can clone (reflink).
    pub reflinks: bool,
    /// Can open by file handle.
    pub handles: bool,
}

/// How a lease stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lease {
    /// Granted: nobody has it open for writing.
    Granted,
    /// Refused: somebody has it open, or mapped, for writing.
    InUse,
    /// This file system or process gets no leases here.
    Unavailable,
}

/// A file system beneath the root of one replicated folder.
///
/// Names are single components. Every method that follows a symlink, crosses a mount or leaves the root is wrong.
/// `NotFound` means exactly that the entry is absent; any other error says nothing about absence.
pub trait Fs: Clone + Send + Sync + 'static {
    /// A directory, open. Cheap to clone.
    type Dir: Clone + Send + Sync + 'static;
    /// A file, open.
    type File: Send + Sync + 'static;

    /// The root itself.
    fn root(&self) -> Self::Dir;
    /// Looks at the root's path anew: is it still the directory that [`Self::root`] holds?
    fn root_in_place(&self) -> io::Result<bool>;
    /// What can be held here.
    fn abilities(&self) -> Abilities;
    /// Free room.
    fn room(&self) -> io::Result<Room>;

    /// Opens a subdirectory: no symlink, no mount point, no other subvolume (those are `Err`, never `NotFound`).
    fn open_dir(&self, dir: &Self::Dir, name: &[u8]) -> io::Result<Self::Dir>;
    /// Enumerates: all entries but `.` and `..`, or an error. Never a part.
    fn list(&self, dir: &Self::Dir) -> io::Result<Vec<Entry>>;
    /// Looks at an entry without following it; `None` only when it is absent.
    fn stat(&self, dir: &Self::Dir, name: &[u8]) -> io::Result<Option<Stat>>;
    /// Looks at the directory itself.
    fn stat_dir(&self, dir: &Self::Dir) -> io::Result<Stat>;
    /// Looks at an open file.
    fn stat_file(&self, file: &Self::File) -> io::Result<Stat>;

    /// Opens a regular file for reading; a symlink or anything else is an error.
    fn open_file(&self, dir: &Self::Dir, name: &[u8]) -> io::Result<Self::File>;
    /// Opens the regular file that was found to be this object, wherever it is now, for reading: without a walk to its name.
    /// `None` where that cannot be had; open it by its name then. A rename moves the file stamp, so who has compared that knows
    /// that it is where it was.
    fn open_object(&self, _object: &Object) -> Option<Self::File> {
        None
    }
    /// Reads at an offset; fewer bytes than asked only at the end.
    fn read_at(&self, file: &Self::File, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Reads `length` bytes at an offset; fewer only at the end.
    fn read_vec(&self, file: &Self::File, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        let count = self.read_at(file, &mut bytes, offset)?;
        bytes.truncate(count);
        Ok(bytes)
    }
    /// The next range with data at or after `offset` (`SEEK_DATA`, `SEEK_HOLE`): start and end; `None` beyond the last.
    fn data_range(&self, file: &Self::File, offset: u64) -> io::Result<Option<(u64, u64)>>;
    /// Reads a symlink's target.
    fn read_link(&self, dir: &Self::Dir, name: &[u8]) -> io::Result<Vec<u8>>;

    /// Takes a read lease; kept until [`Self::release`] or the file is dropped.
    fn lease(&self, file: &Self::File) -> io::Result<Lease>;
    /// Is the lease granted and not being broken?
    fn lease_unbroken(&self, file: &Self::File) -> io::Result<bool>;
    /// Lets the lease go.
    fn release(&self, file: &Self::File) -> io::Result<()>;
    /// Waits (the millisecond of section 8). Other processes go on meanwhile.
    fn pause(&self, time: Duration);

    /// Makes a new file, mode 0600, for writing and reading; `AlreadyExists` where the name is taken.
    fn create_file(&self, dir: &Self::Dir, name: &[u8]) -> io::Result<Self::File>;
    /// As [`Self::create_file`], with these permission bits from the start where that saves a call; whoever asks sets them
    /// in the end all the same.
    fn create_file_for(&self, dir: &Self::Dir, name: &[u8], _mode: u32) -> io::Result<Self::File> {
        self.create_file(dir, name)
    }
    /// Opens a private file of ours again for writing.
    fn open_private(&self, dir: &Self::Dir, name: &[u8]) -> io::Result<Self::File>;
    /// Writes all of `bytes` at an offset, or fails.
    fn write_at(&self, file: &Self::File, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// These bytes of a file will not change soon: they may be on their way to the disk before anybody waits for that.
    fn begin_write_back(&self, _file: &Self::File, _offset: u64, _length: u64) {}
    /// Sets the length; what is added is a hole.
    fn set_size(&self, file: &Self::File, size: u64) -> io::Result<()>;
    /// Clones `length` bytes (reflink) at equal offsets, `Unsupported` where the file system cannot.
    fn clone_range(&self, from: &Self::File, to: &Self::File, length: u64) -> io::Result<()>;
    /// Makes a directory, mode 0700.
    fn create_dir(&self, dir: &Self::Dir, name: &[u8]) -> io::Result<()>;
    /// Makes a symlink.
    fn create_symlink(&self, dir: &Self::Dir, name: &[u8], target: &[u8]) -> io::Result<()>;
    /// Makes a symlink that will be renamed into `home`, which may not take every symlink (project quotas).
    fn create_symlink_for(&self, dir: &Self::Dir, name: &[u8], target: &[u8], _home: &Self::Dir) -> io::Result<()> {
        self.create_symlink(dir, name, target)
    }

    /// Reads mode, owners by number and name, and the carried xattrs of an entry (which must not be a symlink; for one,
    /// owners only).
    fn read_attributes(&self, dir: &Self::Dir, name: &[u8]) -> io::Result<Attributes>;
    /// Applies attributes in the order of section 8 (owner, POSIX ACL, mode, other xattrs, `security.NTACL` last), each
    /// part that this process can hold; returns what is on disk afterwards, read back. Extra carried xattrs are removed.
    fn write_attributes(&self, dir: &Self::Dir, name: &[u8], wanted: &Attributes) -> io::Result<Attributes>;
    /// As [`Self::read_attributes`], of the open file with this name, of which `stat` was just read.
    fn file_attributes(
        &self,
        dir: &Self::Dir,
        name: &[u8],
        _file: &Self::File,
        _stat: &Stat,
    ) -> io::Result<Attributes> {
        self.read_attributes(dir, name)
    }
    /// Has an entry, of which `stat` was just read, exactly these attributes?
    fn has_attributes(&self, dir: &Self::Dir, name: &[u8], _stat: &Stat, wanted: &Attributes) -> io::Result<bool> {
        Ok(self.read_attributes(dir, name)? == *wanted)
    }
    /// Finishes a private file that nobody else knows: attributes where there are any (as [`Self::write_attributes`]),
    /// then the modification time. Returns what it is and has afterwards, read back.
    fn finish_private(
        &self,
        dir: &Self::Dir,
        name: &[u8],
        _file: &Self::File,
        wanted: Option<&Attributes>,
        mtime: Timestamp,
    ) -> io::Result<(Stat, Attributes)> {
        let attributes = match wanted {
            Some(wanted) => self.write_attributes(dir, name, wanted)?,
            None => self.read_attributes(dir, name)?,
        };
        self.set_mtime(dir, name, mtime)?;
        Ok((self.stat(dir, name)?.ok_or(io::ErrorKind::NotFound)?, attributes))
    }
    /// Sets the permission bits of a directory, and nothing else.
    fn set_mode(&self, dir: &Self::Dir, mode: u32) -> io::Result<()>;
    /// Sets the modification time of an entry, not following symlinks.
    fn set_mtime(&self, dir: &Self::Dir, name: &[u8], mtime: Timestamp) -> io::Result<()>;

    /// Renames where nothing has the new name (`RENAME_NOREPLACE`).
    fn rename_new(&self, from: &Self::Dir, old: &[u8], to: &Self::Dir, new: &[u8]) -> io::Result<()>;
    /// Exchanges two entries (`RENAME_EXCHANGE`).
    fn exchange(&self, one: &Self::Dir, name: &[u8], other: &Self::Dir, with: &[u8]) -> io::Result<()>;
    /// Removes a file or symlink.
    fn remove_file(&self, dir: &Self::Dir, name: &[u8]) -> io::Result<()>;
    /// Removes an empty directory; `DirectoryNotEmpty` else.
    fn remove_dir(&self, dir: &Self::Dir, name: &[u8]) -> io::Result<()>;

    /// Makes a file's data and attributes durable.
    fn sync_file(&self, file: &Self::File) -> io::Result<()>;
    /// Makes a directory's entries durable.
    fn sync_dir(&self, dir: &Self::Dir) -> io::Result<()>;
    /// Makes everything on the file system durable.
    fn sync_all(&self) -> io::Result<()>;

    /// Where the thing with this handle is now: its directory's object and its name. `None` when it exists no more or
    /// lies outside the root; `Unsupported` where handles cannot be opened.
    fn locate(&self, object: &Object) -> io::Result<Option<(Object, Vec<u8>)>>;
    /// How many threads may hash at once; 1 in the simulator.
    fn parallelism(&self) -> usize;
}
