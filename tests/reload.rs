//! A new configuration under load: nobody is disconnected whose listener stays,
//! nothing is lost or answered twice, nothing leaks.

mod common;

use common::Peer;
use common::rng::Rng;
use common::world::{State, World, file as config};
use std::collections::BTreeMap;
use std::time::Duration;

const PORTS: [u16; 8] = [1001, 1002, 1003, 1004, 1005, 1006, 1007, 1008];

/// The pools of a file; each setting stands on its own line.
fn file(pools: &[(&str, u16, &str, &[String])]) -> String {
    let mut text = String::new();
    for (name, listen, settings, servers) in pools {
        text += &format!("{name}:\n  listen: 127.0.0.1:{listen}\n  warm: 0\n");
        for line in settings.lines() {
            text += &format!("  {line}\n");
        }
        text += "  servers:\n";
        for server in *servers {
            text += &format!("  - {server}\n");
        }
    }
    text
}

fn server(port: u16) -> String {
    format!("127.0.0.1:{port}:1")
}

/// What a client sent, and what it may be answered.
struct Owed {
    verb: &'static str,
    key: String,
    /// What a get must find; `None` where the key may have moved.
    exactly: Option<Option<String>>,
}

/// A client that pipelines requests for keys of its own.
struct Talker {
    peer: Peer,
    name: String,
    sent: usize,
    owed: Vec<Owed>,
    values: BTreeMap<String, String>,
    unsent: Vec<u8>,
    got: String,
}

impl Talker {
    fn new(peer: Peer, name: String) -> Talker {
        Talker {
            peer,
            name,
            sent: 0,
            owed: Vec::new(),
            values: BTreeMap::new(),
            unsent: Vec::new(),
            got: String::new(),
        }
    }

    fn write(&mut self, seed: &mut Rng, exact: bool) {
        let key = format!("{}k{}", self.name, seed.below(12));
        let verb = ["get", "set", "append", "delete"][seed.below(4) as usize];
        self.sent += 1;
        let value = format!("{}.{} ", self.name, self.sent);
        let before = self.values.get(&key).cloned();
        let request = match verb {
            "get" | "delete" => format!("{verb} {key}\r\n"),
            _ => format!("{verb} {key} 0 0 {}\r\n{value}\r\n", value.len()),
        };
        self.unsent.extend_from_slice(request.as_bytes());
        match (verb, before.clone()) {
            ("set", _) => drop(self.values.insert(key.clone(), value)),
            ("append", Some(old)) => drop(self.values.insert(key.clone(), old + &value)),
            ("delete", _) => drop(self.values.remove(&key)),
            _ => {}
        }
        let exactly = exact.then_some(before);
        self.owed.push(Owed { verb, key, exactly });
    }

    /// Sends some of what there is, cut anywhere.
    fn send(&mut self, world: &mut World, seed: &mut Rng) {
        let n = 1 + seed.below(self.unsent.len().max(1) as u64) as usize;
        let n = n.min(self.unsent.len());
        let some: Vec<u8> = self.unsent.drain(..n).collect();
        world.send(&self.peer, &some);
    }

    /// Takes every whole answer, and holds it against what is owed.
    fn check(&mut self, world: &mut World) {
        self.got += &String::from_utf8_lossy(&world.take(&self.peer));
        let mut done = 0;
        let mut rest = self.got.as_str();
        for owed in &self.owed {
            let Some((line, tail)) = rest.split_once("\r\n") else {
                break;
            };
            let mut value = None;
            let mut end = tail;
            if line.starts_with("VALUE ") {
                let Some((data, tail)) = tail.split_once("\r\nEND\r\n") else {
                    break;
                };
                value = Some(data.to_string());
                end = tail;
            }
            let found = owed.exactly.as_ref().map(|v| v.is_some());
            let good = match (owed.verb, line) {
                ("get", "END") => found != Some(true),
                ("get", _) => {
                    let own = |v: &String| v.starts_with(&format!("{}.", self.name));
                    line.starts_with(&format!("VALUE {} ", owed.key))
                        && value.as_ref().is_some_and(own)
                        && owed.exactly.as_ref().is_none_or(|v| *v == value)
                }
                ("set", "STORED") => true,
                ("append", "STORED") | ("delete", "DELETED") => found != Some(false),
                ("append", "NOT_STORED") | ("delete", "NOT_FOUND") => found != Some(true),
                _ => false,
            };
            assert!(
                good,
                "{} {}: {line}, {value:?}, not {:?}",
                owed.verb, owed.key, owed.exactly
            );
            rest = end;
            done += 1;
        }
        self.got = rest.to_string();
        self.owed.drain(..done);
        assert!(
            !self.owed.is_empty() || self.got.is_empty(),
            "too much: {}",
            self.got
        );
    }
}

