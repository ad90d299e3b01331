//! Requests with several steps at a warming primary: what it lacks is fetched from the backup, copied
//! in with `add`, and the request is served after it.
//!
//! ```text
//!  get k ─▶ primary: absent ─▶ Fetch: mg k u f t v c ─▶ backup: found ─▶ add k ─▶ primary
//!                                                                       get k ─▶ primary ─▶ client
//!  add k ─▶ Look: me k ─▶ primary: there ────────────────────────────── add k ─▶ primary ─▶ client
//!                                  absent ─▶ Fetch, then the add itself
//! ```
//!
//! One [`Flow`] is one key at one primary. A request that creates its key opens one that *holds* the
//! key: whatever is asked of the key meanwhile waits in it, in order, and follows on the same link. So
//! one look serves all that came until its answer, and a client that pipelines reads what it wrote.
//!
//! The copy is dropped when anything newer was sent to the primary after the request that missed. An
//! answer that did not come says nothing: only `EN` is a miss.

use super::flows::{Flow, Step, Waiting};
use super::link::{Ask, Attempt, Pending, To};
use super::{Pools, ServerId};
use crate::buffer::{Queue, Source};
use crate::clients::{Clients, Ticket};
use crate::health::Cause;
use crate::net::Socket;
use crate::protocol::forms::{self, Fetched, Mirror};
use crate::protocol::{Item, Reply, Status, Traits, Verb, text};
use std::collections::VecDeque;

/// What a flow and what a request in it take beside their bytes: entries and the allocator's share.
const ENTRY: usize = 256;

impl<S: Socket> Pools<S> {
    /// True if what this primary lacks may be had from that backup.
    #[inline]
    pub(super) fn is_warming(&self, p: &Pending) -> bool {
        let primary = self.servers.get(p.home.primary);
        let pool = &self.pools[p.home.pool as usize];
        primary.is_some_and(|s| s.health.is_warming(self.now) && s.flushes == 0)
            && (self.servers.get(p.home.backup).is_some()
                || (p.home.several && pool.backups.is_some()))
    }

    /// True if a client's `flush_all` is on its way to this server, or to its backups after it.
    fn is_flushing(&self, id: ServerId) -> bool {
        self.servers.get(id).is_some_and(|s| s.flushes > 0)
    }

    /// True if a fetch can be asked of this server.
    fn is_fetchable(&self, backup: ServerId) -> bool {
        let backup = self.servers.get(backup);
        backup.is_some_and(|s| s.health.is_up() && s.meta)
    }

    /// Takes a request of a client over that cannot simply be sent to its primary. False if it can.
    #[inline]
    pub(super) fn takes_steps(&mut self, p: &Pending, ask: &Ask<'_>) -> bool {
        let flow = self.flows.find(p.home.primary, p.hash);
        if let Some(key) = flow.filter(|f| self.flows.table.get(*f).is_some_and(|f| f.holds)) {
            self.join(key, p, ask, false);
            return true;
        }
        if !p.traits.has(Traits::CREATES) || !self.may_be_warming(p) {
            return false;
        }
        let mut name = Vec::new();
        forms::raw_key(ask.verb, ask.line_bytes(), &mut name);
        match flow.filter(|f| {
            self.flows
                .table
                .get(*f)
                .is_some_and(|f| f.key[..] == name[..])
        }) {
            // The key is being fetched: the request is served after it, and so are those behind.
            Some(key) => {
                self.join(key, p, ask, false);
                if let Some(flow) = self.flows.table.get_mut(key) {
                    flow.holds = true;
                }
            }
            None => self.look(p, &name, ask),
        }
        true
    }

    /// True if what is asked of a key waits for another request that creates it.
    #[inline]
    pub(super) fn is_held(&self, primary: ServerId, hash: u64) -> bool {
        let flow = self.flows.find(primary, hash);
        flow.is_some_and(|f| self.flows.table.get(f).is_some_and(|f| f.holds))
    }

    /// True if the primary is warming, or may be: before the handshake nobody knows.
    fn may_be_warming(&self, p: &Pending) -> bool {
        let Some(server) = self.servers.get(p.home.primary) else {
            return false;
        };
        if !server.health.is_up() || !server.meta || !self.is_fetchable(p.home.backup) {
            return false;
        }
        let link = self.links.get(server.link_for(p.hash));
        self.is_warming(p) || link.is_some_and(|l| !l.is_up())
    }

