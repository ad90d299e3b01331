//! The configuration in force: pools and their servers when it is first read, and while they are
//! served when it changes.
//!
//! A pool is matched by its name, a server by its address. What is matched keeps its state and its
//! connections. A server that is no longer named gets no new keys, answers what it was asked, and
//! is removed when it owes nothing and its keys have moved (`moves`).

use super::board::Board;
use super::link::{Link, LinkState};
use super::me::Me;
use super::name::Name;
use super::outages::Outages;
use super::quiet::Quiet;
use super::server::{Pool, Server, policy};
use super::watched::Watched;
use super::{Pools, ServerId, flows, flush_all, recent, refill};
use crate::budget::Budget;
use crate::clients::Rules;
use crate::config::{Config, Endpoint, Farms, PoolConfig, ServerSpec};
use crate::health::{Cause, Health, Probing};
use crate::journal::Journal;
use crate::net::Socket;
use crate::slab::Slab;
use crate::stats::{CallCounters, HotKeys, Latency, PoolCounters, ServerStats};
use crate::time::{SECOND, Time, nanos};
use crate::work::WorkList;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

impl<S: Socket> Pools<S> {
    /// No pools yet.
    pub fn new(config: &Config, budget: Rc<Budget>, unix: u64, me: Me) -> Pools<S> {
        Pools {
            now: Time(0),
            unix,
            start_unix: unix,
            me,
            is_alone: config.alone,
            budget,
            probing: Probing::default(),
            resolve: 0,
            pools: Vec::new(),
            servers: Slab::default(),
            by_endpoint: HashMap::new(),
            links: Slab::default(),
            given_up: Slab::default(),
            losses: VecDeque::new(),
            flows: flows::Flows::default(),
            wins: Vec::new(),
            flushes: Slab::<flush_all::FlushAll>::default(),
            monitors: Slab::default(),
            reports: Vec::new(),
            ends_moves: false,
            paused: false,
            listing: None,
            refills: refill::Refills::new(),
            recent: recent::RecentWrites::default(),
            readable: WorkList::default(),
            dirty: WorkList::default(),
            mirrored: WorkList::default(),
            pairs: super::pairs::Pairs::default(),
            to_advance: WorkList::default(),
            to_sync: WorkList::default(),
            connects: Vec::new(),
            lookups: Vec::new(),
            look_up_at: Time::NEVER,
            watched: Watched::default(),
            sockets: 0,
            is_answering: false,
            draw: unix as u32,
            line: Vec::new(),
            key: Vec::new(),
            open_lines: Vec::new(),
            looked_for_abandoned: Time(0),
            hot: HotKeys::default(),
            counters: PoolCounters::default(),
            calls: CallCounters::default(),
        }
    }

    /// Makes the pools those of the configuration, whose farms these are.
    pub fn configure(&mut self, config: &Config, farms: Vec<Farms>) {
        self.probing = Probing {
            silence: nanos(config.probe),
            longest_wait: nanos(config.retry_max),
        };
        self.resolve = nanos(config.resolve);
        self.break_moves();
        let rings = self.all_rings();
        let mut moving = Vec::new();
        for (pool, farms) in config.pools.iter().zip(farms) {
            match self.pool_named(&pool.name) {
                Some(at) if self.pools[at].config == *pool => {}
                Some(at) => {
                    self.warn_of_connections(at, pool);
                    if self.pools[at].configure(pool.clone(), farms, self.now) {
                        moving.push(at);
                    }
                }
                None => self.pools.push(Pool::new(pool.clone(), farms)),
            }
        }
        for pool in &mut self.pools {
            if !config.pools.iter().any(|c| c.name == pool.config.name) {
                pool.removed = true;
                pool.before = None;
            }
        }
        for at in &moving {
            self.note_listable(*at);
        }
        self.staff();
        for at in &moving {
            self.begin_move(*at);
            self.begin_rolling(*at, &rings);
            self.widen_flushes(*at);
        }
        self.restart_refills(config.refill as u64);
        for at in moving {
            self.fill_moved(at);
        }
        self.look_up_all();
    }

