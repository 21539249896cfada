//! The records of one replica: what is kept in memory, transactions, and the one way in which a row is written.
//!
//! Owns the tables that [`crate::keys`] lists. Every write of a record goes through [`Records::replace`], which keeps the
//! change numbers, the tombstones and the view in step with it. Must never be shared by two writers of one database.

use std::borrow::Cow;
use std::collections::BTreeSet;

use anabranch_model::codec::{Reader, Writer};
use anabranch_model::{
    ChangeNumber, FOLD_TABLE, Hlc, Knowledge, Name, Names, Record, ReplicaId, Sequence, Uid, Version, fold, same_name,
};

use crate::dictionary::Numbers;
use crate::keys;
use crate::kv::{Kv, KvError, Table};
use crate::rules::{Rule, broken};
use crate::view::{Place, View};

/// What happens to a file that loses its name (design, section 4).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Policy {
    /// Taken out of the tree and preserved: the default between servers.
    #[default]
    Preserve,
    /// Kept in its own parent under a name made of its own, its author's and its UID: the default for sync shares.
    KeepBeside,
}

/// What the folder and the membership lay down.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Settings {
    /// For files that lose their name.
    pub policy: Policy,
    /// The name of this member or device, at most 64 bytes of it: carried in placements.
    pub author: Box<str>,
    /// What counts as one name: the same for all replicas of a folder, for its whole life.
    pub names: Names,
    /// This membership issues no versions.
    pub read_only: bool,
}

/// Numbers that change with nearly every write, kept in memory and written when a transaction is committed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Counters {
    pub(crate) replica: ReplicaId,
    pub(crate) highest: Sequence,
    pub(crate) clock: Hlc,
    pub(crate) number: ChangeNumber,
    /// Rows in Derived: while there are none, nothing differs from what the records say.
    pub(crate) derived: u64,
    /// Cycles that the view cuts.
    pub(crate) cuts: u64,
    /// Rows in Unresolved.
    pub(crate) unresolved: u64,
}

/// What has to be known of a record that is about to be replaced.
pub(crate) struct Old {
    number: ChangeNumber,
    place: Place,
}

impl Old {
    pub(crate) fn of(number: ChangeNumber, record: &Record) -> Self {
        Self { number, place: Place::of(record) }
    }
}

const FORMAT: u64 = 1;
const META_COUNTERS: &[u8] = b"records";
const META_KNOWN: &[u8] = b"known";
/// The longest name of an author that the codec takes.
const AUTHOR_BYTES_MAX: usize = 64;

/// Takes touched UIDs over, into tables that are not the records'.
pub type TakeTouched<K> = fn(&mut K, &BTreeSet<Uid>) -> Result<(), KvError>;
/// Touched UIDs in memory before they are handed over.
const TOUCHED_MAX: usize = 32_768;

/// The records of one replica over its database.
///
/// All changes happen between [`Records::begin`] and [`Records::commit`]; reads see the transaction under way.
#[derive(Debug)]
pub struct Records<K> {
    pub(crate) kv: K,
    pub(crate) settings: Settings,
    pub(crate) numbers: Numbers,
    pub(crate) counters: Counters,
    pub(crate) known: Knowledge,
    /// What the pass that is being merged adds to `known` at its end.
    pub(crate) arriving: Knowledge,
    /// Times after this one are ahead of the clock, while a pass is taken in.
    pub(crate) latest_allowed: Option<Hlc>,
    /// The time, while a pass is taken in.
    pub(crate) merging_at: Option<Hlc>,
    /// Replica ids that this member had.
    pub(crate) former: Vec<ReplicaId>,
    /// What partners know does not become known here with their passes, see [`Self::set_comparing`].
    pub(crate) comparing: bool,
    pub(crate) view: View,
    touched: BTreeSet<Uid>,
    touched_elsewhere: Option<TakeTouched<K>>,
    /// Between [`Records::begin_changes`] and [`Records::end_changes`].
    pub(crate) deferred: bool,
    /// As they stand in the database.
    stored: Counters,
    stored_known: Knowledge,
    touched_before: BTreeSet<Uid>,
}

