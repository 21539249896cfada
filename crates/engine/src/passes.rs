//! Passes (design, section 6): rows served to a downstream partner, and an upstream's rows taken in as one step.
//!
//! Owns the tables Aside and Cursors. What lies aside is not shown, not resolved, not served. Must never let knowledge
//! cover a row that was not merged.

use anabranch_model::codec::{Dictionary, Reader, Writer, encode_attributes, encode_record};
use anabranch_model::{ChangeNumber, Hlc, Knowledge, Record, ReplicaId, Time, Written};

use crate::dictionary::split_head;
use crate::keys;
use crate::kv::{Kv, KvError, Table, after_prefix};
use crate::records::{Old, Records};
use crate::rules::{Case, Rule, Taken, broken, live_by_record, merge_records};

/// Rows read at a time.
const CHUNK: usize = 256;
/// The most rows that one page looks at, skipped ones included: a page must not take long, whatever it skips.
const ROWS_LOOKED_AT_MAX: usize = 65_536;

/// Rows of one pass.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PageOut {
    /// What the rows name.
    pub dictionary: Dictionary,
    /// Encoded records, ascending by change number.
    pub rows: Vec<Vec<u8>>,
    /// All rows up to this number were looked at.
    pub through: ChangeNumber,
    /// Where no row is beyond `through`: the knowledge here, of the same transaction.
    pub complete: Option<Knowledge>,
}

/// How far a replica is with one replica id of an upstream.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PassState {
    /// All rows up to this number were taken in.
    pub cursor: ChangeNumber,
    /// Rows up to this number were taken in or lie aside.
    pub reached: ChangeNumber,
    /// While rows lie aside: the newest change number that the upstream had told of when the last of them came.
    pub heard: ChangeNumber,
}

/// How many facets were of which case, and what lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TakenCounts {
    /// Records taken in.
    pub records: u64,
    /// Of them, records that changed something here.
    pub changed: u64,
    /// Facets that there were none of here.
    pub new: u64,
    /// Case 1.
    pub old: u64,
    /// Case 2.
    pub descendants: u64,
    /// Case 3.
    pub equal: u64,
    /// Case 4.
    pub concurrent: u64,
    /// Numbers used twice.
    pub twice: u64,
    /// Contents here that lost unseen.
    pub lost_contents: u64,
    /// Attributes here that lost unseen.
    pub lost_attributes: u64,
}

impl TakenCounts {
    /// Counts one record in.
    pub fn count(&mut self, taken: &Taken) {
        self.records += 1;
        self.changed += u64::from(taken.changed);
        self.lost_contents += u64::from(taken.lost_content.is_some());
        self.lost_attributes += u64::from(taken.lost_attributes.is_some());
        for case in [Some(taken.placement), taken.content, taken.attributes].into_iter().flatten() {
            match case {
                Case::New => self.new += 1,
                Case::Old => self.old += 1,
                Case::Descendant => self.descendants += 1,
                Case::Equal => self.equal += 1,
                Case::Concurrent { .. } => self.concurrent += 1,
                Case::Twice { .. } => self.twice += 1,
            }
        }
    }
}

/// How a pass ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PassEnd {
    /// It was taken in.
    Complete(TakenCounts),
    /// It carries a time too far ahead of the clock here: nothing was taken in, and nothing moved (design, section 4).
    AheadOfClock {
        /// That time.
        clock: Hlc,
    },
}

/// A row of Cursors.
#[derive(Clone, Copy, Default)]
struct Cursor {
    state: PassState,
    /// No clock that lies aside is later.
    clock: Hlc,
}

