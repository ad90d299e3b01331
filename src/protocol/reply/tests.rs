//! Every case whole, byte by byte, and cut at each offset.

use super::*;
use Status::*;
use Verb::*;

/// The end of a scan: bytes used, first line, status, items; or why not.
type Outcome = Result<(usize, usize, Status, Vec<Item>), &'static str>;

/// Feeds `reply` so that `ends` are the ends of what is there at each call.
fn scan(verb: Verb, wire: &str, reply: &[u8], ends: impl Iterator<Item = usize>) -> Outcome {
    let mut s = Scan::default();
    let mut at = 0;
    for end in ends {
        match s.feed(verb, wire.as_bytes(), &reply[at..end]) {
            Progress::More { used } => at += used,
            Progress::Whole { used, line, status } => {
                assert_eq!(at + used, s.seen());
                return Ok((at + used, line, status, s.items));
            }
            Progress::Bad(why) => return Err(why),
        }
        assert_eq!(at, s.seen());
        assert!(at <= end && (s.missing() == 0 || at == end));
    }
    Err("more")
}

/// Whole, byte by byte, and cut at each offset: always the same.
fn scan_all_ways(verb: Verb, wire: &str, reply: &[u8]) -> Outcome {
    let n = reply.len();
    let whole = scan(verb, wire, reply, std::iter::once(n));
    assert_eq!(scan(verb, wire, reply, 0..=n), whole, "{reply:?}");
    for cut in 0..n {
        assert_eq!(scan(verb, wire, reply, [cut, n].into_iter()), whole);
    }
    whole
}

#[test]
fn one_line_says_it_all() {
    let table: &[(Verb, &str, Status)] = &[
        (Set, "STORED", Done),
        (Set, "NOT_STORED", NotStored),
        (Add, "NOT_STORED", NotStored),
        (Replace, "STORED", Done),
        (Append, "NOT_STORED", NotStored),
        (Prepend, "STORED", Done),
        (Cas, "EXISTS", Exists),
        (Cas, "NOT_FOUND", Absent),
        (Delete, "DELETED", Done),
        (Delete, "NOT_FOUND", Absent),
        (Touch, "TOUCHED", Done),
        (Touch, "NOT_FOUND", Absent),
        (Incr, "0", Number(0)),
        (Decr, "7  ", Number(7)),
        (Incr, "18446744073709551615", Number(u64::MAX)),
        (Incr, "NOT_FOUND", Absent),
        (FlushAll, "OK", Done),
        (Version, "VERSION 1.6.18", Done),
        (Get, "END", Absent),
        (Gats, "END", Absent),
        (MetaGet, "EN", Absent),
        (MetaGet, "HD", Done),
        (MetaGet, "HD f0 t-1 W", Done),
        (MetaSet, "HD c12", Done),
        (MetaSet, "NS", NotStored),
        (MetaSet, "EX", Exists),
        (MetaSet, "NF", Absent),
        (MetaDelete, "HD", Done),
        (MetaDelete, "NF", Absent),
        (MetaDelete, "EX", Exists),
        (MetaArithmetic, "HD", Done),
        (MetaArithmetic, "NF", Absent),
        (MetaArithmetic, "NS", NotStored),
        (MetaArithmetic, "EX", Exists),
        (
            MetaDebug,
            "ME a exp=-1 la=0 cas=1 fetch=no cls=1 size=63",
            Done,
        ),
        (MetaDebug, "EN", Absent),
        (Stats, "STAT pid 1\r\nSTAT uptime 5\r\nEND", Done),
        (
            Stats,
            "memcached agent v0.6\r\nmatrix 1 -> a:1, pool size 0\r\n\r\nEND",
            Done,
        ),
        (Stats, "STAT pid 1\r\nSERVER_ERROR x", ServerError),
        (Get, "ERROR", Unknown),
        (Set, "ERROR", Unknown),
        (Version, "ERROR: no", Unknown),
        (Set, "SERVER_ERROR object too large for cache", ServerError),
        (MetaSet, "CLIENT_ERROR bad data chunk", ClientError),
        (MetaGet, "SERVER_ERROR", ServerError),
        (FlushAll, "CLIENT_ERROR flush_all not allowed", ClientError),
    ];
    for &(verb, text, status) in table {
        let reply = format!("{text}\r\n");
        let line = reply.find('\n').unwrap() + 1;
        let got = scan_all_ways(verb, "x a\r\n", reply.as_bytes());
        assert_eq!(got, Ok((reply.len(), line, status, vec![])), "{text}");
        // What follows is the next reply's.
        let more = format!("{reply}VALUE");
        let got = scan_all_ways(verb, "x a\r\n", more.as_bytes());
        assert_eq!(got.map(|o| o.0), Ok(reply.len()), "{text}");
    }
}

