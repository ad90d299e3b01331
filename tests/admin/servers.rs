//! Servers that operators take out of use, use again, and probe.

use super::common::farm::wait_back;
use super::common::magent::farm;
use super::common::{Fake, Magent, Memcached, wait_for};
use super::{DOOR, with_door};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

#[test]
fn a_drained_server_is_asked_nothing_and_misses_nothing() {
    let (magent, servers) = farm(true, &DOOR);
    let (mut client, mut operator) = (magent.client(), magent.operator());
    let keys: Vec<String> = (0..30).map(|i| format!("key{i}")).collect();
    keys.iter().for_each(|k| {
        client.set(k, "old");
    });
    let name = &servers[0].name;
    operator.ask(format!("server {name} drain\n"), "OK\r\n");
    let state = magent.server(name);
    assert_eq!(state["state"], "down");
    assert!(state["last_error"].ends_with(" drained"), "{state:?}");
    for key in &keys {
        client.ask(format!("set {key} 0 0 3\r\nnew\r\n"), "STORED\r\n");
        assert_eq!(client.get(key).as_deref(), Some(&b"new"[..]), "{key}");
    }
    let held: Vec<_> = keys.iter().filter_map(|k| servers[0].value(k)).collect();
    assert!(
        !held.is_empty() && held.iter().all(|v| v == b"old"),
        "it was asked"
    );
    let requests = magent.server(name)["requests"].clone();
    operator.ask(
        format!("server {name} drain\n"),
        format!("ERROR {name} is drained already\r\n"),
    );
    operator.ask(
        format!("server {name} probe\n"),
        format!("ERROR {name} is drained: `use` brings it back\r\n"),
    );
    operator.ask(format!("server {name} use\n"), "OK\r\n");
    magent.wait_state(name, "warming");
    assert_ne!(
        magent.server(name)["requests"],
        requests,
        "it was told what it missed"
    );
    for key in &keys {
        assert_eq!(client.get(key).as_deref(), Some(&b"new"[..]), "{key}");
        assert_ne!(servers[0].value(key).as_deref(), Some(&b"old"[..]), "{key}");
    }
    operator.ask(
        format!("server {name} use\n"),
        format!("ERROR {name} is not drained\r\n"),
    );
    let log = magent.log();
    for line in ["drain\n", "use\n", ": down: drained\n", "(drained)\n"] {
        assert_eq!(log.matches(line).count(), 1, "{line}: {log}");
    }
}

#[test]
fn a_drained_backup_and_a_server_without_one() {
    let servers: Vec<Memcached> = (0..2).map(|_| Memcached::start()).collect();
    let names: Vec<&str> = servers.iter().map(|s| s.name.as_str()).collect();
    let options = [&DOOR[..], &["--refill", "0"]].concat();
    let magent = Magent::farm(&names[..1], &names[1..], &options);
    let (mut client, mut operator) = (magent.client(), magent.operator());
    client.set("a", "old");
    wait_for("the mirror", || servers[1].value("a"));
    operator.ask(format!("server {} drain\n", names[1]), "OK\r\n");
    client.set("a", "new");
    assert_eq!(magent.server(names[1])["journal_keys"], "1");
    operator.ask(format!("server {} use\n", names[1]), "OK\r\n");
    magent.wait_state(names[1], "up");
    assert_eq!(
        servers[1].value("a"),
        None,
        "it is told to drop what is old"
    );

    let alone = Magent::farm(&names[..1], &[], &DOOR);
    let mut client = alone.client();
    client.set("a", "x");
    alone
        .operator()
        .ask(format!("server {} drain\n", names[0]), "OK\r\n");
    client.ask("get a\r\n", format!("SERVER_ERROR {} down\r\n", names[0]));
    alone
        .operator()
        .ask(format!("server {} use\n", names[0]), "OK\r\n");
    alone.wait_state(names[0], "up");
    assert_eq!(client.get("a").as_deref(), Some(&b"x"[..]));
}

/// However often: of primaries, whose keys the backup has, and of the backup, whose keys the primaries have.
#[test]
fn no_client_notices_a_drain() {
    drain_under_load(0..3);
    drain_under_load(3..4);
}

