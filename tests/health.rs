//! Health without traffic: what is down, hangs or restarts is known though nobody asks it anything
//! (behaviour.md §9). Here in memory, where a millisecond is one; `health/real.rs` has real servers.

mod common;

#[path = "health/real.rs"]
mod real;

use common::world::{State, file};
use common::{Peer, World};
use std::time::Duration;

const MS: Duration = Duration::from_millis(1);
const PORT: u16 = 7001;
const NAME: &str = "127.0.0.1:7001";

/// One magent before a server: it probes what was silent for 100 ms and waits 200 ms for an answer.
fn before_one(options: &[&str]) -> (World, Peer) {
    let mut all = vec!["-s", NAME, "--probe", "100", "--connect-timeout", "200"];
    for [name, value] in [["--timeout", "200"], ["--retry", "50"]] {
        if !options.contains(&name) {
            all.extend([name, value]);
        }
    }
    all.extend(options);
    let mut world = World::new(&all);
    let peer = world.client();
    world.step();
    (world, peer)
}

fn of(world: &mut World, peer: &Peer, field: &str) -> String {
    world.stat_for(peer, "servers", &format!("{NAME}:{field}"))
}

/// How many milliseconds it takes until the server is down; 5 s at most.
fn until_down(world: &mut World, peer: &Peer) -> u32 {
    for ms in 0..5000 {
        if of(world, peer, "state") == "down" {
            return ms;
        }
        world.advance(MS);
    }
    panic!("still up: {:?}", world.stats("stats servers\r\n"));
}

#[test]
fn an_idle_server_is_probed_once_in_that_time_whatever_names_it() {
    let servers =
        "  servers:\n  - 127.0.0.1:7001:1\n  - 127.0.0.1:7002:1\n  server_connections: 3\n";
    let text = format!("a:\n  listen: 127.0.0.1:1\n{servers}b:\n  listen: 127.0.0.1:2\n{servers}");
    let mut world = World::of(file(&text));
    world.advance(10_500 * MS);
    for port in [PORT, PORT + 1] {
        // The handshake of the first link is the first probe.
        assert_eq!(world.open_links(port), 1);
        assert_eq!(world.servers[&port].probes, 9);
        assert_eq!(world.servers[&port].asked, 0);
    }
    let polls = world.stat("polls");
    world.advance(10_000 * MS);
    let turns = world.stat("polls") - polls;
    assert!(turns <= 10 * 2 * 8, "{turns} turns for 20 probes");
}

#[test]
fn no_probe_without_silence_and_none_with_probe_0() {
    let (mut world, peer) = before_one(&[]);
    for _ in 0..100 {
        world.ask(&peer, "get k1\r\n");
        world.advance(20 * MS);
    }
    assert_eq!(world.servers[&PORT].probes, 0);
    let mut quiet = World::new(&["-s", NAME, "--probe", "0"]);
    quiet.advance(60_000 * MS);
    assert!(quiet.links.is_empty());
    assert_eq!(quiet.wait(), None, "it never wakes");
}

#[test]
fn a_probe_is_no_request() {
    let (mut world, peer) = before_one(&[]);
    world.advance(1000 * MS);
    let sent = world.servers[&PORT].probes;
    assert!(sent >= 8, "{sent}");
    for (field, value) in [
        ("probes", sent.to_string()),
        ("requests", "0".into()),
        ("latency_p99_us", "0".into()),
        ("errors", "0".into()),
        ("state", "up".into()),
        ("last_error", "none".into()),
    ] {
        assert_eq!(of(&mut world, &peer, field), value, "{field}");
    }
    world.become_state(PORT, State::Hung);
    until_down(&mut world, &peer);
    assert_eq!(of(&mut world, &peer, "timeouts"), "0");
    assert_eq!(of(&mut world, &peer, "errors"), "0");
}

#[test]
fn an_idle_server_that_is_dead_hangs_or_cannot_be_reached_is_down() {
    // In 100 ms it is probed; 200 ms later it is late. What is looked at again then is the socket.
    for (state, most, why) in [
        (State::Gone, 100, "connection refused"),
        (State::Hung, 310, "timed out"),
        // It greets well and is up for a moment, but once.
        (State::Silent, 620, "timed out"),
        (State::Dark, 310, "timed out"),
    ] {
        let (mut world, peer) = before_one(&["-i", "3"]);
        world.advance(1030 * MS);
        world.become_state(PORT, state);
        let took = until_down(&mut world, &peer);
        assert!(took <= most, "{state:?}: {took} ms");
        let error = of(&mut world, &peer, "last_error");
        assert!(error.ends_with(why), "{state:?}: {error}");
        assert_eq!(world.stats("stats pools\r\n")["default:primaries_up"], "0");
        world.become_state(PORT, State::Well);
        world.advance(3000 * MS);
        assert_eq!(of(&mut world, &peer, "state"), "up", "{state:?}");
    }
}

