//! The world of one history: members with their machines and people, the network between them, and time.
//!
//! One thread, one queue of events ordered by simulated time; equal seeds give equal histories. Time is in microseconds
//! since the history began.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anabranch_engine::MemoryKv;
use anabranch_model::Hlc;
use anabranch_net::message::Message;
use anabranch_volume::simulated::{Call, Deed, DiskConfig, Image, Power, Rng, SimClock, SimFs, Thing, Tree};

use crate::counters::Counters;
use crate::kv::SimKv;
use crate::machine::{Input, Machine, Opener, Output};
use crate::network::{Connection, End};
use crate::oracle::{Oracle, Violation};
use crate::plan::Plan;
use crate::trace::Trace;
use crate::users::{Ambush, Crowd};

mod links;
mod power;

/// What members' clocks show when a history begins, microseconds since 1970.
const BEGIN: u64 = 1_700_000_000_000_000;
/// How long a connection is tried before its ends give it up, at most.
pub(crate) const GIVE_UP: u64 = 20_000_000;

/// How long one sync takes on a good disk, microseconds.
pub(crate) const SYNC_TIME: u64 = 200;
/// How long a member that lost its power stamps nothing before it heard a partner (design, section 11), and a little more.
const HOLD: u64 = 605_000_000;
/// How far a time may be ahead (design, section 4), and a little more.
const AHEAD: u64 = 601_000_000;

/// Pages of fewer bytes may hold less than what a pass brings.
const WHOLE_PAGES: usize = 1 << 20;

/// How often a member may ask to be called at once, in a row.
const SPINS_MAX: u32 = 2000;

/// What is due at some time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Event {
    /// A member asked to be called.
    Wake { member: usize },
    /// The watcher of a member speaks.
    Hints { member: usize },
    /// Something arrives over a connection.
    Deliver { connection: usize, end: End, lane: usize, life: u64 },
    /// What arrived in a lane while its receiver was busy is received, one message after the other.
    Backlog { connection: usize, end: End, lane: usize, life: u64 },
    /// One end notices that its link is gone.
    Notice { connection: usize, end: End, link: u64 },
    /// A cut connection is given up, if it is still cut.
    GiveUp { connection: usize, life: u64 },
    /// The downstream end dials.
    Dial { connection: usize },
    /// Somebody, somewhere, begins something.
    Begin,
    /// Somebody at this member begins something.
    Errand { member: usize },
    /// A member that was left alone is reached again.
    Company { member: usize },
    /// A member's clock leaps far ahead.
    Leap { member: usize },
    /// Connections are cut and mended between islands.
    Tide,
    /// A running program of a user goes on.
    Program { member: usize },
    /// The next planned trouble.
    Trouble { number: usize },
    /// A trouble ends.
    Over { number: usize },
    /// A member that is down starts.
    Up { member: usize },
    /// The power goes off, if the cut planned in steps has not come yet.
    Off { member: usize, boot: u64 },
    /// The kernel writes back by itself.
    WriteBack { member: usize },
    /// The oracle looks.
    Look,
}

/// What a planned stop of a member is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stop {
    /// The power goes.
    Power,
    /// The process goes.
    Process,
}

/// One member and its people.
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) fs: SimFs,
    pub(crate) kv: SimKv,
    pub(crate) power: Power,
    pub(crate) clock: SimClock,
    /// How far its clock is ahead, microseconds.
    pub(crate) skew: i64,
    pub(crate) machine: Option<Box<dyn Machine>>,
    pub(crate) crowd: Arc<Mutex<Crowd>>,
    pub(crate) boot: u64,
    pub(crate) place: u64,
    pub(crate) stop: Option<Stop>,
    pub(crate) image: Option<(Image, MemoryKv)>,
    /// When that was taken the database said of all in the tree what it is.
    pub(crate) image_rested: bool,
    /// It goes back to its image as soon as a partner has taken in something of its own.
    pub(crate) put_back_after_page: bool,
    pub(crate) mounted: bool,
    /// How long one sync takes, microseconds.
    pub(crate) sync_time: u64,
    /// The latest that its clock ever showed, microseconds since 1970.
    latest: u64,
    /// The highest number of a message that it received.
    received: u64,
    /// Busy with its last step until then.
    busy: u64,
    wake_at: Option<u64>,
    hints_at: Option<u64>,
    /// Syncs counted so far, for the time they take.
    syncs: u64,
    spins: u32,
    fresh: Rng,
}

