//! Every bound of magent, what happens at it, and its counter in `stats proxy`. Reaching one
//! touches the client or server concerned, never the process, never another.
//!
//! Most of it runs on the core alone, with a clock of the test's; what needs the kernel is in
//! `limits/process.rs`.

mod common;
#[path = "limits/process.rs"]
mod process;

use common::world::State;
use common::world::store::filled;
use common::{Peer, World};
use std::time::Duration;

const OUT_OF_MEMORY_READING: &str = "SERVER_ERROR out of memory reading\r\n";
const OUT_OF_MEMORY_STORING: &str = "SERVER_ERROR out of memory storing object\r\n";

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

/// So many clients that asked for a value of 60 KB and take nothing.
fn holders(core: &mut World, count: usize) -> Vec<Peer> {
    let all: Vec<Peer> = (0..count).map(|_| core.client().narrow(10)).collect();
    for peer in &all {
        core.send(peer, "get k60000\r\n");
    }
    core.step();
    all
}

#[test]
fn over_three_quarters_of_the_memory_clients_are_not_read_until_it_falls() {
    let mut core = core(&["-m", "1m", "-I", "256k"]);
    let slow = holders(&mut core, 14);
    let other = core.client();
    assert_eq!(core.ask(&other, "get k1\r\n"), "");
    let late = core.client();
    assert_eq!(core.ask(&late, "version\r\n"), "");
    for peer in slow {
        core.take_all(&peer);
    }
    core.step();
    assert_eq!(core.take_text(&other), "VALUE k1 0 1\r\nv\r\nEND\r\n");
    assert!(core.take_text(&late).starts_with("VERSION"));
    assert!(core.stat("limit_memory_paused") >= 2);
    assert_eq!(core.stat("bytes_in_flight"), 0);
}

/// What one client asks for and does not take must not fill the memory for all.
#[test]
fn a_client_that_takes_nothing_of_much_stops_nobody_else() {
    for greedy in [1, 2, 7] {
        let mut core = core(&["-m", "16m", "-I", "256k"]);
        let holders: Vec<Peer> = (0..greedy).map(|_| core.client().narrow(100)).collect();
        for peer in &holders {
            core.send(peer, "get k60000\r\n".repeat(1000));
        }
        core.step();
        let held = core.stat("bytes_in_flight") as usize;
        assert!((5 * MB..12 * MB).contains(&held), "{held} of {greedy}");
        let other = core.client();
        let answer = core.ask(&other, "get k60000\r\n");
        assert!(answer.ends_with("v\r\nEND\r\n"), "{answer}");
        assert_eq!(core.stat("limit_memory_paused"), 0);
        for peer in &holders {
            let answers = core.take_all(peer);
            let told = answers.ends_with(OUT_OF_MEMORY_READING.as_bytes());
            assert!(told, "{}", common::show(&answers));
        }
        assert_eq!(core.stat("bytes_in_flight"), 0);
    }
}

/// So many that each holds a little fill it; then others wait, but not for ever.
#[test]
fn clients_that_take_their_answers_a_byte_at_a_time_do_not_keep_others_waiting_for_ever() {
    let mut core = core(&["-m", "1m", "-I", "256k"]);
    let slow = holders(&mut core, 16);
    let other = core.client();
    for _ in 0..100 {
        assert_eq!(core.ask(&other, "get k5\r\n"), "");
        core.advance(Duration::from_secs(1));
        assert_eq!(core.take_text(&other), "VALUE k5 0 5\r\nvvvvv\r\nEND\r\n");
        for peer in &slow {
            core.take(peer);
        }
    }
    assert!(!slow.iter().any(Peer::is_closed));
}

/// Whoever is paused is served slowly, but whatever it is in the middle of.
#[test]
fn what_comes_while_memory_is_short_is_served_within_seconds() {
    for (holding, told) in [(13, "STORED\r\n"), (16, OUT_OF_MEMORY_STORING)] {
        let mut core = core(&["-m", "1m", "-I", "256k"]);
        let slow = holders(&mut core, holding);
        let (writer, other, last) = (core.client(), core.client(), core.client());
        let value = "v".repeat(100_000);
        core.send(
            &writer,
            format!("set k 0 0 100000\r\n{value}\r\nget k5\r\n"),
        );
        core.send(&other, "get k5\r\nflush_all\r\nget k5\r\n");
        core.send(&last, "get k5\r\nflush_all\r\nget k5\r\n");
        core.step();
        core.end(&last);
        core.advance(Duration::from_secs(4));
        let got = "VALUE k5 0 5\r\nvvvvv\r\nEND\r\n";
        assert_eq!(core.take_text(&writer), format!("{told}{got}"));
        assert_eq!(core.take_text(&other), format!("{got}OK\r\n{got}"));
        assert_eq!(core.take_text(&last), format!("{got}OK\r\n{got}"));
        core.advance(Duration::from_secs(2));
        assert!(last.is_closed());
        assert!(!slow.iter().any(Peer::is_closed));
    }
}