    /// Why a configuration cannot be put in force now: it changes the ring of a pool whose keys
    /// move already. An operator may end that move, but not before all that was asked before it is answered.
    pub fn refuses(&self, config: &Config) -> Option<String> {
        if self.ends_moves {
            let at = (0..self.pools.len()).find(|at| self.is_handing_over(*at))?;
            let name = &self.pools[at].config.name;
            return Some(format!(
                "pool {name}: requests from before the last reload may be unanswered; try again in some \
                 seconds"
            ));
        }
        config.pools.iter().find_map(|pool| {
            let at = self.pool_named(&pool.name)?;
            let progress = self.progress(at)?;
            let changes = !self.pools[at].has_ring_of(pool);
            let name = &pool.name;
            changes.then(|| {
                format!(
                    "pool {name}: its servers cannot change while keys move to those of the last \
                     reload ({progress})"
                )
            })
        })
    }

    fn warn_of_connections(&self, at: usize, config: &PoolConfig) {
        if self.pools[at].config.connections != config.connections {
            log::warn!(
                "pool {}: server_connections changes at the next start",
                config.name
            );
        }
    }

    /// The pool of that name in the configuration in force.
    pub fn pool_named(&self, name: &str) -> Option<usize> {
        let is_named = |p: &Pool| !p.removed && p.config.name == name;
        self.pools.iter().position(is_named)
    }

    /// What clients must know of a pool.
    pub fn rules(&self, at: usize) -> Rules {
        let config = &self.pools[at].config;
        Rules {
            max_value: config.max_value,
            flush_all: config.flush_all,
            idle_timeout: config.idle_timeout.map_or(0, nanos),
            clients: config.clients,
        }
    }

    /// Gives the pools the servers that their configurations name.
    fn staff(&mut self) {
        let mut named: HashMap<ServerId, (Vec<u32>, Vec<u32>)> = HashMap::new();
        for at in 0..self.pools.len() {
            if self.pools[at].removed {
                continue;
            }
            let config = self.pools[at].config.clone();
            let primaries = self.find_servers(&config, &config.primaries, &mut named);
            let backups = self.find_servers(&config, &config.backups, &mut named);
            for id in &primaries {
                named.entry(*id).or_default().0.push(at as u32);
            }
            for id in &backups {
                named.entry(*id).or_default().1.push(at as u32);
            }
            self.pools[at].primary_ids = primaries;
            self.pools[at].backup_ids = backups;
        }
        let all: Vec<ServerId> = self.servers.keys().collect();
        for id in all {
            match named.remove(&id) {
                Some((primary_of, backup_of)) => self.employ(id, primary_of, backup_of),
                None => self.dismiss(id),
            }
        }
        self.release_servers();
        self.pair_up();
        for id in self.servers.keys().collect::<Vec<_>>() {
            let agree = self.partners_agree(id);
            if let Some(server) = self.servers.get_mut(id) {
                server.same_partners = agree;
            }
        }
        self.renew_rings();
    }

    /// The servers of `specs`. Those that are not there are added; a server has the name that it
    /// has where it is named first.
    fn find_servers(
        &mut self,
        config: &PoolConfig,
        specs: &[ServerSpec],
        named: &mut HashMap<ServerId, (Vec<u32>, Vec<u32>)>,
    ) -> Vec<ServerId> {
        let mut ids = Vec::with_capacity(specs.len());
        for spec in specs {
            let known = self.by_endpoint.get(&spec.endpoint).copied();
            let id = known.unwrap_or_else(|| self.add_server(config, spec));
            if let Entry::Vacant(place) = named.entry(id) {
                place.insert(Default::default());
                if let Some(server) = self.servers.get_mut(id) {
                    server.spec = spec.clone();
                }
            }
            ids.push(id);
        }
        ids
    }

