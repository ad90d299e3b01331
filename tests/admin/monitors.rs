//! What monitors read: that it is well formed, and that the numbers are right.

use super::common::magent::farm;
use super::common::{Client, Fake, Magent, Memcached, wait_for};
use super::dashboard;
use super::http::{self, Answer};
use super::{DOOR, with_door};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Samples by their names and labels, as they are written, and the kinds of families.
struct Metrics {
    samples: BTreeMap<String, f64>,
    kinds: BTreeMap<String, String>,
}

impl Metrics {
    /// Reads a whole text strictly: each family once, its help and its kind before its samples, which
    /// stand together.
    #[track_caller]
    fn read(text: &str, is_open: bool) -> Metrics {
        let mut all = Metrics {
            samples: BTreeMap::new(),
            kinds: BTreeMap::new(),
        };
        let text = match is_open {
            true => text.strip_suffix("# EOF\n").expect("its end"),
            false => text,
        };
        assert!(text.ends_with('\n'));
        let mut family = String::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').expect("a help");
                assert!(help.ends_with('.') && !help.contains('\\'), "{line}");
                family = name.to_string();
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a kind");
                assert_eq!(name, family, "{line}");
                let old = all.kinds.insert(family.clone(), kind.to_string());
                assert_eq!(old, None, "{line}");
                let is_named = name
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
                assert!(is_named, "{line}");
                assert_eq!(
                    name.ends_with("_total"),
                    kind == "counter" && !is_open,
                    "{line}"
                );
            } else {
                let (sample, value) = line.rsplit_once(' ').expect("a value");
                let name = sample.split('{').next().expect("a name");
                let suffix = name
                    .strip_prefix(&family)
                    .unwrap_or_else(|| panic!("{line} in {family}"));
                let suffixes: &[&str] = match (all.kinds[&family].as_str(), is_open) {
                    ("counter", true) => &["_total"],
                    ("histogram", _) => &["_bucket", "_sum", "_count"],
                    _ => &[""],
                };
                assert!(suffixes.contains(&suffix), "{line}");
                let value = value.parse().unwrap_or_else(|_| panic!("{line}"));
                let old = all.samples.insert(sample.to_string(), value);
                assert_eq!(old, None, "{line}");
            }
        }
        all
    }

    #[track_caller]
    fn get(&self, sample: &str) -> f64 {
        let value = self.samples.get(sample);
        *value.unwrap_or_else(|| panic!("no {sample} in {:#?}", self.samples.keys()))
    }

    /// Every histogram of a family counts each answer once, and no bucket less than the one before.
    #[track_caller]
    fn check_histogram(&self, family: &str) {
        let mut last: BTreeMap<String, (f64, f64)> = BTreeMap::new();
        for (sample, count) in &self.samples {
            let Some(labels) = sample.strip_prefix(&format!("{family}_bucket{{")) else {
                continue;
            };
            let (labels, le) = labels.split_once("le=\"").expect("a bound");
            let le = le.trim_end_matches("\"}");
            let le: f64 = if le == "+Inf" {
                f64::INFINITY
            } else {
                le.parse().expect("a number")
            };
            last.entry(labels.to_string()).or_insert((le, *count));
            let same = self
                .samples
                .iter()
                .filter(|(s, _)| s.starts_with(&format!("{family}_bucket{{{labels}le=")));
            let rising = same.filter(|(s, _)| {
                let bound = s
                    .split_once("le=\"")
                    .map(|(_, b)| b.trim_end_matches("\"}"));
                bound
                    .and_then(|b| b.parse::<f64>().ok())
                    .is_some_and(|b| b <= le)
            });
            for (other, less) in rising {
                assert!(less <= count, "{other} {less}, {sample} {count}");
            }
            if le == f64::INFINITY {
                let labels = labels.trim_end_matches(',');
                let of = |what: &str| match labels {
                    "" => self.get(&format!("{family}_{what}")),
                    _ => self.get(&format!("{family}_{what}{{{labels}}}")),
                };
                assert_eq!(of("count"), *count, "{sample}");
                assert!(of("sum") >= 0.0);
            }
        }
        assert!(!last.is_empty(), "no {family}");
    }
}

