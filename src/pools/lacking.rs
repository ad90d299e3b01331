//! Keys whose copy was deleted because it was in doubt: each is copied again when it was left alone for a
//! while, and for a longer one each time that this was not enough.

use super::ServerId;
use crate::time::{MILLISECOND, SECOND, Time};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

/// How long a key must be left alone, in nanoseconds.
const QUIET: [u64; 3] = [20 * MILLISECOND, 200 * MILLISECOND, 2 * SECOND];

/// A key that was copied again and not in doubt since is as any other after so many nanoseconds.
const FORGET: u64 = 4 * SECOND;

/// What a key takes besides its bytes: its entries and the allocator's share, in bytes.
const ENTRY: usize = 192;

/// A server and the hash of a key.
type Name = (ServerId, u64);

/// One key.
#[derive(Debug)]
struct Lacking {
    key: Box<[u8]>,
    /// How often it was not left alone for long enough.
    tries: usize,
    /// It waits; else it was copied.
    waits: bool,
    /// It is copied, or forgotten, then.
    due: Time,
    /// When it is looked at next: its place in `by_time`.
    listed: Time,
}

/// All of them.
#[derive(Default, Debug)]
pub struct AllLacking {
    by_name: HashMap<Name, Lacking>,
    /// Places that keys had before, too.
    by_time: BinaryHeap<Reverse<(Time, Name)>>,
    bytes: usize,
    /// Bytes charged to the budget.
    pub charged: usize,
}

impl AllLacking {
    /// Bytes that it holds.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// A copy was deleted. False if there is no room for the key within `most` bytes.
    pub fn note(&mut self, name: Name, key: &[u8], most: usize, now: Time) -> bool {
        let bytes = key.len() + ENTRY;
        if !self.by_name.contains_key(&name) {
            if self.bytes + bytes > most {
                return false;
            }
            self.bytes += bytes;
        }
        let lacking = self.by_name.entry(name).or_insert_with(|| Lacking {
            key: key.into(),
            tries: 0,
            waits: true,
            due: now,
            listed: Time::NEVER,
        });
        if !std::mem::replace(&mut lacking.waits, true) {
            lacking.tries += 1;
        }
        lacking.due = now.plus(QUIET[lacking.tries.min(QUIET.len() - 1)]);
        if lacking.due < lacking.listed {
            lacking.listed = lacking.due;
            self.by_time.push(Reverse((lacking.due, name)));
        }
        true
    }

    /// When [`AllLacking::next`] may have one.
    pub fn at(&self) -> Time {
        self.by_time
            .peek()
            .map_or(Time::NEVER, |Reverse((at, _))| *at)
    }

    /// The next key that was left alone for long enough, and its server.
    pub fn next(&mut self, now: Time) -> Option<(ServerId, Box<[u8]>)> {
        while self.at() <= now {
            let Reverse((at, name)) = self.by_time.pop()?;
            let Some(lacking) = self.by_name.get_mut(&name) else {
                continue;
            };
            if lacking.listed != at {
                continue;
            }
            if lacking.due > now {
                lacking.listed = lacking.due;
                self.by_time.push(Reverse((lacking.due, name)));
                continue;
            }
            if lacking.waits {
                lacking.waits = false;
                lacking.due = now.plus(FORGET);
                lacking.listed = lacking.due;
                let key = lacking.key.clone();
                self.by_time.push(Reverse((now.plus(FORGET), name)));
                return Some((name.0, key));
            }
            if let Some(lacking) = self.by_name.remove(&name) {
                self.bytes -= lacking.key.len() + ENTRY;
            }
        }
        None
    }

    /// Takes all out that wait.
    pub fn drain(&mut self) -> Vec<(ServerId, Box<[u8]>)> {
        self.by_time.clear();
        self.bytes = 0;
        let all = self.by_name.drain().filter(|(_, lacking)| lacking.waits);
        all.map(|((server, _), lacking)| (server, lacking.key))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: Name = (1, 7);

    #[track_caller]
    fn copied_at(all: &mut AllLacking, at: u64) {
        assert_eq!(all.next(Time(at - 1)), None);
        assert_eq!(all.at(), Time(at));
        assert_eq!(all.next(Time(at)), Some((1, b"k"[..].into())));
        assert_eq!(all.next(Time(at)), None);
    }

    #[test]
    fn a_key_is_copied_when_it_was_left_alone() {
        let mut all = AllLacking::default();
        assert!(all.note(NAME, b"k", 1000, Time(0)));
        // Not while it is written.
        assert!(all.note(NAME, b"k", 1000, Time(QUIET[0] - 1)));
        assert_eq!(all.next(Time(QUIET[0])), None);
        copied_at(&mut all, 2 * QUIET[0] - 1);
    }

    #[test]
    fn one_that_is_in_doubt_again_must_be_left_alone_for_longer() {
        let mut all = AllLacking::default();
        let mut now = 0;
        for wait in [QUIET[0], QUIET[1], QUIET[2], QUIET[2]] {
            assert!(all.note(NAME, b"k", 1000, Time(now)));
            now += wait;
            copied_at(&mut all, now);
            now += 1;
        }
        // Until it was right for a while.
        assert_eq!(all.next(Time(now + FORGET)), None);
        assert_eq!((all.bytes(), all.at()), (0, Time::NEVER));
        now += 2 * FORGET;
        assert!(all.note(NAME, b"k", 1000, Time(now)));
        copied_at(&mut all, now + QUIET[0]);
    }

    #[test]
    fn there_is_a_bound() {
        let mut all = AllLacking::default();
        let most = 2 * (ENTRY + 1);
        assert!(all.note((1, 1), b"a", most, Time(0)));
        assert!(all.note((1, 2), b"b", most, Time(0)));
        assert!(!all.note((1, 3), b"c", most, Time(0)));
        assert!(all.note((1, 2), b"b", most, Time(5)));
        let mut waiting = all.drain();
        waiting.sort();
        assert_eq!(waiting, [(1, b"a"[..].into()), (1, b"b"[..].into())]);
        assert_eq!((all.bytes(), all.at()), (0, Time::NEVER));
    }
}
