//! One key that is compared: what the server holds of it, and what its partner holds.
//!
//! ```text
//!  mg k u f t v c ─▶ the server ─▶ the same ─▶ its partner ─▶ Verify::look ─▶ counted, or once more in a second
//! ```
//!
//! Where a magent has died, what stands on a backup and differs from its primary is deleted there, as long as it
//! is what was seen (`md k C…`), and copied again.
//!
//! What a client writes to the key meanwhile voids the look, as it voids a copy.

use super::copies::{Changed, Job, Listed, Step};
use super::copying::Outcome;
use super::pending::{Ask, To};
use super::verify::{Finding, Look, Repair, Seen, Verdict};
use super::{Pools, ServerId};
use crate::net::Socket;
use crate::protocol::forms::{self, Fetched};
use crate::protocol::{Reply, Status, Traits};
use crate::time::SECOND;
use std::hash::{DefaultHasher, Hasher};

impl<S: Socket> Pools<S> {
    /// Asks the server that is compared for a key.
    pub(super) fn begin_comparing(&mut self, job: Job, key: Vec<u8>, listed: Listed) {
        if let Some(id) = self.begin(job, key, listed, Step::Here) {
            self.fetch_from(id, job.target);
        }
    }

    /// A step of a key on its way was answered.
    pub(super) fn refill_answered(&mut self, id: usize, reply: &Reply<'_>) {
        let copy = self.refills.copies.table.get(id);
        let side = copy.map(|c| (c.step, c.job.target, c.source));
        match side {
            Some((Step::Here, target, _)) => {
                if let Some(seen) = self.seen(id, target, reply) {
                    self.look_there(id, seen);
                }
            }
            Some((Step::There, _, source)) => {
                if let Some(seen) = self.seen(id, source, reply) {
                    self.compare(id, seen);
                }
            }
            Some((Step::Mend, ..)) => self.mended(id, reply.status),
            Some(_) => self.copy_answered(id, reply),
            None => {}
        }
    }

    /// What a server holds of a key; `None` if that cannot be told, which ends it.
    fn seen(&mut self, id: usize, server: ServerId, reply: &Reply<'_>) -> Option<Option<Seen>> {
        let fetched = match reply.status {
            Status::Absent => return Some(None),
            Status::Done => forms::parse_fetched(reply.first_line()),
            _ => {
                self.end_copy(id, Outcome::Again);
                return None;
            }
        };
        let Some(fetched) = fetched.filter(Fetched::fresh) else {
            if let (Some(fetched), Some(copy)) = (fetched, self.refills.copies.table.get(id)) {
                let (key, hash) = (copy.key.clone(), copy.hash);
                if fetched.won() {
                    self.give_back(server, &key, hash, &fetched);
                }
            }
            self.end_copy(id, Outcome::Skipped);
            return None;
        };
        self.spend_value(fetched.value);
        Some(Some(Seen {
            flags: fetched.flags,
            expires: u64::try_from(fetched.ttl).ok().map(|ttl| self.unix + ttl),
            value: (fetched.value, hash_of(reply, fetched.value)),
            cas: fetched.cas,
        }))
    }

    /// The server has told what it holds: its partner is asked.
    fn look_there(&mut self, id: usize, seen: Option<Seen>) {
        let Some(copy) = self.refills.copies.table.get_mut(id) else {
            return;
        };
        (copy.step, copy.seen) = (Step::There, seen);
        let source = copy.source;
        self.fetch_from(id, source);
    }

