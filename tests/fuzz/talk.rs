//! What clients must see: the attacked proxy's answers to them, and to others beside them.

use crate::common::rng::Rng;
use crate::input;
use crate::parsers::MAX_VALUE;
use crate::world::{Client, Servers, World};

/// More than a client may still owe of a value that is not too large, in no-ops.
const MN_FILL: usize = LARGE_VALUE / 4 + 100;
const NOOP_FILL: usize = LARGE_VALUE / 24 + 20;

/// Values of this size are shared between buffers, not copied.
const LARGE_VALUE: usize = 20_000;

/// What may be held above `-m`: a chunk for the reads, and one for an answer that was let in.
const SLACK: usize = 3 * 68 * 1024;

/// Bytes in flight that a proxy may hold for one that asks for its stats.
const IDLE_BYTES: usize = 64 * 1024;

/// `-m` of the proxy before mad servers, in bytes.
const MEMORY: usize = 64 * 1024;

fn show(bytes: &[u8]) -> String {
    let from = bytes.len().saturating_sub(400);
    format!("…{}", bytes[from..].escape_ascii())
}

/// Random bytes of a client, before servers that work; another client beside it.
pub fn client(seed: u64, binary: bool, attack: &[u8]) -> Result<(), String> {
    // Its first byte tells what a client speaks.
    let binary = attack.first().map_or(binary, |b| *b == 0x80);
    let mut rng = Rng::new(seed);
    let flushable = rng.one_in(3);
    let max_value = rng.pick(&[MAX_VALUE, MAX_VALUE, LARGE_VALUE]);
    // What one client may hold of a half-sent request (64 KiB) must not pause the others.
    let memory = rng.pick(&[2, 8, 32]) * 64 * 1024;
    let mut options = format!("-I {max_value} -m {memory}");
    options += if flushable { "" } else { " -F" };
    options += if rng.one_in(2) {
        " --warm 0"
    } else {
        " --warm 10"
    };
    let mut world = World::new(&options, rng.clone(), Servers::Good);
    let (mut bad, mut good) = (world.client(), world.client());
    world.large = max_value == LARGE_VALUE;
    let greedy = rng.one_in(4);
    world.greedy(&mut bad, greedy);
    for (at, cut) in rng.cuts(attack.len()).into_iter().enumerate() {
        world.send(&mut bad, &attack[cut])?;
        if at < 5 {
            good_talk(&mut world, &mut good, at, flushable)?;
        }
    }
    world.rest(&mut [&mut bad, &mut good])?;
    if greedy {
        let held = world.bytes_in_flight()?;
        if held > memory + SLACK {
            return Err(format!("{held} bytes in flight, and -m {memory}"));
        }
        world.greedy(&mut bad, false);
        world.rest(&mut [&mut bad, &mut good])?;
    }
    well_formed(binary, &bad.got).map_err(|e| format!("{e}: {}", show(&bad.got)))?;
    match binary {
        false => text_sentinel(&mut world, &mut bad)?,
        true => binary_sentinel(&mut world, &mut bad)?,
    }
    good_talk(&mut world, &mut good, 9, flushable)?;
    world.leave(&mut bad);
    world.rest(&mut [&mut bad, &mut good])?;
    if !bad.closed() {
        return Err("a client that left is still there".into());
    }
    // Copies to the backup may be on their way.
    world.pass(3, &mut [&mut good])?;
    match world.bytes_in_flight()? {
        n if n > IDLE_BYTES => Err(format!("{n} bytes in flight when all was done")),
        _ => Ok(()),
    }
}

