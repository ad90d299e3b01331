//! Lines and answers by which a copy is looked after, where others write the same keys.
//!
//! ```text
//!  set K 5 0 5 ──ask_cas──▶ ms K 5 F5 c ─▶ primary: HD c123
//!                          mirror: ms K 5 F5 ──watched──▶ ms K 5 F5 c ─▶ backup: HD c77
//!                          write_look: me K ─▶ primary: ME K exp=-1 … cas=123: done
//!                                                       anything else ──write_delete_copy──▶ md K C77 ─▶ backup
//! ```

use super::{Decimal, Letters, extend, flags, number, set_mode, tokens, write_meta};
use crate::protocol::Verb;

/// Appends the upstream request line that does what `line` does and has the new cas number answered; the data
/// block stays what it is. `None`, and nothing appended, if there is none: what it does takes no number, or
/// it asks for it already.
pub fn ask_cas(verb: Verb, line: &[u8], out: &mut Vec<u8>) -> Option<Verb> {
    let end = |out: &mut Vec<u8>| out.extend_from_slice(b" c\r\n");
    match verb {
        Verb::Set | Verb::Add | Verb::Replace | Verb::Cas => {
            let mut words = tokens(line);
            words.next();
            let mut next = || words.next().unwrap_or(b"0");
            let (key, client_flags, exptime, length) = (next(), next(), next(), next());
            extend(out, &[b"ms ", key, b" ", length]);
            match verb {
                Verb::Add => out.extend_from_slice(b" ME"),
                Verb::Replace => out.extend_from_slice(b" MR"),
                Verb::Cas => extend(out, &[b" C", next()]),
                _ => {}
            }
            for (letter, value) in [(b" F", client_flags), (b" T", exptime)] {
                if value != b"0" {
                    extend(out, &[letter, value]);
                }
            }
            end(out);
            Some(Verb::MetaSet)
        }
        Verb::Incr | Verb::Decr => {
            let mut words = tokens(line).skip(1);
            let mut next = || words.next().unwrap_or(b"0");
            extend(out, &[b"ma ", next(), b" D", next()]);
            if verb == Verb::Decr {
                out.extend_from_slice(b" MD");
            }
            out.extend_from_slice(b" v");
            end(out);
            Some(Verb::MetaArithmetic)
        }
        Verb::MetaSet | Verb::MetaArithmetic if !Letters::of(verb, line).has(b'c') => {
            out.extend_from_slice(line.strip_suffix(b"\r\n").unwrap_or(line));
            end(out);
            Some(verb)
        }
        _ => None,
    }
}

/// How a mirror is looked after.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Watched {
    /// It sets the value, and this time to live as memcached reads it.
    Set(i64),
    /// It sets a time to live.
    Touch(i64),
    /// It makes a number, which the primary's answer tells.
    Number,
    /// It deletes.
    Delete,
    /// What comes of it depends on what stands there, or no cas number tells of it: the key is to be
    /// deleted instead.
    Never,
}

/// Makes a mirror's line one whose answer tells what is needed.
pub fn watched(verb: Verb, line: &mut Vec<u8>) -> Watched {
    // The client's own cas number is the same on both servers, whoever's value it is.
    let letters = match verb.is_meta() {
        true => Letters::of(verb, line),
        false => Letters(0),
    };
    let chooses_cas = letters.has(b'E');
    let exptime = |line: &[u8]| {
        if !letters.has(b'T') {
            return Some(0);
        }
        let mut flags = flags(verb, line);
        let given = flags.find_map(|flag| flag.strip_prefix(b"T"));
        given.map_or(Some(0), exptime)
    };
    let watched = match verb {
        Verb::Delete => Watched::Delete,
        // What it leaves has no value, and is there.
        Verb::MetaDelete if letters.has(b'x') => Watched::Never,
        Verb::MetaDelete => Watched::Delete,
        Verb::MetaSet if chooses_cas => Watched::Never,
        Verb::MetaSet if letters.has(b'M') && matches!(set_mode(line), b'A' | b'P') => {
            Watched::Never
        }
        Verb::MetaSet => exptime(line).map_or(Watched::Never, Watched::Set),
        Verb::MetaArithmetic if chooses_cas => Watched::Never,
        Verb::MetaArithmetic => Watched::Number,
        Verb::MetaGet => exptime(line).map_or(Watched::Never, Watched::Touch),
        Verb::Touch => {
            let given = tokens(line).nth(2).and_then(self::exptime);
            given.map_or(Watched::Never, Watched::Touch)
        }
        // It was asked when nobody else was there.
        _ => Watched::Never,
    };
    let more: &[u8] = match watched {
        Watched::Set(_) => b" c\r\n",
        Watched::Number => b" t\r\n",
        _ => return watched,
    };
    line.truncate(line.len().saturating_sub(b"\r\n".len()));
    line.extend_from_slice(more);
    watched
}

