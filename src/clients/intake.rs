//! From a client's bytes to its next request.
//!
//! ```text
//!  socket ──fill──▶ Input ──next_request──▶ Next: a request, a value that arrives, keys, …
//!                     └──keep_rest──▶ what is not understood yet stays with the client
//! ```

use super::client::{Active, Arriving, Ending, Intake, KEEP_PARTIAL, Pause, Portions, Slot};
use super::{Clients, answer};
use crate::buffer::{CHUNK, Chunk, Queue, Source};
use crate::net::Socket;
use crate::protocol::{self, Dialect, Dress, Limits, Local, Parsed, Request, Scratch, Verb};
use crate::work::Work;
use std::ops::Range;
use std::rc::Rc;

/// A request with its value up to this size, in bytes, waits whole among the unparsed bytes; a
/// larger one gathers in pieces.
const SMALL_REQUEST: usize = CHUNK / 4;

/// A piece of a value that gathers is shared from this size on, in bytes. A smaller one would
/// hold, and be counted as, a whole chunk for too long: until its client sends the rest.
const GATHER_SHARE: usize = CHUNK / 2;

/// Unparsed bytes up to this size are put in front of the next read, so that they can be
/// parsed in the chunk; longer ones (a get line of thousands of keys) gather by themselves.
const SMALL_PARTIAL: usize = CHUNK / 4;

/// More than anybody types, and than any line but a get's, in bytes: so much may be read of a client
/// whatever it holds.
pub(super) const LINE: usize = 2048;

/// Where the bytes stand that are being understood.
#[derive(Debug)]
enum Origin {
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
    own: Vec<u8>,
    origin: Origin,
    /// Where the next request starts.
    at: usize,
    len: usize,
    /// The client may not go on, though there may be a whole request.
    stopped: bool,
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

/// What a client wants next.
pub enum Next {
    /// More bytes are needed, or it may not go on.
    Nothing,
    /// A whole request with one key stands at the front of the input.
    Request(Request),
    /// A whole request with several keys does.
    Keys(Request),
    /// The head of a request does whose value is still on its way.
    Head(Request),
    /// Such a value has come to its end.
    Value(Box<Arriving>),
    /// More keys of a request with very many are to be asked.
    Portion(Box<Portions>),
    /// Some keys of the request in this slot are to be asked once more.
    Again(u32),
    /// A request for magent.
    Local(Local, Dress),
    /// Nothing: it was answered.
    Done,
    /// The key of the line in `Input::scratch` is to be deleted: its new value was too large.
    Drop,
}

/// A binary value has no line end of its own; the server needs one.
pub fn needs_line_end(request: &Request) -> bool {
    request.value.is_some() && request.value == Some(request.data)
}

/// A text value that does not end in `\r\n`. `end`: offset behind it.
fn has_bad_end(request: &Request, source: Source<'_>, end: usize) -> bool {
    !needs_line_end(request) && source.tail::<2>(end) != Some(*b"\r\n")
}

/// Puts a piece of a value behind those that came before.
fn gather(value: &mut Queue, source: Source<'_>, piece: Range<usize>) {
    if piece.len() < GATHER_SHARE {
        value.push_slice(source.slice(piece));
    } else {
        value.push(source, piece);
    }
}

impl Active {
    /// More keys of a request that was looked at before.
    fn next_keys(&mut self) -> Option<Next> {
        if let Some(slot) = self.again.pop_front() {
            return Some(Next::Again(slot));
        }
        match std::mem::take(&mut self.intake) {
            Intake::Keys(keys) => Some(Next::Portion(keys)),
            other => {
                self.intake = other;
                None
            }
        }
    }
}

impl<S: Socket> Clients<S> {
    /// Gets the next bytes of a client: what was left, or one read. False if there is nothing to do.
    pub fn fill(&mut self, key: usize, input: &mut Input, work: &mut Work) -> bool {
        let Some(client) = self.table.get_mut(key) else {
            return false;
        };
        if !client.may_ask_anew() {
            return client.may_ask_keys();
        }
        if client.is_unparsed() {
            let active = client.active(&mut self.spares);
            active.unparsed = false;
            self.take_partial(key, input);
            return true;
        }
        if !client.conn.is_readable() {
            return false;
        }
        match self.room_to_read(key) {
            0 => false,
            room => self.read(key, input, room, work),
        }
    }

