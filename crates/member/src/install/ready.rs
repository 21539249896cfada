//! Contents that are here, verified, and not yet in the tree.

use std::collections::BTreeMap;

use anabranch_model::{Content, Hash, Uid};
use anabranch_net::message::Bytes;

use super::{MadeFor, Prepared};
use crate::fetch::private_name;

/// A content that is here, verified, and not yet in the tree.
pub(crate) enum Ready<File> {
    /// A small one, in memory.
    Bytes { bytes: Bytes, hash: Hash },
    /// A small one that is being written to its private file.
    Writing { size: u64, hash: Hash },
    /// A small one in its private file, which is complete but for what has changed since it was wanted.
    Written { size: u64, hash: Hash, made_for: MadeFor, prepared: Box<Prepared<File>>, flushed: bool },
    /// In a private file in staging.
    Staged { name: Vec<u8>, size: u64, hash: Hash },
}

impl<File> Ready<File> {
    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::Bytes { bytes, .. } => bytes.len() as u64,
            Self::Writing { size, .. } | Self::Written { size, .. } | Self::Staged { size, .. } => *size,
        }
    }

    pub(super) fn hash(&self) -> &Hash {
        match self {
            Self::Bytes { hash, .. }
            | Self::Writing { hash, .. }
            | Self::Written { hash, .. }
            | Self::Staged { hash, .. } => hash,
        }
    }

    /// Does it lie in a private file?
    pub(crate) fn has_file(&self) -> bool {
        !matches!(self, Self::Bytes { .. })
    }
}

/// What is ready, with its sums at hand: they are asked for with every piece that comes.
pub(crate) struct ReadySet<File> {
    items: BTreeMap<Uid, Ready<File>>,
    small_bytes: u64,
    large_bytes: u64,
}

impl<File> Default for ReadySet<File> {
    fn default() -> Self {
        Self { items: BTreeMap::new(), small_bytes: 0, large_bytes: 0 }
    }
}

impl<File> ReadySet<File> {
    pub(crate) fn insert(&mut self, uid: Uid, ready: Ready<File>) {
        self.remove(uid);
        *self.sum(&ready) += ready.size();
        self.items.insert(uid, ready);
    }

    pub(crate) fn remove(&mut self, uid: Uid) -> Option<Ready<File>> {
        let ready = self.items.remove(&uid)?;
        *self.sum(&ready) -= ready.size();
        Some(ready)
    }

    pub(crate) fn get(&self, uid: Uid) -> Option<&Ready<File>> {
        self.items.get(&uid)
    }

    /// Takes what was written ahead for just this content; its private file stays, as of one that waits in staging.
    /// The last one: it was all written when the flush of this batch began.
    pub(super) fn take_written(&mut self, uid: Uid, content: &Content) -> Option<(MadeFor, Prepared<File>, bool)> {
        let Content::File { hash: wanted, .. } = content else { return None };
        if !matches!(self.items.get(&uid), Some(Ready::Written { hash, .. }) if hash == wanted) {
            return None;
        }
        let Some(Ready::Written { size, hash, made_for, prepared, flushed }) = self.remove(uid) else { return None };
        self.insert(uid, Ready::Staged { name: private_name(uid), size, hash });
        Some((made_for, *prepared, flushed))
    }

    /// Contents in private files, whoever wrote them.
    pub(crate) fn in_files(&self) -> impl Iterator<Item = Uid> {
        self.items.iter().filter(|(_, ready)| ready.has_file()).map(|(uid, _)| *uid)
    }

    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    /// Files that wait in staging: UID, size, hash.
    pub(crate) fn staged(&self) -> impl Iterator<Item = (Uid, u64, Hash)> {
        self.items.iter().filter_map(|(uid, ready)| match ready {
            Ready::Staged { size, hash, .. } => Some((*uid, *size, *hash)),
            Ready::Bytes { .. } | Ready::Writing { .. } | Ready::Written { .. } => None,
        })
    }

    /// Bytes of small contents.
    pub(crate) fn small_bytes(&self) -> u64 {
        self.small_bytes
    }

    /// Bytes that wait in staging.
    pub(crate) fn large_bytes(&self) -> u64 {
        self.large_bytes
    }

    /// Is nothing known yet of a content but that it is being written?
    pub(super) fn is_being_written(&self, uid: Uid) -> bool {
        matches!(self.items.get(&uid), Some(Ready::Writing { .. }))
    }

    /// All that has been written ahead by now becomes durable with the flush that begins now.
    pub(super) fn flush_begins(&mut self) {
        for ready in self.items.values_mut() {
            if let Ready::Written { flushed, .. } = ready {
                *flushed = true;
            }
        }
    }

    /// Contents that were written ahead.
    pub(super) fn written(&self) -> usize {
        self.items.values().filter(|ready| matches!(ready, Ready::Written { .. })).count()
    }

    fn sum(&mut self, ready: &Ready<File>) -> &mut u64 {
        match ready {
            Ready::Bytes { .. } | Ready::Writing { .. } | Ready::Written { .. } => &mut self.small_bytes,
            Ready::Staged { .. } => &mut self.large_bytes,
        }
    }
}
