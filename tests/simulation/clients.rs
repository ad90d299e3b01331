//! Clients that pipeline, split, read slowly, close their half and leave.

use super::answers;
use super::history::{key_name, lossy};
use super::plan::{Mode, Nature};
use super::requests::{Expect, Maker, Op};
use super::sim::{Event, MS, Sim};
use crate::common::rng::Rng;
use crate::common::world::SECOND;
use std::collections::{HashMap, VecDeque};

/// How a client is getting on.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Stage {
    /// It has left, or not come yet.
    #[default]
    Away,
    Open,
    /// It sends nothing more and waits for its answers.
    Closing,
}

/// One client.
#[derive(Default, Debug)]
pub struct Client {
    pub conn: usize,
    nature: Nature,
    stage: Stage,
    /// It takes its answers as fast as they come.
    pub eager: bool,
    /// It takes nothing until then.
    stalled: u64,
    depth: usize,
    /// Not sent yet.
    outbox: Vec<u8>,
    /// Bytes of all requests made.
    made: u64,
    pub expects: VecDeque<Expect>,
    pub inbox: Vec<u8>,
    pub tokens: HashMap<usize, u64>,
    /// Of the quiet requests at the head, one failed.
    pub group_failed: bool,
    /// The deadline of a `flush_all` begins with the answer before it, that of what stands behind
    /// it with its own.
    pub not_before: u64,
    turn_due: bool,
    take_due: bool,
}

/// A crowd comes together so often, in nanoseconds.
const BURST: u64 = 2 * SECOND;

impl Sim {
    /// A client connects.
    pub fn arrive(&mut self, i: usize) {
        if self.ending || self.clients[i].stage != Stage::Away {
            return;
        }
        let nature = self.plan.nature(i);
        let cap = match nature {
            Nature::Mixed => self.rng.pick(&[2048, 65_536, 1 << 20]),
            Nature::Deaf => 2048,
            _ => 1 << 20,
        };
        let listener = i % self.plan.pools;
        let magent = i % self.plan.magents;
        let Some(conn) = self.world.connect_client(magent, listener, cap) else {
            // It is being started again.
            if self.plan.magents > 1 {
                self.after(50 * MS, 500 * MS, Event::Arrive(i));
            }
            return;
        };
        self.world.net.borrow_mut().conns[conn].choppy = self.plan.choppy;
        let rude = self.plan.rude && nature == Nature::Mixed;
        let client = Client {
            conn,
            nature,
            stage: Stage::Open,
            eager: nature != Nature::Deaf && (!rude || self.rng.often(700)),
            depth: match nature {
                Nature::Crowd => self.rng.pick(&[5, 20, 100]),
                _ => self.rng.pick(&[1, 3, 20]),
            },
            ..Client::default()
        };
        self.note(|| format!("client {i} comes: c{conn}"));
        self.clients[i] = client;
        self.by_conn.insert(conn, i);
        if nature == Nature::Leaver {
            self.ask_much(i, 600);
        }
        self.schedule_turn(i);
    }

    fn schedule_turn(&mut self, i: usize) {
        if !std::mem::replace(&mut self.clients[i].turn_due, true) {
            let (from, to) = match (self.clients[i].nature, self.rng.below(10)) {
                (Nature::Crowd, _) => {
                    let next = BURST - self.world.now % BURST;
                    (next, next + 5 * MS)
                }
                (Nature::Leaver, _) => (10_000, 3 * MS),
                (Nature::Deaf, _) => (MS, 500 * MS),
                (_, 0..=3) => (10_000, MS),
                (_, 4..=8) => (MS, 60 * MS),
                _ => (50 * MS, 400 * MS),
            };
            self.after(from, to, Event::Turn(i));
        }
    }

    fn schedule_take(&mut self, i: usize) {
        let client = &mut self.clients[i];
        if client.stage != Stage::Away && !std::mem::replace(&mut client.take_due, true) {
            if client.eager {
                self.after(5_000, 200_000, Event::Take(i));
            } else {
                let wait = client.stalled.saturating_sub(self.world.now);
                self.after(wait + MS, wait + 50 * MS, Event::Take(i));
            }
        }
    }

    /// Gets without an end, whose answers nobody reads.
    fn ask_much(&mut self, i: usize, most: u64) {
        let plain = (self.plan.habits.keys - self.plan.habits.counters) as u64;
        for _ in 0..self.rng.below(most) {
            let key = key_name(self.rng.below(plain) as usize);
            let line = format!("get {key}\r\n");
            self.clients[i].outbox.extend_from_slice(line.as_bytes());
        }
        self.send(i);
    }

