//! All libc, all unsafe: what the standard library does not offer and the daemon needs.

#![allow(unsafe_code)]

mod daemon;
mod given;
mod handover;
mod identity;
mod lock;
mod notify;
mod nowait;
mod process;
mod program;
mod signals;
mod sockets;

pub use daemon::{Readiness, daemonise};
pub use given::given_sockets;
pub use handover::{bequeath, inherited, memory_file, seal, sealed_file};
pub use identity::{Identity, drop_privileges, give, identity, is_root, user};
pub use lock::{lock, unlock};
pub use notify::{State, notify};
pub use nowait::{has_room, send_now};
pub use process::{
    cpu_time, host_name, monotonic, raise_nofile, release_pages, resident_memory, thread_time,
    trim_memory, with_umask,
};
pub use program::{Child, End, Program, Stamp};
pub use signals::{Signal, Signals, hold_signals};
pub use sockets::{keep_alive, listen_tcp, peer_process, set_backlog};

use std::io;

/// The answer of a call that returns -1 for failure.
fn check(answer: libc::c_int) -> io::Result<libc::c_int> {
    if answer == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(answer)
}

/// What went wrong, in the system's words: `Permission denied`, without `(os error 13)`.
pub fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error ") {
        Some(at) => text[..at].to_string(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_have_no_number() {
        let e = io::Error::from_raw_os_error(libc::EADDRINUSE);
        assert_eq!(reason(&e), "Address already in use");
        assert_eq!(reason(&io::Error::other("plain")), "plain");
    }
}
