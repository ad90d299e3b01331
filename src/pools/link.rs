//! One connection to a server: what is asked is queued, sent, and matched with the replies
//! first-in first-out.
//!
//! ```text
//!  queue    ┌ answered ┬── sent, kept for failover ──┬── not sent yet ──┐
//!           released   start                         written            end
//!  pending             [p0][p1][p2] …                                [pn]
//! ```
//!
//! The bytes of a request stay in the queue until its reply is settled, so that a request can
//! go elsewhere when the link is lost, and so that its mirror can be made from it.

use super::ServerId;
use super::pending::{Attempt, Pending, To};
use crate::budget::Budget;
use crate::buffer::{Queue, SHARE, Source};
use crate::net::{Conn, Socket};
use crate::protocol::reply::Scan;
use crate::time::{MILLISECOND, SECOND, Time};
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;

/// A server that still owes so many answers to what was sent together sends the next within
/// microseconds.
const BATCH: usize = 16;

/// Where a link's socket stands.
#[derive(Debug)]
pub enum LinkState<S> {
    /// There is none.
    Idle,
    /// One was asked for; the loop has not brought it yet.
    Wanted,
    /// It is being opened.
    Connecting(Conn<S>),
    /// The handshake is on its way: `version`, then `stats` for the uptime.
    Greeting(Conn<S>, Greeting),
    /// It works.
    Up(Conn<S>),
}

/// How far the handshake is.
#[derive(Debug)]
pub struct Greeting {
    /// What is asked.
    pub queue: Queue,
    /// False while `version` is unanswered.
    pub version_seen: bool,
}

/// What a fresh link is asked before it is trusted.
pub const GREETING: &[u8] = b"version\r\nstats\r\n";

/// A reply that is not whole yet, without its unfinished line.
#[derive(Default, Debug)]
pub struct Arriving {
    /// Its bytes.
    pub message: Queue,
    /// How far they were understood.
    pub scan: Scan,
    /// They are thrown away, for want of memory or because nobody waits for them.
    pub discarding: bool,
}

/// A line for several keys that is being made at the end of a link's queue.
#[derive(Clone, Copy, Debug)]
pub struct OpenLine {
    /// Stream offset of its first byte.
    pub start: u64,
    /// The attempt that its keys are on.
    pub attempt: Attempt,
    /// The part of the client's answer that its reply is.
    pub part: u32,
}

/// One connection to a server, and what it owes.
#[derive(Debug)]
pub struct Link<S> {
    /// Whose link it is.
    pub server: ServerId,
    /// Its socket.
    pub state: LinkState<S>,
    /// What this socket's events are named by; another one for each socket.
    pub token: usize,
    /// When the connect began.
    pub since: Time,
    /// Addresses of its server that were tried in vain since it was wanted.
    pub tried: usize,
    /// Where its socket leads to, if over TCP.
    pub address: Option<SocketAddr>,
    /// Bytes in flight at which it is full.
    most_bytes: usize,
    /// Requests, from the oldest unanswered on.
    pub queue: Queue,
    /// Stream offset behind the last byte that went to the kernel.
    written: u64,
    /// Stream offset of the first byte of `pending[0]`. A reply may come before its request is
    /// fully written; then this is ahead of `written`, and the rest is still sent.
    pub settled: u64,
    /// What is owed, oldest first.
    pub pending: VecDeque<Pending>,
    /// How many of `pending` have gone out whole.
    sent_count: usize,
    /// Stream offset behind the last of those.
    sent_end: u64,
    /// Number of `pending[0]` in this link's life.
    pub first_seq: u64,
    /// Requests below this number were asked before the last reload that moved keys of its server.
    moved_at: u64,
    /// Of the reply that is arriving: an unfinished line.
    pub partial: Vec<u8>,
    /// Of the reply that is arriving: all before that. Lent out while replies are taken.
    pub arriving: Option<Box<Arriving>>,
    /// The uptime told in the handshake, in seconds.
    pub uptime: Option<u64>,
    /// The nearest time at which something may have to expire.
    pub alarm: Time,
    /// Since when something on it is due.
    pub due_since: Time,
    /// Since when its oldest request does not go out whole.
    pub stuck_since: Time,
    /// When it last answered something old.
    lagged: Option<Time>,
    /// It was read because something on it is due; nothing has come since.
    pub read_in_vain: bool,
    /// On the list of links to write.
    pub dirty: bool,
    /// On the list of links that got nothing but mirrors.
    pub mirrored: bool,
    /// It got looks, which wait for something else to go out.
    pub looks: bool,
    /// On the list of links to read.
    pub listed: bool,
    /// Clients that wait until half of what is in flight is answered.
    pub waiting: VecDeque<usize>,
    /// Copied bytes charged to the budget.
    pub charged: usize,
    /// A line for several keys that is being made at the end of the queue.
    pub open_line: Option<OpenLine>,
}

