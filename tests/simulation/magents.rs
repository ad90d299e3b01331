//! Several magents before the same servers: they lose servers that others reach, are killed, started again, and
//! stand still.

use super::sim::{Event, MS, Sim};
use crate::common::world::{SECOND, State};

impl Sim {
    /// It was not killed and does not stand still.
    pub fn runs(&self, magent: usize) -> bool {
        let node = &self.world.nodes[magent];
        node.proxy.is_some() && !node.stands_still
    }

    /// All run, and reach all servers.
    pub fn magents_are_well(&self) -> bool {
        (0..self.plan.magents).all(|m| self.runs(m)) && self.world.cuts.is_empty()
    }

    /// True if a line of a magent, perhaps of one that has died, keeps a primary of today's ring out of use.
    pub fn is_one_kept_away(&self) -> bool {
        let names_primary = |line: &[u8]| {
            let mut primaries = self.rings.now.primaries.iter();
            primaries.any(|(port, _)| line.ends_with(format!(":{port}").as_bytes()))
        };
        self.rings.now.backups.iter().any(|(backup, _)| {
            let store = &self.world.servers[backup].store;
            let list = store.get("\0magent/a", self.world.now);
            list.is_some_and(|l| l.data.split(|b| *b == b'\n').any(names_primary))
        })
    }

    /// Something happens to one of them, or to its link to a primary.
    pub fn fail_magent(&mut self, server: u16) {
        let magent = self.rng.below(self.plan.magents as u64) as usize;
        if !self.magents_are_well() || self.rest.is_some() {
            return;
        }
        let is_primary = self.rings_have_primary(server);
        match self.rng.below(10) {
            0..=2 if is_primary => {
                let length = self.rng.range(10 * MS, 6 * SECOND);
                let reset = self.rng.often(500);
                self.note_fault(format!(
                    "magent {magent} does not reach s{server} for {} ms",
                    length / MS
                ));
                self.world.cut(magent, server, reset);
                self.after(length, length + 1, Event::Mend(magent, server));
            }
            3..=4 => {
                self.kill(magent);
            }
            5..=6 => {
                let longest = if self.rng.often(300) {
                    15 * SECOND
                } else {
                    SECOND
                };
                let length = self.rng.range(50 * MS, longest);
                self.note_fault(format!(
                    "magent {magent} stands still for {} ms",
                    length / MS
                ));
                self.world.nodes[magent].stands_still = true;
                self.after(length, length + 1, Event::Wake(magent));
            }
            _ => {}
        }
    }

    /// A magent is killed, for a while. Who dies while a backup lacks its mirrors leaves it behind.
    pub fn kill(&mut self, magent: usize) {
        let backups = &self.rings.now.backups;
        let is_well = |port: &u16| self.world.servers[port].state == State::Well;
        let are_well = backups.iter().all(|(port, _)| is_well(port));
        if self.ending || !self.magents_are_well() || !are_well || self.rest.is_some() {
            return;
        }
        let length = self.rng.range(10 * MS, 3 * SECOND);
        self.note_fault(format!("magent {magent} is killed for {} ms", length / MS));
        self.lose_clients_of(magent);
        self.world.kill(magent);
        self.killed = true;
        self.after(length, length + 1, Event::Start(magent));
    }

    /// A magent that was killed is started again.
    pub fn start(&mut self, magent: usize) {
        self.note_fault(format!("magent {magent} is started again"));
        self.world.start(magent);
        self.healed = self.world.now;
    }

    /// A magent that stood still goes on.
    pub fn wake(&mut self, magent: usize) {
        self.note_fault(format!("magent {magent} goes on"));
        self.world.nodes[magent].stands_still = false;
        self.woke = self.world.now;
        self.healed = self.world.now;
    }

    /// A magent reaches a server again.
    pub fn mend(&mut self, magent: usize, server: u16) {
        self.note_fault(format!("magent {magent} reaches s{server} again"));
        self.world.mend(magent, server);
        self.healed = self.world.now;
        for conn in self.world.links_of(server) {
            self.schedule_serve(conn);
            self.schedule_reply(conn);
        }
    }

    fn rings_have_primary(&self, server: u16) -> bool {
        self.rings
            .now
            .primaries
            .iter()
            .any(|(port, _)| *port == server)
    }
}
