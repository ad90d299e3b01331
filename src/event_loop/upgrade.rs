//! USR2: the program file as it is now takes over, in this process.
//!
//! ```text
//!  USR2 ─▶ Wanted ─▶ Trying: a child restores a copy ─▶ Resting: nobody is read ─▶ execve ─▶ took_over
//!                        └── no ──▶ all stays as it is        └── it does not come to rest ──┘
//! ```

use super::state::{self, Head, State, VARIABLE};
use super::{EventLoop, Phase, TRIAL, read_clock, tell_systemd};
use crate::config::{Config, Prepared};
use crate::logger;
use crate::net::{self, Blank, Stream};
use crate::proxy::{Me, Now, Proxy};
use crate::saved::{Damaged, Loaded};
use crate::sys::{self, Child, End, Program, Stamp};
use mio::Interest;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// The first word of a program that is only tried out; the descriptor of the state follows. Programs that do not
/// know it end at once: it is no option.
pub const TRY_OUT: &str = "--try-state";

/// What such a program says, and nothing else.
const GOOD: &str = "magent: the state is good\n";

/// How long it may take to say so.
const PATIENCE: Duration = Duration::from_secs(5);

/// Pause between two looks at whether the wait is over.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// How long requests in flight may take to be answered. Then they count as late, and what follows from that (a second try, a
/// delete) gets the shorter time, again and again.
const ANSWERS: Duration = Duration::from_secs(1);
const FURTHER: Duration = Duration::from_millis(250);

/// After so many times servers that still owe an answer are taken out of use for a moment; after so many in all the change is
/// given up.
const GIVE_UP: u32 = 4;
const GIVE_UP_ALL: u32 = 8;

/// What a program that is tried out may say, in bytes.
const MOST_SAID: u64 = 4096;

/// The state of a change of programs.
pub(super) enum Upgrade {
    /// None is wanted.
    None,
    /// Asked for, and the last reload is not over.
    Wanted,
    /// A child tries the program out.
    Trying(Trial),
    /// Clients are not read, and requests in flight come to their end.
    Resting(Rest),
}

/// A program that is tried out.
pub(super) struct Trial {
    child: Child,
    /// Where it says whether it knows the state.
    said: mio::net::UnixStream,
    text: Vec<u8>,
    until: Instant,
    stamps: Stamps,
}

/// What must not change between a trial and the change of programs.
#[derive(PartialEq, Eq)]
struct Stamps {
    program: Stamp,
    file: Option<Stamp>,
}

pub(super) struct Rest {
    since: u64,
    next: Instant,
    rounds: u32,
    stamps: Stamps,
}

impl Stamps {
    fn of(program: &Program, config: &Config) -> Result<Stamps, String> {
        let stamp = |path: &std::path::Path| {
            Stamp::of(path).map_err(|e| format!("{}: {}", path.display(), sys::reason(&e)))
        };
        Ok(Stamps {
            program: stamp(program.path())?,
            file: config.file.as_deref().map(stamp).transpose()?,
        })
    }
}

impl Trial {
    /// What came of it; `None` while that is not known.
    fn verdict(&mut self, now: Instant) -> Option<Result<(), String>> {
        let mut most = MOST_SAID.saturating_sub(self.text.len() as u64);
        let mut bytes = [0; 512];
        let has_ended = loop {
            match self.said.read(&mut bytes) {
                Ok(0) => break true,
                Ok(n) => {
                    let kept = n.min(most as usize);
                    self.text.extend_from_slice(&bytes[..kept]);
                    most -= kept as u64;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => break e.kind() != ErrorKind::WouldBlock,
            }
        };
        let end = match has_ended {
            true => self.child.end(),
            false => End::None,
        };
        if end == End::None {
            if now < self.until {
                return None;
            }
            self.child.kill();
            return Some(Err(format!(
                "it takes longer than {PATIENCE:?} to try it out"
            )));
        }
        let text = String::from_utf8_lossy(&self.text);
        if text == GOOD && end == End::Status(0) {
            return Some(Ok(()));
        }
        let said = text.lines().next().unwrap_or_default();
        let said = said.strip_prefix("magent: ").unwrap_or(said);
        Some(Err(match end {
            End::Signal(signal) => format!("signal {signal} ended it while it was tried out"),
            _ if said.is_empty() || text == GOOD => "it did not say that it knows the state".into(),
            _ => said.to_string(),
        }))
    }
}

impl EventLoop {
    /// USR2.
    pub(super) fn wants_upgrade(&mut self, now: Now) {
        if !matches!(self.upgrade, Upgrade::None) || self.phase != Phase::Serving {
            return;
        }
        match &self.program {
            Some(program) => {
                let path = program.path().display().to_string();
                tell_systemd(sys::State::Reloading, &format!("going over to {path}"));
                self.upgrade = Upgrade::Wanted;
            }
            None => self.upgrade_failed("where its program is, is not known", now),
        }
    }

    /// True while reloads have to wait.
    pub(super) fn is_upgrading(&self) -> bool {
        matches!(self.upgrade, Upgrade::Trying(_) | Upgrade::Resting(_))
    }

