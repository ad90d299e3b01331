//! Connections in memory, with readiness events as epoll gives them: an edge when bytes arrive,
//! when there is room again, and at the end.
//!
//! ```text
//!   magent ── End::write ─▶ out ── take ──▶ client or server
//!          ◀─ End::read ──  inn ◀─ put ───
//! ```

use crate::common::rng::Rng;
use magent::net::Socket;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice};
use std::rc::Rc;

/// A queue of bytes; its room is for its owner to watch.
#[derive(Debug, Default)]
pub struct Pipe {
    data: Vec<u8>,
    start: usize,
    /// Bytes it can hold.
    pub cap: usize,
    /// Nothing more comes.
    pub fin: bool,
    /// The connection was reset.
    pub reset: bool,
    /// The writer was told that there is no room.
    pub starved: bool,
    /// Bytes ever taken out.
    pub consumed: u64,
    /// Takes what comes out at once, and keeps none of it.
    pub sink: bool,
    /// Runs of bytes that are read though nobody ever wrote them: how many of `data` come before
    /// each, and its length.
    voids: VecDeque<(usize, usize)>,
}

impl Pipe {
    /// What is in it.
    pub fn bytes(&self) -> &[u8] {
        &self.data[self.start..]
    }

    /// Bytes in it.
    pub fn len(&self) -> usize {
        self.written() + self.voids.iter().map(|v| v.1).sum::<usize>()
    }

    /// Those that somebody wrote.
    fn written(&self) -> usize {
        self.data.len() - self.start
    }

    /// Nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn room(&self) -> usize {
        self.cap.saturating_sub(self.len())
    }

    /// Adds bytes, whatever its room.
    pub fn put(&mut self, bytes: &[u8]) {
        if self.sink {
            self.consumed += bytes.len() as u64;
            return;
        }
        // Moved seldom, and by less than was taken out.
        if self.start == self.data.len() || self.start > (self.data.len() / 2).max(64 * 1024) {
            self.data.drain(..self.start);
            self.start = 0;
        }
        self.data.extend_from_slice(bytes);
    }

    /// Takes out up to `most` bytes.
    pub fn take(&mut self, most: usize) -> &[u8] {
        let n = self.written().min(most);
        self.start += n;
        self.consumed += n as u64;
        &self.data[self.start - n..self.start]
    }

    /// Adds so many bytes that take no memory, since nobody writes them.
    pub fn put_void(&mut self, len: usize) {
        let earlier: usize = self.voids.iter().map(|v| v.0).sum();
        self.voids.push_back((self.written() - earlier, len));
    }

    /// Takes out what `buf` has room for; voids leave it as it is.
    fn fill(&mut self, buf: &mut [u8]) {
        let mut at = 0;
        while at < buf.len() {
            let before = self.voids.front().map_or(usize::MAX, |v| v.0);
            let n = before.min(buf.len() - at);
            buf[at..at + n].copy_from_slice(self.take(n));
            at += n;
            let Some(void) = self.voids.front_mut() else {
                return;
            };
            void.0 -= n;
            if void.0 == 0 {
                let n = void.1.min(buf.len() - at);
                void.1 -= n;
                at += n;
                if void.1 == 0 {
                    self.voids.pop_front();
                }
            }
        }
    }

    /// Forgets what is in it.
    pub fn clear(&mut self) {
        self.data.clear();
        self.voids.clear();
        self.start = 0;
    }

    /// Room for so many bytes is there already.
    pub fn reserve(&mut self, bytes: usize) {
        self.data.reserve(bytes);
    }
}

/// What became of a connect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Connect {
    Pending,
    Stands,
    Refused,
}

/// Events that epoll has ready for one socket.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub struct Edges {
    pub readable: bool,
    pub writable: bool,
    pub closed: bool,
}

impl Edges {
    pub const READABLE: Edges = Edges::of(true, false, false);
    pub const WRITABLE: Edges = Edges::of(false, true, false);
    pub const CLOSED: Edges = Edges::of(true, false, true);
    pub const ALL: Edges = Edges::of(true, true, true);