#[test]
fn what_does_not_answer_is_bad() {
    let table: &[(Verb, &str)] = &[
        (Set, "DELETED\r\n"),
        (Set, "STORED\n"),
        (Set, "STORED \r\n"),
        (Set, "stored\r\n"),
        (Set, "END\r\n"),
        (Set, "HD\r\n"),
        (Delete, "STORED\r\n"),
        (Delete, "TOUCHED\r\n"),
        (Touch, "DELETED\r\n"),
        (Incr, "\r\n"),
        (Incr, " 1\r\n"),
        (Incr, "-1\r\n"),
        (Incr, "1 x\r\n"),
        (Incr, "7\r\r\n"),
        (Incr, "7\t\r\n"),
        (Incr, "1\n"),
        (Incr, "18446744073709551616\r\n"),
        (FlushAll, "END\r\n"),
        (Version, "OK\r\n"),
        (Get, "STORED\r\n"),
        (Get, "EN\r\n"),
        (Get, "\r\n"),
        (Get, "VALUE b 0 1\r\nx\r\nEND\r\n"),
        (Get, "VALUE ab 0 1\r\nx\r\nEND\r\n"),
        (Get, "VALUE  0 1\r\nx\r\nEND\r\n"),
        (Get, "VALUE get 0 1\r\nx\r\nEND\r\n"),
        (Get, "VALUE a 0 1 5\r\nx\r\nEND\r\n"),
        (Gets, "VALUE a 0 1\r\nx\r\nEND\r\n"),
        (Get, "VALUE a 0\r\nEND\r\n"),
        (Get, "VALUE a 4294967296 1\r\nx\r\nEND\r\n"),
        (Get, "VALUE a -1 1\r\nx\r\nEND\r\n"),
        (Get, "VALUE a 0 -1\r\nx\r\nEND\r\n"),
        (Get, "VALUE a 0 1\nx\r\nEND\r\n"),
        (Get, "VALUE a 0 1\r\nxx\r\nEND\r\n"),
        (Get, "VALUE a 0 1\r\nx\rx"),
        (Get, "VALUE a 0 1\r\nx\r\nVALUE a 0 1\r\nx\r\nEND\r\n"),
        (MetaGet, "MN\r\n"),
        (MetaGet, "NF\r\n"),
        (MetaGet, "HDx\r\n"),
        (MetaGet, "HD\n"),
        (MetaGet, "HD\rSTORED\r\n"),
        (MetaGet, "VA 1\rx\r\nx\r\n"),
        (MetaGet, "H\r\n"),
        (MetaGet, "VA\r\n"),
        (MetaGet, "VA x\r\n"),
        (MetaGet, "VA 1x\r\nx\r\n"),
        (MetaGet, "VA 1\r\nxyz"),
        (MetaGet, "ME a\r\n"),
        (MetaSet, "EN\r\n"),
        (MetaSet, "VA 1\r\nx\r\n"),
        (MetaDelete, "NS\r\n"),
        (MetaArithmetic, "EN\r\n"),
        (MetaArithmetic, "VA 0\r\n\r\n"),
        (MetaArithmetic, "VA 1\r\nx\r\n"),
        (MetaArithmetic, "VA 3\r\n1 2\r\n"),
        (MetaArithmetic, "VA 20\r\n18446744073709551616\r\n"),
        (Set, "ERRORS\r\n"),
        (Set, "ERROR\rSTORED\r\n"),
    ];
    for &(verb, reply) in table {
        let got = scan_all_ways(verb, "get a\r\n", reply.as_bytes());
        assert!(
            got.is_err() && got != Err("more"),
            "{verb:?} {reply:?} {got:?}"
        );
    }
}

