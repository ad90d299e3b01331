//! A server that is compared with its partners, in memory.

use super::*;
use std::collections::BTreeMap;

/// What `stats verify` shows.
fn shown(world: &mut World, peer: &Peer, port: u16) -> BTreeMap<String, String> {
    let answer = world.ask(peer, format!("stats verify {}\r\n", name(port)));
    let lines = answer
        .strip_suffix("END\r\n")
        .unwrap_or_else(|| panic!("{answer}"));
    let pair = |l: &str| {
        let (name, value) = l.strip_prefix("STAT ")?.split_once(' ')?;
        Some((name.to_string(), value.to_string()))
    };
    lines.lines().filter_map(pair).collect()
}

/// Compares a server until that is over; 120 s at most.
#[track_caller]
fn verify(world: &mut World, peer: &Peer, port: u16) -> BTreeMap<String, String> {
    shown(world, peer, port);
    finish(world, peer, port)
}

#[track_caller]
fn finish(world: &mut World, peer: &Peer, port: u16) -> BTreeMap<String, String> {
    for _ in 0..12_000 {
        let shown = shown(world, peer, port);
        if !matches!(&shown["state"][..], "running" | "waiting") {
            return shown;
        }
        world.advance(10 * MS);
    }
    panic!("it has no end: {:?}", shown(world, peer, port));
}

/// Same, missing, extra, different, changing, skipped.
#[track_caller]
fn check_counts(shown: &BTreeMap<String, String>, want: [u64; 6]) {
    let names = [
        "same",
        "missing",
        "extra",
        "different",
        "changing",
        "skipped",
    ];
    let counts = names.map(|name| shown[name].parse::<u64>().expect("a number"));
    assert_eq!(counts, want, "{shown:#?}");
}

/// Changes a server past magent.
#[track_caller]
fn past(world: &mut World, port: u16, request: &str) {
    let answer = world.ask_past(port, request.as_bytes());
    let is_done = [&b"STORED"[..], b"DELETED", b"HD", b"TOUCHED"];
    assert!(is_done.iter().any(|a| answer.starts_with(a)), "{request}");
}

#[test]
fn what_differs_is_counted_and_named() {
    let (mut world, peer) = farm(2, 1, &[]);
    for i in 0..100 {
        set(&mut world, &peer, &format!("k{i}"), "value");
    }
    past(&mut world, BACKUP, "delete k1\r\n");
    past(&mut world, BACKUP, "delete k2\r\n");
    past(&mut world, BACKUP, "set k3 5 1000 5\r\nother\r\n");
    past(&mut world, BACKUP, "set k4 6 1000 5\r\nvalue\r\n");
    past(&mut world, BACKUP, "touch k5 500\r\n");
    past(&mut world, BACKUP, "touch k6 1002\r\n");
    // Base64 of "a b\xff".
    past(&mut world, BACKUP, "ms YSBi/w== 1 b\r\nx\r\n");
    // Magent's own keys are no client's.
    past(&mut world, BACKUP, "ms AG1hZ2VudC94 1 b\r\nx\r\n");
    let of_backup = verify(&mut world, &peer, BACKUP);
    check_counts(&of_backup, [95, 2, 1, 3, 0, 0]);
    assert_eq!(of_backup["state"], "done");
    assert_eq!(of_backup["to_go"], "0");
    let missing = [&of_backup["missing_1"][..], &of_backup["missing_2"]];
    assert!(
        missing.contains(&"k1") && missing.contains(&"k2"),
        "{missing:?}"
    );
    assert_eq!(of_backup["extra_1"], "a%20b%FF");
    assert!(of_backup.contains_key("different_3") && !of_backup.contains_key("different_4"));
    assert_eq!(field(&mut world, &peer, BACKUP, "verify_missing"), "2");

    // The same from the other side: what the backup lacks, its primaries have.
    let mut sums = [0; 6];
    for port in [PRIMARY, PRIMARY + 1] {
        let of_primary = verify(&mut world, &peer, port);
        let names = [
            "same",
            "missing",
            "extra",
            "different",
            "changing",
            "skipped",
        ];
        for (sum, name) in sums.iter_mut().zip(names) {
            *sum += of_primary[name].parse::<u64>().expect("a number");
        }
    }
    assert_eq!(sums, [95, 1, 2, 3, 0, 0]);
    // Nothing was changed by it.
    assert_eq!(holds(&world, BACKUP, "k1"), None);
    assert_eq!(holds(&world, BACKUP, "k3"), Some((5, b"other".to_vec())));
}

