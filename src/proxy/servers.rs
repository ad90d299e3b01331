//! Links that open, work and are lost; servers that go down and come back.

use super::route::Ask;
use super::{Proxy, nanos};
use crate::buffer::Queue;
use crate::client::Pause;
use crate::health::{Cause, SECOND, State, Time};
use crate::net::Socket;
use crate::protocol::{Status, Traits, Verb, forms};
use crate::upstream::{DRAIN_WAIT, Drain, Letters, LinkState, Pending, Ready, ServerId, To};
use std::io;

/// Keys that a server is told of at once: a journal of millions must not pass the bound of
/// what is in flight to one server, and the last batch is told while requests wait behind it.
const REPLAY_BATCH: usize = 4096;

impl<S: Socket> Proxy<S> {
    /// Asks the loop for a socket.
    pub(super) fn open_link(&mut self, id: u32) {
        let link = &mut self.links[id as usize];
        link.state = LinkState::Wanted;
        link.since = self.now;
        let server = &mut self.servers[link.server as usize];
        server.stats.connects += 1;
        let pool = &self.pools.get(server.pool).map(|p| &p.config);
        let wait = pool.map_or(SECOND, |c| nanos(c.connect_timeout));
        link.alarm = link.alarm.min(self.now.plus(wait));
        self.connects.push(id);
    }

    /// The socket that was asked for, or why there is none.
    pub fn connecting(&mut self, token: usize, stream: io::Result<S>, now: super::Now) {
        self.set_now(now);
        let id = (token & 0xffff_ffff) as u32;
        let generation = (token >> 32) as u32 & crate::upstream::GENERATIONS;
        let Some(link) = self.links.get_mut(id as usize) else {
            return;
        };
        if link.generation != generation || !matches!(link.state, LinkState::Wanted) {
            return;
        }
        match stream {
            Ok(io) => {
                link.state = LinkState::Connecting(io);
                link.ready = Ready::default();
                self.list_link(id);
            }
            Err(e) => self.connect_failed(id, super::connect_cause(&e)),
        }
    }

    /// A failed connect, or a handshake that was not answered, makes a server down at once;
    /// where it can be ejected, that takes several.
    pub(super) fn connect_failed(&mut self, id: u32, cause: Cause) {
        let server_id = self.links[id as usize].server;
        let health = &mut self.servers[server_id as usize].health;
        let borne = health.bears_failures() && !health.on_failure(cause, self.now);
        if !borne || self.owes_deletes(id) {
            return self.server_down(server_id, cause, false);
        }
        let name = &self.servers[server_id as usize].spec.name;
        log::info!("{name}: connect failed: {}", cause.text());
        let lost = self.take_pending(id);
        self.lose(server_id, lost, cause);
    }

    /// True if a link owes answers to deletes that the server must be told before it is asked.
    fn owes_deletes(&self, id: u32) -> bool {
        let pending = &self.links[id as usize].pending;
        pending.iter().any(|p| matches!(p.to, To::Chase(_)))
    }

    /// The handshake was good.
    pub(super) fn link_up(&mut self, id: u32) {
        let (server_id, uptime) = {
            let link = &self.links[id as usize];
            (link.server, link.uptime)
        };
        let has_backup = self.has_backup(server_id);
        let server = &mut self.servers[server_id as usize];
        if let (Some(seconds), true) = (uptime, has_backup) {
            server.health.told_uptime(seconds, self.now);
        }
        match server.health.state() {
            State::Up => {}
            State::Probing => self.begin_replay(server_id),
            State::Replaying | State::Down { .. } => {}
        }
        self.dirty_link(id);
    }

    fn has_backup(&self, server: ServerId) -> bool {
        let s = &self.servers[server as usize];
        s.is_primary && self.pools.get(s.pool).is_some_and(|p| p.backups.is_some())
    }

    /// Tells a server what it missed, before it is trusted.
    fn begin_replay(&mut self, id: ServerId) {
        let server = &mut self.servers[id as usize];
        if server.journal.is_empty() {
            return self.server_up(id);
        }
        server.health.replaying();
        server.replaying = 0;
        self.send_journal(id);
    }

