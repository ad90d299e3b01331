//! What time does: parts of answers that wait for the rest, timeouts, probes, drains that end
//! late, clients that stall.
//!
//! All answers of a server have one timeout and a link's requests are in order, so each link
//! keeps one alarm, the earliest time at which something of it may expire; looking is a
//! minimum over tens of values.

use super::intake::HALF_LINE;
use super::route::Ask;
use super::{LOOK_OVER, Pool, Proxy, nanos};
use crate::buffer::{Queue, Source};
use crate::client::{Ending, Intake, MAX_WAIT, Pause};
use crate::health::{Cause, SECOND, Time};
use crate::net::Socket;
use crate::upstream::{LinkState, Server, ServerId, To};

/// A client that takes nothing of what it is owed, or stops in the middle of a large request,
/// is closed after so long, in nanoseconds.
const STALLED: u64 = 30 * SECOND;

/// A fall from less than this, in bytes, is not worth the time that looking through the heap takes.
const WORTH_GIVING_BACK: usize = 16 * 1024 * 1024;

/// A half-sent request up to this size, in bytes, may take for ever: people type slowly.
const HALF_SENT: usize = 64 * 1024;

/// A server that may have answered in time is heard for so long, in nanoseconds, before it is
/// called late; or for its timeout, if that is shorter.
const HEARING: u64 = SECOND / 10;

/// A loop that sees an alarm so much too late, in nanoseconds, stood still: as a rule the whole
/// machine did, and servers and clients on it too.
const STANDSTILL: u64 = SECOND / 20;

/// A request whose answer did not come in time.
struct Late {
    /// Its number in its link's life.
    seq: u64,
    /// Stream offset of its first byte in its link's queue.
    at: u64,
    /// When it was sent, or its time began to run.
    sent: Time,
}

impl<S: Socket> Proxy<S> {
    /// The earliest time at which [`Proxy::expire`] has something to do.
    pub(super) fn next_alarm(&self) -> Time {
        let links = self.links.iter().map(|l| l.alarm).min();
        let probes = self
            .servers
            .iter()
            .filter_map(|s| match s.retired {
                None => s.health.probe_at().filter(|_| s.drains == 0),
                Some(until) => Some(until).filter(|_| self.owes(s)),
            })
            .min();
        let drains = self
            .drains
            .keys()
            .filter_map(|k| self.drains.get(k))
            .filter(|d| !d.late)
            .map(|d| d.until)
            .min();
        let leaving = (!self.leaving.is_empty()).then_some(self.leave_by);
        let waits = self.waiting_clients.front();
        let waits = waits.map(|(_, since)| since.plus(MAX_WAIT));
        let look = self.clients.len() > 0 || self.most_bytes >= WORTH_GIVING_BACK;
        let clients = look.then(|| self.look_over_at());
        [links, probes, drains, leaving, waits, clients]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(Time::NEVER)
    }

    /// When clients are to be looked over.
    fn look_over_at(&self) -> Time {
        self.looked_over.plus(LOOK_OVER).max(self.patient_until)
    }

    /// True if a server has not answered all that it was asked.
    pub(super) fn owes(&self, server: &Server) -> bool {
        let mut links = server.all_links();
        links.any(|l| !self.links[l as usize].pending.is_empty())
    }

    /// Sends the parts of answers that have waited long enough for the rest.
    fn end_waits(&mut self) {
        while let Some((key, since)) = self.waiting_clients.front().copied() {
            if self.now.since(since) < MAX_WAIT {
                break;
            }
            self.waiting_clients.pop_front();
            self.flush_client(key);
        }
    }

    /// Does what is due.
    pub(super) fn expire(&mut self) {
        self.end_waits();
        self.note_standstill();
        for id in 0..self.links.len() {
            if self.links[id].alarm <= self.now {
                self.expire_link(id as u32);
            }
        }
        self.expire_drains();
        for id in 0..self.servers.len() {
            self.catch_up(id as ServerId);
            if self.servers[id].winds_down() {
                self.wind_down(id as ServerId);
            }
            let s = &self.servers[id];
            let due = s.health.probe_at().is_some_and(|at| at <= self.now);
            if due && s.drains == 0 && s.retired.is_none() {
                self.probe(id as ServerId);
            }
        }
        if self.now >= self.look_over_at() {
            self.looked_over = self.now;
            self.look_over_clients();
            self.give_memory_back();
        }
    }

