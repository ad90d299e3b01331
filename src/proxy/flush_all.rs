//! `flush_all`: every primary, and when all have answered, the backups; `OK` only if all did.
//!
//! A server that is away has its journal marked, so it is flushed before it is trusted again.
//! While a flush is on its way nothing is copied from a backup: what it holds is about to go.

use super::Proxy;
use super::route::Ask;
use crate::client::{Pause, Slot};
use crate::health::Cause;
use crate::net::Socket;
use crate::protocol::{Dress, Reply, Status, Traits, Verb, binary};
use crate::upstream::{Pending, ServerId, To};

/// One client's `flush_all` on its way.
#[derive(Debug)]
pub(super) struct FlushOp {
    client: usize,
    seq: u32,
    pool: usize,
    /// The line for the servers.
    line: Vec<u8>,
    /// Servers that are still to be asked when the ones before have answered.
    next: Option<Vec<ServerId>>,
    waiting: usize,
    /// What the first server that failed said, or why it was lost.
    failure: Option<Vec<u8>>,
}

impl FlushOp {
    /// Servers that will be asked.
    pub fn still_to_ask(&self) -> impl Iterator<Item = ServerId> {
        self.next.iter().flatten().copied()
    }
}

impl<S: Socket> Proxy<S> {
    /// Starts a client's `flush_all`; the client is not read until it is done.
    pub(super) fn flush_all(&mut self, client: usize, dress: Dress, when: Option<u64>) {
        self.counters.cmd_flush += 1;
        let Some(c) = self.clients.get_mut(client) else {
            return;
        };
        let slot = Slot::new(dress, Verb::FlushAll);
        let seq = c.owe(&mut self.spares, slot);
        c.pause.add(Pause::ORDER);
        let pool = c.pool as usize;
        self.pools[pool].flushing += 1;
        let line = match when {
            Some(at) => format!("flush_all {at}\r\n").into_bytes(),
            None => b"flush_all\r\n".to_vec(),
        };
        let mut primaries = self.pools[pool].primary_ids.clone();
        let mut backups = self.pools[pool].backup_ids.clone();
        primaries.sort_unstable();
        primaries.dedup();
        self.drop_copies(&primaries);
        backups.retain(|id| primaries.binary_search(id).is_err());
        let op = self.flushes.insert(FlushOp {
            client,
            seq,
            pool,
            line,
            next: Some(backups),
            waiting: 0,
            failure: None,
        });
        self.flush_servers(op, &primaries);
    }

    fn flush_servers(&mut self, op: usize, servers: &[ServerId]) {
        // One more than there are: servers that are away must not finish it at once.
        let Some(flush) = self.flushes.get_mut(op) else {
            return;
        };
        flush.waiting = 1;
        let line = flush.line.clone();
        let deadline = self.now.plus(self.pools[flush.pool].span());
        let ask = Ask::line(Verb::FlushAll, Traits::WRITES, &line);
        for id in servers {
            let part = || Pending {
                traits: Traits::WRITES,
                ..Pending::own(To::Flush(op), Verb::FlushAll, 0, deadline)
            };
            if !self.servers[*id as usize].health.is_up() {
                self.one_more(op);
                self.lost(*id, part(), &ask, Cause::Down);
                continue;
            }
            for link in self.links_to_flush(*id) {
                self.one_more(op);
                self.send_on(link, part(), &ask);
            }
        }
        self.flush_answered(op);
    }

    fn one_more(&mut self, op: usize) {
        if let Some(flush) = self.flushes.get_mut(op) {
            flush.waiting += 1;
        }
    }

    /// One is enough, but a server of several links may read a set on one of them after the
    /// flush on another: so each that is busy is told.
    fn links_to_flush(&self, server: ServerId) -> Vec<u32> {
        let links = &self.servers[server as usize].links;
        let busy = |id: &u32| !self.links[*id as usize].pending.is_empty();
        let mut chosen: Vec<u32> = links.iter().copied().filter(busy).collect();
        if chosen.is_empty() {
            chosen.extend(links.first());
        }
        chosen
    }

    /// One server answered, or was lost; `failure` says what was wrong.
    pub(super) fn flush_part(&mut self, op: usize, failure: Option<Vec<u8>>) {
        if let Some(flush) = self.flushes.get_mut(op) {
            if flush.failure.is_none() {
                flush.failure = failure;
            }
            self.flush_answered(op);
        }
    }

    fn flush_answered(&mut self, op: usize) {
        let Some(flush) = self.flushes.get_mut(op) else {
            return;
        };
        flush.waiting -= 1;
        if flush.waiting > 0 {
            return;
        }
        if let Some(backups) = flush.next.take() {
            return self.flush_servers(op, &backups);
        }
        let Some(flush) = self.flushes.remove(op) else {
            return;
        };
        self.pools[flush.pool].flushing -= 1;
        let Some(c) = self.clients.get_mut(flush.client) else {
            return;
        };
        c.deliver(&mut self.spares, flush.seq, 1, |out, slot, _| {
            match (&flush.failure, slot.dress) {
                (_, Dress::Silent) => {}
                (None, Dress::Binary(d)) => binary::ok(&d, b"", out),
                (None, _) => out.push_slice(b"OK\r\n"),
                (Some(text), dress) => super::settle::write_failure(dress, text, out),
            }
        });
        self.dirty_client(flush.client);
        self.list_client(flush.client);
    }

    /// What a server's answer to `flush_all` has against it.
    pub(super) fn flush_failure(reply: &Reply<'_>) -> Option<Vec<u8>> {
        (reply.status != Status::Done).then(|| reply.first_line().to_vec())
    }
}
