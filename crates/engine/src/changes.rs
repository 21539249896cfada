//! What users change here.
//!
//! Owns how a change becomes a version: later than everything seen here. Each change first writes down the resolutions
//! that it rests on, and of a directory it acts on all that it is shown to consist of (design, section 4).

use anabranch_model::{
    Attributes, AttributesFacet, Content, ContentFacet, Hlc, Knowledge, Name, Placement, PlacementFacet, Record, Time,
    Timestamp, Uid, Written,
};

use crate::kv::{Kv, KvError};
use crate::records::{Old, Records};
use crate::resolve::ResolveScope;
use crate::rules::{Rule, broken};

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The database.
    #[error(transparent)]
    Database(#[from] KvError),
    /// This membership issues no versions.
    #[error("this membership is read-only")]
    ReadOnly,
    /// Nothing has this UID.
    #[error("there is no record of {0}")]
    NoRecord(Uid),
    /// A directory has no content.
    #[error("{0} is a directory")]
    Directory(Uid),
    /// A directory cannot be in itself.
    #[error("{0} cannot be moved into itself")]
    IntoItself(Uid),
}

/// What a user did to the bytes of a file.
enum Bytes {
    /// These are in it now; equal ones are a touch.
    Written(Content),
    /// The recorded ones were put there anew.
    Again,
    /// Nothing.
    Kept,
}

/// Something that a user made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewThing {
    /// The shown directory in which it was made.
    pub parent: Uid,
    /// Its name.
    pub name: Name,
    /// A directory; else `content` is given.
    pub directory: bool,
    /// Of a file or symlink: what is in it, its mtime, and its birth time where the file system has it.
    pub content: Option<(Content, Timestamp, Option<Timestamp>)>,
    /// Its attributes, and of a directory its mtime.
    pub attributes: Option<(Attributes, Option<Timestamp>)>,
}

impl NewThing {
    /// A directory without attributes.
    #[must_use]
    pub fn directory(parent: Uid, name: Name) -> Self {
        Self { parent, name, directory: true, content: None, attributes: None }
    }

    /// A file or symlink without attributes.
    #[must_use]
    pub fn file(parent: Uid, name: Name, content: Content, mtime: Timestamp) -> Self {
        Self { parent, name, directory: false, content: Some((content, mtime, None)), attributes: None }
    }
}

impl<K: Kv> Records<K> {
    /// Records something new. Returns its UID: the version of its placement.
    ///
    /// # Errors
    /// [`ChangeError`]; [`ChangeError::Directory`] if a directory is given content, or a file none.
    pub fn add(&mut self, now: Hlc, new: NewThing) -> Result<Uid, ChangeError> {
        self.prepare(now)?;
        let parent = self.representative(new.parent)?;
        let written = self.written(now, None);
        let uid = Uid(written.version);
        if new.directory == new.content.is_some() {
            return Err(ChangeError::Directory(uid));
        }
        let author = self.settings.author.clone();
        let value = Placement { parent, name: new.name, directory: new.directory, deleted: false, author };
        let placement = PlacementFacet { value, written, seen: Knowledge::default() };
        let content = new.content.map(|(value, mtime, birth)| {
            let written = self.written(now, None);
            ContentFacet { value, mtime, birth, bytes: written.stamp(), written }
        });
        let attributes = new.attributes.map(|(value, directory_mtime)| {
            let written = self.written(now, None);
            AttributesFacet { value, directory_mtime, written }
        });
        let record = Record { uid, placement, content, attributes, unknown: Box::default() };
        self.replace(uid, None, Some(&record), true)?;
        self.settle()?;
        Ok(uid)
    }

