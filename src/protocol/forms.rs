//! The upstream request lines that magent itself makes: mirrors, deletes, fetches, copies, and what
//! they carry over.
//!
//! ```text
//!              primary answered ──mirror──▶ the line for the backup       (mirror.rs)
//! absent there ──write_fetch──▶ backup ──parse_fetched──▶ write_copy      (fetched.rs)
//! answers and lines that cross farms ──mark_cas, flip_cas──▶              (cas.rs)
//! the same where others write too ──ask_cas, watched──▶                   (again.rs)
//! ```
//!
//! An *upstream request line* is what was sent to a server: single spaces, `\r\n`, the key in the
//! second token (in the third of gat and gats). Everything here is a pure function that appends to
//! `out`.

mod again;
mod cas;
mod fetched;
mod mirror;

pub use again::{Told, Watched, ask_cas, expires, told, told_of_look, watched, write_delete_copy};
pub use cas::{BACKUP_CAS, flip_cas, mark_cas};
pub use fetched::{
    Fetched, answer_fetched, answer_with_win, is_plain_read, parse_fetched, write_copy,
    write_fetch, write_give_back, write_use,
};
pub use mirror::{Mirror, mirror, mirror_ok};

use super::{Item, Reply, Status, Verb, base64};

/// The longest key whose base64 is a key that memcached takes (250 bytes), in bytes.
const MAX_BINARY_KEY: usize = 186;

/// memcached's longest key, in bytes.
const MAX_KEY: usize = 250;

/// The key as it stands in an upstream request line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct KeyToken<'a> {
    /// Its bytes, or their base64.
    pub token: &'a [u8],
    /// It is base64.
    base64: bool,
}

/// The key of an upstream request line; the first one if there are several.
fn key_token(verb: Verb, line: &[u8]) -> KeyToken<'_> {
    let mut words = tokens(line);
    let token = words.nth(key_index(verb)).unwrap_or(b"");
    let base64 = verb.is_meta() && {
        // The key of a meta line is its second token.
        let mut flags = words.skip(flags_index(verb) - 2);
        flags.any(|flag| flag[0] == b'b')
    };
    KeyToken { token, base64 }
}

/// Appends the bytes that the key of an upstream request line means.
pub fn raw_key(verb: Verb, line: &[u8], out: &mut Vec<u8>) {
    let key = key_token(verb, line);
    if !key.base64 || !base64::decode(key.token, out) {
        out.extend_from_slice(key.token);
    }
}

/// Calls `f` with the bytes that each key of an upstream request line means.
pub fn each_key(verb: Verb, line: &[u8], mut f: impl FnMut(&[u8])) {
    if matches!(verb, Verb::Get | Verb::Gets | Verb::Gat | Verb::Gats) {
        tokens(line).skip(key_index(verb)).for_each(f);
    } else {
        let mut key = Vec::new();
        raw_key(verb, line, &mut key);
        f(&key);
    }
}

/// The verb of a line that [`write_delete`] made.
pub fn verb_of_delete(line: &[u8]) -> Verb {
    if line.starts_with(b"md ") {
        Verb::MetaDelete
    } else {
        Verb::Delete
    }
}

/// Appends the line that deletes a key.
pub fn write_delete(raw_key: &[u8], out: &mut Vec<u8>) -> Verb {
    if needs_base64(raw_key) {
        write_meta(b"md ", raw_key, b"\r\n", out);
        Verb::MetaDelete
    } else {
        extend(out, &[b"delete ", raw_key, b"\r\n"]);
        Verb::Delete
    }
}

/// Appends the line that asks if a key is there and changes nothing: `mg` would count as a fetch
/// and take the right to refresh a stale value. (Later servers want the `b` of `me` twice.)
pub fn write_look(raw_key: &[u8], out: &mut Vec<u8>) -> Verb {
    let end: &[u8] = if needs_base64(raw_key) {
        b" b\r\n"
    } else {
        b"\r\n"
    };
    write_meta(b"me ", raw_key, end, out);
    Verb::MetaDebug
}

/// Appends the line that asks one key of an upstream request line with several keys alone.
pub fn write_single(verb: Verb, line: &[u8], key: &[u8], out: &mut Vec<u8>) {
    for token in tokens(line).take(key_index(verb)) {
        extend(out, &[token, b" "]);
    }
    extend(out, &[key, b"\r\n"]);
}

