//! What becomes of a request: its reply goes to the client and to the mirror, its loss to the
//! backup, to the journal, or back as an error.

use super::Proxy;
use super::route::Ask;
use crate::buffer::{Queue, Source};
use crate::client::Slot;
use crate::health::{Cause, Time};
use crate::net::Socket;
use crate::protocol::forms::{self, Mirror};
use crate::protocol::{Dress, Reply, Status, Traits, Verb, binary, meta, text};
use crate::upstream::{EACH, Leg, NOBODY, Pending, Server, ServerId, To};

impl<S: Socket> Proxy<S> {
    /// The oldest request of a link got its reply.
    pub(super) fn settle(&mut self, id: u32, reply: &Reply<'_>) {
        let link = &mut self.links[id as usize];
        let at = link.settled;
        let Some(p) = link.pop() else {
            return;
        };
        let (server, generation) = (link.server, link.generation);
        let Server { health, stats, .. } = &mut self.servers[server as usize];
        health.on_answer();
        if p.sent != Time::NEVER {
            stats.latency.add(self.now.since(p.sent));
        }
        if is_error(reply.status) {
            stats.errors += 1;
        }
        let len = p.len;
        match p.to {
            To::Client { .. } => self.settle_client(id, at, &p, reply),
            To::Ghost => {}
            To::Mirror => self.settle_mirror(id, at, &p, reply.status),
            To::Chase(stamp) => self.settle_chase(id, at, &p, stamp, reply.status),
            To::ReplayFlush(stamp) => self.settle_replay_flush(server, stamp, reply.status),
            To::Fetch(key) => self.settle_fetch(key, reply),
            To::Copy => {
                if reply.status == Status::Done {
                    self.counters.repairs += 1;
                    self.servers[server as usize].stats.keys_copied += 1;
                }
            }
            To::Probe(key) => self.settle_probe(id, key, reply.status),
            To::Flush(op) => self.flush_part(op, Self::flush_failure(reply)),
        }
        let link = &mut self.links[id as usize];
        if link.generation != generation {
            // The reply took the server down, and this link with it.
            return;
        }
        link.release(len);
        if !link.waiting.is_empty() && link.has_room() {
            self.resume_waiting(id);
        }
    }

    fn settle_client(&mut self, id: u32, at: u64, p: &Pending, reply: &Reply<'_>) {
        let at_primary = matches!(p.leg, Leg::Primary | Leg::Retried);
        if at_primary && p.other != NOBODY && self.warm_up(id, at, p, reply) {
            return;
        }
        if p.leg == Leg::Backup && p.traits.has(Traits::RETURNS_CAS) {
            self.answer_marked(id, at, p, reply);
        } else {
            self.answer(id, at, p, reply);
        }
        if p.other != NOBODY && p.traits.has(Traits::WRITES) {
            match p.leg {
                Leg::Primary | Leg::Retried | Leg::Warmed => self.mirror(id, at, p, reply),
                Leg::Deleted if !forms::mirror_ok(reply.status, None) => {
                    let key = self.key_at(id, at, p);
                    self.chase(self.links[id as usize].server, &key, p.hash);
                    self.key = key;
                }
                Leg::Deleted | Leg::Backup => {}
            }
        }
    }

    /// Writes the reply into the client's slot, in the client's dialect.
    fn answer(&mut self, id: u32, at: u64, p: &Pending, reply: &Reply<'_>) {
        let To::Client { client, seq } = p.to else {
            return;
        };
        let Some(c) = self.clients.get_mut(client) else {
            return;
        };
        let line = self.links[id as usize].line_at(at, p.line);
        self.counters.count_reply(p.verb, reply);
        c.deliver(&mut self.spares, seq, 1, |out, slot, last| {
            write_reply(slot, p.verb, line, reply, last, out);
        });
        self.dirty_client(client);
    }

    /// [`Proxy::answer`] for a reply of the backup: its cas tokens are marked as such.
    fn answer_marked(&mut self, id: u32, at: u64, p: &Pending, reply: &Reply<'_>) {
        let mut marked = Queue::new();
        forms::mark_cas(p.verb, reply, &mut marked);
        let source = Source::Queue(&marked, marked.start());
        let start = source.slice(0..marked.len().min(reply.line + u64::MAX.ilog10() as usize));
        let marked = Reply {
            source,
            at: 0,
            len: marked.len(),
            line: text::find_newline(start).map_or(reply.line, |n| n + 1),
            status: reply.status,
            // Only counted from here on; their offsets are those of the reply as it came.
            items: reply.items,
        };
        self.answer(id, at, p, &marked);
    }

