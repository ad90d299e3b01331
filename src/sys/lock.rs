//! A file that one process at a time has for itself: the lock belongs to the open file, so it goes on in a child and
//! in another program, and ends with the last of them.

use super::check;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};

/// Locks an open file; false if another process has it. Where locks are not to be had nobody has one.
///
/// # Errors
/// What the system says.
pub fn lock(file: &impl AsFd) -> io::Result<bool> {
    // SAFETY: the descriptor is borrowed, so it is open.
    let answer = unsafe { libc::flock(file.as_fd().as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
    match check(answer) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOLCK | libc::ENOTSUP)) => Ok(true),
        Err(e) => Err(e),
    }
}

/// Ends a lock, if there is one.
pub fn unlock(fd: RawFd) {
    // SAFETY: plain numbers; nothing happens where no file is open.
    unsafe { libc::flock(fd, libc::LOCK_UN) };
}
