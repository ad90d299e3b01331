//! Rings that a reload changes: keys that have other servers from then on are had from where they
//! were, and go there when they change.
//!
//! ```text
//!  ring before   k ─▶ A, copy at B            reload ──▶ ring of today   k ─▶ C, copy at D
//!
//!  asked of A before the reload: answered     get k ─▶ C: absent ─▶ fetch: D, else A, else B ─▶ add k ─▶ C
//!  before anything goes to C (Step::Await)    set k ─▶ C, mirror ─▶ D; delete k ─▶ A, B
//! ```
//!
//! So no server of the ring before has a key that was changed since, whoever is asked for it and
//! whenever: a reload back finds nothing old. Nothing else is deleted there.
//!
//! A server may stand in both rings under two names. It is told by its address, as far as that is
//! known: what was just written there must not be deleted.

use super::flows::Flow;
use super::pending::{Home, Pending};
use super::server::{Pool, Removal, distinct};
use super::{NOBODY, Pools, ServerId};
use crate::net::Socket;
use crate::time::{SECOND, Time};

/// Clients of a pool that is gone are served for 5 seconds, so its servers are kept a little
/// longer, in nanoseconds.
const KEEP: u64 = 6 * SECOND;

/// A removed server gets so long to finish, in nanoseconds; or two requests' time, if that is more.
const FINISH: u64 = 30 * SECOND;

impl<S: Socket> Pools<S> {
    /// True while keys of this pool move.
    #[inline]
    pub(super) fn is_moving(&self, pool: usize) -> bool {
        self.pools[pool].before.is_some()
    }

    /// True while requests that were asked before the reload may be unanswered.
    #[inline]
    pub(super) fn is_handing_over(&self, pool: usize) -> bool {
        let before = self.pools[pool].before.as_ref();
        before.is_some_and(|b| self.now < b.ordered_at)
    }

    /// Who may have a key that its primary lacks, in the order in which they are to be asked: its
    /// backup if the primary is warming, and who had it before if the primary got it by a reload.
    pub(super) fn sources(&self, home: &Home, key: &[u8], is_warming: bool) -> Vec<ServerId> {
        let pool = &self.pools[home.pool as usize];
        let before = self.place_before(home.pool as usize, key);
        // What a stand-in fetches nobody would delete there.
        let has_got = before[0] != NOBODY
            && !self.is_same(before[0], home.primary)
            && (pool.ring.is_none() || pool.place(key, 0).full_ring == NOBODY);
        let is_its = |id: ServerId| match is_warming {
            true => id == home.backup || before.contains(&id),
            false => has_got && before.contains(&id),
        };
        let mut sources = Vec::new();
        for id in [home.backup, before[0], before[1]] {
            let is_another = |other: &ServerId| !self.is_same(id, *other);
            let is_known = !is_another(&home.primary) || !sources.iter().all(is_another);
            let is_whole = id != home.backup || self.may_be_read(home.primary, id);
            if self.is_up(id) && is_whole && is_its(id) && !is_known {
                sources.push(id);
            }
        }
        sources
    }

    /// Primary and backup that a key had before the reload; [`NOBODY`] if its pool does not move.
    fn place_before(&self, pool: usize, key: &[u8]) -> [ServerId; 2] {
        let before = self.pools[pool].before.as_ref();
        before.map_or([NOBODY; 2], |b| b.place(key))
    }

