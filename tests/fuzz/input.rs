//! Where the fuzzer's bytes come from: seeds, and what is done to them.

use crate::common::rng::Rng;
use std::ops::Range;

/// What numbers, lines and keys trip over.
const TOKENS: &[&[u8]] = &[
    b"\r\n",
    b"\n",
    b"\r",
    b" ",
    b"   ",
    b"\0",
    b"\t",
    b"\x80",
    b"\x81",
    b"\xff",
    b"\x7f",
    b"-1",
    b"0",
    b"1",
    b"9",
    b"2147483645",
    b"2147483646",
    b"2147483647",
    b"2147483648",
    b"4294967295",
    b"4294967296",
    b"9223372036854775807",
    b"9223372036854775808",
    b"18446744073709551615",
    b"18446744073709551616",
    b"99999999999999999999999",
    b"noreply",
    b" noreply",
    b" q",
    b" k",
    b" Oabc",
    b" v",
    b" b",
    b" c",
    b" C1",
    b" N30",
    b" MA",
    b" MP",
    b" I",
    b" T-1",
    b" S9",
    b"get ",
    b"set a 0 0 1\r\nx\r\n",
    b"mn\r\n",
    b"END\r\n",
    b"VALUE a 0 1\r\nx\r\n",
    b"STORED\r\n",
    b"ERROR\r\n",
    b"SERVER_ERROR x\r\n",
    b"HD\r\n",
    b"VA 1\r\nx\r\n",
    b"EN\r\n",
    b"4096",
    b"4097",
    b"65536",
];

/// Well-formed and nearly well-formed requests in text.
pub fn text_seeds() -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = SHORT.iter().map(|s| s.to_vec()).collect();
    let long = "k".repeat(250);
    all.push(format!("get {long} {long}x\r\n").into());
    all.push(format!("set {long} 0 0 0\r\n\r\n").into());
    all.push(format!("mg {long} k v O{}\r\n", "o".repeat(31)).into());
    all.push(format!("gat 0 {}\r\n", "x ".repeat(900)).into());
    let many: String = (0..3000).map(|i| format!(" key{}", i * 7919)).collect();
    all.push(format!("gets{many}\r\n").into());
    for len in [4095, 4096, 4097, 8192, 19_990, 20_001] {
        all.push(format!("set a 1 0 {len}\r\n{}\r\n", "v".repeat(len)).into());
        all.push(format!("ms a {len} q\r\n{}\r\n", "v".repeat(len)).into());
    }
    for len in [300, 9000] {
        all.push(format!("set a 1 0 {len}\r\n{}\r\n", "v".repeat(len)).into());
        all.push("get a b\r\nmg a v k\r\n".repeat(200).into());
    }
    all.push(b" ".repeat(3000));
    all.push([&b"get "[..], &b"y".repeat(3000), b"\r\n"].concat());
    all
}

const SHORT: &[&[u8]] = &[
    b"get a\r\n",
    b"gets a b c\r\n",
    b"gat 10 a\r\n",
    b"gats 0 a b\r\n",
    b"get  a   b \r\n",
    b"set a 0 0 1\r\nx\r\n",
    b"set b 5 60 0\r\n\r\n",
    b"set c 0 0 3 noreply\r\nabc\r\n",
    b"add a 0 0 2\r\nzz\r\n",
    b"replace a 1 0 1\r\n7\r\n",
    b"append a 0 0 1\r\ny\r\n",
    b"prepend a 0 0 1 noreply\r\nw\r\n",
    b"cas a 0 0 1 1\r\nq\r\n",
    b"cas a 0 0 1 0 noreply\r\nq\r\n",
    b"incr a 1\r\n",
    b"decr a 18446744073709551615\r\n",
    b"incr a 1 noreply\r\n",
    b"delete a\r\n",
    b"delete a 0\r\n",
    b"delete a noreply\r\n",
    b"touch a 10\r\n",
    b"touch a -1 noreply\r\n",
    b"flush_all\r\n",
    b"flush_all 10 noreply\r\n",
    b"flush_all -1\r\n",
    b"version\r\n",
    b"verbosity 1\r\n",
    b"stats\r\n",
    b"stats proxy\r\n",
    b"stats route a\r\n",
    b"stats servers\r\n",
    b"stats items\r\n",
    b"stats cachedump 1 10\r\n",
    b"quit\r\n",
    b"shutdown\r\n",
    b"slabs reassign 1 2\r\n",
    b"lru_crawler crawl all\r\n",
    b"watch\r\n",
    b"cache_memlimit 5\r\n",
    b"\r\n",
    b"\n",
    b"get\r\n",
    b"set a\r\n",
    b"GET a\r\n",
    b"bogus\r\n",
    b"mn\r\n",
    b"mg a\r\n",
    b"mg a v k t f s c h l Oxy q\r\n",
    b"mg YQ== b k v\r\n",
    b"mg a N30 v c\r\n",
    b"mg a T30 E5 R30 v\r\n",
    b"ms a 1\r\nx\r\n",
    b"ms a 2 T0 F5 I C9 c k O1\r\nhi\r\n",
    b"ms YQ== 1 b q\r\nx\r\n",
    b"ms a 1 MA N10\r\nx\r\n",
    b"ms a 1 ME\r\nx\r\n",
    b"ms a S1\r\nx\r\n",
    b"md a q I T30\r\n",
    b"md a C1 k O2\r\n",
    b"ma a\r\n",
    b"ma a N0 J13 v t c k O3\r\n",
    b"ma a MD D5 q\r\n",
    b"me a\r\n",
    b"me YQ== b\r\n",
    b"set a 0 0 -1\r\n",
    b"set a 0 0 2147483647\r\n",
    b"set a 0 0 2147483648\r\n",
    b"set a 0 0 5000\r\nx\r\n",
    b"set a 4294967296 0 1\r\nx\r\n",
    b"set a 0 0 1\r\nxyz\r\n",
    b"set a 0 0 1\nx\n",
    b"get a\n",
    b"set a\rb 0 0 1\r\nx\r\n",
    b"get a\0b\r\n",
    b"ms a 99999999999\r\n",
    b"ms a -1\r\n",
];

