//! Is the incremental view the plain one?

use std::collections::{BTreeMap, BTreeSet};

use anabranch_engine::{MemoryKv, Policy, Records, Shown, plain};
use anabranch_model::{Name, Names, Record, Uid, fold, same_name};

macro_rules! same {
    ($what:expr, $found:expr, $want:expr) => {
        if $found != $want {
            return Err(format!("view: {}: {:?} instead of {:?}", $what, $found, $want));
        }
    };
}

pub(crate) fn view(
    records: &Records<MemoryKv>,
    all: &BTreeMap<Uid, Record>,
    policy: Policy,
    rule: Names,
    mirror: &BTreeMap<Uid, (Option<Record>, Option<Shown>)>,
) -> Result<(), String> {
    let tree = plain::view(all, policy, rule);
    let live: BTreeSet<Uid> =
        tree.merged.values().flatten().chain(tree.shown.keys()).chain(tree.losers.keys()).copied().collect();
    for &uid in all.keys() {
        let shown = records.shown(uid).unwrap();
        same!(format!("shown {uid:?}"), shown.as_ref(), tree.shown.get(&uid));
        let loser = records.loser(uid).unwrap();
        let beside =
            policy == Policy::KeepBeside && tree.moved.contains_key(&uid) && !all[&uid].placement.value.directory;
        same!(format!("loser {uid:?}"), loser.is_some(), beside || tree.losers.contains_key(&uid));
        if policy == Policy::Preserve {
            same!(format!("winner over {uid:?}"), loser.as_ref(), tree.losers.get(&uid));
        }
        same!(format!("live {uid:?}"), records.live(uid).unwrap(), live.contains(&uid));
        let (seen, place) = mirror.get(&uid).cloned().unwrap_or_default();
        same!(format!("record touched {uid:?}"), seen.as_ref(), all.get(&uid));
        same!(format!("place touched {uid:?}"), place.as_ref(), tree.shown.get(&uid));
    }
    for (&shown, group) in &tree.merged {
        for &uid in group {
            same!(format!("shown as {uid:?}"), records.shown_as(uid).unwrap(), Some(shown));
            same!(format!("group of {uid:?}"), &records.group(uid).unwrap(), group);
        }
    }
    let mut children: BTreeMap<Uid, Vec<(Name, Uid, bool)>> = BTreeMap::new();
    children.insert(Uid::ROOT, Vec::new());
    children.extend(tree.merged.keys().map(|&uid| (uid, Vec::new())));
    for (&uid, place) in &tree.shown {
        children.entry(place.parent).or_default().push((place.name.clone(), uid, place.directory));
    }
    for (&parent, want) in &mut children {
        let key = |name: &Name| fold(name.bytes(), rule).into_owned();
        want.sort_by_cached_key(|thing| (key(&thing.0), thing.clone()));
        let found = records.shown_children(parent, None, usize::MAX >> 1).unwrap();
        same!(format!("children of {parent:?}"), &found, want);
        let Some((name, _, _)) = want.first() else { continue };
        // Somebody may have given a thing the name that was derived for another; until that is resolved two have it.
        let rest = records.shown_children(parent, Some(name.bytes()), 2).unwrap();
        let later: Vec<_> =
            want.iter().map(|(other, _, _)| other).filter(|other| key(other) > key(name)).take(2).collect();
        same!(format!("later children of {parent:?}"), rest.iter().map(|(name, _, _)| name).collect::<Vec<_>>(), later);
        for (name, uid, _) in want.iter() {
            let same = |other: &Name| same_name(other.bytes(), name.bytes(), rule);
            let unique = want.iter().filter(|(other, _, _)| same(other)).count() == 1;
            if unique {
                same!(format!("shown at {name}"), records.shown_at(parent, name.bytes()).unwrap(), Some(*uid));
                let folded = key(name);
                same!(format!("shown at the key of {name}"), records.shown_at(parent, &folded).unwrap(), Some(*uid));
            }
        }
    }
    same!("unresolved", records.unresolved(), (tree.moved.len() + tree.losers.len()) as u64);
    let conflicts: BTreeSet<Uid> = records.conflicts(None, usize::MAX).unwrap().into_iter().collect();
    same!("conflicts", conflicts, tree.moved.keys().chain(tree.losers.keys()).copied().collect::<BTreeSet<_>>());
    Ok(())
}