    /// Makes the client's unparsed bytes the input.
    fn take_partial(&mut self, key: usize, input: &mut Input) {
        input.origin = Origin::Own;
        input.own.clear();
        input.at = 0;
        if let Some(active) = self.table.get_mut(key).and_then(|c| c.active.as_mut()) {
            std::mem::swap(&mut active.partial, &mut input.own);
            input.at = std::mem::take(&mut active.parsed);
        }
        (input.len, input.stopped) = (input.own.len(), false);
    }

    /// One read of at most so many bytes. False if nothing came.
    pub(super) fn read(
        &mut self,
        key: usize,
        input: &mut Input,
        most: usize,
        work: &mut Work,
    ) -> bool {
        self.renew_chunk(&mut input.chunk, work);
        let Some(client) = self.table.get_mut(key) else {
            return false;
        };
        let Some(space) = Chunk::writable(&mut input.chunk) else {
            return false;
        };
        // What was left of the last read goes in front, so that a request stands in one piece.
        let left = match &client.active {
            Some(a) if a.partial.len() <= SMALL_PARTIAL => {
                space[..a.partial.len()].copy_from_slice(&a.partial);
                a.partial.len()
            }
            _ => 0,
        };
        let room = most.min(space.len() - left);
        self.counters.reads += 1;
        let read = client.conn.read(&mut space[left..left + room]);
        work.count_call(*read.as_ref().ok().and_then(|n| n.as_ref()).unwrap_or(&0));
        let n = match read {
            Ok(Some(0)) => {
                self.end(key, Ending::AfterAnswers);
                return false;
            }
            Ok(Some(n)) => n,
            Ok(None) => return false,
            Err(_) => {
                self.end(key, Ending::Dead);
                return false;
            }
        };
        client.last_moved = self.now;
        self.counters.bytes_read += n as u64;
        match &mut client.active {
            Some(a) if a.partial.len() > SMALL_PARTIAL => {
                a.partial.extend_from_slice(&input.chunk.bytes()[..n]);
                self.take_partial(key, input);
            }
            active => {
                if let Some(a) = active {
                    a.partial.clear();
                }
                input.origin = Origin::Chunk;
                (input.at, input.len, input.stopped) = (0, left + n, false);
            }
        }
        true
    }

    /// Keeps what could not be used yet with the client.
    pub fn keep_rest(&mut self, key: usize, input: &mut Input) {
        let rest = input.at..input.len;
        let Some(client) = self.table.get_mut(key) else {
            return;
        };
        if !rest.is_empty() && client.ending == Ending::Open {
            let active = client.active(&mut self.spares);
            active.unparsed = input.stopped;
            match input.origin {
                Origin::Chunk => {
                    let bytes = &input.chunk.bytes()[rest];
                    active.partial.extend_from_slice(bytes);
                }
                Origin::Own => {
                    // What is done with goes when it is worth the copy.
                    if input.at > input.len / 2 || !input.stopped {
                        input.own.drain(..input.at);
                        input.at = 0;
                    }
                    active.parsed = input.at;
                    std::mem::swap(&mut active.partial, &mut input.own);
                }
            }
        }
        (input.at, input.len) = (0, 0);
        if input.own.capacity() > KEEP_PARTIAL {
            input.own = Vec::new();
        }
        self.account(key);
    }

    /// What the client wants next, by the bytes of `input`.
    pub fn next_request(&mut self, key: usize, input: &mut Input) -> Next {
        loop {
            let Some(client) = self.table.get_mut(key) else {
                return Next::Nothing;
            };
            if client.may_ask_keys() {
                if let Some(next) = client.active.as_mut().and_then(|a| a.next_keys()) {
                    return next;
                }
            }
            if !client.may_ask_anew() {
                input.stop();
                return Next::Nothing;
            }
            let Some(active) = &mut client.active else {
                if input.at == input.len {
                    return Next::Nothing;
                }
                match self.parse(key, input) {
                    Some(next) => return next,
                    None => continue,
                }
            };
            if matches!(active.intake, Intake::Keys(_)) {
                client.pause.add(Pause::PORTION);
                input.stop();
                return Next::Nothing;
            }
            if input.at == input.len {
                return Next::Nothing;
            }
            let next = match std::mem::take(&mut active.intake) {
                Intake::Swallow(bytes) => {
                    let now = bytes.min(input.len - input.at);
                    input.at += now;
                    self.swallow(key, bytes - now);
                    None
                }
                Intake::Value(value) => self.value_arrives(key, input, value),
                Intake::Head | Intake::Keys(_) => self.parse(key, input),
            };
            if let Some(next) = next {
                return next;
            }
        }
    }

