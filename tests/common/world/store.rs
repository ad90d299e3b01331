//! A model memcached: what it holds, and how it answers what passed the checker.

use super::wire::{Wire, decimal, signed, unbase64};
use std::collections::{HashMap, HashSet};

/// Seconds since the epoch at the virtual clock's zero.
pub const UNIX: u64 = 1_700_000_000;

/// One second in nanoseconds.
pub const SECOND: u64 = 1_000_000_000;

/// One value.
#[derive(Clone, Debug, Default)]
pub struct Item {
    pub data: Vec<u8>,
    pub flags: u32,
    /// In nanoseconds of the virtual clock.
    pub expires: u64,
    pub cas: u64,
    stale: bool,
    /// Somebody was told to renew it.
    won: bool,
    fetched: bool,
}

/// One server's memory.
#[derive(Debug)]
pub struct Store {
    items: HashMap<Vec<u8>, Item>,
    cas: u64,
    /// In nanoseconds of the virtual clock.
    pub now: u64,
    /// When it started, and how old it was then in seconds.
    pub started: u64,
    pub age: u64,
    /// Larger values are refused, in bytes.
    pub item_max: usize,
    /// Stores fail for want of memory.
    pub full: bool,
    /// How it tells its keys.
    pub metadump: Metadump,
    /// It is a memcached 1.4.15: no meta commands, no metadump.
    pub is_old: bool,
    /// Keys that were asked for shortly after they had expired. Another server may have kept them a little
    /// longer, since remaining times are told in whole seconds, and a touch then found them there only.
    pub missed: HashSet<Vec<u8>>,
    /// It has every key: the value of key `k100.7` is 100 bytes long.
    pub fills: bool,
}

impl Default for Store {
    fn default() -> Store {
        Store {
            items: HashMap::new(),
            missed: HashSet::new(),
            cas: 0,
            now: 0,
            started: 0,
            age: 100_000,
            item_max: 64 << 20,
            full: false,
            metadump: Metadump::Hash,
            is_old: false,
            fills: false,
        }
    }
}

/// How a server tells its keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Metadump {
    /// As memcached 1.6.
    Hash,
    /// As an older one.
    AllOnly,
    /// Not at all.
    Never,
    /// Somebody else is being told.
    Busy,
    /// The same, and it does not say so.
    Silent,
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

#[derive(Clone, Copy, PartialEq)]
enum Stored {
    Yes,
    Refused,
    Exists,
    NotFound,
    TooLarge,
    NoMemory,
}

impl Stored {
    /// In the words of text and of meta commands.
    fn words(self) -> (&'static [u8], &'static [u8]) {
        match self {
            Stored::Yes => (b"STORED", b"HD"),
            Stored::Refused => (b"NOT_STORED", b"NS"),
            Stored::Exists => (b"EXISTS", b"EX"),
            Stored::NotFound => (b"NOT_FOUND", b"NF"),
            Stored::TooLarge => {
                let line = b"SERVER_ERROR object too large for cache";
                (line, line)
            }
            Stored::NoMemory => {
                let line = b"SERVER_ERROR out of memory storing object";
                (line, line)
            }
        }
    }
}

fn line(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(text);
    out.extend_from_slice(b"\r\n");
}

/// Length of the value of a key like `k100.7`.
fn filler_len(key: &[u8]) -> usize {
    let key = String::from_utf8_lossy(key);
    let digits = key.trim_start_matches(|c: char| !c.is_ascii_digit());
    let end = digits.find('.').unwrap_or(digits.len());
    digits[..end].parse().unwrap_or(1)
}

/// What a store whose servers hold every key answers to a get of these keys.
pub fn filled(keys: &[&str]) -> Vec<u8> {
    let mut out = Vec::new();
    for key in keys {
        let len = filler_len(key.as_bytes());
        line(&mut out, format!("VALUE {key} 0 {len}").as_bytes());
        line(&mut out, &vec![b'v'; len]);
    }
    line(&mut out, b"END");
    out
}

impl Store {
    /// Starts empty.
    pub fn restart(&mut self, now: u64) {
        self.items.clear();
        self.missed.clear();
        (self.started, self.age) = (now, 0);
    }

