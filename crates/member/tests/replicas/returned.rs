//! A member is put back to an image of its disk and its database (design, section 11).

use crate::couple::{Couple, settle};
use anabranch_member::{EventKind, Input, Limits, LinkId, Partner, Phase};
use anabranch_model::{ChangeNumber, Hlc, Knowledge, ReplicaId, Sequence, Uid, Version};
use anabranch_net::message::{Mark, Message, Page};
use anabranch_volume::simulated::{DiskConfig, Mode, SimFs};

/// The first one is put back to a state before something that the second one was told of. `acknowledged`: the second one
/// was told of an acknowledgement since, too. Whether the first one notices: it goes on under another replica id.
fn notices(acknowledged: bool) -> bool {
    let mut couple = Couple::new(Limits::default(), DiskConfig::default(), |fs| fs.write(b"f", b"one").unwrap());
    couple.connect();
    settle(&mut couple);
    let id = |couple: &Couple| couple.members[0].replica.as_ref().unwrap().replica_id();
    let (disk, before) = (couple.members[0].fs.image(), id(&couple));
    let database = couple.members[0].database.committed();
    let first = couple.members[0].fs.clone();
    first.write(b"g", b"later than the image").unwrap();
    couple.queue.push_back((0, Input::Hints(first.take_hints())));
    while !couple.members[1].fs.exists(b"g") {
        let withheld = |to: usize, input: &Input| {
            to == 1 && !acknowledged && matches!(input, Input::Received(_, Message::Acknowledged { .. }))
        };
        couple.queue.retain(|(to, input)| !withheld(*to, input));
        assert!(couple.step(), "the second one is not told");
    }
    settle(&mut couple);
    couple.disconnect();
    while !couple.queue.is_empty() {
        couple.step();
    }
    couple.members[0].replica = None;
    first.restore(&disk);
    couple.members[0].database = database;
    couple.restart_at(0, Limits::default());
    (0..1_000).any(|_| {
        couple.step();
        id(&couple) != before
    })
}

/// The first one pulls from the second, too, over this link. The first connection between them is the other way.
const BACK: LinkId = LinkId(1_000);

fn connect_back(couple: &mut Couple) {
    couple.queue.push_back((1, Input::LinkUp(BACK, Partner::Downstream)));
    couple.queue.push_back((0, Input::LinkUp(BACK, Partner::Upstream)));
}

fn disconnect(couple: &mut Couple) {
    couple.disconnect();
    couple.queue.extend([0, 1].map(|at| (at, Input::LinkDown(BACK))));
    while !couple.queue.is_empty() {
        couple.step();
    }
}

/// Whoever is told that a replica id was closed closes its links.
fn connect_anew(couple: &mut Couple) {
    for _ in 0..4 {
        disconnect(couple);
        couple.connect();
        connect_back(couple);
        while !couple.queue.is_empty() {
            couple.step();
        }
    }
    settle(couple);
}

/// All that is due for so many seconds. Of what the first one holds nothing is given to the second.
fn run_without_content(couple: &mut Couple, seconds: u64) {
    let until = couple.now + seconds * 1_000_000;
    while couple.now < until {
        couple.hear();
        couple.queue.retain(|(to, input)| *to == 1 || !matches!(input, Input::Received(_, Message::Fetch { .. })));
        if !couple.step() {
            return;
        }
    }
}

/// A third member is away all the time, so that nobody can be sure that it does not have what the others lack.
#[test]
fn what_was_written_between_two_returns_and_nobody_has_is_given_up_by_its_author() {
    let mut couple = Couple::new(Limits::default(), DiskConfig::default(), |fs| fs.write(b"f", b"one").unwrap());
    couple.connect();
    connect_back(&mut couple);
    settle(&mut couple);
    let three = |couple: &mut Couple| {
        for member in &mut couple.members {
            member.replica.as_mut().unwrap().set_members(vec!["m0".into(), "m1".into(), "m2".into()]);
        }
    };
    three(&mut couple);
    let first = couple.members[0].fs.clone();
    let (disk, database) = (first.image(), couple.members[0].database.committed());
    for name in ["before the first return", "before the second return"] {
        first.write(name.as_bytes(), name.as_bytes()).unwrap();
        run_without_content(&mut couple, 100);
        let second = couple.members[1].replica.as_ref().unwrap().records();
        assert!(second.shown_at(Uid::ROOT, name.as_bytes()).unwrap().is_some(), "the second one was not told of it");
        disconnect(&mut couple);
        couple.members[0].replica = None;
        first.restore(&disk);
        couple.members[0].database = database.committed();
        couple.restart_at(0, Limits::default());
        three(&mut couple);
        connect_back(&mut couple);
        // Whoever notices that it was put back closes its links.
        for _ in 0..3 {
            run_without_content(&mut couple, 10);
            disconnect(&mut couple);
            couple.connect();
            connect_back(&mut couple);
        }
    }
    run_without_content(&mut couple, 1_000);
    settle(&mut couple);
    for member in &couple.members {
        assert_eq!(member.fs.names(b"").unwrap(), [b"f"]);
    }
}

