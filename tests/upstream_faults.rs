//! Servers that do what a real one won't: late, half, double and wrong answers, or none.

mod common;

#[path = "upstream_faults/causes.rs"]
mod causes;
#[path = "upstream_faults/flapping.rs"]
mod flapping;

use common::world::State;
use common::world::store::filled;
use common::{Client, Fake, FakeLink, Gate, Magent, Memcached, World, keys, show, wait_for};
use std::time::{Duration, Instant};

/// A magent in front of one fake without a backup.
fn before(fake: &Fake, options: &[&str]) -> Magent {
    Magent::farm(&[&fake.name], &[], options)
}

/// A well-behaved answer to any request of these tests.
fn good(request: &[u8]) -> Vec<u8> {
    let key = request
        .split(|&b| b == b' ' || b == b'\r')
        .nth(1)
        .unwrap_or_default();
    match request {
        [b'g', b'e', b't', ..] => [b"VALUE ", key, b" 0 2\r\nok\r\nEND\r\n"].concat(),
        [b's', ..] => b"STORED\r\n".to_vec(),
        [b'd', ..] => b"DELETED\r\n".to_vec(),
        [b'm', b'g', ..] => b"EN\r\n".to_vec(),
        [b'm', ..] => b"HD\r\n".to_vec(),
        _ => b"ERROR\r\n".to_vec(),
    }
}

fn hit(key: &str) -> String {
    format!("VALUE {key} 0 2\r\nok\r\nEND\r\n")
}

/// Answers everything well until the link ends.
fn go_on(link: &mut FakeLink) {
    while let Some(request) = link.request() {
        link.send(good(&request));
    }
}

/// `SERVER_ERROR 127.0.0.1:PORT cause`.
#[track_caller]
fn expect_loss(client: &mut Client, request: &str, fake: &str, cause: &str) {
    assert_eq!(
        client.ask_line(request),
        format!("SERVER_ERROR {fake} {cause}")
    );
}

// --- the handshake

#[test]
fn the_handshake_comes_first_and_requests_follow_its_end() {
    let (early, theirs) = Gate::new();
    let fake = Fake::raw(move |link| {
        let both = [link.line(), link.line()];
        if both != [Some(b"version\r\n".to_vec()), Some(b"stats\r\n".to_vec())] {
            theirs.open();
        }
        link.send("VERSION 1.6.18\r\nSTAT uptime 99999\r\n");
        link.send("END\r\n");
        go_on(link);
    });
    let magent = before(&fake, &["--alone"]);
    let mut client = magent.client();
    client.ask("get a\r\n", hit("a")).ask("get b\r\n", hit("b"));
    assert!(!early.is_open(), "something else came first");
    assert_eq!(fake.links(), 1);
}

#[test]
fn a_server_that_is_none_is_down() {
    for answer in [
        "HTTP/1.1 400 Bad Request\r\n\r\n",
        "-ERR unknown command\r\n",
        "VERSION 1.6.18\r\nnonsense\r\n",
        "\0\0\0\0\r\n",
    ] {
        let fake = Fake::raw(move |link| {
            link.line();
            link.send(answer);
            link.silence();
        });
        let magent = before(&fake, &["--timeout", "300", "--connect-timeout", "300"]);
        let line = magent.client().ask_line("get a\r\n");
        assert!(
            line.starts_with(&format!("SERVER_ERROR {} ", fake.name)),
            "{answer:?}: {line}"
        );
        assert_eq!(fake.requests().len(), 0, "{answer:?}: it was trusted");
    }
}

#[test]
fn a_silent_handshake_times_out() {
    let fake = Fake::raw(|link| link.silence());
    let magent = before(&fake, &["--timeout", "200", "--connect-timeout", "200"]);
    let begin = Instant::now();
    let line = magent.client().ask_line("get a\r\n");
    assert!(
        line.starts_with(&format!("SERVER_ERROR {} ", fake.name)),
        "{line}"
    );
    assert!(
        begin.elapsed() < Duration::from_secs(3),
        "{:?}",
        begin.elapsed()
    );
}

// --- answers

