//! Links that are lost and servers that go down. What they owed becomes losses.

use super::link::LinkState;
use super::pending::{Pending, To};
use super::{GivenUp, Pools, ServerId};
use crate::health::{Cause, State};
use crate::net::{Conn, Socket};

impl<S: Socket> Pools<S> {
    /// The other side closed a link that works, or broke the protocol.
    pub(super) fn link_closed(&mut self, id: usize) {
        let Some(link) = self.links.get_mut(id) else {
            return;
        };
        let (is_idle, is_probed) = (link.is_idle(), !link.pending.is_empty());
        let has_ended = link.conn().is_none_or(|c| c.has_ended());
        let has_gone = has_ended || link.conn().is_none_or(|c| c.has_failed());
        if let Some(server) = self.servers.get_mut(link.server) {
            match has_ended {
                true => server.stats.closes += 1,
                false => server.stats.failures += 1,
            }
        }
        let server = link.server;
        self.primary_closed(server);
        // A server may close an idle link; if it was being probed a new link tells how it is.
        match (is_idle, is_probed) {
            (true, false) => self.close_link(id),
            (true, true) if has_gone => {
                self.close_link(id);
                self.open_link(id);
            }
            _ => self.link_lost(id, Cause::ConnectionLost),
        }
    }

    /// A link that works was lost. If something was asked on it, it is opened anew once at once (a
    /// server that resets idle links must not keep us busy).
    pub(super) fn link_lost(&mut self, id: usize, cause: Cause) {
        let Some(link) = self.links.get(id) else {
            return;
        };
        let server_id = link.server;
        let has_writes = link.pending.iter().any(Pending::writes);
        let (has_ended, owes_deletes) = (self.has_ended(id), self.owes_deletes(id));
        let Some(server) = self.servers.get_mut(server_id) else {
            return;
        };
        let too_many = server.health.on_failure(cause, self.now);
        if !server.health.is_up() || too_many {
            return self.server_down(server_id, cause, false);
        }
        let mut pools = server.primary_of.iter().chain(&server.backup_of);
        let is_copied = server.moves || pools.any(|p| self.pools[*p as usize].backups.is_some());
        // These writes are repeated elsewhere but may still run here, or are part of the journal:
        // the server is asked nothing else before that is settled.
        if has_writes && (is_copied || !has_ended || owes_deletes) {
            return self.server_down(server_id, cause, true);
        }
        if !server.health.reconnects_at_once() && !server.health.bears_failures() {
            return self.server_down(server_id, cause, false);
        }
        log::info!("{}: link lost: {}", server.title, cause.text());
        self.give_up_link(id, cause);
    }

    fn has_ended(&mut self, id: usize) -> bool {
        let conn = self.links.get_mut(id).and_then(|l| l.conn());
        conn.is_none_or(|c| c.has_ended())
    }

    /// True if a link owes answers to deletes that must come before anything else is asked.
    fn owes_deletes(&self, id: usize) -> bool {
        let link = self.links.get(id);
        link.is_some_and(|l| l.pending.iter().any(|p| matches!(p.to, To::Delete(_))))
    }

    /// A server is away: all its links are given up, and what they owe is lost.
    pub(super) fn server_down(&mut self, id: ServerId, cause: Cause, at_once: bool) {
        let Some(server) = self.servers.get_mut(id) else {
            return;
        };
        let was_trusted = matches!(server.health.state(), State::Up);
        server.health.go_down(cause, at_once, self.now);
        if was_trusted {
            server.outages.begin(cause, self.now);
            let name = &server.title;
            match server.health.flaps() {
                0 | 1 => log::warn!("{name}: down: {}", cause.text()),
                n => log::warn!(
                    "{name}: down: {} ({n} times without an answer)",
                    cause.text()
                ),
            }
        }
        let links = server.links.clone();
        for pool in server.primary_of.iter().chain(&server.backup_of) {
            let pool = &mut self.pools[*pool as usize];
            pool.ring_is_stale |= pool.config.auto_eject || pool.ring.is_some();
        }
        self.flows.outdate(id);
        self.refills.copies.void(id);
        self.watched.note_lost(id);
        for link in links {
            self.give_up_link(link, cause);
        }
        self.primary_lost(id);
        self.partner_changed(id);
    }

    /// Closes a link; what it owes is lost. A socket that still works and has writes unanswered is
    /// half-closed and read to its end: a stopped server reads them when it wakes.
    pub(super) fn give_up_link(&mut self, id: usize, cause: Cause) {
        let Some(link) = self.links.get_mut(id) else {
            return;
        };
        let (server, token, was_up) = (link.server, link.token, link.is_up());
        let conn = link.close();
        let (pending, queue, at, written) = link.take_owed();
        self.budget.recharge(&mut link.charged, 0);
        let mut start = at;
        let has_unanswered_writes = pending.iter().any(|p| {
            let is_out = start < written;
            start += u64::from(p.len);
            is_out && p.writes()
        });
        if let Some(conn) = conn.filter(|_| was_up && has_unanswered_writes) {
            self.wait_for_end(conn, server, token);
        }
        self.lose_all(server, pending, queue, at, cause);
        self.list_link(id);
        self.list_server(server);
    }

