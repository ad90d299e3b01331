//! Rings that a reload changes: every key that was readable stays so, nothing old is read, and keys go
//! where they belong.

mod common;

#[path = "moves/real.rs"]
mod real;
#[path = "moves/rolling.rs"]
mod rolling;

use common::world::{Peer, State, World, file, file_with};
use std::collections::BTreeMap;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

/// `--warm` of all pools here.
const WARM: Duration = Duration::from_secs(100);

/// One pool: its settings, its servers and its backups, a line each.
fn pool(name: &str, listen: u16, settings: &str, servers: &[&str], backups: &[&str]) -> String {
    let mut text = format!("{name}:\n  listen: 127.0.0.1:{listen}\n  warm: 100\n  timeout: 200\n");
    text += &format!("  hash: md5\n  distribution: modula\n{settings}");
    for (list, of) in [("servers", servers), ("backups", backups)] {
        if !of.is_empty() {
            text += &format!("  {list}:\n");
            text.extend(of.iter().map(|s| format!("  - {s}\n")));
        }
    }
    text
}

/// A pool `a` whose keys a hash places.
fn ring(servers: &[&str], backups: &[&str]) -> String {
    pool("a", 1, "", servers, backups)
}

/// A world, a client, and what the client must read.
struct Farm {
    world: World,
    client: Peer,
    values: BTreeMap<String, String>,
}

impl Farm {
    fn new(text: &str) -> Farm {
        let mut world = World::of(file(text));
        world.name("h", &["127.0.0.1"]);
        let client = world.connect(0);
        let mut farm = Farm {
            world,
            client,
            values: BTreeMap::new(),
        };
        for i in 0..60 {
            farm.set(&format!("k{i}"), &format!("{}", 10 + i));
        }
        farm
    }

    fn ask(&mut self, request: impl AsRef<[u8]>) -> String {
        self.world.ask(&self.client, request)
    }

    #[track_caller]
    fn set(&mut self, key: &str, value: &str) {
        let request = format!("set {key} 7 0 {}\r\n{value}\r\n", value.len());
        assert_eq!(self.ask(request), "STORED\r\n");
        self.values.insert(key.into(), value.into());
    }

    #[track_caller]
    fn delete(&mut self, key: &str) {
        assert_eq!(self.ask(format!("delete {key}\r\n")), "DELETED\r\n");
        self.values.remove(key);
    }

    /// Every key of the first 60 reads as it must, one by one and all at once.
    #[track_caller]
    fn check(&mut self) {
        let keys: Vec<String> = (0..60).map(|i| format!("k{i}")).collect();
        let shown = |key: &String, values: &BTreeMap<String, String>| {
            let value = values.get(key);
            value.map_or(String::new(), |v| {
                format!("VALUE {key} 7 {}\r\n{v}\r\n", v.len())
            })
        };
        let all: String = keys.iter().map(|k| shown(k, &self.values)).collect();
        let many = format!("get {}\r\n", keys.join(" "));
        assert_eq!(self.ask(many), all + "END\r\n");
        for key in &keys {
            let one = shown(key, &self.values);
            assert_eq!(self.ask(format!("get {key}\r\n")), one + "END\r\n");
        }
    }

    /// Where a key is, by today's ring.
    fn place(&mut self, key: &str) -> (u16, Option<u16>) {
        let route = self.ask(format!("stats route {key}\r\n"));
        let port = |name: &str| {
            let line = route.lines().find_map(|l| l.strip_prefix(name));
            line.and_then(|l| l.rsplit(':').next()?.parse().ok())
        };
        (
            port("STAT primary ").expect("a primary"),
            port("STAT backup "),
        )
    }

    fn holds(&self, port: u16, key: &str) -> Option<String> {
        let item = self.world.servers[&port].store.get(key, self.world.now)?;
        Some(String::from_utf8_lossy(&item.data).into_owned())
    }

    /// Every key is at its primary, and what else holds it holds the same.
    #[track_caller]
    fn check_stores(&mut self) {
        let ports: Vec<u16> = self.world.servers.keys().copied().collect();
        for i in 0..60 {
            let key = format!("k{i}");
            let value = self.values.get(&key).cloned();
            let (primary, _) = self.place(&key);
            assert_eq!(self.holds(primary, &key), value, "{key} at {primary}");
            for port in &ports {
                let held = self.holds(*port, &key);
                assert!(held.is_none() || held == value, "{key} at {port}: {held:?}");
            }
        }
    }

    fn reload(&mut self, text: &str) {
        self.world.reload(file(text));
    }

    fn moving(&mut self) -> String {
        self.world.stat_for(&self.client, "pools", "a:moving")
    }
}

