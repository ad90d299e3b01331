//! Every answer here was read off memcached 1.6.18 for the same request, unless it says otherwise.

mod answers;
mod requests;

use super::*;
use crate::buffer::{Queue, Source};
use crate::protocol::{Limits, Parsed, Reply, Scratch, Status, Verb};

const OPAQUE: [u8; 4] = [0xde, 0xad, 0xbe, 0xef];
const LIMITS: Limits = Limits {
    max_value: 1000,
    flush_all: true,
};

fn packet(opcode: u8, extras: &[u8], key: &[u8], value: &[u8], cas: u64) -> Vec<u8> {
    let body = (extras.len() + key.len() + value.len()) as u32;
    let mut p = vec![REQUEST, opcode];
    p.extend_from_slice(&(key.len() as u16).to_be_bytes());
    p.extend_from_slice(&[extras.len() as u8, 0, 0, 0]);
    p.extend_from_slice(&body.to_be_bytes());
    p.extend_from_slice(&OPAQUE);
    p.extend_from_slice(&cas.to_be_bytes());
    p.extend_from_slice(extras);
    p.extend_from_slice(key);
    p.extend_from_slice(value);
    p
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn content(q: &Queue) -> Vec<u8> {
    let mut v = Vec::new();
    q.for_each(q.start()..q.end(), |p| v.extend_from_slice(p));
    v
}

fn format_of(opcode: u8) -> BinaryFormat {
    BinaryFormat {
        opcode,
        opaque: OPAQUE,
    }
}

/// The binary answer to a server's reply to a meta command.
fn answered(opcode: u8, line: &str, reply: &[u8], status: Status) -> (String, Vec<u8>) {
    let verb = match &line[..2] {
        "mg" => Verb::MetaGet,
        "ms" => Verb::MetaSet,
        "md" => Verb::MetaDelete,
        _ => Verb::MetaArithmetic,
    };
    let end = reply.iter().position(|&b| b == b'\n').expect("a line") + 1;
    // Something stands before the reply: offsets must not count from the source's start.
    let source = [b"xxx", reply].concat();
    let reply = Reply {
        source: Source::Slice(&source),
        at: 3,
        len: reply.len(),
        line: end,
        status,
        items: &[],
    };
    let mut q = Queue::new();
    answer(&format_of(opcode), verb, line.as_bytes(), &reply, &mut q);
    let bytes = content(&q);
    let (head, body) = bytes.split_at(HEADER.min(bytes.len()));
    (hex(head), body.to_vec())
}

/// Whatever a client sends, and whatever a server's line says, nothing panics.
#[test]
fn garbage_is_survived() {
    let mut seed = 1u64;
    let mut next = || {
        seed = seed
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (seed >> 33) as usize
    };
    let mut s = Scratch::default();
    for _ in 0..20_000 {
        let extras = [0, 4, 8, 20, 255][next() % 5];
        let mut buf = packet(
            next() as u8,
            &[7; 255][..extras],
            &[b'k'; 300][..next() % 300],
            b"v",
            1,
        );
        for _ in 0..next() % 4 {
            let at = next() % buf.len().min(60);
            buf[at] = next() as u8;
        }
        match parse(&buf, 0, &LIMITS, &mut s) {
            Parsed::Request(r) => assert!(r.head <= buf.len() && s.line.len() <= 2048),
            Parsed::Answer { used, .. } | Parsed::Local { used, .. } => assert!(used <= buf.len()),
            Parsed::More | Parsed::Close => {}
        }
    }
    for line in [
        "HD\r\n",
        "VA\r\n",
        "VA x f- cc c f\r\n",
        " \r\n",
        "\r\n",
        "VA 9 f99999999999999999999\r\n",
    ] {
        for op in [0x00, 0x0c, 0x1c] {
            answered(op, "mg", line.as_bytes(), Status::Done);
        }
        answered(0x05, "ma", line.as_bytes(), Status::Done);
        answered(0x05, "ma", line.as_bytes(), Status::Number(1));
    }
}
