//! Going to the background.
//!
//! ```text
//!  shell ── magent ──fork──▶ (setsid) ──fork──▶ daemon
//!             │                                    │
//!             └───── waits for "ready" or ◀────────┘
//!                    the one line that says why not
//! ```
//!
//! Everything that can fail is done before the fork where that is possible; the rest is
//! reported through the pair of sockets above, so that the shell's status is always the truth.

use super::{check, reason};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

/// How a process tells whoever started it that it serves, or why it can't.
pub struct Readiness(Option<UnixStream>);

impl Readiness {
    /// For a process that stays in the foreground: its stderr and its status tell.
    pub fn foreground() -> Readiness {
        Readiness(None)
    }

    /// It serves: the waiting parent ends with status 0.
    pub fn ready(self) {
        if let Some(mut parent) = self.0 {
            // A parent that was killed meanwhile is no reason to stop.
            let _ = parent.write_all(&[READY]);
        }
    }

    /// It can't: the line appears on the starter's stderr, the status is 1.
    pub fn failed(self, line: &str) -> ! {
        match self.0 {
            Some(mut parent) => {
                let _ = parent.write_all(line.as_bytes());
            }
            None => {
                let _ = writeln!(io::stderr(), "{line}");
            }
        }
        std::process::exit(1)
    }
}

/// Says that the daemon serves. No error line holds it.
const READY: u8 = 0;

/// Goes to the background. Returns in the daemon only: the starter's process waits for
/// [`Readiness`] and ends with its outcome. The process must have no other thread.
///
/// # Errors
/// In the starter's process, if the first fork fails.
pub fn daemonise() -> io::Result<Readiness> {
    let (from_child, to_parent) = UnixStream::pair()?;
    if fork()? {
        drop(to_parent);
        end(wait_for_daemon(from_child));
    }
    drop(from_child);
    let readiness = Readiness(Some(to_parent));
    match detach() {
        Ok(()) => Ok(readiness),
        Err(e) => readiness.failed(&format!("magent: going to the background: {}", reason(&e))),
    }
}

/// The child's half of [`daemonise`].
fn detach() -> io::Result<()> {
    // SAFETY: no arguments.
    check(unsafe { libc::setsid() })?;
    // The second fork: a session without its leader never gets a terminal again.
    if fork()? {
        end(0);
    }
    // A daemon must not keep a file system busy. All paths are absolute by now.
    std::env::set_current_dir("/")?;
    let null = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    for standard in 0..=2 {
        // SAFETY: both descriptors are open; the standard library made sure of 0 to 2.
        check(unsafe { libc::dup2(null.as_raw_fd(), standard) })?;
    }
    Ok(())
}

/// The status for the shell, once the daemon serves or has said why not.
fn wait_for_daemon(mut daemon: UnixStream) -> i32 {
    let mut said = Vec::new();
    let mut byte = [0; 256];
    loop {
        match daemon.read(&mut byte) {
            Ok(0) => break,
            Ok(n) => said.extend_from_slice(&byte[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        }
        if said.first() == Some(&READY) {
            return 0;
        }
    }
    if said.is_empty() {
        said.extend_from_slice(b"magent: the daemon ended before it could serve");
    }
    said.push(b'\n');
    let _ = io::stderr().write_all(&said);
    1
}

/// True in the parent.
fn fork() -> io::Result<bool> {
    // SAFETY: there is one thread, so the child finds no lock held by a thread it lacks.
    Ok(check(unsafe { libc::fork() })? != 0)
}

/// Ends at once: what the child shares with its parent (buffers, files) is left to the other.
fn end(status: i32) -> ! {
    // SAFETY: never returns.
    unsafe { libc::_exit(status) }
}
