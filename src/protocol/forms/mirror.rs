//! What the backup is sent when the primary has answered.

use super::{Letters, extend, flags, key_index, key_token, set_mode, tokens};
use crate::protocol::{Status, Traits, Verb};

/// What to send to the backup.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mirror {
    /// The primary did not change the key.
    Nothing,
    /// The line that was appended to `out`.
    Send {
        /// Its command.
        verb: Verb,
        /// The request's data block follows it.
        with_data: bool,
        /// The number that the backup must answer: the primary's.
        number: Option<u64>,
    },
}

/// Flags that a mirrored line never carries: what the client alone wants back, cas numbers,
/// which belong to one farm, and `I`, which is nothing without them.
const NOT_MIRRORED: &[u8] = b"CIOqkcstflh";

/// Appends the line that tells the backup what `line` did to the key on the primary, which
/// answered `status`. Of a line with several keys only the first is looked at: ask with
/// [`super::write_single`]'s line for each key that was found. `flush_all` has no mirror.
pub fn mirror(
    verb: Verb,
    traits: Traits,
    line: &[u8],
    status: Status,
    out: &mut Vec<u8>,
) -> Mirror {
    use Status::{Absent, ClientError, Done, Number, ServerError};
    match (verb, status) {
        // memcached drops the old value then.
        (_, ServerError | ClientError) if traits.has(Traits::SETS) => delete(verb, line, out),
        (Verb::Set | Verb::Append | Verb::Prepend, Done) => same(verb, line, true, None, out),
        (Verb::Add | Verb::Replace | Verb::Cas, Done) => set(line, out),
        (Verb::Touch, Done) | (Verb::Delete, Done | Absent) => same(verb, line, false, None, out),
        (Verb::Incr | Verb::Decr, Number(n)) => same(verb, line, false, Some(n), out),
        (Verb::Gat | Verb::Gats, Done) => {
            let exptime = tokens(line).nth(1).unwrap_or(b"0");
            touch(verb, line, exptime, out)
        }
        (Verb::MetaGet, Done) => match flags(verb, line).find_map(|f| f.strip_prefix(b"T")) {
            Some(exptime) => touch(verb, line, exptime, out),
            None => Mirror::Nothing,
        },
        (Verb::MetaSet, Done) => meta_set(line, out),
        (Verb::MetaDelete, Done | Absent) if Letters::of(verb, line).has(b'I') => {
            delete(verb, line, out)
        }
        (Verb::MetaDelete, Done | Absent) => meta_same(verb, line, false, None, out),
        (Verb::MetaArithmetic, Number(n)) => meta_same(verb, line, false, Some(n), out),
        // It ran, but nobody knows which number came out.
        (Verb::MetaArithmetic, Done) => delete(verb, line, out),
        _ => Mirror::Nothing,
    }
}

/// False if the answer to a mirror leaves open what the backup holds: then the key must be
/// deleted there. `expected` is [`Mirror::Send`]'s number.
pub fn mirror_ok(status: Status, expected: Option<u64>) -> bool {
    match status {
        Status::Done | Status::Absent | Status::NotStored => true,
        Status::Number(n) => expected == Some(n),
        Status::Exists | Status::Unknown | Status::ClientError | Status::ServerError => false,
    }
}

fn send(verb: Verb, with_data: bool, number: Option<u64>) -> Mirror {
    Mirror::Send {
        verb,
        with_data,
        number,
    }
}

fn same(
    verb: Verb,
    line: &[u8],
    with_data: bool,
    number: Option<u64>,
    out: &mut Vec<u8>,
) -> Mirror {
    out.extend_from_slice(line);
    send(verb, with_data, number)
}

/// A text store as a plain set; the cas number falls off.
fn set(line: &[u8], out: &mut Vec<u8>) -> Mirror {
    out.extend_from_slice(b"set");
    for token in tokens(line).skip(key_index(Verb::Set)).take(4) {
        extend(out, &[b" ", token]);
    }
    out.extend_from_slice(b"\r\n");
    send(Verb::Set, true, None)
}

fn delete(verb: Verb, line: &[u8], out: &mut Vec<u8>) -> Mirror {
    let key = key_token(verb, line);
    if key.base64 {
        extend(out, &[b"md ", key.token, b" b\r\n"]);
        return send(Verb::MetaDelete, false, None);
    }
    extend(out, &[b"delete ", key.token, b"\r\n"]);
    send(Verb::Delete, false, None)
}

fn touch(verb: Verb, line: &[u8], exptime: &[u8], out: &mut Vec<u8>) -> Mirror {
    let key = key_token(verb, line);
    if key.base64 {
        extend(out, &[b"mg ", key.token, b" b T", exptime, b"\r\n"]);
        return send(Verb::MetaGet, false, None);
    }
    extend(out, &[b"touch ", key.token, b" ", exptime, b"\r\n"]);
    send(Verb::Touch, false, None)
}

fn meta_set(line: &[u8], out: &mut Vec<u8>) -> Mirror {
    let verb = Verb::MetaSet;
    let letters = Letters::of(verb, line);
    let appends = letters.has(b'M') && matches!(set_mode(line), b'A' | b'P');
    if letters.has(b'I') || (appends && letters.has(b'N')) {
        return delete(verb, line, out);
    }
    if appends {
        return meta_same(verb, line, true, None, out);
    }
    if letters.are_among(b"bFTEc") {
        // As magent asks where others write too: all but the `c` at its end.
        let asked = line.strip_suffix(b"\r\n").unwrap_or(line);
        if let Some(rest) = asked.strip_suffix(b" c") {
            extend(out, &[rest, b"\r\n"]);
            return send(verb, true, None);
        }
    }
    // Whatever the mode was, the primary holds this value now.
    meta_line(verb, line, |letter| b"bFTE".contains(&letter), out);
    send(verb, true, None)
}

fn meta_same(
    verb: Verb,
    line: &[u8],
    with_data: bool,
    number: Option<u64>,
    out: &mut Vec<u8>,
) -> Mirror {
    meta_line(verb, line, |letter| !NOT_MIRRORED.contains(&letter), out);
    send(verb, with_data, number)
}

/// Appends a meta line with those of its flags whose letter is to be kept.
fn meta_line(verb: Verb, line: &[u8], keep: impl Fn(u8) -> bool, out: &mut Vec<u8>) {
    debug_assert!(verb.is_meta());
    let first_flag = super::flags_index(verb);
    for (i, token) in tokens(line).enumerate() {
        if i >= first_flag && !keep(token[0]) {
            continue;
        }
        if i > 0 {
            out.push(b' ');
        }
        out.extend_from_slice(token);
    }
    out.extend_from_slice(b"\r\n");
}
