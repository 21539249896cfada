//! The whole bed: a disk with a mounted file system, the recording of a run on it, and its power cuts.

use std::fs::{self, File};
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::log::{Cut, LastEpoch, Random};
use crate::stale::{SCRATCH_PREFIX, VOLUME_DIRECTORY};
use crate::volume::{FileSystem, Volume, available};
use crate::{Disk, Error, Marker, sweep};

/// A mounted file system whose disk records. A drop, by a panic too, clears everything away.
#[derive(Debug)]
pub struct Bed {
    // In this order: the file system, the disk beneath it, the directories of both.
    volume: Volume,
    disk: Disk,
    scratch: TempDir,
    first: usize,
    file_system: FileSystem,
}

/// What was recorded, from the moment when the file system was mounted.
#[derive(Debug)]
pub struct Recording {
    disk: Disk,
    _scratch: TempDir,
    first: usize,
    file_system: FileSystem,
}

/// A file system as a power cut left it, recovered by its mount.
#[derive(Debug)]
pub struct Replayed<'a> {
    /// Where it is mounted, read-write.
    pub path: &'a Path,
    /// What had been marked by then, in order.
    pub marks: &'a [String],
    /// The cut.
    pub cut: Cut,
}

fn scratch() -> Result<(TempDir, PathBuf, PathBuf), Error> {
    let scratch = || {
        let scratch = tempfile::Builder::new().prefix(SCRATCH_PREFIX).tempdir()?;
        let (disk, volume) = (scratch.path().join("disk"), scratch.path().join(VOLUME_DIRECTORY));
        fs::create_dir(&disk)?;
        fs::create_dir(&volume)?;
        Ok::<_, io::Error>((scratch, disk, volume))
    };
    scratch().map_err(|e| Error::io("make directories in", &std::env::temp_dir(), e))
}

/// Flushes a file system.
fn flush(path: &Path) -> Result<(), Error> {
    let flush = || Ok::<_, io::Error>(rustix::fs::syncfs(File::open(path)?)?);
    flush().map_err(|e| Error::io("flush", path, e))
}

impl Bed {
    /// Serves a disk of `size_bytes`, makes a file system on it and mounts that. Clears away what killed ones have left.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where this machine cannot do it: skip the test then, and print why.
    pub fn start(file_system: FileSystem, size_bytes: u64) -> Result<Self, Error> {
        available(file_system)?;
        sweep();
        let (scratch, beneath, mounted) = scratch()?;
        let disk = Disk::serve(&beneath, size_bytes)?;
        let volume = Volume::make(&disk, file_system, &mounted)?;
        flush(volume.path())?;
        let first = disk.barriers();
        Ok(Self { volume, disk, scratch, first, file_system })
    }

    /// Where the file system is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.volume.path()
    }

    /// Notes that this has been said by now: it must hold after every later power cut.
    pub fn mark(&self, label: impl Into<String>) {
        self.disk.mark(label);
    }

    /// Notes moments from other threads.
    #[must_use]
    pub fn marker(&self) -> Marker {
        self.disk.marker()
    }

    /// How many flushes the disk has seen.
    #[must_use]
    pub fn barriers(&self) -> usize {
        self.disk.barriers()
    }

    /// Ends the recording, unmounts, and looks for damage. The program under test must have ended: kill it before.
    ///
    /// # Errors
    /// [`Error::Io`] if a process still uses the file system; [`Error::Command`] with the damage.
    pub fn finish(self) -> Result<Recording, Error> {
        let Self { volume, disk, scratch, first, file_system } = self;
        let recording = Recording { disk, _scratch: scratch, first, file_system };
        recording.disk.stop();
        volume.unmount_and_check()?;
        Ok(recording)
    }
}

impl Recording {
    /// The barriers that a cut may come after: from the mount on.
    #[must_use]
    pub fn barriers(&self) -> RangeInclusive<usize> {
        self.first..=self.disk.barriers()
    }

    /// At most so many cuts, ascending: spread evenly over the barriers and moved a little by the seed; every other one
    /// leaves a part of its last epoch.
    #[must_use]
    pub fn cuts(&self, count: usize, seed: u64) -> Vec<Cut> {
        let (first, all) = (self.first, self.disk.barriers() - self.first + 1);
        let mut random = Random::seeded(seed);
        let cut = |n: usize| {
            let (from, to) = (n * all / count, ((n + 1) * all / count).max(n * all / count + 1));
            let barrier = first + from + random.below(to - from);
            let part = LastEpoch::Part(seed.wrapping_mul(1_000_003).wrapping_add(n as u64));
            Cut { barrier, last: if n.is_multiple_of(2) { LastEpoch::None } else { part } }
        };
        let mut cuts: Vec<Cut> = (0..count).map(cut).collect();
        cuts.dedup();
        cuts
    }

    /// A bed that begins as a power cut left this one: what runs on it is recorded again, and can be cut again.
    ///
    /// # Errors
    /// [`Error`]; a file system that does not mount is [`Error::Io`].
    pub fn restart(&self, cut: Cut) -> Result<Bed, Error> {
        let (scratch, beneath, mounted) = scratch()?;
        let disk = self.disk.image_at(cut.barrier, cut.last)?.serve(&beneath)?;
        let volume = Volume::mount(&disk, self.file_system, &mounted)?;
        Ok(Bed { volume, disk, scratch, first: 0, file_system: self.file_system })
    }

    /// Mounts what a power cut left, lets `look` work on it, unmounts it and looks for damage.
    ///
    /// # Errors
    /// [`Error`] as of [`Self::restart`] and [`Bed::finish`]: also when `look` leaves a process that uses it.
    pub fn replay<T>(&self, cut: Cut, look: impl FnOnce(&Replayed<'_>) -> T) -> Result<T, Error> {
        let bed = self.restart(cut)?;
        bed.disk.stop();
        let marks = self.disk.marks(cut);
        let out = look(&Replayed { path: bed.path(), marks: &marks, cut });
        bed.finish()?;
        Ok(out)
    }
}
