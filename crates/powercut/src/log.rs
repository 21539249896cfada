//! The log of a disk, and what a power cut leaves of it. Pure but for the file that holds the blocks.
//!
//! Blocks lie in an unlinked temporary file, so that memory grows by 16 bytes for each block written, and no more.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Bytes of one block: what a power cut keeps or loses as a whole.
pub const BLOCK_BYTES: usize = 4096;

/// Where a block's bytes are; 0 is a block of zeros, which takes no room.
type Address = u64;
/// The blocks that are not zeros, by number.
type Blocks = BTreeMap<u32, Address>;

/// What is left of the writes that no flush has covered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LastEpoch {
    /// Nothing: all of it was still in the disk's cache.
    None,
    /// A part, chosen by this seed: of the first so many blocks written, every other one, at random.
    Part(u64),
}

/// A power cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cut {
    /// How many barriers had passed.
    pub barrier: usize,
    /// What is left of the writes after the last of them.
    pub last: LastEpoch,
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "power cut after barrier {}", self.barrier)?;
        match self.last {
            LastEpoch::None => write!(f, ", nothing later is left"),
            LastEpoch::Part(seed) => write!(f, ", a part of what followed is left (seed {seed})"),
        }
    }
}

/// A file of blocks that only grows, perhaps above another one: lower addresses are read there.
#[derive(Debug)]
pub(crate) struct Store {
    file: File,
    start: Address,
    lower: Option<Arc<Store>>,
}

impl Store {
    fn new(start: Address, lower: Option<Arc<Self>>) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self { file: tempfile::tempfile()?, start, lower }))
    }

    fn place(&self, address: Address) -> u64 {
        (address - self.start) * BLOCK_BYTES as u64
    }

    /// Fills whole blocks from these addresses, consecutive ones in one read.
    pub(crate) fn read(&self, addresses: &[Address], out: &mut [u8]) -> io::Result<()> {
        let mut rest = out;
        for run in addresses.chunk_by(|a, b| *a != 0 && *b == a + 1 && (*b != self.start)) {
            let (now, later) = rest.split_at_mut(run.len() * BLOCK_BYTES);
            rest = later;
            match (run, &self.lower) {
                ([0, ..], _) => now.fill(0),
                ([first, ..], Some(lower)) if *first < self.start => lower.read(run, now)?,
                ([first, ..], _) => self.file.read_exact_at(now, self.place(*first))?,
                ([], _) => {}
            }
        }
        Ok(())
    }
}

/// A moment of the log.
#[derive(Clone, Debug)]
struct Mark {
    barriers: usize,
    label: String,
}

/// A disk's content, and the log of what led to it.
#[derive(Debug)]
pub(crate) struct Log {
    store: Arc<Store>,
    end: Address,
    size: u64,
    base: Arc<Blocks>,
    now: Blocks,
    writes: Vec<(u32, Address)>,
    /// How many writes each barrier covers.
    barriers: Vec<usize>,
    marks: Vec<Mark>,
    recording: bool,
    /// Up to where the last cut was worked out, and the blocks there: cuts mostly come in ascending order.
    reached: (usize, Blocks),
}

/// What a disk held at one moment: the blocks' addresses, and the file that has them.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    pub(crate) store: Arc<Store>,
    end: Address,
    pub(crate) size: u64,
    blocks: Arc<Blocks>,
}

impl Content {
    /// The blocks that are not zeros, ascending.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = (u32, Address)> + '_ {
        self.blocks.iter().map(|(&block, &address)| (block, address))
    }
}

impl Log {
    /// An empty disk; `size` is in bytes, rounded down to blocks.
    pub(crate) fn empty(size: u64) -> io::Result<Self> {
        let size = size / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
        Ok(Self::on(Store::new(1, None)?, 1, size, Arc::default()))
    }

    /// A disk that begins with this content, and leaves it as it is.
    pub(crate) fn above(content: &Content) -> io::Result<Self> {
        let store = Store::new(content.end, Some(content.store.clone()))?;
        Ok(Self::on(store, content.end, content.size, content.blocks.clone()))
    }

