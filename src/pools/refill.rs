//! One server that lacks what it should hold: where it is to be had, how far its copy is. Or one that is
//! compared with its partners, in the same way.
//!
//! ```text
//!  Measure ─▶ List ─▶ Listing ─▶ Copying ─┬─▶ List: more than fits, or the next source
//!               ▲        │ cut, busy      └─▶ over
//!               └────────┘
//! ```

use super::ServerId;
use super::copies::{Copies, Job, Listed};
use super::pace::Pace;
use super::spool::Spool;
use super::verify::{Repair, Verify};
use crate::saved::saved_fields;
use crate::stats::Histogram;
use crate::time::{MILLISECOND, SECOND, Time};
use std::collections::{BTreeMap, VecDeque};

/// A key that was written while it was copied is fetched again after so many nanoseconds, and each time
/// after that much more.
const AGAIN: u64 = 20 * MILLISECOND;

/// But not later than this, in nanoseconds.
const AGAIN_MOST: u64 = SECOND;

/// What such a key takes besides its bytes: its entry and the allocator's share, in bytes.
const ENTRY: usize = 96;

/// Keys that wait to be fetched again; beyond that no others are begun. Of those that are compared each
/// doubt waits for a second.
const MOST_AGAIN: usize = 1000;
const MOST_DOUBTS: usize = 8000;

/// Fewer answers in a second say nothing of how late they are.
const SAMPLES: u64 = 100;

/// How a server is asked for its keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    /// By its hash table: no key is missed.
    Hash,
    /// By its LRUs, for servers that do not know that: a key that moves meanwhile is missed, so they are
    /// listed twice.
    All,
    /// The second time.
    AllAgain,
}

/// Where a refill is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// How late answers are without it is measured until then.
    Measure(Time),
    /// Its next source is to be listed, not before this time.
    List(Time),
    /// It is being listed.
    Listing,
    /// What was listed is being copied.
    Copying,
}

/// How a listing came to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// All keys came.
    Whole,
    /// The server lists to somebody else, or says nothing.
    Busy,
    /// It does not list, or not in this way.
    Refused,
    /// The connection was lost before the end.
    Cut,
}

/// What came of keys.
#[derive(Clone, Copy, Default, Debug)]
pub struct Progress {
    /// When it began, or came to its end.
    pub since: Time,
    pub listed: u64,
    pub copied: u64,
    /// The target had them.
    pub there: u64,
    /// The source had them no more, or they belong elsewhere by now.
    pub gone: u64,
    /// They cannot be copied: stale, too large, refused, no base64 of so long a key.
    pub skipped: u64,
    /// Bytes of the values that were copied.
    pub bytes: u64,
    /// Not every source tells its keys.
    pub is_partial: bool,
}

/// How late a server answers.
#[derive(Debug)]
pub struct Meter {
    server: ServerId,
    /// p99 in microseconds before the refill; 0: too few answers.
    before: u64,
    /// All answers until it was last looked at.
    last: Histogram,
}

/// A key that waits, and what is known of it.
type Waiting = (Box<[u8]>, Listed);

/// All refills, and what they share.
#[derive(Debug)]
pub struct Refills {
    /// The first one is under way if it has begun.
    pub jobs: VecDeque<Refill>,
    pub pace: Pace,
    pub copies: Copies,
    /// How the last listing ended, until that is looked at.
    pub ended: Option<Ended>,
    /// Bytes charged to the budget for the listing.
    pub listing_charged: usize,
}

/// A refill or a comparison under way, or that waits.
#[derive(Debug)]
pub struct Refill {
    pub target: ServerId,
    /// What was found so far, if it compares and copies nothing.
    pub verify: Option<Box<Verify>>,
    /// How often it began anew: keys on their way then are not its any more.
    pub round: u32,
    /// It is under way, or was and waits for keys that are to be fetched again.
    pub has_begun: bool,
    /// Servers that may have what it lacks.
    pub partners: Vec<ServerId>,
    /// Of them, those that are still to be listed, the next one first.
    pub sources: VecDeque<ServerId>,
    /// It lists servers; else it has single keys only, which were deleted on the target.
    pub lists: bool,
    pub stage: Stage,
    pub how: How,
    pub spool: Spool,
    /// Single keys, and those to fetch again, by when.
    again: BTreeMap<(Time, u64), Waiting>,
    again_bytes: usize,
    /// When these take so many bytes no others are begun.
    most_waiting: usize,
    number: u64,
    /// Single keys were forgotten for want of room: its sources are to be listed once more.
    pub overflowed: bool,
    pub progress: Progress,
    pub meters: Vec<Meter>,
    pub observe_at: Time,
    /// Bytes charged to the budget.
    pub charged: usize,
}

