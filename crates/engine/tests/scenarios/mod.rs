//! The two checks of `model/records.py`: `history` and `merging`.

use std::collections::{BTreeMap, BTreeSet};

use anabranch_engine::{Policy, Shown, plain};
use anabranch_model::{Content, Knowledge, Names, ReplicaId, Uid, fold};

use crate::world::users::Users;
use crate::world::{Random, Replica, connect, exchange, settle, value};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Together,
    Single,
    Apart,
}

/// The tree with its contents.
fn whole(replica: &Replica) -> BTreeMap<Uid, (Shown, Option<Content>)> {
    let (all, tree) = (replica.all(), replica.view());
    tree.shown.into_iter().map(|(uid, at)| (uid, (at, all[&uid].content.as_ref().map(|c| c.value.clone())))).collect()
}

fn wrong_view(replicas: &[Replica]) -> Option<String> {
    replicas.iter().find_map(|replica| replica.wrong.clone())
}

/// One random history; what is wrong at its end, or nothing. One in four has a single writer, one in four has writers
/// that keep to things of their own. `watch`: compare the incremental view with the plain one after each step.
pub(crate) fn history(seed: u64, policy: Policy, rule: Names, watch: bool) -> Option<String> {
    let mut random = Random::new(2 * seed + u64::from(policy == Policy::KeepBeside));
    let kind = [Kind::Together, Kind::Single, Kind::Together, Kind::Apart][(seed % 4) as usize];
    let mut replicas = start(
        &mut random,
        3 + usize::from(!seed.is_multiple_of(3)) + usize::from(seed.is_multiple_of(5)),
        (policy, rule),
        watch,
    );
    for replica in &mut replicas {
        // In one history in three content comes later than its record.
        replica.lags = seed % 3 == 2;
        // In one in five tombstones are collected as soon as all know them.
        replica.collects = seed % 5 == 3;
    }
    let mut users = Users::default();
    users.apart = kind == Kind::Apart;
    let links = links(&mut random, replicas.len());
    let (mut now, mut past) = (0, BTreeSet::from([format!("{:?}", whole(&replicas[0]))]));
    let collects = replicas[0].collects;
    for _ in 0..random.between(20, 150) {
        now += random.between(0, 3);
        if collects && random.chance(20) {
            let acknowledged = acknowledged_by_all(&replicas);
            let here = random.below(replicas.len());
            replicas[here].step(|records| records.collect(&acknowledged, usize::MAX).unwrap());
        }
        if random.chance(50) {
            let here = exchange(&mut random, &mut replicas, &links, now);
            if kind == Kind::Single && !past.contains(&format!("{:?}", whole(&replicas[here]))) {
                return Some("intent: a tree that the writer never had".into());
            }
        } else {
            let here = if kind == Kind::Single { 0 } else { random.below(replicas.len()) };
            users.act(&mut random, &mut replicas[here], now);
            if kind == Kind::Single {
                past.insert(format!("{:?}", whole(&replicas[0])));
            }
        }
        if let Some(wrong) = wrong_view(&replicas) {
            return Some(wrong);
        }
    }
    let mut want = if kind == Kind::Apart { BTreeMap::new() } else { whole(&replicas[0]) };
    for replica in replicas.iter().filter(|_| kind == Kind::Apart) {
        let own = |uid: &Uid| uid.0.replica == replica.records.replica();
        want.extend(whole(replica).into_iter().filter(|(uid, _)| own(uid)));
    }
    if !settle(&mut replicas, &links, now) {
        return wrong_view(&replicas).or(Some("members do not converge".into()));
    }
    for replica in &mut replicas {
        replica.install(|| true);
    }
    if collects {
        let acknowledged = acknowledged_by_all(&replicas);
        for replica in &mut replicas {
            replica.step(|records| records.collect(&acknowledged, usize::MAX).unwrap());
        }
        if replicas.iter().any(|replica| replica.state() != replicas[0].state()) {
            return Some("what is not collected differs".into());
        }
    }
    wrong_view(&replicas).or_else(|| wrong_end(&replicas, &users, kind, &want))
}

fn acknowledged_by_all(replicas: &[Replica]) -> Knowledge {
    let all = |id: ReplicaId| replicas.iter().map(|replica| replica.acknowledged().sequence(id)).min().unwrap();
    replicas[0].records.known().iter().map(|(id, _)| (id, all(id))).collect()
}

