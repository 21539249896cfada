//! One replica at work: events in, actions out.
//!
//! A replica owns its records, its nodes and the tree below its root, and talks to its partners through actions that the
//! caller carries out. It never waits and never looks at a clock: time comes in with every call. The real program runs
//! it on a thread of its own, the simulator many of them in one.
//!
//! Work is done in bounded steps, each of which leaves the database consistent:
//! *observe* (local changes become versions), *pull* (a partner's pass is taken in), *work* (the tree is made to show
//! the view), *fetch* (content that the tree lacks is asked for), *serve*.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use anabranch_engine::kv::{Kv, KvError, Table};
use anabranch_engine::{ChangeError, Records, ResolveScope};
use anabranch_model::{ChangeNumber, Hlc, Knowledge, Names, ReplicaId, Uid, Version};
use anabranch_net::message::{Envelope, Mark, Message};
use anabranch_volume::fs::{Fs, Object};
use anabranch_volume::watch::Hint;

use crate::acknowledged::{Acknowledgements, Told};
use crate::beside::Beside;
use crate::config::{Config, FreshIds};
use crate::events::{Event, EventKind};
use crate::fetch::Fetching;
use crate::install::{Ahead, ReadySet};
use crate::kept::Lately;
use crate::nodes::{self, NodeId};
use crate::observe::{Large, Unsettled};
use crate::scan::Scan;
use crate::tables::{self, Meta};
use crate::undone::Undone;
use crate::unsynced::Unsynced;

mod hints;
mod places;
mod questions;
mod telling;

/// A link to a partner, numbered by the caller.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct LinkId(pub u64);

/// What the partner at the other end of a link is to us.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Partner {
    /// We pull from it.
    Upstream,
    /// It pulls from us.
    Downstream,
}

/// Cycles of directories that are looked at for events, of those that stand at the same time.
const CYCLES_MAX: usize = 64;

/// Names of a path that is put together for people; a longer one loses its beginning.
pub(crate) const PATH_NAMES_MAX: usize = 4096;

/// What comes in.
#[derive(Debug)]
pub enum Input {
    /// Nothing but time.
    Time,
    /// Directory entries that may have changed.
    Hints(Vec<Hint>),
    /// A link stands; for an upstream partner we begin.
    LinkUp(LinkId, Partner),
    /// A link is gone.
    LinkDown(LinkId),
    /// A partner says something.
    Received(LinkId, Message),
}

/// What goes out.
#[derive(Debug)]
pub enum Output {
    /// Say this on that link.
    Send(LinkId, Envelope),
    /// Close that link; it may be dialled again later.
    Close(LinkId, String),
    /// Something for the administrator.
    Report(Event),
}

/// Why a replica stops altogether: its database failed, or its root is not there.
#[derive(Debug, thiserror::Error)]
pub enum Stop {
    /// The metadata database.
    #[error(transparent)]
    Database(#[from] KvError),
    /// The private directory in the root cannot be used.
    #[error("cannot use {path} in the folder's root")]
    Private {
        /// Which part of it.
        path: String,
        /// The cause.
        source: std::io::Error,
    },
    /// The root is another directory than before.
    #[error("the folder's root is not the directory that it was: {0}")]
    Root(String),
    /// The rule for names is another than before: it is fixed when a folder is created.
    #[error("names of the folder were compared as `{was}` here, and the domain says `{now}` now")]
    Names {
        /// Under which rule the database was made.
        was: Names,
        /// What the domain says.
        now: Names,
    },
    /// The recovery policy is manual.
    #[error("the folder was not closed properly, and its recovery policy is manual")]
    RecoveryWaits,
}

impl From<ChangeError> for Stop {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::Database(error) => Self::Database(error),
            other => Self::Database(KvError::failed("record a local change", other)),
        }
    }
}

/// Where a replica is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// Initial sync: what lies here has no version yet (design, section 10).
    Joining,
    /// Normal.
    Normal,
    /// Under a fresh id after a rollback or copy: issues no versions until compared (design, sections 11, 12).
    Returning,
}

