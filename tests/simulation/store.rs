//! What a model memcached holds and how it answers, as far as magent asks.
//!
//! It is strict: whatever magent may not send to a server is an error of the run.

use super::history::{self, Kind, Write};
use std::collections::HashMap;

/// Seconds since the epoch at the virtual clock's zero.
pub const UNIX: u64 = 1_700_000_000;

/// One second in nanoseconds.
pub const SECOND: u64 = 1_000_000_000;

/// Larger values are refused, in bytes.
pub const ITEM_MAX: usize = 48 * 1024;

/// One value.
#[derive(Clone, Debug)]
pub struct Item {
    pub flags: u32,
    /// In nanoseconds of the virtual clock.
    pub expires: u64,
    cas: u64,
    pub data: Vec<u8>,
}

/// One server's memory.
#[derive(Default, Debug)]
pub struct Store {
    items: HashMap<Vec<u8>, Item>,
    next_cas: u64,
    pub started: u64,
    now: u64,
    /// Stores fail for want of memory.
    pub full: bool,
    /// How often each write was done here, over all lives of the server.
    applied: HashMap<u64, u32>,
}

/// A command line, taken apart.
struct Words<'a> {
    all: Vec<&'a str>,
}

impl<'a> Words<'a> {
    fn at(&self, i: usize) -> &'a str {
        self.all.get(i).copied().unwrap_or("")
    }

    fn number(&self, i: usize) -> Result<u64, String> {
        let bad = |_| format!("word {i} of {:?}", self.all.join(" "));
        self.at(i).parse().map_err(bad)
    }

    fn flags(&self, from: usize) -> impl Iterator<Item = &'a str> + '_ {
        self.all.iter().skip(from).copied()
    }

    fn flag(&self, from: usize, letter: char) -> Option<&'a str> {
        self.flags(from).find_map(|f| f.strip_prefix(letter))
    }
}

/// How many bytes follow the line, with their line end; `None` if it is no line for a server.
pub fn data_after(line: &str) -> Result<Option<usize>, String> {
    let words: Vec<&str> = line.split(' ').collect();
    let at = match words[0] {
        "set" | "add" | "replace" | "append" | "prepend" | "cas" => 4,
        "ms" => 2,
        _ => return Ok(None),
    };
    let length = words.get(at).and_then(|w| w.parse::<usize>().ok());
    length
        .map(|n| Some(n + 2))
        .ok_or(format!("bad line {line:?}"))
}

/// Flags that magent keeps to itself.
fn no_client_flags(words: &Words<'_>, from: usize) -> Result<(), String> {
    match words.flags(from).find(|f| f.starts_with(['q', 'k', 'O'])) {
        Some(f) => Err(format!("{f} went to a server: {}", words.all.join(" "))),
        None => Ok(()),
    }
}

impl Store {
    /// Starts empty.
    pub fn restart(&mut self, now: u64) {
        self.items.clear();
        self.started = now;
    }

    /// Changes the clock.
    pub fn at(&mut self, now: u64) -> &mut Store {
        self.now = now;
        self
    }

    /// The value of a key, unless it has expired.
    pub fn get(&self, key: &str, now: u64) -> Option<&Item> {
        let item = self.items.get(key.as_bytes())?;
        (item.expires > now).then_some(item)
    }

    fn item(&mut self, key: &str) -> Option<&mut Item> {
        let now = self.now;
        if self.items.get(key.as_bytes())?.expires <= now {
            self.items.remove(key.as_bytes());
        }
        self.items.get_mut(key.as_bytes())
    }

    fn expiry(&self, text: &str) -> Result<u64, String> {
        let seconds: i64 = text.parse().map_err(|_| format!("bad time {text:?}"))?;
        Ok(match seconds {
            0 => u64::MAX,
            ..0 => 0,
            1..=2_592_000 => self.now + seconds as u64 * SECOND,
            _ => (seconds as u64).saturating_sub(UNIX) * SECOND,
        })
    }

