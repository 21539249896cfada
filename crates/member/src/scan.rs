//! Directories that are to be compared whole with the database.
//!
//! Owns their order, and that each is in it once: whatever asks for a directory again and again, the list is no longer than
//! the folder has directories. Must never touch a disk.

use std::collections::{BTreeSet, VecDeque};

use crate::nodes::NodeId;

/// The list.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    order: VecDeque<NodeId>,
    listed: BTreeSet<NodeId>,
}

impl Scan {
    /// This one next, unless it is listed.
    pub(crate) fn next(&mut self, id: NodeId) {
        if self.listed.insert(id) {
            self.order.push_back(id);
        }
    }

    /// This one after all others, unless it is listed.
    pub(crate) fn at_last(&mut self, id: NodeId) {
        if self.listed.insert(id) {
            self.order.push_front(id);
        }
    }

    /// Takes the next one.
    pub(crate) fn take(&mut self) -> Option<NodeId> {
        let id = self.order.pop_back()?;
        self.listed.remove(&id);
        Some(id)
    }

    pub(crate) fn clear(&mut self) {
        self.order.clear();
        self.listed.clear();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.order.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = NodeId> {
        self.order.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_directory_is_listed_once() {
        let mut scan = Scan::default();
        for _ in 0..3 {
            scan.next(NodeId(4));
            scan.next(NodeId(5));
            scan.at_last(NodeId(5));
            scan.at_last(NodeId(6));
        }
        assert_eq!(scan.iter().map(|id| id.0).collect::<Vec<_>>(), [6, 4, 5]);
        assert_eq!((scan.len(), scan.take()), (3, Some(NodeId(5))));
        scan.next(NodeId(5));
        assert_eq!(scan.take(), Some(NodeId(5)), "what was taken may be listed again");
        scan.clear();
        assert!(scan.is_empty() && scan.take().is_none());
    }
}
