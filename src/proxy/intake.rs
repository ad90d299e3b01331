//! From a client's bytes to requests: reading, parsing, values that arrive in pieces.

use super::Proxy;
use super::route::Ask;
use crate::buffer::{CHUNK, Chunk, Queue, Source};
use crate::client::{Client, Ending, Gathering, Intake, Pause, Slot};
use crate::net::Socket;
use crate::protocol::{self, Dialect, Dress, Limits, Local, Parsed, Request, Scratch, Verb};
use crate::upstream::NOBODY;
use std::io;
use std::ops::Range;
use std::rc::Rc;

/// Reads of one client in one turn, so that a fast one does not hold up the others.
const READS_PER_TURN: usize = 4;

/// Reads of a client in the middle of a request while it is paused for memory, each second: enough
/// for a value of a megabyte.
const PAUSED_READS: usize = 16;

/// A request with its value up to this size, in bytes, waits whole among the unparsed bytes; a
/// larger one gathers in pieces.
const SMALL_REQUEST: usize = CHUNK / 4;

/// A piece of a value that gathers is shared from this size on, in bytes. A smaller one would
/// hold, and be counted as, a whole chunk for too long: until its client sends the rest.
const GATHER_SHARE: usize = CHUNK / 2;

/// Unparsed bytes up to this size are put in front of the next read, so that they can be
/// parsed in the chunk; longer ones (a get line of thousands of keys) gather by themselves.
const SMALL_PARTIAL: usize = CHUNK / 4;

/// An unfinished line up to this size, in bytes, waits while memory is short: more than anybody
/// types, and than any line but a get's.
pub(super) const HALF_LINE: usize = 2048;

/// What one look at a client's bytes came to.
#[derive(PartialEq, Eq)]
enum Step {
    /// Go on with the next request.
    Next,
    /// More bytes are needed.
    NeedMore,
    /// The client is paused or ending; the rest stays.
    Stop,
}

impl<S: Socket> Proxy<S> {
    /// Reads and routes what a client sent, a bounded amount.
    pub(super) fn serve_client(&mut self, key: usize) {
        let Some(client) = self.clients.get_mut(key) else {
            return;
        };
        client.listed = false;
        for _ in 0..READS_PER_TURN {
            if !self.fill_client(key) {
                break;
            }
        }
        let Some(client) = self.clients.get_mut(key) else {
            return;
        };
        client.rest(&mut self.spares);
        if client.may_be_served() {
            self.list_client(key);
        }
        self.account_client(key);
    }

    /// One read and what it holds. False if there is nothing more to do now.
    fn fill_client(&mut self, key: usize) -> bool {
        let Some(client) = self.clients.get_mut(key) else {
            return false;
        };
        if client.ending != Ending::Open || !client.pause.is_empty() {
            return false;
        }
        let (at_head, half) = client.active.as_ref().map_or((true, 0), |a| {
            (matches!(a.intake, Intake::Head), a.partial.len())
        });
        if client.is_unparsed() {
            return self.parse_partial(key);
        }
        if !client.ready.readable {
            return false;
        }
        if at_head && half <= SMALL_PARTIAL && self.over_memory(0, super::memory::SOFT_MEMORY) {
            self.pause_for_memory(key);
            return false;
        }
        if half > SMALL_PARTIAL && self.over_memory(0, 100) {
            self.no_memory_to_read(key);
            return false;
        }
        self.read_some(key, usize::MAX)
    }

    /// One read of at most so many bytes.
    fn read_some(&mut self, key: usize, most: usize) -> bool {
        let mut chunk = self.free_chunk();
        let go_on = self.read_client(key, &mut chunk, most);
        self.chunk = Some(chunk);
        go_on
    }

    /// Serves a client that is paused for memory: what was left unparsed, or the rest of what it is
    /// sending, or little more than its next request. Requests that are half there could hold the
    /// memory for ever, all waiting for each other; and clients that take their answers a byte at a
    /// time could keep all others waiting.
    pub(super) fn serve_paused(&mut self, key: usize) {
        let is_paused = |c: &Client<S>| c.pause == Pause::MEMORY;
        for _ in 0..PAUSED_READS {
            let Some(client) = self.clients.get_mut(key).filter(|c| is_paused(c)) else {
                return;
            };
            client.pause.remove(Pause::MEMORY);
            let goes_on = self.fill_paused(key);
            if let Some(client) = self.clients.get_mut(key) {
                client.pause.add(Pause::MEMORY);
            }
            self.account_client(key);
            if !goes_on {
                return;
            }
        }
    }

