//! The table's rows: how they are written, and how they become bytes.
//!
//! A row is one line: `name | bytes`, or `name | set-up | bytes`. One space on either side of a
//! `|` is not part of the bytes. Behind the name may stand
//!
//! - `[eof]`: the client half-closes behind the bytes, since a command behind them would be
//!   taken for their rest;
//! - `[closed]`: the other side closes at once, in the middle of a line;
//! - `[alone]`: it touches everybody's keys;
//! - `[off]`: memcached has it and magent answers as if it were switched off.
//!
//! In the bytes
//!
//! - `$` is a line end (CR LF), `\r \n \t \0 \xHH` as everywhere;
//! - `@` is six letters that no other run has: keys begin with it, so that runs don't meet;
//! - `~` is the same in base64 (eight letters);
//! - `{abc*9}` is `abc` nine times;
//! - `{cas}`, `{cas+1}`, `{cas-1}`: the last cas token of the set-up's answers;
//! - in binary rows `<opcode k=key v=value …>` is a packet: `x=` extras in hex (`-` for none),
//!   or by meaning `f=` flags, `t=` time, `n=` delta, `i=` initial value; `c=` cas, `o=` opaque
//!   in hex; and to spoil it `m=` magic, `d=` data type (hex), `kl=` key length, `bl=` body
//!   length, `vb=` vbucket.

/// How the end of a row's answers is found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// A no-op is sent behind the bytes, and its answer is the end.
    Sentinel,
    /// The client half-closes, and the other side closes.
    Eof,
    /// The other side closes, though the client has more to say.
    Closed,
}

/// One row.
#[derive(Debug)]
pub struct Row {
    /// Names it in failures.
    pub name: String,
    /// Sent first, whole; may be empty.
    pub setup: String,
    /// What the row is about.
    pub bytes: String,
    pub end: End,
    /// How often the bytes themselves say `mn`.
    pub noops: usize,
    pub alone: bool,
    pub off: bool,
    pub binary: bool,
}

/// Length of what `@` stands for.
pub const PREFIX: usize = 6;

/// Every row of every table.
pub fn all() -> Vec<Row> {
    let tables = [
        (include_str!("text.rows"), false),
        (include_str!("meta.rows"), false),
        (include_str!("binary.rows"), true),
    ];
    let lines = tables
        .iter()
        .flat_map(|(text, binary)| text.lines().map(move |l| (l, *binary)));
    let rows = lines.filter(|(l, _)| !l.is_empty() && !l.starts_with('#'));
    rows.map(|(line, binary)| parse(line, binary)).collect()
}

fn parse(line: &str, binary: bool) -> Row {
    let fields: Vec<&str> = line.split('|').collect();
    let (name, setup, bytes) = match fields[..] {
        [name, bytes] => (name, "", bytes),
        [name, setup, bytes] => (name, setup, bytes),
        _ => panic!("not a row: {line}"),
    };
    let name = name.trim();
    let has = |mark: &str| name.ends_with(mark);
    let setup = setup.strip_prefix(' ').unwrap_or(setup);
    Row {
        name: format!("{}{name}", if binary { "binary: " } else { "" }),
        setup: setup.strip_suffix(' ').unwrap_or(setup).to_string(),
        bytes: bytes.strip_prefix(' ').unwrap_or(bytes).to_string(),
        end: match () {
            () if has("[eof]") => End::Eof,
            () if has("[closed]") => End::Closed,
            () => End::Sentinel,
        },
        noops: noops(bytes),
        alone: has("[alone]"),
        off: has("[off]"),
        binary,
    }
}

fn noops(template: &str) -> usize {
    let lines = template.replace(r"\n", "$");
    let lines = lines.trim_start().split('$');
    lines.filter(|l| *l == "mn" || l.starts_with("mn ")).count()
}

/// What the placeholders stand for in one run.
pub struct Fill {
    /// For `@`.
    pub prefix: [u8; PREFIX],
    /// For `{cas}`.
    pub cas: u64,
}

impl Fill {
    /// The bytes of a template.
    pub fn bytes(&self, template: &str, binary: bool) -> Vec<u8> {
        let mut out = Vec::new();
        self.expand(template, binary, &mut out);
        out
    }

    fn expand(&self, mut rest: &str, binary: bool, out: &mut Vec<u8>) {
        while let Some(c) = rest.chars().next() {
            let used = match c {
                '$' => {
                    out.extend(b"\r\n");
                    1
                }
                '@' => {
                    out.extend(self.prefix);
                    1
                }
                '~' => {
                    out.extend(base64(self.prefix));
                    1
                }
                '\\' => escape(rest, out),
                '{' => self.braces(rest, binary, out),
                '<' if binary => self.packet(rest, out),
                _ => {
                    out.extend(c.to_string().bytes());
                    c.len_utf8()
                }
            };
            rest = &rest[used..];
        }
    }

    /// `{…}` at the start of `rest`; returns its length.
    fn braces(&self, rest: &str, binary: bool, out: &mut Vec<u8>) -> usize {
        let end = rest.find('}').expect("an end of the braces");
        let inner = &rest[1..end];
        if inner.starts_with("cas") {
            out.extend(self.cas(inner).to_string().bytes());
        } else {
            let (what, times) = inner.rsplit_once('*').expect("{what*times}");
            let once = self.bytes(what, binary);
            out.extend(once.repeat(times.parse().expect("how many times")));
        }
        end + 1
    }

    fn cas(&self, name: &str) -> u64 {
        match name.trim_matches(['{', '}']).strip_prefix("cas") {
            Some("") => self.cas,
            Some(by) => self
                .cas
                .wrapping_add_signed(by.parse().expect("cas+N or cas-N")),
            None => name.parse().expect("a number"),
        }
    }

