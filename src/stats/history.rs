//! How a pool fared in the last ten minutes, in steps of five seconds.

use super::{CommandCounters, Latency};
use crate::time::{SECOND, Time};
use std::collections::VecDeque;

/// Length of a step, in seconds.
pub const STEP: u64 = 5;

/// Steps that are kept.
const STEPS: usize = 120;

/// What happened in one step.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Sample {
    /// Answers of servers that clients got, errors included.
    pub answers: u64,
    /// Keys found.
    pub hits: u64,
    /// Keys not found.
    pub misses: u64,
    /// Requests answered with an error because no server could be had.
    pub errors: u64,
    /// Median latency of the ten seconds before its end, in microseconds.
    pub p50: u64,
    /// The 99th percentile of the same.
    pub p99: u64,
}

/// One pool's last ten minutes.
#[derive(Debug, Default)]
pub struct History {
    /// What was counted when the last step ended.
    before: Sample,
    samples: VecDeque<Sample>,
    /// The step that is under way.
    step: u64,
}

impl History {
    /// Ends the step that was under way if another one has begun. Steps between two calls were idle: the loop slept.
    pub fn look(&mut self, counts: &CommandCounters, latency: &Latency, now: Time) {
        let step = now.0 / (STEP * SECOND);
        let ended = step - self.step;
        if ended == 0 {
            return;
        }
        self.step = step;
        let recent = latency.recent(now);
        let counted = Sample {
            answers: latency.total().count(),
            hits: counts.get_hits,
            misses: counts.get_misses,
            errors: counts.server_errors,
            p50: recent.quantile(500),
            p99: recent.quantile(990),
        };
        // The counters may have been set to 0 meanwhile.
        let less = |now: u64, before: u64| now.checked_sub(before).unwrap_or(now);
        let before = std::mem::replace(&mut self.before, counted);
        self.samples.push_back(Sample {
            answers: less(counted.answers, before.answers),
            hits: less(counted.hits, before.hits),
            misses: less(counted.misses, before.misses),
            errors: less(counted.errors, before.errors),
            ..counted
        });
        let asleep = (ended - 1).min(STEPS as u64);
        (0..asleep).for_each(|_| self.samples.push_back(Sample::default()));
        let old = self.samples.len().saturating_sub(STEPS);
        self.samples.drain(..old);
    }

    /// What happened, oldest first, and when the last step ended.
    pub fn samples(&self) -> (Vec<Sample>, Time) {
        let all = self.samples.iter().copied().collect();
        (all, Time(self.step * STEP * SECOND))
    }
}

/// The histories of all pools.
#[derive(Debug)]
pub struct Histories {
    pools: Vec<History>,
    /// When the step that is under way ends.
    ends_at: Time,
}

impl Histories {
    /// Empty ones. Unless they are `wanted` no step ever ends.
    pub fn new(wanted: bool) -> Histories {
        Histories {
            pools: Vec::new(),
            ends_at: if wanted { Time(0) } else { Time::NEVER },
        }
    }

    /// True if a step has ended, and [`Histories::look`] is to be called for each pool. The next one begins.
    pub fn has_ended_step(&mut self, now: Time) -> bool {
        if now < self.ends_at {
            return false;
        }
        self.ends_at = Time((now.0 / (STEP * SECOND) + 1) * STEP * SECOND);
        true
    }

    /// [`History::look`] for one pool.
    pub fn look(&mut self, pool: usize, counts: &CommandCounters, latency: &Latency, now: Time) {
        if self.pools.len() <= pool {
            self.pools.resize_with(pool + 1, History::default);
        }
        self.pools[pool].look(counts, latency, now);
    }

    /// That of a pool, if it was looked at.
    pub fn of(&self, pool: usize) -> Option<&History> {
        self.pools.get(pool)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_kept_for_ten_minutes() {
        let (mut history, mut latency) = (History::default(), Latency::default());
        let mut counts = CommandCounters::default();
        let at = |second: u64| Time(second * SECOND + 1);
        for second in 0..=20 {
            history.look(&counts, &latency, at(second));
            counts.get_hits += 2;
            counts.get_misses += 1;
            latency.add(1_000_000, at(second));
        }
        let (samples, end) = history.samples();
        let one = Sample {
            answers: 5,
            hits: 10,
            misses: 5,
            errors: 0,
            p50: 1000,
            p99: 1000,
        };
        assert_eq!((samples, end), (vec![one; 4], Time(20 * SECOND)));
        // Reset, then asleep.
        counts = CommandCounters::default();
        counts.get_hits = 7;
        history.look(&counts, &latency, at(36));
        let (samples, _) = history.samples();
        let hits: Vec<u64> = samples.iter().map(|s| s.hits).collect();
        assert_eq!(hits, [10, 10, 10, 10, 7, 0, 0]);
        assert_eq!(samples[6], Sample::default());
        history.look(&counts, &latency, at(100_000));
        assert_eq!(history.samples().0, vec![Sample::default(); STEPS]);
    }
}
