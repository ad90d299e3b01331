//! Magents over the same memcacheds act as one: nothing is read through any of them that is older than what was
//! acknowledged by another.

mod common;

use common::time::pause_of;
use common::{Magent, Memcached, Scene, Wire, wait_for};
use std::time::{Duration, Instant};

const OPTIONS: [&str; 2] = ["--retry", "300"];

#[test]
fn a_primary_that_comes_back_empty() {
    let mut scene = Scene::new(&OPTIONS);
    scene.primary.kill();
    scene.wait_replaced();
    scene.primary.restart();
    scene.end();
}

#[test]
fn a_primary_that_stands_still_for_three_seconds() {
    let scene = Scene::new(&OPTIONS);
    scene.primary.stop();
    pause_of(Duration::from_secs(3));
    scene.primary.cont();
    scene.end();
}

/// Another program goes on with the line of the one before: nobody takes that for dead, so nothing is flushed.
#[test]
fn another_program_in_the_middle_of_an_outage() {
    let scene = Scene::new(&OPTIONS);
    scene.primary.stop();
    scene.wait_replaced();
    for magent in &scene.magents {
        assert!(magent.upgrade(), "{}", magent.log());
    }
    pause_of(Duration::from_secs(1));
    scene.primary.cont();
    scene.wait_used();
    assert_eq!(scene.flushes(), [0, 0]);
    scene.end();
}

/// What a magent owes that is killed while a primary hangs is known to its successor, and the primary is flushed
/// before it is used.
#[test]
fn a_magent_that_is_killed_and_started_again_while_a_primary_hangs() {
    let (primary, backup) = (Memcached::start(), Memcached::start());
    let farm = || {
        let options = [&OPTIONS[..], &["--timeout", "300", "--failure-limit", "1"]].concat();
        Magent::farm(&[&primary.name], &[&backup.name], &options)
    };
    let magent = farm();
    let mut client = magent.client();
    client.set("k", "old");
    backup.wait_value("k", Some(b"old"));
    primary.stop();
    magent.wait_state(&primary.name, "down");
    wait_for("the backup to stand in", || {
        let answer = client.ask_line("set k 0 0 3\r\nnew\r\n");
        (answer == "STORED").then_some(())
    });
    drop(client);
    drop(magent);
    let magent = farm();
    primary.cont();
    let begun = Instant::now();
    let mut answers = 0;
    let mut client = magent.client();
    while begun.elapsed() < Duration::from_secs(14) {
        let got = client.ask_line("mg k v\r\n");
        if got.starts_with("VA ") {
            let value = client.read_line();
            assert_eq!(value, b"new\r\n", "after {:?}", begun.elapsed());
            answers += 1;
        }
    }
    assert!(answers > 0, "{}", magent.log());
    assert!(
        magent.log().contains("is gone; it will be flushed"),
        "{}",
        magent.log()
    );
}

#[test]
fn a_magent_that_is_cut_off_from_a_primary_for_three_seconds() {
    let servers = [Memcached::start(), Memcached::start()];
    let wire = Wire::to(&servers[0]);
    let names = [wire.name.clone(), servers[1].name.clone()];
    let scene = Scene::of(servers, names, &OPTIONS);
    wire.cut(&scene.magents[0]);
    scene.magents[0].wait_state(&wire.name, "down");
    pause_of(Duration::from_secs(3));
    wire.mend();
    scene.end();
}

/// Two magents of which one has lost the backup, and has replaced `old` of `k` on the primary; the other one has
/// heard of it. `mutual`: each of the two servers is the other one's backup; `k` belongs to the first.
fn with_a_backup_behind(mutual: bool) -> ([Magent; 2], Wire, Memcached, Memcached) {
    let (primary, backup) = (Memcached::start(), Memcached::start());
    let wire = Wire::to(&backup);
    let farm = || {
        let options = [&OPTIONS[..], &["--timeout", "500", "--failure-limit", "1"]].concat();
        let servers = [&primary.name[..], &wire.name];
        match mutual {
            true => Magent::farm(&servers, &[servers[1], servers[0]], &options),
            false => Magent::farm(&servers[..1], &servers[1..], &options),
        }
    };
    let magents = [farm(), farm()];
    let [one, other] = &magents;
    wait_for("both to know each other", || {
        let shared = |m: &Magent| {
            m.client().get("k");
            m.server(&wire.name).contains_key("other_magents")
        };
        magents.iter().all(shared).then_some(())
    });
    one.client().set("k", "old");
    backup.wait_value("k", Some(b"old"));
    wire.cut(one);
    one.wait_state(&wire.name, "down");
    one.client().set("k", "new");
    wait_for("the other one to hear of it", || {
        other.client().get("k");
        let keepers = other.server(&wire.name).get("kept_away_by").cloned();
        keepers.filter(|k| k.ends_with(&format!(" {}", one.pid())))
    });
    (magents, wire, primary, backup)
}

