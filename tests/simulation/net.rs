//! Sockets without a kernel: pipes in memory, with edges as epoll gives them.
//!
//! ```text
//!   magent ── Fake::write ─▶ out ── peer_read ──▶ client or server
//!          ◀─ Fake::read ──  inn ◀─ peer_write ──
//! ```
//!
//! Reads and writes may be shorter than they could be, as if the rest came a moment later:
//! then the edge for the rest comes a moment later too.

use super::rng::Rng;
use magent::net::Socket;
use std::cell::RefCell;
use std::io::{self, ErrorKind, IoSlice};
use std::rc::Rc;

/// One direction of a connection.
#[derive(Debug, Default)]
pub struct Pipe {
    data: Vec<u8>,
    start: usize,
    /// Bytes it can hold.
    cap: usize,
    /// Nothing more comes.
    pub fin: bool,
    /// The connection was reset.
    pub reset: bool,
    /// The writer was told that there is no room.
    starved: bool,
    /// Bytes ever taken out.
    pub consumed: u64,
}

impl Pipe {
    fn new(cap: usize) -> Pipe {
        Pipe {
            cap,
            ..Pipe::default()
        }
    }

    /// Bytes in it.
    pub fn len(&self) -> usize {
        self.data.len() - self.start
    }

    fn room(&self) -> usize {
        self.cap.saturating_sub(self.len())
    }

    fn put(&mut self, bytes: &[u8]) {
        self.data.extend_from_slice(bytes);
    }

    fn take(&mut self, n: usize) -> &[u8] {
        if self.start > 64 * 1024 {
            self.data.drain(..self.start);
            self.start = 0;
        }
        let from = self.start;
        self.start += n;
        self.consumed += n as u64;
        &self.data[from..from + n]
    }

    /// Forgets what is in it.
    pub fn clear(&mut self) {
        self.data.clear();
        self.start = 0;
    }
}

/// What became of a connect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Connect {
    Pending,
    Stands,
    Refused,
}

/// One connection.
#[derive(Debug)]
pub struct Conn {
    /// Its name towards the proxy.
    pub token: usize,
    /// To magent.
    pub inn: Pipe,
    /// From magent.
    pub out: Pipe,
    pub connect: Connect,
    edges: Option<Edges>,
    /// magent dropped its end.
    pub gone: bool,
    /// The other side dropped its end.
    pub closed: bool,
    /// Reads and writes are cut short at random.
    pub choppy: bool,
}

/// Events that epoll has ready for one socket.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub struct Edges {
    pub readable: bool,
    pub writable: bool,
    pub closed: bool,
}

/// All connections.
#[derive(Debug)]
pub struct Net {
    pub conns: Vec<Conn>,
    rng: Rng,
    edged: Vec<usize>,
    /// Connections whose other side has something to look at.
    pub touched: Vec<usize>,
    /// Connections that get an edge a moment later.
    pub later: Vec<(usize, Edges)>,
}

impl Net {
    /// No connections.
    pub fn new(seed: u64) -> Net {
        Net {
            conns: Vec::new(),
            rng: Rng::new(seed ^ 0x6e65_7400),
            edged: Vec::new(),
            touched: Vec::new(),
            later: Vec::new(),
        }
    }

    /// A new connection with so much room in either direction.
    pub fn open(&mut self, cap: usize, connect: Connect, choppy: bool) -> usize {
        self.conns.push(Conn {
            token: usize::MAX,
            inn: Pipe::new(cap),
            out: Pipe::new(cap),
            connect,
            edges: None,
            gone: false,
            closed: false,
            choppy,
        });
        self.conns.len() - 1
    }

    /// In a story: magent can write nothing more to a connection.
    pub fn stop_up(&mut self, conn: usize) {
        self.conns[conn].out.cap = 0;
    }

    /// Gives events to a socket.
    pub fn edge(&mut self, conn: usize, more: Edges) {
        let c = &mut self.conns[conn];
        if c.gone || c.token == usize::MAX {
            return;
        }
        if c.edges.is_none() {
            self.edged.push(conn);
        }
        let e = c.edges.get_or_insert_default();
        e.readable |= more.readable;
        e.writable |= more.writable;
        e.closed |= more.closed;
    }

    /// Takes out the connections for which events wait.
    pub fn edges(&mut self) -> Vec<(usize, Edges)> {
        let conns = &mut self.conns;
        let mut found = Vec::new();
        for conn in self.edged.drain(..) {
            let c = &mut conns[conn];
            match c.edges.take() {
                Some(edges) if !c.gone => found.push((conn, edges)),
                _ => {}
            }
        }
        found
    }

