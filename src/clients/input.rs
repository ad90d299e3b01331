//! The bytes of one client that are being parsed.

use crate::buffer::{Chunk, Source};
use crate::protocol::{Request, Scratch};
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
        }
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