    fn look(&mut self, p: &Pending, name: &[u8], ask: &Ask<'_>) {
        let flow = self.flows.table.insert(Flow {
            primary: p.home.primary,
            backup: p.home.backup,
            pool: p.home.pool,
            key: name.into(),
            hash: p.hash,
            step: Step::Look,
            holds: true,
            deadline: p.deadline,
            waiting: VecDeque::new(),
            charged: 0,
        });
        self.flows.by_key.insert((p.home.primary, p.hash), flow);
        self.join(flow, p, ask, false);
        let mut line = Vec::new();
        let verb = forms::write_look(name, &mut line);
        let look = Pending {
            deadline: p.deadline,
            timeout: p.timeout,
            ..self.own(To::Step(flow), verb, Traits::default(), p.hash)
        };
        self.tell_before(p.home.primary, name, p.hash);
        self.send(
            p.home.primary,
            look,
            &Ask::line(verb, Traits::default(), &line),
        );
    }

    /// A request takes its place in a flow.
    fn join(&mut self, flow: usize, p: &Pending, ask: &Ask<'_>, missed: bool) {
        let Some(flow) = self.flows.table.get_mut(flow) else {
            return;
        };
        let mut wire = Queue::new();
        let (line, len) = ask.push_to(&mut wire);
        let charged = flow.charged + ENTRY + wire.own_bytes();
        self.budget.recharge(&mut flow.charged, charged);
        let mut pending = p.again(p.attempt);
        (pending.line, pending.len) = (line, len);
        flow.waiting.push_back(Waiting {
            pending,
            wire,
            missed,
        });
    }

    /// Takes a reply of a warming primary over if the key may only be missing because it
    /// restarted. False if the reply stands.
    pub(super) fn warm_up(
        &mut self,
        id: usize,
        at: u64,
        p: &Pending,
        ticket: Ticket,
        reply: &Reply<'_>,
        clients: &mut Clients<S>,
    ) -> bool {
        if !matches!(p.attempt, Attempt::Primary | Attempt::Retried) || !self.is_warming(p) {
            return false;
        }
        if p.home.several {
            return self.warm_each(id, at, p, ticket, reply, clients);
        }
        if !matches!(reply.status, Status::Absent | Status::NotStored) || !self.is_up(p.home.backup)
        {
            return false;
        }
        if p.traits.has(Traits::DELETES) {
            return reply.status == Status::Absent && self.delete_at_backup(id, at, p);
        }
        if !p.traits.has(Traits::NEEDS_KEY) || !self.is_fetchable(p.home.backup) {
            return false;
        }
        let mut wire = Queue::new();
        let Some(link) = self.links.get(id) else {
            return false;
        };
        let since = link.first_seq - 1;
        wire.push(Source::Queue(&link.queue, at), 0..p.len as usize);
        let key = self.key_at(id, at, p);
        let ask = Ask::queued(p, &wire, wire.start());
        self.fetch(p, &key, &ask, id, since);
        self.key = key;
        true
    }

    /// The backup's answer to the mirrored delete is the client's answer.
    fn delete_at_backup(&mut self, id: usize, at: u64, p: &Pending) -> bool {
        let mut line = std::mem::take(&mut self.line);
        line.clear();
        let mirror = self.links.get(id).map(|link| {
            let asked = link.line_at(at, p.line);
            forms::mirror(p.verb, p.traits, asked, Status::Absent, &mut line)
        });
        let is_sent = if let Some(Mirror::Send { verb, .. }) = mirror {
            let span = self.pools[p.home.pool as usize].span();
            let pending = Pending {
                verb,
                deadline: p.deadline.plus(span),
                ..p.again(Attempt::Deleted)
            };
            if let Some(backup) = self.servers.get_mut(p.home.backup) {
                backup.stats.mirrors += 1;
            }
            self.send(p.home.backup, pending, &Ask::line(verb, p.traits, &line));
            true
        } else {
            false
        };
        self.line = line;
        is_sent
    }