#[test]
fn values_come_in_the_order_asked() {
    let item = |at, line, value| Item { at, line, value };
    let one = b"VALUE a 0 5\r\nh\r\nlo\r\nEND\r\n";
    let got = scan_all_ways(Get, "get a\r\n", one);
    assert_eq!(got, Ok((25, 13, Done, vec![item(0, 13, 5)])));
    let got = scan_all_ways(Get, "get b aa a c\r\n", one);
    assert_eq!(got, Ok((25, 13, Done, vec![item(0, 13, 5)])));
    let got = scan_all_ways(Gat, "gat 10 a\r\n", one);
    assert_eq!(got, Ok((25, 13, Done, vec![item(0, 13, 5)])));
    // gat's time is not a key.
    let time = b"VALUE 10 0 0\r\n\r\nEND\r\n";
    assert!(scan_all_ways(Gat, "gat 10 a\r\n", time).is_err());
    let two = b"VALUE a 1 0 9\r\n\r\nVALUE a 1 0 18446744073709551615\r\n\r\nEND\r\n";
    let items = vec![item(0, 15, 0), item(17, 34, 0)];
    for wire in ["gets a a\r\n", "gets a b a\r\n", "gets x a y a z\r\n"] {
        assert_eq!(
            scan_all_ways(Gets, wire, two),
            Ok((58, 15, Done, items.clone()))
        );
    }
    assert!(scan_all_ways(Gets, "gets a b\r\n", two).is_err());
    let turned = b"VALUE b 0 0\r\n\r\nVALUE a 0 0\r\n\r\nEND\r\n";
    assert!(scan_all_ways(Get, "get a b\r\n", turned).is_err());
    let torn = b"VALUE a 0 1\r\nx\r\nSERVER_ERROR out of memory writing get response\r\n";
    let got = scan_all_ways(Get, "get a b\r\n", torn).map(|o| (o.0, o.2, o.3.len()));
    assert_eq!(got, Ok((torn.len(), ServerError, 1)));
}

#[test]
fn a_meta_value_and_a_number() {
    let got = scan_all_ways(MetaGet, "mg a v\r\n", b"VA 5 f0 c12\r\nEND\r\n\r\nEN\r\n");
    assert_eq!(got, Ok((20, 13, Done, vec![])));
    let got = scan_all_ways(MetaGet, "mg a v\r\n", b"VA 0\r\n\r\n");
    assert_eq!(got, Ok((8, 6, Done, vec![])));
    let got = scan_all_ways(
        MetaArithmetic,
        "ma a v\r\n",
        b"VA 20 t-1\r\n18446744073709551615\r\n",
    );
    assert_eq!(got, Ok((33, 11, Number(u64::MAX), vec![])));
    let got = scan_all_ways(MetaArithmetic, "ma a v\r\n", b"VA 2\r\n9 \r\n");
    assert_eq!(got.map(|o| o.2), Ok(Number(9)));
}

#[test]
fn lengths_never_overflow() {
    for (length, good) in [
        (1u128 << 31, true),
        ((1 << 31) + 1, false),
        (1 << 32, false),
        ((1 << 32) + 1, false),
        ((1 << 63) - 1, false),
        ((1 << 64) - 2, false),
        ((1 << 64) - 1, false),
        (1 << 64, false),
        (u128::MAX, false),
    ] {
        for (verb, line) in [
            (Get, format!("VALUE a 0 {length}\r\n")),
            (Gets, format!("VALUE a 0 {length} 1\r\n")),
            (MetaGet, format!("VA {length} f0\r\n")),
        ] {
            let mut s = Scan::default();
            let got = s.feed(verb, b"get a\r\n", line.as_bytes());
            assert_eq!(got == Progress::More { used: line.len() }, good, "{line}");
            if good {
                assert_eq!(s.missing() as u128, length + 2);
                let n = s.missing();
                assert_eq!(
                    s.feed(verb, b"get a\r\n", b"12345"),
                    Progress::More { used: 5 }
                );
                assert_eq!(s.missing(), n - 5);
            }
        }
    }
}

#[test]
fn lines_have_a_longest() {
    for (fill, good) in [(MAX_LINE - 15, true), (MAX_LINE - 14, false)] {
        let long = format!("SERVER_ERROR {}\r\n", "x".repeat(fill));
        assert_eq!(
            scan_all_ways(Set, "set a\r\n", long.as_bytes()).is_ok(),
            good
        );
        let zeros = format!("VALUE a 0 {}\r\n\r\nEND\r\n", "0".repeat(fill + 3));
        assert_eq!(
            scan_all_ways(Get, "get a\r\n", zeros.as_bytes()).is_ok(),
            good
        );
    }
    let mut s = Scan::default();
    let endless = [b'x'; MAX_LINE];
    assert_eq!(s.feed(Set, b"", &endless[1..]), Progress::More { used: 0 });
    assert_eq!(
        s.feed(Set, b"", &endless),
        Progress::Bad("a line without end")
    );
}

