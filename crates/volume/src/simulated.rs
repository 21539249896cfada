//! A file system in memory, with crashes, faults, leases and users: the twin of the real one for the simulator.
//!
//! Owns the fault model of a disk. One [`SimFs`] is a handle to one disk, cheap to clone. Everything that can differ
//! between two runs comes from the seed, from [`SimClock`] and from what the world does, so a history can be replayed.
//! It must never draw randomness or time from anywhere else, and never hold anything that the real file system would
//! not hold: the tests in `conformance` are run on both.
//!
//! # What is durable when
//!
//! | what | durable after | until then a power cut leaves |
//! | --- | --- | --- |
//! | bytes of a file | `sync_file` of it, `sync_all` | the old ones; the new ones; nothing (length 0); the new length with zeros; old and new blocks mixed |
//! | attributes and times of an inode | `sync_file`, `sync_dir` of it, `sync_all` | the old or the new, apart from the bytes |
//! | names in a directory (made, removed, renamed, exchanged) | `sync_dir` of that directory, `sync_all` | a prefix of the changes of each directory, or of all |
//! | one rename or exchange | with either of its directories | all of it, or nothing: never half |
//! | a directory's own name | `sync_dir` of its parent | the directory may be gone, whatever was synced inside |
//! | a symlink's target | with its name | |
//! | what is put into a new directory by a rename | as above, and not before the directory has a name | |
//! | what earlier changes of one directory did | before later ones of it, and before the removal or move of it | |
//!
//! That is weaker than any one of ext4, XFS and btrfs, and not stronger than either. A rename of a file whose bytes
//! were not synced may survive with the bytes lost: this is what catches a missing "data durable first".
//!
//! # Faults
//!
//! Each kind of call can fail at a rate, or exactly once after so many calls ([`Faults`]). A failing `write_at` leaves
//! a part of the bytes; a failing `sync_file` may drop what it was to write, after which later syncs say that all is
//! well; a failing `sync_all` makes some things durable. A failing `list` or `stat` says nothing about absence.
//!
//! # Leases
//!
//! A lease is refused while anybody has the file open for writing. A user who opens a leased file for writing waits,
//! which shows as a lease being broken; when the lease goes, the open takes effect on the file that was looked up,
//! even if its name is now elsewhere. An open may also be caught between its two halves, the path looked up and the file
//! not yet opened: it gets there within a millisecond, so at the latest in the member's next pause.

mod calls;
#[cfg(test)]
mod conformance;
mod crash;
mod disk;
mod faults;
mod hints;
mod rng;
#[cfg(test)]
mod tests;
mod users;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anabranch_model::Timestamp;

pub use crash::{Changed, Damage, Vanished, Wreck};
pub use faults::{Call, Fault, Faults, Power};
pub use rng::Rng;
pub use users::{Deed, Mode, Thing, Tree, TreeEntry, UserHandle};

use crate::fs::Abilities;
use disk::{Disk, State};

/// A clock that the world sets: nanoseconds since 1970. Clones show the same time.
#[derive(Clone, Debug, Default)]
pub struct SimClock(Arc<AtomicI64>);

impl SimClock {
    /// A clock that shows this.
    #[must_use]
    pub fn at(nanoseconds: i64) -> Self {
        Self(Arc::new(AtomicI64::new(nanoseconds)))
    }

    /// Sets it, forwards or back.
    pub fn set(&self, nanoseconds: i64) {
        self.0.store(nanoseconds, Ordering::Relaxed);
    }

    /// What it shows.
    #[must_use]
    pub fn nanoseconds(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }

    /// A reading in the form of the records.
    #[must_use]
    pub fn timestamp(nanoseconds: i64) -> Timestamp {
        let part = nanoseconds.rem_euclid(1_000_000_000);
        Timestamp {
            seconds: nanoseconds.div_euclid(1_000_000_000),
            nanoseconds: u32::try_from(part).expect("a remainder below 10^9 fits"),
        }
    }
}

