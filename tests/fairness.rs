//! What one client or one server does, others do not suffer for it. Where the kernel takes part, a well-behaved client is compared with one that a bare
//! memcached serves under the same abuse at the same time.

mod common;
#[path = "fairness/leaving.rs"]
mod leaving;

use common::keys::key_on;
use common::probe::assert_fair;
use common::world::State;
use common::{Client, Fake, FakeLink, Gate, Latencies, Magent, Memcached, Probe, World, wait_for};
use std::time::{Duration, Instant};

/// How long a client is looked at.
const WINDOW: Duration = Duration::from_millis(1500);

/// No timeouts, since time is not what the tests on the core are about.
const PATIENT: [&str; 4] = ["--timeout", "86400000", "--connect-timeout", "86400000"];

const SMALL: &str = "get small\r\n";
const SMALL_ANSWER: &str = "VALUE small 0 5\r\nvvvvv\r\nEND\r\n";

/// A megabyte that magent and memcached take by default.
const LARGE: usize = 1_000_000;

/// What a probe sees through magent and at a bare memcached while as many `clients` of both do
/// what `abuse` says.
fn under(
    options: &[&str],
    clients: usize,
    abuse: impl Fn(usize, &mut Client),
) -> (Latencies, Latencies) {
    let server = || Memcached::with(&["-c", "6000"]);
    let (server, bare) = (server(), server());
    let magent = Magent::farm(&[&server.name], &[], &[options, &["-n", "6000"]].concat());
    for memcached in [&server, &bare] {
        let mut client = memcached.client();
        client.set("small", "vvvvv").set("large", vec![b'v'; LARGE]);
    }
    magent.client().ask(SMALL, SMALL_ANSWER);
    // That values may be large is known: how much may be asked for at once depends on it.
    let large = format!("VALUE large 0 {LARGE}\r\n{}\r\nEND\r\n", "v".repeat(LARGE));
    magent.client().ask("get large\r\n", large);
    let ports = [magent.port, bare.port];
    let connect = |port| (0..clients).map(move |_| Client::narrow(port));
    let mut crowds = ports.map(|port| connect(port).collect::<Vec<Client>>());
    let probes = ports.map(|p| Probe::start(p, SMALL, SMALL_ANSWER));
    for crowd in &mut crowds {
        crowd.iter_mut().enumerate().for_each(|(i, c)| abuse(i, c));
    }
    Probe::both_for(WINDOW, probes)
}

/// They hold what they may; that is nothing to the others.
#[test]
fn clients_that_ask_for_much_and_read_nothing_slow_nobody() {
    let gets = [
        format!("get{}\r\n", " large".repeat(100)),
        "get large\r\n".repeat(100),
    ];
    let abuse = |i: usize, client: &mut Client| {
        client.send(&gets[i % 2]);
    };
    assert_fair(|| under(&[], 12, abuse));
}

#[test]
fn thousands_of_half_sent_values_slow_nobody() {
    common::raise_descriptors(12_000);
    let half = format!("set k 0 0 100000\r\n{}", "v".repeat(15_000));
    // Refused or not, it is theirs to see.
    let abuse = |_, client: &mut Client| {
        let _ = client.try_send(half.as_bytes());
    };
    assert_fair(|| under(&["-m", "8m"], 4000, abuse));
}

/// Whoever holds little is served at once, however many hold what they may: on the core, where
/// nothing depends on the machine.
#[test]
fn who_holds_little_never_waits_for_who_holds_much() {
    for greedy in [12, 100, 300] {
        let options = ["-s", "127.0.0.1:1", "-m", "8m"];
        let mut core = World::new(&[&options[..], &PATIENT].concat());
        let holders: Vec<_> = (0..greedy).map(|_| core.client().narrow(100)).collect();
        // A megabyte for each, in one request and in ten.
        let gets = [
            format!("get{}\r\n", " k100000".repeat(10)),
            "get k100000\r\n".repeat(10),
        ];
        for (i, peer) in holders.iter().enumerate() {
            core.send(peer, &gets[i % 2]);
        }
        core.step();
        let (old, new) = (core.client(), core.client());
        for peer in [&old, &new, &old] {
            let answer = core.ask(peer, "get k5\r\n");
            assert_eq!(
                answer, "VALUE k5 0 5\r\nvvvvv\r\nEND\r\n",
                "beside {greedy}"
            );
            let answer = core.ask(peer, "set k5 0 0 5\r\nvvvvv\r\n");
            assert_eq!(answer, "STORED\r\n", "beside {greedy}");
        }
        let held = core.stat("bytes_in_flight");
        assert!(held <= 8 << 20, "{held} beside {greedy}");
    }
}

/// Two servers; the first hangs, and as much is in flight there as may be.
fn full_and_healthy() -> World {
    let two = ["-s", "127.0.0.1:1", "-s", "127.0.0.1:2", "-m", "1g"];
    let mut core = World::new(&[&two[..], &PATIENT].concat());
    core.become_state(1, State::Silent);
    let key = key_on(0, 2, "k1.", 0);
    for _ in 0..64 {
        let peer = core.old_client();
        core.send(&peer, format!("get {key}\r\n").repeat(1024));
    }
    core.step();
    assert_eq!(core.requests(1), 64 * 1024);
    core
}

