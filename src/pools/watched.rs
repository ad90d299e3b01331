//! Copies that are looked after: values that were sent to a second server, whose first one may have been
//! changed by another magent meanwhile.
//!
//! ```text
//!  Watch: copy on its way ─▶ its source is looked at ─▶ over
//!                                   │ another cas, or not known
//!                                   └─▶ the copy is deleted ─▶ over
//! ```

use super::ServerId;
use super::lacking::AllLacking;
use crate::protocol::forms::Told;
use crate::slab::Slab;
use crate::time::{MILLISECOND, Time};
use std::collections::VecDeque;

/// A look may wait so long, in nanoseconds, for requests that go to its server too.
const COMPANY: u64 = MILLISECOND;

/// Servers round times to live, in seconds.
const ROUNDING: u64 = 2;

/// Places for the keys that were written last.
const PLACES: usize = 1024;

/// What was sent to the second server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A value.
    Value,
    /// A change by the number that it must come to.
    Number(u64),
    /// A time to live.
    Touch,
    /// A delete.
    Delete,
    /// A delete in the place of a change that nobody could look after.
    Instead,
    /// A value that the primary lacked. What clients do there is built upon it, so in doubt all of it goes.
    Fetched,
    /// A value that the backup lacked.
    Refilled,
}

/// One copy.
#[derive(Clone, Copy, Debug)]
pub struct Watch {
    /// Whose value it is a copy of.
    pub source: ServerId,
    /// Where it stands.
    pub target: ServerId,
    pub hash: u64,
    pub kind: Kind,
    /// The cas number that the source must still have.
    pub cas: Option<u64>,
    /// When it expires, in seconds since the epoch, -1 for never; `None`: not known.
    pub expires: Option<i64>,
    /// Its own cas number; without one it is deleted whatever stands there.
    pub copy: Option<u64>,
    /// Its place among all writes of this magent.
    pub number: u64,
    /// It was deleted before it arrived.
    pub is_void: bool,
}

impl Watch {
    /// Of which nothing is known.
    pub fn new(source: ServerId, target: ServerId, hash: u64, kind: Kind) -> Watch {
        Watch {
            source,
            target,
            hash,
            kind,
            cas: None,
            expires: None,
            copy: None,
            number: 0,
            is_void: false,
        }
    }
}

/// The last writes of one key.
#[derive(Clone, Copy, Default, Debug)]
struct Last {
    hash: u64,
    /// The last one that leaves nothing of those before, of which all that came before is looked after with it.
    write: u64,
    /// The last one that leaves nothing of those before at the primary either.
    whole: u64,
    /// The last one that changed the time to live alone.
    touch: u64,
}

/// All of them.
#[derive(Default, Debug)]
pub struct Watched {
    pub table: Slab<Watch>,
    /// Keys whose copy was deleted, and that are copied again.
    pub lacking: AllLacking,
    /// No server is shared after this time.
    pub shared_until: Time,
    /// Copied bytes charged to the budget.
    pub charged: usize,
    /// By hash: keys that fall into one place push each other out, which costs a look.
    last: Vec<Last>,
    number: u64,
    /// Links with looks that wait for company, and until when.
    waiting: VecDeque<(Time, usize)>,
    /// Servers that went down, or are late: copies of what they hold are in doubt.
    pub lost: Vec<ServerId>,
}

impl Watched {
    /// A server went down, or is late.
    pub fn note_lost(&mut self, server: ServerId) {
        if !self.table.is_empty() && !self.lost.contains(&server) {
            self.lost.push(server);
        }
    }

    /// Bytes that it holds.
    pub fn bytes(&self) -> usize {
        self.table.len() * size_of::<Watch>()
    }

    /// A copy is on its way to its second server.
    pub fn add(&mut self, watch: Watch) -> usize {
        let number = self.note_write(watch.hash, watch.kind);
        self.table.insert(Watch { number, ..watch })
    }

    /// A write of a key with this hash is sent on to its second server. Returns its place among all.
    fn note_write(&mut self, hash: u64, kind: Kind) -> u64 {
        if self.last.is_empty() {
            self.last = vec![Last::default(); PLACES];
        }
        self.number += 1;
        let last = &mut self.last[place(hash)];
        if last.hash != hash {
            *last = Last {
                hash,
                ..Last::default()
            };
        }
        match kind {
            Kind::Touch => last.touch = self.number,
            Kind::Fetched | Kind::Refilled => {}
            Kind::Number(_) | Kind::Instead => last.write = self.number,
            Kind::Value | Kind::Delete => {
                last.write = self.number;
                last.whole = self.number;
            }
        }
        self.number
    }

    fn last_of(&self, hash: u64) -> Last {
        let last = self.last.get(place(hash)).copied().unwrap_or_default();
        if last.hash == hash {
            last
        } else {
            Last::default()
        }
    }

    /// True if a later write of this magent, which leaves nothing of it, follows on the same link: that is
    /// looked after in its place.
    pub fn is_followed(&self, watch: &Watch) -> bool {
        let last = self.last_of(watch.hash);
        match watch.kind {
            Kind::Fetched => last.whole > watch.number,
            _ => last.write > watch.number,
        }
    }

