//! Every bound of magent, what happens at it, and its counter in `stats proxy`. Reaching one
//! touches the client or server concerned, never the process, never another.
//!
//! Most of it runs on the core alone, with a clock of the test's; what needs the kernel is in
//! `limits/process.rs`.

mod common;
#[path = "limits/memory.rs"]
mod memory;
#[path = "limits/process.rs"]
mod process;

use common::world::State;
use common::{Peer, World};
use std::time::Duration;

const KB: usize = 1024;
const MB: usize = 1024 * 1024;

/// No timeouts, since time is not what these tests are about.
const PATIENT: [&str; 4] = ["--timeout", "86400000", "--connect-timeout", "86400000"];

fn core(options: &[&str]) -> World {
    World::new(&[&["-s", "127.0.0.1:1"][..], &PATIENT, options].concat())
}

/// A key on the one of two servers.
fn key_on(server: usize, len: usize, number: usize) -> String {
    common::keys::key_on(server, 2, &format!("k{len}."), number)
}

#[test]
fn a_thousand_requests_in_flight_pause_their_client_until_half_is_answered() {
    let mut core = core(&[]);
    let greedy = core.old_client();
    core.become_state(1, State::Silent);
    core.send(&greedy, "get k1\r\n".repeat(1024));
    core.step();
    assert_eq!(core.requests(1), 1024);
    core.send(&greedy, "get k1\r\n".repeat(76));
    core.step();
    assert_eq!(core.requests(1), 1024);
    let other = core.client();
    core.send(&other, "get k1\r\n");
    core.step();
    assert_eq!(core.requests(1), 1025, "others are read");
    let answer = "END\r\n";
    core.serve_late(1, answer.repeat(511).as_bytes());
    assert_eq!(core.requests(1), 1025);
    core.serve_late(1, answer.as_bytes());
    assert_eq!(core.requests(1), 1101);
    core.serve_late(1, answer.repeat(589).as_bytes());
    assert_eq!(core.take_text(&greedy), answer.repeat(1100));
    assert_eq!(core.take_text(&other), answer);
    assert_eq!(core.stat("limit_client_paused"), 1);
}

/// Those that connect, ask thousands of times and leave have little sent for them.
#[test]
fn a_client_that_has_taken_no_answer_has_few_requests_in_flight() {
    let mut core = core(&[]);
    core.become_state(1, State::Silent);
    let new = core.client();
    core.send(&new, "get k1\r\n".repeat(1100));
    core.step();
    let (mut sent, mut answered) = (0, 0);
    for most in [20, 40, 80, 160, 320, 640, 1024] {
        assert_eq!(core.requests(1) - answered, most.min(1100 - answered));
        sent = core.requests(1);
        core.serve_late(1, "END\r\n".repeat(sent - answered).as_bytes());
        assert_eq!(core.take_text(&new), "END\r\n".repeat(sent - answered));
        answered = sent;
    }
    assert_eq!(sent, 1100);
}

#[test]
fn a_megabyte_owed_pauses_its_client_until_half_is_taken() {
    let mut core = core(&["-m", "64m"]);
    let greedy = core.client().narrow(128 * KB);
    let get = "get k60000\r\n";
    let mut sent = 0;
    loop {
        core.send(&greedy, get);
        core.step();
        sent += 1;
        if core.requests(1) < sent {
            break;
        }
        assert!(sent < 100, "it is never paused");
    }
    // What it has not taken stands in its own 128 KB first.
    let (least, most) = (MB / 60_000, (MB + 128 * KB) / 60_000 + 2);
    assert!((least..=most).contains(&sent), "{sent}");
    let other = core.client();
    assert!(core.ask(&other, "get k5\r\n").contains("vvvvv"));
    let mut taken = 0;
    while core.requests(1) < sent + 1 {
        taken += core.take(&greedy).len();
        core.step();
        assert!(taken < 2 * MB, "it is never resumed");
    }
    assert!((MB / 2 - 128 * KB..MB).contains(&taken), "{taken}");
    taken += core.take_all(&greedy).len();
    assert_eq!(
        taken,
        sent * ("VALUE k60000 0 60000\r\n\r\nEND\r\n".len() + 60_000)
    );
    assert_eq!(core.stat("limit_client_paused"), 1);
    assert_eq!(core.stat("bytes_in_flight"), 0);
}

#[test]
fn a_client_that_takes_nothing_of_what_it_is_owed_is_closed() {
    let mut core = core(&[]);
    let idle = core.client();
    let (none, slow) = (core.client().narrow(100), core.client().narrow(100));
    core.send(&none, "get k60000\r\n");
    core.send(&slow, "get k60000\r\n");
    core.step();
    for _ in 0..3 {
        core.advance(Duration::from_secs(14));
        core.take(&slow);
        core.step();
    }
    assert!(none.is_closed() && !slow.is_closed() && !idle.is_closed());
    assert_eq!(core.stat("limit_client_stalled"), 1);
    assert_eq!(core.take_all(&slow).len() % 100, 29);
    assert_eq!(core.stat("bytes_in_flight"), 0);
}

