//! Writes that return at once on descriptors that others hold too. `O_NONBLOCK` belongs to
//! the open file, so setting it would reach the shell's terminal and the other end of a pipe.

use super::check;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Sends what a socket takes now.
///
/// # Errors
/// `WouldBlock` if it takes nothing; what the system says.
pub fn send_now(socket: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the pointer and the length are those of one slice.
    let n = unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), flags) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// True if a pipe has room for `PIPE_BUF` bytes, or if a write to it would fail at once.
///
/// # Errors
/// What the system says.
pub fn has_room(pipe: impl AsFd) -> io::Result<bool> {
    let mut wanted = libc::pollfd {
        fd: pipe.as_fd().as_raw_fd(),
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: one entry, as the count says; it does not wait.
    let found = check(unsafe { libc::poll(&mut wanted, 1, 0) })?;
    Ok(found > 0)
}
