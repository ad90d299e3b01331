//! What a server that was away is told, what becomes of a journal that is full, and what is said
//! about all that.

use crate::common::{Memcached, wait_for};
use crate::{Farm, ask_until_down, wait_back};

#[test]
fn a_journal_that_is_full_becomes_a_flush() {
    let farm = Farm::new(1, 1, &["--journal", "1k"]);
    let mut client = farm.magent.client();
    client.set("kept", "x").set("k0", "old");
    farm.backups[0].wait_value("k0", Some(b"old"));
    let primary = &farm.primaries[0];
    primary.stop();
    ask_until_down(&farm.magent, &primary.name, "k0");
    for i in 0..100 {
        client.set(&format!("k{i}"), "new");
    }
    assert_eq!(farm.magent.server(&primary.name)["journal_overflows"], "1");
    assert_eq!(farm.magent.stat("limit_journal_overflows"), 1);
    assert!(
        farm.magent
            .log()
            .contains("missed more than the journal holds")
    );
    primary.cont();
    wait_back(&farm.magent, &primary.name);
    assert_eq!(primary.stat("cmd_flush"), 1);
    assert_eq!(farm.backups[0].stat("cmd_flush"), 0);
    assert_eq!(primary.value("kept"), None, "a flush empties all of it");
    assert_eq!(
        client.get("kept").as_deref(),
        Some(&b"x"[..]),
        "and it is not felt"
    );
    for i in 0..100 {
        assert_eq!(client.get(&format!("k{i}")).as_deref(), Some(&b"new"[..]));
    }
}

#[test]
fn a_server_that_refuses_the_flush_stays_down() {
    let farm = Farm::of(
        vec![Memcached::with(&["-F"])],
        vec![Memcached::start()],
        &["--journal", "1k"],
    );
    let mut client = farm.magent.client();
    client.set("k0", "old");
    let primary = &farm.primaries[0];
    primary.stop();
    ask_until_down(&farm.magent, &primary.name, "k0");
    for i in 0..100 {
        client.set(&format!("k{i}"), "new");
    }
    primary.cont();
    let why = format!(
        "{}: refuses flush_all, which it must be told: it stays down",
        primary.name
    );
    // It is tried again, and refuses again.
    wait_for("the log to say so, twice", || {
        (farm.magent.log().matches(&why).count() >= 2).then_some(())
    });
    assert_eq!(farm.magent.server(&primary.name)["state"], "down");
    let error = &farm.magent.server(&primary.name)["last_error"];
    assert!(error.ends_with(" refused flush_all"), "{error}");
    assert_eq!(client.get("k0").as_deref(), Some(&b"new"[..]));
}

#[test]
fn a_client_s_flush_reaches_a_server_that_was_away() {
    let farm = Farm::new(2, 1, &[]);
    let mut client = farm.magent.client();
    for i in 0..20 {
        client.set(&format!("k{i}"), "x");
    }
    let away = &farm.primaries[0];
    let key = crate::common::keys::key_on(0, 2, "k", 0);
    away.stop();
    ask_until_down(&farm.magent, &away.name, &key);
    let line = client.ask_line("flush_all\r\n");
    assert_eq!(line, format!("SERVER_ERROR {} down", away.name));
    assert_eq!(farm.primaries[1].stat("cmd_flush"), 1, "the others did it");
    assert_eq!(farm.backups[0].stat("cmd_flush"), 1);
    away.cont();
    wait_back(&farm.magent, &away.name);
    assert_eq!(away.stat("cmd_flush"), 1, "before it was trusted");
    for i in 0..20 {
        assert_eq!(client.get(&format!("k{i}")), None);
    }
}

#[test]
fn a_server_that_closes_idle_links_is_no_absence() {
    let farm = Farm::of(
        vec![Memcached::with(&["-o", "idle_timeout=1"])],
        vec![Memcached::start()],
        // Nothing keeps the link in use.
        &["--probe", "0"],
    );
    let mut client = farm.magent.client();
    client.set("k", "x");
    farm.backups[0].wait_value("k", Some(b"x"));
    let primary = &farm.primaries[0];
    wait_for("the link to be closed", || {
        (farm.magent.server(&primary.name)["connections"] == "0").then_some(())
    });
    let s = farm.magent.server(&primary.name);
    assert_eq!((&s["last_error"][..], &s["errors"][..]), ("none", "0"));
    client.set("k", "y");
    assert_eq!(client.get("k").as_deref(), Some(&b"y"[..]));
    assert_eq!(primary.value("k").as_deref(), Some(&b"y"[..]));
    let s = farm.magent.server(&primary.name);
    assert_eq!((&s["last_error"][..], &s["connects"][..]), ("none", "2"));
    assert_eq!(farm.magent.stat("failovers"), 0);
    assert!(!farm.magent.log().contains("down"), "{}", farm.magent.log());
}

#[test]
fn every_change_of_state_is_logged_with_its_cause() {
    let mut farm = Farm::new(1, 1, &[]);
    let mut client = farm.magent.client();
    client.set("k", "x");
    for (server, is_primary) in [
        (farm.backups[0].name.clone(), false),
        (farm.primaries[0].name.clone(), true),
    ] {
        let which = if is_primary {
            &mut farm.primaries[0]
        } else {
            &mut farm.backups[0]
        };
        which.kill();
        client.set("k", "y");
        farm.magent.wait_state(&server, "down");
        let s = farm.magent.server(&server);
        assert_eq!(s["role"], if is_primary { "primary" } else { "backup" });
        assert!(
            s["last_error"].contains(" connection "),
            "{}",
            s["last_error"]
        );
        client.set("k", "z");
        assert_eq!(farm.magent.server(&server)["journal_keys"], "1");
        which.restart();
        wait_back(&farm.magent, &server);
        let line = |what: &str| {
            let start = format!("{server}: {what}");
            wait_for(&start, || {
                let log = farm.magent.log();
                log.lines().find(|l| l.contains(&start)).map(str::to_string)
            })
        };
        line("down: connection ");
        let up = line("up again after ");
        assert!(up.contains(" s (connection "), "{up}");
        let away = up.split("after ").nth(1).and_then(|t| t.split(' ').next());
        assert!(
            away.is_some_and(|t| t.parse::<f64>().is_ok_and(|t| t > 0.0)),
            "{up}"
        );
        client.set("k", "z");
    }
    let primary = &farm.primaries[0];
    primary.stop();
    ask_until_down(&farm.magent, &primary.name, "k");
    assert!(
        farm.magent
            .log()
            .contains(&format!("{}: down: timed out", primary.name))
    );
    let s = farm.magent.server(&primary.name);
    assert!(s["timeouts"].parse::<u64>().is_ok_and(|n| n >= 3));
    primary.cont();
}
