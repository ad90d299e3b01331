//! What servers and operators can make large.

use super::common::{Client, Fake, FakeLink, Gate, Magent, Memcached, wait_for};
use super::{assert_short_turns, names};

/// Keys that a server misses.
const KEYS: usize = 1_000_000;

/// Two servers with room for all of them: one that is full refuses some writes.
fn roomy() -> Vec<Memcached> {
    (0..2).map(|_| Memcached::with(&["-m", "512"])).collect()
}

/// Writes each of [`KEYS`] once.
fn write_all(magent: &Magent) {
    let mut client = magent.client();
    for from in (0..KEYS).step_by(50_000) {
        let sets = (from..from + 50_000).map(|i| format!("set k{i} 0 0 1\r\nv\r\n"));
        let sender = client.send_aside(sets.collect::<String>().into_bytes());
        client.expect("STORED\r\n".repeat(50_000));
        sender.join().expect("magent takes it");
    }
}

fn journal_keys(magent: &Magent, server: &str) -> usize {
    let fields = magent.server(server);
    fields["journal_keys"].parse().expect("a number")
}

#[track_caller]
fn wait_told(magent: &Magent, server: &str) {
    wait_for("all to be told", || {
        let is_up = magent.server(server)["state"] == "up";
        (is_up && journal_keys(magent, server) == 0).then_some(())
    });
}

const JOURNAL: [&str; 4] = ["--journal", "256m", "--timeout", "20000"];

/// A backup that was away and returns: a million keys to be told.
#[test]
fn a_journal_of_a_million_keys() {
    let mut servers = roomy();
    let backup = servers[1].name.clone();
    let magent = Magent::farm(&[&servers[0].name], &[&backup], &JOURNAL);
    magent.client().set("a", "b");
    servers[1].kill();
    magent.wait_state(&backup, "down");
    assert_short_turns(&magent, || {
        write_all(&magent);
        let journaled = journal_keys(&magent, &backup);
        assert!(journaled >= KEYS, "{journaled} keys in the journal");
        servers[1].restart();
        wait_told(&magent, &backup);
    });
}

/// One that only stalled: all of it is sent on the link as it goes on.
#[test]
fn a_journal_of_a_million_keys_after_a_stall() {
    let servers = roomy();
    let names = names(&servers);
    let magent = Magent::farm(&names[..1], &names[1..], &JOURNAL);
    magent.client().set("a", "b");
    servers[1].wait_value("a", Some(b"b"));
    assert_short_turns(&magent, || {
        servers[1].stop();
        write_all(&magent);
        let journaled = journal_keys(&magent, names[1]);
        assert!(
            journaled >= KEYS * 9 / 10,
            "{journaled} keys in the journal"
        );
        servers[1].cont();
        wait_told(&magent, names[1]);
    });
}

/// Pools of 64 servers each; their rings change with `weight`.
fn pools(port: u16, weight: usize) -> String {
    let pool = |p: usize| {
        let listen = match p {
            0 => "127.0.0.1:PORT".to_string(),
            _ => format!("DIR/s{p}"),
        };
        let servers: String = (1..=64)
            .map(|i| (i, 1 + (i * weight + p) % 5))
            .map(|(i, w)| format!("  - 127.0.0.{i}:{port}:{w} s{i}\n"))
            .collect();
        // The last reload moves keys; before it they are missed, so that there may be another one.
        let warm = if weight == 4 { 3600 } else { 0 };
        format!("pool{p}:\n  listen: {listen}\n  warm: {warm}\n  servers:\n{servers}")
    };
    (0..16).map(pool).collect()
}

#[test]
fn a_reload_with_64_servers() {
    let crowd = Fake::crowd(|_| b"END\r\n".to_vec());
    let magent = Magent::with_file(&pools(crowd.port, 1));
    let mut clients: Vec<Client> = (0..500).map(|_| magent.client()).collect();
    for (i, client) in clients.iter_mut().enumerate() {
        client.ask(format!("get k{i}\r\n"), "END\r\n");
    }
    assert_short_turns(&magent, || {
        for weight in 2..5 {
            for (i, client) in clients.iter_mut().enumerate() {
                client.send(format!("get k{i}\r\n").repeat(20));
            }
            assert!(magent.reload(&pools(crowd.port, weight)));
            for client in &mut clients {
                client.expect("END\r\n".repeat(20));
            }
        }
    });
}

/// As much in flight as a server may owe.
fn crowd(magent: &Magent, server: &str) -> Vec<Client> {
    let mut all: Vec<Client> = (0..64).map(|_| magent.old_client()).collect();
    for client in &mut all {
        client.send("get k\r\n".repeat(1024));
    }
    wait_for("all to be in flight", || {
        let in_flight = &magent.server(server)["in_flight"];
        (in_flight.parse::<usize>().expect("a number") >= 64_000).then_some(())
    });
    all
}

#[test]
fn a_server_that_dies_with_64_thousand_requests_in_flight() {
    let (gate, dies) = Gate::new();
    // Nothing is answered, and then the link is closed.
    let fake = Fake::start(move |link| link.wait_open(&dies));
    let backup = Memcached::start();
    let options = ["--timeout", "20000"];
    let magent = Magent::farm(&[&fake.name], &[&backup.name], &options);
    assert_short_turns(&magent, || {
        let mut clients = crowd(&magent, &fake.name);
        gate.open();
        for client in &mut clients {
            client.expect("END\r\n".repeat(1024));
        }
    });
}

#[test]
fn answers_that_are_late_by_the_thousand() {
    let fake = Fake::start(FakeLink::silence);
    // It is not known to be silent before it is asked.
    let options = ["--timeout", "700", "--probe", "0"];
    let magent = Magent::farm(&[&fake.name], &[], &options);
    assert_short_turns(&magent, || {
        let mut clients = crowd(&magent, &fake.name);
        for client in &mut clients {
            for _ in 0..1024 {
                let line = client.read_line();
                assert!(line.starts_with(b"SERVER_ERROR"), "{}", line.escape_ascii());
            }
        }
    });
}

/// Servers that make up names and keys, as many as they are listened to.
#[test]
fn long_answers_to_monitors() {
    let fakes: Vec<Fake> = (0..16)
        .map(|server| {
            let names = (0..5_000).map(|i| format!("STAT items:{}:n{server}x{i} 1\r\n", i % 64));
            let names = names.collect::<String>() + "END\r\n";
            let keys = (0..18_000).map(|i| format!("ITEM {server}x{i:090} [1 b; 0 s]\r\n"));
            let keys = keys.collect::<String>() + "END\r\n";
            Fake::answering(
                move |request| match request.starts_with(b"stats cachedump") {
                    true => keys.clone().into_bytes(),
                    false => names.clone().into_bytes(),
                },
            )
        })
        .collect();
    let primaries: Vec<&str> = fakes.iter().map(|f| f.name.as_str()).collect();
    let magent = Magent::farm(&primaries, &[], &["--timeout", "20000"]);
    assert_short_turns(&magent, || {
        let mut client = magent.client();
        for request in ["items", "cachedump 1 0", "slabs", "cachedump 1 0"] {
            let answer = client.send(format!("stats {request}\r\n"));
            let lines = answer.read_until(b"\r\nEND\r\n");
            let lines = lines.iter().filter(|b| **b == b'\n').count();
            assert!(lines > 8_000, "{request}: {lines}");
        }
    });
}
