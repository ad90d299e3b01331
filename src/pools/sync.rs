//! Journals: a server is sent the deletes of the keys that it missed before it is asked for them.
//!
//! ```text
//!  missed(key) ──▶ journal ──sync──▶ `delete key` on the key's own link ──answered──▶ forgotten
//!  handshake ──▶ settling ──▶ syncing: sent all that it missed while it was away ──▶ up
//! ```
//!
//! Deletes go out in pieces, so that no turn takes long. A server that is up may still have some
//! due (it was too full for their mirrors, or its ring changed): then the delete of a key goes out
//! before anything else that is asked for it.

use super::pairs::Pair;
use super::pending::{Ask, To};
use super::server::fnv;
use super::{NOBODY, Pools, ServerId};
use crate::health::{Cause, State};
use crate::marks::Debt;
use crate::net::Socket;
use crate::protocol::{Status, Traits, Verb, forms};
use crate::time::{SECOND, Time};
use crate::work::{REQUEST, Work};

impl<S: Socket> Pools<S> {
    /// The server missed what happened to a key.
    pub(super) fn journal(&mut self, id: ServerId, key: &[u8]) {
        let Some(server) = self.servers.get_mut(id) else {
            return;
        };
        if !server.meta && forms::needs_base64(key) {
            // It cannot hold it.
            return;
        }
        let before = server.journal.overflows();
        server.journal.add(key);
        let is_away = !server.follows.is_empty() && !server.health.is_up();
        self.note_overflow(id, before);
        self.list_server(id);
        if is_away {
            self.list_follower(id);
        }
    }

    fn note_overflow(&mut self, id: ServerId, before: u64) {
        let Some(server) = self.servers.get_mut(id) else {
            return;
        };
        if server.journal.overflows() > before {
            self.counters.limit_journal_overflows += 1;
            log::warn!(
                "{}: missed more than the journal holds; it will be flushed when it is back",
                server.title
            );
        }
    }

    /// Deletes a key on a server in the order of its link; the key is journaled until that is
    /// answered. Where the server is away it is journaled only.
    pub(super) fn invalidate(&mut self, id: ServerId, key: &[u8], hash: u64) {
        self.journal(id, key);
        if self.is_up(id) {
            self.counters.chases += 1;
            self.sync_key(id, key, hash);
        }
    }

    /// [`Pools::invalidate`] where the other farm may hold what is deleted here: keys that are
    /// absent from now on are looked for there.
    pub(super) fn invalidate_and_warm(&mut self, id: ServerId, key: &[u8], hash: u64) {
        self.invalidate(id, key, hash);
        let has_backup = self.has_backup(id);
        if let Some(server) = self.servers.get_mut(id).filter(|_| has_backup) {
            server.health.warm(self.now);
        }
    }

    /// True if a server is the primary of a pool that has backups.
    pub(super) fn has_backup(&self, id: ServerId) -> bool {
        let pools = self.servers.get(id).map(|s| &s.primary_of);
        pools.is_some_and(|all| {
            let with_backups = |p: &u32| self.pools[*p as usize].backups.is_some();
            all.iter().any(with_backups)
        })
    }

    /// Sends the delete of a key first if that is due, before anything is asked for the key.
    #[inline]
    pub(super) fn sync_first(&mut self, id: ServerId, key: &[u8], hash: u64) {
        if self.servers.get(id).is_some_and(|s| s.journal.is_due(key)) {
            self.sync_key(id, key, hash);
        }
    }

    /// Sends the delete of a journaled key.
    fn sync_key(&mut self, id: ServerId, key: &[u8], hash: u64) {
        let Some(server) = self.servers.get_mut(id) else {
            return;
        };
        let Some(stamp) = server.journal.mark_sent(key) else {
            return;
        };
        let mut line = Vec::new();
        let verb = forms::write_delete(key, &mut line);
        let pending = self.own(To::Delete(stamp), verb, Traits::WRITES, hash);
        self.send(id, pending, &Ask::line(verb, Traits::WRITES, &line));
    }

