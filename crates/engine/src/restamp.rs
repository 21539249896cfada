//! Stamping anew what was stamped by a clock in the future (design, section 4).
//!
//! Owns what an author does once it knows that its clock was ahead: nobody took those versions in, so they get new ones
//! with times that are past. The new versions have seen the old ones, so whoever has an old one after all takes the new
//! one for it.

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
    /// Gives every version of this replica whose time is more than `limit` microseconds after `now` a new one, earlier by
    /// as much as the latest of them is ahead: so their order stays. Returns how many records were changed.
    ///
    /// # Errors
    /// [`KvError`]; then roll back.
    pub fn restamp(&mut self, now: Hlc, limit: u64) -> Result<usize, KvError> {
        let latest_allowed = Hlc(now.0.saturating_add(limit));
        let (clock, replica) = (self.counters.clock, self.counters.replica);
        if clock <= latest_allowed || self.settings.read_only {
            return Ok(0);
        }
        let back = clock.0.saturating_sub(now.0);
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
                if !self.restamp_record(now, &mut record, back, &ahead) {
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

    /// In the order in which they were issued: so what had seen another facet of the record, as a removal has seen the
    /// content, has seen what becomes of it, and what came later is still unseen.
    fn restamp_record(&mut self, now: Hlc, record: &mut Record, back: u64, ahead: &dyn Fn(&Written) -> bool) -> bool {
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
                Facet::Placement => self.anew(now, &mut record.placement.written, back),
                Facet::Attributes => {
                    if let Some(attributes) = &mut record.attributes {
                        self.anew(now, &mut attributes.written, back);
                    }
                }
                Facet::Content => {
                    if let Some(content) = &mut record.content {
                        self.restamp_content(now, content, back);
                    }
                }
            }
        }
        if let Some(content) = record.content.as_ref().filter(|_| seen) {
            record.placement.seen.learn(content.bytes.version);
        }
        !due.is_empty()
    }

    fn restamp_content(&mut self, now: Hlc, content: &mut ContentFacet, back: u64) {
        let same = content.bytes == content.written.stamp();
        let before = content.bytes;
        self.anew(now, &mut content.written, back);
        if same {
            content.bytes = content.written.stamp();
        } else if before.time.clock > now && before.version.replica == content.written.version.replica {
            // A touch after a write, both from then: the write is told from others by its own earlier time.
            let mut time = before.time;
            time.clock = Hlc(time.clock.0.saturating_sub(back));
            content.bytes = Stamp { time, version: content.written.version };
        }
    }

    fn anew(&mut self, now: Hlc, written: &mut Written, back: u64) {
        let version = self.issue(now);
        written.history.learn(version);
        written.time.clock = Hlc(written.time.clock.0.saturating_sub(back));
        written.time.change = version;
        written.version = version;
    }
}

/// Was it stamped here, by a clock that was ahead?
fn is_ahead(written: &Written, replica: ReplicaId, latest_allowed: Hlc) -> bool {
    written.version.replica == replica && written.time.change.replica == replica && written.time.clock > latest_allowed
}
