//! Where things are: nodes on the disk, and paths for people.

use std::io;

use anabranch_engine::kv::Kv;
use anabranch_model::Uid;
use anabranch_volume::fs::{Fs, Object};

use super::{PATH_NAMES_MAX, Replica, Result};
use crate::nodes::{self, NodeId, ROOT_NODE};

impl<F: Fs + Sync, K: Kv> Replica<F, K>
where
    F::Dir: Send + Sync,
    F::File: Send,
{
    /// A directory of the tree, open and compared with its node by its object (design, section 8).
    ///
    /// `Ok(None)`: it is not there now, or is another one than the database says: a local change that will be seen.
    pub(crate) fn dir(&mut self, id: NodeId) -> Result<Option<F::Dir>> {
        Ok(self.open_node(id)?.unwrap_or(None))
    }

    /// As [`Self::dir`]; the inner error: it cannot be opened now, which says nothing about whether it is there.
    pub(crate) fn open_node(&mut self, id: NodeId) -> Result<io::Result<Option<F::Dir>>> {
        // From here upwards until something is open; no deeper than any tree is, should the rows ever go in a circle.
        let mut chain = Vec::new();
        let mut at = id;
        let mut dir = loop {
            if let Some(dir) = self.dirs.get(&at) {
                break dir.clone();
            } else if at == ROOT_NODE {
                break self.fs.root();
            } else if at == nodes::STAGING_NODE {
                break self.private.staging.clone();
            }
            let Some(node) = nodes::get(self.records.kv(), at)?.filter(|_| chain.len() < 4096) else {
                return Ok(Ok(None));
            };
            at = node.parent;
            chain.push(node);
        };
        while let Some(node) = chain.pop() {
            let opened = self.fs.open_dir(&dir, &node.name).and_then(|dir| {
                let stat = self.fs.stat_dir(&dir)?;
                Ok((stat.object == node.object).then_some(dir))
            });
            dir = match opened {
                Ok(Some(dir)) => dir,
                Ok(None) => return Ok(Ok(None)),
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                    return Ok(Ok(None));
                }
                Err(error) => return Ok(Err(error)),
            };
            self.dirs.insert(node.id, dir.clone());
        }
        Ok(Ok(Some(dir)))
    }

    /// The number for a new node: never one that another node had while this replica is open.
    pub(crate) fn new_node_id(&mut self) -> NodeId {
        let id = self.node_floor;
        self.node_floor += 1;
        NodeId(id)
    }

    /// The path of a node, from the root, for people.
    pub(crate) fn node_path(&self, id: NodeId, name: &[u8]) -> Result<Vec<u8>> {
        let mut parts = vec![name.to_vec()];
        let mut id = id;
        while id != ROOT_NODE && parts.len() < PATH_NAMES_MAX {
            let Some(node) = nodes::get(self.records.kv(), id)? else { break };
            parts.push(node.name);
            id = node.parent;
        }
        parts.reverse();
        Ok(parts.join(&b'/'))
    }

    /// The path of a record, as its placement says, for people.
    pub(crate) fn record_path(&self, uid: Uid) -> Result<String> {
        let mut parts = Vec::new();
        let mut at = uid;
        while at != Uid::ROOT && parts.len() < PATH_NAMES_MAX {
            let Some(record) = self.records.record(at)? else { break };
            parts.push(record.placement.value.name.to_string());
            at = record.placement.value.parent;
        }
        parts.reverse();
        Ok(parts.join("/"))
    }

    /// The directory with this object, if the database has it: where it has two, the one that is where it should be.
    pub(crate) fn dir_node(&mut self, object: &Object) -> Result<Option<NodeId>> {
        let mut known = nodes::by_object(self.records.kv(), object)?;
        known.retain(nodes::Node::is_dir);
        if known.len() > 1 {
            for node in &known {
                if matches!(self.open_node(node.id)?, Ok(Some(_))) {
                    return Ok(Some(node.id));
                }
            }
        }
        Ok(known.first().map(|node| node.id))
    }
}