/// Appends the answer that a server without the key gives. Only for what depends on the key:
/// a set has no such answer and gets that of a replace. Returns what it says.
pub fn absent_answer(verb: Verb, line: &[u8], out: &mut Vec<u8>) -> Status {
    let has_cas = || flags(verb, line).any(|flag| flag.starts_with(b"C"));
    let appends = || matches!(set_mode(line), b'A' | b'P');
    let answer: &[u8] = match verb {
        Verb::Get | Verb::Gets | Verb::Gat | Verb::Gats => b"END\r\n",
        Verb::Incr | Verb::Decr | Verb::Touch | Verb::Delete | Verb::Cas => b"NOT_FOUND\r\n",
        Verb::Set | Verb::Add | Verb::Replace | Verb::Append | Verb::Prepend => b"NOT_STORED\r\n",
        Verb::MetaGet | Verb::MetaDebug => b"EN\r\n",
        Verb::MetaDelete | Verb::MetaArithmetic => b"NF\r\n",
        // With a cas number set and replace are a cas; append and prepend are not.
        Verb::MetaSet if has_cas() && !appends() => b"NF",
        Verb::MetaSet => b"NS",
        Verb::FlushAll | Verb::Version | Verb::Stats => b"",
    };
    out.extend_from_slice(answer);
    if verb == Verb::MetaSet {
        // What was not stored has a cas number all the same.
        let with_cas = flags(verb, line).any(|flag| flag == b"c");
        out.extend_from_slice(if with_cas { b" c0\r\n" } else { b"\r\n" });
    }
    if out.starts_with(b"NS") || out.starts_with(b"NOT_S") {
        Status::NotStored
    } else {
        Status::Absent
    }
}

/// True if an `ma` line takes away.
pub fn is_decrement(line: &[u8]) -> bool {
    flags(Verb::MetaArithmetic, line).any(|flag| matches!(flag, b"MD" | b"Md" | b"M-"))
}

/// True for writes that change nothing where the key is absent, and never remove it: an `add` that
/// overtakes them does no harm.
pub fn leaves_absent(verb: Verb, line: &[u8]) -> bool {
    match verb {
        Verb::Incr | Verb::Decr | Verb::Append | Verb::Prepend => true,
        Verb::MetaArithmetic => !Letters::of(verb, line).has_one_of(b"NT"),
        Verb::MetaSet => {
            let letters = Letters::of(verb, line);
            let appends = letters.has(b'M') && matches!(set_mode(line), b'A' | b'P');
            appends && !letters.has_one_of(b"NT")
        }
        _ => false,
    }
}

/// Calls `f` with each key of a get, gets, gat or gats line, in order.
pub fn each_key_of_many(line: &[u8], f: impl FnMut(&[u8])) {
    tokens(line).skip(words_before_keys(line)).for_each(f);
}

/// What comes before the keys of a get, gets, gat or gats line, without the space behind it.
pub fn before_keys(line: &[u8]) -> &[u8] {
    let mut spaces = line.iter().enumerate().filter(|(_, b)| **b == b' ');
    let end = spaces.nth(words_before_keys(line) - 1);
    &line[..end.map_or(0, |(i, _)| i)]
}

fn words_before_keys(line: &[u8]) -> usize {
    if line.starts_with(b"gat") { 2 } else { 1 }
}

/// Calls `f` with each key of a get, gets, gat or gats line, in order, and with its value in the
/// reply, if there is one.
pub fn multi_keys<'a>(
    line: &'a [u8],
    reply: &Reply<'_>,
    mut f: impl FnMut(&'a [u8], Option<&Item>),
) {
    let mut items = reply.items.iter().peekable();
    for key in tokens(line).skip(words_before_keys(line)) {
        let found = items.next_if(|item| {
            let at = reply.at + item.at;
            let value = reply.source.slice(at..at + item.line);
            let rest = value.strip_prefix(b"VALUE ").unwrap_or_default();
            rest.starts_with(key) && rest.get(key.len()) == Some(&b' ')
        });
        f(key, found);
    }
}

/// True if a key that a server holds can be asked for: it may be too long for the base64 that its bytes
/// need.
pub fn can_be_asked(raw_key: &[u8]) -> bool {
    let is_key = (1..=MAX_KEY).contains(&raw_key.len());
    is_key && (raw_key.len() <= MAX_BINARY_KEY || !raw_key.iter().any(|&b| is_odd(b)))
}

/// Bytes that a key cannot hold as text.
fn is_odd(b: u8) -> bool {
    b <= b' ' || b == 0x7f
}

