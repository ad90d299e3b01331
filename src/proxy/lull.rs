//! When the loop does well to sleep a moment before it waits: one turn finds more to do then, and
//! what it finds shares calls to servers.
//!
//! Two reasons are known. A server is at work, and would wake the loop for every few answers. Or
//! the loop is busy with little at a time: a turn for each of many clients leaves less time for
//! all of them. Interrupt moderation in network cards is the same idea.

use crate::buffer::SHARE;
use crate::health::Time;

/// How long load is looked at before it says something about the next turns, in nanoseconds.
const WINDOW: u64 = 1_000_000;

/// A turn is small if it read one in so many of the clients that are busy, or fewer.
const SMALL: u32 = 8;

/// With fewer busy clients than this no turn is small: all others may be waiting for magent.
const MANY: u32 = 32;

/// What the turns so far say about the next ones.
#[derive(Debug, Default)]
pub struct Lulls {
    /// In this turn a server at work sent little of what it owes.
    trickles: bool,
    /// Clients that were read in this turn.
    read: u32,
    /// Bytes that they sent.
    bytes: usize,
    /// What clients sent when they were last read was large.
    large_reads: bool,
    /// When the present window began.
    since: Time,
    /// Of that window, the time that turns took, in nanoseconds.
    worked: u64,
    /// Clients that sent or took something in it.
    moved: u32,
    /// The same of the window before; none if they were not many, or turns took less than half of it.
    busy: u32,
}

impl Lulls {
    /// A turn begins.
    pub fn begin_turn(&mut self) {
        if let Some(mean) = self.bytes.checked_div(self.read as usize) {
            self.large_reads = mean >= SHARE;
        }
        self.trickles = false;
        (self.read, self.bytes) = (0, 0);
    }

    /// A server at work sent little of what it owes.
    pub fn trickle(&mut self) {
        self.trickles = true;
    }

    /// So many bytes were read from a client; it last sent or took something at `last`.
    #[inline]
    pub fn client_read(&mut self, last: Time, bytes: usize) {
        self.read += 1;
        self.bytes += bytes;
        self.client_moved(last);
    }

    /// A client sent or took something, after it last did so at `last`.
    #[inline]
    pub fn client_moved(&mut self, last: Time) {
        self.moved += u32::from(last < self.since);
    }

    /// The turn that began at `start` is over.
    pub fn end_turn(&mut self, start: Time, end: Time) {
        self.worked += end.since(start);
        let length = end.since(self.since);
        if length >= WINDOW {
            let is_busy = self.moved >= MANY && self.worked * 2 >= length;
            self.busy = if is_busy { self.moved } else { 0 };
            (self.since, self.worked, self.moved) = (end, 0, 0);
        }
    }

    /// True if calls to servers cost little beside the bytes that clients send: there is nothing to
    /// be shared by waiting then.
    pub fn large_reads(&self) -> bool {
        self.large_reads
    }

    /// True if a moment's sleep after the last turn is worth it.
    pub fn is_due(&self) -> bool {
        let is_small = self.read > 0 && self.read <= self.busy / SMALL;
        self.trickles || is_small
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_are_large_until_others_are_seen() {
        let mut lulls = Lulls::default();
        for (bytes, large) in [
            (&[SHARE, SHARE][..], true),
            (&[], true),
            (&[30, SHARE], false),
        ] {
            bytes.iter().for_each(|n| lulls.client_read(Time(1), *n));
            lulls.begin_turn();
            assert_eq!(lulls.large_reads(), large, "{bytes:?}");
        }
    }

    /// Turns of so many microseconds, each so long after the one before, that read all clients;
    /// then one that reads the first `last` of them. Is a lull due?
    fn due(turn: u64, every: u64, clients: usize, last: usize) -> bool {
        let mut lulls = Lulls::default();
        let mut moved = vec![Time(0); clients];
        let (mut at, end) = (Time(1), Time(3 * WINDOW));
        while !lulls.is_due() && at < end {
            at = Time(at.0 + every * 1000);
            let read = if at < end { clients } else { last };
            lulls.begin_turn();
            for client in &mut moved[..read] {
                lulls.client_read(*client, 30);
                *client = at;
            }
            lulls.end_turn(at, Time(at.0 + turn * 1000));
        }
        lulls.is_due()
    }

    #[test]
    fn a_small_turn_of_a_busy_loop() {
        // Microseconds of a turn, from one to the next, clients at it, clients read; is it due?
        let table = [
            (60, 100, 50, 1, true),
            (60, 100, 50, 6, true),
            (60, 100, 50, 7, false),
            (60, 100, 32, 4, true),
            (60, 100, 31, 1, false),
            (60, 100, 1, 1, false),
            // Nothing was read: what is under way are answers.
            (60, 100, 50, 0, false),
            // Not busy.
            (40, 100, 50, 1, false),
            (1, 1000, 50, 1, false),
        ];
        for (turn, every, clients, last, is_due) in table {
            let row = format!("{turn} of {every} µs, {clients} clients, then {last}");
            assert_eq!(due(turn, every, clients, last), is_due, "{row}");
        }
    }
}