/// Sixteen talkers while `next` makes one file after the other.
fn talk(seed: u64, exact: bool, mut next: impl FnMut(&mut Rng) -> String) {
    let seed = &mut Rng::new(seed);
    let mut world = World::of(config(&next(seed)));
    world.jumble = Some(Rng::new(seed.next()));
    let new = |world: &mut World, n: usize| Talker::new(world.connect(0), format!("c{n}"));
    let mut talkers: Vec<Talker> = (0..16).map(|n| new(&mut world, n)).collect();
    for _ in 0..250 {
        for talker in &mut talkers {
            if seed.below(3) == 0 {
                for _ in 0..seed.below(8) {
                    talker.write(seed, exact);
                }
                talker.send(&mut world, seed);
            }
        }
        for _ in 0..seed.below(4) {
            world.turn();
        }
        if seed.below(4) == 0 {
            let file = next(seed);
            world.reload(config(&file));
        }
        talkers.iter_mut().for_each(|t| t.check(&mut world));
    }
    for talker in &mut talkers {
        let rest = std::mem::take(&mut talker.unsent);
        world.send(&talker.peer, &rest);
    }
    world.step();
    for talker in &mut talkers {
        talker.check(&mut world);
        assert!(
            talker.owed.is_empty(),
            "{} is still owed {}",
            talker.name,
            talker.owed.len()
        );
        assert!(!talker.peer.is_closed());
    }
    assert!(
        world.link_places <= 80,
        "{} places for links",
        world.link_places
    );
}

/// One of these each time, and one more each time: `seed` is printed by the tests' names only.
fn seeds(count: u64) -> impl Iterator<Item = u64> {
    let fresh = std::time::UNIX_EPOCH.elapsed().expect("a clock").as_nanos() as u64;
    (1..=count)
        .chain([fresh])
        .inspect(|seed| println!("seed {seed}"))
}

#[test]
fn servers_farms_and_listeners_come_and_go_and_no_request_is_lost() {
    for seed in seeds(3) {
        let mut made = 0;
        talk(seed, false, |seed| {
            let mut some = |ports: &[u16], at_least: u64| {
                let mut chosen = Vec::new();
                let wanted = at_least + seed.below(3);
                for port in ports {
                    if (chosen.len() as u64) < wanted && seed.below(3) > 0 {
                        let weight = 1 + seed.below(5);
                        chosen.push(format!("127.0.0.1:{port}:{weight}"));
                    }
                }
                chosen
            };
            let mut servers = some(&PORTS[..6], 2);
            servers.push(server(1006).replace(":1006:1", ":1006:2"));
            servers.dedup_by_key(|s| s.split(':').nth(1).map(str::to_string));
            let backups = some(&PORTS[4..], 0);
            let mut settings = format!(
                "timeout: {}\nserver_connections: {}\npreconnect: {}",
                400 + seed.below(10),
                1 + seed.below(3),
                seed.below(2) == 0
            );
            if !backups.is_empty() {
                settings += "\nbackups:";
                for b in &backups {
                    settings += &format!("\n- {b}");
                }
            }
            let alpha = ("alpha", 1, settings.as_str(), &servers[..]);
            let others = [server(1001), server(1002)];
            let beta = ("beta", 2, "timeout: 500", &others[..]);
            made += 1;
            match if made == 1 { 1 } else { seed.below(3) } {
                0 => file(&[beta, alpha]),
                1 => file(&[alpha, beta]),
                _ => file(&[alpha]),
            }
        });
    }
}

