//! Stamping anew what was stamped by a clock in the future (design, section 4).
//!
//! Owns what an author does once it knows that its clock was ahead: nobody took those versions in, so they get new ones
//! with times that are past. The new versions have seen the old ones, so whoever has an old one after all takes the new
//! one for it.

use std::collections::BTreeSet;

use anabranch_model::{ContentFacet, Hlc, Record, ReplicaId, Stamp, Uid, Written};

use crate::kv::{Kv, KvError};
use crate::records::{Old, Records};

/// Records looked at in one read.
const CHUNK: usize = 1024;

#[derive(Clone, Copy)]
enum Facet {
    Placement,
    Attributes,
    Content,
}

impl<K: Kv> Records<K> {
    /// Gives every version of this replica whose time is more than `limit` microseconds after `now` a new one: the
    /// latest is of now, and each other one a microsecond before the next. So their order stays, and all come after what
    /// they had seen, by however much the clock was ahead and however often that changed. Returns how many records were
    /// changed.
    ///
    /// # Errors
    /// [`KvError`]; then roll back.
    pub fn restamp(&mut self, now: Hlc, limit: u64) -> Result<usize, KvError> {
        let latest_allowed = Hlc(now.0.saturating_add(limit));
        let (clock, replica) = (self.counters.clock, self.counters.replica);
        if clock <= latest_allowed || self.settings.read_only {
            return Ok(0);
        }
        let times = self.times_ahead(replica, latest_allowed)?;
        self.counters.clock = now;
        let (mut after, mut count): (Option<Uid>, usize) = (None, 0);
        loop {
            let page = self.records(after, CHUNK)?;
            let Some(last) = page.last() else { break };
            after = Some(last.uid);
            for uid in page.iter().filter(|r| r.clock() > latest_allowed).map(|r| r.uid) {
                let Some((number, mut record)) = self.row(uid)? else { continue };
                let old = Old::of(number, &record);
                let ahead = |written: &Written| is_ahead(written, replica, latest_allowed);
                if !self.restamp_record(now, &mut record, &times, &ahead) {
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

    /// The times, ascending, that this replica's versions carry and its clock had not reached.
    fn times_ahead(&self, replica: ReplicaId, latest_allowed: Hlc) -> Result<Vec<Hlc>, KvError> {
        let (mut after, mut times) = (None, BTreeSet::new());
        loop {
            let page = self.records(after, CHUNK)?;
            let Some(last) = page.last() else { return Ok(times.into_iter().collect()) };
            after = Some(last.uid);
            for record in page.iter().filter(|r| r.clock() > latest_allowed) {
                times.extend(record.written().filter(|w| is_ahead(w, replica, latest_allowed)).map(|w| w.time.clock));
                times.extend(record.content.as_ref().map(|f| f.bytes.time.clock).filter(|c| *c > latest_allowed));
            }
        }
    }

    /// In the order in which they were issued: so what had seen another facet of the record, as a removal has seen the
    /// content, has seen what becomes of it, and what came later is still unseen.
    fn restamp_record(
        &mut self,
        now: Hlc,
        record: &mut Record,
        times: &[Hlc],
        ahead: &dyn Fn(&Written) -> bool,
    ) -> bool {
        let written = [
            (Facet::Placement, Some(&record.placement.written)),
            (Facet::Attributes, record.attributes.as_ref().map(|f| &f.written)),
            (Facet::Content, record.content.as_ref().map(|f| &f.written)),
        ];
        let mut due: Vec<_> = written
            .into_iter()
            .filter_map(|(facet, written)| written.filter(|w| ahead(w)).map(|w| (w.version.sequence, facet)))
            .collect();
        due.sort_by_key(|(sequence, _)| *sequence);
        // What removals had seen, they have seen still.
        let seen = record.content.as_ref().is_some_and(|f| record.placement.seen.covers(f.bytes.version));
        for (_, facet) in &due {
            match facet {
                Facet::Placement => self.anew(now, &mut record.placement.written, times),
                Facet::Attributes => {
                    if let Some(attributes) = &mut record.attributes {
                        self.anew(now, &mut attributes.written, times);
                    }
                }
                Facet::Content => {
                    if let Some(content) = &mut record.content {
                        self.restamp_content(now, content, times);
                    }
                }
            }
        }
        if let Some(content) = record.content.as_ref().filter(|_| seen) {
            record.placement.seen.learn(content.bytes.version);
        }
        !due.is_empty()
    }

    fn restamp_content(&mut self, now: Hlc, content: &mut ContentFacet, times: &[Hlc]) {
        let same = content.bytes == content.written.stamp();
        let before = content.bytes;
        self.anew(now, &mut content.written, times);
        if same {
            content.bytes = content.written.stamp();
        } else if before.time.clock > now && before.version.replica == content.written.version.replica {
            // A touch after a write, both from then: the write is told from others by its own earlier time.
            let mut time = before.time;
            time.clock = brought_back(time.clock, now, times);
            content.bytes = Stamp { time, version: content.written.version };
        }
    }

    fn anew(&mut self, now: Hlc, written: &mut Written, times: &[Hlc]) {
        let version = self.issue(now);
        written.history.learn(version);
        written.time.clock = brought_back(written.time.clock, now, times);
        written.time.change = version;
        written.version = version;
    }
}

/// A time that was ahead, as one of up to now, in the order of all of them.
fn brought_back(clock: Hlc, now: Hlc, times: &[Hlc]) -> Hlc {
    let later = times.len() - times.partition_point(|time| *time <= clock);
    Hlc(now.0.saturating_sub(later as u64))
}

/// Was it stamped here, by a clock that was ahead?
fn is_ahead(written: &Written, replica: ReplicaId, latest_allowed: Hlc) -> bool {
    written.version.replica == replica && written.time.change.replica == replica && written.time.clock > latest_allowed
}
