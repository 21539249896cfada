//! Calls of a disk fail for a while: what was begun then leaves nothing behind.

use crate::couple::{Change, Couple, expect_equal, settle};
use anabranch_member::{EventKind, Input, Limits};
use anabranch_model::{Sequence, Timestamp};
use anabranch_volume::simulated::{Call, DiskConfig, Fault, Faults, SimFs};

/// Steps in which the second one tries and fails, again and again.
const STEPS: usize = 200;

fn act(couple: &mut Couple, change: Change<'_>) {
    change(&couple.members[0].fs);
    (0..STEPS).for_each(|_| act_once(couple));
}

fn act_once(couple: &mut Couple) {
    for at in 0..2 {
        let hints = couple.members[at].fs.take_hints();
        if !hints.is_empty() {
            couple.queue.push_back((at, Input::Hints(hints)));
        }
    }
    couple.step();
}

/// The first one's user makes something; the second cannot finish it, nor remove what it began; the user takes it away
/// again; the disk recovers, and perhaps the second one's daemon is started anew.
fn made_and_taken_away(failing: &[Call], make: Change<'_>, take: Change<'_>, anew: bool) -> Couple {
    let mut couple = Couple::new(Limits::default(), DiskConfig::default(), |fs: &SimFs| {
        fs.mkdir(b"desk").unwrap();
        fs.write(b"notes", b"there from the beginning").unwrap();
    });
    couple.connect();
    settle(&mut couple);
    couple.members[1].fs.faults(|f| failing.iter().for_each(|call| f.set(*call, Fault::Io, 1_000_000)));
    act(&mut couple, make);
    for call in failing {
        let happened = couple.members[1].fs.faults(|f| f.happened(*call, Fault::Io));
        assert!(happened > 0, "{call:?} did not fail");
    }
    act(&mut couple, take);
    couple.members[1].fs.faults(Faults::clear);
    if anew {
        couple.restart(Limits::default());
    }
    settle(&mut couple);
    couple
}

#[test]
fn a_directory_that_could_not_be_finished_leaves_again() {
    let failing = [Call::WriteAttributes, Call::RemoveDir];
    let couple = made_and_taken_away(
        &failing,
        &|fs| fs.mkdir(b"desk/made").unwrap(),
        &|fs| fs.remove(b"desk/made").unwrap(),
        false,
    );
    expect_equal(&couple, "a directory");
}

/// Somebody sees that the directory is there before it can be removed: it is finished then, and not removed later.
#[test]
fn a_directory_that_was_noted_before_it_could_be_finished_stays() {
    let failing = [Call::WriteAttributes, Call::RemoveDir];
    let couple = made_and_taken_away(&failing, &|fs| fs.mkdir(b"desk/made").unwrap(), &|_| {}, false);
    expect_equal(&couple, "a directory");
}

/// Modes and times that were set, and could not be made durable, before the first one's user sets others.
#[test]
fn what_was_given_and_could_not_be_made_durable_is_no_users_choice() {
    let time = |seconds| Some(Timestamp { seconds, nanoseconds: 0 });
    let make: Change<'_> = &|fs| {
        fs.chmod(b"desk", 0o700).unwrap();
        fs.chmod(b"notes", 0o600).unwrap();
        fs.touch(b"notes", time(1_600_000_000)).unwrap();
    };
    // Others than before, and those that were there before.
    for (desk, notes, seconds) in [(0o711, 0o640, 1_600_000_001), (0o755, 0o644, 1_700_000_000)] {
        let take: Change<'_> = &|fs| {
            fs.chmod(b"desk", desk).unwrap();
            fs.chmod(b"notes", notes).unwrap();
            fs.touch(b"notes", time(seconds)).unwrap();
        };
        for anew in [false, true] {
            let couple = made_and_taken_away(&[Call::SyncAll, Call::SyncFile], make, take, anew);
            expect_equal(&couple, &format!("{desk:o}, anew: {anew}"));
            let [one, two] = [0, 1].map(|at| couple.members[at].fs.tree()[&b"notes"[..]].mtime);
            assert_eq!(one, two, "{desk:o}, anew: {anew}");
        }
    }
}

