//! magent's core without a process: sockets in memory, servers that a test holds back or lets
//! go, and a clock that moves only when the test says so.

mod line;

use self::line::{End, Shared};
use super::fake::data_len;
use magent::config::{Action, Address, Config};
use magent::proxy::{Now, Proxy};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::OsString;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

/// Turns after which a core that still finds something to do is taken to spin.
const TURNS: usize = 200_000;

/// A client's end of a connection, with what names it to magent.
pub struct Peer {
    token: usize,
    line: Shared,
}

impl Peer {
    /// True once magent has closed the connection.
    pub fn is_closed(&self) -> bool {
        self.line.0.borrow().gone
    }

    /// What has arrived and was not taken yet.
    pub fn arrived(&self) -> usize {
        self.line.0.borrow().from_magent.len()
    }

    /// Room for so many bytes is there already: memory of the test's, not of magent's.
    pub fn reserve(&self, bytes: usize) {
        self.line.0.borrow_mut().from_magent.reserve(bytes);
    }

    /// Takes no more than so many bytes until they are taken out.
    pub fn narrow(self, room: usize) -> Peer {
        self.line.0.borrow_mut().room = room;
        self
    }

    /// Takes everything from now on, and only counts it.
    pub fn sink(&self) {
        self.line.0.borrow_mut().sunk = Some(0);
    }

    /// What [`Peer::sink`] has counted.
    pub fn sunk(&self) -> usize {
        self.line.0.borrow().sunk.unwrap_or(0)
    }
}

/// One link to a server, as the server sees it.
struct ServerLink {
    token: usize,
    port: u16,
    line: Shared,
    unread: VecDeque<u8>,
    greetings: usize,
    requests: usize,
}