    /// True while no client is read or accepted.
    pub(super) fn is_resting(&self) -> bool {
        matches!(self.upgrade, Upgrade::Resting(_))
    }

    /// How long the loop may sleep as far as a change of programs is concerned.
    pub(super) fn upgrade_wait(&self) -> Option<Duration> {
        match self.upgrade {
            Upgrade::None => None,
            Upgrade::Resting(_) if self.proxy.is_quiet() => Some(Duration::ZERO),
            _ => Some(LOOK_AGAIN),
        }
    }

    /// Takes the next step if its condition holds.
    pub(super) fn advance_upgrade(&mut self, now: Now) {
        let why = match &mut self.upgrade {
            Upgrade::None => return,
            Upgrade::Wanted if self.proxy.moving_pool().is_some() => {
                let pool = self.proxy.moving_pool().unwrap_or_default();
                format!(
                    "keys of pool {pool} move since a reload, `stats pools` says how far; try again later"
                )
            }
            Upgrade::Wanted if self.reading.is_under_way() || !self.proxy.is_settled_in() => return,
            Upgrade::Wanted => match self.try_out(now) {
                Ok(trial) => {
                    self.upgrade = Upgrade::Trying(trial);
                    return;
                }
                Err(why) => why,
            },
            Upgrade::Trying(trial) => match trial.verdict(now.at) {
                None => return,
                Some(Ok(())) => return self.rest(now),
                Some(Err(why)) => why,
            },
            Upgrade::Resting(_) if self.proxy.is_quiet() => match self.hand_over(now) {
                Ok(never) => match never {},
                Err(why) => why,
            },
            Upgrade::Resting(rest) if now.at < rest.next => return,
            Upgrade::Resting(rest) => {
                rest.rounds += 1;
                rest.next = now.at + FURTHER;
                match rest.rounds {
                    GIVE_UP_ALL.. => "what is in flight does not come to an end".into(),
                    GIVE_UP.. => return self.proxy.give_up(now),
                    _ => return self.proxy.hurry(now),
                }
            }
        };
        self.upgrade_failed(&why, now);
    }

    /// Gives the change up: the running program goes on as before.
    fn upgrade_failed(&mut self, why: &str, now: Now) {
        self.end_upgrade(now);
        self.proxy.count_failed_upgrade();
        let path = self
            .program
            .as_ref()
            .map(|p| p.path().display().to_string());
        let line = format!(
            "the program stays as it was, {} does not take over: {why}",
            path.as_deref().unwrap_or("another one")
        );
        log::error!("{line}");
        tell_systemd(sys::State::Ready, &line);
        if std::mem::take(&mut self.hangup_later) {
            self.hang_up(now);
        }
    }

    /// Ends a change that is under way: clients are served on.
    pub(super) fn end_upgrade(&mut self, now: Now) {
        match std::mem::replace(&mut self.upgrade, Upgrade::None) {
            Upgrade::Trying(trial) if trial.child.end() == End::None => trial.child.kill(),
            Upgrade::Resting(_) => self.proxy.pause(false, now),
            _ => {}
        }
    }

    /// A child with a copy of all memory writes the state down, and becomes the program that reads it.
    fn try_out(&self, now: Now) -> Result<Trial, String> {
        let Some(program) = &self.program else {
            return Err("where it is, is not known".into());
        };
        let stamps = Stamps::of(program, &self.config)?;
        let begin = || {
            let file = sys::memory_file()?;
            let (said, theirs) = UnixStream::pair()?;
            said.set_nonblocking(true)?;
            let words = [TRY_OUT.to_string(), file.as_raw_fd().to_string()];
            let child = program.try_out(&words, VARIABLE, theirs.as_fd(), file.as_fd(), || {
                self.write_state(&file, now, sys::monotonic(), &mut |_| {})
            })?;
            let mut said = mio::net::UnixStream::from_std(said);
            let registry = self.poll.registry();
            registry.register(&mut said, TRIAL, Interest::READABLE)?;
            Ok(Trial {
                child,
                said,
                text: Vec::new(),
                until: now.at + PATIENCE,
                stamps,
            })
        };
        begin().map_err(|e: io::Error| sys::reason(&e))
    }

    /// The new program is good: stops reading clients, so that requests in flight come to their end.
    fn rest(&mut self, now: Now) {
        if let Upgrade::Trying(trial) = std::mem::replace(&mut self.upgrade, Upgrade::None) {
            self.proxy.pause(true, now);
            self.upgrade = Upgrade::Resting(Rest {
                since: sys::monotonic(),
                next: now.at + ANSWERS,
                rounds: 0,
                stamps: trial.stamps,
            });
        }
    }

