//! Takes a client's bytes apart: exactly one well-formed answer for each request, in order.

use super::history::{key_name, key_number, lossy};
use super::requests::{Expect, Op};

/// One value that was read.
#[derive(Clone, Debug)]
pub struct Value {
    pub key: usize,
    /// Which of the keys asked for it is, by its place.
    pub at: usize,
    pub flags: Option<u32>,
    pub cas: Option<u64>,
    pub data: Vec<u8>,
}

/// What an answer says.
#[derive(Clone, Debug)]
pub enum Got {
    Values(Vec<Value>),
    /// It was done.
    Done,
    /// It was not done, and the key is as it was.
    NotDone,
    Number(u64),
    /// An error of magent's or of the server's.
    Failed(String),
}

/// The line at the start of `buf` without its end, and the length with it.
fn line(buf: &[u8]) -> Result<Option<(&str, usize)>, String> {
    let Some(n) = buf.iter().position(|b| *b == b'\n') else {
        return match buf.len() {
            0..4096 => Ok(None),
            _ => Err(format!("a line without end: {:?}", lossy(buf))),
        };
    };
    let bad = || format!("no line: {:?}", lossy(&buf[..n]));
    let text = buf[..n].strip_suffix(b"\r").ok_or_else(bad)?;
    let text = std::str::from_utf8(text).map_err(|_| bad())?;
    Ok(Some((text, n + 1)))
}

/// The answer at the start of `buf`, and its length; `None` if it is not whole.
pub fn parse(expect: &Expect, buf: &[u8]) -> Result<Option<(Got, usize)>, String> {
    let Some((first, n)) = line(buf)? else {
        return Ok(None);
    };
    let bad = || Err(format!("{first:?} answers {:?}", expect.op));
    if first.starts_with("SERVER_ERROR ") {
        return Ok(Some((Got::Failed(first.into()), n)));
    }
    let got = match (&expect.op, first) {
        (Op::Stats, _) => return stats(expect, buf),
        (Op::Read { cas }, _) => return values(expect, *cas, buf),
        (Op::Meta { .. }, _) => return meta(expect, first, n, buf),
        (Op::Store, "STORED")
        | (Op::Delete, "DELETED" | "NOT_FOUND")
        | (Op::Touch, "TOUCHED")
        | (Op::Noop, "MN")
        | (Op::Unknown, "ERROR")
        | (Op::Flush { .. }, "OK") => Got::Done,
        (Op::Store, "NOT_STORED" | "EXISTS" | "NOT_FOUND") => Got::NotDone,
        (Op::Touch | Op::Incr, "NOT_FOUND") => Got::NotDone,
        (Op::Incr, number) => match number.trim_end().parse() {
            Ok(number) => Got::Number(number),
            Err(_) => return bad(),
        },
        (Op::Version, text) if text.starts_with("VERSION ") => Got::Done,
        _ => return bad(),
    };
    Ok(Some((got, n)))
}

/// One number, or none where no primary said one.
fn stats(expect: &Expect, buf: &[u8]) -> Result<Option<(Got, usize)>, String> {
    let mut at = 0;
    loop {
        let Some((text, n)) = line(&buf[at..])? else {
            return Ok(None);
        };
        let is_number = |l: &str| l.parse::<u64>().is_ok();
        match text.strip_prefix("STAT items:1:number ") {
            Some(keys) if at == 0 && is_number(keys) => at += n,
            None if text == "END" => return Ok(Some((Got::Done, at + n))),
            _ => return Err(format!("{text:?} answers {:?}", expect.op)),
        }
    }
}

fn values(expect: &Expect, cas: bool, buf: &[u8]) -> Result<Option<(Got, usize)>, String> {
    let (mut at, mut found) = (0, Vec::<Value>::new());
    loop {
        let Some((text, n)) = line(&buf[at..])? else {
            return Ok(None);
        };
        at += n;
        if text == "END" {
            return Ok(Some((Got::Values(found), at)));
        }
        let words: Vec<&str> = text.split(' ').collect();
        let bad = || format!("{text:?} is not next in the values of {}", show(expect));
        if words[0] != "VALUE" || words.len() != if cas { 5 } else { 4 } {
            return Err(bad());
        }
        let key = key_number(words[1].as_bytes()).ok_or_else(bad)?;
        let number = |i: usize| words[i].parse::<u64>().map_err(|_| bad());
        // In the order of the keys, and a key that is named twice twice.
        let next = found.last().map_or(0, |v| v.at + 1);
        let place = expect.seen[next..].iter().position(|s| s.key == key);
        let place = place.map(|n| next + n).ok_or_else(bad)?;
        let len = number(3)? as usize;
        if buf.len() < at + len + 2 {
            return Ok(None);
        }
        if &buf[at + len..at + len + 2] != b"\r\n" {
            return Err(format!("torn value of {}", words[1]));
        }
        found.push(Value {
            key,
            at: place,
            flags: Some(number(2)? as u32),
            cas: if cas { Some(number(4)?) } else { None },
            data: buf[at..at + len].to_vec(),
        });
        at += len + 2;
    }
}

