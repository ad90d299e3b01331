//! Owns every connection; routes requests, settles replies. The only place that knows both
//! clients and links.
//!
//! ```text
//!   client                         proxy                          link
//!  ┌────────────┐   request   ┌───────────────┐   wire line   ┌──────────────┐
//!  │ slots      │ ──────────▶ │ route (intake)│ ────────────▶ │ pending FIFO │ ─▶ server
//!  │ [a][b][c]  │             │               │               │ [a][x][b]    │
//!  │ in order   │ ◀────────── │ settle        │ ◀──────────── │ first-in     │ ◀─ server
//!  └────────────┘   answer    └───────────────┘     reply     │ first-out    │
//!                                    │ mirror                 └──────────────┘
//!                                    ▼
//!                             the backup's link
//! ```
//!
//! Two FIFOs are the whole theory: a client is answered in the order of its slots, a server
//! answers in the order of what is pending on its link, and a pending entry names the slot.
//! A [`Pending`] is consumed by settling it, with a reply or with the cause of its loss, so no
//! request is forgotten.

mod admin;
mod eject;
mod expire;
mod flush_all;
mod intake;
mod lull;
mod memory;
mod reload;
mod replies;
mod route;
mod servers;
mod settle;
mod slab;
mod warm;

use crate::buffer::{Chunk, ChunkPool};
use crate::client::{Client, Ending, Spares};
use crate::config::{Address, Config, PoolConfig};
use crate::farm::Farm;
use crate::health::{Cause, SECOND, Time};
use crate::net::Socket;
use crate::protocol::Scratch;
use crate::stats::Counters;
use crate::upstream::{Drain, Link, LinkState, Server, ServerId};
pub use admin::Holdings;
use flush_all::FlushOp;
use lull::Lulls;
use slab::Slab;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};
use warm::{Creating, Fetch, Waiter};

/// The time of one turn: read once, passed everywhere, so that tests can hold the clock.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// The monotonic clock.
    pub at: Instant,
    /// Seconds since the epoch.
    pub unix: u64,
}

/// A connection that the proxy wants opened.
#[derive(Debug)]
pub struct Connect {
    /// To register the stream with, and to hand it over with.
    pub token: usize,
    /// Where to.
    pub address: Address,
    /// Switch TCP keepalive on.
    pub keepalive: bool,
}

/// One pool at work.
struct Pool {
    config: PoolConfig,
    primaries: Farm,
    /// The servers of `primaries`, in the farm's order.
    primary_ids: Vec<ServerId>,
    /// Of the primaries those that are up, while others are ejected.
    ring: Option<Farm>,
    backups: Option<Farm>,
    backup_ids: Vec<ServerId>,
    /// Clients connected.
    clients: usize,
    /// `flush_all`s on their way: until they are done nothing is copied from backups.
    flushing: u32,
    /// No longer configured; its clients finish what they are owed.
    retired: bool,
}

impl Pool {
    /// What a request may take at one server, in nanoseconds.
    fn span(&self) -> u64 {
        nanos(self.config.connect_timeout) + nanos(self.config.timeout)
    }

    fn timeout(&self) -> u64 {
        nanos(self.config.timeout)
    }
}

fn nanos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

/// Clients are looked over for stalls this often, in nanoseconds.
const LOOK_OVER: u64 = SECOND;

/// Tokens of links have this bit; those of clients have not. The event loop's own have the top
/// bit set.
const KIND_LINK: usize = 1 << 60;

/// What a link's events are named by, as long as it has this socket.
fn link_token(id: u32, generation: u32) -> usize {
    KIND_LINK | (generation as usize) << 32 | id as usize
}