#[test]
fn a_private_file_that_could_not_be_finished_leaves_again() {
    let failing = [Call::SetMtime, Call::RemoveFile];
    let write: Change<'_> = &|fs| fs.write(b"desk/letter", b"Dear all").unwrap();
    let mut couple = made_and_taken_away(&failing, write, &|fs| fs.remove(b"desk/letter").unwrap(), false);
    expect_equal(&couple, "a file");
    // Nobody waits for that; it is done when something is due the next time.
    assert!((0..STEPS).any(|_| !couple.step()), "it does not come to rest");
    let private = couple.members[1].fs.private_tree();
    let staged: Vec<_> = private.keys().filter(|path| path.starts_with(b"staging/")).collect();
    assert!(staged.is_empty(), "{} left in staging", staged.len());
}

#[test]
fn directories_that_could_not_be_made_durable_are_no_users_own() {
    let made = |make: Change<'_>, take: Change<'_>, what: &str| {
        for anew in [false, true] {
            let couple = made_and_taken_away(&[Call::SyncDir], make, take, anew);
            expect_equal(&couple, what);
            let replica = couple.members[1].replica.as_ref().unwrap();
            let own = replica.records().known().sequence(replica.replica_id());
            assert_eq!(own, Sequence(0), "the second one took its own work for a user's ({what}, anew: {anew})");
        }
    };
    made(
        &|fs| {
            fs.mkdir(b"desk/made").unwrap();
            fs.mkdir(b"desk/made/within").unwrap();
        },
        &|fs| {
            fs.remove(b"desk/made/within").unwrap();
            fs.remove(b"desk/made").unwrap();
        },
        "made and removed",
    );
    made(
        &|fs| fs.rename(b"desk", b"bench").unwrap(),
        &|fs| fs.rename(b"bench", b"table").unwrap(),
        "moved and moved on",
    );
    made(
        &|fs| {
            fs.mkdir(b"new").unwrap();
            fs.rename(b"desk", b"new/desk").unwrap();
        },
        &|fs| {
            fs.remove(b"new/desk").unwrap();
            fs.remove(b"new").unwrap();
        },
        "moved into a new one, and both removed",
    );
    made(&|fs| fs.mkdir(b"made").unwrap(), &|fs| fs.rename(b"made", b"desk/other").unwrap(), "made and moved on");
    let two: Change<'_> = &|fs| ["made", "desk/made"].iter().for_each(|path| fs.mkdir(path.as_bytes()).unwrap());
    made(two, &|fs| fs.swap(b"made", b"desk/made").unwrap(), "two that change places");
    made(
        two,
        &|fs| {
            fs.swap(b"made", b"desk/made").unwrap();
            fs.remove(b"desk/made").unwrap();
        },
        "two that change places, and one of them removed",
    );
}

/// A directory that was removed and made anew is one on the second one's disk; that it had become the new one is taken back
/// together with what was moved into it.
#[test]
fn what_was_moved_into_a_directory_made_anew_is_no_users_doing() {
    for anew in [false, true] {
        let mut couple = Couple::new(Limits::default(), DiskConfig::default(), |fs: &SimFs| {
            fs.mkdir(b"desk").unwrap();
            fs.write(b"desk/lamp", b"bright").unwrap();
            fs.write(b"notes", b"there from the beginning").unwrap();
        });
        couple.connect();
        settle(&mut couple);
        couple.disconnect();
        couple.change(&[
            &|fs| fs.remove_tree(b"desk").unwrap(),
            &|fs| fs.mkdir(b"desk").unwrap(),
            &|fs| fs.rename(b"notes", b"desk/notes").unwrap(),
            &|fs| fs.chmod(b"desk/notes", 0o600).unwrap(),
        ]);
        let failing = [Call::SyncAll, Call::SyncFile];
        couple.members[1].fs.faults(|f| failing.iter().for_each(|call| f.set(*call, Fault::Io, 1_000_000)));
        couple.connect();
        // It is looked at before the batch is done once more.
        let undone = |couple: &Couple| couple.reports.iter().any(|(_, event)| event.kind == EventKind::CannotInstall);
        assert!((0..STEPS).any(|_| undone(&couple) || !couple.step()), "nothing failed");
        assert!(couple.members[1].fs.exists(b"desk/notes"), "it was moved");
        couple.members[1].fs.faults(Faults::clear);
        if anew {
            couple.restart(Limits::default());
        }
        settle(&mut couple);
        expect_equal(&couple, &format!("anew: {anew}"));
    }
}