    /// Renames or moves; what was deleted is live again. Of a shown directory: all that it consists of.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub fn place(&mut self, now: Hlc, uid: Uid, parent: Uid, name: Name) -> Result<(), ChangeError> {
        self.prepare(now)?;
        let (parent, group) = (self.representative(parent)?, self.acted_on(uid)?);
        if group.contains(&parent) {
            return Err(ChangeError::IntoItself(uid));
        }
        for uid in group {
            let author = self.settings.author.clone();
            let (name, deleted) = (name.clone(), false);
            self.rewrite(now, uid, |record, written| {
                let directory = record.placement.value.directory;
                record.placement.value = Placement { parent, name, directory, deleted, author };
                record.placement.written = written;
            })?;
        }
        Ok(self.settle()?)
    }

    /// Deletes, having seen the content here. Of a shown directory: all that it consists of, but nothing that is in it. Of
    /// what is not live: nothing.
    ///
    /// Remove a directory before what is in it: one that only its children keep goes with the last of them, and the
    /// directory shown in its place is then another one than the user deleted.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub fn remove(&mut self, now: Hlc, uid: Uid) -> Result<(), ChangeError> {
        self.remove_from(now, uid, None)
    }

    /// As [`Self::remove`], by a user who saw not the content recorded here but one with the history `seen`: what is
    /// recorded is newer and not yet in his tree.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub fn remove_from(&mut self, now: Hlc, uid: Uid, seen: Option<&Knowledge>) -> Result<(), ChangeError> {
        self.prepare(now)?;
        for uid in self.acted_on(uid)? {
            if self.live(uid)? {
                let author = self.settings.author.clone();
                self.rewrite(now, uid, |record, written| {
                    record.placement.written = written;
                    record.placement.value.author = author;
                    let saw = seen.or(record.content.as_ref().map(|content| &content.written.history)).cloned();
                    if let Some(saw) = saw {
                        // What others saw who deleted it, and was brought back, this user may never have seen: whoever
                        // holds that preserves it.
                        record.placement.written.merged = !saw.includes(&record.placement.seen);
                        record.placement.seen.join(&saw);
                    }
                    record.placement.value.deleted = true;
                })?;
            }
        }
        Ok(self.settle()?)
    }

    /// Records new bytes. If they are the bytes already recorded, only their times are new: a touch.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub fn write(
        &mut self,
        now: Hlc,
        uid: Uid,
        content: Content,
        mtime: Timestamp,
        birth: Option<Timestamp>,
    ) -> Result<(), ChangeError> {
        self.write_content(now, uid, Bytes::Written(content), mtime, Some(birth), None)
    }

    /// As [`Self::write`], by a user who saw not the content recorded here but one with the history `base`: what is
    /// recorded is newer, not yet in his tree, and concurrent with what he wrote (design, section 4, case 4).
    ///
    /// # Errors
    /// [`ChangeError`].
    pub fn write_from(
        &mut self,
        now: Hlc,
        uid: Uid,
        content: Content,
        mtime: Timestamp,
        birth: Option<Timestamp>,
        base: Option<&Knowledge>,
    ) -> Result<(), ChangeError> {
        self.write_content(now, uid, Bytes::Written(content), mtime, Some(birth), base)
    }

    /// Records that the bytes that are recorded were put there anew: by somebody who moved a file onto the name of one that
    /// was moved away or removed elsewhere, say. What only knows them from before does not replace them knowingly.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub fn write_again(
        &mut self,
        now: Hlc,
        uid: Uid,
        mtime: Timestamp,
        birth: Option<Timestamp>,
    ) -> Result<(), ChangeError> {
        self.write_content(now, uid, Bytes::Again, mtime, Some(birth), None)
    }

    /// Records a new mtime. The stamp of the last change of bytes stays: a touch beats no write (design, section 4).
    ///
    /// # Errors
    /// [`ChangeError`].
    pub fn touch(&mut self, now: Hlc, uid: Uid, mtime: Timestamp) -> Result<(), ChangeError> {
        self.write_content(now, uid, Bytes::Kept, mtime, None, None)
    }

    fn write_content(
        &mut self,
        now: Hlc,
        uid: Uid,
        bytes: Bytes,
        mtime: Timestamp,
        birth: Option<Option<Timestamp>>,
        base: Option<&Knowledge>,
    ) -> Result<(), ChangeError> {
        self.prepare(now)?;
        let (number, mut record) = self.row(uid)?.ok_or(ChangeError::NoRecord(uid))?;
        let old = Old::of(number, &record);
        let content = record.content.as_mut().ok_or(ChangeError::Directory(uid))?;
        content.written = self.written(now, Some(&content.written));
        let (value, touch) = match bytes {
            Bytes::Written(value) => {
                let touch = value == content.value;
                (Some(value), touch)
            }
            Bytes::Again => (None, false),
            Bytes::Kept => (None, true),
        };
        // Of equal bytes nothing is concurrent, and the history goes on covering the last change of bytes.
        if let Some(base) = base.filter(|_| !touch) {
            content.written.history = base.clone();
            content.written.history.learn(content.written.version);
        }
        if !touch || broken(Rule::ATouchIsNoEdit) {
            content.bytes = content.written.stamp();
        }
        content.value = value.unwrap_or_else(|| content.value.clone());
        content.mtime = mtime;
        content.birth = birth.unwrap_or(content.birth);
        self.replace(uid, Some(old), Some(&record), true)?;
        Ok(self.settle()?)
    }

    /// Records new attributes, and of a directory its mtime. Of a shown directory: of all that it consists of.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub fn set_attributes(
        &mut self,
        now: Hlc,
        uid: Uid,
        value: Attributes,
        directory_mtime: Option<Timestamp>,
    ) -> Result<(), ChangeError> {
        self.prepare(now)?;
        for uid in self.acted_on(uid)? {
            let (number, mut record) = self.row(uid)?.ok_or(ChangeError::NoRecord(uid))?;
            let old = Old::of(number, &record);
            let written = self.written(now, record.attributes.as_ref().map(|facet| &facet.written));
            record.attributes = Some(AttributesFacet { value: value.clone(), directory_mtime, written });
            self.replace(uid, Some(old), Some(&record), true)?;
        }
        Ok(self.settle()?)
    }

    /// Begins a set of changes that become visible together, such as both sides of a swap: until [`Self::end_changes`]
    /// (a commit ends it too) no name is decided anew. Writes down first what the changes rest on.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub fn begin_changes(&mut self, now: Hlc) -> Result<(), ChangeError> {
        self.prepare(now)?;
        self.deferred = true;
        Ok(())
    }

    /// Ends the set: the view follows.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub fn end_changes(&mut self) -> Result<(), ChangeError> {
        self.deferred = false;
        Ok(self.settle()?)
    }

    fn prepare(&mut self, now: Hlc) -> Result<(), ChangeError> {
        if self.settings.read_only {
            return Err(ChangeError::ReadOnly);
        }
        if self.deferred {
            return Ok(());
        }
        if self.counters.unresolved > 0 || broken(Rule::MergedDirectoriesKeepTheirChildren) {
            self.resolve(now, ResolveScope::All)?;
        }
        Ok(())
    }

    /// On what a user acts who acts on this.
    fn acted_on(&self, uid: Uid) -> Result<Vec<Uid>, KvError> {
        if broken(Rule::AMoveTakesAllThatIsMerged) { Ok(vec![uid]) } else { self.group(uid) }
    }

    /// What a user's new version of a facet carries: later than everything seen here.
    fn written(&mut self, now: Hlc, old: Option<&Written>) -> Written {
        let version = self.issue(now);
        self.counters.clock = Hlc(self.counters.clock.0.saturating_add(1)).max(now);
        let mut history = old.map(|old| old.history.clone()).unwrap_or_default();
        history.learn(version);
        let time = Time { clock: self.counters.clock, change: version, resolutions: 0 };
        Written { version, time, history, merged: false }
    }

    /// Changes a placement.
    fn rewrite(&mut self, now: Hlc, uid: Uid, change: impl FnOnce(&mut Record, Written)) -> Result<(), ChangeError> {
        let (number, mut record) = self.row(uid)?.ok_or(ChangeError::NoRecord(uid))?;
        let old = Old::of(number, &record);
        let written = self.written(now, Some(&record.placement.written));
        change(&mut record, written);
        Ok(self.replace(uid, Some(old), Some(&record), true)?)
    }
}

/// Makes a tombstone, which keeps the last parent and name, and says which content its author had seen.
pub(crate) fn delete(record: &mut Record) {
    record.placement.value.deleted = true;
    if let Some(content) = &record.content {
        record.placement.seen.join(&content.written.history);
    }
}
