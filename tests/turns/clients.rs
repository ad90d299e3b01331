//! What clients can make large.

use super::common::{Client, Fake, FakeLink, Magent, Memcached, raise_descriptors, wait_for};
use super::{MOST_US, assert_short_turns, longest_line, memcacheds, names};
use std::sync::{Mutex, PoisonError};
use std::thread;

/// Room for what a load is about: nothing of it is refused for want of memory or time.
const ROOMY: [&str; 4] = ["-m", "1g", "--timeout", "20000"];

/// Who opens so many connections that a process may not have twice as many.
static DESCRIPTORS: Mutex<()> = Mutex::new(());

/// The answer to a get of absent keys.
#[track_caller]
fn expect_misses(client: &mut Client) {
    let line = client.read_line();
    let is_known = line == b"END\r\n" || line.starts_with(b"SERVER_ERROR out of memory");
    assert!(is_known, "{}", line.escape_ascii());
}

/// As many keys as a line may hold, all of which are there.
#[test]
fn a_get_line_of_a_megabyte() {
    let servers = memcacheds(4);
    let magent = Magent::farm(&names(&servers), &[], &ROOMY);
    let keys: Vec<String> = (10..100).map(|i| i.to_string()).collect();
    let mut client = magent.client();
    for key in &keys {
        client.set(key, "v");
    }
    let rounds = ((1 << 20) - 10) / 3 / keys.len();
    let values: String = keys
        .iter()
        .map(|k| format!("VALUE {k} 0 1\r\nv\r\n"))
        .collect();
    let line = format!("get {}\r\n", vec![keys.join(" "); rounds].join(" "));
    assert_short_turns(&magent, || {
        let all = client.send(line).read_exact(values.len() * rounds + 5);
        assert!(all.ends_with(b"\r\nEND\r\n"));
    });
}

/// Each key is a fetch of its own.
#[test]
fn a_get_line_of_a_megabyte_at_warming_servers() {
    let servers = memcacheds(3);
    let names = names(&servers);
    let magent = Magent::farm(&names[..2], &names[2..], &ROOMY);
    let mut clients = [magent.client(), magent.client()];
    assert_short_turns(&magent, || {
        let line = longest_line();
        for client in &mut clients {
            client.send(&line);
        }
        clients.iter_mut().for_each(expect_misses);
    });
}

/// Fetches under way, all of which a flush drops; and flushes by the thousand.
#[test]
fn a_flush_of_all_in_the_middle_of_much() {
    let servers = memcacheds(2);
    let names = names(&servers);
    let magent = Magent::farm(&names[..1], &names[1..], &ROOMY);
    let (mut reader, mut flusher) = (magent.client(), magent.client());
    flusher.ask("get a\r\n", "END\r\n");
    assert_short_turns(&magent, || {
        servers[1].stop();
        reader.send(longest_line());
        wait_for("the backup to be asked much", || {
            let server = magent.server(names[1]);
            let in_flight: usize = server["in_flight"].parse().expect("a number");
            (in_flight > 1000).then_some(())
        });
        flusher.send("flush_all\r\n");
        servers[1].cont();
        flusher.expect("OK\r\n");
        expect_misses(&mut reader);
        flusher.send("flush_all\r\n".repeat(2000));
        flusher.expect("OK\r\n".repeat(2000));
    });
}

fn send_each(clients: &mut [Client], request: &str) {
    for client in clients {
        client.send(request);
    }
}

/// They are there at once, ask at once and leave at once.
#[test]
fn ten_thousand_clients_that_come_and_leave_together() {
    const CLIENTS: usize = 10_000;
    let _descriptors = DESCRIPTORS.lock().unwrap_or_else(PoisonError::into_inner);
    raise_descriptors(CLIENTS as u64 + 1000);
    let server = Memcached::start();
    let magent = Magent::farm(&[&server.name], &[], &["-n", "12000"]);
    assert_short_turns(&magent, || {
        let mut all: Vec<Client> = (0..CLIENTS).map(|_| magent.client()).collect();
        magent.while_stopped(|| send_each(&mut all, "get absent\r\n"));
        for client in &mut all {
            client.expect("END\r\n");
        }
        magent.while_stopped(|| {
            send_each(&mut all, "get absent\r\n");
            drop(all);
        });
        wait_for("them to be gone", || {
            (magent.stat("curr_connections") < 10).then_some(())
        });
    });
}

/// They are listed, and killed one after the other.
#[test]
fn ten_thousand_clients_that_an_operator_looks_at() {
    const CLIENTS: usize = 10_000;
    let _descriptors = DESCRIPTORS.lock().unwrap_or_else(PoisonError::into_inner);
    raise_descriptors(CLIENTS as u64 + 1000);
    let server = Memcached::start();
    let options = ["-n", "12000", "--admin", "DIR/admin"];
    let magent = Magent::farm(&[&server.name], &[], &options);
    let all: Vec<Client> = (0..CLIENTS).map(|_| magent.client()).collect();
    wait_for("them", || {
        (magent.stat("curr_connections") > CLIENTS as u64).then_some(())
    });
    assert_short_turns(&magent, || {
        let mut operators: Vec<Client> = (0..4).map(|_| magent.operator()).collect();
        for operator in &mut operators {
            operator.send(
                "clients
"
                .repeat(3),
            );
        }
        for operator in &mut operators {
            for _ in 0..3 {
                let list = operator.read_until(b"\r\nEND\r\n");
                let lines = list.iter().filter(|b| **b == b'\n').count();
                assert!(lines > CLIENTS, "{lines} lines");
            }
        }
        let operator = &mut operators[0];
        let kills: String = (0..CLIENTS).map(|n| format!("kill {n}\n")).collect();
        let sender = operator.send_aside(kills.into_bytes());
        (0..CLIENTS).for_each(|_| drop(operator.read_line()));
        sender.join().expect("it is read");
    });
    drop(all);
}

