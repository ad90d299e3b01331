//! The own marks on each server: a line in the beacon's list, and a sign of life that is renewed while the
//! server is used.
//!
//! ```text
//!  handshake, used ─▶ line, sign of life ─▶ renewed each second ─▶ not used for a while, or the end: taken out
//! ```
//!
//! So the line of one that died, and of no other, stands without its sign of life: it may have left something
//! undone.

use super::board::{Question, REFUSED};
use super::server::Server;
use super::{Pools, ServerId};
use crate::marks::Presence;
use crate::marks::bytes;
use crate::marks::times::{LOOK_PARKED, RENEW};
use crate::net::Socket;
use crate::time::Time;

/// A sign of life is renewed so often after its server was last used; then the line is taken out.
const UNUSED: u32 = 5;

impl<S: Socket> Pools<S> {
    /// Renews the sign of life of a server that was used since it was last renewed.
    pub(super) fn marks_due(&mut self, id: ServerId) {
        let now = self.now;
        let Some(server) = self.servers.get_mut(id) else {
            return;
        };
        if now < server.board.renew_at {
            return;
        }
        let board = &mut server.board;
        // Whose list is looked at is used, too.
        let is_used =
            server.stats.requests.all() != board.requests || board.away.look_at != Time::NEVER;
        board.unused = if is_used { 0 } else { board.unused + 1 };
        let is_refused = board.refused == Some(REFUSED);
        match is_used {
            // The next request that is sent to it sets the time anew.
            false if board.is_resting || is_refused => board.renew_at = Time::NEVER,
            false if board.unused > UNUSED && self.may_rest(id) => self.rest(id),
            true if is_refused => self.try_marks(id),
            _ => self.renew_marks(id),
        }
    }

    /// A `flush_all` takes the beacon away: who starts just then would see nobody.
    pub(super) fn renew_presence(&mut self, id: ServerId) {
        let me = self.me.id;
        let Some(server) = self.servers.get(id) else {
            return;
        };
        let board = &server.board;
        let is_off = self.unmarked(server).is_some() || board.is_leaving || board.is_resting;
        let is_there = !board.beacon.lacks_line() || board.has_appended;
        if is_off || !is_there {
            return;
        }
        let text = self.presence(server).text();
        let mut out = Vec::new();
        bytes::append(&mut out, bytes::BEACON, me, text.as_bytes());
        bytes::store(&mut out, &bytes::life_key(me), b"1", false);
        self.ask_more(id, &out, &[Question::Store; 3]);
    }

    /// A server that refused marks, which is as if there were none, is asked whether it takes them now.
    fn try_marks(&mut self, id: ServerId) {
        let (me, now) = (self.me.id, self.now);
        if let Some(server) = self.servers.get_mut(id) {
            server.board.renew_at = now.plus(RENEW);
            server.board.requests = server.stats.requests.all();
            if server.board.asked.is_empty() {
                let mut out = Vec::new();
                bytes::store(&mut out, &bytes::life_key(me), b"1", false);
                self.ask_more(id, &out, &[Question::Trial]);
            }
        }
    }

    /// True if there is a line to take out, and nothing is mended that another one would go on with.
    fn may_rest(&self, id: ServerId) -> bool {
        let server = self.servers.get(id);
        server.is_some_and(|s| self.unmarked(s).is_none()) && !self.repairs(id)
    }

    /// A server is not used any more: a line that nobody takes out would be a death.
    fn rest(&mut self, id: ServerId) {
        let Some(board) = self.servers.get_mut(id).map(|s| &mut s.board) else {
            return;
        };
        board.renew_at = Time::NEVER;
        board.is_resting = true;
        let mut out = Vec::new();
        bytes::delete(&mut out, &bytes::life_key(self.me.id));
        self.ask_more(id, &out, &[Question::Store]);
        self.take_line_out(id);
    }

    /// A server that is no longer configured is left in order. True while its answer is awaited.
    pub(super) fn goes_to_rest(&mut self, id: ServerId) -> bool {
        let server = self.servers.get(id);
        let rests = server.is_none_or(|s| s.board.is_resting || self.first_link(s).is_none());
        let goes = !rests && self.may_rest(id);
        if goes {
            self.rest(id);
        }
        goes
    }

    /// A server is used again: its marks are written before anything is made of what others left there.
    pub(super) fn wake_marks(&mut self, id: ServerId) {
        if self.servers.get(id).is_some_and(|s| s.board.is_resting) {
            self.renew_marks(id);
        }
    }

