//! Several servers and a backup: who gets which bytes, and what magent says of them.

mod common;

use common::magent::{farm, single};
use common::{Client, Fake, Magent, Memcached, keys, show, wait_for};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

// --- several servers

#[test]
fn pipelined_requests_go_where_their_keys_live() {
    let (magent, servers) = farm(false, &[]);
    let mut client = magent.client();
    let mut requests = String::new();
    for i in 0..300 {
        requests += &format!("set key{i} 0 0 {}\r\nv{i}\r\n", format!("v{i}").len());
    }
    client.ask(requests, "STORED\r\n".repeat(300));
    for i in 0..300 {
        let (key, value) = (format!("key{i}"), format!("v{i}").into_bytes());
        for (n, server) in servers.iter().enumerate() {
            let want = (n == keys::home(&key, 3)).then(|| value.clone());
            assert_eq!(server.value(&key), want, "{key} on server {n}");
        }
    }
}

#[test]
fn a_multi_get_with_one_server_dead_gives_the_others() {
    let (magent, mut servers) = farm(false, &[]);
    let mut client = magent.client();
    let names: Vec<String> = (0..3).map(|s| keys::key_on(s, 3, "key", 0)).collect();
    for key in &names {
        client.set(key, key);
    }
    servers[1].kill();
    for _ in 0..3 {
        client.send(format!("get {}\r\n", names.join(" ")));
        let answer = String::from_utf8_lossy(&client.read_until(b"END\r\n")).into_owned();
        for (i, key) in names.iter().enumerate() {
            let value = format!("VALUE {key} 0 {}\r\n{key}\r\n", key.len());
            assert_eq!(answer.contains(&value), i != 1, "{answer}");
        }
        assert!(!answer.contains("ERROR"), "{answer}");
        client.ask("mn\r\n", "MN\r\n");
    }
    servers[0].kill();
    servers[2].kill();
    let line = client.ask_line(format!("get {}\r\n", names.join(" ")));
    assert!(line.starts_with("SERVER_ERROR 127.0.0.1:"), "{line}");
    client.ask("mn\r\n", "MN\r\n");
}

#[test]
fn a_multi_get_is_one_request_to_each_server() {
    let fakes: Vec<Fake> = (0..3)
        .map(|_| Fake::answering(|_| b"END\r\n".to_vec()))
        .collect();
    let names: Vec<&str> = fakes.iter().map(|f| f.name.as_str()).collect();
    let magent = Magent::farm(&names, &[], &[]);
    let mut client = magent.client();
    let all: Vec<String> = (0..90).map(|i| format!("k{i}")).collect();
    client.ask(format!("get {}\r\n", all.join(" ")), "END\r\n");
    for (n, fake) in fakes.iter().enumerate() {
        let own: Vec<&str> = all
            .iter()
            .map(String::as_str)
            .filter(|k| keys::home(k, 3) == n)
            .collect();
        let requests: Vec<String> = fake.requests().iter().map(|r| show(r)).collect();
        assert_eq!(requests, [format!("get {}\\r\\n", own.join(" "))]);
    }
}

#[test]
fn every_write_reaches_each_server_once() {
    let answer = |request: &[u8]| match request {
        [b's', b'e', b't', ..] | [b'a', ..] => b"STORED\r\n".to_vec(),
        [b'i', ..] => b"7\r\n".to_vec(),
        [b'd', b'e', b'l', ..] => b"DELETED\r\n".to_vec(),
        _ => b"END\r\n".to_vec(),
    };
    let (primary, backup) = (Fake::answering(answer), Fake::answering(answer));
    let magent = Magent::farm(&[&primary.name], &[&backup.name], &["--warm", "0"]);
    let mut client = magent.client();
    client
        .ask("append a 0 0 1\r\nx\r\n", "STORED\r\n")
        .ask("set a 0 0 1\r\nx\r\n", "STORED\r\n");
    client
        .ask("incr a 1\r\n", "7\r\n")
        .ask("delete a\r\n", "DELETED\r\n");
    client
        .ask("add a 5 60 1\r\ny\r\n", "STORED\r\n")
        .ask("set a 0 0 1 noreply\r\nz\r\nmn\r\n", "MN\r\n");
    let start = |all: Vec<Vec<u8>>| -> Vec<String> {
        all.iter()
            .map(|r| {
                String::from_utf8_lossy(r)
                    .split(' ')
                    .next()
                    .unwrap_or("")
                    .to_string()
            })
            .collect()
    };
    wait_for("the mirrors", || {
        (backup.requests().len() >= 6).then_some(())
    });
    assert_eq!(
        start(primary.requests()),
        ["append", "set", "incr", "delete", "add", "set"]
    );
    // An add that was stored is a plain set for the backup.
    assert_eq!(
        start(backup.requests()),
        ["append", "set", "incr", "delete", "set", "set"]
    );
    assert_eq!(show(&backup.requests()[4]), show(b"set a 5 60 1\r\ny\r\n"));
}

