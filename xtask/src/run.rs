//! `make test` and `make torture`: every check in order, on one profile so that dependencies are built once, and at the
//! end one table of what passed, how many tests ran, and what was skipped for which reason.
//!
//! A step that fails does not stop the later ones: one run shows everything that is wrong.

use std::env;
use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

mod report;

use report::{Outcome, Report};

/// The profile of every build step: optimised, with debug assertions (see the root Cargo.toml).
const PROFILE: &str = "verify";

/// More seeds than any machine gets through in a run.
const SEEDS: u64 = 1 << 40;

/// Rules and steps of which some are caught within seconds: one of each kind.
const QUICK_MUTANTS: &str = "--histories 1000 --control 300 --break DataDurable --break Lease --break Compare \
    --break GuardPause --break LookAtWhatCameOut --break NamesDurable --break LatestStampWins --break EditBeatsUnseenDelete \
    --break PreserveWhatLostElsewhere --break APassEndsWhereNothingIsNewer \
    --break ChangeNumbersCarryMerges";

/// How many of everything a run makes.
pub(crate) struct Plan {
    name: &'static str,
    /// `None`: leave out what only looks at sources and small parts.
    whole: bool,
    simulation: Simulation,
    /// Arguments of the run that breaks rules and steps in turn.
    mutants: &'static str,
    kills: u32,
    installs: u32,
    cuts: u32,
}

enum Simulation {
    /// As many histories as fit.
    Minutes(u32),
    /// So many histories.
    Histories(u64),
}

impl Plan {
    /// What every change must pass: under 40 minutes on two cores.
    pub(crate) fn test() -> Self {
        Self {
            name: "test",
            whole: true,
            simulation: Simulation::Minutes(5),
            mutants: QUICK_MUTANTS,
            kills: 20,
            installs: 500,
            cuts: 30,
        }
    }

    /// What a release must pass: hours.
    pub(crate) fn torture() -> Self {
        Self {
            name: "torture",
            whole: false,
            simulation: Simulation::Histories(100_000),
            mutants: "--histories 10000 --control 5000",
            kills: 1_000,
            installs: 10_000,
            cuts: 1_000,
        }
    }
}

/// One command of a run.
struct Step {
    name: &'static str,
    program: String,
    arguments: Vec<String>,
    environment: Vec<(&'static str, String)>,
    /// After so long it is ended and counts as failed.
    limit: Duration,
    /// Why it cannot run here.
    skip: Option<String>,
}

impl Step {
    fn cargo(name: &'static str, line: &str) -> Self {
        let cargo = env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
        Self::new(name, &cargo, line)
    }

    fn new(name: &'static str, program: &str, line: &str) -> Self {
        Self {
            name,
            program: program.to_owned(),
            arguments: line.split_whitespace().map(str::to_owned).collect(),
            environment: Vec::new(),
            limit: Duration::from_secs(20 * 60),
            skip: None,
        }
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.environment.push((name, value.into()));
        self
    }

    fn at_most(mut self, minutes: u32) -> Self {
        self.limit = Duration::from_secs(u64::from(minutes) * 60);
        self
    }

