//! Requests that create a key (`add`, `ms` in add mode, `mg N`, `ma N`) at a primary that came
//! back empty: the backup may hold the key, so nothing is created before it was asked, however
//! many ask at once.

mod common;

#[path = "creating/alone.rs"]
mod alone;
#[path = "creating/unsaid.rs"]
mod unsaid;

use common::farm::{Farm, wait_back};
use common::{Client, DEADLINE, wait_for};
use std::collections::BTreeMap;
use std::thread::{scope, spawn};
use std::time::{Duration, Instant};

/// A primary that lost `held` in a restart and is known to be warming; its backup holds it.
fn back_empty(held: &[(&str, &str)], options: &[&str]) -> Farm {
    let mut farm = Farm::new(1, 1, options);
    let mut client = farm.magent.client();
    for (key, value) in held {
        client.set(key, value);
        farm.backups[0].wait_value(key, Some(value.as_bytes()));
    }
    farm.primaries[0].restart();
    client.send("mg nothing\r\n").read_line();
    wait_back(&farm.magent, &farm.primaries[0].name);
    let state = farm.magent.server(&farm.primaries[0].name)["state"].clone();
    assert_eq!(state, "warming");
    farm
}

/// How often each line comes among the next `lines`; all have come by `end`.
fn tally(client: &mut Client, lines: usize, end: Instant) -> BTreeMap<String, usize> {
    let mut seen = BTreeMap::new();
    client.deadline = end.saturating_duration_since(Instant::now());
    let (bytes, whole) = client.read_until_true({
        let (mut looked_at, mut found) = (0, 0);
        move |b| {
            found += b[looked_at..].iter().filter(|c| **c == b'\n').count();
            looked_at = b.len();
            found >= lines
        }
    });
    for line in String::from_utf8_lossy(&bytes).lines() {
        *seen.entry(line.to_string()).or_default() += 1;
    }
    if !whole || seen.values().sum::<usize>() < lines {
        seen.insert("no further answer".into(), 1);
    }
    seen
}

fn add_up(all: impl IntoIterator<Item = BTreeMap<String, usize>>) -> BTreeMap<String, usize> {
    let mut sum = BTreeMap::new();
    for (line, n) in all.into_iter().flatten() {
        *sum.entry(line).or_default() += n;
    }
    sum
}

/// A primary that answers at once is never late, however many wait for the backup's word.
#[track_caller]
fn check_healthy(farm: &Farm) {
    let primary = farm.magent.server(&farm.primaries[0].name);
    let facts = ["state", "timeouts", "errors", "journal_keys"].map(|f| primary[f].as_str());
    assert_eq!(facts, ["warming", "0", "0", "0"], "of the primary");
    assert_eq!(farm.magent.stat("chases"), 0, "chases");
    let log = farm.magent.log();
    assert!(!log.contains("down"), "{log}");
}

#[test]
fn a_crowd_does_not_get_a_lock_that_has_an_owner() {
    const CLIENTS: usize = 6;
    const ADDS: usize = 5000;
    let farm = back_empty(&[("lock", "owner")], &["--timeout", "5000"]);
    let end = Instant::now() + DEADLINE;
    let adders: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let mut client = farm.magent.client();
            spawn(move || {
                let adds = "add lock 0 0 5\r\nadder\r\n".repeat(ADDS);
                let sender = client.send_aside(adds.into());
                let seen = tally(&mut client, ADDS, end);
                sender.join().expect("all is sent");
                seen
            })
        })
        .collect();
    let mut reader = farm.magent.client();
    let mut read: BTreeMap<String, usize> = BTreeMap::new();
    while !adders.iter().all(|a| a.is_finished()) {
        reader.send("get lock\r\n");
        let (answer, _) = reader.read_until_true(|b| b.ends_with(b"END\r\n"));
        *read.entry(common::show(&answer)).or_default() += 1;
    }
    let seen = add_up(adders.into_iter().map(|a| a.join().expect("an adder")));
    let wanted = BTreeMap::from([("NOT_STORED".to_string(), CLIENTS * ADDS)]);
    assert_eq!(seen, wanted, "adds of a key that the backup holds");
    read.remove(&common::show(b"VALUE lock 0 5\r\nowner\r\nEND\r\n"));
    assert!(read.is_empty(), "read meanwhile: {read:?}");
    assert_eq!(
        farm.backups[0].value("lock").as_deref(),
        Some(&b"owner"[..])
    );
    check_healthy(&farm);
}

