//! A reload that comes to one magent after the other: while one of them has the ring before, keys do not move.
//!
//! ```text
//!  reload ──▶ somebody has the ring before: wait ──▶ nobody has: their last answers come ──▶ keys are copied
//! ```
//!
//! What is copied too early would be old: the others change it where it was. Until then it is fetched for each
//! client that asks, and not kept, unless it is changed at its new server.

use super::awaited::Awaited;
use super::flows::Flow;
use super::server::{Server, distinct};
use super::{Pools, ServerId};
use crate::marks::Other;
use crate::marks::times::RENEW;
use crate::net::Socket;
use crate::time::Time;
use std::collections::HashMap;

/// The numbers of the rings of each server, as of before a reload.
pub type Rings = HashMap<ServerId, u64>;

impl<S: Socket> Pools<S> {
    /// The numbers of all servers' rings; for [`Pools::begin_rolling`].
    pub(super) fn all_rings(&self) -> Rings {
        let all = self.servers.keys().filter_map(|id| {
            let server = self.servers.get(id)?;
            Some((id, self.rings_of(server)))
        });
        all.collect()
    }

    /// A reload has changed the ring of a pool: looks whether it came to the others too. `rings` is from before.
    pub(super) fn begin_rolling(&mut self, at: usize, rings: &Rings) {
        let pool = &self.pools[at];
        let Some(before) = &pool.before else {
            return;
        };
        let today = pool.primary_ids.iter().chain(&pool.backup_ids).copied();
        let ids = distinct(&before.servers().chain(today).collect::<Vec<_>>());
        let numbers = ids.into_iter().filter_map(|id| {
            let now = self.rings_of(self.servers.get(id)?);
            Some((id, [*rings.get(&id)?, now]))
        });
        let servers = numbers.filter(|(_, [before, now])| before != now).collect();
        if let Some(before) = &mut self.pools[at].before {
            before.rolling = Awaited {
                servers,
                answers: before.ordered_at.since(before.since),
                ..Awaited::default()
            };
        }
        self.watch_rolling(at);
    }

    /// Who else uses the servers of a pool whose keys move, and has its ring of before.
    fn awaited_by(&self, at: usize) -> Vec<String> {
        let rolling = self.pools[at].before.as_ref().map(|b| &b.rolling);
        let mut all = Vec::new();
        for (id, [before, _]) in rolling.into_iter().flat_map(|r| &r.servers) {
            let others = self
                .servers
                .get(*id)
                .into_iter()
                .flat_map(|s| s.board.others());
            let rings = |o: &Other| o.presence.as_ref().map(|p| p.rings);
            all.extend(
                others
                    .filter(|o| rings(o) == Some(*before))
                    .map(|o| o.to_string()),
            );
        }
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Looks whether the keys of a pool can move.
    pub(super) fn watch_rolling(&mut self, at: usize) {
        let now = self.now;
        let awaited = self.awaited_by(at);
        let pool = &mut self.pools[at];
        let (name, Some(before)) = (&pool.config.name, &mut pool.before) else {
            return;
        };
        let rolling = &mut before.rolling;
        if awaited.is_empty() && rolling.begins_at == Time::NEVER {
            log::warn!("pool {name}: all magents have its ring: its keys move");
            rolling.begins_at = now.plus(rolling.answers);
            before.since = now;
        } else if !awaited.is_empty() && rolling.begins_at != Time::NEVER {
            log::warn!(
                "pool {name}: its keys do not move yet: magent {} has the ring before",
                awaited.join(", magent ")
            );
            rolling.begins_at = Time::NEVER;
        }
        let is_first = rolling.look_at == Time(0);
        if rolling.look_at <= now && (is_first || rolling.begins_at == Time::NEVER) {
            rolling.look_at = now.plus(RENEW);
            let servers = rolling.servers.iter().map(|(id, _)| *id);
            // Also those that nobody asks for anything.
            for id in servers.collect::<Vec<_>>() {
                self.renew_marks(id);
            }
        }
        if let Some(before) = &mut self.pools[at].before {
            before.rolling.magents = awaited;
        }
    }

    /// True if a value that was fetched for clients must not be kept at its new primary: others may change it
    /// where it was. What a client changes is there from then on.
    pub(super) fn is_not_to_move(&self, flow: &Flow) -> bool {
        let pool = &self.pools[flow.pool as usize];
        let Some(before) = pool.before.as_ref().filter(|b| b.rolling.waits(self.now)) else {
            return false;
        };
        let changes = flow.waiting.iter().any(|w| w.pending.changes());
        !changes && before.place(&flow.key)[0] != flow.primary
    }

    /// Other magents on a server, for people.
    pub(super) fn others_of(&self, server: &Server) -> Vec<String> {
        let rings = self.rings_of(server);
        let shown = |other: &Other| {
            let differs = other.presence.as_ref().is_some_and(|p| p.rings != rings);
            let rings = if differs { " (other rings)" } else { "" };
            format!("{other}{rings}")
        };
        server.board.others().map(shown).collect()
    }
}
