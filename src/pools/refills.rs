//! Servers that lack what they should hold are filled from those that hold the other copies, one after
//! the other and each key by itself.
//!
//! ```text
//!  restarted, flushed ─▶ lost_keys ────┐                 ┌─▶ Look ─▶ Fetch ─▶ Add
//!  one key deleted ────▶ wants_key ────┼─▶ jobs, spool ──┤   target   source   target
//!  an operator asks ───▶ wants_verify ─┘                 └─▶ Here ─▶ There
//! ```
//!
//! What is to be compared waits for what is to be filled, and one server is compared at a time.

use super::Pools;
use super::copies::Job;
use super::refill::{Ended, How, Meter, Refill, Stage};
use crate::net::Socket;
use crate::time::{SECOND, Time};
use crate::work::{REQUEST, Work};

/// How late answers are without a refill is measured for so long, in nanoseconds, and with one each time
/// after so long.
const MEASURE: u64 = SECOND;

/// A listing that was cut, or found its server busy, is begun again after so many nanoseconds.
const PAUSE: u64 = SECOND;

/// A comparison begins anew so often when a listing was cut.
const MOST_ROUNDS: u32 = 10;

impl<S: Socket> Pools<S> {
    /// Goes on with the refill that is under way, or begins the next one. A bounded amount.
    pub(super) fn refill_some(&mut self, work: &mut Work) {
        if self.paused {
            return;
        }
        self.interrupt_refills();
        if self.choose_refill() {
            self.follow_listing();
            self.observe();
            self.advance_refill();
            self.copy_some(work);
            self.finish_refill();
        }
        self.watch_moves();
    }

    /// Refills whose target or sources are away wait until they are back.
    fn interrupt_refills(&mut self) {
        let mut at = 0;
        while let Some(refill) = self.refills.jobs.get(at) {
            let target = refill.target;
            let is_stale = !self.has_same_partners(target)
                || refill.partners.is_empty()
                || self.is_too_old(target);
            let is_lost = refill.has_begun && !self.can_run(at);
            let is_listed = self.listing.is_some() || self.refills.ended.is_some();
            if at == 0 && (is_stale || is_lost) && is_listed {
                let verifies = refill.verify.is_some();
                self.drop_listing();
                if !verifies {
                    self.list_again();
                }
            }
            if is_stale {
                self.refills.copies.void(target);
                if let Some(refill) = self.refills.jobs.remove(at) {
                    self.end_job(refill, Some("its partners have changed"));
                }
                continue;
            }
            if is_lost {
                self.refills.copies.void(target);
                self.refills.jobs[at].has_begun = false;
                if self.refills.jobs[at].verify.is_some() {
                    self.list_anew(target, true);
                }
            }
            at += 1;
        }
    }

    /// The listing that was under way told less than all: it is begun again after a pause. Of what is compared
    /// no key may be counted twice.
    fn list_again(&mut self) {
        let now = self.now;
        let Some(refill) = self.refills.jobs.front_mut() else {
            return;
        };
        let job = refill.job();
        if !job.verifies || refill.progress.listed == 0 {
            refill.spool.restart();
            refill.stage = Stage::List(now.plus(PAUSE));
        } else if job.round < MOST_ROUNDS {
            self.list_anew(job.target, true);
        } else if let Some(refill) = self.refills.jobs.pop_front() {
            self.end_job(refill, Some("a server does not tell its keys to the end"));
        }
    }

    /// Brings one to the front that can go on, and begins it. False if none can.
    fn choose_refill(&mut self) -> bool {
        let now = self.now;
        let busy = |at: &usize| self.can_run(*at) && !self.idles(*at);
        let fills = |at: &usize| self.refills.jobs[*at].verify.is_none() && busy(at);
        let all = || 0..self.refills.jobs.len();
        // A listing is for the first one.
        let lists = self.listing.is_some() || self.refills.ended.is_some();
        let first = (lists && busy(&0)).then_some(0);
        let next = first.or_else(|| all().find(fills));
        let Some(at) = next.or_else(|| all().find(busy)) else {
            return self.refills.current().is_some();
        };
        if let Some(mut refill) = self.refills.jobs.remove(at) {
            let is_new = refill.stage == Stage::Measure(Time::NEVER);
            if !refill.has_begun && is_new {
                refill.progress.since = now;
                self.log_begin(&refill);
            }
            refill.has_begun = true;
            self.refills.jobs.push_front(refill);
        }
        true
    }

    /// What follows from how a listing ended.
    fn follow_listing(&mut self) {
        let now = self.now;
        if let Some(listing) = &self.listing {
            if !self.is_up(listing.server) {
                self.end_listing(Ended::Cut);
            } else if listing.silent_at() <= now {
                self.end_listing(Ended::Busy);
            }
        }
        let (Some(ended), Some(refill)) = (self.refills.ended.take(), self.refills.current())
        else {
            return;
        };
        match ended {
            Ended::Whole => refill.stage = Stage::Copying,
            Ended::Busy | Ended::Cut => self.list_again(),
            Ended::Refused if refill.how == How::Hash => {
                refill.how = How::All;
                refill.stage = Stage::List(now);
            }
            Ended::Refused => self.pass_over(),
        }
    }

