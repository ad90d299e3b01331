//! The right to refresh a stale value that a fetch of magent's own took: memcached tells such a value to nobody
//! without giving that right away, and it is a client's.
//!
//! ```text
//!  mg k u f t v c ─▶ server: W ─┬─▶ a client's mg k is behind it: gets W in place of Z
//!                               └─▶ none is: md k I C<cas>, ahead of all that is asked later
//! ```

use super::pending::{Answered, Ask, Pending, To};
use super::{NOBODY, Pools, ServerId};
use crate::buffer::Queue;
use crate::clients::{Clients, Ticket};
use crate::net::Socket;
use crate::protocol::forms::{self, Fetched};
use crate::protocol::{Traits, Verb};

/// A right that a client is to get, who asked for the key before the fetch was answered.
#[derive(Debug)]
pub struct Win {
    server: ServerId,
    /// The key's link at that server, and its socket.
    link: usize,
    token: usize,
    /// When this request was answered, and nobody got it, it is given back.
    until: u64,
    key: Box<[u8]>,
    hash: u64,
    fetched: Fetched,
}

/// A client that asks for a key in such a way that the right may be its own.
fn may_win(p: &Pending, hash: u64) -> bool {
    p.verb == Verb::MetaGet && p.hash == hash && matches!(p.to, To::Client(_))
}

impl<S: Socket> Pools<S> {
    /// A fetch took the right, and no client was given it: the first who asked meanwhile gets it, or it is given
    /// back.
    pub(super) fn give_back(&mut self, server: ServerId, key: &[u8], hash: u64, fetched: &Fetched) {
        let Some(link) = self.servers.get(server).map(|s| s.link_for(hash)) else {
            return;
        };
        if let Some(l) = self.links.get(link) {
            let behind = l.pending.iter().rposition(|p| may_win(p, hash));
            if let Some(behind) = behind {
                self.wins.push(Win {
                    server,
                    link,
                    token: l.token,
                    until: l.first_seq + behind as u64,
                    key: key.into(),
                    hash,
                    fetched: *fetched,
                });
                return;
            }
        }
        let mut line = Vec::new();
        let verb = forms::write_give_back(key, fetched, &mut line);
        let pending = self.own(To::Nobody, verb, Traits::WRITES, hash);
        self.send(server, pending, &Ask::line(verb, Traits::WRITES, &line));
    }

    /// The answer to a client that gets the right which a fetch ahead of it took; `None` for all others.
    #[inline]
    pub(super) fn answer_with_win(
        &mut self,
        answered: &Answered<'_>,
        ticket: Ticket,
        clients: &Clients<S>,
    ) -> Option<Queue> {
        if self.wins.is_empty() {
            return None;
        }
        let (id, p) = (answered.link, answered.request);
        let of_link = |w: &Win| w.link == id && may_win(p, w.hash);
        let at = self.wins.iter().position(of_link)?;
        let key = self.key_at(answered);
        let is_of_key = self.wins[at].key[..] == key[..];
        self.key = key;
        if !is_of_key || !clients.is_here(ticket.client) {
            return None;
        }
        let shown = forms::answer_with_win(answered.reply)?;
        self.wins.swap_remove(at);
        Some(shown)
    }

    /// A link has answered: what nobody got there, of all who could, is given back.
    #[inline]
    pub(super) fn settle_wins(&mut self, id: usize) {
        if !self.wins.is_empty() {
            self.give_back_unseen(id);
        }
    }

    fn give_back_unseen(&mut self, id: usize) {
        let mut at = 0;
        while let Some(win) = self.wins.get(at) {
            let link = self.links.get(win.link);
            let first = link.filter(|l| l.token == win.token).map(|l| l.first_seq);
            if first.is_some_and(|first| win.link != id || first <= win.until) {
                at += 1;
                continue;
            }
            let win = self.wins.swap_remove(at);
            if first.is_some() {
                self.give_back(win.server, &win.key, win.hash, &win.fetched);
            }
        }
    }

    /// The answer to what nobody waits for any more: it may be a fetch that was late.
    pub(super) fn settle_nobodys(&mut self, answered: &Answered<'_>) {
        let p = answered.request;
        if p.verb != Verb::MetaGet || p.home.primary != NOBODY {
            return;
        }
        let fetched = forms::parse_fetched(answered.reply.first_line());
        if let Some(fetched) = fetched.filter(Fetched::won) {
            let (server, key) = (self.server_of(answered.link), self.key_at(answered));
            self.give_back(server, &key, p.hash, &fetched);
            self.key = key;
        }
    }
}
