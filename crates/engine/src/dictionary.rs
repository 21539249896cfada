//! The database's own dictionary: replica ids and attribute values, named by small numbers.
//!
//! Owns the tables Replicas, Attributes and AttributesByHash. All replica ids are in memory; of attribute values a bounded
//! number. Numbers are never taken back, except by the rollback of the transaction that gave them.

use std::cell::RefCell;
use std::collections::BTreeMap;

use anabranch_model::codec::{
    Intern, Lookup, Reader, Writer, decode_attributes, decode_record, encode_attributes, encode_record,
};
use anabranch_model::{Attributes, Knowledge, Record, ReplicaId, Sequence, Uid, Version};

use crate::keys::{UID_BYTES, UidKey};
use crate::kv::{Kv, KvError, Table};

/// The most attribute values kept in memory.
const ATTRIBUTES_CACHED_MAX: usize = 4096;

/// What is in memory of the dictionary.
#[derive(Debug, Default)]
pub(crate) struct Numbers {
    replicas: Vec<ReplicaId>,
    by_replica: BTreeMap<ReplicaId, u32>,
    attributes: RefCell<Cache>,
}

#[derive(Debug, Default)]
struct Cache {
    by_number: BTreeMap<u32, Attributes>,
    by_value: BTreeMap<Attributes, u32>,
}

impl Cache {
    fn keep(&mut self, number: u32, value: &Attributes) {
        if self.by_number.len() >= ATTRIBUTES_CACHED_MAX {
            *self = Self::default();
        }
        self.by_number.insert(number, value.clone());
        self.by_value.insert(value.clone(), number);
    }
}

/// Numbers what is written. An error of the database is kept until the end: the codec knows none.
struct Writing<'a, K> {
    kv: &'a mut K,
    numbers: &'a mut Numbers,
    failed: Option<KvError>,
}

/// Gives back what numbers stand for.
struct Reading<'a, K> {
    kv: &'a K,
    numbers: &'a Numbers,
    failed: RefCell<Option<KvError>>,
}

impl<K: Kv> Writing<'_, K> {
    fn number_attributes(&mut self, value: &Attributes) -> Result<u32, KvError> {
        let bytes = encode_attributes(value);
        let hash = blake3::hash(&bytes);
        let found = self.kv.get(Table::AttributesByHash, hash.as_bytes())?;
        let number = if let Some(found) = found {
            u32::from_be_bytes(found.as_slice().try_into().map_err(|e| KvError::damaged("number attributes", e))?)
        } else {
            let next = self.kv.last(Table::Attributes)?.map_or(Ok(0), |(key, _)| number(&key).map(|n| n + 1))?;
            self.kv.put(Table::Attributes, &next.to_be_bytes(), &bytes)?;
            self.kv.put(Table::AttributesByHash, hash.as_bytes(), &next.to_be_bytes())?;
            next
        };
        self.numbers.attributes.get_mut().keep(number, value);
        Ok(number)
    }
}

impl<K: Kv> Intern for Writing<'_, K> {
    fn replica(&mut self, replica: ReplicaId) -> u32 {
        self.numbers.intern(self.kv, replica).unwrap_or_else(|error| {
            self.failed = Some(error);
            0
        })
    }

    fn attributes(&mut self, value: &Attributes) -> u32 {
        if let Some(&number) = self.numbers.attributes.get_mut().by_value.get(value) {
            return number;
        }
        self.number_attributes(value).unwrap_or_else(|error| {
            self.failed = Some(error);
            0
        })
    }
}

impl<K: Kv> Lookup for Reading<'_, K> {
    fn replica(&self, number: u32) -> Option<ReplicaId> {
        self.numbers.replicas.get(number as usize).copied()
    }

    fn attributes(&self, number: u32) -> Option<Attributes> {
        let mut cache = self.numbers.attributes.borrow_mut();
        if let Some(value) = cache.by_number.get(&number) {
            return Some(value.clone());
        }
        let bytes = match self.kv.get(Table::Attributes, &number.to_be_bytes()) {
            Ok(bytes) => bytes?,
            Err(error) => {
                *self.failed.borrow_mut() = Some(error);
                return None;
            }
        };
        let value = decode_attributes(&bytes).ok()?;
        cache.keep(number, &value);
        Some(value)
    }
}

fn number(key: &[u8]) -> Result<u32, KvError> {
    key.try_into().map(u32::from_be_bytes).map_err(|e| KvError::damaged("read a number", e))
}

impl Numbers {
    /// Reads the replica ids; attribute values come when they are needed.
    pub(crate) fn load(kv: &impl Kv) -> Result<Self, KvError> {
        let mut out = Self::default();
        loop {
            let from = u32::try_from(out.replicas.len()).map_err(|e| KvError::damaged("read replica ids", e))?;
            let rows = kv.range(Table::Replicas, &from.to_be_bytes(), None, 256)?;
            if rows.is_empty() {
                return Ok(out);
            }
            for (key, value) in rows {
                let id = ReplicaId(value.as_slice().try_into().map_err(|e| KvError::damaged("read a replica id", e))?);
                if number(&key)? as usize != out.replicas.len() {
                    return Err(KvError::damaged("read replica ids", "a number is missing"));
                }
                out.by_replica.insert(id, number(&key)?);
                out.replicas.push(id);
            }
        }
    }

