//! Sessions in memory, whose clock moves when the test says so. What they are told is in `tests/admin.rs`.

use super::{Admin, Entrance, SESSIONS};
use crate::config::{Action, Config};
use crate::net::Socket;
use crate::proxy::{Now, Proxy};
use crate::work::Work;
use std::cell::RefCell;
use std::ffi::OsString;
use std::io::{self, ErrorKind, IoSlice};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// What passes between a test and a session.
#[derive(Default)]
struct Wire {
    sent: Vec<u8>,
    got: Vec<u8>,
    /// It takes so many bytes more.
    room: usize,
    /// The session has shut its side, or is gone.
    is_shut: bool,
}

struct End(Rc<RefCell<Wire>>);

impl Socket for End {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut wire = self.0.borrow_mut();
        if wire.sent.is_empty() {
            return Err(ErrorKind::WouldBlock.into());
        }
        let n = buf.len().min(wire.sent.len());
        buf[..n].copy_from_slice(&wire.sent[..n]);
        wire.sent.drain(..n);
        Ok(n)
    }

    fn write(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut wire = self.0.borrow_mut();
        if wire.room == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        let all: Vec<u8> = bufs.iter().flat_map(|b| b.iter().copied()).collect();
        let n = all.len().min(wire.room);
        wire.room -= n;
        wire.got.extend_from_slice(&all[..n]);
        Ok(n)
    }

    fn shutdown_write(&mut self) -> io::Result<()> {
        self.0.borrow_mut().is_shut = true;
        Ok(())
    }

    fn connected(&mut self) -> io::Result<bool> {
        Ok(true)
    }

    fn peer(&self) -> String {
        "test".into()
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.0.borrow_mut().is_shut = true;
    }
}

struct Door {
    admin: Admin<End>,
    proxy: Proxy<End>,
    now: Now,
}

struct Peer {
    wire: Rc<RefCell<Wire>>,
    number: usize,
}

impl Door {
    fn new() -> Door {
        let args = ["-D", "-p", "0", "-f", "/nonexistent/s", "-s", "127.0.0.1:1"];
        let args: Vec<OsString> = args.map(OsString::from).to_vec();
        let Ok(Action::Run(config)) = Config::from_args(&args) else {
            panic!("{args:?}");
        };
        let now = Now {
            at: Instant::now(),
            unix: 1,
        };
        Door {
            admin: Admin::default(),
            proxy: Proxy::new(&config, now),
            now,
        }
    }

    fn peer(&mut self) -> Peer {
        let wire = Rc::new(RefCell::new(Wire {
            room: usize::MAX,
            ..Wire::default()
        }));
        self.admin.make_room();
        let number = self.admin.next_number();
        self.admin
            .accepted(End(wire.clone()), Entrance::Tcp, self.now);
        let peer = Peer { wire, number };
        self.rest();
        peer
    }

    /// Turns until there is nothing to do at this time.
    fn rest(&mut self) {
        let turns = (0..10_000).find(|_| {
            let work = Work::counted();
            self.admin.tick(&mut self.proxy, self.now, work);
            self.admin.wait(self.now) != Some(Duration::ZERO)
        });
        assert!(turns.is_some(), "it never comes to rest");
    }

    fn send(&mut self, peer: &Peer, bytes: &[u8]) {
        peer.wire.borrow_mut().sent.extend_from_slice(bytes);
        self.admin.ready(peer.number, true, false, false);
        self.rest();
    }

    /// Time passes as for a loop: it wakes at alarms.
    fn pass(&mut self, seconds: u64) {
        let end = self.now.at + Duration::from_secs(seconds);
        while let Some(wait) = self.admin.wait(self.now).filter(|w| self.now.at + *w < end) {
            self.now.at += wait.max(Duration::from_millis(1));
            let work = Work::counted();
            self.admin.tick(&mut self.proxy, self.now, work);
        }
        self.now.at = end;
        self.rest();
    }
}

impl Peer {
    fn is_closed(&self) -> bool {
        self.wire.borrow().is_shut
    }

    fn got(&self) -> String {
        let got = std::mem::take(&mut self.wire.borrow_mut().got);
        String::from_utf8(got).expect("text")
    }
}

#[test]
fn people_may_think_for_ten_minutes() {
    let mut door = Door::new();
    let (silent, typing) = (door.peer(), door.peer());
    door.send(&typing, b"sta");
    door.pass(590);
    door.send(&typing, b"ge\n");
    assert_eq!(typing.got(), "ERROR stage\r\n");
    assert!(!silent.is_closed());
    door.pass(20);
    assert!(silent.is_closed() && !typing.is_closed());
    door.pass(590);
    assert!(typing.is_closed());
}

/// A byte now and then holds no place.
#[test]
fn a_request_of_http_comes_in_time() {
    let mut door = Door::new();
    let (drips, asks) = (door.peer(), door.peer());
    door.send(&drips, b"GET / HTTP/1.1\r\n");
    for _ in 0..7 {
        door.pass(10);
        door.send(&drips, b"X: y\r\n");
        door.send(&asks, b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
        assert!(asks.got().ends_with("ok\n"));
    }
    assert!(!drips.is_closed());
    door.pass(10);
    assert!(drips.is_closed() && !asks.is_closed());
    door.pass(80);
    assert!(asks.is_closed());
}

#[test]
fn who_takes_nothing_is_closed() {
    let mut door = Door::new();
    let (deaf, slow) = (door.peer(), door.peer());
    for peer in [&deaf, &slow] {
        peer.wire.borrow_mut().room = 10;
        door.send(peer, &b"help\n".repeat(500));
    }
    for _ in 0..4 {
        door.pass(20);
        slow.wire.borrow_mut().room = 10;
        door.admin.ready(slow.number, false, true, false);
        door.rest();
    }
    assert!(deaf.is_closed() && !slow.is_closed());
    assert_eq!(slow.got().len(), 50);
    // The rest of what it asked is answered when it takes what is there.
    slow.wire.borrow_mut().room = usize::MAX;
    door.admin.ready(slow.number, false, true, false);
    door.rest();
    assert_eq!(slow.got().matches("END\r\n").count(), 500);
}

/// Though all places are held by those who ask, and others come right behind.
#[test]
fn whoever_comes_has_the_time_to_ask() {
    let mut door = Door::new();
    let crowd: Vec<Peer> = (0..SESSIONS).map(|_| door.peer()).collect();
    crowd.iter().for_each(|peer| door.send(peer, b"x\n"));
    door.pass(1);
    let one = door.peer();
    let others: Vec<Peer> = (1..SESSIONS / 2).map(|_| door.peer()).collect();
    assert!(!one.is_closed() && others.iter().all(|p| !p.is_closed()));
    door.send(&one, b"x\n");
    assert_eq!(one.got(), "ERROR x\r\n");
}

#[test]
fn who_asked_least_goes_when_there_is_no_place() {
    let mut door = Door::new();
    let first = door.peer();
    door.send(&first, b"x\n");
    let silent = door.peer();
    let mut others = Vec::new();
    for _ in 2..SESSIONS {
        door.pass(1);
        others.push(door.peer());
    }
    assert!(!silent.is_closed());
    others.push(door.peer());
    assert!(silent.is_closed() && !first.is_closed());
    // When all have asked something, who asked longest ago.
    for peer in &others {
        door.send(peer, b"x\n");
        door.pass(1);
    }
    let last = door.peer();
    assert!(first.is_closed() && !last.is_closed());
    assert!(others.iter().all(|p| !p.is_closed()));
}
