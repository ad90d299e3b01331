//! Servers that are configured by their host's name: looked up beside the loop, at whichever of its
//! addresses answers, and followed where it goes (behaviour.md §13). In memory, where the test is name
//! service; then the program, with what every machine's name service knows.

mod common;

use common::world::{State, file, options};
use common::{Client, Magent, Memcached, Peer, World, wait_for};
use socket2::{Domain, Socket, Type};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::time::Duration;

const MS: Duration = Duration::from_millis(1);

/// The server of port 7001 at 127.0.0.1, 127.0.0.2 and ::1.
const HERE: u16 = 7001;
const THERE: u16 = 8001;
const V6: u16 = 7501;

/// One magent before `h:7001`, whose host is looked up as the test says.
fn before(more: &[&str]) -> (World, Peer) {
    let mut all = vec![
        "-s",
        "h:7001",
        "--timeout",
        "200",
        "--connect-timeout",
        "200",
    ];
    if !more.contains(&"--retry") {
        all.extend(["--retry", "50"]);
    }
    all.extend(more);
    let mut world = World::of(options(&all));
    for port in [THERE, V6] {
        world.become_state(port, State::Gone);
    }
    let peer = world.client();
    (world, peer)
}

/// The same, with a backup; the primary is at 127.0.0.1 and both hold `k`.
fn farm(more: &[&str]) -> (World, Peer) {
    let all: Vec<&str> = ["-b", "127.0.0.1:7002"]
        .iter()
        .chain(more)
        .copied()
        .collect();
    let (mut world, peer) = before(&all);
    world.name("h", &["127.0.0.1"]);
    assert_eq!(world.ask(&peer, "set k 0 0 3\r\nold\r\n"), "STORED\r\n");
    (world, peer)
}

fn of(world: &mut World, field: &str) -> String {
    world.stats("stats servers\r\n")[&format!("h:7001:{field}")].clone()
}

fn value(text: &str) -> String {
    format!("VALUE k 0 {}\r\n{text}\r\nEND\r\n", text.len())
}

/// What a client gets within so many milliseconds.
fn within(world: &mut World, peer: &Peer, ms: u32, request: &str) -> String {
    world.send(peer, request);
    world.advance(ms * MS);
    world.take_text(peer)
}

#[test]
fn the_first_request_waits_for_the_lookup() {
    let (mut world, peer) = before(&[]);
    assert_eq!(within(&mut world, &peer, 150, "get k\r\n"), "");
    assert_eq!(of(&mut world, "address"), "unknown");
    // The lookup ends.
    world.name("h", &["127.0.0.1"]);
    let clock = world.clock();
    let found = Ok(vec!["127.0.0.1:0".parse().expect("an address")]);
    world.proxy().resolved("h", &found, clock);
    world.step();
    assert_eq!(world.take_text(&peer), "END\r\n");
    assert_eq!(of(&mut world, "address"), "127.0.0.1:7001");
    assert_eq!(of(&mut world, "restarts"), "0");
}

#[test]
fn a_host_that_is_unknown_at_the_start_is_down_until_it_is_known() {
    let (mut world, peer) = before(&["--resolve", "3600"]);
    world.name("h", &[]);
    world.step();
    assert_eq!(of(&mut world, "state"), "down");
    assert!(of(&mut world, "last_error").ends_with(" unknown host"));
    let told = "SERVER_ERROR h:7001 down\r\n";
    assert_eq!(world.ask(&peer, "get k\r\n"), told);
    world.advance(60_000 * MS);
    assert_eq!(world.ask(&peer, "get k\r\n"), told);
    world.name("h", &["127.0.0.1"]);
    // It is looked up at each probe.
    world.advance(2000 * MS);
    assert_eq!(world.ask(&peer, "get k\r\n"), "END\r\n");
    assert_eq!(of(&mut world, "state"), "up");
}

#[test]
fn where_servers_are_ejected_an_unknown_host_is_known_at_once_when_it_is_found() {
    let (mut world, peer) = before(&["--auto-eject", "--retry", "60000", "-s", "127.0.0.1:7003"]);
    world.name("h", &[]);
    world.step();
    assert_eq!(of(&mut world, "state"), "down");
    world.advance(20_000 * MS);
    world.name("h", &["127.0.0.1"]);
    world.advance(10_100 * MS);
    assert_eq!(of(&mut world, "state"), "up");
    drop(peer);
}