#[test]
fn a_server_that_was_never_there_is_down_soon_after_the_start() {
    for state in [State::Gone, State::Dark, State::Hung] {
        let (mut world, peer) = before_one(&[]);
        world.become_state(PORT, state);
        let took = until_down(&mut world, &peer);
        assert!(took <= 100 + 200 + 200 + 20, "{state:?}: {took} ms");
    }
}

#[test]
fn a_probe_behind_a_late_request_is_one_more_timeout_in_a_row() {
    let (mut world, peer) = before_one(&["--failure-limit", "3"]);
    world.ask(&peer, "get k1\r\n");
    world.become_state(PORT, State::Silent);
    world.send(&peer, "get k1\r\n");
    world.advance(195 * MS);
    assert_eq!(world.servers[&PORT].probes, 0, "the request will tell");
    world.advance(20 * MS);
    assert!(world.take_text(&peer).contains("timed out"));
    assert_eq!(of(&mut world, &peer, "state"), "up");
    // It is probed at 300 and 600 ms at the latest, each time for 200 ms.
    let took = until_down(&mut world, &peer) + 215;
    assert_eq!(world.servers[&PORT].probes, 2);
    assert!((600..=830).contains(&took), "{took} ms");
    assert_eq!(of(&mut world, &peer, "timeouts"), "1");
}

/// A client's request behind a probe has its own timeout: one late answer does not make it down.
#[test]
fn a_request_behind_a_probe_has_its_own_time() {
    let (mut world, peer) = before_one(&[]);
    world.advance(1030 * MS);
    world.become_state(PORT, State::Hung);
    // The probe is on its way.
    world.advance(150 * MS);
    world.send(&peer, "get k1\r\n");
    world.advance(120 * MS);
    let other = world.client();
    assert_eq!(of(&mut world, &other, "state"), "up");
    world.become_state(PORT, State::Well);
    world.step();
    let answer = world.take_text(&peer);
    assert!(answer.starts_with("VALUE k1 "), "{answer}");
}

#[test]
fn where_servers_are_ejected_a_silent_probe_is_one_failure() {
    let (mut world, peer) = before_one(&["--auto-eject", "--failure-limit", "3"]);
    world.advance(1030 * MS);
    world.become_state(PORT, State::Hung);
    world.advance(700 * MS);
    assert_eq!(of(&mut world, &peer, "state"), "up");
    let took = until_down(&mut world, &peer) + 700;
    assert!(took <= 3 * 310, "{took} ms");
}

/// An idle timeout of the server's own is neither an error nor an absence, whenever it strikes.
#[test]
fn a_server_may_close_links_that_are_idle_or_probed() {
    let (mut world, peer) = before_one(&[]);
    for round in 0..100 {
        world.ask(&peer, "get k1\r\n");
        world.advance(37 * MS);
        if round % 2 == 0 {
            // A probe that is under way goes with its link.
            let stopped = world.servers[&PORT].probes;
            world.become_state(PORT, State::Hung);
            world.advance(101 * MS);
            assert_eq!(world.servers[&PORT].probes, stopped);
            world.servers.get_mut(&PORT).expect("it").state = State::Well;
        }
        world.close_links(PORT);
        assert_eq!(of(&mut world, &peer, "state"), "up", "round {round}");
    }
    assert_eq!(of(&mut world, &peer, "last_error"), "none");
}

#[test]
fn a_down_server_is_probed_at_least_every_retry_max() {
    let (mut world, peer) = before_one(&["--retry-max", "400"]);
    world.become_state(PORT, State::Gone);
    until_down(&mut world, &peer);
    world.advance(60_000 * MS);
    let before: u32 = of(&mut world, &peer, "connects").parse().expect("a number");
    world.advance(4_000 * MS);
    let after: u32 = of(&mut world, &peer, "connects").parse().expect("a number");
    assert!((10..=14).contains(&(after - before)), "{}", after - before);
}

/// A stopping magent does not wait for the answer to a probe.
#[test]
fn a_probe_holds_up_no_end() {
    let (mut world, peer) = before_one(&["--timeout", "60000"]);
    world.advance(1030 * MS);
    world.become_state(PORT, State::Hung);
    world.advance(200 * MS);
    world.leave(peer);
    assert_eq!(world.proxy().holdings().pending, 1);
    let clock = world.clock();
    world.proxy().drain(clock);
    world.step();
    assert!(world.proxy().drained());
}
