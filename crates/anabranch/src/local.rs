//! A member's local state: the data directory with its one TOML file, its lock, and what else lies there.
//!
//! | path below the data directory | what |
//! | --- | --- |
//! | `anabranch.toml` | name, listening address, allowed roots, the domain's folder id |
//! | `keys/` | the member's key pair |
//! | `domain/` | this member's copy of `$domain` |
//! | `tokens/` | tokens of the folders that this member keeps |
//! | `listened` | where the member listened when its object was last made to say so |
//! | `invitations.json` | invitations given and not yet redeemed |
//! | `events.jsonl`, `events.1.jsonl` | events, the newest 8 MiB and the 8 MiB before |
//! | `socket`, `lock` | of the running daemon |

use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anabranch_console::Failure;
use serde::{Deserialize, Serialize};

const FILE: &str = "anabranch.toml";

/// The local file, as it is written.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Local {
    /// This member's name in the domain.
    pub(crate) name: String,
    /// Where it listens.
    pub(crate) listen: SocketAddr,
    /// Beneath which directories the domain may keep folders here.
    pub(crate) roots: Vec<PathBuf>,
    /// The folder id of `$domain`.
    pub(crate) domain: String,
    /// It made the domain.
    #[serde(default)]
    pub(crate) founder: bool,
    /// What to do after an unexpected shutdown: `auto` or `manual`.
    #[serde(default = "auto")]
    pub(crate) recovery: String,
}

fn auto() -> String {
    "auto".into()
}

/// A data directory.
#[derive(Clone, Debug)]
pub(crate) struct Data(pub(crate) PathBuf);

impl Data {
    pub(crate) fn keys(&self) -> PathBuf {
        self.0.join("keys")
    }

    pub(crate) fn domain(&self) -> PathBuf {
        self.0.join("domain")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.0.join("socket")
    }

    pub(crate) fn token(&self, folder: &str) -> PathBuf {
        self.0.join("tokens").join(folder)
    }

    fn file(&self) -> PathBuf {
        self.0.join(FILE)
    }

    /// Where the member listened when its object was last made to say so; `None` where that is not known.
    pub(crate) fn listened(&self) -> Option<SocketAddr> {
        fs::read_to_string(self.0.join("listened")).ok()?.trim().parse().ok()
    }

    /// The member's object says that it listens there.
    pub(crate) fn note_listened(&self, listen: SocketAddr) -> Result<(), Failure> {
        let path = self.0.join("listened");
        write_whole(&path, listen.to_string().as_bytes())
            .map_err(|e| Failure::failed(format!("cannot write {}", path.display())).because(e.to_string()))
    }

    /// Is there local state already?
    ///
    /// # Errors
    /// Where this user may not look.
    pub(crate) fn exists(&self) -> Result<bool, Failure> {
        self.file().try_exists().map_err(|error| self.unreadable(&error))
    }

    /// This user may not read what lies there.
    fn unreadable(&self, error: &io::Error) -> Failure {
        let owner =
            fs::metadata(&self.0).map(|found| format!(", which belongs to the user with the number {}", found.uid()));
        let owner = owner.unwrap_or_default();
        Failure::failed(format!("the data directory {} cannot be read by this user", self.0.display()))
            .because(error.to_string())
            .hint(format!("run the command as the user that runs the daemon{owner}, or as root"))
    }

    /// Makes the directory, for its owner alone.
    pub(crate) fn create(&self) -> Result<(), Failure> {
        let failed = |path: &Path, error: io::Error| {
            Failure::failed(format!("cannot make {}", path.display())).because(error.to_string())
        };
        for path in [self.0.clone(), self.domain(), self.0.join("tokens")] {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(|e| failed(&path, e))?;
        }
        Ok(())
    }

    /// Reads the local file.
    pub(crate) fn load(&self) -> Result<Local, Failure> {
        let path = self.file();
        let text = fs::read_to_string(&path).map_err(|error| {
            if error.kind() == io::ErrorKind::PermissionDenied {
                return self.unreadable(&error);
            }
            let failure = Failure::usage(format!("cannot read {}", path.display())).because(error.to_string());
            if error.kind() == io::ErrorKind::NotFound {
                failure.hint("make a domain with `anabranch init --name NAME`, or join one with `anabranch join INVITATION --name NAME`")
            } else {
                failure
            }
        })?;
        let local: Local = toml::from_str(&text).map_err(|error| {
            Failure::usage(format!("{} cannot be used", path.display()))
                .because(error.to_string())
                .hint("correct or remove that line")
        })?;
        if local.recovery != "auto" && local.recovery != "manual" {
            return Err(Failure::usage(format!("{}: recovery = {:?} is not known", path.display(), local.recovery))
                .hint("it is `auto` or `manual`"));
        }
        Ok(local)
    }

    /// Writes the local file, whole or not at all.
    pub(crate) fn save(&self, local: &Local) -> Result<(), Failure> {
        let text = toml::to_string_pretty(local).map_err(|e| Failure::failed(e.to_string()))?;
        write_whole(&self.file(), text.as_bytes())
            .map_err(|e| Failure::failed(format!("cannot write {}", self.file().display())).because(e.to_string()))
    }

    /// Takes the lock of the data directory; it is held until the file is dropped.
    pub(crate) fn lock(&self) -> Result<File, Failure> {
        let path = self.0.join("lock");
        let failed = |e: io::Error| Failure::failed(format!("cannot lock {}", path.display())).because(e.to_string());
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(fs::TryLockError::WouldBlock) => {
                Err(Failure::failed(format!("a daemon runs already with the data directory {}", self.0.display()))
                    .hint("stop it first, or give this one its own --data directory"))
            }
            Err(fs::TryLockError::Error(error)) => Err(failed(error)),
        }
    }
}

/// Writes a file so that at any moment it is the old one or the new one.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_whole_by(path, path.parent().unwrap_or(Path::new(".")), bytes)
}

/// As [`write_whole`]; what is written first lies in `aside`, on the same file system: so a replicated folder never shows it.
pub(crate) fn write_whole_by(path: &Path, aside: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let dir = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let between = aside.join(format!(".new-{name}"));
    let mut file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&between)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&between, path)?;
    File::open(dir)?.sync_all()
}