impl<K: Kv> Records<K> {
    /// A page of rows above `after` for a partner that knows `partner_known`, of about `bytes_max` bytes (one row may pass
    /// it; the dictionary's attribute values count). A row is skipped only if the partner knows all its versions, no facet of
    /// it was merged since its author wrote it, and it is no deleted directory that something in it keeps.
    ///
    /// # Errors
    /// [`KvError`].
    pub fn page(&self, after: ChangeNumber, partner_known: &Knowledge, bytes_max: usize) -> Result<PageOut, KvError> {
        let mut out = PageOut { through: after, ..PageOut::default() };
        let (mut bytes, mut looked_at) = (0, 0);
        loop {
            let from = keys::change(ChangeNumber(out.through.0.saturating_add(1)));
            let changes = self.kv.range(Table::Changes, &from, None, CHUNK)?;
            if changes.is_empty() {
                out.through = out.through.max(self.counters.number);
                out.complete = Some(self.known.clone());
                return Ok(out);
            }
            for (key, uid) in changes {
                if bytes >= bytes_max || looked_at >= ROWS_LOOKED_AT_MAX {
                    let ends = broken(Rule::APassEndsWhereNothingIsNewer);
                    out.complete = ends.then(|| self.known.clone());
                    return Ok(out);
                }
                let value = self.kv.get(Table::Records, &uid)?;
                let value = value.ok_or_else(|| KvError::damaged("read a page", "a change has no record"))?;
                let (_, record) = self.numbers.decode(&self.kv, &value)?;
                out.through = ChangeNumber(split_head(&key)?.0);
                looked_at += 1;
                let merged = record.written().any(|w| w.merged) && !broken(Rule::AMergedRowIsNotSkipped);
                // A deleted directory that is live by what is in it may have been collected where that is not known yet.
                let kept = !live_by_record(&record) && self.derived(record.uid)?.kept;
                if merged || kept || !record.versions().all(|version| partner_known.covers(version)) {
                    let known = out.dictionary.attributes.len();
                    let row = encode_record(&record, &mut out.dictionary);
                    bytes += row.len();
                    let new = out.dictionary.attributes.get(known..).unwrap_or_default();
                    bytes += new.iter().map(|value| encode_attributes(value).len()).sum::<usize>();
                    out.rows.push(row);
                }
            }
        }
    }

    /// Merges a partner's record with what is here.
    ///
    /// # Errors
    /// [`KvError`].
    pub fn take_in(&mut self, remote: Record) -> Result<Taken, KvError> {
        let taken = self.merge_in(remote, None)?;
        self.settle()?;
        Ok(taken)
    }

    /// `encoded`: the record as this database writes it, after eight bytes.
    fn merge_in(&mut self, remote: Record, encoded: Option<Vec<u8>>) -> Result<Taken, KvError> {
        // What is known already raised it when it came, or was stamped anew since by a clock that had been ahead.
        if remote.clock() > self.counters.clock {
            let unknown = remote.written().filter(|w| !self.known.covers(w.version));
            self.counters.clock = unknown.map(|w| w.time.clock).max().unwrap_or_default().max(self.counters.clock);
        }
        let uid = remote.uid;
        let Some((number, local)) = self.row(uid)? else {
            let taken = Taken {
                uid,
                placement: Case::New,
                content: remote.content.as_ref().map(|_| Case::New),
                attributes: remote.attributes.as_ref().map(|_| Case::New),
                changed: true,
                again: false,
                lost_content: None,
                lost_attributes: None,
            };
            match encoded {
                Some(encoded) => self.replace_encoded(uid, None, Some((&remote, encoded)), true)?,
                None => self.replace(uid, None, Some(&remote), true)?,
            }
            return Ok(taken);
        };
        let mut remote = remote;
        let weak = self.weaken_ahead(&local, &mut remote);
        let now = self.merging_at.filter(|_| !self.settings.read_only);
        let arriving = std::mem::take(&mut self.arriving);
        // Whatever is changed here next is later than what is written again.
        let mut issue = |clock: Hlc| {
            let version = self.issue(now?);
            self.counters.clock = self.counters.clock.max(clock);
            Some(version)
        };
        let (record, mut taken) = merge_records(weak.as_ref().unwrap_or(&local), &remote, &arriving, &mut issue);
        self.arriving = arriving;
        taken.changed = record != local;
        if taken.changed || taken.again {
            let number_it =
                taken.again || !broken(Rule::ChangeNumbersCarryMerges) || !record.versions().eq(local.versions());
            self.replace(uid, Some(Old::of(number, &local)), Some(&record), number_it)?;
        }
        Ok(taken)
    }

