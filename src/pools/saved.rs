//! Servers and links under another program: what is asked comes to its end, and then all that is known of
//! servers is written down, with the links that work.
//!
//! ```text
//!  pause ─▶ (answers) ─▶ is_quiet ─▶ save ─▶ load
//!              └─ hurry: as if late ─▶ give_up: links that owe something are given up
//! ```
//!
//! No request is on a link by then, so a link is its socket and what the handshake said. A link that does
//! not come to rest is given up as at a timeout: its server is down, what it may have missed is journaled, and its
//! socket is read to its end, by whichever program. So nothing that it executes late is ever read.

use super::board::Board;
use super::link::LinkState;
use super::pairs::Pair;
use super::pending::{Pending, To};
use super::refill::Refill;
use super::{GivenUp, Link, Pools, ServerId};
use crate::config::{Address, Endpoint};
use crate::health::{Cause, Health};
use crate::marks::{Debt, Id};
use crate::net::{Conn, Socket};
use crate::placement::Farm;
use crate::saved::{Damaged, Loaded, Loader, Saved, Saver, load_all, save_all};
use crate::time::{MILLISECOND, Time};
use std::io;
use std::net::SocketAddr;

/// A link that works, as it is written: the number of its socket, the uptime and the address that it has.
type SavedLink = (u64, (Option<u64>, Option<SocketAddr>));

/// A refill, as it is written: its target, whether servers are to be listed, and single keys. Or a repair, and
/// whether it deletes what its target lacks.
struct SavedRefill {
    target: Endpoint,
    lists: bool,
    keys: Vec<Box<[u8]>>,
    repairs: Option<bool>,
}

/// What is not over between two servers, as it is written: another program writes the line anew.
struct SavedPair {
    /// The server that is away, and the one that has the list.
    servers: (Endpoint, Endpoint),
    is_about_backup: bool,
    debt: Debt,
    is_late: bool,
    is_doubtful: bool,
}

impl Saved for Debt {
    fn save(&self, to: &mut Saver<'_>) {
        let kind: u8 = match self {
            Debt::None => 0,
            Debt::Keys => 1,
            Debt::Flush { .. } => 2,
        };
        kind.save(to);
    }

    fn load(from: &mut Loader<'_>) -> Loaded<Debt> {
        Ok(match u8::load(from)? {
            0 => Debt::None,
            1 => Debt::Keys,
            2 => Debt::Flush { is_due: false },
            n => return Err(Damaged(format!("debt {n}"))),
        })
    }
}

impl Saved for SavedPair {
    fn save(&self, to: &mut Saver<'_>) {
        self.servers.save(to);
        self.is_about_backup.save(to);
        self.debt.save(to);
        self.is_late.save(to);
        self.is_doubtful.save(to);
    }

    fn load(from: &mut Loader<'_>) -> Loaded<SavedPair> {
        Ok(SavedPair {
            servers: Saved::load(from)?,
            is_about_backup: Saved::load(from)?,
            debt: Saved::load(from)?,
            is_late: Saved::load(from)?,
            is_doubtful: Saved::load(from)?,
        })
    }
}

impl Saved for Endpoint {
    fn save(&self, to: &mut Saver<'_>) {
        match self {
            Endpoint::Fixed(Address::Tcp(address)) => {
                0u8.save(to);
                address.save(to);
            }
            Endpoint::Fixed(Address::Unix(path)) => {
                1u8.save(to);
                path.save(to);
            }
            Endpoint::Name(host, port) => {
                2u8.save(to);
                host.save(to);
                port.save(to);
            }
        }
    }

    fn load(from: &mut Loader<'_>) -> Loaded<Endpoint> {
        Ok(match u8::load(from)? {
            0 => Endpoint::Fixed(Address::Tcp(Saved::load(from)?)),
            1 => Endpoint::Fixed(Address::Unix(Saved::load(from)?)),
            2 => Endpoint::Name(Saved::load(from)?, Saved::load(from)?),
            n => return Err(Damaged(format!("endpoint {n}"))),
        })
    }
}

impl Saved for SavedRefill {
    fn save(&self, to: &mut Saver<'_>) {
        self.target.save(to);
        self.lists.save(to);
        save_all(to, self.keys.iter());
        self.repairs.save(to);
    }

    fn load(from: &mut Loader<'_>) -> Loaded<SavedRefill> {
        Ok(SavedRefill {
            target: Saved::load(from)?,
            lists: Saved::load(from)?,
            keys: load_all(from, Saved::load)?,
            repairs: Saved::load(from)?,
        })
    }
}

