//! The view, derived from nothing: the statement of the rules that the incremental one is tested against.
//!
//! Takes all records at once and looks at each again and again. Must stay obvious, not fast.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use anabranch_model::{Name, Names, Record, Uid, fold};

use crate::query::Shown;
use crate::records::Policy;
use crate::rules::live_by_record;

/// What the records derive.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tree {
    /// Where things are shown.
    pub shown: BTreeMap<Uid, Shown>,
    /// Directory shown -> all live directories of that name in that place, itself first.
    pub merged: BTreeMap<Uid, Vec<Uid>>,
    /// Where a cut cycle or a name conflict puts a thing.
    pub moved: BTreeMap<Uid, (Uid, Name)>,
    /// File that lost its name and is preserved -> what has the name.
    pub losers: BTreeMap<Uid, Uid>,
}

/// Derives the tree: what is live; then cycles are cut; then directories of one name in one place are merged; then files
/// give way. One name is what has one key under `rule`.
#[must_use]
pub fn view(records: &BTreeMap<Uid, Record>, policy: Policy, rule: Names) -> Tree {
    let mut live: BTreeMap<Uid, Shown> = BTreeMap::new();
    let recorded = |uid: Uid| {
        records.get(&uid).map(|record| {
            let p = &record.placement.value;
            Shown { parent: p.parent, name: p.name.clone(), directory: p.directory }
        })
    };
    let mut todo: Vec<Uid> = records.values().filter(|record| live_by_record(record)).map(|r| r.uid).collect();
    while let Some(uid) = todo.pop() {
        // A directory with a live child is live.
        let Some(place) = recorded(uid) else { continue };
        let parent = place.parent;
        if live.insert(uid, place).is_none() && recorded(parent).is_some_and(|place| place.directory) {
            todo.push(parent);
        }
    }
    let mut tree = Tree::default();
    while let Some(cycle) = find_cycle(&live) {
        // A cycle is cut at its earliest placement.
        let stamp = |uid: &Uid| records.get(uid).map(|record| record.placement.written.stamp());
        let Some(cut) = cycle.into_iter().min_by_key(stamp) else { break };
        if let Some(place) = live.get_mut(&cut) {
            place.parent = Uid::ROOT;
            place.name = place.name.beside(cut);
            tree.moved.insert(cut, (Uid::ROOT, place.name.clone()));
        }
    }
    let shown_as = merge_directories(&live, rule);
    let shown = |uid: Uid| shown_as.get(&uid).copied().unwrap_or(uid);
    for (&uid, place) in &live {
        if place.directory {
            tree.merged.entry(shown(uid)).or_default().push(uid);
        }
        if shown(uid) == uid {
            tree.shown.insert(uid, Shown { parent: shown(place.parent), ..place.clone() });
        }
    }
    // The latest placement has the name; a directory always has it.
    let mut order: Vec<Uid> = tree.shown.keys().copied().collect();
    order.sort_by_key(|uid| {
        let directory = tree.shown.get(uid).is_some_and(|place| place.directory);
        (directory, records.get(uid).map(|record| record.placement.written.stamp()))
    });
    let mut names: BTreeMap<(Uid, Vec<u8>), Uid> = BTreeMap::new();
    for uid in order.into_iter().rev() {
        let (Some(place), Some(record)) = (tree.shown.get_mut(&uid), records.get(&uid)) else { continue };
        let winner = *names.entry((place.parent, fold(place.name.bytes(), rule).into_owned())).or_insert(uid);
        if winner == uid {
            continue;
        }
        match policy {
            Policy::KeepBeside => {
                place.name = place.name.kept_beside(&record.placement.value.author, uid);
                tree.moved.insert(uid, (record.placement.value.parent, place.name.clone()));
            }
            Policy::Preserve => {
                tree.losers.insert(uid, winner);
                tree.shown.remove(&uid);
            }
        }
    }
    tree
}

/// Directory -> the lowest UID of its name in its shown place. Merging may bring together directories in them, and so on.
fn merge_directories(live: &BTreeMap<Uid, Shown>, rule: Names) -> BTreeMap<Uid, Uid> {
    let mut shown_as: BTreeMap<Uid, Uid> = BTreeMap::new();
    loop {
        let before = shown_as.clone();
        let mut names: BTreeMap<(Uid, Cow<'_, [u8]>), Uid> = BTreeMap::new();
        for (&uid, place) in live.iter().filter(|(_, place)| place.directory) {
            let parent = before.get(&place.parent).copied().unwrap_or(place.parent);
            let first = *names.entry((parent, fold(place.name.bytes(), rule))).or_insert(uid);
            shown_as.insert(uid, first);
        }
        if shown_as == before {
            return shown_as;
        }
    }
}

fn find_cycle(live: &BTreeMap<Uid, Shown>) -> Option<Vec<Uid>> {
    let mut passed = BTreeSet::new();
    for &start in live.keys() {
        let (mut path, mut uid) = (Vec::new(), start);
        while let Some(place) = live.get(&uid).filter(|place| place.directory && passed.insert(uid)) {
            path.push(uid);
            uid = place.parent;
        }
        if let Some(at) = path.iter().position(|&other| other == uid) {
            return Some(path.split_off(at));
        }
    }
    None
}
