//! A table for each form.

use super::*;
use crate::buffer::{Chunk, ChunkPool, Queue, SHARE, Source};
use crate::protocol::reply::{Progress, Scan};
use crate::protocol::{Status, Traits};
use Status::*;
use Verb::*;

mod mirrors;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).replace("\r\n", "|")
}

fn wire(text: &str) -> Vec<u8> {
    text.replace('|', "\r\n").into_bytes()
}

/// What a function appends, as text.
fn written<T>(f: impl FnOnce(&mut Vec<u8>) -> T) -> (T, String) {
    let mut out = b"kept ".to_vec();
    let result = f(&mut out);
    (result, text(&out[5..]))
}

fn content(queue: &Queue) -> Vec<u8> {
    let mut all = Vec::new();
    queue.for_each(queue.start()..queue.end(), |s| all.extend_from_slice(s));
    all
}

/// Scans `bytes` and calls `f` with the reply, which stands at an offset in its source.
fn with_reply<T>(verb: Verb, line: &str, bytes: &str, f: impl FnOnce(&Reply) -> T) -> T {
    let (line, bytes) = (wire(line), wire(bytes));
    let mut scan = Scan::default();
    let Progress::Whole { used, line, status } = scan.feed(verb, &line, &bytes) else {
        panic!("not a reply: {}", text(&bytes));
    };
    let before = b"before".to_vec();
    let mut queue = Queue::new();
    queue.push_slice(&before);
    queue.push_slice(&bytes);
    f(&Reply {
        source: Source::Queue(&queue, 0),
        at: before.len(),
        len: used,
        line,
        status,
        items: &scan.items,
    })
}

#[test]
fn keys_of_request_lines() {
    for (verb, line, token, base64, raw) in [
        (Get, "get a|", "a", false, "a"),
        (Gat, "gat 100 a b|", "a", false, "a"),
        (Set, "set b 0 0 1|", "b", false, "b"),
        (MetaGet, "mg Zm9v b v|", "Zm9v", true, "foo"),
        (MetaGet, "mg Zm9v v|", "Zm9v", false, "Zm9v"),
        (MetaGet, "mg b v|", "b", false, "b"),
        (MetaSet, "ms Zm9v 3 T0 b|", "Zm9v", true, "foo"),
        (MetaDelete, "md b|", "b", false, "b"),
        (Delete, "delete Zm9v b|", "Zm9v", false, "Zm9v"),
    ] {
        let line = wire(line);
        let key = key_token(verb, &line);
        assert_eq!((text(key.token), key.base64), (token.into(), base64));
        assert_eq!(written(|out| raw_key(verb, &line, out)).1, raw);
    }
}

#[test]
fn lines_of_raw_keys() {
    let long_tab = format!("\t{}", "x".repeat(MAX_BINARY_KEY));
    for (key, delete, fetch, look) in [
        ("foo", "delete foo|", "mg foo u f t v c|", "me foo|"),
        (
            "\u{fc}",
            "delete \u{fc}|",
            "mg \u{fc} u f t v c|",
            "me \u{fc}|",
        ),
        ("a b", "md YSBi b|", "mg YSBi b u f t v c|", "me YSBi b b|"),
        ("a|", "md YQ0K b|", "mg YQ0K b u f t v c|", "me YQ0K b b|"),
        ("\0", "md AA== b|", "mg AA== b u f t v c|", "me AA== b b|"),
        ("\x7f", "md fw== b|", "mg fw== b u f t v c|", "me fw== b b|"),
    ] {
        let key = wire(key);
        let verb = if delete.starts_with("md") {
            MetaDelete
        } else {
            Delete
        };
        assert_eq!(written(|o| write_delete(&key, o)), (verb, delete.into()));
        assert_eq!(written(|o| write_fetch(&key, o)), (MetaGet, fetch.into()));
        assert_eq!(written(|o| write_look(&key, o)), (MetaDebug, look.into()));
    }
    // Too long for base64: such a key can only have come as text.
    let line = format!("delete {long_tab}|");
    assert_eq!(
        written(|o| write_delete(long_tab.as_bytes(), o)),
        (Delete, line)
    );
}