    /// A turn of a client that takes nothing of what it asks for.
    fn turn_of_deaf(&mut self, i: usize) {
        let gone = self.world.net.borrow().conns[self.clients[i].conn].gone;
        let leaves = self.clients[i].nature == Nature::Leaver;
        if gone || leaves {
            self.note(|| format!("client {i} is gone: {gone}, or leaves"));
            return self.leave(i);
        }
        if self.busy() && self.clients[i].outbox.len() < 10_000 {
            self.ask_much(i, 300);
        }
        self.send(i);
        self.schedule_turn(i);
    }

    fn busy(&self) -> bool {
        self.world.now < self.plan.length && !self.ending
    }

    /// magent read, wrote or closed.
    pub fn client_touched(&mut self, i: usize) {
        if matches!(self.clients[i].nature, Nature::Deaf | Nature::Leaver) {
            return;
        }
        let client = &mut self.clients[i];
        let consumed = self.world.net.borrow().conns[client.conn].inn.consumed;
        let now = self.world.now;
        let unread = client.expects.iter_mut().rev();
        for e in unread.take_while(|e| e.read_at.is_none() || e.end > consumed) {
            if e.end <= consumed {
                e.read_at = Some(now);
            }
        }
        self.schedule_take(i);
    }

    /// A client does something.
    pub fn turn(&mut self, i: usize) {
        self.clients[i].turn_due = false;
        if self.clients[i].stage != Stage::Open {
            return;
        }
        let nature = self.clients[i].nature;
        if matches!(nature, Nature::Deaf | Nature::Leaver) {
            return self.turn_of_deaf(i);
        }
        let rude = self.plan.rude && nature == Nature::Mixed;
        if rude && !self.ending && self.misbehave(i) {
            return;
        }
        let busy = self.busy();
        let waits = match nature {
            Nature::Crowd => !self.clients[i].expects.is_empty(),
            _ => self.clients[i].expects.len() >= self.clients[i].depth,
        };
        if busy && !waits {
            self.make_requests(i);
        }
        self.send(i);
        if busy || !self.clients[i].outbox.is_empty() {
            self.schedule_turn(i);
        }
    }

    /// True if the client is not the same afterwards.
    fn misbehave(&mut self, i: usize) -> bool {
        match self.rng.below(600) {
            0..=3 => {
                self.note(|| format!("client {i} leaves"));
                self.leave(i);
            }
            4..=5 => {
                self.note(|| format!("client {i} closes its half"));
                self.send(i);
                if !self.clients[i].outbox.is_empty() {
                    return false;
                }
                self.clients[i].stage = Stage::Closing;
                let conn = self.clients[i].conn;
                self.world.net.borrow_mut().fin(conn);
            }
            6..=7 => {
                self.clients[i].outbox.extend_from_slice(b"quit\r\n");
                self.note(|| format!("client {i} quits"));
                self.send(i);
                self.clients[i].stage = Stage::Closing;
                if !self.clients[i].outbox.is_empty() {
                    self.leave(i);
                }
            }
            8 if !self.clients[i].eager => {
                let stall = self.rng.range(SECOND, 45 * SECOND);
                self.clients[i].stalled = self.world.now + stall;
                return false;
            }
            _ => return false,
        }
        true
    }

    fn make_requests(&mut self, i: usize) {
        let nature = self.clients[i].nature;
        let n = self.rng.range(1, self.clients[i].depth as u64 + 1);
        let mut rng = Rng::new(self.rng.next());
        let mut tokens = std::mem::take(&mut self.clients[i].tokens);
        let mut history = std::mem::take(&mut self.history);
        let habits = self.plan.habits;
        // Where memory is short a key of several may be a miss.
        let roomy = self.plan.memory > 16 << 20;
        let calm = self.calm && roomy && self.plan.mode != Mode::Many;
        let must = |key: usize| {
            let settled = self.world.now > 0;
            (calm && settled && self.held(key)).then_some(self.epoch)
        };
        let mut maker = Maker {
            rng: &mut rng,
            history: &mut history,
            habits: &habits,
            tokens: &mut tokens,
            must: &must,
            settles: self.world.now + self.plan.window() + 10 * SECOND,
            out: Vec::new(),
            expects: Vec::new(),
        };
        for _ in 0..n {
            match nature {
                Nature::Crowd => maker.fight(),
                _ => maker.make(),
            }
        }
        let (out, expects) = (maker.out, maker.expects);
        self.history = history;
        let client = &mut self.clients[i];
        client.tokens = tokens;
        for mut e in expects {
            e.end += client.made;
            client.expects.push_back(e);
        }
        client.made += out.len() as u64;
        client.outbox.extend_from_slice(&out);
        self.note(|| format!("client {i} asks {:?}", lossy(&out)));
    }

