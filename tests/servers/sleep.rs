//! Servers that hang: stopped ones that wake with old data and unread writes, answers that come
//! late or never.

use crate::common::fake::empty;
use crate::common::{Client, Fake, Gate, Magent, Memcached, keys, wait_for};
use crate::{Farm, ask_until_down, get_all, quick, wait_back};
use std::time::{Duration, Instant};

/// Rewrites the first 100 keys and deletes the next 50.
fn change(client: &mut Client, all: &[String]) {
    let lines: String = all[..100]
        .iter()
        .map(|k| format!("set {k} 0 0 3\r\nnew\r\n"))
        .collect();
    client.ask(lines, "STORED\r\n".repeat(100));
    let lines: String = all[100..150]
        .iter()
        .map(|k| format!("delete {k}\r\n"))
        .collect();
    client.ask(lines, "DELETED\r\n".repeat(50));
}

/// Nobody reads an old value; with `copies`, nothing is missing either.
fn check(client: &mut Client, all: &[String], copies: bool, when: &str) {
    let got = get_all(client, all);
    for (i, key) in all.iter().enumerate() {
        let value = got.get(key).map(|(_, v)| &v[..]);
        let right = match i {
            0..100 => value == Some(b"new"),
            100..150 => value.is_none(),
            _ => value == Some(b"old"),
        };
        assert!(
            right || (!copies && value.is_none()),
            "{key} {when}: {value:?}"
        );
    }
}

fn filled(farm: &Farm) -> (Client, Vec<String>) {
    let mut client = farm.magent.client();
    let all: Vec<String> = (0..200).map(|i| format!("k{i}")).collect();
    let lines: String = all
        .iter()
        .map(|k| format!("set {k} 0 0 3\r\nold\r\n"))
        .collect();
    client.ask(lines, "STORED\r\n".repeat(200));
    wait_for("all copies", || {
        let copies: u64 = farm.backups.iter().map(|b| b.stat("curr_items")).sum();
        (copies == 200).then_some(())
    });
    (client, all)
}

#[test]
fn a_primary_that_wakes_with_old_data_is_told_first() {
    for options in [&["--warm", "3600"][..], &["--warm", "1"], &["-i", "3"]] {
        let farm = Farm::new(1, 1, options);
        let (mut client, all) = filled(&farm);
        farm.primaries[0].stop();
        change(&mut client, &all);
        check(&mut client, &all, true, "while the primary sleeps");
        farm.magent.wait_state(&farm.primaries[0].name, "down");
        farm.primaries[0].cont();
        for _ in 0..20 {
            check(&mut client, &all, true, "while the primary wakes");
        }
        wait_back(&farm.magent, &farm.primaries[0].name);
        check(&mut client, &all, true, "with the primary back");
        let held = get_all(&mut farm.primaries[0].client(), &all);
        assert!(
            held.values().filter(|h| h.1 == b"new").count() >= 100,
            "they are back"
        );
    }
}

/// Too short a sleep to count as down: every write that timed out is followed by a delete.
#[test]
fn a_primary_that_wakes_before_it_is_down_shows_nothing_old() {
    let farm = Farm::new(1, 1, &["--failure-limit", "100"]);
    let (mut client, all) = filled(&farm);
    farm.primaries[0].stop();
    change(&mut client, &all);
    farm.primaries[0].cont();
    for _ in 0..20 {
        check(&mut client, &all, true, "while the primary wakes");
    }
    wait_back(&farm.magent, &farm.primaries[0].name);
    check(&mut client, &all, true, "with the primary back");
    assert!(!farm.magent.log().contains("down"), "it never was");
    assert!(farm.magent.stat("chases") >= 150);
}

#[test]
fn a_backup_that_wakes_with_old_data_is_told_first() {
    let mut farm = Farm::new(1, 1, &[]);
    let (mut client, all) = filled(&farm);
    let backup = farm.backups[0].name.clone();
    farm.backups[0].stop();
    change(&mut client, &all);
    wait_for("the backup to be down", || {
        client.set("other", "x");
        (farm.magent.server(&backup)["state"] == "down").then_some(())
    });
    change_again(&mut client, &all);
    farm.backups[0].cont();
    wait_back(&farm.magent, &backup);
    farm.primaries[0].kill();
    check(&mut client, &all, false, "from the backup");
    farm.magent.wait_state(&farm.primaries[0].name, "down");
    check(
        &mut client,
        &all,
        false,
        "from the backup, the primary known to be down",
    );
}

/// What [`change`] did, once more over what is there now.
fn change_again(client: &mut Client, all: &[String]) {
    for (i, key) in all[..150].iter().enumerate() {
        client.set(key, "new");
        if i >= 100 {
            client.ask(format!("delete {key}\r\n"), "DELETED\r\n");
        }
    }
}

fn median(client: &mut Client, key: &str) -> Duration {
    let mut took: Vec<Duration> = (0..200)
        .map(|_| {
            let begin = Instant::now();
            client.get(key).expect("its value");
            begin.elapsed()
        })
        .collect();
    took.sort();
    took[100]
}