    fn put(&mut self, key: &str, flags: u32, expires: u64, data: &[u8]) -> u64 {
        self.next_cas += 1;
        let cas = self.next_cas;
        let item = Item {
            flags,
            expires,
            cas,
            data: data.to_vec(),
        };
        self.items.insert(key.as_bytes().to_vec(), item);
        cas
    }

    /// Counts a write that was done: never twice on one server.
    fn apply(&mut self, write: u64) -> Result<(), String> {
        let n = self.applied.entry(write).or_default();
        *n += 1;
        match n {
            1 => Ok(()),
            _ => Err(format!("write {write} was done {n} times on one server")),
        }
    }

    fn apply_data(&mut self, data: &[u8]) -> Result<(), String> {
        match history::tags(data) {
            Ok(tags) if tags.len() == 1 => self.apply(tags[0].1),
            _ => Ok(()),
        }
    }

    /// Does one command; appends its answer.
    pub fn run(
        &mut self,
        line: &str,
        data: &[u8],
        writes: &[Write],
        out: &mut Vec<u8>,
    ) -> Result<(), String> {
        let words = Words {
            all: line.split(' ').collect(),
        };
        match words.at(0) {
            "version" if line == "version" => out.extend_from_slice(b"VERSION 1.6.18\r\n"),
            "stats" if line == "stats" => {
                let uptime = (self.now - self.started) / SECOND;
                let text = format!("STAT pid 1\r\nSTAT uptime {uptime}\r\nSTAT x y\r\nEND\r\n");
                out.extend_from_slice(text.as_bytes());
            }
            "flush_all" if line == "flush_all" => {
                self.items.clear();
                out.extend_from_slice(b"OK\r\n");
            }
            "get" | "gets" | "gat" | "gats" => self.read(&words, out)?,
            "set" | "add" | "replace" | "append" | "prepend" | "cas" => {
                let answer = self.store(&words, data)?;
                out.extend_from_slice(answer.as_bytes());
            }
            "incr" | "delete" | "touch" => {
                let answer = self.change(&words, writes)?;
                out.extend_from_slice(answer.as_bytes());
            }
            "mg" => self.meta_get(&words, out)?,
            "ms" => {
                let answer = self.meta_set(&words, data)?;
                out.extend_from_slice(answer.as_bytes());
            }
            "md" => {
                no_client_flags(&words, 2)?;
                let answer = match self.item(words.at(1)).map(|i| i.cas) {
                    None => "NF\r\n",
                    Some(cas) if words.flag(2, 'C').is_some_and(|c| c != cas.to_string()) => {
                        "EX\r\n"
                    }
                    Some(_) => {
                        self.items.remove(words.at(1).as_bytes());
                        "HD\r\n"
                    }
                };
                out.extend_from_slice(answer.as_bytes());
            }
            "ma" => {
                let answer = self.meta_count(&words, writes)?;
                out.extend_from_slice(answer.as_bytes());
            }
            _ => return Err(format!("no line for a server: {line:?}")),
        }
        Ok(())
    }

    fn read(&mut self, words: &Words<'_>, out: &mut Vec<u8>) -> Result<(), String> {
        let touches = words.at(0).starts_with("gat");
        let skip = if touches { 2 } else { 1 };
        if words.all.len() <= skip {
            return Err(format!("no key: {:?}", words.all));
        }
        let expires = if touches {
            Some(self.expiry(words.at(1))?)
        } else {
            None
        };
        for key in words.flags(skip) {
            let Some(item) = self.item(key) else { continue };
            item.expires = expires.unwrap_or(item.expires);
            let (flags, len) = (item.flags, item.data.len());
            let cas = match words.at(0) {
                "gets" | "gats" => format!(" {}", item.cas),
                _ => String::new(),
            };
            out.extend_from_slice(format!("VALUE {key} {flags} {len}{cas}\r\n").as_bytes());
            out.extend_from_slice(&item.data);
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b"END\r\n");
        Ok(())
    }