    /// Several keys: what was found goes to the client, each missing key is fetched by itself.
    fn warm_each(
        &mut self,
        id: usize,
        at: u64,
        p: &Pending,
        ticket: Ticket,
        reply: &Reply<'_>,
        clients: &mut Clients<S>,
    ) -> bool {
        let Some(link) = self.links.get(id) else {
            return false;
        };
        if !matches!(reply.status, Status::Done | Status::Absent) {
            return false;
        }
        let line = link.line_at(at, p.line).to_vec();
        let since = link.first_seq - 1;
        let (mut single, mut misses) = (Vec::new(), Vec::new());
        clients.answer_found(ticket, p.verb, &line, reply, |ticket, key| {
            single.clear();
            forms::write_single(p.verb, &line, key, &mut single);
            let ask = Ask::line(p.verb, p.traits, &single);
            let place = self.pools[p.home.pool as usize].place(key, 0);
            let mut alone = p.again(p.attempt);
            alone.to = To::Client(ticket);
            alone.home.backup = place.backup;
            alone.home.several = false;
            alone.hash = place.hash;
            if self.is_fetchable(place.backup) {
                self.fetch(&alone, key, &ask, id, since);
            } else {
                misses.push((ticket, single.clone()));
            }
        });
        for (ticket, line) in misses {
            self.answer_absent(ticket, &Ask::line(p.verb, p.traits, &line), clients);
        }
        true
    }

    /// Starts the fetch of a key that the primary lacks, or joins one that is under way and not out of
    /// date. `link` and `since` tell the request that missed.
    fn fetch(&mut self, p: &Pending, key: &[u8], ask: &Ask<'_>, link: usize, since: u64) {
        let under_way = self.flows.find(p.home.primary, p.hash);
        let joins = under_way.filter(|f| {
            let flow = self.flows.table.get(*f);
            // One that looks was asked behind this request, and behind what was written meanwhile.
            flow.is_some_and(|f| {
                f.key[..] == *key && matches!(f.step, Step::Fetch { .. }) && !self.is_outdated(f)
            })
        });
        if let Some(flow) = joins {
            return self.join(flow, p, ask, true);
        }
        let flow = self.flows.table.insert(Flow {
            primary: p.home.primary,
            backup: p.home.backup,
            pool: p.home.pool,
            key: key.into(),
            hash: p.hash,
            step: Step::Look,
            holds: false,
            deadline: p.deadline,
            waiting: VecDeque::new(),
            charged: 0,
        });
        if under_way.is_none_or(|f| self.flows.table.get(f).is_none_or(|f| !f.holds)) {
            self.flows.by_key.insert((p.home.primary, p.hash), flow);
        }
        self.join(flow, p, ask, true);
        self.ask_backup(flow, link, since);
    }

    /// The step from knowing that the primary lacks the key to asking the backup.
    fn ask_backup(&mut self, key: usize, link: usize, since: u64) {
        let Some(flow) = self.flows.table.get_mut(key) else {
            return;
        };
        flow.step = Step::Fetch {
            link,
            since,
            is_outdated: false,
        };
        let (backup, hash, name) = (flow.backup, flow.hash, flow.key.clone());
        let pool = &self.pools[flow.pool as usize];
        let deadline = flow.deadline.max(self.now.plus(pool.span() / 2));
        let timeout = pool.timeout_ms();
        self.counters.fetches += 1;
        self.tell_before(backup, &name, hash);
        let mut line = Vec::new();
        let verb = forms::write_fetch(&name, &mut line);
        let fetch = Pending {
            deadline,
            timeout,
            ..self.own(To::Step(key), verb, Traits::default(), hash)
        };
        self.send(backup, fetch, &Ask::line(verb, Traits::default(), &line));
    }

    /// The key was written after the request that missed: on the primary's link, or elsewhere
    /// while the primary was away.
    fn is_outdated(&self, flow: &Flow) -> bool {
        match flow.step {
            Step::Look => false,
            Step::Fetch {
                link,
                since,
                is_outdated,
            } => is_outdated || self.recent.is_newer(link, flow.hash, since),
        }
    }