#[test]
fn cas_numbers_turn_over() {
    for (verb, line, want) in [
        (Cas, "cas a 1 2 3 7|", "cas a 1 2 3 4611686018427387911|"),
        (Cas, "cas a 1 2 3 4611686018427387911|", "cas a 1 2 3 7|"),
        (Cas, "cas a 1 2 3 0|", "cas a 1 2 3 0|"),
        (Cas, "cas a 1 2 3 007|", "cas a 1 2 3 4611686018427387911|"),
        (Cas, "cas a 1 2 3 +7|", "cas a 1 2 3 4611686018427387911|"),
        (Cas, "cas a 1 2 3 -7|", "cas a 1 2 3 18446744073709551615|"),
        (
            MetaSet,
            "ms C5 5 C7 c T3|",
            "ms C5 5 C4611686018427387911 c T3|",
        ),
        (MetaDelete, "md C7 C4611686018427387904|", "md C7 C0|"),
        (MetaArithmetic, "ma a C|", "ma a C18446744073709551615|"),
        (MetaGet, "mg a c v|", "mg a c v|"),
        (Set, "set a 1 2 3|", "set a 1 2 3|"),
        (Get, "get C1 C2|", "get C1 C2|"),
    ] {
        assert_eq!(written(|out| flip_cas(verb, &wire(line), out)).1, want);
    }
}

#[test]
fn cas_numbers_are_marked() {
    for (verb, line, reply, want) in [
        (
            Gets,
            "gets a b c|",
            "VALUE a 0 1 7|x|VALUE b 0 9 0|VALUE 1 2|VALUE c 1 0 18446744073709551615||END|",
            "VALUE a 0 1 4611686018427387911|x|VALUE b 0 9 0|VALUE 1 2|\
             VALUE c 1 0 18446744073709551615||END|",
        ),
        (
            Gats,
            "gats 1 a|",
            "VALUE a 0 0 1||END|",
            "VALUE a 0 0 4611686018427387905||END|",
        ),
        (Gets, "gets a|", "END|", "END|"),
        (Gets, "gets a|", "SERVER_ERROR 7 c7|", "SERVER_ERROR 7 c7|"),
        (
            Get,
            "get c7|",
            "VALUE c7 0 2|c7|END|",
            "VALUE c7 0 2|c7|END|",
        ),
        (
            MetaGet,
            "mg a|",
            "VA 2 f0 c7 t-1 W|c7|",
            "VA 2 f0 c4611686018427387911 t-1 W|c7|",
        ),
        (MetaGet, "mg a|", "HD c7|", "HD c4611686018427387911|"),
        (MetaSet, "ms a 1 c|", "NS c0|", "NS c0|"),
        (MetaDelete, "md a|", "HD|", "HD|"),
        (
            MetaArithmetic,
            "ma a|",
            "VA 1 c7|5|",
            "VA 1 c4611686018427387911|5|",
        ),
    ] {
        let mut out = Queue::new();
        with_reply(verb, line, reply, |r| mark_cas(verb, r, &mut out));
        assert_eq!(text(&content(&out)), want);
    }
}

#[test]
fn fetched_lines_are_read() {
    let fetched = |flags, ttl, value, marks| {
        Some(Fetched {
            flags,
            ttl,
            value,
            marks,
            cas: 0,
        })
    };
    let none = [false; 3];
    for (line, want) in [
        ("VA 5 f0 t-1|", fetched(0, -1, 5, none)),
        ("VA 0 t30 f4294967295", fetched(u32::MAX, 30, 0, none)),
        ("VA 5 f1 t2 Z|", fetched(1, 2, 5, [true, false, false])),
        ("VA 5 W X f1 t2|", fetched(1, 2, 5, [false, true, true])),
        ("VA 5 f1 y? t2 c5|", fetched(1, 2, 5, none)),
        ("VA 5 f1|", None),
        ("VA 5 t1|", None),
        ("VA f1 t1|", None),
        ("VA 5 f4294967296 t1|", None),
        ("VA 5 f1 t-2|", None),
        ("VA 99999999999999999999 f1 t1|", None),
        ("HD f1 t1|", None),
        ("EN|", None),
        ("", None),
    ] {
        let got = parse_fetched(&wire(line));
        let cas = if line.contains(" c5") { 5 } else { 0 };
        let want = want.map(|f| Fetched { cas, ..f });
        assert_eq!(got, want, "{line}");
        assert_eq!(
            got.is_some_and(|f| f.fresh()),
            want.is_some_and(|f| f.marks == none)
        );
    }
}

