//! Where other magents write the same keys, whoever copied a value looks again whether its source still is
//! what was copied; else the copy is deleted.
//!
//! ```text
//!  primary: HD c123 ─▶ mirror: ms K 5 c ─▶ backup: HD c77 ─▶ look: me K ─▶ primary: cas=123: over
//!                                                                          anything else ─▶ md K C77 ─▶ backup
//! ```
//!
//! Why it is right: what stands at the backup was put there by the mirror that arrived last, and whose writer
//! looks at the primary after that. If the primary holds this write, the copy is right. Else `md` meets the
//! mirror's own cas number, since none arrived later, and removes it. So in the end the backup holds what the
//! primary holds, or nothing, whatever is late.
//!
//! - What comes of a change by a number is compared with the primary's answer. What comes of append and
//!   prepend is not known, so where a server is shared their mirror is a delete.
//! - A mirror is not looked after if a later write of this magent, which leaves nothing of it, follows.
//! - A fetched value that a server lacked is looked after in the same way, at the server that it came from.
//! - A delete leaves nothing old. If it came behind a newer mirror, the key is copied again.

use super::pending::{Ask, Lost, Pending, To};
use super::watched::{Kind, Watch};
use super::{Pools, ServerId};
use crate::buffer::{Queue, Source};
use crate::net::Socket;
use crate::protocol::forms::{self, Fetched, Watched};
use crate::protocol::{Reply, Status, Traits, Verb};
use crate::time::SECOND;
use crate::work::{REQUEST, Work};

/// A mirror: its command, whether the request's data block follows its line, and whose its answer is.
pub type Sent = (Verb, bool, To);

impl<S: Socket> Pools<S> {
    /// True if other magents use these two servers, and cas numbers tell of what they do there.
    #[inline]
    pub(super) fn is_shared(&self, a: ServerId, b: ServerId) -> bool {
        self.now < self.watched.shared_until && self.are_shared(a, b)
    }

    fn are_shared(&self, a: ServerId, b: ServerId) -> bool {
        let (Some(a), Some(b)) = (self.servers.get(a), self.servers.get(b)) else {
            return false;
        };
        let tells = |s: &super::Server| s.holds_marks && s.board.refused.is_none();
        let is_shared = |s: &super::Server| s.board.beacon.is_shared(self.now);
        tells(a) && tells(b) && (is_shared(a) || is_shared(b))
    }

    /// How the mirror in `line`, of a write that was answered with `reply`, is sent where others write too:
    /// so that it can be looked after, or a delete instead.
    pub(super) fn watch_mirror(
        &mut self,
        watch: &Watch,
        key: &[u8],
        reply: &Reply<'_>,
        (verb, with_data, number): (Verb, bool, Option<u64>),
        line: &mut Vec<u8>,
    ) -> Sent {
        let first = reply.first_line();
        let cas = match first.get(..2) {
            Some(b"HD" | b"VA") => forms::told(first).cas,
            _ => None,
        };
        let none = (verb, with_data, To::Mirror(number));
        let (kind, exptime) = match (forms::watched(verb, line), cas) {
            // The server counts none.
            (Watched::Set(_) | Watched::Number, Some(0)) => return none,
            (Watched::Set(exptime), Some(_)) => (Kind::Value, Some(exptime)),
            (Watched::Number, Some(_)) => (Kind::Number(number.unwrap_or(0)), None),
            (Watched::Touch(exptime), _) => (Kind::Touch, Some(exptime)),
            (Watched::Delete, _) => (Kind::Delete, None),
            // Without a number it was asked before others were there.
            (Watched::Never | Watched::Set(_) | Watched::Number, _) => (Kind::Instead, None),
        };
        let id = self.watch(Watch {
            kind,
            cas: cas.filter(|_| matches!(kind, Kind::Value | Kind::Number(_))),
            expires: exptime.map(|exptime| forms::expires(exptime, self.unix)),
            ..*watch
        });
        if kind != Kind::Instead {
            return (verb, with_data, To::Watched(id));
        }
        line.clear();
        (forms::write_delete(key, line), false, To::Watched(id))
    }

    /// A copy is on its way that is to be looked after.
    pub(super) fn watch(&mut self, watch: Watch) -> usize {
        let id = self.watched.add(watch);
        self.charge_watched();
        id
    }

