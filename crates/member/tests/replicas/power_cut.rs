//! What a power cut leaves: of a file that was written in place new bytes under the old time and length, perhaps; of what
//! others were told of, all.

use crate::couple::{Couple, expect_known, settle};
use anabranch_member::Limits;
use anabranch_model::Uid;
use anabranch_volume::fs::Fs;
use anabranch_volume::simulated::{Call, DiskConfig, Fault, Faults, SimFs, Tree, TreeEntry};

const NAME: &[u8] = b"notes";

fn start() -> Couple {
    let mut couple = Couple::new(Limits::default(), DiskConfig::default(), |fs: &SimFs| {
        fs.mkdir(b"desk").unwrap();
        fs.write(NAME, b"what was written first, and published").unwrap();
    });
    couple.connect();
    settle(&mut couple);
    couple
}

/// The second one's user writes the file while the service is down, and perhaps gives it another place; then its power is
/// cut. Returns whether the file has other bytes and its old stamp.
fn cut(couple: &mut Couple, seed: u64, moved: bool) -> bool {
    couple.disconnect();
    couple.members[1].replica = None;
    couple.members[1].fs.process_died();
    let fs = couple.members[1].fs.clone();
    let before = fs.tree();
    let mut name = NAME;
    if moved {
        name = b"desk/notes";
        fs.rename(NAME, name).unwrap();
        fs.sync_all().unwrap();
    }
    fs.write(name, b"2nd,").unwrap();
    drop(fs.crash(seed));
    let after = fs.tree();
    let at =
        |tree: &Tree, name: &[u8]| tree.get(name).map(|e| (e.mtime, e.content.as_ref().map(|c| c.bytes().to_vec())));
    let (Some((old, was)), Some((new, is))) = (at(&before, NAME), at(&after, name)) else { return false };
    old == new && was.as_ref().map(Vec::len) == is.as_ref().map(Vec::len) && was != is
}

#[test]
fn what_was_written_lately_is_read_again_whatever_its_stamp_says() {
    let mut silent = [0, 0];
    for seed in 0..300 {
        for moved in [false, true] {
            let mut couple = start();
            silent[usize::from(moved)] += u64::from(cut(&mut couple, seed, moved));
            couple.restart(Limits::default());
            settle(&mut couple);
            expect_known(&couple, &format!("power cut {seed}, moved: {moved}"));
        }
    }
    assert!(silent.iter().all(|&count| count > 0), "no power cut left new bytes under an old stamp: {silent:?}");
}

/// The directory in which that was written cannot be read at first. Perhaps the other one's user writes the file meanwhile.
#[test]
fn what_cannot_be_read_after_a_power_cut_stays_in_doubt() {
    for (call, written) in [(Call::List, false), (Call::Stat, false), (Call::List, true)] {
        let mut silent = 0;
        for seed in 0..100 {
            let mut couple = start();
            if !cut(&mut couple, seed, false) {
                continue;
            }
            silent += 1;
            // Later than what was written just before a look, which is hashed again in any case.
            couple.now += 60_000_000;
            couple.tell_time();
            couple.restart(Limits::default());
            couple.members[1].fs.faults(|f| f.set(call, Fault::Io, 1_000_000));
            let until = couple.now + 10_000_000;
            let left = couple.members[1].fs.read(NAME).unwrap();
            let theirs = b"what the other one's user wrote meanwhile";
            if written {
                couple.members[0].fs.write(NAME, theirs).unwrap();
            }
            while couple.now < until {
                couple.hear();
                assert!(couple.step(), "power cut {seed}: nobody tries again");
            }
            couple.members[1].fs.faults(Faults::clear);
            settle(&mut couple);
            let when = format!("power cut {seed}, failing: {call:?}, written: {written}");
            expect_known(&couple, &when);
            let kept = couple.members[1].replica.as_ref().unwrap().preserved(0, 100).unwrap();
            let shown = couple.members[1].fs.tree().values().any(|e| e.content.as_ref() == Some(&left));
            assert!(shown || kept.iter().any(|item| item.reason.unseen()), "{when}: preserved as seen: {kept:?}");
        }
        assert!(silent > 0, "no power cut left new bytes under an old stamp");
    }
}

