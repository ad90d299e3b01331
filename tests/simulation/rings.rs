//! Rings that reloads change, and what may be read of keys that move.
//!
//! A move takes as long as keys are fetched and copied from where they were. Until its end a server that a key
//! moved from holds nothing of it that was changed since; what is changed later may be old there
//! (README), so before a key comes back to such a server the operator of these runs deletes it.

use super::history;
use super::plan::{Mode, Plan};
use super::sim::{Event, MS, Sim, TTL_DIFFERS};
use crate::common::keys;
use crate::common::rng::Rng;
use crate::common::world::{Item, SECOND};
use std::collections::HashMap;

/// Servers by port, with their weights, in order.
type Farm = Vec<(u16, u64)>;

/// Where keys go.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Ring {
    pub primaries: Farm,
    pub backups: Farm,
}

/// The server of a farm that a key goes to, by its number.
fn home(name: &str, farm: &Farm) -> usize {
    let slots = farm.iter().enumerate();
    let slots = slots.flat_map(|(i, (_, weight))| (0..*weight).map(move |_| i));
    let slots: Vec<usize> = slots.collect();
    slots[keys::home(name, slots.len())]
}

impl Ring {
    /// The ring with which a run begins.
    pub fn first(plan: &Plan) -> Ring {
        let farm = |from: u16, n: usize| (from..from + n as u16).map(|p| (p, 1)).collect();
        let start = plan.ports().start;
        Ring {
            primaries: farm(start, plan.primaries),
            backups: farm(start + plan.primaries as u16, plan.backups),
        }
    }

    /// Primary and backup of a key.
    pub fn place(&self, key: usize) -> (u16, Option<u16>) {
        let name = history::key_name(key);
        let primary = self.primaries[home(&name, &self.primaries)].0;
        if self.backups.is_empty() {
            return (primary, None);
        }
        let (n, first) = (self.backups.len(), home(&name, &self.backups));
        let mut all = (0..n).map(|i| self.backups[(first + i) % n].0);
        (primary, all.find(|port| *port != primary))
    }

    /// True if it has this server.
    pub fn has(&self, port: u16) -> bool {
        let mut all = self.primaries.iter().chain(&self.backups);
        all.any(|(p, _)| *p == port)
    }

    /// Another one: something about it is changed, or all of it.
    fn changed(&self, rng: &mut Rng, plan: &Plan) -> Ring {
        let mut ring = self.clone();
        let unused: Vec<u16> = plan.ports().filter(|p| !self.has(*p)).collect();
        let last = self.primaries.len() - 1;
        let at = rng.below(self.primaries.len() as u64) as usize;
        match rng.below(8) {
            0..=1 if !unused.is_empty() => ring.primaries.push((rng.pick(&unused), 1)),
            2 if last > 0 => drop(ring.primaries.remove(at)),
            3 => ring.primaries[at].1 += rng.range(1, 3),
            4 => ring.primaries.swap(at, last),
            5 if !unused.is_empty() && !self.backups.is_empty() => {
                ring.backups[0].0 = rng.pick(&unused);
            }
            6 if !self.backups.is_empty() => {
                let (primary, backup) = (ring.primaries[at].0, ring.backups[0].0);
                (ring.primaries[at].0, ring.backups[0].0) = (backup, primary);
            }
            _ => return Ring::of(rng, plan),
        }
        ring
    }

    /// Any servers, as many backups as the run has, or fewer.
    fn of(rng: &mut Rng, plan: &Plan) -> Ring {
        let mut ports: Vec<u16> = plan.ports().collect();
        for i in (1..ports.len()).rev() {
            ports.swap(i, rng.below(i as u64 + 1) as usize);
        }
        let backups = ports.split_off(ports.len() - plan.backups);
        let some = rng.range(1, ports.len() as u64 + 1) as usize;
        let farm = |ports: &[u16]| ports.iter().map(|p| (*p, 1)).collect();
        Ring {
            primaries: farm(&ports[..some]),
            backups: farm(&backups),
        }
    }
}

/// The rings of a run.
#[derive(Default, Debug)]
pub struct Rings {
    pub now: Ring,
    /// While keys move.
    pub before: Option<Ring>,
    /// When the last change was.
    pub since: u64,
    /// What [`Sim::epoch`] was then, if all was well.
    calm: Option<u64>,
    /// Until then servers take their time: much is under way while the ring changes.
    pub slow_until: u64,
    /// What servers held when a key had moved away from them: how much had been asked of the key
    /// then. They may keep that as long as nothing more is asked.
    kept: HashMap<(u16, usize), u64>,
}

impl Rings {
    /// The first ring.
    pub fn new(now: Ring) -> Rings {
        Rings {
            now,
            ..Rings::default()
        }
    }

    /// True while all servers take their time, but less than anybody waits for.
    pub fn is_slow(&self, now: u64) -> bool {
        now < self.slow_until
    }

    /// Who had a key before, if it has another primary since.
    pub fn givers(&self, key: usize) -> Vec<u16> {
        let Some(before) = &self.before else {
            return Vec::new();
        };
        let (primary, backup) = before.place(key);
        match primary == self.now.place(key).0 {
            true => Vec::new(),
            false => [Some(primary), backup].into_iter().flatten().collect(),
        }
    }
}

