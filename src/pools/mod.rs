//! The pools' half: farms of primaries and backups, their servers, and what is asked of them. Knows
//! of clients only the tickets that answers belong to.
//!
//! ```text
//!  ask ──▶ send ──▶ link: queue, pending FIFO ──▶ server
//!            ▲                                       │
//!   warm, mirror, failover, sync, flush_all          ▼
//!            └──────────── settle ◀── replies ◀── bytes
//!                            ▲
//!                          losses: requests whose server cannot answer, oldest first
//! ```
//!
//! The files of this folder are layers; each calls those below it only:
//!
//! ```text
//!  saved                             another program goes on with them
//!  turn reload report findings operator    what the proxy calls
//!  drive missed                      what follows for pairs
//!  expire                            what time does
//!  eject                             rings that servers leave
//!  ask                               requests of clients
//!  replies connect                   bytes of servers, links that open
//!  settle                            what becomes of a request, by a reply or by its loss
//!  parked                            what waits until its pair is known
//!  refills jobs                      servers that lack keys are filled, or compared
//!  comparing copying listing         one key that is compared or copied, what a server holds
//!  flush_all monitors steps warm     requests with several steps or servers
//!  wins                              the right to refresh what a fetch found stale
//!  failover mirror                   the other farm
//!  moves rolling                     rings that a reload changes, and other magents'
//!  lookup                            names of servers
//!  again                             copies that others may have overtaken
//!  sync                              journals: what servers missed
//!  down                              links and servers that go
//!  marks uses looks life lines       what other magents on the same servers tell and are told
//!  repair                            what a magent that died has left undone
//!  partners                          who holds the other copy, who lacks one
//!  send slow                         requests onto links; what slow ones waited for
//!  flows link server recent totals pairs   data
//!  figures refill                    what is shown of refills, one of them
//!  copies pace spool verify          its parts
//!  pending name board outages watched lacking awaited me quiet  one request, one server's host, the marks on it, when it was away, copies
//! ```
//!
//! A request that cannot be asked where it should be, or whose link is lost, becomes a *loss*: it
//! is put on one list, in order, and `settle` decides what becomes of it. So nothing calls upwards.

mod again;
mod ask;
mod awaited;
mod board;
mod comparing;
mod connect;
mod copies;
mod copying;
mod down;
mod drive;
mod eject;
mod expire;
mod failover;
mod figures;
mod findings;
mod flows;
mod flush_all;
mod jobs;
mod lacking;
mod life;
mod lines;
mod link;
mod listing;
mod looks;
mod lookup;
mod marks;
mod me;
mod mirror;
mod missed;
mod monitors;
mod moves;
mod name;
mod operator;
mod outages;
mod pace;
mod pairs;
mod parked;
mod partners;
mod pending;
mod quiet;
mod recent;
mod refill;
mod refills;
mod reload;
mod repair;
mod replies;
mod report;
mod rolling;
mod saved;
mod send;
mod server;
mod settle;
mod slow;
mod spool;
mod steps;
mod sync;
mod totals;
mod turn;
mod uses;
mod verify;
mod warm;
mod watched;
mod wins;

pub use ask::Split;
pub use me::Me;
pub use monitors::Asker;
pub use pending::Ask;
pub use report::{Lines, ServerFigures, line};
pub use server::Place;
pub use totals::{Merged, Names, Totals, Value};
pub use turn::Connect;

use crate::budget::Budget;
use crate::buffer::Queue;
use crate::config::Endpoint;
use crate::health::{Cause, Probing};
use crate::net::Conn;
use crate::slab::Slab;
use crate::stats::{CallCounters, HotKeys, PoolCounters};
use crate::time::Time;
use crate::work::WorkList;
use link::Link;
use pending::Pending;
use recent::RecentWrites;
use server::{Pool, Server};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

/// Names a server; stale once that was removed.
type ServerId = usize;

/// No server.
const NOBODY: ServerId = usize::MAX;

/// A link that was given up with writes unanswered: half-closed, read to its end.
#[derive(Debug)]
struct GivenUp<S> {
    conn: Conn<S>,
    server: ServerId,
    token: usize,
}

