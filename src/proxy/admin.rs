//! What magent answers itself: `version`, `verbosity`, `quit` and every `stats`.

use super::{Proxy, nanos};
use crate::client::Ending;
use crate::health::{SECOND, State, Time};
use crate::net::Socket;
use crate::protocol::{Dress, Local, Traits, Verb, binary};
use crate::stats::Counters;
use crate::sys;
use crate::upstream::{LinkState, NOBODY, ServerId};

/// The protocol level that magent speaks, for clients that choose features by it.
pub const VERSION: &str = "1.6.18";

const VERSION_LINE: &str = "VERSION 1.6.18\r\n";

/// The lines of one `stats`: names and values.
type Lines = Vec<(String, String)>;

/// What a proxy holds at one moment: all of it comes to nothing when nobody is owed anything.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Holdings {
    /// Clients connected.
    pub clients: usize,
    /// Answers that clients are owed.
    pub slots: usize,
    /// Answers that servers owe.
    pub pending: usize,
    /// Links that were given up and are not at their end.
    pub drains: usize,
    /// Requests that wait for a fetch or a probe, and keys that they are creating.
    pub waiters: usize,
    /// Values on their way from a backup.
    pub fetches: usize,
    /// `flush_all`s on their way.
    pub flushes: usize,
    /// Bytes of all connections.
    pub bytes: usize,
    /// Servers that are not up.
    pub servers_away: usize,
    /// Servers that missed something.
    pub journals: usize,
}

impl<S: Socket> Proxy<S> {
    /// What it holds now; for tests that look for leaks.
    pub fn holdings(&mut self) -> Holdings {
        let slots = |c: &crate::client::Client<S>| c.active.as_ref().map_or(0, |a| a.slots.len());
        let clients: Vec<usize> = self.clients.keys().collect();
        Holdings {
            clients: clients.len(),
            slots: clients
                .iter()
                .filter_map(|k| self.clients.get(*k))
                .map(slots)
                .sum(),
            pending: self.links.iter().map(|l| l.pending.len()).sum(),
            drains: self.drains.len(),
            waiters: self.waiters.len() + self.creating.len(),
            fetches: self.fetches.len() + self.fetching.len(),
            flushes: self.flushes.len(),
            bytes: self.chunks.sweep() + self.own_bytes(),
            servers_away: self.servers.iter().filter(|s| !s.health.is_up()).count(),
            journals: (self.servers.iter())
                .filter(|s| !s.journal.is_empty())
                .count(),
        }
    }

    /// Answers a request that no server is asked for.
    pub(super) fn local(&mut self, key: usize, what: Local, dress: Dress) {
        match what {
            Local::Version => {
                self.answer_local(key, dress, VERSION_LINE.as_bytes(), VERSION.as_bytes());
            }
            Local::Verbosity => self.answer_local(key, dress, b"OK\r\n", b""),
            Local::Stats(arguments) => self.stats(key, dress, &arguments),
            Local::FlushAll(when) => self.flush_all(key, dress, when),
            Local::Quit => {
                if let Dress::Binary(_) = dress {
                    self.answer_local(key, dress, b"", b"");
                }
                self.end_client(key, Ending::AfterAnswers);
            }
        }
    }

    fn answer_local(&mut self, key: usize, dress: Dress, text: &[u8], body: &[u8]) {
        self.deliver_now(key, dress, Verb::Version, |out, dress| match dress {
            Dress::Silent => {}
            Dress::Binary(d) => binary::ok(&d, body, out),
            Dress::Text | Dress::Meta(_) => out.push_slice(text),
        });
    }

    /// Counts a client's request with one key.
    pub(super) fn count_command(&mut self, verb: Verb, traits: Traits) {
        let c = &mut self.counters;
        match verb {
            Verb::Get | Verb::Gets => c.cmd_get += 1,
            Verb::Gat | Verb::Gats => {
                c.cmd_get += 1;
                c.cmd_touch += 1;
            }
            Verb::Touch => c.cmd_touch += 1,
            Verb::Set | Verb::Add | Verb::Replace | Verb::Append | Verb::Prepend | Verb::Cas => {
                c.cmd_set += 1;
            }
            Verb::MetaGet => {
                c.cmd_meta += 1;
                c.cmd_get += 1;
                c.cmd_touch += u64::from(traits.has(Traits::WRITES));
            }
            Verb::MetaSet => {
                c.cmd_meta += 1;
                c.cmd_set += 1;
            }
            Verb::MetaDelete | Verb::MetaArithmetic | Verb::MetaDebug => c.cmd_meta += 1,
            Verb::Incr | Verb::Decr | Verb::Delete => {}
            Verb::FlushAll | Verb::Version | Verb::Stats => {}
        }
    }

