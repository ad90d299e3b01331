//! Time as the proxy sees it: nanoseconds since it started, read once a turn.

use std::time::Duration;

/// A point in time: nanoseconds since the proxy started.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub struct Time(pub u64);

impl Time {
    /// A time that never comes.
    pub const NEVER: Time = Time(u64::MAX);

    /// This time and `span` nanoseconds.
    pub fn plus(self, span: u64) -> Time {
        Time(self.0.saturating_add(span))
    }

    /// Nanoseconds from `earlier` to this time; 0 if it is not earlier.
    pub fn since(self, earlier: Time) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// One second in nanoseconds.
pub const SECOND: u64 = 1_000_000_000;

/// One millisecond in nanoseconds.
pub const MILLISECOND: u64 = 1_000_000;

/// A duration in nanoseconds.
pub fn nanos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}
