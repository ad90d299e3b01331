//! Bytes on their way: where they wait, and how large ones are passed on without a copy.
//!
//! ```text
//!  socket ──read──▶ Chunk (the loop's scratch)
//!                     │ small: copied          │ large: shared by count
//!                     ▼                        ▼
//!                   Queue.own  ◀── one stream of bytes ──▶  Queue.shared
//!                     └────────────── writev ──────────────┘
//! ```
//!
//! A [`Queue`] is a stream with absolute offsets (`u64`, they never wrap in practice): bytes
//! are pushed at its end and released at its start. Between the two a reader may look at any
//! range again, which is how an upstream link keeps requests until they are answered.

use crate::saved::{Loaded, Loader, Saved, Saver};
use crate::sys;
use std::cell::Cell;
use std::collections::VecDeque;
use std::fmt;
use std::io::IoSlice;
use std::ops::Range;
use std::rc::Rc;

/// Size of the chunk that traffic is read into, in bytes: small enough to stay in the cache,
/// large enough for a whole batch of small requests, or for a value of 64 KB with its line in
/// one read.
pub const CHUNK: usize = 68 * 1024;

/// From this size on, in bytes, a run of bytes is shared and not copied. Below it a copy is
/// cheaper than a reference count and a scattered write.
pub const SHARE: usize = 8 * 1024;

/// A queue that is empty keeps at most this much memory, in bytes: what a batch of small
/// requests or of their answers needs.
const KEEP: usize = 64 * 1024;

/// Released bytes at the front of a queue that is not empty may take this much, in bytes.
const RELEASED: usize = 16 * 1024;

/// A block that is read into while nobody else holds it, and never changed once shared.
pub struct Chunk {
    data: Box<[u8]>,
    /// Not read into any more: it belongs to those that share it, and counts as in flight.
    lent: Cell<bool>,
    home: Rc<Home>,
}

impl fmt::Debug for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chunk({} bytes)", self.data.len())
    }
}

impl Chunk {
    /// All its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.data
    }

    /// All its bytes, for reading into; `None` once it is shared.
    pub fn writable(chunk: &mut Rc<Chunk>) -> Option<&mut [u8]> {
        Rc::get_mut(chunk).map(|c| &mut c.data[..])
    }
}

impl Drop for Chunk {
    /// Its pages were returned to the system. When a large backlog is gone, and with it thousands
    /// of chunks, returning all of them at once would take long.
    fn drop(&mut self) {
        sys::release_pages(&mut self.data);
    }
}

/// One share of a chunk. The last one to go gives the chunk back.
#[derive(Debug)]
struct Share(Rc<Chunk>);

impl Drop for Share {
    fn drop(&mut self) {
        // Whoever reads into it has it back by itself then.
        if Rc::strong_count(&self.0) == 1 && self.0.lent.get() {
            let home = &self.0.home;
            home.lent.set(home.lent.get() - self.0.data.len());
            self.0.lent.set(false);
            home.keep(Rc::clone(&self.0));
        }
    }
}

/// The pool that chunks return to.
#[derive(Default)]
struct Home {
    free: Cell<Vec<Rc<Chunk>>>,
    lent: Cell<usize>,
}

impl Home {
    fn keep(&self, chunk: Rc<Chunk>) {
        let mut free = self.free.take();
        if free.len() < FREE_CHUNKS {
            free.push(chunk);
        }
        self.free.set(free);
    }
}

/// Lends chunks and takes them back when the last holder let go, so that large values cost
/// no allocation in the steady state.
#[derive(Default)]
pub struct ChunkPool {
    home: Rc<Home>,
}

impl fmt::Debug for ChunkPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChunkPool({} bytes lent)", self.lent_bytes())
    }
}

/// Free chunks kept for reuse; beyond that they go back to the allocator.
const FREE_CHUNKS: usize = 64;

