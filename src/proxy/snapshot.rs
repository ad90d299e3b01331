//! All that monitors are told, as values of one moment: a document can be written from them over many turns.

use super::Proxy;
use super::turns::TurnFigures;
use crate::logger;
use crate::net::Socket;
use crate::pools::ServerFigures;
use crate::stats::{
    CallCounters, ClientCounters, CommandCounters, Histogram, History, HotKey, LoopCounters,
    PoolCounters, Sample,
};
use crate::sys;
use crate::time::SECOND;
use std::collections::HashMap;
use std::time::Duration;

/// Hot keys reported at most.
const HOT_KEYS: usize = 20;

/// All figures of one moment.
#[derive(Debug)]
pub struct Snapshot {
    /// The process.
    pub process: ProcessFigures,
    /// Pools, in the order of the configuration.
    pub pools: Vec<PoolFigures>,
    /// Servers, each once whatever pools name it.
    pub servers: Vec<ServerFigures>,
    /// What the page shows besides.
    pub live: Option<Live>,
}

/// What only the page shows: too short-lived, or too long, for monitors.
#[derive(Debug)]
pub struct Live {
    /// Why not every key can be answered.
    pub unanswered: Vec<String>,
    /// Samples of each pool, in the order of [`Snapshot::pools`].
    pub history: Vec<Vec<Sample>>,
    /// When the last samples ended, in seconds since the epoch.
    pub history_end: u64,
    /// The keys asked most in the last minute, most first, each with the name of its pool.
    pub hot: Vec<(String, HotKey)>,
    /// The last lines of the log, oldest first.
    pub log: Vec<logger::Line>,
}

/// The process.
#[derive(Debug)]
pub struct ProcessFigures {
    /// The process id.
    pub pid: u32,
    /// The host's name.
    pub host: String,
    /// Seconds since the epoch, now.
    pub time: u64,
    /// Seconds since it started.
    pub uptime: u64,
    /// A hash of the configuration in force.
    pub configuration: String,
    /// Processor time in user code and in the kernel.
    pub cpu: (Duration, Duration),
    /// Memory in bytes, as the kernel counts it; `None` where that is not told.
    pub resident: Option<u64>,
    /// Clients, and how many there may be.
    pub clients: (usize, usize),
    /// Bytes in flight, and how many there may be.
    pub memory: (usize, usize),
    /// Lines that the log did not take.
    pub log_lines_lost: u64,
    /// When a reload last came to its end, in seconds since the epoch, and whether it was taken over.
    pub last_reload: Option<(u64, bool)>,
    /// How long turns of the loop took.
    pub turns: TurnFigures,
    /// What the loop did.
    pub loop_counters: LoopCounters,
    /// Calls of the system.
    pub call_counters: CallCounters,
    /// What was done for clients.
    pub client_counters: ClientCounters,
    /// What servers were asked.
    pub pool_counters: PoolCounters,
}

/// One pool.
#[derive(Debug)]
pub struct PoolFigures {
    /// Its name.
    pub name: String,
    /// Its clients, and how many there may be.
    pub clients: (usize, usize),
    /// Its primaries, and how many of them are up.
    pub primaries: (usize, usize),
    /// Its backups, and how many of them are up.
    pub backups: (usize, usize),
    /// Its servers.
    pub members: Vec<Member>,
    /// How far keys have moved that a reload gave other servers; `None` if none move.
    pub moving: Option<String>,
    /// Lines that requests with several keys were split into.
    pub fragments: u64,
    /// Servers that left its ring.
    pub ejections: u64,
    /// What its clients asked and got.
    pub commands: CommandCounters,
    /// How long its clients waited for answers of servers: from the request to its answer.
    pub latency: Histogram,
    /// The same of the last ten seconds.
    pub recent: Histogram,
}

/// A server of a pool.
#[derive(Debug)]
pub struct Member {
    /// As twemproxy would call it.
    pub label: String,
    /// Its place in [`Snapshot::servers`].
    pub server: usize,
}

impl<S: Socket> Proxy<S> {
    /// Everything as it is now.
    pub fn snapshot(&self) -> Snapshot {
        let servers = self.pools.figures(None);
        Snapshot {
            process: self.process_figures(),
            pools: self.pool_figures(&servers),
            servers,
            live: None,
        }
    }

    /// The same with what the page shows besides.
    pub fn live_snapshot(&self) -> Snapshot {
        let live_pools = self.pools.live_pools();
        let of_pools = live_pools.map(|pool| self.history.of(pool).map(History::samples));
        let (history, ends): (Vec<_>, Vec<_>) = of_pools.map(Option::unwrap_or_default).unzip();
        let end = ends.into_iter().max().unwrap_or_default();
        let hot = self.hot_keys().into_iter();
        Snapshot {
            live: Some(Live {
                unanswered: self.unanswered(),
                history,
                history_end: self.unix - self.now.since(end) / SECOND,
                hot: hot.map(|(pool, key)| (pool.to_string(), key)).collect(),
                log: logger::recent(),
            }),
            ..self.snapshot()
        }
    }

    /// The keys asked most in the last minute, most first, each with the name of its pool.
    pub fn hot_keys(&self) -> Vec<(&str, HotKey)> {
        let keys = self.pools.hot_keys(HOT_KEYS).into_iter();
        let named = keys.map(|key| (&self.pools.config(key.pool).name[..], key));
        named.collect()
    }

    fn process_figures(&self) -> ProcessFigures {
        ProcessFigures {
            pid: std::process::id(),
            host: sys::host_name(),
            time: self.unix,
            uptime: self.now.0 / SECOND,
            configuration: self.config.fingerprint(),
            cpu: sys::cpu_time(),
            resident: sys::resident_memory(),
            clients: (self.clients.count(), self.config.clients),
            memory: (self.budget.total(), self.budget.limit()),
            log_lines_lost: logger::lost(),
            last_reload: self
                .last_reload
                .as_ref()
                .map(|(at, result)| (*at, result == "ok")),
            turns: self.turns.figures(),
            loop_counters: self.counters.clone(),
            call_counters: self.calls(),
            client_counters: self.clients.counters.clone(),
            pool_counters: self.pools.counters.clone(),
        }
    }

    fn pool_figures(&self, servers: &[ServerFigures]) -> Vec<PoolFigures> {
        let places: HashMap<usize, usize> = (servers.iter().enumerate())
            .map(|(place, server)| (server.id, place))
            .collect();
        let pools = self.pools.live_pools().map(|pool| {
            let latency = self.clients.latency(pool);
            let (fragments, ejections) = self.pools.splits_and_ejections(pool);
            let members = self.pools.members(pool).into_iter();
            let members = members.filter_map(|(label, id)| {
                let server = *places.get(&id)?;
                Some(Member { label, server })
            });
            PoolFigures {
                name: self.pools.config(pool).name.clone(),
                clients: (self.clients.in_pool(pool), self.clients.most_of(pool)),
                primaries: self.pools.primaries_of(pool),
                backups: self.pools.backups_of(pool),
                members: members.collect(),
                moving: self.pools.progress(pool),
                fragments,
                ejections,
                commands: self.clients.counts(pool),
                latency: latency.total(),
                recent: latency.recent(self.now),
            }
        });
        pools.collect()
    }

    /// Why not every key of every pool can be answered; nothing if each can.
    pub fn unanswered(&self) -> Vec<String> {
        self.pools.unanswered()
    }
}