#[test]
fn a_refused_connection_is_named() {
    let mut server = Memcached::start();
    server.kill();
    let magent = Magent::farm(&[&server.name], &[], &[]);
    let mut client = magent.client();
    expect_loss(&mut client, "get a\r\n", &server.name, "connection refused");
    let line = client.ask_line("set a 0 0 1\r\nx\r\n");
    assert!(
        line.starts_with(&format!("SERVER_ERROR {} ", server.name)),
        "{line}"
    );
    client.ask("mn\r\n", "MN\r\n");
}

#[test]
fn an_answer_before_the_request_is_fully_sent() {
    // Answers on the line, long before the value has come, as memcached does when it is too large.
    let fake = Fake::start(|link| {
        while let Some(line) = link.head() {
            if line.starts_with(b"set ") {
                link.send("SERVER_ERROR object too large for cache\r\n");
                if link.read(1_000_002).is_none() {
                    return;
                }
            } else {
                link.send(good(&line));
            }
        }
    });
    let magent = before(&fake, &[]);
    let mut client = magent.client();
    let value = vec![b'x'; 1_000_000];
    let request = [&b"set a 0 0 1000000\r\n"[..], &value, b"\r\nget b\r\n"].concat();
    for _ in 0..5 {
        client
            .send(&request)
            .expect("SERVER_ERROR object too large for cache\r\n")
            .expect(hit("b"));
    }
    assert_eq!(fake.links(), 1, "the link did not stay in step");
}

#[test]
fn a_real_server_that_finds_the_value_too_large() {
    let (server, backup) = (Memcached::start(), Memcached::start());
    let magent = Magent::farm(&[&server.name], &[&backup.name], &["-I", "4m"]);
    let mut client = magent.client();
    client.set("a", "old");
    backup.wait_value("a", Some(b"old"));
    let request = [
        &b"set a 0 0 2000000\r\n"[..],
        &vec![b'x'; 2_000_000],
        b"\r\n",
    ]
    .concat();
    client
        .ask(request, "SERVER_ERROR object too large for cache\r\n")
        .ask("get b\r\n", "END\r\n");
    // memcached drops the old value then, and so must the backup.
    backup.wait_value("a", None);
    client
        .set("a", "new")
        .ask("get a\r\n", "VALUE a 0 3\r\nnew\r\nEND\r\n");
    server.wait_connections(1);
}

#[test]
fn two_replies_to_one_request() {
    let fake = Fake::start(|link| {
        while let Some(request) = link.request() {
            link.send(good(&request));
            if request.starts_with(b"get double") {
                link.send(b"VALUE wrong 0 5\r\nwrong\r\nEND\r\n");
            }
        }
    });
    let magent = before(&fake, &[]);
    let (mut client, mut other) = (magent.client(), magent.client());
    client.ask("get double\r\n", hit("double"));
    // Nobody ever reads the second reply, whoever asks next.
    for i in 0..20 {
        let key = format!("k{i}");
        other.ask(format!("get {key}\r\n"), hit(&key));
        client.ask(format!("get {key}\r\n"), hit(&key));
    }
    assert_eq!(show(&client.read_until_quiet()), "");
}

#[test]
fn stray_bytes_with_nothing_asked() {
    let fake = Fake::start(|link| {
        while let Some(request) = link.request() {
            link.send([good(&request), b"STORED\r\nSTORED\r\n".to_vec()].concat());
        }
    });
    let magent = before(&fake, &[]);
    let mut client = magent.client();
    for i in 0..10 {
        client.ask(format!("get k{i}\r\n"), hit(&format!("k{i}")));
    }
    assert_eq!(show(&client.read_until_quiet()), "");
}

