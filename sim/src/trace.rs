//! The printed history: one line an event, with the simulated time. Costs nothing unless asked for.

/// Prints the lines of a history if asked for, and keeps a digest: equal seeds must give equal digests.
#[derive(Default)]
pub(crate) struct Trace {
    print: bool,
    digest: u64,
}

impl Trace {
    /// Prints the lines too if `print`.
    pub(crate) fn new(print: bool) -> Self {
        Self { print, digest: 0 }
    }

    /// One line, made only when it is printed: at once, so that it stands among what the members log.
    pub(crate) fn line(&mut self, time: u64, text: impl FnOnce() -> String) {
        if self.print {
            crate::tell(format_args!("{:>5}.{:06} {}", time / 1_000_000, time % 1_000_000, text()));
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
}
