//! Tables; each case is fed whole, byte by byte, and with other bytes behind it.

use super::*;
use crate::protocol::Local;

pub(in crate::protocol) const LIMITS: Limits = Limits {
    max_value: 1000,
    flush_all: true,
};

/// Parses `line` whole; checks that no part of it is taken for a request before its `\n`, and
/// that what follows changes nothing.
pub(in crate::protocol) fn parse_every_way(line: &[u8]) -> (Parsed, Scratch) {
    let mut s = Scratch::default();
    let whole = parse(line, 0, &LIMITS, &mut s);
    let mut other = Scratch::default();
    let end = find_newline(line).unwrap_or(line.len());
    for cut in 0..=end.min(line.len() - 1) {
        let part = &line[..cut];
        if cut <= LINE_MAX {
            assert_eq!(parse(part, 0, &LIMITS, &mut other), Parsed::More, "{cut}");
            assert_eq!(parse(part, cut, &LIMITS, &mut other), Parsed::More);
        }
        let resumed = parse(line, cut, &LIMITS, &mut other);
        assert_eq!((&resumed, &other.line), (&whole, &s.line), "cut at {cut}");
        assert_eq!((&other.keys, &other.key), (&s.keys, &s.key));
        assert_eq!(other.answer, s.answer);
    }
    let followed = [line, b"get x\r\nset y"].concat();
    assert_eq!(parse(&followed, 0, &LIMITS, &mut other), whole);
    (whole, s)
}

fn request_of(line: &str) -> (Request, Scratch) {
    match parse_every_way(line.as_bytes()) {
        (Parsed::Request(request), s) => {
            assert_eq!(request.head, line.len(), "{line:?}");
            (request, s)
        }
        (other, s) => panic!(
            "{line:?}: {other:?} {:?}",
            String::from_utf8_lossy(&s.answer)
        ),
    }
}

/// The answer without its line end, and how many bytes are swallowed.
pub(in crate::protocol) fn answer_of(line: &str) -> (String, usize, bool) {
    match parse_every_way(line.as_bytes()) {
        (
            Parsed::Answer {
                used,
                swallow,
                close,
                drop_key,
            },
            s,
        ) => {
            assert_eq!((used, close), (line.len(), false), "{line:?}");
            let text = String::from_utf8(s.answer).expect("ASCII");
            let text = text.strip_suffix("\r\n").unwrap_or(&text);
            (text.to_string(), swallow, drop_key)
        }
        (other, _) => panic!("{line:?}: {other:?}"),
    }
}

#[test]
fn usual_requests_go_as_they_are() {
    use Verb::*;
    for (line, verb, traits, value) in [
        ("get k\r\n", Get, 2, None),
        ("gets k\r\n", Gets, 2 | 16, None),
        ("gat 100 k\r\n", Gat, 1 | 2, None),
        ("gats 0 k\r\n", Gats, 1 | 2 | 16, None),
        ("set k 4294967295 2147483647 5\r\n", Set, 1 | 32, Some(5)),
        ("set k 0 0 0\r\n", Set, 1 | 32, Some(0)),
        ("set k 0 0 1000\r\n", Set, 1 | 32, Some(1000)),
        ("add k 0 0 5\r\n", Add, 1 | 4, Some(5)),
        ("replace k 0 0 5\r\n", Replace, 1 | 2, Some(5)),
        ("append k 0 0 5\r\n", Append, 1 | 2, Some(5)),
        ("prepend k 0 0 5\r\n", Prepend, 1 | 2, Some(5)),
        ("cas k 0 0 5 7\r\n", Cas, 1 | 2 | 8, Some(5)),
        ("cas k 0 0 5 0\r\n", Cas, 1 | 2, Some(5)),
        ("incr k 5\r\n", Incr, 1 | 2, None),
        ("decr k 9999999999999999999\r\n", Decr, 1 | 2, None),
        ("touch k 5\r\n", Touch, 1 | 2, None),
        ("delete k\r\n", Delete, 1 | 64, None),
    ] {
        let (all, _) = request_of(line);
        assert!(all.raw, "{line:?}");
        assert_eq!(
            (all.verb, all.traits, all.value),
            (verb, Traits(traits), value)
        );
        assert_eq!(all.data, value.map_or(0, |n| n + 2));
        assert_eq!(all.format, Format::Text);
        let (from, to) = all.key.expect("one key");
        assert_eq!(&line[from as usize..to as usize], "k");
    }
}

