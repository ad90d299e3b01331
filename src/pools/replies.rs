//! From a server's bytes to whole replies, each given to `settle` where it stands.

use super::Pools;
use super::link::{Arriving, LinkState};
use super::pending::To;
use crate::buffer::{Chunk, Source};
use crate::clients::{Clients, has_values, is_error};
use crate::health::Cause;
use crate::net::Socket;
use crate::protocol::reply::Progress;
use crate::protocol::{Reply, Status, Verb};
use crate::work::{REPORT_BYTES, REQUEST, Work};
use std::ops::Range;
use std::rc::Rc;

/// Reads of one link in one turn, so that a fast server does not hold up the others.
const READS_PER_TURN: usize = 8;

/// A link that is owed so many replies is read in pieces of so many bytes, so that one read does not
/// bring more replies than a turn may settle.
const MANY: usize = 2048;
const PIECE: usize = 16 * 1024;

/// Clients that go on at once when a link has room: more would find it full again.
const WOKEN: usize = 16;

/// An answer of the handshake that is longer, in bytes, is given up; memcached's are below 4 KB.
const MAX_GREETING: usize = 64 * 1024;

/// Of the request that a reply belongs to: what was asked, who gets the reply, and whether it writes.
#[derive(Clone, Copy)]
struct Asked {
    verb: Verb,
    to: To,
    writes: bool,
}

/// What the scan of a whole reply came to.
struct Whole {
    asked: Asked,
    line: usize,
    status: Status,
    /// In the handshake: whether `version` was answered before.
    greeting: Option<bool>,
}

/// True if something may have come on a link that is open.
fn can_be_read<S: Socket>(link: &super::Link<S>) -> bool {
    link.is_readable() && !matches!(link.state, LinkState::Connecting(_))
}

/// How many bytes one read of a link may bring.
fn most_at_once<S: Socket>(link: &super::Link<S>) -> usize {
    match link.pending.len() {
        0..MANY => usize::MAX,
        _ => PIECE,
    }
}

impl<S: Socket> Pools<S> {
    /// Moves a link on: its connect, its handshake, its replies. A bounded amount.
    pub(super) fn serve_link(
        &mut self,
        id: usize,
        chunk: &mut Rc<Chunk>,
        work: &mut Work,
        clients: &mut Clients<S>,
    ) {
        let Some(link) = self.links.get_mut(id) else {
            return;
        };
        if !link.is_up() {
            self.open_further(id);
        }
        for _ in 0..READS_PER_TURN {
            if work.is_done() || !self.read_link(id, chunk, work, clients) {
                break;
            }
        }
        let Some(link) = self.links.get_mut(id) else {
            return;
        };
        if can_be_read(link) {
            self.readable.add(id, &mut link.listed);
        }
        if link.may_write() {
            self.dirty.add(id, &mut link.dirty);
        }
        self.wake_waiting(id, clients);
        self.account_link(id);
    }

    /// A link may have room again: clients that waited for it go on, and so does its server's
    /// journal.
    pub(super) fn wake_waiting(&mut self, id: usize, clients: &mut Clients<S>) {
        let Some(link) = self.links.get_mut(id) else {
            return;
        };
        let Some(server) = self.servers.get_mut(link.server) else {
            return;
        };
        if !server.journal.is_empty() {
            self.to_sync.add(link.server, &mut server.listed);
        }
        if link.waiting.is_empty() || !(link.has_room() || server.removed.is_some()) {
            return;
        }
        // As long as the server owes something another reply will come.
        let all = link.pending.is_empty() || server.removed.is_some();
        let mut woken = 0;
        while let Some(client) = link.waiting.pop_front() {
            woken += usize::from(clients.wake(client));
            if woken == WOKEN && !all {
                break;
            }
        }
    }

