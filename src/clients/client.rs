//! One client: what it is sending, what it is owed, why it is not read.
//!
//! ```text
//!  slots   [first_seq ……………………………………… next]      what the client is owed, in order
//!            head: its bytes go straight to `out`
//!                   others: held until the head is done
//! ```
//!
//! A client that is owed nothing and sent nothing half holds no memory but this struct: what a
//! busy one needs is an [`Active`], lent by [`Spares`].

use super::multi::Multi;
use crate::buffer::{Queue, Source};
use crate::net::{Conn, Socket};
use crate::protocol::{Dialect, Dress, Request, Verb};
use crate::time::Time;
use std::collections::VecDeque;

/// Requests in flight at which a client is not read any more.
pub const MAX_SLOTS: usize = 1024;

/// Bytes owed at which a client is not read any more.
pub const MAX_OWED: usize = 1024 * 1024;

/// Of an answer that has more parts to come less than this, in bytes, is not sent alone: the client
/// can do nothing with a part, and servers that were asked together answer together.
const WORTH_SENDING: usize = crate::buffer::SHARE;

/// Why a client is not read. It is read again when the set is empty.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Pause(u8);

impl Pause {
    /// Too many requests in flight, or too many bytes owed.
    pub const OWED: Pause = Pause(1);
    /// It holds its share of memory.
    pub const MEMORY: Pause = Pause(2);
    /// A server has too much in flight.
    pub const SERVER: Pause = Pause(4);
    /// A `flush_all` waits until everything before it is answered, or is on its way itself.
    pub const ORDER: Pause = Pause(8);
    /// The next portion of its keys is asked when the one before has gone out.
    pub const PORTION: Pause = Pause(16);

    /// True if there is no reason.
    #[inline]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// True if `reason` is one of them.
    #[inline]
    pub fn has(self, reason: Pause) -> bool {
        self.0 & reason.0 != 0
    }

    /// Adds a reason.
    pub fn add(&mut self, reason: Pause) {
        self.0 |= reason.0;
    }

    /// Takes a reason away.
    pub fn remove(&mut self, reason: Pause) {
        self.0 &= !reason.0;
    }
}

/// How a client's connection ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// It goes on.
    Open,
    /// Nothing more is read; what is owed is sent, then it is closed.
    AfterAnswers,
    /// It is gone; closed at the end of the turn.
    Dead,
}

/// One connected client.
#[derive(Debug)]
pub struct Client<S> {
    /// Its socket.
    pub conn: Conn<S>,
    /// What it needs while it is busy.
    pub active: Option<Box<Active>>,
    /// When it last sent something, or took something of what it is owed.
    pub last_moved: Time,
    /// Its pool.
    pub pool: u32,
    /// The number of the listener through which it came; of none if that is gone.
    pub listener: u16,
    /// Told by its first byte.
    pub dialect: Option<Dialect>,
    /// Why it is not read.
    pub pause: Pause,
    /// How it ends.
    pub ending: Ending,
    /// On the list of clients to write.
    pub dirty: bool,
    /// On the list of clients to read.
    pub listed: bool,
}

/// What a client is in the middle of sending.
#[derive(Debug, Default)]
pub enum Intake {
    /// Nothing: the next byte starts a request.
    #[default]
    Head,
    /// The value of a request.
    Value(Box<Arriving>),
    /// So many bytes to be thrown away.
    Swallow(usize),
    /// The keys of a request that is asked for in portions.
    Keys(Box<Portions>),
}

/// A request whose value arrives in pieces.
#[derive(Debug)]
pub struct Arriving {
    /// The request.
    pub request: Request,
    /// Length of the upstream line at the front of `bytes`.
    pub line: usize,
    /// Bytes of the client's stream still to come.
    pub missing: usize,
    /// What is there, as it goes to the server.
    pub bytes: Queue,
}

/// What is still to be asked of a request with several keys.
#[derive(Debug)]
pub struct Portions {
    /// The request.
    pub request: Request,
    /// Its slot.
    pub slot: u32,
    /// The command and what comes before the keys.
    pub prefix: Vec<u8>,
    /// The keys, with spaces between them.
    pub keys: Vec<u8>,
    /// Where the next one begins.
    pub at: usize,
}

impl Portions {
    /// Where the answer belongs.
    pub fn ticket(&self, client: usize) -> super::Ticket {
        super::Ticket {
            client,
            slot: self.slot,
            part: 0,
        }
    }
}

