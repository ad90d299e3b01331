//! Servers that lack what they should hold are filled from their partners (behaviour.md §9). Here in
//! memory, where each step can be held; `refill/real.rs` has real servers.

mod common;

#[path = "refill/real.rs"]
mod real;
#[path = "refill/verify.rs"]
mod verify;
#[path = "refill/wins.rs"]
mod wins;

use common::world::{Metadump, State, file, options};
use common::{Peer, World, keys};
use std::time::Duration;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

const PRIMARY: u16 = 7001;
const BACKUP: u16 = 7101;

fn name(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

/// One magent before so many primaries and backups.
fn farm(primaries: u16, backups: u16, more: &[&str]) -> (World, Peer) {
    let mut all: Vec<String> = Vec::new();
    for (option, first, n) in [("-s", PRIMARY, primaries), ("-b", BACKUP, backups)] {
        for port in first..first + n {
            all.extend([option.to_string(), name(port)]);
        }
    }
    let mut all: Vec<&str> = all.iter().map(String::as_str).collect();
    all.extend(["--probe", "100", "--retry", "50"]);
    all.extend(more);
    let mut world = World::of(options(&all));
    let peer = world.client();
    // So that each is known before it restarts.
    world.advance(3 * SECOND);
    (world, peer)
}

fn set(world: &mut World, peer: &Peer, key: &str, value: &str) {
    let line = format!("set {key} 5 1000 {}\r\n{value}\r\n", value.len());
    assert_eq!(world.ask(peer, &line), "STORED\r\n");
}

/// A server dies and comes back empty, `length` later.
fn restart(world: &mut World, port: u16, length: Duration) {
    world.become_state(port, State::Gone);
    world.advance(length);
    let now = world.now;
    if let Some(server) = world.servers.get_mut(&port) {
        server.store.restart(now);
    }
    world.become_state(port, State::Well);
}

fn field(world: &mut World, peer: &Peer, port: u16, what: &str) -> String {
    world.stat_for(peer, "servers", &format!("{}:{what}", name(port)))
}

/// Until the refill of a server is over; 60 s at most.
#[track_caller]
fn until(world: &mut World, peer: &Peer, port: u16, state: &str) {
    for _ in 0..6000 {
        if field(world, peer, port, "refill") == state {
            return;
        }
        world.advance(10 * MS);
    }
    let all = world.stats("stats servers\r\n");
    panic!("the refill of {port} is not {state}: {all:#?}");
}

fn holds(world: &World, port: u16, key: &str) -> Option<(u32, Vec<u8>)> {
    let item = world.servers[&port].store.get(key, world.now);
    item.map(|i| (i.flags, i.data.clone()))
}

#[test]
fn a_backup_that_restarted_holds_what_its_primaries_hold() {
    let (mut world, peer) = farm(2, 2, &[]);
    for i in 0..300 {
        set(&mut world, &peer, &format!("k{i}"), &format!("value{i}"));
    }
    restart(&mut world, BACKUP, SECOND);
    until(&mut world, &peer, BACKUP, "done");
    let mut own = 0;
    for i in 0..300 {
        let key = format!("k{i}");
        let want = Some((5, format!("value{i}").into_bytes()));
        let backup = BACKUP + keys::home(&key, 2) as u16;
        own += u64::from(backup == BACKUP);
        assert_eq!(holds(&world, backup, &key), want, "{key}");
    }
    let number = |world: &mut World, what: &str| -> u64 {
        field(world, &peer, BACKUP, what).parse().expect("a number")
    };
    assert_eq!(number(&mut world, "refill_listed"), own);
    assert_eq!(number(&mut world, "refill_copied"), own);
    assert_eq!(number(&mut world, "refill_to_go"), 0);
    assert!(number(&mut world, "refill_bytes") > own * 6);
    assert_eq!(field(&mut world, &peer, BACKUP + 1, "refill"), "none");
}

#[test]
fn a_primary_that_restarted_holds_what_its_backups_hold_though_nobody_asks() {
    let (mut world, peer) = farm(2, 1, &["--warm", "0"]);
    for i in 0..100 {
        set(&mut world, &peer, &format!("k{i}"), "v");
    }
    restart(&mut world, PRIMARY, SECOND);
    until(&mut world, &peer, PRIMARY, "done");
    for i in 0..100 {
        let key = format!("k{i}");
        let primary = PRIMARY + keys::home(&key, 2) as u16;
        assert_eq!(
            holds(&world, primary, &key),
            Some((5, b"v".to_vec())),
            "{key}"
        );
    }
}

/// A refill may take longer than `--warm`: what is not copied yet is no miss all the same.
#[test]
fn a_primary_is_warming_until_its_refill_is_done() {
    let (mut world, peer) = farm(1, 1, &["--warm", "4", "--refill", "20k"]);
    let all = || (0..200).map(|i| format!("k{i}"));
    for key in all() {
        set(&mut world, &peer, &key, &"v".repeat(500));
    }
    restart(&mut world, PRIMARY, SECOND);
    until(&mut world, &peer, PRIMARY, "running");
    world.advance(5 * SECOND);
    assert_eq!(field(&mut world, &peer, PRIMARY, "refill"), "running");
    let lacks = |world: &World| all().filter(|k| holds(world, PRIMARY, k).is_none()).count();
    assert!(lacks(&world) > 20, "{} are not copied yet", lacks(&world));
    assert_eq!(field(&mut world, &peer, PRIMARY, "state"), "warming");
    for key in all() {
        let said = world.ask(&peer, format!("get {key}\r\n"));
        assert!(said.starts_with("VALUE "), "{key}: {said}");
    }
    until(&mut world, &peer, PRIMARY, "done");
    assert_eq!(field(&mut world, &peer, PRIMARY, "state"), "up");
}

#[test]
fn a_key_that_was_deleted_because_a_mirror_was_lost_is_copied_again() {
    let (mut world, peer) = farm(1, 1, &[]);
    set(&mut world, &peer, "k", "old");
    world.become_state(BACKUP, State::Gone);
    world.advance(SECOND);
    set(&mut world, &peer, "k", "new");
    set(&mut world, &peer, "other", "x");
    world.become_state(BACKUP, State::Well);
    world.advance(5 * SECOND);
    assert_eq!(holds(&world, BACKUP, "k"), Some((5, b"new".to_vec())));
    assert_eq!(holds(&world, BACKUP, "other"), Some((5, b"x".to_vec())));
    assert_eq!(field(&mut world, &peer, BACKUP, "refill"), "none");
}

#[test]
fn one_that_was_flushed_for_its_journal_is_refilled() {
    let (mut world, peer) = farm(1, 1, &["--journal", "1k"]);
    world.become_state(BACKUP, State::Gone);
    world.advance(SECOND);
    for i in 0..100 {
        set(&mut world, &peer, &format!("k{i}"), "v");
    }
    world.become_state(BACKUP, State::Well);
    until(&mut world, &peer, BACKUP, "done");
    for i in 0..100 {
        assert!(holds(&world, BACKUP, &format!("k{i}")).is_some(), "k{i}");
    }
}

#[test]
fn servers_that_list_by_their_lrus_are_listed_twice_and_those_that_do_not_list_are_named() {
    let (mut world, peer) = farm(1, 1, &[]);
    for i in 0..10 {
        set(&mut world, &peer, &format!("k{i}"), "v");
    }
    world.servers.get_mut(&PRIMARY).expect("it").store.metadump = Metadump::AllOnly;
    restart(&mut world, BACKUP, SECOND);
    until(&mut world, &peer, BACKUP, "done");
    assert_eq!(field(&mut world, &peer, BACKUP, "refill_listed"), "20");
    assert_eq!(field(&mut world, &peer, BACKUP, "refill_copied"), "10");
    assert_eq!(field(&mut world, &peer, BACKUP, "refill_there"), "10");

    world.servers.get_mut(&PRIMARY).expect("it").store.metadump = Metadump::Never;
    restart(&mut world, BACKUP, 3 * SECOND);
    until(&mut world, &peer, BACKUP, "partial");
    assert_eq!(field(&mut world, &peer, PRIMARY, "metadump"), "no");
    assert_eq!(holds(&world, BACKUP, "k1"), None);
    world.advance(20 * SECOND);
}

#[test]
fn a_server_that_is_busy_or_says_nothing_is_waited_for() {
    for metadump in [Metadump::Busy, Metadump::Silent] {
        let (mut world, peer) = farm(1, 1, &[]);
        set(&mut world, &peer, "k", "v");
        world.servers.get_mut(&PRIMARY).expect("it").store.metadump = metadump;
        restart(&mut world, BACKUP, SECOND);
        until(&mut world, &peer, BACKUP, "running");
        world.advance(10 * SECOND);
        assert_eq!(field(&mut world, &peer, BACKUP, "refill"), "running");
        world.servers.get_mut(&PRIMARY).expect("it").store.metadump = Metadump::Hash;
        until(&mut world, &peer, BACKUP, "done");
        assert!(holds(&world, BACKUP, "k").is_some());
    }
}

#[test]
fn a_listing_that_is_cut_in_the_middle_begins_again() {
    let (mut world, peer) = farm(1, 1, &[]);
    for i in 0..200 {
        set(&mut world, &peer, &format!("k{i}"), "v");
    }
    // So that a listing comes in pieces.
    world.link_room = 500;
    restart(&mut world, BACKUP, SECOND);
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
    until(&mut world, &peer, BACKUP, "done");
    let held = (0..200).filter(|i| holds(&world, BACKUP, &format!("k{i}")).is_some());
    assert_eq!(held.count(), 200);
    let listed = field(&mut world, &peer, BACKUP, "refill_listed");
    assert!(listed.parse::<u64>().expect("a number") > 200, "{listed}");
}

#[test]
fn keys_of_magents_own_and_keys_that_cannot_be_asked_for_are_not_copied() {
    let (mut world, peer) = farm(1, 1, &[]);
    // "\0magent/x", and keys of 1 and 186 bytes that text cannot hold.
    let odd = ["CQ==".to_string(), "AAEC".repeat(62)];
    for key in [&odd[0], &odd[1]] {
        assert_eq!(world.ask(&peer, format!("ms {key} 1 b\r\nx\r\n")), "HD\r\n");
    }
    // Past magent, since it refuses such a request.
    let own = b"ms AG1hZ2VudC94 1 b\r\nx\r\n";
    assert_eq!(world.ask_past(PRIMARY, own), b"HD\r\n");
    restart(&mut world, BACKUP, SECOND);
    until(&mut world, &peer, BACKUP, "done");
    assert_eq!(field(&mut world, &peer, BACKUP, "refill_copied"), "2");
    assert_eq!(world.servers[&BACKUP].store.items().len(), 2);
}

#[test]
fn no_refill_with_rate_0_and_none_where_pools_have_other_partners() {
    let (mut world, peer) = farm(1, 1, &["--refill", "0"]);
    set(&mut world, &peer, "k", "v");
    restart(&mut world, BACKUP, SECOND);
    world.advance(20 * SECOND);
    assert_eq!(holds(&world, BACKUP, "k"), None);
    assert_eq!(field(&mut world, &peer, BACKUP, "refill"), "off");

    let pool = |name: &str, port: u16, servers: &[u16], backups: &[u16]| {
        let list = |of: &[u16]| -> String {
            of.iter()
                .map(|p| format!("  - 127.0.0.1:{p}:1\n"))
                .collect()
        };
        let (servers, backups) = (list(servers), list(backups));
        format!("{name}:\n  listen: 127.0.0.1:{port}\n  servers:\n{servers}  backups:\n{backups}")
    };
    let text = pool("a", 1, &[7001, 7002], &[7101]) + &pool("b", 2, &[7001], &[7102]);
    let mut world = World::of(file(&text));
    let peer = world.client();
    world.advance(3 * SECOND);
    set(&mut world, &peer, "k", "v");
    restart(&mut world, 7001, 3 * SECOND);
    world.advance(20 * SECOND);
    assert_eq!(field(&mut world, &peer, 7001, "refill"), "other partners");
    assert_eq!(world.servers[&7001].store.items().len(), 0);
}

#[test]
fn the_rate_holds() {
    let (mut world, peer) = farm(1, 1, &["--refill", "100k"]);
    for i in 0..50 {
        set(&mut world, &peer, &format!("k{i}"), &"v".repeat(9_744));
    }
    restart(&mut world, BACKUP, SECOND);
    until(&mut world, &peer, BACKUP, "running");
    let from = world.now;
    until(&mut world, &peer, BACKUP, "done");
    let took = (world.now - from) / 1_000_000;
    // A second to measure, then 500,000 bytes.
    assert!((5_500..6_500).contains(&took), "{took} ms");
}

/// Small values must not be so many requests that clients feel them.
#[test]
fn a_key_counts_as_a_kilobyte_at_least() {
    let (mut world, peer) = farm(1, 1, &["--refill", "100k"]);
    for i in 0..500 {
        set(&mut world, &peer, &format!("k{i}"), "v");
    }
    restart(&mut world, BACKUP, SECOND);
    until(&mut world, &peer, BACKUP, "running");
    let from = world.now;
    until(&mut world, &peer, BACKUP, "done");
    let took = (world.now - from) / 1_000_000;
    // A second to measure, then 500 KB.
    assert!((5_500..6_500).contains(&took), "{took} ms");
}

#[test]
fn a_write_while_the_key_is_fetched_wins() {
    for (line, answer, want) in [
        ("set k 5 1000 3\r\nnew\r\n", "STORED\r\n", Some(&b"new"[..])),
        ("delete k\r\n", "DELETED\r\n", None),
        ("incr k 1\r\n", "8\r\n", Some(b"8")),
        ("append k 0 0 1\r\n1\r\n", "STORED\r\n", Some(b"71")),
    ] {
        let (mut world, peer) = farm(1, 1, &[]);
        set(&mut world, &peer, "k", "7");
        restart(&mut world, BACKUP, SECOND);
        // The primary lists, and then answers nothing for a moment.
        for _ in 0..100_000 {
            if world.servers[&BACKUP].asked > 0 {
                break;
            }
            world.advance(Duration::from_micros(100));
        }
        assert_eq!(world.ask(&peer, line), answer);
        until(&mut world, &peer, BACKUP, "done");
        let held = holds(&world, BACKUP, "k").map(|(_, value)| value);
        assert_eq!(held.as_deref(), want, "{line}");
        assert_eq!(holds(&world, PRIMARY, "k").map(|(_, value)| value), held);
    }
}

#[test]
fn nothing_is_copied_about_a_delayed_flush() {
    let (mut world, peer) = farm(1, 1, &[]);
    set(&mut world, &peer, "k", "v");
    assert_eq!(world.ask(&peer, "flush_all 4\r\n"), "OK\r\n");
    // The model flushes at once; what is stored now would be gone in 4 s.
    set(&mut world, &peer, "k", "v");
    restart(&mut world, BACKUP, SECOND);
    world.advance(4 * SECOND);
    assert_eq!(holds(&world, BACKUP, "k"), None, "from 2 s to 7 s");
    world.advance(4 * SECOND);
    assert!(holds(&world, BACKUP, "k").is_some(), "afterwards");
}

#[test]
fn a_source_that_goes_is_waited_for() {
    let (mut world, peer) = farm(1, 1, &["--refill", "20k"]);
    for i in 0..200 {
        set(&mut world, &peer, &format!("k{i}"), &"v".repeat(500));
    }
    restart(&mut world, BACKUP, SECOND);
    until(&mut world, &peer, BACKUP, "running");
    world.advance(3 * SECOND);
    world.become_state(PRIMARY, State::Gone);
    world.advance(SECOND);
    assert_eq!(field(&mut world, &peer, BACKUP, "refill"), "waiting");
    // It keeps what it holds: a link that was cut.
    world.become_state(PRIMARY, State::Well);
    until(&mut world, &peer, BACKUP, "done");
    let held = (0..200).filter(|i| holds(&world, BACKUP, &format!("k{i}")).is_some());
    assert_eq!(held.count(), 200);
}

/// One source is dead for long. What the others have is copied once; nobody is listed again and again.
#[test]
fn a_source_that_is_away_is_waited_for_and_the_others_are_not_listed_again() {
    let (mut world, peer) = farm(2, 1, &[]);
    for i in 0..200 {
        set(&mut world, &peer, &format!("k{i}"), "v");
    }
    world.become_state(PRIMARY + 1, State::Gone);
    world.advance(SECOND);
    restart(&mut world, BACKUP, SECOND);
    world.advance(10 * SECOND);
    let of_first = |i: &i32| keys::home(&format!("k{i}"), 2) == 0;
    let held = |world: &World| {
        (0..200)
            .filter(|i| holds(world, BACKUP, &format!("k{i}")).is_some())
            .count()
    };
    assert_eq!(held(&world), (0..200).filter(of_first).count());
    let (asked, polls) = (world.servers[&BACKUP].asked, world.stat("polls"));
    world.advance(20 * SECOND);
    let more = world.servers[&BACKUP].asked - asked;
    assert!(more < 100, "asked {more} times in vain");
    assert!(world.stat("polls") - polls < 2000, "it waits");
    // What is to be copied from the others meanwhile is copied.
    world.become_state(BACKUP, State::Gone);
    world.advance(SECOND);
    let key = (0..)
        .map(|i| format!("new{i}"))
        .find(|k| keys::home(k, 2) == 0);
    let key = key.expect("keys never end");
    set(&mut world, &peer, &key, "v");
    world.become_state(BACKUP, State::Well);
    world.advance(5 * SECOND);
    assert!(holds(&world, BACKUP, &key).is_some());
    assert_eq!(field(&mut world, &peer, BACKUP, "refill"), "running");
    world.become_state(PRIMARY + 1, State::Well);
    until(&mut world, &peer, BACKUP, "done");
    assert_eq!(held(&world), 200);
}

#[test]
fn more_keys_than_memory_for_their_names() {
    let (mut world, peer) = farm(1, 1, &["-I", "1k", "-m", "64k"]);
    for i in 0..2000 {
        set(
            &mut world,
            &peer,
            &format!("a_rather_long_name_of_a_key_{i}"),
            "v",
        );
    }
    restart(&mut world, BACKUP, SECOND);
    until(&mut world, &peer, BACKUP, "done");
    assert_eq!(world.servers[&BACKUP].store.items().len(), 2000);
    assert_eq!(field(&mut world, &peer, BACKUP, "refill_copied"), "2000");
}

#[test]
fn a_gat_of_several_keys_at_a_warming_primary_touches_their_copies() {
    let (mut world, peer) = farm(1, 1, &[]);
    restart(&mut world, PRIMARY, SECOND);
    until(&mut world, &peer, PRIMARY, "done");
    set(&mut world, &peer, "a", "x");
    set(&mut world, &peer, "b", "y");
    let said = world.ask(&peer, "gat 0 a b\r\n");
    assert_eq!(said, "VALUE a 5 1\r\nx\r\nVALUE b 5 1\r\ny\r\nEND\r\n");
    for key in ["a", "b"] {
        let item = world.servers[&BACKUP].store.get(key, world.now);
        assert_eq!(item.map(|i| i.expires), Some(u64::MAX), "{key}");
    }
}

#[test]
fn an_old_server_is_neither_source_nor_target_and_nobody_waits_for_it() {
    for port in [PRIMARY, BACKUP] {
        let (mut world, peer) = farm(1, 1, &[]);
        world.servers.get_mut(&port).expect("it").store.is_old = true;
        world.become_state(port, State::Gone);
        world.advance(SECOND);
        world.become_state(port, State::Well);
        world.advance(SECOND);
        set(&mut world, &peer, "k", "v");
        restart(&mut world, BACKUP, 3 * SECOND);
        let state = if port == BACKUP {
            "unsupported"
        } else {
            "partial"
        };
        until(&mut world, &peer, BACKUP, state);
        assert_eq!(holds(&world, BACKUP, "k"), None);
        world.advance(SECOND);
        let polls = world.stat("polls");
        world.advance(10 * SECOND);
        assert!(world.stat("polls") - polls < 1000, "it waits for nothing");
    }
}

#[test]
fn more_single_keys_than_there_is_room_for_are_listed() {
    let (mut world, peer) = farm(1, 1, &["-I", "1k", "-m", "64k"]);
    world.become_state(BACKUP, State::Gone);
    world.advance(SECOND);
    for i in 0..100 {
        set(&mut world, &peer, &format!("k{i}"), "v");
    }
    world.become_state(BACKUP, State::Well);
    until(&mut world, &peer, BACKUP, "done");
    assert_eq!(world.servers[&BACKUP].store.items().len(), 100);
}

#[test]
fn what_a_late_flush_takes_from_a_backup_is_copied_again() {
    let quick = ["--timeout", "200", "--failure-limit", "100", "-i", "2"];
    let (mut world, peer) = farm(1, 1, &quick);
    let names: Vec<String> = (0..20).map(|i| format!("k{i}")).collect();
    for key in &names {
        set(&mut world, &peer, key, "old");
    }
    // Both links of the backup owe something, so both get the flush.
    world.become_state(BACKUP, State::Hung);
    for key in &names {
        set(&mut world, &peer, key, "older");
    }
    world.send(&peer, "flush_all\r\n");
    world.advance(500 * MS);
    let said = world.take_text(&peer);
    assert!(said.ends_with("timed out\r\n"), "{said}");
    for key in &names {
        set(&mut world, &peer, key, "new");
    }
    world.become_state(BACKUP, State::Well);
    world.advance(5 * SECOND);
    for key in &names {
        assert_eq!(
            holds(&world, BACKUP, key),
            Some((5, b"new".to_vec())),
            "{key}"
        );
    }
}