fn drain_under_load(drained: Range<usize>) {
    const CLIENTS: usize = 6;
    let (magent, servers) = farm(true, &DOOR);
    let drained = &servers[drained];
    let over = AtomicBool::new(false);
    let talk = |n: usize| {
        let mut client = magent.client();
        let mut rounds = 0;
        while !over.load(Ordering::Relaxed) {
            let (key, value) = (format!("k{n}-{}", rounds % 50), format!("v{rounds}"));
            client.set(&key, &value);
            assert_eq!(client.get(&key), Some(value.clone().into_bytes()), "{key}");
            // What was written some rounds before, perhaps to another server.
            if let Some(before) = usize::checked_sub(rounds, 49) {
                let key = format!("k{n}-{}", before % 50);
                assert_eq!(
                    client.get(&key),
                    Some(format!("v{before}").into_bytes()),
                    "{key}"
                );
            }
            rounds += 1;
        }
        rounds
    };
    let mut operator = magent.operator();
    std::thread::scope(|scope| {
        let talk = &talk;
        let clients: Vec<_> = (0..CLIENTS).map(|n| scope.spawn(move || talk(n))).collect();
        let drains = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for server in drained.iter().cycle().take(3 * drained.len()) {
                operator.ask(format!("server {} drain\n", server.name), "OK\r\n");
                magent.wait_state(&server.name, "down");
                operator.ask(format!("server {} use\n", server.name), "OK\r\n");
                wait_back(&magent, &server.name);
            }
        }));
        over.store(true, Ordering::Relaxed);
        for client in clients {
            assert!(client.join().expect("right answers") > 0);
        }
        drains.expect("drains");
    });
    assert_eq!(
        (magent.stat("server_errors"), magent.stat("get_misses")),
        (0, 0)
    );
}

/// Nobody would look for a minute.
#[test]
fn a_probe_asks_at_once() {
    let mut server = Memcached::start();
    let options = [
        &DOOR[..],
        &["--probe", "0", "--retry", "60000", "--timeout", "300"],
    ]
    .concat();
    let magent = Magent::farm(&[&server.name], &[], &options);
    let (mut client, mut operator) = (magent.client(), magent.operator());
    client.set("a", "x");
    let probe = format!("server {} probe\n", server.name);
    operator.ask(&probe, "OK\r\n");
    wait_for("the probe", || {
        (magent.server(&server.name)["probes"] == "1").then_some(())
    });
    assert_eq!(magent.server(&server.name)["state"], "up");
    server.stop();
    operator.ask(&probe, "OK\r\n");
    magent.wait_state(&server.name, "down");
    server.cont();
    // The first probe of a server that is down may find it before that.
    operator.ask(&probe, "OK\r\n");
    magent.wait_state(&server.name, "up");
    server.kill();
    operator.ask(&probe, "OK\r\n");
    magent.wait_state(&server.name, "down");
    // Of a server that nobody asked yet too.
    let fake = Fake::start(|link| link.silence());
    let magent = Magent::farm(&[&fake.name], &[], &options);
    magent
        .operator()
        .ask(format!("server {} probe\n", fake.name), "OK\r\n");
    wait_for("a connect", || (fake.links() > 0).then_some(()));
}

#[test]
fn a_drain_outlives_a_reload() {
    let server = Memcached::start();
    let text = |more: &str| {
        format!(
            "a:\n  listen: 127.0.0.1:PORT\n{more}  servers:\n  - {}:1\n",
            server.name
        )
    };
    let magent = Magent::with_file(&text(""));
    let mut operator = magent.operator();
    operator.ask(format!("server {} drain\n", server.name), "OK\r\n");
    assert!(magent.reload(&text("  timeout: 500\n")));
    assert_eq!(magent.server(&server.name)["state"], "down");
    operator.ask(format!("server {} use\n", server.name), "OK\r\n");
    magent.wait_state(&server.name, "up");
}

#[test]
fn a_server_that_is_not_there_can_be_drained_too() {
    let magent = with_door(&["--retry", "1", "--retry-max", "1"]);
    magent.wait_state("127.0.0.1:1", "down");
    let mut operator = magent.operator();
    operator.ask("server 127.0.0.1:1 drain\n", "OK\r\n");
    let connects = || magent.server("127.0.0.1:1")["connects"].clone();
    let before = connects();
    // It would be probed each millisecond, and so in each of these turns.
    (0..50).for_each(|_| drop(connects()));
    assert_eq!(connects(), before);
    operator.ask("server 127.0.0.1:1 use\n", "OK\r\n");
    wait_for("a probe", || (connects() != before).then_some(()));
}

