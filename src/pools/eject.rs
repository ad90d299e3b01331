//! Servers that leave the ring while they are away, and no key that comes back stale.
//!
//! ```text
//!  full ring   k ─▶ A          A away   k ─▶ B, the stand-in          A back   k ─▶ A
//!                              write k: A missed it,                  both are sent:
//!                              B must not keep it                     delete k
//! ```
//!
//! Whatever the ring looked like in between: a server that is not a key's home and may hold the key
//! has it in its journal as a stray, and a home that missed a write has it there too. When the ring
//! changes strays are due, and no server is asked for a due key before its delete went out. So no
//! server is asked for a key that it may hold stale.

use super::Pools;
use crate::health::Cause;
use crate::net::Socket;
use crate::placement::Farm;

impl<S: Socket> Pools<S> {
    /// Makes the rings anew whose servers came or went.
    pub(super) fn renew_rings(&mut self) {
        for at in 0..self.pools.len() {
            if std::mem::take(&mut self.pools[at].ring_is_stale) {
                self.renew_ring(at);
            }
        }
    }

    fn renew_ring(&mut self, at: usize) {
        let pool = &self.pools[at];
        if !pool.config.auto_eject && pool.ring.is_none() {
            return;
        }
        let live: Vec<bool> = pool.primary_ids.iter().map(|id| self.is_up(*id)).collect();
        let count = live.iter().filter(|up| **up).count();
        let is_whole = !pool.config.auto_eject || count == live.len() || count == 0;
        let before = pool.ring.as_ref().map(|ring| ring.live().to_vec());
        let after = (!is_whole).then_some(live);
        if before == after {
            return;
        }
        let (name, servers) = (&pool.config.name, pool.primary_ids.len());
        log::info!(target: crate::logger::NOTICE, "pool {name}: {count} of {servers} servers are up");
        let is_out = |live: &Option<Vec<bool>>, i: usize| live.as_ref().is_some_and(|l| !l[i]);
        let leaves = |i: &usize| is_out(&after, *i) && !is_out(&before, *i);
        let leaving: Vec<usize> = (0..servers).filter(leaves).collect();
        let ring =
            (after.as_ref()).map(|live| Farm::new(pool.primaries.spec().clone(), Some(live)));
        let ids = pool.primary_ids.clone();
        self.counters.ejections += leaving.len() as u64;
        self.pools[at].ejections += leaving.len() as u64;
        self.pools[at].ring = ring;
        for (i, id) in ids.into_iter().enumerate() {
            let Some(server) = self.servers.get_mut(id) else {
                continue;
            };
            server.journal.ring_changed();
            if leaving.contains(&i) {
                server.ejected_at = self.unix;
            }
            if server.health.is_up() && server.journal.flush_due().is_some() {
                self.server_down(id, Cause::JournalFull, true);
            }
            self.list_server(id);
        }
    }
}
