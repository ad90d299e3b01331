//! The listeners: accepting, what to do when descriptors run out, and a last line for clients that
//! are turned away. Knows nothing of the proxy.

use crate::config::ListenSpec;
use crate::files::Owner;
use crate::net::{Given, Listener, Socket, Stream};
use crate::sys;
use mio::{Interest, Registry, Token};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, IoSlice};
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

/// How long accepting pauses after the system had no descriptor. No event tells that one is free
/// again, so it is tried this often.
const PAUSE: Duration = Duration::from_millis(100);

/// Clients turned away in one go when descriptors ran out; the rest waits for the next pause.
const TURNED_AWAY: usize = 16;

/// How long a refused client's socket is kept after its line was sent. Closing a socket with
/// unread bytes resets it, and a reset may overtake the line.
const LINGER: Duration = Duration::from_millis(200);

/// Refused clients kept at a time; they need descriptors of their own.
pub const LINGERING: usize = 32;

/// What a client is told when the system has no descriptor for it.
const NO_DESCRIPTOR: &[u8] = b"SERVER_ERROR OUT OF CONNECTION\r\n";

/// One listener and what is known of it.
struct Watched {
    socket: Listener,
    token: Token,
    /// A client may wait. Set by an event, cleared by `WouldBlock` alone.
    ready: bool,
}

/// One listener of a configuration: already there, or bound for it.
struct Place {
    spec: ListenSpec,
    /// `None`: the listener with this address stays.
    bound: Option<(Listener, Token)>,
}

/// The listeners of a configuration, bound as far as they are new. Dropping it undoes that.
pub struct Plan(Vec<Place>);

/// All listeners.
pub struct Listeners {
    /// In the order of the configuration, so that the proxy knows each by its number.
    list: Vec<Watched>,
    next_token: usize,
    /// Other processes may listen on the same ports.
    is_shared: bool,
    /// Index of the listener that is asked next, so that a crowded one delays no other.
    turn: usize,
    paused: Option<Instant>,
    /// Pauses that were not counted yet.
    pauses: u32,
    /// The lack of descriptors was logged. Cleared when everybody who waited was accepted.
    exhausted: bool,
    /// A descriptor to give up for telling a client that there is none.
    reserve: Option<File>,
    /// Refused clients, and when to close them.
    refused: VecDeque<(Instant, Stream)>,
}

impl Listeners {
    /// No listeners yet. Their tokens count from `first_token`. With `is_shared` other processes may listen on
    /// their ports.
    pub fn new(first_token: usize, is_shared: bool) -> Listeners {
        Listeners {
            list: Vec::new(),
            next_token: first_token,
            is_shared,
            turn: 0,
            paused: None,
            pauses: 0,
            exhausted: false,
            reserve: spare(),
            refused: VecDeque::new(),
        }
    }

    /// Binds those of `wanted` that are not here yet, or takes them out of `given`. Nothing else changes.
    ///
    /// # Errors
    /// The index in `wanted` of the one that can't be bound, and why.
    pub fn plan(
        &mut self,
        wanted: &[&ListenSpec],
        owner: Owner,
        given: &mut Vec<Given>,
    ) -> Result<Plan, (usize, io::Error)> {
        let mut here: Vec<_> = self.list.iter().map(|e| e.socket.spec()).collect();
        let mut next_token = self.next_token;
        let mut places = Vec::with_capacity(wanted.len());
        for (i, &spec) in wanted.iter().enumerate() {
            let stays = here.iter().position(|h| h.address == spec.address);
            let bound = match stays {
                Some(at) => {
                    here.swap_remove(at);
                    None
                }
                None => {
                    next_token += 1;
                    let at = given.iter().position(|g| *g.address() == spec.address);
                    let listener = match at.map(|at| given.swap_remove(at)) {
                        Some(given) => Listener::adopt(given, spec),
                        None => Listener::bind(spec, owner, self.is_shared),
                    };
                    Some((listener.map_err(|e| (i, e))?, Token(next_token - 1)))
                }
            };
            places.push(Place {
                spec: spec.clone(),
                bound,
            });
        }
        self.next_token = next_token;
        Ok(Plan(places))
    }

    /// True if `plan` lacks a listener that is here now.
    pub fn closes_some(&self, plan: &Plan) -> bool {
        let stay = plan.0.iter().filter(|place| place.bound.is_none());
        stay.count() < self.list.len()
    }

    /// Makes `plan` the listeners: new ones in, unchanged ones kept, the others closed.
    ///
    /// # Errors
    /// A new one can't be registered; then nothing changes.
    pub fn apply(&mut self, mut plan: Plan, registry: &Registry) -> io::Result<()> {
        for place in &mut plan.0 {
            if let Some((listener, token)) = &mut place.bound {
                registry.register(listener, *token, Interest::READABLE)?;
            }
        }
        let mut old = std::mem::take(&mut self.list);
        for Place { spec, bound } in plan.0 {
            let stays = |e: &Watched| e.socket.spec().address == spec.address;
            if let Some((listener, token)) = bound {
                self.list.push(Watched {
                    socket: listener,
                    token,
                    ready: false,
                });
            } else if let Some(at) = old.iter().position(stays) {
                let mut watched = old.swap_remove(at);
                if let Err(e) = watched.socket.adjust(&spec) {
                    log::warn!(
                        "listen {} stays as it was: {}",
                        spec.place(),
                        sys::reason(&e)
                    );
                }
                self.list.push(watched);
            }
        }
        Ok(())
    }

