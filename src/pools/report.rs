//! What an operator can see of pools and servers.

use super::figures::{RefillFigures, VerifyFigures};
use super::link::LinkState;
use super::outages::Outage;
use super::refill::Refill;
use super::server::{Pool, Server};
use super::{NOBODY, Pools, ServerId};
use crate::clients::Clients;
use crate::config::{Address, PoolConfig, ServerSpec};
use crate::health::State;
use crate::net::Socket;
use crate::stats::{Histogram, HotKey, ServerStats};
use crate::time::{Time, nanos};
use std::collections::HashSet;

/// The lines of one `stats`: names and values.
pub type Lines = Vec<(String, String)>;

/// One server, as it is now.
#[derive(Clone, Debug)]
pub struct ServerFigures {
    /// Names it among all.
    pub id: ServerId,
    /// As configured.
    pub name: String,
    /// `primary`, `backup`, or both.
    pub role: &'static str,
    /// Where it is, or `unknown`.
    pub address: String,
    /// `up`, `warming` or `down`.
    pub state: &'static str,
    /// An operator took it out of use.
    pub is_drained: bool,
    /// Since when it is up, or not: seconds since the epoch.
    pub since: u64,
    /// When it last failed, in seconds since the epoch, and why.
    pub last_error: Option<(u64, &'static str)>,
    /// Links that are open or being opened.
    pub connections: usize,
    /// Requests that it has not answered.
    pub in_flight: usize,
    /// Their bytes.
    pub bytes_in_flight: usize,
    /// Of both what has not gone out whole.
    pub unsent: (usize, usize),
    /// When it last left a ring, in seconds since the epoch; 0: never.
    pub ejected_at: u64,
    /// Keys that it missed.
    pub journal_keys: usize,
    /// Memory of its journal.
    pub journal_bytes: usize,
    /// How often that was too little.
    pub journal_overflows: u64,
    /// When it was away in the last ten minutes: from, until if that is over, and why.
    pub outages: Vec<(u64, Option<u64>, &'static str)>,
    /// How it is filled with what it lacks.
    pub refill: RefillFigures,
    /// How it is compared with its partners, if it was.
    pub verify: Option<VerifyFigures>,
    /// Whether it holds marks of this magent: `on`, or why not.
    pub marks: &'static str,
    /// Other magents that use it: host and process of each.
    pub others: Vec<String>,
    /// Magents that keep it away, this one included.
    pub kept_away_by: Vec<String>,
    /// What it was asked and answered.
    pub stats: ServerStats,
    /// How long its answers took since the start.
    pub latency: Histogram,
    /// How long they took in the last ten seconds.
    pub recent: Histogram,
}

impl ServerFigures {
    /// True if it is asked.
    pub fn is_up(&self) -> bool {
        self.state != "down"
    }

    /// True if what it lacks is fetched from its backup.
    pub fn is_warming(&self) -> bool {
        self.state == "warming"
    }

    /// What can be counted, under the names of `stats servers`.
    pub fn numbers(&self) -> [(&'static str, u64); 21] {
        let s = &self.stats;
        [
            ("connections", self.connections as u64),
            ("connects", s.connects),
            ("closes", s.closes),
            ("failures", s.failures),
            ("restarts", s.restarts),
            ("probes", s.probes),
            ("requests", s.requests.all()),
            ("errors", s.errors),
            ("timeouts", s.timeouts),
            ("in_flight", self.in_flight as u64),
            ("bytes_in_flight", self.bytes_in_flight as u64),
            ("bytes_read", s.bytes_read),
            ("bytes_written", s.bytes_written),
            ("journal_keys", self.journal_keys as u64),
            ("journal_bytes", self.journal_bytes as u64),
            ("journal_overflows", self.journal_overflows),
            ("keys_copied", s.keys_copied),
            ("mirrors", s.mirrors),
            ("mirrors_failed", s.mirrors_failed),
            ("looks_again", s.looks_again),
            ("doubts", s.doubts),
        ]
    }

    /// Its lines of `stats servers`, each made at once: there may be tens of thousands in a turn.
    fn write_lines(&self, lines: &mut Lines) {
        let mut put = |name: [&str; 3], value: String| {
            let [first, second, third] = name;
            lines.push(([&self.name, ":", first, second, third].concat(), value));
        };
        put(["role", "", ""], self.role.into());
        put(["address", "", ""], self.address.clone());
        put(["state", "", ""], self.state.into());
        put(["since", "", ""], self.since.to_string());
        let last_error = self.last_error.map(|(at, why)| format!("{at} {why}"));
        put(
            ["last_error", "", ""],
            last_error.unwrap_or_else(|| "none".into()),
        );
        for (name, value) in self.numbers() {
            put([name, "", ""], value.to_string());
        }
        put(["refill", "", ""], self.refill.state.into());
        if !self.refill.lists_keys {
            put(["metadump", "", ""], "no".into());
        }
        for (name, value) in self.refill.numbers() {
            put([name, "", ""], value.to_string());
        }
        if let Some(verify) = &self.verify {
            put(["verify", "", ""], verify.state.into());
            for (name, value) in verify.numbers() {
                put(["verify_", name, ""], value.to_string());
            }
        }
        put(["marks", "", ""], self.marks.into());
        if !self.others.is_empty() {
            put(["other_magents", "", ""], self.others.join(", "));
        }
        for (name, value) in latencies(&self.latency, &self.recent) {
            put(name, value.to_string());
        }
        if !self.kept_away_by.is_empty() {
            put(["kept_away_by", "", ""], self.kept_away_by.join(", "));
        }
    }
}

/// How long answers took, since the start and in the last ten seconds: names in parts, and microseconds.
fn latencies<'a>(
    total: &'a Histogram,
    recent: &'a Histogram,
) -> impl Iterator<Item = ([&'static str; 3], u64)> {
    let of = |name, times: &Histogram| {
        let one = move |(what, value)| ([name, what, "_us"], value);
        times.summary().map(one).into_iter()
    };
    of("latency_", total).chain(of("latency_10s_", recent))
}

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
            let (primaries, backups) = (self.primaries_of(at), self.backups_of(at));
            let mut put = |key: &str, value: String| lines.push((format!("{name}:{key}"), value));
            put("curr_connections", clients.in_pool(at).to_string());
            put("primaries", primaries.0.to_string());
            put("primaries_up", primaries.1.to_string());
            put("backups", backups.0.to_string());
            put("backups_up", backups.1.to_string());
            put("hash", pool.config.hash.name().to_string());
            put("distribution", pool.config.distribution.name().to_string());
            let progress = self.progress(at).unwrap_or_else(|| "no".into());
            put("moving", progress);
            let latency = clients.latency(at);
            let both = (latency.total(), latency.recent(self.now));
            for (key, value) in latencies(&both.0, &both.1) {
                put(&key.concat(), value.to_string());
            }
        }
        lines
    }

