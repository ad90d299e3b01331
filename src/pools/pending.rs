//! One request on its way to a server: its bytes, whom it belongs to, and what it waits for.

use super::ServerId;
use crate::buffer::{Queue, Source};
use crate::clients::Ticket;
use crate::health::Cause;
use crate::protocol::{Reply, Traits, Verb};
use crate::time::{MICROSECOND, MILLISECOND, Time};
use std::ops::Range;

/// Who gets the reply of a pending request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum To {
    /// A client.
    Client(Ticket),
    /// Nobody: it timed out and its late reply is thrown away, or nothing depends on it.
    Nobody,
    /// A mirror; of incr and decr the number that the backup must answer.
    Mirror(Option<u64>),
    /// A mirror that is looked after.
    Watched(usize),
    /// Its primary is looked at again.
    Again(usize),
    /// It is deleted, since its primary holds something else, or nobody knows.
    Doubt(usize),
    /// A delete of a journaled key: the key stays journaled under this stamp until it is answered.
    Delete(u64),
    /// A `flush_all` that stands for a journal that overflowed.
    Flush(u64),
    /// The next step of a request that waits for it.
    Step(usize),
    /// The copy of a fetched value to the primary; the number by which it is looked after.
    Copy(Option<usize>),
    /// The next step of a key that is copied to a server which lacks it.
    Refill(usize),
    /// One server's part of a client's `flush_all`.
    FlushAll(usize),
    /// The same, late: nobody waits for it any more, but it will still run.
    LateFlush,
    /// One server's part of what a monitor asked.
    Monitor(usize),
    /// The next of the requests about marks.
    Mark,
    /// Nobody: a server that was silent is asked whether it lives.
    Probe,
}

impl To {
    /// True if it asks how a server is, or what stands on it: no client's request depends on it.
    pub fn is_question(&self) -> bool {
        matches!(self, To::Probe | To::Mark)
    }

    /// True for what a backup is sent of what its primary answered.
    pub fn is_mirror(&self) -> bool {
        matches!(self, To::Mirror(_) | To::Watched(_) | To::Doubt(_))
    }

    /// True if it puts what another server holds where the key is absent.
    pub fn is_copy(&self) -> bool {
        matches!(self, To::Copy(_) | To::Refill(_))
    }
}

/// Which of its attempts a request is on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Attempt {
    /// At its primary.
    Primary,
    /// At its primary once more, over a fresh link.
    Retried,
    /// At its primary after the key was looked for or fetched: what it answers now is the answer.
    Warmed,
    /// At its backup because the primary was lost.
    Backup,
    /// A delete at its backup whose answer is the client's, since the primary is warming.
    Deleted,
}

/// The servers of a key, or of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Home {
    /// Its primary.
    pub primary: ServerId,
    /// Its backup; [`NOBODY`] if it has none.
    pub backup: ServerId,
    /// Each of its keys has a backup of its own: a request with several keys.
    pub several: bool,
    /// The pool that it came through.
    pub pool: u32,
    /// That pool's ring then: [`Pool::ring_number`](super::server::Pool::ring_number).
    pub ring: u8,
}

/// One request that a server owes a reply for.
#[derive(Clone, Debug)]
pub struct Pending {
    /// Who gets it.
    pub to: To,
    /// What was asked.
    pub verb: Verb,
    /// What it does.
    pub traits: Traits,
    /// The attempt that it is on.
    pub attempt: Attempt,
    /// Its timeout was counted already.
    pub counted: bool,
    /// It was, and its answer counts all the same if it comes soon: [`Pools::waits_on`](super::Pools::waits_on).
    pub waits_on: bool,
    /// Where its key belongs.
    pub home: Home,
    /// Length of its upstream request line.
    pub line: u32,
    /// Length of all its bytes.
    pub len: u32,
    /// What one answer may take, in milliseconds.
    pub timeout: u32,
    /// When it must be answered; never for magent's own.
    pub deadline: Time,
    /// How much of the time that it has for its backup it has had at its primary, in microseconds.
    pub spent: u32,
    /// When its last byte went to the kernel.
    pub sent: Time,
    /// Hash of its key: chooses the link.
    pub hash: u64,
}

impl Pending {
    /// The same request for another attempt.
    pub fn again(&self, attempt: Attempt) -> Pending {
        Pending {
            attempt,
            counted: false,
            waits_on: false,
            sent: Time::NEVER,
            ..self.clone()
        }
    }

    /// What was found of its key at a warming primary, or not found, may change: it is looked for again.
    pub fn look_again(&mut self) {
        if self.attempt == Attempt::Warmed {
            self.attempt = Attempt::Retried;
        }
    }