/// A request that was sent within so long, in nanoseconds, is not late yet when another program takes over.
const GRACE: u64 = 100 * MILLISECOND;

impl<S: Socket> Pools<S> {
    /// True if nothing of an earlier configuration is left.
    pub fn is_settled_in(&self) -> bool {
        self.servers.values().all(|s| s.removed.is_none())
    }

    /// A pool whose keys move after a reload. Where they were is not handed over.
    pub fn moving_pool(&self) -> Option<&str> {
        let pool = (0..self.pools.len()).find(|pool| self.is_moving(*pool))?;
        Some(&self.pools[pool].config.name)
    }

    /// Nothing begins any more that no client waits for: probes, journals, refills. Or all of it again.
    pub fn pause(&mut self, paused: bool) {
        self.paused = paused;
        if !paused {
            return;
        }
        self.copy_all_lacking();
        self.refills.copies.void_all();
        self.drop_listing();
        if let Some(job) = self.refills.current().filter(|r| r.lists).map(|r| r.job()) {
            self.list_anew(job.target, job.verifies);
        }
    }

    /// True if no request is at any server, or on its way to one.
    pub fn is_quiet(&self) -> bool {
        let rests = |l: &Link<S>| l.pending.is_empty() && l.unsent().1 == 0;
        self.losses.is_empty()
            && !self.is_anything_parked()
            && self.flows.len() == 0
            && self.flushes.is_empty()
            && self.monitors.is_empty()
            && self.refills.copies.len() == 0
            && self.links.values().all(rests)
    }

    /// What clients wait for counts as late. What was sent a moment ago, for instance to a backup since a primary
    /// hangs, has [`GRACE`].
    pub fn hurry(&mut self) {
        self.hurry_parked();
        let is_awaited = |p: &&mut Pending| {
            matches!(
                p.to,
                To::Client(_) | To::Step(_) | To::FlushAll(_) | To::Monitor(_) | To::Refill(_)
            )
        };
        for link in self.links.values_mut() {
            for pending in link.pending.iter_mut().filter(is_awaited) {
                let sent = Some(pending.sent).filter(|at| *at != Time::NEVER);
                let until = sent.map_or(self.now, |at| at.plus(GRACE).max(self.now));
                pending.deadline = pending.deadline.min(until);
                link.alarm = self.now;
            }
        }
    }

    /// Servers that still owe something are away for a moment: their links are given up.
    pub fn give_up(&mut self) {
        let owes = |l: &Link<S>| !l.pending.is_empty() || l.unsent().1 > 0;
        let links = self.links.values().filter(|l| owes(l));
        let mut servers: Vec<ServerId> = links.map(|l| l.server).collect();
        servers.sort_unstable();
        servers.dedup();
        for id in servers {
            self.server_down(id, Cause::TimedOut, true);
        }
    }

    /// Writes it, with the number that `socket` gives for each socket.
    pub fn save(
        &self,
        names: &[(usize, &str)],
        to: &mut Saver<'_>,
        socket: &mut dyn FnMut(&S) -> u64,
    ) {
        self.start_unix.save(to);
        self.me.id.0.save(to);
        self.counters.save(to);
        self.calls.save(to);
        names.len().save(to);
        for (at, name) in names {
            name.to_string().save(to);
            self.pools[*at].fragments.save(to);
            self.pools[*at].ejections.save(to);
        }
        let servers = || self.servers.values().filter(|s| s.removed.is_none());
        servers().count().save(to);
        for server in servers() {
            server.spec.endpoint.save(to);
            self.save_server(server, to, socket);
        }
        let given_up = self.given_up.values().filter_map(|given_up| {
            let server = self.servers.get(given_up.server)?;
            Some((server.spec.endpoint.clone(), socket(given_up.conn.socket())))
        });
        save_all(to, given_up.collect::<Vec<_>>().iter());
        save_all(to, self.saved_refills().iter());
        save_all(to, self.saved_pairs().iter());
    }

