//! Sockets, TCP and Unix alike, all of them non-blocking: streams, what is known of their
//! readiness, and connects.

mod handover;
mod listener;

pub use handover::{Blank, descriptor};
use listener::{Accepting, SocketFile};
pub use listener::{Given, Listener};

use crate::buffer::Queue;
use crate::config::Address;
use crate::sys;
use mio::event::Source;
use mio::{Interest, Registry, Token};
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::Shutdown;

/// What the proxy needs of a connection; the core's only type parameter, so that all of it
/// runs in tests without a socket.
pub trait Socket {
    /// Reads what is there; 0 at the peer's end, `WouldBlock` if nothing is there.
    ///
    /// # Errors
    /// What the system says; never `Interrupted`.
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize>;

    /// Writes as much of `bufs` as the kernel takes.
    ///
    /// # Errors
    /// What the system says; never `Interrupted`.
    fn write(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Tells the peer that no more bytes come.
    ///
    /// # Errors
    /// What the system says.
    fn shutdown_write(&mut self) -> io::Result<()>;

    /// What became of a connect: true once it is established, false while it is under way. To be asked
    /// at a writable event.
    ///
    /// # Errors
    /// Why it failed.
    fn connected(&mut self) -> io::Result<bool>;

    /// Who is at the other end, for people: `127.0.0.1:41234`, or `unix:PID` of a local process.
    fn peer(&self) -> String;
}

/// Slices handed to one `writev`; the kernel takes at most 1024.
const SLICES: usize = 64;

/// A socket and what it is ready for. Sockets are registered once and for both directions, so
/// readiness is state: set by an event, cleared by what a call came to.
#[derive(Debug)]
pub struct Conn<S> {
    io: S,
    readable: bool,
    writable: bool,
    /// The peer has closed its half: read on to the end.
    ended: bool,
    /// A call failed: it did not end by the peer's own end of stream.
    failed: bool,
}

impl<S: Socket> Conn<S> {
    /// An established connection. It is taken to be ready; the first calls tell otherwise.
    pub fn new(io: S) -> Conn<S> {
        Conn {
            io,
            readable: true,
            writable: true,
            ended: false,
            failed: false,
        }
    }

    /// A connection that is being opened: an event tells when it is established.
    pub fn connecting(io: S) -> Conn<S> {
        Conn {
            io,
            readable: false,
            writable: false,
            ended: false,
            failed: false,
        }
    }

    /// An event of its socket.
    pub fn note(&mut self, readable: bool, writable: bool, closed: bool) {
        self.readable |= readable | closed;
        self.writable |= writable;
        self.ended |= closed;
    }

    /// True if a read may bring something.
    #[inline]
    pub fn is_readable(&self) -> bool {
        self.readable
    }

    /// True if a write may succeed.
    #[inline]
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// True if the peer will send nothing more.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// True if it was lost otherwise than by the peer's own end of stream.
    pub fn has_failed(&self) -> bool {
        self.failed
    }

    /// Reads once; `None` if nothing is there, 0 at the end. A short read means that the socket is
    /// drained, unless its end is already known to be there too.
    ///
    /// # Errors
    /// What the system says.
    #[inline]
    pub fn read(&mut self, buf: &mut [u8]) -> io::Result<Option<usize>> {
        match self.io.read(buf) {
            Ok(n) => {
                if n == 0 || (n < buf.len() && !self.ended) {
                    self.readable = false;
                }
                self.ended |= n == 0;
                Ok(Some(n))
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                self.readable = false;
                Ok(None)
            }
            Err(e) => {
                self.readable = false;
                (self.ended, self.failed) = (true, true);
                Err(e)
            }
        }
    }

    /// Writes the bytes of `queue` from stream offset `at` on, `most` of them at most:
    /// how many went out, and in how many calls. A short write means that the socket is full.
    ///
    /// # Errors
    /// What the system says.
    #[inline]
    pub fn write(&mut self, queue: &Queue, at: u64, most: usize) -> io::Result<(usize, usize)> {
        let (mut bytes, mut calls) = (0, 0);
        while self.writable && at + (bytes as u64) < queue.end() && bytes < most {
            let written = write_queue(&mut self.io, queue, at + bytes as u64, most - bytes);
            self.failed |= written.is_err();
            let (n, wanted) = written?;
            calls += 1;
            bytes += n;
            self.writable = n == wanted;
        }
        Ok((bytes, calls))
    }

    /// See [`Socket::shutdown_write`].
    ///
    /// # Errors
    /// What the system says.
    pub fn shutdown_write(&mut self) -> io::Result<()> {
        self.io.shutdown_write()
    }

    /// The socket itself.
    pub fn socket(&self) -> &S {
        &self.io
    }

    /// See [`Socket::peer`].
    pub fn peer(&self) -> String {
        self.io.peer()
    }