/// See the module.
pub(crate) struct World<'a> {
    pub(crate) plan: Plan,
    pub(crate) now: u64,
    pub(crate) members: Vec<Member>,
    pub(crate) connections: Vec<Connection>,
    pub(crate) oracle: Oracle,
    pub(crate) counters: Counters,
    pub(crate) violations: Vec<Violation>,
    pub(crate) trace: Trace,
    pub(crate) rng: Rng,
    /// Passes that are still to be broken.
    pub(crate) break_passes: u64,
    /// How many messages of a lane wait for their receiver, by connection, sending end, lane and life.
    backlog: BTreeMap<(usize, End, usize, u64), u64>,
    /// Troubles are over: what breaks now is mended at once.
    pub(crate) healing: bool,
    pub(crate) events: u64,
    /// Errands that are still to be done: people do not go home before.
    pub(crate) errands: u64,
    /// Messages sent so far.
    sent: u64,
    /// What the records of the only member that writes showed, at one time or another.
    states: BTreeSet<u64>,
    queue: BinaryHeap<Reverse<(u64, u64, Event)>>,
    sequence: u64,
    next_link: u64,
    open: &'a Opener,
}

impl Member {
    /// Its people.
    pub(crate) fn crowd(&self) -> MutexGuard<'_, Crowd> {
        self.crowd.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn clock_at(&self, now: u64) -> u64 {
        (BEGIN + now).saturating_add_signed(self.skew)
    }

    fn set_clock(&mut self, now: u64) -> Hlc {
        let time = self.clock_at(now);
        self.latest = self.latest.max(time);
        self.clock.set(i64::try_from(time).unwrap_or(i64::MAX / 1000).saturating_mul(1000));
        Hlc(time)
    }
}

impl<'a> World<'a> {
    /// Members that have not started yet, with what people had there before.
    pub(crate) fn new(plan: Plan, open: &'a Opener, print: bool) -> Self {
        let mut rng = Rng::new(plan.seed ^ 0x77_6f72_6c64);
        let members = (0..plan.members).map(|number| new_member(&plan, number, print, &mut rng)).collect();
        let connections =
            plan.pairs().into_iter().flat_map(|(a, b)| [Connection::new(a, b), Connection::new(b, a)]).collect();
        let oracle = Oracle::new(plan.name_memory);
        let mut world = Self {
            plan,
            now: 0,
            members,
            connections,
            oracle,
            counters: Counters::default(),
            violations: Vec::new(),
            trace: Trace::new(print),
            rng,
            break_passes: 0,
            backlog: BTreeMap::new(),
            healing: false,
            events: 0,
            errands: 0,
            sent: 0,
            states: BTreeSet::from([0]),
            queue: BinaryHeap::new(),
            sequence: 0,
            next_link: 1,
            open,
        };
        for connection in &mut world.connections {
            connection.latency = world.rng.between(50, 20_000);
            connection.jitter = world.rng.below(2000);
        }
        for number in 0..world.plan.members {
            let count = world.plan.populate[number];
            world.members[number].set_clock(0);
            let fs = world.members[number].fs.clone();
            world.members[number].crowd().populate(&fs, count);
            fs.write_back(true);
            world.after_users(number);
            world.at(world.rng.clone().below(1000), Event::Up { member: number });
            world.at(5_000_000, Event::WriteBack { member: number });
        }
        for connection in 0..world.connections.len() {
            let at = world.rng.below(50_000);
            world.at(at, Event::Dial { connection });
        }
        world
    }

    /// Plans an event.
    pub(crate) fn at(&mut self, time: u64, event: Event) {
        self.sequence += 1;
        self.queue.push(Reverse((time.max(self.now), self.sequence, event)));
    }

