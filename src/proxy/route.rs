//! From a request to a link: placement, what to do where the server is away, and sending.

use super::Proxy;
use crate::buffer::{Queue, Source};
use crate::client::{Pause, Slot};
use crate::health::Cause;
use crate::net::Socket;
use crate::protocol::{Dress, Request, Scratch, Traits, Verb, forms};
use crate::upstream::{EACH, Leg, LinkState, NOBODY, Pending, ServerId, To};
use std::ops::Range;

/// The bytes of one request for a server, wherever they stand.
#[derive(Clone)]
pub(super) struct Ask<'a> {
    /// What is asked.
    pub verb: Verb,
    /// What it does.
    pub traits: Traits,
    /// The wire line.
    pub line: (Source<'a>, Range<usize>),
    /// What follows it.
    pub data: (Source<'a>, Range<usize>),
    /// The wire needs a `\r\n` behind the data.
    pub end_line: bool,
}

impl<'a> Ask<'a> {
    /// A request that is a line only.
    pub fn line(verb: Verb, traits: Traits, line: &'a [u8]) -> Ask<'a> {
        Ask {
            verb,
            traits,
            line: (Source::Slice(line), 0..line.len()),
            data: (Source::Slice(&[]), 0..0),
            end_line: false,
        }
    }

    /// A request that stands in a queue as it was on the wire, from `at` on.
    pub fn wire(p: &Pending, queue: &'a Queue, at: u64) -> Ask<'a> {
        let source = Source::Queue(queue, at);
        Ask {
            verb: p.verb,
            traits: p.traits,
            line: (source, 0..p.line as usize),
            data: (source, p.line as usize..p.len as usize),
            end_line: false,
        }
    }

    /// Its line.
    pub fn line_bytes(&self) -> &'a [u8] {
        self.line.0.slice(self.line.1.clone())
    }

    /// Appends it to a queue; returns the lengths of its line and of all of it.
    #[inline]
    pub fn push_to(&self, queue: &mut Queue) -> (u32, u32) {
        let (line, data) = (&self.line.1, &self.data.1);
        let start = queue.end();
        if line.end == data.start && self.line.0.is(self.data.0) {
            queue.push(self.line.0, line.start..data.end);
        } else {
            queue.push(self.line.0, line.clone());
            queue.push(self.data.0, data.clone());
        }
        if self.end_line {
            queue.push_slice(b"\r\n");
        }
        (line.len() as u32, (queue.end() - start) as u32)
    }
}

/// Where a key goes.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub primary: ServerId,
    /// [`NOBODY`] if it has none.
    pub backup: ServerId,
    /// Where it belongs when that is out of the ring, or the ring moved it: else [`NOBODY`].
    pub home: ServerId,
    /// Chooses the link.
    pub hash: u64,
}

/// FNV-1a, 64 bits: chooses a key's link and tells keys apart in tables that only have to be
/// right almost always. (Fowler, Noll, Vo.)
pub(super) fn fnv(key: &[u8]) -> u64 {
    key.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| {
        (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

impl<S: Socket> Proxy<S> {
    /// Where a key of this pool goes.
    pub(super) fn place(&self, pool: usize, key: &[u8]) -> Place {
        let p = &self.pools[pool];
        let home = p.primary_ids[p.primaries.place(key, self.draw)];
        let (primary, home) = self.stand_in(pool, key, home);
        let backup = match &p.backups {
            None => NOBODY,
            Some(farm) => {
                let n = p.backup_ids.len();
                let first = farm.place(key, self.draw);
                // Where both would be one server, the next of the backups is the backup.
                (0..n)
                    .map(|i| p.backup_ids[(first + i) % n])
                    .find(|id| *id != primary)
                    .unwrap_or(NOBODY)
            }
        };
        Place {
            primary,
            backup,
            home,
            hash: fnv(key),
        }
    }

    /// Routes a request with one key. False if its server has too much in flight: nothing was
    /// done, and the client is paused.
    pub(super) fn route_key(
        &mut self,
        client: usize,
        dress: Dress,
        key: &[u8],
        ask: &Ask<'_>,
    ) -> bool {
        let Some(c) = self.clients.get(client) else {
            return true;
        };
        let place = self.place(c.pool as usize, key);
        let goes_on = self.has_room_for(client, place);
        if goes_on {
            self.route(client, dress, place, key, ask);
        }
        goes_on
    }

    /// False if the server of a key has too much in flight for a value that starts to arrive: the
    /// client is paused.
    pub(super) fn may_arrive(&mut self, client: usize, key: &[u8]) -> bool {
        let Some(c) = self.clients.get(client) else {
            return true;
        };
        self.has_room_for(client, self.place(c.pool as usize, key))
    }

    /// False if the link that a key would be asked on has as much in flight as it may: the client is
    /// paused. A backup that stands in is bounded too.
    fn has_room_for(&mut self, client: usize, place: Place) -> bool {
        let asked = [place.primary, place.backup]
            .into_iter()
            .find(|id| *id != NOBODY && self.servers[*id as usize].health.is_up());
        let link = asked.map(|id| self.servers[id as usize].link_for(place.hash));
        let full = link.filter(|l| self.links[*l as usize].is_full());
        if let Some(link) = full {
            self.pause_for_server(client, link);
        }
        full.is_none()
    }

    /// Routes a request that has arrived whole and cannot wait.
    pub(super) fn route_arrived(&mut self, client: usize, dress: Dress, key: &[u8], ask: &Ask<'_>) {
        if let Some(c) = self.clients.get(client) {
            let place = self.place(c.pool as usize, key);
            self.route(client, dress, place, key, ask);
        }
    }

    fn route(&mut self, client: usize, dress: Dress, place: Place, key: &[u8], ask: &Ask<'_>) {
        let Some(c) = self.clients.get_mut(client) else {
            return;
        };
        let slot = Slot::new(dress, ask.verb);
        let seq = c.owe(&mut self.spares, slot);
        self.count_command(ask.verb, ask.traits);
        self.ask(To::Client { client, seq }, place, ask);
        if ask.traits.has(Traits::WRITES) {
            self.note_stray(place, key);
        }
    }

    /// Sends a client's request, or a part of it, to its primary, or to whoever stands in.
    #[inline]
    pub(super) fn ask(&mut self, to: To, place: Place, ask: &Ask<'_>) {
        let server = &self.servers[place.primary as usize];
        let span = self.pools[server.pool].span();
        let pending = Pending {
            traits: ask.traits,
            other: place.backup,
            ..Pending::own(to, ask.verb, place.hash, self.now.plus(span))
        };
        self.dispatch(place.primary, pending, ask);
    }

    /// The rest of [`Proxy::ask`], for a request that may have waited since.
    #[inline]
    pub(super) fn dispatch(&mut self, primary: ServerId, pending: Pending, ask: &Ask<'_>) {
        if self.is_creating(primary, pending.hash) {
            self.wait_for_create(primary, pending, ask);
        } else if !self.servers[primary as usize].health.is_up() {
            self.lost(primary, pending, ask, Cause::Down);
        } else if ask.traits.has(Traits::CREATES) && self.may_be_warming(primary, &pending) {
            self.probe_key(primary, pending, ask);
        } else {
            self.send(primary, pending, ask);
        }
    }

    /// True if what this primary lacks may be had from that backup.
    pub(super) fn is_warming(&self, primary: ServerId, backup: ServerId) -> bool {
        backup != NOBODY
            && self.servers[primary as usize].health.is_warming(self.now)
            && self.pools[self.servers[primary as usize].pool].flushing == 0
    }

    /// The same, before the handshake that tells how long the primary has been running.
    fn may_be_warming(&self, primary: ServerId, pending: &Pending) -> bool {
        let link = self.servers[primary as usize].link_for(pending.hash);
        let told = self.links[link as usize].is_up();
        self.is_warming(primary, pending.other) || (!told && pending.other != NOBODY)
    }

    /// Puts a request on the link of its key. The server must be up, or be told something.
    #[inline]
    pub(super) fn send(&mut self, server: ServerId, pending: Pending, ask: &Ask<'_>) {
        let id = self.servers[server as usize].link_for(pending.hash);
        self.send_on(id, pending, ask);
    }

    /// [`Proxy::send`] for a request that is no key's, or not of the key's own link.
    #[inline]
    pub(super) fn send_on(&mut self, id: u32, mut pending: Pending, ask: &Ask<'_>) {
        let link = &mut self.links[id as usize];
        (pending.line, pending.len) = ask.push_to(&mut link.queue);
        self.send_pushed(id, pending);
    }

    /// The rest of [`Proxy::send`], for bytes that are already in the link's queue.
    pub(super) fn send_pushed(&mut self, id: u32, pending: Pending) {
        let link = &mut self.links[id as usize];
        let server = &mut self.servers[link.server as usize];
        if log::log_enabled!(log::Level::Debug) {
            let at = link.queue.end() - u64::from(pending.len);
            let line = link.line_at(at, pending.line);
            let line = String::from_utf8_lossy(line);
            log::debug!(
                "{} <- {} ({:?})",
                server.spec.name,
                line.trim_end(),
                pending.to
            );
        }
        server.stats.requests += 1;
        let (verb, hash, len) = (pending.verb, pending.hash, pending.line);
        let is_mirror = pending.to == To::Mirror;
        let writes = pending.traits.has(Traits::WRITES) && pending.to != To::Copy;
        let at = link.queue.end() - u64::from(pending.len);
        let seq = link.owe(pending);
        let held = !server.old_links.is_empty() && !server.old_links.contains(&id);
        let opens = matches!(link.state, LinkState::Idle) && !held;
        // Before the handshake nobody knows if it is warming.
        let may_copy = server.health.is_warming(self.now) || !link.is_up();
        let noted = writes && server.is_primary && may_copy;
        if noted && !forms::leaves_absent(verb, link.line_at(at, len)) {
            self.note_write(id, hash, seq);
        }
        if opens {
            self.open_link(id);
        }
        self.account_link(id);
        match is_mirror {
            true => self.tell_link(id),
            false => self.dirty_link(id),
        }
    }

    fn pause_for_server(&mut self, client: usize, id: u32) {
        self.links[id as usize].waiting.push(client);
        self.counters.limit_server_paused += 1;
        if let Some(c) = self.clients.get_mut(client) {
            c.pause.add(Pause::SERVER);
        }
    }

    /// A link that has as much in flight as it may, of this pool's primaries, and of its backups
    /// if one has to stand in.
    fn full_link(&self, pool: usize) -> Option<u32> {
        let pool = &self.pools[pool];
        let up = |id: &&ServerId| self.servers[**id as usize].health.is_up();
        let stand_ins: &[ServerId] = match pool.primary_ids.iter().all(|id| up(&id)) {
            true => &[],
            false => &pool.backup_ids,
        };
        let asked = pool.primary_ids.iter().chain(stand_ins);
        asked
            .filter(up)
            .flat_map(|id| self.servers[*id as usize].links.iter().copied())
            .find(|id| self.links[*id as usize].is_full())
    }

    /// Splits a request with several keys: one line to each server, all at once.
    /// False if one of the servers has too much in flight: nothing was done.
    pub(super) fn route_keys(
        &mut self,
        client: usize,
        request: &Request,
        buf: &[u8],
        scratch: &Scratch,
    ) -> bool {
        let Some(c) = self.clients.get(client) else {
            return true;
        };
        let pool = c.pool as usize;
        if let Some(id) = self.full_link(pool) {
            self.pause_for_server(client, id);
            return false;
        }
        // Before any line is begun, since this goes on the same links.
        for i in 0..self.pools[pool].backup_ids.len() {
            self.tell_untold(self.pools[pool].backup_ids[i]);
        }
        let Some(c) = self.clients.get_mut(client) else {
            return true;
        };
        // One part too many: parts that fail at once must not finish the answer.
        let slot = Slot {
            multi: true,
            ..Slot::new(request.dress, request.verb)
        };
        let seq = c.owe(&mut self.spares, slot);
        let split = Split {
            client,
            seq,
            pool,
            verb: request.verb,
            traits: request.traits,
            prefix: &scratch.line,
        };
        self.count_keys(request.traits, scratch.keys.len());
        for range in &scratch.keys {
            self.split_key(&split, &buf[range.clone()]);
        }
        let mut touched = std::mem::take(&mut self.touched);
        for id in touched.drain(..) {
            self.close_part(&split, id);
        }
        self.touched = touched;
        if request.traits.has(Traits::WRITES) && self.pools[pool].ring.is_some() {
            for range in &scratch.keys {
                let key = &buf[range.clone()];
                self.note_stray(self.place(pool, key), key);
            }
        }
        self.part_done(client, seq);
        true
    }

    /// Adds one key to the line for its server; starts the line if it is the first.
    fn split_key(&mut self, split: &Split<'_>, key: &[u8]) {
        let place = self.place(split.pool, key);
        let creating = self.is_creating(place.primary, place.hash);
        let up = |id: ServerId| id != NOBODY && self.servers[id as usize].health.is_up();
        let (server, leg) = if up(place.primary) && !creating {
            (place.primary, Leg::Primary)
        } else if up(place.backup) && !creating {
            (place.backup, Leg::Backup)
        } else {
            self.add_parts(split.client, split.seq, 1);
            let mut line = std::mem::take(&mut self.line);
            split.write_single(key, &mut line);
            let ask = Ask::line(split.verb, split.traits, &line);
            self.ask(split.to(), place, &ask);
            self.line = line;
            return;
        };
        if leg == Leg::Backup {
            self.counters.failovers += 1;
            if split.traits.has(Traits::WRITES) {
                self.journal(place.primary, key);
            }
        }
        let id = self.servers[server as usize].link_for(place.hash);
        let link = &mut self.links[id as usize];
        if let Some((start, open)) = link.part {
            // Only get lines may be long: memcached closes on others.
            let long = !matches!(split.verb, Verb::Get | Verb::Gets)
                && link.queue.end() - start + key.len() as u64 > MAX_LINE;
            if open != leg || long {
                self.close_part(split, id);
            }
        }
        let link = &mut self.links[id as usize];
        if link.part.is_none() {
            link.part = Some((link.queue.end(), leg));
            link.queue.push_slice(split.prefix);
            self.touched.push(id);
            self.add_parts(split.client, split.seq, 1);
        }
        let link = &mut self.links[id as usize];
        link.queue.push_slice(b" ");
        link.queue.push_slice(key);
    }

    /// Ends a server's line and owes its reply.
    fn close_part(&mut self, split: &Split<'_>, id: u32) {
        let link = &mut self.links[id as usize];
        let Some((start, leg)) = link.part.take() else {
            return;
        };
        link.queue.push_slice(b"\r\n");
        let len = (link.queue.end() - start) as u32;
        let pool = &self.pools[split.pool];
        let twice = if leg == Leg::Backup { 2 } else { 1 };
        let deadline = self.now.plus(pool.span() * twice);
        let pending = Pending {
            traits: split.traits,
            leg,
            other: if pool.backups.is_some() && leg == Leg::Primary {
                EACH
            } else {
                NOBODY
            },
            line: len,
            len,
            ..Pending::own(split.to(), split.verb, 0, deadline)
        };
        self.send_pushed(id, pending);
    }
}

/// A request with several keys that is being split.
struct Split<'a> {
    client: usize,
    seq: u32,
    pool: usize,
    verb: Verb,
    traits: Traits,
    /// The command and what comes before the keys.
    prefix: &'a [u8],
}

impl Split<'_> {
    fn to(&self) -> To {
        To::Client {
            client: self.client,
            seq: self.seq,
        }
    }

    fn write_single(&self, key: &[u8], line: &mut Vec<u8>) {
        line.clear();
        line.extend_from_slice(self.prefix);
        line.push(b' ');
        line.extend_from_slice(key);
        line.extend_from_slice(b"\r\n");
    }
}

/// Longest wire line that is no get, in bytes; memcached closes on longer ones.
const MAX_LINE: u64 = 2000;
