//! One client: its socket, why it is not read, how it ends.
//!
//! An idle client takes no memory but this struct: what a busy one needs is an [`Active`], lent by
//! [`Spares`].

use super::active::{Active, Done, Intake, Slot};
use super::spares::{KEEP_PARTIAL, Spares};
use crate::buffer::Queue;
use crate::net::{Conn, Socket};
use crate::protocol::Dialect;
use crate::time::Time;

/// Part of an unfinished answer is not sent alone below this size, in bytes: the client can do
/// nothing with it, and servers that were asked together answer together.
const WORTH_SENDING: usize = crate::buffer::SHARE;

/// Why a client is not read. It is read again when the set is empty.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Pause(u8);

impl Pause {
    /// Too many requests in flight, or too many bytes owed.
    pub const OWED: Pause = Pause(1);
    /// It holds as much memory as it may.
    pub const MEMORY: Pause = Pause(2);
    /// A server has too much in flight.
    pub const SERVER: Pause = Pause(4);
    /// A `flush_all` waits until everything before it is answered, or is on its way itself.
    pub const ORDER: Pause = Pause(8);
    /// The next portion of its keys waits until the one before has gone out.
    pub const PORTION: Pause = Pause(16);

    /// The reasons in words, for people.
    pub fn words(self) -> impl Iterator<Item = &'static str> {
        let all = [
            (Pause::OWED, "owed"),
            (Pause::MEMORY, "memory"),
            (Pause::SERVER, "server"),
            (Pause::ORDER, "order"),
            (Pause::PORTION, "portion"),
        ];
        all.into_iter()
            .filter_map(move |(reason, word)| self.has(reason).then_some(word))
    }

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

    /// The reasons that still hold under another program: memory and room at servers are looked for anew.
    pub fn saved(self) -> u8 {
        self.0 & !(Pause::MEMORY.0 | Pause::SERVER.0)
    }

    /// The same set, of [`Pause::saved`].
    pub fn loaded(saved: u8) -> Pause {
        Pause(saved)
    }

    /// Takes a reason away.
    pub fn remove(&mut self, reason: Pause) {
        self.0 &= !reason.0;
    }
}

/// How a client's connection ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// It stays open.
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
    /// The number of the listener through which it came; `u16::MAX` if that is gone.
    pub listener: u16,
    /// The protocol, known from its first byte.
    pub dialect: Option<Dialect>,
    /// When it connected.
    pub since: Time,
    /// How many requests it has sent.
    pub requests: u64,
    /// Why it is not read.
    pub pause: Pause,
    /// How it ends.
    pub ending: Ending,
    /// How often it has taken answers, up to 255.
    pub answered: u8,
    /// It is on the list of clients to write.
    pub dirty: bool,
    /// It is on the list of clients to read.
    pub listed: bool,
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
            since: now,
            requests: 0,
            pause: Pause::default(),
            ending: Ending::Open,
            answered: 0,
            dirty: false,
            listed: false,
        }
    }

    /// Some of its requests were answered, by bytes that were written or by none.
    #[inline]
    pub fn was_answered(&mut self) {
        self.answered = self.answered.saturating_add(1);
    }

    /// The busy part, lent if it has none.
    #[inline]
    pub fn active(&mut self, spares: &mut Spares) -> &mut Active {
        self.active.get_or_insert_with(|| spares.active())
    }

    /// Adds a slot for one answer. Returns its number.
    #[inline]
    pub fn owe(&mut self, spares: &mut Spares, slot: Slot) -> u32 {
        let active = self.active(spares);
        let seq = active.first_seq.wrapping_add(active.slots.len() as u32);
        active.slots.push_back(slot);
        seq
    }

    /// Completes slot `seq`: `write` appends the answer. Returns the request, unless that slot was complete already.
    #[inline]
    pub fn deliver(
        &mut self,
        spares: &mut Spares,
        seq: u32,
        write: impl FnOnce(&mut Queue, &Slot),
    ) -> Option<Done> {
        let active = self.active.as_mut()?;
        let i = seq.wrapping_sub(active.first_seq) as usize;
        let slot = active.slots.get_mut(i).filter(|slot| !slot.done)?;
        let done = slot.request();
        slot.done = true;
        active.asked -= std::mem::take(&mut slot.asked) as usize;
        if i > 0 {
            let mut held = spares.queue();
            write(&mut held, slot);
            active.held += held.len();
            active.held_copied += held.own_bytes();
            slot.held = Some(held);
            return Some(done);
        }
        write(&mut active.out, slot);
        active.slots.pop_front();
        active.first_seq = active.first_seq.wrapping_add(1);
        active.advance(spares);
        Some(done)
    }

    /// Copied bytes that it holds, and what was charged for them.
    #[inline]
    pub fn account(&mut self) -> Option<(usize, &mut usize)> {
        let active = self.active.as_mut()?;
        Some((active.copied(), &mut active.charged))
    }

    /// True if its output is worth a write now, and need not wait for the rest of an answer.
    #[inline]
    pub fn is_worth_writing(&self) -> bool {
        self.active.as_ref().is_some_and(|a| {
            let front = a.slots.front().and_then(|slot| slot.multi.as_ref());
            // All that is there belongs to an answer of which servers owe more.
            let is_part = front.is_some_and(|m| m.open() > 0 && a.out.len() <= m.emitted());
            let waits = is_part && a.out.len() < WORTH_SENDING;
            !a.out.is_empty() && !waits
        })
    }

    /// True if there is something to do for what it sent.
    #[inline]
    pub fn may_be_served(&self) -> bool {
        let goes_on = self.may_ask_anew() && (self.conn.is_readable() || self.is_unparsed());
        goes_on || self.may_ask_keys()
    }

    /// True if its next request may be parsed.
    #[inline]
    pub fn may_ask_anew(&self) -> bool {
        self.ending == Ending::Open && self.pause.is_empty()
    }

    /// True if further keys of requests that were parsed before may be asked.
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

    /// True if parsing stopped in the middle of what it sent, or keys are left to be asked.
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

    /// Returns the busy part if it is not needed any more.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Blank;
    use crate::protocol::{Format, Verb};
    use crate::saved::{Loader, Saved, Saver};

    #[test]
    fn an_answer_that_waits_for_an_older_one_is_asked_of_nobody() {
        let mut spares = Spares::default();
        let mut client = Client::new(Blank, 0, 0, Time(0));
        let slots = [5, 11].map(|asked| {
            let slot = Slot {
                asked,
                ..Slot::new(Format::Text, Verb::Get)
            };
            client.active(&mut spares).asked += asked as usize;
            client.owe(&mut spares, slot)
        });
        client.deliver(&mut spares, slots[1], |out, _| out.push_slice(b"b"));

        // Another program takes over.
        let mut bytes = Vec::new();
        let mut to = Saver::new(&mut bytes);
        client.active.as_ref().expect("busy").save(&mut to);
        to.finish().expect("it is saved");
        let loaded = Active::load(&mut Loader::new(&bytes[..], bytes.len())).expect("it is loaded");
        assert_eq!((loaded.asked, loaded.slots.len()), (5, 2));
        client.active = Some(Box::new(loaded));

        client.deliver(&mut spares, slots[0], |out, _| out.push_slice(b"a"));
        let active = client.active.expect("answers that wait to be written");
        assert_eq!((active.asked, active.held, active.out.len()), (0, 0, 2));
    }
}
