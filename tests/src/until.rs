//! The one way to wait: look at a condition until it holds or a deadline passes, and say what was waited for.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Between two looks, at first; doubled up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(2);
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// What one look saw.
pub enum Look<T> {
    /// It holds.
    Yes(T),
    /// Not yet; the text says what stood in the way.
    NotYet(String),
}

impl Look<()> {
    /// `Yes` where `holds`, else the explanation.
    pub fn when(holds: bool, otherwise: impl FnOnce() -> String) -> Self {
        if holds { Self::Yes(()) } else { Self::NotYet(otherwise()) }
    }
}

/// Looks until the condition holds.
///
/// # Errors
/// What the look returned as an error; or, after `limit`, a text with `what` and what stood in the way last.
pub fn until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<Look<T>>) -> Result<T> {
    let begun = Instant::now();
    let mut pause = PAUSE_MIN;
    loop {
        match look()? {
            Look::Yes(value) => return Ok(value),
            Look::NotYet(why) if begun.elapsed() >= limit => {
                bail!("waited {} s for {what}, in vain: {why}", limit.as_secs())
            }
            Look::NotYet(_) => thread::sleep(pause),
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Looks until `holds` is true.
///
/// # Errors
/// As [`until`].
pub fn until_true(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) -> Result<()> {
    until(what, limit, || Ok(Look::when(holds(), || "it never held".to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_that_never_holds_is_named_with_its_reason() {
        let error = until::<()>("the moon", Duration::ZERO, || Ok(Look::NotYet("clouds".to_owned()))).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("the moon") && text.contains("clouds"), "{text}");
    }

    #[test]
    fn a_condition_that_comes_to_hold_ends_the_wait() {
        let mut looks = 0;
        until_true("three looks", Duration::from_secs(60), || {
            looks += 1;
            looks == 3
        })
        .unwrap();
        assert_eq!(looks, 3);
    }
}
