//! How much one client may hold: bytes read from it, requests in flight, answers that it has not
//! taken.

use super::active::{Intake, Portions};
use super::client::{Client, Ending, Pause};
use super::{Clients, Ticket};
use crate::buffer::CHUNK;
use crate::net::Socket;

/// Requests in flight at which a client is paused.
const MAX_SLOTS: usize = 1024;

/// The same for a client that has taken no answers yet; it doubles with each time that it takes some.
/// Otherwise those that connect, ask thousands of times, leave, and come again would fill their
/// servers with requests that nobody waits for.
const FIRST_SLOTS: usize = 20;

/// Bytes owed at which a client is paused.
const MAX_OWED: usize = 1024 * 1024;

/// A client that is owed less, in bytes, is paused by what it asks for, not by what is answered.
const MUCH: usize = 16 * 1024;

/// Assumed size of a value before any has come, in bytes.
const FIRST_GUESS: usize = MAX_EXPECTED / 128;

/// Bytes of values that one client may ask for at once: other clients of the same servers wait
/// behind them.
const MAX_EXPECTED: usize = 4 * 1024 * 1024;

/// Keys of one request that are asked at once, at most.
const PORTION: usize = 1024;

/// True if what was answered or has gone out may change whether this client is paused.
#[inline]
fn may_pause_or_go_on<S>(client: &Client<S>) -> bool {
    let active = client.active.as_ref();
    !client.pause.is_empty() || active.is_some_and(|a| a.owed() > MUCH)
}

impl<S: Socket> Clients<S> {
    /// How many bytes may be read from a client now: what is left of its share. If that is none it
    /// is paused: until it is answered if it is owed something, else until there is memory.
    pub(super) fn room_to_read(&mut self, key: usize) -> usize {
        let share = self.budget.share();
        let Some(client) = self.table.get_mut(key) else {
            return 0;
        };
        let Some(active) = client.active.as_ref() else {
            return share.max(self.budget.least());
        };
        if let Intake::Swallow(bytes) = active.intake {
            return bytes;
        }
        let least = self.budget.least().saturating_sub(active.holds());
        let room = share.saturating_sub(active.holds()).max(least);
        if room > 0 {
            return room;
        }
        if active.asked + active.owed() > 0 {
            client.pause.add(Pause::OWED);
        } else {
            self.starve(key);
        }
        0
    }

    fn starve(&mut self, key: usize) {
        if let Some(client) = self.table.get_mut(key) {
            client.pause.add(Pause::MEMORY);
            // It has sent something, and it is not its fault that it is not read.
            client.last_moved = self.now;
            self.hungry.push_back(key);
            self.counters.limit_memory_paused += 1;
        }
    }

    /// True if clients wait for memory.
    pub fn has_hungry(&self) -> bool {
        !self.paused && !self.hungry.is_empty()
    }

    /// A client's answers changed: lists it to be written, and accounts for it anew.
    #[inline]
    pub(super) fn changed(&mut self, key: usize) {
        let Some(client) = self.table.get_mut(key) else {
            return;
        };
        self.dirty.add(key, &mut client.dirty);
        if client.active.as_ref().is_some_and(|a| a.out.is_empty()) {
            client.was_answered();
        }
        if let Some((copied, charged)) = client.account() {
            self.budget.recharge(charged, copied);
        }
        if may_pause_or_go_on(client) {
            self.check_owed(key);
        }
    }

    /// Something was answered or has gone out: a paused client may go on, and one that is owed much
    /// may have to pause. The others are looked at when they ask for more.
    #[inline]
    pub(super) fn check_changed(&mut self, key: usize) {
        if self.table.get(key).is_some_and(may_pause_or_go_on) {
            self.check_owed(key);
        }
    }

    #[inline]
    pub(super) fn account(&mut self, key: usize) {
        if let Some((copied, charged)) = self.table.get_mut(key).and_then(|c| c.account()) {
            self.budget.recharge(charged, copied);
        }
    }

