//! `flush_all`: every primary, and when all have answered, the backups; `OK` only if all did.
//!
//! A server that is away has its journal marked, so it is flushed before it is trusted again.
//! While a flush is on its way nothing is copied from a backup: what it holds is about to go.
//!
//! Another magent may copy something to a primary between these two and look again before the backup is
//! flushed. So where others are, the primaries are flushed once more at the end.

use super::pending::{Ask, Pending, To};
use super::server::distinct;
use super::{Pools, ServerId};
use crate::clients::{Clients, Ticket};
use crate::health::Cause;
use crate::net::Socket;
use crate::protocol::{Reply, Status, Traits, Verb};
use crate::time::SECOND;

/// From more seconds than this on a delay is an absolute time.
const DELTA_MAX: u64 = 60 * 60 * 24 * 30;

/// One client's `flush_all` on its way.
#[derive(Debug)]
pub struct FlushAll {
    ticket: Ticket,
    pool: usize,
    /// The servers that are asked first.
    primaries: Vec<ServerId>,
    /// The delay as the client gave it; `None` for at once.
    delay: Option<u64>,
    /// Servers that are still to be asked when the ones before have answered, those that come next at the end.
    next: Vec<Vec<ServerId>>,
    waiting: usize,
    /// What the first server that failed said, or why it was lost.
    failure: Option<Vec<u8>>,
}

impl<S: Socket> Pools<S> {
    /// Starts a client's `flush_all`, with a delay in seconds.
    pub fn flush_all(
        &mut self,
        ticket: Ticket,
        pool: usize,
        delay: Option<u64>,
        clients: &mut Clients<S>,
    ) {
        let p = &self.pools[pool];
        let primaries = distinct(&p.primary_ids);
        // What keys are still fetched from is flushed as well.
        let before = p.before.iter().flat_map(|b| b.servers());
        let backups: Vec<ServerId> = p.backup_ids.iter().copied().chain(before).collect();
        let mut backups = distinct(&backups);
        backups.retain(|id| primaries.binary_search(id).is_err());
        let delay = delay.filter(|d| *d > 0);
        if let Some(delay) = delay {
            self.keep_quiet(delay, primaries.iter().chain(&backups));
        }
        for id in &primaries {
            self.copy_nothing(*id);
        }
        let mut next = vec![backups];
        if delay.is_none() && self.now < self.watched.shared_until {
            next.insert(0, primaries.clone());
        }
        let op = self.flushes.insert(FlushAll {
            ticket,
            pool,
            primaries: primaries.clone(),
            delay,
            next,
            waiting: 0,
            failure: None,
        });
        self.flush_servers(op, &primaries, clients);
    }