    /// See [`Socket::connected`].
    ///
    /// # Errors
    /// Why it failed.
    pub fn connected(&mut self) -> io::Result<bool> {
        self.io.connected()
    }
}

/// One `write` or `writev` of the queue from `at` on: how much went out, and how much was offered.
fn write_queue<S: Socket>(
    io: &mut S,
    queue: &Queue,
    at: u64,
    most: usize,
) -> io::Result<(usize, usize)> {
    let mut one = [IoSlice::new(&[])];
    queue.slices(at, most, &mut one);
    // A queue of small requests or answers is one piece.
    if at + one[0].len() as u64 == queue.end() || one[0].len() == most {
        return write_offered(io, &one);
    }
    write_pieces(io, queue, at, most)
}

/// A function of its own, since so many slices cost more to prepare than a small write to copy.
#[inline(never)]
fn write_pieces<S: Socket>(
    io: &mut S,
    queue: &Queue,
    at: u64,
    most: usize,
) -> io::Result<(usize, usize)> {
    let mut slices = [IoSlice::new(&[]); SLICES];
    let n = queue.slices(at, most, &mut slices);
    write_offered(io, &slices[..n])
}

fn write_offered<S: Socket>(io: &mut S, slices: &[IoSlice<'_>]) -> io::Result<(usize, usize)> {
    let wanted = slices.iter().map(|s| s.len()).sum();
    match io.write(slices) {
        Ok(0) if wanted > 0 => Err(ErrorKind::WriteZero.into()),
        Ok(n) => Ok((n, wanted)),
        Err(e) if e.kind() == ErrorKind::WouldBlock => Ok((0, wanted)),
        Err(e) => Err(e),
    }
}

/// A connection to a client or to a server. Dropping it closes it.
#[derive(Debug)]
pub enum Stream {
    /// Over TCP.
    Tcp(mio::net::TcpStream),
    /// Over a Unix socket.
    Unix(mio::net::UnixStream),
}

/// Repeats a call that a signal cut short.
fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            answer => return answer,
        }
    }
}

/// `writev` is for several slices only: `write` is cheaper for the common one.
fn write_slices(to: &mut impl Write, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
    match bufs {
        [one] => retry(|| to.write(one)),
        several => retry(|| to.write_vectored(several)),
    }
}

impl Socket for Stream {
    #[inline]
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(s) => retry(|| s.read(buf)),
            Stream::Unix(s) => retry(|| s.read(buf)),
        }
    }

    #[inline]
    fn write(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Stream::Tcp(s) => write_slices(s, bufs),
            Stream::Unix(s) => write_slices(s, bufs),
        }
    }

    fn shutdown_write(&mut self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }

    fn connected(&mut self) -> io::Result<bool> {
        let (error, peer) = match self {
            Stream::Tcp(s) => (s.take_error()?, s.peer_addr().map(drop)),
            Stream::Unix(s) => (s.take_error()?, s.peer_addr().map(drop)),
        };
        match (error, peer) {
            (Some(e), _) => Err(e),
            (None, Ok(())) => Ok(true),
            (None, Err(e)) if e.kind() == ErrorKind::NotConnected => Ok(false),
            (None, Err(e)) => Err(e),
        }
    }

    fn peer(&self) -> String {
        match self {
            Stream::Tcp(s) => s
                .peer_addr()
                .map_or_else(|_| "gone".into(), |a| a.to_string()),
            Stream::Unix(s) => {
                sys::peer_process(s).map_or_else(|| "unix".into(), |p| format!("unix:{p}"))
            }
        }
    }
}

impl Stream {
    /// Closes one direction or both for whoever holds the socket.
    ///
    /// # Errors
    /// What the system says.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        match self {
            Stream::Tcp(s) => s.shutdown(how),
            Stream::Unix(s) => s.shutdown(how),
        }
    }

    fn source(&mut self) -> &mut dyn Source {
        match self {
            Stream::Tcp(s) => s,
            Stream::Unix(s) => s,
        }
    }
}

impl Source for Stream {
    fn register(&mut self, to: &Registry, token: Token, what: Interest) -> io::Result<()> {
        self.source().register(to, token, what)
    }

    fn reregister(&mut self, to: &Registry, token: Token, what: Interest) -> io::Result<()> {
        self.source().reregister(to, token, what)
    }

    fn deregister(&mut self, from: &Registry) -> io::Result<()> {
        self.source().deregister(from)
    }
}

/// Starts a connect; [`Socket::connected`] tells its outcome.
///
/// # Errors
/// What is known at once: no route, no such socket file, no descriptor left.
pub fn connect(address: &Address, keepalive: bool) -> io::Result<Stream> {
    match address {
        Address::Tcp(address) => {
            let stream = mio::net::TcpStream::connect(*address)?;
            stream.set_nodelay(true)?;
            if keepalive {
                sys::keep_alive(&stream)?;
            }
            Ok(Stream::Tcp(stream))
        }
        Address::Unix(path) => Ok(Stream::Unix(mio::net::UnixStream::connect(path)?)),
    }
}

#[cfg(test)]
mod tests;