#[test]
fn a_result_is_shown_for_a_minute_and_then_another_comparison_begins() {
    let (mut world, peer) = farm(1, 1, &[]);
    set(&mut world, &peer, "k", "v");
    let first = verify(&mut world, &peer, BACKUP);
    check_counts(&first, [1, 0, 0, 0, 0, 0]);
    set(&mut world, &peer, "l", "v");
    world.advance(50 * SECOND);
    assert_eq!(shown(&mut world, &peer, BACKUP), first);
    world.advance(11 * SECOND);
    assert_eq!(shown(&mut world, &peer, BACKUP)["state"], "waiting");
    let second = finish(&mut world, &peer, BACKUP);
    check_counts(&second, [2, 0, 0, 0, 0, 0]);
}

#[test]
fn what_is_stale_or_about_to_expire_is_no_difference() {
    let (mut world, peer) = farm(1, 1, &[]);
    set(&mut world, &peer, "stale", "v");
    assert_eq!(world.ask(&peer, "md stale I T300\r\n"), "HD\r\n");
    assert_eq!(world.ask(&peer, "set short 0 4 1\r\nx\r\n"), "STORED\r\n");
    past(&mut world, BACKUP, "delete short\r\n");
    let shown = verify(&mut world, &peer, BACKUP);
    check_counts(&shown, [0, 0, 0, 0, 0, 1]);
    assert_eq!(shown["skipped_1"], "stale");
    // The right to renew it is still to be had.
    let line = world.ask(&peer, "mg stale v\r\n");
    assert!(line.starts_with("VA 1 ") && line.contains(" W"), "{line}");
}

#[test]
fn a_comparison_waits_for_a_refill_and_begins_anew_when_a_server_is_back() {
    let (mut world, peer) = farm(1, 1, &["--refill", "50k"]);
    for i in 0..200 {
        set(&mut world, &peer, &format!("k{i}"), &"v".repeat(500));
    }
    shown(&mut world, &peer, BACKUP);
    world.advance(4 * SECOND);
    let under_way = shown(&mut world, &peer, BACKUP);
    assert_eq!(under_way["state"], "running");
    assert_ne!(under_way["same"], "0");
    restart(&mut world, BACKUP, SECOND);
    world.advance(2 * SECOND);
    assert_eq!(field(&mut world, &peer, BACKUP, "refill"), "running");
    assert_eq!(shown(&mut world, &peer, BACKUP)["state"], "waiting");
    until(&mut world, &peer, BACKUP, "done");
    let shown = finish(&mut world, &peer, BACKUP);
    check_counts(&shown, [200, 0, 0, 0, 0, 0]);
}

#[test]
fn a_server_that_lists_by_its_lrus_is_listed_once_and_one_that_does_not_is_named() {
    let (mut world, peer) = farm(1, 1, &[]);
    for i in 0..10 {
        set(&mut world, &peer, &format!("k{i}"), "v");
    }
    past(&mut world, PRIMARY, "delete k1\r\n");
    past(&mut world, BACKUP, "delete k2\r\n");
    world.servers.get_mut(&PRIMARY).expect("it").store.metadump = Metadump::AllOnly;
    let by_lru = verify(&mut world, &peer, BACKUP);
    check_counts(&by_lru, [8, 1, 1, 0, 0, 0]);
    assert_eq!(by_lru["state"], "partial");
    world.servers.get_mut(&PRIMARY).expect("it").store.metadump = Metadump::Never;
    world.advance(61 * SECOND);
    // What only the primary has nobody tells.
    let untold = verify(&mut world, &peer, BACKUP);
    check_counts(&untold, [8, 0, 1, 0, 0, 0]);
    assert_eq!(untold["state"], "partial");
}

