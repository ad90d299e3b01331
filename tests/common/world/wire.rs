//! What a server gets to see: a checker that is stricter than memcached, so that whatever magent
//! may not send to a server is found. Written without a look at the parsers that it checks.

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

pub fn decimal(word: &[u8]) -> Option<u64> {
    let digits = !word.is_empty() && word.iter().all(u8::is_ascii_digit);
    digits.then(|| std::str::from_utf8(word).ok()?.parse().ok())?
}

pub fn signed(word: &[u8]) -> Option<i64> {
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

/// The line that `buf` starts with, and the length of the data block that belongs to it; `None`
/// if it is not whole yet.
pub fn head(buf: &[u8]) -> Result<Option<(Wire<'_>, Option<usize>)>, String> {
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
    let wire = Wire {
        words,
        data: &[],
        len: end + 1,
    };
    Ok(Some((wire, data)))
}

/// The whole request that `buf` starts with; `None` if it is not whole yet.
pub fn request(buf: &[u8]) -> Result<Option<Wire<'_>>, String> {
    match head(buf)? {
        Some((wire, Some(n))) => wire.with_data(buf, n),
        head => Ok(head.map(|(wire, _)| wire)),
    }
}

impl<'a> Wire<'a> {
    /// The same with its data block of `n` bytes; `None` if that is not whole yet.
    pub fn with_data(mut self, buf: &'a [u8], n: usize) -> Result<Option<Wire<'a>>, String> {
        let Some(block) = buf[self.len..].get(..n + 2) else {
            return Ok(None);
        };
        if !block.ends_with(b"\r\n") {
            return Err("a data block of another length".into());
        }
        self.data = &block[..n];
        self.len += n + 2;
        Ok(Some(self))
    }

    /// The flags of a meta command.
    pub fn flags(&self) -> &[&'a [u8]] {
        let from = if self.words[0] == b"ms" { 3 } else { 2 };
        self.words.get(from..).unwrap_or_default()
    }

    /// What stands behind a flag's letter.
    pub fn flag(&self, letter: u8) -> Option<&'a [u8]> {
        let found = self.flags().iter().find(|f| f[0] == letter);
        found.map(|f| &f[1..])
    }

    /// A word as a number; 0 if it is none.
    pub fn number(&self, at: usize) -> u64 {
        self.words.get(at).and_then(|w| decimal(w)).unwrap_or(0)
    }
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
        b"version" => words.len() == 1,
        b"stats" => match words[1..] {
            [] | [b"items" | b"slabs" | b"sizes"] => true,
            [b"cachedump", _, _] => number(2).is_some() && number(3).is_some(),
            _ => false,
        },
        b"lru_crawler" => matches!(words[1..], [b"metadump", b"hash" | b"all"]),
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
        // How a number changed must be known to mirror it.
        b"ma" if !words.contains(&&b"v"[..]) => false,
        b"mg" | b"md" | b"ma" => key && check_flags(&words[2..], words[1]).map(|()| true)?,
        b"me" => key && matches!(words[2..], [] | [b"b"] | [b"b", b"b"]),
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
