//! What becomes of a request: its reply goes to the client and to the mirror, its loss to the
//! backup, to the journal, or back as an error. Nothing else ends a request, so none is forgotten.

use super::pending::{Answered, Ask, Attempt, Lost, To};
use super::server::fnv;
use super::watched::{Kind, Watch};
use super::{Losses, Pools, ServerId};
use crate::buffer::{Queue, Source};
use crate::clients::{Clients, Ticket, is_error};
use crate::health::Cause;
use crate::net::Socket;
use crate::protocol::{Reply, Status, Traits, forms, text};
use crate::time::Time;
use crate::work::{REQUEST, Work};

/// The line of an answer to `mg` is never longer, in bytes.
const MAX_LINE: usize = 2048;

impl<S: Socket> Pools<S> {
    /// The oldest request of a link got its reply. `is_kept`: its values are there. The request's bytes stay until
    /// [`Link::release`](super::link::Link::release).
    #[inline]
    pub(super) fn settle(
        &mut self,
        id: usize,
        reply: &Reply<'_>,
        is_kept: bool,
        clients: &mut Clients<S>,
    ) {
        let Some(link) = self.links.get_mut(id) else {
            return;
        };
        let (at, server, token) = (link.settled, link.server, link.token);
        let Some(p) = link.pop() else {
            return;
        };
        let asked_on = (id, link.first_seq - 1);
        if let Some(server) = self.servers.get_mut(server) {
            match p.to {
                // Answers to the journal and to probes say nothing of how clients fare.
                To::Delete(_) | To::Flush(_) => server.health.on_sign_of_life(self.now),
                To::Probe | To::Mark if !p.counted => server.health.on_sign_of_life(self.now),
                // A late answer was counted as missing.
                _ if p.counted => {}
                _ => server.health.on_answer(self.now),
            }
            if !p.to.is_question() {
                if p.sent != Time::NEVER && !matches!(p.to, To::Refill(_)) {
                    server.latency.add(self.now.since(p.sent), self.now);
                }
                server.stats.errors += u64::from(is_error(reply.status));
            }
        }
        let answered = Answered {
            link: id,
            at,
            asked_on,
            request: &p,
            reply,
        };
        match p.to {
            To::Client(_) if is_kept && p.writes() && self.holds_back(&p) => self.hold(&answered),
            To::Client(ticket) if is_kept => self.settle_client(&answered, ticket, clients),
            To::Client(ticket) => self.settle_discarded(&answered, ticket, clients),
            To::Nobody | To::Probe => self.settle_nobodys(&answered),
            To::Mirror(number) => self.settle_mirror(&answered, number),
            To::Delete(stamp) => {
                let key = self.key_at(&answered);
                self.settle_delete(server, &key, stamp, reply.status);
                self.key = key;
            }
            To::Flush(stamp) => self.settle_flush(server, stamp, reply.status),
            To::Step(key) => self.step_answered(key, id, reply, clients),
            To::Copy(None) => self.settle_copy(server, reply.status),
            To::Copy(Some(id)) | To::Watched(id) | To::Again(id) | To::Doubt(id) => {
                self.settle_watched(server, &answered, id);
            }
            To::Refill(copy) => self.refill_answered(copy, reply),
            To::Mark => self.mark_answered(server, reply),
            To::FlushAll(op) => self.flush_answered(op, reply, clients),
            To::LateFlush => self.late_flush_over(server),
            To::Monitor(op) => self.monitor_answered(op, is_kept.then_some(reply), clients),
        }
        self.settle_wins(id);
        if clients.slow.is_open() {
            self.explain_answered(&answered, token, clients);
        }
    }

    /// A copy that is looked after, a look at its source, or its delete in doubt.
    fn settle_watched(&mut self, server: ServerId, answered: &Answered<'_>, id: usize) {
        let (request, reply) = (answered.request, answered.reply);
        let is_look = matches!(request.to, To::Again(_));
        // Most copies are right, and then nobody needs the key.
        if is_look && self.is_as_copied(id, reply, self.now.since(request.sent)) {
            return self.forget_watch(id);
        }
        let key = self.key_at(answered);
        match request.to {
            To::Watched(_) => self.watched_answered(id, &key, reply),
            To::Again(_) => self.copy_is_wrong(id, &key),
            To::Doubt(_) => self.doubt_answered(id, &key, reply.status),
            _ => {
                self.settle_copy(server, reply.status);
                self.copy_arrived(id, &key, reply);
            }
        }
        self.key = key;
    }