/// A link that brought something when an answer was due is looked at again after this time, in
/// nanoseconds.
const PAUSE: u64 = 10 * MILLISECOND;

/// Requests in flight to one server at which its clients are paused.
pub const MAX_IN_FLIGHT: usize = 64 * 1024;

/// Bytes in flight to one server at which its clients are paused. Its links share them.
pub const MAX_BYTES_IN_FLIGHT: usize = 64 * 1024 * 1024;

/// A server is behind that owes so many answers, and answers what was asked so many nanoseconds
/// ago.
const BEHIND: usize = 2048;
const BEHIND_FOR: u64 = 20 * MILLISECOND;

/// A server that has not answered for so many nanoseconds is not behind: it hangs.
const ANSWERS: u64 = SECOND;

/// An empty list of what is owed keeps room for so many.
const KEEP_PENDING: usize = 16 * 1024;

/// Written to one server in one turn, in bytes: more waits for the next one. What many clients ask
/// at once goes through here.
const MAX_WRITE: usize = 1024 * 1024;

impl<S: Socket> Link<S> {
    /// When its oldest request went out, if it has.
    pub fn oldest_sent(&self) -> Time {
        self.pending.front().map_or(Time::NEVER, |p| p.sent)
    }

    /// True if its server is in the middle of many small requests of several clients that went out
    /// together at this time: the next of its answers take microseconds, however far away it is.
    pub fn is_answering(&self, sent: Time) -> bool {
        let client = |p: &Pending| match p.to {
            To::Client(ticket) => Some(ticket.client),
            _ => None,
        };
        let first = self.pending.front();
        let last = self.pending.get(BATCH - 1).filter(|p| p.sent == sent);
        self.sent_count >= BATCH
            && first.zip(last).is_some_and(|(a, b)| client(a) != client(b))
            && self
                .pending
                .iter()
                .take(BATCH)
                .map(|p| p.len as usize)
                .sum::<usize>()
                < SHARE
    }

    /// A link without a socket, that is full at so many bytes in flight.
    pub fn new(server: ServerId, most_bytes: usize) -> Link<S> {
        Link {
            server,
            state: LinkState::Idle,
            token: 0,
            since: Time(0),
            tried: 0,
            address: None,
            most_bytes,
            queue: Queue::new(),
            written: 0,
            settled: 0,
            pending: VecDeque::new(),
            sent_count: 0,
            sent_end: 0,
            first_seq: 0,
            moved_at: 0,
            partial: Vec::new(),
            arriving: None,
            uptime: None,
            alarm: Time::NEVER,
            due_since: Time::NEVER,
            stuck_since: Time::NEVER,
            lagged: None,
            read_in_vain: false,
            dirty: false,
            mirrored: false,
            looks: false,
            listed: false,
            waiting: VecDeque::new(),
            charged: 0,
            open_line: None,
        }
    }

    /// The socket, if there is one.
    pub fn conn(&mut self) -> Option<&mut Conn<S>> {
        match &mut self.state {
            LinkState::Idle | LinkState::Wanted => None,
            LinkState::Connecting(c) | LinkState::Greeting(c, _) | LinkState::Up(c) => Some(c),
        }
    }

    /// True if requests may go out.
    #[inline]
    pub fn is_up(&self) -> bool {
        matches!(self.state, LinkState::Up(_))
    }

    /// True if there is no socket, nor one on its way.
    pub fn is_closed(&self) -> bool {
        matches!(self.state, LinkState::Idle)
    }

    /// True if it works or its handshake is under way: something may be read.
    pub fn is_readable(&self) -> bool {
        match &self.state {
            LinkState::Up(conn) | LinkState::Greeting(conn, _) => conn.is_readable(),
            LinkState::Connecting(conn) => conn.is_writable() || conn.has_ended(),
            LinkState::Idle | LinkState::Wanted => false,
        }
    }

