//! The keys asked most in the last minute, from a sample.
//!
//! Up to some hundred keys a second are all looked at; of more a random sample of that size, so that it costs
//! little. A window of ten seconds is bounded: keys are in sets by their hash, and in a full set a new key
//! replaces the one with the smallest count and inherits that count, since it may have been asked as often before
//! (Space-Saving: Metwally, Agrawal, El Abbadi). So a key that is asked more often than that is never missing.

use crate::time::{SECOND, Time};
use std::collections::HashMap;

/// Size of the sample: keys looked at in a second, about.
const SAMPLES: u64 = 500;

/// Sets of keys of one window, and keys of one set.
const SETS: usize = 64;
const WAYS: usize = 4;

/// Windows: with the present one they cover the last minute.
const WINDOWS: usize = 6;

/// Length of a window, in seconds.
const WINDOW: u64 = 10;

/// One key that is asked often, as far as the sample tells.
#[derive(Clone, PartialEq, Debug)]
pub struct HotKey {
    /// Its pool.
    pub pool: usize,
    /// The key.
    pub key: Vec<u8>,
    /// How often it was asked in a second, about and at least.
    pub per_second: f64,
    /// Its share of all requests, 0 to 1.
    pub share: f64,
}

#[derive(Debug)]
struct Entry {
    hash: u64,
    pool: usize,
    key: Vec<u8>,
    /// How often it was asked, about.
    count: u64,
    /// The part of the count that it inherited, which may belong to other keys.
    excess: u64,
}

/// What was asked in ten seconds.
#[derive(Debug)]
struct Window {
    number: u64,
    sets: [Vec<Entry>; SETS],
    /// How often all keys were asked.
    count: u64,
}

impl Default for Window {
    fn default() -> Window {
        Window {
            number: 0,
            sets: std::array::from_fn(|_| Vec::new()),
            count: 0,
        }
    }
}

impl Window {
    fn clear(&mut self, number: u64) {
        self.number = number;
        // Keeps the memory of the sets.
        let entries = self.sets.iter_mut().flatten();
        entries.for_each(|e| (e.count, e.excess) = (0, 0));
        self.count = 0;
    }

    fn add(&mut self, pool: usize, key: &[u8], hash: u64, count: u64) {
        self.count += count;
        // FNV's bits hardly depend on the last bytes, but for some.
        let mixed = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let set = &mut self.sets[(mixed >> 32) as usize % SETS];
        let is_it = |e: &&mut Entry| e.hash == hash && e.pool == pool && e.key == key;
        if let Some(entry) = set.iter_mut().find(is_it) {
            entry.count += count;
        } else if set.len() < WAYS {
            set.push(Entry {
                hash,
                pool,
                key: key.to_vec(),
                count,
                excess: 0,
            });
        } else if let Some(entry) = set.iter_mut().min_by_key(|e| e.count) {
            (entry.hash, entry.pool) = (hash, pool);
            entry.key.clear();
            entry.key.extend_from_slice(key);
            entry.excess = entry.count;
            entry.count += count;
        }
    }
}

/// What is asked most.
#[derive(Debug)]
pub struct HotKeys {
    /// One of so many keys is looked at.
    every: u64,
    /// Keys until the next one that is, and how many these were when it was drawn.
    left: u64,
    drawn: u64,
    /// Keys asked in this second before the present draw, and how many were looked at.
    asked: u64,
    samples: u64,
    second: u64,
    random: u64,
    windows: [Window; WINDOWS],
}

impl Default for HotKeys {
    fn default() -> HotKeys {
        HotKeys {
            every: 1,
            left: 1,
            drawn: 1,
            asked: 0,
            samples: 0,
            second: 0,
            random: 0x9e37_79b9_7f4a_7c15,
            windows: Default::default(),
        }
    }
}

impl HotKeys {
    /// Counts a key that was asked; true if [`HotKeys::note`] is to be told which.
    #[inline]
    pub fn count(&mut self) -> bool {
        self.left -= 1;
        self.left == 0
    }

    /// Looks at the key that was counted.
    #[cold]
    pub fn note(&mut self, pool: usize, key: &[u8], hash: u64, now: Time) {
        self.begin_second(now);
        self.samples += 1;
        let number = now.0 / (WINDOW * SECOND);
        let window = &mut self.windows[(number % WINDOWS as u64) as usize];
        if window.number != number {
            window.clear(number);
        }
        window.add(pool, key, hash, self.every);
        // In a second in which much more is asked than in the one before.
        if self.samples % (2 * SAMPLES) == 0 {
            self.every *= 2;
        }
        self.draw();
    }

    /// In each turn: in another second another part of the keys may be enough.
    #[inline]
    pub fn begin_second(&mut self, now: Time) {
        let second = now.0 / SECOND;
        if second != self.second {
            let asked = self.asked + self.drawn - self.left;
            let seconds = second - self.second;
            (self.second, self.samples) = (second, 0);
            self.every = (asked / seconds).div_ceil(SAMPLES).max(1);
            if self.left > self.every {
                self.draw();
            }
            (self.asked, self.drawn) = (0, self.left);
        }
    }

    /// How many keys until the next one: by chance, so that no pattern of requests hides behind it.
    fn draw(&mut self) {
        self.asked += self.drawn - self.left;
        // xorshift64 (Marsaglia).
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.left = 1 + self.random % (2 * self.every - 1);
        self.drawn = self.left;
    }

