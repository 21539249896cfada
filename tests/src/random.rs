//! Repeatable choices: a small generator from the run's seed (`E2E_SEED`), the same for a test in every run of one seed.

use std::ops::Range;

/// SplitMix64: enough to vary schedules and contents.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator for one purpose: the run's seed and the purpose's name decide it.
    #[must_use]
    pub fn for_test(purpose: &str) -> Self {
        let seed = crate::setting("E2E_SEED", 1);
        eprintln!("seed {seed} for {purpose} (repeat with E2E_SEED={seed})");
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes()).update(purpose.as_bytes());
        let mut word = [0; 8];
        word.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        Self(u64::from_le_bytes(word))
    }

    /// The next 64 bits.
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number of the range; its lower end where the range is empty.
    pub fn within(&mut self, range: Range<u64>) -> u64 {
        range.start + self.word() % range.end.saturating_sub(range.start).max(1)
    }

    /// True in so many of a hundred.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.within(0..100) < percent
    }

    /// One of them; `None` where there is none.
    pub fn choose<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        let place = self.within(0..from.len() as u64);
        from.get(usize::try_from(place).unwrap_or(0))
    }

    /// Bytes that do not compress.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend(self.word().to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }
}