    /// Puts `pending` behind what is owed; its bytes must have been pushed to the queue.
    /// Returns its number.
    #[inline]
    pub fn owe(&mut self, pending: Pending) -> u64 {
        self.alarm = self.alarm.min(pending.deadline);
        let seq = self.first_seq + self.pending.len() as u64;
        self.pending.push_back(pending);
        seq
    }

    /// Takes the oldest request out. Its bytes, which stood at `settled`, stay in the queue until
    /// [`Link::release`]; if the link is lost before, they are not among what is owed.
    #[inline]
    pub fn pop(&mut self) -> Option<Pending> {
        let p = self.pending.pop_front()?;
        if self.pending.is_empty() && self.pending.capacity() > KEEP_PENDING {
            self.pending = VecDeque::new();
        }
        self.first_seq += 1;
        self.settled += u64::from(p.len);
        self.stuck_since = Time::NEVER;
        match self.sent_count {
            0 => self.sent_end += u64::from(p.len),
            n => self.sent_count = n - 1,
        }
        Some(p)
    }

    /// Forgets the bytes of requests that were popped, as far as they went out. If a reply took the server
    /// down, what was owed is elsewhere.
    pub fn release(&mut self) {
        if self.is_up() {
            self.queue.release(self.settled.min(self.written));
        }
    }

    /// The number of the request that was sent last.
    pub fn last_seq(&self) -> u64 {
        (self.first_seq + self.pending.len() as u64).saturating_sub(1)
    }

    /// Requests that have not gone out whole, and bytes that have not gone out.
    pub fn unsent(&self) -> (usize, usize) {
        let bytes = self.queue.end().saturating_sub(self.written);
        (self.pending.len() - self.sent_count, bytes as usize)
    }

    /// A reload moves keys of its server: all that it owes now was asked for before.
    pub fn ring_moves(&mut self) {
        self.moved_at = self.first_seq + self.pending.len() as u64;
    }

    /// True if it owes answers to what was asked before such a reload.
    pub fn owes_from_before(&self) -> bool {
        self.first_seq < self.moved_at
    }

    /// True if it owes nothing, or the answers to probes and about marks only.
    pub fn is_idle(&self) -> bool {
        self.pending.iter().all(|p| p.to.is_question())
    }

    /// True if something is owed that will be late at a known time, or it is being opened: what becomes
    /// of that tells how its server is.
    pub fn will_tell(&self) -> bool {
        let is_awaited = |p: &Pending| !p.counted && p.to != To::Mark && p.late_at() < Time::NEVER;
        match self.state {
            LinkState::Idle => false,
            LinkState::Up(_) => self.pending.iter().rev().any(is_awaited),
            LinkState::Wanted | LinkState::Connecting(_) | LinkState::Greeting(..) => true,
        }
    }

    /// The line of the request whose bytes start at stream offset `at`.
    #[inline]
    pub fn line_at(&self, at: u64, line: u32) -> &[u8] {
        Source::Queue(&self.queue, at).slice(0..line as usize)
    }

