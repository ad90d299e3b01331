//! Requests with several steps at a warming primary: what it lacks is fetched from the backup, or
//! from where a reload moved it from, and copied in with `add`. A read is answered from the fetch, any other
//! request is served after the copy.
//!
//! ```text
//!  incr k ▶ primary: absent ─▶ Fetch: mg k u f t v c ─▶ backup: found ─▶ add k ─▶ primary
//!                                                                       incr k ▶ primary ─▶ client
//!  add k ─▶ Look: me k ─▶ primary: there ────────────────────────────── add k ─▶ primary ─▶ client
//!                                  absent ─▶ Fetch, then the add itself
//! ```
//!
//! One [`Flow`] is one key at one primary. A request that creates its key opens one that *holds*
//! the key: whatever is asked of the key meanwhile waits in it, in order, and follows on the same
//! link. So one look serves all that came until its answer, and a client that pipelines reads what
//! it wrote.
//!
//! The copy is dropped when anything newer was sent to the primary after the request that missed.
//! An answer that did not come says nothing: only `EN` is a miss.

use super::flows::{Flow, Step, Waiting};
use super::pending::{Answered, Ask, Attempt, Home, Pending, To};
use super::server::fnv;
use super::{NOBODY, Pools, ServerId};
use crate::buffer::{Queue, Source};
use crate::clients::{Clients, Ticket};
use crate::health::Cause;
use crate::net::Socket;
use crate::protocol::forms::{self, Mirror};
use crate::protocol::{Status, Traits, Verb};
use crate::time::Time;

/// What a flow, and what a request in it, takes beside its bytes: entries and the allocator's
/// share, in bytes.
const ENTRY: usize = 256;

impl<S: Socket> Pools<S> {
    /// True if what this primary lacks may be had from another server.
    #[inline]
    fn may_lack(&self, p: &Pending) -> bool {
        let Some(primary) = self.servers.get(p.home.primary) else {
            return false;
        };
        let has_backup = || {
            let pool = &self.pools[p.home.pool as usize];
            p.home.backup != NOBODY || (p.home.several && pool.backups.is_some())
        };
        let is_warming = primary.health.is_warming(self.now) && has_backup();
        primary.flushes == 0 && (is_warming || self.is_moving(p.home.pool as usize))
    }

    /// Who may have what a primary said that it lacks; see [`Pools::sources`].
    fn givers_of(&self, home: &Home, key: &[u8]) -> Vec<ServerId> {
        let primary = self.servers.get(home.primary);
        let is_warming = primary.is_some_and(|s| s.health.is_warming(self.now));
        self.sources(home, key, is_warming)
    }

    /// True if a fetch can be asked of this server.
    pub(super) fn is_fetchable(&self, backup: ServerId) -> bool {
        let backup = self.servers.get(backup);
        backup.is_some_and(|s| s.health.is_up() && s.meta)
    }

    /// Takes over a client's request that cannot simply be sent to its primary. False if it can.
    #[inline]
    pub(super) fn takes_steps(&mut self, p: &Pending, key: &[u8], ask: &Ask<'_>) -> bool {
        !self.is_plain(p) && (self.awaits(p, key, ask) || self.joins_or_looks(p, key, ask))
    }

    /// True if a client's request is simply sent to its primary: no key is looked for, and none moves.
    #[inline]
    pub(super) fn is_plain(&self, p: &Pending) -> bool {
        let has_flows = self.flows.len() > 0 || p.traits.has(Traits::CREATES);
        !has_flows && !self.is_moving(p.home.pool as usize)
    }

    /// Takes over a client's request that must not overtake others of its key: one that is looked for, or
    /// what was asked of the key before a reload.
    #[inline]
    pub(super) fn awaits(&mut self, p: &Pending, key: &[u8], ask: &Ask<'_>) -> bool {
        if self.is_held(p.home.primary, p.hash) {
            return self.joins_or_looks(p, key, ask);
        }
        let old = self.awaited(p, key);
        if let Some(old) = old {
            self.await_old(old, p, key, ask);
        }
        old.is_some()
    }

    /// [`Pools::takes_steps`] for a request that nothing of before a reload can come behind.
    pub(super) fn joins_or_looks(&mut self, p: &Pending, key: &[u8], ask: &Ask<'_>) -> bool {
        let flow = self.flows.find(p.home.primary, p.hash);
        if let Some(flow) = flow.filter(|_| self.is_held(p.home.primary, p.hash)) {
            self.join(flow, p, ask, false);
            return true;
        }
        if !p.traits.has(Traits::CREATES) {
            return false;
        }
        let sources = self.sources_to_look_for(p, key);
        if sources.is_empty() {
            return false;
        }
        if !self.join_behind(flow, p, key, ask) {
            self.look(p, key, ask, sources);
        }
        true
    }

