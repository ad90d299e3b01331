//! Servers that greet well and are none: one that closes at each request, and one that says a
//! byte now and then.

use super::{before, expect_loss, good};
use crate::common::{Client, Fake, Magent, Memcached, pause_of, wait_for};
use std::time::{Duration, Instant};

/// For so long a server flaps.
const FLAPS: Duration = Duration::from_secs(3);

/// Answers the handshake and each delete, so that it takes its journal well, and closes at any
/// other request.
fn flapping() -> Fake {
    Fake::start(|link| {
        while link.request().is_some_and(|r| r.starts_with(b"delete")) {
            link.send("NOT_FOUND\r\n");
        }
    })
}

/// Reconnects and log lines of a server that flaps while clients ask. Without any back-off there
/// are hundreds of either in a second.
fn flap(magent: &Magent, fake: &Fake, requests: &[&str]) {
    let end = Instant::now() + FLAPS;
    let mut clients: Vec<Client> = requests.iter().map(|_| magent.client()).collect();
    let mut asked = 0;
    while Instant::now() < end {
        for (client, request) in clients.iter_mut().zip(requests) {
            client.send(request);
        }
        for client in &mut clients {
            client.read_until_true(|b| b.ends_with(b"\n"));
            asked += 1;
        }
    }
    let log = magent.log();
    let lines: Vec<&str> = log.lines().filter(|l| l.contains(&fake.name)).collect();
    assert!(
        fake.links() <= 40 && lines.len() <= 20,
        "{} connects and {} log lines for {asked} requests in {FLAPS:?}; the last: {:?}",
        fake.links(),
        lines.len(),
        lines.last()
    );
    assert!(fake.links() >= 2, "it is tried again");
    // What was left out is counted.
    let counts = lines.iter().any(|l| times(l) >= 2);
    assert!(counts, "no line says how often: {lines:?}");
}

/// `n` of `… n times …`.
fn times(line: &str) -> u64 {
    let words: Vec<&str> = line.split_whitespace().collect();
    let found = words.windows(2).filter(|w| w[1].starts_with("times"));
    found
        .filter_map(|w| w[0].trim_start_matches('(').parse().ok())
        .max()
        .unwrap_or(0)
}

#[test]
fn a_primary_that_closes_at_each_read_is_not_connected_to_for_each() {
    let fake = flapping();
    let magent = before(&fake, &["-v"]);
    flap(&magent, &fake, &["get a\r\n", "get b\r\n"]);
}

#[test]
fn a_primary_that_closes_at_each_write_is_not_connected_to_for_each() {
    let (fake, backup) = (flapping(), Memcached::start());
    let magent = Magent::farm(&[&fake.name], &[&backup.name], &[]);
    let requests = ["set a 0 0 1\r\nx\r\n", "set b 0 0 1\r\nx\r\n"];
    flap(&magent, &fake, &requests);
    // The backup answered all of them, and nothing was lost on the way.
    assert_eq!(magent.client().get("a").as_deref(), Some(&b"x"[..]));
}

#[test]
fn a_backup_that_closes_at_each_mirror_is_not_connected_to_for_each() {
    let (primary, fake) = (Memcached::start(), flapping());
    let magent = Magent::farm(&[&primary.name], &[&fake.name], &[]);
    let requests = ["set a 0 0 1\r\nx\r\n", "set b 0 0 1\r\nx\r\n"];
    flap(&magent, &fake, &requests);
}

/// It flaps no more: it is used again soon.
#[test]
fn a_server_that_has_flapped_is_used_again() {
    let fake = Fake::start(|link| {
        let flaps = link.number < 6;
        while let Some(request) = link.request() {
            if flaps {
                return;
            }
            link.send(good(&request));
        }
    });
    let magent = before(&fake, &["--retry", "30"]);
    let mut client = magent.client();
    wait_for("an answer", || {
        (client.ask_line("set a 0 0 2\r\nok\r\n") == "STORED").then_some(())
    });
    let begin = Instant::now();
    for _ in 0..100 {
        client.ask("set a 0 0 2\r\nok\r\n", "STORED\r\n");
    }
    assert!(begin.elapsed() < Duration::from_secs(2));
}

/// Says `bytes` one by one, with `pause` before each, to whatever it is asked.
fn trickling(bytes: &'static [u8], pause: Duration) -> Fake {
    Fake::start(move |link| {
        while link.request().is_some() {
            for byte in bytes {
                pause_of(pause);
                if !link.try_send([*byte]) {
                    return;
                }
            }
        }
    })
}

/// Bytes that come are no answers: when the oldest request of a link has waited `--failure-limit`
/// timeouts, 0.9 s here, its server is down, whatever it says meanwhile. Until then each request
/// costs its client one timeout.
fn trickle(fake: &Fake) {
    let magent = before(fake, &["--timeout", "300", "--connect-timeout", "300"]);
    let mut client = magent.client();
    expect_loss(&mut client, "get a\r\n", &fake.name, "timed out");
    let begin = Instant::now();
    let mut asked = 1;
    while magent.server(&fake.name)["state"] != "down" {
        asked += 1;
        let sent = Instant::now();
        let line = client.ask_line("get a\r\n");
        assert!(
            line.starts_with(&format!("SERVER_ERROR {} ", fake.name)),
            "{line}"
        );
        assert!(
            sent.elapsed() < Duration::from_secs(2),
            "{:?}",
            sent.elapsed()
        );
        let took = begin.elapsed();
        assert!(
            took < Duration::from_secs(6),
            "not down after {asked} requests and {took:?}"
        );
    }
    expect_loss(&mut client, "get a\r\n", &fake.name, "down");
}

/// It never ends an answer.
#[test]
fn a_server_that_trickles_a_value_goes_down() {
    const VALUE: &[u8] = b"VALUE a 0 1000\r\nthis goes on and on, and nobody has the time for it";
    trickle(&trickling(VALUE, Duration::from_millis(120)));
}

/// It ends each, and each takes longer than its client has.
#[test]
fn a_server_that_trickles_small_answers_goes_down() {
    trickle(&trickling(b"END\r\n", Duration::from_millis(120)));
}

/// One slow answer does not make a server down, if bytes of it came all the time.
#[test]
fn one_slow_answer_takes_nobody_down() {
    let fake = Fake::start(|link| {
        while let Some(request) = link.request() {
            if request.starts_with(b"get slow") {
                link.send("VALUE slow 0 500\r\n");
                for _ in 0..5 {
                    pause_of(Duration::from_millis(100));
                    link.send([b'x'; 100]);
                }
                link.send("\r\nEND\r\n");
            } else {
                link.send(good(&request));
            }
        }
    });
    let magent = before(&fake, &["--timeout", "300", "--connect-timeout", "300"]);
    let mut client = magent.client();
    expect_loss(&mut client, "get slow\r\n", &fake.name, "timed out");
    wait_for("an answer behind it", || {
        (client.ask_line("touch a 0\r\n") == "ERROR").then_some(())
    });
    let server = magent.server(&fake.name);
    assert_eq!(server["state"], "up");
    assert_eq!(fake.links(), 1);
}