/// A write that a hung server may still run, of a key that went elsewhere meanwhile.
#[test]
fn a_write_that_was_lost_where_the_key_was_is_undone_there() {
    let two = ["127.0.0.1:1001:1", "127.0.0.1:1002:1"];
    let three = ["127.0.0.1:1001:1", "127.0.0.1:1002:1", "127.0.0.1:1003:1"];
    let mut farm = Farm::new(&ring(&three, &[]));
    let all: Vec<String> = (0..500).map(|i| format!("new{i}")).collect();
    let is_there = |farm: &mut Farm, key: &String| farm.place(key).0 == 1003;
    let late: Vec<String> = all.into_iter().filter(|k| is_there(&mut farm, k)).collect();
    farm.reload(&ring(&two, &[]));
    farm.world.advance(WARM + 10 * SECOND);
    assert_eq!(farm.moving(), "no");
    let key = late
        .iter()
        .find(|k| farm.place(k).0 == 1001)
        .expect("one")
        .clone();
    farm.world.become_state(1001, State::Hung);
    let set = |value: &str| format!("set {key} 7 0 3\r\n{value}\r\n");
    let client = farm.client.clone();
    farm.world.send(&client, set("old"));
    farm.world.step();
    farm.reload(&ring(&three, &[]));
    farm.world.advance(SECOND);
    let said = farm.world.take_text(&client);
    assert_eq!(said, "SERVER_ERROR 127.0.0.1:1001 timed out\r\n");
    farm.world.advance(WARM + 10 * SECOND);
    assert_eq!(farm.ask(set("new")), "STORED\r\n");
    farm.reload(&ring(&two, &[]));
    farm.world.become_state(1001, State::Well);
    farm.world.advance(20 * SECOND);
    let said = farm.ask(format!("get {key}\r\n"));
    assert_eq!(said, format!("VALUE {key} 7 3\r\nnew\r\nEND\r\n"));
}

/// All kinds of change, and back: by name, the servers and backups before and after.
type Change = (
    &'static str,
    [&'static [&'static str]; 2],
    [&'static [&'static str]; 2],
);

const CHANGES: [Change; 9] = [
    (
        "added",
        [&["127.0.0.1:1001:1", "127.0.0.1:1002:1"], &[]],
        [
            &["127.0.0.1:1001:1", "127.0.0.1:1002:1", "127.0.0.1:1003:1"],
            &[],
        ],
    ),
    (
        "removed",
        [
            &["127.0.0.1:1001:1", "127.0.0.1:1002:1", "127.0.0.1:1003:1"],
            &[],
        ],
        [&["127.0.0.1:1001:1", "127.0.0.1:1002:1"], &[]],
    ),
    (
        "reweighted",
        [&["127.0.0.1:1001:1", "127.0.0.1:1002:1"], &[]],
        [&["127.0.0.1:1001:1", "127.0.0.1:1002:5"], &[]],
    ),
    (
        "renamed",
        [&["127.0.0.1:1001:1 one", "127.0.0.1:1002:1 two"], &[]],
        [&["127.0.0.1:1001:1 uno", "127.0.0.1:1002:1 due"], &[]],
    ),
    (
        "added, with a backup",
        [
            &["127.0.0.1:1001:1", "127.0.0.1:1002:1"],
            &["127.0.0.1:1008:1"],
        ],
        [
            &["127.0.0.1:1001:1", "127.0.0.1:1002:1", "127.0.0.1:1003:1"],
            &["127.0.0.1:1008:1"],
        ],
    ),
    (
        "another backup",
        [
            &["127.0.0.1:1001:1", "127.0.0.1:1002:1"],
            &["127.0.0.1:1008:1"],
        ],
        [
            &["127.0.0.1:1001:1", "127.0.0.1:1002:1"],
            &["127.0.0.1:1009:1"],
        ],
    ),
    (
        "all others",
        [
            &["127.0.0.1:1001:1", "127.0.0.1:1002:1"],
            &["127.0.0.1:1008:1"],
        ],
        [
            &["127.0.0.1:1003:1", "127.0.0.1:1004:1"],
            &["127.0.0.1:1009:1"],
        ],
    ),
    (
        "the farms change places",
        [
            &["127.0.0.1:1001:1", "127.0.0.1:1002:1"],
            &["127.0.0.1:1008:1", "127.0.0.1:1009:1"],
        ],
        [
            &["127.0.0.1:1008:1", "127.0.0.1:1009:1"],
            &["127.0.0.1:1001:1", "127.0.0.1:1002:1"],
        ],
    ),
    (
        "backups come",
        [&["127.0.0.1:1001:1", "127.0.0.1:1002:1"], &[]],
        [
            &["127.0.0.1:1001:1", "127.0.0.1:1003:1"],
            &["127.0.0.1:1008:1"],
        ],
    ),
];