    /// `<…>` at the start of `rest`; returns its length.
    fn packet(&self, rest: &str, out: &mut Vec<u8>) -> usize {
        let end = rest.find('>').expect("an end of the packet");
        let mut words = rest[1..end].split(' ');
        let op = opcode(words.next().expect("an opcode"));
        let fields: Vec<(&str, &str)> = words
            .map(|w| w.split_once('=').expect("name=value"))
            .collect();
        let field = |name: &str| fields.iter().find(|f| f.0 == name).map(|f| f.1);
        let number = |name: &str, or: u64| field(name).map_or(or, |v| v.parse().expect("a number"));
        let extras = field("x").map_or_else(|| default_extras(op, &number, field("t")), unhex);
        let (mut key, mut value) = (Vec::new(), Vec::new());
        self.expand(field("k").unwrap_or(""), false, &mut key);
        self.expand(field("v").unwrap_or(""), false, &mut value);
        let body = extras.len() + key.len() + value.len();
        out.push(field("m").map_or(0x80, |m| unhex(m)[0]));
        out.push(op);
        out.extend((number("kl", key.len() as u64) as u16).to_be_bytes());
        out.push(extras.len() as u8);
        out.push(field("d").map_or(0, |d| unhex(d)[0]));
        out.extend((number("vb", 0) as u16).to_be_bytes());
        out.extend((number("bl", body as u64) as u32).to_be_bytes());
        out.extend(unhex(field("o").unwrap_or("0a0b0c0d")));
        out.extend(field("c").map_or(0, |c| self.cas(c)).to_be_bytes());
        out.extend([extras, key, value].concat());
        end + 1
    }
}

/// The extras that an opcode wants, from what they mean.
fn default_extras(op: u8, number: &dyn Fn(&str, u64) -> u64, time: Option<&str>) -> Vec<u8> {
    let u32s = |name, or| (number(name, or) as u32).to_be_bytes();
    match op {
        0x01..=0x03 | 0x11..=0x13 => [u32s("f", 0), u32s("t", 0)].concat(),
        // Without a time a counter is not created.
        0x05 | 0x06 | 0x15 | 0x16 => {
            let (delta, initial) = (number("n", 1).to_be_bytes(), number("i", 0).to_be_bytes());
            [&delta[..], &initial, &u32s("t", u32::MAX.into())].concat()
        }
        0x1c..=0x1e | 0x23 | 0x24 => u32s("t", 0).to_vec(),
        0x08 | 0x18 if time.is_some() => u32s("t", 0).to_vec(),
        _ => Vec::new(),
    }
}

fn opcode(name: &str) -> u8 {
    const NAMES: [&str; 0x1f] = [
        "get",
        "set",
        "add",
        "replace",
        "delete",
        "incr",
        "decr",
        "quit",
        "flush",
        "getq",
        "noop",
        "version",
        "getk",
        "getkq",
        "append",
        "prepend",
        "stat",
        "setq",
        "addq",
        "replaceq",
        "deleteq",
        "incrq",
        "decrq",
        "quitq",
        "flushq",
        "appendq",
        "prependq",
        "verbosity",
        "touch",
        "gat",
        "gatq",
    ];
    match name {
        "gatk" => 0x23,
        "gatkq" => 0x24,
        hex if hex.starts_with("0x") => unhex(&hex[2..])[0],
        name => NAMES.iter().position(|n| *n == name).expect("an opcode") as u8,
    }
}

/// `\…` at the start of `rest`; returns its length.
fn escape(rest: &str, out: &mut Vec<u8>) -> usize {
    let code = rest.as_bytes()[1];
    out.push(match code {
        b'r' => b'\r',
        b'n' => b'\n',
        b't' => b'\t',
        b'0' => 0,
        b'x' => unhex(&rest[2..4])[0],
        other => panic!("unknown escape \\{}", other as char),
    });
    if code == b'x' { 4 } else { 2 }
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = text.trim_start_matches('-').as_bytes().chunks(2);
    digits
        .map(|pair| {
            let pair = std::str::from_utf8(pair).expect("hex");
            u8::from_str_radix(pair, 16).expect("hex")
        })
        .collect()
}

/// Base64 of bytes whose number is a multiple of 3, as [`PREFIX`] is.
pub fn base64(bytes: [u8; PREFIX]) -> Vec<u8> {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let threes = bytes
        .chunks_exact(3)
        .map(|c| u32::from_be_bytes([0, c[0], c[1], c[2]]));
    threes
        .flat_map(|n| [18, 12, 6, 0].map(|s| LETTERS[(n >> s) as usize & 63]))
        .collect()
}

#[test]
fn a_row_becomes_bytes() {
    let fill = Fill {
        prefix: *b"Kab123",
        cas: 41,
    };
    let text = fill.bytes(r"get @a ~ {x*3} {cas+1}\0\x41$", false);
    assert_eq!(text, b"get Kab123a S2FiMTIz xxx 42\0A\r\n");
    let packet = fill.bytes("<set k=@ f=5 t=7 v={y*2} o=01020304 c={cas}>", true);
    let head = b"\x80\x01\0\x06\x08\0\0\0\0\0\0\x10\x01\x02\x03\x04\0\0\0\0\0\0\0\x29";
    assert_eq!(
        packet,
        [&head[..], b"\0\0\0\x05\0\0\0\x07Kab123yy"].concat()
    );
}

#[test]
fn names_are_unique_and_many() {
    let mut names: Vec<String> = all().into_iter().map(|r| r.name).collect();
    let all = names.len();
    assert!(all >= 330, "{all} rows");
    names.sort();
    names.dedup();
    assert_eq!(names.len(), all);
}
