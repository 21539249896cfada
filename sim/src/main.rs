//! The simulator: whole members on simulated disks, clocks and networks, from one seed each.
//!
//! Owns the faults, the people and the questions; the members are the real ones. It must never decide anything for a
//! member, and nothing but the seed may decide anything for it.
//!
//! ```text
//! plan (from the seed) -> world: members (machine, disk, database, clock, people), network, troubles
//!                      -> mend everything -> rest -> oracle: design, section 19
//! ```

mod counters;
mod history;
mod kv;
mod machine;
mod mutants;
mod network;
mod oracle;
mod plan;
mod replica;
#[cfg(test)]
mod tests;
mod trace;
mod trouble;
mod users;
mod world;

use std::collections::BTreeMap;
use std::io::Write;
use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Parser;

use counters::Counters;
use history::Outcome;
use oracle::Violation;
use plan::Plan;

/// Histories consist of small allocations that do not live long.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Runs histories of simulated members and asserts the invariants of the design's section 19.
///
/// Exits with 0 when all held, with 1 when one did not; then it says which command replays the history.
#[derive(Parser, Debug)]
struct Options {
    /// Seeds from the first up to, not including, the second: `0..1000`.
    #[arg(long, value_parser = range, conflicts_with = "seed")]
    seeds: Option<(u64, u64)>,
    /// One seed.
    #[arg(long)]
    seed: Option<u64>,
    /// Prints the history.
    #[arg(long, requires = "seed")]
    print: bool,
    /// Threads.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Stops after so many minutes, whatever is left.
    #[arg(long)]
    minutes: Option<u64>,
    /// Goes on after a failure, and counts failures.
    #[arg(long)]
    keep_going: bool,
    /// Histories of each thousand that may fail without the run as a whole failing: a stated debt that only goes down.
    #[arg(long, default_value_t = 0, requires = "keep_going")]
    debt_permille: u64,
    /// Runs each history twice and compares.
    #[arg(long)]
    twice: bool,
    /// Prints the table of what occurred.
    #[arg(long)]
    table: bool,
    /// Fails if a fault, a habit of users or a branch of the four cases never occurred: for runs of many histories.
    #[arg(long, conflicts_with = "seed")]
    require_all: bool,
    #[cfg(feature = "mutants")]
    #[command(flatten)]
    broken: Broken,
}

/// Mistakes on purpose (see `mutants`).
#[cfg(feature = "mutants")]
#[derive(clap::Args, Debug)]
struct Broken {
    /// Breaks this rule or step; with `--mutants` tries this one only. May stand several times there.
    #[arg(long = "break", value_name = "NAME", value_parser = mutant)]
    break_: Vec<mutants::Mutant>,
    /// Breaks every rule and step in turn until it is caught, and prints what caught it.
    #[arg(long)]
    mutants: bool,
    /// Histories a mutant at most.
    #[arg(long, default_value_t = 10_000, requires = "mutants")]
    histories: u64,
    /// Histories with nothing broken, which say what fails by itself.
    #[arg(long, default_value_t = 400, requires = "mutants")]
    control: u64,
}

#[cfg(feature = "mutants")]
fn mutant(name: &str) -> Result<mutants::Mutant, String> {
    mutants::Mutant::named(name).ok_or_else(|| {
        let names: Vec<_> = mutants::Mutant::all().iter().map(ToString::to_string).collect();
        format!("one of {}", names.join(", "))
    })
}

fn range(text: &str) -> Result<(u64, u64), String> {
    let (from, to) = text.split_once("..").ok_or("write FROM..TO")?;
    let number = |t: &str| t.parse::<u64>().map_err(|e| e.to_string());
    let (from, to) = (number(from)?, number(to)?);
    if from < to { Ok((from, to)) } else { Err("the range is empty".into()) }
}

fn main() -> ExitCode {
    let options = Options::parse();
    #[cfg(feature = "mutants")]
    if options.broken.mutants {
        return hunt(&options);
    }
    match options.seed {
        Some(seed) => one(seed, &options),
        None => many(options),
    }
}

