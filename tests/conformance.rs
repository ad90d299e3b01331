//! The same bytes to a real memcached and through magent: the answers must be the same.
//!
//! The rows are in `tests/conformance/*.rows`; `rows.rs` beside them says how they are written.
//! Each is fed whole, byte by byte, and cut at every offset. `MAGENT_ROW=part-of-a-name` runs
//! only the rows so named.

mod common;

#[path = "conformance/normal.rs"]
mod normal;
#[path = "conformance/rows.rs"]
mod rows;

use common::{Client, Magent, Memcached, show};
use rows::{End, Fill, PREFIX, Row};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Where magent's answer is meant to differ from memcached's: row, answer in its comparable
/// form, reason. Rows marked `[off]` differ too: see [`refused`].
const DIFFERENCES: &[(&str, &[u8], &str)] = &[
    (
        "mg b k of a key stored as text",
        b"STORED\r\nMN\r\nVA 1 k~~~~~~~~YQ== b\r\nx\r\nMN\r\n",
        KEY_AS_ASKED,
    ),
    (
        "mg b, odd letters inside",
        b"STORED\r\nMN\r\nVA 1 k~~~~~~~~YQ== b\r\nx\r\nMN\r\n",
        KEY_AS_ASKED,
    ),
    (
        "mg k of a key stored as base64",
        b"HD\r\nMN\r\nVA 1 k@@@@@@a s1\r\nx\r\nMN\r\n",
        KEY_AS_ASKED,
    ),
    (
        "mg k O of a key stored as base64",
        b"HD\r\nMN\r\nHD k@@@@@@a O1 s1\r\nHD O1 k@@@@@@a s1\r\nMN\r\n",
        KEY_AS_ASKED,
    ),
    (
        "ms, duplicate flag, no data [eof]",
        b"CLIENT_ERROR duplicate flag\r\n",
        "memcached holds its answer back until it has swallowed the data, magent does not",
    ),
    (
        "ma N q creates",
        b"VALUE @@@@@@a 0 2\r\n13\r\nEND\r\nMN\r\n",
        "memcached says HD in spite of q when ma created the key; a server's HD does not tell \
         magent that it did, and q asks for silence",
    ),
];

/// magent writes `k` into the answer itself: the key as it was asked for, where
/// memcached gives it as it was stored.
const KEY_AS_ASKED: &str = "the key comes back as it was asked for, not as it was stored";

/// Rows run at the same time. More than processors, since each waits for answers.
const WORKERS: usize = 6;

/// Failures printed in full; the others are only counted.
const PRINTED: usize = 40;

/// A row of this many bytes or less is cut at every offset; a longer one at its ends and around
/// its line ends.
const CUT_EVERYWHERE: usize = 300;

/// A row of more bytes than this is cut around its line ends only.
const CUT_LITTLE: usize = 20_000;

/// A row longer than this is not fed byte by byte but in pieces of an odd size.
const BYTEWISE: usize = 3000;

/// The answer that ends a text row.
const TEXT_END: &[u8] = b"MN\r\n";

/// The no-op that ends a binary row, and its answer.
const BINARY_NOOP: &[u8] = b"\x80\x0a\0\0\0\0\0\0\0\0\0\0\xfe\xed\xfa\xce\0\0\0\0\0\0\0\0";
const BINARY_END: &[u8] = b"\x81\x0a\0\0\0\0\0\0\0\0\0\0\xfe\xed\xfa\xce\0\0\0\0\0\0\0\0";

/// How a row's bytes reach the other side.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Feed {
    Whole,
    Bytes,
    Cut(usize),
}

/// One side of a comparison.
struct Target {
    name: &'static str,
    port: u16,
    /// Cuts come in here if it is there: a cheaper connection, and the other kind of listener.
    socket: Option<PathBuf>,
    /// Several servers answer a multi-get in any order.
    sort: bool,
}

