//! Three replicas on simulated disks, wired directly: the thin path, before the simulator's storms.

use std::collections::VecDeque;

use anabranch_member::{Config, Input, Limits, LinkId, Output, Partner, RecoveryPolicy, Replica};
use anabranch_model::{FolderId, Hlc, Names, ReplicaId};
use anabranch_net::message::{Message, Want};
use anabranch_store::MemoryKv;
use anabranch_volume::simulated::{Call, DiskConfig, Fault, Faults, Mode, SimClock, SimFs, Tree};
use anabranch_volume::watch::Hint;

pub(crate) struct Member {
    pub(crate) fs: SimFs,
    pub(crate) replica: Replica<SimFs, MemoryKv>,
}

impl Member {
    /// The member `m{i}` with an empty database; it takes the replica ids after `ids`.
    fn open(i: u8, fs: SimFs, mut ids: u8, limits: Limits, now: u64) -> Self {
        let config = Config {
            folder: FolderId([7; 16]),
            folder_name: "web/site".into(),
            member: format!("m{i}"),
            members: (0..3).map(|i| format!("m{i}")).collect(),
            primary: i == 0,
            keep_beside: false,
            names: Names::default(),
            recovery: RecoveryPolicy::Auto,
            boot: b"boot".to_vec(),
            place: vec![i],
            token: None,
            limits,
        };
        let fresh = Box::new(move || {
            ids += 1;
            ReplicaId([i * 16 + ids; 16])
        });
        let replica = Replica::open(fs.clone(), MemoryKv::default(), config, fresh, Hlc(now), false).unwrap();
        Self { fs, replica }
    }
}

pub(crate) struct World {
    now: u64,
    clock: SimClock,
    pub(crate) members: Vec<Member>,
    /// (link, downstream, upstream)
    links: Vec<(u64, usize, usize)>,
    events: Vec<String>,
    /// On these links pieces are under way until somebody takes them from [`Self::held`].
    pub(crate) hold: Vec<LinkId>,
    /// Who is to get which pieces on which link.
    pub(crate) held: Vec<(usize, LinkId, Message)>,
    /// What was asked for, and on which link.
    pub(crate) asked: Vec<(LinkId, Want)>,
}

const START: u64 = 1_700_000_000_000_000;

impl World {
    pub(crate) fn new(pairs: &[(usize, usize)], prepare: impl Fn(usize, &SimFs)) -> Self {
        Self::with_limits(pairs, Limits::default(), prepare)
    }

    pub(crate) fn with_limits(pairs: &[(usize, usize)], limits: Limits, prepare: impl Fn(usize, &SimFs)) -> Self {
        let clock = SimClock::at(START as i64 * 1000);
        let members = (0..3u8)
            .map(|i| {
                let fs = SimFs::new(DiskConfig::default(), clock.clone(), u64::from(i) + 1);
                prepare(usize::from(i), &fs);
                Member::open(i, fs, 0, limits, START)
            })
            .collect();
        let links = pairs.iter().enumerate().map(|(at, &(d, u))| (at as u64, d, u)).collect();
        let mut world = Self {
            now: START,
            clock,
            members,
            links,
            events: Vec::new(),
            hold: Vec::new(),
            held: Vec::new(),
            asked: Vec::new(),
        };
        for (link, down, up) in world.links.clone() {
            world.give(up, Input::LinkUp(LinkId(link), Partner::Downstream));
            world.give(down, Input::LinkUp(LinkId(link), Partner::Upstream));
        }
        world
    }

    pub(crate) fn give(&mut self, to: usize, input: Input) {
        let mut queue = VecDeque::from([(to, input)]);
        while let Some((to, input)) = queue.pop_front() {
            self.members[to].replica.handle(Hlc(self.now), input).unwrap();
            while let Some(output) = self.members[to].replica.poll() {
                match output {
                    Output::Send(link, envelope) => {
                        let message: Message = envelope.message;
                        let &(_, down, up) = self.links.iter().find(|l| l.0 == link.0).unwrap();
                        let other = if to == down { up } else { down };
                        if let Message::Fetch { wants, .. } = &message {
                            self.asked.extend(wants.iter().map(|want| (link, want.clone())));
                        }
                        if self.hold.contains(&link) && matches!(message, Message::Pieces { .. }) {
                            self.held.push((other, link, message));
                        } else {
                            queue.push_back((other, Input::Received(link, message)));
                        }
                    }
                    Output::Close(link, reason) => panic!("link {} closed: {reason}", link.0),
                    Output::Report(event) => self.events.push(format!("m{to}: {event}")),
                }
            }
        }
    }