    /// The number of a replica id, given now if it has none.
    pub(crate) fn intern(&mut self, kv: &mut impl Kv, replica: ReplicaId) -> Result<u32, KvError> {
        if let Some(&number) = self.by_replica.get(&replica) {
            return Ok(number);
        }
        let next = u32::try_from(self.replicas.len()).map_err(|e| KvError::failed("number a replica id", e))?;
        kv.put(Table::Replicas, &next.to_be_bytes(), &replica.0)?;
        self.replicas.push(replica);
        self.by_replica.insert(replica, next);
        Ok(next)
    }

    /// The number of a replica id, if it has one.
    pub(crate) fn find(&self, replica: ReplicaId) -> Option<u32> {
        self.by_replica.get(&replica).copied()
    }

    /// The key of a UID; `None` where its replica id has no number, so nothing here names it.
    pub(crate) fn find_key(&self, uid: Uid) -> Option<UidKey> {
        self.find(uid.0.replica).map(|number| join_key(number, uid))
    }

    /// The key of a UID.
    pub(crate) fn key(&mut self, kv: &mut impl Kv, uid: Uid) -> Result<UidKey, KvError> {
        Ok(join_key(self.intern(kv, uid.0.replica)?, uid))
    }

    /// The UID of a key.
    pub(crate) fn uid(&self, key: &[u8]) -> Result<Uid, KvError> {
        let parts = || {
            let (number, sequence) = key.split_first_chunk::<4>()?;
            let replica = *self.replicas.get(u32::from_be_bytes(*number) as usize)?;
            Some(Uid(Version { replica, sequence: Sequence(u64::from_be_bytes(sequence.try_into().ok()?)) }))
        };
        parts().ok_or_else(|| KvError::damaged("read the key of a UID", format!("{key:?}")))
    }

    /// Encodes a record with the database's numbers, after `head`.
    pub(crate) fn encode(&mut self, kv: &mut impl Kv, head: u64, record: &Record) -> Result<Vec<u8>, KvError> {
        let mut writing = Writing { kv, numbers: self, failed: None };
        let body = encode_record(record, &mut writing);
        if let Some(error) = writing.failed {
            return Err(error);
        }
        let mut out = Vec::with_capacity(8 + body.len());
        out.extend_from_slice(&head.to_be_bytes());
        out.extend_from_slice(&body);
        Ok(out)
    }

    /// Decodes what [`Self::encode`] wrote.
    pub(crate) fn decode(&self, kv: &impl Kv, value: &[u8]) -> Result<(u64, Record), KvError> {
        let (head, body) = split_head(value)?;
        let reading = Reading { kv, numbers: self, failed: RefCell::new(None) };
        let record = decode_record(body, &reading);
        match (reading.failed.into_inner(), record) {
            (Some(error), _) => Err(error),
            (None, record) => Ok((head, record.map_err(|e| KvError::damaged("read a record", e))?)),
        }
    }

    /// Writes a causal map.
    pub(crate) fn write_knowledge(
        &mut self,
        kv: &mut impl Kv,
        out: &mut Writer,
        map: &Knowledge,
    ) -> Result<(), KvError> {
        out.number(map.len() as u64);
        for (replica, sequence) in map.iter() {
            out.number(self.intern(kv, replica)?.into());
            out.number(sequence.0);
        }
        Ok(())
    }

    /// Reads a causal map, which must fill `bytes`.
    pub(crate) fn read_knowledge(&self, bytes: &[u8]) -> Result<Knowledge, KvError> {
        let mut input = Reader(bytes);
        let mut read = || {
            let count = input.number().ok()?;
            let mut out = Vec::new();
            for _ in 0..count {
                let replica = *self.replicas.get(input.small().ok()? as usize)?;
                out.push((replica, Sequence(input.number().ok()?)));
            }
            input.end().ok().map(|()| out.into_iter().collect())
        };
        read().ok_or_else(|| KvError::damaged("read a causal map", "it is cut or names an unknown replica"))
    }
}

/// The number that a value begins with, and the rest.
pub(crate) fn split_head(value: &[u8]) -> Result<(u64, &[u8]), KvError> {
    let (head, body) =
        value.split_first_chunk::<8>().ok_or_else(|| KvError::damaged("read a row", "it is too short"))?;
    Ok((u64::from_be_bytes(*head), body))
}

fn join_key(number: u32, uid: Uid) -> UidKey {
    let mut key = [0; UID_BYTES];
    let (head, tail) = key.split_at_mut(4);
    head.copy_from_slice(&number.to_be_bytes());
    tail.copy_from_slice(&uid.0.sequence.0.to_be_bytes());
    key
}
