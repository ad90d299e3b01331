//! Requests onto links, or onto the list of losses where a server cannot be asked.

use super::link::LinkState;
use super::pending::{Ask, Attempt, Home, Pending, To};
use super::{Losses, NOBODY, Pools, ServerId};
use crate::buffer::Queue;
use crate::clients::number;
use crate::health::Cause;
use crate::net::Socket;
use crate::protocol::{Traits, Verb, forms};
use crate::time::Time;
use std::collections::{HashMap, VecDeque};

impl<S: Socket> Pools<S> {
    /// True if this server may be asked.
    #[inline]
    pub(super) fn is_up(&self, id: ServerId) -> bool {
        self.servers.get(id).is_some_and(|s| s.health.is_up())
    }

    /// A request of magent's own; its lengths are filled in when it is sent.
    pub(super) fn own(&self, to: To, verb: Verb, traits: Traits, hash: u64) -> Pending {
        Pending {
            to,
            verb,
            traits,
            attempt: Attempt::Primary,
            counted: false,
            waits_on: false,
            home: Home {
                primary: NOBODY,
                backup: NOBODY,
                several: false,
                pool: 0,
                ring: 0,
            },
            line: 0,
            len: 0,
            timeout: 0,
            deadline: Time::NEVER,
            spent: 0,
            sent: Time::NEVER,
            hash,
        }
    }

    /// Puts a request on the link of its key. A server that may not be asked loses it.
    #[inline]
    pub(super) fn send(&mut self, server: ServerId, pending: Pending, ask: &Ask<'_>) {
        let Some(s) = self.servers.get(server) else {
            return self.lose(server, pending, ask, Cause::Down);
        };
        let is_update =
            pending.to.is_mirror() || matches!(pending.to, To::Delete(_) | To::Flush(_));
        let may_be_asked = s.health.is_up() || (is_update && s.health.takes_writes());
        if !may_be_asked {
            return self.lose(server, pending, ask, Cause::Down);
        }
        let link = s.link_for(pending.hash);
        // Its backups' lists are to be looked at first: `settle` knows what they said.
        if self.now >= s.free_until && pending.needs_look() {
            return self.lose(server, pending, ask, Cause::KeptAway);
        }
        self.send_on(link, pending, ask);
    }

    /// [`Pools::send`] where it is known that the server may be asked.
    pub(super) fn send_freely(&mut self, server: ServerId, pending: Pending, ask: &Ask<'_>) {
        match self.servers.get(server).filter(|s| s.health.takes_writes()) {
            Some(s) => {
                let link = s.link_for(pending.hash);
                self.send_on(link, pending, ask);
            }
            None => self.lose(server, pending, ask, Cause::Down),
        }
    }

    /// [`Pools::send`] for a request that is no key's, or not of the key's own link.
    pub(super) fn send_on(&mut self, id: usize, pending: Pending, ask: &Ask<'_>) {
        self.owe(id, pending, Some(ask));
    }

    /// The rest of [`Pools::send`], for bytes that are already in the link's queue.
    pub(super) fn send_pushed(&mut self, id: usize, pending: Pending) {
        self.owe(id, pending, None);
    }

    fn owe(&mut self, id: usize, mut pending: Pending, ask: Option<&Ask<'_>>) {
        let Some(link) = self.links.get_mut(id) else {
            return;
        };
        if let Some(ask) = ask {
            (pending.line, pending.len) = ask.push_to(&mut link.queue);
        }
        let Some(server) = self.servers.get_mut(link.server) else {
            return;
        };
        if pending.timeout == 0 {
            pending.timeout = (server.timeout / crate::time::MILLISECOND) as u32;
        }
        if log::log_enabled!(log::Level::Debug) {
            let at = link.queue.end() - u64::from(pending.len);
            let line = link.line_at(at, pending.line);
            let name = &server.spec.name;
            log::debug!(
                "{name} <- {} ({})",
                crate::logger::shown(line),
                whose(&pending.to)
            );
        }
        match pending.to {
            To::Probe => server.stats.probes += 1,
            To::Mark => {}
            _ => server.stats.requests.count(pending.verb, pending.traits),
        }
        let (is_mirror, is_look) = (pending.to.is_mirror(), matches!(pending.to, To::Again(_)));
        let (verb, hash, len) = (pending.verb, pending.hash, pending.line);
        let writes = pending.writes() && !pending.to.is_copy();
        let is_client = matches!(pending.to, To::Client(_));
        let at = link.queue.end() - u64::from(pending.len);
        // What waited for a step is sent after a reload that has moved its key.
        let is_from_before = is_client
            && server.moves
            && pending.home.ring != self.pools[pending.home.pool as usize].ring_number;
        let seq = link.owe(pending);
        if is_from_before {
            link.ring_moves();
        }
        if let Some(copy) = self.refills.copies.written(id, hash).filter(|_| writes) {
            copy.note_write(is_client, forms::leaves_absent(verb, link.line_at(at, len)));
        }
        // Before the handshake nobody knows whether it is warming.
        let may_warm = server.health.is_warming(self.now) || !link.is_up();
        let may_copy = server.moves || (may_warm && !server.primary_of.is_empty());
        let is_noted = writes && may_copy;
        if is_noted && !forms::leaves_absent(verb, link.line_at(at, len)) {
            self.recent.note(id, hash, seq);
        }
        match () {
            () if is_mirror => self.mirrored.add(id, &mut link.mirrored),
            () if !is_look => self.dirty.add(id, &mut link.dirty),
            () if !std::mem::replace(&mut link.looks, true) => self.watched.wait(id, self.now),
            () => {}
        }
        link.account(&self.budget);
        if matches!(link.state, LinkState::Idle) {
            self.open_link(id);
        }
        if is_noted && self.recent.is_large() {
            self.prune_recent();
        }
    }