    /// What was fetched from `source` is on its way to `target`, which lacked it: the number by which it is
    /// looked after, if it is.
    pub(super) fn watch_fetched(
        &mut self,
        (source, target): (ServerId, ServerId),
        is_to_primary: bool,
        hash: u64,
        fetched: &Fetched,
    ) -> Option<usize> {
        if !self.is_shared(source, target) {
            return None;
        }
        let kind = match is_to_primary {
            true => Kind::Fetched,
            false => Kind::Refilled,
        };
        Some(self.watch(Watch {
            cas: Some(fetched.cas),
            expires: Some(expires_at(fetched.ttl, self.unix)),
            ..Watch::new(source, target, hash, kind)
        }))
    }

    /// A copy is not looked after any more.
    pub(super) fn forget_watch(&mut self, id: usize) {
        self.watched.table.remove(id);
        self.charge_watched();
    }

    fn charge_watched(&mut self) {
        let bytes = self.watched.bytes();
        self.budget.recharge(&mut self.watched.charged, bytes);
    }

    /// A mirror that is looked after was answered.
    pub(super) fn watched_answered(&mut self, id: usize, key: &[u8], reply: &Reply<'_>) {
        let Some(watch) = self.watched.table.get(id).copied() else {
            return;
        };
        let number = match watch.kind {
            Kind::Number(number) => Some(number),
            _ => None,
        };
        if forms::mirror_ok(reply.status, number) {
            return self.copy_arrived(id, key, reply);
        }
        if let Some(server) = self.servers.get_mut(watch.target) {
            server.stats.mirrors_failed += 1;
        }
        self.forget_watch(id);
        self.invalidate(watch.target, key, watch.hash);
    }

    /// What was sent to the second server was done there.
    pub(super) fn copy_arrived(&mut self, id: usize, key: &[u8], reply: &Reply<'_>) {
        let Some(watch) = self.watched.table.get(id).copied() else {
            return;
        };
        if watch.kind == Kind::Delete {
            self.delete_once_more(&watch, key);
        }
        if watch.is_void || self.watched.is_followed(&watch) {
            return self.forget_watch(id);
        }
        if watch.kind == Kind::Instead {
            // Whether there was a copy or not, there is none now.
            self.forget_watch(id);
            return self.copy_again(&watch, key);
        }
        if !matches!(reply.status, Status::Done | Status::Number(_)) {
            return self.forget_watch(id);
        }
        let unix = self.unix;
        let told = || forms::told(reply.first_line());
        match (watch.kind, self.watched.table.get_mut(id)) {
            (Kind::Value | Kind::Refilled, Some(watch)) => {
                watch.copy = told().cas.filter(|cas| *cas > 0);
            }
            (Kind::Number(_), Some(watch)) => {
                watch.expires = told().ttl.map(|ttl| expires_at(ttl, unix));
            }
            _ => {}
        }
        self.look_again(id, key);
    }

    /// Looks whether the source of a copy still is what was copied.
    pub(super) fn look_again(&mut self, id: usize, key: &[u8]) {
        let Some(watch) = self.watched.table.get(id).copied() else {
            return;
        };
        if !self.is_up(watch.source) {
            return self.doubt_copy(id, key);
        }
        self.counters.looks_again += 1;
        if let Some(server) = self.servers.get_mut(watch.target) {
            server.stats.looks_again += 1;
        }
        let mut line = std::mem::take(&mut self.line);
        line.clear();
        let verb = forms::write_look(key, &mut line);
        let none = Traits::default();
        let look = self.own(To::Again(id), verb, none, watch.hash);
        self.send(watch.source, look, &Ask::line(verb, none, &line));
        self.line = line;
    }

    /// True if the source of a copy still is what was copied, or that does not matter any more. It was looked at `took`
    /// nanoseconds ago or less.
    pub(super) fn is_as_copied(&self, id: usize, reply: &Reply<'_>, took: u64) -> bool {
        let Some(watch) = self.watched.table.get(id) else {
            return true;
        };
        let seen = match reply.status {
            Status::Done => forms::told_of_look(reply.first_line()),
            _ => None,
        };
        let unix = i64::try_from(self.unix).unwrap_or(i64::MAX);
        let stands = |seen| self.watched.stands(watch, seen, unix, took / SECOND);
        match watch.kind {
            Kind::Delete => seen.is_none(),
            _ if seen.is_some_and(stands) => true,
            _ => self.watched.is_followed(watch),
        }
    }