    /// The next so many bytes of the client are thrown away.
    pub(super) fn swallow(&mut self, key: usize, bytes: usize) {
        if let Some(client) = self.table.get_mut(key).filter(|_| bytes > 0) {
            client.active(&mut self.spares).intake = Intake::Swallow(bytes);
        }
    }

    /// One request at the front of the input; `None` if it was one that is done with.
    fn parse(&mut self, key: usize, input: &mut Input) -> Option<Next> {
        let client = self.table.get_mut(key)?;
        let limits = &self.pools[client.pool as usize];
        let limits = Limits {
            max_value: limits.max_value,
            flush_all: limits.flush_all,
        };
        let searched = match &mut client.active {
            Some(a) => {
                a.wants = 0;
                std::mem::take(&mut a.searched)
            }
            None => 0,
        };
        let Input {
            chunk,
            scratch,
            own,
            origin,
            at,
            len,
            ..
        } = input;
        let buf = match origin {
            Origin::Chunk => &chunk.bytes()[*at..*len],
            Origin::Own => &own[*at..*len],
        };
        let dialect = *client.dialect.get_or_insert(match buf[0] {
            0x80 => Dialect::Binary,
            _ => Dialect::Text,
        });
        let parsed = protocol::parse(dialect, buf, searched, &limits, scratch);
        self.take_parsed(key, parsed, input)
    }

    fn take_parsed(&mut self, key: usize, parsed: Parsed, input: &mut Input) -> Option<Next> {
        let client = self.table.get_mut(key)?;
        match parsed {
            Parsed::More => {
                client.active(&mut self.spares).searched = input.len - input.at;
                Some(Next::Nothing)
            }
            Parsed::Close => {
                self.end(key, Ending::AfterAnswers);
                Some(Next::Nothing)
            }
            Parsed::Answer {
                used,
                swallow,
                close,
                drop_key,
            } => {
                self.counters.requests += 1;
                log_own(input, used);
                input.at += used;
                if !input.scratch.answer.is_empty() {
                    self.say(key, Dress::Text, |out, _| {
                        out.push_slice(&input.scratch.answer);
                    });
                }
                self.swallow(key, swallow);
                if close {
                    self.end(key, Ending::AfterAnswers);
                }
                Some(if drop_key { Next::Drop } else { Next::Done })
            }
            // Servers may have several links: a flush must not overtake what came before it.
            Parsed::Local {
                what: Local::FlushAll(_),
                ..
            } if client.active.as_ref().is_some_and(|a| !a.slots.is_empty()) => {
                client.pause.add(Pause::ORDER);
                input.stop();
                Some(Next::Nothing)
            }
            Parsed::Local { used, what, dress } => {
                self.counters.requests += 1;
                log_own(input, used);
                input.at += used;
                Some(Next::Local(what, dress))
            }
            Parsed::Request(request) => self.take_request(key, request, input),
        }
    }

    /// A request for a server.
    fn take_request(&mut self, key: usize, request: Request, input: &mut Input) -> Option<Next> {
        let total = request.head + request.data;
        let here = input.len - input.at;
        if here < total {
            if total <= SMALL_REQUEST {
                let client = self.table.get_mut(key)?;
                client.active(&mut self.spares).wants = total - here;
                return Some(Next::Nothing);
            }
            return Some(Next::Head(request));
        }
        if request.value.is_some() && has_bad_end(&request, input.source(), input.at + total) {
            self.counters.requests += 1;
            input.at += total;
            self.bad_data_chunk(key, &request);
            return None;
        }
        if request.key.is_none() && !input.scratch.keys.is_empty() {
            return Some(Next::Keys(request));
        }
        Some(Next::Request(request))
    }

