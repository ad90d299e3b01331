//! Finds the end of one reply and says what it means.
//!
//! ```text
//! VALUE a 0 5\r\n hello\r\n VALUE b 0 2\r\n hi\r\n END\r\n
//! └─── line ────┘└─ data ─┘└─── line ────┘└ data ┘└ last line
//! ```
//!
//! A reply is lines, some with a data block behind them. Lines are looked at only when they
//! are whole; data is counted and not touched. A line that the request cannot be answered with
//! means that server and proxy are out of step: then nothing on that link can be trusted.

use super::text::scan::word_end;
use super::{Item, Status, Verb};

/// Longest line that is waited for, in bytes with its end. memcached's are below 600.
const MAX_LINE: usize = 2048;

/// Largest value that is believed, in bytes. memcached's own bound is 1 GiB.
const MAX_VALUE: u64 = 1 << 31;

/// A scanner at rest keeps room for this many items: more than most multi-gets have.
const KEEP_ITEMS: usize = 1024;

/// What [`Scan::feed`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// The reply goes on.
    More {
        /// Bytes that need not be shown again.
        used: usize,
    },
    /// The reply is whole.
    Whole {
        /// Bytes of it in what was shown last.
        used: usize,
        /// Length of its first line with its end.
        line: usize,
        /// What it says.
        status: Status,
    },
    /// Not an answer to this request, and why.
    Bad(&'static str),
}

/// The scanner of one reply, fed with its bytes as they come. Kept and reused for the next one.
#[derive(Default, Debug)]
pub struct Scan {
    /// The values of a classic get so far.
    pub items: Vec<Item>,
    /// Bytes of the reply that are done with.
    seen: usize,
    /// Length of the first line; 0 until it is there.
    line: usize,
    /// Bytes of the data block and its `\r\n` still to come.
    missing: usize,
    /// The reply is whole behind the data block.
    last: Option<Last>,
    /// Where in the upstream request line the key of the next `VALUE` may stand; 0 before the
    /// first.
    cursor: usize,
}

/// What a reply says that ends with a data block.
#[derive(Clone, Copy, Debug)]
enum Last {
    /// The value of `mg`.
    Value,
    /// The number of `ma`, as far as its digits are there.
    Number(Digits),
}

/// A number that may come cut into pieces.
#[derive(Clone, Copy, Default, Debug)]
struct Digits {
    value: u64,
    any: bool,
    spaces: bool,
}

impl Digits {
    /// Takes more of the number; false if this is none. Spaces may follow it, as in `incr`.
    fn feed(&mut self, bytes: &[u8]) -> bool {
        bytes.iter().all(|&b| match b {
            b'0'..=b'9' if !self.spaces => {
                self.any = true;
                let value = self.value.checked_mul(10);
                let value = value.and_then(|v| v.checked_add(u64::from(b - b'0')));
                self.value = value.unwrap_or(0);
                value.is_some()
            }
            b' ' if self.any => {
                self.spaces = true;
                true
            }
            _ => false,
        })
    }
}

/// One line, as far as the reply's course goes.
enum Line {
    /// Others follow.
    Between,
    /// A data block of so many bytes follows, then another line.
    Value { value: usize, cursor: usize },
    /// A data block of so many bytes follows and ends the reply.
    Data(usize),
    /// It ends the reply.
    End(Status),
}

impl Scan {
    /// Forgets everything: the next byte is a reply's first.
    pub fn reset(&mut self) {
        self.items.clear();
        if self.items.capacity() > KEEP_ITEMS {
            self.items = Vec::new();
        }
        self.seen = 0;
        self.line = 0;
        self.missing = 0;
        self.last = None;
        self.cursor = 0;
    }

    /// How many bytes of the data block that has begun are still to come, with its `\r\n`;
    /// 0 outside of one.
    pub fn missing(&self) -> usize {
        self.missing
    }

    /// How many bytes of the reply were used so far.
    pub fn seen(&self) -> usize {
        self.seen
    }

