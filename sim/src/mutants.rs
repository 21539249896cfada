//! Mistakes made on purpose, one at a time: the simulator must show that it catches each (design, sections 4, 8 and 11).
//!
//! A *mutant* is the member without one rule of section 4 (`anabranch_engine::Rule`), without one step by which nothing is
//! lost (`anabranch_member::steps::Step`), or on a database whose commits are not durable. A mutant is *caught* by a seed
//! whose history fails with it and passes without it.
//!
//! A mutant also rolls the dice anew: whatever it does, a history goes another way from then on. Where some histories fail
//! even without any mutant, such a failure proves nothing. So a *control* (histories with nothing broken) says how often
//! each invariant fails by itself, and a mutant counts as caught only when so many failures cannot be chance. Where nothing
//! fails in the control, one failure is enough.

#[cfg(not(feature = "mutants"))]
pub(crate) const fn commits_are_lazy() -> bool {
    false
}

#[cfg(feature = "mutants")]
pub(crate) use broken::*;

#[cfg(feature = "mutants")]
mod broken {
    use std::cell::Cell;
    use std::collections::{BTreeMap, BTreeSet};
    use std::fmt;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::sync::{Mutex, PoisonError};
    use std::time::Instant;

    use anabranch_engine::Rule;
    use anabranch_engine::rules::break_rule;
    use anabranch_member::steps::{Step, break_step};

    use crate::oracle::Violation;

    /// One mistake.
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
    pub(crate) enum Mutant {
        /// A rule of the engine.
        Rule(Rule),
        /// A step of the member.
        Step(Step),
        /// The database commits without making durable what it commits: the last step of section 8.
        CommitDurable,
    }

    thread_local! {
        static LAZY: Cell<bool> = const { Cell::new(false) };
    }

    /// Are the commits of databases not durable, on this thread?
    pub(crate) fn commits_are_lazy() -> bool {
        LAZY.get()
    }

    impl Mutant {
        /// All of them: steps first, which are the quicker ones.
        pub(crate) fn all() -> Vec<Self> {
            let steps = Step::ALL.into_iter().map(Self::Step);
            let rules = Rule::ALL.into_iter().map(Self::Rule);
            let more = [Self::CommitDurable, Self::Rule(Rule::NumbersFollowTheClock)];
            steps.chain(more).chain(rules).collect()
        }

        /// By its name.
        pub(crate) fn named(name: &str) -> Option<Self> {
            Self::all().into_iter().find(|m| m.to_string() == name)
        }

        /// Runs something with this mistake made, on this thread.
        pub(crate) fn with<R>(self, run: impl FnOnce() -> R) -> R {
            self.set(true);
            // A history that panics is caught inside it.
            let result = run();
            self.set(false);
            result
        }

        fn set(self, on: bool) {
            match self {
                Self::Rule(rule) => break_rule(on.then_some(rule)),
                Self::Step(step) => break_step(on.then_some(step)),
                Self::CommitDurable => LAZY.set(on),
            }
        }
    }

