//! The clients' half: what clients send becomes requests, what servers say becomes answers in order.
//! Knows no server; what it asks for is named by a [`Ticket`].
//!
//! ```text
//!   bytes ──intake──▶ Next ──▶ (the proxy asks the pools) ──▶ answer(ticket) ──▶ slot ──▶ out ──▶ bytes
//! ```

mod answer;
mod client;
mod deliver;
mod hungry;
mod intake;
mod multi;
mod sweep;

pub use answer::{has_values, is_error, line_reply, write_error, write_line, write_success};
pub use client::{Arriving, Client, Portions};
pub use intake::{Input, Next, needs_line_end};
pub use multi::Multi;

use crate::budget::Budget;
use crate::buffer::{CHUNK, Chunk};
use crate::net::Socket;
use crate::slab::Slab;
use crate::stats::ClientCounters;
use crate::time::Time;
use crate::work::{CLOSE, Work, WorkList};
use client::{Ending, Intake, MAX_OWED, MAX_SLOTS, Pause, Spares};
use std::collections::VecDeque;
use std::rc::Rc;

/// Where an answer belongs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ticket {
    /// The client's key; stale if it has left.
    pub client: usize,
    /// The number of its slot.
    pub slot: u32,
    /// The part of the answer, where it has several.
    pub part: u32,
}

/// What clients must know of their pool.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Largest value in bytes.
    pub max_value: usize,
    /// `flush_all` is allowed.
    pub flush_all: bool,
    /// A client that sends nothing for so many nanoseconds is closed; 0: never.
    pub idle_timeout: u64,
    /// How many clients there may be.
    pub clients: Option<usize>,
}

/// A pool as its clients see it.
#[derive(Debug, Default)]
struct Pool {
    max_value: usize,
    flush_all: bool,
    idle_timeout: u64,
    most: Option<usize>,
    connected: usize,
    /// About how many bytes the answer for a key has; falls slowly. 0 before any has come.
    typical: usize,
}

/// How large the value of a key is taken to be before any has come, in bytes.
const FIRST_GUESS: usize = MAX_EXPECTED / 128;

/// Values of so many bytes may be asked for at once by one client: whoever asks the same servers waits
/// behind them.
const MAX_EXPECTED: usize = 4 * 1024 * 1024;

/// Keys of one request that are asked at once, at most.
const PORTION: usize = 1024;

/// Written to one client in one turn, in bytes: more waits for the next one.
const MAX_WRITE: usize = 1024 * 1024;

/// All clients.
#[derive(Debug)]
pub struct Clients<S> {
    table: Slab<Client<S>>,
    spares: Spares,
    budget: Rc<Budget>,
    pools: Vec<Pool>,
    /// The pools of the listeners, in the order of the configuration.
    listeners: Vec<u32>,
    most: usize,
    now: Time,
    ready: WorkList<usize>,
    dirty: WorkList<usize>,
    /// Clients that wait for memory.
    hungry: VecDeque<usize>,
    /// The one whose answer is larger than its share.
    large: Option<usize>,
    dead: Vec<usize>,
    leaving: sweep::Leaving,
    sweep: sweep::Sweep,
    closed: bool,
    /// Some have left to whom servers owe something.
    abandoned: bool,
    /// What clients did.
    pub counters: ClientCounters,
}

impl<S: Socket> Clients<S> {
    /// Nobody yet; `most` clients may come.
    pub fn new(budget: Rc<Budget>, most: usize) -> Clients<S> {
        Clients {
            table: Slab::default(),
            spares: Spares::default(),
            budget,
            pools: Vec::new(),
            listeners: Vec::new(),
            most,
            now: Time(0),
            ready: WorkList::default(),
            dirty: WorkList::default(),
            hungry: VecDeque::new(),
            large: None,
            dead: Vec::new(),
            leaving: sweep::Leaving::default(),
            sweep: sweep::Sweep::default(),
            closed: false,
            abandoned: false,
            counters: ClientCounters::default(),
        }
    }

