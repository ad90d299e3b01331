//! Bytes in flight of all connections together, against `-m`.
//!
//! Every holder of bytes charges them here and releases them when it drops them. Copied bytes are
//! charged by the client, link or list that holds them; a chunk is charged once, by itself, while
//! it is shared ([`ChunkPool`]).
//!
//! One rule decides who waits: a connection may hold an eighth of what is free. As memory fills up
//! that share shrinks, and the last part is kept for connections that hold little, so that they
//! never wait for those that hold much. (Choudhury and Hahne, "Dynamic queue length thresholds for
//! shared-memory packet switches", 1998.)

use crate::buffer::ChunkPool;
use std::cell::Cell;
use std::rc::Rc;

/// A connection may hold one part in so many of what is free.
const SHARE: usize = 8;

/// One part in so many of all memory is kept for connections that hold little.
const RESERVE: usize = 8;

/// A connection that holds at most one part in so many of all memory, and at most 64 KiB, may use
/// the reserve.
const LITTLE: usize = 128;

/// Enough for a request with a key and nothing else, in bytes.
const SHORT_LINE: usize = 64;

/// The account of all bytes in flight.
#[derive(Debug)]
pub struct Budget {
    limit: usize,
    copied: Cell<usize>,
    most: Cell<usize>,
    chunks: ChunkPool,
}

impl Budget {
    /// An empty account that is full at `limit` bytes.
    pub fn new(limit: usize) -> Rc<Budget> {
        Rc::new(Budget {
            limit,
            copied: Cell::new(0),
            most: Cell::new(0),
            chunks: ChunkPool::default(),
        })
    }

    /// Where chunks come from; those that are shared count here.
    pub fn chunks(&self) -> &ChunkPool {
        &self.chunks
    }

    /// The bound, in bytes (`-m`).
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// An owner that was charged for `charged` copied bytes holds `now` of them.
    #[inline]
    pub fn recharge(&self, charged: &mut usize, now: usize) {
        if *charged != now {
            self.copied.set(self.copied.get() - *charged + now);
            *charged = now;
        }
    }

    /// Copied bytes charged.
    pub fn copied(&self) -> usize {
        self.copied.get()
    }

    /// Bytes in flight: copied ones and shared chunks.
    pub fn total(&self) -> usize {
        self.copied.get() + self.chunks.lent_bytes()
    }

    /// Bytes that may still be taken.
    fn free(&self) -> usize {
        self.limit.saturating_sub(self.total())
    }

    /// Bytes that may still be taken by connections that hold more than a little.
    pub fn common(&self) -> usize {
        self.free().saturating_sub(self.limit / RESERVE)
    }

    /// What one connection may hold now, in bytes.
    pub fn share(&self) -> usize {
        self.common() / SHARE
    }

    /// Bytes that may be read from any client, whatever others hold; only a short line once half of
    /// the reserve is taken too.
    pub fn least(&self) -> usize {
        match self.free() > self.limit / RESERVE / 2 {
            true => self.little() / 2,
            false => SHORT_LINE,
        }
    }

    /// What counts as little, in bytes.
    pub fn little(&self) -> usize {
        (self.limit / LITTLE).clamp(4 * 1024, 64 * 1024)
    }

    /// True if so many bytes more may be taken by a connection that holds `holds`.
    pub fn admits(&self, holds: usize, more: usize) -> bool {
        if holds + more <= self.little() {
            more <= self.free()
        } else {
            more <= self.common()
        }
    }

    /// True if much has been in flight since [`Budget::has_fallen`] last returned true.
    pub fn was_high(&self) -> bool {
        self.most.get() >= WORTH_GIVING_BACK
    }

    /// Notes the total at the end of a turn. True, once, when it has fallen far below its peak: the
    /// time to return freed memory to the system.
    pub fn has_fallen(&self) -> bool {
        let total = self.total();
        let most = self.most.get().max(total);
        self.most.set(most);
        let fallen = most >= WORTH_GIVING_BACK && total < most / 4;
        if fallen {
            self.most.set(total);
        }
        fallen
    }
}

/// A peak below this, in bytes, is not worth walking the heap for.
const WORTH_GIVING_BACK: usize = 16 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_charged_is_released_exactly() {
        let budget = Budget::new(1000);
        let (mut a, mut b) = (0, 0);
        budget.recharge(&mut a, 300);
        budget.recharge(&mut b, 300);
        assert_eq!(
            (budget.total(), budget.free(), budget.share()),
            (600, 400, (400 - 125) / 8)
        );
        budget.recharge(&mut a, 100);
        budget.recharge(&mut b, 0);
        assert_eq!((budget.total(), a, b), (100, 100, 0));
    }

    /// However many take all they may, the rest is never nothing.
    #[test]
    fn greedy_owners_leave_something() {
        let budget = Budget::new(1 << 20);
        let mut owners = vec![0usize; 100];
        for _ in 0..1000 {
            for held in &mut owners {
                let next = (*held).max(budget.share());
                budget.recharge(held, next);
            }
        }
        assert!(budget.free() >= 1 << 17, "{}", budget.total());
        assert!(budget.admits(0, budget.little()) && !budget.admits(1, 1 << 18));
    }

    #[test]
    fn a_fall_from_a_high_peak_is_told_once() {
        let budget = Budget::new(1 << 30);
        let mut held = 0;
        budget.recharge(&mut held, WORTH_GIVING_BACK);
        assert!(!budget.has_fallen());
        budget.recharge(&mut held, 10);
        assert!(budget.has_fallen() && !budget.has_fallen());
    }
}
