//! What monitors ask memcached for (`stats items` …): every primary of a pool, or of all, is asked, and
//! their answers are merged. A server that is away, late, or breaks the protocol adds nothing.
//!
//! ```text
//!  stats slabs ─▶ primary 1 ─▶ STAT 1:used_chunks 2 ─┐
//!              └▶ primary 2 ─▶ STAT 1:used_chunks 3 ─┴─▶ STAT 1:used_chunks 5
//! ```

use super::pending::{Ask, Pending, To};
use super::server::{Pool, distinct};
use super::totals::{Merged, Totals};
use super::{Pools, ServerId};
use crate::clients::{Clients, Ticket};
use crate::net::Socket;
use crate::protocol::{Reply, Traits, Verb};

/// Who asked.
#[derive(Clone, Copy, Debug)]
pub enum Asker {
    /// A client.
    Client(Ticket),
    /// An operator; [`Pools::take_report`] names this number again.
    Operator(usize),
}

/// One `stats` on its way.
#[derive(Debug)]
pub struct Monitor {
    asker: Asker,
    totals: Totals,
    waiting: usize,
    /// Bytes charged to the budget.
    charged: usize,
}

impl Monitor {
    /// Bytes charged to the budget.
    #[cfg(debug_assertions)]
    pub fn charged(&self) -> usize {
        self.charged
    }
}

impl<S: Socket> Pools<S> {
    /// Asks the primaries of a pool, or of all, for `line`, and answers with what comes of `totals`.
    pub fn ask_primaries(
        &mut self,
        asker: Asker,
        pool: Option<usize>,
        line: &str,
        totals: Totals,
        clients: &mut Clients<S>,
    ) {
        let pools = || self.pools_of(pool);
        let ids: Vec<ServerId> = pools().flat_map(|p| &p.primary_ids).copied().collect();
        let span = pools().map(Pool::span).max().unwrap_or(0);
        let timeout = pools().map(Pool::timeout_ms).max().unwrap_or(0);
        let (primaries, deadline) = (distinct(&ids), self.now.plus(span));
        let op = self.monitors.insert(Monitor {
            asker,
            totals,
            // One extra part: servers that are away must not finish it at once.
            waiting: primaries.len() + 1,
            charged: 0,
        });
        self.charge_monitor(op);
        let line = format!("{line}\r\n");
        let ask = Ask::line(Verb::Stats, Traits::default(), line.as_bytes());
        for id in primaries {
            let part = Pending {
                deadline,
                timeout,
                ..self.own(To::Monitor(op), Verb::Stats, Traits::default(), 0)
            };
            self.send(id, part, &ask);
        }
        self.monitor_part_done(op, clients);
    }

    fn charge_monitor(&mut self, op: usize) {
        if let Some(monitor) = self.monitors.get_mut(op) {
            let bytes = monitor.totals.bytes();
            self.budget.recharge(&mut monitor.charged, bytes);
        }
    }

    /// True if so many bytes more of one server's part may be kept; `earlier` bytes of it are there.
    pub(super) fn has_room_for_part(&self, op: usize, earlier: usize, more: usize) -> bool {
        self.monitors.get(op).is_some_and(|monitor| {
            earlier + more <= monitor.totals.longest()
                && self.budget.admits(monitor.charged + earlier, more)
        })
    }

    /// One server answered; `None`: there was no room for it.
    pub(super) fn monitor_answered(
        &mut self,
        op: usize,
        reply: Option<&Reply<'_>>,
        clients: &mut Clients<S>,
    ) {
        if let (Some(monitor), Some(reply)) = (self.monitors.get_mut(op), reply) {
            // It may stand in pieces.
            let mut text = Vec::with_capacity(reply.len);
            reply
                .source
                .copy_to(reply.at..reply.at + reply.len, &mut text);
            monitor.totals.add(&text);
        }
        self.charge_monitor(op);
        self.monitor_part_done(op, clients);
    }

    /// One server answered, or was lost.
    pub(super) fn monitor_part_done(&mut self, op: usize, clients: &mut Clients<S>) {
        let Some(monitor) = self.monitors.get_mut(op) else {
            return;
        };
        monitor.waiting -= 1;
        if monitor.waiting > 0 {
            return;
        }
        let Some(mut monitor) = self.monitors.remove(op) else {
            return;
        };
        self.budget.recharge(&mut monitor.charged, 0);
        let bytes = monitor.totals.bytes();
        let merged = monitor.totals.finish();
        match monitor.asker {
            Asker::Client(ticket) => clients.report(ticket, bytes, |out, format| {
                merged.write(format, out);
            }),
            Asker::Operator(number) => self.reports.push((number, merged)),
        }
    }

    /// What came of a `stats` that an operator asked for: that one's number, and the answer.
    pub fn take_report(&mut self) -> Option<(usize, Merged)> {
        self.reports.pop()
    }
}
