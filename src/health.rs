//! One server's life. No I/O: time and events come in, decisions go out.
//!
//! ```text
//!            timeouts in a row, failed connect, link lost with writes
//!        ┌────────────────────────────────────────────────────────┐
//!        │                                                        ▼
//!       Up ◀──journal told── Replaying ◀──handshake── Probing ◀──Down
//!        (warming for a while)    │                      │        ▲
//!                                 └───────lost───────────┴────────┘ backoff
//! ```
//!
//! While it is not up a server is asked nothing. What it misses goes to its [`Journal`].

use std::collections::HashMap;

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

/// The longest wait between two probes of a server, in nanoseconds: a server that comes back
/// after a day is noticed within half a minute.
const LONGEST_WAIT: u64 = 30 * SECOND;

/// Why a request, a link or a server failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// The connect was refused.
    Refused,
    /// The connect failed for another reason.
    Unreachable,
    /// No connect or no answer in time.
    TimedOut,
    /// The link closed, or spoke nonsense, before the answer.
    ConnectionLost,
    /// The server is known to be away.
    Down,
    /// It refused `flush_all`, which it must be told before it is trusted.
    FlushRefused,
    /// It failed, and there is no memory to ask another one.
    NoMemory,
}

impl Cause {
    /// The words behind the server's name in `SERVER_ERROR`.
    pub fn text(self) -> &'static str {
        match self {
            Cause::Refused => "connection refused",
            Cause::Unreachable => "unreachable",
            Cause::TimedOut => "timed out",
            Cause::ConnectionLost => "connection lost",
            Cause::Down => "down",
            Cause::FlushRefused => "refused flush_all",
            Cause::NoMemory => "out of memory reading",
        }
    }
}

/// What decides about a server, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// One answer.
    pub timeout: u64,
    /// Timeouts in a row until it counts as down.
    pub failure_limit: u32,
    /// First wait before a probe.
    pub retry: u64,
    /// How long a server is warming; 0: never.
    pub warm: u64,
    /// It can leave its ring: it goes down when it has failed `failure_limit` times in a row in
    /// whatever way, and not by a single failed connect.
    pub eject: bool,
}

/// Where a server stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// It is asked.
    Up,
    /// Away until it is probed at `probe_at`.
    Down {
        /// When to probe.
        probe_at: Time,
    },
    /// A connect or a handshake is on its way.
    Probing,
    /// It is being told what it missed.
    Replaying,
}

/// One server's state and the counts that change it.
#[derive(Debug)]
pub struct Health {
    policy: Policy,
    state: State,
    since: Time,
    wait: u64,
    warming_until: Time,
    failures: u32,
    counted_at: Option<Time>,
    last_byte: Option<Time>,
    last_error: Option<(Cause, Time)>,
    jitter: u64,
}

impl Health {
    /// A server is up until it shows otherwise: its first request finds out. `seed` spreads
    /// the probes of several proxies.
    pub fn new(policy: Policy, now: Time, seed: u64) -> Health {
        Health {
            policy,
            state: State::Up,
            since: now,
            wait: policy.retry,
            warming_until: Time(0),
            failures: 0,
            counted_at: None,
            last_byte: None,
            last_error: None,
            jitter: seed | 1,
        }
    }

    /// Takes a new policy over (reload); the state stays.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// Where it stands.
    pub fn state(&self) -> State {
        self.state
    }

    /// True if it may be asked.
    pub fn is_up(&self) -> bool {
        self.state == State::Up
    }

    /// Since when it has been up, or not.
    pub fn since(&self) -> Time {
        self.since
    }

    /// The last failure and when it was.
    pub fn last_error(&self) -> Option<(Cause, Time)> {
        self.last_error
    }

    /// True while what it lacks may only be missing because it restarted.
    pub fn is_warming(&self, now: Time) -> bool {
        now < self.warming_until
    }

    /// Something was written elsewhere and deleted here: absent does not mean gone.
    pub fn warm(&mut self, now: Time) {
        if self.policy.warm > 0 {
            self.warming_until = self.warming_until.max(now.plus(self.policy.warm));
        }
    }