#[test]
fn who_is_put_back_notices_it_by_its_marks_and_by_its_acknowledgements() {
    for acknowledged in [false, true] {
        assert!(notices(acknowledged), "acknowledged: {acknowledged}");
    }
}

/// The test above can fail.
#[cfg(feature = "mutants")]
#[test]
fn mutant_that_looks_at_no_marks_is_caught() {
    use anabranch_member::steps::{Step, break_step};

    break_step(Some(Step::MarkEcho));
    let noticed = notices(false);
    break_step(None);
    assert!(!noticed, "it noticed without its marks");
}

/// What partners deleted and forgot is kept in `PreExisting`, also where another file takes its name before it could be
/// taken out.
#[test]
fn what_was_forgotten_and_is_replaced_lies_where_its_manifest_entry_says() {
    let mut couple = Couple::new(Limits::default(), DiskConfig::default(), |fs| fs.write(b"f", b"one").unwrap());
    couple.connect();
    settle(&mut couple);
    let [first, second] = [0, 1].map(|at| couple.members[at].fs.clone());
    let (disk, database) = (second.image(), couple.members[1].database.committed());
    first.remove(b"f").unwrap();
    settle(&mut couple);
    while couple.step() {}
    couple.members[1].replica = None;
    second.restore(&disk);
    couple.members[1].database = database;
    // Somebody has it open to write, so it is not taken out yet.
    let user = second.user_open(b"f", Mode::Update).unwrap();
    couple.restart(Limits::default());
    let phase = |couple: &Couple| couple.members[1].replica.as_ref().unwrap().phase();
    let forgotten = |couple: &Couple| {
        let in_use = couple.members[1].replica.as_ref().unwrap().counters().in_use;
        phase(couple) == Phase::Normal && in_use > 0
    };
    assert!((0..1_000).any(|_| couple.step() && phase(&couple) == Phase::Returning), "it does not notice");
    // The link is opened anew under the fresh replica id, and once more when the first one has closed the old id.
    for _ in 0..2 {
        couple.disconnect();
        while !couple.queue.is_empty() {
            couple.step();
        }
        couple.connect();
        while !couple.queue.is_empty() {
            couple.step();
        }
    }
    assert!((0..20_000).any(|_| couple.step() && forgotten(&couple)), "it does not compare its records");
    first.write(b"f", b"two").unwrap();
    second.user_close(user);
    settle(&mut couple);
    assert_eq!(second.read(b"f").unwrap().bytes(), b"two");
    let replica = couple.members[1].replica.as_mut().unwrap();
    let kept = replica.preserved(0, 9).unwrap();
    let item = kept.iter().find(|item| item.reason.word() == "pre-existing").unwrap();
    assert_eq!(replica.restore(item.number).unwrap().unwrap(), "f.restored-1-1");
    assert_eq!(second.read(b"f.restored-1-1").unwrap().bytes(), b"one");
}

