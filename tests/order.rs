//! A get of several keys is answered in the order of its keys, as by one memcached: clients rely
//! on it.

mod common;

use common::farm::{Farm, wait_back};
use common::{Client, Fake, FakeLink, Magent, Memcached, keys, show, wait_for};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How often a get is repeated where only chance decides who answers first.
const REPEATS: usize = 1000;

/// What memcached answers to a get of these keys and values.
fn answer<'a>(items: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Vec<u8> {
    let mut all = Vec::new();
    for (key, value) in items {
        all.extend(format!("VALUE {key} 0 {}\r\n", value.len()).bytes());
        all.extend_from_slice(value);
        all.extend(b"\r\n");
    }
    all.extend(b"END\r\n");
    all
}

/// [`answer`] where each value is its key.
fn own_names<'a>(keys: impl IntoIterator<Item = &'a str>) -> Vec<u8> {
    answer(keys.into_iter().map(|k| (k, k.as_bytes())))
}

/// Stores each key with its name as its value.
fn store_names<K: AsRef<str>>(client: &mut Client, keys: &[K]) {
    for key in keys {
        client.set(key.as_ref(), key.as_ref());
    }
}

/// The keys of a get's answer, with `END`, in their order.
fn keys_of(answer: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(answer);
    let lines = text.lines();
    lines
        .filter_map(|l| match l.split(' ').collect::<Vec<_>>()[..] {
            ["VALUE", key, ..] => Some(key.to_string()),
            ["END"] => Some("END".to_string()),
            _ => None,
        })
        .collect()
}

/// Asks `times` times for `names`; fails with how often the answer was another.
#[track_caller]
fn ask_often(client: &mut Client, request: &str, wanted: &[u8], times: usize) {
    let mut others = Vec::new();
    for _ in 0..times {
        client.send(request);
        let got = client.read_until(b"END\r\n");
        if got != wanted {
            others.push(got);
        }
    }
    let example = others.first().map(|o| keys_of(o));
    assert!(
        others.is_empty(),
        "{} of {times} answers to {} were others, e.g. {example:?}, not {:?}",
        others.len(),
        show(request.as_bytes()),
        keys_of(wanted)
    );
}

/// So many keys of each of `servers` servers, in turn, so that neighbours have different homes.
fn mixed(servers: usize, each: usize) -> Vec<String> {
    let of = |n| (0..servers).map(move |s| keys::key_on(s, servers, "foo", n));
    (0..each).flat_map(of).collect()
}

#[test]
fn two_keys_of_two_servers() {
    let farm = Farm::new(2, 0, &[]);
    let mut client = farm.magent.client();
    let names = mixed(2, 1);
    store_names(&mut client, &names);
    for pair in [[&names[0], &names[1]], [&names[1], &names[0]]] {
        let [a, b] = pair.map(String::as_str);
        let request = format!("get {a} {b}\r\n");
        ask_often(&mut client, &request, &own_names([a, b]), REPEATS);
    }
}

#[test]
fn many_keys_some_twice_some_missing() {
    let farm = Farm::new(3, 0, &[]);
    let mut client = farm.magent.client();
    let names = mixed(3, 4);
    store_names(&mut client, &names);
    // Absent ones have homes of their own; each third key is named once more at the end.
    let mut asked: Vec<&str> = Vec::new();
    let absent: Vec<String> = (0..names.len()).map(|i| format!("absent{i}")).collect();
    for (name, none) in names.iter().zip(&absent) {
        asked.extend([name.as_str(), none]);
    }
    asked.extend(names.iter().step_by(3).map(String::as_str));
    asked.extend([asked[0], asked[0], asked[1], asked[1]]);
    let present = asked.iter().filter(|k| !k.starts_with("absent"));
    let wanted = own_names(present.copied());
    for verb in ["get", "gat 0"] {
        let request = format!("{verb} {}\r\n", asked.join(" "));
        ask_often(&mut client, &request, &wanted, REPEATS / 5);
    }
}