#[test]
fn whatever_changes_nothing_is_lost_and_nothing_old_is_read_there_and_back() {
    for (name, before, after) in CHANGES {
        println!("{name}");
        let (before, after) = (ring(before[0], before[1]), ring(after[0], after[1]));
        let mut farm = Farm::new(&before);
        for (round, to) in [&after, &before, &after].into_iter().enumerate() {
            farm.reload(to);
            assert_ne!(farm.moving(), "no");
            // Some keys are written before they were read, some after.
            for i in 0..20 {
                farm.set(&format!("k{i}"), &format!("new {round}"));
            }
            farm.check();
            for i in 10..30 {
                farm.set(&format!("k{i}"), &format!("newer {round}"));
            }
            for i in 0..5 {
                farm.delete(&format!("k{}", 10 * round + i));
            }
            farm.check();
            farm.check_stores();
            farm.world.advance(WARM);
            assert_eq!(farm.moving(), "no");
            farm.check();
            for i in 0..20 {
                farm.set(&format!("k{i}"), "back");
            }
            // What is written after the end of the move is not deleted elsewhere: README.
            let stale: Vec<String> = (0..20).map(|i| format!("k{i}")).collect();
            for key in stale {
                let (primary, backup) = farm.place(&key);
                for (port, server) in &mut farm.world.servers {
                    if *port != primary && Some(*port) != backup {
                        server.store.remove(&key);
                    }
                }
            }
        }
    }
}

// --- one thing at a time

const TWO: [&str; 2] = ["127.0.0.1:1001:1", "127.0.0.1:1002:1"];
const THREE: [&str; 3] = ["127.0.0.1:1001:1", "127.0.0.1:1002:1", "127.0.0.1:1003:1"];

impl Farm {
    /// Keys that moved from somewhere to the third server.
    fn moved(&mut self) -> Vec<String> {
        let keys: Vec<String> = (0..60).map(|i| format!("k{i}")).collect();
        keys.into_iter()
            .filter(|k| self.place(k).0 == 1003)
            .collect()
    }

    /// Two servers, then a third one; and some keys that moved there.
    fn grown(backups: &[&str]) -> (Farm, Vec<String>) {
        let mut farm = Farm::new(&ring(&TWO, backups));
        farm.reload(&ring(&THREE, backups));
        let moved = farm.moved();
        assert!(moved.len() > 9, "{moved:?}");
        (farm, moved)
    }
}

#[test]
fn a_second_change_is_refused_while_keys_move_and_says_how_far_they_are() {
    let (mut farm, _) = Farm::grown(&[]);
    farm.world.advance(30 * SECOND);
    farm.check();
    for changed in [ring(&TWO, &[]), ring(&THREE, &["127.0.0.1:1008:1"])] {
        let refused = farm.world.try_reload(file(&changed)).expect_err("refused");
        let told = "pool a: its servers cannot change while keys move to those of the last reload (30 of \
                    100 s, ";
        assert!(refused.starts_with(told), "{refused}");
    }
    // All else may change, other pools too.
    let slower = pool("a", 1, "  timeout: 300\n", &THREE, &[]).replace("  timeout: 200\n", "");
    let other = pool("b", 2, "", &["127.0.0.1:1004:1"], &[]);
    farm.reload(&(slower.clone() + &other));
    farm.reload(&(slower + &other.replace("1004", "1005")));
    assert!(farm.moving().starts_with("30 of 100 s, "));
    farm.check();
    farm.world.advance(WARM);
    farm.reload(&ring(&TWO, &[]));
    farm.check();
}

