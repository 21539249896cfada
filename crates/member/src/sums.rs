//! The sums by which members prove that they are equal, and the comparison of them (design, section 14).
//!
//! Owns what a comparison has found so far. One walk through the records gives the sums of all buckets; where some differ, one
//! more gives what these hold.

use std::collections::BTreeMap;

use anabranch_engine::kv::Kv;
use anabranch_model::{Hash, Record, Uid};
use anabranch_net::message::{Message, Sum};
use anabranch_volume::fs::Fs;

use crate::nodes;
use crate::replica::{LinkId, Partner, Replica, Result};

/// Rows kept in memory of one walk, about 5 MB.
const ROWS_MAX: usize = 1 << 16;

/// A live record that is held: its UID, and the hash over the versions of its facets.
type Row = (Uid, Hash);

/// What the buckets from one on hold, as of one walk.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    /// The first bucket that is known, and the one behind the last.
    known: std::ops::Range<u32>,
    count: usize,
    by_bucket: BTreeMap<u16, Vec<Row>>,
}

impl Rows {
    fn from(bucket: u16) -> Self {
        Self { known: u32::from(bucket)..1 << 16, ..Self::default() }
    }

    /// One row of a walk. Of too many the last buckets are dropped, all but the first one.
    fn add(&mut self, bucket: u16, row: Row) {
        if !self.known.contains(&u32::from(bucket)) {
            return;
        }
        self.by_bucket.entry(bucket).or_default().push(row);
        self.count += 1;
        while self.count > ROWS_MAX && self.by_bucket.len() > 1 {
            if let Some((dropped, rows)) = self.by_bucket.pop_last() {
                self.count -= rows.len();
                self.known.end = u32::from(dropped);
            }
        }
    }

    /// `None`: not known, ask the records.
    fn get(&self, bucket: u16) -> Option<Vec<Row>> {
        let rows = || self.by_bucket.get(&bucket).cloned().unwrap_or_default();
        self.known.contains(&u32::from(bucket)).then(rows)
    }
}

impl<F: Fs + Sync, K: Kv> Replica<F, K>
where
    F::Dir: Send + Sync,
    F::File: Send,
{
    /// The sums over live held records, by bucket of UID (design, section 14).
    fn sums(&self) -> Result<BTreeMap<u16, Hash>> {
        let mut sums: BTreeMap<u16, Hash> = BTreeMap::new();
        self.each_live(&mut |record| {
            let (bucket, hash) = bucket_and_hash(record);
            add(sums.entry(bucket).or_default(), &hash);
            Ok(())
        })?;
        Ok(sums)
    }

    fn each_live(&self, each: &mut dyn FnMut(&Record) -> Result<()>) -> Result<()> {
        let mut after = None;
        loop {
            let page = self.records.records(after, 1024)?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.uid);
            for record in &page {
                let held = match nodes::of(self.records.kv(), record.uid)? {
                    Some(node) => match (&record.content, &node.content) {
                        (Some(facet), Some(disk)) => facet.value == disk.value,
                        (None, _) => true,
                        _ => false,
                    },
                    None => self.records.shown_as(record.uid)?.is_some_and(|u| u != record.uid),
                };
                if held && self.records.live(record.uid)? {
                    each(record)?;
                }
            }
        }
    }

    pub(crate) fn serve_sums(&mut self, id: LinkId, request: u64) -> Result<()> {
        let outstanding = self.outstanding(1 << 20)? as u64;
        let sums = self.sums()?.into_iter().map(|(bucket, sum)| Sum { bucket, sum }).collect();
        self.rows = Rows::default();
        self.send(id, Message::Sums { request, outstanding, sums });
        Ok(())
    }

    pub(crate) fn serve_bucket(&mut self, id: LinkId, request: u64, bucket: u16) -> Result<()> {
        let rows = self.bucket(bucket)?;
        self.send(id, Message::Bucket { request, rows });
        Ok(())
    }

    /// UIDs and hashes of one bucket. Buckets are asked for in ascending order, so one walk through all records answers for
    /// as many of those that follow as memory allows.
    fn bucket(&mut self, bucket: u16) -> Result<Vec<Row>> {
        if let Some(rows) = self.rows.get(bucket) {
            return Ok(rows);
        }
        let mut rows = Rows::from(bucket);
        self.each_live(&mut |record| {
            let (bucket, hash) = bucket_and_hash(record);
            rows.add(bucket, (record.uid, hash));
            Ok(())
        })?;
        self.rows = rows;
        Ok(self.rows.get(bucket).unwrap_or_default())
    }

    /// Begins a comparison with every upstream partner; the answer is taken with [`Self::verify_outcome`].
    ///
    /// # Errors
    /// [`crate::Stop::Database`].
    pub fn begin_verify(&mut self) -> Result<()> {
        let links: Vec<LinkId> = self
            .links
            .iter()
            .filter(|(_, l)| l.partner == Partner::Upstream && l.peer.is_some())
            .map(|(id, _)| *id)
            .collect();
        self.verifying.clear();
        for id in links {
            let Some(name) = self.links.get(&id).and_then(|l| l.peer.as_ref()).map(|(n, _)| n.clone()) else {
                continue;
            };
            let comparison = Comparison { partner: name, ..Comparison::default() };
            self.verifying.insert(id, comparison);
            self.send(id, Message::AskSums { request: 0 });
        }
        Ok(())
    }

    /// What the comparison found, once every partner asked has answered; `None`: not yet.
    #[must_use]
    pub fn verify_outcome(&self) -> Option<Vec<Comparison>> {
        // A partner whose link is gone meanwhile stays incomplete: it proves nothing.
        let open = self.verifying.iter().filter(|(id, _)| self.links.contains_key(id));
        open.into_iter().all(|(_, c)| c.complete).then(|| self.verifying.values().cloned().collect())
    }

    pub(crate) fn take_sums(&mut self, id: LinkId, _request: u64, outstanding: u64, theirs: Vec<Sum>) -> Result<()> {
        if !self.verifying.contains_key(&id) {
            return Ok(());
        }
        let mut own = self.sums()?;
        self.rows = Rows::default();
        let mut differ: Vec<u16> = Vec::new();
        for sum in theirs {
            if own.remove(&sum.bucket) != Some(sum.sum) {
                differ.push(sum.bucket);
            }
        }
        differ.extend(own.into_keys());
        differ.sort_unstable();
        let ask = differ.first().copied();
        if let Some(comparison) = self.verifying.get_mut(&id) {
            comparison.outstanding = outstanding;
            comparison.at = self.now.0;
            comparison.buckets = differ;
            comparison.complete = ask.is_none();
        }
        if let Some(bucket) = ask {
            self.send(id, Message::AskBucket { request: u64::from(bucket), bucket });
        }
        Ok(())
    }

    pub(crate) fn take_bucket(&mut self, id: LinkId, request: u64, theirs: Vec<(Uid, Hash)>) -> Result<()> {
        let Ok(bucket) = u16::try_from(request) else { return Ok(()) };
        let mut own: BTreeMap<_, _> = self.bucket(bucket)?.into_iter().collect();
        let mut paths = Vec::new();
        for (uid, hash) in theirs {
            if own.remove(&uid) != Some(hash) {
                paths.push(uid);
            }
        }
        paths.extend(own.into_keys());
        let mut names = Vec::new();
        for uid in paths {
            names.push(self.record_path(uid)?);
        }
        let next = match self.verifying.get_mut(&id) {
            Some(comparison) => {
                comparison.paths.extend(names);
                comparison.buckets.retain(|b| *b != bucket);
                let full = comparison.paths.len() >= 1000;
                let next = comparison.buckets.first().copied().filter(|_| !full);
                comparison.complete = next.is_none();
                next
            }
            None => None,
        };
        if let Some(bucket) = next {
            self.send(id, Message::AskBucket { request: u64::from(bucket), bucket });
        }
        Ok(())
    }
}

