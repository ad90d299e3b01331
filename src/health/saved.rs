//! A server's life goes on under another program, but for what decides about it: that is configured.

use super::{Cause, Health, Policy, State};
use crate::saved::{Damaged, Loaded, Loader, Saved, Saver, saved_names};
use crate::time::Time;

saved_names!(Cause {
    Refused = 0,
    Unreachable = 1,
    TimedOut = 2,
    ConnectionLost = 3,
    Down = 4,
    JournalFull = 5,
    DeleteRefused = 6,
    FlushRefused = 7,
    NoMemory = 8,
    UnknownHost = 9,
    Moved = 10,
    Drained = 11,
    KeptAway = 12,
});

impl Health {
    /// Writes it as of now. A connect or a handshake on its way is begun anew; so is the sending of a journal.
    pub fn save(&self, now: Time, to: &mut Saver<'_>) {
        match self.state {
            State::Up => 0u8.save(to),
            State::Down { probe_at } => {
                1u8.save(to);
                probe_at.save(to);
            }
            State::Probing => {
                1u8.save(to);
                now.save(to);
            }
            State::Settling { since } => {
                2u8.save(to);
                since.save(to);
            }
            // It had settled.
            State::Syncing => {
                2u8.save(to);
                now.save(to);
            }
        }
        self.since.save(to);
        self.wait.save(to);
        self.warming_until.save(to);
        self.refilled.save(to);
        self.failures.save(to);
        self.counted_at.save(to);
        self.bytes.save(to);
        self.bytes_then.save(to);
        self.last_answer.save(to);
        self.heard.save(to);
        self.look_at.save(to);
        self.started.save(to);
        self.last_error.save(to);
        self.proved.save(to);
        self.unsettled.save(to);
        self.flaps.save(to);
        self.drained.save(to);
        self.jitter.save(to);
    }

    /// Reads it; `policy` is what decides from now on.
    ///
    /// # Errors
    /// It is damaged.
    pub fn load(policy: Policy, from: &mut Loader<'_>) -> Loaded<Health> {
        let state = match u8::load(from)? {
            0 => State::Up,
            1 => State::Down {
                probe_at: Time::load(from)?,
            },
            2 => State::Settling {
                since: Time::load(from)?,
            },
            n => return Err(Damaged(format!("state {n}"))),
        };
        Ok(Health {
            policy,
            state,
            since: Saved::load(from)?,
            wait: Saved::load(from)?,
            warming_until: Saved::load(from)?,
            refilled: Saved::load(from)?,
            failures: Saved::load(from)?,
            counted_at: Saved::load(from)?,
            bytes: Saved::load(from)?,
            bytes_then: Saved::load(from)?,
            last_answer: Saved::load(from)?,
            heard: Saved::load(from)?,
            look_at: Saved::load(from)?,
            started: Saved::load(from)?,
            last_error: Saved::load(from)?,
            proved: Saved::load(from)?,
            unsettled: Saved::load(from)?,
            flaps: Saved::load(from)?,
            drained: Saved::load(from)?,
            jitter: Saved::load(from)?,
        })
    }
}