/// The second one was sent one row when the first one is put back: to a state in which another row, which had changed since, is
/// again before that one.
#[test]
fn what_had_changed_since_the_image_is_not_passed_over_by_a_pass_that_goes_on_after_it() {
    let limits = Limits { page_bytes: 1, ..Limits::default() };
    let names: [&[u8]; 4] = [b"a", b"b", b"c", b"d"];
    let mut couple = Couple::new(limits, DiskConfig::default(), |fs| fs.mkdir(b"d").unwrap());
    couple.connect();
    settle(&mut couple);
    couple.disconnect();
    let write = |couple: &mut Couple, names: &[&[u8]], text: &[u8]| {
        let write = |fs: &SimFs| names.iter().for_each(|name| fs.write(&[b"d/", *name].concat(), text).unwrap());
        couple.change(&[&write]);
    };
    write(&mut couple, &names, b"in the image");
    let first = couple.members[0].fs.clone();
    let (disk, database) = (first.image(), couple.members[0].database.committed());
    write(&mut couple, &names[..2], b"later than the image");
    let id = couple.members[0].replica.as_ref().unwrap().replica_id();
    couple.connect();
    let aside = |couple: &Couple| {
        let state = couple.members[1].replica.as_ref().unwrap().records().pass_state(id).unwrap();
        state.reached != state.cursor
    };
    while !aside(&couple) {
        couple.queue.retain(|(_, input)| !matches!(input, Input::Received(_, Message::Acknowledged { .. })));
        assert!(couple.step(), "no page came");
    }
    couple.disconnect();
    couple.queue.retain(|(_, input)| matches!(input, Input::LinkDown(_)));
    while !couple.queue.is_empty() {
        couple.step();
    }
    assert!(aside(&couple), "what came is kept");
    couple.members[0].replica = None;
    first.restore(&disk);
    couple.members[0].database = database;
    couple.restart_at(0, Limits { page_bytes: 1, ..Limits::default() });
    connect_anew(&mut couple);
    for member in &couple.members {
        assert_eq!(member.fs.names(b"d").unwrap(), names);
    }
}

/// A third one, which was never connected with the one that is put back, knows what that one issued after its image, or only
/// what is in the image. Meanwhile that one has issued later numbers.
#[test]
fn who_is_put_back_notices_it_by_what_somebody_knows_who_heard_it_from_others() {
    for later in [false, true] {
        let mut couple = Couple::new(Limits::default(), DiskConfig::default(), |fs| fs.write(b"f", b"one").unwrap());
        couple.connect();
        settle(&mut couple);
        let own = |couple: &Couple| {
            let replica = couple.members[0].replica.as_ref().unwrap();
            (replica.replica_id(), replica.records().known().clone())
        };
        let first = couple.members[0].fs.clone();
        let (disk, database, (id, mut known)) = (first.image(), couple.members[0].database.committed(), own(&couple));
        if later {
            couple.change(&[&|fs| fs.write(b"g", b"later than the image").unwrap()]);
            known = own(&couple).1;
        }
        couple.members[0].replica = None;
        first.restore(&disk);
        couple.members[0].database = database;
        couple.restart_at(0, Limits::default());
        couple.queue.clear();
        couple.change(&[&|fs| fs.write(b"h", b"after the return").unwrap()]);
        assert_eq!(own(&couple).0, id, "nobody has told it");
        let open = Message::Open {
            member: "m1".into(),
            replica: ReplicaId([99; 16]),
            echo: Mark::default(),
            known,
            closed: Vec::new(),
            clock: Hlc(couple.now),
            names: String::new(),
        };
        couple.queue.push_back((0, Input::LinkUp(BACK, Partner::Downstream)));
        couple.queue.push_back((0, Input::Received(BACK, open)));
        couple.step();
        couple.step();
        assert_eq!(own(&couple).0 != id, later, "later than the image: {later}");
    }
}

/// The first one was put back and has compared its records with the second. Then it hears that another one had been put back
/// as well: what the second one said may have come from that one, of before something was deleted.
#[test]
fn who_compared_itself_with_somebody_who_had_been_put_back_too_does_so_again() {
    let mut couple = Couple::new(Limits::default(), DiskConfig::default(), |fs| fs.write(b"f", b"one").unwrap());
    couple.connect();
    connect_back(&mut couple);
    settle(&mut couple);
    let first = couple.members[0].fs.clone();
    let (disk, database) = (first.image(), couple.members[0].database.committed());
    first.write(b"g", b"later than the image").unwrap();
    settle(&mut couple);
    disconnect(&mut couple);
    couple.members[0].replica = None;
    first.restore(&disk);
    couple.members[0].database = database;
    couple.restart_at(0, Limits::default());
    let phase = |couple: &Couple| couple.members[0].replica.as_ref().unwrap().phase();
    assert!((0..1_000).any(|_| couple.step() && phase(&couple) == Phase::Returning), "it does not notice");
    connect_anew(&mut couple);
    assert_eq!(phase(&couple), Phase::Normal);
    let open = Message::Open {
        member: "m1".into(),
        replica: ReplicaId([99; 16]),
        echo: Mark::default(),
        known: Knowledge::default(),
        closed: vec![Version { replica: ReplicaId([98; 16]), sequence: Sequence(1) }],
        clock: Hlc(couple.now),
        names: String::new(),
    };
    couple.queue.push_back((0, Input::LinkUp(LinkId(2_000), Partner::Downstream)));
    couple.queue.push_back((0, Input::Received(LinkId(2_000), open)));
    couple.step();
    couple.step();
    assert_eq!(phase(&couple), Phase::Returning);
    connect_anew(&mut couple);
    assert_eq!(phase(&couple), Phase::Normal);
}

