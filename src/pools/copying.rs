//! One key on its way to a server that lacks it.
//!
//! ```text
//!  look: me k ─▶ target: absent ─▶ fetch: mg k u f t v c ─▶ source: found ─▶ add k ─▶ target
//! ```
//!
//! After a reload a key that its new primary lacks is looked for where it was, too: at its backup, at its primary
//! before, at its backup before.
//!
//! Why nothing old is stored: the value is stored with `add`, so what the target has wins. Toward a
//! primary, every write of the key that was sent there after the look voids the copy; those before it were
//! answered, and mirrored ahead of the fetch on the same link. Toward a backup, the `add` follows the mirrors
//! of all writes before the fetch, and is followed by those of all later ones. A write that went to
//! the backup because the primary was late is followed by a delete at the primary, which voids the copy.
//! Where a key was before a reload it is deleted when its new primary has answered a write: ahead of the fetch,
//! or the write was sent after the look.

use super::copies::{Changed, Copy, Job, Listed, Step};
use super::partners::Way;
use super::pending::{Ask, Pending, To};
use super::{Pools, ServerId};
use crate::buffer::Source;
use crate::net::Socket;
use crate::protocol::forms::{self, Fetched};
use crate::protocol::{Reply, Status, Traits, Verb};

/// What a key counts besides its value in bytes: the lines that ask for it.
const LINES: usize = 256;

/// A key counts as so many bytes at least: its servers and magent work for three requests, in whose way clients'
/// requests are, however small the value is.
const LEAST: usize = 1024;

/// A key that is written all the time is copied at last without a pause of its writers: toward a backup the
/// order of the requests is right all the same.
const PATIENCE: u32 = 8;

/// An item takes so many bytes more than its value at most, with a key of 250.
const ITEM: usize = 512;

/// What came of one key.
pub(super) enum Outcome {
    Copied(usize),
    There,
    Gone,
    Skipped,
    Again,
}

impl<S: Socket> Pools<S> {
    /// True if a server can be asked for keys, or to take them.
    pub(super) fn is_usable(&self, id: ServerId) -> bool {
        self.servers
            .get(id)
            .is_some_and(|s| s.health.is_up() && s.meta)
    }

    /// Looks whether the target has a key.
    pub(super) fn begin_copy(&mut self, job: Job, key: Vec<u8>, listed: Listed) {
        let Some(id) = self.begin(job, key, listed, Step::Look) else {
            return;
        };
        let Some(copy) = self.refills.copies.table.get(id) else {
            return;
        };
        let mut line = Vec::new();
        let verb = forms::write_look(&copy.key, &mut line);
        self.ask_for(id, job.target, verb, &line);
    }

    /// A key is on its way from now on, at this step, unless it cannot be asked for now.
    pub(super) fn begin(
        &mut self,
        job: Job,
        key: Vec<u8>,
        listed: Listed,
        step: Step,
    ) -> Option<usize> {
        let Some(way) = self.way(job.target, &key) else {
            self.note_outcome(job, key.into(), listed, Outcome::Gone);
            return None;
        };
        let pool = &self.pools[way.pool as usize];
        let is_large = listed.size as usize > pool.config.max_value + ITEM;
        let mut sources: Vec<ServerId> = match job.verifies {
            true => vec![way.partner],
            false => way.sources().collect(),
        };
        sources.retain(|source| !self.is_too_old(*source));
        if is_large || !forms::can_be_asked(&key) || sources.is_empty() {
            self.note_outcome(job, key.into(), listed, Outcome::Skipped);
            return None;
        }
        let all = sources.len();
        sources.retain(|source| self.is_usable(*source) && self.may_tell(job, &way, *source));
        let is_untold = sources.len() < all;
        let link = |id: ServerId| self.servers.get(id).map(|s| s.link_for(way.hash));
        let has_room = |id: ServerId| {
            let link = link(id).and_then(|l| self.links.get(l));
            link.is_some_and(|l| !l.is_full())
        };
        let is_ready = |id: &ServerId| has_room(*id) && !self.is_flushing(*id);
        let is_ready = !sources.is_empty() && has_room(job.target) && sources.iter().all(is_ready);
        let link = link(way.primary).filter(|_| is_ready);
        let Some(link) = link else {
            self.note_outcome(job, key.into(), listed, Outcome::Again);
            return None;
        };
        if let Some(other) = self.refills.copies.find(link, way.hash) {
            if other.key[..] == key[..] && other.job == job && !job.verifies {
                other.again = true;
                return None;
            }
            self.note_outcome(job, key.into(), listed, Outcome::Again);
            return None;
        }
        self.refills.pace.spend(LEAST, self.now);
        Some(self.refills.copies.insert(Copy {
            source: sources.remove(0),
            further: sources,
            is_untold,
            job,
            primary: way.primary,
            link,
            key: key.into(),
            hash: way.hash,
            pool: way.pool,
            listed,
            step,
            changed: Changed::No,
            value: 0,
            seen: None,
            watch: None,
            again: false,
        }))
    }

