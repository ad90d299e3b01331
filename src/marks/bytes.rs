//! What is sent to servers, and what their answers say. Keys begin with a zero byte, which no text
//! client can name, and travel as base64.
//!
//! | key | is |
//! |---|---|
//! | `\0magent/a` | the list: `ID SERVER` for each magent and each server that it keeps away from |
//! | `\0magent/h/ID/SERVER` | that magent's hold on its line: it lives 10 s |
//! | `\0magent/b` | the beacon: `ID HOST PID RINGHASH` for each magent that uses this server |
//! | `\0magent/b/ID` | that magent's sign of life: it lives 10 s |
//! | `\0magent/f` | who refills this server: it lives 10 s |

use super::lines::{Id, push_line};
use crate::protocol::{HIDDEN, base64};
use std::io::Write;

/// The list, as base64.
pub const LIST: &[u8] = b"AG1hZ2VudC9h";

/// The beacon, as base64.
pub const BEACON: &[u8] = b"AG1hZ2VudC9i";

/// Who refills, as base64.
pub const REFILLER: &[u8] = b"AG1hZ2VudC9m";

/// Seconds that holds, signs of life and refillers live.
pub const LIFE: u32 = 10;

/// The base64 of a magent's hold on its line about `server`.
pub fn hold_key(id: Id, server: &[u8]) -> Vec<u8> {
    let mut key = [HIDDEN, b"h/", id.to_string().as_bytes(), b"/"].concat();
    key.extend_from_slice(server);
    encoded(&key)
}

/// The base64 of a magent's sign of life.
pub fn life_key(id: Id) -> Vec<u8> {
    encoded(&[HIDDEN, b"b/", id.to_string().as_bytes()].concat())
}

fn encoded(key: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(key.len().div_ceil(3) * 4);
    base64::encode(key, &mut text);
    text
}

/// Where a magent runs, for those who ask who keeps a server away.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Process {
    /// Its host's name.
    pub host: String,
    /// Its number there.
    pub pid: u32,
}

fn push(out: &mut Vec<u8>, parts: &[&[u8]]) {
    parts.iter().for_each(|part| out.extend_from_slice(part));
}

fn push_number(out: &mut Vec<u8>, before: &str, n: u64) {
    // Writing to a Vec cannot fail.
    let _ = write!(out, "{before}{n}");
}

/// Is the item there, and is it the one that was read last? Counts neither as a get nor as a miss.
pub fn look(out: &mut Vec<u8>, key: &[u8]) {
    push(out, &[b"me ", key, b" b b\r\n"]);
}

/// Its value and its cas.
pub fn read(out: &mut Vec<u8>, key: &[u8]) {
    push(out, &[b"mg ", key, b" b v c\r\n"]);
}

/// Makes an empty list if there is none, and appends a line: two requests.
pub fn append(out: &mut Vec<u8>, key: &[u8], id: Id, text: &[u8]) {
    let mut line = Vec::with_capacity(text.len() + 18);
    push_line(&mut line, id, text);
    push(out, &[b"ms ", key, b" 0 b ME\r\n\r\nms ", key]);
    push_number(out, " ", line.len() as u64);
    push(out, &[b" b MA\r\n", &line, b"\r\n"]);
}

/// Writes a list back if nobody has changed it since `cas` was read; an empty one is deleted. The
/// answer tells the new cas.
pub fn write_back(out: &mut Vec<u8>, key: &[u8], cas: u64, list: &[u8]) {
    if list.is_empty() {
        push(out, &[b"md ", key]);
        push_number(out, " b C", cas);
        return push(out, &[b"\r\n"]);
    }
    push(out, &[b"ms ", key]);
    push_number(out, " ", list.len() as u64);
    push_number(out, " b C", cas);
    push(out, &[b" c\r\n", list, b"\r\n"]);
}

/// Stores something that lives [`LIFE`] seconds; with `is_new` only if nobody else's is there.
pub fn store(out: &mut Vec<u8>, key: &[u8], value: &[u8], is_new: bool) {
    push(out, &[b"ms ", key]);
    push_number(out, " ", value.len() as u64);
    push_number(out, " b T", u64::from(LIFE));
    let mode: &[u8] = if is_new { b" ME\r\n" } else { b"\r\n" };
    push(out, &[mode, value, b"\r\n"]);
}

/// Takes a key away.
pub fn delete(out: &mut Vec<u8>, key: &[u8]) {
    push(out, &[b"md ", key, b" b\r\n"]);
}

/// What a hold says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hold {
    /// The server answers this magent.
    pub answers: bool,
    /// Where it runs.
    pub process: Process,
}

impl Hold {
    /// Its value.
    pub fn text(&self) -> String {
        let digit = if self.answers { 0 } else { 1 };
        format!("{digit} {} {}", self.process.host, self.process.pid)
    }

    /// The hold that this value is. One that cannot be read is somebody's who keeps the server away.
    pub fn parse(value: &[u8]) -> Hold {
        let text = String::from_utf8_lossy(value);
        let mut words = text.split(' ');
        Hold {
            answers: words.next() == Some("0"),
            process: Process {
                host: words.next().unwrap_or("?").to_string(),
                pid: words.next().and_then(|w| w.parse().ok()).unwrap_or(0),
            },
        }
    }
}