    /// A time that no clock has reached yet wins nothing (design, section 4). What is known here and carries one was
    /// stamped anew since by its author, or lost to something else: it does not come back. What is held here and carries
    /// one, taken in while this clock was ahead too, loses to whatever else comes. Returns the local record so, where it
    /// differs.
    fn weaken_ahead(&self, local: &Record, remote: &mut Record) -> Option<Record> {
        let latest = self.latest_allowed?;
        if local.clock().max(remote.clock()) <= latest {
            return None;
        }
        let ahead = |written: &Written| written.time.clock > latest;
        let stale = |written: &Written| ahead(written) && self.known.covers(written.version);
        let mut weak = local.clone();
        if stale(&remote.placement.written) {
            remote.placement.clone_from(&local.placement);
        } else if ahead(&local.placement.written) && !ahead(&remote.placement.written) {
            weak.placement.written.time = Time::default();
        }
        if let (Some(mine), Some(theirs)) = (&mut weak.attributes, &mut remote.attributes) {
            if stale(&theirs.written) {
                theirs.clone_from(mine);
            } else if ahead(&mine.written) && !ahead(&theirs.written) {
                mine.written.time = Time::default();
            }
        }
        if let (Some(mine), Some(theirs)) = (&mut weak.content, &mut remote.content) {
            if stale(&theirs.written) {
                theirs.clone_from(mine);
            } else if ahead(&mine.written) && !ahead(&theirs.written) {
                (mine.written.time, mine.bytes.time) = (Time::default(), Time::default());
            }
        }
        Some(weak)
    }

    /// Keeps a row of a pass aside, in the place of what lay aside of its UID.
    ///
    /// # Errors
    /// [`KvError`].
    pub fn lay_aside(&mut self, upstream: ReplicaId, record: &Record) -> Result<(), KvError> {
        self.lay_aside_all(upstream, std::slice::from_ref(record))
    }

    /// As [`Self::lay_aside`], of the rows of a page.
    ///
    /// # Errors
    /// [`KvError`].
    pub fn lay_aside_all(&mut self, upstream: ReplicaId, records: &[Record]) -> Result<(), KvError> {
        let Some(latest) = records.iter().map(Record::clock).max() else { return Ok(()) };
        let upstream_key = self.upstream_key(upstream)?;
        for record in records {
            let uid = self.numbers.key(&mut self.kv, record.uid)?;
            let value = self.numbers.encode(&mut self.kv, record.clock().0, record)?;
            self.kv.put(Table::Aside, &keys::pair(&upstream_key, uid), &value)?;
        }
        let mut cursor = self.cursor(upstream)?;
        if latest > cursor.clock {
            cursor.clock = latest;
            self.set_cursor(upstream, cursor)?;
        }
        Ok(())
    }

    /// How far this replica is with an upstream's replica id.
    ///
    /// # Errors
    /// [`KvError`].
    pub fn pass_state(&self, upstream: ReplicaId) -> Result<PassState, KvError> {
        Ok(self.cursor(upstream)?.state)
    }

    /// All rows up to this number lie aside now; the upstream had told of `heard` by then.
    ///
    /// # Errors
    /// [`KvError`].
    pub fn set_reached(
        &mut self,
        upstream: ReplicaId,
        reached: ChangeNumber,
        heard: ChangeNumber,
    ) -> Result<(), KvError> {
        let mut cursor = self.cursor(upstream)?;
        (cursor.state.reached, cursor.state.heard) = (reached, heard);
        if broken(Rule::PassesAreAtomic) {
            self.merge_aside(upstream, &mut |_| {})?;
            self.settle()?;
            cursor.state.cursor = reached;
        }
        self.set_cursor(upstream, cursor)
    }

    /// Takes a complete pass in, in one step: what lies aside is merged, and `rows`, its last page; knowledge grows by the
    /// upstream's, the cursor moves to `through`. Nothing happens if it carries a time more than `limit` microseconds after
    /// `now`; roll back then. `rows` has at most one of each UID.
    ///
    /// # Errors
    /// [`KvError`]; then roll back.
    pub fn complete_pass(
        &mut self,
        upstream: ReplicaId,
        rows: Vec<Record>,
        through: ChangeNumber,
        upstream_known: &Knowledge,
        now: Hlc,
        limit: u64,
    ) -> Result<PassEnd, KvError> {
        self.complete_pass_with(upstream, rows, through, upstream_known, now, limit, &mut |_| {})
    }