/// The busy part of a client.
#[derive(Debug, Default)]
pub struct Active {
    /// Received and not understood yet: the start of a request.
    pub partial: Vec<u8>,
    /// How much of `partial` is done with.
    pub parsed: usize,
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
    /// Bytes of answers held in slots.
    pub held: usize,
    /// The copied ones among them.
    pub held_copied: usize,
    /// Bytes of its requests at servers.
    pub asked: usize,
    /// Requests with keys to be asked once more, for want of memory.
    pub again: VecDeque<u32>,
    /// Copied bytes charged to the budget.
    pub charged: usize,
}

/// One answer that a client is owed.
#[derive(Debug)]
pub struct Slot {
    /// What the answer needs.
    pub format: Dress,
    /// What was asked.
    pub verb: Verb,
    /// Nothing more will come.
    pub done: bool,
    /// Bytes of the request, as long as it is at its server.
    pub asked: u32,
    /// Bytes of the answer while older answers are not done.
    pub held: Option<Box<Queue>>,
    /// Of a request with several keys.
    pub multi: Option<Box<Multi>>,
}

impl Slot {
    /// What a request with one key is owed.
    pub fn new(format: Dress, verb: Verb) -> Slot {
        Slot {
            format,
            verb,
            done: false,
            asked: 0,
            held: None,
            multi: None,
        }
    }
}

/// Boxes that busy clients, arriving values and waiting answers borrow, so that none is allocated
/// anew.
#[derive(Default, Debug)]
#[allow(clippy::vec_box)] // The boxes are what is lent.
pub struct Spares {
    actives: Vec<Box<Active>>,
    arriving: Vec<Box<Arriving>>,
    queues: Vec<Box<Queue>>,
    multis: Vec<Box<Multi>>,
    /// Memory that all of them hold.
    bytes: usize,
}

/// A spare keeps this much memory, in bytes, for unfinished requests: what is left of a read that
/// held many.
pub const KEEP_PARTIAL: usize = 32 * 1024;

/// Memory that spares may hold, in bytes: enough for thousands of clients that are busy at once
/// with little.
const MAX_SPARES: usize = 8 * 1024 * 1024;

/// Puts a spare back on its list while there is room for it.
macro_rules! give {
    ($spares:ident.$list:ident, $item:expr, $bytes:expr) => {
        let bytes = $bytes;
        if $spares.bytes + bytes <= MAX_SPARES {
            $spares.bytes += bytes;
            $spares.$list.push($item);
        }
    };
}

impl Spares {
    fn active(&mut self) -> Box<Active> {
        let Some(active) = self.actives.pop() else {
            return Box::default();
        };
        self.bytes -= active.capacity();
        active
    }

    fn give_active(&mut self, active: Box<Active>) {
        give!(self.actives, active, active.capacity());
    }

    /// An empty place for the value of `request`, of whose bytes so many are still to come.
    pub fn arriving(&mut self, request: &Request, line: usize, missing: usize) -> Box<Arriving> {
        let Some(mut value) = self.arriving.pop() else {
            return Box::new(Arriving {
                request: *request,
                line,
                missing,
                bytes: Queue::new(),
            });
        };
        self.bytes -= size_of::<Arriving>() + value.bytes.capacity();
        (value.request, value.line, value.missing) = (*request, line, missing);
        value
    }

    /// Takes one back; what it holds is forgotten.
    pub fn give_arriving(&mut self, mut value: Box<Arriving>) {
        value.bytes.clear();
        let bytes = size_of::<Arriving>() + value.bytes.capacity();
        give!(self.arriving, value, bytes);
    }

    fn queue(&mut self) -> Box<Queue> {
        let Some(queue) = self.queues.pop() else {
            return Box::default();
        };
        self.bytes -= size_of::<Queue>() + queue.capacity();
        queue
    }

    fn give_queue(&mut self, mut queue: Box<Queue>) {
        queue.clear();
        let bytes = size_of::<Queue>() + queue.capacity();
        give!(self.queues, queue, bytes);
    }

    /// The place for the answer to a request with several keys.
    pub fn multi(&mut self) -> Box<Multi> {
        let Some(multi) = self.multis.pop() else {
            return Box::default();
        };
        self.bytes -= multi.capacity();
        multi
    }

    fn give_multi(&mut self, mut multi: Box<Multi>) {
        multi.clear();
        give!(self.multis, multi, multi.capacity());
    }
}

impl Active {
    /// Bytes that the client is owed.
    #[inline]
    pub fn owed(&self) -> usize {
        self.out.len() + self.held
    }

    /// Bytes that it holds in all: arriving, at servers, owed.
    pub fn holds(&self) -> usize {
        self.partial.len() + self.arrived() + self.asked + self.owed()
    }