#[test]
fn a_client_that_stops_in_the_middle_of_much_is_closed_and_a_slow_typist_is_not() {
    let mut core = core(&[]);
    let (much, line, slow) = (core.client(), core.client(), core.client());
    let (little, typist) = (core.client(), core.client());
    let value = format!("set k 0 0 100000\r\n{}", "v".repeat(70_000));
    core.send(&much, &value);
    core.send(&slow, &value);
    core.send(&line, "get ".to_string() + &"k ".repeat(35_000));
    core.send(&little, &value[..60_000]);
    core.send(&typist, "get ");
    for _ in 0..3 {
        core.advance(Duration::from_secs(14));
        core.send(&slow, "v");
        core.step();
    }
    assert!(much.is_closed() && line.is_closed());
    assert!(!slow.is_closed() && !little.is_closed() && !typist.is_closed());
    core.advance(Duration::from_secs(600));
    assert!(slow.is_closed() && !little.is_closed());
    assert_eq!(core.stat("limit_client_half_sent"), 3);
    assert_eq!(
        core.ask(&typist, "k5\r\n"),
        "VALUE k5 0 5\r\nvvvvv\r\nEND\r\n"
    );
}

#[test]
fn a_silent_client_is_closed_only_where_that_was_asked_for() {
    let mut patient = core(&[]);
    let idle = patient.client();
    patient.advance(Duration::from_secs(100));
    assert!(!idle.is_closed());
    let mut core = core(&["--idle-timeout", "10"]);
    let (idle, busy, waiting) = (core.client(), core.client(), core.client());
    core.become_state(1, State::Silent);
    core.send(&waiting, "get k1\r\n");
    for _ in 0..3 {
        core.advance(Duration::from_secs(6));
        core.ask(&busy, "version\r\n");
    }
    assert!(idle.is_closed() && !busy.is_closed());
    assert!(!waiting.is_closed(), "it is owed an answer");
    assert_eq!(core.stat("limit_client_idle"), 1);
}

/// Two servers, the first silent; clients that have sent it as much as it may be asked.
fn crowd(core: &mut World) -> Vec<Peer> {
    core.become_state(1, State::Silent);
    let key = key_on(0, 1, 0);
    let crowd: Vec<Peer> = (0..64).map(|_| core.old_client()).collect();
    for peer in &crowd {
        core.send(peer, format!("get {key}\r\n").repeat(1024));
    }
    core.step();
    assert_eq!(core.requests(1), 64 * 1024);
    crowd
}

#[test]
fn a_server_that_owes_64k_answers_pauses_the_clients_that_want_more_of_it() {
    let two = ["-s", "127.0.0.1:1", "-s", "127.0.0.1:2"];
    let mut core = World::new(&[&two[..], &PATIENT].concat());
    let crowd = crowd(&mut core);
    let (one, many, other) = (core.client(), core.client(), core.client());
    let (full, free) = (key_on(0, 1, 0), key_on(1, 1, 0));
    assert_eq!(core.ask(&one, format!("get {full}\r\n")), "");
    // What can be had at once comes at once.
    let first = format!("VALUE {free} 0 1\r\nv\r\n");
    assert_eq!(core.ask(&many, format!("get {free} {full}\r\n")), first);
    assert!(core.ask(&other, format!("get {free}\r\n")).contains("END"));
    assert_eq!(core.requests(1), 64 * 1024);
    let half = 32 * 1024;
    core.serve_late(1, "END\r\n".repeat(half - 1).as_bytes());
    assert_eq!(core.requests(1), 64 * 1024);
    core.serve_late(1, b"END\r\n");
    assert_eq!(core.requests(1), 64 * 1024 + 2);
    core.serve_late(1, "END\r\n".repeat(half + 2).as_bytes());
    assert_eq!(core.take_text(&one), "END\r\n");
    assert_eq!(core.take_text(&many), "END\r\n");
    for peer in crowd {
        assert_eq!(core.take(&peer).len(), 1024 * 5);
    }
    assert_eq!(core.stat("limit_server_paused"), 2);
}

