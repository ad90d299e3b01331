//! A value that was fetched from the backup because the warming primary lacks its key.

use super::{BACKUP_CAS, Decimal, extend, flags, key_token, number, tokens, write_meta};
use crate::buffer::{Queue, Source};
use crate::protocol::{Reply, Verb};

/// The longest time to live that memcached takes for a relative one, in seconds.
pub(super) const MAX_RELATIVE: u64 = 60 * 60 * 24 * 30;

/// The marks of a value that is stale or being refreshed, in the order memcached shows them.
const MARKS: [u8; 3] = *b"ZXW";

/// What the backup answered to [`write_fetch`]'s line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fetched {
    /// The client's flags.
    pub flags: u32,
    /// Seconds left to live; -1 for ever.
    pub ttl: i64,
    /// Length of the value in bytes, without its `\r\n`.
    pub value: usize,
    /// It came with `Z` (somebody is refreshing it), `X` (stale), `W` (the fetch won the
    /// right to refresh it).
    pub marks: [bool; 3],
    /// Its cas number; 0 if the server has none.
    pub cas: u64,
}

impl Fetched {
    /// True if it came without a mark: only then it may be copied.
    pub fn fresh(&self) -> bool {
        self.marks == [false; 3]
    }

    /// True if the fetch took the right to refresh it, which is to be given back.
    pub fn won(&self) -> bool {
        self.marks[2]
    }

    /// A client was shown it: others see from now on that somebody is refreshing it.
    pub fn hand_out(&mut self) {
        if std::mem::take(&mut self.marks[2]) {
            self.marks[0] = true;
        }
    }
}

/// Appends the line that fetches a value with all that a copy needs, and does not count as a use
/// of it.
pub fn write_fetch(raw_key: &[u8], out: &mut Vec<u8>) -> Verb {
    write_meta(b"mg ", raw_key, b" u f t v c\r\n", out);
    Verb::MetaGet
}

/// Appends the line that counts as a use of a key, and asks for nothing of it.
pub fn write_use(raw_key: &[u8], out: &mut Vec<u8>) -> Verb {
    write_meta(b"mg ", raw_key, b"\r\n", out);
    Verb::MetaGet
}

/// Appends the line that gives the right to refresh a stale value back: it is stale once more, if
/// it is still the one that was fetched.
pub fn write_give_back(raw_key: &[u8], fetched: &Fetched, out: &mut Vec<u8>) -> Verb {
    let cas = Decimal::new(fetched.cas);
    let flags = [b" I C", cas.bytes(), b"\r\n"].concat();
    write_meta(b"md ", raw_key, &flags, out);
    Verb::MetaDelete
}

/// Reads the first line of the answer to a fetch; `None` if it is none, or lacks something.
pub fn parse_fetched(first_line: &[u8]) -> Option<Fetched> {
    let mut tokens = tokens(first_line);
    tokens.next().filter(|&code| code == b"VA")?;
    let value = usize::try_from(number(tokens.next()?)?).ok()?;
    let (mut client_flags, mut ttl, mut marks, mut cas) = (None, None, [false; 3], 0);
    for token in tokens {
        match token {
            [b'f', n @ ..] => client_flags = Some(u32::try_from(number(n)?).ok()?),
            b"t-1" => ttl = Some(-1),
            [b'c', n @ ..] => cas = number(n)?,
            [b't', n @ ..] => ttl = Some(i64::try_from(number(n)?).ok()?),
            &[mark] => {
                if let Some(i) = MARKS.iter().position(|&m| m == mark) {
                    marks[i] = true;
                }
            }
            _ => {}
        }
    }
    Some(Fetched {
        flags: client_flags?,
        ttl: ttl?,
        value,
        marks,
        cas,
    })
}

/// Appends the line that copies a fetched value into the primary unless the key is there; the
/// value and `\r\n` go behind it. `None` (and nothing appended) if it must not be copied.
/// `unix_time` is in seconds; `with_cas`: the copy's cas number is answered.
pub fn write_copy(
    raw_key: &[u8],
    fetched: &Fetched,
    unix_time: u64,
    with_cas: bool,
    out: &mut Vec<u8>,
) -> Option<Verb> {
    let exptime = match u64::try_from(fetched.ttl) {
        _ if !fetched.fresh() => return None,
        Ok(0) => return None,
        Ok(ttl) if ttl <= MAX_RELATIVE => ttl,
        // memcached keeps 32 bits of it: a later time would be one long past.
        Ok(ttl) => unix_time.saturating_add(ttl).min(i32::MAX as u64),
        Err(_) => 0,
    };
    let (client_flags, exptime) = (Decimal::new(fetched.flags.into()), Decimal::new(exptime));
    let length = Decimal::new(fetched.value as u64);
    let (client_flags, exptime, length) = (client_flags.bytes(), exptime.bytes(), length.bytes());
    let is_encoded = super::needs_base64(raw_key);
    if is_encoded || with_cas {
        out.extend_from_slice(b"ms ");
        match is_encoded {
            true => super::base64::encode(raw_key, out),
            false => out.extend_from_slice(raw_key),
        }
        let b: &[u8] = if is_encoded { b" b" } else { b"" };
        let c: &[u8] = if with_cas { b" c\r\n" } else { b"\r\n" };
        extend(out, &[b" ", length, b, b" ME F", client_flags]);
        extend(out, &[b" T", exptime, c]);
        return Some(Verb::MetaSet);
    }
    extend(out, &[b"add ", raw_key, b" ", client_flags, b" ", exptime]);
    extend(out, &[b" ", length, b"\r\n"]);
    Some(Verb::Add)
}

