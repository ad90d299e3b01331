//! How long answers took, since the start and in the last ten seconds.
//!
//! An answer is counted once, in the window of its second; a window's counts come to those of the past
//! when the next one begins.

use crate::time::{SECOND, Time};

/// Buckets of a [`Histogram`]: four to each doubling, from 1 µs on.
const BUCKETS: usize = 96;

/// Windows of one second each; the last ones are what is recent.
const WINDOWS: usize = 10;

/// The bucket of so many nanoseconds.
#[inline]
fn bucket(nanos: u64) -> usize {
    let micros = (nanos / 1000).max(1);
    let doubling = 63 - micros.leading_zeros() as u64;
    let quarter = if doubling >= 2 {
        (micros >> (doubling - 2)) & 3
    } else {
        0
    };
    ((doubling * 4 + quarter) as usize).min(BUCKETS - 1)
}

/// The end of a bucket, in microseconds.
fn bound(bucket: usize) -> u64 {
    let (doubling, quarter) = (bucket as u64 / 4, bucket as u64 % 4);
    match doubling {
        0 | 1 => 2 << doubling,
        _ => (1 << doubling) + ((quarter + 1) << (doubling - 2)),
    }
}

/// Times, counted in logarithmic buckets a quarter of a doubling wide.
#[derive(Clone, Debug)]
pub struct Histogram {
    pub(super) counts: [u64; BUCKETS],
    /// In nanoseconds.
    pub(super) sum: u64,
    /// In nanoseconds.
    pub(super) max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram {
            counts: [0; BUCKETS],
            sum: 0,
            max: 0,
        }
    }
}

impl Histogram {
    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// What was counted since `earlier`, a former copy of this histogram; everything, if it was reset since.
    /// The longest time is that of the whole histogram.
    pub fn since(&self, earlier: &Histogram) -> Histogram {
        let mut since = self.clone();
        if self.count() >= earlier.count() {
            since.sum = self.sum.saturating_sub(earlier.sum);
            for (n, before) in since.counts.iter_mut().zip(&earlier.counts) {
                *n = n.saturating_sub(*before);
            }
        }
        since
    }

    /// Sum of all times, in seconds.
    pub fn sum(&self) -> f64 {
        self.sum as f64 / SECOND as f64
    }

    /// The longest, in microseconds.
    pub fn max(&self) -> u64 {
        self.max.div_ceil(1000)
    }

    /// How many took less than 2 to the power of `doublings` microseconds.
    pub fn below(&self, doublings: usize) -> u64 {
        self.counts[..doublings * 4].iter().sum()
    }

    /// The time, in microseconds, that `permille` of a thousand did not exceed.
    pub fn quantile(&self, permille: u64) -> u64 {
        let wanted = (self.count() * permille).div_ceil(1000);
        let mut seen = 0;
        for (i, n) in self.counts.iter().enumerate() {
            seen += n;
            if seen >= wanted && seen > 0 {
                return bound(i).min(self.max());
            }
        }
        0
    }

    /// The quantiles that are shown, in microseconds: p50, p99, p99.9, and the longest.
    pub fn summary(&self) -> [(&'static str, u64); 4] {
        [
            ("p50", self.quantile(500)),
            ("p99", self.quantile(990)),
            ("p999", self.quantile(999)),
            ("max", self.max()),
        ]
    }

    fn take_in(&mut self, window: &Window) {
        let counts = self.counts.iter_mut().zip(&window.counts);
        counts.for_each(|(sum, n)| *sum += u64::from(*n));
        self.sum += window.sum;
        self.max = self.max.max(window.max);
    }
}

/// What was counted in one second.
#[derive(Clone, Debug)]
struct Window {
    second: u64,
    counts: [u32; BUCKETS],
    sum: u64,
    max: u64,
}

impl Window {
    fn new(second: u64) -> Window {
        Window {
            second,
            counts: [0; BUCKETS],
            sum: 0,
            max: 0,
        }
    }
}

/// A histogram of all times, and the windows of the last ten seconds.
#[derive(Clone, Debug)]
pub struct Latency {
    /// All but those of the present window.
    pub(super) past: Histogram,
    windows: Box<[Window; WINDOWS]>,
    /// The present window.
    at: usize,
}

impl Default for Latency {
    fn default() -> Self {
        Latency {
            past: Histogram::default(),
            windows: Box::new(std::array::from_fn(|_| Window::new(0))),
            at: 0,
        }
    }
}

impl Latency {
    /// Counts one answer that took so many nanoseconds and came now.
    #[inline]
    pub fn add(&mut self, nanos: u64, now: Time) {
        let second = now.0 / SECOND;
        if self.windows[self.at].second != second {
            self.turn_to(second);
        }
        let window = &mut self.windows[self.at];
        window.counts[bucket(nanos)] += 1;
        window.sum += nanos;
        window.max = window.max.max(nanos);
    }

