//! When nothing is copied to or from a server, since a delayed flush takes effect about then.

use crate::saved::{Loaded, Loader, Saved, Saver, load_all, save_all};
use crate::time::{SECOND, Time};

/// Times about which delayed flushes take effect: nothing is copied then.
#[derive(Default, Debug)]
pub struct Quiet {
    spans: Vec<(Time, Time)>,
}

/// Before and after a delayed flush, in nanoseconds: servers count whole seconds.
const BEFORE: u64 = 2 * SECOND;
const AFTER: u64 = 3 * SECOND;

/// A server keeps the last delayed flush only; so many are kept here for those that are about to be
/// replaced.
const SPANS: usize = 8;

impl Quiet {
    /// A flush takes effect at this time.
    pub fn note(&mut self, at: Time, now: Time) {
        self.spans.retain(|(_, until)| *until > now);
        if self.spans.len() == SPANS {
            self.spans.pop();
        }
        let from = Time(at.0.saturating_sub(BEFORE));
        self.spans.push((from, at.plus(AFTER)));
    }

    /// True if nothing is to be copied now.
    #[inline]
    pub fn is_at(&self, now: Time) -> bool {
        let mut spans = self.spans.iter();
        spans.any(|(from, until)| (*from..*until).contains(&now))
    }
}

impl Saved for Quiet {
    fn save(&self, to: &mut Saver<'_>) {
        save_all(to, self.spans.iter());
    }

    fn load(from: &mut Loader<'_>) -> Loaded<Quiet> {
        Ok(Quiet {
            spans: load_all(from, <(Time, Time)>::load)?,
        })
    }
}