/// Pushes what a server that holds the fetched value would answer to the read `line` of one
/// key. The value stands in `source` from `value_at` on, with its `\r\n` behind it. Its cas
/// number is one that never matches. False (and nothing pushed) if `line` does not read.
pub fn answer_fetched(
    verb: Verb,
    line: &[u8],
    fetched: &Fetched,
    source: Source,
    value_at: usize,
    out: &mut Queue,
) -> bool {
    let value = value_at..value_at + fetched.value + 2;
    match verb {
        Verb::Get | Verb::Gets | Verb::Gat | Verb::Gats => {
            out.push_slice(b"VALUE ");
            out.push_slice(key_token(verb, line).token);
            push_number(b" ", fetched.flags.into(), out);
            push_number(b" ", fetched.value as u64, out);
            if matches!(verb, Verb::Gets | Verb::Gats) {
                push_number(b" ", BACKUP_CAS, out);
            }
            out.push_slice(b"\r\n");
            out.push(source, value);
            out.push_slice(b"END\r\n");
        }
        Verb::MetaGet => {
            let with_value = flags(verb, line).any(|flag| flag.starts_with(b"v"));
            if with_value {
                push_number(b"VA ", fetched.value as u64, out);
            } else {
                out.push_slice(b"HD");
            }
            push_meta_flags(line, fetched, out);
            out.push_slice(b"\r\n");
            if with_value {
                out.push(source, value);
            }
        }
        _ => return false,
    }
    true
}

/// True if all that `line` asks of a key is what a fetch tells: it reads, and changes nothing.
pub fn is_plain_read(verb: Verb, line: &[u8]) -> bool {
    match verb {
        Verb::Get => true,
        Verb::MetaGet => flags(verb, line).all(|flag| b"bfhklOqstuv".contains(&flag[0])),
        _ => false,
    }
}

/// Pushes what the flags of an `mg` line ask for, in their order.
fn push_meta_flags(line: &[u8], fetched: &Fetched, out: &mut Queue) {
    let mut ttl = fetched.ttl;
    for flag in flags(Verb::MetaGet, line) {
        match flag[0] {
            // From here on the new time shows. An absolute one needs a clock: the old one stays.
            b'T' => match number(&flag[1..]) {
                Some(0) => ttl = -1,
                Some(new) if new <= MAX_RELATIVE => ttl = new as i64,
                _ => {}
            },
            b's' => push_number(b" s", fetched.value as u64, out),
            b't' => match u64::try_from(ttl) {
                Ok(seconds) => push_number(b" t", seconds, out),
                Err(_) => out.push_slice(b" t-1"),
            },
            b'c' => push_number(b" c", BACKUP_CAS, out),
            b'f' => push_number(b" f", fetched.flags.into(), out),
            b'l' => out.push_slice(b" l0"),
            b'h' => out.push_slice(b" h0"),
            _ => {}
        }
    }
    for (mark, _) in MARKS.iter().zip(fetched.marks).filter(|(_, on)| *on) {
        out.push_slice(&[b' ', *mark]);
    }
}

/// A server's answer to `mg` that tells that somebody else refreshes a stale value, as it is for whoever is to
/// refresh it himself. `None` if it does not tell that.
pub fn answer_with_win(reply: &Reply<'_>) -> Option<Queue> {
    let all = || tokens(reply.first_line()).skip(1);
    let [z, x, _] = MARKS.map(|mark| all().any(|token| token == [mark]));
    if !(z && x) {
        return None;
    }
    let mut out = Queue::new();
    out.push_slice(tokens(reply.first_line()).next()?);
    for token in all().filter(|token| *token != [MARKS[0]]) {
        out.push_slice(b" ");
        out.push_slice(token);
    }
    out.push_slice(&[b' ', MARKS[2]]);
    out.push_slice(b"\r\n");
    out.push(reply.source, reply.at + reply.line..reply.at + reply.len);
    Some(out)
}

fn push_number(before: &[u8], value: u64, out: &mut Queue) {
    out.push_slice(before);
    out.push_slice(Decimal::new(value).bytes());
}
