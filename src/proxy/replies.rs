//! From a server's bytes to replies: reading a link, finding where each reply ends.

use super::Proxy;
use super::memory::SOFT_MEMORY;
use crate::buffer::{Chunk, SHARE, Source};
use crate::client::Client;
use crate::health::Cause;
use crate::net::Socket;
use crate::protocol::reply::{Progress, uptime, version_at_least};
use crate::protocol::{Reply, Status, Verb};
use crate::upstream::{Arriving, GREETING, Greeting, LinkState, To};
use std::io::{self, IoSlice};
use std::ops::Range;
use std::rc::Rc;

/// Reads of one link in one turn, so that a fast server does not hold up the others.
const READS_PER_TURN: usize = 8;

/// Bytes from one server in one turn below which the next ones are worth a moment's waiting.
const TRICKLE: u64 = SHARE as u64;

/// An answer of the handshake that is longer, in bytes, is given up; memcached's are below 4 KB.
const MAX_GREETING: usize = 64 * 1024;

/// What a client may be owed, in bytes, and one value besides, however little memory is left.
const OWED_LITTLE: usize = 64 * 1024;

/// What the scan of a whole reply came to.
struct Whole {
    verb: Verb,
    line: usize,
    status: Status,
    /// In the handshake: whether `version` was answered before.
    greeting: Option<bool>,
}

/// The reply that stands for one that there was no memory for.
fn out_of_memory() -> Reply<'static> {
    const LINE: &[u8] = b"SERVER_ERROR out of memory reading\r\n";
    Reply {
        source: Source::Slice(LINE),
        at: 0,
        len: LINE.len(),
        line: LINE.len(),
        status: Status::ServerError,
        items: &[],
    }
}

/// True if its reply may hold values of any length.
fn has_values(verb: Verb) -> bool {
    matches!(
        verb,
        Verb::Get | Verb::Gets | Verb::Gat | Verb::Gats | Verb::MetaGet
    )
}

impl<S: Socket> Proxy<S> {
    /// Moves a link on: its connect, its handshake, its replies. A bounded amount.
    pub(super) fn serve_link(&mut self, id: u32) {
        self.links[id as usize].listed = false;
        if matches!(self.links[id as usize].state, LinkState::Connecting(_)) {
            self.finish_connect(id);
        }
        self.send_greeting(id);
        let before = (
            self.links[id as usize].first_seq,
            self.counters.server_bytes_read,
        );
        for _ in 0..READS_PER_TURN {
            if !self.fill_link(id) {
                break;
            }
        }
        let link = &mut self.links[id as usize];
        if link.ready.readable && matches!(link.state, LinkState::Up(_) | LinkState::Greeting(..)) {
            self.list_link(id);
        }
        let link = &self.links[id as usize];
        let came = self.counters.server_bytes_read - before.1;
        if link.first_seq != before.0 && came < TRICKLE && link.is_at_work() {
            self.lulls.trickle();
        }
        if link.ready.writable && link.written < link.queue.end() {
            self.dirty_link(id);
        }
        self.account_link(id);
    }

    fn finish_connect(&mut self, id: u32) {
        let link = &mut self.links[id as usize];
        if !link.ready.writable && !link.ready.closed {
            return;
        }
        let LinkState::Connecting(io) = &mut link.state else {
            return;
        };
        match io.connected() {
            Ok(true) => {
                let LinkState::Connecting(io) = std::mem::replace(&mut link.state, LinkState::Idle)
                else {
                    return;
                };
                let greeting = Greeting {
                    sent: 0,
                    version_seen: false,
                };
                link.state = LinkState::Greeting(io, greeting);
            }
            Ok(false) => {}
            Err(e) => self.connect_failed(id, super::connect_cause(&e)),
        }
    }

    fn send_greeting(&mut self, id: u32) {
        let link = &mut self.links[id as usize];
        let LinkState::Greeting(io, greeting) = &mut link.state else {
            return;
        };
        while link.ready.writable && greeting.sent < GREETING.len() {
            self.counters.writes += 1;
            match io.write(&[IoSlice::new(&GREETING[greeting.sent..])]) {
                Ok(n) if n > 0 => greeting.sent += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => link.ready.writable = false,
                _ => return self.connect_failed(id, Cause::ConnectionLost),
            }
        }
    }

    /// One read and what it holds. False if there is nothing more to do now.
    fn fill_link(&mut self, id: u32) -> bool {
        let link = &self.links[id as usize];
        if !link.ready.readable || !matches!(link.state, LinkState::Up(_) | LinkState::Greeting(..))
        {
            return false;
        }
        let mut chunk = self.free_chunk();
        let go_on = self.read_link(id, &mut chunk);
        self.chunk = Some(chunk);
        go_on
    }

