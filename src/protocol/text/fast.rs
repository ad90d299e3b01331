//! The requests that nearly all clients send nearly always: single spaces, plain numbers, a
//! `\r\n`, no `noreply`. They are read in one pass and go to the server as they stand.

use super::scan::word_end;
use super::{KEY_MAX, VALUE_MAX, request, traits};
use crate::protocol::{Format, Limits, Parsed, Request, Scratch, Verb};

/// The request at the start of `buf`, or `None` where anything about it is unusual, not yet
/// whole included. Keys may have been left in `s.keys` then.
#[inline]
pub(super) fn parse(buf: &[u8], limits: &Limits, s: &mut Scratch) -> Option<Parsed> {
    let (verb, at) = verb(buf)?;
    let mut cursor = Cursor { buf, at };
    match verb {
        Verb::Get | Verb::Gets => return keys(cursor, verb, s),
        Verb::Gat | Verb::Gats => {
            cursor.number(i32::MAX as u64)?;
            cursor.space()?;
        }
        _ => {}
    }
    let key = cursor.key()?;
    let mut traits = traits(verb);
    let mut value = None;
    match verb {
        Verb::Gat | Verb::Gats | Verb::Delete => {}
        Verb::Touch => {
            cursor.argument(i32::MAX as u64)?;
        }
        Verb::Incr | Verb::Decr => {
            cursor.argument(u64::MAX)?;
        }
        _ => {
            cursor.argument(u64::from(u32::MAX))?;
            cursor.argument(i32::MAX as u64)?;
            value = Some(cursor.argument(limits.max_value.min(VALUE_MAX) as u64)? as usize);
            if verb == Verb::Cas && cursor.argument(u64::MAX)? != 0 {
                traits = traits.with(super::Traits::SENDS_CAS);
            }
        }
    }
    cursor.end()?;
    let mut all = request(verb, traits, cursor.at);
    all.raw = true;
    all.key = Some(key);
    if let Some(value) = value {
        all.value = Some(value);
        all.data = value + 2;
    }
    Some(Parsed::Request(all))
}

/// Where the key starts and ends in the request at offset `at`, and where the next one begins, if it looks like
/// a command with a key and nothing else. A guess, for those who gain by knowing early what is asked soon.
#[inline]
pub fn glance(buf: &[u8], at: usize) -> Option<(usize, usize, usize)> {
    let from = word_end(buf, at).filter(|&at| buf[at] == b' ')? + 1;
    let to = word_end(buf, from)?;
    let is_end = buf.get(to..to + 2) == Some(b"\r\n");
    is_end.then_some((from, to, to + 2))
}

/// The command and where its first argument stands.
fn verb(buf: &[u8]) -> Option<(Verb, usize)> {
    let long = |name: &[u8], verb| buf.starts_with(name).then_some((verb, name.len()));
    match buf.first_chunk::<4>()? {
        b"get " => Some((Verb::Get, 4)),
        b"set " => Some((Verb::Set, 4)),
        b"gets" => long(b"gets ", Verb::Gets),
        b"gat " => Some((Verb::Gat, 4)),
        b"gats" => long(b"gats ", Verb::Gats),
        b"add " => Some((Verb::Add, 4)),
        b"cas " => Some((Verb::Cas, 4)),
        b"incr" => long(b"incr ", Verb::Incr),
        b"decr" => long(b"decr ", Verb::Decr),
        b"dele" => long(b"delete ", Verb::Delete),
        b"touc" => long(b"touch ", Verb::Touch),
        b"repl" => long(b"replace ", Verb::Replace),
        b"appe" => long(b"append ", Verb::Append),
        b"prep" => long(b"prepend ", Verb::Prepend),
        _ => None,
    }
}

/// `get` and `gets` with any number of keys.
fn keys(mut cursor: Cursor<'_>, verb: Verb, s: &mut Scratch) -> Option<Parsed> {
    let first = cursor.key()?;
    let mut all = Request {
        raw: true,
        key: Some(first),
        format: Format::Text,
        ..request(verb, traits(verb), 0)
    };
    if cursor.space().is_some() {
        s.keys.push(first.0 as usize..first.1 as usize);
        loop {
            let (from, to) = cursor.key()?;
            s.keys.push(from as usize..to as usize);
            if cursor.space().is_none() {
                break;
            }
        }
        s.line.extend_from_slice(match verb {
            Verb::Gets => b"gets",
            _ => b"get",
        });
        (all.raw, all.key) = (false, None);
    }
    cursor.end()?;
    all.head = cursor.at;
    Some(Parsed::Request(all))
}

struct Cursor<'a> {
    buf: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    /// A key of good length, without control bytes.
    fn key(&mut self) -> Option<(u32, u32)> {
        let from = self.at;
        self.at = word_end(self.buf, from)?;
        let good = (1..=KEY_MAX).contains(&(self.at - from));
        good.then_some((from as u32, self.at as u32))
    }

    fn space(&mut self) -> Option<()> {
        let good = self.buf.get(self.at) == Some(&b' ');
        self.at += usize::from(good);
        good.then_some(())
    }

    /// A number of at most 19 digits, not above `max`, written as magent would write it.
    fn number(&mut self, max: u64) -> Option<u64> {
        let digits = self.buf.get(self.at..)?;
        let mut n = 0u64;
        let mut len = 0;
        while let Some(digit @ b'0'..=b'9') = digits.get(len) {
            if len == 19 {
                return None;
            }
            n = n * 10 + u64::from(digit - b'0');
            len += 1;
        }
        let plain = len == 1 || (len > 1 && digits[0] != b'0');
        self.at += len;
        (plain && n <= max).then_some(n)
    }

    fn argument(&mut self, max: u64) -> Option<u64> {
        self.space()?;
        self.number(max)
    }

    fn end(&mut self) -> Option<()> {
        let good = self.buf.get(self.at..)?.starts_with(b"\r\n");
        self.at += 2;
        good.then_some(())
    }
}