    fn prune_recent(&mut self) {
        let mut oldest: HashMap<usize, u64> = HashMap::new();
        for (link, since) in self.flows.asked_about() {
            let first = oldest.entry(link).or_insert(since);
            *first = since.min(*first);
        }
        let links = &self.links;
        self.recent.prune(|id| {
            let unanswered = links.get(id).map_or(u64::MAX, |l| l.first_seq);
            oldest.get(&id).map_or(unanswered, |o| unanswered.min(*o))
        });
    }

    /// A link is opened. The name of its server is looked up meanwhile; what it was last is tried.
    pub(super) fn open_link(&mut self, id: usize) {
        let Some(link) = self.links.get_mut(id) else {
            return;
        };
        link.tried = 0;
        let server = self.servers.get(link.server);
        if let Some(name) = server.and_then(|s| s.name.as_ref()) {
            self.lookups.push(name.host.clone());
        }
        self.want_socket(id);
    }

    /// Asks the loop for a socket.
    pub(super) fn want_socket(&mut self, id: usize) {
        let Some(link) = self.links.get_mut(id) else {
            return;
        };
        link.state = LinkState::Wanted;
        link.since = self.now;
        if let Some(server) = self.servers.get_mut(link.server) {
            server.stats.connects += 1;
            link.alarm = link.alarm.min(self.now.plus(server.connect_timeout));
        }
        self.connects.push(id);
    }

    /// A request cannot be asked at this server: `settle` decides what becomes of it.
    pub(super) fn lose(&mut self, server: ServerId, pending: Pending, ask: &Ask<'_>, cause: Cause) {
        let fits = |l: &Losses| l.server == server && l.cause == cause;
        if !self.losses.back().is_some_and(fits) {
            self.losses.push_back(Losses::new(server, cause));
        }
        if let Some(losses) = self.losses.back_mut() {
            losses.push(pending, ask, &self.budget);
        }
        if let Some(s) = self.servers.get_mut(server) {
            s.losing += 1;
        }
    }

    /// All that was owed on a link is lost.
    pub(super) fn lose_all(
        &mut self,
        server: ServerId,
        pending: VecDeque<Pending>,
        queue: Queue,
        at: u64,
        cause: Cause,
    ) {
        if pending.is_empty() {
            return;
        }
        if let Some(s) = self.servers.get_mut(server) {
            s.losing += pending.len();
        }
        let has_looks = pending.iter().any(|p| matches!(p.to, To::Again(_)));
        let mut losses = Losses {
            server,
            cause,
            has_looks,
            pending,
            queue,
            at,
            charged: 0,
        };
        self.budget
            .recharge(&mut losses.charged, losses.queue.own_bytes());
        self.losses.push_back(losses);
    }

    /// Lists a link that may have something to read.
    pub(super) fn list_link(&mut self, id: usize) {
        if let Some(link) = self.links.get_mut(id) {
            self.readable.add(id, &mut link.listed);
        }
    }

    /// Lists a server whose journal is to be sent, or whose state is to be checked.
    pub(super) fn list_server(&mut self, id: ServerId) {
        if let Some(server) = self.servers.get_mut(id) {
            self.to_sync.add(id, &mut server.listed);
        }
    }

    /// Charges what one link holds.
    #[inline]
    pub(super) fn account_link(&mut self, id: usize) {
        if let Some(link) = self.links.get_mut(id) {
            link.account(&self.budget);
        }
    }

    /// `127.0.0.1:11212 connection refused` as the line of an answer; without the name for want of
    /// memory, which is not the server's.
    pub(super) fn failure(&self, server: ServerId, cause: Cause) -> Vec<u8> {
        let mut text = b"SERVER_ERROR ".to_vec();
        if let Some(s) = self
            .servers
            .get(server)
            .filter(|_| cause != Cause::NoMemory)
        {
            text.extend_from_slice(s.spec.name.as_bytes());
            text.push(b' ');
        }
        text.extend_from_slice(cause.text().as_bytes());
        text
    }
}

/// Whose a request is, for `-vv`.
fn whose(to: &To) -> String {
    match to {
        To::Client(ticket) => format!("client {}", number(ticket.client)),
        To::Nobody => "magent".into(),
        To::Mirror(_) | To::Watched(_) => "mirror".into(),
        To::Again(_) => "look again".into(),
        To::Doubt(_) => "doubt".into(),
        To::Delete(_) | To::Flush(_) => "journal".into(),
        To::Step(_) => "look or fetch".into(),
        To::Copy(_) => "copy".into(),
        To::Refill(_) => "refill".into(),
        To::FlushAll(_) | To::LateFlush => "flush_all".into(),
        To::Monitor(_) => "stats".into(),
        To::Mark => "mark".into(),
        To::Probe => "probe".into(),
    }
}
