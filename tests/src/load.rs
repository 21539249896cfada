//! Users at work: each writes in a directory of its own, where it is the only writer, and now and then in files that all
//! share. Bounded by an allowance, so that a test decides how much happens between two of its steps.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use crate::closed::{self, Ledger};
use crate::random::Random;
use crate::until::until_true;

/// Where everybody writes.
pub const SHARED: &str = "shared";

/// Files in [`SHARED`].
const SHARED_FILES: u64 = 4;

/// How many operations may be made, and have been.
#[derive(Default)]
struct Meter {
    allowed: u64,
    made: u64,
    ended: bool,
}

/// Operations allowed and made, shared by a group of users.
#[derive(Clone, Default)]
pub struct Allowance(Arc<(Mutex<Meter>, Condvar)>);

impl Allowance {
    /// Allows more operations.
    pub fn grant(&self, operations: u64) {
        self.change(|meter| meter.allowed += operations);
    }

    /// Lets the users end, whatever is left.
    pub fn end(&self) {
        self.change(|meter| meter.ended = true);
    }

    /// Operations made so far.
    #[must_use]
    pub fn made(&self) -> u64 {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).made
    }

    /// Grants operations and waits until they have been made.
    ///
    /// # Errors
    /// When they are not made within two minutes.
    pub fn spend(&self, operations: u64) -> Result<()> {
        let goal = self.made() + operations;
        self.grant(operations);
        until_true("users to work", Duration::from_secs(120), || self.made() >= goal)
    }

    fn change(&self, change: impl FnOnce(&mut Meter)) {
        change(&mut self.0.0.lock().unwrap_or_else(PoisonError::into_inner));
        self.0.1.notify_all();
    }

    /// Waits for leave to make one operation; `false` at the end.
    fn take(&self) -> bool {
        let meter = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = |meter: &mut Meter| !meter.ended && meter.made >= meter.allowed;
        let mut meter = self.0.1.wait_while(meter, waiting).unwrap_or_else(PoisonError::into_inner);
        meter.made += u64::from(!meter.ended);
        !meter.ended
    }
}

/// What a user left when he ended.
#[derive(Debug, Default)]
pub struct Left {
    /// His name.
    pub writer: String,
    /// Every file of his own directory, with the content that he closed last.
    pub own: BTreeMap<PathBuf, Vec<u8>>,
    /// What he closed last in each shared file.
    pub shared: BTreeMap<PathBuf, Vec<u8>>,
}

/// A user at work in a thread of his own.
pub struct User {
    thread: JoinHandle<Result<Left>>,
}

impl User {
    /// Starts a user: `writer` names him and his directory beneath `tree`.
    ///
    /// # Errors
    /// When his directories cannot be made.
    pub fn start(writer: &str, tree: &Path, ledger: &Ledger, allowance: &Allowance) -> Result<Self> {
        for dir in [writer, SHARED] {
            fs::create_dir_all(tree.join(dir)).context("make a user's directory")?;
        }
        let mut work = Work {
            tree: tree.to_path_buf(),
            ledger: ledger.clone(),
            random: Random::for_test(writer),
            number: 0,
            left: Left { writer: writer.to_owned(), ..Left::default() },
        };
        let allowance = allowance.clone();
        let thread = thread::spawn(move || {
            while allowance.take() {
                work.one()?;
            }
            Ok(work.left)
        });
        Ok(Self { thread })
    }

    /// Waits for him to end; [`Allowance::end`] makes him.
    ///
    /// # Errors
    /// When one of his operations failed: the program stood in a user's way.
    pub fn end(self) -> Result<Left> {
        self.thread.join().map_err(|_| anyhow!("a user's thread panicked"))?
    }
}

struct Work {
    tree: PathBuf,
    ledger: Ledger,
    random: Random,
    number: u64,
    left: Left,
}

impl Work {
    /// One operation, of those that people and their programs make.
    fn one(&mut self) -> Result<()> {
        let known: Vec<PathBuf> = self.left.own.keys().cloned().collect();
        let some = self.random.choose(&known).cloned();
        match (self.random.within(0..100), some) {
            (0..10, _) => self.write_shared(),
            (10..30, Some(path)) => self.in_place(&path).map(drop),
            (30..50, Some(path)) => self.replace(&path),
            (50..60, Some(path)) => self.rename(&path),
            (60..70, Some(path)) => self.delete(&path),
            (70..75, Some(path)) => self.rename_directory(&path),
            _ => {
                let path = self.new_path();
                self.in_place(&path).map(drop)
            }
        }
    }

