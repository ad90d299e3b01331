//! The configuration in force as a file that `-c` reads, with the options that belong beside it.

use super::report::server_list;
use super::values::show_size;
use super::{Config, ListenSpec, LogTarget, PoolConfig, ServerSpec};
use std::fmt::Write as _;
use std::path::PathBuf;

impl Config {
    /// The pools as a file. What only options can say stands in a comment at its head, as it would be
    /// typed.
    pub fn as_file(&self) -> String {
        let mut text = format!("# magent -c FILE{}\n", self.options());
        for pool in &self.pools {
            let _ = write!(text, "{}:\n{}", quoted(&pool.name), self.keys(pool));
        }
        text
    }

    fn options(&self) -> String {
        let mut all = format!(" -n {} -m {}", self.clients, show_size(self.memory));
        let mut one = |option: &str, value: String| {
            let _ = write!(all, " {option} {value}");
        };
        let path = |p: &PathBuf| p.display().to_string();
        let ms = |d: std::time::Duration| d.as_millis().to_string();
        one("--timeout", ms(self.template.timeout));
        one("--connect-timeout", ms(self.template.connect_timeout));
        one("--retry-max", ms(self.retry_max));
        one("--probe", ms(self.probe));
        one("--resolve", self.resolve.as_secs().to_string());
        one("--slow", ms(self.slow));
        for door in &self.admin {
            one("--admin", door.place());
        }
        if let Some(listener) = &self.twemproxy_stats {
            one("--twemproxy-stats", listener.place());
        }
        let log = match &self.log {
            LogTarget::File(file) => Some(path(file)),
            LogTarget::Stderr | LogTarget::Syslog => None,
        };
        let others = [
            ("-u", self.user.clone()),
            ("-g", self.group.clone()),
            ("-P", self.pid_file.as_ref().map(path)),
            ("-L", log),
        ];
        for (option, value) in others {
            value.into_iter().for_each(|value| one(option, value));
        }
        let switches = [
            ("--reuseport", self.reuseport),
            ("--alone", self.alone),
            ("--memcached-stats", self.memcached_stats),
        ];
        let on = switches.into_iter().filter(|(_, is_on)| *is_on);
        on.for_each(|(option, _)| all += &format!(" {option}"));
        all
    }

    fn keys(&self, pool: &PoolConfig) -> String {
        let mut text = String::new();
        let mut key = |name: &str, value: String| {
            // Lists stand below their key.
            let gap = if value.starts_with('\n') { "" } else { " " };
            let _ = writeln!(text, "  {name}:{gap}{value}");
        };
        let item = |text: String| format!("\n    - {}", quoted(&text));
        let servers = |all: &[ServerSpec]| server_list(all).map(item).collect();
        let listen = pool.listen.iter().map(ListenSpec::written);
        key("listen", listen.map(item).collect());
        key("hash", pool.hash.name().into());
        key("distribution", pool.distribution.name().into());
        if let Some((open, close)) = pool.hash_tag {
            let tag: String = [open, close].map(char::from).iter().collect();
            key("hash_tag", quoted(&tag));
        }
        key("servers", servers(&pool.primaries));
        if !pool.backups.is_empty() {
            key("backups", servers(&pool.backups));
        }
        // In a file it bounds the connect as well; as an option it does not.
        let is_option = pool.timeout == self.template.timeout
            && pool.connect_timeout == self.template.connect_timeout;
        if !is_option {
            key("timeout", pool.timeout.as_millis().to_string());
        }
        let backlog = pool.listen.first().map_or(0, |l| l.backlog);
        let idle = pool.idle_timeout.map_or(0, |d| d.as_secs());
        for (name, value) in [
            ("backlog", backlog.to_string()),
            ("preconnect", pool.preconnect.to_string()),
            ("tcpkeepalive", pool.keepalive.to_string()),
            ("server_connections", pool.connections.to_string()),
            ("client_connections", pool.clients.unwrap_or(0).to_string()),
            ("auto_eject_hosts", pool.auto_eject.to_string()),
            ("server_failure_limit", pool.failure_limit.to_string()),
            ("server_retry_timeout", pool.retry.as_millis().to_string()),
            ("warm", pool.warm.as_secs().to_string()),
            ("journal", show_size(pool.journal)),
            ("max_value", show_size(pool.max_value)),
            ("idle_timeout", idle.to_string()),
            ("flush_all", pool.flush_all.to_string()),
        ] {
            key(name, value);
        }
        text
    }
}

/// A scalar as the file reads it, in quotes unless it is a plain word.
fn quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-./:".contains(c);
    let starts_well = text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/');
    if starts_well && !text.ends_with(':') && text.chars().all(is_plain) {
        return text.to_string();
    }
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}
