//! The only owner of `mio::Poll`: waits, accepts, connects, takes signals, and gives the proxy
//! its turn.
//!
//! ```text
//!  poll ─▶ now ─▶ note events ─▶ signals ─▶ accept ─▶ proxy.tick ─▶ connect ─▶ poll
//! ```
//!
//! Readiness is state: every socket is registered once, for both directions, and an event is
//! only noted. Tokens with the top bit set are the loop's own, the others are the proxy's.

mod bound;
mod door;
mod listeners;
mod reading;
mod reload;
mod resolver;
mod state;
mod upgrade;

pub use bound::{Bound, bind, descriptors};
pub use state::State;
pub use upgrade::{TRY_OUT, try_out};

use crate::config::{Config, Prepared};
use crate::files::Owner;
use crate::logger;
use crate::net::{self, Stream};
use crate::proxy::{Me, Now, Proxy};
use crate::sys::{self, Program, Signal, Signals};
use crate::work::Work;
use door::Door;
use listeners::Listeners;
use mio::event::Event;
use mio::{Events, Interest, Poll, Token, Waker};
use reading::Reading;
use resolver::Resolver;
use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use upgrade::Upgrade;

/// Set in the tokens that are the loop's own.
const LOOP: usize = 1 << (usize::BITS - 1);
const SIGNALS: Token = Token(LOOP);
/// A thread beside the loop has something for it.
const WAKER: Token = Token(LOOP + 1);
/// A program that is tried out says something.
const TRIAL: Token = Token(LOOP + 2);
const FIRST_LISTENER: usize = LOOP + 3;
/// Far above those of listeners that come and go with reloads.
const FIRST_DOOR: usize = LOOP + (1 << 48);

/// Both directions.
const BOTH: Interest = Interest::READABLE.add(Interest::WRITABLE);

/// Events taken in one turn; more wait in the kernel.
const EVENTS: usize = 1024;

/// Clients accepted in one turn, so that a rush of new ones does not stop the old.
const ACCEPTS: usize = 64;

/// The same while clients that were accepted before wait for their turn: the rush waits in the
/// listener's queue, and not among them.
const ACCEPTS_WHILE_BEHIND: usize = 4;

/// More clients than this can't wait to be accepted by one listener.
const MAX_BACKLOG: usize = u16::MAX as usize;

/// Connects started in one turn; a server that refuses at once may ask for the next.
const CONNECTS: usize = 256;

/// How long to sleep before a wait while a server is answering a batch, so that one read takes more
/// of the answers. The kernel adds its timer slack, 50 µs.
const BATCHING_DELAY: Duration = Duration::from_micros(20);

/// How long a stopping magent waits for what clients are owed.
const DRAIN: Duration = Duration::from_secs(5);

/// How long it then waits for servers to take its marks away.
const GOODBYE: Duration = Duration::from_millis(500);

/// Where the process is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Serving,
    /// No new requests; ends when nothing is owed, or at this time.
    Draining(Instant),
    /// Its marks are taken away from the servers; ends when that is answered, or at this time.
    Leaving(Instant),
    Over,
}

/// The loop and all that it drives.
pub struct EventLoop {
    poll: Poll,
    proxy: Proxy<Stream>,
    config: Config,
    owner: Owner,
    listeners: Listeners,
    door: Door,
    signals: Signals,
    /// The signals' stream has something to read.
    signalled: bool,
    reading: Reading,
    resolver: Resolver,
    /// Connects may be wanted that no turn has started yet: the last one started as many as it
    /// may, or there was none yet.
    more_connects: bool,
    phase: Phase,
    /// What is started in its place at USR2, if that is known.
    program: Option<Program>,
    upgrade: Upgrade,
    /// A HUP waits until programs have changed.
    hangup_later: bool,
    /// It goes to the next program.
    pid_file: Option<RawFd>,
}

/// The clock, read once a turn.
fn read_clock() -> Now {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH);
    Now {
        at: Instant::now(),
        unix: unix.unwrap_or(Duration::ZERO).as_secs(),
    }
}

