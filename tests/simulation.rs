//! The whole proxy without a socket: scripted clients and servers, a virtual clock, and chance
//! that can be played again.
//!
//! After every turn of its loop, promises 1 to 6 are checked:
//!
//! 1. no foreign bytes: every value names its key and the writes it holds (`history.rs`);
//! 2. one well-formed answer for each request, in order (`answers.rs`);
//! 3. no write is done twice on a server (`servers.rs`);
//! 4. nothing is read that is older than what was acknowledged, while one server at a time
//!    fails;
//! 5. bytes in flight stay within `-m`, and come to nothing when all have left;
//! 6. every request is answered within twice the connect and answer timeouts; the time of a
//!    `flush_all` begins with the answer before it, and behind it with its own.
//!
//! `MAGENT_SIM_SEED=n cargo test --test simulation` plays one run again;
//! `MAGENT_SIM_SECONDS=n` plays fresh ones for so long.

mod common;

#[path = "simulation/answers.rs"]
mod answers;
#[path = "simulation/clients.rs"]
mod clients;
#[path = "simulation/history.rs"]
mod history;
#[path = "simulation/plan.rs"]
mod plan;
#[path = "simulation/requests.rs"]
mod requests;
#[path = "simulation/scenarios.rs"]
mod scenarios;
#[path = "simulation/servers.rs"]
mod servers;
#[path = "simulation/sim.rs"]
mod sim;

use plan::Plan;
use sim::Sim;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Seeds that are always played.
const FIXED: std::ops::Range<u64> = 0..12;

/// Fresh seeds are played for so long.
const FRESH: Duration = Duration::from_secs(5);

/// Plays a seed; a failure is shown with all that is needed to find out why.
fn play(seed: u64) -> u64 {
    let plan = Plan::new(seed);
    let mut sim = Sim::new(seed, plan.clone());
    sim.traced = number("MAGENT_SIM_SEED").is_some();
    let run = || -> Result<(), String> {
        sim.run(plan.length)?;
        sim.end()
    };
    // Caught only to say which seed it was.
    let outcome = catch_unwind(AssertUnwindSafe(run)).unwrap_or(Err("it panicked".into()));
    if let Err(why) = outcome {
        // All of it only for who plays this seed again: hundreds of lines would hide the seed.
        if number("MAGENT_SIM_SEED").is_some() {
            println!("{}\n{plan:#?}", sim.trace());
        }
        let (faults, step, at) = (sim.faults(), sim.steps, sim.world.now as f64 / 1e9);
        panic!("{faults}\nMAGENT_SIM_SEED={seed}, step {step}, at {at:.6} s: {why}\n");
    }
    sim.answered
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn promises_hold_whatever_happens() {
    if let Some(seed) = number("MAGENT_SIM_SEED") {
        println!("seed {seed}: {} answers", play(seed));
        return;
    }
    let fresh = match number("MAGENT_SIM_SECONDS") {
        Some(seconds) => Duration::from_secs(seconds),
        None => {
            for seed in FIXED {
                play(seed);
            }
            FRESH
        }
    };
    let start = Instant::now();
    let clock = SystemTime::now().duration_since(UNIX_EPOCH);
    let first = clock.map_or(1, |d| d.as_millis() as u64 % 1_000_000_000);
    let (mut runs, mut answers) = (0, 0);
    while start.elapsed() < fresh {
        println!("seed {}", first + runs);
        answers += play(first + runs);
        runs += 1;
    }
    println!("{runs} fresh runs, {answers} answers");
}
