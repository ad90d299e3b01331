//! What time does: answers that are late, connects that take too long, probes, removed servers.
//!
//! A link keeps one alarm, the earliest time at which something of it may be late. A link whose
//! socket still has something to read is not late: what the kernel has got from the server is in
//! time.

use super::link::LinkState;
use super::pending::{Ask, Pending, To};
use super::server::{Removal, Server};
use super::{Pools, ServerId};
use crate::buffer::{Queue, Source};
use crate::health::{Cause, State};
use crate::net::Socket;
use crate::protocol::{Traits, Verb};
use crate::time::{MILLISECOND, Time};
use crate::work::{REQUEST, Work};

/// Late answers are looked for at most this often, in nanoseconds: each look costs as much as the
/// link owes.
const GRANULARITY: u64 = 2 * MILLISECOND;

/// How long a server that goes on sending is read when something is due, in nanoseconds.
const PATIENCE: u64 = 100 * MILLISECOND;

/// Late answers of one link that are taken in one turn.
const LATE: usize = 1024;

/// A request whose answer did not come in time.
struct Late {
    /// Its number in its link's life.
    seq: u64,
    /// Stream offset of its first byte in its link's queue.
    at: u64,
    /// When it was sent, or its time began to run.
    sent: Time,
    /// It is a probe, or as good as one.
    probe: bool,
    /// It was late before, and has waited on.
    has_waited: bool,
}

impl<S: Socket> Pools<S> {
    /// The earliest time at which [`Pools::expire`] has something to do.
    pub(super) fn next_alarm(&self) -> Time {
        let links = self.links.values().map(|l| l.alarm);
        let servers = self.servers.values().filter_map(|s| match s.removed {
            None if self.paused => Some(s.board.away.look_at).filter(|_| s.health.is_up()),
            None if s.health.is_up() => {
                let probe_at = s.health.probe_at().unwrap_or(Time::NEVER);
                Some(probe_at.min(s.board.renew_at).min(s.board.away.look_at))
            }
            None => s.health.probe_at(),
            Some(removal) if removal.keep > self.now => Some(removal.keep),
            Some(removal) => Some(removal.until),
        });
        let all = links.chain(servers).chain([
            self.next_settled(),
            self.look_up_at,
            self.next_move_ends(),
            self.refill_at(),
            self.watched.write_at(),
            self.watched.lacking.at(),
        ]);
        all.min().unwrap_or(Time::NEVER)
    }

    /// Does what is due.
    pub(super) fn expire(&mut self, work: &mut Work) {
        if self.look_up_at <= self.now {
            self.look_up_all();
        }
        if self.next_move_ends() <= self.now {
            self.end_moves();
        }
        self.write_looks();
        self.copy_lacking(work);
        for place in 0..self.links.places() {
            let Some(id) = self.links.key_at(place) else {
                continue;
            };
            if self.links.get(id).is_some_and(|l| l.alarm <= self.now) {
                self.expire_link(id, work);
            }
        }
        for place in 0..self.servers.places() {
            if let Some(id) = self.servers.key_at(place) {
                self.expire_server(id);
            }
        }
    }

    fn expire_server(&mut self, id: ServerId) {
        let Some(server) = self.servers.get(id) else {
            return;
        };
        if server.removed.is_some() {
            return self.wind_down(id);
        }
        if server.health.is_up() {
            self.look_due(id);
        }
        if self.paused {
            return;
        }
        let Some(server) = self.servers.get(id) else {
            return;
        };
        match server.health.state() {
            State::Down { probe_at } if probe_at <= self.now => self.probe_down(id),
            State::Settling { .. } => {
                let settled = server.health.settled_at(server.given_up > 0);
                if settled.is_some_and(|at| at <= self.now) {
                    self.list_server(id);
                }
            }
            State::Up => {
                self.marks_due(id);
                self.resync_if_flushed(id);
                self.probe_silent(id);
            }
            _ => {}
        }
    }

    /// A server that is up and of which nothing was heard is probed.
    fn probe_silent(&mut self, id: ServerId) {
        let now = self.now;
        let Some(server) = self.servers.get_mut(id) else {
            return;
        };
        let is_due = server.health.probe_at().is_some_and(|at| at <= now);
        if is_due && server.health.is_silent(now) {
            self.probe_up(id);
        }
    }