    /// Sends servers what they missed, a bounded amount.
    pub(super) fn sync_some(&mut self, work: &mut Work) {
        for _ in 0..self.to_sync.len() {
            if work.is_done() {
                return;
            }
            let Some(id) = self.to_sync.take() else {
                return;
            };
            if let Some(server) = self.servers.get_mut(id) {
                server.listed = false;
                if server.journal.free_some() {
                    self.list_server(id);
                }
                self.advance_server(id, work);
            }
        }
    }

    /// Moves a server on towards being used, and sends what it missed.
    fn advance_server(&mut self, id: ServerId, work: &mut Work) {
        let Some(server) = self.servers.get_mut(id) else {
            return;
        };
        match server.health.state() {
            State::Settling { .. } => self.settle_server(id),
            State::Syncing => {
                self.sync_flush(id);
                self.sync_due(id, work);
                self.end_sync(id);
            }
            State::Up => {
                self.sync_due(id, work);
                self.list_pairs_of(id);
            }
            State::Down { .. } | State::Probing => {}
        }
    }

    /// A server that answers is sent what it missed once it can execute nothing old any more.
    fn settle_server(&mut self, id: ServerId) {
        let now = self.now;
        let Some(server) = self.servers.get_mut(id) else {
            return;
        };
        let is_open = server.given_up > 0;
        if server.health.settled_at(is_open).is_none_or(|at| now < at) {
            return;
        }
        if is_open {
            // Given-up links have not ended for so long: the wait alone must do.
            let late: Vec<usize> = (self.given_up.keys())
                .filter(|k| self.given_up.get(*k).is_some_and(|g| g.server == id))
                .collect();
            late.into_iter().for_each(|k| self.end_given_up(k, false));
        }
        let Some(server) = self.servers.get_mut(id) else {
            return;
        };
        server.health.syncing();
        server.missed = !server.journal.is_empty();
        server.journal.mark();
        self.list_server(id);
    }

    /// Sends a server that returns the flush that it missed.
    pub(super) fn sync_flush(&mut self, id: ServerId) {
        let unix = self.unix;
        let Some(server) = self.servers.get_mut(id).filter(|s| !s.flushing) else {
            return;
        };
        let (stamp, line) = match (
            server.journal.take_flush_at(unix),
            server.journal.flush_due(),
        ) {
            (Some(at), _) => (0, format!("flush_all {at}\r\n")),
            (None, Some(stamp)) => (stamp, "flush_all\r\n".to_string()),
            (None, None) => return,
        };
        server.flushing = true;
        let pending = self.own(To::Flush(stamp), Verb::FlushAll, Traits::WRITES, 0);
        let ask = Ask::line(Verb::FlushAll, Traits::WRITES, line.as_bytes());
        self.send(id, pending, &ask);
    }

    fn sync_due(&mut self, id: ServerId, work: &mut Work) {
        while let Some(server) = self.servers.get_mut(id) {
            let has_room = |l: &usize| self.links.get(*l).is_some_and(|l| l.has_room());
            if !server.journal.has_due() || !server.links.iter().all(has_room) {
                // Answers list the server again.
                return;
            }
            if work.is_done() {
                return self.list_server(id);
            }
            let Some((key, stamp)) = server.journal.take_due() else {
                return;
            };
            let mut line = std::mem::take(&mut self.line);
            line.clear();
            let verb = forms::write_delete(&key, &mut line);
            let pending = self.own(To::Delete(stamp), verb, Traits::WRITES, fnv(&key));
            self.send(id, pending, &Ask::line(verb, Traits::WRITES, &line));
            self.line = line;
            work.count(REQUEST);
        }
    }

    /// A server is trusted once all that it missed while it was away is synced. What it missed
    /// since then follows key by key.
    fn end_sync(&mut self, id: ServerId) {
        let Some(server) = self.servers.get_mut(id) else {
            return;
        };
        let is_synced = server.health.state() == State::Syncing
            && server.losing == 0
            && !server.flushing
            && server.journal.flush_due().is_none()
            && server.journal.is_synced_to_mark();
        if !is_synced {
            return;
        }
        let missed_something = server.missed || !server.journal.is_empty();
        if let Some(away) = server.health.go_up(self.now) {
            let cause = server.outages.end(self.now).map_or("", Cause::text);
            let seconds = away as f64 / SECOND as f64;
            log::warn!("{}: up again after {seconds:.3} s ({cause})", server.title);
        }
        for pool in server.primary_of.iter().chain(&server.backup_of) {
            let pool = &mut self.pools[*pool as usize];
            pool.ring_is_stale |= pool.config.auto_eject || pool.ring.is_some();
        }
        if missed_something && self.has_backup(id) {
            if let Some(server) = self.servers.get_mut(id) {
                server.health.warm(self.now);
            }
        }
        self.primary_answers(id);
        self.partner_changed(id);
    }

