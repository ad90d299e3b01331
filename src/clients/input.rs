//! The bytes of one client that are being parsed.

use crate::buffer::{Chunk, Source};
use crate::placement::LANES;
use crate::protocol::{Format, Request, Scratch, Traits, Verb, text};
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
    /// The request that was parsed last, which stands at the front; of one that magent answers itself, only
    /// the format.
    pub request: Request,
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
            request: Request {
                verb: Verb::Get,
                traits: Traits::default(),
                head: 0,
                data: 0,
                value: None,
                raw: false,
                key: None,
                format: Format::Text,
            },
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

    /// The head of the request at the front.
    #[inline]
    pub fn head(&self) -> &[u8] {
        self.source().slice(self.at..self.at + self.request.head)
    }

    /// Where its key stands, if it stands there as it is.
    #[inline]
    fn key_range(&self) -> Option<(usize, usize)> {
        let (from, to) = self.request.key?;
        Some((self.at + from as usize, self.at + to as usize))
    }

    /// Its key.
    #[inline]
    pub fn key(&self) -> &[u8] {
        match self.key_range() {
            Some((from, to)) => self.source().slice(from..to),
            None => &self.scratch.key,
        }
    }

    /// What follows its head.
    #[inline]
    pub fn data(&self) -> (Source<'_>, Range<usize>) {
        let at = self.at + self.request.head;
        (self.source(), at..at + self.request.data)
    }

    /// The hash of its key, if it was noted.
    #[inline]
    pub fn hash(&mut self) -> Option<u32> {
        let key = self.key_range()?;
        let (noted, hash) = *self.hashed.keys.get(self.hashed.next)?;
        self.hashed.next += 1;
        (noted == key).then_some(hash)
    }

    /// Where its key stands, and those of the next requests, if these look like a command with a key and
    /// nothing else.
    #[inline]
    pub fn keys_ahead(&self) -> Option<[(usize, usize); LANES]> {
        let key = self.key_range()?;
        let next = self.at + self.request.head;
        if self.request.data > 0 || next == self.len {
            return None;
        }
        self.glance([key, (0, 0), (0, 0), (0, 0)], next)
    }

    #[inline(never)]
    fn glance(
        &self,
        mut keys: [(usize, usize); LANES],
        mut at: usize,
    ) -> Option<[(usize, usize); LANES]> {
        let all = self.source().slice(0..self.len);
        for key in &mut keys[1..] {
            let Some((from, to, next)) = text::glance(all, at) else {
                break;
            };
            (*key, at) = ((from, to), next);
        }
        (keys[1] != (0, 0)).then_some(keys)
    }

    /// Keys that stand there have such hashes.
    pub fn note_hashes(&mut self, keys: [(usize, usize); LANES], hashes: [u32; LANES]) {
        self.hashed.keys = std::array::from_fn(|i| (keys[i], hashes[i]));
        self.hashed.next = 1;
    }

    /// The line for the server, of the request at the front.
    #[inline]
    pub fn line(&self) -> (Source<'_>, Range<usize>) {
        if self.request.raw {
            (self.source(), self.at..self.at + self.request.head)
        } else {
            let line = &self.scratch.line[..];
            (Source::Slice(line), 0..line.len())
        }
    }

    /// The request at the front is done with.
    #[inline]
    pub fn consume(&mut self) {
        self.at += self.request.head + self.request.data;
    }

    /// Stops parsing: what is left stays with the client.
    pub fn stop(&mut self) {
        self.stopped = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;

    /// Parses what stands at the front, as far as hashes need it.
    fn front(input: &mut Input, head: usize, key: (u32, u32), data: usize) {
        (input.request.head, input.request.data) = (head, data);
        input.request.key = Some(key);
    }

    #[test]
    fn a_hash_is_that_of_the_key_that_is_asked_for_whatever_was_guessed() {
        let mut input = Input::new(Budget::new(1 << 20).chunks().take());
        input.own = b"get a\r\ngets bb\r\nget c d\r\nget e\r\n".to_vec();
        input.begin(Origin::Own, 0, input.own.len());
        front(&mut input, 7, (4, 5), 0);
        assert_eq!(input.hash(), None);
        let keys = input.keys_ahead().expect("one more");
        // The third has two keys: nothing is guessed behind it.
        assert_eq!(keys, [(4, 5), (12, 14), (0, 0), (0, 0)]);
        input.note_hashes(keys, [1, 2, 3, 4]);
        input.consume();
        front(&mut input, 9, (5, 7), 0);
        assert_eq!(input.key(), b"bb");
        assert_eq!(input.hash(), Some(2));
        input.consume();
        front(&mut input, 9, (4, 5), 0);
        assert_eq!(input.hash(), None);
        // Other bytes have other hashes, though keys stand where others stood.
        input.note_hashes(keys, [1, 2, 3, 4]);
        input.begin(Origin::Own, 7, 16);
        front(&mut input, 9, (5, 7), 0);
        assert_eq!((input.hash(), input.keys_ahead()), (None, None));
    }
}