#[test]
fn a_lookup_that_hangs_at_the_start_costs_a_connect_timeout_and_no_more() {
    let (mut world, peer) = before(&["--resolve", "5"]);
    let told = "SERVER_ERROR h:7001 unknown host\r\n";
    assert_eq!(within(&mut world, &peer, 210, "get k\r\n"), told);
    assert_eq!(of(&mut world, "state"), "down");
    world.advance(5000 * MS);
    assert_eq!(of(&mut world, "state"), "down");
    world.name("h", &["127.0.0.1"]);
    world.advance(2000 * MS);
    assert_eq!(world.ask(&peer, "get k\r\n"), "END\r\n");
}

#[test]
fn all_addresses_are_tried_in_turn_before_a_request_fails() {
    let all = ["127.0.0.1", "::1", "127.0.0.2"];
    for (well, address) in [
        (HERE, "127.0.0.1:7001"),
        (THERE, "127.0.0.2:7001"),
        (V6, "[::1]:7001"),
    ] {
        let (mut world, peer) = before(&["-i", "3"]);
        for port in [HERE, THERE, V6] {
            let state = if port == well {
                State::Well
            } else {
                State::Gone
            };
            world.become_state(port, state);
        }
        world.name("h", &all);
        for n in 0..20 {
            assert_eq!(world.ask(&peer, format!("get k{n}\r\n")), "END\r\n");
        }
        assert_eq!(of(&mut world, "address"), address);
        assert_eq!(of(&mut world, "restarts"), "0", "it was nowhere before");
        assert_eq!(of(&mut world, "last_error"), "none");
        assert_eq!(world.open_links(well), 3);
        // And when none is left it is down, with what the last one said.
        world.become_state(well, State::Gone);
        assert_eq!(
            world.ask(&peer, "get k1\r\n"),
            "SERVER_ERROR h:7001 connection refused\r\n"
        );
        world.become_state(well, State::Well);
        world.advance(3000 * MS);
        assert_eq!(world.ask(&peer, "get k1\r\n"), "END\r\n");
    }
}

#[test]
fn an_address_that_refuses_is_left_for_another_of_the_name_at_once() {
    let (mut world, peer) = farm(&[]);
    world.become_state(THERE, State::Well);
    world.name("h", &["127.0.0.1", "127.0.0.2"]);
    world.advance(31_000 * MS);
    assert_eq!(of(&mut world, "address"), "127.0.0.1:7001");
    world.become_state(HERE, State::Gone);
    // It is empty and warming, so the key is fetched: nobody has felt anything.
    assert_eq!(world.ask(&peer, "get k\r\n"), value("old"));
    assert_eq!(of(&mut world, "address"), "127.0.0.2:7001");
    assert_eq!(of(&mut world, "state"), "warming");
    assert_eq!(of(&mut world, "restarts"), "1");
    // It stays there, though the first one is back.
    world.become_state(HERE, State::Well);
    world.advance(100_000 * MS);
    assert_eq!(of(&mut world, "address"), "127.0.0.2:7001");
    assert_eq!(of(&mut world, "restarts"), "1");
}

#[test]
fn a_server_follows_its_name_after_three_lookups() {
    let (mut world, peer) = farm(&["--resolve", "10", "-i", "3"]);
    for n in 0..20 {
        world.ask(&peer, format!("set k{n} 0 0 1\r\nx\r\n"));
    }
    assert_eq!(world.open_links(HERE), 3);
    world.become_state(THERE, State::Well);
    world.name("h", &["127.0.0.2"]);
    world.advance(19_000 * MS);
    assert_eq!(of(&mut world, "address"), "127.0.0.1:7001");
    world.advance(12_000 * MS);
    assert_eq!(of(&mut world, "address"), "127.0.0.2:7001");
    assert_eq!(of(&mut world, "restarts"), "1");
    assert_eq!(world.open_links(HERE), 0);
    for n in 0..20 {
        let got = world.ask(&peer, format!("get k{n}\r\n"));
        assert!(got.contains("\r\nx\r\n"), "{got}");
    }
    assert_eq!(world.open_links(THERE), 3);
    assert_eq!(world.open_links(HERE), 0);
}

/// What the old address missed, the new one must be told as well: it may be the same server.
#[test]
fn the_journal_goes_along() {
    let (mut world, peer) = farm(&["--resolve", "1", "--refill", "0"]);
    world.become_state(HERE, State::Gone);
    assert_eq!(world.ask(&peer, "set k 0 0 3\r\nnew\r\n"), "STORED\r\n");
    assert_eq!(of(&mut world, "journal_keys"), "1");
    // It comes back elsewhere, with what it held.
    let kept = std::mem::take(&mut world.servers.get_mut(&HERE).expect("it").store);
    world.servers.get_mut(&THERE).expect("it").store = kept;
    world.become_state(THERE, State::Well);
    world.name("h", &["127.0.0.2"]);
    world.advance(5000 * MS);
    assert_eq!(of(&mut world, "address"), "127.0.0.2:7001");
    assert_eq!(of(&mut world, "journal_keys"), "0");
    let now = world.now;
    assert!(world.servers[&THERE].store.get("k", now).is_none());
    assert_eq!(world.ask(&peer, "get k\r\n"), value("new"));
}

