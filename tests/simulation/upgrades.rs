//! Another program takes over, as at USR2: what the one before knows is written down and read again, and all
//! promises hold.

use super::sim::{Event, MS, Sim};
use crate::common::world::SECOND;
use magent::proxy::Stats;

/// What is in flight comes to its end, as in the event loop.
#[derive(Debug)]
pub struct Rest {
    /// Counts the changes of a run.
    number: u64,
    since: u64,
    rounds: u32,
}

/// What is in flight gets so long to be answered, and then so long after each time that it is made late.
const ANSWERS: u64 = SECOND;
const FURTHER: u64 = 250 * MS;

/// After so many times servers that owe something are given up; after so many all stays as it was.
const GIVE_UP: u32 = 4;
const GIVE_UP_ALL: u32 = 8;

impl Sim {
    /// USR2.
    pub fn want_upgrade(&mut self) {
        if self.ending || self.world.now > self.plan.length {
            return;
        }
        self.after(500 * MS, 6 * SECOND, Event::Upgrade);
        if !self.runs(0) {
            return;
        }
        let proxy = self.world.proxy();
        let may = proxy.moving_pool().is_none() && proxy.is_settled_in();
        if !may || self.rest.is_some() {
            return;
        }
        let clock = self.world.clock();
        self.world.proxy().pause(true, clock);
        self.upgrades += 1;
        self.note_fault(format!(
            "another program wants to take over, {}",
            self.upgrades
        ));
        let number = self.upgrades;
        self.rest = Some(Rest {
            number,
            since: self.world.now,
            rounds: 0,
        });
        self.at(self.world.now + ANSWERS, Event::Hurry(number));
    }

    /// For how long clients have not been read: what stands behind a request in flight, a `flush_all` for
    /// instance, is taken up by the next program.
    pub fn rested(&self) -> u64 {
        let since = self.rest.as_ref().map(|rest| rest.since);
        since.map_or(0, |since| self.world.now - since)
    }

    /// What is in flight is late.
    pub fn hurry(&mut self, number: u64) -> Result<(), String> {
        let Some(rest) = self.rest.as_mut().filter(|rest| rest.number == number) else {
            return Ok(());
        };
        rest.rounds += 1;
        let (rounds, clock) = (rest.rounds, self.world.clock());
        self.note_fault(format!("what is in flight is late, {rounds}"));
        match rounds {
            GIVE_UP_ALL.. => return Err("what is in flight does not come to an end".into()),
            GIVE_UP.. => self.world.proxy().give_up(clock),
            _ => self.world.proxy().hurry(clock),
        }
        self.at(self.world.now + FURTHER, Event::Hurry(number));
        Ok(())
    }

    /// The other program takes over as soon as nothing is in flight.
    pub fn advance_upgrade(&mut self) -> Result<(), String> {
        if self.rest.is_none() || !self.world.proxy().is_quiet() {
            return Ok(());
        }
        let before = self.known();
        self.world.hand_over(0);
        let after = self.known();
        self.rest = None;
        self.note_fault("another program has taken over".into());
        // The rest of a get in portions is asked for from now on.
        for client in &mut self.clients {
            client.not_before = self.world.now;
        }
        match before == after {
            true => Ok(()),
            false => {
                let pairs = before.iter().zip(&after).filter(|(b, a)| b != a);
                Err(format!(
                    "known before, and after: {:?}",
                    pairs.collect::<Vec<_>>()
                ))
            }
        }
    }

    /// What must be the same under either program: all numbers, but for those of links that were being opened, of
    /// what is done anew, and of memory that is not full.
    fn known(&mut self) -> Vec<(String, String)> {
        const ANEW: [&str; 13] = [
            ":connections",
            ":kept_away_by",
            ":other_magents",
            ":marks",
            ":refill",
            ":verify",
            ":journal_bytes",
            "latency_10s",
            "bytes_in_flight",
            "rusage",
            "upgrades",
            "turns_",
            "turn_us",
        ];
        let proxy = self.world.proxy();
        let mut all = Vec::new();
        for what in ["servers", "proxy"] {
            match proxy.operator_stats(0, what) {
                Some(Stats::Lines(lines)) => all.extend(lines),
                _ => unreachable!("these are lines"),
            }
        }
        all.retain(|(name, _)| !ANEW.iter().any(|other| name.contains(other)));
        all
    }
}
