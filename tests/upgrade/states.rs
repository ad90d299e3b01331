//! Clients in the middle of whatever they do.

use super::common::{Client, noise, raise_descriptors, wait_for};
use super::{Farm, pauses};

/// A request, cut anywhere, and its answer: half of it comes before the change, half after it.
const HALVES: &[(&str, &str, &str)] = &[
    ("ge", "t a\r\n", "VALUE a 0 1\r\n1\r\nEND\r\n"),
    ("get a b", " c\r\n", "VALUE a 0 1\r\n1\r\nEND\r\n"),
    ("set h 0 0 5\r\nab", "cde\r\n", "STORED\r\n"),
    ("set h 0 0 5\r\nabcde\r", "\n", "STORED\r\n"),
    ("set h 0 0 5 noreply\r\nab", "cde\r\nmn\r\n", "MN\r\n"),
    ("ms h 3 Oxyz k\r\na", "bc\r\n", "HD Oxyz kh\r\n"),
    ("mg a v Ox", "yz\r\n", "VA 1 Oxyz\r\n1\r\n"),
    // Malformed, and too large: swallowed.
    (
        "set h 0 0 3\r\na",
        "bcd\r\n",
        "CLIENT_ERROR bad data chunk\r\nERROR\r\n",
    ),
    ("\u{80}\u{0}", "", ""),
];

fn read_with(farm: &Farm) -> Client {
    let mut client = farm.magent.client();
    client.set("a", "1");
    client
}

#[test]
fn half_sent_requests_go_on() {
    let farm = Farm::new(2, 1, &[]);
    read_with(&farm);
    let mut clients: Vec<Client> = HALVES.iter().map(|_| farm.magent.old_client()).collect();
    for _ in 0..2 {
        for (client, (first, ..)) in clients.iter_mut().zip(HALVES) {
            client.send(first);
        }
        farm.change();
        for (client, (_, second, answer)) in clients.iter_mut().zip(HALVES) {
            client.send(second).expect(answer);
        }
        // The binary one has no end; it begins anew.
        clients.pop();
        clients.push(farm.magent.old_client());
    }
}

#[test]
fn large_values_go_on_wherever_they_are_cut() {
    let farm = Farm::new(2, 1, &["-m", "64m"]);
    let value = noise(1_000_000);
    let head = format!("set big 0 0 {}\r\n", value.len());
    let mut sending = farm.magent.client();
    let too_large = 3_000_000;
    let mut swallowed = farm.magent.client();
    sending.send(&head).send(&value[..300_000]);
    swallowed.send(format!("set huge 0 0 {too_large}\r\n"));
    swallowed.send(vec![b'x'; too_large / 2]);
    farm.change();
    sending.send(&value[300_000..700_000]);
    farm.change();
    sending
        .send(&value[700_000..])
        .send("\r\n")
        .expect("STORED\r\n");
    swallowed
        .send(vec![b'x'; too_large - too_large / 2])
        .send("\r\n");
    swallowed.expect("SERVER_ERROR object too large for cache\r\n");
    swallowed.ask("mn\r\n", "MN\r\n");
    assert_eq!(farm.magent.client().get("big").as_deref(), Some(&value[..]));
    wait_for("the copy", || {
        farm.backups[0].value("big").filter(|v| *v == value)
    });

    // One that takes nothing of what it is owed, and asks on.
    let mut slow = Client::narrow(farm.magent.port);
    slow.send("get big\r\n".repeat(5)).send("mn\r\n");
    wait_for("answers that wait", || {
        (farm.magent.stat("bytes_in_flight") > 1_000_000).then_some(())
    });
    farm.change();
    slow.read_exact(10_000);
    farm.change();
    let answer = [
        format!("VALUE big 0 {}\r\n", value.len()).as_bytes(),
        &value,
        b"\r\nEND\r\n",
    ]
    .concat();
    let rest = [&answer.repeat(5)[10_000..], b"MN\r\n"].concat();
    assert!(
        slow.read_exact(rest.len()) == rest,
        "the rest of the answers"
    );
    wait_for("nothing to be in flight", || {
        (farm.magent.stat("bytes_in_flight") < 1000).then_some(())
    });
}