    /// Sends a delete for each of a batch of journaled keys, or one `flush_all`.
    fn send_journal(&mut self, id: ServerId) {
        if let Some(stamp) = self.servers[id as usize].journal.flush_due() {
            let pending = Pending {
                traits: Traits::WRITES,
                ..Pending::own(To::ReplayFlush(stamp), Verb::FlushAll, 0, Time::NEVER)
            };
            let ask = Ask::line(Verb::FlushAll, Traits::WRITES, b"flush_all\r\n");
            self.servers[id as usize].replaying += 1;
            self.send_on_first(id, pending, &ask);
            return;
        }
        let journal = &self.servers[id as usize].journal;
        let batch = journal.keys().take(REPLAY_BATCH);
        let mut keys: Vec<(Box<[u8]>, u64)> = batch.map(|(k, s)| (k.into(), s)).collect();
        // Oldest first; and the same order each time, so that a run can be repeated.
        keys.sort_unstable_by_key(|(_, stamp)| *stamp);
        let mut line = Vec::new();
        for (key, stamp) in keys {
            line.clear();
            let verb = forms::write_delete(&key, &mut line);
            let pending = Pending {
                traits: Traits::WRITES,
                ..Pending::own(To::Chase(stamp), verb, 0, Time::NEVER)
            };
            self.servers[id as usize].replaying += 1;
            self.send_on_first(id, pending, &Ask::line(verb, Traits::WRITES, &line));
        }
    }

    /// While a server is told what it missed only its first link is open.
    fn send_on_first(&mut self, id: ServerId, pending: Pending, ask: &Ask<'_>) {
        self.send_on(self.servers[id as usize].links[0], pending, ask);
    }

    /// A delete of magent's own was answered.
    pub(super) fn settle_chase(
        &mut self,
        id: u32,
        at: u64,
        p: &Pending,
        stamp: u64,
        status: Status,
    ) {
        let server = self.links[id as usize].server;
        let told = matches!(status, Status::Done | Status::Absent);
        if told {
            let key = self.key_at(id, at, p);
            self.servers[server as usize].journal.told(&key, stamp);
            self.key = key;
        }
        self.replay_answered(server, told, Cause::ConnectionLost);
    }

    /// The flush that stands for an overflowed journal was answered.
    pub(super) fn settle_replay_flush(&mut self, server: ServerId, stamp: u64, status: Status) {
        let told = status == Status::Done;
        if told {
            self.servers[server as usize].journal.flushed(stamp);
        }
        self.replay_answered(server, told, Cause::FlushRefused);
    }

    fn replay_answered(&mut self, id: ServerId, told: bool, cause: Cause) {
        let server = &mut self.servers[id as usize];
        if server.health.state() != State::Replaying {
            return;
        }
        if !told {
            if cause == Cause::FlushRefused {
                log::error!(
                    "{}: missed more than the journal holds and refuses flush_all: it stays down",
                    server.spec.name
                );
            }
            return self.server_down(id, cause, false);
        }
        server.replaying -= 1;
        if server.replaying > 0 {
            return;
        }
        if server.journal.flush_due().is_some() || server.journal.len() > REPLAY_BATCH {
            return self.send_journal(id);
        }
        self.server_up(id);
        if self.has_backup(id) {
            self.servers[id as usize].health.warm(self.now);
        }
    }

    /// A server that is up and was too full for some mirrors is told their keys: once it has
    /// room, or before it is asked in its primary's place.
    pub(super) fn tell_untold(&mut self, id: ServerId) {
        let server = &mut self.servers[id as usize];
        if !std::mem::take(&mut server.untold) || !server.health.is_up() {
            return;
        }
        self.tell_rest(id);
    }

    /// [`Proxy::tell_untold`] at its time. A server that has to be flushed counts as away until
    /// that is done.
    pub(super) fn catch_up(&mut self, id: ServerId) {
        let server = &self.servers[id as usize];
        if !server.health.is_up() {
            return;
        }
        // Where servers are ejected that waits until the ring changes.
        if server.journal.flush_due().is_some() && self.pools[server.pool].ring.is_none() {
            return self.server_down(id, Cause::ConnectionLost, true);
        }
        let has_room = |l: &u32| self.links[*l as usize].has_room();
        if server.untold && server.links.iter().all(has_room) {
            self.tell_untold(id);
        }
    }

    /// Tells a server that is up what its journal holds, before anything that is asked of it
    /// from now on.
    pub(super) fn tell_rest(&mut self, id: ServerId) {
        let journal = &self.servers[id as usize].journal;
        let mut keys: Vec<(Box<[u8]>, u64)> = journal.keys().map(|(k, s)| (k.into(), s)).collect();
        keys.sort_unstable_by_key(|(_, stamp)| *stamp);
        for (key, _) in keys {
            let hash = super::route::fnv(&key);
            self.chase(id, &key, hash);
        }
    }