#[test]
fn settings_change_and_each_keys_requests_stay_in_order() {
    let servers: Vec<String> = PORTS[..3].iter().map(|p| server(*p)).collect();
    for seed in seeds(3) {
        talk(seed, true, |seed| {
            let settings = format!(
                "timeout: {}\nserver_connections: {}\npreconnect: {}",
                400 + seed.below(10),
                1 + seed.below(4),
                seed.below(2) == 0
            );
            file(&[("alpha", 1, &settings, &servers)])
        });
    }
}

// --- one thing at a time

const SECOND: Duration = Duration::from_secs(1);

fn two_pools(first: &str, second: Option<&str>) -> String {
    let (one, two) = ([server(1001)], [server(1002)]);
    let first = (first, 1, "timeout: 400", &one[..]);
    match second {
        Some(name) => file(&[first, (name, 2, "timeout: 400", &two[..])]),
        None => file(&[first]),
    }
}

#[test]
fn clients_go_where_their_listener_leads_or_leave_when_they_were_answered() {
    let mut world = World::of(config(&two_pools("alpha", Some("beta"))));
    let (stays, leaves, idle) = (&world.connect(0), &world.connect(1), &world.connect(1));
    world.become_state(1001, State::Hung);
    world.become_state(1002, State::Hung);
    world.ask(stays, "set a 0 0 1\r\n1\r\n");
    world.ask(leaves, "set b 0 0 1\r\n2\r\n");
    // Another name: another pool with servers of its own, at the same addresses.
    world.send(leaves, b"get b\r\n");
    world.reload(config(&two_pools("gamma", None)));
    assert!(world.proxy().admit(1).is_err(), "its listener is gone");
    world.step();
    assert!(!leaves.is_closed(), "it is owed an answer");
    assert!(idle.is_closed());
    world.become_state(1001, State::Well);
    world.become_state(1002, State::Well);
    world.step();
    assert_eq!(world.take(stays), b"STORED\r\n");
    assert_eq!(world.take(leaves), b"STORED\r\nVALUE b 0 1\r\n2\r\nEND\r\n");
    assert!(leaves.is_closed());
    assert_eq!(world.get(stays, "a"), Some("1".to_string()));
    assert_eq!(world.stat_for(stays, "route a", "pool"), "gamma");
    assert_eq!(
        world.stat_for(stays, "pools", "gamma:curr_connections"),
        "1"
    );
    assert!(!world.ask(stays, "stats pools\r\n").contains("alpha"));
    assert_eq!(world.open_links(1001), 1, "the old pool's link is closed");
    assert_eq!(world.open_links(1002), 0);
    // The same pools in another order: listeners keep their clients, numbers change.
    let (one, two) = ([server(1001)], [server(1002)]);
    let swapped = [
        ("beta", 2, "timeout: 400", &two[..]),
        ("gamma", 1, "timeout: 400", &one[..]),
    ];
    world.reload(config(&file(&swapped)));
    let late = &world.connect(1);
    assert_eq!(world.stat_for(stays, "route a", "pool"), "gamma");
    assert_eq!(world.stat_for(late, "route a", "pool"), "gamma");
}

#[test]
fn a_client_that_never_rests_is_not_read_after_five_seconds() {
    let slow = [server(1002)];
    let beta = ("beta", 2, "timeout: 60000", &slow[..]);
    let one = [server(1001)];
    let alpha = ("alpha", 1, "", &one[..]);
    let mut world = World::of(config(&file(&[alpha, beta])));
    let client = &world.connect(1);
    world.become_state(1002, State::Hung);
    world.reload(config(&file(&[alpha])));
    for _ in 0..10 {
        world.ask(client, "set a 0 0 1\r\n1\r\n");
        world.advance(SECOND);
    }
    world.become_state(1002, State::Well);
    world.step();
    let answers = String::from_utf8_lossy(&world.take(client)).into_owned();
    assert!(client.is_closed());
    assert_eq!(answers, "STORED\r\n".repeat(5));
}