    /// A server that is up is asked for its version, once whatever links it has: behind what it owes, if
    /// that is late already, else on a link that is open. Where nothing is open the handshake of a new
    /// link is the probe.
    pub(super) fn probe_up(&mut self, id: ServerId) {
        let now = self.now;
        let Some(server) = self.servers.get(id) else {
            return;
        };
        let (timeout, all) = (server.timeout, server.links.clone());
        let links = || all.iter().filter_map(|l| Some((*l, self.links.get(*l)?)));
        if links().any(|(_, link)| link.will_tell()) {
            return;
        }
        let open = links().filter(|(_, link)| link.is_up());
        let Some((link, _)) = open.max_by_key(|(_, link)| !link.is_idle()) else {
            return all.first().map_or((), |first| self.open_link(*first));
        };
        let probe = Pending {
            deadline: now.plus(timeout),
            ..self.own(To::Probe, Verb::Version, Traits::default(), 0)
        };
        let ask = Ask::line(Verb::Version, Traits::default(), b"version\r\n");
        self.send_on(link, probe, &ask);
    }

    /// Servers that are away are probed in the background, never by client traffic.
    fn probe_down(&mut self, id: ServerId) {
        let Some(server) = self.servers.get_mut(id) else {
            return;
        };
        server.health.probing();
        let Some(first) = server.links.first().copied() else {
            return;
        };
        if self
            .links
            .get(first)
            .is_some_and(|l| matches!(l.state, LinkState::Idle))
        {
            self.open_link(first);
        }
    }

    /// Closes what a removed server does not need any more, once it owes nothing.
    fn wind_down(&mut self, id: ServerId) {
        let is_idle = self.is_idle(id);
        let Some(server) = self.servers.get_mut(id) else {
            return;
        };
        let Some(removal) = server.removed else {
            return;
        };
        if (!is_idle || server.losing > 0) && self.now < removal.until {
            return;
        }
        if self.now < removal.until && self.goes_to_rest(id) {
            return;
        }
        let Some(server) = self.servers.get_mut(id) else {
            return;
        };
        let links = server.links.clone();
        if self.now < removal.keep {
            return links.into_iter().for_each(|l| self.close_link(l));
        }
        server.removed = Some(Removal {
            until: Time::NEVER,
            ..removal
        });
        for link in &links {
            match self.links.get(*link).is_none_or(|l| l.is_idle()) {
                true => self.close_link(*link),
                false => self.give_up_link(*link, Cause::Down),
            }
        }
        // A stopped one runs what it was sent when it wakes, which must be known if it is named again.
        let is_kept = |s: &Server| s.given_up > 0 || s.losing > 0;
        if self.servers.get(id).is_some_and(is_kept) {
            return;
        }
        for link in links {
            if let Some(mut link) = self.links.remove(link) {
                self.budget.recharge(&mut link.charged, 0);
            }
        }
        if let Some(server) = self.servers.remove(id) {
            if self.by_endpoint.get(&server.spec.endpoint) == Some(&id) {
                self.by_endpoint.remove(&server.spec.endpoint);
            }
        }
    }

    /// Until when a link must be open; `None` if it is open, or not wanted.
    fn open_by(&self, id: usize) -> Option<Time> {
        let link = self.links.get(id)?;
        let server = self.servers.get(link.server)?;
        let connected = link.since.plus(server.connect_timeout);
        match link.state {
            LinkState::Wanted | LinkState::Connecting(_) => Some(connected),
            LinkState::Greeting(..) => Some(connected.plus(server.timeout)),
            LinkState::Idle | LinkState::Up(_) => None,
        }
    }

    /// When the first answer on this link is late that was not counted as late.
    fn due(&self, id: usize) -> Time {
        let Some(link) = self.links.get(id) else {
            return Time::NEVER;
        };
        let pending = link.pending.iter();
        let awaited = pending.filter(|p| !p.counted || p.waits_on);
        let answers = awaited.map(Pending::late_at);
        let all = answers.chain(self.open_by(id)).chain(self.clogged_at(id));
        all.min().unwrap_or(Time::NEVER)
    }

    /// When a full link is given up though nothing on it may be late any more, or its server goes on
    /// sending: its oldest request was asked so long ago that a silent server would be down.
    fn clogged_at(&self, id: usize) -> Option<Time> {
        let link = self.links.get(id)?;
        let first = link.pending.front().filter(|_| link.is_full())?;
        let server = self.servers.get(link.server)?;
        let asked = first.sent.min(link.stuck_since);
        let limit = u64::from(server.failure_limit);
        Some(asked.plus(server.timeout.saturating_mul(limit)))
    }

