//! Which refill or comparison goes on, when, and what is told of its beginning and its end.

use super::figures::Verified;
use super::refill::{Refill, Stage};
use super::verify::FINDINGS;
use super::{Pools, ServerId};
use crate::net::Socket;
use crate::time::{MILLISECOND, SECOND, Time};

/// Keys on their way at a time, and bytes of their items.
const MOST_KEYS: usize = 32;
const MOST_BYTES: usize = 256 * 1024;

/// What a repair has mended is copied within this time, in nanoseconds.
const COPIED: u64 = 10 * SECOND;

/// While a flush is under way, or memory short, it is looked again after so many nanoseconds.
const LOOK_AGAIN: u64 = 10 * MILLISECOND;

impl<S: Socket> Pools<S> {
    /// True if the refill in this place can go on now.
    pub(super) fn can_run(&self, at: usize) -> bool {
        let refill = &self.refills.jobs[at];
        let mut partners = refill.partners.iter();
        let is_another = |r: &Refill| r.verify.is_some() && r.has_begun;
        let waits = refill.verify.is_some()
            && !refill.has_begun
            && self.refills.jobs.iter().any(is_another);
        !waits
            && self.is_usable(refill.target)
            && partners.any(|source| self.is_up(*source))
            && self.handed_over_at(refill.target).is_none()
    }

    /// True if all that the refill in this place has to do is to wait: for keys that are to be fetched
    /// again, or for the servers that are still to be listed, which are away.
    pub(super) fn idles(&self, at: usize) -> bool {
        let (refill, now) = (&self.refills.jobs[at], self.now);
        refill.idles(now) || (self.lacks_sources(at) && refill.next_at() > now)
    }

    /// True if the refill in this place waits for servers that are to be listed and are away.
    pub(super) fn lacks_sources(&self, at: usize) -> bool {
        let refill = &self.refills.jobs[at];
        let is_away = !refill.sources.iter().any(|source| self.is_up(*source));
        matches!(refill.stage, Stage::List(_)) && is_away
    }

    /// A move goes on as long as its keys are copied.
    pub(super) fn watch_moves(&mut self) {
        for at in 0..self.pools.len() {
            if self.pools[at].before.is_none() {
                continue;
            }
            self.watch_rolling(at);
            let is_of_pool = |r: &Refill| {
                let server = self.servers.get(r.target);
                let mut pools = server
                    .into_iter()
                    .flat_map(|s| s.primary_of.iter().chain(&s.backup_of));
                r.lists && r.verify.is_none() && pools.any(|p| *p as usize == at)
            };
            let goes_on = |job: usize| {
                let refill = &self.refills.jobs[job];
                let goes_on = self.handed_over_at(refill.target).is_some()
                    || (self.can_run(job) && !self.lacks_sources(job));
                is_of_pool(refill) && goes_on
            };
            let copying = (0..self.refills.jobs.len()).any(goes_on);
            if let Some(before) = &mut self.pools[at].before {
                before.copying = copying;
            }
        }
    }

    fn name_of(&self, id: ServerId) -> &str {
        self.servers.get(id).map_or("?", |s| &s.spec.name)
    }

    pub(super) fn title_of(&self, id: ServerId) -> &str {
        self.servers.get(id).map_or("?", |s| &s.title)
    }

    pub(super) fn log_begin(&self, refill: &Refill) {
        let others = refill.sources.iter().filter(|id| **id != refill.target);
        let names: Vec<&str> = others.map(|id| self.name_of(*id)).collect();
        let (title, names) = (self.title_of(refill.target), names.join(", "));
        match &refill.verify {
            None => log::warn!("{title}: refill begins, from {names}"),
            Some(verify) if verify.repair.is_some() => {
                log::warn!(
                    "{title}: a magent that used it died; it is compared with {names}, and they are repaired"
                );
            }
            Some(_) => log::warn!("{title}: is compared with {names}"),
        }
    }

    pub(super) fn has_room_for_copy(&self) -> bool {
        let copies = &self.refills.copies;
        copies.len() < MOST_KEYS && copies.bytes() < MOST_BYTES
    }

    /// Clients come first.
    pub(super) fn is_short_of_memory(&self) -> bool {
        self.budget.common() < 2 * MOST_BYTES.min(self.budget.limit() / 8)
    }

