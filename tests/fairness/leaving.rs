//! Clients that leave before they are answered: what was not sent yet for them is not sent.

use super::common::probe::assert_one_of;
use super::common::world::State;
use super::common::{Latencies, Magent, Memcached, Probe, World};
use super::{PATIENT, SMALL, SMALL_ANSWER, WINDOW};
use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Connects, asks 10,000 times and leaves, until it is told to stop.
fn visitor(port: u16, over: &Arc<AtomicBool>) -> JoinHandle<()> {
    let over = over.clone();
    std::thread::spawn(move || {
        let gets = "get absent\r\n".repeat(10_000);
        while !over.load(Ordering::Relaxed) {
            if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) {
                let timeout = Some(Duration::from_millis(100));
                stream.set_write_timeout(timeout).expect("a timeout");
                let _ = stream.write_all(gets.as_bytes());
            }
        }
    })
}

fn beside_visitors() -> (Latencies, Latencies) {
    let (server, bare) = (Memcached::start(), Memcached::start());
    let magent = Magent::farm(&[&server.name], &[], &[]);
    for memcached in [&server, &bare] {
        memcached.client().set("small", "vvvvv");
    }
    magent.client().ask(SMALL, SMALL_ANSWER);
    let over = Arc::new(AtomicBool::new(false));
    let ports = [magent.port, bare.port];
    let visitors: Vec<_> = [ports, ports]
        .iter()
        .flatten()
        .map(|p| visitor(*p, &over))
        .collect();
    let probes = ports.map(|p| Probe::start(p, SMALL, SMALL_ANSWER));
    let seen = Probe::both_for(WINDOW, probes);
    over.store(true, Ordering::Relaxed);
    for visitor in visitors {
        visitor.join().expect("it ends");
    }
    seen
}

/// A client of the same server gets a third of what it gets from a bare memcached, or does not
/// notice.
#[test]
fn a_client_that_asks_and_leaves_for_ever_takes_no_server_from_the_others() {
    assert_one_of(beside_visitors, |through, bare| {
        3 * through.count() >= bare.count() || through.is_fair(bare)
    });
}

/// A server that reads nothing for now, and a link that takes 4 KB meanwhile.
fn slow() -> World {
    let mut core = World::new(&[&["-s", "127.0.0.1:1"][..], &PATIENT].concat());
    core.link_room = 4096;
    let client = core.client();
    core.ask(&client, "get k1\r\n");
    core.become_state(1, State::Hung);
    core
}

/// Within this time magent looks for what those who left have asked.
const LOOKS: Duration = Duration::from_millis(20);

const LONG_GET: &str = "get k1.0123456789012345678901234567890123456789\r\n";

#[test]
fn reads_of_a_client_that_left_are_not_sent() {
    for (clients, each) in [(1, 1000), (100, 1000), (1000, 10)] {
        let mut core = slow();
        let before = core.requests(1);
        for _ in 0..clients {
            let peer = core.client();
            core.send(&peer, LONG_GET.repeat(each));
            core.step();
            core.reset(peer);
        }
        core.advance(LOOKS);
        core.become_state(1, State::Well);
        let late = core.client();
        assert!(core.ask(&late, "get k5\r\n").contains("vvvvv"));
        let asked = core.requests(1) - before;
        // What fits the link, one that is there in part, and the last one's.
        let most = 4096 / LONG_GET.len() + 2;
        assert!(
            asked <= most,
            "{clients} clients left {each} reads each; {asked} of them were sent, {most} fit"
        );
        assert_eq!(core.stat("bytes_in_flight"), 0);
    }
}

