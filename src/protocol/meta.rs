//! Meta commands: `mg ms md ma mn me`.
//!
//! `q`, `k` and `O` are taken out and kept in the [`MetaFormat`]; everything else goes to the
//! server in the client's order, numbers as they were understood. [`answer`] puts the client's
//! own back into the answer. What is refused, how and in which order is memcached 1.6.18's.

mod answer;
#[cfg(test)]
mod tests;

pub use answer::answer;

use super::text::scan::{Words, parse_i32, parse_u32, parse_u64, push_i32, push_u64};
use super::text::{
    BAD_FORMAT, ERROR, KEY_MAX, LINE_MAX, TOO_LARGE, delete_line, refuse, request, value_len,
};
use super::{Format, Limits, MetaFormat, Parsed, Request, Scratch, Traits, Verb};
use super::{base64, is_hidden};

/// Words of a meta command at most, command and key included.
const WORDS_MAX: usize = 19;

/// Length of an opaque flag at most, its letter included.
const OPAQUE_MAX: usize = 32;

const BAD_TOKEN: &[u8] = b"CLIENT_ERROR bad token in command line format";
const BAD_OPAQUE: &[u8] = b"CLIENT_ERROR opaque token too long";
const INVALID: &[u8] = b"CLIENT_ERROR invalid flag";
/// What `md` and `ma` say of any bad flag.
const EITHER: &[u8] = b"CLIENT_ERROR invalid or duplicate flag";

/// The format of a meta command without any of the client's own flags.
const PLAIN: MetaFormat = MetaFormat {
    quiet: false,
    key_at: MetaFormat::NONE,
    opaque_at: MetaFormat::NONE,
    key_first: false,
    no_value: false,
    opaque_len: 0,
    opaque: [0; 32],
};

/// Reads a line whose command is two bytes long and starts with `m`; `used` is its length with
/// its end.
pub(super) fn parse(words: &Words<'_>, used: usize, limits: &Limits, s: &mut Scratch) -> Parsed {
    let meta = Meta {
        words,
        used,
        limits,
    };
    let made = match words.get(0) {
        b"mg" => meta.get(s),
        b"ms" => return meta.set(s),
        b"md" => meta.delete(s),
        b"ma" => meta.arithmetic(s),
        b"me" => meta.debug(s),
        b"mn" => Err(&b"MN"[..]),
        _ => Err(ERROR),
    };
    made.unwrap_or_else(|why| refuse(s, used, why))
}

/// What the flags of one command say.
struct Flags {
    /// The argument of `M`, 0 without.
    mode: u8,
    /// The argument of `C`.
    cas: Option<u64>,
    /// One bit for each letter that was seen.
    seen: u128,
    opaque_too_long: bool,
    /// There is a flag that only newer servers know.
    newer: bool,
    format: MetaFormat,
}

impl Flags {
    /// What to say when `why` is found: a server that does not know a flag says so, whatever
    /// else is wrong.
    fn blame(&self, unknown: Refusal, why: Refusal) -> Refusal {
        if self.newer { unknown } else { why }
    }

    fn has(&self, letter: u8) -> bool {
        self.seen >> letter & 1 == 1
    }

    fn cas_traits(&self) -> Traits {
        match self.cas {
            Some(0) | None => Traits::default(),
            Some(_) => Traits::SENDS_CAS,
        }
    }

    /// `if_seen` where `letter` was seen, else nothing.
    fn traits(&self, letter: u8, if_seen: Traits) -> Traits {
        match self.has(letter) {
            true => if_seen,
            false => Traits::default(),
        }
    }
}

type Refusal = &'static [u8];

/// One meta command's line.
struct Meta<'a> {
    words: &'a Words<'a>,
    used: usize,
    limits: &'a Limits,
}

