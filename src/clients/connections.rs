//! Clients that come and go: admission, events of their sockets, the end.

use super::client::{Client, Ending};
use super::{Clients, Pool};
use crate::net::Socket;
use crate::work::{CLOSE, Work};

impl<S: Socket> Clients<S> {
    /// False once all are to leave.
    pub fn admits(&self) -> bool {
        !self.closed
    }

    /// A key for one more client, or the line to send before closing. `listener` counts through all
    /// pools in the order of the configuration.
    pub fn admit(&mut self, listener: usize) -> Result<usize, &'static [u8]> {
        let pool = self.listeners.get(listener);
        let pool = pool.and_then(|p| self.pools.get_mut(*p as usize));
        let has_room = |p: &Pool| p.most.is_none_or(|n| p.connected < n);
        let is_full = !pool.as_ref().is_some_and(|p| has_room(p));
        if self.closed || self.table.len() >= self.most || is_full {
            if let Some(pool) = pool {
                pool.counts.rejected_connections += 1;
            }
            return Err(b"SERVER_ERROR OUT OF CONNECTION\r\n");
        }
        Ok(self.table.next_key())
    }

    /// The client that was admitted.
    pub fn accepted(&mut self, token: usize, stream: S, listener: usize) {
        let Some(pool) = self.listeners.get(listener).copied() else {
            return;
        };
        let client = Client::new(stream, pool, listener as u16, self.now);
        let key = self.table.insert(client);
        debug_assert_eq!(key, token);
        let pool = &mut self.pools[pool as usize];
        pool.connected += 1;
        pool.counts.total_connections += 1;
        self.list(key);
    }

    /// An event of a client's socket. The token of a client that left is ignored.
    pub fn ready(&mut self, token: usize, readable: bool, writable: bool, closed: bool) {
        let Some(client) = self.table.get_mut(token) else {
            return;
        };
        client.conn.note(readable, writable, closed);
        // A client that is not read would otherwise not be seen to be gone.
        if closed && !client.may_ask_anew() && !matches!(client.conn.connected(), Ok(true)) {
            return self.end(token, Ending::Dead);
        }
        if writable && client.active.is_some() {
            self.dirty.add(token, &mut client.dirty);
        }
        self.list(token);
    }

    /// Ends a client's connection; an ending is never taken back.
    pub(super) fn end(&mut self, key: usize, ending: Ending) {
        let Some(client) = self.table.get_mut(key) else {
            return;
        };
        let ending = match (client.ending, ending) {
            (Ending::Dead, _) | (_, Ending::Open) => return,
            (_, Ending::AfterAnswers) if client.is_answered() => Ending::Dead,
            (_, ending) => ending,
        };
        client.ending = ending;
        if ending == Ending::Dead {
            self.dead.push(key);
        }
    }

    /// Closes a client once it has what it is owed.
    pub fn close(&mut self, key: usize) {
        self.end(key, Ending::AfterAnswers);
    }

    /// Drops clients that are gone; the only place that does. Replies that servers still owe them
    /// are discarded; true if there are any.
    pub fn reap(&mut self, work: &mut Work) -> bool {
        work.next_kind();
        while let Some(key) = self.dead.pop() {
            if let Some(mut client) = self.table.remove(key) {
                if let Some((_, charged)) = client.account() {
                    self.budget.recharge(charged, 0);
                }
                self.abandoned |= client.active.is_some_and(|a| !a.slots.is_empty());
                if let Some(pool) = self.pools.get_mut(client.pool as usize) {
                    pool.connected -= 1;
                }
            }
            work.count(CLOSE);
            if work.is_done() {
                break;
            }
        }
        self.abandoned
    }

    /// The pools have looked for the requests of clients that left.
    pub fn abandoned_found(&mut self) {
        self.abandoned = false;
    }
}
