//! What there is to do: lists of connections, and how much one turn may do of it.

use std::collections::VecDeque;

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

/// What one turn of the loop may do, in units of about a microsecond of processor time. What is
/// left stays on its list for the next turn, so that no turn takes long and whoever has little to
/// do is served between those who have much.
#[derive(Debug)]
pub struct Work {
    left: i64,
}

/// Units that a turn begins with; see [`Work::next_kind`] for those that come to them.
const TURN: i64 = 1_000;

/// Units for each further kind of work in a turn: the whole is some milliseconds.
const KIND: i64 = 500;

/// A read, or another small system call.
const CALL: usize = 2;
/// A write: the kernel takes it as far as the other side's socket, and wakes who waits there.
const WRITE: usize = 8;
/// A connection that is closed.
pub const CLOSE: usize = 10;
/// One request, one reply, one key.
pub const REQUEST: usize = 1;
/// One answer of `stats`, which is text made for people, without its lines.
pub const REPORT: usize = 50;
/// So many bytes of what a server says to `stats` are merged in one unit.
pub const REPORT_BYTES: usize = 64;
/// So many of its lines are made in one unit.
pub const REPORT_LINES: usize = 2;

/// So many bytes pass through the process in one unit.
const BYTES: usize = 1024;

impl Work {
    /// A fresh turn.
    pub fn turn() -> Work {
        Work { left: TURN }
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
    pub fn is_done(&self) -> bool {
        self.left <= 0
    }

    /// Another kind of work begins, which gets its part however much was done before.
    pub fn next_kind(&mut self) {
        self.left = self.left.max(0) + KIND;
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
    fn a_turn_ends() {
        let mut work = Work::turn();
        let mut calls = 0;
        while !work.is_done() {
            work.count_call(64 * 1024);
            calls += 1;
        }
        assert!((10..1000).contains(&calls), "{calls}");
    }
}
