//! The printed history: one line an event, with the simulated time. Costs nothing unless asked for.

/// Lines of a history, and a digest of them that is kept even when they are not: equal seeds must give equal digests.
#[derive(Default)]
pub(crate) struct Trace {
    lines: Option<Vec<String>>,
    digest: u64,
}

impl Trace {
    /// Keeps the lines too if `print`.
    pub(crate) fn new(print: bool) -> Self {
        Self { lines: print.then(Vec::new), digest: 0 }
    }

    /// One line, made only when it is kept.
    pub(crate) fn line(&mut self, time: u64, text: impl FnOnce() -> String) {
        if let Some(lines) = &mut self.lines {
            lines.push(format!("{:>5}.{:06} {}", time / 1_000_000, time % 1_000_000, text()));
        }
    }

    /// Takes a number into the digest.
    pub(crate) fn mark(&mut self, number: u64) {
        self.digest = (self.digest.rotate_left(5) ^ number).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    /// Of all that was marked so far.
    pub(crate) fn digest(&self) -> u64 {
        self.digest
    }

    /// The lines.
    pub(crate) fn into_lines(self) -> Vec<String> {
        self.lines.unwrap_or_default()
    }
}