impl<K: Kv> Records<K> {
    /// Gives an empty database its replica id, in a transaction of its own.
    ///
    /// # Errors
    /// [`KvError`], also if the database already has one.
    pub fn create(mut kv: K, replica: ReplicaId, settings: Settings) -> Result<Self, KvError> {
        if kv.get(Table::Meta, META_COUNTERS)?.is_some() {
            return Err(KvError::failed("create the records", "the database already has a replica id"));
        }
        kv.begin()?;
        let mut out = Self::new(kv, settings);
        // Number 0 is the root's.
        out.numbers.intern(&mut out.kv, ReplicaId::default())?;
        out.numbers.intern(&mut out.kv, replica)?;
        out.counters.replica = replica;
        out.commit()?;
        Ok(out)
    }

    /// Opens a database; `None` if it has no replica id yet. If the folder's policy, the rule for names or its table are
    /// others than before, the view is made anew, in a transaction of its own.
    ///
    /// # Errors
    /// [`KvError`].
    pub fn open(kv: K, settings: Settings) -> Result<Option<Self>, KvError> {
        let Some(meta) = kv.get(Table::Meta, META_COUNTERS)? else { return Ok(None) };
        let mut out = Self::new(kv, settings);
        let (_, made_under) = read_counters(&meta)?;
        out.reload()?;
        if made_under != MadeUnder::of(&out.settings) {
            out.begin()?;
            out.rebuild_view()?;
            out.stored.replica = ReplicaId::default(); // So that the counters, with the policy, are written.
            out.commit()?;
        }
        Ok(Some(out))
    }

    /// The rule for names under which a database was last used; `None` if it has no replica id yet.
    ///
    /// # Errors
    /// [`KvError`].
    pub fn names_of(kv: &K) -> Result<Option<Names>, KvError> {
        let Some(meta) = kv.get(Table::Meta, META_COUNTERS)? else { return Ok(None) };
        let (_, made_under) = read_counters(&meta)?;
        Ok(Some(if made_under.names == 0 { Names::Bytes } else { Names::Windows }))
    }

    fn new(kv: K, mut settings: Settings) -> Self {
        let mut end = settings.author.len().min(AUTHOR_BYTES_MAX);
        while !settings.author.is_char_boundary(end) {
            end -= 1;
        }
        settings.author = settings.author.get(..end).unwrap_or_default().into();
        Self {
            kv,
            settings,
            numbers: Numbers::default(),
            counters: Counters::default(),
            known: Knowledge::default(),
            arriving: Knowledge::default(),
            latest_allowed: None,
            merging_at: None,
            former: Vec::new(),
            comparing: false,
            view: View::default(),
            touched: BTreeSet::new(),
            touched_elsewhere: None,
            deferred: false,
            stored: Counters::default(),
            stored_known: Knowledge::default(),
            touched_before: BTreeSet::new(),
        }
    }

    /// The database.
    pub fn kv(&self) -> &K {
        &self.kv
    }

    /// The database, for the tables that are not the records'.
    pub fn kv_mut(&mut self) -> &mut K {
        &mut self.kv
    }

    /// What the folder lays down.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Begins a transaction.
    ///
    /// # Errors
    /// [`KvError`].
    pub fn begin(&mut self) -> Result<(), KvError> {
        self.kv.begin()?;
        self.touched_before = self.touched.clone();
        Ok(())
    }

    /// Makes the transaction durable.
    ///
    /// # Errors
    /// [`KvError`]; then roll back.
    pub fn commit(&mut self) -> Result<(), KvError> {
        self.deferred = false;
        self.settle()?;
        if self.known != self.stored_known {
            let mut out = Writer::default();
            self.numbers.write_knowledge(&mut self.kv, &mut out, &self.known)?;
            self.kv.put(Table::Meta, META_KNOWN, &out.0)?;
        }
        if self.counters != self.stored {
            let c = &self.counters;
            let mut out = Writer::default();
            out.number(FORMAT);
            out.raw(&c.replica.0);
            for number in [c.highest.0, c.clock.0, c.number.0, c.derived, c.cuts, c.unresolved] {
                out.number(number);
            }
            MadeUnder::of(&self.settings).write(&mut out);
            self.kv.put(Table::Meta, META_COUNTERS, &out.0)?;
        }
        self.kv.commit()?;
        if self.known != self.stored_known {
            self.stored_known = self.known.clone();
        }
        self.stored = self.counters.clone();
        Ok(())
    }