    /// Why nobody knows whether others have the key of a flow, all of which were asked: one of them did
    /// not say so. What was asked of a server before a reload went to its backup then, which spoke
    /// for it; and so did a server for its backup, if it was not warming.
    pub(super) fn doubt<'a>(&self, flow: &'a Flow) -> Option<&'a [u8]> {
        let [primary, backup] = self.place_before(flow.pool as usize, &flow.key);
        let today = self.pools[flow.pool as usize].place(&flow.key, 0).backup;
        // The primary of today said so first.
        let lacks_it = |id: ServerId| {
            let mut asked = flow.asked.iter();
            id == flow.primary || asked.any(|a| a.server == id && a.failure.is_none())
        };
        let is_warming = |id: ServerId| {
            let server = self.servers.get(id);
            server.is_some_and(|s| s.health.is_warming(self.now))
        };
        flow.asked.iter().find_map(|asked| {
            let failure = asked.failure.as_deref()?;
            let is_known = match asked.server {
                id if id == primary => lacks_it(backup),
                id if id == backup => lacks_it(primary) && !is_warming(primary),
                // The move has ended meanwhile.
                id => id != today,
            };
            (!is_known).then_some(failure)
        })
    }

    /// The server that held a key before the reload, as long as it may owe answers about it that
    /// were asked for then: what is asked of the key now must not overtake that.
    pub(super) fn awaited(&self, p: &Pending, key: &[u8]) -> Option<ServerId> {
        let before = self.pools[p.home.pool as usize].before.as_ref()?;
        let [old, _] = before.place(key);
        if old == p.home.primary || self.now >= before.ordered_at {
            return None;
        }
        let server = self.servers.get(old)?;
        let link = self.links.get(server.link_for(p.hash))?;
        let owes =
            link.owes_from_before() || server.losing > 0 || self.flows.find(old, p.hash).is_some();
        owes.then_some(old)
    }

    /// A request changed a key, or may have: where the ring before had it, it goes. One that was
    /// itself asked before the reload is a thing of that ring.
    pub(super) fn leave(&mut self, p: &Pending, key: &[u8]) {
        if p.home.ring == self.pools[p.home.pool as usize].ring_number {
            self.leave_key(p.home.pool as usize, key);
        }
    }

    /// A server may still run a write that was asked before a reload gave its key to others.
    pub(super) fn leave_behind(&mut self, server: ServerId, p: &Pending, key: &[u8]) {
        let pool = &self.pools[p.home.pool as usize];
        let now = pool.place(key, 0);
        let stays = self.is_same(server, now.primary) || self.is_same(server, now.backup);
        if p.home.ring != pool.ring_number && !stays {
            self.invalidate(server, key, now.hash);
        }
    }

    /// [`Pools::leave`] where no request is at hand.
    pub(super) fn leave_key(&mut self, pool: usize, key: &[u8]) {
        let Some(before) = &self.pools[pool].before else {
            return;
        };
        let (old, now) = (before.place(key), self.pools[pool].place(key, 0));
        for id in old {
            let stays = self.is_same(id, now.primary) || self.is_same(id, now.backup);
            if id == NOBODY || stays {
                continue;
            }
            self.invalidate(id, key, now.hash);
            if let Some(before) = &mut self.pools[pool].before {
                before.deleted += 1;
            }
        }
    }

    /// A key was fetched: counts it if it is had from where it was before a reload.
    pub(super) fn count_fetched(&mut self, flow: &Flow) {
        let pool = &mut self.pools[flow.pool as usize];
        let backup = pool.place(&flow.key, 0).backup;
        if let Some(before) = pool.before.as_mut().filter(|_| flow.source != backup) {
            before.fetched += 1;
            self.wants_key(backup, &flow.key);
        }
    }

    /// A key was copied to its primary in the background.
    pub(super) fn note_moved(&mut self, at: usize, key: &[u8], source: ServerId) {
        let pool = &mut self.pools[at];
        let place = pool.place(key, 0);
        let Some(before) = &mut pool.before else {
            return;
        };
        before.copied += u64::from(before.place(key)[0] != place.primary);
        if source != place.backup {
            self.wants_key(place.backup, key);
        }
    }

    /// Servers that got keys of a pool are filled with them.
    pub(super) fn fill_moved(&mut self, at: usize) {
        let pool = &self.pools[at];
        let Some(before) = &pool.before else {
            return;
        };
        let (primaries, backups) = before.differs(pool);
        let mut targets = Vec::new();
        if primaries {
            targets.extend(distinct(&pool.primary_ids));
        }
        // They have them from their primaries.
        if backups {
            targets.extend(distinct(&pool.backup_ids));
        }
        for target in targets {
            self.wants_refill(target);
        }
    }

    /// Until when nothing is copied to a server: requests that were asked before a reload may be unanswered.
    pub(super) fn handed_over_at(&self, target: ServerId) -> Option<Time> {
        let server = self.servers.get(target)?;
        let pools = server.primary_of.iter().chain(&server.backup_of);
        let before = pools.filter_map(|p| self.pools[*p as usize].before.as_ref());
        before
            .map(|b| b.copied_at())
            .filter(|at| *at > self.now)
            .max()
    }

    /// The home of one of the keys of a request with several, in the ring in which that was asked.
    pub(super) fn home_of(&self, several: &Home, key: &[u8]) -> Home {
        let pool = &self.pools[several.pool as usize];
        let before = pool.before.as_ref();
        let backup = match before.filter(|_| several.ring != pool.ring_number) {
            Some(before) => before.place(key)[1],
            None => pool.place(key, 0).backup,
        };
        Home {
            backup,
            several: false,
            ..*several
        }
    }

    /// The backup that is to follow a write which its primary has answered. If it was asked before a
    /// reload that left the key its primary, that is today's, and the one before is left.
    pub(super) fn mirror_to(&mut self, home: &Home, key: &[u8]) -> ServerId {
        let at = home.pool as usize;
        let pool = &self.pools[at];
        if pool.before.is_none() {
            return home.backup;
        }
        let now = pool.place(key, 0);
        if home.ring != pool.ring_number && home.primary != now.primary {
            return home.backup;
        }
        let is_asked_before = home.ring != pool.ring_number;
        self.leave_key(at, key);
        if is_asked_before {
            now.backup
        } else {
            home.backup
        }
    }

    /// A reload has changed the ring of a pool, and its servers are known.
    pub(super) fn begin_move(&mut self, at: usize) {
        let pool = &self.pools[at];
        let Some(before) = &pool.before else {
            return;
        };
        let (name, seconds) = (&pool.config.name, pool.config.warm.as_secs());
        log::warn!(
            "pool {name}: its ring has changed; for {seconds} s keys that moved are fetched from \
             where they were"
        );
        let has_backups = pool.backups.is_some();
        for id in before.servers() {
            let Some(server) = self.servers.get_mut(id) else {
                continue;
            };
            // Without a backup nobody has noted what it may still run: its keys were nowhere else.
            if !has_backups && server.given_up > 0 {
                log::warn!(
                    "{}: hangs while its keys move; it will be flushed when it is back",
                    server.title
                );
                server.journal.mark_flush();
            }
            for link in &server.links {
                if let Some(link) = self.links.get_mut(*link) {
                    link.ring_moves();
                }
            }
        }
    }

    /// How far the move of a pool's keys is; `None` if they do not move.
    pub fn progress(&self, at: usize) -> Option<String> {
        let pool = &self.pools[at];
        let before = pool.before.as_ref()?;
        let (since, of) = (
            self.now.since(before.since) / SECOND,
            pool.config.warm.as_secs(),
        );
        let (fetched, deleted, copied) = (before.fetched, before.deleted, before.copied);
        let state = if before.copying { ", copying" } else { "" };
        let waits = before.rolling.shown();
        Some(format!(
            "{waits}{since} of {of} s, {fetched} keys fetched, {deleted} changed, {copied} copied{state}"
        ))
    }

    /// When the next move ends.
    pub(super) fn next_move_ends(&self) -> Time {
        let moving = |p: &Pool| {
            let before = p.before.as_ref()?;
            Some(before.ends_at(p.config.warm).min(before.rolling.next_at()))
        };
        let ends = self.pools.iter().filter_map(moving);
        ends.min().unwrap_or(Time::NEVER)
    }

    /// Ends the moves whose time is over.
    pub(super) fn end_moves(&mut self) {
        for at in 0..self.pools.len() {
            let pool = &mut self.pools[at];
            let warm = pool.config.warm;
            let Some(before) = pool.before.take_if(|b| b.ends_at(warm) <= self.now) else {
                continue;
            };
            let (name, fetched, deleted) = (&pool.config.name, before.fetched, before.deleted);
            log::warn!(
                "pool {name}: its keys have moved: {fetched} were fetched, {deleted} changed, {} copied",
                before.copied
            );
        }
        self.renew_partners();
        self.release_servers();
    }

    /// The next reload ends the moves that are under way, if it succeeds; or it does not.
    pub fn end_moves_at_reload(&mut self, ends: bool) {
        self.ends_moves = ends;
    }

    /// An operator has ended the moves by a reload.
    pub(super) fn break_moves(&mut self) {
        if !std::mem::take(&mut self.ends_moves) {
            return;
        }
        for pool in &mut self.pools {
            if let Some(before) = pool.before.take() {
                let (name, copied) = (&pool.config.name, before.copied);
                log::warn!(
                    "pool {name}: an operator has ended the move of its keys: {copied} were copied"
                );
            }
        }
    }

    /// Servers that no pool names any more go, but for those that keys move from.
    pub(super) fn release_servers(&mut self) {
        let mut moving: Vec<ServerId> = Vec::new();
        for pool in &self.pools {
            if let Some(before) = &pool.before {
                moving.extend(before.servers());
                moving.extend(pool.primary_ids.iter().chain(&pool.backup_ids));
            }
        }
        moving.sort_unstable();
        let all: Vec<ServerId> = self.servers.keys().collect();
        for id in all {
            let Some(server) = self.servers.get_mut(id) else {
                continue;
            };
            server.moves = moving.binary_search(&id).is_ok();
            if !server.is_named() && !server.moves {
                self.remove_server(id);
            }
        }
    }

    fn remove_server(&mut self, id: ServerId) {
        let Some(server) = self.servers.get_mut(id) else {
            return;
        };
        if server.removed.is_some() {
            return;
        }
        let spans = server.connect_timeout + server.timeout;
        server.removed = Some(Removal {
            keep: self.now.plus(KEEP),
            until: self.now.plus(FINISH.max(2 * spans)),
        });
        log::info!(target: crate::logger::NOTICE, "{}: no longer configured", server.title);
        // Clients that wait for room may go where their keys are now.
        for link in server.links.clone() {
            self.list_link(link);
        }
    }
}
