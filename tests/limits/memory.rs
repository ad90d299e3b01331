//! What all connections together may hold, and each of them: its share is an eighth of what is
//! free. Whoever holds much waits, whoever holds little never does.

use super::common::world::State;
use super::common::world::store::filled;
use super::common::{Peer, World, show};
use super::{KB, MB, PATIENT, core, key_on};
use std::time::Duration;

const OUT_OF_MEMORY_READING: &str = "SERVER_ERROR out of memory reading\r\n";
const OUT_OF_MEMORY_STORING: &str = "SERVER_ERROR out of memory storing object\r\n";

/// So many clients that asked for a value of 60 KB and take nothing.
fn holders(core: &mut World, count: usize) -> Vec<Peer> {
    let all: Vec<Peer> = (0..count).map(|_| core.client().narrow(10)).collect();
    for peer in &all {
        core.send(peer, "get k60000\r\n");
    }
    core.step();
    all
}

/// Whoever holds little goes on, however much of the memory others hold.
#[test]
fn who_holds_little_is_served_while_others_hold_most_of_the_memory() {
    let mut core = core(&["-m", "1m", "-I", "256k"]);
    let other = core.client();
    let slow = holders(&mut core, 14);
    let held = core.stat("bytes_in_flight") as usize;
    assert!((MB / 2..=MB).contains(&held), "{held}");
    let late = core.client();
    for peer in [&other, &late] {
        assert_eq!(core.ask(peer, "get k1\r\n"), "VALUE k1 0 1\r\nv\r\nEND\r\n");
        assert_eq!(core.ask(peer, "set k1 0 0 1\r\nv\r\n"), "STORED\r\n");
        assert!(core.ask(peer, "version\r\n").starts_with("VERSION"));
    }
    // Each of the others gets its value, or the reason why not.
    for peer in slow {
        expect_values_or_reasons(&core.take_all(&peer), "k60000", 60_000, 1);
    }
    assert_eq!(core.stat("bytes_in_flight"), 0);
}

/// So many answers to gets of `key`: its value, or that there was no memory. Returns how many
/// values.
#[track_caller]
fn expect_values_or_reasons(answers: &[u8], key: &str, len: usize, count: usize) -> usize {
    let value = filled(&[key]);
    let refused = OUT_OF_MEMORY_READING.as_bytes();
    let (mut rest, mut values) = (answers, 0);
    for i in 0..count {
        rest = match (rest.strip_prefix(&value[..]), rest.strip_prefix(refused)) {
            (Some(rest), _) => {
                values += 1;
                rest
            }
            (_, Some(rest)) => rest,
            _ => panic!("answer {i} of {len} bytes: {}", show(rest)),
        };
    }
    assert!(rest.is_empty(), "more came: {}", show(rest));
    values
}

/// What one client asks for and does not take stays within its share, and is nothing to others;
/// what is more than its share is asked for when it has taken that.
#[test]
fn a_client_that_takes_nothing_of_much_stops_nobody_else() {
    const GETS: usize = 1000;
    for greedy in [1, 2, 7] {
        let mut core = core(&["-m", "16m", "-I", "256k"]);
        let other = core.client();
        let value = filled(&["k60000"]);
        // From now on it is known how large values are.
        assert_eq!(core.ask(&other, "get k60000\r\n").len(), value.len());
        let holders: Vec<Peer> = (0..greedy).map(|_| core.client().narrow(100)).collect();
        for peer in &holders {
            core.send(peer, "get k60000\r\n".repeat(GETS));
        }
        core.step();
        let held = core.stat("bytes_in_flight") as usize;
        let (least, most) = (greedy * MB / 2, greedy * 2 * MB);
        assert!((least..=most).contains(&held), "{held} of {greedy}");
        let answer = core.ask(&other, "get k60000\r\n");
        assert_eq!(answer.len(), value.len(), "{}", show(answer.as_bytes()));
        for peer in &holders {
            let answers = take_widely(&mut core, peer);
            let values = expect_values_or_reasons(&answers, "k60000", 60_000, GETS);
            assert_eq!(values, GETS, "beside {greedy}");
        }
        assert_eq!(core.stat("bytes_in_flight"), 0);
    }
}

/// Takes everything in large pieces.
fn take_widely(core: &mut World, peer: &Peer) -> Vec<u8> {
    core.take_all(&peer.clone().narrow(256 * KB))
}

/// Those who take what they are owed, however slowly, stay; nobody else waits for them.
#[test]
fn clients_that_take_their_answers_a_few_bytes_at_a_time_keep_nobody_waiting() {
    let mut core = core(&["-m", "1m", "-I", "256k"]);
    let slow = holders(&mut core, 16);
    let other = core.client();
    for _ in 0..100 {
        let answer = core.ask(&other, "get k5\r\n");
        assert_eq!(answer, "VALUE k5 0 5\r\nvvvvv\r\nEND\r\n");
        core.advance(Duration::from_secs(1));
        for peer in &slow {
            core.take(peer);
        }
    }
    assert!(!slow.iter().any(Peer::is_closed));
}