#[track_caller]
fn metrics(magent: &Magent) -> Metrics {
    let all = http::get(&mut magent.operator(), "/metrics");
    assert_eq!(all.status, 200);
    assert_eq!(
        all.fields["content-type"],
        "text/plain; version=0.0.4; charset=utf-8"
    );
    Metrics::read(&all.body, false)
}

fn open_metrics(magent: &Magent) -> Metrics {
    let mut client = magent.operator();
    // What a Prometheus of today sends.
    client.send("GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: application/openmetrics-text;version=1.0.0;q=0.5,\
                 text/plain;version=0.0.4;q=0.3,*/*;q=0.1\r\n\r\n");
    let all = http::answer(&mut client, true);
    assert_eq!(
        all.fields["content-type"],
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    );
    Metrics::read(&all.body, true)
}

#[track_caller]
fn json(magent: &Magent) -> Value {
    let all = http::get(&mut magent.operator(), "/stats.json");
    assert_eq!(
        all.fields["content-type"],
        "application/json; charset=utf-8"
    );
    serde_json::from_str(&all.body).expect("JSON")
}

#[test]
fn metrics_say_what_was_done() {
    let (magent, mut servers) = farm(true, &[&DOOR[..], &["--retry", "60000"]].concat());
    let mut client = magent.client();
    for i in 0..20 {
        client.set(&format!("key{i}"), "x");
        client.get(&format!("key{i}"));
    }
    client.ask("get none\r\n", "END\r\n");
    client.ask("delete key1\r\n", "DELETED\r\n");
    client.ask("incr none 1\r\n", "NOT_FOUND\r\n");
    client.send("get key2 key3 none\r\n").read_until(b"END\r\n");
    servers[3].kill();
    magent.wait_state(&servers[3].name, "down");
    magent
        .operator()
        .ask(format!("server {} drain\n", servers[2].name), "OK\r\n");
    let all = metrics(&magent);
    for (sample, value) in [
        (
            "magent_pool_commands_total{pool=\"default\",command=\"set\"}",
            20.0,
        ),
        (
            "magent_pool_commands_total{pool=\"default\",command=\"get\"}",
            24.0,
        ),
        (
            "magent_pool_commands_total{pool=\"default\",command=\"delete\"}",
            1.0,
        ),
        (
            "magent_pool_hits_total{pool=\"default\",command=\"get\"}",
            22.0,
        ),
        (
            "magent_pool_misses_total{pool=\"default\",command=\"get\"}",
            2.0,
        ),
        (
            "magent_pool_misses_total{pool=\"default\",command=\"incr\"}",
            1.0,
        ),
        (
            "magent_pool_servers{pool=\"default\",role=\"primary\"}",
            3.0,
        ),
        (
            "magent_pool_servers_up{pool=\"default\",role=\"primary\"}",
            2.0,
        ),
        ("magent_pool_servers{pool=\"default\",role=\"backup\"}", 1.0),
        (
            "magent_pool_servers_up{pool=\"default\",role=\"backup\"}",
            0.0,
        ),
        ("magent_clients_limit", 4096.0),
        ("magent_memory_limit_bytes", f64::from(256 << 20)),
        (
            concat!(
                "magent_build_info{version=\"",
                env!("CARGO_PKG_VERSION"),
                "\"}"
            ),
            1.0,
        ),
    ] {
        assert_eq!(all.get(sample), value, "{sample}");
    }
    // Each request with an answer, that of several keys included.
    assert_eq!(
        all.get("magent_pool_latency_seconds_count{pool=\"default\"}"),
        44.0
    );
    for (at, up, warming, drained) in [(0, 1.0, 1.0, 0.0), (2, 0.0, 0.0, 1.0), (3, 0.0, 0.0, 0.0)] {
        let name = &servers[at].name;
        let of = |what: &str| all.get(&format!("magent_server_{what}{{server=\"{name}\"}}"));
        assert_eq!(
            (of("up"), of("warming"), of("drained")),
            (up, warming, drained),
            "{name}"
        );
        let role = if at == 3 { "backup" } else { "primary" };
        all.get(&format!(
            "magent_server_info{{server=\"{name}\",address=\"{name}\",role=\"{role}\"}}"
        ));
    }
    let sum: f64 = (0..3)
        .map(|at| {
            let name = &servers[at].name;
            all.get(&format!(
                "magent_server_requests_total{{server=\"{name}\",command=\"set\"}}"
            ))
        })
        .sum();
    assert_eq!(sum, 20.0, "each set went to a primary");
    for family in [
        "magent_pool_latency_seconds",
        "magent_server_latency_seconds",
        "magent_turn_seconds",
    ] {
        all.check_histogram(family);
    }
    assert!(all.get("process_resident_memory_bytes") > 1e6);
    assert!(all.get("process_cpu_seconds_total") > 0.0);
    // Every counter of `stats proxy` is one here: of the process, or of its pools.
    let proxy = magent.operator().stats("stats proxy\n");
    let of_pools = [
        "cmd_",
        "_hits",
        "_misses",
        "badval",
        "too_large",
        "server_errors",
        "connections",
        "bytes_",
        "turn",
        "limit_maxbytes",
    ];
    let of_process = [
        "pid",
        "uptime",
        "time",
        "version",
        "pointer_size",
        "rusage",
        "threads",
        "magent_version",
    ];
    for name in proxy.keys() {
        let is_elsewhere = of_pools.iter().any(|p| name.contains(p))
            || of_process.iter().any(|p| name.starts_with(p));
        assert!(
            is_elsewhere || all.samples.contains_key(&format!("magent_{name}_total")),
            "{name}"
        );
    }
}

