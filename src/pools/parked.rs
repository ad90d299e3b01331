//! Requests that wait until it is known who may be asked for their keys, and answers to writes that wait
//! until it is known whether they count.
//!
//! ```text
//!  asked, no lease ──▶ losses ──▶ lost_at_primary ──▶ parked ──▶ losses ──▶ primary or backup
//!  written, no lease when it is answered ──▶ held ──▶ answered and mirrored, or lost
//! ```

use super::link::Link;
use super::pairs::Held;
use super::pending::{Answered, Ask, Attempt, Home, Lost, Pending, To};
use super::{Losses, NOBODY, Pools, ServerId};
use crate::buffer::{Queue, Source};
use crate::clients::{Clients, Ticket};
use crate::health::Cause;
use crate::marks::Use;
use crate::marks::times::WAIT;
use crate::net::Socket;
use crate::protocol::forms;
use crate::time::MILLISECOND;

impl<S: Socket> Pools<S> {
    /// A client's request could not be asked at its primary, or its answer did not come: it goes on as its
    /// pair says.
    pub(super) fn lost_at_primary(
        &mut self,
        lost: &Lost<'_>,
        ticket: Ticket,
        clients: &mut Clients<S>,
    ) {
        let p = lost.request;
        let pair = match p.home.several {
            true => None,
            false => self.pair_of(p.home.primary, p.home.backup),
        };
        let Some(id) = pair else {
            return match lost.cause == Cause::KeptAway && !p.home.several {
                true => self.ask_again(lost),
                false => self.fail_over(lost, ticket, clients),
            };
        };
        // What waits already came before it.
        if self.pairs.get(id).is_some_and(|p| !p.parked.is_empty()) {
            return self.park(id, lost);
        }
        let was_sent = lost.was_asked();
        let use_ = self.serves(id);
        let is_bound = use_ == Use::Nobody || (use_ == Use::Primary && self.has_partner(id));
        match use_ {
            Use::Primary if !was_sent => self.ask_again(lost),
            _ if is_bound && was_sent && p.writes() => {
                let (now, is_up) = (self.now, self.is_up(lost.server));
                if let Some(pair) = self.pairs.get_mut(id).filter(|_| is_up) {
                    pair.rules.step(now, |rules| rules.write_is_late());
                }
                self.end_free(lost.server);
                self.park(id, lost);
            }
            // Others' mirrors may still be on their way to the backup.
            Use::Primary
                if is_bound
                    && lost.cause == Cause::ConnectionLost
                    && p.attempt == Attempt::Primary =>
            {
                self.counters.retries += 1;
                self.send_freely(lost.server, p.again(Attempt::Retried), lost.ask);
            }
            Use::Primary | Use::Partner => self.fail_over(lost, ticket, clients),
            Use::Nobody => self.park(id, lost),
            Use::Unknown => self.fail(lost, ticket, clients),
        }
    }

    /// A request that was not sent yet is asked at its primary, as if it had just come.
    fn ask_again(&mut self, lost: &Lost<'_>) {
        let (p, mut server) = (lost.request, lost.server);
        let pool = &self.pools[p.home.pool as usize];
        let mut pending = p.again(p.attempt);
        pending.extend_from(self.now, pool.span());
        let mut key = std::mem::take(&mut self.key);
        key.clear();
        forms::raw_key(p.verb, lost.ask.line_bytes(), &mut key);
        if p.home.ring != pool.ring_number {
            // A reload has moved it, perhaps.
            let place = pool.place(&key, self.draw);
            (pending.home.primary, pending.home.backup) = (place.primary, place.backup);
            pending.home.ring = pool.ring_number;
            let is_other = place.primary != server;
            server = place.primary;
            if is_other && !self.is_free(server) {
                self.key = key;
                return self.lose(server, pending, lost.ask, Cause::KeptAway);
            }
        }
        // It has waited for the ring before already, if it is not just moved.
        let is_moved = pending.home.ring != p.home.ring;
        let is_taken = match p.attempt {
            Attempt::Primary if is_moved => self.takes_steps(&pending, &key, lost.ask),
            Attempt::Primary | Attempt::Retried => self.joins_or_looks(&pending, &key, lost.ask),
            Attempt::Warmed | Attempt::Backup | Attempt::Deleted => false,
        };
        if !is_taken {
            self.sync_first(server, &key, p.hash);
            self.send_freely(server, pending, lost.ask);
        }
        self.key = key;
        self.renew_free(server);
    }