    /// The value of a key, unless it has expired.
    pub fn get(&self, key: &str, now: u64) -> Option<&Item> {
        let item = self.items.get(key.as_bytes())?;
        (item.expires > now).then_some(item)
    }

    /// A client that goes round magent deletes a key.
    pub fn remove(&mut self, key: &str) {
        self.items.remove(key.as_bytes());
    }

    /// All that was put there.
    pub fn items(&self) -> &HashMap<Vec<u8>, Item> {
        &self.items
    }

    fn item(&mut self, key: &[u8]) -> Option<&mut Item> {
        let now = self.now;
        match self.items.get(key) {
            Some(item) if item.expires <= now => {
                if now - item.expires < 2 * SECOND {
                    self.missed.insert(key.to_vec());
                }
                self.items.remove(key);
            }
            None if self.fills => {
                let data = vec![b'v'; filler_len(key)];
                self.put(key, data, 0, u64::MAX);
            }
            _ => {}
        }
        self.items.get_mut(key)
    }

    fn expiry(&self, seconds: i64) -> u64 {
        match seconds {
            0 => u64::MAX,
            ..0 => 0,
            1..=2_592_000 => self.now + seconds as u64 * SECOND,
            _ => (seconds as u64).saturating_sub(UNIX).saturating_mul(SECOND),
        }
    }

    fn time(&self, word: Option<&[u8]>) -> Option<u64> {
        word.map(|w| self.expiry(signed(w).unwrap_or(0)))
    }

    fn put(&mut self, key: &[u8], data: Vec<u8>, flags: u32, expires: u64) -> &mut Item {
        self.missed.remove(key);
        self.cas += 1;
        let item = Item {
            data,
            flags,
            expires,
            cas: self.cas,
            ..Item::default()
        };
        let place = self.items.entry(key.to_vec()).or_default();
        *place = item;
        place
    }