/// One of them wins a key that neither server has, as at one memcached.
#[test]
fn a_crowd_that_adds_a_new_key_has_one_winner() {
    const CLIENTS: usize = 100;
    const ADDS: usize = 50;
    let farm = back_empty(&[], &["--timeout", "5000"]);
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| farm.magent.client()).collect();
    for (i, client) in clients.iter_mut().enumerate() {
        client.send(format!("add new 0 0 3\r\n{i:03}\r\n").repeat(ADDS));
    }
    let end = Instant::now() + DEADLINE;
    let seen: Vec<_> = clients.iter_mut().map(|c| tally(c, ADDS, end)).collect();
    let winner = seen.iter().position(|s| s.contains_key("STORED"));
    let wanted = BTreeMap::from([
        ("NOT_STORED".to_string(), CLIENTS * ADDS - 1),
        ("STORED".to_string(), 1),
    ]);
    assert_eq!(add_up(seen), wanted);
    let value = winner.map(|i| format!("{i:03}").into_bytes());
    assert_eq!(clients[0].get("new"), value);
    check_healthy(&farm);
}

/// A thousand pages that miss the same key at once: one of them is told to make it, all others
/// that it is being made.
#[test]
fn a_thousand_clients_vivify_one_key() {
    const CLIENTS: usize = 1000;
    const EACH: usize = 20;
    let farm = back_empty(&[("held", "x")], &["--timeout", "5000"]);
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| farm.magent.client()).collect();
    for (key, wanted) in [
        ("hot", &[("VA 0 W", 1), ("VA 0 Z", CLIENTS * EACH - 1)][..]),
        ("held", &[("VA 1", CLIENTS * EACH)]),
    ] {
        // Together: magent finds all of them in one turn.
        farm.magent.while_stopped(|| {
            for client in &mut clients {
                client.send(format!("mg {key} N30 v\r\n").repeat(EACH));
            }
        });
        let (begin, end) = (Instant::now(), Instant::now() + DEADLINE);
        let mut seen = add_up(clients.iter_mut().map(|c| tally(c, 2 * EACH, end)));
        // The values' own lines.
        seen.retain(|line, _| !["", "x"].contains(&line.as_str()));
        let wanted = wanted.iter().map(|(l, n)| (l.to_string(), *n)).collect();
        assert_eq!(seen, wanted, "{key}, after {:?}", begin.elapsed());
        check_healthy(&farm);
    }
}

/// The longest and the median time of a set and a get while `busy` says so, but 50 at least.
fn probe(client: &mut Client, mut busy: impl FnMut() -> bool) -> (Duration, Duration) {
    let mut took = Vec::new();
    while took.len() < 50 || busy() {
        let begin = Instant::now();
        client.set("mine", "x");
        assert_eq!(client.get("mine").as_deref(), Some(&b"x"[..]));
        took.push(begin.elapsed());
    }
    took.sort();
    (took[took.len() - 1], took[took.len() / 2])
}

/// What [`probe`] gave is what nobody complains about.
#[track_caller]
fn assert_prompt((longest, median): (Duration, Duration)) {
    assert!(
        longest < Duration::from_secs(1) && median < Duration::from_millis(200),
        "a set and a get took {median:?} as a rule and {longest:?} at most"
    );
}