impl Meta<'_> {
    fn get(&self, s: &mut Scratch) -> Result<Parsed, Refusal> {
        self.check(b"CLIENT_ERROR options flags are too long")?;
        let flags = self.flags(Verb::MetaGet, None, s)?;
        if flags.opaque_too_long {
            return Err(flags.blame(INVALID, BAD_OPAQUE));
        }
        let presence = match flags.has(b'N') {
            true => Traits::CREATES.with(Traits::WRITES),
            false => Traits::NEEDS_KEY,
        };
        let traits = presence
            .with(flags.traits(b'T', Traits::WRITES))
            .with(flags.traits(b'c', Traits::RETURNS_CAS));
        let all = self.request(Verb::MetaGet, traits, &flags);
        self.finish(all, s)
    }

    fn set(&self, s: &mut Scratch) -> Parsed {
        let mut known = None;
        let why = match self.set_within(&mut known, s) {
            Ok(parsed) => return parsed,
            Err(why) => why,
        };
        refuse(s, self.used, why);
        Parsed::Answer {
            used: self.used,
            // Once its length was understood the value is thrown away.
            swallow: known.map_or(0, |len: usize| len + 2),
            close: false,
            drop_key: false,
        }
    }

    fn set_within(&self, known: &mut Option<usize>, s: &mut Scratch) -> Result<Parsed, Refusal> {
        self.check(b"CLIENT_ERROR options flags too long")?;
        if self.words.len() == 2 {
            return Err(BAD_FORMAT);
        }
        let len = parse_i32(self.words.get(2)).and_then(value_len);
        let len = len.ok_or(BAD_FORMAT)?;
        *known = Some(len);
        let flags = self.flags(Verb::MetaSet, Some(len), s)?;
        let by_cas = match flags.cas {
            Some(_) => Traits::NEEDS_KEY,
            None => Traits::default(),
        };
        let grows = match flags.has(b'N') {
            true => Traits::CREATES,
            false => Traits::NEEDS_KEY,
        };
        let mode = match flags.mode {
            0 | b'S' => Traits::SETS.with(by_cas),
            b'E' => Traits::CREATES,
            b'R' => Traits::NEEDS_KEY,
            b'A' | b'P' => grows,
            _ => return Err(flags.blame(INVALID, b"CLIENT_ERROR invalid mode for ms M token")),
        };
        if flags.opaque_too_long {
            return Err(flags.blame(INVALID, BAD_OPAQUE));
        }
        if len > self.limits.max_value {
            if flags.newer {
                return Err(INVALID);
            }
            let encoded = flags.has(b'b');
            let drops = mode.has(Traits::SETS) && !(encoded && is_hidden(&s.key));
            return Ok(self.too_large(len, drops, encoded, s));
        }
        let traits = mode
            .with(Traits::WRITES)
            .with(flags.cas_traits())
            .with(flags.traits(b'c', Traits::RETURNS_CAS));
        let mut all = self.request(Verb::MetaSet, traits, &flags);
        (all.value, all.data) = (Some(len), len + 2);
        self.finish(all, s)
    }

    fn delete(&self, s: &mut Scratch) -> Result<Parsed, Refusal> {
        self.check(b"CLIENT_ERROR options flags too long")?;
        let flags = self.flags(Verb::MetaDelete, None, s);
        let flags = flags.map_err(|_| EITHER)?;
        if flags.opaque_too_long {
            return Err(flags.blame(EITHER, BAD_OPAQUE));
        }
        let kind = match flags.has(b'I') {
            true => Traits::NEEDS_KEY,
            false => Traits::DELETES,
        };
        let traits = kind.with(Traits::WRITES).with(flags.cas_traits());
        let all = self.request(Verb::MetaDelete, traits, &flags);
        self.finish(all, s)
    }

    fn arithmetic(&self, s: &mut Scratch) -> Result<Parsed, Refusal> {
        self.check(b"CLIENT_ERROR options flags too long")?;
        let flags = self.flags(Verb::MetaArithmetic, None, s);
        let mut flags = flags.map_err(|_| EITHER)?;
        if !matches!(flags.mode, 0 | b'I' | b'+' | b'D' | b'-') {
            return Err(flags.blame(EITHER, b"CLIENT_ERROR invalid mode for ma M token"));
        }
        if flags.opaque_too_long {
            return Err(flags.blame(EITHER, BAD_OPAQUE));
        }
        if !flags.has(b'v') {
            // The mirror must learn the number, the client did not ask for it.
            flags.format.no_value = true;
            s.line.extend_from_slice(b" v");
        }
        let presence = match flags.has(b'N') {
            true => Traits::CREATES,
            false => Traits::NEEDS_KEY,
        };
        let traits = presence
            .with(Traits::WRITES)
            .with(flags.cas_traits())
            .with(flags.traits(b'c', Traits::RETURNS_CAS));
        let all = self.request(Verb::MetaArithmetic, traits, &flags);
        self.finish(all, s)
    }

    /// `me` knows only `b`, and only as its first flag.
    fn debug(&self, s: &mut Scratch) -> Result<Parsed, Refusal> {
        let encoded = self.words.get(2) == b"b";
        if self.words.len() < 2 || self.words.get(1).len() > KEY_MAX || !self.key(encoded, s) {
            return Err(BAD_FORMAT);
        }
        if encoded {
            s.line.extend_from_slice(b" b");
        }
        let mut all = request(Verb::MetaDebug, Traits::NEEDS_KEY, self.used);
        all.key = (!encoded).then(|| self.words.range(1));
        all.format = Format::Meta(PLAIN);
        self.finish(all, s)
    }

    /// What all but `me` check before they look at the flags.
    fn check(&self, too_many: Refusal) -> Result<(), Refusal> {
        if self.words.len() < 2 {
            return Err(ERROR);
        }
        if self.words.get(1).len() > KEY_MAX {
            return Err(BAD_FORMAT);
        }
        if self.words.len() > WORDS_MAX {
            return Err(too_many);
        }
        Ok(())
    }

    /// Starts the upstream request line with command and key; false if the key can't be decoded.
    fn key(&self, encoded: bool, s: &mut Scratch) -> bool {
        s.line.extend_from_slice(self.words.get(0));
        s.line.push(b' ');
        if !encoded {
            s.line.extend_from_slice(self.words.get(1));
            return true;
        }
        let good = base64::decode(self.words.get(1), &mut s.key);
        base64::encode(&s.key, &mut s.line);
        good
    }

    /// Reads the flags and writes the upstream request line, all but its end. `len` is the value's.
    fn flags(&self, verb: Verb, len: Option<usize>, s: &mut Scratch) -> Result<Flags, Refusal> {
        let first = if len.is_some() { 3 } else { 2 };
        let encoded = self.words.from(first).any(|word| word[0] == b'b');
        let decoded = self.key(encoded, s);
        if let Some(len) = len {
            s.line.push(b' ');
            push_u64(&mut s.line, len as u64);
        }
        let mut flags = Flags {
            mode: 0,
            cas: None,
            seen: 0,
            opaque_too_long: false,
            newer: false,
            format: PLAIN,
        };
        // Of several errors memcached tells the last, but ends at once at a flag that it
        // does not know or has seen before.
        let (mut failed, mut why) = (!decoded, BAD_FORMAT);
        let mut returned = 0;
        for word in self.words.from(first) {
            let letter = word[0];
            if letter >= 127 || flags.has(letter) {
                return Err(flags.blame(INVALID, b"CLIENT_ERROR duplicate flag"));
            }
            flags.seen |= 1 << letter;
            if letter == b'b' && !decoded {
                why = b"CLIENT_ERROR error decoding key";
            } else if let Err(text) = flags.one(word, returned, &mut s.line) {
                failed = true;
                // A bad `F` leaves the text as it was.
                why = if text.is_empty() { why } else { text };
                if text == INVALID {
                    return Err(why);
                }
            }
            returned += u8::from(returns_token(verb, letter));
        }
        match failed {
            true => Err(flags.blame(INVALID, why)),
            false => Ok(flags),
        }
    }

    fn request(&self, verb: Verb, traits: Traits, flags: &Flags) -> Request {
        let mut all = request(verb, traits, self.used);
        all.key = (!flags.has(b'b')).then(|| self.words.range(1));
        all.format = Format::Meta(flags.format);
        all
    }

    fn finish(&self, all: Request, s: &mut Scratch) -> Result<Parsed, Refusal> {
        if all.key.is_none() && is_hidden(&s.key) {
            return Err(BAD_FORMAT);
        }
        s.line.extend_from_slice(b"\r\n");
        if s.line.len() > LINE_MAX {
            return Err(BAD_FORMAT);
        }
        Ok(Parsed::Request(all))
    }

    /// A value over `-I`; in set mode the old one is dropped, as memcached does.
    fn too_large(&self, len: usize, drop_key: bool, encoded: bool, s: &mut Scratch) -> Parsed {
        refuse(s, self.used, TOO_LARGE);
        s.line.clear();
        if drop_key && encoded {
            s.line.extend_from_slice(b"md ");
            base64::encode(&s.key, &mut s.line);
            s.line.extend_from_slice(b" b\r\n");
        } else if drop_key {
            delete_line(self.words.get(1), s);
        }
        Parsed::Answer {
            used: self.used,
            swallow: len + 2,
            close: false,
            drop_key,
        }
    }
}

