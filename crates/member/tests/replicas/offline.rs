//! What people did to a tree while nothing was running is taken up by one comparison of everything: whatever was moved into
//! whatever else, and took whose name.

use crate::couple::{Couple, expect_equal, expect_known, settle};
use anabranch_member::{EventKind, Limits};
use anabranch_model::{Names, fold};
use anabranch_volume::simulated::{DiskConfig, SimFs};

/// The first member is down while its users do this; both come out in step, and know all of it.
fn meanwhile(names: Names, limits: Limits, prepare: impl Fn(&SimFs), deed: impl Fn(&SimFs), when: &str) {
    let mut couple = Couple::with_names(names, limits, DiskConfig::default(), prepare);
    couple.same_boot = true;
    couple.connect();
    settle(&mut couple);
    couple.disconnect();
    deed(&couple.members[0].fs);
    let end = couple.now + 60_000_000;
    drop(couple.members[0].fs.take_hints());
    couple.restart_at(0, limits);
    while couple.now < end && couple.step() {}
    let outstanding = couple.members[0].replica.as_ref().unwrap().outstanding_words().unwrap();
    let own: Vec<_> = outstanding.iter().filter(|words| words.contains("looked at")).collect();
    assert!(own.is_empty(), "{when}: {outstanding:?}");
    settle(&mut couple);
    expect_equal(&couple, when);
    expect_known(&couple, when);
    // Nobody else wrote, so nothing lost against anything.
    let lost: Vec<_> = couple.reports.iter().filter(|(_, event)| event.kind == EventKind::Conflict).collect();
    assert!(lost.is_empty(), "{when}: {lost:?}");
}

#[test]
fn a_name_is_taken_while_what_had_it_lies_in_something_new_in_something_moved() {
    // None of these can be recorded without all the others: what has the name `a` now holds something new, that holds what was
    // `b`, that something new, that what was `p/k`, and that what was `a`. What was `p` lies in what has the name `b` now, so
    // nobody looks for `p/k` but for the sake of what lies in it.
    let prepare = |fs: &SimFs| {
        for dir in ["a", "b", "p", "p/k"] {
            fs.mkdir(dir.as_bytes()).unwrap();
            fs.write(format!("{dir}/file").as_bytes(), dir.as_bytes()).unwrap();
        }
    };
    let deed = |fs: &SimFs| {
        let moved = |from: &str, to: &str| fs.rename(from.as_bytes(), to.as_bytes()).unwrap();
        let made = |path: &str| fs.mkdir(path.as_bytes()).unwrap();
        moved("a", "p/k/a");
        made("b/new");
        moved("p/k", "b/new/k");
        made("a");
        made("a/new");
        moved("b", "a/new/b");
        made("b");
        moved("p", "b/p");
    };
    meanwhile(Names::Bytes, Limits::default(), prepare, deed, "new and moved by turns");
}

#[test]
fn a_name_is_taken_in_another_case_while_what_had_it_lies_in_something_new_in_something_moved() {
    // What was `A` is `c/A` now, and takes the name that `c/a` left for something new in there. What has the name `A` is what
    // was below `c/a`, and `c` lies in it.
    let prepare = |fs: &SimFs| {
        for dir in ["A", "c", "c/a", "c/a/d"] {
            fs.mkdir(dir.as_bytes()).unwrap();
            fs.write(format!("{dir}/file").as_bytes(), dir.as_bytes()).unwrap();
        }
    };
    let deed = |fs: &SimFs| {
        let moved = |from: &str, to: &str| fs.rename(from.as_bytes(), to.as_bytes()).unwrap();
        moved("c/a/d", "d");
        fs.mkdir(b"c/new").unwrap();
        moved("c/a", "c/new/a");
        moved("A", "c/A");
        moved("d", "A");
        moved("c", "A/c");
    };
    meanwhile(Names::Windows, Limits::default(), prepare, deed, "in another case");
}

struct Dice(u64);

impl Dice {
    fn below(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).unwrap() % sides
    }
}

/// A directory somewhere in the tree; the root is the empty path.
fn some_directory(fs: &SimFs, dice: &mut Dice) -> Vec<u8> {
    let tree = fs.tree();
    let mut dirs: Vec<_> =
        tree.into_iter().filter(|(_, entry)| entry.content.is_none()).map(|(path, _)| path).collect();
    dirs.push(Vec::new());
    dirs.swap_remove(dice.below(dirs.len()))
}

fn within(dir: &[u8], name: &str) -> Vec<u8> {
    if dir.is_empty() { name.into() } else { [dir, b"/", name.as_bytes()].concat() }
}

/// Makes things and moves directories into each other, so that few names are had by many, and nothing is replaced.
fn make_and_move(fs: &SimFs, names: Names, dice: &mut Dice, times: usize) {
    for number in 0..times {
        let name = if names == Names::Bytes { ["a", "b", "c"] } else { ["a", "A", "b"] }[dice.below(3)];
        let dir = some_directory(fs, dice);
        let to = within(&dir, name);
        if fs.names(&dir).unwrap().iter().any(|other| fold(other, names) == fold(name.as_bytes(), names)) {
            continue;
        }
        match dice.below(5) {
            0 | 1 => fs.mkdir(&to).unwrap(),
            2 => fs.write(&to, format!("{number} of {}", dice.0).as_bytes()).unwrap(),
            _ => {
                let from = some_directory(fs, dice);
                let inside = to.starts_with(&[&from[..], b"/"].concat());
                if !from.is_empty() && !inside {
                    fs.rename(&from, &to).unwrap();
                }
            }
        }
    }
}

fn whatever_is_moved(names: Names, limits: Limits) {
    for seed in 1..300 {
        let prepare = |fs: &SimFs| make_and_move(fs, names, &mut Dice(seed << 20), 60);
        let deed = |fs: &SimFs| make_and_move(fs, names, &mut Dice(seed << 21 | 1), 200);
        meanwhile(names, limits, prepare, deed, &format!("seed {seed}, {} entries", limits.batch_entries));
    }
}

#[test]
fn whatever_is_moved_into_whatever_else() {
    whatever_is_moved(Names::Bytes, Limits::default());
}

#[test]
fn whatever_is_moved_into_whatever_else_and_does_not_fit_into_one_batch() {
    whatever_is_moved(Names::Bytes, Limits { batch_entries: 4, ..Limits::default() });
}

#[test]
fn whatever_is_moved_into_whatever_else_where_case_does_not_count() {
    for batch_entries in [4, Limits::default().batch_entries] {
        whatever_is_moved(Names::Windows, Limits { batch_entries, ..Limits::default() });
    }
}