/// What an install put in place just before the daemon ended has the time that it was given. A touch of somebody else may come
/// before it can be looked at again, and is the later one.
#[test]
fn a_time_that_was_installed_before_a_stop_is_no_users_touch() {
    let mut put_in_place = 0;
    for after in 0..200 {
        let mut couple = Couple::new(Limits::default(), DiskConfig::default(), |fs| fs.write(b"f", b"one").unwrap());
        couple.connect();
        settle(&mut couple);
        let [first, second] = [0, 1].map(|at| couple.members[at].fs.clone());
        first.write(b"f", b"two").unwrap();
        second.power().cut_after(after);
        settle(&mut couple);
        if second.power().is_on() {
            assert!(put_in_place > 0, "in none of {after} steps was it in place");
            return;
        }
        couple.members[1].replica = None;
        second.process_died();
        put_in_place += usize::from(second.read(b"f").unwrap().bytes() == b"two");
        second.faults(|f| f.set(Call::SyncFile, Fault::Io, 1_000_000));
        couple.restart(Limits::default());
        let touch: Change<'_> =
            &|fs| fs.touch(b"f", Some(Timestamp { seconds: 1_800_000_000, nanoseconds: 0 })).unwrap();
        act(&mut couple, touch);
        second.faults(Faults::clear);
        settle(&mut couple);
        expect_equal(&couple, &format!("died after step {after}"));
        assert_eq!(second.tree()[&b"f"[..]].mtime, first.tree()[&b"f"[..]].mtime, "died after step {after}");
    }
    panic!("it is never done");
}

/// Nothing can be given another name for a while. What has to leave a name and cannot is not left under the name of what takes
/// its own: a user would take it for that.
#[test]
fn what_cannot_go_on_has_nobody_elses_name() {
    for directory in [false, true] {
        let mut couple = Couple::new(Limits::default(), DiskConfig::default(), |fs| {
            fs.mkdir(b"d").unwrap();
            for path in [&b"a"[..], b"d/b"] {
                let file = if directory {
                    fs.mkdir(path).unwrap();
                    [path, b"/f"].concat()
                } else {
                    path.to_vec()
                };
                fs.write(&file, path).unwrap();
            }
        });
        couple.connect();
        settle(&mut couple);
        let second = couple.members[1].fs.clone();
        let before = second.tree();
        couple.disconnect();
        couple.change(&[&|fs| fs.rename(b"a", b"c").unwrap(), &|fs| fs.rename(b"d/b", b"a").unwrap()]);
        couple.connect();
        second.faults(|f| f.set(Call::RenameNew, Fault::Quota, 1_000_000));
        act(&mut couple, &|_| {});
        assert!(second.faults(|f| f.happened(Call::RenameNew, Fault::Quota)) > 1);
        assert_eq!(second.tree(), before, "directory: {directory}");
        second.faults(Faults::clear);
        settle(&mut couple);
        expect_equal(&couple, &format!("directory: {directory}"));
    }
}

/// What its user does with a file, so that it is looked at again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Then {
    Mode,
    Rename,
    /// Onto another file, whose name it goes on with.
    Over,
    /// Aside, and a new one is written under its name.
    Aside,
}

/// What happens around a sync that failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Around {
    Nothing,
    /// The daemon is started anew between the failed sync and the next look at the file.
    Restart,
    /// The power is cut after the file was published.
    PowerCut,
    /// It was to make something else durable: the file had not been heard of.
    Unheard,
}

/// A sync that failed may have dropped what was to be written, and the next one says that all is well: what was published then
/// goes back to what it was, under its own time, when the kernel reads it anew. No user did that.
#[test]
fn what_a_failing_disk_takes_back_is_no_edit() {
    for around in [Around::Nothing, Around::Restart, Around::PowerCut, Around::Unheard] {
        taken_back_is_no_edit(around);
    }
}