/// Runs a history; a panic in a member is a violation like any other.
fn guarded(seed: u64, print: bool) -> Outcome {
    let run = || history::run(Plan::of(seed), &replica::open, print);
    std::panic::catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|cause| {
        let text = cause
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| cause.downcast_ref::<&str>().map(|s| (*s).to_owned()))
            .unwrap_or_else(|| "a panic".into());
        let violations = vec![Violation { invariant: "Progress", text: format!("panic: {text}") }];
        Outcome { violations, counters: Counters::default(), digest: 0 }
    })
}

/// As [`guarded`], with what the command line breaks broken.
fn asked_for(seed: u64, print: bool, options: &Options) -> Outcome {
    #[cfg(feature = "mutants")]
    if let Some(mutant) = options.broken.break_.first() {
        return mutant.with(|| guarded(seed, print));
    }
    let _ = options;
    guarded(seed, print)
}

/// A number that no earlier run had: the time of day is as good as any, and is printed.
fn fresh() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs()) * 1_000_000
}

#[cfg(feature = "mutants")]
fn hunt(options: &Options) -> ExitCode {
    // What a broken member panics of is its history's failure, and told as such.
    std::panic::set_hook(Box::new(|_| ()));
    let from = options.seed.or(options.seeds.map(|(from, _)| from)).unwrap_or_else(fresh);
    let search = mutants::Search {
        run: &|seed| guarded(seed, false).violations,
        from,
        histories: options.broken.histories,
        jobs: options.jobs,
        until: options.minutes.map(|m| Instant::now() + Duration::from_secs(60 * m)),
    };
    let all = if options.broken.break_.is_empty() { mutants::Mutant::all() } else { options.broken.break_.clone() };
    tell(format_args!("seeds from {from}"));
    let alive = search.table(&all, options.broken.control, &|line| tell(format_args!("{line}")));
    if alive.is_empty() {
        tell(format_args!("all {} are caught", all.len()));
        return ExitCode::SUCCESS;
    }
    tell(format_args!("not caught: {}", alive.join(", ")));
    ExitCode::FAILURE
}

