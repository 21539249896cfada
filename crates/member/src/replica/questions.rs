//! What others ask of a replica: where it stands, and what is outstanding.

use anabranch_engine::Records;
use anabranch_engine::kv::{Kv, Table};
use anabranch_model::{FolderId, ReplicaId};
use anabranch_net::message::Acknowledgement;
use anabranch_volume::fs::Fs;

use super::{Counters, Partner, Phase, Replica, Result, Waiting};
use crate::tables;

/// Of what is outstanding, so many things are named.
const NAMED: usize = 5;

impl<F: Fs + Sync, K: Kv> Replica<F, K>
where
    F::Dir: Send + Sync,
    F::File: Send,
{
    /// The name of this database's life.
    #[must_use]
    pub fn replica_id(&self) -> ReplicaId {
        self.records.replica()
    }

    /// Is the folder in step on all its members, as far as they said? What is outstanding, in words, where it is not.
    ///
    /// # Errors
    /// [`crate::Stop::Database`].
    pub fn outstanding_words(&self) -> Result<Vec<String>> {
        let mut words = Vec::new();
        let own = &self.config.member;
        if self.root_lost {
            words.push(format!("{own}: the folder's root is not there"));
        }
        if self.phase != Phase::Normal {
            words.push(format!("{own}: initial sync or a full comparison is under way"));
        }
        if !(self.changed.is_empty() && self.scan.is_empty() && self.later.is_empty()) {
            let count = self.changed.len() + self.scan.len() + self.later.len();
            words.push(format!("{own}: {count} local changes are still to be looked at"));
            for key in self.later.keys().take(NAMED) {
                let why = self.unsettled.get(key).map(|noted| format!(" ({})", noted.why.words())).unwrap_or_default();
                let path = self.node_path(key.0, &key.1)?;
                words.push(format!("{own}: {}{why}", String::from_utf8_lossy(&path)));
            }
        }
        let todo = self.records.kv().range(Table::Todo, &[], None, NAMED + 1)?;
        for (key, _) in todo.iter().take(NAMED) {
            if let tables::Work::Uid(uid) = tables::read_work(key)? {
                let why = self.waiting.get(key).map(|(_, why)| format!(" ({})", why.words())).unwrap_or_default();
                words.push(format!("{own}: {}{why}", self.record_path(uid)?));
            }
        }
        if todo.len() > NAMED {
            words.push(format!("{own}: and {} more", self.outstanding(1 << 20)?.saturating_sub(NAMED)));
        }
        for link in self.links.values().filter(|l| l.partner == Partner::Upstream) {
            let name = link.peer.as_ref().map_or("a partner", |(name, _)| name);
            let behind = match &link.peer {
                Some((_, id)) => !link.passed || link.pulling || self.records.pass_state(*id)?.cursor < link.number,
                None => true,
            };
            if self.phase == Phase::Joining && link.joining {
                words.push(format!("{own}: initial sync is not with {name}, which has not completed its own"));
            } else if behind {
                words.push(format!("{own}: has not taken in all that {name} knows"));
            }
        }
        for member in &self.config.members {
            match self.acknowledged.of(member) {
                None => words.push(format!("{member}: has not acknowledged anything yet")),
                Some(ack) if ack.held == *self.records.known() => {}
                Some(ack) => {
                    words.push(format!("{member}: has not acknowledged everything"));
                    words.extend(self.not_held(ack)?);
                }
            }
        }
        Ok(words)
    }

    /// Some paths that a member has not acknowledged.
    fn not_held(&self, ack: &Acknowledgement) -> Result<Vec<String>> {
        let mut words = Vec::new();
        let (mut after, mut looked) = (None, 0);
        while words.len() < 5 && looked < 100_000 {
            let page = self.records.records(after, 1024)?;
            let Some(last) = page.last() else { break };
            after = Some(last.uid);
            looked += page.len();
            for record in page {
                if words.len() < 5 && !record.versions().all(|v| ack.held.covers(v)) {
                    words.push(format!("{}: {}", ack.member, self.record_path(record.uid)?));
                }
            }
        }
        Ok(words)
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> FolderId {
        self.config.folder
    }

    /// The records, for listings and tests.
    #[must_use]
    pub fn records(&self) -> &Records<K> {
        &self.records
    }

    /// The file system, for tests.
    #[must_use]
    pub fn fs(&self) -> &F {
        &self.fs
    }

    /// Where it is in its life.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Manifest entries with numbers above `after`.
    ///
    /// # Errors
    /// [`crate::Stop::Database`].
    pub fn preserved(&self, after: u64, limit: usize) -> Result<Vec<tables::Preserved>> {
        Ok(tables::preserved(self.records.kv(), after, limit)?)
    }

    /// Is there no local change to look at, as far as this replica knows?
    #[must_use]
    pub fn looked(&self) -> bool {
        self.changed.is_empty()
            && self.scan.is_empty()
            && self.later.is_empty()
            && self.phase == Phase::Normal
            && !self.root_lost
    }

    /// Is nothing outstanding here, as far as this replica knows: no local change to look at, nothing to install?
    ///
    /// # Errors
    /// [`crate::Stop::Database`].
    pub fn settled(&self) -> Result<bool> {
        Ok(self.looked() && self.records.kv().range(Table::Todo, &[], None, 1)?.is_empty())
    }

    /// How many items are not installed here yet, at most `limit`.
    ///
    /// # Errors
    /// [`crate::Stop::Database`].
    pub fn outstanding(&self, limit: usize) -> Result<usize> {
        let looks = self.changed.len() + self.scan.len() + self.later.len();
        Ok(self.records.kv().range(Table::Todo, &[], None, limit)?.len() + looks)
    }

    /// How many items of the view are not in the tree as it says, at most `limit`.
    ///
    /// # Errors
    /// [`crate::Stop::Database`].
    pub fn not_in_place(&self, limit: usize) -> Result<usize> {
        Ok(self.records.kv().range(Table::Todo, &[], None, limit)?.len())
    }

    /// Items that wait and why, at most `limit`: path and cause.
    ///
    /// # Errors
    /// [`crate::Stop::Database`].
    pub fn waiting_items(&self, limit: usize) -> Result<Vec<(String, Waiting)>> {
        let mut out = Vec::new();
        for (key, (_, why)) in self.waiting.iter().take(limit) {
            if let tables::Work::Uid(uid) = tables::read_work(key)? {
                out.push((self.record_path(uid)?, *why));
            }
        }
        Ok(out)
    }

    /// Is every upstream partner connected, and is nothing of it outstanding as far as it said?
    #[must_use]
    pub fn pulled(&self) -> bool {
        self.links.values().filter(|l| l.partner == Partner::Upstream).all(|l| {
            l.passed
                && !l.pulling
                && l.peer
                    .as_ref()
                    .is_some_and(|(_, id)| self.records.pass_state(*id).is_ok_and(|state| state.cursor >= l.number))
        })
    }
}
