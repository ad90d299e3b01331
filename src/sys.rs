//! All libc, all unsafe: what the standard library does not offer and the daemon needs.
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

#![allow(unsafe_code)]

mod notify;
mod nowait;

pub use notify::{State, notify};
pub use nowait::{has_room, send_now};

use std::ffi::{CStr, CString};
use std::io::{self, Read, Write};
use std::mem::{MaybeUninit, size_of};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

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

// ---------------------------------------------------------------- going to the background

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

// ---------------------------------------------------------------------------- privileges

/// Who to become.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// The login name, if the user is in the system's list: its other groups come along.
    login: Option<CString>,
}

/// True if the process may become somebody else.
pub fn is_root() -> bool {
    user() == 0
}

/// Who the process is to the kernel now.
pub fn user() -> u32 {
    // SAFETY: no arguments.
    unsafe { libc::geteuid() }
}

/// Gives away the file behind a descriptor, also one that was opened with `O_PATH`.
///
/// # Errors
/// What the system says.
pub fn give(file: impl AsFd, uid: u32, gid: u32) -> io::Result<()> {
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: the path is empty and ends in a NUL.
    let done = unsafe { libc::fchownat(fd, c"".as_ptr(), uid, gid, libc::AT_EMPTY_PATH) };
    check(done).map(drop)
}

/// Resolves `-u` and `-g`: names first, then numbers. `None` if neither is given.
///
/// # Errors
/// One line naming the option and its value.
pub fn identity(user: Option<&str>, group: Option<&str>) -> Result<Option<Identity>, String> {
    if user.is_none() && group.is_none() {
        return Ok(None);
    }
    let gid = group.map(find_group).transpose()?;
    let Some(user) = user else {
        // SAFETY: no arguments.
        let uid = unsafe { libc::geteuid() };
        return Ok(gid.map(|gid| Identity {
            uid,
            gid,
            login: None,
        }));
    };
    let found = find_user(user).map_err(|e| format!("-u {user}: {}", reason(&e)))?;
    match (found, gid, user.parse()) {
        (Some(found), gid, _) => Ok(Some(Identity {
            gid: gid.unwrap_or(found.gid),
            ..found
        })),
        (None, Some(gid), Ok(uid)) => Ok(Some(Identity {
            uid,
            gid,
            login: None,
        })),
        (None, None, Ok(_)) => Err(format!(
            "-u {user}: no user has this number, so -g must name the group"
        )),
        (None, _, Err(_)) => Err(format!("-u {user}: no such user")),
    }
}

fn find_group(group: &str) -> Result<u32, String> {
    let found = match CString::new(group) {
        Ok(name) => look_up(
            |entry, buffer, size, result| {
                // SAFETY: name ends in NUL; the rest is look_up's promise.
                unsafe { libc::getgrnam_r(name.as_ptr(), entry, buffer, size, result) }
            },
            |entry: &libc::group| entry.gr_gid,
        )
        .map_err(|e| format!("-g {group}: {}", reason(&e)))?,
        Err(_) => None,
    };
    found
        .or_else(|| group.parse().ok())
        .ok_or_else(|| format!("-g {group}: no such group"))
}

fn find_user(user: &str) -> io::Result<Option<Identity>> {
    let read = |entry: &libc::passwd| Identity {
        uid: entry.pw_uid,
        gid: entry.pw_gid,
        // SAFETY: look_up calls this while the entry's strings are alive; they end in NUL.
        login: Some(unsafe { CStr::from_ptr(entry.pw_name) }.to_owned()),
    };
    let Ok(name) = CString::new(user) else {
        return Ok(None);
    };
    let by_name = look_up(
        |entry, buffer, size, result| {
            // SAFETY: name ends in NUL; the rest is look_up's promise.
            unsafe { libc::getpwnam_r(name.as_ptr(), entry, buffer, size, result) }
        },
        read,
    )?;
    match (by_name, user.parse::<u32>()) {
        (None, Ok(uid)) => look_up(
            |entry, buffer, size, result| {
                // SAFETY: look_up's promise.
                unsafe { libc::getpwuid_r(uid, entry, buffer, size, result) }
            },
            read,
        ),
        (by_name, _) => Ok(by_name),
    }
}