saved_fields!(Progress {
    since,
    listed,
    copied,
    there,
    gone,
    skipped,
    bytes,
    is_partial,
});

impl Refills {
    /// None.
    pub fn new() -> Refills {
        Refills {
            jobs: VecDeque::new(),
            pace: Pace::new(0),
            copies: Copies::default(),
            ended: None,
            listing_charged: 0,
        }
    }

    /// The one that is under way.
    pub fn current(&mut self) -> Option<&mut Refill> {
        self.jobs.front_mut().filter(|r| r.has_begun)
    }

    /// The refill of a server.
    pub fn of(&mut self, target: ServerId) -> Option<&mut Refill> {
        self.job(target, false)
    }

    /// The refill of a server, or its comparison.
    pub fn job(&mut self, target: ServerId, verifies: bool) -> Option<&mut Refill> {
        let mut jobs = self.jobs.iter_mut();
        jobs.find(|r| r.target == target && r.verify.is_some() == verifies)
    }

    /// Bytes that they hold.
    #[cfg(debug_assertions)]
    pub fn charged(&self) -> usize {
        self.listing_charged + self.jobs.iter().map(|r| r.charged).sum::<usize>()
    }
}

impl Refill {
    /// Nothing is known of what the target lacks.
    pub fn new(target: ServerId) -> Refill {
        Refill {
            target,
            verify: None,
            round: 0,
            has_begun: false,
            partners: Vec::new(),
            sources: VecDeque::new(),
            lists: false,
            stage: Stage::Copying,
            how: How::Hash,
            spool: Spool::new(0),
            again: BTreeMap::new(),
            again_bytes: 0,
            most_waiting: usize::MAX,
            number: 0,
            overflowed: false,
            progress: Progress::default(),
            meters: Vec::new(),
            observe_at: Time::NEVER,
            charged: 0,
        }
    }

    /// It begins, or begins again: all these servers are to be listed, and so many bytes of keys kept; of
    /// such that wait half as much.
    pub fn list(&mut self, sources: Vec<ServerId>, spool: usize) {
        self.sources = sources.into();
        self.round += 1;
        self.most_waiting = spool / 2;
        if let Some(verify) = &mut self.verify {
            verify.begin_anew();
        }
        (self.lists, self.has_begun) = (true, false);
        self.spool = Spool::new(spool);
        self.again.clear();
        (self.again_bytes, self.overflowed) = (0, false);
        self.how = How::Hash;
        self.stage = Stage::Measure(Time::NEVER);
        self.progress = Progress::default();
    }

    /// Names it, as long as it does not begin anew.
    pub fn job(&self) -> Job {
        Job {
            target: self.target,
            verifies: self.verify.is_some(),
            round: self.round,
        }
    }

    /// What it changes, if it is a comparison that does.
    pub fn repair(&self) -> Option<&Repair> {
        self.verify.as_ref()?.repair.as_ref()
    }

    /// True if it is the one that is named so.
    pub fn is(&self, job: Job) -> bool {
        self.job() == job
    }

    /// A single key is to be looked at; what waits takes `most` bytes at most.
    pub fn add(&mut self, key: &[u8], most: usize, now: Time) {
        if self.again_bytes + key.len() + ENTRY > most {
            // A listing that is still to begin tells it.
            self.overflowed |= !self.lists || self.stage != Stage::Measure(Time::NEVER);
        } else {
            self.put(now, key.into(), Listed::default());
        }
    }

    fn put(&mut self, at: Time, key: Box<[u8]>, listed: Listed) {
        self.number += 1;
        self.again_bytes += key.len() + ENTRY;
        self.again.insert((at, self.number), (key, listed));
    }

    /// Single keys, and those to fetch again.
    pub fn keys(&self) -> impl Iterator<Item = &Box<[u8]>> {
        self.again.values().map(|(key, _)| key)
    }

    /// Keys that are listed and not looked at.
    pub fn to_go(&self) -> usize {
        self.spool.len() + self.again.len()
    }

    /// Bytes that it holds.
    pub fn bytes(&self) -> usize {
        self.spool.bytes() + self.waiting_bytes()
    }

    fn waiting_bytes(&self) -> usize {
        self.again_bytes + self.verify.as_ref().map_or(0, |v| v.bytes())
    }

