//! A replica in words: its records and what its database says of the tree. For the simulator's printed histories and for
//! whoever looks into a folder that does not come to rest.

use anabranch_engine::kv::{Kv, Table};
use anabranch_model::{Attributes, Content};
use anabranch_volume::fs::Fs;

use crate::nodes::{self, ROOT_NODE};
use crate::replica::{Replica, Result};

/// A content, in words.
pub(crate) fn value(content: &Content) -> String {
    match content {
        Content::File { size, hash } => {
            format!("{size} bytes {:02x}{:02x}{:02x}{:02x}", hash[0], hash[1], hash[2], hash[3])
        }
        Content::Symlink { target } => format!("-> {}", target.escape_ascii()),
    }
}

/// Attributes, in words.
fn attributes(value: &Attributes) -> String {
    let bytes: usize = value.xattrs.values().map(|v| v.len()).sum();
    let owners = (value.owner.number, value.group.number);
    format!("{:o} of {}:{}, {} xattrs of {bytes} bytes", value.mode, owners.0, owners.1, value.xattrs.len())
}

impl<F: Fs + Sync, K: Kv> Replica<F, K>
where
    F::Dir: Send + Sync,
    F::File: Send,
{
    /// One line for each record, preserved item, node, and row of the list of work, at most `limit` of each.
    ///
    /// # Errors
    /// [`crate::Stop::Database`].
    pub fn describe(&self, limit: usize) -> Result<Vec<String>> {
        let mut lines = vec![format!("replica {:?}, known {:?}", self.records.replica(), self.records.known())];
        for record in self.records.records(None, limit)? {
            let place = &record.placement;
            let shown = self.records.shown(record.uid)?;
            let mut line = format!(
                "record {:?}: {:?} in {:?}{}{}, placed by {:?}",
                record.uid,
                place.value.name,
                place.value.parent,
                if place.value.directory { ", a directory" } else { "" },
                if place.value.deleted { ", deleted" } else { "" },
                place.written.version,
            );
            if let Some(facet) = &record.content {
                line += &format!(
                    "; {} of {}.{:09}, bytes {:?}, version {:?}, history {:?}",
                    value(&facet.value),
                    facet.mtime.seconds,
                    facet.mtime.nanoseconds,
                    facet.bytes.version,
                    facet.written.version,
                    facet.written.history
                );
            }
            if let Some(facet) = &record.attributes {
                line += &format!("; attributes {:?}, {}", facet.written.version, attributes(&facet.value));
            }
            match shown {
                Some(shown) => line += &format!("; shown as {:?} in {:?}", shown.name, shown.parent),
                None => line += "; not shown",
            }
            lines.push(line);
        }
        for item in crate::tables::preserved(self.records.kv(), 0, limit)? {
            let hash = item.hash.map(|h| format!("{:02x}{:02x}{:02x}{:02x}", h[0], h[1], h[2], h[3]));
            lines.push(format!(
                "preserved {}: {}, {}, {} bytes {hash:?} of {:?}, replaced by {:?}",
                item.number,
                item.path.escape_ascii(),
                item.reason.word(),
                item.size,
                item.uid,
                item.replaced_by
            ));
        }
        let rows = self.records.kv().range(Table::Nodes, &[], None, limit)?;
        for (key, _) in rows {
            let id = nodes::NodeId(u64::from_be_bytes(key.as_slice().try_into().unwrap_or_default()));
            let Some(node) = nodes::get(self.records.kv(), id)?.filter(|n| n.id != ROOT_NODE) else { continue };
            let mut line = format!(
                "node {} {:?} in {}: {:?}, UID {:?}",
                id.0,
                node.name.escape_ascii().to_string(),
                node.parent.0,
                node.kind,
                node.uid
            );
            if let Some(content) = &node.content {
                let doubt = if content.provisional { ", provisional" } else { "" };
                line += &format!(
                    "; {} of {}.{:09}, bytes {:?}, version {:?}{doubt}",
                    value(&content.value),
                    node.stamp.mtime.seconds,
                    node.stamp.mtime.nanoseconds,
                    content.bytes,
                    content.version
                );
            }
            line += &format!("; attributes {:?}, {}", node.attributes_version, attributes(&node.attributes));
            lines.push(line);
        }
        for (key, _) in self.records.kv().range(Table::Todo, &[], None, limit)? {
            let why = self.waiting.get(&key);
            lines.push(format!("to do {:?}: {why:?}", crate::tables::read_work(&key)?));
        }
        for id in self.scan.iter().take(limit) {
            lines.push(format!("to be compared whole: {}, {:?}", id.0, self.observe_at));
        }
        for (key, at) in self.later.iter().take(limit) {
            lines.push(format!("looked at later: {:?} in {}, at {}", key.1.escape_ascii().to_string(), key.0.0, at.0));
        }
        Ok(lines)
    }
}
