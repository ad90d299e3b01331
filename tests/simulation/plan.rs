//! What a seed decides about a run before it begins.

use super::requests::Habits;
use crate::common::rng::Rng;
use crate::common::world;
use magent::config::Config;
use std::ops::Range;

/// How much goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Nothing, but that answers take their time.
    Calm,
    /// One server at a time; the next when all is well again.
    Single,
    /// Anything at any time.
    Many,
}

/// One run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub mode: Mode,
    pub primaries: usize,
    pub backups: usize,
    pub clients: usize,
    /// In milliseconds.
    pub timeout: u64,
    /// In milliseconds.
    pub connect_timeout: u64,
    /// Servers take up to so many nanoseconds for one thing.
    pub pace: u64,
    pub warm: u64,
    pub journal: &'static str,
    pub memory: usize,
    pub connections: usize,
    pub habits: Habits,
    /// How long clients are busy, in nanoseconds.
    pub length: u64,
    /// Reads and writes may be cut short.
    pub choppy: bool,
    /// What a server says may be seen late, as if it stood behind thousands of others. It is there
    /// in time, so not together with `choppy`.
    pub tardy: bool,
    /// Clients may stall, leave and close their half.
    pub rude: bool,
    /// Servers may speak nonsense, and fail to store.
    pub mad: bool,
}

/// The first server's port; the next ones follow, primaries first.
pub const PORT: u16 = 11001;

/// Values that servers refuse are larger, in bytes.
pub const ITEM_MAX: usize = 48 * 1024;

impl Plan {
    /// The plan of a seed.
    pub fn new(seed: u64) -> Plan {
        let mut r = Rng::new(seed);
        let mode = r.pick(&[
            Mode::Calm,
            Mode::Single,
            Mode::Single,
            Mode::Single,
            Mode::Many,
            Mode::Many,
        ]);
        let backups = r.pick(&[0, 1, 1, 2, 2]) as usize;
        let keys = r.pick(&[7, 20, 40, 90]) as usize;
        let memory = r.pick(&[256 << 20, 256 << 20, 256 << 10]) as usize;
        let choppy = r.often(500);
        Plan {
            mode,
            primaries: r.range(1, 4) as usize,
            backups,
            clients: r.range(1, 7) as usize,
            timeout: r.pick(&[150, 300, 500, 1000]),
            connect_timeout: r.pick(&[150, 300, 1000]),
            pace: r.pick(&[300_000, 300_000, 3_000_000, 12_000_000]),
            warm: r.pick(&[0, 3600, 3600, 3600]),
            journal: r.pick(&["64m", "64m", "1k"]),
            memory,
            connections: r.pick(&[1, 1, 1, 3]) as usize,
            habits: Habits {
                keys,
                counters: 3,
                reads: r.pick(&[0, 0, 500, 900]),
                flush_all: r.often(300),
                large: r.often(300),
                bulky: memory < 1 << 20 && r.often(700),
                expire: r.often(200),
                max_value: 64 << 10,
            },
            length: r.range(10, 40) * 1_000_000_000,
            choppy,
            rude: r.often(600),
            mad: r.often(300),
            tardy: !choppy && r.often(500),
        }
    }

    /// The configuration of it.
    pub fn config(&self) -> Config {
        let mut args: Vec<String> = vec!["-I".into(), "64k".into()];
        for port in self.ports() {
            let farm = if self.backup_ports().contains(&port) {
                "-b"
            } else {
                "-s"
            };
            args.extend([farm.into(), format!("127.0.0.1:{port}")]);
        }
        let mut option = |name: &str, value: String| args.extend([name.to_string(), value]);
        option("--timeout", self.timeout.to_string());
        option("--connect-timeout", self.connect_timeout.to_string());
        option("--warm", self.warm.to_string());
        option("--journal", self.journal.into());
        option("--retry", "300".into());
        option("-i", self.connections.to_string());
        option("-m", self.memory.to_string());
        world::options(&args.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// All servers.
    pub fn ports(&self) -> Range<u16> {
        PORT..PORT + (self.primaries + self.backups) as u16
    }

    /// Those of them that are backups.
    pub fn backup_ports(&self) -> Range<u16> {
        PORT + self.primaries as u16..self.ports().end
    }

    /// Within this time of being read every request is answered, in nanoseconds: connect and
    /// answer timeout at the primary, and as much again at the backup (promise 6).
    pub fn deadline(&self) -> u64 {
        2 * (self.timeout + self.connect_timeout) * 1_000_000
    }
}
