//! A member that dies at any step while it moves and makes what others moved and made: it knows its own work again, takes
//! nothing of it for a user's, and comes out in step.

use crate::couple::{Change, Couple, crash_at_every_step, settle};
use anabranch_member::Limits;
use anabranch_model::Timestamp;
use anabranch_volume::simulated::{DiskConfig, SimFs};

fn start() -> Couple {
    let mut couple = Couple::new(Limits::default(), DiskConfig::default(), |fs| {
        for dir in [&b"d0"[..], b"d0/inner", b"d1", b"d2"] {
            fs.mkdir(dir).unwrap();
        }
        for file in [&b"d0/a"[..], b"d0/inner/b", b"d1/c", b"d2/e", b"d2/f", b"g", b"h", b"i"] {
            fs.write(file, file).unwrap();
        }
    });
    couple.connect();
    couple
}

fn at_every_step(changes: &[Change<'_>]) {
    with_crashes(changes, 10);
}

fn with_crashes(changes: &[Change<'_>], least: u64) {
    let at_once = |fs: &SimFs| changes.iter().for_each(|change| change(fs));
    for power_cut in [false, true] {
        crash_at_every_step(start, changes, &[], least, power_cut);
        crash_at_every_step(start, &[&at_once], &[], least, power_cut);
        for first in 1..changes.len() {
            crash_at_every_step(start, &changes[..first], &changes[first..], 0, power_cut);
        }
    }
}

fn renamed(from: &'static str, to: &'static str) -> impl Fn(&SimFs) {
    move |fs| fs.rename(from.as_bytes(), to.as_bytes()).unwrap()
}

fn made(path: &'static str) -> impl Fn(&SimFs) {
    move |fs| fs.mkdir(path.as_bytes()).unwrap()
}

fn written(path: &'static str, bytes: &'static str) -> impl Fn(&SimFs) {
    move |fs| fs.write(path.as_bytes(), bytes.as_bytes()).unwrap()
}

fn removed(path: &'static str) -> impl Fn(&SimFs) {
    move |fs| fs.remove(path.as_bytes()).unwrap()
}

#[test]
fn a_directory_is_renamed_and_another_made_in_its_place() {
    at_every_step(&[
        &renamed("d0", "r0"),
        &made("d0"),
        &written("d0/a", "of the new one"),
        &written("r0/a", "of the old one"),
    ]);
}

#[test]
fn a_file_is_renamed_and_another_made_in_its_place() {
    // Once in the order of names, once against it.
    at_every_step(&[&renamed("g", "z"), &written("g", "another"), &renamed("i", "b"), &written("i", "")]);
}

#[test]
fn directories_take_each_others_names() {
    at_every_step(&[&renamed("d0", "x"), &renamed("d1", "d0"), &renamed("d2", "d1"), &renamed("x", "d2")]);
}

#[test]
fn files_take_each_others_names() {
    at_every_step(&[&renamed("g", "x"), &renamed("h", "g"), &renamed("i", "h"), &renamed("x", "i")]);
}

#[test]
fn a_tree_is_moved_beneath_what_took_its_name() {
    at_every_step(&[
        &renamed("d0", "x"),
        &made("d0"),
        &renamed("x", "d0/inner"),
        &renamed("d1/c", "d0/a"),
        &renamed("d2", "d0/inner/d2"),
    ]);
}

#[test]
fn a_directory_is_removed_and_another_made_in_its_place() {
    at_every_step(&[
        &renamed("d0/a", "d2/a"),
        &removed("d0/inner/b"),
        &removed("d0/inner"),
        &removed("d0"),
        &made("d0"),
        &made("d0/inner"),
        &written("d0/a", "anew"),
        &renamed("d2/f", "d0/inner/b"),
    ]);
}

#[test]
fn a_name_goes_from_hand_to_hand() {
    at_every_step(&[
        &renamed("g", "d0/g"),
        &renamed("h", "g"),
        &written("h", "another"),
        &renamed("i", "h"),
        &removed("d0/g"),
        &written("i", ""),
        &renamed("d1", "d3"),
        &renamed("d2", "d1"),
        &renamed("d3", "d1/d1"),
    ]);
}

/// Renames that one batch follows; it dies at any step of that, and the first one goes on with the others meanwhile.
fn moved_on_meanwhile(at_once: &[(&str, &str)], meanwhile: &[Change<'_>]) {
    let renames = |fs: &SimFs| {
        for (from, to) in at_once {
            fs.rename(from.as_bytes(), to.as_bytes()).unwrap();
        }
    };
    for power_cut in [false, true] {
        crash_at_every_step(start, &[&renames], meanwhile, 10, power_cut);
    }
}

#[test]
fn a_directory_takes_the_place_of_one_that_goes_into_it() {
    // Each of the three is at a name that the database has for the next, and the last lies in the first.
    moved_on_meanwhile(
        &[("d0/inner", "d2/x"), ("d1", "d0/inner"), ("d2/x", "d0/inner/x"), ("g", "d1")],
        &[&renamed("d0/inner/x", "d2/x"), &removed("d1"), &made("d1")],
    );
}

#[test]
fn names_that_went_round_in_a_ring_go_on() {
    moved_on_meanwhile(
        &[("d0", "x"), ("d1", "d0"), ("d2", "d1"), ("x", "d2")],
        &[&renamed("d1", "d2/d1"), &renamed("d0", "d1"), &made("d0")],
    );
    moved_on_meanwhile(
        &[("g", "x"), ("h", "g"), ("i", "h"), ("x", "i")],
        &[&renamed("h", "d0/h"), &renamed("g", "h"), &removed("i")],
    );
}

#[test]
fn modes_and_times_are_set_and_set_anew() {
    let moded = |path: &'static str, mode| move |fs: &SimFs| fs.chmod(path.as_bytes(), mode).unwrap();
    let touched = |path: &'static str, seconds| {
        let time = Timestamp { seconds, nanoseconds: 0 };
        move |fs: &SimFs| fs.touch(path.as_bytes(), Some(time)).unwrap()
    };
    with_crashes(
        &[
            &moded("d0", 0o700),
            &moded("g", 0o600),
            &touched("h", 1_600_000_000),
            &moded("d0", 0o711),
            &moded("g", 0o640),
            &touched("h", 1_600_000_001),
        ],
        5,
    );
}

/// What a file of the second one's tree holds.
fn content(fs: &SimFs, path: &[u8]) -> Option<Vec<u8>> {
    fs.tree().get(path).and_then(|entry| entry.content.as_ref().map(|content| content.bytes().to_vec()))
}

/// The second one dies at every step of taking over a new content and a new file. `deed` is done by its user to each of the
/// two if it is there with the new content by then, before the daemon is started again. What is in his tree in the end is `left`:
/// what is added to its name, and what it holds.
fn somebody_acts_while_it_is_down(deed: impl Fn(&SimFs, &[u8]), left: Option<(&[u8], &[u8])>) {
    for power_cut in [false, true] {
        let (mut steps, mut acted) = (0, 0);
        loop {
            let mut couple = start();
            settle(&mut couple);
            couple.disconnect();
            couple.change(&[&written("g", "newer"), &written("d1/new", "newer")]);
            couple.connect();
            let second = couple.members[1].fs.clone();
            second.power().cut_after(steps);
            settle(&mut couple);
            let died = couple.members[1].replica.take().is_none() || !second.power().is_on();
            if power_cut {
                drop(second.crash(steps))
            } else {
                second.process_died()
            }
            let when = format!("power cut: {power_cut}, after step {steps}");
            let there: Vec<&[u8]> = [&b"g"[..], b"d1/new"]
                .into_iter()
                .filter(|p| content(&second, p).as_deref() == Some(b"newer"))
                .collect();
            there.iter().for_each(|path| deed(&second, path));
            acted += there.len();
            couple.restart(Limits::default());
            settle(&mut couple);
            for path in [&b"g"[..], b"d1/new"] {
                let expected = if there.contains(&path) { left } else { Some((&b""[..], &b"newer"[..])) };
                let at = [path, expected.map_or(&b""[..], |(suffix, _)| suffix)].concat();
                assert_eq!(content(&second, &at).as_deref(), expected.map(|(_, bytes)| bytes), "{when}");
                assert!(at == path || content(&second, path).is_none(), "{when}");
            }
            let unseen = couple.members[1].replica.as_ref().unwrap().counters().unseen;
            assert_eq!(unseen, 0, "{when}: something was preserved as unseen");
            if !died {
                break;
            }
            steps += 1;
        }
        assert!(acted > 10, "he found something new after {acted} of {steps} steps only");
    }
}

#[test]
fn what_was_just_put_in_place_is_removed_while_it_is_down() {
    somebody_acts_while_it_is_down(|fs, path| fs.remove(path).unwrap(), None);
}

#[test]
fn what_was_just_put_in_place_is_renamed_while_it_is_down() {
    let renamed = |fs: &SimFs, path: &[u8]| fs.rename(path, &[path, b".moved"].concat()).unwrap();
    somebody_acts_while_it_is_down(renamed, Some((b".moved", b"newer")));
}

#[test]
fn what_was_just_put_in_place_is_written_anew_while_it_is_down() {
    let saved = |fs: &SimFs, path: &[u8]| {
        let part = [path, b".part"].concat();
        fs.write(&part, b"his own").unwrap();
        fs.rename(&part, path).unwrap();
    };
    somebody_acts_while_it_is_down(saved, Some((b"", b"his own")));
    somebody_acts_while_it_is_down(|fs, path| fs.write(path, b"his own").unwrap(), Some((b"", b"his own")));
}

/// Small numbers from a seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % sides
    }

    fn of<'a, T>(&mut self, these: &'a [T]) -> Option<&'a T> {
        (!these.is_empty()).then(|| &these[self.roll(these.len())])
    }
}