    /// True if it holds as much as a server may be asked at once.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.pending.len() >= MAX_IN_FLIGHT || self.queue.len() >= self.most_bytes
    }

    /// Replies were taken: notes whether the oldest request left is old.
    pub fn note_lag(&mut self, now: Time) {
        let first = self.pending.front();
        if first.is_some_and(|p| now.since(p.sent) >= BEHIND_FOR) {
            self.lagged = Some(now);
        }
    }

    /// True if the server owes much and answers late. One that hangs is not behind: its clients
    /// wait for one timeout, and not for one after another.
    pub fn is_behind(&self, now: Time) -> bool {
        self.pending.len() >= BEHIND && self.lagged.is_some_and(|at| now.since(at) < ANSWERS)
    }

    /// True if clients that waited for it may go on.
    pub fn has_room(&self) -> bool {
        self.pending.len() <= MAX_IN_FLIGHT / 2 && self.queue.len() <= self.most_bytes / 2
    }

    /// Copied bytes that it holds, and the entries of what is owed: of a small request they are
    /// the larger part.
    #[inline]
    pub fn copied(&self) -> usize {
        let owed = self.pending.len() * size_of::<Pending>();
        let arriving = self.arriving.as_ref().map_or(0, |a| a.message.own_bytes());
        owed + self.queue.own_bytes() + arriving + self.partial.len()
    }

    /// Charges what it holds.
    #[inline]
    pub fn account(&mut self, budget: &Budget) {
        let copied = self.copied();
        budget.recharge(&mut self.charged, copied);
    }

    /// Writes what it can. Stamps what has gone out whole with `now`. Returns bytes and calls.
    ///
    /// # Errors
    /// What the system says.
    pub fn write(&mut self, now: Time) -> io::Result<(usize, usize)> {
        let LinkState::Up(conn) = &mut self.state else {
            return Ok((0, 0));
        };
        let (bytes, calls) = conn.write(&self.queue, self.written, MAX_WRITE)?;
        self.written += bytes as u64;
        self.queue
            .release(self.settled.min(self.written).max(self.queue.start()));
        while let Some(p) = self.pending.get_mut(self.sent_count) {
            let end = self.sent_end + u64::from(p.len);
            if end > self.written {
                break;
            }
            p.sent = now;
            self.sent_end = end;
            self.sent_count += 1;
            self.alarm = self.alarm.min(p.late_at());
        }
        self.stuck_since = match self.sent_count == 0 && !self.pending.is_empty() {
            true => self.stuck_since.min(now),
            false => Time::NEVER,
        };
        Ok((bytes, calls))
    }

    /// Bytes came or went: if something is due, it is looked at again a little later.
    #[inline]
    pub fn went_on(&mut self, now: Time) {
        if std::mem::take(&mut self.read_in_vain) {
            self.alarm = now.plus(PAUSE);
        }
    }

    /// True if it can write more at once.
    pub fn may_write(&self) -> bool {
        match &self.state {
            LinkState::Up(conn) => conn.is_writable() && self.written < self.queue.end(),
            _ => false,
        }
    }

    /// Takes the reads out that have not begun to go out and that `is_abandoned`. Returns how many.
    pub fn withdraw(&mut self, is_abandoned: impl Fn(&Pending) -> bool) -> usize {
        // What has gone out in part must go out whole.
        let mut at = self.sent_end;
        let mut first = self.sent_count;
        while at < self.written {
            at += u64::from(self.pending[first].len);
            first += 1;
        }
        let gone = |p: &Pending| !p.writes() && is_abandoned(p);
        let count = self.pending.iter().skip(first).filter(|p| gone(p)).count();
        if count == 0 {
            return 0;
        }
        let tail = self.pending.split_off(first);
        let mut queue = Queue::starting_at(self.queue.start());
        let kept = (at - self.queue.start()) as usize;
        queue.push(Source::Queue(&self.queue, self.queue.start()), 0..kept);
        for p in tail {
            if !gone(&p) {
                queue.push(Source::Queue(&self.queue, at), 0..p.len as usize);
                self.pending.push_back(p.clone());
            }
            at += u64::from(p.len);
        }
        self.queue = queue;
        count
    }

    /// Forgets the socket and all that is half received. What is owed stays for the caller to
    /// settle.
    pub fn close(&mut self) -> Option<Conn<S>> {
        self.partial = Vec::new();
        self.arriving = None;
        self.uptime = None;
        match std::mem::replace(&mut self.state, LinkState::Idle) {
            LinkState::Connecting(c) | LinkState::Greeting(c, _) | LinkState::Up(c) => Some(c),
            LinkState::Idle | LinkState::Wanted => None,
        }
    }

    /// Takes out what is owed, with the queue in which it stands from the returned offset on, and
    /// how much of it had gone out.
    pub fn take_owed(&mut self) -> (VecDeque<Pending>, Queue, u64, u64) {
        let pending = std::mem::take(&mut self.pending);
        let queue = std::mem::take(&mut self.queue);
        let (at, written) = (self.settled, self.written);
        self.first_seq += pending.len() as u64;
        (self.written, self.settled, self.sent_end) = (0, 0, 0);
        self.sent_count = 0;
        (self.alarm, self.stuck_since) = (Time::NEVER, Time::NEVER);
        (pending, queue, at, written)
    }
}

#[cfg(test)]
mod tests {
    use super::super::NOBODY;
    use super::super::pending::Home;
    use super::*;
    use crate::clients::Ticket;
    use crate::net::Stream;
    use crate::protocol::{Traits, Verb};
    use crate::slab::Slab;
    use crate::time::MICROSECOND;

    fn id() -> ServerId {
        Slab::default().insert(())
    }