    /// What a store of `len` bytes is answered at its line already, if it is refused.
    pub fn refuses(&mut self, wire: &Wire<'_>, len: usize) -> Option<&'static [u8]> {
        let refusal = match () {
            () if len > self.item_max => Stored::TooLarge,
            () if self.full => Stored::NoMemory,
            () => return None,
        };
        // An old value must not outlive the wish to replace it.
        let mode = wire.flag(b'M').and_then(|m| m.first().copied());
        if wire.words[0] == b"set" || (wire.words[0] == b"ms" && matches!(mode, None | Some(b'S')))
        {
            self.items.remove(&key_of(wire));
        }
        Some(refusal.words().0)
    }

    /// Does a request that passed the checker; adds its answer.
    pub fn answer(&mut self, wire: &Wire<'_>, out: &mut Vec<u8>) {
        let w = &wire.words;
        match w[0] {
            b"version" if self.is_old => line(out, b"VERSION 1.4.15"),
            // The value of a line that it does not know is another one.
            b"ms" if self.is_old => out.extend_from_slice(b"ERROR\r\nERROR\r\n"),
            b"lru_crawler" | b"mg" | b"me" | b"md" | b"ma" if self.is_old => line(out, b"ERROR"),
            b"version" => line(out, b"VERSION 1.6.18"),
            b"stats" if w.len() > 1 => {
                let keys = self.items.len();
                line(out, format!("STAT items:1:number {keys}").as_bytes());
                line(out, b"END");
            }
            b"stats" => {
                let uptime = (self.now - self.started) / SECOND + self.age;
                line(out, b"STAT pid 1");
                line(out, format!("STAT uptime {uptime}").as_bytes());
                line(out, b"END");
            }
            b"lru_crawler" => self.dump(w[2] == b"hash", out),
            b"flush_all" => {
                self.items.clear();
                line(out, b"OK");
            }
            b"get" | b"gets" => self.values(&w[1..], w[0] == b"gets", None, out),
            b"gat" | b"gats" => {
                let touch = self.time(Some(w[1]));
                self.values(&w[2..], w[0] == b"gats", touch, out);
            }
            b"incr" | b"decr" => {
                let n = self.count(w[1], w[0] == b"incr", wire.number(2));
                match n {
                    None => line(out, b"NOT_FOUND"),
                    Some(Err(text)) => line(out, text),
                    Some(Ok(n)) => line(out, n.to_string().as_bytes()),
                }
            }
            b"touch" => {
                let expires = self.expiry(signed(w[2]).unwrap_or(0));
                match self.item(w[1]) {
                    None => line(out, b"NOT_FOUND"),
                    Some(item) => {
                        item.expires = expires;
                        line(out, b"TOUCHED");
                    }
                }
            }
            b"delete" => match self.item(w[1]).is_some() {
                true => {
                    self.items.remove(w[1]);
                    line(out, b"DELETED");
                }
                false => line(out, b"NOT_FOUND"),
            },
            b"mg" | b"ms" | b"md" | b"ma" | b"me" => self.meta(wire, out),
            _ => {
                let cas = (w[0] == b"cas").then(|| wire.number(5));
                let mode = match w[0] {
                    b"add" => Mode::Add,
                    b"replace" => Mode::Replace,
                    b"append" => Mode::Append,
                    b"prepend" => Mode::Prepend,
                    _ => Mode::Set,
                };
                let expires = self.expiry(signed(w[3]).unwrap_or(0));
                let flags = wire.number(2) as u32;
                let stored = self.store(w[1], mode, wire.data, (flags, expires, cas));
                line(out, stored.words().0);
            }
        }
    }

    fn dump(&self, by_hash: bool, out: &mut Vec<u8>) {
        match (self.metadump, by_hash) {
            (Metadump::Busy, _) => return line(out, b"BUSY currently processing crawler request"),
            (Metadump::Silent, _) => return,
            (Metadump::Never, _) => return line(out, b"CLIENT_ERROR lru crawler disabled"),
            (Metadump::AllOnly, true) => return line(out, b"BADCLASS invalid class id"),
            _ => {}
        }
        let mut keys: Vec<_> = self
            .items
            .iter()
            .filter(|(_, i)| i.expires > self.now)
            .collect();
        keys.sort_unstable_by_key(|(key, _)| *key);
        for (key, item) in keys {
            let coded: String = key.iter().map(|b| format!("%{b:02X}")).collect();
            let size = 56 + key.len() + item.data.len();
            out.extend(
                format!("key={coded} exp=-1 la=1 cas=1 fetch=no cls=1 size={size}\n").bytes(),
            );
        }
        line(out, b"END");
    }

    fn values(&mut self, keys: &[&[u8]], cas: bool, touch: Option<u64>, out: &mut Vec<u8>) {
        for key in keys {
            let Some(item) = self.item(key) else { continue };
            item.expires = touch.unwrap_or(item.expires);
            item.fetched = true;
            out.extend([b"VALUE ", *key].concat());
            out.extend(format!(" {} {}", item.flags, item.data.len()).bytes());
            if cas {
                out.extend(format!(" {}", item.cas).bytes());
            }
            line(out, b"");
            line(out, &item.data);
        }
        line(out, b"END");
    }

    fn store(
        &mut self,
        key: &[u8],
        mode: Mode,
        data: &[u8],
        (flags, expires, cas): (u32, u64, Option<u64>),
    ) -> Stored {
        // One that has every key has it for readers only.
        let fills = std::mem::take(&mut self.fills);
        let old = self.item(key).map(|i| (i.cas, i.data.len()));
        self.fills = fills;
        match (old, mode, cas) {
            (None, _, Some(_)) => return Stored::NotFound,
            (Some((is, _)), Mode::Set | Mode::Replace, Some(cas)) if is != cas => {
                return Stored::Exists;
            }
            (Some(_), Mode::Add, _) if !fills => return Stored::Refused,
            (None, Mode::Replace | Mode::Append | Mode::Prepend, _) => return Stored::Refused,
            (Some((_, len)), Mode::Append | Mode::Prepend, _) => {
                if len + data.len() > self.item_max {
                    return Stored::NoMemory;
                }
                self.cas += 1;
                let cas = self.cas;
                if let Some(item) = self.item(key) {
                    let at = if mode == Mode::Append { len } else { 0 };
                    item.data.splice(at..at, data.iter().copied());
                    item.cas = cas;
                }
            }
            _ => drop(self.put(key, data.to_vec(), flags, expires).cas),
        }
        Stored::Yes
    }

    fn count(&mut self, key: &[u8], up: bool, by: u64) -> Option<Result<u64, &'static [u8]>> {
        self.cas += 1;
        let cas = self.cas;
        let item = self.item(key)?;
        let Some(n) = decimal(item.data.trim_ascii_end()) else {
            return Some(Err(
                b"CLIENT_ERROR cannot increment or decrement non-numeric value",
            ));
        };
        let n = match up {
            true => n.wrapping_add(by),
            false => n.saturating_sub(by),
        };
        (item.data, item.cas) = (n.to_string().into(), cas);
        Some(Ok(n))
    }

