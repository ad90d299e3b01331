//! Lists of lines on a server: who is away from whom, and who is there at all. A line is an id, a space
//! and the rest; magents append theirs, and write a list back by compare-and-set.

use std::fmt::{self, Display, Formatter};

/// One run of one magent: 64 random bits. A magent that was started anew is another one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Id(pub u64);

/// Hexadecimal digits of an id.
const DIGITS: usize = 16;

impl Id {
    /// The id that these digits are.
    pub fn parse(digits: &[u8]) -> Option<Id> {
        let is_ours = |b: &u8| b.is_ascii_digit() || (b'a'..=b'f').contains(b);
        if digits.len() != DIGITS || !digits.iter().all(is_ours) {
            return None;
        }
        let text = std::str::from_utf8(digits).ok()?;
        u64::from_str_radix(text, 16).ok().map(Id)
    }
}

impl Display for Id {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A list as a server holds it.
#[derive(Clone, Copy, Debug)]
pub struct Lines<'a>(pub &'a [u8]);

/// One line of a list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Line<'a> {
    /// Whose it is.
    pub id: Id,
    /// What it says.
    pub text: &'a [u8],
    /// All of it, with its end.
    whole: &'a [u8],
}

impl<'a> Lines<'a> {
    /// Its lines. What is none (somebody else wrote there) is passed over.
    pub fn iter(self) -> impl Iterator<Item = Line<'a>> {
        self.0.split_inclusive(|b| *b == b'\n').filter_map(|whole| {
            let line = whole.strip_suffix(b"\n")?;
            let (id, text) = line.split_at_checked(DIGITS)?;
            Some(Line {
                id: Id::parse(id)?,
                text: text.strip_prefix(b" ")?,
                whole,
            })
        })
    }

    /// True if what is appended begins a line of its own.
    pub fn is_whole(self) -> bool {
        self.0.last().is_none_or(|b| *b == b'\n')
    }

    /// Appends the lines that `keep` is true of, and nothing that is no line.
    pub fn keep(self, out: &mut Vec<u8>, mut keep: impl FnMut(&Line) -> bool) {
        for line in self.iter().filter(|line| keep(line)) {
            out.extend_from_slice(line.whole);
        }
    }
}

/// Appends a line.
pub fn push_line(out: &mut Vec<u8>, id: Id, text: &[u8]) {
    out.extend_from_slice(id.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(text);
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &[u8] = b"7f3a9c0d12e45b66 10.0.0.1:11211\n\
        00112233aabbccdd 10.0.0.1:11211\n\
        7f3a9c0d12e45b66 /run/memcached 2.sock\n";

    #[test]
    fn lines_come_back_as_they_were_pushed() {
        let mut list = Vec::new();
        push_line(&mut list, Id(0x7f3a_9c0d_12e4_5b66), b"10.0.0.1:11211");
        push_line(&mut list, Id(0x0011_2233_aabb_ccdd), b"10.0.0.1:11211");
        push_line(
            &mut list,
            Id(0x7f3a_9c0d_12e4_5b66),
            b"/run/memcached 2.sock",
        );
        assert_eq!(list, LIST);
        let read: Vec<_> = Lines(LIST).iter().map(|l| (l.id.0, l.text)).collect();
        let expected: [(u64, &[u8]); 3] = [
            (0x7f3a_9c0d_12e4_5b66, b"10.0.0.1:11211"),
            (0x0011_2233_aabb_ccdd, b"10.0.0.1:11211"),
            (0x7f3a_9c0d_12e4_5b66, b"/run/memcached 2.sock"),
        ];
        assert_eq!(read, expected);
    }

    #[test]
    fn what_is_no_line_is_passed_over_and_not_kept() {
        for (list, count, is_whole) in [
            (&b""[..], 0, true),
            (b"\n\n", 0, true),
            (b"7f3a9c0d12e45b66\n", 0, true),
            (b"7f3a9c0d12e45b66 \n", 1, true),
            (b"7F3A9C0D12E45B66 x\n", 0, true),
            (b"+f3a9c0d12e45b66 x\n", 0, true),
            (b"7f3a9c0d12e45b667 x\n", 0, true),
            (b"7f3a9c0d12e45b66 x", 0, false),
            (
                b"\xff\xfe7f3a9c0d12e4 x\nnoise\n7f3a9c0d12e45b66 x\nrest",
                1,
                false,
            ),
        ] {
            assert_eq!(Lines(list).iter().count(), count, "{}", list.escape_ascii());
            assert_eq!(Lines(list).is_whole(), is_whole, "{}", list.escape_ascii());
            let mut kept = Vec::new();
            Lines(list).keep(&mut kept, |_| true);
            assert_eq!(Lines(&kept).iter().count(), count);
            assert!(Lines(&kept).is_whole());
        }
    }

    #[test]
    fn all_lines_of_one_about_one_server_go() {
        let mut rest = Vec::new();
        let mine = |l: &Line| l.id == Id(0x7f3a_9c0d_12e4_5b66) && l.text == b"10.0.0.1:11211";
        Lines(LIST).keep(&mut rest, |line| !mine(line));
        assert_eq!(
            rest,
            b"00112233aabbccdd 10.0.0.1:11211\n7f3a9c0d12e45b66 /run/memcached 2.sock\n"
        );
    }
}
