//! Rows read or written a short while ago, in memory beside the database.
//!
//! SQLite has the pages in its own cache, and yet a question costs it microseconds where the answer here costs a tenth of
//! one; and within a batch the same few rows (a record, its node, its directory's) are asked for many times. What is here
//! is what the transaction under way would read: a put or a delete corrects it, a rollback throws all of it away. That a
//! row is absent is remembered as well.
//!
//! Bounded by bytes: rows live in two generations. When the young one has half of the room, it becomes the old one and
//! the old one is forgotten; a row of the old one that is asked for is young again.

use std::collections::HashMap;

use anabranch_engine::kv::Table;
use foldhash::quality::RandomState;

/// What a row costs beside its bytes: two boxes, and its place in the map.
const ROW_BYTES: usize = 80;

type Rows = HashMap<Box<[u8]>, Option<Box<[u8]>>, RandomState>;

/// See the module.
#[derive(Debug)]
pub(crate) struct Cache {
    young: Vec<Rows>,
    old: Vec<Rows>,
    /// Was a row of this table ever asked for? What nobody asks for is not here, so nothing of it can be out of date.
    asked: Vec<bool>,
    /// Of the young generation.
    bytes: usize,
    max: usize,
}

impl Cache {
    /// Holds about `max` bytes.
    pub(crate) fn new(max: usize) -> Self {
        let none = || vec![Rows::default(); Table::ALL.len()];
        Self { young: none(), old: none(), asked: vec![false; Table::ALL.len()], bytes: 0, max }
    }

    /// The value of a row, or that there is none; nothing where that is not known here.
    pub(crate) fn get(&mut self, table: Table, key: &[u8]) -> Option<Option<Vec<u8>>> {
        self.asked[table as usize] = true;
        if let Some(row) = self.young[table as usize].get(key) {
            return Some(row.as_deref().map(<[u8]>::to_vec));
        }
        let (key, row) = self.old[table as usize].remove_entry(key)?;
        let value = row.as_deref().map(<[u8]>::to_vec);
        self.insert(table, key, row);
        Some(value)
    }

    /// A row was written. Kept only where rows of that table are asked for: others would only push those out.
    pub(crate) fn wrote(&mut self, table: Table, key: Box<[u8]>, value: Option<Box<[u8]>>) {
        if self.asked[table as usize] {
            self.put_owned(table, key, value);
        }
    }

    /// A row was read, or found to be absent.
    pub(crate) fn put_owned(&mut self, table: Table, key: Box<[u8]>, value: Option<Box<[u8]>>) {
        match self.young[table as usize].get_mut(&key) {
            Some(row) => *row = value,
            None => {
                self.old[table as usize].remove(&key);
                self.insert(table, key, value);
            }
        }
    }

    #[cfg(test)]
    fn put(&mut self, table: Table, key: &[u8], value: Option<&[u8]>) {
        self.put_owned(table, key.into(), value.map(Into::into));
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.young.iter_mut().chain(&mut self.old).for_each(Rows::clear);
        self.bytes = 0;
    }

    fn insert(&mut self, table: Table, key: Box<[u8]>, row: Option<Box<[u8]>>) {
        self.bytes += ROW_BYTES + key.len() + row.as_ref().map_or(0, |row| row.len());
        if self.bytes > self.max / 2 {
            std::mem::swap(&mut self.young, &mut self.old);
            self.young.iter_mut().for_each(Rows::clear);
            self.bytes = 0;
        }
        self.young[table as usize].insert(key, row);
    }

    #[cfg(test)]
    fn rows(&self) -> usize {
        self.young.iter().chain(&self.old).map(Rows::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_kept_while_they_are_used_and_the_rest_is_bounded() {
        let mut cache = Cache::new(100_000);
        cache.put(Table::Meta, b"used", Some(b"1"));
        for row in 0..100_000u32 {
            cache.put(Table::Records, &row.to_be_bytes(), Some(&[0; 100]));
            assert_eq!(cache.get(Table::Meta, b"used"), Some(Some(b"1".to_vec())));
        }
        assert!(cache.rows() < 1_000, "{}", cache.rows());
        assert_eq!(cache.get(Table::Records, &7u32.to_be_bytes()), None, "not known any more");
        assert_eq!(cache.get(Table::Meta, b"7"), None, "tables are apart");
        cache.clear();
        assert_eq!(cache.rows(), 0);
    }

    #[test]
    fn the_last_thing_said_counts() {
        let mut cache = Cache::new(1_000);
        cache.put(Table::Todo, b"k", None);
        assert_eq!(cache.get(Table::Todo, b"k"), Some(None));
        cache.put(Table::Todo, b"k", Some(b""));
        assert_eq!(cache.get(Table::Todo, b"k"), Some(Some(Vec::new())));
        // Into the old generation, and corrected there.
        for row in 0..5u8 {
            cache.put(Table::Nodes, &[row], Some(&[row; 8]));
        }
        cache.put(Table::Todo, b"k", Some(b"new"));
        assert_eq!(cache.get(Table::Todo, b"k"), Some(Some(b"new".to_vec())));
    }
}