    /// Its own `uptime` in seconds, as told in the handshake.
    pub fn told_uptime(&mut self, seconds: u64, now: Time) {
        let age = seconds.saturating_mul(SECOND);
        if age < self.policy.warm {
            let left = self.policy.warm - age;
            self.warming_until = self.warming_until.max(now.plus(left));
        }
    }

    /// Bytes came from it.
    pub fn on_bytes(&mut self, now: Time) {
        self.last_byte = Some(now);
        // One that greets well and fails at every request has to leave the ring.
        if !self.policy.eject {
            self.failures = 0;
        }
    }

    /// A request was answered.
    #[inline]
    pub fn on_answer(&mut self) {
        self.failures = 0;
    }

    /// True if single failures of it are borne until they are too many.
    pub fn bears_failures(&self) -> bool {
        self.policy.eject && self.is_up()
    }

    /// A connect failed, or a link was lost. Returns true if there were too many failures in a
    /// row, which is for servers that can be ejected only.
    pub fn on_failure(&mut self, cause: Cause, now: Time) -> bool {
        self.last_error = Some((cause, now));
        if self.bears_failures() {
            self.failures += 1;
            return self.failures >= self.policy.failure_limit;
        }
        false
    }

    /// An answer did not come in time; it was asked for at `sent`. Returns true if that makes
    /// the server go down. Counted once per timeout, and only if it said nothing at all since.
    pub fn on_timeout(&mut self, sent: Time, now: Time) -> bool {
        self.last_error = Some((Cause::TimedOut, now));
        if self.last_byte.is_some_and(|b| b > sent) {
            return false;
        }
        if self.state == State::Replaying {
            // Nobody waits for it; it is told again.
            return true;
        }
        if self
            .counted_at
            .is_some_and(|c| now.since(c) < self.policy.timeout)
            && self.failures > 0
        {
            return false;
        }
        self.counted_at = Some(now);
        self.failures += 1;
        self.is_up() && self.failures >= self.policy.failure_limit
    }

    /// It is away. With `at_once` the first probe is not delayed (a lost link is reconnected
    /// once at once). Returns true if it was up before.
    pub fn go_down(&mut self, cause: Cause, at_once: bool, now: Time) -> bool {
        let was_up = self.is_up();
        self.last_error = Some((cause, now));
        self.failures = 0;
        if was_up {
            self.since = now;
            self.wait = self.policy.retry;
        }
        let probe_at = if at_once {
            now
        } else {
            let wait = self.jittered();
            self.wait = (self.wait.saturating_mul(2)).min(LONGEST_WAIT.max(self.policy.retry));
            now.plus(wait)
        };
        self.state = State::Down { probe_at };
        was_up
    }

    /// The wait with up to a quarter added or taken, so that many proxies do not probe at once.
    fn jittered(&mut self) -> u64 {
        self.jitter ^= self.jitter << 13;
        self.jitter ^= self.jitter >> 7;
        self.jitter ^= self.jitter << 17;
        self.wait - self.wait / 4 + self.jitter % (self.wait / 2 + 1)
    }

    /// Probe as soon as possible: what kept it away has ended.
    pub fn probe_soon(&mut self, now: Time) {
        if let State::Down { probe_at } = &mut self.state {
            *probe_at = (*probe_at).min(now);
        }
    }

    /// When the next probe is due.
    pub fn probe_at(&self) -> Option<Time> {
        match self.state {
            State::Down { probe_at } => Some(probe_at),
            _ => None,
        }
    }

    /// The probe has begun.
    pub fn probing(&mut self) {
        self.state = State::Probing;
    }

    /// The handshake was good; it is being told what it missed.
    pub fn replaying(&mut self) {
        self.state = State::Replaying;
    }

    /// It is trusted again. Returns for how long it was away, in nanoseconds, if it was.
    pub fn go_up(&mut self, now: Time) -> Option<u64> {
        if self.is_up() {
            return None;
        }
        let away = now.since(self.since);
        self.state = State::Up;
        self.since = now;
        self.wait = self.policy.retry;
        self.failures = 0;
        Some(away)
    }
}

/// Memory that one journaled key takes besides its bytes: map entry, box, allocator.
const KEY_COST: usize = 64;