    /// Tells the backup what the primary did (behaviour.md §4).
    fn mirror(&mut self, id: u32, at: u64, p: &Pending, reply: &Reply<'_>) {
        if p.other == EACH {
            return self.mirror_each(id, at, p, reply);
        }
        let mut line = std::mem::take(&mut self.line);
        line.clear();
        let wire = self.links[id as usize].line_at(at, p.line);
        let mirror = forms::mirror(p.verb, p.traits, wire, reply.status, &mut line);
        self.send_mirror(id, at, p, &mirror, &line);
        self.line = line;
    }

    /// The same for a gat with several keys: each key that was found is touched.
    fn mirror_each(&mut self, id: u32, at: u64, p: &Pending, reply: &Reply<'_>) {
        let pool = self.servers[self.links[id as usize].server as usize].pool;
        let wire = self.links[id as usize].line_at(at, p.line).to_vec();
        let (mut single, mut line) = (Vec::new(), Vec::new());
        forms::multi_keys(&wire, reply, |key, found| {
            let place = self.place(pool, key);
            if !found || place.backup == NOBODY {
                return;
            }
            single.clear();
            line.clear();
            forms::write_single(p.verb, &wire, key, &mut single);
            let mirror = forms::mirror(p.verb, p.traits, &single, Status::Done, &mut line);
            if let Mirror::Send { verb, .. } = mirror {
                self.mirror_line(place.backup, place.hash, verb, key, &line);
            }
        });
    }

    fn mirror_line(&mut self, backup: ServerId, hash: u64, verb: Verb, key: &[u8], line: &[u8]) {
        let server = &mut self.servers[backup as usize];
        if !server.health.is_up() {
            server.stats.mirrors_failed += 1;
            self.journal(backup, key);
            return;
        }
        server.stats.mirrors += 1;
        let pending = Pending {
            traits: Traits::WRITES,
            leg: Leg::Backup,
            ..Pending::own(To::Mirror, verb, hash, Time::NEVER)
        };
        self.send(backup, pending, &Ask::line(verb, Traits::WRITES, line));
    }

    fn send_mirror(&mut self, id: u32, at: u64, p: &Pending, mirror: &Mirror, line: &[u8]) {
        let Mirror::Send {
            verb,
            with_data,
            number,
        } = *mirror
        else {
            return;
        };
        let backup = &mut self.servers[p.other as usize];
        let to = backup.link_for(p.hash);
        let full = self.links[to as usize].is_full();
        if !backup.health.is_up() || full {
            if full {
                self.counters.limit_mirrors_journaled += 1;
            }
            backup.stats.mirrors_failed += 1;
            let key = self.key_at(id, at, p);
            self.journal(p.other, &key);
            self.servers[p.other as usize].untold |= full;
            self.key = key;
            return;
        }
        backup.stats.mirrors += 1;
        let Ok([from, link]) = self.links.get_disjoint_mut([id as usize, to as usize]) else {
            return;
        };
        let start = link.queue.end();
        link.queue.push_slice(line);
        if with_data {
            let source = Source::Queue(&from.queue, at);
            link.queue.push(source, p.line as usize..p.len as usize);
        }
        let pending = Pending {
            traits: Traits::WRITES,
            leg: Leg::Backup,
            line: line.len() as u32,
            len: (link.queue.end() - start) as u32,
            number,
            ..Pending::own(To::Mirror, verb, p.hash, Time::NEVER)
        };
        self.send_pushed(to, pending);
    }

    /// A mirror was answered: anything but success, not found or not stored means that the
    /// backup may hold something else, so the key is deleted there.
    fn settle_mirror(&mut self, id: u32, at: u64, p: &Pending, status: Status) {
        if forms::mirror_ok(status, p.number) {
            return;
        }
        let server = self.links[id as usize].server;
        self.servers[server as usize].stats.mirrors_failed += 1;
        let key = self.key_at(id, at, p);
        self.chase(server, &key, p.hash);
        self.key = key;
    }

