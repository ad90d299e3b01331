//! What there is to do: lists of connections, and how much one turn may do of it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Members that have something to do, oldest first. Each keeps a flag that says if it is on the
/// list, so that it is there once.
#[derive(Debug)]
pub struct WorkList<K> {
    list: VecDeque<K>,
}

impl<K> Default for WorkList<K> {
    fn default() -> Self {
        WorkList {
            list: VecDeque::new(),
        }
    }
}

impl<K> WorkList<K> {
    /// Adds a member unless `listed` says that it is there.
    #[inline]
    pub fn add(&mut self, key: K, listed: &mut bool) {
        if !*listed {
            *listed = true;
            self.list.push_back(key);
        }
    }

    /// Takes the oldest member off; its flag is the caller's to clear.
    #[inline]
    pub fn take(&mut self) -> Option<K> {
        self.list.pop_front()
    }

    /// How many are on it.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// True if nobody is.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

/// What one turn of the loop may do. What is left stays on its list for the next turn, so that no
/// turn takes long and whoever has little to do is served between those who have much.
///
/// Work is counted in units of about a microsecond, and the clock is read once in [`STEP`] of them:
/// how long a byte takes depends on the machine, its caches and the other side's kernel.
#[derive(Debug)]
pub struct Work {
    /// Units until the clock is read; of a counted turn, those that may still be done.
    left: i64,
    /// `None` for a counted turn.
    clock: Option<Clock>,
}

/// The real clock.
#[derive(Debug)]
struct Clock {
    /// When it was read.
    read: Instant,
    /// When the turn is to end, but for what [`Work::next_kind`] adds.
    turn_ends: Instant,
    /// When the present kind of work is to end.
    ends: Instant,
}

impl Clock {
    /// Read just now; the turn is to end after so long.
    fn ending(read: Instant, after: Duration) -> Clock {
        let turn_ends = read + after;
        Clock {
            read,
            turn_ends,
            ends: turn_ends,
        }
    }
}

/// How long a turn may take; see [`Work::next_kind`] for what comes to it. The promise is 10 ms in
/// all, of which the last system call of each kind takes some.
const TURN: Duration = Duration::from_millis(2);

/// How long each further kind of work in a turn may take, however little is left of the turn.
const KIND: Duration = Duration::from_millis(1);

/// Units between two looks at the clock.
const STEP: i64 = 128;

/// Units of a counted turn, and of each further kind of work in it.
const COUNTED_TURN: i64 = 1_000;
const COUNTED_KIND: i64 = 500;

/// A read, or another small system call.
const CALL: usize = 2;
/// A write: the kernel takes it as far as the other side's socket, and wakes who waits there.
const WRITE: usize = 8;
/// A connection that is closed: the kernel frees what it held.
pub const CLOSE: usize = 40;
/// One request, one reply, one key.
pub const REQUEST: usize = 1;
/// One answer of `stats`, which is text made for people, without its lines.
pub const REPORT: usize = 50;
/// So many bytes of what a server says to `stats` are merged in one unit.
pub const REPORT_BYTES: usize = 64;
/// So many of its lines are made in one unit.
pub const REPORT_LINES: usize = 2;

/// So many bytes pass through the process in one unit.
const BYTES: usize = 512;

impl Work {
    /// A fresh turn that begins now, and ends by the clock.
    pub fn timed(now: Instant) -> Work {
        Work {
            left: STEP,
            clock: Some(Clock::ending(now, TURN)),
        }
    }

    /// A fresh turn that ends after so many units, whatever the clock says: for simulations, which
    /// are to do the same each time.
    pub fn counted() -> Work {
        Work {
            left: COUNTED_TURN,
            clock: None,
        }
    }

    /// One kind of work that is done besides a turn; it ends by the clock.
    pub fn part() -> Work {
        let now = Instant::now();
        Work {
            left: STEP,
            clock: Some(Clock::ending(now, KIND)),
        }
    }

    /// Counts work of so many units.
    #[inline]
    pub fn count(&mut self, units: usize) {
        self.left -= units as i64;
    }

    /// Counts one read of so many bytes.
    #[inline]
    pub fn count_call(&mut self, bytes: usize) {
        self.count(CALL + bytes / BYTES);
    }

    /// Counts one write of so many bytes.
    #[inline]
    pub fn count_write(&mut self, bytes: usize) {
        self.count(WRITE + bytes / BYTES);
    }

    /// True if nothing more is to begin in this turn.
    #[inline]
    pub fn is_done(&mut self) -> bool {
        self.left <= 0 && self.is_over()
    }

    fn is_over(&mut self) -> bool {
        let Some(clock) = &mut self.clock else {
            return true;
        };
        clock.read = Instant::now();
        let is_over = clock.read >= clock.ends;
        if !is_over {
            self.left = STEP;
        }
        is_over
    }

    /// Another kind of work begins: it may take what is left of the turn, and always its part.
    pub fn next_kind(&mut self) {
        match &mut self.clock {
            Some(clock) => {
                clock.ends = clock.turn_ends.max(clock.read + KIND);
                self.left = STEP;
            }
            None => self.left = self.left.max(0) + COUNTED_KIND,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_listed_once_and_served_in_order() {
        let mut list = WorkList::default();
        let mut flags = [false; 3];
        for key in [2usize, 0, 2, 1, 0] {
            list.add(key, &mut flags[key]);
        }
        assert_eq!(list.len(), 3);
        let order: Vec<usize> = std::iter::from_fn(|| list.take()).collect();
        assert_eq!(order, [2, 0, 1]);
        assert!(list.is_empty());
    }

    #[test]
    fn a_counted_turn_ends_after_its_units() {
        let mut work = Work::counted();
        let mut calls = 0;
        while !work.is_done() {
            work.count_call(64 * 1024);
            calls += 1;
        }
        assert!((5..1000).contains(&calls), "{calls}");
        work.next_kind();
        assert!(!work.is_done());
    }

    #[test]
    fn a_timed_turn_ends_by_the_clock_and_each_kind_of_work_has_its_part() {
        let begun = Instant::now();
        let mut work = Work::timed(begun);
        while !work.is_done() {
            work.count(REQUEST);
        }
        let turn = begun.elapsed();
        assert!(turn >= TURN, "{turn:?}");
        work.next_kind();
        assert!(!work.is_done());
        while !work.is_done() {
            work.count(REQUEST);
        }
        let both = begun.elapsed();
        assert!(both >= turn + KIND / 2, "{both:?}");
    }
}
