//! A request whose primary was lost goes to the backup, once.

use super::pending::{Ask, Attempt, Lost, Pending, To};
use super::server::fnv;
use super::{NOBODY, Pools, ServerId};
use crate::buffer::Source;
use crate::clients::{Clients, Ticket};
use crate::health::Cause;
use crate::net::Socket;
use crate::protocol::{Verb, forms};

impl<S: Socket> Pools<S> {
    /// A client's request was lost at its primary: it goes to its backup, or once more to the
    /// primary, or its client is told.
    pub(super) fn fail_over(&mut self, lost: &Lost<'_>, ticket: Ticket, clients: &mut Clients<S>) {
        let p = lost.request;
        if p.home.several {
            return self.split_lost(lost, ticket, clients);
        }
        let backup = p.home.backup;
        if backup == NOBODY {
            return self.retry_or_fail(lost, ticket, clients);
        }
        let is_understood = p.verb != Verb::MetaSet || !self.is_too_old(backup);
        let may_be_read = self.may_be_read(p.home.primary, backup);
        let goes_on = self.is_up(backup) && may_be_read && is_understood;
        // On a link that lives it may still run here, and the backup may not learn of it.
        if p.writes() && (goes_on || self.is_up(lost.server)) {
            self.missed(lost);
        }
        if !goes_on {
            return self.fail(lost, ticket, clients);
        }
        self.counters.failovers += 1;
        let pool = &self.pools[p.home.pool as usize];
        let mut again = p.again(Attempt::Backup);
        again.timeout = pool.timeout_ms();
        again.extend(p.left(pool.span()));
        self.send_to_backup(backup, again, lost.ask);
    }

    fn retry_or_fail(&mut self, lost: &Lost<'_>, ticket: Ticket, clients: &mut Clients<S>) {
        let p = lost.request;
        let again = !p.writes()
            && p.attempt == Attempt::Primary
            && lost.cause == Cause::ConnectionLost
            && self.is_up(lost.server);
        if again {
            self.counters.retries += 1;
            self.send(lost.server, p.again(Attempt::Retried), lost.ask);
        } else {
            self.fail(lost, ticket, clients);
        }
    }

    /// A server may lack a write, or run it late: a delete follows on its link if that lives, else
    /// when the server is back.
    pub(super) fn missed(&mut self, lost: &Lost<'_>) {
        let p = lost.request;
        let mut key = std::mem::take(&mut self.key);
        key.clear();
        forms::raw_key(p.verb, lost.ask.line_bytes(), &mut key);
        self.invalidate_and_warm(lost.server, &key, p.hash);
        self.key = key;
    }

    /// Cas tokens never cross farms: the bit that marks the backup's is flipped on the way.
    fn send_to_backup(&mut self, backup: ServerId, p: Pending, ask: &Ask<'_>) {
        let mut key = std::mem::take(&mut self.key);
        key.clear();
        forms::raw_key(p.verb, ask.line_bytes(), &mut key);
        self.sync_first(backup, &key, p.hash);
        self.key = key;
        if !p.traits.has(crate::protocol::Traits::SENDS_CAS) {
            return self.send(backup, p, ask);
        }
        let mut line = std::mem::take(&mut self.line);
        line.clear();
        forms::flip_cas(p.verb, ask.line_bytes(), &mut line);
        let flipped = Ask {
            line: (Source::Slice(&line), 0..line.len()),
            ..ask.clone()
        };
        self.send(backup, p, &flipped);
        self.line = line;
    }

    /// Nobody knows whether a write was done.
    pub(super) fn leave_lost(&mut self, lost: &Lost<'_>) {
        let p = lost.request;
        forms::each_key(p.verb, lost.ask.line_bytes(), |key| {
            self.leave(p, key);
            self.leave_behind(lost.server, p, key);
        });
    }

    /// A request with several keys was lost: each key is asked for by itself.
    fn split_lost(&mut self, lost: &Lost<'_>, ticket: Ticket, clients: &mut Clients<S>) {
        let (p, ask) = (lost.request, lost.ask);
        let line = ask.line_bytes();
        let mut single = Vec::new();
        clients.split(ticket, line, |ticket, key| {
            single.clear();
            forms::write_single(ask.verb, line, key, &mut single);
            let mut again = p.again(p.attempt);
            again.to = To::Client(ticket);
            again.home = self.home_of(&p.home, key);
            again.hash = fnv(key);
            let ask = Ask::line(ask.verb, ask.traits, &single);
            self.lose(lost.server, again, &ask, lost.cause);
        });
    }

    /// Nobody can answer: the client gets an error that names server and cause.
    pub(super) fn fail(&mut self, lost: &Lost<'_>, ticket: Ticket, clients: &mut Clients<S>) {
        // What was not sent has changed nothing.
        if lost.request.writes() && lost.was_asked() {
            self.leave_lost(lost);
        }
        let line = self.failure(lost.server, lost.cause);
        if log::log_enabled!(log::Level::Debug) {
            let asked = crate::logger::shown(lost.ask.line_bytes());
            let why = line.strip_prefix(b"SERVER_ERROR ").unwrap_or(&line);
            log::debug!("nobody <- {asked} ({})", crate::logger::shown(why));
        }
        clients.fail(ticket, &line);
    }

    /// Answers as a server that lacks the key.
    pub(super) fn answer_absent(
        &mut self,
        ticket: Ticket,
        ask: &Ask<'_>,
        clients: &mut Clients<S>,
    ) {
        let mut text = Vec::new();
        let status = forms::absent_answer(ask.verb, ask.line_bytes(), &mut text);
        let reply = crate::clients::line_reply(&text, status);
        clients.answer(ticket, ask.verb, ask.line_bytes(), &reply);
    }
}
