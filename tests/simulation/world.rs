//! The driver: one proxy, its clients and servers, a virtual clock.
//!
//! ```text
//!  events due ─▶ clients and servers act ─▶ edges ─▶ proxy.ready ─▶ proxy.tick ─▶ connects
//!       ▲                                                                            │
//!       └──────────── what was touched is looked at a moment later ◀─────────────────┘
//! ```

use super::clients::Client;
use super::history::{self, History};
use super::net::{Connect, Edges, Fake, Net};
use super::plan::{Mode, PORT, Plan};
use super::rng::Rng;
use super::servers::{Peer, Server};
use super::store::{SECOND, UNIX};
use magent::config::Address;
use magent::placement::Farm;
use magent::proxy::{Now, Proxy};
use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::io::ErrorKind;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// One millisecond in nanoseconds.
pub const MS: u64 = 1_000_000;

/// What happens at a time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Event {
    /// A client does something.
    Turn(usize),
    /// A client takes what it is owed.
    Take(usize),
    /// A new client comes in this place.
    Arrive(usize),
    /// A server reads a link.
    Serve(usize),
    /// A server writes a link.
    Reply(usize),
    /// A connect comes to its end.
    Connected(usize),
    /// The rest of what was cut short; or magent sees only now what was there long ago.
    Edge(usize, Edges),
    /// Something goes wrong, or well again.
    Fault,
    Heal(usize),
}

/// Lines of a trace that are kept.
const TRACE: usize = 400;

/// Everything.
pub struct World {
    pub plan: Plan,
    pub rng: Rng,
    pub now: u64,
    base: Instant,
    pub proxy: Proxy<Fake>,
    pub net: Rc<RefCell<Net>>,
    pub servers: Vec<Server>,
    /// The servers' ends of links, by connection.
    pub peers: BTreeMap<usize, Peer>,
    pub clients: Vec<Client>,
    /// Clients by connection.
    pub by_conn: BTreeMap<usize, usize>,
    pub history: History,
    queue: BinaryHeap<Reverse<(u64, u64, Event)>>,
    queued: u64,
    trace: VecDeque<String>,
    /// What went wrong and well again, all of it.
    faults: Vec<String>,
    /// When the last server got well.
    pub healed: u64,
    /// Turns of the loop.
    pub steps: u64,
    /// Clients make no more requests.
    pub ending: bool,
    /// Raised by each fault: what lasted over one proves nothing.
    pub epoch: u64,
    /// Everything is well, as far as magent can know.
    pub calm: bool,
    /// Servers take the time that they are told, and no other.
    pub exact: bool,
    farms: [Option<Farm>; 2],
    idle_turns: u32,
    /// What was seen of how much happened, to know that a run was not idle.
    pub answered: u64,
}

impl World {
    /// The world of a seed.
    pub fn new(seed: u64, plan: Plan) -> World {
        let config = plan.config();
        let base = Instant::now();
        let pool = &config.pools[0];
        let farm = |servers: &[_]| {
            (!servers.is_empty()).then(|| Farm::new(pool.farm(servers), None))
        };
        let farms = [farm(&pool.primaries), farm(&pool.backups)];
        let now = Now {
            at: base,
            unix: UNIX,
        };
        let mut world = World {
            rng: Rng::new(seed ^ 0x776f_726c_6400),
            now: 0,
            base,
            proxy: Proxy::new(&config, now),
            net: Rc::new(RefCell::new(Net::new(seed))),
            servers: (0..plan.primaries + plan.backups)
                .map(|_| Server::default())
                .collect(),
            peers: BTreeMap::new(),
            clients: Vec::new(),
            by_conn: BTreeMap::new(),
            history: History::new(plan.habits.keys),
            queue: BinaryHeap::new(),
            queued: 0,
            trace: VecDeque::new(),
            faults: Vec::new(),
            healed: 0,
            steps: 0,
            ending: false,
            epoch: 0,
            calm: true,
            exact: false,
            farms,
            idle_turns: 0,
            answered: 0,
            plan,
        };
        for place in 0..world.plan.clients {
            world.clients.push(Client::default());
            let at = world.rng.below(100 * MS);
            world.at(at, Event::Arrive(place));
        }
        if world.plan.mode != Mode::Calm {
            let at = world.rng.range(SECOND, 3 * SECOND);
            world.at(at, Event::Fault);
        }
        world
    }

    /// The clock as the proxy reads it.
    pub fn clock(&self) -> Now {
        Now {
            at: self.base + Duration::from_nanos(self.now),
            unix: UNIX + self.now / SECOND,
        }
    }

