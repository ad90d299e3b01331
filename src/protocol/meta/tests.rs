//! Tables, fed as those of the classic commands are; then the answers.

use super::*;
use crate::buffer::{Queue, Source};
use crate::protocol::text::tests::{LIMITS, answer_of, parse_every_way};
use crate::protocol::{Reply, Status};

fn request_of(line: &str) -> (Request, MetaFormat, Scratch) {
    match parse_every_way(line.as_bytes()) {
        (Parsed::Request(all), s) => match all.format {
            Format::Meta(format) => (all, format, s),
            other => panic!("{line:?}: {other:?}"),
        },
        (other, s) => panic!(
            "{line:?}: {other:?} {:?}",
            String::from_utf8_lossy(&s.answer)
        ),
    }
}

#[test]
fn request_lines_and_traits() {
    use Verb::*;
    for (line, verb, wire, traits) in [
        ("mg k\r\n", MetaGet, "mg k\r\n", 2),
        ("mg k v t f s\r\n", MetaGet, "mg k v t f s\r\n", 2),
        ("  mg  k v c \n", MetaGet, "mg k v c\r\n", 2 | 16),
        ("mg k T+030 v\r\n", MetaGet, "mg k T30 v\r\n", 1 | 2),
        ("mg k N-1 vx\r\n", MetaGet, "mg k N-1 v\r\n", 1 | 4),
        ("mg k R4294967297\r\n", MetaGet, "mg k R1\r\n", 2),
        ("mg k q k Oabc v\r\n", MetaGet, "mg k v\r\n", 2),
        ("mg k E12 Zz x\r\n", MetaGet, "mg k E12 Zz x\r\n", 2),
        ("mg k P/a L/b\r\n", MetaGet, "mg k P/a L/b\r\n", 2),
        ("mg Zm9v b v\r\n", MetaGet, "mg Zm9v b v\r\n", 2),
        ("mg Zm!9v v b\r\n", MetaGet, "mg Zm9v v b\r\n", 2),
        ("ms k 5\r\n", MetaSet, "ms k 5\r\n", 1 | 32),
        (
            "ms k +05 F-0 T1 I\r\n",
            MetaSet,
            "ms k 5 F0 T1 I\r\n",
            1 | 32,
        ),
        ("ms k 5 MS c\r\n", MetaSet, "ms k 5 MS c\r\n", 1 | 16 | 32),
        ("ms k 5 C7\r\n", MetaSet, "ms k 5 C7\r\n", 1 | 2 | 8 | 32),
        ("ms k 5 C0\r\n", MetaSet, "ms k 5 C0\r\n", 1 | 2 | 32),
        ("ms k 5 ME C7\r\n", MetaSet, "ms k 5 ME C7\r\n", 1 | 4 | 8),
        ("ms k 5 MR\r\n", MetaSet, "ms k 5 MR\r\n", 1 | 2),
        ("ms k 5 MA\r\n", MetaSet, "ms k 5 MA\r\n", 1 | 2),
        ("ms k 5 MP N5\r\n", MetaSet, "ms k 5 MP N5\r\n", 1 | 4),
        ("md k\r\n", MetaDelete, "md k\r\n", 1 | 64),
        ("md k q C7\r\n", MetaDelete, "md k C7\r\n", 1 | 8 | 64),
        ("md k I T5\r\n", MetaDelete, "md k I T5\r\n", 1 | 2),
        ("ma k\r\n", MetaArithmetic, "ma k v\r\n", 1 | 2),
        (
            "ma k v D5 MD\r\n",
            MetaArithmetic,
            "ma k v D5 MD\r\n",
            1 | 2,
        ),
        (
            "ma k N0 J13 c\r\n",
            MetaArithmetic,
            "ma k N0 J13 c v\r\n",
            1 | 4 | 16,
        ),
        ("me k v x\r\n", MetaDebug, "me k\r\n", 2),
        ("me Zm9v b\r\n", MetaDebug, "me Zm9v b\r\n", 2),
        ("me Zm9v v b\r\n", MetaDebug, "me Zm9v\r\n", 2),
    ] {
        let (all, format, s) = request_of(line);
        assert_eq!((all.verb, all.traits), (verb, Traits(traits)), "{line:?}");
        assert_eq!(String::from_utf8_lossy(&s.line), wire);
        assert!(!all.raw && all.head == line.len());
        assert_eq!(
            format.no_value,
            verb == MetaArithmetic && !line.contains('v')
        );
        let is_set = verb == MetaSet;
        assert_eq!(
            (all.value, all.data),
            if is_set { (Some(5), 7) } else { (None, 0) }
        );
        match all.key {
            Some((from, to)) => assert!(wire.contains(&line[from as usize..to as usize])),
            None => assert_eq!(s.key, b"foo"),
        }
    }
}

/// `want` is the answer, `swallow` the length of the value that is thrown away.
fn assert_refused(line: &str, want: &str, swallow: usize) {
    let wanted = (want.to_string(), swallow, false);
    assert_eq!(answer_of(line), wanted, "{line:?}");
}