/// If the connection is in step, it answers each request once.
fn text_sentinel(world: &mut World, bad: &mut Client) -> Result<(), String> {
    // What was half sent may be a no-op too.
    world.send(bad, b"\r\n")?;
    world.rest(&mut [bad])?;
    bad.got.clear();
    world.send(bad, &b"mn\r\n".repeat(MN_FILL))?;
    world.rest(&mut [bad])?;
    well_formed(false, &bad.got).map_err(|e| format!("{e}: {}", show(&bad.got)))?;
    if bad.closed() || !bad.got.ends_with(b"MN\r\n") {
        return Ok(());
    }
    let count = bad.got.windows(4).filter(|w| w == b"MN\r\n").count();
    if count > MN_FILL {
        return Err(format!("{count} answers to {MN_FILL} no-ops"));
    }
    bad.got.clear();
    world.send(bad, b"mg sentinel v\r\nmn\r\nget sentinel\r\nmn\r\n")?;
    world.rest(&mut [bad])?;
    match &bad.got[..] {
        b"EN\r\nMN\r\nEND\r\nMN\r\n" => Ok(()),
        other => Err(format!("out of step: {}", show(other))),
    }
}

fn binary_sentinel(world: &mut World, bad: &mut Client) -> Result<(), String> {
    bad.got.clear();
    world.send(bad, &input::noop().repeat(NOOP_FILL))?;
    world.rest(&mut [bad])?;
    well_formed(true, &bad.got).map_err(|e| format!("{e}: {}", show(&bad.got)))?;
    let is_noop = |b: &[u8]| b.len() == 24 && b[..2] == [0x81, 0x0a];
    if bad.closed() || !is_noop(&bad.got[bad.got.len().saturating_sub(24)..]) {
        return Ok(());
    }
    bad.got.clear();
    world.send(bad, &input::noop())?;
    world.rest(&mut [bad])?;
    match is_noop(&bad.got) {
        true => Ok(()),
        false => Err(format!("out of step: {}", show(&bad.got))),
    }
}

/// A well-formed client's requests beside the attack; each must be answered as if it were alone.
fn good_talk(
    world: &mut World,
    good: &mut Client,
    round: usize,
    flushable: bool,
) -> Result<(), String> {
    let (mut asked, mut want) = (Vec::new(), Vec::new());
    let big = if world.large { 280 } else { 60 };
    for i in 0..4 {
        let value = format!("value {round} {i} of the good").repeat(1 + i * big);
        let (n, key) = (value.len(), format!("good:{i}"));
        asked
            .extend(format!("set {key} 7 0 {n}\r\n{value}\r\nmg {key} v k O{round} f\r\n").bytes());
        want.extend(format!("STORED\r\nVA {n} k{key} O{round} f7\r\n{value}\r\n").bytes());
    }
    asked.extend(
        b"ms good:n 1 q\r\n7\r\nma good:n D5 v\r\nget good:n\r\nincr good:none 1\r\nmn\r\n",
    );
    want.extend(b"VA 2\r\n12\r\nVALUE good:n 0 2\r\n12\r\nEND\r\nNOT_FOUND\r\nMN\r\n");
    good.got.clear();
    world.send(good, &asked)?;
    world.rest(&mut [good])?;
    let out_of_memory = good.got.windows(13).any(|w| w == b"out of memory");
    if flushable || out_of_memory {
        // Somebody else's flush may be between any two of them.
        return match good.got.ends_with(b"MN\r\n") {
            true => well_formed(false, &good.got),
            false => Err(format!("the good client's end is {}", show(&good.got))),
        };
    }
    match good.got == want {
        true => Ok(()),
        false => Err(format!(
            "the good client got {}\nnot {}",
            show(&good.got),
            show(&want)
        )),
    }
}

/// Answers of a proxy to whatever: lines with words that memcached says, values with the length
/// that they announce; packets.
fn well_formed(binary: bool, mut got: &[u8]) -> Result<(), String> {
    if binary {
        while let Some((head, rest)) = got.split_first_chunk::<24>() {
            let len = u32::from_be_bytes([head[8], head[9], head[10], head[11]]) as usize;
            if head[0] != 0x81 || rest.len() < len {
                return Err(format!("no packet: {}", show(got)));
            }
            got = &rest[len..];
        }
        return if got.is_empty() {
            Ok(())
        } else {
            Err("half a packet".into())
        };
    }
    while !got.is_empty() {
        got = &got[answer(got)?.len..];
    }
    Ok(())
}

/// One line of an answer, with its value.
struct Line<'a> {
    words: Vec<&'a [u8]>,
    len: usize,
}

