//! Directories that their owner may not write, on a member that does not run as root.

#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod couple;

use std::collections::BTreeMap;

use anabranch_member::{Input, Limits};
use anabranch_volume::fs::Abilities;
use anabranch_volume::simulated::{DiskConfig, SimFs};
use couple::Couple;

/// A member that runs as the owner of the tree.
fn ordinary() -> DiskConfig {
    let config = DiskConfig::default();
    DiskConfig { process: config.user, abilities: Abilities { owners: false, ..config.abilities }, ..config }
}

fn start() -> Couple {
    let mut couple = Couple::new(Limits::default(), ordinary(), |fs| {
        for dir in [&b"locked"[..], b"locked/inner", b"open"] {
            fs.mkdir(dir).unwrap();
        }
        for file in [&b"locked/a"[..], b"locked/b", b"locked/inner/c", b"open/d"] {
            fs.write(file, file).unwrap();
        }
        fs.chmod(b"locked/inner", 0o555).unwrap();
        fs.chmod(b"locked", 0o555).unwrap();
    });
    couple.connect();
    couple
}

/// Modes of directories, and contents.
fn shown(fs: &SimFs) -> BTreeMap<Vec<u8>, (u32, Option<Vec<u8>>)> {
    let content = |c: &anabranch_volume::simulated::Thing| c.bytes().to_vec();
    fs.tree().into_iter().map(|(path, e)| (path, (e.attributes.mode, e.content.as_ref().map(content)))).collect()
}

fn settle(couple: &mut Couple) {
    for _ in 0..20_000 {
        if couple.members[1].replica.is_none() {
            return;
        }
        for at in 0..2 {
            let hints = couple.members[at].fs.take_hints();
            if !hints.is_empty() {
                couple.queue.push_back((at, Input::Hints(hints)));
            }
        }
        let idle = couple.queue.is_empty();
        let settled = |m: &couple::Member| m.replica.as_ref().is_some_and(|r| r.settled().unwrap());
        if idle && couple.members.iter().all(settled) && couple.members[1].replica.as_ref().unwrap().pulled() {
            return;
        }
        couple.step();
    }
    panic!("it does not come to rest: {:?}", couple.members[1].replica.as_ref().unwrap().waiting_items(9));
}

fn expect_equal(couple: &Couple, when: &str) {
    let [one, two] = &couple.members;
    assert_eq!(shown(&two.fs), shown(&one.fs), "{when}");
    // Our own lifting of the mode is nobody's change.
    let replica = two.replica.as_ref().unwrap();
    assert!(replica.records().known().sequence(replica.replica_id()).0 == 0, "{when}: the second issued versions");
    assert_eq!(replica.counters().unseen, 0, "{when}");
}

/// In the first one's tree, as its users, who open the directories for it.
fn change(fs: &SimFs) {
    for dir in [&b"locked"[..], b"locked/inner"] {
        fs.chmod(dir, 0o755).unwrap();
    }
    fs.write(b"locked/a", b"edited").unwrap();
    fs.write(b"locked/new", b"new").unwrap();
    fs.remove(b"locked/b").unwrap();
    fs.rename(b"locked/inner/c", b"open/c").unwrap();
    fs.rename(b"open/d", b"locked/inner/d").unwrap();
    fs.chmod(b"locked/inner", 0o555).unwrap();
    fs.chmod(b"locked", 0o555).unwrap();
}

#[test]
fn they_are_filled_and_keep_their_mode() {
    let mut couple = start();
    settle(&mut couple);
    expect_equal(&couple, "at first");
    change(&couple.members[0].fs);
    settle(&mut couple);
    expect_equal(&couple, "after changes");
}

#[test]
fn a_crash_at_any_step_leaves_no_lifted_mode_behind() {
    for power_cut in [false, true] {
        let mut steps = 0;
        loop {
            let mut couple = start();
            settle(&mut couple);
            change(&couple.members[0].fs);
            couple.members[1].fs.power().cut_after(steps);
            settle(&mut couple);
            let died = couple.members[1].replica.take().is_none() || !couple.members[1].fs.power().is_on();
            if power_cut {
                drop(couple.members[1].fs.crash(steps));
            } else {
                couple.members[1].fs.process_died();
            }
            couple.restart(Limits::default());
            settle(&mut couple);
            expect_equal(&couple, &format!("power cut: {power_cut}, after step {steps}"));
            if !died {
                break;
            }
            steps += 1;
        }
        assert!(steps > 20, "only {steps} steps");
    }
}
