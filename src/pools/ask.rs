//! Requests of clients: where they go, and whether there is room for them.

use super::link::{MAX_BYTES_IN_FLIGHT, MAX_IN_FLIGHT, OpenLine};
use super::pending::{Ask, Attempt, Home, Pending, To};
use super::server::Place;
use super::{NOBODY, Pools, ServerId};
use crate::buffer::Source;
use crate::clients::{Clients, Multi, Ticket};
use crate::health::Cause;
use crate::marks::Use;
use crate::net::Socket;
use crate::placement::LANES;
use crate::protocol::{Request, Traits, Verb, forms};
use crate::time::Time;

/// Longest line that is no get, in bytes; memcached closes on longer ones.
const MAX_LINE: u64 = 2000;

/// A request with several keys that is being split.
pub struct Split<'a> {
    /// Where its answer belongs.
    pub ticket: Ticket,
    /// The client's pool.
    pub pool: usize,
    /// What is asked.
    pub verb: Verb,
    /// What it does.
    pub traits: Traits,
    /// The command and what comes before the keys.
    pub prefix: &'a [u8],
}

impl<'a> Split<'a> {
    /// The parts of `request`, whose line begins with `prefix`.
    pub fn new(ticket: Ticket, pool: usize, request: &Request, prefix: &'a [u8]) -> Split<'a> {
        Split {
            ticket,
            pool,
            verb: request.verb,
            traits: request.traits,
            prefix,
        }
    }
}

impl<S: Socket> Pools<S> {
    /// Where a key of this pool goes.
    #[inline]
    pub fn place(&mut self, pool: usize, key: &[u8]) -> Place {
        self.place_hashed(pool, key, self.hash(pool, key))
    }

    /// What [`Pools::place_hashed`] is told of a key.
    #[inline]
    pub fn hash(&self, pool: usize, key: &[u8]) -> u32 {
        self.pools[pool].hash(key)
    }

    /// [`Pools::place`] of a key that was hashed.
    #[inline]
    pub fn place_hashed(&mut self, pool: usize, key: &[u8], hash: u32) -> Place {
        self.draw = self.draw.wrapping_add(1);
        self.pools[pool].place_hashed(key, hash, self.draw)
    }

    /// True if [`Pools::hash_all`] takes less time than to hash keys one after the other.
    #[inline]
    pub fn hashes_together(&self, pool: usize) -> bool {
        self.pools[pool].primaries.hashes_together()
    }

    /// [`Pools::hash`] of several keys; those at the end may be empty.
    #[inline]
    pub fn hash_all(&self, pool: usize, keys: &[&[u8]; LANES]) -> [u32; LANES] {
        self.pools[pool].hash_all(keys)
    }

    /// True if the link on which a key would be asked has room; else the client waits for it. This
    /// bounds a backup that stands in too.
    #[inline]
    pub fn has_room_for(&mut self, place: &Place, client: usize, clients: &mut Clients<S>) -> bool {
        // What was lost at the primary in this turn is on its way to the backup.
        let stands_in = |pools: &mut Self| pools.used_for(place) == Use::Partner;
        let is_free = self.is_free(place.primary);
        let is_there = is_free || !stands_in(self);
        let (server, coming) = match self.servers.get(place.primary) {
            Some(primary) if primary.health.is_up() && is_there => (place.primary, 0),
            Some(primary) => (place.backup, primary.losing),
            None => (place.backup, 0),
        };
        let Some(server) = self.servers.get(server) else {
            return true;
        };
        let link = server.link_for(place.hash);
        let Some(link) = self.links.get_mut(link) else {
            return true;
        };
        // A client that waits for nothing yet is admitted though others have asked more than the
        // server answers at once: it waits behind one request of each of them, and not behind
        // thousands.
        let is_full = link.is_full() || link.pending.len() + coming >= MAX_IN_FLIGHT;
        let waits = is_full || (link.is_behind(self.now) && clients.waits_for_answers(client));
        if !waits {
            return true;
        }
        link.waiting.push_back(client);
        // All that it owes may be late already: then nothing else looks at it.
        link.alarm = link.alarm.min(self.now.plus(server.timeout));
        self.counters.limit_server_paused += 1;
        clients.wait_for_server(client);
        false
    }

    /// Counts that a client asked for a key, for the operator's `hot`.
    #[inline]
    pub fn count_key(&mut self, pool: usize, key: &[u8], hash: u64) {
        if self.hot.count() {
            self.hot.note(pool, key, hash, self.now);
        }
    }

    /// Asks a client's request for one key.
    #[inline]
    pub fn ask(&mut self, ticket: Ticket, pool: usize, place: &Place, key: &[u8], ask: &Ask<'_>) {
        let may_ask_cas = ask.traits.has(Traits::WRITES) && !ask.traits.has(Traits::DELETES);
        if may_ask_cas && self.is_shared(place.primary, place.backup) {
            let mut line = std::mem::take(&mut self.line);
            line.clear();
            let verb = forms::ask_cas(ask.verb, ask.line_bytes(), &mut line);
            if let Some(verb) = verb {
                let line = (Source::Slice(&line[..]), 0..line.len());
                let ask = Ask {
                    verb,
                    line,
                    ..ask.clone()
                };
                self.ask_as_it_is(ticket, pool, place, key, &ask);
            }
            self.line = line;
            if verb.is_some() {
                return;
            }
        }
        self.ask_as_it_is(ticket, pool, place, key, ask);
    }

