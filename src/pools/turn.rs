//! One turn of the pools' half, as the proxy drives it.

use super::Pools;
use super::link::LinkState;
use super::listing::KIND_LISTING;
use super::pending::To;
use crate::buffer::Chunk;
use crate::clients::Clients;
use crate::config::Address;
use crate::marks::times::RENEW;
use crate::net::Socket;
use crate::time::{MILLISECOND, Time};
use crate::work::Work;
use std::rc::Rc;

/// A connection that is wanted.
#[derive(Debug)]
pub struct Connect {
    /// To register the stream with, and to hand it over with.
    pub token: usize,
    /// Where to.
    pub address: Address,
    /// Switch TCP keepalive on.
    pub keepalive: bool,
}

/// Tokens of links have this bit; those of clients have not. The event loop's own have the top
/// bit set.
const KIND_LINK: usize = 1 << 60;

/// Bits of a token that hold the number of the socket.
const SOCKETS: u32 = (1 << 28) - 1;

/// Requests of clients that left are looked for this often at most, in nanoseconds.
const LOOK_FOR_ABANDONED: u64 = 5 * MILLISECOND;

impl<S: Socket> Pools<S> {
    /// A turn begins.
    pub fn begin_turn(&mut self, now: Time, unix: u64) {
        self.now = now;
        self.unix = unix;
        self.hot.begin_second(now);
    }

    /// The next connection that is wanted.
    pub fn next_connect(&mut self) -> Option<Connect> {
        let number = self.sockets.wrapping_add(1) & SOCKETS;
        let token = KIND_LINK | KIND_LISTING | (number as usize) << 32;
        if let Some(address) = self.listing_connect(token) {
            self.sockets = number;
            return Some(Connect {
                token,
                address,
                keepalive: false,
            });
        }
        while let Some(id) = self.connects.pop() {
            let Some(link) = self.links.get_mut(id) else {
                continue;
            };
            let Some(server) = self.servers.get(link.server) else {
                continue;
            };
            if !matches!(link.state, LinkState::Wanted) {
                continue;
            }
            // None is known yet: the lookup that is under way lists the link again.
            if let Some(address) = server.candidate(link.tried) {
                link.address = match address {
                    Address::Tcp(address) => Some(address),
                    Address::Unix(_) => None,
                };
                let keepalive = server.keepalive;
                let token = self.next_token(id);
                if let Some(link) = self.links.get_mut(id) {
                    link.token = token;
                }
                return Some(Connect {
                    token,
                    address,
                    keepalive,
                });
            }
        }
        None
    }

    /// What the events of the next socket of a link are named by.
    pub(super) fn next_token(&mut self, link: usize) -> usize {
        self.sockets = self.sockets.wrapping_add(1) & SOCKETS;
        KIND_LINK | (self.sockets as usize) << 32 | (link & 0xffff_ffff)
    }

    /// An event of a server's socket.
    pub fn ready(&mut self, token: usize, readable: bool, writable: bool, closed: bool) {
        match token & KIND_LISTING {
            0 => self.note_event(token, readable, writable, closed),
            _ => self.listing_ready(token, readable, writable, closed),
        }
    }

    /// Reads the links that have something, and decides what becomes of what was asked.
    pub fn serve(&mut self, chunk: &mut Rc<Chunk>, work: &mut Work, clients: &mut Clients<S>) {
        self.is_answering = false;
        for _ in 0..self.readable.len() {
            if work.is_done() {
                break;
            }
            let Some(id) = self.readable.take() else {
                break;
            };
            if let Some(link) = self.links.get_mut(id) {
                link.listed = false;
                let (answered, sent) = (link.first_seq, link.oldest_sent());
                self.serve_link(id, chunk, work, clients);
                let link = self.links.get(id).filter(|l| l.first_seq != answered);
                self.is_answering |= link.is_some_and(|l| l.is_answering(sent));
            }
        }
        self.read_listing(work);
        self.follow(work, clients);
    }

    /// What follows from what was read, asked or late: losses, rings, journals.
    pub fn follow(&mut self, work: &mut Work, clients: &mut Clients<S>) {
        self.renew_rings();
        if !self.losses.is_empty() {
            self.take_losses(work, clients);
            self.renew_rings();
        }
        if self.has_to_tell() {
            self.sync_some(work);
        }
        self.advance_pairs(work, clients);
    }

    /// Does what is due.
    pub fn expire_due(&mut self, work: &mut Work, clients: &mut Clients<S>) {
        self.expire(work);
        self.follow(work, clients);
        self.refill_some(work);
    }

    /// Writes each link that gained output, once, but for those that got mirrors only.
    pub fn write(&mut self, work: &mut Work, clients: &mut Clients<S>) {
        for _ in 0..self.dirty.len() {
            if work.is_done() {
                break;
            }
            let Some(id) = self.dirty.take() else {
                break;
            };
            self.write_link(id, work, clients);
        }
    }

