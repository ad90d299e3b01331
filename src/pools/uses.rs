//! Who is asked for a key: its primary, the backup in its place, or nobody for the moment, as their pair
//! says.
//!
//! ```text
//!  a primary is used ──▶ look at its backups each 50 ms ──▶ answered: a lease for 150 ms from when it was sent
//!                                   │ lists the primary
//!                                   ▼
//!                        nobody is asked for its keys; looks each 10 ms
//! ```
//!
//! Until [`Server::free_until`](super::server::Server::free_until) all leases of a primary last, and
//! nothing of this is looked at.

use super::pairs::Pair;
use super::pending::{Pending, To};
use super::server::{Place, Server};
use super::{NOBODY, Pools, ServerId};
use crate::marks::times::{LEASE, LOOK, LOOK_PARKED, WAIT};
use crate::marks::{Backup, Debt, Use};
use crate::net::Socket;
use crate::time::Time;

/// What a backup's list is worth.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Partner {
    /// It is down, or holds no marks: all is as if there were none.
    Gone,
    /// It has not answered for the length of a lease: nobody waits for it.
    Silent,
    /// It answers, or will.
    Answers,
}

impl<S: Socket> Pools<S> {
    /// Makes a pair of each primary with each backup of its pools; those that are over go when nothing is
    /// left of them.
    pub(super) fn pair_up(&mut self) {
        let mut wanted: Vec<(ServerId, ServerId, bool)> = Vec::new();
        let pools = self.pools.iter().filter(|p| !p.removed && !self.is_alone);
        for pool in pools.filter(|p| !p.config.auto_eject) {
            for primary in &pool.primary_ids {
                let others = pool.backup_ids.iter().filter(|b| *b != primary);
                wanted.extend(others.map(|backup| (*primary, *backup, false)));
            }
        }
        wanted.sort_unstable();
        wanted.dedup();
        // Of two that are each other's backups a line says that all of their keys are kept away.
        let is_one_way = |(a, b, _): &&(ServerId, ServerId, bool)| {
            wanted.binary_search(&(*b, *a, false)).is_err()
        };
        let follow: Vec<_> = wanted
            .iter()
            .filter(is_one_way)
            .map(|(a, b, _)| (*b, *a, true))
            .collect();
        wanted.extend(follow);
        wanted.sort_unstable();
        for id in self.pairs.keys().collect::<Vec<_>>() {
            if let Some(pair) = self.pairs.get_mut(id) {
                let name = (pair.primary, pair.partner, pair.backup.is_some());
                let found = wanted.binary_search(&name);
                pair.is_over = found.is_err();
                if let Ok(at) = found {
                    wanted.remove(at);
                }
                self.list_pair(id);
            }
        }
        for (primary, partner, follows) in wanted {
            let id = self.pairs.insert(match follows {
                true => Pair::of_backup(primary, partner),
                false => Pair::new(primary, partner),
            });
            self.list_pair(id);
        }
        self.note_pairs();
        for id in self.pairs.keys().collect::<Vec<_>>() {
            self.name_primary(id);
        }
    }

    /// Tells servers their pairs.
    pub(super) fn note_pairs(&mut self) {
        for server in self.servers.values_mut() {
            server.pairs.clear();
            server.stands_in_for.clear();
            server.follows.clear();
            server.free_until = Time::NEVER;
        }
        for id in self.pairs.keys().collect::<Vec<_>>() {
            let Some(pair) = self.pairs.get(id) else {
                continue;
            };
            let (primary, partner) = (pair.primary, pair.partner);
            let follows = pair.backup.is_some();
            if let Some(server) = self.servers.get_mut(primary) {
                match follows {
                    true => server.follows.push(id),
                    false => {
                        server.pairs.push(id);
                        server.free_until = Time(0);
                    }
                }
            }
            if let Some(server) = self.servers.get_mut(partner) {
                server.stands_in_for.push(id);
            }
        }
    }

    /// What lines call a primary: its address, where that is known.
    fn name_primary(&mut self, id: usize) {
        let Some(pair) = self.pairs.get_mut(id) else {
            return;
        };
        let Some(server) = self.servers.get(pair.primary) else {
            return;
        };
        if !pair.has_line() {
            let address = server.address().map(|a| a.to_string());
            pair.about = address.unwrap_or_else(|| server.spec.name.clone()).into();
        }
    }

    /// The pair of a primary and a backup.
    pub(super) fn pair_of(&self, primary: ServerId, partner: ServerId) -> Option<usize> {
        let server = self.servers.get(primary)?;
        let is_it = |id: &&usize| self.pairs.get(**id).is_some_and(|p| p.partner == partner);
        server.pairs.iter().find(is_it).copied()
    }

