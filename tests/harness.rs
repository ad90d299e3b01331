//! The harness itself, without magent: what the other black-box tests rely on.

mod common;

use common::magent::free_port;
use common::world::{self, State};
use common::{Client, Fake, Memcached, show};
use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

#[test]
fn a_memcached_starts_dies_and_comes_back_empty_on_its_port() {
    let mut server = Memcached::start();
    server.client().set("a", "x");
    assert_eq!(server.value("a").as_deref(), Some(&b"x"[..]));
    server.kill();
    assert!(TcpStream::connect(("127.0.0.1", server.port)).is_err());
    server.restart();
    assert_eq!(server.value("a"), None);
    // The one that asks counts itself.
    server.wait_connections(0);
    let mut client = server.client();
    client.set("a", "x");
    server.wait_connections(1);
}

#[test]
fn a_stopped_memcached_answers_once_it_goes_on() {
    let server = Memcached::start();
    let mut client = server.client();
    client.set("a", "x");
    server.stop();
    client.send("get a\r\n");
    client.deadline = std::time::Duration::from_millis(30);
    assert_eq!(
        client.read_until_true(|b| !b.is_empty()),
        (Vec::new(), false)
    );
    server.cont();
    client.deadline = common::DEADLINE;
    client.expect("VALUE a 0 1\r\nx\r\nEND\r\n");
}

#[test]
fn a_memcached_ends_with_its_value() {
    let port = Memcached::start().port;
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
}

#[test]
fn a_client_reads_what_was_asked_for() {
    let server = Memcached::start();
    let mut client = server.client();
    client.send("set a 0 0 2\r\nxy\r\nget a\r\n");
    assert_eq!(client.read_line(), b"STORED\r\n");
    assert_eq!(client.read_exact(6), b"VALUE ");
    assert_eq!(
        show(&client.read_until_quiet()),
        show(b"a 0 2\r\nxy\r\nEND\r\n")
    );
    assert_eq!(client.get("none"), None);
    client.half_close();
    assert_eq!(client.read_to_end(), b"");
}

#[test]
#[should_panic(expected = "wanted STORED\\r\\n")]
fn a_wrong_answer_is_shown() {
    let server = Memcached::start();
    server.client().ask("get a\r\n", "STORED\r\n");
}

#[test]
fn a_fake_runs_its_script_and_counts() {
    let fake = Fake::start(|link| {
        while let Some(request) = link.request() {
            link.send(if request.starts_with(b"set") {
                "STORED\r\n"
            } else {
                "EN"
            });
            if request.starts_with(b"mg") {
                return;
            }
        }
    });
    let port = fake.name.rsplit(':').next().and_then(|p| p.parse().ok());
    let mut client = Client::tcp(port.expect("its port"));
    client
        .ask("version\r\n", "VERSION 1.6.12\r\n")
        .send("stats\r\n")
        .read_until(b"END\r\n");
    client.ask(
        "set a 0 0 3\r\nabc\r\nset b 0 0 0\r\n\r\n",
        "STORED\r\nSTORED\r\n",
    );
    client.send("mg a\r\n");
    assert_eq!(client.read_to_end(), b"EN");
    let seen: Vec<String> = fake.requests().iter().map(|r| show(r)).collect();
    assert_eq!(
        seen,
        [
            "set a 0 0 3\\r\\nabc\\r\\n",
            "set b 0 0 0\\r\\n\\r\\n",
            "mg a\\r\\n"
        ]
    );
    assert_eq!((fake.count("set"), fake.links()), (2, 1));
}

/// A process that is being started has copies of what was open at that moment.
#[test]
fn nobody_listens_on_a_free_port() {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                Command::new("true").status().expect("a process");
            }
        });
        let taken = (0..3000).filter(|_| TcpStream::connect(("127.0.0.1", free_port())).is_ok());
        let taken = taken.count();
        over.store(true, Ordering::Relaxed);
        assert_eq!(taken, 0);
    });
}

/// The world of sockets in memory with two magents over the same servers.
#[test]
fn a_magent_is_killed_stands_still_and_is_cut_off_while_another_goes_on() {
    let farm = ["-s", "127.0.0.1:1", "-s", "127.0.0.1:2", "--timeout", "200"];
    let config = || world::options(&farm);
    let mut world = world::World::several(vec![config(), config()], 0);
    let (one, other) = (world.connect_to(0, 0), world.connect_to(1, 0));
    let keys = [0, 1].map(|server| common::keys::key_on(server, 2, "key", 0));
    for key in &keys {
        let set = format!("set {key} 0 0 1\r\nx\r\n");
        assert_eq!(world.ask(&one, set), "STORED\r\n");
        assert_eq!(world.get(&other, key).as_deref(), Some("x"));
    }
    world.cut(1, 2, false);
    assert_eq!(world.get(&one, &keys[1]).as_deref(), Some("x"));
    assert_eq!(world.get(&other, &keys[0]).as_deref(), Some("x"));
    world.send(&other, format!("get {}\r\n", keys[1]));
    world.advance(Duration::from_secs(1));
    assert_eq!(
        world.take_text(&other),
        "SERVER_ERROR 127.0.0.1:2 timed out\r\n"
    );
    world.mend(1, 2);
    world.advance(Duration::from_secs(5));
    assert_eq!(world.get(&other, &keys[1]).as_deref(), Some("x"));

    world.nodes[0].stands_still = true;
    assert_eq!(world.ask(&one, "version\r\n"), "");
    world.nodes[0].stands_still = false;
    world.step();
    assert!(world.take_text(&one).starts_with("VERSION"));

    world.kill(0);
    assert!(one.is_closed() && !other.is_closed());
    world.step();
    assert_eq!(world.open_links(1), 1, "that of the other one");
    world.start(0);
    let again = world.connect_to(0, 0);
    assert_eq!(world.get(&again, &keys[0]).as_deref(), Some("x"));
}

/// A link that is reset on the way: its server still does what it has received.
#[test]
fn a_server_does_what_it_has_received_of_a_link_that_was_reset() {
    let farm = ["-s", "127.0.0.1:1"];
    let mut world = world::World::of(world::options(&farm));
    let client = world.client();
    world.ask(&client, "version\r\nget k\r\n");
    world.become_state(1, State::Hung);
    assert_eq!(world.ask(&client, "set k 0 0 1\r\nx\r\n"), "");
    world.cut(0, 1, true);
    let lost = "SERVER_ERROR 127.0.0.1:1 connection lost\r\n";
    world.step();
    assert_eq!(world.take_text(&client), lost);
    world.mend(0, 1);
    assert!(world.servers[&1].store.items().is_empty());
    world.become_state(1, State::Well);
    world.step();
    assert_eq!(world.servers[&1].store.items().len(), 1);
}

/// A bare sleep does not say why; `common/time.rs` has the reasons there may be.
#[test]
fn no_test_sleeps_without_a_reason() {
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")];
    let (mut files, mut sleepers) = (0, Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                files += 1;
                let text = fs::read_to_string(&path).expect("a file");
                if text.contains(concat!("thread::", "sleep")) {
                    sleepers.push(path);
                }
            }
        }
    }
    assert!(files > 50, "{files} files");
    assert!(
        matches!(&sleepers[..], [only] if only.ends_with("common/time.rs")),
        "{sleepers:?}"
    );
}