    /// Goes on with the reply to `request_line`. `buf` holds its bytes from where the last call's
    /// `used` ended, and possibly more behind its end. After `Whole` and `Bad` it wants a
    /// [`Scan::reset`].
    pub fn feed(&mut self, verb: Verb, request_line: &[u8], buf: &[u8]) -> Progress {
        let mut used = 0;
        loop {
            if self.missing > 0 {
                match self.data(&buf[used..]) {
                    Ok(n) => used += n,
                    Err(why) => return Progress::Bad(why),
                }
                if self.missing > 0 {
                    return Progress::More { used };
                }
                if let Some(last) = self.last {
                    return self.whole(used, last.status());
                }
            }
            let Some((len, line)) = self.line(verb, request_line, &buf[used..]) else {
                return unfinished(used, &buf[used..]);
            };
            if self.line == 0 {
                self.line = len;
            }
            match line {
                Line::Between => {}
                Line::Value { value, cursor } => {
                    self.cursor = cursor;
                    let at = self.seen;
                    self.items.push(Item {
                        at,
                        line: len,
                        value,
                    });
                    // The last value of nearly all answers is here with what ends them.
                    let end = used + len + value;
                    let behind = buf.get(end..).and_then(|rest| rest.first_chunk());
                    if behind == Some(b"\r\nEND\r\n") {
                        self.seen += len + value + 7;
                        return self.whole(end + 7, Status::Done);
                    }
                    self.missing = value + 2;
                }
                Line::Data(value) => {
                    self.missing = value + 2;
                    self.last = Some(match verb {
                        Verb::MetaArithmetic => Last::Number(Digits::default()),
                        _ => Last::Value,
                    });
                }
                Line::End(status) => {
                    self.seen += len;
                    return self.whole(used + len, status);
                }
            }
            used += len;
            self.seen += len;
        }
    }

    fn whole(&self, used: usize, status: Status) -> Progress {
        Progress::Whole {
            used,
            line: self.line,
            status,
        }
    }

    /// Passes over as much of the data block as there is; returns how much.
    fn data(&mut self, buf: &[u8]) -> Result<usize, &'static str> {
        let n = self.missing.min(buf.len());
        let value = self.missing.saturating_sub(2).min(n);
        let is_number = match &mut self.last {
            Some(Last::Number(digits)) => digits.feed(&buf[..value]),
            _ => true,
        };
        if !is_number {
            return Err("no number");
        }
        // The last two of `missing` are the line end; some of it may have come before.
        let end = &buf[value..n];
        let want = &b"\r\n"[2 - (self.missing - value).min(2)..];
        if end != &want[..end.len()] {
            return Err("a value of another length than announced");
        }
        self.missing -= n;
        self.seen += n;
        match self.last {
            Some(Last::Number(d)) if self.missing == 0 && !d.any => Err("no number"),
            _ => Ok(n),
        }
    }

    /// The line at the start of `buf`, with its length; `None` if it is not whole or not one
    /// that `verb` can be answered with.
    #[inline]
    fn line(&self, verb: Verb, request_line: &[u8], buf: &[u8]) -> Option<(usize, Line)> {
        use Status::{Absent, Done, Exists, NotStored};
        let known = match verb {
            Verb::Get | Verb::Gets | Verb::Gat | Verb::Gats => {
                if buf.starts_with(b"END\r\n") {
                    let status = if self.items.is_empty() { Absent } else { Done };
                    Some((5, Line::End(status)))
                } else {
                    self.value_line(verb, request_line, buf)
                }
            }
            Verb::Set | Verb::Add | Verb::Replace | Verb::Append | Verb::Prepend | Verb::Cas => {
                const WORDS: [(&[u8], Status); 4] = [
                    (b"STORED\r\n", Done),
                    (b"NOT_STORED\r\n", NotStored),
                    (b"EXISTS\r\n", Exists),
                    (b"NOT_FOUND\r\n", Absent),
                ];
                one_of(&WORDS, buf)
            }
            Verb::Delete => one_of(&[(b"DELETED\r\n", Done), (b"NOT_FOUND\r\n", Absent)], buf),
            Verb::Touch => one_of(&[(b"TOUCHED\r\n", Done), (b"NOT_FOUND\r\n", Absent)], buf),
            Verb::Incr | Verb::Decr => {
                one_of(&[(b"NOT_FOUND\r\n", Absent)], buf).or_else(|| number_line(buf))
            }
            Verb::FlushAll => one_of(&[(b"OK\r\n", Done)], buf),
            Verb::MetaGet
            | Verb::MetaSet
            | Verb::MetaDelete
            | Verb::MetaArithmetic
            | Verb::MetaDebug => meta_line(verb, buf),
            Verb::Version => whole_line(buf)
                .filter(|line| line.starts_with(b"VERSION "))
                .map(|line| (line.len(), Line::End(Done))),
            Verb::Stats => one_of(&[(b"END\r\n", Done)], buf),
        };
        known.or_else(|| other_line(verb, buf))
    }

    /// `VALUE KEY FLAGS LENGTH[ CAS]`, of a key that was asked for and comes no earlier in the
    /// upstream request line than those before.
    fn value_line(&self, verb: Verb, request_line: &[u8], buf: &[u8]) -> Option<(usize, Line)> {
        let rest = buf.strip_prefix(b"VALUE ")?;
        let key = &rest[..space(&rest[..rest.len().min(MAX_LINE)])?];
        let (flags, rest) = number(&rest[key.len() + 1..])?;
        let (value, mut rest) = number(rest.strip_prefix(b" ")?)?;
        if matches!(verb, Verb::Gets | Verb::Gats) {
            rest = number(rest.strip_prefix(b" ")?)?.1;
        }
        let rest = rest.strip_prefix(b"\r\n")?;
        if flags > u64::from(u32::MAX) || value > MAX_VALUE {
            return None;
        }
        let cursor = self.find_key(verb, request_line, key)?;
        let value = value as usize;
        let len = buf.len() - rest.len();
        (len <= MAX_LINE).then_some((len, Line::Value { value, cursor }))
    }

    /// Looks for `key` in the upstream request line from the cursor on; returns the next cursor.
    /// Every byte of the upstream request line is passed once in a reply, however many keys there
    /// are.
    fn find_key(&self, verb: Verb, request_line: &[u8], key: &[u8]) -> Option<usize> {
        let mut at = self.cursor;
        if at == 0 {
            at = match request_line.starts_with(b"get ") {
                true => 4,
                false => space(request_line)? + 1,
            };
            if matches!(verb, Verb::Gat | Verb::Gats) {
                at += space(&request_line[at..])? + 1;
            }
        }
        loop {
            let rest = request_line.get(at..)?;
            let behind = rest.strip_prefix(key);
            if behind.is_some_and(|b| b.starts_with(b" ") || b == b"\r\n") {
                return Some(at + key.len() + 1);
            }
            at += space(rest)? + 1;
        }
    }
}

