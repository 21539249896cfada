//! Opening a replica: its private directory, its identity, and recovery after an unexpected shutdown (design, section 11).
//!
//! | found at start | outcome |
//! | --- | --- |
//! | closed properly | an ordinary comparison of the tree with the database |
//! | the same boot id | intents are completed or undone; all other differences are people's edits |
//! | what an intent names was put in place, and is not there any more | somebody moved or removed that, and not what was there before |
//! | another boot id, a file of an intent with the new content | the install is completed |
//! | … with the old content | the install is done again |
//! | … with any other | a local edit against what the database had there |
//! | … another file that is empty, has runs of zeros, or an mtime in the future | a candidate: preserved, and the recorded version put back as soon as a partner gives it |
//! | … any other difference | a local edit, given a version once one partner was heard, or after ten minutes |
//! | another machine or file system | the database was copied: a fresh replica id, and a full comparison |

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;

use anabranch_engine::kv::{Kv, KvError, Table};
use anabranch_engine::{Policy, Records, Settings};
use anabranch_model::{Attributes, Content, Hlc, Knowledge, Names};
use anabranch_net::message::Mark;
use anabranch_volume::fs::{FileStamp, Fs, Kind, Stat};
use anabranch_volume::layout;

use crate::acknowledged::Acknowledgements;
use crate::beside::Beside;
use crate::config::{Config, FreshIds, RecoveryPolicy};
use crate::events::EventKind;
use crate::fetch::Fetching;
use crate::install::{Ahead, ReadySet, parked_name};
use crate::nodes::{self, Node, OnDisk, ROOT_NODE, STAGING_NODE};
use crate::observe::Large;
use crate::replica::{Counters, Phase, Private, Replica, Result, Stop};
use crate::scan::Scan;
use crate::tables::{self, Gap, Intent, Meta, Preserved, Reason};
use crate::undone::Undone;
use crate::unsynced::Unsynced;

/// Numbers passed over at a start, at least: more than are issued between an image and the return to it while a clock that was
/// set back catches up.
const PASSED_OVER: u64 = 1 << 16;

/// How many more to pass over at a start where the clock is behind them. So two returns to one image, whose numbers the clock
/// does not tell apart, issue different ones.
fn passed_over_besides(fresh: &mut FreshIds) -> u64 {
    let [a, b, c, d, ..] = fresh().0;
    u64::from(u32::from_be_bytes([a, b, c, d]))
}

fn private_dir<F: Fs>(fs: &F, parent: &F::Dir, name: &[u8]) -> Result<F::Dir> {
    let open = || match fs.open_dir(parent, name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs.create_dir(parent, name)?;
            fs.sync_dir(parent)?;
            fs.open_dir(parent, name)
        }
        other => other,
    };
    open().map_err(|source| Stop::Private { path: String::from_utf8_lossy(name).into_owned(), source })
}