    fn save_server(
        &self,
        server: &super::Server,
        to: &mut Saver<'_>,
        socket: &mut dyn FnMut(&S) -> u64,
    ) {
        server.name.is_some().save(to);
        if let Some(name) = &server.name {
            name.save(to);
        }
        server.health.save(self.now, to);
        server.outages.save(to);
        server.journal.save(to);
        server.missed.save(to);
        server.quiet.save(to);
        server.no_metadump.save(to);
        server.is_told.save(to);
        server.refilled.save(to);
        server.meta.save(to);
        server.holds_marks.save(to);
        server.stats.save(to);
        server.latency.save(to);
        server.ejected_at.save(to);
        let mut link = |id: &usize| -> Option<SavedLink> {
            let link = self.links.get(*id)?;
            match &link.state {
                LinkState::Up(conn) => Some((socket(conn.socket()), (link.uptime, link.address))),
                _ => None,
            }
        };
        let links: Vec<Option<SavedLink>> = server.links.iter().map(&mut link).collect();
        save_all(to, links.iter());
    }

    fn saved_refills(&self) -> Vec<SavedRefill> {
        let one = |refill: &Refill| {
            let on_their_way = self.refills.copies.table.values();
            let on_their_way = on_their_way.filter(|c| c.job.target == refill.target);
            let lists = refill.lists || refill.overflowed;
            let keys = refill.keys().chain(on_their_way.map(|c| &c.key));
            Some(SavedRefill {
                target: self.servers.get(refill.target)?.spec.endpoint.clone(),
                lists,
                keys: keys.filter(|_| !lists).cloned().collect(),
                repairs: refill.repair().map(|r| r.deletes),
            })
        };
        // A mere comparison ends with this program: whoever asked for it asks again.
        let is_kept = |r: &&Refill| r.verify.is_none() || r.repair().is_some();
        let refills = self.refills.jobs.iter().filter(is_kept);
        refills.filter_map(one).collect()
    }

    fn saved_pairs(&self) -> Vec<SavedPair> {
        let endpoint = |id| Some(self.servers.get(id)?.spec.endpoint.clone());
        let one = |pair: &Pair| {
            Some(SavedPair {
                servers: (endpoint(pair.primary)?, endpoint(pair.partner)?),
                is_about_backup: pair.backup.is_some(),
                debt: pair.debt(),
                is_late: pair.rules.has_late_write(),
                is_doubtful: pair.is_doubtful,
            })
        };
        let all = self.pairs.values().filter(|p| p.owes());
        all.filter_map(one).collect()
    }

    /// Goes on with what the program before owed. A pair that there is no more owes what is in the journal.
    fn load_pairs(&mut self, from: &mut Loader<'_>) -> Loaded<()> {
        for _ in 0..usize::load(from)? {
            let saved = SavedPair::load(from)?;
            let (primary, partner) = (&saved.servers.0, &saved.servers.1);
            let ids = (self.by_endpoint.get(primary), self.by_endpoint.get(partner));
            let (Some(primary), Some(partner)) = ids else {
                return Err(Damaged("a pair of no servers".into()));
            };
            let is_it = |p: &Pair| {
                (p.primary, p.partner) == (*primary, *partner)
                    && p.backup.is_some() == saved.is_about_backup
            };
            let now = self.now;
            if let Some(pair) = self.pairs.values_mut().find(|p| is_it(p)) {
                pair.restore(saved.debt, saved.is_late, now);
                pair.is_doubtful = saved.is_doubtful;
            }
        }
        Ok(())
    }

    /// Reads it. `socket` makes a socket of its number and has it watched under a token.
    ///
    /// # Errors
    /// It is damaged, or names what is not configured.
    pub fn load(
        &mut self,
        from: &mut Loader<'_>,
        socket: &mut dyn FnMut(u64, usize) -> io::Result<S>,
    ) -> Loaded<()> {
        self.start_unix = Saved::load(from)?;
        self.me.id = Id(Saved::load(from)?);
        // They were made for an id that nobody has.
        let me = self.me.id;
        (self.servers.values_mut()).for_each(|server| server.board = Board::new(me));
        self.counters = Saved::load(from)?;
        self.calls = Saved::load(from)?;
        for _ in 0..usize::load(from)? {
            let name = String::load(from)?;
            let at = self.pool_named(&name);
            let at = at.ok_or_else(|| Damaged(format!("no pool {name}")))?;
            self.pools[at].fragments = Saved::load(from)?;
            self.pools[at].ejections = Saved::load(from)?;
        }
        for _ in 0..usize::load(from)? {
            let id = self.load_id(from)?;
            self.load_server(id, from)?;
            self.load_links(id, from, socket)?;
            self.list_server(id);
        }
        for _ in 0..usize::load(from)? {
            let id = self.load_id(from)?;
            let token = self.next_token(0);
            let conn = Conn::connecting(open(u64::load(from)?, token, socket)?);
            self.given_up.insert(GivenUp {
                conn,
                server: id,
                token,
            });
            if let Some(server) = self.servers.get_mut(id) {
                server.given_up += 1;
            }
        }
        self.restore_rings();
        for _ in 0..usize::load(from)? {
            let refill = SavedRefill::load(from)?;
            let id = self.by_endpoint.get(&refill.target).copied();
            let id = id.ok_or_else(|| Damaged("a refill of no server".into()))?;
            match refill.repairs {
                Some(deletes) => self.repair(id, deletes),
                None if refill.lists => self.wants_refill(id),
                None => {}
            }
            refill.keys.iter().for_each(|key| self.wants_key(id, key));
        }
        self.load_pairs(from)?;
        // Other options may want no refill.
        for id in self.servers.keys().collect::<Vec<_>>() {
            let lists = self.refills.of(id).is_some_and(|r| r.lists);
            if let Some(server) = self.servers.get_mut(id).filter(|_| !lists) {
                server.health.refill(false);
            }
        }
        Ok(())
    }

