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

/// What is lifted, and what shall be.
pub(crate) struct Lifting<Dir> {
    wanted: BTreeSet<NodeId>,
    lifted: Vec<(NodeId, Dir, u32)>,
    /// Where it cannot be lifted, or was of no use; and until when that is believed.
    refused: BTreeMap<NodeId, Hlc>,
}

impl<Dir> Default for Lifting<Dir> {
    fn default() -> Self {
        Self { wanted: BTreeSet::new(), lifted: Vec::new(), refused: BTreeMap::new() }
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
            if lifting.lifted.iter().any(|(lifted, ..)| lifted == id) {
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
        self.lifting.lifted = chosen;
        Ok(())
    }

    /// After a batch: puts the modes back. With `rows`, not in a transaction, their rows go too.
    pub(crate) fn lower(&mut self, rows: bool) -> Result<()> {
        let lifted = std::mem::take(&mut self.lifting.lifted);
        if lifted.is_empty() {
            return Ok(());
        }
        let mut done = Vec::new();
        for (id, dir, mode) in lifted {
            match self.put_mode_back(&dir, mode) {
                Ok(()) => done.push(id),
                Err(error) => {
                    let text = format!("cannot put the mode {mode:o} of a directory back: {error}");
                    self.report_once(EventKind::CannotInstall, text);
                }
            }
        }
        if rows {
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
            let mode = mode.try_into().map(u32::from_be_bytes).ok();
            // A directory that people moved meanwhile keeps what it has: it is theirs to set now.
            if let (Some(mode), Some(dir)) = (mode, self.dir(id)?) {
                self.lifting.lifted.push((id, dir, mode));
            } else {
                self.records.begin()?;
                self.records.kv_mut().delete(Table::Meta, &key)?;
                self.records.commit()?;
            }
        }
        self.lower(true)
    }
}
