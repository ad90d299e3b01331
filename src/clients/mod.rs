//! The clients' half: what clients send becomes requests, what servers say becomes answers in
//! order. Knows no server; what it asks for is named by a [`Ticket`].
//!
//! ```text
//!   bytes ──intake──▶ Next ──▶ (the proxy asks the pools) ──▶ answer(ticket) ──▶ slot ──▶ out ──▶ bytes
//! ```
//!
//! The files of this folder are layers; each calls those below it only:
//!
//! ```text
//!  saved                another program goes on with them
//!  sweep hungry         what time does; clients that wait for memory
//!  operator             what operators see of clients, and do with them
//!  intake deliver       bytes → requests; answers of the pools → slots
//!  value                large values, which arrive in pieces
//!  refuse               what magent refuses by itself
//!  write                answers onto sockets
//!  share                how much one client may hold
//!  connections          clients that come and go
//!  client input         one client; the bytes that are being parsed
//!  slots                answers in order
//!  spares               memory that busy clients borrow
//!  active               what a busy client needs
//!  multi                an answer in parts
//!  answer               a reply as its client gets it
//! ```

mod active;
mod answer;
mod client;
mod connections;
mod deliver;
mod hungry;
mod input;
mod intake;
mod multi;
mod operator;
mod refuse;
mod saved;
mod share;
mod slots;
mod spares;
mod sweep;
mod value;
mod write;

pub use active::{Arriving, Portions};
pub use answer::{
    has_values, is_error, line_reply, write_error, write_line, write_stats, write_success,
};
pub use client::Client;
pub use input::Input;
pub use intake::Next;
pub use multi::Multi;
pub use operator::{Seen, number};
pub use value::needs_line_end;

use crate::budget::Budget;
use crate::net::Socket;
use crate::slab::Slab;
use crate::stats::{CallCounters, ClientCounters, CommandCounters, Latency, SlowLog};
use crate::time::Time;
use crate::work::WorkList;
use client::{Ending, Pause};
use spares::Spares;
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
    /// What its clients did.
    counts: CommandCounters,
    /// How long its clients waited for servers.
    latency: Latency,
    /// Typical size of the answer for one key, in bytes; falls slowly. 0 before the first.
    typical: usize,
}

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
    /// The client whose answer is larger than its share.
    large: Option<usize>,
    dead: Vec<usize>,
    leaving: sweep::Leaving,
    sweep: sweep::Sweep,
    closed: bool,
    /// Another program is to take over: nobody is read.
    paused: bool,
    /// Clients left to which servers owe something.
    abandoned: bool,
    /// What was done for clients, whatever their pool.
    pub counters: ClientCounters,
    /// Reads from clients and writes to them.
    pub calls: CallCounters,
    /// The last requests that took long.
    pub slow: SlowLog,
}

impl<S: Socket> Clients<S> {
    /// No clients yet; `most` may come. Requests are slow that take so many nanoseconds.
    pub fn new(budget: Rc<Budget>, most: usize, slow: u64) -> Clients<S> {
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
            paused: false,
            abandoned: false,
            counters: ClientCounters::default(),
            calls: CallCounters::default(),
            slow: SlowLog::new(slow),
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

    /// What the clients of the pool with this number did.
    pub fn counts(&self, pool: usize) -> CommandCounters {
        self.pools
            .get(pool)
            .map_or_else(Default::default, |p| p.counts.clone())
    }

    /// How long the clients of the pool with this number waited for servers' answers.
    pub fn latency(&self, pool: usize) -> &Latency {
        &self.pools[pool].latency
    }

    /// What the clients of all pools did.
    pub fn all_counts(&self) -> CommandCounters {
        let mut all = CommandCounters::default();
        self.pools.iter().for_each(|p| all.add(&p.counts));
        all
    }

    /// How many clients the pool with this number may have.
    pub fn most_of(&self, pool: usize) -> usize {
        let most = self.pools.get(pool).and_then(|p| p.most);
        most.map_or(self.most, |n| n.min(self.most))
    }

    /// Forgets what was counted.
    pub fn reset_counters(&mut self) {
        (self.counters, self.calls) = Default::default();
        for pool in &mut self.pools {
            (pool.counts, pool.latency) = Default::default();
        }
    }

    /// A client asked something.
    fn count_request(&mut self, key: usize) {
        self.counters.requests += 1;
        if let Some(client) = self.table.get_mut(key) {
            client.requests += 1;
        }
    }

    /// A client asked for a `flush_all`.
    pub fn count_flush(&mut self, key: usize) {
        if let Some(pool) = self.pool_of(key) {
            self.pools[pool].counts.cmd_flush += 1;
        }
    }

    /// How many answers are owed.
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

    /// True if clients are to be read.
    pub fn has_ready(&self) -> bool {
        !self.paused && !self.ready.is_empty()
    }

    /// True if something is to be done at once.
    pub fn has_work(&self) -> bool {
        self.has_ready() || !self.dirty.is_empty() || !self.dead.is_empty()
    }

    /// How many clients are to be read.
    pub fn ready_len(&self) -> usize {
        match self.paused {
            true => 0,
            false => self.ready.len(),
        }
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

    /// Stops reading a client until [`Clients::wake`]: a server has too much in flight.
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

    /// Lets a client go on that waited for a server. False if it has left.
    pub fn wake(&mut self, key: usize) -> bool {
        let Some(client) = self.table.get_mut(key) else {
            return false;
        };
        client.pause.remove(Pause::SERVER);
        self.list(key);
        true
    }
}
