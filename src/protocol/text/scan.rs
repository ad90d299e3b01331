//! The bytes of one line: where it ends, its words, its numbers. All as memcached's C sees
//! them, without a copy.

/// Words of a line at most, the command included. What is behind them is only looked at by
/// the gets.
const MAX_WORDS: usize = 23;

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x8080_8080_8080_8080;

/// Marks the high bit of bytes of `word` that are less than `n` (at most 128); the lowest mark
/// is exact, those above it may be false (a borrow).
const fn less_than(word: u64, n: u8) -> u64 {
    word.wrapping_sub(ONES * n as u64) & !word & HIGHS
}

fn word_at(bytes: &[u8], at: usize) -> Option<u64> {
    let word = bytes.get(at..at + 8)?;
    Some(u64::from_le_bytes(word.try_into().expect("eight bytes")))
}

/// The offset of the first `\n`, eight bytes at a time.
#[inline]
pub fn find_newline(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    while let Some(word) = word_at(bytes, at) {
        let hit = less_than(word ^ (ONES * b'\n' as u64), 1);
        if hit != 0 {
            return Some(at + hit.trailing_zeros() as usize / 8);
        }
        at += 8;
    }
    let tail = bytes[at..].iter().position(|&b| b == b'\n')?;
    Some(at + tail)
}

/// The offset from `at` on of the first space or control byte; `None` without one.
#[inline]
pub(in crate::protocol) fn word_end(bytes: &[u8], mut at: usize) -> Option<usize> {
    while let Some(word) = word_at(bytes, at) {
        let hit = less_than(word, b' ' + 1);
        if hit != 0 {
            return Some(at + hit.trailing_zeros() as usize / 8);
        }
        at += 8;
    }
    let tail = bytes.get(at..)?.iter().position(|&b| b <= b' ')?;
    Some(at + tail)
}

/// A line's bytes without its end, and without what memcached does not see of it: a NUL ends
/// the command. `newline` is where its `\n` stands. A `\r` that stands alone stays.
pub(super) fn visible(buf: &[u8], newline: usize) -> &[u8] {
    let line = &buf[..newline];
    let line = match line {
        [rest @ .., b'\r'] if !rest.is_empty() => rest,
        _ => line,
    };
    let end = line.iter().position(|&b| b == 0).unwrap_or(line.len());
    &line[..end]
}

/// The ranges of a line's words; only spaces separate.
pub(super) fn words(line: &[u8]) -> impl Iterator<Item = (usize, usize)> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        at += line[at..].iter().position(|&b| b != b' ')?;
        let from = at;
        at = line[from..]
            .iter()
            .position(|&b| b == b' ')
            .map_or(line.len(), |n| from + n);
        Some((from, at))
    })
}

/// The first [`MAX_WORDS`] words of a line. memcached's own count of tokens is one higher: it
/// counts the end.
pub(in crate::protocol) struct Words<'a> {
    line: &'a [u8],
    at: [(u32, u32); MAX_WORDS],
    len: usize,
}

impl<'a> Words<'a> {
    pub(in crate::protocol) fn new(line: &'a [u8]) -> Words<'a> {
        let mut all = Words {
            line,
            at: [(0, 0); MAX_WORDS],
            len: 0,
        };
        for (slot, (from, to)) in all.at.iter_mut().zip(words(line)) {
            *slot = (from as u32, to as u32);
            all.len += 1;
        }
        all
    }

    pub(in crate::protocol) fn len(&self) -> usize {
        self.len
    }

    /// The word, empty if there are not so many.
    pub(in crate::protocol) fn get(&self, i: usize) -> &'a [u8] {
        let (from, to) = self.range(i);
        &self.line[from as usize..to as usize]
    }

    /// Where it stands in the line.
    pub(in crate::protocol) fn range(&self, i: usize) -> (u32, u32) {
        self.at[..self.len].get(i).copied().unwrap_or_default()
    }

    /// The last word, empty in an empty line.
    pub(in crate::protocol) fn last(&self) -> &'a [u8] {
        self.get(self.len.wrapping_sub(1))
    }

    /// All words from `i` on.
    pub(in crate::protocol) fn from(&self, i: usize) -> impl Iterator<Item = &'a [u8]> + '_ {
        (i..self.len).map(|i| self.get(i))
    }
}

/// What C's `isspace` says in its own locale.
const fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

/// Sign and magnitude of the number that a word starts with, as the `strto…` family reads it:
/// space before it is skipped, what follows must be the end or space. `None` where memcached
/// says that it is no number, or where it does not fit into 64 bits.
fn magnitude(word: &[u8]) -> Option<(bool, u64)> {
    let mut at = word.iter().position(|&b| !is_space(b))?;
    let negative = word[at] == b'-';
    if negative || word[at] == b'+' {
        at += 1;
    }
    let digits = &word[at..];
    let n = digits
        .iter()
        .position(|b| !b.is_ascii_digit())
        .unwrap_or(digits.len());
    if n == 0 || digits.get(n).is_some_and(|&b| !is_space(b)) {
        return None;
    }
    let mut sum = 0u64;
    for digit in &digits[..n] {
        sum = sum.checked_mul(10)?.checked_add(u64::from(digit - b'0'))?;
    }
    Some((negative, sum))
}