    /// All links of a member come up, or go down.
    fn link(&mut self, member: usize, up: bool) {
        for (link, down, upstream) in self.links.clone() {
            for (at, role) in [(upstream, Partner::Downstream), (down, Partner::Upstream)] {
                if down == member || upstream == member {
                    let id = LinkId(link);
                    self.give(at, if up { Input::LinkUp(id, role) } else { Input::LinkDown(id) });
                }
            }
        }
    }

    /// Runs for so many seconds, whatever is due then.
    pub(crate) fn run(&mut self, seconds: u64) {
        let until = self.now + seconds * 1_000_000;
        while self.now < until {
            self.now += 100_000;
            self.clock.set(self.now as i64 * 1000);
            for at in 0..self.members.len() {
                let hints = self.members[at].fs.take_hints();
                self.give(at, if hints.is_empty() { Input::Time } else { Input::Hints(hints) });
            }
        }
    }

    /// Runs until nothing is due within a minute.
    pub(crate) fn settle(&mut self) {
        for _ in 0..20_000 {
            let mut quiet = true;
            for at in 0..self.members.len() {
                let hints: Vec<Hint> = self.members[at].fs.take_hints();
                if !hints.is_empty() {
                    quiet = false;
                    self.give(at, Input::Hints(hints));
                }
            }
            let due = self.members.iter().filter_map(|m| m.replica.deadline()).min();
            match due {
                Some(at) if at.0 <= self.now + 30_000_000 => {
                    self.now = self.now.max(at.0) + 1;
                    self.clock.set(self.now as i64 * 1000);
                    for member in 0..self.members.len() {
                        if self.members[member].replica.deadline().is_some_and(|d| d.0 <= self.now) {
                            self.give(member, Input::Time);
                        }
                    }
                }
                _ if quiet => return,
                _ => {}
            }
        }
        panic!(
            "does not come to rest: {:?}",
            self.members.iter().map(|m| m.replica.waiting_items(5)).collect::<Vec<_>>()
        );
    }

    pub(crate) fn equal(&mut self) {
        self.settle();
        let tree = brief(&self.members[0].fs.tree());
        for (at, member) in self.members.iter().enumerate() {
            assert_eq!(brief(&member.fs.tree()), tree, "m{at} differs from m0; events: {:#?}", self.events);
            assert!(member.replica.settled().unwrap(), "m{at} is not settled");
        }
    }

    fn unseen(&self) -> u64 {
        self.members.iter().map(|m| m.replica.counters().unseen).sum()
    }
}

/// A line for each entry; a directory's mtime triggers nothing, so it is left out.
fn brief(tree: &Tree) -> Vec<String> {
    tree.iter()
        .map(|(path, entry)| {
            let content =
                entry.content.as_ref().map(|c| (c.bytes().len(), blake3::hash(c.bytes()).to_hex()[..8].to_owned()));
            let mtime = content.as_ref().map(|_| entry.mtime);
            format!("{} {:?} {content:?} {mtime:?} {:?}", path.escape_ascii(), entry.kind, entry.attributes)
        })
        .collect()
}

pub(crate) const MESH: &[(usize, usize)] = &[(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)];
const CHAIN: &[(usize, usize)] = &[(0, 1), (1, 0), (1, 2), (2, 1)];