    /// Writes the state down; `keep` is called with each descriptor that the next program needs.
    fn write_state(
        &self,
        file: &File,
        now: Now,
        quiet_since: u64,
        keep: &mut dyn FnMut(RawFd),
    ) -> io::Result<()> {
        let listeners: Vec<_> = self
            .listeners
            .numbers()
            .chain(self.door.numbers())
            .collect();
        let head = Head {
            version: env!("CARGO_PKG_VERSION").to_string(),
            places: self.config.places(),
            age: crate::time::nanos(self.proxy.age(now)),
            clock: sys::monotonic(),
            quiet_since,
            verbosity: logger::verbosity(),
            hangup: self.hangup_later,
            pid_file: self.pid_file,
            listeners,
        };
        let others = head.listeners.iter().map(|(fd, _)| *fd);
        others.chain(head.pid_file).for_each(&mut *keep);
        state::write(file, &head, |to| {
            self.proxy.save(to, &mut |stream: &Stream| {
                let number = stream.number();
                net::descriptor(number)
                    .map(&mut *keep)
                    .map_or(u64::MAX, |()| number)
            });
        })
    }

    /// Starts the other program in place of this one. Returns only if that fails, with the reason.
    fn hand_over(&mut self, now: Now) -> Result<std::convert::Infallible, String> {
        // Signals that come from now on are for the other program.
        sys::hold_signals(true).map_err(|e| format!("signals: {}", sys::reason(&e)))?;
        self.signalled = false;
        self.take_signals(now);
        let why = match (&self.upgrade, self.phase) {
            (Upgrade::Resting(rest), Phase::Serving) => {
                let mut kept = Vec::new();
                let why = self.replace_program(rest, now, &mut kept);
                kept.iter().for_each(|fd| drop(sys::bequeath(*fd, false)));
                why
            }
            _ => "it is stopping".into(),
        };
        sys::hold_signals(false).map_err(|e| format!("{why}; signals: {}", sys::reason(&e)))?;
        Err(why)
    }

    /// Returns only if it fails: why. `kept` then has the descriptors that were made inheritable.
    fn replace_program(&self, rest: &Rest, now: Now, kept: &mut Vec<RawFd>) -> String {
        let Some(program) = &self.program else {
            return "where it is, is not known".into();
        };
        match Stamps::of(program, &self.config) {
            Ok(stamps) if stamps == rest.stamps => {}
            Ok(_) => return "it was replaced, or the file of -c, while it was tried out".into(),
            Err(why) => return why,
        }
        let mut prepare = || {
            let file = sys::memory_file()?;
            self.write_state(&file, now, rest.since, &mut |fd| kept.push(fd))?;
            kept.push(file.as_raw_fd());
            kept.iter().try_for_each(|fd| sys::bequeath(*fd, true))?;
            Ok(file)
        };
        let e = match prepare() {
            Ok(file) => program.take_over(VARIABLE, file.as_raw_fd().to_string()),
            Err(e) => e,
        };
        sys::reason(&e)
    }
}

/// The state of the program before, restored.
pub(super) struct Restored {
    pub proxy: Proxy<Stream>,
    pub hangup: bool,
    head: Head,
    begun: u64,
}

/// Restores the state of the program before. `watch` registers a socket under its token.
pub(super) fn restore(
    prepared: Prepared,
    state: State,
    watch: &mut dyn FnMut(usize, &mut Stream) -> io::Result<()>,
) -> Result<Restored, String> {
    let begun = sys::monotonic();
    let now = read_clock();
    let start = state.start(now.at);
    let (head, mut from) = state.parts();
    let mut socket = |number, token| {
        let mut stream = Stream::inherited(number)?;
        watch(token, &mut stream)?;
        Ok(stream)
    };
    let proxy = Proxy::load(prepared, start, now, Me::here(), &mut from, &mut socket);
    let proxy = proxy.map_err(|Damaged(why)| why)?;
    logger::set_verbosity(head.verbosity);
    Ok(Restored {
        proxy,
        hangup: head.hangup,
        head,
        begun,
    })
}

impl Restored {
    /// Logs how long the change took.
    pub fn tell(&self) {
        let now = sys::monotonic();
        let clients = self.proxy.clients();
        let ms = |since: u64| now.saturating_sub(since) as f64 / 1e6;
        log::warn!(
            "magent {} took over from {}: {clients} clients, not read for {:.1} ms; from the last answer {:.1} ms, of \
             which {:.1} ms to read the state",
            env!("CARGO_PKG_VERSION"),
            self.head.version,
            ms(self.head.quiet_since),
            ms(self.head.clock),
            ms(self.begun),
        );
    }
}

/// The part of a program that is tried out: whether it knows the state behind this descriptor. Nothing is
/// opened or bound.
///
/// # Errors
/// A line.
pub fn try_out(fd: &str, prepared: Prepared) -> Result<&'static str, String> {
    let file = fd.parse().map_err(|_| ErrorKind::InvalidInput.into());
    let file = file.and_then(sys::sealed_file);
    let file = file.map_err(|e: io::Error| format!("the state: {}", sys::reason(&e)))?;
    let state = State::read(file)?;
    state.suits(&prepared.config)?;
    let now = read_clock();
    let start = state.start(now.at);
    let (_, mut from) = state.parts();
    let proxy: Loaded<Proxy<Blank>> =
        Proxy::load(prepared, start, now, Me::here(), &mut from, &mut |_, _| {
            Ok(Blank)
        });
    match proxy {
        Ok(_) => Ok(GOOD),
        Err(Damaged(why)) => Err(why),
    }
}
