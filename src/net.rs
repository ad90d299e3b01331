//! Sockets, TCP and Unix alike: streams, listeners, connects. All of them non-blocking.

use crate::buffer::Queue;
use crate::config::{Address, ListenSpec};
use crate::files::{Owner, SocketInode};
use crate::sys;
use mio::event::Source;
use mio::{Interest, Registry, Token};
use std::fs;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

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

    /// What became of a connect: true once it stands, false while it is under way. To be asked
    /// at a writable event.
    ///
    /// # Errors
    /// Why it failed.
    fn connected(&mut self) -> io::Result<bool>;
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
    /// A connection that stands: the first calls tell what it is ready for.
    pub fn new(io: S) -> Conn<S> {
        Conn {
            io,
            readable: true,
            writable: true,
            ended: false,
            failed: false,
        }
    }

    /// A connection that is being opened: an event tells when it stands.
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

/// Apart, since so many slices cost more to prepare than a small write to copy.
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

/// Where clients come in. Dropping it closes it and removes its socket file.
pub struct Listener {
    spec: ListenSpec,
    socket: Accepting,
}

enum Accepting {
    Tcp(mio::net::TcpListener),
    Unix {
        listener: mio::net::UnixListener,
        file: SocketFile,
    },
}

impl Listener {
    /// Listens. A socket file that nobody listens on any more is replaced.
    ///
    /// # Errors
    /// What the system says, or that the path is in use or no socket.
    pub fn bind(spec: &ListenSpec, owner: Owner) -> io::Result<Listener> {
        let socket = match &spec.address {
            Address::Tcp(address) => Accepting::Tcp(mio::net::TcpListener::from_std(
                sys::listen_tcp(address, spec.backlog)?,
            )),
            Address::Unix(path) => bind_unix(path, spec, owner)?,
        };
        Ok(Listener {
            spec: spec.clone(),
            socket,
        })
    }

    /// As it was asked for.
    pub fn spec(&self) -> &ListenSpec {
        &self.spec
    }

    /// Takes over what a new configuration says about the same address: mode and backlog.
    ///
    /// # Errors
    /// What the system says; the listener goes on as it is then.
    pub fn adjust(&mut self, spec: &ListenSpec) -> io::Result<()> {
        if self.spec.backlog != spec.backlog {
            match &self.socket {
                Accepting::Tcp(l) => sys::set_backlog(l, spec.backlog)?,
                Accepting::Unix { listener, .. } => sys::set_backlog(listener, spec.backlog)?,
            }
            self.spec.backlog = spec.backlog;
        }
        if let Accepting::Unix { file, .. } = &self.socket {
            if self.spec.mode != spec.mode {
                let inode = SocketInode::hold(&file.path)?;
                if inode.id()? != file.id {
                    return Err(io::Error::other("it was replaced"));
                }
                inode.set_mode(spec.mode)?;
                self.spec.mode = spec.mode;
            }
        }
        Ok(())
    }

    /// The next client that waits, without delay of small packets.
    ///
    /// # Errors
    /// `WouldBlock` if none waits; what the system says.
    pub fn accept(&self) -> io::Result<Stream> {
        match &self.socket {
            Accepting::Tcp(listener) => {
                let (stream, _) = retry(|| listener.accept())?;
                // A client that is gone already is noticed at the first read.
                let _ = stream.set_nodelay(true);
                Ok(Stream::Tcp(stream))
            }
            Accepting::Unix { listener, .. } => {
                let (stream, _) = retry(|| listener.accept())?;
                Ok(Stream::Unix(stream))
            }
        }
    }

    /// Where it listens, with the port that the system chose for port 0.
    ///
    /// # Errors
    /// What the system says.
    pub fn local(&self) -> io::Result<Address> {
        match &self.socket {
            Accepting::Tcp(listener) => listener.local_addr().map(Address::Tcp),
            Accepting::Unix { file, .. } => Ok(Address::Unix(file.path.clone())),
        }
    }

    fn source(&mut self) -> &mut dyn Source {
        match &mut self.socket {
            Accepting::Tcp(listener) => listener,
            Accepting::Unix { listener, .. } => listener,
        }
    }
}

impl Source for Listener {
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

fn bind_unix(path: &Path, spec: &ListenSpec, owner: Owner) -> io::Result<Accepting> {
    make_way(path)?;
    // By umask, not by chmod: there must be no moment at which too many may connect.
    let bound = sys::with_umask(0o777 & !spec.mode, || {
        std::os::unix::net::UnixListener::bind(path)
    })?;
    let inode = SocketInode::hold(path)?;
    inode.give(owner)?;
    let file = SocketFile {
        path: path.to_path_buf(),
        id: inode.id()?,
    };
    sys::set_backlog(&bound, spec.backlog)?;
    bound.set_nonblocking(true)?;
    let listener = mio::net::UnixListener::from_std(bound);
    Ok(Accepting::Unix { listener, file })
}

/// Removes a socket file whose listener is gone, and nothing else.
fn make_way(path: &Path) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    if !found.file_type().is_socket() {
        return Err(io::Error::other("it exists and is not a socket"));
    }
    // Non-blocking: a listener whose accept queue is full answers `WouldBlock`.
    match mio::net::UnixStream::connect(path) {
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(e) if e.kind() != ErrorKind::WouldBlock => Err(e),
        _ => Err(io::Error::new(
            ErrorKind::AddrInUse,
            "Address already in use",
        )),
    }
}