    /// A request that must not overtake what waits in a flow of its key: it is served after it, and
    /// so is what is asked later. False if the flow is of another key.
    fn join_behind(&mut self, flow: Option<usize>, p: &Pending, key: &[u8], ask: &Ask<'_>) -> bool {
        let is_of_key = |f: &usize| self.flows.table.get(*f).is_some_and(|f| f.key[..] == *key);
        let Some(at) = flow.filter(is_of_key) else {
            return false;
        };
        self.join(at, p, ask, false);
        if let Some(flow) = self.flows.table.get_mut(at) {
            flow.holds = true;
        }
        true
    }

    /// True if what is asked of a key waits for another request that creates it.
    #[inline]
    pub(super) fn is_held(&self, primary: ServerId, hash: u64) -> bool {
        let flow = self.flows.find(primary, hash);
        flow.is_some_and(|f| self.flows.table.get(f).is_some_and(|f| f.holds))
    }

    /// Who may have a key that is about to be created, if its primary is warming for it, or may be:
    /// before the handshake nobody knows.
    fn sources_to_look_for(&self, p: &Pending, key: &[u8]) -> Vec<ServerId> {
        let Some(server) = self.servers.get(p.home.primary) else {
            return Vec::new();
        };
        let link = self.links.get(server.link_for(p.hash));
        let is_unknown = link.is_some_and(|l| !l.is_up());
        if !server.health.is_up() || !server.meta || !(is_unknown || self.may_lack(p)) {
            return Vec::new();
        }
        let is_warming = is_unknown || server.health.is_warming(self.now);
        let mut sources = self.sources(&p.home, key, is_warming);
        sources.retain(|id| self.is_fetchable(*id));
        sources
    }

    /// A request for a key that a reload moved: it is asked when the server that held the key has
    /// answered a look, which it is asked behind all that it was asked before.
    fn await_old(&mut self, old: ServerId, p: &Pending, key: &[u8], ask: &Ask<'_>) {
        let flow = Flow::new(p, key, Step::Await, Vec::new());
        let flow = self.flows.add(flow);
        self.join(flow, p, ask, false);
        let mut line = Vec::new();
        let (look, verb) = self.look_behind(flow, p.hash, key, &mut line);
        let ask = Ask::line(verb, Traits::default(), &line);
        let under_way = self.flows.find(old, p.hash);
        if self.join_behind(under_way, &look, key, &ask) {
            return;
        }
        // What was lost there, or not asked yet, is decided on first.
        match self.servers.get(old).is_some_and(|s| s.losing > 0) {
            true => self.lose(old, look, &ask, Cause::ConnectionLost),
            false => self.send_freely(old, look, &ask),
        }
    }

    /// A look at the key of a flow that waits for the server of the ring before.
    fn look_behind(
        &self,
        flow: usize,
        hash: u64,
        key: &[u8],
        line: &mut Vec<u8>,
    ) -> (Pending, Verb) {
        let verb = forms::write_look(key, line);
        let pool = self
            .flows
            .table
            .get(flow)
            .map(|f| &self.pools[f.pool as usize]);
        let before = pool.and_then(|p| p.before.as_ref());
        // It must not be late before what it stands behind.
        let own = self.own(To::Step(flow), verb, Traits::default(), hash);
        let spans = pool.map_or((Time(0), 0), |p| (self.now.plus(p.span()), p.timeout_ms()));
        let (ordered_at, timeout) = before.map_or((Time(0), 0), |b| (b.ordered_at, b.timeout));
        let look = Pending {
            deadline: spans.0.max(ordered_at),
            timeout: timeout.max(spans.1),
            ..own
        };
        (look, verb)
    }

    /// Waits for what the server of the ring before still owes of the key of a flow; false if that is nothing.
    pub(super) fn await_answers(&mut self, id: usize) -> bool {
        let Some(flow) = self.flows.table.get(id) else {
            return false;
        };
        let (key, hash) = (flow.key.clone(), flow.hash);
        let Some(before) = &self.pools[flow.pool as usize].before else {
            return false;
        };
        let [old, _] = before.place(&key);
        let server = self.servers.get(old).filter(|s| s.health.is_up());
        let link = server.and_then(|s| self.links.get(s.link_for(hash)));
        if !link.is_some_and(|l| l.is_up() && l.owes_from_before()) {
            return false;
        }
        let mut line = Vec::new();
        let (look, verb) = self.look_behind(id, hash, &key, &mut line);
        self.send_freely(old, look, &Ask::line(verb, Traits::default(), &line));
        true
    }

