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

/// Units of one turn: some milliseconds.
const TURN: i64 = 3_000;

/// One system call.
pub const CALL: usize = 2;
/// One request, one reply, one key.
pub const REQUEST: usize = 1;
/// One answer of `stats`, which is text made for people.
pub const REPORT: usize = 150;

/// So many bytes pass through the process in one unit.
const BYTES: usize = 4 * 1024;

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

    /// Counts one system call that moved so many bytes.
    #[inline]
    pub fn count_call(&mut self, bytes: usize) {
        self.count(CALL + bytes / BYTES);
    }

    /// True if nothing more is to begin in this turn.
    #[inline]
    pub fn is_done(&self) -> bool {
        self.left <= 0
    }

    /// Allows for `units` more, whatever was done before: what must not wait for the next turn.
    pub fn allow(&mut self, units: usize) {
        self.left = self.left.max(0) + units as i64;
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
        assert!((50..1000).contains(&calls), "{calls}");
    }
}
