//! A primary that came back empty is not felt: what it lacks is fetched from the backup,
//! copied in with `add`, and the request is served after it.
//!
//! ```text
//!  get k ─▶ primary: absent ─▶ mg k f t v ─▶ backup: found ─▶ add k ─▶ primary
//!                                                             get k ─▶ primary ─▶ client
//!  add k ─▶ first: mg k ─▶ primary: absent ─▶ as above, then the add itself
//! ```
//!
//! The copy is dropped when anything newer was sent to the primary after the request that
//! missed: [`Proxy::recent_writes`] knows the last write of each key on a warming link.

use super::Proxy;
use super::route::Ask;
use crate::buffer::{Queue, Source};
use crate::health::{Cause, Time};
use crate::net::Socket;
use crate::protocol::forms::{self, Fetched, Mirror};
use crate::protocol::{Reply, Status, Traits, Verb};
use crate::upstream::{EACH, Leg, NOBODY, Pending, ServerId, To};
use std::collections::HashMap;

/// A value on its way from a backup to its primary.
#[derive(Debug)]
pub(super) struct Fetch {
    primary: ServerId,
    key: Box<[u8]>,
    hash: u64,
    /// The primary's link and the number, on it, of the request that missed.
    link: u32,
    since: u64,
    /// What it brings may be older than what is there when it arrives: nothing is copied.
    outdated: bool,
    waiters: Vec<usize>,
}

/// A client's request that waits until its key was fetched.
#[derive(Debug)]
pub(super) struct Waiter {
    pending: Pending,
    primary: ServerId,
    wire: Queue,
}

/// A key that a client is creating on a warming primary: what is asked of the key meanwhile
/// waits, so that a client that pipelines reads what it wrote.
pub(super) type Creating = HashMap<(ServerId, u64), Vec<usize>>;

/// What a fetch takes, and what a request that waits takes beside its own bytes: entry, key, and
/// the allocator's share. A get of 1 MiB may start a hundred thousand of each.
pub(super) const FETCH_COST: usize = 512;

/// Recent writes are looked through for old ones when there are so many.
const PRUNE: usize = 8192;

impl<S: Socket> Proxy<S> {
    /// Takes a reply of a warming primary over if the key may only be missing because it
    /// restarted. False if the reply stands.
    pub(super) fn warm_up(&mut self, id: u32, at: u64, p: &Pending, reply: &Reply<'_>) -> bool {
        let server = self.links[id as usize].server;
        if !self.is_warming(server, p.other) {
            return false;
        }
        if p.other == EACH {
            return self.warm_each(id, at, p, reply);
        }
        if !matches!(reply.status, Status::Absent | Status::NotStored) {
            return false;
        }
        let backup = &self.servers[p.other as usize];
        if !backup.health.is_up() {
            return false;
        }
        if p.traits.has(Traits::DELETES) {
            return reply.status == Status::Absent && self.delete_at_backup(id, at, p);
        }
        if !p.traits.has(Traits::NEEDS_KEY) || !backup.meta_known() {
            return false;
        }
        let since = self.links[id as usize].first_seq - 1;
        let key = self.key_at(id, at, p);
        let link = &self.links[id as usize];
        let mut wire = Queue::new();
        wire.push(Source::Queue(&link.queue, at), 0..p.len as usize);
        let waiter = Waiter {
            pending: p.again(),
            primary: server,
            wire,
        };
        self.fetch(waiter, &key, id, since);
        self.key = key;
        true
    }

    /// The backup's answer to the mirrored delete is the client's answer.
    fn delete_at_backup(&mut self, id: u32, at: u64, p: &Pending) -> bool {
        let mut line = std::mem::take(&mut self.line);
        line.clear();
        let wire = self.links[id as usize].line_at(at, p.line);
        let mirror = forms::mirror(p.verb, p.traits, wire, Status::Absent, &mut line);
        let sent = match mirror {
            Mirror::Send { verb, .. } => {
                let pending = Pending {
                    verb,
                    leg: Leg::Deleted,
                    other: self.links[id as usize].server,
                    deadline: p.deadline.plus(self.span_of(p.other)),
                    ..p.again()
                };
                self.servers[p.other as usize].stats.mirrors += 1;
                self.send(p.other, pending, &Ask::line(verb, p.traits, &line));
                true
            }
            Mirror::Nothing => false,
        };
        self.line = line;
        sent
    }

