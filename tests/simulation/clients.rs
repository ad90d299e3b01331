//! Clients that pipeline, split, read slowly, close their half and leave.

use super::answers::{self, Got};
use super::history::{Seen, lossy};
use super::plan::Mode;
use super::requests::{Expect, Maker, Op};
use super::sim::{Event, MS, Sim};
use crate::common::rng::Rng;
use crate::common::world::{SECOND, State};
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
    conn: usize,
    stage: Stage,
    /// It takes its answers as fast as they come.
    eager: bool,
    /// It takes nothing until then.
    stalled: u64,
    depth: usize,
    /// Not sent yet.
    outbox: Vec<u8>,
    /// Bytes of all requests made.
    made: u64,
    expects: VecDeque<Expect>,
    inbox: Vec<u8>,
    tokens: HashMap<usize, u64>,
    /// Of the quiet requests at the head, one failed.
    group_failed: bool,
    /// The deadline of a `flush_all` begins with the answer before it, that of what stands behind
    /// it with its own.
    not_before: u64,
    turn_due: bool,
    take_due: bool,
}

impl Sim {
    /// A client connects.
    pub fn arrive(&mut self, i: usize) {
        if self.ending || self.clients[i].stage != Stage::Away {
            return;
        }
        let cap = self.rng.pick(&[2048, 65_536, 1 << 20]);
        let Some(conn) = self.world.connect_client(0, 0, cap) else {
            return;
        };
        self.world.net.borrow_mut().conns[conn].choppy = self.plan.choppy;
        let rude = self.plan.rude;
        let client = Client {
            conn,
            stage: Stage::Open,
            eager: !rude || self.rng.often(700),
            depth: self.rng.pick(&[1, 3, 20]),
            ..Client::default()
        };
        self.note(|| format!("client {i} comes: c{conn}"));
        self.clients[i] = client;
        self.by_conn.insert(conn, i);
        self.schedule_turn(i);
    }

