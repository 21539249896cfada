//! Each rule of `model/records.py` is needed: without it, some history goes wrong.

#![allow(clippy::unwrap_used, reason = "a test stops at the first thing that is not as it should be")]

mod scenarios;
mod world;

use anabranch_engine::{Policy, Rule, rules::break_rule};
use anabranch_model::Names;

/// The most histories of each check and policy that a mutant may live through.
const SEEDS_MAX: u64 = 3000;

/// What caught a mutant, and after how many histories.
fn caught(rule: Option<Rule>, seeds: u64) -> Option<(u64, String)> {
    break_rule(rule);
    let mut tried = 0;
    let found = (0..seeds).find_map(|seed| {
        [Policy::Preserve, Policy::KeepBeside].into_iter().find_map(|policy| {
            tried += 1;
            let merging = || if seed % 4 == 0 { scenarios::merging(seed, policy, Names::Bytes, false) } else { None };
            scenarios::history(seed, policy, Names::Bytes, false).or_else(merging)
        })
    });
    break_rule(None);
    found.map(|wrong| (tried, wrong))
}

#[test]
fn every_rule_is_needed() {
    let mut alive = Vec::new();
    for rule in Rule::ALL {
        match caught(Some(rule), SEEDS_MAX) {
            Some((tried, wrong)) => eprintln!("without {rule:?}: {wrong}, after {tried} histories"),
            None => alive.push(rule),
        }
    }
    assert_eq!(alive, [], "these rules can be broken and no history notices");
}

#[test]
fn with_all_rules_nothing_is_wrong() {
    assert_eq!(caught(None, 50), None);
}