    /// The key of the request at `at`, in `self.key`'s memory: give it back.
    pub(super) fn key_at(&mut self, id: u32, at: u64, p: &Pending) -> Vec<u8> {
        let mut key = std::mem::take(&mut self.key);
        key.clear();
        let line = self.links[id as usize].line_at(at, p.line);
        forms::raw_key(p.verb, line, &mut key);
        key
    }

    /// A request was lost at `server`: it goes to its backup, once; else its client is told.
    pub(super) fn lost(&mut self, server: ServerId, p: Pending, ask: &Ask<'_>, cause: Cause) {
        let s = &mut self.servers[server as usize];
        if cause != Cause::Down {
            s.stats.errors += 1;
        }
        match p.to {
            To::Client { client, seq } => self.lost_client(server, p, client, seq, ask, cause),
            To::Mirror => {
                s.stats.mirrors_failed += 1;
                self.journal_line(server, p.verb, ask);
            }
            To::Chase(stamp) => {
                // Where a server with a backup is trusted again it was told before. Without a
                // backup nothing was written elsewhere, and nothing has to be told later.
                if s.health.is_up() {
                    forms::each_key(p.verb, ask.line_bytes(), |key| s.journal.told(key, stamp));
                }
            }
            To::Ghost | To::ReplayFlush(_) | To::Copy => {}
            To::Fetch(key) => self.fetch_failed(key),
            To::Probe(key) => self.probe_lost(key, cause),
            To::Flush(op) => {
                // On a link that lives it will still run, in order.
                if !s.health.is_up() {
                    s.journal.mark_flush();
                }
                let mut text = b"SERVER_ERROR ".to_vec();
                text.extend_from_slice(&self.failure(server, cause));
                self.flush_part(op, Some(text));
            }
        }
    }

    fn lost_client(
        &mut self,
        server: ServerId,
        mut p: Pending,
        client: usize,
        seq: u32,
        ask: &Ask<'_>,
        cause: Cause,
    ) {
        let writes = p.traits.has(Traits::WRITES);
        match p.leg {
            Leg::Deleted => {
                // The primary had said that there is nothing; that is the answer.
                self.missed(server, p.verb, ask);
                self.answer_absent(client, seq, p.verb, ask);
                return;
            }
            Leg::Backup => return self.fail(server, &p, client, seq, ask, cause),
            Leg::Primary | Leg::Retried | Leg::Warmed => {}
        }
        if p.other == EACH {
            return self.lost_each(server, client, seq, ask, cause, p.deadline);
        }
        if p.other != NOBODY {
            let backup = p.other;
            let goes_on = self.servers[backup as usize].health.is_up();
            // On a link that lives it may still run here, and the backup may not hear of it.
            if writes && (goes_on || self.servers[server as usize].health.is_up()) {
                self.missed(server, p.verb, ask);
            }
            if goes_on {
                self.counters.failovers += 1;
                p.other = server;
                // After a fetch it has had half of its extension.
                let share = if p.leg == Leg::Warmed { 2 } else { 1 };
                p.deadline = p.deadline.plus(self.span_of(backup) / share);
                p.leg = Leg::Backup;
                p.sent = Time::NEVER;
                p.counted = false;
                self.send_to_backup(backup, p, ask);
                return;
            }
            return self.fail(server, &p, client, seq, ask, cause);
        }
        let again = !writes
            && p.leg == Leg::Primary
            && cause == Cause::ConnectionLost
            && self.servers[server as usize].health.is_up();
        if again {
            self.counters.retries += 1;
            p.leg = Leg::Retried;
            p.sent = Time::NEVER;
            self.send(server, p, ask);
        } else {
            self.fail(server, &p, client, seq, ask, cause);
        }
    }

    /// A server that may lack a write, or run it late: a delete follows on its link if it
    /// lives, else when it is back.
    fn missed(&mut self, server: ServerId, verb: Verb, ask: &Ask<'_>) {
        let mut key = std::mem::take(&mut self.key);
        key.clear();
        forms::raw_key(verb, ask.line_bytes(), &mut key);
        self.chase_and_warm(server, &key, super::route::fnv(&key));
        self.key = key;
    }

