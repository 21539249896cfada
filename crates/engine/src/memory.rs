//! [`Kv`] in memory: for tests, and the twin of the database in the simulator.
//!
//! Owns nothing outside itself. A transaction keeps an undo log, so that beginning one costs nothing and a crash image
//! (the state of the last commit) can be made at any moment.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::kv::{Kv, KvError, Pair, Table};

/// Ordered tables in memory.
#[derive(Clone, Debug)]
pub struct MemoryKv {
    tables: Vec<BTreeMap<Vec<u8>, Vec<u8>>>,
    /// What each write of the transaction under way replaced, in order; `None` outside one.
    undo: Option<Vec<Undo>>,
}

/// Table, key, and the value that was there.
type Undo = (Table, Vec<u8>, Option<Vec<u8>>);

impl Default for MemoryKv {
    fn default() -> Self {
        Self { tables: vec![BTreeMap::new(); Table::ALL.len()], undo: None }
    }
}

impl MemoryKv {
    /// What a crash at this moment would leave: the state of the last commit.
    #[must_use]
    pub fn committed(&self) -> Self {
        let mut out = self.clone();
        out.take_back();
        out
    }

    /// Count of rows in a table.
    #[must_use]
    pub fn rows(&self, table: Table) -> usize {
        self.table(table).len()
    }

    fn table(&self, table: Table) -> &BTreeMap<Vec<u8>, Vec<u8>> {
        &self.tables[table as usize]
    }

    fn take_back(&mut self) {
        for (table, key, value) in self.undo.take().unwrap_or_default().into_iter().rev() {
            let rows = &mut self.tables[table as usize];
            match value {
                Some(value) => rows.insert(key, value),
                None => rows.remove(&key),
            };
        }
    }

    fn log(&mut self) -> Result<&mut Vec<Undo>, KvError> {
        self.undo.as_mut().ok_or_else(|| KvError::failed("write", "no transaction is under way"))
    }
}

impl Kv for MemoryKv {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        Ok(self.table(table).get(key).cloned())
    }

    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), KvError> {
        self.log()?;
        let old = self.tables[table as usize].insert(key.to_vec(), value.to_vec());
        self.log()?.push((table, key.to_vec(), old));
        Ok(())
    }

    fn delete(&mut self, table: Table, key: &[u8]) -> Result<(), KvError> {
        self.log()?;
        if let Some(old) = self.tables[table as usize].remove(key) {
            self.log()?.push((table, key.to_vec(), Some(old)));
        }
        Ok(())
    }

    fn range(&self, table: Table, from: &[u8], to: Option<&[u8]>, limit: usize) -> Result<Vec<Pair>, KvError> {
        if to.is_some_and(|to| to <= from) {
            return Ok(Vec::new());
        }
        let to = to.map_or(Bound::Unbounded, Bound::Excluded);
        let rows = self.table(table).range::<[u8], _>((Bound::Included(from), to));
        Ok(rows.take(limit).map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    fn last(&self, table: Table) -> Result<Option<Pair>, KvError> {
        Ok(self.table(table).last_key_value().map(|(key, value)| (key.clone(), value.clone())))
    }

    fn begin(&mut self) -> Result<(), KvError> {
        if self.undo.is_some() {
            return Err(KvError::failed("begin", "a transaction is already under way"));
        }
        self.undo = Some(Vec::new());
        Ok(())
    }

    fn commit(&mut self) -> Result<(), KvError> {
        self.undo.take().map(drop).ok_or_else(|| KvError::failed("commit", "no transaction is under way"))
    }

    fn rollback(&mut self) -> Result<(), KvError> {
        if self.undo.is_none() {
            return Err(KvError::failed("roll back", "no transaction is under way"));
        }
        self.take_back();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollback_and_a_crash_leave_the_last_commit() {
        let mut kv = MemoryKv::default();
        assert!(kv.put(Table::Meta, b"a", b"1").is_err());
        kv.begin().unwrap();
        kv.put(Table::Meta, b"a", b"1").unwrap();
        kv.put(Table::Meta, b"b", b"1").unwrap();
        kv.commit().unwrap();
        kv.begin().unwrap();
        kv.put(Table::Meta, b"a", b"2").unwrap();
        kv.put(Table::Meta, b"a", b"3").unwrap();
        kv.delete(Table::Meta, b"b").unwrap();
        kv.put(Table::Meta, b"c", b"1").unwrap();
        assert_eq!(kv.last(Table::Meta).unwrap(), Some((b"c".to_vec(), b"1".to_vec())));
        let crashed = kv.committed();
        kv.rollback().unwrap();
        for kv in [crashed, kv] {
            let rows = kv.range(Table::Meta, b"", None, 9).unwrap();
            assert_eq!(rows, [(b"a".to_vec(), b"1".to_vec()), (b"b".to_vec(), b"1".to_vec())]);
            assert_eq!(kv.range(Table::Meta, b"b", Some(b"a"), 9).unwrap(), []);
            assert_eq!(kv.range(Table::Meta, b"a", Some(b"b"), 9).unwrap().len(), 1);
        }
    }
}