    /// [`Proxy::fill_client`] for one that is paused for memory. True if more of the same request
    /// may be there.
    fn fill_paused(&mut self, key: usize) -> bool {
        let Some(client) = self.clients.get(key) else {
            return false;
        };
        let (mut half, mut wants) = (0, 0);
        if let Some(active) = &client.active {
            half = active.partial.len();
            wants = match &active.intake {
                Intake::Head => active.wants,
                Intake::Value(value) => value.missing,
                Intake::Swallow(bytes) => *bytes,
            };
        }
        if client.is_unparsed() {
            self.parse_partial(key);
            return false;
        }
        if !client.ready.readable {
            return false;
        }
        if wants == 0 && half > HALF_LINE && self.over_memory(0, 100) {
            self.no_memory_to_read(key);
            return false;
        }
        // It holds little so far, and may wait.
        if wants > 0 && (1..=HALF_LINE).contains(&half) && self.over_memory(wants, 100) {
            return false;
        }
        self.read_some(key, if wants > 0 { wants } else { HALF_LINE }) && wants > CHUNK
    }

    /// Reads at most so many bytes.
    fn read_client(&mut self, key: usize, chunk: &mut Rc<Chunk>, most: usize) -> bool {
        let Some(client) = self.clients.get_mut(key) else {
            return false;
        };
        let Some(space) = Chunk::writable(chunk) else {
            return false;
        };
        // What was left of the last read goes in front, so that a request stands in one piece.
        let left = match &mut client.active {
            Some(a) if a.partial.len() <= SMALL_PARTIAL => {
                let n = a.partial.len();
                space[..n].copy_from_slice(&a.partial);
                n
            }
            _ => 0,
        };
        let room = most.min(space.len() - left);
        self.counters.reads += 1;
        let n = match client.io.read(&mut space[left..left + room]) {
            Ok(0) => {
                client.ready.readable = false;
                self.end_client(key, Ending::AfterAnswers);
                return false;
            }
            Ok(n) => n,
            Err(e) => {
                client.ready.readable = false;
                if e.kind() != io::ErrorKind::WouldBlock {
                    self.end_client(key, Ending::Dead);
                }
                return false;
            }
        };
        self.lulls.client_read(client.last_moved, n);
        client.last_moved = self.now;
        self.counters.bytes_read += n as u64;
        // A short read means drained, unless the end is already there too.
        if n < room && !client.ready.closed {
            client.ready.readable = false;
        }
        match &mut client.active {
            Some(a) if a.partial.len() > SMALL_PARTIAL => {
                a.partial.extend_from_slice(&chunk.bytes()[..n]);
                self.parse_partial(key);
            }
            _ => {
                if let Some(a) = &mut client.active {
                    a.partial.clear();
                }
                let used = self.parse(key, Source::Chunk(chunk), left + n);
                self.keep_rest(key, &chunk.bytes()[used..left + n]);
            }
        }
        true
    }

    /// Keeps what could not be used yet.
    fn keep_rest(&mut self, key: usize, rest: &[u8]) {
        if rest.is_empty() {
            return;
        }
        if let Some(client) = self.clients.get_mut(key) {
            client
                .active(&mut self.spares)
                .partial
                .extend_from_slice(rest);
        }
    }

    /// Parses what was left when the client was paused, or what gathered by itself.
    fn parse_partial(&mut self, key: usize) -> bool {
        let Some(active) = self.clients.get_mut(key).and_then(|c| c.active.as_mut()) else {
            return false;
        };
        active.unparsed = false;
        let mut partial = std::mem::take(&mut active.partial);
        let used = self.parse(key, Source::Slice(&partial), partial.len());
        partial.drain(..used);
        if let Some(client) = self.clients.get_mut(key) {
            if !partial.is_empty() {
                client.active(&mut self.spares).partial = partial;
            }
        }
        true
    }

