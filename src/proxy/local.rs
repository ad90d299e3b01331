//! What magent answers itself: `version`, `verbosity`, `quit` and every `stats`.

use super::Proxy;
use crate::clients::write_success;
use crate::net::Socket;
use crate::pools::{Lines, line};
use crate::protocol::{Format, Local, Traits, Verb, binary};
use crate::sys;
use crate::time::SECOND;
use crate::work::{REPORT, REPORT_LINES, Work};

/// The protocol level that magent speaks, for clients that choose features by it.
const PROTOCOL: &str = "1.6.18";

const VERSION_LINE: &str = "VERSION 1.6.18\r\n";

impl<S: Socket> Proxy<S> {
    /// Answers a request that no server is asked for.
    pub(super) fn local(&mut self, key: usize, what: Local, format: Format, work: &mut Work) {
        match what {
            Local::Version => self.say(key, format, VERSION_LINE.as_bytes(), PROTOCOL.as_bytes()),
            // It changes nothing: what is logged is the operator's decision.
            Local::Verbosity => self.say(key, format, b"OK\r\n", b""),
            Local::Stats(arguments) => {
                work.count(REPORT);
                self.stats(key, format, &arguments, work);
            }
            Local::FlushAll(delay) => {
                self.clients.counters.cmd_flush += 1;
                let pool = self.clients.pool_of(key);
                let ticket = self
                    .clients
                    .owe(key, format, Verb::FlushAll, Traits::default(), 0);
                if let (Some(pool), Some(ticket)) = (pool, ticket) {
                    self.clients.hold_order(key);
                    self.pools.flush_all(ticket, pool, delay, &mut self.clients);
                }
            }
            Local::Quit => {
                if let Format::Binary(_) = format {
                    self.say(key, format, b"", b"");
                }
                self.clients.close(key);
            }
        }
    }

    fn say(&mut self, key: usize, format: Format, text: &[u8], body: &[u8]) {
        self.clients.say(key, format, |out, format| {
            write_success(format, text, body, out);
        });
    }

    fn stats(&mut self, key: usize, format: Format, arguments: &[u8], work: &mut Work) {
        let arguments = String::from_utf8_lossy(arguments).into_owned();
        let mut words = arguments.split(' ').filter(|w| !w.is_empty());
        let pool = self.clients.pool_of(key).unwrap_or(0);
        let is_binary = matches!(format, Format::Binary(_));
        let lines = match (words.next(), words.next()) {
            (None, _) if matches!(format, Format::Text) && !self.config.memcached_stats => {
                let text = self.pools.matrix(pool);
                return self.say(key, format, text.as_bytes(), b"");
            }
            (None, _) | (Some("proxy"), None) => self.stats_proxy(),
            (Some("servers"), None) => self.pools.stats_servers(pool),
            (Some("settings"), None) => self.stats_settings(),
            (Some("pools"), None) => self.pools.stats_pools(&self.clients),
            (Some("route"), Some(name)) => self.pools.stats_route(pool, name.as_bytes()),
            (Some("route"), None) if !is_binary => {
                let usage = b"CLIENT_ERROR usage: stats route KEY\r\n";
                return self.say(key, format, usage, b"");
            }
            (Some("detail"), Some("on" | "off")) if is_binary => Lines::new(),
            (Some("detail"), Some("on" | "off")) => return self.say(key, format, b"OK\r\n", b""),
            (Some("detail"), Some("dump")) if is_binary => {
                vec![line("detailed", "END\r\n")]
            }
            (Some("detail"), Some("dump")) => return self.say(key, format, b"END\r\n", b""),
            (Some("detail"), _) if !is_binary => {
                let usage = b"CLIENT_ERROR usage: stats detail on|off|dump\r\n";
                return self.say(key, format, usage, b"");
            }
            (Some("reset"), _) => {
                self.reset_stats();
                match format {
                    Format::Binary(_) => Lines::new(),
                    _ => return self.say(key, format, b"RESET\r\n", b""),
                }
            }
            _ => {
                return self.clients.say(key, format, |out, format| match format {
                    Format::Binary(d) => binary::stat_unknown(&d, out),
                    _ => out.push_slice(b"ERROR\r\n"),
                });
            }
        };
        work.count(lines.len() / REPORT_LINES);
        self.answer_stats(key, format, &lines);
    }

    fn answer_stats(&mut self, key: usize, format: Format, lines: &Lines) {
        self.clients.say(key, format, |out, format| {
            if let Format::Binary(d) = format {
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
        self.counters = Default::default();
        self.clients.counters = Default::default();
        self.pools.reset_stats();
        self.turns.reset();
        self.reset_at = self.now;
    }

    fn stats_proxy(&self) -> Lines {
        let (user, system) = sys::cpu_time();
        let mut lines = vec![
            line("pid", std::process::id()),
            line("uptime", self.now.0 / SECOND),
            line("time", self.unix),
            line("version", PROTOCOL),
            line("magent_version", env!("CARGO_PKG_VERSION")),
            line("pointer_size", usize::BITS),
            line("rusage_user", format!("{:.6}", user.as_secs_f64())),
            line("rusage_system", format!("{:.6}", system.as_secs_f64())),
            line("max_connections", self.config.clients),
            line("curr_connections", self.clients.count()),
            line("threads", 1),
            line("bytes_in_flight", self.budget.total()),
            line("limit_maxbytes", self.budget.limit()),
            line("log_lines_lost", crate::logger::lost()),
        ];
        let mut clients = self.clients.counters.clone();
        clients.get_misses = clients.cmd_get.saturating_sub(clients.get_hits);
        // Calls are counted by either half.
        clients.reads += self.pools.counters.reads;
        clients.writes += self.pools.counters.writes;
        let mut put = |name: &'static str, value: u64| lines.push(line(name, value));
        clients.each(&mut put);
        self.counters.each(&mut put);
        self.turns
            .report()
            .for_each(|(name, value)| put(name, value));
        self.pools.counters.each(|name, value| {
            if !matches!(name, "reads" | "writes") {
                put(name, value);
            }
        });
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
}
