//! The keys that a server missed while it was away or too full, in the order in which they were
//! missed. The server is sent a delete for each, and a key stays in the journal until that is
//! answered.
//!
//! ```text
//!  add ──▶ due ──take_due──▶ sent to the server ──answered──▶ forgotten
//!           ▲                   │
//!           └───────again───────┘ the link was lost
//!  add_stray ──▶ strays ──ring_changed──▶ due
//! ```
//!
//! A *stray* is a key that a server holds in another one's place while that one is out of the ring.
//! It may keep it until the ring changes.
//!
//! Every step costs the same however many keys there are: the table consists of many small ones, so
//! that none takes long to grow, and what is dropped is freed a little at a time.

mod blocks;
mod saved;

use blocks::Blocks;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::rc::Rc;

/// Memory that one journaled key takes besides its bytes: table entry, list entry, allocation.
const KEY_COST: usize = 112;

/// Small tables that make up the large one. The last of them gets twice as many keys as the first,
/// those between are a geometric series: so at any time some table is about to grow, and never many
/// of them together.
const TABLES: usize = 128;

/// Keys freed in one step; places of empty tables cost a part of that.
const FREED: usize = 512;
const PLACES: usize = 64;

/// Tables that never held more keys than this are kept for the next ones.
const FEW: usize = 1024;

type Table = HashMap<Rc<[u8]>, Entry>;

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Tells an entry from an older one of the same key.
    stamp: u64,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// Its delete is to be sent.
    Due,
    /// Its delete was sent and is not answered.
    Sent,
    /// Due once the ring has changed more often than so many times.
    Stray(u64),
}

/// What one server missed.
#[derive(Debug)]
pub struct Journal {
    tables: Vec<Table>,
    hasher: RandomState,
    due: Blocks<(u64, Rc<[u8]>)>,
    strays: Blocks<(u64, Rc<[u8]>)>,
    len: usize,
    /// The most keys that the present tables have held.
    peak: usize,
    bytes: usize,
    limit: usize,
    flush: Option<u64>,
    flush_at: Option<u64>,
    stamp: u64,
    ring: u64,
    /// Entries up to this stamp count in `marked`.
    mark: u64,
    marked: usize,
    overflows: u64,
    /// Dropped by a flush and not freed yet.
    dropped: Vec<Table>,
    dropped_lists: [Blocks<(u64, Rc<[u8]>)>; 2],
}

impl Journal {
    /// An empty journal of at most `limit` bytes.
    pub fn new(limit: usize) -> Journal {
        Journal {
            tables: Vec::new(),
            hasher: RandomState::new(),
            due: Blocks::default(),
            strays: Blocks::default(),
            len: 0,
            peak: 0,
            bytes: 0,
            limit,
            flush: None,
            flush_at: None,
            stamp: 0,
            ring: 1,
            mark: 0,
            marked: 0,
            overflows: 0,
            dropped: Vec::new(),
            dropped_lists: Default::default(),
        }
    }

