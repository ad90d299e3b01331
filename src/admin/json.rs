//! The same as `metrics`, as JSON.

use super::lists::shown;
use crate::proxy::{Lines, Live, PoolFigures, ServerFigures, Snapshot};
use crate::stats::{Command, Histogram, STEP, Sample};
use std::fmt::{Display, Write as _};

/// Writes piece `at`. False if that was the last.
pub fn write(snapshot: &Snapshot, at: usize, out: &mut String) -> bool {
    let (pools, servers) = (snapshot.pools.len(), snapshot.servers.len());
    match at {
        0 => {
            out.push_str("{\"magent\":");
            process(snapshot, out);
            out.push_str(",\"pools\":[");
        }
        _ if at <= pools => {
            out.push_str(if at > 1 { "," } else { "" });
            let live = snapshot.live.as_ref();
            let history = live.and_then(|l| l.history.get(at - 1));
            pool(&snapshot.pools[at - 1], snapshot, history, out);
        }
        _ if at == pools + 1 => out.push_str("],\"servers\":["),
        _ if at <= pools + 1 + servers => {
            let number = at - pools - 2;
            out.push_str(if number > 0 { "," } else { "" });
            server(&snapshot.servers[number], out);
        }
        _ => {
            out.push(']');
            if let Some(live) = &snapshot.live {
                out.push(',');
                what_is_live(live, out);
            }
            out.push_str("}\n");
        }
    }
    at <= pools + 1 + servers
}

/// An object that is being written.
struct Object<'a> {
    out: &'a mut String,
    is_empty: bool,
}

impl Object<'_> {
    fn new(out: &mut String) -> Object<'_> {
        out.push('{');
        Object {
            out,
            is_empty: true,
        }
    }

    fn name(&mut self, name: &str) -> &mut String {
        if !std::mem::take(&mut self.is_empty) {
            self.out.push(',');
        }
        string(name, self.out);
        self.out.push(':');
        self.out
    }

    fn number(&mut self, name: &str, value: impl Display) {
        let _ = write!(self.name(name), "{value}");
    }

    fn text(&mut self, name: &str, value: &str) {
        string(value, self.name(name));
    }

    fn end(self) {
        self.out.push('}');
    }
}