/// The bytes of a request that waits for a fetch count like those of any other.
#[test]
fn requests_that_wait_for_a_warming_primary_are_counted_with_their_values() {
    let farm = ["-s", "127.0.0.1:1", "-b", "127.0.0.1:2", "--warm", "200000"];
    let mut core = World::new(&[&farm[..], &PATIENT].concat());
    let writer = core.client();
    core.ask(&writer, "get k1\r\n");
    core.become_state(1, State::Silent);
    let add = format!("add k 0 0 4000\r\n{}\r\n", "v".repeat(4000));
    core.send(&writer, add.repeat(100));
    core.step();
    let held = core.stat("bytes_in_flight") as usize;
    assert!((400 * KB..500 * KB).contains(&held), "{held}");
    core.serve_late(1, b"NF\r\n");
}

#[test]
fn a_get_that_memory_has_no_room_for_is_told_so() {
    let mut core = core(&["-m", "1m", "-I", "256k"]);
    core.become_state(1, State::Silent);
    let slow: Vec<Peer> = (0..20).map(|_| core.client()).collect();
    for peer in &slow {
        core.send(peer, "get k60000\r\n");
    }
    core.step();
    let mut late = Vec::new();
    for _ in 0..20 {
        late.extend(filled(&["k60000"]));
    }
    let slow: Vec<Peer> = slow.into_iter().map(|p| p.narrow(100)).collect();
    core.serve_late(1, &late);
    let answers: Vec<String> = slow
        .iter()
        .map(|p| String::from_utf8_lossy(&core.take_all(p)).into_owned())
        .collect();
    let refused = answers.iter().filter(|a| *a == OUT_OF_MEMORY_READING);
    let whole = answers.iter().filter(|a| a.len() > 60_000);
    assert_eq!(refused.clone().count() + whole.count(), 20);
    assert!((1..15).contains(&refused.clone().count()));
    assert_eq!(core.stat("limit_memory_gets"), refused.count() as u64);
    assert_eq!(core.stat("bytes_in_flight"), 0);
}

#[test]
fn a_value_larger_than_a_chunk_that_memory_has_no_room_for_is_swallowed() {
    let mut core = core(&["-m", "1m", "-I", "256k"]);
    core.become_state(1, State::Silent);
    let slow: Vec<Peer> = (0..8).map(|_| core.client().narrow(100)).collect();
    for peer in &slow {
        core.send(peer, "get k250000\r\n");
    }
    let after = core.client();
    core.send(&after, "get k5\r\n");
    core.step();
    let mut late = Vec::new();
    for _ in 0..8 {
        late.extend(filled(&["k250000"]));
    }
    late.extend(filled(&["k5"]));
    core.serve_late(1, &late);
    let (mut refused, mut whole) = (0, 0);
    for peer in &slow {
        match core.take_all(peer) {
            answer if answer == OUT_OF_MEMORY_READING.as_bytes() => refused += 1,
            answer if answer.len() > 250_000 => whole += 1,
            answer => panic!("{}", common::show(&answer)),
        }
    }
    assert!(refused >= 4 && whole >= 1, "{refused} {whole}");
    // Whatever was thrown away, the link is in step.
    assert_eq!(core.take_text(&after), "VALUE k5 0 5\r\nvvvvv\r\nEND\r\n");
    assert_eq!(core.stat("limit_memory_gets"), refused);
    assert_eq!(core.stat("bytes_in_flight"), 0);
}

/// An error may come behind a value that was thrown away: there are no bytes left to cut it from.
#[test]
fn an_error_behind_a_value_that_was_swallowed_keeps_the_link_in_step() {
    let mut core = core(&["-m", "1m", "-I", "256k"]);
    core.become_state(1, State::Silent);
    let slow = holders(&mut core, 16);
    let (victim, after) = (core.client(), core.client());
    core.send(&victim, "get k250000\r\n");
    core.send(&after, "get k5\r\n");
    core.step();
    let mut late = Vec::new();
    for _ in &slow {
        late.extend(filled(&["k60000"]));
    }
    late.extend(filled(&["k250000"]));
    late.truncate(late.len() - "END\r\n".len());
    late.extend_from_slice(b"SERVER_ERROR it broke\r\n");
    late.extend(filled(&["k5"]));
    core.serve_late(1, &late);
    assert_eq!(core.take_text(&victim), OUT_OF_MEMORY_READING);
    assert_eq!(core.take_text(&after), "VALUE k5 0 5\r\nvvvvv\r\nEND\r\n");
    slow.iter().for_each(|p| drop(core.take_all(p)));
    assert_eq!(core.stat("bytes_in_flight"), 0);
}