    /// Takes the transaction back, with all that is in memory of it.
    ///
    /// # Errors
    /// [`KvError`].
    pub fn rollback(&mut self) -> Result<(), KvError> {
        self.kv.rollback()?;
        self.touched = std::mem::take(&mut self.touched_before);
        self.reload()
    }

    fn reload(&mut self) -> Result<(), KvError> {
        self.numbers = Numbers::load(&self.kv)?;
        self.view = View::default();
        self.deferred = false;
        self.arriving = Knowledge::default();
        self.latest_allowed = None;
        self.merging_at = None;
        let meta = self.kv.get(Table::Meta, META_COUNTERS)?;
        self.counters = read_counters(&meta.unwrap_or_default())?.0;
        let known = self.kv.get(Table::Meta, META_KNOWN)?;
        self.known = known.map_or(Ok(Knowledge::default()), |bytes| self.numbers.read_knowledge(&bytes))?;
        self.stored = self.counters.clone();
        self.stored_known = self.known.clone();
        Ok(())
    }

    /// The id under which versions are issued here.
    pub fn replica(&self) -> ReplicaId {
        self.counters.replica
    }

    /// The versions whose records were taken in.
    pub fn known(&self) -> &Knowledge {
        &self.known
    }

    /// The highest number that was issued here, or passed by a jump.
    pub fn highest(&self) -> Sequence {
        self.counters.highest
    }

    /// The highest change number.
    pub fn change_number(&self) -> ChangeNumber {
        self.counters.number
    }

    /// The latest clock in any record taken in or written.
    pub fn clock(&self) -> Hlc {
        self.counters.clock
    }

    /// Goes on under a fresh id (design, sections 2 and 11). The old one stays in what is known.
    pub fn set_replica(&mut self, replica: ReplicaId) {
        self.counters.replica = replica;
    }

    /// Raises the counters to at least the wall time and by `least`, and by `drawn` more where the clock is behind them, so that
    /// numbers issued after a return to an old image are new ones (design, section 11): sequence numbers, and change numbers,
    /// up to which partners have heard.
    pub fn jump(&mut self, now: Hlc, least: u64, drawn: u64) {
        if broken(Rule::NumbersFollowTheClock) {
            return;
        }
        let raised = |counter: u64| {
            let drawn = if counter < now.0 { 0 } else { drawn };
            counter.saturating_add(least).saturating_add(drawn).max(now.0)
        };
        self.counters.highest = Sequence(raised(self.counters.highest.0));
        self.counters.number = ChangeNumber(raised(self.counters.number.0));
    }

