//! What occurred: one table over all histories, so that a fault or a branch that never came is seen.

use std::collections::BTreeMap;
use std::fmt;

/// Counts by name.
#[derive(Clone, Default, Debug)]
pub(crate) struct Counters(BTreeMap<String, u64>);

impl Counters {
    /// One more.
    pub(crate) fn count(&mut self, name: &str) {
        self.add(name, 1);
    }

    /// So many more. A count of zero is kept too: it names what could have occurred.
    pub(crate) fn add(&mut self, name: &str, count: u64) {
        match self.0.get_mut(name) {
            Some(sum) => *sum += count,
            None => {
                self.0.insert(name.to_owned(), count);
            }
        }
    }

    /// Adds another table.
    pub(crate) fn join(&mut self, other: &Self) {
        for (name, count) in &other.0 {
            self.add(name, *count);
        }
    }

    /// How often.
    pub(crate) fn of(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// Names that never occurred.
    pub(crate) fn never(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter(|(_, count)| **count == 0).map(|(name, _)| &**name)
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(name, count)| writeln!(f, "{count:>12}  {name}"))
    }
}