    /// False of a backup that has missed mirrors of a primary that is filled.
    fn may_tell(&self, job: Job, way: &Way, source: ServerId) -> bool {
        let is_backup = way.primary == job.target && way.partner == source;
        job.verifies || !is_backup || self.may_be_read(job.target, source)
    }

    /// A step of a copy was answered.
    pub(super) fn copy_answered(&mut self, id: usize, reply: &Reply<'_>) {
        let Some(copy) = self.refills.copies.table.get(id) else {
            return;
        };
        match (copy.step, reply.status) {
            (Step::Look, Status::Absent) => self.fetch_copy(id),
            (Step::Look, Status::Done) => self.end_copy(id, Outcome::There),
            (Step::Fetch, Status::Absent) => self.copy_from_next(id),
            (Step::Fetch, Status::Done) => match forms::parse_fetched(reply.first_line()) {
                Some(fetched) => self.store_copy(id, &fetched, reply),
                None => self.end_copy(id, Outcome::Skipped),
            },
            (Step::Add, Status::Done) => {
                let (value, watch, key) = (copy.value, copy.watch, copy.key.clone());
                self.end_copy(id, Outcome::Copied(value));
                if let Some(watch) = watch {
                    self.copy_arrived(watch, &key, reply);
                }
            }
            (Step::Add, status) => {
                if let Some(watch) = copy.watch {
                    self.forget_watch(watch);
                }
                let is_there = status == Status::NotStored;
                // Or it has no room for it, or takes no value of this size.
                let outcome = if is_there {
                    Outcome::There
                } else {
                    Outcome::Skipped
                };
                self.end_copy(id, outcome);
            }
            (_, _) => self.end_copy(id, Outcome::Again),
        }
    }

    /// A step of a copy was lost, or late.
    pub(super) fn refill_lost(&mut self, id: usize) {
        let copy = self.refills.copies.table.get_mut(id);
        let watch = copy.and_then(|c| Some((c.watch.take()?, c.job.target, c.key.clone())));
        if let Some((watch, target, key)) = watch {
            // It may stand there, and nobody looked whether it may.
            self.forget_watch(watch);
            self.journal(target, &key);
        }
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
        let (source, target) = (copy.source, copy.job.target);
        stands
            && !self.has_held(source, target)
            && !self.has_held(target, source)
            && self.is_usable(copy.source)
            && self.is_usable(copy.job.target)
            && !self.servers.get(copy.job.target).is_none_or(is_to_go)
            && !self.servers.get(copy.primary).is_none_or(is_late)
            && !self.is_flushing(copy.source)
            && !self.is_flushing(copy.job.target)
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
        let source = copy.source;
        let may_store = self
            .refills
            .copies
            .table
            .get(id)
            .is_some_and(|c| self.may_store(c));
        match may_store {
            true => self.fetch_from(id, source),
            false => self.end_copy(id, Outcome::Again),
        }
    }

    /// A server lacks the key: asks the next one that may have it.
    fn copy_from_next(&mut self, id: usize) {
        let Some(copy) = self.refills.copies.table.get_mut(id) else {
            return;
        };
        if copy.further.is_empty() {
            // The one that could not be asked may be away for long.
            let outcome = match copy.is_untold {
                true if copy.listed.tries < PATIENCE => Outcome::Again,
                true => Outcome::Skipped,
                false => Outcome::Gone,
            };
            return self.end_copy(id, outcome);
        }
        copy.source = copy.further.remove(0);
        self.fetch_copy(id);
    }