#[test]
fn what_was_not_touched_keeps_its_links_and_what_it_knows() {
    let servers = [server(1001), server(1002)];
    let backups = "backups:\n- 127.0.0.1:1003:1\ntimeout: 200";
    let mut world = World::of(config(&file(&[("alpha", 1, backups, &servers)])));
    let client = &world.connect(0);
    let keys: Vec<String> = (0..20).map(|i| format!("key{i}")).collect();
    let sets = |v: u32| -> String {
        let set = |k: &String| format!("set {k} 0 0 1\r\n{v}\r\n");
        keys.iter().map(set).collect()
    };
    world.ask(client, sets(1));
    world.become_state(1001, State::Gone);
    assert_eq!(world.ask(client, sets(2)), "STORED\r\n".repeat(20));
    let journaled = world.stat_for(client, "servers", "127.0.0.1:1001:journal_keys");
    assert_ne!(journaled, "0");
    let connects = world.stat_for(client, "servers", "127.0.0.1:1002:connects");
    // A weight and a timeout change, a server comes.
    let servers = [
        servers[0].clone(),
        "127.0.0.1:1002:2".to_string(),
        server(1004),
    ];
    let settings = "backups:\n- 127.0.0.1:1003:1\ntimeout: 300\nserver_retry_timeout: 500";
    world.reload(config(&file(&[("alpha", 1, settings, &servers)])));
    assert_eq!(
        world.stat_for(client, "servers", "127.0.0.1:1001:journal_keys"),
        journaled
    );
    assert_eq!(
        world.stat_for(client, "servers", "127.0.0.1:1001:state"),
        "down"
    );
    assert_eq!(
        world.stat_for(client, "servers", "127.0.0.1:1002:connects"),
        connects
    );
    assert_eq!(
        world.stat_for(client, "servers", "127.0.0.1:1004:connects"),
        "0",
        "idle"
    );
    // When it is back it is told what it missed before the reload.
    world.become_state(1001, State::Well);
    world.advance(3 * SECOND);
    assert_eq!(
        world.stat_for(client, "servers", "127.0.0.1:1001:state"),
        "up"
    );
    let old = world.servers[&1001]
        .store
        .items()
        .values()
        .filter(|item| item.data == b"1")
        .count();
    assert_eq!(old, 0);
}

#[test]
fn a_server_that_comes_back_into_the_file_while_it_is_away_is_probed() {
    let both = [server(1001), server(1002)];
    let pool = |servers: &[String]| file(&[("alpha", 1, "timeout: 400", servers)]);
    let mut world = World::of(config(&pool(&both)));
    let client = &world.connect(0);
    let gets: String = (0..20).map(|i| format!("get key{i}\r\n")).collect();
    world.ask(client, &gets);
    world.become_state(1001, State::Gone);
    world.ask(client, &gets);
    assert!(world.ask(client, &gets).contains("127.0.0.1:1001 down"));
    // A probe is under way when it leaves.
    world.become_state(1001, State::Dark);
    world.advance(SECOND);
    world.reload(config(&pool(&both[1..])));
    world.advance(SECOND);
    world.reload(config(&pool(&both)));
    world.become_state(1001, State::Well);
    world.advance(5 * SECOND);
    assert_eq!(
        world.stat_for(client, "servers", "127.0.0.1:1001:state"),
        "up"
    );
}

#[test]
fn a_removed_server_that_was_about_to_be_used_again_keeps_nobody_busy() {
    let both = [server(1001), server(1002)];
    let settings = "timeout: 400\nbackups:\n- 127.0.0.1:1003:1";
    let pool = |servers: &[String]| file(&[("alpha", 1, settings, servers)]);
    let mut world = World::of(config(&pool(&both)));
    let client = &world.connect(0);
    let sets: String = (0..20)
        .map(|i| format!("set key{i} 0 0 1\r\n1\r\n"))
        .collect();
    world.ask(client, &sets);
    world.become_state(1001, State::Hung);
    world.ask(client, &sets);
    // Its link is reset with writes on it: it is not used for a second after it answers.
    world.cut(0, 1001, true);
    world.step();
    world.mend(0, 1001);
    world.become_state(1001, State::Well);
    world.take(client);
    world.advance(SECOND / 2);
    let state = world.stat_for(client, "servers", "127.0.0.1:1001:state");
    assert_eq!(state, "down");
    world.reload(config(&pool(&both[1..])));
    world.advance(SECOND / 2);
    world.stand_still(SECOND);
    world.step();
    assert_ne!(world.wait(), Some(0));
}

