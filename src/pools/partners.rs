//! Who holds the other copy of a key, and which servers are to be refilled from there.

use super::refill::Refill;
use super::server::{Pool, Server, distinct};
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
    /// Who should hold it too; [`NOBODY`] if it has no backup.
    pub partner: ServerId,
    /// Who had it before a reload, if its primary lacks it; else [`NOBODY`].
    pub before: [ServerId; 2],
    /// Its primary: the target or the partner.
    pub primary: ServerId,
    /// Chooses its links.
    pub hash: u64,
    /// Its pool.
    pub pool: u32,
}

impl Way {
    /// Who may have it, in the order in which they are asked.
    pub fn sources(&self) -> impl Iterator<Item = ServerId> {
        let all = [self.partner, self.before[0], self.before[1]];
        all.into_iter().filter(|id| *id != NOBODY)
    }
}

impl<S: Socket> Pools<S> {
    /// True if a server is there and older than meta commands (1.6): it is not asked for keys, takes none, and is sent
    /// no value by them, since that would be a line to it, with an answer of its own.
    pub fn is_too_old(&self, id: ServerId) -> bool {
        self.servers
            .get(id)
            .is_some_and(|s| s.health.is_up() && !s.meta)
    }

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
        if (p.backups.is_none() && p.before.is_none()) || is_hidden(key) {
            return None;
        }
        let place = p.place(key, 0);
        let partner = match () {
            () if place.primary == target => place.backup,
            () if place.backup == target => place.primary,
            () => return None,
        };
        let mut way = Way {
            partner,
            before: [NOBODY; 2],
            primary: place.primary,
            hash: place.hash,
            pool,
        };
        // Nobody would delete there what a stand-in gets.
        if place.primary == target && place.full_ring == NOBODY {
            way.before = self.givers(pool as usize, key, &way);
        }
        way.sources().next().is_some().then_some(way)
    }

    /// Who had a key before a reload gave it other servers; nobody twice, under whatever name.
    fn givers(&self, pool: usize, key: &[u8], way: &Way) -> [ServerId; 2] {
        let Some(before) = &self.pools[pool].before else {
            return [NOBODY; 2];
        };
        let [old, copy] = before.place(key);
        let not = |id: ServerId, others: &[ServerId]| {
            let is_known = others.iter().any(|other| self.is_same(id, *other));
            if is_known { NOBODY } else { id }
        };
        let first = not(old, &[way.primary, way.partner]);
        [first, not(copy, &[way.primary, way.partner, old])]
    }

    /// One server, under two names perhaps.
    pub(super) fn is_same(&self, a: ServerId, b: ServerId) -> bool {
        let address = |id| self.servers.get(id).and_then(|s| s.address());
        a == b || address(a).is_some_and(|at| address(b) == Some(at))
    }

    /// The servers that should hold the other copies of what a server holds.
    pub(super) fn partners_of(&self, id: ServerId) -> Vec<ServerId> {
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

    /// The servers that may hold what a server should hold: its partners, and where keys were before a
    /// reload made it their primary.
    pub(super) fn sources_of(&self, id: ServerId) -> Vec<ServerId> {
        let mut all = self.partners_of(id);
        let pools = self.servers.get(id).map_or(&[][..], |s| &s.primary_of);
        for at in pools {
            let pool = &self.pools[*at as usize];
            let Some(before) = &pool.before else {
                continue;
            };
            let listable = before.listable.iter();
            let listable = listable.filter(|(giver, pools)| self.may_list(*giver, pools));
            all.extend(listable.map(|(giver, _)| *giver));
        }
        all.retain(|source| !self.is_same(*source, id));
        distinct(&all)
    }

    /// True if a server that these pools named has no keys of others today.
    fn may_list(&self, id: ServerId, pools: &[u32]) -> bool {
        let mut today = self.pools_naming(id).peekable();
        let is_alone = today.peek().is_none() || self.has_same_partners(id);
        is_alone && today.all(|pool| pools.contains(&pool))
    }

    /// Keys of a pool are about to move: notes which servers of its ring before may be listed. The other
    /// servers are still those of the configuration before.
    pub(super) fn note_listable(&mut self, at: usize) {
        let Some(before) = &self.pools[at].before else {
            return;
        };
        let ids = distinct(&before.servers().collect::<Vec<_>>());
        let ids = ids.into_iter().filter(|id| self.has_same_partners(*id));
        let listable = ids.map(|id| (id, self.pools_naming(id).collect()));
        let listable: Vec<(ServerId, Vec<u32>)> = listable.collect();
        if let Some(before) = &mut self.pools[at].before {
            before.listable = listable;
        }
    }

    /// The servers that a refill or a comparison may have to do with.
    fn partners_for(&self, id: ServerId, verifies: bool) -> Vec<ServerId> {
        match verifies {
            true => self.partners_of(id),
            false => self.sources_of(id),
        }
    }

    /// Rings have changed: what is copied has other sources.
    pub(super) fn renew_partners(&mut self) {
        for at in 0..self.refills.jobs.len() {
            let job = self.refills.jobs[at].job();
            let partners = self.partners_for(job.target, job.verifies);
            let refill = &mut self.refills.jobs[at];
            refill.partners = partners;
            if refill.forget_sources() && at == 0 {
                self.drop_listing();
            }
        }
    }

    /// A server lacks what it held, or should hold: its partners are to be listed.
    pub(super) fn wants_refill(&mut self, id: ServerId) {
        if !self.refills.pace.is_on() || !self.has_same_partners(id) {
            return;
        }
        if self.sources_of(id).is_empty() {
            return;
        }
        if self.is_too_old(id) {
            return self.tell_no_refill(id, "is not refilled: it is older than memcached 1.6");
        }
        self.refill_of(id);
        self.list_anew(id, false);
        self.keep_missing(id);
        // What was found of it is not true any more.
        self.list_anew(id, true);
    }

    /// Says once of a server why nothing is copied to it, or from it.
    pub(super) fn tell_no_refill(&mut self, id: ServerId, why: &str) {
        let Some(server) = self.servers.get_mut(id) else {
            return;
        };
        if !std::mem::replace(&mut server.is_told, true) {
            log::warn!("{}: {why}", server.title);
        }
    }

    /// A server lost what it held: until it is refilled absent does not mean gone there.
    pub(super) fn lost_keys(&mut self, id: ServerId) {
        self.wants_refill(id);
        let is_primary = |s: &&mut Server| !s.primary_of.is_empty();
        let is_refilled = self.refills.of(id).is_some_and(|r| r.lists);
        if let Some(server) = self.servers.get_mut(id).filter(is_primary) {
            server.health.refill(is_refilled);
        }
    }

    /// A server is to be compared with its partners.
    pub(super) fn wants_verify(&mut self, id: ServerId) {
        let mut job = Refill::new(id);
        job.verify = Some(Box::default());
        self.refills.jobs.push_back(job);
        self.list_anew(id, true);
    }

    /// A server may lack what it should hold: a repair under way deletes nothing any more.
    pub(super) fn keep_missing(&mut self, id: ServerId) {
        let job = self.refills.job(id, true).and_then(|r| r.verify.as_mut());
        if let Some(repair) = job.and_then(|v| v.repair.as_mut()) {
            repair.deletes = false;
        }
    }

    /// Why a server is not compared, if its state is no reason.
    pub(super) fn not_compared(&self, id: ServerId) -> Option<&'static str> {
        match () {
            () if !self.refills.pace.is_on() => {
                Some("is not compared: refills are switched off (--refill 0)")
            }
            () if !self.has_same_partners(id) => Some("has other partners in another pool"),
            () if self.partners_of(id).is_empty() => Some("has no partner"),
            () => None,
        }
    }

    /// The refill of a server, or its comparison, begins from its beginning, if there is one.
    pub(super) fn list_anew(&mut self, id: ServerId, verifies: bool) {
        let partners = self.partners_for(id, verifies);
        let mut sources = partners.clone();
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
            refill.partners = partners;
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
        let is_its = |r: &Refill| r.target == id && r.verify.is_none();
        let at = self.refills.jobs.iter().position(is_its);
        let at = at.unwrap_or_else(|| {
            let mut refill = Refill::new(id);
            refill.partners = self.sources_of(id);
            self.refills.jobs.push_back(refill);
            self.refills.jobs.len() - 1
        });
        &mut self.refills.jobs[at]
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