    /// The numbers of pools that are configured.
    pub fn live_pools(&self) -> impl Iterator<Item = usize> {
        let all = self.pools.iter().enumerate();
        all.filter(|(_, pool)| !pool.removed).map(|(at, _)| at)
    }

    /// How many primaries a pool has, and how many of them are up.
    pub fn primaries_of(&self, pool: usize) -> (usize, usize) {
        self.up_of(&self.pools[pool].primary_ids)
    }

    /// How many backups a pool has, and how many of them are up.
    pub fn backups_of(&self, pool: usize) -> (usize, usize) {
        self.up_of(&self.pools[pool].backup_ids)
    }

    fn up_of(&self, ids: &[ServerId]) -> (usize, usize) {
        let up = ids.iter().filter(|id| self.is_up(**id)).count();
        (ids.len(), up)
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

    /// `stats servers` of one pool or of all.
    pub fn stats_servers(&self, pool: Option<usize>) -> Lines {
        let mut lines = Lines::new();
        for id in self.ids(pool) {
            if let Some(figures) = self.figures_of(pool, id) {
                figures.write_lines(&mut lines);
            }
        }
        lines
    }

    /// Each server of one pool or of all, once.
    pub fn figures(&self, pool: Option<usize>) -> Vec<ServerFigures> {
        let ids = self.ids(pool).into_iter();
        ids.filter_map(|id| self.figures_of(pool, id)).collect()
    }

    fn ids(&self, pool: Option<usize>) -> Vec<ServerId> {
        let mut seen = HashSet::new();
        let ids = |p: &Pool| {
            let before = p.before.iter().flat_map(|b| b.servers());
            let now = p.primary_ids.iter().chain(&p.backup_ids).copied();
            now.chain(before).collect::<Vec<ServerId>>()
        };
        let all = self.pools_of(pool).flat_map(ids);
        all.filter(|id| seen.insert(*id)).collect()
    }

    fn figures_of(&self, pool: Option<usize>, id: ServerId) -> Option<ServerFigures> {
        let s = self.servers.get(id)?;
        let links = || s.links.iter().filter_map(|l| self.links.get(*l));
        let open = links().filter(|l| !matches!(l.state, LinkState::Idle));
        let is_one = |of: &[u32]| of.iter().any(|p| pool.is_none_or(|one| one == *p as usize));
        let last_error = s.health.last_error();
        let unsent = links().map(|l| l.unsent());
        Some(ServerFigures {
            id,
            name: s.spec.name.clone(),
            role: match (is_one(&s.primary_of), is_one(&s.backup_of)) {
                (true, true) => "primary,backup",
                (true, false) => "primary",
                (false, true) => "backup",
                (false, false) => "leaving",
            },
            address: match s.candidate(0) {
                Some(Address::Tcp(address)) => address.to_string(),
                Some(Address::Unix(path)) => path.display().to_string(),
                None => "unknown".into(),
            },
            state: self.state_of(id),
            is_drained: s.health.is_drained(),
            since: self.unix_of(s.health.since()),
            last_error: last_error.map(|(cause, at)| (self.unix_of(at), cause.text())),
            connections: open.count(),
            in_flight: links().map(|l| l.pending.len()).sum::<usize>() - self.marks_asked(s),
            bytes_in_flight: links().map(|l| l.queue.len()).sum(),
            unsent: unsent.fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1)),
            ejected_at: s.ejected_at,
            journal_keys: s.journal.len(),
            journal_bytes: s.journal.bytes(),
            journal_overflows: s.journal.overflows(),
            outages: s.outages.recent(self.now).map(|o| self.outage(o)).collect(),
            refill: self.refill_figures(id, s),
            verify: self.verify_figures(id, s),
            marks: self.unmarked(s).unwrap_or("on"),
            others: self.others_of(s),
            kept_away_by: self.keepers_of(s),
            stats: s.stats.clone(),
            latency: s.latency.total(),
            recent: s.latency.recent(self.now),
        })
    }

    fn outage(&self, outage: &Outage) -> (u64, Option<u64>, &'static str) {
        let to = (outage.to != Time::NEVER).then(|| self.unix_of(outage.to));
        (self.unix_of(outage.from), to, outage.cause.text())
    }

    /// How far the refill of a server is, or what came of the last one.
    fn refill_figures(&self, id: ServerId, server: &Server) -> RefillFigures {
        let of_it = |r: &&Refill| r.target == id && r.lists && r.verify.is_none();
        let under_way = self.refills.jobs.iter().find(of_it);
        let progress = under_way.map(|r| r.progress).or(server.refilled);
        RefillFigures {
            state: match (under_way, &server.refilled) {
                (Some(refill), _) if refill.has_begun => "running",
                (Some(_), _) => "waiting",
                _ if !self.refills.pace.is_on() => "off",
                _ if !server.same_partners => "other partners",
                _ if !server.meta => "unsupported",
                (None, Some(progress)) if progress.is_partial => "partial",
                (None, Some(_)) => "done",
                (None, None) => "none",
            },
            lists_keys: !server.no_metadump,
            progress,
            to_go: under_way.map_or(0, |r| r.to_go()),
            since: progress.map_or(0, |p| self.unix_of(p.since)),
        }
    }

    /// The servers of a pool, each once, under the names that twemproxy would give them.
    pub fn members(&self, pool: usize) -> Vec<(String, ServerId)> {
        let pool = &self.pools[pool];
        let config = &pool.config;
        let label = |s: &ServerSpec| match config.distribution.is_twemproxy() {
            true => s.hash_name.clone(),
            false => s.name.clone(),
        };
        let primaries = config.primaries.iter().map(label).zip(&pool.primary_ids);
        // As a backup a server may have the name of another one, which is a primary.
        let names = config.backups.iter().map(|s| s.name.clone());
        let all = primaries.chain(names.zip(&pool.backup_ids));
        let (mut ids, mut labels) = (HashSet::new(), HashSet::new());
        let each = all.filter(|(label, id)| ids.insert(**id) && labels.insert(label.clone()));
        each.map(|(label, id)| (label, *id)).collect()
    }

    /// Lines that requests of a pool with several keys were split into, and servers that left its ring.
    pub fn splits_and_ejections(&self, pool: usize) -> (u64, u64) {
        (self.pools[pool].fragments, self.pools[pool].ejections)
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

    /// The keys asked most in the last minute, most first, at most so many.
    pub fn hot_keys(&self, most: usize) -> Vec<HotKey> {
        self.hot.top(most, self.now)
    }

    /// Forgets what was counted.
    pub fn reset_stats(&mut self) {
        (self.counters, self.calls) = Default::default();
        for server in self.servers.values_mut() {
            server.stats = Default::default();
            server.latency = Default::default();
        }
        for pool in &mut self.pools {
            (pool.fragments, pool.ejections) = (0, 0);
        }
    }
}
