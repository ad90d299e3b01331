//! What the pools tell clients: an answer, a part of one, a failure.

use super::active::{Done, Slot};
use super::multi::{Lacks, Multi};
use super::{Clients, Ticket, answer, has_values};
use crate::buffer::Queue;
use crate::net::Socket;
use crate::protocol::{Format, Reply, Request, Traits, Verb};
use crate::stats::SlowRequest;
use crate::time::Time;

impl<S: Socket> Clients<S> {
    /// Adds a slot for the answer to a request of so many bytes.
    #[inline]
    pub fn owe(&mut self, key: usize, request: &Request, bytes: usize) -> Option<Ticket> {
        self.counters.requests += 1;
        let client = self.table.get_mut(key)?;
        client.requests += 1;
        let counts = &mut self.pools[client.pool as usize].counts;
        counts.count_command(request.verb, request.traits, 1);
        let slot = Slot {
            traits: request.traits,
            asked: bytes as u32,
            since: self.now,
            ..Slot::new(request.format, request.verb)
        };
        let slot = client.owe(&mut self.spares, slot);
        client.active(&mut self.spares).asked += bytes;
        self.check_owed(key);
        Some(Ticket {
            client: key,
            slot,
            part: 0,
        })
    }

    /// Adds a slot for the answer to a request with several keys.
    pub fn owe_keys(&mut self, key: usize, request: &Request, keys: usize) -> Option<Ticket> {
        self.counters.requests += 1;
        let client = self.table.get_mut(key)?;
        client.requests += 1;
        let counts = &mut self.pools[client.pool as usize].counts;
        counts.count_command(request.verb, request.traits, keys as u64);
        let slot = Slot {
            traits: request.traits,
            multi: Some(self.spares.multi()),
            since: self.now,
            ..Slot::new(request.format, request.verb)
        };
        let slot = client.owe(&mut self.spares, slot);
        self.check_owed(key);
        Some(Ticket {
            client: key,
            slot,
            part: 0,
        })
    }

    /// The server's answer to `line`.
    #[inline]
    pub fn answer(&mut self, ticket: Ticket, verb: Verb, line: &[u8], reply: &Reply<'_>) {
        let Some(client) = self.table.get_mut(ticket.client) else {
            return;
        };
        let pool = client.pool as usize;
        let slot = client.active.as_mut().and_then(|a| a.slot(ticket.slot));
        let (is_part, asked, traits) = slot.map_or((false, verb, Traits::default()), |slot| {
            (slot.multi.is_some(), slot.verb, slot.traits)
        });
        if is_part {
            let lacks = self.change(ticket, |multi| multi.answer(ticket.part, line, reply));
            let lacks = lacks.unwrap_or_default();
            self.count_part((pool, verb, traits), reply.items.len(), lacks);
        } else {
            let counts = &mut self.pools[pool].counts;
            counts.count_reply(asked, traits, line, reply.status);
            let done = client.deliver(&mut self.spares, ticket.slot, |out, slot| {
                answer::write_reply((slot.format, slot.traits), verb, line, reply, out);
            });
            self.note_done(ticket.client, pool, done);
            self.changed(ticket.client);
        }
        if has_values(verb) {
            self.note_size(pool, reply.len, reply.items.len());
        }
    }

    /// A part of an answer whose missing keys may be on another server: `ask` is called with a
    /// ticket for each of them.
    pub fn answer_found(
        &mut self,
        ticket: Ticket,
        line: &[u8],
        reply: &Reply<'_>,
        mut ask: impl FnMut(Ticket, &[u8]),
    ) {
        if let Some(asked) = self.asked_of(ticket) {
            self.count_part(asked, reply.items.len(), Lacks::default());
        }
        self.change(ticket, |multi| {
            multi.answer_found(ticket.part, line, reply, |part, key| {
                ask(Ticket { part, ..ticket }, key);
            });
        });
    }

