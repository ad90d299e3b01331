//! The operator's door as far as the loop is concerned: its listeners and its sockets.

use super::listeners::{Listeners, Plan};
use crate::admin::{Admin, Entrance};
use crate::config::{Config, ListenSpec};
use crate::files::Owner;
use crate::net::{Given, Stream};
use crate::proxy::{Now, Proxy};
use crate::sys;
use crate::work::Work;
use mio::{Interest, Registry, Token};
use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

/// Set in the tokens of sessions. The bit of the loop's own tokens is above it.
pub const SESSION: usize = 1 << 62;

/// Operators accepted in one turn.
const ACCEPTS: usize = 4;

/// Descriptors that doors need besides those of [`super::descriptors`]: sessions, and listeners.
pub fn descriptors(config: &Config) -> usize {
    match doors(config).count() {
        0 => 0,
        listeners => listeners + crate::admin::SESSIONS,
    }
}

/// The listeners of doors, and the sessions of those who came through them.
pub struct Door {
    listeners: Listeners,
    /// What each listener is for.
    entrances: Vec<Entrance>,
    pub admin: Admin<Stream>,
}

/// Listeners that were bound for doors.
pub struct Bound(Listeners, Plan);

/// All doors: the option, the listener, what it is for.
fn doors(config: &Config) -> impl Iterator<Item = (&'static str, &ListenSpec, Entrance)> {
    let admin = config.admin.iter().map(|door| match door.is_tcp() {
        true => ("--admin", door, Entrance::Tcp),
        false => ("--admin", door, Entrance::Unix),
    });
    let twemproxy = config.twemproxy_stats.iter();
    admin.chain(twemproxy.map(|door| ("--twemproxy-stats", door, Entrance::Twemproxy)))
}

/// Binds the doors of `config` that are not among `given`; their listeners' tokens count from `first_token`.
///
/// # Errors
/// A line that names the door and why it can't be bound.
pub fn bind(
    config: &Config,
    owner: Owner,
    given: &mut Vec<Given>,
    first_token: usize,
) -> Result<Bound, String> {
    // Whoever connects wants this process, and no other.
    let mut listeners = Listeners::new(first_token, false);
    let wanted: Vec<_> = doors(config).map(|(_, spec, _)| spec).collect();
    match listeners.plan(&wanted, owner, given) {
        Ok(plan) => Ok(Bound(listeners, plan)),
        Err((at, why)) => {
            let door = wanted[at].place();
            let option = doors(config).nth(at).map_or("", |(option, ..)| option);
            Err(format!("{option} {door}: {}", sys::reason(&why)))
        }
    }
}

impl Door {
    /// Opens the doors of `config`.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(bound: Bound, config: &Config, registry: &Registry) -> io::Result<Door> {
        let Bound(mut listeners, plan) = bound;
        listeners.apply(plan, registry)?;
        Ok(Door {
            listeners,
            entrances: doors(config).map(|(_, _, entrance)| entrance).collect(),
            admin: Admin::default(),
        })
    }

    /// See [`crate::net::Listener::number`].
    pub fn numbers(&self) -> impl Iterator<Item = (RawFd, Option<(u64, u64)>)> {
        self.listeners.numbers()
    }

    /// Notes an event of a listener. Tokens of other listeners are ignored.
    pub fn note(&mut self, token: Token) {
        self.listeners.note(token);
    }

    /// Lets operators in and serves them.
    pub fn turn(&mut self, proxy: &mut Proxy<Stream>, registry: &Registry, now: Now) {
        for _ in 0..ACCEPTS {
            let Some((listener, mut stream)) = self.listeners.next(now.at) else {
                break;
            };
            self.admin.make_room();
            let token = Token(SESSION | self.admin.next_number());
            let both = Interest::READABLE | Interest::WRITABLE;
            match registry.register(&mut stream, token, both) {
                Ok(()) => self.admin.accepted(stream, self.entrances[listener], now),
                Err(e) => log::warn!("an operator can't be watched: {}", sys::reason(&e)),
            }
        }
        self.admin.tick(proxy, now, Work::part());
    }

    /// How long the loop may sleep as far as doors are concerned. `None`: until an event comes.
    pub fn wait(&self, now: Now) -> Option<Duration> {
        let listeners = self.listeners.wait(now.at);
        [listeners, self.admin.wait(now)]
            .into_iter()
            .flatten()
            .min()
    }
}
