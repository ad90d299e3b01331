//! What a configuration says of itself: `stats settings` and its fingerprint.

use super::values::{look_up, show_size};
use super::{Config, Endpoint, ListenSpec, LogTarget, PoolConfig, ServerSpec};
use std::collections::HashSet;
use std::path::PathBuf;

impl Config {
    /// The settings in force as names and values for `stats settings`: those of the process, then
    /// those of each pool as `POOL:KEY` under the file's keys.
    pub fn summary(&self) -> Vec<(String, String)> {
        let mut lines: Vec<(String, String)> = Vec::new();
        let mut line = |name: &str, value: String| lines.push((name.to_string(), value));
        let path = |p: &Option<PathBuf>| p.as_ref().map_or_else(none, |p| p.display().to_string());
        let text = |t: &Option<String>| t.clone().unwrap_or_else(none);
        line("configuration", self.fingerprint());
        line("config_file", path(&self.file));
        line("clients", self.clients.to_string());
        line("memory", show_size(self.memory));
        line("user", text(&self.user));
        line("group", text(&self.group));
        line("daemon", self.daemon.to_string());
        line("pid_file", path(&self.pid_file));
        line(
            "log",
            match &self.log {
                LogTarget::Stderr => "stderr".to_string(),
                LogTarget::Syslog => "syslog".to_string(),
                LogTarget::File(path) => path.display().to_string(),
            },
        );
        line("memcached_stats", self.memcached_stats.to_string());
        line("admin", listed(self.admin.iter().map(ListenSpec::place)));
        let twemproxy = self.twemproxy_stats.iter().map(ListenSpec::place);
        line("twemproxy_stats", listed(twemproxy));
        line("retry_max", self.retry_max.as_millis().to_string());
        line("probe", self.probe.as_millis().to_string());
        line("resolve", self.resolve.as_secs().to_string());
        line("refill", show_size(self.refill));
        line("slow", self.slow.as_millis().to_string());
        line("reuseport", self.reuseport.to_string());
        line("alone", self.alone.to_string());
        for pool in &self.pools {
            for (key, value) in pool_lines(pool) {
                line(&format!("{}:{key}", pool.name), value);
            }
        }
        lines
    }

    /// A number, in 16 hex digits, that two magents with equal limits and pools have in common:
    /// FNV-1a (64 bits) of these settings as text. Names count, not the addresses they resolved
    /// to; where it logs and as whom it runs does not count.
    pub fn fingerprint(&self) -> String {
        let mut text = format!(
            "clients {}\nmemory {}\nmemcached_stats {}\nretry_max {}\nprobe {}\n\
             resolve {}\nrefill {}\n",
            self.clients,
            self.memory,
            self.memcached_stats,
            self.retry_max.as_millis(),
            self.probe.as_millis(),
            self.resolve.as_secs(),
            self.refill
        );
        for pool in &self.pools {
            for (key, value) in pool_lines(pool) {
                text.push_str(&format!("{}:{key} {value}\n", pool.name));
            }
        }
        let step = |h: u64, b: u8| (h ^ b as u64).wrapping_mul(0x0100_0000_01b3);
        let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325, step);
        format!("{hash:016x}")
    }

    /// Where clients come in and where keys go, as text: a program that takes over must mean the same.
    pub fn places(&self) -> String {
        const PLACES: [&str; 6] = [
            "listen",
            "hash",
            "distribution",
            "hash_tag",
            "servers",
            "backups",
        ];
        let mut text = String::new();
        for pool in &self.pools {
            let lines = pool_lines(pool).into_iter();
            for (key, value) in lines.filter(|(key, _)| PLACES.contains(key)) {
                text.push_str(&format!("{}:{key} {value}\n", pool.name));
            }
        }
        text
    }

    /// The host names of servers that are not known now; one line each. Waits for name service.
    pub fn unknown_hosts(&self) -> Vec<String> {
        let mut seen = HashSet::new();
        let mut lines = Vec::new();
        for pool in &self.pools {
            for server in pool.primaries.iter().chain(&pool.backups) {
                let Endpoint::Name(host, _) = &server.endpoint else {
                    continue;
                };
                if !seen.insert(host) {
                    continue;
                }
                if let Err(e) = look_up(host) {
                    lines.push(format!("pool {}: {host}: unknown host: {e}", pool.name));
                }
            }
        }
        lines
    }
}

fn none() -> String {
    "none".to_string()
}

/// The settings of a pool under the file's keys; what only options name stands under the
/// option's name.
fn pool_lines(pool: &PoolConfig) -> Vec<(&'static str, String)> {
    let ms = |d: std::time::Duration| d.as_millis().to_string();
    let listen = pool.listen.iter().map(ListenSpec::written);
    let tag = pool.hash_tag.map_or_else(none, |(open, close)| {
        format!("{}{}", open.escape_ascii(), close.escape_ascii())
    });
    let backlog = pool.listen.first().map_or(0, |l| l.backlog);
    vec![
        ("listen", listed(listen)),
        ("hash", pool.hash.name().to_string()),
        ("distribution", pool.distribution.name().to_string()),
        ("hash_tag", tag),
        ("servers", listed(server_list(&pool.primaries))),
        ("backups", listed(server_list(&pool.backups))),
        ("timeout", ms(pool.timeout)),
        ("connect_timeout", ms(pool.connect_timeout)),
        ("backlog", backlog.to_string()),
        ("preconnect", pool.preconnect.to_string()),
        ("tcpkeepalive", pool.keepalive.to_string()),
        ("server_connections", pool.connections.to_string()),
        (
            "client_connections",
            pool.clients.map_or_else(none, |n| n.to_string()),
        ),
        ("auto_eject_hosts", pool.auto_eject.to_string()),
        ("server_failure_limit", pool.failure_limit.to_string()),
        ("server_retry_timeout", ms(pool.retry)),
        ("warm", pool.warm.as_secs().to_string()),
        ("journal", show_size(pool.journal)),
        ("max_value", show_size(pool.max_value)),
        (
            "idle_timeout",
            pool.idle_timeout.map_or(0, |d| d.as_secs()).to_string(),
        ),
        ("flush_all", pool.flush_all.to_string()),
    ]
}

/// Servers as the file writes them, each with the name that is hashed.
pub(super) fn server_list(servers: &[ServerSpec]) -> impl Iterator<Item = String> {
    let one = |s: &ServerSpec| format!("{}:{} {}", s.name, s.weight, s.hash_name);
    servers.iter().map(one)
}

/// All in one line.
fn listed(all: impl Iterator<Item = String>) -> String {
    let all: Vec<String> = all.collect();
    match all.is_empty() {
        true => none(),
        false => all.join(", "),
    }
}
