//! What counts as one name: settled between members before they talk, and for the life of a database.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anabranch_engine::{Records, Settings};
use anabranch_member::{Config, Input, Limits, LinkId, Output, Partner, RecoveryPolicy, Replica, Stop};
use anabranch_model::{FolderId, Hlc, Names, ReplicaId};
use anabranch_net::message::Message;
use anabranch_store::MemoryKv;
use anabranch_volume::simulated::{DiskConfig, Mode, SimClock, SimFs};

const START: u64 = 1_700_000_000_000_000;

type Member = Replica<SimFs, MemoryKv>;

fn config(number: u8, names: Names, keep_beside: bool) -> Config {
    Config {
        folder: FolderId([7; 16]),
        folder_name: "web/site".into(),
        member: format!("m{number}"),
        members: vec!["m0".into(), "m1".into()],
        primary: number == 0,
        keep_beside,
        names,
        recovery: RecoveryPolicy::Auto,
        boot: b"boot".to_vec(),
        place: vec![number],
        token: None,
        limits: Limits::default(),
    }
}

fn fresh(number: u8) -> Box<dyn FnMut() -> ReplicaId + Send> {
    let mut next = 0;
    Box::new(move || {
        next += 1;
        ReplicaId([number * 16 + next; 16])
    })
}

/// Two members, each pulling from the other.
struct Pair {
    now: u64,
    clock: SimClock,
    disks: [SimFs; 2],
    members: [Member; 2],
    said: Vec<String>,
    closed: bool,
}

impl Pair {
    fn new(names: [Names; 2], keep_beside: bool, prepare: impl Fn(usize, &SimFs)) -> Self {
        let clock = SimClock::at(START.cast_signed() * 1000);
        let disks = [1, 2].map(|seed| SimFs::new(DiskConfig::default(), clock.clone(), seed));
        disks.iter().enumerate().for_each(|(number, fs)| prepare(number, fs));
        let open = |number: u8| {
            let (fs, rule) = (disks[usize::from(number)].clone(), names[usize::from(number)]);
            let config = config(number, rule, keep_beside);
            Replica::open(fs, MemoryKv::default(), config, fresh(number), Hlc(START), false).unwrap()
        };
        let members = [open(0), open(1)];
        Self { now: START, clock, disks, members, said: Vec::new(), closed: false }
    }

    fn connect(&mut self) {
        for (link, down, up) in [(0, 0, 1), (1, 1, 0)] {
            self.give(up, Input::LinkUp(LinkId(link), Partner::Downstream));
            self.give(down, Input::LinkUp(LinkId(link), Partner::Upstream));
        }
    }

    fn part(&mut self) {
        for member in 0..2 {
            for link in 0..2 {
                self.give(member, Input::LinkDown(LinkId(link)));
            }
        }
    }

    fn give(&mut self, to: usize, input: Input) {
        let mut queue = VecDeque::from([(to, input)]);
        while let Some((to, input)) = queue.pop_front() {
            self.members[to].handle(Hlc(self.now), input).unwrap();
            while let Some(output) = self.members[to].poll() {
                match output {
                    Output::Send(link, envelope) => {
                        queue.push_back((1 - to, Input::Received(link, envelope.message)));
                    }
                    Output::Close(_, reason) => {
                        self.closed = true;
                        self.said.push(reason);
                    }
                    Output::Report(event) => self.said.push(format!("m{to}: {event}")),
                }
            }
        }
    }

    /// Runs until nothing is due within half a minute.
    fn settle(&mut self) {
        for _ in 0..20_000 {
            let mut quiet = true;
            for member in 0..2 {
                let hints = self.disks[member].take_hints();
                if !hints.is_empty() {
                    quiet = false;
                    self.give(member, Input::Hints(hints));
                }
            }
            match self.members.iter().filter_map(Replica::deadline).min() {
                Some(at) if at.0 <= self.now + 30_000_000 => {
                    self.now = self.now.max(at.0) + 1;
                    self.clock.set(self.now.cast_signed() * 1000);
                    (0..2).for_each(|member| self.give(member, Input::Time));
                }
                _ if quiet => return,
                _ => {}
            }
        }
        panic!("does not come to rest: {:?}", self.members.each_ref().map(|m| m.waiting_items(5)));
    }