    /// Something will happen at a time.
    pub fn at(&mut self, at: u64, event: Event) {
        self.queued += 1;
        self.queue.push(Reverse((at, self.queued, event)));
    }

    /// Something will happen after so many nanoseconds, more or less.
    pub fn after(&mut self, from: u64, to: u64, event: Event) {
        let at = self.now + self.rng.range(from, to);
        self.at(at, event);
    }

    /// Notes what happened, for whoever has to find out why.
    pub fn note(&mut self, what: impl FnOnce() -> String) {
        if self.trace.len() >= TRACE {
            self.trace.pop_front();
        }
        let line = format!("{:>12.6} {}", self.now as f64 / SECOND as f64, what());
        self.trace.push_back(line);
    }

    /// Notes what went wrong.
    pub fn note_fault(&mut self, what: String) {
        let line = format!("{:>12.6} {what}", self.now as f64 / SECOND as f64);
        self.faults.push(line);
        self.note(|| what);
    }

    /// All faults, then the last events.
    pub fn trace(&self) -> String {
        let last: Vec<&str> = self.trace.iter().map(|l| &l[..]).collect();
        format!("{}\n...\n{}", self.faults(), last.join("\n"))
    }

    /// What went wrong and well again.
    pub fn faults(&self) -> String {
        self.faults.join("\n")
    }

    /// Primary and backup of a key.
    pub fn place(&self, key: usize) -> (usize, Option<usize>) {
        let name = history::key_name(key);
        let of = |farm: &Option<Farm>| farm.as_ref().map(|f| f.place(name.as_bytes(), 0));
        let primary = of(&self.farms[0]).unwrap_or(0);
        (primary, of(&self.farms[1]).map(|b| self.plan.primaries + b))
    }

    /// True if one of a key's servers holds it, so that a reader must find it.
    pub fn held(&self, key: usize) -> bool {
        let (primary, backup) = self.place(key);
        let name = history::key_name(key);
        let holds = |s: usize| self.servers[s].store.get(&name, self.now).is_some();
        holds(primary) || (self.plan.warm > 0 && backup.is_some_and(holds))
    }

    /// One turn of the event loop. False if nothing will ever happen again.
    pub fn step(&mut self, until: u64) -> Result<bool, String> {
        self.steps += 1;
        let alarm = self.proxy.wait(self.clock());
        let alarm = alarm.map(|d| self.now + d.as_nanos() as u64);
        let event = self.queue.peek().map(|Reverse((at, ..))| *at);
        let next = [alarm, event].into_iter().flatten().min();
        let Some(next) = next.filter(|at| *at <= until) else {
            self.now = until.max(self.now);
            return Ok(false);
        };
        let spins = next <= self.now && event.is_none_or(|at| at > self.now);
        self.idle_turns = if spins { self.idle_turns + 1 } else { 0 };
        if self.idle_turns > 300 {
            return Err("it spins: there is nothing to do and it will not wait".into());
        }
        self.now = self.now.max(next);
        self.turn_now()?;
        Ok(true)
    }

    /// One turn, whether or not something is due.
    pub fn turn_now(&mut self) -> Result<(), String> {
        self.play()?;
        let edges = self.net.borrow_mut().edges();
        for (conn, e) in edges {
            let says = e.readable && !e.writable;
            if self.plan.tardy && says && !self.by_conn.contains_key(&conn) && self.rng.often(5) {
                let late = 2 * self.plan.timeout * MS;
                self.after(MS, late, Event::Edge(conn, e));
                continue;
            }
            let token = self.net.borrow().conns[conn].token;
            self.proxy
                .ready(token, e.readable || e.closed, e.writable, e.closed);
        }
        let clock = self.clock();
        self.proxy.tick(clock);
        self.connect();
        self.look();
        self.check()
    }

    /// Does what is due.
    fn play(&mut self) -> Result<(), String> {
        while let Some(Reverse((at, _, event))) = self.queue.peek().copied() {
            if at > self.now {
                break;
            }
            self.queue.pop();
            match event {
                Event::Turn(client) => self.turn(client),
                Event::Take(client) => self.take(client)?,
                Event::Arrive(client) => self.arrive(client),
                Event::Serve(conn) => self.serve(conn)?,
                Event::Reply(conn) => self.reply(conn),
                Event::Connected(conn) => self.connected(conn),
                Event::Edge(conn, edges) => self.net.borrow_mut().edge(conn, edges),
                Event::Fault => self.fault(),
                Event::Heal(server) => self.heal(server),
            }
        }
        Ok(())
    }