/// What kind of file system it is, and what the member may do there.
#[derive(Clone, Debug)]
pub struct DiskConfig {
    /// Bytes that fit.
    pub capacity: u64,
    /// Time stamps come in steps of so many nanoseconds: a kernel tick is 4,000,000.
    pub granularity_ns: i64,
    /// Has change cookies.
    pub cookies: bool,
    /// Has birth times.
    pub birth_times: bool,
    /// An exchange changes the ctime of both (ext4 and btrfs do it, XFS does not).
    pub exchange_moves_ctime: bool,
    /// Bytes of extended attributes that fit on one file.
    pub xattr_bytes_max: usize,
    /// What the member may do.
    pub abilities: Abilities,
    /// Who the member's process is.
    pub process: u32,
    /// Who the users are.
    pub user: u32,
    /// The names of owners and groups on this machine.
    pub owner_names: Arc<BTreeMap<u32, Box<str>>>,
    /// Hints that are kept before the queue overflows.
    pub hints_max: usize,
    /// Hints name directories only.
    pub coarse_hints: bool,
}

impl Default for DiskConfig {
    /// A member that runs as root on something like ext4.
    fn default() -> Self {
        let names = [(0, "root"), (1000, "ann"), (1001, "ben")];
        Self {
            capacity: 1 << 30,
            granularity_ns: 4_000_000,
            cookies: false,
            birth_times: true,
            exchange_moves_ctime: true,
            xattr_bytes_max: 64 << 10,
            abilities: Abilities { owners: true, leases: true, reflinks: false, handles: true },
            process: 0,
            user: 1000,
            owner_names: Arc::new(names.into_iter().map(|(n, name)| (n, name.into())).collect()),
            hints_max: 16 << 10,
            coarse_hints: false,
        }
    }
}

/// One simulated disk. Clones are handles to the same disk.
#[derive(Clone)]
pub struct SimFs(Arc<Shared>);

struct Shared {
    disk: Mutex<Disk>,
    interloper: Mutex<Option<Interloper>>,
    /// Whether there is one, so that calls need not ask the lock.
    watched: AtomicBool,
    /// It acts before every call, also before those that only look.
    everywhere: AtomicBool,
}

/// Somebody who may act before a call of the member takes effect.
pub type Interloper = Box<dyn FnMut(&SimFs, Call) + Send>;

/// A directory of [`SimFs`], open.
#[derive(Clone, Debug)]
pub struct SimDir {
    inode: u64,
    epoch: u64,
}

/// A file of [`SimFs`], open.
#[derive(Debug)]
pub struct SimFile {
    fs: SimFs,
    inode: u64,
    epoch: u64,
    id: u64,
    writable: bool,
}

/// All that a disk held at one moment, names and bytes that were not yet durable too.
#[derive(Clone)]
pub struct Image(State);

impl fmt::Debug for SimFs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SimFs")
    }
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Image({} inodes)", self.0.inodes.len())
    }
}

impl SimFs {
    /// An empty disk. `seed` decides its faults and the generations of its inodes.
    #[must_use]
    pub fn new(config: DiskConfig, clock: SimClock, seed: u64) -> Self {
        Self::of(Disk::new(config, clock, seed))
    }

    /// A disk with what an image holds: a copied disk, in another machine. The objects are the same as there.
    #[must_use]
    pub fn from_image(config: DiskConfig, clock: SimClock, seed: u64, image: &Image) -> Self {
        let fs = Self::new(config, clock, seed);
        fs.restore(image);
        fs
    }