/// The core with its surroundings.
pub struct Core {
    proxy: Proxy<End>,
    now: Now,
    links: Vec<ServerLink>,
    /// Servers, by port, that read and do not answer.
    pub silent: BTreeSet<u16>,
    /// Servers, by port, that read nothing: what was written to them stays in `link_room`.
    pub stopped: BTreeSet<u16>,
    /// Bytes that a new link to a server takes until the server reads.
    pub link_room: usize,
    /// Servers, by port, that refuse connections.
    pub refusing: BTreeSet<u16>,
    /// Servers, by port, whose events magent is not told, as if thousands of others stood before
    /// them.
    pub unseen: BTreeSet<u16>,
    /// How long each turn takes.
    pub turn: Duration,
    /// What runs around every turn of magent's own code.
    pub around: fn(&mut dyn FnMut()),
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl Core {
    /// With these options; servers are `127.0.0.1:PORT`, and nothing is ever opened.
    pub fn new(options: &[&str]) -> Core {
        let fixed = ["-D", "-p", "0", "-f", "/nonexistent/socket"];
        let args: Vec<OsString> = fixed.iter().chain(options).map(OsString::from).collect();
        let Ok(Action::Run(config)) = Config::from_args(&args) else {
            panic!("{options:?}");
        };
        let now = Now {
            at: Instant::now(),
            unix: 1_800_000_000,
        };
        Core {
            proxy: Proxy::new(&config, now),
            now,
            links: Vec::new(),
            silent: BTreeSet::new(),
            stopped: BTreeSet::new(),
            link_room: usize::MAX,
            refusing: BTreeSet::new(),
            unseen: BTreeSet::new(),
            turn: Duration::ZERO,
            around: |turn| turn(),
            request: Vec::new(),
            answer: Vec::new(),
        }
    }

    /// A client that takes all it gets; `None` if it was turned away.
    pub fn try_client(&mut self) -> Option<Peer> {
        let token = self.proxy.admit(0).ok()?;
        let line = Shared::new();
        let mut end = Some(End(line.clone()));
        let (proxy, now) = (&mut self.proxy, self.now);
        (self.around)(&mut || {
            if let Some(end) = end.take() {
                proxy.accepted(token, end, 0, now);
            }
        });
        Some(Peer { token, line })
    }

    /// A client that takes all it gets.
    #[track_caller]
    pub fn client(&mut self) -> Peer {
        self.try_client().expect("a place for a client")
    }

    /// What a client sends; nothing happens before [`Core::step`].
    pub fn send(&mut self, peer: &Peer, bytes: impl AsRef<[u8]>) {
        peer.line.0.borrow_mut().to_magent.extend(bytes.as_ref());
        self.ready(peer.token, true, false, false);
    }

    /// Sends, and lets everything happen that follows from it; what the client got.
    pub fn ask(&mut self, peer: &Peer, bytes: impl AsRef<[u8]>) -> String {
        self.send(peer, bytes);
        self.step();
        self.take_text(peer)
    }

    /// A client goes away.
    pub fn leave(&mut self, peer: Peer) {
        self.end(&peer);
    }

    /// A client is gone at once, whatever it is owed.
    pub fn reset(&mut self, peer: Peer) {
        peer.line.0.borrow_mut().reset = true;
        self.ready(peer.token, true, true, true);
        self.step();
    }

    /// A client sends nothing more, and takes what it is owed.
    pub fn end(&mut self, peer: &Peer) {
        peer.line.0.borrow_mut().ended = true;
        self.ready(peer.token, true, false, true);
        self.step();
    }

    /// Takes out what has arrived; tells magent that there is room.
    pub fn take(&mut self, peer: &Peer) -> Vec<u8> {
        let mut all = Vec::new();
        self.take_into(peer, &mut all);
        all
    }

    /// [`Core::take`] into memory of the caller's.
    pub fn take_into(&mut self, peer: &Peer, into: &mut Vec<u8>) {
        let blocked = {
            let line = &mut *peer.line.0.borrow_mut();
            let (front, back) = line.from_magent.as_slices();
            into.extend_from_slice(front);
            into.extend_from_slice(back);
            line.from_magent.clear();
            std::mem::take(&mut line.blocked)
        };
        if blocked {
            self.ready(peer.token, false, true, false);
        }
    }

    /// [`Core::take`] as text.
    pub fn take_text(&mut self, peer: &Peer) -> String {
        String::from_utf8_lossy(&self.take(peer)).into_owned()
    }

    /// Takes everything, however narrow the client is.
    pub fn take_all(&mut self, peer: &Peer) -> Vec<u8> {
        let mut all = Vec::new();
        while peer.arrived() > 0 {
            self.take_into(peer, &mut all);
            self.step();
        }
        all
    }

    fn ready(&mut self, token: usize, readable: bool, writable: bool, closed: bool) {
        let proxy = &mut self.proxy;
        (self.around)(&mut || proxy.ready(token, readable, writable, closed));
    }

    /// Turns until there is nothing to do at this time.
    #[track_caller]
    pub fn step(&mut self) {
        for _ in 0..TURNS {
            let (proxy, now) = (&mut self.proxy, self.now);
            proxy.count_poll();
            (self.around)(&mut || proxy.tick(now));
            let opened = self.open();
            let served = self.serve();
            self.now.at += self.turn;
            self.proxy.end_turn(self.now.at);
            if self.proxy.wait(self.now) == Some(Duration::ZERO) {
                continue;
            }
            // What the event loop asks before it waits.
            self.proxy.lull();
            if !opened && !served {
                return;
            }
        }
        panic!("magent's core finds no rest");
    }

    /// Time passes, in steps of half a second, and what is due happens.
    #[track_caller]
    pub fn advance(&mut self, time: Duration) {
        let step = Duration::from_millis(500);
        let mut left = time;
        while left > Duration::ZERO {
            let now = left.min(step);
            left -= now;
            self.now.at += now;
            self.step();
        }
    }

    /// Time passes, and magent stands still.
    pub fn stand_still(&mut self, time: Duration) {
        self.now.at += time;
    }

    fn open(&mut self) -> bool {
        let mut opened = false;
        while let Some(wanted) = self.proxy.next_connect() {
            opened = true;
            let Address::Tcp(address) = wanted.address else {
                panic!("servers are TCP");
            };
            let now = self.now;
            if self.refusing.contains(&address.port()) {
                let refused = Err(ErrorKind::ConnectionRefused.into());
                self.proxy.connecting(wanted.token, refused, now);
                continue;
            }
            let line = Shared::new();
            line.0.borrow_mut().room = self.link_room;
            self.proxy
                .connecting(wanted.token, Ok(End(line.clone())), now);
            if !self.unseen.contains(&address.port()) {
                self.ready(wanted.token, false, true, false);
            }
            self.links.push(ServerLink {
                token: wanted.token,
                port: address.port(),
                line,
                unread: VecDeque::new(),
                greetings: 0,
                requests: 0,
            });
        }
        opened
    }

    /// Lets every server answer what it has read.
    fn serve(&mut self) -> bool {
        let mut served = false;
        self.links.retain(|l| !l.line.0.borrow().gone);
        for i in 0..self.links.len() {
            let link = &mut self.links[i];
            if self.stopped.contains(&link.port) {
                continue;
            }
            let blocked = {
                let line = &mut *link.line.0.borrow_mut();
                link.unread.append(&mut line.from_magent);
                std::mem::take(&mut line.blocked)
            };
            self.answer.clear();
            while link.next(&mut self.request) {
                served = true;
                if link.greetings < 2 {
                    link.greetings += 1;
                } else {
                    link.requests += 1;
                    if self.silent.contains(&link.port) {
                        continue;
                    }
                }
                answer(&self.request, &mut self.answer);
            }
            link.line.0.borrow_mut().to_magent.extend(&self.answer);
            let (token, answered) = (link.token, !self.answer.is_empty());
            let is_seen = !self.unseen.contains(&link.port);
            if is_seen && (answered || blocked) {
                self.ready(token, answered, blocked, false);
            }
        }
        served
    }

    /// A server sends bytes of its own accord, on its newest link: the answers that it owes.
    pub fn serve_late(&mut self, port: u16, bytes: &[u8]) {
        let link = self.links.iter().rev().find(|l| l.port == port);
        let link = link.expect("a link to this server");
        link.line.0.borrow_mut().to_magent.extend(bytes);
        let token = link.token;
        self.ready(token, true, false, false);
        self.step();
    }

    /// The same with `count` values of `len` bytes each that take no memory: nobody ever writes
    /// them, and magent must not look at them.
    pub fn serve_void(&mut self, port: u16, key: &str, len: usize, count: usize) {
        let link = self.links.iter().rev().find(|l| l.port == port);
        let link = link.expect("a link to this server");
        let token = link.token;
        {
            let line = &mut *link.line.0.borrow_mut();
            let head = format!("VALUE {key} 0 {len}\r\n");
            let tail = "\r\nEND\r\n";
            for i in 0..count {
                let before = head.len() + if i == 0 { 0 } else { tail.len() };
                line.voids.push_back((before, len));
                line.to_magent
                    .extend([head.as_bytes(), tail.as_bytes()].concat());
            }
        }
        self.ready(token, true, false, false);
        self.step();
    }

    /// A server closes all its links.
    pub fn close_links(&mut self, port: u16) {
        let own = self.links.iter().filter(|l| l.port == port);
        let tokens: Vec<(usize, Shared)> = own.map(|l| (l.token, l.line.clone())).collect();
        for (token, line) in tokens {
            line.0.borrow_mut().ended = true;
            self.ready(token, true, false, true);
        }
        self.step();
    }

    /// Requests that reached a server's living links.
    pub fn requests(&self, port: u16) -> usize {
        let own = self.links.iter().filter(|l| l.port == port);
        own.map(|l| l.requests).sum()
    }

    /// `STAT` lines of any `stats`.
    pub fn stats(&mut self, request: &str) -> BTreeMap<String, String> {
        let peer = self.client();
        let text = self.ask(&peer, request);
        self.leave(peer);
        let lines = text.lines().filter_map(|l| l.strip_prefix("STAT "));
        lines
            .filter_map(|l| l.split_once(' '))
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect()
    }

    /// A number of `stats proxy`.
    #[track_caller]
    pub fn stat(&mut self, name: &str) -> u64 {
        let all = self.stats("stats proxy\r\n");
        let value = all.get(name).and_then(|v| v.parse().ok());
        value.unwrap_or_else(|| panic!("no number {name} in stats proxy: {all:?}"))
    }
}

impl ServerLink {
    /// The next whole request.
    fn next(&mut self, request: &mut Vec<u8>) -> bool {
        let Some(end) = self.unread.iter().position(|b| *b == b'\n') else {
            return false;
        };
        request.clear();
        request.extend(self.unread.iter().take(end + 1));
        let data = data_len(request).unwrap_or(0);
        if self.unread.len() < request.len() + data {
            return false;
        }
        self.unread.drain(..request.len() + data);
        true
    }
}

/// What a server says that has every key: the value of key `k100.7` is 100 bytes long.
pub fn answer(request: &[u8], out: &mut Vec<u8>) {
    let line = String::from_utf8_lossy(request);
    let mut words = line.split_ascii_whitespace();
    let command = words.next().unwrap_or_default();
    let value = |out: &mut Vec<u8>, key: &str| {
        out.resize(out.len() + value_len(key), b'v');
        out.extend_from_slice(b"\r\n");
    };
    match command {
        "version" => out.extend_from_slice(b"VERSION 1.6.18\r\n"),
        "stats" => out.extend_from_slice(b"STAT pid 1\r\nSTAT uptime 100000\r\nEND\r\n"),
        "get" => {
            for key in words {
                let head = format!("VALUE {key} 0 {}\r\n", value_len(key));
                out.extend_from_slice(head.as_bytes());
                value(out, key);
            }
            out.extend_from_slice(b"END\r\n");
        }
        "mg" => {
            let key = words.next().unwrap_or_default();
            out.extend_from_slice(format!("VA {}\r\n", value_len(key)).as_bytes());
            value(out, key);
        }
        "set" | "add" => out.extend_from_slice(b"STORED\r\n"),
        "ms" | "md" => out.extend_from_slice(b"HD\r\n"),
        "delete" => out.extend_from_slice(b"DELETED\r\n"),
        "flush_all" => out.extend_from_slice(b"OK\r\n"),
        other => panic!("the model server does not know {other}"),
    }
}

/// Length of the value of a key like `k100.7`.
fn value_len(key: &str) -> usize {
    let digits = key.trim_start_matches(|c: char| !c.is_ascii_digit());
    let end = digits.find('.').unwrap_or(digits.len());
    digits[..end].parse().unwrap_or(1)
}