impl EventLoop {
    /// A loop that serves `bound`, and goes on with what the program before has left, if anything. To be
    /// made in the process that will run it: what watches sockets does not survive a fork.
    ///
    /// # Errors
    /// What the system says, or what is wrong with the state.
    pub fn new(
        prepared: Prepared,
        bound: Bound,
        mut signals: Signals,
        owner: Owner,
        state: Option<State>,
    ) -> io::Result<EventLoop> {
        let Bound {
            mut listeners,
            plan,
            door,
        } = bound;
        let poll = Poll::new()?;
        poll.registry()
            .register(signals.source(), SIGNALS, Interest::READABLE)?;
        listeners.apply(plan, poll.registry())?;
        let door = Door::open(door, &prepared.config, poll.registry())?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let config = prepared.config.clone();
        let mut hangup = false;
        let proxy = match state {
            None => Proxy::prepared(prepared, read_clock(), Me::here()),
            Some(state) => {
                let mut watch = |token, stream: &mut Stream| {
                    poll.registry().register(stream, Token(token), BOTH)
                };
                let restored = upgrade::restore(prepared, state, &mut watch);
                let restored = restored.map_err(io::Error::other)?;
                restored.tell();
                hangup = restored.hangup;
                restored.proxy
            }
        };
        Ok(EventLoop {
            poll,
            proxy,
            config,
            owner,
            listeners,
            door,
            signals,
            signalled: false,
            reading: Reading::new(waker.clone()),
            resolver: Resolver::new(waker),
            more_connects: true,
            phase: Phase::Serving,
            program: None,
            upgrade: Upgrade::None,
            hangup_later: hangup,
            pid_file: None,
        })
    }

    /// What it serves, in a line.
    pub fn summary(&self) -> String {
        let pools = &self.config.pools;
        let servers = pools.iter().map(|p| p.primaries.len() + p.backups.len());
        format!(
            "magent {}, pools: {}, servers: {}, configuration {}",
            env!("CARGO_PKG_VERSION"),
            pools.len(),
            servers.sum::<usize>(),
            self.config.fingerprint()
        )
    }

    /// What is started in its place at USR2, and the open pid file that goes with it.
    pub fn may_change_to(&mut self, program: Program, pid_file: Option<RawFd>) {
        (self.program, self.pid_file) = (Some(program), pid_file);
    }

    /// Tells systemd that it serves.
    pub fn tell_ready(&self) {
        let configuration = self.config.fingerprint();
        let status = format!("serving, configuration {configuration}");
        tell_systemd(sys::State::Ready, &status);
    }