#[test]
fn requests_that_need_a_key_find_it_where_it_was() {
    for backups in [&[][..], &["127.0.0.1:1008:1"]] {
        let (mut farm, keys) = Farm::grown(backups);
        let mut keys = keys.into_iter();
        let mut ask = |request: &str, answer: &str| {
            let key = keys.next().expect("enough keys");
            let number = farm.values[&key].clone();
            let (request, answer) = (request.replace('K', &key), answer.replace('#', &number));
            assert_eq!(farm.ask(&request), answer.replace('K', &key), "{request:?}");
            let (primary, _) = farm.place(&key);
            assert_eq!(primary, 1003);
            let elsewhere = [1001, 1002].map(|port| farm.holds(port, &key));
            (
                farm.holds(1003, &key),
                elsewhere.into_iter().flatten().next(),
            )
        };
        let (held, left) = ask(
            "add K 0 0 1\r\nx\r\nget K\r\n",
            "NOT_STORED\r\nVALUE K 7 2\r\n#\r\nEND\r\n",
        );
        assert_eq!(held, left, "it was copied, and was not changed");
        for (request, answer) in [
            ("incr K 0\r\n", "#\r\n"),
            (
                "append K 0 0 1\r\n+\r\nget K\r\n",
                "STORED\r\nVALUE K 7 3\r\n#+\r\nEND\r\n",
            ),
            ("replace K 7 0 1\r\nr\r\n", "STORED\r\n"),
            ("touch K 100\r\n", "TOUCHED\r\n"),
            ("gat 100 K\r\n", "VALUE K 7 2\r\n#\r\nEND\r\n"),
            ("ms K 1 MP\r\n+\r\nmg K v\r\n", "HD\r\nVA 3\r\n+#\r\n"),
            ("cas K 0 0 1 1\r\nc\r\n", "EXISTS\r\n"),
        ] {
            let (held, left) = ask(request, answer);
            let changes = !answer.starts_with("EXISTS");
            assert_eq!(
                (held.is_some(), left.is_none()),
                (true, changes),
                "{request}"
            );
        }
        for (request, answer) in [
            ("delete K\r\n", "DELETED\r\n"),
            ("md K\r\nmg K\r\n", "HD\r\nEN\r\n"),
        ] {
            assert_eq!(ask(request, answer), (None, None), "{request}");
        }
        farm.world.advance(WARM);
    }
}

#[test]
fn a_key_that_nobody_has_is_created_once() {
    let (mut farm, _) = Farm::grown(&[]);
    let key = (0..)
        .map(|i| format!("new{i}"))
        .find(|k| farm.place(k).0 == 1003);
    let key = key.expect("keys never end");
    let add = format!("add {key} 0 0 1\r\n1\r\n");
    assert_eq!(farm.ask(add.repeat(2)), "STORED\r\nNOT_STORED\r\n");
    assert_eq!(
        farm.ask(format!("delete {key}\r\n").repeat(2)),
        "DELETED\r\nNOT_FOUND\r\n"
    );
}

/// What was asked of a key before the reload, and is not answered yet, comes before what is asked of it
/// afterwards, wherever that goes.
#[test]
fn what_was_asked_before_the_reload_comes_first() {
    for backups in [&[][..], &["127.0.0.1:1008:1"]] {
        for connections in 1..3 {
            let settings = format!("  server_connections: {connections}\n");
            let (two, three) = (
                pool("a", 1, &settings, &TWO, backups),
                pool("a", 1, &settings, &THREE, backups),
            );
            let mut farm = Farm::new(&two);
            let before: Vec<u16> = (0..60).map(|i| farm.place(&format!("k{i}")).0).collect();
            farm.world.become_state(1001, State::Hung);
            farm.world.become_state(1002, State::Hung);
            let all = |request: &str| -> String {
                (0..60)
                    .map(|i| request.replace("K", &format!("k{i}")))
                    .collect()
            };
            let client = farm.client.clone();
            farm.world.send(
                &client,
                all("set K 0 0 3\r\nold\r\nappend K 0 0 1\r\n+\r\n"),
            );
            farm.world.step();
            farm.reload(&three);
            let other = farm.world.connect(0);
            farm.world.send(
                &client,
                all("get K\r\nset K 0 0 3\r\nnew\r\nincr K 1\r\nget K\r\n"),
            );
            farm.world.send(&other, all("delete K\r\n"));
            farm.world.step();
            farm.world.become_state(1001, State::Well);
            farm.world.become_state(1002, State::Well);
            farm.world.step();
            let got = farm.world.take_text(&client);
            assert_eq!(got.matches("STORED\r\n").count(), 180, "{got}");
            assert_eq!(farm.world.take_text(&other).lines().count(), 60);
            for (i, old) in before.into_iter().enumerate() {
                let key = format!("k{i}");
                let moved = farm.place(&key).0 != old;
                let held = farm.holds(old, &key).filter(|_| moved);
                assert_eq!(held, None, "{key} at {old}");
                // Whichever came last, the farms agree.
                let (primary, backup) = farm.place(&key);
                let copy = backup.map(|b| farm.holds(b, &key));
                let value = farm.holds(primary, &key);
                assert!(
                    value.is_none() || value.as_deref() == Some("new"),
                    "{value:?}"
                );
                assert!(copy.is_none_or(|c| c == value), "{key}");
            }
        }
    }
}

/// One memcached under two names: what is written there by the one is not deleted by the other.
#[test]
fn a_server_that_is_named_in_another_way_keeps_its_keys() {
    let mut farm = Farm::new(&ring(&["h:1001:1 one", "127.0.0.1:1002:1 two"], &[]));
    farm.reload(&ring(
        &["127.0.0.1:1001:1 one", "127.0.0.1:1002:1 two"],
        &[],
    ));
    farm.check();
    for i in 0..40 {
        farm.set(&format!("k{i}"), "new");
    }
    farm.check();
    farm.check_stores();
}