/// An image of a member whose clock was ahead when it was taken: no number that is issued after a return follows the clock.
#[test]
fn two_returns_to_one_image_issue_different_numbers_even_where_the_clock_is_behind_them() {
    let mut couple = Couple::new(Limits::default(), DiskConfig::default(), |fs| fs.write(b"f", b"one").unwrap());
    couple.connect();
    settle(&mut couple);
    let first = couple.members[0].fs.clone();
    let (disk, database) = (first.image(), couple.members[0].database.committed());
    couple.now -= 3_600_000_000;
    couple.tell_time();
    let issued = [b"in the first life".as_slice(), b"in the second one"].map(|name| {
        couple.members[0].replica = None;
        first.restore(&disk);
        couple.members[0].database = database.committed();
        couple.restart_at(0, Limits::default());
        disconnect(&mut couple);
        first.write(name, name).unwrap();
        couple.hear();
        while couple.step() {}
        let records = couple.members[0].replica.as_ref().unwrap().records();
        records.shown_at(Uid::ROOT, name).unwrap().expect("it is recorded").0
    });
    assert_eq!(issued[0].replica, issued[1].replica);
    assert!(issued[0].sequence.0.abs_diff(issued[1].sequence.0) > 1_000, "{issued:?}");
}

/// What a member does between its return and hearing of it has numbers below those of the life that it forgot, where the
/// clock was ahead in that one. Nobody has seen it, whatever numbers of this member he knows.
#[test]
fn what_was_written_after_a_return_is_a_conflict_with_what_was_written_before_it_by_a_clock_ahead() {
    const AHEAD: u64 = 3_600_000_000;
    let limits = Limits { ahead: 2 * AHEAD, ..Limits::default() };
    for restarts in 1..3 {
        let mut couple = Couple::new(limits, DiskConfig::default(), |fs| fs.write(b"f", b"one").unwrap());
        couple.connect();
        connect_back(&mut couple);
        settle(&mut couple);
        let first = couple.members[0].fs.clone();
        let (disk, database, taken) = (first.image(), couple.members[0].database.committed(), couple.now);
        couple.now += AHEAD;
        couple.tell_time();
        first.write(b"f", b"in the life that is forgotten").unwrap();
        settle(&mut couple);
        disconnect(&mut couple);
        couple.now = taken + 1_000_000;
        couple.tell_time();
        couple.members[0].replica = None;
        first.restore(&disk);
        couple.members[0].database = database;
        for life in 0..restarts {
            couple.members[0].replica = None;
            couple.restart_at(0, limits);
            disconnect(&mut couple);
            first.write(b"f", format!("after the return, life {life}").as_bytes()).unwrap();
            first.write(format!("of life {life}").as_bytes(), b"new").unwrap();
            couple.hear();
            while couple.step() {}
        }
        connect_anew(&mut couple);
        for member in &couple.members {
            assert_eq!(member.fs.read(b"f").unwrap().bytes(), b"in the life that is forgotten");
            assert_eq!(member.fs.names(b"").unwrap().len(), 1 + restarts, "{restarts}");
        }
        let kept = couple.members[0].replica.as_ref().unwrap().preserved(0, 9).unwrap();
        assert!(kept.iter().any(|item| item.path == b"f" && item.reason.unseen()), "{restarts}: {kept:?}");
    }
}