/// One change of a tree whose few names meet each other all the time; what cannot be done is not.
fn some_change(fs: &SimFs, dice: &mut Dice) {
    let tree = fs.tree();
    let (files, mut dirs): (Vec<Vec<u8>>, Vec<Vec<u8>>) =
        tree.keys().cloned().partition(|path| tree[path].content.is_some());
    let all: Vec<Vec<u8>> = tree.keys().cloned().collect();
    let removed = dice.of(&dirs).cloned();
    dirs.push(Vec::new());
    let mut target = dice.of(&dirs).cloned().unwrap();
    if !target.is_empty() {
        target.push(b'/');
    }
    target.extend_from_slice(dice.of(&[&b"d0"[..], b"d1", b"d2", b"g", b"h"]).unwrap());
    let bytes = dice.roll(4).to_string();
    let done = match (dice.roll(10), dice.of(&all), dice.of(&files), removed) {
        (0..5, Some(from), ..) => fs.rename(from, &target),
        (5, ..) => fs.mkdir(&target),
        (6, _, Some(file), _) => fs.remove(file),
        (7, _, _, Some(dir)) => fs.remove_tree(&dir),
        _ if dirs.contains(&target) => Ok(()),
        _ => fs.write(&target, bytes.as_bytes()),
    };
    drop(done);
}

#[test]
fn whatever_is_changed() {
    let seeds = std::env::var("CRASH_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(20);
    let first = std::env::var("CRASH_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(0);
    for seed in first..first + seeds {
        eprintln!("seed {seed}");
        let changes: Vec<_> =
            (0..6).map(|number| move |fs: &SimFs| some_change(fs, &mut Dice(seed << 8 | number))).collect();
        let changes: Vec<Change<'_>> = changes.iter().map(|change| change as Change<'_>).collect();
        with_crashes(&changes, 0);
    }
}