/// What a client that left has asked for costs nobody else his answers: all of that took over a
/// minute once, and each answer 20 ms to a second meanwhile.
#[test]
fn clients_that_pipeline_adds_and_leave_slow_nobody() {
    const CLIENTS: usize = 100;
    const ADDS: usize = 1000;
    let farm = back_empty(&[], &["--timeout", "5000"]);
    let mut client = farm.magent.client();
    client.set("mine", "x");
    let mut crowd: Vec<Client> = (0..CLIENTS).map(|_| farm.magent.client()).collect();
    farm.magent.while_stopped(|| {
        for (i, c) in crowd.iter_mut().enumerate() {
            c.send(format!("add lock{i} 0 0 1\r\nx\r\n").repeat(ADDS));
        }
    });
    // Each has been read when its first answer is there.
    crowd.into_iter().for_each(|mut c| {
        c.read_line();
    });
    let end = Instant::now() + Duration::from_secs(2);
    assert_prompt(probe(&mut client, || Instant::now() < end));
    check_healthy(&farm);
}

/// Beside clients that stay and read, too.
#[test]
fn a_crowd_of_adds_slows_nobody_else() {
    const CLIENTS: usize = 30;
    const ADDS: usize = 1000;
    let farm = back_empty(&[("lock", "owner")], &["--timeout", "5000"]);
    let mut client = farm.magent.client();
    let begin = Instant::now();
    let end = Instant::now() + DEADLINE;
    let (took, seen) = scope(|s| {
        let crowd: Vec<_> = (0..CLIENTS)
            .map(|_| {
                let mut c = farm.magent.client();
                s.spawn(move || {
                    c.send("add lock 0 0 1\r\nx\r\n".repeat(ADDS));
                    tally(&mut c, ADDS, end)
                })
            })
            .collect();
        let took = probe(&mut client, || !crowd.iter().all(|c| c.is_finished()));
        let seen = add_up(crowd.into_iter().map(|c| c.join().expect("a client")));
        (took, seen)
    });
    let wanted = BTreeMap::from([("NOT_STORED".to_string(), CLIENTS * ADDS)]);
    assert_eq!(seen, wanted, "after {:?}", begin.elapsed());
    assert_prompt(took);
    check_healthy(&farm);
}

/// What waits behind a request that creates a key keeps its place, for each of many clients.
#[test]
fn what_waits_for_a_look_keeps_its_place() {
    const ROUNDS: usize = 20;
    let names: Vec<String> = (0..20).map(|i| format!("k{i}")).collect();
    let held: Vec<(&str, &str)> = names.iter().map(|k| (&k[..], "owner")).collect();
    let farm = back_empty(&held, &["--timeout", "5000"]);
    let mut clients: Vec<Client> = names.iter().map(|_| farm.magent.client()).collect();
    for (client, key) in clients.iter_mut().zip(&names) {
        let first = format!("add {key} 0 0 1\r\nx\r\nget {key}\r\n");
        let round = format!(
            "delete {key}\r\nadd {key} 0 0 1\r\n5\r\nget {key}\r\nincr {key} 2\r\n\
             add {key} 0 0 1\r\nx\r\nget {key}\r\n"
        );
        client.send(first + &round.repeat(ROUNDS));
    }
    for (client, key) in clients.iter_mut().zip(&names) {
        let value = |v: &str| format!("VALUE {key} 0 {}\r\n{v}\r\nEND\r\n", v.len());
        client.expect(format!("NOT_STORED\r\n{}", value("owner")));
        let round = format!(
            "DELETED\r\nSTORED\r\n{}7\r\nNOT_STORED\r\n{}",
            value("5"),
            value("7")
        );
        client.expect(round.repeat(ROUNDS));
    }
    for key in &names {
        farm.backups[0].wait_value(key, Some(b"7"));
    }
    wait_for("nothing to be under way", || {
        let primary = farm.magent.server(&farm.primaries[0].name);
        (primary["in_flight"] == "0").then_some(())
    });
    check_healthy(&farm);
}