/// Database and tree come from a backup, file by file: every file is another object than the database says.
#[test]
fn what_a_backup_brought_back_is_compared_by_its_names() {
    for place_changed in [false, true] {
        let mut couple = Couple::new(Limits::default(), DiskConfig::default(), |fs| {
            ["d", "d/e", "went", "moved"].iter().for_each(|path| fs.mkdir(path.as_bytes()).unwrap());
            for path in ["a", "b", "c", "d/e/f", "went/f", "moved/f", "renamed", "edited"] {
                fs.write(path.as_bytes(), b"old").unwrap();
            }
            fs.symlink(b"link", b"to").unwrap();
        });
        couple.connect();
        connect_back(&mut couple);
        settle(&mut couple);
        let [first, second] = [0, 1].map(|at: usize| couple.members[at].fs.clone());
        let (disk, database) = (first.image(), couple.members[0].database.committed());
        first.write(b"a", b"newer, of this member").unwrap();
        second.write(b"b", b"newer, of the other member").unwrap();
        second.write(b"d/e/f", b"newer, deep").unwrap();
        first.remove(b"c").unwrap();
        second.remove_tree(b"went").unwrap();
        first.rename(b"moved", b"d/moved").unwrap();
        second.rename(b"renamed", b"to another name").unwrap();
        couple.hear();
        settle(&mut couple);
        disconnect(&mut couple);
        couple.members[0].replica = None;
        first.restore_copied(&disk);
        couple.members[0].database = database;
        couple.places[0] += u8::from(place_changed) * 2;
        couple.restart_at(0, Limits::default());
        connect_anew(&mut couple);
        let there = [&b"a"[..], b"b", b"d", b"edited", b"link", b"to another name"];
        for member in &couple.members {
            assert_eq!(member.fs.names(b"").unwrap(), there, "place changed: {place_changed}");
            assert_eq!(member.fs.names(b"d").unwrap(), [&b"e"[..], b"moved"]);
            for (path, content) in [
                ("a", "newer, of this member"),
                ("b", "newer, of the other member"),
                ("d/e/f", "newer, deep"),
                ("d/moved/f", "old"),
                ("to another name", "old"),
                ("edited", "old"),
            ] {
                assert_eq!(member.fs.read(path.as_bytes()).unwrap().bytes(), content.as_bytes(), "{path}");
            }
        }
        let kept = couple.members[1].replica.as_ref().unwrap().preserved(0, 99).unwrap();
        assert!(!kept.iter().any(|item| item.reason.unseen()), "{kept:?}");
    }
}

/// All that is due for so many seconds. Nobody is asked which records he has.
fn run_without_comparison(couple: &mut Couple, seconds: u64) {
    let until = couple.now + seconds * 1_000_000;
    while couple.now < until {
        couple.hear();
        couple.queue.retain(|(_, input)| !matches!(input, Input::Received(_, Message::AskRecords { .. })));
        if !couple.step() {
            return;
        }
    }
}

/// Whoever is told that a replica id was closed closes its links.
fn connect_without_comparison(couple: &mut Couple) {
    for _ in 0..4 {
        disconnect(couple);
        couple.connect();
        connect_back(couple);
        run_without_comparison(couple, 5);
    }
}

/// The first one was put back to a state before something that the second one knows, and starts.
fn put_back() -> Couple {
    let mut couple = Couple::new(Limits::default(), DiskConfig::default(), |fs| {
        fs.mkdir(b"d").unwrap();
        ["d/f", "d/g", "g", "h", "mode", "text"]
            .iter()
            .for_each(|path| fs.write(path.as_bytes(), path.as_bytes()).unwrap());
    });
    couple.connect();
    connect_back(&mut couple);
    settle(&mut couple);
    let first = couple.members[0].fs.clone();
    let (disk, database) = (first.image(), couple.members[0].database.committed());
    first.write(b"later", b"than the image").unwrap();
    settle(&mut couple);
    disconnect(&mut couple);
    couple.members[0].replica = None;
    first.restore(&disk);
    couple.members[0].database = database;
    couple.restart_at(0, Limits::default());
    couple
}

fn do_meanwhile(fs: &SimFs) {
    fs.remove_tree(b"d").unwrap();
    ["g", "h"].iter().for_each(|path| fs.remove(path.as_bytes()).unwrap());
    fs.write(b"h", b"under its name").unwrap();
    fs.write(b"text", b"written in place").unwrap();
    fs.chmod(b"mode", 0o600).unwrap();
}

fn expect_done(couple: &Couple, when: &str) {
    for member in &couple.members {
        assert_eq!(member.fs.names(b"").unwrap(), [&b"h"[..], b"later", b"mode", b"text"], "{when}");
        assert_eq!(member.fs.read(b"h").unwrap().bytes(), b"under its name");
        assert_eq!(member.fs.read(b"text").unwrap().bytes(), b"written in place");
        assert_eq!(member.fs.tree()[&b"mode"[..]].attributes.mode, 0o600);
        let kept = member.replica.as_ref().unwrap().preserved(0, 100).unwrap();
        assert!(kept.iter().all(|item| !item.reason.unseen()), "{when}: {kept:?}");
    }
}

