//! Requests that took long, and keys that are asked often.

use super::common::fake::empty;
use super::common::farm::quick;
use super::common::time::pause_of;
use super::common::{Fake, Gate, Magent, Memcached};
use super::{DOOR, field, lines, with_door};
use std::time::Duration;

/// Longer than what is slow by default.
const LONG: Duration = Duration::from_millis(120);

/// The words of the only slow request.
fn slow(magent: &Magent) -> Vec<String> {
    let all = lines(&mut magent.operator(), "slow", "END");
    assert_eq!(all.len(), 1, "{all:?}");
    all[0].split(' ').map(str::to_string).collect()
}

fn ms(line: &[String], name: &str) -> f64 {
    field(line, name).parse().expect("milliseconds")
}

/// Holds what a server was asked for so long, once it was asked it.
fn hold(server: &Fake, start: &str, gate: &Gate) {
    server.wait_count(start, 1);
    pause_of(LONG);
    gate.open();
}

#[test]
fn what_takes_long_is_listed_with_where_the_time_went() {
    let (server, gate) = Fake::holding("get slow", empty);
    let magent = Magent::farm(&[&server.name], &[], &DOOR);
    let mut client = magent.client();
    client.ask("get quick\r\n", "END\r\n");
    let before = std::time::SystemTime::now();
    client.send("get slow and another\r\n");
    hold(&server, "get slow", &gate);
    client.expect("END\r\n");
    let line = slow(&magent);
    let number = lines(&mut magent.operator(), "clients", "END");
    let number = number
        .iter()
        .find(|l| l.contains(" default text "))
        .expect("the client");
    let words: Vec<&str> = number.split(' ').collect();
    assert_eq!(line[1..5], [words[0], words[1], "default", "get"]);
    assert_eq!((line[5].as_str(), field(&line, "keys")), ("slow", "3"));
    assert_eq!(field(&line, "server"), server.name);
    assert!(ms(&line, "primary") >= 120.0, "{line:?}");
    assert!(
        (ms(&line, "queue") + ms(&line, "primary") - ms(&line, "ms")).abs() < 0.15,
        "{line:?}"
    );
    assert!(!line.contains(&"error".to_string()), "{line:?}");
    // To the second, in the time of the log.
    let day = before
        .duration_since(std::time::UNIX_EPOCH)
        .expect("now")
        .as_secs();
    let seconds: Vec<u64> = line[0][11..19]
        .split(':')
        .map(|n| n.parse().expect("digits"))
        .collect();
    let at = seconds[0] * 3600 + seconds[1] * 60 + seconds[2];
    let since = (at + 86_400 - day % 86_400 + 1) % 86_400;
    assert!(line[0].ends_with('Z') && since < 60, "{line:?}");
}

/// Whatever was waited for is named: a primary that is late, and the backup that answers for it.
#[test]
fn steps_of_a_slow_request_have_their_names() {
    let silent = || Fake::start(|link| link.silence());
    let patient = quick(&[&DOOR[..], &["--failure-limit", "1000"]].concat());
    let primary = silent();
    let backup = Memcached::start();
    let magent = Magent::farm(&[&primary.name], &[&backup.name], &patient);
    magent.client().ask("get k\r\n", "END\r\n");
    let line = slow(&magent);
    assert_eq!(field(&line, "server"), backup.name);
    assert!(
        ms(&line, "primary") >= 250.0 && ms(&line, "backup") < ms(&line, "ms"),
        "{line:?}"
    );

    let primary = silent();
    let magent = Magent::farm(&[&primary.name], &[], &patient);
    let error = format!("SERVER_ERROR {} timed out\r\n", primary.name);
    magent.client().ask("incr k 1\r\n", error);
    let line = slow(&magent);
    assert_eq!((line[4].as_str(), line[5].as_str()), ("incr", "k"));
    assert!(line.join(" ").ends_with(" error timed out"), "{line:?}");
}

