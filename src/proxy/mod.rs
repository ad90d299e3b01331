//! Joins the clients' half and the pools' half: the turn, the clock, and requests on their way from
//! one to the other.
//!
//! ```text
//!   client                     proxy                        link
//!  ┌────────────┐  request  ┌──────────┐  request line   ┌──────────────┐
//!  │ slots      │ ────────▶ │ requests │ ──────────────▶ │ pending FIFO │ ─▶ server
//!  │ [a][b][c]  │           └──────────┘                 │ [a][x][b]    │
//!  │ in order   │ ◀──────────── answer(ticket) ───────── │ first-in     │ ◀─ server
//!  └────────────┘                                        │ first-out    │
//!                                                        └──────────────┘
//! ```
//!
//! Two FIFOs are the whole theory: a client is answered in the order of its slots, a server
//! answers in the order of what is pending on its link, and a pending entry names the slot by a
//! ticket.

mod local;
mod memcached;
mod operator;
mod requests;
mod saved;
mod snapshot;
mod stats;
mod turns;

use crate::budget::Budget;
use crate::clients::{Clients, Input};
use crate::config::{Address, Config, Farms, PoolConfig, Prepared};
use crate::net::Socket;
use crate::pools::Pools;
use crate::stats::{Histories, LoopCounters};
use crate::time::{Time, nanos};
use crate::work::Work;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};
use turns::{Done, Parts, Turns};

pub use crate::pools::{Connect, Lines, Me, ServerFigures};
pub use crate::stats::Holdings;
pub use operator::Stats;
pub use snapshot::{Live, Member, PoolFigures, ProcessFigures, Snapshot};

/// The time of one turn: read once, passed everywhere, so that tests can hold the clock.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// The monotonic clock.
    pub at: Instant,
    /// Seconds since the epoch.
    pub unix: u64,
}

/// Tokens of links have this bit.
const KIND_LINK: usize = 1 << 60;

/// Everything between clients and servers; sockets are handed to it.
pub struct Proxy<S> {
    start: Instant,
    now: Time,
    unix: u64,
    config: Config,
    budget: Rc<Budget>,
    clients: Clients<S>,
    pools: Pools<S>,
    /// The chunk that is read into, and what is being parsed of it.
    input: Input,
    /// In the last turn clients were left for the next one.
    held_back: bool,
    /// Not every client that was ready had its turn.
    is_behind: bool,
    turns: Turns,
    counters: LoopCounters,
    reset_at: Time,
    last_reload: Option<(u64, String)>,
    /// The last ten minutes of each pool; kept only if there is a door to see them through.
    history: Histories,
}

/// The addresses of all listeners, in the order of the configuration, and whose they are.
fn listeners(config: &Config) -> impl Iterator<Item = (&Address, &PoolConfig)> {
    let of_pool = |pool| {
        let listen: &PoolConfig = pool;
        listen.listen.iter().map(move |l| (&l.address, listen))
    };
    config.pools.iter().flat_map(of_pool)
}

impl<S: Socket> Proxy<S> {
    /// A proxy for a validated configuration. Nothing is connected yet.
    pub fn new(config: &Config, now: Now) -> Proxy<S> {
        Proxy::prepared(Prepared::new(config.clone()), now, Me::here())
    }

    /// [`Proxy::new`] with what takes long already done. `me`: what it is to other magents.
    pub fn prepared(prepared: Prepared, now: Now, me: Me) -> Proxy<S> {
        let Prepared {
            config,
            farms,
            warnings,
        } = prepared;
        let budget = Budget::new(config.memory);
        let chunk = budget.chunks().take();
        let pools = Pools::new(&config, Rc::clone(&budget), now.unix, me);
        let mut proxy = Proxy {
            start: now.at,
            now: Time(0),
            unix: now.unix,
            clients: Clients::new(Rc::clone(&budget), config.clients, nanos(config.slow)),
            history: Histories::new(!config.admin.is_empty()),
            config,
            pools,
            budget,
            input: Input::new(chunk),
            held_back: false,
            is_behind: false,
            turns: Turns::default(),
            counters: LoopCounters::default(),
            reset_at: Time(0),
            last_reload: None,
        };
        proxy.configure(farms, &warnings, &[]);
        proxy
    }

    fn set_now(&mut self, now: Now) {
        self.now = self.time(now.at).max(self.now);
        self.unix = now.unix;
        self.clients.begin_turn(self.now);
        self.pools.begin_turn(self.now, self.unix);
    }

    fn time(&self, at: Instant) -> Time {
        Time(nanos(at.saturating_duration_since(self.start)))
    }

