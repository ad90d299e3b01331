//! Looks at who is kept away from whom: a list on each backup, with a line for each magent that uses it
//! in a primary's place. What a look shows is told to the pairs.
//!
//! All of it goes on the backup's first link, behind the mirrors there, and is answered in order.

use super::board::{Question, REFUSED};
use super::{Pools, ServerId};
use crate::marks::bytes::{self, Answer, Hold};
use crate::marks::times::{LOOK, LOOK_PARKED, WAIT};
use crate::marks::{Id, Listed, Primary, Use};
use crate::net::Socket;
use crate::time::{MILLISECOND, Time};

/// Looks at one list that may be unanswered: a lease lasts three of them.
const LOOKS: usize = 4;

/// A list is not looked at any more when nobody has used what it is about for so long, in nanoseconds.
const IDLE: u64 = 500 * MILLISECOND;

impl<S: Socket> Pools<S> {
    /// A list is to be looked at as soon as its server can be asked.
    pub(super) fn want_look(&mut self, id: ServerId) {
        let now = self.now;
        let Some(server) = self.servers.get_mut(id).filter(|s| s.health.is_up()) else {
            return;
        };
        server.board.away.used_at = now;
        let looks = server.board.looks();
        self.wake_marks(id);
        self.look_soon(id);
        self.begin_marks(id);
        let is_asked = self.servers.get(id).is_some_and(|s| s.board.looks() > 0) && looks > 0;
        if !is_asked {
            self.look_at_list(id);
        }
    }

    /// Looks at a server's list.
    fn look_at_list(&mut self, id: ServerId) {
        let Some(link) = self.begin_marks(id) else {
            return;
        };
        let now = self.now;
        let Some(server) = self.servers.get(id) else {
            return;
        };
        let (mut out, mut asked) = (Vec::new(), Vec::new());
        // A look counts as no get on the server.
        match server.board.away.is_read() {
            true => {
                bytes::look(&mut out, bytes::LIST);
                asked.push(Question::LookAway(now));
            }
            false => {
                bytes::read(&mut out, bytes::LIST);
                asked.push(Question::ReadAway(now));
            }
        }
        for at in 0..server.stands_in_for.len() {
            let pair_id = server.stands_in_for[at];
            let Some(pair) = self.pairs.get_mut(pair_id) else {
                continue;
            };
            for other in &pair.others {
                let key = bytes::hold_key(other.id, &pair.about);
                match other.is_read() {
                    true => {
                        bytes::look(&mut out, &key);
                        asked.push(Question::LookHold(pair_id, other.id));
                    }
                    false => {
                        bytes::read(&mut out, &key);
                        asked.push(Question::Hold(pair_id, other.id));
                    }
                }
            }
        }
        self.ask_marks(id, link, &out, &asked);
    }

    /// The time of the next look at a server's list has come.
    pub(super) fn look_due(&mut self, id: ServerId) {
        let now = self.now;
        let Some(server) = self.servers.get(id) else {
            return;
        };
        if now < server.board.away.look_at {
            return;
        }
        let uses = |pair: &usize| {
            let pair = self.pairs.get(*pair)?;
            let user = match pair.backup {
                Some(_) => pair.partner,
                None => pair.primary,
            };
            Some(self.servers.get(user)?.stats.requests.all())
        };
        let uses: u64 = server.stands_in_for.iter().filter_map(uses).sum();
        let mut is_awaited = false;
        let mut rests = true;
        for at in 0..server.stands_in_for.len() {
            let Some(server) = self.servers.get(id) else {
                return;
            };
            let pair_id = server.stands_in_for[at];
            let Some(pair) = self.pairs.get_mut(pair_id) else {
                continue;
            };
            let is_busy = pair.is_busy(now);
            is_awaited |= pair.is_awaited() || pair.closes;
            rests &= !is_busy && !pair.is_awaited();
            if is_busy || pair.is_awaited() {
                self.list_pair(pair_id);
            }
        }
        let is_paused = self.paused && !is_awaited;
        let Some(server) = self.servers.get_mut(id) else {
            return;
        };
        let away = &mut server.board.away;
        let is_used = std::mem::replace(&mut away.uses, uses) != uses;
        if is_used || !self.refills.jobs.is_empty() {
            away.used_at = now;
        }
        if rests && now.since(away.used_at) > IDLE {
            // Whoever is used next finds its lease over.
            away.look_at = Time::NEVER;
            return;
        }
        away.look_at = now.plus(if is_awaited { LOOK_PARKED } else { LOOK });
        if server.health.is_up() && server.board.looks() < LOOKS && !is_paused {
            self.wake_marks(id);
            self.look_at_list(id);
        }
    }

