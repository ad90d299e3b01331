//! One client: bytes become requests, outcomes become bytes in order.
//!
//! ```text
//!  slots   [first_seq ……………………………………… next]      what the client is owed, in order
//!            head: its bytes go straight to `out`
//!                   others: held until the head is done
//! ```
//!
//! A client that is owed nothing and sent nothing half holds no memory but this struct: what a
//! busy one needs is an [`Active`], lent by the proxy.

use crate::buffer::{Queue, SHARE};
use crate::health::{Cause, Time};
use crate::net::Socket;
use crate::protocol::{Dialect, Dress, Request, Verb};
use crate::upstream::{Ready, ServerId, write_queue};
use std::collections::VecDeque;
use std::io;

/// Requests in flight at which a client is not read any more.
pub const MAX_SLOTS: usize = 1024;

/// Bytes owed at which a client is not read any more.
pub const MAX_OWED: usize = 1024 * 1024;

/// How long a part of an answer may wait for the rest, in nanoseconds. Servers that were asked
/// together mostly answer within this.
pub const MAX_WAIT: u64 = 200_000;

/// Less than this, in bytes, may wait: it is copied, and holds no chunk.
const MAX_WAITING: usize = SHARE;

/// Why a client is not read. It is read again when the set is empty.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Pause(u8);

impl Pause {
    /// Too many requests in flight, or too many bytes owed.
    pub const OWED: Pause = Pause(1);
    /// All connections together hold too many bytes.
    pub const MEMORY: Pause = Pause(2);
    /// A server has too much in flight.
    pub const SERVER: Pause = Pause(4);
    /// A `flush_all` waits until everything before it is answered, or is on its way itself.
    pub const ORDER: Pause = Pause(8);

    /// True if there is no reason.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// True if `reason` is one of them.
    pub fn has(self, reason: Pause) -> bool {
        self.0 & reason.0 != 0
    }

    /// All others.
    pub fn without(self, reason: Pause) -> Pause {
        Pause(self.0 & !reason.0)
    }

    /// Adds a reason.
    pub fn add(&mut self, reason: Pause) {
        self.0 |= reason.0;
    }

    /// Takes a reason away.
    pub fn remove(&mut self, reason: Pause) {
        *self = self.without(reason);
    }
}

/// How a client's connection ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// It goes on.
    Open,
    /// Nothing more is read; what is owed is sent, then it is closed.
    AfterAnswers,
    /// It is gone; closed at the end of the tick.
    Dead,
}

/// One connected client.
#[derive(Debug)]
pub struct Client<S> {
    /// Its socket.
    pub io: S,
    /// What it needs while it is busy.
    pub active: Option<Box<Active>>,
    /// When it last sent something, or took something of what it is owed.
    pub last_moved: Time,
    /// Its pool.
    pub pool: u16,
    /// The number of the listener through which it came; of none if that is gone.
    pub entrance: u16,
    /// Told by its first byte.
    pub dialect: Option<Dialect>,
    /// What the socket is ready for.
    pub ready: Ready,
    /// Why it is not read.
    pub pause: Pause,
    /// How it ends.
    pub ending: Ending,
    /// On the list of clients to flush.
    pub dirty: bool,
    /// On the list of clients to serve.
    pub listed: bool,
    /// Its pause for what it is owed was counted.
    pub pause_counted: bool,
    /// Bytes counted in the proxy's total.
    pub accounted: u32,
}

/// What a client is in the middle of sending.
#[derive(Debug, Default)]
pub enum Intake {
    /// Nothing: the next byte starts a request.
    #[default]
    Head,
    /// The value of a request.
    Value(Box<Gathering>),
    /// So many bytes to be thrown away.
    Swallow(usize),
}

/// A request whose value arrives in pieces.
#[derive(Debug)]
pub struct Gathering {
    /// The request.
    pub request: Request,
    /// Length of the wire line at the front of `bytes`.
    pub line: usize,
    /// Bytes of the client's stream still to come.
    pub missing: usize,
    /// What is there, as it goes on the wire.
    pub bytes: Queue,
}