    /// True if the source, of which a look told this at `unix`, in seconds since the epoch, still is what was
    /// copied. Two seconds more or less to live are the servers' rounding; `took` is what the answer took, in
    /// seconds.
    pub fn stands(&self, watch: &Watch, seen: Told, unix: i64, took: u64) -> bool {
        let is_touched = self.last_of(watch.hash).touch > watch.number;
        let lives_as_long = match (watch.expires, seen.ttl) {
            _ if is_touched => true,
            (Some(-1), Some(left)) => left == -1,
            // A second before its end it shows what one shows that never ends.
            (Some(at), Some(left)) => {
                let until = unix.saturating_add(left.saturating_abs());
                at.abs_diff(until) <= ROUNDING + took
            }
            (None, _) => true,
            (Some(_), None) => false,
        };
        let is_same = watch.cas.is_none() || watch.cas == seen.cas;
        is_same && lives_as_long
    }

    /// A look was put on a link, which waits since now if it did not before.
    pub fn wait(&mut self, link: usize, now: Time) {
        self.waiting.push_back((now.plus(COMPANY), link));
    }

    /// When the next looks go out that found no company.
    pub fn write_at(&self) -> Time {
        self.waiting.front().map_or(Time::NEVER, |(at, _)| *at)
    }

    /// The next link whose looks have waited long enough.
    pub fn next_due(&mut self, now: Time) -> Option<usize> {
        let (at, link) = *self.waiting.front()?;
        if at > now {
            return None;
        }
        self.waiting.pop_front();
        Some(link)
    }

    /// Forgets the first links as long as they do not wait any more.
    pub fn forget_written(&mut self, waits: impl Fn(usize) -> bool) {
        while self.waiting.front().is_some_and(|(_, link)| !waits(*link)) {
            self.waiting.pop_front();
        }
    }
}

fn place(hash: u64) -> usize {
    // Its low bits choose the link.
    (hash >> 20) as usize % PLACES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(kind: Kind, number: u64) -> Watch {
        Watch {
            cas: Some(9),
            expires: Some(1100),
            number,
            ..Watch::new(1, 2, 7, kind)
        }
    }

    #[test]
    fn a_later_write_of_the_same_key_is_looked_after_in_its_place() {
        let mut all = Watched::default();
        let number = all.note_write(7, Kind::Value);
        let first = watch(Kind::Value, number);
        assert!(!all.is_followed(&first));
        // Another key, in the same place or not, says nothing of it.
        all.note_write(8, Kind::Value);
        assert!(!all.is_followed(&first));
        all.note_write(7 | 1 << 63, Kind::Value);
        assert!(!all.is_followed(&first));
        all.note_write(7, Kind::Touch);
        assert!(!all.is_followed(&first));
        for kind in [Kind::Number(1), Kind::Delete, Kind::Instead, Kind::Value] {
            let mut all = Watched::default();
            let first = watch(Kind::Value, all.note_write(7, Kind::Value));
            all.note_write(7, kind);
            assert!(all.is_followed(&first), "{kind:?}");
            // A change at the primary builds upon what was fetched to it.
            let is_whole = matches!(kind, Kind::Value | Kind::Delete);
            let fetched = Watch {
                kind: Kind::Fetched,
                ..first
            };
            assert_eq!(all.is_followed(&fetched), is_whole, "{kind:?}");
        }
    }

    #[test]
    fn a_copy_stands_while_its_source_has_its_cas_and_its_time() {
        let mut all = Watched::default();
        let mut w = watch(Kind::Value, all.note_write(7, Kind::Value));
        let told = |cas, ttl| Told { cas, ttl };
        for (cas, ttl, want) in [
            (Some(9), Some(100), true),
            (Some(9), Some(-100), true),
            (Some(9), Some(98), true),
            (Some(9), Some(103), false),
            (Some(9), Some(-1), false),
            (Some(10), Some(100), false),
            (None, Some(100), false),
            (Some(9), None, false),
        ] {
            assert_eq!(
                all.stands(&w, told(cas, ttl), 1000, 0),
                want,
                "{cas:?} {ttl:?}"
            );
        }
        assert!(all.stands(&w, told(Some(9), Some(103)), 1000, 1));
        assert!(all.stands(&w, told(Some(9), Some(-1)), 1099, 0));
        w.expires = Some(-1);
        assert!(all.stands(&w, told(Some(9), Some(-1)), 1000, 0));
        assert!(!all.stands(&w, told(Some(9), Some(0)), 1000, 0));
        // A touch of this magent's own is looked after by itself.
        all.note_write(7, Kind::Touch);
        assert!(all.stands(&w, told(Some(9), Some(103)), 1000, 0));
        // A touch has no number of its own.
        w.cas = None;
        assert!(all.stands(&w, told(Some(10), Some(5)), 1000, 0));
    }

    #[test]
    fn looks_wait_for_company_as_long_as_nothing_else_goes_out() {
        let mut all = Watched::default();
        assert_eq!(all.write_at(), Time::NEVER);
        all.wait(3, Time(0));
        all.wait(4, Time(10));
        assert_eq!(all.write_at(), Time(COMPANY));
        all.forget_written(|link| link != 3);
        assert_eq!(all.write_at(), Time(COMPANY + 10));
        assert_eq!(all.next_due(Time(COMPANY)), None);
        assert_eq!(all.next_due(Time(COMPANY + 10)), Some(4));
        assert_eq!(all.next_due(Time::NEVER), None);
    }
}