    /// Asks a server for the key with all that is known of it.
    pub(super) fn fetch_from(&mut self, id: usize, server: ServerId) {
        let Some(copy) = self.refills.copies.table.get(id) else {
            return;
        };
        let mut line = Vec::new();
        let verb = forms::write_fetch(&copy.key, &mut line);
        self.ask_for(id, server, verb, &line);
    }

    /// Asks a server a line about the key of a copy.
    fn ask_for(&mut self, id: usize, server: ServerId, verb: Verb, line: &[u8]) {
        let Some(copy) = self.refills.copies.table.get(id) else {
            return;
        };
        let (key, hash, pool) = (copy.key.clone(), copy.hash, &self.pools[copy.pool as usize]);
        let asked = Pending {
            deadline: self.now.plus(pool.span()),
            timeout: pool.timeout_ms(),
            ..self.own(To::Refill(id), verb, Traits::default(), hash)
        };
        self.sync_first(server, &key, hash);
        // Nobody else may have used it for a while.
        self.may_ask(server);
        self.send(server, asked, &Ask::line(verb, Traits::default(), line));
    }

    /// A value was fetched, of which [`LEAST`] is paid.
    pub(super) fn spend_value(&mut self, value: usize) {
        let rest = (LINES + value).saturating_sub(LEAST);
        self.refills.pace.spend(rest, self.now);
    }

    /// The source has the key: stores it, unless anything newer may be there.
    fn store_copy(&mut self, id: usize, fetched: &Fetched, reply: &Reply<'_>) {
        self.spend_value(fetched.value);
        let Some(copy) = self.refills.copies.table.get(id) else {
            return;
        };
        let (source, target, hash, key) =
            (copy.source, copy.job.target, copy.hash, copy.key.clone());
        let pool = self.way(target, &key).map(|way| way.pool as usize);
        let most = pool.map_or(0, |pool| self.pools[pool].config.max_value);
        let mut line = Vec::new();
        let (is_shared, is_to_primary) = (self.is_shared(source, target), copy.primary == target);
        let copied = match () {
            () if pool.is_none() || !self.may_store(copy) => Err(Outcome::Again),
            () if fetched.value > most || !fetched.fresh() => Err(Outcome::Skipped),
            () => forms::write_copy(&key, fetched, self.unix, is_shared, &mut line)
                .ok_or(Outcome::Gone),
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
        let watch = self.watch_fetched((source, target), is_to_primary, hash, fetched);
        if let Some(copy) = self.refills.copies.table.get_mut(id) {
            copy.step = Step::Add;
            copy.value = fetched.value;
            copy.watch = watch;
        }
        let pending = self.own(To::Refill(id), verb, Traits::WRITES, hash);
        self.may_ask(target);
        self.send(target, pending, &ask);
    }

    pub(super) fn end_copy(&mut self, id: usize, outcome: Outcome) {
        if let Some(copy) = self.refills.copies.remove(id) {
            if matches!(outcome, Outcome::Copied(_)) && copy.primary == copy.job.target {
                self.note_moved(copy.pool as usize, &copy.key, copy.source);
            }
            let outcome = if copy.again { Outcome::Again } else { outcome };
            self.note_outcome(copy.job, copy.key, copy.listed, outcome);
        }
    }

    /// One key was looked at.
    fn note_outcome(&mut self, job: Job, key: Box<[u8]>, listed: Listed, outcome: Outcome) {
        let now = self.now;
        if let (Outcome::Copied(_), Some(server)) = (&outcome, self.servers.get_mut(job.target)) {
            server.stats.keys_copied += 1;
        }
        let Some(refill) = self.refills.job(job.target, job.verifies) else {
            return;
        };
        match (&mut refill.verify, outcome) {
            // It begins anew: the key will be listed once more.
            (Some(_), _) if refill.round != job.round => {}
            (_, Outcome::Again) => refill.again(key, listed, now),
            (Some(verify), Outcome::Skipped) => verify.skipped(&key),
            (Some(_), _) => {}
            (None, Outcome::Copied(bytes)) => {
                refill.progress.copied += 1;
                refill.progress.bytes += bytes as u64;
            }
            (None, Outcome::There) => refill.progress.there += 1,
            (None, Outcome::Gone) => refill.progress.gone += 1,
            (None, Outcome::Skipped) => refill.progress.skipped += 1,
        }
        self.charge_refill(job.target);
    }
}
