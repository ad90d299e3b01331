//! Answers that take longer than a turn: lists that are written in pieces, and what others work on.

use super::document::Document;
use super::lists;
use crate::buffer::Queue;
use crate::net::Socket;
use crate::proxy::Proxy;
use crate::work::{REQUEST, Work};

/// Units of work for one client's line: it asks the system who that is.
const CLIENT: usize = 4 * REQUEST;

/// The answer that a session is in the middle of.
#[derive(Debug)]
pub enum Task {
    /// Nothing: the next request may be answered.
    Nothing,
    /// The list of clients, from this place on.
    Clients(usize),
    /// A document, in pieces.
    Document(Box<Document>),
    /// Servers are asked for their part of a `stats`.
    Report,
    /// The configuration is read again.
    Reload,
}

impl Task {
    /// True if it can go on at once.
    pub fn has_more(&self) -> bool {
        matches!(self, Task::Clients(_) | Task::Document(_))
    }

    /// Writes the next piece.
    pub fn go_on<S: Socket>(&mut self, proxy: &Proxy<S>, out: &mut Queue, work: &mut Work) {
        let goes_on = match self {
            Task::Clients(place) => {
                let goes_on = list_client(*place, proxy, out, work);
                *place += 1;
                goes_on
            }
            Task::Document(document) => document.go_on(out, work),
            Task::Nothing | Task::Report | Task::Reload => return,
        };
        if !goes_on {
            *self = Task::Nothing;
        }
    }
}

/// Writes the client of this place, or behind the last of them the end; false then.
fn list_client<S: Socket>(
    place: usize,
    proxy: &Proxy<S>,
    out: &mut Queue,
    work: &mut Work,
) -> bool {
    if place >= proxy.client_places() {
        out.push_slice(b"END\r\n");
        return false;
    }
    let mut line = String::new();
    if let Some((c, pool)) = proxy.client_at(place) {
        lists::client(&c, pool, &mut line);
        work.count(CLIENT);
    }
    work.count(1);
    out.push_slice(line.as_bytes());
    true
}
