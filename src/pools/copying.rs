//! One key on its way to a server that lacks it.
//!
//! ```text
//!  look: me k ─▶ target: absent ─▶ fetch: mg k u f t v c ─▶ source: found ─▶ add k ─▶ target
//! ```
//!
//! Why nothing old is stored: the value is stored with `add`, so what the target has wins. Toward a
//! primary, every write of the key that was sent there after the look voids the copy; those before it were
//! answered, and mirrored ahead of the fetch on the same link. Toward a backup, the `add` follows the mirrors
//! of all writes before the fetch, and is followed by those of all later ones. A write that went to
//! the backup because the primary was late is followed by a delete at the primary, which voids the copy.

use super::copies::{Changed, Copy, Listed, Step};
use super::pending::{Ask, Pending, To};
use super::{Pools, ServerId};
use crate::buffer::Source;
use crate::net::Socket;
use crate::protocol::forms::{self, Fetched};
use crate::protocol::{Reply, Status, Traits};

/// What a key costs besides its value: the lines that ask for it, in bytes.
const LINES: usize = 256;

/// A key that is written all the time is copied at last without a pause of its writers: toward a backup the
/// order of the requests is right all the same.
const PATIENCE: u32 = 8;

/// An item takes so many bytes more than its value at most, with a key of 250.
const ITEM: usize = 512;

/// What came of one key.
enum Outcome {
    Copied(usize),
    There,
    Gone,
    Skipped,
    Again,
}

impl<S: Socket> Pools<S> {
    /// True if a server is there and too old to be asked for keys, or to take them.
    pub(super) fn is_too_old(&self, id: ServerId) -> bool {
        self.servers
            .get(id)
            .is_some_and(|s| s.health.is_up() && !s.meta)
    }

    /// True if a server can be asked for keys, or to take them.
    pub(super) fn is_usable(&self, id: ServerId) -> bool {
        self.servers
            .get(id)
            .is_some_and(|s| s.health.is_up() && s.meta)
    }

    /// Looks whether the target has a key.
    pub(super) fn begin_copy(&mut self, target: ServerId, key: Vec<u8>, listed: Listed) {
        let Some(way) = self.way(target, &key) else {
            return self.note_outcome(target, key.into(), listed, Outcome::Gone);
        };
        let pool = &self.pools[way.pool as usize];
        let is_large = listed.size as usize > pool.config.max_value + ITEM;
        if is_large || !forms::can_be_asked(&key) || self.is_too_old(way.source) {
            return self.note_outcome(target, key.into(), listed, Outcome::Skipped);
        }
        let (span, timeout) = (pool.span(), pool.timeout_ms());
        let link = |id: ServerId| self.servers.get(id).map(|s| s.link_for(way.hash));
        let has_room = |id: ServerId| {
            let link = link(id).and_then(|l| self.links.get(l));
            link.is_some_and(|l| !l.is_full())
        };
        let is_ready = self.is_usable(way.source) && has_room(target) && has_room(way.source);
        let link = link(way.primary).filter(|_| is_ready && !self.is_flushing(way.source));
        let Some(link) = link else {
            return self.note_outcome(target, key.into(), listed, Outcome::Again);
        };
        if let Some(other) = self.refills.copies.find(link, way.hash) {
            if other.key[..] == key[..] && other.target == target {
                other.again = true;
                return;
            }
            return self.note_outcome(target, key.into(), listed, Outcome::Again);
        }
        self.refills.pace.spend(LINES, self.now);
        self.sync_first(target, &key, way.hash);
        let mut line = Vec::new();
        let verb = forms::write_look(&key, &mut line);
        let copy = self.refills.copies.insert(Copy {
            source: way.source,
            target,
            primary: way.primary,
            link,
            key: key.into(),
            hash: way.hash,
            listed,
            step: Step::Look,
            changed: Changed::No,
            value: 0,
            again: false,
        });
        let look = Pending {
            deadline: self.now.plus(span),
            timeout,
            ..self.own(To::Refill(copy), verb, Traits::default(), way.hash)
        };
        self.send(target, look, &Ask::line(verb, Traits::default(), &line));
    }

    /// A step of a copy was answered.
    pub(super) fn refill_answered(&mut self, id: usize, reply: &Reply<'_>) {
        let Some(copy) = self.refills.copies.table.get(id) else {
            return;
        };
        match (copy.step, reply.status) {
            (Step::Look, Status::Absent) => self.fetch_copy(id),
            (Step::Look, Status::Done) => self.end_copy(id, Outcome::There),
            (Step::Fetch, Status::Absent) => self.end_copy(id, Outcome::Gone),
            (Step::Fetch, Status::Done) => match forms::parse_fetched(reply.first_line()) {
                Some(fetched) => self.store_copy(id, &fetched, reply),
                None => self.end_copy(id, Outcome::Skipped),
            },
            (Step::Add, Status::Done) => self.end_copy(id, Outcome::Copied(copy.value)),
            (Step::Add, Status::NotStored) => self.end_copy(id, Outcome::There),
            // It has no room for it, or takes no value of this size.
            (Step::Add, _) => self.end_copy(id, Outcome::Skipped),
            (Step::Look | Step::Fetch, _) => self.end_copy(id, Outcome::Again),
        }
    }

