//! Directories that their owner may not write, on a member that does not run as root.

use crate::couple::{Couple, crash_at_every_step, expect_equal, expect_known, settle};
use anabranch_member::Limits;
use anabranch_volume::fs::Abilities;
use anabranch_volume::simulated::{Call, DiskConfig, Fault, Faults, SimFs};

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
        crash_at_every_step(start, &[&change], &[], 20, power_cut);
    }
}

/// The disk fails when the mode is to be put back, for as long as a hint takes to be looked at. `restart`: the daemon dies
/// then, and cannot put it back at its start, either.
fn a_mode_that_cannot_be_put_back(restart: bool) {
    let mut couple = start();
    settle(&mut couple);
    let second = couple.members[1].fs.clone();
    let mode = |fs: &SimFs| fs.tree()[&b"locked"[..]].attributes.mode;
    second.set_interloper_everywhere(Box::new(move |fs, call| {
        if call == Call::RenameNew && mode(fs) == 0o755 {
            fs.faults(|f| f.set(Call::WriteAttributes, Fault::Io, 1_000_000));
        }
    }));
    let first = couple.members[0].fs.clone();
    first.chmod(b"locked", 0o755).unwrap();
    first.write(b"locked/new", b"new").unwrap();
    first.chmod(b"locked", 0o555).unwrap();
    couple.hear();
    for _ in 0..400 {
        couple.step();
        couple.hear();
    }
    second.set_interloper(None);
    assert!(second.exists(b"locked/new"), "it was never lifted");
    assert_eq!(mode(&second), 0o755, "the mode was put back in spite of it");
    if restart {
        couple.restart(Limits::default());
        for _ in 0..400 {
            couple.step();
            couple.hear();
        }
    }
    second.faults(Faults::clear);
    settle(&mut couple);
    expect_equal(&couple, "once the disk is well");
    expect_known(&couple, "once the disk is well");
}

#[test]
fn a_mode_that_cannot_be_put_back_is_put_back_later_and_nobodys_choice() {
    a_mode_that_cannot_be_put_back(false);
}

#[test]
fn a_mode_that_cannot_be_put_back_at_a_start_is_put_back_later_and_nobodys_choice() {
    a_mode_that_cannot_be_put_back(true);
}