impl ChunkPool {
    /// A chunk of [`CHUNK`] bytes that nobody else holds.
    pub fn take(&self) -> Rc<Chunk> {
        let mut free = self.home.free.take();
        let chunk = free.pop();
        self.home.free.set(free);
        chunk.unwrap_or_else(|| {
            Rc::new(Chunk {
                data: vec![0; CHUNK].into_boxed_slice(),
                lent: Cell::new(false),
                home: Rc::clone(&self.home),
            })
        })
    }

    /// Takes a chunk back that was read into. If others share it, it is theirs from now on and
    /// counts as in flight until the last of them lets go.
    pub fn give(&self, chunk: Rc<Chunk>) {
        if Rc::strong_count(&chunk) == 1 {
            self.home.keep(chunk);
        } else {
            chunk.lent.set(true);
            self.home.lent.set(self.home.lent.get() + chunk.data.len());
        }
    }

    /// Bytes of all chunks that are shared and not read into any more.
    pub fn lent_bytes(&self) -> usize {
        self.home.lent.get()
    }
}

/// Bytes that stand somewhere and may be pushed on to a [`Queue`]: in a chunk (then large
/// runs are shared), or in a queue.
#[derive(Clone, Copy)]
pub enum Source<'a> {
    /// Offsets count from the start of the slice; they are copied, whatever their size.
    Slice(&'a [u8]),
    /// Offsets count from the start of the chunk.
    Chunk(&'a Rc<Chunk>),
    /// Offsets count from this stream offset of the queue.
    Queue(&'a Queue, u64),
}

impl<'a> Source<'a> {
    /// The bytes of `range` if they stand in one piece. A line always does: it is pushed at
    /// once and is small.
    #[inline]
    pub fn slice(self, range: Range<usize>) -> &'a [u8] {
        match self {
            Source::Slice(s) => &s[range],
            Source::Chunk(c) => &c.data[range],
            Source::Queue(q, base) => {
                let all = q.contiguous(base + range.start as u64);
                &all[..range.len().min(all.len())]
            }
        }
    }

    /// True if both are known to be the same bytes at the same offsets.
    #[inline]
    pub fn is(self, other: Source<'_>) -> bool {
        match (self, other) {
            (Source::Slice(a), Source::Slice(b)) => std::ptr::eq(a, b),
            (Source::Chunk(a), Source::Chunk(b)) => Rc::ptr_eq(a, b),
            (Source::Queue(a, from), Source::Queue(b, at)) => std::ptr::eq(a, b) && from == at,
            _ => false,
        }
    }

    /// Appends `range` to `out`, copied.
    pub fn copy_to(self, range: Range<usize>, out: &mut Vec<u8>) {
        match self {
            Source::Queue(q, base) => q
                .for_each(base + range.start as u64..base + range.end as u64, |s| {
                    out.extend_from_slice(s)
                }),
            _ => out.extend_from_slice(self.slice(range)),
        }
    }

    /// The last `n` bytes before `end`, copied into an array.
    #[inline]
    pub fn tail<const N: usize>(self, end: usize) -> Option<[u8; N]> {
        let from = end.checked_sub(N)?;
        let mut out = [0; N];
        match self {
            Source::Queue(q, base) => {
                let mut at = 0;
                q.for_each(base + from as u64..base + end as u64, |s| {
                    out[at..at + s.len()].copy_from_slice(s);
                    at += s.len();
                });
            }
            _ => out.copy_from_slice(self.slice(from..end)),
        }
        Some(out)
    }
}

/// A run of shared bytes inside a queue.
#[derive(Debug)]
struct Shared {
    /// Stream offset of its first byte.
    at: u64,
    /// How many copied bytes of the whole stream come before it.
    own_before: u64,
    chunk: Share,
    from: usize,
    len: usize,
}

/// A stream of bytes: copied ones in one block, large ones shared in between.
#[derive(Default, Debug)]
pub struct Queue {
    own: Vec<u8>,
    /// How many copied bytes of the stream were dropped before `own[0]`.
    own_gone: u64,
    shared: VecDeque<Shared>,
    start: u64,
    end: u64,
}

impl Queue {
    /// An empty queue; it holds no memory.
    pub fn new() -> Queue {
        Queue::default()
    }

    /// An empty queue whose stream is as if so many bytes had passed through it.
    pub fn starting_at(offset: u64) -> Queue {
        Queue {
            start: offset,
            end: offset,
            ..Queue::default()
        }
    }

    /// Stream offset of the first byte that is still held.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Stream offset behind the last byte.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Bytes held.
    pub fn len(&self) -> usize {
        (self.end - self.start) as usize
    }

    /// True if it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Copied bytes; shared ones are counted by the [`ChunkPool`].
    pub fn own_bytes(&self) -> usize {
        self.own.len()
    }

    /// Memory that it holds for itself, in bytes, used or not.
    pub fn capacity(&self) -> usize {
        self.own.capacity() + self.shared.capacity() * size_of::<Shared>()
    }

    /// Appends a copy of `bytes`.
    #[inline]
    pub fn push_slice(&mut self, bytes: &[u8]) {
        self.own.extend_from_slice(bytes);
        self.end += bytes.len() as u64;
    }

    /// Appends `len` bytes of `chunk` from `from` on: shared if there are many, else copied.
    #[inline]
    fn push_chunk(&mut self, chunk: &Rc<Chunk>, from: usize, len: usize) {
        match len {
            0..SHARE => self.push_slice(&chunk.data[from..from + len]),
            _ => self.share(chunk, from, len),
        }
    }

    fn share(&mut self, chunk: &Rc<Chunk>, from: usize, len: usize) {
        self.shared.push_back(Shared {
            at: self.end,
            own_before: self.own_gone + self.own.len() as u64,
            chunk: Share(Rc::clone(chunk)),
            from,
            len,
        });
        self.end += len as u64;
    }

    /// Appends `range` of `source`.
    #[inline]
    pub fn push(&mut self, source: Source<'_>, range: Range<usize>) {
        match source {
            Source::Slice(s) => self.push_slice(&s[range]),
            Source::Chunk(c) => self.push_chunk(c, range.start, range.len()),
            Source::Queue(q, base) => self.push_queue(q, base, range),
        }
    }

    fn push_queue(&mut self, q: &Queue, base: u64, range: Range<usize>) {
        let (mut at, end) = (base + range.start as u64, base + range.end as u64);
        while at < end {
            let before = self.end;
            match q.shared_at(at) {
                Some(s) => {
                    let skip = (at - s.at) as usize;
                    let n = (s.len - skip).min((end - at) as usize);
                    self.push_chunk(&s.chunk.0, s.from + skip, n);
                }
                None => {
                    let run = q.contiguous(at);
                    self.push_slice(&run[..run.len().min((end - at) as usize)]);
                }
            }
            if self.end == before {
                break;
            }
            at += self.end - before;
        }
    }

    /// Index of the last shared run that starts at or before `at`.
    #[inline]
    fn shared_before(&self, at: u64) -> Option<&Shared> {
        if self.shared.is_empty() {
            return None;
        }
        let i = self.shared.partition_point(|s| s.at <= at);
        i.checked_sub(1).and_then(|i| self.shared.get(i))
    }

    fn shared_at(&self, at: u64) -> Option<&Shared> {
        self.shared_before(at).filter(|s| at < s.at + s.len as u64)
    }

    /// The bytes from stream offset `at` on that stand in one piece.
    #[inline]
    fn contiguous(&self, at: u64) -> &[u8] {
        match self.shared.is_empty() {
            true => &self.own[self.own.len() - self.end.saturating_sub(at) as usize..],
            false => self.piece(at),
        }
    }

    /// The same where shared runs are in between.
    fn piece(&self, at: u64) -> &[u8] {
        if at >= self.end {
            return &[];
        }
        let i = self.shared.partition_point(|s| s.at <= at);
        let own_at = match i.checked_sub(1).and_then(|i| self.shared.get(i)) {
            Some(s) if at < s.at + s.len as u64 => {
                let skip = (at - s.at) as usize;
                return &s.chunk.0.data[s.from + skip..s.from + s.len];
            }
            Some(s) => s.own_before + (at - (s.at + s.len as u64)),
            None => {
                let first = &self.shared[0];
                first.own_before - (first.at - at)
            }
        };
        let to = self
            .shared
            .get(i)
            .map_or(self.own_gone + self.own.len() as u64, |s| s.own_before);
        &self.own[(own_at - self.own_gone) as usize..(to - self.own_gone) as usize]
    }

    /// Calls `f` with each piece of the stream's `range`, in order.
    pub fn for_each(&self, range: Range<u64>, mut f: impl FnMut(&[u8])) {
        let mut at = range.start;
        while at < range.end {
            let run = self.contiguous(at);
            let n = run.len().min((range.end - at) as usize);
            if n == 0 {
                break;
            }
            f(&run[..n]);
            at += n as u64;
        }
    }

    /// Fills `slices` with the pieces of the `most` bytes from stream offset `at` on; returns how
    /// many pieces.
    pub fn slices<'a>(&'a self, mut at: u64, most: usize, slices: &mut [IoSlice<'a>]) -> usize {
        let mut n = 0;
        let end = self.end.min(at.saturating_add(most as u64));
        while n < slices.len() && at < end {
            let run = self.contiguous(at);
            let run = &run[..run.len().min((end - at) as usize)];
            slices[n] = IoSlice::new(run);
            at += run.len() as u64;
            n += 1;
        }
        n
    }

    /// Forgets everything before stream offset `to`.
    pub fn release(&mut self, to: u64) {
        debug_assert!(to >= self.start && to <= self.end);
        if to == self.start {
            return;
        }
        self.start = to;
        while let Some(s) = self.shared.front() {
            if s.at + s.len as u64 > to {
                break;
            }
            self.shared.pop_front();
        }
        if self.start == self.end {
            self.own_gone += self.own.len() as u64;
            self.own.clear();
            if self.own.capacity() > KEEP {
                self.own = Vec::new();
            }
            if self.shared.capacity() > KEEP / size_of::<Shared>() {
                self.shared = VecDeque::new();
            }
            return;
        }
        // Move the rest to the front only when that costs less than what was dropped.
        let dropped = (self.own_position(to) - self.own_gone) as usize;
        if dropped > RELEASED && dropped > self.own.len() / 2 {
            self.own.drain(..dropped);
            self.own_gone += dropped as u64;
        }
    }

    /// How many copied bytes of the stream come before stream offset `at`.
    fn own_position(&self, at: u64) -> u64 {
        match self.shared_before(at) {
            Some(s) => s.own_before + (at - s.at).saturating_sub(s.len as u64),
            None => match self.shared.front() {
                Some(s) => s.own_before - (s.at - at),
                None => self.own_gone + self.own.len() as u64 - (self.end - at),
            },
        }
    }

    /// Forgets all; keeps a little memory for the next bytes.
    pub fn clear(&mut self) {
        self.release(self.end);
    }

    /// Forgets all and gives all memory back.
    pub fn free(&mut self) {
        *self = Queue {
            own_gone: 0,
            start: self.end,
            end: self.end,
            ..Queue::default()
        };
    }
}

/// The bytes that are held, without their offsets.
impl Saved for Queue {
    fn save(&self, to: &mut Saver<'_>) {
        to.pieces(self.len(), |put| self.for_each(self.start..self.end, put));
    }

    fn load(from: &mut Loader<'_>) -> Loaded<Queue> {
        let own = from.bytes()?;
        Ok(Queue {
            end: own.len() as u64,
            own,
            ..Queue::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(q: &Queue, range: Range<u64>) -> Vec<u8> {
        let mut v = Vec::new();
        q.for_each(range, |s| v.extend_from_slice(s));
        v
    }

    /// A cheap seeded generator: the test must be repeatable, not random.
    fn next(seed: &mut u64) -> u64 {
        *seed = seed
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        *seed >> 33
    }

    fn chunk_of(fill: &[u8]) -> Rc<Chunk> {
        let mut c = ChunkPool::default().take();
        Chunk::writable(&mut c).expect("unique")[..fill.len()].copy_from_slice(fill);
        c
    }

    /// Pushes and releases at random beside a plain vector that must agree.
    #[test]
    fn a_queue_is_a_stream() {
        for round in 0..200u64 {
            let mut seed = round + 1;
            let (mut q, mut model, mut start) = (Queue::new(), Vec::<u8>::new(), 0usize);
            for step in 0..60 {
                match next(&mut seed) % 5 {
                    0 | 1 => {
                        let v: Vec<u8> = (0..next(&mut seed) % 300)
                            .map(|i| (i + step) as u8)
                            .collect();
                        q.push_slice(&v);
                        model.extend_from_slice(&v);
                    }
                    2 => {
                        let n = (next(&mut seed) % 20_000) as usize;
                        let v: Vec<u8> = (0..n).map(|i| (i * 7 + round as usize) as u8).collect();
                        let c = chunk_of(&v);
                        q.push_chunk(&c, 0, n);
                        model.extend_from_slice(&v);
                    }
                    3 => {
                        start += next(&mut seed) as usize % (model.len() - start + 1);
                        q.release(start as u64);
                    }
                    _ => {
                        let at = start + next(&mut seed) as usize % (model.len() - start + 1);
                        let mut other = Queue::new();
                        other.push(
                            Source::Queue(&q, start as u64),
                            at - start..model.len() - start,
                        );
                        assert_eq!(content(&other, 0..other.end()), &model[at..]);
                    }
                }
                assert_eq!((q.start(), q.end()), (start as u64, model.len() as u64));
                assert_eq!(
                    content(&q, start as u64..model.len() as u64),
                    &model[start..]
                );
                let mut io = [IoSlice::new(&[]); 64];
                assert!(q.own_bytes() <= model.len() + KEEP);
                for most in [usize::MAX / 4, 777] {
                    let n = q.slices(start as u64, most, &mut io);
                    let sum: usize = io[..n].iter().map(|s| s.len()).sum();
                    assert!(n == 64 || sum == most.min(model.len() - start));
                }
            }
        }
    }

    #[test]
    fn large_runs_are_shared_and_small_ones_copied() {
        let c = chunk_of(&[7; CHUNK]);
        let mut q = Queue::new();
        q.push_chunk(&c, 0, SHARE - 1);
        assert_eq!((Rc::strong_count(&c), q.own_bytes()), (1, SHARE - 1));
        q.push_chunk(&c, 0, SHARE);
        assert_eq!((Rc::strong_count(&c), q.own_bytes()), (2, SHARE - 1));
        // Half a shared run may be written: what is counted as copied stays the same.
        q.release(q.end() - 10);
        assert!(q.own_bytes() < SHARE);
        q.release(q.end());
        assert_eq!((Rc::strong_count(&c), q.own_bytes()), (1, 0));
    }

    #[test]
    fn a_chunk_counts_once_until_the_last_share_goes() {
        let pool = ChunkPool::default();
        let (mut a, mut b) = (Queue::new(), Queue::new());
        let chunk = pool.take();
        a.push_chunk(&chunk, 0, SHARE);
        a.push_chunk(&chunk, SHARE, SHARE);
        b.push_chunk(&chunk, 0, SHARE);
        assert_eq!(pool.lent_bytes(), 0, "still read into");
        let known = Rc::as_ptr(&chunk);
        pool.give(chunk);
        assert_eq!(pool.lent_bytes(), CHUNK);
        a.clear();
        assert_eq!(pool.lent_bytes(), CHUNK);
        b.clear();
        assert_eq!(pool.lent_bytes(), 0);
        assert_eq!(Rc::as_ptr(&pool.take()), known, "used again");
    }

    #[test]
    fn tails_cross_pieces() {
        let c = chunk_of(&[b'x'; SHARE]);
        let mut q = Queue::new();
        q.push_slice(b"head");
        q.push_chunk(&c, 0, SHARE);
        q.push_slice(b"\n");
        let end = q.len();
        assert_eq!(Source::Queue(&q, 0).tail::<2>(end), Some(*b"x\n"));
        assert_eq!(Source::Queue(&q, 0).slice(0..4), b"head");
    }
}
