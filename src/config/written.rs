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
            let _ = write!(all, " {option} {}", for_shell(&value));
        };
        let path = |p: &PathBuf| p.display().to_string();
        let ms = |d: std::time::Duration| d.as_millis().to_string();
        one("--timeout", ms(self.template.timeout));
        one("--connect-timeout", ms(self.template.connect_timeout));
        one("--retry-max", ms(self.retry_max));
        one("--probe", ms(self.probe));
        one("--resolve", self.resolve.as_secs().to_string());
        one("--refill", show_size(self.refill));
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
            // Bytes: of some characters both.
            key("hash_tag", quoted(&String::from_utf8_lossy(&[open, close])));
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

/// A word as a shell reads it, in quotes unless it is a plain one.
fn for_shell(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-./:@%+=,[]".contains(c);
    match word.chars().all(is_plain) {
        true => word.to_string(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Action, OPTIONS, file};
    use super::*;
    use std::ffi::OsString;
    use std::path::Path;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn read(line: &str) -> Config {
        let args: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        match Config::from_args(&args) {
            Ok(Action::Run(config)) => config,
            other => panic!("{line}: {other:?}"),
        }
    }

    /// Writes a configuration and reads that; both mean the same.
    fn round_trip(first: &Config) {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let (text, n) = (first.as_file(), NEXT.fetch_add(1, Ordering::Relaxed));
        let name = format!("magent-written-{}-{n}.yml", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, &text).expect("a file");
        let head = text.lines().next().expect("a line");
        let options = head.strip_prefix("# magent -c FILE").expect("options");
        let again = read(&format!("-D -c {}{options}", path.display()));
        std::fs::remove_file(&path).expect("removed");
        let pools = |c: &Config| {
            let mut pools = c.pools.clone();
            // Only a socket's file has a mode.
            let listen = pools.iter_mut().flat_map(|p| &mut p.listen);
            let tcp = listen.filter(|l| l.is_tcp());
            tcp.for_each(|l| l.mode = ListenSpec::MODE);
            pools
        };
        assert_eq!(pools(&again), pools(first), "{text}");
        let said = |c: &Config| {
            let all = c.summary().into_iter();
            let own = ["config_file", "daemon", "log"];
            all.filter(|(name, _)| !own.contains(&&name[..]))
                .collect::<Vec<_>>()
        };
        assert_eq!(said(&again), said(first), "{text}");
    }

    /// Every option that has a value in force beside a file, with another one than its default.
    #[test]
    fn what_options_say_is_written() {
        let line = "-n 77 -m 12m -i 3 -I 64k -u nobody -g nogroup -P /a.pid -L /a.log -F \
            --timeout 501 --connect-timeout 1502 --failure-limit 9 --retry 503 --retry-max 506 \
            --probe 507 --resolve 508 --refill 3m --warm 504 --journal 5m --idle-timeout 505 \
            --slow 509 --reuseport --alone --memcached-stats --admin /a.sock --admin 127.0.0.1:3 \
            --twemproxy-stats 127.0.0.1:4 --hash crc32 --distribution ketama --hash-tag {} \
            -l 127.0.0.1 -l ::1 -p 4000 -f /s.sock -a 0707";
        let farm = "-D -s 127.0.0.1:1:2 -s /x.sock:4 -b [::1]:3";
        round_trip(&read(&format!("{farm} {line}")));
        let only_said_otherwise = [
            "-h",
            "-V",
            "-s",
            "-b",
            "-k",
            "-D",
            "-v",
            "-c",
            "-t",
            "--auto-eject",
        ];
        for option in OPTIONS.iter().map(|o| o.name) {
            let is_there = line.split_whitespace().any(|word| word == option);
            assert!(
                is_there || only_said_otherwise.contains(&option),
                "{option}"
            );
        }
        round_trip(&read("-D -s 127.0.0.1:1"));
        round_trip(&read(
            "-D -s 127.0.0.1:1 -s 127.0.0.1:2 --auto-eject -k --hash-tag é",
        ));
        // A timeout of a file bounds the connect, one of an option does not.
        round_trip(&read(
            "-D -s 127.0.0.1:1 --timeout 100 --connect-timeout 2000",
        ));
    }

    /// Every key of a file, with another value than its default, beside pools that say less.
    #[test]
    fn what_a_file_says_is_written() {
        let full = "listen:\n  - 127.0.0.1:1\n  - \"/a b.sock 0707\"\n  hash: murmur\n  distribution: modula\n  \
            hash_tag: \"\\\"\\\\\"\n  servers:\n  - 127.0.0.1:11211:1\n  - 127.0.0.1:2:3 a:name\n  - /s.sock:4 b\n  \
            backups:\n  - \"[::1]:5:1\"\n  timeout: 400\n  backlog: 99\n  preconnect: true\n  tcpkeepalive: true\n  \
            server_connections: 3\n  client_connections: 44\n  auto_eject_hosts: false\n  server_failure_limit: 5\n  \
            server_retry_timeout: 606\n  warm: 77\n  journal: 3m\n  max_value: 64k\n  idle_timeout: 88\n  flush_all: false";
        for key in super::super::KEYS
            .iter()
            .filter(|k| !k.name.starts_with("redis"))
        {
            assert!(full.contains(&format!("{}:", key.name)), "{}", key.name);
        }
        let text = format!(
            "alpha:\n  {full}\n\
             \"odd \\\"name\\\": é\":\n  listen: 127.0.0.1:3\n  auto_eject_hosts: true\n  servers:\n  - 127.0.0.1:11211:1\n\
             plain:\n  listen: 127.0.0.1:4\n  distribution: random\n  timeout: 1000\n  servers:\n  - 127.0.0.1:6:1\n  - 127.0.0.1:7:1\n\
             quick:\n  listen: 127.0.0.1:5\n  timeout: 5000\n  client_connections: 0\n  servers:\n  - 127.0.0.1:11211:1\n"
        );
        for options in [
            "",
            "--timeout 300 --connect-timeout 700 --retry 5 --failure-limit 2 --refill 0",
        ] {
            let mut config = read(&format!("-D -s 127.0.0.1:1 {options}"));
            let pools = file::parse(text.as_bytes(), "x", &config.template, config.memory);
            config.pools = pools.unwrap_or_else(|e| panic!("{e:?}"));
            config.file = Some(Path::new("x").to_path_buf());
            round_trip(&config);
        }
    }

    #[test]
    fn words_are_quoted_for_a_shell() {
        for (word, shown) in [
            ("/a.sock", "/a.sock"),
            ("[::1]:2", "[::1]:2"),
            ("/a b", "'/a b'"),
            ("it's", "'it'\\''s'"),
        ] {
            assert_eq!(for_shell(word), shown);
        }
    }
}
