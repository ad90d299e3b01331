//! Every `stats`: the names that people and their monitors rely on, and that the numbers are right.

mod common;

use common::magent::{farm, single};
use common::{Client, Magent, Memcached, Stats, number, wait_for};
use magent::config::{OPTIONS, Takes};

/// memcached's names where it has them.
#[rustfmt::skip]
const OF_MEMCACHED: &[&str] = &[
    "pid", "uptime", "time", "version", "pointer_size", "rusage_user", "rusage_system",
    "max_connections", "curr_connections", "total_connections", "rejected_connections",
    "cmd_get", "cmd_set", "cmd_flush", "cmd_touch", "cmd_meta", "get_hits", "get_misses",
    "delete_hits", "delete_misses", "incr_hits", "incr_misses", "decr_hits", "decr_misses",
    "cas_hits", "cas_misses", "cas_badval", "touch_hits", "touch_misses", "store_too_large",
    "bytes_read", "bytes_written", "limit_maxbytes", "threads",
];

#[rustfmt::skip]
const OF_MAGENT: &[&str] = &[
    "requests", "polls", "reads", "writes", "server_bytes_read", "server_bytes_written",
    "bytes_in_flight", "multi_get_keys_lost", "failovers", "retries", "server_errors", "fetches",
    "repairs", "repairs_dropped", "chases", "looks_again", "doubts", "protocol_errors", "limit_memory_paused",
    "limit_memory_gets", "limit_memory_stores", "limit_memory_requests", "limit_client_paused",
    "limit_client_stalled", "limit_client_half_sent", "limit_client_idle", "limit_server_paused",
    "limit_mirrors_journaled", "limit_accept_paused", "limit_journal_overflows", "log_lines_lost",
];

#[rustfmt::skip]
const OF_A_SERVER: &[&str] = &[
    "role", "address", "state", "since", "last_error", "connections", "connects", "closes", "failures", "restarts", "probes",
    "requests", "errors", "timeouts", "in_flight", "bytes_in_flight", "bytes_read", "bytes_written", "journal_keys",
    "journal_bytes", "journal_overflows", "keys_copied", "refill", "marks", "mirrors", "mirrors_failed",
    "looks_again", "doubts",
    "latency_p50_us", "latency_p99_us", "latency_p999_us", "latency_max_us", "latency_10s_p50_us",
    "latency_10s_p99_us", "latency_10s_p999_us", "latency_10s_max_us",
];

#[test]
fn stats_proxy_has_its_names_and_memcacheds() {
    let (magent, server) = single();
    let all = magent.client().stats("stats proxy\r\n");
    for name in OF_MEMCACHED.iter().chain(OF_MAGENT) {
        assert!(all.contains_key(*name), "no {name}");
    }
    let memcached = server.client().stats("stats\r\n");
    for name in OF_MEMCACHED {
        assert!(memcached.contains_key(*name), "memcached has no {name}");
    }
    assert_eq!(number(&all, "pid"), u64::from(magent.pid()));
    assert_eq!(all["version"], "1.6.18");
    assert_eq!(all["magent_version"], env!("CARGO_PKG_VERSION"));
    let now = std::time::SystemTime::UNIX_EPOCH
        .elapsed()
        .expect("a time after 1970")
        .as_secs();
    assert!(number(&all, "time").abs_diff(now) < 10);
}

