//! What all connections together hold, against `-m`: the total, and who waits for it to fall.

use super::{Proxy, warm};
use crate::client::Pause;
use crate::net::Socket;

/// A client that is paused for memory is read again below this share of `-m`, in percent.
pub(super) const SOFT_MEMORY: usize = 75;

impl<S: Socket> Proxy<S> {
    /// Bytes of all connections together; exact for copied ones, and for shared ones as of the
    /// last sweep.
    pub(super) fn bytes_in_flight(&self) -> usize {
        self.own_bytes() + self.chunks.lent_bytes()
    }

    /// All but the shared ones: copied bytes, and what waits for a fetch.
    pub(super) fn own_bytes(&self) -> usize {
        let waiting = (self.fetches.len() + self.waiters.len()) * warm::FETCH_COST;
        self.bytes + waiting + self.waiting_bytes
    }

    /// True if so many bytes more would pass `percent` of `-m`.
    pub(super) fn over_memory(&mut self, more: usize, percent: usize) -> bool {
        let limit = self.config.memory / 100 * percent;
        if self.bytes_in_flight() + more <= limit {
            return false;
        }
        self.chunks.sweep();
        self.bytes_in_flight() + more > limit
    }

    /// Brings the total of bytes up to date for one link.
    pub(super) fn account_link(&mut self, id: u32) {
        let link = &mut self.links[id as usize];
        let own = link.own_bytes();
        self.bytes = self.bytes + own - link.accounted;
        link.accounted = own;
    }

    /// Brings the total of bytes up to date for one client, and counts its pauses for what it
    /// is owed: both after each of its turns.
    pub(super) fn account_client(&mut self, key: usize) {
        if let Some(client) = self.clients.get_mut(key) {
            let paused = client.pause.has(Pause::OWED);
            self.counters.limit_client_paused += u64::from(paused && !client.pause_counted);
            client.pause_counted = paused;
            let own = client.own_bytes();
            self.bytes = self.bytes + own - client.accounted as usize;
            client.accounted = own as u32;
        }
    }

    /// A client is not read until there is room.
    pub(super) fn pause_for_memory(&mut self, key: usize) {
        if let Some(client) = self.clients.get_mut(key) {
            client.pause.add(Pause::MEMORY);
            // It has sent something; that it is not read is not its fault.
            client.last_moved = self.now;
            self.memory_paused.push(key);
            self.counters.limit_memory_paused += 1;
        }
    }

    /// Lets clients go on that were paused for memory, once there is room.
    pub(super) fn resume_memory(&mut self) {
        if self.memory_paused.is_empty() || self.over_memory(0, SOFT_MEMORY) {
            return;
        }
        for key in std::mem::take(&mut self.memory_paused) {
            if let Some(client) = self.clients.get_mut(key) {
                client.pause.remove(Pause::MEMORY);
                self.list_client(key);
            }
        }
    }
}