    /// True if no key is to be begun that was not looked at.
    fn is_full(&self) -> bool {
        let most = if self.verify.is_some() {
            MOST_DOUBTS
        } else {
            MOST_AGAIN
        };
        self.again.len() >= most || self.waiting_bytes() > self.most_waiting
    }

    /// The next key to look at.
    pub fn next(&mut self, now: Time) -> Option<(Vec<u8>, Listed)> {
        if self.again_at() <= now {
            let (_, (key, listed)) = self.again.pop_first()?;
            self.again_bytes -= key.len() + ENTRY;
            return Some((key.into_vec(), listed));
        }
        if self.is_full() {
            return None;
        }
        let mut key = Vec::new();
        let listed = Listed {
            size: self.spool.pop(&mut key)?,
            tries: 0,
            is_own: self.sources.front() == Some(&self.target),
        };
        Some((key, listed))
    }

    /// True if all that it has to do is to wait for keys that are to be fetched again.
    pub fn idles(&self, now: Time) -> bool {
        self.stage == Stage::Copying && self.to_go() > 0 && self.next_at() > now
    }

    /// When [`Refill::next`] has one.
    pub fn next_at(&self) -> Time {
        match self.spool.len() > 0 && !self.is_full() {
            true => Time(0),
            false => self.again_at(),
        }
    }

    fn again_at(&self) -> Time {
        let first = self.again.first_key_value();
        first.map_or(Time::NEVER, |((at, _), _)| *at)
    }

    /// A key is to be fetched again.
    pub fn again(&mut self, key: Box<[u8]>, mut listed: Listed, now: Time) {
        listed.tries = listed.tries.saturating_add(1);
        let wait = AGAIN.saturating_mul(listed.tries.into()).min(AGAIN_MOST);
        self.put(now.plus(wait), key, listed);
    }

    /// A key is to be compared once more at this time.
    pub fn compare_again(&mut self, key: Box<[u8]>, mut listed: Listed, at: Time) {
        listed.tries = listed.tries.saturating_add(1);
        self.put(at, key, listed);
    }

    /// What was listed was looked at: the next listing, if there is to be one.
    pub fn lists_more(&mut self, now: Time) {
        match self.how {
            // To count no key twice.
            How::All if self.verify.is_some() => {
                self.progress.is_partial = true;
                if !self.spool.goes_on() {
                    self.pass_over(now);
                    return;
                }
            }
            How::All => self.how = How::AllAgain,
            How::AllAgain if self.spool.goes_on() => self.how = How::All,
            How::Hash if self.spool.goes_on() => {}
            How::Hash | How::AllAgain => {
                self.pass_over(now);
                return;
            }
        }
        self.stage = Stage::List(now);
    }

    /// The first source is done with, or of no use. Returns which it was.
    pub fn pass_over(&mut self, now: Time) -> Option<ServerId> {
        let source = self.sources.pop_front();
        self.begin_source();
        self.stage = match self.sources.is_empty() {
            true => Stage::Copying,
            false => Stage::List(now),
        };
        source
    }

    /// Servers that are no partners any more are not listed. True if the first one was one of them.
    pub fn forget_sources(&mut self) -> bool {
        let first = self.sources.front().copied();
        let (partners, target) = (&self.partners, self.target);
        let verifies = self.verify.is_some();
        let is_partner = |id: &ServerId| partners.contains(id) || (verifies && *id == target);
        self.sources.retain(is_partner);
        let is_gone = self.sources.front().copied() != first;
        if is_gone {
            self.begin_source();
            self.stage = match self.sources.is_empty() {
                true => Stage::Copying,
                false => Stage::List(Time(0)),
            };
        }
        is_gone
    }

    /// Another source is the first one.
    pub fn begin_source(&mut self) {
        self.spool.clear();
        self.how = How::Hash;
    }
}

impl Meter {
    /// Nothing is known yet of how late this server answers; `all` are its answers so far.
    pub fn new(server: ServerId, all: &Histogram) -> Meter {
        Meter {
            server,
            before: 0,
            last: all.clone(),
        }
    }

    /// Whose it is.
    pub fn server(&self) -> ServerId {
        self.server
    }

    /// p99 since the last call, in microseconds, and that before the refill; 0: too few answers.
    pub fn look(&mut self, all: &Histogram) -> (u64, u64) {
        let since = all.since(&self.last);
        self.last = all.clone();
        let p99 = match since.count() >= SAMPLES {
            true => since.quantile(990),
            false => 0,
        };
        (p99, self.before)
    }

    /// The refill begins: what was measured until now is what was before.
    pub fn begin(&mut self, all: &Histogram) {
        self.before = self.look(all).0;
    }
}
