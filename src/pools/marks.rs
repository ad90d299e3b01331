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

use super::board::Question;
use super::pending::{Ask, To};
use super::server::Server;
use super::{Pools, ServerId};
use crate::buffer::Source;
use crate::marks::bytes::{self, Answer, Process};
use crate::marks::times::{ALONE_AFTER, RENEW};
use crate::marks::{Id, Lines, Other, Presence, push_line};
use crate::net::Socket;
use crate::protocol::{Reply, Traits, Verb};
use crate::time::Time;
use std::fmt::Write as _;
use std::hash::{BuildHasher, Hasher, RandomState};

/// What this run of magent is to others.
#[derive(Debug)]
pub struct Me {
    /// Its id.
    pub id: Id,
    host: String,
    /// `--alone`: it leaves no marks.
    pub is_alone: bool,
}

impl Me {
    /// A new id.
    pub fn new(is_alone: bool) -> Me {
        let random = RandomState::new().build_hasher().finish();
        let host = crate::sys::host_name();
        let is_odd = |c: char| c.is_whitespace() || c.is_control();
        Me {
            id: Id(random),
            host: match host.is_empty() || host.contains(is_odd) {
                true => "?".into(),
                false => host,
            },
            is_alone,
        }
    }
}

impl<S: Socket> Pools<S> {
    /// Why a server holds no marks of this magent; `None`: it does, or will once it is used.
    pub(super) fn unmarked(&self, server: &Server) -> Option<&'static str> {
        let mut pools = server.primary_of.iter().chain(&server.backup_of);
        let ejects = |p: &u32| self.pools[*p as usize].config.auto_eject;
        match server {
            _ if self.me.is_alone => Some("alone"),
            _ if pools.any(ejects) => Some("ejected"),
            s if !s.holds_marks => Some("too old"),
            s => s.board.refused,
        }
    }

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

    /// Renews the sign of life of a server that was used since it was last renewed.
    pub(super) fn marks_due(&mut self, id: ServerId) {
        let now = self.now;
        let Some(server) = self.servers.get_mut(id) else {
            return;
        };
        if now < server.board.renew_at {
            return;
        }
        if server.stats.requests.all() == server.board.requests {
            // The next request that is sent to it sets the time anew.
            server.board.renew_at = Time::NEVER;
        } else {
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
        board.begin(token);
        board.renew_at = now.plus(RENEW);
        board.requests = server.stats.requests.all();
        if !board.asked.is_empty() {
            // It hangs.
            return;
        }
        board.has_appended = false;
        let mut out = Vec::new();
        let mut asked = vec![Question::Look, Question::Store];
        bytes::look(&mut out, bytes::BEACON);
        bytes::store(&mut out, &bytes::life_key(me), b"1", false);
        for other in board.beacon.others() {
            bytes::look(&mut out, &bytes::life_key(other.id));
            asked.push(Question::Life(other.id));
        }
        self.ask_marks(id, first, &out, &asked);
    }

    /// A server's first link, if it works, and its socket's number.
    fn first_link(&self, server: &Server) -> Option<(usize, usize)> {
        let first = *server.links.first()?;
        let link = self.links.get(first).filter(|l| l.is_up())?;
        Some((first, link.token))
    }

    /// How many requests about its marks a server owes the answer to.
    pub(super) fn marks_asked(&self, server: &Server) -> usize {
        let link = self.first_link(server);
        let is_here = link.is_some_and(|(_, token)| token == server.board.token);
        if is_here { server.board.asked.len() } else { 0 }
    }

    /// Sends these requests in one write.
    fn ask_marks(&mut self, id: ServerId, link: usize, requests: &[u8], asked: &[Question]) {
        if let Some(server) = self.servers.get_mut(id) {
            server.board.asked.extend(asked);
        }
        let mut rest = requests;
        while !rest.is_empty() {
            let (verb, line, len) = next_request(rest);
            let ask = Ask {
                data: (Source::Slice(rest), line..len),
                ..Ask::line(verb, Traits::default(), &rest[..line])
            };
            let pending = self.own(To::Mark, verb, Traits::default(), 0);
            self.send_on(link, pending, &ask);
            rest = &rest[len..];
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
            (Question::WriteBack, Answer::Done(_) | Answer::Changed | Answer::Absent) => {
                self.read_list(id);
            }
            // Also of a list that went between the two requests that append to it.
            (Question::Store, Answer::Done(_) | Answer::NotStored | Answer::Absent) => {}
            _ => board.refused = Some("refused"),
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

    /// [`Pools::ask_marks`] on the link on which the last answer came.
    fn ask_more(&mut self, id: ServerId, requests: &[u8], asked: &[Question]) {
        let first = self.servers.get(id).and_then(|s| self.first_link(s));
        if let Some((link, _)) = first {
            self.ask_marks(id, link, requests, asked);
        }
    }

    /// The list was read: the own line must stand there, or go.
    fn list_read(&mut self, id: ServerId) {
        self.note_others(id);
        let Some(server) = self.servers.get(id) else {
            return;
        };
        let (me, text) = (self.me.id, self.presence(server).text());
        let Some(board) = self.servers.get_mut(id).map(|s| &mut s.board) else {
            return;
        };
        if board.is_leaving {
            return self.take_line_out(id);
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
    }

    /// Another one's sign of life was there, or not.
    fn met(&mut self, id: ServerId, other: Id, is_there: bool) {
        let (now, host) = (self.now, &self.me.host);
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
            self.ask_more(id, &out, &[Question::WriteBack]);
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
            self.take_line_out(id);
        }
    }

    fn take_line_out(&mut self, id: ServerId) {
        let me = self.me.id;
        let Some(board) = self.servers.get(id).map(|s| &s.board) else {
            return;
        };
        let mut out = Vec::new();
        if let Some((list, cas)) = board.without(|id| id == me) {
            if !board.beacon.lacks_line() {
                bytes::write_back(&mut out, bytes::BEACON, cas, &list);
                self.ask_more(id, &out, &[Question::WriteBack]);
            }
        }
    }

    /// True while the answer is awaited to what takes the own marks away.
    pub(super) fn takes_marks_away(&self) -> bool {
        let leaves = |s: &Server| s.board.is_leaving && s.health.is_up();
        self.servers
            .values()
            .any(|s| leaves(s) && self.marks_asked(s) > 0)
    }

    /// What this magent says of itself on a server.
    fn presence(&self, server: &Server) -> Presence {
        Presence {
            process: Process {
                host: self.me.host.clone(),
                pid: std::process::id(),
            },
            rings: self.rings_of(server),
        }
    }

    /// A number that magents have in common whose pools put the same keys to the same servers, as far
    /// as this server is concerned. FNV-1a of the settings of its pools that decide on that.
    pub(super) fn rings_of(&self, server: &Server) -> u64 {
        let all = server.primary_of.iter().chain(&server.backup_of);
        let mut texts: Vec<String> = all
            .map(|p| {
                let config = &self.pools[*p as usize].config;
                let (hash, how) = (config.hash.name(), config.distribution.name());
                let mut text = format!("{hash} {how} {:?}", config.hash_tag);
                for spec in config.primaries.iter().chain(&config.backups) {
                    let _ = write!(text, " {} {}", spec.hash_name, spec.weight);
                }
                let _ = write!(text, " {}", config.primaries.len());
                text
            })
            .collect();
        texts.sort();
        texts.dedup();
        super::server::fnv(texts.join("\n").as_bytes())
    }
}

/// The first of some requests: its command, and the lengths of its line and of all of it.
fn next_request(requests: &[u8]) -> (Verb, usize, usize) {
    let end = requests.windows(2).position(|w| w == b"\r\n");
    let line = end.map_or(requests.len(), |n| n + 2);
    let verb = match requests.get(..2) {
        Some(b"ms") => Verb::MetaSet,
        Some(b"md") => Verb::MetaDelete,
        Some(b"me") => Verb::MetaDebug,
        _ => Verb::MetaGet,
    };
    let mut words = requests[..line].split(|b| *b == b' ');
    let data = match verb {
        Verb::MetaSet => words
            .nth(2)
            .and_then(|len| std::str::from_utf8(len).ok()?.parse::<usize>().ok())
            .map_or(0, |len| len + 2),
        _ => 0,
    };
    (verb, line, (line + data).min(requests.len()))
}
