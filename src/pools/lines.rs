//! What is written on a backup about the primaries that it stands in for, and how requests about marks are
//! sent: on the server's first link, in order, those that belong together in one write.

use super::board::Question;
use super::pairs::Change;
use super::pending::{Ask, Pending, To, was_asked};
use super::server::Server;
use super::{NOBODY, Pools, ServerId};
use crate::buffer::Source;
use crate::marks::bytes::{self, Hold};
use crate::marks::times::{LOOK_PARKED, RENEW};
use crate::marks::{Id, Line, Listed, push_line};
use crate::net::Socket;
use crate::protocol::{Traits, Verb};
use crate::time::Time;

impl<S: Socket> Pools<S> {
    /// Lists a pair that is to be looked after.
    pub(super) fn list_pair(&mut self, id: usize) {
        if let Some(pair) = self.pairs.get_mut(id) {
            self.to_advance.add(id, &mut pair.listed);
        }
    }

    /// Lists the pairs in which a server is the backup that may miss mirrors.
    pub(super) fn list_follower(&mut self, id: ServerId) {
        let count = self.servers.get(id).map_or(0, |s| s.follows.len());
        for at in 0..count {
            let pair = self
                .servers
                .get(id)
                .and_then(|s| s.follows.get(at).copied());
            pair.into_iter().for_each(|pair| self.list_pair(pair));
        }
    }

    /// A primary is not asked before its backups' lists were looked at again.
    pub(super) fn end_free(&mut self, primary: ServerId) {
        if let Some(server) = self.servers.get_mut(primary) {
            if !server.pairs.is_empty() {
                server.free_until = Time(0);
            }
        }
    }

    /// What is on its way from or to a primary that is not used any more is not copied, and what was found of the
    /// keys of requests that wait is in doubt.
    pub(super) fn copy_nothing_from(&mut self, primary: ServerId) {
        for id in self.servers.get(primary).map_or(&[][..], |s| &s.pairs) {
            let parked = self.pairs.get_mut(*id).map(|p| &mut p.parked);
            let parked = parked.into_iter().flatten();
            // What was sent goes to the backup.
            let unsent = parked.filter(|l| !was_asked(l.cause));
            for pending in unsent.flat_map(|l| &mut l.pending) {
                pending.look_again();
            }
        }
        self.keep_missing(primary);
        self.flows.outdate(primary);
        self.refills.copies.void(primary);
    }

    pub(super) fn open_if_idle(&mut self, link: Option<usize>) {
        let is_idle = |l: &usize| self.links.get(*l).is_some_and(super::Link::is_closed);
        if let Some(link) = link.filter(is_idle) {
            self.open_link(link);
        }
    }

    /// The first link of a server as it is now: what was asked on another one is never answered. Opens it if
    /// need be.
    pub(super) fn begin_marks(&mut self, id: ServerId) -> Option<usize> {
        let server = self.servers.get(id)?;
        if self.unmarked(server).is_some() {
            return None;
        }
        let now = self.now;
        let Some((link, token)) = self.first_link(server) else {
            let first = server.links.first().copied();
            self.open_if_idle(first);
            let away = &mut self.servers.get_mut(id)?.board.away;
            away.waits_since.get_or_insert(now);
            return None;
        };
        let board = &mut self.servers.get_mut(id)?.board;
        board.away.waits_since = None;
        if board.begin(token) {
            self.marks_begin(id);
        }
        Some(link)
    }

