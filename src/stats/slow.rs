//! The last requests that took long. Clients note that one did, as they are answered; the pools tell
//! where its time went, before they do anything else.

use crate::protocol::Verb;
use crate::time::Time;
use std::collections::VecDeque;

/// Requests kept. In one turn no more than these are noted, since each asks the system for the client's address.
const KEPT: usize = 128;

/// A request that took long.
#[derive(Debug)]
pub struct SlowRequest {
    /// When its answer was there.
    pub at: Time,
    /// From when it was read to its answer, in nanoseconds.
    pub took: u64,
    /// The client's key.
    pub client: usize,
    /// The client's address.
    pub peer: String,
    /// The client's pool.
    pub pool: usize,
    /// What was asked.
    pub verb: Verb,
    /// What it waited for, once the pools have told.
    pub asked: Option<Asked>,
}

/// What a slow request waited for.
#[derive(Debug)]
pub struct Asked {
    /// Its key, or the first one of the line that was answered last.
    pub key: Vec<u8>,
    /// How many keys that line had.
    pub keys: usize,
    /// Who answered last, or should have.
    pub server: String,
    /// When that server was sent the request.
    pub sent: Time,
    /// What it waited for before that.
    pub before: &'static str,
    /// What that server is to the key.
    pub role: &'static str,
    /// Why there was no answer, if there was none.
    pub error: Option<&'static str>,
}

/// The last slow requests, oldest first.
#[derive(Debug)]
pub struct SlowLog {
    /// Requests are slow that take so many nanoseconds.
    threshold: u64,
    requests: VecDeque<SlowRequest>,
    /// How many of the last ones lack [`SlowRequest::asked`].
    open: usize,
    /// The turn in which one was noted last, and how many were noted in it.
    turn: Time,
    in_turn: usize,
}

impl SlowLog {
    /// An empty log for requests that take so many nanoseconds.
    pub fn new(threshold: u64) -> SlowLog {
        SlowLog {
            threshold,
            requests: VecDeque::new(),
            open: 0,
            turn: Time(0),
            in_turn: 0,
        }
    }

    /// True if a request that took so many nanoseconds is to be noted.
    #[inline]
    pub fn is_slow(&self, took: u64) -> bool {
        took >= self.threshold
    }

    /// False if as many were noted in this turn as are kept.
    pub fn has_room(&mut self, now: Time) -> bool {
        if self.turn != now {
            (self.turn, self.in_turn) = (now, 0);
        }
        self.in_turn < KEPT
    }

    /// Notes one.
    pub fn note(&mut self, request: SlowRequest) {
        if self.requests.len() == KEPT {
            self.requests.pop_front();
        }
        self.requests.push_back(request);
        self.in_turn += 1;
        self.open = (self.open + 1).min(KEPT);
    }

    /// True if some are to be explained.
    #[inline]
    pub fn is_open(&self) -> bool {
        self.open > 0
    }

    /// Tells what each request waited for that was noted since the last call.
    pub fn explain(&mut self, asked: impl Fn(&SlowRequest) -> Asked) {
        let open = std::mem::take(&mut self.open);
        let first = self.requests.len() - open;
        for request in self.requests.range_mut(first..) {
            request.asked = Some(asked(request));
        }
    }

    /// All of them, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &SlowRequest> {
        self.requests.iter()
    }

    /// Forgets them.
    pub fn clear(&mut self) {
        self.requests.clear();
        self.open = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(client: usize) -> SlowRequest {
        SlowRequest {
            at: Time(7),
            took: 7,
            client,
            peer: String::new(),
            pool: 0,
            verb: Verb::Get,
            asked: None,
        }
    }

    fn asked(request: &SlowRequest) -> Asked {
        Asked {
            key: vec![request.client as u8],
            keys: 1,
            server: String::new(),
            sent: Time(0),
            before: "",
            role: "",
            error: None,
        }
    }

    #[test]
    fn the_last_ones_are_kept_and_explained_once() {
        let mut log = SlowLog::new(5);
        assert!(log.is_slow(5) && !log.is_slow(4) && !log.is_open());
        for client in 0..KEPT + 3 {
            log.note(request(client));
            if client % 2 == 1 {
                assert!(log.is_open());
                log.explain(asked);
                assert!(!log.is_open());
            }
        }
        log.explain(asked);
        let clients: Vec<usize> = log.iter().map(|r| r.client).collect();
        assert_eq!(clients, (3..KEPT + 3).collect::<Vec<_>>());
        let explained =
            |r: &SlowRequest| r.asked.as_ref().is_some_and(|a| a.key == [r.client as u8]);
        assert!(log.iter().all(explained));
        log.note(request(1));
        log.clear();
        assert!(!log.is_open() && log.iter().next().is_none());
        log.explain(|_| panic!("there is nothing to explain"));
    }

    #[test]
    fn one_turn_notes_no_more_than_are_kept() {
        let mut log = SlowLog::new(0);
        let noted = (0..1000).filter(|n| {
            let has_room = log.has_room(Time(1));
            if has_room {
                log.note(request(*n));
            }
            has_room
        });
        assert_eq!(noted.count(), KEPT);
        assert!(log.has_room(Time(2)));
    }
}
