//! TERM, INT, HUP and USR2 as bytes of a stream that the loop polls.

use super::check;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::IntoRawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicI32, Ordering};

/// A signal that the loop acts on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signal {
    /// TERM and INT.
    Terminate,
    /// HUP.
    Hangup,
    /// USR2.
    Upgrade,
}

/// Signals as bytes of a stream that can be watched like any other.
pub struct Signals {
    stream: mio::net::UnixStream,
}

/// What the loop acts on.
const OURS: [libc::c_int; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGUSR2];

/// Where the handler writes; -1 until [`Signals::install`]. A handler can reach nothing else.
static SIGNAL_STREAM: AtomicI32 = AtomicI32::new(-1);

/// Writes the signal's number, the one thing that a handler may safely do.
extern "C" fn on_signal(signal: libc::c_int) {
    // SAFETY: the address of this thread's errno is always valid.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    let before = unsafe { *errno };
    let byte = signal as u8;
    let stream = SIGNAL_STREAM.load(Ordering::Relaxed);
    // SAFETY: one byte is read; write is async-signal-safe. A full stream holds enough signals.
    unsafe { libc::write(stream, (&raw const byte).cast(), 1) };
    // SAFETY: as above.
    unsafe { *errno = before };
}

impl Signals {
    /// Takes [`OURS`] over and ignores PIPE. Once per process.
    ///
    /// # Errors
    /// What the system says.
    pub fn install() -> io::Result<Signals> {
        let (signals, writer) = Signals::pair()?;
        // The handler may run until the process ends, so its end is never closed.
        SIGNAL_STREAM.store(writer.into_raw_fd(), Ordering::Relaxed);
        handle(libc::SIGPIPE, libc::SIG_IGN)?;
        let handler = on_signal as extern "C" fn(libc::c_int) as libc::sighandler_t;
        for signal in OURS {
            handle(signal, handler)?;
        }
        Ok(signals)
    }

    /// Signals that come from the stream returned beside them, for tests of the loop.
    ///
    /// # Errors
    /// What the system says.
    pub fn pair() -> io::Result<(Signals, UnixStream)> {
        let (stream, writer) = UnixStream::pair()?;
        stream.set_nonblocking(true)?;
        writer.set_nonblocking(true)?;
        let stream = mio::net::UnixStream::from_std(stream);
        Ok((Signals { stream }, writer))
    }

    /// What to watch for readability.
    pub fn source(&mut self) -> &mut impl mio::event::Source {
        &mut self.stream
    }

    /// The next signal that came and was not taken yet.
    pub fn take(&mut self) -> Option<Signal> {
        let mut byte = [0];
        loop {
            match self.stream.read(&mut byte) {
                Ok(1) => {
                    return Some(match i32::from(byte[0]) {
                        libc::SIGHUP => Signal::Hangup,
                        libc::SIGUSR2 => Signal::Upgrade,
                        _ => Signal::Terminate,
                    });
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                _ => return None,
            }
        }
    }
}

fn handle(signal: libc::c_int, handler: libc::sighandler_t) -> io::Result<()> {
    // SAFETY: all zero bits are a valid sigaction: no flags, no mask.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = handler;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: action is complete; the handler does only what a handler may.
    check(unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) })?;
    // Whoever started magent may have blocked it.
    mask(libc::SIG_UNBLOCK, &[signal])
}

/// Holds the signals that the loop acts on back: they are kept for the next program, or for when they are
/// let through again.
///
/// # Errors
/// What the system says.
pub fn hold_signals(held: bool) -> io::Result<()> {
    let how = if held {
        libc::SIG_BLOCK
    } else {
        libc::SIG_UNBLOCK
    };
    mask(how, &OURS)
}

fn mask(how: libc::c_int, signals: &[libc::c_int]) -> io::Result<()> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: set is ours to write.
    check(unsafe { libc::sigemptyset(set.as_mut_ptr()) })?;
    for signal in signals {
        // SAFETY: set was made by the line above.
        check(unsafe { libc::sigaddset(set.as_mut_ptr(), *signal) })?;
    }
    // SAFETY: set is complete.
    check(unsafe { libc::sigprocmask(how, set.as_ptr(), std::ptr::null_mut()) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn signals_come_out_in_order() {
        let (mut signals, mut writer) = Signals::pair().unwrap();
        assert_eq!(signals.take(), None);
        writer
            .write_all(&[libc::SIGHUP, libc::SIGTERM, libc::SIGINT, libc::SIGUSR2].map(|s| s as u8))
            .unwrap();
        assert_eq!(signals.take(), Some(Signal::Hangup));
        assert_eq!(signals.take(), Some(Signal::Terminate));
        assert_eq!(signals.take(), Some(Signal::Terminate));
        assert_eq!(signals.take(), Some(Signal::Upgrade));
        assert_eq!(signals.take(), None);
    }
}