#[test]
fn stats_proxy_counts_what_clients_did() {
    let (magent, _server) = single();
    let mut client = magent.client();
    client.set("a", "x").set("b", "x");
    client.ask("stats reset\r\n", "RESET\r\n");
    client.set("a", "x");
    client.ask("add a 0 0 1\r\nx\r\n", "NOT_STORED\r\n");
    client.ask("ms c 1\r\nx\r\n", "HD\r\n");
    client.ask("get a\r\n", "VALUE a 0 1\r\nx\r\nEND\r\n");
    client
        .send("get a b none1 none2\r\n")
        .read_until(b"END\r\n");
    client.ask("mg a v\r\n", "VA 1\r\nx\r\n");
    client.ask("mg none1 v\r\n", "EN\r\n");
    client.ask("touch a 0\r\n", "TOUCHED\r\n");
    client.ask("gat 0 a\r\n", "VALUE a 0 1\r\nx\r\nEND\r\n");
    client.ask("flush_all\r\n", "OK\r\n");
    let all = client.stats("stats proxy\r\n");
    for (name, value) in [
        ("cmd_set", 3),
        ("cmd_get", 7),
        ("get_hits", 4),
        ("get_misses", 3),
        ("cmd_meta", 3),
        ("cmd_touch", 2),
        ("touch_hits", 2),
        ("cmd_flush", 1),
        ("total_connections", 0),
        ("server_errors", 0),
    ] {
        assert_eq!(number(&all, name), value, "{name}");
    }
    // The two resets and the last stats are requests too, as far as they were counted.
    assert!(
        (10..=12).contains(&number(&all, "requests")),
        "{}",
        all["requests"]
    );
    let sent =
        "set a 0 0 1\r\nx\r\nadd a 0 0 1\r\nx\r\nms c 1\r\nx\r\nget a\r\nget a b none1 none2\r\n";
    assert!(number(&all, "bytes_read") > sent.len() as u64);
    assert!(number(&all, "bytes_written") > 100 && number(&all, "server_bytes_read") > 100);
    for name in ["polls", "reads", "writes", "server_bytes_written"] {
        assert!(number(&all, name) > 0, "{name}");
    }
    // Who is connected is not forgotten by a reset.
    assert!(number(&all, "curr_connections") >= 1);
}

#[test]
fn stats_servers_tells_all_of_each_server() {
    let (magent, mut servers) = farm(true, &["--timeout", "300", "--retry", "60000"]);
    let mut client = magent.client();
    let names: Vec<String> = servers.iter().map(|s| s.name.clone()).collect();
    for i in 0..30 {
        client.set(&format!("key{i}"), "x");
    }
    let told = wait_for("all mirrors", || {
        let all = client.stats("stats servers\r\n");
        let at_backup = |field: &str| number(&all, &format!("{}:{field}", names[3]));
        (at_backup("mirrors") == 30 && at_backup("in_flight") == 0).then_some(all)
    });
    assert_eq!(told.len(), 4 * OF_A_SERVER.len());
    for name in &names {
        for field in OF_A_SERVER {
            assert!(
                told.contains_key(&format!("{name}:{field}")),
                "{name}:{field}"
            );
        }
        let number = |field: &str| number(&told, &format!("{name}:{field}"));
        assert_eq!(told[&format!("{name}:last_error")], "none");
        assert_eq!((number("connections"), number("connects")), (1, 1));
        assert!(number("requests") > 0 && number("bytes_read") > 0);
        assert!(number("bytes_written") > 0);
        let (half, most) = (number("latency_p50_us"), number("latency_p99_us"));
        assert!(0 < half && half <= most, "{half} {most}");
    }
    let field = |all: &Stats, server: usize, field: &str| {
        all[&format!("{}:{field}", names[server])].clone()
    };
    assert_eq!(field(&told, 0, "role"), "primary");
    assert_eq!(field(&told, 3, "role"), "backup");
    // They have just started, and there is a backup.
    assert_eq!(field(&told, 0, "state"), "warming");
    assert_eq!(field(&told, 3, "state"), "up");
    servers[3].kill();
    client.set("key1", "y");
    let told = wait_for("the death", || {
        let all = client.stats("stats servers\r\n");
        (field(&all, 3, "state") == "down").then_some(all)
    });
    client.set("key2", "y");
    let later = client.stats("stats servers\r\n");
    assert!(field(&told, 3, "last_error").split(' ').count() >= 2);
    let journal = |f: &str| field(&later, 3, f).parse::<u64>().expect("a number");
    assert!(journal("journal_keys") >= 1 && journal("journal_bytes") > 0);
    assert!(journal("mirrors_failed") >= 1);
    assert!(journal("since") >= field(&told, 0, "since").parse().expect("a time"));
}