/// An unsigned 64-bit number as memcached's `safe_strtoull` takes it: `-N` is 2^64 - N, and
/// refused only if that has its top bit set.
pub(in crate::protocol) fn parse_u64(word: &[u8]) -> Option<u64> {
    let (negative, sum) = magnitude(word)?;
    let value = if negative { sum.wrapping_neg() } else { sum };
    if value >> 63 == 1 && word.contains(&b'-') {
        return None;
    }
    Some(value)
}

/// The same cut to 32 bits, as `safe_strtoul` does.
pub(in crate::protocol) fn parse_u32(word: &[u8]) -> Option<u32> {
    parse_u64(word).map(|value| value as u32)
}

/// A signed number of 64 bits cut to 32, as `safe_strtol` does.
pub(in crate::protocol) fn parse_i32(word: &[u8]) -> Option<i32> {
    let (negative, sum) = magnitude(word)?;
    let value = if negative {
        0i64.checked_sub_unsigned(sum)?
    } else {
        i64::try_from(sum).ok()?
    };
    Some(value as i32)
}

/// Appends `n` in decimal.
pub(in crate::protocol) fn push_u64(out: &mut Vec<u8>, mut n: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Appends `n` in decimal, with its sign if it is negative.
pub(in crate::protocol) fn push_i32(out: &mut Vec<u8>, n: i32) {
    if n < 0 {
        out.push(b'-');
    }
    push_u64(out, u64::from(n.unsigned_abs()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newlines_and_word_ends_are_found_at_every_offset() {
        for len in 0..40 {
            for fill in [b'a', 0x0b, 0x8a, 0xff, 0x21] {
                let mut bytes = vec![fill; len];
                assert_eq!(find_newline(&bytes), None);
                for at in (0..len).rev() {
                    bytes[at] = b'\n';
                    assert_eq!(find_newline(&bytes), Some(at));
                }
            }
            for stop in [b' ', b'\r', 0] {
                let mut bytes: Vec<u8> = (0..len).map(|i| [b'!', 0x80, 0xff][i % 3]).collect();
                assert_eq!(word_end(&bytes, 0), None);
                for at in (0..len).rev() {
                    bytes[at] = stop;
                    assert_eq!(word_end(&bytes, 0), Some(at));
                    assert_eq!(word_end(&bytes, at), Some(at));
                }
            }
        }
    }

    #[test]
    fn a_line_is_cut_as_memcached_cuts_it() {
        for (line, want) in [
            ("get a\r\n", "get a"),
            ("get a\n", "get a"),
            ("get a\r\r\n", "get a\r"),
            ("\r\n", "\r"),
            ("\n", ""),
            ("a\r\n", "a"),
            ("get a\0 b\r\n", "get a"),
            ("\0\r\n", ""),
        ] {
            assert_eq!(visible(line.as_bytes(), line.len() - 1), want.as_bytes());
        }
    }

    #[test]
    fn words_are_separated_by_spaces_only() {
        let words = Words::new(b"  set\ta  b\rc ");
        assert_eq!(words.from(0).collect::<Vec<_>>(), [&b"set\ta"[..], b"b\rc"]);
        assert_eq!((words.get(7), words.last()), (&b""[..], &b"b\rc"[..]));
        assert_eq!(Words::new(b"   ").len(), 0);
        let many = b"x ".repeat(40);
        assert_eq!(Words::new(&many).len(), MAX_WORDS);
    }

    #[test]
    fn numbers_are_read_as_c_reads_them() {
        for (word, u64s, i32s) in [
            ("0", Some(0), Some(0)),
            ("007", Some(7), Some(7)),
            ("+5", Some(5), Some(5)),
            ("-0", Some(0), Some(0)),
            ("-1", None, Some(-1)),
            ("\t\x0b5\r", Some(5), Some(5)),
            ("5\tjunk", Some(5), Some(5)),
            ("5x", None, None),
            ("", None, None),
            ("+", None, None),
            ("+-5", None, None),
            ("\t", None, None),
            ("4294967297", Some(4294967297), Some(1)),
            ("2147483648", Some(2147483648), Some(i32::MIN)),
            ("9223372036854775807", Some(i64::MAX as u64), Some(-1)),
            ("9223372036854775808", Some(1 << 63), None),
            ("9223372036854775808\t-", None, None),
            ("-9223372036854775808", None, Some(0)),
            ("-9223372036854775809", Some(i64::MAX as u64), None),
            ("-18446744073709551615", Some(1), None),
            ("18446744073709551615", Some(u64::MAX), None),
            ("18446744073709551616", None, None),
        ] {
            assert_eq!(parse_u64(word.as_bytes()), u64s, "{word:?}");
            assert_eq!(parse_i32(word.as_bytes()), i32s, "{word:?}");
        }
        assert_eq!(parse_u32(b"4294967296"), Some(0));
        let mut out = Vec::new();
        for n in [0, 9, 10, -1, i32::MAX, i32::MIN] {
            push_i32(&mut out, n);
            out.push(b' ');
        }
        push_u64(&mut out, u64::MAX);
        assert_eq!(
            out,
            b"0 9 10 -1 2147483647 -2147483648 18446744073709551615"
        );
    }
}
