//! Servers that leave the ring and come back: who answers meanwhile, and that
//! no key ever comes back with an old value.

mod common;

use common::Peer;
use common::rng::Rng;
use common::world::{State, World, file as config};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const PORTS: [u16; 4] = [1001, 1002, 1003, 1004];

/// A pool that ejects; servers of unequal weight, so that a ring without one of them moves keys
/// between the others as well.
fn pool(weights: &[u32], more: &str) -> String {
    let mut text = String::from(
        "alpha:
  listen: 127.0.0.1:1
  auto_eject_hosts: true
  server_failure_limit: 2
  server_retry_timeout: 100
  timeout: 50
",
    );
    text += more;
    text += "  servers:\n";
    for (port, weight) in PORTS.iter().zip(weights) {
        text += &format!("  - 127.0.0.1:{port}:{weight} s{port}\n");
    }
    text
}

const MS: Duration = Duration::from_millis(1);

/// Sends, and lets time pass until every line that is owed has come.
fn answers(world: &mut World, client: &Peer, request: &str, lines: usize) -> Vec<String> {
    let mut text = world.ask(client, request);
    for _ in 0..200 {
        if text.matches("\r\n").count() >= lines {
            return text.split_terminator("\r\n").map(str::to_string).collect();
        }
        world.advance(10 * MS);
        text += &String::from_utf8_lossy(&world.take(client));
    }
    panic!("{request:?} was answered {text:?}");
}

fn port_of(world: &mut World, client: &Peer, key: &str) -> u16 {
    let name = world.stat_for(client, &format!("route {key}"), "primary");
    name.rsplit(':')
        .next()
        .and_then(|p| p.parse().ok())
        .expect("a port")
}

/// A key that lives on `port`.
fn key_on(world: &mut World, client: &Peer, port: u16) -> String {
    let all = (0..1000).map(|i| format!("key{i}"));
    all.into_iter()
        .find(|k| port_of(world, client, k) == port)
        .expect("a key there")
}

#[test]
fn a_server_that_fails_so_often_in_a_row_leaves_and_a_probe_brings_it_back() {
    let mut world = World::of(config(&pool(&[1, 1, 1], "")));
    let client = &world.connect(0);
    let key = key_on(&mut world, client, 1001);
    let set = format!("set {key} 0 0 1\r\n1\r\n");
    assert_eq!(world.ask(client, &set), "STORED\r\n");
    world.become_state(1001, State::Gone);
    let refused = "SERVER_ERROR 127.0.0.1:1001 connection refused\r\n";
    assert_eq!(world.ask(client, &set), refused);
    // In between a good answer: counted from 0 again.
    world.become_state(1001, State::Well);
    assert_eq!(world.ask(client, &set), "STORED\r\n");
    world.become_state(1001, State::Gone);
    assert_eq!(world.ask(client, &set), refused);
    assert_eq!(world.ask(client, &set), refused);
    assert_eq!(world.ask(client, &set), "STORED\r\n");
    assert_ne!(port_of(&mut world, client, &key), 1001);
    assert_eq!(
        world.stat_for(client, "servers", "127.0.0.1:1001:state"),
        "down"
    );
    assert_eq!(world.stat_for(client, "proxy", "ejections"), "1");
    // It is there again, but nobody tries it before its time, and no client ever.
    world.become_state(1001, State::Well);
    for _ in 0..20 {
        assert_eq!(world.ask(client, &set), "STORED\r\n");
    }
    assert_eq!(world.open_links(1001), 0);
    world.advance(70 * MS);
    assert_eq!(world.open_links(1001), 0);
    world.advance(60 * MS);
    assert_eq!(
        world.stat_for(client, "servers", "127.0.0.1:1001:state"),
        "up"
    );
    assert_eq!(port_of(&mut world, client, &key), 1001);
    assert_eq!(world.get(client, &key), None, "both were told to drop it");
    assert!(world.servers.values().all(|s| s.store.items().is_empty()));
}