#[test]
fn odd_requests_are_written_anew() {
    for (line, wire, key) in [
        ("get k\n", "get k\r\n", "k"),
        (" get  k \r\n", "get k\r\n", "k"),
        ("bget k\r\n", "get k\r\n", "k"),
        ("get a\tb\r\n", "get a\tb\r\n", "a\tb"),
        ("get a\r\r\n", "get a\r\r\n", "a\r"),
        ("get k\0j l\r\n", "get k\r\n", "k"),
        ("gat -1 k\r\n", "gat -1 k\r\n", "k"),
        ("gats +07 k\r\n", "gats 7 k\r\n", "k"),
        ("set k 0 -1 5\r\n", "set k 0 -1 5\r\n", "k"),
        ("set k 007 +5 \t5\r\n", "set k 7 5 5\r\n", "k"),
        (
            "set k 4294967296 4294967297 4294967301\r\n",
            "set k 0 1 5\r\n",
            "k",
        ),
        (
            "set k -18446744073709551615 0 5\tx\r\n",
            "set k 1 0 5\r\n",
            "k",
        ),
        ("set k 0 0 5 x\r\n", "set k 0 0 5\r\n", "k"),
        ("set k 0 0 5\n", "set k 0 0 5\r\n", "k"),
        (
            "cas k 0 0 5 18446744073709551615\r\n",
            "cas k 0 0 5 18446744073709551615\r\n",
            "k",
        ),
        (
            "incr k 18446744073709551615\r\n",
            "incr k 18446744073709551615\r\n",
            "k",
        ),
        ("incr k 05 x\r\n", "incr k 5\r\n", "k"),
        ("touch k -5\r\n", "touch k -5\r\n", "k"),
        ("delete k 0\r\n", "delete k\r\n", "k"),
    ] {
        let (all, s) = request_of(line);
        assert!(!all.raw, "{line:?}");
        assert_eq!(String::from_utf8_lossy(&s.line), wire, "{line:?}");
        assert_eq!(all.format, Format::Text, "{line:?}");
        let (from, to) = all.key.expect("one key");
        assert_eq!(&line[from as usize..to as usize], key, "{line:?}");
    }
}

#[test]
fn noreply_never_reaches_a_server() {
    for (line, wire) in [
        ("set k 0 0 5 noreply\r\n", "set k 0 0 5\r\n"),
        ("cas k 0 0 5 7 noreply\r\n", "cas k 0 0 5 7\r\n"),
        ("incr k 5 noreply\r\n", "incr k 5\r\n"),
        ("touch k 5 noreply\r\n", "touch k 5\r\n"),
        ("delete k noreply\r\n", "delete k\r\n"),
        ("delete k 0 noreply\r\n", "delete k\r\n"),
        ("delete noreply noreply\r\n", "delete noreply\r\n"),
    ] {
        let (all, s) = request_of(line);
        assert_eq!((all.raw, all.format), (false, Format::Silent), "{line:?}");
        assert_eq!(String::from_utf8_lossy(&s.line), wire);
    }
    let key = request_of("delete noreply\r\n");
    assert_eq!((key.0.raw, key.0.format), (true, Format::Text));
    for line in [
        "set k 0 0 noreply\r\n",
        "set k 0 0 x noreply\r\n",
        "cas k 0 0 5 noreply\r\n",
        "incr k noreply\r\n",
        "touch k noreply\r\n",
        "delete k x noreply\r\n",
        "verbosity noreply\r\n",
        "flush_all x noreply\r\n",
        "watch noreply\r\n",
    ] {
        assert_eq!(answer_of(line), (String::new(), 0, false), "{line:?}");
    }
}

#[test]
fn several_keys_stay_in_order() {
    for (line, prefix, keys) in [
        ("get a b a\r\n", "get", &["a", "b", "a"][..]),
        ("gets a  b\r\n", "gets", &["a", "b"]),
        (" bget a b\n", "get", &["a", "b"]),
        ("gat 0100 a b\r\n", "gat 100", &["a", "b"]),
        ("gats -1 a b \r\n", "gats -1", &["a", "b"]),
    ] {
        let (all, s) = request_of(line);
        assert_eq!((all.key, all.raw), (None, false));
        assert_eq!(String::from_utf8_lossy(&s.line), prefix);
        let found: Vec<&str> = s.keys.iter().map(|r| &line[r.clone()]).collect();
        assert_eq!(found, keys, "{line:?}");
    }
    let many = format!("get {}\r\n", "key ".repeat(100));
    assert_eq!(request_of(&many).1.keys.len(), 100);
    let many = format!("gets{}\r\n", " key".repeat(100));
    assert_eq!(request_of(&many).1.keys.len(), 100);
}

