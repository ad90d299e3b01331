//! Binary answers: from a server's meta reply, and magent's own.

use super::{Code, HEADER, Op, header, is_quiet, op, returns_key};
use crate::buffer::Queue;
use crate::protocol::{BinaryFormat, Reply, Status, Verb, base64};

/// Writes the answer for a server's reply to the meta command `request_line`; nothing where the
/// quiet form keeps silent. A value is shared with the reply, not copied.
pub fn answer(
    d: &BinaryFormat,
    verb: Verb,
    request_line: &[u8],
    reply: &Reply<'_>,
    out: &mut Queue,
) {
    match (reply.status, verb) {
        (Status::Done, Verb::MetaGet) => hit(d, request_line, reply, out),
        (Status::Done, Verb::MetaArithmetic) => error(d, b"no number in the reply", out),
        (Status::Done, _) => success(d, returned(reply.first_line()).cas, b"", out),
        (Status::Number(n), _) => {
            let cas = returned(reply.first_line()).cas;
            success(d, cas, &n.to_be_bytes(), out)
        }
        (Status::Absent, Verb::MetaGet) => miss(d, request_line, out),
        (Status::Absent, _) => failure(d, Code::NotFound, out),
        (Status::NotStored, _) => failure(d, not_stored(d.opcode), out),
        (Status::Exists, _) => failure(d, Code::Exists, out),
        (Status::Unknown, _) => failure(d, Code::NotSupported, out),
        (Status::ClientError, _) => failure(d, client_error(reply.first_line()), out),
        (Status::ServerError, _) => {
            let line = reply.first_line();
            error(d, line.strip_prefix(b"SERVER_ERROR ").unwrap_or(line), out)
        }
    }
}

/// Writes a failure that is not the client's, quiet or not. `text` is what a text client reads
/// behind `SERVER_ERROR `; it becomes the body.
pub fn error(d: &BinaryFormat, text: &[u8], out: &mut Queue) {
    const MEMORY: &[u8] = b"out of memory";
    let memory = |t: &[u8]| t.eq_ignore_ascii_case(MEMORY);
    if text == b"object too large for cache" {
        failure(d, Code::TooLarge, out);
    } else if text.get(..MEMORY.len()).is_some_and(memory) {
        push(d, Code::OutOfMemory, 0, text, out);
    } else if text.is_empty() {
        failure(d, Code::Temporary, out);
    } else {
        push(d, Code::Temporary, 0, text, out);
    }
}

/// Writes the success of what magent did itself (version, verbosity, flush, quit); nothing for
/// the quiet forms.
pub fn ok(d: &BinaryFormat, body: &[u8], out: &mut Queue) {
    success(d, 0, body, out);
}

/// Writes one packet of a stat answer. A name is cut at 65535 bytes, which none has.
pub fn stat(d: &BinaryFormat, name: &[u8], value: &[u8], out: &mut Queue) {
    let len = u16::try_from(name.len()).unwrap_or(u16::MAX);
    let name = &name[..usize::from(len)];
    let body = name.len() + value.len();
    out.push_slice(&header(d, Code::Success, len, 0, body, 0));
    out.push_slice(name);
    out.push_slice(value);
}

/// Writes the empty packet that ends a stat answer; alone it is the answer to `stat reset`.
pub fn stat_end(d: &BinaryFormat, out: &mut Queue) {
    stat(d, b"", b"", out);
}

/// Writes the answer to a stat that does not exist.
pub fn stat_unknown(d: &BinaryFormat, out: &mut Queue) {
    failure(d, Code::NotFound, out);
}

/// What the flags of a meta reply returned; 0 where they did not.
#[derive(Default)]
struct Returned {
    flags: u32,
    cas: u64,
}

fn returned(first_line: &[u8]) -> Returned {
    let mut r = Returned::default();
    for token in first_line.split(|&b| b == b' ').skip(1) {
        match token.split_first() {
            Some((b'f', digits)) => r.flags = number(digits) as u32,
            Some((b'c', digits)) => r.cas = number(digits),
            _ => {}
        }
    }
    r
}

/// The value of decimal digits; what is none is wrong by the server's fault and only read wrong.
fn number(digits: &[u8]) -> u64 {
    digits.iter().fold(0, |n: u64, &b| {
        n.wrapping_mul(10)
            .wrapping_add(u64::from(b.wrapping_sub(b'0')))
    })
}

/// A found value, or the success of touch: its flags and cas come from the reply's first line.
fn hit(d: &BinaryFormat, request_line: &[u8], reply: &Reply<'_>, out: &mut Queue) {
    let line = reply.first_line();
    let r = returned(line);
    let value_at = reply.at + reply.line;
    let value = if line.starts_with(b"VA ") {
        reply.len.saturating_sub(reply.line + b"\r\n".len())
    } else {
        0
    };
    with_key(d, request_line, |key| {
        let flags = r.flags.to_be_bytes();
        let body = flags.len() + key.len() + value;
        let mut head = [0; HEADER + 4];
        head[..HEADER].copy_from_slice(&header(
            d,
            Code::Success,
            key.len() as u16,
            flags.len() as u8,
            body,
            r.cas,
        ));
        head[HEADER..].copy_from_slice(&flags);
        out.push_slice(&head);
        out.push_slice(key);
        out.push(reply.source, value_at..value_at + value);
    });
}

/// An absent key: the answer's body is the key where it would have been returned.
fn miss(d: &BinaryFormat, request_line: &[u8], out: &mut Queue) {
    if is_quiet(d.opcode) {
        return;
    }
    with_key(d, request_line, |key| match key.len() {
        0 => failure(d, Code::NotFound, out),
        n => push(d, Code::NotFound, n as u16, key, out),
    });
}

/// Calls `f` with the key as the client wrote it if the answer returns it, else with nothing.
fn with_key(d: &BinaryFormat, request_line: &[u8], f: impl FnOnce(&[u8])) {
    if !returns_key(d.opcode) {
        return f(b"");
    }
    let mut tokens = request_line.trim_ascii_end().split(|&b| b == b' ').skip(1);
    let key = tokens.next().unwrap_or_default();
    if !tokens.any(|t| t == b"b") {
        return f(key);
    }
    // Only getk and gatk of a key that can't stand in a line come here: rare enough to allocate.
    let mut raw = Vec::with_capacity(key.len());
    base64::decode(key, &mut raw);
    f(&raw)
}

/// A success, which quiet forms do not answer.
fn success(d: &BinaryFormat, cas: u64, body: &[u8], out: &mut Queue) {
    if is_quiet(d.opcode) {
        return;
    }
    out.push_slice(&header(d, Code::Success, 0, 0, body.len(), cas));
    out.push_slice(body);
}

/// A failure with the code's own words.
fn failure(d: &BinaryFormat, code: Code, out: &mut Queue) {
    push(d, code, 0, code.text(), out);
}

/// A failure; `key` bytes of its body are the key.
fn push(d: &BinaryFormat, code: Code, key: u16, body: &[u8], out: &mut Queue) {
    out.push_slice(&header(d, code, key, 0, body.len(), 0));
    out.push_slice(body);
}

/// `NS` as memcached's binary answers say it.
fn not_stored(opcode: u8) -> Code {
    match op(opcode) {
        Op::Add => Code::Exists,
        Op::Replace => Code::NotFound,
        _ => Code::NotStored,
    }
}

fn client_error(first_line: &[u8]) -> Code {
    if first_line.starts_with(b"CLIENT_ERROR cannot increment") {
        Code::NotANumber
    } else {
        Code::Invalid
    }
}