/// The busy part of a client.
#[derive(Debug, Default)]
pub struct Active {
    /// Received and not understood yet: the start of a request.
    pub partial: Vec<u8>,
    /// How far a line end was searched for in `partial`.
    pub searched: usize,
    /// How many bytes the request in `partial` lacks; 0 if that is not known, since its line has
    /// no end yet.
    pub wants: usize,
    /// `partial` may hold a whole request: it was left when the client was paused.
    pub unparsed: bool,
    /// In the middle of what.
    pub intake: Intake,
    /// What is owed, oldest first.
    pub slots: VecDeque<Slot>,
    /// Number of `slots[0]`.
    pub first_seq: u32,
    /// Answers in order, from the first byte that the client has not taken.
    pub out: Queue,
    /// Bytes held in slots.
    pub held: usize,
    /// Since when `out` waits for the rest of the answer that it ends with.
    pub waits_since: Option<Time>,
}

/// One answer that a client is owed.
#[derive(Debug)]
pub struct Slot {
    /// What the answer needs.
    pub dress: Dress,
    /// What was asked, as on the wire.
    pub verb: Verb,
    /// Parts still to come; the slot is done at 0.
    pub parts: u32,
    /// Some part was answered by a server.
    pub answered: bool,
    /// More than one key: the proxy writes `END`.
    pub multi: bool,
    /// Of a request with several keys: who failed last, and why.
    pub failure: Option<(ServerId, Cause)>,
    /// Bytes of the answer while older answers are not done.
    pub held: Option<Box<Queue>>,
}

/// Boxes that busy clients, arriving values and waiting answers borrow, so that none is allocated
/// anew.
#[derive(Default, Debug)]
#[allow(clippy::vec_box)] // The boxes are what is lent.
pub struct Spares {
    actives: Vec<Box<Active>>,
    gatherings: Vec<Box<Gathering>>,
    queues: Vec<Box<Queue>>,
    /// Memory that all of them hold.
    bytes: usize,
}

/// A spare keeps this much memory, in bytes, for unfinished requests: what is left of a read that
/// held many.
const KEEP_PARTIAL: usize = 32 * 1024;

/// Memory that spares may hold, in bytes: enough for thousands of clients that are busy at once
/// with little.
const MAX_SPARES: usize = 8 * 1024 * 1024;

impl Spares {
    fn active(&mut self) -> Box<Active> {
        let Some(active) = self.actives.pop() else {
            return Box::default();
        };
        self.bytes -= active.capacity();
        active
    }

    #[inline]
    fn give_active(&mut self, active: Box<Active>) {
        let bytes = active.capacity();
        if self.bytes + bytes <= MAX_SPARES {
            self.bytes += bytes;
            self.actives.push(active);
        }
    }

    /// An empty place for the value of `request`, of whose bytes so many are still to come.
    pub fn gathering(&mut self, request: &Request, line: usize, missing: usize) -> Box<Gathering> {
        let Some(mut gathering) = self.gatherings.pop() else {
            return Box::new(Gathering {
                request: *request,
                line,
                missing,
                bytes: Queue::new(),
            });
        };
        self.bytes -= gathering_bytes(&gathering);
        gathering.request = *request;
        gathering.line = line;
        gathering.missing = missing;
        gathering
    }

    /// Takes one back; what it holds is forgotten.
    pub fn give_gathering(&mut self, mut gathering: Box<Gathering>) {
        gathering.bytes.clear();
        let bytes = gathering_bytes(&gathering);
        if self.bytes + bytes <= MAX_SPARES {
            self.bytes += bytes;
            self.gatherings.push(gathering);
        }
    }

    fn queue(&mut self) -> Box<Queue> {
        let Some(queue) = self.queues.pop() else {
            return Box::default();
        };
        self.bytes -= queue_bytes(&queue);
        queue
    }

    fn give_queue(&mut self, mut queue: Box<Queue>) {
        queue.clear();
        let bytes = queue_bytes(&queue);
        if self.bytes + bytes <= MAX_SPARES {
            self.bytes += bytes;
            self.queues.push(queue);
        }
    }
}

fn gathering_bytes(gathering: &Gathering) -> usize {
    size_of::<Gathering>() + gathering.bytes.capacity()
}