/// The keys that a server missed. Each carries a stamp, so that a delete that was on its way
/// when the key was journaled again does not strike it off.
#[derive(Debug)]
pub struct Journal {
    keys: HashMap<Box<[u8]>, u64>,
    bytes: usize,
    limit: usize,
    flush: Option<u64>,
    stamp: u64,
    overflows: u64,
}

impl Journal {
    /// An empty journal of at most `limit` bytes.
    pub fn new(limit: usize) -> Journal {
        Journal {
            keys: HashMap::new(),
            bytes: 0,
            limit,
            flush: None,
            stamp: 0,
            overflows: 0,
        }
    }

    /// A new bound (reload); what is above it stays until it is worked off.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// The server missed what happened to `key`. Returns the stamp of the entry.
    pub fn add(&mut self, key: &[u8]) -> u64 {
        self.stamp += 1;
        if self.flush.is_some() {
            // A flush covers every key; one that is written while the flush is on its way
            // needs another flush.
            self.flush = Some(self.stamp);
        } else if let Some(stamp) = self.keys.get_mut(key) {
            *stamp = self.stamp;
        } else if self.bytes + key.len() + KEY_COST > self.limit {
            self.overflows += 1;
            self.mark_flush();
        } else {
            self.bytes += key.len() + KEY_COST;
            self.keys.insert(key.into(), self.stamp);
        }
        self.stamp
    }

    /// The server missed a flush, or more keys than can be noted: it will be flushed.
    pub fn mark_flush(&mut self) {
        self.stamp += 1;
        self.flush = Some(self.stamp);
        self.keys = HashMap::new();
        self.bytes = 0;
    }

    /// The stamp of the flush that is due, if one is.
    pub fn flush_due(&self) -> Option<u64> {
        self.flush
    }

    /// The flush with this stamp was answered.
    pub fn flushed(&mut self, stamp: u64) {
        if self.flush == Some(stamp) {
            self.flush = None;
        }
    }

    /// The delete of `key` with this stamp was answered.
    pub fn told(&mut self, key: &[u8], stamp: u64) {
        if self.keys.get(key) == Some(&stamp) {
            self.keys.remove(key);
            self.bytes -= key.len() + KEY_COST;
            if self.keys.is_empty() {
                self.keys = HashMap::new();
            }
        }
    }

    /// All keys with their stamps.
    pub fn keys(&self) -> impl Iterator<Item = (&[u8], u64)> {
        self.keys.iter().map(|(k, s)| (&k[..], *s))
    }

    /// True if half of what may be noted is.
    pub fn is_half_full(&self) -> bool {
        self.bytes >= self.limit / 2
    }

