//! What a watcher would have said: which entries may have changed since it was last asked.

use std::collections::BTreeMap;

use super::SimFs;
use super::disk::{Disk, Name};
use crate::watch::Hint;

/// Entries that may have changed, merged: they say nothing of order (design, section 5).
#[derive(Clone, Debug, Default)]
pub(super) struct Hints {
    entries: BTreeMap<(u64, Name), bool>,
    everything: bool,
}

impl Hints {
    pub(super) fn entry(&mut self, dir: u64, name: &Name, closed_after_write: bool, max: usize) {
        if self.everything {
            return;
        }
        *self.entries.entry((dir, Name::clone(name))).or_default() |= closed_after_write;
        if self.entries.len() > max {
            self.overflow();
        }
    }

    pub(super) fn overflow(&mut self) {
        self.entries.clear();
        self.everything = true;
    }
}

impl Disk {
    fn take_hints(&mut self) -> Vec<Hint> {
        let hints = std::mem::take(&mut self.hints);
        if hints.everything {
            return vec![Hint::Everything];
        }
        let mut out: Vec<Hint> = Vec::with_capacity(hints.entries.len());
        for ((dir, name), closed_after_write) in hints.entries {
            let Ok(directory) = self.object(dir) else { continue };
            if self.config.coarse_hints {
                let hint = Hint::Directory { directory };
                if out.last() != Some(&hint) {
                    out.push(hint);
                }
            } else {
                out.push(Hint::Entry { directory, name: name.to_vec(), closed_after_write });
            }
        }
        out
    }
}

impl SimFs {
    /// What may have changed since this was last asked, by whomever: our own calls too.
    pub fn take_hints(&self) -> Vec<Hint> {
        self.disk().take_hints()
    }

    /// Is there anything to take?
    #[must_use]
    pub fn has_hints(&self) -> bool {
        let disk = self.disk();
        disk.hints.everything || !disk.hints.entries.is_empty()
    }

    /// The watcher's queue overflows: the next answer is [`Hint::Everything`].
    pub fn overflow_hints(&self) {
        self.disk().hints.overflow();
    }
}