#[test]
fn what_is_switched_off_is_refused_as_memcached_does() {
    for (line, want) in [
        ("shutdown\r\n", "ERROR: shutdown not enabled"),
        (
            "slabs reassign 1 2\r\n",
            "CLIENT_ERROR slab reassignment disabled",
        ),
        ("slabs automove 1\r\n", "ERROR"),
        (
            "lru_crawler enable\r\n",
            "CLIENT_ERROR lru crawler disabled",
        ),
        (
            "lru_crawler metadump all\r\n",
            "CLIENT_ERROR lru crawler disabled",
        ),
        ("lru_crawler\r\n", "ERROR"),
        ("lru mode flat\r\n", "ERROR"),
        ("cache_memlimit 64\r\n", "ERROR"),
        (
            "watch fetchers\r\n",
            "CLIENT_ERROR watch commands not allowed",
        ),
        ("extstore item_age 5\r\n", "ERROR"),
        ("refresh_certs\r\n", "Error TLS not enabled"),
    ] {
        assert_eq!(answer_of(line), (want.to_string(), 0, false), "{line:?}");
    }
}

#[test]
fn what_is_wrong_is_answered_as_memcached_does() {
    let bad = "CLIENT_ERROR bad command line format";
    let exptime = "CLIENT_ERROR invalid exptime argument";
    let delta = "CLIENT_ERROR invalid numeric delta argument";
    let usage = "CLIENT_ERROR bad command line format.  Usage: delete <key> [noreply]";
    let long = "k".repeat(251);
    for (line, want) in [
        ("\r\n", "ERROR"),
        ("\n", "ERROR"),
        ("a\r\n", "ERROR"),
        ("\0get k\r\n", "ERROR"),
        ("get\r\n", "ERROR"),
        ("get \r\n", "ERROR"),
        ("GET k\r\n", "ERROR"),
        ("getx k\r\n", "ERROR"),
        ("get\tk\r\n", "ERROR"),
        ("gat 100\r\n", "END"),
        ("gat x k\r\n", exptime),
        ("gat k\r\n", exptime),
        ("set k 0 0\r\n", "ERROR"),
        ("set k 0 0 5 6 7\r\n", "ERROR"),
        ("set k x 0 5\r\n", bad),
        ("set k -1 0 5\r\n", bad),
        ("set k 0 5x 5\r\n", bad),
        ("set k 0 0 -1\r\n", bad),
        ("set k 0 0 2147483646\r\n", bad),
        ("set k 0 0 2147483648\r\n", bad),
        ("set k 0 0 18446744073709551616\r\n", bad),
        ("cas k 0 0 5\r\n", "ERROR"),
        ("cas k 0 0 5 -1\r\n", bad),
        ("incr k\r\n", "ERROR"),
        ("incr k -1\r\n", delta),
        ("decr k x\r\n", delta),
        ("touch k\r\n", "ERROR"),
        ("touch k x\r\n", exptime),
        ("delete\r\n", "ERROR"),
        ("delete k x\r\n", usage),
        ("delete k 0 0\r\n", usage),
        ("delete k 0 0 0\r\n", "ERROR"),
        ("verbosity\r\n", "ERROR"),
        ("verbosity x\r\n", bad),
        ("flush_all x\r\n", exptime),
        ("flush_all noreply 5\r\n", exptime),
        ("flush_all 1 2 3\r\n", "ERROR"),
        ("mn\r\n", "MN"),
        ("mx k\r\n", "ERROR"),
    ] {
        assert_eq!(answer_of(line), (want.to_string(), 0, false), "{line:?}");
    }
    for (before, after) in [
        ("get ", ""),
        ("get a ", " b"),
        ("gat 5 ", ""),
        ("set ", " 0 0 5"),
        ("incr ", " 5"),
        ("touch ", " 5"),
        ("delete ", ""),
    ] {
        let line = format!("{before}{long}{after}\r\n");
        assert_eq!(answer_of(&line).0, bad, "{line:?}");
        let line = format!("{before}{}{after}\r\n", &long[1..]);
        assert_eq!(request_of(&line).0.head, line.len());
    }
    let wide = format!("gat 5{}\r\n", format!(" {}", &long[1..]).repeat(9));
    assert_eq!(answer_of(&wide).0, bad);
}

#[test]
fn too_large_values_are_swallowed() {
    let large = "SERVER_ERROR object too large for cache".to_string();
    assert_eq!(answer_of("set k 0 0 1001\r\n"), (large.clone(), 1003, true));
    assert_eq!(
        answer_of("add k 0 0 1001\r\n"),
        (large.clone(), 1003, false)
    );
    assert_eq!(
        answer_of("cas k 0 0 2147483645 5\r\n"),
        (large, 2147483647, false)
    );
    let quiet = answer_of("set k 0 0 1001 noreply\r\n");
    assert_eq!(quiet, (String::new(), 1003, true));
    let (_, s) = parse_every_way(b"set k 0 0 1001\r\n");
    assert_eq!((&s.line[..], &s.key[..]), (&b"delete k\r\n"[..], &b"k"[..]));
}

