//! The parsers alone: no panic, the same outcome however the bytes are cut, and nothing for a
//! server that a strict reader would refuse.

use crate::common::rng::Rng;
use crate::common::world::wire;
use magent::buffer::{Queue, Source};
use magent::protocol::reply::{Progress, Scan};
use magent::protocol::{self, Dialect, Limits, Parsed, Reply, Scratch, Status, Verb, forms};

pub const MAX_VALUE: usize = 4096;

fn limits() -> Limits {
    Limits {
        max_value: MAX_VALUE,
        flush_all: true,
    }
}

/// Reads requests as the proxy does; `cuts` is where the bytes end that have arrived so far.
/// What came of each is written down in words.
fn walk(dialect: Dialect, all: &[u8], cuts: &[usize]) -> Result<Vec<String>, String> {
    let (mut at, mut searched, mut said) = (0, 0, Vec::new());
    let mut scratch = Scratch::default();
    for &end in cuts {
        while at < end {
            let buf = &all[at..end];
            let parsed = protocol::parse(dialect, buf, searched, &limits(), &mut scratch);
            searched = 0;
            let step = match parsed {
                Parsed::More => {
                    searched = buf.len();
                    break;
                }
                Parsed::Close => {
                    said.push(format!("{at}: close"));
                    return Ok(said);
                }
                Parsed::Request(r) => {
                    let total = r.head + r.data;
                    if r.value.is_some() && buf.len() < total {
                        // The head is parsed again when the rest has come.
                        if end == all.len() {
                            said.push(format!("{at}: value of {:?} is cut", r.value));
                            return Ok(said);
                        }
                        break;
                    }
                    request_is_sound(&r, dialect, buf, &scratch)?;
                    said.push(format!(
                        "{at}: {r:?} {:?} {:?}",
                        text(&scratch.line),
                        text(&scratch.key)
                    ));
                    total
                }
                Parsed::Local { used, what, format } => {
                    said.push(format!("{at}: {what:?} {format:?}"));
                    used
                }
                Parsed::Answer {
                    used,
                    swallow,
                    close,
                    drop_key,
                } => {
                    answer_is_sound(dialect, &scratch, drop_key)?;
                    said.push(format!(
                        "{at}: {:?} {swallow} {close} {drop_key}",
                        text(&scratch.answer)
                    ));
                    if close {
                        return Ok(said);
                    }
                    if used == 0 {
                        return Err(format!("an answer to nothing at {at}"));
                    }
                    used.saturating_add(swallow)
                }
            };
            if step == 0 {
                return Err(format!("no step forward at {at}"));
            }
            at = at.saturating_add(step);
        }
    }
    Ok(said)
}