#[test]
fn stats_settings_shows_every_option_in_force() {
    let options = [
        "-n",
        "77",
        "-i",
        "3",
        "-k",
        "-I",
        "64k",
        "-m",
        "7m",
        "-F",
        "--timeout",
        "501",
        "--connect-timeout",
        "502",
        "--failure-limit",
        "9",
        "--retry",
        "503",
        "--retry-max",
        "506",
        "--probe",
        "507",
        "--resolve",
        "508",
        "--refill",
        "3m",
        "--slow",
        "509",
        "--warm",
        "504",
        "--journal",
        "5m",
        "--idle-timeout",
        "505",
        "--alone",
        "--memcached-stats",
        "--hash-tag",
        "{}",
        "-a",
        "0707",
    ];
    let magent =
        Magent::start(&[&["-s", "127.0.0.1:1:2", "-b", "127.0.0.1:2"][..], &options].concat());
    let all = magent.client().stats("stats settings\r\n");
    for (name, value) in [
        ("clients", "77"),
        ("memory", "7m"),
        ("daemon", "false"),
        ("verbose", "0"),
        ("user", "none"),
        ("group", "none"),
        ("pid_file", "none"),
        ("log", "stderr"),
        ("memcached_stats", "true"),
        ("admin", "none"),
        ("twemproxy_stats", "none"),
        ("retry_max", "506"),
        ("probe", "507"),
        ("resolve", "508"),
        ("refill", "3m"),
        ("slow", "509"),
        ("alone", "true"),
        ("default:server_connections", "3"),
        ("default:distribution", "magent-ketama"),
        ("default:hash", "magent"),
        ("default:hash_tag", "{}"),
        ("default:max_value", "64k"),
        ("default:flush_all", "false"),
        ("default:timeout", "501"),
        ("default:connect_timeout", "502"),
        ("default:server_failure_limit", "9"),
        ("default:server_retry_timeout", "503"),
        ("default:warm", "504"),
        ("default:journal", "5m"),
        ("default:idle_timeout", "505"),
        ("default:auto_eject_hosts", "false"),
    ] {
        assert_eq!(all.get(name).map(String::as_str), Some(value), "{name}");
    }
    assert!(all["default:servers"].starts_with("127.0.0.1:1:2"));
    assert!(all["default:backups"].starts_with("127.0.0.1:2:1"));
    let listen = &all["default:listen"];
    assert!(
        listen.contains(&format!("127.0.0.1:{}", magent.port)),
        "{listen}"
    );
    assert!(listen.contains("0707"), "{listen}");
    assert_eq!(all["configuration"].len(), 16);
    // A new option needs a line here.
    let given = OPTIONS.iter().filter(|o| o.takes != Takes::Nothing).count();
    assert_eq!(given, 32, "is the new option in stats settings?");
}

#[test]
fn stats_route_says_where_a_key_goes_and_why() {
    let (magent, mut servers) = farm(true, &["--retry", "60000"]);
    let key = common::keys::key_on(1, 3, "key", 0);
    let mut client = magent.client();
    client.set(&key, "x");
    let ask = format!("stats route {key}\r\n");
    let all = client.stats(&ask);
    assert_eq!(all["key"], key);
    assert_eq!(all["hash"], common::keys::djb(key.as_bytes()).to_string());
    assert_eq!(
        (&all["primary"], &all["backup"]),
        (&servers[1].name, &servers[3].name)
    );
    assert_eq!(
        (all["primary_state"].as_str(), all["backup_state"].as_str()),
        ("warming", "up")
    );
    assert_eq!(all["answers"], servers[1].name);
    servers[1].kill();
    assert_eq!(client.get(&key).as_deref(), Some(&b"x"[..]));
    magent.wait_state(&servers[1].name, "down");
    let all = client.stats(&ask);
    assert_eq!(
        (all["primary_state"].as_str(), &all["answers"]),
        ("down", &servers[3].name)
    );
    servers[3].kill();
    client.send(format!("get {key}\r\n")).read_line();
    magent.wait_state(&servers[3].name, "down");
    assert_eq!(client.stats(&ask)["answers"], "nobody");
    let usage = client.ask_line("stats route\r\n");
    assert_eq!(usage, "CLIENT_ERROR usage: stats route KEY");
}