    /// Nothing is copied about the time at which a delayed flush takes effect: what was fetched before it
    /// would outlive it.
    fn keep_quiet<'a>(&mut self, delay: u64, servers: impl Iterator<Item = &'a ServerId>) {
        let seconds = match delay <= DELTA_MAX {
            true => delay,
            false => delay.saturating_sub(self.unix),
        };
        let at = self.now.plus(seconds.saturating_mul(SECOND));
        for id in servers {
            if let Some(server) = self.servers.get_mut(*id) {
                server.quiet.note(at, self.now);
            }
        }
    }

    /// Until a flush is done nothing is copied to this server, which is one of its primaries.
    fn copy_nothing(&mut self, id: ServerId) {
        self.flows.outdate(id);
        self.refills.copies.void(id);
        if let Some(server) = self.servers.get_mut(id) {
            server.flushes += 1;
        }
    }

    /// A reload has changed the ring of a pool: flushes that are under way are for its new primaries
    /// too. What keys these got by the reload they fetch afterwards.
    pub(super) fn widen_flushes(&mut self, pool: usize) {
        let primaries = distinct(&self.pools[pool].primary_ids);
        let mut added = Vec::new();
        for flush in self.flushes.values_mut().filter(|f| f.pool == pool) {
            for id in &primaries {
                if !flush.primaries.contains(id) {
                    flush.primaries.push(*id);
                    added.push(*id);
                }
            }
        }
        for id in added {
            self.copy_nothing(id);
        }
    }

    fn flush_servers(&mut self, op: usize, servers: &[ServerId], clients: &mut Clients<S>) {
        let Some(flush) = self.flushes.get_mut(op) else {
            return;
        };
        // Hold one extra part, so that servers that are away cannot complete it early.
        flush.waiting = 1;
        let delay = flush.delay;
        let line = match flush.delay {
            Some(delay) => format!("flush_all {delay}\r\n"),
            None => "flush_all\r\n".to_string(),
        };
        let pool = &self.pools[flush.pool];
        let (span, timeout) = (pool.span(), pool.timeout_ms());
        let ask = Ask::line(Verb::FlushAll, Traits::WRITES, line.as_bytes());
        let mut parts = 0;
        for id in servers {
            let part = || Pending {
                deadline: self.now.plus(span),
                timeout,
                ..self.own(To::FlushAll(op), Verb::FlushAll, Traits::WRITES, 0)
            };
            let part = part();
            if !self.is_up(*id) {
                parts += 1;
                self.lose(*id, part, &ask, Cause::Down);
                continue;
            }
            for link in self.links_to_flush(*id) {
                parts += 1;
                self.send_on(link, part.clone(), &ask);
            }
            if delay.is_none() {
                self.renew_presence(*id);
                self.renew_lines(*id);
            }
        }
        if let Some(flush) = self.flushes.get_mut(op) {
            flush.waiting += parts;
        }
        self.flush_part_done(op, clients);
    }

    /// One link would do, but where a server has several a set on one may be read after the flush
    /// on another: every busy one gets it.
    fn links_to_flush(&self, server: ServerId) -> Vec<usize> {
        let links = self.servers.get(server).map_or(&[][..], |s| &s.links);
        let is_busy = |id: &usize| self.links.get(*id).is_some_and(|l| !l.is_idle());
        let mut chosen: Vec<usize> = links.iter().copied().filter(is_busy).collect();
        if chosen.is_empty() {
            chosen.extend(links.first());
        }
        chosen
    }

    /// One server answered.
    pub(super) fn flush_answered(
        &mut self,
        op: usize,
        reply: &Reply<'_>,
        clients: &mut Clients<S>,
    ) {
        let failure = (reply.status != Status::Done).then(|| reply.first_line().to_vec());
        self.note_flush_failure(op, failure);
        self.flush_part_done(op, clients);
    }

    /// One server was lost; if it is away it is flushed before it is used again. On a link that
    /// lives the flush will still run, in order.
    pub(super) fn flush_lost(
        &mut self,
        op: usize,
        id: ServerId,
        cause: Cause,
        clients: &mut Clients<S>,
    ) {
        let delay = self.flushes.get(op).and_then(|f| f.delay);
        let unix = self.unix;
        if let Some(server) = self.servers.get_mut(id).filter(|s| !s.health.is_up()) {
            match delay {
                None => server.journal.mark_flush(),
                Some(delay) if delay <= DELTA_MAX => server.journal.mark_flush_at(unix + delay),
                Some(time) => server.journal.mark_flush_at(time),
            }
        }
        // One that has left the configuration is asked for nothing before it was flushed.
        let is_named = self.servers.get(id).is_some_and(|s| s.is_named());
        let failure = is_named.then(|| self.failure(id, cause));
        self.note_flush_failure(op, failure);
        self.flush_part_done(op, clients);
    }

    /// A late part of a flush was answered, or will not be.
    pub(super) fn late_flush_over(&mut self, id: ServerId) {
        if let Some(server) = self.servers.get_mut(id) {
            server.late_flushes -= 1;
        }
    }

    fn note_flush_failure(&mut self, op: usize, failure: Option<Vec<u8>>) {
        if let Some(flush) = self.flushes.get_mut(op) {
            if flush.failure.is_none() {
                flush.failure = failure;
            }
        }
    }

    fn flush_part_done(&mut self, op: usize, clients: &mut Clients<S>) {
        let Some(flush) = self.flushes.get_mut(op) else {
            return;
        };
        flush.waiting -= 1;
        if flush.waiting > 0 {
            return;
        }
        if let Some(servers) = flush.next.pop() {
            return self.flush_servers(op, &servers, clients);
        }
        if let Some(flush) = self.flushes.remove(op) {
            for id in &flush.primaries {
                if let Some(server) = self.servers.get_mut(*id) {
                    server.flushes -= 1;
                }
            }
            clients.conclude(flush.ticket, flush.failure.as_deref());
        }
    }
}