/// What the flags of a meta answer tell.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Told {
    /// The item's cas number; 0 where servers count none.
    pub cas: Option<u64>,
    /// Seconds left to live; -1 for ever. (`me` tells them with a minus: there -1 may be one second.)
    pub ttl: Option<i64>,
}

/// Reads the first line of a meta answer.
pub fn told(first_line: &[u8]) -> Told {
    let mut told = Told::default();
    // The answer to most requests.
    if let Some((cas, b"" | b"\r\n")) = first_line.strip_prefix(b"HD c").and_then(digits) {
        told.cas = Some(cas);
        return told;
    }
    for token in tokens(first_line).skip(1) {
        match token {
            [b'c', n @ ..] => told.cas = number(n),
            [b't', n @ ..] => told.ttl = exptime(n),
            _ => {}
        }
    }
    told
}

/// The same for the answer to `me`; `None` if the key is not there.
pub fn told_of_look(first_line: &[u8]) -> Option<Told> {
    if let Some((ttl, cas)) = look_of_today(first_line) {
        return Some(Told {
            cas: Some(cas),
            ttl: Some(ttl),
        });
    }
    let mut tokens = tokens(first_line);
    tokens.next().filter(|code| *code == b"ME")?;
    let mut told = Told::default();
    for token in tokens.skip(1) {
        if let Some(n) = token.strip_prefix(b"exp=") {
            told.ttl = exptime(n);
        } else if let Some(n) = token.strip_prefix(b"cas=") {
            told.cas = number(n);
        }
        // What follows is of no interest.
        if told.cas.is_some() && told.ttl.is_some() {
            break;
        }
    }
    Some(told)
}

/// Time to live and cas number in the answer to `me` as memcached 1.6 writes it: `ME KEY exp=-1 la=0 cas=5 …`.
fn look_of_today(line: &[u8]) -> Option<(i64, u64)> {
    let rest = line.strip_prefix(b"ME ")?;
    let key_ends = rest.iter().position(|b| *b == b' ')?;
    let (ttl, rest) = signed(rest[key_ends..].strip_prefix(b" exp=")?)?;
    let (_, rest) = signed(rest.strip_prefix(b" la=")?)?;
    let (cas, rest) = digits(rest.strip_prefix(b" cas=")?)?;
    matches!(rest.first(), Some(b' ' | b'\r')).then_some((ttl, cas))
}

/// A decimal number of at most 19 digits at the start of a text, and what follows it.
#[inline]
fn digits(text: &[u8]) -> Option<(u64, &[u8])> {
    let (mut value, mut n) = (0u64, 0);
    while let Some(digit @ b'0'..=b'9') = text.get(n) {
        value = value.wrapping_mul(10).wrapping_add(u64::from(digit - b'0'));
        n += 1;
    }
    (1..20).contains(&n).then(|| (value, &text[n..]))
}