    /// A server is trusted.
    fn server_up(&mut self, id: ServerId) {
        let server = &mut self.servers[id as usize];
        if let Some(away) = server.health.go_up(self.now) {
            let cause = server.health.last_error().map_or("", |(c, _)| c.text());
            log::warn!(
                "{}: up again after {:.3} s ({cause})",
                server.spec.name,
                away as f64 / SECOND as f64
            );
        }
        // What was missed during the replay is told as well, before anything is asked.
        if !self.ring_changed(self.servers[id as usize].pool) {
            self.tell_rest(id);
        }
    }

    /// Deletes a key on a server in the order of its link; journaled until that is answered.
    /// Where the server is away the journal alone knows.
    pub(super) fn chase(&mut self, id: ServerId, key: &[u8], hash: u64) {
        let stamp = self.journal(id, key);
        let server = &mut self.servers[id as usize];
        if !server.health.is_up() {
            return;
        }
        self.counters.chases += 1;
        let mut line = Vec::new();
        let verb = forms::write_delete(key, &mut line);
        let pending = Pending {
            traits: Traits::WRITES,
            ..Pending::own(To::Chase(stamp), verb, hash, Time::NEVER)
        };
        self.send(id, pending, &Ask::line(verb, Traits::WRITES, &line));
    }

    /// [`Proxy::chase`] where the other farm may hold what is deleted here: what is absent from
    /// now on is looked for there.
    pub(super) fn chase_and_warm(&mut self, id: ServerId, key: &[u8], hash: u64) {
        self.chase(id, key, hash);
        if self.has_backup(id) {
            self.servers[id as usize].health.warm(self.now);
        }
    }

    /// The server missed what happened to a key.
    pub(super) fn journal(&mut self, id: ServerId, key: &[u8]) -> u64 {
        let server = &mut self.servers[id as usize];
        let before = server.journal.overflows();
        let stamp = server.journal.add(key);
        if server.journal.overflows() > before {
            self.counters.limit_journal_overflows += 1;
            log::warn!(
                "{}: missed more than the journal holds; it will be flushed when it is back",
                server.spec.name
            );
        }
        stamp
    }

    /// [`Proxy::journal`] for the key of a wire line.
    pub(super) fn journal_line(&mut self, id: ServerId, verb: Verb, ask: &Ask<'_>) {
        let mut key = std::mem::take(&mut self.key);
        key.clear();
        forms::raw_key(verb, ask.line_bytes(), &mut key);
        self.journal(id, &key);
        self.key = key;
    }

    /// The other side closed a link.
    pub(super) fn link_closed(&mut self, id: u32) {
        let link = &mut self.links[id as usize];
        match link.state {
            LinkState::Greeting(..) | LinkState::Connecting(_) => {
                self.connect_failed(id, Cause::ConnectionLost);
            }
            // Closing an idle link is a server's right.
            _ if link.pending.is_empty() => {
                link.close();
                link.clear();
            }
            _ => {
                link.ready.closed = true;
                self.link_lost(id, Cause::ConnectionLost);
            }
        }
    }

    /// A link that works was lost, or spoke nonsense. If something was asked on it, it is
    /// reconnected once at once (a server that resets idle links must not keep us busy); if keys
    /// were written elsewhere meanwhile, the server is told of them before it is asked again.
    pub(super) fn link_lost(&mut self, id: u32, cause: Cause) {
        let server_id = self.links[id as usize].server;
        let server = &mut self.servers[server_id as usize];
        let too_many = server.health.on_failure(cause, self.now);
        if !server.health.is_up() || too_many {
            return self.server_down(server_id, cause, false);
        }
        log::info!("{}: link lost: {}", server.spec.name, cause.text());
        let writes = self.links[id as usize]
            .pending
            .iter()
            .any(|p| p.traits.has(Traits::WRITES));
        // A link that the server did not close may still be read by it, writes and all.
        let told_elsewhere = self.pools[server.pool].backups.is_some();
        let drains = !self.links[id as usize].ready.closed;
        if (writes && (told_elsewhere || drains)) || self.owes_deletes(id) {
            // These writes will be told elsewhere, may still run, or are what the server was
            // told: nothing else may be asked of it before that is over.
            return self.server_down(server_id, cause, true);
        }
        let lost = self.take_pending(id);
        if !lost.0.is_empty() {
            self.open_link(id);
        }
        self.lose(server_id, lost, cause);
    }

