//! Requests with several steps at a warming primary: what it lacks is fetched from the backup,
//! copied in with `add`, and the request is served after it.
//!
//! ```text
//!  get k ─▶ primary: absent ─▶ Fetch: mg k u f t v c ─▶ backup: found ─▶ add k ─▶ primary
//!                                                                       get k ─▶ primary ─▶ client
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
use super::pending::{Answered, Ask, Attempt, Pending, To};
use super::{Pools, ServerId};
use crate::buffer::{Queue, Source};
use crate::clients::{Clients, Ticket};
use crate::net::Socket;
use crate::protocol::forms::{self, Mirror};
use crate::protocol::{Status, Traits};
use std::collections::VecDeque;

/// What a flow, and what a request in it, takes beside its bytes: entries and the allocator's
/// share, in bytes.
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

    /// True if a fetch can be asked of this server.
    pub(super) fn is_fetchable(&self, backup: ServerId) -> bool {
        let backup = self.servers.get(backup);
        backup.is_some_and(|s| s.health.is_up() && s.meta)
    }

    /// Takes over a client's request that cannot simply be sent to its primary. False if it can.
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
            // The key is being fetched: this request is served after it, and so are those behind.
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
        if !matches!(p.attempt, Attempt::Primary | Attempt::Retried) || !self.is_warming(p) {
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
        if !matches!(reply.status, Status::Absent | Status::NotStored) || !self.is_up(p.home.backup)
        {
            return false;
        }
        if p.traits.has(Traits::DELETES) {
            return reply.status == Status::Absent && self.delete_at_backup(answered);
        }
        if !p.traits.has(Traits::NEEDS_KEY) || !self.is_fetchable(p.home.backup) {
            return false;
        }
        let mut bytes = Queue::new();
        let Some(link) = self.links.get(id) else {
            return false;
        };
        let since = link.first_seq - 1;
        bytes.push(Source::Queue(&link.queue, answered.at), 0..p.len as usize);
        let key = self.key_at(answered);
        let ask = Ask::queued(p, &bytes, bytes.start());
        self.fetch(p, &key, &ask, id, since);
        self.key = key;
        true
    }

    /// The backup's answer to the mirrored delete is the client's answer.
    fn delete_at_backup(&mut self, answered: &Answered<'_>) -> bool {
        let p = answered.request;
        let mut line = std::mem::take(&mut self.line);
        line.clear();
        let mirror = self.links.get(answered.link).map(|link| {
            let asked = link.line_at(answered.at, p.line);
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

    /// Starts the fetch of a key that the primary lacks, or joins one that is under way and not out
    /// of date. `link` and `since` tell the request that missed.
    fn fetch(&mut self, p: &Pending, key: &[u8], ask: &Ask<'_>, link: usize, since: u64) {
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

    /// The primary lacks the key: asks the backup.
    pub(super) fn ask_backup(&mut self, key: usize, link: usize, since: u64) {
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
        self.sync_first(backup, &name, hash);
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
    pub(super) fn is_outdated(&self, flow: &Flow) -> bool {
        match flow.step {
            Step::Look => false,
            Step::Fetch {
                link,
                since,
                is_outdated,
            } => is_outdated || self.recent.is_newer(link, flow.hash, since),
        }
    }
}