    /// See [`Listener::number`].
    pub fn numbers(&self) -> impl Iterator<Item = (RawFd, Option<(u64, u64)>)> {
        self.list.iter().map(|watched| watched.socket.number())
    }

    /// Closes them all and removes their socket files.
    pub fn close(&mut self) {
        self.list.clear();
        self.paused = None;
    }

    /// Notes an event. Tokens of listeners that are gone are ignored.
    pub fn note(&mut self, token: Token) {
        if let Some(watched) = self.list.iter_mut().find(|e| e.token == token) {
            watched.ready = true;
        }
    }

    /// The next client that waits, and the number of its listener.
    pub fn next(&mut self, now: Instant) -> Option<(usize, Stream)> {
        match self.paused {
            Some(until) if now < until => return None,
            _ => self.paused = None,
        }
        for _ in 0..self.list.len() {
            self.turn = (self.turn + 1) % self.list.len();
            let watched = &mut self.list[self.turn];
            if !watched.ready {
                continue;
            }
            match watched.socket.accept() {
                Ok(stream) => return Some((self.turn, stream)),
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    watched.ready = false;
                    self.exhausted = false;
                }
                // Only this client is gone; the next one may be accepted.
                Err(e) if is_the_clients(&e) => {}
                Err(e) => {
                    self.pause(now, &e);
                    return None;
                }
            }
        }
        None
    }

    /// Accepting failed because the system lacks descriptors or memory: turns a few waiting clients away, then pauses.
    fn pause(&mut self, now: Instant, why: &io::Error) {
        if !self.exhausted {
            self.exhausted = true;
            log::warn!("clients can't be accepted: {}", sys::reason(why));
        }
        self.paused = Some(now + PAUSE);
        self.pauses += 1;
        let reserve = self.reserve.take();
        if reserve.is_none() {
            self.reserve = spare();
            return;
        }
        drop(reserve);
        for _ in 0..TURNED_AWAY {
            let watched = &self.list[self.turn];
            let Ok(mut stream) = watched.socket.accept() else {
                break;
            };
            say_goodbye(&mut stream, NO_DESCRIPTOR);
        }
        self.reserve = spare();
    }

    /// How many pauses there were since the last call.
    pub fn take_pauses(&mut self) -> u32 {
        std::mem::take(&mut self.pauses)
    }

    /// Sends `line` and closes in such a way that the client sees the line.
    pub fn refuse(&mut self, mut stream: Stream, line: &[u8], now: Instant) {
        say_goodbye(&mut stream, line);
        if self.refused.len() >= LINGERING {
            self.let_go();
        }
        self.refused.push_back((now + LINGER, stream));
    }

    fn let_go(&mut self) {
        if let Some((_, mut stream)) = self.refused.pop_front() {
            swallow(&mut stream);
        }
    }

    /// Closes refused clients whose time is over.
    pub fn expire(&mut self, now: Instant) {
        while self.refused.front().is_some_and(|r| r.0 <= now) {
            self.let_go();
        }
    }

    /// How long the loop may sleep as far as listeners are concerned. `None`: until an event comes.
    pub fn wait(&self, now: Instant) -> Option<Duration> {
        let accept = if self.list.iter().any(|e| e.ready) {
            Some(self.paused.unwrap_or(now))
        } else {
            None
        };
        let close = self.refused.front().map(|r| r.0);
        let next = [accept, close].into_iter().flatten().min()?;
        Some(next.saturating_duration_since(now))
    }
}

/// True if accept failed because of the client that was to be accepted (accept(2) on Linux
/// hands over what went wrong with its connection meanwhile). Only what takes the client out
/// of the queue belongs here, or the loop would spin on it.
fn is_the_clients(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionAborted
            | ErrorKind::ConnectionReset
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkDown
            | ErrorKind::NetworkUnreachable
            | ErrorKind::TimedOut
    )
}

fn spare() -> Option<File> {
    File::open("/dev/null").ok()
}

/// Best effort: a fresh socket takes so short a line at once, or its client is gone.
fn say_goodbye(stream: &mut Stream, line: &[u8]) {
    let _ = stream.write(&[IoSlice::new(line)]);
    let _ = stream.shutdown_write();
    swallow(stream);
}