fn text(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

/// A text answer is lines; a binary one says its length.
fn answer_is_sound(dialect: Dialect, s: &Scratch, drop_key: bool) -> Result<(), String> {
    let good = match dialect {
        Dialect::Text => s.answer.is_empty() || s.answer.ends_with(b"\r\n"),
        Dialect::Binary => {
            let len = s
                .answer
                .get(8..12)
                .and_then(|b| Some(u32::from_be_bytes(b.try_into().ok()?)));
            s.answer.is_empty() || len.is_some_and(|n| 24 + n as usize == s.answer.len())
        }
    };
    if !good {
        return Err(format!("a bad answer {:?}", text(&s.answer)));
    }
    if drop_key {
        strict(&s.line, b"")?;
    }
    Ok(())
}

/// What goes to a server is one whole request to a strict reader.
fn strict(line: &[u8], data: &[u8]) -> Result<(), String> {
    let sent = [line, data].concat();
    match wire::request(&sent) {
        Ok(Some(w)) if w.len == sent.len() => Ok(()),
        other => Err(format!(
            "the upstream request line {:?} is {other:?}",
            text(line)
        )),
    }
}

fn request_is_sound(
    r: &protocol::Request,
    dialect: Dialect,
    buf: &[u8],
    s: &Scratch,
) -> Result<(), String> {
    let value = r.value.map(|n| &buf[r.head..r.head + n]);
    let mut data = value.map(<[u8]>::to_vec);
    if let Some(d) = &mut data {
        // A wrong end of the block is found later.
        d.extend_from_slice(b"\r\n");
    }
    let data = data.unwrap_or_default();
    if dialect == Dialect::Binary && r.raw {
        return Err("a binary request goes out as it is".into());
    }
    if !s.keys.is_empty() && r.key.is_none() {
        for key in &s.keys {
            let line = [&s.line[..], b" ", &buf[key.clone()], b"\r\n"].concat();
            strict(&line, b"")?;
        }
        return Ok(());
    }
    let line = if r.raw { &buf[..r.head] } else { &s.line[..] };
    strict(line, &data)?;
    let mut raw = Vec::new();
    forms::raw_key(r.verb, line, &mut raw);
    let key = match r.key {
        Some((from, to)) => &buf[from as usize..to as usize],
        None => &s.key,
    };
    if raw != key {
        return Err(format!("hashed {:?}, sent {:?}", text(key), text(&raw)));
    }
    for status in [
        Status::Done,
        Status::Absent,
        Status::Number(7),
        Status::ServerError,
    ] {
        let mut out = Vec::new();
        if let forms::Mirror::Send { with_data, .. } =
            forms::mirror(r.verb, r.traits, line, status, &mut out)
        {
            strict(&out, if with_data { &data } else { b"" })?;
        }
    }
    let mut out = Vec::new();
    forms::flip_cas(r.verb, line, &mut out);
    strict(&out, &data)?;
    for write in [forms::write_delete, forms::write_look, forms::write_fetch] {
        let mut out = Vec::new();
        write(key, &mut out);
        strict(&out, b"")?;
    }
    forms::absent_answer(r.verb, line, &mut Vec::new());
    Ok(())
}

/// Requests of a client, whole and in pieces.
pub fn requests(dialect: Dialect, rng: &mut Rng, all: &[u8]) -> Result<(), String> {
    let whole = walk(dialect, all, &[all.len()])?;
    let cuts: Vec<usize> = rng.cuts(all.len()).into_iter().map(|r| r.end).collect();
    let pieces = walk(dialect, all, &cuts)?;
    // A line that is too long is closed on as soon as that is seen.
    let closed = |said: &[String]| said.last().is_some_and(|s| s.ends_with("close"));
    if whole != pieces && !closed(&pieces) {
        return Err(format!("whole: {whole:#?}\nin pieces: {pieces:#?}"));
    }
    Ok(())
}

/// Requests as servers are asked them, with answers as servers give them.
pub const ASKED: &[(Verb, &[u8], &[u8])] = &[
    (Verb::Get, b"get a\r\n", b"VALUE a 5 3\r\nabc\r\nEND\r\n"),
    (
        Verb::Get,
        b"get a b a\r\n",
        b"VALUE a 0 0\r\n\r\nVALUE b 1 1\r\nx\r\nVALUE a 0 0\r\n\r\nEND\r\n",
    ),
    (
        Verb::Gets,
        b"gets a b\r\n",
        b"VALUE b 0 2 77\r\n\r\n\r\nEND\r\n",
    ),
    (
        Verb::Gat,
        b"gat 10 a b\r\n",
        b"VALUE a 0 1\r\nx\r\nVALUE b 0 1\r\ny\r\nEND\r\n",
    ),
    (
        Verb::Gats,
        b"gats 0 a\r\n",
        b"VALUE a 0 1 9\r\nx\r\nEND\r\n",
    ),
    (Verb::Set, b"set a 0 0 1\r\n", b"STORED\r\n"),
    (Verb::Add, b"add a 0 0 1\r\n", b"NOT_STORED\r\n"),
    (Verb::Cas, b"cas a 0 0 1 7\r\n", b"EXISTS\r\n"),
    (Verb::Incr, b"incr a 1\r\n", b"18446744073709551615  \r\n"),
    (Verb::Decr, b"decr a 1\r\n", b"NOT_FOUND\r\n"),
    (Verb::Delete, b"delete a\r\n", b"DELETED\r\n"),
    (Verb::Touch, b"touch a 1\r\n", b"TOUCHED\r\n"),
    (
        Verb::MetaGet,
        b"mg a v t f s c h l\r\n",
        b"VA 3 t-1 f5 s3 c77 h0 l1\r\nabc\r\n",
    ),
    (
        Verb::MetaGet,
        b"mg a f t v\r\n",
        b"VA 0 f5 t99 W X Z\r\n\r\n",
    ),
    (Verb::MetaGet, b"mg YQ== b\r\n", b"HD\r\n"),
    (Verb::MetaSet, b"ms a 1 c\r\n", b"HD c9\r\n"),
    (Verb::MetaSet, b"ms a 1 C7\r\n", b"EX\r\n"),
    (Verb::MetaDelete, b"md a\r\n", b"NF\r\n"),
    (
        Verb::MetaArithmetic,
        b"ma a N0 J13 v t c\r\n",
        b"VA 2 t-1 c8\r\n13\r\n",
    ),
    (
        Verb::MetaDebug,
        b"me a\r\n",
        b"ME a exp=-1 la=2 cas=2 fetch=no cls=1 size=63\r\n",
    ),
    (Verb::FlushAll, b"flush_all\r\n", b"OK\r\n"),
    (Verb::Version, b"version\r\n", b"VERSION 1.6.18\r\n"),
    (
        Verb::Stats,
        b"stats\r\n",
        b"STAT pid 1\r\nSTAT uptime 5\r\nEND\r\n",
    ),
    (
        Verb::Set,
        b"set a 0 0 1\r\n",
        b"SERVER_ERROR out of memory storing object\r\n",
    ),
    (
        Verb::MetaGet,
        b"mg a\r\n",
        b"CLIENT_ERROR bad data chunk\r\n",
    ),
];

/// Scans one reply; the last bytes are shown again as long as they were not used.
fn scan(verb: Verb, line: &[u8], all: &[u8], cuts: &[usize]) -> Result<(Progress, Scan), String> {
    let (mut scan, mut at) = (Scan::default(), 0);
    let mut last = Progress::More { used: 0 };
    for &end in cuts {
        last = scan.feed(verb, line, &all[at..end]);
        match last {
            Progress::More { used } => {
                at += used;
                if at > end || scan.seen() != at {
                    return Err(format!("used {at} of {end}, seen {}", scan.seen()));
                }
            }
            Progress::Whole { used, line, status } => {
                at += used;
                if at > end || line > at || scan.seen() != at {
                    return Err(format!(
                        "used {at} of {end}, line {line}, seen {}",
                        scan.seen()
                    ));
                }
                return Ok((
                    Progress::Whole {
                        used: at,
                        line,
                        status,
                    },
                    scan,
                ));
            }
            Progress::Bad(_) => return Ok((last, scan)),
        }
    }
    Ok((
        Progress::More {
            used: if matches!(last, Progress::More { .. }) {
                at
            } else {
                0
            },
        },
        scan,
    ))
}

/// A server's answer, whole and in pieces, and everything that is made of it.
pub fn reply(rng: &mut Rng, verb: Verb, line: &[u8], all: &[u8]) -> Result<(), String> {
    let cuts: Vec<usize> = rng.cuts(all.len()).into_iter().map(|r| r.end).collect();
    let (whole, found) = scan(verb, line, all, &[all.len()])?;
    let (pieces, _) = scan(verb, line, all, &cuts)?;
    let same = match (whole, pieces) {
        (Progress::Bad(_), Progress::Bad(_)) => true,
        (a, b) => a == b,
    };
    if !same {
        return Err(format!("whole: {whole:?}, in pieces: {pieces:?}"));
    }
    let Progress::Whole {
        used,
        line: first,
        status,
    } = whole
    else {
        return Ok(());
    };
    if !all[..used].ends_with(b"\r\n") {
        return Err("a reply that ends without \\r\\n".into());
    }
    let reply = Reply {
        source: Source::Slice(all),
        at: 0,
        len: used,
        line: first,
        status,
        items: &found.items,
    };
    let mut out = Queue::new();
    forms::mark_cas(verb, &reply, &mut out);
    forms::multi_keys(line, &reply, |_, _| {});
    if let Some(fetched) = forms::parse_fetched(reply.first_line()) {
        copies(verb, &fetched, &reply)?;
    }
    Ok(())
}

/// The copy of a fetched value, and the client's answer made of it.
fn copies(verb: Verb, fetched: &forms::Fetched, reply: &Reply<'_>) -> Result<(), String> {
    if verb != Verb::MetaGet {
        return Ok(());
    }
    let data = reply.source.slice(reply.line..reply.len);
    for key in [&b"a"[..], b"a b\r\n", &[7; 186]] {
        let mut out = Vec::new();
        if forms::write_copy(key, fetched, 1_700_000_000, key.len() == 1, &mut out).is_some() {
            strict(&out, data)?;
        }
    }
    for (verb, line, _) in ASKED {
        let mut out = Queue::new();
        forms::answer_fetched(*verb, line, fetched, reply.source, reply.line, &mut out);
    }
    Ok(())
}