/// With cas tokens: each behind its own key.
#[test]
fn gets_and_gats_keep_the_order_and_each_token() {
    let farm = Farm::new(3, 0, &[]);
    let mut client = farm.magent.client();
    let names = mixed(3, 3);
    let mut wanted = Vec::new();
    for key in &names {
        client.set(key, key).send(format!("gets {key}\r\n"));
        let one = client.read_until(b"END\r\n");
        wanted.extend_from_slice(&one[..one.len() - 5]);
    }
    wanted.extend(b"END\r\n");
    for verb in ["gets", "gats 0"] {
        let request = format!("{verb} {}\r\n", names.join(" "));
        ask_often(&mut client, &request, &wanted, REPEATS / 5);
    }
}

#[test]
fn pipelined_gets() {
    let farm = Farm::new(3, 0, &[]);
    let mut client = farm.magent.client();
    let names = mixed(3, 4);
    store_names(&mut client, &names);
    let (mut requests, mut wanted) = (String::new(), Vec::new());
    for i in 0..REPEATS {
        let some = (0..5).map(|n| names[(i * 7 + n * 5) % names.len()].as_str());
        let some: Vec<&str> = some.collect();
        requests.push_str(&format!("get {} none\r\n", some.join(" ")));
        wanted.extend(own_names(some));
    }
    let sender = client.send_aside(requests.into());
    let got = client.read_exact(wanted.len());
    sender.join().expect("all is sent");
    let (got, wanted) = (keys_of(&got), keys_of(&wanted));
    let wrong = got.iter().zip(&wanted).filter(|(a, b)| a != b).count();
    assert_eq!(wrong, 0, "keys of {} stand in another's place", got.len());
}

#[test]
fn large_values_among_small_ones() {
    let farm = Farm::new(3, 0, &[]);
    let mut client = farm.magent.client();
    let names = mixed(3, 3);
    // Of each server the first key is large, so that the small ones of the others are there first.
    let value = |i: usize| match i {
        0..3 => common::noise(100_000 + i),
        _ => names[i].clone().into_bytes(),
    };
    let values: Vec<Vec<u8>> = (0..names.len()).map(value).collect();
    for (key, value) in names.iter().zip(&values) {
        client.set(key, value);
    }
    for start in 0..names.len() {
        let order: Vec<usize> = (0..names.len())
            .map(|i| (start + i) % names.len())
            .collect();
        let asked: Vec<&str> = order.iter().map(|i| names[*i].as_str()).collect();
        let wanted = answer(order.iter().map(|i| (&names[*i][..], &values[*i][..])));
        for _ in 0..10 {
            client.send(format!("get {}\r\n", asked.join(" ")));
            let got = client.read_exact(wanted.len());
            assert!(
                got == wanted,
                "{:?} for {asked:?}, or other values",
                keys_of(&got)
            );
        }
    }
}

/// Keys of a server that is away come from the backup and stand in their places; without a
/// backup they are misses, and the others keep the order.
#[test]
fn with_one_server_down() {
    for backups in [1, 0] {
        let mut farm = Farm::new(3, backups, &[]);
        let mut client = farm.magent.client();
        let names = mixed(3, 4);
        store_names(&mut client, &names);
        if let Some(backup) = farm.backups.first() {
            for key in &names {
                backup.wait_value(key, Some(key.as_bytes()));
            }
        }
        farm.primaries[1].kill();
        let all = names.iter().map(String::as_str);
        let wanted = own_names(all.filter(|k| backups > 0 || keys::home(k, 3) != 1));
        let request = format!("get {}\r\n", names.join(" "));
        ask_often(&mut client, &request, &wanted, REPEATS / 5);
    }
}

/// What a warming primary lacks is fetched, and takes its place all the same.
#[test]
fn with_keys_that_are_fetched_from_the_backup() {
    let mut farm = Farm::new(3, 1, &[]);
    let mut client = farm.magent.client();
    let names = mixed(3, 4);
    store_names(&mut client, &names);
    for key in &names {
        farm.backups[0].wait_value(key, Some(key.as_bytes()));
    }
    let request = format!("get {}\r\n", names.join(" "));
    let wanted = own_names(names.iter().map(String::as_str));
    for _ in 0..5 {
        farm.primaries[1].restart();
        client.send("mg nothing\r\n").read_line();
        wait_back(&farm.magent, &farm.primaries[1].name);
        client.send(&request);
        let got = client.read_until(b"END\r\n");
        assert_eq!(keys_of(&got), keys_of(&wanted));
        assert_eq!(show(&got), show(&wanted));
    }
}