#[test]
fn written_edited_renamed_deleted() {
    for links in [MESH, CHAIN] {
        let mut w = World::new(links, |i, fs| {
            if i == 0 {
                fs.mkdir(b"docs").unwrap();
                fs.write(b"docs/plan", b"one").unwrap();
                fs.write(b"big", &vec![7; 3 << 20]).unwrap();
            }
        });
        w.equal();
        assert!(w.members[2].fs.read(b"docs/plan").is_ok());
        w.members[1].fs.write(b"docs/plan", b"two").unwrap();
        w.equal();
        assert_eq!(w.members[2].fs.read(b"docs/plan").unwrap().bytes(), b"two");
        w.members[2].fs.rename(b"docs", b"papers").unwrap();
        w.equal();
        assert!(w.members[0].fs.exists(b"papers/plan"));
        assert!(!w.members[0].fs.exists(b"docs"));
        w.members[0].fs.swap(b"papers", b"big").unwrap();
        w.equal();
        w.members[0].fs.remove_tree(b"big").unwrap();
        w.equal();
        assert!(!w.members[2].fs.exists(b"big"));
        assert_eq!(w.unseen(), 0, "{:#?}", w.events);
        w.members[0].fs.chmod(b"papers", 0o600).unwrap();
        w.members[1].fs.symlink(b"link", b"papers").unwrap();
        w.equal();
    }
}

#[test]
fn a_conflict_is_preserved() {
    let mut w = World::new(MESH, |i, fs| {
        if i == 0 {
            fs.write(b"plan", b"one").unwrap();
        }
    });
    w.equal();
    w.members[0].fs.write(b"plan", b"mine").unwrap();
    w.members[1].fs.write(b"plan", b"yours").unwrap();
    w.equal();
    assert!(w.unseen() >= 1);
    w.members[0].fs.write(b"new", b"mine").unwrap();
    w.members[1].fs.write(b"new", b"yours").unwrap();
    let before = w.unseen();
    w.equal();
    assert!(w.unseen() > before);
}

#[test]
fn what_is_there_before_is_adopted_or_preserved() {
    let mut w = World::new(MESH, |i, fs| {
        fs.mkdir(b"docs").unwrap();
        fs.write(b"docs/same", b"same").unwrap();
        fs.write(b"docs/differs", format!("m{i}").as_bytes()).unwrap();
        fs.write(format!("only-{i}").as_bytes(), b"x").unwrap();
    });
    w.equal();
    assert_eq!(w.members[2].fs.read(b"docs/differs").unwrap().bytes(), b"m0");
    assert!(!w.members[0].fs.exists(b"only-1"));
    assert_eq!(w.unseen(), 4, "two that differ, two that only others had: {:#?}", w.events);
    assert_eq!(w.members[1].replica.counters().content_received, 3, "`m0`, and `x` of only-0");
}

/// The primary comes later, with these links. The two others hold the same tree, and nothing of it from anybody.
fn joined_by_the_primary_later(links: &[(usize, usize)]) {
    let mut w = World::new(&[(1, 2), (2, 1)], |_, fs| {
        fs.mkdir(b"docs").unwrap();
        fs.write(b"docs/same", b"same").unwrap();
    });
    w.run(60);
    for member in &w.members[1..] {
        assert!(member.fs.exists(b"docs/same"), "{:#?}", w.events);
    }
    w.links.extend(links.iter().enumerate().map(|(at, &(down, up))| (10 + at as u64, down, up)));
    w.link(0, true);
    w.equal();
    assert_eq!(w.unseen(), 0, "{:#?}", w.events);
    for member in &w.members[1..] {
        assert_eq!(member.replica.counters().content_received, 0);
        assert_eq!(member.fs.read(b"docs/same").unwrap().bytes(), b"same");
    }
}

/// Neither takes what the other one lacks so far for what nobody else has.
#[test]
fn two_that_join_wait_for_somebody_who_has_joined() {
    joined_by_the_primary_later(&[(0, 1), (1, 0), (0, 2), (2, 0)]);
}

/// As in a chain: the only partner joins itself, and says when it has done so.
#[test]
fn who_joins_over_somebody_who_joins_goes_on_once_that_one_has_joined() {
    joined_by_the_primary_later(&[(0, 1), (1, 0)]);
}

