//! The tree that the records derive (design, section 4), kept in step with every record that changes.
//!
//! Owns the tables Slots, Children, Derived and Unresolved. Says the same as [`crate::plain`], which derives it from nothing each
//! time. Must never write a record, and must never remember anything that the records do not say.
//!
//! What is one name is decided by the key of a name alone ([`anabranch_model::fold`]): slots lie under keys, and beside the
//! flags of a slot stands the name itself where that is another. A thing is shown under its own name always.
//!
//! Nothing is kept of a thing that is where its record says. What differs has a row in Derived:
//! - *kept*: deleted by its record, and live because a live thing is in it. Whether a directory has a live child is one look
//!   into the slots. A directory on a cycle of parents has one always, so there the cycle is walked once around;
//! - *cut*: the earliest placement of a cycle. While the count of cuts is 0 nothing looks for one that goes away; a new one
//!   can only come about at a directory with a live child, and is found by walking up from it;
//! - *merged*, *group*: live directories of one name in one shown place. Children keep the slots of the parent in their
//!   record, and the shown directory's children are those of its whole group. So moving a directory moves one slot;
//! - *loser*: a file whose name something else has.
//!
//! A change of a record changes slots at once and marks them; [`Records::settle`] then looks at each marked slot, with the
//! whole group of its parent, and writes what it derives. Where a directory is shown as another one than before, the names
//! in it are looked at again, in the place that it left and in the one that it joined; that is the only work that grows
//! with the number of children, and only with those whose shown parent changed. Marks wait until the end of a step, so
//! that a group that moves directory by directory is looked at once, after it has come together again.

use std::collections::BTreeSet;

use anabranch_model::codec::{Reader, Writer};
use anabranch_model::{Name, Record, Stamp, Uid};

use crate::keys::{self, UID_BYTES, UidKey};
use crate::kv::{Kv, KvError, Pair, Table, after_prefix};
use crate::records::{Policy, Records};
use crate::rules::live_by_record;

/// A slot of a directory.
const DIRECTORY: u8 = 1;
/// A slot of something that is not shown under this name.
const HIDDEN: u8 = 2;
/// A further slot, under the derived name of a file kept beside.
const DERIVED_NAME: u8 = 4;

/// Marks are looked at when there are this many, so that memory does not grow with a pass.
const MARKS_MAX: usize = 16_384;
/// Rows read at a time.
const CHUNK: usize = 256;

/// What the view needs to know of a record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    pub(crate) parent: Uid,
    pub(crate) name: Name,
    pub(crate) directory: bool,
    pub(crate) live: bool,
    pub(crate) stamp: Stamp,
    pub(crate) author: Box<str>,
}

impl Place {
    pub(crate) fn of(record: &Record) -> Self {
        let p = &record.placement.value;
        Self {
            parent: p.parent,
            name: p.name.clone(),
            directory: p.directory,
            live: live_by_record(record),
            stamp: record.placement.written.stamp(),
            author: p.author.clone(),
        }
    }
}

/// What is derived for one UID beyond its record.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Derived {
    /// Live only because something live is in it.
    pub(crate) kept: bool,
    /// Hangs from the root, because it is the earliest placement of a cycle.
    pub(crate) cut: bool,
    /// The directory that it is shown as.
    pub(crate) merged: Option<Uid>,
    /// All directories that are shown as this one, itself first; nothing where it is alone.
    pub(crate) group: Vec<Uid>,
    /// What has its name.
    pub(crate) loser: Option<Uid>,
}

impl Derived {
    pub(crate) fn unresolved(&self) -> bool {
        self.cut || self.loser.is_some()
    }
}

/// Keys of names in a directory that is shown as another one than before: looked at after `cursor`, in both places.
#[derive(Debug)]
struct Recheck {
    directory: UidKey,
    before: Uid,
    after: Uid,
    cursor: Vec<u8>,
}

/// What still has to be looked at. Empty between steps.
#[derive(Debug, Default)]
pub(crate) struct View {
    /// Parent and key of the name of slots.
    marks: BTreeSet<Vec<u8>>,
    /// The last one first, so that there are never more of them than directories on one path and their siblings in one slot.
    rechecks: Vec<Recheck>,
    /// A directory that is live by its record: many things are made in one directory, one after the other.
    live_by_record: Option<Uid>,
}

