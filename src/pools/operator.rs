//! What an operator does with a server, and what is amiss.

use super::server::{Pool, distinct};
use super::{NOBODY, Pools, ServerId};
use crate::health::{Cause, State};
use crate::net::Socket;

impl<S: Socket> Pools<S> {
    /// The server that `stats servers` calls so.
    pub(super) fn server_named(&self, name: &str) -> Result<ServerId, String> {
        let is_named = |id: &ServerId| {
            let server = self.servers.get(*id);
            server.is_some_and(|s| s.removed.is_none() && s.spec.name == name)
        };
        let found = self.servers.keys().find(is_named);
        found.ok_or_else(|| format!("no server {name}"))
    }

    /// Takes a server out of use: until [`Pools::end_drain`] it counts as down, with a journal.
    ///
    /// # Errors
    /// A line that says why not.
    pub fn drain(&mut self, name: &str) -> Result<(), String> {
        let id = self.server_named(name)?;
        if let Some(server) = self.servers.get_mut(id) {
            if server.health.is_drained() {
                return Err(format!("{name} is drained already"));
            }
            server.health.drain();
        }
        self.server_down(id, Cause::Drained, false);
        Ok(())
    }

    /// Uses a drained server again, as soon as it answers and was sent what it missed.
    ///
    /// # Errors
    /// A line that says why not.
    pub fn end_drain(&mut self, name: &str) -> Result<(), String> {
        let id = self.server_named(name)?;
        match self.servers.get_mut(id) {
            Some(server) if server.health.is_drained() => {
                server.health.end_drain(self.now);
                Ok(())
            }
            _ => Err(format!("{name} is not drained")),
        }
    }

    /// Fills a server with what it lacks, as after a restart; `stats servers` tells how far that is.
    ///
    /// # Errors
    /// A line that says why not.
    pub fn refill(&mut self, name: &str) -> Result<(), String> {
        let id = self.server_named(name)?;
        let why = match () {
            () if !self.refills.pace.is_on() => {
                "is not refilled: that is switched off (--refill 0)"
            }
            () if !self.has_same_partners(id) => "has other partners in another pool",
            () if self.sources_of(id).is_empty() => "has no partner",
            () if self.is_too_old(id) => "is older than memcached 1.6",
            () if self.refills.of(id).is_some_and(|r| r.lists) => "is being refilled already",
            () => {
                self.lost_keys(id);
                return Ok(());
            }
        };
        Err(format!("{name} {why}"))
    }

    /// Asks a server at once whether it answers; `stats servers` tells what came of it.
    ///
    /// # Errors
    /// A line that says why not.
    pub fn probe(&mut self, name: &str) -> Result<(), String> {
        let id = self.server_named(name)?;
        let Some(server) = self.servers.get_mut(id) else {
            return Ok(());
        };
        match server.health.state() {
            _ if server.health.is_drained() => {
                return Err(format!("{name} is drained: `use` brings it back"));
            }
            State::Down { .. } => server.health.probe_soon(self.now),
            State::Up => self.probe_up(id),
            // One is on its way.
            State::Probing | State::Settling { .. } | State::Syncing => {}
        }
        Ok(())
    }

    /// Why not every key of every pool can be answered; nothing if each can.
    pub fn unanswered(&self) -> Vec<String> {
        let pools = self.pools.iter().filter(|p| !p.removed);
        pools.flat_map(|p| self.unanswered_in(p)).collect()
    }

    fn unanswered_in(&self, pool: &Pool) -> Vec<String> {
        let down = |ids: &[ServerId], but: ServerId| -> Vec<ServerId> {
            let away = |id: &ServerId| *id != but && !self.is_up(*id);
            distinct(ids).into_iter().filter(away).collect()
        };
        let primaries = down(&pool.primary_ids, NOBODY);
        // Those that are up answer for one that left the ring.
        if pool.config.auto_eject && primaries.len() < distinct(&pool.primary_ids).len() {
            return Vec::new();
        }
        let name = |id: ServerId| self.servers.get(id).map_or("", |s| &s.spec.name);
        let mut why = Vec::new();
        for id in primaries {
            let backups = down(&pool.backup_ids, id);
            let has_some = pool.backup_ids.iter().any(|b| *b != id);
            let rest = match (has_some, backups.first()) {
                (true, None) => continue,
                (true, Some(backup)) => format!("and so is the backup {}", name(*backup)),
                (false, _) => "and it has no backup".to_string(),
            };
            why.push(format!(
                "pool {}: {} is down {rest}",
                pool.config.name,
                name(id)
            ));
        }
        why
    }
}