impl Last {
    fn status(self) -> Status {
        match self {
            Last::Value => Status::Done,
            Last::Number(digits) => Status::Number(digits.value),
        }
    }
}

/// What it means that the start of `buf` is no line: wait for its end, if there is hope.
fn unfinished(used: usize, buf: &[u8]) -> Progress {
    if find(b'\n', &buf[..buf.len().min(MAX_LINE)]).is_some() {
        Progress::Bad("a line that answers another request")
    } else if buf.len() >= MAX_LINE {
        Progress::Bad("a line without end")
    } else {
        Progress::More { used }
    }
}

/// Offset of the first space, which few control bytes come before.
#[inline]
fn space(within: &[u8]) -> Option<usize> {
    let end = word_end(within, 0)?;
    match within[end] {
        b' ' => Some(end),
        _ => find(b' ', within),
    }
}

/// Offset of the first `byte`, eight bytes at a time: most lines are so short that the standard library's search
/// takes longer to begin.
#[inline]
fn find(byte: u8, within: &[u8]) -> Option<usize> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let mut at = 0;
    while let Some(block) = within[at..].first_chunk::<8>() {
        // A byte of this is zero where it is found; the lowest one of those is told rightly.
        let differs = u64::from_le_bytes(*block) ^ (ONES * u64::from(byte));
        let found = differs.wrapping_sub(ONES) & !differs & (ONES << 7);
        if found != 0 {
            return Some(at + found.trailing_zeros() as usize / 8);
        }
        at += 8;
    }
    let rest = within[at..].iter().position(|b| *b == byte);
    rest.map(|n| at + n)
}

/// The line at the start of `buf` with its `\r\n`, if it is whole and not too long.
fn whole_line(buf: &[u8]) -> Option<&[u8]> {
    let end = find(b'\n', &buf[..buf.len().min(MAX_LINE)])? + 1;
    Some(&buf[..end]).filter(|line| line.ends_with(b"\r\n"))
}