    /// A new bound (reload); keys above it stay until they are synced.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    fn table(&mut self, key: &[u8]) -> &mut Table {
        if self.tables.is_empty() {
            self.tables.resize_with(TABLES, Table::new);
        }
        let at = table_of(self.hasher.hash_one(key));
        &mut self.tables[at]
    }

    fn entry(&self, key: &[u8]) -> Option<&Entry> {
        if self.len == 0 {
            return None;
        }
        let at = table_of(self.hasher.hash_one(key));
        self.tables.get(at)?.get(key)
    }

    /// The server missed what happened to `key`. Returns the stamp of the entry.
    pub fn add(&mut self, key: &[u8]) -> u64 {
        if let Some(key) = self.note(key, Kind::Due) {
            self.due.push_back((self.stamp, key));
        }
        self.stamp
    }

    /// The server holds `key` only as long as the ring stays what it is.
    pub fn add_stray(&mut self, key: &[u8]) {
        let is_due = self.entry(key).is_some_and(|e| e.kind == Kind::Due);
        if is_due {
            return;
        }
        if let Some(key) = self.note(key, Kind::Stray(self.ring)) {
            self.strays.push_back((self.stamp, key));
        }
    }

    /// Puts an entry in; returns the key for the list that it belongs on, unless a flush covers it.
    fn note(&mut self, key: &[u8], kind: Kind) -> Option<Rc<[u8]>> {
        self.stamp += 1;
        let entry = Entry {
            stamp: self.stamp,
            kind,
        };
        if self.flush.is_some() {
            // A flush covers every key; one that is written while the flush is on its way
            // needs another flush.
            self.flush = Some(self.stamp);
            return None;
        }
        let known = self.entry(key).map(|e| e.stamp);
        self.marked -= usize::from(known.is_some_and(|stamp| stamp <= self.mark));
        let is_known = known.is_some();
        if !is_known && self.bytes + key.len() + KEY_COST > self.limit {
            self.overflows += 1;
            self.mark_flush();
            return None;
        }
        if !is_known {
            self.bytes += key.len() + KEY_COST;
            self.len += 1;
            self.peak = self.peak.max(self.len);
        }
        let key: Rc<[u8]> = key.into();
        self.table(&key).insert(Rc::clone(&key), entry);
        Some(key)
    }

    /// The ring has changed: what the server held in another one's place is due.
    pub fn ring_changed(&mut self) {
        self.ring += 1;
    }

    /// True if the delete of `key` must go out before the server is asked for it.
    #[inline]
    pub fn is_due(&self, key: &[u8]) -> bool {
        self.entry(key).is_some_and(|e| match e.kind {
            Kind::Due => true,
            Kind::Sent => false,
            Kind::Stray(ring) => ring < self.ring,
        })
    }

    /// True if `key` is to go from the server, or its delete is on its way.
    pub fn is_to_go(&self, key: &[u8]) -> bool {
        let told = self.entry(key).is_some_and(|e| e.kind == Kind::Sent);
        told || self.is_due(key)
    }

    /// The next key to delete, oldest first, with its stamp. It stays in the journal until
    /// [`Journal::synced`] or [`Journal::again`].
    pub fn take_due(&mut self) -> Option<(Rc<[u8]>, u64)> {
        loop {
            let (stamp, key) = match self.due.pop_front() {
                Some(first) => first,
                None => self.next_stray()?,
            };
            let wanted = |e: &Entry| e.stamp == stamp && e.kind != Kind::Sent;
            if self.entry(&key).is_some_and(wanted) {
                self.set(&key, Kind::Sent);
                return Some((key, stamp));
            }
        }
    }

    fn next_stray(&mut self) -> Option<(u64, Rc<[u8]>)> {
        let (stamp, key) = self.strays.front()?;
        let stays = |e: &Entry| e.stamp == *stamp && e.kind == Kind::Stray(self.ring);
        if self.entry(key).is_some_and(stays) {
            return None;
        }
        self.strays.pop_front()
    }

    fn set(&mut self, key: &[u8], kind: Kind) {
        if let Some(entry) = self.table(key).get_mut(key) {
            entry.kind = kind;
        }
    }

    /// The delete of `key` is on its way; returns its stamp.
    pub fn mark_sent(&mut self, key: &[u8]) -> Option<u64> {
        let stamp = self.entry(key)?.stamp;
        self.set(key, Kind::Sent);
        Some(stamp)
    }

    /// The delete with this stamp was lost: the key is due once more.
    pub fn again(&mut self, key: &[u8], stamp: u64) {
        if self.entry(key).is_some_and(|e| e.stamp == stamp) {
            self.set(key, Kind::Due);
            self.due.push_back((stamp, key.into()));
        }
    }

    /// The delete of `key` with this stamp was answered.
    pub fn synced(&mut self, key: &[u8], stamp: u64) {
        if self.entry(key).is_some_and(|e| e.stamp == stamp) {
            self.table(key).remove(key);
            self.bytes -= key.len() + KEY_COST;
            self.len -= 1;
            self.marked -= usize::from(stamp <= self.mark);
            if self.len == 0 && self.peak > FEW {
                self.drop_keys();
            }
        }
    }

    /// True if a key is due.
    pub fn has_due(&self) -> bool {
        let stray = || {
            let (stamp, key) = self.strays.front()?;
            self.entry(key)
                .map(|e| e.stamp != *stamp || e.kind != Kind::Stray(self.ring))
        };
        !self.due.is_empty() || stray() == Some(true)
    }

    /// Marks what is noted now.
    pub fn mark(&mut self) {
        (self.mark, self.marked) = (self.stamp, self.len);
    }

    /// True once every key that was noted at the mark was synced, or noted anew.
    pub fn is_synced_to_mark(&self) -> bool {
        self.marked == 0
    }

    /// The server missed a flush, or more keys than can be noted: it will be flushed.
    pub fn mark_flush(&mut self) {
        self.stamp += 1;
        self.flush = Some(self.stamp);
        self.drop_keys();
    }

    /// The server missed a `flush_all` for later: for `unix` seconds since the epoch.
    pub fn mark_flush_at(&mut self, unix: u64) {
        self.flush_at = Some(self.flush_at.map_or(unix, |at| at.max(unix)));
    }

    /// A flush for later that the server is to be sent; one whose time has come is a flush for now.
    pub fn take_flush_at(&mut self, unix: u64) -> Option<u64> {
        let at = self.flush_at.take()?;
        if at <= unix {
            self.mark_flush();
            return None;
        }
        Some(at)
    }

    fn drop_keys(&mut self) {
        self.dropped.append(&mut self.tables);
        self.dropped_lists[0].append(&mut self.due);
        self.dropped_lists[1].append(&mut self.strays);
        (self.bytes, self.len, self.marked, self.peak) = (0, 0, 0, 0);
        self.free_some();
    }

    /// Frees a bounded part of what was dropped. True if there is more.
    pub fn free_some(&mut self) -> bool {
        for list in &mut self.dropped_lists {
            list.drop_last(FREED);
        }
        let mut left = FREED;
        while left > 0 {
            let Some(table) = self.dropped.last() else {
                break;
            };
            left = left.saturating_sub(table.len() / 4 + table.capacity() / PLACES + 1);
            self.dropped.pop();
        }
        !self.dropped.is_empty() || self.dropped_lists.iter().any(|l| !l.is_empty())
    }

    /// The stamp of the flush that is due, if one is.
    pub fn flush_due(&self) -> Option<u64> {
        self.flush
    }

    /// The flush with this stamp was answered.
    pub fn flushed(&mut self, stamp: u64) {
        if self.flush == Some(stamp) {
            self.flush = None;
        }
    }

    /// True if half of what may be noted is.
    pub fn is_half_full(&self) -> bool {
        self.bytes >= self.limit / 2
    }

    /// True if the server missed nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0 && self.flush.is_none() && self.flush_at.is_none()
    }

    /// Memory used, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many keys are noted.
    pub fn len(&self) -> usize {
        self.len
    }

    /// How often it was full.
    pub fn overflows(&self) -> u64 {
        self.overflows
    }
}