#[test]
fn one_of_three_primaries_stopped_and_no_backup() {
    let farm = Farm::new(3, 0, &[]);
    let mut client = farm.magent.client();
    let names: Vec<String> = (0..3).map(|s| keys::key_on(s, 3, "key", 0)).collect();
    for key in &names {
        client.set(key, "v");
    }
    let before = median(&mut client, &names[0]);
    let hung = &farm.primaries[1];
    hung.stop();
    let begin = Instant::now();
    let line = farm
        .magent
        .client()
        .ask_line(format!("get {}\r\n", names[1]));
    assert_eq!(line, format!("SERVER_ERROR {} timed out", hung.name));
    assert!(
        begin.elapsed() >= Duration::from_millis(250),
        "{:?}",
        begin.elapsed()
    );
    ask_until_down(&farm.magent, &hung.name, &names[1]);
    // 200 of them at the price of a timeout each would take most of a minute.
    let begin = Instant::now();
    for _ in 0..200 {
        let line = client.ask_line(format!("get {}\r\n", names[1]));
        assert_eq!(line, format!("SERVER_ERROR {} down", hung.name));
    }
    assert!(
        begin.elapsed() < Duration::from_secs(5),
        "{:?}",
        begin.elapsed()
    );
    let got = get_all(&mut client, &names);
    assert_eq!(got.keys().collect::<Vec<_>>(), {
        let mut others = vec![&names[0], &names[2]];
        others.sort();
        others
    });
    // Ten times leaves room for a busy machine; a timeout would be a thousand times.
    let after = median(&mut client, &names[0]);
    assert!(
        after < before * 10 + Duration::from_millis(2),
        "{before:?} became {after:?}"
    );
    hung.cont();
    wait_back(&farm.magent, &hung.name);
    assert_eq!(
        client.get(&names[1]).as_deref(),
        Some(&b"v"[..]),
        "as it was"
    );
}

/// Unacknowledged writes: a stopped server has a write in its socket that magent has long settled
/// elsewhere. It reads it late; before that it must not be trusted, or the old write would stand.
#[test]
fn a_server_is_not_trusted_before_it_has_read_old_writes() {
    let (gate, theirs) = Gate::new();
    let (probed, probes) = Gate::new();
    let fake = Fake::start(move |link| {
        if link.number == 0 {
            link.wait_open(&theirs);
            while link.request().is_some() {}
            return;
        }
        probes.open();
        while let Some(request) = link.request() {
            link.send(empty(&request));
        }
    });
    let backup = Memcached::start();
    let options = quick(&["--failure-limit", "1"]);
    let magent = Magent::farm(&[&fake.name], &[&backup.name], &options);
    let mut client = magent.client();
    client.set("k", "letter");
    magent.wait_state(&fake.name, "down");
    client.set("k", "newest");
    wait_for("a good answer to a probe", || {
        probed.is_open().then_some(())
    });
    for _ in 0..200 {
        assert_eq!(magent.server(&fake.name)["state"], "down");
        assert_eq!(client.get("k").as_deref(), Some(&b"newest"[..]));
    }
    assert_eq!(
        fake.count("delete"),
        0,
        "told before it had read: {:?}",
        fake.requests()
    );
    gate.open();
    wait_back(&magent, &fake.name);
    let requests = fake.requests();
    let set = requests.iter().position(|r| r.starts_with(b"set k"));
    let delete = requests.iter().position(|r| r == b"delete k\r\n");
    assert!(set.is_some() && set < delete, "{requests:?}");
    assert_eq!(fake.count("set"), 1, "the second one was never for it");
}

#[test]
fn a_write_that_timed_out_is_followed_by_a_delete() {
    let (gate, theirs) = Gate::new();
    let fake = Fake::start(move |link| {
        let mut copied = false;
        while let Some(request) = link.request() {
            link.wait_open(&theirs);
            copied |= request.starts_with(b"add");
            link.send(match copied && request.starts_with(b"get") {
                true => "VALUE k 0 3\r\nnew\r\nEND\r\n",
                false => empty(&request),
            });
        }
    });
    let backup = Memcached::start();
    let magent = Magent::farm(
        &[&fake.name],
        &[&backup.name],
        &quick(&["--refill", "0", "--alone"]),
    );
    let mut client = magent.client();
    client.set("k", "new");
    assert_eq!(backup.value("k").as_deref(), Some(&b"new"[..]));
    assert_eq!(
        magent.server(&fake.name)["journal_keys"],
        "1",
        "it is not told yet"
    );
    gate.open();
    fake.wait_count("delete k", 1);
    wait_back(&magent, &fake.name);
    magent.wait_state(&fake.name, "warming");
    assert_eq!(
        client.get("k").as_deref(),
        Some(&b"new"[..]),
        "from the backup"
    );
    let begins: Vec<String> = fake
        .requests()
        .iter()
        .map(|r| {
            String::from_utf8_lossy(r)
                .split('\r')
                .next()
                .unwrap_or("")
                .to_string()
        })
        .collect();
    assert_eq!(begins[..3], ["set k 0 0 3", "delete k", "get k"]);
    assert_eq!(magent.stat("chases"), 1);
}

/// Without a backup nothing was written elsewhere: the late write stands.
#[test]
fn without_a_backup_nothing_is_deleted() {
    let (fake, gate) = Fake::holding("", empty);
    let magent = Magent::farm(&[&fake.name], &[], &quick(&[]));
    let mut client = magent.client();
    let line = client.ask_line("set k 0 0 1\r\nx\r\n");
    assert_eq!(line, format!("SERVER_ERROR {} timed out", fake.name));
    gate.open();
    client.ask("get k\r\n", "END\r\n");
    assert_eq!(fake.count("delete"), 0);
}

/// A server that says yes to the handshake and then takes the journal without a word is not
/// waited for for ever.
#[test]
fn a_server_that_hangs_while_it_is_told_is_tried_again() {
    let fake = Fake::start(move |link| match link.number {
        0 => {
            link.request();
        }
        1 => link.silence(),
        _ => {
            while let Some(request) = link.request() {
                link.send(empty(&request));
            }
        }
    });
    let backup = Memcached::start();
    let magent = Magent::farm(&[&fake.name], &[&backup.name], &quick(&[]));
    let mut client = magent.client();
    client.set("k", "new");
    wait_back(&magent, &fake.name);
    assert!(fake.links() >= 3);
    assert_eq!(fake.count("delete k"), 1, "the one that was answered");
}
