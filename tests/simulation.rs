//! The whole proxy without a socket: scripted clients and servers, a virtual clock, and chance
//! that can be played again.
//!
//! After every turn of its loop, promises 1 to 6 are checked:
//!
//! 1. no foreign bytes: every value names its key and the writes it holds (`history.rs`);
//! 2. one well-formed answer for each request, in order, its values in the order of its keys
//!    (`answers.rs`);
//! 3. no write is done twice on a server (`servers.rs`);
//! 4. nothing is read that is older than what was acknowledged, and no key is created that its
//!    backup holds, while one server at a time fails;
//! 5. bytes in flight stay within `-m`, and come to nothing when all have left;
//! 6. every request is answered within the connect and answer timeouts, twice that with a
//!    backup; the time of a `flush_all` begins with the answer before it, and behind it with its
//!    own.
//!
//! Clients pipeline, split, stall and leave; some come in crowds that create the same few keys,
//! some never take an answer, some leave with much asked. Servers die, stop (also for longer than
//! anybody waits), get slow and full, refuse large values early; links are cut and reset. Two
//! pools may name the same servers. Reloads may change the servers of the pools, again and again. Other
//! programs may take over, as at USR2.
//!
//! `MAGENT_SIM_SEED=n cargo test --test simulation` plays one run again; `MAGENT_SIM_SECONDS=n`
//! plays fresh ones for so long, `MAGENT_SIM_RUNS=n` so many. Several are played side by side.

mod common;

#[path = "simulation/answers.rs"]
mod answers;
#[path = "simulation/clients.rs"]
mod clients;
#[path = "simulation/history.rs"]
mod history;
#[path = "simulation/magents.rs"]
mod magents;
#[path = "simulation/plan.rs"]
mod plan;
#[path = "simulation/requests.rs"]
mod requests;
#[path = "simulation/rings.rs"]
mod rings;
#[path = "simulation/scenarios.rs"]
mod scenarios;
#[path = "simulation/servers.rs"]
mod servers;
#[path = "simulation/settle.rs"]
mod settle;
#[path = "simulation/sim.rs"]
mod sim;
#[path = "simulation/upgrades.rs"]
mod upgrades;

use plan::Plan;
use sim::Sim;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// So many seeds are always played, from 0 on.
const FIXED: u64 = 12;

/// Seeds that are played side by side.
const WORKERS: u64 = 2;

/// So many failures end a run.
const ENOUGH: usize = 20;

/// Fresh seeds are played for so long.
const FRESH: Duration = Duration::from_secs(5);

/// Plays a seed: answers that clients got, or what failed and how to play it again.
fn play(seed: u64) -> Result<u64, String> {
    let plan = Plan::new(seed);
    let mut sim = Sim::new(seed, plan.clone());
    sim.traced = number("MAGENT_SIM_SEED").is_some();
    let run = || -> Result<(), String> {
        sim.run(plan.length)?;
        sim.end()
    };
    // Caught only to say which seed it was.
    let outcome = catch_unwind(AssertUnwindSafe(run)).unwrap_or(Err("it panicked".into()));
    let Err(why) = outcome else {
        return Ok(sim.answered);
    };
    // All of it only for who plays this seed again: hundreds of lines would hide the seed.
    if sim.traced {
        println!("{}\n{plan:#?}", sim.trace());
    }
    let (faults, step, at) = (sim.faults(), sim.steps, sim.world.now as f64 / 1e9);
    println!("{faults}\nMAGENT_SIM_SEED={seed}, step {step}, at {at:.6} s: {why}\n");
    Err(format!("MAGENT_SIM_SEED={seed}: {why}"))
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Plays seeds from `first` on, side by side, while `more` says so of their count, or until
/// enough of them fail; returns how many, and how many answers clients got.
fn play_many(first: u64, more: impl Fn(u64) -> bool + Sync) -> (u64, u64) {
    let (next, answers) = (AtomicU64::new(0), AtomicU64::new(0));
    let failures = Mutex::new(Vec::new());
    let failed = || failures.lock().expect("nobody panics").len();
    let worker = || {
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if !more(n) || failed() >= ENOUGH {
                return;
            }
            match play(first + n) {
                Ok(n) => drop(answers.fetch_add(n, Ordering::Relaxed)),
                Err(why) => failures.lock().expect("nobody panics").push(why),
            }
        }
    };
    std::thread::scope(|s| {
        for _ in 0..WORKERS {
            s.spawn(worker);
        }
    });
    let failures = failures.into_inner().expect("nobody panics");
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
    (next.into_inner() - WORKERS, answers.into_inner())
}

#[test]
fn promises_hold_whatever_happens() {
    if let Some(seed) = number("MAGENT_SIM_SEED") {
        let answers = play(seed).unwrap_or_else(|why| panic!("{why}"));
        return println!("seed {seed}: {answers} answers");
    }
    let (runs, seconds) = (number("MAGENT_SIM_RUNS"), number("MAGENT_SIM_SECONDS"));
    if (runs, seconds) == (None, None) {
        play_many(0, |n| n < FIXED);
    }
    let clock = SystemTime::now().duration_since(UNIX_EPOCH);
    let first = clock.map_or(1, |d| d.as_millis() as u64 % 1_000_000_000);
    let end = Instant::now() + seconds.map_or(FRESH, Duration::from_secs);
    println!("fresh seeds from {first} on");
    let (runs, answers) = match runs {
        Some(runs) => play_many(first, |n| n < runs),
        None => play_many(first, |_| Instant::now() < end),
    };
    println!("{runs} fresh runs, {answers} answers");
}