/// The first of `words` that `buf` starts with.
#[inline]
fn one_of(words: &[(&[u8], Status)], buf: &[u8]) -> Option<(usize, Line)> {
    let found = words.iter().find(|(word, _)| buf.starts_with(word));
    found.map(|&(word, status)| (word.len(), Line::End(status)))
}

/// A decimal number at the start of `buf`, and what follows it.
#[inline]
fn number(buf: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0u64;
    let mut n = 0;
    while let Some(digit @ b'0'..=b'9') = buf.get(n) {
        let digit = u64::from(digit - b'0');
        value = match n {
            0..19 => value * 10 + digit,
            _ => value.checked_mul(10)?.checked_add(digit)?,
        };
        n += 1;
    }
    (n > 0).then(|| (value, &buf[n..]))
}

/// The answer of incr and decr; spaces may follow the number.
fn number_line(buf: &[u8]) -> Option<(usize, Line)> {
    let line = whole_line(buf)?;
    let (value, rest) = number(line)?;
    // memcached pads a number that got shorter.
    let padding = rest.strip_suffix(b"\r\n")?;
    let only_spaces = padding.iter().all(|&b| b == b' ');
    only_spaces.then_some((line.len(), Line::End(Status::Number(value))))
}

/// A meta command's first line.
fn meta_line(verb: Verb, buf: &[u8]) -> Option<(usize, Line)> {
    let line = if buf.get(2..4) == Some(b"\r\n") {
        &buf[..4]
    } else {
        whole_line(buf)?
    };
    let ends_well = |rest: &[u8]| rest.starts_with(b" ") || rest == b"\r\n";
    if !line.get(2..).is_some_and(ends_well) {
        return None;
    }
    use Verb::{MetaArithmetic, MetaDebug, MetaDelete, MetaGet, MetaSet};
    let status = match (&line[..2], verb) {
        (b"HD", MetaGet | MetaSet | MetaDelete | MetaArithmetic) => Status::Done,
        (b"ME", MetaDebug) => Status::Done,
        (b"EN", MetaGet | MetaDebug) => Status::Absent,
        (b"NF", MetaSet | MetaDelete | MetaArithmetic) => Status::Absent,
        (b"NS", MetaSet | MetaArithmetic) => Status::NotStored,
        (b"EX", MetaSet | MetaDelete | MetaArithmetic) => Status::Exists,
        (b"VA", MetaGet | MetaArithmetic) => {
            let (value, rest) = number(&line[3..])?;
            if !ends_well(rest) || value > MAX_VALUE {
                return None;
            }
            return Some((line.len(), Line::Data(value as usize)));
        }
        _ => return None,
    };
    Some((line.len(), Line::End(status)))
}

/// What any request may be answered with, and the many lines of `stats`.
#[cold]
fn other_line(verb: Verb, buf: &[u8]) -> Option<(usize, Line)> {
    let line = whole_line(buf)?;
    let is_error = |rest: &[u8]| matches!(rest, [b' ' | b':', ..] | b"\r\n");
    let what = if line.starts_with(b"SERVER_ERROR") {
        Line::End(Status::ServerError)
    } else if line.starts_with(b"CLIENT_ERROR") {
        Line::End(Status::ClientError)
    } else if line.strip_prefix(b"ERROR").is_some_and(is_error) {
        Line::End(Status::Unknown)
    } else if verb == Verb::Stats {
        Line::Between
    } else {
        return None;
    };
    Some((line.len(), what))
}

/// The seconds of a line `STAT uptime SECONDS`, with or without its end.
pub fn uptime(stat_line: &[u8]) -> Option<u64> {
    let (seconds, rest) = number(stat_line.strip_prefix(b"STAT uptime ")?)?;
    rest.trim_ascii().is_empty().then_some(seconds)
}

/// True if a line `VERSION 1.6.18…` names this version or a newer one.
pub fn version_at_least(version_line: &[u8], least: [u64; 3]) -> bool {
    let parse = || {
        let (a, rest) = number(version_line.strip_prefix(b"VERSION ")?)?;
        let (b, rest) = number(rest.strip_prefix(b".")?)?;
        let c = rest.strip_prefix(b".").and_then(number);
        Some([a, b, c.map_or(0, |(c, _)| c)])
    };
    parse().is_some_and(|version| version >= least)
}

#[cfg(test)]
mod tests;
