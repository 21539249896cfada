//! Writing down what the view had to decide: cuts of cycles, and names taken from files (design, section 4).
//!
//! A resolution keeps the clock and the version of the user's change in the placement that it replaces and counts one up,
//! so that any concurrent change by a user beats it. Its value depends on the records alone, so that replicas that
//! resolve at once agree. It deletes only what it has seen, and undeletes nothing but a directory in which a user makes
//! something. That directories are merged, and that an unseen edit keeps a deleted file, is not written down: it holds while
//! its reasons do.

use anabranch_model::{Hlc, Knowledge, Name, Record, ReplicaId, Time, Uid, Written};

use crate::changes::{ChangeError, delete};
use crate::kv::{Kv, KvError, Table};
use crate::records::{Old, Policy, Records};
use crate::rules::{Rule, broken, resolved};

/// Whose conflicts to resolve.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ResolveScope {
    /// Those whose winning placement was written here: at once.
    Own,
    /// All: before a change that rests on it, or when a conflict has stood for a while.
    All,
}

/// One resolution, as it is about to be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resolution {
    /// A directory hangs from the root now.
    Cut(Uid),
    /// A file has a name of its own now.
    Beside(Uid),
    /// A file that lost its name is deleted: whoever holds it preserves it, unless its bytes equal the winner's.
    Deleted {
        /// The file.
        uid: Uid,
        /// What has its name.
        winner: Uid,
    },
}

/// Rounds after which a resolution that does not settle is given up until the next time.
const ROUNDS_MAX: usize = 100;
/// Conflicts resolved between two looks at what they derive.
const CHUNK: usize = 256;

impl<K: Kv> Records<K> {
    /// Conflicts whose resolution is not yet written down.
    pub fn unresolved(&self) -> u64 {
        self.counters.unresolved
    }

    /// UIDs of such conflicts, in the order of their keys, after `after`, at most `limit`.
    ///
    /// # Errors
    /// [`KvError`].
    pub fn conflicts(&self, after: Option<Uid>, limit: usize) -> Result<Vec<Uid>, KvError> {
        let from = match after.and_then(|uid| self.numbers.find_key(uid)) {
            Some(key) => [&key[..], &[0]].concat(),
            None => Vec::new(),
        };
        let rows = self.kv.range(Table::Unresolved, &from, None, limit)?;
        rows.iter().map(|(key, _)| self.numbers.uid(key)).collect()
    }

    /// Cycles of directories that the view cuts and whose cuts are not written down, at most `limit`: each from the directory
    /// that hangs from the root for it upward along the recorded parents, with the name that its user gave it. The last one lies in
    /// the first.
    ///
    /// # Errors
    /// [`KvError`].
    pub fn cut_cycles(&self, limit: usize) -> Result<Vec<Vec<(Uid, Name)>>, KvError> {
        let (mut after, mut out) = (None, Vec::new());
        while self.counters.cuts > 0 && out.len() < limit {
            let chunk = self.conflicts(after, CHUNK)?;
            let Some(last) = chunk.last() else { break };
            after = Some(*last);
            for uid in chunk {
                if self.derived(uid)?.cut
                    && let Some(cycle) = self.cycle(uid)?
                {
                    out.push(cycle.into_iter().map(|(uid, place)| (uid, place.name)).collect());
                }
            }
        }
        out.truncate(limit);
        Ok(out)
    }

    /// Writes resolutions down, and says how many. A read-only membership writes none. Only from a causally closed state:
    /// that is any state between steps here, since passes are taken in as one.
    ///
    /// # Errors
    /// [`KvError`].
    pub fn resolve(&mut self, now: Hlc, scope: ResolveScope) -> Result<usize, KvError> {
        self.resolve_each(now, scope, &mut |_, _| Ok(()))
    }

    /// As [`Self::resolve`]; `each` is told before a resolution is written.
    ///
    /// # Errors
    /// [`KvError`], also what `each` returned.
    pub fn resolve_each(
        &mut self,
        now: Hlc,
        scope: ResolveScope,
        each: &mut dyn FnMut(&Self, Resolution) -> Result<(), KvError>,
    ) -> Result<usize, KvError> {
        let mut written = 0;
        for _ in 0..ROUNDS_MAX {
            if self.settings.read_only || self.counters.unresolved == 0 {
                break;
            }
            let (mut after, before) = (None, written);
            loop {
                let chunk = self.conflicts(after, CHUNK)?;
                let Some(last) = chunk.last() else { break };
                after = Some(*last);
                for uid in chunk {
                    written += usize::from(self.resolve_one(now, scope, uid, each)?);
                }
                self.settle()?;
            }
            if written == before {
                break;
            }
        }
        if broken(Rule::MergedDirectoriesKeepTheirChildren) {
            self.write_merges_down(now)?;
        }
        Ok(written)
    }