/// Requests that were lost at one server, oldest first.
#[derive(Debug)]
struct Losses {
    server: ServerId,
    cause: Cause,
    /// Among them are looks at copies, which go first.
    has_looks: bool,
    pending: VecDeque<Pending>,
    /// Their bytes, from stream offset `at` on.
    queue: Queue,
    at: u64,
    charged: usize,
}

impl Losses {
    fn new(server: ServerId, cause: Cause) -> Losses {
        Losses {
            server,
            cause,
            has_looks: false,
            pending: VecDeque::new(),
            queue: Queue::new(),
            at: 0,
            charged: 0,
        }
    }

    /// Another one, with a copy of its bytes.
    fn push(&mut self, mut pending: Pending, ask: &Ask<'_>, budget: &Budget) {
        (pending.line, pending.len) = ask.push_to(&mut self.queue);
        self.pending.push_back(pending);
        budget.recharge(&mut self.charged, self.queue.own_bytes());
    }

    /// True if they went out: a write among them may have been done.
    fn was_asked(&self) -> bool {
        pending::was_asked(self.cause)
    }
}

/// All pools and servers.
#[derive(Debug)]
pub struct Pools<S> {
    now: Time,
    unix: u64,
    start_unix: u64,
    /// What this run is to other magents.
    me: Me,
    /// `--alone`: it leaves no marks.
    is_alone: bool,
    budget: Rc<Budget>,
    probing: Probing,
    /// Names are looked up so often, in nanoseconds; 0: only at a reconnect.
    resolve: u64,
    pools: Vec<Pool>,
    servers: Slab<Server>,
    by_endpoint: HashMap<Endpoint, ServerId>,
    links: Slab<Link<S>>,
    given_up: Slab<GivenUp<S>>,
    losses: VecDeque<Losses>,
    flows: flows::Flows,
    /// Rights to refresh values that clients are to get.
    wins: Vec<wins::Win>,
    flushes: Slab<flush_all::FlushAll>,
    monitors: Slab<monitors::Monitor>,
    /// What came of those that operators asked for.
    reports: Vec<(usize, Merged)>,
    /// The next reload ends the moves that are under way.
    ends_moves: bool,
    /// Another program is to take over: nothing begins that no client waits for.
    paused: bool,
    recent: RecentWrites,
    /// A server is being asked for its keys, for the refill that is under way.
    listing: Option<listing::Listing<S>>,
    refills: refill::Refills,
    readable: WorkList<usize>,
    dirty: WorkList<usize>,
    /// Links that got nothing but mirrors: nobody waits for them.
    mirrored: WorkList<usize>,
    /// Primaries and the backups that may stand in for them.
    pairs: pairs::Pairs,
    /// Those that are to be looked after.
    to_advance: WorkList<usize>,
    /// Servers whose journal is to be sent, or whose state is to be checked.
    to_sync: WorkList<ServerId>,
    connects: Vec<usize>,
    /// Hosts whose addresses are wanted.
    lookups: Vec<String>,
    /// When all names are looked up next.
    look_up_at: Time,
    /// Sockets so far: the next one's number.
    sockets: u32,
    /// Copies that others may have overtaken.
    watched: watched::Watched,
    /// In the last turn a server was in the middle of answering a batch.
    is_answering: bool,
    /// Changes with each key; what `random` draws from.
    draw: u32,
    /// An upstream request line that is being made.
    line: Vec<u8>,
    /// A decoded key.
    key: Vec<u8>,
    /// Links with a line for several keys that is being made.
    open_lines: Vec<usize>,
    /// When requests of clients that left were last looked for.
    looked_for_abandoned: Time,
    /// What is asked most.
    hot: HotKeys,
    /// What servers did.
    pub counters: PoolCounters,
    /// Reads from servers and writes to them.
    pub calls: CallCounters,
}

impl<S> Pools<S> {
    /// This pool, or all that are configured.
    fn pools_of(&self, pool: Option<usize>) -> impl Iterator<Item = &Pool> {
        let all = self.pools.iter().enumerate();
        let is_meant = move |at: usize, p: &Pool| pool.map_or(!p.removed, |one| one == at);
        all.filter(move |(at, p)| is_meant(*at, p)).map(|(_, p)| p)
    }
}
