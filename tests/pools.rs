//! The pools of a configuration file, on real memcacheds: each with its listeners, farms and
//! settings, and every setting at work.

mod common;

use common::{Client, Magent, Memcached, wait_for};
use nix::sys::signal::Signal;
use socket2::{Domain, SockAddr, Socket, Type};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;

fn memcacheds(count: usize) -> Vec<Memcached> {
    (0..count).map(|_| Memcached::start()).collect()
}

/// The `servers:` of a pool.
fn servers(list: &[Memcached]) -> String {
    let lines = list.iter().map(|s| format!("  - {}:1\n", s.name));
    format!("  servers:\n{}", lines.collect::<String>())
}

#[test]
fn each_pool_has_its_own_listeners_farms_and_settings() {
    let (a, b) = (memcacheds(2), memcacheds(1));
    let magent = Magent::with_file(&format!(
        "alpha:\n  listen:\n  - 127.0.0.1:PORT\n  - DIR/a 0600\n  distribution: modula\n  \
         hash: crc32\n  max_value: 1k\n{}beta:\n  listen: DIR/b 0770\n  flush_all: false\n{}",
        servers(&a),
        servers(&b)
    ));
    for (name, mode) in [("a", 0o600), ("b", 0o770)] {
        let file = fs::metadata(magent.dir().join(name)).expect("a socket");
        assert_eq!(file.permissions().mode() & 0o777, mode);
    }
    let mut tcp = magent.client();
    let mut unix = Client::unix(&magent.dir().join("a"));
    let mut beta = Client::unix(&magent.dir().join("b"));
    for i in 0..30 {
        let key = format!("key{i}");
        tcp.set(&key, "alpha");
        beta.set(&key, "beta");
        assert_eq!(unix.get(&key).as_deref(), Some(&b"alpha"[..]));
        assert_eq!(b[0].value(&key).as_deref(), Some(&b"beta"[..]));
        let home = usize::from(a[1].value(&key).is_some());
        let route = tcp.stats(&format!("stats route {key}\r\n"));
        assert_eq!(route["primary"], a[home].name);
        assert_eq!(route["hash_function"], "crc32");
    }
    // Limits.
    let large = format!("set large 0 0 2000\r\n{}\r\n", "x".repeat(2000));
    tcp.ask(&large, "SERVER_ERROR object too large for cache\r\n");
    beta.ask(&large, "STORED\r\n");
    let refused = beta.ask_line("flush_all\r\n");
    assert!(refused.contains("ERROR"), "{refused}");
    tcp.ask("flush_all\r\n", "OK\r\n");
    assert_eq!(beta.get("key1").as_deref(), Some(&b"beta"[..]));
    assert_eq!(tcp.get("key1"), None);
    // `stats` speaks of the client's own pool, `stats pools` of all.
    let names = |stats: std::collections::BTreeMap<String, String>| -> BTreeSet<String> {
        let server = |k: &String| k.rsplit_once(':').map(|n| n.0.to_string());
        stats.keys().filter_map(server).collect()
    };
    let of = |list: &[Memcached]| list.iter().map(|s| s.name.clone()).collect();
    assert_eq!(names(tcp.stats("stats servers\r\n")), of(&a));
    assert_eq!(names(beta.stats("stats servers\r\n")), of(&b));
    beta.send("stats\r\n");
    let matrix = String::from_utf8_lossy(&beta.read_until(b"END\r\n")).into_owned();
    assert!(matrix.contains(&format!("matrix 1 -> {}, pool size 1\r\n", b[0].name)));
    assert!(!matrix.contains("matrix 2"), "{matrix}");
    let pools = beta.stats("stats pools\r\n");
    assert_eq!(pools["alpha:curr_connections"], "2");
    assert_eq!(pools["beta:curr_connections"], "1");
    assert_eq!(pools["alpha:primaries"], "2");
    assert_eq!(pools["beta:distribution"], "ketama");
}