    /// Several keys: what was found goes to the client, each missing key is fetched by itself.
    fn warm_each(&mut self, id: u32, at: u64, p: &Pending, reply: &Reply<'_>) -> bool {
        let To::Client { client, seq } = p.to else {
            return false;
        };
        if !matches!(reply.status, Status::Done | Status::Absent) {
            return false;
        }
        let server = self.links[id as usize].server;
        let pool = self.servers[server as usize].pool;
        let line = self.links[id as usize].line_at(at, p.line).to_vec();
        let since = self.links[id as usize].first_seq - 1;
        let mut missing = Vec::new();
        forms::multi_missing(&line, reply, |key| missing.push(key));
        let mut single = Vec::new();
        for key in missing {
            if self.over_memory(FETCH_COST, 100) {
                // A miss, as where there is no memory for a value.
                self.counters.limit_memory_gets += 1;
                break;
            }
            let place = self.place(pool, key);
            let fetchable = place.backup != NOBODY && {
                let backup = &self.servers[place.backup as usize];
                backup.health.is_up() && backup.meta_known()
            };
            if !fetchable {
                continue;
            }
            single.clear();
            forms::write_single(p.verb, &line, key, &mut single);
            let mut wire = Queue::new();
            wire.push_slice(&single);
            let waiter = Waiter {
                pending: Pending {
                    other: place.backup,
                    line: single.len() as u32,
                    len: single.len() as u32,
                    hash: place.hash,
                    ..p.again()
                },
                primary: server,
                wire,
            };
            self.add_parts(client, seq, 1);
            self.fetch(waiter, key, id, since);
        }
        false
    }

    /// Starts the fetch of a key, or joins one that is under way and not out of date.
    fn fetch(&mut self, waiter: Waiter, key: &[u8], link: u32, since: u64) {
        let (primary, hash) = (waiter.primary, waiter.pending.hash);
        let backup = waiter.pending.other;
        // Half of what is left of its time at the primary: what waits behind a request that
        // creates the key has no extension.
        let left = waiter.pending.deadline.since(self.now);
        let deadline = self.now.plus(left / 2);
        let waiter = self.put_waiter(waiter);
        let under_way = self.fetching.get(&(primary, Box::from(key))).copied();
        let joins = |f: &usize| self.fetches.get(*f).is_some_and(|f| !self.is_outdated(f));
        let joined = under_way.filter(joins);
        if let Some(fetch) = joined.and_then(|f| self.fetches.get_mut(f)) {
            fetch.waiters.push(waiter);
            return;
        }
        let fetch = self.fetches.insert(Fetch {
            primary,
            key: key.into(),
            hash,
            link,
            since,
            outdated: false,
            waiters: vec![waiter],
        });
        self.fetching.insert((primary, key.into()), fetch);
        self.counters.fetches += 1;
        self.tell_untold(backup);
        let mut line = Vec::new();
        let verb = forms::write_fetch(key, &mut line);
        let pending = Pending::own(To::Fetch(fetch), verb, hash, deadline);
        self.send(backup, pending, &Ask::line(verb, Traits::default(), &line));
    }

    /// These primaries are flushed, or away, so that their keys are written elsewhere: what is
    /// fetched for them now is not copied.
    pub(super) fn drop_copies(&mut self, primaries: &[ServerId]) {
        let keys: Vec<usize> = self.fetches.keys().collect();
        for key in keys {
            if let Some(fetch) = self.fetches.get_mut(key) {
                fetch.outdated |= primaries.contains(&fetch.primary);
            }
        }
    }

    /// The key was written after the request that missed: on the primary's link, or elsewhere
    /// while the primary was away.
    fn is_outdated(&self, fetch: &Fetch) -> bool {
        let newer = self.recent_writes.get(&(fetch.link, fetch.hash));
        fetch.outdated
            || newer.is_some_and(|w| *w > fetch.since)
            // Where the key has another link now, newer writes of it are not known here.
            || self.servers[fetch.primary as usize].link_for(fetch.hash) != fetch.link
    }

    fn take_fetch(&mut self, key: usize) -> Option<Fetch> {
        let fetch = self.fetches.remove(key)?;
        let entry = (fetch.primary, fetch.key.clone());
        if self.fetching.get(&entry) == Some(&key) {
            self.fetching.remove(&entry);
        }
        Some(fetch)
    }

