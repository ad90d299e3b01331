//! The right to refresh a stale item belongs to clients: who asks while magent fetches the item for a copy gets it
//! all the same.

use super::*;
use crate::common::{Magent, Memcached, Relay, wait_for};

/// Turn by turn until the backup was asked something; then the primary answers nothing, and what magent asks it
/// is on its way.
fn until_fetched(world: &mut World) {
    let asked = world.servers[&BACKUP].asked;
    for _ in 0..100_000 {
        if world.servers[&BACKUP].asked > asked {
            world.become_state(PRIMARY, State::Hung);
            world.step();
            return;
        }
        if !world.turn() {
            world.stand_still(Duration::from_micros(100));
        }
    }
    panic!("the backup is asked nothing");
}

/// A stale key at the primary that the backup lacks; magent asks for it, and is not answered yet.
fn stale(verifies: bool) -> (World, Peer) {
    let (mut world, peer) = farm(1, 1, &[]);
    assert_eq!(world.ask(&peer, "ms k 3 T90\r\nold\r\n"), "HD\r\n");
    assert_eq!(world.ask(&peer, "md k I T60\r\n"), "HD\r\n");
    match verifies {
        true => drop(world.ask(&peer, format!("stats verify {}\r\n", name(BACKUP)))),
        false => restart(&mut world, BACKUP, SECOND),
    }
    until_fetched(&mut world);
    (world, peer)
}

#[test]
fn who_asks_while_a_stale_item_is_fetched_gets_its_win() {
    for verifies in [false, true] {
        let (mut world, peer) = stale(verifies);
        let other = world.client();
        world.send(&other, "gets k\r\n");
        world.send(&peer, "mg k s v Oab k\r\n");
        world.step();
        world.send(&other, "mg k v\r\n");
        world.step();
        world.become_state(PRIMARY, State::Well);
        world.step();
        let said = world.take_text(&peer);
        assert_eq!(said, "VA 3 s3 Oab kk X W\r\nold\r\n", "{verifies}");
        let said = world.take_text(&other);
        let (value, rest) = said.split_once("END\r\n").expect("a value");
        assert!(value.starts_with("VALUE k 0 3 "), "{value}");
        assert_eq!(rest, "VA 3 Z X\r\nold\r\n", "{verifies}");
        world.advance(2 * SECOND);
        assert_eq!(world.ask(&peer, "mg k\r\n"), "HD Z X\r\n", "{verifies}");
        assert_eq!(holds(&world, BACKUP, "k"), None);
    }
}

#[test]
fn if_nobody_asks_the_next_one_who_does_gets_it() {
    for verifies in [false, true] {
        let (mut world, peer) = stale(verifies);
        let other = world.client();
        world.send(&other, "mg k s\r\n");
        world.step();
        // It will have no answer.
        world.reset(other);
        world.become_state(PRIMARY, State::Well);
        world.step();
        assert_eq!(
            world.ask(&peer, "mg k s\r\n"),
            "HD s3 X W\r\n",
            "{verifies}"
        );
        assert_eq!(
            world.ask(&peer, "mg k s\r\n"),
            "HD s3 Z X\r\n",
            "{verifies}"
        );
    }
}

#[test]
fn a_fetch_that_is_late_keeps_no_win() {
    for verifies in [false, true] {
        let (mut world, peer) = stale(verifies);
        world.advance(1500 * MS);
        world.become_state(PRIMARY, State::Well);
        world.step();
        assert_eq!(world.ask(&peer, "mg k\r\n"), "HD X W\r\n", "{verifies}");
        assert_eq!(world.ask(&peer, "mg k\r\n"), "HD Z X\r\n", "{verifies}");
    }
}

#[test]
fn what_was_stored_behind_the_fetch_is_nobodys_to_refresh() {
    let (mut world, peer) = stale(false);
    world.send(&peer, "set k 0 90 3\r\nnew\r\n");
    world.send(&peer, "mg k v\r\n");
    world.step();
    world.become_state(PRIMARY, State::Well);
    world.step();
    assert_eq!(world.take_text(&peer), "STORED\r\nVA 3\r\nnew\r\n");
    world.advance(2 * SECOND);
    assert_eq!(world.ask(&peer, "mg k v\r\n"), "VA 3\r\nnew\r\n");
    assert_eq!(holds(&world, BACKUP, "k"), Some((0, b"new".to_vec())));
}

/// The same with real servers, where magent reaches the primary through a relay that holds the fetch.
#[test]
fn a_real_memcacheds_win_goes_to_the_first_client_who_asked() {
    let servers = [Memcached::start(), Memcached::start()];
    let relay = Relay::new(&servers[0]);
    let options = ["--timeout", "9000", "--probe", "0"];
    let magent = Magent::farm(&[&relay.name], &[&servers[1].name], &options);
    let mut clients = [(); 2].map(|()| magent.client());
    for (key, ask, compared) in [("a", true, &servers[1].name), ("b", false, &relay.name)] {
        let compare = format!("stats verify {compared}\r\n");
        let set = format!("ms {key} 3 T90\r\nold\r\n");
        clients[0].ask(set, "HD\r\n");
        clients[0].ask(format!("md {key} I T60\r\n"), "HD\r\n");
        relay.hold("mg ");
        clients[0].stats(&compare);
        relay.wait_held();
        if ask {
            for (behind, client) in clients.iter_mut().enumerate() {
                client.send("mg a v\r\n");
                wait_for("it to stand behind the fetch", || {
                    let in_flight = magent.server(&relay.name)["in_flight"].clone();
                    (in_flight == (2 + behind).to_string()).then_some(())
                });
            }
        }
        relay.release();
        for (client, won) in clients.iter_mut().zip([true, false]) {
            if !ask {
                client.send("mg b v\r\n");
            }
            let marks = if won { "X W" } else { "Z X" };
            client.expect(format!("VA 3 {marks}\r\nold\r\n"));
        }
        wait_for("the comparison to end", || {
            let shown = clients[0].stats(&compare);
            (shown["state"] == "done").then_some(())
        });
    }
}
