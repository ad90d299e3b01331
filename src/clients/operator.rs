//! What operators see of clients, and do with them.

use super::Clients;
use super::client::Ending;
use crate::net::Socket;
use crate::protocol::Dialect;
use crate::time::SECOND;

/// One client, as people see it.
#[derive(Debug)]
pub struct Seen {
    /// See [`number`].
    pub number: String,
    /// The address of the other end.
    pub peer: String,
    /// The number of its pool.
    pub pool: usize,
    /// What it speaks: `text`, `binary`, or nothing yet.
    pub dialect: &'static str,
    /// For how many seconds it has been connected.
    pub age: u64,
    /// For how many seconds it has sent nothing and taken nothing.
    pub idle: u64,
    /// How many requests it has sent.
    pub requests: u64,
    /// Answers that it is owed.
    pub in_flight: usize,
    /// Bytes of answers that it has not taken.
    pub owed: usize,
    /// Why it is not read, in words; empty if it is.
    pub unread: Vec<&'static str>,
}

/// A client's number in lists and in the log: its place, and how many had that before it.
pub fn number(key: usize) -> String {
    match (key & 0xffff_ffff, key >> 32) {
        (place, 0) => place.to_string(),
        (place, before) => format!("{place}.{before}"),
    }
}

/// The key of a client from such a number.
fn key_of(number: &str) -> Option<usize> {
    let (place, before) = number.split_once('.').unwrap_or((number, "0"));
    let (place, before): (u32, u32) = (place.parse().ok()?, before.parse().ok()?);
    Some((before as usize) << 32 | place as usize)
}

impl<S: Socket> Clients<S> {
    /// Places of clients, used or not; they are numbered from 0.
    pub fn places(&self) -> usize {
        self.table.places()
    }

    /// The client in this place, if there is one.
    pub fn seen_at(&self, place: usize) -> Option<Seen> {
        let key = self.table.key_at(place)?;
        let client = self.table.get(key)?;
        let active = client.active.as_ref();
        let mut unread: Vec<&str> = client.pause.words().collect();
        if client.ending != Ending::Open {
            unread.push("closing");
        }
        Some(Seen {
            number: number(key),
            peer: client.conn.peer(),
            pool: client.pool as usize,
            dialect: match client.dialect {
                None => "unknown",
                Some(Dialect::Text) => "text",
                Some(Dialect::Binary) => "binary",
            },
            age: self.now.since(client.since) / SECOND,
            idle: self.now.since(client.last_moved) / SECOND,
            requests: client.requests,
            in_flight: active.map_or(0, |a| a.slots.len()),
            owed: active.map_or(0, |a| a.owed()),
            unread,
        })
    }

    /// Closes the client of this number at once. False if there is none.
    pub fn kill(&mut self, number: &str) -> bool {
        let Some(key) = key_of(number).filter(|key| self.is_here(*key)) else {
            return false;
        };
        self.end(key, Ending::Dead);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::{key_of, number};

    #[test]
    fn numbers_name_keys() {
        for (key, text) in [(0, "0"), (17, "17"), (3 << 32 | 17, "17.3")] {
            assert_eq!(number(key), text);
            assert_eq!(key_of(text), Some(key));
        }
        for nonsense in ["", "x", "1.", ".1", "-1", "1.2.3", "99999999999"] {
            assert_eq!(key_of(nonsense), None, "{nonsense}");
        }
    }
}