    /// What a request may take at a server, in nanoseconds.
    pub(super) fn span_of(&self, server: ServerId) -> u64 {
        self.pools[self.servers[server as usize].pool].span()
    }

    /// Cas tokens never cross farms: the bit that marks the backup's is flipped on the way.
    fn send_to_backup(&mut self, backup: ServerId, p: Pending, ask: &Ask<'_>) {
        self.tell_untold(backup);
        if !p.traits.has(Traits::SENDS_CAS) {
            return self.send(backup, p, ask);
        }
        let mut line = std::mem::take(&mut self.line);
        line.clear();
        forms::flip_cas(p.verb, ask.line_bytes(), &mut line);
        let flipped = Ask {
            line: (Source::Slice(&line), 0..line.len()),
            ..ask.clone()
        };
        self.send(backup, p, &flipped);
        self.line = line;
    }

    /// A request with several keys was lost: each key goes its own way.
    fn lost_each(
        &mut self,
        server: ServerId,
        client: usize,
        seq: u32,
        ask: &Ask<'_>,
        cause: Cause,
        deadline: Time,
    ) {
        let pool = self.servers[server as usize].pool;
        let line = ask.line_bytes().to_vec();
        let mut single = Vec::new();
        let (mut parts, mut full) = (0, false);
        forms::each_key(ask.verb, &line, |key| {
            single.clear();
            forms::write_single(ask.verb, &line, key, &mut single);
            let place = self.place(pool, key);
            let p = Pending {
                traits: ask.traits,
                other: place.backup,
                ..Pending::own(To::Client { client, seq }, ask.verb, place.hash, deadline)
            };
            self.add_parts(client, seq, 1);
            parts += 1;
            let ask = Ask::line(ask.verb, ask.traits, &single);
            full = full || self.over_memory(0, 100);
            if full && !ask.traits.has(Traits::WRITES) {
                return self.fail(server, &p, client, seq, &ask, Cause::NoMemory);
            }
            self.lost(server, p, &ask, cause);
        });
        self.counters.limit_memory_gets += u64::from(full);
        debug_assert!(parts > 0);
        self.part_done(client, seq);
    }

    /// Nobody can answer: the client is told who failed and why; of a request with several
    /// keys these are misses.
    fn fail(
        &mut self,
        server: ServerId,
        p: &Pending,
        client: usize,
        seq: u32,
        ask: &Ask<'_>,
        cause: Cause,
    ) {
        let text = self.failure(server, cause);
        if log::log_enabled!(log::Level::Debug) {
            let line = String::from_utf8_lossy(ask.line_bytes());
            log::debug!("nobody <- {} ({})", line.trim_end(), text.escape_ascii());
        }
        let mut keys = 0;
        forms::each_key(p.verb, ask.line_bytes(), |_| keys += 1);
        let Some(c) = self.clients.get_mut(client) else {
            return;
        };
        let mut lost = 0u64;
        let mut failed = false;
        c.deliver(&mut self.spares, seq, 1, |out, slot, last| {
            if slot.multi {
                lost = keys;
                slot.failure = Some((server, cause));
                if last && slot.answered {
                    out.push_slice(b"END\r\n");
                } else if last {
                    failed = true;
                    write_error(slot.dress, &text, out);
                }
            } else {
                failed = true;
                write_error(slot.dress, &text, out);
            }
        });
        self.counters.multi_get_keys_lost += lost;
        self.counters.server_errors += u64::from(failed);
        self.dirty_client(client);
    }

    /// `127.0.0.1:11212 connection refused`; want of memory is not the server's.
    fn failure(&self, server: ServerId, cause: Cause) -> Vec<u8> {
        if cause == Cause::NoMemory {
            return cause.text().into();
        }
        let mut text = self.servers[server as usize].spec.name.clone().into_bytes();
        text.push(b' ');
        text.extend_from_slice(cause.text().as_bytes());
        text
    }

    /// Answers as a server that lacks the key.
    pub(super) fn answer_absent(&mut self, client: usize, seq: u32, verb: Verb, ask: &Ask<'_>) {
        let mut text = Vec::new();
        forms::absent_answer(verb, ask.line_bytes(), &mut text);
        let reply = Reply {
            source: Source::Slice(&text),
            at: 0,
            len: text.len(),
            line: text.len(),
            status: absent_status(&text),
            items: &[],
        };
        self.answer_made(client, seq, verb, ask.line_bytes(), &reply);
    }

