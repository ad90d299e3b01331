//! What replies become.

use super::*;
use crate::buffer::{Chunk, ChunkPool};
use std::rc::Rc;

#[test]
fn hits_and_misses() {
    let (get, done) = ("mg k v f c\r\n", Status::Done);
    let va = b"VA 5 f51966 c1\r\nhello\r\n";
    let hit = [0x00, 0x09, 0x1d, 0x1e];
    for op in hit {
        let head = format!("81{op:02x}00000400000000000009deadbeef0000000000000001");
        let body = b"\x00\x00\xca\xfehello".to_vec();
        assert_eq!(answered(op, get, va, done), (head, body));
    }
    for op in [0x0c, 0x0d, 0x23, 0x24] {
        let head = format!("81{op:02x}0001040000000000000adeadbeef0000000000000001");
        let body = b"\x00\x00\xca\xfekhello".to_vec();
        assert_eq!(answered(op, get, va, done), (head, body));
        let coded = answered(op, "mg YQpi b v f c\r\n", va, done);
        assert_eq!(coded.1, b"\x00\x00\xca\xfea\nbhello");
        assert_eq!(&coded.0[4..8], "0003");
    }
    let touched = answered(0x1c, "mg k f c T100\r\n", b"HD f51966 c1\r\n", done);
    let head = "811c00000400000000000004deadbeef0000000000000001";
    assert_eq!(touched, (head.into(), b"\x00\x00\xca\xfe".to_vec()));
    let empty = answered(
        0x00,
        get,
        b"VA 0 f4294967295 c18446744073709551615 W X Z\r\n\r\n",
        done,
    );
    let head = "810000000400000000000004deadbeefffffffffffffffff";
    assert_eq!(empty, (head.into(), b"\xff\xff\xff\xff".to_vec()));
    let miss = |op, line| answered(op, line, b"EN\r\n", Status::Absent);
    for op in [0x00, 0x1c, 0x1d] {
        let head = format!("81{op:02x}00000000000100000009deadbeef0000000000000000");
        assert_eq!(miss(op, get), (head, b"Not found".to_vec()));
    }
    for op in [0x0c, 0x23] {
        let head = format!("81{op:02x}00020000000100000002deadbeef0000000000000000");
        assert_eq!(miss(op, "mg nk v f c\r\n"), (head, b"nk".to_vec()));
        assert_eq!(miss(op, "mg YQpi b v f c T1\r\n").1, b"a\nb");
    }
    for op in [0x09, 0x0d, 0x1e, 0x24] {
        assert_eq!(miss(op, get), (String::new(), Vec::new()));
    }
}

#[test]
fn writes_and_their_failures() {
    let stored = answered(0x01, "ms k 1 c\r\n", b"HD c3\r\n", Status::Done);
    let head = "810100000000000000000000deadbeef0000000000000003";
    assert_eq!(stored, (head.into(), Vec::new()));
    let deleted = answered(0x04, "md k\r\n", b"HD\r\n", Status::Done);
    let head = "810400000000000000000000deadbeef0000000000000000";
    assert_eq!(deleted, (head.into(), Vec::new()));
    let ma = "ma k MI D3 v c N0 J7\r\n";
    let counted = answered(0x05, ma, b"VA 2 c9\r\n10\r\n", Status::Number(10));
    let head = "810500000000000000000008deadbeef0000000000000009";
    assert_eq!(counted, (head.into(), vec![0, 0, 0, 0, 0, 0, 0, 10]));
    let nothing = (String::new(), Vec::new());
    for op in [0x11, 0x12, 0x13, 0x19, 0x1a] {
        let quiet = answered(op, "ms k 1 c\r\n", b"HD c3\r\n", Status::Done);
        assert_eq!(quiet, nothing);
    }
    assert_eq!(answered(0x14, "md k\r\n", b"HD\r\n", Status::Done), nothing);
    let counted = answered(0x16, ma, b"VA 2 c9\r\n10\r\n", Status::Number(10));
    assert_eq!(counted, nothing);
    // (opcodes, reply, status; code and body of the answer, quiet or not)
    let cant = "CLIENT_ERROR cannot increment or decrement non-numeric value";
    let not_number = "Non-numeric server-side value for incr or decr";
    let (exists, missing) = ("Data exists for key.", "Not found");
    let unstored = "Not stored.";
    type Case<'a> = (&'a [u8], &'a str, Status, u8, &'a str);
    let cases: &[Case] = &[
        (
            &[0x01, 0x04, 0x05, 0x0e, 0x11],
            "EX",
            Status::Exists,
            0x02,
            exists,
        ),
        (
            &[0x01, 0x04, 0x05, 0x14, 0x16],
            "NF",
            Status::Absent,
            0x01,
            missing,
        ),
        (&[0x02, 0x12], "NS", Status::NotStored, 0x02, exists),
        (&[0x03, 0x13], "NS", Status::NotStored, 0x01, missing),
        (
            &[0x0e, 0x0f, 0x19, 0x1a],
            "NS",
            Status::NotStored,
            0x05,
            unstored,
        ),
        (
            &[0x05, 0x06, 0x15, 0x16],
            cant,
            Status::ClientError,
            0x06,
            not_number,
        ),
        // The rest is magent's own choice.
        (
            &[0x01],
            "CLIENT_ERROR bad data chunk",
            Status::ClientError,
            0x04,
            "Invalid arguments",
        ),
        (
            &[0x00, 0x09],
            "ERROR",
            Status::Unknown,
            0x83,
            "Not supported",
        ),
    ];
    for &(opcodes, reply, status, code, body) in cases {
        for &op in opcodes {
            let line = match super::op(op) {
                Op::Get => "mg k v f c\r\n",
                Op::Delete => "md k\r\n",
                Op::Increment | Op::Decrement => ma,
                _ => "ms k 1 c\r\n",
            };
            let got = answered(op, line, format!("{reply}\r\n").as_bytes(), status);
            let n = body.len();
            let head = format!("81{op:02x}0000000000{code:02x}{n:08x}deadbeef0000000000000000");
            assert_eq!(got, (head, body.as_bytes().to_vec()), "{op:02x} {reply}");
        }
    }
}

