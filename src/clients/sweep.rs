//! Sweeps over all clients, for those that stall, idle or are to leave: one each second, in pieces.

use super::active::Intake;
use super::client::{Ending, Pause};
use super::{Clients, intake};
use crate::net::Socket;
use crate::time::{SECOND, Time};
use crate::work::{REQUEST, Work};

/// A sweep begins this often, in nanoseconds.
const INTERVAL: u64 = SECOND;

/// A longer gap between two turns, in nanoseconds, means that magent itself was stopped: with
/// clients there, sweeps wake it every second.
const STALL: u64 = 2 * INTERVAL;

/// Clients swept in one turn.
const PIECE: usize = 1024;

/// A client that takes nothing of what it is owed, or stops in the middle of a large request,
/// is closed after so long, in nanoseconds.
const STALLED: u64 = 30 * SECOND;

/// A half-sent request up to this size, in bytes, may take for ever while memory is not short:
/// people type slowly.
const HALF_SENT: usize = 64 * 1024;

/// Clients that are to leave get so long to finish, in nanoseconds.
const LEAVE: u64 = 5 * SECOND;

/// Where the present sweep is.
#[derive(Debug, Default)]
pub struct Sweep {
    /// The next place of the table; 0 between two sweeps.
    next: usize,
    /// When the last sweep began.
    since: Time,
    /// When the last turn was.
    last: Time,
}

/// Clients that finish what they are owed and are closed.
#[derive(Debug, Default)]
pub struct Leaving {
    clients: Vec<usize>,
    /// When reading from them stops.
    until: Option<Time>,
}

impl<S: Socket> Clients<S> {
    /// When the next sweep is due, or the end of what clients that leave are given.
    pub fn next_alarm(&self) -> Option<Time> {
        let sweep = match self.sweep.next {
            0 if self.table.is_empty() && !self.budget.was_high() => None,
            0 => Some(self.sweep.since.plus(INTERVAL)),
            _ => Some(self.now),
        };
        let hungry = self.has_hungry().then(|| self.now.plus(SECOND / 100));
        [sweep, self.leaving.until, hungry]
            .into_iter()
            .flatten()
            .min()
    }

    /// Does what is due. True if a sweep came to its end.
    pub fn expire(&mut self, work: &mut Work) -> bool {
        self.end_leaving();
        let last = std::mem::replace(&mut self.sweep.last, self.now);
        if self.now.since(last) > STALL {
            // What clients sent meanwhile has not been read.
            (self.sweep.next, self.sweep.since) = (0, self.now);
        }
        if self.sweep.next == 0 {
            if self.now < self.sweep.since.plus(INTERVAL) {
                return false;
            }
            self.sweep.since = self.now;
        }
        let end = (self.sweep.next + PIECE).min(self.table.places());
        for place in self.sweep.next..end {
            if let Some(key) = self.table.key_at(place) {
                self.sweep_one(key);
            }
        }
        work.count((end - self.sweep.next) * REQUEST / 16);
        let is_over = end == self.table.places();
        self.sweep.next = if is_over { 0 } else { end };
        is_over
    }

    fn sweep_one(&mut self, key: usize) {
        let half_sent_limit = self.budget.share().clamp(intake::LINE, HALF_SENT);
        let Some(client) = self.table.get(key) else {
            return;
        };
        let quiet = self.now.since(client.last_moved);
        let (owes, half_sent) = client.active.as_ref().map_or((false, 0), |a| {
            let half = match &a.intake {
                Intake::Head => a.partial.len(),
                Intake::Value(value) => value.bytes.len(),
                Intake::Swallow(_) | Intake::Keys(_) => 0,
            };
            (!a.out.is_empty(), half)
        });
        let idle = self.pools[client.pool as usize].idle_timeout;
        // A client that is not read or not parsed may have sent the rest.
        let is_read_up = (client.pause.is_empty() || client.pause == Pause::MEMORY)
            && !client.conn.is_readable()
            && !client.is_unparsed();
        let counter = if owes && quiet >= STALLED && client.is_worth_writing() {
            &mut self.counters.limit_client_stalled
        } else if half_sent > half_sent_limit && quiet >= STALLED && is_read_up {
            &mut self.counters.limit_client_half_sent
        } else if client.is_answered() && idle > 0 && quiet >= idle {
            &mut self.counters.limit_client_idle
        } else {
            return;
        };
        *counter += 1;
        self.end(key, Ending::Dead);
    }

    /// True while some finish that belong to no listener any more.
    pub fn has_leaving(&self) -> bool {
        !self.leaving.clients.is_empty()
    }

    /// All clients are to finish and leave, and no other is admitted.
    pub fn leave_all(&mut self) {
        self.closed = true;
        self.leave(self.table.keys().collect());
    }

    /// Makes these clients finish and leave: what has arrived is still answered.
    fn leave(&mut self, clients: Vec<usize>) {
        for key in &clients {
            // The event for what has arrived may not have come yet.
            if let Some(client) = self.table.get_mut(*key) {
                client.conn.note(true, false, false);
            }
            self.list(*key);
        }
        if !clients.is_empty() {
            self.leaving.until = Some(self.now.plus(LEAVE));
        }
        self.leaving.clients.extend(clients);
    }

    /// Ends the leaving clients that are owed nothing and have nothing left to read; once their
    /// time is over the others are not read any more.
    fn end_leaving(&mut self) {
        let Some(until) = self.leaving.until else {
            return;
        };
        let is_over = self.now >= until;
        let mut leaving = std::mem::take(&mut self.leaving.clients);
        leaving.retain(|key| {
            let Some(client) = self.table.get(*key) else {
                return false;
            };
            let is_quiet =
                client.is_answered() && !client.conn.is_readable() && !client.is_unparsed();
            let ending = match () {
                () if is_quiet => Ending::Dead,
                () if is_over => Ending::AfterAnswers,
                () => return true,
            };
            self.end(*key, ending);
            false
        });
        if leaving.is_empty() {
            self.leaving.until = None;
        }
        self.leaving.clients = leaving;
    }

    /// The listeners as they are now: the pool of each, and for each former one its present number.
    /// Clients whose listener is gone finish what they are owed and leave.
    pub fn move_listeners(&mut self, pools: Vec<u32>, moves: &[Option<usize>]) {
        self.listeners = pools;
        let mut leaving = Vec::new();
        let keys: Vec<usize> = self.table.keys().collect();
        for key in keys {
            let Some(client) = self.table.get_mut(key) else {
                continue;
            };
            // Clients that are leaving already belong to no listener.
            let Some(place) = moves.get(client.listener as usize) else {
                continue;
            };
            match place.and_then(|at| Some((at, *self.listeners.get(at)?))) {
                Some((listener, pool)) => {
                    self.pools[client.pool as usize].connected -= 1;
                    self.pools[pool as usize].connected += 1;
                    client.listener = listener as u16;
                    client.pool = pool;
                }
                None => {
                    client.listener = u16::MAX;
                    leaving.push(key);
                }
            }
        }
        self.leave(leaving);
    }
}