    /// Takes requests off the first `len` bytes of `source`; returns how many bytes were used.
    fn parse(&mut self, key: usize, source: Source<'_>, len: usize) -> usize {
        let mut at = 0;
        while at < len {
            let Some(client) = self.clients.get_mut(key) else {
                return len;
            };
            let intake = match &mut client.active {
                Some(a) => std::mem::take(&mut a.intake),
                None => Intake::Head,
            };
            let step = match intake {
                Intake::Swallow(n) => {
                    let now = n.min(len - at);
                    at += now;
                    self.swallow(key, n - now);
                    Step::Next
                }
                Intake::Value(value) => {
                    let piece = at..at + value.missing.min(len - at);
                    at = piece.end;
                    self.value_arrives(key, source, piece, value);
                    Step::Next
                }
                Intake::Head => self.parse_head(key, source, &mut at, len),
            };
            match step {
                Step::Next => {}
                Step::NeedMore => return at,
                Step::Stop => {
                    if let Some(client) = self.clients.get_mut(key) {
                        if client.ending != Ending::Open {
                            return len;
                        }
                        client.active(&mut self.spares).unparsed = true;
                    }
                    return at;
                }
            }
        }
        at
    }

    /// The next so many bytes of the client are thrown away.
    fn swallow(&mut self, key: usize, bytes: usize) {
        if let Some(client) = self.clients.get_mut(key) {
            if bytes > 0 {
                client.active(&mut self.spares).intake = Intake::Swallow(bytes);
            }
        }
    }

    /// One request at `at`.
    fn parse_head(&mut self, key: usize, source: Source<'_>, at: &mut usize, len: usize) -> Step {
        let Some(client) = self.clients.get_mut(key) else {
            return Step::Stop;
        };
        if client.ending != Ending::Open || !client.pause.is_empty() {
            return Step::Stop;
        }
        let buf = source.slice(*at..len);
        let dialect = *client.dialect.get_or_insert(if buf[0] == 0x80 {
            Dialect::Binary
        } else {
            Dialect::Text
        });
        let searched = match &mut client.active {
            Some(a) => {
                a.wants = 0;
                std::mem::take(&mut a.searched)
            }
            None => 0,
        };
        let pool = &self.pools[client.pool as usize].config;
        let limits = Limits {
            max_value: pool.max_value,
            flush_all: pool.flush_all,
            unix_time: self.unix,
        };
        let mut scratch = std::mem::take(&mut self.scratch);
        let parsed = protocol::parse(dialect, buf, searched, &limits, &mut scratch);
        let step = self.take_parsed(key, parsed, &mut scratch, source, at, len);
        self.scratch = scratch;
        step
    }

    fn take_parsed(
        &mut self,
        key: usize,
        parsed: Parsed,
        scratch: &mut Scratch,
        source: Source<'_>,
        at: &mut usize,
        len: usize,
    ) -> Step {
        match parsed {
            Parsed::More => {
                if let Some(client) = self.clients.get_mut(key) {
                    client.active(&mut self.spares).searched = len - *at;
                }
                Step::NeedMore
            }
            Parsed::Close => {
                self.end_client(key, Ending::AfterAnswers);
                Step::Stop
            }
            Parsed::Answer {
                used,
                swallow,
                close,
                drop_key,
            } => {
                self.counters.requests += 1;
                log_own(source, *at, used);
                *at += used;
                if !scratch.answer.is_empty() {
                    self.answer_now(key, &scratch.answer);
                }
                self.swallow(key, swallow);
                if drop_key {
                    self.drop_key(key, &scratch.line);
                }
                if close {
                    self.end_client(key, Ending::AfterAnswers);
                }
                Step::Next
            }
            Parsed::Local {
                what: Local::FlushAll(_),
                ..
            } if self.waits_for_answers(key) => Step::Stop,
            Parsed::Local { used, what, dress } => {
                self.counters.requests += 1;
                log_own(source, *at, used);
                *at += used;
                self.local(key, what, dress);
                Step::Next
            }
            Parsed::Request(request) => self.take_request(key, &request, scratch, source, at, len),
        }
    }

