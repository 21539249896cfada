//! The incremental view is the plain one for any records at all, in any order: also for those that no history of honest
//! replicas brings about (a file as a parent, a parent without a record, a directory that becomes a file).

#![allow(clippy::unwrap_used, reason = "a test stops at the first thing that is not as it should be")]

mod world;

use std::collections::BTreeMap;

use anabranch_engine::{MemoryKv, PassEnd, Policy, Records, Settings, Shown, plain, rules::live_by_record};
use anabranch_model::{
    ChangeNumber, ContentFacet, Hlc, Knowledge, Names, Placement, PlacementFacet, Record, ReplicaId, Sequence, Time,
    Timestamp, Uid, Version, Written,
};
use world::{Random, check, content, users::name};

const OTHER: ReplicaId = ReplicaId([7; 16]);

/// UIDs of two replicas, whose interned numbers are not in the order of their ids.
fn uid(number: usize) -> Uid {
    let replica = ReplicaId([if number.is_multiple_of(2) { 9 } else { 3 }; 16]);
    Uid(Version { replica, sequence: Sequence(number as u64 + 1) })
}

fn written(random: &mut Random, sequence: u64) -> Written {
    let version = Version { replica: OTHER, sequence: Sequence(sequence) };
    // Clocks in no order, so that the earliest placement of a cycle may be any.
    let time = Time { clock: Hlc(sequence * 100 + random.below(99) as u64), change: version, resolutions: 0 };
    let history = [(OTHER, Sequence(sequence))].into_iter().collect();
    Written { version, time, history, merged: false }
}

fn record(random: &mut Random, sequence: u64, things: usize, rule: Names) -> Record {
    let number = random.below(things);
    // One in two is a directory; some are now this, now that.
    let directory = if number == 0 { random.chance(50) } else { number % 4 < 2 };
    let parents: Vec<Uid> = (0..things).map(uid).filter(|&parent| parent != uid(number)).collect();
    let parent = match random.below(10) {
        0..3 => Uid::ROOT,
        9 => uid(1000),
        _ => *random.choice(&parents),
    };
    let author = if random.chance(50) { "a" } else { "b" };
    let value = Placement {
        parent,
        name: name(match rule {
            Names::Bytes => ["x", "y", "z"][random.below(3)],
            // Three names again, of which two come in several forms.
            Names::Windows => ["x", "X", "y\u{e9}", "Ye\u{301}", "Y\u{c9}", "z"][random.below(6)],
        }),
        directory,
        deleted: random.chance(40),
        author: author.into(),
    };
    let placement = PlacementFacet { value, written: written(random, 3 * sequence), seen: Knowledge::default() };
    let facet = written(random, 3 * sequence + 1);
    let mut record = Record {
        uid: uid(number),
        placement,
        content: (!directory).then(|| ContentFacet {
            value: content(sequence),
            mtime: Timestamp::default(),
            birth: None,
            bytes: facet.stamp(),
            written: facet,
        }),
        attributes: None,
        unknown: [].into(),
    };
    if random.chance(70) {
        record.placement.seen = [(OTHER, Sequence(3 * sequence + 1))].into_iter().collect();
    }
    record
}

/// Records with descending clocks too: what is there already may win.
fn aged(random: &mut Random, mut record: Record) -> Record {
    if random.chance(30) {
        let clock = &mut record.placement.written.time.clock.0;
        *clock -= (*clock).min(random.below(2000) as u64);
    }
    record
}

fn listing(all: &BTreeMap<Uid, Record>) -> String {
    let line = |record: &Record| {
        let (p, live) = (&record.placement.value, live_by_record(record));
        format!("{:?} in {:?} {} directory {} live {live}\n", record.uid, p.parent, p.name, p.directory)
    };
    all.values().map(line).collect()
}