fn taken_back_is_no_edit(around: Around) {
    let thens = [Then::Mode, Then::Rename, Then::Over, Then::Aside];
    let mut taken_back = [0; 4];
    for (trial, (at, then)) in (0..100).flat_map(|trial| thens.into_iter().enumerate().map(move |then| (trial, then))) {
        let mut couple = Couple::new(Limits::default(), DiskConfig::default(), |fs| {
            fs.write(b"f", b"one").unwrap();
            fs.write(b"other", b"other").unwrap();
        });
        couple.connect();
        let [first, second] = [0, 1].map(|at| couple.members[at].fs.clone());
        let contents = |fs: &SimFs| -> Vec<Vec<u8>> {
            fs.tree().values().filter_map(|e| e.content.as_ref()).map(|content| content.bytes().to_vec()).collect()
        };
        let has = |fs: &SimFs, bytes: &[u8]| contents(fs).iter().any(|content| content == bytes);
        // Another course of events each time.
        for _ in 0..trial {
            first.write(b"scratch", b"").unwrap();
            first.remove(b"scratch").unwrap();
        }
        settle(&mut couple);
        first.write(b"f", b"two").unwrap();
        let unheard = (around == Around::Unheard).then(|| first.take_hints());
        if unheard.is_some() {
            // So many that everything is made durable with them.
            let many = 0..Limits::default().sync_all_from;
            many.for_each(|at| first.mkdir(format!("d{at}").as_bytes()).unwrap());
        }
        until_a_sync_failed(&mut couple);
        match around {
            Around::Restart => {
                first.process_died();
                couple.members[0].boots -= 1;
                couple.restart_at(0, Limits::default());
            }
            Around::Nothing | Around::PowerCut | Around::Unheard => {}
        }
        couple.queue.extend(unheard.map(|hints| (0, Input::Hints(hints))));
        settle(&mut couple);
        let published = has(&second, b"two");
        if around == Around::PowerCut {
            drop(first.crash(trial));
            couple.restart_at(0, Limits::default());
            (0..STEPS).for_each(|_| act_once(&mut couple));
        }
        match then {
            Then::Mode => first.chmod(b"f", 0o600).unwrap(),
            Then::Rename => first.rename(b"f", b"g").unwrap(),
            Then::Over => first.rename(b"f", b"other").unwrap(),
            Then::Aside => {
                // It is made durable before the new one.
                first.rename(b"f", b"e").unwrap();
                first.write(b"f", b"three").unwrap();
            }
        }
        until_a_sync_failed(&mut couple);
        taken_back[at] += u64::from(published && has(&first, b"one"));
        // Nobody gives the first one its content back here: the two come to no rest.
        act(&mut couple, &|_| {});
        let stays = !published || has(&second, b"two") && !has(&second, b"one");
        assert!(stays, "{around:?}, trial {trial}, {then:?}: what a disk made of it replaced what was written");
        // Whoever removes it takes it for what he wrote.
        let files = first.tree().into_iter().filter(|(_, entry)| entry.content.is_some());
        files.for_each(|(path, _)| first.remove(&path).unwrap());
        act(&mut couple, &|_| {});
        assert!(contents(&second).is_empty(), "{around:?}, trial {trial}, {then:?}: what was removed stays");
    }
    let happened = taken_back.iter().all(|&count| count > 0);
    assert!(happened, "{around:?}: in no trial did the disk take anything back: {taken_back:?}");
}

/// Two files of one time for which a sync failed change places: each has other bytes then, under the time that it had.
#[test]
fn what_changes_places_after_a_failed_sync_is_what_its_user_did() {
    let mut couple = Couple::new(Limits::default(), DiskConfig::default(), |fs| fs.mkdir(b"d").unwrap());
    couple.connect();
    settle(&mut couple);
    let [first, second] = [0, 1].map(|at| couple.members[at].fs.clone());
    first.write(b"f", b"one").unwrap();
    first.write(b"g", b"two").unwrap();
    until_a_sync_failed(&mut couple);
    settle(&mut couple);
    let [one, two] = [b"f", b"g"].map(|name| first.read(name).unwrap());
    assert_eq!(first.tree()[&b"f"[..]].mtime, first.tree()[&b"g"[..]].mtime, "the clock has ticked");
    assert_ne!(one.bytes(), two.bytes(), "the disk has kept neither");
    first.swap(b"f", b"g").unwrap();
    settle(&mut couple);
    for fs in [first, second] {
        assert_eq!([b"f", b"g"].map(|name| fs.read(name).unwrap()), [two.clone(), one.clone()]);
    }
}

fn until_a_sync_failed(couple: &mut Couple) {
    let disk = couple.members[0].fs.clone();
    disk.faults(|f| [Call::SyncFile, Call::SyncAll].iter().for_each(|call| f.set(*call, Fault::Io, 1_000_000)));
    let failed = || disk.faults(|f| f.happened(Call::SyncFile, Fault::Io) + f.happened(Call::SyncAll, Fault::Io));
    let before = failed();
    for _ in 0..STEPS {
        act_once(couple);
        if failed() > before {
            break;
        }
    }
    disk.faults(Faults::clear);
}