impl<F: Fs + Sync, K: Kv> Replica<F, K>
where
    F::Dir: Send + Sync,
    F::File: Send,
{
    /// Opens a replica over a file system and its database; makes the database if it is empty.
    ///
    /// # Errors
    /// [`Stop`]: the private directory cannot be used, the root is another one, the database fails, or the recovery
    /// policy is manual.
    pub fn open(fs: F, kv: K, config: Config, mut fresh: FreshIds, now: Hlc, resume: bool) -> Result<Self> {
        let root = fs.root();
        let top = private_dir(&fs, &root, layout::PRIVATE_DIR)?;
        let private = Private {
            staging: private_dir(&fs, &top, layout::STAGING)?,
            conflict: private_dir(&fs, &top, layout::CONFLICT_AND_DELETED)?,
            pre_existing: private_dir(&fs, &top, layout::PRE_EXISTING)?,
            top,
        };
        let settings = Settings {
            policy: if config.keep_beside { Policy::KeepBeside } else { Policy::Preserve },
            author: config.member.as_str().into(),
            names: config.names,
            ..Settings::default()
        };
        let token = read_token(&fs, &private.top)?;
        let (records, new) = match open_records(kv, &settings)? {
            Ok(records) => (records, false),
            Err(kv) => {
                if let Some(expected) = &config.token {
                    return Err(Stop::Root(format!(
                        "its database is missing, though this member kept the folder there before (token {})",
                        String::from_utf8_lossy(expected)
                    )));
                }
                (Records::create(kv, fresh(), settings)?, true)
            }
        };
        let beside = Beside::start(fs.parallelism());
        let mut replica = Self {
            fs,
            records,
            config,
            fresh,
            phase: Phase::Normal,
            now,
            private,
            dirs: BTreeMap::new(),
            links: BTreeMap::new(),
            out: VecDeque::new(),
            changed: BTreeSet::new(),
            scan: Scan::default(),
            scanning: false,
            absence_doubted: false,
            looked_through: false,
            unread: BTreeSet::new(),
            first_scan: false,
            missing: BTreeSet::new(),
            looked_for: BTreeSet::new(),
            later: BTreeMap::new(),
            unsettled: BTreeMap::new(),
            large: Large::default(),
            observe_at: None,
            closed: BTreeSet::new(),
            recent: BTreeMap::new(),
            moved_away: BTreeMap::new(),
            half_made: VecDeque::new(),
            leftovers: BTreeSet::new(),
            unnoted_parked: false,
            undone: Undone::default(),
            work_from: Vec::new(),
            walk_done: false,
            due: BTreeSet::new(),
            window_full: false,
            work_at: Some(now),
            waiting: BTreeMap::new(),
            ready: ReadySet::default(),
            ahead: Ahead::default(),
            beside,
            fetching: Fetching::default(),
            lifting: crate::lift::Lifting::default(),
            adopting: None,
            joins_empty: false,
            nobody: BTreeMap::new(),
            resolve_at: None,
            counters: Counters::default(),
            reported: BTreeSet::new(),
            acknowledged: Acknowledgements::default(),
            serial_at_start: 0,
            first_serial: None,
            returning_request: None,
            returning_undecided: false,
            returning_since: None,
            returning_at: None,
            partner_known: BTreeMap::new(),
            verifying: BTreeMap::new(),
            rows: crate::sums::Rows::default(),
            root_lost: false,
            purge_due: true,
            lately: VecDeque::new(),
            node_floor: 0,
            preserved_bytes: None,
            last_mark: Mark::default(),
            mark_at_start: anabranch_model::Sequence(0),
            issued_at_start: anabranch_model::Sequence(0),
            marks: 0,
            ahead_retry: None,
            first_number: anabranch_model::ChangeNumber(0),
            gaps: Vec::new(),
            covered: BTreeSet::new(),
            covered_at: None,
            suspect: false,
            compared_at: None,
            unsynced: Unsynced::default(),
            checkpoint: Hlc(0),
            hold_until: None,
            compare_clocks_at: None,
        };
        replica.load_marks()?;
        replica.node_floor = nodes::next_id(replica.records.kv())?.0;
        replica.begin_life(new, token, resume)?;
        Ok(replica)
    }

    fn begin_life(&mut self, new: bool, token: Option<Vec<u8>>, resume: bool) -> Result<()> {
        let kv = self.records.kv();
        let closed = kv.get(Table::Meta, Meta::CLEAN)?;
        let doubting = closed.as_deref() == Some(&[Meta::STOPPED_DOUBTING]);
        let clean = doubting || closed.as_deref() == Some(&[Meta::STOPPED]);
        let boot = kv.get(Table::Meta, Meta::BOOT)?;
        let checkpoint = kv.get(Table::Meta, Meta::CHECKPOINT)?;
        let place = kv.get(Table::Meta, Meta::PLACE)?;
        let phase = kv.get(Table::Meta, Meta::PHASE)?;
        let own_token = kv.get(Table::Meta, Meta::TOKEN)?;
        let alone = self.config.members.len() == 1;
        self.phase = match phase.as_deref() {
            Some([1]) => Phase::Joining,
            Some([3]) => Phase::Returning,
            Some(_) => Phase::Normal,
            None if self.config.primary || alone => Phase::Normal,
            None => Phase::Joining,
        };
        if !new && own_token.is_some() && own_token != token {
            return Err(Stop::Root("its identity token is missing or another one".into()));
        }
        if let (false, Some(expected), Some(found)) = (new, &self.config.token, &own_token)
            && expected != found
        {
            // The disk of another folder, say: its records must not become this folder's.
            let [expected, found] = [expected, found].map(|t| String::from_utf8_lossy(t).trim().to_owned());
            return Err(Stop::Root(format!(
                "it carries the identity token {found}, and this member's folder {expected}"
            )));
        }
        if !new && !clean && self.config.recovery == RecoveryPolicy::Manual && !resume {
            self.report(EventKind::RecoveryWaits, self.config.folder_name.clone());
            return Err(Stop::RecoveryWaits);
        }
        let root = self.fs.root();
        let stat = self.fs.stat_dir(&root).map_err(|source| Stop::Private { path: "the root".into(), source })?;
        let staging = self
            .fs
            .stat_dir(&self.private.staging)
            .map_err(|source| Stop::Private { path: "staging".into(), source })?;
        self.records.begin()?;
        let before = (self.records.highest(), self.records.change_number());
        let drawn = passed_over_besides(&mut self.fresh);
        self.records.jump(self.now, PASSED_OVER, drawn);
        self.first_number = self.records.change_number();
        self.gaps = tables::gaps(self.records.kv())?;
        if !new {
            let (sequences, numbers) = ((before.0, self.records.highest()), (before.1, self.first_number));
            self.gaps.push(Gap { sequences, numbers });
            tables::put_gaps(self.records.kv_mut(), &self.gaps)?;
        }
        for (id, stat) in [(ROOT_NODE, stat), (STAGING_NODE, staging)] {
            let old = nodes::get(self.records.kv(), id)?;
            let node = Node {
                id,
                parent: ROOT_NODE,
                name: Vec::new(),
                uid: None,
                kind: Kind::Directory,
                object: stat.object,
                stamp: stat.stamp,
                content: None,
                attributes_version: anabranch_model::Version::default(),
                attributes: Attributes::default(),
            };
            put_special(self.records.kv_mut(), old.as_ref(), &node)?;
        }
        if own_token.is_none() {
            let token = match token {
                Some(token) if new => token,
                _ => format!("{}\n", (self.fresh)()).into_bytes(),
            };
            write_token(&self.fs, &self.private.top, &token)?;
            self.records.kv_mut().put(Table::Meta, Meta::TOKEN, &token)?;
        }
        let kv = self.records.kv_mut();
        kv.put(Table::Meta, Meta::PHASE, &[self.phase.byte()])?;
        kv.put(Table::Meta, Meta::CLEAN, &[Meta::SERVING])?;
        let same_boot = boot.as_deref() == Some(&self.config.boot[..]);
        let trusted = new || (clean && !doubting) || same_boot;
        if trusted {
            // Another one is noted when all has been looked at.
            kv.put(Table::Meta, Meta::BOOT, &self.config.boot)?;
        }
        kv.put(Table::Meta, Meta::PLACE, &self.config.place)?;
        if new && self.phase == Phase::Normal {
            kv.put(Table::Meta, Meta::FIRST_SCAN, &[])?;
        }
        self.first_scan = kv.get(Table::Meta, Meta::FIRST_SCAN)?.is_some();
        self.absence_doubted = kv.get(Table::Meta, Meta::ABSENCE_DOUBTED)?.is_some();
        let checkpoint = checkpoint.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes);
        self.checkpoint = Hlc(checkpoint);
        self.undone = Undone::load(self.records.kv())?;
        self.unsynced = Unsynced::load(self.records.kv_mut(), &self.config.boot)?;
        self.acknowledged = Acknowledgements::load(self.records.kv())?;
        let own = self.acknowledged.of(&self.config.member);
        self.serial_at_start = own.map_or(0, |own| own.serial);
        if trusted {
            self.advance_checkpoint()?;
        }
        self.records.commit()?;
        if !new && !clean {
            self.report(EventKind::UnexpectedShutdown, self.config.folder_name.clone());
            self.recover()?;
        }
        self.suspect = !trusted;
        if self.suspect && !alone {
            self.hold_until = Some(Hlc(self.now.0 + self.config.limits.hold));
        }
        if !new && !clean {
            self.report(EventKind::Recovered, self.config.folder_name.clone());
        }
        self.clear_staging()?;
        self.take_up_parked()?;
        if !new && !clean {
            self.take_up_unnoted()?;
        }
        self.lower_what_was_left()?;
        self.look_at_last_preserved()?;
        if !new && place.as_deref() != Some(&self.config.place[..]) {
            self.take_fresh_id(None)?;
        }
        self.report(EventKind::Started, self.config.folder_name.clone());
        if self.phase != Phase::Joining {
            self.scan_everything();
        }
        Ok(())
    }

    /// The token that the root carries, for the member's own notes.
    ///
    /// # Errors
    /// [`Stop::Database`].
    pub fn token(&self) -> Result<Vec<u8>> {
        Ok(self.records.kv().get(Table::Meta, Meta::TOKEN)?.unwrap_or_default())
    }

    /// Moves the durability checkpoint on, in a transaction. All that is recorded was made durable before; but what is written
    /// in place later may reach the disk before its new time does, and what was written lately is likeliest to be written
    /// again (design, section 11).
    pub(crate) fn advance_checkpoint(&mut self) -> Result<()> {
        let (now, lag) = (self.now.0, self.config.limits.verify_after_power_cut);
        let behind = now.saturating_sub(lag);
        // A clock that was set back leaves it in the future.
        if !self.suspect && (self.checkpoint.0 < behind.saturating_sub(lag) || self.checkpoint.0 > now) {
            self.checkpoint = Hlc(behind);
            self.records.kv_mut().put(Table::Meta, Meta::CHECKPOINT, &behind.to_be_bytes())?;
        }
        Ok(())
    }

    /// Completes or undoes what the install intents name, and confirms or drops announced manifest entries.
    fn recover(&mut self) -> Result<()> {
        self.records.begin()?;
        for intent in tables::take_intents(self.records.kv_mut())? {
            self.recover_intent(&intent)?;
            self.counters.intents += 1;
        }
        self.recover_preserved()?;
        let synced = self.fs.sync_all();
        if synced.is_err() {
            self.forget_staged()?;
        }
        synced.map_err(|source| Stop::Private { path: "the volume".into(), source })?;
        self.records.commit()?;
        Ok(())
    }

    /// Entries that were put aside into staging without the database having taken note: their nodes follow them, so that
    /// they are not taken for deleted. What no node knows is preserved.
    pub(crate) fn take_up_parked(&mut self) -> Result<()> {
        let failed = |source| Stop::Private { path: "staging".into(), source };
        let staging = self.private.staging.clone();
        let parked: Vec<_> =
            self.fs.list(&staging).map_err(failed)?.into_iter().filter(|e| e.name.starts_with(b"p-")).collect();
        if parked.is_empty() {
            return Ok(());
        }
        self.records.begin()?;
        for entry in parked {
            let Some(stat) = self.fs.stat(&staging, &entry.name).map_err(failed)? else { continue };
            let known = nodes::by_object(self.records.kv(), &stat.object)?;
            if known.iter().any(|n| n.parent == STAGING_NODE && n.name == entry.name) {
                continue;
            }
            match known.into_iter().find(|n| n.kind == stat.kind) {
                Some(node) => {
                    let name = parked_name(&node);
                    if name != entry.name {
                        // It came here in place of another, whose name it has.
                        match self.fs.rename_new(&staging, &entry.name, &staging, &name) {
                            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                            renamed => renamed.map_err(failed)?,
                        }
                    }
                    let mut parked = node.clone();
                    (parked.parent, parked.name) = (STAGING_NODE, name);
                    nodes::put(self.records.kv_mut(), Some(&node), &parked)?;
                    if let Some(uid) = node.uid {
                        self.records.kv_mut().put(Table::Todo, &nodes::uid_key(uid), &[])?;
                        self.due_now(uid);
                    }
                }
                None => self.preserve_staged(&entry.name, Reason::Differed, None, &stat)?,
            }
        }
        self.records.commit()?;
        Ok(())
    }

    /// Something in staging that is not ours to throw away goes to where its manifest entry says that it is.
    pub(crate) fn preserve_staged(
        &mut self,
        name: &[u8],
        reason: Reason,
        number: Option<u64>,
        stat: &Stat,
    ) -> Result<()> {
        let failed = |source| Stop::Private { path: "what is preserved".into(), source };
        let number = match number {
            Some(number) => number,
            None => tables::next_preserved(self.records.kv())?,
        };
        let mut item = match tables::preserved_one(self.records.kv(), number)? {
            Some(item) => item,
            None => Preserved {
                number,
                reason,
                when: self.now,
                uid: None,
                version: None,
                replaced_by: None,
                path: name.to_vec(),
                size: stat.stamp.size,
                hash: None,
                directory: stat.kind == Kind::Directory,
                pending: true,
            },
        };
        if item.reason != reason && reason.unseen() {
            item.reason = reason;
        }
        let (from, to) = (self.private.staging.clone(), self.preserved_dir(item.reason));
        self.fs.rename_new(&from, name, &to, &item.file_name()).map_err(failed)?;
        item.pending = false;
        tables::put_preserved(self.records.kv_mut(), &item)?;
        Ok(())
    }

    fn recover_intent(&mut self, intent: &Intent) -> Result<()> {
        let failed = |source| Stop::Private { path: "an item of an install intent".into(), source };
        // What was prepared is in staging, unless it was put in place: then what came out is there, or preserved already.
        // It may be another thing than the intent says: somebody had just put that there, and nobody has seen it.
        let staging = self.private.staging.clone();
        let staged = self.fs.stat(&staging, &intent.private).map_err(failed)?;
        let placed = self.was_placed(intent, staged.as_ref()).map_err(failed)?;
        if let Some(out) = staged.filter(|s| s.object != intent.object) {
            let expected = intent.replaces.as_ref().filter(|(object, stamp)| {
                *object == out.object && (stamp.size, stamp.mtime) == (out.stamp.size, out.stamp.mtime)
            });
            let expected = expected.and(tables::preserved_one(self.records.kv(), intent.preserved)?);
            let uid = intent.uid;
            tracing::debug!(
                member = self.config.member,
                ?uid,
                expected = expected.is_some(),
                ?out,
                ?intent,
                "came out before the end"
            );
            match expected {
                Some(item) => self.preserve_staged(&intent.private, item.reason, Some(intent.preserved), &out)?,
                None => self.preserve_staged(&intent.private, Reason::LostEdit, None, &out)?,
            }
        }
        self.recover_taken_back(intent)?;
        // One entry that cannot be looked at must not keep the folder from starting: the scan meets it again.
        let here = match self.dir(intent.parent)? {
            Some(dir) => self.fs.stat(&dir, &intent.name).ok().flatten(),
            None => None,
        };
        let here = here.filter(|s| s.object == intent.object);
        if here.is_none() && !placed {
            // Not in place: what was prepared is thrown away, and the item, still on the list of work, is done again.
            return Ok(());
        }
        let record = self.records.record(intent.uid)?;
        let facet = record.as_ref().and_then(|r| r.content.as_ref()).filter(|f| f.written.version == intent.version);
        let value = match (facet, &here) {
            (Some(facet), _) => facet.value.clone(),
            (None, Some(stat)) if stat.kind == Kind::File => Content::File { size: stat.stamp.size, hash: intent.hash },
            (None, _) => return Ok(()),
        };
        if let Some(other) = nodes::at(self.records.kv(), intent.parent, &intent.name)?
            && other.uid != Some(intent.uid)
        {
            nodes::remove(self.records.kv_mut(), &other)?;
        }
        let before = nodes::of(self.records.kv(), intent.uid)?;
        let applied = record.as_ref().and_then(|r| r.attributes.as_ref());
        let attributes = match self.attributes_of_placed(intent, here.is_some())? {
            Some(attributes) => attributes,
            None => applied.map(|f| f.value.clone()).unwrap_or_default(),
        };
        let mtime = facet.map(|f| f.mtime).or(here.as_ref().map(|stat| stat.stamp.mtime)).unwrap_or_default();
        let kind = match &value {
            Content::File { .. } => Kind::File,
            Content::Symlink { .. } => Kind::Symlink,
        };
        let node = Node {
            id: match &before {
                Some(node) => node.id,
                None => self.new_node_id(),
            },
            parent: intent.parent,
            name: intent.name.clone(),
            uid: Some(intent.uid),
            kind,
            object: intent.object.clone(),
            // The comparison that follows reads the bytes. Another time than that of the content is a user's.
            stamp: FileStamp::doubted(mtime),
            content: Some(OnDisk {
                value,
                bytes: Some(facet.map_or(intent.version, |f| f.bytes.version)),
                version: intent.version,
                history: facet.map_or_else(|| Knowledge::of(intent.version), |f| f.written.history.clone()),
                provisional: true,
            }),
            attributes_version: applied
                .filter(|f| f.value == attributes)
                .map_or(anabranch_model::Version::default(), |f| f.written.version),
            attributes,
        };
        nodes::put(self.records.kv_mut(), before.as_ref(), &node)?;
        Ok(())
    }

    /// Was what an intent names put in place, wherever it is by now? What somebody did to it while we were down, he did to that
    /// and not to what had been there before. Nothing takes the private file away while its intent stands, so without it the
    /// name was given; where another file had the name, that one has come out.
    fn was_placed(&self, intent: &Intent, staged: Option<&Stat>) -> io::Result<bool> {
        if let Some(staged) = staged {
            return Ok(staged.object != intent.object);
        }
        let Some((object, _)) = &intent.replaces else { return Ok(true) };
        let name = format!("{:016x}", intent.preserved).into_bytes();
        for kept in [&self.private.conflict, &self.private.pre_existing] {
            if self.fs.stat(kept, &name)?.is_some_and(|out| out.object == *object) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The attributes of what an intent put in place, as they are there or where it is now; `None`: it is not found.
    fn attributes_of_placed(&mut self, intent: &Intent, in_place: bool) -> Result<Option<Attributes>> {
        let place = match self.fs.locate(&intent.object) {
            _ if in_place => Some((intent.parent, intent.name.clone())),
            Ok(Some((directory, name))) => self.dir_node(&directory)?.map(|parent| (parent, name)),
            Ok(None) | Err(_) => None,
        };
        let Some((parent, name)) = place else { return Ok(None) };
        Ok(self.dir(parent)?.and_then(|dir| self.fs.read_attributes(&dir, &name).ok()))
    }

    /// What was prepared may have been in place for a moment, and somebody may have written into it then.
    fn recover_taken_back(&mut self, intent: &Intent) -> Result<()> {
        let staging = self.private.staging.clone();
        let failed = |source| Stop::Private { path: "an item of an install intent".into(), source };
        let found = self.fs.stat(&staging, &intent.private).map_err(failed)?;
        let Some(stat) = found.filter(|s| s.object == intent.object && s.kind == Kind::File) else { return Ok(()) };
        let file = self.fs.open_file(&staging, &intent.private).map_err(failed)?;
        let hash = anabranch_volume::hash::read_hash(&self.fs, &file, stat.stamp.size).map_err(failed)?;
        if hash != Some(intent.hash) {
            self.preserve_staged(&intent.private, Reason::LostEdit, None, &stat)?;
        }
        Ok(())
    }

    /// Manifest entries of what was announced, to be preserved or to be removed: they count if the item is there. Items without
    /// an entry get one.
    fn recover_preserved(&mut self) -> Result<()> {
        let failed = |source| Stop::Private { path: "ConflictAndDeleted".into(), source };
        let mut after = 0;
        loop {
            let page = tables::preserved(self.records.kv(), after, 1024)?;
            let Some(last) = page.last() else { break };
            after = last.number;
            for mut item in page.into_iter().filter(|i| i.pending) {
                let dir = self.preserved_dir(item.reason);
                if let Some(stat) = self.fs.stat(&dir, &item.file_name()).map_err(failed)? {
                    // We took it out, so nobody removed it.
                    let node = item.uid.map(|uid| nodes::of(self.records.kv(), uid)).transpose()?.flatten();
                    if let Some(node) = node.filter(|n| n.object == stat.object) {
                        nodes::remove(self.records.kv_mut(), &node)?;
                    }
                    item.pending = false;
                    tables::put_preserved(self.records.kv_mut(), &item)?;
                } else {
                    tables::drop_preserved(self.records.kv_mut(), item.number)?;
                }
            }
        }
        for (reason, dir) in [
            (Reason::Differed, self.private.conflict.clone()),
            (Reason::PreExisting, self.private.pre_existing.clone()),
        ] {
            for entry in self.fs.list(&dir).map_err(failed)? {
                let number = std::str::from_utf8(&entry.name).ok().and_then(|n| u64::from_str_radix(n, 16).ok());
                let Some(number) = number else { continue };
                if tables::preserved_one(self.records.kv(), number)?.is_some() {
                    continue;
                }
                let Some(stat) = self.fs.stat(&dir, &entry.name).map_err(failed)? else { continue };
                let item = Preserved {
                    number,
                    reason,
                    when: self.now,
                    uid: None,
                    version: None,
                    replaced_by: None,
                    path: entry.name,
                    size: stat.stamp.size,
                    hash: None,
                    directory: stat.kind == Kind::Directory,
                    pending: false,
                };
                tables::put_preserved(self.records.kv_mut(), &item)?;
            }
        }
        Ok(())
    }

    pub(crate) fn preserved_dir(&self, reason: Reason) -> F::Dir {
        if reason == Reason::PreExisting { self.private.pre_existing.clone() } else { self.private.conflict.clone() }
    }

    /// Is the root where it was? If not, the folder stands still, and nothing is deleted (design, section 5).
    pub(crate) fn root_is_there(&mut self) -> Result<bool> {
        match self.fs.root_in_place() {
            Ok(true) => Ok(true),
            Ok(false) | Err(_) => {
                if !self.root_lost {
                    self.report(EventKind::RootChanged, self.config.folder_name.clone());
                }
                self.root_lost = true;
                self.observe_at = Some(Hlc(self.now.0 + self.config.limits.retry));
                Ok(false)
            }
        }
    }

    pub(crate) fn look_for_root(&mut self) -> Result<()> {
        if self.observe_at.is_some_and(|at| at > self.now) {
            return Ok(());
        }
        if self.fs.root_in_place().unwrap_or(false) {
            self.root_lost = false;
            self.reported.retain(|(kind, _)| *kind != EventKind::RootChanged);
            if self.phase != Phase::Joining {
                self.scan_everything();
            }
            self.work_at = Some(self.now);
        } else {
            self.observe_at = Some(Hlc(self.now.0 + self.config.limits.retry));
        }
        Ok(())
    }

    /// Puts a preserved item back into the tree, under its own path or a free name beside it; returns the path. The
    /// tree's change is then seen as any local change.
    ///
    /// # Errors
    /// [`Stop`] for the database; the inner error says why this item cannot be restored.
    pub fn restore(&mut self, number: u64) -> Result<std::result::Result<String, String>> {
        self.dirs.clear();
        let Some(item) = tables::preserved_one(self.records.kv(), number)? else {
            return Ok(Err(format!("there is no preserved item {number}")));
        };
        let mut parts: Vec<&[u8]> = item.path.split(|b| *b == b'/').collect();
        let Some(name) = parts.pop().filter(|n| !n.is_empty()) else {
            return Ok(Err("the item has no path".into()));
        };
        let mut dir = self.fs.root();
        for part in &parts {
            let opened = match self.fs.open_dir(&dir, part) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.fs.create_dir(&dir, part).and_then(|()| self.fs.open_dir(&dir, part))
                }
                other => other,
            };
            dir = match opened {
                Ok(dir) => dir,
                Err(error) => return Ok(Err(format!("{}: {error}", String::from_utf8_lossy(part)))),
            };
        }
        let from = self.preserved_dir(item.reason);
        let there = match self.config.names {
            Names::Bytes => Vec::new(),
            // A name that is taken under another case is taken: else the older of the two files would lose it.
            Names::Windows => match self.fs.list(&dir) {
                Ok(entries) => entries,
                Err(error) => return Ok(Err(error.to_string())),
            },
        };
        for attempt in 0..1000 {
            let mut target = name.to_vec();
            if attempt > 0 {
                target.truncate(240);
                target.extend_from_slice(format!(".restored-{number}-{attempt}").as_bytes());
            }
            if there.iter().any(|entry| self.records.same_name(&entry.name, &target)) {
                continue;
            }
            match self.fs.rename_new(&from, &item.file_name(), &dir, &target) {
                Ok(()) => {
                    let synced = self.fs.sync_dir(&dir).and_then(|()| self.fs.sync_dir(&from));
                    synced.map_err(|source| Stop::Private { path: "a restored item".into(), source })?;
                    self.records.begin()?;
                    tables::drop_preserved(self.records.kv_mut(), number)?;
                    self.records.commit()?;
                    self.preserved_bytes = None;
                    self.scan_everything();
                    let path = [&parts[..], &[&target[..]]].concat().join(&b'/');
                    return Ok(Ok(String::from_utf8_lossy(&path).into_owned()));
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Ok(Err(error.to_string())),
            }
        }
        Ok(Err("no free name was found beside its path".into()))
    }
}

