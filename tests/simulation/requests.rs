//! Requests that a client makes up, and what it expects of the answers.

use super::history::{History, Kind, Seen, key_name, tag};
use super::plan::ITEM_MAX;
use crate::common::rng::Rng;
use std::collections::HashMap;

/// What was asked, as far as the answer depends on it.
#[derive(Clone, Debug)]
pub enum Op {
    /// get, gets, gat, gats; with cas numbers or not.
    Read {
        cas: bool,
    },
    Store,
    Incr,
    Delete,
    Touch,
    /// A meta command: its letter, its flags in order, its opaque number.
    Meta {
        letter: char,
        key: usize,
        flags: Vec<String>,
        opaque: u64,
        quiet: bool,
    },
    Noop,
    Flush {
        asked: u64,
    },
    Version,
    /// `stats items`.
    Stats,
    /// A line that nobody knows.
    Unknown,
    /// A value that magent does not take.
    TooLarge,
}

/// A request whose answer is awaited.
#[derive(Clone, Debug)]
pub struct Expect {
    pub op: Op,
    /// Its number in the history, if it writes.
    pub write: Option<u64>,
    /// It may create a counter: the number of that.
    pub create: Option<u64>,
    /// What was known of the keys that it reads.
    pub seen: Vec<Seen>,
    /// Behind its last byte in the client's stream.
    pub end: u64,
    /// When magent had read that byte.
    pub read_at: Option<u64>,
}

/// What may be asked.
#[derive(Clone, Copy, Debug)]
pub struct Habits {
    pub keys: usize,
    /// The last ones of `keys` are counters.
    pub counters: usize,
    /// So many of 1000 requests are plain reads, besides those of the mixture.
    pub reads: u64,
    pub flush_all: bool,
    /// Values may be large.
    pub large: bool,
    /// Many values are large.
    pub bulky: bool,
    /// Keys may expire.
    pub expire: bool,
    /// Values of more than this are too large for magent, in bytes.
    pub max_value: usize,
    /// Many values are too large for servers: they say so before they have read them.
    pub refused: bool,
    /// Gets may name many keys, and one twice.
    pub many_keys: bool,
    /// Who writes a key: of so many, the client's number among them. Several magents do not look again yet at
    /// what they copy, so each key is written through one of them.
    pub share: (usize, usize),
}

/// Keys that a crowd fights for.
const LOCKS: u64 = 2;

/// Makes requests for one client.
pub struct Maker<'a> {
    pub rng: &'a mut Rng,
    pub history: &'a mut History,
    pub habits: &'a Habits,
    /// Cas numbers that the client was told.
    pub tokens: &'a mut HashMap<usize, u64>,
    /// What must be found now, if anything.
    pub must: &'a dyn Fn(usize) -> Option<u64>,
    /// When what is sent without asking for an answer is surely done.
    pub settles: u64,
    pub out: Vec<u8>,
    pub expects: Vec<Expect>,
}