    /// A step of a copy was lost, or late.
    pub(super) fn refill_lost(&mut self, id: usize) {
        self.end_copy(id, Outcome::Again);
    }

    /// False if a value that is fetched now, or was fetched, must not be stored.
    fn may_store(&self, copy: &Copy) -> bool {
        let is_to_go = |s: &super::Server| s.journal.is_to_go(&copy.key);
        let is_late = |s: &super::Server| s.losing > 0;
        let outlasts = copy.primary == copy.source && copy.listed.tries >= PATIENCE;
        let stands = match copy.changed {
            Changed::No => true,
            Changed::Written => outlasts,
            Changed::Void => false,
        };
        stands
            && self.is_usable(copy.target)
            && !self.servers.get(copy.target).is_none_or(is_to_go)
            && !self.servers.get(copy.primary).is_none_or(is_late)
            && !self.is_flushing(copy.source)
            && !self.is_flushing(copy.target)
    }

    /// The target lacks the key: asks the source.
    fn fetch_copy(&mut self, id: usize) {
        let Some(copy) = self.refills.copies.table.get_mut(id) else {
            return;
        };
        // Of what was written before, the fetch itself comes to know.
        if copy.primary == copy.source && copy.changed == Changed::Written {
            copy.changed = Changed::No;
        }
        copy.step = Step::Fetch;
        let (source, key, hash) = (copy.source, copy.key.clone(), copy.hash);
        let may_store = self
            .refills
            .copies
            .table
            .get(id)
            .is_some_and(|c| self.may_store(c));
        let way = self
            .refills
            .copies
            .table
            .get(id)
            .and_then(|c| self.way(c.target, &key));
        let (true, Some(way)) = (may_store, way) else {
            return self.end_copy(id, Outcome::Again);
        };
        let pool = &self.pools[way.pool as usize];
        let (span, timeout) = (pool.span(), pool.timeout_ms());
        self.sync_first(source, &key, hash);
        let mut line = Vec::new();
        let verb = forms::write_fetch(&key, &mut line);
        let fetch = Pending {
            deadline: self.now.plus(span),
            timeout,
            ..self.own(To::Refill(id), verb, Traits::default(), hash)
        };
        self.send(source, fetch, &Ask::line(verb, Traits::default(), &line));
    }

    /// The source has the key: stores it, unless anything newer may be there.
    fn store_copy(&mut self, id: usize, fetched: &Fetched, reply: &Reply<'_>) {
        self.refills.pace.spend(fetched.value, self.now);
        let Some(copy) = self.refills.copies.table.get(id) else {
            return;
        };
        let (source, target, hash, key) = (copy.source, copy.target, copy.hash, copy.key.clone());
        let pool = self.way(target, &key).map(|way| way.pool as usize);
        let most = pool.map_or(0, |pool| self.pools[pool].config.max_value);
        let mut line = Vec::new();
        let copied = match () {
            () if pool.is_none() || !self.may_store(copy) => Err(Outcome::Again),
            () if fetched.value > most || !fetched.fresh() => Err(Outcome::Skipped),
            () => forms::write_copy(&key, fetched, self.unix, &mut line).ok_or(Outcome::Gone),
        };
        let verb = match copied {
            Ok(verb) => verb,
            Err(outcome) => {
                if fetched.won() {
                    self.give_back(source, &key, hash, fetched);
                }
                return self.end_copy(id, outcome);
            }
        };
        let value = reply.at + reply.line;
        let ask = Ask {
            verb,
            traits: Traits::WRITES,
            line: (Source::Slice(&line), 0..line.len()),
            data: (reply.source, value..value + fetched.value + 2),
            end_line: false,
        };
        if let Some(copy) = self.refills.copies.table.get_mut(id) {
            copy.step = Step::Add;
            copy.value = fetched.value;
        }
        let pending = self.own(To::Refill(id), verb, Traits::WRITES, hash);
        self.send(target, pending, &ask);
    }

    fn end_copy(&mut self, id: usize, outcome: Outcome) {
        if let Some(copy) = self.refills.copies.remove(id) {
            let outcome = if copy.again { Outcome::Again } else { outcome };
            self.note_outcome(copy.target, copy.key, copy.listed, outcome);
        }
    }

    /// One key was looked at.
    fn note_outcome(&mut self, target: ServerId, key: Box<[u8]>, listed: Listed, outcome: Outcome) {
        let now = self.now;
        if let (Outcome::Copied(_), Some(server)) = (&outcome, self.servers.get_mut(target)) {
            server.stats.keys_copied += 1;
        }
        let Some(refill) = self.refills.of(target) else {
            return;
        };
        let progress = &mut refill.progress;
        match outcome {
            Outcome::Copied(bytes) => {
                progress.copied += 1;
                progress.bytes += bytes as u64;
            }
            Outcome::There => progress.there += 1,
            Outcome::Gone => progress.gone += 1,
            Outcome::Skipped => progress.skipped += 1,
            Outcome::Again => refill.again(key, listed, now),
        }
        self.charge_refill(target);
    }
}