#[test]
fn garbage_resets_the_link_and_harms_no_other() {
    for garbage in [
        "nonsense\r\n",
        "\r\n",
        "VALUE\r\n",
        "VALUE a b c\r\nEND\r\n",
        "VALUE a 0 -1\r\n\r\nEND\r\n",
        "VALUE a 0 99999999999999999999\r\n",
        "\0\0\0",
        "VALUE a 0 2\r\nokxxEND\r\n",
    ] {
        let fake = Fake::start(move |link| {
            while let Some(request) = link.request() {
                if request.starts_with(b"get a") {
                    link.send(garbage);
                } else {
                    link.send(good(&request));
                }
            }
        });
        let other = Fake::answering(good);
        let magent = Magent::farm(
            &[&fake.name, &other.name],
            &[],
            &["--timeout", "300", "--failure-limit", "1000"],
        );
        let [mine, theirs] = [keys::key_on(0, 2, "a", 0), keys::key_on(1, 2, "b", 0)];
        let mut client = magent.client();
        client.send(format!("get {mine}\r\nget {theirs}\r\n"));
        let line = String::from_utf8_lossy(&client.read_line()).into_owned();
        assert!(
            line.starts_with(&format!("SERVER_ERROR {} ", fake.name)),
            "{garbage:?}: {line}"
        );
        client
            .expect(hit(&theirs))
            .ask(format!("get {theirs}\r\n"), hit(&theirs));
        assert_eq!(show(&client.read_until_quiet()), "", "{garbage:?}");
    }
}

#[test]
fn half_an_answer_then_close() {
    for half in [
        "V",
        "VALUE a 0 2",
        "VALUE a 0 2\r\n",
        "VALUE a 0 2\r\no",
        "VALUE a 0 2\r\nok\r\n",
        "VALUE a 0 2\r\nok\r\nEND\r",
    ] {
        // On the first link only: a read is asked once more on a fresh one.
        let fake = Fake::start(move |link| {
            if link.number == 0 && link.request().is_some() {
                return link.send(half);
            }
            go_on(link);
        });
        let magent = before(&fake, &[]);
        let mut client = magent.client();
        client.ask("get a\r\n", hit("a"));
        assert_eq!(show(&client.read_until_quiet()), "", "{half:?}");
        assert_eq!((fake.links(), fake.count("get a")), (2, 2), "{half:?}");
    }
}

#[test]
fn half_an_answer_to_a_write_is_an_error_and_not_asked_again() {
    for half in ["", "S", "STORED", "STORED\r"] {
        let fake = Fake::start(move |link| {
            if link.number == 0 && link.request().is_some() {
                return link.send(half);
            }
            go_on(link);
        });
        let magent = before(&fake, &[]);
        let mut client = magent.client();
        expect_loss(
            &mut client,
            "set a 0 0 1\r\nx\r\n",
            &fake.name,
            "connection lost",
        );
        client.ask("get b\r\n", hit("b"));
        assert_eq!(fake.count("set a"), 1, "a write was sent twice");
    }
}

#[test]
fn half_an_answer_fails_over_to_the_backup() {
    let primary = Fake::start(|link| {
        while let Some(request) = link.request() {
            if request.starts_with(b"get a") {
                return link.send("VALUE a 0 100000\r\nhalf of it");
            }
            link.send(good(&request));
        }
    });
    let backup = Fake::answering(good);
    let magent = Magent::farm(&[&primary.name], &[&backup.name], &["--warm", "0"]);
    let mut client = magent.client();
    client.ask("get a\r\n", hit("a")).ask("get b\r\n", hit("b"));
    assert_eq!(backup.count("get a"), 1);
}

#[test]
fn a_silent_server_times_out_and_its_late_answer_is_nobodys() {
    let (fake, gate) = Fake::holding("get late", good);
    let magent = before(&fake, &["--timeout", "200", "--failure-limit", "100"]);
    let (mut client, mut other) = (magent.client(), magent.client());
    expect_loss(&mut client, "get late\r\n", &fake.name, "timed out");
    other.send("get next\r\n");
    gate.open();
    other.expect(hit("next"));
    for i in 0..10 {
        client.ask(format!("get c{i}\r\n"), hit(&format!("c{i}")));
        other.ask(format!("get o{i}\r\n"), hit(&format!("o{i}")));
    }
    assert_eq!(fake.links(), 1, "one late answer cost the link");
}