/// The bound holds for whoever is asked: also for a backup that stands in.
#[test]
fn a_backup_that_stands_in_is_bounded_too() {
    let farm = ["-s", "127.0.0.1:1", "-b", "127.0.0.1:2"];
    let mut core = World::new(&[&farm[..], &PATIENT].concat());
    core.become_state(1, State::Gone);
    core.become_state(2, State::Silent);
    let crowd: Vec<Peer> = (0..66).map(|_| core.old_client()).collect();
    for peer in &crowd {
        core.send(peer, "get k1\r\n");
    }
    core.step();
    for peer in &crowd[..33] {
        core.send(peer, "get k1\r\n".repeat(1023));
    }
    for peer in &crowd[33..] {
        core.send(peer, "get k1 k2\r\n".repeat(1023));
    }
    core.step();
    let in_flight = core.requests(2);
    assert!(
        (64 * 1024..64 * 1024 + 4).contains(&in_flight),
        "{in_flight}"
    );
    core.serve_late(2, "END\r\n".repeat(in_flight).as_bytes());
    assert!(core.requests(2) > in_flight, "they go on");
    assert!(core.stat("limit_server_paused") >= 1);
}

#[test]
fn a_server_that_owes_64_mb_pauses_the_clients_that_want_more_of_it() {
    let mut core = core(&["-m", "1g"]);
    core.become_state(1, State::Silent);
    let set = format!("set k 0 0 1000000\r\n{}\r\n", "v".repeat(1_000_000));
    let crowd: Vec<Peer> = (0..70).map(|_| core.client()).collect();
    for peer in &crowd {
        core.send(peer, &set);
        core.step();
    }
    // 64 MiB are 67.1 of these; what has arrived is not refused, the next request waits.
    let sent = core.requests(1);
    for peer in &crowd {
        core.send(peer, "get k1\r\n");
    }
    core.step();
    assert!((68..=70).contains(&sent), "{sent}");
    assert_eq!(core.requests(1), sent);
    core.serve_late(1, "STORED\r\n".repeat(sent).as_bytes());
    assert!(core.requests(1) > sent);
    assert!(core.stat("limit_server_paused") >= 70);
}

/// With little memory it is a quarter of that: a server that hangs must not pause everybody, and
/// must not count as up because nobody asks it any more.
#[test]
fn a_server_that_owes_a_quarter_of_the_memory_stops_nobody_else_and_is_down_in_the_end() {
    let two = ["-s", "127.0.0.1:1", "-s", "127.0.0.1:2", "-m", "16m"];
    for links in ["1", "4"] {
        let mut core = World::new(&[&two[..], &["-i", links]].concat());
        let (here, there) = (key_on(0, 5, 0), key_on(1, 5, 0));
        let (writer, other) = (core.client(), core.client());
        let get = format!("get {there}\r\n");
        assert!(
            core.ask(&writer, format!("get {here}\r\n"))
                .ends_with("END\r\n")
        );
        core.become_state(1, State::Hung);
        let value = "v".repeat(1_000_000);
        let set = format!("set {here} 0 0 1000000\r\n{value}\r\n");
        core.send(&writer, set.repeat(40));
        for _ in 0..12 {
            core.advance(Duration::from_millis(500));
            let answer = core.ask(&other, &get);
            assert!(
                answer.ends_with("END\r\n"),
                "{answer:?} {links} {:?}",
                core.stats("stats proxy\r\n")
            );
        }
        let servers = core.stats("stats servers\r\n");
        assert_eq!(servers["127.0.0.1:1:state"], "down", "{servers:?}");
        assert_eq!(core.take_text(&writer).matches("SERVER_ERROR").count(), 40);
        assert_eq!(core.stat("limit_memory_paused"), 0);
        assert_eq!(core.stat("bytes_in_flight"), 0);
    }
}

/// One request that does not go out whole, and has timed out, is all that its link may hold: nothing
/// else will time out there, and still the server is found to hang.
#[test]
fn a_link_that_one_request_fills_for_ever_is_given_up() {
    let mut core = World::new(&["-s", "127.0.0.1:1", "-m", "8m", "-i", "4"]);
    core.link_room = 64 * KB;
    let (writer, reader) = (core.client(), core.client());
    assert!(core.ask(&writer, "get k1\r\n").ends_with("END\r\n"));
    core.become_state(1, State::Hung);
    let value = "v".repeat(1_000_000);
    core.send(&writer, format!("set k1 0 0 1000000\r\n{value}\r\n"));
    core.advance(Duration::from_millis(2500));
    let refused = core.take_text(&writer);
    assert_eq!(refused, "SERVER_ERROR 127.0.0.1:1 timed out\r\n");
    core.send(&reader, "get k1\r\n");
    assert_eq!(core.take_text(&reader), "", "its link is full");
    core.advance(Duration::from_secs(3));
    let answer = core.take_text(&reader);
    assert_eq!(answer, "SERVER_ERROR 127.0.0.1:1 down\r\n");
}

/// However little that is for each of many links.
#[test]
fn with_next_to_no_memory_and_many_links_requests_are_served() {
    let mut core = core(&["-I", "1k", "-m", "4k", "-i", "1024"]);
    let client = core.client();
    assert!(core.ask(&client, "get k1\r\n").ends_with("END\r\n"));
}