    /// What users did at one of them is seen, and so much time passes.
    fn pass(&mut self, member: usize, microseconds: u64) {
        let hints = self.disks[member].take_hints();
        self.give(member, Input::Hints(hints));
        self.now += microseconds;
        self.clock.set(self.now.cast_signed() * 1000);
        (0..2).for_each(|member| self.give(member, Input::Time));
    }

    /// Paths in the trees, which must be the same.
    fn paths(&mut self) -> Vec<String> {
        self.settle();
        let [one, two] = self
            .disks
            .each_ref()
            .map(|fs| -> Vec<_> { fs.tree().into_iter().map(|(path, entry)| (path, entry.content)).collect() });
        assert_eq!(one, two, "{:#?}", self.said);
        one.into_iter().map(|(path, _)| String::from_utf8(path).unwrap()).collect()
    }

    fn read(&self, member: usize, path: &str) -> Vec<u8> {
        self.disks[member].read(path.as_bytes()).unwrap().bytes().to_vec()
    }

    fn unseen(&self) -> u64 {
        self.members.iter().map(|member| member.counters().unseen).sum()
    }
}

#[test]
fn members_with_other_rules_do_not_talk() {
    let mut pair = Pair::new([Names::Windows, Names::Bytes], false, |_, fs| fs.write(b"file", b"text").unwrap());
    pair.connect();
    pair.settle();
    assert!(pair.closed);
    let said = pair.said.join("\n");
    assert!(
        said.contains("compares names of web/site as `windows 16.0.0`") && said.contains("m1 as `bytes`"),
        "{said}"
    );
    assert_eq!(pair.members[1].counters().adopted, 0);
}

#[test]
fn members_with_another_table_do_not_talk() {
    let mut pair = Pair::new([Names::Windows; 2], false, |_, _| {});
    pair.give(0, Input::LinkUp(LinkId(0), Partner::Downstream));
    pair.members[1].handle(Hlc(START), Input::LinkUp(LinkId(0), Partner::Upstream)).unwrap();
    let said = std::iter::from_fn(|| pair.members[1].poll());
    let sent =
        said.filter_map(|output| if let Output::Send(link, envelope) = output { Some((link, envelope)) } else { None });
    let (link, envelope) = sent.last().unwrap();
    let Message::Open { member, replica, echo, closed, clock, known, names } = envelope.message else { panic!() };
    assert_eq!(names, "windows 16.0.0");
    let names = "windows 17.0.0".to_owned();
    pair.give(0, Input::Received(link, Message::Open { member, replica, echo, closed, clock, known, names }));
    assert!(pair.closed && pair.said.join("\n").contains("as `windows 17.0.0`"), "{:?}", pair.said);
}

#[test]
fn a_database_keeps_its_rule() {
    let clock = SimClock::at(START.cast_signed() * 1000);
    let fs = SimFs::new(DiskConfig::default(), clock, 1);
    let open = |kv, names| Replica::open(fs.clone(), kv, config(0, names, false), fresh(0), Hlc(START), false);
    let settings = Settings { names: Names::Windows, ..Settings::default() };
    let records = Records::create(MemoryKv::default(), ReplicaId([1; 16]), settings).unwrap();
    let refused = open(records.kv().committed(), Names::Bytes).err().unwrap();
    assert!(matches!(refused, Stop::Names { was: Names::Windows, now: Names::Bytes }), "{refused}");
}

