//! The simulator tried with replicas that do nothing, or do wrong: what the oracle must notice.

use anabranch_model::Hlc;
use anabranch_volume::fs::{Fs, Kind};
use anabranch_volume::simulated::SimFs;

use crate::history::{self, Outcome};
use crate::machine::{Figures, Input, Kept, Machine, Named, Output, Start};
use crate::plan::{Plan, Trouble};

/// What a wrong replica does when it is called.
type Deed = fn(&SimFs);

/// A replica that replicates nothing and always says that it is done.
struct Wrong {
    fs: SimFs,
    deed: Deed,
    /// It gives one version another value than others do.
    contradicts: bool,
}

impl Machine for Wrong {
    fn handle(&mut self, _now: Hlc, _input: Input) -> Result<(), String> {
        (self.deed)(&self.fs);
        Ok(())
    }
    fn poll(&mut self) -> Option<Output> {
        None
    }
    fn deadline(&self) -> Option<Hlc> {
        None
    }
    fn looked(&self) -> bool {
        true
    }
    fn settled(&self) -> bool {
        true
    }
    fn describe(&self) -> Vec<String> {
        Vec::new()
    }

    fn waits(&self) -> Vec<String> {
        Vec::new()
    }
    fn preserved(&self) -> Result<Vec<Kept>, String> {
        Ok(Vec::new())
    }
    fn versions(&self, _until: Hlc) -> Result<Vec<(Named, u64)>, String> {
        let value = if self.contradicts { self.fs.tree().len() as u64 } else { 0 };
        Ok(vec![(Named::Thing(anabranch_model::Version::default()), value)])
    }
    fn records(&self) -> Result<Vec<(anabranch_model::Uid, anabranch_model::Record)>, String> {
        Ok(Vec::new())
    }
    fn state(&self) -> u64 {
        0
    }
    fn clock(&self) -> Hlc {
        Hlc(0)
    }
    fn figures(&self) -> Figures {
        Vec::new()
    }
    fn close(&mut self) -> Result<(), String> {
        Ok(())
    }
}

fn run(seed: u64, deed: Deed, contradicts: bool) -> Outcome {
    let open = move |start: Start| Ok(Box::new(Wrong { fs: start.fs, deed, contradicts }) as Box<dyn Machine>);
    history::run(Plan::of(seed), &open, false)
}

fn count(deed: Deed, contradicts: bool, invariant: &str) -> usize {
    let found = |seed| run(seed, deed, contradicts).violations.iter().any(|v| v.invariant == invariant);
    (0..20).filter(|&seed| found(seed)).count()
}

fn caught(deed: Deed, invariant: &str) -> usize {
    count(deed, false, invariant)
}

fn nothing(_: &SimFs) {}

/// Installs without making durable, and something that nobody wrote.
fn invents(fs: &SimFs) {
    if let Ok(file) = fs.create_file(&fs.root(), b"invented") {
        let _ = fs.write_at(&file, b"half a fi", 0);
    }
}

/// Removes the first file that it finds, and keeps no copy.
fn erases(fs: &SimFs) {
    let root = fs.root();
    let found = fs.list(&root).unwrap_or_default();
    if let Some(file) = found.iter().find(|e| e.kind == Some(Kind::File)) {
        let _ = fs.remove_file(&root, &file.name);
    }
}

/// Leaves a private file in the tree.
fn litters(fs: &SimFs) {
    drop(fs.create_symlink(&fs.root(), b".anabranch-left", b"x"));
}

#[test]
fn whoever_does_nothing_does_not_converge() {
    assert!(caught(nothing, "Convergence") >= 15);
    assert_eq!(caught(nothing, "No invention"), 0);
    assert_eq!(caught(nothing, "Progress"), 0);
}

#[test]
fn a_lost_file_is_missed_and_an_invented_one_is_noticed() {
    assert!(caught(erases, "No loss") >= 10);
    assert!(caught(invents, "No invention") >= 19);
    assert!(caught(litters, "Bounds") + caught(litters, "No invention") >= 19);
    assert!(count(nothing, true, "Once") >= 10, "the wrong replica gives one version different values");
}

#[test]
fn a_seed_is_a_history() {
    for seed in 0..10 {
        let (one, two) = (run(seed, nothing, false), run(seed, nothing, false));
        assert_eq!(one.digest, two.digest, "seed {seed}");
        assert!(one.counters.of("operations") >= 200, "seed {seed}");
    }
}

#[cfg(feature = "mutants")]
#[test]
fn mistakes_are_caught() {
    use crate::mutants::{Control, Mutant, Search};

    // Quick ones of each kind: a step of an install, a look at what users do meanwhile, a rule of each facet, and a pass.
    let names = ["NamesDurable", "Compare", "LatestStampWins", "PreserveWhatLostElsewhere", "ChangeNumbersCarryMerges"];
    let run = |seed| crate::guarded(seed, false).violations;
    let search = Search { run: &run, from: 0, histories: 200, jobs: 2, until: None };
    for name in names {
        let mutant = Mutant::named(name).expect("it is in the list");
        let (hunt, caught) = search.hunt(mutant, &Control::default());
        let caught = caught.unwrap_or_else(|| panic!("{name} is not caught: {hunt:?}"));
        // What the table says is so: the seed fails with the mistake, and not without it.
        assert!(!mutant.with(|| run(caught.seed)).is_empty() && run(caught.seed).is_empty(), "{name}: {caught}");
    }
}

#[test]
fn histories_have_enough_troubles_on_average() {
    const PLANS: u64 = 2000;
    let plans: Vec<Plan> = (0..PLANS).map(Plan::of).collect();
    for trouble in [Trouble::PowerCut, Trouble::Partition, Trouble::BrokenPass] {
        let count = plans.iter().flat_map(|p| &p.troubles).filter(|(_, t, _)| *t == trouble).count();
        assert!(count as u64 > PLANS + PLANS / 4, "{trouble:?}: {count} in {PLANS}");
    }
    assert!(plans.iter().all(|p| p.operations >= 200 && (2..=8).contains(&p.members)));
}