    /// Plans an event that comes so many microseconds from now.
    pub(crate) fn after(&mut self, delay: u64, event: Event) {
        self.at(self.now + delay, event);
    }

    /// When the next event is due.
    pub(crate) fn next(&self) -> Option<u64> {
        self.queue.peek().map(|Reverse((at, ..))| *at)
    }

    /// One line of the printed history.
    pub(crate) fn say(&mut self, text: impl FnOnce() -> String) {
        self.trace.line(self.now, text);
    }

    /// The next event happens.
    pub(crate) fn step(&mut self) -> bool {
        let Some(Reverse((at, _, event))) = self.queue.pop() else { return false };
        self.now = self.now.max(at);
        self.events += 1;
        self.trace.mark(at);
        match event {
            Event::Wake { member } => self.wake(member, at),
            Event::Hints { member } => self.hints(member),
            Event::Deliver { connection, end, lane, life } => self.deliver(connection, end, lane, life),
            Event::Backlog { connection, end, lane, life } => self.work_off(connection, end, lane, life),
            Event::Notice { connection, end, link } => self.notice(connection, end, link),
            Event::GiveUp { connection, life } => self.give_up(connection, life),
            Event::Dial { connection } => self.dial(connection),
            Event::Begin => self.begin(),
            Event::Errand { member } => self.errand(member),
            Event::Company { member } => self.company(member),
            Event::Leap { member } => self.leap(member),
            Event::Tide => self.tide(),
            Event::Program { member } => self.program(member),
            Event::Trouble { number } => self.trouble(number),
            Event::Over { number } => self.over(number),
            Event::Up { member } => self.up(member),
            Event::Off { member, boot } => self.off(member, boot),
            Event::WriteBack { member } => self.write_back(member),
            Event::Look => self.look(),
        }
        true
    }

    /// Gives a member something, and carries out what it asks for.
    fn call(&mut self, number: usize, input: Input) {
        let member = &mut self.members[number];
        let now = member.set_clock(self.now);
        let Some(machine) = member.machine.as_mut() else { return };
        let result = machine.handle(now, input);
        let mut out = Vec::new();
        while let Some(output) = machine.poll() {
            out.push(output);
        }
        let syncs = member.fs.faults(|f| f.calls(Call::SyncFile) + f.calls(Call::SyncDir) + f.calls(Call::SyncAll));
        member.busy = self.now + 20 + (syncs - member.syncs) * member.sync_time;
        if member.sync_time > SYNC_TIME {
            self.counters.add("syncs that took long", syncs - member.syncs);
        }
        member.syncs = syncs;
        let on = member.power.is_on();
        if self.plan.writer == Some(number) && self.plan.page_bytes < WHOLE_PAGES {
            self.states.extend(member.machine.as_ref().map(|machine| machine.state()));
        }
        self.after_users(number);
        // What it said before the power went may have been sent; what it said after it noticed nothing was not.
        if !on {
            self.stopped(number);
            return;
        }
        for output in out {
            self.carry_out(number, output);
        }
        if let Err(why) = result {
            self.counters.count("replica stopped by itself");
            self.say(|| format!("member {number} stops: {why}"));
            self.end_process(number);
            self.after(1_000_000, Event::Up { member: number });
            return;
        }
        self.plan_wake(number);
        self.plan_hints(number);
        self.note_looked(number);
    }

    /// Tells the oracle that a member has looked at all that people did there, and by when.
    fn note_looked(&mut self, number: usize) {
        let member = &self.members[number];
        let looked = || !member.fs.has_hints() && member.machine.as_ref().is_some_and(|machine| machine.looked());
        if self.oracle.unnoticed(number) && looked() {
            let latest = self.members.iter().map(|member| member.latest).max().unwrap_or(u64::MAX);
            self.oracle.noticed(number, latest);
        }
    }