    /// Bytes of a value or of keys that are there.
    pub fn arrived(&self) -> usize {
        match &self.intake {
            Intake::Value(value) => value.bytes.len(),
            Intake::Keys(keys) => keys.keys.len(),
            Intake::Head | Intake::Swallow(_) => 0,
        }
    }

    /// Copied bytes that it holds.
    fn copied(&self) -> usize {
        let arrived = match &self.intake {
            Intake::Value(value) => value.bytes.own_bytes(),
            Intake::Keys(keys) => keys.keys.len(),
            Intake::Head | Intake::Swallow(_) => 0,
        };
        self.partial.len() + arrived + self.out.own_bytes() + self.held_copied
    }

    /// Memory that it holds, in bytes, used or not.
    fn capacity(&self) -> usize {
        size_of::<Active>()
            + self.partial.capacity()
            + self.slots.capacity() * size_of::<Slot>()
            + self.out.capacity()
    }

    fn is_idle(&self) -> bool {
        self.partial.is_empty()
            && self.slots.is_empty()
            && self.out.is_empty()
            && self.asked == 0
            && matches!(self.intake, Intake::Head)
    }

    /// Takes answers that are done off the front, and sends on what waited for them.
    fn advance(&mut self, spares: &mut Spares) {
        while let Some(slot) = self.slots.front_mut() {
            if let Some(held) = slot.held.take() {
                self.held -= held.len();
                self.held_copied -= held.own_bytes();
                self.out
                    .push(Source::Queue(&held, held.start()), 0..held.len());
                spares.give_queue(held);
            }
            if let Some(multi) = &mut slot.multi {
                let (held, copied) = (multi.held(), multi.copied());
                multi.emit(&mut self.out);
                self.held -= held - multi.held();
                self.held_copied -= copied - multi.copied();
                if !slot.done {
                    return;
                }
                multi.finish(slot.format, &mut self.out);
            }
            if !slot.done {
                return;
            }
            if let Some(slot) = self.slots.pop_front() {
                slot.multi.into_iter().for_each(|m| spares.give_multi(m));
            }
            self.first_seq = self.first_seq.wrapping_add(1);
        }
    }

    /// True if what comes for this slot can go to the client at once, and nothing before it.
    pub fn is_next_out(&self, seq: u32) -> bool {
        seq == self.first_seq && self.out.is_empty()
    }

    /// True if the client has taken all there is, and no more can come before more keys of its first
    /// request are asked.
    pub fn is_stuck_at_front(&self) -> bool {
        let front = self.slots.front().and_then(|slot| slot.multi.as_ref());
        self.out.is_empty()
            && front.is_some_and(|m| m.is_between_portions() || m.waits_to_ask_again())
    }

    /// True if the next portion of keys may be asked: the one before has gone out.
    pub fn next_portion_is_due(&self) -> bool {
        self.slots.front().is_none_or(|slot| {
            let multi = slot.multi.as_ref();
            multi.is_some_and(|m| m.is_between_portions())
        })
    }

    /// The slot with this number.
    #[inline]
    pub fn slot(&mut self, seq: u32) -> Option<&mut Slot> {
        let i = seq.wrapping_sub(self.first_seq) as usize;
        self.slots.get_mut(i)
    }

    /// Lets `f` change the answer to a request with several keys, and sends on what became ready.
    pub fn change_multi<T>(
        &mut self,
        spares: &mut Spares,
        seq: u32,
        f: impl FnOnce(&mut Multi) -> T,
    ) -> Option<T> {
        let i = seq.wrapping_sub(self.first_seq) as usize;
        let slot = self.slots.get_mut(i)?;
        let multi = slot.multi.as_mut()?;
        let (held, copied) = (multi.held(), multi.copied());
        let result = f(multi);
        slot.done = multi.is_done();
        if slot.done {
            self.asked -= std::mem::take(&mut slot.asked) as usize;
        }
        let (now, now_copied) = (multi.held(), multi.copied());
        self.held = self.held - held + now;
        self.held_copied = self.held_copied - copied + now_copied;
        if seq == self.first_seq {
            self.advance(spares);
        }
        Some(result)
    }
}

impl<S: Socket> Client<S> {
    /// A client that has just connected.
    pub fn new(io: S, pool: u32, listener: u16, now: Time) -> Client<S> {
        Client {
            conn: Conn::new(io),
            active: None,
            last_moved: now,
            pool,
            listener,
            dialect: None,
            pause: Pause::default(),
            ending: Ending::Open,
            dirty: false,
            listed: false,
        }
    }