#[test]
fn copies_keep_flags_and_time() {
    let now = 1_700_000_000;
    let mut fetched = Fetched {
        flags: 7,
        ttl: -1,
        value: 5,
        marks: [false; 3],
        cas: 0,
    };
    for (ttl, exptime) in [
        (-1, Some("0")),
        (0, None),
        (1, Some("1")),
        (2_592_000, Some("2592000")),
        (2_592_001, Some("1702592001")),
        (4_000_000_000, Some("2147483647")),
    ] {
        fetched.ttl = ttl;
        let (verb, line) = written(|out| write_copy(b"k", &fetched, now, false, out));
        assert_eq!(verb, exptime.map(|_| Add));
        assert_eq!(
            line,
            exptime.map_or(String::new(), |e| format!("add k 7 {e} 5|"))
        );
        let (verb, line) = written(|out| write_copy(b"k 1", &fetched, now, false, out));
        assert_eq!(verb, exptime.map(|_| MetaSet));
        let want = exptime.map(|e| format!("ms ayAx 5 b ME F7 T{e}|"));
        assert_eq!(line, want.unwrap_or_default());
    }
    fetched.ttl = 10;
    for i in 0..3 {
        fetched.marks = [false; 3];
        fetched.marks[i] = true;
        assert_eq!(
            written(|o| write_copy(b"k", &fetched, now, false, o)),
            (None, String::new())
        );
    }
}

#[test]
fn reads_are_served_from_a_fetched_value() {
    let plain = Fetched {
        flags: 7,
        ttl: 30,
        value: 5,
        marks: [false; 3],
        cas: 0,
    };
    let stale = Fetched {
        ttl: -1,
        marks: [true, true, true],
        ..plain
    };
    let table: &[(Verb, &str, Fetched, Option<&str>)] = &[
        (Get, "get a|", plain, Some("VALUE a 7 5|h|lo|END|")),
        (Gat, "gat 9 a|", plain, Some("VALUE a 7 5|h|lo|END|")),
        (
            Gets,
            "gets a|",
            stale,
            Some("VALUE a 7 5 4611686018427387904|h|lo|END|"),
        ),
        (
            Gats,
            "gats 9 a|",
            plain,
            Some("VALUE a 7 5 4611686018427387904|h|lo|END|"),
        ),
        (MetaGet, "mg a|", plain, Some("HD|")),
        (MetaGet, "mg a v|", plain, Some("VA 5|h|lo|")),
        (
            MetaGet,
            "mg YQ== b s t c f l h v u N5 R5|",
            plain,
            Some("VA 5 s5 t30 c4611686018427387904 f7 l0 h0|h|lo|"),
        ),
        (MetaGet, "mg v h t f|", stale, Some("HD h0 t-1 f7 Z X W|")),
        (MetaGet, "mg a t T60|", plain, Some("HD t30|")),
        (MetaGet, "mg a T60 t|", plain, Some("HD t60|")),
        (MetaGet, "mg a T0 t|", plain, Some("HD t-1|")),
        (MetaSet, "ms a 5|", plain, None),
        (MetaDebug, "me a|", plain, None),
        (Incr, "incr a 1|", plain, None),
    ];
    for &(verb, line, fetched, want) in table {
        let mut out = Queue::new();
        let source = Source::Slice(b"VA 5 ...\r\nh\r\nlo\r\nnext");
        let done = answer_fetched(verb, &wire(line), &fetched, source, 10, &mut out);
        assert_eq!(done, want.is_some());
        assert_eq!(text(&content(&out)), want.unwrap_or_default(), "{line}");
    }
}