    #[inline]
    fn ask_as_it_is(
        &mut self,
        ticket: Ticket,
        pool: usize,
        place: &Place,
        key: &[u8],
        ask: &Ask<'_>,
    ) {
        let p = &self.pools[pool];
        let pending = Pending {
            to: To::Client(ticket),
            verb: ask.verb,
            traits: ask.traits,
            attempt: Attempt::Primary,
            counted: false,
            waits_on: false,
            home: Home {
                primary: place.primary,
                backup: place.backup,
                several: false,
                pool: pool as u32,
                ring: p.ring_number,
            },
            line: 0,
            len: 0,
            timeout: p.timeout_ms(),
            deadline: self.now.plus(p.span()),
            spent: 0,
            sent: Time::NEVER,
            hash: place.hash,
        };
        let is_plain = self.is_plain(&pending);
        let is_taken = !is_plain && self.awaits(&pending, key, ask);
        if !is_taken && self.is_up(place.primary) && !self.may_ask(place.primary) {
            self.lose(place.primary, pending, ask, Cause::KeptAway);
        } else if !is_taken && (is_plain || !self.joins_or_looks(&pending, key, ask)) {
            self.sync_first(place.primary, key, place.hash);
            self.send(place.primary, pending, ask);
        }
        if ask.traits.has(Traits::WRITES) && place.full_ring != NOBODY {
            self.note_stray(place.primary, place.full_ring, key);
        }
    }

    /// Splits keys among their servers: one line to each, all at once. Ends at a key whose server
    /// has no room: the client waits for that server then. Returns how many keys were asked, and
    /// how many bytes that took.
    pub fn ask_keys<'k>(
        &mut self,
        split: &Split<'_>,
        multi: &mut Multi,
        keys: impl Iterator<Item = (Option<u32>, &'k [u8])>,
        clients: &mut Clients<S>,
    ) -> (usize, usize) {
        let (mut asked, mut keys) = (0, keys);
        'all: loop {
            let mut some = [(None, &b""[..]); LANES];
            let mut count = 0;
            for (place, key) in some.iter_mut().zip(&mut keys) {
                *place = key;
                count += 1;
            }
            let hashes = self.pools[split.pool].hash_all(&some.map(|(_, key)| key));
            for ((number, key), hash) in some.into_iter().zip(hashes).take(count) {
                let place = self.place_hashed(split.pool, key, hash);
                let part = match self.add_to_line(split, &place, key) {
                    Some(part) => part,
                    None if !self.has_room_for(&place, split.ticket.client, clients) => break 'all,
                    None => self.split_key(split, multi, &place, key),
                };
                self.count_key(split.pool, key, place.hash);
                match number {
                    Some(number) => multi.put_in(part, number),
                    None => multi.add_key(part),
                }
                asked += 1;
            }
            if count < LANES {
                break;
            }
        }
        (asked, self.close_lines(split))
    }

    /// Adds one key to the line for its primary, if there is one and nothing has to go out before
    /// the key or with it: the way of most keys. Returns the part of the answer that it is in.
    #[inline]
    fn add_to_line(&mut self, split: &Split<'_>, place: &Place, key: &[u8]) -> Option<u32> {
        if self.is_handing_over(split.pool) {
            return None;
        }
        let server = self.servers.get(place.primary)?;
        let link = self.links.get_mut(server.link_for(place.hash))?;
        let open = link.open_line?;
        let is_plain = open.attempt == Attempt::Primary
            && !split.traits.has(Traits::WRITES)
            && server.health.is_up()
            && self.now < server.free_until
            && server.journal.is_empty()
            && self.flows.len() == 0;
        if !is_plain {
            return None;
        }
        link.queue.push_slice(b" ");
        link.queue.push_slice(key);
        Some(open.part)
    }