    /// A part of an answer must come from several servers: `ask` is called with a ticket for each
    /// of its keys.
    pub fn split(&mut self, ticket: Ticket, line: &[u8], mut ask: impl FnMut(Ticket, &[u8])) {
        self.change(ticket, |multi| {
            multi.split(ticket.part, line, |part, key| {
                ask(Ticket { part, ..ticket }, key);
            });
        });
    }

    /// There was no memory for the values of an answer of so many bytes to `line`. Those of several
    /// keys are asked for once more when there is.
    pub fn no_room(&mut self, ticket: Ticket, line: &[u8], bytes: usize) {
        let Some(client) = self.table.get(ticket.client) else {
            return;
        };
        let pool = client.pool as usize;
        let active = client.active.as_ref();
        let is_next = active.is_none_or(|a| a.is_next_out(ticket.slot));
        let common = self.budget.common();
        let mut keys = 1;
        let asked_again = self.change(ticket, |multi| {
            keys = multi.keys_in(ticket.part);
            // A value that does not fit while its client holds nothing else never will, nor will
            // one that is larger than all common memory.
            let again = bytes / keys.max(1) <= common && !(keys == 1 && is_next);
            if again {
                multi.ask_again(ticket.part, line);
            }
            again
        });
        self.note_size(pool, bytes, keys);
        if asked_again != Some(true) {
            self.counters.limit_memory_gets += 1;
            self.fail(ticket, b"SERVER_ERROR out of memory reading");
        }
    }

    /// Nobody can answer: the client gets an error, and the keys of a request with several keys
    /// become misses. `failure` is the whole line without its end.
    pub fn fail(&mut self, ticket: Ticket, failure: &[u8]) {
        let asked = self.asked_of(ticket);
        let lacks = self.change(ticket, |multi| multi.fail(ticket.part, failure));
        if let (Some(asked), Some(lacks)) = (asked, lacks) {
            return self.count_part(asked, 0, lacks);
        }
        let Some(client) = self.table.get_mut(ticket.client) else {
            return;
        };
        let pool = client.pool as usize;
        self.pools[pool].counts.server_errors += 1;
        let done = client.deliver(&mut self.spares, ticket.slot, |out, slot| {
            answer::write_line(slot.format, failure, out);
        });
        self.note_done(ticket.client, pool, done);
        self.changed(ticket.client);
    }

    /// What a client asked, and in which pool.
    fn asked_of(&mut self, ticket: Ticket) -> Option<(usize, Verb, Traits)> {
        let client = self.table.get_mut(ticket.client)?;
        let slot = client.active.as_mut()?.slot(ticket.slot)?;
        Some((client.pool as usize, slot.verb, slot.traits))
    }

    /// Counts what became of the keys of a part: so many were found.
    fn count_part(&mut self, asked: (usize, Verb, Traits), found: usize, lacks: Lacks) {
        let (pool, verb, traits) = asked;
        self.counters.multi_get_keys_lost += lacks.lost;
        let counts = &mut self.pools[pool].counts;
        counts.count_found(verb, traits, found as u64, lacks.missing + lacks.lost);
    }

    /// A client is owed the answer to a request for several servers, and is not read until all that it
    /// is owed is answered.
    pub fn owe_alone(&mut self, key: usize, format: Format, verb: Verb) -> Option<Ticket> {
        let client = self.table.get_mut(key)?;
        client.pause.add(super::Pause::ORDER);
        let slot = client.owe(&mut self.spares, Slot::new(format, verb));
        Some(Ticket {
            client: key,
            slot,
            part: 0,
        })
    }

    /// Completes a request that magent carried out itself: with `OK`, or with `failure`.
    pub fn conclude(&mut self, ticket: Ticket, failure: Option<&[u8]>) {
        self.report(ticket, 0, |out, format| match failure {
            None => answer::write_success(format, b"OK\r\n", b"", out),
            Some(line) => answer::write_line(format, line, out),
        });
    }

