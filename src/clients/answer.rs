//! What servers say, and what magent says itself, as each client expects it.

use crate::buffer::{Queue, Source};
use crate::protocol::{Format, Reply, Status, Traits, Verb, binary, meta, text};

/// True for replies that are errors.
pub fn is_error(status: Status) -> bool {
    matches!(
        status,
        Status::Unknown | Status::ClientError | Status::ServerError
    )
}

/// The reply of a server to `line`, in the client's format. `traits` are those of what the client asked.
#[inline]
pub fn write_reply(
    (format, traits): (Format, Traits),
    verb: Verb,
    line: &[u8],
    reply: &Reply<'_>,
    out: &mut Queue,
) {
    match format {
        // What the client asked in text.
        Format::Text if matches!(verb, Verb::MetaSet | Verb::MetaArithmetic) => {
            text::answer(reply, out);
        }
        Format::Text => out.push(reply.source, reply.at..reply.at + reply.len),
        Format::Silent => {}
        Format::Meta(d) => {
            let wants_cas = traits.has(Traits::RETURNS_CAS);
            meta::answer(&d, verb, line, wants_cas, reply, out);
        }
        Format::Binary(d) => binary::answer(&d, verb, line, reply, out),
    }
}

/// An error; `line` is the whole line without its end, as a text client reads it.
pub fn write_line(format: Format, line: &[u8], out: &mut Queue) {
    let line = line.strip_suffix(b"\r\n").unwrap_or(line);
    match format {
        Format::Silent => {}
        Format::Binary(d) => {
            let text = line.strip_prefix(b"SERVER_ERROR ").unwrap_or(line);
            binary::error(&d, text, out);
        }
        Format::Text | Format::Meta(_) => {
            out.push_slice(line);
            out.push_slice(b"\r\n");
        }
    }
}

/// An error of magent's own: `SERVER_ERROR text`.
pub fn write_error(format: Format, text: &[u8], out: &mut Queue) {
    match format {
        Format::Silent => {}
        Format::Binary(d) => binary::error(&d, text, out),
        Format::Text | Format::Meta(_) => {
            out.push_slice(b"SERVER_ERROR ");
            out.push_slice(text);
            out.push_slice(b"\r\n");
        }
    }
}

/// A success of magent's own: the line `text`, or a binary body.
pub fn write_success(format: Format, text: &[u8], body: &[u8], out: &mut Queue) {
    match format {
        Format::Silent => {}
        Format::Binary(d) => binary::ok(&d, body, out),
        Format::Text | Format::Meta(_) => out.push_slice(text),
    }
}

/// Lines of a `stats` that are put into a queue at once, in bytes.
const STATS: usize = 8 * 1024;

/// Names and values, as every `stats` answers.
pub fn write_stats<T: AsRef<[u8]>, U: AsRef<[u8]>>(
    format: Format,
    lines: &[(T, U)],
    out: &mut Queue,
) {
    if let Format::Binary(d) = format {
        for (name, value) in lines {
            binary::stat(&d, name.as_ref(), value.as_ref(), out);
        }
        return binary::stat_end(&d, out);
    }
    // Of a thousand servers these are tens of thousands of lines.
    let mut text = Vec::new();
    for (name, value) in lines {
        for part in [&b"STAT "[..], name.as_ref(), b" ", value.as_ref(), b"\r\n"] {
            text.extend_from_slice(part);
        }
        if text.len() >= STATS {
            out.push_slice(&text);
            text.clear();
        }
    }
    text.extend_from_slice(b"END\r\n");
    out.push_slice(&text);
}

/// A reply that is one line.
pub fn line_reply(line: &[u8], status: Status) -> Reply<'_> {
    Reply {
        source: Source::Slice(line),
        at: 0,
        len: line.len(),
        line: line.len(),
        status,
        items: &[],
    }
}

/// True for requests whose reply may hold values of any length.
pub fn has_values(verb: Verb) -> bool {
    matches!(
        verb,
        Verb::Get | Verb::Gets | Verb::Gat | Verb::Gats | Verb::MetaGet
    )
}