    /// The source of a copy is not what was copied, or has what is deleted here.
    pub(super) fn copy_is_wrong(&mut self, id: usize, key: &[u8]) {
        let Some(watch) = self.watched.table.get(id).copied() else {
            return;
        };
        if watch.kind != Kind::Delete {
            return self.doubt_copy(id, key);
        }
        self.forget_watch(id);
        if !self.watched.is_followed(&watch) {
            self.copy_again(&watch, key);
        }
    }

    /// The source is not what was copied, or nobody knows: the copy is deleted.
    fn doubt_copy(&mut self, id: usize, key: &[u8]) {
        let Some(watch) = self.watched.table.get(id).copied() else {
            return;
        };
        if watch.kind == Kind::Delete {
            return self.forget_watch(id);
        }
        self.count_doubt(watch.target);
        let mut line = Vec::new();
        let verb = match watch.copy {
            Some(cas) => forms::write_delete_copy(key, cas, &mut line),
            None => forms::write_delete(key, &mut line),
        };
        let delete = self.own(To::Doubt(id), verb, Traits::WRITES, watch.hash);
        let ask = Ask::line(verb, Traits::WRITES, &line);
        self.send(watch.target, delete, &ask);
    }

    fn count_doubt(&mut self, target: ServerId) {
        self.counters.doubts += 1;
        if let Some(server) = self.servers.get_mut(target) {
            server.stats.doubts += 1;
        }
    }

    /// The delete of a copy in doubt was answered.
    pub(super) fn doubt_answered(&mut self, id: usize, key: &[u8], status: Status) {
        let Some(watch) = self.watched.table.get(id).copied() else {
            return;
        };
        self.forget_watch(id);
        match status {
            Status::Done => {
                self.delete_once_more(&watch, key);
                self.copy_again(&watch, key);
            }
            // A later mirror, whose writer looks for himself, or nothing.
            Status::Exists | Status::Absent => {}
            _ => self.invalidate(watch.target, key, watch.hash),
        }
    }

    /// While a primary is warming, what stood at its backup may have been fetched before it was deleted
    /// there: it is deleted at the primary as well, after that.
    fn delete_once_more(&mut self, watch: &Watch, key: &[u8]) {
        if watch.kind != Kind::Fetched {
            self.delete_if_warming(watch.source, key, watch.hash);
        }
    }

    /// A delete where others write too was answered by the backup.
    pub(super) fn delete_if_warming(&mut self, primary: ServerId, key: &[u8], hash: u64) {
        let server = self.servers.get(primary);
        if server.is_some_and(|s| s.health.is_warming(self.now)) {
            self.invalidate(primary, key, hash);
        }
    }

    /// A copy was deleted, and its source may have the key: it is copied again when it is left alone.
    pub(super) fn copy_again(&mut self, watch: &Watch, key: &[u8]) {
        if !self.refills.pace.is_on() {
            return;
        }
        let (name, most) = ((watch.target, watch.hash), self.most_single());
        if self.paused || !self.watched.lacking.note(name, key, most, self.now) {
            self.wants_key(watch.target, key);
        }
        self.charge_lacking();
    }

    fn charge_lacking(&mut self) {
        let lacking = &mut self.watched.lacking;
        let bytes = lacking.bytes();
        self.budget.recharge(&mut lacking.charged, bytes);
    }

    /// Has keys copied again that were left alone for long enough.
    pub(super) fn copy_lacking(&mut self, work: &mut Work) {
        while self.watched.lacking.at() <= self.now && !work.is_done() {
            work.count(REQUEST);
            if let Some((server, key)) = self.watched.lacking.next(self.now) {
                self.wants_key(server, &key);
            }
            self.charge_lacking();
        }
    }

    /// Has all keys that wait copied, whether they were left alone or not: another program takes over.
    pub(super) fn copy_all_lacking(&mut self) {
        for (server, key) in self.watched.lacking.drain() {
            self.wants_key(server, &key);
        }
        self.charge_lacking();
    }