/// A hundred clients take nothing, and then all that there is at once.
#[test]
fn a_backlog_of_900_megabytes_that_is_taken_at_once() {
    const CLIENTS: usize = 100;
    const VALUES: usize = 15;
    const LARGE: usize = 1_000_000;
    let server = Memcached::start();
    let magent = Magent::farm(&[&server.name], &[], &["-m", "2g", "--timeout", "60000"]);
    server.client().set("large", vec![b'v'; LARGE]);
    let mut readers: Vec<Client> = (0..CLIENTS).map(|_| magent.client()).collect();
    assert_short_turns(&magent, || {
        for reader in &mut readers {
            reader.send(format!("get{}\r\n", " large".repeat(VALUES)));
        }
        wait_for("a backlog", || {
            (magent.stat("bytes_in_flight") >= 900_000_000).then_some(())
        });
        // What the kernel holds goes while magent can't see it: then all have room together.
        let parts = magent.while_stopped(|| take_together(readers, Client::take_now));
        let value = "VALUE large 0 1000000\r\n\r\n".len() + LARGE;
        let answer = VALUES * value + "END\r\n".len();
        let all = take_together(parts, |(mut reader, taken)| {
            reader.skip_exact(answer - taken);
        });
        assert_eq!(all.len(), CLIENTS);
    });
}

/// Does something to each of many, in a few threads.
fn take_together<T: Send, U: Send>(all: Vec<T>, take: impl Fn(T) -> U + Sync) -> Vec<U> {
    let mut parts: Vec<Vec<T>> = (0..4).map(|_| Vec::new()).collect();
    for (i, one) in all.into_iter().enumerate() {
        parts[i % 4].push(one);
    }
    thread::scope(|scope| {
        let run = |part: Vec<T>| scope.spawn(|| part.into_iter().map(&take).collect::<Vec<U>>());
        let threads: Vec<_> = parts.into_iter().map(run).collect();
        let joined = threads.into_iter().map(|t| t.join().expect("it ends"));
        joined.flatten().collect()
    })
}

/// Half-sent values of thousands, in memory for a few hundred, that go on a byte at a time.
#[test]
fn thousands_of_writers_while_memory_is_short() {
    const WRITERS: usize = 4000;
    raise_descriptors(WRITERS as u64 + 1000);
    let server = Memcached::start();
    let magent = Magent::farm(&[&server.name], &[], &["-m", "8m", "-n", "5000"]);
    let half = format!("set k 0 0 100000\r\n{}", "v".repeat(15_000));
    assert_short_turns(&magent, || {
        let mut writers: Vec<Client> = (0..WRITERS).map(|_| magent.client()).collect();
        for bytes in [half.as_bytes(), b"v", b"v", b"v"] {
            magent.while_stopped(|| {
                for writer in &mut writers {
                    let _ = writer.try_send(bytes);
                }
            });
            // A turn that sees all of them, and the next.
            magent.client().ask("mn\r\n", "MN\r\n");
        }
    });
}

/// Answers that are long and cost nothing to ask for.
#[test]
fn floods_of_stats() {
    let crowd = Fake::crowd(|_| b"END\r\n".to_vec());
    let servers: Vec<String> = (1..=64)
        .map(|i| format!("127.0.0.{i}:{}", crowd.port))
        .collect();
    let servers: Vec<&str> = servers.iter().map(String::as_str).collect();
    let magent = Magent::farm(&servers, &[], &[]);
    for what in ["", " servers", " proxy", " settings", " route k"] {
        let line = format!("stats{what}\r\n");
        let mut clients: Vec<Client> = (0..20).map(|_| magent.client()).collect();
        assert_short_turns(&magent, || {
            let flood = line.repeat(200);
            for client in &mut clients {
                client.send(&flood);
            }
            // One of them is served to the end, the others leave in the middle.
            let reader = &mut clients[0];
            (0..200).for_each(|_| drop(reader.read_until(b"END\r\n")));
            drop(clients);
        });
    }
}

/// A reset forgets how long turns took, but for the one that it is in: of each flood the last turn is seen.
/// All of a flood would be in one, if nothing bounded that.
#[test]
fn floods_of_resets() {
    const CLIENTS: usize = 40;
    let crowd = Fake::crowd(|_| b"END\r\n".to_vec());
    let servers: Vec<String> = (1..=64)
        .map(|i| format!("127.0.0.{i}:{}", crowd.port))
        .collect();
    let servers: Vec<&str> = servers.iter().map(String::as_str).collect();
    let magent = Magent::farm(&servers, &[], &[]);
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| magent.client()).collect();
    assert_short_turns(&magent, || {
        for requests in 1..=20 {
            let flood = "stats reset\r\n".repeat(requests);
            magent.while_stopped(|| send_each(&mut clients, &flood));
            for client in &mut clients {
                client.expect("RESET\r\n".repeat(requests));
            }
            let longest = magent.stat("longest_turn_us");
            assert!(longest <= MOST_US, "{requests} of each: {longest} µs");
        }
    });
}

/// Half a million lines that are answered at once.
#[test]
fn floods_of_nonsense() {
    let hung = Fake::start(FakeLink::silence);
    let magent = Magent::farm(&[&hung.name], &[], &[]);
    assert_short_turns(&magent, || {
        for line in ["x\n", "version\r\n", "mn\r\n", "get\r\n"] {
            let mut client = magent.client();
            let sender = client.send_aside((line.repeat(100_000) + "quit\r\n").into_bytes());
            client.read_to_end();
            sender.join().expect("it is read");
        }
    });
}
