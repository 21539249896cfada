//! Causal maps: replica id -> highest sequence.

use crate::{ReplicaId, Sequence, Version};

/// A causal map: for each replica the highest sequence seen. Used for the *known* set of a replica, for a facet's
/// history and for what deletes had seen (design, sections 2 and 4).
///
/// Kept as a vector ascending by replica: nearly all have one or two entries. Absent replicas count as sequence 0.
#[derive(Clone, PartialEq, Eq, Debug, Default, Hash)]
pub struct Knowledge(Vec<(ReplicaId, Sequence)>);

impl Knowledge {
    /// The map that holds exactly what `version` says.
    #[must_use]
    pub fn of(version: Version) -> Self {
        Self(vec![(version.replica, version.sequence)])
    }

    /// Does it contain this version?
    #[must_use]
    pub fn covers(&self, version: Version) -> bool {
        self.sequence(version.replica) >= version.sequence
    }

    /// The highest sequence of `replica`; 0 if there is none.
    #[must_use]
    pub fn sequence(&self, replica: ReplicaId) -> Sequence {
        match self.0.binary_search_by_key(&replica, |e| e.0) {
            Ok(at) => self.0[at].1,
            Err(_) => Sequence(0),
        }
    }

    /// Does it contain all that `other` contains?
    #[must_use]
    pub fn includes(&self, other: &Self) -> bool {
        other.0.iter().all(|&(replica, sequence)| self.sequence(replica) >= sequence)
    }

    /// Adds one version (and, by meaning, all lower ones of that replica).
    pub fn learn(&mut self, version: Version) {
        match self.0.binary_search_by_key(&version.replica, |e| e.0) {
            Ok(at) => self.0[at].1 = self.0[at].1.max(version.sequence),
            Err(at) => self.0.insert(at, (version.replica, version.sequence)),
        }
    }

    /// Least upper bound, in place.
    pub fn join(&mut self, other: &Self) {
        for &(replica, sequence) in &other.0 {
            self.learn(Version { replica, sequence });
        }
    }

    /// Lowers what is known of `replica` to at most `through`; 0 forgets it. Used when an id was closed by a rollback
    /// (design, section 11).
    pub fn lower(&mut self, replica: ReplicaId, through: Sequence) {
        for entry in &mut self.0 {
            if entry.0 == replica {
                entry.1 = entry.1.min(through);
            }
        }
        self.0.retain(|e| e.1 > Sequence(0));
    }

    /// Entries, ascending by replica.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (ReplicaId, Sequence)> + '_ {
        self.0.iter().copied()
    }

    /// Count of replicas.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Is nothing known?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(ReplicaId, Sequence)> for Knowledge {
    fn from_iter<I: IntoIterator<Item = (ReplicaId, Sequence)>>(entries: I) -> Self {
        let entries = entries.into_iter();
        let mut out = Self(Vec::with_capacity(entries.size_hint().0.min(64)));
        for (replica, sequence) in entries {
            // Nearly always they come ascending.
            if out.0.last().is_none_or(|last| last.0 < replica) {
                out.0.push((replica, sequence));
            } else {
                out.learn(Version { replica, sequence });
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn join_is_the_least_upper_bound_and_lower_takes_back() {
        let [a, b] = [ReplicaId([1; 16]), ReplicaId([2; 16])];
        let mut one: Knowledge = [(b, Sequence(3)), (a, Sequence(5))].into_iter().collect();
        let two: Knowledge = [(a, Sequence(2)), (b, Sequence(9))].into_iter().collect();
        assert!(!one.includes(&two));
        one.join(&two);
        assert!(one.includes(&two));
        assert_eq!(one.iter().collect::<Vec<_>>(), [(a, Sequence(5)), (b, Sequence(9))]);
        one.lower(b, Sequence(4));
        one.lower(a, Sequence(0));
        assert_eq!(one.iter().collect::<Vec<_>>(), [(b, Sequence(4))]);
    }
}