#[test]
fn a_tree_of_many_steps_is_adopted_without_transfer() {
    let limits = Limits { batch_entries: 8, ..Limits::default() };
    let mut w = World::with_limits(MESH, limits, |_, fs| {
        for dir in 0..40 {
            fs.mkdir(format!("{dir}").as_bytes()).unwrap();
            for file in 0..8 {
                let path = format!("{dir}/{file}");
                fs.write(path.as_bytes(), path.as_bytes()).unwrap();
            }
        }
    });
    w.equal();
    for member in &w.members[1..] {
        assert_eq!(member.replica.counters().adopted, 360, "{:#?}", w.events);
        assert_eq!(member.replica.counters().content_received, 0);
    }
    assert_eq!(w.unseen(), 0);
}

#[test]
fn a_directory_put_in_the_place_of_another_continues_it() {
    let mut w = World::new(MESH, |i, fs| {
        if i == 0 {
            fs.mkdir(b"site").unwrap();
            fs.write(b"site/index", b"old").unwrap();
            fs.write(b"site/gone", b"gone").unwrap();
        }
    });
    w.equal();
    let fs = w.members[1].fs.clone();
    fs.mkdir(b"site.new").unwrap();
    fs.write(b"site.new/index", b"new").unwrap();
    fs.rename(b"site", b"site.old").unwrap();
    fs.rename(b"site.new", b"site").unwrap();
    fs.remove_tree(b"site.old").unwrap();
    w.equal();
    assert_eq!(w.members[2].fs.read(b"site/index").unwrap().bytes(), b"new");
    assert!(!w.members[2].fs.exists(b"site/gone"));
    assert_eq!(w.unseen(), 0, "{:#?}", w.events);
}

#[test]
fn what_is_put_into_a_directory_that_was_removed_leaves_it_where_somebody_else_moves_it() {
    let mut w = World::new(CHAIN, |i, fs| {
        if i == 0 {
            fs.mkdir(b"site").unwrap();
            fs.write(b"site/index", b"old").unwrap();
        }
    });
    w.equal();
    w.link(1, false);
    w.members[0].fs.remove_tree(b"site").unwrap();
    w.members[1].fs.write(b"site/kept", b"unseen").unwrap();
    w.settle();
    w.link(1, true);
    w.equal();
    assert!(w.members[0].fs.exists(b"site/kept"));
    w.link(1, false);
    w.members[0].fs.rename(b"site", b"web").unwrap();
    w.run(30);
    w.members[1].fs.write(b"site/page", b"new").unwrap();
    w.settle();
    w.link(1, true);
    w.equal();
    let names: Vec<_> = w.members[2].fs.tree().into_keys().collect();
    assert_eq!(names, [&b"web"[..], b"web/kept", b"web/page"], "{:#?}", w.events);
}

#[test]
fn a_store_through_a_mapping_shows_when_it_is_closed() {
    let mut w = World::new(MESH, |i, fs| {
        if i == 0 {
            fs.write(b"plan", b"one").unwrap();
        }
    });
    w.equal();
    let handle = w.members[1].fs.user_open(b"plan", Mode::Update).unwrap();
    w.members[1].fs.user_store(handle, 0, b"two");
    w.members[1].fs.user_close(handle);
    w.equal();
    assert_eq!(w.members[2].fs.read(b"plan").unwrap().bytes(), b"two");
}

#[test]
fn a_write_by_one_name_of_a_hard_link_shows_by_the_other() {
    let mut w = World::new(MESH, |i, fs| {
        if i == 0 {
            fs.write(b"plan", b"one").unwrap();
            fs.link(b"plan", b"same").unwrap();
        }
    });
    w.equal();
    w.members[0].fs.append(b"same", b" and two").unwrap();
    w.equal();
    assert_eq!(w.members[2].fs.read(b"plan").unwrap().bytes(), b"one and two");
}