#[test]
fn a_listing_that_is_cut_counts_no_key_twice() {
    let (mut world, peer) = farm(1, 1, &[]);
    for i in 0..200 {
        set(&mut world, &peer, &format!("k{i}"), "v");
    }
    world.link_room = 500;
    shown(&mut world, &peer, BACKUP);
    let conn = loop {
        let links = world.links_of(PRIMARY);
        let listing = links
            .into_iter()
            .find(|c| world.links[c].output.len() > 5000);
        match listing {
            Some(conn) => break conn,
            None if world.turn() => {}
            None => world.stand_still(MS),
        }
    };
    world.turn();
    world.drop_link(conn, false);
    let shown = finish(&mut world, &peer, BACKUP);
    check_counts(&shown, [200, 0, 0, 0, 0, 0]);
    assert_eq!(shown["state"], "done");
}

#[test]
fn little_memory_is_enough_for_any_number_of_differences() {
    let small = ["-I", "1k", "-m", "64k"];
    let (mut world, peer) = farm(1, 1, &small);
    for i in 0..2000 {
        let key = format!("a_rather_long_name_of_a_key_{i}");
        set(&mut world, &peer, &key, "v");
    }
    let now = world.now;
    let server = world.servers.get_mut(&BACKUP).expect("it");
    let age = server.store.age;
    server.store.restart(now);
    server.store.age = age;
    let shown = verify(&mut world, &peer, BACKUP);
    check_counts(&shown, [0, 2000, 0, 0, 0, 0]);
    assert!(shown.contains_key("missing_20") && !shown.contains_key("missing_21"));
    assert!(world.stat("bytes_in_flight") < 1000);
}

#[test]
fn who_cannot_be_compared_is_told_why() {
    let (mut world, peer) = farm(1, 1, &["--refill", "0"]);
    for (port, why) in [
        (
            BACKUP,
            "127.0.0.1:7101 is not compared: refills are switched off (--refill 0)",
        ),
        (9, "no server 127.0.0.1:9"),
    ] {
        let said = world.ask(&peer, format!("stats verify {}\r\n", name(port)));
        assert_eq!(said, format!("CLIENT_ERROR {why}\r\n"));
    }
    let said = world.ask(&peer, "stats verify\r\n");
    assert_eq!(said, "CLIENT_ERROR usage: stats verify NAME\r\n");
    let (mut world, peer) = farm(1, 1, &[]);
    world.become_state(BACKUP, State::Gone);
    world.advance(SECOND);
    let said = world.ask(&peer, format!("stats verify {}\r\n", name(BACKUP)));
    assert_eq!(said, "CLIENT_ERROR 127.0.0.1:7101 is down\r\n");
    let (mut world, peer) = farm(1, 0, &[]);
    let said = world.ask(&peer, format!("stats verify {}\r\n", name(PRIMARY)));
    assert_eq!(said, "CLIENT_ERROR 127.0.0.1:7001 has no partner\r\n");

    let pool = |name: &str, port: u16, backup: u16| {
        format!(
            "{name}:\n  listen: 127.0.0.1:{port}\n  servers:\n  - 127.0.0.1:7001:1\n  backups:\n  \
             - 127.0.0.1:{backup}:1\n"
        )
    };
    let mut world = World::of(file(&(pool("a", 1, 7101) + &pool("b", 2, 7102))));
    let peer = world.client();
    world.advance(SECOND);
    for (port, why) in [
        (7001, "127.0.0.1:7001 has other partners in another pool"),
        // Of the other pool.
        (7102, "no server 127.0.0.1:7102"),
    ] {
        let said = world.ask(&peer, format!("stats verify {}\r\n", name(port)));
        assert_eq!(said, format!("CLIENT_ERROR {why}\r\n"));
    }
}

#[test]
fn a_reload_that_takes_a_partner_away_ends_it() {
    let (mut world, peer) = farm(1, 1, &["--refill", "1k"]);
    for i in 0..50 {
        set(&mut world, &peer, &format!("k{i}"), &"v".repeat(500));
    }
    shown(&mut world, &peer, PRIMARY);
    world.advance(5 * SECOND);
    world.reload(options(&[
        "-s",
        &name(PRIMARY),
        "--refill",
        "1k",
        "--warm",
        "0",
    ]));
    world.advance(SECOND);
    let said = shown(&mut world, &peer, PRIMARY);
    assert_eq!(said["state"], "its partners have changed");
    assert_eq!(
        field(&mut world, &peer, PRIMARY, "verify"),
        "its partners have changed"
    );
}
