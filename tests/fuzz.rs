//! Mutated bytes against the parsers and against the whole proxy. No panic, no memory without
//! bound, always in step.
//!
//! A run is made of cases, and a case of its seed. `make test` runs those from 1 on, the same in
//! every run; `make fuzz SECONDS=60` fresh ones for so long. A failure prints its target, its
//! seed and the smallest input that was found to fail; `MAGENT_FUZZ_SEED=n` runs that case alone.

mod common;

#[path = "fuzz/against.rs"]
mod against;
#[path = "fuzz/input.rs"]
mod input;
#[path = "conformance/normal.rs"]
mod normal;
#[path = "fuzz/parsers.rs"]
mod parsers;
#[path = "conformance/rows.rs"]
#[allow(dead_code)]
mod rows;
#[path = "fuzz/talk.rs"]
mod talk;
#[path = "fuzz/world.rs"]
mod world;

use common::rng::Rng;
use magent::protocol::Dialect;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant, SystemTime};

/// One target: makes an input from a seed, and runs it.
struct Target {
    name: &'static str,
    /// Cases that `make test` runs: about half a second of them.
    cases: u64,
    make: fn(&mut Rng, &Seeds) -> Vec<u8>,
    run: fn(u64, &[u8]) -> Result<(), String>,
}

struct Seeds {
    text: Vec<Vec<u8>>,
    binary: Vec<Vec<u8>>,
    /// The conformance test's rows, text and binary.
    rows: [Vec<Vec<u8>>; 2],
}

fn text(rng: &mut Rng, seeds: &Seeds) -> Vec<u8> {
    input::mutated(rng, &seeds.text)
}

fn binary(rng: &mut Rng, seeds: &Seeds) -> Vec<u8> {
    let mut all = input::mutated(rng, &seeds.binary);
    if let Some(first) = all.first_mut() {
        *first = 0x80;
    }
    all
}

/// A reply of a server; the first byte says to what.
fn reply(rng: &mut Rng, _: &Seeds) -> Vec<u8> {
    let which = rng.index(parsers::ASKED.len());
    let mut all = parsers::ASKED[which].2.to_vec();
    if rng.one_in(5) {
        all = rng.pick(parsers::ASKED).2.to_vec();
    }
    for _ in 0..rng.index(4) {
        input::mutate(rng, &mut all);
    }
    all.insert(0, which as u8);
    all
}

/// The requests of a well-formed client, a byte each.
fn script(rng: &mut Rng, _: &Seeds) -> Vec<u8> {
    (0..1 + rng.index(60)).map(|_| rng.next() as u8).collect()
}

const TARGETS: &[Target] = &[
    Target {
        name: "text requests",
        cases: 1500,
        make: text,
        run: |seed, bytes| parsers::requests(Dialect::Text, &mut Rng::new(seed), bytes),
    },
    Target {
        name: "binary requests",
        cases: 5000,
        make: binary,
        run: |seed, bytes| parsers::requests(Dialect::Binary, &mut Rng::new(seed), bytes),
    },
    Target {
        name: "replies",
        cases: 30000,
        make: reply,
        run: |seed, bytes| {
            let Some((which, bytes)) = bytes.split_first() else {
                return Ok(());
            };
            let (verb, line, _) = parsers::ASKED[*which as usize % parsers::ASKED.len()];
            parsers::reply(&mut Rng::new(seed), verb, line, bytes)
        },
    },
    Target {
        name: "a client in text",
        cases: 100,
        make: text,
        run: |seed, bytes| talk::client(seed, false, bytes),
    },
    Target {
        name: "a binary client",
        cases: 150,
        make: binary,
        // Another first byte would make it a client in text.
        run: |seed, bytes| match bytes.first() {
            Some(0x80) => talk::client(seed, true, bytes),
            _ => Ok(()),
        },
    },
    Target {
        name: "servers",
        cases: 250,
        make: script,
        run: talk::servers,
    },
    Target {
        name: "text against memcached",
        cases: 500,
        make: |rng, seeds| input::mutated(rng, &seeds.rows[0]),
        run: |_, bytes| against::run(false, bytes),
    },
    Target {
        name: "binary against memcached",
        cases: 800,
        make: |rng, seeds| input::mutated(rng, &seeds.rows[1]),
        run: |_, bytes| match bytes.first() {
            Some(0x80) => against::run(true, bytes),
            _ => Ok(()),
        },
    },
];

/// Runs a case; a panic is a failure like any other.
fn outcome(target: &Target, seed: u64, bytes: &[u8]) -> Result<(), String> {
    let caught = catch_unwind(AssertUnwindSafe(|| (target.run)(seed, bytes)));
    caught.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(format!("panic: {}", text.unwrap_or("?")))
    })
}

/// Takes pieces out as long as it still fails.
fn minimised(target: &Target, seed: u64, bytes: &[u8]) -> Vec<u8> {
    let end = Instant::now() + Duration::from_secs(20);
    let mut best = bytes.to_vec();
    let mut size = best.len().next_power_of_two();
    while size > 0 {
        let mut at = 0;
        while at < best.len() && Instant::now() < end {
            let mut less = best.clone();
            less.drain(at..(at + size).min(best.len()));
            match outcome(target, seed, &less) {
                Err(_) => best = less,
                Ok(()) => at += size,
            }
        }
        size /= 2;
    }
    best
}

fn case(target: &Target, seeds: &Seeds, seed: u64) {
    let bytes = (target.make)(&mut Rng::new(seed), seeds);
    let Err(first) = outcome(target, seed, &bytes) else {
        return;
    };
    let least = minimised(target, seed, &bytes);
    let why = outcome(target, seed, &least).err().unwrap_or(first);
    panic!(
        "{}, MAGENT_FUZZ_SEED={seed}:\n\"{}\"\n({} bytes of {})\n{why}",
        target.name,
        least.escape_ascii(),
        least.len(),
        bytes.len()
    );
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs a target: one case, or cases until its time is over.
fn fuzz(which: usize) {
    let target = &TARGETS[which];
    let seeds = Seeds {
        text: input::text_seeds(),
        binary: input::binary_seeds(),
        rows: [against::seeds(false), against::seeds(true)],
    };
    if let Some(seed) = number("MAGENT_FUZZ_SEED") {
        return case(target, &seeds, seed);
    }
    let Some(seconds) = number("MAGENT_FUZZ_SECONDS") else {
        return (1..=target.cases).for_each(|seed| case(target, &seeds, seed));
    };
    let since = SystemTime::UNIX_EPOCH.elapsed().expect("a clock");
    // Leaves room for the seeds that count up from it.
    let fresh = (since.as_nanos() as u64) << 16 >> 16;
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut seed = fresh;
    while Instant::now() < end {
        case(target, &seeds, seed);
        seed += 1;
    }
    let count = seed - fresh;
    println!("{}: {count} cases, from seed {fresh} on", target.name);
}

#[test]
fn text_requests() {
    fuzz(0);
}

#[test]
fn binary_requests() {
    fuzz(1);
}

#[test]
fn replies() {
    fuzz(2);
}

#[test]
fn clients_in_text() {
    fuzz(3);
}

#[test]
fn binary_clients() {
    fuzz(4);
}

#[test]
fn servers() {
    fuzz(5);
}

#[test]
fn text_against_memcached() {
    fuzz(6);
}

#[test]
fn two_known_differences_in_one_input() {
    let bad_key = "x".repeat(251);
    let bytes = format!("\nget {bad_key}\nmg g g g\n");
    assert_eq!(against::run(false, bytes.as_bytes()), Ok(()));
}

#[test]
fn binary_against_memcached() {
    fuzz(7);
}