/// What is read of `k` through a magent: what was replaced never is.
#[track_caller]
fn read_not_old(magent: &Magent) -> Option<String> {
    let mut client = magent.client();
    let line = client.ask_line("mg k v\r\n");
    let value = line.starts_with("VA ").then(|| client.read_line());
    let value = value.map(|v| String::from_utf8_lossy(&v).trim_end().to_string());
    assert_ne!(value.as_deref(), Some("old"), "{}", magent.log());
    value
}

#[test]
fn a_backup_that_has_missed_what_one_magent_wrote_is_read_by_nobody() {
    let ([one, other], wire, primary, backup) = with_a_backup_behind(false);
    primary.stop();
    other.wait_state(&primary.name, "down");
    for _ in 0..20 {
        assert_eq!(read_not_old(&other), None);
        pause_of(Duration::from_millis(20));
    }
    primary.cont();
    wait_for("the primary to be read", || read_not_old(&other));
    // It is told when it is reached again, and read then.
    wire.mend();
    wait_for("the line to be out", || {
        // The first one may not have found the primary again.
        read_not_old(&one);
        read_not_old(&other);
        let is_out = |m: &Magent| !m.server(&wire.name).contains_key("kept_away_by");
        (is_out(&one) && is_out(&other)).then_some(())
    });
    assert_eq!(primary.client().ask_line("mg AG1hZ2VudC9h b v\r\n"), "EN");
    backup.wait_value("k", Some(b"new"));
    // A copy is deleted if the primary does not answer the look behind it.
    wait_for("the look behind the copy", || {
        let is_idle = |s: &str| one.server(s)["in_flight"] == "0";
        (is_idle(&wire.name) && is_idle(&primary.name)).then_some(())
    });
    primary.stop();
    other.wait_state(&primary.name, "down");
    let value = wait_for("the backup to stand in", || read_not_old(&other));
    assert_eq!(value, "new");
    primary.cont();
}

/// The line that keeps it away as a primary says that it has missed mirrors, too.
#[test]
fn two_servers_that_are_each_others_backups() {
    let ([one, other], wire, primary, _backup) = with_a_backup_behind(true);
    primary.stop();
    other.wait_state(&primary.name, "down");
    for _ in 0..20 {
        assert_eq!(read_not_old(&other), None);
        pause_of(Duration::from_millis(20));
    }
    primary.cont();
    wire.mend();
    wait_for("both to be used again", || {
        read_not_old(&one);
        let is_out = |m: &Magent, s: &str| !m.server(s).contains_key("kept_away_by");
        let names = [&primary.name[..], &wire.name];
        let all = names.iter().all(|s| is_out(&one, s) && is_out(&other, s));
        (read_not_old(&other).as_deref() == Some("new") && all).then_some(())
    });
}

/// What one that has died owed a backup nobody knows: it is flushed, and filled.
#[test]
fn a_backup_that_has_missed_what_a_dead_magent_wrote_is_flushed_and_filled() {
    let ([one, other], wire, _primary, backup) = with_a_backup_behind(false);
    drop(one);
    wait_for("the backup to be flushed", || {
        assert_eq!(read_not_old(&other).as_deref(), Some("new"));
        (backup.stat("cmd_flush") > 0).then_some(())
    });
    wait_for("the line to be out", || {
        assert_eq!(read_not_old(&other).as_deref(), Some("new"));
        (!other.server(&wire.name).contains_key("kept_away_by")).then_some(())
    });
    backup.wait_value("k", Some(b"new"));
}