impl Phase {
    pub(crate) fn byte(self) -> u8 {
        match self {
            Self::Joining => 1,
            Self::Normal => 2,
            Self::Returning => 3,
        }
    }
}

/// The private directories, open.
pub(crate) struct Private<D> {
    pub(crate) top: D,
    pub(crate) staging: D,
    pub(crate) conflict: D,
    pub(crate) pre_existing: D,
}

/// An upstream may have been put back to an image since it sent what lies aside: rows of which it had sent none yet, because
/// they had changed since the image, have their former change numbers again, which were passed already. It notices that by
/// being asked for what comes after a number that it told of then (design, section 11).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Continued {
    /// It was not asked on this link.
    Unasked,
    /// It was, and has not answered yet.
    Asked,
    /// It knows the number, or nothing lay aside.
    Sure,
}

/// What is known of one link.
pub(crate) struct Link {
    pub(crate) partner: Partner,
    /// Name and replica id, once opened.
    pub(crate) peer: Option<(String, ReplicaId)>,
    /// Upstream: its newest change number that we heard of.
    pub(crate) number: ChangeNumber,
    /// Upstream: a page was asked for. Downstream: number last pushed.
    pub(crate) pulling: bool,
    pub(crate) pushed: ChangeNumber,
    /// Our knowledge as last told to an upstream partner; a downstream partner's as it told us.
    pub(crate) told: Knowledge,
    /// Acknowledgements already told on this link.
    pub(crate) told_acknowledgements: Told,
    /// Downstream: content that it asked for and we did not hold.
    pub(crate) refused: BTreeSet<Uid>,
    /// Downstream: content that it was sent from the beginning.
    pub(crate) served: BTreeMap<Uid, crate::serve::Served>,
    /// Upstream: its pass waits because of a clock ahead.
    pub(crate) ahead: bool,
    /// Its clock minus ours, microseconds, when the link was opened.
    pub(crate) skew: i64,
    /// Upstream: a pass was completed on this link.
    pub(crate) passed: bool,
    /// Upstream: how far it is certain that it is still the one that sent what lies aside of it.
    pub(crate) continued: Continued,
    /// It has not completed its own initial sync. Upstream: it said so; downstream: it was told so of us.
    pub(crate) joining: bool,
    /// Downstream: it asked for what comes after this number, and there is nothing yet but more to come.
    pub(crate) unanswered: Option<ChangeNumber>,
}

/// Counters of what happened, for tests and figures.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Counters {
    /// Passes completed.
    pub passes: u64,
    /// Files whose content was installed.
    pub installs: u64,
    /// Of these, without transfer: the same content was here.
    pub reused: u64,
    /// Items adopted at the initial sync.
    pub adopted: u64,
    /// Exchanged back because somebody opened or changed the file meanwhile.
    pub taken_back: u64,
    /// Found in use before the exchange.
    pub in_use: u64,
    /// Bytes of large files that were received before the last start, and not again.
    pub resumed: u64,
    /// Bytes of content received.
    pub content_received: u64,
    /// Bytes of content sent.
    pub content_sent: u64,
    /// Preserved as unseen.
    pub unseen: u64,
    /// Intents completed or undone at start.
    pub intents: u64,
    /// Facets by case: old, descendant, equal, concurrent.
    pub cases: [u64; 4],
    /// Resolutions written.
    pub resolutions: u64,
}

