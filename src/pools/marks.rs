//! Marks: what magents that share a server leave for each other on it. Each has a line in a list, the
//! beacon, and a sign of life, which it renews while it uses the server.
//!
//! ```text
//!  handshake, each second ──▶ look at the list, renew the sign of life, look for the others'
//!                                  │ another list
//!                                  ▼
//!                                 read ──▶ own line missing: append it and read
//!                                      ──▶ a line without a sign of life: write the list back without it
//! ```
//!
//! All of it goes on the server's first link and is answered in order.

use super::board::{Question, REFUSED};
use super::{Pools, ServerId};
use crate::marks::bytes::{self, Answer};
use crate::marks::times::{ALONE_AFTER, LOOK_PARKED};
use crate::marks::{Id, Lines, Other, Presence, push_line};
use crate::net::Socket;
use crate::protocol::Reply;

impl<S: Socket> Pools<S> {
    /// A link has answered the handshake: what is on the server is looked at.
    pub(super) fn look_for_others(&mut self, id: usize) {
        let Some(link) = self.links.get(id) else {
            return;
        };
        let server = link.server;
        if let Some(s) = self.servers.get_mut(server) {
            if s.links.first() == Some(&id) {
                s.board.refused = None;
                self.renew_marks(server);
            }
        }
    }

    /// A server answered the oldest of the requests about its marks.
    pub(super) fn mark_answered(&mut self, id: ServerId, reply: &Reply<'_>) {
        let now = self.now;
        let Some(board) = self.servers.get_mut(id).map(|s| &mut s.board) else {
            return;
        };
        let Some(question) = board.asked.pop_front() else {
            return;
        };
        let mut text = Vec::new();
        let range = reply.at..reply.at + reply.len;
        reply.source.copy_to(range, &mut text);
        match (question, Answer::parse(&text)) {
            (Question::Look, Answer::There(cas)) if board.is_known(cas) => {
                self.list_read(id);
                self.drop_dead(id);
            }
            (Question::DropDead, Answer::Done(_)) => {
                self.mourn(id, true);
                self.read_list(id);
            }
            (Question::Look, Answer::There(_) | Answer::Absent) => self.read_list(id),
            (Question::Read, Answer::Absent) => {
                board.read(b"", None, now);
                self.list_read(id);
            }
            (Question::Read, Answer::Value(list, Some(0) | None)) => {
                board.refused = Some("no cas");
                self.tell_no_cas(id, list);
            }
            (Question::Read, Answer::Value(list, cas)) => {
                board.read(list, cas, now);
                self.list_read(id);
            }
            (Question::Life(other), Answer::There(_)) => self.met(id, other, true),
            (Question::Life(other), Answer::Absent) => self.met(id, other, false),
            // It has changed, or is the one that was written: read anew either way.
            (
                Question::WriteBack | Question::DropDead,
                Answer::Done(_) | Answer::Changed | Answer::Absent,
            ) => self.read_list(id),
            // Also of a list that went between the two requests that append to it.
            (Question::Store, Answer::Done(_) | Answer::NotStored | Answer::Absent) => {}
            (
                Question::Look
                | Question::Read
                | Question::Life(_)
                | Question::WriteBack
                | Question::DropDead
                | Question::Store,
                _,
            ) => board.refused = Some(REFUSED),
            (Question::Trial, Answer::Done(_)) => {
                // All begins anew, as on a new link.
                (board.refused, board.token) = (None, 0);
                self.renew_marks(id);
            }
            (Question::Trial, _) => {}
            (question, answer) => self.away_answered(id, question, answer),
        }
    }

    /// A server has no cas numbers, by which copies are looked after; `list` shows who else is there.
    fn tell_no_cas(&mut self, id: ServerId, list: &[u8]) {
        let me = self.me.id;
        let is_shared = Lines(list).iter().any(|line| line.id != me);
        let Some(server) = self.servers.get_mut(id).filter(|_| is_shared) else {
            return;
        };
        if !std::mem::replace(&mut server.board.is_told, true) {
            log::warn!(
                "{}: other magents use it too, and it counts no changes (-C): copies may differ from what \
                 they wrote at the same time",
                server.title
            );
        }
    }

