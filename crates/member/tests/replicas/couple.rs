//! Two members on simulated disks, wired directly; the second pulls from the first, message by message, and can be ended at
//! any of them.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use anabranch_engine::MemoryKv;
use anabranch_engine::kv::{Kv, KvError, Pair, Table};
use anabranch_member::{Config, Event, Input, Limits, LinkId, Output, Partner, RecoveryPolicy, Replica};
use anabranch_model::{Content, FolderId, Hlc, Names, ReplicaId, Uid};
use anabranch_net::message::{Message, Piece};
use anabranch_volume::simulated::{DiskConfig, Power, SimClock, SimFs, Thing};
use anabranch_volume::watch::Hint;

const START: u64 = 1_700_000_000_000_000;
/// A database that outlives its replica; what was not committed does not.
#[derive(Clone)]
pub(crate) struct Database {
    kv: Rc<RefCell<MemoryKv>>,
    power: Power,
    /// Pages of records that were read.
    pub(crate) pages: Rc<Cell<usize>>,
}

impl Database {
    fn new(fs: &SimFs) -> Self {
        Self { kv: Rc::default(), power: fs.power(), pages: Rc::default() }
    }

    pub(crate) fn committed(&self) -> Self {
        let committed = self.kv.borrow().committed();
        Self { kv: Rc::new(RefCell::new(committed)), power: self.power.clone(), pages: Rc::clone(&self.pages) }
    }
}

impl Kv for Database {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        self.kv.borrow().get(table, key)
    }
    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), KvError> {
        self.kv.borrow_mut().put(table, key, value)
    }
    fn delete(&mut self, table: Table, key: &[u8]) -> Result<(), KvError> {
        self.kv.borrow_mut().delete(table, key)
    }
    fn range(&self, table: Table, from: &[u8], to: Option<&[u8]>, limit: usize) -> Result<Vec<Pair>, KvError> {
        self.pages.set(self.pages.get() + usize::from(table == Table::Records));
        self.kv.borrow().range(table, from, to, limit)
    }
    fn last(&self, table: Table) -> Result<Option<Pair>, KvError> {
        self.kv.borrow().last(table)
    }
    fn begin(&mut self) -> Result<(), KvError> {
        self.kv.borrow_mut().begin()
    }
    fn commit(&mut self) -> Result<(), KvError> {
        if !self.power.step() {
            return Err(KvError::failed("commit", "the power is off"));
        }
        self.kv.borrow_mut().commit()
    }
    fn rollback(&mut self) -> Result<(), KvError> {
        self.kv.borrow_mut().rollback()
    }
}

pub(crate) struct Member {
    pub(crate) fs: SimFs,
    pub(crate) database: Database,
    pub(crate) replica: Option<Replica<SimFs, Database>>,
    lives: u8,
    /// How often the machine was started: with every life, unless somebody takes that back.
    pub(crate) boots: u8,
}

/// Two members; the second pulls a large file from the first, message by message.
pub(crate) struct Couple {
    pub(crate) now: u64,
    clock: SimClock,
    pub(crate) members: [Member; 2],
    pub(crate) queue: VecDeque<(usize, Input)>,
    link: u64,
    /// Messages with pieces that the second has taken in.
    pub(crate) pieces: usize,
    /// One bit of the first piece that comes is wrong.
    pub(crate) spoil: bool,
    /// Hints say in which directory something may have changed, and no more, as merged ones do.
    pub(crate) merged: bool,
    /// Machine and file system of each.
    pub(crate) places: [u8; 2],
    names: Names,
    /// Daemons die, and machines stay up.
    pub(crate) same_boot: bool,
    /// What they reported, and who.
    pub(crate) reports: Vec<(usize, Event)>,
}

impl Couple {
    /// The disk of the second is configured so; `prepare` fills the first one's.
    pub(crate) fn new(limits: Limits, second: DiskConfig, prepare: impl Fn(&SimFs)) -> Self {
        Self::with_names(Names::Bytes, limits, second, prepare)
    }

    /// The same, with another rule for names.
    pub(crate) fn with_names(names: Names, limits: Limits, second: DiskConfig, prepare: impl Fn(&SimFs)) -> Self {
        // `ANABRANCH_LOG=debug` prints what the members do.
        let filter = tracing_subscriber::EnvFilter::from_env("ANABRANCH_LOG");
        drop(tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().without_time().try_init());
        let clock = SimClock::at(START as i64 * 1000);
        let members = [0, 1].map(|i| {
            let config = if i == 0 { DiskConfig::default() } else { second.clone() };
            let fs = SimFs::new(config, clock.clone(), i);
            if i == 0 {
                prepare(&fs);
            }
            Member { database: Database::new(&fs), fs, replica: None, lives: 0, boots: 0 }
        });
        let mut couple = Self {
            now: START,
            clock,
            members,
            queue: VecDeque::new(),
            link: 0,
            pieces: 0,
            spoil: false,
            merged: false,
            places: [0, 1],
            names,
            same_boot: false,
            reports: Vec::new(),
        };
        couple.open(0, limits);
        couple.open(1, limits);
        couple
    }