/// The second one's user notes something about a directory while the service is down; then its power is cut.
#[test]
fn what_was_set_lately_is_looked_at_again_whatever_its_stamp_says() {
    let (mut silent, name) = (0, &b"user.note"[..]);
    for seed in 0..100 {
        let mut couple = start();
        couple.disconnect();
        couple.members[1].replica = None;
        let fs = couple.members[1].fs.clone();
        fs.process_died();
        let ctime = || fs.stat(&fs.root(), b"desk").unwrap().unwrap().stamp.ctime;
        let before = ctime();
        // Later than what was done just before a start, which is looked at in any case.
        couple.now += 60_000_000;
        couple.tell_time();
        fs.setxattr(b"desk", name, Some(b"mine")).unwrap();
        drop(fs.crash(seed));
        let is_there = fs.tree()[&b"desk"[..]].attributes.xattrs.contains_key(name);
        silent += u64::from(is_there && ctime() == before);
        couple.restart(Limits::default());
        settle(&mut couple);
        let records = couple.members[1].replica.as_ref().unwrap().records();
        let uid = records.shown_at(Uid::ROOT, b"desk").unwrap().unwrap();
        let recorded = records.record(uid).unwrap().unwrap().attributes.unwrap().value;
        assert_eq!(recorded.xattrs.contains_key(name), is_there, "power cut {seed}");
    }
    assert!(silent > 0, "no power cut left an xattr under an old stamp");
}

/// Who is stopped properly right after the start that follows a power cut looks at it all with the next start.
#[test]
fn a_proper_stop_ends_no_doubt() {
    let mut silent = 0;
    for seed in 0..100 {
        let mut couple = start();
        silent += u64::from(cut(&mut couple, seed, false));
        couple.restart(Limits::default());
        couple.members[1].replica.as_mut().unwrap().close().unwrap();
        couple.restart(Limits::default());
        settle(&mut couple);
        expect_known(&couple, &format!("power cut {seed}"));
    }
    assert!(silent > 0, "no power cut left new bytes under an old stamp");
}

/// What a power cut left under an old stamp is not what the other one's user has replaced: he never saw it.
#[test]
fn what_is_in_doubt_is_compared_before_a_partners_change_takes_it_out() {
    let mut silent = 0;
    for seed in 0..300 {
        let mut couple = start();
        if !cut(&mut couple, seed, false) {
            continue;
        }
        silent += 1;
        let left = couple.members[1].fs.read(NAME).unwrap();
        couple.members[0].fs.write(NAME, b"what the other one's user wrote meanwhile").unwrap();
        couple.restart(Limits::default());
        settle(&mut couple);
        expect_known(&couple, &format!("power cut {seed}"));
        let member = &couple.members[1];
        let shown = member.fs.tree().values().any(|e| e.content.as_ref() == Some(&left));
        let private = member.fs.private_tree();
        let kept = member.replica.as_ref().unwrap().preserved(0, 100).unwrap();
        let unseen = kept
            .iter()
            .filter(|item| item.reason.unseen())
            .map(anabranch_member::Preserved::file_name)
            .any(|name| private.iter().any(|(path, e)| path.ends_with(&name) && e.content.as_ref() == Some(&left)));
        assert!(shown || unseen, "power cut {seed}: it is preserved as what somebody had replaced knowingly");
    }
    assert!(silent > 0, "no power cut left new bytes under an old stamp");
}

/// Paths with their modes, and contents.
fn gist(couple: &Couple, at: usize) -> Vec<String> {
    let content = |e: &TreeEntry| e.content.as_ref().map(|c| c.bytes().escape_ascii().to_string());
    let line = |(path, e): (&Vec<u8>, &TreeEntry)| {
        format!("{} {:o} {:?}", path.escape_ascii(), e.attributes.mode, content(e).unwrap_or_default())
    };
    couple.members[at].fs.tree().iter().map(line).collect()
}

