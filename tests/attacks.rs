//! What a reviewer tried in order to break magent, and what once did.

mod common;

use common::{Client, Fake, Magent, Memcached, wait_for};
use std::time::{Duration, Instant};

/// Clients, and requests of each: just under what one server may have in flight, and what one
/// client may.
const CLIENTS: usize = 64;
const DEPTH: usize = 1000;

/// Tens of thousands of answers that are late at the same moment: each was looked for from the
/// start of the queue, which stopped everybody for many seconds.
#[test]
fn timeouts_by_the_thousand_stop_nobody() {
    let fake = Fake::start(|link| link.silence());
    let magent = Magent::farm(&[&fake.name], &[], &["--timeout", "300"]);
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| magent.old_client()).collect();
    for client in &mut clients {
        client.send("get a\r\n".repeat(DEPTH));
    }
    let line = format!("SERVER_ERROR {} timed out\r\n", fake.name);
    for client in &mut clients {
        client.expect(line.repeat(DEPTH));
    }
}

/// A server that says more than it was asked, right behind the handshake, was connected to
/// again and again without a pause.
#[test]
fn a_server_that_talks_too_much_is_not_connected_to_for_ever() {
    let fake = Fake::raw(|link| {
        if link.handshake() {
            link.send("and another thing\r\n");
            link.silence();
        }
    });
    let magent = Magent::farm(&[&fake.name], &[], &["-v"]);
    let mut client = magent.client();
    // Each could be a connect.
    for _ in 0..1000 {
        let line = client.ask_line("get a\r\n");
        assert!(line.starts_with("SERVER_ERROR"), "{line}");
    }
    assert!(fake.links() < 10, "{} connects", fake.links());
}

/// A flush waits for what was asked before it, also where that goes over another link, or
/// waits for a warming primary's word.
#[test]
fn a_flush_overtakes_nothing() {
    let servers: Vec<Memcached> = (0..2).map(|_| Memcached::start()).collect();
    let names: Vec<&str> = servers.iter().map(|s| s.name.as_str()).collect();
    let magent = Magent::farm(&names[..1], &names[1..], &["-i", "4"]);
    let mut client = magent.client();
    let end = Instant::now() + Duration::from_secs(1);
    for i in 0.. {
        let adds: String = (0..20)
            .map(|n| format!("add k{i}-{n} 0 0 1\r\n1\r\n"))
            .collect();
        client.send(format!("{adds}flush_all\r\n"));
        client.expect("STORED\r\n".repeat(20) + "OK\r\n");
        for n in 0..20 {
            client.ask(format!("get k{i}-{n}\r\n"), "END\r\n");
        }
        if Instant::now() > end {
            break;
        }
    }
}

/// The handshake's answer is read to its end before anything is believed; it must have one.
#[test]
fn a_handshake_without_end_is_given_up() {
    let fake = Fake::raw(|link| {
        link.line();
        link.send("VERSION 1.6.18\r\n");
        link.line();
        loop {
            if !link.try_send("STAT something 1\r\n".repeat(4096)) {
                return;
            }
        }
    });
    let mut magent = Magent::farm(&[&fake.name], &[], &["--timeout", "5000"]);
    let mut client = magent.client();
    let line = client.ask_line("get a\r\n");
    assert!(line.starts_with("SERVER_ERROR"), "{line}");
    wait_for("the server to be down", || {
        (magent.server(&fake.name)["state"] == "down").then_some(())
    });
    assert!(magent.terminate().success());
}

/// A get line of 1 MiB at a warming primary is a hundred thousand fetches; they count as bytes
/// in flight.
#[test]
fn a_hundred_thousand_absent_keys_stay_within_memory() {
    const MOST: usize = 64 << 20;
    let servers: Vec<Memcached> = (0..2).map(|_| Memcached::start()).collect();
    let names: Vec<&str> = servers.iter().map(|s| s.name.as_str()).collect();
    let options = ["-m", "8m", "--timeout", "8000"];
    let magent = Magent::farm(&names[..1], &names[1..], &options);
    let mut clients: Vec<Client> = (0..3).map(|_| magent.client()).collect();
    for (i, client) in clients.iter_mut().enumerate() {
        let keys: String = (0..120_000).map(|n| format!(" {i}{n:05x}")).collect();
        client.send(format!("get{keys}\r\n"));
    }
    for client in &mut clients {
        let line = client.read_line();
        assert!(line == b"END\r\n" || line.starts_with(b"SERVER_ERROR out of memory"));
    }
    let peak = magent.memory("VmHWM");
    assert!(peak < MOST, "{peak} bytes");
    wait_for("nothing in flight", || {
        (magent.stat("bytes_in_flight") == 0).then_some(())
    });
}