/// Calls one of the `get…_r` family with a buffer that grows until the entry fits. `call` gets
/// an entry to fill, a buffer with its size, and where to put the address of the result;
/// `read` sees the entry while the buffer that it points into is alive.
fn look_up<T, R>(
    call: impl Fn(*mut T, *mut libc::c_char, usize, *mut *mut T) -> libc::c_int,
    read: impl Fn(&T) -> R,
) -> io::Result<Option<R>> {
    let mut entry = MaybeUninit::<T>::uninit();
    let mut buffer: Vec<libc::c_char> = vec![0; 1024];
    loop {
        let mut result = std::ptr::null_mut();
        let status = call(
            entry.as_mut_ptr(),
            buffer.as_mut_ptr(),
            buffer.len(),
            &mut result,
        );
        match status {
            // SAFETY: not null, so it is the entry, filled in.
            _ if !result.is_null() => return Ok(Some(read(unsafe { &*result }))),
            libc::ERANGE if buffer.len() < 1 << 20 => buffer.resize(buffer.len() * 4, 0),
            // POSIX lets an absent name be told in any of these ways.
            0 | libc::ENOENT | libc::ESRCH | libc::EBADF | libc::EPERM => return Ok(None),
            error => return Err(io::Error::from_raw_os_error(error)),
        }
    }
}

/// Becomes `identity` for good: groups, group, user, and then makes sure that there is no way
/// back to root.
///
/// # Errors
/// The call that failed and why; the process must end then, since it is half changed.
pub fn drop_privileges(identity: &Identity) -> Result<(), String> {
    let (uid, gid) = (identity.uid, identity.gid);
    let step = |name: &str, answer: libc::c_int| {
        check(answer).map_err(|e| format!("{name}: {}", reason(&e)))
    };
    match &identity.login {
        // SAFETY: login ends in NUL.
        Some(login) => step("initgroups", unsafe {
            libc::initgroups(login.as_ptr(), gid)
        })?,
        // SAFETY: one group stands at the address given.
        None => step("setgroups", unsafe { libc::setgroups(1, &gid) })?,
    };
    // SAFETY: plain numbers.
    step("setgid", unsafe { libc::setgid(gid) })?;
    // SAFETY: plain numbers.
    step("setuid", unsafe { libc::setuid(uid) })?;
    // SAFETY: plain numbers.
    if uid != 0 && unsafe { libc::setuid(0) } != -1 {
        return Err("root could be regained after setuid".to_string());
    }
    // SAFETY: plain numbers.
    if uid != 0 && gid != 0 && unsafe { libc::setgid(0) } != -1 {
        return Err("root's group could be regained after setgid".to_string());
    }
    Ok(())
}

// -------------------------------------------------------------------------------- limits

/// Makes room for `need` descriptors; the hard limit is raised too where that is allowed.
///
/// # Errors
/// A line that names the need and the limit.
pub fn raise_nofile(need: u64) -> Result<(), String> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: limit is ours to write.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) })
        .map_err(|e| format!("the limit of descriptors: {}", reason(&e)))?;
    if limit.rlim_cur >= need {
        return Ok(());
    }
    let raised = libc::rlimit {
        rlim_cur: need,
        rlim_max: limit.rlim_max.max(need),
    };
    // SAFETY: raised is read only.
    match check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raised) }) {
        Ok(_) => Ok(()),
        Err(_) => Err(format!(
            "{need} descriptors are needed, the limit is {} (ulimit -Hn)",
            limit.rlim_max
        )),
    }
}

/// Gives free memory back to the system. glibc keeps what small blocks hold otherwise.
pub fn trim_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: a plain number; glibc locks its own heap.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Gives the whole pages of `bytes` back to the system; they hold anything from now on.
pub fn release_pages(bytes: &mut [u8]) {
    const PAGE: usize = 4096;
    let skip = bytes.as_ptr().align_offset(PAGE).min(bytes.len());
    let pages = &mut bytes[skip..];
    let len = pages.len() / PAGE * PAGE;
    if len > 0 {
        // SAFETY: the pages are all the caller's own, and any bytes are valid ones. It is refused,
        // and nothing happens, where pages are larger.
        unsafe {
            libc::madvise(pages.as_mut_ptr().cast(), len, libc::MADV_DONTNEED);
        }
    }
}