    /// What is left of the time that it has for its backup. `span`: all of that, which is what a request may take
    /// at one server. Both in nanoseconds.
    pub fn left(&self, span: u64) -> u64 {
        span.saturating_sub(u64::from(self.spent) * MICROSECOND)
    }

    /// Gives it so many nanoseconds of that time.
    pub fn extend(&mut self, by: u64) {
        self.deadline = self.deadline.plus(by);
        self.spent += (by / MICROSECOND) as u32;
    }

    /// Gives it as much of that time as it needs to have half of what is left from `now` on.
    pub fn extend_from(&mut self, now: Time, span: u64) {
        let left = self.left(span);
        let least = now.plus(left / 2);
        self.extend(least.since(self.deadline).min(left));
    }

    /// When its answer is late.
    #[inline]
    pub fn late_at(&self) -> Time {
        self.deadline
            .min(self.sent.plus(u64::from(self.timeout) * MILLISECOND))
    }

    /// True if it changes its key, or may create it.
    pub fn changes(&self) -> bool {
        self.writes() || self.traits.has(Traits::CREATES)
    }

    /// True if it is asked of a primary, which others may keep away.
    pub fn needs_look(&self) -> bool {
        match self.to {
            To::Client(_) => !matches!(self.attempt, Attempt::Backup | Attempt::Deleted),
            To::Step(_) | To::Copy(_) | To::Refill(_) => true,
            _ => false,
        }
    }

    /// True if it may change its key.
    pub fn writes(&self) -> bool {
        self.traits.has(Traits::WRITES)
    }
}

/// The bytes of one request for a server, wherever they stand.
#[derive(Clone)]
pub struct Ask<'a> {
    /// What is asked.
    pub verb: Verb,
    /// What it does.
    pub traits: Traits,
    /// The upstream request line.
    pub line: (Source<'a>, Range<usize>),
    /// What follows it.
    pub data: (Source<'a>, Range<usize>),
    /// The server needs a `\r\n` behind the data.
    pub end_line: bool,
}

impl<'a> Ask<'a> {
    /// A request that is a line only.
    pub fn line(verb: Verb, traits: Traits, line: &'a [u8]) -> Ask<'a> {
        Ask {
            verb,
            traits,
            line: (Source::Slice(line), 0..line.len()),
            data: (Source::Slice(&[]), 0..0),
            end_line: false,
        }
    }

    /// A request that stands in a queue, from `at` on.
    pub fn queued(p: &Pending, queue: &'a Queue, at: u64) -> Ask<'a> {
        let source = Source::Queue(queue, at);
        Ask {
            verb: p.verb,
            traits: p.traits,
            line: (source, 0..p.line as usize),
            data: (source, p.line as usize..p.len as usize),
            end_line: false,
        }
    }

    /// Its line.
    #[inline]
    pub fn line_bytes(&self) -> &'a [u8] {
        self.line.0.slice(self.line.1.clone())
    }

    /// How many bytes it has.
    pub fn bytes(&self) -> usize {
        let end = if self.end_line { b"\r\n".len() } else { 0 };
        self.line.1.len() + self.data.1.len() + end
    }

    /// Appends it to a queue; returns the lengths of its line and of all of it.
    #[inline]
    pub fn push_to(&self, queue: &mut Queue) -> (u32, u32) {
        let (line, data) = (&self.line.1, &self.data.1);
        let start = queue.end();
        if line.end == data.start && self.line.0.is(self.data.0) {
            queue.push(self.line.0, line.start..data.end);
        } else {
            queue.push(self.line.0, line.clone());
            queue.push(self.data.0, data.clone());
        }
        if self.end_line {
            queue.push_slice(b"\r\n");
        }
        (line.len() as u32, (queue.end() - start) as u32)
    }
}

/// A request with its reply; its bytes still stand on its link.
pub struct Answered<'a> {
    /// Its link.
    pub link: usize,
    /// Where its bytes begin in that link's queue.
    pub at: u64,
    /// The link that it was asked on, and its number there.
    pub asked_on: (usize, u64),
    /// What was owed.
    pub request: &'a Pending,
    /// What the server said.
    pub reply: &'a Reply<'a>,
}

/// A request that its server cannot answer.
pub struct Lost<'a> {
    /// That server.
    pub server: ServerId,
    /// What was owed.
    pub request: &'a Pending,
    /// Its bytes.
    pub ask: &'a Ask<'a>,
    /// Why.
    pub cause: Cause,
}

impl Lost<'_> {
    /// False if it was not sent at all: then it has changed nothing.
    pub fn was_asked(&self) -> bool {
        was_asked(self.cause)
    }
}

/// False if requests that were lost for this cause were not sent.
pub fn was_asked(cause: Cause) -> bool {
    !matches!(cause, Cause::Down | Cause::KeptAway)
}
