//! The bytes of one client that are being understood.

use crate::buffer::{Chunk, Source};
use crate::protocol::{Request, Scratch};
use std::ops::Range;
use std::rc::Rc;

/// Where the bytes stand that are being understood.
#[derive(Debug)]
pub enum Origin {
    /// In the chunk.
    Chunk,
    /// In memory of their own.
    Own,
}

/// Bytes of one client that are being understood. Not the client's, so that what stands in them can
/// be sent on while clients change.
#[derive(Debug)]
pub struct Input {
    /// What is read into.
    pub chunk: Rc<Chunk>,
    /// What the parser makes of a request.
    pub scratch: Scratch,
    /// The key of a value that came in pieces.
    pub name: Vec<u8>,
    pub(super) own: Vec<u8>,
    pub(super) origin: Origin,
    /// Where the next request starts.
    pub(super) at: usize,
    pub(super) len: usize,
    /// The client may not go on, though there may be a whole request.
    pub(super) stopped: bool,
}

impl Input {
    /// Nothing, with a chunk to read into.
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
        }
    }

    /// Where the bytes stand.
    #[inline]
    pub fn source(&self) -> Source<'_> {
        match self.origin {
            Origin::Chunk => Source::Chunk(&self.chunk),
            Origin::Own => Source::Slice(&self.own),
        }
    }

    /// Where the request starts that was found last.
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

    /// The request at the front is done with.
    #[inline]
    pub fn consume(&mut self, bytes: usize) {
        self.at += bytes;
    }

    /// The client may not go on: what is left stays.
    pub fn stop(&mut self) {
        self.stopped = true;
    }
}
