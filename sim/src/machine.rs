//! What the world needs of a member's replica: events in, actions out, and a look at what it holds.
//!
//! The one behind it is the replica of the `member` crate; the trait lets the world and its oracle be tried with others
//! that do less or do it wrong.

use anabranch_model::{Hlc, Names, Record, ReplicaId, Uid, Version};
use anabranch_net::message::{Envelope, Message};
use anabranch_volume::simulated::SimFs;
use anabranch_volume::watch::Hint;

use crate::kv::SimKv;

/// What the partner at the other end of a link is to the member.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Role {
    /// The member pulls from it.
    Upstream,
    /// It pulls from the member.
    Downstream,
}

/// What a version names.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Named {
    /// The thing that it is of.
    Thing(Version),
    /// The value of a facet of that thing.
    Value(&'static str, Uid, Version),
}

/// What comes in.
#[derive(Debug)]
pub(crate) enum Input {
    /// Nothing but time.
    Time,
    /// Entries that may have changed.
    Hints(Vec<Hint>),
    /// A link stands.
    LinkUp(u64, Role),
    /// A link is gone.
    LinkDown(u64),
    /// A partner says something.
    Received(u64, Message),
}

/// What goes out.
#[derive(Debug)]
pub(crate) enum Output {
    /// To be said on that link.
    Send(u64, Envelope),
    /// That link is to be closed; why.
    Close(u64, String),
    /// For the administrator: number of the event, and the particulars.
    Report(u32, String),
}

/// Something preserved, as the manifest says.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Kept {
    /// Where it lies, from the program's own directory on; with all below if it is a directory.
    pub(crate) place: Vec<u8>,
    /// Where it was in the tree.
    pub(crate) path: Vec<u8>,
    /// Of the class *unseen*.
    pub(crate) unseen: bool,
    /// Announced, but not yet seen to be there.
    pub(crate) pending: bool,
    /// For the printed history.
    pub(crate) reason: String,
}

/// What a replica is told when it starts.
pub(crate) struct Start {
    /// Its disk.
    pub(crate) fs: SimFs,
    /// Its database, empty at first.
    pub(crate) kv: SimKv,
    /// Its name.
    pub(crate) name: String,
    /// All members' names.
    pub(crate) members: Vec<String>,
    /// It holds the first content.
    pub(crate) primary: bool,
    /// A file that loses its name is kept beside the winner, not preserved.
    pub(crate) keep_beside: bool,
    /// What counts as one name.
    pub(crate) names: Names,
    /// This start of the machine.
    pub(crate) boot: Vec<u8>,
    /// This machine and file system.
    pub(crate) place: Vec<u8>,
    /// Its clock, microseconds since 1970.
    pub(crate) now: Hlc,
    /// Fresh replica ids, from the seed.
    pub(crate) fresh: Box<dyn FnMut() -> ReplicaId + Send>,
    /// Bytes for staging.
    pub(crate) staging_bytes: u64,
    /// Bytes of a page of records, about.
    pub(crate) page_bytes: usize,
    /// For how long a name that was vacated is continued, microseconds.
    pub(crate) name_memory: u64,
}

/// Named counters of a replica, for the table of what occurred.
pub(crate) type Figures = Vec<(&'static str, u64)>;

/// A replica at work.
pub(crate) trait Machine {
    /// Takes an event in.
    ///
    /// # Errors
    /// A sentence: the replica has stopped and must be started anew.
    fn handle(&mut self, now: Hlc, input: Input) -> Result<(), String>;
    /// The next thing to be done.
    fn poll(&mut self) -> Option<Output>;
    /// When it wants to be called again, by its own clock.
    fn deadline(&self) -> Option<Hlc>;
    /// Has it looked at all that it heard of?
    fn looked(&self) -> bool;
    /// Is nothing outstanding here, as far as it knows?
    fn settled(&self) -> bool;
    /// What it waits for, in words: for the report of a history that never came to rest.
    fn waits(&self) -> Vec<String>;
    /// Its records and what its database says of the tree, in words.
    fn describe(&self) -> Vec<String>;
    /// Everything that it preserved.
    ///
    /// # Errors
    /// A sentence, when its database cannot be read.
    fn preserved(&self) -> Result<Vec<Kept>, String>;
    /// What versions name in all records, and the hash of that: one version names one value for ever.
    /// Numbers after `until` are left out: a clock that was ahead issued them, and nobody takes them in before that time.
    ///
    /// # Errors
    /// As [`Self::preserved`].
    fn versions(&self, until: Hlc) -> Result<Vec<(Named, u64)>, String>;
    /// All records but what members may differ in: UID, and the rest in words.
    ///
    /// # Errors
    /// As [`Self::preserved`].
    fn records(&self) -> Result<Vec<(Uid, Record)>, String>;
    /// A digest of what its records show to be there: equal for equal trees of one history.
    fn state(&self) -> u64;
    /// The latest time that any of its records carries.
    fn clock(&self) -> Hlc;
    /// What happened so far.
    fn figures(&self) -> Figures;
    /// Closes properly.
    ///
    /// # Errors
    /// As [`Self::preserved`].
    fn close(&mut self) -> Result<(), String>;
}

/// Starts a replica.
pub(crate) type Opener = dyn Fn(Start) -> Result<Box<dyn Machine>, String> + Sync;
