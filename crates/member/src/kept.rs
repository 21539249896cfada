//! What was preserved, afterwards: whether it is still what was preserved, and when it is purged (design, section 9).
//!
//! Somebody's `open` may have found a file by its name just before an install took it out, and take effect only after the
//! lease was given back: he then writes into what was preserved as *seen*. Nobody saw what he wrote, so such an item is
//! looked at once more a little later, and once more before it is purged; what differs becomes *unseen*.

use std::io;

use anabranch_engine::kv::Kv;
use anabranch_model::{Hlc, Version};
use anabranch_volume::fs::{FileStamp, Fs, Kind, Lease};
use anabranch_volume::hash::read_hash;

use crate::events::EventKind;
use crate::nodes::Node;
use crate::replica::{Replica, Result, Stop};
use crate::steps::{Step, broken};
use crate::tables::{self, Preserved, Reason};

/// How long after it was preserved an item is looked at again, microseconds.
const LOOK_AGAIN: u64 = 2_000_000;
/// The longest between two looks at an item that somebody has open to write, microseconds.
const LOOK_AGAIN_MAX: u64 = 120_000_000;
/// Items to be looked at again. What is preserved beyond these is looked at before it is purged, as all are.
const LATELY_MAX: usize = 8192;

/// An item that was preserved lately.
pub(crate) struct Lately {
    due: Hlc,
    number: u64,
    /// How long it was waited for last, microseconds.
    wait: u64,
    /// With this one it was taken out; after a start nobody knows.
    stamp: Option<FileStamp>,
    /// It is there only for whoever may have written into it: nobody needs it otherwise.
    drop: bool,
}

/// Is a step broken for which this is the net beneath? Then the net is away too, or nobody would see that the step is.
fn without_net() -> bool {
    [Step::Lease, Step::Compare, Step::GuardPause, Step::LookAtWhatCameOut].into_iter().any(broken)
}

/// What a second look at an item said.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Again {
    /// It is what was preserved, or what becomes of it is written down.
    Settled,
    /// Somebody has it open to write, or it cannot be read now.
    Later,
}

