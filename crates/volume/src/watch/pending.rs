//! Hints on their way, merged: one for each entry, by directory, within a bound.
//!
//! Writes to a file that somebody keeps open are held apart, since they come by the thousand and mostly a close follows:
//! they go out when something else happens to the entry, or when they are released.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use super::Hint;
use crate::fs::Object;

/// Hints that nobody took yet.
pub(super) struct Pending {
    directories: HashMap<Object, Directory>,
    /// The directories in the order in which each was first heard of: first come, first served.
    order: VecDeque<Object>,
    /// Written to, and not yet closed as far as is known.
    written: HashMap<Object, BTreeSet<Vec<u8>>>,
    /// Directories and names together, those written to included.
    size: usize,
    max: usize,
    everything: bool,
    root_check: bool,
}

#[derive(Default)]
struct Directory {
    whole: bool,
    /// Name -> closed after write.
    names: BTreeMap<Vec<u8>, bool>,
}

impl Pending {
    /// Merges up to `max` directories and names.
    pub(super) fn new(max: usize) -> Self {
        Self {
            directories: HashMap::new(),
            order: VecDeque::new(),
            written: HashMap::new(),
            size: 0,
            max,
            everything: false,
            root_check: false,
        }
    }

    /// An entry may have changed.
    pub(super) fn entry(&mut self, directory: &Object, name: &[u8], closed_after_write: bool) {
        if self.everything {
            return;
        }
        self.forget_written(directory, name);
        let names = &mut self.directory_mut(directory).names;
        if let Some(closed) = names.get_mut(name) {
            *closed |= closed_after_write;
            return;
        }
        names.insert(name.to_vec(), closed_after_write);
        self.size += 1;
        self.bound();
    }

    /// An entry was written to, which may go on.
    pub(super) fn written(&mut self, directory: &Object, name: &[u8]) {
        let out = self.directories.get(directory).is_some_and(|d| d.names.contains_key(name));
        if self.everything || out {
            return;
        }
        if !self.written.contains_key(directory) {
            self.written.insert(directory.clone(), BTreeSet::new());
        }
        if let Some(names) = self.written.get_mut(directory)
            && !names.contains(name)
        {
            names.insert(name.to_vec());
            self.size += 1;
            self.bound();
        }
    }

    /// Is anything held apart?
    pub(super) fn has_written(&self) -> bool {
        !self.written.is_empty()
    }

    /// Lets out what was held apart.
    pub(super) fn release_written(&mut self) {
        for (directory, names) in std::mem::take(&mut self.written) {
            self.size -= names.len();
            for name in names {
                self.entry(&directory, &name, false);
            }
        }
    }

    /// All of a directory may have changed.
    pub(super) fn directory(&mut self, directory: &Object) {
        if !self.everything {
            self.directory_mut(directory).whole = true;
            self.bound();
        }
    }

    /// Hints were lost.
    pub(super) fn everything(&mut self) {
        self.directories = HashMap::new();
        self.order = VecDeque::new();
        self.written = HashMap::new();
        self.size = 0;
        self.everything = true;
    }

    /// The root may have been moved, removed or covered.
    pub(super) fn check_root(&mut self) {
        self.root_check = true;
    }

    /// Is the root to be looked at? Asked once.
    pub(super) fn take_root_check(&mut self) -> bool {
        std::mem::take(&mut self.root_check)
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.everything && self.order.is_empty()
    }

    /// Takes about `max` hints out: a directory's own hint and its names stay in one batch where they fit.
    pub(super) fn take(&mut self, max: usize) -> Vec<Hint> {
        if std::mem::take(&mut self.everything) {
            return vec![Hint::Everything];
        }
        let mut batch = Vec::new();
        while let Some(object) = self.order.front() {
            if batch.len() >= max.max(1) {
                break;
            }
            let Some(directory) = self.directories.get_mut(object) else {
                self.order.pop_front();
                continue;
            };
            if std::mem::take(&mut directory.whole) {
                batch.push(Hint::Directory { directory: object.clone() });
            }
            while batch.len() < max.max(1) {
                let Some((name, closed_after_write)) = directory.names.pop_first() else { break };
                batch.push(Hint::Entry { directory: object.clone(), name, closed_after_write });
                self.size -= 1;
            }
            if directory.names.is_empty() {
                self.directories.remove(object);
                self.size -= 1;
                self.order.pop_front();
            }
        }
        batch
    }

