//! What a server holds: `lru_crawler metadump` on a connection of its own, which is read as soon as
//! anything is there. A server lists to one reader at a time, and stops while that does not read.
//!
//! ```text
//!  Wanted ─▶ Connecting ─▶ Asked: key=… key=… key=… END ─▶ Ended
//! ```

use super::partners::Way;
use super::refill::{Ended, How};
use super::{NOBODY, Pools, ServerId};
use crate::buffer::Queue;
use crate::config::Address;
use crate::net::{Conn, Socket};
use crate::protocol::metadump::{self, Line};
use crate::time::{SECOND, Time};
use crate::work::{REQUEST, Work};
use std::io;

/// The token of a listing's socket has this bit, besides that of a link.
pub const KIND_LISTING: usize = 1 << 61;

/// Read in one turn, in bytes: some hundred keys, so that no client waits longer for them.
const PIECE: usize = 16 * 1024;

/// Longest line, in bytes: a key of 250 bytes takes three times as much, and some numbers follow.
const MAX_LINE: usize = 2048;

/// A listing of which nothing was heard for so long is over, in nanoseconds: some servers let those
/// wait that come while they list to another.
const SILENCE: u64 = 5 * SECOND;

#[derive(Debug)]
enum State<S> {
    /// The loop has not brought the socket yet.
    Wanted,
    /// It is being opened.
    Connecting(Conn<S>),
    /// The server was asked.
    Asked(Conn<S>),
}

/// A listing under way.
#[derive(Debug)]
pub struct Listing<S> {
    /// Who is asked.
    pub server: ServerId,
    how: How,
    state: State<S>,
    token: usize,
    question: Queue,
    /// What came and was not looked at: less than a line.
    partial: Vec<u8>,
    /// Keys came.
    has_keys: bool,
    /// When something came last.
    heard: Time,
}

impl<S: Socket> Listing<S> {
    fn conn(&mut self) -> Option<&mut Conn<S>> {
        match &mut self.state {
            State::Wanted => None,
            State::Connecting(conn) | State::Asked(conn) => Some(conn),
        }
    }

    /// True if there is something to do.
    pub fn is_ready(&self) -> bool {
        match &self.state {
            State::Wanted => false,
            State::Connecting(conn) => conn.is_writable() || conn.has_ended(),
            State::Asked(conn) => {
                conn.is_readable() || (conn.is_writable() && !self.question.is_empty())
            }
        }
    }

    /// When it is over for want of a word.
    pub fn silent_at(&self) -> Time {
        self.heard.plus(SILENCE)
    }

    /// Bytes that it holds.
    pub fn bytes(&self) -> usize {
        self.partial.len()
    }

    /// Its connect comes to its end, and the question goes out.
    fn open(&mut self) -> io::Result<()> {
        if let State::Connecting(conn) = &mut self.state {
            if !conn.connected()? {
                return Ok(());
            }
            if let State::Connecting(conn) = std::mem::replace(&mut self.state, State::Wanted) {
                self.state = State::Asked(conn);
            }
            self.question.push_slice(match self.how {
                How::Hash => b"lru_crawler metadump hash\r\n",
                How::All | How::AllAgain => b"lru_crawler metadump all\r\n",
            });
        }
        if let State::Asked(conn) = &mut self.state {
            let at = self.question.start();
            let (bytes, _) = conn.write(&self.question, at, usize::MAX)?;
            self.question.release(at + bytes as u64);
        }
        Ok(())
    }

    /// Reads a piece into `partial`: how much, or how it ended.
    fn read(&mut self) -> Result<usize, Ended> {
        let State::Asked(conn) = &mut self.state else {
            return Ok(0);
        };
        if !conn.is_readable() {
            return Ok(0);
        }
        let left = self.partial.len();
        self.partial.resize(left + PIECE, 0);
        let read = conn.read(&mut self.partial[left..]);
        let n = read.as_ref().map_or(0, |n| n.unwrap_or(0));
        self.partial.truncate(left + n);
        match read {
            Ok(Some(0)) | Err(_) => Err(Ended::Cut),
            Ok(_) => Ok(n),
        }
    }
}

impl<S: Socket> Pools<S> {
    /// A server is to be listed for the current refill.
    pub(super) fn begin_listing(&mut self, server: ServerId, how: How) {
        self.listing = Some(Listing {
            server,
            how,
            state: State::Wanted,
            token: 0,
            question: Queue::new(),
            partial: Vec::new(),
            has_keys: false,
            heard: self.now,
        });
    }

