//! What slow requests waited for, told when they are answered.

use super::pending::{Answered, Attempt, Lost, Pending, To};
use super::{Pools, ServerId};
use crate::clients::Clients;
use crate::net::Socket;
use crate::protocol::forms;
use crate::stats::Asked;

impl<S: Socket> Pools<S> {
    /// This reply answered them. `token`: its link's socket.
    pub(super) fn explain_answered(
        &self,
        answered: &Answered<'_>,
        token: usize,
        clients: &mut Clients<S>,
    ) {
        let Some(link) = self.links.get(answered.link) else {
            return;
        };
        // If the reply took the server down, the bytes are gone with the link.
        let line = match link.token == token && link.is_up() {
            true => link.line_at(answered.at, answered.request.line),
            false => b"",
        };
        self.explain(link.server, answered.request, line, None, clients);
    }

    /// They were answered because this request was lost.
    pub(super) fn explain_lost(&self, lost: &Lost<'_>, clients: &mut Clients<S>) {
        let (line, error) = (lost.ask.line_bytes(), Some(lost.cause.text()));
        self.explain(lost.server, lost.request, line, error, clients);
    }

    fn explain(
        &self,
        server: ServerId,
        p: &Pending,
        line: &[u8],
        error: Option<&'static str>,
        clients: &mut Clients<S>,
    ) {
        let server = self.servers.get(server).map(|s| s.spec.name.as_str());
        let (before, role) = match (p.to, p.attempt) {
            (To::Step(_), _) | (_, Attempt::Backup | Attempt::Deleted) => ("primary", "backup"),
            (_, Attempt::Primary) => ("queue", "primary"),
            (_, Attempt::Retried) => ("lost_link", "primary"),
            (_, Attempt::Warmed) => ("fetch", "primary"),
        };
        let (mut key, mut keys) = (Vec::new(), 0);
        if !line.is_empty() {
            forms::each_key(p.verb, line, |one| {
                if keys == 0 {
                    key.extend_from_slice(one);
                }
                keys += 1;
            });
        }
        clients.slow.explain(|_| Asked {
            key: key.clone(),
            keys,
            server: server.unwrap_or_default().to_string(),
            sent: p.sent,
            before,
            role,
            error,
        });
    }
}