#[test]
fn a_server_that_closes_an_idle_link_is_no_error() {
    let fake = Fake::start(|link| {
        // Each link serves one request and closes when it is idle.
        if let Some(request) = link.request() {
            link.send(good(&request));
        }
    });
    let magent = before(&fake, &[]);
    let mut client = magent.client();
    for i in 0..10 {
        client.ask(format!("get k{i}\r\n"), hit(&format!("k{i}")));
    }
    assert!(fake.links() >= 10);
    assert_ne!(
        magent.server(&fake.name).get("state").map(String::as_str),
        Some("down")
    );
}

#[test]
fn a_client_that_left_leaves_its_answer_to_nobody() {
    let (fake, gate) = Fake::holding("get first", good);
    let magent = before(&fake, &["--timeout", "5000"]);
    let mut gone = magent.client();
    gone.send("get first\r\n");
    fake.wait_count("get first", 1);
    gone.vanish();
    let mut client = magent.client();
    client.send("get second\r\n");
    gate.open();
    client
        .expect(hit("second"))
        .ask("get third\r\n", hit("third"));
}

#[test]
fn answers_in_single_bytes() {
    let fake = Fake::start(|link| {
        while let Some(request) = link.request() {
            good(&request).iter().for_each(|b| link.send([*b]));
        }
    });
    let magent = before(&fake, &[]);
    let mut client = magent.client();
    for i in 0..20 {
        client.ask(
            format!("get k{i}\r\nset k{i} 0 0 1\r\nx\r\n"),
            hit(&format!("k{i}")) + "STORED\r\n",
        );
    }
}

// --- several servers

#[test]
fn a_multi_get_with_one_server_that_dies_in_the_middle() {
    let dying = Fake::start(|link| {
        if let Some(request) = link.head() {
            let key = String::from_utf8_lossy(&request)
                .split_whitespace()
                .nth(1)
                .unwrap_or("")
                .to_string();
            link.send(format!("VALUE {key} 0 1000\r\nonly the start"));
        }
    });
    let others = [Memcached::start(), Memcached::start()];
    let magent = Magent::farm(&[&dying.name, &others[0].name, &others[1].name], &[], &[]);
    let names: Vec<String> = (0..3).map(|s| keys::key_on(s, 3, "key", 0)).collect();
    let mut client = magent.client();
    client.set(&names[1], "one").set(&names[2], "two");
    client.send(format!("get {}\r\n", names.join(" ")));
    let answer = String::from_utf8_lossy(&client.read_until(b"END\r\n")).into_owned();
    let values = [
        format!("VALUE {} 0 3\r\none\r\n", names[1]),
        format!("VALUE {} 0 3\r\ntwo\r\n", names[2]),
    ];
    assert!(values.iter().all(|v| answer.contains(v)), "{answer}");
    assert_eq!(
        answer.len(),
        values.concat().len() + b"END\r\n".len(),
        "{answer}"
    );
    client.ask("mn\r\n", "MN\r\n");
}

#[test]
fn a_hung_server_slows_nobody_else() {
    let (hung, good) = (Memcached::start(), Memcached::start());
    let magent = Magent::farm(&[&hung.name, &good.name], &[], &["--timeout", "1000"]);
    let [theirs, ours] = [keys::key_on(0, 2, "key", 0), keys::key_on(1, 2, "key", 0)];
    let mut client = magent.client();
    client.set(&theirs, "t").set(&ours, "o");
    hung.stop();
    let mut waiting = magent.client();
    waiting.send(format!("get {theirs}\r\n"));
    let begin = Instant::now();
    for _ in 0..200 {
        assert_eq!(client.get(&ours).as_deref(), Some(&b"o"[..]));
    }
    assert!(
        begin.elapsed() < Duration::from_millis(900),
        "200 gets took {:?}",
        begin.elapsed()
    );
    let line = String::from_utf8_lossy(&waiting.read_line())
        .trim_end()
        .to_string();
    assert_eq!(line, format!("SERVER_ERROR {} timed out", hung.name));
    hung.cont();
    wait_for("the hung server to be used again", || {
        (waiting.ask_line(format!("touch {theirs} 0\r\n")) == "TOUCHED").then_some(())
    });
    waiting.ask(
        format!("get {theirs}\r\n"),
        format!("VALUE {theirs} 0 1\r\nt\r\nEND\r\n"),
    );
}

