//! The database of a simulated machine: in memory, on the same power as its disk.
//!
//! A commit that returns is durable, as the real store promises. The mutant `CommitDurable` breaks that promise: then a
//! power cut takes back the last commits, as a database without `fsync` would lose them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anabranch_engine::MemoryKv;
use anabranch_engine::kv::{Kv, KvError, Pair, Table};
use anabranch_volume::simulated::Power;

/// A handle to a database. A commit is one step of the machine's [`Power`]: it happens whole, or not at all.
#[derive(Clone)]
pub(crate) struct SimKv {
    inner: Arc<Mutex<MemoryKv>>,
    /// Only with commits that are not durable: how many there were, and what the last one to reach the disk left.
    lazy: Option<Arc<Mutex<(u64, MemoryKv)>>>,
    power: Power,
}

/// Commits that a database without `fsync` has on their way at most.
const LAZY_COMMITS: u64 = 8;

impl SimKv {
    /// An empty database.
    pub(crate) fn new(power: Power) -> Self {
        Self::with(MemoryKv::default(), power)
    }

    fn with(kv: MemoryKv, power: Power) -> Self {
        let lazy = crate::mutants::commits_are_lazy().then(|| Arc::new(Mutex::new((0, kv.clone()))));
        Self { inner: Arc::new(Mutex::new(kv)), lazy, power }
    }

    fn lock(&self) -> MutexGuard<'_, MemoryKv> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was committed: what the death of the process leaves.
    pub(crate) fn image(&self) -> MemoryKv {
        self.lock().committed()
    }

    /// What is durable: what a power cut leaves.
    pub(crate) fn durable(&self) -> MemoryKv {
        match &self.lazy {
            None => self.image(),
            Some(lazy) => lazy.lock().unwrap_or_else(PoisonError::into_inner).1.clone(),
        }
    }

    /// A database with that content, of its own.
    pub(crate) fn from_image(image: &MemoryKv, power: Power) -> Self {
        Self::with(image.clone(), power)
    }

    fn off(doing: &'static str) -> KvError {
        KvError::failed(doing, "the power is off")
    }
}

impl Kv for SimKv {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        self.lock().get(table, key)
    }

    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), KvError> {
        self.lock().put(table, key, value)
    }

    fn delete(&mut self, table: Table, key: &[u8]) -> Result<(), KvError> {
        self.lock().delete(table, key)
    }

    fn range(&self, table: Table, from: &[u8], to: Option<&[u8]>, limit: usize) -> Result<Vec<Pair>, KvError> {
        self.lock().range(table, from, to, limit)
    }

    fn last(&self, table: Table) -> Result<Option<Pair>, KvError> {
        self.lock().last(table)
    }

    fn begin(&mut self) -> Result<(), KvError> {
        if self.power.is_on() { self.lock().begin() } else { Err(Self::off("begin")) }
    }

    fn commit(&mut self) -> Result<(), KvError> {
        if self.power.step() {
            let done = self.lock().commit();
            if let Some(lazy) = &self.lazy {
                let mut lazy = lazy.lock().unwrap_or_else(PoisonError::into_inner);
                lazy.0 += 1;
                if lazy.0.is_multiple_of(LAZY_COMMITS) {
                    lazy.1 = self.image();
                }
            }
            return done;
        }
        self.lock().rollback()?;
        Err(Self::off("commit"))
    }

    fn rollback(&mut self) -> Result<(), KvError> {
        self.lock().rollback()
    }
}