#[test]
fn a_get_in_portions_is_complete_and_a_flush_behind_it_waits() {
    const KEYS: usize = 60;
    let farm = Farm::new(2, 0, &["-m", "8m", "-I", "1m"]);
    let mut client = farm.magent.client();
    let value = |n: usize| vec![b'a' + (n % 26) as u8; 200_000];
    for n in 0..KEYS {
        client.set(&format!("k{n}"), value(n));
    }
    let names: Vec<String> = (0..KEYS).map(|n| format!("k{n}")).collect();
    let mut slow = Client::narrow(farm.magent.port);
    slow.send(format!(
        "get {} absent\r\nflush_all\r\nget k1\r\n",
        names.join(" ")
    ));
    slow.read_exact(1);
    for n in 0..KEYS {
        if n % 15 == 0 {
            farm.change();
        }
        let line = format!("VALUE k{n} 0 200000\r\n");
        let skip = usize::from(n == 0);
        slow.expect(&line[skip..]);
        assert!(slow.read_exact(200_000) == value(n), "value {n}");
        slow.expect("\r\n");
    }
    slow.expect("END\r\nOK\r\nEND\r\n");
}

#[test]
fn ten_thousand_idle_clients_stay() {
    const IDLE: usize = 10_000;
    raise_descriptors(IDLE as u64 + 500);
    let farm = Farm::new(1, 0, &["-n", "10100"]);
    read_with(&farm);
    let mut clients: Vec<Client> = (0..IDLE)
        .map(|n| match n % 2 {
            0 => farm.magent.client(),
            _ => Client::unix(&farm.magent.socket()),
        })
        .collect();
    for client in &mut clients {
        client.ask("mn\r\n", "MN\r\n");
    }
    let before = farm.magent.client().stats("stats proxy\r\n");
    for _ in 0..3 {
        farm.change();
        for client in clients.iter_mut().step_by(7) {
            client.ask("get a\r\n", "VALUE a 0 1\r\n1\r\nEND\r\n");
        }
    }
    for client in &mut clients {
        client.ask("get a\r\n", "VALUE a 0 1\r\n1\r\nEND\r\n");
    }
    let after = farm.magent.client().stats("stats proxy\r\n");
    assert_eq!(before["curr_connections"], after["curr_connections"]);
    for name in ["pid", "limit_accept_paused"] {
        assert_eq!(before[name], after[name], "{name}");
    }
    let uptime = |stats: &std::collections::BTreeMap<String, String>| {
        stats["uptime"].parse::<u64>().unwrap()
    };
    assert!(uptime(&after) >= uptime(&before));
    println!(
        "pauses with {IDLE} clients: {:?} ms",
        pauses(&farm.magent.log())
    );
    // Of a program that is not optimized, on a machine that does other things.
    assert!(pauses(&farm.magent.log()).iter().all(|ms| *ms < 500.0));
}

#[test]
fn clients_that_come_or_go_meanwhile_are_neither_refused_nor_kept() {
    let farm = Farm::new(1, 0, &[]);
    let mut stays = read_with(&farm);
    let left = farm.magent.client();
    let half_closed = &mut farm.magent.client();
    half_closed.send("get a\r\n").half_close();
    drop(left);
    farm.magent.replace_program(super::ANOTHER);
    let port = farm.magent.port;
    let coming = std::thread::spawn(move || {
        for _ in 0..300 {
            Client::tcp(port).ask("get a\r\n", "VALUE a 0 1\r\n1\r\nEND\r\n");
        }
    });
    for _ in 0..3 {
        farm.change();
    }
    coming.join().expect("nobody is refused");
    half_closed.expect("VALUE a 0 1\r\n1\r\nEND\r\n");
    half_closed.read_to_end();
    stays.ask("get a\r\n", "VALUE a 0 1\r\n1\r\nEND\r\n");
    wait_for("those that left to be gone", || {
        (farm.magent.stat("curr_connections") == 2).then_some(())
    });
}
