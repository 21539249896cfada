//! Directories that are not where the database has them. Those that were put aside into staging for a moment, when the daemon
//! dies in that moment: what a user wrote in them shortly before is in nobody's records, and no name leads to them. And those
//! whose move cannot be recorded yet.

use crate::couple::{Couple, expect_equal, expect_known, settle};
use anabranch_member::Limits;
use anabranch_volume::simulated::{DiskConfig, Mode};

fn start() -> Couple {
    let mut couple = Couple::new(Limits::default(), DiskConfig::default(), |fs| {
        for name in [&b"a"[..], b"b", b"c"] {
            fs.mkdir(name).unwrap();
            fs.write(&[name, b"/f"].concat(), b"one").unwrap();
        }
    });
    couple.connect();
    settle(&mut couple);
    couple
}

fn contents(couple: &Couple, at: usize) -> Vec<(String, Option<String>)> {
    let text = |bytes: &[u8]| bytes.escape_ascii().to_string();
    let tree = couple.members[at].fs.tree();
    tree.into_iter().map(|(path, e)| (text(&path), e.content.map(|content| text(content.bytes())))).collect()
}

#[test]
fn what_was_written_in_a_directory_that_was_put_aside_is_found_after_the_daemon_died() {
    let (mut after, mut put_aside) = (0, 0);
    loop {
        let mut couple = start();
        couple.disconnect();
        couple.change(&[
            &|fs| fs.rename(b"a", b"d").unwrap(),
            &|fs| fs.rename(b"c", b"a").unwrap(),
            &|fs| fs.rename(b"b", b"c").unwrap(),
            &|fs| fs.rename(b"d", b"b").unwrap(),
        ]);
        couple.connect();
        let second = couple.members[1].fs.clone();
        for mine in [&b"a/mine"[..], b"b/mine", b"c/mine"] {
            second.write(mine, mine).unwrap();
        }
        // The daemon dies before it is told of them.
        drop(second.take_hints());
        second.power().cut_after(after);
        settle(&mut couple);
        if second.power().is_on() {
            break;
        }
        couple.members[1].replica = None;
        second.process_died();
        put_aside += usize::from(contents(&couple, 1).len() < 9);
        couple.restart(Limits::default());
        settle(&mut couple);
        let expected = [("a", "c/mine"), ("b", "a/mine"), ("c", "b/mine")].into_iter().flat_map(|(name, mine)| {
            [(name.to_owned(), None), (format!("{name}/f"), Some("one")), (format!("{name}/mine"), Some(mine))]
        });
        let expected: Vec<_> = expected.map(|(path, content)| (path, content.map(str::to_owned))).collect();
        assert_eq!(contents(&couple, 1), expected, "died after step {after}");
        expect_known(&couple, &format!("died after step {after}"));
        after += 1;
    }
    assert!(put_aside > 0, "in none of {after} steps was a directory put aside");
}

/// A directory is elsewhere by now, and waits there for a file that is in use: a new one that takes its name is another one.
#[test]
fn a_directory_whose_move_waits_is_not_continued_by_what_takes_its_name() {
    let mut couple = Couple::new(Limits::default(), DiskConfig::default(), |fs| {
        fs.mkdir(b"site").unwrap();
        fs.mkdir(b"site/x").unwrap();
        fs.write(b"site/x/old", b"old").unwrap();
        fs.write(b"a", b"file").unwrap();
    });
    couple.connect();
    settle(&mut couple);
    let first = couple.members[0].fs.clone();
    let user = first.user_open(b"a", Mode::Update).unwrap();
    first.user_put(user, None, b"more");
    first.swap(b"site", b"a").unwrap();
    first.rename(b"site", b"in use").unwrap();
    first.mkdir(b"site").unwrap();
    first.write(b"site/x", b"new").unwrap();
    couple.hear();
    let recorded = (0..200).filter(|_| couple.step()).count();
    assert!(recorded > 0);
    first.user_close(user);
    settle(&mut couple);
    expect_equal(&couple, "once the file is closed");
    assert_eq!(first.read(b"site/x").unwrap().bytes(), b"new");
    assert_eq!(first.read(b"a/x/old").unwrap().bytes(), b"old");
    assert_eq!(couple.members[0].replica.as_ref().unwrap().counters().unseen, 0);
}

/// A directory was removed, and a new one of its name holds what had been in it and beside it. What was taken to be emptied
/// serves as the new one by the time it is empty.
#[test]
fn a_directory_that_serves_as_another_while_it_is_emptied_stays() {
    let mut couple = Couple::new(Limits::default(), DiskConfig::default(), |fs| {
        fs.mkdir(b"b").unwrap();
        fs.mkdir(b"other").unwrap();
    });
    couple.connect();
    settle(&mut couple);
    // One after the other, so that each is later than the one before.
    for name in [&b"b/c"[..], b"a"] {
        couple.change(&[&|fs| fs.mkdir(name).unwrap()]);
        settle(&mut couple);
    }
    couple.disconnect();
    couple.change(&[
        &|fs| fs.rename(b"b/c", b"a/b").unwrap(),
        &|fs| fs.remove(b"b").unwrap(),
        &|fs| fs.mkdir(b"b").unwrap(),
        &|fs| fs.mkdir(b"b/c").unwrap(),
        &|fs| fs.rename(b"a", b"b/c/a").unwrap(),
    ]);
    couple.connect();
    settle(&mut couple);
    expect_equal(&couple, "at the end");
    expect_known(&couple, "at the end");
    let names: Vec<_> = contents(&couple, 1).into_iter().map(|(path, _)| path).collect();
    assert_eq!(names, ["b", "b/c", "b/c/a", "b/c/a/b", "other"]);
}