    /// A link with unanswered writes goes: it is read to its end. Of one that has ended and was not read
    /// since, only that tells whether the server has ended it.
    fn wait_for_end(&mut self, mut conn: Conn<S>, server: ServerId, token: usize) {
        let Some(s) = self.servers.get_mut(server) else {
            return;
        };
        let has_ended = conn.has_ended();
        if conn.has_failed() || (!has_ended && conn.shutdown_write().is_err()) {
            // The server may still execute what it received.
            return s.health.unsettle();
        }
        s.given_up += 1;
        let key = self.given_up.insert(GivenUp {
            conn,
            server,
            token,
        });
        if has_ended {
            self.read_given_up(key);
        }
    }

    /// Closes a link that owes nothing.
    pub(super) fn close_link(&mut self, id: usize) {
        if let Some(link) = self.links.get_mut(id) {
            link.close();
            let (_, _, _, _) = link.take_owed();
            self.account_link(id);
        }
    }

    /// An event of a link's socket. A token of a socket that is gone is ignored.
    pub(super) fn note_event(
        &mut self,
        token: usize,
        readable: bool,
        writable: bool,
        closed: bool,
    ) {
        let place = token & 0xffff_ffff;
        let id = self.links.key_at(place);
        let link = id.and_then(|id| self.links.get_mut(id).filter(|l| l.token == token));
        if let (Some(link), Some(id)) = (link, id) {
            if let Some(conn) = link.conn() {
                conn.note(readable, writable, closed);
                return self.list_link(id);
            }
        }
        let of_token = |k: &usize| self.given_up.get(*k).is_some_and(|g| g.token == token);
        let key = self.given_up.keys().find(of_token);
        if let Some(key) = key {
            if let Some(given_up) = self.given_up.get_mut(key) {
                given_up.conn.note(readable, writable, closed);
            }
            self.read_given_up(key);
        }
    }

    /// Reads a link that was given up, towards its end.
    fn read_given_up(&mut self, key: usize) {
        let mut scrap = [0; 16 * 1024];
        // What a stopped server answers when it wakes is bounded by what it was asked; reading ends
        // at the end or when nothing is there.
        while let Some(given_up) = self.given_up.get_mut(key) {
            let well = match given_up.conn.read(&mut scrap) {
                Ok(Some(n)) if n > 0 => continue,
                Ok(None) => return,
                Ok(Some(_)) => true,
                Err(_) => false,
            };
            return self.end_given_up(key, well);
        }
    }

    /// A link that was given up is at its end; `well`: the server has read all of it.
    pub(super) fn end_given_up(&mut self, key: usize, well: bool) {
        let Some(given_up) = self.given_up.remove(key) else {
            return;
        };
        if let Some(server) = self.servers.get_mut(given_up.server) {
            server.given_up -= 1;
            if !well {
                server.health.unsettle();
            }
        }
        self.list_server(given_up.server);
    }

    /// A server is another process than before, or at another address: what it held may be gone.
    pub(super) fn server_restarted(&mut self, id: ServerId) {
        if let Some(server) = self.servers.get_mut(id) {
            server.stats.restarts += 1;
            server.no_metadump = false;
        }
        self.lost_keys(id);
    }

    /// A link that could not be opened is opened at its server's next address, if it has another.
    fn opens_elsewhere(&mut self, id: usize, cause: Cause) -> bool {
        let Some(link) = self.links.get_mut(id) else {
            return false;
        };
        let Some(server) = self.servers.get(link.server) else {
            return false;
        };
        let has_another = server.candidate(link.tried + 1).is_some();
        if has_another {
            let (name, cause) = (&server.title, cause.text());
            log::info!("{name}: connect failed: {cause}; its next address is tried");
            link.close();
            link.tried += 1;
            self.want_socket(id);
        }
        has_another
    }

    /// A failed connect or an unanswered handshake takes a server down at once; where servers can
    /// be ejected, it takes several.
    pub(super) fn connect_failed(&mut self, id: usize, cause: Cause) {
        if self.opens_elsewhere(id, cause) {
            return;
        }
        let Some(link) = self.links.get(id) else {
            return;
        };
        let server_id = link.server;
        let Some(server) = self.servers.get_mut(server_id) else {
            return;
        };
        server.stats.failures += 1;
        if server.candidate(0).is_none() {
            return self.server_down(server_id, Cause::UnknownHost, false);
        }
        let is_borne = server.health.bears_failures() && !server.health.on_failure(cause, self.now);
        if !is_borne || self.owes_deletes(id) {
            return self.server_down(server_id, cause, false);
        }
        if let Some(server) = self.servers.get(server_id) {
            log::info!("{}: connect failed: {}", server.title, cause.text());
        }
        self.give_up_link(id, cause);
    }

    /// True while a link's socket is being opened or greeted.
    pub(super) fn is_opening(&self, id: usize) -> bool {
        self.links.get(id).is_some_and(|l| {
            matches!(
                l.state,
                LinkState::Wanted | LinkState::Connecting(_) | LinkState::Greeting(..)
            )
        })
    }
}