/// The same of a number that may be negative, of at most 18 digits.
#[inline]
fn signed(text: &[u8]) -> Option<(i64, &[u8])> {
    let (is_negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (value, rest) = digits(text)?;
    let value = i64::try_from(value).ok()?;
    Some((if is_negative { -value } else { value }, rest))
}

/// Appends the line that deletes a key if its item has this cas number.
pub fn write_delete_copy(raw_key: &[u8], cas: u64, out: &mut Vec<u8>) -> Verb {
    let cas = Decimal::new(cas);
    write_meta(
        b"md ",
        raw_key,
        &[b" C", cas.bytes(), b"\r\n"].concat(),
        out,
    );
    Verb::MetaDelete
}

/// When an item with this time to live expires, in seconds since the epoch: -1 for never, `unix` or before
/// if at once.
pub fn expires(exptime: i64, unix: u64) -> i64 {
    let unix = i64::try_from(unix).unwrap_or(i64::MAX);
    match exptime {
        0 => -1,
        i64::MIN..0 => 0,
        _ if exptime <= super::fetched::MAX_RELATIVE as i64 => unix.saturating_add(exptime),
        _ => exptime,
    }
}

/// A signed decimal number.
fn exptime(token: &[u8]) -> Option<i64> {
    match token.strip_prefix(b"-") {
        Some(n) => i64::try_from(number(n)?).ok().map(|n| -n),
        None => i64::try_from(number(token)?).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Verb::*;

    fn asked(verb: Verb, line: &str) -> Option<(Verb, String)> {
        let mut out = Vec::new();
        let verb = ask_cas(verb, line.replace('|', "\r\n").as_bytes(), &mut out);
        let out = String::from_utf8(out).unwrap().replace("\r\n", "|");
        assert_eq!(verb.is_some(), !out.is_empty(), "{line}");
        Some((verb?, out))
    }

    #[test]
    fn what_is_asked_in_text_is_asked_with_a_cas_number() {
        for (verb, line, want) in [
            (Set, "set k 0 0 5|", "ms k 5 c|"),
            (Set, "set k 7 100 5|", "ms k 5 F7 T100 c|"),
            (Set, "set k 0 -1 0|", "ms k 0 T-1 c|"),
            (Add, "add k 0 9 5|", "ms k 5 ME T9 c|"),
            (Replace, "replace k 1 0 5|", "ms k 5 MR F1 c|"),
            (Cas, "cas k 1 0 5 77|", "ms k 5 C77 F1 c|"),
            (Incr, "incr k 3|", "ma k D3 v c|"),
            (Decr, "decr k 3|", "ma k D3 MD v c|"),
            (MetaSet, "ms k 5 F1|", "ms k 5 F1 c|"),
            (MetaSet, "ms Zm9v 5 b MA|", "ms Zm9v 5 b MA c|"),
            (MetaArithmetic, "ma k N9 v|", "ma k N9 v c|"),
        ] {
            let verb_out = match verb {
                Incr | Decr | MetaArithmetic => MetaArithmetic,
                _ => MetaSet,
            };
            assert_eq!(asked(verb, line), Some((verb_out, want.into())), "{line}");
        }
        for (verb, line) in [
            (MetaSet, "ms k 5 c|"),
            (MetaArithmetic, "ma k c v|"),
            (Delete, "delete k|"),
            (MetaDelete, "md k|"),
            (Touch, "touch k 1|"),
            (Append, "append k 0 0 5|"),
            (Prepend, "prepend k 0 0 5|"),
            (MetaGet, "mg k T9|"),
        ] {
            assert_eq!(asked(verb, line), None, "{line}");
        }
    }

    #[test]
    fn a_mirror_s_answer_tells_what_its_look_needs() {
        let never = Watched::Never;
        for (verb, line, kind, want) in [
            (MetaSet, "ms k 5|", Watched::Set(0), "ms k 5 c|"),
            (MetaSet, "ms k 5 T9|", Watched::Set(9), "ms k 5 T9 c|"),
            (MetaSet, "ms k 5 E7|", never, ""),
            (MetaSet, "ms k 5 MA|", never, ""),
            (Append, "append k 0 0 5|", never, ""),
            (Set, "set k 0 0 5|", never, ""),
            (Touch, "touch k 9|", Watched::Touch(9), "touch k 9|"),
            (MetaGet, "mg k b T-1|", Watched::Touch(-1), "mg k b T-1|"),
            (Delete, "delete k|", Watched::Delete, "delete k|"),
            (MetaDelete, "md k x|", never, ""),
            (
                MetaArithmetic,
                "ma k D1 v|",
                Watched::Number,
                "ma k D1 v t|",
            ),
            (MetaArithmetic, "ma k E4 v|", never, ""),
        ] {
            let bytes = |text: &str| text.replace('|', "\r\n").into_bytes();
            let mut out = bytes(line);
            let was = watched(verb, &mut out);
            assert_eq!(was, kind, "{line}");
            if was != never {
                assert_eq!(out, bytes(want), "{line}");
            }
        }
    }

    #[test]
    fn answers_tell_cas_and_time_to_live() {
        let both = |cas, ttl| Told { cas, ttl };
        assert_eq!(told(b"HD c77"), both(Some(77), None));
        assert_eq!(told(b"VA 2 t-1 c0"), both(Some(0), Some(-1)));
        assert_eq!(told(b"HD"), Told::default());
        let line = b"ME k exp=-98 la=0 cas=123 fetch=no cls=1 size=63";
        assert_eq!(told_of_look(line), Some(both(Some(123), Some(-98))));
        let never = b"ME k exp=-1 la=0 cas=1 fetch=no cls=1 size=63";
        assert_eq!(told_of_look(never), Some(both(Some(1), Some(-1))));
        assert_eq!(told_of_look(b"EN"), None);
    }

    #[test]
    fn times_to_live_are_what_memcached_makes_of_them() {
        for (exptime, want) in [
            (0, -1),
            (-1, 0),
            (10, 1_000_010),
            (2_592_000, 3_592_000),
            (2_592_001, 2_592_001),
        ] {
            assert_eq!(expires(exptime, 1_000_000), want, "{exptime}");
        }
    }
}