    /// Puts a reply that magent made into a client's slot.
    pub(super) fn answer_made(
        &mut self,
        client: usize,
        seq: u32,
        verb: Verb,
        line: &[u8],
        reply: &Reply<'_>,
    ) {
        let Some(c) = self.clients.get_mut(client) else {
            return;
        };
        self.counters.count_reply(verb, reply);
        c.deliver(&mut self.spares, seq, 1, |out, slot, last| {
            write_reply(slot, verb, line, reply, last, out);
        });
        self.dirty_client(client);
    }

    /// A slot will get so many parts more.
    pub(super) fn add_parts(&mut self, client: usize, seq: u32, parts: u32) {
        if let Some(slot) = self.clients.get_mut(client).and_then(|c| c.slot(seq)) {
            slot.parts += parts;
        }
    }

    /// One part of a slot turned out to hold nothing of its own.
    pub(super) fn part_done(&mut self, client: usize, seq: u32) {
        let failure = self
            .clients
            .get_mut(client)
            .and_then(|c| c.slot(seq))
            .filter(|slot| slot.parts == 1 && !slot.answered)
            .and_then(|slot| slot.failure)
            .map(|(server, cause)| self.failure(server, cause));
        let Some(c) = self.clients.get_mut(client) else {
            return;
        };
        c.deliver(&mut self.spares, seq, 1, |out, slot, last| match failure {
            Some(text) => write_error(slot.dress, &text, out),
            None if last => out.push_slice(b"END\r\n"),
            None => {}
        });
        self.dirty_client(client);
    }
}

/// True for replies that are errors.
pub(super) fn is_error(status: Status) -> bool {
    matches!(
        status,
        Status::Unknown | Status::ClientError | Status::ServerError
    )
}

fn absent_status(text: &[u8]) -> Status {
    if text.starts_with(b"NS") || text.starts_with(b"NOT_S") {
        Status::NotStored
    } else {
        Status::Absent
    }
}

/// The reply as its client expects it.
fn write_reply(
    slot: &mut Slot,
    verb: Verb,
    line: &[u8],
    reply: &Reply<'_>,
    last: bool,
    out: &mut Queue,
) {
    match slot.dress {
        _ if slot.multi => write_part(slot, reply, last, out),
        Dress::Text => out.push(reply.source, reply.at..reply.at + reply.len),
        Dress::Silent => {}
        Dress::Meta(d) => meta::dress(&d, verb, line, reply, out),
        Dress::Binary(d) => binary::answer(&d, verb, line, reply, out),
    }
}

/// One server's values of a request with several keys; the last part ends it.
fn write_part(slot: &mut Slot, reply: &Reply<'_>, last: bool, out: &mut Queue) {
    if matches!(reply.status, Status::Done | Status::Absent) {
        slot.answered = true;
        let values = reply.len - b"END\r\n".len();
        out.push(reply.source, reply.at..reply.at + values);
    }
    if last && slot.answered {
        out.push_slice(b"END\r\n");
    } else if last {
        out.push(reply.source, reply.at..reply.at + reply.len);
    }
}

/// A failed `flush_all`: `text` is the whole line of an error.
pub(super) fn write_failure(dress: Dress, text: &[u8], out: &mut Queue) {
    match dress {
        Dress::Silent => {}
        Dress::Binary(d) => {
            let bare = text.strip_prefix(b"SERVER_ERROR ").unwrap_or(text);
            binary::error(&d, bare, out);
        }
        Dress::Text | Dress::Meta(_) => {
            out.push_slice(text);
            out.push_slice(b"\r\n");
        }
    }
}

/// An error of magent's own: `SERVER_ERROR text`.
pub(super) fn write_error(dress: Dress, text: &[u8], out: &mut Queue) {
    match dress {
        Dress::Silent => {}
        Dress::Binary(d) => binary::error(&d, text, out),
        Dress::Text | Dress::Meta(_) => {
            out.push_slice(b"SERVER_ERROR ");
            out.push_slice(text);
            out.push_slice(b"\r\n");
        }
    }
}
