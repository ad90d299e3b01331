//! The whole proxy in one thread, on sockets of memory and a clock that the test moves, with
//! servers simple enough to be trusted.
//!
//! ```text
//!  talk ─▶ Wire ─▶ Proxy<Wire> ─▶ Wire ─▶ Server: refuses, hangs, wakes with what it held
//! ```

use magent::config::{Action, Address, Config};
use magent::net::Socket;
use magent::proxy::{Now, Proxy};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, ErrorKind, IoSlice};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Both directions of one connection; the far end is the test's.
#[derive(Default)]
struct Pipe {
    /// From the proxy.
    sent: Vec<u8>,
    /// For the proxy.
    came: Vec<u8>,
    /// The proxy has closed its half, or all of it.
    no_more: bool,
    /// The proxy has dropped its end.
    dropped: bool,
    /// The far end has closed.
    closed: bool,
}

/// The proxy's end.
pub struct Wire(Rc<RefCell<Pipe>>);

impl Socket for Wire {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut pipe = self.0.borrow_mut();
        let n = pipe.came.len().min(buf.len());
        if n == 0 && !pipe.closed {
            return Err(ErrorKind::WouldBlock.into());
        }
        buf[..n].copy_from_slice(&pipe.came[..n]);
        pipe.came.drain(..n);
        Ok(n)
    }

    fn write(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut pipe = self.0.borrow_mut();
        if pipe.closed {
            return Err(ErrorKind::BrokenPipe.into());
        }
        bufs.iter().for_each(|b| pipe.sent.extend_from_slice(b));
        Ok(bufs.iter().map(|b| b.len()).sum())
    }

    fn shutdown_write(&mut self) -> io::Result<()> {
        self.0.borrow_mut().no_more = true;
        Ok(())
    }

    fn connected(&mut self) -> io::Result<bool> {
        Ok(true)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let mut pipe = self.0.borrow_mut();
        pipe.no_more = true;
        pipe.dropped = true;
    }
}

/// What a server does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mood {
    /// It answers.
    Well,
    /// It accepts and reads nothing; it will when it is well again.
    Hung,
    /// Nobody listens.
    Gone,
}

/// A memcached of a few commands; its values have neither flags nor lives.
pub struct Server {
    /// What it does.
    pub mood: Mood,
    /// What it holds.
    pub items: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Its requests, handshakes left out.
    pub asked: usize,
    links: Vec<(usize, Rc<RefCell<Pipe>>)>,
}

impl Server {
    fn new() -> Server {
        Server {
            mood: Mood::Well,
            items: BTreeMap::new(),
            asked: 0,
            links: Vec::new(),
        }
    }

    /// Links that the proxy has open.
    pub fn links(&self) -> usize {
        let open = |l: &&(usize, Rc<RefCell<Pipe>>)| !l.1.borrow().dropped;
        self.links.iter().filter(open).count()
    }

    /// Takes one request off `input`; false if there is no whole one.
    fn serve(&mut self, input: &mut Vec<u8>, out: &mut Vec<u8>) -> bool {
        let Some(end) = input.iter().position(|b| *b == b'\n') else {
            return false;
        };
        let line = String::from_utf8_lossy(&input[..end]).into_owned();
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let stores = matches!(words[0], "set" | "add" | "replace" | "append" | "prepend");
        let size = if stores {
            words[4].parse::<usize>().expect("a length") + 2
        } else {
            0
        };
        if input.len() < end + 1 + size {
            return false;
        }
        let value = input[end + 1..][..size.saturating_sub(2)].to_vec();
        input.drain(..end + 1 + size);
        self.asked += usize::from(!matches!(words[0], "version" | "stats"));
        let answer = self.answer(&words, value);
        out.extend_from_slice(&answer);
        true
    }

    fn answer(&mut self, words: &[&str], value: Vec<u8>) -> Vec<u8> {
        let key = || words[1].as_bytes().to_vec();
        let found = words
            .get(1)
            .is_some_and(|k| self.items.contains_key(k.as_bytes()));
        let line: &[u8] = match words[0] {
            "version" => b"VERSION 1.6.18\r\n",
            "stats" => b"STAT uptime 100000\r\nEND\r\n",
            "get" | "gets" | "gat" | "gats" => {
                let keys = if words[0].starts_with("gat") { 2 } else { 1 };
                return self.values(&words[keys..]);
            }
            "set" => {
                self.items.insert(key(), value);
                b"STORED\r\n"
            }
            "add" | "replace" if found == (words[0] == "replace") => {
                self.items.insert(key(), value);
                b"STORED\r\n"
            }
            "append" if found => {
                let old = self.items.get_mut(words[1].as_bytes());
                old.expect("found").extend_from_slice(&value);
                b"STORED\r\n"
            }
            "add" | "replace" | "append" => b"NOT_STORED\r\n",
            "delete" if self.items.remove(words[1].as_bytes()).is_some() => b"DELETED\r\n",
            "touch" if found => b"TOUCHED\r\n",
            "delete" | "touch" => b"NOT_FOUND\r\n",
            "flush_all" => {
                self.items.clear();
                b"OK\r\n"
            }
            other => panic!("a request that this server does not know: {other}"),
        };
        line.to_vec()
    }