#[test]
fn bare_stats_are_magents_lines_unless_asked_otherwise() {
    let (magent, server) = single();
    let version = env!("CARGO_PKG_VERSION");
    let lines = |pool: usize| {
        let name = &server.name;
        format!("memcached agent v{version}\r\nmatrix 1 -> {name}, pool size {pool}\r\nEND\r\n")
    };
    let mut client = magent.client();
    client.ask("stats\r\n", lines(0));
    client.set("a", "x");
    client.ask("stats\r\n", lines(1));
    client.ask("stats nonsense\r\n", "ERROR\r\n");
    let other = Magent::farm(&[&server.name], &[], &["--memcached-stats"]);
    let all = other.client().stats("stats\r\n");
    assert_eq!(number(&all, "pid"), u64::from(other.pid()));
}

/// A binary `stat` request and its answers up to the empty one.
fn binary_stats(client: &mut Client, group: &str) -> Stats {
    let mut request = vec![0x80, 0x10, 0, group.len() as u8, 0, 0, 0, 0];
    request.extend((group.len() as u32).to_be_bytes());
    request.extend([0; 12]);
    request.extend(group.as_bytes());
    client.send(request);
    let mut all = Stats::new();
    loop {
        let head = client.read_exact(24);
        assert_eq!(
            (head[0], head[1], head[6], head[7]),
            (0x81, 0x10, 0, 0),
            "{group}"
        );
        let key = usize::from(u16::from_be_bytes([head[2], head[3]]));
        let body = u32::from_be_bytes([head[8], head[9], head[10], head[11]]) as usize;
        if body == 0 {
            return all;
        }
        let text = String::from_utf8(client.read_exact(body)).expect("text");
        all.insert(text[..key].to_string(), text[key..].to_string());
    }
}

#[test]
fn binary_clients_get_the_same() {
    let (magent, server) = single();
    magent.client().set("a", "x");
    let mut client = magent.client();
    for group in ["proxy", "servers", "settings", "route a", "pools"] {
        let text = magent.client().stats(&format!("stats {group}\r\n"));
        let binary = binary_stats(&mut client, group);
        let names = |s: &Stats| s.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&text), names(&binary), "{group}");
    }
    let all = binary_stats(&mut client, "");
    assert_eq!(number(&all, "pid"), u64::from(magent.pid()));
    let servers = binary_stats(&mut client, "servers");
    assert_eq!(servers[&format!("{}:state", server.name)], "up");
    assert!(binary_stats(&mut client, "reset").is_empty());
}

#[test]
fn what_was_lost_is_counted() {
    let (magent, mut servers): (Magent, Vec<Memcached>) = farm(false, &["--retry", "60000"]);
    let mut client = magent.client();
    let keys: Vec<String> = (0..3)
        .map(|i| common::keys::key_on(i, 3, "key", 0))
        .collect();
    keys.iter().for_each(|k| {
        client.set(k, "x");
    });
    servers[1].kill();
    client
        .send(format!("get {}\r\n", keys.join(" ")))
        .read_until(b"END\r\n");
    let refused = client.ask_line(format!("get {}\r\n", keys[1]));
    assert!(
        refused.starts_with(&format!("SERVER_ERROR {} ", servers[1].name)),
        "{refused}"
    );
    let all = client.stats("stats proxy\r\n");
    assert_eq!(number(&all, "multi_get_keys_lost"), 1);
    assert_eq!(number(&all, "server_errors"), 1);
    assert_eq!(number(&all, "failovers"), 0);
}
