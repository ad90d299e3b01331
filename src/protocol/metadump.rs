//! The answer to `lru_crawler metadump`: a line for each key, then `END`.
//!
//! ```text
//! key=a%20b exp=-1 la=1796000596 cas=3 fetch=no cls=1 size=64\n
//! END\r\n
//! ```

/// What one line says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Line {
    /// A key, whose bytes were appended to `key`.
    Key {
        /// Bytes that its item takes on the server, value and key included; 0 if not told.
        size: u64,
    },
    /// That was all.
    End,
    /// Somebody else is being told.
    Busy,
    /// The server does not know the command, or has it switched off, or this is another answer.
    Refused,
}

/// Reads one line, without its line end. Only [`Line::Key`] appends to `key`.
pub fn parse(line: &[u8], key: &mut Vec<u8>) -> Line {
    let Some(rest) = line.strip_prefix(b"key=") else {
        return match line {
            b"END" => Line::End,
            _ if line.starts_with(b"BUSY") => Line::Busy,
            _ => Line::Refused,
        };
    };
    let before = key.len();
    let mut words = rest.split(|b| *b == b' ');
    if !decode(words.next().unwrap_or_default(), key) {
        key.truncate(before);
        return Line::Refused;
    }
    let size = words.find_map(|word| word.strip_prefix(b"size="));
    Line::Key {
        size: size.map_or(0, number),
    }
}

/// A key as a server would tell it.
pub fn encode(key: &[u8]) -> String {
    let mut text = String::with_capacity(key.len());
    for byte in key {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                text.push(char::from(*byte));
            }
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

/// Appends what a URI-encoded key means; false if it is malformed.
fn decode(mut text: &[u8], out: &mut Vec<u8>) -> bool {
    let hex = |b: &u8| (*b as char).to_digit(16);
    loop {
        text = match text {
            [] => return true,
            [b'%', high, low, rest @ ..] => {
                let (Some(high), Some(low)) = (hex(high), hex(low)) else {
                    return false;
                };
                out.push((high << 4 | low) as u8);
                rest
            }
            [b'%', ..] => return false,
            [byte, rest @ ..] => {
                out.push(*byte);
                rest
            }
        };
    }
}

/// The digits at the start of a word as a number.
fn number(word: &[u8]) -> u64 {
    let digits = word.iter().take_while(|b| b.is_ascii_digit());
    digits.fold(0u64, |n, b| {
        n.saturating_mul(10).saturating_add(u64::from(b - b'0'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_metadump() {
        for (line, want, key) in [
            (
                &b"key=a exp=-1 la=1 cas=1 fetch=no cls=1 size=65"[..],
                Line::Key { size: 65 },
                &b"a"[..],
            ),
            (
                b"key=%00%01%20%FF%25q exp=1796 la=1 cas=3 fetch=yes cls=1 size=64",
                Line::Key { size: 64 },
                b"\0\x01 \xff%q",
            ),
            (b"key=plain", Line::Key { size: 0 }, b"plain"),
            (b"key=a%2 exp=1", Line::Refused, b""),
            (b"key=a%zz exp=1", Line::Refused, b""),
            (b"key=b%", Line::Refused, b""),
            (b"END", Line::End, b""),
            (
                b"BUSY currently processing crawler request",
                Line::Busy,
                b"",
            ),
            (b"CLIENT_ERROR lru crawler disabled", Line::Refused, b""),
            (b"BADCLASS invalid class id", Line::Refused, b""),
            (b"ERROR", Line::Refused, b""),
            (b"", Line::Refused, b""),
        ] {
            let mut found = b"kept".to_vec();
            assert_eq!(parse(line, &mut found), want, "{}", line.escape_ascii());
            assert_eq!(found.strip_prefix(b"kept"), Some(key));
        }
    }

    #[test]
    fn a_key_reads_as_it_was_written() {
        let key: Vec<u8> = (0..=255).collect();
        let line = format!("key={} exp=-1", encode(&key));
        assert!(line.starts_with("key=%00%01%02"), "{line}");
        let mut read = Vec::new();
        assert_eq!(parse(line.as_bytes(), &mut read), Line::Key { size: 0 });
        assert_eq!(read, key);
        assert_eq!(encode(b"a%20-._~"), "a%2520-._~");
    }
}