    /// A delete of a journaled key was answered.
    pub(super) fn settle_delete(&mut self, id: ServerId, key: &[u8], stamp: u64, status: Status) {
        let Some(server) = self.servers.get_mut(id) else {
            return;
        };
        if matches!(status, Status::Done | Status::Absent) {
            server.journal.synced(key, stamp);
            self.list_server(id);
            self.wants_key(id, key);
        } else {
            server.journal.again(key, stamp);
            self.server_down(id, Cause::DeleteRefused, false);
        }
    }

    /// The flush that stands for a journal was answered.
    pub(super) fn settle_flush(&mut self, id: ServerId, stamp: u64, status: Status) {
        let Some(server) = self.servers.get_mut(id) else {
            return;
        };
        server.flushing = false;
        if status != Status::Done {
            log::error!(
                "{}: refuses flush_all, which it must be told: it stays down",
                server.title
            );
            return self.server_down(id, Cause::FlushRefused, false);
        }
        server.journal.flushed(stamp);
        self.list_server(id);
        if stamp > 0 {
            self.lost_keys(id);
        }
    }

    /// A delete or a flush of the journal was lost: it is sent once more.
    pub(super) fn sync_lost(&mut self, id: ServerId, to: To, key: &[u8]) {
        if let Some(server) = self.servers.get_mut(id) {
            match to {
                To::Delete(stamp) => server.journal.again(key, stamp),
                _ => server.flushing = false,
            }
            self.list_server(id);
        }
    }

    /// A server that is up missed more than its journal holds, or a flush: it goes down and
    /// returns, which flushes it.
    pub(super) fn resync_if_flushed(&mut self, id: ServerId) {
        let Some(server) = self.servers.get(id) else {
            return;
        };
        // A stand-in may keep what it holds until the ring changes.
        let stands_in = |p: &u32| self.pools[*p as usize].ring.is_some();
        let pairs = server.pairs.iter().chain(&server.follows);
        let mut pairs = pairs.filter_map(|id| self.pairs.get(*id));
        // Or its flush waits until its backup stops standing in, or those who died are past their time.
        let defers = |p: &Pair| match &p.backup {
            Some(backup) => backup.debt() == Debt::Flush { is_due: false },
            None => p.rules.has_line(),
        };
        let waits = server.primary_of.iter().any(stands_in) || pairs.any(defers);
        if server.health.is_up() && server.journal.flush_due().is_some() && !waits {
            self.server_down(id, Cause::JournalFull, true);
        }
    }

    /// A write was sent to a server that is not its key's home in the full ring: both will have to
    /// drop the key.
    pub(super) fn note_stray(&mut self, stand_in: ServerId, home: ServerId, key: &[u8]) {
        if home == NOBODY {
            return;
        }
        self.journal(home, key);
        let Some(server) = self.servers.get_mut(stand_in) else {
            return;
        };
        let before = server.journal.overflows();
        server.journal.add_stray(key);
        // From half on, so that keys that are noted until the answers come have room too.
        if server.journal.is_half_full() && !server.journal.has_due() {
            server.journal.ring_changed();
        }
        self.note_overflow(stand_in, before);
        self.list_server(stand_in);
    }

    /// When the next settling server may be sent what it missed.
    pub(super) fn next_settled(&self) -> Time {
        let settling = self
            .servers
            .values()
            .filter(|s| s.removed.is_none() && !self.paused);
        let at = settling.filter_map(|s| s.health.settled_at(s.given_up > 0));
        at.min().unwrap_or(Time::NEVER)
    }
}