/// The name of a Unix listener in the file system; removed when dropped.
struct SocketFile {
    path: PathBuf,
    /// Device and inode: a successor's file at the same path is left alone.
    id: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        match file_id(&self.path) {
            Ok(id) if id == self.id => {}
            _ => return,
        }
        if let Err(e) = fs::remove_file(&self.path) {
            let path = self.path.display();
            log::warn!("the socket {path} can't be removed: {}", sys::reason(&e));
        }
    }
}

fn file_id(path: &Path) -> io::Result<(u64, u64)> {
    let found = fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn spec(address: Address) -> ListenSpec {
        ListenSpec {
            address,
            mode: 0o640,
            backlog: 16,
        }
    }

    fn any_port() -> ListenSpec {
        spec(Address::Tcp("127.0.0.1:0".parse().unwrap()))
    }

    /// A folder of this test's own.
    fn folder(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("magent-net-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir(&dir).unwrap();
        dir
    }

    fn soon<T>(mut ask: impl FnMut() -> Option<T>) -> T {
        let end = Instant::now() + Duration::from_secs(5);
        loop {
            if let Some(answer) = ask() {
                return answer;
            }
            assert!(Instant::now() < end, "waited in vain");
            std::thread::yield_now();
        }
    }

    fn talk(listener: &Listener) {
        let mut here = connect(&listener.local().unwrap(), true).unwrap();
        let mut there = soon(|| listener.accept().ok());
        soon(|| here.connected().unwrap().then_some(()));
        let slices = [IoSlice::new(b"one "), IoSlice::new(b"two")];
        assert_eq!(here.write(&slices).unwrap(), 7);
        assert_eq!(here.write(&slices[..1]).unwrap(), 4);
        here.shutdown_write().unwrap();
        let (mut got, mut buf) = (Vec::new(), [0; 64]);
        while let n @ 1.. = soon(|| there.read(&mut buf).ok()) {
            got.extend_from_slice(&buf[..n]);
        }
        assert_eq!(got, b"one twoone ");
        let nothing = there.write(&[]).unwrap();
        assert_eq!(nothing, 0);
        assert_eq!(
            here.read(&mut buf).unwrap_err().kind(),
            ErrorKind::WouldBlock
        );
    }

    #[test]
    fn bytes_over_tcp() {
        talk(&Listener::bind(&any_port(), None).unwrap());
    }

    #[test]
    fn bytes_over_a_unix_socket() {
        let dir = folder("talk");
        let path = dir.join("s");
        let listener = Listener::bind(&spec(Address::Unix(path.clone())), None).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
        talk(&listener);
        drop(listener);
        assert!(!path.exists());
        fs::remove_dir(&dir).unwrap();
    }

    #[test]
    fn a_refused_connect_says_so() {
        let listener = Listener::bind(&any_port(), None).unwrap();
        let address = listener.local().unwrap();
        drop(listener);
        let outcome = match connect(&address, false) {
            Err(e) => e,
            Ok(mut stream) => soon(|| match stream.connected() {
                Ok(true) => panic!("nobody listens"),
                Ok(false) => None,
                Err(e) => Some(e),
            }),
        };
        assert_eq!(outcome.kind(), ErrorKind::ConnectionRefused);
        let nowhere = Address::Unix("/nonexistent/socket".into());
        assert_eq!(
            connect(&nowhere, false).unwrap_err().kind(),
            ErrorKind::NotFound
        );
    }

    #[test]
    fn only_a_stale_socket_is_replaced() {
        let dir = folder("stale");
        let path = dir.join("s");
        let spec = spec(Address::Unix(path.clone()));
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let listener = Listener::bind(&spec, None).unwrap();
        let in_use = Listener::bind(&spec, None).err().unwrap();
        assert_eq!(in_use.kind(), ErrorKind::AddrInUse);
        // That one knocked to see whether anybody listens.
        drop(soon(|| listener.accept().ok()));
        talk(&listener);

        // A successor's file stays when we go.
        fs::remove_file(&path).unwrap();
        let successor = Listener::bind(&spec, None).unwrap();
        drop(listener);
        talk(&successor);
        drop(successor);

        fs::write(&path, "precious").unwrap();
        let no_socket = Listener::bind(&spec, None).err().unwrap();
        assert_eq!(sys::reason(&no_socket), "it exists and is not a socket");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn mode_and_backlog_change_in_place() {
        let dir = folder("adjust");
        let path = dir.join("s");
        let mut wanted = spec(Address::Unix(path.clone()));
        let mut listener = Listener::bind(&wanted, None).unwrap();
        (wanted.mode, wanted.backlog) = (0o600, 99);
        listener.adjust(&wanted).unwrap();
        assert_eq!(listener.spec(), &wanted);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        talk(&listener);

        // Another file by that name keeps its mode.
        fs::write(dir.join("precious"), "").unwrap();
        let before = fs::metadata(dir.join("precious")).unwrap().mode();
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(dir.join("precious"), &path).unwrap();
        wanted.mode = 0o777;
        let refused = listener.adjust(&wanted).unwrap_err();
        assert_eq!(sys::reason(&refused), "it was replaced");
        assert_eq!(fs::metadata(dir.join("precious")).unwrap().mode(), before);
        drop(listener);
        fs::remove_dir_all(&dir).unwrap();
    }
}