#[test]
fn a_removed_server_that_hangs_is_given_up() {
    let both = [server(1001), server(1002)];
    let pool = |servers: &[String]| file(&[("alpha", 1, "timeout: 400", servers)]);
    let mut world = World::of(config(&pool(&both)));
    let client = &world.connect(0);
    let gets: String = (0..20).map(|i| format!("get key{i}\r\n")).collect();
    assert_eq!(world.ask(client, &gets), "END\r\n".repeat(20));
    world.become_state(1001, State::Hung);
    world.ask(client, &gets);
    world.reload(config(&pool(&both[1..])));
    world.step();
    assert_eq!(world.open_links(1001), 1, "it owes answers");
    world.advance(SECOND);
    let answers = String::from_utf8_lossy(&world.take(client)).into_owned();
    assert!(
        answers.contains("SERVER_ERROR 127.0.0.1:1001 timed out\r\n"),
        "{answers}"
    );
    world.advance(30 * SECOND);
    assert_eq!(world.open_links(1001), 0);
    assert_eq!(world.ask(client, &gets), "END\r\n".repeat(20));
}

/// It runs what it was sent when it wakes: after it was taken back, that would be old.
#[test]
fn a_server_that_hung_when_it_was_removed_is_known_when_it_is_named_again() {
    let both = [server(1001), server(1002)];
    let settings = "timeout: 400\nbackups:\n- 127.0.0.1:1003:1";
    let pool = |servers: &[String]| file(&[("alpha", 1, settings, servers)]);
    let mut world = World::of(config(&pool(&both)));
    let client = &world.connect(0);
    let sets = |value: u32| -> String {
        let all = (0..20).map(|i| format!("set key{i} 0 0 1\r\n{value}\r\n"));
        all.collect()
    };
    world.ask(client, sets(1));
    world.become_state(1001, State::Hung);
    world.ask(client, sets(2));
    world.advance(SECOND);
    world.take(client);
    world.reload(config(&pool(&both[1..])));
    world.advance(40 * SECOND);
    assert_eq!(world.ask(client, sets(3)), "STORED\r\n".repeat(20));
    world.reload(config(&pool(&both)));
    world.advance(SECOND);
    assert_eq!(world.ask(client, sets(4)), "STORED\r\n".repeat(20));
    world.become_state(1001, State::Well);
    world.advance(5 * SECOND);
    let gets: String = (0..20).map(|i| format!("get key{i}\r\n")).collect();
    let all = (0..20).map(|i| format!("VALUE key{i} 0 1\r\n4\r\nEND\r\n"));
    assert_eq!(world.ask(client, &gets), all.collect::<String>());
    let state = world.stat_for(client, "servers", "127.0.0.1:1001:state");
    assert!(state == "up" || state == "warming", "{state}");
}

#[test]
fn a_drain_is_over_when_the_server_is_named_again() {
    let both = [server(1001), server(1002)];
    let pool = |servers: &[String]| file(&[("alpha", 1, "timeout: 400", servers)]);
    let mut world = World::of(config(&pool(&both)));
    let client = &world.connect(0);
    world.proxy().drain_server("127.0.0.1:1001").unwrap();
    world.advance(SECOND);
    world.reload(config(&pool(&both[1..])));
    world.advance(SECOND);
    world.reload(config(&pool(&both)));
    world.advance(5 * SECOND);
    let state = world.stat_for(client, "servers", "127.0.0.1:1001:state");
    assert_eq!(state, "up");
}