    fn settle_copy(&mut self, id: ServerId, status: Status) {
        if status == Status::Done {
            self.counters.repairs += 1;
            if let Some(server) = self.servers.get_mut(id) {
                server.stats.keys_copied += 1;
            }
        }
    }

    /// The answer to a write that others may have replaced since: its copy goes, and is made again.
    pub(super) fn settle_doubtful(
        &mut self,
        answered: &Answered<'_>,
        ticket: Ticket,
        clients: &mut Clients<S>,
    ) {
        let p = answered.request;
        if let Some(link) = self.links.get(answered.link) {
            let line = link.line_at(answered.at, p.line);
            clients.answer(ticket, p.verb, line, answered.reply);
        }
        let key = self.key_at(answered);
        let backup = self.mirror_to(&p.home, &key);
        self.invalidate(backup, &key, p.hash);
        let watch = Watch::new(p.home.primary, backup, p.hash, Kind::Instead);
        self.copy_again(&watch, &key);
        self.key = key;
    }

    #[inline]
    pub(super) fn settle_client(
        &mut self,
        answered: &Answered<'_>,
        ticket: Ticket,
        clients: &mut Clients<S>,
    ) {
        if self.warm_up(answered, ticket, clients) {
            return;
        }
        match self.answer_with_win(answered, ticket, clients) {
            Some(won) => {
                let source = Source::Queue(&won, won.start());
                let line = text::find_newline(source.slice(0..won.len().min(MAX_LINE)));
                let reply = Reply {
                    source,
                    at: 0,
                    len: won.len(),
                    line: line.map_or(won.len(), |n| n + 1),
                    ..*answered.reply
                };
                let won = Answered {
                    reply: &reply,
                    ..*answered
                };
                self.answer_client(&won, ticket, clients);
            }
            None => self.answer_client(answered, ticket, clients),
        }
        if answered.request.writes() {
            self.mirror_or_invalidate(answered);
        }
    }

    #[inline]
    fn answer_client(&mut self, answered: &Answered<'_>, ticket: Ticket, clients: &mut Clients<S>) {
        let p = answered.request;
        if p.attempt == Attempt::Backup && p.traits.has(Traits::RETURNS_CAS) {
            self.answer_marked(answered, ticket, clients);
        } else if let Some(link) = self.links.get(answered.link) {
            let line = link.line_at(answered.at, p.line);
            clients.answer(ticket, p.verb, line, answered.reply);
        }
    }

    /// A write was answered: the other farm follows.
    fn mirror_or_invalidate(&mut self, answered: &Answered<'_>) {
        match answered.request.attempt {
            Attempt::Primary | Attempt::Retried | Attempt::Warmed => self.mirror(answered),
            Attempt::Deleted => {
                let key = self.key_at(answered);
                let p = answered.request;
                if self.is_shared(p.home.primary, p.home.backup) {
                    self.delete_if_warming(p.home.primary, &key, p.hash);
                }
                if !forms::mirror_ok(answered.reply.status, None) {
                    self.invalidate(self.server_of(answered.link), &key, answered.request.hash);
                }
                self.leave(answered.request, &key);
                self.key = key;
            }
            Attempt::Backup => self.leave_changed(answered),
        }
    }

    /// The values of a reply were thrown away: for want of memory, or because the client has left.
    fn settle_discarded(
        &mut self,
        answered: &Answered<'_>,
        ticket: Ticket,
        clients: &mut Clients<S>,
    ) {
        let p = answered.request;
        let Some(link) = self.links.get(answered.link) else {
            return;
        };
        let line = link.line_at(answered.at, p.line).to_vec();
        clients.no_room(ticket, &line, answered.reply.len);
        if p.writes() {
            // Nobody knows any more which keys were found and touched.
            forms::each_key(p.verb, &line, |key| {
                if p.attempt == Attempt::Backup {
                    return self.leave(p, key);
                }
                let home = self.home_of(&p.home, key);
                let backup = self.mirror_to(&home, key);
                self.invalidate(backup, key, fnv(key));
            });
        }
    }