/// The root and staging have a node but no name and no UID.
fn put_special(kv: &mut impl Kv, old: Option<&Node>, node: &Node) -> std::result::Result<(), KvError> {
    nodes::put_without_name(kv, old, node)
}

fn open_records<K: Kv>(kv: K, settings: &Settings) -> Result<std::result::Result<Records<K>, K>> {
    // `open` consumes the database only if it is initialised.
    if kv.last(Table::Meta)?.is_none() {
        return Ok(Err(kv));
    }
    if let Some(was) = Records::names_of(&kv)?.filter(|was| *was != settings.names) {
        return Err(Stop::Names { was, now: settings.names });
    }
    match Records::open(kv, settings.clone())? {
        Some(records) => Ok(Ok(records)),
        None => Err(Stop::Database(KvError::damaged("open", "the database holds data but no replica id"))),
    }
}

fn read_token<F: Fs>(fs: &F, top: &F::Dir) -> Result<Option<Vec<u8>>> {
    let failed = |source| Stop::Private { path: "the identity token".into(), source };
    let file = match fs.open_file(top, layout::TOKEN) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed)?,
    };
    let mut bytes = vec![0; 64];
    let count = fs.read_at(&file, &mut bytes, 0).map_err(failed)?;
    bytes.truncate(count);
    Ok(Some(bytes))
}

fn write_token<F: Fs>(fs: &F, top: &F::Dir, token: &[u8]) -> Result<()> {
    let write = || {
        match fs.remove_file(top, layout::TOKEN) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = fs.create_file(top, layout::TOKEN)?;
        fs.write_at(&file, token, 0)?;
        fs.sync_file(&file)?;
        fs.sync_dir(top)
    };
    write().map_err(|source| Stop::Private { path: "the identity token".into(), source })
}
