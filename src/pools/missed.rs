//! What follows for a backup that missed mirrors of this magent, or of one that died: while its line stands on the
//! primary, nobody reads the backup in the primary's place, or fetches from it.
//!
//! ```text
//!  a mirror is missed ─▶ announce ─▶ the backup answers, and was told ─▶ line out
//!  a line of the dead ─▶ take over ─▶ flush, refill ─────────────────────┘
//! ```
//!
//! Nobody waits for anybody here. The list that is known when the primary is lost counts until that is back.

use super::Pools;
use crate::marks::times::SETTLE;
use crate::net::Socket;

impl<S: Socket> Pools<S> {
    /// Goes on with a pair that is about a backup.
    pub(super) fn advance_follower(&mut self, id: usize) {
        let is_whole = self.see_follower(id);
        if !self.has_partner(id) {
            return;
        }
        let now = self.now;
        let Some(pair) = self.pairs.get_mut(id) else {
            return;
        };
        let (partner, is_free) = (pair.partner, pair.change.is_none());
        let Some(rules) = pair.backup.as_mut() else {
            return;
        };
        if rules.is_announcing() {
            if is_free {
                self.announce(id);
            }
            return;
        }
        let (has_line, may_take_out) = (rules.has_line(), is_whole && rules.may_take_out());
        let gone = pair.gone(now);
        if has_line {
            self.renew_hold(id);
        }
        let is_done = match is_free {
            true if !gone.is_empty() => self.take_over(id, &gone),
            true if may_take_out => self.take_line_of(id),
            _ => true,
        };
        if !is_done {
            self.want_look(partner);
        }
    }

    /// What became of the backup. True if it is there and owes no flush.
    fn see_follower(&mut self, id: usize) -> bool {
        let now = self.now;
        let Some(pair) = self.pairs.get_mut(id) else {
            return false;
        };
        let (Some(server), Some(rules)) = (self.servers.get_mut(pair.primary), &mut pair.backup)
        else {
            return false;
        };
        if !server.health.is_up() {
            pair.is_told = false;
            if !server.journal.is_empty() || server.flushing {
                rules.missed();
            }
            return false;
        }
        let is_settled = now.since(server.health.since()) >= SETTLE;
        if is_settled && now.since(pair.syncing_since) >= SETTLE {
            rules.flush_is_due();
        }
        // Up again it was told what it missed before; now also what was missed since.
        if !std::mem::replace(&mut pair.is_told, true) {
            server.journal.mark();
        }
        let has_flush = server.flushing || server.journal.flush_due().is_some();
        if !has_flush && server.journal.is_synced_to_mark() && rules.may_tell(true) {
            rules.told();
            pair.is_told = false;
        }
        !has_flush
    }
}
