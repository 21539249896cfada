//! Directories that their owner may not write (mode 0555), for a member that runs as that owner and not as root.
//!
//! What is refused there waits for the next batch, for which the directory gets its owner's rights, and afterwards its own
//! mode back: within one call, so nothing of ours looks at it meanwhile. A row written before says what the mode was, and
//! goes only when that is durable again; so a start puts back what a crash left behind, before anything is compared, and
//! the lifted mode is never taken for a change that people made.
//!
//! Rows of the table Meta: `lifted.`, number of the node, 8 bytes big-endian -> mode, 4 bytes big-endian.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use anabranch_engine::kv::{Kv, Table, after_prefix};
use anabranch_model::Hlc;
use anabranch_volume::fs::Fs;

use crate::events::EventKind;
use crate::nodes::NodeId;
use crate::replica::{Replica, Result};
use crate::tables::read_number;

const PREFIX: &[u8] = b"lifted.";
/// What an owner needs to look at, enter and change a directory.
const OWNERS: u32 = 0o700;
/// Directories that something was refused in, remembered at once.
const WANTED_MAX: usize = 1024;

/// A directory with its owner's rights, and its own mode. Without a handle it could not be opened.
struct Lifted<Dir> {
    id: NodeId,
    dir: Option<Dir>,
    mode: u32,
}

/// What is lifted, and what shall be.
pub(crate) struct Lifting<Dir> {
    wanted: BTreeSet<NodeId>,
    /// Between batches only what did not get its mode back: it is tried again with each batch and before each look at the tree.
    lifted: Vec<Lifted<Dir>>,
    /// Where it cannot be lifted, or was of no use; and until when that is believed.
    refused: BTreeMap<NodeId, Hlc>,
}

impl<Dir> Default for Lifting<Dir> {
    fn default() -> Self {
        Self { wanted: BTreeSet::new(), lifted: Vec::new(), refused: BTreeMap::new() }
    }
}

impl<Dir> Lifting<Dir> {
    /// Has this directory a mode of our making?
    pub(crate) fn holds(&self, id: NodeId) -> bool {
        self.lifted.iter().any(|lifted| lifted.id == id)
    }
}

fn row(id: NodeId) -> Vec<u8> {
    [PREFIX, &id.0.to_be_bytes()].concat()
}

impl<F: Fs + Sync, K: Kv> Replica<F, K>
where
    F::Dir: Send + Sync,
    F::File: Send,
{
    /// Something was refused in these directories. `true`: it may go with their modes lifted, in the next batch.
    pub(crate) fn denied(&mut self, directories: &[NodeId], error: &io::Error) -> bool {
        if error.kind() != io::ErrorKind::PermissionDenied || self.fs.abilities().owners {
            return false;
        }
        let now = self.now;
        let lifting = &mut self.lifting;
        lifting.refused.retain(|_, until| *until > now);
        let mut hope = false;
        for id in directories {
            if lifting.holds(*id) {
                lifting.refused.insert(*id, Hlc(now.0 + self.config.limits.resolve));
            } else if !lifting.refused.contains_key(id) && lifting.wanted.len() < WANTED_MAX {
                lifting.wanted.insert(*id);
                hope = true;
            }
        }
        hope
    }

    /// Before a batch: lifts what was asked for. Not in a transaction.
    pub(crate) fn lift(&mut self) -> Result<()> {
        let mut chosen = Vec::new();
        for id in std::mem::take(&mut self.lifting.wanted) {
            if self.lifting.holds(id) {
                continue;
            }
            let Some(dir) = self.dir(id)? else { continue };
            match self.fs.stat_dir(&dir) {
                Ok(stat) if stat.mode & OWNERS != OWNERS => chosen.push((id, dir, stat.mode)),
                _ => drop(self.lifting.refused.insert(id, Hlc(self.now.0 + self.config.limits.resolve))),
            }
        }
        if chosen.is_empty() {
            return Ok(());
        }
        self.records.begin()?;
        for (id, _, mode) in &chosen {
            self.records.kv_mut().put(Table::Meta, &row(*id), &mode.to_be_bytes())?;
        }
        self.records.commit()?;
        for (id, dir, mode) in &chosen {
            if self.fs.set_mode(dir, mode | OWNERS).is_err() {
                // Somebody else's: what is refused there is reported as before.
                self.lifting.refused.insert(*id, Hlc(self.now.0 + self.config.limits.resolve));
            }
        }
        self.lifting.lifted.extend(chosen.into_iter().map(|(id, dir, mode)| Lifted { id, dir: Some(dir), mode }));
        Ok(())
    }

    /// After a batch, and before a look at the tree: puts the modes back. What cannot get its own back stays lifted, and is
    /// tried again. With `rows`, not in a transaction, the rows of the others go.
    pub(crate) fn lower(&mut self, rows: bool) -> Result<()> {
        let lifted = std::mem::take(&mut self.lifting.lifted);
        if lifted.is_empty() {
            return Ok(());
        }
        let mut done = Vec::new();
        for mut lifted in lifted {
            let dir = match lifted.dir.take() {
                Some(dir) => Ok(Some(dir)),
                None => self.open_node(lifted.id)?,
            };
            let lowered = match &dir {
                Ok(Some(dir)) => self.put_mode_back(dir, lifted.mode),
                // A directory that people moved meanwhile keeps what it has: it is theirs to set now.
                Ok(None) => Ok(()),
                Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
            };
            match lowered {
                Ok(()) => done.push(lifted.id),
                Err(error) => {
                    let text = format!("cannot put the mode {:o} of a directory back: {error}", lifted.mode);
                    self.report_once(EventKind::CannotInstall, text);
                    self.lifting.lifted.push(Lifted { dir: dir.unwrap_or_default(), ..lifted });
                }
            }
        }
        if rows && !done.is_empty() {
            self.records.begin()?;
            for id in done {
                self.records.kv_mut().delete(Table::Meta, &row(id))?;
            }
            self.records.commit()?;
        }
        Ok(())
    }

    fn put_mode_back(&self, dir: &F::Dir, mode: u32) -> io::Result<()> {
        // Another mode is somebody's choice.
        if self.fs.stat_dir(dir)?.mode == mode | OWNERS {
            self.fs.set_mode(dir, mode)?;
        }
        self.fs.sync_dir(dir)
    }

    /// At the start: what a crash left lifted. Before anything is compared.
    pub(crate) fn lower_what_was_left(&mut self) -> Result<()> {
        let to = after_prefix(PREFIX);
        let rows = self.records.kv().range(Table::Meta, PREFIX, to.as_deref(), usize::MAX)?;
        for (key, mode) in rows {
            let id = NodeId(read_number(key.get(PREFIX.len()..).unwrap_or_default())?);
            let Ok(mode) = mode.try_into().map(u32::from_be_bytes) else { continue };
            // All are opened before any is lowered: one may lie in another.
            let dir = self.open_node(id)?.unwrap_or_default();
            self.lifting.lifted.push(Lifted { id, dir, mode });
        }
        self.lower(true)
    }
}