#[test]
fn keys_of_others_stay_where_they_are() {
    let b = pool("b", 2, "", &TWO, &[]);
    let mut farm = Farm::new(&(ring(&TWO, &[]) + &b));
    let other = farm.world.connect(1);
    for i in 0..60 {
        let set = |key: &str| format!("set {key}{i} 0 0 1\r\nx\r\n");
        farm.world.ask(&other, set("b"));
    }
    farm.reload(&(ring(&THREE, &[]) + &b));
    // A client that goes round magent.
    let keys: Vec<String> = (0..60).map(|i| format!("b{i}")).collect();
    farm.check();
    for i in 0..60 {
        farm.set(&format!("k{i}"), "new");
    }
    farm.check();
    farm.world.advance(WARM);
    farm.check();
    for key in &keys {
        assert_eq!(farm.world.get(&other, key), Some("x".into()), "{key}");
        assert_eq!(farm.holds(1003, key), None);
    }
}

#[test]
fn a_server_that_left_is_known_until_its_keys_have_moved() {
    let mut farm = Farm::new(&ring(&THREE, &[]));
    farm.reload(&ring(&TWO, &[]));
    let role = |farm: &mut Farm| {
        farm.ask("stats servers\r\n")
            .contains("127.0.0.1:1003:role leaving\r\n")
    };
    assert!(role(&mut farm));
    assert_eq!(
        farm.world
            .stat_for(&farm.client.clone(), "pools", "a:primaries"),
        "2"
    );
    assert!(!farm.ask("stats\r\n").contains("1003"));
    farm.check();
    // It goes away and comes back with what it held: it is told what changed meanwhile.
    farm.world.become_state(1003, State::Gone);
    for i in 0..30 {
        farm.set(&format!("k{i}"), "new");
    }
    farm.world.become_state(1003, State::Well);
    farm.world.advance(5 * SECOND);
    farm.check_stores();
    let left = farm.world.servers[&1003].store.items().len();
    assert!(left > 3, "what was not changed stays: {left}");
    farm.world.advance(WARM + 10 * SECOND);
    assert!(!role(&mut farm));
    assert_eq!(farm.world.open_links(1003), 0);
    farm.check();
}

#[test]
fn a_server_that_left_because_it_is_dead_costs_nobody_a_timeout() {
    let mut farm = Farm::new(&ring(&THREE, &["127.0.0.1:1008:1"]));
    farm.world.become_state(1003, State::Gone);
    farm.check();
    farm.reload(&ring(&TWO, &["127.0.0.1:1008:1"]));
    farm.check();
    assert_eq!(farm.ask("flush_all\r\n"), "OK\r\n");
    farm.values.clear();
    farm.check();
    // What comes back was flushed.
    farm.world.become_state(1003, State::Well);
    farm.world.advance(5 * SECOND);
    farm.check();
    assert!(farm.world.servers[&1003].store.items().is_empty());
}

#[test]
fn a_flush_is_for_both_rings_whenever_it_came() {
    for backups in [&[][..], &["127.0.0.1:1008:1"]] {
        for before in [true, false] {
            let mut farm = Farm::new(&ring(&THREE, backups));
            let client = farm.client.clone();
            if before {
                farm.world.become_state(1002, State::Hung);
                farm.world.send(&client, "flush_all\r\n");
                farm.world.step();
            }
            farm.reload(&ring(&["127.0.0.1:1002:1", "127.0.0.1:1004:1"], backups));
            if before {
                // Nothing is fetched from who was not flushed yet, nor from who was.
                let other = farm.world.connect(0);
                farm.world.send(&other, "get k1 k2 k3 k4 k5 k6\r\n");
                farm.world.step();
                farm.world.become_state(1002, State::Well);
                farm.world.step();
                assert_eq!(farm.world.take_text(&client), "OK\r\n");
            } else {
                assert_eq!(farm.ask("flush_all\r\n"), "OK\r\n");
            }
            farm.values.clear();
            farm.check();
            farm.check_stores();
        }
    }
}

