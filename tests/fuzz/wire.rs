//! What a server gets to see: a checker that is stricter than memcached, and a model memcached
//! that answers what passed it. Written without a look at the parsers that it checks.

use std::collections::HashMap;

/// One whole request as a server reads it.
#[derive(Debug)]
pub struct Wire<'a> {
    /// The words of its line.
    pub words: Vec<&'a [u8]>,
    /// Its data block, for those that have one.
    pub data: &'a [u8],
    /// Bytes of it all.
    pub len: usize,
}

fn decimal(word: &[u8]) -> Option<u64> {
    let digits = !word.is_empty() && word.iter().all(u8::is_ascii_digit);
    digits.then(|| std::str::from_utf8(word).ok()?.parse().ok())?
}

fn signed(word: &[u8]) -> Option<i64> {
    match word.strip_prefix(b"-") {
        Some(rest) => decimal(rest).map(|n| -(n as i64)),
        None => decimal(word).map(|n| n as i64),
    }
}

fn is_key(word: &[u8]) -> bool {
    (1..=250).contains(&word.len()) && !word.contains(&0)
}

/// The bytes that a base64 key means; `None` if it is not well formed.
pub fn unbase64(text: &[u8]) -> Option<Vec<u8>> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    if text.is_empty() || text.len() % 4 != 0 {
        return None;
    }
    let pad = text.iter().rev().take_while(|&&b| b == b'=').count();
    let mut out = Vec::new();
    for group in text[..text.len() - pad].chunks(4) {
        let mut bits = 0u32;
        for i in 0..4 {
            let n = match group.get(i) {
                Some(b) => ALPHABET.iter().position(|a| a == b)?,
                None => 0,
            };
            bits = bits << 6 | n as u32;
        }
        out.extend(&bits.to_be_bytes()[1..][..group.len() - 1]);
    }
    (pad <= 2).then_some(out)
}

/// Checks the flags of a meta line: each letter once, numbers where numbers belong, and none of
/// those that magent keeps to itself.
fn check_flags(flags: &[&[u8]], key: &[u8]) -> Result<(), &'static str> {
    let mut seen = Vec::new();
    for flag in flags {
        let (letter, argument) = (flag[0], &flag[1..]);
        if seen.contains(&letter) {
            return Err("a flag twice");
        }
        seen.push(letter);
        let good = match letter {
            b'q' | b'k' | b'O' => return Err("a flag that is the client's own"),
            b'b' => argument.is_empty() && unbase64(key).is_some(),
            b'F' | b'C' | b'D' | b'J' => decimal(argument).is_some(),
            b'T' | b'N' | b'R' => signed(argument).is_some(),
            b'M' => argument.len() == 1,
            _ => letter.is_ascii_alphabetic(),
        };
        if !good {
            return Err("a bad flag");
        }
    }
    Ok(())
}

/// The request that `buf` starts with; `None` if it is not whole yet.
pub fn request(buf: &[u8]) -> Result<Option<Wire<'_>>, String> {
    let is_get = buf.starts_with(b"get ") || buf.starts_with(b"gets ");
    let Some(end) = buf.iter().position(|&b| b == b'\n') else {
        return match buf.len() > 2048 && !is_get {
            true => Err("a line without end".into()),
            false => Ok(None),
        };
    };
    let line = buf[..end]
        .strip_suffix(b"\r")
        .ok_or("a line that ends without \\r")?;
    let words: Vec<&[u8]> = line.split(|&b| b == b' ').collect();
    if words.iter().any(|w| w.is_empty()) || line.contains(&0) {
        return Err("an empty word, or a NUL".into());
    }
    if end >= 2048 && !is_get {
        return Err(format!("a line of {} bytes", end + 1));
    }
    let data = check(&words).map_err(String::from)?;
    let from = end + 1;
    let Some(n) = data else {
        let data = &buf[from..from];
        return Ok(Some(Wire {
            words,
            data,
            len: from,
        }));
    };
    let Some(block) = buf[from..].get(..n + 2) else {
        return Ok(None);
    };
    if !block.ends_with(b"\r\n") {
        return Err("a data block of another length".into());
    }
    Ok(Some(Wire {
        words,
        data: &block[..n],
        len: from + n + 2,
    }))
}

