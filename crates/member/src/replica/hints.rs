//! What a watcher says is taken down: it is looked at when it has settled.

use anabranch_engine::kv::Kv;
use anabranch_model::Hlc;
use anabranch_volume::fs::Fs;
use anabranch_volume::watch::Hint;

use super::{Replica, Result};
use crate::events::EventKind;
use crate::nodes::{self, NodeId, ROOT_NODE};

impl<F: Fs + Sync, K: Kv> Replica<F, K>
where
    F::Dir: Send + Sync,
    F::File: Send,
{
    pub(super) fn take_hints(&mut self, hints: Vec<Hint>) -> Result<()> {
        for hint in hints {
            match hint {
                Hint::Entry { directory, name, closed_after_write } => {
                    // What is on its way in or out, in staging, is our own.
                    if let Some(node) = self.dir_node(&directory)?.filter(|n| *n != nodes::STAGING_NODE)
                        && !(node == ROOT_NODE && anabranch_model::is_reserved(&name))
                    {
                        let key = (node, name);
                        if let Some((moved, _)) = self.moved_away.get(&key)
                            && let Some(moved) = nodes::get(self.records.kv(), *moved)?
                        {
                            // It may be about what was there before we moved it.
                            if closed_after_write {
                                self.note_closed((moved.parent, moved.name.clone()))?;
                            }
                            if moved.parent != nodes::STAGING_NODE {
                                self.changed.insert((moved.parent, moved.name));
                            }
                        }
                        self.later.remove(&key);
                        if closed_after_write {
                            self.note_closed(key.clone())?;
                        }
                        self.changed.insert(key);
                    }
                }
                Hint::Directory { directory } => {
                    if let Some(node) = self.dir_node(&directory)?.filter(|n| *n != nodes::STAGING_NODE) {
                        self.scan.next(node);
                    }
                }
                Hint::Everything => {
                    self.report(EventKind::JournalWrap, self.config.folder_name.clone());
                    self.scan_everything();
                }
            }
        }
        if !self.changed.is_empty() || !self.scan.is_empty() {
            let at = Hlc(self.now.0 + self.config.limits.settle);
            self.observe_at = Some(self.observe_at.map_or(at, |before| before.min(at)));
        }
        Ok(())
    }

    /// Somebody wrote by this name: into the file, whatever other names the database has for it. Their stamps may say
    /// nothing, as after a store through a mapping, and no hint names them.
    fn note_closed(&mut self, place: (NodeId, Vec<u8>)) -> Result<()> {
        let node = nodes::at(self.records.kv(), place.0, &place.1)?;
        self.large.closed(&place, node.as_ref().map(|node| &node.object));
        if let Some(node) = node {
            for other in nodes::by_object(self.records.kv(), &node.object)?.into_iter().filter(|n| n.id != node.id) {
                let other = (other.parent, other.name);
                self.closed.insert(other.clone());
                self.changed.insert(other);
            }
        }
        self.closed.insert(place);
        Ok(())
    }

    /// Begins a comparison of the whole tree with the database, and of the directories that are parked in staging: what
    /// lies in them may have changed before they were.
    pub fn scan_everything(&mut self) {
        self.scan.clear();
        self.scan.next(ROOT_NODE);
        self.scan.next(nodes::STAGING_NODE);
        self.scanning = true;
        self.observe_at = Some(self.now);
    }
}
