//! A large file on its way while the daemon dies, loses power, or finds something else in its private file.

#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use anabranch_engine::MemoryKv;
use anabranch_engine::kv::{Kv, KvError, Pair, Table};
use anabranch_member::{Config, Input, Limits, LinkId, Output, Partner, RecoveryPolicy, Replica};
use anabranch_model::{FolderId, Hlc, ReplicaId};
use anabranch_net::message::{Message, Piece};
use anabranch_volume::fs::Fs;
use anabranch_volume::layout;
use anabranch_volume::simulated::{DiskConfig, SimClock, SimFs};

const START: u64 = 1_700_000_000_000_000;
const MIB: u64 = 1 << 20;
const SIZE: u64 = 12 * MIB;

/// A database that outlives its replica; what was not committed does not.
#[derive(Clone, Default)]
struct Database(Rc<RefCell<MemoryKv>>);

impl Kv for Database {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        self.0.borrow().get(table, key)
    }
    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), KvError> {
        self.0.borrow_mut().put(table, key, value)
    }
    fn delete(&mut self, table: Table, key: &[u8]) -> Result<(), KvError> {
        self.0.borrow_mut().delete(table, key)
    }
    fn range(&self, table: Table, from: &[u8], to: Option<&[u8]>, limit: usize) -> Result<Vec<Pair>, KvError> {
        self.0.borrow().range(table, from, to, limit)
    }
    fn last(&self, table: Table) -> Result<Option<Pair>, KvError> {
        self.0.borrow().last(table)
    }
    fn begin(&mut self) -> Result<(), KvError> {
        self.0.borrow_mut().begin()
    }
    fn commit(&mut self) -> Result<(), KvError> {
        self.0.borrow_mut().commit()
    }
    fn rollback(&mut self) -> Result<(), KvError> {
        self.0.borrow_mut().rollback()
    }
}

struct Member {
    fs: SimFs,
    database: Database,
    replica: Option<Replica<SimFs, Database>>,
    lives: u8,
}

/// Two members; the second pulls a large file from the first, message by message.
struct Couple {
    now: u64,
    clock: SimClock,
    members: [Member; 2],
    queue: VecDeque<(usize, Input)>,
    link: u64,
    /// Messages with pieces that the second has taken in.
    pieces: usize,
    /// One bit of the first piece that comes is wrong.
    spoil: bool,
}

fn limits() -> Limits {
    Limits { note_bytes: MIB, note_every: 0, ..Limits::default() }
}

fn content() -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(SIZE).unwrap()];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

impl Couple {
    fn new(limits: Limits, small: &[&[u8]]) -> Self {
        let clock = SimClock::at(START as i64 * 1000);
        let members = [0, 1].map(|i| {
            let fs = SimFs::new(DiskConfig::default(), clock.clone(), i);
            if i == 0 {
                for name in small {
                    fs.write(name, b"small").unwrap();
                }
                fs.write(b"big", &content()).unwrap();
            }
            Member { fs, database: Database::default(), replica: None, lives: 0 }
        });
        let mut couple = Self { now: START, clock, members, queue: VecDeque::new(), link: 0, pieces: 0, spoil: false };
        couple.open(0, limits);
        couple.open(1, limits);
        couple
    }