fn tell(text: std::fmt::Arguments<'_>) {
    // A reader that went away is no error.
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

fn one(seed: u64, options: &Options) -> ExitCode {
    if options.print {
        let logged = tracing_subscriber::fmt().with_max_level(tracing_subscriber::filter::LevelFilter::DEBUG);
        logged.without_time().with_target(false).with_ansi(false).init();
    }
    let outcome = asked_for(seed, options.print, options);
    if options.table {
        tell(format_args!("{}", outcome.counters));
    }
    for Violation { invariant, text } in &outcome.violations {
        tell(format_args!("seed {seed}: {invariant}: {text}"));
    }
    tell(format_args!("seed {seed}: digest {:016x}", outcome.digest));
    if outcome.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A history that takes longer has no end: of a thousand, the longest takes ten seconds.
const ENDLESS: Duration = Duration::from_secs(180);

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What came of many histories.
#[derive(Default)]
struct Sums {
    counters: Counters,
    histories: u64,
    failed: u64,
}

/// Many histories, by several threads.
struct Run {
    options: Options,
    from: u64,
    to: u64,
    until: Option<Instant>,
    next: AtomicU64,
    stop: AtomicBool,
    sums: Mutex<Sums>,
    under_way: Mutex<BTreeMap<u64, Instant>>,
    /// Threads at work, those that hang left out.
    workers: Mutex<usize>,
    changed: Condvar,
}

impl Run {
    /// One history after another, until there are no more.
    fn start_worker(self: &Arc<Self>) {
        *lock(&self.workers) += 1;
        let run = Arc::clone(self);
        let body = move || {
            if run.work() {
                *lock(&run.workers) -= 1;
                run.changed.notify_all();
            }
        };
        let thread = std::thread::Builder::new().stack_size(64 << 20).spawn(body);
        thread.expect("the system gives a thread");
    }

    /// `false`: its last history was given up, and another thread works in this one's place.
    fn work(&self) -> bool {
        let options = &self.options;
        while !self.stop.load(Ordering::Relaxed) && self.until.is_none_or(|u| Instant::now() < u) {
            let seed = self.next.fetch_add(1, Ordering::Relaxed);
            if seed >= self.to {
                break;
            }
            lock(&self.under_way).insert(seed, Instant::now());
            let mut outcome = asked_for(seed, false, options);
            if options.twice && asked_for(seed, false, options).digest != outcome.digest {
                let text = "the same seed gave another history".into();
                outcome.violations.push(Violation { invariant: "Determinism", text });
            }
            if lock(&self.under_way).remove(&seed).is_none() {
                return false;
            }
            self.ended(seed, &outcome);
        }
        true
    }

    fn ended(&self, seed: u64, outcome: &Outcome) {
        let mut sums = lock(&self.sums);
        sums.counters.join(&outcome.counters);
        sums.histories += 1;
        if let Some(Violation { invariant, text }) = outcome.violations.first() {
            sums.failed += 1;
            tell(format_args!("FAILED {invariant}: {text}\n  replay: sim --seed {seed} --print"));
            if !self.options.keep_going {
                self.stop.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Waits for the threads. A history that does not end is given up: it failed, its thread ends with the process, and
    /// another one takes its place.
    fn wait(self: &Arc<Self>) {
        let mut workers = lock(&self.workers);
        while *workers > 0 {
            let waited = self.changed.wait_timeout(workers, Duration::from_secs(1));
            drop(waited.unwrap_or_else(PoisonError::into_inner));
            let mut hanging = Vec::new();
            lock(&self.under_way).retain(|seed, since| {
                let hangs = since.elapsed() > ENDLESS;
                hanging.extend(hangs.then_some(*seed));
                !hangs
            });
            for seed in hanging {
                let text = "the history does not end".into();
                let violations = vec![Violation { invariant: "Progress", text }];
                self.ended(seed, &Outcome { violations, counters: Counters::default(), digest: 0 });
                self.start_worker();
                *lock(&self.workers) -= 1;
            }
            workers = lock(&self.workers);
        }
    }

    fn verdict(&self, begun: Instant) -> ExitCode {
        let (options, sums) = (&self.options, lock(&self.sums));
        let Sums { counters, histories, failed } = &*sums;
        if options.table {
            tell(format_args!("{counters}"));
        }
        let never = counters.never();
        if !never.is_empty() && (options.table || options.require_all) {
            tell(format_args!("never occurred: {}", never.join(", ")));
        }
        let per = |name: &str| counters.of(name) as f64 / (*histories).max(1) as f64;
        tell(format_args!(
            "{histories} histories from seed {} in {:.0} s, {failed} failed; in each, on average: {:.0} operations, {:.2} power cuts, {:.2} partitions, {:.2} broken passes",
            self.from,
            begun.elapsed().as_secs_f64(),
            per("operations"),
            per("power cuts"),
            per("trouble: Partition"),
            per("broken passes"),
        ));
        if *failed > 0 && options.debt_permille > 0 {
            let (share, debt) = (*failed as f64 * 100.0 / (*histories).max(1) as f64, options.debt_permille);
            tell(format_args!(
                "{failed} of {histories} histories failed ({share:.2} %); the stated debt is {debt} of a thousand"
            ));
        }
        let complete = !options.require_all || never.is_empty();
        if failed * 1000 <= histories * options.debt_permille && complete {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

fn many(options: Options) -> ExitCode {
    let (from, to) = options.seeds.unwrap_or_else(|| (fresh(), u64::MAX));
    let begun = Instant::now();
    let (jobs, until) = (options.jobs.max(1), options.minutes.map(|m| begun + Duration::from_secs(60 * m)));
    let run = Arc::new(Run {
        options,
        from,
        to,
        until,
        next: AtomicU64::new(from),
        stop: AtomicBool::new(false),
        sums: Mutex::default(),
        under_way: Mutex::default(),
        workers: Mutex::default(),
        changed: Condvar::new(),
    });
    (0..jobs).for_each(|_| run.start_worker());
    run.wait();
    run.verdict(begun)
}
