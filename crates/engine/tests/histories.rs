//! Random histories of several replicas keep what the design's section 19 promises, as far as records go.

#![allow(clippy::unwrap_used, reason = "a test stops at the first thing that is not as it should be")]

mod scenarios;
mod world;

use anabranch_engine::Policy;
use anabranch_model::Names;
use world::count;

fn run(check: fn(u64, Policy, Names, bool) -> Option<String>, policy: Policy, count: u64) {
    for seed in 0..count {
        for rule in [Names::Bytes, Names::Windows] {
            if let Some(wrong) = check(seed, policy, rule, true) {
                panic!("seed {seed}, {policy:?}, names {rule:?}: {wrong}");
            }
        }
    }
}

#[test]
fn histories_that_preserve() {
    run(scenarios::history, Policy::Preserve, count(60));
}

#[test]
fn histories_that_keep_beside() {
    run(scenarios::history, Policy::KeepBeside, count(60));
}

#[test]
fn merged_directories_that_preserve() {
    run(scenarios::merging, Policy::Preserve, count(60));
}

#[test]
fn merged_directories_that_keep_beside() {
    run(scenarios::merging, Policy::KeepBeside, count(60));
}