fn start(random: &mut Random, count: usize, (policy, rule): (Policy, Names), watch: bool) -> Vec<Replica> {
    let mut replicas: Vec<Replica> = (0..count)
        .map(|at| {
            let skew = *random.choice(&[0, 0, -20, 30]);
            let mut replica = Replica::new(b'A' + u8::try_from(at).unwrap(), skew, policy, rule);
            replica.watch = watch;
            replica
        })
        .collect();
    random.shuffle(&mut replicas);
    replicas
}

fn links(random: &mut Random, count: usize) -> Vec<(usize, usize)> {
    let mut order: Vec<usize> = (0..count).collect();
    random.shuffle(&mut order);
    connect(random, &order)
}

fn wrong_end(
    replicas: &[Replica],
    users: &Users,
    kind: Kind,
    want: &BTreeMap<Uid, (Shown, Option<Content>)>,
) -> Option<String> {
    let (one, tree) = (replicas[0].all(), replicas[0].view());
    if replicas.iter().any(|replica| replica.view() != tree) {
        return Some("equal records, different trees".into());
    }
    let key = |at: &Shown| fold(at.name.bytes(), replicas[0].names).into_owned();
    let names: BTreeSet<(Uid, Vec<u8>)> = tree.shown.values().map(|at| (at.parent, key(at))).collect();
    if names.len() < tree.shown.len() || !tree.moved.is_empty() || !tree.losers.is_empty() {
        return Some("one name, two things".into());
    }
    let contents = || tree.shown.keys().filter_map(|uid| Some((*uid, one[uid].content.as_ref()?)));
    let mut kept: BTreeSet<u64> = contents().map(|(_, content)| value(&content.value)).collect();
    kept.extend(&users.covered);
    kept.extend(replicas.iter().flat_map(|replica| &replica.preserved));
    let lost: Vec<u64> = users.written.difference(&kept).copied().collect();
    if !lost.is_empty() {
        return Some(format!("content lost: {lost:?}"));
    }
    let edits: BTreeMap<Uid, _> =
        contents().map(|(uid, content)| (uid, users.edit[&content.written.version])).collect();
    for &uid in tree.shown.keys() {
        let deleted = users.deleted.contains(&(uid, edits.get(&uid).copied()));
        if deleted && !users.placed.contains(&uid) && !tree.shown.values().any(|at| at.parent == uid) {
            return Some(format!("deleted, and back: {uid:?}"));
        }
    }
    for (uid, placement) in &users.latest {
        let Some(record) = one.get(uid) else { continue };
        if !record.placement.written.history.covers(placement.written.version) {
            return Some(format!("a user's change was beaten by an older one or a resolution: {uid:?}"));
        }
    }
    if kind != Kind::Together && whole(&replicas[0]) != *want {
        return Some("intent: not the writer's tree".into());
    }
    let resolved = one.values().any(|record| record.placement.written.time.resolutions > 0);
    if kind != Kind::Together && (resolved || replicas.iter().any(|replica| !replica.preserved.is_empty())) {
        return Some("intent: preserved or resolved without need".into());
    }
    let issued = replicas[1..].iter().any(|replica| replica.records.highest().0 > 0);
    (kind == Kind::Single && issued).then(|| "intent: a version of no user".into())
}