/// Keys with such bytes might come from a binary client; they never travel as they are. A
/// longer one has no base64 that a server takes, and can only have come as text.
pub fn needs_base64(raw_key: &[u8]) -> bool {
    raw_key.len() <= MAX_BINARY_KEY && raw_key.iter().any(|&b| is_odd(b))
}

/// Appends a meta line: the command, the key (with `b` if it must be base64), the rest.
fn write_meta(command: &[u8], raw_key: &[u8], rest: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(command);
    if needs_base64(raw_key) {
        base64::encode(raw_key, out);
        out.extend_from_slice(b" b");
    } else {
        out.extend_from_slice(raw_key);
    }
    out.extend_from_slice(rest);
}

/// Which token of the line is the key.
fn key_index(verb: Verb) -> usize {
    if matches!(verb, Verb::Gat | Verb::Gats) {
        2
    } else {
        1
    }
}

/// Which token of a meta line is its first flag.
fn flags_index(verb: Verb) -> usize {
    if verb == Verb::MetaSet { 3 } else { 2 }
}

/// The flags of a meta line, letter and token.
fn flags(verb: Verb, line: &[u8]) -> impl Iterator<Item = &[u8]> {
    tokens(line).skip(flags_index(verb))
}

/// The letters of a meta line's flags, a bit for each: a line is not gone through for each of them.
#[derive(Clone, Copy)]
struct Letters(u64);

impl Letters {
    fn of(verb: Verb, line: &[u8]) -> Letters {
        let (mut all, mut word, mut before) = (0, 0, 0);
        for b in line {
            if before == b' ' {
                word += 1;
                if word >= flags_index(verb) {
                    all |= Letters::bit(*b);
                }
            }
            before = *b;
        }
        Letters(all)
    }

    fn bit(letter: u8) -> u64 {
        // From A to z.
        let place = u32::from(letter.wrapping_sub(b'A'));
        1u64.checked_shl(place).unwrap_or(0)
    }

    fn has(self, letter: u8) -> bool {
        self.has_one_of(&[letter])
    }

    #[inline]
    fn has_one_of(self, letters: &[u8]) -> bool {
        self.0 & Letters::those(letters) != 0
    }

    /// True if there are no others than these.
    #[inline]
    fn are_among(self, letters: &[u8]) -> bool {
        self.0 & !Letters::those(letters) == 0
    }

    #[inline]
    fn those(letters: &[u8]) -> u64 {
        letters
            .iter()
            .fold(0, |all, letter| all | Letters::bit(*letter))
    }
}

/// The mode of an `ms` line in upper case, `S` if it names none.
fn set_mode(line: &[u8]) -> u8 {
    let mut flags = flags(Verb::MetaSet, line);
    let mode = flags.find_map(|flag| flag.strip_prefix(b"M"));
    mode.and_then(|m| m.first())
        .map_or(b'S', u8::to_ascii_uppercase)
}

/// The words of a line, without its end.
#[inline]
fn tokens(line: &[u8]) -> Tokens<'_> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    Tokens(line)
}

/// What is left of a line.
struct Tokens<'a>(&'a [u8]);

impl<'a> Iterator for Tokens<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        while let [b' ', rest @ ..] = self.0 {
            self.0 = rest;
        }
        if self.0.is_empty() {
            return None;
        }
        let end = self.0.iter().position(|b| *b == b' ');
        let (token, rest) = self.0.split_at(end.unwrap_or(self.0.len()));
        self.0 = rest;
        Some(token)
    }
}

/// A decimal number with nothing before or behind it.
fn number(token: &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for &b in token {
        let digit = b.is_ascii_digit().then(|| u64::from(b - b'0'))?;
        value = value.checked_mul(10)?.checked_add(digit)?;
    }
    (!token.is_empty()).then_some(value)
}

/// A number's decimal digits, without the formatting machinery.
struct Decimal {
    digits: [u8; 20],
    from: usize,
}

impl Decimal {
    fn new(mut value: u64) -> Decimal {
        let mut d = Decimal {
            digits: [b'0'; 20],
            from: 20,
        };
        loop {
            d.from -= 1;
            d.digits[d.from] = b'0' + (value % 10) as u8;
            value /= 10;
            if value == 0 {
                return d;
            }
        }
    }

    fn bytes(&self) -> &[u8] {
        &self.digits[self.from..]
    }
}

fn extend(out: &mut Vec<u8>, parts: &[&[u8]]) {
    for part in parts {
        out.extend_from_slice(part);
    }
}

#[cfg(test)]
mod tests;