    /// The answer of a backup: its cas tokens are marked as such.
    fn answer_marked(&mut self, answered: &Answered<'_>, ticket: Ticket, clients: &mut Clients<S>) {
        let (p, reply) = (answered.request, answered.reply);
        let Some(link) = self.links.get(answered.link) else {
            return;
        };
        let mut marked = Queue::new();
        let items = forms::mark_cas(p.verb, reply, &mut marked);
        let source = Source::Queue(&marked, marked.start());
        let most = marked
            .len()
            .min(reply.line + u64::MAX.ilog10() as usize + 1);
        let line = text::find_newline(source.slice(0..most));
        let marked = Reply {
            source,
            at: 0,
            len: marked.len(),
            line: line.map_or(reply.line, |n| n + 1),
            status: reply.status,
            items: &items,
        };
        clients.answer(ticket, p.verb, link.line_at(answered.at, p.line), &marked);
    }

    /// Decides what becomes of requests that were lost, a bounded amount.
    pub(super) fn take_losses(&mut self, work: &mut Work, clients: &mut Clients<S>) {
        self.doubt_copies_of_lost();
        while let Some(mut losses) = self.losses.pop_front() {
            if std::mem::take(&mut losses.has_looks) {
                let all = losses.pending.iter_mut();
                self.doubt_lost_looks(all, &losses.queue, losses.at);
            }
            while !work.is_done() {
                let Some(p) = losses.pending.pop_front() else {
                    break;
                };
                work.count(REQUEST);
                if let Some(server) = self.servers.get_mut(losses.server) {
                    server.losing -= 1;
                }
                let lost = Lost {
                    server: losses.server,
                    request: &p,
                    ask: &Ask::queued(&p, &losses.queue, losses.at),
                    cause: losses.cause,
                };
                self.lost(&lost, clients);
                losses.at += u64::from(p.len);
                let end = losses.at.max(losses.queue.start());
                losses.queue.release(end);
            }
            if losses.pending.is_empty() {
                self.budget.recharge(&mut losses.charged, 0);
                self.list_server(losses.server);
                continue;
            }
            let Losses { charged, queue, .. } = &mut losses;
            self.budget.recharge(charged, queue.own_bytes());
            self.losses.push_front(losses);
            return;
        }
    }

    /// Decides what becomes of one request that was lost.
    fn lost(&mut self, lost: &Lost<'_>, clients: &mut Clients<S>) {
        let (server, p, ask, cause) = (lost.server, lost.request, lost.ask, lost.cause);
        if let Some(s) = self.servers.get_mut(server) {
            s.stats.errors += u64::from(lost.was_asked() && !p.to.is_question());
        }
        let is_own = !matches!(p.to, To::Client(_));
        if cause == Cause::KeptAway && is_own && self.goes_on(server, p) {
            return self.send_freely(server, p.again(p.attempt), ask);
        }
        match p.to {
            To::Client(ticket) => match p.attempt {
                Attempt::Deleted => {
                    // The primary had said that the key is absent; that is the answer.
                    self.missed(lost);
                    self.leave_lost(lost);
                    self.answer_absent(ticket, ask, clients);
                }
                Attempt::Backup => self.fail(lost, ticket, clients),
                Attempt::Primary | Attempt::Retried | Attempt::Warmed => {
                    self.lost_at_primary(lost, ticket, clients);
                }
            },
            To::Mirror(_) => {
                if let Some(s) = self.servers.get_mut(server) {
                    s.stats.mirrors_failed += 1;
                }
                let mut key = std::mem::take(&mut self.key);
                key.clear();
                forms::raw_key(p.verb, ask.line_bytes(), &mut key);
                self.journal(server, &key);
                self.key = key;
            }
            To::Delete(_) | To::Flush(_) => {
                let mut key = std::mem::take(&mut self.key);
                key.clear();
                if matches!(p.to, To::Delete(_)) {
                    forms::raw_key(p.verb, ask.line_bytes(), &mut key);
                }
                self.sync_lost(server, p.to, &key);
                self.key = key;
            }
            To::Watched(id) => {
                if let Some(s) = self.servers.get_mut(server) {
                    s.stats.mirrors_failed += 1;
                }
                self.watch_lost(id, lost);
            }
            To::Again(id) | To::Doubt(id) | To::Copy(Some(id)) => self.watch_lost(id, lost),
            To::Nobody | To::Copy(None) | To::Probe | To::Mark => {}
            To::Step(key) => self.step_lost(key, cause, clients),
            To::Refill(copy) => self.refill_lost(copy),
            To::FlushAll(op) => self.flush_lost(op, server, cause, clients),
            To::LateFlush => self.late_flush_over(server),
            To::Monitor(op) => self.monitor_part_done(op, clients),
        }
        if clients.slow.is_open() && cause != Cause::KeptAway {
            self.explain_lost(lost, clients);
        }
    }
}