fn queue_bytes(queue: &Queue) -> usize {
    size_of::<Queue>() + queue.capacity()
}

impl Slot {
    /// What a request with one key is owed.
    pub fn new(dress: Dress, verb: Verb) -> Slot {
        Slot {
            dress,
            verb,
            parts: 1,
            answered: false,
            multi: false,
            failure: None,
            held: None,
        }
    }
}

impl Active {
    /// Bytes that the client is owed.
    pub fn owed(&self) -> usize {
        self.out.len() + self.held
    }

    /// Memory that it holds, in bytes, used or not.
    fn capacity(&self) -> usize {
        size_of::<Active>()
            + self.partial.capacity()
            + self.slots.capacity() * size_of::<Slot>()
            + self.out.capacity()
    }

    fn own_bytes(&self) -> usize {
        let gathered = match &self.intake {
            Intake::Value(value) => value.bytes.own_bytes(),
            Intake::Head | Intake::Swallow(_) => 0,
        };
        self.partial.len() + gathered + self.out.own_bytes() + self.held
    }

    fn is_idle(&self) -> bool {
        self.partial.is_empty()
            && self.slots.is_empty()
            && self.out.is_empty()
            && matches!(self.intake, Intake::Head)
    }
}

impl<S: Socket> Client<S> {
    /// A client that has just connected.
    pub fn new(io: S, pool: u16, entrance: u16, now: Time) -> Client<S> {
        Client {
            io,
            active: None,
            last_moved: now,
            pool,
            entrance,
            dialect: None,
            ready: Ready {
                readable: true,
                writable: true,
                closed: false,
            },
            pause: Pause::default(),
            ending: Ending::Open,
            dirty: false,
            listed: false,
            pause_counted: false,
            accounted: 0,
        }
    }

    /// What it needs while busy.
    pub fn active(&mut self, spares: &mut Spares) -> &mut Active {
        self.active.get_or_insert_with(|| spares.active())
    }

    /// Owes one answer of `parts` parts. Returns the slot's number.
    #[inline]
    pub fn owe(&mut self, spares: &mut Spares, slot: Slot) -> u32 {
        let active = self.active(spares);
        let seq = active.first_seq.wrapping_add(active.slots.len() as u32);
        active.slots.push_back(slot);
        if active.slots.len() >= MAX_SLOTS {
            self.pause.add(Pause::OWED);
        }
        seq
    }

    /// The slot with this number.
    pub fn slot(&mut self, seq: u32) -> Option<&mut Slot> {
        let active = self.active.as_mut()?;
        let i = seq.wrapping_sub(active.first_seq) as usize;
        active.slots.get_mut(i)
    }

    /// Lets `write` append to the answer of slot `seq`, and counts `parts` of it as done.
    /// `write` is told whether this was the last part, and the slot.
    pub fn deliver(
        &mut self,
        spares: &mut Spares,
        seq: u32,
        parts: u32,
        write: impl FnOnce(&mut Queue, &mut Slot, bool),
    ) {
        let Some(active) = self.active.as_mut() else {
            return;
        };
        let i = seq.wrapping_sub(active.first_seq) as usize;
        let Some(slot) = active.slots.get_mut(i) else {
            return;
        };
        slot.parts = slot.parts.saturating_sub(parts);
        let last = slot.parts == 0;
        if i == 0 {
            write(&mut active.out, slot, last);
        } else {
            let mut held = slot.held.take().unwrap_or_else(|| spares.queue());
            let before = held.len();
            write(&mut held, slot, last);
            active.held += held.len() - before;
            slot.held = Some(held);
        }
        if i == 0 && last {
            active.slots.pop_front();
            active.first_seq = active.first_seq.wrapping_add(1);
            self.advance(spares);
        }
        self.check_owed();
    }

    /// Sends on what waited for an older answer.
    fn advance(&mut self, spares: &mut Spares) {
        let Some(active) = self.active.as_mut() else {
            return;
        };
        while let Some(slot) = active.slots.front_mut() {
            if let Some(held) = slot.held.take() {
                let range = 0..held.len();
                active.held -= held.len();
                active
                    .out
                    .push(crate::buffer::Source::Queue(&held, held.start()), range);
                spares.give_queue(held);
            }
            if slot.parts > 0 {
                break;
            }
            active.slots.pop_front();
            active.first_seq = active.first_seq.wrapping_add(1);
        }
    }