    /// What it needs while busy.
    #[inline]
    pub fn active(&mut self, spares: &mut Spares) -> &mut Active {
        self.active.get_or_insert_with(|| spares.active())
    }

    /// Owes one answer. Returns the slot's number.
    #[inline]
    pub fn owe(&mut self, spares: &mut Spares, slot: Slot) -> u32 {
        let active = self.active(spares);
        let seq = active.first_seq.wrapping_add(active.slots.len() as u32);
        active.slots.push_back(slot);
        seq
    }

    /// Gives the answer of slot `seq`: `write` appends it.
    #[inline]
    pub fn deliver(
        &mut self,
        spares: &mut Spares,
        seq: u32,
        write: impl FnOnce(&mut Queue, &Slot),
    ) {
        let Some(active) = self.active.as_mut() else {
            return;
        };
        let i = seq.wrapping_sub(active.first_seq) as usize;
        let Some(slot) = active.slots.get_mut(i).filter(|slot| !slot.done) else {
            return;
        };
        slot.done = true;
        active.asked -= slot.asked as usize;
        if i > 0 {
            let mut held = spares.queue();
            write(&mut held, slot);
            active.held += held.len();
            active.held_copied += held.own_bytes();
            slot.held = Some(held);
            return;
        }
        write(&mut active.out, slot);
        active.slots.pop_front();
        active.first_seq = active.first_seq.wrapping_add(1);
        active.advance(spares);
    }

    /// Copied bytes that it holds, and what was charged for them.
    #[inline]
    pub fn account(&mut self) -> Option<(usize, &mut usize)> {
        let active = self.active.as_mut()?;
        Some((active.copied(), &mut active.charged))
    }

    /// True if what is there for it is to be written now, and not with the rest of its answer.
    #[inline]
    pub fn is_worth_writing(&self) -> bool {
        self.active.as_ref().is_some_and(|a| {
            let front = a.slots.front().and_then(|slot| slot.multi.as_ref());
            // All that is there is of an answer of which servers owe more.
            let is_part = front.is_some_and(|m| m.open() > 0 && a.out.len() <= m.emitted());
            let waits = is_part && a.out.len() < WORTH_SENDING;
            !a.out.is_empty() && !waits
        })
    }

    /// True if something that it sent can be looked at now.
    #[inline]
    pub fn may_be_served(&self) -> bool {
        let goes_on = self.may_ask_anew() && (self.conn.is_readable() || self.is_unparsed());
        goes_on || self.may_ask_keys()
    }

    /// True if its next request may be looked at.
    #[inline]
    pub fn may_ask_anew(&self) -> bool {
        self.ending == Ending::Open && self.pause.is_empty()
    }

    /// True if more keys of requests that were looked at may be asked, whatever else waits.
    #[inline]
    pub fn may_ask_keys(&self) -> bool {
        let Some(active) = self.active.as_ref() else {
            return false;
        };
        let is_portion = matches!(active.intake, Intake::Keys(_));
        (is_portion || !active.again.is_empty())
            && (!active.again.is_empty() || active.next_portion_is_due())
            && self.ending != Ending::Dead
            && !self.pause.has(Pause::SERVER)
            && !self.pause.has(Pause::OWED)
    }

    /// True if what it sent was left unread in the middle, or is asked for in portions.
    #[inline]
    pub fn is_unparsed(&self) -> bool {
        self.active.as_ref().is_some_and(|a| {
            a.unparsed || !a.again.is_empty() || matches!(a.intake, Intake::Keys(_))
        })
    }

    /// Bytes that it holds in all.
    #[inline]
    pub fn holds(&self) -> usize {
        self.active.as_ref().map_or(0, |a| a.holds())
    }

    /// True if it is owed nothing.
    #[inline]
    pub fn is_answered(&self) -> bool {
        self.active
            .as_ref()
            .is_none_or(|a| a.slots.is_empty() && a.out.is_empty())
    }

    /// Gives the busy part back if it is not needed.
    #[inline]
    pub fn rest(&mut self, spares: &mut Spares) {
        if self
            .active
            .as_ref()
            .is_some_and(|a| a.is_idle() && a.charged == 0)
        {
            if let Some(mut active) = self.active.take() {
                active.partial.clear();
                if active.partial.capacity() > KEEP_PARTIAL {
                    active.partial = Vec::new();
                }
                active.searched = 0;
                active.wants = 0;
                active.unparsed = false;
                active.again.clear();
                spares.give_active(active);
            }
        }
    }
}