    /// What was asked about a server's list on an earlier link may be done at any time, or never.
    pub(super) fn marks_begin(&mut self, id: ServerId) {
        let board = self.servers.get_mut(id).map(|s| &mut s.board);
        if board.is_some_and(|b| std::mem::take(&mut b.may_have_dropped)) {
            self.mourn(id, false);
        }
        let pairs = self
            .servers
            .get(id)
            .map_or(Vec::new(), |s| s.stands_in_for.clone());
        for id in pairs {
            let now = self.now;
            let Some(pair) = self.pairs.get_mut(id) else {
                continue;
            };
            match (pair.change.take(), &mut pair.backup) {
                // The next look tells whether it stands.
                (Some(Change::Leave(_)), Some(_)) => {}
                (Some(Change::TakeOver(_)), Some(backup)) => {
                    backup.taken_over();
                    pair.syncing_since = now;
                    if let Some(server) = self.servers.get_mut(pair.primary) {
                        server.journal.mark_flush();
                    }
                }
                (Some(Change::Leave(_)), None) => pair.rules.step(now, |r| r.left_or_not()),
                (Some(Change::TakeOver(_)), None) => {
                    pair.rules.step(now, |r| r.taken_over_or_not());
                }
                (Some(Change::Announce) | None, _) => continue,
            }
            self.list_pair(id);
        }
    }

    /// Writes the own line of a pair and looks behind it, all in one write.
    pub(super) fn announce(&mut self, id: usize) {
        let Some(pair) = self.pairs.get(id) else {
            return;
        };
        let partner = pair.partner;
        let Some(link) = self.begin_marks(partner) else {
            return self.look_soon(partner);
        };
        let (me, now) = (self.me.id, self.now);
        let hold = self.hold_text(id);
        let Some(pair) = self.pairs.get_mut(id) else {
            return;
        };
        pair.change = Some(Change::Announce);
        pair.hold = Some((hold.0, now));
        let mut out = Vec::new();
        bytes::append(&mut out, bytes::LIST, me, &pair.about);
        bytes::store(
            &mut out,
            &bytes::hold_key(me, &pair.about),
            hold.1.as_bytes(),
            false,
        );
        // Is anybody there whom it has not heard of?
        bytes::look(&mut out, bytes::BEACON);
        bytes::read(&mut out, bytes::LIST);
        let asked = [
            Question::Store,
            Question::Store,
            Question::Store,
            Question::Look,
            Question::Announced(id, now),
        ];
        self.ask_marks(partner, link, &out, &asked);
        self.look_soon(partner);
    }

    /// The next look at a server's list comes soon.
    pub(super) fn look_soon(&mut self, id: ServerId) {
        let soon = self.now.plus(LOOK_PARKED);
        if let Some(server) = self.servers.get_mut(id) {
            server.board.away.look_at = server.board.away.look_at.min(soon);
        }
    }

    /// What the own hold of a pair is to say.
    fn hold_text(&self, id: usize) -> (bool, String) {
        let primary = self.pairs.get(id).map_or(NOBODY, |p| p.primary);
        let hold = Hold {
            answers: self.is_up(primary),
            process: self.me.process.clone(),
        };
        (hold.answers, hold.text())
    }

    /// Renews the own hold of a pair, each second and when it changes.
    pub(super) fn renew_hold(&mut self, id: usize) {
        let (me, now, hold) = (self.me.id, self.now, self.hold_text(id));
        let Some(pair) = self.pairs.get(id) else {
            return;
        };
        let said = pair.hold.filter(|(_, at)| now.since(*at) < RENEW);
        if said.is_some_and(|(answers, _)| answers == hold.0) {
            return;
        }
        let partner = pair.partner;
        let is_leaving = self.servers.get(partner).is_none_or(|s| s.board.is_leaving);
        let Some(link) = self.begin_marks(partner).filter(|_| !is_leaving) else {
            return;
        };
        let Some(pair) = self.pairs.get_mut(id) else {
            return;
        };
        pair.hold = Some((hold.0, now));
        let mut out = Vec::new();
        bytes::store(
            &mut out,
            &bytes::hold_key(me, &pair.about),
            hold.1.as_bytes(),
            false,
        );
        self.ask_marks(partner, link, &out, &[Question::Store]);
    }