impl Flags {
    /// Checks one flag and writes it to the upstream request line, or keeps it where it is the
    /// client's own. `returned` counts the flags before it that return a token.
    fn one(&mut self, word: &[u8], returned: u8, line: &mut Vec<u8>) -> Result<(), Refusal> {
        let (letter, argument) = (word[0], &word[1..]);
        match letter {
            b'q' => self.format.quiet = true,
            b'k' => {
                self.format.key_at = returned;
                self.format.key_first = self.format.opaque_at == MetaFormat::NONE;
            }
            b'O' => self.opaque(argument, returned),
            b'N' | b'T' | b'R' => {
                let n = parse_i32(argument).ok_or(BAD_TOKEN)?;
                line.extend_from_slice(&[b' ', letter]);
                push_i32(line, n);
            }
            b'F' | b'C' | b'J' | b'D' => {
                let n = self.number(letter, argument)?;
                line.extend_from_slice(&[b' ', letter]);
                push_u64(line, n);
            }
            b'M' => match argument {
                [mode] => {
                    self.mode = *mode;
                    line.extend_from_slice(&[b' ', b'M', *mode]);
                }
                _ => return Err(b"CLIENT_ERROR incorrect length for M token"),
            },
            // What is behind these letters memcached does not look at.
            b'b' | b'l' | b's' | b't' | b'c' | b'f' | b'v' | b'h' | b'u' | b'I' => {
                line.extend_from_slice(&[b' ', letter]);
            }
            _ => {
                let known = matches!(letter, b'P' | b'L');
                // A newer server may know it.
                let may_pass =
                    letter.is_ascii_alphabetic() && word.iter().all(u8::is_ascii_graphic);
                if !known && !may_pass {
                    return Err(INVALID);
                }
                self.newer |= !known;
                line.push(b' ');
                line.extend_from_slice(word);
            }
        }
        Ok(())
    }

