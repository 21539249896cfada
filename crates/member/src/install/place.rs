//! The second half of a batch: names are put in place, what came out is looked at, directories become durable, and only
//! then the database says what is held (design, section 8).

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use anabranch_engine::kv::{Kv, Table};
use anabranch_model::{Content, Hlc, Uid};
use anabranch_volume::fs::{FileStamp, Fs, Kind, Lease, Stat};
use anabranch_volume::hash::read_hash;

use super::durable::{DIRECTORIES_EACH, sync_dir};
use super::{Batch, Install, Outcome, Ready, Removal};
use crate::beside;
use crate::events::EventKind;
use crate::nodes::{self, Node, NodeId, OnDisk};
use crate::observe::written_since;
use crate::replica::{Replica, Result, Waiting};
use crate::steps::{Step, broken};
use crate::tables::{self, Preserved, Reason};

/// How long a lease is kept after an exchange: an `open` past its path lookup shows up in that time (design, section 8).
const GUARD: Duration = Duration::from_millis(1);

/// Whoever closed a file longer ago than this has been heard of, microseconds.
const HEARD: u64 = 1_000_000;

/// Larger files take longer to hash than a tick of the clock: a write after that has another stamp. Bytes.
const TICK_BYTES: u64 = 64 << 20;

impl<F: Fs + Sync, K: Kv> Replica<F, K>
where
    F::Dir: Send + Sync,
    F::File: Send,
{
    /// The second half of a batch: names, looks at what came out, directories, database.
    pub(super) fn put_in_place(&mut self, mut batch: Batch<F>) -> Result<()> {
        self.records.begin()?;
        let mut guarded = false;
        for at in 0..batch.installs.len() {
            let Some(install) = batch.installs.get_mut(at) else { continue };
            guarded |= self.exchange_in(install)?;
        }
        for at in 0..batch.removals.len() {
            let Some(removal) = batch.removals.get_mut(at) else { continue };
            guarded |= self.take_out(removal)?;
        }
        if guarded && !broken(Step::GuardPause) {
            self.fs.pause(GUARD);
        }
        for install in &mut batch.installs {
            self.confirm_install(install)?;
        }
        for removal in &mut batch.removals {
            self.confirm_removal(removal)?;
        }
        let synced = self.sync_names(&batch);
        // What is put in place is what was planned: nothing was recorded and no pass was taken in since.
        debug_assert_eq!(self.records.change_number(), batch.planned_at);
        let (mut held, mut unused) = (Vec::new(), Vec::new());
        for install in &batch.installs {
            self.finish_install(install, &mut held, &mut unused)?;
        }
        for removal in &batch.removals {
            self.finish_removal(removal)?;
        }
        tables::drop_intents(self.records.kv_mut(), batch.installs.len())?;
        // Nothing of it counts before the names are durable.
        if let Err(source) = synced.wait().unwrap_or_else(|| Err(io::ErrorKind::Other.into())) {
            self.forget_staged()?;
            let path = "the volume (cannot make names durable)".into();
            return Err(crate::replica::Stop::Private { path, source });
        }
        self.records.commit()?;
        // Only now: while an intent stands, a private file that is not there was put in place.
        unused.into_iter().for_each(|uid| self.drop_private(uid));
        self.tell_held(&held);
        if self.window_full {
            self.window_full = false;
            self.work_at = Some(self.now);
        }
        Ok(())
    }

    /// Takes the lease and exchanges; `true` if a lease is held now.
    fn exchange_in(&mut self, install: &mut Install<F>) -> Result<bool> {
        let staging = self.private.staging.clone();
        let Some(old) = &install.replaces else {
            let placed = self.fs.rename_new(&staging, &install.private, &install.dir, &install.name);
            match placed {
                Ok(()) => install.exchanged = true,
                Err(error) => {
                    install.outcome = Outcome::Wait(self.refused_name(install.parent, &install.name, &error)?);
                }
            }
            return Ok(false);
        };
        let mut leased = false;
        if old.kind == Kind::File {
            match self.guard(&install.dir, &install.name, old)? {
                Ok((file, stamp, lease)) => {
                    leased = lease;
                    install.guard = Some((file, stamp));
                }
                Err(why) => {
                    install.outcome = Outcome::Wait(why);
                    return Ok(false);
                }
            }
        }
        if let Err(error) = self.fs.exchange(&staging, &install.private, &install.dir, &install.name) {
            install.outcome = Outcome::Wait(self.refused_name(install.parent, &install.name, &error)?);
            install.guard = None;
            return Ok(false);
        }
        install.exchanged = true;
        Ok(leased)
    }

    fn refused_name(&mut self, parent: NodeId, name: &[u8], error: &io::Error) -> Result<Waiting> {
        if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::AlreadyExists) {
            self.local_change(parent, name);
            return Ok(Waiting::LocalChange);
        }
        self.failed(parent, name, error)
    }

    /// Opens the file that is to leave, takes a read lease, and compares it with the database.
    #[expect(clippy::type_complexity, reason = "file, its stamp, and whether a lease is held")]
    pub(super) fn guard(
        &mut self,
        dir: &F::Dir,
        name: &[u8],
        node: &Node,
    ) -> Result<std::result::Result<(F::File, FileStamp, bool), Waiting>> {
        let file = match self.fs.open_file(dir, name) {
            Ok(file) => file,
            Err(error) => return Ok(Err(self.refused_name(node.parent, name, &error)?)),
        };
        let lease = if broken(Step::Lease) { Ok(Lease::Unavailable) } else { self.fs.lease(&file) };
        let leased = match lease {
            Ok(Lease::Granted) => true,
            Ok(Lease::Unavailable) => false,
            Ok(Lease::InUse) => {
                self.counters.in_use += 1;
                let path = String::from_utf8_lossy(&self.node_path(node.parent, name)?).into_owned();
                self.report_once(EventKind::InUse, path);
                return Ok(Err(Waiting::InUse));
            }
            Err(error) => return Ok(Err(self.failed(node.parent, name, &error)?)),
        };
        let compared = self.fs.stat_file(&file).and_then(|stat| {
            let same = stat.object == node.object && stat.stamp == node.stamp;
            Ok((broken(Step::Compare) || same && self.is_what_was_hashed(&file, &stat, node)?).then_some(stat.stamp))
        });
        match compared {
            Ok(Some(stamp)) => Ok(Ok((file, stamp, leased))),
            Ok(None) => {
                // Whatever its stamp says.
                self.closed.insert((node.parent, name.to_vec()));
                self.local_change(node.parent, name);
                Ok(Err(Waiting::LocalChange))
            }
            Err(error) => Ok(Err(self.failed(node.parent, name, &error)?)),
        }
    }

    /// Somebody may have written as many bytes in the tick of the clock in which it was hashed, and nobody told us yet: the
    /// stamp is the same then. So what changed just now is hashed again.
    fn is_what_was_hashed(&self, file: &F::File, stat: &Stat, node: &Node) -> io::Result<bool> {
        let Some(OnDisk { value: Content::File { hash, .. }, .. }) = &node.content else { return Ok(true) };
        // After a power cut any bytes may lie under the old stamp in a directory that could not be read so far.
        let doubted = self.suspect && written_since(stat, self.checkpoint);
        let heard_of = !written_since(stat, Hlc(self.now.0.saturating_sub(HEARD)));
        if *hash == [0; 32] || !doubted && (heard_of || stat.stamp.size > TICK_BYTES) {
            return Ok(true);
        }
        Ok(read_hash(&self.fs, file, stat.stamp.size)?.is_some_and(|found| found == *hash))
    }

    fn take_out(&mut self, removal: &mut Removal<F>) -> Result<bool> {
        let mut leased = false;
        if removal.node.kind == Kind::File {
            match self.guard(&removal.dir, &removal.node.name, &removal.node)? {
                Ok((file, stamp, lease)) => {
                    leased = lease;
                    removal.guard = Some((file, stamp));
                }
                Err(why) => {
                    removal.outcome = Outcome::Wait(why);
                    return Ok(false);
                }
            }
        } else if !broken(Step::Compare) {
            // A daemon that ends right after this would take what came out for what it has preserved.
            let there = self.fs.stat(&removal.dir, &removal.node.name);
            if !there.is_ok_and(|stat| stat.is_some_and(|s| s.object == removal.node.object)) {
                self.local_change(removal.node.parent, &removal.node.name);
                removal.outcome = Outcome::Wait(Waiting::LocalChange);
                return Ok(false);
            }
        }
        let name = format!("{:016x}", removal.number).into_bytes();
        let to = self.preserved_dir(removal.reason);
        if let Err(error) = self.fs.rename_new(&removal.dir, &removal.node.name, &to, &name) {
            removal.outcome = Outcome::Wait(self.refused_name(removal.node.parent, &removal.node.name, &error)?);
            removal.guard = None;
            return Ok(false);
        }
        Ok(leased)
    }

    /// Is what came out what the database said, and has nobody opened it to write? (Its ctime may have moved.)
    fn untouched(&self, guard: Option<&(F::File, FileStamp)>) -> bool {
        let Some((file, stamp)) = guard else { return true };
        let same = self.fs.stat_file(file).is_ok_and(|s| (s.stamp.size, s.stamp.mtime) == (stamp.size, stamp.mtime));
        broken(Step::LookAtWhatCameOut) || (same && (self.is_unopened(file) || broken(Step::Lease)))
    }

    /// Has nobody opened it to write since we have a lease?
    fn is_unopened(&self, file: &F::File) -> bool {
        !self.fs.abilities().leases || self.fs.lease_unbroken(file).unwrap_or(false)
    }

    /// Is what is in staging under this name the file that the database has, with the stamp that it had there?
    fn is_as_it_was(&self, private: &[u8], old: &Node, stamp: Option<FileStamp>) -> bool {
        let stamp = stamp.unwrap_or(old.stamp);
        let now = self.fs.stat(&self.private.staging, private).ok().flatten();
        let same = |s: &Stat| (s.stamp.size, s.stamp.mtime) == (stamp.size, stamp.mtime);
        now.is_some_and(|s| s.object == old.object && same(&s))
    }

    fn confirm_install(&mut self, install: &mut Install<F>) -> Result<()> {
        if !install.exchanged || install.outcome != Outcome::Under {
            return Ok(());
        }
        let staging = self.private.staging.clone();
        if let Some(old) = &install.replaces {
            // By object too: another file may have been put at the name between our look and the exchange.
            let out = self.fs.stat(&staging, &install.private);
            let expected = out.as_ref().is_ok_and(|s| s.as_ref().is_some_and(|s| s.object == old.object));
            if !(self.untouched(install.guard.as_ref()) && (expected || broken(Step::LookAtWhatCameOut))) {
                self.counters.taken_back += 1;
                let (unopened, stamp) = match &install.guard {
                    Some((file, stamp)) => (self.is_unopened(file), Some(*stamp)),
                    None => (true, None),
                };
                install.guard = None;
                self.local_change(install.parent, &install.name);
                let back = match self.fs.exchange(&staging, &install.private, &install.dir, &install.name) {
                    // The name is gone: somebody moved or removed what we put there. What came out goes back as it was.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        self.fs.rename_new(&staging, &install.private, &install.dir, &install.name)
                    }
                    other => other,
                };
                match back {
                    Ok(()) if !self.give_back_what_is_not_ours(install) => {
                        install.outcome = Outcome::Wait(Waiting::InUse);
                        return self.look_at_what_came_back(install);
                    }
                    // It stays preserved, as something that nobody has seen.
                    Ok(()) => install.reason = Reason::LostEdit,
                    Err(error) => {
                        // That it could not be looked at is no sign that somebody wrote into it.
                        if !(unopened && self.is_as_it_was(&install.private, old, stamp)) {
                            install.reason = Reason::LostEdit;
                        }
                        self.failed(install.parent, &install.name, &error)?;
                    }
                }
            }
            let to = self.preserved_dir(install.reason);
            let name = format!("{:016x}", install.preserved).into_bytes();
            self.fs
                .rename_new(&staging, &install.private, &to, &name)
                .map_err(|source| crate::replica::Stop::Private { path: "what is preserved".into(), source })?;
        }
        install.guard = None;
        install.outcome = Outcome::Done;
        Ok(())
    }

    /// Just before we took our file back somebody put another thing at its name: that is what came out. It is put back, and
    /// what had the name first is in staging again.
    fn give_back_what_is_not_ours(&self, install: &Install<F>) -> bool {
        let staging = &self.private.staging;
        let came = self.fs.stat(staging, &install.private).ok().flatten();
        came.is_some_and(|stat| stat.object != install.prepared.object)
            && !broken(Step::LookAtWhatCameOut)
            && self.fs.exchange(staging, &install.private, &install.dir, &install.name).is_ok()
    }

    /// For a moment our file was in place, and somebody may have written into it: then it is his, and is preserved.
    fn look_at_what_came_back(&mut self, install: &Install<F>) -> Result<()> {
        let staging = self.private.staging.clone();
        let Ok(Some(back)) = self.fs.stat(&staging, &install.private) else { return Ok(()) };
        let before = &install.prepared;
        let same = back.object == before.object
            && (back.stamp.size, back.stamp.mtime) == (before.stamp.size, before.stamp.mtime);
        let in_use = back.kind == Kind::File
            && self.fs.open_file(&staging, &install.private).is_ok_and(|file| {
                // Whoever has it open may write yet.
                matches!(self.fs.lease(&file), Ok(Lease::InUse))
            });
        if same && !in_use {
            return Ok(());
        }
        let number = tables::next_preserved(self.records.kv())?;
        self.preserve_staged(&install.private, Reason::LostEdit, Some(number), &back)?;
        if let Some(mut item) = tables::preserved_one(self.records.kv(), number)? {
            item.path = self.node_path(install.parent, &install.name)?;
            item.uid = Some(install.uid);
            tables::put_preserved(self.records.kv_mut(), &item)?;
        }
        self.ready.remove(install.uid);
        self.counters.unseen += 1;
        self.purge_due = true;
        Ok(())
    }

    /// A private file that was in place for a moment and came back is put aside with what was preserved, until whoever may
    /// have found it there had time to open it. `false`: it is not in staging any more.
    fn exposed(&mut self, install: &Install<F>) -> Result<bool> {
        let Content::File { hash, .. } = &install.facet.value else { return Ok(false) };
        let number = tables::next_preserved(self.records.kv())?;
        let stat = &install.prepared;
        let item = Preserved {
            number,
            reason: Reason::Overwritten,
            when: self.now,
            uid: Some(install.uid),
            version: Some(install.facet.bytes.version),
            replaced_by: None,
            path: self.node_path(install.parent, &install.name)?,
            size: stat.stamp.size,
            hash: Some(*hash),
            directory: false,
            pending: false,
        };
        let to = self.private.conflict.clone();
        match self.fs.rename_new(&self.private.staging, &install.private, &to, &item.file_name()) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(source) => return Err(crate::replica::Stop::Private { path: "ConflictAndDeleted".into(), source }),
        }
        self.fs
            .sync_dir(&to)
            .map_err(|source| crate::replica::Stop::Private { path: "ConflictAndDeleted".into(), source })?;
        tables::put_preserved(self.records.kv_mut(), &item)?;
        self.look_at_exposed(number, stat.stamp);
        Ok(true)
    }

    fn confirm_removal(&mut self, removal: &mut Removal<F>) -> Result<()> {
        if removal.outcome != Outcome::Under {
            return Ok(());
        }
        let name = format!("{:016x}", removal.number).into_bytes();
        let from = self.preserved_dir(removal.reason);
        let out = self.fs.stat(&from, &name);
        let expected = out.as_ref().is_ok_and(|s| s.as_ref().is_some_and(|s| s.object == removal.node.object));
        if self.untouched(removal.guard.as_ref()) && (expected || broken(Step::LookAtWhatCameOut)) {
            removal.outcome = Outcome::Done;
            if removal.reason == Reason::Deleted && self.lost_its_winner(&removal.node)? {
                removal.reason = Reason::LostName;
            }
        } else {
            self.counters.taken_back += 1;
            match self.fs.rename_new(&from, &name, &removal.dir, &removal.node.name) {
                Ok(()) => removal.outcome = Outcome::Wait(Waiting::InUse),
                // Something new has the name already, or it cannot be put back: what came out stays preserved, and
                // nobody has seen it.
                Err(error) => {
                    if error.kind() != io::ErrorKind::AlreadyExists {
                        self.failed(removal.node.parent, &removal.node.name, &error)?;
                    }
                    if removal.reason != Reason::PreExisting {
                        removal.reason = Reason::LostEdit;
                    }
                    removal.outcome = Outcome::Done;
                }
            }
            self.local_change(removal.node.parent, &removal.node.name);
        }
        removal.guard = None;
        Ok(())
    }

    /// Makes the names of a batch durable; of a large one beside this thread.
    fn sync_names(&self, batch: &Batch<F>) -> beside::Outcome<io::Result<()>> {
        if broken(Step::NamesDurable) {
            return beside::Outcome::Here(Ok(()));
        }
        let mut dirs: BTreeSet<NodeId> = BTreeSet::new();
        dirs.extend(batch.installs.iter().filter(|i| i.exchanged).map(|i| i.parent));
        dirs.extend(batch.removals.iter().map(|r| r.node.parent));
        let fs = self.fs.clone();
        if dirs.len() > DIRECTORIES_EACH {
            return self.beside.run(move || fs.sync_all());
        }
        let many = dirs.len() >= self.config.limits.sync_all_from;
        let mut open = vec![self.private.staging.clone(), self.private.conflict.clone()];
        let replaced = batch.installs.iter().filter(|i| i.replaces.is_some()).map(|i| i.reason);
        let mut reasons = replaced.chain(batch.removals.iter().map(|r| r.reason));
        if reasons.any(|reason| reason == Reason::PreExisting) {
            open.push(self.private.pre_existing.clone());
        }
        open.extend(batch.installs.iter().filter(|i| dirs.remove(&i.parent)).map(|i| i.dir.clone()));
        open.extend(batch.removals.iter().filter(|r| dirs.remove(&r.node.parent)).map(|r| r.dir.clone()));
        let sync = move || open.iter().try_for_each(|dir| sync_dir(&fs, dir));
        if many { self.beside.run(sync) } else { beside::Outcome::Here(sync()) }
    }

    fn finish_install(&mut self, install: &Install<F>, held: &mut Vec<Uid>, unused: &mut Vec<Uid>) -> Result<()> {
        let uid = install.uid;
        if let Outcome::Wait(why) = install.outcome {
            if install.replaces.is_some() {
                tables::drop_preserved(self.records.kv_mut(), install.preserved)?;
            }
            // The private file is kept as it is: its content is verified, and it goes on when the file is free. Only one that
            // was in place for a moment may have been found there by somebody who has not opened it yet.
            if install.exchanged && self.exposed(install)? {
                self.ready.remove(uid);
            } else if let (Content::File { size, hash }, Some(Ready::Staged { .. })) =
                (&install.facet.value, self.ready.get(uid))
            {
                debug_assert!(*size > u64::from(self.config.limits.piece_bytes) || hash.len() == 32);
            } else {
                unused.push(uid);
            }
            self.wait(nodes::uid_key(uid).to_vec(), why);
            // What was to leave with it has a row of its own, which nobody else would look at.
            let leaves = install.replaces.as_ref().and_then(|n| n.uid).filter(|other| *other != uid);
            if let Some(key) = leaves.map(nodes::uid_key)
                && self.records.kv().get(Table::Todo, &key)?.is_some()
            {
                self.wait(key.to_vec(), why);
            }
            return Ok(());
        }
        if let Some(old) = &install.replaces {
            self.kept(install.preserved, install.reason, old, Some(install.facet.written.version))?;
            if old.uid != Some(uid) {
                nodes::remove(self.records.kv_mut(), old)?;
                if let Some(other) = old.uid {
                    self.records.kv_mut().delete(Table::Todo, &nodes::uid_key(other))?;
                    self.drop_content(other)?;
                }
            }
        }
        let before = nodes::of(self.records.kv(), uid)?;
        let id = match &before {
            Some(node) => node.id,
            None => self.new_node_id(),
        };
        // Its stamp now, unless somebody wrote already: then the stamp of what we put there, so that it shows.
        let mut stamp = install.prepared.stamp;
        if let Ok(Some(now)) = self.fs.stat(&install.dir, &install.name) {
            let same =
                now.object == install.prepared.object && (now.stamp.size, now.stamp.mtime) == (stamp.size, stamp.mtime);
            let kept = self.fs.has_attributes(&install.dir, &install.name, &now, &install.attributes).unwrap_or(false);
            if same && kept {
                stamp = now.stamp;
            } else {
                self.local_change(install.parent, &install.name);
            }
        }
        let node = Node {
            id,
            parent: install.parent,
            name: install.name.clone(),
            uid: Some(uid),
            kind: install.prepared.kind,
            object: install.prepared.object.clone(),
            stamp,
            content: Some(OnDisk {
                value: install.facet.value.clone(),
                bytes: Some(install.facet.bytes.version),
                version: install.facet.written.version,
                history: install.facet.written.history.clone(),
                provisional: false,
            }),
            attributes_version: install.attributes_version,
            attributes: install.attributes.clone(),
        };
        tracing::debug!(member = self.config.member, name = %node.name.escape_ascii(), ?uid, "installed");
        nodes::put(self.records.kv_mut(), before.as_ref(), &node)?;
        self.records.kv_mut().delete(Table::Todo, &nodes::uid_key(uid))?;
        self.fetching.forget(uid);
        self.ready.remove(uid);
        self.drop_note(uid)?;
        self.counters.installs += 1;
        held.push(uid);
        Ok(())
    }

    fn finish_removal(&mut self, removal: &Removal<F>) -> Result<()> {
        let Some(uid) = removal.node.uid else { return Ok(()) };
        if let Outcome::Wait(why) = removal.outcome {
            tables::drop_preserved(self.records.kv_mut(), removal.number)?;
            self.wait(nodes::uid_key(uid).to_vec(), why);
            return Ok(());
        }
        let by = self.records.record(uid)?.map(|r| r.placement.written.version);
        tracing::debug!(member = self.config.member, name = %removal.node.name.escape_ascii(), ?uid, "taken out");
        self.kept(removal.number, removal.reason, &removal.node, by)?;
        nodes::remove(self.records.kv_mut(), &removal.node)?;
        self.records.kv_mut().delete(Table::Todo, &nodes::uid_key(uid))?;
        Ok(())
    }
}
