//! Giving new versions to what was stamped by a clock in the future (design, section 4), or in a life that others do not
//! know (section 11).
//!
//! Owns what an author does once it knows that its clock was ahead: a version of a time that no clock has reached would
//! win over all that had seen it, so it gets a new one with a time that everybody can take in. Those who took the old
//! one in, by a clock that was ahead as well, let it lose to whatever comes (in [`crate::passes`]).
//! And what an author does with what it issued since it was returned to an earlier state, before it knew.

use std::collections::BTreeSet;

use anabranch_model::{ContentFacet, Hlc, Record, ReplicaId, Uid, Version, Written};

use crate::kv::{Kv, KvError};
use crate::records::{Old, Records};

/// Records looked at in one read.
const CHUNK: usize = 1024;

/// A record of which versions were issued anew: pairs of an old one and its new one.
pub type Reissued = (Uid, Vec<(Version, Version)>);

#[derive(Clone, Copy)]
enum Facet {
    Placement,
    Attributes,
    Content,
}

impl<K: Kv> Records<K> {
    /// Gives every version of this replica, or of one of the `former` ids of its member, whose time is more than `limit`
    /// microseconds after `now` a new one: nobody else ever would. Their times
    /// become those right after the latest that is not ahead, in the same order: so each comes after what it had seen, by
    /// however much the clock was ahead and however often that changed. Returns how many records were changed.
    ///
    /// # Errors
    /// [`KvError`]; then roll back.
    pub fn restamp(&mut self, now: Hlc, limit: u64, former: &[ReplicaId]) -> Result<usize, KvError> {
        let latest_allowed = Hlc(now.0.saturating_add(limit));
        if self.counters.clock <= latest_allowed || self.settings.read_only {
            return Ok(0);
        }
        let ahead = self.ahead(now, latest_allowed, former)?;
        self.counters.clock = ahead.last();
        let (mut after, mut count): (Option<Uid>, usize) = (None, 0);
        loop {
            let page = self.records(after, CHUNK)?;
            let Some(last) = page.last() else { break };
            after = Some(last.uid);
            for uid in page.iter().filter(|r| r.clock() > latest_allowed).map(|r| r.uid) {
                let Some((number, mut record)) = self.row(uid)? else { continue };
                let old = Old::of(number, &record);
                if !self.restamp_record(now, &mut record, &ahead) {
                    continue;
                }
                self.replace(uid, Some(old), Some(&record), true)?;
                self.touch_uid(uid)?;
                count += 1;
            }
        }
        self.settle()?;
        Ok(count)
    }

    /// Gives every version that `second` names a new one, of this replica and of the same time: it was issued under an id of
    /// which others know other numbers, from a life that this database does not remember, so what they have seems to have
    /// seen it, or it that. Of the old id it has seen what is `closed`, and no more. Returns the records that were changed,
    /// each with pairs of an old version and its new one.
    ///
    /// # Errors
    /// [`KvError`]; then roll back.
    pub fn issue_anew(
        &mut self,
        now: Hlc,
        closed: Version,
        second: impl Fn(Version) -> bool,
    ) -> Result<Vec<Reissued>, KvError> {
        let (mut after, mut out): (Option<Uid>, Vec<_>) = (None, Vec::new());
        loop {
            let page = self.records(after, CHUNK)?;
            let Some(last) = page.last() else { break };
            after = Some(last.uid);
            for uid in page.iter().filter(|r| r.versions().any(&second)).map(|r| r.uid) {
                let Some((number, mut record)) = self.row(uid)? else { continue };
                let old = Old::of(number, &record);
                let pairs = self.issue_record_anew(now, &mut record, closed, &second);
                self.replace(uid, Some(old), Some(&record), true)?;
                self.touch_uid(uid)?;
                out.push((uid, pairs));
            }
        }
        self.settle()?;
        Ok(out)
    }