/// A write that was under way at the reload counts, and is where it is looked for afterwards.
#[test]
fn a_write_that_was_under_way_is_read_after_the_reload() {
    let (eight, nine) = (["127.0.0.1:1008:1"], ["127.0.0.1:1009:1"]);
    for (servers, before, after) in [
        (&THREE[..], &[][..], &[][..]),
        (&THREE[..], &eight[..], &eight[..]),
        (&TWO[..], &eight[..], &nine[..]),
    ] {
        let mut farm = Farm::new(&ring(&TWO, before));
        farm.world.become_state(1001, State::Hung);
        farm.world.become_state(1002, State::Hung);
        let sets = (0..60).map(|i| format!("set k{i} 7 0 3\r\nnew\r\n"));
        let client = farm.client.clone();
        farm.world.send(&client, sets.collect::<String>());
        farm.world.step();
        farm.reload(&ring(servers, after));
        farm.world.become_state(1001, State::Well);
        farm.world.become_state(1002, State::Well);
        farm.world.step();
        assert_eq!(farm.world.take_text(&client), "STORED\r\n".repeat(60));
        (0..60).for_each(|i| drop(farm.values.insert(format!("k{i}"), "new".into())));
        farm.check();
        farm.check_stores();
        if servers.len() == 2 {
            // The backup of today follows, whenever the write was asked.
            farm.world.become_state(1001, State::Gone);
            farm.check();
        }
    }
}

/// A write that waited for a step when its key moved is sent after the reload.
#[test]
fn a_write_that_waited_for_a_look_is_read_after_the_reload() {
    let eight = ["127.0.0.1:1008:1"];
    let mut farm = Farm::new(&ring(&TWO, &eight));
    // They are warming, and have all keys all the same.
    for port in [1001, 1002] {
        farm.world.become_state(port, State::Gone);
        farm.world.step();
        farm.world.become_state(port, State::Well);
        let store = &mut farm.world.servers.get_mut(&port).expect("a server").store;
        (store.started, store.age) = (farm.world.now, 0);
    }
    farm.world.advance(2 * SECOND);
    let hang = |farm: &mut Farm, state: State| {
        farm.world.become_state(1001, state);
        farm.world.become_state(1002, state);
    };
    hang(&mut farm, State::Hung);
    let writes = (0..60).map(|i| format!("add k{i} 7 0 3\r\nadd\r\nset k{i} 7 0 3\r\nnew\r\n"));
    let client = farm.client.clone();
    farm.world.send(&client, writes.collect::<String>());
    farm.world.step();
    farm.reload(&ring(&THREE, &eight));
    // The looks are answered, and what waited for them is sent and not answered yet.
    hang(&mut farm, State::Well);
    farm.world.turn();
    hang(&mut farm, State::Hung);
    let reader = farm.world.connect(0);
    let reads = (0..60).map(|i| format!("get k{i}\r\n"));
    farm.world.send(&reader, reads.collect::<String>());
    farm.world.step();
    hang(&mut farm, State::Well);
    farm.world.step();
    let answers = "NOT_STORED\r\nSTORED\r\n".repeat(60);
    assert_eq!(farm.world.take_text(&client), answers);
    (0..60).for_each(|i| drop(farm.values.insert(format!("k{i}"), "new".into())));
    farm.check();
    farm.check_stores();
}

/// However short `warm` is, the ring before is known as long as answers may come from it.
#[test]
fn a_write_that_takes_longer_than_the_move_is_read_after_it() {
    let slow = |servers: &[&str]| {
        let text = ring(servers, &[]).replace("  warm: 100\n", "  warm: 1\n");
        text.replace("  timeout: 200\n", "  timeout: 3000\n")
    };
    let mut farm = Farm::new(&slow(&TWO));
    farm.world.become_state(1001, State::Hung);
    farm.world.become_state(1002, State::Hung);
    let sets = (0..60).map(|i| format!("set k{i} 7 0 3\r\nnew\r\n"));
    let client = farm.client.clone();
    farm.world.send(&client, sets.collect::<String>());
    farm.world.step();
    farm.reload(&slow(&THREE));
    farm.world.advance(SECOND + SECOND / 2);
    farm.world.become_state(1001, State::Well);
    farm.world.become_state(1002, State::Well);
    farm.world.step();
    assert_eq!(farm.world.take_text(&client), "STORED\r\n".repeat(60));
    (0..60).for_each(|i| drop(farm.values.insert(format!("k{i}"), "new".into())));
    farm.check();
    farm.check_stores();
}

/// Two pools that move the same keys past each other do not wait for each other for ever.
#[test]
fn pools_that_exchange_their_keys_do_not_wait_for_each_other() {
    let xy = ["127.0.0.1:1001:1 x", "127.0.0.1:1002:1 y"];
    let yx = ["127.0.0.1:1001:1 y", "127.0.0.1:1002:1 x"];
    let both = |a: &[&str], b: &[&str]| ring(a, &[]) + &pool("b", 2, "", b, &[]);
    let mut farm = Farm::new(&both(&xy, &yx));
    let clients = [farm.world.connect(0), farm.world.connect(1)];
    let all = |request: &str| -> String {
        let keys = (0..60).map(|i| format!("k{i}"));
        keys.map(|k| request.replace('K', &k)).collect()
    };
    farm.world.become_state(1001, State::Hung);
    farm.world.become_state(1002, State::Hung);
    for client in &clients {
        farm.world.send(client, all("add K 0 0 1\r\n1\r\n"));
    }
    farm.world.step();
    farm.reload(&both(&yx, &xy));
    for client in &clients {
        farm.world
            .send(client, all("add K 0 0 1\r\n2\r\nget K\r\n"));
    }
    farm.world.step();
    farm.world.become_state(1001, State::Well);
    farm.world.become_state(1002, State::Well);
    farm.world.step();
    for client in &clients {
        let got = farm.world.take_text(client);
        assert_eq!(got.matches("STORED\r\n").count(), 120, "{got}");
        assert_eq!(got.matches("END\r\n").count(), 60, "{got}");
    }
}