#[test]
fn client_connections_bounds_each_pool() {
    let list = memcacheds(1);
    let magent = Magent::with_file(&format!(
        "alpha:\n  listen: 127.0.0.1:PORT\n{0}beta:\n  listen: DIR/b\n  client_connections: 2\n{0}",
        servers(&list)
    ));
    let path = magent.dir().join("b");
    let mut first = Client::unix(&path);
    let mut second = Client::unix(&path);
    first.ask("mn\r\n", "MN\r\n");
    second.ask("mn\r\n", "MN\r\n");
    let mut third = Client::unix(&path);
    third.expect("SERVER_ERROR OUT OF CONNECTION\r\n");
    assert!(third.read_to_end().is_empty());
    let mut others: Vec<Client> = (0..5).map(|_| magent.client()).collect();
    for other in &mut others {
        other.ask("mn\r\n", "MN\r\n");
    }
    drop(second);
    wait_for("a place in beta", || {
        let mut client = Client::unix(&path);
        client.try_send(b"mn\r\n").ok()?;
        (client.read_line() == b"MN\r\n").then_some(())
    });
}

#[test]
fn server_connections_are_opened_by_use_and_by_preconnect_at_once() {
    let list = memcacheds(2);
    let pool = |name: &str, listen: &str, more: &str, server: &Memcached| {
        format!(
            "{name}:\n  listen: {listen}\n  server_connections: 3\n{more}  servers:\n  - {}:1\n",
            server.name
        )
    };
    let magent = Magent::with_file(
        &[
            pool("lazy", "127.0.0.1:PORT", "", &list[0]),
            pool("eager", "DIR/e", "  preconnect: true\n", &list[1]),
        ]
        .concat(),
    );
    list[1].wait_connections(3);
    assert_eq!(
        list[0].stat("curr_connections"),
        list[1].stat("curr_connections") - 3
    );
    let mut client = magent.client();
    for i in 0..50 {
        client.set(&format!("key{i}"), "v");
    }
    list[0].wait_connections(3);
    // A key has one link, so what is asked of it stays in order.
    let mut requests = String::new();
    for i in 0..2000 {
        requests += &format!("set key{} 0 0 4\r\n{i:04}\r\n", i % 7);
    }
    client.ask(requests, "STORED\r\n".repeat(2000));
    for key in 0..7 {
        let last = (0..2000).filter(|i| i % 7 == key).max().expect("one");
        let value = client.get(&format!("key{key}"));
        assert_eq!(value, Some(format!("{last:04}").into_bytes()));
    }
}

/// The timer of the kernel's socket between `from` and port `to`: 2 is keepalive.
fn timer(to: u16, pid: u32) -> Option<String> {
    let table = fs::read_to_string(format!("/proc/{pid}/net/tcp")).expect("the table");
    let remote = format!("0100007F:{to:04X}");
    table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let established = fields.get(2) == Some(&remote.as_str()) && fields[3] == "01";
        established.then(|| fields[5][..2].to_string())
    })
}

#[test]
fn tcpkeepalive_is_set_where_it_is_asked_for() {
    let list = memcacheds(2);
    let magent = Magent::with_file(&format!(
        "on:\n  listen: 127.0.0.1:PORT\n  preconnect: true\n  tcpkeepalive: true\n  servers:\n  \
         - {}:1\noff:\n  listen: DIR/off\n  preconnect: true\n  servers:\n  - {}:1\n",
        list[0].name, list[1].name
    ));
    list.iter().for_each(|s| s.wait_connections(1));
    // A retransmission timer may be on for a moment after the handshake.
    wait_for("the keepalive timer", || {
        (timer(list[0].port, magent.pid())? == "02").then_some(())
    });
    wait_for("no timer", || {
        (timer(list[1].port, magent.pid())? == "00").then_some(())
    });
}

#[test]
fn backlog_is_the_length_of_the_queue() {
    let list = memcacheds(1);
    let text = |backlog: u32| {
        format!(
            "alpha:\n  listen: 127.0.0.1:PORT\n{0}beta:\n  listen: DIR/b\n  backlog: {backlog}\n{0}",
            servers(&list)
        )
    };
    let magent = Magent::with_file(&text(3));
    let address = SockAddr::unix(magent.dir().join("b")).expect("an address");
    let room = || {
        magent.signal(Signal::SIGSTOP);
        wait_for("magent to stop", || {
            let stat = fs::read_to_string(format!("/proc/{}/stat", magent.pid())).ok()?;
            stat.rsplit(") ").next()?.starts_with('T').then_some(())
        });
        let mut waiting = Vec::new();
        let full = loop {
            let socket = Socket::new(Domain::UNIX, Type::STREAM, None).expect("a socket");
            socket.set_nonblocking(true).expect("non-blocking");
            match socket.connect(&address) {
                Ok(()) => waiting.push(socket),
                Err(_) => break waiting.len(),
            }
        };
        magent.signal(Signal::SIGCONT);
        full
    };
    // The kernel takes one more than it is told.
    assert_eq!(room(), 4);
    assert!(magent.reload(&text(7)));
    assert_eq!(room(), 8);
}