    /// Answers with what magent made of the answers of several servers, about so many bytes.
    pub fn report(&mut self, ticket: Ticket, bytes: usize, write: impl FnOnce(&mut Queue, Format)) {
        let Some(client) = self.table.get_mut(ticket.client) else {
            return;
        };
        let has_room = self.budget.admits(client.holds(), bytes);
        client.deliver(&mut self.spares, ticket.slot, |out, slot| match has_room {
            true => write(out, slot.format),
            false => answer::write_error(slot.format, b"out of memory writing stats", out),
        });
        self.changed(ticket.client);
        self.list(ticket.client);
    }

    /// Lets `f` change the answer to a request with several keys; `None` if it is none.
    fn change<T>(&mut self, ticket: Ticket, f: impl FnOnce(&mut Multi) -> T) -> Option<T> {
        let client = self.table.get_mut(ticket.client)?;
        let pool = client.pool as usize;
        let active = client.active.as_mut()?;
        let (result, done) = active.change_multi(&mut self.spares, ticket.slot, f)?;
        let waits = |slot: &mut Slot| slot.multi.as_ref().is_some_and(|m| m.waits_to_ask_again());
        if active.slot(ticket.slot).is_some_and(waits) && !active.again.contains(&ticket.slot) {
            active.again.push_back(ticket.slot);
        }
        self.note_done(ticket.client, pool, done);
        self.changed(ticket.client);
        Some(result)
    }

    /// A request has its answer.
    #[inline]
    fn note_done(&mut self, client: usize, pool: usize, done: Option<Done>) {
        if let Some(done) = done.filter(|done| done.since != Time::NEVER) {
            let took = self.now.since(done.since);
            self.pools[pool].latency.add(took, self.now);
            if self.slow.is_slow(took) {
                self.note_slow(client, pool, done.verb, took);
            }
        }
    }

    #[cold]
    fn note_slow(&mut self, key: usize, pool: usize, verb: Verb, took: u64) {
        let Some(client) = self.table.get(key).filter(|_| self.slow.has_room(self.now)) else {
            return;
        };
        self.slow.note(SlowRequest {
            at: self.now,
            took,
            client: key,
            peer: client.conn.peer(),
            pool,
            verb,
            asked: None,
        });
    }

    /// Ticket, verb, traits and line prefix of a slot with keys to be asked once more.
    pub fn asked_in(&mut self, key: usize, slot: u32) -> Option<(Ticket, Verb, Traits, Vec<u8>)> {
        let active = self.table.get_mut(key)?.active.as_mut()?;
        let found = active.slot(slot)?;
        let multi = found.multi.as_ref()?;
        let (prefix, traits) = (multi.prefix().to_vec(), found.traits);
        let ticket = Ticket {
            client: key,
            slot,
            part: 0,
        };
        Some((ticket, found.verb, traits, prefix))
    }

    /// Takes the multi of a ticket out, to add parts to it; [`Clients::give_multi`] puts it back.
    pub fn take_multi(&mut self, ticket: Ticket) -> Option<Box<Multi>> {
        let active = self.table.get_mut(ticket.client)?.active.as_mut()?;
        let multi = active.slot(ticket.slot)?.multi.take()?;
        active.held -= multi.held();
        active.held_copied -= multi.copied();
        Some(multi)
    }

    /// Puts it back after requests of so many bytes were sent.
    pub fn give_multi(&mut self, ticket: Ticket, multi: Box<Multi>, bytes: usize) {
        let Some(active) = self
            .table
            .get_mut(ticket.client)
            .and_then(|c| c.active.as_mut())
        else {
            return;
        };
        if let Some(slot) = active.slot(ticket.slot) {
            // What was asked before is answered by now, or asked once more.
            let before = std::mem::replace(&mut slot.asked, bytes as u32);
            let (held, copied) = (multi.held(), multi.copied());
            slot.multi = Some(multi);
            active.asked = active.asked + bytes - before as usize;
            active.held += held;
            active.held_copied += copied;
        }
        self.change(ticket, |_| ());
        self.check_owed(ticket.client);
    }
}