    fn only_if(mut self, possible: bool, otherwise: &str) -> Self {
        if !possible {
            self.skip = Some(otherwise.to_owned());
        }
        self
    }
}

/// Runs the plan's steps; `false` when one of them failed.
pub(crate) fn everything(root: &Path, plan: &Plan) -> Result<bool> {
    let seed = fresh_seed()?;
    say(&format!("make {}: seed {seed}", plan.name));
    let logs = target_dir(root).join("logs");
    fs::create_dir_all(&logs).with_context(|| format!("make {}", logs.display()))?;
    let mut report = Report::default();
    for step in steps(root, plan, seed) {
        let outcome = run(root, &logs, &step, &mut io::stdout())?;
        report.add(step.name, outcome);
    }
    say(&report.to_string());
    say(&format!("seed of this run: {seed}; full output of every step: {}", logs.display()));
    Ok(report.passed())
}

/// Not all histories pass yet: docs/state.md says which kinds fail. The share that may fail is written here and only goes down.
const DEBT: &str = "--keep-going --debt-permille 1";

fn steps(root: &Path, plan: &Plan, seed: u64) -> Vec<Step> {
    let built = target_dir(root).join(PROFILE);
    let program = |name: &str| built.join(name).display().to_string();
    let this = env::current_exe().map_or_else(|_| "cargo-xtask".to_owned(), |path| path.display().to_string());
    let mut steps = Vec::new();
    if plan.whole {
        steps.extend([
            Step::cargo("format", "fmt --all --check"),
            Step::new("repository", &this, "check"),
            Step::cargo("lints", &format!("clippy --workspace --all-targets --profile {PROFILE} -- -D warnings")),
            Step::cargo("documentation", &format!("doc --workspace --no-deps --profile {PROFILE}"))
                .with("RUSTDOCFLAGS", "-D warnings"),
            Step::new("book", "mdbook", "build docs").only_if(on_path("mdbook"), "mdbook is not installed"),
        ]);
    }
    // The program is built before the tests: some of them start it.
    steps.push(Step::cargo("program", &format!("build --profile {PROFILE} -p anabranch -p sim")));
    if plan.whole {
        let line = format!("test --workspace --exclude e2e --profile {PROFILE} --no-fail-fast -- --show-output");
        steps.push(Step::cargo("unit and property tests", &line));
    }
    let (amount, minutes) = match plan.simulation {
        Simulation::Minutes(minutes) => (format!("{seed}..{} --minutes {minutes}", seed + SEEDS), minutes + 5),
        Simulation::Histories(histories) => (format!("{seed}..{}", seed + histories), 24 * 60),
    };
    steps.push(
        Step::new("simulation", &program("sim"), &format!("--seeds {amount} --table --require-all {DEBT}"))
            .at_most(minutes),
    );
    let tests = "-p anabranch-engine --test mutants -p anabranch-member --test replicas -p sim --bin sim";
    let features = "anabranch-engine/mutants,anabranch-member/mutants,sim/mutants";
    let line = format!("test --profile {PROFILE} {tests} --features {features} -- --show-output");
    steps.push(Step::cargo("mutants, in tests", &line));
    // Built last: it takes the place of the simulator that breaks nothing.
    let line = format!("run --profile {PROFILE} -p sim --features mutants -- --mutants --seed {seed} {}", plan.mutants);
    steps.push(Step::cargo("mutants", &line).at_most(if plan.whole { 20 } else { 24 * 60 }));
    let line = format!("test -p e2e --profile {PROFILE} --no-fail-fast -- --show-output --test-threads 2");
    steps.push(
        Step::cargo("end to end", &line)
            .with("ANABRANCH_BIN", program("anabranch"))
            .with("E2E_SEED", seed.to_string())
            .with("KILLS", plan.kills.to_string())
            .with("INSTALLS", plan.installs.to_string())
            .with("CUTS", plan.cuts.to_string())
            .at_most(if plan.whole { 25 } else { 24 * 60 }),
    );
    steps
}

/// Runs one step, showing its output as it comes (that of passed tests only in the log).
fn run(root: &Path, logs: &Path, step: &Step, screen: &mut dyn io::Write) -> Result<Outcome> {
    if let Some(reason) = &step.skip {
        show(screen, &format!("== {}: skipped: {reason}", step.name));
        return Ok(Outcome::skipped(reason));
    }
    show(screen, &format!("== {}: {} {}", step.name, short(&step.program), step.arguments.join(" ")));
    let begun = Instant::now();
    let (reader, writer) = io::pipe().context("make a pipe")?;
    let mut command = Command::new(&step.program);
    command.args(&step.arguments).current_dir(root).envs(step.environment.iter().map(|(k, v)| (*k, v.as_str())));
    command.stdout(writer.try_clone().context("share a pipe")?).stderr(writer);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return Ok(Outcome::failed(&format!("{} does not start: {error}", short(&step.program)))),
    };
    // The command keeps copies of the pipe's writing end: without them gone the reader would never see its end.
    drop(command);
    let mut log = fs::File::create(logs.join(format!("{}.log", step.name.replace(' ', "-")))).context("make a log")?;
    let mut outcome = Outcome::default();
    let (send, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
            if send.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                break;
            }
        }
    });
    loop {
        match lines.recv_timeout(step.limit.saturating_sub(begun.elapsed())) {
            Ok(line) => {
                writeln!(log, "{line}").context("write a log")?;
                if outcome.take_in(&line) {
                    show(screen, &line);
                }
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                outcome.fail(&format!("not done after {} s", step.limit.as_secs()));
                child.kill().context("end a step")?;
                break;
            }
        }
    }
    finish(&mut child, &mut outcome, begun)?;
    Ok(outcome)
}