    pub(crate) fn open(&mut self, at: usize, limits: Limits) {
        let place = self.places[at];
        let member = &mut self.members[at];
        member.lives += 1;
        member.boots += 1;
        let config = Config {
            folder: FolderId([7; 16]),
            folder_name: "web/site".into(),
            member: format!("m{at}"),
            members: vec!["m0".into(), "m1".into()],
            primary: at == 0,
            keep_beside: false,
            names: self.names,
            recovery: RecoveryPolicy::Auto,
            boot: vec![if self.same_boot { 1 } else { member.boots }],
            place: vec![place],
            token: None,
            limits,
        };
        let mut next = member.lives * 16;
        let fresh = Box::new(move || {
            next += 1;
            ReplicaId([u8::try_from(at).unwrap() * 128 + next; 16])
        });
        let (fs, database) = (member.fs.clone(), member.database.clone());
        member.replica = Some(Replica::open(fs, database, config, fresh, Hlc(self.now), false).unwrap());
    }

    pub(crate) fn connect(&mut self) {
        self.link += 1;
        self.queue.clear();
        for (at, partner) in [(0, Partner::Downstream), (1, Partner::Upstream)] {
            self.queue.push_back((at, Input::LinkUp(LinkId(self.link), partner)));
        }
    }

    /// Users change the first one's tree, which records one change before the next is made.
    pub(crate) fn change(&mut self, changes: &[Change<'_>]) {
        for change in changes {
            change(&self.members[0].fs);
            let hints = self.members[0].fs.take_hints();
            self.queue.push_back((0, Input::Hints(hints)));
            let rest = (0..20_000).any(|_| !self.step());
            assert!(rest, "the first one does not come to rest");
        }
    }

    /// Both hear of what happened in their trees.
    pub(crate) fn hear(&mut self) {
        for (at, member) in self.members.iter().enumerate() {
            let mut hints = member.fs.take_hints();
            for hint in hints.iter_mut().filter(|_| self.merged) {
                if let Hint::Entry { directory, .. } = hint {
                    *hint = Hint::Directory { directory: directory.clone() };
                }
            }
            if !hints.is_empty() {
                self.queue.push_back((at, Input::Hints(hints)));
            }
        }
    }

    /// The disks' clock shows what time it is.
    pub(crate) fn tell_time(&self) {
        self.clock.set(self.now as i64 * 1000);
    }

    /// The link between them ends.
    pub(crate) fn disconnect(&mut self) {
        self.queue.clear();
        self.queue.extend([0, 1].map(|at| (at, Input::LinkDown(LinkId(self.link)))));
    }

    /// Takes one message in, or lets time pass to whatever is due. `false`: nothing is under way within a minute.
    pub(crate) fn step(&mut self) -> bool {
        let (to, mut input) = match self.queue.pop_front() {
            Some(next) => next,
            None => {
                let due = |m: &Member| m.replica.as_ref().and_then(Replica::deadline);
                let Some((at, to)) = (0..2).filter_map(|i| due(&self.members[i]).map(|at| (at, i))).min() else {
                    return false;
                };
                if at.0 > self.now + 60_000_000 {
                    return false;
                }
                self.now = self.now.max(at.0) + 1;
                self.tell_time();
                (to, Input::Time)
            }
        };
        if let Input::Received(_, Message::Pieces { pieces, .. }) = &mut input {
            self.pieces += 1;
            if let (true, Some(Piece::Data(bytes))) = (std::mem::take(&mut self.spoil), pieces.first_mut()) {
                let mut wrong = bytes.to_vec();
                wrong[0] ^= 1;
                *bytes = wrong.into();
            }
        }
        let Some(replica) = &mut self.members[to].replica else { return true };
        if let Err(stop) = replica.handle(Hlc(self.now), input) {
            assert!(!self.members[to].fs.power().is_on(), "{stop}");
            self.members[to].replica = None;
            return true;
        }
        if !self.members[to].fs.power().is_on() {
            // It took the failing calls for errors of the disk and would try again for ever.
            self.members[to].replica = None;
            return true;
        }
        while let Some(output) = replica.poll() {
            match output {
                Output::Send(link, envelope) => {
                    self.queue.push_back((1 - to, Input::Received(link, envelope.message)));
                }
                Output::Report(event) => self.reports.push((to, event)),
                Output::Close(..) => {}
            }
        }
        true
    }

    /// The daemon of the second member dies, and is started again.
    pub(crate) fn restart(&mut self, limits: Limits) {
        self.restart_at(1, limits);
    }

    /// The daemon of one of them dies, and is started again.
    pub(crate) fn restart_at(&mut self, at: usize, limits: Limits) {
        self.members[at].replica = None;
        self.members[at].database = self.members[at].database.committed();
        let down = Input::LinkDown(LinkId(self.link));
        self.members[1 - at].replica.as_mut().unwrap().handle(Hlc(self.now), down).unwrap();
        self.open(at, limits);
        self.connect();
    }
}

/// Paths with their modes, and contents.
fn shown(fs: &SimFs) -> BTreeMap<String, (u32, Option<String>)> {
    let text = |bytes: &[u8]| bytes.escape_ascii().to_string();
    let content = |thing: &Thing| text(thing.bytes());
    fs.tree().into_iter().map(|(path, e)| (text(&path), (e.attributes.mode, e.content.as_ref().map(content)))).collect()
}

/// Until neither has anything to do, or the second one died.
pub(crate) fn settle(couple: &mut Couple) {
    for _ in 0..20_000 {
        if couple.members[1].replica.is_none() {
            return;
        }
        couple.hear();
        let idle = couple.queue.is_empty();
        let settled = |m: &Member| m.replica.as_ref().is_some_and(|r| r.settled().unwrap());
        if idle && couple.members.iter().all(settled) && couple.members[1].replica.as_ref().unwrap().pulled() {
            return;
        }
        couple.step();
    }
    panic!("it does not come to rest: {:?}", couple.members[1].replica.as_ref().unwrap().waiting_items(9));
}

/// Both trees are one, and the second one issued nothing for it: what it did by itself is nobody's change.
pub(crate) fn expect_equal(couple: &Couple, when: &str) {
    let [one, two] = &couple.members;
    assert_eq!(shown(&two.fs), shown(&one.fs), "{when}");
    let replica = two.replica.as_ref().unwrap();
    assert!(replica.records().known().sequence(replica.replica_id()).0 == 0, "{when}: the second issued versions");
    assert_eq!(replica.counters().unseen, 0, "{when}");
}

/// The second one's records say what is in its tree.
pub(crate) fn expect_known(couple: &Couple, when: &str) {
    let second = &couple.members[1];
    let records = second.replica.as_ref().unwrap().records();
    for (path, entry) in second.fs.tree() {
        let Some(content) = entry.content else { continue };
        let mut at = Uid::ROOT;
        for name in path.split(|&byte| byte == b'/') {
            at = records.shown_at(at, name).unwrap().unwrap_or_else(|| panic!("{when}: {name:?} is not recorded"));
        }
        let recorded = records.record(at).unwrap().unwrap().content.unwrap().value;
        let Content::File { hash, .. } = recorded else { panic!("{when}: {recorded:?}") };
        assert_eq!(hash, *blake3::hash(content.bytes()).as_bytes(), "{when}: {}", content.bytes().escape_ascii());
    }
}

/// A user's change of a tree.
pub(crate) type Change<'a> = &'a dyn Fn(&SimFs);

/// The second one follows changes of the first, each of which was recorded before the next was made; its process dies, or
/// its power is cut, after each step of its disk and its database once; there are more than so many.
///
/// While it is down the first one changes more.
pub(crate) fn crash_at_every_step(
    start: impl Fn() -> Couple,
    changes: &[Change<'_>],
    meanwhile: &[Change<'_>],
    least: u64,
    power_cut: bool,
) {
    let mut steps = 0;
    loop {
        let mut couple = start();
        settle(&mut couple);
        couple.disconnect();
        couple.change(changes);
        couple.connect();
        couple.members[1].fs.power().cut_after(steps);
        settle(&mut couple);
        let died = couple.members[1].replica.take().is_none() || !couple.members[1].fs.power().is_on();
        if power_cut {
            drop(couple.members[1].fs.crash(steps));
        } else {
            couple.members[1].fs.process_died();
        }
        couple.members[1].replica = None;
        couple.disconnect();
        couple.change(meanwhile);
        couple.restart(Limits::default());
        settle(&mut couple);
        expect_equal(&couple, &format!("power cut: {power_cut}, after step {steps}"));
        if !died {
            break;
        }
        steps += 1;
    }
    assert!(steps > least, "only {steps} steps");
}
