//! The whole proxy on sockets in memory, with a clock of its own: clients here, servers there.
//!
//! ```text
//!  client ──▶ Pipe ──▶ Proxy<Fake> ──▶ Pipe ──▶ strict reader ──▶ model memcached
//! ```

use crate::input::Rng;
use crate::wire::{self, Model};
use magent::config::{Action, Address, Config};
use magent::net::Socket;
use magent::proxy::{Now, Proxy};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Turns until a world that does not come to rest counts as spinning.
const TURNS: usize = 100_000;

/// One connection as both ends see it.
#[derive(Default)]
struct Pipe {
    to_proxy: VecDeque<u8>,
    from_proxy: Vec<u8>,
    /// The far end sends nothing more.
    ended: bool,
    /// The proxy has let go of it.
    dropped: bool,
    /// Bytes that the far end takes; more than that is blocked.
    window: usize,
    blocked: bool,
    /// The far end takes nothing for now.
    greedy: bool,
}

/// The proxy's end.
pub struct Fake(Rc<RefCell<Pipe>>);

impl Drop for Fake {
    fn drop(&mut self) {
        self.0.borrow_mut().dropped = true;
    }
}

impl Socket for Fake {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut pipe = self.0.borrow_mut();
        if pipe.to_proxy.is_empty() {
            return if pipe.ended {
                Ok(0)
            } else {
                Err(ErrorKind::WouldBlock.into())
            };
        }
        // All that fits, as a socket does: a deque alone would stop where it wraps.
        let n = buf.len().min(pipe.to_proxy.len());
        io::Read::read_exact(&mut pipe.to_proxy, &mut buf[..n])?;
        Ok(n)
    }

    fn write(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut pipe = self.0.borrow_mut();
        let mut n = 0;
        for buf in bufs {
            let take = buf.len().min(pipe.window);
            pipe.from_proxy.extend_from_slice(&buf[..take]);
            pipe.window -= take;
            n += take;
            if take < buf.len() {
                pipe.blocked = true;
                break;
            }
        }
        if n == 0 && pipe.blocked {
            return Err(ErrorKind::WouldBlock.into());
        }
        Ok(n)
    }

    fn shutdown_write(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn connected(&mut self) -> io::Result<bool> {
        Ok(true)
    }
}

/// A connection of the proxy to a server.
struct Link {
    token: usize,
    pipe: Rc<RefCell<Pipe>>,
    server: usize,
    /// Bytes that the server has not understood yet.
    unread: Vec<u8>,
    /// Answers that are on their way.
    coming: Vec<u8>,
    /// The server answers no more on it.
    mute: bool,
}

/// A client.
pub struct Client {
    token: usize,
    pipe: Rc<RefCell<Pipe>>,
    /// What it was answered and has not looked at.
    pub got: Vec<u8>,
}

impl Client {
    /// The proxy has closed it.
    pub fn closed(&self) -> bool {
        self.pipe.borrow().dropped
    }
}

/// What is done to a server's answers.
#[derive(Clone, Copy, PartialEq)]
pub enum Servers {
    /// Nothing.
    Good,
    /// Anything.
    Mad,
}

pub struct World {
    proxy: Proxy<Fake>,
    now: Now,
    rng: Rng,
    links: Vec<Link>,
    servers: Vec<Model>,
    pub madness: Servers,
    /// Values over 8 KB fit.
    pub large: bool,
}

pub fn config(options: &str) -> Config {
    let args: Vec<std::ffi::OsString> = options.split(' ').map(Into::into).collect();
    match Config::from_args(&args) {
        Ok(Action::Run(config)) => config,
        other => panic!("{options}: {other:?}"),
    }
}

impl World {
    /// Two primaries on ports 1 and 2, a backup on port 3.
    pub fn new(options: &str, rng: Rng, madness: Servers) -> World {
        let farm = "-s 127.0.0.1:1 -s 127.0.0.1:2 -b 127.0.0.1:3";
        let config = config(&format!("{farm} {options}"));
        let now = Now {
            at: Instant::now(),
            unix: 1_700_000_000,
        };
        World {
            proxy: Proxy::new(&config, now),
            now,
            rng,
            links: Vec::new(),
            servers: (0..3).map(|_| Model::young()).collect(),
            madness,
            large: false,
        }
    }

    pub fn client(&mut self) -> Client {
        let pipe = Rc::new(RefCell::new(Pipe {
            window: 1 << 20,
            ..Pipe::default()
        }));
        let token = self.proxy.admit(0).expect("there is room");
        self.proxy.accepted(token, Fake(pipe.clone()), 0, self.now);
        Client {
            token,
            pipe,
            got: Vec::new(),
        }
    }

    /// Sends all of `bytes`, in pieces, with turns in between.
    pub fn send(&mut self, client: &mut Client, bytes: &[u8]) -> Result<(), String> {
        for cut in self.rng.cuts(bytes.len()) {
            client.pipe.borrow_mut().to_proxy.extend(&bytes[cut]);
            self.proxy.ready(client.token, true, false, false);
            if self.rng.one_in(3) {
                self.turn(&mut [client])?;
            }
        }
        Ok(())
    }

    /// From now on the client asks and takes no answer, or takes them again.
    pub fn greedy(&mut self, client: &mut Client, greedy: bool) {
        let mut pipe = client.pipe.borrow_mut();
        pipe.greedy = greedy;
        if greedy {
            pipe.window = 0;
        } else if pipe.blocked || pipe.window == 0 {
            pipe.blocked = true;
        }
    }

    /// The client leaves.
    pub fn leave(&mut self, client: &mut Client) {
        client.pipe.borrow_mut().ended = true;
        self.proxy.ready(client.token, true, false, true);
    }