    /// The rules of the pool with this number.
    pub fn set_rules(&mut self, pool: usize, rules: &Rules) {
        if self.pools.len() <= pool {
            self.pools.resize_with(pool + 1, Pool::default);
        }
        let p = &mut self.pools[pool];
        p.max_value = rules.max_value;
        p.flush_all = rules.flush_all;
        p.idle_timeout = rules.idle_timeout;
        p.most = rules.clients;
    }

    /// A turn begins.
    pub fn begin_turn(&mut self, now: Time) {
        self.now = now;
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.table.len()
    }

    /// How many the pool with this number has.
    pub fn in_pool(&self, pool: usize) -> usize {
        self.pools.get(pool).map_or(0, |p| p.connected)
    }

    /// Answers that they are owed.
    pub fn slots(&self) -> usize {
        let active = self.table.values().filter_map(|c| c.active.as_ref());
        active.map(|a| a.slots.len()).sum()
    }

    /// The client's pool.
    #[inline]
    pub fn pool_of(&self, key: usize) -> Option<usize> {
        self.table.get(key).map(|c| c.pool as usize)
    }

    /// True until it has left.
    #[inline]
    pub fn is_here(&self, key: usize) -> bool {
        self.table
            .get(key)
            .is_some_and(|c| c.ending != Ending::Dead)
    }

    /// The copied bytes that all of them hold, counted one by one: for tests.
    pub fn copied(&mut self) -> usize {
        let accounts = self.table.values_mut().filter_map(|c| c.account());
        accounts.map(|(copied, _)| copied).sum()
    }