    fn values(&self, keys: &[&str]) -> Vec<u8> {
        let mut out = Vec::new();
        for key in keys {
            if let Some(value) = self.items.get(key.as_bytes()) {
                out.extend_from_slice(format!("VALUE {key} 0 {}\r\n", value.len()).as_bytes());
                out.extend_from_slice(value);
                out.extend_from_slice(b"\r\n");
            }
        }
        out.extend_from_slice(b"END\r\n");
        out
    }
}

/// A number below `bound`, and the next state of `seed`, which must not be 0. (Marsaglia's
/// xorshift.)
pub fn draw(seed: &mut u64, bound: u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    (*seed >> 11) % bound
}

/// The proxy, its servers and its clients.
pub struct World {
    /// The thing itself.
    pub proxy: Proxy<Wire>,
    /// By port.
    pub servers: BTreeMap<u16, Server>,
    clients: BTreeMap<usize, Rc<RefCell<Pipe>>>,
    /// Servers take turns as this says: not all links at once, and not all that is there. 0:
    /// at once.
    pub jumble: u64,
    /// The proxy's links had numbers below this so far.
    pub link_places: usize,
    clock: Duration,
    start: Instant,
}

/// The configuration in a file's text.
pub fn config(text: &str) -> Config {
    let dir = super::TempDir::new();
    let file = dir.path().join("pools.yml");
    std::fs::write(&file, text).expect("the file");
    let args = [OsString::from("-D"), "-c".into(), file.into()];
    match Config::from_args(&args) {
        Ok(Action::Run(config)) => config,
        other => panic!("{other:?} of\n{text}"),
    }
}

impl World {
    /// A proxy under this file, and servers on these ports.
    pub fn new(text: &str, ports: &[u16]) -> World {
        let start = Instant::now();
        let now = Now {
            at: start,
            unix: 1_000_000,
        };
        World {
            proxy: Proxy::new(&config(text), now),
            servers: ports.iter().map(|p| (*p, Server::new())).collect(),
            clients: BTreeMap::new(),
            jumble: 0,
            link_places: 0,
            clock: Duration::ZERO,
            start,
        }
    }

    /// What the clock says.
    pub fn now(&self) -> Now {
        Now {
            at: self.start + self.clock,
            unix: 1_000_000 + self.clock.as_secs(),
        }
    }

    /// Takes another file over.
    pub fn reload(&mut self, text: &str) {
        let now = self.now();
        self.proxy.reload(&config(text), now);
    }

    /// A client of this listener.
    pub fn connect(&mut self, entrance: usize) -> usize {
        let token = self.proxy.admit(entrance).expect("a place");
        let pipe = Rc::new(RefCell::new(Pipe::default()));
        let now = self.now();
        self.proxy
            .accepted(token, Wire(pipe.clone()), entrance, now);
        self.clients.insert(token, pipe);
        token
    }

    /// Bytes from a client.
    pub fn send(&mut self, client: usize, bytes: &[u8]) {
        self.clients[&client]
            .borrow_mut()
            .came
            .extend_from_slice(bytes);
        self.proxy.ready(client, true, false, false);
    }

    /// What a client got since it was last asked for.
    pub fn received(&mut self, client: usize) -> Vec<u8> {
        std::mem::take(&mut self.clients[&client].borrow_mut().sent)
    }

    /// True until the proxy closes this client.
    pub fn is_open(&self, client: usize) -> bool {
        !self.clients[&client].borrow().dropped
    }

    /// A client leaves.
    pub fn leave(&mut self, client: usize) {
        self.clients[&client].borrow_mut().closed = true;
        self.proxy.ready(client, true, false, true);
        self.settle();
        self.clients.remove(&client);
    }