    /// One read and what it holds. False if there is nothing more to do now.
    fn read_link(
        &mut self,
        id: usize,
        chunk: &mut Rc<Chunk>,
        work: &mut Work,
        clients: &mut Clients<S>,
    ) -> bool {
        if !self.links.get(id).is_some_and(can_be_read) {
            return false;
        }
        clients.renew_chunk(chunk, work);
        let (Some(link), Some(space)) = (self.links.get_mut(id), Chunk::writable(chunk)) else {
            return false;
        };
        let left = link.partial.len();
        space[..left].copy_from_slice(&link.partial);
        let token = link.token;
        let most = space.len().min(left.saturating_add(most_at_once(link)));
        let Some(conn) = link.conn() else {
            return false;
        };
        self.calls.reads += 1;
        let n = match conn.read(&mut space[left..most]) {
            Ok(Some(n)) if n > 0 => n,
            Ok(None) => {
                work.count_call(0);
                return false;
            }
            Ok(Some(_)) | Err(_) => {
                self.link_ended(id);
                return false;
            }
        };
        work.count_call(n);
        link.partial.clear();
        link.went_on(self.now);
        self.counters.server_bytes_read += n as u64;
        if let Some(server) = self.servers.get_mut(link.server) {
            server.stats.bytes_read += n as u64;
            server.health.on_bytes(n, self.now);
        }
        let answered = link.first_seq;
        let used = self.take_replies(id, chunk, left + n, work, clients);
        let Some(link) = self.links.get_mut(id).filter(|l| l.token == token) else {
            return false;
        };
        if link.first_seq != answered {
            link.release();
            link.note_lag(self.now);
            if let Some(server) = self.servers.get_mut(link.server) {
                server.health.on_whole_answer();
            }
        }
        match used {
            Ok(used) => {
                link.partial
                    .extend_from_slice(&chunk.bytes()[used..left + n]);
                link.conn().is_some()
            }
            Err(why) => {
                self.counters.protocol_errors += 1;
                if let Some(server) = self.servers.get(link.server) {
                    log::warn!("{}: {why}; link reset", server.title);
                }
                self.link_ended(id);
                false
            }
        }
    }

    /// A link has ended, or is of no use any more.
    fn link_ended(&mut self, id: usize) {
        match self.is_opening(id) {
            true => self.connect_failed(id, Cause::ConnectionLost),
            false => self.link_closed(id),
        }
    }