    fn resolve_one(
        &mut self,
        now: Hlc,
        scope: ResolveScope,
        uid: Uid,
        each: &mut dyn FnMut(&Self, Resolution) -> Result<(), KvError>,
    ) -> Result<bool, KvError> {
        let derived = self.derived(uid)?;
        let Some((number, old)) = self.row(uid)?.filter(|_| derived.unresolved()) else { return Ok(false) };
        if scope == ResolveScope::Own && self.winner_author(uid, derived.loser)? != Some(self.replica()) {
            return Ok(false);
        }
        let mut new = old.clone();
        let value = &mut new.placement.value;
        let resolution = match derived.loser {
            None => {
                value.name = value.name.beside(uid);
                value.parent = Uid::ROOT;
                Resolution::Cut(uid)
            }
            Some(_) if self.settings.policy == Policy::KeepBeside => {
                value.name = value.name.kept_beside(&value.author, uid);
                Resolution::Beside(uid)
            }
            Some(winner) => {
                delete(&mut new);
                Resolution::Deleted { uid, winner }
            }
        };
        each(self, resolution)?;
        new.placement.written = self.resolved(now, &old);
        self.replace(uid, Some(Old::of(number, &old)), Some(&new), true)?;
        Ok(true)
    }

    /// Deletes something whose content nobody has any more. It counts as a resolution: whatever a user does at the same
    /// time beats it, and who holds the content after all preserves it (design, section 4).
    ///
    /// # Errors
    /// [`ChangeError`].
    pub fn give_up(&mut self, now: Hlc, uid: Uid) -> Result<(), ChangeError> {
        let Some((number, old)) = self.row(uid)?.filter(|_| !self.settings.read_only) else { return Ok(()) };
        let mut new = old.clone();
        delete(&mut new);
        new.placement.written = self.resolved(now, &old);
        self.replace(uid, Some(Old::of(number, &old)), Some(&new), true)?;
        Ok(self.settle()?)
    }

    /// Writes down once more where something is, as a resolution of that: who has no record of it any more takes it in again,
    /// and whatever somebody did to it since beats it (design, section 12).
    ///
    /// # Errors
    /// [`ChangeError`].
    pub fn keep(&mut self, now: Hlc, uid: Uid) -> Result<(), ChangeError> {
        let Some((number, old)) = self.row(uid)?.filter(|_| !self.settings.read_only) else { return Ok(()) };
        let mut new = old.clone();
        new.placement.written = self.resolved(now, &old);
        self.replace(uid, Some(Old::of(number, &old)), Some(&new), true)?;
        Ok(self.settle()?)
    }

    /// A deleted directory in which a user made something is live again by its record, as a resolution of its removal: he did
    /// nothing to the directory itself, so whatever somebody else does to it meanwhile beats this (design, section 4).
    ///
    /// # Errors
    /// [`ChangeError`].
    pub fn revive(&mut self, now: Hlc, uid: Uid) -> Result<(), ChangeError> {
        let row = self.row(uid)?.filter(|(_, r)| r.placement.value.directory && r.placement.value.deleted);
        let Some((number, old)) = row.filter(|_| !self.settings.read_only) else { return Ok(()) };
        let mut new = old.clone();
        new.placement.value.deleted = false;
        new.placement.written = self.resolved(now, &old);
        self.replace(uid, Some(Old::of(number, &old)), Some(&new), true)?;
        Ok(self.settle()?)
    }

    /// Who wrote the placement that won: of a cycle the latest one.
    fn winner_author(&self, uid: Uid, winner: Option<Uid>) -> Result<Option<ReplicaId>, KvError> {
        let stamp = match winner {
            Some(winner) => self.place_of(winner)?.map(|place| place.stamp),
            None => self.cycle(uid)?.and_then(|cycle| cycle.iter().map(|(_, place)| place.stamp).max()),
        };
        Ok(stamp.map(|stamp| stamp.version.replica))
    }

    fn resolved(&mut self, now: Hlc, old: &Record) -> Written {
        let old = &old.placement.written;
        let version = self.issue(now);
        let mut history: Knowledge = old.history.clone();
        history.learn(version);
        let mut time = resolved(old.time);
        if broken(Rule::ResolutionsKeepTheClock) {
            self.counters.clock = Hlc(self.counters.clock.0.saturating_add(1)).max(now);
            time = Time { clock: self.counters.clock, change: version, resolutions: 1 };
        }
        // What it replaces may bear a time that no clock has reached, taken in while the clock here was ahead as well, and so does
        // this one then. Nobody but its author stamps it anew, and the author knows by this that there is something to be.
        self.counters.clock = self.counters.clock.max(time.clock);
        Written { version, time, history, merged: false }
    }

    /// What the rule forbids: children of merged directories get the directory that is shown as their parent.
    fn write_merges_down(&mut self, now: Hlc) -> Result<(), KvError> {
        let mut after = None;
        while let [record] = &self.records(after, 1)?[..] {
            after = Some(record.uid);
            let (uid, parent) = (record.uid, record.placement.value.parent);
            let shown = self.representative(parent)?;
            if shown != parent
                && let Some((number, old)) = self.row(uid)?
            {
                let mut new = old.clone();
                new.placement.value.parent = shown;
                new.placement.written = self.resolved(now, &old);
                self.replace(uid, Some(Old::of(number, &old)), Some(&new), true)?;
            }
        }
        self.settle()
    }
}