    /// Counts a client's request with several keys.
    pub(super) fn count_keys(&mut self, traits: Traits, keys: usize) {
        self.counters.cmd_get += keys as u64;
        if traits.has(Traits::WRITES) {
            self.counters.cmd_touch += keys as u64;
        }
    }

    fn stats(&mut self, key: usize, dress: Dress, arguments: &[u8]) {
        let arguments = String::from_utf8_lossy(arguments).into_owned();
        let mut words = arguments.split(' ').filter(|w| !w.is_empty());
        let pool = self.clients.get(key).map_or(0, |c| c.pool as usize);
        let is_binary = matches!(dress, Dress::Binary(_));
        match (words.next(), words.next()) {
            (None, _) if matches!(dress, Dress::Text) && !self.config.memcached_stats => {
                let text = self.matrix(pool);
                self.answer_local(key, dress, text.as_bytes(), b"");
            }
            (None, _) | (Some("proxy"), None) => {
                let lines = self.stats_proxy();
                self.answer_stats(key, dress, &lines);
            }
            (Some("servers"), None) => {
                let lines = self.stats_servers(pool);
                self.answer_stats(key, dress, &lines);
            }
            (Some("settings"), None) => {
                let lines = self.stats_settings();
                self.answer_stats(key, dress, &lines);
            }
            (Some("pools"), None) => {
                let lines = self.stats_pools();
                self.answer_stats(key, dress, &lines);
            }
            (Some("route"), Some(name)) => {
                let lines = self.stats_route(pool, name.as_bytes());
                self.answer_stats(key, dress, &lines);
            }
            (Some("route"), None) if !is_binary => {
                self.answer_local(key, dress, b"CLIENT_ERROR usage: stats route KEY\r\n", b"");
            }
            // There are no counts by key prefix to be switched on.
            (Some("detail"), Some("on" | "off")) => match is_binary {
                true => self.answer_stats(key, dress, &Lines::new()),
                false => self.answer_local(key, dress, b"OK\r\n", b""),
            },
            (Some("detail"), Some("dump")) => match is_binary {
                true => self.answer_stats(key, dress, &vec![line("detailed", "END\r\n")]),
                false => self.answer_local(key, dress, b"END\r\n", b""),
            },
            (Some("detail"), _) if !is_binary => {
                let usage = b"CLIENT_ERROR usage: stats detail on|off|dump\r\n";
                self.answer_local(key, dress, usage, b"");
            }
            (Some("reset"), _) => {
                self.reset_stats();
                match dress {
                    Dress::Binary(_) => self.answer_stats(key, dress, &Lines::new()),
                    _ => self.answer_local(key, dress, b"RESET\r\n", b""),
                }
            }
            _ => self.deliver_now(key, dress, Verb::Stats, |out, dress| match dress {
                Dress::Binary(d) => binary::stat_unknown(&d, out),
                _ => out.push_slice(b"ERROR\r\n"),
            }),
        }
    }

    fn answer_stats(&mut self, key: usize, dress: Dress, lines: &Lines) {
        self.deliver_now(key, dress, Verb::Stats, |out, dress| {
            if let Dress::Binary(d) = dress {
                for (name, value) in lines {
                    binary::stat(&d, name.as_bytes(), value.as_bytes(), out);
                }
                return binary::stat_end(&d, out);
            }
            for (name, value) in lines {
                out.push_slice(format!("STAT {name} {value}\r\n").as_bytes());
            }
            out.push_slice(b"END\r\n");
        });
    }

    fn reset_stats(&mut self) {
        self.counters = Counters::default();
        self.reset_at = self.now;
        for server in &mut self.servers {
            server.stats = crate::stats::ServerStats::default();
        }
    }

    /// `stats` as every magent session ever published shows it.
    fn matrix(&self, pool: usize) -> String {
        let mut text = format!("memcached agent v{}\r\n", env!("CARGO_PKG_VERSION"));
        for (i, id) in self.pools[pool].primary_ids.iter().enumerate() {
            let server = &self.servers[*id as usize];
            let idle = self.idle_links(*id);
            text += &format!(
                "matrix {} -> {}, pool size {idle}\r\n",
                i + 1,
                server.spec.name
            );
        }
        text + "END\r\n"
    }

    fn idle_links(&self, id: ServerId) -> usize {
        self.servers[id as usize]
            .links
            .iter()
            .map(|l| &self.links[*l as usize])
            .filter(|l| l.is_up() && l.pending.is_empty())
            .count()
    }