/// What one comparison of sums found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Comparison {
    /// The partner.
    pub partner: String,
    /// Items outstanding at the partner.
    pub outstanding: u64,
    /// When its sums came, microseconds since 1970.
    pub at: u64,
    /// Paths that differ, at most about 1,000.
    pub paths: Vec<String>,
    /// All was compared.
    pub complete: bool,
    /// Buckets still to be looked into.
    pub buckets: Vec<u16>,
}

/// The bucket of a record and the hash over UID and the versions of its facets (design, section 14).
pub(crate) fn bucket_and_hash(record: &Record) -> (u16, Hash) {
    let uid = blake3::hash(&nodes::uid_key(record.uid));
    let bucket = u16::from_be_bytes([uid.as_bytes()[0], uid.as_bytes()[1]]);
    let mut hasher = blake3::Hasher::new();
    hasher.update(&nodes::uid_key(record.uid));
    hasher.update(&nodes::uid_key(Uid(record.placement.written.version)));
    for version in
        [record.content.as_ref().map(|f| f.written.version), record.attributes.as_ref().map(|f| f.written.version)]
    {
        hasher.update(&[u8::from(version.is_some())]);
        if let Some(version) = version {
            hasher.update(&nodes::uid_key(Uid(version)));
        }
    }
    (bucket, *hasher.finalize().as_bytes())
}

/// Adds a 256-bit number, modulo 2^256: the order of records does not matter, and one can be taken out again.
pub(crate) fn add(sum: &mut Hash, hash: &Hash) {
    let mut carry = 0u16;
    for (s, h) in sum.iter_mut().zip(hash) {
        let total = u16::from(*s) + u16::from(*h) + carry;
        *s = (total & 0xff) as u8;
        carry = total >> 8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_walk_knows_as_many_buckets_as_memory_allows_and_never_a_part_of_one() {
        let mut rows = Rows::from(3);
        for round in 0..3 {
            for bucket in 0..u16::MAX {
                rows.add(bucket, (Uid::ROOT, [round; 32]));
            }
        }
        assert!(rows.count <= ROWS_MAX && rows.count + 3 > ROWS_MAX, "{}", rows.count);
        assert_eq!(rows.get(2), None, "before the first one");
        let end = u16::try_from(rows.known.end).unwrap();
        assert_eq!(rows.get(end), None, "behind the last one");
        for bucket in 3..end {
            assert_eq!(rows.get(bucket).unwrap().len(), 3, "bucket {bucket}");
        }
        let mut one = Rows::from(7);
        (0..ROWS_MAX + 9).for_each(|_| one.add(7, (Uid::ROOT, [0; 32])));
        assert_eq!(one.get(7).unwrap().len(), ROWS_MAX + 9, "the one that was asked for is never dropped");
    }
}
