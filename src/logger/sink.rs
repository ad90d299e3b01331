//! Where lines go, without ever waiting for whoever reads them.
//!
//! | sink | a write returns at once because |
//! |---|---|
//! | plain file | it always does |
//! | pipe, fifo, terminal | it was opened anew with `O_NONBLOCK`, which no other process sees |
//! | the same, where it can't be opened (another user's) | `poll` said that there is room |
//! | socket | `MSG_DONTWAIT` |
//! | syslog | the socket is magent's own and non-blocking |

use crate::files;
use crate::sys;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

/// Bytes of one write at most: a pipe takes so many at once or not at all (`PIPE_BUF`).
pub(super) const WRITE_MAX: usize = 4096;

/// A file or what a process got as its stderr.
pub(super) struct Stream {
    file: File,
    way: Way,
    /// The end of a line that was taken in part; it goes before anything else.
    rest: Vec<u8>,
}

/// How a write is kept from waiting.
#[derive(Clone, Copy)]
enum Way {
    Write,
    Send,
    /// So many bytes at once, each time after a look whether there is room.
    Poll(usize),
}

impl Stream {
    /// The process's stderr.
    pub(super) fn stderr() -> io::Result<Stream> {
        let given = File::from(io::stderr().as_fd().try_clone_to_owned()?);
        let kind = given.metadata()?.file_type();
        if kind.is_socket() {
            return Ok(Stream::new(given, Way::Send));
        }
        // One that shares its position with other processes must be written through it.
        if kind.is_file() {
            return Ok(Stream::new(given, Way::Write));
        }
        let own = File::options()
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open("/proc/self/fd/2");
        Ok(match own {
            Ok(own) => Stream::new(own, Way::Write),
            Err(_) if kind.is_fifo() => Stream::new(given, Way::Poll(WRITE_MAX)),
            // A terminal may have room for one byte and no more.
            Err(_) => Stream::new(given, Way::Poll(1)),
        })
    }

    pub(super) fn open(path: &Path) -> io::Result<Stream> {
        Ok(Stream::new(files::open_log(path)?, Way::Write))
    }

    fn new(file: File, way: Way) -> Stream {
        Stream {
            file,
            way,
            rest: Vec::new(),
        }
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Takes whole lines, [`WRITE_MAX`] bytes at most, or nothing of them.
    ///
    /// # Errors
    /// Why nothing was taken; `WouldBlock` if there is no room.
    pub(super) fn put(&mut self, lines: &[u8]) -> io::Result<()> {
        self.put_rest()?;
        let n = self.write(lines)?;
        self.rest.extend_from_slice(&lines[n..]);
        // Where that fails, it is tried again before the next line.
        let _ = self.put_rest();
        Ok(())
    }

    fn put_rest(&mut self) -> io::Result<()> {
        let mut done = 0;
        let outcome = loop {
            if done == self.rest.len() {
                break Ok(());
            }
            match self.write(&self.rest[done..]) {
                Ok(n) => done += n,
                Err(e) => break Err(e),
            }
        };
        self.rest.drain(..done);
        outcome
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let once = || match self.way {
            Way::Write => (&self.file).write(bytes),
            Way::Send => sys::send_now(&self.file, bytes),
            Way::Poll(_) if !sys::has_room(&self.file)? => Err(ErrorKind::WouldBlock.into()),
            Way::Poll(at_once) => (&self.file).write(&bytes[..bytes.len().min(at_once)]),
        };
        loop {
            match once() {
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                answer => return answer,
            }
        }
    }
}

/// The system's log. It adds time and host itself.
pub(super) struct Syslog {
    path: PathBuf,
    /// None until the first line, and after a failure.
    socket: Option<UnixDatagram>,
}

impl Syslog {
    pub(super) fn new(path: &Path) -> Syslog {
        Syslog {
            path: path.to_path_buf(),
            socket: None,
        }
    }

    /// Sends one message.
    ///
    /// # Errors
    /// Nobody listens there, or reads too slowly.
    pub(super) fn put(&mut self, message: &[u8]) -> io::Result<()> {
        if let Some(socket) = &self.socket {
            match socket.send(message) {
                Ok(_) => return Ok(()),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Err(e),
                // It was started again: there is another socket by that name.
                Err(_) => self.socket = None,
            }
        }
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        socket.connect(&self.path)?;
        socket.send(message)?;
        self.socket = Some(socket);
        Ok(())
    }
}