#[test]
fn mirrors_for_a_full_backup_go_to_its_journal() {
    let farm = ["-s", "127.0.0.1:1", "-b", "127.0.0.1:2", "--refill", "0"];
    let mut core = World::new(&[&farm[..], &PATIENT].concat());
    core.become_state(2, State::Silent);
    let writer = core.client();
    let per_round = 1000;
    for _ in 0..66 {
        core.send(&writer, "set k 0 0 1\r\nv\r\n".repeat(per_round));
        core.step();
        assert_eq!(core.take(&writer).len(), per_round * "STORED\r\n".len());
    }
    let journaled = core.stat("limit_mirrors_journaled");
    assert_eq!(journaled, 66_000 - 65_536);
    let servers = core.stats("stats servers\r\n");
    assert_eq!(servers["127.0.0.1:2:journal_keys"], "1");
    assert_eq!(servers["127.0.0.1:2:mirrors"], "65536");
    assert_eq!(servers["127.0.0.1:2:mirrors_failed"], journaled.to_string());
    assert!(core.requests(2) <= 64 * 1024 + 1, "{}", core.requests(2));
    // The journal is told it as soon as the backup goes on, behind the last mirror.
    core.serve_late(2, "STORED\r\n".repeat(65_536).as_bytes());
    core.serve_late(2, b"DELETED\r\n");
    let servers = core.stats("stats servers\r\n");
    assert_eq!(servers["127.0.0.1:2:journal_keys"], "0");
    assert_eq!(servers["127.0.0.1:2:in_flight"], "0");
}

#[test]
fn a_journal_has_its_bound() {
    let farm = [
        "-s",
        "127.0.0.1:1",
        "-b",
        "127.0.0.1:2",
        "--journal",
        "64k",
        "--refill",
        "0",
    ];
    let mut core = World::new(&[&farm[..], &PATIENT].concat());
    core.become_state(2, State::Gone);
    let writer = core.client();
    for i in 0..5_000 {
        core.send(&writer, format!("set k{i} 0 0 1\r\nv\r\n"));
        core.step();
    }
    assert_eq!(core.take(&writer).len(), 5_000 * "STORED\r\n".len());
    assert_eq!(core.stat("limit_journal_overflows"), 1);
    let servers = core.stats("stats servers\r\n");
    assert_eq!(servers["127.0.0.1:2:journal_overflows"], "1");
    assert_eq!(servers["127.0.0.1:2:state"], "down");
    let bytes: usize = servers["127.0.0.1:2:journal_bytes"].parse().unwrap();
    assert!(bytes <= 64 * KB, "{bytes}");
    core.become_state(2, State::Well);
    core.advance(Duration::from_secs(5));
    let servers = core.stats("stats servers\r\n");
    assert_eq!(servers["127.0.0.1:2:state"], "up");
    assert_eq!(servers["127.0.0.1:2:journal_keys"], "0");
    assert_eq!(core.requests(2), 1, "one flush_all and no deletes");
}

#[test]
fn more_clients_than_allowed_are_turned_away_until_one_leaves() {
    let mut core = core(&["-n", "3"]);
    let clients: Vec<Peer> = (0..3).map(|_| core.client()).collect();
    assert!(core.try_client().is_none() && core.try_client().is_none());
    assert!(core.ask(&clients[0], "version\r\n").starts_with("VERSION"));
    clients.into_iter().for_each(|c| core.leave(c));
    assert!(core.try_client().is_some());
    assert_eq!(core.stat("rejected_connections"), 2);
    assert_eq!(core.stat("max_connections"), 3);
}

/// What a full backup was not told must not be read from it.
#[test]
fn a_backup_is_told_what_it_missed_before_it_stands_in() {
    let farm = ["-s", "127.0.0.1:1", "-b", "127.0.0.1:2"];
    let mut core = World::new(&[&farm[..], &PATIENT].concat());
    core.become_state(2, State::Silent);
    let writer = core.client();
    for _ in 0..66 {
        core.send(&writer, "set k1 0 0 1\r\nv\r\n".repeat(1000));
        core.step();
        core.take(&writer);
    }
    let told = core.requests(2);
    core.become_state(1, State::Gone);
    core.close_links(1);
    core.send(&writer, "get k1 k2\r\n");
    core.step();
    assert_eq!(core.requests(2), told + 3, "a delete, then two gets");
    core.serve_late(2, "STORED\r\n".repeat(65_536).as_bytes());
    core.serve_late(2, b"DELETED\r\nEND\r\nVALUE k2 0 1\r\nv\r\nEND\r\n");
    assert_eq!(core.take_text(&writer), "VALUE k2 0 1\r\nv\r\nEND\r\n");
}