#[test]
fn a_dead_server_costs_nobody_a_timeout() {
    let (mut dead, backup) = (Memcached::start(), Memcached::start());
    let magent = Magent::farm(&[&dead.name], &[&backup.name], &["--timeout", "1000"]);
    let mut client = magent.client();
    client.set("a", "x");
    backup.wait_value("a", Some(b"x"));
    dead.kill();
    let begin = Instant::now();
    for _ in 0..100 {
        assert_eq!(client.get("a").as_deref(), Some(&b"x"[..]));
    }
    assert!(
        begin.elapsed() < Duration::from_millis(900),
        "100 gets took {:?}",
        begin.elapsed()
    );
    magent.wait_state(&dead.name, "down");
}

#[test]
fn cas_tokens_never_cross_farms() {
    let (mut primary, backup) = (Memcached::start(), Memcached::start());
    let magent = Magent::farm(&[&primary.name], &[&backup.name], &["--retry", "50"]);
    let mut client = magent.client();
    client.set("a", "x");
    backup.wait_value("a", Some(b"x"));
    let token = |client: &mut Client| -> String {
        client.send("gets a\r\n");
        let answer = String::from_utf8_lossy(&client.read_until(b"END\r\n")).into_owned();
        answer
            .lines()
            .next()
            .and_then(|l| l.rsplit(' ').next())
            .expect("a cas")
            .to_string()
    };
    let from_primary = token(&mut client);
    primary.kill();
    let from_backup = token(&mut client);
    assert!(
        from_backup.parse::<u64>().expect("a number") & 1 << 62 != 0,
        "{from_backup} is not marked"
    );
    client.ask(format!("cas a 0 0 1 {from_primary}\r\np\r\n"), "EXISTS\r\n");
    client.ask(format!("cas a 0 0 1 {from_backup}\r\nb\r\n"), "STORED\r\n");
    assert_eq!(backup.value("a").as_deref(), Some(&b"b"[..]));
    let old = token(&mut client);
    primary.restart();
    wait_for("the primary to be back", || {
        let state = magent.server(&primary.name).get("state").cloned();
        matches!(state.as_deref(), Some("up" | "warming")).then_some(())
    });
    let answer = client.ask_line(format!("cas a 0 0 1 {old}\r\nz\r\n"));
    assert!(answer == "EXISTS" || answer == "NOT_FOUND", "{answer}");
}

/// Without a backup too: what was written to a link that was reset may still be read from it.
#[test]
fn a_server_with_a_write_on_a_link_that_was_reset_waits_for_its_end() {
    let (gate, theirs) = Gate::new();
    let fake = Fake::start(move |link| {
        if link.number == 0 && link.request().is_some() {
            link.send("nonsense\r\n");
            return link.wait_open(&theirs);
        }
        go_on(link);
    });
    let magent = before(&fake, &[]);
    let mut client = magent.client();
    let lost = format!("SERVER_ERROR {} connection lost\r\n", fake.name);
    client.ask("set a 0 0 2\r\nok\r\n", lost);
    let down = format!("SERVER_ERROR {} down\r\n", fake.name);
    client.ask("get a\r\n", &down);
    assert_eq!(fake.count("get"), 0, "it was asked again before that end");
    gate.open();
    wait_for("the server to be trusted again", || {
        let line = client.ask_line("get a\r\n");
        (!line.starts_with("SERVER_ERROR")).then_some(())
    });
}

/// An answer is values or an error: a server that fails behind a value has failed.
#[test]
fn an_error_behind_a_value_is_an_error() {
    const ERROR: &str = "SERVER_ERROR out of memory writing get response\r\n";
    let fake = Fake::answering(|_| format!("VALUE a 0 1\r\nx\r\n{ERROR}").into_bytes());
    let magent = before(&fake, &[]);
    let mut client = magent.client();
    client.ask("get a\r\n", ERROR).ask("get a b\r\n", ERROR);
    assert_eq!(fake.links(), 1);
}

