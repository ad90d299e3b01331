//! What magent knows of its servers goes on: who is away and what it missed, who is warming, what is late.

use super::Farm;
use super::common::farm::{ask_until_down, quick, wait_back};
use super::common::{Client, pause_of, wait_for};
use std::time::Duration;

fn field(farm: &Farm, name: &str, field: &str) -> String {
    farm.magent.server(name)[field].clone()
}

#[test]
fn a_journal_with_many_keys_goes_on() {
    const KEYS: usize = 100_000;
    let mut farm = Farm::new(1, 1, &quick(&["--warm", "0"]));
    let primary = farm.primaries[0].name.clone();
    let mut client = farm.magent.old_client();
    let set_all = |client: &mut Client, value: &str| {
        for first in (0..KEYS).step_by(1000) {
            let keys = first..first + 1000;
            let line = |n| format!("set key{n} 0 0 {}\r\n{value}\r\n", value.len());
            client.send(keys.map(line).collect::<String>());
            client.expect("STORED\r\n".repeat(1000));
        }
    };
    set_all(&mut client, "old");
    farm.primaries[0].stop();
    ask_until_down(&farm.magent, &primary, "key0");
    set_all(&mut client, "new");
    let journal = field(&farm, &primary, "journal_keys");
    assert!(
        journal.parse::<usize>().expect("a number") >= KEYS - 1,
        "{journal}"
    );
    farm.change();
    assert_eq!(field(&farm, &primary, "state"), "down");
    assert_eq!(field(&farm, &primary, "journal_keys"), journal);
    assert_eq!(client.get("key7").as_deref(), Some(&b"new"[..]));
    farm.change();
    farm.primaries[0].cont();
    wait_back(&farm.magent, &primary);
    assert_eq!(field(&farm, &primary, "journal_overflows"), "0");
    for n in (0..KEYS).step_by(997) {
        let key = format!("key{n}");
        assert_ne!(
            farm.primaries[0].value(&key).as_deref(),
            Some(&b"old"[..]),
            "{key}"
        );
    }
    farm.primaries[0].kill();
}

#[test]
fn a_warming_primary_is_warming_still() {
    let mut farm = Farm::new(1, 1, &quick(&["--refill", "0"]));
    let primary = farm.primaries[0].name.clone();
    let mut client = farm.magent.client();
    for n in 0..10 {
        client.set(&format!("key{n}"), "value");
    }
    for n in 0..10 {
        farm.backups[0].wait_value(&format!("key{n}"), Some(b"value"));
    }
    farm.primaries[0].restart();
    wait_for("it to answer", || {
        (client.get("key0").as_deref() == Some(b"value")).then_some(())
    });
    assert_eq!(field(&farm, &primary, "state"), "warming");
    let (since, fetches) = (field(&farm, &primary, "since"), farm.magent.stat("fetches"));
    farm.change();
    assert_eq!(field(&farm, &primary, "state"), "warming");
    assert_eq!(field(&farm, &primary, "since"), since);
    for n in 1..10 {
        assert_eq!(
            client.get(&format!("key{n}")).as_deref(),
            Some(&b"value"[..])
        );
    }
    assert!(farm.magent.stat("fetches") >= fetches + 9);
}

#[test]
fn a_refill_is_done_under_whichever_program() {
    const KEYS: usize = 1000;
    // Two seconds: a key counts as 1 KB at least.
    let options = ["--refill", "500k", "--admin", "DIR/admin"];
    let mut farm = Farm::new(1, 1, &quick(&options));
    let backup = farm.backups[0].name.clone();
    let mut client = farm.magent.old_client();
    for n in 0..KEYS {
        client.set(&format!("key{n}"), "v".repeat(100));
    }
    farm.backups[0].restart();
    let mut operator = farm.magent.operator();
    operator.ask_line(format!("server {backup} refill\r\n"));
    wait_for("keys to be copied", || {
        (field(&farm, &backup, "refill_copied") != "0").then_some(())
    });
    farm.change();
    pause_of(Duration::from_millis(300));
    farm.change();
    wait_for("the refill", || {
        let state = field(&farm, &backup, "refill");
        (state == "done").then_some(())
    });
    for n in 0..KEYS {
        let key = format!("key{n}");
        assert!(farm.backups[0].value(&key).is_some(), "{key}");
    }
}

#[test]
fn links_are_kept() {
    let farm = Farm::new(2, 1, &["-i", "2"]);
    let mut client = farm.magent.client();
    let names: Vec<String> = (farm.primaries.iter().chain(&farm.backups))
        .map(|m| m.name.clone())
        .collect();
    for n in 0..50 {
        client.set(&format!("key{n}"), "1");
    }
    let connects = |farm: &Farm| -> Vec<String> {
        names
            .iter()
            .map(|name| field(farm, name, "connects"))
            .collect()
    };
    let before = connects(&farm);
    for _ in 0..3 {
        farm.change();
        for n in 0..50 {
            client.ask(
                format!("incr key{n} 1\r\nset key{n} 0 0 1\r\n1\r\n"),
                "2\r\nSTORED\r\n",
            );
        }
    }
    assert_eq!(connects(&farm), before);
}

/// A server hangs with requests in flight: they count as late after a second, and what it executes when it
/// wakes is never read.
#[test]
fn what_a_server_executes_late_is_never_read() {
    let farm = Farm::new(1, 1, &["--timeout", "20000", "--retry", "30"]);
    let primary = farm.primaries[0].name.clone();
    let mut client = farm.magent.client();
    client.set("a", "1").set("n", "7");
    farm.backups[0].wait_value("n", Some(b"7"));
    farm.primaries[0].stop();
    client.send("set a 0 0 1\r\n2\r\nincr n 1\r\nget a\r\n");
    // They are on their way when it stops being read.
    wait_for("them to be sent", || {
        (field(&farm, &primary, "in_flight") == "3").then_some(())
    });
    farm.change();
    client.expect("STORED\r\n8\r\nVALUE a 0 1\r\n2\r\nEND\r\n");
    assert_eq!(field(&farm, &primary, "state"), "down");
    client.ask("set a 0 0 1\r\n3\r\nincr n 1\r\n", "STORED\r\n9\r\n");
    farm.change();
    farm.primaries[0].cont();
    wait_back(&farm.magent, &primary);
    for _ in 0..50 {
        client.ask(
            "get a\r\nget n\r\n",
            "VALUE a 0 1\r\n3\r\nEND\r\nVALUE n 0 1\r\n9\r\nEND\r\n",
        );
    }
}

#[test]
fn an_ejected_server_stays_ejected_and_nothing_comes_back_stale() {
    let farm = Farm::new(
        3,
        0,
        &quick(&["--auto-eject", "--retry-max", "200", "--failure-limit", "1"]),
    );
    let mut client = farm.magent.client();
    for n in 0..60 {
        client.set(&format!("key{n}"), "old");
    }
    let away = farm.primaries[1].name.clone();
    farm.primaries[1].stop();
    wait_for("it to be out of the ring", || {
        (field(&farm, &away, "state") == "down").then_some(())
    });
    for n in 0..60 {
        client.set(&format!("key{n}"), "new");
    }
    farm.change();
    for n in 0..60 {
        assert_eq!(
            client.get(&format!("key{n}")).as_deref(),
            Some(&b"new"[..]),
            "{n}"
        );
    }
    farm.primaries[1].cont();
    wait_back(&farm.magent, &away);
    for n in 0..60 {
        let value = client.get(&format!("key{n}"));
        assert!(
            value.is_none() || value.as_deref() == Some(b"new"),
            "{n}: {value:?}"
        );
    }
}