#[test]
fn what_joins_under_another_case_is_adopted() {
    let mut pair = Pair::new([Names::Windows; 2], false, |number, fs| {
        if number == 0 {
            fs.mkdir(b"Docs").unwrap();
            fs.write(b"Docs/Report.txt", b"the report").unwrap();
            fs.write(b"Plan", b"the plan").unwrap();
        } else {
            fs.mkdir(b"docs").unwrap();
            fs.write(b"docs/report.TXT", b"the report").unwrap();
            // Of two the one whose name is the very same counts.
            fs.write(b"PLAN", b"another plan").unwrap();
            fs.write(b"Plan", b"the plan").unwrap();
        }
    });
    pair.connect();
    assert_eq!(pair.paths(), ["Docs", "Docs/Report.txt", "Plan"]);
    assert_eq!(pair.read(1, "Plan"), b"the plan");
    assert_eq!((pair.members[1].counters().adopted, pair.unseen()), (3, 1), "{:#?}", pair.said);
}

#[test]
fn two_files_of_one_name_in_one_directory_become_one_or_stay_beside() {
    for keep_beside in [false, true] {
        let mut pair = Pair::new([Names::Windows; 2], keep_beside, |_, _| {});
        pair.connect();
        pair.settle();
        pair.disks[0].write(b"a", b"the first").unwrap();
        pair.settle();
        pair.disks[0].write(b"A", b"the second").unwrap();
        let paths = pair.paths();
        assert_eq!(paths[0], "A");
        assert_eq!(pair.read(1, "A"), b"the second");
        if keep_beside {
            assert!(paths.len() == 2 && paths[1].starts_with("a-m0-"), "{paths:?}");
            assert_eq!((pair.read(1, &paths[1]), pair.unseen()), (b"the first".to_vec(), 0));
        } else {
            assert_eq!((paths.len(), pair.unseen()), (1, 2), "{:#?}", pair.said);
        }
    }
}

#[test]
fn directories_of_one_name_become_one_and_change_their_case_together() {
    let mut pair = Pair::new([Names::Windows; 2], false, |_, _| {});
    pair.connect();
    pair.settle();
    pair.part();
    pair.disks[0].mkdir(b"docs").unwrap();
    pair.disks[0].write(b"docs/one", b"1").unwrap();
    pair.disks[1].mkdir(b"DOCS").unwrap();
    pair.disks[1].write(b"DOCS/two", b"2").unwrap();
    pair.settle();
    pair.connect();
    let paths = pair.paths();
    let top = paths[0].clone();
    assert_eq!(paths, [top.clone(), format!("{top}/one"), format!("{top}/two")]);
    // Both at once: a change of case, and something new in it.
    pair.disks[1].rename(top.as_bytes(), b"Docs").unwrap();
    pair.disks[0].write(format!("{top}/three").as_bytes(), b"3").unwrap();
    assert_eq!(pair.paths(), ["Docs", "Docs/one", "Docs/three", "Docs/two"]);
    assert_eq!(pair.unseen(), 0);
}

#[test]
fn a_file_saved_anew_under_another_case_is_the_same_file() {
    let mut pair = Pair::new([Names::Windows; 2], false, |number, fs| {
        if number == 0 {
            fs.write(b"Report.txt", b"one").unwrap();
        }
    });
    pair.connect();
    assert_eq!(pair.paths(), ["Report.txt"]);
    pair.part();
    pair.disks[0].remove(b"Report.txt").unwrap();
    pair.settle();
    pair.disks[0].write(b"REPORT.txt", b"two").unwrap();
    pair.disks[1].write(b"Report.txt", b"three").unwrap();
    pair.settle();
    pair.connect();
    // Two edits of one file, not a file and another one.
    assert_eq!(pair.paths(), ["REPORT.txt"]);
    assert_eq!(pair.unseen(), 1, "{:#?}", pair.said);
}

