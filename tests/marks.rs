//! What `magent::marks` relies on, asked of a real memcached: its bytes, and how a list, cas numbers and
//! holds behave.

mod common;

use common::{Client, Memcached, wait_for};
use magent::marks::bytes::{self, Answer, Hold, Process};
use magent::marks::{Id, Lines};

const X: &[u8] = b"10.0.0.1:11211";
const ONE: Id = Id(0x7f3a_9c0d_12e4_5b66);
const TWO: Id = Id(0x0011_2233_aabb_ccdd);

/// Sends what `write` writes, in one piece, and takes `count` answers.
#[track_caller]
fn ask(client: &mut Client, count: usize, write: impl FnOnce(&mut Vec<u8>)) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    write(&mut out);
    client.send(&out);
    (0..count).map(|_| read_answer(client)).collect()
}

/// One answer: a line, and the value it tells of.
#[track_caller]
fn read_answer(client: &mut Client) -> Vec<u8> {
    let mut answer = client.read_line();
    if let Some(rest) = answer.strip_prefix(b"VA ") {
        let text = String::from_utf8_lossy(rest);
        let len: usize = text
            .split_whitespace()
            .next()
            .and_then(|len| len.parse().ok())
            .unwrap_or_else(|| panic!("a length in {text:?}"));
        answer.extend(client.read_exact(len + 2));
    }
    answer
}

/// The list and its cas.
#[track_caller]
fn list(client: &mut Client) -> Option<(Vec<u8>, u64)> {
    let answers = ask(client, 1, |o| bytes::read(o, bytes::LIST));
    match Answer::parse(&answers[0]) {
        Answer::Absent => None,
        Answer::Value(list, Some(cas)) => Some((list.to_vec(), cas)),
        other => panic!("{other:?}"),
    }
}