/// One live thing in a slot.
struct Entry {
    uid: Uid,
    key: Vec<u8>,
    flags: u8,
    /// The name, where it is not its own key.
    name: Vec<u8>,
}

impl Entry {
    /// The slot's value, with other flags.
    fn value(&self, flags: u8) -> Vec<u8> {
        [&[flags], &self.name[..]].concat()
    }
}

impl<K: Kv> Records<K> {
    /// What is derived for a UID.
    pub(crate) fn derived(&self, uid: Uid) -> Result<Derived, KvError> {
        if self.counters.derived == 0 {
            return Ok(Derived::default());
        }
        let Some(key) = self.numbers.find_key(uid) else { return Ok(Derived::default()) };
        let Some(value) = self.kv.get(Table::Derived, &key)? else { return Ok(Derived::default()) };
        let mut input = Reader(&value);
        let mut read = || {
            let [flags] = input.array::<1>().ok()?;
            let mut uid = || self.numbers.uid(input.raw(UID_BYTES).ok()?).ok();
            let merged = if flags & 4 == 0 { None } else { Some(uid()?) };
            let loser = if flags & 16 == 0 { None } else { Some(uid()?) };
            let mut group = Vec::new();
            while flags & 8 != 0 && !input.0.is_empty() {
                group.push(self.numbers.uid(input.raw(UID_BYTES).ok()?).ok()?);
            }
            input.end().ok()?;
            Some(Derived { kept: flags & 1 != 0, cut: flags & 2 != 0, merged, group, loser })
        };
        read().ok_or_else(|| KvError::damaged("read what is derived", "a row is cut"))
    }