/// What one run of a row gave, in comparable form; what is missing at its end is said in it.
fn run(row: &Row, target: &Target, feed: Feed) -> Vec<u8> {
    let prefix = next_prefix();
    let mut fill = Fill { prefix, cas: 0 };
    let mut seen = normal::Cas::default();
    let mut client = match (feed, &target.socket) {
        (Feed::Cut(_), Some(path)) => Client::unix(path),
        _ => Client::tcp(target.port),
    };
    client.deadline = Duration::from_secs(4);
    let mut out = Vec::new();
    if !row.setup.is_empty() {
        let setup = fill.bytes(&row.setup, row.binary);
        let answer = exchange(
            &mut client,
            row.binary,
            (End::Sentinel, 0),
            &setup,
            Feed::Whole,
        );
        out.extend(comparable(&answer, row, prefix, target, &mut seen));
        fill.cas = seen.0.last().copied().unwrap_or(0);
    }
    let bytes = fill.bytes(&row.bytes, row.binary);
    let mut answer = exchange(&mut client, row.binary, (row.end, row.noops), &bytes, feed);
    if feed == Feed::Whole {
        // Nothing may come behind the end.
        let (more, ended) = client.half_close().read_until_true(|_| false);
        answer.extend(more);
        if !ended {
            answer.extend(b"<the connection stays open>");
        }
    }
    out.extend(comparable(&answer, row, prefix, target, &mut seen));
    out
}

fn comparable(
    answer: &[u8],
    row: &Row,
    prefix: [u8; PREFIX],
    target: &Target,
    seen: &mut normal::Cas,
) -> Vec<u8> {
    if row.binary {
        normal::binary(answer, prefix, seen)
    } else {
        normal::text(answer, prefix, target.sort, seen)
    }
}

/// Sends `bytes` as `feed` says and reads what they are answered, up to `end`; `noops` answers of
/// their own look like it.
fn exchange(
    client: &mut Client,
    binary: bool,
    (end, noops): (End, usize),
    bytes: &[u8],
    feed: Feed,
) -> Vec<u8> {
    let (noop, answer) = if binary {
        (BINARY_NOOP, BINARY_END)
    } else {
        (&b"mn\r\n"[..], TEXT_END)
    };
    // No answer is so large that the other side would wait for us to read it first.
    let sent = match feed {
        Feed::Whole => client.try_send(bytes),
        Feed::Bytes => {
            let size = if bytes.len() > BYTEWISE {
                bytes.len() / 97
            } else {
                1
            };
            bytes
                .chunks(size)
                .try_for_each(|piece| client.try_send(piece))
        }
        Feed::Cut(at) => client
            .try_send(&bytes[..at])
            .and_then(|()| client.try_send(&bytes[at..])),
    };
    // An error says that the other side has closed, as it should in some rows.
    let _ = match (sent, end) {
        (Ok(()), End::Sentinel) => client.try_send(noop),
        (sent, _) => sent,
    };
    let ends = 1 + noops;
    let (mut got, whole) = match end {
        End::Sentinel => {
            client.read_until_true(|b| b.ends_with(answer) && (ends == 1 || count_ends(b) >= ends))
        }
        End::Closed => client.read_until_true(|_| false),
        End::Eof => client.half_close().read_until_true(|_| false),
    };
    if !whole {
        got.extend(b"<nothing more>");
    }
    got
}

fn count_ends(answer: &[u8]) -> usize {
    answer
        .split_inclusive(|&b| b == b'\n')
        .filter(|l| *l == TEXT_END)
        .count()
}

/// Six letters that no other run has.
fn next_prefix() -> [u8; PREFIX] {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let mut n = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut prefix = *b"K00000";
    for byte in prefix[1..].iter_mut().rev() {
        *byte = b"0123456789abcdefghijklmnopqrstuvwxyz"[n % 36];
        n /= 36;
    }
    prefix
}

/// Ways to feed a row's bytes, with one cut of `every`.
fn feeds(row: &Row, every: usize) -> Vec<Feed> {
    let bytes = Fill {
        prefix: *b"K00000",
        cas: 1000,
    }
    .bytes(&row.bytes, row.binary);
    let len = bytes.len();
    let near_end = |at: usize| len <= CUT_LITTLE && (at < 40 || at + 10 > len);
    let mut line_end = None;
    let mut cuts = Vec::new();
    for (at, &byte) in bytes.iter().enumerate().skip(1) {
        if byte == b'\n' {
            line_end = Some(at);
        }
        // Before a line's end, between its two bytes, and behind it.
        let near_line = line_end.is_some_and(|end| at <= end + 2) || bytes[at] == b'\n';
        if len <= CUT_EVERYWHERE || near_end(at) || near_line {
            cuts.push(at);
        }
    }
    // Rows of many lines have their cuts in the first few.
    let cuts = cuts
        .into_iter()
        .take(CUT_EVERYWHERE)
        .step_by(every)
        .map(Feed::Cut);
    [Feed::Whole, Feed::Bytes].into_iter().chain(cuts).collect()
}