    fn carry_out(&mut self, number: usize, output: Output) {
        self.trace.mark(number as u64);
        match output {
            Output::Send(link, envelope) => {
                let Some((index, end)) = self.find_link(number, link) else { return };
                let now = self.members[number].busy;
                self.say(|| format!("member {number} -> link {link}: {}", brief(&envelope.message)));
                self.sent += 1;
                let (numbered, lanes) = ((self.sent, envelope), self.plan.lanes);
                let connection = &mut self.connections[index];
                if let Some((at, lane)) = connection.send(end, now, numbered, &mut self.rng, lanes) {
                    let life = connection.life;
                    self.at(at, Event::Deliver { connection: index, end, lane, life });
                }
            }
            Output::Close(link, why) => {
                self.counters.count("links closed by a member");
                self.say(|| format!("member {number} closes link {link}: {why}"));
                if let Some((index, _)) = self.find_link(number, link) {
                    self.break_connection(index);
                }
            }
            Output::Report(event, text) => {
                self.counters.count(&format!("event {event}"));
                self.say(|| format!("member {number} event {event}: {text}"));
            }
        }
    }

    fn plan_wake(&mut self, number: usize) {
        let member = &self.members[number];
        let Some(deadline) = member.machine.as_ref().and_then(|m| m.deadline()) else { return };
        let delay = deadline.0.saturating_sub(member.clock_at(self.now));
        // A deadline that is past means at once, but time goes on even so, and what came in goes first.
        let at = (self.now + delay).max(member.busy + 50);
        if member.wake_at.is_none_or(|w| at < w || w <= self.now) {
            self.members[number].wake_at = Some(at);
            self.at(at, Event::Wake { member: number });
        }
    }

    fn wake(&mut self, number: usize, at: u64) {
        let member = &mut self.members[number];
        if member.wake_at != Some(at) {
            return;
        }
        if member.busy > self.now {
            member.wake_at = Some(member.busy);
            let busy = member.busy;
            self.at(busy, Event::Wake { member: number });
            return;
        }
        member.wake_at = None;
        let overdue = member.machine.as_ref().and_then(|m| m.deadline()).is_some_and(|d| d.0 <= member.clock_at(at));
        let events = self.trace.digest();
        self.call(number, Input::Time);
        let member = &mut self.members[number];
        let still = member.machine.as_ref().and_then(|m| m.deadline()).is_some_and(|d| d.0 <= member.clock_at(at));
        // Whoever asks to be called at once, again and again, and does nothing then, burns a processor.
        member.spins = if overdue && still && events == self.trace.digest() { member.spins + 1 } else { 0 };
        if member.spins == SPINS_MAX {
            let text = format!("{} asks to be called at once, {SPINS_MAX} times in a row", member.name);
            self.violations.push(Violation { invariant: "Progress", text });
        }
    }

    /// The watcher speaks a little after something happened.
    pub(crate) fn plan_hints(&mut self, number: usize) {
        let member = &mut self.members[number];
        if member.machine.is_some() && member.hints_at.is_none() && member.fs.has_hints() {
            let at = self.now + self.rng.between(200, 8000);
            member.hints_at = Some(at);
            self.at(at, Event::Hints { member: number });
        }
    }

    fn hints(&mut self, number: usize) {
        let member = &mut self.members[number];
        if member.machine.is_none() {
            member.hints_at = None;
            return;
        }
        if member.busy > self.now {
            let busy = member.busy;
            self.at(busy, Event::Hints { member: number });
            return;
        }
        member.hints_at = None;
        let hints = member.fs.take_hints();
        if !hints.is_empty() {
            self.call(number, Input::Hints(hints));
        }
    }

    /// Where members are islands: most connections are cut, and others than before.
    fn tide(&mut self) {
        if self.healing {
            return;
        }
        for index in 0..self.connections.len() {
            let cut = self.rng.chance(3, 4);
            self.set_cut(index, End::Down, cut);
            self.set_cut(index, End::Up, cut);
        }
        let delay = self.plan.ends / 24 + 1;
        self.after(delay, Event::Tide);
    }

