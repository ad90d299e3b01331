//! Every `stats`, whoever asks: a client, of its pool, or an operator, of all pools.

use super::Proxy;
use crate::logger;
use crate::net::Socket;
use crate::pools::{Lines, Names, Totals, line};
use crate::stats::CallCounters;
use std::borrow::Cow;

/// memcached's slab classes are numbered up to this, in any version.
const SLAB_CLASSES: u32 = 64;

/// The answer to a `stats`, or how it is got.
pub enum Told {
    /// Names and values.
    Lines(Lines),
    /// Lines as they stand.
    Text(String),
    /// An error, without its line end.
    Refused(Cow<'static, str>),
    /// The primaries are to be asked this line, without its end, and their answers merged.
    Primaries(String, Totals),
    /// There is no `stats` of that name.
    Unknown,
}

impl<S: Socket> Proxy<S> {
    /// `stats` with these arguments, of one pool or of all.
    pub(super) fn tell_stats(
        &mut self,
        pool: Option<usize>,
        arguments: &str,
        is_binary: bool,
    ) -> Told {
        let mut words = arguments.split(' ').filter(|w| !w.is_empty());
        let (Some(what), next) = (words.next(), words.next()) else {
            return match is_binary || self.config.memcached_stats {
                true => Told::Primaries("stats".into(), Totals::Names(self.memcached_stats(pool))),
                false => Told::Text(self.pools.matrix(pool)),
            };
        };
        match (what, next) {
            ("items" | "slabs" | "sizes", _) => {
                Told::Primaries(format!("stats {what}"), Totals::Names(Names::default()))
            }
            ("cachedump", class) if !is_binary => cachedump(class, words.next()),
            // Lists of connections do not add up, and nobody has the other.
            ("conns" | "extstore", _) if !is_binary => Told::Lines(Lines::new()),
            ("proxy", None) => Told::Lines(self.stats_proxy()),
            ("servers", None) => Told::Lines(self.pools.stats_servers(pool)),
            ("settings", None) => Told::Lines(self.stats_settings(pool)),
            ("pools", None) => Told::Lines(self.pools.stats_pools(&self.clients)),
            ("route", Some(key)) => Told::Lines(self.pools.stats_route(pool, key.as_bytes())),
            ("route", None) if !is_binary => {
                Told::Refused("CLIENT_ERROR usage: stats route KEY".into())
            }
            ("verify", Some(name)) => match self.pools.stats_verify(pool, name) {
                Ok(lines) => Told::Lines(lines),
                Err(why) => Told::Refused(format!("CLIENT_ERROR {why}").into()),
            },
            ("verify", None) if !is_binary => {
                Told::Refused("CLIENT_ERROR usage: stats verify NAME".into())
            }
            ("detail", what) => detail(what, is_binary),
            ("reset", _) => {
                self.reset_stats();
                match is_binary {
                    true => Told::Lines(Lines::new()),
                    false => Told::Text("RESET\r\n".into()),
                }
            }
            _ => Told::Unknown,
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
            line("log_lines_lost", logger::lost()),
        ]);
        let mut put = |name: &'static str, value: u64| lines.push(line(name, value));
        self.clients.all_counts().each(&mut put);
        self.calls().each(&mut put);
        self.clients.counters.each(&mut put);
        self.counters.each(&mut put);
        self.turns
            .report()
            .for_each(|(name, value)| put(name, value));
        self.pools.counters.each(&mut put);
        lines
    }

    /// Calls of both halves.
    pub(super) fn calls(&self) -> CallCounters {
        let mut calls = self.clients.calls.clone();
        calls.add(&self.pools.calls);
        calls
    }

    fn stats_settings(&self, pool: Option<usize>) -> Lines {
        let mut lines = self.config.summary();
        lines.push(line("verbose", logger::verbosity()));
        if let Some(pool) = pool {
            lines.extend(self.memcached_settings(pool));
        }
        if let Some((at, result)) = &self.last_reload {
            lines.push(line("last_reload", at));
            lines.push(line("last_reload_result", result));
        }
        lines
    }
}

/// Keys of one slab class. What is malformed is answered as memcached does.
fn cachedump(class: Option<&str>, most: Option<&str>) -> Told {
    let number = |word: &str| word.parse::<u32>().ok();
    let (Some(class), Some(most)) = (class, most) else {
        return Told::Refused("CLIENT_ERROR bad command line".into());
    };
    match (number(class), number(most)) {
        (Some(class), Some(most)) if class < SLAB_CLASSES => Told::Primaries(
            format!("stats cachedump {class} {most}"),
            Totals::keys(most),
        ),
        (Some(_), Some(_)) => Told::Refused("CLIENT_ERROR Illegal slab id".into()),
        _ => Told::Refused("CLIENT_ERROR bad command line format".into()),
    }
}

/// memcached's counts by prefix of a key, which are empty here.
fn detail(what: Option<&str>, is_binary: bool) -> Told {
    match (what, is_binary) {
        (Some("on" | "off"), true) => Told::Lines(Lines::new()),
        (Some("on" | "off"), false) => Told::Text("OK\r\n".into()),
        (Some("dump"), true) => Told::Lines(vec![line("detailed", "END\r\n")]),
        (Some("dump"), false) => Told::Text("END\r\n".into()),
        (_, true) => Told::Unknown,
        (_, false) => Told::Refused("CLIENT_ERROR usage: stats detail on|off|dump".into()),
    }
}