    /// What magent's own standstill made late is not held against servers and clients. But not for
    /// ever: a loop with too much to do is late time and again.
    fn note_standstill(&mut self) {
        let clients = (self.clients.len() > 0).then(|| self.look_over_at());
        let alarm = self.links.iter().map(|l| l.alarm).chain(clients).min();
        let stood_still = alarm.is_some_and(|at| at.plus(STANDSTILL) <= self.now);
        if stood_still && self.patient_until.plus(SECOND) <= self.now {
            self.patient_until = self.now.plus(HEARING);
        }
    }

    /// After a flood of large values the system gets its memory back.
    fn give_memory_back(&mut self) {
        if self.most_bytes < WORTH_GIVING_BACK {
            return;
        }
        let held = self.own_bytes() + self.chunks.sweep();
        if held < self.most_bytes / 4 {
            self.most_bytes = held;
            crate::sys::trim_memory();
        }
    }

    /// A server that is away is tried in the background; client traffic never does that.
    fn probe(&mut self, id: ServerId) {
        let server = &mut self.servers[id as usize];
        server.health.probing();
        let first = server.links[0];
        if matches!(self.links[first as usize].state, LinkState::Idle) {
            self.open_link(first);
        }
    }

    /// A link whose end has not come after half a minute holds its server up no longer.
    fn expire_drains(&mut self) {
        let now = self.now;
        let due: Vec<usize> = self
            .drains
            .keys()
            .filter(|k| {
                self.drains
                    .get(*k)
                    .is_some_and(|d| !d.late && d.until <= now)
            })
            .collect();
        for key in due {
            if let Some(drain) = self.drains.get_mut(key) {
                drain.late = true;
                let server = &mut self.servers[drain.server as usize];
                server.drains -= 1;
                if server.drains == 0 {
                    server.health.probe_soon(now);
                }
            }
        }
    }

    fn pool_of(&self, id: u32) -> &Pool {
        &self.pools[self.servers[self.links[id as usize].server as usize].pool]
    }

    /// Until when a link must be open; `None` if it is, or is not to be.
    fn open_by(&self, id: u32) -> Option<Time> {
        let link = &self.links[id as usize];
        let pool = self.pool_of(id);
        let connected = link.since.plus(nanos(pool.config.connect_timeout));
        match link.state {
            LinkState::Wanted | LinkState::Connecting(_) => Some(connected),
            LinkState::Greeting(..) => Some(connected.plus(pool.timeout())),
            LinkState::Idle | LinkState::Up(_) => None,
        }
    }

    /// When the first thing on this link is late that was not counted as such.
    fn due(&self, id: u32) -> Time {
        let timeout = self.pool_of(id).timeout();
        let pending = self.links[id as usize].pending.iter();
        let answers = pending
            .filter(|p| !p.counted)
            .map(|p| p.deadline.min(p.sent.plus(timeout)));
        let others = [self.open_by(id), self.clogged_at(id)];
        let all = answers.chain(others.into_iter().flatten());
        all.min().unwrap_or(Time::NEVER)
    }

    /// When a link that can take nothing more is given up, though its server goes on sending: the
    /// first of what it owes was asked for as long ago as makes a silent server count as down.
    fn clogged_at(&self, id: u32) -> Option<Time> {
        let link = &self.links[id as usize];
        let first = link.pending.front().filter(|_| link.is_full())?;
        let pool = self.pool_of(id);
        let limit = u64::from(pool.config.failure_limit);
        Some(first.sent.plus(pool.timeout().saturating_mul(limit)))
    }

    /// The server's events may stand behind thousands of others, and a turn reads a bounded
    /// amount: what the kernel has got from it is in time. True if it had something, or will be
    /// read in the next turn anyway.
    fn hear_out(&mut self, id: u32) -> bool {
        let link = &mut self.links[id as usize];
        match link.state {
            _ if link.listed => return true,
            LinkState::Idle | LinkState::Wanted => return false,
            LinkState::Connecting(_) => link.ready.writable = true,
            LinkState::Greeting(..) | LinkState::Up(_) => link.ready.readable = true,
        }
        let before = self.counters.server_bytes_read;
        self.serve_link(id);
        self.counters.server_bytes_read > before
    }