    /// Nobody reaches a member that was put back until long after it goes on by itself; people there work all the same.
    fn leave_alone(&mut self, number: usize) {
        self.counters.count("members put back and left alone");
        let count = self.rng.between(3, 8);
        self.work_alone(number, count, (HOLD + 60_000_000, HOLD + 120_000_000));
    }

    /// Nobody reaches a member for a while, and people there begin so many things between these two times from now.
    pub(crate) fn work_alone(&mut self, number: usize, count: u64, (from, until): (u64, u64)) {
        self.cut_off(number, true);
        self.errands += count + 1;
        for _ in 0..count {
            let delay = self.rng.between(from, until);
            self.after(delay, Event::Errand { member: number });
        }
        self.after(until + 1_000_000, Event::Company { member: number });
    }

    /// A member's clock shows a time far ahead from now on.
    pub(crate) fn leap(&mut self, number: usize) {
        if self.healing {
            return;
        }
        let far = self.rng.between(700_000_000, 200_000_000_000);
        self.members[number].skew += i64::try_from(far).unwrap_or(0);
        self.counters.count("clocks far in the future");
    }

    fn errand(&mut self, number: usize) {
        self.errands = self.errands.saturating_sub(1);
        if !self.healing && self.plan.writer.is_none_or(|writer| writer == number) {
            self.begin_at(number);
        }
    }

    fn company(&mut self, number: usize) {
        self.errands = self.errands.saturating_sub(1);
        self.look_into(number);
        self.cut_off(number, false);
    }

    fn disks_but(&self, number: usize) -> Vec<SimFs> {
        self.members.iter().enumerate().filter(|(n, _)| *n != number).map(|(_, m)| m.fs.clone()).collect()
    }

    fn write_back(&mut self, number: usize) {
        let data_too = self.rng.chance(1, 4);
        if self.members[number].power.is_on() {
            self.members[number].fs.write_back(data_too);
        }
        let delay = self.rng.between(2_000_000, 20_000_000);
        self.after(delay, Event::WriteBack { member: number });
    }

    // ---- people ----

    fn begin(&mut self) {
        let number = self.plan.writer.unwrap_or_else(|| self.rng.clone().index(self.plan.members));
        self.rng.bits();
        self.begin_at(number);
        let done: u64 = self.members.iter().map(|m| m.crowd().done).sum();
        if done < self.plan.operations {
            let mean = self.plan.ends / self.plan.operations.max(1);
            let delay = self.rng.below(2 * mean + 1);
            self.after(delay, Event::Begin);
        }
    }

    fn begin_at(&mut self, number: usize) {
        let looked = self.members[number].machine.as_ref().is_some_and(|machine| machine.settled());
        self.users(number, |crowd, fs, now| crowd.begin(fs, now, looked));
    }

    fn program(&mut self, number: usize) {
        self.users(number, Crowd::run);
    }

    pub(crate) fn users(&mut self, number: usize, act: impl FnOnce(&mut Crowd, &SimFs, u64)) {
        let member = &mut self.members[number];
        member.set_clock(self.now);
        // While the machine is off nobody can use it; the daemon may be down, though.
        if member.power.is_on() {
            let mut crowd = member.crowd();
            let done = crowd.done;
            act(&mut crowd, &member.fs, self.now);
            if let Some(Ambush::Deed { delay }) = crowd.ambush.filter(|_| crowd.done > done) {
                crowd.ambush = None;
                self.counters.count("stops shortly after somebody changed something");
                let off = Event::Off { member: number, boot: member.boot };
                drop(crowd);
                self.after(delay, off);
            }
        }
        self.after_users(number);
        self.plan_hints(number);
    }