impl Sim {
    /// The operator is about to change the ring.
    pub fn before_change(&mut self) {
        if self.ending || self.world.now > self.plan.length {
            return;
        }
        self.after(SECOND, 8 * SECOND, Event::BeforeChange);
        // Where reads and writes are cut short each takes many turns.
        if !self.plan.choppy && self.rng.often(500) {
            self.rings.slow_until = self.world.now + 400 * MS;
        }
        self.after(0, 200 * MS, Event::ChangeRing);
    }

    /// The operator changes the ring, unless keys are still on their way to the one before.
    pub fn change_ring(&mut self) {
        let next = self.rings.now.changed(&mut self.rng, &self.plan);
        if next == self.rings.now {
            return;
        }
        if self.rings.before.is_none() {
            self.clean(&next);
        }
        let refused = self.world.try_reload(self.plan.config_of(&next));
        self.note_fault(match &refused {
            Ok(()) => format!("the ring changes: {next:?}"),
            Err(why) => format!("refused: {why}"),
        });
        let is_moving = self.rings.before.is_some();
        assert_eq!(refused.is_err(), is_moving, "{refused:?}");
        if is_moving {
            return;
        }
        let before = std::mem::replace(&mut self.rings.now, next);
        self.rings.before = Some(before);
        self.rings.since = self.world.now;
        self.rings.calm = (self.calm && self.all_well()).then_some(self.epoch);
    }

    /// Deletes what may be old on servers that get keys back.
    fn clean(&mut self, next: &Ring) {
        for key in 0..self.plan.habits.keys {
            let (primary, backup) = next.place(key);
            let today = self.rings.now.place(key);
            for port in [Some(primary), backup].into_iter().flatten() {
                let is_kept = self.rings.kept.get(&(port, key)) == Some(&self.changes(key));
                if port == today.0 || Some(port) == today.1 {
                    continue;
                }
                // A touch is no change of a value, but may be old there as well.
                let name = history::key_name(key);
                let expires = |s: u16| {
                    let store = &self.world.servers[&s].store;
                    store.get(&name, self.world.now).map(|i| i.expires)
                };
                let ttls = expires(port).zip(expires(today.0));
                let is_touched = ttls.is_some_and(|(a, b)| a.abs_diff(b) > TTL_DIFFERS);
                if !is_kept || is_touched {
                    let server = self.world.servers.get_mut(&port).expect("a server");
                    server.store.remove(&name);
                }
            }
        }
    }

    fn changes(&self, key: usize) -> u64 {
        self.history.keys[key].changes
    }

    /// A move has come to its end: nothing old is left where keys were.
    pub fn moved(&mut self) -> Result<(), String> {
        let Some(before) = self.rings.before.take() else {
            return Ok(());
        };
        let held = self.world.holdings();
        assert!(self.world.now >= self.rings.since + self.plan.warm * SECOND);
        let is_quiet = held.servers_away == 0 && held.journals == 0 && held.pending == 0;
        let is_known = is_quiet && self.all_well() && self.plan.mode != Mode::Many;
        // Nothing went wrong since: keys were copied that nobody asked for.
        let is_copied = is_known && self.rings.calm == Some(self.epoch) && !self.plan.mad;
        self.note(|| format!("keys have moved; known: {is_known}, copied: {is_copied}"));
        for key in 0..self.plan.habits.keys {
            let (primary, backup) = before.place(key);
            let today = self.rings.now.place(key);
            for port in [Some(primary), backup].into_iter().flatten() {
                if port == today.0 || Some(port) == today.1 {
                    continue;
                }
                let state = &self.history.keys[key];
                let is_settled = state.open == 0 && self.world.now > state.settles;
                let changes = match is_known && is_settled {
                    true => self.changes(key),
                    false => u64::MAX,
                };
                self.rings.kept.insert((port, key), changes);
                if is_known {
                    self.audit_one(port, key)?;
                }
                if is_copied && is_settled {
                    self.check_moved(port, key)?;
                }
            }
        }
        Ok(())
    }

    /// What a server still holds of a key that moved from there, the key's primary has too.
    fn check_moved(&self, from: u16, key: usize) -> Result<(), String> {
        let (name, now) = (history::key_name(key), self.world.now);
        let held = |port: u16| self.world.servers[&port].store.get(&name, now);
        let (primary, _) = self.rings.now.place(key);
        let lasts = |item: &&Item| !item.is_stale() && item.expires > now + 4 * SECOND;
        match (held(from).filter(lasts), held(primary)) {
            (Some(_), None) => Err(format!("{name} is left on s{from}, and not on s{primary}")),
            (Some(old), Some(new)) if old.data != new.data => Err(format!(
                "{name} is {} on s{from} and {} on s{primary}",
                history::lossy(&old.data),
                history::lossy(&new.data)
            )),
            _ => Ok(()),
        }
    }

    /// True while a request that was read at this time may have waited for what was asked before a
    /// change, at servers that do not answer.
    pub fn waits_for_change(&self, read: u64) -> bool {
        let since = self.rings.since;
        since > 0 && read + self.plan.window() >= since && read <= since + 2 * self.plan.window()
    }
}

/// How long a run of changing rings is at least, in nanoseconds.
pub const LENGTH: u64 = 40 * SECOND;

/// The first change.
pub fn first_change(rng: &mut Rng) -> u64 {
    rng.range(200 * MS, 5 * SECOND)
}