#[test]
fn mirrors_follow_the_primary() {
    let (magent, servers) = farm(true, &[]);
    let backup = &servers[3];
    let mut client = magent.client();
    client
        .set("a", "x")
        .ask("append a 0 0 1\r\ny\r\n", "STORED\r\n")
        .ask("prepend a 0 0 1\r\nw\r\n", "STORED\r\n");
    backup.wait_value("a", Some(b"wxy"));
    client
        .set("n", "5")
        .ask("incr n 3\r\n", "8\r\n")
        .ask("decr n 1\r\n", "7\r\n");
    backup.wait_value("n", Some(b"7"));
    client.ask("delete n\r\n", "DELETED\r\n");
    backup.wait_value("n", None);
    client
        .ask("add a 0 0 1\r\nz\r\n", "NOT_STORED\r\n")
        .ask("replace b 0 0 1\r\nz\r\n", "NOT_STORED\r\n");
    client.ask("replace a 0 0 1\r\nr\r\n", "STORED\r\n");
    backup.wait_value("a", Some(b"r"));
    assert_eq!(backup.value("b"), None);
    client.send("gets a\r\n");
    let line = String::from_utf8_lossy(&client.read_until(b"END\r\n")).into_owned();
    let cas = line
        .lines()
        .next()
        .and_then(|l| l.rsplit(' ').next())
        .expect("a cas")
        .to_string();
    client.ask(format!("cas a 0 0 1 {cas}\r\nc\r\n"), "STORED\r\n");
    backup.wait_value("a", Some(b"c"));
    client.ask(format!("cas a 0 0 1 {cas}\r\nd\r\n"), "EXISTS\r\n");
    client
        .ask("touch a 1000\r\n", "TOUCHED\r\n")
        .ask("flush_all\r\n", "OK\r\n");
    backup.wait_value("a", None);
}

#[test]
fn reads_and_writes_go_on_without_the_primaries() {
    let (magent, mut servers) = farm(true, &[]);
    let mut client = magent.client();
    for i in 0..30 {
        client.set(&format!("key{i}"), format!("v{i}"));
    }
    for i in 0..30 {
        servers[3].wait_value(&format!("key{i}"), Some(format!("v{i}").as_bytes()));
    }
    servers[..3].iter_mut().for_each(Memcached::kill);
    for i in 0..30 {
        let (key, value) = (format!("key{i}"), format!("v{i}"));
        assert_eq!(client.get(&key), Some(value.into_bytes()), "{key}");
        client
            .set(&key, "new")
            .ask(format!("append {key} 0 0 1\r\n!\r\n"), "STORED\r\n");
        assert_eq!(
            servers[3].value(&key).as_deref(),
            Some(&b"new!"[..]),
            "an append ran twice or never"
        );
    }
}

#[test]
fn a_server_in_both_farms_is_one_server() {
    let servers = [Memcached::start(), Memcached::start()];
    let names = [servers[0].name.as_str(), servers[1].name.as_str()];
    let magent = Magent::farm(&names, &[names[1], names[0]], &[]);
    let mut client = magent.client();
    for i in 0..20 {
        let key = format!("key{i}");
        client
            .set(&key, "1")
            .ask(format!("append {key} 0 0 1\r\n2\r\n"), "STORED\r\n");
        // Home and copy are never the same server, so the append ran once on each.
        servers.iter().for_each(|s| s.wait_value(&key, Some(b"12")));
    }
}