    fn expire_link(&mut self, id: usize, work: &mut Work) {
        let due = self.due(id);
        let again = due.max(self.now.plus(GRANULARITY));
        let Some(link) = self.links.get_mut(id) else {
            return;
        };
        link.alarm = again;
        if due > self.now {
            link.alarm = due;
            link.due_since = Time::NEVER;
            return;
        }
        if self.has_more_to_say(id) {
            return;
        }
        let Some(link) = self.links.get_mut(id) else {
            return;
        };
        let server = link.server;
        if self.open_by(id).is_some_and(|at| at <= self.now) {
            return self.connect_failed(id, Cause::TimedOut);
        }
        if self.clogged_at(id).is_some_and(|at| at <= self.now) {
            return self.server_down(server, Cause::TimedOut, false);
        }
        let expired = self.find_expired(id);
        work.count(expired.len() * REQUEST);
        let is_idle = self.is_idle(server);
        for late in expired.iter().filter(|late| !late.has_waited) {
            let Some(s) = self.servers.get_mut(server) else {
                return;
            };
            if late.probe && is_idle {
                if s.health.on_silence(late.sent, self.now) {
                    return self.server_down(server, Cause::TimedOut, true);
                }
                continue;
            }
            s.stats.timeouts += u64::from(!late.probe);
            if s.health.on_timeout(late.sent, self.now) {
                return self.server_down(server, Cause::TimedOut, false);
            }
        }
        if !expired.is_empty() {
            self.watched.note_lost(server);
        }
        for late in expired {
            self.expire_pending(id, &late);
        }
        let due = self.due(id);
        if let Some(link) = self.links.get_mut(id) {
            link.alarm = due.max(self.now.plus(GRANULARITY));
        }
    }

    /// True if a server owes nothing but answers to probes.
    fn is_idle(&self, id: ServerId) -> bool {
        let links = self.servers.get(id).map_or(&[][..], |s| &s.links);
        let owes = |l: &usize| self.links.get(*l).is_some_and(|l| !l.is_idle());
        !links.iter().any(owes)
    }

    /// True if a link on which something is due is to be read first: the answer may be there, and
    /// the event for it not have come yet. As long as reading brings something it is read again,
    /// but not for ever.
    fn has_more_to_say(&mut self, id: usize) -> bool {
        let Some(link) = self.links.get_mut(id) else {
            return false;
        };
        let now = self.now;
        link.due_since = link.due_since.min(now);
        let is_over = now.since(link.due_since) >= PATIENCE;
        if link.read_in_vain || is_over {
            link.read_in_vain = false;
            return false;
        }
        let Some(conn) = link.conn() else {
            return false;
        };
        conn.note(true, true, false);
        link.read_in_vain = true;
        link.alarm = now;
        self.list_link(id);
        true
    }

    /// The requests that are overdue and not yet counted, a bounded number.
    fn find_expired(&mut self, id: usize) -> Vec<Late> {
        let now = self.now;
        let mut expired = Vec::new();
        let Some(link) = self.links.get_mut(id) else {
            return expired;
        };
        let (first, mut at) = (link.first_seq, link.settled);
        for (i, p) in link.pending.iter_mut().enumerate() {
            if (!p.counted || p.waits_on) && p.late_at() <= now {
                let has_waited = std::mem::replace(&mut p.counted, true);
                p.waits_on = false;
                // A request that never went out counts as sent when its time began to run.
                let timeout = u64::from(p.timeout) * MILLISECOND;
                let sent = p.sent.min(Time(now.0.saturating_sub(timeout)));
                expired.push(Late {
                    seq: first + i as u64,
                    at,
                    sent,
                    probe: p.to.is_question(),
                    has_waited,
                });
                if expired.len() == LATE {
                    break;
                }
            }
            at += u64::from(p.len);
        }
        expired
    }

    /// One answer did not come in time: the request goes on without it, and its late reply will be
    /// thrown away. Mirrors and deletes of magent's own wait on: they are in order, and nobody
    /// waits for them.
    fn expire_pending(&mut self, id: usize, late: &Late) {
        let link = self.links.get(id);
        let Some(i) = link.and_then(|l| late.seq.checked_sub(l.first_seq)) else {
            return;
        };
        if !late.has_waited && self.waits_on(id, i as usize) {
            return;
        }
        let Some(link) = self.links.get_mut(id) else {
            return;
        };
        let Some(p) = link.pending.get_mut(i as usize) else {
            return;
        };
        match p.to {
            To::Mirror(_) | To::Watched(_) | To::Again(_) | To::Doubt(_) => return,
            To::Delete(_) | To::Flush(_) => return,
            To::Copy(_) | To::Nobody | To::Probe | To::Mark | To::LateFlush => return,
            To::Refill(_) if p.writes() => return,
            To::Refill(_) => {}
            To::Client(_) | To::Step(_) | To::FlushAll(_) | To::Monitor(_) => {}
        }
        let lost = p.clone();
        let server = link.server;
        p.to = match lost.to {
            To::FlushAll(_) => To::LateFlush,
            _ => To::Nobody,
        };
        if let (To::LateFlush, Some(s)) = (p.to, self.servers.get_mut(server)) {
            s.late_flushes += 1;
        }
        let mut bytes = Queue::new();
        bytes.push(Source::Queue(&link.queue, late.at), 0..lost.len as usize);
        let ask = Ask::queued(&lost, &bytes, bytes.start());
        self.lose(server, lost, &ask, Cause::TimedOut);
    }
}