/// The backup is told of a delete whose answer comes from where the key was.
#[test]
fn a_delete_of_a_key_that_moved_reaches_a_backup_that_is_away() {
    for backups in [["127.0.0.1:1008:1"], ["127.0.0.1:1009:1"]] {
        let mut farm = Farm::new(&ring(&TWO, &["127.0.0.1:1008:1"]));
        farm.reload(&ring(&THREE, &backups));
        let backup = backups[0][10..14].parse().expect("a port");
        let keys = farm.moved();
        // Whatever it holds, and for whatever reason.
        for key in &keys {
            let set = format!("set {key} 7 0 3\r\nold\r\n");
            farm.ask(&set);
            farm.world
                .servers
                .get_mut(&1003)
                .expect("it")
                .store
                .remove(key);
        }
        farm.world.become_state(backup, State::Gone);
        for key in &keys {
            farm.ask(format!("delete {key}\r\n"));
            farm.values.remove(key);
        }
        farm.world.become_state(backup, State::Well);
        farm.world.advance(5 * SECOND);
        for key in &keys {
            assert_eq!(farm.holds(backup, key), None, "{key} at {backup}");
        }
        farm.check();
    }
}

// --- copied in the background

impl Farm {
    /// Where each of the first 60 keys belongs, it is, and its copy too.
    #[track_caller]
    fn check_places(&mut self) {
        for i in 0..60 {
            let key = format!("k{i}");
            let value = self.values.get(&key).cloned();
            let (primary, backup) = self.place(&key);
            for port in [Some(primary), backup].into_iter().flatten() {
                assert_eq!(self.holds(port, &key), value, "{key} at {port}");
            }
        }
    }

    /// Until nothing is copied any more; 60 s at most.
    #[track_caller]
    fn until_copied(&mut self) {
        // Requests from before the reload come to their end first.
        self.world.advance(SECOND);
        for _ in 0..600 {
            if !self.moving().contains("copying") {
                return;
            }
            self.world.advance(SECOND / 10);
        }
        panic!("{}", self.moving());
    }
}

#[test]
fn keys_that_nobody_asks_for_go_where_they_belong_and_back() {
    for (name, before, after) in CHANGES {
        println!("{name}");
        let (before, after) = (ring(before[0], before[1]), ring(after[0], after[1]));
        let mut farm = Farm::new(&before);
        for to in [&after, &before, &after] {
            farm.reload(to);
            farm.until_copied();
            farm.check_places();
            farm.world.advance(WARM);
            assert_eq!(farm.moving(), "no");
            farm.check();
            farm.check_stores();
        }
    }
}

#[test]
fn a_move_lasts_until_its_keys_are_copied_and_not_longer() {
    let few = |text: String| text.replace("  warm: 100\n", "  warm: 2\n");
    let with = |servers: &[&str]| file_with(&few(ring(servers, &[])), &["--refill", "2k"]);
    let mut world = World::of(with(&TWO));
    let client = world.connect(0);
    let mut farm = Farm {
        world,
        client,
        values: BTreeMap::new(),
    };
    for i in 0..60 {
        farm.set(&format!("k{i}"), &"v".repeat(300));
    }
    farm.world.reload(with(&THREE));
    // Some 20 keys of 600 bytes each with their requests, at 2 KB a second.
    farm.world.advance(4 * SECOND);
    assert!(farm.moving().starts_with("4 of 2 s, ") && farm.moving().ends_with(", copying"));
    let refused = farm.world.try_reload(with(&TWO)).expect_err("refused");
    assert!(refused.contains("while keys move"), "{refused}");
    let from = farm.world.now;
    while farm.moving() != "no" {
        farm.world.advance(SECOND / 10);
        assert!(farm.world.now < from + 60_000_000_000, "{}", farm.moving());
    }
    farm.check_places();
    farm.check();
    assert_eq!(farm.world.stat("get_misses"), 0);
}