fn finish(child: &mut Child, outcome: &mut Outcome, begun: Instant) -> Result<()> {
    let status = child.wait().context("wait for a step")?;
    outcome.time = begun.elapsed();
    if !status.success() {
        outcome.fail(&status.to_string());
    }
    Ok(())
}

fn short(program: &str) -> &str {
    program.rsplit('/').next().unwrap_or(program)
}

/// Writes to standard output.
fn say(text: &str) {
    show(&mut io::stdout(), text);
}

/// Writes a line; a closed pipe is not an error.
fn show(screen: &mut dyn io::Write, text: &str) {
    let _ = writeln!(screen, "{text}");
}

fn target_dir(root: &Path) -> std::path::PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir))
}

fn on_path(program: &str) -> bool {
    env::var_os("PATH").is_some_and(|path| env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

/// A seed that nobody chose; `$ANABRANCH_SEED` repeats an earlier run.
fn fresh_seed() -> Result<u64> {
    if let Ok(seed) = env::var("ANABRANCH_SEED") {
        return seed.parse().with_context(|| format!("ANABRANCH_SEED is not a number: {seed}"));
    }
    let mut bytes = [0; 8];
    let mut source = fs::File::open("/dev/urandom").context("open /dev/urandom")?;
    io::Read::read_exact(&mut source, &mut bytes).context("read /dev/urandom")?;
    // Short enough to be typed.
    Ok(u64::from_le_bytes(bytes) % SEEDS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome_of(script: &str, limit: Duration) -> String {
        let logs = env::temp_dir().join(format!("xtask-run-{}", std::process::id()));
        fs::create_dir_all(&logs).unwrap();
        let mut step = Step::new("step", "sh", "-c");
        step.arguments.push(script.to_owned());
        step.limit = limit;
        let mut report = Report::default();
        report.add(step.name, run(&logs, &logs, &step, &mut io::sink()).unwrap());
        format!("{} {report}", report.passed())
    }

    #[test]
    fn a_step_is_judged_by_its_exit_code_and_its_output_counted() {
        let minute = Duration::from_secs(60);
        let good =
            outcome_of("echo 'test result: ok. 3 passed; 0 failed; 1 ignored'; echo skipped: no moon >&2", minute);
        assert!(good.starts_with("true"), "{good}");
        assert!(good.contains("3 passed, 0 failed, 1 ignored") && good.contains("skipped: no moon"), "{good}");
        let bad = outcome_of("echo 'test result: ok. 3 passed; 0 failed; 0 ignored'; exit 7", minute);
        assert!(bad.starts_with("false") && bad.contains("exit status: 7"), "{bad}");
    }

    #[test]
    fn a_step_that_hangs_is_ended_at_its_limit() {
        let hung = outcome_of("exec sleep 600", Duration::from_millis(100));
        assert!(hung.starts_with("false") && hung.contains("not done after"), "{hung}");
    }
}