    /// An answer about the list came.
    pub(super) fn away_answered(&mut self, id: ServerId, question: Question, answer: Answer<'_>) {
        let Some(board) = self.servers.get_mut(id).map(|s| &mut s.board) else {
            return;
        };
        let mut is_well = true;
        match (question, answer) {
            (Question::LookAway(at), Answer::There(cas)) if board.away.is_known(cas) => {
                self.list_seen(id, at, None);
            }
            (Question::LookAway(_), Answer::There(_)) => {
                board.away.forget();
                self.look_at_list(id);
            }
            (Question::LookAway(at) | Question::ReadAway(at), Answer::Absent) => {
                board.away.set(b"", None);
                self.list_seen(id, at, None);
            }
            (Question::ReadAway(at), Answer::Value(text, cas @ Some(1..))) => {
                is_well = board.away.set(text, cas);
                self.list_seen(id, at, None);
            }
            (Question::Announced(pair, at), Answer::Value(text, cas @ Some(1..))) => {
                is_well = board.away.set(text, cas);
                self.list_seen(id, at, Some(pair));
            }
            (Question::Announced(pair, at), Answer::Absent) => {
                board.away.set(b"", None);
                self.list_seen(id, at, Some(pair));
            }
            (Question::Left(pair, at), Answer::Done(cas)) => self.line_is_out(id, pair, at, cas),
            (Question::TakenOver(pair, at), Answer::Done(cas)) => self.took_over(id, pair, at, cas),
            (Question::Left(pair, _), Answer::Changed | Answer::Absent) => {
                board.away.forget();
                self.not_changed(pair, |rules| rules.not_left());
                self.want_look(id);
            }
            (Question::TakenOver(pair, _), Answer::Changed | Answer::Absent) => {
                board.away.forget();
                self.not_changed(pair, |_| ());
                self.want_look(id);
            }
            (Question::Hold(pair, other), Answer::Value(text, cas)) => {
                let hold = Hold::parse(text);
                let title = format!("{} {}", hold.process.host, hold.process.pid);
                let cas = cas.unwrap_or(0);
                self.hold_seen(pair, other, Some((hold.answers, title, cas)));
            }
            (Question::LookHold(pair, other), Answer::There(cas)) => {
                self.hold_stands(id, pair, other, cas);
            }
            (Question::Hold(pair, other) | Question::LookHold(pair, other), Answer::Absent) => {
                self.hold_seen(pair, other, None);
            }
            _ => is_well = false,
        }
        if let Some(board) = self
            .servers
            .get_mut(id)
            .map(|s| &mut s.board)
            .filter(|_| !is_well)
        {
            board.refused = Some(REFUSED);
            let pairs = self
                .servers
                .get(id)
                .map_or(Vec::new(), |s| s.stands_in_for.clone());
            pairs.into_iter().for_each(|id| self.list_pair(id));
        }
    }

    /// A list was seen as it was at `sent`, behind the line of the pair `announced`.
    fn list_seen(&mut self, id: ServerId, sent: Time, announced: Option<usize>) {
        let (me, now) = (self.me.id, self.now);
        for at in 0.. {
            let Some(server) = self.servers.get(id) else {
                return;
            };
            let Some(pair_id) = server.stands_in_for.get(at).copied() else {
                return;
            };
            // Who is not listed on the beacon itself may be unknown to one that waits for nobody.
            let is_met = !server.board.beacon.lacks_line();
            let Some(pair) = self.pairs.get_mut(pair_id) else {
                continue;
            };
            let had_others = !pair.others.is_empty();
            let (mine, others) = pair.see_others(&server.board, me);
            let listed = Listed { mine, others };
            if let Some(backup) = &mut pair.backup {
                if announced == Some(pair_id) {
                    pair.change = None;
                    backup.announced(listed);
                } else {
                    backup.looked(listed);
                }
                if pair.is_busy(now) {
                    self.list_pair(pair_id);
                }
                continue;
            }
            if announced == Some(pair_id) {
                pair.change = None;
                pair.rules.announced(listed, sent, now);
            } else if is_met || !listed.is_empty() {
                pair.rules.looked(listed, sent, now);
            }
            let primary = pair.primary;
            let rules = pair.rules.at(now, WAIT);
            let is_used = rules.serves() == Use::Primary;
            if !is_used || pair.is_awaited() || pair.is_doubtful {
                self.list_pair(pair_id);
            }
            if others && !had_others {
                self.end_free(primary);
                self.others_came(pair_id);
            }
        }
    }

    /// Others keep a primary away now.
    fn others_came(&mut self, id: usize) {
        let Some(pair) = self.pairs.get_mut(id) else {
            return;
        };
        pair.is_doubtful = true;
        let primary = pair.primary;
        self.copy_nothing_from(primary);
    }

    fn hold_seen(&mut self, pair: usize, other: Id, hold: Option<(bool, String, u64)>) {
        let now = self.now;
        let Some(pair_) = self.pairs.get_mut(pair) else {
            return;
        };
        let primary = pair_.primary;
        if let Some(holder) = pair_.others.iter_mut().find(|o| o.id == other) {
            if let (true, Some((_, title, _))) = (holder.title.is_empty(), &hold) {
                let server = self.servers.get(primary).map_or("", |s| &s.title);
                log::info!("{server}: kept away by magent {title}");
            }
            let came_back = hold.as_ref().is_some_and(|h| h.0) && holder.answers == Some(false);
            holder.asked(hold, now);
            // It answers somebody: perhaps this magent too.
            if let Some(server) = self.servers.get_mut(primary).filter(|_| came_back) {
                server.health.probe_soon(now);
            }
        }
        self.list_pair(pair);
    }

    /// A hold was looked at: it is read if it is another one than last time.
    fn hold_stands(&mut self, id: ServerId, pair: usize, other: Id, cas: u64) {
        let Some(pair_) = self.pairs.get_mut(pair) else {
            return;
        };
        let holder = pair_.others.iter_mut().find(|o| o.id == other);
        if holder.is_some_and(|o| !o.stands(cas)) {
            let (mut out, key) = (Vec::new(), bytes::hold_key(other, &pair_.about));
            bytes::read(&mut out, &key);
            return self.ask_more(id, &out, &[Question::Hold(pair, other)]);
        }
        self.list_pair(pair);
    }

    fn not_changed(&mut self, id: usize, f: impl FnOnce(&mut Primary)) {
        let now = self.now;
        if let Some(pair) = self.pairs.get_mut(id) {
            pair.change = None;
            if pair.backup.is_none() {
                pair.rules.step(now, f);
            }
        }
        self.list_pair(id);
    }
}
