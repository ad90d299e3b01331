//! Servers before 1.6, such as 1.4.15: no meta commands, nothing that lists keys. A line of theirs that they do not
//! know is one `ERROR`, and its value is the next line.

mod common;

use common::world::options;
use common::{Client, Fake, Gate, Magent, Peer, World, wait_for};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const PRIMARY: u16 = 7001;
const BACKUP: u16 = 7101;

/// A primary and a backup, of which this one is old, and known to be.
fn farm(old: u16) -> (World, Peer) {
    let mut world = World::of(options(&[
        "-s",
        "127.0.0.1:7001",
        "-b",
        "127.0.0.1:7101",
        "--probe",
        "100",
    ]));
    world.servers.get_mut(&old).expect("it").store.is_old = true;
    let peer = world.client();
    world.advance(3 * SECOND);
    (world, peer)
}

fn holds(world: &World, port: u16, key: &str) -> Option<Vec<u8>> {
    world.servers[&port]
        .store
        .get(key, world.now)
        .map(|i| i.data.clone())
}

fn set_binary(key: &str, value: &str) -> Vec<u8> {
    let body = [&[0; 8][..], key.as_bytes(), value.as_bytes()].concat();
    let mut request = vec![
        0x80,
        1,
        0,
        key.len() as u8,
        8,
        0,
        0,
        0,
        0,
        0,
        0,
        body.len() as u8,
    ];
    request.resize(24, 0);
    [request, body].concat()
}

#[test]
fn an_old_primary_is_sent_no_value_that_it_does_not_understand() {
    let (mut world, peer) = farm(PRIMARY);
    let other = world.client();
    world.send(
        &peer,
        "ms k 1 T0\r\nx\r\nms k 5 q\r\nhello\r\nmg k v\r\nget k\r\n",
    );
    world.send(&other, "set other 0 0 1\r\nx\r\nget other\r\n");
    world.step();
    assert_eq!(world.take_text(&peer), "ERROR\r\nERROR\r\nERROR\r\nEND\r\n");
    assert_eq!(
        world.take_text(&other),
        "STORED\r\nVALUE other 0 1\r\nx\r\nEND\r\n"
    );
    let large = format!("ms k 50000\r\n{}\r\n", "v".repeat(50_000));
    assert_eq!(world.ask(&peer, large), "ERROR\r\n");
    let binary = world.client();
    world.send(&binary, set_binary("k", "x"));
    world.step();
    let said = world.take(&binary);
    assert_eq!((said[1], said[7]), (1, 0x83), "not supported");
    assert_eq!(world.stat("protocol_errors"), 0);
    assert_eq!(
        world.ask(&other, "get other\r\n"),
        "VALUE other 0 1\r\nx\r\nEND\r\n"
    );
}

#[test]
fn an_old_backup_is_told_to_delete_what_it_cannot_copy() {
    let (mut world, peer) = farm(BACKUP);
    let state = |world: &mut World| world.stat_for(&peer, "servers", "127.0.0.1:7101:state");
    assert_eq!(world.ask(&peer, "set k 0 0 3\r\nold\r\n"), "STORED\r\n");
    assert_eq!(holds(&world, BACKUP, "k").as_deref(), Some(&b"old"[..]));
    assert_eq!(world.ask(&peer, "ms k 3 F7\r\nnew\r\n"), "HD\r\n");
    assert_eq!(holds(&world, BACKUP, "k"), None);
    assert_eq!(world.ask(&peer, "set n 0 0 1\r\n1\r\n"), "STORED\r\n");
    assert_eq!(world.ask(&peer, "md n\r\n"), "HD\r\n");
    assert_eq!(holds(&world, BACKUP, "n"), None);
    // A key that it cannot hold.
    assert_eq!(world.ask(&peer, "ms AAE= 1 b\r\nx\r\n"), "HD\r\n");
    assert_eq!(world.ask(&peer, "md AAE= b\r\n"), "HD\r\n");
    world.advance(SECOND);
    assert_eq!(state(&mut world), "up");
    for what in ["journal_keys", "outages"] {
        let shown = world.stats("stats servers\r\n");
        let value = shown.get(&format!("127.0.0.1:7101:{what}"));
        assert!(value.is_none_or(|n| n == "0"), "{what}: {value:?}");
    }
    // Nor is it asked in its primary's place.
    world.become_state(PRIMARY, common::world::State::Gone);
    world.advance(SECOND);
    let said = world.ask(&peer, "ms k 1\r\nx\r\n");
    assert_eq!(said, "SERVER_ERROR 127.0.0.1:7001 down\r\n");
    assert_eq!(world.stat("protocol_errors"), 0);
    assert_eq!(state(&mut world), "up");
}

/// The log says once that nothing is copied to it, however often it restarts.
#[test]
fn an_old_server_that_restarts_is_not_refilled_and_that_is_said_once() {
    let (gate, theirs) = Gate::new();
    let backup = Fake::raw(move |link| {
        let uptime = if theirs.is_open() { 0 } else { 100_000 };
        while let Some(line) = link.request_or_probe() {
            link.send(match &line[..3] {
                b"ver" => "VERSION 1.4.15\r\n".to_string(),
                b"sta" => format!("STAT uptime {uptime}\r\nEND\r\n"),
                b"del" => "DELETED\r\n".to_string(),
                _ => "STORED\r\n".to_string(),
            });
            if theirs.is_open() && uptime > 1 {
                return;
            }
        }
    });
    let primary = common::Memcached::start();
    let options = ["--probe", "100", "--retry", "50"];
    let magent = Magent::farm(&[&primary.name], &[&backup.name], &options);
    let mut client: Client = magent.client();
    client.set("k", "v");
    backup.wait_count("set", 1);
    gate.open();
    wait_for("the restart to be told", || {
        client.set("k", "v");
        magent.log().contains("is not refilled: ").then_some(())
    });
    let log = magent.log();
    let line = ": is not refilled: it is older than memcached 1.6\n";
    assert_eq!(log.matches(line).count(), 1, "{log}");
    assert_eq!(magent.server(&backup.name)["refill"], "unsupported");
}