    fn load_id(&self, from: &mut Loader<'_>) -> Loaded<ServerId> {
        let endpoint = Endpoint::load(from)?;
        let id = self.by_endpoint.get(&endpoint).copied();
        id.ok_or_else(|| Damaged(format!("no server {endpoint:?}")))
    }

    fn load_server(&mut self, id: ServerId, from: &mut Loader<'_>) -> Loaded<()> {
        let Some(server) = self.servers.get_mut(id) else {
            return Ok(());
        };
        let name = server.name.as_mut();
        match (bool::load(from)?, name) {
            (true, Some(name)) => name.load(from)?,
            (false, None) => {}
            _ => return Err(Damaged("a host's name".into())),
        }
        server.health = Health::load(server.health.policy(), from)?;
        server.outages = Saved::load(from)?;
        server.journal.load(from)?;
        server.missed = Saved::load(from)?;
        server.quiet = Saved::load(from)?;
        server.no_metadump = Saved::load(from)?;
        server.is_told = Saved::load(from)?;
        server.refilled = Saved::load(from)?;
        server.meta = Saved::load(from)?;
        server.holds_marks = Saved::load(from)?;
        server.stats = Saved::load(from)?;
        server.latency = Saved::load(from)?;
        server.ejected_at = Saved::load(from)?;
        Ok(())
    }

    /// The links of a server. Where there are fewer now, those that are left over are closed.
    fn load_links(
        &mut self,
        id: ServerId,
        from: &mut Loader<'_>,
        socket: &mut dyn FnMut(u64, usize) -> io::Result<S>,
    ) -> Loaded<()> {
        let ids = self.servers.get(id).map_or(Vec::new(), |s| s.links.clone());
        // One that was to be opened at the start is not.
        for id in &ids {
            self.close_link(*id);
        }
        let saved: Vec<Option<SavedLink>> = load_all(from, Option::load)?;
        for (at, saved) in saved.into_iter().enumerate() {
            let Some((number, (uptime, address))) = saved else {
                continue;
            };
            let link = ids.get(at).copied();
            let token = self.next_token(link.unwrap_or(0));
            let stream = open(number, token, socket)?;
            if let Some(link) = link.and_then(|id| self.links.get_mut(id)) {
                link.state = LinkState::Up(Conn::connecting(stream));
                (link.uptime, link.address, link.token) = (uptime, address, token);
            }
        }
        // What others have left there is looked at anew.
        if let Some(first) = ids.first() {
            self.look_for_others(*first);
        }
        Ok(())
    }

    /// The rings that servers have left, as they were: no key moves by the change of programs.
    fn restore_rings(&mut self) {
        for at in 0..self.pools.len() {
            let pool = &self.pools[at];
            let ids = pool.primary_ids.iter().filter(|_| pool.config.auto_eject);
            let live: Vec<bool> = ids.map(|id| self.is_up(*id)).collect();
            let is_whole = live.iter().all(|up| *up) || !live.contains(&true);
            let spec = (!is_whole).then(|| pool.primaries.spec().clone());
            self.pools[at].ring = spec.map(|spec| Farm::new(spec, Some(&live)));
            self.pools[at].ring_is_stale = false;
        }
    }
}

fn open<S>(
    number: u64,
    token: usize,
    socket: &mut dyn FnMut(u64, usize) -> io::Result<S>,
) -> Loaded<S> {
    socket(number, token).map_err(|e| Damaged(format!("a server's socket: {e}")))
}