    /// Adds one key to the line for its server; starts the line if it is the first. Returns the
    /// part of the answer that it is in.
    fn split_key(
        &mut self,
        split: &Split<'_>,
        multi: &mut Multi,
        place: &Place,
        key: &[u8],
    ) -> u32 {
        let (server, attempt) = match (self.used_for(place), self.is_up(place.backup)) {
            (Use::Primary, _) => (place.primary, Attempt::Primary),
            (Use::Partner, true) => (place.backup, Attempt::Backup),
            _ => return self.ask_alone(split, multi, place, key),
        };
        // What was lost at the primary goes first, so that nothing overtakes it.
        let is_behind = attempt == Attempt::Backup
            && self
                .servers
                .get(place.primary)
                .is_some_and(|s| s.losing > 0);
        let is_held = self.is_held(place.primary, place.hash);
        if is_behind || is_held || self.is_handing_over(split.pool) {
            return self.ask_alone(split, multi, place, key);
        }
        if attempt == Attempt::Backup {
            self.counters.failovers += 1;
            if split.traits.has(Traits::WRITES) {
                self.journal(place.primary, key);
            }
        } else if split.traits.has(Traits::WRITES) && place.full_ring != NOBODY {
            self.note_stray(place.primary, place.full_ring, key);
        }
        if self.must_sync_first(server, key) {
            // A delete goes out before the line, so the line must not have begun.
            return self.ask_alone(split, multi, place, key);
        }
        let Some(s) = self.servers.get(server) else {
            return self.ask_alone(split, multi, place, key);
        };
        let id = s.link_for(place.hash);
        let Some(link) = self.links.get_mut(id) else {
            return self.ask_alone(split, multi, place, key);
        };
        if let Some(open) = link.open_line {
            // Only get lines may be long: memcached closes on others.
            let is_long = !matches!(split.verb, Verb::Get | Verb::Gets)
                && link.queue.end() - open.start + key.len() as u64 > MAX_LINE;
            if open.attempt != attempt || is_long {
                self.close_line(split, id);
            }
        }
        let Some(link) = self.links.get_mut(id) else {
            return 0;
        };
        let open = *link.open_line.get_or_insert_with(|| {
            let start = link.queue.end();
            link.queue.push_slice(split.prefix);
            self.open_lines.push(id);
            OpenLine {
                start,
                attempt,
                part: multi.add_part(),
            }
        });
        link.queue.push_slice(b" ");
        link.queue.push_slice(key);
        open.part
    }

    /// Asks one key by a line of its own.
    fn ask_alone(
        &mut self,
        split: &Split<'_>,
        multi: &mut Multi,
        place: &Place,
        key: &[u8],
    ) -> u32 {
        let part = multi.add_part();
        let ticket = Ticket {
            part,
            ..split.ticket
        };
        let mut line = Vec::with_capacity(split.prefix.len() + key.len() + 3);
        line.extend_from_slice(split.prefix);
        line.push(b' ');
        line.extend_from_slice(key);
        line.extend_from_slice(b"\r\n");
        // Lines that are being made must end first.
        self.close_lines(split);
        let ask = Ask::line(split.verb, split.traits, &line);
        self.ask(ticket, split.pool, place, key, &ask);
        part
    }

    fn must_sync_first(&self, id: ServerId, key: &[u8]) -> bool {
        self.servers.get(id).is_some_and(|s| s.journal.is_due(key))
    }

    /// Ends all lines that are being made. Returns their length.
    fn close_lines(&mut self, split: &Split<'_>) -> usize {
        let mut open_lines = std::mem::take(&mut self.open_lines);
        let ids = open_lines.drain(..);
        let bytes = ids.map(|id| self.close_line(split, id)).sum();
        self.open_lines = open_lines;
        bytes
    }

    /// Ends a server's line and owes its reply. Returns its length.
    fn close_line(&mut self, split: &Split<'_>, id: usize) -> usize {
        let Some(link) = self.links.get_mut(id) else {
            return 0;
        };
        let Some(open) = link.open_line.take() else {
            return 0;
        };
        link.queue.push_slice(b"\r\n");
        let len = (link.queue.end() - open.start) as u32;
        let server = link.server;
        let pool = &mut self.pools[split.pool];
        pool.fragments += 1;
        let is_first = open.attempt == Attempt::Primary;
        let twice = if is_first { 1 } else { 2 };
        let pending = Pending {
            to: To::Client(Ticket {
                part: open.part,
                ..split.ticket
            }),
            verb: split.verb,
            traits: split.traits,
            attempt: open.attempt,
            counted: false,
            waits_on: false,
            home: Home {
                primary: server,
                backup: NOBODY,
                several: true,
                pool: split.pool as u32,
                ring: pool.ring_number,
            },
            line: len,
            len,
            timeout: pool.timeout_ms(),
            deadline: self.now.plus(pool.span() * twice),
            spent: 0,
            sent: Time::NEVER,
            hash: 0,
        };
        self.send_pushed(id, pending);
        len as usize
    }

    /// Deletes a key whose new value was too large, on every server that may have it.
    pub fn drop_key(&mut self, pool: usize, line: &[u8]) {
        let verb = forms::verb_of_delete(line);
        let mut key = Vec::new();
        forms::raw_key(verb, line, &mut key);
        let place = self.place(pool, &key);
        for id in [place.primary, place.backup, place.full_ring] {
            self.invalidate(id, &key, place.hash);
        }
        self.leave_key(pool, &key);
    }

    /// Bytes in flight at which a link is full, of a server with so many links: servers that hang
    /// must not take all memory.
    pub(super) fn most_bytes(&self, links: usize) -> usize {
        MAX_BYTES_IN_FLIGHT.min(self.budget.limit() / 4) / links.max(1)
    }
}
