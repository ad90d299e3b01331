//! From a client's bytes to its next request.
//!
//! ```text
//!  socket ──fill──▶ Input ──next_request──▶ Next: a request, a value that arrives, keys, …
//!                     └──keep_rest──▶ what is not parsed yet stays with the client
//! ```

use super::Clients;
use super::active::{Active, Arriving, Intake, Portions};
use super::client::{Ending, Pause};
use super::input::{Input, Origin};
use super::spares::KEEP_PARTIAL;
use super::value::has_bad_end;
use crate::buffer::{CHUNK, Chunk};
use crate::net::Socket;
use crate::protocol::{self, Dialect, Format, Limits, Local, Parsed};
use crate::work::Work;

/// A request with its value up to this size, in bytes, waits whole among the unparsed bytes; a
/// larger one gathers in pieces.
const SMALL_REQUEST: usize = CHUNK / 4;

/// So many unparsed bytes at most are put in front of the next read and parsed in the chunk; more
/// (a get line of thousands of keys) gather in a buffer of their own.
const SMALL_PARTIAL: usize = CHUNK / 4;

/// More than anybody types, and than any line but a get's, in bytes: so much may be read from a
/// client whatever it holds.
pub(super) const LINE: usize = 2048;

/// What a client wants next.
pub enum Next {
    /// More bytes are needed, or the client is paused.
    Nothing,
    /// A whole request with one key stands at the front of the input: [`Input::request`].
    Request,
    /// A whole request with several keys stands there.
    Keys,
    /// The head of a request stands there, and its value is still on its way.
    Head,
    /// Such a value is complete.
    Value(Box<Arriving>),
    /// More keys of a request with very many are to be asked.
    Portion(Box<Portions>),
    /// Some keys of the request in this slot are to be asked once more.
    Again(u32),
    /// A request that magent answers, in the format of [`Input::request`].
    Local(Local),
    /// Nothing: it is answered already.
    Done,
    /// The key of the line in `Input::scratch` is to be deleted: its new value was too large.
    Drop,
}

impl Active {
    /// Further keys of a request that was parsed before.
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
    /// Gets a client's next bytes: those left over, or one read. False if there is nothing to do.
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
        input.own.clear();
        let mut at = 0;
        if let Some(active) = self.table.get_mut(key).and_then(|c| c.active.as_mut()) {
            std::mem::swap(&mut active.partial, &mut input.own);
            at = std::mem::take(&mut active.parsed);
        }
        input.begin(Origin::Own, at, input.own.len());
    }

    /// Reads once, so many bytes at most. False if nothing came.
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
        // What the last read left goes in front, so that a request stands in one piece.
        let left = match &client.active {
            Some(a) if a.partial.len() <= SMALL_PARTIAL => {
                space[..a.partial.len()].copy_from_slice(&a.partial);
                a.partial.len()
            }
            _ => 0,
        };
        let room = most.min(space.len() - left);
        self.calls.reads += 1;
        let read = client.conn.read(&mut space[left..left + room]);
        work.count_call(*read.as_ref().ok().and_then(|n| n.as_ref()).unwrap_or(&0));
        let n = match read {
            Ok(Some(0)) => {
                self.pools[client.pool as usize].counts.connections_closed += 1;
                self.end(key, Ending::AfterAnswers);
                return false;
            }
            Ok(Some(n)) => n,
            Ok(None) => return false,
            Err(_) => {
                self.pools[client.pool as usize].counts.connections_broken += 1;
                self.end(key, Ending::Dead);
                return false;
            }
        };
        client.last_moved = self.now;
        self.pools[client.pool as usize].counts.bytes_read += n as u64;
        match &mut client.active {
            Some(a) if a.partial.len() > SMALL_PARTIAL => {
                a.partial.extend_from_slice(&input.chunk.bytes()[..n]);
                self.take_partial(key, input);
            }
            active => {
                if let Some(a) = active {
                    a.partial.clear();
                }
                input.begin(Origin::Chunk, 0, left + n);
            }
        }
        true
    }

    /// Keeps the bytes that are not parsed yet with the client.
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
                    // Parsed bytes are dropped when that is worth the copy.
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

    /// The client's next request in `input`.
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
                Intake::Value(value) => self.value_arrives(key, input, value).map(Next::Value),
                Intake::Head | Intake::Keys(_) => self.parse(key, input),
            };
            if let Some(next) = next {
                return next;
            }
        }
    }

    /// Parses one request at the front of the input; `None` if it is finished already.
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
                client.requests += 1;
                let pool = &mut self.pools[client.pool as usize];
                pool.counts.store_too_large += u64::from(swallow > pool.max_value);
                log_own(input, used);
                input.at += used;
                if !input.scratch.answer.is_empty() {
                    self.say(key, Format::Text, |out, _| {
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
            Parsed::Local { used, what, format } => {
                self.counters.requests += 1;
                client.requests += 1;
                log_own(input, used);
                input.at += used;
                input.request.format = format;
                Some(Next::Local(what))
            }
            Parsed::Request(request) => {
                input.request = request;
                self.take_request(key, input)
            }
        }
    }

    /// A request for a server.
    #[inline]
    fn take_request(&mut self, key: usize, input: &mut Input) -> Option<Next> {
        let request = &input.request;
        let total = request.head + request.data;
        let here = input.len - input.at;
        if here < total {
            if total <= SMALL_REQUEST {
                let client = self.table.get_mut(key)?;
                client.active(&mut self.spares).wants = total - here;
                return Some(Next::Nothing);
            }
            return Some(Next::Head);
        }
        if request.value.is_some() && has_bad_end(request, input.source(), input.at + total) {
            self.count_request(key);
            self.bad_data_chunk(key, request);
            input.at += total;
            return None;
        }
        if request.key.is_none() && !input.scratch.keys.is_empty() {
            return Some(Next::Keys);
        }
        Some(Next::Request)
    }
}

/// Logs a request that magent answers itself, for `-vv`.
fn log_own(input: &Input, used: usize) {
    if log::log_enabled!(log::Level::Debug) {
        let line = input.source().slice(input.at..input.at + used);
        log::debug!("magent <- {}", crate::logger::shown(line));
    }
}
