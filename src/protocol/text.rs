//! Classic text commands, and the line that every text request starts with.
//!
//! ```text
//! bytes ──fast──▶ the usual request: the line goes to the server as it is
//!   │
//!   └──line──▶ words ──▶ one command ──▶ an upstream request line made anew, or memcached's answer
//! ```
//!
//! What is right and what is wrong, and in which order it is found out, is memcached 1.6.18's
//! `proto_text.c`.

mod answer;
mod fast;
mod local;
pub(super) mod scan;
#[cfg(test)]
pub(in crate::protocol) mod tests;

use super::{Format, Limits, Parsed, Request, Scratch, Traits, Verb, meta};
pub use answer::answer;
pub use fast::glance;
pub use scan::find_newline;
use scan::{Words, parse_i32, parse_u32, parse_u64, push_i32, push_u64};

/// Longest key in bytes.
pub(super) const KEY_MAX: usize = 250;

/// Longest value in bytes that the grammar knows, whatever `-I` says: with its `\r\n` it must
/// fit into an `int`.
const VALUE_MAX: usize = i32::MAX as usize - 2;

/// Longest line in bytes, its end included, that is no get: memcached closes the connection
/// when it holds more without a line end.
pub(super) const LINE_MAX: usize = 2048;

/// Longest line of a get in bytes; memcached has no bound, magent must have one.
const GET_LINE_MAX: usize = 1 << 20;

pub(super) const BAD_FORMAT: &[u8] = b"CLIENT_ERROR bad command line format";
pub(super) const TOO_LARGE: &[u8] = b"SERVER_ERROR object too large for cache";
const BAD_EXPTIME: &[u8] = b"CLIENT_ERROR invalid exptime argument";
const BAD_DELTA: &[u8] = b"CLIENT_ERROR invalid numeric delta argument";
const BAD_DELETE: &[u8] = b"CLIENT_ERROR bad command line format.  Usage: delete <key> [noreply]";
pub(super) const ERROR: &[u8] = b"ERROR";

/// Reads the request that `buf` starts with.
///
/// `searched` says how many bytes of `buf` are known to hold no `\n`: 0 for a new request, and
/// after [`Parsed::More`] the length of the `buf` that gave it. So a line that arrives in small
/// pieces is searched once.
pub fn parse(buf: &[u8], searched: usize, limits: &Limits, s: &mut Scratch) -> Parsed {
    clear(s);
    if searched == 0 {
        if let Some(parsed) = fast::parse(buf, limits, s) {
            return parsed;
        }
    }
    let searched = searched.min(buf.len());
    let Some(newline) = find_newline(&buf[searched..]).map(|n| searched + n) else {
        clear(s);
        return unfinished(buf);
    };
    if searched > 0 {
        if let Some(parsed) = fast::parse(buf, limits, s) {
            return parsed;
        }
    }
    clear(s);
    let text = scan::visible(buf, newline);
    let line = Line {
        text,
        words: Words::new(text),
        used: newline + 1,
        limits,
    };
    command(&line, s)
}

fn clear(s: &mut Scratch) {
    s.line.clear();
    s.keys.clear();
    s.key.clear();
    s.answer.clear();
}

/// A line whose end has not come: only a get may go on for so long.
fn unfinished(buf: &[u8]) -> Parsed {
    if buf.len() <= LINE_MAX {
        return Parsed::More;
    }
    let spaces = buf.iter().position(|&b| b != b' ').unwrap_or(buf.len());
    let rest = &buf[spaces..];
    let is_get = rest.starts_with(b"get ") || rest.starts_with(b"gets ");
    if spaces > 100 || !is_get || buf.len() > GET_LINE_MAX {
        return Parsed::Close;
    }
    Parsed::More
}

/// One line and what its command must know.
struct Line<'a> {
    text: &'a [u8],
    words: Words<'a>,
    /// Bytes of the line with its end.
    used: usize,
    limits: &'a Limits,
}

impl Line<'_> {
    /// memcached looks for `noreply` at one place: in the last word.
    fn quiet(&self) -> bool {
        self.words.last() == b"noreply"
    }

    fn refuse(&self, s: &mut Scratch, why: &[u8]) -> Parsed {
        refuse(s, self.used, why)
    }

    /// The same where `noreply` was understood already.
    fn refuse_unless_quiet(&self, s: &mut Scratch, why: &[u8]) -> Parsed {
        let parsed = refuse(s, self.used, why);
        if self.quiet() {
            s.answer.clear();
        }
        parsed
    }
}

/// magent's own answer to a line of `used` bytes.
pub(super) fn refuse(s: &mut Scratch, used: usize, why: &[u8]) -> Parsed {
    s.answer.clear();
    s.answer.extend_from_slice(why);
    s.answer.extend_from_slice(b"\r\n");
    Parsed::Answer {
        used,
        swallow: 0,
        close: false,
        drop_key: false,
    }
}