fn answer(got: &[u8]) -> Result<Line<'_>, String> {
    const WORDS: &[&[u8]] = &[
        b"STORED",
        b"NOT_STORED",
        b"EXISTS",
        b"NOT_FOUND",
        b"END",
        b"VALUE",
        b"DELETED",
        b"TOUCHED",
        b"OK",
        b"ERROR",
        b"ERROR:",
        b"CLIENT_ERROR",
        b"SERVER_ERROR",
        b"VERSION",
        b"STAT",
        b"RESET",
        b"MN",
        b"HD",
        b"VA",
        b"EN",
        b"NF",
        b"NS",
        b"EX",
        b"ME",
        b"memcached",
        b"matrix",
    ];
    let end = got
        .iter()
        .position(|&b| b == b'\n')
        .ok_or_else(|| format!("no line: {}", show(got)))?;
    let line = got[..end]
        .strip_suffix(b"\r")
        .ok_or_else(|| format!("no \\r: {}", show(&got[..end])))?;
    let words: Vec<&[u8]> = line.split(|&b| b == b' ').collect();
    let number = line.trim_ascii_end();
    if !WORDS.contains(&words[0]) && (number.is_empty() || !number.iter().all(u8::is_ascii_digit)) {
        return Err(format!("no answer: {}", show(line)));
    }
    let value = match words[0] {
        b"VALUE" => words.get(3),
        b"VA" => words.get(1),
        _ => {
            return Ok(Line {
                words,
                len: end + 1,
            });
        }
    };
    let n = value.and_then(|w| std::str::from_utf8(w).ok()?.parse::<usize>().ok());
    let len = end + 1 + n.ok_or_else(|| format!("no length: {}", show(line)))? + 2;
    match got.get(..len) {
        Some(all) if all.ends_with(b"\r\n") => Ok(Line { words, len }),
        _ => Err(format!("a value of another length: {}", show(got))),
    }
}

/// A server that is out of step may answer one store with what it said to another.
const STORES: &[&[u8]] = &[b"STORED", b"NOT_STORED", b"EXISTS", b"NOT_FOUND"];

/// Requests of a well-formed client: what it asks, and the words that its answer may begin with.
const FAIR: &[(&[u8], &[&[u8]])] = &[
    (b"get good:1\r\n", &[b"END"]),
    (b"get good:1 good:2 good:3 other:4 other:5\r\n", &[b"END"]),
    (b"gets good:1 good:2\r\n", &[b"END"]),
    (b"gat 100 good:1 good:2\r\n", &[b"END"]),
    (b"set good:1 0 0 5\r\nhello\r\n", STORES),
    (b"set good:2 0 0 0\r\n\r\n", STORES),
    (b"set good:3 0 0 3 noreply\r\nabc\r\n", &[]),
    (b"add good:4 0 0 1\r\n7\r\n", STORES),
    (b"append good:1 0 0 1\r\nx\r\n", STORES),
    (b"cas good:1 0 0 1 5\r\nx\r\n", STORES),
    (b"incr good:4 1\r\n", &[b"NOT_FOUND", b"#"]),
    (b"delete good:2\r\n", &[b"DELETED", b"NOT_FOUND"]),
    (b"touch good:1 100\r\n", &[b"TOUCHED", b"NOT_FOUND"]),
    (b"mg good:1 v f k O77\r\n", &[b"VA", b"EN", b"HD"]),
    (b"mg good:1 v q\r\nmn\r\n", &[b"MN"]),
    (
        b"ms good:5 2 T0 O78 k\r\nhi\r\n",
        &[b"HD", b"NS", b"EX", b"NF"],
    ),
    (b"md good:5 k\r\n", &[b"HD", b"NF", b"EX"]),
    (
        b"ma good:4 N0 J5 v O79\r\n",
        &[b"VA", b"NF", b"NS", b"EX", b"HD"],
    ),
    (b"me good:1\r\n", &[b"ME", b"EN"]),
    (b"mn\r\n", &[b"MN"]),
];

