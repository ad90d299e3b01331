//! A new configuration under load (behaviour.md §8): nobody is disconnected whose listener stays,
//! nothing is lost or answered twice, nothing leaks.

mod common;

use common::World;
use common::world::draw;
use std::collections::BTreeMap;

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
    token: usize,
    name: String,
    sent: usize,
    owed: Vec<Owed>,
    values: BTreeMap<String, String>,
    unsent: Vec<u8>,
    got: String,
}

impl Talker {
    fn new(token: usize, name: String) -> Talker {
        Talker {
            token,
            name,
            sent: 0,
            owed: Vec::new(),
            values: BTreeMap::new(),
            unsent: Vec::new(),
            got: String::new(),
        }
    }

    fn write(&mut self, seed: &mut u64, exact: bool) {
        let key = format!("{}k{}", self.name, draw(seed, 12));
        let verb = ["get", "set", "append", "delete"][draw(seed, 4) as usize];
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
    fn send(&mut self, world: &mut World, seed: &mut u64) {
        let n = 1 + draw(seed, self.unsent.len().max(1) as u64) as usize;
        let n = n.min(self.unsent.len());
        let some: Vec<u8> = self.unsent.drain(..n).collect();
        world.send(self.token, &some);
    }

    /// Takes every whole answer, and holds it against what is owed.
    fn check(&mut self, world: &mut World) {
        self.got += &String::from_utf8_lossy(&world.received(self.token));
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
fn talk(seed: u64, exact: bool, mut next: impl FnMut(&mut u64) -> String) {
    let mut seed_now = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let seed = &mut seed_now;
    let mut world = World::new(&next(seed), &PORTS);
    world.jumble = seed.rotate_left(9) | 1;
    let new = |world: &mut World, n: usize| Talker::new(world.connect(0), format!("c{n}"));
    let mut talkers: Vec<Talker> = (0..16).map(|n| new(&mut world, n)).collect();
    for _ in 0..250 {
        for talker in &mut talkers {
            if draw(seed, 3) == 0 {
                for _ in 0..draw(seed, 8) {
                    talker.write(seed, exact);
                }
                talker.send(&mut world, seed);
            }
        }
        for _ in 0..draw(seed, 4) {
            world.turn();
        }
        if draw(seed, 4) == 0 {
            let file = next(seed);
            world.reload(&file);
        }
        talkers.iter_mut().for_each(|t| t.check(&mut world));
    }
    for talker in &mut talkers {
        let rest = std::mem::take(&mut talker.unsent);
        world.send(talker.token, &rest);
    }
    world.settle();
    for talker in &mut talkers {
        talker.check(&mut world);
        assert!(
            talker.owed.is_empty(),
            "{} is still owed {}",
            talker.name,
            talker.owed.len()
        );
        assert!(world.is_open(talker.token));
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
    for seed in seeds(6) {
        let mut made = 0;
        talk(seed, false, |seed| {
            let mut some = |ports: &[u16], at_least: u64| {
                let mut chosen = Vec::new();
                let wanted = at_least + draw(seed, 3);
                for port in ports {
                    if (chosen.len() as u64) < wanted && draw(seed, 3) > 0 {
                        let weight = 1 + draw(seed, 5);
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
                400 + draw(seed, 10),
                1 + draw(seed, 3),
                draw(seed, 2) == 0
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
            match if made == 1 { 1 } else { draw(seed, 3) } {
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
    for seed in seeds(6) {
        talk(seed, true, |seed| {
            let settings = format!(
                "timeout: {}\nserver_connections: {}\npreconnect: {}",
                400 + draw(seed, 10),
                1 + draw(seed, 4),
                draw(seed, 2) == 0
            );
            file(&[("alpha", 1, &settings, &servers)])
        });
    }
}
