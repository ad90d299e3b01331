//! Puts what is the client's own into the answer of a meta command.

use crate::buffer::Queue;
use crate::protocol::{MetaFormat, Reply, Status, Verb};

/// Writes the client's answer to a meta command from the server's `reply`: `O` and `k` at their
/// places, no value where the client did not ask for it, nothing where `q` asks for nothing.
///
/// `request_line` is the line that the server was asked; its second word is the key that `k`
/// returns. `wants_cas`: the client asked for the cas number. Errors pass as they are. A value is shared, not
/// copied.
pub fn answer(
    d: &MetaFormat,
    verb: Verb,
    request_line: &[u8],
    wants_cas: bool,
    reply: &Reply<'_>,
    out: &mut Queue,
) {
    let line = reply.first_line();
    let failed = matches!(
        reply.status,
        Status::Unknown | Status::ClientError | Status::ServerError
    );
    let is_write = matches!(verb, Verb::MetaSet | Verb::MetaArithmetic);
    let hides_cas = is_write && !wants_cas && line.len() > b"HD".len();
    let is_marked = d.key_at != MetaFormat::NONE || d.opaque_at != MetaFormat::NONE;
    let own = is_marked || d.no_value || hides_cas;
    let Some(code) = code(line).filter(|_| !failed) else {
        out.push(reply.source, reply.at..reply.at + reply.len);
        return;
    };
    if d.quiet && is_nominal(verb, code) {
        return;
    }
    if !own {
        out.push(reply.source, reply.at..reply.at + reply.len);
        return;
    }
    let mut rest = &line[2..];
    let cut = d.no_value && code == b"VA";
    if code == b"VA" {
        // Behind the code stands the length of the value.
        let len = first_flag(rest);
        out.push_slice(if cut { b"HD" } else { &line[..2 + len] });
        rest = &rest[len..];
    } else {
        out.push_slice(code);
    }
    flags(d, rest, request_line, hides_cas, out);
    out.push_slice(b"\r\n");
    if !cut {
        out.push(reply.source, reply.at + reply.line..reply.at + reply.len);
    }
}

/// The two letters of a meta answer, `None` for anything else.
fn code(line: &[u8]) -> Option<&[u8; 2]> {
    let (code, rest) = line.split_first_chunk::<2>()?;
    let known = matches!(code, b"HD" | b"VA" | b"EN" | b"NF" | b"NS" | b"EX");
    (known && matches!(rest, [] | [b' ', ..])).then_some(code)
}

/// The answers that `q` leaves out.
fn is_nominal(verb: Verb, code: &[u8; 2]) -> bool {
    match verb {
        Verb::MetaGet => code == b"EN",
        Verb::MetaSet | Verb::MetaDelete => code == b"HD",
        Verb::MetaArithmetic => matches!(code, b"HD" | b"VA"),
        _ => false,
    }
}

/// Length of the flag that `rest` starts with, the space before it included.
fn first_flag(rest: &[u8]) -> usize {
    let word = rest.get(1..).unwrap_or_default();
    let end = word.iter().position(|&b| b == b' ');
    end.map_or(rest.len(), |n| n + 1)
}

/// Copies the flags of `rest` and puts the client's between them. An answer without an item
/// has no other flags: there they come one behind the other. A cas number is left out where the client did
/// not ask for it: it was asked for last.
fn flags(d: &MetaFormat, mut rest: &[u8], request_line: &[u8], hides_cas: bool, out: &mut Queue) {
    let mut returned = 0u8;
    loop {
        let last = rest.is_empty();
        let due = |at: u8| at != MetaFormat::NONE && (at == returned || (last && at > returned));
        let (key, opaque) = (due(d.key_at), due(d.opaque_at));
        if key && d.key_first {
            key_flag(request_line, out);
        }
        if opaque {
            out.push_slice(b" O");
            let len = usize::from(d.opaque_len).min(d.opaque.len());
            out.push_slice(&d.opaque[..len]);
        }
        if key && !d.key_first {
            key_flag(request_line, out);
        }
        if last {
            return;
        }
        let len = first_flag(rest);
        let (flag, behind) = rest.split_at(len);
        rest = behind;
        if !(hides_cas && flag.starts_with(b" c")) {
            out.push_slice(flag);
        }
        returned = returned.saturating_add(1);
    }
}

/// ` k` and the key; a base64 key is followed by ` b`.
fn key_flag(request_line: &[u8], out: &mut Queue) {
    let line = request_line.strip_suffix(b"\r\n").unwrap_or(request_line);
    let mut words = line.split(|&b| b == b' ').skip(1);
    out.push_slice(b" k");
    out.push_slice(words.next().unwrap_or_default());
    if words.any(|word| word == b"b") {
        out.push_slice(b" b");
    }
}