    fn send(&mut self, i: usize) {
        let client = &mut self.clients[i];
        let all = client.outbox.len();
        let n = if self.rng.often(300) {
            self.rng.range(0, all as u64 + 1) as usize
        } else {
            all
        };
        let n = (self.world.net.borrow_mut()).put(client.conn, &client.outbox[..n]);
        client.outbox.drain(..n);
    }

    /// A client takes what it is owed.
    pub fn take(&mut self, i: usize) -> Result<(), String> {
        let client = &mut self.clients[i];
        client.take_due = false;
        if client.stage == Stage::Away {
            return Ok(());
        }
        if client.stalled > self.world.now {
            self.schedule_take(i);
            return Ok(());
        }
        let most = if client.eager {
            1 << 20
        } else {
            self.rng.range(1, 3000) as usize
        };
        (self.world.net.borrow_mut()).take(client.conn, most, &mut client.inbox);
        while self.answer(i)? {}
        let (left, ended) = {
            let net = self.world.net.borrow();
            let c = &net.conns[self.clients[i].conn];
            (!c.out.is_empty(), c.out.fin)
        };
        if left {
            self.schedule_take(i);
        } else if ended {
            self.ended(i)?;
        }
        Ok(())
    }

    /// magent closed.
    fn ended(&mut self, i: usize) -> Result<(), String> {
        let client = &self.clients[i];
        let owed = client.expects.len();
        let asked_for = client.stage == Stage::Closing && owed == 0;
        let too_slow = !client.eager;
        let (inbox, stage) = (lossy(&client.inbox), client.stage);
        self.note(|| format!("client {i} is closed by magent"));
        self.leave(i);
        if asked_for || too_slow {
            return Ok(());
        }
        Err(format!(
            "client {i} ({stage:?}) was closed without a reason; {owed} answers were owed, \
             half an answer: {inbox:?}"
        ))
    }

    /// The client leaves; what it asked for may still be done.
    fn leave(&mut self, i: usize) {
        let settles = self.world.now + self.plan.window() + 10 * SECOND;
        let client = std::mem::take(&mut self.clients[i]);
        for e in client.expects {
            for write in [e.write, e.create].into_iter().flatten() {
                self.history.abandon(write, settles);
            }
            if let Op::Flush { .. } = e.op {
                self.history.flushing(settles);
            }
        }
        self.by_conn.remove(&client.conn);
        let reset = self.rng.often(300);
        self.world.net.borrow_mut().close(client.conn, reset);
        let soon = match client.nature {
            Nature::Leaver => 200 * MS,
            _ => self.rng.pick(&[MS, 20 * MS, SECOND]),
        };
        if client.nature == Nature::Leaver && !self.busy() {
            return;
        }
        self.after(10_000, soon, Event::Arrive(i));
    }

    /// A magent is gone, and with it the connections of its clients.
    pub fn lose_clients_of(&mut self, magent: usize) {
        for i in 0..self.clients.len() {
            if i % self.plan.magents == magent && self.clients[i].stage != Stage::Away {
                self.leave(i);
            }
        }
    }

    /// At the end of a run everybody leaves.
    pub fn dismiss(&mut self, i: usize) {
        if self.clients[i].stage != Stage::Away {
            self.leave(i);
        }
    }

    /// Promise 6, for a client that takes its answers at once.
    pub fn check_deadline(&self, i: usize) -> Result<(), String> {
        let client = &self.clients[i];
        let Some(first) = client.expects.front().filter(|_| client.eager) else {
            return Ok(());
        };
        let Some(read) = first.read_at else {
            return Ok(());
        };
        let quiet = matches!(first.op, Op::Meta { quiet: true, .. });
        let since = read.max(client.not_before);
        let stands_still = self.world.nodes[i % self.plan.magents].stands_still;
        if stands_still || since < self.woke {
            return Ok(());
        }
        // Where memory is short keys are asked one by one, each with its own deadline, and requests
        // wait for their client's share.
        let portions = match self.plan.memory > 16 << 20 {
            true => 1,
            false => 3 * first.seen.len().max(1) as u64,
        };
        // Behind those who ask for more than a server answers at once, a request is taken up when half
        // of that is answered or has timed out.
        let queued = match self.plan.has_greedy_clients() {
            true => self.plan.timeout * MS,
            false => 0,
        };
        // A link that goes on when an answer is due is read for 0.1 s more, at either server.
        let queued = queued + u64::from(self.waits_for_change(since)) * self.plan.window();
        let queued = queued + self.rested();
        let late = since + queued + portions * (self.plan.deadline() + 230 * MS) + 20 * MS;
        if self.world.now > late && !quiet {
            let after = (self.world.now - since) / MS;
            return Err(format!(
                "client {i} c{} has no answer after {after} ms: {}",
                client.conn,
                answers::show(first)
            ));
        }
        Ok(())
    }
}
