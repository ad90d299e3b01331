//! How fast keys are copied: so many bytes a second over all, and less while servers answer later than
//! before. Time and events in, decisions out.

use crate::time::{MILLISECOND, SECOND, Time};

/// What was not used is kept for so long, in nanoseconds: a turn of the loop may come late.
const BURST: u64 = 5 * MILLISECOND;

/// Keys are begun together each time after so many nanoseconds: each step of theirs is one call then.
const BATCH: u64 = MILLISECOND;

/// The rate is never less than one part in so many of what was configured.
const LEAST: u64 = 16;

/// Servers are slower than before if their p99 is over so many halves of what it was.
const HALVES: u64 = 3;

/// The account of bytes.
#[derive(Debug)]
pub struct Pace {
    /// As configured, in bytes a second; 0: nothing is copied.
    limit: u64,
    /// In force, in bytes a second.
    rate: u64,
    /// When what was spent is paid for.
    paid_at: Time,
    /// When the next keys may be begun.
    batch_at: Time,
}

impl Pace {
    /// So many bytes a second; 0: nothing.
    pub fn new(limit: u64) -> Pace {
        Pace {
            limit,
            rate: limit,
            paid_at: Time(0),
            batch_at: Time(0),
        }
    }

    /// Another limit; what was spent stays spent.
    pub fn set_limit(&mut self, limit: u64) {
        (self.limit, self.rate) = (limit, limit);
    }

    /// True if anything may be copied at all.
    pub fn is_on(&self) -> bool {
        self.limit > 0
    }

    /// When the next keys may be begun.
    pub fn ready_at(&self) -> Time {
        self.paid_at.max(self.batch_at)
    }

    /// They are begun.
    pub fn begin_batch(&mut self, now: Time) {
        self.batch_at = now.plus(BATCH);
    }

    /// True if one more may be begun with them.
    pub fn has_more(&self, now: Time) -> bool {
        self.paid_at <= now
    }

    /// So many bytes are on their way.
    pub fn spend(&mut self, bytes: usize, now: Time) {
        let takes = (bytes as u64).saturating_mul(SECOND) / self.rate.max(1);
        let from = self.paid_at.max(Time(now.0.saturating_sub(BURST)));
        self.paid_at = from.plus(takes);
    }

    /// The p99 of servers in the last second, and what it was before, in microseconds; 0: not known.
    pub fn observe(&mut self, pairs: &[(u64, u64)]) {
        let slower = |(now, before): &(u64, u64)| *before > 0 && now * 2 > before * HALVES;
        self.rate = match pairs.iter().any(slower) {
            true => (self.rate / 2).max(self.limit / LEAST),
            false => self.rate.saturating_mul(2).min(self.limit),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that go in so many seconds, in steps of a millisecond.
    fn run(pace: &mut Pace, from: u64, seconds: u64, piece: usize) -> u64 {
        let mut bytes = 0;
        for ms in 0..seconds * 1000 {
            let now = Time(from * SECOND + ms * MILLISECOND);
            if pace.ready_at() <= now {
                pace.begin_batch(now);
            }
            while pace.has_more(now) {
                pace.spend(piece, now);
                bytes += piece as u64;
            }
        }
        bytes
    }

    #[test]
    fn so_many_bytes_a_second_whatever_the_size_of_a_piece() {
        for piece in [64, 5_000, 300_000] {
            let mut pace = Pace::new(1_000_000);
            let bytes = run(&mut pace, 1, 10, piece);
            assert!((9_900_000..10_400_000).contains(&bytes), "{bytes}");
        }
    }

    #[test]
    fn what_was_not_used_is_not_saved_up() {
        let mut pace = Pace::new(1_000_000);
        run(&mut pace, 1, 1, 1000);
        let bytes = run(&mut pace, 100, 1, 1000);
        assert!(bytes < 1_010_000, "{bytes}");
    }

    #[test]
    fn half_while_a_server_is_slower_and_all_when_it_is_not() {
        let mut pace = Pace::new(6400);
        for (pairs, rate) in [
            (&[(150, 100), (80, 100)][..], 6400),
            (&[(151, 100), (80, 100)], 3200),
            (&[(80, 100), (200, 100)], 1600),
            (&[(9000, 0)], 3200),
            (&[], 6400),
            (&[(100, 100)], 6400),
        ] {
            pace.observe(pairs);
            assert_eq!(pace.rate, rate, "{pairs:?}");
        }
        for _ in 0..20 {
            pace.observe(&[(1000, 1)]);
        }
        assert_eq!(pace.rate, 400);
    }
}
