//! Commands without a key: what magent answers itself, and what it has not.

use super::scan::{self, parse_i32, parse_u32};
use super::{BAD_EXPTIME, BAD_FORMAT, ERROR, Line};
use crate::protocol::{Format, Local, Parsed, Scratch};

/// Longest pause of memcached's crawler in microseconds.
const SLEEP_MAX: u32 = 1_000_000;

const NO_CRAWLER: &[u8] = b"CLIENT_ERROR lru crawler disabled";

/// Whatever is no meta command and no command with keys.
pub(super) fn parse(line: &Line<'_>, s: &mut Scratch) -> Parsed {
    let n = line.words.len();
    let local = |what| Parsed::Local {
        used: line.used,
        what,
        format: Format::Text,
    };
    match line.words.get(0) {
        b"version" => local(Local::Version),
        b"quit" => local(Local::Quit),
        b"stats" => local(Local::Stats(joined(line))),
        b"verbosity" if n == 2 || n == 3 => verbosity(line, s),
        b"flush_all" if n <= 3 => flush_all(line, s),
        b"shutdown" => line.refuse(s, b"ERROR: shutdown not enabled"),
        b"slabs" => slabs(line, s),
        b"lru_crawler" => lru_crawler(line, s),
        b"watch" => line.refuse_unless_quiet(s, b"CLIENT_ERROR watch commands not allowed"),
        b"cache_memlimit" if n == 2 || n == 3 => line.refuse_unless_quiet(s, ERROR),
        b"lru" | b"extstore" if n >= 2 => line.refuse_unless_quiet(s, ERROR),
        b"refresh_certs" => line.refuse(s, b"Error TLS not enabled"),
        name => unknown(line, name, s),
    }
}

/// memcached closes on a browser, but looks for one only behind its known first letters.
fn unknown(line: &Line<'_>, name: &[u8], s: &mut Scratch) -> Parsed {
    let looked_for = !matches!(
        name.first(),
        Some(b'g' | b's' | b'a' | b'c' | b'i' | b'd' | b't')
    ) && !matches!(name, b"verbosity" | b"flush_all" | b"lru" | b"extstore");
    if looked_for && line.words.last().starts_with(b"HTTP/") {
        return Parsed::Close;
    }
    line.refuse(s, ERROR)
}

/// What is behind `stats`, with single spaces.
fn joined(line: &Line<'_>) -> Vec<u8> {
    let mut all = Vec::new();
    for (from, to) in scan::words(line.text).skip(1) {
        if !all.is_empty() {
            all.push(b' ');
        }
        all.extend_from_slice(&line.text[from..to]);
    }
    all
}

/// The answer's format where `noreply` may stand in the last word.
fn format_of(line: &Line<'_>) -> Format {
    match line.quiet() {
        true => Format::Silent,
        false => Format::Text,
    }
}

fn verbosity(line: &Line<'_>, s: &mut Scratch) -> Parsed {
    match parse_u32(line.words.get(1)) {
        Some(_) => Parsed::Local {
            used: line.used,
            what: Local::Verbosity,
            format: format_of(line),
        },
        None => line.refuse_unless_quiet(s, BAD_FORMAT),
    }
}

fn flush_all(line: &Line<'_>, s: &mut Scratch) -> Parsed {
    if !line.limits.flush_all {
        return line.refuse_unless_quiet(s, b"CLIENT_ERROR flush_all not allowed");
    }
    let mut delay = None;
    if line.words.len() != 1 + usize::from(line.quiet()) {
        let Some(seconds) = parse_i32(line.words.get(1)) else {
            return line.refuse_unless_quiet(s, BAD_EXPTIME);
        };
        delay = u64::try_from(seconds).ok().filter(|seconds| *seconds > 0);
    }
    Parsed::Local {
        used: line.used,
        what: Local::FlushAll(delay),
        format: format_of(line),
    }
}

fn slabs(line: &Line<'_>, s: &mut Scratch) -> Parsed {
    match (line.words.get(1), line.words.len()) {
        (b"reassign", 4) => line.refuse(s, b"CLIENT_ERROR slab reassignment disabled"),
        (b"automove", 3..) => {
            let level = line.words.get(2);
            let why = match level == b"ratio" || parse_u32(level).is_some() {
                true => ERROR,
                false => BAD_FORMAT,
            };
            line.refuse_unless_quiet(s, why)
        }
        _ => line.refuse(s, ERROR),
    }
}

fn lru_crawler(line: &Line<'_>, s: &mut Scratch) -> Parsed {
    let why = match (line.words.get(1), line.words.len()) {
        (b"crawl" | b"metadump", 3) => NO_CRAWLER,
        (what @ (b"tocrawl" | b"sleep"), 3) => match parse_u32(line.words.get(2)) {
            None => BAD_FORMAT,
            Some(n) if what == b"sleep" && n > SLEEP_MAX => {
                b"CLIENT_ERROR sleep must be one second or less"
            }
            Some(_) => NO_CRAWLER,
        },
        (b"enable" | b"disable", 2) => NO_CRAWLER,
        _ => ERROR,
    };
    line.refuse(s, why)
}
