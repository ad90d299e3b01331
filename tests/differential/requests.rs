//! Random requests. The same generator state makes the same requests, whatever the cas tokens.

/// Few, so that requests meet. Two live on each of two primaries.
pub const KEYS: [&str; 4] = ["a", "b", "key1", "a-key-that-is-longer"];

/// The first two keys in base64.
const ENCODED: [&str; 2] = ["YQ==", "Yg=="];

/// The cas number of each key.
pub type Tokens = [u64; KEYS.len()];

/// What may be asked, beside what always may.
#[derive(Clone, Copy)]
pub struct Kinds {
    /// `flush_all`; it is refused while a server is away.
    pub flush: bool,
    /// `mg` and `ms` that create a missing key (`N`): the backup does not get to know the value.
    pub vivify: bool,
}

/// What a connection speaks.
#[derive(Clone, Copy, Debug)]
pub enum Dialect {
    Text,
    Binary,
}

/// A binary no-op whose opaque nothing else has, which is also its answer but for the magic.
const NOOP: [u8; 24] = [
    0x80, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 9, 8, 1, 0, 0, 0, 0, 0, 0, 0, 0,
];
const NOOP_ANSWER: [u8; 24] = [
    0x81, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 9, 8, 1, 0, 0, 0, 0, 0, 0, 0, 0,
];

impl Dialect {
    /// What ends a pipeline, and its answer.
    pub fn end(self) -> (&'static [u8], &'static [u8]) {
        match self {
            Dialect::Text => (b"mn\r\n", b"MN\r\n"),
            Dialect::Binary => (&NOOP, &NOOP_ANSWER),
        }
    }
}

/// Marsaglia's xorshift.
#[derive(Clone)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed.max(1))
    }

    /// What to start from to get the same again.
    pub fn state(&self) -> u64 {
        self.0
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % n
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// Mostly numbers, so that incr has something to do; some words; some too large to copy.
    fn value(&mut self) -> Vec<u8> {
        match self.below(12) {
            0..6 => self.pick(&["1", "7", "99", "1000000007"]).into(),
            6..9 => self.pick(&["", "x", "some words"]).into(),
            9..11 => vec![b'v'; 9_000 + self.below(9_000)],
            _ => vec![b'w'; 70_000 + self.below(70_000)],
        }
    }

    fn exptime(&mut self) -> i64 {
        self.pick(&[0, 0, 0, 1000, -1])
    }
}

/// `depth` requests of one dialect.
pub fn pipeline(
    rng: &mut Rng,
    dialect: Dialect,
    depth: usize,
    tokens: &Tokens,
    kinds: Kinds,
) -> Vec<u8> {
    let mut out = Vec::new();
    for i in 0..depth {
        match dialect {
            Dialect::Text if kinds.flush && rng.one_in(40) => out
                .extend_from_slice(rng.pick(&[&b"flush_all\r\n"[..], b"flush_all 0 noreply\r\n"])),
            Dialect::Binary if kinds.flush && rng.one_in(40) => {
                packet(
                    &mut out,
                    rng.pick(&[0x08, 0x18]),
                    i as u32,
                    0,
                    &[],
                    &[],
                    &[],
                );
            }
            Dialect::Text if rng.one_in(2) => classic(rng, tokens, &mut out),
            Dialect::Text => meta(rng, tokens, kinds, &mut out),
            Dialect::Binary => binary(rng, tokens, i as u32, &mut out),
        }
    }
    out
}

fn classic(rng: &mut Rng, tokens: &Tokens, out: &mut Vec<u8>) {
    let at = rng.below(KEYS.len());
    let (key, token) = (KEYS[at], tokens[at]);
    let noreply = if rng.one_in(6) { " noreply" } else { "" };
    let exptime = rng.exptime();
    let number = rng.pick(&[0, 1, 5, 1000]);
    let line = match rng.below(24) {
        0..7 => {
            let verb = rng.pick(&["set", "set", "add", "replace", "append", "prepend"]);
            let (value, flags) = (rng.value(), rng.below(3));
            let len = value.len();
            let line = format!("{verb} {key} {flags} {exptime} {len}{noreply}\r\n");
            return put(out, line, &value);
        }
        7 | 8 => {
            let value = rng.value();
            let token = token + u64::from(token > 0 && rng.one_in(4)) * (1 << 40);
            let line = format!("cas {key} 1 0 {} {token}{noreply}\r\n", value.len());
            return put(out, line, &value);
        }
        9..13 => format!("{} {key}\r\n", rng.pick(&["get", "gets"])),
        13 | 14 => {
            let keys: Vec<&str> = (0..1 + rng.below(6)).map(|_| rng.pick(&KEYS)).collect();
            format!("{} {}\r\n", rng.pick(&["get", "gets"]), keys.join(" "))
        }
        15 => format!("gat {exptime} {key}\r\n"),
        16 => format!("gats 500 {} {key}\r\n", rng.pick(&KEYS)),
        17 => format!("touch {key} {exptime}{noreply}\r\n"),
        18 | 19 => format!("incr {key} {number}{noreply}\r\n"),
        // Not by more: whether memcached pads a shorter number with spaces depends on time.
        20 => format!("decr {key} 0{noreply}\r\n"),
        21 | 22 => format!("delete {key}{noreply}\r\n"),
        _ => rng
            .pick(&[
                "get\r\n",
                "bogus\r\n",
                "delete a 5\r\n",
                "incr a x\r\n",
                "touch b\r\n",
            ])
            .into(),
    };
    out.extend_from_slice(line.as_bytes());
}

