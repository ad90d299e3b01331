//! When a server was away in the last ten minutes, and why.

use crate::health::Cause;
use crate::saved::{Loaded, Loader, Saved, Saver, load_all, save_all, saved_fields};
use crate::time::{SECOND, Time};
use std::collections::VecDeque;

/// They are kept for so long after their end, in nanoseconds.
const KEPT: u64 = 600 * SECOND;

/// At most so many: of a server that comes and goes all the time the last ones.
const MOST: usize = 32;

/// A time in which a server was not asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outage {
    /// Since when.
    pub from: Time,
    /// Until when; [`Time::NEVER`] while it lasts.
    pub to: Time,
    /// Why it began.
    pub cause: Cause,
}

saved_fields!(Outage { from, to, cause });

/// The last ones, oldest first.
#[derive(Debug, Default)]
pub struct Outages(VecDeque<Outage>);

impl Saved for Outages {
    fn save(&self, to: &mut Saver<'_>) {
        save_all(to, self.0.iter());
    }

    fn load(from: &mut Loader<'_>) -> Loaded<Outages> {
        load_all(from, Outage::load).map(Outages)
    }
}

impl Outages {
    /// The server is not asked from now on.
    pub fn begin(&mut self, cause: Cause, now: Time) {
        while self.0.len() >= MOST || self.0.front().is_some_and(|o| now.since(o.to) > KEPT) {
            self.0.pop_front();
        }
        self.0.push_back(Outage {
            from: now,
            to: Time::NEVER,
            cause,
        });
    }

    /// It is asked again. Why it was not.
    pub fn end(&mut self, now: Time) -> Option<Cause> {
        let last = self.0.back_mut()?;
        last.to = now;
        Some(last.cause)
    }

    /// Those of the last ten minutes.
    pub fn recent(&self, now: Time) -> impl Iterator<Item = &Outage> {
        self.0.iter().filter(move |o| now.since(o.to) <= KEPT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ten_minutes_are_kept_but_not_without_bound() {
        let at = |second: u64| Time(second * SECOND);
        let mut outages = Outages::default();
        assert_eq!(outages.end(at(0)), None);
        outages.begin(Cause::Refused, at(10));
        let all: Vec<Outage> = outages.recent(at(10_000)).copied().collect();
        assert_eq!(
            (all.len(), all[0].from, all[0].to),
            (1, at(10), Time::NEVER)
        );
        assert_eq!(outages.end(at(20)), Some(Cause::Refused));
        assert_eq!(outages.recent(at(620)).count(), 1);
        assert_eq!(outages.recent(at(621)).count(), 0);
        for n in 0..100 {
            outages.begin(Cause::TimedOut, at(700 + n));
            outages.end(at(700 + n));
        }
        assert_eq!(outages.recent(at(800)).count(), MOST);
    }
}