#[test]
fn large_values_are_shared() {
    let mut chunk = ChunkPool::default().take();
    let bytes = Chunk::writable(&mut chunk).expect("unique");
    let head = b"VALUE a 0 9000 7\r\n";
    bytes[..head.len()].copy_from_slice(head);
    let end = head.len() + 9000;
    bytes[end..end + 7].copy_from_slice(b"\r\nEND\r\n");
    let mut scan = Scan::default();
    let got = scan.feed(Gets, b"gets a\r\n", chunk.bytes());
    let Progress::Whole { used, line, status } = got else {
        panic!("{got:?}");
    };
    let reply = Reply {
        source: Source::Chunk(&chunk),
        at: 0,
        len: used,
        line,
        status,
        items: &scan.items,
    };
    let mut out = Queue::new();
    mark_cas(Gets, &reply, &mut out);
    let fetched = Fetched {
        flags: 0,
        ttl: -1,
        value: 9000,
        marks: [false; 3],
        cas: 0,
    };
    assert!(answer_fetched(
        Get,
        b"get a\r\n",
        &fetched,
        reply.source,
        line,
        &mut out
    ));
    assert!(out.own_bytes() < 100 && out.len() > 2 * SHARE);
}

#[test]
fn a_marked_line_before_a_large_value_stands_in_one_piece() {
    let mut chunk = ChunkPool::default().take();
    let head = b"VA 9000 O1 c5 s9000 f0\r\n";
    let space = Chunk::writable(&mut chunk).expect("fresh");
    space[..head.len()].copy_from_slice(head);
    let reply = Reply {
        source: Source::Chunk(&chunk),
        at: 0,
        len: head.len() + 9002,
        line: head.len(),
        status: Done,
        items: &[],
    };
    let mut out = Queue::new();
    mark_cas(MetaGet, &reply, &mut out);
    let line = Source::Queue(&out, out.start()).slice(0..head.len() + 18);
    assert_eq!(text(line), "VA 9000 O1 c4611686018427387909 s9000 f0|");
    assert!(out.own_bytes() < 100);
}

#[test]
fn answers_without_the_key() {
    for (verb, line, want) in [
        (Get, "get a|", "END|"),
        (Gats, "gats 1 a|", "END|"),
        (Incr, "incr a 1|", "NOT_FOUND|"),
        (Decr, "decr a 1|", "NOT_FOUND|"),
        (Touch, "touch a 1|", "NOT_FOUND|"),
        (Delete, "delete a|", "NOT_FOUND|"),
        (Cas, "cas a 0 0 1 5|", "NOT_FOUND|"),
        (Replace, "replace a 0 0 1|", "NOT_STORED|"),
        (Append, "append a 0 0 1|", "NOT_STORED|"),
        (Prepend, "prepend a 0 0 1|", "NOT_STORED|"),
        (MetaGet, "mg a v|", "EN|"),
        (MetaDebug, "me a|", "EN|"),
        (MetaDelete, "md a|", "NF|"),
        (MetaArithmetic, "ma a v|", "NF|"),
        (MetaSet, "ms a 1 MR|", "NS|"),
        (MetaSet, "ms a 1 MA|", "NS|"),
        (MetaSet, "ms a 1 MA c|", "NS c0|"),
        (MetaSet, "ms a 1 C5 c|", "NF c0|"),
        (MetaSet, "ms a 1 MP C5|", "NS|"),
        (MetaSet, "ms a 1 C5|", "NF|"),
        (MetaSet, "ms a 1 MR C5|", "NF|"),
    ] {
        assert_eq!(
            written(|o| absent_answer(verb, &wire(line), o)).1,
            want,
            "{line}"
        );
    }
}