    /// The other side writes; returns how much there was room for.
    pub fn peer_write(&mut self, conn: usize, bytes: &[u8]) -> usize {
        let c = &mut self.conns[conn];
        if c.gone {
            return bytes.len();
        }
        let n = bytes.len().min(c.inn.room());
        c.inn.put(&bytes[..n]);
        if n > 0 {
            self.edge(
                conn,
                Edges {
                    readable: true,
                    ..Edges::default()
                },
            );
        }
        n
    }

    /// The other side reads up to `most` bytes.
    pub fn peer_read(&mut self, conn: usize, most: usize) -> Vec<u8> {
        let c = &mut self.conns[conn];
        let n = c.out.len().min(most);
        let bytes = c.out.take(n).to_vec();
        if n > 0 && c.out.starved {
            c.out.starved = false;
            self.edge(
                conn,
                Edges {
                    writable: true,
                    ..Edges::default()
                },
            );
        }
        bytes
    }

    /// The other side sends nothing more.
    pub fn peer_fin(&mut self, conn: usize) {
        self.conns[conn].inn.fin = true;
        self.edge(
            conn,
            Edges {
                readable: true,
                writable: false,
                closed: true,
            },
        );
    }

    /// The other side drops its end; with `reset` not politely.
    pub fn peer_close(&mut self, conn: usize, reset: bool) {
        let c = &mut self.conns[conn];
        c.closed = true;
        c.inn.reset |= reset;
        c.out.clear();
        self.peer_fin(conn);
        if reset {
            self.edge(
                conn,
                Edges {
                    readable: true,
                    writable: true,
                    closed: true,
                },
            );
        }
    }

    fn touch(&mut self, conn: usize) {
        self.touched.push(conn);
    }

    fn read(&mut self, conn: usize, buf: &mut [u8]) -> io::Result<usize> {
        let c = &mut self.conns[conn];
        let whole = c.inn.len().min(buf.len());
        if whole == 0 {
            return match (c.inn.reset, c.inn.fin) {
                (true, _) => Err(ErrorKind::ConnectionReset.into()),
                (_, true) => Ok(0),
                _ => Err(ErrorKind::WouldBlock.into()),
            };
        }
        let n = if c.choppy && whole > 1 && self.rng.often(300) {
            self.rng.range(1, whole as u64) as usize
        } else {
            whole
        };
        buf[..n].copy_from_slice(c.inn.take(n));
        if n < buf.len() && c.inn.len() > 0 {
            let later = Edges {
                readable: true,
                ..Edges::default()
            };
            self.later.push((conn, later));
        }
        self.touch(conn);
        Ok(n)
    }

    fn write(&mut self, conn: usize, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let c = &mut self.conns[conn];
        let whole: usize = bufs.iter().map(|b| b.len()).sum();
        if c.connect != Connect::Stands {
            return Err(ErrorKind::NotConnected.into());
        }
        if c.closed {
            // The first bytes after the end are taken and lost; then the reset is known.
            let known = c.inn.reset || self.rng.often(500);
            return if known {
                Err(ErrorKind::BrokenPipe.into())
            } else {
                c.inn.reset = true;
                Ok(whole)
            };
        }
        let room = c.out.room();
        let mut n = whole.min(room);
        if n == 0 && whole > 0 {
            c.out.starved = true;
            return Err(ErrorKind::WouldBlock.into());
        }
        let chopped = c.choppy && n > 1 && self.rng.often(200);
        if chopped {
            n = self.rng.range(1, n as u64) as usize;
        }
        let mut left = n;
        for b in bufs {
            let now = left.min(b.len());
            c.out.put(&b[..now]);
            left -= now;
        }
        if n < whole {
            if chopped {
                let later = Edges {
                    writable: true,
                    ..Edges::default()
                };
                self.later.push((conn, later));
            } else {
                c.out.starved = true;
            }
        }
        self.touch(conn);
        Ok(n)
    }
}

/// magent's end of a connection.
#[derive(Debug)]
pub struct Fake {
    pub net: Rc<RefCell<Net>>,
    pub conn: usize,
}

impl Socket for Fake {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.net.borrow_mut().read(self.conn, buf)
    }

    fn write(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.net.borrow_mut().write(self.conn, bufs)
    }

    fn shutdown_write(&mut self) -> io::Result<()> {
        let mut net = self.net.borrow_mut();
        net.conns[self.conn].out.fin = true;
        net.touch(self.conn);
        Ok(())
    }

    fn connected(&mut self) -> io::Result<bool> {
        match self.net.borrow().conns[self.conn].connect {
            Connect::Pending => Ok(false),
            Connect::Stands => Ok(true),
            Connect::Refused => Err(ErrorKind::ConnectionRefused.into()),
        }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let mut net = self.net.borrow_mut();
        let c = &mut net.conns[self.conn];
        c.gone = true;
        c.out.fin = true;
        net.touch(self.conn);
    }
}