/// A fresh primary lacks the key: it is fetched from the backup, which takes its time.
#[test]
fn a_fetch_is_named() {
    const FETCH: &str = "mg k ";
    const FOUND: &str = "VA 1 f0 t-1\r\n5\r\n";
    for (asked, found, name, answer) in [
        ("get k\r\n", "EN\r\n", "backup", "END\r\n"),
        ("get k\r\n", FOUND, "backup", "VALUE k 0 1\r\n5\r\nEND\r\n"),
        ("incr k 1\r\n", FOUND, "fetch", "6\r\n"),
    ] {
        let (backup, gate) = Fake::holding(FETCH, move |request| match request {
            r if r.starts_with(FETCH.as_bytes()) => found,
            r => empty(r),
        });
        let primary = Memcached::start();
        let magent = Magent::farm(&[&primary.name], &[&backup.name], &DOOR);
        let mut client = magent.client();
        client.send(asked);
        hold(&backup, FETCH, &gate);
        client.expect(answer);
        let line = slow(&magent);
        let command = asked.split(' ').next().expect("a command");
        assert_eq!((line[4].as_str(), line[5].as_str()), (command, "k"));
        assert!(ms(&line, name) >= 120.0, "{line:?}");
        let last = match name {
            "fetch" => &primary.name,
            _ => &backup.name,
        };
        assert_eq!(field(&line, "server"), last);
    }
}

#[test]
fn what_is_slow_can_be_said_and_forgotten() {
    let (server, gate) = Fake::holding("get slow", empty);
    let options = [&DOOR[..], &["--slow", "60000"]].concat();
    let magent = Magent::farm(&[&server.name], &[], &options);
    let (mut client, mut operator) = (magent.client(), magent.operator());
    client.send("get slow\r\n");
    hold(&server, "get slow", &gate);
    client.expect("END\r\n");
    operator.ask("slow\n", "END\r\n");
    assert_eq!(operator.stats("stats settings\n")["slow"], "60000");

    let silent = Fake::start(|link| link.silence());
    let options = quick(&[&DOOR[..], &["--slow", "1"]].concat());
    let magent = Magent::farm(&[&silent.name], &[], &options);
    let (mut client, mut operator) = (magent.client(), magent.operator());
    client.send("get a\r\n".repeat(300));
    // More than is kept.
    client.read_until_true(|all| all.iter().filter(|b| **b == b'\n').count() == 300);
    assert_eq!(lines(&mut operator, "slow", "END").len(), 128);
    operator.ask("slow reset\n", "OK\r\n");
    operator.ask("slow\n", "END\r\n");
    operator.ask("slow rest\n", "ERROR usage: slow [reset]\r\n");
    assert!(magent.log().contains(": slow reset\n"));
}

#[test]
fn keys_that_are_asked_often_are_listed_in_their_order() {
    let server = Memcached::start();
    let magent = Magent::farm(&[&server.name], &[], &DOOR);
    let (mut client, mut operator) = (magent.client(), magent.operator());
    operator.ask("hot\n", "END\r\n");
    for (request, answer) in [
        ("get often often\r\n", "END\r\n"),
        ("get seldom often\r\n", "END\r\n"),
        ("set often 0 0 1\r\nx\r\n", "STORED\r\n"),
        // A space in it: only the binary protocol and this can say that.
        ("mg YSBi b\r\n", "EN\r\n"),
        ("mg YSBi b v\r\n", "EN\r\n"),
    ] {
        client.ask(request, answer);
    }
    let hot = lines(&mut operator, "hot", "END");
    let words: Vec<Vec<&str>> = hot.iter().map(|l| l.split(' ').collect()).collect();
    let keys: Vec<&str> = words.iter().map(|w| w[1]).collect();
    assert_eq!(keys, ["often", "a\\x20b", "seldom"], "{hot:?}");
    for (line, percent) in words.iter().zip(["57.1", "28.6", "14.3"]) {
        assert_eq!((line[0], line[5]), ("default", percent), "{hot:?}");
        assert!(line[3].parse::<f64>().expect("a number") > 0.0, "{hot:?}");
    }
    with_door(&[]).operator().ask("hot\n", "END\r\n");
}
