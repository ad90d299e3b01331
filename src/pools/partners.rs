//! Who holds the other copy of a key, and which servers are to be refilled from there.

use super::refill::Refill;
use super::server::{Pool, distinct};
use super::{NOBODY, Pools, ServerId};
use crate::net::Socket;
use crate::placement::Farm;
use crate::protocol::is_hidden;

/// Keys that were deleted on one server and are to be copied to it take so many bytes at most; where there
/// are more, its partners are listed.
const MOST_SINGLE: usize = 1024 * 1024;

/// Keys that were listed take so many bytes at most.
const MOST_LISTED: usize = 32 * 1024 * 1024;

/// The same as a part of all memory.
const PART_SINGLE: usize = 64;
const PART_LISTED: usize = 8;

/// How a key comes to a server that should hold it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Way {
    /// Who holds it too.
    pub source: ServerId,
    /// Its primary: the source or the target.
    pub primary: ServerId,
    /// Chooses its links.
    pub hash: u64,
    /// Its pool.
    pub pool: u32,
}

impl<S: Socket> Pools<S> {
    /// The pools that name a server.
    fn pools_naming(&self, id: ServerId) -> impl Iterator<Item = u32> {
        let all = self.servers.get(id);
        let pools = all.map(|s| s.primary_of.iter().chain(&s.backup_of).copied());
        pools.into_iter().flatten()
    }

    /// True if all pools that name a server put its keys to the same partners, so that a key tells where it
    /// belongs.
    pub(super) fn partners_agree(&self, id: ServerId) -> bool {
        let mut pools = self.pools_naming(id).map(|p| &self.pools[p as usize]);
        let Some(first) = pools.next() else {
            return false;
        };
        pools.all(|other| places_alike(first, other))
    }

    /// How a key comes to `target`, by today's rings; `None` if it does not belong there, or nobody else
    /// holds it.
    pub(super) fn way(&self, target: ServerId, key: &[u8]) -> Option<Way> {
        let pool = self.pools_naming(target).next()?;
        let p = &self.pools[pool as usize];
        if p.backups.is_none() || is_hidden(key) {
            return None;
        }
        let place = p.place(key, 0);
        let source = match () {
            () if place.backup == NOBODY => return None,
            () if place.primary == target => place.backup,
            () if place.backup == target => place.primary,
            () => return None,
        };
        Some(Way {
            source,
            primary: place.primary,
            hash: place.hash,
            pool,
        })
    }

    /// The servers that hold the other copies of what a server should hold.
    pub(super) fn sources_of(&self, id: ServerId) -> Vec<ServerId> {
        let Some(server) = self.servers.get(id) else {
            return Vec::new();
        };
        let mut all = Vec::new();
        for pool in &server.primary_of {
            all.extend(&self.pools[*pool as usize].backup_ids);
        }
        for pool in &server.backup_of {
            all.extend(&self.pools[*pool as usize].primary_ids);
        }
        all.retain(|source| *source != id && self.has_same_partners(*source));
        distinct(&all)
    }

    /// A server lacks what it held, or should hold: its partners are to be listed.
    pub(super) fn wants_refill(&mut self, id: ServerId) {
        if !self.refills.pace.is_on() || !self.has_same_partners(id) {
            return;
        }
        if self.sources_of(id).is_empty() {
            return;
        }
        self.refill_of(id);
        self.list_anew(id, false);
        // What was found of it is not true any more.
        self.list_anew(id, true);
    }

    /// A server is to be compared with its partners.
    pub(super) fn wants_verify(&mut self, id: ServerId) {
        let mut job = Refill::new(id);
        job.verify = Some(Box::default());
        self.refills.jobs.push_back(job);
        self.list_anew(id, true);
    }

    /// The refill of a server, or its comparison, begins from its beginning, if there is one.
    pub(super) fn list_anew(&mut self, id: ServerId, verifies: bool) {
        let mut sources = self.sources_of(id);
        if verifies {
            // At last what it has itself and its partners lack.
            sources.push(id);
        }
        let is_its = |r: &Refill| r.target == id && r.verify.is_some() == verifies;
        if self.refills.current().is_some_and(|r| is_its(r)) {
            self.drop_listing();
        }
        let most = MOST_LISTED.min(self.budget.limit() / PART_LISTED);
        if let Some(refill) = self.refills.job(id, verifies) {
            refill.list(sources, most);
            self.refills.copies.void(id);
        }
        self.charge_refill(id);
    }

    /// The listing that is under way is not wanted any more.
    pub(super) fn drop_listing(&mut self) {
        self.listing = None;
        self.refills.ended = None;
        self.budget.recharge(&mut self.refills.listing_charged, 0);
    }

    /// [`Pools::partners_agree`], as of the configuration in force.
    pub(super) fn has_same_partners(&self, id: ServerId) -> bool {
        self.servers.get(id).is_some_and(|s| s.same_partners)
    }

    /// A key was deleted on a server that may have to hold it.
    pub(super) fn wants_key(&mut self, id: ServerId, key: &[u8]) {
        if !self.refills.pace.is_on() {
            return;
        }
        if self.way(id, key).is_none() || !self.has_same_partners(id) {
            return;
        }
        let (most, now) = (self.most_single(), self.now);
        self.refill_of(id).add(key, most, now);
        self.charge_refill(id);
    }

    /// How many bytes of single keys are kept.
    pub(super) fn most_single(&self) -> usize {
        MOST_SINGLE.min(self.budget.limit() / PART_SINGLE)
    }

    fn refill_of(&mut self, id: ServerId) -> &mut Refill {
        let jobs = &mut self.refills.jobs;
        let is_its = |r: &Refill| r.target == id && r.verify.is_none();
        let at = jobs.iter().position(is_its);
        let at = at.unwrap_or_else(|| {
            jobs.push_back(Refill::new(id));
            jobs.len() - 1
        });
        &mut jobs[at]
    }

    /// Charges what the refill of a server holds, and its comparison.
    pub(super) fn charge_refill(&mut self, id: ServerId) {
        let jobs = self.refills.jobs.iter_mut();
        for refill in jobs.filter(|r| r.target == id) {
            let bytes = refill.bytes();
            self.budget.recharge(&mut refill.charged, bytes);
        }
    }
}

/// True if both pools put every key to the same primary and backup.
fn places_alike(a: &Pool, b: &Pool) -> bool {
    a.primary_ids == b.primary_ids
        && a.backup_ids == b.backup_ids
        && a.primaries.spec() == b.primaries.spec()
        && a.backups.as_ref().map(Farm::spec) == b.backups.as_ref().map(Farm::spec)
}