#[test]
fn several_keys() {
    for (verb, line, reply, want) in [
        (Get, "get a b c|", "END|", "a b c"),
        (Get, "get a b c|", "VALUE b 0 0||END|", "a c"),
        (
            Gets,
            "gets a b a|",
            "VALUE a 0 0 1||VALUE a 0 0 1||END|",
            "b",
        ),
        (Get, "get a a b|", "VALUE a 0 0||END|", "a b"),
        (Gat, "gat 10 10 a|", "VALUE 10 0 0||END|", "a"),
        (Gat, "gat 10 a b|", "VALUE a 0 0||VALUE b 0 0||END|", ""),
        (Get, "get a b c|", "VALUE a 0 0||SERVER_ERROR x|", "b c"),
    ] {
        let bytes = wire(line);
        let mut missing = Vec::new();
        with_reply(verb, line, reply, |r| {
            multi_keys(&bytes, r, |key, item| {
                if item.is_none() {
                    missing.push(text(key));
                }
            })
        });
        assert_eq!(missing.join(" "), want, "{line} {reply}");
    }
    for (verb, line, want) in [
        (Get, "get a b|", "get b|"),
        (Gets, "gets a b|", "gets b|"),
        (Gat, "gat 100 a b|", "gat 100 b|"),
        (Gats, "gats -1 a b|", "gats -1 b|"),
    ] {
        assert_eq!(
            written(|o| write_single(verb, &wire(line), b"b", o)).1,
            want
        );
    }
}

#[test]
fn numbers_in_decimal() {
    for n in [0, 1, 9, 10, 1 << 62, u64::MAX] {
        assert_eq!(Decimal::new(n).bytes(), n.to_string().as_bytes());
        assert_eq!(number(Decimal::new(n).bytes()), Some(n));
    }
    for no in ["", "x", "1x", "-1", "18446744073709551616"] {
        assert_eq!(number(no.as_bytes()), None);
    }
}

/// No upstream request line and no fetched line, however torn, makes anything panic.
#[test]
fn garbage_is_survived() {
    const WORDS: [&str; 16] = [
        "ms", "a", "5", "b", "C", "C9", "c7", "I", "MA", "M", "T", "T5", "VA", "f1", "t", "",
    ];
    let mut seed = 3u64;
    let mut next = |n: usize| {
        seed = seed
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (seed >> 33) as usize % n
    };
    let verbs = [
        Get,
        Gats,
        Set,
        Cas,
        Incr,
        Delete,
        MetaGet,
        MetaSet,
        MetaDelete,
        MetaArithmetic,
    ];
    for _ in 0..5000 {
        let words: Vec<&str> = (0..next(8)).map(|_| WORDS[next(WORDS.len())]).collect();
        let line = wire(&(words.join(" ") + ["|", "", "\n"][next(3)]));
        let verb = verbs[next(verbs.len())];
        let mut out = Vec::new();
        for status in [Done, Absent, Number(1), ServerError] {
            mirror(verb, Traits::SETS, &line, status, &mut out);
        }
        raw_key(verb, &line, &mut out);
        flip_cas(verb, &line, &mut out);
        absent_answer(verb, &line, &mut out);
        write_single(verb, &line, b"k", &mut out);
        parse_fetched(&line);
        let fetched = Fetched {
            flags: 0,
            ttl: 5,
            value: 0,
            marks: [true; 3],
            cas: 0,
        };
        let mut queue = Queue::new();
        answer_fetched(verb, &line, &fetched, Source::Slice(b"\r\n"), 0, &mut queue);
        let reply = Reply {
            source: Source::Slice(&line),
            at: 0,
            len: line.len(),
            line: line.len(),
            status: Done,
            items: &[],
        };
        mark_cas(verb, &reply, &mut queue);
        multi_keys(&line, &reply, |_, _| {});
    }
}

#[test]
fn writes_that_a_copy_may_pass() {
    for (verb, line, harmless) in [
        (Verb::Incr, "incr k 1\r\n", true),
        (Verb::Prepend, "prepend k 0 0 1\r\n", true),
        (Verb::Replace, "replace k 0 -1 1\r\n", false),
        (Verb::Touch, "touch k -1\r\n", false),
        (Verb::Delete, "delete k\r\n", false),
        (Verb::MetaArithmetic, "ma k v D2\r\n", true),
        (Verb::MetaArithmetic, "ma k N0 v\r\n", false),
        (Verb::MetaArithmetic, "ma k T1\r\n", false),
        (Verb::MetaSet, "ms k 1 MA\r\n", true),
        (Verb::MetaSet, "ms k 1 MR\r\n", false),
        (Verb::MetaSet, "ms k 1\r\n", false),
    ] {
        assert_eq!(leaves_absent(verb, line.as_bytes()), harmless, "{line}");
    }
}