/// Everything between clients and servers, without a socket of its own making.
pub struct Proxy<S> {
    start: Instant,
    start_unix: u64,
    now: Time,
    unix: u64,
    config: Config,
    pools: Vec<Pool>,
    clients: Slab<Client<S>>,
    servers: Vec<Server>,
    links: Vec<Link<S>>,
    drains: Slab<Drain<S>>,
    fetches: Slab<Fetch>,
    /// The fetch that is under way for a server's key.
    fetching: HashMap<(ServerId, Box<[u8]>), usize>,
    /// Requests that wait for a fetch, or for the `mg` before they may create a key.
    waiters: Slab<Waiter>,
    /// Copied bytes of all waiters.
    waiting_bytes: usize,
    creating: Creating,
    /// Per warming link: number of the last write of each key hash, to drop late copies.
    recent_writes: HashMap<(u32, u64), u64>,
    /// `recent_writes` is looked through for old ones when it holds so many.
    prune_at: usize,
    flushes: Slab<FlushOp>,
    chunk: Option<Rc<Chunk>>,
    chunks: ChunkPool,
    spares: Spares,
    scratch: Scratch,
    /// A wire line that is being made.
    line: Vec<u8>,
    /// A decoded key.
    key: Vec<u8>,
    /// Links with a line for several keys that is being made.
    touched: Vec<u32>,
    ready_clients: Vec<usize>,
    ready_links: Vec<u32>,
    /// In the last turn clients were left for the next one.
    held_back: bool,
    lulls: Lulls,
    dirty_clients: Vec<usize>,
    /// Clients for whom a part of an answer waits for the rest, and since when; the oldest first.
    waiting_clients: VecDeque<(usize, Time)>,
    dirty_links: Vec<u32>,
    told_links: Vec<u32>,
    /// Where a list is gathered while another one is worked off.
    spare_clients: Vec<usize>,
    spare_dirty: Vec<usize>,
    spare_links: Vec<u32>,
    dead: Vec<usize>,
    connects: Vec<u32>,
    memory_paused: Vec<usize>,
    /// Copied bytes of all connections.
    bytes: usize,
    /// The most bytes in flight since memory was last given back to the system.
    most_bytes: usize,
    /// When clients were last looked over.
    looked_over: Time,
    /// After a standstill of magent's own nothing is called late before this.
    patient_until: Time,
    draining: bool,
    /// Clients that are to finish and go.
    leaving: Vec<usize>,
    /// When those are not read any more.
    leave_by: Time,
    /// Changes with each turn; what `random` draws from.
    draw: u32,
    counters: Counters,
    reset_at: Time,
    last_reload: Option<(u64, String)>,
}

impl<S: Socket> Proxy<S> {
    /// A proxy for a validated configuration. Nothing is connected yet.
    pub fn new(config: &Config, now: Now) -> Proxy<S> {
        let mut proxy = Proxy {
            start: now.at,
            start_unix: now.unix,
            now: Time(0),
            unix: now.unix,
            config: config.clone(),
            pools: Vec::new(),
            clients: Slab::default(),
            servers: Vec::new(),
            links: Vec::new(),
            drains: Slab::default(),
            fetches: Slab::default(),
            fetching: HashMap::new(),
            waiters: Slab::default(),
            waiting_bytes: 0,
            creating: Creating::default(),
            recent_writes: HashMap::new(),
            prune_at: 0,
            flushes: Slab::default(),
            chunk: None,
            chunks: ChunkPool::new(),
            spares: Spares::default(),
            scratch: Scratch::default(),
            line: Vec::new(),
            key: Vec::new(),
            touched: Vec::new(),
            ready_clients: Vec::new(),
            ready_links: Vec::new(),
            held_back: false,
            lulls: Lulls::default(),
            dirty_clients: Vec::new(),
            waiting_clients: VecDeque::new(),
            dirty_links: Vec::new(),
            told_links: Vec::new(),
            spare_clients: Vec::new(),
            spare_dirty: Vec::new(),
            spare_links: Vec::new(),
            dead: Vec::new(),
            connects: Vec::new(),
            memory_paused: Vec::new(),
            bytes: 0,
            most_bytes: 0,
            looked_over: Time(0),
            patient_until: Time(0),
            draining: false,
            leaving: Vec::new(),
            leave_by: Time::NEVER,
            draw: 0,
            counters: Counters::default(),
            reset_at: Time(0),
            last_reload: None,
        };
        proxy.configure();
        proxy
    }

    fn set_now(&mut self, now: Now) {
        self.now = self.time(now.at).max(self.now);
        self.unix = now.unix;
    }

    fn time(&self, at: Instant) -> Time {
        Time(nanos(at.saturating_duration_since(self.start)))
    }