/// What a server answered to one of these requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer<'a> {
    /// `HD`, with the new cas where it was asked.
    Done(Option<u64>),
    /// `NS`: not stored.
    NotStored,
    /// `EX`: another cas.
    Changed,
    /// `EN`, `NF`: not there.
    Absent,
    /// `VA`: value and cas.
    Value(&'a [u8], Option<u64>),
    /// `ME`: it is there, with this cas.
    There(u64),
    /// Anything else: an error, an older memcached, nonsense.
    Other,
}

impl<'a> Answer<'a> {
    /// Reads a whole reply.
    pub fn parse(reply: &'a [u8]) -> Answer<'a> {
        Answer::read(reply).unwrap_or(Answer::Other)
    }

    fn read(reply: &'a [u8]) -> Option<Answer<'a>> {
        let end = reply.windows(2).position(|w| w == b"\r\n")?;
        let (line, rest) = (&reply[..end], &reply[end + 2..]);
        let (code, flags) = line.split_at_checked(2)?;
        let mut words = flags.split(|b| *b == b' ').filter(|w| !w.is_empty());
        Some(match code {
            b"HD" => Answer::Done(cas_of(words, b"c")),
            b"NS" => Answer::NotStored,
            b"EX" => Answer::Changed,
            b"EN" | b"NF" => Answer::Absent,
            b"VA" => {
                let len = number(words.next()?)?;
                let value = rest.get(..usize::try_from(len).ok()?)?;
                Answer::Value(value, cas_of(words, b"c"))
            }
            b"ME" => Answer::There(cas_of(words, b"cas=")?),
            _ => return None,
        })
    }
}

fn cas_of<'a>(mut words: impl Iterator<Item = &'a [u8]>, name: &[u8]) -> Option<u64> {
    words.find_map(|word| number(word.strip_prefix(name)?))
}

fn number(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: Id = Id(0x7f3a_9c0d_12e4_5b66);

    fn sent(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn keys_are_their_base64() {
        for (name, text) in [("a", LIST), ("b", BEACON), ("f", REFILLER)] {
            assert_eq!(encoded(&[HIDDEN, name.as_bytes()].concat()), text);
        }
        assert_eq!(
            hold_key(ID, b"10.0.0.1:11211"),
            b"AG1hZ2VudC9oLzdmM2E5YzBkMTJlNDViNjYvMTAuMC4wLjE6MTEyMTE="
        );
    }

    #[test]
    fn requests() {
        assert_eq!(sent(|o| look(o, LIST)), "me AG1hZ2VudC9h b b\r\n");
        assert_eq!(sent(|o| read(o, LIST)), "mg AG1hZ2VudC9h b v c\r\n");
        assert_eq!(
            sent(|o| append(o, LIST, ID, b"10.0.0.1:11211")),
            "ms AG1hZ2VudC9h 0 b ME\r\n\r\n\
             ms AG1hZ2VudC9h 32 b MA\r\n7f3a9c0d12e45b66 10.0.0.1:11211\n\r\n"
        );
        assert_eq!(
            sent(|o| write_back(o, LIST, 5, b"0011 x\n")),
            "ms AG1hZ2VudC9h 7 b C5 c\r\n0011 x\n\r\n"
        );
        assert_eq!(
            sent(|o| write_back(o, LIST, 5, b"")),
            "md AG1hZ2VudC9h b C5\r\n"
        );
        assert_eq!(
            sent(|o| store(o, b"SG9sZA==", b"1", false)),
            "ms SG9sZA== 1 b T10\r\n1\r\n"
        );
        assert_eq!(
            sent(|o| store(o, REFILLER, b"me", true)),
            "ms AG1hZ2VudC9m 2 b T10 ME\r\nme\r\n"
        );
        assert_eq!(sent(|o| delete(o, b"SG9sZA==")), "md SG9sZA== b\r\n");
    }

    #[test]
    fn answers() {
        for (reply, answer) in [
            ("HD\r\n", Answer::Done(None)),
            ("HD c6\r\n", Answer::Done(Some(6))),
            ("NS\r\n", Answer::NotStored),
            ("EX c9\r\n", Answer::Changed),
            ("EN\r\n", Answer::Absent),
            ("NF\r\n", Answer::Absent),
            ("VA 3 c2\r\na\r\n\r\n", Answer::Value(b"a\r\n", Some(2))),
            ("VA 0\r\n\r\n", Answer::Value(b"", None)),
            ("ME AG1h exp=-1 la=0 cas=7 fetch=no\r\n", Answer::There(7)),
            ("ME AG1h exp=-1\r\n", Answer::Other),
            ("VA 3\r\n", Answer::Other),
            ("VA x\r\n", Answer::Other),
            ("VA 99999999999999999999\r\n", Answer::Other),
            ("ERROR\r\n", Answer::Other),
            ("CLIENT_ERROR bad command line format\r\n", Answer::Other),
            ("\r\n", Answer::Other),
            ("H\r\n", Answer::Other),
            ("", Answer::Other),
        ] {
            assert_eq!(Answer::parse(reply.as_bytes()), answer, "{reply:?}");
        }
    }

    #[test]
    fn holds_come_back_and_nonsense_keeps_away() {
        let hold = Hold {
            answers: true,
            process: Process {
                host: "web1".into(),
                pid: 4711,
            },
        };
        assert_eq!(hold.text(), "0 web1 4711");
        assert_eq!(Hold::parse(b"0 web1 4711"), hold);
        assert!(!Hold::parse(b"1 web1 4711").answers);
        for nonsense in [&b""[..], b"x", b"\xff", b"00 a b"] {
            let hold = Hold::parse(nonsense);
            assert!(!hold.answers && hold.process.pid == 0);
        }
    }
}