#[test]
fn with_all_servers_out_each_request_names_its_server() {
    let mut world = World::of(config(&pool(&[1, 1, 1], "")));
    let client = &world.connect(0);
    let keys = [1001, 1002, 1003].map(|p| key_on(&mut world, client, p));
    for port in [1001, 1002, 1003] {
        world.become_state(port, State::Gone);
    }
    for _ in 0..3 {
        for key in &keys {
            answers(&mut world, client, &format!("get {key}\r\n"), 1);
        }
    }
    for (key, port) in keys.iter().zip(&PORTS) {
        let answer = world.ask(client, format!("get {key}\r\n"));
        assert_eq!(answer, format!("SERVER_ERROR 127.0.0.1:{port} down\r\n"));
    }
}

/// The scene of twemproxy's issue 604.
#[test]
fn a_key_rewritten_on_a_stand_in_never_comes_back_stale() {
    let mut world = World::of(config(&pool(&[1, 1, 1], "")));
    let client = &world.connect(0);
    let key = key_on(&mut world, client, 1002);
    let set = |v: u32| format!("set {key} 0 0 1\r\n{v}\r\n");
    let get = format!("get {key}\r\n");
    let mut stand_ins = BTreeSet::new();
    for round in 0..4 {
        assert_eq!(world.ask(client, set(round)), "STORED\r\n");
        world.become_state(1002, State::Hung);
        // Writes that go unanswered: they are in its socket, and read when it wakes.
        answers(&mut world, client, &set(9), 1);
        answers(&mut world, client, &set(9), 1);
        assert_eq!(
            world.ask(client, &get),
            "END\r\n",
            "nothing old on the stand-in"
        );
        assert_eq!(world.ask(client, set(round + 4)), "STORED\r\n");
        stand_ins.insert(port_of(&mut world, client, &key));
        assert_eq!(world.get(client, &key), Some((round + 4).to_string()));
        world.become_state(1002, State::Well);
        world.advance(200 * MS);
        assert_eq!(port_of(&mut world, client, &key), 1002);
        assert_eq!(world.ask(client, &get), "END\r\n", "nothing old at home");
    }
    assert_eq!(stand_ins.len(), 1);
}

/// Keys that live on 1001, in the number asked for.
fn keys_at_home(world: &mut World, client: &Peer, count: usize) -> Vec<String> {
    let all = (0..10_000).map(|i| format!("many{i}"));
    let mut keys = Vec::new();
    for key in all {
        if keys.len() < count && port_of(world, client, &key) == 1001 {
            keys.push(key);
        }
    }
    keys
}

fn sets(keys: &[String], value: u32) -> String {
    let set = |k: &String| format!("set {k} 0 0 1\r\n{value}\r\n");
    keys.iter().map(set).collect()
}

/// Takes 1001 out of the ring by requests that fail.
fn eject(world: &mut World, client: &Peer, key: &str) {
    world.become_state(1001, State::Gone);
    for _ in 0..3 {
        world.ask(client, format!("get {key}\r\n"));
    }
    assert_ne!(port_of(world, client, key), 1001);
}

#[test]
fn a_full_list_of_a_stand_in_is_worked_off_while_it_works() {
    let mut world = World::of(config(&pool(&[1, 1, 1], "  journal: 8k\n")));
    let client = &world.connect(0);
    let keys = keys_at_home(&mut world, client, 300);
    eject(&mut world, client, &keys[0]);
    for key in &keys {
        world.ask(client, sets(std::slice::from_ref(key), 1));
        for port in [1002, 1003] {
            let name = format!("127.0.0.1:{port}:journal_bytes");
            let bytes: usize = world.stat_for(client, "servers", &name).parse().unwrap();
            assert!(bytes <= 4096 + 100, "{bytes}");
        }
    }
    let held: usize = [1002, 1003]
        .map(|p| world.servers[&p].store.items().len())
        .iter()
        .sum();
    assert!(held < 150, "{held} keys are left on the stand-ins");
    assert_eq!(
        world.stat_for(client, "proxy", "limit_journal_overflows"),
        "1",
        "that of 1001"
    );
}