// --- what was in time and was not looked at in time

/// A core before a server on port 1.
fn core() -> World {
    World::new(&["-s", "127.0.0.1:1"])
}

#[test]
fn an_answer_is_in_time_though_its_event_comes_late() {
    let mut core = core();
    let client = core.client();
    assert!(core.ask(&client, "get k1.a\r\n").starts_with("VALUE k1.a"));
    core.unseen.insert(1);
    assert_eq!(core.ask(&client, "get k1.b\r\n"), "");
    core.advance(Duration::from_secs(1));
    assert_eq!(core.take_text(&client), "VALUE k1.b 0 1\r\nv\r\nEND\r\n");
    core.unseen.clear();
    let servers = core.stats("stats servers\r\n");
    assert_eq!(servers["127.0.0.1:1:timeouts"], "0");
}

#[test]
fn a_connect_is_in_time_though_its_event_comes_late() {
    let mut core = core();
    core.unseen.insert(1);
    let client = core.client();
    core.send(&client, "get k1\r\n");
    core.step();
    core.advance(Duration::from_millis(500));
    core.unseen.clear();
    core.advance(Duration::from_millis(500));
    assert_eq!(core.take_text(&client), "VALUE k1 0 1\r\nv\r\nEND\r\n");
}

/// A server that was asked this, and of whose answers magent is not told.
fn asked_unseen(requests: &str) -> (World, common::Peer) {
    let mut core = core();
    let client = core.client();
    core.ask(&client, "get k1\r\n");
    core.unseen.insert(1);
    core.ask(&client, requests);
    (core, client)
}

/// A turn reads a bounded amount; what it left is in time too.
#[test]
fn answers_that_one_turn_cannot_read_are_in_time() {
    let (mut core, client) = asked_unseen(&"get k60000\r\n".repeat(100));
    core.advance(Duration::from_secs(1));
    let answers = core.take_text(&client);
    assert_eq!(answers.matches("END\r\n").count(), 100);
    assert_eq!(answers.matches("SERVER_ERROR").count(), 0);
}

/// But a client does not wait for ever for what magent itself is too slow to read.
#[test]
fn answers_that_take_too_long_to_read_are_late() {
    let (mut core, client) = asked_unseen(&"get k60000\r\n".repeat(100));
    core.turn_takes = Duration::from_millis(60);
    core.advance(Duration::from_secs(1));
    let answers = core.take_text(&client);
    let late = answers
        .matches("SERVER_ERROR 127.0.0.1:1 timed out\r\n")
        .count();
    let whole = answers.matches("END\r\n").count();
    assert_eq!(late + whole, 100);
    assert!(late > 0 && whole > 0, "{late} late, {whole} whole");
}

/// What has arrived while magent was stopped is in time, however late it is read.
#[test]
fn a_stall_of_magent_is_not_held_against_servers() {
    let mut core = World::new(&["-s", "127.0.0.1:1", "--timeout", "500"]);
    let client = core.client();
    core.ask(&client, "get k1\r\n");
    core.advance(Duration::from_secs(1));
    core.become_state(1, State::Silent);
    for _ in 0..3 {
        assert_eq!(core.ask(&client, "get k2\r\n"), "");
        core.stand_still(Duration::from_secs(2));
        let answer = filled(&["k2"]);
        core.serve_late(1, &answer);
        assert_eq!(core.take(&client), answer);
    }
    // One that stays silent is late.
    core.ask(&client, "get k3\r\n");
    core.stand_still(Duration::from_secs(2));
    core.advance(Duration::from_millis(100));
    let late = "SERVER_ERROR 127.0.0.1:1 timed out\r\n";
    assert_eq!(core.take_text(&client), late);
    core.ask(&client, "get k4\r\n");
    core.stand_still(Duration::from_millis(550));
    core.advance(Duration::from_millis(10));
    assert_eq!(core.take_text(&client), late);
}