    /// Tells the oracle what people did, and plans the next steps of their programs.
    pub(crate) fn after_users(&mut self, number: usize) {
        let member = &self.members[number];
        let (lines, handled, moved, swapped, next) = {
            let mut crowd = member.crowd();
            (crowd.take_log(), crowd.take_handled(), crowd.take_moved(), crowd.take_swapped(), crowd.next())
        };
        let clock = member.clock_at(self.now);
        let deeds = member.fs.take_deeds();
        for line in lines {
            self.say(|| line);
        }
        for content in handled {
            self.oracle.handled(number, content);
        }
        if !deeds.is_empty() {
            let others = self.disks_but(number);
            for deed in deeds {
                self.trace.mark(number as u64);
                if matches!(deed, Deed::Damaged { .. }) {
                    self.counters.count("files damaged by a sync that failed");
                }
                self.oracle.deed(number, (self.now, clock), deed, &|content| on_any(&others, content));
            }
        }
        for files in swapped {
            self.oracle.swapped(number, files);
        }
        for moved in moved {
            self.oracle.moved(number, (self.now, clock), moved);
        }
        if let Some(next) = next {
            self.at(next, Event::Program { member: number });
        }
    }

    // ---- the oracle ----

    fn look(&mut self) {
        for number in 0..self.members.len() {
            self.look_at(number);
            self.look_into(number);
        }
        if !self.healing {
            // Less and less often: a history that goes on for long is not slowed down by being looked at.
            let delay = (self.plan.ends / 16).max(self.now / 64) + 1;
            self.after(delay, Event::Look);
        }
    }

    /// Where one member writes, what any other one's records show is what that one's showed at some time: half of what he
    /// did in one step is never seen (design, section 6).
    fn look_for_halves(&mut self, number: usize) {
        let Some(writer) = self.plan.writer.filter(|writer| *writer != number) else { return };
        let Some(machine) = self.members[number].machine.as_ref() else { return };
        self.counters.count("looks in the middle of a pass");
        // Whoever was put back shows old and new at once until it has compared all of its records.
        let returning = |machine: &dyn Machine| machine.waits().iter().any(|text| text.starts_with("phase"));
        if !self.states.contains(&machine.state()) && !returning(&**machine) {
            let text = format!("{} shows what member {writer} never showed", self.members[number].name);
            self.violations.push(Violation { invariant: "Intent", text });
        }
    }

    /// The latest time that members with good clocks take in.
    pub(crate) fn not_ahead(&self) -> Hlc {
        Hlc(BEGIN + self.now + AHEAD)
    }

    /// Asks whether a member's records say what they must not.
    pub(crate) fn look_into(&mut self, number: usize) {
        let until = self.not_ahead();
        let member = &mut self.members[number];
        let latest = member.latest;
        let Some(machine) = member.machine.as_ref() else { return };
        let found = &mut self.violations;
        match machine.versions(until) {
            Ok(versions) => self.oracle.once(&member.name, &versions, found),
            Err(text) => found.push(Violation { invariant: "Progress", text }),
        }
        if machine.clock().0 > latest + AHEAD {
            let ahead = (machine.clock().0 - latest) / 1_000_000;
            let text = format!("{} took in a time {ahead} s ahead of its clock", member.name);
            found.push(Violation { invariant: "Clock", text });
        }
    }

    /// Asks whether a member's tree shows anything that nobody wrote.
    pub(crate) fn look_at(&mut self, number: usize) {
        self.after_users(number);
        let member = &self.members[number];
        let before = self.violations.len();
        self.oracle.look(&member.name, &member.fs, &mut self.violations);
        if self.violations.len() > before {
            self.say(|| "VIOLATION: No invention".into());
        }
    }

    /// Nothing is under way: every member is up, connected, and has nothing to do.
    pub(crate) fn quiet(&self) -> bool {
        self.members.iter().all(|m| {
            m.machine.as_ref().is_some_and(|machine| machine.settled()) && !m.fs.has_hints() && m.fs.users_open() == 0
        }) && self.connections.iter().all(|c| c.link.iter().all(Option::is_some) && c.idle())
    }
}

/// The name of a member.
pub(crate) fn name(number: usize) -> String {
    format!("hq{number}")
}

