//! The times of the protocol, and what passing time does to a [`Primary`]. They are constants:
//! two magents with other ones would wait for different leases.

use super::primary::{Debt, Listed, Primary};
use crate::time::{MILLISECOND, SECOND, Time};

/// Between two looks at a list whose servers are in use.
pub const LOOK: u64 = 50 * MILLISECOND;

/// The same while requests wait for what it will show.
pub const LOOK_PARKED: u64 = 10 * MILLISECOND;

/// How long a look counts, from when it was sent.
pub const LEASE: u64 = 150 * MILLISECOND;

/// W: from when a line stands until the partner is used. The others' leases are over by then, and
/// their mirrors, which may take the difference, have arrived.
pub const WAIT: u64 = LEASE + 50 * MILLISECOND;

/// How long others' lines are waited for. More than W and three round trips: what a late write costs.
pub const PATIENCE: u64 = 300 * MILLISECOND;

/// A server that has answered for so long has executed what dead magents sent it before it stopped.
pub const SETTLE: u64 = SECOND;

/// Between two renewals of a hold and of a sign of life, which live `bytes::LIFE`.
pub const RENEW: u64 = SECOND;

/// Nobody else was there for so long: alone.
pub const ALONE_AFTER: u64 = 10 * SECOND;

/// A [`Primary`] with a clock.
#[derive(Clone, Debug)]
pub struct TimedPrimary {
    rules: Primary,
    /// When the look of the lease was sent.
    looked: Time,
    /// Since when the line stands, or requests are parked.
    since: Time,
    /// When the primary's link began, or is as good as begun.
    connected: Time,
    /// When lines of the dead were exchanged for the own one.
    exchanged: Time,
}

impl TimedPrimary {
    /// A magent that starts.
    pub fn new() -> TimedPrimary {
        TimedPrimary {
            rules: Primary::new(false),
            looked: Time(0),
            since: Time(0),
            connected: Time(0),
            exchanged: Time(0),
        }
    }

    /// What it may do now. `wait`: W, or 0 for a magent that is alone.
    pub fn at(&mut self, now: Time, wait: u64) -> &Primary {
        if now.since(self.looked) > LEASE {
            self.rules.lapse();
        }
        if self.rules.is_parked() && now.since(self.since) >= PATIENCE {
            self.step(now, Primary::patience_over);
        }
        if self.rules.has_line() && now.since(self.since) >= wait {
            self.rules.waited();
        }
        // W even for a magent that is alone: the owner may live after all.
        if self.rules.answers()
            && now.since(self.exchanged) >= WAIT
            && now.since(self.connected) >= SETTLE
        {
            self.rules.flush_is_due();
        }
        &self.rules
    }

    /// True while a line of this magent stands, as far as it knows; time changes nothing about that.
    pub fn has_line(&self) -> bool {
        self.rules.has_line()
    }

    /// True if a line has to be written.
    pub fn is_announcing(&self) -> bool {
        self.rules.is_announcing()
    }

    /// True while a late write may be executed at the primary.
    pub fn has_late_write(&self) -> bool {
        self.rules.has_late_write()
    }

    /// What is owed to the primary.
    pub fn debt(&self) -> Debt {
        self.rules.debt()
    }

    /// When the lease of the last look ends.
    pub fn lease_end(&self) -> Time {
        self.looked.plus(LEASE)
    }

    /// Since when the line stands, or requests are parked.
    pub fn since(&self) -> Time {
        self.since
    }

    /// Something happened at `now`.
    pub fn step<T>(&mut self, now: Time, event: impl FnOnce(&mut Primary) -> T) -> T {
        let before = (self.rules.is_parked(), self.rules.has_line());
        let result = event(&mut self.rules);
        let after = (self.rules.is_parked(), self.rules.has_line());
        if after.0 && !before.0 || after.1 && !before.1 {
            self.since = now;
        }
        result
    }

    /// The primary is lost to this magent. `wait`: as in [`TimedPrimary::at`].
    pub fn lost(&mut self, now: Time, wait: u64) {
        if wait == 0 {
            self.rules.know();
        }
        self.step(now, Primary::lost);
    }

    /// The primary has closed a link: perhaps it has restarted, and lacks what others have mirrored to the partner by
    /// the end of W. No look counts before. `wait`: as in [`TimedPrimary::at`].
    pub fn closed(&mut self, now: Time, wait: u64) {
        self.connected = self.connected.max(now.plus(wait));
        self.rules.lapse();
    }

