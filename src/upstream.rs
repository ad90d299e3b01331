//! One server and its links: what is asked is queued, sent, and matched with the replies
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

use crate::buffer::{Queue, SHARE, Source};
use crate::config::ServerSpec;
use crate::health::{Health, Journal, SECOND, Time};
use crate::net::Socket;
use crate::protocol::reply::Scan;
use crate::protocol::{Traits, Verb};
use crate::stats::ServerStats;
use std::collections::VecDeque;
use std::io::{self, IoSlice};

/// Index of a server in the proxy.
pub type ServerId = u16;

/// No server.
pub const NOBODY: ServerId = ServerId::MAX;

/// Each key of the request has its own: a request with several keys.
pub const EACH: ServerId = ServerId::MAX - 1;

/// Who gets the reply of a pending request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum To {
    /// A slot of a client.
    Client {
        /// The client's key; stale if it has left.
        client: usize,
        /// The slot's number.
        seq: u32,
    },
    /// Nobody; it timed out and its late reply is thrown away.
    Ghost,
    /// The backup was told what the primary did.
    Mirror,
    /// A delete after something went wrong: the key stays journaled under this stamp until it
    /// is answered.
    Chase(u64),
    /// A `flush_all` that stands for a journal that overflowed.
    ReplayFlush(u64),
    /// A fetch from the backup for a warming primary.
    Fetch(usize),
    /// The copy of a fetched value to the primary.
    Copy,
    /// A plain `mg` before a request that would create the key on a warming primary.
    Probe(usize),
    /// One server's part of a client's `flush_all`.
    Flush(usize),
}

/// On which of a request's ways through the farm it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leg {
    /// At its primary.
    Primary,
    /// At its primary once more, over a fresh link.
    Retried,
    /// At its primary once more, after the key was fetched.
    Warmed,
    /// At its backup because the primary was lost.
    Backup,
    /// A delete at its backup whose answer is the client's, since the primary is warming.
    Deleted,
}

/// One request that the server owes a reply for.
#[derive(Debug)]
pub struct Pending {
    /// Who gets it.
    pub to: To,
    /// What was asked.
    pub verb: Verb,
    /// What it does.
    pub traits: Traits,
    /// Which way it is on.
    pub leg: Leg,
    /// The key's server in the other farm; [`NOBODY`] if it has none.
    pub other: ServerId,
    /// Length of its line on the wire.
    pub line: u32,
    /// Length of all its bytes on the wire.
    pub len: u32,
    /// Its timeout was counted already.
    pub counted: bool,
    /// When it must be answered; never for magent's own.
    pub deadline: Time,
    /// When its last byte went to the kernel.
    pub sent: Time,
    /// Hash of its key, to find the key's link again.
    pub hash: u64,
    /// What incr, decr and `ma` must answer, for a mirror.
    pub number: Option<u64>,
}

impl Pending {
    /// A request of magent's own; its lengths are filled in when it is sent.
    pub fn own(to: To, verb: Verb, hash: u64, deadline: Time) -> Pending {
        Pending {
            to,
            verb,
            traits: Traits::default(),
            leg: Leg::Primary,
            other: NOBODY,
            line: 0,
            len: 0,
            counted: false,
            deadline,
            sent: Time::NEVER,
            hash,
            number: None,
        }
    }

    /// The same request, to be sent on a further way. Not a clone: the entry it comes from is
    /// being settled, or becomes a ghost.
    pub fn again(&self) -> Pending {
        Pending {
            counted: false,
            sent: Time::NEVER,
            ..*self
        }
    }
}

/// Where a link's socket stands.
#[derive(Debug)]
pub enum LinkState<S> {
    /// There is none.
    Idle,
    /// One was asked for; the loop has not brought it yet.
    Wanted,
    /// It is being opened.
    Connecting(S),
    /// The handshake is on its way: `version`, then `stats` for the uptime.
    Greeting(S, Greeting),
    /// It works.
    Up(S),
}

/// How far the handshake is.
#[derive(Clone, Copy, Debug)]
pub struct Greeting {
    /// Bytes of [`GREETING`] that went out.
    pub sent: usize,
    /// False while `version` is unanswered.
    pub version_seen: bool,
}

/// What a fresh link is asked before it is trusted.
pub const GREETING: &[u8] = b"version\r\nstats\r\n";

/// What epoll said and no `WouldBlock` has taken back.
#[derive(Clone, Copy, Default, Debug)]
pub struct Ready {
    /// A read may succeed.
    pub readable: bool,
    /// A write may succeed.
    pub writable: bool,
    /// The other side has closed its half: read on to the end.
    pub closed: bool,
}