    /// The argument of a flag with an unsigned number.
    fn number(&mut self, letter: u8, argument: &[u8]) -> Result<u64, Refusal> {
        match letter {
            b'F' => parse_u32(argument).map(u64::from).ok_or(b""),
            b'C' => {
                self.cas = parse_u64(argument);
                self.cas.ok_or(BAD_TOKEN)
            }
            b'J' => parse_u64(argument).ok_or(b"CLIENT_ERROR invalid numeric initial value"),
            _ => parse_u64(argument).ok_or(b"CLIENT_ERROR invalid numeric delta value"),
        }
    }

    fn opaque(&mut self, token: &[u8], returned: u8) {
        if token.len() >= OPAQUE_MAX {
            self.opaque_too_long = true;
            return;
        }
        self.format.opaque_at = returned;
        self.format.opaque_len = token.len() as u8;
        self.format.opaque[..token.len()].copy_from_slice(token);
    }
}

/// True for the flags that put a token into a good answer to `verb`. Of a flag that only newer
/// servers know it is assumed.
fn returns_token(verb: Verb, letter: u8) -> bool {
    match letter {
        b'c' => verb != Verb::MetaDelete,
        b't' => matches!(verb, Verb::MetaGet | Verb::MetaArithmetic),
        b's' | b'f' | b'l' | b'h' => verb == Verb::MetaGet,
        b'b' | b'N' | b'T' | b'R' | b'O' | b'P' | b'L' | b'k' | b'v' | b'u' | b'q' => false,
        b'F' | b'C' | b'M' | b'J' | b'D' | b'I' => false,
        _ => true,
    }
}
