//! What one program of a process leaves to the next one: a sealed file in memory, and open descriptors.

use super::check;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Nothing of the file changes any more.
const SEALS: libc::c_int =
    libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE | libc::F_SEAL_SEAL;

/// An empty file in memory.
///
/// # Errors
/// What the system says.
pub fn memory_file() -> io::Result<File> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: the name ends in NUL.
    let fd = check(unsafe { libc::memfd_create(c"magent".as_ptr(), flags) })?;
    // SAFETY: fresh, so nobody else owns it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Seals it: nobody changes it from now on.
///
/// # Errors
/// What the system says.
pub fn seal(file: &File) -> io::Result<()> {
    // SAFETY: the descriptor is borrowed, so it is open.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, SEALS) }).map(drop)
}

/// Takes a sealed file over that the program before has left.
///
/// # Errors
/// There is none under this number.
pub fn sealed_file(fd: RawFd) -> io::Result<File> {
    // SAFETY: plain numbers; it fails where no such file is open.
    let seals = check(unsafe { libc::fcntl(fd, libc::F_GET_SEALS) })?;
    if seals != SEALS {
        return Err(io::Error::other("it is not sealed"));
    }
    inherited(fd).map(File::from)
}

/// Takes a descriptor over that the program before has left, once. Programs that this one starts do not get it.
///
/// # Errors
/// Nothing is open under this number.
pub fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    bequeath(fd, false)?;
    // SAFETY: it is open, and the program before has left it to this one.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether the next program of this process gets a descriptor.
///
/// # Errors
/// Nothing is open under this number.
pub fn bequeath(fd: RawFd, stays: bool) -> io::Result<()> {
    let flags = if stays { 0 } else { libc::FD_CLOEXEC };
    // SAFETY: plain numbers.
    check(unsafe { libc::fcntl(fd, libc::F_SETFD, flags) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};
    use std::os::fd::IntoRawFd;

    #[test]
    fn what_is_sealed_stays_as_it_is() {
        let mut file = memory_file().unwrap();
        file.write_all(b"state").unwrap();
        let fd = file.as_raw_fd();
        assert!(sealed_file(fd).is_err(), "not yet");
        seal(&file).unwrap();
        assert!(file.write_all(b"more").is_err() && file.set_len(0).is_err());
        let mut file = sealed_file(file.into_raw_fd()).unwrap();
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "state");
        assert!(sealed_file(-1).is_err() && inherited(-1).is_err());
    }
}