#[test]
fn idle_timeout_and_hash_tag_are_each_pools_own() {
    let list = memcacheds(3);
    let magent = Magent::with_file(&format!(
        "alpha:\n  listen: 127.0.0.1:PORT\n  idle_timeout: 1\n  hash_tag: \"{{}}\"\n  hash: md5\n{0}beta:\n  \
         listen: DIR/b\n  hash: md5\n{0}",
        servers(&list)
    ));
    let mut beta = Client::unix(&magent.dir().join("b"));
    let mut alpha = magent.client();
    let mut homes = [BTreeSet::new(), BTreeSet::new()];
    for i in 0..30 {
        let request = format!("stats route {{user}}:{i}\r\n");
        homes[0].insert(alpha.stats(&request)["primary"].clone());
        homes[1].insert(beta.stats(&request)["primary"].clone());
    }
    assert_eq!((homes[0].len(), homes[1].len()), (1, 3));
    assert!(alpha.read_to_end().is_empty(), "closed when idle");
    beta.ask("mn\r\n", "MN\r\n");
}

#[test]
fn random_spreads_over_all_servers_and_leaves_out_the_ejected() {
    let mut list = memcacheds(3);
    let magent = Magent::with_file(&format!(
        "alpha:\n  listen: 127.0.0.1:PORT\n  distribution: random\n  auto_eject_hosts: true\n  \
         server_failure_limit: 1\n  server_retry_timeout: 100\n  timeout: 30000\n{}",
        servers(&list)
    ));
    let mut client = magent.client();
    for _ in 0..60 {
        client.set("one", "v");
    }
    assert!(list.iter().all(|s| s.value("one").is_some()));
    let found = (0..60).filter(|_| client.get("one").is_some()).count();
    assert_eq!(found, 60);
    list[1].kill();
    let errors = (0..60)
        .filter(|_| {
            client
                .ask_line("delete none\r\n")
                .starts_with("SERVER_ERROR")
        })
        .count();
    assert!(errors <= 1, "{errors} errors");
    magent.wait_state(&list[1].name, "down");
    list[1].restart();
    magent.wait_state(&list[1].name, "up");
    wait_for("the server that is back to be used", || {
        client.set("two", "v");
        list[1].value("two")
    });
}

#[test]
fn a_hung_server_leaves_the_ring_and_nothing_old_comes_back_with_it() {
    let list = memcacheds(3);
    let magent = Magent::with_file(&format!(
        "alpha:\n  listen: 127.0.0.1:PORT\n  auto_eject_hosts: true\n  hash: md5\n  timeout: 1000\n  \
         server_failure_limit: 2\n  server_retry_timeout: 200\n{}",
        servers(&list)
    ));
    let mut client = magent.client();
    let keys: Vec<String> = (0..60).map(|i| format!("key{i}")).collect();
    let of_first = |client: &mut Client| -> Vec<&String> {
        let home = |k: &&String| {
            let route = client.stats(&format!("stats route {k}\r\n"));
            route["primary"] == list[0].name
        };
        keys.iter().filter(home).collect()
    };
    let moved = of_first(&mut client);
    assert!(!moved.is_empty());
    for round in 0..2 {
        for key in &keys {
            client.set(key, format!("home{round}"));
        }
        list[0].stop();
        while magent.server(&list[0].name)["state"] != "down" {
            let line = client.ask_line(format!("touch {} 0\r\n", moved[0]));
            assert!(
                line.contains("timed out") || line.contains("down"),
                "{line}"
            );
        }
        for key in &moved {
            assert_eq!(
                client.get(key),
                None,
                "{key} on its stand-in, round {round}"
            );
            client.set(key, format!("away{round}"));
            let away = format!("away{round}").into_bytes();
            assert_eq!(client.get(key), Some(away));
        }
        list[0].cont();
        magent.wait_state(&list[0].name, "up");
        for key in &keys {
            let want = (!moved.contains(&key)).then(|| format!("home{round}").into_bytes());
            assert_eq!(client.get(key), want, "{key} at home, round {round}");
        }
    }
    assert_eq!(client.stats("stats proxy\r\n")["ejections"], "2");
}