/// The table for a key of this hash.
#[inline]
fn table_of(hash: u64) -> usize {
    // 1 to 2, all alike likely; its logarithm is likely to be near 1.
    let one_to_two = f64::from_bits(1023 << 52 | hash >> 12);
    (one_to_two.log2() * TABLES as f64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(j: &mut Journal) -> Vec<String> {
        let mut all = Vec::new();
        while let Some((key, stamp)) = j.take_due() {
            all.push(String::from_utf8_lossy(&key).into_owned());
            j.synced(&key, stamp);
        }
        all
    }

    #[test]
    fn keys_are_told_once_and_in_order() {
        let mut j = Journal::new(1 << 20);
        for key in ["a", "b", "a", "c"] {
            j.add(key.as_bytes());
        }
        assert_eq!((j.len(), j.is_due(b"a"), j.is_due(b"x")), (3, true, false));
        assert_eq!(told(&mut j), ["b", "a", "c"]);
        assert!(j.is_empty() && j.bytes() == 0);
    }

    #[test]
    fn a_key_journaled_again_outlives_the_older_delete() {
        let mut j = Journal::new(10_000);
        j.add(b"k");
        let (key, first) = j.take_due().expect("due");
        assert!(!j.is_due(b"k"), "a delete is on its way");
        j.add(b"k");
        assert!(j.is_due(b"k"));
        j.synced(&key, first);
        assert_eq!(j.len(), 1);
        assert_eq!(told(&mut j), ["k"]);
        assert!(j.is_empty() && j.bytes() == 0);
    }

    #[test]
    fn a_delete_that_was_lost_is_told_again() {
        let mut j = Journal::new(10_000);
        j.add(b"k");
        let (key, stamp) = j.take_due().expect("due");
        assert!(j.take_due().is_none());
        j.again(&key, stamp);
        assert_eq!(told(&mut j), ["k"]);
    }

    #[test]
    fn what_was_noted_at_the_mark_is_told_whatever_comes_later() {
        let mut j = Journal::new(10_000);
        j.add(b"a");
        j.add(b"b");
        j.mark();
        j.add(b"c");
        j.add(b"b");
        assert!(!j.is_synced_to_mark());
        let (key, stamp) = j.take_due().expect("due");
        assert!(!j.is_synced_to_mark(), "on its way");
        j.synced(&key, stamp);
        assert_eq!(
            (&key[..], j.is_synced_to_mark(), j.len()),
            (&b"a"[..], true, 2)
        );
    }

    #[test]
    fn strays_are_due_when_the_ring_has_changed() {
        let mut j = Journal::new(10_000);
        j.add_stray(b"s");
        j.add(b"d");
        assert!(!j.is_due(b"s"));
        assert_eq!(told(&mut j), ["d"]);
        assert_eq!(j.len(), 1);
        j.ring_changed();
        assert!(j.is_due(b"s") && j.has_due());
        j.add_stray(b"t");
        assert_eq!(told(&mut j), ["s"]);
        assert!(!j.is_empty() && !j.has_due());
    }

    #[test]
    fn an_overflow_becomes_a_flush_that_later_writes_renew() {
        let mut j = Journal::new(10 * (KEY_COST + 4));
        for i in 0..11 {
            j.add(format!("k{i:03}").as_bytes());
        }
        assert_eq!((j.len(), j.bytes(), j.overflows()), (0, 0, 1));
        let due = j.flush_due().expect("flush");
        j.add(b"late");
        j.flushed(due);
        assert!(!j.is_empty(), "written after the flush was sent");
        j.flushed(j.flush_due().expect("flush"));
        assert!(j.is_empty());
    }

    #[test]
    fn a_flush_for_later_keeps_its_time_or_becomes_one_for_now() {
        let mut j = Journal::new(1000);
        j.mark_flush_at(50);
        assert_eq!((j.is_empty(), j.take_flush_at(40)), (false, Some(50)));
        j.mark_flush_at(50);
        assert_eq!((j.take_flush_at(50), j.flush_due().is_some()), (None, true));
    }

    #[test]
    fn tables_grow_one_after_the_other() {
        let mut j = Journal::new(1 << 30);
        let places = |j: &Journal| -> usize { j.tables.iter().map(|t| t.capacity()).sum() };
        let (mut before, mut most) = (0, 0);
        for i in 0..400_000 {
            j.add(format!("key{i}").as_bytes());
            if i % 1000 == 0 {
                most = most.max(places(&j) - before);
                before = places(&j);
            }
        }
        // All at once would be 200 000.
        assert!(most < 50_000, "{most}");
        assert_eq!((table_of(0), table_of(u64::MAX)), (0, TABLES - 1));
    }

    #[test]
    fn what_is_dropped_is_freed_in_pieces() {
        let mut j = Journal::new(1 << 30);
        for i in 0..100_000 {
            j.add(format!("key{i}").as_bytes());
        }
        j.mark_flush();
        assert_eq!(j.bytes(), 0);
        let mut steps = 0;
        while j.free_some() {
            steps += 1;
        }
        assert!((10..1000).contains(&steps), "{steps}");
    }
}
