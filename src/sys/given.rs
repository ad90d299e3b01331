//! Sockets that listen when the process starts: systemd has made them, and tells their number.

use super::{check, reason};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

/// The first one's descriptor; the others follow.
const FIRST: RawFd = 3;

/// The sockets that `LISTEN_FDS` tells of, if `LISTEN_PID` is this process. To be called once, before
/// anything else is opened. Programs that this one starts do not get them.
///
/// # Errors
/// A line that names what is no listening stream socket.
pub fn given_sockets() -> Result<Vec<OwnedFd>, String> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    if number("LISTEN_PID") != Some(std::process::id()) {
        return Ok(Vec::new());
    }
    let count = number("LISTEN_FDS").and_then(|n| RawFd::try_from(n).ok());
    let end = FIRST.saturating_add(count.unwrap_or(0));
    let take = |fd| take(fd).map_err(|e| format!("LISTEN_FDS: descriptor {fd}: {}", reason(&e)));
    (FIRST..end).map(take).collect()
}

fn take(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: plain numbers; it fails where nothing is open.
    check(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: it is open, and was given to this process, which has opened nothing itself.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let is_stream = number_of(&socket, libc::SO_TYPE)? == libc::SOCK_STREAM;
    if !is_stream || number_of(&socket, libc::SO_ACCEPTCONN)? == 0 {
        return Err(io::Error::other("it is no listening stream socket"));
    }
    Ok(socket)
}

fn number_of(socket: &OwnedFd, option: libc::c_int) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut size = size_of::<libc::c_int>() as libc::socklen_t;
    let (fd, level) = (socket.as_fd().as_raw_fd(), libc::SOL_SOCKET);
    // SAFETY: the descriptor is borrowed, so it is open; value is an int of that size.
    check(unsafe { libc::getsockopt(fd, level, option, (&raw mut value).cast(), &raw mut size) })?;
    Ok(value)
}
