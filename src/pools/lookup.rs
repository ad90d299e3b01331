//! Host names of servers: when they are looked up, and what follows from the result. The lookup
//! itself is the event loop's.
//!
//! ```text
//!  start, reconnect, --resolve, HUP ─▶ next_lookup ─▶ (name service) ─▶ resolved ─▶ links are opened
//!                                                    another address: down, probed, warming ◀┘
//! ```

use super::link::LinkState;
use super::{Pools, ServerId};
use crate::health::Cause;
use crate::net::Socket;
use crate::time::Time;
use std::net::SocketAddr;

impl<S: Socket> Pools<S> {
    /// The next host to look up; the result goes to [`Pools::resolved`].
    pub fn next_lookup(&mut self) -> Option<String> {
        self.lookups.pop()
    }

    /// Has the host names of all servers looked up, now and again after `--resolve`.
    pub fn look_up_all(&mut self) {
        let known = self.servers.values().filter(|s| s.removed.is_none());
        let hosts = known.filter_map(|s| Some(s.name.as_ref()?.host.clone()));
        self.lookups.extend(hosts);
        self.lookups.sort_unstable();
        self.lookups.dedup();
        let is_due_again = self.resolve > 0 && !self.lookups.is_empty();
        self.look_up_at = match is_due_again {
            true => self.now.plus(self.resolve),
            false => Time::NEVER,
        };
    }

    /// What a lookup found: the addresses of a host, or why there are none.
    pub fn resolved(&mut self, host: &str, found: &Result<Vec<SocketAddr>, String>) {
        let ids: Vec<ServerId> = self.servers.keys().collect();
        for id in ids {
            let name = self.servers.get(id).and_then(|s| s.name.as_ref());
            if name.is_some_and(|n| n.host == host) {
                self.server_resolved(id, found);
            }
        }
    }

    fn server_resolved(&mut self, id: ServerId, found: &Result<Vec<SocketAddr>, String>) {
        let Some(server) = self.servers.get_mut(id) else {
            return;
        };
        let Some(name) = &mut server.name else {
            return;
        };
        let failed = name.fails;
        let moves = name.found(found.as_deref().unwrap_or_default());
        match (found, name.candidate(0)) {
            (Err(why), Some(address)) if !failed => {
                let server = &server.title;
                log::warn!("{server}: its name is not found: {why}; it stays {address}");
            }
            (Err(why), None) if !failed => {
                log::warn!("{}: unknown host: {why}", server.title);
            }
            (Ok(_), Some(address)) if failed => {
                log::info!(target: crate::logger::NOTICE, "{}: its name is found: {address}", server.title);
            }
            _ => {}
        }
        let is_known = name.candidate(0).is_some();
        if moves {
            return self.server_moved(id);
        }
        for link in server.links.clone() {
            let is_wanted = |l: &super::Link<S>| matches!(l.state, LinkState::Wanted);
            match self.links.get(link).is_some_and(is_wanted) {
                true if is_known => self.connects.push(link),
                true => self.connect_failed(link, Cause::UnknownHost),
                false => {}
            }
        }
        let Some(server) = self.servers.get_mut(id) else {
            return;
        };
        let was_unknown = matches!(server.health.last_error(), Some((Cause::UnknownHost, _)));
        if is_known && was_unknown {
            server.health.probe_soon(self.now);
        } else if !is_known && server.health.is_up() {
            self.server_down(id, Cause::UnknownHost, false);
        }
    }

    /// A server's host has another address now. What the process there holds is unknown: the server
    /// counts as restarted, and is sent its journal before it is used.
    fn server_moved(&mut self, id: ServerId) {
        self.server_is_another(id);
        self.server_down(id, Cause::Moved, true);
        if let Some(server) = self.servers.get_mut(id) {
            server.health.probe_soon(self.now);
        }
    }

    fn server_is_another(&mut self, id: ServerId) {
        let has_backup = self.has_backup(id);
        let Some(server) = self.servers.get_mut(id) else {
            return;
        };
        let address = server.name.as_ref().and_then(|n| n.candidate(0));
        if let Some(address) = address {
            log::warn!("{}: is at {address} now", server.title);
        }
        server.health.is_another();
        if has_backup {
            server.health.warm(self.now);
        }
        self.server_restarted(id);
    }

    /// A link is open, perhaps to another address of the server's host than the links before. Returns
    /// false if the server went down because of that, and the link with it.
    pub(super) fn stands_at(&mut self, id: usize) -> bool {
        let Some(link) = self.links.get(id) else {
            return false;
        };
        let (server_id, Some(address)) = (link.server, link.address) else {
            return true;
        };
        let Some(server) = self.servers.get_mut(server_id) else {
            return false;
        };
        let Some(name) = &mut server.name else {
            return true;
        };
        if name.in_use() == Some(address) {
            return true;
        }
        let has_moved = name.uses(address);
        self.warn_of_twins(server_id, address);
        if !has_moved {
            return true;
        }
        let is_up = |l: &usize| self.links.get(*l).is_some_and(|l| l.is_up());
        let links = self.servers.get(server_id).map_or(&[][..], |s| &s.links);
        if links.iter().any(|l| *l != id && is_up(l)) {
            // Other links are open to the old address, and a server has one address at a time.
            self.server_moved(server_id);
            return false;
        }
        self.server_is_another(server_id);
        true
    }

    /// A server under two names has a health and a journal for each, and may be its own backup.
    fn warn_of_twins(&self, id: ServerId, address: SocketAddr) {
        let is_twin = |s: &&super::Server| s.address() == Some(address);
        let own = self.servers.get(id).map(|s| &s.spec.name);
        for twin in self.servers.values().filter(is_twin) {
            if let Some(own) = own.filter(|own| **own != twin.spec.name) {
                let other = &twin.spec.name;
                log::warn!("{own} and {other} are one server, {address}: name it once");
            }
        }
    }
}