    fn read_link(&mut self, id: u32, chunk: &mut Rc<Chunk>) -> bool {
        let link = &mut self.links[id as usize];
        let Some(space) = Chunk::writable(chunk) else {
            return false;
        };
        let left = link.partial.len();
        space[..left].copy_from_slice(&link.partial);
        let room = space.len() - left;
        let closed = link.ready.closed;
        let (LinkState::Up(io) | LinkState::Greeting(io, _)) = &mut link.state else {
            return false;
        };
        self.counters.reads += 1;
        let n = match io.read(&mut space[left..]) {
            Ok(0) => {
                self.link_closed(id);
                return false;
            }
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                link.ready.readable = false;
                return false;
            }
            Err(_) => {
                self.link_closed(id);
                return false;
            }
        };
        link.partial.clear();
        // A short read means drained, unless the end is already there too.
        if n < room && !closed {
            link.ready.readable = false;
        }
        let server = &mut self.servers[link.server as usize];
        server.stats.bytes_read += n as u64;
        server.health.on_bytes(self.now);
        self.counters.server_bytes_read += n as u64;
        let generation = link.generation;
        let used = self.take_replies(id, chunk, left + n);
        let link = &mut self.links[id as usize];
        if link.generation != generation {
            return false;
        }
        match used {
            Ok(used) => {
                link.partial
                    .extend_from_slice(&chunk.bytes()[used..left + n]);
                true
            }
            Err(why) => {
                self.counters.protocol_errors += 1;
                let server = &self.servers[link.server as usize];
                log::warn!("{}: {why}; link reset", server.spec.name);
                if matches!(link.state, LinkState::Greeting(..)) {
                    self.connect_failed(id, Cause::ConnectionLost);
                } else {
                    self.link_lost(id, Cause::ConnectionLost);
                }
                false
            }
        }
    }

    /// Settles every whole reply in the first `len` bytes of `chunk`. Returns how many bytes
    /// were used; the rest is an unfinished line.
    fn take_replies(
        &mut self,
        id: u32,
        chunk: &Rc<Chunk>,
        len: usize,
    ) -> Result<usize, &'static str> {
        let link = &mut self.links[id as usize];
        let generation = link.generation;
        let mut arriving = link.arriving.take().unwrap_or_default();
        let used = self.take_each(id, &mut arriving, chunk, len);
        let link = &mut self.links[id as usize];
        if link.generation == generation {
            link.arriving = Some(arriving);
        }
        used
    }

    fn take_each(
        &mut self,
        id: u32,
        arriving: &mut Arriving,
        chunk: &Rc<Chunk>,
        len: usize,
    ) -> Result<usize, &'static str> {
        let generation = self.links[id as usize].generation;
        let mut at = 0;
        while at < len {
            let link = &mut self.links[id as usize];
            let greeting = match &link.state {
                LinkState::Greeting(_, g) => Some(g.version_seen),
                LinkState::Up(_) => None,
                _ => return Ok(len),
            };
            let (verb, line) = match (greeting, link.pending.front()) {
                (Some(false), _) => (Verb::Version, &b"version\r\n"[..]),
                (Some(true), _) => (Verb::Stats, &b"stats\r\n"[..]),
                (None, Some(p)) => (
                    p.verb,
                    Source::Queue(&link.queue, link.settled).slice(0..p.line as usize),
                ),
                (None, None) => return Err("sent what nobody asked for"),
            };
            match arriving.scan.feed(verb, line, &chunk.bytes()[at..len]) {
                Progress::Bad(why) => return Err(why),
                Progress::More { .. }
                    if greeting.is_some() && arriving.message.len() > MAX_GREETING =>
                {
                    return Err("the handshake has no end");
                }
                Progress::More { used } => {
                    self.gather(id, arriving, verb, chunk, at..at + used);
                    return Ok(at + used);
                }
                Progress::Whole { used, line, status } => {
                    let whole = Whole {
                        verb,
                        line,
                        status,
                        greeting,
                    };
                    self.take_whole(id, arriving, chunk, at..at + used, whole);
                    at += used;
                    if self.links[id as usize].generation != generation {
                        return Ok(len);
                    }
                }
            }
        }
        Ok(at)
    }

    /// A reply has ended; its last bytes are `range` of `chunk`.
    fn take_whole(
        &mut self,
        id: u32,
        arriving: &mut Arriving,
        chunk: &Rc<Chunk>,
        range: Range<usize>,
        whole: Whole,
    ) {
        let Arriving {
            message,
            scan,
            discarding,
        } = arriving;
        let earlier = message.len();
        let (source, at, len) = if earlier == 0 {
            (Source::Chunk(chunk), range.start, range.len())
        } else {
            message.push(Source::Chunk(chunk), range.clone());
            (Source::Queue(message, message.start()), 0, message.len())
        };
        let mut reply = Reply {
            source,
            at,
            len,
            line: whole.line,
            status: whole.status,
            items: &scan.items,
        };
        let failed = super::settle::is_error(whole.status);
        if let (Some(last), true, false) = (scan.items.last(), failed, *discarding) {
            // A server that fails behind a value has failed: an answer is one or the other.
            let values = last.at + last.line + last.value + b"\r\n".len();
            reply.at += values;
            reply.len -= values;
            reply.line = reply.len;
            reply.items = &[];
        }
        match whole.greeting {
            Some(version_seen) => self.greeted(id, version_seen, &reply),
            // A lone line (a miss, the answer to a probe) is small.
            None if *discarding
                || reply.len > reply.line
                    && self.no_memory_for(id, whole.verb, earlier, range.len()) =>
            {
                self.counters.limit_memory_gets += 1;
                self.settle(id, &out_of_memory());
            }
            None => self.settle(id, &reply),
        }
        scan.reset();
        message.clear();
        *discarding = false;
    }

    /// Keeps a part of a reply that is not whole yet, unless there is no memory for its values.
    /// What became of a write is always kept: it is small, and others depend on it.
    fn gather(
        &mut self,
        id: u32,
        arriving: &mut Arriving,
        verb: Verb,
        chunk: &Rc<Chunk>,
        range: Range<usize>,
    ) {
        let greeting = matches!(self.links[id as usize].state, LinkState::Greeting(..));
        if !arriving.discarding && !greeting {
            let earlier = arriving.message.len();
            arriving.discarding = self.no_memory_for(id, verb, earlier, range.len());
        }
        if arriving.discarding {
            arriving.message.free();
        } else {
            arriving.message.push(Source::Chunk(chunk), range);
        }
    }

    /// True if so many bytes more of a reply must not be kept: with its values they would pass
    /// `-m`, or its client would hold too much of it. Of that reply so many came `earlier`.
    ///
    /// A client that takes nothing must not fill the memory for all. What one alone holds
    /// therefore counts twice: that is a threshold which falls as memory fills, so that however
    /// many hold much they never take all (Choudhury and Hahne, "Dynamic queue length thresholds
    /// for shared-memory packet switches", 1998).
    fn no_memory_for(&mut self, id: u32, verb: Verb, earlier: usize, more: usize) -> bool {
        if more == 0 || !has_values(verb) {
            return false;
        }
        let link = &self.links[id as usize];
        let owed = match link.pending.front().map(|p| &p.to) {
            Some(To::Client { client, .. }) => self.clients.get(*client).map_or(0, Client::owed),
            _ => 0,
        };
        let pool = self.servers[link.server as usize].pool;
        let much = owed > OWED_LITTLE || earlier > self.pools[pool].config.max_value;
        self.over_memory(more, 100) || much && self.over_memory(owed + earlier + more, SOFT_MEMORY)
    }

    /// One answer of the handshake.
    fn greeted(&mut self, id: u32, version_seen: bool, reply: &Reply<'_>) {
        let link = &mut self.links[id as usize];
        let server = &mut self.servers[link.server as usize];
        if !version_seen {
            server.meta = version_at_least(reply.first_line(), 1, 6);
            if let LinkState::Greeting(_, g) = &mut link.state {
                g.version_seen = true;
            }
            return;
        }
        let mut text = Vec::new();
        reply
            .source
            .copy_to(reply.at..reply.at + reply.len, &mut text);
        link.uptime = text.split(|b| *b == b'\n').find_map(uptime);
        let state = std::mem::replace(&mut link.state, LinkState::Idle);
        if let LinkState::Greeting(io, _) = state {
            link.state = LinkState::Up(io);
        }
        self.link_up(id);
    }

    /// Reads a link that was given up, to its end.
    pub(super) fn read_drain(&mut self, key: usize) {
        let mut scrap = [0; 4096];
        // What a stopped server answers when it wakes is bounded by what it was asked; the
        // loop ends at the end or when nothing is there.
        while let Some(drain) = self.drains.get_mut(key) {
            match drain.io.read(&mut scrap) {
                Ok(n) if n > 0 => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                _ => return self.drain_ended(key),
            }
        }
    }
}