    /// Serves until it is told to stop and nothing is owed to clients any more.
    ///
    /// # Errors
    /// The system can't tell events any more.
    pub fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS);
        let mut now = read_clock();
        let mut tick = (now.at, now.at);
        while self.phase != Phase::Over {
            let timeout = self.timeout(now);
            self.proxy.end_turn(tick, Instant::now());
            if timeout != Some(Duration::ZERO) && self.proxy.expects_answers() {
                std::thread::sleep(BATCHING_DELAY);
            }
            match self.poll.poll(&mut events, timeout) {
                Ok(()) => {}
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
            now = read_clock();
            self.proxy.count_poll();
            for event in &events {
                self.note(event);
            }
            if std::mem::take(&mut self.signalled) {
                self.take_signals(now);
            }
            if self.hangup_later && !self.is_upgrading() {
                self.hangup_later = false;
                self.hang_up(now);
            }
            if self.reading.is_under_way() {
                self.take_configuration(now);
            }
            while let Some((host, found)) = self.resolver.take() {
                self.proxy.resolved(&host, &found, now);
            }
            let most = if self.proxy.is_behind() {
                ACCEPTS_WHILE_BEHIND
            } else {
                ACCEPTS
            };
            if !self.is_resting() {
                self.accept(most, now);
            }
            tick.0 = Instant::now();
            self.proxy.tick(now, Work::timed(tick.0));
            tick.1 = Instant::now();
            if !self.is_resting() {
                self.open_door(now);
            }
            self.connect(now);
            while let Some(host) = self.proxy.next_lookup() {
                self.resolver.begin(host);
            }
            self.leave(now);
            self.advance_upgrade(now);
        }
        Ok(())
    }

    /// How long to sleep: until the earliest alarm.
    fn timeout(&self, now: Now) -> Option<Duration> {
        if self.more_connects {
            return Some(Duration::ZERO);
        }
        let drain = match self.phase {
            Phase::Draining(until) | Phase::Leaving(until) => {
                Some(until.saturating_duration_since(now.at))
            }
            Phase::Serving | Phase::Over => None,
        };
        let reading = self.reading.wait(now.at);
        let entrances = [self.listeners.wait(now.at), self.door.wait(now)];
        let entrances = entrances.into_iter().filter(|_| !self.is_resting());
        [self.proxy.wait(now), reading, drain, self.upgrade_wait()]
            .into_iter()
            .chain(entrances)
            .flatten()
            .min()
    }

    fn note(&mut self, event: &Event) {
        let token = event.token();
        if token == SIGNALS {
            self.signalled = true;
        } else if token == WAKER || token == TRIAL {
            // Who works beside the loop is asked in each turn while it does.
        } else if token.0 & LOOP != 0 {
            self.listeners.note(token);
            self.door.note(token);
        } else {
            // An error is read like an end: the next read tells which of them it is.
            let closed = event.is_read_closed() || event.is_error();
            let readable = event.is_readable() || closed;
            let writable = event.is_writable() || event.is_error();
            match token.0 & door::SESSION {
                0 => self.proxy.ready(token.0, readable, writable, closed),
                bit => (self.door.admin).ready(token.0 & !bit, readable, writable, closed),
            }
        }
    }

    fn accept(&mut self, most: usize, now: Now) {
        self.listeners.expire(now.at);
        for _ in 0..most {
            let Some((listener, stream)) = self.listeners.next(now.at) else {
                break;
            };
            match self.proxy.admit(listener) {
                Ok(token) => self.welcome(token, stream, listener, now),
                Err(line) => self.listeners.refuse(stream, line, now.at),
            }
        }
        for _ in 0..self.listeners.take_pauses() {
            self.proxy.count_accept_pause();
        }
    }

    /// Before listeners go: connections that wait in their queues become clients.
    fn accept_all(&mut self, now: Now) {
        self.accept(MAX_BACKLOG, now);
    }

    fn welcome(&mut self, token: usize, mut stream: Stream, listener: usize, now: Now) {
        let watched = self.watch(token, &mut stream);
        if let Err(e) = &watched {
            log::warn!("a client can't be watched: {}", sys::reason(e));
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.proxy.accepted(token, stream, listener, now);
        if watched.is_err() {
            // No event will tell the proxy that it is closed.
            self.proxy.ready(token, true, true, true);
        }
    }

    /// Registers once, for good: readiness is kept as state by the proxy.
    fn watch(&self, token: usize, stream: &mut Stream) -> io::Result<()> {
        self.poll.registry().register(stream, Token(token), BOTH)
    }

    fn connect(&mut self, now: Now) {
        for _ in 0..CONNECTS {
            let Some(wanted) = self.proxy.next_connect() else {
                self.more_connects = false;
                return;
            };
            let stream = net::connect(&wanted.address, wanted.keepalive).and_then(|mut stream| {
                self.watch(wanted.token, &mut stream)?;
                Ok(stream)
            });
            self.proxy.connecting(wanted.token, stream, now);
        }
        self.more_connects = true;
    }

    fn take_signals(&mut self, now: Now) {
        let mut hangup = false;
        while let Some(signal) = self.signals.take() {
            match (signal, self.phase) {
                (Signal::Hangup, _) => hangup = true,
                (Signal::Upgrade, _) => self.wants_upgrade(now),
                (Signal::Terminate, Phase::Serving) => self.stop(now),
                (Signal::Terminate, _) => {
                    log::warn!("stopped at once by a second signal");
                    self.phase = Phase::Over;
                }
            }
        }
        if hangup && self.is_upgrading() {
            self.hangup_later = true;
        } else if hangup {
            self.hang_up(now);
        }
    }

    fn stop(&mut self, now: Now) {
        log::info!(target: logger::NOTICE, "stopping: finishing what clients are owed");
        self.end_upgrade(now);
        tell_systemd(sys::State::Stopping, "finishing what clients are owed");
        self.accept_all(now);
        self.listeners.close();
        // A successor need not wait until clients have what they are owed.
        if let Some(fd) = self.pid_file {
            sys::unlock(fd);
        }
        self.proxy.drain(now);
        self.phase = Phase::Draining(now.at + DRAIN);
    }

    /// Goes on with the end when a drain is done or took too long.
    fn leave(&mut self, now: Now) {
        match self.phase {
            Phase::Draining(until) if self.proxy.drained() || now.at >= until => {
                if !self.proxy.drained() {
                    let seconds = DRAIN.as_secs();
                    log::warn!("stopped after {seconds} s with answers still owed to clients");
                }
                self.proxy.say_goodbye();
                self.phase = match self.proxy.has_left() {
                    true => Phase::Over,
                    false => Phase::Leaving(now.at + GOODBYE),
                };
            }
            Phase::Leaving(until) if self.proxy.has_left() || now.at >= until => {
                self.phase = Phase::Over;
            }
            _ => {}
        }
    }

    /// Operators have their turn.
    fn open_door(&mut self, now: Now) {
        self.door.turn(&mut self.proxy, self.poll.registry(), now);
        if self.door.admin.take_reload() {
            let why = match (&self.config.file, self.phase) {
                (None, _) => Some("there is no configuration file (-c) to read again"),
                _ if self.is_upgrading() => Some("another program takes over just now"),
                (Some(_), Phase::Serving) => None,
                (Some(_), _) => Some("stopping"),
            };
            match why {
                Some(why) => {
                    self.proxy.end_moves_at_reload(false);
                    self.door.admin.reloaded(Err(why));
                }
                None => self.reread(now),
            }
        }
    }
}