    #[cold]
    fn turn_to(&mut self, second: u64) {
        self.past.take_in(&self.windows[self.at]);
        self.at = (self.at + 1) % WINDOWS;
        self.windows[self.at] = Window::new(second);
    }

    /// Everything since the start.
    pub fn total(&self) -> Histogram {
        let mut total = self.past.clone();
        total.take_in(&self.windows[self.at]);
        total
    }

    /// The last ten seconds, the present one included.
    pub fn recent(&self, now: Time) -> Histogram {
        let mut recent = Histogram::default();
        let first = (now.0 / SECOND + 1).saturating_sub(WINDOWS as u64);
        let windows = self.windows.iter().filter(|w| w.second >= first);
        windows.for_each(|w| recent.take_in(w));
        recent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time(seconds * SECOND + 1)
    }

    #[test]
    fn quantiles_are_within_a_quarter_of_a_doubling() {
        let mut latency = Latency::default();
        for micros in 1..=1000u64 {
            latency.add(micros * 1000, at(0));
        }
        let h = latency.total();
        let (median, high) = (h.quantile(500), h.quantile(990));
        assert!((500..=640).contains(&median), "{median}");
        assert!((990..=1000).contains(&high), "{high}");
        assert_eq!((h.quantile(1000), h.max(), h.count()), (1000, 1000, 1000));
        assert!((h.sum() - 0.5005).abs() < 1e-9);
        let none = Histogram::default();
        assert_eq!((none.quantile(500), none.max(), none.count()), (0, 0, 0));
    }

    #[test]
    fn buckets_end_where_the_next_ones_begin() {
        let mut last = 0;
        for micros in 1..1_000_000u64 {
            let b = bucket(micros * 1000);
            assert!(
                micros < bound(b),
                "{micros} in {b}, which ends at {}",
                bound(b)
            );
            assert!(b == last || micros >= bound(last), "{micros} in {b}");
            last = b;
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn less_than_a_power_of_two_is_counted_exactly() {
        let mut latency = Latency::default();
        for micros in [0, 1, 2, 3, 4, 63, 64, 65, 127, 128, 5000] {
            latency.add(micros * 1000, at(0));
        }
        let h = latency.total();
        let below = [1, 2, 6, 7, 13, 22].map(|k| h.below(k));
        assert_eq!(below, [2, 4, 6, 9, 11, 11]);
    }

    #[test]
    fn what_is_older_than_ten_seconds_is_not_recent() {
        let mut latency = Latency::default();
        latency.add(7_000_000, at(0));
        for second in 3..12 {
            latency.add(1000, at(second));
            latency.add(2000, at(second));
        }
        let counts = |now: u64| {
            let h = latency.recent(at(now));
            (h.count(), h.max())
        };
        assert_eq!(counts(11), (18, 2));
        assert_eq!(counts(12), (18, 2));
        assert_eq!(counts(13), (16, 2));
        assert_eq!(counts(20), (2, 2));
        assert_eq!(counts(21), (0, 0));
        let total = latency.total();
        assert_eq!((total.count(), total.max()), (19, 7000));
        assert_eq!(Latency::default().recent(at(3)).count(), 0);
    }
}
