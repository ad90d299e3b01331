//! What follows for a pair from what became of its servers, from what looks show and from the time: its line
//! is written and taken out, the backup stands in and stops doing so, what waits is asked and answered.
//!
//! ```text
//!  lost, late ─▶ announce ─▶ W ─▶ the backup stands in ─▶ the primary answers all who keep it away
//!                                                               │
//!  used again ◀─ line out ◀─ it was told all ◀─ nothing is under way at the backup ◀─┘
//! ```

use super::pairs::{Held, Pair};
use super::pending::{Attempt, To};
use super::{NOBODY, Pools, ServerId};
use crate::clients::Clients;
use crate::marks::times::{PATIENCE, WAIT};
use crate::marks::{Debt, Use};
use crate::net::Socket;
use crate::time::{MILLISECOND, Time};
use crate::work::{REQUEST, Work};

/// A primary that others keep away and that does not answer a probe for so long, in nanoseconds, is lost
/// to this magent too.
const PROBE: u64 = 50 * MILLISECOND;

/// So many requests or answers of a pair are seen to at a time.
const SOME: usize = 512;

impl<S: Socket> Pools<S> {
    /// Looks after the pairs for which something has changed.
    pub(super) fn advance_pairs(&mut self, work: &mut Work, clients: &mut Clients<S>) {
        for _ in 0..self.to_advance.len() {
            if work.is_done() {
                return;
            }
            let Some(id) = self.to_advance.take() else {
                return;
            };
            if let Some(pair) = self.pairs.get_mut(id) {
                pair.listed = false;
                self.advance_pair(id, work, clients);
            }
        }
    }

    fn advance_pair(&mut self, id: usize, work: &mut Work, clients: &mut Clients<S>) {
        work.count(REQUEST);
        if self.pairs.get(id).is_some_and(|p| p.backup.is_some()) {
            self.advance_follower(id);
            return self.drop_if_over(id);
        }
        self.see_state(id);
        if self.has_partner(id) {
            self.go_away(id);
            self.come_back(id);
            self.see_parked(id);
        }
        self.let_go(id, work, clients);
        // A journal that overflows while the own line stands waits until that is out.
        if let Some(primary) = self.pairs.get(id).map(|p| p.primary) {
            self.resync_if_flushed(primary);
        }
        self.drop_if_over(id);
    }

    /// A primary that is down is lost, whenever that was found out.
    fn see_state(&mut self, id: usize) {
        let (now, wait) = (self.now, self.wait_of(id));
        let primary = self.pairs.get(id).map_or(NOBODY, |p| p.primary);
        let is_up = self.is_up(primary);
        let links = self.servers.get(primary).map_or(&[][..], |s| &s.links);
        let mut links = links.iter().filter_map(|l| self.links.get(*l));
        let is_open = is_up && links.any(|l| l.is_up());
        let health = self.servers.get(primary).map(|s| &s.health);
        let has_answered = health.is_some_and(|h| h.has_answered_since(Time(0)));
        let Some(pair) = self.pairs.get_mut(id) else {
            return;
        };
        if has_answered {
            pair.rules.step(now, |rules| rules.know());
        }
        let rules = pair.rules.at(now, wait);
        // A reload has made the pair of servers that were there.
        if is_open && !rules.answers() {
            pair.rules.connected(now);
            let partner = pair.partner;
            return self.want_look(partner);
        }
        if !is_up && !rules.has_line() && !rules.is_announcing() {
            pair.rules.lost(now, wait);
        }
    }