    /// A `flush_all` takes the list of a server away: the own lines follow behind it.
    pub(super) fn renew_lines(&mut self, id: ServerId) {
        let pairs = self
            .servers
            .get(id)
            .map_or(Vec::new(), |s| s.stands_in_for.clone());
        let me = self.me.id;
        for pair_id in pairs {
            let hold = self.hold_text(pair_id).1;
            let Some(pair) = self.pairs.get_mut(pair_id) else {
                continue;
            };
            if !pair.has_line() {
                continue;
            }
            let mut out = Vec::new();
            bytes::append(&mut out, bytes::LIST, me, &pair.about);
            bytes::store(
                &mut out,
                &bytes::hold_key(me, &pair.about),
                hold.as_bytes(),
                false,
            );
            if let Some(link) = self.begin_marks(id) {
                self.ask_marks(id, link, &out, &[Question::Store; 3]);
            }
        }
    }

    /// This magent ends: nobody waits for it to renew its holds.
    pub(super) fn drop_holds(&mut self, id: ServerId) {
        let pairs = self
            .servers
            .get(id)
            .map_or(Vec::new(), |s| s.stands_in_for.clone());
        let me = self.me.id;
        for pair in pairs {
            let Some(pair) = self.pairs.get_mut(pair) else {
                continue;
            };
            if !pair.has_line() {
                continue;
            }
            let mut out = Vec::new();
            bytes::delete(&mut out, &bytes::hold_key(me, &pair.about));
            if let Some(link) = self.begin_marks(id) {
                self.ask_marks(id, link, &out, &[Question::Store]);
            }
        }
    }

    /// Takes the own line of a pair out. False if the list must be read first.
    pub(super) fn take_line_of(&mut self, id: usize) -> bool {
        let (me, now) = (self.me.id, self.now);
        let Some((partner, about)) = self.pairs.get(id).map(|p| (p.partner, p.about.clone()))
        else {
            return false;
        };
        let is_kept = |l: &Line| l.id != me || l.text != about;
        let Some((link, cas, rest)) = self.rest_of_list(partner, is_kept) else {
            return false;
        };
        let Some(pair) = self.pairs.get_mut(id) else {
            return false;
        };
        let may_go = match &pair.backup {
            Some(backup) => backup.may_take_out(),
            None => pair.rules.step(now, |rules| rules.leave()),
        };
        if !may_go {
            return false;
        }
        let mut out = Vec::new();
        bytes::write_back(&mut out, bytes::LIST, cas, &rest);
        pair.change = Some(Change::Leave(rest));
        self.ask_marks(partner, link, &out, &[Question::Left(id, now)]);
        true
    }

    /// Exchanges the lines of the dead about a pair's primary for the own one. False if the list must be
    /// read first.
    pub(super) fn take_over(&mut self, id: usize, gone: &[Id]) -> bool {
        let (me, now) = (self.me.id, self.now);
        let hold = self.hold_text(id);
        let Some((partner, about)) = self.pairs.get(id).map(|p| (p.partner, p.about.clone()))
        else {
            return false;
        };
        let is_kept = |l: &Line| l.text != about || (l.id != me && !gone.contains(&l.id));
        let Some((link, cas, mut list)) = self.rest_of_list(partner, is_kept) else {
            return false;
        };
        push_line(&mut list, me, &about);
        let Some(pair) = self.pairs.get_mut(id) else {
            return false;
        };
        let mut out = Vec::new();
        bytes::write_back(&mut out, bytes::LIST, cas, &list);
        bytes::store(
            &mut out,
            &bytes::hold_key(me, &about),
            hold.1.as_bytes(),
            false,
        );
        pair.change = Some(Change::TakeOver(list));
        pair.hold = Some((hold.0, now));
        self.ask_marks(
            partner,
            link,
            &out,
            &[Question::TakenOver(id, now), Question::Store],
        );
        true
    }

    /// A server's list but for some lines, the link to write it back on, and the cas.
    fn rest_of_list(
        &mut self,
        id: ServerId,
        is_kept: impl Fn(&Line) -> bool,
    ) -> Option<(usize, u64, Vec<u8>)> {
        let link = self.begin_marks(id)?;
        let away = &self.servers.get(id)?.board.away;
        let cas = away.cas()?;
        let mut rest = Vec::new();
        away.lines().keep(&mut rest, is_kept);
        Some((link, cas, rest))
    }