    fn partner(&self, id: ServerId) -> Partner {
        let Some(server) = self.servers.get(id).filter(|s| s.removed.is_none()) else {
            return Partner::Gone;
        };
        if !server.health.is_up() || self.unmarked(server).is_some() {
            return Partner::Gone;
        }
        let token = self.first_link(server).map(|(_, token)| token);
        match server.board.waits_since(token) {
            Some(since) if self.now.since(since) > LEASE => Partner::Silent,
            _ => Partner::Answers,
        }
    }

    /// True if a pair's list can be asked and written.
    pub(super) fn has_partner(&self, id: usize) -> bool {
        let partner = self.pairs.get(id).map_or(NOBODY, |p| p.partner);
        self.partner(partner) == Partner::Answers
    }

    /// True if a pair's list cannot be had at all, so that the pair is as if there were none.
    pub(super) fn is_without_partner(&self, id: usize) -> bool {
        let partner = self.pairs.get(id).map_or(NOBODY, |p| p.partner);
        self.partner(partner) == Partner::Gone
    }

    /// W of a pair, in nanoseconds: nobody waits for others that are not there.
    pub(super) fn wait_of(&self, id: usize) -> u64 {
        let partner = self.pairs.get(id).map_or(NOBODY, |p| p.partner);
        let Some(server) = self.servers.get(partner) else {
            return 0;
        };
        let board = &server.board;
        match board.knows_others() {
            true => board.beacon.wait(self.now),
            false => WAIT,
        }
    }

    /// True if it is known whether others use a pair's backup.
    fn knows_others(&self, id: usize) -> bool {
        let partner = self.pairs.get(id).map_or(NOBODY, |p| p.partner);
        let server = self.servers.get(partner);
        server.is_none_or(|s| s.board.knows_others())
    }

    /// Who is asked for the keys of a pair now. Of a server that is down and a backup without marks: the
    /// backup, whatever comes of it.
    pub(super) fn serves(&mut self, id: usize) -> Use {
        let Some(pair) = self.pairs.get(id) else {
            return Use::Primary;
        };
        let (is_up, partner, wait) = (
            self.is_up(pair.primary),
            self.partner(pair.partner),
            self.wait_of(id),
        );
        let knows_others = self.knows_others(id);
        let now = self.now;
        let Some(pair) = self.pairs.get_mut(id) else {
            return Use::Primary;
        };
        let (closes, has_hold) = (pair.closes, pair.has_hold(now));
        let rules = pair.rules.at(now, wait);
        // Nobody else is there who could have taken the own line out as long as its hold stands.
        let is_own = wait == 0 && has_hold && rules.is_replaced();
        let has_nothing_written = !rules.has_line() && !rules.is_announcing();
        match (partner, rules.serves()) {
            (Partner::Gone, _) if is_up => Use::Primary,
            (Partner::Gone, _) => Use::Partner,
            (Partner::Silent, _) if is_up && has_nothing_written => Use::Primary,
            (_, Use::Primary) if !is_up => Use::Nobody,
            (_, Use::Partner) if closes => Use::Nobody,
            (_, Use::Nobody) if is_own && !closes => Use::Partner,
            (_, Use::Unknown) if is_up || !knows_others => Use::Nobody,
            (_, all) => all,
        }
    }

    /// Until when a primary may be asked for the keys of a pair without another look at it.
    fn free_until(&mut self, id: usize) -> Time {
        let waits = self.pairs.get(id).is_some_and(Pair::is_awaited);
        if waits || self.serves(id) != Use::Primary {
            return Time(0);
        }
        let partner = self.pairs.get(id).map_or(NOBODY, |p| p.partner);
        match (self.partner(partner), self.pairs.get(id)) {
            (Partner::Gone, _) => self.now.plus(LOOK),
            (Partner::Silent, _) | (_, None) => self.now.plus(LOOK_PARKED),
            (Partner::Answers, Some(pair)) => pair.rules.lease_end(),
        }
    }