impl<F: Fs + Sync, K: Kv> Replica<F, K>
where
    F::Dir: Send + Sync,
    F::File: Send,
{
    /// Something is preserved: its manifest entry counts now.
    pub(crate) fn kept(&mut self, number: u64, reason: Reason, node: &Node, by: Option<Version>) -> Result<()> {
        let item = self.manifest(number, reason, node, by)?;
        tables::put_preserved(self.records.kv_mut(), &item)?;
        if reason.unseen() {
            self.counters.unseen += 1;
            let path = String::from_utf8_lossy(&item.path).into_owned();
            self.report(EventKind::Conflict, format!("{path} ({}), kept as {number}", reason.word()));
        }
        if !reason.unseen() && node.kind == Kind::File && self.lately.len() < LATELY_MAX && !without_net() {
            let due = Hlc(self.now.0 + LOOK_AGAIN);
            self.remember_lately(Lately { due, number, wait: LOOK_AGAIN, stamp: Some(node.stamp), drop: false });
        }
        if let Some(sums) = &mut self.preserved_bytes {
            sums[usize::from(reason.unseen())] += item.size;
        }
        self.purge_due = true;
        Ok(())
    }

    /// Purges preserved items of the class *seen* beyond their quota, oldest first; of the class *unseen* only those
    /// older than the minimum age (design, section 9).
    pub(crate) fn purge(&mut self) -> Result<()> {
        self.purge_due = false;
        let limits = self.config.limits;
        let high = |quota: u64| quota / 10 * 9;
        let low = |quota: u64| quota / 10 * 6;
        let mut sums = match self.preserved_bytes {
            Some(sums) => sums,
            None => self.sum_preserved()?,
        };
        self.preserved_bytes = Some(sums);
        if sums[0] <= high(limits.seen_bytes) && sums[1] <= high(limits.unseen_bytes) {
            return Ok(());
        }
        let over = [sums[0] > high(limits.seen_bytes), sums[1] > high(limits.unseen_bytes)];
        let low = [low(limits.seen_bytes), low(limits.unseen_bytes)];
        let (mut after, mut reclassed) = (0, false);
        loop {
            self.records.begin()?;
            let page = tables::preserved(self.records.kv(), after, 1024)?;
            after = page.last().map_or(after, |last| last.number);
            let (last_page, mut leaves) = (page.is_empty(), Vec::new());
            for item in page {
                let class = usize::from(item.reason.unseen());
                let young = class == 1 && item.when.0 + limits.unseen_age > self.now.0;
                if !over[class] || sums[class] <= low[class] || young || item.pending || item.directory {
                    continue;
                }
                // Once more, by its bytes: what somebody wrote since is *unseen*, and is not purged as this.
                let again = self.look_at_one(&item, None)?;
                if again == Again::Later {
                    continue;
                }
                if tables::preserved_one(self.records.kv(), item.number)?.as_ref() != Some(&item) {
                    reclassed = true;
                    continue;
                }
                sums[class] = sums[class].saturating_sub(item.size);
                leaves.push(item);
            }
            self.announce_removals(&leaves)?;
            self.records.commit()?;
            let count = leaves.len();
            let gone = self.remove_announced(leaves)?;
            reclassed |= gone.len() < count;
            for item in gone {
                let path = String::from_utf8_lossy(&item.path).into_owned();
                self.report(EventKind::Purged, format!("{path} ({})", item.number));
            }
            if last_page {
                break;
            }
        }
        // What went over to *unseen*, or could not be removed, is counted anew.
        self.preserved_bytes = (!reclassed).then_some(sums);
        Ok(())
    }

    /// Says in the database that preserved files are about to be removed: then whatever a crash leaves of them has its entry,
    /// and no entry stays of what is gone. To be committed before [`Self::remove_announced`].
    fn announce_removals(&mut self, items: &[Preserved]) -> Result<()> {
        for item in items {
            tables::put_preserved(self.records.kv_mut(), &Preserved { pending: true, ..item.clone() })?;
        }
        Ok(())
    }

    /// Removes preserved files, and their entries once that is durable: with a power cut between the two a file would be there
    /// without its entry, and be taken for something that nobody has seen. Returns those that were removed.
    fn remove_announced(&mut self, items: Vec<Preserved>) -> Result<Vec<Preserved>> {
        if items.is_empty() {
            return Ok(items);
        }
        let (mut gone, mut stay) = (Vec::new(), Vec::new());
        for item in items {
            match self.fs.remove_file(&self.preserved_dir(item.reason), &item.file_name()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    self.report_once(EventKind::CannotInstall, format!("cannot purge {}: {error}", item.number));
                    stay.push(item);
                }
                Ok(()) | Err(_) => gone.push(item),
            }
        }
        for of_class in [Reason::Deleted, Reason::PreExisting] {
            let here = |item: &Preserved| (item.reason == Reason::PreExisting) == (of_class == Reason::PreExisting);
            if gone.iter().any(here) {
                // What was announced is looked for at the next start.
                self.fs
                    .sync_dir(&self.preserved_dir(of_class))
                    .map_err(|source| Stop::Private { path: "what is preserved".into(), source })?;
            }
        }
        self.records.begin()?;
        for item in &gone {
            tables::drop_preserved(self.records.kv_mut(), item.number)?;
        }
        for item in &stay {
            tables::put_preserved(self.records.kv_mut(), item)?;
        }
        self.records.commit()?;
        Ok(gone)
    }

    /// Bytes preserved, by class: *seen*, *unseen*.
    fn sum_preserved(&self) -> Result<[u64; 2]> {
        let mut sums = [0; 2];
        let mut after = 0;
        loop {
            let page = tables::preserved(self.records.kv(), after, 1024)?;
            let Some(last) = page.last() else { return Ok(sums) };
            after = last.number;
            for item in &page {
                sums[usize::from(item.reason.unseen())] += item.size;
            }
        }
    }

    /// When the next of the items that were preserved lately is looked at again.
    pub(crate) fn lately_due(&self) -> Option<Hlc> {
        self.lately.front().map(|first| first.due)
    }

    /// In the order in which they are due: some wait longer than others, and the clock may have been set back.
    fn remember_lately(&mut self, lately: Lately) {
        let at = self.lately.partition_point(|other| other.due <= lately.due);
        self.lately.insert(at, lately);
    }

    /// A file of ours that was in place for a moment only; it goes when it was not written into.
    pub(crate) fn look_at_exposed(&mut self, number: u64, stamp: FileStamp) {
        if self.lately.len() < LATELY_MAX {
            let due = Hlc(self.now.0 + LOOK_AGAIN);
            self.remember_lately(Lately { due, number, wait: LOOK_AGAIN, stamp: Some(stamp), drop: true });
        }
        self.preserved_bytes = None;
    }

    /// What was preserved last before a stop may have been written into since.
    pub(crate) fn look_at_last_preserved(&mut self) -> Result<()> {
        let mut number = tables::next_preserved(self.records.kv())?;
        let mut newest = None;
        if without_net() {
            return Ok(());
        }
        while number > 1 && self.lately.len() < LATELY_MAX {
            number -= 1;
            let Some(item) = tables::preserved_one(self.records.kv(), number)? else { continue };
            if item.when.0 + LOOK_AGAIN < newest.get_or_insert(item.when).0 {
                break;
            }
            self.remember_lately(Lately { due: self.now, number, wait: LOOK_AGAIN, stamp: None, drop: false });
        }
        Ok(())
    }

    /// Looks again at what was preserved lately.
    pub(crate) fn look_at_lately(&mut self) -> Result<()> {
        if self.lately_due().is_none_or(|due| due > self.now) {
            return Ok(());
        }
        self.records.begin()?;
        let mut leaves = Vec::new();
        for _ in 0..self.config.limits.batch_entries {
            let Some(mut lately) = self.lately.pop_front_if(|first| first.due <= self.now) else { break };
            let Some(item) = tables::preserved_one(self.records.kv(), lately.number)? else { continue };
            let again = self.look_at_one(&item, lately.stamp)?;
            let same = again == Again::Settled
                && lately.drop
                && tables::preserved_one(self.records.kv(), item.number)?.as_ref() == Some(&item);
            if same {
                leaves.push(item);
                self.preserved_bytes = None;
            }
            if again == Again::Later {
                lately.wait = (lately.wait * 2).min(LOOK_AGAIN_MAX);
                lately.due = Hlc(self.now.0 + lately.wait);
                self.remember_lately(lately);
            }
        }
        self.announce_removals(&leaves)?;
        self.records.commit()?;
        self.remove_announced(leaves)?;
        Ok(())
    }

    /// Has anybody written into an item of the class *seen* since it was preserved? Then it is *unseen* from now on.
    fn look_at_one(&mut self, item: &Preserved, stamp: Option<FileStamp>) -> Result<Again> {
        let (Some(hash), false) = (item.hash, item.reason.unseen() || item.pending || item.directory) else {
            return Ok(Again::Settled);
        };
        let dir = self.preserved_dir(item.reason);
        let file = match self.fs.open_file(&dir, &item.file_name()) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Again::Settled),
            Err(_) => return Ok(Again::Later),
        };
        // Whoever has it open to write may write yet.
        if matches!(self.fs.lease(&file), Ok(Lease::InUse)) {
            return Ok(Again::Later);
        }
        let Ok(stat) = self.fs.stat_file(&file) else { return Ok(Again::Later) };
        if stamp.is_some_and(|stamp| (stamp.size, stamp.mtime) == (stat.stamp.size, stat.stamp.mtime)) {
            return Ok(Again::Settled);
        }
        let Ok(now) = read_hash(&self.fs, &file, stat.stamp.size) else { return Ok(Again::Later) };
        if stat.stamp.size == item.size && now == Some(hash) {
            return Ok(Again::Settled);
        }
        let changed = Preserved { reason: Reason::LostEdit, size: stat.stamp.size, hash: now, ..item.clone() };
        tables::drop_preserved(self.records.kv_mut(), item.number)?;
        tables::put_preserved(self.records.kv_mut(), &changed)?;
        self.preserved_bytes = None;
        self.counters.unseen += 1;
        let path = String::from_utf8_lossy(&item.path).into_owned();
        self.report(EventKind::Conflict, format!("{path} ({}), kept as {}", Reason::LostEdit.word(), item.number));
        Ok(Again::Settled)
    }
}