/// One writes its line: list, line, hold, and a look, in one write.
#[track_caller]
fn announce(client: &mut Client, id: Id) -> (Vec<u8>, u64) {
    let hold = Hold {
        answers: false,
        process: Process {
            host: "web1".into(),
            pid: 4711,
        },
    };
    let answers = ask(client, 4, |o| {
        bytes::append(o, bytes::LIST, id, X);
        bytes::store(o, &bytes::hold_key(id, X), hold.text().as_bytes(), false);
        bytes::read(o, bytes::LIST);
    });
    let parsed: Vec<_> = answers.iter().map(|a| Answer::parse(a)).collect();
    assert!(matches!(parsed[0], Answer::Done(_) | Answer::NotStored));
    assert!(matches!(parsed[1..3], [Answer::Done(_), Answer::Done(_)]));
    match parsed[3] {
        Answer::Value(list, Some(cas)) => (list.to_vec(), cas),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn write_back(client: &mut Client, cas: u64, list: &[u8]) -> Vec<u8> {
    ask(client, 1, |o| bytes::write_back(o, bytes::LIST, cas, list)).remove(0)
}

#[test]
fn lines_come_and_go() {
    let server = Memcached::start();
    let (mut one, mut two) = (server.client(), server.client());
    assert_eq!(list(&mut one), None);
    let (alone, old) = announce(&mut one, ONE);
    assert_eq!(alone, b"7f3a9c0d12e45b66 10.0.0.1:11211\n");
    let (both, cas) = announce(&mut two, TWO);
    assert_eq!(
        both,
        b"7f3a9c0d12e45b66 10.0.0.1:11211\n00112233aabbccdd 10.0.0.1:11211\n"
    );

    // What was appended since is never lost.
    let mut rest = Vec::new();
    Lines(&alone).keep(&mut rest, |line| line.id != ONE);
    let answer = write_back(&mut one, old, &rest);
    assert_eq!(Answer::parse(&answer), Answer::Changed);
    rest.clear();
    Lines(&both).keep(&mut rest, |line| line.id != ONE);
    let answer = write_back(&mut one, cas, &rest);
    let Answer::Done(Some(new)) = Answer::parse(&answer) else {
        panic!("{}", answer.escape_ascii());
    };
    assert_eq!(list(&mut two), Some((rest.clone(), new)));

    // A list that is written back as it was is another list.
    let answer = write_back(&mut two, new, &rest);
    let Answer::Done(Some(newer)) = Answer::parse(&answer) else {
        panic!("{}", answer.escape_ascii());
    };
    assert_ne!(newer, new);
    assert_eq!(write_back(&mut two, new, b""), b"EX\r\n");
    assert_eq!(write_back(&mut two, newer, b""), b"HD\r\n");
    assert_eq!(write_back(&mut two, newer, b""), b"NF\r\n");
    let answer = write_back(&mut two, newer, &rest);
    assert_eq!(Answer::parse(&answer), Answer::Absent);
    assert_eq!(list(&mut one), None);
}

#[test]
fn a_line_is_not_appended_to_a_list_that_went_meanwhile() {
    let server = Memcached::start();
    let mut client = server.client();
    let mut requests = Vec::new();
    bytes::append(&mut requests, bytes::LIST, ONE, X);
    let at = requests
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .expect("two requests")
        + 4;
    assert_eq!(
        ask(&mut client, 1, |o| o.extend_from_slice(&requests[..at])),
        [b"HD\r\n"]
    );
    ask(&mut client, 1, |o| bytes::delete(o, bytes::LIST));
    let answers = ask(&mut client, 1, |o| o.extend_from_slice(&requests[at..]));
    assert_eq!(Answer::parse(&answers[0]), Answer::NotStored);
}

/// A look shows whether the list is there and still the one that was read, and is no get and no miss.
#[test]
fn a_look_counts_as_nothing() {
    let server = Memcached::start();
    let mut client = server.client();
    let counts = |client: &mut Client| {
        let all = client.stats("stats\r\n");
        ["cmd_get", "get_hits", "get_misses", "cmd_touch", "cmd_meta"]
            .map(|name| all[name].clone())
            .to_vec()
    };
    let before = counts(&mut client);
    let look = |client: &mut Client| ask(client, 1, |o| bytes::look(o, bytes::LIST)).remove(0);
    assert_eq!(Answer::parse(&look(&mut client)), Answer::Absent);
    let after = counts(&mut client);
    assert_eq!(before[..4], after[..4]);
    let (_, cas) = announce(&mut client, ONE);
    let before = counts(&mut client);
    assert_eq!(Answer::parse(&look(&mut client)), Answer::There(cas));
    assert_eq!(Answer::parse(&look(&mut client)), Answer::There(cas));
    let after = counts(&mut client);
    assert_eq!(before[..4], after[..4]);
    let (_, other) = announce(&mut client, TWO);
    assert_eq!(Answer::parse(&look(&mut client)), Answer::There(other));
    assert_ne!(other, cas);
}

/// The list has no end of its own, holds have: a few seconds, more than are needed to renew them.
#[test]
fn holds_run_out_and_lists_do_not() {
    let server = Memcached::start();
    let mut client = server.client();
    announce(&mut client, ONE);
    let key = String::from_utf8(bytes::hold_key(ONE, X)).expect("base64");
    let lives = client.ask_line(format!("mg {key} b t\r\n"));
    let life = bytes::LIFE;
    assert!(
        [life, life - 1].iter().any(|t| lives == format!("HD t{t}")),
        "{lives}"
    );
    assert_eq!(client.ask_line("mg AG1hZ2VudC9h b t\r\n"), "HD t-1");
    let answer = ask(&mut client, 1, |o| bytes::read(o, key.as_bytes())).remove(0);
    let Answer::Value(hold, _) = Answer::parse(&answer) else {
        panic!("{}", answer.escape_ascii());
    };
    assert_eq!(hold, b"1 web1 4711");
    ask(&mut client, 1, |o| bytes::delete(o, key.as_bytes()));
    let answer = ask(&mut client, 1, |o| bytes::read(o, key.as_bytes())).remove(0);
    assert_eq!(Answer::parse(&answer), Answer::Absent);
}

/// Only the first one refills.
#[test]
fn a_refiller_is_one() {
    let server = Memcached::start();
    let mut client = server.client();
    let refill = |o: &mut Vec<u8>| bytes::store(o, bytes::REFILLER, b"one", true);
    let first = ask(&mut client, 1, refill).remove(0);
    assert_eq!(Answer::parse(&first), Answer::Done(None));
    let second = ask(&mut client, 1, refill).remove(0);
    assert_eq!(Answer::parse(&second), Answer::NotStored);
}

/// No text client can name magent's keys: not even memcached takes them.
#[test]
fn text_does_not_reach_the_keys() {
    let server = Memcached::start();
    let mut client = server.client();
    announce(&mut client, ONE);
    for request in [
        &b"get \0magent/a\r\n"[..],
        b"delete \0magent/a\r\n",
        b"mg \0magent/a v\r\n",
    ] {
        client.ask(request, "ERROR\r\n");
    }
    assert!(list(&mut client).is_some());
}

/// One counter per server: each store takes the next number, whatever its key; deletes and touches
/// take none; a restarted server begins again, so a number is good on one link only.
#[test]
fn cas_numbers() {
    let mut server = Memcached::start();
    let mut client = server.client();
    client
        .ask("ms a 1 c\r\n1\r\n", "HD c1\r\n")
        .ask("ms b 1 c\r\n1\r\n", "HD c2\r\n")
        .ask("md a\r\n", "HD\r\n")
        .ask("mg b c T50\r\n", "HD c2\r\n")
        .ask("touch b 100\r\n", "TOUCHED\r\n")
        .ask("ms a 1 c\r\n2\r\n", "HD c3\r\n")
        .ask("ms b 1 MA c\r\nx\r\n", "HD c4\r\n")
        .ask("ma n N0 J5 c v\r\n", "VA 1 c5\r\n5\r\n")
        .ask("ma n c v\r\n", "VA 1 c6\r\n6\r\n");
    // Only the number that is there deletes.
    client
        .ask("md b C3\r\n", "EX\r\n")
        .ask("md b C4\r\n", "HD\r\n")
        .ask("md b C4\r\n", "NF\r\n");
    server.restart();
    server
        .client()
        .ask("ms r 1 c\r\n1\r\n", "HD c1\r\n")
        .ask("ms r 1 c\r\n1\r\n", "HD c2\r\n");
}

/// Where it is told to keep none, the answer shows it.
#[test]
fn a_server_without_cas_says_so() {
    let server = Memcached::with(&["-C"]);
    let mut client = server.client();
    let answer = client.send("ms a 1 c\r\n1\r\n").read_line();
    assert_eq!(Answer::parse(&answer), Answer::Done(Some(0)));
}

/// Who looks at a stale item does not take the win of the client that would renew it.
#[test]
fn a_look_takes_no_win() {
    let server = Memcached::start();
    let mut client = server.client();
    client
        .ask("ms w 1 c\r\n1\r\n", "HD c1\r\n")
        .ask("md w I\r\n", "HD\r\n");
    let look = client.send("me w\r\n").read_line();
    assert!(matches!(Answer::parse(&look), Answer::There(2)));
    client
        .ask("gets w\r\n", "VALUE w 0 1 2\r\n1\r\nEND\r\n")
        .ask("mg w c\r\n", "HD c2 X W\r\n")
        .ask("mg w c\r\n", "HD c2 Z X\r\n");
}

/// A flush takes lists and holds away: they must be announced again.
#[test]
fn a_flush_takes_lines_away() {
    let server = Memcached::start();
    let mut client = server.client();
    announce(&mut client, ONE);
    client.ask("flush_all\r\n", "OK\r\n");
    assert_eq!(list(&mut client), None);
    // What is announced behind it in the same write stands.
    client.send("flush_all\r\n");
    let (lines, _) = {
        let mut out = Vec::new();
        bytes::append(&mut out, bytes::LIST, ONE, X);
        bytes::read(&mut out, bytes::LIST);
        client.send(&out).expect("OK\r\nHD\r\nHD\r\n");
        match Answer::parse(&read_answer(&mut client)) {
            Answer::Value(list, Some(cas)) => (list.to_vec(), cas),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(lines, b"7f3a9c0d12e45b66 10.0.0.1:11211\n");
}

/// A stopped server executes what had been sent to it when it goes on, also when its sender has
/// closed or reset the connection since: so whoever flushes for the dead waits.
#[test]
fn a_stopped_server_executes_what_the_dead_sent() {
    let server = Memcached::start();
    for reset in [false, true] {
        let mut dead = server.client();
        dead.set("dead", "old");
        server.stop();
        dead.send("set dead 0 0 4\r\nlate\r\n");
        if !reset {
            dead.half_close();
        }
        // Dropping it resets the connection.
        drop(dead);
        server.cont();
        wait_for("the late write", || {
            let value = server.value("dead");
            (value.as_deref() == Some(b"late")).then_some(())
        });
    }
}