    /// Turns until nothing moves any more.
    pub fn rest(&mut self, clients: &mut [&mut Client]) -> Result<(), String> {
        for _ in 0..TURNS {
            if !self.turn(clients)? {
                return Ok(());
            }
        }
        Err(format!("no rest after {TURNS} turns"))
    }

    /// The clock goes on by so much, a turn every tenth of a second.
    pub fn pass(&mut self, seconds: u64, clients: &mut [&mut Client]) -> Result<(), String> {
        for _ in 0..seconds * 10 {
            self.now.at += Duration::from_millis(100);
            self.rest(clients)?;
        }
        self.now.unix += seconds;
        Ok(())
    }

    /// One turn of everybody; false if nothing moved.
    fn turn(&mut self, clients: &mut [&mut Client]) -> Result<bool, String> {
        self.proxy.tick(self.now);
        let mut moved = self.connect();
        for at in 0..self.links.len() {
            moved |= self.serve(at)?;
        }
        self.links.retain(|l| !l.pipe.borrow().dropped);
        for client in clients {
            let mut pipe = client.pipe.borrow_mut();
            moved |= !pipe.from_proxy.is_empty();
            client.got.append(&mut pipe.from_proxy);
            moved |= open(&mut pipe, &mut self.rng, &mut self.proxy, client.token);
        }
        Ok(moved || self.proxy.wait(self.now) == Some(Duration::ZERO))
    }

    fn connect(&mut self) -> bool {
        let mut moved = false;
        while let Some(wanted) = self.proxy.next_connect() {
            moved = true;
            let Address::Tcp(address) = wanted.address else {
                panic!("a Unix socket");
            };
            let pipe = Rc::new(RefCell::new(Pipe {
                window: 1 << 20,
                ..Pipe::default()
            }));
            self.proxy
                .connecting(wanted.token, Ok(Fake(pipe.clone())), self.now);
            self.proxy.ready(wanted.token, false, true, false);
            self.links.push(Link {
                token: wanted.token,
                pipe,
                server: usize::from(address.port()) - 1,
                unread: Vec::new(),
                coming: Vec::new(),
                mute: false,
            });
        }
        moved
    }

    /// A server reads what it was sent and answers, some of it now and some later.
    fn serve(&mut self, at: usize) -> Result<bool, String> {
        let link = &mut self.links[at];
        let mut pipe = link.pipe.borrow_mut();
        if pipe.dropped {
            return Ok(false);
        }
        let mut moved = !pipe.from_proxy.is_empty();
        link.unread.append(&mut pipe.from_proxy);
        moved |= open(&mut pipe, &mut self.rng, &mut self.proxy, link.token);
        let mut read = 0;
        while let Some(wire) = wire::request(&link.unread[read..])
            .map_err(|why| format!("{why}: {}", start(&link.unread[read..])))?
        {
            let mut answer = self.servers[link.server].answer(&wire);
            read += wire.len;
            if self.madness == Servers::Mad {
                go_mad(&mut self.rng, &mut answer, &mut link.mute, &mut pipe.ended);
            }
            if !link.mute {
                link.coming.append(&mut answer);
            }
        }
        link.unread.drain(..read);
        if !link.coming.is_empty() {
            let n = match self.rng.one_in(3) {
                true => 1 + self.rng.below(link.coming.len()),
                false => link.coming.len(),
            };
            pipe.to_proxy.extend(link.coming.drain(..n));
            moved = true;
        }
        let (ended, token) = (pipe.ended, link.token);
        drop(pipe);
        if moved {
            self.proxy.ready(token, true, false, ended);
        }
        Ok(moved)
    }

    /// `bytes_in_flight` of `stats proxy`, asked by a client of its own.
    pub fn bytes_in_flight(&mut self) -> Result<usize, String> {
        let mut asker = self.client();
        self.send(&mut asker, b"stats proxy\r\n")?;
        self.rest(&mut [&mut asker])?;
        let text = String::from_utf8_lossy(&asker.got).into_owned();
        self.leave(&mut asker);
        self.rest(&mut [&mut asker])?;
        text.lines()
            .find_map(|l| l.strip_prefix("STAT bytes_in_flight ")?.parse().ok())
            .ok_or_else(|| format!("no bytes_in_flight in {text:?}"))
    }
}

/// Takes more of what the proxy writes, now and then only a little.
fn open(pipe: &mut Pipe, rng: &mut Rng, proxy: &mut Proxy<Fake>, token: usize) -> bool {
    if pipe.greedy {
        return false;
    }
    if !pipe.blocked {
        if pipe.window < 1 << 16 {
            pipe.window = 1 << 20;
        }
        return false;
    }
    pipe.blocked = false;
    pipe.window = *rng.pick(&[1, 100, 70_000, 1 << 20]);
    proxy.ready(token, false, true, false);
    true
}

/// What may become of a server's answer.
fn go_mad(rng: &mut Rng, answer: &mut Vec<u8>, mute: &mut bool, ended: &mut bool) {
    match rng.below(40) {
        0 => answer.clear(),
        1 => *mute = true,
        2 => *ended = true,
        3 => answer.extend_from_within(..),
        4 => answer
            .splice(0..0, *b"VALUE good:9 0 1\r\nx\r\n")
            .for_each(drop),
        5..8 => crate::input::mutate(rng, answer),
        8 => *answer = rng.pick(crate::parsers::ASKED).2.to_vec(),
        9 => *answer = (0..rng.below(3000)).map(|_| rng.next() as u8).collect(),
        _ => {}
    }
}

fn start(bytes: &[u8]) -> String {
    bytes[..bytes.len().min(300)].escape_ascii().to_string()
}