    /// As [`Self::complete_pass`]; `each` is told what came of each record.
    ///
    /// # Errors
    /// [`KvError`]; then roll back.
    #[expect(clippy::too_many_arguments, reason = "what a page says, and by which clock it is taken")]
    pub fn complete_pass_with(
        &mut self,
        upstream: ReplicaId,
        mut rows: Vec<Record>,
        through: ChangeNumber,
        upstream_known: &Knowledge,
        now: Hlc,
        limit: u64,
        each: &mut dyn FnMut(&Taken),
    ) -> Result<PassEnd, KvError> {
        let PassState { cursor, reached, .. } = self.pass_state(upstream)?;
        if reached != cursor {
            // A row of the last page takes the place of what lies aside of its UID.
            self.lay_aside_all(upstream, &rows)?;
            rows.clear();
        }
        let cursor = self.cursor(upstream)?;
        let latest_allowed = Hlc(now.0.saturating_add(limit));
        // What the cursor says may be of a row that its author has stamped anew since.
        if rows.iter().map(Record::clock).fold(cursor.clock, Hlc::max) > latest_allowed {
            let here = rows.iter().map(|record| self.latest_unknown(record)).max().unwrap_or_default();
            let clock = self.latest_aside(upstream)?.max(here);
            if clock > latest_allowed {
                return Ok(PassEnd::AheadOfClock { clock });
            }
        }
        let mut counts = TakenCounts::default();
        self.arriving = upstream_known.clone();
        self.latest_allowed = Some(latest_allowed);
        self.merging_at = Some(now);
        let mut each = |taken: &Taken| {
            counts.count(taken);
            each(taken);
        };
        self.merge_aside(upstream, &mut each)?;
        for record in rows {
            self.merge_row(record, None, &mut each)?;
        }
        self.settle()?;
        if !self.comparing {
            self.known.join(upstream_known);
        }
        self.arriving = Knowledge::default();
        self.latest_allowed = None;
        self.merging_at = None;
        // Others may know more of this id than this database does (it returned to an old image): never issue that again. A
        // number that is far ahead of the clock is nothing that was issued here.
        let seen = upstream_known.sequence(self.counters.replica).max(self.known.sequence(self.counters.replica));
        if seen.0 <= latest_allowed.0 {
            self.counters.highest = self.counters.highest.max(seen);
        }
        let state = PassState { cursor: through, reached: through, heard: ChangeNumber(0) };
        if cursor.state != state || cursor.clock != Hlc(0) {
            self.set_cursor(upstream, Cursor { state, clock: Hlc(0) })?;
        }
        Ok(PassEnd::Complete(counts))
    }

    fn merge_aside(&mut self, upstream: ReplicaId, each: &mut dyn FnMut(&Taken)) -> Result<(), KvError> {
        loop {
            let rows = self.aside(upstream, &[])?;
            if rows.is_empty() {
                return Ok(());
            }
            for (key, value) in rows {
                let (_, record) = self.numbers.decode(&self.kv, &value)?;
                self.kv.delete(Table::Aside, &key)?;
                self.merge_row(record, Some(value), each)?;
            }
        }
    }

    /// Merges a row of a complete pass; `encoded` as of [`Self::merge_in`].
    fn merge_row(
        &mut self,
        record: Record,
        encoded: Option<Vec<u8>>,
        each: &mut dyn FnMut(&Taken),
    ) -> Result<(), KvError> {
        // Known, and without a record here: it was collected. It is in the pass because the upstream had not done so yet
        // when it sent the row, which may even be one of before the delete. Only a deleted directory can be live all
        // the same, for the sake of something in it that was not known here.
        let place = &record.placement.value;
        let known = !(place.directory && place.deleted) && record.versions().all(|version| self.known.covers(version));
        if !known || self.record(record.uid)?.is_some() {
            each(&self.merge_in(record, encoded)?);
        }
        Ok(())
    }

    /// Replica ids that this member had: it stamps anew what they stamped in the future (see [`Self::restamp`]), so no pass
    /// waits for the sake of that.
    pub fn set_former(&mut self, former: Vec<ReplicaId>) {
        self.former = former;
    }

    /// This database was put back, and has not been compared with anybody. A partner may have dropped tombstones that an
    /// earlier life acknowledged, so its passes tell of what has no record there and an older one here: what they bring is
    /// taken in, and becomes known only with [`Self::compared`]. Until then whoever has the tombstones sends them.
    pub fn set_comparing(&mut self, comparing: bool) {
        self.comparing = comparing;
    }

    /// The records were compared: what those partners know is known here. In a transaction. Those who pull from here are
    /// to hear of it.
    pub fn compared(&mut self, known: &Knowledge) {
        self.known.join(known);
        self.counters.number.0 += 1;
    }