    /// The way to the backup.
    fn go_away(&mut self, id: usize) {
        let (now, wait) = (self.now, self.wait_of(id));
        let Some(pair) = self.pairs.get_mut(id) else {
            return;
        };
        let (primary, partner) = (pair.primary, pair.partner);
        if pair.rules.at(now, wait).is_announcing() {
            if pair.change.is_none() {
                self.announce(id);
                self.copy_nothing_from(primary);
            }
            return;
        }
        if pair.rules.at(now, wait).has_late_write() && !self.has_late_writes(primary, partner) {
            if let Some(pair) = self.pairs.get_mut(id) {
                // Those that wait to go to the backup had no answer.
                let is_answered = !pair.has_lost_writes();
                pair.rules.step(now, |rules| match is_answered {
                    true => rules.late_answer(),
                    false => rules.late_gone(),
                });
            }
        }
        let Some(pair) = self.pairs.get_mut(id) else {
            return;
        };
        // Own mirrors went out before the line on the same link.
        pair.rules.step(now, |rules| rules.replace(true));
        if pair.rules.at(now, wait).has_line() {
            self.renew_hold(id);
        }
    }

    /// The way back.
    fn come_back(&mut self, id: usize) {
        let (now, wait) = (self.now, self.wait_of(id));
        let Some(pair) = self.pairs.get_mut(id) else {
            return;
        };
        let (primary, partner, gone) = (pair.primary, pair.partner, pair.gone(now));
        let rules = pair.rules.at(now, wait);
        // The late answers have come before anybody may have used the backup.
        if rules.may_withdraw() && pair.change.is_none() {
            return self.take_line_or_look(id, partner);
        }
        let (stands_in, debt) = (rules.stands_in(), rules.debt());
        if rules.is_syncing() {
            return self.tell(id);
        }
        if !gone.is_empty() && pair.change.is_none() && rules.may_take_over() {
            if !self.take_over(id, &gone) {
                self.want_look(partner);
            }
            return;
        }
        let agree = pair.others.iter().all(|o| o.agrees(now));
        let is_due = debt != (Debt::Flush { is_due: false });
        let is_alone_there = !rules.has_late_write() && pair.change.is_none();
        let has_held = pair
            .held
            .iter()
            .any(|h| h.request.attempt == Attempt::Backup);
        let has_lost = pair.has_lost_writes();
        // What was parked for it is asked of the backup first: nobody knows how long others take.
        let is_served = pair.rules.at(now, wait).is_replaced() || pair.parked.is_empty();
        let may_close = stands_in
            && agree
            && is_served
            && is_due
            && is_alone_there
            && !has_held
            && !has_lost
            && self.is_up(primary)
            && !self.has_late_writes(primary, partner);
        // Who does not answer the deletes of the journal would keep requests waiting.
        let closes = may_close && self.answers_deletes(id);
        let Some(pair) = self.pairs.get_mut(id) else {
            return;
        };
        pair.closes = closes;
        pair.is_told &= may_close;
        let losing = self.servers.get(primary).map_or(0, |s| s.losing);
        if !closes || losing > 0 || self.is_used_in_place(primary, partner) {
            return;
        }
        let Some(server) = self.servers.get_mut(primary) else {
            return;
        };
        server.journal.mark();
        let owes = !server.journal.is_empty();
        self.list_server(primary);
        let Some(pair) = self.pairs.get_mut(id) else {
            return;
        };
        (pair.closes, pair.is_told) = (false, false);
        pair.syncing_since = now;
        pair.rules.step(now, |rules| {
            if owes {
                rules.owes_keys();
            }
            rules.stop(true)
        });
        self.tell(id);
    }

    /// True if a primary has answered something since the own line stands, and all deletes that were in its
    /// journal when this was first asked.
    fn answers_deletes(&mut self, id: usize) -> bool {
        let Some(pair) = self.pairs.get_mut(id) else {
            return false;
        };
        let (primary, is_asked, since) = (pair.primary, pair.is_told, pair.rules.since());
        let Some(server) = self.servers.get_mut(primary) else {
            return false;
        };
        if !server.health.has_answered_since(since) {
            self.probe_up(primary);
            return false;
        }
        if !is_asked {
            server.journal.mark();
        }
        let is_told = server.journal.is_synced_to_mark();
        if !is_asked {
            self.list_server(primary);
        }
        if let Some(pair) = self.pairs.get_mut(id) {
            pair.is_told = true;
        }
        is_told
    }