    fn of(disk: Disk) -> Self {
        let disk = Mutex::new(disk);
        let no = || AtomicBool::new(false);
        Self(Arc::new(Shared { disk, interloper: Mutex::new(None), watched: no(), everywhere: no() }))
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.0.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All that it holds now.
    #[must_use]
    pub fn image(&self) -> Image {
        Image(self.disk().state.clone())
    }

    /// Goes back to an image, as a virtual machine does: handles die, users' too. Clock, power, faults and their
    /// counters stay. What is made from now on never has the object of something that was made after the image.
    pub fn restore(&self, image: &Image) {
        let mut disk = self.disk();
        disk.state = image.0.clone();
        disk.emptied.clear();
        disk.forget_processes(true);
    }

    /// As [`Self::restore`], file by file, as a backup does: all that is there is another object than in the image.
    pub fn restore_copied(&self, image: &Image) {
        self.restore(image);
        let mut disk = self.disk();
        let now = disk.time();
        let Disk { state, rng, .. } = &mut *disk;
        for inode in state.inodes.iter_mut().flatten() {
            (inode.generation, inode.birth) = (rng.bits(), now);
        }
    }

    /// The switch of this machine's power.
    #[must_use]
    pub fn power(&self) -> Power {
        self.disk().power.clone()
    }

    /// Uses one switch for this disk and others (the database of the same machine).
    pub fn set_power(&self, power: Power) {
        self.disk().power = power;
    }

    /// Sets faults, or asks what happened.
    pub fn faults<R>(&self, with: impl FnOnce(&mut Faults) -> R) -> R {
        with(&mut self.disk().faults)
    }

    /// Changes what kind of file system it is.
    pub fn configure<R>(&self, with: impl FnOnce(&mut DiskConfig) -> R) -> R {
        with(&mut self.disk().config)
    }

    /// Bytes in use.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.disk().state.used
    }

    /// Whether the volume is mounted where the folder's root is. While it is not, the path shows an empty directory;
    /// handles that are held stay as they are.
    pub fn set_mounted(&self, mounted: bool) {
        self.disk().mounted = mounted;
    }

    /// Lets somebody act before the member's calls take effect: before each that changes something, while it reads or
    /// pauses, and around leases ([`Call::lets_others_in`]). Never called from within itself.
    pub fn set_interloper(&self, interloper: Option<Interloper>) {
        self.0.watched.store(interloper.is_some(), Ordering::Relaxed);
        *self.0.interloper.lock().unwrap_or_else(PoisonError::into_inner) = interloper;
    }

    /// As [`Self::set_interloper`], before every call.
    pub fn set_interloper_everywhere(&self, interloper: Interloper) {
        self.0.everywhere.store(true, Ordering::Relaxed);
        self.set_interloper(Some(interloper));
    }

    fn interlope(&self, call: Call) {
        let taken = self.0.interloper.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Nobody there: it is acting right now, and what it calls is not interrupted again.
        let Some(mut interloper) = taken else { return };
        interloper(self, call);
        let mut place = self.0.interloper.lock().unwrap_or_else(PoisonError::into_inner);
        // It may have put another one in its place, or taken itself away.
        if place.is_none() && self.0.watched.load(Ordering::Relaxed) {
            *place = Some(interloper);
        }
    }

    /// Begins a call of the member: others first, then power and faults.
    fn enter(&self, call: Call) -> io::Result<MutexGuard<'_, Disk>> {
        match self.enter_write(call)? {
            (disk, None) => Ok(disk),
            (_, Some(fault)) => Err(fault.error()),
        }
    }

    /// As [`Self::enter`], for calls that do a part of their work before they fail.
    fn enter_write(&self, call: Call) -> io::Result<(MutexGuard<'_, Disk>, Option<Fault>)> {
        let others = call.lets_others_in() || self.0.everywhere.load(Ordering::Relaxed);
        if others && self.0.watched.load(Ordering::Relaxed) {
            self.interlope(call);
        }
        let mut guard = self.disk();
        let disk = &mut *guard;
        let on = if call.mutates() { disk.power.step() } else { disk.power.is_on() };
        if !on {
            return Err(disk::error(libc::EIO));
        }
        let fault = disk.faults.draw(call, &mut disk.rng);
        Ok((guard, fault))
    }
}