    fn add_server(&mut self, config: &PoolConfig, spec: &ServerSpec) -> ServerId {
        let place = self.servers.len() as u64;
        let seed = self.start_unix ^ (place + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let policy = policy([config].into_iter(), self.probing).unwrap_or_default();
        let name = match &spec.endpoint {
            Endpoint::Name(host, port) => Some(Name::new(host, *port)),
            Endpoint::Fixed(_) => None,
        };
        let id = self.servers.insert(Server {
            spec: spec.clone(),
            title: spec.name.clone(),
            name,
            primary_of: Vec::new(),
            backup_of: Vec::new(),
            links: Vec::new(),
            health: Health::new(policy, self.now, seed),
            journal: Journal::new(config.journal),
            missed: false,
            flushes: 0,
            late_flushes: 0,
            flushing: false,
            quiet: Quiet::default(),
            same_partners: false,
            no_metadump: false,
            is_told: false,
            refilled: None,
            verified: None,
            listed: false,
            meta: true,
            holds_marks: true,
            board: Board::new(self.me.id),
            free_until: Time::NEVER,
            pairs: Vec::new(),
            stands_in_for: Vec::new(),
            follows: Vec::new(),
            given_up: 0,
            losing: 0,
            keepalive: config.keepalive,
            connect_timeout: nanos(config.connect_timeout),
            timeout: nanos(config.timeout),
            failure_limit: config.failure_limit,
            moves: false,
            removed: None,
            stats: ServerStats::default(),
            latency: Latency::default(),
            outages: Outages::default(),
            ejected_at: 0,
        });
        self.by_endpoint.insert(spec.endpoint.clone(), id);
        let most_bytes = self.most_bytes(config.connections);
        let links = (0..config.connections).map(|_| self.links.insert(Link::new(id, most_bytes)));
        let links: Vec<usize> = links.collect();
        if let Some(server) = self.servers.get_mut(id) {
            server.links = links;
        }
        id
    }

    /// What the log calls a server: `pool default: primary 127.0.0.1:11211`.
    fn title(&self, name: &str, primary_of: &[u32], backup_of: &[u32]) -> String {
        let mut pools: Vec<&str> = Vec::new();
        for pool in primary_of.iter().chain(backup_of) {
            let pool = &self.pools[*pool as usize].config.name[..];
            if !pools.contains(&pool) {
                pools.push(pool);
            }
        }
        let role = match (primary_of.is_empty(), backup_of.is_empty()) {
            (false, false) => "primary and backup",
            (false, true) => "primary",
            (true, _) => "backup",
        };
        match pools[..] {
            [pool] => format!("pool {pool}: {role} {name}"),
            _ => format!("pools {}: {role} {name}", pools.join(", ")),
        }
    }

    /// What a server must know of the pools that name it.
    fn employ(&mut self, id: ServerId, primary_of: Vec<u32>, backup_of: Vec<u32>) {
        let configs = || {
            let all = primary_of.iter().chain(&backup_of);
            all.map(|p| &self.pools[*p as usize].config)
        };
        let policy = policy(configs(), self.probing).unwrap_or_default();
        let journal = configs().map(|c| c.journal).max().unwrap_or(0);
        let keepalive = configs().any(|c| c.keepalive);
        let connect_timeout = configs().map(|c| nanos(c.connect_timeout)).max();
        let preconnect = configs().any(|c| c.preconnect);
        let title = |name: &str| self.title(name, &primary_of, &backup_of);
        let title = self.servers.get(id).map(|s| title(&s.spec.name));
        let Some(server) = self.servers.get_mut(id) else {
            return;
        };
        server.title = title.unwrap_or_default();
        server.health.set_policy(policy);
        server.journal.set_limit(journal);
        server.keepalive = keepalive;
        server.connect_timeout = connect_timeout.unwrap_or(SECOND);
        server.timeout = policy.timeout;
        server.failure_limit = policy.failure_limit;
        let was_removed = server.removed.take().is_some();
        (server.primary_of, server.backup_of) = (primary_of, backup_of);
        // The own line tells the rings.
        server.board.forget_list();
        if was_removed && (!server.health.is_up() || server.given_up > 0) {
            // The link by which it was to come back may have been closed. A drain is over with the
            // configuration that the server was in.
            server.health.end_drain(self.now);
            let cause = server.health.last_error().map_or(Cause::Down, |(c, _)| c);
            return self.server_down(id, cause, true);
        }
        if preconnect && server.health.is_up() {
            for link in server.links.clone() {
                let idle = |l: &Link<S>| matches!(l.state, LinkState::Idle);
                if self.links.get(link).is_some_and(idle) {
                    self.open_link(link);
                }
            }
        }
    }

    /// No pool names a server any more.
    fn dismiss(&mut self, id: ServerId) {
        if let Some(server) = self.servers.get_mut(id) {
            (server.primary_of, server.backup_of) = (Vec::new(), Vec::new());
        }
    }
}