#[test]
fn a_list_that_overflows_becomes_a_flush_of_the_stand_in() {
    let mut world = World::of(config(&pool(&[1, 1, 1], "  journal: 1k\n")));
    let client = &world.connect(0);
    let keys = keys_at_home(&mut world, client, 100);
    eject(&mut world, client, &keys[0]);
    // All in one turn, faster than deletes can be answered.
    let stored = world.ask(client, sets(&keys, 1));
    assert_eq!(stored, "STORED\r\n".repeat(keys.len()));
    let overflows = world.stat_for(client, "proxy", "limit_journal_overflows");
    assert!(
        overflows.parse::<u64>().is_ok_and(|n| n > 1),
        "that of a stand-in too: {overflows}"
    );
    world.become_state(1001, State::Well);
    world.advance(200 * MS);
    world.ask(client, sets(&keys, 2));
    assert!(keys.iter().all(|k| port_of(&mut world, client, k) == 1001));
    eject(&mut world, client, &keys[0]);
    for key in &keys {
        assert_eq!(world.get(client, key), None, "{key}");
    }
}

/// What reads of a key may give, by what was acknowledged.
#[derive(Default)]
struct Known {
    values: BTreeMap<String, BTreeSet<String>>,
}

impl Known {
    fn of(&mut self, key: &str) -> &mut BTreeSet<String> {
        self.values.entry(key.to_string()).or_default()
    }

    fn stored(&mut self, key: &str, value: &str) {
        *self.of(key) = BTreeSet::from([value.to_string()]);
    }
}

/// One batch of pipelined requests of a client, and what their answers say.
fn batch(world: &mut World, client: &Peer, known: &mut Known, seed: &mut Rng, tag: &mut u32) {
    let mut request = String::new();
    let mut sent = Vec::new();
    let mut used = BTreeSet::new();
    for _ in 0..1 + seed.below(12) {
        let key = format!("key{}", seed.below(60));
        if !used.insert(key.clone()) {
            continue;
        }
        *tag += 1;
        let value = format!("v{tag}");
        let verb = ["get", "get", "set", "set", "delete", "add", "append"][seed.below(7) as usize];
        request += &match verb {
            "get" | "delete" => format!("{verb} {key}\r\n"),
            _ => format!("{verb} {key} 0 0 {}\r\n{value}\r\n", value.len()),
        };
        sent.push((verb, key, value));
    }
    // A get's answer has one line or three, so each request is followed by one that ends it.
    let request: String = request
        .split_inclusive("\r\n")
        .map(|l| match l.starts_with("get ") {
            true => format!("{l}mn\r\n"),
            false => l.to_string(),
        })
        .collect();
    let lines = sent.iter().map(|s| 1 + usize::from(s.0 == "get")).sum();
    let mut got = answers(world, client, &request, lines);
    while !finished(&sent, &got) {
        world.advance(10 * MS);
        let more = String::from_utf8_lossy(&world.take(client)).into_owned();
        got.extend(more.split_terminator("\r\n").map(str::to_string));
    }
    let mut got = got.into_iter();
    for (verb, key, value) in sent {
        let line = got.next().expect("a line");
        let may_be = known.of(&key);
        match (verb, line.as_str()) {
            ("get", "END") => assert_eq!(got.next().as_deref(), Some("MN")),
            ("get", l) if l.starts_with("SERVER_ERROR") => {
                assert_eq!(got.next().as_deref(), Some("MN"));
            }
            ("get", _) => {
                let read = got.next().expect("a value");
                assert!(may_be.contains(&read), "{key}: {read}, not of {may_be:?}");
                assert_eq!(got.next().as_deref(), Some("END"));
                assert_eq!(got.next().as_deref(), Some("MN"));
            }
            ("set" | "add", "STORED") => known.stored(&key, &value),
            ("append", "STORED") => {
                *may_be = may_be.iter().map(|v| format!("{v}{value}")).collect();
            }
            ("add" | "append", "NOT_STORED") => {}
            ("delete", "DELETED" | "NOT_FOUND") => may_be.clear(),
            (_, l) => {
                assert!(l.starts_with("SERVER_ERROR"), "{verb}: {l}");
                // It may have run, or run later.
                match verb {
                    "append" => {
                        let longer = may_be.iter().map(|v| format!("{v}{value}"));
                        let longer: Vec<String> = longer.collect();
                        may_be.extend(longer);
                    }
                    "delete" => {}
                    _ => {
                        may_be.insert(value);
                    }
                }
            }
        }
    }
}

