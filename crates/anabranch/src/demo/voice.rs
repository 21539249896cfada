//! What the demonstration says: lines, and one line of progress that is drawn anew on a terminal.

use std::io::{IsTerminal, Stdout, Write};
use std::time::{Duration, Instant};

use super::{Outcome, Stop};

/// How often progress is said where it cannot be drawn anew.
const PLAIN_EVERY: Duration = Duration::from_secs(2);

/// Standard output.
pub(crate) struct Voice {
    out: Stdout,
    terminal: bool,
    drawn: bool,
    said: Option<Instant>,
}

impl Voice {
    pub(crate) fn new() -> Self {
        let out = std::io::stdout();
        let terminal = out.is_terminal();
        Self { out, terminal, drawn: false, said: None }
    }

    /// Says a line.
    pub(crate) fn line(&mut self, text: &str) -> Outcome<()> {
        self.end_progress();
        self.write(&format!("{text}\n"))
    }

    /// Shows how far it is: on a terminal in place, else as a line every other second.
    pub(crate) fn progress(&mut self, text: &str) -> Outcome<()> {
        if self.terminal {
            self.drawn = true;
            return self.write(&format!("\r\x1b[K{text}"));
        }
        if self.said.is_some_and(|at| at.elapsed() < PLAIN_EVERY) {
            return Ok(());
        }
        self.said = Some(Instant::now());
        self.write(&format!("{text}\n"))
    }

    /// Whatever comes next begins on a line of its own.
    pub(crate) fn end_progress(&mut self) {
        self.said = None;
        if std::mem::take(&mut self.drawn) {
            // If nobody looks any more the next line will tell.
            let _ = self.write("\n");
        }
    }

    fn write(&mut self, text: &str) -> Outcome<()> {
        let mut out = self.out.lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|_| Stop::Unseen)
    }
}

/// A number with separators: 12,345.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A count with its noun: "1 file", "2 files".
pub(crate) fn counted(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", grouped(number), if number == 1 { one } else { many })
}

/// Bytes for people, in powers of ten.
pub(crate) fn bytes(number: u64) -> String {
    let (unit, name) = match number {
        0..1_000 => return format!("{number} B"),
        1_000..1_000_000 => (1_000, "KB"),
        1_000_000..1_000_000_000 => (1_000_000, "MB"),
        _ => (1_000_000_000, "GB"),
    };
    // Rounded down to a tenth, in whole numbers.
    let tenths = number / (unit / 10);
    format!("{}.{} {name}", grouped(tenths / 10), tenths % 10)
}

/// A span of time for people.
pub(crate) fn span(time: Duration) -> String {
    match time.as_micros() {
        0..10_000 => format!("{:.1} ms", time.as_secs_f64() * 1e3),
        10_000..1_000_000 => format!("{} ms", time.as_millis()),
        _ => format!("{:.1} s", time.as_secs_f64()),
    }
}

/// The middle one; of an even count the lower of the two. `None` of none.
pub(crate) fn median(times: &[Duration]) -> Option<Duration> {
    let mut sorted = times.to_vec();
    sorted.sort();
    sorted.get(sorted.len().saturating_sub(1) / 2).copied()
}

/// A name or path as text that cannot disturb a terminal.
pub(crate) fn shown(path: &[u8]) -> String {
    match std::str::from_utf8(path) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => path.escape_ascii().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        let cases = [(0, "0"), (999, "999"), (1_000, "1,000"), (12_345, "12,345"), (1_234_567, "1,234,567")];
        for (number, want) in cases {
            assert_eq!(grouped(number), want);
        }
        assert_eq!(counted(1, "file", "files"), "1 file");
        assert_eq!(counted(0, "file", "files"), "0 files");
    }

    #[test]
    fn bytes_for_people() {
        let cases = [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.0 KB"),
            (1_999, "1.9 KB"),
            (148_260_000, "148.2 MB"),
            (u64::MAX, "18,446,744,073.7 GB"),
        ];
        for (number, want) in cases {
            assert_eq!(bytes(number), want, "{number}");
        }
    }

    #[test]
    fn spans_for_people() {
        let cases = [(1_500, "1.5 ms"), (14_900, "14 ms"), (1_300_000, "1.3 s"), (75_000_000, "75.0 s")];
        for (micros, want) in cases {
            assert_eq!(span(Duration::from_micros(micros)), want);
        }
    }

    #[test]
    fn the_middle_of_times() {
        let of = |millis: &[u64]| {
            let times: Vec<Duration> = millis.iter().map(|m| Duration::from_millis(*m)).collect();
            median(&times).map(|m| m.as_millis())
        };
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[7]), Some(7));
        assert_eq!(of(&[9, 1]), Some(1));
        assert_eq!(of(&[9, 1, 5]), Some(5));
    }

    #[test]
    fn odd_names_do_not_reach_the_terminal_raw() {
        assert_eq!(shown("häuser/日本".as_bytes()), "häuser/日本");
        assert_eq!(shown(b"a\x1b[31mb\n"), "a\\x1b[31mb\\n");
        assert_eq!(shown(b"\xff"), "\\xff");
    }
}