fn put(out: &mut Vec<u8>, line: String, value: &[u8]) {
    out.extend_from_slice(line.as_bytes());
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Some of `from`, in a random order.
fn some(rng: &mut Rng, from: &[&str]) -> String {
    let mut flags: Vec<&str> = from.iter().copied().filter(|_| rng.one_in(3)).collect();
    for i in (1..flags.len()).rev() {
        flags.swap(i, rng.below(i + 1));
    }
    flags.iter().map(|f| format!(" {f}")).collect()
}

fn meta(rng: &mut Rng, tokens: &Tokens, kinds: Kinds, out: &mut Vec<u8>) {
    let at = rng.below(KEYS.len());
    let encoded = at < ENCODED.len() && rng.one_in(4);
    let (key, b) = match encoded {
        true => (ENCODED[at], " b"),
        false => (KEYS[at], ""),
    };
    let compare = match tokens[at] {
        0 => String::new(),
        token if rng.one_in(8) => format!(" C{token}"),
        _ => String::new(),
    };
    // memcached returns a key as it was stored, magent as it was asked for.
    let k = if at < ENCODED.len() { "O5" } else { "k" };
    let vivify = if kinds.vivify { "N60" } else { "T900" };
    let line = match rng.below(12) {
        0..3 => format!(
            "mg {key}{b}{}\r\n",
            some(rng, &["v", k, "f", "c", "q", "T900"])
        ),
        3 => format!("mg {key}{b}{}\r\n", some(rng, &["v", k, vivify, "f"])),
        4..8 => {
            let value = rng.value();
            let mode = rng.pick(&["", "", " MS", " ME", " MA", " MP", " MR", " Mp"]);
            let vivify = if mode == " MA" { vivify } else { "F5" };
            let flags = some(rng, &[k, "q", vivify, "T900", "c"]);
            let line = format!("ms {key} {}{b}{mode}{compare}{flags}\r\n", value.len());
            return put(out, line, &value);
        }
        8 | 9 => format!("md {key}{b}{compare}{}\r\n", some(rng, &[k, "q"])),
        10 => {
            let mode = rng.pick(&[
                "",
                " MI",
                " MD D0",
                " D5",
                " N0",
                " N60 J13",
                " MD D0 N60 J9",
            ]);
            // Of a number that it has just created memcached tells even who asked with q; the
            // reply does not show that.
            let q = if mode.contains('N') { "c" } else { "q" };
            format!("ma {key}{b}{mode}{}\r\n", some(rng, &["v", k, q]))
        }
        _ => rng.pick(&["mg\r\n", "ms a\r\n", "mn\r\n"][..2]).into(),
    };
    out.extend_from_slice(line.as_bytes());
}

fn binary(rng: &mut Rng, tokens: &Tokens, opaque: u32, out: &mut Vec<u8>) {
    let at = rng.below(KEYS.len());
    let key = KEYS[at].as_bytes();
    let exptime = rng.pick(&[0u32, 0, 1000]).to_be_bytes();
    let cas = match rng.below(8) {
        0 => tokens[at],
        1 if tokens[at] > 0 => tokens[at] + (1 << 40),
        _ => 0,
    };
    let number = |n: u64, initial: u64, exptime: u32| {
        [
            &n.to_be_bytes()[..],
            &initial.to_be_bytes(),
            &exptime.to_be_bytes(),
        ]
        .concat()
    };
    let flags = (rng.below(3) as u32).to_be_bytes();
    match rng.below(20) {
        0..6 => {
            let opcode = rng.pick(&[0x00, 0x09, 0x0c, 0x0d]);
            packet(out, opcode, opaque, 0, &[], key, &[]);
        }
        6..11 => {
            let opcode = rng.pick(&[0x01, 0x02, 0x03, 0x11, 0x12, 0x13]);
            let value = rng.value();
            let cas = if opcode & 0x0f == 2 { 0 } else { cas };
            let extras = [flags, exptime].concat();
            packet(out, opcode, opaque, cas, &extras, key, &value);
        }
        11 | 12 => {
            let opcode = rng.pick(&[0x0e, 0x0f, 0x19, 0x1a]);
            let value = rng.value();
            packet(out, opcode, opaque, 0, &[], key, &value);
        }
        13..15 => packet(out, rng.pick(&[0x04, 0x14]), opaque, cas, &[], key, &[]),
        15..18 => {
            let opcode = rng.pick(&[0x05, 0x06, 0x15, 0x16]);
            let exptime = rng.pick(&[0, 60, u32::MAX]);
            let by = rng.pick(&[1, 5, 1000]) * u64::from(opcode & 0x0f == 5);
            let extras = number(by, 13, exptime);
            packet(out, opcode, opaque, 0, &extras, key, &[]);
        }
        18 => {
            let opcode = rng.pick(&[0x1c, 0x1d, 0x1e, 0x23, 0x24]);
            packet(out, opcode, opaque, 0, &exptime, key, &[]);
        }
        _ => packet(out, rng.pick(&[0x0a, 0x55]), opaque, 0, &[], &[], &[]),
    }
}

fn packet(
    out: &mut Vec<u8>,
    opcode: u8,
    opaque: u32,
    cas: u64,
    extras: &[u8],
    key: &[u8],
    value: &[u8],
) {
    let body = extras.len() + key.len() + value.len();
    out.extend_from_slice(&[0x80, opcode]);
    out.extend_from_slice(&(key.len() as u16).to_be_bytes());
    out.extend_from_slice(&[extras.len() as u8, 0, 0, 0]);
    out.extend_from_slice(&(body as u32).to_be_bytes());
    out.extend_from_slice(&opaque.to_be_bytes());
    out.extend_from_slice(&cas.to_be_bytes());
    out.extend_from_slice(extras);
    out.extend_from_slice(key);
    out.extend_from_slice(value);
}
