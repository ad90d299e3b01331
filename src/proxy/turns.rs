//! How long turns of the loop take, in processor time.

use crate::sys;
use crate::time::{MILLISECOND, Time};

/// The processor's clock costs a system call, so it is read this often at most, in nanoseconds.
const READ_EVERY: u64 = MILLISECOND;

/// Turns, counted by how long they took.
#[derive(Debug, Default)]
pub struct Turns {
    /// The longest, in nanoseconds.
    longest: u64,
    /// All together, in nanoseconds.
    sum: u64,
    /// How many took up to 0.1, 1 and 10 ms, and how many longer.
    counts: [u64; 4],
    /// The processor's clock, and when it was read.
    cpu: u64,
    read_at: Time,
}

/// How long turns took, in processor time, since the start or the last `stats reset`.
#[derive(Clone, Debug)]
pub struct TurnFigures {
    /// Up to so many nanoseconds, and how many; what is left took longer.
    pub counts: Vec<(u64, u64)>,
    /// How many there were.
    pub count: u64,
    /// All together, in nanoseconds.
    pub sum: u64,
    /// The longest, in nanoseconds.
    pub longest: u64,
}

/// Bounds of the counts, in nanoseconds.
const BOUNDS: [u64; 3] = [MILLISECOND / 10, MILLISECOND, 10 * MILLISECOND];

impl Turns {
    /// A turn begins; the turn before began at `before`.
    pub fn begin(&mut self, before: Time) {
        if before.since(self.read_at) >= READ_EVERY || self.cpu == 0 {
            self.read_at = before;
            self.cpu = sys::thread_time();
        }
    }

    /// The turn has taken so many nanoseconds. If that is long, the processor's clock tells how
    /// many of them were its own; at most [`READ_EVERY`] of turns before are counted with them.
    pub fn end(&mut self, took: u64) {
        let took = match took {
            0..READ_EVERY => took,
            _ => {
                let cpu = sys::thread_time();
                let spent = cpu - self.cpu;
                self.cpu = cpu;
                spent.min(took)
            }
        };
        self.longest = self.longest.max(took);
        self.sum += took;
        let at = BOUNDS.iter().position(|bound| took <= *bound);
        self.counts[at.unwrap_or(BOUNDS.len())] += 1;
    }

    /// The lines of `stats proxy`.
    pub fn report(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let names = [
            "turns_le_100us",
            "turns_le_1ms",
            "turns_le_10ms",
            "turns_over_10ms",
        ];
        let counts = names.into_iter().zip(self.counts);
        [("longest_turn_us", self.longest / 1000)]
            .into_iter()
            .chain(counts)
    }

    /// The same for monitors.
    pub fn figures(&self) -> TurnFigures {
        TurnFigures {
            counts: BOUNDS.into_iter().zip(self.counts).collect(),
            count: self.counts.iter().sum(),
            sum: self.sum,
            longest: self.longest,
        }
    }

    /// Counts from now on.
    pub fn reset(&mut self) {
        (self.longest, self.sum, self.counts) = (0, 0, [0; 4]);
    }
}