    /// A refill or a comparison is over, or given up: tells what came of it.
    pub(super) fn end_job(&mut self, mut refill: Refill, failure: Option<&'static str>) {
        self.budget.recharge(&mut refill.charged, 0);
        let server = self.servers.get_mut(refill.target);
        if let Some(server) = server.filter(|_| refill.verify.is_none()) {
            server.health.refill(false);
        }
        if !refill.lists || (refill.verify.is_none() && failure.is_some()) {
            return;
        }
        let mut p = refill.progress;
        p.skipped += refill.spool.lost();
        let took = self.now.since(p.since) as f64 / SECOND as f64;
        p.since = self.now;
        let title = self.title_of(refill.target);
        let Some(verify) = refill.verify.take() else {
            log::warn!(
                "{title}: refilled in {took:.3} s: {} keys listed, {} copied ({} bytes), {} there already, \
                 {} gone, {} skipped",
                p.listed,
                p.copied,
                p.bytes,
                p.there,
                p.gone,
                p.skipped
            );
            if let Some(server) = self.servers.get_mut(refill.target) {
                server.refilled = Some(p);
            }
            return;
        };
        let found = verify.found;
        let all = FINDINGS.map(|(finding, name)| format!("{} {name}", found.count(finding)));
        let all = all.join(", ");
        match (failure, verify.repair) {
            (None, None) => log::warn!(
                "{title}: compared in {took:.3} s: {} keys listed, {all}",
                p.listed
            ),
            (None, Some(repair)) => log::warn!(
                "{title}: repaired in {took:.3} s: {} keys listed, {all}; {} mended",
                p.listed,
                repair.mended
            ),
            (Some(why), Some(repair)) => log::warn!(
                "{title}: not repaired to the end, since {why}: {all}; {} mended",
                repair.mended
            ),
            (Some(why), None) => log::warn!("{title}: not compared to the end, since {why}: {all}"),
        }
        if let Some(server) = self.servers.get_mut(refill.target) {
            if verify.repair.is_some() {
                server.board.is_unrepaired = failure.is_some();
            }
            server.verified = Some(Box::new(Verified {
                progress: p,
                found,
                mended: verify.repair.map(|r| r.mended),
                failure,
            }));
        }
    }

    /// When a repair that has nothing to do any more is over.
    fn repaired_at(&self, refill: &Refill) -> Option<Time> {
        let repair = refill.repair()?;
        let is_compared = refill.stage == Stage::Copying
            && refill.sources.is_empty()
            && refill.to_go() == 0
            && self.refills.copies.is_over(refill.target, true);
        let waits = self.awaits_copies(refill);
        let at = if waits {
            repair.last.plus(COPIED)
        } else {
            self.now
        };
        is_compared.then_some(at)
    }

    /// True while keys that a repair has mended are on their way; if that takes long, others have it copied too.
    pub(super) fn awaits_copies(&self, refill: &Refill) -> bool {
        let is_its = |r: &Refill| {
            let is_there = r.target == refill.target || refill.partners.contains(&r.target);
            r.verify.is_none() && is_there
        };
        let repair = refill.repair();
        repair.is_some_and(|r| self.now < r.last.plus(COPIED))
            && self.refills.jobs.iter().any(is_its)
    }

    /// When a refill has something to do.
    pub(super) fn refill_at(&self) -> Time {
        let first = self.refills.jobs.front().filter(|_| !self.paused);
        let Some(first) = first else {
            return Time::NEVER;
        };
        let is_under_way = first.has_begun && self.can_run(0) && !self.idles(0);
        // The others wait for it, or it for them.
        let jobs = 0..if is_under_way {
            1
        } else {
            self.refills.jobs.len()
        };
        let at = jobs.map(|at| self.refill_in_place_at(at));
        at.min().unwrap_or(Time::NEVER)
    }

    fn refill_in_place_at(&self, at: usize) -> Time {
        let refill = &self.refills.jobs[at];
        if let Some(at) = self.handed_over_at(refill.target) {
            return at;
        }
        if !self.can_run(at) {
            return Time::NEVER;
        }
        if self.idles(at) {
            return refill.next_at();
        }
        if !refill.has_begun {
            return self.now;
        }
        if let Some(at) = self.repaired_at(refill) {
            return at;
        }
        let lacks_sources = self.lacks_sources(at);
        let stage = match (refill.stage, &self.listing) {
            (Stage::Measure(at), _) => at,
            (Stage::List(_), _) if lacks_sources || refill.spool.len() > 0 => Time::NEVER,
            (Stage::List(at), _) => at,
            (Stage::Listing, Some(listing)) => listing.silent_at(),
            _ => Time::NEVER,
        };
        let is_held = self.is_flushing(refill.target) || self.is_short_of_memory();
        let key = match self.has_room_for_copy() {
            _ if refill.next_at() == Time::NEVER => Time::NEVER,
            true if is_held => self.now.plus(LOOK_AGAIN),
            true => refill.next_at().max(self.refills.pace.ready_at()),
            // An answer wakes it.
            false => Time::NEVER,
        };
        stage.min(key)
    }
}
