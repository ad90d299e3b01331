//! Random numbers that can be replayed: SplitMix64 (Steele, Lea, Flood 2014).

use std::ops::Range;

/// A stream of numbers, decided by its seed.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ 0x9e37_79b9_7f4a_7c15)
    }

    /// 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to `n` - 1.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    /// An index of something that has `n` elements.
    pub fn index(&mut self, n: usize) -> usize {
        self.below(n as u64) as usize
    }

    /// From `from` to `to` - 1.
    pub fn range(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to.saturating_sub(from))
    }

    /// True in so many of 1000 cases.
    pub fn often(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of them.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.index(of.len())]
    }

    /// Cuts `len` bytes into pieces: whole, in a few, or into single bytes.
    pub fn cuts(&mut self, len: usize) -> Vec<Range<usize>> {
        let longest = match self.below(4) {
            0 => len,
            1 if len < 400 => 1,
            2 => 1 + len / 3,
            _ => 70_000,
        };
        let (mut at, mut all) = (0, Vec::new());
        while at < len {
            let n = (1 + self.index(longest)).min(len - at);
            all.push(at..at + n);
            at += n;
        }
        all
    }
}