    /// A place for one more client, or the line to send before closing. `listener` is the number
    /// of its listener, counted through all pools in the order of the configuration.
    pub fn admit(&mut self, listener: usize) -> Result<usize, &'static [u8]> {
        let pool = self.listeners.get(listener);
        let pool = pool.and_then(|p| self.pools.get(*p as usize));
        let is_full = pool.is_none_or(|p| p.most.is_some_and(|n| p.connected >= n));
        if self.closed || self.table.len() >= self.most || is_full {
            self.counters.rejected_connections += 1;
            return Err(b"SERVER_ERROR OUT OF CONNECTION\r\n");
        }
        Ok(self.table.next_key())
    }

    /// The client that was admitted.
    pub fn accepted(&mut self, token: usize, stream: S, listener: usize) {
        let Some(pool) = self.listeners.get(listener).copied() else {
            return;
        };
        self.counters.total_connections += 1;
        let client = Client::new(stream, pool, listener as u16, self.now);
        let key = self.table.insert(client);
        debug_assert_eq!(key, token);
        self.pools[pool as usize].connected += 1;
        self.list(key);
    }

    /// An event of a client's socket. A token of one that left is ignored.
    pub fn ready(&mut self, token: usize, readable: bool, writable: bool, closed: bool) {
        let Some(client) = self.table.get_mut(token) else {
            return;
        };
        client.conn.note(readable, writable, closed);
        // One that is not read would not be seen to be gone.
        if closed && !client.may_ask_anew() && !matches!(client.conn.connected(), Ok(true)) {
            return self.end(token, Ending::Dead);
        }
        if writable && client.active.is_some() {
            self.dirty.add(token, &mut client.dirty);
        }
        self.list(token);
    }

    /// True if clients are to be read.
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// True if something is to be done at once.
    pub fn has_work(&self) -> bool {
        !self.ready.is_empty() || !self.dirty.is_empty() || !self.dead.is_empty()
    }

    /// How many clients are to be read.
    pub fn ready_len(&self) -> usize {
        self.ready.len()
    }

    /// The next client that is to be read.
    pub fn take_ready(&mut self) -> Option<usize> {
        while let Some(key) = self.ready.take() {
            if let Some(client) = self.table.get_mut(key) {
                client.listed = false;
                return Some(key);
            }
        }
        None
    }

    fn list(&mut self, key: usize) {
        if let Some(client) = self.table.get_mut(key) {
            self.ready.add(key, &mut client.listed);
        }
    }

    /// Lists a client again if there is more to read of it.
    pub fn list_again(&mut self, key: usize) {
        let Some(client) = self.table.get_mut(key) else {
            return;
        };
        client.rest(&mut self.spares);
        if client.may_be_served() {
            self.ready.add(key, &mut client.listed);
        }
    }

    /// A client is not read until [`Clients::wake`]: a server has too much in flight.
    pub fn wait_for_server(&mut self, key: usize) {
        if let Some(client) = self.table.get_mut(key) {
            client.pause.add(Pause::SERVER);
        }
    }

    /// True if servers owe the client answers.
    pub fn waits_for_answers(&self, key: usize) -> bool {
        let active = self.table.get(key).and_then(|c| c.active.as_ref());
        active.is_some_and(|a| a.asked > 0)
    }

    /// A server has room again for a client that waited. False if it has left.
    pub fn wake(&mut self, key: usize) -> bool {
        let Some(client) = self.table.get_mut(key) else {
            return false;
        };
        client.pause.remove(Pause::SERVER);
        self.list(key);
        true
    }

    /// How many bytes may be read of a client now: what is left of its share. One that has none left
    /// waits: for its own answers if it is owed some, else for memory.
    fn room_to_read(&mut self, key: usize) -> usize {
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
            // It has sent something; that it is not read is not its fault.
            client.last_moved = self.now;
            self.hungry.push_back(key);
            self.counters.limit_memory_paused += 1;
        }
    }

    /// True if clients wait for memory.
    pub fn has_hungry(&self) -> bool {
        !self.hungry.is_empty()
    }

    /// Something of a client's answers changed: it is to be written, and counts anew.
    #[inline]
    fn changed(&mut self, key: usize) {
        if let Some(client) = self.table.get_mut(key) {
            self.dirty.add(key, &mut client.dirty);
            if let Some((copied, charged)) = client.account() {
                self.budget.recharge(charged, copied);
            }
        }
        self.check_owed(key);
    }

    #[inline]
    fn account(&mut self, key: usize) {
        if let Some((copied, charged)) = self.table.get_mut(key).and_then(|c| c.account()) {
            self.budget.recharge(charged, copied);
        }
    }

    /// Pauses and resumes by what is owed: paused at the bound, read again at half of it.
    #[inline]
    fn check_owed(&mut self, key: usize) {
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
        let is_full =
            slots >= MAX_SLOTS || owed >= MAX_OWED || (slots > 0 && owed + expected >= most);
        let has_room = slots <= MAX_SLOTS / 2
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

    /// Keeps what is still to be asked of a request with several keys until the present portion has
    /// gone out.
    pub fn keep_portions(&mut self, key: usize, portions: Box<Portions>) {
        if let Some(client) = self.table.get_mut(key) {
            client.active(&mut self.spares).intake = Intake::Keys(portions);
            client.pause.add(Pause::PORTION);
        }
        self.check_owed(key);
    }

    /// True if so many bytes more of a reply with values may be kept for a client; `earlier` bytes of
    /// the same reply are there already.
    pub fn has_room_for(&mut self, ticket: Ticket, earlier: usize, more: usize) -> bool {
        let share = self.budget.share();
        let Some(client) = self.table.get(ticket.client) else {
            return false;
        };
        let (owed, is_next) = client.active.as_ref().map_or((0, true), |a| {
            (a.owed() + earlier, a.is_next_out(ticket.slot))
        });
        if client.ending == Ending::Dead || !self.budget.admits(owed, more) {
            return false;
        }
        if owed + more <= share.max(self.budget.little()) {
            return true;
        }
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

    /// A server's answer for `keys` keys had so many bytes.
    #[inline]
    fn note_size(&mut self, pool: usize, bytes: usize, keys: usize) {
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

    /// Makes the chunk one that can be read into. Large values in it go to their clients first: they
    /// are still in the processor's cache, and if they are taken so is the chunk for the next ones.
    pub fn renew_chunk(&mut self, chunk: &mut Rc<Chunk>, work: &mut Work) {
        if Chunk::writable(chunk).is_none() {
            self.write(work);
        }
        if Chunk::writable(chunk).is_none() {
            let fresh = self.budget.chunks().take();
            let full = std::mem::replace(chunk, fresh);
            self.budget.chunks().give(full);
        }
    }

    /// Writes to each client that gained something, once.
    pub fn write(&mut self, work: &mut Work) {
        for _ in 0..self.dirty.len() {
            if work.is_done() {
                break;
            }
            match self.dirty.take() {
                Some(key) => self.write_one(key, work),
                None => break,
            }
        }
    }

    #[inline]
    fn write_one(&mut self, key: usize, work: &mut Work) {
        let Some(client) = self.table.get_mut(key) else {
            return;
        };
        client.dirty = false;
        if client.ending == Ending::Dead {
            return;
        }
        if client.is_worth_writing() && client.conn.is_writable() {
            let Some(active) = client.active.as_mut() else {
                return;
            };
            let at = active.out.start();
            let Ok((bytes, calls)) = client.conn.write(&active.out, at, MAX_WRITE) else {
                return self.end(key, Ending::Dead);
            };
            active.out.release(at + bytes as u64);
            work.count_write(bytes);
            self.counters.writes += calls as u64;
            self.counters.bytes_written += bytes as u64;
            if bytes > 0 {
                client.last_moved = self.now;
            }
            if !active.out.is_empty() && client.conn.is_writable() {
                self.dirty.add(key, &mut client.dirty);
            }
        }
        self.written(key);
    }

    /// What follows from it that a client has taken something.
    #[inline]
    fn written(&mut self, key: usize) {
        self.account(key);
        self.check_owed(key);
        let Some(client) = self.table.get_mut(key) else {
            return;
        };
        if client.ending == Ending::AfterAnswers && client.is_answered() {
            return self.end(key, Ending::Dead);
        }
        client.rest(&mut self.spares);
        if client.may_be_served() {
            self.ready.add(key, &mut client.listed);
        }
    }

    /// A client's connection comes to its end; never goes back.
    pub(crate) fn end(&mut self, key: usize, ending: Ending) {
        let Some(client) = self.table.get_mut(key) else {
            return;
        };
        let ending = match (client.ending, ending) {
            (Ending::Dead, _) | (_, Ending::Open) => return,
            (_, Ending::AfterAnswers) if client.is_answered() => Ending::Dead,
            (_, ending) => ending,
        };
        client.ending = ending;
        if ending == Ending::Dead {
            self.dead.push(key);
        }
    }

    /// A client is closed once it has what it is owed.
    pub fn close(&mut self, key: usize) {
        self.end(key, Ending::AfterAnswers);
    }

    /// Drops clients that are gone; the only place that does. What servers still owe them finds
    /// nobody. True if they owe something.
    pub fn reap(&mut self, work: &mut Work) -> bool {
        work.next_kind();
        while let Some(key) = self.dead.pop() {
            if let Some(mut client) = self.table.remove(key) {
                if let Some((_, charged)) = client.account() {
                    self.budget.recharge(charged, 0);
                }
                self.abandoned |= client.active.is_some_and(|a| !a.slots.is_empty());
                if let Some(pool) = self.pools.get_mut(client.pool as usize) {
                    pool.connected -= 1;
                }
            }
            work.count(CLOSE);
            if work.is_done() {
                break;
            }
        }
        self.abandoned
    }

    /// What servers owe those who left was looked for.
    pub fn abandoned_found(&mut self) {
        self.abandoned = false;
    }
}
