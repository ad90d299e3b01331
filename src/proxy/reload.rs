//! The configuration in force: pools, their servers and clients when it is first read, and
//! while they are served when it changes.
//!
//! A pool is matched by its name, a server by its address within the pool, a client by the
//! listener through which it came. What is matched keeps its state and its connections. A
//! server that is no longer named is *retired*: it gets no new keys, answers what it was asked,
//! is closed when it owes nothing, and its place is used again once nothing refers to it. A
//! key that moves to another server may overtake what was asked of it before: per-key order is
//! promised for one server.

use super::{Now, Pool, Proxy, nanos};
use crate::config::{Address, Config, PoolConfig, ServerSpec};
use crate::farm::{Farm, FarmSpec};
use crate::health::{Cause, Health, Journal, Policy, SECOND};
use crate::net::Socket;
use crate::stats::ServerStats;
use crate::upstream::{DRAIN_WAIT, Link, LinkState, MAX_BYTES_IN_FLIGHT, Server, ServerId};

/// Clients of a listener that is gone get so long to finish, in nanoseconds: as when stopping.
pub(super) const LEAVE: u64 = 5 * SECOND;

/// What decides about the servers of a pool.
fn policy(config: &PoolConfig) -> Policy {
    Policy {
        timeout: nanos(config.timeout),
        failure_limit: config.failure_limit,
        retry: nanos(config.retry),
        warm: nanos(config.warm),
        eject: config.auto_eject,
    }
}

/// The addresses of all listeners, in the order of the configuration, and whose they are.
fn entrances(config: &Config) -> impl Iterator<Item = (&Address, &PoolConfig)> {
    let of_pool = |pool| {
        let listen: &PoolConfig = pool;
        listen.listen.iter().map(move |l| (&l.address, listen))
    };
    config.pools.iter().flat_map(of_pool)
}

impl<S: Socket> Proxy<S> {
    /// Takes a checked configuration over. Listeners are the caller's: clients of those that
    /// `config` does not name finish what they are owed and are closed.
    pub fn reload(&mut self, config: &Config, now: Now) {
        self.set_now(now);
        let before = std::mem::replace(&mut self.config, config.clone());
        self.vacate();
        self.configure();
        self.move_clients(&before);
        self.counters.reloads += 1;
        self.last_reload = Some((now.unix, "ok".into()));
    }

    /// A configuration that could not be used: nothing changes, `stats settings` says why.
    pub fn reload_failed(&mut self, why: &str, now: Now) {
        self.set_now(now);
        self.counters.reloads_failed += 1;
        self.last_reload = Some((now.unix, why.into()));
    }

    /// Makes the pools those of the configuration.
    pub(super) fn configure(&mut self) {
        for warning in self.config.warnings() {
            log::warn!("{warning}");
        }
        for config in self.config.pools.clone() {
            match self.pool_named(&config.name) {
                Some(at) if self.pools[at].config == config => {}
                Some(at) => {
                    self.pools[at].configure(config);
                    self.staff(at);
                }
                None => self.add_pool(config),
            }
        }
        for at in 0..self.pools.len() {
            let pool = &mut self.pools[at];
            if !self.config.pools.iter().any(|c| c.name == pool.config.name) {
                pool.retired = true;
                self.retire_others(at, &[]);
            }
        }
    }

    fn pool_named(&self, name: &str) -> Option<usize> {
        let named = |p: &Pool| !p.retired && p.config.name == name;
        self.pools.iter().position(named)
    }

    /// The pool of a listener; listeners count through all pools of the configuration.
    pub(super) fn pool_at(&self, entrance: usize) -> Option<usize> {
        let (_, config) = entrances(&self.config).nth(entrance)?;
        self.pool_named(&config.name)
    }

    fn add_pool(&mut self, config: PoolConfig) {
        let used = |at: usize| {
            let staffed = |s: &Server| s.pool == at && !s.is_vacant();
            let p = &self.pools[at];
            !p.retired || p.clients > 0 || p.flushing > 0 || self.servers.iter().any(staffed)
        };
        let at = (0..self.pools.len()).find(|at| !used(*at));
        let pool = Pool::new(config);
        let at = match at {
            Some(at) => {
                self.pools[at] = pool;
                at
            }
            None => {
                self.pools.push(pool);
                self.pools.len() - 1
            }
        };
        self.staff(at);
    }

    /// Gives a pool the servers that its configuration names.
    fn staff(&mut self, pool: usize) {
        let config = self.pools[pool].config.clone();
        let mut named = Vec::new();
        let primary_ids = self.find_servers(pool, &config.primaries, &mut named);
        let backup_ids = self.find_servers(pool, &config.backups, &mut named);
        for id in &named {
            let server = &mut self.servers[*id as usize];
            server.is_primary = primary_ids.contains(id);
            server.is_backup = backup_ids.contains(id);
            server.retired = None;
            server.health.set_policy(policy(&config));
            server.journal.set_limit(config.journal);
        }
        self.pools[pool].primary_ids = primary_ids;
        self.pools[pool].backup_ids = backup_ids;
        self.retire_others(pool, &named);
        for id in named {
            self.regroup(id);
            self.open_wanted(id);
        }
        self.ring_changed(pool);
    }