fn run(seed: u64, policy: Policy, rule: Names, seen: &mut BTreeMap<&'static str, u64>) -> Result<(), String> {
    let mut random = Random::new(seed);
    let things = 4 + random.below(14);
    let settings = Settings { policy, names: rule, ..Settings::default() };
    let mut records = Records::create(MemoryKv::default(), ReplicaId([5; 16]), settings.clone()).unwrap();
    let mut mirror: BTreeMap<Uid, (Option<Record>, Option<Shown>)> = BTreeMap::new();
    for sequence in 1..60 {
        records.begin().unwrap();
        match random.below(12) {
            0 => records.forget(uid(random.below(things))).unwrap(),
            1..4 => {
                // A pass, of which only the end counts.
                let mut last_page = BTreeMap::new();
                let at_once = random.below(2) == 0;
                for part in 0..random.below(6) as u64 {
                    let record = record(&mut random, 100 * sequence + part, things, rule);
                    let record = aged(&mut random, record);
                    match at_once {
                        true => drop(last_page.insert(record.uid, record)),
                        false => records.lay_aside(OTHER, &record).unwrap(),
                    }
                }
                let (rows, known) = (last_page.into_values().collect(), Knowledge::default());
                let through = ChangeNumber(sequence);
                let end = records.complete_pass(OTHER, rows, through, &known, Hlc(0), u64::MAX).unwrap();
                assert!(matches!(end, PassEnd::Complete(_)));
            }
            4 => {
                let now = Hlc(0);
                records.resolve(now, anabranch_engine::ResolveScope::All).unwrap();
            }
            _ => {
                let record = record(&mut random, 100 * sequence, things, rule);
                records.take_in(aged(&mut random, record)).unwrap();
            }
        }
        if random.chance(10) {
            records.rollback().unwrap();
        } else {
            records.commit().unwrap();
        }
        let all: BTreeMap<Uid, Record> =
            records.records(None, usize::MAX).unwrap().into_iter().map(|r| (r.uid, r)).collect();
        for uid in records.drain_touched() {
            mirror.insert(uid, (all.get(&uid).cloned(), records.shown(uid).unwrap()));
        }
        check::view(&records, &all, policy, rule, &mirror)
            .map_err(|wrong| format!("step {sequence}: {wrong}\n{}", listing(&all)))?;
        let tree = plain::view(&all, policy, rule);
        let cuts = tree.moved.keys().filter(|uid| all[uid].placement.value.directory).count();
        let merged = tree.merged.values().filter(|group| group.len() > 1).count();
        let nested = tree.merged.values().filter(|g| g.len() > 1).any(|g| {
            g.iter().any(|&uid| tree.merged.get(&all[&uid].placement.value.parent).is_some_and(|g| g.len() > 1))
        });
        let kept = tree.merged.values().flatten().filter(|uid| all[uid].placement.value.deleted).count();
        let lost = tree.moved.len() - cuts + tree.losers.len();
        for (what, count) in
            [("cuts", cuts), ("merged", merged), ("nested", usize::from(nested)), ("kept", kept), ("lost", lost)]
        {
            *seen.entry(what).or_default() += u64::from(count > 0);
        }
    }
    // Another policy, another rule for names: the view is made anew.
    let policy = if policy == Policy::Preserve { Policy::KeepBeside } else { Policy::Preserve };
    let rule = if random.chance(50) { Names::Bytes } else { Names::Windows };
    let kv = records.kv().committed();
    let mut records = Records::open(kv, Settings { policy, names: rule, ..settings }).unwrap().unwrap();
    let all: BTreeMap<Uid, Record> =
        records.records(None, usize::MAX).unwrap().into_iter().map(|r| (r.uid, r)).collect();
    for uid in records.drain_touched() {
        mirror.insert(uid, (all.get(&uid).cloned(), records.shown(uid).unwrap()));
    }
    check::view(&records, &all, policy, rule, &mirror).map_err(|wrong| format!("made anew: {wrong}"))
}

#[test]
fn the_incremental_view_is_the_plain_one() {
    let count = world::count(100);
    let mut seen = BTreeMap::new();
    for seed in 0..count {
        for policy in [Policy::Preserve, Policy::KeepBeside] {
            for rule in [Names::Bytes, Names::Windows] {
                if let Err(wrong) = run(seed, policy, rule, &mut seen) {
                    panic!("seed {seed}, {policy:?}, names {rule:?}: {wrong}");
                }
            }
        }
    }
    // The records are of no use if they bring nothing about.
    for what in ["cuts", "merged", "nested", "kept", "lost"] {
        assert!(seen[what] > count / 20, "too few {what}: {seen:?}");
    }
}