    fn directory_mut(&mut self, directory: &Object) -> &mut Directory {
        if !self.directories.contains_key(directory) {
            self.size += 1;
            self.order.push_back(directory.clone());
        }
        self.directories.entry(directory.clone()).or_default()
    }

    fn forget_written(&mut self, directory: &Object, name: &[u8]) {
        if let Some(names) = self.written.get_mut(directory)
            && names.remove(name)
        {
            self.size -= 1;
            if names.is_empty() {
                self.written.remove(directory);
            }
        }
    }

    fn bound(&mut self) {
        if self.size > self.max {
            self.everything();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(n: u8) -> Object {
        Object([n].into())
    }

    fn entry(directory: u8, name: &str, closed_after_write: bool) -> Hint {
        Hint::Entry { directory: object(directory), name: name.into(), closed_after_write }
    }

    #[test]
    fn duplicates_merge_and_a_close_is_not_forgotten() {
        let mut p = Pending::new(100);
        p.entry(&object(2), b"b", false);
        p.entry(&object(1), b"a", true);
        p.entry(&object(1), b"a", false);
        p.entry(&object(2), b"b", false);
        p.directory(&object(1));
        p.directory(&object(1));
        let batch = p.take(100);
        assert_eq!(batch, [entry(2, "b", false), Hint::Directory { directory: object(1) }, entry(1, "a", true)]);
        assert!(p.is_empty());
        assert_eq!(p.size, 0);
    }

    #[test]
    fn batches_are_bounded_and_nothing_is_lost_between_them() {
        let mut p = Pending::new(1000);
        for i in 0..100 {
            p.entry(&object(i % 7), format!("{i:03}").as_bytes(), false);
        }
        let mut all = Vec::new();
        while !p.is_empty() {
            let batch = p.take(9);
            assert!((1..=9).contains(&batch.len()));
            all.extend(batch);
        }
        assert_eq!(all.len(), 100);
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 100);
        assert_eq!(p.size, 0);
    }

    #[test]
    fn writes_wait_for_their_close_or_their_release() {
        let mut p = Pending::new(10);
        for _ in 0..100 {
            p.written(&object(1), b"closed");
            p.written(&object(1), b"open");
            p.written(&object(2), b"open");
        }
        assert!(p.is_empty() && p.has_written());
        p.entry(&object(1), b"closed", true);
        assert_eq!(p.take(10), [entry(1, "closed", true)]);
        p.entry(&object(1), b"open", false);
        // Already on its way.
        p.written(&object(1), b"open");
        p.release_written();
        assert_eq!(p.take(10), [entry(1, "open", false), entry(2, "open", false)]);
        assert!(!p.has_written());
        assert_eq!(p.size, 0);
        for i in 0..100 {
            p.written(&object(i), b"many");
        }
        assert_eq!(p.take(10), [Hint::Everything]);
    }

    #[test]
    fn beyond_the_bound_hints_become_everything_once() {
        let mut p = Pending::new(10);
        for i in 0..1000 {
            p.entry(&object(0), format!("{i}").as_bytes(), true);
            p.directory(&object((i % 200) as u8));
        }
        assert_eq!(p.take(5), [Hint::Everything]);
        assert!(p.is_empty());
        p.entry(&object(0), b"after", false);
        assert_eq!(p.take(5), [entry(0, "after", false)]);
        for i in 0..100 {
            p.directory(&object(i));
        }
        assert_eq!(p.take(5), [Hint::Everything]);
    }
}