    /// The keys asked most, most first, at most so many.
    pub fn top(&self, most: usize, now: Time) -> Vec<HotKey> {
        let number = now.0 / (WINDOW * SECOND);
        let first = (number + 1).saturating_sub(WINDOWS as u64);
        let seconds = (now.since(Time(first * WINDOW * SECOND)) as f64 / SECOND as f64).max(1.0);
        let mut keys: HashMap<(usize, &[u8]), (u64, u64)> = HashMap::new();
        let mut all = 0;
        for window in self.windows.iter().filter(|w| w.number >= first) {
            all += window.count;
            for e in window.sets.iter().flatten().filter(|e| e.count > 0) {
                let sum = keys.entry((e.pool, &e.key)).or_default();
                *sum = (sum.0 + e.count, sum.1 + e.excess);
            }
        }
        // Most of its count may belong to other keys: nothing is known of it.
        let known = keys.into_iter().filter(|(_, (n, excess))| excess * 2 <= *n);
        let mut known: Vec<_> = known.map(|(of, (n, excess))| (n - excess, of)).collect();
        known.sort_unstable_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
        let hot = known.into_iter().take(most).map(|(n, (pool, key))| HotKey {
            pool,
            key: key.to_vec(),
            per_second: n as f64 / seconds,
            share: n as f64 / all as f64,
        });
        hot.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As keys are hashed: `pools::server`.
    fn fnv(key: &str) -> u64 {
        key.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| {
            (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3)
        })
    }

    /// One key of which `of` tells is asked so many times in each of so many seconds.
    fn ask(hot: &mut HotKeys, seconds: std::ops::Range<u64>, times: u64, of: impl Fn(u64) -> u64) {
        for second in seconds {
            for n in 0..times {
                let now = Time(second * SECOND + n * SECOND / times);
                hot.begin_second(now);
                if hot.count() {
                    let key = format!("key{}", of(n));
                    hot.note(0, key.as_bytes(), fnv(&key), now);
                }
            }
        }
    }

    fn name(key: &HotKey) -> String {
        String::from_utf8(key.key.clone()).unwrap()
    }

    #[test]
    fn few_are_counted_one_by_one() {
        let mut hot = HotKeys::default();
        ask(&mut hot, 60..70, 10, |n| n.min(2));
        let top = hot.top(3, Time(70 * SECOND - 1));
        let names: Vec<String> = top.iter().map(name).collect();
        assert_eq!(names, ["key2", "key0", "key1"]);
        // Of ten each second eight, in ten seconds of the sixty that are looked at.
        assert!((top[0].share - 0.8).abs() < 1e-9, "{top:?}");
        assert!((top[0].per_second - 8.0 * 10.0 / 60.0).abs() < 0.01);
        // One minute later nobody asks for them any more.
        assert_eq!(hot.top(3, Time(120 * SECOND)), []);
    }

    #[test]
    fn what_is_asked_most_is_found_among_very_many() {
        let mut hot = HotKeys::default();
        let mut state = 1u64;
        let mut draws = Vec::new();
        for _ in 0..100_000 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            draws.push(state >> 33);
        }
        // 5% and 2% of the requests, each for one key; a sample that came with the pattern's own step
        // would find one of them only, or neither.
        ask(&mut hot, 0..60, 100_000, |n| match n % 100 {
            0..5 => 1,
            50..52 => 2,
            _ => 1000 + draws[n as usize],
        });
        let top = hot.top(20, Time(60 * SECOND));
        let names: Vec<String> = top.iter().take(2).map(name).collect();
        assert_eq!(names, ["key1", "key2"], "{top:?}");
        for (key, share) in top.iter().zip([0.05, 0.02]) {
            assert!((key.share / share - 1.0).abs() < 0.3, "{key:?}");
            assert!(
                (key.per_second / (share * 100_000.0) - 1.0).abs() < 0.35,
                "{key:?}"
            );
        }
        let sets = hot.windows.iter().flat_map(|w| &w.sets);
        assert!(sets.clone().all(|set| set.len() <= WAYS));
        assert!(sets.flatten().count() > WINDOWS * SETS);
    }

    /// Keys that differ in their last byte only, as numbered ones do.
    #[test]
    fn keys_of_one_pattern_do_not_push_each_other_out() {
        let mut hot = HotKeys::default();
        ask(&mut hot, 0..60, 100, |n| n % 10);
        let top = hot.top(20, Time(60 * SECOND - 1));
        assert_eq!(top.len(), 10, "{top:?}");
        assert!(top.iter().all(|k| (k.share - 0.1).abs() < 1e-9), "{top:?}");
    }

    #[test]
    fn a_rush_is_not_looked_at_key_by_key() {
        let mut hot = HotKeys::default();
        ask(&mut hot, 0..1, 10, |n| n);
        let (mut looked, rush) = (0, 1_000_000u64);
        for _ in 0..rush {
            if hot.count() {
                looked += 1;
                hot.note(0, b"k", 1, Time(SECOND));
            }
        }
        assert!((2 * SAMPLES..25 * SAMPLES).contains(&looked), "{looked}");
        // What is asked next, long after it, is looked at all the same.
        hot.begin_second(Time(100 * SECOND));
        assert_eq!(hot.every, rush.div_ceil(SAMPLES * 99));
        hot.begin_second(Time(101 * SECOND));
        assert!(hot.count());
    }
}