#[test]
fn in_a_get_of_several_keys_it_is_a_miss() {
    let two = ["-s", "127.0.0.1:1", "-s", "127.0.0.1:2", "-m", "1m"];
    let mut core = World::new(&[&two[..], &["-I", "256k"], &PATIENT].concat());
    core.become_state(1, State::Silent);
    let (small, large) = (key_on(1, 5, 0), key_on(0, 60_000, 0));
    let many = core.client();
    core.send(&many, format!("get {small} {large}\r\n"));
    core.step();
    // The other server's values fill the memory meanwhile.
    core.become_state(2, State::Silent);
    let other = key_on(1, 60_000, 0);
    let slow: Vec<Peer> = (0..16).map(|_| core.client().narrow(10)).collect();
    for peer in &slow {
        core.send(peer, format!("get {other}\r\n"));
    }
    core.step();
    let mut late = Vec::new();
    for _ in 0..16 {
        late.extend(filled(&[&other]));
    }
    core.serve_late(2, &late);
    late.clear();
    late.extend(filled(&[&large]));
    core.serve_late(1, &late);
    let answer = core.take_text(&many);
    assert_eq!(answer, format!("VALUE {small} 0 5\r\nvvvvv\r\nEND\r\n"));
    slow.iter().for_each(|p| drop(core.take_all(p)));
    assert!(core.stat("limit_memory_gets") >= 1);
}

/// Values that arrive side by side are bounded too, and those refused are swallowed.
#[test]
fn a_store_that_memory_has_no_room_for_is_told_so() {
    let mut core = core(&["-m", "1m", "-I", "256k"]);
    let writers: Vec<Peer> = (0..12).map(|_| core.client()).collect();
    let value = [b'v'; 50_000];
    for peer in &writers {
        core.send(peer, "set k 0 0 250000\r\n");
    }
    core.step();
    for _ in 0..4 {
        for peer in &writers {
            core.send(peer, value);
            core.step();
        }
    }
    let refused: Vec<&Peer> = writers.iter().filter(|p| p.arrived() > 0).collect();
    assert!(refused.len() >= 6, "{}", refused.len());
    for peer in &writers {
        core.send(peer, value);
        core.send(peer, "\r\nversion\r\n");
    }
    core.step();
    let (mut stored, mut told) = (0, 0);
    for peer in &writers {
        let answer = core.take_text(peer);
        let (first, rest) = answer.split_once("\r\n").expect("an answer");
        match first {
            "STORED" => stored += 1,
            _ if format!("{first}\r\n") == OUT_OF_MEMORY_STORING => told += 1,
            other => panic!("{other}"),
        }
        assert!(rest.starts_with("VERSION"), "{answer}");
    }
    assert_eq!(stored + told, 12);
    assert!(stored >= 3 && told >= 6, "{stored} {told}");
    assert_eq!(core.stat("limit_memory_stores"), told);
    assert_eq!(core.stat("bytes_in_flight"), 0);
}

/// What arrives in pieces is counted by about what it is, not by the chunks it was read into:
/// one client that sends half a value must not keep the others out.
#[test]
fn a_value_that_arrives_in_pieces_takes_little_more_memory_than_it_is_long() {
    let mut core = core(&["-m", "1m", "-I", "256k"]);
    let writer = core.client();
    core.send(&writer, "set k 0 0 250000\r\n");
    let mut sent = 0;
    for piece in [8 * KB, 9 * KB, 20 * KB, 33 * KB, 40 * KB, 68 * KB] {
        core.send(&writer, vec![b'v'; piece]);
        core.step();
        sent += piece;
        let held = core.stat("bytes_in_flight") as usize;
        assert!((sent..=2 * sent + KB).contains(&held), "{held} for {sent}");
    }
    core.send(&writer, vec![b'v'; 250_000 - sent]);
    core.send(&writer, "\r\n");
    core.step();
    assert_eq!(core.take_text(&writer), "STORED\r\n");
    assert_eq!(core.stat("bytes_in_flight"), 0);
}

/// Lines of a megabyte that never end must not keep the memory for ever.
#[test]
fn get_lines_that_never_end_cannot_hold_all_memory() {
    let mut core = core(&["-m", "4m", "-I", "256k"]);
    let line = format!("get{}", " kkkkkkkkk".repeat(90_000));
    let greedy: Vec<Peer> = (0..8).map(|_| core.client()).collect();
    for peer in &greedy {
        core.send(peer, &line[..900_000]);
    }
    core.step();
    let closed = greedy.iter().filter(|p| p.is_closed()).count();
    assert!((3..=5).contains(&closed), "{closed}");
    for peer in greedy.iter().filter(|p| p.is_closed()) {
        let told = core.take_text(peer);
        assert_eq!(told, "SERVER_ERROR out of memory reading request\r\n");
    }
    // Those that may stay hold the rest for half a minute at most.
    let patient = core.client();
    assert_eq!(core.ask(&patient, "version\r\n"), "");
    core.advance(Duration::from_secs(1));
    assert!(core.take_text(&patient).starts_with("VERSION"));
    core.advance(Duration::from_secs(31));
    assert!(greedy.iter().all(Peer::is_closed));
    assert_eq!(core.stat("limit_memory_requests"), closed as u64);
    assert_eq!(core.stat("limit_client_half_sent"), 8 - closed as u64);
    assert_eq!(core.stat("bytes_in_flight"), 0);
}