/// What magent may say to a command that it treats as switched off.
fn refused(answer: &[u8]) -> bool {
    let line = answer.strip_suffix(TEXT_END).unwrap_or(answer);
    let one_line = line.iter().filter(|&&b| b == b'\n').count() == 1;
    let starts = [&b"ERROR"[..], b"CLIENT_ERROR ", b"Error TLS not enabled"];
    one_line && starts.iter().any(|s| line.starts_with(s))
}

/// Compares one row in all feeds; a failure's text, for the first feed that differs.
fn compare(
    row: &Row,
    reference: &Target,
    targets: &[Target],
    every: usize,
    failures: &Mutex<Vec<String>>,
) {
    let answers = [false, true].map(|sort| {
        let target = Target {
            sort,
            socket: None,
            ..*reference
        };
        (!row.off).then(|| run(row, &target, Feed::Whole))
    });
    let feeds = feeds(row, every);
    for target in targets {
        let mut want = answers[usize::from(target.sort)].clone();
        if let Some((_, answer, _)) = DIFFERENCES
            .iter()
            .find(|d| d.0 == row.name && target.name != "memcached")
        {
            want = Some(answer.to_vec());
        }
        for feed in feeds.iter().copied() {
            let got = run(row, target, feed);
            let ok = want
                .as_ref()
                .map_or_else(|| refused(&got), |want| *want == got);
            if !ok {
                let want = want.map_or("a refusal".to_string(), |w| show(&w));
                let text = format!(
                    "{} ({}, {feed:?}): {} | {}\n  wanted {want}\n     got {}",
                    row.name,
                    target.name,
                    row.setup,
                    row.bytes,
                    show(&got)
                );
                failures.lock().expect("failures").push(text);
                break;
            }
        }
    }
}

/// Runs the whole table: rows side by side, then those that must be alone.
#[track_caller]
fn compare_all(rows: &[&Row], reference: &Target, targets: &[Target], every: usize) {
    let failures = Mutex::new(Vec::new());
    let wanted = std::env::var("MAGENT_ROW").unwrap_or_default();
    let (alone, shared): (Vec<&Row>, Vec<&Row>) = rows
        .iter()
        .copied()
        .filter(|r| r.name.contains(&wanted))
        .partition(|r| r.alone);
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while let Some(row) = shared.get(next.fetch_add(1, Ordering::Relaxed)) {
                    compare(row, reference, targets, every, &failures);
                }
            });
        }
    });
    alone
        .iter()
        .for_each(|row| compare(row, reference, targets, every, &failures));
    let failures = failures.into_inner().expect("failures");
    let text = failures
        .iter()
        .take(PRINTED)
        .cloned()
        .collect::<Vec<_>>()
        .join("\n");
    assert!(
        failures.is_empty(),
        "{} of {} rows differ:\n{text}",
        failures.len(),
        alone.len() + shared.len()
    );
}

/// The table and its harness proven: two memcacheds must not differ.
#[test]
fn memcached_answers_as_memcached() {
    let (one, other) = (Memcached::start(), Memcached::start());
    let rows = rows::all();
    let rows: Vec<&Row> = rows.iter().filter(|r| !r.off).collect();
    let target = |m: &Memcached, sort| Target {
        name: "memcached",
        port: m.port,
        socket: None,
        sort,
    };
    compare_all(&rows, &target(&one, false), &[target(&other, false)], 7);
}

/// Through magent, in front of one server, and of three with a backup.
#[test]
fn magent_answers_as_memcached() {
    let direct = Memcached::start();
    let servers: Vec<Memcached> = (0..5).map(|_| Memcached::start()).collect();
    let name = |i: usize| servers[i].name.as_str();
    let single = Magent::farm(&[name(0)], &[], &[]);
    let farm = Magent::farm(&[name(1), name(2), name(3)], &[name(4)], &[]);
    let rows = rows::all();
    let targets = [
        Target {
            name: "one server",
            port: single.port,
            socket: Some(single.socket()),
            sort: false,
        },
        Target {
            name: "three servers and a backup",
            port: farm.port,
            socket: Some(farm.socket()),
            sort: true,
        },
    ];
    let reference = Target {
        name: "memcached",
        port: direct.port,
        socket: None,
        sort: false,
    };
    compare_all(&rows.iter().collect::<Vec<_>>(), &reference, &targets, 1);
}
