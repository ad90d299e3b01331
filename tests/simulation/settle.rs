//! What answers prove: that each is the next one owed, that it may fail, that it is not too old.

use super::answers::{self, Got};
use super::history::{Seen, lossy};
use super::plan::Mode;
use super::requests::{Expect, Op};
use super::sim::Sim;
use crate::common::world::{SECOND, State};

/// Requests of a new client that are asked at a time: `FIRST_SLOTS` of `clients::share`.
const FIRST_SLOTS: usize = 20;

impl Sim {
    /// One answer, if one is whole.
    pub fn answer(&mut self, i: usize) -> Result<bool, String> {
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
        let rings = [Some(&self.rings.now), self.rings.before.as_ref()];
        let has_none = rings.iter().flatten().any(|r| r.backups.is_empty());
        let expected = self.plan.mode == Mode::Many || has_none;
        // What waits too long for a backup that fails to say if it holds the key, asks it in
        // the end.
        let mut named = self.world.servers.iter();
        let server = named.find(|(port, _)| line.contains(&format!("127.0.0.1:{port} ")));
        // Who takes his time may be told of what failed long ago.
        let recent =
            self.world.now < self.healed + self.plan.window() + SECOND || !self.clients[i].eager;
        let is_backup = |port: u16| {
            let mut all = rings.iter().flatten().flat_map(|r| &r.backups);
            all.any(|(backup, _)| *backup == port)
        };
        if let Some((_, s)) = server.filter(|(port, _)| is_backup(**port)) {
            if recent || s.state != State::Well || !self.drained.is_empty() {
                return Ok(());
            }
        }
        // What it waits for another one to say may be too long for it.
        if self.plan.magents > 1 && (!self.calm || !self.clients[i].eager) {
            return Ok(());
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
            for (place, seen) in expect.seen.iter().enumerate() {
                let value = values.iter().find(|v| v.at == place);
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
        let waits = matches!(
            (&expect.op, next),
            (Op::Flush { .. } | Op::Stats, _) | (_, Some(Op::Flush { .. }))
        );
        // Where memory is short requests are asked one by one, and so they are behind those who ask
        // for more than a server answers at once.
        let one_by_one = self.plan.memory < 16 << 20 || self.plan.has_greedy_clients();
        // A client that has taken no answers yet has so many requests asked at a time, those without an answer
        // among them; the others are asked when those are answered.
        let is_full = self.clients[i].expects.len() >= FIRST_SLOTS / 2;
        if waits || one_by_one || is_full {
            self.clients[i].not_before = self.world.now;
        }
        if let Op::Flush { asked } = expect.op {
            if let Got::Done = got {
                self.history.flushed(asked);
            }
        }
        let done = matches!(got, Got::Done | Got::Number(_));
        let settles = self.world.now + self.plan.window() + 10 * SECOND;
        let failed = matches!(got, Got::Failed(_)).then_some(settles);
        for write in [expect.write, expect.create].into_iter().flatten() {
            self.history.answer(write, done, failed);
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