    /// Settles every whole reply in the first `len` bytes of `chunk`. Returns how many bytes
    /// were used; the rest is an unfinished line.
    fn take_replies(
        &mut self,
        id: usize,
        chunk: &Rc<Chunk>,
        len: usize,
        work: &mut Work,
        clients: &mut Clients<S>,
    ) -> Result<usize, &'static str> {
        let Some(link) = self.links.get_mut(id) else {
            return Ok(len);
        };
        let token = link.token;
        let mut arriving = link.arriving.take().unwrap_or_default();
        let used = self.take_each(id, &mut arriving, chunk, len, work, clients);
        if let Some(link) = self.links.get_mut(id).filter(|l| l.token == token) {
            link.arriving = Some(arriving);
        }
        used
    }

    fn take_each(
        &mut self,
        id: usize,
        arriving: &mut Arriving,
        chunk: &Rc<Chunk>,
        len: usize,
        work: &mut Work,
        clients: &mut Clients<S>,
    ) -> Result<usize, &'static str> {
        let token = self.links.get(id).map_or(0, |l| l.token);
        let mut at = 0;
        while at < len {
            let Some(link) = self.links.get_mut(id).filter(|l| l.token == token) else {
                return Ok(len);
            };
            let greeting = match &link.state {
                LinkState::Greeting(_, g) => Some(g.version_seen),
                LinkState::Up(_) => None,
                _ => return Ok(len),
            };
            let own = |verb| Asked {
                verb,
                to: To::Probe,
                writes: false,
            };
            let (asked, line) = match (greeting, link.pending.front()) {
                (Some(false), _) => (own(Verb::Version), &b"version\r\n"[..]),
                (Some(true), _) => (own(Verb::Stats), &b"stats\r\n"[..]),
                (None, Some(p)) => {
                    let (verb, to, writes) = (p.verb, p.to, p.writes());
                    let line = link.line_at(link.settled, p.line);
                    (Asked { verb, to, writes }, line)
                }
                (None, None) => return Err("sent what nobody asked for"),
            };
            let feed = (arriving.scan).feed(asked.verb, line, &chunk.bytes()[at..len]);
            match feed {
                Progress::Bad(why) => return Err(why),
                Progress::More { .. }
                    if greeting.is_some() && arriving.message.len() > MAX_GREETING =>
                {
                    return Err("the handshake has no end");
                }
                Progress::More { used } => {
                    self.gather(arriving, &asked, chunk, at..at + used, clients);
                    return Ok(at + used);
                }
                Progress::Whole { used, line, status } => {
                    let whole = Whole {
                        asked,
                        line,
                        status,
                        greeting,
                    };
                    work.count(REQUEST + arriving.scan.items.len() / 4);
                    if asked.verb == Verb::Stats && greeting.is_none() {
                        work.count(arriving.scan.seen() / REPORT_BYTES);
                    }
                    self.take_whole(id, arriving, chunk, at..at + used, whole, clients);
                    at += used;
                }
            }
        }
        Ok(at)
    }

    /// A reply has ended; its last bytes are `range` of `chunk`.
    fn take_whole(
        &mut self,
        id: usize,
        arriving: &mut Arriving,
        chunk: &Rc<Chunk>,
        range: Range<usize>,
        whole: Whole,
        clients: &mut Clients<S>,
    ) {
        let Arriving {
            message,
            scan,
            discarding,
        } = arriving;
        let earlier = message.len();
        let seen = scan.seen();
        let (source, at, len) = if earlier == 0 && !*discarding {
            (Source::Chunk(chunk), range.start, range.len())
        } else {
            if !*discarding {
                message.push(Source::Chunk(chunk), range.clone());
            }
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
        if let Some(version_seen) = whole.greeting {
            self.greeted(id, version_seen, &reply);
        } else if *discarding {
            let gone = Reply {
                source: Source::Slice(b""),
                at: 0,
                len: seen,
                line: 0,
                status: whole.status,
                items: &[],
            };
            self.settle(id, &gone, false, clients);
        } else {
            if let (Some(last), true) = (scan.items.last(), is_error(whole.status)) {
                // An error behind a value: the whole answer is the error.
                let values = last.at + last.bytes();
                reply.at += values;
                reply.len -= values;
                reply.line = reply.len;
                reply.items = &[];
            }
            // A lone line (a miss, the answer to a look) is small.
            let is_kept = reply.len == reply.line
                || self.has_room(&whole.asked, earlier, range.len(), clients);
            self.settle(id, &reply, is_kept, clients);
        }
        scan.reset();
        message.clear();
        *discarding = false;
    }

    /// Keeps a part of a reply that is not whole yet, unless there is no memory for its values.
    /// What became of a write is always kept: it is small, and others depend on it.
    fn gather(
        &mut self,
        arriving: &mut Arriving,
        asked: &Asked,
        chunk: &Rc<Chunk>,
        range: Range<usize>,
        clients: &mut Clients<S>,
    ) {
        if !arriving.discarding {
            let (earlier, more) = (arriving.message.len(), range.len());
            arriving.discarding = !self.has_room(asked, earlier, more, clients);
        }
        if arriving.discarding {
            arriving.message.free();
        } else {
            arriving.message.push(Source::Chunk(chunk), range);
        }
    }

    /// True if so many bytes more of the reply to the oldest request of a link may be kept;
    /// `earlier` bytes of it are there already.
    #[inline]
    fn has_room(
        &mut self,
        asked: &Asked,
        earlier: usize,
        more: usize,
        clients: &mut Clients<S>,
    ) -> bool {
        match asked.to {
            To::Monitor(op) => self.has_room_for_part(op, earlier, more),
            // The monitor has gone.
            To::Nobody if asked.verb == Verb::Stats => false,
            // A discarded read that is a write too (gat) must reach the backup, whoever has left.
            To::Client(ticket) if more > 0 && has_values(asked.verb) => {
                (asked.writes && !clients.is_here(ticket.client))
                    || clients.has_room_for(ticket, earlier, more)
            }
            _ => true,
        }
    }
}