    /// A server is away: all its links are given up, and what they owe is lost.
    pub(super) fn server_down(&mut self, id: ServerId, cause: Cause, at_once: bool) {
        let now = self.now;
        let server = &mut self.servers[id as usize];
        server.replaying = 0;
        let pool = server.pool;
        let was_up = server.health.go_down(cause, at_once, now);
        if was_up {
            log::warn!("{}: down: {}", server.spec.name, cause.text());
        }
        let links: Vec<u32> = server.all_links().collect();
        self.drop_copies(&[id]);
        let mut lost = Vec::new();
        for link in links {
            lost.push(self.take_pending(link));
        }
        for pending in lost {
            self.lose(id, pending, cause);
        }
        if was_up && self.ring_changed(pool) {
            self.counters.ejections += 1;
        }
    }

    /// Closes a link's socket and takes out what it owes. A socket that still works and has
    /// writes unanswered is half-closed and drained: a stopped server reads them when it wakes.
    pub(super) fn take_pending(&mut self, id: u32) -> (Vec<Pending>, Queue, u64) {
        let link = &mut self.links[id as usize];
        let closed = link.ready.closed;
        let was_up = link.is_up();
        let token = super::link_token(id, link.generation);
        let io = link.close();
        let at = link.settled;
        let sent = link.written;
        let pending: Vec<Pending> = link.pending.drain(..).collect();
        link.first_seq += pending.len() as u64;
        let queue = std::mem::take(&mut link.queue);
        link.clear();
        if let (Some(io), true, false) = (io, was_up, closed) {
            let server = link.server;
            if let Some(letters) = self.unanswered_writes(server, &pending, &queue, at, sent) {
                self.begin_drain(server, io, token, letters);
            }
        }
        self.wake_waiting(id);
        self.account_link(id);
        (pending, queue, at)
    }

    /// The writes that went out, at least in part, and were not answered.
    fn unanswered_writes(
        &self,
        server: ServerId,
        pending: &[Pending],
        queue: &Queue,
        mut at: u64,
        sent: u64,
    ) -> Option<Letters> {
        let limit = self.pools[self.servers[server as usize].pool]
            .config
            .journal;
        let (mut found, mut bytes, mut keys) = (false, 0, Vec::new());
        for p in pending {
            if p.traits.has(Traits::WRITES) && at < sent {
                found = true;
                let ask = Ask::wire(p, queue, at);
                // A late flush only empties: nothing has to be told after it.
                if p.verb != Verb::FlushAll {
                    forms::each_key(p.verb, ask.line_bytes(), |key| {
                        bytes += key.len() + 64;
                        keys.push(key.into());
                    });
                }
            }
            if bytes > limit {
                return Some(Letters::TooMany);
            }
            at += u64::from(p.len);
        }
        found.then_some(Letters::Keys(keys))
    }

    fn begin_drain(&mut self, server: ServerId, mut io: S, token: usize, letters: Letters) {
        if io.shutdown_write().is_err() {
            return;
        }
        self.servers[server as usize].drains += 1;
        let key = self.drains.insert(Drain {
            io,
            server,
            until: self.now.plus(DRAIN_WAIT),
            late: false,
            letters,
            token,
        });
        self.read_drain(key);
    }

    /// A link that was given up has come to its end: the server has read all of it.
    pub(super) fn drain_ended(&mut self, key: usize) {
        let Some(drain) = self.drains.remove(key) else {
            return;
        };
        let now = self.now;
        let server = &mut self.servers[drain.server as usize];
        if drain.late {
            // It was trusted before that end; what it read just now is told it once more.
            match drain.letters {
                Letters::Keys(keys) => {
                    for key in keys {
                        let hash = super::route::fnv(&key);
                        self.chase_and_warm(drain.server, &key, hash);
                    }
                }
                Letters::TooMany => {
                    server.journal.mark_flush();
                    if server.health.is_up() {
                        self.server_down(drain.server, Cause::ConnectionLost, true);
                    }
                }
            }
        } else {
            server.drains -= 1;
            if server.drains == 0 {
                server.health.probe_soon(now);
            }
        }
    }

    /// What was pending on a link that is gone is lost, oldest first.
    fn lose(&mut self, server: ServerId, lost: (Vec<Pending>, Queue, u64), cause: Cause) {
        let (pending, queue, mut at) = lost;
        for p in pending {
            let len = p.len;
            let ask = Ask::wire(&p, &queue, at);
            self.lost(server, p, &ask, cause);
            at += u64::from(len);
        }
    }

    /// Clients that waited for room on a link go on.
    pub(super) fn resume_waiting(&mut self, id: u32) {
        self.wake_waiting(id);
    }

    pub(super) fn wake_waiting(&mut self, id: u32) {
        for client in std::mem::take(&mut self.links[id as usize].waiting) {
            if let Some(c) = self.clients.get_mut(client) {
                c.pause.remove(Pause::SERVER);
                self.list_client(client);
            }
        }
    }
}