#[test]
fn both_formats_say_the_same() {
    let (magent, _servers) = farm(true, &DOOR);
    magent.client().set("a", "x");
    let (plain, open) = (metrics(&magent), open_metrics(&magent));
    let names = |m: &Metrics| m.samples.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&plain), names(&open));
    assert_eq!(plain.kinds.len(), open.kinds.len());
}

#[test]
fn json_says_the_same_as_stats() {
    let (magent, mut servers) = farm(true, &[&DOOR[..], &["--retry", "60000"]].concat());
    magent.client().set("a", "x").set("b", "x").get("a");
    servers[1].kill();
    magent.wait_state(&servers[1].name, "down");
    let all = json(&magent);
    assert_eq!(all["magent"]["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(all["magent"]["pid"], magent.pid());
    assert_eq!(all["pools"][0]["name"], "default");
    assert_eq!(
        (&all["pools"][0]["cmd_set"], &all["pools"][0]["get_hits"]),
        (&2.into(), &1.into())
    );
    assert_eq!(all["pools"][0]["latency"]["count"], 3);
    assert_eq!(all["pools"][0]["latency_10s"]["count"], 3);
    let half = all["pools"][0]["latency"]["p50_us"]
        .as_u64()
        .expect("a number");
    let most = all["pools"][0]["latency"]["max_us"]
        .as_u64()
        .expect("a number");
    assert!(0 < half && half <= most, "{half} {most}");
    assert_eq!(all["servers"].as_array().map(Vec::len), Some(4));
    for (at, server) in servers.iter().enumerate() {
        let (told, stats) = (&all["servers"][at], magent.server(&server.name));
        assert_eq!(told["name"], server.name);
        for name in ["role", "address", "state"] {
            assert_eq!(told[name], stats[name].as_str(), "{name}");
        }
        let numbers: BTreeSet<&String> = stats
            .iter()
            .filter(|(n, v)| v.parse::<u64>().is_ok() && !n.starts_with("latency"))
            .map(|(n, _)| n)
            .collect();
        for name in numbers {
            assert!(told[name.as_str()].is_number(), "{name}");
        }
    }
    assert_eq!(all["servers"][1]["last_error"], "connection refused");
    // Names of `stats proxy` where it is the same.
    let proxy = magent.operator().stats("stats proxy\n");
    let missing: Vec<&String> = proxy
        .keys()
        .filter(|n| {
            let is_pools = all["pools"][0].get(n.as_str()).is_some();
            !is_pools && all["magent"].get(n.as_str()).is_none()
        })
        .collect();
    let others = [
        "magent_version",
        "pointer_size",
        "rusage_system",
        "rusage_user",
        "threads",
        "turns_le_100us",
        "turns_le_10ms",
        "turns_le_1ms",
        "turns_over_10ms",
    ];
    assert_eq!(missing, others);
}

#[test]
fn moves_and_other_magents_are_told() {
    let servers: Vec<Memcached> = (0..2).map(|_| Memcached::start()).collect();
    let text = |count: usize| {
        let list = servers[..count]
            .iter()
            .map(|s| format!("  - {}:1\n", s.name));
        let list = list.collect::<String>();
        format!("a:\n  listen: 127.0.0.1:PORT\n  servers:\n{list}")
    };
    let magent = Magent::with_file(&text(1));
    let moving = |is_moving: u8| {
        let told = metrics(&magent).get("magent_pool_moving{pool=\"a\"}");
        assert_eq!(told, f64::from(is_moving));
        json(&magent)["pools"][0]["moving"].clone()
    };
    assert_eq!(moving(0), Value::Null);
    let name = &servers[0].name;
    let (mark, others) = (
        format!("magent_server_marked{{server=\"{name}\"}}"),
        format!("magent_server_other_magents{{server=\"{name}\"}}"),
    );
    let other = Magent::farm(&[name], &[], &[]);
    wait_for("each other", || {
        magent.client().set("k", "x");
        other.client().set("k", "x");
        let all = metrics(&magent);
        (all.get(&mark) == 1.0 && all.get(&others) == 1.0).then_some(())
    });
    assert!(magent.reload(&text(2)));
    let progress = moving(1);
    let stats = magent.client().stats("stats pools\r\n");
    assert!(
        progress.as_str().expect("text").contains(" changed, "),
        "{progress}"
    );
    assert!(stats["a:moving"].contains(" changed, "), "{stats:?}");
}

/// What `dist/` asks for is told. `make interop` asks it under Prometheus.
#[test]
fn alerts_and_dashboard_ask_for_what_there_is() {
    let file = "a:\n  listen: 127.0.0.1:PORT\n  servers:\n  - 127.0.0.1:1:1\n";
    let magent = Magent::with_file(file);
    // Of reloads nothing is told before there was one.
    assert!(magent.reload(file));
    let all = metrics(&magent);
    let told: BTreeSet<&str> = all
        .samples
        .keys()
        .filter_map(|s| s.split('{').next())
        .collect();
    let texts = [
        dashboard::DASHBOARD,
        include_str!("../../dist/magent.rules.yml"),
    ];
    let mut asked = 0;
    for text in texts {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        for word in text.split(|c: char| !is_name(c)) {
            if word.starts_with("magent_") || word.starts_with("process_") {
                assert!(told.contains(word), "{word}");
                asked += 1;
            }
        }
    }
    assert!(asked > 40 && dashboard::expressions().len() > 20, "{asked}");
}

/// Names of a configuration may hold anything.
#[test]
fn odd_names_are_escaped() {
    let magent = Magent::with_file(
        "\"a \\\"b\\\" \\\\c é\":\n  listen: 127.0.0.1:PORT\n  servers:\n  - 127.0.0.1:1:1\n",
    );
    metrics(&magent).get("magent_pool_clients{pool=\"a \\\"b\\\" \\\\c é\"}");
    assert_eq!(json(&magent)["pools"][0]["name"], "a \"b\" \\c é");
}

#[test]
fn heads_and_old_clients_get_what_they_ask_for() {
    let magent = with_door(&[]);
    for path in ["/metrics", "/stats.json"] {
        let mut client = magent.operator();
        client.send(format!("HEAD {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        let head = http::answer(&mut client, false);
        assert_eq!(
            (head.status, head.fields["transfer-encoding"].as_str()),
            (200, "chunked")
        );
        // Nothing of a body stands before what comes next.
        assert_eq!(http::get(&mut client, "/healthz").body, "ok\n");
        // Before chunks were known the end of the connection was the end of the answer.
        client.send(format!(
            "GET {path} HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
        ));
        let Answer { fields, body, .. } = http::answer(&mut client, true);
        assert_eq!(fields["connection"], "close");
        assert!(!fields.contains_key("transfer-encoding") && body.len() > 1000);
        client.expect("");
    }
}

#[test]
fn readiness_is_that_every_key_can_be_answered() {
    let (magent, mut servers) = farm(
        true,
        &[&DOOR[..], &["--retry-max", "100", "--retry", "100"]].concat(),
    );
    let ready = |status: u16| -> String {
        wait_for(&format!("status {status}"), || {
            let all = http::get(&mut magent.operator(), "/readyz");
            (all.status == status).then_some(all.body)
        })
    };
    assert_eq!(ready(200), "ok\n");
    let names: Vec<String> = servers.iter().map(|s| s.name.clone()).collect();
    // A primary that is down has a backup.
    servers[0].kill();
    magent.wait_state(&names[0], "down");
    assert_eq!(ready(200), "ok\n");
    servers[3].kill();
    let why = format!(
        "pool default: {} is down and so is the backup {}\n",
        names[0], names[3]
    );
    assert_eq!(ready(503), why);
    servers[0].restart();
    assert_eq!(ready(200), "ok\n");

    let dead = ["127.0.0.1:1:1", "127.0.0.1:2:1"];
    let text = |ejects: bool, server: &str| {
        format!(
            "a:\n  listen: 127.0.0.1:PORT\n  auto_eject_hosts: {ejects}\n  server_failure_limit: 1\n  servers:\n  - {server}\n  - {}:1\n",
            names[0]
        )
    };
    let magent = Magent::with_file(&text(false, dead[0]));
    magent.wait_state("127.0.0.1:1", "down");
    let all = http::get(&mut magent.operator(), "/readyz");
    assert_eq!(
        (all.status, all.body.as_str()),
        (503, "pool a: 127.0.0.1:1 is down and it has no backup\n")
    );
    // The others answer for one that left the ring.
    assert!(magent.reload(&text(true, dead[1])));
    magent.wait_state("127.0.0.1:2", "down");
    assert_eq!(http::get(&mut magent.operator(), "/readyz").status, 200);
    servers[0].kill();
    magent.wait_state(&names[0], "down");
    assert_eq!(http::get(&mut magent.operator(), "/readyz").status, 503);
}

/// Scraped again and again, 64 servers cost no long turn.
#[test]
fn large_farms_are_written_in_pieces() {
    let crowd = Fake::crowd(|_| b"END\r\n".to_vec());
    let servers: Vec<String> = (1..=64)
        .map(|i| format!("127.0.0.{i}:{}", crowd.port))
        .collect();
    let servers: Vec<&str> = servers.iter().map(String::as_str).collect();
    let magent = Magent::farm(&servers, &[], &DOOR);
    for path in ["/metrics", "/stats.json"] {
        let mut clients: Vec<Client> = (0..8).map(|_| magent.operator()).collect();
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        for client in &mut clients {
            client.send(request.repeat(10));
        }
        for client in &mut clients {
            for _ in 0..10 {
                let all = http::answer(client, true);
                assert!(servers.iter().all(|s| all.body.contains(s)), "{path}");
            }
        }
    }
    let longest = magent.stat("longest_turn_us");
    assert!(longest <= 10_000, "a turn took {longest} µs");
}

/// What was slow a while ago is slow for ever in one number, and not in the other.
#[test]
fn latencies_are_told_since_the_start_and_of_now() {
    let server = Memcached::start();
    let magent = Magent::farm(&[&server.name], &[], &DOOR);
    let mut client = magent.client();
    for _ in 0..100 {
        client.get("a");
    }
    let told = magent.server(&server.name);
    let pools = magent.operator().stats("stats pools\n");
    for what in ["latency", "latency_10s"] {
        let names = ["p50", "p99", "p999", "max"];
        let of_server = names.map(|n| {
            told[&format!("{what}_{n}_us")]
                .parse::<u64>()
                .expect("a number")
        });
        let of_pool = names.map(|n| {
            pools[&format!("default:{what}_{n}_us")]
                .parse::<u64>()
                .expect("a number")
        });
        for all in [of_server, of_pool] {
            assert!(all[0] > 0 && all.is_sorted(), "{what}: {all:?}");
        }
        // The client waits for the server, and then some.
        assert!(of_pool[3] >= of_server[0], "{of_pool:?} {of_server:?}");
    }
    client.ask("stats reset\r\n", "RESET\r\n");
    let told = magent.server(&server.name);
    assert_eq!(told["latency_max_us"], "0");
}