#[test]
fn a_get_of_several_keys_waits_only_for_the_servers_that_it_asks() {
    let mut core = full_and_healthy();
    let (one, other) = (key_on(1, 2, "k1.", 0), key_on(1, 2, "k1.", 1));
    let client = core.client();
    let both = format!("VALUE {one} 0 1\r\nv\r\nVALUE {other} 0 1\r\nv\r\nEND\r\n");
    for _ in 0..3 {
        let answer = core.ask(&client, format!("get {one} {other}\r\n"));
        assert_eq!(answer, both);
    }
    assert_eq!(core.stat("limit_server_paused"), 0);
}

/// The same with sockets: gets of two keys at a memcached, beside a server that reads everything
/// and answers nothing.
#[test]
fn a_hung_server_with_all_it_may_owe_does_not_slow_gets_of_several_keys_elsewhere() {
    let measure = || {
        let hung = Fake::start(FakeLink::silence);
        let (server, bare) = (Memcached::start(), Memcached::start());
        let options = ["--timeout", "60000"];
        let magent = Magent::farm(&[&hung.name, &server.name], &[], &options);
        let keys = [0, 1].map(|n| key_on(1, 2, "k", n));
        for memcached in [&server, &bare] {
            let mut client = memcached.client();
            for key in &keys {
                client.set(key, "v");
            }
        }
        let get = format!("get {} {}\r\n", keys[0], keys[1]);
        let values = keys.map(|k| format!("VALUE {k} 0 1\r\nv\r\n"));
        let answer = values.concat() + "END\r\n";
        let stuck = format!("get {}\r\n", key_on(0, 2, "k", 0)).repeat(1024);
        let mut crowd: Vec<Client> = (0..66).map(|_| magent.old_client()).collect();
        for client in &mut crowd {
            client.send(&stuck);
        }
        wait_for("the link to be full", || {
            let in_flight = &magent.server(&hung.name)["in_flight"];
            (in_flight.parse::<usize>().expect("a number") >= 64 * 1024).then_some(())
        });
        let probes = [magent.port, bare.port].map(|p| Probe::start(p, &get, &answer));
        Probe::both_for(WINDOW, probes)
    };
    assert_fair(measure);
}

/// Answers the large set before it has read it whole; the rest of it once it may.
fn answers_early(link: &mut FakeLink, large: usize, may_answer: &Gate) {
    link.narrow();
    while let Some(head) = link.head() {
        if !head.starts_with(b"set") {
            link.send("END\r\n");
            continue;
        }
        let part = 1 << 20;
        link.read(part);
        link.wait_open(may_answer);
        link.send("SERVER_ERROR out of memory storing object\r\n");
        if link.read(large + 2 - part).is_none() {
            return;
        }
    }
}

/// Its answer makes no room on the link, the bytes that are written later do: whoever waits for
/// the room must learn of it then.
#[test]
fn who_waits_for_a_full_link_goes_on_when_its_bytes_are_written() {
    const VALUE: usize = 32 << 20;
    let (may_answer, theirs) = Gate::new();
    let fake = Fake::start(move |link| answers_early(link, VALUE, &theirs));
    let options = ["-i", "2", "-I", "64m", "--timeout", "20000"];
    let magent = Magent::farm(&[&fake.name], &[], &options);
    let mut writer = magent.client();
    let value = "v".repeat(VALUE);
    let sender = writer.send_aside(format!("set k 0 0 {VALUE}\r\n{value}\r\n").into_bytes());
    sender.join().expect("magent takes it");
    wait_for("all of it to be in magent", || {
        (magent.stat("bytes_read") > VALUE as u64).then_some(())
    });
    // Some of these keys travel on the link that is full.
    let mut others: Vec<Client> = (0..8).map(|_| magent.client()).collect();
    for (i, client) in others.iter_mut().enumerate() {
        client.send(format!("get k{i}\r\n"));
    }
    wait_for("what they sent to be looked at", || {
        (magent.stat("limit_server_paused") > 0 || fake.count("get") == 8).then_some(())
    });
    may_answer.open();
    writer.expect("SERVER_ERROR out of memory storing object\r\n");
    let began = Instant::now();
    for (i, client) in others.iter_mut().enumerate() {
        client.deadline = Duration::from_secs(4);
        client.send("").expect("END\r\n");
        let took = began.elapsed();
        assert!(took < Duration::from_secs(4), "client {i} waited {took:?}");
    }
}

/// `random` draws for each request, not once for all that come together.
#[test]
fn clients_that_come_together_spread_over_the_servers_of_a_random_pool() {
    let servers = (1..=4).flat_map(|p| ["-s".to_string(), format!("127.0.0.1:{p}")]);
    let servers: Vec<String> = servers.collect();
    let mut options: Vec<&str> = servers.iter().map(String::as_str).collect();
    options.extend(["--distribution", "random"]);
    let mut core = World::new(&options);
    let crowd: Vec<_> = (0..1000).map(|_| core.client()).collect();
    crowd.iter().for_each(|peer| core.send(peer, "get k1\r\n"));
    core.step();
    let asked = [1, 2, 3, 4].map(|port| core.requests(port));
    assert_eq!(asked.iter().sum::<usize>(), 1000);
    assert!(asked.iter().all(|n| (150..=350).contains(n)), "{asked:?}");
}