    fn stats_proxy(&mut self) -> Lines {
        let held = self.chunks.sweep() + self.own_bytes();
        let (user, system) = sys::cpu_time();
        let mut lines = vec![
            line("pid", std::process::id()),
            line("uptime", self.now.0 / SECOND),
            line("time", self.unix),
            line("version", VERSION),
            line("magent_version", env!("CARGO_PKG_VERSION")),
            line("pointer_size", usize::BITS),
            line("rusage_user", format!("{:.6}", user.as_secs_f64())),
            line("rusage_system", format!("{:.6}", system.as_secs_f64())),
            line("max_connections", self.config.clients),
            line("curr_connections", self.clients.len()),
            line("threads", 1),
            line("bytes_in_flight", held),
            line("limit_maxbytes", self.config.memory),
            line("log_lines_lost", crate::logger::lost()),
        ];
        let mut counters = self.counters.clone();
        counters.get_misses = counters.cmd_get.saturating_sub(counters.get_hits);
        counters.each(|name, value| lines.push(line(name, value)));
        lines
    }

    fn stats_settings(&self) -> Lines {
        let mut lines = self.config.summary();
        if let Some((at, result)) = &self.last_reload {
            lines.push(line("last_reload", at));
            lines.push(line("last_reload_result", result));
        }
        lines
    }

    fn stats_pools(&self) -> Lines {
        let mut lines = Lines::new();
        for pool in self.pools.iter().filter(|p| !p.retired) {
            let name = &pool.config.name;
            let up = |ids: &[ServerId]| {
                ids.iter()
                    .filter(|id| self.servers[**id as usize].health.is_up())
                    .count()
            };
            lines.push(line(format!("{name}:curr_connections"), pool.clients));
            lines.push(line(format!("{name}:primaries"), pool.primary_ids.len()));
            lines.push(line(format!("{name}:primaries_up"), up(&pool.primary_ids)));
            lines.push(line(format!("{name}:backups"), pool.backup_ids.len()));
            lines.push(line(format!("{name}:backups_up"), up(&pool.backup_ids)));
            lines.push(line(format!("{name}:hash"), pool.config.hash.name()));
            lines.push(line(
                format!("{name}:distribution"),
                pool.config.distribution.name(),
            ));
        }
        lines
    }

    /// The state of a server in one word.
    fn state_of(&self, id: ServerId) -> &'static str {
        let health = &self.servers[id as usize].health;
        match health.state() {
            State::Up if health.is_warming(self.now) => "warming",
            State::Up => "up",
            State::Down { .. } | State::Probing | State::Replaying => "down",
        }
    }

    fn unix_of(&self, time: Time) -> u64 {
        self.start_unix + time.0 / SECOND
    }

    fn stats_servers(&self, pool: usize) -> Lines {
        let p = &self.pools[pool];
        let mut ids: Vec<ServerId> = Vec::new();
        for id in p.primary_ids.iter().chain(&p.backup_ids) {
            if !ids.contains(id) {
                ids.push(*id);
            }
        }
        let mut lines = Lines::new();
        for id in ids {
            self.stats_server(id, &mut lines);
        }
        lines
    }

    fn stats_server(&self, id: ServerId, lines: &mut Lines) {
        let s = &self.servers[id as usize];
        let links = || s.links.iter().map(|l| &self.links[*l as usize]);
        let open = links().filter(|l| !matches!(l.state, LinkState::Idle));
        let in_flight: usize = links().map(|l| l.pending.len()).sum();
        let bytes: usize = links().map(|l| l.queue.len()).sum();
        let role = match (s.is_primary, s.is_backup) {
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
        put("role", role.into());
        put("state", self.state_of(id).into());
        put("since", self.unix_of(s.health.since()).to_string());
        put("last_error", last_error);
        put("connections", open.count().to_string());
        put("connects", s.stats.connects.to_string());
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

    /// Where a key goes and why.
    fn stats_route(&mut self, pool: usize, key: &[u8]) -> Lines {
        let place = self.place(pool, key);
        let p = &self.pools[pool];
        let mut lines = vec![
            line("key", String::from_utf8_lossy(key)),
            line("pool", &p.config.name),
            line("hash_function", p.config.hash.name()),
            line("distribution", p.config.distribution.name()),
            line("hash", p.primaries.hash(key)),
            line("primary", &self.servers[place.primary as usize].spec.name),
            line("primary_state", self.state_of(place.primary)),
        ];
        let up = |id: ServerId| self.servers[id as usize].health.is_up();
        let mut answers = up(place.primary).then_some(place.primary);
        if place.backup == NOBODY {
            lines.push(line("backup", "none"));
        } else {
            lines.push(line(
                "backup",
                &self.servers[place.backup as usize].spec.name,
            ));
            lines.push(line("backup_state", self.state_of(place.backup)));
            answers = answers.or(up(place.backup).then_some(place.backup));
        }
        let answers = answers.map_or("nobody", |id| &self.servers[id as usize].spec.name);
        lines.push(line("answers", answers));
        lines.push(line("timeout_ms", nanos(p.config.timeout) / 1_000_000));
        lines
    }
}

fn line(name: impl ToString, value: impl ToString) -> (String, String) {
    (name.to_string(), value.to_string())
}
