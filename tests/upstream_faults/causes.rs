//! The log and `stats servers` say why a server is away; a link that magent itself gave up was
//! not lost.

use super::{Fake, Gate, Magent, Memcached, good, wait_for};

/// Mirrors that a server is too full for go to its journal. When that overflows, the server is
/// flushed before it is asked again, and so is away for that moment, by magent's own decision.
#[test]
fn a_server_that_has_to_be_flushed_has_lost_no_connection() {
    let (backup, gate) = Fake::holding("", |request| match request.starts_with(b"flush_all") {
        true => b"OK\r\n".to_vec(),
        false => good(request),
    });
    let primary = Memcached::start();
    // A quarter of -m may be in flight to one server.
    let options = ["-m", "4m", "--journal", "1k", "--timeout", "20000"];
    let magent = Magent::farm(&[&primary.name], &[&backup.name], &options);
    let mut client = magent.client();
    let value = "x".repeat(100_000);
    for i in 0..60 {
        client.set(&format!("k{i}"), &value);
    }
    gate.open();
    backup.wait_count("flush_all", 1);
    wait_for("the backup to be back", || {
        let s = magent.server(&backup.name);
        (s["state"] == "up" && s["journal_keys"] == "0").then_some(())
    });
    let error = magent.server(&backup.name)["last_error"].clone();
    let log = magent.log();
    let said: Vec<&str> = log.lines().filter(|l| l.contains(&backup.name)).collect();
    let cause = "its journal overflowed";
    let down = format!("{}: down: {cause}", backup.name);
    assert!(
        !log.contains("connection lost")
            && !error.contains("connection lost")
            && said.iter().any(|l| l.contains(&down)),
        "wanted \"{down}\"; last_error {error:?}, log {said:?}"
    );
}

/// A server that refuses a delete of its journal is told again; its link was not lost.
#[test]
fn a_server_that_refuses_a_delete_has_lost_no_connection() {
    let (gate, theirs) = Gate::new();
    let fake = Fake::start(move |link| match link.number {
        0 => link.silence(),
        _ => {
            while let Some(request) = link.request() {
                let refuses = request.starts_with(b"delete") && !theirs.is_open();
                link.send(match refuses {
                    true => b"SERVER_ERROR out of memory\r\n".to_vec(),
                    false => good(&request),
                });
            }
        }
    });
    let backup = Memcached::start();
    let options = [
        ["--timeout", "250"],
        ["--failure-limit", "1"],
        ["--retry", "30"],
        ["--refill", "0"],
    ];
    let magent = Magent::farm(&[&fake.name], &[&backup.name], &options.concat());
    let mut client = magent.client();
    client.set("k", "x");
    fake.wait_count("delete k", 2);
    let server = magent.server(&fake.name);
    assert_eq!(server["state"], "down");
    let error = &server["last_error"];
    assert!(error.ends_with(" refused delete"), "last_error {error:?}");
    gate.open();
    wait_for("it to be back", || {
        (magent.server(&fake.name)["journal_keys"] == "0").then_some(())
    });
    let log = magent.log();
    assert!(!log.contains("connection lost"), "{log}");
}
