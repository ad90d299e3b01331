//! The driver: what happens when, to clients, servers and the proxy.
//!
//! ```text
//!  events due ─▶ clients and servers act ─▶ edges ─▶ proxy.ready ─▶ proxy.tick ─▶ connects
//!       ▲                                                                            │
//!       └──────────── what was touched is looked at a moment later ◀─────────────────┘
//! ```

use super::clients::Client;
use super::history::{self, History};
use super::plan::{Mode, Plan};
use super::rings::{self, Ring, Rings};
use super::servers::Pace;
use super::upgrades::Rest;
use crate::common::rng::Rng;
use crate::common::world::{Edges, Metadump, SECOND, State, World};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, HashSet, VecDeque};

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
    Heal(u16),
    /// Somebody between magent and a server resets all its links.
    Sever(u16),
    /// A server does all that it has received of a link that magent has given up.
    Late(usize),
    /// An operator uses a server again.
    EndDrain(u16),
    /// A reload changes the ring, soon and now.
    BeforeChange,
    ChangeRing,
    /// Another program is to take over; what is in flight is late for that, at the change of this number.
    Upgrade,
    Hurry(u64),
    /// A magent is started again, goes on, or reaches a server again.
    Kill(usize),
    Start(usize),
    Wake(usize),
    Mend(usize, u16),
}

/// What magent reads at a time, in bytes.
const CHUNK: usize = 68 * 1024;

/// Times to live of a key and its copy may differ by so much, in nanoseconds: servers count in whole
/// seconds, and slow ones take up to 1.5 s for a request.
pub const TTL_DIFFERS: u64 = 4 * SECOND;

/// Lines of a trace that are kept.
const TRACE: usize = 400;

/// A run.
pub struct Sim {
    pub world: World,
    pub plan: Plan,
    pub rng: Rng,
    /// When the servers see to their links.
    pub paces: BTreeMap<usize, Pace>,
    /// In a story: how long a server takes for one thing, in nanoseconds.
    pub lags: BTreeMap<u16, u64>,
    /// How often each write was done on a server, over all its lives.
    pub applied: HashMap<(u16, u64), u32>,
    /// Creations that were done somewhere.
    pub created: HashSet<u64>,
    pub clients: Vec<Client>,
    pub rings: Rings,
    /// Clients by connection.
    pub by_conn: BTreeMap<usize, usize>,
    pub history: History,
    queue: BinaryHeap<Reverse<(u64, u64, Event)>>,
    queued: u64,
    /// Keep a trace, for who plays this seed again.
    pub traced: bool,
    trace: VecDeque<String>,
    /// What went wrong and well again, all of it.
    faults: Vec<String>,
    /// When a magent last went on that had stood still.
    pub woke: u64,
    /// A magent was killed: nobody knows what it had asked for.
    pub killed: bool,
    /// When the last server got well.
    pub healed: u64,
    /// Servers that an operator took out of use.
    pub drained: BTreeSet<u16>,
    /// When magent last held a server for away.
    pub away: u64,
    /// Turns of the loop.
    pub steps: u64,
    /// Changes of programs that were asked for, and the one under way.
    pub upgrades: u64,
    pub rest: Option<Rest>,
    /// Clients make no more requests.
    pub ending: bool,
    /// Raised by each fault: what lasted over one proves nothing.
    pub epoch: u64,
    /// Everything is well, as far as magent can know.
    pub calm: bool,
    /// Servers take the time that they are told, and no other.
    pub exact: bool,
    idle_turns: u32,
    /// A server restarted so soon after its start that its uptime does not tell.
    pub unseen_restart: bool,
    /// What was seen of how much happened, to know that a run was not idle.
    pub answered: u64,
}