#[test]
fn too_much_of_anything_is_refused() {
    let opaque = "CLIENT_ERROR opaque token too long";
    let options = "CLIENT_ERROR options flags too long";
    let bad = "CLIENT_ERROR bad command line format";
    let many = " s t c f l h v u k q I P L b Oa E G H";
    let too_many = ["mg Zm9v", "ms Zm9v 5", "md Zm9v", "ma Zm9v"].map(|s| format!("{s}{many}\r\n"));
    let long = format!("mg {}\r\n", "k".repeat(251));
    let wide = format!("ms k 5 E{}\r\n", "1".repeat(2040));
    let opaque_33 = format!("O{}", "x".repeat(32));
    let opaques = ["mg k", "ms k 5", "md k", "ma k"].map(|s| format!("{s} {opaque_33}\r\n"));
    for (line, want, swallow) in [
        (&long, bad, 0),
        (&wide, bad, 7),
        (&too_many[0], "CLIENT_ERROR options flags are too long", 0),
        (&too_many[1], options, 0),
        (&too_many[2], options, 0),
        (&too_many[3], options, 0),
        (&opaques[0], opaque, 0),
        (&opaques[1], opaque, 7),
        (&opaques[2], opaque, 0),
        (&opaques[3], opaque, 0),
    ] {
        assert_refused(line, want, swallow);
    }
}

#[test]
fn refusals() {
    let bad = "CLIENT_ERROR bad command line format";
    let duplicate = "CLIENT_ERROR duplicate flag";
    let invalid = "CLIENT_ERROR invalid flag";
    let either = "CLIENT_ERROR invalid or duplicate flag";
    let token = "CLIENT_ERROR bad token in command line format";
    let decoding = "CLIENT_ERROR error decoding key";
    for (line, want, swallow) in [
        ("mg\r\n", "ERROR", 0),
        ("ms\r\n", "ERROR", 0),
        ("me\r\n", bad, 0),
        ("mg k v v\r\n", duplicate, 0),
        ("mg k v v x\r\n", duplicate, 0),
        ("mg k x x\r\n", invalid, 0),
        ("mg k m o o o\r\n", invalid, 0),
        ("mg k \u{7f}\r\n", duplicate, 0),
        ("mg k 5\r\n", invalid, 0),
        ("mg k E\u{1}\r\n", invalid, 0),
        ("mg k T\r\n", token, 0),
        ("mg k Nx v\r\n", token, 0),
        (
            "mg k Rx M\r\n",
            "CLIENT_ERROR incorrect length for M token",
            0,
        ),
        ("mg k M Tx\r\n", token, 0),
        ("mg k Fx\r\n", bad, 0),
        ("mg k Tx F\r\n", token, 0),
        (
            "mg k Jx\r\n",
            "CLIENT_ERROR invalid numeric initial value",
            0,
        ),
        (
            "mg k D-1\r\n",
            "CLIENT_ERROR invalid numeric delta value",
            0,
        ),
        ("mg Zm9 b\r\n", decoding, 0),
        ("mg Zm9 b Tx\r\n", token, 0),
        ("mg Zm9 v v b\r\n", duplicate, 0),
        ("me Zm9 b\r\n", bad, 0),
        ("md Zm9 b\r\n", either, 0),
        ("md k Cx\r\n", either, 0),
        ("ma k q q\r\n", either, 0),
        ("ma k MS\r\n", "CLIENT_ERROR invalid mode for ma M token", 0),
        ("ms k\r\n", bad, 0),
        ("ms k x\r\n", bad, 0),
        ("ms k -1\r\n", bad, 0),
        ("ms k 2147483646 q\r\n", bad, 0),
        ("ms k 5 v v\r\n", duplicate, 7),
        ("ms k 5 Tx q\r\n", token, 7),
        ("ms Zm9 5 b\r\n", decoding, 7),
        (
            "ms k 5 MX\r\n",
            "CLIENT_ERROR invalid mode for ms M token",
            7,
        ),
    ] {
        assert_refused(line, want, swallow);
    }
}

#[test]
fn a_value_that_is_too_large_is_refused_and_a_set_drops_the_old_one() {
    let large = "SERVER_ERROR object too large for cache";
    assert_refused("ms k 1001 ME\r\n", large, 1003);
    assert_refused("ms k 1001 MA q\r\n", large, 1003);
    for (line, wire, key) in [
        ("ms k 1001\r\n", "delete k\r\n", "k"),
        ("ms Zm9v! 1001 q b MS\r\n", "md Zm9v b\r\n", "foo"),
    ] {
        assert_eq!(
            answer_of(line),
            (large.to_string(), LIMITS.max_value + 3, true)
        );
        let (_, s) = parse_every_way(line.as_bytes());
        assert_eq!((&s.line[..], &s.key[..]), (wire.as_bytes(), key.as_bytes()));
    }
}