/// Clients are hardly read between requests; who is in the middle of one may end it.
#[test]
fn a_request_that_is_half_there_is_finished_though_memory_is_short() {
    let mut core = core(&["-m", "1m", "-I", "256k", "-n", "200"]);
    let early = core.client();
    core.send(&early, format!("set k 0 0 9000\r\n{}", "v".repeat(3000)));
    core.step();
    let half = format!("set k 0 0 16000\r\n{}", "v".repeat(15_000));
    let greedy: Vec<Peer> = (0..60).map(|_| core.client()).collect();
    greedy.iter().for_each(|p| core.send(p, &half));
    core.step();
    core.send(&early, "v".repeat(6000) + "\r\nversion\r\n");
    core.advance(Duration::from_secs(1));
    // Its next request waits for another second.
    assert_eq!(core.take_text(&early), "STORED\r\n");
    core.advance(Duration::from_secs(1));
    assert!(core.take_text(&early).starts_with("VERSION"));
    core.advance(Duration::from_secs(33));
    assert!(core.stat("limit_memory_paused") > 0);
    assert!(greedy.iter().any(Peer::is_closed));
}

/// The same in small: many clients, each in the middle of a request that waits whole.
#[test]
fn small_half_sent_requests_cannot_hold_all_memory() {
    let mut core = core(&["-m", "1m", "-I", "256k", "-n", "200"]);
    let half = format!("set k 0 0 16000\r\n{}", "v".repeat(15_000));
    let greedy: Vec<Peer> = (0..100).map(|_| core.client()).collect();
    greedy.iter().for_each(|p| core.send(p, &half));
    core.step();
    let patient = core.client();
    assert_eq!(core.ask(&patient, "version\r\n"), "");
    core.advance(Duration::from_secs(1));
    assert!(core.take_text(&patient).starts_with("VERSION"));
    core.advance(Duration::from_secs(34));
    assert!(core.stat("limit_client_half_sent") >= 40);
    // Those who went on get their answer, whoever was read first.
    let rest: Vec<&Peer> = greedy.iter().filter(|p| !p.is_closed()).collect();
    for peer in rest {
        core.send(peer, "v".repeat(1000) + "\r\n");
    }
    core.step();
    core.advance(Duration::from_secs(1));
    for peer in greedy.iter().filter(|p| !p.is_closed()) {
        assert_eq!(core.take_text(peer), "STORED\r\n");
    }
}

#[test]
fn a_thousand_requests_in_flight_pause_their_client_until_half_is_answered() {
    let mut core = core(&[]);
    core.become_state(1, State::Silent);
    let greedy = core.client();
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
    let crowd: Vec<Peer> = (0..64).map(|_| core.client()).collect();
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
    assert_eq!(core.ask(&many, format!("get {free} {full}\r\n")), "");
    assert!(core.ask(&other, format!("get {free}\r\n")).contains("END"));
    assert_eq!(core.requests(1), 64 * 1024);
    let half = 32 * 1024;
    core.serve_late(1, "END\r\n".repeat(half - 1).as_bytes());
    assert_eq!(core.requests(1), 64 * 1024);
    core.serve_late(1, b"END\r\n");
    assert_eq!(core.requests(1), 64 * 1024 + 2);
    core.serve_late(1, "END\r\n".repeat(half + 2).as_bytes());
    assert_eq!(core.take_text(&one), "END\r\n");
    assert_eq!(
        core.take_text(&many),
        format!("VALUE {free} 0 1\r\nv\r\nEND\r\n")
    );
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
    let crowd: Vec<Peer> = (0..66).map(|_| core.client()).collect();
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

/// However little that is for each of many links.
#[test]
fn with_next_to_no_memory_and_many_links_requests_are_served() {
    let mut core = core(&["-I", "1k", "-m", "4k", "-i", "1024"]);
    let client = core.client();
    assert!(core.ask(&client, "get k1\r\n").ends_with("END\r\n"));
}

#[test]
fn mirrors_for_a_full_backup_go_to_its_journal() {
    let farm = ["-s", "127.0.0.1:1", "-b", "127.0.0.1:2"];
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
    let farm = ["-s", "127.0.0.1:1", "-b", "127.0.0.1:2", "--journal", "64k"];
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