/// Length of the data block that must follow a line, if any.
fn check(words: &[&[u8]]) -> Result<Option<usize>, &'static str> {
    let keys_from = |n: usize| words.len() > n && words[n..].iter().all(|w| is_key(w));
    let key = words.get(1).is_some_and(|w| is_key(w));
    let number = |i: usize| words.get(i).and_then(|w| decimal(w));
    let time = |i: usize| words.get(i).is_some_and(|w| signed(w).is_some());
    let store = |len: usize| {
        let good = words.len() == len && key && time(3);
        let flags = number(2).is_some_and(|n| n <= u64::from(u32::MAX));
        number(4).filter(|_| good && flags)
    };
    let mut data = None;
    let good = match words[0] {
        b"version" | b"stats" => words.len() == 1,
        b"flush_all" => words.len() == 1 || (words.len() == 2 && time(1)),
        b"get" | b"gets" => keys_from(1),
        b"gat" | b"gats" => time(1) && keys_from(2),
        b"set" | b"add" | b"replace" | b"append" | b"prepend" => {
            data = store(5);
            data.is_some()
        }
        b"cas" => {
            data = store(6);
            data.is_some() && number(5).is_some()
        }
        b"incr" | b"decr" => words.len() == 3 && key && number(2).is_some(),
        b"touch" => words.len() == 3 && key && time(2),
        b"delete" => words.len() == 2 && key,
        b"mg" | b"md" | b"ma" => key && check_flags(&words[2..], words[1]).map(|()| true)?,
        b"me" => key && matches!(words[2..], [] | [b"b"]),
        b"ms" => {
            data = number(2);
            key && data.is_some() && check_flags(&words[3..], words[1]).map(|()| true)?
        }
        _ => false,
    };
    match good {
        true => Ok(data.map(|n| n as usize)),
        false => Err("a line that is no request"),
    }
}

struct Item {
    value: Vec<u8>,
    flags: u32,
    cas: u64,
}

/// A memcached that keeps everything for ever; a time to live that is over is a delete.
#[derive(Default)]
pub struct Model {
    items: HashMap<Vec<u8>, Item>,
    cas: u64,
    /// What `stats` tells, in seconds.
    uptime: u64,
}

/// How a store treats what is there.
#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Set,
    Add,
    Replace,
    Append,
    Prepend,
}

enum Stored {
    Yes,
    Refused,
    Exists,
    NotFound,
}

impl Model {
    /// One that started a few seconds ago.
    pub fn young() -> Model {
        Model {
            uptime: 5,
            ..Model::default()
        }
    }

    /// The answer to a request that passed [`request`].
    pub fn answer(&mut self, wire: &Wire<'_>) -> Vec<u8> {
        let w = &wire.words;
        let number = |i: usize| w.get(i).and_then(|w| decimal(w)).unwrap_or(0);
        let gone = |i: usize| w.get(i).and_then(|w| signed(w)).is_some_and(|n| n < 0);
        match w[0] {
            b"version" => b"VERSION 1.6.18\r\n".to_vec(),
            b"stats" => format!("STAT pid 1\r\nSTAT uptime {}\r\nEND\r\n", self.uptime).into(),
            b"flush_all" => {
                self.items.clear();
                b"OK\r\n".to_vec()
            }
            b"get" | b"gets" => self.values(&w[1..], w[0] == b"gets", false),
            b"gat" | b"gats" => self.values(&w[2..], w[0] == b"gats", gone(1)),
            b"incr" | b"decr" => self.count(w[1], w[0] == b"incr", number(2)),
            b"touch" => self.touch(w[1], gone(2)),
            b"delete" => match self.items.remove(w[1]) {
                Some(_) => b"DELETED\r\n".to_vec(),
                None => b"NOT_FOUND\r\n".to_vec(),
            },
            b"mg" | b"ms" | b"md" | b"ma" | b"me" => self.meta(wire),
            _ => {
                let cas = (w[0] == b"cas").then(|| number(5));
                let mode = match w[0] {
                    b"add" => Mode::Add,
                    b"replace" => Mode::Replace,
                    b"append" => Mode::Append,
                    b"prepend" => Mode::Prepend,
                    _ => Mode::Set,
                };
                let said: &[u8] = match self.store(w[1], mode, number(2) as u32, wire.data, cas) {
                    Stored::Yes => b"STORED\r\n",
                    Stored::Refused => b"NOT_STORED\r\n",
                    Stored::Exists => b"EXISTS\r\n",
                    Stored::NotFound => b"NOT_FOUND\r\n",
                };
                if gone(3) {
                    self.items.remove(w[1]);
                }
                said.to_vec()
            }
        }
    }