    /// Pauses and resumes by what is owed: paused at the bound, read again at half of it.
    pub fn check_owed(&mut self) {
        let Some(active) = self.active.as_ref() else {
            self.pause.remove(Pause::OWED);
            self.pause.remove(Pause::ORDER);
            return;
        };
        let (slots, owed) = (active.slots.len(), active.owed());
        if slots >= MAX_SLOTS || owed >= MAX_OWED {
            self.pause.add(Pause::OWED);
        } else if slots <= MAX_SLOTS / 2 && owed <= MAX_OWED / 2 {
            self.pause.remove(Pause::OWED);
        }
        if slots == 0 {
            self.pause.remove(Pause::ORDER);
        }
    }

    /// Since when what is there for it waits for more, so that both go in one write: `now` if that
    /// begins; `None` if it is not to wait. With a part of the answer to a get of several keys a
    /// client can do nothing.
    pub fn waits_since(&mut self, now: Time) -> Option<Time> {
        let active = self.active.as_mut()?;
        let part = active.slots.front().is_some_and(|s| s.answered);
        if part && !active.out.is_empty() && active.out.len() < MAX_WAITING {
            let since = *active.waits_since.get_or_insert(now);
            if now.since(since) < MAX_WAIT {
                return Some(since);
            }
        }
        active.waits_since = None;
        None
    }

    /// Writes what it can. Returns bytes and calls.
    pub fn flush(&mut self) -> io::Result<(usize, u32)> {
        let (mut bytes, mut calls) = (0, 0);
        let Some(active) = self.active.as_mut() else {
            return Ok((0, 0));
        };
        while self.ready.writable && !active.out.is_empty() {
            let (n, wanted) = write_queue(&mut self.io, &active.out, active.out.start())?;
            calls += 1;
            match n {
                None => self.ready.writable = false,
                Some(n) => {
                    bytes += n;
                    active.out.release(active.out.start() + n as u64);
                    if n < wanted {
                        self.ready.writable = false;
                    }
                }
            }
        }
        if bytes > 0 {
            self.check_owed();
        }
        Ok((bytes, calls))
    }

    /// Bytes that it is owed and that are there.
    pub fn owed(&self) -> usize {
        self.active.as_ref().map_or(0, |a| a.owed())
    }

    /// Copied bytes that it holds.
    pub fn own_bytes(&self) -> usize {
        self.active.as_ref().map_or(0, |a| a.own_bytes())
    }

    /// True if something that it sent can be looked at now.
    pub fn may_be_served(&self) -> bool {
        let may_go_on = self.ending == Ending::Open && self.pause.is_empty();
        may_go_on && (self.ready.readable || self.is_unparsed())
    }

    /// True if what it sent was left unread in the middle.
    pub fn is_unparsed(&self) -> bool {
        self.active.as_ref().is_some_and(|a| a.unparsed)
    }

    /// Servers whose failure an answer may still have to name.
    pub fn failed_servers(&self) -> impl Iterator<Item = ServerId> {
        let slots = self.active.iter().flat_map(|a| &a.slots);
        slots.filter_map(|slot| slot.failure.map(|f| f.0))
    }

    /// True if it is owed nothing.
    pub fn is_answered(&self) -> bool {
        self.active
            .as_ref()
            .is_none_or(|a| a.slots.is_empty() && a.out.is_empty())
    }

    /// Gives the busy part back if it is not needed.
    pub fn rest(&mut self, spares: &mut Spares) {
        if self.active.as_ref().is_some_and(|a| a.is_idle()) {
            if let Some(mut active) = self.active.take() {
                active.partial.clear();
                if active.partial.capacity() > KEEP_PARTIAL {
                    active.partial = Vec::new();
                }
                active.searched = 0;
                active.wants = 0;
                active.unparsed = false;
                spares.give_active(active);
            }
        }
    }
}
