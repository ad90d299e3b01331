//! Servers that leave the ring while they are away, and no key that comes back stale.
//!
//! ```text
//!  full ring   k ─▶ A          A away   k ─▶ B, the stand-in          A back   k ─▶ A
//!                              write k: A missed it,                  both are told:
//!                              B must not keep it                     delete k
//! ```
//!
//! Whatever the ring looked like in between, this holds: a server that is not a key's home and
//! may hold the key has it in its journal, and so has a home that missed a write. A server that
//! is up is told its journal whenever the ring changes, before it is asked anything under the
//! new one; a server that is away is told when it returns. So nobody is ever asked for a key of
//! which he holds an old value.

use super::Proxy;
use super::route::Place;
use crate::farm::{Distribution, Farm};
use crate::health::Cause;
use crate::net::Socket;
use crate::upstream::{NOBODY, ServerId};

impl<S: Socket> Proxy<S> {
    /// A server of the pool came or went: those that stay are told what they must not keep, and
    /// the ring is made anew. False if this pool's ring never changes.
    pub(super) fn ring_changed(&mut self, pool: usize) -> bool {
        let p = &self.pools[pool];
        if !p.config.auto_eject && p.ring.is_none() {
            return false;
        }
        for id in p.primary_ids.clone() {
            self.tell_journal(id);
        }
        let p = &self.pools[pool];
        let live: Vec<bool> = p.primary_ids.iter().map(|id| self.is_up(*id)).collect();
        let count = live.iter().filter(|up| **up).count();
        let whole = !p.config.auto_eject || count == live.len() || count == 0;
        let (name, servers) = (&p.config.name, live.len());
        log::info!("pool {name}: {count} of {servers} servers are up");
        let ring = (!whole).then(|| Farm::new(p.primaries.spec().clone(), Some(&live)));
        self.pools[pool].ring = ring;
        true
    }

    fn is_up(&self, id: ServerId) -> bool {
        self.servers[id as usize].health.is_up()
    }

    /// Works the journal of a server off, if it is up.
    fn tell_journal(&mut self, id: ServerId) {
        let server = &self.servers[id as usize];
        if !server.health.is_up() {
            return;
        }
        if server.journal.flush_due().is_some() {
            // One flush for all links: nothing may overtake it, so it is told as one who returns.
            return self.server_down(id, Cause::ConnectionLost, true);
        }
        self.tell_rest(id);
    }

    /// A write was sent to a server that is not its key's home: both will have to drop the key.
    /// To be called behind the write, since a journal that gets full is worked off at once.
    pub(super) fn note_stray(&mut self, place: Place, key: &[u8]) {
        if place.home == NOBODY {
            return;
        }
        for id in [place.primary, place.home] {
            let was_half_full = self.servers[id as usize].journal.is_half_full();
            self.journal(id, key);
            // From half on, so that what is noted until the answers come has room too.
            let server = &self.servers[id as usize];
            if !was_half_full && server.journal.is_half_full() && server.health.is_up() {
                self.tell_rest(id);
            }
        }
    }

    /// Where a key is placed while servers are out of the ring, and its home if that is another.
    pub(super) fn stand_in(&self, pool: usize, key: &[u8], home: ServerId) -> (ServerId, ServerId) {
        let p = &self.pools[pool];
        let Some(ring) = &p.ring else {
            return (home, NOBODY);
        };
        let now = p.primary_ids[ring.place(key, self.draw)];
        // With `random` no server is a key's home.
        if now == home || p.config.distribution == Distribution::Random {
            return (now, NOBODY);
        }
        (now, home)
    }
}