impl Sim {
    /// The run of a seed.
    pub fn new(seed: u64, plan: Plan) -> Sim {
        let configs = (0..plan.magents).map(|_| plan.config()).collect();
        let mut world = World::several(configs, seed);
        for port in plan.ports() {
            world.servers.entry(port).or_default();
        }
        for server in world.servers.values_mut() {
            (server.store.age, server.store.item_max) = (0, super::plan::ITEM_MAX);
            if plan.lists_all {
                server.store.metadump = Metadump::AllOnly;
            }
        }
        let mut sim = Sim {
            world,
            rng: Rng::new(seed ^ 0x776f_726c_6400),
            paces: BTreeMap::new(),
            lags: BTreeMap::new(),
            applied: HashMap::new(),
            created: HashSet::new(),
            clients: Vec::new(),
            rings: Rings::new(Ring::first(&plan)),
            by_conn: BTreeMap::new(),
            history: History::new(plan.habits.keys, plan.grace()),
            queue: BinaryHeap::new(),
            queued: 0,
            traced: true,
            trace: VecDeque::new(),
            faults: Vec::new(),
            healed: 0,
            drained: BTreeSet::new(),
            away: 0,
            steps: 0,
            upgrades: 0,
            rest: None,
            ending: false,
            epoch: 0,
            woke: 0,
            killed: false,
            calm: true,
            exact: false,
            idle_turns: 0,
            unseen_restart: false,
            answered: 0,
            plan,
        };
        for place in 0..sim.plan.places() {
            sim.clients.push(Client::default());
            let at = sim.rng.below(100 * MS);
            sim.at(at, Event::Arrive(place));
        }
        if sim.plan.mode != Mode::Calm {
            let at = sim.rng.range(SECOND, 3 * SECOND);
            sim.at(at, Event::Fault);
        }
        if sim.plan.moves {
            let at = rings::first_change(&mut sim.rng);
            sim.at(at, Event::BeforeChange);
        }
        if sim.plan.upgrades {
            let at = sim.rng.range(200 * MS, 5 * SECOND);
            sim.at(at, Event::Upgrade);
        }
        sim
    }

    /// Something will happen at a time.
    pub fn at(&mut self, at: u64, event: Event) {
        self.queued += 1;
        self.queue.push(Reverse((at, self.queued, event)));
    }

    /// Something will happen after so many nanoseconds, more or less.
    pub fn after(&mut self, from: u64, to: u64, event: Event) {
        let at = self.world.now + self.rng.range(from, to);
        self.at(at, event);
    }

    /// Notes what happened, for whoever has to find out why.
    pub fn note(&mut self, what: impl FnOnce() -> String) {
        if !self.traced {
            return;
        }
        if self.trace.len() >= TRACE {
            self.trace.pop_front();
        }
        let line = format!("{:>12.6} {}", self.world.now as f64 / SECOND as f64, what());
        self.trace.push_back(line);
    }

