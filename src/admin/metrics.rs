//! Metrics as Prometheus reads them, in its own format or in OpenMetrics. Names follow its rules; labels are
//! names of the configuration, so there are no more of them than were configured.

use crate::proxy::{PoolFigures, ProcessFigures, ServerFigures, Snapshot};
use crate::stats::{Command, Histogram};
use std::fmt::{Display, Write as _};

/// Histograms have a bucket for each power of two microseconds from 2^FIRST to 2^LAST: 32 µs to 8.4 s.
const FIRST: usize = 5;
const LAST: usize = 23;

/// What a family is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// Whose samples it has, and how they are written.
enum Of {
    Process(fn(&ProcessFigures, &mut Family<'_>)),
    Pool(fn(&PoolFigures, &mut Family<'_>)),
    Server(fn(&ServerFigures, &mut Family<'_>)),
}

/// One family of metrics: its name (of a counter without `_total`), its kind, its help.
struct Row(&'static str, Kind, &'static str, Of);

use Kind::{Counter, Gauge};
use Of::{Pool, Process, Server};

/// Every family, but for the counters of the process, which are made of the tables in `stats`.
#[rustfmt::skip]
const FAMILIES: &[Row] = &[
    Row("magent_build_info", Gauge, "The version of magent.", Process(|_, f| f.put(&[("version", env!("CARGO_PKG_VERSION"))], 1))),
    Row("magent_configuration_info", Gauge, "A hash of the configuration in force, the same for two magents with the same.", Process(|p, f| f.put(&[("hash", &p.configuration)], 1))),
    Row("process_start_time_seconds", Gauge, "When the process started, since the epoch.", Process(|p, f| f.put(&[], p.time - p.uptime))),
    Row("process_cpu_seconds", Counter, "Processor time of the process.", Process(|p, f| f.put(&[], (p.cpu.0 + p.cpu.1).as_secs_f64()))),
    Row("process_resident_memory_bytes", Gauge, "Memory of the process, as the kernel counts it.", Process(|p, f| p.resident.into_iter().for_each(|n| f.put(&[], n)))),
    Row("magent_clients", Gauge, "Clients that are connected.", Process(|p, f| f.put(&[], p.clients.0))),
    Row("magent_clients_limit", Gauge, "Clients that may be connected (-n).", Process(|p, f| f.put(&[], p.clients.1))),
    Row("magent_memory_in_flight_bytes", Gauge, "Bytes of requests and answers on their way.", Process(|p, f| f.put(&[], p.memory.0))),
    Row("magent_memory_limit_bytes", Gauge, "Bytes that may be on their way (-m).", Process(|p, f| f.put(&[], p.memory.1))),
    Row("magent_log_lines_lost", Counter, "Lines that the log did not take.", Process(|p, f| f.put(&[], p.log_lines_lost))),
    Row("magent_last_reload_timestamp_seconds", Gauge, "When a reload last came to its end.", Process(|p, f| p.last_reload.into_iter().for_each(|(at, _)| f.put(&[], at)))),
    Row("magent_last_reload_successful", Gauge, "1 if the last reload was taken over.", Process(|p, f| p.last_reload.into_iter().for_each(|(_, ok)| f.put(&[], u8::from(ok))))),
    Row("magent_turn_seconds", Kind::Histogram, "Processor time of turns of the loop.", Process(turns)),
    Row("magent_turn_longest_seconds", Gauge, "The longest turn since the start or the last reset.", Process(|p, f| f.put(&[], Seconds(p.turns.longest)))),
    Row("magent_pool_clients", Gauge, "Clients of the pool.", Pool(|p, f| f.of_pool(p, p.clients.0))),
    Row("magent_pool_clients_limit", Gauge, "Clients that the pool may have.", Pool(|p, f| f.of_pool(p, p.clients.1))),
    Row("magent_pool_servers", Gauge, "Servers of the pool.", Pool(|p, f| f.of_farms(p, p.primaries.0, p.backups.0))),
    Row("magent_pool_servers_up", Gauge, "Servers of the pool that are up.", Pool(|p, f| f.of_farms(p, p.primaries.1, p.backups.1))),
    Row("magent_pool_moving", Gauge, "1 while keys move that a reload gave other servers.", Pool(|p, f| f.of_pool(p, u8::from(p.moving.is_some())))),
    Row("magent_pool_commands", Counter, "Keys and commands that clients asked.", Pool(commands)),
    Row("magent_pool_hits", Counter, "Keys that were found.", Pool(hits)),
    Row("magent_pool_misses", Counter, "Keys that were not found.", Pool(misses)),
    Row("magent_pool_cas_mismatches", Counter, "Keys that had changed before they were compared and set.", Pool(|p, f| f.of_pool(p, p.commands.cas_badval))),
    Row("magent_pool_server_errors", Counter, "Requests answered with SERVER_ERROR because no server could be had.", Pool(|p, f| f.of_pool(p, p.commands.server_errors))),
    Row("magent_pool_lines_split", Counter, "Lines that requests with several keys were split into.", Pool(|p, f| f.of_pool(p, p.fragments))),
    Row("magent_pool_ejections", Counter, "Servers that left the pool's ring.", Pool(|p, f| f.of_pool(p, p.ejections))),
    Row("magent_pool_values_too_large", Counter, "Values over the largest size (-I).", Pool(|p, f| f.of_pool(p, p.commands.store_too_large))),
    Row("magent_pool_connections", Counter, "Clients accepted.", Pool(|p, f| f.of_pool(p, p.commands.total_connections))),
    Row("magent_pool_connections_rejected", Counter, "Clients turned away because there was no place.", Pool(|p, f| f.of_pool(p, p.commands.rejected_connections))),
    Row("magent_pool_connections_closed", Counter, "Clients that closed their connection.", Pool(|p, f| f.of_pool(p, p.commands.connections_closed))),
    Row("magent_pool_connections_broken", Counter, "Clients whose connection broke.", Pool(|p, f| f.of_pool(p, p.commands.connections_broken))),
    Row("magent_pool_read_bytes", Counter, "Bytes from clients.", Pool(|p, f| f.of_pool(p, p.commands.bytes_read))),
    Row("magent_pool_written_bytes", Counter, "Bytes to clients.", Pool(|p, f| f.of_pool(p, p.commands.bytes_written))),
    Row("magent_pool_latency_seconds", Kind::Histogram, "From a client's request to its answer by servers.", Pool(|p, f| f.histogram(&[("pool", &p.name)], &p.latency))),
    Row("magent_server_info", Gauge, "Where a server is, and what it is to its pools.", Server(|s, f| f.put(&[("server", &s.name), ("address", &s.address), ("role", s.role)], 1))),
    Row("magent_server_up", Gauge, "1 if the server is asked, warming or not.", Server(|s, f| f.of_server(s, u8::from(s.is_up())))),
    Row("magent_server_warming", Gauge, "1 if what the server lacks is fetched from its backup.", Server(|s, f| f.of_server(s, u8::from(s.is_warming())))),
    Row("magent_server_drained", Gauge, "1 if an operator took the server out of use.", Server(|s, f| f.of_server(s, u8::from(s.is_drained)))),
    Row("magent_server_state_since_timestamp_seconds", Gauge, "Since when the server is up, or not.", Server(|s, f| f.of_server(s, s.since))),
    Row("magent_server_connections", Gauge, "Connections to the server that are open.", Server(|s, f| f.of_server(s, s.connections))),
    Row("magent_server_requests_in_flight", Gauge, "Requests that the server has not answered.", Server(|s, f| f.of_server(s, s.in_flight))),
    Row("magent_server_in_flight_bytes", Gauge, "Bytes of requests that the server has not answered.", Server(|s, f| f.of_server(s, s.bytes_in_flight))),
    Row("magent_server_journal_keys", Gauge, "Keys that the server missed and is to be told.", Server(|s, f| f.of_server(s, s.journal_keys))),
    Row("magent_server_journal_bytes", Gauge, "Memory of the server's journal.", Server(|s, f| f.of_server(s, s.journal_bytes))),
    Row("magent_server_journal_overflows", Counter, "Times that the server missed more than its journal holds.", Server(|s, f| f.of_server(s, s.journal_overflows))),
    Row("magent_server_requests", Counter, "Requests sent to the server, magent's own included.", Server(requests)),
    Row("magent_server_error_answers", Counter, "Answers of the server that were errors.", Server(|s, f| f.of_server(s, s.stats.errors))),
    Row("magent_server_timeouts", Counter, "Answers that did not come in time.", Server(|s, f| f.of_server(s, s.stats.timeouts))),
    Row("magent_server_connects", Counter, "Connections opened.", Server(|s, f| f.of_server(s, s.stats.connects))),
    Row("magent_server_closes", Counter, "Connections that the server closed.", Server(|s, f| f.of_server(s, s.stats.closes))),
    Row("magent_server_failures", Counter, "Connections that broke, or could not be opened.", Server(|s, f| f.of_server(s, s.stats.failures))),
    Row("magent_server_restarts", Counter, "Times that the server's process was another than before.", Server(|s, f| f.of_server(s, s.stats.restarts))),
    Row("magent_server_probes", Counter, "Times that the server was asked for a sign of life.", Server(|s, f| f.of_server(s, s.stats.probes))),
    Row("magent_server_read_bytes", Counter, "Bytes from the server.", Server(|s, f| f.of_server(s, s.stats.bytes_read))),
    Row("magent_server_written_bytes", Counter, "Bytes to the server.", Server(|s, f| f.of_server(s, s.stats.bytes_written))),
    Row("magent_server_keys_copied", Counter, "Keys copied to the server from a backup.", Server(|s, f| f.of_server(s, s.stats.keys_copied))),
    Row("magent_server_refilling", Gauge, "1 if the server is filled with what it lacks, or waits for that.", Server(|s, f| f.of_server(s, u8::from(s.refill.is_wanted())))),
    Row("magent_server_refill_keys", Gauge, "Keys of the refill that is under way, or of the last one.", Server(refill)),
    Row("magent_server_refill_bytes", Gauge, "Bytes copied by the refill that is under way, or by the last one.", Server(|s, f| s.refill.numbers().filter(|(name, _)| *name == "refill_bytes").for_each(|(_, n)| f.of_server(s, n)))),
    Row("magent_server_verify_keys", Gauge, "Keys of the comparison with the server's partners that is under way, or of the last one.", Server(verify)),
    Row("magent_server_mirrors", Counter, "Writes repeated on the server as a backup.", Server(|s, f| f.of_server(s, s.stats.mirrors))),
    Row("magent_server_mirrors_failed", Counter, "Of those the ones that it did not take.", Server(|s, f| f.of_server(s, s.stats.mirrors_failed))),
    Row("magent_server_marked", Gauge, "1 if this magent leaves marks for others on the server.", Server(|s, f| f.of_server(s, u8::from(s.marks == "on")))),
    Row("magent_server_other_magents", Gauge, "Other magents that use the server.", Server(|s, f| f.of_server(s, s.others.len()))),
    Row("magent_server_looks_again", Counter, "Looks whether what was copied to the server still is what its source has.", Server(|s, f| f.of_server(s, s.stats.looks_again))),
    Row("magent_server_doubts", Counter, "Copies that were deleted on the server since their source has something else, or is not known.", Server(|s, f| f.of_server(s, s.stats.doubts))),
    Row("magent_server_latency_seconds", Kind::Histogram, "From the last byte of a request to the server's answer.", Server(|s, f| f.histogram(&[("server", &s.name)], &s.latency))),
];

/// A number of nanoseconds, written in seconds.
struct Seconds(u64);

impl Display for Seconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0 as f64 / 1e9)
    }
}

/// Writes piece `at`. False if that was the last.
pub fn write(snapshot: &Snapshot, at: usize, is_open: bool, out: &mut String) -> bool {
    let mut first = 0;
    for row in FAMILIES {
        let items = match row.3 {
            Of::Process(_) => 1,
            Of::Pool(_) => snapshot.pools.len(),
            Of::Server(_) => snapshot.servers.len(),
        };
        if at < first + items {
            write_item(row, snapshot, at - first, is_open, out);
            return true;
        }
        first += items;
    }
    write_counters(&snapshot.process, is_open, out);
    if is_open {
        out.push_str("# EOF\n");
    }
    false
}

/// One process', pool's or server's samples of a family; before the first of them what the family is.
fn write_item(row: &Row, snapshot: &Snapshot, item: usize, is_open: bool, out: &mut String) {
    let Row(name, kind, help, of) = row;
    if item == 0 {
        write_head(name, *kind, help, is_open, out);
    }
    let mut family = Family {
        name,
        suffix: if *kind == Counter { "_total" } else { "" },
        out,
    };
    match of {
        Of::Process(write) => write(&snapshot.process, &mut family),
        Of::Pool(write) => write(&snapshot.pools[item], &mut family),
        Of::Server(write) => write(&snapshot.servers[item], &mut family),
    }
}

fn write_head(name: &str, kind: Kind, help: &str, is_open: bool, out: &mut String) {
    let (word, is_counter) = match kind {
        Kind::Counter => ("counter", true),
        Kind::Gauge => ("gauge", false),
        Kind::Histogram => ("histogram", false),
    };
    // OpenMetrics names the family, Prometheus the samples.
    let suffix = if is_counter && !is_open { "_total" } else { "" };
    let _ = writeln!(out, "# HELP {name}{suffix} {help}");
    let _ = writeln!(out, "# TYPE {name}{suffix} {word}");
}

/// What the process counts, under the names of `stats proxy`.
fn write_counters(process: &ProcessFigures, is_open: bool, out: &mut String) {
    let mut put = |name: &str, help: &str, value: u64| {
        let name = format!("magent_{name}");
        write_head(&name, Counter, help, is_open, out);
        let mut family = Family {
            name: &name,
            suffix: "_total",
            out,
        };
        family.put(&[], value);
    };
    process.loop_counters.each_with_help(&mut put);
    process.call_counters.each_with_help(&mut put);
    process.client_counters.each_with_help(&mut put);
    process.pool_counters.each_with_help(&mut put);
}

/// Where samples of one family go.
struct Family<'a> {
    name: &'a str,
    suffix: &'a str,
    out: &'a mut String,
}

impl Family<'_> {
    fn put(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.sample(self.suffix, labels, None, value);
    }

    fn sample(
        &mut self,
        suffix: &str,
        labels: &[(&str, &str)],
        le: Option<f64>,
        value: impl Display,
    ) {
        let _ = write!(self.out, "{}{suffix}", self.name);
        let mut before = '{';
        for (name, value) in labels {
            let _ = write!(self.out, "{before}{name}=\"");
            escape(value, self.out);
            self.out.push('"');
            before = ',';
        }
        match le {
            Some(f64::INFINITY) => drop(write!(self.out, "{before}le=\"+Inf\"}}")),
            Some(le) => drop(write!(self.out, "{before}le=\"{le}\"}}")),
            None if !labels.is_empty() => self.out.push('}'),
            None => {}
        }
        let _ = writeln!(self.out, " {value}");
    }

    fn of_pool(&mut self, pool: &PoolFigures, value: impl Display) {
        self.put(&[("pool", &pool.name)], value);
    }

    fn of_farms(&mut self, pool: &PoolFigures, primaries: usize, backups: usize) {
        self.put(&[("pool", &pool.name), ("role", "primary")], primaries);
        self.put(&[("pool", &pool.name), ("role", "backup")], backups);
    }

    fn of_commands(&mut self, pool: &PoolFigures, all: &[(&str, u64)]) {
        for (command, value) in all {
            self.put(&[("pool", &pool.name), ("command", command)], value);
        }
    }

    fn of_server(&mut self, server: &ServerFigures, value: impl Display) {
        self.put(&[("server", &server.name)], value);
    }

    fn histogram(&mut self, labels: &[(&str, &str)], times: &Histogram) {
        for doublings in FIRST..=LAST {
            let bound = (1u64 << doublings) as f64 / 1e6;
            self.sample("_bucket", labels, Some(bound), times.below(doublings));
        }
        self.sample("_bucket", labels, Some(f64::INFINITY), times.count());
        self.sample("_sum", labels, None, times.sum());
        self.sample("_count", labels, None, times.count());
    }
}

fn escape(text: &str, out: &mut String) {
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
}

fn turns(process: &ProcessFigures, family: &mut Family<'_>) {
    let turns = &process.turns;
    let mut sum = 0;
    for (bound, count) in &turns.counts {
        sum += count;
        family.sample("_bucket", &[], Some(*bound as f64 / 1e9), sum);
    }
    family.sample("_bucket", &[], Some(f64::INFINITY), turns.count);
    family.sample("_sum", &[], None, Seconds(turns.sum));
    family.sample("_count", &[], None, turns.count);
}

fn commands(pool: &PoolFigures, family: &mut Family<'_>) {
    let c = &pool.commands;
    let all = [
        ("get", c.cmd_get),
        ("set", c.cmd_set),
        ("touch", c.cmd_touch),
        ("delete", c.delete_hits + c.delete_misses),
        ("incr", c.incr_hits + c.incr_misses),
        ("decr", c.decr_hits + c.decr_misses),
        ("flush", c.cmd_flush),
        ("meta", c.cmd_meta),
    ];
    family.of_commands(pool, &all);
}

fn hits(pool: &PoolFigures, family: &mut Family<'_>) {
    let c = &pool.commands;
    let all = [
        ("get", c.get_hits),
        ("touch", c.touch_hits),
        ("delete", c.delete_hits),
        ("incr", c.incr_hits),
        ("decr", c.decr_hits),
        ("cas", c.cas_hits),
    ];
    family.of_commands(pool, &all);
}

fn misses(pool: &PoolFigures, family: &mut Family<'_>) {
    let c = &pool.commands;
    let all = [
        ("get", c.get_misses),
        ("touch", c.touch_misses),
        ("delete", c.delete_misses),
        ("incr", c.incr_misses),
        ("decr", c.decr_misses),
        ("cas", c.cas_misses),
    ];
    family.of_commands(pool, &all);
}

fn refill(server: &ServerFigures, family: &mut Family<'_>) {
    for (name, number) in server.refill.numbers() {
        let keys = name.trim_start_matches("refill_");
        if matches!(
            keys,
            "listed" | "copied" | "there" | "gone" | "skipped" | "to_go"
        ) {
            family.put(&[("server", &server.name), ("keys", keys)], number);
        }
    }
}

fn verify(server: &ServerFigures, family: &mut Family<'_>) {
    let all = server.verify.iter().flat_map(|v| v.numbers());
    for (keys, number) in all.filter(|(name, _)| *name != "since") {
        family.put(&[("server", &server.name), ("keys", keys)], number);
    }
}

fn requests(server: &ServerFigures, family: &mut Family<'_>) {
    for command in Command::ALL {
        let labels = [("server", &server.name[..]), ("command", command.name())];
        family.put(&labels, server.stats.requests.of(command));
    }
}
