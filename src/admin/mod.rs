//! The operator's door: text commands for people with telnet, HTTP for monitors, on a listener and
//! connections of its own, so that it answers when there is no place for another client.
//!
//! ```text
//!  bytes ─▶ session ─▶ text │ http ─▶ Proxy: narrow functions ─▶ answer, in pieces ─▶ bytes
//! ```
//!
//! The files of this folder are layers; each calls those below it only:
//!
//! ```text
//!  mod           all sessions: who comes, who goes, whose turn it is
//!  session       one connection
//!  text pages    commands; what HTTP asks for
//!  task          answers that take longer than a turn
//!  document      what monitors read, in pieces
//!  twemproxy metrics json page  its forms
//!  http lists    heads of requests and of answers; lists for people
//! ```
//!
//! There are few sessions, and each holds little. When all places are taken, one makes room for the next that comes.

mod document;
mod http;
mod json;
mod lists;
mod metrics;
mod page;
mod pages;
mod session;
mod task;
mod text;
mod twemproxy;

use crate::net::Socket;
use crate::proxy::{Now, Proxy};
use crate::slab::Slab;
use crate::work::Work;
use session::Session;
use std::time::Duration;

/// Sessions at a time. Monitors need one each, people one or two.
pub const SESSIONS: usize = 32;

/// The door that somebody came through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entrance {
    /// `--admin` over TCP: a browser may be misled to come, so HTTP looks at `Host`.
    Tcp,
    /// `--admin` at a socket's path.
    Unix,
    /// `--twemproxy-stats`: it is told everything and asked nothing.
    Twemproxy,
}

/// All sessions.
pub struct Admin<S> {
    sessions: Slab<Session<S>>,
    /// The session that is served first in a turn; another one each time, so that none that asks for much delays the others for long.
    turn: usize,
    reload_is_wanted: bool,
}

impl<S: Socket> Default for Admin<S> {
    fn default() -> Admin<S> {
        Admin {
            sessions: Slab::default(),
            turn: 0,
            reload_is_wanted: false,
        }
    }
}

impl<S: Socket> Admin<S> {
    /// The number of the next session, which its socket's events are named by.
    pub fn next_number(&self) -> usize {
        self.sessions.next_key()
    }

    /// An operator or a monitor has connected.
    pub fn accepted(&mut self, stream: S, through: Entrance, now: Now) {
        self.sessions.insert(Session::new(stream, through, now.at));
    }

    /// Makes room for one more. Those that never asked anything may have half of the places: then the first
    /// of them goes. Else whoever asked nothing for the longest time goes: so whoever comes has the time to ask, and
    /// neither those who only connect nor those who ask all the time keep others out.
    pub fn make_room(&mut self) {
        if self.sessions.len() < SESSIONS {
            return;
        }
        let silent = self.sessions.values().filter(|s| !s.has_asked());
        let one_of_them = silent.count() >= SESSIONS / 2;
        let keys = self.sessions.keys();
        let oldest = keys
            .filter_map(|key| Some((key, self.sessions.get(key)?)))
            .filter(|(_, session)| session.has_asked() != one_of_them)
            .min_by_key(|(_, session)| session.asked_at());
        if let Some((key, _)) = oldest {
            self.sessions.remove(key);
        }
    }

    /// An event of a session's socket; that of one that left is ignored.
    pub fn ready(&mut self, number: usize, readable: bool, writable: bool, closed: bool) {
        if let Some(session) = self.sessions.get_mut(number) {
            session.note(readable, writable, closed);
        }
    }

    /// Serves all sessions, with a bounded amount of work.
    pub fn tick(&mut self, proxy: &mut Proxy<S>, now: Now, mut work: Work) {
        while let Some((number, report)) = proxy.take_report() {
            if let Some(session) = self.sessions.get_mut(number) {
                session.reported(&report);
            }
        }
        self.turn = self.turn.wrapping_add(1);
        let places = self.sessions.places();
        for i in 0..places {
            let place = (self.turn + i) % places;
            let Some(key) = self.sessions.key_at(place) else {
                continue;
            };
            if let Some(session) = self.sessions.get_mut(key) {
                self.reload_is_wanted |= session.serve(key, proxy, &mut work, now.at);
                if session.is_over(now.at) {
                    self.sessions.remove(key);
                }
            }
        }
    }

    /// True, once, if somebody asked for a reload; [`Admin::reloaded`] tells what came of it.
    pub fn take_reload(&mut self) -> bool {
        std::mem::take(&mut self.reload_is_wanted)
    }

    /// The configuration was read again, or why not: whoever waits for that is answered.
    pub fn reloaded(&mut self, result: Result<(), &str>) {
        for session in self.sessions.values_mut() {
            session.reloaded(result);
        }
    }

    /// How long nothing is to be done here unless an event comes; `None`: for ever.
    pub fn wait(&self, now: Now) -> Option<Duration> {
        self.sessions.values().filter_map(|s| s.wait(now.at)).min()
    }
}

#[cfg(test)]
mod tests;