    /// A request waits.
    fn park(&mut self, id: usize, lost: &Lost<'_>) {
        let Some(pair) = self.pairs.get_mut(id) else {
            return;
        };
        let (server, cause) = (lost.server, lost.cause);
        let mut pending = lost.request.again(lost.request.attempt);
        // What was sent goes to the backup.
        if pair.is_kept_away() && !lost.was_asked() {
            pending.look_again();
        }
        if !pair.parked.back().is_some_and(|l| l.cause == cause) {
            pair.parked.push_back(Losses::new(server, cause));
        }
        if let Some(parked) = pair.parked.back_mut() {
            parked.push(pending, lost.ask, &self.budget);
        }
        self.hasten(id);
        self.list_pair(id);
    }

    /// Those that wait are asked, a bounded number in a turn.
    pub(super) fn unpark(&mut self, id: usize) {
        let Some(pair) = self.pairs.get_mut(id) else {
            return;
        };
        let primary = pair.primary;
        let parked = std::mem::take(&mut pair.parked);
        if parked.is_empty() {
            return;
        }
        let count: usize = parked.iter().map(|l| l.pending.len()).sum();
        self.losses.extend(parked);
        self.end_free(primary);
        if let Some(server) = self.servers.get_mut(primary) {
            server.losing += count;
        }
    }

    /// Those that have waited for too long are answered that nobody can be asked: the oldest ones, a bounded
    /// number.
    pub(super) fn expire_parked(&mut self, id: usize, most: usize, clients: &mut Clients<S>) {
        for _ in 0..most {
            let Some(pair) = self.pairs.get_mut(id) else {
                return;
            };
            let Some(first) = pair.parked.front_mut() else {
                return;
            };
            let Some(p) = first.pending.front() else {
                self.budget.recharge(&mut first.charged, 0);
                pair.parked.pop_front();
                continue;
            };
            // Half of what it has for the backup may be waited for.
            let span = self.pools[p.home.pool as usize].span();
            if self.now < p.deadline.plus(p.left(span) / 2) {
                return;
            }
            let Some(p) = first.pending.pop_front() else {
                return;
            };
            let mut bytes = Queue::new();
            bytes.push(Source::Queue(&first.queue, first.at), 0..p.len as usize);
            first.at += u64::from(p.len);
            let end = first.at.max(first.queue.start());
            first.queue.release(end);
            self.budget
                .recharge(&mut first.charged, first.queue.own_bytes());
            let (server, cause) = (first.server, first.cause);
            let lost = Lost {
                server,
                request: &p,
                ask: &Ask::queued(&p, &bytes, bytes.start()),
                cause,
            };
            if let To::Client(ticket) = p.to {
                if p.writes() && lost.was_asked() {
                    self.missed(&lost);
                }
                self.fail(&lost, ticket, clients);
            }
        }
    }

    // ---- answers