/// A service manager that does not listen is no reason to stop.
fn tell_systemd(state: sys::State, status: &str) {
    if let Err(e) = sys::notify(state, status) {
        log::warn!("NOTIFY_SOCKET: {}", sys::reason(&e));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Action;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::path::PathBuf;
    use std::thread::JoinHandle;

    /// A magent in a thread of this process, on a Unix socket.
    struct Running {
        dir: PathBuf,
        signals: UnixStream,
        thread: JoinHandle<io::Result<()>>,
    }

    const HUP: u8 = 1;
    const TERM: u8 = 15;

    fn start(name: &str, clients: &str) -> Running {
        let dir = format!("magent-loop-{}-{name}", std::process::id());
        let dir = std::env::temp_dir().join(dir);
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir(&dir).unwrap();
        let socket = dir.join("s");
        let args = ["-D", "-p", "0", "-s", "127.0.0.1:1", "-n", clients, "-f"];
        let mut args: Vec<_> = args.iter().map(std::ffi::OsString::from).collect();
        args.push(socket.into());
        let (signals, writer) = Signals::pair().unwrap();
        let Ok(Action::Run(config)) = Config::from_args(&args) else {
            panic!("{args:?}");
        };
        let bound = bind(&config, None, Vec::new()).unwrap();
        let prepared = Prepared::new(config);
        let thread =
            std::thread::spawn(move || EventLoop::new(prepared, bound, signals, None, None)?.run());
        Running {
            dir,
            signals: writer,
            thread,
        }
    }

    impl Running {
        fn client(&self) -> UnixStream {
            let client = UnixStream::connect(self.dir.join("s")).unwrap();
            let patience = Some(Duration::from_secs(5));
            client.set_read_timeout(patience).unwrap();
            client
        }

        fn stop(mut self) {
            self.signals.write_all(&[TERM]).unwrap();
            self.thread.join().unwrap().unwrap();
            assert!(!self.dir.join("s").exists());
            std::fs::remove_dir_all(&self.dir).unwrap();
        }
    }

    fn version(client: &mut UnixStream) {
        client.write_all(b"version\r\n").unwrap();
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            client.read_exact(&mut byte).unwrap();
            line.extend_from_slice(&byte);
        }
        assert!(line.starts_with(b"VERSION "));
    }

    #[test]
    fn clients_are_served_until_term() {
        let running = start("serve", "100");
        let mut clients: Vec<_> = (0..3 * ACCEPTS / 2).map(|_| running.client()).collect();
        clients.iter_mut().for_each(version);
        clients.iter_mut().rev().for_each(version);
        running.stop();
        for mut client in clients {
            assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
        }
    }

    #[test]
    fn one_too_many_is_told_and_a_place_is_free_again() {
        let running = start("full", "1");
        let mut first = running.client();
        version(&mut first);
        let mut second = running.client();
        // Unread bytes must not turn the goodbye into a reset.
        second.write_all(b"get a\r\n").unwrap();
        let mut line = String::new();
        second.read_to_string(&mut line).unwrap();
        assert_eq!(line, "SERVER_ERROR OUT OF CONNECTION\r\n");
        drop(first);
        let end = Instant::now() + Duration::from_secs(5);
        loop {
            let mut third = running.client();
            // A refusal may come before the loop saw the first one leave.
            let _ = third.write_all(b"version\r\n");
            let mut byte = [0];
            third.read_exact(&mut byte).unwrap();
            if byte == *b"V" {
                break;
            }
            assert!(Instant::now() < end);
        }
        running.stop();
    }

    #[test]
    fn hup_without_a_file_disturbs_nobody() {
        let mut running = start("hup", "10");
        let mut client = running.client();
        version(&mut client);
        running.signals.write_all(&[HUP, HUP]).unwrap();
        version(&mut client);
        running.stop();
    }

    #[test]
    fn a_second_term_ends_at_once() {
        let mut running = start("twice", "10");
        running.signals.write_all(&[TERM, TERM]).unwrap();
        running.thread.join().unwrap().unwrap();
    }
}