#[test]
fn a_file_made_anew_under_its_name_has_the_attributes_that_it_was_made_with() {
    let mut w = World::new(MESH, |i, fs| {
        if i == 0 {
            fs.write(b"plan", b"one").unwrap();
            fs.chmod(b"plan", 0o600).unwrap();
        }
    });
    w.equal();
    w.members[1].fs.remove(b"plan").unwrap();
    w.equal();
    w.members[1].fs.write(b"plan", b"two").unwrap();
    w.equal();
}

#[test]
fn a_rename_while_a_newer_content_is_on_its_way_writes_nothing_anew() {
    let mut w = World::new(MESH, |i, fs| {
        if i == 0 {
            fs.write(b"plan", b"one").unwrap();
        }
    });
    w.equal();
    w.members[0].fs.write(b"plan", b"two").unwrap();
    w.members[1].fs.rename(b"plan", b"report").unwrap();
    w.equal();
    assert_eq!(w.members[2].fs.read(b"report").unwrap().bytes(), b"two");
    assert_eq!(w.unseen(), 0, "{:#?}", w.events);
}

#[test]
fn bytes_that_are_moved_back_to_a_name_are_replaced_knowingly_by_nobody_who_has_not_seen_them_there() {
    let mut w = World::new(MESH, |i, fs| {
        if i == 0 {
            for (name, content) in [(b"a", &b"old"[..]), (b"b", b"older"), (b"c", b"kept")] {
                fs.write(name, content).unwrap();
            }
        }
    });
    w.equal();
    // Its user holds the old one open, so that the new one is recorded there and not installed.
    let open = w.members[0].fs.user_open(b"a", Mode::Append).unwrap();
    w.members[1].fs.rename(b"c", b"a").unwrap();
    w.run(1);
    w.members[1].fs.rename(b"a", b"b").unwrap();
    w.run(1);
    assert_eq!(w.members[0].fs.read(b"b").unwrap().bytes(), b"kept");
    assert_eq!(w.members[0].fs.read(b"a").unwrap().bytes(), b"old");
    w.link(1, false);
    w.members[0].fs.user_close(open);
    w.members[0].fs.rename(b"b", b"a").unwrap();
    w.members[1].fs.write(b"a", b"third").unwrap();
    w.run(1);
    let before = w.unseen();
    w.link(1, true);
    w.equal();
    assert!(w.unseen() > before, "one of them lost, and nobody had seen it there: {:#?}", w.events);
}

#[test]
fn calls_that_fail_for_a_while_stop_nothing_and_hide_nothing() {
    let cases: [(&str, Fault, &[Call]); 5] = [
        ("syncs", Fault::Io, &[Call::SyncFile, Call::SyncDir, Call::SyncAll]),
        ("enumeration", Fault::Io, &[Call::List]),
        ("opening directories", Fault::TooManyOpen, &[Call::OpenDir]),
        ("looking", Fault::Io, &[Call::Stat]),
        ("reading", Fault::Io, &[Call::OpenFile, Call::Read]),
    ];
    for (what, fault, calls) in cases {
        let mut w = World::new(MESH, |i, fs| {
            if i == 0 {
                fs.mkdir(b"docs").unwrap();
                fs.write(b"docs/plan", b"one").unwrap();
            }
        });
        w.equal();
        w.members[1].fs.faults(|f| calls.iter().for_each(|c| f.set(*c, fault, 1_000_000)));
        // Hints are lost, so that only a whole comparison finds what was made.
        w.members[1].fs.mkdir(b"docs/deep").unwrap();
        w.members[1].fs.write(b"docs/deep/mine", b"two").unwrap();
        w.members[1].fs.overflow_hints();
        w.members[0].fs.write(b"docs/yours", b"three").unwrap();
        w.members[0].fs.rename(b"docs/plan", b"plan").unwrap();
        w.run(5);
        assert!(!w.members[2].fs.exists(b"docs/deep/mine"), "{what}: published what could not be made sure of");
        assert!(w.members[2].fs.exists(b"docs/yours"), "{what}: one member holds up the others");
        w.members[1].fs.faults(Faults::clear);
        w.equal();
        assert_eq!(w.members[0].fs.read(b"docs/deep/mine").unwrap().bytes(), b"two", "{what}");
        assert!(w.members[1].fs.exists(b"plan") && !w.members[1].fs.exists(b"docs/plan"), "{what}");
        assert_eq!(w.unseen(), 0, "{what}: {:#?}", w.events);
    }
}

