//! What magent answers itself: `version`, `verbosity`, `quit` and every `stats`.

use super::Proxy;
use super::memcached::PROTOCOL;
use crate::clients::{write_line, write_stats, write_success};
use crate::net::Socket;
use crate::pools::{Lines, Names, Totals, line};
use crate::protocol::{Format, Local, Verb, binary};
use crate::work::{REPORT, REPORT_LINES, Work};

const VERSION_LINE: &str = "VERSION 1.6.18\r\n";

/// memcached's slab classes are numbered up to this, in any version.
const SLAB_CLASSES: u32 = 64;

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
                self.clients.count_flush(key);
                let pool = self.clients.pool_of(key);
                let ticket = self.clients.owe_alone(key, format, Verb::FlushAll);
                if let (Some(pool), Some(ticket)) = (pool, ticket) {
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
            (None, _) => {
                let names = Totals::Names(self.memcached_stats(pool));
                return self.ask_primaries(key, format, "stats", names);
            }
            (Some(what @ ("items" | "slabs" | "sizes")), _) => {
                let names = Totals::Names(Names::default());
                return self.ask_primaries(key, format, &format!("stats {what}"), names);
            }
            (Some("cachedump"), class) if !is_binary => {
                return self.stats_cachedump(key, format, class, words.next());
            }
            // Lists of connections do not add up, and nobody has the other.
            (Some("conns" | "extstore"), _) if !is_binary => Lines::new(),
            (Some("proxy"), None) => self.stats_proxy(),
            (Some("servers"), None) => self.pools.stats_servers(pool),
            (Some("settings"), None) => self.stats_settings(pool),
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
        self.clients
            .say(key, format, |out, format| write_stats(format, lines, out));
    }

    /// Keys of one slab class. What is malformed is answered as memcached does.
    fn stats_cachedump(
        &mut self,
        key: usize,
        format: Format,
        class: Option<&str>,
        most: Option<&str>,
    ) {
        let number = |word: &str| word.parse::<u32>().ok();
        let why: &[u8] = match (class, most) {
            (Some(class), Some(most)) => match (number(class), number(most)) {
                (Some(class), Some(most)) if class < SLAB_CLASSES => {
                    let line = format!("stats cachedump {class} {most}");
                    let keys = Totals::keys(most);
                    return self.ask_primaries(key, format, &line, keys);
                }
                (Some(_), Some(_)) => b"CLIENT_ERROR Illegal slab id",
                _ => b"CLIENT_ERROR bad command line format",
            },
            _ => b"CLIENT_ERROR bad command line",
        };
        self.clients
            .say(key, format, |out, format| write_line(format, why, out));
    }

    /// What the primaries of the client's pool say to `line`, merged, is the answer.
    fn ask_primaries(&mut self, key: usize, format: Format, line: &str, totals: Totals) {
        let pool = self.clients.pool_of(key);
        let ticket = self.clients.owe_alone(key, format, Verb::Stats);
        if let (Some(pool), Some(ticket)) = (pool, ticket) {
            let line = format!("{line}\r\n");
            self.pools
                .ask_primaries(ticket, pool, line.as_bytes(), totals, &mut self.clients);
        }
    }

    fn reset_stats(&mut self) {
        self.counters = Default::default();
        self.clients.reset_counters();
        self.pools.reset_stats();
        self.turns.reset();
        self.reset_at = self.now;
    }

    fn stats_proxy(&self) -> Lines {
        let mut lines = self.process_lines();
        lines.extend([
            line("magent_version", env!("CARGO_PKG_VERSION")),
            line("max_connections", self.config.clients),
            line("curr_connections", self.clients.count()),
            line("bytes_in_flight", self.budget.total()),
            line("limit_maxbytes", self.budget.limit()),
            line("log_lines_lost", crate::logger::lost()),
        ]);
        let mut clients = self.clients.counters.clone();
        // Calls are counted by either half.
        clients.reads += self.pools.counters.reads;
        clients.writes += self.pools.counters.writes;
        let mut put = |name: &'static str, value: u64| lines.push(line(name, value));
        self.clients.all_counts().each(&mut put);
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

    fn stats_settings(&self, pool: usize) -> Lines {
        let mut lines = self.config.summary();
        lines.extend(self.memcached_settings(pool));
        if let Some((at, result)) = &self.last_reload {
            lines.push(line("last_reload", at));
            lines.push(line("last_reload_result", result));
        }
        lines
    }
}
