//! How tests let time pass. Nothing else in `tests/` sleeps, and each way says why it does:
//!
//! - [`wait_for`], [`wait_within`]: until a condition holds; a deadline makes a hang a failure;
//! - [`pause_of`], [`pause_until`]: a length of time that the test is about, such as a server that
//!   hangs, or memcached's clock of whole seconds;
//! - [`think`]: between requests of clients that ask all the time;
//! - [`measure_for`]: a window in which something is measured that no event ends.

use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long anything may take until a test fails. Long, since the machine may be busy.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Between two looks at a condition that cannot wake us.
const LOOK: Duration = Duration::from_millis(2);

/// Looks until `condition` gives something; `None` if it does not in time.
pub fn look_within<T>(within: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + within;
    loop {
        let found = condition();
        if found.is_some() || Instant::now() >= end {
            return found;
        }
        sleep(LOOK);
    }
}

/// Looks until `condition` gives something; fails with `what` at the deadline.
#[track_caller]
pub fn wait_for<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    wait_within(DEADLINE, what, condition)
}

/// [`wait_for`] with another deadline.
#[track_caller]
pub fn wait_within<T>(within: Duration, what: &str, condition: impl FnMut() -> Option<T>) -> T {
    match look_within(within, condition) {
        Some(found) => found,
        None => panic!("waited {within:?} in vain for {what}"),
    }
}

/// Does nothing for so long, since that length is under test.
pub fn pause_of(time: Duration) {
    sleep(time);
}

/// Does nothing until then, since that moment is under test.
pub fn pause_until(then: Instant) {
    sleep(then.saturating_duration_since(Instant::now()));
}

/// A client's pause before it asks again. Clients that ask for as long as a test takes would else leave no
/// processor time to the tests beside it.
pub fn think() {
    sleep(Duration::from_millis(1));
}

/// Lets what other threads and processes do be measured for so long.
pub fn measure_for(window: Duration) {
    sleep(window);
}