    /// True if the server missed nothing.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.flush.is_none()
    }

    /// Memory used, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many keys are noted.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// How often it was full.
    pub fn overflows(&self) -> u64 {
        self.overflows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy = Policy {
        timeout: SECOND,
        failure_limit: 3,
        retry: SECOND,
        warm: 100 * SECOND,
        eject: false,
    };

    fn at(seconds: f64) -> Time {
        Time((seconds * SECOND as f64) as u64)
    }

    #[test]
    fn three_timeouts_in_a_row_take_it_down_and_no_sooner() {
        let mut h = Health::new(POLICY, at(0.0), 1);
        assert!(!h.on_timeout(at(0.0), at(1.0)));
        assert!(!h.on_timeout(at(0.1), at(1.1)), "same second: counted once");
        assert!(!h.on_timeout(at(0.9), at(1.9)));
        assert!(!h.on_timeout(at(1.0), at(2.0)));
        assert!(h.on_timeout(at(2.0), at(3.0)));
    }

    #[test]
    fn failures_in_a_row_of_any_kind_eject() {
        let policy = Policy {
            eject: true,
            ..POLICY
        };
        let mut h = Health::new(policy, at(0.0), 1);
        assert!(!h.on_failure(Cause::Refused, at(1.0)));
        h.on_bytes(at(1.5));
        assert!(!h.on_failure(Cause::ConnectionLost, at(2.0)));
        h.on_answer();
        assert!(!h.on_failure(Cause::Refused, at(3.0)));
        assert!(!h.on_timeout(at(3.0), at(4.0)));
        assert!(h.on_failure(Cause::Refused, at(5.0)));
        h.go_down(Cause::Refused, false, at(5.0));
        assert!(!h.bears_failures(), "a failed probe is no news");
        let mut other = Health::new(POLICY, at(0.0), 1);
        for second in 1..9 {
            assert!(!other.on_failure(Cause::Refused, at(f64::from(second))));
        }
    }

    #[test]
    fn silence_while_it_is_told_what_it_missed_takes_it_down() {
        let mut h = Health::new(POLICY, at(0.0), 1);
        h.go_down(Cause::Refused, true, at(0.0));
        h.probing();
        h.replaying();
        h.on_bytes(at(0.5));
        assert!(!h.on_timeout(at(0.0), at(1.0)), "slow is not dead");
        assert!(h.on_timeout(at(0.5), at(1.5)));
    }

    #[test]
    fn a_byte_in_between_starts_the_count_again() {
        let mut h = Health::new(POLICY, at(0.0), 1);
        for i in 0..20 {
            let t = f64::from(i) * 1.5;
            assert!(!h.on_timeout(at(t), at(t + 1.0)), "slow is not dead");
            h.on_bytes(at(t + 1.2));
        }
    }

    #[test]
    fn probes_back_off_with_jitter_and_come_back_by_a_good_one_only() {
        let mut h = Health::new(POLICY, at(0.0), 7);
        assert!(h.go_down(Cause::Refused, false, at(10.0)));
        let mut now = at(10.0);
        let mut waits = Vec::new();
        for _ in 0..9 {
            let probe = h.probe_at().expect("down");
            waits.push(probe.since(now) as f64 / SECOND as f64);
            now = probe;
            h.probing();
            assert!(!h.is_up());
            assert!(!h.go_down(Cause::Refused, false, now));
        }
        for (i, w) in waits.iter().enumerate() {
            let nominal = f64::from(1 << i.min(10)).min(30.0);
            assert!(*w >= nominal * 0.74 && *w <= nominal * 1.26, "{i}: {w}");
        }
        h.probing();
        h.replaying();
        assert_eq!(h.go_up(now), Some(now.since(at(10.0))));
        assert!(h.is_up());
        h.go_down(Cause::Refused, false, now);
        let first = h.probe_at().expect("down").since(now);
        assert!(first <= SECOND * 5 / 4, "the wait starts anew");
    }

    #[test]
    fn warming_is_by_the_servers_own_uptime_or_after_a_replay() {
        let mut h = Health::new(POLICY, at(0.0), 1);
        h.told_uptime(1000, at(5.0));
        assert!(!h.is_warming(at(5.0)));
        h.told_uptime(40, at(5.0));
        assert!(h.is_warming(at(64.9)) && !h.is_warming(at(65.1)));
        h.warm(at(70.0));
        assert!(h.is_warming(at(169.0)) && !h.is_warming(at(171.0)));
        let mut never = Health::new(Policy { warm: 0, ..POLICY }, at(0.0), 1);
        never.told_uptime(0, at(0.0));
        never.warm(at(0.0));
        assert!(!never.is_warming(at(0.0)));
    }

    #[test]
    fn a_key_journaled_again_outlives_the_older_delete() {
        let mut j = Journal::new(10_000);
        let first = j.add(b"k");
        let second = j.add(b"k");
        j.told(b"k", first);
        assert_eq!(j.len(), 1);
        j.told(b"k", second);
        assert!(j.is_empty() && j.bytes() == 0);
    }

    #[test]
    fn an_overflow_becomes_a_flush_that_later_writes_renew() {
        let mut j = Journal::new(10 * (KEY_COST + 4));
        for i in 0..11 {
            j.add(format!("k{i:03}").as_bytes());
        }
        assert_eq!((j.len(), j.bytes(), j.overflows()), (0, 0, 1));
        let due = j.flush_due().expect("flush");
        j.add(b"late");
        j.flushed(due);
        assert!(!j.is_empty(), "written after the flush was sent");
        j.flushed(j.flush_due().expect("flush"));
        assert!(j.is_empty());
    }
}