/// What had the name in another spelling is gone, and that is recorded only when it is looked at again.
#[test]
fn a_name_that_was_left_in_another_case_is_free_soon_however_busy_the_one_that_takes_it() {
    let mut pair = Pair::new([Names::Windows; 2], false, |number, fs| {
        if number == 0 {
            fs.write(b"a", b"moved while it is written").unwrap();
            fs.write(b"new", b"takes its place").unwrap();
            fs.mkdir(b"Site").unwrap();
            fs.write(b"Site/plan", b"plan").unwrap();
        }
    });
    pair.connect();
    assert_eq!(pair.paths(), ["Site", "Site/plan", "a", "new"]);
    let retry = Limits::default().retry;
    let user = pair.disks[0].user_open(b"a", Mode::Update).unwrap();
    pair.disks[0].user_put(user, None, b", and more");
    pair.disks[0].rename(b"a", b"b").unwrap();
    pair.pass(0, retry / 10);
    pair.disks[0].rename(b"new", b"b").unwrap();
    pair.disks[0].user_close(user);
    pair.disks[0].rename(b"Site", b"A").unwrap();
    for round in 0..30 {
        pair.disks[0].write(b"A/plan", format!("plan {round}").as_bytes()).unwrap();
        pair.pass(0, retry / 3);
    }
    let there = pair.disks[1].tree().into_keys().map(|path| String::from_utf8(path).unwrap());
    assert_eq!(there.collect::<Vec<_>>(), ["A", "A/plan", "b"], "{:?}", pair.members[0].waiting_items(5));
    assert_eq!(pair.paths(), ["A", "A/plan", "b"]);
}

/// As many bytes, within the tick of the clock in which it was hashed, and before anybody hears of it: its stamp says nothing.
#[test]
fn what_is_written_just_before_a_file_is_taken_out_is_preserved_as_unseen() {
    let mut at = 0;
    loop {
        let calls = Arc::new(AtomicUsize::new(0));
        let mut pair = Pair::new([Names::Windows; 2], false, |number, fs| {
            if number == 0 {
                fs.write(b"A", b"one").unwrap();
                fs.write(b"a", b"one").unwrap();
                let count = Arc::clone(&calls);
                fs.set_interloper_everywhere(Box::new(move |fs, _| {
                    if count.fetch_add(1, Ordering::Relaxed) == at {
                        fs.write(b"A", b"two").unwrap();
                    }
                }));
            }
        });
        pair.connect();
        pair.settle();
        if calls.load(Ordering::Relaxed) <= at {
            assert!(at > 20, "only {at} calls");
            return;
        }
        let shown = pair.disks[0].tree().values().any(|e| e.content.as_ref().is_some_and(|c| c.bytes() == b"two"));
        assert!(
            shown || pair.unseen() > 0,
            "before call {at}: it is preserved as what somebody had replaced knowingly"
        );
        at += 1;
    }
}

/// Two files of one name and with the same bytes: whoever removes the one that keeps the name still sees the other one.
#[test]
fn what_lost_its_name_to_a_file_that_is_removed_meanwhile_is_preserved_as_unseen() {
    let (mut at, mut removed) = (0, 0);
    loop {
        let [calls, both] = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
        let mut pair = Pair::new([Names::Windows; 2], false, |number, fs| {
            if number == 0 {
                fs.write(b"A", b"one").unwrap();
                fs.write(b"a", b"one").unwrap();
                let (count, both) = (Arc::clone(&calls), Arc::clone(&both));
                fs.set_interloper_everywhere(Box::new(move |fs, _| {
                    if count.fetch_add(1, Ordering::Relaxed) == at && fs.exists(b"A") && fs.exists(b"a") {
                        fs.remove(b"a").unwrap();
                        both.store(1, Ordering::Relaxed);
                    }
                }));
            }
        });
        pair.connect();
        pair.settle();
        if calls.load(Ordering::Relaxed) <= at {
            assert!(removed > 20, "only before {removed} calls were both there");
            return;
        }
        if both.load(Ordering::Relaxed) > 0 {
            removed += 1;
            let kept = pair.disks[0].exists(b"A") || pair.unseen() > 0;
            assert!(kept, "before call {at}: it is preserved as what somebody had removed knowingly");
        }
        at += 1;
    }
}