/// What the client reads when the server answers `reply` to what `line` became.
fn answered(line: &str, reply: &str, status: Status) -> String {
    let (all, d, s) = request_of(line);
    let reply = Reply {
        source: Source::Slice(reply.as_bytes()),
        at: 0,
        len: reply.len(),
        line: reply.find('\n').expect("a line") + 1,
        status,
        items: &[],
    };
    let mut out = Queue::new();
    let wants_cas = all.traits.has(Traits::RETURNS_CAS);
    answer(&d, all.verb, &s.line, wants_cas, &reply, &mut out);
    let mut bytes = Vec::new();
    out.for_each(0..out.end(), |piece| bytes.extend_from_slice(piece));
    String::from_utf8(bytes).expect("ASCII")
}

#[test]
fn answers_are_dressed() {
    for (line, reply, want) in [
        ("mg k v\r\n", "VA 2\r\nhi\r\n", "VA 2\r\nhi\r\n"),
        ("mg k Oab v\r\n", "VA 2\r\nhi\r\n", "VA 2 Oab\r\nhi\r\n"),
        (
            "mg k s k t O1 v\r\n",
            "VA 2 s2 t-1\r\nhi\r\n",
            "VA 2 s2 kk t-1 O1\r\nhi\r\n",
        ),
        ("mg k O1 k t\r\n", "HD t-1 W\r\n", "HD O1 kk t-1 W\r\n"),
        ("mg k t k O1\r\n", "HD t-1 X W\r\n", "HD t-1 kk O1 X W\r\n"),
        ("mg k O k\r\n", "HD\r\n", "HD O kk\r\n"),
        ("mg k s k t O1 v\r\n", "EN\r\n", "EN kk O1\r\n"),
        ("mg k O1 s t k\r\n", "EN\r\n", "EN O1 kk\r\n"),
        ("mg Zm9v k b s\r\n", "HD s3\r\n", "HD kZm9v b s3\r\n"),
        ("mg k q k\r\n", "EN\r\n", ""),
        ("mg k q k\r\n", "HD\r\n", "HD kk\r\n"),
        ("ms k 5 q\r\n", "HD\r\n", ""),
        ("ms k 5 q O1\r\n", "NS\r\n", "NS O1\r\n"),
        ("ms k 5 c O1 k\r\n", "EX c0\r\n", "EX c0 O1 kk\r\n"),
        ("ms Zm9v 5 b k\r\n", "HD\r\n", "HD kZm9v b\r\n"),
        ("md k q\r\n", "HD\r\n", ""),
        ("md k q k\r\n", "NF\r\n", "NF kk\r\n"),
        ("ma k\r\n", "VA 2\r\n41\r\n", "HD\r\n"),
        (
            "ma k O1 c k t\r\n",
            "VA 2 c7 t-1\r\n41\r\n",
            "HD O1 c7 kk t-1\r\n",
        ),
        ("ma k v O1\r\n", "VA 2\r\n41\r\n", "VA 2 O1\r\n41\r\n"),
        ("ma k q v\r\n", "VA 2\r\n41\r\n", ""),
        ("ma k q O1\r\n", "NF\r\n", "NF O1\r\n"),
        ("me k\r\n", "ME k exp=-1\r\n", "ME k exp=-1\r\n"),
    ] {
        assert_eq!(
            answered(line, reply, Status::Done),
            want,
            "{line:?} {reply:?}"
        );
    }
    let error = "CLIENT_ERROR invalid flag\r\n";
    assert_eq!(answered("mg k q k\r\n", error, Status::ClientError), error);
    let many = format!("HD{}\r\n", " c1".repeat(600));
    let want = format!("HD Oa{}\r\n", " c1".repeat(600));
    assert_eq!(answered("mg k Oa\r\n", &many, Status::Done), want);
}

/// `\0magent/a` and what is appended to it; `\0magent` alone is anybody's.
#[test]
fn keys_of_magents_own_are_refused() {
    let bad = "CLIENT_ERROR bad command line format";
    for (line, swallow) in [
        ("mg AG1hZ2VudC9h b v\r\n", 0),
        ("mg AG1hZ2VudC9h k Oo q b\r\n", 0),
        ("ms AG1hZ2VudC9h 5 b\r\n", 7),
        ("md AG1hZ2VudC9i b q\r\n", 0),
        ("ma AG1hZ2VudC9i b N0\r\n", 0),
        ("me AG1hZ2VudC9h b\r\n", 0),
    ] {
        assert_refused(line, bad, swallow);
    }
    let large = format!("ms AG1hZ2VudC9h {} b\r\n", LIMITS.max_value + 1);
    match parse_every_way(large.as_bytes()).0 {
        Parsed::Answer { drop_key, .. } => assert!(!drop_key),
        other => panic!("{other:?}"),
    }
    request_of("mg AG1hZ2VudA== b v\r\n");
    // As text it is a key like any other.
    request_of("mg AG1hZ2VudC9h v\r\n");
}
