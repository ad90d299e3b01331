//! Who has not been told of a pool's new ring, while its keys are to move.

use super::ServerId;
use crate::time::Time;

/// Who has not been told of a pool's new ring.
#[derive(Default, Debug)]
pub struct Awaited {
    /// When keys are copied at the earliest: never while somebody has the ring before.
    pub begins_at: Time,
    /// Host and process of each who has.
    pub magents: Vec<String>,
    /// Servers of both rings, with the numbers of both.
    pub servers: Vec<(ServerId, [u64; 2])>,
    /// When others are looked for next.
    pub look_at: Time,
    /// How long their last answers may take, in nanoseconds.
    pub answers: u64,
}

impl Awaited {
    /// True while others have the ring before, or may have requests of theirs under way.
    pub fn waits(&self, now: Time) -> bool {
        now < self.begins_at
    }

    /// When others are looked for.
    pub fn next_at(&self) -> Time {
        match self.begins_at {
            Time::NEVER => self.look_at,
            _ => Time::NEVER,
        }
    }

    /// Whom it waits for, as a text before what follows.
    pub fn shown(&self) -> String {
        match self.magents.is_empty() {
            true => String::new(),
            false => format!("waits for magent {}, ", self.magents.join(", magent ")),
        }
    }
}