#[test]
fn a_server_is_filled_when_that_is_asked_for() {
    let (magent, servers) = farm(true, &DOOR);
    let (mut client, mut operator) = (magent.client(), magent.operator());
    let keys: Vec<String> = (0..30).map(|i| format!("key{i}")).collect();
    for key in &keys {
        client.set(key, "x");
    }
    let backup = servers.last().expect("a backup");
    keys.iter().for_each(|k| backup.wait_value(k, Some(b"x")));
    // Behind magent's back.
    backup.client().ask("flush_all\r\n", "OK\r\n");
    operator.ask(format!("server {} refill\n", backup.name), "OK\r\n");
    wait_for("the refill", || {
        (magent.server(&backup.name)["refill"] == "done").then_some(())
    });
    keys.iter()
        .for_each(|k| assert_eq!(backup.value(k).as_deref(), Some(&b"x"[..]), "{k}"));
    let json = super::http::get(&mut magent.operator(), "/stats.json").body;
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let all = json["servers"].as_array().expect("servers");
    let it = all
        .iter()
        .find(|s| s["name"] == backup.name.as_str())
        .expect("the backup");
    assert_eq!(
        (&it["refill"]["state"], &it["refill"]["refill_copied"]),
        (&"done".into(), &30.into())
    );
    let metrics = super::http::get(&mut magent.operator(), "/metrics").body;
    for sample in [
        format!(
            "magent_server_refill_keys{{server=\"{}\",keys=\"copied\"}} 30\n",
            backup.name
        ),
        format!("magent_server_refilling{{server=\"{}\"}} 0\n", backup.name),
    ] {
        assert!(metrics.contains(&sample), "{sample}: {metrics}");
    }
    let log = magent.log();
    assert!(
        log.contains(&format!(": server {} refill\n", backup.name)),
        "{log}"
    );
}

#[test]
fn a_server_is_compared_when_that_is_asked_for() {
    let (magent, servers) = farm(true, &DOOR);
    let (mut client, mut operator) = (magent.client(), magent.operator());
    let keys: Vec<String> = (0..30).map(|i| format!("key{i}")).collect();
    for key in &keys {
        client.set(key, "x");
    }
    let backup = servers.last().expect("a backup");
    keys.iter().for_each(|k| backup.wait_value(k, Some(b"x")));
    // Behind magent's back.
    backup.client().ask("delete key7\r\n", "DELETED\r\n");
    operator.ask(format!("server {} verify\n", backup.name), "OK\r\n");
    operator.ask(
        format!("server {} verify\n", backup.name),
        format!("ERROR {} is being compared already\r\n", backup.name),
    );
    let shown = || {
        magent
            .operator()
            .stats(&format!("stats verify {}\n", backup.name))
    };
    wait_for("the comparison", || {
        (shown()["state"] == "done").then_some(())
    });
    let shown = shown();
    let numbers = ["same", "missing", "extra", "different"].map(|name| &shown[name][..]);
    assert_eq!(numbers, ["29", "1", "0", "0"], "{shown:?}");
    assert_eq!(shown["missing_1"], "key7");
    let of_server = magent.server(&backup.name);
    assert_eq!(
        (&of_server["verify"][..], &of_server["verify_missing"][..]),
        ("done", "1")
    );
    let json = super::http::get(&mut magent.operator(), "/stats.json").body;
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let all = json["servers"].as_array().expect("servers");
    let it = all.iter().find(|s| s["name"] == backup.name.as_str());
    assert_eq!(it.expect("the backup")["verify"]["same"], 29);
    let metrics = super::http::get(&mut magent.operator(), "/metrics").body;
    let sample = format!(
        "magent_server_verify_keys{{server=\"{}\",keys=\"missing\"}} 1\n",
        backup.name
    );
    assert!(metrics.contains(&sample), "{sample}: {metrics}");
    let log = magent.log();
    for line in [
        format!(": server {} verify\n", backup.name),
        format!("backup {}: is compared with ", backup.name),
        " s: 59 keys listed, 29 same, 1 missing, 0 extra, ".to_string(),
    ] {
        assert_eq!(log.matches(&line).count(), 1, "{line}: {log}");
    }
    operator.ask("server nobody verify\n", "ERROR no server nobody\r\n");
}

#[test]
fn who_cannot_be_filled_is_told_why() {
    let off = Magent::farm(
        &["127.0.0.1:1"],
        &["127.0.0.1:2"],
        &[&DOOR[..], &["--refill", "0"]].concat(),
    );
    off.operator().ask(
        "server 127.0.0.1:1 refill\n",
        "ERROR 127.0.0.1:1 is not refilled: that is switched off (--refill 0)\r\n",
    );
    with_door(&[]).operator().ask(
        "server 127.0.0.1:1 refill\n",
        "ERROR 127.0.0.1:1 has no partner\r\n",
    );
    // Both wait until they are up.
    let down = Magent::farm(&["127.0.0.1:1"], &["127.0.0.1:2"], &DOOR);
    let mut operator = down.operator();
    operator.ask("server 127.0.0.1:1 refill\n", "OK\r\n");
    operator.ask(
        "server 127.0.0.1:1 refill\n",
        "ERROR 127.0.0.1:1 is being refilled already\r\n",
    );
}
