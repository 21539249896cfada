//! One history from its seed: people and troubles, then mending, then rest, then the questions.

use anabranch_model::Names;
use anabranch_volume::simulated::Tree;

use crate::counters::Counters;
use crate::machine::Opener;
use crate::oracle::{AtRest, Violation};
use crate::plan::{Habits, Plan};
use crate::trouble;
use crate::world::{Event, World};

/// How long the members have to come to rest after everything was mended: simulated microseconds, and events.
const REST_TIME: u64 = 3_600_000_000;
const REST_EVENTS: u64 = 200_000;
/// After so many events people go home: half of the histories need 6,000 of them, one in a thousand more than this.
const EVENTS_MAX: u64 = 150_000;
/// How long members have to join before people begin who keep to their own.
const JOIN_TIME: u64 = 60_000_000;
/// How long nothing may happen before it counts as rest: longer than any delay before a resolution is written.
const STILL: u64 = 130_000_000;

/// What came of a history.
pub(crate) struct Outcome {
    /// What must not be; nothing is good.
    pub(crate) violations: Vec<Violation>,
    /// What occurred.
    pub(crate) counters: Counters,
    /// Equal seeds give equal digests.
    pub(crate) digest: u64,
}

/// Runs a history.
pub(crate) fn run(plan: Plan, open: &Opener, print: bool) -> Outcome {
    let mut world = World::new(plan, open, print);
    world.say_plan();
    if matches!(world.plan.habits, Habits::Orderly { .. }) {
        // Nobody's file is there before his member has joined, or it would be compared with others' of that name.
        while !world.quiet() && world.now < JOIN_TIME && world.step() {}
    }
    world.plan_troubles();
    let start = world.rng.below(100_000);
    world.after(start, Event::Begin);
    world.after(1, Event::Look);
    if world.plan.islands {
        world.after(1, Event::Tide);
    }
    people(&mut world);
    let writer = world.plan.writer;
    let left = writer.map(|w| world.members[w].fs.tree());
    world.heal();
    rest(&mut world);
    // What the writer left is what stands, if nothing of his was still under way when the tree was looked at.
    ask(&mut world, left.as_ref());
    if print && !world.violations.is_empty() {
        for number in 0..world.members.len() {
            let lines = world.members[number].machine.as_ref().map_or_else(Vec::new, |m| m.describe());
            lines.into_iter().for_each(|line| world.say(|| format!("member {number} at the end: {line}")));
        }
    }
    figures(&mut world);
    let counters = std::mem::take(&mut world.counters);
    Outcome { violations: std::mem::take(&mut world.violations), counters, digest: world.trace.digest() }
}

/// Until people have done what they came for, and no program of theirs runs any more.
fn people(world: &mut World<'_>) {
    loop {
        let done: u64 = world.members.iter().map(|m| m.crowd().done).sum();
        let errands = world.errands > 0;
        let limit = 4 * world.plan.ends + if errands { 3_000_000_000 } else { 600_000_000 };
        let over = world.now > limit || world.events > EVENTS_MAX;
        if (done >= world.plan.operations && !errands) || over || !world.violations.is_empty() {
            break;
        }
        if !world.step() {
            break;
        }
    }
    world.members.iter().for_each(|m| m.crowd().retired = true);
    let until = world.now + 120_000_000;
    while world.members.iter().any(|m| m.crowd().next().is_some()) && world.now < until && world.step() {}
    // An open that waits for a lease ends when the lease does.
    while world.members.iter().any(|m| m.fs.users_open() > 0) && world.now < until && world.step() {}
}