    fn read_list(&mut self, id: ServerId) {
        let mut out = Vec::new();
        bytes::read(&mut out, bytes::BEACON);
        self.ask_more(id, &out, &[Question::Read]);
    }

    /// The list was read: the own line must stand there, or go.
    fn list_read(&mut self, id: ServerId) {
        self.note_others(id);
        let Some(server) = self.servers.get(id) else {
            return;
        };
        let (me, now, text) = (self.me.id, self.now, self.presence(server).text());
        let Some(board) = self.servers.get_mut(id).map(|s| &mut s.board) else {
            return;
        };
        if board.is_leaving || board.is_resting {
            return self.take_line_out(id);
        }
        // It has restarted, or was flushed.
        let is_lost = board.beacon.lacks_line();
        if is_lost && board.has_appended {
            // Just after it was appended: nothing is used before it stands.
            board.renew_at = board.renew_at.min(now.plus(LOOK_PARKED));
        }
        let (mut out, mut asked) = (Vec::new(), Vec::new());
        let unmet = board.beacon.others().iter();
        for other in unmet.filter(|other| other.is_alive.is_none()) {
            bytes::look(&mut out, &bytes::life_key(other.id));
            asked.push(Question::Life(other.id));
        }
        if !board.says(me, text.as_bytes()) && !board.has_appended {
            board.has_appended = true;
            let (is_missing, list) = (board.beacon.lacks_line(), board.without(|id| id == me));
            match list.filter(|_| !is_missing) {
                // A reload has changed the rings.
                Some((mut list, cas)) => {
                    push_line(&mut list, me, text.as_bytes());
                    bytes::write_back(&mut out, bytes::BEACON, cas, &list);
                    asked.push(Question::WriteBack);
                }
                None => {
                    bytes::append(&mut out, bytes::BEACON, me, text.as_bytes());
                    bytes::read(&mut out, bytes::BEACON);
                    asked.extend([Question::Store, Question::Store, Question::Read]);
                }
            }
        }
        self.ask_more(id, &out, &asked);
        if is_lost {
            self.keep_missing(id);
        }
        self.fill_bereft(id);
    }

    /// Another one's sign of life was there, or not.
    fn met(&mut self, id: ServerId, other: Id, is_there: bool) {
        let (now, host) = (self.now, &self.me.process.host);
        let Some(server) = self.servers.get_mut(id) else {
            return;
        };
        let is_local = server.address().is_some_and(|a| a.ip().is_loopback());
        let (name, beacon) = (&server.title, &mut server.board.beacon);
        let known = beacon.others().iter().find(|o| o.id == other);
        if let Some(known) = known.filter(|o| is_there && o.is_alive != Some(true)) {
            log::info!("{name}: magent {} uses it too", known);
            let elsewhere = |p: &Presence| p.process.host != *host;
            if is_local && known.presence.as_ref().is_some_and(elsewhere) {
                log::warn!(
                    "{name}: magent {} on another host uses it too, and knows it by another address",
                    known
                );
            }
        }
        beacon.asked(other, is_there, now);
        self.note_others(id);
    }

    /// Copies are to be looked after while others use a server.
    fn note_others(&mut self, id: ServerId) {
        let now = self.now;
        let server = self.servers.get(id);
        if server.is_some_and(|s| s.board.beacon.is_shared(now)) {
            self.watched.shared_until = now.plus(ALONE_AFTER);
        }
    }

    /// Takes the lines of those out whose sign of life is gone.
    fn drop_dead(&mut self, id: ServerId) {
        let Some(server) = self.servers.get(id) else {
            return;
        };
        let (name, board) = (&server.title, &server.board);
        let dead: Vec<&Other> = board.beacon.dead().collect();
        if dead.is_empty() {
            return;
        }
        for other in &dead {
            log::info!("{name}: magent {} does not use it any more", other);
        }
        let is_dead = |id| dead.iter().any(|other| other.id == id);
        let mut out = Vec::new();
        if let Some((list, cas)) = board.without(is_dead) {
            bytes::write_back(&mut out, bytes::BEACON, cas, &list);
            self.ask_more(id, &out, &[Question::DropDead]);
        }
    }
}