/// One replica. See the module.
pub struct Replica<F: Fs, K: Kv> {
    pub(crate) fs: F,
    pub(crate) records: Records<K>,
    pub(crate) config: Config,
    pub(crate) fresh: FreshIds,
    pub(crate) phase: Phase,
    pub(crate) now: Hlc,
    pub(crate) private: Private<F::Dir>,
    /// Directories opened during this call; never kept longer, since people may move them out of the root.
    pub(crate) dirs: BTreeMap<NodeId, F::Dir>,
    pub(crate) links: BTreeMap<LinkId, Link>,
    pub(crate) out: VecDeque<Output>,
    /// Entries that may have changed.
    pub(crate) changed: BTreeSet<(NodeId, Vec<u8>)>,
    /// Directories to be compared whole; the last one first.
    pub(crate) scan: Scan,
    /// Of these, and of entries to be looked at later: somebody closed them after writing, so their hashes do not count
    /// whatever their stamps say (a store through a mapping changes bytes and no stamp; design, section 5).
    pub(crate) closed: BTreeSet<(NodeId, Vec<u8>)>,
    /// A comparison of everything is under way.
    pub(crate) scanning: bool,
    /// The tree has not been compared with the database since this member was put back: what is missing in it was perhaps
    /// removed by nobody.
    pub(crate) absence_doubted: bool,
    /// The tree has been compared with the database since this life began: what differs by now was done meanwhile, whatever is
    /// heard of earlier lives.
    pub(crate) looked_through: bool,
    /// Directories of which the last comparison failed; they are in `later`, too.
    pub(crate) unread: BTreeSet<NodeId>,
    /// The primary's first comparison: until it is complete no pass is, for whoever joins takes what a pass does not have
    /// for what nobody has (design, section 10).
    pub(crate) first_scan: bool,
    /// Nodes missed by a scan, to be looked for again at its end.
    pub(crate) missing: BTreeSet<NodeId>,
    /// Of these, those that the scan which has just ended did not find.
    pub(crate) looked_for: BTreeSet<NodeId>,
    /// Entries to look at again, and when; an empty name: the whole of that directory.
    pub(crate) later: BTreeMap<(NodeId, Vec<u8>), Hlc>,
    /// Since when, and why.
    pub(crate) unsettled: BTreeMap<(NodeId, Vec<u8>), Unsettled>,
    pub(crate) observe_at: Option<Hlc>,
    /// Large files that are being hashed.
    pub(crate) large: Large<F>,
    /// Names vacated a short while ago: (parent, name) -> UID, when, and what was seen of its content.
    pub(crate) recent: BTreeMap<(Uid, Vec<u8>), Vacated>,
    /// Places from which we moved something a short while ago: the node and when.
    pub(crate) moved_away: BTreeMap<(NodeId, Vec<u8>), (NodeId, Hlc)>,
    /// Directories that were made and not finished: where, and which.
    pub(crate) half_made: VecDeque<(NodeId, Vec<u8>, Object)>,
    /// UIDs whose private files are nobody's and could not be removed yet.
    pub(crate) leftovers: BTreeSet<Uid>,
    /// Something lies in staging that the database has elsewhere.
    pub(crate) unnoted_parked: bool,
    /// What was made or moved and not noted.
    pub(crate) undone: Undone,
    /// Where the walk through Todo stands, and whether it came to the end.
    pub(crate) work_from: Vec<u8>,
    pub(crate) walk_done: bool,
    /// Rows of Todo to be looked at before the walk goes on.
    pub(crate) due: BTreeSet<Vec<u8>>,
    /// The walk stands still because the window of wanted content is full.
    pub(crate) window_full: bool,
    pub(crate) work_at: Option<Hlc>,
    /// Items that wait, and until when; the cause is for `explain`.
    pub(crate) waiting: BTreeMap<Vec<u8>, (Hlc, Waiting)>,
    pub(crate) ready: ReadySet<F::File>,
    /// Private files that are being written.
    pub(crate) ahead: Ahead<F::File>,
    pub(crate) beside: Beside,
    pub(crate) fetching: Fetching<F::File>,
    /// Directories that their owner may not write.
    pub(crate) lifting: crate::lift::Lifting<F::Dir>,
    /// Directories of a joining replica that are still to be compared.
    pub(crate) adopting: Option<Vec<NodeId>>,
    /// Nothing lay in the tree of this joining replica when it last asked for a page.
    pub(crate) joins_empty: bool,
    /// Content that no partner has: its version and since when.
    pub(crate) nobody: BTreeMap<Uid, (Version, Hlc)>,
    pub(crate) resolve_at: Option<Hlc>,
    pub(crate) counters: Counters,
    pub(crate) reported: BTreeSet<(EventKind, String)>,
    /// What the members acknowledged.
    pub(crate) acknowledged: Acknowledgements,
    /// Serial of our own acknowledgement when we started, and of the first one since.
    pub(crate) serial_at_start: u64,
    /// See [`Self::serial_at_start`].
    pub(crate) first_serial: Option<u64>,
    /// While returning: which UIDs a partner was asked about.
    pub(crate) returning_request: Option<(LinkId, Vec<Uid>)>,
    /// The partner that is asked has no record of something, and may never have heard of it.
    pub(crate) returning_undecided: bool,
    /// Since when all partners that are there were put back themselves, and when they are asked again.
    pub(crate) returning_since: Option<Hlc>,
    /// See [`Self::returning_since`].
    pub(crate) returning_at: Option<Hlc>,
    /// What partners knew at their last complete pass.
    pub(crate) partner_known: BTreeMap<ReplicaId, Knowledge>,
    pub(crate) verifying: BTreeMap<LinkId, crate::sums::Comparison>,
    /// What buckets hold, for comparisons under way.
    pub(crate) rows: crate::sums::Rows,
    pub(crate) root_lost: bool,
    /// Something was preserved since quotas were looked at.
    pub(crate) purge_due: bool,
    /// Items of the class *seen* that are looked at again, by when.
    pub(crate) lately: VecDeque<Lately>,
    /// No node gets a number below this one: what is to be looked at later names nodes by number.
    pub(crate) node_floor: u64,
    /// Bytes preserved, by class; `None`: to be summed up anew.
    pub(crate) preserved_bytes: Option<[u64; 2]>,
    pub(crate) last_mark: Mark,
    /// The number of the newest mark when this replica was opened.
    pub(crate) mark_at_start: anabranch_model::Sequence,
    /// The newest number that we had issued when this life began.
    pub(crate) issued_at_start: anabranch_model::Sequence,
    pub(crate) marks: usize,
    /// The change number at the start.
    pub(crate) first_number: ChangeNumber,
    /// What this replica id's numbers passed over at starts.
    pub(crate) gaps: Vec<tables::Gap>,
    /// When a pass that carried a time in the future is tried again.
    pub(crate) ahead_retry: Option<Hlc>,
    /// Directories that something is mounted over, and when they are looked at again: no event tells when it is taken away.
    pub(crate) covered: BTreeSet<(NodeId, Vec<u8>)>,
    /// See [`Self::covered`].
    pub(crate) covered_at: Option<Hlc>,
    /// The first comparison after a power cut, until each directory could be read: what looks torn is no edit.
    pub(crate) suspect: bool,
    /// When all that could be read was compared; some directories could not. What was written since is a user's doing.
    pub(crate) compared_at: Option<Hlc>,
    /// Files that a sync failed for before what is in them was recorded.
    pub(crate) unsynced: Unsynced,
    /// The durability checkpoint: after a power cut, what was changed since is read again whatever its stamp says.
    pub(crate) checkpoint: Hlc,
    /// After a power cut: no versions until a partner was heard, or this time.
    pub(crate) hold_until: Option<Hlc>,
    /// Our clock differs from every partner's as links were opened: when they are opened anew to compare them again.
    pub(crate) compare_clocks_at: Option<Hlc>,
}

