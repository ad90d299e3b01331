//! Real memcacheds in two farms behind one magent, and what tests ask of them.

use super::{Client, Magent, Memcached, wait_for};
use std::collections::BTreeMap;

/// Short times, so that what takes seconds in a farm takes moments here.
const QUICK: [[&str; 2]; 3] = [
    ["--timeout", "250"],
    ["--connect-timeout", "250"],
    ["--retry", "30"],
];

/// [`QUICK`], and options that may say otherwise.
pub fn quick<'a>(options: &[&'a str]) -> Vec<&'a str> {
    let mut all = options.to_vec();
    for [name, value] in QUICK {
        if !options.contains(&name) {
            all.extend([name, value]);
        }
    }
    all
}

/// One magent before so many fresh primaries and backups.
pub struct Farm {
    /// The magent.
    pub magent: Magent,
    /// Of `-s`, in that order.
    pub primaries: Vec<Memcached>,
    /// Of `-b`, in that order.
    pub backups: Vec<Memcached>,
}

impl Farm {
    /// All of them fresh.
    pub fn new(primaries: usize, backups: usize, options: &[&str]) -> Farm {
        let start = |n| -> Vec<Memcached> { (0..n).map(|_| Memcached::start()).collect() };
        Farm::of(start(primaries), start(backups), options)
    }

    /// With memcacheds of the test's own.
    pub fn of(primaries: Vec<Memcached>, backups: Vec<Memcached>, options: &[&str]) -> Farm {
        let names =
            |of: &[Memcached]| -> Vec<String> { of.iter().map(|m| m.name.clone()).collect() };
        let (p, b) = (names(&primaries), names(&backups));
        let p: Vec<&str> = p.iter().map(String::as_str).collect();
        let b: Vec<&str> = b.iter().map(String::as_str).collect();
        let magent = Magent::farm(&p, &b, &quick(options));
        Farm {
            magent,
            primaries,
            backups,
        }
    }
}

/// True if each of these servers is trusted and was told all it missed.
#[track_caller]
pub fn are_back(client: &mut Client, names: &[&str]) -> bool {
    let all = client.stats("stats servers\r\n");
    names.iter().all(|name| {
        let field = |field: &str| all.get(&format!("{name}:{field}")).map(String::as_str);
        matches!(field("state"), Some("up" | "warming")) && field("journal_keys") == Some("0")
    })
}

/// Waits until a server is trusted and was told all it missed.
#[track_caller]
pub fn wait_back(magent: &Magent, name: &str) {
    let mut client = magent.client();
    wait_for(&format!("{name} to be back"), || {
        are_back(&mut client, &[name]).then_some(())
    });
}

/// Asks for a key until its server is known to be down: each request costs a timeout at most.
#[track_caller]
pub fn ask_until_down(magent: &Magent, name: &str, key: &str) {
    let mut client = magent.client();
    wait_for(&format!("{name} to be down"), || {
        client.send(format!("mg {key}\r\n")).read_line();
        (magent.server(name)["state"] == "down").then_some(())
    });
}

/// Flags and value of each key that a get of all of them finds, a hundred at once.
#[track_caller]
pub fn get_all(client: &mut Client, keys: &[String]) -> BTreeMap<String, (u32, Vec<u8>)> {
    let mut found = BTreeMap::new();
    for some in keys.chunks(100) {
        client.send(format!("get {}\r\n", some.join(" ")));
        loop {
            let line = String::from_utf8_lossy(&client.read_line())
                .trim_end()
                .to_string();
            if line == "END" {
                break;
            }
            let words: Vec<&str> = line.split(' ').collect();
            let ["VALUE", key, flags, size] = words[..] else {
                panic!("a get of many keys was answered {line:?}");
            };
            let size: usize = size.parse().expect("a size");
            let mut value = client.read_exact(size + 2);
            value.truncate(size);
            found.insert(key.to_string(), (flags.parse().expect("flags"), value));
        }
    }
    found
}

/// What a server itself holds of a key: flags, seconds left (-1: for ever), value.
#[track_caller]
pub fn held(server: &Memcached, key: &str) -> Option<(u32, i64, Vec<u8>)> {
    let mut client = server.client();
    let line = client.ask_line(format!("mg {key} s f t v\r\n"));
    if line == "EN" {
        return None;
    }
    let words: Vec<&str> = line.split(' ').collect();
    let ["VA", size, _, flags, ttl] = words[..] else {
        panic!("mg {key} was answered {line:?}");
    };
    let value = client.read_exact(size.parse().expect("a size"));
    let flags = flags[1..].parse().expect("flags");
    Some((flags, ttl[1..].parse().expect("a time"), value))
}