/// A copy of what was there before the reload, and writes of clients while it is made.
#[test]
fn what_is_changed_while_keys_are_copied_wins() {
    for backups in [&[][..], &["127.0.0.1:1008:1"]] {
        let mut farm = Farm::new(&ring(&TWO, backups));
        farm.reload(&ring(&THREE, backups));
        let moved = farm.moved();
        for round in 0..200 {
            farm.world.advance(Duration::from_millis(25));
            let key = &moved[round % moved.len()];
            match round % 4 {
                0 if farm.values.contains_key(key) => farm.delete(key),
                1 => {
                    let number = farm.values.get(key).and_then(|v| v.parse::<u64>().ok());
                    let answer = match number {
                        Some(n) => format!("{}\r\n", n + 1),
                        None => "NOT_FOUND\r\n".into(),
                    };
                    assert_eq!(farm.ask(format!("incr {key} 1\r\n")), answer, "{key}");
                    if let Some(n) = number {
                        farm.values.insert(key.clone(), (n + 1).to_string());
                    }
                }
                2 => farm.set(key, &format!("{round}")),
                _ => {}
            }
        }
        farm.until_copied();
        farm.check_places();
        farm.check_stores();
        farm.check();
    }
}

/// A server that has keys of others cannot tell whose they are: it is asked for those that are needed only.
#[test]
fn keys_of_other_pools_and_of_others_stay_where_they_are() {
    let other = pool("b", 2, "", &["127.0.0.1:1001:1"], &["127.0.0.1:1009:1"]);
    let mut farm = Farm::new(&(ring(&TWO, &[]) + &other));
    let client = farm.world.connect(1);
    for i in 0..30 {
        let set = format!("set other{i} 0 0 1\r\nx\r\n");
        assert_eq!(farm.world.ask(&client, set), "STORED\r\n");
    }
    // Another magent's, and somebody's who uses the server by himself.
    let own = b"ms AG1hZ2VudC94 1 b\r\nx\r\n";
    assert_eq!(farm.world.ask_past(1002, own), b"HD\r\n");
    farm.reload(&(ring(&THREE, &[]) + &other));
    farm.world.advance(20 * SECOND);
    let moved = farm.moved();
    for key in &moved {
        let was = [1001, 1002]
            .into_iter()
            .find(|port| farm.holds(*port, key).is_some());
        // Of 1002 only this pool is known, so it is listed.
        let is_copied = was == Some(1002);
        assert_eq!(
            farm.holds(1003, key).is_some(),
            is_copied,
            "{key} of {was:?}"
        );
    }
    let theirs = farm.world.servers[&1003].store.items().keys();
    let theirs = theirs.filter(|key| !key.starts_with(b"k")).count();
    assert_eq!(theirs, 0);
    farm.check();
    for i in 0..30 {
        let got = farm.world.ask(&client, format!("get other{i}\r\n"));
        assert_eq!(got, format!("VALUE other{i} 0 1\r\nx\r\nEND\r\n"));
    }
}

#[test]
fn a_server_that_is_dead_keeps_no_move_from_its_end() {
    let mut farm = Farm::new(&ring(&THREE, &[]));
    farm.world.become_state(1003, State::Gone);
    farm.world.advance(5 * SECOND);
    farm.reload(&ring(&TWO, &[]));
    farm.until_copied();
    farm.world.advance(WARM);
    assert_eq!(farm.moving(), "no");
    // Nothing is left that waits for it.
    farm.world.advance(60 * SECOND);
    let polls = farm.world.stat("polls");
    farm.world.advance(10 * SECOND);
    assert!(farm.world.stat("polls") - polls < 200);
    assert_eq!(
        farm.world
            .stat_for(&farm.client, "servers", "127.0.0.1:1001:refill"),
        "none"
    );
}

#[test]
fn an_operator_ends_a_move_with_reload_now() {
    let (mut farm, moved) = Farm::grown(&[]);
    assert!(farm.world.try_reload(file(&ring(&TWO, &[]))).is_err());
    // Not while requests from before may be unanswered.
    farm.world.proxy().end_moves_at_reload(true);
    let refused = farm.world.try_reload(file(&ring(&TWO, &[])));
    let refused = refused.expect_err("too early");
    assert!(refused.contains("from before the last reload"), "{refused}");
    farm.world.advance(SECOND);
    farm.set(&moved[0], "new");
    farm.world.proxy().end_moves_at_reload(true);
    farm.reload(&ring(&TWO, &[]));
    assert!(farm.moving().starts_with("0 of 100 s, "));
    // Whatever was changed at the third server goes back.
    farm.check();
    // It was for one reload.
    farm.world.advance(SECOND);
    assert!(farm.world.try_reload(file(&ring(&THREE, &[]))).is_err());
    farm.world.proxy().end_moves_at_reload(true);
    farm.reload(&ring(&TWO, &[]));
    assert_eq!(farm.moving(), "no");
}