    /// Sends, runs until nothing moves, and returns the answer.
    pub fn ask(&mut self, client: usize, request: &str) -> String {
        self.send(client, request.as_bytes());
        self.settle();
        String::from_utf8_lossy(&self.received(client)).into_owned()
    }

    /// The value of a key, as the proxy tells it; nothing for a miss or an error.
    pub fn get(&mut self, client: usize, key: &str) -> Option<String> {
        let answer = self.ask(client, &format!("get {key}\r\n"));
        let rest = answer.strip_prefix("VALUE ")?;
        rest.split("\r\n").nth(1).map(str::to_string)
    }

    /// One field of `stats servers`, or any other `stats`.
    pub fn stat(&mut self, client: usize, which: &str, name: &str) -> String {
        let answer = self.ask(client, &format!("stats {which}\r\n"));
        let prefix = format!("STAT {name} ");
        let line = answer.lines().find_map(|l| l.strip_prefix(&prefix));
        line.unwrap_or_else(|| panic!("no {name} in\n{answer}"))
            .to_string()
    }

    /// A server's mood changes; one that goes takes its links along.
    pub fn set_mood(&mut self, port: u16, mood: Mood) {
        let server = self.servers.get_mut(&port).expect("a server");
        server.mood = mood;
        if mood == Mood::Gone {
            for (token, pipe) in std::mem::take(&mut server.links) {
                pipe.borrow_mut().closed = true;
                self.proxy.ready(token, true, false, true);
            }
        }
    }

    /// Moves the clock, a step at a time, as a loop would wake.
    pub fn pass(&mut self, time: Duration) {
        let end = self.clock + time;
        self.settle();
        while let Some(wait) = self
            .proxy
            .wait(self.now())
            .filter(|w| self.clock + *w < end)
        {
            // A loop's clock is no finer, and an alarm of now must not stop it.
            self.clock += wait.max(Duration::from_micros(1));
            self.settle();
        }
        self.clock = end;
        self.settle();
    }

    /// Turns until nothing moves.
    pub fn settle(&mut self) {
        for turn in 0.. {
            assert!(turn < 100_000, "it never comes to rest");
            if !self.turn() {
                return;
            }
        }
    }

    /// One turn of the loop and of the servers; false if there is nothing to do now.
    pub fn turn(&mut self) -> bool {
        self.proxy.tick(self.now());
        let mut moved = self.open_links();
        moved |= self.serve();
        moved || self.proxy.wait(self.now()) == Some(Duration::ZERO)
    }

    fn open_links(&mut self) -> bool {
        let mut moved = false;
        while let Some(wanted) = self.proxy.next_connect() {
            let Address::Tcp(address) = &wanted.address else {
                panic!("{wanted:?}");
            };
            let place = wanted.token & 0xffff_ffff;
            self.link_places = self.link_places.max(place + 1);
            let server = self.servers.get_mut(&address.port());
            let server = server.filter(|s| s.mood != Mood::Gone);
            let stream = match server {
                None => Err(ErrorKind::ConnectionRefused.into()),
                Some(server) => {
                    let pipe = Rc::new(RefCell::new(Pipe::default()));
                    server.links.push((wanted.token, pipe.clone()));
                    Ok(Wire(pipe))
                }
            };
            let opened = stream.is_ok();
            let now = self.now();
            self.proxy.connecting(wanted.token, stream, now);
            if opened {
                self.proxy.ready(wanted.token, false, true, false);
            }
            moved = true;
        }
        moved
    }

    /// Lets the servers answer.
    fn serve(&mut self) -> bool {
        let mut moved = false;
        for server in self.servers.values_mut() {
            if server.mood != Mood::Well {
                continue;
            }
            let links = std::mem::take(&mut server.links);
            for (token, pipe) in &links {
                let mut turns = match self.jumble {
                    0 => u64::MAX,
                    _ => draw(&mut self.jumble, 4),
                };
                let mut input = std::mem::take(&mut pipe.borrow_mut().sent);
                let mut out = Vec::new();
                while turns > 0 && server.serve(&mut input, &mut out) {
                    turns -= 1;
                }
                let mut end = pipe.borrow_mut();
                // It reads on until nothing more can come.
                let closes = turns > 0 && end.no_more && !end.closed;
                moved |= turns == 0 || closes || !out.is_empty();
                end.sent = input;
                end.closed |= closes;
                end.came.extend_from_slice(&out);
                drop(end);
                if closes || !out.is_empty() {
                    self.proxy.ready(*token, true, false, closes);
                }
            }
            server.links = links;
            server.links.retain(|(_, pipe)| !pipe.borrow().closed);
        }
        moved
    }
}