    /// Notes what went wrong.
    pub fn note_fault(&mut self, what: String) {
        let line = format!("{:>12.6} {what}", self.world.now as f64 / SECOND as f64);
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
    pub fn place(&self, key: usize) -> (u16, Option<u16>) {
        self.rings.now.place(key)
    }

    /// True if one of a key's servers holds it, so that a reader must find it.
    pub fn held(&self, key: usize) -> bool {
        let (primary, backup) = self.place(key);
        let name = history::key_name(key);
        let holds = |s: u16| {
            self.world.servers[&s]
                .store
                .get(&name, self.world.now)
                .is_some()
        };
        if self.plan.moves {
            // Nobody knows here whether a primary is warming because it restarted.
            return holds(primary) || self.rings.givers(key).into_iter().any(holds);
        }
        holds(primary) || (self.plan.warm > 0 && backup.is_some_and(holds))
    }

    /// One turn of the event loop. False if nothing will ever happen again.
    pub fn step(&mut self, until: u64) -> Result<bool, String> {
        self.steps += 1;
        let alarm = self.world.wait().map(|d| self.world.now + d);
        let event = self.queue.peek().map(|Reverse((at, ..))| *at);
        let next = [alarm, event].into_iter().flatten().min();
        let Some(next) = next.filter(|at| *at <= until) else {
            self.world.now = until.max(self.world.now);
            return Ok(false);
        };
        let spins = next <= self.world.now && event.is_none_or(|at| at > self.world.now);
        self.idle_turns = if spins { self.idle_turns + 1 } else { 0 };
        if self.idle_turns > 5000 {
            return Err("it spins: there is nothing to do and it will not wait".into());
        }
        self.world.now = self.world.now.max(next);
        self.history.clock = self.world.now;
        self.turn_now()?;
        Ok(true)
    }

    /// One turn, whether or not something is due.
    pub fn turn_now(&mut self) -> Result<(), String> {
        self.play()?;
        let mut late = Vec::new();
        let (rng, by_conn, tardy) = (&mut self.rng, &self.by_conn, self.plan.tardy);
        self.world.deliver(|conn, e| {
            let says = e.readable && !e.writable && !by_conn.contains_key(&conn);
            let is_late = tardy && says && rng.often(5);
            late.extend(is_late.then_some((conn, e)));
            is_late
        });
        for (conn, e) in late {
            self.after(MS, 2 * self.plan.timeout * MS, Event::Edge(conn, e));
        }
        self.world.tick();
        if self.rings.before.is_some() && self.world.proxy().moving_pool().is_none() {
            self.moved()?;
        }
        self.connect();
        self.advance_upgrade()?;
        self.look();
        self.check()
    }

    /// Does what is due.
    fn play(&mut self) -> Result<(), String> {
        while let Some(Reverse((at, _, event))) = self.queue.peek().copied() {
            if at > self.world.now {
                break;
            }
            self.queue.pop();
            let waits = matches!(
                event,
                Event::Arrive(_) | Event::ChangeRing | Event::EndDrain(_)
            );
            if waits && self.rest.is_some() {
                // Nobody is let in, and operators and HUP wait.
                self.after(MS, 5 * MS, event);
                continue;
            }
            match event {
                Event::Turn(client) => self.turn(client),
                Event::Take(client) => self.take(client)?,
                Event::Arrive(client) => self.arrive(client),
                Event::Serve(conn) => self.serve(conn)?,
                Event::Reply(conn) => self.reply(conn),
                Event::Connected(conn) => self.world.connected(conn),
                Event::Edge(conn, edges) => self.world.net.borrow_mut().edge(conn, edges),
                Event::Fault => self.fault(),
                Event::Heal(server) => self.heal(server),
                Event::Sever(server) => self.sever_links(server),
                Event::Late(conn) => self.run_late(conn)?,
                Event::EndDrain(server) => self.end_drain(server),
                Event::BeforeChange => self.before_change(),
                Event::ChangeRing => self.change_ring(),
                Event::Upgrade => self.want_upgrade(),
                Event::Hurry(number) => self.hurry(number)?,
                Event::Kill(magent) => self.kill(magent),
                Event::Start(magent) => self.start(magent),
                Event::Wake(magent) => self.wake(magent),
                Event::Mend(magent, server) => self.mend(magent, server),
            }
        }
        Ok(())
    }

    /// Opens what the proxy wants opened.
    fn connect(&mut self) {
        while let Some(wanted) = self.world.next_connect() {
            let gone = self.world.servers[&wanted.port].state == State::Gone;
            if gone && self.rng.often(500) {
                self.note(|| format!("connect to s{} refused at once", wanted.port));
                self.world.refuse(&wanted);
                continue;
            }
            let narrow = self.plan.narrow();
            let cap = self.rng.pick(&[narrow, 65_536.max(narrow), 1 << 20]);
            let conn = self.world.connect_link(&wanted, cap);
            self.world.net.borrow_mut().conns[conn].choppy = self.plan.choppy;
            self.paces.insert(conn, Pace::default());
            self.note(|| format!("connect to s{}: c{conn}", wanted.port));
            self.after(20_000, 300_000, Event::Connected(conn));
        }
    }

    /// Whatever magent wrote, read or closed is noticed a moment later.
    fn look(&mut self) {
        let mut touched = Vec::new();
        self.world.net.borrow_mut().touched(&mut touched);
        let later = std::mem::take(&mut self.world.net.borrow_mut().later);
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
        let held = self.world.holdings();
        if held.servers_away > 0 {
            self.away = self.world.now;
        }
        if self.steps % 16 == 0 {
            // Beyond `-m`: the requests' own lines, and whole chunks for what was let in while a
            // few bytes of room were left: one for each peer that was read since.
            let peers = 5 + self.plan.places() - self.plan.clients;
            let bound = self.plan.magents * (self.plan.memory + peers * CHUNK);
            if held.bytes > bound {
                return Err(format!("{} bytes in flight, over {bound}", held.bytes));
            }
            let well = held.servers_away == 0 && held.journals == 0 && held.drains == 0;
            // What was slow or sent before may still time out.
            let slow_until = self.healed.max(self.rings.slow_until);
            let settled = self.world.now >= slow_until + self.plan.window() + SECOND;
            self.calm = well
                && settled
                && self.all_well()
                && self.magents_are_well()
                && !self.is_one_kept_away();
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
        for server in self.plan.ports() {
            self.heal(server);
            self.end_drain(server);
        }
        self.note_fault("all servers are well, clients finish".into());
        self.run(self.world.now + 120 * SECOND)?;
        for client in 0..self.clients.len() {
            self.dismiss(client);
        }
        self.run(self.world.now + 90 * SECOND)?;
        // A probe may be on its way.
        let until = self.world.now + self.plan.window();
        let mut held = self.world.holdings();
        while held != Default::default() && self.step(until)? {
            held = self.world.holdings();
        }
        if held != Default::default() {
            return Err(format!("all have left, and it still holds {held:?}"));
        }
        if self.magents_are_well() && self.is_one_kept_away() {
            return Err("all is well, and a primary is still kept away".into());
        }
        if self.plan.mode != Mode::Many {
            self.audit()?;
        }
        self.check_copies()
    }

    /// Promise 11: each value of a primary that is not stale stands on its backup as it is.
    fn check_copies(&self) -> Result<(), String> {
        // A server that stops again while it wakes may run a write later than anybody can wait for.
        let runs_late = self.plan.mode == Mode::Many && self.plan.long_stops;
        // Without probes the next request finds out.
        let is_unknown =
            self.plan.probe == 0 && self.plan.ports().any(|s| self.world.open_links(s) == 0);
        // Several magents refill nothing here.
        let is_shared = self.plan.magents > 1;
        if self.plan.mad || self.unseen_restart || runs_late || is_unknown || is_shared {
            return Ok(());
        }
        for key in 0..self.plan.habits.keys {
            let (primary, Some(backup)) = self.place(key) else {
                continue;
            };
            // Without probes a restart is seen when the server is next used.
            let is_unseen = |s| self.plan.probe == 0 && self.world.open_links(s) == 0;
            if is_unseen(primary) || is_unseen(backup) {
                continue;
            }
            if self.plan.mode == Mode::Many && self.history.is_doubtful(key) {
                continue;
            }
            let name = history::key_name(key);
            let held = |s: u16| self.world.servers[&s].store.get(&name, self.world.now);
            let Some(want) = held(primary).filter(|i| !i.is_stale() && !i.is_placeholder()) else {
                continue;
            };
            let Some(copy) = held(backup) else {
                let soon = want.expires < self.world.now + TTL_DIFFERS;
                let missed = &self.world.servers[&backup].store.missed;
                match soon || missed.contains(name.as_bytes()) {
                    true => continue,
                    false => return Err(format!("{name} of s{primary} is not on s{backup}")),
                }
            };
            let differs = want.expires.abs_diff(copy.expires) > TTL_DIFFERS;
            if differs || want.flags != copy.flags || want.data != copy.data {
                return Err(format!(
                    "{name} is {} on s{primary} until {} and {} on s{backup} until {}",
                    history::lossy(&want.data),
                    want.expires,
                    history::lossy(&copy.data),
                    copy.expires
                ));
            }
        }
        Ok(())
    }

    /// No server holds what is older than what a client was told, whoever is asked next.
    pub fn audit(&mut self) -> Result<(), String> {
        let counters = self.plan.habits.keys - self.plan.habits.counters;
        for key in 0..counters {
            let (primary, backup) = self.place(key);
            let mut held = Vec::new();
            for server in [Some(primary), backup].into_iter().flatten() {
                held.extend(self.audit_one(server, key)?);
            }
            let settled = self.history.keys[key].open == 0;
            if settled && !self.killed && held.len() == 2 && held[0] != held[1] {
                return Err(format!(
                    "the farms differ: {} and {}",
                    history::lossy(&held[0]),
                    history::lossy(&held[1])
                ));
            }
        }
        Ok(())
    }

    /// A server holds nothing of a key that is older than what a client was told. Returns what it holds.
    pub fn audit_one(&mut self, server: u16, key: usize) -> Result<Option<Vec<u8>>, String> {
        if key >= self.plan.habits.keys - self.plan.habits.counters {
            return Ok(None);
        }
        let seen = self.history.look(key, None);
        let store = &self.world.servers[&server].store;
        let Some(item) = store.get(&history::key_name(key), self.world.now) else {
            return Ok(None);
        };
        self.history
            .check(&seen, Some(item.flags), &item.data, true)
            .map_err(|e| format!("audit of s{server}: {e}"))?;
        Ok(Some(item.data.clone()))
    }
}
