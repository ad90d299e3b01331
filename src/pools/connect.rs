//! Links that open: the connect, the handshake, and what it says of the server.

use super::link::{GREETING, Greeting, LinkState};
use super::listing::KIND_LISTING;
use super::{Pools, ServerId};
use crate::buffer::Queue;
use crate::health::{Cause, State};
use crate::net::{Conn, Socket};
use crate::protocol::Reply;
use crate::protocol::reply::{uptime, version_at_least};
use crate::time::Time;
use std::io;

/// The first memcached whose `ms` answers the right cas: older ones hold no marks.
const MARKS: [u64; 3] = [1, 6, 13];

impl<S: Socket> Pools<S> {
    /// The socket that was asked for, or why there is none.
    pub fn connecting(&mut self, token: usize, stream: io::Result<S>) {
        if token & KIND_LISTING != 0 {
            return self.listing_connecting(token, stream);
        }
        let Some(id) = self.links.key_at(token & 0xffff_ffff) else {
            return;
        };
        let Some(link) = self.links.get_mut(id) else {
            return;
        };
        if link.token != token || !matches!(link.state, LinkState::Wanted) {
            return;
        }
        match stream {
            Ok(io) => {
                link.state = LinkState::Connecting(Conn::connecting(io));
                self.list_link(id);
            }
            Err(e) => self.connect_failed(id, connect_cause(&e)),
        }
    }

    /// Moves a link that is being opened on.
    pub(super) fn open_further(&mut self, id: usize) {
        let Some(link) = self.links.get_mut(id) else {
            return;
        };
        if let LinkState::Connecting(conn) = &mut link.state {
            if !conn.is_writable() && !conn.has_ended() {
                return;
            }
            match conn.connected() {
                Ok(true) => {}
                Ok(false) => return,
                Err(e) => return self.connect_failed(id, connect_cause(&e)),
            }
            let state = std::mem::replace(&mut link.state, LinkState::Idle);
            if let LinkState::Connecting(conn) = state {
                let mut queue = Queue::new();
                queue.push_slice(GREETING);
                let greeting = Greeting {
                    queue,
                    version_seen: false,
                };
                link.state = LinkState::Greeting(conn, greeting);
            }
        }
        if let LinkState::Greeting(conn, greeting) = &mut link.state {
            let at = greeting.queue.start();
            match conn.write(&greeting.queue, at, usize::MAX) {
                Ok((bytes, calls)) => {
                    greeting.queue.release(at + bytes as u64);
                    self.calls.writes += calls as u64;
                }
                Err(_) => self.connect_failed(id, Cause::ConnectionLost),
            }
        }
    }

    /// One answer of the handshake.
    pub(super) fn greeted(&mut self, id: usize, version_seen: bool, reply: &Reply<'_>) {
        let Some(link) = self.links.get_mut(id) else {
            return;
        };
        if !version_seen {
            if let Some(server) = self.servers.get_mut(link.server) {
                server.meta = version_at_least(reply.first_line(), [1, 6, 0]);
                server.holds_marks = version_at_least(reply.first_line(), MARKS);
            }
            if let LinkState::Greeting(_, g) = &mut link.state {
                g.version_seen = true;
            }
            return;
        }
        let mut text = Vec::new();
        reply
            .source
            .copy_to(reply.at..reply.at + reply.len, &mut text);
        link.uptime = text.split(|b| *b == b'\n').find_map(uptime);
        let state = std::mem::replace(&mut link.state, LinkState::Idle);
        if let LinkState::Greeting(conn, _) = state {
            link.state = LinkState::Up(conn);
        }
        let (server, uptime) = (link.server, link.uptime);
        self.link_up(id, server, uptime);
    }

    /// The handshake was good.
    fn link_up(&mut self, id: usize, server_id: ServerId, uptime: Option<u64>) {
        if !self.stands_at(id) {
            return;
        }
        let has_restarted = uptime.is_some_and(|seconds| self.told_uptime(server_id, seconds));
        let Some(server) = self.servers.get_mut(server_id) else {
            return;
        };
        let is_new = !server.health.has_answered_since(Time(0));
        server.health.on_whole_answer();
        if server.health.state() == State::Probing {
            if !has_restarted && server.may_run_others_writes(is_new) {
                server.health.unsettle();
            }
            server.health.settling(self.now);
            self.list_server(server_id);
        }
        self.look_for_others(id);
        if self.is_up(server_id) {
            self.primary_answers(server_id);
            self.partner_changed(server_id);
        }
        if let Some(link) = self.links.get_mut(id) {
            self.dirty.add(id, &mut link.dirty);
        }
    }

    /// True if the server has restarted.
    fn told_uptime(&mut self, id: ServerId, seconds: u64) -> bool {
        let has_backup = self.has_backup(id);
        let Some(server) = self.servers.get_mut(id) else {
            return false;
        };
        if has_backup {
            server.health.told_uptime(seconds, self.now);
        }
        let has_restarted = server.health.has_restarted(seconds, self.now);
        if has_restarted {
            log::warn!("{}: has restarted", server.title);
            self.server_restarted(id);
        }
        has_restarted
    }
}

/// A failed connect in the words of an answer.
fn connect_cause(e: &io::Error) -> Cause {
    match e.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => Cause::Refused,
        io::ErrorKind::TimedOut => Cause::TimedOut,
        io::ErrorKind::ConnectionReset => Cause::ConnectionLost,
        _ => Cause::Unreachable,
    }
}
