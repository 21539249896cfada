//! What the output of a step tells: tests passed, failed and ignored, and what was skipped and why.

use std::fmt;
use std::time::Duration;

/// What came of one step.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// How long it took.
    pub(crate) time: Duration,
    passed: u64,
    failed: u64,
    ignored: u64,
    /// (test, reason) of what was skipped within it.
    skips: Vec<(String, String)>,
    /// Lines that the summary repeats: what the simulator got through.
    notes: Vec<String>,
    /// Why it failed.
    failure: Option<String>,
    /// Why it did not run at all.
    skipped: Option<String>,
    /// Inside the output of tests that passed.
    quiet: bool,
    /// The test whose output is being read.
    test: String,
}

impl Outcome {
    /// A step that could not run here.
    pub(crate) fn skipped(reason: &str) -> Self {
        Self { skipped: Some(reason.to_owned()), ..Self::default() }
    }

    /// A step that did not even start.
    pub(crate) fn failed(reason: &str) -> Self {
        Self { failure: Some(reason.to_owned()), ..Self::default() }
    }

    /// Counts it as failed; the first reason stands.
    pub(crate) fn fail(&mut self, reason: &str) {
        self.failure.get_or_insert_with(|| reason.to_owned());
    }

    /// Reads one line of output; says whether it is worth showing (what passed tests print is not).
    pub(crate) fn take_in(&mut self, line: &str) -> bool {
        let text = line.trim();
        if let Some(counts) = text.strip_prefix("test result:") {
            self.passed += number_before(counts, "passed");
            self.failed += number_before(counts, "failed");
            self.ignored += number_before(counts, "ignored");
            self.quiet = false;
            self.test.clear();
            return true;
        }
        if text.contains(" histories from seed ") || text.starts_with("never occurred:") {
            self.notes.push(text.to_owned());
        }
        match text {
            "successes:" => self.quiet = true,
            "failures:" => self.quiet = false,
            _ => {}
        }
        if let Some(test) = text.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----")) {
            self.test = test.to_owned();
        }
        // `get`: the seventh byte need not be the start of a character.
        if text.get(..4).is_some_and(|word| word.eq_ignore_ascii_case("skip")) {
            self.skips.push((self.test.clone(), text.to_owned()));
        }
        !self.quiet
    }
}

/// The number that stands right before `word`.
fn number_before(text: &str, word: &str) -> u64 {
    let words: Vec<&str> = text.split([' ', ';', '.']).filter(|word| !word.is_empty()).collect();
    words.windows(2).find(|pair| pair[1] == word).and_then(|pair| pair[0].parse().ok()).unwrap_or(0)
}

/// All steps in order.
#[derive(Default)]
pub(crate) struct Report {
    steps: Vec<(&'static str, Outcome)>,
}

impl Report {
    /// Adds a step.
    pub(crate) fn add(&mut self, name: &'static str, outcome: Outcome) {
        self.steps.push((name, outcome));
    }

    /// Nothing failed.
    pub(crate) fn passed(&self) -> bool {
        self.steps.iter().all(|(_, outcome)| outcome.failure.is_none())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{:<26}{:<10}{:>8}{:>10}", "step", "result", "time", "tests")?;
        let (mut passed, mut failed, mut ignored, mut time) = (0, 0, 0, Duration::ZERO);
        for (name, outcome) in &self.steps {
            let result = match (&outcome.failure, &outcome.skipped) {
                (Some(_), _) => "FAILED",
                (None, Some(_)) => "skipped",
                (None, None) => "ok",
            };
            let tests = outcome.passed + outcome.failed;
            let tests = if tests == 0 { String::new() } else { tests.to_string() };
            writeln!(f, "{name:<26}{result:<10}{:>6} s{tests:>10}", outcome.time.as_secs())?;
            passed += outcome.passed;
            failed += outcome.failed;
            ignored += outcome.ignored;
            time += outcome.time;
        }
        writeln!(f, "tests: {passed} passed, {failed} failed, {ignored} ignored, in {} s", time.as_secs())?;
        for (name, outcome) in &self.steps {
            if let Some(reason) = &outcome.failure {
                writeln!(f, "FAILED: {name}: {reason}")?;
            }
        }
        for (name, outcome) in &self.steps {
            for note in &outcome.notes {
                writeln!(f, "{name}: {note}")?;
            }
        }
        let mut nothing = true;
        for (name, outcome) in &self.steps {
            for (test, reason) in
                outcome.skipped.iter().map(|reason| (String::new(), reason.clone())).chain(outcome.skips.clone())
            {
                nothing = false;
                let test = if test.is_empty() { String::new() } else { format!(": {test}") };
                writeln!(f, "skipped: {name}{test}: {reason}")?;
            }
        }
        if nothing { writeln!(f, "skipped: nothing") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\
running 3 tests
test install::xfs ... ok
test scan::all ... FAILED

successes:

---- install::xfs stdout ----
skipped: mounting needs root

successes:
    install::xfs

failures:

---- scan::all stdout ----
thread panicked

failures:
    scan::all

test result: FAILED. 2 passed; 1 failed; 4 ignored; 0 measured; 9 filtered out; finished in 0.10s
test result: ok. 40 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s
";

    #[test]
    fn counts_add_up_and_skips_name_their_test() {
        let mut outcome = Outcome::default();
        let shown: Vec<&str> = OUTPUT.lines().filter(|line| outcome.take_in(line)).collect();
        assert_eq!((outcome.passed, outcome.failed, outcome.ignored), (42, 1, 4));
        assert_eq!(outcome.skips, [("install::xfs".to_owned(), "skipped: mounting needs root".to_owned())]);
        assert!(shown.contains(&"thread panicked"), "failures are shown");
        assert!(!shown.contains(&"skipped: mounting needs root"), "what passed tests print is not");
    }

    #[test]
    fn the_report_says_what_failed_and_what_was_skipped() {
        let mut report = Report::default();
        report.add("book", Outcome::skipped("mdbook is not installed"));
        assert!(report.passed());
        report.add("lints", Outcome::failed("exit status: 101"));
        assert!(!report.passed());
        let text = report.to_string();
        assert!(text.contains("skipped: book: mdbook is not installed"), "{text}");
        assert!(text.contains("FAILED: lints: exit status: 101"), "{text}");
    }
}