/// Why an item waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Waiting {
    /// Somebody has the file open.
    InUse,
    /// A local change was found where it should go; it is taken up first.
    LocalChange,
    /// Its directory is not there yet, or not empty yet.
    Order,
    /// The file system refused.
    Failed,
    /// Its content is not here yet.
    Content,
    /// No partner that we are connected with has its content.
    Nobody,
}

impl Waiting {
    /// For people.
    fn words(self) -> &'static str {
        match self {
            Self::InUse => "somebody has it open",
            Self::LocalChange => "a change made here is taken up first",
            Self::Order => "its directory is not ready yet",
            Self::Failed => "the file system refused it; the events say why",
            Self::Content => "its content is not here yet",
            Self::Nobody => "no connected partner has its content; where that stays so its writer says so (event 7008)",
        }
    }
}

/// What had a name until a short while ago: its UID, until when, and the history of its content as it was on disk.
pub(crate) type Vacated = (Uid, Hlc, Option<Knowledge>);

pub(crate) type Result<T> = std::result::Result<T, Stop>;

impl<F: Fs + Sync, K: Kv> Replica<F, K>
where
    F::Dir: Send + Sync,
    F::File: Send,
{
    /// Takes an event in. Afterwards drain [`Self::poll`], and call again with [`Input::Time`] when [`Self::deadline`]
    /// has come.
    ///
    /// # Errors
    /// [`Stop`]: this replica cannot go on and must be opened anew.
    pub fn handle(&mut self, now: Hlc, input: Input) -> Result<()> {
        self.take(now, input)?;
        self.step()
    }

    /// Takes an event in as one of several: [`Self::handle`] must follow.
    ///
    /// # Errors
    /// As [`Self::handle`].
    pub fn take(&mut self, now: Hlc, input: Input) -> Result<()> {
        let leapt = now.0.abs_diff(self.now.0) > self.config.limits.ahead && !self.links.is_empty();
        if now < self.now {
            self.set_timers_back(self.now.0 - now.0);
        }
        self.now = now;
        self.dirs.clear();
        if leapt {
            self.clock_leapt();
        }
        match input {
            Input::Time => {}
            Input::Hints(hints) => self.take_hints(hints)?,
            Input::LinkUp(link, partner) => self.link_up(link, partner)?,
            Input::LinkDown(link) => self.link_down(link),
            Input::Received(link, message) => self.receive(link, message)?,
        }
        Ok(())
    }

    /// The clock was set back: what was to come after a while comes after that while, not after the old time.
    fn set_timers_back(&mut self, by: u64) {
        let back = |at: &mut Hlc| at.0 = if at.0 == u64::MAX { at.0 } else { at.0.saturating_sub(by) };
        let single = [
            &mut self.observe_at,
            &mut self.work_at,
            &mut self.resolve_at,
            &mut self.ahead_retry,
            &mut self.covered_at,
            &mut self.returning_since,
            &mut self.returning_at,
            &mut self.hold_until,
            &mut self.compare_clocks_at,
            &mut self.fetching.retry_at,
            &mut self.fetching.note_at,
        ];
        single.into_iter().flatten().for_each(back);
        self.later.values_mut().for_each(back);
        self.unsettled.values_mut().for_each(|noted| noted.set_back(by));
        self.waiting.values_mut().for_each(|(at, _)| back(at));
        self.recent.values_mut().for_each(|(_, at, _)| back(at));
        self.moved_away.values_mut().for_each(|(_, at)| back(at));
        self.nobody.values_mut().for_each(|(_, at)| back(at));
    }

    /// Hints need not settle any longer: the next call looks at them.
    pub fn look_now(&mut self, now: Hlc) {
        if !self.changed.is_empty() || !self.scan.is_empty() {
            self.observe_at = Some(now);
        }
    }

    /// Directories are opened anew in every call.
    pub(crate) fn begin_call(&mut self) {
        self.dirs.clear();
    }

    /// The next thing to be done by the caller.
    pub fn poll(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    /// When the replica wants to be called again; `None`: only when something comes in.
    #[must_use]
    pub fn deadline(&self) -> Option<Hlc> {
        // A lost root is looked for, and until it is there nothing else can be done.
        if self.root_lost {
            return self.observe_at;
        }
        // The comparison of what lay here goes on at once, whatever the work on the tree waits for.
        if self.adopting.is_some() || !self.large.is_idle() {
            return Some(self.now);
        }
        // While joining, local changes wait for the scan at its end.
        let later = self.later.values().min().copied();
        let [observe_at, later] = [self.observe_at, later].map(|at| at.filter(|_| self.phase != Phase::Joining));
        // Now and then, so that a clock that leaps is told from a long silence.
        let beat = (!self.links.is_empty()).then(|| Hlc(self.now.0 + self.config.limits.ahead / 2));
        [
            observe_at,
            self.work_at,
            later,
            self.resolve_at,
            self.fetching.retry_at,
            self.fetching.note_at,
            self.ahead_retry,
            self.covered_at,
            self.returning_at,
            self.lately_due(),
            beat,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// One bounded step of everything that is due.
    fn step(&mut self) -> Result<()> {
        let now = self.now;
        if self.root_lost {
            return self.look_for_root();
        }
        let due: Vec<_> = self.later.iter().filter(|(_, at)| **at <= now).map(|(key, _)| key.clone()).collect();
        for key in due {
            self.later.remove(&key);
            if key.1.is_empty() {
                // It could not be enumerated, so nothing is known of what lies below it either.
                self.scan.next(key.0);
                self.scanning = true;
            } else {
                self.changed.insert(key);
            }
            self.observe_at = Some(now);
        }
        if self.returning_at.is_some_and(|at| at <= now) {
            self.returning_at = None;
            self.compare_with_anybody()?;
        }
        if self.covered_at.is_some_and(|at| at <= now) {
            self.covered_at = None;
            self.changed.append(&mut self.covered);
            self.observe_at = Some(now);
        }
        if self.records.clock().0 > now.0.saturating_add(self.config.limits.ahead) {
            self.restamp()?;
        }
        if !self.large.is_idle() {
            self.hash_large()?;
        }
        if self.phase != Phase::Joining && self.observe_at.is_some_and(|at| at <= now) {
            self.observe()?;
        }
        if self.ahead_retry.is_some_and(|at| at <= now) {
            self.ahead_retry = None;
            for link in self.links.iter().filter(|(_, l)| l.ahead).map(|(id, _)| *id).collect::<Vec<_>>() {
                self.pull(link)?;
            }
        }
        if self.root_lost {
            return Ok(());
        }
        if self.adopting.is_some() {
            self.adopt()?;
        }
        if self.work_at.is_some_and(|at| at <= now) {
            self.work()?;
        }
        self.fetch()?;
        if self.fetching.note_at.is_some_and(|at| at <= now) {
            self.note_partials(false)?;
        }
        self.look_for_forgotten()?;
        if self.resolve_at.is_some_and(|at| at <= now) {
            self.resolve(ResolveScope::All)?;
        }
        self.acknowledge()?;
        self.look_at_lately()?;
        if self.purge_due {
            self.purge()?;
        }
        self.looked_through |= self.phase != Phase::Joining && !self.comparison_owed();
        if self.absence_doubted && !self.comparison_owed() {
            self.records.begin()?;
            self.records.kv_mut().delete(Table::Meta, Meta::ABSENCE_DOUBTED)?;
            self.records.commit()?;
            self.absence_doubted = false;
            self.compare_with_anybody()?;
        }
        if self.first_scan && !self.scanning {
            self.records.begin()?;
            self.records.kv_mut().delete(Table::Meta, Meta::FIRST_SCAN)?;
            self.records.commit()?;
            self.first_scan = false;
        }
        self.push()
    }

    /// Closes properly: the next start finds a clean mark. Who was still looking for what a power cut left goes on with that
    /// then (design, section 11).
    ///
    /// # Errors
    /// [`Stop::Database`].
    pub fn close(&mut self) -> Result<()> {
        self.note_partials(true)?;
        self.records.begin()?;
        let mark = if self.suspect { Meta::STOPPED_DOUBTING } else { Meta::STOPPED };
        self.records.kv_mut().put(Table::Meta, Meta::CLEAN, &[mark])?;
        self.records.commit()?;
        Ok(())
    }

    /// Who keeps the folder, this member included: who must acknowledge.
    pub fn set_members(&mut self, members: Vec<String>) {
        self.config.members = members;
    }

    /// The root was not where it should be when it was last looked at: the folder stands still, and looks for it.
    #[must_use]
    pub fn root_is_lost(&self) -> bool {
        self.root_lost
    }

    pub(crate) fn report(&mut self, kind: EventKind, detail: impl Into<String>) {
        self.out.push_back(Output::Report(Event::new(kind, detail)));
    }

    /// Reports once for each detail while the program runs, at most 10,000 of them.
    pub(crate) fn report_once(&mut self, kind: EventKind, detail: impl Into<String>) {
        let detail = detail.into();
        if self.reported.len() < 10_000 && self.reported.insert((kind, detail.clone())) {
            self.report(kind, detail);
        }
    }

    pub(crate) fn send(&mut self, link: LinkId, message: Message) {
        let folder = self.config.folder;
        self.out.push_back(Output::Send(link, Envelope { folder, message }));
    }

    /// Puts UIDs whose view or facets changed on the list of work.
    pub(crate) fn note_touched(&mut self) -> Result<()> {
        self.note_touched_but(&BTreeSet::new())
    }

    /// As [`Self::note_touched`], but for things that were just made from what lies on disk: where the view shows them as
    /// their records say there is nothing to do.
    pub(crate) fn note_touched_but(&mut self, made: &BTreeSet<Uid>) -> Result<()> {
        let mut touched = self.records.drain_touched();
        if self.records.shows_records() {
            touched.retain(|uid| !made.contains(uid));
        }
        if touched.is_empty() {
            return Ok(());
        }
        let many = touched.len() + self.due.len() > 10_000;
        for uid in &touched {
            let key = nodes::uid_key(*uid);
            self.records.kv_mut().put(Table::Todo, &key, &[])?;
            self.waiting.remove(&key[..]);
            if !many {
                self.due.insert(key.to_vec());
            }
        }
        if many {
            // The walk goes through all of them, from the start.
            self.walk_done = false;
            self.work_from.clear();
        }
        self.work_at = Some(self.now);
        Ok(())
    }

    /// Writes down resolutions (design, section 4), in a transaction of its own.
    pub(crate) fn resolve(&mut self, scope: ResolveScope) -> Result<()> {
        self.resolve_at = None;
        if self.phase != Phase::Normal {
            return Ok(());
        }
        self.report_cycles()?;
        self.records.begin()?;
        let count = self.records.resolve(self.now, scope)?;
        self.counters.resolutions += count as u64;
        self.note_touched()?;
        self.commit()?;
        if self.records.unresolved() > 0 {
            self.resolve_at = Some(Hlc(self.now.0 + self.config.limits.resolve));
        }
        Ok(())
    }

    /// Says where directories were moved into each other: whoever looks for one of them finds it in the root.
    fn report_cycles(&mut self) -> Result<()> {
        for cycle in self.records.cut_cycles(CYCLES_MAX)? {
            let names: Vec<_> =
                cycle.iter().map(|(_, name)| String::from_utf8_lossy(name.bytes()).into_owned()).collect();
            let into = |i: usize| format!("`{}` into `{}`", names[i], names[(i + 1) % names.len()]);
            let moves: Vec<String> = (0..names.len()).map(into).collect();
            let Some((cut, name)) = cycle.first() else { continue };
            let mut at = String::from_utf8_lossy(name.beside(*cut).bytes()).into_owned();
            let mut places = vec![format!("`{at}`")];
            for name in names.iter().skip(1).rev() {
                at = format!("{at}/{name}");
                places.push(format!("`{at}`"));
            }
            self.report_once(EventKind::CycleCut, format!("{}: now {}", moves.join(", "), places.join(", ")));
        }
        Ok(())
    }

    /// Our clock was ahead and is no longer, as a partner's says: what it stamped, and is of a time that no clock has
    /// reached, is stamped anew (design, section 4). One partner whose clock is wrong keeps nobody from it.
    fn restamp(&mut self) -> Result<()> {
        let limit = self.config.limits.ahead;
        let agrees = self.links.values().any(|l| l.peer.is_some() && l.skew.unsigned_abs() <= limit);
        if self.phase != Phase::Normal {
            return Ok(());
        }
        if !agrees {
            self.clocks_differ();
            return Ok(());
        }
        self.compare_clocks_at = None;
        let former = self.former()?;
        self.records.begin()?;
        let count = self.records.restamp(self.now, self.config.limits.ahead, &former)?;
        self.note_touched()?;
        self.commit()?;
        self.report(EventKind::StampedAnew, format!("{count} items"));
        Ok(())
    }

    /// Commits, and keeps a mark of what was issued by then (design, section 11).
    pub(crate) fn commit(&mut self) -> Result<()> {
        self.put_mark()?;
        self.records.commit()?;
        Ok(())
    }
}
