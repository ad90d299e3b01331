//! What an operator can see of pools and servers.

use super::link::LinkState;
use super::server::Pool;
use super::{NOBODY, Pools, ServerId};
use crate::clients::Clients;
use crate::config::{Address, PoolConfig};
use crate::health::State;
use crate::net::Socket;
use crate::time::{SECOND, Time, nanos};
use std::collections::HashSet;

/// The lines of one `stats`: names and values.
pub type Lines = Vec<(String, String)>;

/// One line.
pub fn line(name: impl ToString, value: impl ToString) -> (String, String) {
    (name.to_string(), value.to_string())
}

impl<S: Socket> Pools<S> {
    /// The settings of a pool.
    pub fn config(&self, pool: usize) -> &PoolConfig {
        &self.pools[pool].config
    }

    /// `stats` as every magent session ever published shows it, of one pool or of all.
    pub fn matrix(&self, pool: Option<usize>) -> String {
        let mut text = format!("memcached agent v{}\r\n", env!("CARGO_PKG_VERSION"));
        let primaries = self.pools_of(pool).flat_map(|p| &p.primary_ids);
        for (i, id) in primaries.enumerate() {
            let Some(server) = self.servers.get(*id) else {
                continue;
            };
            let links = server.links.iter().filter_map(|l| self.links.get(*l));
            let idle = links.filter(|l| l.is_up() && l.is_idle()).count();
            let name = &server.spec.name;
            text += &format!("matrix {} -> {name}, pool size {idle}\r\n", i + 1);
        }
        text + "END\r\n"
    }

    /// `stats pools`.
    pub fn stats_pools(&self, clients: &Clients<S>) -> Lines {
        let mut lines = Lines::new();
        for (at, pool) in self.pools.iter().enumerate().filter(|(_, p)| !p.removed) {
            let name = &pool.config.name;
            let up = |ids: &[ServerId]| ids.iter().filter(|id| self.is_up(**id)).count();
            let mut put = |key: &str, value: String| lines.push((format!("{name}:{key}"), value));
            put("curr_connections", clients.in_pool(at).to_string());
            put("primaries", pool.primary_ids.len().to_string());
            put("primaries_up", up(&pool.primary_ids).to_string());
            put("backups", pool.backup_ids.len().to_string());
            put("backups_up", up(&pool.backup_ids).to_string());
            put("hash", pool.config.hash.name().to_string());
            put("distribution", pool.config.distribution.name().to_string());
        }
        lines
    }