    fn pending(to: To, traits: Traits, len: u32) -> Pending {
        Pending {
            to,
            verb: Verb::Get,
            traits,
            attempt: Attempt::Primary,
            counted: false,
            waits_on: false,
            home: Home {
                primary: id(),
                backup: NOBODY,
                several: false,
                pool: 0,
                ring: 0,
            },
            line: len,
            len,
            timeout: 1000,
            deadline: Time::NEVER,
            spent: 0,
            sent: Time::NEVER,
            hash: 0,
        }
    }

    #[test]
    fn all_that_a_request_is_given_at_its_primary_is_one_span() {
        let span = 1_300 * MILLISECOND;
        let asked = Time(5_000 * MILLISECOND);
        let mut p = pending(To::Nobody, Traits::default(), 0);
        p.deadline = asked.plus(span);
        // It waited, was asked anew, looked for, and waited again.
        p.extend_from(p.deadline.plus(p.left(span) / 2), span);
        assert_eq!(p.left(span), 0);
        assert_eq!(p.deadline, asked.plus(2 * span));

        let mut p = pending(To::Nobody, Traits::default(), 0);
        p.deadline = asked.plus(span);
        p.extend_from(asked, span);
        assert_eq!(p.left(span), span, "it has its own time yet");
        p.extend(p.left(span) / 2);
        for _ in 0..20 {
            p.extend_from(p.deadline.plus(p.left(span) / 2), span);
            let all = p.deadline.plus(p.left(span));
            assert!(
                all.since(asked.plus(2 * span)) < 20 * MICROSECOND,
                "{all:?}"
            );
        }
    }

    #[test]
    fn a_long_list_of_what_is_owed_gives_its_memory_back() {
        let mut link: Link<Stream> = Link::new(id(), 1);
        for (owed, kept) in [(1000, true), (KEEP_PENDING + 1, false)] {
            for _ in 0..owed {
                link.owe(pending(To::Nobody, Traits::default(), 0));
            }
            while link.pop().is_some() {}
            assert_eq!(link.pending.capacity() > 0, kept, "{owed}");
        }
    }

    #[test]
    fn what_nobody_waits_for_is_not_sent_if_it_has_not_begun() {
        let mut link: Link<Stream> = Link::new(id(), 1);
        let client = |client| {
            To::Client(Ticket {
                client,
                slot: 0,
                part: 0,
            })
        };
        let reads = Traits::default();
        for (who, traits, line) in [
            (1, reads, "get a\r\n"),
            (1, reads, "get b\r\n"),
            (2, reads, "get c\r\n"),
            (1, Traits::WRITES, "incr d 1\r\n"),
            (1, reads, "get e\r\n"),
        ] {
            link.queue.push_slice(line.as_bytes());
            link.owe(pending(client(who), traits, line.len() as u32));
        }
        // The first has begun to go out.
        link.written = 3;
        let gone = link.withdraw(|p| p.to == client(1));
        assert_eq!(gone, 2);
        let mut bytes = Vec::new();
        Source::Queue(&link.queue, 0).copy_to(0..link.queue.len(), &mut bytes);
        assert_eq!(bytes, b"get a\r\nget c\r\nincr d 1\r\n");
        assert_eq!(link.pending.len(), 3);
    }

    #[test]
    fn a_server_in_the_middle_of_a_batch_is_answering() {
        let sent = |at, clients, len, count| {
            let mut link: Link<Stream> = Link::new(id(), 1);
            for n in 0..count {
                let ticket = Ticket {
                    client: n % clients,
                    slot: 0,
                    part: 0,
                };
                link.owe(pending(To::Client(ticket), Traits::default(), len));
                link.pending[n].sent = Time(at);
            }
            link.sent_count = count;
            link
        };
        // When it was sent, by so many clients, of so many bytes, how many are owed; is it?
        for (at, clients, len, count, is_answering) in [
            (7, 2, 20, BATCH, true),
            (7, 2, 20, BATCH - 1, false),
            (7, 1, 20, BATCH, false),
            (8, 2, 20, BATCH, false),
            (7, 2, SHARE as u32, BATCH, false),
        ] {
            let link = sent(at, clients, len, count);
            let row = format!("sent {at}, {clients} clients, {len} bytes, {count} owed");
            assert_eq!(link.is_answering(Time(7)), is_answering, "{row}");
        }
    }
}