#[test]
fn a_lost_root_is_waited_for_at_leisure() {
    let mut w = World::new(MESH, |i, fs| {
        if i == 0 {
            fs.write(b"plan", b"one").unwrap();
        }
    });
    w.equal();
    w.members[1].fs.set_mounted(false);
    w.members[1].fs.write(b"plan", b"two").unwrap();
    w.run(5);
    let due = w.members[1].replica.deadline().unwrap();
    assert!(due.0 > w.now, "asks to be called at once, and can do nothing");
    w.members[1].fs.set_mounted(true);
    w.equal();
    assert_eq!(w.members[0].fs.read(b"plan").unwrap().bytes(), b"two");
}

#[test]
fn what_is_preserved_is_not_sent_again() {
    let mut w = World::new(MESH, |i, fs| {
        if i == 0 {
            fs.write(b"plan", b"what everybody held once").unwrap();
        }
    });
    w.equal();
    w.members[1].fs.remove(b"plan").unwrap();
    w.equal();
    // Later than a name is remembered.
    w.run(20);
    let received = w.members[2].replica.counters().content_received;
    w.members[0].fs.write(b"again", b"what everybody held once").unwrap();
    w.equal();
    assert!(w.members[2].fs.exists(b"again"));
    assert_eq!(w.members[2].replica.counters().content_received, received);
}

/// The only one that has a content is away, and its author began anew: nobody may give it up.
#[test]
fn who_began_anew_gives_up_nothing_while_a_member_is_away() {
    let mut w = World::new(MESH, |_, _| {});
    w.equal();
    w.members[0].fs.faults(|f| f.set(Call::CreateFile, Fault::Io, 1_000_000));
    w.members[1].fs.write(b"thesis", b"the only copy of somebody's work").unwrap();
    w.run(5);
    assert_eq!(w.members[2].fs.read(b"thesis").unwrap().bytes(), b"the only copy of somebody's work");
    w.link(2, false);
    w.link(1, false);
    let fs = SimFs::new(DiskConfig::default(), w.clock.clone(), 9);
    w.members[1] = Member::open(1, fs, 8, Limits::default(), w.now);
    let away: Vec<_> = w.links.iter().copied().filter(|&(_, down, up)| down == 2 || up == 2).collect();
    w.links.retain(|link| !away.contains(link));
    w.link(1, true);
    w.run(30 * 60);
    w.links.extend(away);
    w.members[0].fs.faults(Faults::clear);
    w.link(2, true);
    w.run(10);
    w.equal();
    assert_eq!(w.members[0].fs.read(b"thesis").unwrap().bytes(), b"the only copy of somebody's work");
    assert_eq!(w.unseen(), 0, "{:#?}", w.events);
}

/// A file of the tree has another name in a directory that was preserved whole. Who takes it out of the tree is not waited
/// for until that name is gone as well.
#[test]
fn a_second_name_in_what_was_preserved_is_no_place_in_the_tree() {
    let mut w = World::new(MESH, |i, fs| {
        if i < 2 {
            fs.mkdir(b"docs").unwrap();
            fs.write(b"docs/plan", b"one").unwrap();
        }
        if i == 1 {
            fs.mkdir(b"own").unwrap();
            fs.link(b"docs/plan", b"own/plan").unwrap();
        }
    });
    w.equal();
    assert!(!w.members[1].fs.exists(b"own"), "nobody else has it: it is preserved");
    // The first time it may be what we took away ourselves, and the view shows it.
    w.members[1].fs.remove(b"docs/plan").unwrap();
    w.run(5);
    w.equal();
    assert_eq!(w.members[1].fs.read(b"docs/plan").unwrap().bytes(), b"one");
    w.members[1].fs.remove(b"docs/plan").unwrap();
    w.equal();
    assert!(!w.members[0].fs.exists(b"docs/plan"));
}