    /// A write of a client is late on a link that lives: others are told that the primary is away, and as long as
    /// the backup may not stand in yet, the answer still counts if it comes. False if nobody needs to be told.
    pub(super) fn waits_on(&mut self, link: usize, at: usize) -> bool {
        let Some(p) = self.links.get(link).and_then(|l| l.pending.get(at)) else {
            return false;
        };
        let Home {
            primary, backup, ..
        } = p.home;
        let is_write = p.writes() && !p.home.several && matches!(p.to, To::Client(_));
        let is_at_primary = !matches!(p.attempt, Attempt::Backup | Attempt::Deleted);
        let pool = &self.pools[p.home.pool as usize];
        let more = self.now.plus(WAIT).since(p.deadline);
        if !is_write || !is_at_primary || more > p.left(pool.span()) / 2 {
            return false;
        }
        let Some(id) = self.pair_of(primary, backup) else {
            return false;
        };
        let is_shared = self.has_partner(id) && self.wait_of(id) > 0;
        let may_count = matches!(self.serves(id), Use::Primary | Use::Nobody);
        let now = self.now;
        let pair = self.pairs.get_mut(id);
        let Some(pair) = pair.filter(|p| is_shared && may_count && !p.has_lost_writes()) else {
            return false;
        };
        pair.rules.step(now, |rules| rules.write_is_late());
        let link = self.links.get_mut(link);
        if let Some(p) = link.and_then(|l| l.pending.get_mut(at)) {
            p.waits_on = true;
            p.timeout += (WAIT / MILLISECOND) as u32;
            p.extend(more);
        }
        self.end_free(primary);
        self.hasten(id);
        self.list_pair(id);
        true
    }

    /// True if the answer to a client's write must wait: it was done where others may not look.
    pub(super) fn holds_back(&mut self, p: &Pending) -> bool {
        let Home {
            primary, backup, ..
        } = p.home;
        let is_at_backup = match p.attempt {
            Attempt::Backup => true,
            Attempt::Primary | Attempt::Retried | Attempt::Warmed => false,
            Attempt::Deleted => return false,
        };
        let free_until = self.servers.get(primary).map(|s| s.free_until);
        if !is_at_backup && free_until.is_none_or(|until| self.now < until) {
            return false;
        }
        let Some(id) = self.pair_of(primary, backup).filter(|_| !p.home.several) else {
            return false;
        };
        if self.is_without_partner(id) {
            return false;
        }
        let waits = self.pairs.get(id).is_some_and(|p| !p.held.is_empty());
        match (is_at_backup, self.serves(id)) {
            (true, Use::Partner) => waits,
            // It still stands in, and only nothing more is asked there.
            (true, _) => waits || !self.has_own_lease(id),
            (false, Use::Primary) => waits,
            (false, _) => true,
        }
    }

    fn has_own_lease(&mut self, id: usize) -> bool {
        let (now, wait) = (self.now, self.wait_of(id));
        let pair = self.pairs.get_mut(id);
        pair.is_some_and(|p| {
            let is_own = wait == 0 && p.has_hold(now);
            let rules = p.rules.at(now, wait);
            rules.serves() == Use::Partner || (is_own && rules.is_replaced())
        })
    }

    /// The answer to a write waits.
    pub(super) fn hold(&mut self, answered: &Answered<'_>) {
        let p = answered.request;
        let Some(id) = self.pair_of(p.home.primary, p.home.backup) else {
            return;
        };
        let shelf = self.shelf(id);
        let Some((from, shelf_link)) = self.links.get_two(answered.link, shelf) else {
            return;
        };
        let at = shelf_link.queue.end();
        let source = Source::Queue(&from.queue, answered.at);
        shelf_link.queue.push(source, 0..p.len as usize);
        shelf_link.account(&self.budget);
        let held = Held::new(p.clone(), at, answered.asked_on, answered.reply);
        if let Some(pair) = self.pairs.get_mut(id) {
            pair.held.push_back(held);
        }
        self.hasten(id);
        self.list_pair(id);
    }

    /// The link without a socket on which the requests of held answers stand.
    fn shelf(&mut self, id: usize) -> usize {
        let Some(pair) = self.pairs.get(id) else {
            return 0;
        };
        if let Some(shelf) = pair.shelf.filter(|s| self.links.get(*s).is_some()) {
            return shelf;
        }
        let primary = pair.primary;
        let shelf = self.links.insert(Link::new(primary, usize::MAX));
        if let Some(pair) = self.pairs.get_mut(id) {
            pair.shelf = Some(shelf);
        }
        shelf
    }

    /// The oldest of the answers that wait.
    pub(super) fn take_held(&mut self, id: usize) -> Option<Held> {
        self.pairs.get_mut(id)?.held.pop_front()
    }

