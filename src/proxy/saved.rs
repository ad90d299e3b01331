//! The whole proxy under another program: both halves come to rest, are written down, and go on from there.

use super::{Me, Now, Proxy};
use crate::config::Prepared;
use crate::net::Socket;
use crate::saved::{Damaged, Loaded, Loader, Saved, Saver};
use std::io;
use std::time::{Duration, Instant};

/// Stands at the end of all that is written.
const END: u64 = 0x6d61_6765_6e74;

impl<S: Socket> Proxy<S> {
    /// True if nothing of an earlier configuration is left, which another program would not know.
    pub fn is_settled_in(&self) -> bool {
        self.pools.is_settled_in() && !self.clients.has_leaving()
    }

    /// A pool whose keys move after a reload: no other program can take over until that is done.
    pub fn moving_pool(&self) -> Option<&str> {
        self.pools.moving_pool()
    }

    /// Stops reading clients, and begins no work of its own (refills, probes); or goes on with both.
    pub fn pause(&mut self, paused: bool, now: Now) {
        self.set_now(now);
        self.clients.pause(paused);
        self.pools.pause(paused);
    }

    /// True if no request is at any server, or on its way to one.
    pub fn is_quiet(&self) -> bool {
        self.pools.is_quiet()
    }

    /// Counts all that clients wait for as late.
    pub fn hurry(&mut self, now: Now) {
        self.set_now(now);
        self.pools.hurry();
    }

    /// Takes servers that still owe an answer out of use for a moment.
    pub fn give_up(&mut self, now: Now) {
        self.set_now(now);
        self.pools.give_up();
    }

    /// Counts a change of programs that failed.
    pub fn count_failed_upgrade(&mut self) {
        self.counters.upgrades_failed += 1;
    }

    /// How many clients there are.
    pub fn clients(&self) -> usize {
        self.clients.count()
    }

    /// How long it has been running.
    pub fn age(&self, now: Now) -> Duration {
        now.at.saturating_duration_since(self.start)
    }

    /// Writes it, with the number that `socket` gives for each socket.
    pub fn save(&self, to: &mut Saver<'_>, socket: &mut dyn FnMut(&S) -> u64) {
        self.now.save(to);
        self.counters.save(to);
        self.turns.save(to);
        self.reset_at.save(to);
        self.last_reload.save(to);
        let names: Vec<(usize, &str)> = (self.pools.live_pools())
            .map(|at| (at, self.pools.config(at).name.as_str()))
            .collect();
        self.pools.save(&names, to, socket);
        self.clients.save(&names, to, socket);
        END.save(to);
    }

    /// One that goes on with what was written, also under the id that it had. `start` is when the first one began,
    /// `socket` makes a socket of
    /// its number and has it watched under a token.
    ///
    /// # Errors
    /// It is damaged, or names what is not configured.
    pub fn load(
        prepared: Prepared,
        start: Instant,
        now: Now,
        me: Me,
        from: &mut Loader<'_>,
        socket: &mut dyn FnMut(u64, usize) -> io::Result<S>,
    ) -> Loaded<Proxy<S>> {
        let begin = Now { at: start, ..now };
        let mut proxy = Proxy::prepared(prepared, begin, me);
        proxy.now = Saved::load(from)?;
        proxy.set_now(now);
        proxy.counters = Saved::load(from)?;
        proxy.counters.upgrades += 1;
        proxy.turns = Saved::load(from)?;
        proxy.reset_at = Saved::load(from)?;
        proxy.last_reload = Saved::load(from)?;
        proxy.pools.load(from, socket)?;
        let pools = &proxy.pools;
        (proxy.clients).load(from, |name| pools.pool_named(name), socket)?;
        match u64::load(from)? {
            END => Ok(proxy),
            _ => Err(Damaged("its end is not where it should be".into())),
        }
    }
}