/// Nor against clients: what they have sent meanwhile is read before they count as silent, and
/// what they are owed is written before they count as stalled.
#[test]
fn a_stall_of_magent_is_not_held_against_clients() {
    let mut core = World::new(&["-s", "127.0.0.1:1", "--idle-timeout", "2"]);
    let client = core.client();
    core.ask(&client, "get k1\r\n");
    core.advance(Duration::from_secs(1));
    core.stand_still(Duration::from_secs(40));
    // As after a signal: this turn is told of nothing.
    core.step();
    assert_eq!(core.ask(&client, "get k2\r\n").lines().count(), 3);
    core.advance(Duration::from_millis(1500));
    assert!(!client.is_closed());
    core.advance(Duration::from_millis(1500));
    assert!(client.is_closed(), "it says nothing, and magent is awake");

    let client = core.client();
    core.ask(&client, "get k1\r\n");
    core.unseen.insert(1);
    core.ask(&client, "get k2\r\n");
    core.stand_still(Duration::from_secs(40));
    core.step();
    assert_eq!(core.take_text(&client).lines().count(), 3);
    assert!(!client.is_closed());
}

/// However often it is heard before its answers are late.
#[test]
fn a_turn_reads_a_bounded_amount_of_a_server() {
    let (mut core, _client) = asked_unseen(&"get k900000\r\n".repeat(20));
    core.turn_takes = Duration::from_millis(5);
    let before = core.stat("reads");
    let polls = core.stat("polls");
    core.advance(Duration::from_secs(1));
    let reads = core.stat("reads") - before;
    let turns = core.stat("polls") - polls;
    assert!(reads > 200, "{reads}");
    assert!(reads <= 9 * turns, "{reads} reads in {turns} turns");
}

/// The answer to a delete takes its server down: what stands behind the delete on its link goes to
/// the backup as it was asked, byte for byte.
#[test]
fn what_stands_behind_a_refused_delete_goes_to_the_backup() {
    let mut core = World::new(&["-s", "127.0.0.1:1", "-b", "127.0.0.1:2"]);
    let (writer, reader) = (core.client(), core.client());
    for key in ["k2", "k33"] {
        let set = format!("set {key} 0 0 3\r\n{key:>3}\r\n");
        assert_eq!(core.ask(&writer, set), "STORED\r\n");
    }
    core.become_state(1, State::Silent);
    core.send(&writer, "set k1 0 0 1\r\nx\r\n");
    core.advance(Duration::from_millis(1200));
    assert_eq!(core.take_text(&writer), "STORED\r\n", "by the backup");
    core.send(&reader, "get k2\r\nget k33\r\n");
    core.step();
    core.serve_late(1, b"STORED\r\nSERVER_ERROR out of memory\r\n");
    core.step();
    assert_eq!(core.stats("stats servers\r\n")["127.0.0.1:1:state"], "down");
    assert_eq!(
        core.take_text(&reader),
        "VALUE k2 0 3\r\n k2\r\nEND\r\nVALUE k33 0 3\r\nk33\r\nEND\r\n"
    );
}

/// A server that goes on sending and never ends an answer is no silent one; still it must not hold
/// its clients for ever.
#[test]
fn a_server_that_never_ends_an_answer_is_down_when_its_link_is_full() {
    let mut core = core();
    let others: Vec<_> = (0..70).map(|_| core.old_client()).collect();
    core.ask(&others[0], "get k1\r\n");
    core.become_state(1, State::Silent);
    for other in &others {
        core.send(other, "get k1\r\n".repeat(1000));
    }
    core.step();
    core.serve_late(1, b"VALUE k1 0 1000000\r\n");
    let late = core.client();
    let mut asked = 0;
    for _ in 0..20 {
        core.advance(Duration::from_millis(500));
        for other in &others {
            core.take(other);
        }
        if core.ask(&late, "get k1\r\n").is_empty() {
            asked += 1;
            core.serve_late(1, b"x");
        } else {
            break;
        }
    }
    assert!((2..=8).contains(&asked), "{asked}");
    let servers = core.stats("stats servers\r\n");
    assert_eq!(servers["127.0.0.1:1:state"], "down", "{servers:?}");
}
