//! What operators see and do: what the door asks of the proxy, and nothing else of it.

use super::Proxy;
use super::stats::Told;
use crate::clients::Seen;
use crate::logger;
use crate::net::Socket;
use crate::pools::{Asker, Lines, Merged};
use crate::stats::SlowRequest;
use crate::time::SECOND;
use std::borrow::Cow;

/// The answer to an operator's `stats`.
pub enum Stats {
    /// Names and values.
    Lines(Lines),
    /// Lines as they stand.
    Text(String),
    /// An error, without its line end.
    Refused(Cow<'static, str>),
    /// Servers are asked: [`Proxy::take_report`] has the answer later.
    Later,
}

impl<S: Socket> Proxy<S> {
    /// `stats` with these arguments, of all pools, for the operator of this number. `None`: there is
    /// none of that name.
    pub fn operator_stats(&mut self, operator: usize, arguments: &str) -> Option<Stats> {
        Some(match self.tell_stats(None, arguments, false) {
            Told::Lines(lines) => Stats::Lines(lines),
            Told::Text(text) => Stats::Text(text),
            Told::Refused(why) => Stats::Refused(why),
            Told::Primaries(line, totals) => {
                let asker = Asker::Operator(operator);
                self.pools
                    .ask_primaries(asker, None, &line, totals, &mut self.clients);
                Stats::Later
            }
            Told::Unknown => return None,
        })
    }

    /// The next merged answer of servers to an operator's `stats`, with the operator's number.
    pub fn take_report(&mut self) -> Option<(usize, Merged)> {
        self.pools.take_report()
    }

    /// True until it was told to stop.
    pub fn is_serving(&self) -> bool {
        self.clients.admits()
    }

    /// Places of clients, used or not; they are numbered from 0.
    pub fn client_places(&self) -> usize {
        self.clients.places()
    }

    /// The client in this place with the name of its pool, if there is one.
    pub fn client_at(&self, place: usize) -> Option<(Seen, &str)> {
        let seen = self.clients.seen_at(place)?;
        let pool = &self.pools.config(seen.pool).name;
        Some((seen, pool))
    }

    /// Closes the client of this number at once.
    ///
    /// # Errors
    /// A line that says why not.
    pub fn kill(&mut self, number: &str) -> Result<(), String> {
        match self.clients.kill(number) {
            true => Ok(()),
            false => Err(format!("no client {number}")),
        }
    }

    /// The last requests that took long, oldest first, each with when it was answered, in seconds since
    /// the epoch, and the name of its pool.
    pub fn slow_requests(&self) -> impl Iterator<Item = (u64, &str, &SlowRequest)> {
        self.clients.slow.iter().map(|r| {
            let at = self.unix - self.now.since(r.at) / SECOND;
            (at, &self.pools.config(r.pool).name[..], r)
        })
    }

    /// Where a key goes and why, in each pool.
    pub fn routes(&mut self, key: &[u8]) -> Vec<Lines> {
        let pools: Vec<usize> = self.pools.live_pools().collect();
        let mut route = |pool| self.pools.stats_route(Some(pool), key);
        pools.into_iter().map(&mut route).collect()
    }

    /// Forgets the slow requests.
    pub fn forget_slow(&mut self) {
        self.clients.slow.clear();
    }

    /// Takes a server out of use until [`Proxy::end_drain`].
    ///
    /// # Errors
    /// A line that says why not.
    pub fn drain_server(&mut self, name: &str) -> Result<(), String> {
        self.pools.drain(name)
    }

    /// Uses a drained server again.
    ///
    /// # Errors
    /// A line that says why not.
    pub fn end_drain(&mut self, name: &str) -> Result<(), String> {
        self.pools.end_drain(name)
    }

    /// Fills a server with what it lacks.
    ///
    /// # Errors
    /// A line that says why not.
    pub fn refill_server(&mut self, name: &str) -> Result<(), String> {
        self.pools.refill(name)
    }

    /// Compares a server with its partners; `stats verify` tells what comes of it.
    ///
    /// # Errors
    /// A line that says why not.
    pub fn verify_server(&mut self, name: &str) -> Result<(), String> {
        self.pools.verify(name)
    }

    /// Asks a server whether it answers.
    ///
    /// # Errors
    /// A line that says why not.
    pub fn probe_server(&mut self, name: &str) -> Result<(), String> {
        self.pools.probe(name)
    }

    /// The next reload ends the moves of keys that are under way; or it is refused if it moves them again.
    pub fn end_moves_at_reload(&mut self, ends: bool) {
        self.pools.end_moves_at_reload(ends);
    }

    /// The configuration in force as a file that `-c` reads.
    pub fn configuration(&self) -> String {
        self.config.as_file()
    }

    /// From now on so much is logged; see [`logger::start`].
    pub fn set_verbosity(&mut self, verbosity: u8) {
        logger::set_verbosity(verbosity);
    }
}