/// The value of each key of a get's line, as a server that has them all answers it.
fn hits(request: &[u8]) -> Vec<u8> {
    let line = String::from_utf8_lossy(request).into_owned();
    own_names(line.split_whitespace().skip(1))
}

/// Fakes that answer in an order of the test's: the last key's server first, the first key's last,
/// and each when magent has read the answer before.
#[test]
fn servers_that_answer_in_the_opposite_order() {
    const SERVERS: usize = 4;
    let turn = Arc::new(AtomicUsize::new(SERVERS));
    let fakes: Vec<Fake> = (0..SERVERS)
        .map(|number| {
            let turn = turn.clone();
            Fake::start(move |link: &mut FakeLink| {
                while let Some(request) = link.request() {
                    link.wait(|| turn.load(Ordering::SeqCst) == number);
                    link.send(hits(&request));
                }
            })
        })
        .collect();
    let list: Vec<&str> = fakes.iter().map(|f| f.name.as_str()).collect();
    let magent = Magent::farm(&list, &[], &[]);
    let names = mixed(SERVERS, 8);
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut client = magent.client();
    client.send(format!("get {}\r\n", all.join(" ")));
    for (number, fake) in fakes.iter().enumerate().rev() {
        fake.wait_count("get", 1);
        turn.store(number, Ordering::SeqCst);
        wait_for("its answer to be read", || {
            (magent.server(&fake.name)["in_flight"] == "0").then_some(())
        });
    }
    let got = client.read_until(b"END\r\n");
    assert_eq!(keys_of(&got), keys_of(&own_names(all.iter().copied())));
    assert_eq!(show(&got), show(&own_names(all)));
    for (number, fake) in fakes.iter().enumerate() {
        let own: Vec<String> = (0..8)
            .map(|n| keys::key_on(number, SERVERS, "foo", n))
            .collect();
        let line = format!("get {}\r\n", own.join(" "));
        assert_eq!(fake.requests(), [line.into_bytes()], "one line per server");
    }
}

/// Keys in the order of the line and not of the servers: a server is asked once all the same.
#[test]
fn one_line_per_server_whatever_the_order_of_the_keys() {
    let fakes: Vec<Fake> = (0..2).map(|_| Fake::answering(hits)).collect();
    let magent = Magent::farm(&[&fakes[0].name, &fakes[1].name], &[], &[]);
    let names = mixed(2, 16);
    let mut order: Vec<&str> = names.iter().map(String::as_str).collect();
    order.sort_by_key(|k| keys::djb(k.as_bytes()) / 2 % 97);
    let mut client = magent.client();
    let request = format!("get {}\r\n", order.join(" "));
    ask_often(&mut client, &request, &own_names(order), 50);
    for fake in &fakes {
        assert_eq!(fake.requests().len(), 50, "one line per server and get");
    }
}

/// A part that is an error, or lost, is a miss in its place.
#[test]
fn with_one_server_that_fails() {
    let failing = Fake::answering(|_| b"SERVER_ERROR out of memory\r\n".to_vec());
    let others = [Memcached::start(), Memcached::start()];
    let list = [&others[0].name[..], &failing.name, &others[1].name];
    let magent = Magent::farm(&list, &[], &[]);
    let mut client = magent.client();
    let names = mixed(3, 4);
    let held = names.iter().filter(|k| keys::home(k, 3) != 1);
    let held: Vec<&str> = held.map(String::as_str).collect();
    store_names(&mut client, &held);
    let request = format!("get {}\r\n", names.join(" "));
    ask_often(&mut client, &request, &own_names(held), REPEATS / 5);
    wait_for("the misses to be counted", || {
        (magent.stat("multi_get_keys_lost") > 0).then_some(())
    });
}