    /// Looks anew until when a primary may be asked for any key; true if it may now.
    pub(super) fn renew_free(&mut self, primary: ServerId) -> bool {
        let Some(server) = self.servers.get(primary) else {
            return true;
        };
        let (losing, count) = (server.losing, server.pairs.len());
        let mut until = if losing > 0 { Time(0) } else { Time::NEVER };
        for at in 0..count {
            let id = self
                .servers
                .get(primary)
                .and_then(|s| s.pairs.get(at).copied());
            let Some(id) = id else {
                continue;
            };
            let free_until = self.free_until(id);
            until = until.min(free_until);
            let now = self.now;
            let pair = self.pairs.get_mut(id);
            let unseen = pair.and_then(|p| p.rules.at(now, WAIT).is_unseen().then_some(p.partner));
            // Nobody has used the primary for a while. Not now: a line for several keys may be open. What others say
            // of the backup, on the primary, must be known when that is lost.
            for id in unseen.into_iter().flat_map(|partner| [partner, primary]) {
                if let Some(server) = self.servers.get_mut(id) {
                    (server.board.away.used_at, server.board.away.look_at) = (now, now);
                }
            }
        }
        if let Some(server) = self.servers.get_mut(primary) {
            server.free_until = until;
        }
        self.now < until
    }

    // ---- what becomes of a primary

    /// A primary is lost to this magent.
    pub(super) fn primary_lost(&mut self, primary: ServerId) {
        self.end_free(primary);
        self.list_follower(primary);
        let pairs = self
            .servers
            .get(primary)
            .map_or(Vec::new(), |s| s.pairs.clone());
        for id in pairs {
            let (now, wait) = (self.now, self.wait_of(id));
            if let Some(pair) = self.pairs.get_mut(id) {
                pair.rules.lost(now, wait);
                pair.closes = false;
            }
            self.list_pair(id);
        }
    }

    /// A primary has closed a link.
    pub(super) fn primary_closed(&mut self, primary: ServerId) {
        let server = self.servers.get(primary);
        for id in server.map_or(Vec::new(), |s| s.pairs.clone()) {
            let (now, wait) = (self.now, self.wait_of(id));
            if let Some(pair) = self.pairs.get_mut(id) {
                pair.rules.closed(now, wait);
            }
        }
        self.end_free(primary);
    }

    /// A primary answers, on a link that has just begun.
    pub(super) fn primary_answers(&mut self, primary: ServerId) {
        self.end_free(primary);
        for id in self
            .servers
            .get(primary)
            .map_or(Vec::new(), |s| s.follows.clone())
        {
            self.name_primary(id);
            self.list_pair(id);
        }
        let pairs = self
            .servers
            .get(primary)
            .map_or(Vec::new(), |s| s.pairs.clone());
        for id in pairs {
            self.name_primary(id);
            let now = self.now;
            if let Some(pair) = self.pairs.get_mut(id) {
                pair.rules.connected(now);
                if pair.is_awaited() || !pair.others.is_empty() {
                    let partner = pair.partner;
                    self.want_look(partner);
                }
            }
            self.list_pair(id);
        }
    }

    /// Somebody waits for a pair: its servers are asked what is missing.
    pub(super) fn hasten(&mut self, id: usize) {
        let now = self.now;
        let Some(pair) = self.pairs.get_mut(id) else {
            return;
        };
        let (primary, partner) = (pair.primary, pair.partner);
        let answers = pair.rules.at(now, WAIT).answers();
        if !answers && self.is_up(primary) {
            let first = self
                .servers
                .get(primary)
                .and_then(|s| s.links.first().copied());
            self.open_if_idle(first);
        }
        self.want_look(partner);
    }

    /// True if a backup holds what its primary does, as far as this magent knows: nobody has missed mirrors.
    /// Where the two are each other's backups, a line that keeps it away as a primary says so too.
    pub(super) fn may_be_read(&self, primary: ServerId, backup: ServerId) -> bool {
        let Some(server) = self.servers.get(backup) else {
            return true;
        };
        let mut about = server.follows.iter().chain(&server.pairs);
        let is_stale = |p: &Pair| {
            let owes_flush = |b: &Backup| matches!(b.debt(), Debt::Flush { .. });
            p.partner == primary
                && (!p.others.is_empty() || p.backup.as_ref().is_some_and(owes_flush))
        };
        !about.any(|id| self.pairs.get(*id).is_some_and(is_stale))
    }

    /// A server came or went: what it said of others is void.
    pub(super) fn partner_changed(&mut self, partner: ServerId) {
        let pairs = self
            .servers
            .get(partner)
            .map_or(Vec::new(), |s| s.stands_in_for.clone());
        for id in pairs {
            let Some(pair) = self.pairs.get(id) else {
                continue;
            };
            let (primary, is_awaited) = (pair.primary, pair.is_awaited());
            self.end_free(primary);
            if is_awaited {
                self.want_look(partner);
            }
            self.list_pair(id);
        }
    }

