//! Sockets that one program of a process leaves to the next one, named by numbers.

use super::{Accepting, Given, Listener, Socket, SocketFile, Stream};
use crate::config::Address;
use crate::sys;
use std::io::{self, ErrorKind, IoSlice};
use std::os::fd::{AsRawFd, RawFd};

impl Stream {
    /// Its descriptor, with what kind it is in the lowest bit.
    pub fn number(&self) -> u64 {
        match self {
            Stream::Tcp(s) => (s.as_raw_fd() as u64) << 1,
            Stream::Unix(s) => (s.as_raw_fd() as u64) << 1 | 1,
        }
    }

    /// The stream of such a number; once.
    ///
    /// # Errors
    /// There is none.
    pub fn inherited(number: u64) -> io::Result<Stream> {
        let fd = sys::inherited(descriptor(number)?)?;
        Ok(match number & 1 {
            0 => Stream::Tcp(mio::net::TcpStream::from_std(fd.into())),
            _ => Stream::Unix(mio::net::UnixStream::from_std(fd.into())),
        })
    }
}

/// The descriptor of [`Stream::number`].
///
/// # Errors
/// It is no such number.
pub fn descriptor(number: u64) -> io::Result<RawFd> {
    RawFd::try_from(number >> 1).map_err(|_| ErrorKind::InvalidInput.into())
}

impl Listener {
    /// Its descriptor, and device and inode of the socket file that it removes at its end.
    pub fn number(&self) -> (RawFd, Option<(u64, u64)>) {
        match &self.socket {
            Accepting::Tcp(listener) => (listener.as_raw_fd(), None),
            Accepting::Unix { listener, file } => {
                (listener.as_raw_fd(), file.as_ref().map(|f| f.id))
            }
        }
    }
}

impl Given {
    /// The listener of such numbers; once.
    ///
    /// # Errors
    /// There is none.
    pub fn inherited((fd, own): (RawFd, Option<(u64, u64)>)) -> io::Result<Given> {
        let mut given = Given::new(sys::inherited(fd)?)?;
        if let (Accepting::Unix { file, .. }, Address::Unix(path)) =
            (&mut given.socket, &given.address)
        {
            *file = own.map(|id| SocketFile {
                path: path.clone(),
                id,
            });
        }
        Ok(given)
    }
}

/// In place of a socket, where a state is only tried out.
#[derive(Debug)]
pub struct Blank;

impl Socket for Blank {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(ErrorKind::WouldBlock.into())
    }

    fn write(&mut self, _: &[IoSlice<'_>]) -> io::Result<usize> {
        Err(ErrorKind::WouldBlock.into())
    }

    fn shutdown_write(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn connected(&mut self) -> io::Result<bool> {
        Ok(true)
    }

    fn peer(&self) -> String {
        String::new()
    }
}