fn rest(world: &mut World<'_>) {
    let (time, events) = (world.now + REST_TIME, world.events + REST_EVENTS);
    let mut since: Option<u64> = None;
    while world.violations.is_empty() {
        let next = world.next();
        if world.quiet() {
            let from = *since.get_or_insert(world.now);
            if next.is_none_or(|n| n > from + STILL) {
                return;
            }
        } else {
            since = None;
        }
        if world.now > time || world.events > events || !world.step() {
            let mut text = String::from("no rest after everything was mended:");
            for member in &world.members {
                let waits = member.machine.as_ref().map_or(vec!["is down".to_owned()], |m| m.waits());
                let mut waits = waits;
                if member.fs.has_hints() {
                    waits.push("hints are outstanding".into());
                }
                if member.fs.users_open() > 0 {
                    waits.push(format!("{} files are open", member.fs.users_open()));
                }
                if !waits.is_empty() {
                    text.push_str(&format!(" {}: {};", member.name, waits.join(", ")));
                }
            }
            world.violations.push(Violation { invariant: "Progress", text });
            return;
        }
    }
}

fn ask(world: &mut World<'_>, left: Option<&Tree>) {
    for number in 0..world.members.len() {
        world.look_at(number);
    }
    if !world.violations.is_empty() {
        return;
    }
    let mut members = Vec::new();
    for member in &world.members {
        let Some(machine) = &member.machine else { continue };
        match AtRest::of(&member.name, &member.fs, &**machine, world.not_ahead()) {
            Ok(at_rest) => members.push(at_rest),
            Err(text) => world.violations.push(Violation { invariant: "Progress", text }),
        }
    }
    let found = world.oracle.rest(&members, left, &world.plan);
    world.violations.extend(found);
}

fn figures(world: &mut World<'_>) {
    world.counters.count("histories");
    world.counters.count(if world.plan.writer.is_some() {
        "histories with one writer"
    } else {
        "histories with many writers"
    });
    world.counters.count(&format!("histories in a {:?}", world.plan.topology));
    world.counters.count(&format!("histories of {} members", world.plan.members));
    world.counters.count(if world.plan.keep_beside {
        "histories that keep losers of a name beside"
    } else {
        "histories that preserve losers of a name"
    });
    if matches!(world.plan.habits, Habits::Orderly { .. }) {
        world.counters.count("histories of people who keep to their own");
    }
    world.counters.add("histories where case does not count", u64::from(world.plan.rule == Names::Windows));
    world.counters.add("histories of islands", u64::from(world.plan.islands));
    let (least, most) = (world.plan.skews.iter().min(), world.plan.skews.iter().max());
    world.counters.add("histories with clocks that differ", u64::from(least != most));
    world.counters.add("events", world.events);
    (0..world.members.len()).for_each(|number| world.count_figures(number));
    for member in &world.members {
        let crowd = member.crowd();
        world.counters.add("operations", crowd.done);
        world.counters.add("operations in the middle of a call", crowd.interloped);
        world.counters.add("opens past their lookup in the middle of a call", crowd.looked_up);
        world.counters.add("stops in the middle of an install", crowd.ambushed);
        for (kind, count) in crowd.kinds() {
            world.counters.add(&format!("user: {kind}"), count);
        }
        drop(crowd);
        world.counters.add("opens that waited for a lease", member.fs.opens_that_waited());
        member.fs.faults(|faults| {
            for (name, fault, calls, _) in trouble::FAULTS {
                let sum = calls.iter().map(|call| faults.happened(*call, fault)).sum();
                world.counters.add(&format!("faults: {name}"), sum);
            }
            for (call, fault, count) in faults.all_happened() {
                world.counters.add(&format!("fault: {fault:?} on {call:?}"), count);
            }
        });
    }
}

impl World<'_> {
    fn say_plan(&mut self) {
        let plan = self.plan.clone();
        self.say(|| {
            format!(
                "seed {}: {} members in a {:?}, writer {:?}, {} operations in {} s, keep beside: {}, names: {}, worst moment {}/1000, {:?}, islands: {}",
                plan.seed,
                plan.members,
                plan.topology,
                plan.writer,
                plan.operations,
                plan.ends / 1_000_000,
                plan.keep_beside,
                plan.rule,
                plan.worst_moment,
                plan.habits,
                plan.islands
            )
        });
    }
}