    /// The primary answers on a link that began just now.
    pub fn connected(&mut self, now: Time) {
        self.connected = self.connected.max(now);
        self.step(now, Primary::connected);
    }

    /// A look that was sent at `sent` is answered.
    pub fn looked(&mut self, listed: Listed, sent: Time, now: Time) {
        if self.step(now, |rules| rules.looked(listed)) {
            self.lease(sent);
        }
    }

    /// The line was written; the look behind it was sent at `sent`.
    pub fn announced(&mut self, listed: Listed, sent: Time, now: Time) {
        self.step(now, |rules| rules.announced(listed));
        // An exchange of which nobody knows whether it was made was, or never will be.
        self.exchanged = now;
        self.lease(sent);
    }

    /// The line is out, by a request that was sent at `sent`. True if the late answer is good.
    pub fn left(&mut self, listed: Listed, sent: Time, now: Time) -> bool {
        let is_good = self.step(now, |rules| rules.left(listed));
        self.lease(sent);
        is_good
    }

    /// Lines of the dead were exchanged for the own one.
    pub fn taken_over(&mut self, sent: Time, now: Time) {
        self.exchanged = now;
        self.step(now, Primary::taken_over);
        self.lease(sent);
    }

    /// What was seen of the list at `sent` counts from then; what was seen before the primary's link
    /// began says nothing about it.
    fn lease(&mut self, sent: Time) {
        self.looked = sent;
        if sent < self.connected {
            self.rules.lapse();
        }
    }
}