/// Two users make a directory of one name, each with children. A third, who may have seen one of them or both, renames,
/// moves or deletes that name: this happens to the directories that they saw and to the children created in them, and to
/// nothing else.
pub(crate) fn merging(seed: u64, policy: Policy, rule: Names, watch: bool) -> Option<String> {
    let mut random = Random::new(2 * seed + u64::from(policy == Policy::KeepBeside) + 1_000_000);
    let mut replicas = start(&mut random, 4, (policy, rule), watch);
    let (mut users, links, mut now) = (Users::default(), links(&mut random, 4), 1);
    let mut above = Uid::ROOT;
    if random.chance(50) {
        above = users.create(&mut random, &mut replicas[0], Uid::ROOT, "above", true, now);
    }
    let other = users.create(&mut random, &mut replicas[0], Uid::ROOT, "other", true, now);
    for at in 1..4 {
        let (here, first) = crate::world::two(&mut replicas, at, 0);
        here.pull(&first.records, None, true, now);
    }
    let (mut tops, mut files) = (Vec::new(), BTreeMap::new());
    let acting = random.between(0, 25);
    for (at, here) in replicas[..2].iter_mut().enumerate() {
        // One name, by the rule.
        let [docs, sub] = if rule == Names::Windows && at == 1 { ["DOCS", "Sub"] } else { ["docs", "sub"] };
        let top = users.create(&mut random, here, above, docs, true, now);
        let sub = users.create(&mut random, here, top, sub, true, now);
        tops.push(top);
        for _ in 0..random.between(1, 3) {
            now += 1;
            let parent = *random.choice(&[top, sub]);
            let name = format!("f{}", files.len());
            files.insert(users.create(&mut random, here, parent, &name, false, now), name);
        }
    }
    let (mut did, mut saw, mut gone) = (None, Vec::new(), BTreeSet::new());
    for step in 0..40 {
        now += random.between(0, 3);
        let tree = replicas[2].view();
        let here = random.below(4);
        let docs = tree.shown.iter().find(|(_, at)| at.parent == above && *fold(at.name.bytes(), rule) == *b"docs");
        let within = |at: &Shown| [&b"docs"[..], b"sub", b"papers"].contains(&&*fold(at.name.bytes(), rule));
        let inside: Vec<Uid> =
            replicas[here].view().shown.iter().filter(|(_, at)| within(at)).map(|(&uid, _)| uid).collect();
        if let (true, Some((&docs, _)), None) = (step >= acting, docs, &did) {
            saw.clone_from(&tree.merged[&docs]);
            let to = *random.choice(&[None, Some(above), Some(other)]);
            did = Some(to);
            if let Some(to) = to {
                users.place(&mut replicas[2], (docs, to, "papers".into()), now, false);
            } else {
                gone = files.keys().filter(|uid| tree.shown.contains_key(uid)).copied().collect();
                users.delete(&mut replicas[2], docs, now);
            }
        } else if !inside.is_empty() && random.chance(15) {
            let (parent, name) = (*random.choice(&inside), format!("f{}", files.len()));
            files.insert(users.create(&mut random, &mut replicas[here], parent, &name, false, now), name);
        } else {
            exchange(&mut random, &mut replicas, &links, now);
        }
        if let Some(wrong) = wrong_view(&replicas) {
            return Some(wrong);
        }
    }
    if !settle(&mut replicas, &links, now) {
        return wrong_view(&replicas).or(Some("members do not converge".into()));
    }
    let tree = replicas[2].view();
    let mut want = BTreeSet::new();
    for (uid, name) in files.iter().filter(|(uid, _)| !gone.contains(uid)) {
        let (mut top, mut inside) = (users.latest[uid].value.parent, vec![name.clone()]);
        while !tops.contains(&top) {
            inside.insert(0, users.latest[&top].value.name.to_string());
            top = users.latest[&top].value.parent;
        }
        let (directory, last) = match did {
            Some(Some(to)) if saw.contains(&top) => (to, "papers"),
            _ => (above, "docs"),
        };
        let mut at = path(&tree, directory);
        at.push(last.into());
        at.append(&mut inside);
        want.insert(keys(at, rule));
    }
    let shown = tree.shown.iter().filter(|(_, at)| !at.directory).map(|(&uid, _)| keys(path(&tree, uid), rule));
    if shown.collect::<BTreeSet<_>>() != want {
        return Some("merged directories: children go astray".into());
    }
    let preserved = replicas.iter().any(|replica| !replica.preserved.is_empty());
    wrong_view(&replicas).or_else(|| preserved.then(|| "merged directories: preserved".into()))
}

/// The keys of a path's names: a merged directory has one of the names that it was given.
fn keys(path: Vec<String>, rule: Names) -> Vec<Vec<u8>> {
    path.iter().map(|name| fold(name.as_bytes(), rule).into_owned()).collect()
}

fn path(tree: &plain::Tree, uid: Uid) -> Vec<String> {
    let Some(at) = tree.shown.get(&uid) else { return Vec::new() };
    let mut out = path(tree, at.parent);
    out.push(at.name.to_string());
    out
}