/// Time that the process spent so far: in user code, in the kernel.
pub fn cpu_time() -> (Duration, Duration) {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: usage is ours to write.
    let answer = unsafe { libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) };
    debug_assert_eq!(answer, 0, "getrusage only fails for bad arguments");
    // SAFETY: all zero bits are a valid rusage, had the call failed.
    let usage = unsafe { usage.assume_init() };
    let time = |t: libc::timeval| {
        Duration::from_secs(t.tv_sec as u64) + Duration::from_micros(t.tv_usec as u64)
    };
    (time(usage.ru_utime), time(usage.ru_stime))
}

/// The system's monotonic clock in µs, which `Instant` does not show.
fn monotonic_us() -> u64 {
    clock(libc::CLOCK_MONOTONIC) / 1000
}

/// Processor time that this thread spent so far, in nanoseconds.
pub fn thread_time() -> u64 {
    clock(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// A clock of the system's, in nanoseconds.
fn clock(which: libc::clockid_t) -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: time is ours to write.
    unsafe { libc::clock_gettime(which, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Runs `f` under a umask of its own, for files whose mode no later call could set in time.
pub fn with_umask<T>(mask: u32, f: impl FnOnce() -> T) -> T {
    // SAFETY: a plain number.
    let before = unsafe { libc::umask(mask as libc::mode_t) };
    let answer = f();
    // SAFETY: a plain number.
    unsafe { libc::umask(before) };
    answer
}

// ------------------------------------------------------------------------------- signals

/// A signal that the loop acts on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signal {
    /// TERM and INT.
    Terminate,
    /// HUP.
    Hangup,
}

/// Signals as bytes of a stream that can be watched like any other.
pub struct Signals {
    stream: mio::net::UnixStream,
}

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
    /// Takes TERM, INT and HUP over and ignores PIPE. Once per process.
    ///
    /// # Errors
    /// What the system says.
    pub fn install() -> io::Result<Signals> {
        let (signals, writer) = Signals::pair()?;
        // The handler may run until the process ends, so its end is never closed.
        SIGNAL_STREAM.store(writer.into_raw_fd(), Ordering::Relaxed);
        handle(libc::SIGPIPE, libc::SIG_IGN)?;
        let handler = on_signal as extern "C" fn(libc::c_int) as libc::sighandler_t;
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
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
                Ok(1) if i32::from(byte[0]) == libc::SIGHUP => return Some(Signal::Hangup),
                Ok(1) => return Some(Signal::Terminate),
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
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: set is ours to write.
    check(unsafe { libc::sigemptyset(set.as_mut_ptr()) })?;
    // SAFETY: set was made by the line above.
    check(unsafe { libc::sigaddset(set.as_mut_ptr(), signal) })?;
    // Whoever started magent may have blocked it.
    // SAFETY: set is complete.
    check(unsafe { libc::sigprocmask(libc::SIG_UNBLOCK, set.as_ptr(), std::ptr::null_mut()) })?;
    Ok(())
}

// ------------------------------------------------------------------------------- sockets

/// A listening TCP socket, non-blocking. An IPv6 one takes IPv6 only, so that `0.0.0.0` and
/// `::` can have the same port. Accepted connections inherit keepalive, as with memcached: a
/// client whose machine died gives its place back some day.
///
/// # Errors
/// What the system says.
pub fn listen_tcp(address: &SocketAddr, backlog: u32) -> io::Result<TcpListener> {
    let family = match address {
        SocketAddr::V4(_) => libc::AF_INET,
        SocketAddr::V6(_) => libc::AF_INET6,
    };
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: plain numbers.
    let fd = check(unsafe { libc::socket(family, kind, 0) })?;
    // SAFETY: fresh, so nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    set_option(&socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    set_option(&socket, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1)?;
    if address.is_ipv6() {
        set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
    }
    bind(&socket, address)?;
    set_backlog(&socket, backlog)?;
    Ok(TcpListener::from(socket))
}

fn bind(socket: &OwnedFd, address: &SocketAddr) -> io::Result<()> {
    let answer = match address {
        SocketAddr::V4(v4) => {
            let name = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr {
                    s_addr: u32::from_ne_bytes(v4.ip().octets()),
                },
                sin_zero: [0; 8],
            };
            let size = size_of::<libc::sockaddr_in>() as libc::socklen_t;
            // SAFETY: name is a whole sockaddr_in of that size.
            unsafe { libc::bind(socket.as_raw_fd(), (&raw const name).cast(), size) }
        }
        SocketAddr::V6(v6) => {
            let name = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr {
                    s6_addr: v6.ip().octets(),
                },
                sin6_scope_id: v6.scope_id(),
            };
            let size = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
            // SAFETY: name is a whole sockaddr_in6 of that size.
            unsafe { libc::bind(socket.as_raw_fd(), (&raw const name).cast(), size) }
        }
    };
    check(answer).map(|_| ())
}

/// Starts listening, or changes the length of the accept queue of a socket that listens.
///
/// # Errors
/// What the system says.
pub fn set_backlog(socket: &impl AsFd, backlog: u32) -> io::Result<()> {
    let backlog = libc::c_int::try_from(backlog).unwrap_or(libc::c_int::MAX);
    // SAFETY: the descriptor is borrowed, so it is open.
    check(unsafe { libc::listen(socket.as_fd().as_raw_fd(), backlog) }).map(|_| ())
}

/// Lets the system find out that a silent peer is gone.
///
/// # Errors
/// What the system says.
pub fn keep_alive(socket: &impl AsFd) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1)
}