    /// A step was answered.
    pub(super) fn step_answered(
        &mut self,
        key: usize,
        id: usize,
        reply: &Reply<'_>,
        clients: &mut Clients<S>,
    ) {
        let Some(flow) = self.flows.table.get(key) else {
            return;
        };
        match flow.step {
            Step::Look => {
                // A delete that was sent after the look undoes what it saw.
                let primary = self.servers.get(flow.primary);
                let is_absent = reply.status == Status::Absent
                    || primary.is_some_and(|s| s.journal.is_to_go(&flow.key));
                // The key is held: what its link was sent since the look is that delete.
                let since = self.links.get(id).map_or(0, |l| l.last_seq());
                let is_flushing = self.is_flushing(flow.primary);
                if is_absent && !is_flushing && self.is_fetchable(flow.backup) {
                    self.ask_backup(key, id, since);
                } else if let Some(flow) = self.flows.take(key) {
                    self.release(flow);
                }
            }
            Step::Fetch { .. } => {
                let found = (reply.status == Status::Done)
                    .then(|| forms::parse_fetched(reply.first_line()))
                    .flatten();
                let Some(flow) = self.flows.take(key) else {
                    return;
                };
                match found {
                    Some(fetched) => self.fetched(flow, &fetched, reply, clients),
                    None if reply.status == Status::Absent => self.both_lack_it(flow, clients),
                    None => {
                        let said = reply.first_line();
                        let said = said.strip_prefix(b"SERVER_ERROR ").unwrap_or(said);
                        let name = self.servers.get(flow.backup).map(|s| &s.spec.name[..]);
                        let name = name.unwrap_or("backup");
                        let line = [b"SERVER_ERROR ", name.as_bytes(), b" ", said].concat();
                        self.not_known(flow, &line, clients);
                    }
                }
            }
        }
    }

    /// A step was lost.
    pub(super) fn step_lost(&mut self, key: usize, cause: Cause, clients: &mut Clients<S>) {
        let Some(flow) = self.flows.take(key) else {
            return;
        };
        match flow.step {
            // The primary is away, or silent: as if each had been asked there.
            Step::Look => {
                let primary = flow.primary;
                self.each_waiting(flow, |pools, w| {
                    let ask = Ask::queued(&w.pending, &w.wire, w.wire.start());
                    pools.lose(primary, w.pending.clone(), &ask, cause);
                });
            }
            Step::Fetch { .. } => {
                let line = self.failure(flow.backup, cause);
                self.not_known(flow, &line, clients);
            }
        }
    }

    /// Calls `f` with each request of a flow that is over, in order.
    fn each_waiting(&mut self, mut flow: Flow, mut f: impl FnMut(&mut Self, &Waiting)) {
        self.budget.recharge(&mut flow.charged, 0);
        for waiting in &flow.waiting {
            f(self, waiting);
        }
    }

    /// The primary has the key now, or no server has it: what waited is sent.
    fn release(&mut self, flow: Flow) {
        let primary = flow.primary;
        let span = self.pools[flow.pool as usize].span() / 2;
        self.each_waiting(flow, |pools, w| pools.send_waiting(primary, span, w));
    }

    fn send_waiting(&mut self, primary: ServerId, span: u64, w: &Waiting) {
        let ask = Ask::queued(&w.pending, &w.wire, w.wire.start());
        let pending = Pending {
            deadline: w.pending.deadline.plus(span),
            ..w.pending.again(Attempt::Warmed)
        };
        self.send(primary, pending, &ask);
    }

    /// Both farms miss: what needs the key has its answer, the others are sent.
    fn both_lack_it(&mut self, flow: Flow, clients: &mut Clients<S>) {
        let primary = flow.primary;
        let span = self.pools[flow.pool as usize].span() / 2;
        self.each_waiting(flow, |pools, w| match (w.missed, w.pending.to) {
            (true, To::Client(ticket)) => {
                let ask = Ask::queued(&w.pending, &w.wire, w.wire.start());
                pools.answer_absent(ticket, &ask, clients);
            }
            _ => pools.send_waiting(primary, span, w),
        });
    }

    /// Nobody can say whether the backup has the key: the primary's first answer stands, and nothing
    /// is created. `line` is the failure.
    fn not_known(&mut self, flow: Flow, line: &[u8], clients: &mut Clients<S>) {
        let primary = flow.primary;
        let span = self.pools[flow.pool as usize].span() / 2;
        self.each_waiting(flow, |pools, w| {
            let ask = Ask::queued(&w.pending, &w.wire, w.wire.start());
            match w.pending.to {
                To::Client(ticket) if w.pending.traits.has(Traits::CREATES) => {
                    clients.fail(ticket, line);
                }
                To::Client(ticket) if w.missed => pools.answer_absent(ticket, &ask, clients),
                _ => pools.send_waiting(primary, span, w),
            }
        });
    }