/// The commands with keys, and how many words they may have.
fn keyed(name: &[u8]) -> Option<(Verb, usize, usize)> {
    Some(match name {
        b"get" | b"bget" => (Verb::Get, 2, usize::MAX),
        b"gets" => (Verb::Gets, 2, usize::MAX),
        b"gat" => (Verb::Gat, 2, usize::MAX),
        b"gats" => (Verb::Gats, 2, usize::MAX),
        b"set" => (Verb::Set, 5, 6),
        b"add" => (Verb::Add, 5, 6),
        b"replace" => (Verb::Replace, 5, 6),
        b"append" => (Verb::Append, 5, 6),
        b"prepend" => (Verb::Prepend, 5, 6),
        b"cas" => (Verb::Cas, 6, 7),
        b"incr" => (Verb::Incr, 3, 4),
        b"decr" => (Verb::Decr, 3, 4),
        b"touch" => (Verb::Touch, 3, 4),
        b"delete" => (Verb::Delete, 2, 4),
        _ => return None,
    })
}

/// What a classic command does. `cas` gets `SENDS_CAS` by its token.
fn traits(verb: Verb) -> Traits {
    const READ: Traits = Traits::NEEDS_KEY;
    const CHANGE: Traits = Traits::WRITES.with(Traits::NEEDS_KEY);
    match verb {
        Verb::Get => READ,
        Verb::Gets => READ.with(Traits::RETURNS_CAS),
        Verb::Gat => CHANGE,
        Verb::Gats => CHANGE.with(Traits::RETURNS_CAS),
        Verb::Set => Traits::WRITES.with(Traits::SETS),
        Verb::Add => Traits::WRITES.with(Traits::CREATES),
        Verb::Delete => Traits::WRITES.with(Traits::DELETES),
        _ => CHANGE,
    }
}

/// A request without key and value, to be filled in.
pub(super) fn request(verb: Verb, traits: Traits, head: usize) -> Request {
    Request {
        verb,
        traits,
        head,
        data: 0,
        value: None,
        raw: false,
        key: None,
        format: Format::Text,
    }
}

fn command(line: &Line<'_>, s: &mut Scratch) -> Parsed {
    let (name, n) = (line.words.get(0), line.words.len());
    if name.len() < 2 {
        return line.refuse(s, ERROR);
    }
    if name.len() == 2 && name[0] == b'm' {
        return meta::parse(&line.words, line.used, line.limits, s);
    }
    let Some((verb, fewest, most)) = keyed(name) else {
        return local::parse(line, s);
    };
    if n < fewest || n > most {
        return line.refuse(s, ERROR);
    }
    match verb {
        Verb::Get | Verb::Gets => several(line, verb, None, s),
        Verb::Gat | Verb::Gats => match parse_i32(line.words.get(1)) {
            Some(exptime) => several(line, verb, Some(exptime), s),
            None => line.refuse(s, BAD_EXPTIME),
        },
        _ => {
            let made = match verb {
                Verb::Incr | Verb::Decr => arithmetic(line, verb, s),
                Verb::Touch => touch(line, s),
                Verb::Delete => delete(line, s),
                _ => store(line, verb, s),
            };
            made.unwrap_or_else(|why| line.refuse_unless_quiet(s, why))
        }
    }
}

/// The gets: one key makes a whole upstream request line, several make its beginning.
fn several(line: &Line<'_>, verb: Verb, exptime: Option<i32>, s: &mut Scratch) -> Parsed {
    s.line.extend_from_slice(match verb {
        Verb::Get => b"get",
        Verb::Gets => b"gets",
        Verb::Gat => b"gat ",
        _ => b"gats ",
    });
    if let Some(exptime) = exptime {
        push_i32(&mut s.line, exptime);
    }
    let before = 1 + usize::from(exptime.is_some());
    let mut total = s.line.len() + 2;
    for (from, to) in scan::words(line.text).skip(before) {
        if to - from > KEY_MAX {
            return line.refuse(s, BAD_FORMAT);
        }
        total += 1 + to - from;
        s.keys.push(from..to);
    }
    if exptime.is_some() && total > LINE_MAX {
        return line.refuse(s, BAD_FORMAT);
    }
    let mut all = request(verb, traits(verb), line.used);
    match s.keys.as_slice() {
        // Only gat gets here without a key: memcached has touched all of none.
        [] => return line.refuse(s, b"END"),
        [key] => {
            all.key = Some((key.start as u32, key.end as u32));
            s.line.push(b' ');
            s.line.extend_from_slice(&line.text[key.clone()]);
            s.line.extend_from_slice(b"\r\n");
            s.keys.clear();
        }
        _ => {}
    }
    Parsed::Request(all)
}

