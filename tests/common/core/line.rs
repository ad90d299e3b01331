//! Connections in memory, as narrow, slow, broken or endless as a test wants them.

use magent::net::Socket;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice};
use std::rc::Rc;

/// Both directions of one connection; the far end is the test's.
#[derive(Default)]
pub struct Line {
    /// On the way to magent.
    pub to_magent: VecDeque<u8>,
    /// On the way from magent.
    pub from_magent: VecDeque<u8>,
    /// Bytes that `from_magent` may hold.
    pub room: usize,
    /// magent wanted to write and could not.
    pub blocked: bool,
    /// The test's side has closed its half.
    pub ended: bool,
    /// magent has let go of it.
    pub gone: bool,
    /// Runs of bytes that magent reads though nobody ever wrote them: how many of `to_magent` come
    /// before each, and its length.
    pub voids: VecDeque<(usize, usize)>,
    /// The test's side is gone for good: neither reads nor writes work.
    pub reset: bool,
    /// Counts what magent writes instead of keeping it.
    pub sunk: Option<usize>,
}

impl Line {
    /// Fills `buf` with the bytes before the next void.
    fn read_bytes(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let before = self.voids.front().map_or(usize::MAX, |v| v.0);
        // All that fits, as a socket does: a deque alone would stop where it wraps.
        let n = buf.len().min(self.to_magent.len()).min(before);
        io::Read::read_exact(&mut self.to_magent, &mut buf[..n])?;
        if let Some(void) = self.voids.front_mut() {
            void.0 -= n;
        }
        Ok(n)
    }

    /// Passes so many bytes of a void that comes next, and leaves `buf` as it is.
    fn read_void(&mut self, len: usize) -> usize {
        let Some((0, left)) = self.voids.front_mut() else {
            return 0;
        };
        let n = len.min(*left);
        *left -= n;
        if *left == 0 {
            self.voids.pop_front();
        }
        n
    }
}

/// magent's end of a connection.
#[derive(Debug)]
pub struct End(pub Shared);

/// A connection as both ends hold it.
#[derive(Clone)]
pub struct Shared(pub Rc<RefCell<Line>>);

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Line")
    }
}

impl Socket for End {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let line = &mut *self.0.0.borrow_mut();
        if line.reset {
            return Err(ErrorKind::ConnectionReset.into());
        }
        if line.to_magent.is_empty() && line.voids.is_empty() {
            return if line.ended {
                Ok(0)
            } else {
                Err(ErrorKind::WouldBlock.into())
            };
        }
        let mut read = 0;
        loop {
            let n = line.read_bytes(&mut buf[read..])?;
            let void = line.read_void(buf.len() - read - n);
            read += n + void;
            if n + void == 0 {
                return Ok(read);
            }
        }
    }

    fn write(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let line = &mut *self.0.0.borrow_mut();
        if line.reset {
            return Err(ErrorKind::BrokenPipe.into());
        }
        if let Some(sunk) = &mut line.sunk {
            let all = bufs.iter().map(|b| b.len()).sum();
            *sunk += all;
            return Ok(all);
        }
        let mut written = 0;
        for buf in bufs {
            let n = buf.len().min(line.room - line.from_magent.len());
            line.from_magent.extend(&buf[..n]);
            written += n;
            if n < buf.len() {
                line.blocked = true;
                break;
            }
        }
        if written == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        Ok(written)
    }

    fn shutdown_write(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn connected(&mut self) -> io::Result<bool> {
        Ok(true)
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.0.0.borrow_mut().gone = true;
    }
}

impl Shared {
    /// An open one.
    pub fn new() -> Shared {
        Shared(Rc::new(RefCell::new(Line {
            room: usize::MAX,
            ..Line::default()
        })))
    }
}