    fn on(store: Arc<Store>, end: Address, size: u64, base: Arc<Blocks>) -> Self {
        let (now, reached) = ((*base).clone(), (0, (*base).clone()));
        let (writes, barriers, marks) = (Vec::new(), Vec::new(), Vec::new());
        Self { store, end, size, base, now, writes, barriers, marks, recording: true, reached }
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    pub(crate) fn barriers(&self) -> usize {
        self.barriers.len()
    }

    /// The file and the addresses of the blocks that these bytes lie in; read them without holding the log.
    pub(crate) fn addresses(&self, offset: u64, bytes: usize) -> (Arc<Store>, Vec<Address>) {
        let end = (offset + bytes as u64).min(self.size).div_ceil(BLOCK_BYTES as u64);
        let numbers = (offset / BLOCK_BYTES as u64)..end;
        let address = |n: u64| u32::try_from(n).ok().and_then(|n| self.now.get(&n)).copied().unwrap_or(0);
        (self.store.clone(), numbers.map(address).collect())
    }

    /// Writes bytes, and logs the blocks that they change.
    ///
    /// # Errors
    /// Of the file that holds the blocks; [`io::ErrorKind::FileTooLarge`] beyond the disk's end.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        let block_bytes = BLOCK_BYTES as u64;
        if offset.checked_add(data.len() as u64).is_none_or(|end| end > self.size) {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let (store, addresses) = self.addresses(offset, data.len());
        let mut bytes = vec![0; addresses.len() * BLOCK_BYTES];
        let within = usize::try_from(offset % block_bytes).unwrap_or(0);
        if within != 0 || !data.len().is_multiple_of(BLOCK_BYTES) {
            // The first and last block may be written in part.
            store.read(&addresses, &mut bytes)?;
        }
        bytes[within..within + data.len()].copy_from_slice(data);
        let mut kept = Vec::with_capacity(bytes.len());
        let mut end = self.end;
        let mut changed = Vec::with_capacity(addresses.len());
        for (block, number) in bytes.chunks_exact(BLOCK_BYTES).zip(offset / block_bytes..) {
            let zero = block.iter().all(|&b| b == 0);
            let number = u32::try_from(number).map_err(|_| io::ErrorKind::FileTooLarge)?;
            changed.push((number, if zero { 0 } else { end }));
            if !zero {
                kept.extend_from_slice(block);
                end += 1;
            }
        }
        self.store.file.write_all_at(&kept, self.store.place(self.end))?;
        self.end = end;
        apply(&mut self.now, &changed);
        if self.recording {
            self.writes.extend(changed);
        }
        Ok(())
    }

    /// A flush: what was written before survives.
    pub(crate) fn barrier(&mut self) {
        if self.recording {
            self.barriers.push(self.writes.len());
        }
    }

    /// Notes a moment.
    pub(crate) fn mark(&mut self, label: String) {
        if self.recording {
            self.marks.push(Mark { barriers: self.barriers.len(), label });
        }
    }

    /// From here on the disk goes on working, but nothing is logged.
    pub(crate) fn stop(&mut self) {
        self.recording = false;
    }

    /// The marks that a cut comes after: with nothing left of its last epoch, the power may have gone at any instant
    /// until the next barrier, so all that was marked until then counts.
    pub(crate) fn marks(&self, cut: Cut) -> Vec<String> {
        self.marks.iter().filter(|m| m.barriers <= cut.barrier).map(|m| m.label.clone()).collect()
    }

    /// What the disk holds after a power cut; `None` if there is no such barrier.
    pub(crate) fn content(&mut self, cut: Cut) -> Option<Content> {
        let covered = match cut.barrier.checked_sub(1) {
            None => 0,
            Some(at) => *self.barriers.get(at)?,
        };
        let until = self.barriers.get(cut.barrier).copied().unwrap_or(self.writes.len());
        if covered < self.reached.0 {
            self.reached = (0, (*self.base).clone());
        }
        apply(&mut self.reached.1, &self.writes[self.reached.0..covered]);
        self.reached.0 = covered;
        let mut blocks = self.reached.1.clone();
        if let LastEpoch::Part(seed) = cut.last {
            let last = &self.writes[covered..until];
            let mut random = Random::seeded(seed);
            let first = random.below(last.len() + 1);
            let left: Vec<_> = last[..first].iter().filter(|_| random.below(2) == 0).copied().collect();
            apply(&mut blocks, &left);
        }
        Some(Content { store: self.store.clone(), end: self.end, size: self.size, blocks: Arc::new(blocks) })
    }
}

fn apply(blocks: &mut Blocks, writes: &[(u32, Address)]) {
    for &(number, address) in writes {
        if address == 0 {
            blocks.remove(&number);
        } else {
            blocks.insert(number, address);
        }
    }
}

/// Numbers that look random, the same ones for the same seed (xorshift*).
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn seeded(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `limit`, which is not 0.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        // The upper bits are the better ones.
        usize::try_from((self.next() >> 32) % limit as u64).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(byte: u8) -> Vec<u8> {
        vec![byte; BLOCK_BYTES]
    }

    fn read(log: &Log, offset: u64, bytes: usize) -> Vec<u8> {
        let (store, addresses) = log.addresses(offset, bytes);
        let mut out = vec![9; addresses.len() * BLOCK_BYTES];
        store.read(&addresses, &mut out).unwrap();
        out
    }

    /// The first byte of each of the first three blocks after a cut.
    fn after(log: &mut Log, barrier: usize, last: LastEpoch) -> [u8; 3] {
        let content = log.content(Cut { barrier, last }).unwrap();
        let mut out = [0; 3];
        for (number, address) in content.blocks() {
            let mut bytes = block(0);
            content.store.read(&[address], &mut bytes).unwrap();
            out[number as usize] = bytes[0];
        }
        out
    }

    fn log() -> Log {
        let mut log = Log::empty(1 << 20).unwrap();
        log.write(0, &block(1)).unwrap();
        log.barrier();
        log.mark("one".to_owned());
        log.write(4096, &[block(2), block(3)].concat()).unwrap();
        log.write(0, &block(0)).unwrap();
        log.barrier();
        log.mark("two".to_owned());
        log.write(0, &block(4)).unwrap();
        log
    }

    #[test]
    fn a_cut_keeps_what_was_flushed() {
        let mut log = log();
        for barrier in [0, 1, 2, 1, 0, 2] {
            let expected = [[0, 0, 0], [1, 0, 0], [0, 2, 3]][barrier];
            assert_eq!(after(&mut log, barrier, LastEpoch::None), expected, "{barrier}");
        }
        assert!(log.content(Cut { barrier: 3, last: LastEpoch::None }).is_none());
        assert_eq!(read(&log, 0, 3 * BLOCK_BYTES)[..], [block(4), block(2), block(3)].concat());
    }

    #[test]
    fn any_part_of_the_last_epoch_may_be_left() {
        let mut log = log();
        let mut seen: Vec<_> = (0..200).map(|seed| after(&mut log, 1, LastEpoch::Part(seed))).collect();
        seen.sort_unstable();
        seen.dedup();
        let all = [[0, 0, 0], [0, 0, 3], [0, 2, 0], [0, 2, 3], [1, 0, 0], [1, 0, 3], [1, 2, 0], [1, 2, 3]];
        assert_eq!(seen, all);
        assert_eq!(after(&mut log, 1, LastEpoch::Part(7)), after(&mut log, 1, LastEpoch::Part(7)));
    }

    #[test]
    fn marks_count_until_the_next_barrier() {
        let log = log();
        let marks = |barrier| log.marks(Cut { barrier, last: LastEpoch::None }).join(" ");
        assert_eq!([marks(0), marks(1), marks(2)], ["", "one", "one two"]);
    }

    #[test]
    fn parts_of_blocks_are_written_into_what_was_there() {
        let mut log = Log::empty(1 << 20).unwrap();
        log.write(0, &[block(1), block(2), block(3)].concat()).unwrap();
        log.write(4000, &[7; 4500]).unwrap();
        let mut expected = [block(1), block(2), block(3)].concat();
        expected[4000..8500].fill(7);
        assert_eq!(read(&log, 0, 3 * BLOCK_BYTES), expected);
        assert!(log.write((1 << 20) - 1, &[1, 2]).is_err());
        assert!(log.write(u64::MAX, &[1]).is_err());
    }

    #[test]
    fn a_disk_above_another_leaves_it_as_it_was() {
        let mut lower = log();
        let content = lower.content(Cut { barrier: 2, last: LastEpoch::None }).unwrap();
        let mut upper = Log::above(&content).unwrap();
        upper.write(4096, &block(8)).unwrap();
        upper.barrier();
        upper.write(8192, &block(9)).unwrap();
        // What the lower disk writes meanwhile is its own.
        lower.write(8192, &block(5)).unwrap();
        assert_eq!(read(&upper, 0, 3 * BLOCK_BYTES)[..], [block(0), block(8), block(9)].concat());
        assert_eq!(after(&mut upper, 0, LastEpoch::None), [0, 2, 3]);
        assert_eq!(after(&mut upper, 1, LastEpoch::None), [0, 8, 3]);
        assert_eq!(after(&mut lower, 2, LastEpoch::None), [0, 2, 3]);
        let third = Log::above(&upper.content(Cut { barrier: 1, last: LastEpoch::None }).unwrap()).unwrap();
        assert_eq!(read(&third, 0, 3 * BLOCK_BYTES)[..], [block(0), block(8), block(3)].concat());
    }

    #[test]
    fn after_a_stop_nothing_is_logged() {
        let mut log = log();
        log.stop();
        log.write(0, &block(6)).unwrap();
        log.barrier();
        log.mark("late".to_owned());
        assert_eq!(log.barriers(), 2);
        assert_eq!(read(&log, 0, BLOCK_BYTES), block(6));
        assert_eq!(log.marks(Cut { barrier: 2, last: LastEpoch::None }), ["one", "two"]);
    }
}