    /// Its bytes are not needed any more.
    pub(super) fn release_held(&mut self, id: usize, held: &Held) {
        let Some(pair) = self.pairs.get_mut(id) else {
            return;
        };
        let Some(shelf) = pair.shelf else {
            return;
        };
        if pair.held.is_empty() {
            pair.shelf = None;
            if let Some(mut link) = self.links.remove(shelf) {
                self.budget.recharge(&mut link.charged, 0);
            }
        } else if let Some(link) = self.links.get_mut(shelf) {
            let end = held.at + u64::from(held.request.len);
            link.queue.release(end);
            link.account(&self.budget);
        }
    }

    /// A write that was done at the primary counts as lost there.
    pub(super) fn lose_held(&mut self, id: usize, held: &Held) {
        let Some((shelf, primary)) = self.pairs.get(id).and_then(|p| Some((p.shelf?, p.primary)))
        else {
            return;
        };
        let Some(link) = self.links.get(shelf) else {
            return;
        };
        let p = &held.request;
        let mut bytes = Queue::new();
        bytes.push(Source::Queue(&link.queue, held.at), 0..p.len as usize);
        let ask = Ask::queued(p, &bytes, bytes.start());
        self.lose(primary, p.clone(), &ask, Cause::TimedOut);
    }

    /// What clients asked of a primary's keys and is not answered is lost there, since the backup stands in
    /// for it now. True if there was no more than `most`.
    pub(super) fn lose_under_way(&mut self, id: usize, mut most: usize) -> bool {
        let Some((primary, partner)) = self.pairs.get(id).map(|p| (p.primary, p.partner)) else {
            return true;
        };
        let links = self
            .servers
            .get(primary)
            .map_or(Vec::new(), |s| s.links.clone());
        for id in links {
            let Some(link) = self.links.get_mut(id) else {
                continue;
            };
            let (mut at, mut lost) = (link.settled, Vec::new());
            for p in &mut link.pending {
                let shares = p.home.several || p.home.backup == partner;
                let is_meant = p.home.primary == primary && shares;
                if is_meant && matches!(p.to, To::Client(_)) && p.attempt != Attempt::Backup {
                    if most == 0 {
                        break;
                    }
                    most -= 1;
                    lost.push((at, p.clone()));
                    p.to = To::Nobody;
                }
                at += u64::from(p.len);
            }
            for (at, p) in lost {
                let Some(link) = self.links.get(id) else {
                    continue;
                };
                let mut bytes = Queue::new();
                bytes.push(Source::Queue(&link.queue, at), 0..p.len as usize);
                let ask = Ask::queued(&p, &bytes, bytes.start());
                self.lose(primary, p, &ask, Cause::TimedOut);
            }
        }
        most > 0
    }

    /// True if a write to the primary may still be done there late.
    pub(super) fn has_late_writes(&self, primary: ServerId, partner: ServerId) -> bool {
        let is_late = |p: &Pending| match p.to {
            To::Client(_) | To::Nobody | To::Copy(_) | To::Refill(_) | To::Step(_) => {
                p.writes() && (p.home.backup == partner || p.home.backup == NOBODY)
            }
            _ => false,
        };
        self.owes(primary, is_late)
    }

    /// True if something asked in the primary's place may still be done at the partner.
    pub(super) fn is_used_in_place(&self, primary: ServerId, partner: ServerId) -> bool {
        let is_asked = |p: &Pending| {
            let is_asked = matches!(p.to, To::Client(_) | To::Nobody);
            is_asked && p.attempt == Attempt::Backup && p.home.primary == primary
        };
        self.owes(partner, is_asked)
    }

    fn owes(&self, server: ServerId, is_it: impl Fn(&Pending) -> bool) -> bool {
        let links = self.servers.get(server).map_or(&[][..], |s| &s.links);
        let links = links.iter().filter_map(|l| self.links.get(*l));
        links.flat_map(|l| l.pending.iter()).any(is_it)
    }
}
