//! Attacks on the door, none of which a client may feel, and of each of which there is an end.

use super::common::{Client, Fake, Magent, Memcached, Probe, raise_descriptors, wait_for};
use super::{DOOR, clients, with_door};
use std::os::unix::net::UnixStream;

/// Asks for what costs something until it is done, beside a client that must not feel it.
#[track_caller]
fn undisturbed(magent: &Magent, attack: impl FnOnce()) {
    let probe = Probe::start(magent.port, "mn\r\n", "MN\r\n");
    attack();
    let seen = probe.end();
    println!("a client got {seen}");
    assert!(seen.count() > 0);
    let longest = magent.stat("longest_turn_us");
    assert!(longest <= 10_000, "a turn took {longest} µs");
}

#[test]
fn the_door_is_open_when_there_is_no_place_for_clients() {
    let magent = with_door(&["-n", "2"]);
    // Whoever looked whether it listens may hold a place for a moment.
    let admitted = || {
        wait_for("a place", || {
            let mut client = magent.client();
            (client.ask_line("mn\r\n") == "MN").then_some(client)
        })
    };
    let held = [admitted(), admitted()];
    let refused = magent.client().ask_line("mn\r\n");
    assert_eq!(refused, "SERVER_ERROR OUT OF CONNECTION");
    let mut operator = magent.operator();
    let all = clients(&mut operator);
    assert_eq!(all.len(), 2);
    operator.ask(format!("kill {}\n", all[0][0]), "OK\r\n");
    admitted();
    drop(held);
}

/// Those that ask nothing make room for those that do.
#[test]
fn a_thousand_sessions_keep_nobody_out() {
    raise_descriptors(2000);
    let magent = with_door(&[]);
    let mut operator = magent.operator();
    operator.ask("nonsense\n", "ERROR nonsense\r\n");
    let path = magent.dir().join("admin");
    undisturbed(&magent, || {
        let mut crowd = Vec::new();
        for n in 0..1000 {
            crowd.push(UnixStream::connect(&path).expect("a connection"));
            if n % 100 == 0 {
                let mut other = magent.operator();
                other.ask("nonsense\n", "ERROR nonsense\r\n");
            }
        }
        operator.ask("nonsense\n", "ERROR nonsense\r\n");
        magent.operator().ask("nonsense\n", "ERROR nonsense\r\n");
    });
}

#[test]
fn lines_without_end_and_garbage_are_refused() {
    let magent = with_door(&[]);
    undisturbed(&magent, || {
        let mut client = magent.operator();
        client.send("x".repeat(4096));
        assert_eq!(client.read_to_end(), b"ERROR line too long\r\n");
        // A line that just fits is one.
        let mut client = magent.operator();
        let word = "x".repeat(4095);
        client.ask(format!("{word}\n"), format!("ERROR {word}\r\n"));
        // Whatever comes, it ends or is answered.
        let mut client = magent.operator();
        let garbage: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
        let _ = client.try_send(&garbage);
        let _ = client.half_close().read_to_end();
    });
    magent.operator().ask("nonsense\n", "ERROR nonsense\r\n");
}

/// Thousands of requests at once, from one who reads and from those who don't.
#[test]
fn floods_are_answered_in_pieces() {
    let crowd = Fake::crowd(|_| b"END\r\n".to_vec());
    let servers: Vec<String> = (1..=64)
        .map(|i| format!("127.0.0.{i}:{}", crowd.port))
        .collect();
    let servers: Vec<&str> = servers.iter().map(String::as_str).collect();
    let magent = Magent::farm(&servers, &[], &DOOR);
    undisturbed(&magent, || {
        for line in [
            "stats servers",
            "stats proxy",
            "stats",
            "config",
            "clients",
            "help",
            "nonsense",
        ] {
            let flood = format!("{line}\n").repeat(300);
            let mut deaf: Vec<Client> = (0..5).map(|_| magent.operator()).collect();
            for session in &mut deaf {
                session.send_aside(flood.clone().into_bytes());
            }
            let mut reader = magent.operator();
            let sender = reader.send_aside((flood + "quit\n").into_bytes());
            let all = reader.read_to_end();
            sender.join().expect("it is read");
            assert!(all.len() > 300 * 10, "{line}: {} bytes", all.len());
        }
    });
}

/// An answer that nobody takes is not made further.
#[test]
fn who_does_not_read_holds_little() {
    let server = Memcached::start();
    let magent = Magent::farm(&[&server.name], &[], &DOOR);
    let before = magent.memory("VmRSS");
    let mut deaf: Vec<Client> = (0..20).map(|_| magent.operator()).collect();
    for session in &mut deaf {
        session.send("stats settings\n".repeat(250));
    }
    // Each of them was served, and then this one.
    let mut operator = magent.operator();
    for _ in 0..50 {
        operator.stats("stats proxy\n");
    }
    let held = magent.memory("VmRSS").saturating_sub(before);
    assert!(held < 16 << 20, "{held} bytes");
}