    /// In the order in which they were issued, as in [`Self::restamp_record`].
    fn issue_record_anew(
        &mut self,
        now: Hlc,
        record: &mut Record,
        closed: Version,
        second: impl Fn(Version) -> bool,
    ) -> Vec<(Version, Version)> {
        let bytes = record.content.as_ref().filter(|f| second(f.written.version)).map(|f| f.bytes.version);
        let mut due: Vec<_> = record.versions().chain(bytes).filter(|v| second(*v)).collect();
        due.sort_unstable();
        due.dedup();
        let pairs: Vec<_> = due.into_iter().map(|old| (old, self.issue(now))).collect();
        let anew = |old: Version| pairs.iter().find(|(version, _)| *version == old).map(|(_, new)| *new);
        let of_facet = |written: &mut Written, others: &[Version]| {
            let Some(version) = anew(written.version) else { return };
            written.version = version;
            written.history.lower(closed.replica, closed.sequence);
            others.iter().chain([&version]).for_each(|version| written.history.learn(*version));
        };
        let placement = &mut record.placement;
        if anew(placement.written.version).is_some() {
            let seen = pairs.iter().filter(|(old, _)| placement.seen.covers(*old)).map(|(_, new)| *new);
            let seen: Vec<_> = seen.collect();
            placement.seen.lower(closed.replica, closed.sequence);
            seen.into_iter().for_each(|version| placement.seen.learn(version));
            of_facet(&mut placement.written, &[]);
        }
        if let Some(attributes) = &mut record.attributes {
            of_facet(&mut attributes.written, &[]);
        }
        if let Some(content) = &mut record.content {
            let bytes = anew(content.bytes.version).filter(|_| second(content.written.version));
            of_facet(&mut content.written, bytes.as_slice());
            content.bytes.version = bytes.unwrap_or(content.bytes.version);
        }
        pairs
    }

    /// The times of all records that the clock has not reached.
    fn ahead(&self, now: Hlc, latest_allowed: Hlc, former: &[ReplicaId]) -> Result<Ahead, KvError> {
        let (mut after, mut floor, mut times) = (None, now, BTreeSet::new());
        loop {
            let page = self.records(after, CHUNK)?;
            let Some(last) = page.last() else {
                return Ok(Ahead {
                    replicas: former.iter().copied().chain([self.counters.replica]).collect(),
                    latest_allowed,
                    floor,
                    times: times.into_iter().collect(),
                });
            };
            after = Some(last.uid);
            for record in &page {
                let bytes = record.content.as_ref().map(|f| f.bytes.time.clock);
                for clock in record.written().map(|w| w.time.clock).chain(bytes) {
                    if clock > latest_allowed {
                        times.insert(clock);
                    } else {
                        floor = floor.max(clock);
                    }
                }
            }
        }
    }

    /// In the order in which they were issued: so what had seen another facet of the record, as a removal has seen the
    /// content, has seen what becomes of it, and what came later is still unseen.
    fn restamp_record(&mut self, now: Hlc, record: &mut Record, ahead: &Ahead) -> bool {
        let written = [
            (Facet::Placement, Some(&record.placement.written)),
            (Facet::Attributes, record.attributes.as_ref().map(|f| &f.written)),
            (Facet::Content, record.content.as_ref().map(|f| &f.written)),
        ];
        let mut due: Vec<_> = written
            .into_iter()
            .filter_map(|(facet, written)| Some((written.filter(|w| ahead.holds(w))?.time.clock, facet)))
            .collect();
        due.sort_by_key(|(clock, _)| *clock);
        for (_, facet) in &due {
            match facet {
                Facet::Placement => self.anew(now, &mut record.placement.written, ahead),
                Facet::Attributes => {
                    if let Some(attributes) = &mut record.attributes {
                        self.anew(now, &mut attributes.written, ahead);
                    }
                }
                Facet::Content => {
                    if let Some(content) = &mut record.content {
                        self.restamp_content(now, content, ahead);
                    }
                }
            }
        }
        !due.is_empty()
    }

    /// The bytes keep the version that names them: whoever removes them, here or elsewhere, may have seen no other.
    fn restamp_content(&mut self, now: Hlc, content: &mut ContentFacet, ahead: &Ahead) {
        self.anew(now, &mut content.written, ahead);
        if content.bytes.time.clock > ahead.latest_allowed {
            content.bytes.time.clock = ahead.brought_back(content.bytes.time.clock);
        }
    }

    /// It stays the same change of a user, so what had seen it stands against it, whichever of the two times is later now.
    fn anew(&mut self, now: Hlc, written: &mut Written, ahead: &Ahead) {
        let version = self.issue(now);
        written.history.learn(version);
        written.time.clock = ahead.brought_back(written.time.clock);
        written.version = version;
    }
}

/// The times that no clock had reached.
struct Ahead {
    replicas: Vec<ReplicaId>,
    latest_allowed: Hlc,
    /// No other time is later, nor is now.
    floor: Hlc,
    /// Ascending.
    times: Vec<Hlc>,
}

impl Ahead {
    fn holds(&self, written: &Written) -> bool {
        self.replicas.contains(&written.version.replica) && written.time.clock > self.latest_allowed
    }

    /// The time that one of these becomes.
    fn brought_back(&self, clock: Hlc) -> Hlc {
        Hlc(self.floor.0 + 1 + self.times.partition_point(|time| *time < clock) as u64)
    }

    /// The latest time once all are brought back.
    fn last(&self) -> Hlc {
        Hlc(self.floor.0 + self.times.len() as u64)
    }
}