    const fn of(readable: bool, writable: bool, closed: bool) -> Edges {
        Edges {
            readable,
            writable,
            closed,
        }
    }
}

/// One connection of one magent, to a client or to a server.
#[derive(Debug)]
pub struct Conn {
    /// Whose it is, and its name there.
    pub proxy: usize,
    pub token: usize,
    /// To magent.
    pub inn: Pipe,
    /// From magent.
    pub out: Pipe,
    pub connect: Connect,
    edges: Option<Edges>,
    /// magent dropped its end.
    pub gone: bool,
    /// magent's next program gets its end.
    is_kept: bool,
    /// The other side dropped its end.
    pub closed: bool,
    /// Reads and writes are cut short at random, as if the rest came a moment later.
    pub choppy: bool,
    touched: bool,
}

/// All connections, named by numbers that are never used again.
#[derive(Debug)]
pub struct Net {
    pub conns: Vec<Conn>,
    rng: Rng,
    edged: Vec<usize>,
    /// Connections whose other side has something to look at.
    touched: Vec<usize>,
    /// What was cut short: connections that get an edge a moment later.
    pub later: Vec<(usize, Edges)>,
}

/// The one network, shared by magent's ends of its connections.
pub type Shared = Rc<RefCell<Net>>;

impl Net {
    /// No connections.
    pub fn new(seed: u64) -> Shared {
        Rc::new(RefCell::new(Net {
            conns: Vec::new(),
            rng: Rng::new(seed ^ 0x6e65_7400),
            edged: Vec::new(),
            touched: Vec::new(),
            later: Vec::new(),
        }))
    }

    /// A new connection of a proxy with so much room in either direction.
    pub fn open(&mut self, proxy: usize, token: usize, cap: usize, connect: Connect) -> usize {
        let pipe = || Pipe {
            cap,
            ..Pipe::default()
        };
        self.conns.push(Conn {
            proxy,
            token,
            inn: pipe(),
            out: pipe(),
            connect,
            edges: None,
            gone: false,
            is_kept: false,
            closed: false,
            choppy: false,
            touched: false,
        });
        self.conns.len() - 1
    }

