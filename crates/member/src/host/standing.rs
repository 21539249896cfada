//! Is what a folder holds open still what its path names?
//!
//! A replica works beneath the descriptors that it opened. A disk that was unmounted lazily, a private directory that was
//! moved away or given to somebody else: all these go on as before beneath the descriptors, or fail one call at a time. So
//! the paths are looked at now and then, and the first difference, with its path and cause, stops the folder.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anabranch_volume::fs::Fs as _;
use anabranch_volume::layout;
use anabranch_volume::linux::LinuxFs;

use crate::replica::Stop;

/// What a folder holds open.
pub(super) struct Standing {
    fs: LinuxFs,
    /// Directories and the database in the root: path, and device and inode.
    private: Vec<(PathBuf, (u64, u64))>,
}

/// A name of the layout as text: all of them are ASCII.
pub(super) fn text(name: &[u8]) -> &str {
    std::str::from_utf8(name).expect("names of the layout are ASCII")
}

/// The private directory of a root and the directories in it, the private directory first, staging second.
pub(super) fn private_paths(root: &Path) -> [PathBuf; 4] {
    let private = root.join(text(layout::PRIVATE_DIR));
    let within = |name| private.join(text(name));
    let (staging, conflict, pre_existing) =
        (within(layout::STAGING), within(layout::CONFLICT_AND_DELETED), within(layout::PRE_EXISTING));
    [private, staging, conflict, pre_existing]
}

/// The root cannot be opened.
pub(super) fn root_fails(root: &Path, error: io::Error) -> Stop {
    match error.kind() {
        io::ErrorKind::NotFound => Stop::Root(format!("{} is missing", root.display())),
        io::ErrorKind::NotADirectory => Stop::Root(format!("{} is not a directory", root.display())),
        _ => Stop::Private { path: root.display().to_string(), source: error },
    }
}

/// A folder that was kept here before has its private directory: else the root is an empty mount point, say, in which
/// nothing is to be made.
///
/// # Errors
/// [`Stop::Root`] where it is missing.
pub(super) fn expect_private(private: &Path) -> Result<(), Stop> {
    match fs::symlink_metadata(private) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Stop::Root(format!(
            "{} is missing, though this member kept the folder there before",
            private.display()
        ))),
        _ => Ok(()),
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

impl Standing {
    /// As it is now.
    ///
    /// # Errors
    /// [`Stop::Private`] where a part of the private directory cannot be looked at.
    pub(super) fn of(fs: LinuxFs, root: &Path) -> Result<Self, Stop> {
        let [private, ..] = private_paths(root);
        let database = private.join(text(layout::DATABASE));
        let look = |path: PathBuf| match identity(&path) {
            Ok(found) => Ok((path, found)),
            Err(source) => Err(Stop::Private { path: path.display().to_string(), source }),
        };
        let private = private_paths(root).into_iter().chain([database]).map(look).collect::<Result<_, _>>()?;
        Ok(Self { fs, private })
    }

    /// What is not as it was; `None`: all is.
    pub(super) fn lost(&self) -> Option<Stop> {
        let root = self.fs.path();
        match self.fs.root_in_place() {
            Ok(true) => {}
            Ok(false) if identity(root).is_err() => return Some(Stop::Root(format!("{} is missing", root.display()))),
            Ok(false) => {
                let text = format!("{} is another directory, or lies on another mount, than before", root.display());
                return Some(Stop::Root(text));
            }
            Err(error) => return Some(Stop::Root(format!("{} cannot be looked at: {error}", root.display()))),
        }
        self.private.iter().find_map(|(path, was)| {
            let unusable = |source| Some(Stop::Private { path: path.display().to_string(), source });
            match identity(path) {
                Err(error) => return unusable(error),
                Ok(found) if found != *was => {
                    return Some(Stop::Root(format!("{} is another than before", path.display())));
                }
                Ok(_) => {}
            }
            // Not the database: whoever opens and closes it gives up the locks that this process has on it.
            let readable = if path.is_dir() { fs::read_dir(path).map(drop) } else { Ok(()) };
            readable.err().filter(|error| error.kind() == io::ErrorKind::PermissionDenied).and_then(unusable)
        })
    }
}