    /// Writes what is derived, in the place of `old`.
    fn derive(&mut self, uid: Uid, old: &Derived, new: &Derived) -> Result<(), KvError> {
        if old == new {
            return Ok(());
        }
        let key = self.numbers.key(&mut self.kv, uid)?;
        if *new == Derived::default() {
            self.kv.delete(Table::Derived, &key)?;
            self.counters.derived -= 1;
        } else {
            self.counters.derived += u64::from(*old == Derived::default());
            let mut out = Writer::default();
            out.0.push(
                u8::from(new.kept)
                    | u8::from(new.cut) << 1
                    | u8::from(new.merged.is_some()) << 2
                    | u8::from(!new.group.is_empty()) << 3
                    | u8::from(new.loser.is_some()) << 4,
            );
            for &other in new.merged.iter().chain(&new.loser).chain(&new.group) {
                out.raw(&self.numbers.key(&mut self.kv, other)?);
            }
            self.kv.put(Table::Derived, &key, &out.0)?;
        }
        match (old.cut, new.cut) {
            (false, true) => self.counters.cuts += 1,
            (true, false) => self.counters.cuts -= 1,
            _ => {}
        }
        match (old.unresolved(), new.unresolved()) {
            (false, true) => {
                self.counters.unresolved += 1;
                self.kv.put(Table::Unresolved, &key, &[])?;
            }
            (true, false) => {
                self.counters.unresolved -= 1;
                self.kv.delete(Table::Unresolved, &key)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// The directory as which a live directory is shown. UIDs descend along the way, so it ends.
    pub(crate) fn representative(&self, mut uid: Uid) -> Result<Uid, KvError> {
        while let Some(shown) = self.derived(uid)?.merged {
            uid = shown;
        }
        Ok(uid)
    }

    pub(crate) fn place_of(&self, uid: Uid) -> Result<Option<Place>, KvError> {
        if uid == Uid::ROOT {
            return Ok(None);
        }
        Ok(self.record(uid)?.as_ref().map(Place::of))
    }

    /// Where the view has a live thing, before merging and names.
    pub(crate) fn placed(uid: Uid, place: &Place, derived: &Derived) -> (Uid, Name) {
        if derived.cut { (Uid::ROOT, place.name.beside(uid)) } else { (place.parent, place.name.clone()) }
    }

    fn mark(&mut self, parent: Uid, name: &Name) -> Result<(), KvError> {
        let name = self.key(name);
        let key = self.numbers.key(&mut self.kv, parent)?;
        self.view.marks.insert(keys::slot_name(key, &name));
        // The directory may be shown as itself again before this is looked at: then the one that it leaves has lost a name.
        let shown = self.representative(parent)?;
        if shown != parent {
            let key = self.numbers.key(&mut self.kv, shown)?;
            self.view.marks.insert(keys::slot_name(key, &name));
        }
        Ok(())
    }

    /// Writes a slot: in a directory, under a name.
    fn put_slot(&mut self, parent: UidKey, name: &Name, uid: UidKey, flags: u8) -> Result<(), KvError> {
        let key = self.key(name);
        let own = if *key == *name.bytes() { &[][..] } else { name.bytes() };
        self.kv.put(Table::Slots, &keys::slot(parent, &key, uid), &[&[flags], own].concat())
    }

    fn delete_slot(&mut self, parent: UidKey, name: &Name, uid: UidKey) -> Result<(), KvError> {
        let key = keys::slot(parent, &self.key(name), uid);
        self.kv.delete(Table::Slots, &key)
    }

    fn enter(&mut self, uid: Uid, place: &Place, derived: &Derived) -> Result<(), KvError> {
        let (parent, name) = Self::placed(uid, place, derived);
        let (parent_key, key) = (self.numbers.key(&mut self.kv, parent)?, self.numbers.key(&mut self.kv, uid)?);
        let flags = if place.directory { DIRECTORY } else { 0 };
        self.put_slot(parent_key, &name, key, flags)?;
        if derived.cut {
            let recorded = self.numbers.key(&mut self.kv, place.parent)?;
            self.kv.put(Table::Children, &keys::pair(&recorded, key), &[])?;
        }
        self.mark(parent, &name)
    }

    /// Takes a thing out of its slot, and with it what was derived from being there.
    fn leave(&mut self, uid: Uid, place: &Place, derived: &mut Derived) -> Result<(), KvError> {
        let (parent, name) = Self::placed(uid, place, derived);
        let (parent_key, key) = (self.numbers.key(&mut self.kv, parent)?, self.numbers.key(&mut self.kv, uid)?);
        self.delete_slot(parent_key, &name, key)?;
        if derived.cut {
            let recorded = self.numbers.key(&mut self.kv, place.parent)?;
            self.kv.delete(Table::Children, &keys::pair(&recorded, key))?;
        }
        if derived.loser.take().is_some() && self.settings.policy == Policy::KeepBeside {
            let beside = name.kept_beside(&place.author, uid);
            self.delete_slot(parent_key, &beside, key)?;
        }
        self.mark(parent, &name)
    }

    /// Is there a live thing, besides this directory, whose record has this parent?
    fn live_child(&self, parent: Uid, besides: Option<Uid>) -> Result<bool, KvError> {
        let Some(key) = self.numbers.find_key(parent) else { return Ok(false) };
        let (to, besides) = (after_prefix(&key), besides.and_then(|uid| self.numbers.find_key(uid)));
        let other = |(key, _): &Pair| key.last_chunk::<UID_BYTES>() != besides.as_ref();
        // A directory has one slot, so of two slots one is another thing's.
        Ok(self.kv.range(Table::Slots, &key, to.as_deref(), 2)?.iter().any(other)
            || self.counters.cuts > 0 && self.kv.range(Table::Children, &key, to.as_deref(), 2)?.iter().any(other))
    }

    /// The directories of the cycle of recorded parents that this one is on, from it upward; `None` if it is on none.
    pub(crate) fn cycle(&self, uid: Uid) -> Result<Option<Vec<(Uid, Place)>>, KvError> {
        let mut path: Vec<(Uid, Place)> = Vec::new();
        let mut passed = BTreeSet::new();
        let mut at = uid;
        while let Some(place) = self.place_of(at)?.filter(|place| place.directory) {
            if !passed.insert(at) {
                return Ok(None);
            }
            let parent = place.parent;
            path.push((at, place));
            if parent == uid {
                return Ok(Some(path));
            }
            at = parent;
        }
        Ok(None)
    }

    /// Hangs a directory of a cycle from the root, or puts it back.
    fn set_cut(&mut self, uid: Uid, place: &Place, cut: bool) -> Result<(), KvError> {
        let old = self.derived(uid)?;
        if old.cut != cut {
            let mut new = old.clone();
            self.leave(uid, place, &mut new)?;
            new.cut = cut;
            self.enter(uid, place, &new)?;
            self.derive(uid, &old, &new)?;
            self.touch_uid(uid)?;
        }
        Ok(())
    }

    /// Cuts the cycle that a directory with a live child is on, if it is on one, at its earliest placement.
    fn cut_cycle(&mut self, uid: Uid) -> Result<(), KvError> {
        let Some(cycle) = self.cycle(uid)? else { return Ok(()) };
        let earliest = cycle.iter().min_by_key(|(_, place)| place.stamp).map(|(uid, _)| *uid);
        for (uid, place) in &cycle {
            self.set_cut(*uid, place, Some(*uid) == earliest)?;
        }
        Ok(())
    }

    /// Before a record changes: the cycle that it is on may end.
    pub(crate) fn view_before(&mut self, uid: Uid, old: Option<&Place>) -> Result<(), KvError> {
        if self.view.live_by_record == Some(uid) {
            self.view.live_by_record = None;
        }
        if self.counters.cuts > 0 && old.is_some_and(|place| place.directory) {
            for (uid, place) in self.cycle(uid)?.unwrap_or_default() {
                self.set_cut(uid, &place, false)?;
            }
        }
        Ok(())
    }

    /// After a record changed.
    pub(crate) fn view_after(&mut self, uid: Uid, old: Option<Place>, new: Option<Place>) -> Result<(), KvError> {
        let kinds = (old.as_ref().map(|p| p.directory), new.as_ref().map(|p| p.directory));
        if let (Some(was), Some(is)) = kinds
            && was != is
        {
            // Only a number used twice can make a file of a directory: it begins anew.
            self.view_after(uid, old, None)?;
            return self.view_after(uid, None, new);
        }
        let before = self.derived(uid)?;
        let old = old.filter(|place| place.live || before.kept);
        let live = match &new {
            Some(place) => place.live || place.directory && self.live_child(uid, None)?,
            None => false,
        };
        let Some(place) = new.filter(|_| live) else {
            return match old {
                Some(old) => self.die(uid, &old),
                None => Ok(()),
            };
        };
        let moved = old.as_ref().is_none_or(|old| {
            (old.parent, &old.name, old.directory, &old.author)
                != (place.parent, &place.name, place.directory, &place.author)
        });
        let mut after = before.clone();
        after.kept = !place.live;
        if moved {
            // The new slot first: a directory that only gets another name must not be empty in between.
            self.enter(uid, &place, &after)?;
            if let Some(old) = &old {
                self.leave_for(uid, old, &place, &mut after)?;
            }
            self.derive(uid, &before, &after)?;
        } else {
            self.derive(uid, &before, &after)?;
            self.mark(place.parent, &place.name)?;
        }
        let mut born = self.support(place.parent)?;
        if let Some(old) = old.filter(|old| old.parent != place.parent) {
            self.unsupport(old.parent)?;
        }
        if !place.live {
            self.unsupport(uid)?;
        }
        born.extend(Some(uid).filter(|_| place.directory));
        for directory in born {
            if self.live_child(directory, None)? {
                self.cut_cycle(directory)?;
            }
        }
        if self.view.marks.len() >= MARKS_MAX { self.settle() } else { Ok(()) }
    }

    /// [`Self::leave`] for a thing that has entered its new slot: which may be the same one, if only its author or the case
    /// of its name differs, or the further one that it had under its derived name.
    fn leave_for(&mut self, uid: Uid, old: &Place, new: &Place, derived: &mut Derived) -> Result<(), KvError> {
        let lost = derived.loser.is_some();
        self.leave(uid, old, derived)?;
        if lost || old.parent == new.parent && self.key(&old.name) == self.key(&new.name) {
            self.enter(uid, new, derived)?;
        }
        Ok(())
    }

    /// A live thing is in this directory now: it is live, and what it is in. Says which became so.
    fn support(&mut self, mut uid: Uid) -> Result<Vec<Uid>, KvError> {
        let mut born = Vec::new();
        if self.view.live_by_record == Some(uid) {
            return Ok(born);
        }
        while let Some(place) = self.place_of(uid)?.filter(|place| place.directory) {
            if place.live {
                self.view.live_by_record = Some(uid);
                break;
            }
            let old = self.derived(uid)?;
            if old.kept {
                break;
            }
            let new = Derived { kept: true, ..old.clone() };
            self.derive(uid, &old, &new)?;
            self.enter(uid, &place, &new)?;
            self.touch_uid(uid)?;
            // Who has collected this tombstone needs it again.
            self.renumber(uid)?;
            born.push(uid);
            uid = place.parent;
        }
        Ok(born)
    }

    /// A directory has lost something that kept it live: it dies if nothing is left that does.
    fn unsupport(&mut self, mut uid: Uid) -> Result<(), KvError> {
        while let Some(place) = self.place_of(uid)?.filter(|place| place.directory && !place.live) {
            if !self.derived(uid)?.kept {
                break;
            }
            if self.live_child(uid, None)? {
                // On a cycle each directory keeps the next one: that counts only if something else keeps one of them.
                let Some(cycle) = self.cycle(uid)? else { break };
                let mut below = cycle.last().map(|(uid, _)| *uid);
                for (uid, place) in &cycle {
                    if place.live || self.live_child(*uid, below)? {
                        return Ok(());
                    }
                    below = Some(*uid);
                }
                for (uid, place) in &cycle {
                    self.take_out(*uid, place)?;
                    self.died_late(*uid)?;
                }
                break;
            }
            self.take_out(uid, &place)?;
            self.died_late(uid)?;
            uid = place.parent;
        }
        Ok(())
    }

    fn die(&mut self, uid: Uid, place: &Place) -> Result<(), KvError> {
        self.take_out(uid, place)?;
        self.unsupport(place.parent)
    }

    /// Takes something out of the view that is not live any more. Nothing live is in it, unless its record was dropped or
    /// it is no directory any more.
    fn take_out(&mut self, uid: Uid, place: &Place) -> Result<(), KvError> {
        let old = self.derived(uid)?;
        self.leave(uid, place, &mut old.clone())?;
        if let Some(shown) = old.merged {
            self.ungroup(shown, uid)?;
            if self.live_child(uid, None)? {
                let directory = self.numbers.key(&mut self.kv, uid)?;
                let cursor = directory.to_vec();
                self.view.rechecks.push(Recheck { directory, before: shown, after: uid, cursor });
            }
        }
        let old = self.derived(uid)?;
        self.derive(uid, &old, &Derived::default())?;
        self.touch_uid(uid)?;
        Ok(())
    }

    /// Takes a directory out of another one's group.
    fn ungroup(&mut self, shown: Uid, uid: Uid) -> Result<(), KvError> {
        let old = self.derived(shown)?;
        let mut new = old.clone();
        new.group.retain(|&other| other != uid);
        if new.group.len() < 2 {
            new.group.clear();
        }
        self.derive(shown, &old, &new)
    }

    /// Looks at all that is marked, until nothing is.
    pub(crate) fn settle(&mut self) -> Result<(), KvError> {
        if self.deferred {
            return Ok(());
        }
        loop {
            if let Some(recheck) = self.view.rechecks.pop() {
                self.recheck(recheck)?;
            } else if let Some(mark) = self.view.marks.pop_first() {
                let (parent, name) = mark.split_at(UID_BYTES);
                let parent = self.numbers.uid(parent)?;
                self.look_at(parent, name.split_last().map_or(&[], |(_, name)| name))?;
            } else {
                return Ok(());
            }
        }
    }

    /// The next names of a directory that is shown as another one than before.
    fn recheck(&mut self, mut recheck: Recheck) -> Result<(), KvError> {
        let to = after_prefix(&recheck.directory);
        let rows = self.kv.range(Table::Slots, &recheck.cursor, to.as_deref(), CHUNK)?;
        let Some((last, _)) = rows.last() else { return Ok(()) };
        let mut names: Vec<&[u8]> = Vec::new();
        for (key, flags) in &rows {
            let Some((_, name, uid)) = keys::split_slot(key) else { continue };
            self.touch_uid(self.numbers.uid(&uid)?)?;
            if flags.first().is_some_and(|flags| flags & DERIVED_NAME == 0) && names.last() != Some(&name) {
                names.push(name);
            }
        }
        let (before, after) = (recheck.before, recheck.after);
        if rows.len() == CHUNK {
            recheck.cursor = [last, &[0][..]].concat();
            self.view.rechecks.push(recheck);
        }
        for name in names {
            self.look_at(after, name)?;
            if self.representative(before)? != self.representative(after)? {
                self.look_at(before, name)?;
            }
        }
        Ok(())
    }

    /// The live things of one name, given by its key, in one shown directory.
    fn entries(&self, parent: Uid, name: &[u8]) -> Result<Vec<Entry>, KvError> {
        let shown = self.derived(parent)?;
        let mut out = Vec::new();
        let group = if shown.group.is_empty() { &[parent][..] } else { &shown.group };
        for &directory in group {
            let Some(directory) = self.numbers.find_key(directory) else { continue };
            let mut from = keys::slot_name(directory, name);
            let to = after_prefix(&from);
            loop {
                let rows = self.kv.range(Table::Slots, &from, to.as_deref(), CHUNK)?;
                let more = rows.len() == CHUNK;
                for (key, mut name) in rows {
                    let flags = if name.is_empty() { 0 } else { name.remove(0) };
                    let Some((_, _, uid)) = keys::split_slot(&key) else { continue };
                    from.clone_from(&key);
                    if flags & DERIVED_NAME == 0 {
                        out.push(Entry { uid: self.numbers.uid(&uid)?, key, flags, name });
                    }
                }
                if !more {
                    break;
                }
                from.push(0);
            }
        }
        Ok(out)
    }

    /// Derives who has a name, given by its key, and what is shown as what.
    fn look_at(&mut self, parent: Uid, name: &[u8]) -> Result<(), KvError> {
        let parent = self.representative(parent)?;
        let entries = self.entries(parent, name)?;
        if let [only] = &entries[..]
            && only.flags & HIDDEN == 0
            && (only.flags & DIRECTORY == 0 || self.counters.derived == 0)
        {
            return Ok(());
        }
        let (mut directories, files): (Vec<_>, Vec<_>) = entries.into_iter().partition(|e| e.flags & DIRECTORY != 0);
        directories.sort_by_key(|entry| entry.uid);
        self.merge_directories(&directories)?;
        let winner = match (directories.first(), &files[..]) {
            (Some(directory), _) => directory.uid,
            (None, []) => return Ok(()),
            (None, [only]) => only.uid,
            (None, files) => self.latest(files)?,
        };
        for file in &files {
            self.set_loser(file, Some(winner).filter(|&winner| winner != file.uid))?;
        }
        Ok(())
    }

    fn latest(&self, files: &[Entry]) -> Result<Uid, KvError> {
        let mut best = None;
        for file in files {
            let place = self.place_of(file.uid)?;
            let place = place.ok_or_else(|| KvError::damaged("look at a slot", "a slot has no record"))?;
            best = best.max(Some((place.stamp, file.uid)));
        }
        Ok(best.map_or(Uid::ROOT, |(_, uid)| uid))
    }

    /// Shows live directories of one name in one shown place as the lowest UID.
    fn merge_directories(&mut self, directories: &[Entry]) -> Result<(), KvError> {
        let Some(first) = directories.first() else { return Ok(()) };
        let shown = first.uid;
        let grouped = self.derived(shown)?.group;
        let mut changed = Vec::new();
        for entry in directories {
            let derived = self.derived(entry.uid)?;
            let before = derived.merged.unwrap_or(entry.uid);
            // A directory that left and came back may be listed no more, though it says that it is shown as this one.
            if before != shown || entry.uid != shown && !grouped.contains(&entry.uid) {
                changed.push((entry.uid, before));
            }
            let hidden = entry.uid != shown;
            if (entry.flags & HIDDEN != 0) != hidden {
                self.kv.put(Table::Slots, &entry.key, &entry.value(DIRECTORY | if hidden { HIDDEN } else { 0 }))?;
            }
        }
        for &(uid, before) in &changed {
            if before != uid && before != shown {
                self.ungroup(before, uid)?;
            }
            let old = self.derived(uid)?;
            let merged = Some(shown).filter(|&shown| shown != uid);
            let group = if merged.is_some() { Vec::new() } else { old.group.clone() };
            self.derive(uid, &old, &Derived { merged, group, ..old.clone() })?;
        }
        let old = self.derived(shown)?;
        let group = if directories.len() > 1 { directories.iter().map(|e| e.uid).collect() } else { Vec::new() };
        self.derive(shown, &old, &Derived { group, ..old.clone() })?;
        for (uid, before) in changed {
            let directory = self.numbers.key(&mut self.kv, uid)?;
            for touched in [uid, before, shown] {
                self.touch_uid(touched)?;
            }
            self.view.rechecks.push(Recheck { directory, before, after: shown, cursor: directory.to_vec() });
        }
        Ok(())
    }

    /// A file has its name, or something else has it.
    fn set_loser(&mut self, file: &Entry, winner: Option<Uid>) -> Result<(), KvError> {
        if winner.is_none() && file.flags & HIDDEN == 0 {
            return Ok(());
        }
        let old = self.derived(file.uid)?;
        self.derive(file.uid, &old, &Derived { loser: winner, ..old.clone() })?;
        let hidden = winner.is_some();
        if (file.flags & HIDDEN != 0) == hidden {
            return Ok(());
        }
        self.touch_uid(file.uid)?;
        self.kv.put(Table::Slots, &file.key, &file.value(if hidden { HIDDEN } else { 0 }))?;
        if self.settings.policy == Policy::KeepBeside {
            let (Some((parent, _, uid)), Some(place)) = (keys::split_slot(&file.key), self.place_of(file.uid)?) else {
                return Err(KvError::damaged("look at a slot", "a slot has no record"));
            };
            let beside = place.name.kept_beside(&place.author, file.uid);
            if hidden {
                self.put_slot(parent, &beside, uid, DERIVED_NAME)?;
            } else {
                self.delete_slot(parent, &beside, uid)?;
            }
        }
        Ok(())
    }

    /// Derives everything anew from the records, in chunks.
    pub(crate) fn rebuild_view(&mut self) -> Result<(), KvError> {
        for table in [Table::Slots, Table::Children, Table::Derived, Table::Unresolved] {
            loop {
                let rows = self.kv.range(table, &[], None, CHUNK)?;
                for (key, _) in &rows {
                    self.kv.delete(table, key)?;
                }
                if rows.is_empty() {
                    break;
                }
            }
        }
        (self.counters.derived, self.counters.cuts, self.counters.unresolved) = (0, 0, 0);
        let mut after = None;
        loop {
            let records = self.records(after, CHUNK)?;
            let Some(last) = records.last() else { break };
            after = Some(last.uid);
            for record in &records {
                self.touch_uid(record.uid)?;
                let kept = self.derived(record.uid)?.kept;
                // A parent may have come into the view already, for the sake of what is in it.
                let place = Place::of(record);
                self.view_after(record.uid, Some(place.clone()).filter(|_| kept), Some(place))?;
            }
        }
        self.settle()
    }
}

/// Is this slot's thing shown under this slot's name? And is it a directory?
pub(crate) fn shown_slot(flags: &[u8]) -> Option<bool> {
    let flags = flags.first().copied().unwrap_or(0);
    (flags & HIDDEN == 0).then_some(flags & DIRECTORY != 0)
}

/// The name of a slot's thing, given the key under which it lies.
pub(crate) fn slot_name_of<'a>(key: &'a [u8], value: &'a [u8]) -> &'a [u8] {
    match value {
        [_, name @ ..] if !name.is_empty() => name,
        _ => key,
    }
}

/// Is this slot a further one, under a derived name?
pub(crate) fn derived_slot(flags: &[u8]) -> bool {
    flags.first().is_some_and(|flags| flags & DERIVED_NAME != 0)
}
