//! Content that nobody has any more, though the view shows it.
//!
//! Its author was put back to an older image before anybody had fetched it, or its user removed it while somebody else
//! renamed the file. The author's member alone can know: it wrote the bytes and has them no longer. Where every partner
//! has gone without them for a while it says so, with what it has instead, or with a delete that counts as a resolution:
//! so whatever a user does meanwhile beats it, and whoever comes back with the bytes preserves them as *unseen*.

use anabranch_engine::kv::{Kv, Table};
use anabranch_model::{Content, ReplicaId, Uid, Version};
use anabranch_volume::fs::Fs;

use crate::events::EventKind;
use crate::nodes::{self, Node, OnDisk};
use crate::replica::{Link, Phase, Replica, Result};
use crate::tables::Meta;

/// Contents watched at once; what is beyond waits for its turn.
const WATCHED_MAX: usize = 10_000;

impl<F: Fs + Sync, K: Kv> Replica<F, K>
where
    F::Dir: Send + Sync,
    F::File: Send,
{
    /// No partner that we are connected with has this content now.
    pub(crate) fn nobody_has(&mut self, uid: Uid, version: Version) -> Result<()> {
        if self.phase != Phase::Normal || !self.links.values().any(|l| l.passed) {
            return Ok(());
        }
        let watched = self.nobody.len();
        let since = match self.nobody.get(&uid).filter(|(of, _)| *of == version) {
            Some((_, since)) => *since,
            None if watched < WATCHED_MAX => {
                self.nobody.insert(uid, (version, self.now));
                return Ok(());
            }
            None => return Ok(()),
        };
        if self.now.0 < since.0.saturating_add(self.config.limits.lost) {
            return Ok(());
        }
        self.nobody.remove(&uid);
        let Some(record) = self.records.record(uid)? else { return Ok(()) };
        let Some(author) = record.content.as_ref().map(|facet| facet.bytes.version.replica) else { return Ok(()) };
        // After two returns in a row nothing here tells of the replica id in between; records do that carry our name. Who
        // began anew on an empty disk finds the same, and then a member that is away may have the bytes.
        let placed = &record.placement;
        let named = placed.written.time.change.replica == author
            && *placed.value.author == *self.config.member
            && self.all_are_here();
        let ours = author == self.records.replica() || self.was_ours(author)?;
        if named && !ours {
            self.records.begin()?;
            self.note_former(author)?;
            self.records.commit()?;
        }
        if named || ours {
            self.give_up(uid)?;
        }
        Ok(())
    }

    /// Are we connected with every other member of the folder, and in step with it?
    fn all_are_here(&self) -> bool {
        let here = |name: &String| {
            let is = |l: &Link| l.passed && l.peer.as_ref().is_some_and(|(peer, _)| peer == name);
            self.links.values().any(is)
        };
        self.config.members.iter().filter(|name| **name != self.config.member).all(here)
    }

    fn give_up(&mut self, uid: Uid) -> Result<()> {
        let path = self.record_path(uid)?;
        let here = nodes::of(self.records.kv(), uid)?.and_then(|n| n.content.clone().map(|c| (n, c)));
        let read = |c: &OnDisk| !matches!(c.value, Content::File { hash, .. } if hash == [0; 32]);
        self.records.begin()?;
        match here {
            Some((node, disk)) if !read(&disk) => self.local_change(node.parent, &node.name),
            Some((node, disk)) => {
                self.report(EventKind::ContentLost, format!("{path}: an older content stands in for it"));
                self.records.write_from(self.now, uid, disk.value.clone(), node.stamp.mtime, None, None)?;
                let facet = self.records.record(uid)?.and_then(|r| r.content);
                let content = facet.map(|f| OnDisk {
                    value: disk.value,
                    bytes: Some(f.bytes.version),
                    version: f.written.version,
                    history: f.written.history,
                    provisional: true,
                });
                nodes::put(self.records.kv_mut(), Some(&node), &Node { content, ..node.clone() })?;
                self.local_change(node.parent, &node.name);
            }
            None => {
                self.report(EventKind::ContentLost, format!("{path}: it is deleted"));
                self.records.give_up(self.now, uid)?;
            }
        }
        self.note_touched()?;
        self.commit()
    }

    /// Did this member write under that replica id once?
    fn was_ours(&self, replica: ReplicaId) -> Result<bool> {
        Ok(self.former()?.contains(&replica))
    }

    /// The replica ids that this member gave up.
    pub(crate) fn former(&self) -> Result<Vec<ReplicaId>> {
        let former = self.records.kv().get(Table::Meta, Meta::FORMER)?.unwrap_or_default();
        Ok(former.chunks_exact(16).filter_map(|id| id.try_into().ok().map(ReplicaId)).collect())
    }

    /// A partner was given a mark under this replica id by a member of our name. Where we were put back, it was ours between
    /// two returns, and the image does not know of it. Who was never put back began anew on an empty disk: what was
    /// written under that id may be on a member that is away.
    pub(crate) fn take_earlier_life(&mut self, replica: ReplicaId) -> Result<()> {
        let former = self.former()?;
        if former.is_empty() || former.contains(&replica) {
            return Ok(());
        }
        self.records.begin()?;
        self.note_former(replica)?;
        self.records.commit()?;
        Ok(())
    }

    /// Remembers a replica id that this member gives up.
    pub(crate) fn note_former(&mut self, replica: ReplicaId) -> Result<()> {
        let mut former = self.records.kv().get(Table::Meta, Meta::FORMER)?.unwrap_or_default();
        former.extend_from_slice(&replica.0);
        self.records.kv_mut().put(Table::Meta, Meta::FORMER, &former)?;
        Ok(())
    }

    /// Since when nobody has had a content, forgotten where it is no longer to be installed.
    pub(crate) fn forget_found(&mut self) -> Result<()> {
        let mut found = Vec::new();
        for uid in self.nobody.keys() {
            if self.records.kv().get(Table::Todo, &nodes::uid_key(*uid))?.is_none() {
                found.push(*uid);
            }
        }
        for uid in found {
            self.nobody.remove(&uid);
        }
        Ok(())
    }

    /// What is asked for once more, whole, did not pass its test at the other end: the bytes are read anew, since a
    /// store through a mapping may have changed them and left no trace.
    pub(crate) fn doubt_content(&mut self, uid: Uid) -> Result<()> {
        let Some(node) = nodes::of(self.records.kv(), uid)? else { return Ok(()) };
        let mut doubted = node.clone();
        if let Some(content) = doubted.content.as_mut() {
            content.provisional = true;
        }
        self.records.begin()?;
        nodes::put(self.records.kv_mut(), Some(&node), &doubted)?;
        self.records.commit()?;
        self.local_change(node.parent, &node.name);
        Ok(())
    }
}