/// A text, with its quotes.
pub fn string(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => drop(write!(out, "\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
}

fn process(snapshot: &Snapshot, out: &mut String) {
    let p = &snapshot.process;
    let mut all = Object::new(out);
    all.text("version", env!("CARGO_PKG_VERSION"));
    all.text("host", &p.host);
    all.number("pid", p.pid);
    all.number("time", p.time);
    all.number("uptime", p.uptime);
    all.text("configuration", &p.configuration);
    all.number("cpu_user_seconds", p.cpu.0.as_secs_f64());
    all.number("cpu_system_seconds", p.cpu.1.as_secs_f64());
    if let Some(bytes) = p.resident {
        all.number("resident_memory_bytes", bytes);
    }
    all.number("curr_connections", p.clients.0);
    all.number("max_connections", p.clients.1);
    all.number("bytes_in_flight", p.memory.0);
    all.number("limit_maxbytes", p.memory.1);
    all.number("log_lines_lost", p.log_lines_lost);
    if let Some((at, is_good)) = p.last_reload {
        all.number("last_reload", at);
        all.number("last_reload_successful", is_good);
    }
    all.number("longest_turn_us", p.turns.longest / 1000);
    let mut put = |name: &str, value: u64| all.number(name, value);
    p.loop_counters.each(&mut put);
    p.call_counters.each(&mut put);
    p.client_counters.each(&mut put);
    p.pool_counters.each(&mut put);
    all.end();
}

/// One of a sample's numbers.
type Series = fn(&Sample) -> u64;

fn pool(p: &PoolFigures, all: &Snapshot, history: Option<&Vec<Sample>>, out: &mut String) {
    let servers = &all.servers;
    let mut all = Object::new(out);
    all.text("name", &p.name);
    all.number("curr_connections", p.clients.0);
    all.number("max_connections", p.clients.1);
    array(all.name("members"), &p.members, |m, out| {
        string(&servers[m.server].name, out)
    });
    all.number("primaries", p.primaries.0);
    all.number("primaries_up", p.primaries.1);
    all.number("backups", p.backups.0);
    all.number("backups_up", p.backups.1);
    if let Some(progress) = &p.moving {
        all.text("moving", progress);
    }
    p.commands.each(|name, value| all.number(name, value));
    latency(&mut all, &p.latency, &p.recent);
    if let Some(samples) = history {
        let mut series = Object::new(all.name("history"));
        let each: [(&str, Series); 6] = [
            ("answers", |s| s.answers),
            ("hits", |s| s.hits),
            ("misses", |s| s.misses),
            ("errors", |s| s.errors),
            ("p50_us", |s| s.p50),
            ("p99_us", |s| s.p99),
        ];
        for (name, number) in each {
            array(series.name(name), samples, |s, out| {
                let _ = write!(out, "{}", number(s));
            });
        }
        series.end();
    }
    all.end();
}

/// Behind pools and servers.
fn what_is_live(live: &Live, out: &mut String) {
    let mut all = Object {
        out,
        is_empty: true,
    };
    array(all.name("unanswered"), &live.unanswered, |why, out| {
        string(why, out)
    });
    all.number("history_step", STEP);
    all.number("history_end", live.history_end);
    array(all.name("hot"), &live.hot, |(pool, key), out| {
        let mut one = Object::new(out);
        one.text("pool", pool);
        one.text("key", &shown(&key.key));
        one.number("per_second", key.per_second);
        one.number("share", key.share);
        one.end();
    });
    array(all.name("log"), &live.log, |line, out| {
        let mut one = Object::new(out);
        one.number("at", line.at);
        one.text("level", line.level);
        one.text("text", &line.text);
        one.end();
    });
}

fn array<T>(out: &mut String, all: &[T], write: impl Fn(&T, &mut String)) {
    out.push('[');
    for (number, one) in all.iter().enumerate() {
        out.push_str(if number > 0 { "," } else { "" });
        write(one, out);
    }
    out.push(']');
}

/// Where a key goes, in each pool.
pub fn routes(routes: &[Lines], out: &mut String) {
    array(out, routes, |lines, out| {
        let mut one = Object::new(out);
        lines.iter().for_each(|(name, value)| one.text(name, value));
        one.end();
    });
    out.push('\n');
}

fn server(s: &ServerFigures, out: &mut String) {
    let mut all = Object::new(out);
    all.text("name", &s.name);
    all.text("address", &s.address);
    all.text("role", s.role);
    all.text("state", s.state);
    all.number("drained", s.is_drained);
    all.number("since", s.since);
    if let Some((at, why)) = s.last_error {
        all.text("last_error", why);
        all.number("last_error_time", at);
    }
    array(all.name("other_magents"), &s.others, |name, out| {
        string(name, out)
    });
    array(all.name("outages"), &s.outages, |(from, to, why), out| {
        let mut one = Object::new(out);
        one.number("from", from);
        if let Some(to) = to {
            one.number("to", to);
        }
        one.text("why", why);
        one.end();
    });
    for (name, value) in s.numbers() {
        all.number(name, value);
    }
    let mut requests = Object::new(all.name("requests_by_command"));
    for command in Command::ALL {
        requests.number(command.name(), s.stats.requests.of(command));
    }
    requests.end();
    let mut refill = Object::new(all.name("refill"));
    refill.text("state", s.refill.state);
    refill.number("metadump", s.refill.lists_keys);
    for (name, value) in s.refill.numbers() {
        refill.number(name, value);
    }
    refill.end();
    if let Some(compared) = &s.verify {
        let mut verify = Object::new(all.name("verify"));
        verify.text("state", compared.state);
        for (name, value) in compared.numbers() {
            verify.number(name, value);
        }
        verify.end();
    }
    latency(&mut all, &s.latency, &s.recent);
    all.end();
}

fn latency(all: &mut Object<'_>, total: &Histogram, recent: &Histogram) {
    for (name, times) in [("latency", total), ("latency_10s", recent)] {
        let mut one = Object::new(all.name(name));
        one.number("count", times.count());
        for (name, value) in times.summary() {
            one.number(&format!("{name}_us"), value);
        }
        one.end();
    }
}