    /// The servers of `specs`. A server is its address: one that both farms name is one server,
    /// under the name that it has in the first. Those that are not there are added.
    fn find_servers(
        &mut self,
        pool: usize,
        specs: &[ServerSpec],
        named: &mut Vec<ServerId>,
    ) -> Vec<ServerId> {
        let mut ids = Vec::with_capacity(specs.len());
        for spec in specs {
            let known = self
                .servers
                .iter()
                .position(|s| s.pool == pool && s.spec.address == spec.address && !s.is_vacant());
            let id = known.unwrap_or_else(|| self.add_server(pool, spec)) as ServerId;
            if !named.contains(&id) {
                named.push(id);
                self.servers[id as usize].spec = spec.clone();
            }
            ids.push(id);
        }
        ids
    }

    fn add_server(&mut self, pool: usize, spec: &ServerSpec) -> usize {
        let config = &self.pools[pool].config;
        let vacant = self.servers.iter().position(Server::is_vacant);
        let id = vacant.unwrap_or(self.servers.len());
        let seed = self.start_unix ^ (id as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let connections = config.connections;
        let server = Server {
            spec: spec.clone(),
            pool,
            is_primary: false,
            is_backup: false,
            links: Vec::with_capacity(connections),
            old_links: Vec::new(),
            health: Health::new(policy(config), self.now, seed),
            journal: Journal::new(config.journal),
            meta: true,
            untold: false,
            drains: 0,
            replaying: 0,
            retired: None,
            stats: ServerStats::default(),
        };
        match self.servers.get_mut(id) {
            Some(place) => *place = server,
            None => self.servers.push(server),
        }
        self.add_links(id as ServerId, connections);
        id
    }

    fn add_links(&mut self, id: ServerId, count: usize) {
        // Three servers that hang must not take what pauses all clients.
        let most_bytes = MAX_BYTES_IN_FLIGHT.min(self.config.memory / 4) / count;
        for _ in 0..count {
            let used = |at: &u32| {
                let owner = &self.servers[self.links[*at as usize].server as usize];
                owner.all_links().any(|l| l == *at)
            };
            let vacant = (0..self.links.len() as u32).find(|at| !used(at));
            let at = vacant.unwrap_or(self.links.len() as u32);
            match self.links.get_mut(at as usize) {
                Some(link) => (link.server, link.most_bytes) = (id, most_bytes),
                None => self.links.push(Link::new(id, most_bytes)),
            }
            self.servers[id as usize].links.push(at);
        }
    }

    /// Retires the servers of a pool that are not among `named`.
    fn retire_others(&mut self, pool: usize, named: &[ServerId]) {
        for id in 0..self.servers.len() {
            let s = &self.servers[id];
            let stays = s.pool != pool || named.contains(&(id as ServerId));
            if stays || s.is_vacant() || s.retired.is_some() {
                continue;
            }
            let longest = DRAIN_WAIT.max(2 * self.pools[pool].span());
            self.servers[id].retired = Some(self.now.plus(longest));
            log::info!("{}: no longer configured", self.servers[id].spec.name);
            self.stop_probing(id as ServerId);
            let links: Vec<u32> = self.servers[id].all_links().collect();
            for link in links {
                self.wake_waiting(link);
            }
        }
    }

    /// A probe that is under way counts as failed; the next one may begin at once.
    fn stop_probing(&mut self, id: ServerId) {
        let health = &self.servers[id as usize].health;
        if !health.is_up() {
            let cause = health.last_error().map_or(Cause::Down, |e| e.0);
            self.server_down(id, cause, true);
        }
    }

    /// Another number of links. A key may change its link, and must not overtake itself: the new
    /// links are not opened until the old ones owe nothing ([`Proxy::wind_down`]); what is
    /// asked meanwhile waits in the new ones, in order.
    fn regroup(&mut self, id: ServerId) {
        let server = &self.servers[id as usize];
        let wanted = self.pools[server.pool].config.connections;
        if server.links.len() == wanted || !server.old_links.is_empty() {
            return;
        }
        self.stop_probing(id);
        let server = &mut self.servers[id as usize];
        server.old_links = std::mem::take(&mut server.links);
        self.add_links(id, wanted);
        for old in self.servers[id as usize].old_links.clone() {
            self.wake_waiting(old);
        }
        self.wind_down(id);
    }

    /// Closes what a server does not need any more, once it owes nothing.
    pub(super) fn wind_down(&mut self, id: ServerId) {
        let server = &self.servers[id as usize];
        let quiet = |link: u32| self.links[link as usize].pending.is_empty();
        if !server.old_links.is_empty() && server.old_links.iter().all(|l| quiet(*l)) {
            return self.change_links(id);
        }
        let Some(until) = server.retired else {
            return;
        };
        if !self.owes(server) {
            self.close_links(id);
        } else if until <= self.now {
            self.server_down(id, Cause::Down, false);
        }
    }

    /// The old links are quiet: the new ones may work.
    fn change_links(&mut self, id: ServerId) {
        for old in std::mem::take(&mut self.servers[id as usize].old_links) {
            self.take_pending(old);
        }
        self.open_wanted(id);
        // The number may have changed once more meanwhile.
        self.regroup(id);
    }

    /// Opens the links that somebody waits for, or that are to be open at any time.
    fn open_wanted(&mut self, id: ServerId) {
        let server = &self.servers[id as usize];
        let all = self.pools[server.pool].config.preconnect;
        if !server.health.is_up() || !server.old_links.is_empty() {
            return;
        }
        for link in server.links.clone() {
            let l = &self.links[link as usize];
            if (all || !l.pending.is_empty()) && matches!(l.state, LinkState::Idle) {
                self.open_link(link);
            }
        }
    }

    /// A retired server owes nothing: its sockets are closed, and what it missed does not
    /// matter any more.
    fn close_links(&mut self, id: ServerId) {
        let links: Vec<u32> = self.servers[id as usize].all_links().collect();
        for link in links {
            if !matches!(self.links[link as usize].state, LinkState::Idle) {
                self.take_pending(link);
            }
        }
        let server = &mut self.servers[id as usize];
        if !server.journal.is_empty() {
            server.journal = Journal::new(0);
        }
        let of_server = |k: &usize| self.drains.get(*k).is_some_and(|d| d.server == id);
        let drains: Vec<usize> = self.drains.keys().filter(of_server).collect();
        for drain in drains {
            self.drains.remove(drain);
        }
        self.servers[id as usize].drains = 0;
    }

    /// Frees the places of retired servers that nothing refers to any more.
    fn vacate(&mut self) {
        let mut used = self.waited_for();
        let pending = self.links.iter().flat_map(|l| &l.pending);
        used.extend(pending.map(|p| p.other));
        let next = self.flushes.values().flat_map(|f| f.still_to_ask());
        used.extend(next);
        let failures = self.clients.values().flat_map(|c| c.failed_servers());
        used.extend(failures);
        used.sort_unstable();
        for id in 0..self.servers.len() {
            let s = &self.servers[id];
            let idle = |l: u32| {
                let link = &self.links[l as usize];
                matches!(link.state, LinkState::Idle) && link.pending.is_empty()
            };
            let closed = s.retired.is_some() && s.drains == 0 && s.all_links().all(idle);
            if closed && used.binary_search(&(id as ServerId)).is_err() {
                let server = &mut self.servers[id];
                server.links = Vec::new();
                server.journal = Journal::new(0);
            }
        }
    }

    /// Each client goes where its listener leads now; those whose listener is gone leave.
    fn move_clients(&mut self, before: &Config) {
        let now_at = |address: &Address| {
            let at = entrances(&self.config).position(|(a, _)| a == address)?;
            Some((at, self.pool_at(at)?))
        };
        let moves: Vec<Option<(usize, usize)>> =
            entrances(before).map(|(a, _)| now_at(a)).collect();
        let keys: Vec<usize> = self.clients.keys().collect();
        let mut leaving = Vec::new();
        for key in keys {
            let Some(client) = self.clients.get_mut(key) else {
                continue;
            };
            // Those who leave already came through a listener of no configuration.
            let Some(place) = moves.get(client.entrance as usize) else {
                continue;
            };
            match *place {
                Some((entrance, pool)) => {
                    self.pools[client.pool as usize].clients -= 1;
                    self.pools[pool].clients += 1;
                    client.entrance = entrance as u16;
                    client.pool = pool as u16;
                }
                None => {
                    client.entrance = u16::MAX;
                    leaving.push(key);
                }
            }
        }
        self.see_off(leaving);
    }

    /// These clients are to finish and go: what has arrived is still answered.
    pub(super) fn see_off(&mut self, clients: Vec<usize>) {
        for key in &clients {
            // The event for what has arrived may not have come yet.
            if let Some(client) = self.clients.get_mut(*key) {
                client.ready.readable = true;
            }
            self.list_client(*key);
        }
        if !clients.is_empty() {
            self.leave_by = self.now.plus(LEAVE);
        }
        self.leaving.extend(clients);
    }
}

impl Pool {
    fn new(config: PoolConfig) -> Pool {
        Pool {
            primaries: Farm::new(FarmSpec::of(&config, &config.primaries), None),
            primary_ids: Vec::new(),
            ring: None,
            backups: backups(&config),
            backup_ids: Vec::new(),
            clients: 0,
            flushing: 0,
            retired: false,
            config,
        }
    }

    /// Other settings and farms; the servers are still to be found.
    fn configure(&mut self, config: PoolConfig) {
        self.primaries = Farm::new(FarmSpec::of(&config, &config.primaries), None);
        self.backups = backups(&config);
        self.config = config;
    }
}

fn backups(config: &PoolConfig) -> Option<Farm> {
    (!config.backups.is_empty()).then(|| Farm::new(FarmSpec::of(config, &config.backups), None))
}