    /// Pauses a client at the bound of what it may be owed, and resumes it at half of that.
    #[inline]
    pub(super) fn check_owed(&mut self, key: usize) {
        let Some(client) = self.table.get_mut(key) else {
            return;
        };
        let Some(active) = client.active.as_ref() else {
            client.pause.remove(Pause::OWED);
            client.pause.remove(Pause::ORDER);
            return;
        };
        let typical = self.pools[client.pool as usize].typical;
        let (slots, owed) = (active.slots.len(), active.owed());
        // What is there, and what may come.
        let expected = active.asked + slots * typical;
        let most = MAX_EXPECTED.min(self.budget.share() / 2);
        let most_slots = MAX_SLOTS.min(FIRST_SLOTS << client.answered.min(16));
        let is_full =
            slots >= most_slots || owed >= MAX_OWED || (slots > 0 && owed + expected >= most);
        if !is_full && client.pause.is_empty() {
            return;
        }
        let has_room = slots <= most_slots / 2
            && owed <= MAX_OWED / 2
            && (slots == 0 || owed + expected <= most / 2);
        // Nothing else can go out before more keys of the first request were asked.
        let must_go_on = active.is_stuck_at_front();
        if is_full && !must_go_on {
            self.counters.limit_client_paused += u64::from(!client.pause.has(Pause::OWED));
            client.pause.add(Pause::OWED);
        } else if has_room || must_go_on {
            client.pause.remove(Pause::OWED);
        }
        if active.slots.is_empty() {
            client.pause.remove(Pause::ORDER);
        }
        if client.pause.has(Pause::PORTION) && active.next_portion_is_due() {
            client.pause.remove(Pause::PORTION);
            self.list(key);
        }
    }

    /// Keeps the remaining keys of a request until the present portion has gone out.
    pub fn keep_portions(&mut self, key: usize, portions: Box<Portions>) {
        if let Some(client) = self.table.get_mut(key) {
            client.active(&mut self.spares).intake = Intake::Keys(portions);
            client.pause.add(Pause::PORTION);
        }
        self.check_owed(key);
    }

    /// True if so many more bytes of a reply with values may be kept for a client; `earlier` bytes
    /// of the same reply are kept already.
    pub fn has_room_for(&mut self, ticket: Ticket, earlier: usize, more: usize) -> bool {
        let Some(client) = self.table.get(ticket.client) else {
            return false;
        };
        let active = client.active.as_ref();
        let owed = active.map_or(0, |a| a.owed() + earlier);
        if client.ending == Ending::Dead || !self.budget.admits(owed, more) {
            return false;
        }
        let share = self.budget.share();
        if owed + more <= self.budget.little() || owed + more <= share {
            return true;
        }
        let is_next = active.is_none_or(|a| a.is_next_out(ticket.slot));
        // A value that is larger than a share is for one client at a time.
        let max_value = self.pools[client.pool as usize].max_value;
        let is_taken = self.large.is_some_and(|other| {
            let other = self.table.get(other).filter(|_| other != ticket.client);
            other.is_some_and(|c| c.holds() > share)
        });
        if is_taken || !is_next || earlier > max_value + CHUNK {
            return false;
        }
        self.large = Some(ticket.client);
        true
    }

    /// Notes how large a server's answer for `keys` keys was.
    #[inline]
    pub(super) fn note_size(&mut self, pool: usize, bytes: usize, keys: usize) {
        let size = (bytes / keys.max(1)).max(1);
        let pool = &mut self.pools[pool];
        if size >= pool.typical {
            pool.typical = size;
        } else {
            pool.typical -= (pool.typical - size).div_ceil(64);
        }
    }

    /// How many keys of one request may be asked at once.
    pub fn portion(&self, key: usize) -> usize {
        let Some(client) = self.table.get(key) else {
            return 1;
        };
        let size = match self.pools[client.pool as usize].typical {
            0 => FIRST_GUESS,
            typical => typical,
        };
        let most = MAX_EXPECTED.min(self.budget.share() / 2);
        (most.saturating_sub(client.holds()) / size).clamp(1, PORTION)
    }
}
