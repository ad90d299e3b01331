//! The harness itself, without magent: what the other black-box tests rely on.

mod common;

use common::magent::free_port;
use common::{Client, Fake, Memcached, show};
use std::net::TcpStream;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

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
        .ask("version\r\n", "VERSION 1.6.18\r\n")
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