    impl fmt::Display for Mutant {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            match self {
                Self::Rule(rule) => write!(f, "{rule:?}"),
                Self::Step(step) => write!(f, "{step:?}"),
                Self::CommitDurable => write!(f, "CommitDurable"),
            }
        }
    }

    /// What a history showed.
    pub(crate) type Shown = Vec<Violation>;

    /// How often each invariant fails with nothing broken.
    #[derive(Clone, Default, Debug)]
    pub(crate) struct Control {
        histories: u64,
        failed: u64,
        by: BTreeMap<&'static str, u64>,
    }

    impl Control {
        fn add(&mut self, shown: &Shown) {
            self.histories += 1;
            self.failed += u64::from(!shown.is_empty());
            for invariant in invariants(shown) {
                *self.by.entry(invariant).or_default() += 1;
            }
        }

        /// How often this invariant fails in a history; not below what so short a control can tell.
        fn share(&self, invariant: &str) -> f64 {
            if self.failed == 0 {
                return 0.0;
            }
            let failed = self.by.get(invariant).map_or(0.5, |&failed| failed as f64);
            failed / self.histories as f64
        }
    }

    impl fmt::Display for Control {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{} histories with nothing broken: {} failed", self.histories, self.failed)?;
            self.by.iter().try_for_each(|(invariant, count)| write!(f, ", {invariant} {count}"))
        }
    }

    /// What caught a mutant.
    #[derive(Clone, Debug)]
    pub(crate) struct Caught {
        invariant: &'static str,
        /// The first history that showed it.
        pub(crate) seed: u64,
        text: String,
        /// How many histories were run until so many failures could not be chance.
        histories: u64,
        /// Of these, failed with the mutant and passed without it, by this invariant.
        failures: u64,
    }

    impl fmt::Display for Caught {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let Self { invariant, seed, histories, failures, .. } = self;
            write!(f, "caught by {invariant} after {histories} histories ({failures} failed; seed {seed})")
        }
    }

    /// How far the search for one mutant got.
    #[derive(Default, Debug)]
    pub(crate) struct Hunt {
        histories: u64,
        /// Of these, failed with the mutant and without it.
        both: u64,
        /// Failures with the mutant alone: count, first seed and text.
        by: BTreeMap<&'static str, (u64, u64, String)>,
    }

    impl Hunt {
        fn verdict(&self, control: &Control) -> Option<Caught> {
            let sure = |(invariant, (failures, ..)): &(&&'static str, &(u64, u64, String))| {
                let share = control.share(invariant);
                *failures > 0 && (share == 0.0 || chance(self.histories, *failures, share) < CHANCE_MAX)
            };
            let found = self.by.iter().filter(sure).max_by_key(|(_, (failures, ..))| *failures);
            found.map(|(&invariant, (failures, seed, text))| Caught {
                invariant,
                seed: *seed,
                text: text.clone(),
                histories: self.histories,
                failures: *failures,
            })
        }

        fn words(&self) -> String {
            let by: Vec<_> = self.by.iter().map(|(i, (count, seed, _))| format!("{i} {count} (seed {seed})")).collect();
            let both = self.both;
            format!("NOT caught within {} histories ({both} failed without it too); {}", self.histories, by.join(", "))
        }
    }

    /// How probable it may be that failures by which a mutant was caught have nothing to do with it.
    const CHANCE_MAX: f64 = 0.001;

    /// How probable at least so many failures are among so many histories, each of which fails with this probability.
    fn chance(histories: u64, failures: u64, share: f64) -> f64 {
        // Sum of the binomial distribution below, in logarithms so that no term underflows.
        let (mut below, mut term) = (0.0, histories as f64 * (1.0 - share).ln());
        for count in 0..failures {
            below += term.exp();
            term += ((histories - count) as f64 / (count + 1) as f64 * share / (1.0 - share)).ln();
        }
        (1.0 - below).max(0.0)
    }

    fn invariants(shown: &Shown) -> BTreeSet<&'static str> {
        shown.iter().map(|v| v.invariant).collect()
    }

    /// How a search is done.
    pub(crate) struct Search<'a> {
        /// Runs the history of a seed, with what is broken on this thread.
        pub(crate) run: &'a (dyn Fn(u64) -> Shown + Sync),
        /// First seed.
        pub(crate) from: u64,
        /// Histories a mutant at most.
        pub(crate) histories: u64,
        /// Threads.
        pub(crate) jobs: usize,
        /// When to give up.
        pub(crate) until: Option<Instant>,
    }

    impl Search<'_> {
        /// How the simulator fares with nothing broken.
        pub(crate) fn control(&self, histories: u64) -> Control {
            let control = Mutex::new(Control::default());
            // Seeds of its own, so that it is not the reruns of failures that it counts.
            self.each(self.from + (1 << 20), histories, &AtomicBool::new(false), &|seed| {
                let shown = (self.run)(seed);
                control.lock().unwrap_or_else(PoisonError::into_inner).add(&shown);
            });
            control.into_inner().unwrap_or_else(PoisonError::into_inner)
        }

        /// Looks for histories that show a mutant.
        pub(crate) fn hunt(&self, mutant: Mutant, control: &Control) -> (Hunt, Option<Caught>) {
            let (hunt, stop) = (Mutex::new(Hunt::default()), AtomicBool::new(false));
            let caught = Mutex::new(None);
            self.each(self.from, self.histories, &stop, &|seed| {
                let shown = mutant.with(|| (self.run)(seed));
                let alone = shown.is_empty() || (self.run)(seed).is_empty();
                let mut hunt = hunt.lock().unwrap_or_else(PoisonError::into_inner);
                hunt.histories += 1;
                if !alone {
                    hunt.both += 1;
                    return;
                }
                for violation in &shown {
                    hunt.by.entry(violation.invariant).or_insert((0, seed, violation.text.clone()));
                }
                for invariant in invariants(&shown) {
                    hunt.by.entry(invariant).and_modify(|(count, ..)| *count += 1);
                }
                // The first verdict stands, whatever the histories that other threads were at come to.
                let mut caught = caught.lock().unwrap_or_else(PoisonError::into_inner);
                *caught = caught.take().or_else(|| hunt.verdict(control));
                stop.store(caught.is_some(), Ordering::Relaxed);
            });
            let caught = caught.into_inner().unwrap_or_else(PoisonError::into_inner);
            (hunt.into_inner().unwrap_or_else(PoisonError::into_inner), caught)
        }

        fn each(&self, from: u64, count: u64, stop: &AtomicBool, body: &(dyn Fn(u64) + Sync)) {
            let next = AtomicU64::new(0);
            std::thread::scope(|scope| {
                for _ in 0..self.jobs.max(1) {
                    let work = || {
                        while !stop.load(Ordering::Relaxed) && self.until.is_none_or(|u| Instant::now() < u) {
                            let number = next.fetch_add(1, Ordering::Relaxed);
                            if number >= count {
                                break;
                            }
                            body(from + number);
                        }
                    };
                    let thread = std::thread::Builder::new().stack_size(64 << 20).spawn_scoped(scope, work);
                    thread.expect("the system gives a thread");
                }
            });
        }

        /// Breaks each in turn and prints what caught it; the names of those that nothing caught.
        pub(crate) fn table(&self, mutants: &[Mutant], control: u64, tell: &dyn Fn(&str)) -> Vec<String> {
            let control = self.control(control);
            tell(&control.to_string());
            let mut alive = Vec::new();
            for mutant in mutants {
                let begun = Instant::now();
                let (hunt, caught) = self.hunt(*mutant, &control);
                let time = begun.elapsed().as_secs_f64();
                match caught {
                    Some(caught) => {
                        tell(&format!("{mutant:<36} {caught}, {time:.0} s\n    {}", short(&caught.text)));
                    }
                    None => {
                        tell(&format!("{mutant:<36} {}, {time:.0} s", hunt.words()));
                        alive.push(mutant.to_string());
                    }
                }
            }
            alive
        }
    }

    fn short(text: &str) -> String {
        let mut short: String = text.replace('\n', " ").chars().take(180).collect();
        if short.len() < text.len() {
            short.push('…');
        }
        short
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn chance_is_that_of_a_coin() {
            assert!((chance(1, 1, 0.5) - 0.5).abs() < 1e-9);
            assert!((chance(10, 10, 0.5) - 0.5_f64.powi(10)).abs() < 1e-9);
            assert!(chance(10_000, 1, 0.1) > 0.999);
            assert!(chance(10_000, 5_000, 0.1) < 1e-9);
        }
    }
}
