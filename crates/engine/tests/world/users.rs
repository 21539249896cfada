//! The users of all replicas: what they do, and what they may expect of it.

use std::collections::{BTreeMap, BTreeSet};

use anabranch_engine::{NewThing, ResolveScope, Rule, broken};
use anabranch_model::{Attributes, Name, Names, PlacementFacet, Timestamp, Uid, Version, same_name};

use super::{Random, Replica, content, value};

/// A step of a change that takes several: what goes where.
type Step = (Uid, Uid, String);

#[derive(Default)]
pub(crate) struct Users {
    /// Everybody keeps to things of their own.
    pub(crate) apart: bool,
    values: u64,
    todo: BTreeMap<u8, Vec<Step>>,
    /// Values, and those of them that were replaced or deleted by somebody who saw them.
    pub(crate) written: BTreeSet<u64>,
    pub(crate) covered: BTreeSet<u64>,
    /// Content version -> the edit whose bytes it has.
    pub(crate) edit: BTreeMap<Version, Version>,
    /// (UID, edit).
    pub(crate) deleted: BTreeSet<(Uid, Option<Version>)>,
    pub(crate) placed: BTreeSet<Uid>,
    /// UID -> its latest placement by a user.
    pub(crate) latest: BTreeMap<Uid, PlacementFacet>,
}

fn mtime(seconds: i64) -> Timestamp {
    Timestamp { seconds, nanoseconds: 0 }
}

pub(crate) fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

impl Users {
    fn next_value(&mut self, random: &mut Random) -> u64 {
        self.values += 1;
        // Perhaps known bytes.
        let back = if random.chance(6) { random.below(5) as u64 + 1 } else { 0 };
        let value = self.values.saturating_sub(back).max(1);
        self.written.insert(value);
        value
    }

    fn write(&mut self, random: &mut Random, here: &mut Replica, uid: Uid, now: i64, touch: bool) {
        let (recorded, clock) = (here.records.record(uid).unwrap().unwrap().content.unwrap(), here.clock(now));
        let Some(old) = here.seen(uid) else { return };
        if touch {
            if old.written.version != recorded.written.version {
                return;
            }
            here.step(|records| records.touch(clock, uid, mtime(now)).unwrap());
        } else {
            let new = self.next_value(random);
            // Bytes that are there already are a touch.
            if new != value(&old.value) {
                self.covered.insert(value(&old.value));
            }
            let base = here.lags.then_some(&old.written.history);
            here.step(|records| records.write_from(clock, uid, content(new), mtime(now), None, base).unwrap());
        }
        here.hold(uid);
        let new = here.records.record(uid).unwrap().unwrap().content.unwrap();
        let edit = if touch || new.value == recorded.value {
            self.edit[&recorded.written.version]
        } else {
            new.written.version
        };
        self.edit.insert(new.written.version, edit);
    }

    fn note(&mut self, here: &Replica, uid: Uid) {
        let p = here.records.record(uid).unwrap().unwrap().placement;
        let latest = self.latest.entry(uid).or_insert_with(|| p.clone());
        if p.written.stamp() > latest.written.stamp() {
            *latest = p;
        }
    }

    /// `rm -r`. A directory before what is in it: what it consists of may change as its children go.
    pub(crate) fn delete(&mut self, here: &mut Replica, uid: Uid, now: i64) {
        let tree = here.view();
        let children: Vec<Uid> = tree
            .shown
            .iter()
            .filter(|(one, at)| at.parent == uid && here.in_tree(**one, at))
            .map(|(&uid, _)| uid)
            .collect();
        let group = tree.merged.get(&uid).cloned().unwrap_or_else(|| vec![uid]);
        for &one in &group {
            let content = here.seen(one);
            self.covered.extend(content.as_ref().map(|c| value(&c.value)));
            self.deleted.insert((one, content.map(|c| self.edit[&c.written.version])));
        }
        let (clock, seen) = (here.clock(now), here.seen(uid).filter(|_| here.lags));
        let seen = seen.map(|content| content.written.history);
        here.step(|records| records.remove_from(clock, uid, seen.as_ref()).unwrap());
        here.held.remove(&uid);
        for child in children {
            self.delete(here, child, now);
        }
        for one in group {
            self.note(here, one);
        }
    }

    /// `mv`.
    pub(crate) fn place(&mut self, here: &mut Replica, (uid, parent, to): Step, now: i64, over: bool) {
        let tree = here.view();
        let target: Vec<Uid> = tree
            .shown
            .iter()
            .filter(|(one, at)| **one != uid && at.parent == parent && here.in_tree(**one, at))
            .filter(|(_, at)| same_name(at.name.bytes(), to.as_bytes(), here.names))
            .map(|(&uid, _)| uid)
            .collect();
        let there = tree.shown.get(&uid).is_none_or(|at| (at.parent, &at.name) == (parent, &name(&to)));
        let mut above = parent;
        while above != Uid::ROOT && above != uid {
            let Some(place) = tree.shown.get(&above) else { break };
            above = place.parent;
        }
        if there || above != Uid::ROOT || !target.is_empty() && !over {
            return;
        }
        for one in target {
            self.delete(here, one, now);
        }
        let clock = here.clock(now);
        here.step(|records| records.place(clock, uid, parent, name(&to)).unwrap());
        let group = tree.merged.get(&uid).cloned().unwrap_or_else(|| vec![uid]);
        for one in if broken(Rule::AMoveTakesAllThatIsMerged) { vec![uid] } else { group } {
            self.placed.insert(one);
            self.note(here, one);
        }
    }