    fn store(&mut self, words: &Words<'_>, data: &[u8]) -> Result<&'static str, String> {
        let (verb, key) = (words.at(0), words.at(1));
        let expected = if verb == "cas" { 6 } else { 5 };
        if words.all.len() != expected {
            return Err(format!("words of {:?}", words.all));
        }
        let flags = words.number(2)? as u32;
        let expires = self.expiry(words.at(3))?;
        if data.len() > ITEM_MAX || self.full {
            if verb == "set" {
                self.items.remove(key.as_bytes());
            }
            return Ok(if self.full {
                "SERVER_ERROR out of memory storing object\r\n"
            } else {
                "SERVER_ERROR object too large for cache\r\n"
            });
        }
        let there = self.item(key).map(|i| i.cas);
        match (verb, there) {
            ("add", Some(_)) | ("replace" | "append" | "prepend", None) => {
                return Ok("NOT_STORED\r\n");
            }
            ("cas", None) => return Ok("NOT_FOUND\r\n"),
            ("cas", Some(cas)) if cas != words.number(5)? => return Ok("EXISTS\r\n"),
            ("append" | "prepend", Some(_)) => self.extend(key, verb == "append", data),
            _ => {
                self.put(key, flags, expires, data);
            }
        }
        // An add may be magent's own copy.
        if verb != "add" {
            self.apply_data(data)?;
        }
        Ok("STORED\r\n")
    }

    fn extend(&mut self, key: &str, behind: bool, data: &[u8]) {
        self.next_cas += 1;
        let cas = self.next_cas;
        if let Some(item) = self.item(key) {
            item.cas = cas;
            let at = if behind { item.data.len() } else { 0 };
            item.data.splice(at..at, data.iter().copied());
        }
    }

    fn change(&mut self, words: &Words<'_>, writes: &[Write]) -> Result<String, String> {
        let (verb, key) = (words.at(0), words.at(1));
        if words.all.len() != if verb == "delete" { 2 } else { 3 } {
            return Err(format!("words of {:?}", words.all));
        }
        if verb == "incr" {
            return match self.count(key, words.number(2)?, writes)? {
                Some((number, _)) => Ok(format!("{number}\r\n")),
                None => Ok("NOT_FOUND\r\n".into()),
            };
        }
        if self.item(key).is_none() {
            return Ok("NOT_FOUND\r\n".into());
        }
        if verb == "delete" {
            self.items.remove(key.as_bytes());
            return Ok("DELETED\r\n".into());
        }
        let expires = self.expiry(words.at(2))?;
        if let Some(item) = self.item(key) {
            item.expires = expires;
        }
        Ok("TOUCHED\r\n".into())
    }

    /// The delta of a count is its write's number and one: none is done twice unseen.
    fn count(
        &mut self,
        key: &str,
        delta: u64,
        writes: &[Write],
    ) -> Result<Option<(u64, u64)>, String> {
        let write = delta.wrapping_sub(1);
        if writes
            .get(write as usize)
            .is_none_or(|w| w.kind != Kind::Count)
        {
            return Err(format!("{key}: nobody asked for incr {delta}"));
        }
        self.next_cas += 1;
        let cas = self.next_cas;
        let Some(item) = self.item(key) else {
            return Ok(None);
        };
        let text = String::from_utf8_lossy(&item.data).into_owned();
        let number: u64 = text.parse().map_err(|_| format!("{key} holds {text:?}"))?;
        item.data = (number + delta).to_string().into_bytes();
        item.cas = cas;
        self.apply(write)?;
        Ok(Some((number + delta, cas)))
    }

    fn meta_get(&mut self, words: &Words<'_>, out: &mut Vec<u8>) -> Result<(), String> {
        no_client_flags(words, 2)?;
        let (key, now) = (words.at(1), self.now);
        let touch = match words.flag(2, 'T') {
            Some(text) => Some(self.expiry(text)?),
            None => None,
        };
        let Some(item) = self.item(key) else {
            out.extend_from_slice(b"EN\r\n");
            return Ok(());
        };
        item.expires = touch.unwrap_or(item.expires);
        let ttl = match item.expires {
            u64::MAX => "-1".to_string(),
            at => ((at - now) / SECOND).to_string(),
        };
        let value = words.flags(2).any(|f| f == "v");
        let mut line = match value {
            true => format!("VA {}", item.data.len()),
            false => "HD".to_string(),
        };
        for flag in words.flags(2) {
            line += &match flag {
                "f" => format!(" f{}", item.flags),
                "c" => format!(" c{}", item.cas),
                "s" => format!(" s{}", item.data.len()),
                "t" => format!(" t{ttl}"),
                _ if flag == "v" || flag.starts_with('T') => String::new(),
                _ => return Err(format!("mg {flag}")),
            };
        }
        out.extend_from_slice(line.as_bytes());
        out.extend_from_slice(b"\r\n");
        if value {
            out.extend_from_slice(&item.data);
            out.extend_from_slice(b"\r\n");
        }
        Ok(())
    }

    fn meta_set(&mut self, words: &Words<'_>, data: &[u8]) -> Result<String, String> {
        no_client_flags(words, 3)?;
        let key = words.at(1);
        let mode = words.flag(3, 'M').unwrap_or("S");
        let flags = words.flag(3, 'F').unwrap_or("0");
        let flags: u32 = flags.parse().map_err(|_| format!("F{flags}"))?;
        let expires = self.expiry(words.flag(3, 'T').unwrap_or("0"))?;
        if data.len() > ITEM_MAX || self.full {
            if mode == "S" {
                self.items.remove(key.as_bytes());
            }
            return Ok("SERVER_ERROR out of memory storing object\r\n".into());
        }
        let there = self.item(key).map(|i| i.cas);
        match (mode, there) {
            ("E", Some(_)) | ("R" | "A" | "P", None) => return Ok("NS\r\n".into()),
            ("A" | "P", Some(_)) => self.extend(key, mode == "A", data),
            ("S" | "E" | "R", _) => {
                if let Some(token) = words.flag(3, 'C') {
                    match there {
                        None => return Ok("NF\r\n".into()),
                        Some(cas) if cas.to_string() != token => return Ok("EX\r\n".into()),
                        Some(_) => {}
                    }
                }
                self.put(key, flags, expires, data);
            }
            _ => return Err(format!("ms M{mode}")),
        }
        if mode != "E" {
            self.apply_data(data)?;
        }
        let mut line = "HD".to_string();
        if words.flags(3).any(|f| f == "c") {
            line += &format!(" c{}", self.next_cas);
        }
        Ok(line + "\r\n")
    }

    fn meta_count(&mut self, words: &Words<'_>, writes: &[Write]) -> Result<String, String> {
        no_client_flags(words, 2)?;
        if !words.flags(2).any(|f| f == "v") {
            return Err(format!("ma without v: {:?}", words.all));
        }
        let key = words.at(1);
        let delta = words.flag(2, 'D').unwrap_or("1");
        let delta = delta.parse().map_err(|_| format!("D{delta}"))?;
        let number = match (self.count(key, delta, writes)?, words.flag(2, 'N')) {
            (Some((number, _)), _) => number.to_string(),
            (None, None) => return Ok("NF\r\n".into()),
            (None, Some(ttl)) => {
                let expires = self.expiry(ttl)?;
                let first = words.flag(2, 'J').unwrap_or("0");
                self.put(key, 0, expires, first.as_bytes());
                first.to_string()
            }
        };
        Ok(format!("VA {}\r\n{number}\r\n", number.len()))
    }
}