/// The same for parts of gets of several keys; whoever stays is answered all the same.
#[test]
fn reads_of_those_who_stay_are_sent_and_answered() {
    let mut core = slow();
    let before = core.requests(1);
    let gets = LONG_GET.trim_end().to_string() + " k2 k3\r\n";
    let (leaves, stays) = (core.client(), core.client());
    for _ in 0..20 {
        core.send(&leaves, gets.repeat(20));
        core.send(&stays, "get k5\r\n");
        core.step();
    }
    core.reset(leaves);
    core.advance(LOOKS);
    core.become_state(1, State::Well);
    core.step();
    let answers = core.take_text(&stays);
    assert_eq!(answers, "VALUE k5 0 5\r\nvvvvv\r\nEND\r\n".repeat(20));
    let asked = core.requests(1) - before;
    let most = 4096 / gets.len() + 1 + 20;
    assert!(
        asked <= most,
        "{asked} requests were sent, {most} at most are owed"
    );
}

/// One that only ended its half, as `printf | nc` does, has not left.
#[test]
fn a_client_that_ends_its_half_is_answered() {
    let mut core = slow();
    let peer = core.client();
    core.send(&peer, LONG_GET.repeat(1000));
    core.step();
    core.end(&peer);
    core.become_state(1, State::Well);
    core.step();
    let answers = core.take_text(&peer);
    assert_eq!(answers.matches("END\r\n").count(), 1000);
    assert!(peer.is_closed());
}

/// Writes are another matter: what was read is done, as memcached does what it has read.
#[test]
fn writes_of_a_client_that_left_are_sent() {
    let mut core = slow();
    let before = core.requests(1);
    let peer = core.old_client();
    core.send(&peer, "set k1 0 0 1\r\nv\r\n".repeat(1000));
    core.step();
    core.reset(peer);
    core.become_state(1, State::Well);
    core.step();
    assert_eq!(core.requests(1) - before, 1000);
    assert_eq!(core.stat("bytes_in_flight"), 0);
}

/// A server that hangs owes answers to many who left: whoever stays waits for one timeout, as
/// without them, and is served when the server is well.
#[test]
fn whoever_stays_waits_for_one_timeout_behind_those_who_left() {
    let mut core = World::new(&["-s", "127.0.0.1:1", "--timeout", "500"]);
    let stays = core.client();
    core.ask(&stays, "get k1\r\n");
    core.become_state(1, State::Hung);
    let leaves: Vec<_> = (0..2).map(|_| core.old_client()).collect();
    for peer in &leaves {
        core.send(peer, LONG_GET.repeat(1000));
        core.step();
    }
    for peer in leaves {
        core.reset(peer);
    }
    core.advance(LOOKS);
    core.ask(&stays, "get k5\r\n");
    core.advance(Duration::from_millis(700));
    core.become_state(1, State::Well);
    core.advance(Duration::from_secs(1));
    let late = "SERVER_ERROR 127.0.0.1:1 timed out\r\n";
    assert_eq!(core.take_text(&stays), late);
    let found = "VALUE k5 0 5\r\nvvvvv\r\nEND\r\n";
    assert_eq!(core.ask(&stays, "get k5\r\n"), found);
}

/// What those who left had not sent yet makes room at once, though the server answers nothing.
#[test]
fn whoever_waits_for_room_gets_that_of_those_who_left() {
    let mut core = slow();
    let leaves: Vec<_> = (0..66).map(|_| core.old_client()).collect();
    for peer in &leaves {
        core.send(peer, LONG_GET.repeat(1024));
        core.step();
    }
    let (stays, watches) = (core.client(), core.client());
    let in_flight = |core: &mut World| -> u64 {
        let value = core.stat_for(&watches, "servers", "127.0.0.1:1:in_flight");
        value.parse().expect("a number")
    };
    let full = in_flight(&mut core);
    assert_eq!(core.ask(&stays, "get k5\r\n"), "");
    assert_eq!(in_flight(&mut core), full, "it waits");
    for peer in leaves {
        core.reset(peer);
    }
    core.advance(LOOKS);
    let withdrawn = core.stat("requests_withdrawn");
    assert_eq!(in_flight(&mut core) + withdrawn, full + 1, "it is asked");
}