#[test]
fn a_lookup_that_fails_or_hangs_keeps_the_last_good_answer() {
    let (mut world, peer) = farm(&["--resolve", "1"]);
    world.name("h", &[]);
    world.advance(10_000 * MS);
    assert_eq!(world.ask(&peer, "get k\r\n"), value("old"));
    // Also for a new link.
    world.close_links(HERE);
    assert_eq!(world.ask(&peer, "get k\r\n"), value("old"));
    assert_eq!(of(&mut world, "restarts"), "0");
    assert_eq!(of(&mut world, "last_error"), "none");
}

#[test]
fn names_are_looked_up_as_often_as_asked_for() {
    let (mut world, peer) = before(&["--resolve", "7", "--probe", "100"]);
    world.name("h", &["127.0.0.1"]);
    world.ask(&peer, "get k\r\n");
    let before = world.lookups;
    world.advance(70_500 * MS);
    assert_eq!(world.lookups - before, 10);
    // HUP asks for it at once.
    let (clock, before) = (world.clock(), world.lookups);
    world.proxy().look_up_all(clock);
    world.step();
    assert_eq!(world.lookups - before, 1);
}

#[test]
fn with_0_a_name_is_looked_up_at_a_reconnect_only() {
    let (mut world, peer) = farm(&["--resolve", "0", "--probe", "0"]);
    let before = world.lookups;
    world.advance(3_600_000 * MS);
    assert_eq!(world.lookups, before);
    for round in 1..=5 {
        world.close_links(HERE);
        world.ask(&peer, "get k\r\n");
        assert_eq!(world.lookups, before + round);
    }
}

/// One lookup is for all servers of a host; pools that name it the same share the server.
#[test]
fn one_host_of_several_servers_and_pools() {
    let pool = "  hash: magent\n  distribution: magent\n  servers:\n  - h:7001:1\n  - h:7003:1\n";
    let text = format!("a:\n  listen: 127.0.0.1:1\n{pool}b:\n  listen: 127.0.0.1:2\n{pool}");
    let mut world = World::of(file(&text));
    world.name("h", &["127.0.0.1"]);
    let clients = [world.connect(0), world.connect(1)];
    for n in 0..20 {
        for client in &clients {
            assert_eq!(world.ask(client, format!("get k{n}\r\n")), "END\r\n");
        }
    }
    assert_eq!((world.open_links(HERE), world.open_links(7003)), (1, 1));
    for port in [THERE, 8003] {
        world.become_state(port, State::Well);
    }
    world.name("h", &["127.0.0.2"]);
    world.advance(100_000 * MS);
    assert_eq!((world.open_links(THERE), world.open_links(8003)), (1, 1));
    assert_eq!((world.open_links(HERE), world.open_links(7003)), (0, 0));
}

#[test]
fn a_reload_looks_new_names_up() {
    let mut world = World::of(file(
        "a:\n  listen: 127.0.0.1:1\n  servers:\n  - h:7001:1\n",
    ));
    world.name("h", &["127.0.0.1"]);
    world.name("i", &["127.0.0.2"]);
    let peer = world.client();
    assert_eq!(world.ask(&peer, "get k\r\n"), "END\r\n");
    world.become_state(THERE, State::Well);
    world.reload(file(
        "a:\n  listen: 127.0.0.1:1\n  servers:\n  - i:7001:1\n  - h:7001:1\n",
    ));
    world.step();
    let all = world.stats("stats servers\r\n");
    assert_eq!(all["i:7001:address"], "127.0.0.2:7001");
    assert_eq!(all["h:7001:connects"], "1", "it kept its link");
}

// --- the program

/// `stats servers` of the only server.
fn server(magent: &Magent, name: &str) -> BTreeMap<String, String> {
    magent.server(name)
}

/// A listener at one address of a machine, and the sockets that keep others from its port elsewhere.
fn alone_at(address: &str, all: &[&str]) -> (TcpListener, Vec<Socket>) {
    loop {
        let listener = TcpListener::bind(format!("{address}:0")).expect("a port");
        let port = listener.local_addr().expect("its number").port();
        let others = all.iter().filter(|a| **a != address);
        let held = others.map(|other| {
            let at: SocketAddr = format!("{other}:{port}").parse().expect("an address");
            let socket =
                Socket::new(Domain::for_address(at), Type::STREAM, None).expect("a socket");
            // Bound and not listened on: it refuses.
            socket.bind(&at.into()).map(|()| socket)
        });
        if let Ok(held) = held.collect() {
            return (listener, held);
        }
    }
}

