//! One server's life. No I/O: time and events come in, decisions go out.
//!
//! ```text
//!            timeouts in a row, failed connect, link lost with writes
//!        ┌────────────────────────────────────────────────────────────────────┐
//!        │                                                                    ▼
//!       Up ◀──journal sent── Syncing ◀──── Settling ◀──handshake── Probing ◀──Down
//!        (warming for a while)  │              │                      │        ▲
//!                               └──────────────┴──────────lost────────┴────────┘ backoff
//! ```
//!
//! A server that is not up is asked nothing. It is *settling* while it may still execute what it
//! got over links that were given up, and *syncing* while it is sent what it missed.

mod cause;
mod saved;

pub use cause::Cause;

use crate::time::{SECOND, Time};

/// A server that may still execute writes of links that were given up gets this long after its
/// first good answer: a stopped memcached that goes on has executed all it had received by then.
const SETTLE: u64 = SECOND;

/// Links that were given up are waited for this long after the first good answer.
const LINGER: u64 = 5 * SECOND;

/// Fewer bytes than this in a timeout are no sign of life: a server that works sends whole answers.
const SIGN_OF_LIFE: u64 = 1024;

/// A server has restarted if its start is more than this later than before: `uptime` is whole seconds.
const RESTARTED: u64 = 2 * SECOND;

/// memcached begins to count its uptime at 2, and one that was stopped may tell an uptime of before that:
/// it has not restarted if it answered more than this after its start.
const UPTIME_AHEAD: u64 = 5 * SECOND;

/// How servers are probed, in nanoseconds: the same for all of a process.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Probing {
    /// A server of which nothing was heard for so long is asked for a sign of life; 0: never.
    pub silence: u64,
    /// The longest wait between two probes of a server that is down; a longer first wait wins.
    pub longest_wait: u64,
}

/// What decides about a server, in nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Policy {
    /// One answer.
    pub timeout: u64,
    /// Timeouts in a row until it counts as down.
    pub failure_limit: u32,
    /// First wait before a probe of a server that is down.
    pub retry: u64,
    /// How it is probed.
    pub probing: Probing,
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
    /// It answers since then, and may still execute writes of links that were given up.
    Settling {
        /// When the handshake was answered.
        since: Time,
    },
    /// It is being sent what it missed.
    Syncing,
}