    /// Writes mirrors last: they would wake backups, on a processor that clients' answers need.
    pub fn write_mirrors(&mut self, work: &mut Work, clients: &mut Clients<S>) {
        for _ in 0..self.mirrored.len() {
            if work.is_done() {
                break;
            }
            let Some(id) = self.mirrored.take() else {
                break;
            };
            self.write_link(id, work, clients);
        }
        let links = &self.links;
        let has_looks = |id| links.get(id).is_some_and(|l| l.looks);
        self.watched.forget_written(has_looks);
    }

    fn write_link(&mut self, id: usize, work: &mut Work, clients: &mut Clients<S>) {
        let Some(link) = self.links.get_mut(id) else {
            return;
        };
        (link.dirty, link.mirrored, link.looks) = (false, false, false);
        let Ok((bytes, calls)) = link.write(self.now) else {
            return self.link_closed(id);
        };
        work.count_write(bytes);
        self.calls.writes += calls as u64;
        self.counters.server_bytes_written += bytes as u64;
        if bytes > 0 {
            link.went_on(self.now);
        }
        if link.may_write() {
            self.dirty.add(id, &mut link.dirty);
        }
        link.account(&self.budget);
        if let Some(server) = self.servers.get_mut(link.server) {
            server.stats.bytes_written += bytes as u64;
            if bytes > 0 {
                server.health.on_written(self.now);
                // Is it used, that is: the alarm finds out.
                if server.board.renew_at == Time::NEVER {
                    let is_due = server.board.is_resting;
                    server.board.renew_at = self.now.plus(if is_due { 0 } else { RENEW });
                }
            }
        }
        self.wake_waiting(id, clients);
    }

    /// Withdraws reads of clients that left, as far as they were not sent.
    pub fn look_for_abandoned(&mut self, clients: &Clients<S>) {
        self.looked_for_abandoned = self.now;
        let is_abandoned = |p: &super::Pending| match p.to {
            To::Client(ticket) => !clients.is_here(ticket.client),
            _ => false,
        };
        let links: Vec<usize> = self.links.keys().collect();
        for id in links {
            let Some(link) = self.links.get_mut(id) else {
                continue;
            };
            let withdrawn = link.withdraw(is_abandoned);
            if withdrawn > 0 {
                self.counters.requests_withdrawn += withdrawn as u64;
                link.account(&self.budget);
                // Clients may wait for this room, and no answer come any more that wakes them.
                self.list_link(id);
            }
        }
    }

    /// When requests of clients that left may be looked for again.
    pub fn abandoned_at(&self) -> Time {
        self.looked_for_abandoned.plus(LOOK_FOR_ABANDONED)
    }

    /// True if something is to be done at once.
    pub fn has_work(&self) -> bool {
        !self.readable.is_empty()
            || !self.dirty.is_empty()
            || !self.mirrored.is_empty()
            || !self.losses.is_empty()
            || self.listing.as_ref().is_some_and(|l| l.is_ready())
            || !self.to_advance.is_empty()
            || self.has_to_tell()
    }

    /// True if a listed server can be sent something, or moved on, now.
    fn has_to_tell(&self) -> bool {
        !self.paused && !self.to_sync.is_empty()
    }

    /// True if a server was in the middle of answering a batch when it was read in this turn.
    pub fn expects_answers(&self) -> bool {
        self.is_answering
    }

    /// True if links are to be read.
    pub fn has_readable(&self) -> bool {
        !self.readable.is_empty()
    }

    /// When something is due next.
    pub fn alarm(&self) -> Time {
        self.next_alarm()
    }

    /// True when servers owe nothing that is worth waiting for.
    pub fn is_drained(&self) -> bool {
        self.links
            .values()
            .all(|l| l.is_idle() || !self.is_up(l.server))
    }

    /// Counts what it holds: for tests that look for leaks.
    pub fn holdings(&self, into: &mut crate::stats::Holdings) {
        into.pending = self.links.values().map(|l| l.pending.len()).sum();
        into.drains = self.given_up.len();
        into.waiters =
            self.flows.waiting() + self.losses.iter().map(|l| l.pending.len()).sum::<usize>();
        into.waiters += self.pairs.values().map(|p| p.waiting()).sum::<usize>();
        into.fetches = self.flows.len();
        into.flushes = self.flushes.len();
        into.reports = self.monitors.len();
        into.refills = self.refills.jobs.len() + self.refills.copies.len();
        into.servers_away = self.servers.values().filter(|s| !s.health.is_up()).count();
        into.journals = (self.servers.values())
            .filter(|s| !s.journal.is_empty())
            .count();
    }

    /// The copied bytes that it holds, counted one by one: for tests.
    #[cfg(debug_assertions)]
    pub fn copied(&self) -> usize {
        let links: usize = self.links.values().map(|l| l.copied()).sum();
        let losses: usize = self.losses.iter().map(|l| l.queue.own_bytes()).sum();
        let monitors: usize = self.monitors.values().map(|m| m.charged()).sum();
        let parked = self.pairs.values().flat_map(|p| p.parked.iter());
        let parked: usize = parked.map(|l| l.queue.own_bytes()).sum();
        let watched = self.watched.charged + self.watched.lacking.charged;
        let others = self.flows.charged() + self.refills.charged();
        links + losses + parked + monitors + others + watched
    }
}