fn new_member(plan: &Plan, number: usize, print: bool, rng: &mut Rng) -> Member {
    let clock = SimClock::default();
    let exchange_moves_ctime = rng.chance(1, 2);
    let mut config = DiskConfig { exchange_moves_ctime, cookies: rng.chance(1, 3), ..DiskConfig::default() };
    config.abilities.reflinks = rng.chance(1, 2);
    config.coarse_hints = rng.chance(1, 8);
    let fs = SimFs::new(config, clock.clone(), rng.bits());
    let power = fs.power();
    let mut crowd = Crowd::new(number, rng.fork(), plan);
    crowd.prints = print;
    crowd.worst_moment = if plan.writer.is_none_or(|w| w == number) { plan.worst_moment } else { 0 };
    let crowd = Arc::new(Mutex::new(crowd));
    let people = Arc::clone(&crowd);
    fs.set_interloper(Some(Box::new(move |fs, call| {
        people.lock().unwrap_or_else(PoisonError::into_inner).interlope(fs, call);
    })));
    Member {
        name: name(number),
        kv: SimKv::new(power.clone()),
        fs,
        power,
        clock,
        skew: plan.skews[number],
        machine: None,
        crowd,
        boot: 1,
        place: 1000 + number as u64,
        stop: None,
        image: None,
        image_rested: false,
        put_back_after_page: false,
        mounted: true,
        sync_time: SYNC_TIME,
        latest: 0,
        received: 0,
        busy: 0,
        wake_at: None,
        hints_at: None,
        syncs: 0,
        spins: 0,
        fresh: rng.fork(),
    }
}

/// Is a content in one of these trees? What is preserved there was given up there: it may be purged, or was replaced knowingly.
fn in_any_tree(disks: &[SimFs], content: &Thing) -> bool {
    disks.iter().any(|fs| fs.tree().values().any(|entry| entry.content.as_ref() == Some(content)))
}

/// Where each content is on a disk, staging apart.
fn places(fs: &SimFs) -> BTreeSet<(Vec<u8>, Thing)> {
    let private = fs.private_tree().into_iter().map(|(path, entry)| ([b"\0", &path[..]].concat(), entry));
    let all = fs.tree().into_iter().chain(private.filter(|(path, _)| !path.starts_with(b"\0staging/")));
    all.filter_map(|(path, entry)| Some((path, entry.content?))).collect()
}

/// Is a content on one of these disks? What is only staged there does not count: it goes as soon as it is outdated.
fn on_any(disks: &[SimFs], content: &Thing) -> bool {
    let holds =
        |tree: Tree| tree.iter().any(|(path, e)| !path.starts_with(b"staging/") && e.content.as_ref() == Some(content));
    disks.iter().any(|fs| holds(fs.tree()) || holds(fs.private_tree()))
}

/// A message in a few words.
fn brief(message: &Message) -> String {
    match message {
        Message::Page(page) => {
            format!(
                "Page of {} rows through {:?}, complete: {}",
                page.rows.len(),
                page.through,
                page.complete.is_some()
            )
        }
        Message::Pieces { request, first, pieces } => {
            format!("Pieces of {request} from {first}: {}", pieces.len())
        }
        Message::Fetch { request, wants } => format!("Fetch {request}: {} pieces", wants.len()),
        other => {
            let mut text = format!("{other:?}");
            if let Some((at, _)) = text.char_indices().nth(160) {
                text.truncate(at);
                text.push('…');
            }
            text
        }
    }
}

/// Troubles are in `trouble`; this is what they need of a member's plan.
impl World<'_> {
    fn trouble(&mut self, number: usize) {
        let Some(&(_, trouble, member)) = self.plan.troubles.get(number) else { return };
        self.counters.count(&format!("trouble: {trouble:?}"));
        self.begin_trouble(number, trouble, member);
    }

    fn over(&mut self, number: usize) {
        let Some(&(_, trouble, member)) = self.plan.troubles.get(number) else { return };
        self.end_trouble(trouble, member);
    }

    /// Every planned trouble, when its time comes.
    pub(crate) fn plan_troubles(&mut self) {
        for number in 0..self.plan.troubles.len() {
            self.after(self.plan.troubles[number].0, Event::Trouble { number });
        }
    }
}