    fn expire_link(&mut self, id: u32) {
        let due = self.due(id);
        if due <= self.now {
            // Who was kept from sending has more to say now.
            let until = match self.hear_out(id) {
                true => due
                    .plus(HEARING.min(self.pool_of(id).timeout()))
                    .max(self.patient_until),
                false => self.patient_until,
            };
            if self.now < until {
                self.links[id as usize].alarm = until.min(self.now.plus(HEARING / 10));
                return;
            }
        }
        if self.open_by(id).is_some_and(|at| at <= self.now) {
            return self.connect_failed(id, Cause::TimedOut);
        }
        let server = self.links[id as usize].server;
        if self.clogged_at(id).is_some_and(|at| at <= self.now) {
            return self.server_down(server, Cause::TimedOut, false);
        }
        let expired = self.find_expired(id, self.pool_of(id).timeout());
        for late in &expired {
            let s = &mut self.servers[server as usize];
            s.stats.timeouts += 1;
            if s.health.on_timeout(late.sent, self.now) {
                return self.server_down(server, Cause::TimedOut, false);
            }
        }
        for late in expired {
            self.expire_pending(id, &late);
        }
        self.links[id as usize].alarm = self.due(id);
    }

    /// The requests that are overdue and not yet counted. There may be tens of thousands at
    /// once, so where each stands is found on the way.
    fn find_expired(&mut self, id: u32, timeout: u64) -> Vec<Late> {
        let now = self.now;
        let link = &mut self.links[id as usize];
        let first = link.first_seq;
        let mut at = link.settled;
        let mut expired = Vec::new();
        for (i, p) in link.pending.iter_mut().enumerate() {
            if !p.counted && (p.deadline <= now || p.sent.plus(timeout) <= now) {
                p.counted = true;
                // What never went out counts as sent when its time began to run.
                let sent = p.sent.min(Time(now.0.saturating_sub(timeout)));
                expired.push(Late {
                    seq: first + i as u64,
                    at,
                    sent,
                });
            }
            at += u64::from(p.len);
        }
        expired
    }

    /// One answer did not come in time: the request goes its way without it, and its late
    /// reply will be thrown away. Mirrors and deletes of magent's own go on waiting: they are
    /// in order, and nobody waits for them.
    fn expire_pending(&mut self, id: u32, late: &Late) {
        let link = &mut self.links[id as usize];
        let Some(i) = late.seq.checked_sub(link.first_seq) else {
            return;
        };
        let Some(p) = link.pending.get_mut(i as usize) else {
            return;
        };
        match p.to {
            To::Mirror | To::Chase(_) | To::ReplayFlush(_) | To::Copy | To::Ghost => return,
            To::Client { .. } | To::Fetch(_) | To::Probe(_) | To::Flush(_) => {}
        }
        let lost = p.again();
        p.to = To::Ghost;
        let server = link.server;
        let mut wire = Queue::new();
        wire.push(Source::Queue(&link.queue, late.at), 0..p.len as usize);
        let ask = Ask::wire(&lost, &wire, wire.start());
        self.lost(server, lost, &ask, Cause::TimedOut);
    }

    fn look_over_clients(&mut self) {
        let keys: Vec<usize> = self.clients.keys().collect();
        for key in keys {
            self.look_over(key);
            self.serve_paused(key);
        }
    }

    fn look_over(&mut self, key: usize) {
        let Some(client) = self.clients.get(key) else {
            return;
        };
        let quiet = self.now.since(client.last_moved);
        let (owes, half_sent) = client.active.as_ref().map_or((false, 0), |a| {
            let half = match &a.intake {
                Intake::Head => a.partial.len(),
                Intake::Value(value) => value.bytes.len(),
                Intake::Swallow(_) => 0,
            };
            (!a.out.is_empty(), half)
        });
        let idle = self.pools[client.pool as usize].config.idle_timeout;
        // Half-sent requests together must not hold the memory for ever.
        let half_sent_limit = match self.memory_paused.is_empty() {
            true => HALF_SENT,
            false => HALF_LINE,
        };
        // Who is not read, or not parsed, may have sent the rest.
        let pause = client.pause.without(Pause::MEMORY);
        let read_up = pause.is_empty() && !client.ready.readable && !client.is_unparsed();
        let counter = if owes && quiet >= STALLED {
            &mut self.counters.limit_client_stalled
        } else if half_sent > half_sent_limit && quiet >= STALLED && read_up {
            &mut self.counters.limit_client_half_sent
        } else if client.is_answered() && idle.is_some_and(|d| quiet >= nanos(d)) {
            &mut self.counters.limit_client_idle
        } else {
            return;
        };
        *counter += 1;
        self.end_client(key, Ending::Dead);
    }
}