    /// The primary is told what it missed; then the own line goes.
    fn tell(&mut self, id: usize) {
        let (now, wait) = (self.now, self.wait_of(id));
        let Some(pair) = self.pairs.get_mut(id) else {
            return;
        };
        let (primary, partner) = (pair.primary, pair.partner);
        let rules = pair.rules.at(now, wait);
        let debt = rules.debt();
        if rules.may_tell() {
            self.sync_flush(primary);
        }
        let is_told = self.servers.get(primary).is_some_and(|s| {
            let has_flush = s.flushing || s.journal.flush_due().is_some();
            s.losing == 0 && !has_flush && s.journal.is_synced_to_mark()
        });
        let Some(pair) = self.pairs.get_mut(id) else {
            return;
        };
        if !is_told {
            // It hangs: the backup goes on.
            if now.since(pair.syncing_since) >= PATIENCE {
                pair.rules.step(now, |rules| rules.resume());
            }
            return;
        }
        pair.rules.step(now, |rules| rules.told());
        let may_go = pair.rules.at(now, wait).may_take_out() && pair.change.is_none();
        if debt != Debt::None {
            self.is_warming_from_now(primary);
        }
        if may_go {
            self.take_line_or_look(id, partner);
        }
    }

    /// Takes the own line of a pair out, or looks at the list first if that is not known.
    fn take_line_or_look(&mut self, id: usize, partner: ServerId) {
        if !self.take_line_of(id) {
            self.want_look(partner);
        }
    }

    fn is_warming_from_now(&mut self, primary: ServerId) {
        let (now, has_backup) = (self.now, self.has_backup(primary));
        if let Some(server) = self.servers.get_mut(primary).filter(|_| has_backup) {
            server.health.warm(now);
        }
    }

    /// Others keep the primary away: if it does not answer this magent either, that is lost to it too.
    fn see_parked(&mut self, id: usize) {
        let now = self.now;
        let Some(pair) = self.pairs.get_mut(id) else {
            return;
        };
        let primary = pair.primary;
        let is_parked = pair.rules.at(now, WAIT).is_parked();
        let probed = pair.probed.filter(|_| is_parked);
        pair.probed = is_parked.then(|| probed.unwrap_or(now));
        match probed {
            None if is_parked && self.is_up(primary) => self.probe_up(primary),
            Some(at) if now.since(at) >= PROBE => {
                let server = self.servers.get(primary);
                if !server.is_some_and(|s| s.health.has_answered_since(at)) {
                    if let Some(pair) = self.pairs.get_mut(id) {
                        pair.rules.step(now, |rules| rules.patience_over());
                        pair.probed = Some(now);
                    }
                    self.go_away(id);
                }
            }
            _ => {}
        }
    }

    /// What waits goes on, if it is known where.
    fn let_go(&mut self, id: usize, work: &mut Work, clients: &mut Clients<S>) {
        match self.serves(id) {
            Use::Primary => {
                if !self.answer_held(id, false, work, clients) {
                    return self.list_pair(id);
                }
                let now_free = self
                    .pairs
                    .get_mut(id)
                    .map(|p| std::mem::take(&mut p.is_doubtful));
                if now_free == Some(true) {
                    let primary = self.pairs.get(id).map_or(NOBODY, |p| p.primary);
                    self.is_warming_from_now(primary);
                }
                self.unpark(id);
            }
            Use::Partner => {
                let most = self.lose_under_way(id, SOME);
                if !most || !self.answer_held(id, true, work, clients) {
                    return self.list_pair(id);
                }
                self.unpark(id);
            }
            Use::Unknown => self.unpark(id),
            Use::Nobody => {
                self.expire_held(id, clients);
                self.expire_parked(id, SOME, clients);
            }
        }
    }