    fn values(&mut self, keys: &[&[u8]], with_cas: bool, gone: bool) -> Vec<u8> {
        let mut out = Vec::new();
        for key in keys {
            let Some(item) = self.items.get(*key) else {
                continue;
            };
            out.extend_from_slice(b"VALUE ");
            out.extend_from_slice(key);
            out.extend(format!(" {} {}", item.flags, item.value.len()).bytes());
            if with_cas {
                out.extend(format!(" {}", item.cas).bytes());
            }
            out.extend([b"\r\n", &item.value[..], b"\r\n"].concat());
            if gone {
                self.items.remove(*key);
            }
        }
        out.extend_from_slice(b"END\r\n");
        out
    }

    fn touch(&mut self, key: &[u8], gone: bool) -> Vec<u8> {
        let found = self.items.contains_key(key);
        if gone {
            self.items.remove(key);
        }
        let said: &[u8] = if found {
            b"TOUCHED\r\n"
        } else {
            b"NOT_FOUND\r\n"
        };
        said.to_vec()
    }

    fn store(
        &mut self,
        key: &[u8],
        mode: Mode,
        flags: u32,
        value: &[u8],
        cas: Option<u64>,
    ) -> Stored {
        self.cas += 1;
        let old = self.items.get_mut(key);
        match (old, mode, cas) {
            (None, _, Some(_)) => Stored::NotFound,
            (Some(old), Mode::Set, Some(cas)) if old.cas != cas => Stored::Exists,
            (Some(_), Mode::Add, _) | (None, Mode::Replace | Mode::Append | Mode::Prepend, _) => {
                Stored::Refused
            }
            (Some(old), Mode::Append | Mode::Prepend, _) => {
                let at = if mode == Mode::Append {
                    old.value.len()
                } else {
                    0
                };
                old.value.splice(at..at, value.iter().copied());
                // Bounded as a real one is.
                old.value.truncate(8192);
                old.cas = self.cas;
                Stored::Yes
            }
            _ => {
                let item = Item {
                    value: value.to_vec(),
                    flags,
                    cas: self.cas,
                };
                self.items.insert(key.to_vec(), item);
                Stored::Yes
            }
        }
    }

    fn count(&mut self, key: &[u8], up: bool, by: u64) -> Vec<u8> {
        let Some(item) = self.items.get_mut(key) else {
            return b"NOT_FOUND\r\n".to_vec();
        };
        let Some(n) = decimal(&item.value) else {
            return b"CLIENT_ERROR cannot increment or decrement non-numeric value\r\n".to_vec();
        };
        let n = if up {
            n.wrapping_add(by)
        } else {
            n.saturating_sub(by)
        };
        self.cas += 1;
        (item.value, item.cas) = (n.to_string().into(), self.cas);
        format!("{n}\r\n").into()
    }