    /// The backup answered.
    pub(super) fn settle_fetch(&mut self, key: usize, reply: &Reply<'_>) {
        let Some(fetch) = self.take_fetch(key) else {
            return;
        };
        let found = if reply.status == Status::Done {
            forms::parse_fetched(reply.first_line())
        } else {
            None
        };
        let Some(fetched) = found else {
            return self.nothing_fetched(fetch);
        };
        let primary = &self.servers[fetch.primary as usize];
        if !primary.health.is_up() {
            return self.primary_gone(fetch);
        }
        let dropped = self.is_outdated(&fetch) || self.pools[primary.pool].flushing > 0;
        let mut line = Vec::new();
        let copy = if dropped {
            self.counters.repairs_dropped += 1;
            None
        } else {
            forms::write_copy(&fetch.key, &fetched, self.unix, &mut line)
        };
        if let Some(verb) = copy {
            let value = reply.at + reply.line;
            let ask = Ask {
                verb,
                traits: Traits::WRITES,
                line: (Source::Slice(&line), 0..line.len()),
                data: (reply.source, value..value + fetched.value + 2),
                end_line: false,
            };
            // A write: a stopped primary may run it long after the key was written elsewhere.
            let pending = Pending {
                traits: Traits::WRITES,
                ..Pending::own(To::Copy, verb, fetch.hash, Time::NEVER)
            };
            self.send(fetch.primary, pending, &ask);
        }
        for waiter in fetch.waiters {
            if copy.is_some() {
                self.ask_again(waiter);
            } else {
                self.serve_uncopied(waiter, &fetched, reply);
            }
        }
    }

    /// The fetched value is not copied: a read gets it, a write the primary's first answer, and
    /// a request that would create the key is sent as it is.
    fn serve_uncopied(&mut self, waiter: usize, fetched: &Fetched, reply: &Reply<'_>) {
        let creates = |w: &Waiter| w.pending.traits.has(Traits::CREATES);
        if self.waiters.get(waiter).is_some_and(creates) {
            return self.ask_again(waiter);
        }
        let Some(w) = self.take_waiter(waiter) else {
            return;
        };
        let ask = Ask::wire(&w.pending, &w.wire, w.wire.start());
        let To::Client { client, seq } = w.pending.to else {
            return;
        };
        let mut made = Queue::new();
        let value = reply.at + reply.line;
        let line = ask.line_bytes();
        let is_read = forms::answer_fetched(
            w.pending.verb,
            line,
            fetched,
            reply.source,
            value,
            &mut made,
        );
        if !is_read {
            return self.answer_absent(client, seq, w.pending.verb, &ask);
        }
        let source = Source::Queue(&made, made.start());
        let first = crate::protocol::text::find_newline(source.slice(0..made.len().min(2048)));
        let items = [crate::protocol::Item {
            at: 0,
            line: first.map_or(0, |n| n + 1),
            value: fetched.value,
        }];
        let classic = !matches!(w.pending.verb, Verb::MetaGet);
        let reply = Reply {
            source,
            at: 0,
            len: made.len(),
            line: first.map_or(made.len(), |n| n + 1),
            status: Status::Done,
            items: if classic { &items } else { &[] },
        };
        self.answer_made(client, seq, w.pending.verb, line, &reply);
    }

    /// The backup lacks it too, or could not be asked: the primary's first answer stands.
    fn nothing_fetched(&mut self, fetch: Fetch) {
        for waiter in fetch.waiters {
            let creates = |w: &Waiter| w.pending.traits.has(Traits::CREATES);
            if self.waiters.get(waiter).is_some_and(creates) {
                self.ask_again(waiter);
            } else if let Some(w) = self.take_waiter(waiter) {
                if let To::Client { client, seq } = w.pending.to {
                    let ask = Ask::wire(&w.pending, &w.wire, w.wire.start());
                    self.answer_absent(client, seq, w.pending.verb, &ask);
                }
            }
        }
    }

    fn primary_gone(&mut self, fetch: Fetch) {
        for waiter in fetch.waiters {
            self.ask_again(waiter);
        }
    }

    /// The fetch was lost.
    pub(super) fn fetch_failed(&mut self, key: usize) {
        if let Some(fetch) = self.take_fetch(key) {
            self.nothing_fetched(fetch);
        }
    }

    /// Sends a request that waited to its primary; what comes back now is the answer.
    fn ask_again(&mut self, waiter: usize) {
        let Some(w) = self.take_waiter(waiter) else {
            return;
        };
        let ask = Ask::wire(&w.pending, &w.wire, w.wire.start());
        let pending = Pending {
            leg: Leg::Warmed,
            deadline: w.pending.deadline.plus(self.span_of(w.primary) / 2),
            ..w.pending.again()
        };
        let (hash, creates) = (pending.hash, pending.traits.has(Traits::CREATES));
        if self.servers[w.primary as usize].health.is_up() {
            self.send(w.primary, pending, &ask);
        } else {
            self.lost(w.primary, pending, &ask, Cause::Down);
        }
        if creates {
            self.created(w.primary, hash);
        }
    }

    /// Servers that requests and fetches refer to which wait here.
    pub(super) fn waited_for(&self) -> Vec<ServerId> {
        let waiters = self.waiters.values();
        let of_waiters = waiters.flat_map(|w| [w.primary, w.pending.other]);
        let of_fetches = self.fetches.values().map(|f| f.primary);
        of_waiters.chain(of_fetches).collect()
    }