    /// Takes a checked configuration over. Listeners are the caller's: clients of those that
    /// `config` does not name finish what they are owed and are closed.
    ///
    /// # Errors
    /// It cannot be taken over now, and nothing has changed.
    pub fn reload(&mut self, config: &Config, now: Now) -> Result<(), String> {
        self.may_take_over(config, now)?;
        self.take_over(Prepared::new(config.clone()), now);
        Ok(())
    }

    /// Whether [`Proxy::take_over`] may be called with this configuration.
    ///
    /// # Errors
    /// It may not: it changes a ring again whose keys are still on their way.
    pub fn may_take_over(&mut self, config: &Config, now: Now) -> Result<(), String> {
        self.set_now(now);
        self.pools.refuses(config).map_or(Ok(()), Err)
    }

    /// [`Proxy::reload`] with what takes long already done.
    pub fn take_over(&mut self, prepared: Prepared, now: Now) {
        self.set_now(now);
        let Prepared {
            config,
            farms,
            warnings,
        } = prepared;
        let before = std::mem::replace(&mut self.config, config);
        let moves: Vec<Option<usize>> = listeners(&before)
            .map(|(address, _)| listeners(&self.config).position(|(a, _)| a == address))
            .collect();
        self.configure(farms, &warnings, &moves);
        self.counters.reloads += 1;
        self.last_reload = Some((now.unix, "ok".into()));
    }

    /// A configuration that could not be used: nothing changes, `stats settings` says why.
    pub fn reload_failed(&mut self, why: &str, now: Now) {
        self.set_now(now);
        self.counters.reloads_failed += 1;
        self.last_reload = Some((now.unix, why.into()));
        self.pools.end_moves_at_reload(false);
    }

    /// Makes both halves what the configuration says; `moves`: where each listener is now.
    fn configure(&mut self, farms: Vec<Farms>, warnings: &[String], moves: &[Option<usize>]) {
        for warning in warnings {
            log::warn!("{warning}");
        }
        self.pools.configure(&self.config, farms);
        let mut of_listeners = Vec::new();
        for (_, config) in listeners(&self.config) {
            let Some(pool) = self.pools.pool_named(&config.name) else {
                continue;
            };
            of_listeners.push(pool as u32);
        }
        for config in &self.config.pools {
            if let Some(pool) = self.pools.pool_named(&config.name) {
                self.clients.set_rules(pool, &self.pools.rules(pool));
            }
        }
        self.clients.move_listeners(of_listeners, moves);
    }

