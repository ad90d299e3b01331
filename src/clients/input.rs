//! The bytes of one client that are being parsed.

use crate::buffer::{Chunk, Source};
use crate::placement::LANES;
use crate::protocol::{Request, Scratch, text};
use std::ops::Range;
use std::rc::Rc;

/// Where the bytes are.
#[derive(Debug)]
pub enum Origin {
    /// In the chunk.
    Chunk,
    /// In a buffer of their own.
    Own,
}

/// Keys that were hashed together: that of one request, and those of requests that seemed to stand behind it.
#[derive(Default, Debug)]
struct Hashed {
    /// Where each stands, and its hash.
    keys: [((usize, usize), u32); LANES],
    /// Which is the next one's.
    next: usize,
}

/// Bytes of one client that are being parsed. They are kept apart from the client, so that they can
/// be sent on while clients change.
#[derive(Debug)]
pub struct Input {
    /// What is read into.
    pub chunk: Rc<Chunk>,
    /// What the parser produces.
    pub scratch: Scratch,
    /// The key of a large value that is complete.
    pub name: Vec<u8>,
    pub(super) own: Vec<u8>,
    pub(super) origin: Origin,
    /// Where the next request starts.
    pub(super) at: usize,
    pub(super) len: usize,
    /// Parsing stopped before the end: a whole request may be left.
    pub(super) stopped: bool,
    hashed: Hashed,
}

impl Input {
    /// No bytes yet, and a chunk to read into.
    pub fn new(chunk: Rc<Chunk>) -> Input {
        Input {
            chunk,
            scratch: Scratch::default(),
            name: Vec::new(),
            own: Vec::new(),
            origin: Origin::Chunk,
            at: 0,
            len: 0,
            stopped: false,
            hashed: Hashed::default(),
        }
    }

    /// Other bytes are there, of which those before `at` are done with.
    pub(super) fn begin(&mut self, origin: Origin, at: usize, len: usize) {
        (self.origin, self.at, self.len) = (origin, at, len);
        self.stopped = false;
        self.hashed.next = LANES;
    }

    /// The bytes.
    #[inline]
    pub fn source(&self) -> Source<'_> {
        match self.origin {
            Origin::Chunk => Source::Chunk(&self.chunk),
            Origin::Own => Source::Slice(&self.own),
        }
    }

    /// Where the request starts that was parsed last.
    #[inline]
    pub fn at(&self) -> usize {
        self.at
    }

    /// The head of the request at the front.
    #[inline]
    pub fn head(&self, request: &Request) -> &[u8] {
        self.source().slice(self.at..self.at + request.head)
    }

    /// The key of the request at the front.
    #[inline]
    pub fn key(&self, request: &Request) -> &[u8] {
        match request.key {
            Some((from, to)) => &self.head(request)[from as usize..to as usize],
            None => &self.scratch.key,
        }
    }

    /// The hash of the key of the request at the front, if it was noted.
    #[inline]
    pub fn hash(&mut self, request: &Request) -> Option<u32> {
        let (from, to) = request.key?;
        let key = (self.at + from as usize, self.at + to as usize);
        let (noted, hash) = *self.hashed.keys.get(self.hashed.next)?;
        self.hashed.next += 1;
        (noted == key).then_some(hash)
    }

    /// Where the key of the request at the front stands, and those of the next ones, if these look like a
    /// command with a key and nothing else.
    #[inline]
    pub fn keys_ahead(&self, request: &Request) -> Option<[(usize, usize); LANES]> {
        let (from, to) = request.key?;
        let next = self.at + request.head;
        if request.data > 0 || next == self.len {
            return None;
        }
        let own = (self.at + from as usize, self.at + to as usize);
        self.glance([own, (0, 0), (0, 0), (0, 0)], next)
    }

    #[inline(never)]
    fn glance(
        &self,
        mut keys: [(usize, usize); LANES],
        mut at: usize,
    ) -> Option<[(usize, usize); LANES]> {
        let all = self.source().slice(0..self.len);
        for key in &mut keys[1..] {
            let Some((from, to, len)) = text::glance(&all[at..]) else {
                break;
            };
            *key = (at + from, at + to);
            at += len;
        }
        (keys[1] != (0, 0)).then_some(keys)
    }

    /// The key of the request at the front, and those of the next ones, have such hashes.
    pub fn note_hashes(&mut self, keys: [(usize, usize); LANES], hashes: [u32; LANES]) {
        self.hashed.keys = std::array::from_fn(|i| (keys[i], hashes[i]));
        self.hashed.next = 1;
    }

    /// The line for the server, of the request at the front.
    #[inline]
    pub fn line(&self, request: &Request) -> (Source<'_>, Range<usize>) {
        if request.raw {
            (self.source(), self.at..self.at + request.head)
        } else {
            let line = &self.scratch.line[..];
            (Source::Slice(line), 0..line.len())
        }
    }

    /// Skips so many bytes of the front.
    #[inline]
    pub fn consume(&mut self, bytes: usize) {
        self.at += bytes;
    }

    /// Stops parsing: what is left stays with the client.
    pub fn stop(&mut self) {
        self.stopped = true;
    }
}