    /// True while a request that creates a key of this hash waits to be sent.
    pub(super) fn is_creating(&self, primary: ServerId, hash: u64) -> bool {
        !self.creating.is_empty() && self.creating.contains_key(&(primary, hash))
    }

    /// A request for a key that is being created takes its place behind.
    pub(super) fn wait_for_create(&mut self, primary: ServerId, pending: Pending, ask: &Ask<'_>) {
        let hash = pending.hash;
        let waiter = self.keep_waiting(primary, pending, ask);
        self.creating
            .entry((primary, hash))
            .or_default()
            .push(waiter);
    }

    /// The request that creates the key is on its way: what waited for it follows.
    fn created(&mut self, primary: ServerId, hash: u64) {
        for waiter in self.creating.remove(&(primary, hash)).unwrap_or_default() {
            if let Some(w) = self.take_waiter(waiter) {
                let ask = Ask::wire(&w.pending, &w.wire, w.wire.start());
                self.dispatch(primary, w.pending.again(), &ask);
            }
        }
    }

    fn keep_waiting(&mut self, primary: ServerId, pending: Pending, ask: &Ask<'_>) -> usize {
        let mut wire = Queue::new();
        let (line, len) = ask.push_to(&mut wire);
        self.put_waiter(Waiter {
            pending: Pending {
                line,
                len,
                ..pending
            },
            primary,
            wire,
        })
    }

    fn put_waiter(&mut self, waiter: Waiter) -> usize {
        self.waiting_bytes += waiter.wire.own_bytes();
        self.waiters.insert(waiter)
    }

    fn take_waiter(&mut self, waiter: usize) -> Option<Waiter> {
        let waiter = self.waiters.remove(waiter)?;
        self.waiting_bytes -= waiter.wire.own_bytes();
        Some(waiter)
    }

    /// A request that creates its key: a warming primary is asked for the key first.
    pub(super) fn probe_key(&mut self, primary: ServerId, pending: Pending, ask: &Ask<'_>) {
        let mut key = Vec::new();
        forms::raw_key(ask.verb, ask.line_bytes(), &mut key);
        let (hash, deadline) = (pending.hash, pending.deadline);
        let waiter = self.keep_waiting(primary, pending, ask);
        self.creating.insert((primary, hash), Vec::new());
        let mut probe = Vec::new();
        let verb = forms::write_probe(&key, &mut probe);
        let pending = Pending::own(To::Probe(waiter), verb, hash, deadline);
        self.send(
            primary,
            pending,
            &Ask::line(verb, Traits::default(), &probe),
        );
    }

    /// The primary said whether it holds the key.
    pub(super) fn settle_probe(&mut self, id: u32, waiter: usize, status: Status) {
        let Some(w) = self.waiters.get(waiter) else {
            return;
        };
        let backup = &self.servers[w.pending.other as usize];
        let fetchable = backup.health.is_up() && backup.meta_known();
        let absent = status == Status::Absent && self.is_warming(w.primary, w.pending.other);
        if !absent || !fetchable {
            return self.ask_again(waiter);
        }
        let since = self.links[id as usize].first_seq - 1;
        let mut key = Vec::new();
        let line = Source::Queue(&w.wire, w.wire.start()).slice(0..w.pending.line as usize);
        forms::raw_key(w.pending.verb, line, &mut key);
        if let Some(w) = self.take_waiter(waiter) {
            self.fetch(w, &key, id, since);
        }
    }

    /// The primary was lost while it was asked for the key.
    pub(super) fn probe_lost(&mut self, waiter: usize, cause: Cause) {
        if let Some(w) = self.take_waiter(waiter) {
            let ask = Ask::wire(&w.pending, &w.wire, w.wire.start());
            self.lost(w.primary, w.pending.again(), &ask, cause);
            self.created(w.primary, w.pending.hash);
        }
    }

    /// Notes a write on a warming link. What nobody can ask about any more is forgotten now
    /// and then.
    pub(super) fn note_write(&mut self, link: u32, hash: u64, seq: u64) {
        if self.recent_writes.len() >= self.prune_at {
            let mut oldest: HashMap<u32, u64> = HashMap::new();
            for key in self.fetches.keys() {
                if let Some(f) = self.fetches.get(key) {
                    let since = oldest.entry(f.link).or_insert(f.since);
                    *since = f.since.min(*since);
                }
            }
            let links = &self.links;
            self.recent_writes.retain(|(id, _), seq| {
                let unanswered = links[*id as usize].first_seq;
                *seq >= oldest.get(id).map_or(unanswered, |o| unanswered.min(*o))
            });
            self.prune_at = (self.recent_writes.len() * 2).max(PRUNE);
        }
        self.recent_writes.insert((link, hash), seq);
    }
}