    /// Opens what the proxy wants opened.
    fn connect(&mut self) {
        while let Some(wanted) = self.proxy.next_connect() {
            let Address::Tcp(address) = &wanted.address else {
                continue;
            };
            let server = (address.port() - PORT) as usize;
            let clock = self.clock();
            if self.servers[server].refuses() && self.rng.often(500) {
                let refused = ErrorKind::ConnectionRefused.into();
                self.note(|| format!("connect to s{server} refused at once"));
                self.proxy.connecting(wanted.token, Err(refused), clock);
                continue;
            }
            let choppy = self.plan.choppy;
            // A slow server with a narrow window is no healthy one.
            let narrow = if self.plan.pace > MS { 1 << 20 } else { 4096 };
            let cap = self.rng.pick(&[narrow, 65_536.max(narrow), 1 << 20]);
            let conn = self.net.borrow_mut().open(cap, Connect::Pending, choppy);
            self.net.borrow_mut().conns[conn].token = wanted.token;
            self.peers.insert(conn, Peer::new(server));
            self.note(|| format!("connect to s{server}: c{conn}"));
            self.after(20_000, 300_000, Event::Connected(conn));
            let net = self.net.clone();
            self.proxy
                .connecting(wanted.token, Ok(Fake { net, conn }), clock);
        }
    }

    /// Whatever magent wrote, read or closed is noticed a moment later.
    fn look(&mut self) {
        let (touched, later) = {
            let mut net = self.net.borrow_mut();
            (
                std::mem::take(&mut net.touched),
                std::mem::take(&mut net.later),
            )
        };
        for conn in touched {
            if let Some(client) = self.by_conn.get(&conn).copied() {
                self.client_touched(client);
            } else {
                self.schedule_serve(conn);
                self.schedule_reply(conn);
            }
        }
        for (conn, e) in later {
            self.after(1_000, MS, Event::Edge(conn, e));
        }
    }

    /// What must hold after every turn.
    fn check(&mut self) -> Result<(), String> {
        for i in 0..self.clients.len() {
            self.check_deadline(i)?;
        }
        if self.steps % 16 == 0 {
            let held = self.proxy.holdings();
            // Beyond `-m`: the requests' own lines, and whole chunks for what was let in while a
            // few bytes of room were left: one for each peer that was read since.
            let bound = self.plan.memory + 5 * magent::buffer::CHUNK;
            if held.bytes > bound {
                return Err(format!("{} bytes in flight, over {bound}", held.bytes));
            }
            let well = held.servers_away == 0 && held.journals == 0 && held.drains == 0;
            // What was slow or sent before may still time out.
            let settled = self.now >= self.healed + self.plan.deadline() + SECOND;
            self.calm = well && settled && self.servers.iter().all(Server::is_well);
        }
        Ok(())
    }

    /// Runs until a time.
    pub fn run(&mut self, until: u64) -> Result<(), String> {
        while self.step(until)? {}
        Ok(())
    }

    /// Everybody goes home, all servers get well: then nothing may be left.
    pub fn end(&mut self) -> Result<(), String> {
        self.ending = true;
        for server in 0..self.servers.len() {
            self.heal(server);
        }
        self.note_fault("all servers are well, clients finish".into());
        self.run(self.now + 120 * SECOND)?;
        for client in 0..self.clients.len() {
            self.dismiss(client);
        }
        self.run(self.now + 90 * SECOND)?;
        let held = self.proxy.holdings();
        if held != Default::default() {
            return Err(format!("all have left, and it still holds {held:?}"));
        }
        if self.plan.mode != Mode::Many {
            self.audit()?;
        }
        Ok(())
    }

    /// No server holds what is older than what a client was told, whoever is asked next.
    pub fn audit(&mut self) -> Result<(), String> {
        let counters = self.plan.habits.keys - self.plan.habits.counters;
        for key in 0..counters {
            let seen = self.history.look(key, None);
            let (primary, backup) = self.place(key);
            let mut held = Vec::new();
            for server in [Some(primary), backup].into_iter().flatten() {
                let item = self.servers[server]
                    .store
                    .get(&history::key_name(key), self.now);
                if let Some(item) = item {
                    self.history
                        .check(&seen, Some(item.flags), &item.data, true)
                        .map_err(|e| format!("audit of s{server}: {e}"))?;
                    held.push(item.data.clone());
                }
            }
            let settled = self.history.keys[key].open == 0;
            if settled && held.len() == 2 && held[0] != held[1] {
                return Err(format!(
                    "the farms differ: {} and {}",
                    history::lossy(&held[0]),
                    history::lossy(&held[1])
                ));
            }
        }
        Ok(())
    }
}
