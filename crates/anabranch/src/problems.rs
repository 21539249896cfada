//! What is wrong with the objects of the domain together, and since when.
//!
//! Objects that belong together, those of a new folder say, arrive one after the other: for a moment a membership has no
//! folder. So a problem is an event only once it has stood for a while, and until then it is shown as what it may be.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long a problem stands before it is an event.
const GRACE: Duration = Duration::from_secs(30);

/// The problems that stand, by their text, and since when.
#[derive(Default)]
pub(crate) struct Problems {
    since: BTreeMap<String, Instant>,
    now: Option<Instant>,
}

impl Problems {
    /// These are the problems now; gives those that have stood for [`GRACE`].
    pub(crate) fn look(&mut self, now: Instant, problems: &[String]) -> Vec<String> {
        self.now = Some(now);
        self.since.retain(|problem, _| problems.contains(problem));
        for problem in problems {
            self.since.entry(problem.clone()).or_insert(now);
        }
        problems.iter().filter(|problem| self.stands(problem)).cloned().collect()
    }

    /// Has it stood for [`GRACE`]?
    fn stands(&self, problem: &str) -> bool {
        let (Some(now), Some(since)) = (self.now, self.since.get(problem)) else { return false };
        now.duration_since(*since) >= GRACE
    }

    /// The problem as it is shown: while it is young, with a word that it may pass by itself.
    pub(crate) fn in_words(&self, problem: &str) -> String {
        if self.stands(problem) {
            problem.to_owned()
        } else {
            format!(
                "{problem} (new: where objects were just made, others that belong to them may still be on their way)"
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_that_passes_is_no_event_and_one_that_stays_is() {
        let (begin, mut problems) = (Instant::now(), Problems::default());
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        let [passing, staying] = ["the folder is missing", "the group is missing"].map(str::to_owned);
        assert!(problems.look(at(0), &[passing.clone(), staying.clone()]).is_empty());
        assert!(problems.in_words(&staying).contains("on their way"));
        assert!(problems.look(at(29), std::slice::from_ref(&staying)).is_empty());
        assert_eq!(problems.look(at(30), &[passing.clone(), staying.clone()]), std::slice::from_ref(&staying));
        assert_eq!(problems.in_words(&staying), staying);
        // It was away in between: it is young again.
        assert!(problems.in_words(&passing).contains("on their way"));
    }
}