    /// A large value starts to arrive: it gathers behind its upstream line.
    pub fn begin_value(&mut self, key: usize, request: &Request, input: &mut Input) {
        let start = input.at + request.head..input.len;
        let (source, line) = input.line(request);
        let missing = request.data - start.len();
        let mut value = self.spares.arriving(request, line.len(), missing);
        value.bytes.push_slice(source.slice(line));
        gather(&mut value.bytes, input.source(), start);
        input.at = input.len;
        if let Some(client) = self.table.get_mut(key) {
            client.active(&mut self.spares).intake = Intake::Value(value);
        }
    }

    /// More of a large value has come.
    fn value_arrives(
        &mut self,
        key: usize,
        input: &mut Input,
        mut value: Box<Arriving>,
    ) -> Option<Next> {
        let piece = input.at..input.at + value.missing.min(input.len - input.at);
        input.at = piece.end;
        value.missing -= piece.len();
        gather(&mut value.bytes, input.source(), piece);
        if value.missing > 0 {
            let client = self.table.get_mut(key)?;
            client.active(&mut self.spares).intake = Intake::Value(value);
            return None;
        }
        let source = Source::Queue(&value.bytes, value.bytes.start());
        if has_bad_end(&value.request, source, value.bytes.len()) {
            self.counters.requests += 1;
            self.bad_data_chunk(key, &value.request);
            self.spares.give_arriving(value);
            return None;
        }
        Some(Next::Value(value))
    }

    /// The value was sent on.
    pub fn value_taken(&mut self, value: Box<Arriving>) {
        self.spares.give_arriving(value);
    }

    /// Refuses a value for want of memory; what is missing of it is swallowed.
    pub(super) fn no_memory_to_store(&mut self, key: usize, request: &Request, missing: usize) {
        self.counters.requests += 1;
        self.counters.limit_memory_stores += 1;
        self.say(key, request.dress, |out, format| {
            answer::write_error(format, b"out of memory storing object", out);
        });
        self.swallow(key, missing);
    }

    /// Refuses what a client has sent half.
    pub(super) fn no_memory_for_partial(&mut self, key: usize) {
        let Some(client) = self.table.get_mut(key) else {
            return;
        };
        let rules = &self.pools[client.pool as usize];
        let limits = Limits {
            max_value: rules.max_value,
            flush_all: rules.flush_all,
        };
        let (Some(dialect), Some(active)) = (client.dialect, client.active.as_mut()) else {
            return;
        };
        let mut partial = std::mem::take(&mut active.partial);
        partial.drain(..std::mem::take(&mut active.parsed));
        let wants = std::mem::take(&mut active.wants);
        active.searched = 0;
        let mut scratch = Scratch::default();
        match protocol::parse(dialect, &partial, 0, &limits, &mut scratch) {
            Parsed::Request(request) if wants > 0 => {
                self.no_memory_to_store(key, &request, wants);
            }
            _ => self.no_memory_to_read(key),
        }
    }

    /// Refuses a line that does not end, as memcached does: where it would end is not known.
    fn no_memory_to_read(&mut self, key: usize) {
        self.counters.limit_memory_requests += 1;
        self.say(key, Dress::Text, |out, _| {
            out.push_slice(b"SERVER_ERROR out of memory reading request\r\n");
        });
        self.end(key, Ending::AfterAnswers);
    }

    fn bad_data_chunk(&mut self, key: usize, request: &Request) {
        if request.dress != Dress::Silent {
            self.say(key, Dress::Text, |out, _| {
                out.push_slice(b"CLIENT_ERROR bad data chunk\r\n");
            });
        }
    }

    /// Puts an answer of magent's own in its place.
    pub fn say(&mut self, key: usize, format: Dress, write: impl FnOnce(&mut Queue, Dress)) {
        let Some(client) = self.table.get_mut(key) else {
            return;
        };
        let seq = client.owe(&mut self.spares, Slot::new(format, Verb::Version));
        client.deliver(&mut self.spares, seq, |out, slot| write(out, slot.format));
        self.changed(key);
    }
}

/// Logs a request that magent answers itself, for `-vv`.
fn log_own(input: &Input, used: usize) {
    if log::log_enabled!(log::Level::Debug) {
        let line = input.source().slice(input.at..input.at + used);
        log::debug!("magent <- {}", crate::logger::shown(line));
    }
}
