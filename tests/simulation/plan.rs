//! What a seed decides about a run before it begins.

use super::requests::Habits;
use super::rings::{self, Ring};
use crate::common::rng::Rng;
use crate::common::world::{self, SECOND};
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

/// What a client is like.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Nature {
    /// It asks for this and that, and takes its answers sooner or later.
    #[default]
    Mixed,
    /// With all of its like it creates the same few keys, many requests at once.
    Crowd,
    /// It asks and never takes an answer.
    Deaf,
    /// It asks for much and leaves at once, time and again.
    Leaver,
}

/// One run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub mode: Mode,
    pub primaries: usize,
    pub backups: usize,
    /// Clients of each nature.
    pub clients: usize,
    pub crowd: usize,
    pub deaf: usize,
    pub leavers: usize,
    /// Pools that name the same servers.
    pub pools: usize,
    /// Reloads change the pools' servers. Of these there are so many more than at the beginning.
    pub moves: bool,
    pub spare: usize,
    /// Servers may stop for longer than anybody waits for what they were sent.
    pub long_stops: bool,
    /// No key is created while its backup holds it.
    pub creations: bool,
    /// In milliseconds.
    pub timeout: u64,
    /// In milliseconds.
    pub connect_timeout: u64,
    /// Servers take up to so many nanoseconds for one thing.
    pub pace: u64,
    /// `--probe`, in milliseconds.
    pub probe: u64,
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
    /// Operators take servers out of use and back.
    pub drains: bool,
    /// The configuration is read again now and then.
    pub reloads: bool,
    /// Servers list their keys by their LRUs only.
    pub lists_all: bool,
    /// Other programs take over.
    pub upgrades: bool,
    /// How many magents there are.
    pub magents: usize,
    /// They leave marks, and act as one.
    pub marks: bool,
    /// What a server lacks is fetched, and it is refilled.
    pub copies: bool,
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
        let mut plan = Plan {
            mode,
            primaries: r.range(1, 4) as usize,
            backups,
            clients: r.range(1, 7) as usize,
            crowd: 0,
            deaf: 0,
            leavers: 0,
            pools: 1,
            moves: false,
            spare: 0,
            long_stops: false,
            creations: false,
            timeout: r.pick(&[150, 300, 500, 1000]),
            connect_timeout: r.pick(&[150, 300, 1000]),
            pace: r.pick(&[300_000, 300_000, 3_000_000, 12_000_000]),
            probe: 0,
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
                refused: false,
                many_keys: false,
            },
            length: r.range(10, 40) * 1_000_000_000,
            choppy,
            rude: r.often(600),
            mad: r.often(300),
            drains: false,
            tardy: !choppy && r.often(500),
            reloads: false,
            lists_all: false,
            upgrades: Rng::new(seed ^ 0x7570_6772_6164_6500).often(300),
            magents: 1,
            marks: false,
            copies: true,
        };
        plan.add_trouble(Rng::new(seed ^ 0x0074_726f_7562_6c65));
        plan.add_moves(Rng::new(seed ^ 0x6d6f_7665_7300));
        plan.add_magents(Rng::new(seed ^ 0x6d61_7267_6500));
        plan
    }

    /// Several magents before the same servers, or one that leaves its marks for the next one.
    fn add_magents(&mut self, mut r: Rng) {
        self.marks = r.often(700);
        // Where rings change one at a time, keys have several homes for that time.
        let is_alone = !self.marks || self.moves || self.backups == 0;
        if is_alone || !r.often(500) {
            return;
        }
        self.magents = if r.often(300) { 3 } else { 2 };
        self.clients = self.clients.max(self.magents);
        (self.crowd, self.deaf, self.leavers, self.pools) = (0, 0, 0, 1);
        (self.timeout, self.connect_timeout) = (1000, 1000);
        self.memory = 256 << 20;
        self.pace = self.pace.min(3_000_000);
        (self.mad, self.drains, self.creations) = (false, false, false);
        (self.choppy, self.tardy) = (false, false);
        if self.mode == Mode::Many {
            self.mode = Mode::Single;
        }
        self.habits.bulky = false;
        self.copies = r.often(500);
        if !self.copies {
            self.warm = 0;
        }
        self.length = self.length.max(25 * SECOND);
    }

    /// What few runs have, each of it by itself or together with others.
    fn add_trouble(&mut self, mut r: Rng) {
        self.creations = true;
        self.habits.many_keys = r.often(500);
        self.habits.refused = r.often(200);
        if r.often(250) {
            self.pools = 2;
            // A file has no setting of its own for it.
            self.connect_timeout = self.timeout;
        }
        if r.often(200) {
            self.crowd = r.pick(&[6, 15, 40]);
            self.backups = self.backups.max(1);
        }
        if r.often(150) {
            self.deaf = r.range(1, 6) as usize;
        }
        if r.often(150) {
            self.leavers = r.range(1, 4) as usize;
        }
        if self.deaf + self.leavers > 0 {
            // Where memory is as short as it can be, those who take nothing hold all of it.
            self.memory = self.memory.max(4 << 20);
        }
        if self.crowd + self.leavers > 0 {
            // What they ask for is no load for servers that work.
            self.pace = self.pace.min(300_000);
            self.length = self.length.min(15 * SECOND);
            (self.habits.bulky, self.habits.large) = (false, false);
            self.habits.refused = false;
        }
        if self.mode != Mode::Calm && r.often(250) {
            self.long_stops = true;
            self.length = r.range(50, 80) * SECOND;
            (self.crowd, self.leavers) = (0, 0);
        }
        self.probe = r.pick(&[0, 100, 1000]);
        self.drains = r.often(300);
        self.reloads = r.often(250);
        self.lists_all = r.often(200);
    }

    fn add_moves(&mut self, mut r: Rng) {
        if self.warm == 0 || !r.often(300) {
            return;
        }
        self.moves = true;
        self.spare = r.range(1, 4) as usize;
        self.warm = r.pick(&[3, 8, 20]);
        self.length = self.length.max(rings::LENGTH);
        if self.mode != Mode::Many {
            // Each change of a key that moved is in a journal for a moment.
            self.journal = "64m";
        }
        // Everything that it tells of backups is for primaries that are always warming.
        self.creations = false;
    }

    /// The configuration with which it begins.
    pub fn config(&self) -> Config {
        self.config_of(&Ring::first(self))
    }

    /// The configuration with these servers.
    pub fn config_of(&self, ring: &Ring) -> Config {
        if self.pools > 1 {
            return self.config_of_pools(ring);
        }
        let mut args: Vec<String> = vec!["-I".into(), "64k".into()];
        for (farm, servers) in [("-s", &ring.primaries), ("-b", &ring.backups)] {
            let name = |(port, weight): &(u16, u64)| format!("127.0.0.1:{port}:{weight}");
            args.extend(servers.iter().flat_map(|s| [farm.to_string(), name(s)]));
        }
        let mut option = |name: &str, value: String| args.extend([name.to_string(), value]);
        option("--timeout", self.timeout.to_string());
        option("--connect-timeout", self.connect_timeout.to_string());
        option("--warm", self.warm.to_string());
        option("--journal", self.journal.into());
        option("--retry", "300".into());
        option("--probe", self.probe.to_string());
        option("-i", self.connections.to_string());
        option("-m", self.memory.to_string());
        if !self.copies {
            option("--refill", "0".into());
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        match self.marks {
            true => world::marking(&args),
            false => world::options(&args),
        }
    }

    /// Pools over the same servers, each with a listener.
    fn config_of_pools(&self, ring: &Ring) -> Config {
        let mut text = String::new();
        let list = |name: &str, servers: &[(u16, u64)]| {
            let line = |(p, weight): &(u16, u64)| format!("  - 127.0.0.1:{p}:{weight}\n");
            match servers.is_empty() {
                true => String::new(),
                false => format!("  {name}:\n") + &servers.iter().map(line).collect::<String>(),
            }
        };
        for pool in 0..self.pools {
            text += &format!(
                "pool{pool}:\n  listen: 127.0.0.1:{}\n  hash: magent\n  distribution: magent\n  \
                 timeout: {}\n  warm: {}\n  journal: {}\n  server_retry_timeout: 300\n  \
                 server_connections: {}\n  max_value: 64k\n",
                pool + 1,
                self.timeout,
                self.warm,
                self.journal,
                self.connections
            );
            text += &list("servers", &ring.primaries);
            text += &list("backups", &ring.backups);
        }
        let (memory, probe) = (self.memory.to_string(), self.probe.to_string());
        world::file_with(&text, &["-m", &memory, "--probe", &probe])
    }

    /// Places for clients.
    pub fn places(&self) -> usize {
        self.clients + self.crowd + self.deaf + self.leavers
    }

    /// What the client in a place is like.
    pub fn nature(&self, place: usize) -> Nature {
        let (crowd, deaf) = (self.clients + self.crowd, self.places() - self.leavers);
        match place {
            _ if place < self.clients => Nature::Mixed,
            _ if place < crowd => Nature::Crowd,
            _ if place < deaf => Nature::Deaf,
            _ => Nature::Leaver,
        }
    }

    /// The least room of a link to a server, in bytes.
    pub fn narrow(&self) -> usize {
        // A slow server with a narrow window is no healthy one, nor one before a crowd, nor one that
        // is asked for dozens of large values at once: 4 KB at a time are about 10 MB/s. Where edges
        // come late, a value of many windows would wait for one after each of them.
        let many_large = self.deaf > 0 || self.habits.large && self.habits.many_keys;
        let has_large = self.habits.large || self.habits.bulky || self.habits.many_keys;
        let late_edges = self.tardy && has_large;
        let crowded = self.crowd + self.leavers > 0;
        let wide = self.pace > 1_000_000 || crowded || many_large || late_edges;
        if wide { 1 << 20 } else { 4096 }
    }

    /// Some clients ask for more than servers answer at once.
    pub fn has_greedy_clients(&self) -> bool {
        self.crowd + self.leavers + self.deaf > 0
    }

    /// All servers.
    pub fn ports(&self) -> Range<u16> {
        PORT..PORT + (self.primaries + self.backups + self.spare) as u16
    }

    /// Connect and answer timeout, in nanoseconds.
    fn span(&self) -> u64 {
        (self.timeout + self.connect_timeout) * 1_000_000
    }

    /// Within this time of being read every request is answered, in nanoseconds: connect and
    /// answer timeout at the primary, and as much again if there is a backup, or a server that has the
    /// key still (promise 6).
    pub fn deadline(&self) -> u64 {
        match self.backups {
            0 if !self.moves => self.span(),
            _ => 2 * self.span(),
        }
    }

    /// After this time nothing is under way of what somebody waited for, in nanoseconds.
    pub fn window(&self) -> u64 {
        2 * self.span()
    }

    /// For so long after a write was answered the value before may be read: another magent has fetched it and
    /// looks again.
    pub fn grace(&self) -> u64 {
        match self.magents > 1 && self.copies {
            true => self.window() + SECOND,
            false => 0,
        }
    }
}