impl Default for TimedPrimary {
    fn default() -> TimedPrimary {
        TimedPrimary::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::marks::Use;

    const NOBODY: Listed = Listed {
        mine: false,
        others: false,
    };
    const OTHERS: Listed = Listed {
        mine: false,
        others: true,
    };
    const MINE: Listed = Listed {
        mine: true,
        others: false,
    };

    fn ms(n: u64) -> Time {
        Time(n * MILLISECOND)
    }

    /// Connected at 1 ms, with a look that was sent at 2 ms.
    fn in_use() -> TimedPrimary {
        let mut primary = TimedPrimary::new();
        primary.connected(ms(1));
        primary.looked(NOBODY, ms(2), ms(3));
        primary
    }

    #[test]
    fn a_look_counts_from_when_it_was_sent() {
        let mut primary = in_use();
        assert_eq!(primary.at(ms(152), WAIT).serves(), Use::Primary);
        assert_eq!(primary.at(ms(153), WAIT).serves(), Use::Nobody);
        primary.looked(NOBODY, ms(60), ms(200));
        assert_eq!(primary.at(ms(210), WAIT).serves(), Use::Primary);
        assert_eq!(primary.at(ms(211), WAIT).serves(), Use::Nobody);
    }

    #[test]
    fn a_look_says_nothing_about_a_link_that_began_later() {
        let mut primary = in_use();
        primary.connected(ms(10));
        assert_eq!(primary.at(ms(10), WAIT).serves(), Use::Nobody);
        primary.looked(NOBODY, ms(9), ms(11));
        assert_eq!(primary.at(ms(11), WAIT).serves(), Use::Nobody);
        primary.looked(NOBODY, ms(11), ms(12));
        assert_eq!(primary.at(ms(12), WAIT).serves(), Use::Primary);
    }

    #[test]
    fn others_mirrors_are_waited_for_where_a_primary_may_have_restarted() {
        let mut primary = in_use();
        primary.closed(ms(10), WAIT);
        assert_eq!(primary.at(ms(10), WAIT).serves(), Use::Nobody);
        primary.connected(ms(20));
        primary.looked(NOBODY, ms(209), ms(210));
        assert_eq!(primary.at(ms(210), WAIT).serves(), Use::Nobody);
        primary.looked(NOBODY, ms(210), ms(211));
        assert_eq!(primary.at(ms(211), WAIT).serves(), Use::Primary);
        // Nobody else is there.
        primary.closed(ms(300), 0);
        primary.connected(ms(301));
        primary.looked(NOBODY, ms(301), ms(302));
        assert_eq!(primary.at(ms(302), 0).serves(), Use::Primary);
    }

    #[test]
    fn w_is_waited_from_the_answer_and_the_partner_needs_a_lease() {
        let mut primary = in_use();
        primary.lost(ms(100), WAIT);
        assert!(primary.at(ms(100), WAIT).is_announcing());
        primary.announced(MINE, ms(100), ms(110));
        primary.at(ms(309), WAIT);
        assert!(!primary.step(ms(309), |p| p.replace(true)));
        primary.looked(MINE, ms(305), ms(310));
        primary.at(ms(310), WAIT);
        assert!(!primary.step(ms(310), |p| p.replace(false)));
        assert!(primary.step(ms(310), |p| p.replace(true)));
        assert_eq!(primary.at(ms(455), WAIT).serves(), Use::Partner);
        assert_eq!(primary.at(ms(456), WAIT).serves(), Use::Nobody);
    }

    #[test]
    fn a_magent_that_is_alone_does_not_wait() {
        let mut primary = in_use();
        primary.lost(ms(100), WAIT);
        primary.announced(MINE, ms(100), ms(110));
        primary.at(ms(110), 0);
        assert!(primary.step(ms(110), |p| p.replace(true)));
    }

    #[test]
    fn patience_begins_anew_with_each_time_that_it_is_parked() {
        let mut primary = in_use();
        primary.looked(OTHERS, ms(50), ms(51));
        assert!(primary.at(ms(350), WAIT).is_parked());
        primary.looked(NOBODY, ms(340), ms(350));
        assert_eq!(primary.at(ms(350), WAIT).serves(), Use::Primary);
        primary.looked(OTHERS, ms(390), ms(400));
        assert!(primary.at(ms(699), WAIT).is_parked());
        assert!(primary.at(ms(700), WAIT).is_announcing());
    }

    #[test]
    fn a_flush_for_the_dead_waits_for_their_leases_and_their_late_writes() {
        for (connected, due) in [(1, 5200), (4500, 5500), (4100, 5200)] {
            let mut primary = in_use();
            primary.looked(OTHERS, ms(50), ms(51));
            primary.connected(ms(connected));
            primary.taken_over(ms(4999), ms(5000));
            assert!(primary.at(ms(5000), 0).has_line());
            assert!(primary.step(ms(5000), |p| p.stop(true)));
            assert!(!primary.at(ms(due - 1), 0).may_tell());
            assert!(primary.at(ms(due), 0).may_tell());
        }
    }

    #[test]
    fn w_counts_from_the_new_line_where_nobody_knows_whether_it_was_taken_over() {
        let mut primary = in_use();
        primary.looked(OTHERS, ms(50), ms(51));
        primary.step(ms(5000), Primary::taken_over_or_not);
        assert!(primary.at(ms(5300), 0).is_announcing());
        primary.announced(MINE, ms(5390), ms(5400));
        assert!(primary.step(ms(5400), |p| p.stop(true)));
        assert!(!primary.at(ms(5599), 0).may_tell());
        assert!(primary.at(ms(5600), 0).may_tell());
    }

    #[test]
    fn a_line_that_went_out_grants_a_lease_from_when_that_was_asked() {
        let mut primary = in_use();
        primary.lost(ms(100), WAIT);
        primary.announced(MINE, ms(100), ms(110));
        primary.connected(ms(200));
        assert!(primary.step(ms(201), |p| p.stop(true) && p.leave()));
        assert!(!primary.left(NOBODY, ms(201), ms(300)));
        assert_eq!(primary.at(ms(351), WAIT).serves(), Use::Primary);
        assert_eq!(primary.at(ms(352), WAIT).serves(), Use::Nobody);
    }

    #[test]
    fn who_was_never_answered_writes_no_line() {
        let mut primary = TimedPrimary::new();
        primary.looked(NOBODY, ms(2), ms(3));
        primary.lost(ms(4), WAIT);
        assert!(!primary.at(ms(4), WAIT).is_announcing());
        assert_eq!(primary.at(ms(4), WAIT).serves(), Use::Unknown);
        primary.looked(OTHERS, ms(5), ms(6));
        assert!(!primary.at(ms(1000), WAIT).is_announcing());
        assert_eq!(primary.at(ms(1000), WAIT).serves(), Use::Unknown);
        // Unless it is alone: it keeps nobody away.
        primary.looked(NOBODY, ms(1001), ms(1002));
        primary.lost(ms(1003), 0);
        assert!(primary.at(ms(1003), 0).is_announcing());
    }
}
