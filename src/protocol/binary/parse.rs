//! One binary request: is it well formed, and which meta command says the same.

use super::{Code, HEADER, Op, REQUEST, header, op};
use crate::protocol::text::scan::push_u64;
use crate::protocol::{
    BinaryFormat, Format, Limits, Local, Parsed, Request, Scratch, Traits, Verb, base64, is_hidden,
};

/// Longest key in bytes, as memcached has it.
const KEY_MAX: usize = 250;
/// Longest key in bytes whose base64 is still a key: 62 groups of 3 become 248 characters.
const CODED_KEY_MAX: usize = 186;
/// Seconds: an expiration up to here counts from now, a larger one from the epoch (30 days).
const RELATIVE_MAX: u32 = 60 * 60 * 24 * 30;
/// The expiration that forbids increment and decrement to create the key.
const NEVER_CREATE: u32 = u32::MAX;

/// A request whose head has arrived.
struct Packet<'a> {
    op: Op,
    format: BinaryFormat,
    extras: &'a [u8],
    key: &'a [u8],
    /// Bytes of extras, key and value as the header claims.
    body: u32,
    cas: u64,
}

impl<'a> Packet<'a> {
    /// `None` until header, extras and key are there.
    fn read(buf: &'a [u8]) -> Option<Packet<'a>> {
        let h: &[u8; HEADER] = buf.first_chunk()?;
        let key = usize::from(u16::from_be_bytes([h[2], h[3]]));
        let extras = usize::from(h[4]);
        let rest = &buf[HEADER..];
        if rest.len() < extras + key {
            return None;
        }
        let (extras, rest) = rest.split_at(extras);
        Some(Packet {
            op: op(h[1]),
            format: BinaryFormat {
                opcode: h[1],
                opaque: [h[12], h[13], h[14], h[15]],
            },
            extras,
            key: &rest[..key],
            body: u32::from_be_bytes([h[8], h[9], h[10], h[11]]),
            cas: u64::from_be_bytes([h[16], h[17], h[18], h[19], h[20], h[21], h[22], h[23]]),
        })
    }

    /// Bytes of header, extras and key.
    fn head(&self) -> usize {
        HEADER + self.extras.len() + self.key.len()
    }

    /// Bytes of the body behind the key; `None` if extras and key do not fit into the body.
    fn behind_key(&self) -> Option<u32> {
        self.body
            .checked_sub((self.extras.len() + self.key.len()) as u32)
    }

    /// What memcached asks of the three lengths. Where it does not look behind the key, the
    /// bytes there are taken for the next request, as it takes them.
    fn well_formed(&self, behind_key: u32) -> bool {
        let (extras, keyed) = (self.extras.len(), !self.key.is_empty());
        match self.op {
            Op::Get | Op::Delete => extras == 0 && keyed && behind_key == 0,
            Op::GetAndTouch | Op::Touch => extras == 4 && keyed,
            Op::Set | Op::Add | Op::Replace => extras == 8 && keyed,
            Op::Append | Op::Prepend | Op::Sasl => extras == 0 && keyed,
            Op::Increment | Op::Decrement => extras == 20 && keyed && behind_key == 0,
            Op::Quit | Op::Noop | Op::Version | Op::SaslMechanisms => self.body == 0,
            Op::Flush => !keyed && behind_key == 0 && (extras == 0 || extras == 4),
            Op::Stat => extras == 0,
            Op::Verbosity | Op::Unknown => true,
        }
    }

    /// The extras' big-endian u32 at `at`; 0 where they are too short.
    fn u32_at(&self, at: usize) -> u32 {
        let bytes = self.extras.get(at..).and_then(<[u8]>::first_chunk);
        bytes.map_or(0, |b| u32::from_be_bytes(*b))
    }

    /// The same for a u64.
    fn u64_at(&self, at: usize) -> u64 {
        let bytes = self.extras.get(at..).and_then(<[u8]>::first_chunk);
        bytes.map_or(0, |b| u64::from_be_bytes(*b))
    }
}

/// Parses the request at the start of `buf`. Its upstream request line goes to `s.line` (never
/// raw); a key that can't stand in a line goes to `s.key` and travels as base64. The value, if
/// there is one, has no `\r\n` behind it in the client's stream. `_searched` is for the text
/// parser.
pub fn parse(buf: &[u8], _searched: usize, limits: &Limits, s: &mut Scratch) -> Parsed {
    // memcached waits for a whole header before it looks at the first byte.
    if buf.len() >= HEADER && buf[0] != REQUEST {
        return Parsed::Close;
    }
    let Some(p) = Packet::read(buf) else {
        return Parsed::More;
    };
    s.line.clear();
    s.key.clear();
    s.keys.clear();
    s.answer.clear();
    let Some(behind_key) = p.behind_key() else {
        return own_answer(&p, Code::UnknownCommand, Then::Close, s);
    };
    if p.key.len() > KEY_MAX || !p.well_formed(behind_key) {
        return own_answer(&p, Code::Invalid, Then::Close, s);
    }
    match p.op {
        Op::Quit => local(&p, Local::Quit),
        Op::Version => local(&p, Local::Version),
        Op::Stat => local(&p, Local::Stats(p.key.to_vec())),
        Op::Flush if !limits.flush_all => own_answer(&p, Code::NotAllowed, Then::Swallow(0), s),
        Op::Flush => local(&p, Local::FlushAll(delay(p.u32_at(0)))),
        Op::Verbosity if p.extras.len() == 4 && p.body == 4 => local(&p, Local::Verbosity),
        Op::Noop => own_answer(&p, Code::Success, Then::Swallow(0), s),
        Op::Sasl | Op::SaslMechanisms => {
            own_answer(&p, Code::UnknownCommand, Then::Swallow(behind_key), s)
        }
        // memcached throws away as many bytes as the body has, although it has taken the
        // extras and the key already; so a client sees the same stream here.
        Op::Unknown | Op::Verbosity => {
            own_answer(&p, Code::UnknownCommand, Then::Swallow(p.body), s)
        }
        _ => translate(&p, behind_key as usize, limits, s),
    }
}

/// What follows magent's own answer.
enum Then {
    /// The connection is closed.
    Close,
    /// So many bytes are thrown away, unless they are too many for memcached's signed count.
    Swallow(u32),
}

/// An answer that needs nobody else: noop's success and every refusal.
fn own_answer(p: &Packet<'_>, code: Code, then: Then, s: &mut Scratch) -> Parsed {
    let text = code.text();
    s.answer
        .extend_from_slice(&header(&p.format, code, 0, 0, text.len(), 0));
    s.answer.extend_from_slice(text);
    let swallow = match then {
        Then::Swallow(n) if i32::try_from(n).is_ok() => n as usize,
        _ => 0,
    };
    Parsed::Answer {
        used: p.head(),
        swallow,
        close: matches!(then, Then::Close),
        drop_key: false,
    }
}

/// A request that magent answers once it has done it.
fn local(p: &Packet<'_>, what: Local) -> Parsed {
    Parsed::Local {
        used: p.head(),
        what,
        format: Format::Binary(p.format),
    }
}

/// A request for a server: writes its upstream request line.
fn translate(p: &Packet<'_>, behind_key: usize, limits: &Limits, s: &mut Scratch) -> Parsed {
    let value = p.op.stores().then_some(behind_key);
    let coded = !travels_raw(p.key);
    if coded && (p.key.len() > CODED_KEY_MAX || is_hidden(p.key)) {
        return swallowed(p, Code::Invalid, value, s);
    }
    if value.is_some_and(|v| v > limits.max_value) {
        return too_large(p, coded, value, s);
    }
    let (verb, command) = match p.op {
        Op::Get | Op::GetAndTouch | Op::Touch => (Verb::MetaGet, b"mg "),
        Op::Delete => (Verb::MetaDelete, b"md "),
        Op::Increment | Op::Decrement => (Verb::MetaArithmetic, b"ma "),
        _ => (Verb::MetaSet, b"ms "),
    };
    s.line.extend_from_slice(command);
    push_key(p.key, coded, s);
    if let Some(len) = value {
        push_flag(b" ", len as u64, &mut s.line);
    }
    if coded {
        s.line.extend_from_slice(b" b");
    }
    let traits = push_flags(p, &mut s.line);
    s.line.extend_from_slice(b"\r\n");
    let key_at = (HEADER + p.extras.len()) as u32;
    Parsed::Request(Request {
        verb,
        traits,
        head: p.head(),
        data: value.unwrap_or(0),
        value,
        raw: false,
        key: (!coded).then_some((key_at, key_at + p.key.len() as u32)),
        format: Format::Binary(p.format),
    })
}

/// Refuses a request and throws its value away, whatever its length.
fn swallowed(p: &Packet<'_>, code: Code, value: Option<usize>, s: &mut Scratch) -> Parsed {
    let mut parsed = own_answer(p, code, Then::Swallow(0), s);
    if let (Parsed::Answer { swallow, .. }, Some(value)) = (&mut parsed, value) {
        *swallow = value;
    }
    parsed
}

/// A value over the limit: memcached drops the old one where it was to be set (with cas, too).
fn too_large(p: &Packet<'_>, coded: bool, value: Option<usize>, s: &mut Scratch) -> Parsed {
    let mut parsed = swallowed(p, Code::TooLarge, value, s);
    if let (Op::Set, Parsed::Answer { drop_key, .. }) = (p.op, &mut parsed) {
        *drop_key = true;
        let (command, end): (&[u8], &[u8]) = if coded {
            (b"md ", b" b\r\n")
        } else {
            (b"delete ", b"\r\n")
        };
        s.line.extend_from_slice(command);
        push_key(p.key, coded, s);
        s.line.extend_from_slice(end);
    }
    parsed
}

/// True if no byte of the key ends a token or a line: it may stand in an upstream request line as
/// it is.
fn travels_raw(key: &[u8]) -> bool {
    // No early exit: the whole key in a few vector steps.
    !key.iter()
        .fold(false, |bad, &b| bad | (b <= b' ') | (b == 0x7f))
}

fn push_key(key: &[u8], coded: bool, s: &mut Scratch) {
    if coded {
        s.key.extend_from_slice(key);
        base64::encode(key, &mut s.line);
    } else {
        s.line.extend_from_slice(key);
    }
}

/// The meta flags that say what the extras and the opcode say.
fn push_flags(p: &Packet<'_>, line: &mut Vec<u8>) -> Traits {
    match p.op {
        Op::Get => {
            line.extend_from_slice(b" v f c");
            Traits::NEEDS_KEY.with(Traits::RETURNS_CAS)
        }
        Op::GetAndTouch | Op::Touch => {
            let returned: &[u8] = if p.op == Op::Touch {
                b" f c"
            } else {
                b" v f c"
            };
            line.extend_from_slice(returned);
            push_flag(b" T", expiration(p.u32_at(0)), line);
            Traits::NEEDS_KEY
                .with(Traits::RETURNS_CAS)
                .with(Traits::WRITES)
        }
        Op::Delete => Traits::WRITES
            .with(Traits::DELETES)
            .with(push_cas(p.cas, line)),
        Op::Increment | Op::Decrement => push_arithmetic(p, line),
        _ => push_store(p, line),
    }
}

fn push_arithmetic(p: &Packet<'_>, line: &mut Vec<u8>) -> Traits {
    let mode: &[u8] = if p.op == Op::Increment {
        b" MI"
    } else {
        b" MD"
    };
    line.extend_from_slice(mode);
    push_flag(b" D", p.u64_at(0), line);
    line.extend_from_slice(b" v c");
    let mut traits = Traits::WRITES.with(Traits::RETURNS_CAS);
    if p.u32_at(16) == NEVER_CREATE {
        traits = traits.with(Traits::NEEDS_KEY);
    } else {
        push_flag(b" N", expiration(p.u32_at(16)), line);
        push_flag(b" J", p.u64_at(8), line);
        traits = traits.with(Traits::CREATES);
    }
    traits.with(push_cas(p.cas, line))
}

/// With a cas token set, add and replace are all the same to memcached: a compare and swap.
fn push_store(p: &Packet<'_>, line: &mut Vec<u8>) -> Traits {
    let (flags, seconds) = (p.u32_at(0), p.u32_at(4));
    if flags != 0 {
        push_flag(b" F", u64::from(flags), line);
    }
    if seconds != 0 {
        push_flag(b" T", expiration(seconds), line);
    }
    line.extend_from_slice(b" c");
    let (mode, traits): (&[u8], Traits) = match p.op {
        Op::Append => (b" MA", Traits::NEEDS_KEY),
        Op::Prepend => (b" MP", Traits::NEEDS_KEY),
        _ if p.cas != 0 => (b"", Traits::NEEDS_KEY),
        Op::Add => (b" ME", Traits::CREATES),
        Op::Replace => (b" MR", Traits::NEEDS_KEY),
        _ => (b"", Traits::SETS),
    };
    line.extend_from_slice(mode);
    traits
        .with(Traits::WRITES)
        .with(Traits::RETURNS_CAS)
        .with(push_cas(p.cas, line))
}

/// ` C…` for a token that is one; 0 means none.
fn push_cas(cas: u64, line: &mut Vec<u8>) -> Traits {
    if cas == 0 {
        return Traits::default();
    }
    push_flag(b" C", cas, line);
    Traits::SENDS_CAS
}

/// `name` and the decimal digits of `n`.
fn push_flag(name: &[u8], n: u64, line: &mut Vec<u8>) {
    line.extend_from_slice(name);
    push_u64(line, n);
}

/// An expiration as the text protocols can say it. Theirs is signed, and a negative one means
/// expired; in binary it is a time after 2038, so the last moment before that stands for it.
fn expiration(seconds: u32) -> u64 {
    u64::from(seconds.min(i32::MAX as u32))
}

/// By how many seconds a flush is delayed, or an absolute time; `None`: at once.
fn delay(seconds: u32) -> Option<u64> {
    match seconds {
        0 => None,
        1..=RELATIVE_MAX => Some(u64::from(seconds)),
        _ => Some(expiration(seconds)),
    }
}
