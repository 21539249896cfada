//! Initial sync on a member that is not the primary (design, section 10), and the comparison of a member that returns
//! under a fresh id (section 12).
//!
//! What lay in the folder before is compared with the first complete pass. What is equal is adopted, what differs becomes
//! a candidate that the install replaces and preserves, what partners do not have goes to `PreExisting`. Nothing that was
//! here is ever sent or deleted.

use std::collections::{BTreeMap, BTreeSet};

use anabranch_engine::kv::{Kv, Table};
use anabranch_model::{Content, Hlc, Knowledge, Names, Uid, Version};
use anabranch_net::message::Message;
use anabranch_volume::fs::{Fs, Kind, Stat};

use crate::events::EventKind;
use crate::nodes::{self, Node, NodeId, OnDisk, ROOT_NODE};
use crate::observe::{Task, read_all};
use crate::replica::{LinkId, Partner, Phase, Replica, Result, Stop};
use crate::tables::{self, Meta, Preserved, Reason};

/// UIDs asked about in one message.
const ASK: usize = 4096;
/// How long a member that was put back may take to notice it, microseconds: a day.
const COMPARED_LATELY: u64 = 86_400_000_000;

impl<F: Fs + Sync, K: Kv> Replica<F, K>
where
    F::Dir: Send + Sync,
    F::File: Send,
{
    pub(crate) fn begin_adoption(&mut self) {
        self.report(EventKind::InitialSyncBegan, self.config.folder_name.clone());
        // What was made since nothing lay there is taken up by the scan at the end, as any local change.
        self.adopting = Some(if self.joins_empty { Vec::new() } else { vec![ROOT_NODE] });
        self.work_at = Some(self.now);
    }

    /// Compares some more of what lies here with what the partner has.
    pub(crate) fn adopt(&mut self) -> Result<()> {
        let Some(mut stack) = self.adopting.take() else { return Ok(()) };
        self.records.begin()?;
        let mut entries = 0;
        while entries < self.config.limits.batch_entries {
            let Some(id) = stack.pop() else { break };
            entries += self.adopt_dir(id, &mut stack)?;
        }
        self.fs
            .sync_dir(&self.private.pre_existing)
            .map_err(|source| Stop::Private { path: "PreExisting".into(), source })?;
        if stack.is_empty() {
            self.phase = Phase::Normal;
            self.records.kv_mut().put(Table::Meta, Meta::PHASE, &[self.phase.byte()])?;
            self.records.commit()?;
            self.report(EventKind::InitialSyncEnded, self.config.folder_name.clone());
            self.report_pre_existing()?;
            self.walk_again_from(&[]);
            self.work_at = Some(self.now);
            // What people did meanwhile, and could not be told from what was here before.
            self.scan_everything();
            for link in self.links.keys().copied().collect::<Vec<_>>() {
                self.pull(link)?;
            }
            return self.resolve(anabranch_engine::ResolveScope::Own);
        }
        self.records.commit()?;
        self.adopting = Some(stack);
        self.work_at = Some(self.now);
        Ok(())
    }

    /// Says how many things went to `PreExisting`. The manifest began with this database, so that those of an earlier part of
    /// the same initial sync count, and no others.
    fn report_pre_existing(&mut self) -> Result<()> {
        let (mut items, mut after) = (0_u64, 0);
        loop {
            let page = tables::preserved(self.records.kv(), after, 1024)?;
            let Some(last) = page.last() else { break };
            after = last.number;
            items += page.iter().filter(|item| item.reason == Reason::PreExisting && !item.pending).count() as u64;
        }
        if items > 0 {
            let text = format!("{items} (a directory counts once, with all that is in it)");
            self.report(EventKind::WentToPreExisting, text);
        }
        Ok(())
    }

    fn adopt_dir(&mut self, id: NodeId, stack: &mut Vec<NodeId>) -> Result<usize> {
        let (Some(dir), Some(parent)) = (self.dir(id)?, self.node_uid(id)?) else { return Ok(1) };
        let mut listed = anabranch_volume::walk::scan_directories(&self.fs, vec![(id.0, dir.clone())]);
        let entries = match listed.pop().map(|(_, entries)| entries) {
            Some(Ok(entries)) => entries,
            Some(Err(error)) => {
                let path = String::from_utf8_lossy(&self.node_path(id, b"")?).into_owned();
                self.report_once(EventKind::CannotRead, format!("{path}: {error}"));
                return Ok(1);
            }
            None => return Ok(1),
        };
        let count = entries.len().max(1);
        let (mut tasks, mut known, mut taken) = (Vec::new(), Vec::new(), BTreeSet::new());
        // Of several names that are one name by the folder's rule, that which the partner has counts.
        let mut entries = entries;
        if self.config.names != Names::Bytes {
            let mut kept = Vec::with_capacity(entries.len());
            for (entry, stat) in entries {
                let shown = self.records.shown_at(parent, &entry.name)?;
                let shown = shown.map(|uid| self.records.shown(uid)).transpose()?.flatten();
                kept.push((shown.is_none_or(|s| s.name.bytes() != entry.name), entry, stat));
            }
            kept.sort_by_key(|(other, ..)| *other);
            entries = kept.into_iter().map(|(_, entry, stat)| (entry, stat)).collect();
        }
        for (entry, stat) in entries {
            if (id == ROOT_NODE && anabranch_model::is_reserved(&entry.name)) || stat.foreign {
                continue;
            }
            if let Some(node) = nodes::at(self.records.kv(), id, &entry.name)? {
                if node.is_dir() {
                    stack.push(node.id);
                }
                continue;
            }
            let directory = stat.kind == Kind::Directory;
            let shown = match self.records.shown_at(parent, &entry.name)? {
                Some(uid) => self.records.record(uid)?.filter(|r| r.placement.value.directory == directory),
                None => None,
            };
            let free = |uid: Uid| !taken.contains(&uid) && nodes::of(self.records.kv(), uid).is_ok_and(|n| n.is_none());
            match shown.filter(|r| stat.kind != Kind::Other && free(r.uid)) {
                Some(record) => {
                    tasks.push(Task {
                        size: stat.stamp.size,
                        dir: dir.clone(),
                        name: entry.name,
                        kind: stat.kind,
                        content: !directory,
                        attributes: true,
                        seen: stat.clone(),
                        known: None,
                    });
                    taken.insert(record.uid);
                    known.push((record, stat));
                }
                None if stat.kind == Kind::Other => {
                    let path = self.node_path(id, &entry.name)?;
                    self.report_once(EventKind::Skipped, String::from_utf8_lossy(&path).into_owned());
                }
                None => self.pre_existing(id, &dir, &entry.name, &stat)?,
            }
        }
        let tasks = tasks.into();
        let results = read_all(&self.fs, &self.beside, self.now, &tasks);
        for ((task, (record, stat)), read) in tasks.iter().zip(known).zip(results) {
            if read.error.is_some() || (read.stat.is_none() && !read.in_use) {
                continue;
            }
            let stat = read.stat.unwrap_or(stat);
            let facet = record.content.as_ref();
            let content = match (&read.content, facet) {
                (Some((value, provisional)), Some(facet)) if *value == facet.value => Some(OnDisk {
                    value: value.clone(),
                    bytes: Some(facet.bytes.version),
                    version: if stat.stamp.mtime == facet.mtime { facet.written.version } else { Version::default() },
                    history: facet.written.history.clone(),
                    provisional: *provisional,
                }),
                (Some((value, provisional)), _) => Some(candidate(value.clone(), *provisional)),
                // In use: what it will hold is not known, but it is not what the partner has until it was compared.
                (None, Some(_)) => Some(candidate(Content::File { size: stat.stamp.size, hash: [0; 32] }, true)),
                (None, None) => None,
            };
            let attributes = read.attributes.unwrap_or_default();
            let same = record.attributes.as_ref().filter(|f| f.value == attributes).map(|f| f.written.version);
            let node = Node {
                id: self.new_node_id(),
                parent: id,
                name: task.name.clone(),
                uid: Some(record.uid),
                kind: stat.kind,
                object: stat.object.clone(),
                stamp: stat.stamp,
                content,
                attributes_version: same.unwrap_or_default(),
                attributes,
            };
            nodes::put(self.records.kv_mut(), None, &node)?;
            self.counters.adopted += 1;
            if node.is_dir() {
                stack.push(node.id);
            }
        }
        Ok(count)
    }

    /// The partner does not have it: it is kept in `PreExisting`.
    fn pre_existing(&mut self, id: NodeId, dir: &F::Dir, name: &[u8], stat: &Stat) -> Result<()> {
        let number = tables::next_preserved(self.records.kv())?;
        let item = Preserved {
            number,
            reason: Reason::PreExisting,
            when: self.now,
            uid: None,
            version: None,
            replaced_by: None,
            path: self.node_path(id, name)?,
            size: stat.stamp.size,
            hash: None,
            directory: stat.kind == Kind::Directory,
            pending: false,
        };
        let to = self.private.pre_existing.clone();
        match self.fs.rename_new(dir, name, &to, &item.file_name()) {
            Ok(()) => {
                tables::put_preserved(self.records.kv_mut(), &item)?;
                self.counters.unseen += 1;
                Ok(())
            }
            Err(error) => {
                let path = String::from_utf8_lossy(&item.path).into_owned();
                self.report_once(EventKind::CannotInstall, format!("{path}: {error}"));
                Ok(())
            }
        }
    }

    /// After a pass of a partner, while returning: asks it for every record that it should know, once the tree was looked at.
    pub(crate) fn compare_records(&mut self, id: LinkId) -> Result<()> {
        if self.returning_request.is_some() || self.has_yet_to_look() {
            return Ok(());
        }
        self.ask_presence(id, None)
    }

    /// Where the tree is a copy, only a first look tells what of it is what. What cannot be read is not waited for.
    fn has_yet_to_look(&mut self) -> bool {
        let looks = self.absence_doubted && self.scanning;
        if looks {
            self.returning_at = Some(Hlc(self.now.0 + self.config.limits.retry));
        }
        looks
    }

    fn ask_presence(&mut self, id: LinkId, after: Option<Uid>) -> Result<()> {
        // The pass made our knowledge cover the partner's: what it knows of is what both know.
        let page = self.records.records(after, ASK)?;
        if after.is_none() {
            self.returning_undecided = false;
        }
        if page.is_empty() {
            return self.compared_with(id);
        }
        let uids: Vec<Uid> = page.iter().map(|r| r.uid).collect();
        self.returning_request = Some((id, uids.clone()));
        self.send(id, Message::AskRecords { request: 0, uids });
        Ok(())
    }

    /// What we hold, whose versions the partner knows, and of which it has no record, was deleted.
    pub(crate) fn take_presence(&mut self, id: LinkId, present: &[bool]) -> Result<()> {
        let Some((_, uids)) = self.returning_request.take().filter(|(link, _)| *link == id) else { return Ok(()) };
        if present.is_empty() {
            return self.cannot_compare_with(id);
        }
        let Some(replica) = self.links.get(&id).and_then(|l| l.peer.as_ref()).map(|(_, r)| *r) else { return Ok(()) };
        let known = self.partner_known.get(&replica).cloned().unwrap_or_default();
        self.records.begin()?;
        for (uid, present) in uids.iter().zip(present) {
            let Some(record) = self.records.record(*uid)?.filter(|_| !present) else { continue };
            match record.versions().all(|v| known.covers(v)) {
                true => self.records.forget(*uid)?,
                false => self.returning_undecided = true,
            }
        }
        self.note_touched()?;
        self.records.commit()?;
        self.ask_presence(id, uids.last().copied())
    }

    /// All has been compared with that partner. What it has no record of, and may never have heard of, it cannot say anything
    /// about: it may have been put back as well. So whoever else is connected is asked, too; where nobody has heard of it, it
    /// is ours to tell.
    fn compared_with(&mut self, id: LinkId) -> Result<()> {
        if !self.returning_undecided {
            return self.returned(true);
        }
        let since = *self.returning_since.get_or_insert(self.now);
        let next = self.comparable().find(|other| *other > id);
        if let Some(next) = next {
            return self.ask_presence(next, None);
        }
        let expected = self.links.values().any(|l| l.partner == Partner::Upstream && !l.passed);
        if !expected || self.now.0 >= since.0.saturating_add(self.config.limits.hold) {
            return self.returned(true);
        }
        self.returning_at = Some(Hlc(self.now.0 + self.config.limits.retry));
        Ok(())
    }

    /// That partner was put back itself and knows no better. The next one is asked; where none knows, all of them again
    /// after a while, and in the end (design, section 11: as long as edits wait for a partner) none.
    fn cannot_compare_with(&mut self, id: LinkId) -> Result<()> {
        let since = *self.returning_since.get_or_insert(self.now);
        let next = self.comparable().find(|other| *other > id);
        match next {
            Some(next) => self.ask_presence(next, None),
            None if self.now.0 >= since.0.saturating_add(self.config.limits.hold) => self.returned(false),
            None => {
                self.returning_at = Some(Hlc(self.now.0 + self.config.limits.retry));
                Ok(())
            }
        }
    }

    /// Upstream partners of which a whole pass was taken in, in order.
    fn comparable(&self) -> impl Iterator<Item = LinkId> {
        let passed = self.links.iter().filter(|(_, l)| l.partner == Partner::Upstream && l.passed);
        passed.map(|(id, _)| *id)
    }

    /// Goes on with the comparison of a member that was put back, with whoever is there.
    pub(crate) fn compare_with_anybody(&mut self) -> Result<()> {
        if self.phase != Phase::Returning || self.returning_request.is_some() || self.has_yet_to_look() {
            return Ok(());
        }
        let first = self.comparable().next();
        first.map_or(Ok(()), |id| self.ask_presence(id, None))
    }

    /// The comparison is complete, or nobody is there with whom to compare: versions may be issued again.
    fn returned(&mut self, compared: bool) -> Result<()> {
        self.returning_request = None;
        (self.returning_since, self.returning_at) = (None, None);
        self.records.begin()?;
        self.phase = Phase::Normal;
        self.records.kv_mut().put(Table::Meta, Meta::PHASE, &[self.phase.byte()])?;
        self.know_what_partners_know()?;
        if !compared {
            self.keep_everything()?;
        }
        self.records.kv_mut().put(Table::Meta, Meta::COMPARED, &self.now.0.to_be_bytes())?;
        self.keep_what_was_written_within()?;
        self.records.commit()?;
        self.walk_again_from(&[]);
        self.work_at = Some(self.now);
        self.scan_everything();
        self.resolve(anabranch_engine::ResolveScope::Own)
    }

    /// What those know with whom we are in step: their passes were taken in, and whatever they dropped since an earlier life
    /// of ours had acknowledged it was asked of somebody.
    fn know_what_partners_know(&mut self) -> Result<()> {
        let closed = tables::closed(self.records.kv())?;
        let passed: Vec<_> = self.comparable().collect();
        for link in passed {
            let peer = self.links.get(&link).and_then(|l| l.peer.as_ref()).map(|(_, replica)| *replica);
            let Some(mut known) = peer.and_then(|peer| self.partner_known.get(&peer).cloned()) else { continue };
            Self::cap_closed(&closed, &mut known);
            self.records.compared(&known);
        }
        Ok(())
    }

    /// Was this member put back, and compared its records so short a while ago that it may have been with one who was put back
    /// as well and had not noticed it yet?
    pub(crate) fn compared_lately(&self) -> Result<bool> {
        let at = self.records.kv().get(Table::Meta, Meta::COMPARED)?;
        let at = at.map(|bytes| tables::read_number(&bytes)).transpose()?;
        Ok(at.is_some_and(|at| at.abs_diff(self.now.0) < COMPARED_LATELY))
    }

    /// Compares its records once more, under the id that it has.
    pub(crate) fn compare_again(&mut self) -> Result<()> {
        self.records.begin()?;
        self.phase = Phase::Returning;
        self.records.kv_mut().put(Table::Meta, Meta::PHASE, &[self.phase.byte()])?;
        self.records.commit()?;
        Ok(())
    }

    /// Others may have deleted some of what is here and forgotten that, and be put back to a state after it: then nobody would
    /// ever say so, and they would be without it. Rather it is everywhere again.
    fn keep_everything(&mut self) -> Result<()> {
        let mut after = None;
        loop {
            let page = self.records.records(after, ASK)?;
            let Some(last) = page.last() else { return self.note_touched() };
            after = Some(last.uid);
            for record in &page {
                if self.records.live(record.uid)? {
                    self.records.keep(self.now, record.uid)?;
                }
            }
        }
    }

    /// What was written here before the comparison is known to nobody else, and stays; a directory of it that was deleted
    /// elsewhere meanwhile is made anew. What lies nowhere any more, since another took its name, goes where the rest of its
    /// directory went, or into the root.
    fn keep_what_was_written_within(&mut self) -> Result<()> {
        self.records.begin_changes(self.now)?;
        let (mut after, mut went, mut left) = (None, BTreeMap::new(), Vec::new());
        loop {
            let page = self.records.records(after, ASK)?;
            let Some(last) = page.last() else { break };
            after = Some(last.uid);
            for record in &page {
                let directory = record.placement.value.parent;
                if directory == Uid::ROOT || !self.records.live(record.uid)? {
                    continue;
                }
                self.keep_within(record.uid)?;
                let Some(kept) = self.records.record(record.uid)? else { continue };
                if kept.placement.value.parent != directory {
                    went.insert(directory, kept.placement.value.parent);
                } else if self.records.record(directory)?.is_none() {
                    left.push(kept);
                }
            }
        }
        for record in left {
            let (place, uid) = (&record.placement.value, record.uid);
            match went.get(&place.parent) {
                Some(directory) => self.records.place(self.now, uid, *directory, place.name.clone())?,
                None => self.records.place(self.now, uid, Uid::ROOT, place.name.beside(uid))?,
            }
        }
        self.records.end_changes()?;
        self.note_touched()
    }
}

/// Content without a version: compared first, then replaced and preserved, or given a version.
pub(crate) fn candidate(value: Content, provisional: bool) -> OnDisk {
    OnDisk { value, bytes: None, version: Version::default(), history: Knowledge::default(), provisional }
}
