//! The same as `metrics`, as JSON.

use crate::proxy::{PoolFigures, ServerFigures, Snapshot};
use crate::stats::{Command, Histogram};
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
            pool(&snapshot.pools[at - 1], out);
        }
        _ if at == pools + 1 => out.push_str("],\"servers\":["),
        _ if at <= pools + 1 + servers => {
            let number = at - pools - 2;
            out.push_str(if number > 0 { "," } else { "" });
            server(&snapshot.servers[number], out);
        }
        _ => out.push_str("]}\n"),
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

fn pool(p: &PoolFigures, out: &mut String) {
    let mut all = Object::new(out);
    all.text("name", &p.name);
    all.number("curr_connections", p.clients.0);
    all.number("max_connections", p.clients.1);
    all.number("primaries", p.primaries.0);
    all.number("primaries_up", p.primaries.1);
    all.number("backups", p.backups.0);
    all.number("backups_up", p.backups.1);
    p.commands.each(|name, value| all.number(name, value));
    latency(&mut all, &p.latency, &p.recent);
    all.end();
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