    pub(super) fn renew_marks(&mut self, id: ServerId) {
        let me = self.me.id;
        let now = self.now;
        let Some(server) = self.servers.get(id) else {
            return;
        };
        let is_off = self.unmarked(server).is_some() || server.board.is_leaving;
        let text = self.presence(server).text();
        let Some((first, token)) = self.first_link(server).filter(|_| !is_off) else {
            if let Some(server) = self.servers.get_mut(id) {
                server.board.renew_at = Time::NEVER;
            }
            return;
        };
        let Some(server) = self.servers.get_mut(id) else {
            return;
        };
        let board = &mut server.board;
        let is_other = board.begin(token);
        // If it hangs it is asked no more.
        let is_asked = board.asks_for_beacon();
        board.renew_at = now.plus(if is_asked && board.is_resting {
            LOOK_PARKED
        } else {
            RENEW
        });
        if !board.is_resting || !is_asked {
            board.requests = server.stats.requests.all();
        }
        if is_other {
            self.marks_begin(id);
        }
        if is_asked {
            return;
        }
        let Some(board) = self.servers.get_mut(id).map(|s| &mut s.board) else {
            return;
        };
        let (mut out, mut asked) = (Vec::new(), Vec::new());
        board.has_appended = std::mem::take(&mut board.is_resting);
        if board.has_appended {
            bytes::append(&mut out, bytes::BEACON, me, text.as_bytes());
            bytes::read(&mut out, bytes::BEACON);
            asked.extend([Question::Store, Question::Store, Question::Read]);
        } else {
            bytes::look(&mut out, bytes::BEACON);
            asked.push(Question::Look);
        }
        bytes::store(&mut out, &bytes::life_key(me), b"1", false);
        asked.push(Question::Store);
        for other in board.beacon.others() {
            bytes::look(&mut out, &bytes::life_key(other.id));
            asked.push(Question::Life(other.id));
        }
        self.ask_marks(id, first, &out, &asked);
    }

    /// [`Pools::ask_marks`] on the link on which the last answer came.
    pub(super) fn ask_more(&mut self, id: ServerId, requests: &[u8], asked: &[Question]) {
        let first = self.servers.get(id).and_then(|s| self.first_link(s));
        if let Some((link, _)) = first {
            self.ask_marks(id, link, requests, asked);
        }
    }

    /// Takes the own marks away from all servers: this magent ends.
    pub fn take_marks_away(&mut self) {
        for id in self.servers.keys().collect::<Vec<_>>() {
            let Some(server) = self.servers.get(id) else {
                continue;
            };
            let link = self.first_link(server);
            let here = link.filter(|(_, token)| *token == server.board.token);
            if here.is_none() || self.unmarked(server).is_some() {
                continue;
            }
            let mut out = Vec::new();
            bytes::delete(&mut out, &bytes::life_key(self.me.id));
            if let Some(server) = self.servers.get_mut(id) {
                server.board.is_leaving = true;
                server.board.renew_at = Time::NEVER;
            }
            self.ask_more(id, &out, &[Question::Store]);
            self.drop_holds(id);
            self.take_line_out(id);
        }
    }

    pub(super) fn take_line_out(&mut self, id: ServerId) {
        let me = self.me.id;
        // Where it ends before a repair does, that is another one's.
        let is_over = |s: &&Server| !s.board.is_unrepaired && !self.repairs(id);
        let Some(server) = self.servers.get(id).filter(is_over) else {
            return;
        };
        let (board, mut out) = (&server.board, Vec::new());
        if let Some((list, cas)) = board.without(|id| id == me) {
            if !board.beacon.lacks_line() {
                bytes::write_back(&mut out, bytes::BEACON, cas, &list);
                self.ask_more(id, &out, &[Question::WriteBack]);
            }
        }
    }

    /// How many requests about its marks a server owes the answer to.
    pub(super) fn marks_asked(&self, server: &Server) -> usize {
        let link = self.first_link(server);
        let is_here = link.is_some_and(|(_, token)| token == server.board.token);
        if is_here { server.board.asked.len() } else { 0 }
    }

    /// True while the answer is awaited to what takes the own marks away.
    pub fn takes_marks_away(&self) -> bool {
        let leaves = |s: &Server| s.board.is_leaving && s.health.is_up();
        self.servers
            .values()
            .any(|s| leaves(s) && self.marks_asked(s) > 0)
    }

    /// What this magent says of itself on a server.
    pub(super) fn presence(&self, server: &Server) -> Presence {
        Presence {
            process: self.me.process.clone(),
            rings: self.rings_of(server),
        }
    }

    /// A number that magents have in common whose pools put the same keys to the same servers, as far
    /// as this server is concerned.
    pub(super) fn rings_of(&self, server: &Server) -> u64 {
        let all = server.primary_of.iter().chain(&server.backup_of);
        let mut all: Vec<u64> = all.map(|p| self.pools[*p as usize].rings).collect();
        all.sort_unstable();
        all.dedup();
        let bytes: Vec<u8> = all.iter().flat_map(|n| n.to_be_bytes()).collect();
        super::server::fnv(&bytes)
    }
}
