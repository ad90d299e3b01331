//! Primaries that die and come back empty.

use crate::common::{Client, keys, wait_for};
use crate::{Farm, get_all, held, wait_back};
use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

const KEYS: usize = 2000;

/// Farther than a relative time to live reaches, in seconds.
const FORTY_DAYS: u64 = 40 * 24 * 3600;

struct Want {
    flags: u32,
    /// Seconds, -1 for ever.
    ttl: i64,
    value: Vec<u8>,
}

/// Stores a key whose flags and time to live follow from its number.
fn store(number: usize, value: &str, want: &mut BTreeMap<String, Want>) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("a time");
    let (exptime, ttl) = match number % 3 {
        0 => (0, -1),
        1 => (1000 + number as u64, 1000 + number as i64),
        _ => (now.as_secs() + FORTY_DAYS, FORTY_DAYS as i64),
    };
    let (key, flags) = (format!("k{number}"), number as u32);
    let line = format!("set {key} {flags} {exptime} {}\r\n{value}\r\n", value.len());
    let value = value.into();
    want.insert(key, Want { flags, ttl, value });
    line
}

fn check_all(client: &mut Client, all: &[String], want: &BTreeMap<String, Want>, when: &str) {
    let got = get_all(client, all);
    for key in all {
        let wanted = want.get(key).map(|w| (w.flags, w.value.clone()));
        assert_eq!(got.get(key), wanted.as_ref(), "{key} {when}");
    }
}

fn all_primaries_restarted_empty(options: &[&str]) {
    let mut farm = Farm::new(3, 2, options);
    let mut client = farm.magent.client();
    let mut want = BTreeMap::new();
    let lines: String = (0..KEYS)
        .map(|i| store(i, &format!("v{i}"), &mut want))
        .collect();
    client.ask(lines, "STORED\r\n".repeat(KEYS));
    client.set("counter", "10");
    wait_for("all copies", || {
        let copies: u64 = farm.backups.iter().map(|b| b.stat("curr_items")).sum();
        (copies == KEYS as u64 + 1).then_some(())
    });
    let all: Vec<String> = (0..KEYS).map(|i| format!("k{i}")).collect();

    farm.primaries.iter_mut().for_each(|p| p.kill());
    check_all(&mut client, &all, &want, "with all primaries dead");
    let lines: String = (0..100)
        .map(|i| store(i, &format!("new{i}"), &mut want))
        .collect();
    client.ask(lines, "STORED\r\n".repeat(100));
    let lines: String = (100..150).map(|i| format!("delete k{i}\r\n")).collect();
    client.ask(lines, "DELETED\r\n".repeat(50));
    (100..150).for_each(|i| drop(want.remove(&format!("k{i}"))));
    client.ask("incr counter 1\r\n", "11\r\n");

    farm.primaries.iter_mut().for_each(|p| p.restart());
    client.ask("incr counter 1\r\n", "12\r\n");
    check_all(&mut client, &all, &want, "at once after the restart");
    for p in &farm.primaries {
        wait_back(&farm.magent, &p.name);
        farm.magent.wait_state(&p.name, "warming");
    }
    client.ask("incr counter 1\r\n", "13\r\n");
    check_all(&mut client, &all, &want, "with the primaries back");
    assert_eq!(
        farm.primaries[keys::home("counter", 3)]
            .value("counter")
            .as_deref(),
        Some(&b"13"[..])
    );
    for key in &all {
        let got = held(&farm.primaries[keys::home(key, 3)], key);
        let wanted = want.get(key).map(|w| (w.flags, w.value.clone()));
        assert_eq!(
            got.clone().map(|(f, _, v)| (f, v)),
            wanted,
            "{key} on its primary"
        );
        if let (Some((_, ttl, _)), Some(w)) = (got, want.get(key)) {
            let late = w.ttl - ttl;
            assert!(
                (-1..=15).contains(&late),
                "{key} lives {ttl} s, not {}",
                w.ttl
            );
        }
    }
    // The primaries are what is asked now: without the backups nothing is lost.
    farm.backups.iter_mut().for_each(|b| b.kill());
    check_all(&mut client, &all, &want, "with the backups dead");
}

#[test]
fn two_thousand_keys_survive_a_restart_of_all_primaries() {
    all_primaries_restarted_empty(&[]);
}

#[test]
fn two_thousand_keys_survive_a_restart_over_three_connections_each() {
    all_primaries_restarted_empty(&["-i", "3"]);
}

#[test]
fn two_servers_back_each_other_up() {
    use crate::common::{Magent, Memcached};
    let mut servers = [Memcached::start(), Memcached::start()];
    let [a, b] = [servers[0].name.clone(), servers[1].name.clone()];
    let magent = Magent::farm(&[&a, &b], &[&b, &a], &crate::quick(&[]));
    let mut client = magent.client();
    let all: Vec<String> = (0..200).map(|i| format!("k{i}")).collect();
    for key in &all {
        client.set(key, key);
    }
    for s in &servers {
        wait_for("its copies", || (s.stat("curr_items") == 200).then_some(()));
    }
    for i in [0, 1] {
        servers[i].kill();
        let got = get_all(&mut client, &all);
        assert_eq!(got.len(), 200, "with server {i} dead");
        for key in &all[..50] {
            client.set(key, format!("{key} of {i}"));
        }
        servers[i].restart();
        wait_back(&magent, &servers[i].name);
        let got = get_all(&mut client, &all);
        for (n, key) in all.iter().enumerate() {
            let value = if n < 50 {
                format!("{key} of {i}")
            } else {
                key.clone()
            };
            assert_eq!(
                got.get(key).map(|g| &g.1[..]),
                Some(value.as_bytes()),
                "{key}"
            );
        }
        // What was only copied lazily is not on the server that was away; it is asked for
        // with each of its keys before the other one goes.
        for key in &all {
            client.set(key, key);
        }
        for s in &servers {
            wait_for("its copies", || (s.stat("curr_items") == 200).then_some(()));
        }
    }
}