    fn schedule_turn(&mut self, i: usize) {
        if !std::mem::replace(&mut self.clients[i].turn_due, true) {
            let (from, to) = match self.rng.below(10) {
                0..=3 => (10_000, MS),
                4..=8 => (MS, 60 * MS),
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

    /// magent read, wrote or closed.
    pub fn client_touched(&mut self, i: usize) {
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
        if self.plan.rude && !self.ending && self.misbehave(i) {
            return;
        }
        let busy = self.world.now < self.plan.length && !self.ending;
        if busy && self.clients[i].expects.len() < self.clients[i].depth {
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
            settles: self.world.now + self.plan.deadline() + 10 * SECOND,
            out: Vec::new(),
            expects: Vec::new(),
        };
        for _ in 0..n {
            maker.make();
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
        let settles = self.world.now + self.plan.deadline() + 10 * SECOND;
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
        let soon = self.rng.pick(&[MS, 20 * MS, SECOND]);
        self.after(10_000, soon, Event::Arrive(i));
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
        let late = since + self.plan.deadline() + 20 * MS;
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

    /// One answer, if one is whole.
    fn answer(&mut self, i: usize) -> Result<bool, String> {
        let client = &mut self.clients[i];
        if client.inbox.is_empty() {
            return Ok(false);
        }
        let Some(first) = client.expects.front() else {
            return Err(format!(
                "client {i} c{} got what it did not ask for: {:?}",
                client.conn,
                lossy(&client.inbox)
            ));
        };
        if matches!(first.op, Op::Meta { quiet: true, .. }) {
            return self.quiet_answer(i);
        }
        let at = |e: String| format!("client {i} c{}: {e}", client.conn);
        let Some((got, n)) = answers::parse(first, &client.inbox).map_err(at)? else {
            return Ok(false);
        };
        client.inbox.drain(..n);
        let Some(first) = client.expects.pop_front() else {
            return Ok(false);
        };
        self.settle(i, &first, got)?;
        Ok(true)
    }

    /// A group of quiet requests and the `mn` behind it.
    fn quiet_answer(&mut self, i: usize) -> Result<bool, String> {
        let client = &mut self.clients[i];
        let Some(n) = client.inbox.iter().position(|b| *b == b'\n') else {
            return Ok(false);
        };
        let line = String::from_utf8_lossy(&client.inbox[..n])
            .trim_end()
            .to_string();
        if line.starts_with("SERVER_ERROR ") {
            client.inbox.drain(..n + 1);
            client.group_failed = true;
            return self.allow_failure(i, &line).map(|()| true);
        }
        let of = |e: &Expect| match &e.op {
            Op::Meta { opaque, .. } => line.split(' ').any(|w| w == format!("O{opaque}")),
            Op::Noop => line == "MN",
            _ => false,
        };
        let Some(at) = client.expects.iter().position(of) else {
            return Err(format!("client {i}: {line:?} answers nothing that is owed"));
        };
        let failed = client.group_failed;
        if matches!(client.expects[at].op, Op::Noop) {
            client.group_failed = false;
        } else if answers::parse(&client.expects[at], &client.inbox)?.is_none() {
            return Ok(false);
        }
        let silent: Vec<Expect> = client.expects.drain(..at).collect();
        let Some(first) = client.expects.pop_front() else {
            return Ok(false);
        };
        let parsed = answers::parse(&first, &client.inbox)?;
        let Some((got, n)) = parsed else {
            return Err(format!("client {i}: half an answer: {line:?}"));
        };
        client.inbox.drain(..n);
        for e in silent {
            let quiet = matches!(&e.op, Op::Meta { quiet: true, .. });
            if !quiet {
                return Err(format!("client {i}: no answer to {}", answers::show(&e)));
            }
            let got = match (&e.op, failed) {
                (_, true) => Got::Failed("one of a quiet group".into()),
                (Op::Meta { letter: 'g', .. }, _) => Got::Values(Vec::new()),
                _ => Got::Done,
            };
            self.settle_known(i, &e, got)?;
        }
        self.settle(i, &first, got)?;
        Ok(true)
    }

    fn settle(&mut self, i: usize, expect: &Expect, got: Got) -> Result<(), String> {
        if let Got::Failed(line) = &got {
            if !matches!(expect.op, Op::Flush { .. } | Op::TooLarge) {
                self.allow_failure(i, line)?;
            }
        }
        self.settle_known(i, expect, got)
    }

    /// With a backup, a server that fails alone is not noticed.
    fn allow_failure(&mut self, i: usize, line: &str) -> Result<(), String> {
        let memory = line.contains("out of memory") || line.contains("too large");
        let expected = self.plan.mode == Mode::Many || self.plan.backups == 0;
        // What waits too long for a backup that fails to say if it holds the key, asks it in
        // the end.
        let mut named = self.world.servers.iter();
        let server = named.find(|(port, _)| line.contains(&format!("127.0.0.1:{port} ")));
        let recent = self.world.now < self.healed + self.plan.deadline() + SECOND;
        if let Some((_, s)) = server.filter(|(port, _)| self.plan.backup_ports().contains(port)) {
            if recent || s.state != State::Well {
                return Ok(());
            }
        }
        if memory || (expected && self.plan.mode != Mode::Calm) {
            return Ok(());
        }
        Err(format!("client {i} is told {line:?} though only one fails"))
    }

    /// What an answer proves.
    fn settle_known(&mut self, i: usize, expect: &Expect, got: Got) -> Result<(), String> {
        self.answered += 1;
        let strict = self.plan.mode != Mode::Many;
        let at = |e: String| format!("client {i}: {e}\n  asked: {}", answers::show(expect));
        if let Got::Number(number) = got {
            let seen = &expect.seen[0];
            self.history.check_count(seen, number, strict).map_err(at)?;
        }
        if let (Got::Values(values), Op::Read { .. } | Op::Meta { letter: 'g', .. }) =
            (&got, &expect.op)
        {
            let counters = self.plan.habits.keys - self.plan.habits.counters;
            for seen in &expect.seen {
                let value = values.iter().find(|v| v.key == seen.key);
                match value {
                    None => self.missed(seen).map_err(at)?,
                    Some(v) if seen.key >= counters => {
                        let text = String::from_utf8_lossy(&v.data).into_owned();
                        let number = text.trim_end().parse();
                        let number = number.map_err(|_| at(format!("counter {text:?}")))?;
                        self.history.check_count(seen, number, strict).map_err(at)?;
                    }
                    Some(v) => {
                        if let Some(cas) = v.cas {
                            self.clients[i].tokens.insert(v.key, cas);
                        }
                        self.history
                            .check(seen, v.flags, &v.data, strict)
                            .map_err(at)?;
                    }
                }
            }
        }
        let next = self.clients[i].expects.front().map(|e| &e.op);
        if let (Op::Flush { .. }, _) | (_, Some(Op::Flush { .. })) = (&expect.op, next) {
            self.clients[i].not_before = self.world.now;
        }
        if let Op::Flush { asked } = expect.op {
            if let Got::Done = got {
                self.history.flushed(asked);
            }
        }
        let done = matches!(got, Got::Done | Got::Number(_));
        for write in [expect.write, expect.create].into_iter().flatten() {
            self.history.answer(write, done);
        }
        Ok(())
    }

    /// A miss is a failure if the key was there all the time and nothing failed.
    fn missed(&self, seen: &Seen) -> Result<(), String> {
        let settled = self.history.keys[seen.key].settles < self.world.now;
        let calm = self.calm && seen.must == Some(self.epoch) && settled;
        if calm && self.history.unchanged(seen) && self.held(seen.key) {
            return Err(format!("key {} is there and was not found", seen.key));
        }
        Ok(())
    }
}
