//! No turn of the loop takes longer than 10 ms of processor time, whatever clients, servers and
//! operators do: one test for each kind of large work.
//!
//! magent itself counts the time, so that a busy machine makes no difference.

#[path = "turns/clients.rs"]
mod clients;
mod common;
#[path = "turns/servers.rs"]
mod servers;

use common::{Magent, Memcached, Probe, number};
use std::sync::{Mutex, PoisonError};

/// Processor time of one turn, in µs.
const MOST_US: u64 = 10_000;

const HISTOGRAM: [&str; 4] = [
    "turns_le_100us",
    "turns_le_1ms",
    "turns_le_10ms",
    "turns_over_10ms",
];

/// One measurement at a time: a page that is touched first costs a virtual machine many times more
/// while other tests take and give back gigabytes.
static ALONE: Mutex<()> = Mutex::new(());

/// Does `work` to `magent`; none of its turns meanwhile may have been too long.
#[track_caller]
fn assert_short_turns(magent: &Magent, work: impl FnOnce()) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut watcher = magent.client();
    watcher.ask("stats reset\r\n", "RESET\r\n");
    // For the message: what a client sees that is answered by magent alone.
    let probe = Probe::start(magent.port, "mn\r\n", "MN\r\n");
    work();
    let all = watcher.stats("stats proxy\r\n");
    let seen = probe.end();
    let longest = number(&all, "longest_turn_us");
    let counts = HISTOGRAM.map(|name| number(&all, name));
    println!("longest turn {longest} µs, {counts:?}; a client got {seen}");
    assert!(
        longest <= MOST_US,
        "a turn took {longest} µs; {HISTOGRAM:?}: {counts:?}; a client got {seen}"
    );
    assert_eq!(counts[3], 0);
}

#[test]
fn every_turn_is_counted_once_by_its_length() {
    let (magent, _server) = common::magent::single();
    let mut client = magent.client();
    let turns = |client: &mut common::Client| {
        let all = client.stats("stats proxy\r\n");
        let counted: u64 = HISTOGRAM.iter().map(|name| number(&all, name)).sum();
        let polls = number(&all, "polls");
        // The turn that says so is not over.
        assert!(
            (polls.saturating_sub(1)..=polls).contains(&counted),
            "{counted} of {polls}"
        );
        (counted, number(&all, "longest_turn_us"))
    };
    for _ in 0..200 {
        client.ask("get a\r\n", "END\r\n");
    }
    let (counted, longest) = turns(&mut client);
    assert!(counted >= 200, "{counted}");
    assert!(longest > 0);
    client.ask("stats reset\r\n", "RESET\r\n");
    let (counted, _) = turns(&mut client);
    assert!(counted < 10, "{counted} turns since the reset");
}

/// A get line of as many keys as a line may hold, all absent.
fn longest_line() -> String {
    let digit = |n: usize| char::from_digit((n % 36) as u32, 36).expect("a digit");
    let mut line = String::from("get");
    for i in 0.. {
        if line.len() > (1 << 20) - 10 {
            break;
        }
        line.push(' ');
        let mut n: usize = i;
        while n > 0 || line.ends_with(' ') {
            line.push(digit(n));
            n /= 36;
        }
    }
    line + "\r\n"
}

/// So many memcacheds, and their names.
fn memcacheds(count: usize) -> Vec<Memcached> {
    (0..count).map(|_| Memcached::start()).collect()
}

fn names(servers: &[Memcached]) -> Vec<&str> {
    servers.iter().map(|s| s.name.as_str()).collect()
}