    /// True if a client's `flush_all` has to wait for the answers to what came before it. Its
    /// servers have several links, and a request may be waiting in the proxy: a flush must not
    /// overtake them.
    fn waits_for_answers(&mut self, key: usize) -> bool {
        let Some(client) = self.clients.get_mut(key) else {
            return false;
        };
        let waits = client.active.as_ref().is_some_and(|a| !a.slots.is_empty());
        if waits {
            client.pause.add(Pause::ORDER);
        }
        waits
    }

    /// A request for a server: routed if it is whole, else its value is gathered.
    fn take_request(
        &mut self,
        key: usize,
        request: &Request,
        scratch: &Scratch,
        source: Source<'_>,
        at: &mut usize,
        len: usize,
    ) -> Step {
        let total = request.head + request.data;
        let here = len - *at;
        if request.value.is_some() {
            if self.over_memory(request.data, 100) {
                *at += request.head;
                self.no_memory_to_store(key, request, request.data);
                return Step::Next;
            }
            if here < total && total <= SMALL_REQUEST {
                if let Some(client) = self.clients.get_mut(key) {
                    client.active(&mut self.spares).wants = total - here;
                }
                return Step::NeedMore;
            }
        }
        let line = if request.raw {
            (source, *at..*at + request.head)
        } else {
            (Source::Slice(&scratch.line[..]), 0..scratch.line.len())
        };
        let buf = source.slice(*at..*at + request.head);
        let name = match request.key {
            Some((from, to)) => &buf[from as usize..to as usize],
            None => &scratch.key[..],
        };
        if here < total {
            if !self.may_arrive(key, name) {
                return Step::Stop;
            }
            let line = line.0.slice(line.1);
            let value = *at + request.head..len;
            *at = len;
            return self.begin_value(key, request, line, source, value);
        }
        if request.value.is_some() && bad_end(request, source, *at + total) {
            self.counters.requests += 1;
            *at += total;
            self.bad_data_chunk(key, request);
            return Step::Next;
        }
        if request.key.is_none() && !scratch.keys.is_empty() {
            if !self.route_keys(key, request, buf, scratch) {
                return Step::Stop;
            }
        } else {
            let ask = Ask {
                verb: request.verb,
                traits: request.traits,
                line,
                data: (source, *at + request.head..*at + total),
                end_line: ends_here(request),
            };
            if !self.route_key(key, request.dress, name, &ask) {
                return Step::Stop;
            }
        }
        *at += total;
        self.counters.requests += 1;
        Step::Next
    }

    /// A large value starts to arrive: it gathers behind its wire line.
    fn begin_value(
        &mut self,
        key: usize,
        request: &Request,
        line: &[u8],
        source: Source<'_>,
        start: Range<usize>,
    ) -> Step {
        let Some(client) = self.clients.get_mut(key) else {
            return Step::Stop;
        };
        let missing = request.data - start.len();
        let mut value = self.spares.gathering(request, line.len(), missing);
        value.bytes.push_slice(line);
        gather(&mut value.bytes, source, start);
        client.active(&mut self.spares).intake = Intake::Value(value);
        Step::Next
    }

    /// More of a large value has come. Values that arrive side by side can pass `-m` together:
    /// who comes then is told so.
    fn value_arrives(
        &mut self,
        key: usize,
        source: Source<'_>,
        piece: Range<usize>,
        mut value: Box<Gathering>,
    ) {
        value.missing -= piece.len();
        if self.over_memory(piece.len(), 100) {
            self.no_memory_to_store(key, &value.request, value.missing);
            return self.spares.give_gathering(value);
        }
        gather(&mut value.bytes, source, piece);
        if value.missing == 0 {
            self.value_complete(key, &value);
            self.spares.give_gathering(value);
        } else if let Some(client) = self.clients.get_mut(key) {
            client.active(&mut self.spares).intake = Intake::Value(value);
        }
    }

    /// Refuses a value; what is missing of it is swallowed.
    fn no_memory_to_store(&mut self, key: usize, request: &Request, missing: usize) {
        self.counters.requests += 1;
        self.counters.limit_memory_stores += 1;
        self.fail_now(key, request, b"out of memory storing object");
        self.swallow(key, missing);
    }