/// `localhost` is 127.0.0.1, and ::1 on most machines: a server that listens on one of them is found.
#[test]
fn localhost_is_whichever_address_of_it_answers() {
    let has_v6 = TcpListener::bind("[::1]:0").is_ok()
        && ("localhost", 1)
            .to_socket_addrs()
            .expect("localhost")
            .any(|a| a.is_ipv6());
    let addresses = ["127.0.0.1", "[::1]"];
    let addresses = &addresses[..if has_v6 { 2 } else { 1 }];
    for address in addresses {
        let (listener, _held) = alone_at(address, addresses);
        let at = listener.local_addr().expect("its number");
        let fake = std::thread::spawn(move || {
            let (mut link, _) = listener.accept().expect("a link");
            let mut seen = Vec::new();
            let mut chunk = [0; 4096];
            let mut answered = 0;
            let answers: [(&[u8], &[u8]); 2] = [
                (
                    b"stats\r\n",
                    b"VERSION 1.6.18\r\nSTAT uptime 9999\r\nEND\r\n",
                ),
                (b"get k\r\n", b"END\r\n"),
            ];
            while let Some((end, answer)) = answers.get(answered) {
                let n = link.read(&mut chunk).expect("a request");
                seen.extend_from_slice(&chunk[..n]);
                if n == 0 {
                    return;
                }
                if seen.ends_with(end) {
                    link.write_all(answer).expect("an answer");
                    answered += 1;
                }
            }
        });
        let name = format!("localhost:{}", at.port());
        let magent = Magent::farm(&[&name], &[], &["--probe", "0", "--alone"]);
        magent.client().ask("get k\r\n", "END\r\n");
        assert_eq!(server(&magent, &name)["address"], at.to_string());
        fake.join().expect("its thread");
    }
}

#[test]
fn an_unknown_host_is_a_warning_and_the_others_are_served() {
    let known = Memcached::start();
    let unknown = "no-such-host.invalid:11211";
    let magent = Magent::farm(&[&known.name, unknown], &[], &[]);
    wait_for("the warning", || {
        let line = format!("warn pool default: primary {unknown}: unknown host");
        magent.log().contains(&line).then_some(())
    });
    magent.wait_state(unknown, "down");
    let error = server(&magent, unknown)["last_error"].clone();
    assert!(error.ends_with(" unknown host"), "{error}");
    let mut client = magent.client();
    let mut told = 0;
    for n in 0..20 {
        let line = client.ask_line(format!("set key{n} 0 0 1\r\nx\r\n"));
        let is_down = line == format!("SERVER_ERROR {unknown} down");
        assert!(is_down || line == "STORED", "{line}");
        told += usize::from(is_down);
    }
    assert!((1..20).contains(&told), "{told}");
    // It is said once, however often it is looked up.
    wait_for("some probes", || {
        let probes: u32 = server(&magent, unknown)["connects"]
            .parse()
            .expect("a number");
        (probes >= 3).then_some(())
    });
    let said = magent.log().matches("unknown host:").count();
    assert_eq!(said, 1, "{}", magent.log());
}

#[test]
fn a_check_names_unknown_hosts_and_is_content() {
    let dir = common::TempDir::new();
    let file = dir.path().join("pools.yml");
    let servers = "  servers:\n  - no-such-host.invalid:1:1\n  - no-such-host.invalid:2:1\n";
    std::fs::write(&file, format!("a:\n  listen: 127.0.0.1:1\n{servers}")).expect("the file");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_magent"))
        .args(["-t", "-c"])
        .arg(&file)
        .output()
        .expect("magent");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}");
    let warning = ": warning: pool a: no-such-host.invalid: unknown host";
    assert_eq!(said.matches(warning).count(), 1, "{said}");
    assert!(said.contains("valid; pools: a"), "{said}");
}

/// HUP of a magent without a file looks names up and harms nothing.
#[test]
fn hup_looks_names_up_without_a_file() {
    let server = Memcached::start();
    let name = format!("localhost:{}", server.port);
    let magent = Magent::farm(&[&name], &[], &[]);
    let mut client: Client = magent.client();
    client.set("k", "x");
    for _ in 0..20 {
        magent.signal(nix::sys::signal::Signal::SIGHUP);
        assert_eq!(client.get("k").as_deref(), Some(&b"x"[..]));
    }
    assert_eq!(self::server(&magent, &name)["restarts"], "0");
    assert_eq!(self::server(&magent, &name)["connects"], "1");
}