/// The opcodes that memcached knows, and a few that it does not.
const OPCODES: Range<u8> = 0..0x26;

fn packet(op: u8, extras: &[u8], key: &[u8], value: &[u8], cas: u64) -> Vec<u8> {
    let mut p = vec![0x80, op];
    p.extend((key.len() as u16).to_be_bytes());
    p.extend([extras.len() as u8, 0, 0, 0]);
    p.extend(((extras.len() + key.len() + value.len()) as u32).to_be_bytes());
    p.extend([op, 1, 2, 3]);
    p.extend(cas.to_be_bytes());
    [&p, extras, key, value].concat()
}

/// A no-op with an opaque of its own.
pub fn noop() -> Vec<u8> {
    packet(0x0a, b"", b"", b"", 0)
}

/// Binary requests with every opcode, right and wrong in their lengths.
pub fn binary_seeds() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for op in OPCODES {
        let extras: &[u8] = match op {
            0x01..=0x03 | 0x11..=0x13 => &[0; 8],
            0x05 | 0x06 | 0x15 | 0x16 => &[0; 20],
            0x1c..=0x1e | 0x23 | 0x24 | 0x1b => &[0; 4],
            _ => b"",
        };
        let value: &[u8] = match op {
            0x01..=0x03 | 0x11..=0x13 | 0x0e | 0x0f | 0x19 | 0x1a => b"value",
            _ => b"",
        };
        let keyless = matches!(op, 0x07 | 0x08 | 0x0a | 0x0b | 0x10 | 0x17 | 0x18 | 0x20);
        let key: &[u8] = if keyless { b"" } else { b"a" };
        all.push(packet(op, extras, key, value, 0));
        all.push(packet(op, extras, key, value, 1));
        if !keyless {
            all.push(packet(op, extras, b"a\r\nset b 0 0 1\r\nx", value, 0));
            all.push(packet(op, extras, b"a b", b"", 0));
            all.push(packet(op, extras, &[b'k'; 250], value, 0));
            all.push(packet(op, extras, &[0; 187], value, 0));
            all.push(packet(op, extras, &[b'k'; 251], value, 0));
        }
        all.push(packet(op, &[1; 7], b"odd", b"lengths", 0));
    }
    for len in [0, 4096, 4097, 8192, 19_990, 20_001] {
        all.push(packet(0x01, &[0; 8], b"a", &vec![b'v'; len], 0));
    }
    for len in [1u32 << 31, (1 << 31) - 1, u32::MAX, 1 << 20] {
        let mut p = packet(0x01, &[0; 8], b"a", b"", 0);
        p[8..12].copy_from_slice(&len.to_be_bytes());
        all.push(p);
    }
    all
}

/// A few seeds behind each other, with a few things done to them.
pub fn mutated(rng: &mut Rng, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut all = Vec::new();
    for _ in 0..1 + rng.index(5) {
        let seed = &seeds[rng.index(seeds.len())];
        all.extend_from_slice(seed);
        if seed.len() > 2000 && !rng.one_in(4) {
            all.truncate(all.len() - seed.len());
        }
    }
    for _ in 0..rng.index(5) {
        mutate(rng, &mut all);
    }
    all
}

/// One change somewhere.
pub fn mutate(rng: &mut Rng, all: &mut Vec<u8>) {
    let at = rng.index(all.len() + 1);
    let some = at..(at + 1 + rng.index(8)).min(all.len());
    match rng.index(8) {
        0 if at < all.len() => all[at] ^= 1 << rng.index(8),
        1 if at < all.len() => all[at] = rng.next() as u8,
        2 => drop(all.drain(some.start.min(all.len())..some.end)),
        3 => {
            let again = all[some.start.min(some.end)..some.end].to_vec();
            all.splice(at..at, again.repeat(1 + rng.index(3)));
        }
        4 if rng.one_in(3) => all.truncate(at),
        5 => replace_number(rng, all, at),
        _ => drop(all.splice(at..at, rng.pick(TOKENS).iter().copied())),
    }
}

/// Puts another number in the place of the next one behind `at`.
fn replace_number(rng: &mut Rng, all: &mut Vec<u8>, at: usize) {
    let Some(from) = all[at..]
        .iter()
        .position(u8::is_ascii_digit)
        .map(|n| at + n)
    else {
        return;
    };
    let digits = all[from..]
        .iter()
        .take_while(|b| b.is_ascii_digit())
        .count();
    let number = match rng.index(3) {
        0 => (rng.next() % 70_000).to_string().into_bytes(),
        1 => ((1u128 << rng.index(66)) + rng.index(3) as u128 - 1)
            .to_string()
            .into(),
        _ => rng.pick(TOKENS).to_vec(),
    };
    all.splice(from..from + digits, number);
}