impl Maker<'_> {
    /// One request, or a few that belong together.
    pub fn make(&mut self) {
        if self.rng.often(self.habits.reads) {
            return self.read();
        }
        match self.rng.below(100) {
            0..=29 => self.read(),
            30..=54 => self.store(),
            55..=62 => self.count(),
            63..=69 => self.delete(),
            70..=72 => self.touch(),
            73..=91 => self.meta(),
            92..=94 => self.quiet_group(),
            95 => self.line("version\r\n", Op::Version),
            96 => self.line("what is this\r\n", Op::Unknown),
            97 if self.habits.flush_all && self.rng.often(500) => {
                let asked = self.history.flushing(self.settles);
                self.line("flush_all\r\n", Op::Flush { asked });
            }
            98 if self.rng.often(300) => self.line("stats items\r\n", Op::Stats),
            _ => self.counter_meta(),
        }
    }

    fn expect(&mut self, op: Op, write: Option<u64>, seen: Vec<Seen>) {
        let end = self.out.len() as u64;
        self.expects.push(Expect {
            op,
            write,
            create: None,
            seen,
            end,
            read_at: None,
        });
    }

    fn line(&mut self, line: &str, op: Op) {
        self.out.extend_from_slice(line.as_bytes());
        self.expect(op, None, Vec::new());
    }

    fn key(&mut self) -> usize {
        let plain = (self.habits.keys - self.habits.counters) as u64;
        self.rng.below(plain) as usize
    }

    /// A key that may be written through this client's magent.
    fn own_key(&mut self) -> usize {
        let key = self.key();
        let (all, own) = self.habits.share;
        let last = self.habits.keys - self.habits.counters - 1;
        (key - key % all + own).min(last - (last + all - own) % all)
    }

    fn own_counter(&mut self) -> usize {
        let first = self.habits.keys - self.habits.counters;
        let (all, own) = self.habits.share;
        let n = self.rng.below((self.habits.counters / all).max(1) as u64) as usize;
        first + n * all + own
    }

    fn counter(&mut self) -> usize {
        let first = self.habits.keys - self.habits.counters;
        self.rng.range(first as u64, self.habits.keys as u64) as usize
    }

    fn look(&mut self, key: usize) -> Seen {
        let must = (self.must)(key);
        self.history.look(key, must)
    }

    fn ttl(&mut self) -> u32 {
        if self.habits.expire && self.rng.often(150) {
            self.rng.range(1, 30) as u32
        } else {
            0
        }
    }

    fn length(&mut self) -> usize {
        if self.habits.refused && self.rng.often(150) {
            return self.rng.range(50_000, 60_000) as usize;
        }
        if self.habits.bulky && self.rng.often(400) {
            return self.rng.range(8000, 30_000) as usize;
        }
        let n = if self.habits.large { 1000 } else { 960 };
        match self.rng.below(n) {
            0..=939 => self.rng.below(60) as usize,
            940..=975 => self.rng.range(1000, 7000) as usize,
            976..=993 => self.rng.range(8000, 30_000) as usize,
            994..=996 => self.rng.range(50_000, 60_000) as usize,
            _ => self.habits.max_value + 1000,
        }
    }

    fn read(&mut self) {
        let many = match self.rng.below(10) {
            0..=6 => 1,
            7..=8 => self.rng.range(2, 5),
            _ if self.habits.many_keys && self.rng.often(400) => self.rng.range(10, 60),
            _ => self.rng.range(4, 14),
        };
        let mut keys: Vec<usize> = Vec::new();
        for _ in 0..many {
            let key = if self.rng.often(100) {
                self.counter()
            } else {
                self.key()
            };
            if self.habits.many_keys || !keys.contains(&key) {
                keys.push(key);
            }
        }
        let cas = self.rng.often(300);
        let touches = self.habits.expire && self.rng.often(100);
        let mut line = match (touches, cas) {
            (false, false) => "get".to_string(),
            (false, true) => "gets".to_string(),
            (true, false) => format!("gat {}", self.rng.pick(&[0, 20])),
            (true, true) => format!("gats {}", self.rng.pick(&[0, 20])),
        };
        let mut seen = Vec::new();
        for key in keys {
            line += " ";
            line += &key_name(key);
            seen.push(self.look(key));
        }
        line += "\r\n";
        self.out.extend_from_slice(line.as_bytes());
        self.expect(Op::Read { cas }, None, seen);
    }

    fn store(&mut self) {
        let key = self.own_key();
        let verb = match self.rng.below(10) {
            0..=4 => "set",
            5 => "add",
            6 => "replace",
            7 => "append",
            8 => "prepend",
            _ if self.tokens.contains_key(&key) => "cas",
            _ => "set",
        };
        self.store_by(verb, key);
    }

    fn store_by(&mut self, verb: &str, key: usize) {
        let kind = match verb {
            "append" | "prepend" => Kind::Extend,
            _ => Kind::Put,
        };
        let flags = self.rng.below(1000) as u32;
        let length = match kind {
            Kind::Extend => self.rng.below(20) as usize,
            _ => self.length(),
        };
        let too_large = length > self.habits.max_value;
        if too_large && verb != "set" {
            return;
        }
        let write = (self.history).ask_for(key, kind, flags, length > ITEM_MAX - 50);
        let data = tag(key, write, length);
        let mut line = format!(
            "{verb} {} {flags} {} {}",
            key_name(key),
            self.ttl(),
            data.len()
        );
        if verb == "cas" {
            line += &format!(" {}", self.tokens[&key]);
        }
        let silent = self.rng.often(100);
        line += if silent { " noreply\r\n" } else { "\r\n" };
        self.out.extend_from_slice(line.as_bytes());
        self.out.extend_from_slice(&data);
        self.out.extend_from_slice(b"\r\n");
        match (silent, too_large) {
            (true, _) => self.history.abandon(write, self.settles),
            (_, true) => self.expect(Op::TooLarge, Some(write), Vec::new()),
            _ => self.expect(Op::Store, Some(write), Vec::new()),
        }
    }

    fn count(&mut self) {
        let key = self.own_counter();
        let name = key_name(key);
        if self.rng.often(200) {
            let write = self.history.ask(key, Kind::Create, 0);
            let line = format!("add {name} 0 0 1\r\n0\r\n");
            self.out.extend_from_slice(line.as_bytes());
            return self.expect(Op::Store, Some(write), Vec::new());
        }
        let write = self.history.ask(key, Kind::Count, 0);
        let silent = self.rng.often(100);
        let end = if silent { " noreply" } else { "" };
        let seen = self.look(key);
        let line = format!("incr {name} {}{end}\r\n", write + 1);
        self.out.extend_from_slice(line.as_bytes());
        if silent {
            self.history.abandon(write, self.settles);
        } else {
            self.expect(Op::Incr, Some(write), vec![seen]);
        }
    }

    fn delete(&mut self) {
        let key = self.own_key();
        let write = self.history.ask(key, Kind::Remove, 0);
        let silent = self.rng.often(100);
        let end = if silent { " noreply" } else { "" };
        let line = format!("delete {}{end}\r\n", key_name(key));
        self.out.extend_from_slice(line.as_bytes());
        if silent {
            self.history.abandon(write, self.settles);
        } else {
            self.expect(Op::Delete, Some(write), Vec::new());
        }
    }

    fn touch(&mut self) {
        if !self.habits.expire {
            return;
        }
        let key = self.own_key();
        let line = format!("touch {} {}\r\n", key_name(key), self.rng.pick(&[0, 20]));
        self.line(&line, Op::Touch);
    }

    /// `O` and `k` and the flags in any order.
    fn flags(&mut self, mut flags: Vec<String>) -> (Vec<String>, u64) {
        let opaque = self.rng.below(1 << 40);
        flags.push(format!("O{opaque}"));
        if self.rng.often(400) {
            flags.push("k".into());
        }
        for i in (1..flags.len()).rev() {
            flags.swap(i, self.rng.below(i as u64 + 1) as usize);
        }
        (flags, opaque)
    }

    fn meta_line(
        &mut self,
        letter: char,
        key: usize,
        length: &str,
        flags: Vec<String>,
        quiet: bool,
    ) -> Op {
        let (mut flags, opaque) = self.flags(flags);
        if quiet {
            flags.push("q".into());
        }
        let line = format!(
            "m{letter} {}{length} {}\r\n",
            key_name(key),
            flags.join(" ")
        );
        self.out.extend_from_slice(line.as_bytes());
        Op::Meta {
            letter,
            key,
            flags,
            opaque,
            quiet,
        }
    }

    fn meta(&mut self) {
        self.meta_one(false);
    }

    fn meta_one(&mut self, quiet: bool) {
        match self.rng.below(10) {
            0..=4 => {
                let key = self.key();
                let mut flags = vec!["v".to_string()];
                for flag in ["f", "c", "t", "s"] {
                    if self.rng.often(400) {
                        flags.push(flag.into());
                    }
                }
                if self.habits.expire && self.rng.often(100) {
                    flags.push("T20".into());
                }
                let seen = self.look(key);
                let op = self.meta_line('g', key, "", flags, quiet);
                self.expect(op, None, vec![seen]);
            }
            5..=7 => self.meta_store(quiet),
            8 => {
                let key = self.own_key();
                let write = self.history.ask(key, Kind::Remove, 0);
                let op = self.meta_line('d', key, "", Vec::new(), quiet);
                self.expect(op, Some(write), Vec::new());
            }
            _ => self.counter_meta_one(quiet),
        }
    }

    fn meta_store(&mut self, quiet: bool) {
        let key = self.own_key();
        let mode = self.rng.pick(&["S", "S", "S", "E", "R", "A", "P", "C"]);
        self.meta_store_by(mode, key, quiet);
    }

    /// One request of a crowd: most of them create the key if it is not there.
    pub fn fight(&mut self) {
        let key = self.rng.below(LOCKS) as usize;
        match self.rng.below(20) {
            0..=9 => self.store_by("add", key),
            10..=12 => self.meta_store_by("E", key, false),
            13..=14 => self.vivify(key),
            15..=16 => self.counter_meta_one(false),
            17 => self.store_by("set", key),
            18 if self.rng.often(300) => {
                let write = self.history.ask(key, Kind::Remove, 0);
                let line = format!("delete {}\r\n", key_name(key));
                self.out.extend_from_slice(line.as_bytes());
                self.expect(Op::Delete, Some(write), Vec::new());
            }
            _ => {
                let seen = self.look(key);
                let line = format!("get {}\r\n", key_name(key));
                self.out.extend_from_slice(line.as_bytes());
                self.expect(Op::Read { cas: false }, None, vec![seen]);
            }
        }
    }

    /// A read that leaves an empty value where it finds none.
    fn vivify(&mut self, key: usize) {
        let seen = self.look(key);
        let write = self.history.ask(key, Kind::Vivify, 0);
        let flags = ["v", "c", "t", "N30"].map(String::from).to_vec();
        let op = self.meta_line('g', key, "", flags, false);
        self.expect(op, Some(write), vec![seen]);
    }

    fn meta_store_by(&mut self, mode: &str, key: usize, quiet: bool) {
        let (kind, length) = match mode {
            "A" | "P" => (Kind::Extend, self.rng.below(20) as usize),
            _ if self.habits.refused => (Kind::Put, self.length().min(60_000)),
            _ => (Kind::Put, self.length().min(30_000)),
        };
        let client_flags = self.rng.below(1000) as u32;
        let write = (self.history).ask_for(key, kind, client_flags, length > ITEM_MAX - 50);
        let data = tag(key, write, length);
        let mut flags = vec![format!("F{client_flags}"), format!("T{}", self.ttl())];
        match (mode, self.tokens.get(&key)) {
            ("C", Some(token)) => flags.push(format!("C{token}")),
            ("S" | "C", _) => {}
            _ => flags.push(format!("M{mode}")),
        }
        let length = format!(" {}", data.len());
        let op = self.meta_line('s', key, &length, flags, quiet);
        self.out.extend_from_slice(&data);
        self.out.extend_from_slice(b"\r\n");
        self.expect(op, Some(write), Vec::new());
    }

    fn counter_meta(&mut self) {
        self.counter_meta_one(false);
    }

    fn counter_meta_one(&mut self, quiet: bool) {
        let key = self.own_counter();
        let creates = self.rng.often(200);
        // With N it may create the key, whatever else it does.
        let create = creates.then(|| self.history.ask(key, Kind::Create, 0));
        let write = self.history.ask(key, Kind::Count, 0);
        let seen = self.look(key);
        let mut flags = vec![format!("D{}", write + 1)];
        if self.rng.often(500) {
            flags.push("v".into());
        }
        if creates {
            flags.extend(["N0".to_string(), "J0".to_string()]);
        }
        let op = self.meta_line('a', key, "", flags, quiet);
        self.expect(op, Some(write), vec![seen]);
        if let Some(last) = self.expects.last_mut() {
            last.create = create;
        }
    }

    fn quiet_group(&mut self) {
        for _ in 0..self.rng.range(1, 4) {
            self.meta_one(true);
        }
        self.line("mn\r\n", Op::Noop);
    }
}