/// One client of many: whatever it reads is well formed, in order, and its own.
fn talk(port: u16, number: usize, over: &AtomicBool, answered: &AtomicUsize) {
    let mut client = Client::tcp(port);
    for round in 0.. {
        if over.load(Ordering::Relaxed) {
            break;
        }
        let key = |i: usize| format!("c{number}-{i}");
        let size = 1 + round * 397 % 20_000;
        let mut requests = Vec::new();
        for i in 0..8 {
            let value = format!("<{}>", key(i)).repeat(1 + size / 8);
            requests.extend(format!("set {} 0 0 {}\r\n{value}\r\n", key(i), value.len()).bytes());
            requests.extend(format!("mg {} v O{round}.{i}\r\n", key(i)).bytes());
        }
        client.send(&requests);
        for i in 0..8 {
            let stored = String::from_utf8_lossy(&client.read_line()).into_owned();
            assert!(
                stored == "STORED\r\n" || stored.starts_with("SERVER_ERROR "),
                "{stored}"
            );
            let line = String::from_utf8_lossy(&client.read_line()).into_owned();
            let opaque = format!(" O{round}.{i}\r\n");
            if let Some(head) = line.strip_suffix(&opaque).filter(|l| l.starts_with("VA ")) {
                let value = client.read_exact(head[3..].parse::<usize>().expect("a length") + 2);
                let one = format!("<{}>", key(i));
                let value = String::from_utf8_lossy(&value).into_owned();
                assert_eq!(value.replace(&one, ""), "\r\n", "a value of somebody else");
            } else {
                assert!(
                    line == format!("EN{opaque}") || line.starts_with("SERVER_ERROR "),
                    "{line}"
                );
            }
            answered.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Ends the clients, also when the test failed.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn clients_never_read_each_others_answers_whatever_dies() {
    let (magent, mut servers) = farm(true, &["--retry", "20", "--timeout", "300"]);
    let (over, answered, port) = (AtomicBool::new(false), AtomicUsize::new(0), magent.port);
    let go_on = |how_long: usize| {
        let until = answered.load(Ordering::Relaxed) + how_long;
        wait_for("more answers", || {
            (answered.load(Ordering::Relaxed) >= until).then_some(())
        });
    };
    std::thread::scope(|scope| {
        let _over = Over(&over);
        let (over, answered) = (&over, &answered);
        for number in 0..8 {
            scope.spawn(move || talk(port, number, over, answered));
        }
        for round in 0..12 {
            go_on(200);
            let server = &mut servers[round % 4];
            if round % 3 == 2 {
                server.stop();
                go_on(100);
                server.cont();
            } else {
                server.restart();
            }
        }
        go_on(200);
    });
    magent.client().ask("mn\r\n", "MN\r\n");
}

// --- what magent says of itself

#[test]
fn version_names_the_level() {
    let (magent, _server) = single();
    magent.client().ask("version\r\n", "VERSION 1.6.18\r\n");
}

#[test]
fn stats_of_every_kind() {
    let (magent, servers) = farm(true, &[]);
    let mut client = magent.client();
    client.set("a", "x").get("a");
    for (i, server) in servers.iter().enumerate() {
        let fields = magent.server(&server.name);
        let role = if i < 3 { "primary" } else { "backup" };
        assert_eq!(
            fields.get("role").map(String::as_str),
            Some(role),
            "{fields:?}"
        );
        assert!(fields.contains_key("state"), "{fields:?}");
    }
    let home = keys::home("a", 3);
    wait_for("a primary to be warming or up", || {
        let state = magent.server(&servers[home].name).get("state").cloned();
        matches!(state.as_deref(), Some("up" | "warming")).then_some(())
    });
    let proxy = client.stats("stats proxy\r\n");
    for name in [
        "pid",
        "uptime",
        "time",
        "version",
        "curr_connections",
        "total_connections",
        "rejected_connections",
        "cmd_get",
        "cmd_set",
        "get_hits",
        "get_misses",
        "bytes_read",
        "bytes_written",
    ] {
        assert!(proxy.contains_key(name), "no {name} in {proxy:?}");
    }
    assert_eq!(proxy["pid"], magent.pid().to_string());
    assert_eq!(
        (proxy["cmd_get"].as_str(), proxy["get_hits"].as_str()),
        ("1", "1")
    );
    assert!(!client.stats("stats settings\r\n").is_empty());
    let route = client.stats("stats route a\r\n");
    let all = format!("{route:?}");
    assert!(
        all.contains(&servers[home].name) && all.contains(&servers[3].name),
        "{all}"
    );
    assert!(all.contains(&keys::djb(b"a").to_string()), "{all}");
    client.ask("stats reset\r\n", "RESET\r\n");
}

#[test]
fn bare_stats_in_memcached_form() {
    let server = Memcached::start();
    let magent = Magent::farm(&[&server.name], &[], &["--memcached-stats"]);
    let stats = magent.client().stats("stats\r\n");
    assert_eq!(
        stats.get("pid"),
        Some(&magent.pid().to_string()),
        "{stats:?}"
    );
}

#[test]
fn flush_all_refused() {
    let server = Memcached::start();
    let magent = Magent::farm(&[&server.name], &[], &["-F"]);
    let direct = Memcached::with(&["-F"]);
    for request in [
        "flush_all\r\n",
        "flush_all 0\r\n",
        "flush_all noreply\r\n",
        "flush_all x\r\n",
    ] {
        let answers = [magent.client(), direct.client()]
            .map(|mut c| show(&c.send(request).read_until_quiet()));
        assert_eq!(answers[0], answers[1], "{request:?}");
    }
}

#[test]
fn one_client_too_many_is_told() {
    let server = Memcached::start();
    let magent = Magent::farm(&[&server.name], &[], &["-n", "3"]);
    let mut first: Vec<Client> = Vec::new();
    // The connection that looked whether magent listens may take its place for a moment.
    wait_for("three clients", || {
        first.clear();
        first.extend((0..3).map(|_| magent.client()));
        first
            .iter_mut()
            .all(|c| c.try_send(b"mn\r\n").is_ok() && c.read_line() == b"MN\r\n")
            .then_some(())
    });
    let mut fourth = magent.client();
    assert_eq!(
        show(&fourth.read_to_end()),
        show(b"SERVER_ERROR OUT OF CONNECTION\r\n")
    );
    first.pop();
    wait_for("a place", || {
        let mut client = magent.client();
        client.try_send(b"mn\r\n").ok()?;
        (client.read_until_true(|b| b.ends_with(b"\n")).0 == b"MN\r\n").then_some(())
    });
}