fn meta(
    expect: &Expect,
    first: &str,
    n: usize,
    buf: &[u8],
) -> Result<Option<(Got, usize)>, String> {
    let Op::Meta {
        letter,
        flags,
        opaque,
        ..
    } = &expect.op
    else {
        return Err("no meta command".into());
    };
    let bad = || format!("{first:?} answers {:?}", expect.op);
    let words: Vec<&str> = first.split(' ').collect();
    if let Some(o) = words.iter().skip(1).find_map(|w| w.strip_prefix('O')) {
        if o != opaque.to_string() {
            return Err(format!("{}: the answer of another", bad()));
        }
    }
    let (mut from, mut data, mut used) = (1, Vec::new(), n);
    if words[0] == "VA" {
        let len: usize = words.get(1).and_then(|w| w.parse().ok()).ok_or_else(bad)?;
        if buf.len() < n + len + 2 {
            return Ok(None);
        }
        if &buf[n + len..n + len + 2] != b"\r\n" {
            return Err(format!("{}: torn", bad()));
        }
        data = buf[n..n + len].to_vec();
        (from, used) = (2, n + len + 2);
    }
    let got = match (*letter, words[0]) {
        ('g', "VA") => Got::Values(vec![Value {
            key: expect.seen[0].key,
            at: 0,
            flags: number_of(&words[from..], 'f').map(|f| f as u32),
            cas: number_of(&words[from..], 'c'),
            data,
        }]),
        ('g', "EN") => Got::Values(Vec::new()),
        ('a', "VA") => match std::str::from_utf8(&data).map(|t| t.parse()) {
            Ok(Ok(number)) => Got::Number(number),
            _ => return Err(bad()),
        },
        ('s' | 'a', "HD") | ('d', "HD" | "NF") => Got::Done,
        ('s', "NS" | "EX" | "NF") | ('a', "NF" | "NS" | "EX") | ('d', "EX") => Got::NotDone,
        _ => return Err(bad()),
    };
    if matches!(words[0], "VA" | "HD") {
        same_flags(expect, flags, &words[from..])?;
    }
    Ok(Some((got, used)))
}

fn number_of(words: &[&str], letter: char) -> Option<u64> {
    let found = words.iter().find_map(|w| w.strip_prefix(letter));
    found.and_then(|w| w.parse().ok())
}

/// What comes back are the flags that return something, in the order in which they stood.
fn same_flags(expect: &Expect, flags: &[String], words: &[&str]) -> Result<(), String> {
    let returns = |f: &&String| f.starts_with(['f', 'c', 't', 's', 'k', 'O']);
    let mut left = words.iter();
    let Op::Meta { key, .. } = &expect.op else {
        return Err("no meta command".into());
    };
    for flag in flags.iter().filter(returns) {
        let letter = &flag[..1];
        let good = match (letter, left.next()) {
            ("O", Some(word)) => word == flag,
            ("k", Some(word)) => word.strip_prefix('k') == Some(&key_name(*key)),
            (_, Some(word)) => word.starts_with(letter),
            (_, None) => false,
        };
        if !good {
            return Err(format!("flags {words:?} answer {:?}", expect.op));
        }
    }
    match left.find(|w| !matches!(**w, "W" | "X" | "Z")) {
        None => Ok(()),
        Some(word) => Err(format!("{word} answers {:?}", expect.op)),
    }
}

/// For a trace.
pub fn show(expect: &Expect) -> String {
    let keys: Vec<String> = expect.seen.iter().map(|s| key_name(s.key)).collect();
    format!(
        "{:?} write {:?} {}",
        expect.op,
        expect.write,
        keys.join(" ")
    )
}