/// Many keys must cost one pass over the upstream request line, not one each.
#[test]
fn thousands_of_keys() {
    let keys: Vec<String> = (0..20_000).map(|i| format!("key{i}")).collect();
    let wire = format!("get {}\r\n", keys.join(" "));
    let mut reply = String::new();
    for key in keys.iter().skip(1).step_by(2) {
        reply += &format!("VALUE {key} 0 1\r\nx\r\n");
    }
    reply += "END\r\n";
    let mut s = Scan::default();
    let got = s.feed(Get, wire.as_bytes(), reply.as_bytes());
    assert_eq!(
        got,
        Progress::Whole {
            used: reply.len(),
            line: 16,
            status: Done
        }
    );
    assert_eq!(s.items.len(), 10_000);
    s.reset();
    assert!(s.items.is_empty() && s.items.capacity() <= KEEP_ITEMS);
}

/// Whatever a server sends: no panic, nothing used that was not there, cuts change nothing.
#[test]
fn garbage_is_survived() {
    let seeds: [(Verb, &str, &str); 6] = [
        (
            Get,
            "get a b\r\n",
            "VALUE a 0 3\r\nabc\r\nVALUE b 1 0\r\n\r\nEND\r\n",
        ),
        (Gats, "gats 1 a\r\n", "VALUE a 0 3 77\r\nabc\r\nEND\r\n"),
        (MetaGet, "mg a v\r\n", "VA 3 f0 t-1\r\nabc\r\n"),
        (MetaArithmetic, "ma a v\r\n", "VA 2\r\n12\r\n"),
        (Incr, "incr a 1\r\n", "123\r\n"),
        (Stats, "stats\r\n", "STAT a 1\r\nEND\r\n"),
    ];
    const BYTES: &[u8] = b"\r\n 0192aVEND\xff\0-";
    let mut seed = 7u64;
    let mut next = |n: usize| {
        seed = seed
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (seed >> 33) as usize % n
    };
    for round in 0..4000 {
        let (verb, wire, text) = seeds[round % seeds.len()];
        let mut reply = text.as_bytes().to_vec();
        for _ in 0..=next(3) {
            let at = next(reply.len());
            match next(3) {
                0 => reply[at] = BYTES[next(BYTES.len())],
                1 => reply.insert(at, BYTES[next(BYTES.len())]),
                _ => drop(reply.remove(at)),
            }
        }
        if let Ok(outcome) = scan_all_ways(verb, wire, &reply) {
            assert!(outcome.0 <= reply.len());
        }
    }
}

#[test]
fn handshake_lines() {
    assert_eq!(uptime(b"STAT uptime 123\r\n"), Some(123));
    assert_eq!(uptime(b"STAT uptime 0"), Some(0));
    for line in [
        &b"STAT uptime \r\n"[..],
        b"STAT uptime x",
        b"STAT pid 1",
        b"STAT uptime 1x",
    ] {
        assert_eq!(uptime(line), None);
    }
    for (line, yes) in [
        ("VERSION 1.6.18", true),
        ("VERSION 1.6.18-magent-0.8.0\r\n", true),
        ("VERSION 1.6", true),
        ("VERSION 1.10.0", true),
        ("VERSION 2.0", true),
        ("VERSION 1.4.5_4\r\n", false),
        ("VERSION 0.9", false),
        ("VERSION 1", false),
        ("VERSION unknown", false),
        ("OK", false),
    ] {
        let is_new = version_at_least(line.as_bytes(), [1, 6, 0]);
        assert_eq!(is_new, yes, "{line}");
    }
    for (line, yes) in [
        ("VERSION 1.6.12", false),
        ("VERSION 1.6.13\r\n", true),
        ("VERSION 1.6.9-1", false),
        ("VERSION 1.6.x", false),
        ("VERSION 1.7", true),
    ] {
        let is_new = version_at_least(line.as_bytes(), [1, 6, 13]);
        assert_eq!(is_new, yes, "{line}");
    }
}