#[test]
fn failures_name_their_cause() {
    let cases: &[(&str, u8, &str)] = &[
        ("127.0.0.1:11212 down", 0x86, "127.0.0.1:11212 down"),
        (
            "out of memory storing object",
            0x82,
            "out of memory storing object",
        ),
        (
            "Out of memory allocating new item",
            0x82,
            "Out of memory allocating new item",
        ),
        ("object too large for cache", 0x03, "Too large."),
        ("", 0x86, "Temporary failure"),
    ];
    for (text, code, body) in cases {
        for op in [0x00, 0x09, 0x11] {
            let reply = format!("SERVER_ERROR {text}\r\n");
            let (head, got) = answered(op, "mg k v\r\n", reply.as_bytes(), Status::ServerError);
            assert_eq!(
                (&head[12..16], got),
                (&*format!("00{code:02x}"), body.as_bytes().to_vec())
            );
            let mut q = Queue::new();
            error(&format_of(op), text.as_bytes(), &mut q);
            assert_eq!(hex(&content(&q)), head + &hex(body.as_bytes()));
        }
    }
}

#[test]
fn magents_own_answers() {
    let mut q = Queue::new();
    ok(&format_of(0x0b), b"1.6.18", &mut q);
    let head = "810b00000000000000000006deadbeef0000000000000000";
    assert_eq!(hex(&content(&q)), format!("{head}{}", hex(b"1.6.18")));
    q.clear();
    for quiet in [0x17, 0x18] {
        ok(&format_of(quiet), b"", &mut q);
    }
    assert!(q.is_empty());
    stat(&format_of(0x10), b"pid", b"7365", &mut q);
    let head = "811000030000000000000007deadbeef0000000000000000";
    assert_eq!(hex(&content(&q)), format!("{head}{}", hex(b"pid7365")));
    q.clear();
    stat_end(&format_of(0x10), &mut q);
    let head = "811000000000000000000000deadbeef0000000000000000";
    assert_eq!(hex(&content(&q)), head);
    q.clear();
    stat_unknown(&format_of(0x10), &mut q);
    let head = "811000000000000100000009deadbeef0000000000000000";
    assert_eq!(hex(&content(&q)), format!("{head}{}", hex(b"Not found")));
}

#[test]
fn large_values_are_shared() {
    let line = b"VA 60000 f0 c1\r\n";
    let mut chunk = ChunkPool::default().take();
    let bytes = Chunk::writable(&mut chunk).expect("unique");
    bytes[10..10 + line.len()].copy_from_slice(line);
    let reply = Reply {
        source: Source::Chunk(&chunk),
        at: 10,
        len: line.len() + 60002,
        line: line.len(),
        status: Status::Done,
        items: &[],
    };
    let mut q = Queue::new();
    answer(
        &format_of(0x00),
        Verb::MetaGet,
        b"mg k v f c\r\n",
        &reply,
        &mut q,
    );
    assert_eq!((q.len(), q.own_bytes()), (60028, 28));
    assert_eq!(Rc::strong_count(&chunk), 2);
}