    /// The first source does not tell its keys.
    fn pass_over(&mut self) {
        let now = self.now;
        let Some(refill) = self.refills.current() else {
            return;
        };
        refill.progress.is_partial = true;
        let source = refill.pass_over(now);
        if let (Some(verify), Some(source)) = (&mut refill.verify, source) {
            verify.untold.push(source);
        }
        let Some(source) = source else {
            return;
        };
        if let Some(server) = self.servers.get_mut(source) {
            server.no_metadump = true;
        }
        self.tell_no_refill(
            source,
            "no server is refilled from it: it does not list its keys (lru_crawler metadump), or is older \
             than memcached 1.6",
        );
    }

    /// Servers that answer later than before are asked for less.
    fn observe(&mut self) {
        let now = self.now;
        let Some(refill) = self.refills.current() else {
            return;
        };
        if refill.observe_at > now {
            return;
        }
        refill.observe_at = now.plus(MEASURE);
        let involved = [Some(refill.target), refill.sources.front().copied()];
        let mut pairs = Vec::new();
        let mut meters = std::mem::take(&mut refill.meters);
        for meter in &mut meters {
            let server = self.servers.get(meter.server());
            let pair = server.map(|s| meter.look(&s.latency.total()));
            pairs.extend(pair.filter(|_| involved.contains(&Some(meter.server()))));
        }
        self.refills.pace.observe(&pairs);
        if let Some(refill) = self.refills.current() {
            refill.meters = meters;
        }
    }

    /// Moves the refill on towards its next listing.
    fn advance_refill(&mut self) {
        let now = self.now;
        let Some(refill) = self.refills.current() else {
            return;
        };
        match refill.stage {
            Stage::Measure(Time::NEVER) => {
                refill.stage = Stage::Measure(now.plus(MEASURE));
                let all = refill.sources.iter().copied().chain([refill.target]);
                let all = all.filter_map(|id| Some((id, self.servers.get(id)?)));
                refill.meters = all
                    .map(|(id, s)| Meter::new(id, &s.latency.total()))
                    .collect();
            }
            Stage::Measure(at) if at <= now => {
                for meter in &mut refill.meters {
                    if let Some(server) = self.servers.get(meter.server()) {
                        meter.begin(&server.latency.total());
                    }
                }
                refill.observe_at = now.plus(MEASURE);
                refill.stage = Stage::List(now);
            }
            Stage::List(at) if at <= now && refill.spool.len() == 0 => self.list_next(),
            Stage::Copying if refill.spool.len() == 0 && !refill.sources.is_empty() => {
                refill.lists_more(now);
            }
            _ => {}
        }
    }

    /// Lists the first source that is there.
    fn list_next(&mut self) {
        let Some(refill) = self.refills.jobs.front() else {
            return;
        };
        let mut sources = refill.sources.iter().copied();
        let Some(at) = sources.position(|id| self.is_up(id)) else {
            return;
        };
        let Some(refill) = self.refills.current() else {
            return;
        };
        if at > 0 {
            refill.sources.rotate_left(at);
            refill.begin_source();
        }
        let (source, how) = (refill.sources[0], refill.how);
        let is_of_no_use =
            self.is_too_old(source) || self.servers.get(source).is_some_and(|s| s.no_metadump);
        if is_of_no_use {
            return self.pass_over();
        }
        if let Some(refill) = self.refills.current() {
            refill.stage = Stage::Listing;
            self.begin_listing(source, how);
        }
    }

    /// Begins copies, as many as pace and servers allow.
    fn copy_some(&mut self, work: &mut Work) {
        let now = self.now;
        if self.refills.pace.ready_at() > now {
            return;
        }
        self.refills.pace.begin_batch(now);
        while !work.is_done() && self.has_room_for_copy() && self.refills.pace.has_more(now) {
            let Some(refill) = self.refills.current() else {
                return;
            };
            let job = refill.job();
            if self.is_flushing(job.target) || self.is_short_of_memory() {
                return;
            }
            let next = self.refills.current().and_then(|r| r.next(now));
            let Some((key, listed)) = next else {
                return;
            };
            work.count(3 * REQUEST);
            match job.verifies {
                true => self.begin_comparing(job, key, listed),
                false => self.begin_copy(job, key, listed),
            }
            self.charge_refill(job.target);
        }
    }

    /// The refill is over when nothing is left to list or to copy.
    fn finish_refill(&mut self) {
        let copies = &self.refills.copies;
        let Some(refill) = self.refills.jobs.front() else {
            return;
        };
        let is_over = refill.has_begun
            && refill.stage == Stage::Copying
            && refill.sources.is_empty()
            && refill.to_go() == 0
            && copies.is_over(refill.target, refill.verify.is_some())
            && !self.awaits_copies(refill);
        if !is_over {
            return;
        }
        if refill.overflowed {
            return self.wants_refill(refill.target);
        }
        if let Some(refill) = self.refills.jobs.pop_front() {
            self.end_job(refill, None);
        }
    }

    /// The configuration has changed: what is on its way may belong elsewhere by now.
    pub(super) fn restart_refills(&mut self, rate: u64) {
        self.refills.pace.set_limit(rate);
        self.refills.copies.void_all();
        self.drop_listing();
        self.renew_partners();
        let jobs = self.refills.jobs.iter();
        let jobs: Vec<Job> = jobs.filter(|r| r.lists).map(Refill::job).collect();
        for job in jobs {
            self.list_anew(job.target, job.verifies);
        }
        if rate == 0 {
            self.stop_refills();
        }
    }

    /// No refill any more.
    pub fn stop_refills(&mut self) {
        self.refills.pace.set_limit(0);
        self.drop_listing();
        for refill in std::mem::take(&mut self.refills.jobs) {
            self.end_job(refill, Some("refills are switched off"));
        }
    }
}