fn set_option(
    socket: &impl AsFd,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let size = size_of::<libc::c_int>() as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the descriptor is borrowed, so it is open; value is an int of that size.
    check(unsafe { libc::setsockopt(fd, level, option, (&raw const value).cast(), size) })
        .map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_of_users() {
        let nobody = identity(Some("nobody"), None).unwrap().unwrap();
        assert!(nobody.uid != 0 && nobody.login.is_some());
        let by_number = identity(Some(&nobody.uid.to_string()), None).unwrap();
        assert_eq!(by_number, Some(nobody.clone()));
        let in_root = identity(Some("nobody"), Some("0")).unwrap().unwrap();
        assert_eq!((in_root.uid, in_root.gid), (nobody.uid, 0));
        assert_eq!(identity(None, None), Ok(None));
        let bare = identity(Some("4123456789"), Some("12")).unwrap().unwrap();
        assert_eq!((bare.uid, bare.gid, bare.login), (4123456789, 12, None));
    }

    #[test]
    fn errors_name_option_and_value() {
        let error = |user, group| identity(user, group).unwrap_err();
        assert_eq!(error(Some("no-such"), None), "-u no-such: no such user");
        assert_eq!(error(Some(""), Some("0")), "-u : no such user");
        assert_eq!(error(None, Some("no-such")), "-g no-such: no such group");
        assert!(error(Some("4123456789"), None).starts_with("-u 4123456789: "));
        let e = io::Error::from_raw_os_error(libc::EADDRINUSE);
        assert_eq!(reason(&e), "Address already in use");
        assert_eq!(reason(&io::Error::other("plain")), "plain");
    }

    #[test]
    fn limits_name_need_and_limit() {
        assert_eq!(raise_nofile(16), Ok(()));
        // Nobody, not even root, may go beyond fs.nr_open.
        let line = raise_nofile(1 << 40).unwrap_err();
        assert!(line.starts_with("1099511627776 descriptors are needed, the limit is "));
    }

    #[test]
    fn signals_come_out_in_order() {
        let (mut signals, mut writer) = Signals::pair().unwrap();
        assert_eq!(signals.take(), None);
        writer
            .write_all(&[libc::SIGHUP as u8, libc::SIGTERM as u8, libc::SIGINT as u8])
            .unwrap();
        assert_eq!(signals.take(), Some(Signal::Hangup));
        assert_eq!(signals.take(), Some(Signal::Terminate));
        assert_eq!(signals.take(), Some(Signal::Terminate));
        assert_eq!(signals.take(), None);
    }

    #[test]
    fn both_families_share_a_port() {
        let v4 = listen_tcp(&"0.0.0.0:0".parse().unwrap(), 5).unwrap();
        let port = v4.local_addr().unwrap().port();
        assert_eq!(
            listen_tcp(&v4.local_addr().unwrap(), 5).unwrap_err().kind(),
            io::ErrorKind::AddrInUse
        );
        // A machine without IPv6 has nothing to share.
        if listen_tcp(&"[::]:0".parse().unwrap(), 5).is_ok() {
            let v6 = SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, port));
            let v6 = listen_tcp(&v6, 5).unwrap();
            assert_eq!(v6.local_addr().unwrap().port(), port);
        }
    }

    #[test]
    fn cpu_time_grows() {
        let spent = || {
            let (user, system) = cpu_time();
            user + system
        };
        let before = spent();
        while spent() == before {
            std::hint::black_box(vec![1u8; 4096]);
        }
        trim_memory();
    }
}