    fn meta(&mut self, wire: &Wire<'_>, out: &mut Vec<u8>) {
        let key = key_of(wire);
        let cas = wire.flag(b'C').and_then(decimal);
        match wire.words[0] {
            b"mg" => self.meta_get(&key, wire, out),
            b"me" => match self.item(&key) {
                Some(item) => {
                    let told = format!(" exp=-1 la=1 cas={} fetch=no", item.cas);
                    line(out, &[b"ME ", wire.words[1], told.as_bytes()].concat());
                }
                None => line(out, b"EN"),
            },
            b"md" => match self.item(&key) {
                None => line(out, b"NF"),
                Some(item) if cas.is_some_and(|c| c != item.cas) => line(out, b"EX"),
                Some(_) if wire.flag(b'I').is_some() => {
                    self.invalidate(&key, wire);
                    line(out, b"HD");
                }
                Some(_) => {
                    self.items.remove(&key);
                    line(out, b"HD");
                }
            },
            b"ma" => self.meta_count(&key, wire, out),
            _ => {
                let mode = match wire.flag(b'M').and_then(|m| m.first()) {
                    Some(b'E' | b'e') => Mode::Add,
                    Some(b'R' | b'r') => Mode::Replace,
                    Some(b'A' | b'a') => Mode::Append,
                    Some(b'P' | b'p') => Mode::Prepend,
                    _ => Mode::Set,
                };
                let flags = wire.flag(b'F').and_then(decimal).unwrap_or(0) as u32;
                let expires = self.time(wire.flag(b'T')).unwrap_or(u64::MAX);
                let mut stored = self.store(&key, mode, wire.data, (flags, expires, cas));
                if let (Stored::Refused, Mode::Append | Mode::Prepend, Some(ttl)) =
                    (stored, mode, wire.flag(b'N'))
                {
                    let expires = self.expiry(signed(ttl).unwrap_or(0));
                    self.put(&key, wire.data.to_vec(), flags, expires);
                    stored = Stored::Yes;
                }
                out.extend_from_slice(stored.words().1);
                if stored == Stored::Yes {
                    self.explicit_cas(&key, wire);
                    if wire.flag(b'c').is_some() {
                        out.extend(format!(" c{}", self.items[&key].cas).bytes());
                    }
                }
                line(out, b"");
            }
        }
    }

    fn explicit_cas(&mut self, key: &[u8], wire: &Wire<'_>) {
        if let (Some(cas), Some(item)) =
            (wire.flag(b'E').and_then(decimal), self.items.get_mut(key))
        {
            item.cas = cas;
        }
    }

    /// The value is old: the next reader is told to renew it.
    fn invalidate(&mut self, key: &[u8], wire: &Wire<'_>) {
        self.cas += 1;
        let (cas, touch) = (self.cas, self.time(wire.flag(b'T')));
        if let Some(item) = self.items.get_mut(key) {
            (item.stale, item.won, item.cas) = (true, false, cas);
            item.expires = touch.unwrap_or(item.expires);
        }
        self.explicit_cas(key, wire);
    }