    /// Refuses a line that does not end, as memcached does: where it would end is not known.
    fn no_memory_to_read(&mut self, key: usize) {
        self.counters.limit_memory_requests += 1;
        if let Some(active) = self.clients.get_mut(key).and_then(|c| c.active.as_mut()) {
            active.partial = Vec::new();
        }
        self.answer_now(key, b"SERVER_ERROR out of memory reading request\r\n");
        self.end_client(key, Ending::AfterAnswers);
    }

    /// The last byte of a large value has come.
    fn value_complete(&mut self, key: usize, value: &Gathering) {
        let Gathering { request, line, .. } = value;
        self.counters.requests += 1;
        let source = Source::Queue(&value.bytes, value.bytes.start());
        let len = value.bytes.len();
        if bad_end(request, source, len) {
            return self.bad_data_chunk(key, request);
        }
        let mut name = std::mem::take(&mut self.key);
        name.clear();
        protocol::forms::raw_key(request.verb, source.slice(0..*line), &mut name);
        let ask = Ask {
            verb: request.verb,
            traits: request.traits,
            line: (source, 0..*line),
            data: (source, *line..len),
            end_line: ends_here(request),
        };
        // A full server cannot stop a request that has arrived; it stops the next one.
        self.route_arrived(key, request.dress, &name, &ask);
        self.key = name;
    }

    /// Puts an answer of magent's own in its place.
    pub(super) fn answer_now(&mut self, key: usize, answer: &[u8]) {
        self.deliver_now(key, Dress::Text, Verb::Version, |out, _| {
            out.push_slice(answer);
        });
    }

    /// Owes an answer and gives it at once.
    pub(super) fn deliver_now(
        &mut self,
        key: usize,
        dress: Dress,
        verb: Verb,
        write: impl FnOnce(&mut Queue, Dress),
    ) {
        let Some(client) = self.clients.get_mut(key) else {
            return;
        };
        let slot = Slot::new(dress, verb);
        let seq = client.owe(&mut self.spares, slot);
        client.deliver(&mut self.spares, seq, 1, |out, slot, _| {
            write(out, slot.dress);
        });
        self.dirty_client(key);
    }

    fn bad_data_chunk(&mut self, key: usize, request: &Request) {
        if request.dress != Dress::Silent {
            self.answer_now(key, b"CLIENT_ERROR bad data chunk\r\n");
        }
    }

    /// Answers a request with an error of magent's own, in its dialect.
    pub(super) fn fail_now(&mut self, key: usize, request: &Request, text: &[u8]) {
        self.deliver_now(key, request.dress, request.verb, |out, dress| {
            super::settle::write_error(dress, text, out);
        });
    }

    /// A `set` too large for magent drops the old value, as memcached does.
    fn drop_key(&mut self, key: usize, line: &[u8]) {
        let Some(client) = self.clients.get(key) else {
            return;
        };
        let pool = client.pool as usize;
        let verb = protocol::forms::verb_of_delete(line);
        let mut name = std::mem::take(&mut self.key);
        name.clear();
        protocol::forms::raw_key(verb, line, &mut name);
        let place = self.place(pool, &name);
        for id in [place.primary, place.backup, place.home] {
            if id != NOBODY {
                self.chase(id, &name, place.hash);
            }
        }
        self.key = name;
    }
}

/// Puts a piece of a value behind those that came before.
fn gather(value: &mut Queue, source: Source<'_>, piece: Range<usize>) {
    if piece.len() < GATHER_SHARE {
        value.push_slice(source.slice(piece));
    } else {
        value.push(source, piece);
    }
}

/// Logs a request that magent answers itself, for `-vv`.
fn log_own(source: Source<'_>, at: usize, used: usize) {
    if log::log_enabled!(log::Level::Debug) {
        let line = String::from_utf8_lossy(source.slice(at..at + used));
        log::debug!("magent <- {}", line.trim_end());
    }
}

/// A text value that does not end in `\r\n`. `end`: offset behind it.
fn bad_end(request: &Request, source: Source<'_>, end: usize) -> bool {
    !ends_here(request) && source.tail::<2>(end) != Some(*b"\r\n")
}

/// A binary value has no line end of its own; the wire needs one.
fn ends_here(request: &Request) -> bool {
    request.value.is_some() && request.value == Some(request.data)
}