/// A reply that is not whole yet, without its unfinished line.
#[derive(Default, Debug)]
pub struct Arriving {
    /// Its bytes.
    pub message: Queue,
    /// How far they were understood.
    pub scan: Scan,
    /// They are thrown away, for want of memory.
    pub discarding: bool,
}

/// One connection to a server, and what it owes.
#[derive(Debug)]
pub struct Link<S> {
    /// Whose link it is.
    pub server: ServerId,
    /// Its socket.
    pub state: LinkState<S>,
    /// Raised with each new socket: events of an old one are told by it.
    pub generation: u32,
    /// When the connect began.
    pub since: Time,
    /// Bytes in flight at which it is full.
    pub most_bytes: usize,
    /// Requests, from the oldest unanswered on.
    pub queue: Queue,
    /// Stream offset behind the last byte that went to the kernel.
    pub written: u64,
    /// Stream offset of the first byte of `pending[0]`. A reply may come before its request is
    /// fully written; then this is ahead of `written`, and the rest is still sent.
    pub settled: u64,
    /// What is owed, oldest first.
    pub pending: VecDeque<Pending>,
    /// How many of `pending` have gone out whole.
    pub sent_count: usize,
    /// Stream offset behind the last of those.
    pub sent_end: u64,
    /// When what was answered last had gone to the kernel.
    pub answered: Time,
    /// Number of `pending[0]` in this link's life.
    pub first_seq: u64,
    /// Of the reply that is arriving: an unfinished line.
    pub partial: Vec<u8>,
    /// Of the reply that is arriving: all before that. Lent out while replies are taken.
    pub arriving: Option<Box<Arriving>>,
    /// The uptime told in the handshake, in seconds.
    pub uptime: Option<u64>,
    /// What the socket is ready for.
    pub ready: Ready,
    /// The nearest time at which something may have to expire.
    pub alarm: Time,
    /// On the list of links to flush.
    pub dirty: bool,
    /// It got mirrors, which wait until clients have been written.
    pub told: bool,
    /// On the list of links to serve.
    pub listed: bool,
    /// Clients that wait until half of what is in flight is answered.
    pub waiting: Vec<usize>,
    /// Bytes counted in the proxy's total.
    pub accounted: usize,
    /// A line for several keys that is being made at the end of the queue: where it starts.
    pub part: Option<(u64, Leg)>,
}

/// Requests in flight to one server at which its clients are not read any more.
pub const MAX_IN_FLIGHT: usize = 64 * 1024;

/// Bytes in flight to one server at which its clients are not read any more, if that is not more
/// than a quarter of `-m`. Its links share them.
pub const MAX_BYTES_IN_FLIGHT: usize = 64 * 1024 * 1024;

/// An empty list of what is owed keeps room for so many.
const KEEP_PENDING: usize = 16 * 1024;

/// Answers still to come of those that were asked for in one write, at which the server is let go
/// on before they are read. With 2 or 4 nothing was measurably cheaper, and more answers would wait.
const AT_WORK: usize = 8;

/// Slices handed to one `writev`; the kernel takes at most 1024.
pub const SLICES: usize = 64;

impl<S: Socket> Link<S> {
    /// A link without a socket, that is full at so many bytes in flight.
    pub fn new(server: ServerId, most_bytes: usize) -> Link<S> {
        Link {
            server,
            state: LinkState::Idle,
            generation: 0,
            since: Time(0),
            most_bytes,
            queue: Queue::new(),
            written: 0,
            settled: 0,
            pending: VecDeque::new(),
            sent_count: 0,
            sent_end: 0,
            answered: Time(0),
            first_seq: 0,
            partial: Vec::new(),
            arriving: None,
            uptime: None,
            ready: Ready::default(),
            alarm: Time::NEVER,
            dirty: false,
            told: false,
            listed: false,
            waiting: Vec::new(),
            accounted: 0,
            part: None,
        }
    }

    /// The socket, if there is one.
    pub fn io(&mut self) -> Option<&mut S> {
        match &mut self.state {
            LinkState::Idle | LinkState::Wanted => None,
            LinkState::Connecting(io) | LinkState::Greeting(io, _) | LinkState::Up(io) => Some(io),
        }
    }

    /// True if requests may go out.
    pub fn is_up(&self) -> bool {
        matches!(self.state, LinkState::Up(_))
    }

    /// Puts `pending` behind what is owed; its bytes must have been pushed to the queue.
    /// Returns its number.
    pub fn owe(&mut self, pending: Pending) -> u64 {
        self.alarm = self.alarm.min(pending.deadline);
        let seq = self.first_seq + self.pending.len() as u64;
        self.pending.push_back(pending);
        seq
    }