    /// Both have told.
    fn compare(&mut self, id: usize, there: Option<Seen>) {
        let (now, unix) = (self.now, self.unix);
        let Some(copy) = self.refills.copies.table.get(id) else {
            return;
        };
        let (job, listed, changed) = (copy.job, copy.listed, copy.changed);
        let Some(refill) = self.refills.jobs.iter_mut().find(|r| r.is(job)) else {
            return self.end_copy(id, Outcome::Gone);
        };
        let Some(verify) = &mut refill.verify else {
            return;
        };
        if changed != Changed::No {
            let gives_up =
                changed == Changed::Written && verify.is_changing(&copy.key, listed.tries);
            let outcome = if gives_up {
                Outcome::Gone
            } else {
                Outcome::Again
            };
            return self.end_copy(id, outcome);
        }
        let look = Look {
            at: unix,
            tries: listed.tries,
            is_own: listed.is_own,
            partner: copy.source,
        };
        let is_mended = match verify.look(&copy.key, [copy.seen, there], &look) {
            Verdict::Doubt => {
                refill.compare_again(copy.key.clone(), listed, now.plus(SECOND));
                false
            }
            Verdict::Found(finding) => self.mend(id, finding, there),
            Verdict::Nothing => false,
        };
        if !is_mended {
            self.end_copy(id, Outcome::There);
        }
    }

    /// Has the other side of a key follow its primary where a magent has died. True if it is not over with it.
    fn mend(&mut self, id: usize, finding: Finding, there: Option<Seen>) -> bool {
        let now = self.now;
        let Some(copy) = self.refills.copies.table.get(id) else {
            return false;
        };
        let (job, source, key) = (copy.job, copy.source, copy.key.clone());
        let is_primary = copy.primary == job.target;
        let server = self.servers.get(job.target).filter(|_| is_primary);
        // What a warming primary lacks may be missing only because it restarted.
        let is_whole = server.is_some_and(|s| !s.health.is_warming(now));
        let Some(repair) = self.repair_of(job).filter(|_| is_primary) else {
            return false;
        };
        let is_gone = is_whole && repair.deletes;
        let lacks = match finding {
            Finding::Missing if is_gone => return self.delete_there(id, there),
            Finding::Different => return self.delete_there(id, there),
            Finding::Missing => job.target,
            Finding::Extra => source,
            _ => return false,
        };
        self.note_mended(job);
        self.wants_key(lacks, &key);
        false
    }

    /// Deletes what the backup was seen to hold, if that still stands there.
    fn delete_there(&mut self, id: usize, there: Option<Seen>) -> bool {
        let Some(cas) = there.map(|seen| seen.cas).filter(|cas| *cas > 0) else {
            return false;
        };
        let Some(copy) = self.refills.copies.table.get_mut(id) else {
            return false;
        };
        copy.step = Step::Mend;
        let (source, hash, mut line) = (copy.source, copy.hash, Vec::new());
        let verb = forms::write_delete_copy(&copy.key, cas, &mut line);
        let delete = self.own(To::Refill(id), verb, Traits::WRITES, hash);
        self.send(source, delete, &Ask::line(verb, Traits::WRITES, &line));
        true
    }

    /// That was answered: the primary's value, if it has one, is copied in its place.
    fn mended(&mut self, id: usize, status: Status) {
        let Some(copy) = self.refills.copies.table.get(id) else {
            return;
        };
        let (job, source, key, is_held) =
            (copy.job, copy.source, copy.key.clone(), copy.seen.is_some());
        // Else somebody has written it.
        if status == Status::Done {
            self.note_mended(job);
            if is_held {
                self.wants_key(source, &key);
            }
        }
        self.end_copy(id, Outcome::There);
    }

    fn repair_of(&mut self, job: Job) -> Option<&mut Repair> {
        let refill = self.refills.jobs.iter_mut().find(|r| r.is(job))?;
        refill.verify.as_mut()?.repair.as_mut()
    }

    fn note_mended(&mut self, job: Job) {
        let now = self.now;
        if let Some(repair) = self.repair_of(job) {
            repair.mended += 1;
            repair.last = now;
        }
    }
}

/// A hash of the value of an answer, so that two can be compared without keeping either.
fn hash_of(reply: &Reply<'_>, len: usize) -> u64 {
    let from = reply.at + reply.line;
    let range = from..from + len;
    let mut hasher = DefaultHasher::new();
    let mut copied = Vec::new();
    let mut value = reply.source.slice(range.clone());
    if value.len() < len {
        reply.source.copy_to(range, &mut copied);
        value = &copied;
    }
    hasher.write(value);
    hasher.finish()
}