    fn open(&mut self, at: usize, limits: Limits) {
        let member = &mut self.members[at];
        member.lives += 1;
        let config = Config {
            folder: FolderId([7; 16]),
            folder_name: "web/site".into(),
            member: format!("m{at}"),
            members: vec!["m0".into(), "m1".into()],
            primary: at == 0,
            keep_beside: false,
            names: anabranch_model::Names::Bytes,
            recovery: RecoveryPolicy::Auto,
            boot: vec![member.lives],
            place: vec![u8::try_from(at).unwrap()],
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

    fn connect(&mut self) {
        self.link += 1;
        self.queue.clear();
        for (at, partner) in [(0, Partner::Downstream), (1, Partner::Upstream)] {
            self.queue.push_back((at, Input::LinkUp(LinkId(self.link), partner)));
        }
    }

    /// Takes one message in, or lets time pass to whatever is due. `false`: nothing is under way within a minute.
    fn step(&mut self) -> bool {
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
                self.clock.set(self.now as i64 * 1000);
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
        replica.handle(Hlc(self.now), input).unwrap();
        while let Some(output) = replica.poll() {
            if let Output::Send(link, envelope) = output {
                self.queue.push_back((1 - to, Input::Received(link, envelope.message)));
            }
        }
        true
    }

    /// Until so many messages with pieces have come in all.
    fn until_pieces(&mut self, count: usize) {
        while self.pieces < count {
            assert!(self.step(), "nothing is under way after {} messages with pieces", self.pieces);
        }
    }

    fn until_installed(&mut self) {
        for _ in 0..100_000 {
            if self.members[1].fs.exists(b"big") && self.members[1].replica.as_ref().unwrap().settled().unwrap() {
                assert!(self.members[1].fs.read(b"big").unwrap().bytes() == content(), "another content");
                // The row has gone with it.
                assert!(self.members[1].database.range(Table::Staged, &[], None, 9).unwrap().is_empty());
                return;
            }
            assert!(self.step(), "it does not come");
        }
        panic!("it does not come to an end");
    }

    /// The daemon of the second member dies, and is started again.
    fn restart(&mut self, limits: Limits) {
        self.members[1].replica = None;
        let committed = self.members[1].database.0.borrow().committed();
        self.members[1].database = Database(Rc::new(RefCell::new(committed)));
        let (link, now) = (LinkId(self.link), Hlc(self.now));
        self.members[0].replica.as_mut().unwrap().handle(now, Input::LinkDown(link)).unwrap();
        self.open(1, limits);
        self.connect();
    }

    fn counters(&self) -> (u64, u64) {
        let counters = self.members[1].replica.as_ref().unwrap().counters();
        (counters.resumed, counters.content_received)
    }

    /// The private file of the one content on its way.
    fn private_name(&self) -> Vec<u8> {
        let fs = &self.members[1].fs;
        let names: Vec<_> = fs.list(&self.staging()).unwrap().into_iter().map(|e| e.name).collect();
        assert_eq!(names.len(), 1, "{names:?}");
        names.into_iter().next().unwrap()
    }

    fn staging(&self) -> <SimFs as Fs>::Dir {
        let fs = &self.members[1].fs;
        let top = fs.open_dir(&fs.root(), layout::PRIVATE_DIR).unwrap();
        fs.open_dir(&top, layout::STAGING).unwrap()
    }
}

#[test]
fn a_large_file_goes_on_after_the_daemon_died() {
    let mut couple = Couple::new(limits(), &[]);
    couple.connect();
    couple.until_pieces(8);
    couple.members[1].fs.process_died();
    couple.restart(limits());
    couple.until_installed();
    assert_eq!(couple.counters(), (8 * MIB, SIZE - 8 * MIB));
}

#[test]
fn one_that_was_complete_is_not_fetched_again() {
    let mut couple = Couple::new(limits(), &[]);
    couple.connect();
    // The last piece came, and somebody keeps the daemon from its install.
    couple.until_pieces(11);
    couple.members[1].replica.as_mut().unwrap().close().unwrap();
    couple.members[1].fs.process_died();
    couple.restart(limits());
    couple.until_installed();
    assert_eq!(couple.counters(), (11 * MIB, MIB));
}

#[test]
fn after_a_power_cut_only_what_is_still_there_counts() {
    let mut resumed = 0;
    for seed in 0..40 {
        let mut couple = Couple::new(limits(), &[]);
        couple.connect();
        couple.until_pieces(9);
        if seed % 2 == 0 {
            couple.members[1].fs.write_back(true);
        }
        couple.members[1].replica = None;
        drop(couple.members[1].fs.crash(seed));
        couple.restart(limits());
        couple.until_installed();
        let (kept, received) = couple.counters();
        assert_eq!(kept + received, SIZE, "seed {seed}");
        resumed += u64::from(kept > 0);
    }
    assert!(resumed > 0, "no power cut left anything");
}

#[test]
fn what_was_changed_meanwhile_is_fetched_from_there_on() {
    let mut couple = Couple::new(limits(), &[]);
    couple.connect();
    couple.until_pieces(8);
    couple.members[1].fs.process_died();
    let (fs, staging, name) = (couple.members[1].fs.clone(), couple.staging(), couple.private_name());
    let file = fs.open_private(&staging, &name).unwrap();
    fs.write_at(&file, b"garbage", 5 * MIB + 17).unwrap();
    // What comes may have holes: nothing may be left behind the point at which it goes on.
    fs.write_at(&file, &[7; 4096], 8 * MIB).unwrap();
    drop(file);
    couple.restart(limits());
    couple.until_installed();
    assert_eq!(couple.counters(), (5 * MIB, SIZE - 5 * MIB));
}

#[test]
fn where_the_whole_is_wrong_it_begins_again_once() {
    let mut couple = Couple::new(limits(), &[]);
    couple.connect();
    couple.spoil = true;
    couple.until_pieces(8);
    couple.members[1].fs.process_died();
    couple.restart(limits());
    couple.until_installed();
    // The rest, found wrong with what was kept; then all of it.
    assert_eq!(couple.counters(), (8 * MIB, SIZE - 8 * MIB + SIZE));
}

#[test]
fn what_nobody_wants_any_more_is_removed_at_the_start() {
    let mut couple = Couple::new(limits(), &[]);
    couple.connect();
    couple.until_pieces(4);
    let name = couple.private_name();
    couple.members[1].replica = None;
    couple.members[1].fs.process_died();
    // Another file has its place: as if the row were about something of long ago.
    let (fs, staging) = (couple.members[1].fs.clone(), couple.staging());
    fs.remove_file(&staging, &name).unwrap();
    fs.create_file(&staging, &name).unwrap();
    couple.open(1, limits());
    assert!(fs.list(&staging).unwrap().is_empty());
    assert!(couple.members[1].database.range(Table::Staged, &[], None, 9).unwrap().is_empty());
}

#[test]
fn what_was_begun_comes_first_and_counts_towards_the_quota() {
    let limits = Limits { staging_bytes: 13 * MIB, ..limits() };
    let mut couple = Couple::new(limits, &[b"another"]);
    couple.connect();
    couple.until_pieces(2);
    // Its row stands before the other's, and the quota is for one of them at a time.
    couple.members[0].fs.write(b"another", &content()[..7 << 20]).unwrap();
    let hints = couple.members[0].fs.take_hints();
    couple.queue.push_back((0, Input::Hints(hints)));
    couple.until_pieces(9);
    couple.members[1].fs.process_died();
    couple.restart(limits);
    let (fs, staging) = (couple.members[1].fs.clone(), couple.staging());
    let mut most = 0;
    while !(fs.read(b"big").is_ok() && fs.read(b"another").is_ok_and(|c| c.bytes().len() == 7 << 20)) {
        let sizes = fs.list(&staging).unwrap().into_iter().map(|e| fs.stat(&staging, &e.name).unwrap().unwrap());
        let sum: u64 = sizes.map(|s| s.stamp.size).sum();
        most = most.max(sum);
        assert!(couple.step(), "they do not come");
    }
    assert!(most <= 13 * MIB, "{most} bytes in staging");
    assert!(couple.counters().0 >= 8 * MIB, "{:?}", couple.counters());
}