/// Starts the upstream request line of a command with one key; refuses a key that is too long.
fn one_key(line: &Line<'_>, verb: Verb, s: &mut Scratch) -> Result<Request, &'static [u8]> {
    let key = line.words.get(1);
    if key.len() > KEY_MAX {
        return Err(BAD_FORMAT);
    }
    s.line.extend_from_slice(line.words.get(0));
    s.line.push(b' ');
    s.line.extend_from_slice(key);
    let mut all = request(verb, traits(verb), line.used);
    all.key = Some(line.words.range(1));
    if line.quiet() && line.words.len() > 2 {
        all.format = Format::Silent;
    }
    Ok(all)
}

fn argument_u64(s: &mut Scratch, n: u64) {
    s.line.push(b' ');
    push_u64(&mut s.line, n);
}

fn argument_i32(s: &mut Scratch, n: i32) {
    s.line.push(b' ');
    push_i32(&mut s.line, n);
}

fn finish(all: Request, s: &mut Scratch) -> Result<Parsed, &'static [u8]> {
    s.line.extend_from_slice(b"\r\n");
    Ok(Parsed::Request(all))
}

fn arithmetic(line: &Line<'_>, verb: Verb, s: &mut Scratch) -> Result<Parsed, &'static [u8]> {
    let all = one_key(line, verb, s)?;
    argument_u64(s, parse_u64(line.words.get(2)).ok_or(BAD_DELTA)?);
    finish(all, s)
}

fn touch(line: &Line<'_>, s: &mut Scratch) -> Result<Parsed, &'static [u8]> {
    let all = one_key(line, Verb::Touch, s)?;
    argument_i32(s, parse_i32(line.words.get(2)).ok_or(BAD_EXPTIME)?);
    finish(all, s)
}

/// `delete KEY [0] [noreply]`: the 0 is from times when a delete could wait.
fn delete(line: &Line<'_>, s: &mut Scratch) -> Result<Parsed, &'static [u8]> {
    let zero = line.words.get(2) == b"0";
    let good = match line.words.len() {
        2 => true,
        3 => zero || line.quiet(),
        _ => zero && line.quiet(),
    };
    if !good {
        return Err(BAD_DELETE);
    }
    let all = one_key(line, Verb::Delete, s)?;
    finish(all, s)
}

fn store(line: &Line<'_>, verb: Verb, s: &mut Scratch) -> Result<Parsed, &'static [u8]> {
    let mut all = one_key(line, verb, s)?;
    let word = |i| line.words.get(i);
    let flags = parse_u32(word(2)).ok_or(BAD_FORMAT)?;
    let exptime = parse_i32(word(3)).ok_or(BAD_FORMAT)?;
    let len = parse_i32(word(4)).ok_or(BAD_FORMAT)?;
    let cas = match verb {
        Verb::Cas => Some(parse_u64(word(5)).ok_or(BAD_FORMAT)?),
        _ => None,
    };
    let len = value_len(len).ok_or(BAD_FORMAT)?;
    if len > line.limits.max_value {
        let key = if verb == Verb::Set { word(1) } else { b"" };
        return Ok(too_large(line, len, key, s));
    }
    argument_u64(s, u64::from(flags));
    argument_i32(s, exptime);
    argument_u64(s, len as u64);
    if let Some(cas) = cas {
        argument_u64(s, cas);
        if cas != 0 {
            all.traits = all.traits.with(Traits::SENDS_CAS);
        }
    }
    (all.value, all.data) = (Some(len), len + 2);
    finish(all, s)
}

/// The length of a value as memcached accepts it.
pub(super) fn value_len(len: i32) -> Option<usize> {
    usize::try_from(len).ok().filter(|&len| len <= VALUE_MAX)
}

/// A value over `-I`: swallowed, and the old value of `key` dropped unless that is empty.
fn too_large(line: &Line<'_>, len: usize, key: &[u8], s: &mut Scratch) -> Parsed {
    line.refuse_unless_quiet(s, TOO_LARGE);
    s.line.clear();
    let drop_key = !key.is_empty();
    if drop_key {
        delete_line(key, s);
    }
    Parsed::Answer {
        used: line.used,
        swallow: len + 2,
        close: false,
        drop_key,
    }
}

/// The upstream request line that drops `key`, and the key for those who must place it.
pub(super) fn delete_line(key: &[u8], s: &mut Scratch) {
    s.key.clear();
    s.key.extend_from_slice(key);
    s.line.clear();
    s.line.extend_from_slice(b"delete ");
    s.line.extend_from_slice(key);
    s.line.extend_from_slice(b"\r\n");
}