    /// A request of those that look after copies was lost.
    pub(super) fn watch_lost(&mut self, id: usize, lost: &Lost<'_>) {
        let mut key = std::mem::take(&mut self.key);
        key.clear();
        forms::raw_key(lost.request.verb, lost.ask.line_bytes(), &mut key);
        match lost.request.to {
            To::Again(_) => self.doubt_copy(id, &key),
            _ => {
                self.forget_watch(id);
                self.journal(lost.server, &key);
            }
        }
        self.key = key;
    }

    /// Servers went down, or are late: what was copied from there and not looked after is deleted behind the
    /// mirror, before anything is asked in their place.
    pub(super) fn doubt_copies_of_lost(&mut self) {
        while let Some(source) = self.watched.lost.pop() {
            self.doubt_late_looks(source);
            let of_source = self.watched.table.values().filter(|w| w.source == source);
            let mut targets: Vec<ServerId> = of_source.map(|w| w.target).collect();
            targets.sort_unstable();
            targets.dedup();
            for target in targets {
                self.doubt_copies_at(target, source);
            }
        }
    }

    fn doubt_late_looks(&mut self, source: ServerId) {
        let mut late = Vec::new();
        let links = self.servers.get(source).map_or(&[][..], |s| &s.links);
        for id in links {
            let Some(link) = self.links.get_mut(*id) else {
                continue;
            };
            let mut at = link.settled;
            for p in &mut link.pending {
                if let To::Again(id) = p.to {
                    p.to = To::Nobody;
                    let line = Source::Queue(&link.queue, at).slice(0..p.line as usize);
                    let mut key = Vec::new();
                    forms::raw_key(p.verb, line, &mut key);
                    late.push((id, key));
                }
                at += u64::from(p.len);
            }
        }
        for (id, key) in late {
            self.doubt_copy(id, &key);
        }
    }

    fn doubt_copies_at(&mut self, target: ServerId, source: ServerId) {
        let mut keys = Vec::new();
        let links = self.servers.get(target).map_or(&[][..], |s| &s.links);
        for link in links.iter().filter_map(|l| self.links.get(*l)) {
            let mut at = link.settled;
            for p in &link.pending {
                let watch = match p.to {
                    To::Watched(id) => self.watched.table.get_mut(id),
                    _ => None,
                };
                let deletes = |w: &Watch| matches!(w.kind, Kind::Delete | Kind::Instead);
                if let Some(watch) = watch.filter(|w| w.source == source && !deletes(w)) {
                    watch.is_void = true;
                    let mut key = Vec::new();
                    forms::raw_key(p.verb, link.line_at(at, p.line), &mut key);
                    keys.push((key, p.hash));
                }
                at += u64::from(p.len);
            }
        }
        for (key, hash) in keys {
            self.count_doubt(target);
            self.invalidate(target, &key, hash);
        }
    }

    /// Looks among what a server lost: what they looked after is deleted before anything is asked in its
    /// place. `queue` holds their bytes from `at` on.
    pub(super) fn doubt_lost_looks<'a>(
        &mut self,
        pending: impl Iterator<Item = &'a mut Pending>,
        queue: &Queue,
        mut at: u64,
    ) {
        for p in pending {
            if let To::Again(id) = p.to {
                let mut key = Vec::new();
                forms::raw_key(p.verb, Ask::queued(p, queue, at).line_bytes(), &mut key);
                self.doubt_copy(id, &key);
                p.to = To::Nobody;
            }
            at += u64::from(p.len);
        }
    }

    /// Sends looks that found no company.
    pub(super) fn write_looks(&mut self) {
        while let Some(id) = self.watched.next_due(self.now) {
            if let Some(link) = self.links.get_mut(id).filter(|l| l.looks) {
                self.dirty.add(id, &mut link.dirty);
            }
        }
    }
}

/// When an item with so many seconds left expires, in seconds since the epoch; -1 for never.
fn expires_at(ttl: i64, unix: u64) -> i64 {
    match ttl {
        -1 => -1,
        _ => i64::try_from(unix).unwrap_or(i64::MAX).saturating_add(ttl),
    }
}