/// One request for many keys, as `get` or as the write that `gat` is.
fn many(world: &mut World, client: &Peer, known: &mut Known, seed: &mut Rng) {
    let keys: Vec<String> = (0..10).map(|_| format!("key{}", seed.below(60))).collect();
    let verb = ["get", "gat 0"][seed.below(2) as usize];
    let mut text = world.ask(client, format!("{verb} {}\r\n", keys.join(" ")));
    while !text.ends_with("END\r\n") && !text.starts_with("SERVER_ERROR") {
        world.advance(10 * MS);
        text += &String::from_utf8_lossy(&world.take(client));
    }
    let mut lines = text.lines();
    while let Some(key) = lines.next().and_then(|l| l.strip_prefix("VALUE ")) {
        let key = key.split(' ').next().expect("a key");
        let read = lines.next().expect("a value");
        let may_be = known.of(key);
        assert!(may_be.contains(read), "{key}: {read}, not of {may_be:?}");
    }
}

/// True if every request has its whole answer.
fn finished(sent: &[(&str, String, String)], got: &[String]) -> bool {
    let mns = got.iter().filter(|l| *l == "MN").count();
    let gets = sent.iter().filter(|s| s.0 == "get").count();
    let others = sent.len() - gets;
    let of_others = |l: &&String| {
        matches!(
            l.as_str(),
            "STORED" | "NOT_STORED" | "DELETED" | "NOT_FOUND"
        )
    };
    let errors = got.iter().filter(|l| l.starts_with("SERVER_ERROR")).count();
    mns == gets && got.iter().filter(of_others).count() + errors >= others
}

fn storm(seed: u64, weights: &[u32], more: &str) {
    println!("seed {seed}, weights {weights:?}, {more:?}");
    let seed = &mut Rng::new(seed);
    let mut world = World::of(config(&pool(weights, more)));
    world.jumble = Some(Rng::new(seed.next()));
    let client = &world.connect(0);
    let (mut known, mut tag) = (Known::default(), 0);
    for _ in 0..120 {
        let port = PORTS[seed.below(weights.len() as u64) as usize];
        let mood = [State::Well, State::Hung, State::Gone, State::Well][seed.below(4) as usize];
        world.become_state(port, mood);
        for _ in 0..seed.below(6) {
            batch(&mut world, client, &mut known, seed, &mut tag);
            many(&mut world, client, &mut known, seed);
        }
        let long = [1, 60, 150, 1000, 40_000][seed.below(5) as usize];
        world.advance(MS * (1 + seed.below(long) as u32));
    }
    for port in PORTS {
        world.become_state(port, State::Well);
    }
    world.advance(Duration::from_secs(90));
    for _ in 0..20 {
        batch(&mut world, client, &mut known, seed, &mut tag);
    }
    for port in &PORTS[..weights.len()] {
        let state = world.stat_for(client, "servers", &format!("127.0.0.1:{port}:state"));
        let left = world.stat_for(client, "servers", &format!("127.0.0.1:{port}:journal_keys"));
        assert_eq!((state.as_str(), left.as_str()), ("up", "0"));
    }
    let ejections = world.stat("ejections");
    assert!(ejections > 5, "{ejections} ejections: not much of a storm");
}

#[test]
fn no_read_is_stale_whoever_leaves_and_returns() {
    let fresh = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("a clock");
    for seed in (1..=8).chain([fresh.as_nanos() as u64]) {
        storm(seed, &[1, 1, 1], "");
        storm(seed, &[1, 3, 2, 1], "");
        storm(seed, &[5, 1, 1, 2], "  server_connections: 3\n");
        storm(seed, &[1, 3, 2, 1], "  journal: 1k\n");
        storm(seed, &[1, 2, 1, 1], "  hash: md5\n  distribution: modula\n");
    }
}
