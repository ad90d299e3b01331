//! What comes of a look or a fetch: the copy, and the requests that waited.

use super::flows::{Asked, Flow, Step, Waiting};
use super::pending::{Ask, Attempt, To};
use super::{Pools, ServerId};
use crate::buffer::{Queue, Source};
use crate::clients::{Clients, Ticket};
use crate::health::Cause;
use crate::net::Socket;
use crate::protocol::forms::{self, Fetched};
use crate::protocol::{Item, Reply, Status, Traits, Verb, text};

impl<S: Socket> Pools<S> {
    /// True if a client's `flush_all` is on its way to this server, or to its backups after it, or takes
    /// effect about now.
    pub(super) fn is_flushing(&self, id: ServerId) -> bool {
        let server = self.servers.get(id);
        server.is_some_and(|s| s.flushes > 0 || s.late_flushes > 0 || s.quiet.is_at(self.now))
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
                // The key is held, so all that its link was sent since the look is that delete.
                let since = self.links.get(id).map_or(0, |l| l.last_seq());
                let backup = self.pools[flow.pool as usize].place(&flow.key, 0).backup;
                if is_absent && self.has_held(flow.primary, backup) {
                    // The backup holds what was replaced by a write whose answer waits, and its mirror with it.
                    return self.step_lost(key, Cause::KeptAway, clients);
                }
                let may_fetch = is_absent && !self.is_flushing(flow.primary);
                if !may_fetch || !self.begin_fetch(key, id, since) {
                    self.release_taken(key);
                }
            }
            Step::Await => self.ask_waiting(key),
            Step::Fetch { .. } => {
                let found = (reply.status == Status::Done)
                    .then(|| forms::parse_fetched(reply.first_line()))
                    .flatten();
                match found {
                    Some(fetched) => {
                        if let Some(flow) = self.flows.take(key) {
                            self.fetched(flow, &fetched, reply, clients);
                        }
                    }
                    None if reply.status == Status::Absent => {
                        self.asked_in_vain(key, None, clients);
                    }
                    None => {
                        let said = reply.first_line();
                        let said = said.strip_prefix(b"SERVER_ERROR ").unwrap_or(said);
                        let name = self.servers.get(flow.source).map(|s| &s.spec.name[..]);
                        let name = name.unwrap_or("backup");
                        let line = [b"SERVER_ERROR ", name.as_bytes(), b" ", said].concat();
                        self.asked_in_vain(key, Some(line.into()), clients);
                    }
                }
            }
        }
    }

    /// A server that was asked for a key lacks it, or did not say so: the next one is asked.
    fn asked_in_vain(&mut self, key: usize, failure: Option<Box<[u8]>>, clients: &mut Clients<S>) {
        if let Some(flow) = self.flows.table.get_mut(key) {
            let server = flow.source;
            flow.asked.push(Asked { server, failure });
        }
        if self.fetch_further(key) {
            return;
        }
        let Some(flow) = self.flows.take(key) else {
            return;
        };
        match self.doubt(&flow).map(<[u8]>::to_vec) {
            Some(line) => self.not_known(flow, &line, clients),
            None => self.all_lack_it(flow, clients),
        }
    }

    /// A step was lost.
    pub(super) fn step_lost(&mut self, key: usize, cause: Cause, clients: &mut Clients<S>) {
        let Some(flow) = self.flows.table.get(key) else {
            return;
        };
        match flow.step {
            // The primary is away, or silent: as if each request had been asked there.
            Step::Look => {
                let Some(flow) = self.flows.take(key) else {
                    return;
                };
                let primary = flow.primary;
                self.each_waiting(flow, |pools, w| {
                    let ask = w.ask();
                    pools.lose(primary, w.pending.clone(), &ask, cause);
                });
            }
            // What was lost there is decided on; what is still under way there is not.
            Step::Await => {
                if !self.await_answers(key) {
                    self.ask_waiting(key);
                }
            }
            Step::Fetch { .. } => {
                let line = self.failure(flow.source, cause);
                self.asked_in_vain(key, Some(line.into()), clients);
            }
        }
    }

    /// What was asked of a key before a reload is over: what waited for that is asked now.
    fn ask_waiting(&mut self, key: usize) {
        let Some(flow) = self.flows.take(key) else {
            return;
        };
        let (key, primary) = (flow.key.clone(), flow.primary);
        // However long that took: it is none of what a server has for an answer.
        let until = self.now.plus(self.pools[flow.pool as usize].span() / 2);
        self.each_waiting(flow, |pools, w| {
            let (ask, mut pending) = (w.ask(), w.pending.clone());
            pending.deadline = pending.deadline.max(until);
            if !pools.joins_or_looks(&pending, &key, &ask) {
                pools.sync_first(primary, &key, pending.hash);
                pools.send(primary, pending, &ask);
            }
        });
    }

    /// Calls `f` with each request of a flow that is over, in order.
    fn each_waiting(&mut self, mut flow: Flow, mut f: impl FnMut(&mut Self, &Waiting)) {
        self.budget.recharge(&mut flow.charged, 0);
        for waiting in &flow.waiting {
            f(self, waiting);
        }
    }

    /// The primary has the key now, or no server has it: sends what waited.
    fn release(&mut self, flow: Flow) {
        let primary = flow.primary;
        let span = self.pools[flow.pool as usize].span();
        self.each_waiting(flow, |pools, w| pools.send_waiting(primary, span, w));
    }

    fn release_taken(&mut self, key: usize) {
        if let Some(flow) = self.flows.take(key) {
            self.release(flow);
        }
    }

    fn send_waiting(&mut self, primary: ServerId, span: u64, w: &Waiting) {
        let ask = w.ask();
        let mut pending = w.pending.again(Attempt::Warmed);
        pending.extend(pending.left(span) / 2);
        self.send(primary, pending, &ask);
    }

    /// No server has the key: requests that need it have their answer, the others are sent.
    fn all_lack_it(&mut self, flow: Flow, clients: &mut Clients<S>) {
        let primary = flow.primary;
        let span = self.pools[flow.pool as usize].span() / 2;
        self.each_waiting(flow, |pools, w| match (w.missed, w.pending.to) {
            (true, To::Client(ticket)) => {
                let ask = w.ask();
                pools.answer_absent(ticket, &ask, clients);
            }
            _ => pools.send_waiting(primary, span, w),
        });
    }

    /// Somebody who may have the key did not say so: the primary's first answer stands, and nothing
    /// is created. `line` is the failure.
    fn not_known(&mut self, flow: Flow, line: &[u8], clients: &mut Clients<S>) {
        let primary = flow.primary;
        let span = self.pools[flow.pool as usize].span() / 2;
        self.each_waiting(flow, |pools, w| {
            let ask = w.ask();
            match w.pending.to {
                To::Client(ticket) if w.pending.traits.has(Traits::CREATES) => {
                    clients.fail(ticket, line);
                }
                To::Client(ticket) if w.missed => pools.answer_absent(ticket, &ask, clients),
                _ => pools.send_waiting(primary, span, w),
            }
        });
    }

    /// Another server has the key: copies it if nothing newer happened, and serves what waited.
    fn fetched(
        &mut self,
        mut flow: Flow,
        fetched: &Fetched,
        reply: &Reply<'_>,
        clients: &mut Clients<S>,
    ) {
        self.count_fetched(&flow);
        let backup = self.pools[flow.pool as usize].place(&flow.key, 0).backup;
        let is_decided =
            !self.is_kept_away(flow.primary, backup) && !self.has_held(flow.primary, backup);
        let may_copy = !self.is_outdated(&flow)
            && !self.is_flushing(flow.primary)
            && !self.is_not_to_move(&flow)
            && is_decided;
        if !may_copy {
            self.counters.repairs_dropped += 1;
        }
        let mut line = Vec::new();
        let is_shared = self.is_shared(flow.source, flow.primary);
        let copy = may_copy
            .then(|| forms::write_copy(&flow.key, fetched, self.unix, is_shared, &mut line))
            .flatten();
        let Some(verb) = copy else {
            return self.serve_uncopied(flow, fetched, is_decided, reply, clients);
        };
        let value = reply.at + reply.line;
        let ask = Ask {
            verb,
            traits: Traits::WRITES,
            line: (Source::Slice(&line), 0..line.len()),
            data: (reply.source, value..value + fetched.value + 2),
            end_line: false,
        };
        // It counts as a write: a stopped primary may run it long after the key was written
        // elsewhere.
        let way = (flow.source, flow.primary);
        let copy = self.watch_fetched(way, true, flow.hash, fetched);
        let mut pending = self.own(To::Copy(copy), verb, Traits::WRITES, flow.hash);
        (pending.home.primary, pending.home.backup) = (flow.primary, backup);
        self.send(flow.primary, pending, &ask);
        self.answer_reads(&mut flow, fetched, reply, clients);
        self.release(flow);
    }

    /// Those that only read need not wait until the primary has the copy. One that comes behind a write of the
    /// key must, and one that was not asked there yet: another magent may have written the key since the
    /// fetch. The copy is read once, so that it counts as used there.
    fn answer_reads(
        &mut self,
        flow: &mut Flow,
        fetched: &Fetched,
        reply: &Reply<'_>,
        clients: &mut Clients<S>,
    ) {
        let mut are_answered = false;
        while let Some(w) = flow.waiting.front() {
            let ask = w.ask();
            let To::Client(ticket) = w.pending.to else {
                break;
            };
            let may_read = w.missed && forms::is_plain_read(ask.verb, ask.line_bytes());
            if !may_read || !answer_fetched(ticket, &ask, fetched, reply, clients) {
                break;
            }
            flow.waiting.pop_front();
            are_answered = true;
        }
        if are_answered {
            let (mut line, none) = (Vec::new(), Traits::default());
            let verb = forms::write_use(&flow.key, &mut line);
            let used = self.own(To::Nobody, verb, none, flow.hash);
            self.send(flow.primary, used, &Ask::line(verb, none, &line));
        }
    }

    /// Serves what waited without a copy: a read gets the fetched value, a write the primary's
    /// first answer. A request that would create the key is told that it exists if that can be
    /// said, else it is sent as it is. Where it is not decided who may be asked for the key, a write waits for
    /// that and is asked again: the server may lack what the other one holds.
    fn serve_uncopied(
        &mut self,
        flow: Flow,
        fetched: &Fetched,
        is_decided: bool,
        reply: &Reply<'_>,
        clients: &mut Clients<S>,
    ) {
        let primary = flow.primary;
        let span = self.pools[flow.pool as usize].span() / 2;
        let is_newer = self.is_outdated(&flow);
        let (source, key, hash) = (flow.source, flow.key.clone(), flow.hash);
        // The right to refresh the value is for one client.
        let mut shown = *fetched;
        self.each_waiting(flow, |pools, w| {
            let ask = w.ask();
            let To::Client(ticket) = w.pending.to else {
                return pools.send_waiting(primary, span, w);
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
            } else if !is_decided {
                pools.lose(
                    primary,
                    w.pending.again(w.pending.attempt),
                    &ask,
                    Cause::KeptAway,
                );
            } else if w.missed || is_add {
                pools.answer_absent(ticket, &ask, clients);
            } else {
                pools.send_waiting(primary, span, w);
            }
        });
        if shown.won() {
            self.give_back(source, &key, hash, fetched);
        }
    }
}

/// Answers a read with a fetched value. False if the request is no read.
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
