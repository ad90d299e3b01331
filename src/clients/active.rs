//! The state of a busy client: the request that it is in the middle of sending, and the answers that it is owed.

use super::Ticket;
use super::multi::Multi;
use crate::buffer::Queue;
use crate::protocol::{Format, Request, Traits, Verb};
use crate::time::Time;
use std::collections::VecDeque;

/// What a client is in the middle of sending.
#[derive(Debug, Default)]
pub enum Intake {
    /// Nothing: the next byte starts a request.
    #[default]
    Head,
    /// The value of a request.
    Value(Box<Arriving>),
    /// So many bytes are to be discarded.
    Swallow(usize),
    /// The keys of a request that is asked for in portions.
    Keys(Box<Portions>),
}

/// A request whose value arrives in pieces.
#[derive(Debug)]
pub struct Arriving {
    /// The request.
    pub request: Request,
    /// Length of the upstream request line at the front of `bytes`.
    pub line: usize,
    /// Bytes of the client's stream still to come.
    pub missing: usize,
    /// What has arrived, as it will go to the server.
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
    pub fn ticket(&self, client: usize) -> Ticket {
        Ticket {
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
    /// Bytes that the request in `partial` still lacks; 0 while that is unknown because its line
    /// has no end yet.
    pub wants: usize,
    /// `partial` may hold a whole request: parsing stopped when the client was paused.
    pub unparsed: bool,
    /// What the client is in the middle of sending.
    pub intake: Intake,
    /// What is owed, oldest first.
    pub slots: VecDeque<Slot>,
    /// Number of `slots[0]`.
    pub first_seq: u32,
    /// Answers in order, from the first byte that the client has not taken.
    pub out: Queue,
    /// Bytes of answers held in slots.
    pub held: usize,
    /// Those of them that are copies, and not shared chunks.
    pub held_copied: usize,
    /// Bytes of its requests at servers.
    pub asked: usize,
    /// Requests with keys to be asked once more, for want of memory.
    pub again: VecDeque<u32>,
    /// Copied bytes charged to the budget.
    pub charged: usize,
}

/// A request that has its answer.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    /// What was asked.
    pub verb: Verb,
    /// When it was read; never if no server was asked.
    pub since: Time,
}

/// One answer that a client is owed.
#[derive(Debug)]
pub struct Slot {
    /// How the answer is written.
    pub format: Format,
    /// What was asked.
    pub verb: Verb,
    /// What the request does.
    pub traits: Traits,
    /// The answer is complete.
    pub done: bool,
    /// Bytes of the request, as long as it is at its server.
    pub asked: u32,
    /// Bytes of the answer while older answers are not done.
    pub held: Option<Box<Queue>>,
    /// The parts of the answer to a request with several keys.
    pub multi: Option<Box<Multi>>,
    /// When it was read.
    pub since: Time,
}

impl Slot {
    /// What is known of the request when it is answered.
    #[inline]
    pub fn request(&self) -> Done {
        Done {
            verb: self.verb,
            since: self.since,
        }
    }

    /// What a request with one key is owed.
    pub fn new(format: Format, verb: Verb) -> Slot {
        Slot {
            format,
            verb,
            traits: Traits::default(),
            done: false,
            asked: 0,
            held: None,
            multi: None,
            since: Time::NEVER,
        }
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
    fn arrived(&self) -> usize {
        match &self.intake {
            Intake::Value(value) => value.bytes.len(),
            Intake::Keys(keys) => keys.keys.len(),
            Intake::Head | Intake::Swallow(_) => 0,
        }
    }

    /// Copied bytes that it holds.
    pub(super) fn copied(&self) -> usize {
        let arrived = match &self.intake {
            Intake::Value(value) => value.bytes.own_bytes(),
            Intake::Keys(keys) => keys.keys.len(),
            Intake::Head | Intake::Swallow(_) => 0,
        };
        self.partial.len() + arrived + self.out.own_bytes() + self.held_copied
    }

    /// Memory that it holds, in bytes, used or not.
    pub(super) fn capacity(&self) -> usize {
        size_of::<Active>()
            + self.partial.capacity()
            + self.slots.capacity() * size_of::<Slot>()
            + self.out.capacity()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.partial.is_empty()
            && self.slots.is_empty()
            && self.out.is_empty()
            && self.asked == 0
            && matches!(self.intake, Intake::Head)
    }
}
