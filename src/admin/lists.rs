//! Lists for people, a line each: clients, slow requests, hot keys.

use crate::clients::Seen;
use crate::stats::{HotKey, SlowRequest};
use crate::time::{MILLISECOND, Time, Utc};
use std::fmt::Write as _;

/// One client of a pool.
pub fn client(c: &Seen, pool: &str, out: &mut String) {
    let unread = match c.unread.is_empty() {
        true => "-".to_string(),
        false => c.unread.join(","),
    };
    let _ = write!(
        out,
        "{} {} {pool} {} age {} idle {} requests {} in_flight {} owed {} unread {unread}\r\n",
        c.number, c.peer, c.dialect, c.age, c.idle, c.requests, c.in_flight, c.owed
    );
}

/// One slow request of a pool, answered so many seconds after the epoch.
pub fn slow(r: &SlowRequest, pool: &str, unix: u64, out: &mut String) {
    let number = crate::clients::number(r.client);
    let _ = write!(
        out,
        "{}Z {number} {} {pool} {}",
        Utc(unix),
        r.peer,
        r.verb.name()
    );
    let ms = |nanos: u64| format!("{:.1}", nanos as f64 / MILLISECOND as f64);
    if let Some(asked) = &r.asked {
        // A step that several wait for may have begun before.
        let began = Time(r.at.0 - r.took);
        let sent = asked.sent.clamp(began, r.at);
        let _ = write!(
            out,
            " {} keys {} server {} ms {} {} {} {} {}",
            shown(&asked.key),
            asked.keys,
            asked.server,
            ms(r.took),
            asked.before,
            ms(sent.since(began)),
            asked.role,
            ms(r.at.since(sent)),
        );
        if let Some(error) = asked.error {
            let _ = write!(out, " error {error}");
        }
    }
    out.push_str("\r\n");
}

/// One key that is asked often.
pub fn hot(key: &HotKey, pool: &str, out: &mut String) {
    let (shown, rate, percent) = (shown(&key.key), key.per_second, key.share * 100.0);
    let _ = write!(
        out,
        "{pool} {shown} per_second {rate:.1} percent {percent:.1}\r\n"
    );
}

/// A key as one word: what is no plain text, and spaces, as `\x20`.
pub fn shown(key: &[u8]) -> String {
    if key.is_empty() {
        return "-".into();
    }
    let mut out = String::with_capacity(key.len());
    for chunk in key.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                c if c.is_control() || c.is_whitespace() => {
                    let _ = write!(out, "\\x{:02x}", u32::from(c));
                }
                c => out.push(c),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_one_word() {
        for (key, word) in [
            (&b"user:42"[..], "user:42"),
            ("ü".as_bytes(), "ü"),
            (b"a b\r\n\x1b\\", "a\\x20b\\x0d\\x0a\\x1b\\\\"),
            (b"\xffk", "\\xffk"),
            (b"", "-"),
        ] {
            assert_eq!(shown(key), word);
        }
    }
}