    /// The backup has the key: it is copied if nothing newer happened, and what waited is served.
    fn fetched(
        &mut self,
        flow: Flow,
        fetched: &Fetched,
        reply: &Reply<'_>,
        clients: &mut Clients<S>,
    ) {
        let may_copy = !self.is_outdated(&flow) && !self.is_flushing(flow.primary);
        if !may_copy {
            self.counters.repairs_dropped += 1;
        }
        let mut line = Vec::new();
        let copy = may_copy
            .then(|| forms::write_copy(&flow.key, fetched, self.unix, &mut line))
            .flatten();
        let Some(verb) = copy else {
            return self.serve_uncopied(flow, fetched, reply, clients);
        };
        let value = reply.at + reply.line;
        let ask = Ask {
            verb,
            traits: Traits::WRITES,
            line: (Source::Slice(&line), 0..line.len()),
            data: (reply.source, value..value + fetched.value + 2),
            end_line: false,
        };
        // A write: a stopped primary may run it long after the key was written elsewhere.
        let pending = self.own(To::Copy, verb, Traits::WRITES, flow.hash);
        self.send(flow.primary, pending, &ask);
        self.release(flow);
    }

    /// The fetch took the right to refresh a stale value, and no client is there to have it.
    fn give_back(&mut self, backup: ServerId, key: &[u8], hash: u64, fetched: &Fetched) {
        let mut line = Vec::new();
        let verb = forms::write_give_back(key, fetched, &mut line);
        let pending = self.own(To::Nobody, verb, Traits::WRITES, hash);
        self.send(backup, pending, &Ask::line(verb, Traits::WRITES, &line));
    }

    /// The fetched value is not copied: a read gets it, a write the primary's first answer. What would
    /// create the key is told that it exists if it can be, else sent as it is.
    fn serve_uncopied(
        &mut self,
        flow: Flow,
        fetched: &Fetched,
        reply: &Reply<'_>,
        clients: &mut Clients<S>,
    ) {
        let primary = flow.primary;
        let span = self.pools[flow.pool as usize].span() / 2;
        let is_newer = self.is_outdated(&flow);
        let (backup, key, hash) = (flow.backup, flow.key.clone(), flow.hash);
        // The right to refresh it is for one client.
        let mut shown = *fetched;
        self.each_waiting(flow, |pools, w| {
            let ask = Ask::queued(&w.pending, &w.wire, w.wire.start());
            let To::Client(ticket) = w.pending.to else {
                return;
            };
            let creates = w.pending.traits.has(Traits::CREATES);
            let is_add = creates && matches!(ask.verb, Verb::Add | Verb::MetaSet);
            if (creates && is_newer) || (!w.missed && !creates) {
                return pools.send_waiting(primary, span, w);
            }
            if answer_fetched(ticket, &ask, &shown, reply, clients) {
                if ask.verb == Verb::MetaGet {
                    shown.hand_out();
                }
            } else if w.missed || is_add {
                pools.answer_absent(ticket, &ask, clients);
            } else {
                pools.send_waiting(primary, span, w);
            }
        });
        if shown.won() {
            self.give_back(backup, &key, hash, fetched);
        }
    }
}

/// Answers a read with a fetched value. False if it is none.
fn answer_fetched<S: Socket>(
    ticket: Ticket,
    ask: &Ask<'_>,
    fetched: &Fetched,
    reply: &Reply<'_>,
    clients: &mut Clients<S>,
) -> bool {
    let mut made = Queue::new();
    let (line, value) = (ask.line_bytes(), reply.at + reply.line);
    if !forms::answer_fetched(ask.verb, line, fetched, reply.source, value, &mut made) {
        return false;
    }
    let source = Source::Queue(&made, made.start());
    let first = text::find_newline(source.slice(0..made.len().min(2048)));
    let first = first.map_or(made.len(), |n| n + 1);
    let items = [Item {
        at: 0,
        line: first,
        value: fetched.value,
    }];
    let is_classic = ask.verb != Verb::MetaGet;
    let reply = Reply {
        source,
        at: 0,
        len: made.len(),
        line: first,
        status: Status::Done,
        items: if is_classic { &items } else { &[] },
    };
    clients.answer(ticket, ask.verb, line, &reply);
    true
}