/// Another number of links would give keys other links, where they could overtake themselves.
#[test]
fn a_changed_number_of_links_waits_for_the_next_start() {
    let one = [server(1001)];
    let pool = |n: u32| {
        let settings = format!("timeout: 400\nserver_connections: {n}");
        file(&[("alpha", 1, &settings, &one)])
    };
    let mut world = World::of(config(&pool(2)));
    let client = &world.connect(0);
    let gets: String = (0..40).map(|i| format!("get key{i}\r\n")).collect();
    world.ask(client, &gets);
    assert_eq!(world.open_links(1001), 2);
    for n in [5, 1] {
        world.reload(config(&pool(n)));
        assert_eq!(world.ask(client, &gets), "END\r\n".repeat(40));
        assert_eq!(world.open_links(1001), 2, "{n}");
    }
}

#[test]
fn preconnect_works_from_the_reload_on() {
    let two = [server(1001), server(1002)];
    let pool = |settings: &str| file(&[("alpha", 1, settings, &two)]);
    let mut world = World::of(config(&pool("server_connections: 2")));
    world.step();
    let open = |world: &World| {
        PORTS[..2]
            .iter()
            .map(|p| world.open_links(*p))
            .sum::<usize>()
    };
    assert_eq!(open(&world), 0);
    world.reload(config(&pool("server_connections: 2\npreconnect: true")));
    world.step();
    assert_eq!(open(&world), 4);
}

#[test]
fn ejection_is_switched_on_and_off() {
    let three: Vec<String> = PORTS[..3].iter().map(|p| server(*p)).collect();
    let pool = |eject: bool| {
        let settings = format!(
            "auto_eject_hosts: {eject}\nserver_failure_limit: 1\nserver_retry_timeout: 60000"
        );
        file(&[("alpha", 1, &settings, &three)])
    };
    let mut world = World::of(config(&pool(false)));
    let client = &world.connect(0);
    let gets: String = (0..20).map(|i| format!("get key{i}\r\n")).collect();
    let errors = |answer: &str| answer.matches("SERVER_ERROR 127.0.0.1:1002 ").count();
    world.become_state(1002, State::Gone);
    assert!(errors(&world.ask(client, &gets)) > 0);
    assert!(errors(&world.ask(client, &gets)) > 0);
    world.reload(config(&pool(true)));
    assert_eq!(errors(&world.ask(client, &gets)), 0, "it is down: out");
    world.ask(client, gets.replace("get", "delete"));
    let strays = |world: &mut World| {
        let name = |p: u16| format!("127.0.0.1:{p}:journal_keys");
        [1001, 1003].map(|p| world.stat_for(client, "servers", &name(p)))
    };
    assert_ne!(strays(&mut world), ["0", "0"]);
    world.reload(config(&pool(false)));
    assert!(errors(&world.ask(client, &gets)) > 0);
    assert_eq!(strays(&mut world), ["0", "0"], "told");
}

#[test]
fn a_thousand_reloads_leave_nothing_behind() {
    let mut world = World::of(config(&two_pools("alpha", None)));
    let client = &world.connect(0);
    let gets: String = (0..6).map(|i| format!("get key{i}\r\n")).collect();
    for i in 0..1000u16 {
        let servers = [0, 7, 13].map(|d| server(1001 + (i * 3 + d) % 390));
        let backup = server(1391 + i % 5);
        let settings = format!("server_connections: 2\nbackups:\n- {backup}");
        let name = format!("pool{}", i / 10);
        world.reload(config(&file(&[(&name, 1, &settings, &servers)])));
        if i % 10 == 0 {
            world.advance(7 * SECOND);
        }
        if i % 3 == 0 {
            world.step();
            let answers = world.take(client).len() / "END\r\n".len();
            assert_eq!(answers, if i == 0 { 0 } else { 12 });
            assert_eq!(world.ask(client, &gets), "END\r\n".repeat(6));
        } else {
            world.send(client, gets.as_bytes());
            world.turn();
        }
    }
    world.step();
    let open: usize = world.servers.keys().map(|p| world.open_links(*p)).sum();
    assert!(open <= 8, "{open} links are open");
    assert!(
        world.link_places <= 120,
        "{} places for links",
        world.link_places
    );
}
