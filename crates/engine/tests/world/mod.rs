//! Replicas, their users, and random histories, as `model/records.py` beside the design states them.
//!
//! After each step of each replica the incremental view is compared with the plain one, and a mirror that only follows
//! what is reported as touched is compared with the truth.

#![allow(clippy::unwrap_used, reason = "a test stops at the first thing that is not as it should be")]
#![allow(dead_code, reason = "each test program uses its part")]

pub(crate) mod check;
pub(crate) mod random;
pub(crate) mod users;

use std::collections::{BTreeMap, BTreeSet};

use anabranch_engine::{
    MemoryKv, PassEnd, Policy, Records, Resolution, ResolveScope, Settings, Shown, must_preserve,
    must_preserve_deleted, plain,
};
use anabranch_model::codec::decode_record;
use anabranch_model::{Content, ContentFacet, Hlc, Knowledge, Names, Record, ReplicaId, Uid};

pub(crate) use random::Random;

/// Seeds in a test run; `ANABRANCH_HISTORIES` asks for more.
#[allow(clippy::disallowed_methods, reason = "a run of the tests by hand may take longer")]
pub(crate) fn count(default: u64) -> u64 {
    std::env::var("ANABRANCH_HISTORIES").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

pub(crate) const PAGE_BYTES: usize = 1 << 20;

/// The file content that stands for a value.
pub(crate) fn content(value: u64) -> Content {
    let mut hash = [0; 32];
    hash[..8].copy_from_slice(&value.to_be_bytes());
    Content::File { size: value, hash }
}

pub(crate) fn value(content: &Content) -> u64 {
    match content {
        Content::File { size, .. } => *size,
        Content::Symlink { .. } => unreachable!("no history makes one"),
    }
}

pub(crate) struct Replica {
    pub(crate) records: Records<MemoryKv>,
    pub(crate) letter: u8,
    skew: i64,
    policy: Policy,
    pub(crate) names: Names,
    /// Values that were preserved as unseen.
    pub(crate) preserved: BTreeSet<u64>,
    mirror: BTreeMap<Uid, (Option<Record>, Option<Shown>)>,
    /// What is wrong with the view, if anything was.
    pub(crate) wrong: Option<String>,
    /// Compare the view with the plain one after each step.
    pub(crate) watch: bool,
    /// Content is not installed at once: users change what is held here, whatever the records say by then.
    pub(crate) lags: bool,
    /// Tombstones are collected.
    pub(crate) collects: bool,
    /// What is held here, deletes included.
    acknowledged: Knowledge,
    /// Where it lags: what is in the tree.
    pub(crate) held: BTreeMap<Uid, ContentFacet>,
}

impl Replica {
    pub(crate) fn new(letter: u8, skew: i64, policy: Policy, names: Names) -> Self {
        let settings = settings(letter, policy, names);
        let records = Records::create(MemoryKv::default(), ReplicaId([letter; 16]), settings).unwrap();
        Self {
            records,
            letter,
            skew,
            policy,
            names,
            preserved: BTreeSet::new(),
            mirror: BTreeMap::new(),
            wrong: None,
            watch: true,
            lags: false,
            collects: false,
            acknowledged: Knowledge::default(),
            held: BTreeMap::new(),
        }
    }

    /// The clock here.
    pub(crate) fn clock(&self, now: i64) -> Hlc {
        Hlc((1000 + now + self.skew).cast_unsigned())
    }

    pub(crate) fn all(&self) -> BTreeMap<Uid, Record> {
        let records = self.records.records(None, usize::MAX).unwrap();
        records.into_iter().map(|record| (record.uid, record)).collect()
    }

    /// What must be equal everywhere: all but the flags that say that maps were joined.
    pub(crate) fn state(&self) -> BTreeMap<Uid, Record> {
        let mut all = self.all();
        for record in all.values_mut() {
            record.placement.written.merged = false;
            if let Some(content) = &mut record.content {
                content.written.merged = false;
            }
            if let Some(attributes) = &mut record.attributes {
                attributes.written.merged = false;
            }
        }
        all
    }

    /// As [`Self::state`], without what is deleted: some may have collected it already.
    fn live_state(&self) -> BTreeMap<Uid, Record> {
        let mut state = self.state();
        if self.collects {
            state.retain(|&uid, _| self.records.live(uid).unwrap());
        }
        state
    }

    pub(crate) fn view(&self) -> plain::Tree {
        plain::view(&self.all(), self.policy, self.names)
    }

    /// Runs one transaction, and looks at the view afterwards.
    pub(crate) fn step<T>(&mut self, act: impl FnOnce(&mut Records<MemoryKv>) -> T) -> T {
        self.records.begin().unwrap();
        let out = act(&mut self.records);
        self.records.commit().unwrap();
        if self.watch {
            self.look();
        }
        out
    }

    fn look(&mut self) {
        let all = self.all();
        for uid in self.records.drain_touched() {
            let now = (all.get(&uid).cloned(), self.records.shown(uid).unwrap());
            self.mirror.insert(uid, now);
        }
        if let Err(wrong) = check::view(&self.records, &all, self.policy, self.names, &self.mirror) {
            self.wrong.get_or_insert(wrong);
        }
    }

    /// A crash, and what the database says after it.
    pub(crate) fn restart(&mut self) {
        let kv = self.records.kv().committed();
        self.records = Records::open(kv, settings(self.letter, self.policy, self.names)).unwrap().unwrap();
        if self.watch {
            self.look();
        }
    }

    pub(crate) fn resolve(&mut self, now: i64, scope: ResolveScope) {
        let (now, mut preserved) = (self.clock(now), Vec::new());
        self.step(|records| {
            records
                .resolve_each(now, scope, &mut |records, resolution| {
                    if let Resolution::Deleted { uid, winner } = resolution {
                        let value = |uid| Ok(records.record(uid)?.and_then(|r| r.content).map(|c| value(&c.value)));
                        let (lost, won) = (value(uid)?, value(winner)?);
                        preserved.extend(lost.filter(|_| lost != won));
                    }
                    Ok(())
                })
                .unwrap()
        });
        if !self.lags {
            self.preserved.extend(preserved);
        }
    }

    /// Installs what the records say, of each file perhaps, and preserves what a member preserves then.
    pub(crate) fn install(&mut self, mut now: impl FnMut() -> bool) {
        let mut all = true;
        for (uid, record) in self.all().into_iter().filter(|_| self.lags) {
            if self.records.loser(uid).unwrap().is_some() || !now() {
                all = false;
                continue;
            }
            let Some(content) = record.content else { continue };
            let live = self.records.live(uid).unwrap();
            if let Some(held) = self.held.get(&uid) {
                let unseen = match live {
                    true => must_preserve(&content, &held.value, held.bytes.version),
                    false => must_preserve_deleted(&record.placement, held.bytes.version),
                };
                self.preserved.extend(unseen.then(|| value(&held.value)));
            }
            if live {
                self.held.insert(uid, content);
            } else {
                self.held.remove(&uid);
            }
        }
        if all {
            self.acknowledged = self.records.known().clone();
        }
    }

    /// The content that a user sees here.
    pub(crate) fn seen(&self, uid: Uid) -> Option<ContentFacet> {
        if self.lags {
            return self.held.get(&uid).cloned();
        }
        self.records.record(uid).unwrap().and_then(|record| record.content)
    }

    /// Is it in the tree that users see?
    pub(crate) fn in_tree(&self, uid: Uid, place: &Shown) -> bool {
        place.directory || !self.lags || self.held.contains_key(&uid)
    }

    /// What this replica acknowledges: what it knows, where it holds all of that.
    pub(crate) fn acknowledged(&self) -> &Knowledge {
        if self.lags { &self.acknowledged } else { self.records.known() }
    }

    /// What a user wrote is held.
    pub(crate) fn hold(&mut self, uid: Uid) {
        let content = self.records.record(uid).unwrap().and_then(|record| record.content);
        if let Some(content) = content.filter(|_| self.lags) {
            self.held.insert(uid, content);
        }
    }

    /// A pass, or a part of it of at most `limit` rows, which then is kept for the next time or dropped.
    pub(crate) fn pull(&mut self, upstream: &Records<MemoryKv>, limit: Option<usize>, keep: bool, now: i64) {
        let (now, mut lost, from) = (self.clock(now), Vec::new(), upstream.replica());
        self.step(|records| {
            for page in 0.. {
                if limit.is_some_and(|limit| page >= limit) {
                    if !keep {
                        records.drop_pass(from).unwrap();
                    }
                    break;
                }
                let reached = records.pass_state(from).unwrap().reached;
                let bytes = if limit.is_some() { 1 } else { PAGE_BYTES };
                let page = upstream.page(reached, records.known(), bytes).unwrap();
                let rows: Vec<_> = page.rows.iter().map(|row| decode_record(row, &page.dictionary).unwrap()).collect();
                if let Some(known) = page.complete {
                    let each = &mut |taken: &anabranch_engine::Taken| {
                        lost.extend(taken.lost_content.as_ref().map(|c| value(&c.value)));
                    };
                    let end = records.complete_pass_with(from, rows, page.through, &known, now, u64::MAX, each);
                    assert!(matches!(end.unwrap(), PassEnd::Complete(_)));
                    break;
                }
                records.lay_aside_all(from, &rows).unwrap();
                records.set_reached(from, page.through, page.through).unwrap();
            }
        });
        if !self.lags {
            self.preserved.extend(lost);
        }
    }
}

fn settings(letter: u8, policy: Policy, names: Names) -> Settings {
    Settings { policy, names, author: char::from(letter).to_string().into(), ..Settings::default() }
}

/// Two different replicas.
pub(crate) fn two(replicas: &mut [Replica], here: usize, upstream: usize) -> (&mut Replica, &Replica) {
    let [here, upstream] = replicas.get_disjoint_mut([here, upstream]).unwrap();
    (here, upstream)
}

/// Who pulls from whom: everybody from everybody, or only along a chain, or from a hub. Pairs of places in `order`.
pub(crate) fn connect(random: &mut Random, order: &[usize]) -> Vec<(usize, usize)> {
    let shape = random.below(3);
    let mut links = Vec::new();
    for i in 0..order.len() {
        for k in 0..i {
            if shape == 0 || shape == 1 && i - k == 1 || shape == 2 && k == 0 {
                links.push((order[i], order[k]));
            }
        }
    }
    let back: Vec<_> = links.iter().map(|&(i, k)| (k, i)).collect();
    links.extend(back);
    links
}

/// A pass between two replicas, perhaps cut, perhaps one that goes on. Says who pulled.
pub(crate) fn exchange(random: &mut Random, replicas: &mut [Replica], links: &[(usize, usize)], now: i64) -> usize {
    let &(here, upstream) = random.choice(links);
    let limit = *random.choice(&[None, None, Some(1), Some(2), Some(3), Some(5)]);
    let keep = random.chance(70);
    let (one, other) = two(replicas, here, upstream);
    one.pull(&other.records, limit, keep, now);
    if random.chance(50) {
        let scope = if random.chance(50) { ResolveScope::Own } else { ResolveScope::All };
        one.resolve(now, scope);
    }
    let percent = random.below(70);
    one.install(|| random.chance(percent));
    if random.chance(3) {
        one.restart();
    }
    here
}

/// Changes have stopped, and everybody hears everybody, directly or not: do they come to one state?
pub(crate) fn settle(replicas: &mut [Replica], links: &[(usize, usize)], now: i64) -> bool {
    for _ in 0..60 {
        for &(here, upstream) in links {
            let (here, upstream) = two(replicas, here, upstream);
            here.pull(&upstream.records, None, true, now);
        }
        for here in &mut *replicas {
            here.resolve(now, ResolveScope::All);
        }
        let (state, known) = (replicas[0].live_state(), replicas[0].records.known().clone());
        if replicas.iter().all(|r| *r.records.known() == known && r.live_state() == state) {
            return true;
        }
    }
    false
}
