//! Two directories of one name that are shown as one, when the second one's daemon dies, or its disk fails, while it empties one
//! into the other: what it did by itself is nobody's change.

use crate::couple::{Couple, settle};
use anabranch_member::{Input, Limits};
use anabranch_volume::simulated::{Call, DiskConfig, Fault, Faults};

/// The first one's directory, which came from another name, is shown where the second one's user made one of his own.
fn start() -> Couple {
    let mut couple = Couple::new(Limits::default(), DiskConfig::default(), |fs| {
        fs.mkdir(b"site").unwrap();
        fs.mkdir(b"site/inner").unwrap();
        fs.write(b"site/a", b"a").unwrap();
        fs.write(b"site/inner/b", b"b").unwrap();
    });
    couple.connect();
    settle(&mut couple);
    couple.disconnect();
    couple.change(&[&|fs| fs.rename(b"site", b"d").unwrap()]);
    let second = couple.members[1].fs.clone();
    second.mkdir(b"d").unwrap();
    couple.queue.push_back((1, Input::Hints(second.take_hints())));
    assert!((0..1000).any(|_| !couple.step()), "the second one does not come to rest");
    couple.connect();
    couple
}

/// All is in one place, and where it is was written by the first one, which lets nothing of it die.
fn expect_merged(couple: &Couple, when: &str) {
    let second = &couple.members[1];
    let paths: Vec<_> = second.fs.tree().keys().map(|path| path.escape_ascii().to_string()).collect();
    assert_eq!(paths, ["d", "d/a", "d/inner", "d/inner/b"], "{when}");
    let first = couple.members[0].replica.as_ref().unwrap().replica_id();
    let records = second.replica.as_ref().unwrap().records().records(None, 100).unwrap();
    for record in records.iter().filter(|record| record.uid.0.replica == first) {
        assert_eq!(record.placement.written.version.replica, first, "{when}: {:?}", record.placement);
        assert!(!record.placement.value.deleted, "{when}: {:?}", record.placement);
    }
    assert_eq!(records.len(), 5, "{when}: {records:?}");
}

#[test]
fn the_daemon_dies_at_any_step() {
    for power_cut in [false, true] {
        let mut steps = 0;
        loop {
            let mut couple = start();
            let second = couple.members[1].fs.clone();
            second.power().cut_after(steps);
            settle(&mut couple);
            let died = couple.members[1].replica.take().is_none() || !second.power().is_on();
            if power_cut {
                drop(second.crash(steps))
            } else {
                second.process_died()
            }
            couple.restart(Limits::default());
            settle(&mut couple);
            expect_merged(&couple, &format!("power cut: {power_cut}, after step {steps}"));
            if !died {
                break;
            }
            steps += 1;
        }
        assert!(steps > 10, "only {steps} steps");
    }
}

#[test]
fn what_was_done_cannot_be_made_durable() {
    for (failures, anew) in [(1, false), (1, true), (20, false), (20, true)] {
        let mut couple = start();
        let second = couple.members[1].fs.clone();
        let calls = [Call::SyncDir, Call::SyncAll];
        second.faults(|f| calls.iter().for_each(|call| f.set(*call, Fault::Io, 1_000_000)));
        let happened = || calls.iter().map(|call| second.faults(|f| f.happened(*call, Fault::Io))).sum::<u64>();
        while happened() < failures {
            couple.hear();
            couple.step();
        }
        second.faults(Faults::clear);
        if anew {
            couple.restart(Limits::default());
        }
        settle(&mut couple);
        expect_merged(&couple, &format!("failures: {failures}, anew: {anew}"));
    }
}