    /// The key of a name under the folder's rule.
    pub(crate) fn key<'a>(&self, name: &'a Name) -> Cow<'a, [u8]> {
        fold(name.bytes(), self.settings.names)
    }

    /// Are these one name in this folder (design, section 4)?
    pub fn same_name(&self, one: &[u8], other: &[u8]) -> bool {
        same_name(one, other, self.settings.names)
    }

    /// The record of a UID.
    ///
    /// # Errors
    /// [`KvError`].
    pub fn record(&self, uid: Uid) -> Result<Option<Record>, KvError> {
        Ok(self.row(uid)?.map(|(_, record)| record))
    }

    /// The record of a UID and its change number.
    ///
    /// # Errors
    /// [`KvError`].
    pub fn row(&self, uid: Uid) -> Result<Option<(ChangeNumber, Record)>, KvError> {
        let Some(key) = self.numbers.find_key(uid) else { return Ok(None) };
        let Some(value) = self.kv.get(Table::Records, &key)? else { return Ok(None) };
        let (number, record) = self.numbers.decode(&self.kv, &value)?;
        Ok(Some((ChangeNumber(number), record)))
    }

    /// Records in the order of their keys, after `after`, at most `limit`: for whole comparisons.
    ///
    /// # Errors
    /// [`KvError`].
    pub fn records(&self, after: Option<Uid>, limit: usize) -> Result<Vec<Record>, KvError> {
        let from = match after.and_then(|uid| self.numbers.find_key(uid)) {
            Some(key) => [&key[..], &[0]].concat(),
            None => Vec::new(),
        };
        let rows = self.kv.range(Table::Records, &from, None, limit)?;
        rows.iter().map(|(_, value)| Ok(self.numbers.decode(&self.kv, value)?.1)).collect()
    }

    /// UIDs of which a facet or the place shown changed since this was last asked.
    pub fn drain_touched(&mut self) -> BTreeSet<Uid> {
        std::mem::take(&mut self.touched)
    }

    /// Hands touched UIDs over whenever there are many, in the transaction that touched them, so that memory does not grow
    /// with a pass. [`Self::drain_touched`] then gives only those that are left.
    pub fn hand_over_touched(&mut self, to: TakeTouched<K>) {
        self.touched_elsewhere = Some(to);
    }

    /// A facet or the shown place of this changed.
    pub(crate) fn touch_uid(&mut self, uid: Uid) -> Result<(), KvError> {
        self.touched.insert(uid);
        if let Some(take) = self.touched_elsewhere.filter(|_| self.touched.len() >= TOUCHED_MAX) {
            take(&mut self.kv, &self.touched)?;
            self.touched.clear();
        }
        Ok(())
    }

    /// A new version, known here from now on.
    pub(crate) fn issue(&mut self, now: Hlc) -> Version {
        let least = if broken(Rule::NumbersFollowTheClock) { 0 } else { now.0 };
        let sequence = Sequence(self.counters.highest.0.saturating_add(1).max(least));
        self.counters.highest = sequence;
        let version = Version { replica: self.counters.replica, sequence };
        self.known.learn(version);
        version
    }

    /// Puts a record in the place of what there was: rows, change number, tombstones, view.
    ///
    /// `old` is what the database holds. `new` with nothing drops the record. A row gets a new change number if `number`.
    pub(crate) fn replace(
        &mut self,
        uid: Uid,
        old: Option<Old>,
        new: Option<&Record>,
        number: bool,
    ) -> Result<(), KvError> {
        let body = match new {
            Some(record) => Some(self.numbers.encode(&mut self.kv, 0, record)?),
            None => None,
        };
        self.replace_encoded(uid, old, new.zip(body), number)
    }

    /// As [`Self::replace`], of a record that is encoded already, after eight bytes that are to hold its change number.
    pub(crate) fn replace_encoded(
        &mut self,
        uid: Uid,
        old: Option<Old>,
        new: Option<(&Record, Vec<u8>)>,
        number: bool,
    ) -> Result<(), KvError> {
        let key = self.numbers.key(&mut self.kv, uid)?;
        let (old_number, before) = old.map(|old| (old.number, old.place)).unzip();
        let after = new.as_ref().map(|(record, _)| Place::of(record));
        if before != after {
            self.view_before(uid, before.as_ref())?;
        }
        if let Some((record, mut value)) = new {
            let number = match old_number {
                Some(old_number) if !number => old_number,
                _ => {
                    self.counters.number.0 += 1;
                    self.kv.put(Table::Changes, &keys::change(self.counters.number), &key)?;
                    if let Some(old) = old_number {
                        self.kv.delete(Table::Changes, &keys::change(old))?;
                    }
                    self.counters.number
                }
            };
            if let Some(head) = value.first_chunk_mut::<8>() {
                *head = number.0.to_be_bytes();
            }
            self.kv.put(Table::Records, &key, &value)?;
            if after.as_ref().is_some_and(|place| !place.live) {
                self.put_tombstone(&key, record)?;
            }
        } else {
            if let Some(old) = old_number {
                self.kv.delete(Table::Changes, &keys::change(old))?;
            }
            self.kv.delete(Table::Records, &key)?;
        }
        if before.as_ref().is_some_and(|place| !place.live) && after.as_ref().is_none_or(|place| place.live) {
            self.kv.delete(Table::Tombstones, &key)?;
        }
        if before != after {
            self.view_after(uid, before, after)?;
        }
        self.touch_uid(uid)
    }

    /// Gives a row a new change number, so that partners look at it again.
    pub(crate) fn renumber(&mut self, uid: Uid) -> Result<(), KvError> {
        let key = self.numbers.key(&mut self.kv, uid)?;
        let Some(mut value) = self.kv.get(Table::Records, &key)? else { return Ok(()) };
        if let Some(head) = value.first_chunk_mut::<8>() {
            self.kv.delete(Table::Changes, head)?;
            self.counters.number.0 += 1;
            *head = keys::change(self.counters.number);
            self.kv.put(Table::Changes, head, &key)?;
            self.kv.put(Table::Records, &key, &value)?;
        }
        Ok(())
    }

    fn put_tombstone(&mut self, key: &keys::UidKey, record: &Record) -> Result<(), KvError> {
        let merged = record.written().any(|w| w.merged);
        self.put_tombstone_of(key, merged)
    }

    /// With what is known here now, where the record's versions alone do not tell when it may go.
    fn put_tombstone_of(&mut self, key: &keys::UidKey, with_known: bool) -> Result<(), KvError> {
        let mut out = Writer::default();
        if with_known {
            let mut known = self.known.clone();
            known.join(&self.arriving);
            self.numbers.write_knowledge(&mut self.kv, &mut out, &known)?;
        }
        self.kv.put(Table::Tombstones, key, &out.0)
    }

    /// A directory that was deleted long ago, and live for the sake of something in it, is dead now: its versions say
    /// nothing of who has acknowledged that.
    pub(crate) fn died_late(&mut self, uid: Uid) -> Result<(), KvError> {
        let Some(key) = self.numbers.find_key(uid) else { return Ok(()) };
        // Where the record itself was dropped there is no tombstone either.
        if self.kv.get(Table::Tombstones, &key)?.is_some() { self.put_tombstone_of(&key, true) } else { Ok(()) }
    }
}