    fn look(&mut self, p: &Pending, name: &[u8], ask: &Ask<'_>, sources: Vec<ServerId>) {
        let flow = self.flows.add(Flow::new(p, name, Step::Look, sources));
        self.join(flow, p, ask, false);
        let mut line = Vec::new();
        let verb = forms::write_look(name, &mut line);
        let look = Pending {
            deadline: p.deadline,
            timeout: p.timeout,
            ..self.own(To::Step(flow), verb, Traits::default(), p.hash)
        };
        self.sync_first(p.home.primary, name, p.hash);
        self.send(
            p.home.primary,
            look,
            &Ask::line(verb, Traits::default(), &line),
        );
    }

    /// Adds a request to a flow.
    fn join(&mut self, flow: usize, p: &Pending, ask: &Ask<'_>, missed: bool) {
        let Some(flow) = self.flows.table.get_mut(flow) else {
            return;
        };
        let mut bytes = Queue::new();
        let (line, len) = ask.push_to(&mut bytes);
        let charged = flow.charged + ENTRY + bytes.own_bytes();
        self.budget.recharge(&mut flow.charged, charged);
        let mut pending = p.again(p.attempt);
        (pending.line, pending.len) = (line, len);
        flow.waiting.push_back(Waiting {
            pending,
            bytes,
            missed,
        });
    }

    /// Takes a reply of a warming primary over if the key may only be missing because it
    /// restarted. False if the reply stands.
    pub(super) fn warm_up(
        &mut self,
        answered: &Answered<'_>,
        ticket: Ticket,
        clients: &mut Clients<S>,
    ) -> bool {
        let (id, p, reply) = (answered.link, answered.request, answered.reply);
        let may_go_on = match p.attempt {
            Attempt::Primary | Attempt::Retried => true,
            Attempt::Deleted => self.is_moving(p.home.pool as usize),
            Attempt::Warmed | Attempt::Backup => false,
        };
        if !may_go_on || !self.may_lack(p) {
            return false;
        }
        if p.home.several {
            let is_taken = self.warm_each(answered, ticket, clients);
            if is_taken && p.writes() {
                // Those that were found were touched.
                self.mirror(answered);
            }
            return is_taken;
        }
        if !matches!(reply.status, Status::Absent | Status::NotStored) {
            return false;
        }
        if p.traits.has(Traits::DELETES) {
            return reply.status == Status::Absent && self.delete_further(answered);
        }
        if !p.traits.has(Traits::NEEDS_KEY) {
            return false;
        }
        let key = self.key_at(answered);
        let mut bytes = Queue::new();
        if let Some(link) = self.links.get(id) {
            bytes.push(Source::Queue(&link.queue, answered.at), 0..p.len as usize);
        }
        let ask = Ask::queued(p, &bytes, bytes.start());
        let (on, since) = answered.asked_on;
        let is_fetched = self.fetch(p, &key, &ask, on, since);
        self.key = key;
        is_fetched
    }