#[test]
fn local_commands() {
    let local = |line: &str| match parse_every_way(line.as_bytes()).0 {
        Parsed::Local { used, what, format } if used == line.len() => (what, format),
        other => panic!("{line:?}: {other:?}"),
    };
    let day = 24 * 60 * 60;
    let flush = |at| Local::FlushAll(at);
    for (line, what) in [
        ("version\r\n", Local::Version),
        ("version 1 2\n", Local::Version),
        ("quit\r\n", Local::Quit),
        ("verbosity 1\r\n", Local::Verbosity),
        ("verbosity 99 x\r\n", Local::Verbosity),
        ("stats\r\n", Local::Stats(vec![])),
        ("stats  route   k \r\n", Local::Stats(b"route k".to_vec())),
        ("flush_all\r\n", flush(None)),
        ("flush_all 0\r\n", flush(None)),
        ("flush_all -5 x\r\n", flush(None)),
        ("flush_all 5\r\n", flush(Some(5))),
        ("flush_all 2592000\r\n", flush(Some(30 * day))),
        ("flush_all 2592001\r\n", flush(Some(30 * day + 1))),
    ] {
        assert_eq!(local(line), (what, Format::Text), "{line:?}");
    }
    for (line, what) in [
        ("verbosity 1 noreply\r\n", Local::Verbosity),
        ("flush_all noreply\r\n", flush(None)),
        ("flush_all 0 noreply\r\n", flush(None)),
    ] {
        assert_eq!(local(line), (what, Format::Silent), "{line:?}");
    }
    let refusing = Limits {
        flush_all: false,
        ..LIMITS
    };
    let mut s = Scratch::default();
    parse(b"flush_all\r\n", 0, &refusing, &mut s);
    assert_eq!(s.answer, b"CLIENT_ERROR flush_all not allowed\r\n");
}

#[test]
fn connections_that_are_closed() {
    assert_eq!(request_of("get / HTTP/1.1\r\n").1.keys.len(), 2);
    for line in ["GET / HTTP/1.1\r\n", "mget HTTP/\r\n", "POST HTTP/1\n"] {
        assert_eq!(parse_every_way(line.as_bytes()).0, Parsed::Close);
    }
    let mut s = Scratch::default();
    let mut ask = |buf: &[u8]| parse(buf, 0, &LIMITS, &mut s);
    assert_eq!(ask(&[b'x'; 2048]), Parsed::More);
    assert_eq!(ask(&[b'x'; 2049]), Parsed::Close);
    assert_eq!(ask(&[b' '; 2049]), Parsed::Close);
    for (spaces, start, want) in [
        (100, "get ", Parsed::More),
        (0, "gets ", Parsed::More),
        (101, "get ", Parsed::Close),
        (0, "gat ", Parsed::Close),
        (0, "bget ", Parsed::Close),
    ] {
        let mut line = vec![b' '; spaces];
        line.extend_from_slice(start.as_bytes());
        line.resize(3000, b'k');
        assert_eq!(ask(&line), want, "{spaces} {start}");
        line.resize(1 << 20, b'k');
        assert_eq!(ask(&line), want);
        line.push(b'k');
        assert_eq!(ask(&line), Parsed::Close);
    }
    let spaced = format!("set k{}0 0 5\r\n", " ".repeat(3000));
    assert!(matches!(ask(spaced.as_bytes()), Parsed::Request(_)));
}

/// Nothing that a client sends may panic, and every line is answered or asked once.
#[test]
fn noise_is_survived() {
    let pieces: [&[u8]; 16] = [
        b"get ",
        b"set ",
        b"mg ",
        b"ms ",
        b"ma ",
        b" ",
        b"\0",
        b"\t",
        b"-1",
        b"5",
        b"99999999999",
        b"k",
        b"b",
        b"O",
        b"\xff",
        b"noreply",
    ];
    let mut seed = 1u64;
    let mut next = |n: usize| {
        seed = seed
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (seed >> 33) as usize % n
    };
    for _ in 0..3000 {
        let mut line = Vec::new();
        for _ in 0..next(30) {
            line.extend_from_slice(pieces[next(pieces.len())]);
        }
        line.extend_from_slice(if next(4) == 0 { b"\n" } else { b"\r\n" });
        let (parsed, s) = parse_every_way(&line);
        match parsed {
            Parsed::Request(all) => {
                assert_eq!(all.head, line.len());
                let ends = s.line.ends_with(b"\r\n") || !s.keys.is_empty() || all.raw;
                assert!(ends && s.line.iter().filter(|&&b| b == b'\n').count() <= 1);
                assert!(!s.line.contains(&0) && s.line.len() <= LINE_MAX);
            }
            Parsed::Answer { used, .. } | Parsed::Local { used, .. } => {
                assert_eq!(used, line.len());
            }
            Parsed::More => panic!("a whole line is whole: {line:?}"),
            Parsed::Close => {}
        }
    }
}