    /// A place for one more client, or the line to send before closing. `listener` is the
    /// number of its listener, counted through all pools in the order of the configuration.
    ///
    /// # Errors
    /// The line for a client that cannot be admitted.
    pub fn admit(&mut self, listener: usize) -> Result<usize, &'static [u8]> {
        self.clients.admit(listener)
    }

    /// True if not every client that was ready had its turn.
    pub fn is_behind(&self) -> bool {
        self.is_behind
    }

    /// The client that was admitted.
    pub fn accepted(&mut self, token: usize, stream: S, listener: usize, now: Now) {
        self.set_now(now);
        self.clients.accepted(token, stream, listener);
    }

    /// The next host whose addresses the proxy wants; [`Proxy::resolved`] is to be told them.
    pub fn next_lookup(&mut self) -> Option<String> {
        self.pools.next_lookup()
    }

    /// The addresses of a host, or why there are none.
    pub fn resolved(&mut self, host: &str, found: &Result<Vec<SocketAddr>, String>, now: Now) {
        self.set_now(now);
        self.pools.resolved(host, found);
    }

    /// The names of all servers are looked up again.
    pub fn look_up_all(&mut self, now: Now) {
        self.set_now(now);
        self.pools.look_up_all();
    }

    /// The next connection that the proxy wants opened.
    pub fn next_connect(&mut self) -> Option<Connect> {
        self.pools.next_connect()
    }

    /// The socket that was asked for, or why there is none.
    pub fn connecting(&mut self, token: usize, stream: io::Result<S>, now: Now) {
        self.set_now(now);
        self.pools.connecting(token, stream);
    }

    /// A socket is ready. A token of a connection that is gone is ignored.
    pub fn ready(&mut self, token: usize, readable: bool, writable: bool, closed: bool) {
        if token & KIND_LINK != 0 {
            self.pools.ready(token, readable, writable, closed);
        } else {
            self.clients.ready(token, readable, writable, closed);
        }
    }

    /// One turn's work: serve what is ready, expire, write, reap. What is left when `work` is used
    /// up is done in the next turn.
    pub fn tick(&mut self, now: Now, mut work: Work) {
        self.set_now(now);
        if self.history.has_ended_step(self.now) {
            self.note_history();
        }
        // Requests that come together with answers wait for one turn, and go with those that the
        // answered clients send meanwhile: more of them share a call to their server.
        let both = self.pools.has_readable() && self.clients.has_ready();
        self.held_back = both && !self.held_back;
        self.pools
            .serve(&mut self.input.chunk, &mut work, &mut self.clients);
        // Clients are served however much servers sent, and the other way round.
        work.next_kind();
        if !self.held_back {
            self.serve_clients(&mut work);
        }
        self.serve_hungry(&mut work);
        work.next_kind();
        self.pools.expire_due(&mut work, &mut self.clients);
        let is_swept = self.clients.expire(&mut work);
        work.next_kind();
        self.pools.write(&mut work, &mut self.clients);
        self.clients.write(&mut work);
        self.pools.write_mirrors(&mut work, &mut self.clients);
        self.reap(&mut work);
        if is_swept && self.budget.has_fallen() {
            crate::sys::trim_memory();
        }
        #[cfg(debug_assertions)]
        self.check_budget();
    }

    fn note_history(&mut self) {
        for pool in self.pools.live_pools() {
            let (counts, latency) = (self.clients.counts(pool), self.clients.latency(pool));
            self.history.look(pool, &counts, latency, self.now);
        }
    }

    fn reap(&mut self, work: &mut Work) {
        let has_left = self.clients.reap(work);
        if has_left && self.now >= self.pools.abandoned_at() {
            self.pools.look_for_abandoned(&self.clients);
            self.clients.abandoned_found();
        }
    }

    /// The counter of bytes in flight equals what their owners hold.
    #[cfg(debug_assertions)]
    fn check_budget(&mut self) {
        if self.clients.count() < 200 {
            let held = self.clients.copied() + self.pools.copied();
            assert_eq!(held, self.budget.copied(), "bytes in flight");
        }
    }

    /// True if more answers than the last turn took come within microseconds: a moment's delay
    /// before the next wait lets one read take them.
    pub fn expects_answers(&self) -> bool {
        self.pools.expects_answers()
    }

    /// How long the loop may sleep: zero if work is left, `None` for ever.
    pub fn wait(&self, now: Now) -> Option<Duration> {
        if self.clients.has_work() || self.pools.has_work() {
            return Some(Duration::ZERO);
        }
        let alarm = self
            .pools
            .alarm()
            .min(self.clients.next_alarm().unwrap_or(Time::NEVER));
        match alarm {
            Time::NEVER => None,
            at => Some(Duration::from_nanos(at.since(self.time(now.at)))),
        }
    }

    /// TERM: what has arrived is still answered, then clients are closed.
    pub fn drain(&mut self, now: Now) {
        self.set_now(now);
        self.clients.leave_all();
        self.pools.stop_refills();
    }

    /// True when every client got what it was owed, and the backups too.
    pub fn drained(&self) -> bool {
        self.clients.count() == 0 && self.pools.is_drained()
    }

    /// Tells the other magents that this one ends. Without its marks it may ask servers nothing more.
    pub fn say_goodbye(&mut self) {
        self.pools.take_marks_away();
    }

    /// True when the servers have taken its marks away.
    pub fn has_left(&self) -> bool {
        !self.pools.takes_marks_away()
    }

    /// The turn is over, the work of the loop itself included. `tick`: when [`Proxy::tick`] was called and
    /// when it returned.
    pub fn end_turn(&mut self, tick: (Instant, Instant), at: Instant) {
        let parts = Parts {
            before: self.time(tick.0),
            requests: self.time(tick.1),
            rest: self.time(at),
        };
        let own = self.turns.end(parts.rest.since(self.now));
        let done = self.done();
        if let Some(line) = self.turns.watch(self.now, own, parts, done) {
            log::warn!("{line}");
        }
    }

    fn done(&self) -> Done {
        let (clients, pools) = (&self.clients.calls, &self.pools.calls);
        Done {
            requests: self.clients.counters.requests,
            reads: clients.reads + pools.reads,
            writes: clients.writes + pools.writes,
        }
    }

    /// The loop has waited: the next turn begins.
    pub fn count_poll(&mut self) {
        self.counters.polls += 1;
        self.turns.begin(self.now, self.done());
    }

    /// Counts one pause of accepting for want of descriptors.
    pub fn count_accept_pause(&mut self) {
        self.counters.limit_accept_paused += 1;
    }

    /// What it holds now; for tests that look for leaks.
    pub fn holdings(&mut self) -> Holdings {
        let mut holdings = Holdings {
            clients: self.clients.count(),
            slots: self.clients.slots(),
            bytes: self.budget.total(),
            ..Holdings::default()
        };
        self.pools.holdings(&mut holdings);
        holdings
    }
}