    fn fresh(&mut self) -> Vec<u8> {
        self.number += 1;
        self.ledger.note(&self.left.writer, self.number);
        closed::content(&self.left.writer, self.number, &mut self.random)
    }

    fn new_path(&mut self) -> PathBuf {
        let directory = format!("d{}", self.random.within(0..6));
        Path::new(&self.left.writer).join(directory).join(format!("f{}", self.random.within(0..60)))
    }

    /// Opens, truncates, writes in two pieces, closes.
    fn in_place(&mut self, path: &Path) -> Result<Vec<u8>> {
        let bytes = self.fresh();
        tell(format_args!("write {} as {}", path.display(), self.number));
        let full = self.tree.join(path);
        if let Some(parent) = full.parent() {
            fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
        }
        write_in_pieces(&full, &bytes)?;
        if path.starts_with(&self.left.writer) {
            self.left.own.insert(path.to_path_buf(), bytes.clone());
        }
        Ok(bytes)
    }

    /// Writes beside and renames over, as editors save.
    fn replace(&mut self, path: &Path) -> Result<()> {
        let bytes = self.fresh();
        tell(format_args!("replace {} as {}", path.display(), self.number));
        let full = self.tree.join(path);
        let beside = full.with_extension("new~");
        write_in_pieces(&beside, &bytes)?;
        fs::rename(&beside, &full).with_context(|| format!("rename over {}", full.display()))?;
        self.left.own.insert(path.to_path_buf(), bytes);
        Ok(())
    }

    fn rename(&mut self, path: &Path) -> Result<()> {
        let to = self.new_path();
        tell(format_args!("rename {} to {}", path.display(), to.display()));
        let full = self.tree.join(&to);
        if let Some(parent) = full.parent() {
            fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
        }
        fs::rename(self.tree.join(path), &full).with_context(|| format!("rename {}", path.display()))?;
        if let Some(bytes) = self.left.own.remove(path) {
            self.left.own.insert(to, bytes);
        }
        Ok(())
    }

    fn delete(&mut self, path: &Path) -> Result<()> {
        tell(format_args!("delete {}", path.display()));
        fs::remove_file(self.tree.join(path)).with_context(|| format!("delete {}", path.display()))?;
        self.left.own.remove(path);
        Ok(())
    }

    /// Renames the directory of a file to a name that was never used.
    fn rename_directory(&mut self, path: &Path) -> Result<()> {
        let Some(from) = path.parent() else { bail!("{} has no directory", path.display()) };
        self.number += 1;
        let to = Path::new(&self.left.writer).join(format!("r{}", self.number));
        tell(format_args!("rename directory {} to {}", from.display(), to.display()));
        fs::rename(self.tree.join(from), self.tree.join(&to)).with_context(|| format!("rename {}", from.display()))?;
        let moved: Vec<PathBuf> = self.left.own.keys().filter(|own| own.starts_with(from)).cloned().collect();
        for own in moved {
            let Some(name) = own.file_name().map(ToOwned::to_owned) else { continue };
            if let Some(bytes) = self.left.own.remove(&own) {
                self.left.own.insert(to.join(name), bytes);
            }
        }
        Ok(())
    }

    fn write_shared(&mut self) -> Result<()> {
        let path = Path::new(SHARED).join(format!("s{}", self.random.within(0..SHARED_FILES)));
        let bytes = self.in_place(&path)?;
        self.left.shared.insert(path, bytes);
        Ok(())
    }
}

/// Prints one operation with the time of day (UTC), as the members' logs have it, where `E2E_JOURNAL` is set.
fn tell(operation: std::fmt::Arguments<'_>) {
    if crate::setting("E2E_JOURNAL", 0) == 0 {
        return;
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let seconds = now.as_secs() % 86_400;
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    eprintln!("{hour:02}:{minute:02}:{second:02}.{:06}Z {operation}", now.subsec_micros());
}

fn write_in_pieces(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .with_context(|| format!("open {}", path.display()))?;
    let (one, two) = bytes.split_at(bytes.len() / 2);
    let write =
        |file: &mut File, piece: &[u8]| file.write_all(piece).with_context(|| format!("write {}", path.display()));
    write(&mut file, one)?;
    write(&mut file, two)
}