    /// Where a listing wants a connection to, under the token of this socket.
    pub(super) fn listing_connect(&mut self, token: usize) -> Option<Address> {
        let listing = self.listing.as_mut()?;
        if !matches!(listing.state, State::Wanted) || listing.token != 0 {
            return None;
        }
        listing.token = token;
        self.servers.get(listing.server)?.candidate(0)
    }

    /// Its socket, or why there is none.
    pub(super) fn listing_connecting(&mut self, token: usize, stream: io::Result<S>) {
        let Some(listing) = self.listing.as_mut().filter(|l| l.token == token) else {
            return;
        };
        match stream {
            Ok(io) => listing.state = State::Connecting(Conn::connecting(io)),
            Err(_) => self.end_listing(Ended::Cut),
        }
    }

    /// An event of its socket.
    pub(super) fn listing_ready(
        &mut self,
        token: usize,
        readable: bool,
        writable: bool,
        closed: bool,
    ) {
        let listing = self.listing.as_mut().filter(|l| l.token == token);
        if let Some(conn) = listing.and_then(Listing::conn) {
            conn.note(readable, writable, closed);
        }
    }

    /// The listing is over; the refill goes on from that.
    pub(super) fn end_listing(&mut self, how: Ended) {
        self.listing = None;
        self.refills.ended = Some(how);
        self.charge_listing();
    }

    /// Charges what the listing holds.
    pub(super) fn charge_listing(&mut self) {
        let bytes = self.listing.as_ref().map_or(0, Listing::bytes);
        self.budget
            .recharge(&mut self.refills.listing_charged, bytes);
    }

    /// Reads a piece of the listing, if there is one.
    pub(super) fn read_listing(&mut self, work: &mut Work) {
        let Some(mut listing) = self.listing.take() else {
            return;
        };
        if !listing.is_ready() {
            self.listing = Some(listing);
            return;
        }
        let ended = self.read_keys(&mut listing, work).err();
        self.listing = Some(listing);
        match ended {
            Some(ended) => self.end_listing(ended),
            None => self.charge_listing(),
        }
        if let Some(target) = self.refills.current().map(|r| r.target) {
            self.charge_refill(target);
        }
    }

    /// One piece of it and the keys therein.
    fn read_keys(&mut self, listing: &mut Listing<S>, work: &mut Work) -> Result<(), Ended> {
        if listing.open().is_err() {
            return Err(Ended::Cut);
        }
        let n = listing.read();
        let n = match n {
            Ok(0) => return Ok(()),
            Ok(n) => n,
            Err(ended) => return Err(ended),
        };
        work.count_call(n);
        self.calls.reads += 1;
        self.counters.server_bytes_read += n as u64;
        listing.heard = self.now;
        if let Some(server) = self.servers.get_mut(listing.server) {
            server.stats.bytes_read += n as u64;
        }
        let bytes = std::mem::take(&mut listing.partial);
        let mut rest = &bytes[..];
        while let Some(end) = rest.iter().position(|b| *b == b'\n') {
            let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]);
            work.count(REQUEST);
            self.take_line(listing, line)?;
            rest = &rest[end + 1..];
        }
        if rest.len() > MAX_LINE {
            return Err(Ended::Cut);
        }
        listing.partial = rest.to_vec();
        Ok(())
    }

    /// One line: a key that belongs to the server that is refilled, or compared, is kept.
    fn take_line(&mut self, listing: &mut Listing<S>, line: &[u8]) -> Result<(), Ended> {
        let mut key = std::mem::take(&mut self.key);
        key.clear();
        let said = metadump::parse(line, &mut key);
        if let Line::Key { size } = said {
            listing.has_keys = true;
            let target = self.refills.current().map(|r| r.target);
            let way = target.and_then(|target| self.way(target, &key));
            let verifies = self.refills.current().is_some_and(|r| r.verify.is_some());
            let is_wanted = |way: &Way| match verifies {
                true => {
                    let tells = [Some(way.partner), target].contains(&Some(listing.server));
                    tells && way.partner != NOBODY
                }
                false => way.sources().any(|source| source == listing.server),
            };
            let way = way.filter(is_wanted);
            if let (Some(way), Some(refill)) = (way, self.refills.current()) {
                let size = u32::try_from(size).unwrap_or(u32::MAX);
                let is_kept = refill.spool.push(way.hash, &key, size);
                refill.progress.listed += u64::from(is_kept);
            }
        }
        self.key = key;
        match said {
            Line::Key { .. } => Ok(()),
            Line::End => Err(Ended::Whole),
            Line::Busy => Err(Ended::Busy),
            Line::Refused if listing.has_keys => Err(Ended::Cut),
            Line::Refused => Err(Ended::Refused),
        }
    }
}