    /// Takes the oldest request out; its bytes stay at `settled` until [`Link::release`].
    pub fn pop(&mut self) -> Option<Pending> {
        let p = self.pending.pop_front()?;
        if self.pending.is_empty() && self.pending.capacity() > KEEP_PENDING {
            self.pending = VecDeque::new();
        }
        self.first_seq += 1;
        self.answered = p.sent;
        match self.sent_count {
            0 => self.sent_end += u64::from(p.len),
            n => self.sent_count = n - 1,
        }
        Some(p)
    }

    /// True if the server is at work on answers for several clients: it has answered a part of
    /// what went to it in one write, and owes [`AT_WORK`] or more of the same. The next of them
    /// take microseconds, however far away it is: none of these requests is large.
    pub fn is_at_work(&self) -> bool {
        let client = |at: usize| match self.pending[at].to {
            To::Client { client, .. } => Some(client),
            _ => None,
        };
        const LAST: usize = AT_WORK - 1;
        let lens = self.pending.iter().take(AT_WORK).map(|p| p.len as usize);
        self.sent_count >= AT_WORK
            && self.pending[LAST].sent == self.answered
            && (client(0).is_none() || client(0) != client(LAST))
            && lens.sum::<usize>() < SHARE
    }

    /// Forgets the bytes of the request that was popped, as far as they went out.
    pub fn release(&mut self, len: u32) {
        self.settled += u64::from(len);
        self.queue.release(self.settled.min(self.written));
    }

    /// The line of the request whose bytes start at stream offset `at`.
    pub fn line_at(&self, at: u64, line: u32) -> &[u8] {
        Source::Queue(&self.queue, at).slice(0..line as usize)
    }

    /// True if it holds as much as a server may be asked at once.
    pub fn is_full(&self) -> bool {
        self.pending.len() >= MAX_IN_FLIGHT || self.queue.len() >= self.most_bytes
    }

    /// True if clients that waited for it may go on.
    pub fn has_room(&self) -> bool {
        self.pending.len() <= MAX_IN_FLIGHT / 2 && self.queue.len() <= self.most_bytes / 2
    }

    /// Copied bytes that it holds, and the entries of what is owed: of a small request they are
    /// the larger part.
    pub fn own_bytes(&self) -> usize {
        let owed = self.pending.len() * size_of::<Pending>();
        let arriving = self.arriving.as_ref().map_or(0, |a| a.message.own_bytes());
        owed + self.queue.own_bytes() + arriving + self.partial.len()
    }

    /// Writes what it can. Stamps what has gone out whole with `now`. Returns bytes and calls.
    pub fn flush(&mut self, now: Time, timeout: u64) -> io::Result<(usize, u32)> {
        let (mut bytes, mut calls) = (0, 0);
        let LinkState::Up(io) = &mut self.state else {
            return Ok((0, 0));
        };
        while self.ready.writable && self.written < self.queue.end() {
            let (n, wanted) = write_queue(io, &self.queue, self.written)?;
            calls += 1;
            match n {
                None => self.ready.writable = false,
                Some(n) => {
                    bytes += n;
                    self.written += n as u64;
                    if n < wanted {
                        self.ready.writable = false;
                    }
                }
            }
        }
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
            self.alarm = self.alarm.min(now.plus(timeout));
        }
        Ok((bytes, calls))
    }

    /// Forgets the socket and all that is half received. What is owed stays for the caller to
    /// settle.
    pub fn close(&mut self) -> Option<S> {
        self.partial = Vec::new();
        self.arriving = None;
        self.ready = Ready::default();
        self.uptime = None;
        self.generation = self.generation.wrapping_add(1) & GENERATIONS;
        match std::mem::replace(&mut self.state, LinkState::Idle) {
            LinkState::Connecting(io) | LinkState::Greeting(io, _) | LinkState::Up(io) => Some(io),
            LinkState::Idle | LinkState::Wanted => None,
        }
    }

    /// Forgets what is owed and its bytes, after all was settled.
    pub fn clear(&mut self) {
        self.queue.clear();
        self.written = self.queue.end();
        self.settled = self.written;
        self.sent_end = self.written;
        self.sent_count = 0;
        self.alarm = Time::NEVER;
    }
}

/// Generations are this many bits wide, to fit a token.
pub const GENERATIONS: u32 = (1 << 28) - 1;