    pub(crate) fn create(
        &mut self,
        random: &mut Random,
        here: &mut Replica,
        parent: Uid,
        to: &str,
        directory: bool,
        now: i64,
    ) -> Uid {
        let clock = here.clock(now);
        let mut new = NewThing::directory(parent, name(to));
        if !directory {
            new = NewThing::file(parent, name(to), content(self.next_value(random)), mtime(now));
        }
        let uid = here.step(|records| records.add(clock, new).unwrap());
        self.note(here, uid);
        here.hold(uid);
        if let Some(content) = here.records.record(uid).unwrap().unwrap().content {
            self.edit.insert(content.written.version, content.written.version);
        }
        uid
    }

    /// One change, made on the tree that the replica shows; whoever changes the tree writes down first what it rests on.
    pub(crate) fn act(&mut self, random: &mut Random, here: &mut Replica, now: i64) {
        here.resolve(now, ResolveScope::All);
        if let Some(steps) = self.todo.get_mut(&here.letter).filter(|steps| !steps.is_empty()) {
            let step = steps.remove(0);
            return self.place(here, step, now, false);
        }
        let mut shown = here.view().shown;
        shown.retain(|uid, place| here.in_tree(*uid, place));
        let mine: Vec<Uid> =
            shown.keys().copied().filter(|uid| !self.apart || uid.0.replica == here.records.replica()).collect();
        let (directories, files): (Vec<Uid>, Vec<Uid>) = mine.iter().partition(|uid| shown[uid].directory);
        let parent = *random.choice(&[vec![Uid::ROOT], directories].concat());
        let own = if self.apart { char::from(here.letter).to_string() } else { String::new() };
        let mut to = format!("{own}n{}", random.below(4));
        if here.names == Names::Windows {
            // In another case, or in another normalisation form.
            to = ["n\u{e9}", "ne\u{301}", "N\u{c9}", "Ne\u{301}"][random.below(4)].to_owned() + &to;
        }
        let taken = |at: &Name| same_name(at.bytes(), to.as_bytes(), here.names);
        let free = !shown.values().any(|place| place.parent == parent && taken(&place.name));
        // Some are in demand.
        let pick = |random: &mut Random, things: &[Uid]| {
            let some = if random.chance(60) { things.len().min(2) } else { things.len() };
            *random.choice(&things[..some])
        };
        match random.below(100) {
            act if act < 30 || mine.is_empty() => {
                if free {
                    self.create(random, here, parent, &to, act < 14, now);
                }
            }
            act @ 30..52 if !files.is_empty() => {
                let uid = pick(random, &files);
                self.write(random, here, uid, now, act > 45);
            }
            52..66 => {
                let uid = pick(random, &mine);
                self.place(here, (uid, parent, to), now, false);
            }
            66..78 => {
                let uid = pick(random, &mine);
                self.delete(here, uid, now);
            }
            78..81 => {
                let (uid, clock) = (pick(random, &mine), here.clock(now));
                let mode = u32::try_from(random.below(0o7777)).unwrap();
                let value = Attributes { mode, ..Attributes::default() };
                here.step(|records| records.set_attributes(clock, uid, value, None).unwrap());
            }
            81..86 if !files.is_empty() => {
                let (one, two) = (*random.choice(&files), pick(random, &files));
                let to = &shown[&two];
                self.place(here, (one, to.parent, to.name.to_string()), now, true);
            }
            _ => self.rotate(random, here, pick, &mine, now),
        }
    }

    /// `mv site site.old; mv site.new site`; or a rotation of three.
    fn rotate(
        &mut self,
        random: &mut Random,
        here: &mut Replica,
        pick: impl Fn(&mut Random, &[Uid]) -> Uid,
        mine: &[Uid],
        now: i64,
    ) {
        let tree = here.view();
        let shown = &tree.shown;
        let parent = shown[&pick(random, mine)].parent;
        let mut ring: Vec<Uid> = mine.iter().copied().filter(|uid| shown[uid].parent == parent).collect();
        random.shuffle(&mut ring);
        ring.truncate(2 + random.below(2));
        let name_of = |uid: Uid| shown[&uid].name.to_string();
        let mut steps = vec![(ring[0], parent, name_of(ring[0]) + ".old")];
        steps.extend(ring.windows(2).map(|pair| (pair[1], parent, name_of(pair[0]))));
        let last = (ring[0], parent, name_of(*ring.last().unwrap()));
        match random.below(4) {
            0 => steps.push(last),
            1 => {
                // All of it was found at once, and becomes visible at once.
                steps[0] = last;
                self.place_all(here, &steps, now);
                return;
            }
            _ => {}
        }
        self.todo.insert(here.letter, steps);
    }

    fn place_all(&mut self, here: &mut Replica, steps: &[Step], now: i64) {
        let (tree, clock) = (here.view(), here.clock(now));
        here.step(|records| {
            records.begin_changes(clock).unwrap();
            for (uid, parent, to) in steps {
                records.place(clock, *uid, *parent, name(to)).unwrap();
            }
            records.end_changes().unwrap();
        });
        for (uid, ..) in steps {
            let group = tree.merged.get(uid).cloned().unwrap_or_else(|| vec![*uid]);
            for one in if broken(Rule::AMoveTakesAllThatIsMerged) { vec![*uid] } else { group } {
                self.placed.insert(one);
                self.note(here, one);
            }
        }
    }
}