    fn meta(&mut self, wire: &Wire<'_>) -> Vec<u8> {
        let w = &wire.words;
        let flags = &w[if w[0] == b"ms" { 3 } else { 2 }..];
        let flag = |letter: u8| flags.iter().find(|f| f[0] == letter).map(|f| &f[1..]);
        let coded = flag(b'b').is_some();
        let key = if coded {
            unbase64(w[1]).unwrap_or_default()
        } else {
            w[1].to_vec()
        };
        let cas = flag(b'C').and_then(decimal);
        match w[0] {
            b"mg" => self.meta_get(&key, flags),
            b"me" => match self.items.get(&key) {
                Some(_) => [b"ME ", w[1], b" exp=-1 la=1\r\n"].concat(),
                None => b"EN\r\n".to_vec(),
            },
            b"md" => match self.items.get(&key) {
                None => b"NF\r\n".to_vec(),
                Some(item) if cas.is_some_and(|c| c != item.cas) => b"EX\r\n".to_vec(),
                Some(_) => {
                    self.items.remove(&key);
                    b"HD\r\n".to_vec()
                }
            },
            b"ma" => self.meta_count(&key, flags),
            _ => {
                let mode = match flag(b'M').and_then(|m| m.first()) {
                    Some(b'E' | b'e') => Mode::Add,
                    Some(b'R' | b'r') => Mode::Replace,
                    Some(b'A' | b'a') => Mode::Append,
                    Some(b'P' | b'p') => Mode::Prepend,
                    _ => Mode::Set,
                };
                let client_flags = flag(b'F').and_then(decimal).unwrap_or(0) as u32;
                let said: &[u8] = match self.store(&key, mode, client_flags, wire.data, cas) {
                    Stored::Yes => b"HD",
                    Stored::Refused => b"NS",
                    Stored::Exists => b"EX",
                    Stored::NotFound => b"NF",
                };
                let mut out = said.to_vec();
                if said == b"HD" && flag(b'c').is_some() {
                    out.extend(format!(" c{}", self.cas).bytes());
                }
                out.extend_from_slice(b"\r\n");
                out
            }
        }
    }

    fn meta_get(&mut self, key: &[u8], flags: &[&[u8]]) -> Vec<u8> {
        let creates = flags.iter().any(|f| f[0] == b'N');
        let mut won = false;
        if creates && !self.items.contains_key(key) {
            self.store(key, Mode::Set, 0, b"", None);
            won = true;
        }
        let Some(item) = self.items.get(key) else {
            return b"EN\r\n".to_vec();
        };
        let with_value = flags.iter().any(|f| f[0] == b'v');
        let mut out = match with_value {
            true => format!("VA {}", item.value.len()).into_bytes(),
            false => b"HD".to_vec(),
        };
        item.returned(flags, b"tfschl", &mut out);
        if won {
            out.extend_from_slice(b" W");
        }
        out.extend_from_slice(b"\r\n");
        if with_value {
            out.extend([&item.value[..], b"\r\n"].concat());
        }
        out
    }

    fn meta_count(&mut self, key: &[u8], flags: &[&[u8]]) -> Vec<u8> {
        let flag = |letter: u8| flags.iter().find(|f| f[0] == letter).map(|f| &f[1..]);
        let up = !matches!(flag(b'M').and_then(|m| m.first()), Some(b'D' | b'-' | b'd'));
        let by = flag(b'D').and_then(decimal).unwrap_or(1);
        let cas = flag(b'C').and_then(decimal);
        match self.items.get(key) {
            None if flag(b'N').is_none() => return b"NF\r\n".to_vec(),
            None => {
                let start = flag(b'J').and_then(decimal).unwrap_or(0);
                self.store(key, Mode::Set, 0, start.to_string().as_bytes(), None);
            }
            Some(item) if cas.is_some_and(|c| c != item.cas) => return b"EX\r\n".to_vec(),
            Some(_) => {
                let said = self.count(key, up, by);
                if said.starts_with(b"CLIENT") {
                    return said;
                }
            }
        }
        let item = &self.items[key];
        let mut out = format!("VA {}", item.value.len()).into_bytes();
        item.returned(flags, b"tc", &mut out);
        [&out[..], b"\r\n", &item.value, b"\r\n"].concat()
    }
}

impl Item {
    /// The tokens that flags ask for, in the request's order.
    fn returned(&self, flags: &[&[u8]], which: &[u8], out: &mut Vec<u8>) {
        for flag in flags.iter().filter(|f| which.contains(&f[0])) {
            let text = match flag[0] {
                b't' => " t-1".to_string(),
                b'f' => format!(" f{}", self.flags),
                b's' => format!(" s{}", self.value.len()),
                b'c' => format!(" c{}", self.cas),
                b'h' => " h0".to_string(),
                _ => " l0".to_string(),
            };
            out.extend(text.bytes());
        }
    }
}