    /// Gives events to a socket.
    pub fn edge(&mut self, conn: usize, more: Edges) {
        let c = &mut self.conns[conn];
        if c.gone {
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

    /// magent's end of a connection outlives the program that holds it now.
    pub fn keep(&mut self, conn: usize) {
        self.conns[conn].is_kept = true;
    }

    /// The next program watches it under a name of its own; it is told what there is, as epoll tells whoever
    /// begins to watch.
    pub fn watch_anew(&mut self, conn: usize, token: usize) {
        let c = &mut self.conns[conn];
        (c.token, c.edges) = (token, None);
        let closed = c.inn.fin || c.inn.reset;
        let edges = Edges {
            readable: closed || !c.inn.is_empty(),
            writable: c.connect != Connect::Pending && c.out.room() > 0,
            closed,
        };
        if edges != Edges::default() {
            self.edge(conn, edges);
        }
    }

    /// Moves the connections for which events wait into `found`, but for those to be held back.
    pub fn edges(
        &mut self,
        found: &mut Vec<(usize, Edges)>,
        mut held: impl FnMut(&Conn, usize) -> bool,
    ) {
        let conns = &mut self.conns;
        self.edged.retain(|&conn| {
            let c = &mut conns[conn];
            if !c.gone && held(c, conn) {
                return true;
            }
            let edges = c.edges.take();
            found.extend(edges.filter(|_| !c.gone).map(|e| (conn, e)));
            false
        });
    }

    /// Connections for which events wait.
    pub fn edged(&self) -> impl Iterator<Item = usize> + '_ {
        self.edged.iter().copied()
    }

    /// Moves the connections that magent read, wrote or closed into `found`.
    pub fn touched(&mut self, found: &mut Vec<usize>) {
        for conn in self.touched.drain(..) {
            self.conns[conn].touched = false;
            found.push(conn);
        }
    }

    fn touch(&mut self, conn: usize) {
        if !std::mem::replace(&mut self.conns[conn].touched, true) {
            self.touched.push(conn);
        }
    }

    /// The other side writes; returns how much there was room for.
    pub fn put(&mut self, conn: usize, bytes: &[u8]) -> usize {
        let c = &mut self.conns[conn];
        // What is sent to who has gone is lost on the way; behind the end comes nothing.
        if c.gone || c.inn.reset || c.inn.fin {
            return bytes.len();
        }
        let n = bytes.len().min(c.inn.room());
        c.inn.put(&bytes[..n]);
        if n > 0 {
            self.edge(conn, Edges::READABLE);
        }
        n
    }

    /// The other side writes so many bytes that take no memory; magent must not look at them.
    pub fn put_void(&mut self, conn: usize, len: usize) {
        self.conns[conn].inn.put_void(len);
        self.edge(conn, Edges::READABLE);
    }

    /// The other side reads up to `most` bytes into `into`; returns how many.
    pub fn take(&mut self, conn: usize, most: usize, into: &mut Vec<u8>) -> usize {
        let out = &mut self.conns[conn].out;
        let bytes = out.take(most);
        into.extend_from_slice(bytes);
        let n = bytes.len();
        if n > 0 && std::mem::take(&mut out.starved) {
            self.edge(conn, Edges::WRITABLE);
        }
        n
    }

    /// The other side sends nothing more.
    pub fn fin(&mut self, conn: usize) {
        self.conns[conn].inn.fin = true;
        self.edge(conn, Edges::CLOSED);
    }

    /// The other side drops its end; with `reset` not politely.
    pub fn close(&mut self, conn: usize, reset: bool) {
        let c = &mut self.conns[conn];
        c.closed = true;
        c.inn.reset |= reset;
        c.out.clear();
        self.fin(conn);
        if reset {
            self.edge(conn, Edges::ALL);
        }
    }

    /// Somebody in between resets the connection. What the other side has received it still has.
    pub fn sever(&mut self, conn: usize) {
        let c = &mut self.conns[conn];
        c.inn.clear();
        (c.inn.reset, c.out.fin) = (true, true);
        self.edge(conn, Edges::ALL);
        self.touch(conn);
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
        let n = match c.choppy && whole > 1 && self.rng.often(300) {
            true => self.rng.range(1, whole as u64) as usize,
            false => whole,
        };
        c.inn.fill(&mut buf[..n]);
        if n < buf.len() && !c.inn.is_empty() {
            self.later.push((conn, Edges::READABLE));
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
        if c.closed || c.inn.reset {
            // The first bytes after the end are taken and lost; then the reset is known.
            if std::mem::replace(&mut c.inn.reset, true) || self.rng.often(500) {
                return Err(ErrorKind::BrokenPipe.into());
            }
            return Ok(whole);
        }
        let mut n = whole.min(c.out.room());
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
            match chopped {
                true => self.later.push((conn, Edges::WRITABLE)),
                false => c.out.starved = true,
            }
        }
        self.touch(conn);
        Ok(n)
    }
}

/// magent's end of a connection.
#[derive(Debug)]
pub struct End {
    pub net: Shared,
    pub conn: usize,
}

impl Socket for End {
    fn peer(&self) -> String {
        format!("end:{}", self.conn)
    }

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
        let c = &self.net.borrow().conns[self.conn];
        match c.connect {
            Connect::Pending => Ok(false),
            Connect::Stands if c.inn.reset => Err(ErrorKind::ConnectionReset.into()),
            Connect::Stands => Ok(true),
            Connect::Refused => Err(ErrorKind::ConnectionRefused.into()),
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let mut net = self.net.borrow_mut();
        let c = &mut net.conns[self.conn];
        if std::mem::take(&mut c.is_kept) {
            return;
        }
        c.gone = true;
        c.out.fin = true;
        net.touch(self.conn);
    }
}