/// While a member that was put back waits for somebody with whom to compare its records it issues no versions. What is removed
/// or changed there meanwhile was removed or changed by somebody who saw it.
#[test]
fn what_is_done_before_the_records_were_compared_is_done_everywhere_afterwards() {
    for restarted in [false, true] {
        let mut couple = put_back();
        let first = couple.members[0].fs.clone();
        let phase = |couple: &Couple| couple.members[0].replica.as_ref().unwrap().phase();
        assert!((0..1_000).any(|_| couple.step() && phase(&couple) == Phase::Returning), "it does not notice");
        connect_without_comparison(&mut couple);
        do_meanwhile(&first);
        run_without_comparison(&mut couple, 5);
        assert_eq!(first.read(b"text").unwrap().bytes(), b"written in place", "restarted: {restarted}");
        if restarted {
            couple.members[0].replica = None;
            couple.restart_at(0, Limits::default());
            connect_without_comparison(&mut couple);
        }
        assert_eq!(phase(&couple), Phase::Returning);
        connect_anew(&mut couple);
        assert_eq!(phase(&couple), Phase::Normal);
        expect_done(&couple, &format!("restarted: {restarted}"));
    }
}

/// Who has looked at its tree before it hears that it was put back knows what was done since.
#[test]
fn what_is_done_before_somebody_tells_of_the_return_is_done_everywhere_afterwards() {
    let mut couple = put_back();
    couple.queue.clear();
    while couple.step() {}
    do_meanwhile(&couple.members[0].fs);
    connect_anew(&mut couple);
    assert_eq!(couple.members[0].replica.as_ref().unwrap().phase(), Phase::Normal);
    assert!(couple.reports.iter().any(|(at, event)| *at == 0 && event.kind == EventKind::RolledBack));
    expect_done(&couple, "before anybody told");
}

/// A third one was put back as well. It has heard of everything, and has forgotten what all had acknowledged as deleted; it
/// cannot say what there is. What it knows is not known by that to the first one, whose records are of the image.
#[test]
fn what_somebody_knows_who_cannot_say_what_there_is_still_comes_from_others() {
    let mut couple = Couple::new(Limits::default(), DiskConfig::default(), |fs| {
        ["edited", "removed"].iter().for_each(|path| fs.write(path.as_bytes(), b"one").unwrap());
    });
    couple.connect();
    connect_back(&mut couple);
    settle(&mut couple);
    let [first, second] = [0, 1].map(|at| couple.members[at].fs.clone());
    let (disk, database) = (first.image(), couple.members[0].database.committed());
    let three = |couple: &mut Couple| {
        for member in &mut couple.members {
            member.replica.as_mut().unwrap().set_members(vec!["m0".into(), "m1".into(), "m2".into()]);
        }
    };
    // Nothing is collected: the third one has not acknowledged it.
    three(&mut couple);
    second.write(b"edited", b"two").unwrap();
    second.remove(b"removed").unwrap();
    settle(&mut couple);
    disconnect(&mut couple);
    couple.members[0].replica = None;
    first.restore(&disk);
    couple.members[0].database = database;
    couple.restart_at(0, Limits::default());
    three(&mut couple);
    let phase = |couple: &Couple| couple.members[0].replica.as_ref().unwrap().phase();
    assert!((0..1_000).any(|_| couple.step() && phase(&couple) == Phase::Returning), "it does not notice");
    disconnect(&mut couple);
    let known = couple.members[1].replica.as_ref().unwrap().records().known().clone();
    let opened = Message::Opened {
        member: "m2".into(),
        replica: ReplicaId([99; 16]),
        echo: Mark::default(),
        number: ChangeNumber(9),
        known: known.clone(),
        closed: Vec::new(),
        clock: Hlc(couple.now),
        names: String::new(),
        joining: false,
    };
    let through = ChangeNumber(9);
    let complete = Some((known, Mark::default()));
    let page =
        Message::Page(Page { replicas: Vec::new(), attributes: Vec::new(), rows: Vec::new(), through, complete });
    let third = LinkId(2_000);
    couple.queue.push_back((0, Input::LinkUp(third, Partner::Upstream)));
    for message in [opened, page, Message::Records { request: 0, present: Vec::new() }] {
        couple.queue.push_back((0, Input::Received(third, message)));
        couple.step();
    }
    while !couple.queue.is_empty() {
        couple.step();
    }
    assert_eq!(phase(&couple), Phase::Returning);
    connect_anew(&mut couple);
    assert_eq!(phase(&couple), Phase::Normal);
    for member in &couple.members {
        assert_eq!(member.fs.names(b"").unwrap(), [b"edited"]);
        assert_eq!(member.fs.read(b"edited").unwrap().bytes(), b"two");
    }
}