    /// The latest clock that lies aside, of versions that are not known here already: an author who has stamped anew meets
    /// its old ones again at whoever took them in, and has nothing to fear of them; nor of what it has forgotten.
    fn latest_aside(&self, upstream: ReplicaId) -> Result<Hlc, KvError> {
        let (mut after, mut latest) = (Vec::new(), Hlc(0));
        loop {
            let rows = self.aside(upstream, &after)?;
            let Some((last, _)) = rows.last() else { return Ok(latest) };
            after = [last, &[0][..]].concat();
            for (_, value) in &rows {
                if split_head(value)?.0 <= latest.0 {
                    continue;
                }
                let (_, record) = self.numbers.decode(&self.kv, value)?;
                latest = self.latest_unknown(&record).max(latest);
            }
        }
    }

    /// The latest clock of a record's versions that are neither known here nor of this member.
    fn latest_unknown(&self, record: &Record) -> Hlc {
        let own = |w: &&Written| self.former.contains(&w.version.replica);
        let unknown = record.written().filter(|w| !self.known.covers(w.version) && !own(w));
        unknown.map(|w| w.time.clock).max().unwrap_or_default()
    }

    /// Some of what lies aside, from a key on.
    fn aside(&self, upstream: ReplicaId, from: &[u8]) -> Result<Vec<crate::kv::Pair>, KvError> {
        let Some(number) = self.numbers.find(upstream) else { return Ok(Vec::new()) };
        let prefix = number.to_be_bytes();
        let from = if from.is_empty() { &prefix[..] } else { from };
        self.kv.range(Table::Aside, from, after_prefix(&prefix).as_deref(), CHUNK)
    }

    /// Throws away what lies aside of an upstream: the pass begins again at the cursor.
    ///
    /// # Errors
    /// [`KvError`].
    pub fn drop_pass(&mut self, upstream: ReplicaId) -> Result<(), KvError> {
        loop {
            let rows = self.aside(upstream, &[])?;
            if rows.is_empty() {
                break;
            }
            for (key, _) in rows {
                self.kv.delete(Table::Aside, &key)?;
            }
        }
        let PassState { cursor, .. } = self.pass_state(upstream)?;
        let state = PassState { cursor, reached: cursor, heard: ChangeNumber(0) };
        self.set_cursor(upstream, Cursor { state, clock: Hlc(0) })
    }

    /// An id was closed at a number (rollback or revocation): what is known of it is lowered to that, and all partners are
    /// asked from the start again (design, section 11).
    ///
    /// # Errors
    /// [`KvError`].
    pub fn lower_known(&mut self, replica: ReplicaId, through: anabranch_model::Sequence) -> Result<(), KvError> {
        self.known.lower(replica, through);
        for table in [Table::Cursors, Table::Aside] {
            loop {
                let rows = self.kv.range(table, &[], None, CHUNK)?;
                if rows.is_empty() {
                    break;
                }
                for (key, _) in rows {
                    self.kv.delete(table, &key)?;
                }
            }
        }
        Ok(())
    }

    fn upstream_key(&mut self, upstream: ReplicaId) -> Result<[u8; 4], KvError> {
        Ok(self.numbers.intern(&mut self.kv, upstream)?.to_be_bytes())
    }

    fn cursor(&self, upstream: ReplicaId) -> Result<Cursor, KvError> {
        let Some(number) = self.numbers.find(upstream) else { return Ok(Cursor::default()) };
        let Some(value) = self.kv.get(Table::Cursors, &number.to_be_bytes())? else { return Ok(Cursor::default()) };
        let mut input = Reader(&value);
        let mut read = || {
            let [cursor, reached, clock] = [input.number()?, input.number()?, input.number()?];
            let [cursor, reached] = [cursor, reached].map(ChangeNumber);
            // Earlier versions of the program wrote no more.
            let heard = ChangeNumber(if input.0.is_empty() { 0 } else { input.number()? });
            let state = PassState { cursor, reached, heard };
            Ok::<_, anabranch_model::codec::DecodeError>(Cursor { state, clock: Hlc(clock) })
        };
        read().map_err(|e| KvError::damaged("read a cursor", e))
    }

    fn set_cursor(&mut self, upstream: ReplicaId, cursor: Cursor) -> Result<(), KvError> {
        let mut out = Writer::default();
        for number in [cursor.state.cursor.0, cursor.state.reached.0, cursor.clock.0, cursor.state.heard.0] {
            out.number(number);
        }
        let key = self.upstream_key(upstream)?;
        self.kv.put(Table::Cursors, &key, &out.0)
    }
}