/// Reads what came, up to a bound: unread bytes would reset the connection.
fn swallow(stream: &mut Stream) {
    let mut bytes = [0; 4096];
    for _ in 0..16 {
        match stream.read(&mut bytes) {
            Ok(1..) => {}
            _ => break,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Address;
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::path::{Path, PathBuf};

    fn spec(path: PathBuf) -> ListenSpec {
        ListenSpec {
            address: Address::Unix(path),
            mode: 0o700,
            backlog: 16,
        }
    }

    fn folder(name: &str) -> PathBuf {
        let name = format!("magent-listeners-{}-{name}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir(&dir).unwrap();
        dir
    }

    /// Waits for events as the loop does.
    fn turn(poll: &mut mio::Poll, listeners: &mut Listeners) {
        let mut events = mio::Events::with_capacity(16);
        poll.poll(&mut events, Some(Duration::from_secs(5)))
            .unwrap();
        for event in &events {
            listeners.note(event.token());
        }
    }

    fn client(path: &Path) -> UnixStream {
        let stream = UnixStream::connect(path).unwrap();
        let patience = Some(Duration::from_secs(5));
        stream.set_read_timeout(patience).unwrap();
        stream
    }

    #[test]
    fn listeners_stay_come_and_go() {
        let dir = folder("reload");
        let (a, b, c) = (dir.join("a"), dir.join("b"), dir.join("c"));
        let (sa, sb, sc) = (spec(a.clone()), spec(b.clone()), spec(c.clone()));
        let mut poll = mio::Poll::new().unwrap();
        let mut all = Listeners::new(100, false);
        let plan = all.plan(&[&sa, &sb], None, &mut Vec::new()).unwrap();
        all.apply(plan, poll.registry()).unwrap();
        let now = Instant::now();

        // One that can't be bound leaves all as it was, and the new one's file is gone.
        std::fs::create_dir(dir.join("d")).unwrap();
        let bad = spec(dir.join("d"));
        let (at, _) = all.plan(&[&sc, &bad], None, &mut Vec::new()).err().unwrap();
        assert_eq!(at, 1);
        assert!(!c.exists());

        // b stays, under another number, with a client in its queue; a goes, c comes.
        let _waiting = client(&b);
        let plan = all.plan(&[&sb, &sc], None, &mut Vec::new()).unwrap();
        all.apply(plan, poll.registry()).unwrap();
        assert!(!a.exists());
        turn(&mut poll, &mut all);
        assert_eq!(all.wait(now), Some(Duration::ZERO));
        assert_eq!(all.next(now).map(|n| n.0), Some(0));
        let _other = client(&c);
        turn(&mut poll, &mut all);
        assert_eq!(all.next(now).map(|n| n.0), Some(1));
        assert!(all.next(now).is_none());
        assert_eq!(all.wait(now), None);

        // The same address twice is one listener too many.
        let (at, why) = all.plan(&[&sb, &sb], None, &mut Vec::new()).err().unwrap();
        assert_eq!((at, why.kind()), (1, ErrorKind::AddrInUse));
        all.close();
        assert!(!b.exists() && !c.exists());
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_pause_tells_those_who_wait_and_ends() {
        let dir = folder("pause");
        let path = dir.join("s");
        let spec = spec(path.clone());
        let mut poll = mio::Poll::new().unwrap();
        let mut all = Listeners::new(100, false);
        let plan = all.plan(&[&spec], None, &mut Vec::new()).unwrap();
        all.apply(plan, poll.registry()).unwrap();
        let mut waiting: Vec<_> = (0..TURNED_AWAY).map(|_| client(&path)).collect();
        turn(&mut poll, &mut all);

        let now = Instant::now();
        all.pause(now, &io::Error::other("no descriptor"));
        for client in &mut waiting {
            let mut line = Vec::new();
            client.read_to_end(&mut line).unwrap();
            assert_eq!(line, NO_DESCRIPTOR);
        }
        let _late = client(&path);
        assert_eq!(all.wait(now), Some(PAUSE));
        assert!(all.next(now + PAUSE / 2).is_none());
        assert_eq!(all.next(now + PAUSE).map(|n| n.0), Some(0));
        assert!(all.exhausted && all.reserve.is_some());
        assert!(all.next(now + PAUSE).is_none());
        assert!(!all.exhausted);
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn refused_clients_see_their_line() {
        let dir = folder("refuse");
        let path = dir.join("s");
        let spec = spec(path.clone());
        let mut poll = mio::Poll::new().unwrap();
        let mut all = Listeners::new(100, false);
        let plan = all.plan(&[&spec], None, &mut Vec::new()).unwrap();
        all.apply(plan, poll.registry()).unwrap();
        let now = Instant::now();
        let mut clients = Vec::new();
        for _ in 0..LINGERING + 5 {
            clients.push(client(&path));
            turn(&mut poll, &mut all);
            let (_, stream) = all.next(now).unwrap();
            all.refuse(stream, b"full\r\n", now);
        }
        assert_eq!(all.refused.len(), LINGERING);
        for client in &mut clients {
            let mut line = String::new();
            client.read_to_string(&mut line).unwrap();
            assert_eq!(line, "full\r\n");
        }
        assert!(all.next(now).is_none());
        assert_eq!(all.wait(now), Some(LINGER));
        all.expire(now + LINGER);
        assert_eq!(all.wait(now), None);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