/// The requests of a script, and the first words that may answer each.
fn fair(script: &[u8]) -> impl Iterator<Item = &(&'static [u8], &'static [&'static [u8]])> {
    script.iter().map(|b| &FAIR[*b as usize % FAIR.len()])
}

/// Each request of a script has its one answer, and nothing else came.
fn are_answered(got: &[u8], script: &[u8]) -> Result<(), String> {
    let mut left = got;
    for (at, (asked, words)) in fair(script).enumerate() {
        one(&mut left, asked, words).map_err(|why| {
            let (asked, before) = (asked.escape_ascii(), &got[..got.len() - left.len()]);
            format!("request {at}, {asked}: {why}\nbefore {}", show(before))
        })?;
    }
    match left.is_empty() {
        true => Ok(()),
        false => Err(format!("answers to nothing: {}", show(left))),
    }
}

/// Mad servers before a client that behaves: it gets one answer of the right kind to each request.
pub fn servers(seed: u64, script: &[u8]) -> Result<(), String> {
    let rng = Rng::new(seed);
    let options = match rng.clone().one_in(2) {
        true => "-I 4096 -m 64k --warm 0 --retry 200",
        false => "-I 4096 -m 64k --warm 10 --retry 200",
    };
    let mut world = World::new(options, rng.clone(), Servers::Mad);
    let mut good = world.client();
    let asked: Vec<u8> = fair(script)
        .flat_map(|(asked, _)| asked.iter().copied())
        .collect();
    world.send(&mut good, &asked)?;
    // So little memory has room for one key at a time. Each may time out at its primary, at its
    // backup, and behind a fetch before both.
    let keys = asked.iter().filter(|b| **b == b' ').count();
    for _ in 0..=keys {
        world.pass(8, &mut [&mut good])?;
        if are_answered(&good.got, script).is_ok() {
            break;
        }
    }
    if good.closed() {
        return Err(format!("the client was closed after {}", show(&good.got)));
    }
    are_answered(&good.got, script)?;
    world.madness = Servers::Good;
    world.pass(2, &mut [&mut good])?;
    let held = world.bytes_in_flight()?;
    if held > 2 * MEMORY {
        return Err(format!("{held} bytes in flight"));
    }
    Ok(())
}

/// Takes one whole answer off `got`.
fn one(got: &mut &[u8], asked: &[u8], words: &[&[u8]]) -> Result<(), String> {
    let first_line = asked.split(|&b| b == b'\r').next().unwrap_or_default();
    let keys: Vec<&[u8]> = first_line.split(|&b| b == b' ').skip(1).collect();
    let mut first = true;
    // What `mg q` and `mn` behind each other may say more.
    let quiet_get = asked.ends_with(b"mn\r\n") && asked.len() > 4;
    while !words.is_empty() {
        let line = answer(got)?;
        *got = &got[line.len..];
        let word = line.words[0];
        let error = matches!(word, b"ERROR" | b"CLIENT_ERROR" | b"SERVER_ERROR");
        let number = words.contains(&&b"#"[..]) && word.iter().all(u8::is_ascii_digit);
        match word {
            b"VALUE" if words == [b"END"] && keys.contains(&line.words[1]) => {}
            b"VA" | b"EN" | b"HD" if quiet_get && first => {}
            _ if words.contains(&word) || number => return opaque(asked, &line),
            _ if error && first && quiet_get => {}
            _ if error && first => return Ok(()),
            _ => {
                return Err(format!(
                    "answered with {}",
                    line.words.join(&b' ').escape_ascii()
                ));
            }
        }
        first = false;
    }
    Ok(())
}

/// An answer to a meta command with `O` has it.
fn opaque(asked: &[u8], line: &Line<'_>) -> Result<(), String> {
    let head = asked.split(|&b| b == b'\r').next().unwrap_or_default();
    let own = head.split(|&b| b == b' ').find(|w| w.starts_with(b"O"));
    match own {
        Some(own) if !line.words.contains(&own) => Err(format!(
            "{} lacks its opaque",
            line.words.join(&b' ').escape_ascii()
        )),
        _ => Ok(()),
    }
}