    /// Lists the pairs of a primary.
    pub(super) fn list_pairs_of(&mut self, primary: ServerId) {
        let count = self.servers.get(primary).map_or(0, |s| s.pairs.len());
        for at in 0..count {
            let id = self
                .servers
                .get(primary)
                .and_then(|s| s.pairs.get(at).copied());
            let now = self.now;
            let is_told = |p: &mut Pair| p.is_told || p.rules.at(now, WAIT).is_syncing();
            if let Some(id) = id.filter(|id| self.pairs.get_mut(*id).is_some_and(is_told)) {
                self.list_pair(id);
            }
        }
    }

    /// Who keeps a primary away now.
    pub(super) fn keepers_of(&self, server: &Server) -> Vec<String> {
        let pairs = server.pairs.iter().chain(&server.follows);
        let pairs = pairs.filter_map(|id| self.pairs.get(*id));
        let mut all: Vec<String> = Vec::new();
        for pair in pairs {
            all.extend(pair.has_line().then(|| "this magent".to_string()));
            all.extend(pair.keepers());
        }
        all.sort();
        all.dedup();
        all
    }

    // ---- requests

    /// True if answers to writes of keys that these two share wait: their mirrors are not sent yet.
    pub(super) fn has_held(&self, primary: ServerId, backup: ServerId) -> bool {
        let pair = self.pair_of(primary, backup);
        let pair = pair.and_then(|id| self.pairs.get(id));
        pair.is_some_and(|p| !p.held.is_empty())
    }

    /// True if nothing needs to be looked up before this server is asked.
    #[inline]
    pub(super) fn is_free(&self, id: ServerId) -> bool {
        self.servers.get(id).is_none_or(|s| self.now < s.free_until)
    }

    /// The same, after another look at what is known, where that is necessary.
    #[inline]
    pub(super) fn may_ask(&mut self, id: ServerId) -> bool {
        self.is_free(id) || self.renew_free(id)
    }

    /// Who is asked for keys of this place. Where there is no pair: the primary while it is up.
    pub(super) fn used_for(&mut self, place: &Place) -> Use {
        let pair = match self.is_free(place.primary) {
            true => None,
            false => self.pair_of(place.primary, place.backup),
        };
        match pair {
            Some(id) if self.renew_free(place.primary) || self.is_asked_at_once(id) => {
                self.serves(id)
            }
            Some(_) => Use::Nobody,
            None if self.is_up(place.primary) => Use::Primary,
            None => Use::Partner,
        }
    }

    /// True if nothing of a pair, or lost at its primary, must be asked first.
    fn is_asked_at_once(&self, id: usize) -> bool {
        let pair = self.pairs.get(id);
        let losing = |p: &Pair| self.servers.get(p.primary).is_some_and(|s| s.losing > 0);
        !pair.is_some_and(|p| p.is_awaited() || losing(p))
    }

    /// True if this backup is used in the primary's place, or may be; not if it is only not known just now.
    pub(super) fn is_kept_away(&mut self, primary: ServerId, backup: ServerId) -> bool {
        let Some(id) = self.pair_of(primary, backup) else {
            return false;
        };
        let is_used = self.serves(id) == Use::Primary;
        !is_used && self.pairs.get(id).is_some_and(Pair::is_kept_away)
    }

    /// True if a primary is asked for the keys that it shares with this backup.
    pub(super) fn is_used(&mut self, primary: ServerId, backup: ServerId) -> bool {
        let pair = self.pair_of(primary, backup);
        pair.is_none_or(|id| self.serves(id) == Use::Primary)
    }

    /// True if a request of magent's own may be asked of a server although not all of that is free.
    pub(super) fn goes_on(&mut self, server: ServerId, p: &Pending) -> bool {
        let (primary, backup) = match p.to {
            To::Step(key) => match self.flows.table.get(key) {
                Some(flow) if flow.primary == server && flow.is_look() => {
                    let place = self.pools[flow.pool as usize].place(&flow.key, 0);
                    (flow.primary, place.backup)
                }
                _ => return true,
            },
            // Nobody reads it there before it is known who is asked.
            To::Copy(_) => return !self.is_kept_away(p.home.primary, p.home.backup),
            To::Refill(copy) => match self.refills.copies.table.get(copy) {
                Some(copy) if copy.primary == copy.source => (copy.source, copy.job.target),
                Some(copy) => (copy.job.target, copy.source),
                None => return true,
            },
            _ => return true,
        };
        let goes_on = self.is_used(primary, backup);
        if let Some(id) = self.pair_of(primary, backup).filter(|_| !goes_on) {
            self.hasten(id);
        }
        goes_on
    }
}