/// Small requests are served at once, whatever they are in the middle of; a large value is taken
/// while there is room for one.
#[test]
fn what_comes_while_memory_is_short_is_served() {
    for holding in [9, 13, 40] {
        let mut core = core(&["-m", "1m", "-I", "256k"]);
        let slow = holders(&mut core, holding);
        let free = MB - core.stat("bytes_in_flight") as usize;
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
        let got = "VALUE k5 0 5\r\nvvvvv\r\nEND\r\n";
        assert_eq!(core.take_text(&other), format!("{got}OK\r\n{got}"));
        assert_eq!(core.take_text(&last), format!("{got}OK\r\n{got}"));
        core.step();
        assert!(last.is_closed());
        core.advance(Duration::from_secs(4));
        let answer = core.take_text(&writer);
        let told = answer.strip_suffix(got);
        let may_be_refused = free < 256 * KB && told == Some(OUT_OF_MEMORY_STORING);
        assert!(
            told == Some("STORED\r\n") || may_be_refused,
            "{answer:?} with {free} bytes free"
        );
        assert!(!slow.iter().any(Peer::is_closed));
    }
}

/// The bytes of a request that waits for a fetch count like those of any other.
#[test]
fn requests_that_wait_for_a_warming_primary_are_counted_with_their_values() {
    let farm = ["-s", "127.0.0.1:1", "-b", "127.0.0.1:2", "--warm", "200000"];
    let mut core = World::new(&[&farm[..], &PATIENT].concat());
    let writer = core.old_client();
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
            answer => panic!("{}", show(&answer)),
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
    // Asked again it says the same.
    core.become_state(1, State::Well);
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
    assert!(stored >= 2 && told >= 6, "{stored} {told}");
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

/// Lines of a megabyte that never end must not keep the memory for ever, nor anybody waiting.
#[test]
fn get_lines_that_never_end_cannot_hold_all_memory() {
    let mut core = core(&["-m", "4m", "-I", "256k"]);
    let line = format!("get{}", " kkkkkkkkk".repeat(90_000));
    let greedy: Vec<Peer> = (0..8).map(|_| core.client()).collect();
    for peer in &greedy {
        core.send(peer, &line[..900_000]);
    }
    core.step();
    let patient = core.client();
    for _ in 0..10 {
        assert!(core.ask(&patient, "version\r\n").starts_with("VERSION"));
        assert!(core.ask(&patient, "get k5\r\n").contains("vvvvv"));
        let held = core.stat("bytes_in_flight") as usize;
        assert!(held <= 4 * MB, "{held}");
        core.advance(Duration::from_millis(100));
    }
    // Some may have been refused; those that stay hold what they hold for half a minute, and so do
    // those whose turn it is then.
    core.advance(Duration::from_secs(95));
    assert!(greedy.iter().all(Peer::is_closed));
    let told = greedy.iter().map(|peer| core.take_text(peer));
    let told: Vec<String> = told.filter(|text| !text.is_empty()).collect();
    for text in &told {
        assert_eq!(text, "SERVER_ERROR out of memory reading request\r\n");
    }
    let refused = core.stat("limit_memory_requests");
    assert_eq!(refused, told.len() as u64);
    assert!(core.stat("limit_client_half_sent") >= 3);
    assert_eq!(core.stat("limit_client_half_sent"), 8 - refused);
    assert_eq!(core.stat("bytes_in_flight"), 0);
}

/// Who is in the middle of a small request may end it, and begin another one: it is done, or refused.
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
    let held = core.stat("bytes_in_flight") as usize;
    assert!((MB / 2..=MB).contains(&held), "{held}");
    core.send(&early, "v".repeat(6000) + "\r\nversion\r\n");
    core.advance(Duration::from_secs(1));
    let answer = core.take_text(&early);
    let (first, rest) = answer.split_once("\r\n").expect("an answer");
    let told = format!("{first}\r\n") == OUT_OF_MEMORY_STORING;
    assert!(first == "STORED" || told, "{answer}");
    assert!(rest.starts_with("VERSION"), "{answer}");
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
    for _ in 0..20 {
        assert!(core.ask(&patient, "version\r\n").starts_with("VERSION"));
        assert!(core.ask(&patient, "get k5\r\n").contains("vvvvv"));
        let held = core.stat("bytes_in_flight") as usize;
        assert!(held <= MB, "{held}");
        core.advance(Duration::from_secs(1));
    }
    // Those who go on get their answer, whoever was read first.
    for peer in &greedy {
        core.send(peer, "v".repeat(1000) + "\r\n");
    }
    core.step();
    core.advance(Duration::from_secs(1));
    let (mut stored, mut refused) = (0, 0);
    for peer in &greedy {
        match core.take_text(peer) {
            answer if answer == "STORED\r\n" => stored += 1,
            answer if answer == OUT_OF_MEMORY_STORING => refused += 1,
            answer => panic!("{answer:?}, {stored} {refused}"),
        }
    }
    assert_eq!(stored + refused, 100);
    assert!(stored >= 40, "{stored}");
    assert_eq!(core.stat("bytes_in_flight"), 0);
}