    pub(super) fn line_is_out(
        &mut self,
        partner: ServerId,
        id: usize,
        sent: Time,
        cas: Option<u64>,
    ) {
        let (me, now) = (self.me.id, self.now);
        let Some(pair) = self.pairs.get_mut(id) else {
            return;
        };
        let Some(Change::Leave(rest)) = pair.change.take() else {
            return;
        };
        let Some(board) = self.servers.get_mut(partner).map(|s| &mut s.board) else {
            return;
        };
        board.away.set(&rest, cas.filter(|_| !rest.is_empty()));
        pair.hold = None;
        let (_, others) = pair.see_others(board, me);
        let listed = Listed {
            mine: false,
            others,
        };
        let is_good = match &mut pair.backup {
            Some(backup) => {
                backup.taken_out();
                false
            }
            None => pair.rules.left(listed, sent, now),
        };
        let hold = bytes::hold_key(me, &pair.about);
        let primary = pair.primary;
        if let Some(server) = self.servers.get(primary) {
            let rest = if others {
                "; others still keep it away"
            } else {
                ""
            };
            match is_good {
                true => log::info!("{}: answered late after all", server.title),
                false => log::info!("{}: told what it missed{rest}", server.title),
            }
        }
        if let Some(link) = self.begin_marks(partner) {
            let mut out = Vec::new();
            bytes::delete(&mut out, &hold);
            self.ask_marks(partner, link, &out, &[Question::Store]);
        }
        // Its journal may have overflowed since it was told.
        self.list_pair(id);
    }

    pub(super) fn took_over(&mut self, partner: ServerId, id: usize, sent: Time, cas: Option<u64>) {
        let (me, now) = (self.me.id, self.now);
        let Some(pair) = self.pairs.get_mut(id) else {
            return;
        };
        let Some(Change::TakeOver(list)) = pair.change.take() else {
            return;
        };
        let Some(board) = self.servers.get_mut(partner).map(|s| &mut s.board) else {
            return;
        };
        board.away.set(&list, cas);
        pair.see_others(board, me);
        match &mut pair.backup {
            Some(backup) => {
                backup.taken_over();
                pair.syncing_since = now;
            }
            None => {
                pair.rules.taken_over(sent, now);
                pair.is_doubtful = true;
            }
        }
        if let Some(server) = self.servers.get_mut(pair.primary) {
            log::warn!(
                "{}: a magent that kept it away is gone; it will be flushed",
                server.title
            );
            server.journal.mark_flush();
        }
        self.list_pair(id);
    }

    // ---- requests about marks

    /// Why a server holds no marks of this magent; `None`: it does, or will once it is used.
    pub(super) fn unmarked(&self, server: &Server) -> Option<&'static str> {
        let mut pools = server.primary_of.iter().chain(&server.backup_of);
        let ejects = |p: &u32| self.pools[*p as usize].config.auto_eject;
        match server {
            _ if self.is_alone => Some("alone"),
            _ if pools.any(ejects) => Some("ejected"),
            s if !s.holds_marks => Some("too old"),
            s => s.board.refused,
        }
    }

    /// A server's first link, if it works, and its socket's number.
    pub(super) fn first_link(&self, server: &Server) -> Option<(usize, usize)> {
        let first = *server.links.first()?;
        let link = self.links.get(first).filter(|l| l.is_up())?;
        Some((first, link.token))
    }

    /// Sends these requests in one write.
    pub(super) fn ask_marks(
        &mut self,
        id: ServerId,
        link: usize,
        requests: &[u8],
        asked: &[Question],
    ) {
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
            let pending: Pending = self.own(To::Mark, verb, Traits::default(), 0);
            self.send_on(link, pending, &ask);
            rest = &rest[len..];
        }
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