    /// A delete found nothing where it was asked. The answer of the next server that may have the key,
    /// to the delete that it is sent anyway, is the client's.
    fn delete_further(&mut self, answered: &Answered<'_>) -> bool {
        let p = answered.request;
        let key = self.key_at(answered);
        let mut sources = self.givers_of(&p.home, &key).into_iter();
        let is_first = p.attempt != Attempt::Deleted;
        if !is_first {
            let here = self.server_of(answered.link);
            sources.find(|id| *id == here);
        }
        let next = sources.next();
        // The backup is to follow, whose answer ever the client gets.
        if is_first && next.is_some_and(|id| id != p.home.backup) {
            self.invalidate(p.home.backup, &key, p.hash);
        }
        self.key = key;
        let Some(next) = next else {
            return false;
        };
        let mut line = std::mem::take(&mut self.line);
        line.clear();
        let mirror = self.links.get(answered.link).map(|link| {
            let asked = link.line_at(answered.at, p.line);
            forms::mirror(p.verb, p.traits, asked, Status::Absent, &mut line)
        });
        let is_sent = if let Some(Mirror::Send { verb, .. }) = mirror {
            let span = self.pools[p.home.pool as usize].span();
            let mut pending = Pending {
                verb,
                ..p.again(Attempt::Deleted)
            };
            pending.extend(p.left(span));
            if let Some(backup) = self.servers.get_mut(next).filter(|_| next == p.home.backup) {
                backup.stats.mirrors += 1;
            }
            self.send(next, pending, &Ask::line(verb, p.traits, &line));
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
        answered: &Answered<'_>,
        ticket: Ticket,
        clients: &mut Clients<S>,
    ) -> bool {
        let (id, p, reply) = (answered.link, answered.request, answered.reply);
        let Some(link) = self.links.get(id) else {
            return false;
        };
        if !matches!(reply.status, Status::Done | Status::Absent) {
            return false;
        }
        let line = link.line_at(answered.at, p.line).to_vec();
        let since = link.first_seq - 1;
        let (mut single, mut misses) = (Vec::new(), Vec::new());
        clients.answer_found(ticket, &line, reply, |ticket, key| {
            single.clear();
            forms::write_single(p.verb, &line, key, &mut single);
            let ask = Ask::line(p.verb, p.traits, &single);
            let mut alone = p.again(p.attempt);
            alone.to = To::Client(ticket);
            alone.home = self.home_of(&p.home, key);
            alone.hash = fnv(key);
            if !self.fetch(&alone, key, &ask, id, since) {
                misses.push((ticket, single.clone()));
            }
        });
        for (ticket, line) in misses {
            self.answer_absent(ticket, &Ask::line(p.verb, p.traits, &line), clients);
        }
        true
    }

    /// Starts the fetch of a key that the primary lacks, or joins one that is under way and not out
    /// of date. `link` and `since` tell the request that missed. False if nobody else can have the key.
    fn fetch(&mut self, p: &Pending, key: &[u8], ask: &Ask<'_>, link: usize, since: u64) -> bool {
        // The backup may hold what a write has replaced whose answer waits: asked again behind that. A
        // write that comes here has waited itself, and what still waits came after it.
        if !p.writes() && self.has_held(p.home.primary, p.home.backup) {
            self.lose(p.home.primary, p.again(p.attempt), ask, Cause::KeptAway);
            return true;
        }
        let under_way = self.flows.find(p.home.primary, p.hash);
        let joins = under_way.filter(|f| {
            let flow = self.flows.table.get(*f);
            // A flow that looks was asked behind this request, and behind what was written
            // meanwhile.
            flow.is_some_and(|f| {
                f.key[..] == *key && matches!(f.step, Step::Fetch { .. }) && !self.is_outdated(f)
            })
        });
        if let Some(flow) = joins {
            self.join(flow, p, ask, true);
            return true;
        }
        let sources = self.givers_of(&p.home, key);
        if !sources.iter().any(|id| self.is_fetchable(*id)) {
            return false;
        }
        let flow = Flow::new(p, key, fetch_since(link, since), sources);
        let is_seen = under_way.is_none_or(|f| self.flows.table.get(f).is_none_or(|f| !f.holds));
        let flow = match is_seen {
            true => self.flows.add(flow),
            false => self.flows.table.insert(flow),
        };
        self.join(flow, p, ask, true);
        self.begin_fetch(flow, link, since)
    }

    /// The primary lacks the key: the first of the others is asked. False if none can be.
    pub(super) fn begin_fetch(&mut self, key: usize, link: usize, since: u64) -> bool {
        let Some(flow) = self.flows.table.get_mut(key) else {
            return false;
        };
        flow.step = fetch_since(link, since);
        let span = self.pools[flow.pool as usize].span();
        flow.deadline = flow.deadline.max(self.now.plus(span / 2));
        self.fetch_further(key)
    }

    /// Asks the next server that may have the key. False if there is none left.
    pub(super) fn fetch_further(&mut self, key: usize) -> bool {
        let Some(flow) = self.flows.table.get_mut(key) else {
            return false;
        };
        let mut further = std::mem::take(&mut flow.further);
        let next = further.find(|id| self.is_fetchable(*id));
        let Some(flow) = self.flows.table.get_mut(key) else {
            return false;
        };
        flow.further = further;
        let Some(next) = next else {
            return false;
        };
        flow.source = next;
        let (hash, name, deadline) = (flow.hash, flow.key.clone(), flow.deadline);
        let timeout = self.pools[flow.pool as usize].timeout_ms();
        self.counters.fetches += 1;
        self.sync_first(next, &name, hash);
        let mut line = Vec::new();
        let verb = forms::write_fetch(&name, &mut line);
        let fetch = Pending {
            deadline,
            timeout,
            ..self.own(To::Step(key), verb, Traits::default(), hash)
        };
        self.send(next, fetch, &Ask::line(verb, Traits::default(), &line));
        true
    }

    /// The key was written after the request that missed: on the primary's link, or elsewhere
    /// while the primary was away.
    pub(super) fn is_outdated(&self, flow: &Flow) -> bool {
        match flow.step {
            Step::Look | Step::Await => false,
            Step::Fetch {
                link,
                since,
                is_outdated,
            } => is_outdated || self.recent.is_newer(link, flow.hash, since),
        }
    }
}

/// A fetch begins for request number `since` of the primary's link.
fn fetch_since(link: usize, since: u64) -> Step {
    Step::Fetch {
        link,
        since,
        is_outdated: false,
    }
}
