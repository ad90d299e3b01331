//! The answers that a client is owed, in order.
//!
//! ```text
//!  slots   [first_seq ……………………………………… next]      what the client is owed, in order
//!            head: its bytes go straight to `out`
//!                   others: held until the head is done
//! ```

use super::active::{Active, Done, Slot};
use super::multi::Multi;
use super::spares::Spares;
use crate::buffer::Source;

impl Active {
    /// Takes complete answers off the front, and sends on what waited for them.
    pub(super) fn advance(&mut self, spares: &mut Spares) {
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

    /// True if this slot is the next to go out and nothing is there before it.
    pub fn is_next_out(&self, seq: u32) -> bool {
        seq == self.first_seq && self.out.is_empty()
    }

    /// True if the client has taken everything, and nothing can follow before more keys of its
    /// first request are asked.
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

    /// Lets `f` change the answer to a request with several keys, and sends on what became ready. If
    /// that completes the answer: what it was.
    pub fn change_multi<T>(
        &mut self,
        spares: &mut Spares,
        seq: u32,
        f: impl FnOnce(&mut Multi) -> T,
    ) -> Option<(T, Option<Done>)> {
        let i = seq.wrapping_sub(self.first_seq) as usize;
        let slot = self.slots.get_mut(i)?;
        let multi = slot.multi.as_mut()?;
        let (held, copied) = (multi.held(), multi.copied());
        let result = f(multi);
        let was_done = std::mem::replace(&mut slot.done, multi.is_done());
        if slot.done {
            self.asked -= std::mem::take(&mut slot.asked) as usize;
        }
        let (now, now_copied) = (multi.held(), multi.copied());
        let done = (slot.done && !was_done).then(|| slot.request());
        self.held = self.held - held + now;
        self.held_copied = self.held_copied - copied + now_copied;
        if seq == self.first_seq {
            self.advance(spares);
        }
        Some((result, done))
    }
}
