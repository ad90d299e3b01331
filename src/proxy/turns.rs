//! How long turns of the loop take, in processor time, and what those did that took far too long.

use crate::saved::saved_fields;
use crate::sys;
use crate::time::{MILLISECOND, SECOND, Time};

/// The processor's clock costs a system call, so it is read this often at most, in nanoseconds.
const READ_EVERY: u64 = MILLISECOND;

/// A turn of so many nanoseconds, by any clock, is worth a line in the log: all clients waited for it.
const LONG: u64 = 50 * MILLISECOND;

/// But there is one such line in so many nanoseconds at most.
const TELL_EVERY: u64 = 10 * SECOND;

/// What is counted anyway, to see what was done in one turn.
#[derive(Clone, Copy, Default, Debug)]
pub struct Done {
    /// Requests of clients.
    pub requests: u64,
    /// Calls that read.
    pub reads: u64,
    /// Calls that wrote.
    pub writes: u64,
}

/// When parts of a turn ended: what comes before requests, requests, the rest.
#[derive(Clone, Copy, Debug)]
pub struct Parts {
    /// Signals, the configuration, new clients.
    pub before: Time,
    /// Clients and servers.
    pub requests: Time,
    /// Operators and connects.
    pub rest: Time,
}

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
    /// What was done before the present turn.
    done: Done,
    /// When a long turn was told last, and how many were not since.
    told_at: Option<Time>,
    untold: u64,
}

// What the turn of the change itself did is not told.
saved_fields!(
    Turns {
        longest,
        sum,
        counts,
        cpu,
        read_at
    }..Turns::default()
);

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
    /// A turn begins; the turn before began at `before`, and so much was done until now.
    pub fn begin(&mut self, before: Time, done: Done) {
        self.done = done;
        if before.since(self.read_at) >= READ_EVERY || self.cpu == 0 {
            self.read_at = before;
            self.cpu = sys::thread_time();
        }
    }

    /// The turn has taken so many nanoseconds. If that is long, the processor's clock tells how
    /// many of them were its own; at most [`READ_EVERY`] of turns before are counted with them. Returns
    /// that time.
    pub fn end(&mut self, took: u64) -> u64 {
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
        took
    }

    /// The line about a turn that began at `begun` and took so long that its clients waited, unless there
    /// was one lately. `own`: its processor time in nanoseconds.
    pub fn watch(&mut self, begun: Time, own: u64, parts: Parts, done: Done) -> Option<String> {
        if parts.rest.since(begun) < LONG {
            return None;
        }
        if self.told_at.is_some_and(|at| begun.since(at) < TELL_EVERY) {
            self.untold += 1;
            return None;
        }
        self.told_at = Some(begun);
        let ms = |from: Time, to: Time| format!("{:.1} ms", to.since(from) as f64 / 1e6);
        let mut line = format!(
            "a turn took {} ({} of processor time): {} for signals, configuration and new clients, {} for \
             {} requests, {} reads and {} writes, {} for operators and connects",
            ms(begun, parts.rest),
            ms(Time(0), Time(own)),
            ms(begun, parts.before),
            ms(parts.before, parts.requests),
            done.requests.saturating_sub(self.done.requests),
            done.reads.saturating_sub(self.done.reads),
            done.writes.saturating_sub(self.done.writes),
            ms(parts.requests, parts.rest),
        );
        match std::mem::take(&mut self.untold) {
            0 => {}
            n => line += &format!("; {n} more since the last such line"),
        }
        Some(line)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_turns_are_told_but_not_each_of_them() {
        let mut turns = Turns::default();
        let at = |ms: u64| Time(ms * MILLISECOND);
        let done = |requests| Done {
            requests,
            reads: 2 * requests,
            writes: requests,
        };
        let mut turn = |begun: u64, took: u64| {
            turns.begin(at(begun), done(begun));
            let parts = Parts {
                before: at(begun + 1),
                requests: at(begun + took - 2),
                rest: at(begun + took),
            };
            turns.watch(at(begun), 3 * MILLISECOND, parts, done(begun + 7))
        };
        assert_eq!(turn(100, 49), None);
        let line = turn(200, 60).expect("a line");
        assert_eq!(
            line,
            "a turn took 60.0 ms (3.0 ms of processor time): 1.0 ms for signals, configuration and new \
             clients, 57.0 ms for 7 requests, 14 reads and 7 writes, 2.0 ms for operators and connects"
        );
        assert_eq!((turn(300, 60), turn(10_199, 70)), (None, None));
        let line = turn(10_200, 70).expect("a line");
        assert!(
            line.ends_with("; 2 more since the last such line"),
            "{line}"
        );
        assert!(turn(30_000, 50).is_some_and(|line| !line.contains("more")));
    }
}