    /// The answers that wait go to their clients, as far as they count now; the others are lost. False if
    /// there are more.
    fn answer_held(
        &mut self,
        id: usize,
        stands_in: bool,
        work: &mut Work,
        clients: &mut Clients<S>,
    ) -> bool {
        for _ in 0..SOME {
            let Some(held) = self.take_held(id) else {
                return true;
            };
            work.count(REQUEST);
            match (stands_in, held.request.attempt == Attempt::Backup) {
                (true, false) => self.lose_held(id, &held),
                (true, true) | (false, false) => self.answer_one(id, &held, clients),
                (false, true) => self.fail_held(id, &held, clients),
            }
            self.release_held(id, &held);
        }
        false
    }

    fn answer_one(&mut self, id: usize, held: &Held, clients: &mut Clients<S>) {
        let Some((link, is_doubtful)) = self
            .pairs
            .get(id)
            .and_then(|p| Some((p.shelf?, p.is_doubtful)))
        else {
            return;
        };
        let To::Client(ticket) = held.request.to else {
            return;
        };
        let reply = held.reply();
        let answered = held.answered(link, &reply);
        match is_doubtful && held.request.attempt != Attempt::Backup {
            // Somebody may have replaced it meanwhile: the copy goes.
            true => self.settle_doubtful(&answered, ticket, clients),
            false => self.settle_client(&answered, ticket, clients),
        }
    }

    /// Nobody knows what is left of a write.
    fn fail_held(&mut self, id: usize, held: &Held, clients: &mut Clients<S>) {
        let Some((link, primary, partner)) = self
            .pairs
            .get(id)
            .and_then(|p| Some((p.shelf?, p.primary, p.partner)))
        else {
            return;
        };
        let To::Client(ticket) = held.request.to else {
            return;
        };
        let reply = held.reply();
        let answered = held.answered(link, &reply);
        let key = self.key_at(&answered);
        self.invalidate(primary, &key, held.request.hash);
        self.invalidate(partner, &key, held.request.hash);
        self.key = key;
        let line = self.failure(primary, crate::health::Cause::KeptAway);
        clients.fail(ticket, &line);
    }

    fn expire_held(&mut self, id: usize, clients: &mut Clients<S>) {
        for _ in 0..SOME {
            let first = self.pairs.get(id).and_then(|p| p.held.front());
            let Some(first) = first else {
                return;
            };
            let request = &first.request;
            let span = self.pools[request.home.pool as usize].span();
            if self.now < request.deadline.plus(request.left(span) / 2) {
                return;
            }
            let Some(held) = self.take_held(id) else {
                return;
            };
            self.fail_held(id, &held, clients);
            self.release_held(id, &held);
        }
    }

    /// A pair that no pool has any more goes when nothing is left of it.
    fn drop_if_over(&mut self, id: usize) {
        let is_gone = self.is_without_partner(id);
        let Some(pair) = self.pairs.get_mut(id).filter(|p| p.is_over) else {
            return;
        };
        let has_line = pair.has_line();
        if !pair.is_awaited() && (is_gone || !has_line) {
            self.pairs.remove(id);
            self.note_pairs();
        }
    }

    /// True if a request or an answer waits for what a pair shows.
    pub(super) fn is_anything_parked(&self) -> bool {
        self.pairs.values().any(Pair::is_awaited)
    }

    /// What is parked has waited for long enough.
    pub(super) fn hurry_parked(&mut self) {
        for pair in self.pairs.values_mut() {
            let parked = pair.parked.iter_mut().flat_map(|l| l.pending.iter_mut());
            parked.for_each(|p| p.deadline = Time(0));
            pair.held
                .iter_mut()
                .for_each(|h| h.request.deadline = Time(0));
        }
        for id in self.pairs.keys().collect::<Vec<_>>() {
            self.list_pair(id);
        }
    }
}
