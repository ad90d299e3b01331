//! What a magent that died has left undone: between a primary's answer and its mirror it leaves the backup a
//! write behind.
//!
//! ```text
//!  taken out of the beacon's list ─▶ of a primary: it is compared with its backups, which get what it holds
//!      the line of one that died  └▶ of a backup: a primary whose list was empty at the start has restarted
//!                                    since: it is refilled
//! ```
//!
//! Whoever takes the line out by compare-and-set repairs, so it is done once. If that one dies, its own line
//! is another death. A list that still has the line shows more: the server has run without restart and flush
//! since before the death.

use super::server::distinct;
use super::verify::Repair;
use super::{Pools, ServerId};
use crate::marks::times::RENEW;
use crate::net::Socket;
use crate::time::Time;

/// From a death that was seen on a backup until its primary is refilled, in nanoseconds. If the dead one's line stands
/// on the primary too, it was seen there by then.
const AFTER: u64 = 3 * RENEW;

impl<S: Socket> Pools<S> {
    /// A magent died that used a server, as its line there showed, which this one has taken out; without
    /// `is_certain` perhaps, or the server has restarted meanwhile.
    pub(super) fn mourn(&mut self, id: ServerId, is_certain: bool) {
        let now = self.now;
        let Some(server) = self.servers.get(id) else {
            return;
        };
        let has_backups = |pool: &u32| !self.pools[*pool as usize].backup_ids.is_empty();
        let is_primary = server.primary_of.iter().any(has_backups);
        let pools = server.backup_of.iter();
        let primaries = pools.flat_map(|pool| &self.pools[*pool as usize].primary_ids);
        let primaries: Vec<ServerId> = primaries.copied().filter(|p| *p != id).collect();
        if is_primary {
            // It has run since before that death, whatever was found at the start.
            if let Some(server) = self.servers.get_mut(id).filter(|_| is_certain) {
                server.board.was_empty = false;
            }
            self.repair(id, is_certain);
        }
        for primary in distinct(&primaries) {
            if let Some(server) = self.servers.get_mut(primary) {
                server.board.bereft_since.get_or_insert(now);
            }
        }
    }

    /// A primary that this magent found without any list has lost what the dead knew of it: it is refilled
    /// in their place, if it has no line of theirs.
    pub(super) fn fill_bereft(&mut self, id: ServerId) {
        let now = self.now;
        let Some(board) = self.servers.get_mut(id).map(|s| &mut s.board) else {
            return;
        };
        let is_due = |since| now.since(since) >= AFTER;
        if board.was_empty && board.bereft_since.is_some_and(is_due) {
            (board.bereft_since, board.was_empty) = (None, false);
            self.wants_refill(id);
        }
    }

    /// Compares a primary with its backups, and mends these; `deletes`: of what it lacks, too.
    pub(super) fn repair(&mut self, id: ServerId, deletes: bool) {
        if let Some(why) = self.not_compared(id) {
            if let Some(server) = self.servers.get(id) {
                log::warn!(
                    "{}: a magent that used it died; its backups are not repaired: it {why}",
                    server.title
                );
            }
            return;
        }
        match self.refills.job(id, true) {
            Some(_) => self.list_anew(id, true),
            None => self.wants_verify(id),
        }
        let job = self.refills.job(id, true).and_then(|r| r.verify.as_mut());
        if let Some(verify) = job {
            let before = verify.repair.unwrap_or(Repair {
                deletes,
                mended: 0,
                last: Time(0),
            });
            verify.repair = Some(Repair {
                deletes: deletes && before.deletes,
                ..before
            });
        }
    }

    /// True if a server is being repaired by this magent, or will be.
    pub(super) fn repairs(&self, id: ServerId) -> bool {
        let mut jobs = self.refills.jobs.iter();
        jobs.any(|r| r.target == id && r.repair().is_some())
    }
}