    /// A place for one more client, or the line to send before closing. `entrance` is the
    /// number of its listener, counted through all pools in the order of the configuration.
    pub fn admit(&mut self, entrance: usize) -> Result<usize, &'static [u8]> {
        let full = |at: usize| {
            let p = &self.pools[at];
            p.config.clients.is_some_and(|n| p.clients >= n)
        };
        if self.draining
            || self.clients.len() >= self.config.clients
            || self.pool_at(entrance).is_none_or(full)
        {
            self.counters.rejected_connections += 1;
            return Err(b"SERVER_ERROR OUT OF CONNECTION\r\n");
        }
        Ok(self.clients.next_key())
    }

    /// The client that was admitted.
    pub fn accepted(&mut self, token: usize, stream: S, entrance: usize, now: Now) {
        self.set_now(now);
        let Some(pool) = self.pool_at(entrance) else {
            return;
        };
        self.counters.total_connections += 1;
        let client = Client::new(stream, pool as u16, entrance as u16, self.now);
        let key = self.clients.insert(client);
        debug_assert_eq!(key, token);
        self.pools[pool].clients += 1;
        self.list_client(key);
    }

    /// The next connection that the proxy wants opened.
    pub fn next_connect(&mut self) -> Option<Connect> {
        while let Some(id) = self.connects.pop() {
            let link = &self.links[id as usize];
            let server = &self.servers[link.server as usize];
            if matches!(link.state, LinkState::Wanted) {
                return Some(Connect {
                    token: link_token(id, link.generation),
                    address: server.spec.address.clone(),
                    keepalive: self.pools[server.pool].config.keepalive,
                });
            }
        }
        None
    }

    /// A socket is ready. A token of a connection that is gone is ignored.
    pub fn ready(&mut self, token: usize, readable: bool, writable: bool, closed: bool) {
        let mark = |ready: &mut crate::upstream::Ready| {
            ready.readable |= readable | closed;
            ready.writable |= writable;
            ready.closed |= closed;
        };
        let place = (token & 0xffff_ffff) as u32;
        let generation = (token >> 32) as u32 & crate::upstream::GENERATIONS;
        if token & KIND_LINK != 0 {
            let Some(link) = self.links.get_mut(place as usize) else {
                return;
            };
            if link.generation == generation {
                mark(&mut link.ready);
                self.list_link(place);
            } else {
                self.drain_ready(token);
            }
        } else if let Some(client) = self.clients.get_mut(token) {
            mark(&mut client.ready);
            if writable && client.active.is_some() && !client.dirty {
                client.dirty = true;
                self.dirty_clients.push(token);
            }
            self.list_client(token);
        }
    }

    /// An event of a socket that its link has given up.
    fn drain_ready(&mut self, token: usize) {
        let of_token = |k: &usize| self.drains.get(*k).is_some_and(|d| d.token == token);
        let key = self.drains.keys().find(of_token);
        if let Some(key) = key {
            self.read_drain(key);
        }
    }

    /// One turn's work: serve what is ready, expire, write, reap.
    pub fn tick(&mut self, now: Now) {
        self.set_now(now);
        self.draw = self
            .draw
            .wrapping_mul(1_664_525)
            .wrapping_add(1_013_904_223);
        self.lulls.begin_turn();
        // Requests that come together with answers wait for one turn, and go with those that the
        // answered clients send meanwhile: more of them share a call to their server. Large ones
        // cost more than the call.
        let both = !self.ready_links.is_empty() && !self.ready_clients.is_empty();
        self.held_back = both && !self.held_back && !self.lulls.large_reads();
        self.serve_links();
        if !self.held_back {
            self.serve_clients();
        }
        self.most_bytes = self.most_bytes.max(self.bytes_in_flight());
        self.expire();
        self.flush();
        self.end_quiet_clients();
        self.reap();
        self.resume_memory();
    }

    fn serve_links(&mut self) {
        let mut links = swap_lists(&mut self.ready_links, &mut self.spare_links);
        for id in links.drain(..) {
            self.serve_link(id);
        }
        self.spare_links = links;
    }

    fn serve_clients(&mut self) {
        let mut clients = swap_lists(&mut self.ready_clients, &mut self.spare_clients);
        for key in clients.drain(..) {
            self.serve_client(key);
        }
        self.spare_clients = clients;
    }

    /// How long the loop may sleep: zero if work is left, `None` for ever.
    pub fn wait(&self, now: Now) -> Option<Duration> {
        if !self.ready_clients.is_empty()
            || !self.ready_links.is_empty()
            || !self.dirty_clients.is_empty()
            || !self.dirty_links.is_empty()
            || !self.told_links.is_empty()
        {
            return Some(Duration::ZERO);
        }
        match self.next_alarm() {
            Time::NEVER => None,
            at => Some(Duration::from_nanos(at.since(self.time(now.at)))),
        }
    }

    /// TERM: what has arrived is still answered, then clients are closed.
    pub fn drain(&mut self, now: Now) {
        self.set_now(now);
        self.draining = true;
        self.see_off(self.clients.keys().collect());
    }

    /// Of the clients that are to go: one that is owed nothing and has nothing there to read
    /// is done; after a while nothing more is read from the others.
    fn end_quiet_clients(&mut self) {
        let quiet = |c: &Client<S>| {
            c.is_answered() && !c.ready.readable && c.active.as_ref().is_none_or(|a| !a.unparsed)
        };
        let over = self.now >= self.leave_by;
        let mut leaving = std::mem::take(&mut self.leaving);
        leaving.retain(|key| {
            let ending = match self.clients.get(*key) {
                None => return false,
                Some(c) if quiet(c) => Ending::Dead,
                Some(_) if over => Ending::AfterAnswers,
                Some(_) => return true,
            };
            self.end_client(*key, ending);
            false
        });
        self.leaving = leaving;
    }

    /// True when every client got what it was owed, and the backups too.
    pub fn drained(&self) -> bool {
        self.clients.len() == 0
            && self
                .links
                .iter()
                .all(|l| l.pending.is_empty() || !self.servers[l.server as usize].health.is_up())
    }

    /// The turn is over, and with it what the loop did besides.
    pub fn end_turn(&mut self, at: Instant) {
        let end = self.time(at);
        self.lulls.end_turn(self.now, end);
    }

    /// True, and counted, if the loop does well to sleep a moment before it waits, provided that
    /// no work is left.
    pub fn lull(&mut self) -> bool {
        let is_due = self.lulls.is_due();
        self.counters.lulls += u64::from(is_due);
        is_due
    }

    /// Counts one turn of the event loop.
    pub fn count_poll(&mut self) {
        self.counters.polls += 1;
    }

    /// Counts one pause of accepting for want of descriptors.
    pub fn count_accept_pause(&mut self) {
        self.counters.limit_accept_paused += 1;
    }

    fn list_client(&mut self, key: usize) {
        if let Some(client) = self.clients.get_mut(key) {
            if !client.listed {
                client.listed = true;
                self.ready_clients.push(key);
            }
        }
    }

    fn list_link(&mut self, id: u32) {
        let link = &mut self.links[id as usize];
        if !link.listed {
            link.listed = true;
            self.ready_links.push(id);
        }
    }

    fn dirty_client(&mut self, key: usize) {
        if let Some(client) = self.clients.get_mut(key) {
            if !client.dirty {
                client.dirty = true;
                self.dirty_clients.push(key);
            }
        }
    }

    fn dirty_link(&mut self, id: u32) {
        let link = &mut self.links[id as usize];
        if !link.dirty {
            link.dirty = true;
            self.dirty_links.push(id);
        }
    }

    /// A link got a mirror: nobody waits for it.
    fn tell_link(&mut self, id: u32) {
        let link = &mut self.links[id as usize];
        if !link.told {
            link.told = true;
            self.told_links.push(id);
        }
    }

    /// Writes each connection that gained output, once: servers first, so that they can work
    /// while clients are written. What only tells a backup goes last: it would wake it, and a
    /// processor that clients' answers need.
    fn flush(&mut self) {
        let links = swap_lists(&mut self.dirty_links, &mut self.spare_links);
        self.spare_links = self.flush_links(links);
        self.flush_clients();
        let links = swap_lists(&mut self.told_links, &mut self.spare_links);
        self.spare_links = self.flush_links(links);
    }

    fn flush_links(&mut self, mut links: Vec<u32>) -> Vec<u32> {
        for id in links.drain(..) {
            self.flush_link(id);
        }
        links
    }

    fn flush_clients(&mut self) {
        let mut clients = swap_lists(&mut self.dirty_clients, &mut self.spare_dirty);
        for key in clients.drain(..) {
            self.flush_client(key);
        }
        self.spare_dirty = clients;
    }

    /// A chunk to read into. Large values in the last one go to their clients first: they are
    /// still in the processor's cache, and if they are taken so is the chunk for the next ones.
    /// Servers wait for the end of the turn: what goes to one of them goes in one write.
    fn free_chunk(&mut self) -> Rc<Chunk> {
        let mut chunk = self.chunk.take().unwrap_or_else(|| self.chunks.take());
        if Chunk::writable(&mut chunk).is_none() {
            self.flush_clients();
        }
        if Chunk::writable(&mut chunk).is_none() {
            self.chunks.give(chunk);
            chunk = self.chunks.take();
        }
        chunk
    }

    fn flush_link(&mut self, id: u32) {
        let link = &mut self.links[id as usize];
        (link.dirty, link.told) = (false, false);
        let server = &mut self.servers[link.server as usize];
        let timeout = self.pools[server.pool].timeout();
        match link.flush(self.now, timeout) {
            Ok((bytes, calls)) => {
                self.counters.writes += u64::from(calls);
                self.counters.server_bytes_written += bytes as u64;
                server.stats.bytes_written += bytes as u64;
                self.account_link(id);
            }
            Err(_) => {
                link.ready.closed = true;
                self.link_lost(id, Cause::ConnectionLost);
            }
        }
    }

    #[inline]
    fn flush_client(&mut self, key: usize) {
        let Some(client) = self.clients.get_mut(key) else {
            return;
        };
        client.dirty = false;
        if client.ending == Ending::Dead {
            return;
        }
        match client.waits_since(self.now) {
            Some(since) if since == self.now => self.waiting_clients.push_back((key, since)),
            Some(_) => {}
            None => match client.flush() {
                Ok((bytes, calls)) => {
                    self.counters.writes += u64::from(calls);
                    self.counters.bytes_written += bytes as u64;
                    if bytes > 0 {
                        self.lulls.client_moved(client.last_moved);
                        client.last_moved = self.now;
                    }
                }
                Err(_) => return self.end_client(key, Ending::Dead),
            },
        }
        let resumed = client.may_be_served();
        let done = client.ending == Ending::AfterAnswers && client.is_answered();
        client.rest(&mut self.spares);
        self.account_client(key);
        if done {
            self.end_client(key, Ending::Dead);
        } else if resumed {
            self.list_client(key);
        }
    }

    /// A client's connection comes to its end; never goes back.
    fn end_client(&mut self, key: usize, ending: Ending) {
        let Some(client) = self.clients.get_mut(key) else {
            return;
        };
        match (client.ending, ending) {
            (Ending::Dead, _) | (_, Ending::Open) => {}
            (_, Ending::Dead) => {
                client.ending = Ending::Dead;
                self.dead.push(key);
            }
            (_, Ending::AfterAnswers) => {
                client.ending = Ending::AfterAnswers;
                if client.is_answered() {
                    client.ending = Ending::Dead;
                    self.dead.push(key);
                }
            }
        }
    }

    /// Drops dead clients; the only place that does. What servers still owe them finds nobody.
    fn reap(&mut self) {
        while let Some(key) = self.dead.pop() {
            let Some(client) = self.clients.remove(key) else {
                continue;
            };
            self.bytes -= client.accounted as usize;
            if let Some(pool) = self.pools.get_mut(client.pool as usize) {
                pool.clients -= 1;
            }
        }
    }
}

/// Takes a list to work it off; what is added meanwhile goes to the spare one in its place.
fn swap_lists<T>(list: &mut Vec<T>, spare: &mut Vec<T>) -> Vec<T> {
    std::mem::replace(list, std::mem::take(spare))
}

/// A failed connect in the words of an answer.
fn connect_cause(e: &io::Error) -> Cause {
    match e.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => Cause::Refused,
        io::ErrorKind::TimedOut => Cause::TimedOut,
        io::ErrorKind::ConnectionReset => Cause::ConnectionLost,
        _ => Cause::Unreachable,
    }
}