    fn meta_get(&mut self, key: &[u8], wire: &Wire<'_>, out: &mut Vec<u8>) {
        let touch = self.time(wire.flag(b'T'));
        let renew = wire.flag(b'R').and_then(signed);
        let now = self.now;
        let mut state = b"".as_slice();
        if self.item(key).is_none() {
            let Some(expires) = self.time(wire.flag(b'N')) else {
                return line(out, b"EN");
            };
            self.put(key, Vec::new(), 0, expires).won = true;
            state = b" W";
        }
        let item = self.items.get_mut(key).expect("it was made");
        let left = item.expires.saturating_sub(now) / SECOND;
        if state.is_empty() {
            let due = item.expires != u64::MAX && renew.is_some_and(|r| (left as i64) < r);
            state = match (item.won, item.stale) {
                (true, false) => b" Z",
                (true, true) => b" Z X",
                (false, true) => b" X W",
                (false, false) if due => b" W",
                _ => b"",
            };
            item.won |= item.stale || due;
            item.expires = touch.unwrap_or(item.expires);
        }
        let value = wire.flag(b'v').is_some();
        match value {
            true => out.extend(format!("VA {}", item.data.len()).bytes()),
            false => out.extend_from_slice(b"HD"),
        }
        item.returned(wire.flags(), b"tfschl", now, out);
        item.fetched |= wire.flag(b'u').is_none();
        line(out, state);
        if value {
            line(out, &item.data);
        }
    }

    fn meta_count(&mut self, key: &[u8], wire: &Wire<'_>, out: &mut Vec<u8>) {
        let up = !matches!(
            wire.flag(b'M').and_then(|m| m.first()),
            Some(b'D' | b'-' | b'd')
        );
        let by = wire.flag(b'D').and_then(decimal).unwrap_or(1);
        let cas = wire.flag(b'C').and_then(decimal);
        match self.item(key).map(|i| i.cas) {
            Some(is) if cas.is_some_and(|c| c != is) => return line(out, b"EX"),
            Some(_) => {
                if let Some(Err(text)) = self.count(key, up, by) {
                    return line(out, text);
                }
                let touch = self.time(wire.flag(b'T'));
                let item = self.items.get_mut(key).expect("it was counted");
                item.expires = touch.unwrap_or(item.expires);
            }
            None => {
                let Some(expires) = self.time(wire.flag(b'N')) else {
                    return line(out, b"NF");
                };
                let start = wire.flag(b'J').and_then(decimal).unwrap_or(0);
                self.put(key, start.to_string().into(), 0, expires);
            }
        }
        self.explicit_cas(key, wire);
        let item = &self.items[key];
        out.extend(format!("VA {}", item.data.len()).bytes());
        item.returned(wire.flags(), b"tc", self.now, out);
        line(out, b"");
        line(out, &item.data);
    }
}

/// What the key of a meta command means; of any other it is the word itself.
pub fn key_of(wire: &Wire<'_>) -> Vec<u8> {
    let meta = wire.words[0].len() == 2 && wire.words[0][0] == b'm';
    match meta && wire.flag(b'b').is_some() {
        true => unbase64(wire.words[1]).unwrap_or_default(),
        false => wire.words.get(1).map(|w| w.to_vec()).unwrap_or_default(),
    }
}

impl Item {
    /// True if it is to be renewed.
    pub fn is_stale(&self) -> bool {
        self.stale
    }

    /// True if it was made by a `mg` that found nothing, for whoever is to renew it.
    pub fn is_placeholder(&self) -> bool {
        self.won && self.data.is_empty()
    }

    /// The tokens that flags ask for, in the request's order.
    fn returned(&self, flags: &[&[u8]], which: &[u8], now: u64, out: &mut Vec<u8>) {
        for flag in flags.iter().filter(|f| which.contains(&f[0])) {
            let text = match flag[0] {
                b't' if self.expires == u64::MAX => " t-1".to_string(),
                b't' => format!(" t{}", self.expires.saturating_sub(now) / SECOND),
                b'f' => format!(" f{}", self.flags),
                b's' => format!(" s{}", self.data.len()),
                b'c' => format!(" c{}", self.cas),
                b'h' => format!(" h{}", u8::from(self.fetched)),
                _ => " l0".to_string(),
            };
            out.extend(text.bytes());
        }
    }
}
