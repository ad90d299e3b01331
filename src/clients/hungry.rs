//! Clients that wait for memory.

use super::Clients;
use super::active::Intake;
use super::client::{Ending, Pause};
use super::input::Input;
use super::intake;
use crate::buffer::CHUNK;
use crate::net::Socket;
use crate::work::Work;

/// Clients that wait for memory and are looked at in one turn.
const HUNGRY: usize = 64;

impl<S: Socket> Clients<S> {
    /// Lets clients that waited for memory go on once they have a share again. The first of the
    /// others may be read all the same, so that half-sent requests that wait for each other come to
    /// an end: returns that client and how many bytes to read.
    pub fn next_hungry(&mut self) -> Option<(usize, usize)> {
        for _ in 0..HUNGRY.min(self.hungry.len()) {
            let key = self.hungry.pop_front()?;
            let Some(client) = self.table.get_mut(key) else {
                continue;
            };
            client.pause.remove(Pause::MEMORY);
            if client.ending != Ending::Open {
                continue;
            }
            let most = self.budget.share().max(self.budget.least());
            if most > client.holds() || !client.conn.is_readable() {
                self.list(key);
                continue;
            }
            match self.budget.common().min(CHUNK) {
                0 => self.refuse(key),
                common => return Some((key, common)),
            }
        }
        None
    }

    /// [`Clients::fill`] for a client that may be read beyond its share.
    pub fn fill_hungry(
        &mut self,
        key: usize,
        most: usize,
        input: &mut Input,
        work: &mut Work,
    ) -> bool {
        self.read(key, input, most, work)
    }

    /// Refuses what a client is sending: there is no memory for it at all.
    fn refuse(&mut self, key: usize) {
        let Some(client) = self.table.get_mut(key) else {
            return;
        };
        let Some(active) = client.active.as_mut() else {
            client.pause.add(Pause::MEMORY);
            return self.hungry.push_back(key);
        };
        match std::mem::take(&mut active.intake) {
            Intake::Value(value) => {
                self.no_memory_to_store(key, &value.request, value.missing);
                self.spares.give_arriving(value);
            }
            intake if active.partial.len() > intake::LINE => {
                active.intake = intake;
                self.no_memory_for_partial(key);
            }
            intake => {
                active.intake = intake;
                client.pause.add(Pause::MEMORY);
                self.hungry.push_back(key);
            }
        }
        self.account(key);
    }
}