/// The first one's user changes things in each way, the second is told of it, and the first one's power is cut. `Err`: the
/// trees of both as they were and as they are, once there is nothing left to do, where they differ.
fn told_and_cut(seed: u64) -> Result<(), String> {
    let mut couple = Couple::new(Limits::default(), DiskConfig::default(), |fs: &SimFs| {
        fs.mkdir(b"desk").unwrap();
        fs.mkdir(b"old").unwrap();
        for name in [&b"written"[..], b"moved", b"removed", b"shared"] {
            fs.write(name, name).unwrap();
        }
        fs.sync_all().unwrap();
    });
    couple.connect();
    settle(&mut couple);
    couple.change(&[
        &|fs| fs.write(b"new", b"nobody had this before").unwrap(),
        &|fs| fs.write(b"written", b"what is in it now is longer than what was").unwrap(),
        &|fs| fs.rename(b"moved", b"desk/moved").unwrap(),
        &|fs| fs.remove(b"removed").unwrap(),
        &|fs| fs.chmod(b"shared", 0o600).unwrap(),
        &|fs| fs.mkdir(b"desk/made").unwrap(),
        &|fs| fs.symlink(b"desk/made/link", b"../moved").unwrap(),
        &|fs| fs.rename(b"old", b"desk/made/old").unwrap(),
    ]);
    settle(&mut couple);
    let before = gist(&couple, 0);
    assert_eq!(before, gist(&couple, 1), "the second one was not told of everything");
    couple.members[0].replica = None;
    drop(couple.members[0].fs.crash(seed));
    couple.restart_at(0, Limits::default());
    settle(&mut couple);
    let after = [0, 1].map(|at| gist(&couple, at));
    if after.iter().all(|tree| *tree == before) { Ok(()) } else { Err(format!("{before:?} became {after:?}")) }
}

#[test]
fn what_another_was_told_of_outlives_a_power_cut() {
    for seed in 0..300 {
        told_and_cut(seed).unwrap_or_else(|what| panic!("power cut {seed}: {what}"));
    }
}

/// The test above can fail.
#[cfg(feature = "mutants")]
#[test]
fn mutant_that_tells_before_it_is_durable_is_caught() {
    use anabranch_member::steps::{Step, break_step};

    break_step(Some(Step::PublishedDurable));
    let lost = (0..30).any(|seed| told_and_cut(seed).is_err());
    break_step(None);
    assert!(lost, "no power cut took away what another had been told of");
}

/// The second one purges what was replaced before; its power is cut at each step of that.
#[test]
fn what_is_purged_is_gone_with_its_entry_or_there_with_it() {
    let limits = Limits { seen_bytes: 100, ..Limits::default() };
    let (mut steps, mut purged) = (0, 0);
    loop {
        let mut died = false;
        for seed in 0..8 {
            let mut couple = Couple::new(limits, DiskConfig::default(), |fs: &SimFs| fs.write(NAME, &[0; 60]).unwrap());
            couple.connect();
            settle(&mut couple);
            couple.members[1].fs.power().cut_after(steps);
            for text in 1..5 {
                couple.change(&[&|fs| fs.write(NAME, &[text; 60]).unwrap()]);
                settle(&mut couple);
            }
            died |= couple.members[1].replica.take().is_none() || !couple.members[1].fs.power().is_on();
            drop(couple.members[1].fs.crash(seed));
            couple.restart(limits);
            settle(&mut couple);
            let kept = couple.members[1].replica.as_ref().unwrap().preserved(0, 100).unwrap();
            let private = couple.members[1].fs.private_tree();
            let there = private.keys().filter_map(|path| path.strip_prefix(b"ConflictAndDeleted/"));
            let named = kept.iter().map(anabranch_member::Preserved::file_name);
            let when = format!("power cut {seed} after step {steps}");
            assert_eq!(there.map(<[u8]>::to_vec).collect::<Vec<_>>(), named.collect::<Vec<_>>(), "{when}");
            assert!(kept.iter().all(|item| !item.reason.unseen() && !item.pending), "{when}: {kept:?}");
            purged += u64::from(kept.first().is_some_and(|item| item.number > 1));
        }
        if !died {
            break;
        }
        steps += 1;
    }
    assert!(steps > 20 && purged > 20, "{purged} purged in {steps} steps");
}