    /// The state of a server in one word.
    fn state_of(&self, id: ServerId) -> &'static str {
        let Some(server) = self.servers.get(id) else {
            return "removed";
        };
        match server.health.state() {
            State::Up if server.health.is_warming(self.now) => "warming",
            State::Up => "up",
            _ => "down",
        }
    }

    fn unix_of(&self, time: Time) -> u64 {
        self.start_unix + time.0 / SECOND
    }

    /// `stats servers` of one pool or of all.
    pub fn stats_servers(&self, pool: Option<usize>) -> Lines {
        let mut seen = HashSet::new();
        let ids = |p: &Pool| [&p.primary_ids[..], &p.backup_ids].concat();
        let all = self.pools_of(pool).flat_map(ids);
        let mut lines = Lines::new();
        for id in all.filter(|id| seen.insert(*id)) {
            self.stats_server(pool, id, &mut lines);
        }
        lines
    }

    fn stats_server(&self, pool: Option<usize>, id: ServerId, lines: &mut Lines) {
        let Some(s) = self.servers.get(id) else {
            return;
        };
        let links = || s.links.iter().filter_map(|l| self.links.get(*l));
        let open = links().filter(|l| !matches!(l.state, LinkState::Idle));
        let in_flight: usize = links().map(|l| l.pending.len()).sum();
        let bytes: usize = links().map(|l| l.queue.len()).sum();
        let is_one = |of: &[u32]| of.iter().any(|p| pool.is_none_or(|one| one == *p as usize));
        let role = match (is_one(&s.primary_of), is_one(&s.backup_of)) {
            (true, true) => "primary,backup",
            (true, false) => "primary",
            (false, _) => "backup",
        };
        let last_error = match s.health.last_error() {
            Some((cause, at)) => format!("{} {}", self.unix_of(at), cause.text()),
            None => "none".into(),
        };
        let mut put = |name: &str, value: String| {
            lines.push((format!("{}:{name}", s.spec.name), value));
        };
        let address = match s.candidate(0) {
            Some(Address::Tcp(address)) => address.to_string(),
            Some(Address::Unix(path)) => path.display().to_string(),
            None => "unknown".into(),
        };
        put("role", role.into());
        put("address", address);
        put("state", self.state_of(id).into());
        put("since", self.unix_of(s.health.since()).to_string());
        put("last_error", last_error);
        put("connections", open.count().to_string());
        put("connects", s.stats.connects.to_string());
        put("restarts", s.stats.restarts.to_string());
        put("probes", s.stats.probes.to_string());
        put("requests", s.stats.requests.to_string());
        put("errors", s.stats.errors.to_string());
        put("timeouts", s.stats.timeouts.to_string());
        put("in_flight", in_flight.to_string());
        put("bytes_in_flight", bytes.to_string());
        put("bytes_read", s.stats.bytes_read.to_string());
        put("bytes_written", s.stats.bytes_written.to_string());
        put("journal_keys", s.journal.len().to_string());
        put("journal_bytes", s.journal.bytes().to_string());
        put("journal_overflows", s.journal.overflows().to_string());
        put("keys_copied", s.stats.keys_copied.to_string());
        put("mirrors", s.stats.mirrors.to_string());
        put("mirrors_failed", s.stats.mirrors_failed.to_string());
        put("latency_p50_us", s.stats.latency.quantile(500).to_string());
        put("latency_p99_us", s.stats.latency.quantile(990).to_string());
    }

    /// `stats route`: where a key goes and why, in one pool or in each.
    pub fn stats_route(&mut self, pool: Option<usize>, key: &[u8]) -> Lines {
        let is_meant = |at: usize| pool.map_or(!self.pools[at].removed, |one| one == at);
        let pools: Vec<usize> = (0..self.pools.len()).filter(|at| is_meant(*at)).collect();
        let mut lines = Lines::new();
        for at in &pools {
            let prefix = match pools.len() {
                1 => String::new(),
                _ => format!("{}:", self.pools[*at].config.name),
            };
            let of_pool = self.route(*at, key).into_iter();
            lines.extend(of_pool.map(|(name, value)| (format!("{prefix}{name}"), value)));
        }
        lines
    }

    fn route(&mut self, pool: usize, key: &[u8]) -> Lines {
        let place = self.place(pool, key);
        let p = &self.pools[pool];
        let name = |id: ServerId| {
            let server = self.servers.get(id);
            server.map_or_else(|| "none".to_string(), |s| s.spec.name.clone())
        };
        let mut lines = vec![
            line("key", String::from_utf8_lossy(key)),
            line("pool", &p.config.name),
            line("hash_function", p.config.hash.name()),
            line("distribution", p.config.distribution.name()),
            line("hash", p.primaries.hash(key)),
            line("primary", name(place.primary)),
            line("primary_state", self.state_of(place.primary)),
            line("backup", name(place.backup)),
        ];
        if place.backup != NOBODY {
            lines.push(line("backup_state", self.state_of(place.backup)));
        }
        let candidates = [place.primary, place.backup];
        let answers = candidates.into_iter().find(|id| self.is_up(*id));
        lines.push(line("answers", answers.map_or("nobody".into(), name)));
        lines.push(line("timeout_ms", nanos(p.config.timeout) / 1_000_000));
        lines
    }

    /// Forgets what was counted.
    pub fn reset_stats(&mut self) {
        self.counters = Default::default();
        for server in self.servers.values_mut() {
            server.stats = Default::default();
        }
    }
}