/// One server's state and the counts that change it.
#[derive(Debug)]
pub struct Health {
    policy: Policy,
    state: State,
    since: Time,
    wait: u64,
    warming_until: Time,
    /// What it lacks is being copied to it.
    refilled: bool,
    failures: u32,
    counted_at: Option<Time>,
    /// Bytes that came since its last whole answer, and how many of them there were when a timeout
    /// was last looked at.
    bytes: u64,
    bytes_then: u64,
    last_answer: Option<Time>,
    /// When bytes last went from or to it.
    heard: Time,
    /// When it is to be seen next whether it is silent.
    look_at: Time,
    /// When its process started, in nanoseconds of the proxy's clock; as of its last handshake.
    started: Option<i64>,
    last_error: Option<(Cause, Time)>,
    /// It has answered a request since it was last reconnected at once.
    proved: bool,
    /// A link with unanswered writes did not end by the server's own end of stream.
    unsettled: bool,
    /// How often it went down without answering a request in between.
    flaps: u32,
    /// An operator took it out of use: it is down and not probed.
    drained: bool,
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
            refilled: false,
            failures: 0,
            counted_at: None,
            bytes: 0,
            bytes_then: 0,
            last_answer: None,
            heard: now,
            look_at: now,
            started: None,
            last_error: None,
            proved: true,
            unsettled: false,
            flaps: 0,
            drained: false,
            jitter: seed | 1,
        }
    }

    /// Takes a new policy over (reload); the state stays.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// What decides about it.
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// Where it stands.
    pub fn state(&self) -> State {
        self.state
    }

    /// True if it may be asked.
    #[inline]
    pub fn is_up(&self) -> bool {
        self.state == State::Up
    }

    /// True if writes may be sent to it: it is up, or being sent what it missed.
    pub fn takes_writes(&self) -> bool {
        matches!(self.state, State::Up | State::Syncing)
    }

    /// Since when it has been up, or not.
    pub fn since(&self) -> Time {
        self.since
    }

    /// The last failure and when it was.
    pub fn last_error(&self) -> Option<(Cause, Time)> {
        self.last_error
    }

    /// How often it went down since it last answered a request.
    pub fn flaps(&self) -> u32 {
        self.flaps
    }

    /// True while a key that it lacks may be missing only because it restarted.
    #[inline]
    pub fn is_warming(&self, now: Time) -> bool {
        now < self.warming_until || self.refilled
    }

    /// What it lacks is copied to it from now on, or not any more: until then absent does not mean gone.
    pub fn refill(&mut self, goes_on: bool) {
        self.refilled = goes_on && self.policy.warm > 0;
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

    /// The same uptime, for whoever must know of a restart: true if its start is later than that of the
    /// process which was asked before.
    pub fn has_restarted(&mut self, uptime: u64, now: Time) -> bool {
        let signed = |nanos: u64| i64::try_from(nanos).unwrap_or(i64::MAX);
        let started = signed(now.0).saturating_sub(signed(uptime.saturating_mul(SECOND)));
        let before = self.started.replace(started);
        let answered = self.last_answer.map_or(i64::MIN, |at| signed(at.0));
        before.is_some_and(|before| started > before.saturating_add(signed(RESTARTED)))
            && started.saturating_add(signed(UPTIME_AHEAD)) >= answered
    }

    /// It is at another address: nothing is known of its process.
    pub fn is_another(&mut self) {
        self.started = None;
    }

    /// So many bytes came from it.
    #[inline]
    pub fn on_bytes(&mut self, bytes: usize, now: Time) {
        self.bytes += bytes as u64;
        self.heard = now;
    }

    /// It takes what is written to it.
    #[inline]
    pub fn on_written(&mut self, now: Time) {
        self.heard = now;
    }

    /// An answer came whole, be it in time or not: only what comes behind it counts as bytes.
    pub fn on_whole_answer(&mut self) {
        (self.bytes, self.bytes_then) = (0, 0);
    }

    /// It answered something that does not show that it serves clients.
    pub fn on_sign_of_life(&mut self, now: Time) {
        self.failures = 0;
        self.last_answer = Some(now);
    }

    /// A request was answered in time.
    #[inline]
    pub fn on_answer(&mut self, now: Time) {
        self.on_sign_of_life(now);
        if !self.proved {
            self.proved = true;
            self.flaps = 0;
            self.wait = self.policy.retry;
        }
    }

    /// True if it has answered something after this time.
    pub fn has_answered_since(&self, at: Time) -> bool {
        self.last_answer.is_some_and(|last| last > at)
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

    /// True, once between two answers, if a lost link may be opened anew at once: a server that
    /// closes each link it gets must not keep the proxy busy.
    pub fn reconnects_at_once(&mut self) -> bool {
        std::mem::take(&mut self.proved)
    }

    /// An answer did not come in time; it was asked for at `sent`. Returns true if that makes
    /// the server go down. Counted once per timeout, and only if it gave no sign of life since: a
    /// whole answer, or as many bytes as a large one has in that time.
    pub fn on_timeout(&mut self, sent: Time, now: Time) -> bool {
        self.last_error = Some((Cause::TimedOut, now));
        let recent = self
            .counted_at
            .is_some_and(|c| now.since(c) < self.policy.timeout);
        if recent && self.failures > 0 {
            return false;
        }
        let alive = self.last_answer.is_some_and(|at| at > sent)
            || self.bytes - self.bytes_then >= SIGN_OF_LIFE;
        self.bytes_then = self.bytes;
        if alive {
            self.counted_at = None;
            self.failures = 0;
            return false;
        }
        if !self.is_up() {
            // Nobody waits for it; it is sent again.
            return true;
        }
        self.counted_at = Some(now);
        self.failures += 1;
        self.failures >= self.policy.failure_limit
    }

    /// A server that owed nothing else did not answer a probe in time. Returns true if that makes it go
    /// down: no request of a client had to suffer first. One that can be ejected has failed once more.
    pub fn on_silence(&mut self, asked: Time, now: Time) -> bool {
        let too_many = self.on_timeout(asked, now);
        too_many || (!self.policy.eject && self.failures > 0)
    }

    /// It is away. With `at_once` the first probe is not delayed, unless it went down before and
    /// has answered nothing since. Returns true if it was up before.
    pub fn go_down(&mut self, cause: Cause, at_once: bool, now: Time) -> bool {
        let was_up = self.is_up();
        self.last_error = Some((cause, now));
        self.failures = 0;
        if was_up {
            self.since = now;
            self.flaps += u32::from(!self.drained);
        }
        let probe_at = if self.drained {
            Time::NEVER
        } else if at_once && self.reconnects_at_once() {
            now
        } else {
            let wait = self.jittered();
            let longest = self.policy.probing.longest_wait.max(self.policy.retry);
            self.wait = self.wait.saturating_mul(2).min(longest);
            now.plus(wait)
        };
        self.proved = false;
        self.state = State::Down { probe_at };
        was_up
    }

    /// The wait with up to a quarter taken, so that many proxies do not probe at once.
    fn jittered(&mut self) -> u64 {
        self.jitter ^= self.jitter << 13;
        self.jitter ^= self.jitter >> 7;
        self.jitter ^= self.jitter << 17;
        self.wait - self.jitter % (self.wait / 4 + 1)
    }

    /// When a probe may be due: of a server that is down, or of one that was silent for too long.
    pub fn probe_at(&self) -> Option<Time> {
        match self.state {
            State::Down { probe_at } => Some(probe_at),
            State::Up if self.policy.probing.silence > 0 => Some(self.look_at),
            _ => None,
        }
    }

    /// True if nothing was heard of a server that is up for so long that it should be asked. To be
    /// called at [`Health::probe_at`].
    pub fn is_silent(&mut self, now: Time) -> bool {
        let silence = self.policy.probing.silence;
        let due = self.heard.plus(silence);
        let is_silent = due <= now;
        self.look_at = if is_silent { now.plus(silence) } else { due };
        is_silent
    }

    /// If it is down it is probed now: there is news of it.
    pub fn probe_soon(&mut self, now: Time) {
        if let State::Down { probe_at } = &mut self.state {
            if !self.drained {
                *probe_at = now;
            }
        }
    }

    /// Once it is down, which the caller sees to, it stays so whatever it answers.
    pub fn drain(&mut self) {
        self.drained = true;
    }

    /// The end of [`Health::drain`]: a good probe brings it back, and the first one is due now.
    pub fn end_drain(&mut self, now: Time) {
        self.drained = false;
        self.wait = self.policy.retry;
        self.probe_soon(now);
    }

    /// True from [`Health::drain`] to [`Health::end_drain`].
    pub fn is_drained(&self) -> bool {
        self.drained
    }

    /// The probe has begun.
    pub fn probing(&mut self) {
        self.state = State::Probing;
    }

    /// The handshake was good.
    pub fn settling(&mut self, now: Time) {
        self.state = State::Settling { since: now };
    }

    /// A link that was given up with writes unanswered did not come to its end by the server: what
    /// the server has received of it may still be executed.
    pub fn unsettle(&mut self) {
        self.unsettled = true;
    }

    /// When a settling server may be sent what it missed; `open` says if links that were given up
    /// have not ended yet. `None` if it does not settle.
    pub fn settled_at(&self, open: bool) -> Option<Time> {
        match self.state {
            State::Settling { since } if open => Some(since.plus(LINGER)),
            State::Settling { since } if self.unsettled => Some(since.plus(SETTLE)),
            State::Settling { since } => Some(since),
            _ => None,
        }
    }

    /// It is being sent what it missed.
    pub fn syncing(&mut self) {
        self.unsettled = false;
        self.state = State::Syncing;
    }

    /// It is trusted again. Returns for how long it was away, in nanoseconds, if it was.
    pub fn go_up(&mut self, now: Time) -> Option<u64> {
        if self.is_up() {
            return None;
        }
        let away = now.since(self.since);
        self.state = State::Up;
        self.since = now;
        self.failures = 0;
        Some(away)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy = Policy {
        timeout: SECOND,
        failure_limit: 3,
        retry: SECOND,
        probing: Probing {
            silence: SECOND,
            longest_wait: 30 * SECOND,
        },
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
        h.on_bytes(100, at(1.0));
        assert!(!h.on_failure(Cause::ConnectionLost, at(2.0)));
        h.on_answer(at(2.5));
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
        h.settling(at(0.0));
        h.syncing();
        h.on_answer(at(0.5));
        assert!(!h.on_timeout(at(0.0), at(1.0)), "slow is not dead");
        assert!(h.on_timeout(at(0.5), at(1.5)));
    }

    #[test]
    fn a_drained_server_is_not_probed_before_its_drain_ends() {
        let mut h = Health::new(POLICY, at(0.0), 1);
        h.drain();
        h.go_down(Cause::Drained, true, at(1.0));
        assert_eq!(h.probe_at(), Some(Time::NEVER));
        h.probe_soon(at(2.0));
        assert_eq!((h.probe_at(), h.flaps()), (Some(Time::NEVER), 0));
        h.end_drain(at(3.0));
        assert_eq!(h.probe_at(), Some(at(3.0)));
    }

    #[test]
    fn an_answer_in_between_starts_the_count_again() {
        let mut h = Health::new(POLICY, at(0.0), 1);
        for i in 0..20 {
            let t = f64::from(i) * 1.5;
            assert!(!h.on_timeout(at(t), at(t + 1.0)), "one late answer of many");
            h.on_answer(at(t + 1.2));
        }
    }

    /// A large value that comes slowly is life; a byte a second is not.
    #[test]
    fn a_trickle_is_no_sign_of_life() {
        for (bytes, down) in [(1, true), (SIGN_OF_LIFE as usize, false)] {
            let mut h = Health::new(POLICY, at(0.0), 1);
            let mut went_down = false;
            for i in 0..6 {
                let t = f64::from(i);
                h.on_bytes(bytes, at(t));
                went_down |= h.on_timeout(at(t), at(t + 1.0));
            }
            assert_eq!(went_down, down, "{bytes} bytes a second");
        }
    }

    #[test]
    fn bytes_of_an_earlier_answer_are_no_sign_of_life() {
        let mut h = Health::new(POLICY, at(0.0), 1);
        h.on_bytes(2000, at(0.0));
        h.on_whole_answer();
        let limit = POLICY.failure_limit;
        let downs = (0..limit).map(|i| h.on_timeout(at(1.0), at(2.0 + f64::from(i))));
        assert_eq!(downs.filter(|d| *d).count(), 1);
    }

    #[test]
    fn probes_back_off_with_jitter_until_a_request_is_answered() {
        let mut h = Health::new(POLICY, at(0.0), 7);
        h.on_answer(at(9.0));
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
            assert!(*w >= nominal * 0.74 && *w <= nominal, "{i}: {w}");
        }
        h.probing();
        h.syncing();
        assert_eq!(h.go_up(now), Some(now.since(at(10.0))));
        assert!(h.is_up());
        h.go_down(Cause::ConnectionLost, true, now);
        let wait = h.probe_at().expect("down").since(now);
        assert!(wait > 10 * SECOND, "it greets well and answers nothing");
        h.probing();
        h.go_up(now);
        h.on_answer(now);
        h.go_down(Cause::ConnectionLost, true, now);
        assert_eq!(h.probe_at(), Some(now), "it had answered");
    }

    #[test]
    fn a_first_wait_that_is_longer_than_the_longest_wins() {
        let policy = Policy {
            retry: 60 * SECOND,
            ..POLICY
        };
        let mut h = Health::new(policy, at(0.0), 3);
        let mut now = at(0.0);
        for _ in 0..5 {
            h.go_down(Cause::Refused, false, now);
            let wait = h.probe_at().expect("down").since(now);
            assert!((45 * SECOND..=60 * SECOND).contains(&wait), "{wait}");
            now = now.plus(wait);
            h.probing();
        }
    }

    #[test]
    fn only_silence_is_probed() {
        let mut h = Health::new(POLICY, at(0.0), 1);
        assert_eq!(h.probe_at(), Some(at(0.0)));
        assert!(!h.is_silent(at(0.0)));
        assert_eq!(h.probe_at(), Some(at(1.0)));
        h.on_bytes(1, at(0.9));
        assert!(!h.is_silent(at(1.0)));
        assert_eq!(h.probe_at(), Some(at(1.9)));
        assert!(h.is_silent(at(1.9)));
        assert_eq!(h.probe_at(), Some(at(2.9)), "one in that time");
        h.go_down(Cause::TimedOut, true, at(2.0));
        h.probing();
        assert_eq!(h.probe_at(), None);
        let never = Policy {
            probing: Probing::default(),
            ..POLICY
        };
        assert_eq!(Health::new(never, at(0.0), 1).probe_at(), None);
    }

    #[test]
    fn a_probe_that_is_not_answered_decides_alone_but_where_failures_are_counted() {
        let mut h = Health::new(POLICY, at(0.0), 1);
        h.on_answer(at(1.5));
        assert!(!h.on_silence(at(1.0), at(2.0)), "another link answered");
        assert!(h.on_silence(at(3.0), at(4.0)));
        let policy = Policy {
            eject: true,
            ..POLICY
        };
        let mut h = Health::new(policy, at(0.0), 1);
        let silences = (1..=3).map(|t| h.on_silence(at(f64::from(t)), at(f64::from(t) + 1.0)));
        assert_eq!(silences.collect::<Vec<_>>(), [false, false, true]);
    }

    #[test]
    fn a_start_that_is_later_than_the_last_answer_is_a_restart() {
        let mut h = Health::new(POLICY, at(0.0), 1);
        assert!(!h.has_restarted(1000, at(10.0)), "nothing is known yet");
        h.on_answer(at(20.0));
        // A second more or less is the clocks' affair.
        assert!(!h.has_restarted(1009, at(20.0)));
        assert!(!h.has_restarted(1008, at(20.0)));
        assert!(h.has_restarted(2, at(21.0)));
        assert!(!h.has_restarted(12, at(31.0)), "once");
        // Stopped for 30 s, it tells the time at which it stopped.
        h.on_answer(at(100.0));
        assert!(!h.has_restarted(81, at(130.0)));
        // What cannot be an uptime is no reason to fall over.
        assert!(!h.has_restarted(u64::MAX, at(131.0)));
        assert!(h.has_restarted(0, at(132.0)));
    }

    #[test]
    fn a_server_settles_by_the_ends_of_its_links_or_by_time() {
        let mut h = Health::new(POLICY, at(0.0), 1);
        h.go_down(Cause::TimedOut, false, at(0.0));
        h.probing();
        assert_eq!(h.settled_at(true), None);
        h.settling(at(3.0));
        assert_eq!(h.settled_at(true), Some(at(8.0)));
        assert_eq!(h.settled_at(false), Some(at(3.0)));
        h.unsettle();
        assert_eq!(h.settled_at(false), Some(at(4.0)));
        h.go_down(Cause::ConnectionLost, false, at(3.5));
        h.probing();
        h.settling(at(6.0));
        assert_eq!(h.settled_at(false), Some(at(7.0)), "still to be settled");
        h.syncing();
        h.go_up(at(7.0));
        h.go_down(Cause::ConnectionLost, false, at(8.0));
        h.settling(at(9.0));
        assert_eq!(h.settled_at(false), Some(at(9.0)));
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
        h.refill(true);
        assert!(h.is_warming(at(171.0)));
        h.refill(false);
        assert!(!h.is_warming(at(171.0)));
        let mut never = Health::new(Policy { warm: 0, ..POLICY }, at(0.0), 1);
        never.told_uptime(0, at(0.0));
        never.warm(at(0.0));
        never.refill(true);
        assert!(!never.is_warming(at(0.0)));
    }
}