/// One `write` or `writev` of the queue from `at` on: how much went out (`None`: the socket
/// takes nothing now), and how much was offered.
pub fn write_queue<S: Socket>(
    io: &mut S,
    queue: &Queue,
    at: u64,
) -> io::Result<(Option<usize>, usize)> {
    let mut one = [IoSlice::new(&[])];
    queue.slices(at, &mut one);
    // A queue of small requests or answers is one piece.
    if at + one[0].len() as u64 == queue.end() {
        return write_slices(io, &one);
    }
    write_pieces(io, queue, at)
}

/// Apart, since so many slices cost more to prepare than a small write to copy.
#[inline(never)]
fn write_pieces<S: Socket>(
    io: &mut S,
    queue: &Queue,
    at: u64,
) -> io::Result<(Option<usize>, usize)> {
    let mut slices = [IoSlice::new(&[]); SLICES];
    let n = queue.slices(at, &mut slices);
    write_slices(io, &slices[..n])
}

fn write_slices<S: Socket>(
    io: &mut S,
    slices: &[IoSlice<'_>],
) -> io::Result<(Option<usize>, usize)> {
    let wanted = slices.iter().map(|s| s.len()).sum();
    match io.write(slices) {
        Ok(0) if wanted > 0 => Err(io::ErrorKind::WriteZero.into()),
        Ok(n) => Ok((Some(n), wanted)),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok((None, wanted)),
        Err(e) => Err(e),
    }
}

/// Writes that were in flight on a link that was given up.
#[derive(Debug)]
pub enum Letters {
    /// Their keys.
    Keys(Vec<Box<[u8]>>),
    /// More than the journal may hold: the server is flushed instead.
    TooMany,
}

/// A link that was given up with writes unanswered: half-closed, read to its end.
#[derive(Debug)]
pub struct Drain<S> {
    /// Its socket.
    pub io: S,
    /// Whose it was.
    pub server: ServerId,
    /// Until when the server waits for its end.
    pub until: Time,
    /// That time has passed: the keys are told the server once more when the end comes.
    pub late: bool,
    /// The writes that the server may still read from it.
    pub letters: Letters,
    /// What the link's events are named by.
    pub token: usize,
}

/// How long a server waits for the end of a link that was given up, in nanoseconds.
pub const DRAIN_WAIT: u64 = 30 * SECOND;

/// A server: an address with its links, its health and its journal.
#[derive(Debug)]
pub struct Server {
    /// As configured.
    pub spec: ServerSpec,
    /// The pool it belongs to.
    pub pool: usize,
    /// Named in the pool's `servers` (`-s`).
    pub is_primary: bool,
    /// Named in the pool's `backups` (`-b`).
    pub is_backup: bool,
    /// A key always travels on the same one.
    pub links: Vec<u32>,
    /// Links before their number changed. While one of these owes something, the new ones are
    /// not opened, so that no request overtakes another.
    pub old_links: Vec<u32>,
    /// Up, warming, down.
    pub health: Health,
    /// What it missed.
    pub journal: Journal,
    /// It is up, and its journal has keys that it was not told yet.
    pub untold: bool,
    /// It knows meta commands (1.6); as of the last handshake.
    pub meta: bool,
    /// Links that were given up and are not at their end.
    pub drains: u32,
    /// Deletes of a replay that are not answered.
    pub replaying: u32,
    /// No longer configured: it finishes what it owes, until this time at most.
    pub retired: Option<Time>,
    /// Its figures.
    pub stats: ServerStats,
}

impl Server {
    /// True if it can be asked for a value with its time to live (meta commands).
    pub fn meta_known(&self) -> bool {
        self.meta
    }

    /// Its links, and those that are on their way out.
    pub fn all_links(&self) -> impl Iterator<Item = u32> {
        self.old_links.iter().chain(&self.links).copied()
    }

    /// True if it, or some of its links, are on the way out.
    pub fn winds_down(&self) -> bool {
        !self.old_links.is_empty() || (self.retired.is_some() && !self.is_vacant())
    }

    /// True if nothing refers to it any more: its place is free.
    pub fn is_vacant(&self) -> bool {
        self.links.is_empty()
    }

    /// The link that a key of this hash travels on.
    pub fn link_for(&self, hash: u64) -> u32 {
        match self.links.len() {
            1 => self.links[0],
            n => self.links[(hash >> 7) as usize % n],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Stream;

    #[test]
    fn a_long_list_of_what_is_owed_gives_its_memory_back() {
        let mut link: Link<Stream> = Link::new(0, 1);
        for (owed, kept) in [(1000, true), (KEEP_PENDING + 1, false)] {
            for _ in 0..owed {
                link.owe(Pending::own(To::Ghost, Verb::Get, 0, Time::NEVER));
            }
            while link.pop().is_some() {}
            assert_eq!(link.pending.capacity() > 0, kept, "{owed}");
        }
    }
}