/// What the view in the database was made under.
#[derive(PartialEq, Eq)]
struct MadeUnder {
    policy: u64,
    names: u64,
    /// Of the rule that has one; else empty.
    table: Vec<u8>,
}

impl MadeUnder {
    fn of(settings: &Settings) -> Self {
        let policy = match settings.policy {
            Policy::Preserve => 0,
            Policy::KeepBeside => 1,
        };
        let (names, table) = match settings.names {
            Names::Bytes => (0, ""),
            Names::Windows => (1, FOLD_TABLE),
        };
        Self { policy, names, table: table.into() }
    }

    fn write(&self, out: &mut Writer) {
        out.number(self.policy);
        out.number(self.names);
        out.raw(&self.table);
    }
}

/// The counters, and what the view was made under.
fn read_counters(bytes: &[u8]) -> Result<(Counters, MadeUnder), KvError> {
    let mut input = Reader(bytes);
    let mut read = || {
        if input.number()? != FORMAT {
            return Err(anabranch_model::codec::DecodeError::Range("the format"));
        }
        let counters = Counters {
            replica: ReplicaId(input.array()?),
            highest: Sequence(input.number()?),
            clock: Hlc(input.number()?),
            number: ChangeNumber(input.number()?),
            derived: input.number()?,
            cuts: input.number()?,
            unresolved: input.number()?,
        };
        let (policy, names) = (input.number()?, input.number()?);
        // The table's version is what is left: nothing where names are compared as bytes.
        let table = if names == 0 { Vec::new() } else { std::mem::take(&mut input.0).to_vec() };
        input.end()?;
        Ok((counters, MadeUnder { policy, names, table }))
    };
    read().map_err(|e| KvError::damaged("read the counters", e))
}
