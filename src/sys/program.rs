//! The program of this process: where its file is, and how another one takes its place.
//!
//! ```text
//!  process ──fork──▶ child ──execve──▶ the program as it is now: does it know the state?
//!     │ execve
//!     ▼
//!  the program as it is now, in the same process
//! ```

use super::check;
use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// The program file and how it was started.
#[derive(Clone, Debug)]
pub struct Program {
    path: PathBuf,
    folder: PathBuf,
    args: Vec<OsString>,
}

/// Tells one content of a file from another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Stamp {
    /// That of the file as it is now.
    ///
    /// # Errors
    /// What the system says.
    pub fn of(path: &Path) -> io::Result<Stamp> {
        let found = fs::metadata(path)?;
        Ok(Stamp {
            device: found.dev(),
            inode: found.ino(),
            size: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
        })
    }
}

/// Pointers to strings, as `execve` wants them.
struct Strings {
    _held: Vec<CString>,
    pointers: Vec<*const libc::c_char>,
}

impl Strings {
    fn new(all: impl Iterator<Item = OsString>) -> io::Result<Strings> {
        let held: Result<Vec<CString>, _> = all.map(|s| CString::new(s.into_vec())).collect();
        let held = held?;
        let ends = held.iter().map(|s| s.as_ptr());
        Ok(Strings {
            pointers: ends.chain([std::ptr::null()]).collect(),
            _held: held,
        })
    }
}

/// A call of `execve`, with all that it needs.
struct Exec {
    path: CString,
    folder: CString,
    args: Strings,
    environment: Strings,
}

impl Exec {
    /// Returns only if it fails. Async-signal-safe: it allocates nothing.
    fn run(&self) -> io::Error {
        // Paths among the arguments may be relative.
        // SAFETY: the string ends in NUL. Where the folder is gone, absolute paths still do.
        unsafe { libc::chdir(self.folder.as_ptr()) };
        let (args, environment) = (&self.args.pointers, &self.environment.pointers);
        // SAFETY: all strings end in NUL, and both lists in a null pointer.
        unsafe { libc::execve(self.path.as_ptr(), args.as_ptr(), environment.as_ptr()) };
        io::Error::last_os_error()
    }
}

impl Program {
    /// That of this process, to be asked for at its start.
    ///
    /// # Errors
    /// Its path or its folder is not known.
    pub fn own() -> io::Result<Program> {
        // SAFETY: a plain number; the kernel's answer is 0 or lives as long as the process.
        let address = unsafe { libc::getauxval(libc::AT_EXECFN) } as *const libc::c_char;
        if address.is_null() {
            return Err(io::Error::other("the system does not tell its path"));
        }
        // SAFETY: not null, so it is the path, which ends in NUL.
        let path = unsafe { CStr::from_ptr(address) };
        let folder = std::env::current_dir()?;
        Ok(Program {
            path: folder.join(OsStr::from_bytes(path.to_bytes())),
            folder,
            args: std::env::args_os().collect(),
        })
    }

    /// Where its file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// With `words` behind its name, and this variable of the environment set, or not at all.
    fn exec(&self, words: &[String], variable: &str, value: Option<String>) -> io::Result<Exec> {
        let cstring = |path: &Path| CString::new(path.as_os_str().as_bytes());
        let name = self.args.iter().take(1).cloned();
        let words = words.iter().map(OsString::from);
        let args = name.chain(words).chain(self.args.iter().skip(1).cloned());
        let others = std::env::vars_os().filter(|(name, _)| name != variable);
        let own = value.map(|value| (variable.into(), value.into()));
        let environment = others
            .chain(own)
            .map(|(mut name, value): (OsString, OsString)| {
                name.push("=");
                name.push(value);
                name
            });
        Ok(Exec {
            path: cstring(&self.path)?,
            folder: cstring(&self.folder)?,
            args: Strings::new(args)?,
            environment: Strings::new(environment)?,
        })
    }

    /// The file as it is now takes the place of this program, with `variable` set in its environment.
    /// Returns only if it does not run.
    pub fn take_over(&self, variable: &str, value: String) -> io::Error {
        let before = std::env::current_dir();
        let error = match self.exec(&[], variable, Some(value)) {
            Ok(exec) => exec.run(),
            Err(e) => e,
        };
        let _ = before.and_then(std::env::set_current_dir);
        error
    }

    /// The file as it is now runs in a child, with `words` behind its name. What it says goes to `said`.
    /// `prepare` runs in the child before that, on a copy of all memory, and must not write to the log; `kept` is
    /// the descriptor that the new program gets.
    ///
    /// # Errors
    /// What the system says.
    pub fn try_out(
        &self,
        words: &[String],
        variable: &str,
        said: BorrowedFd<'_>,
        kept: BorrowedFd<'_>,
        prepare: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<Child> {
        let exec = self.exec(words, variable, None)?;
        // SAFETY: the child goes on in this thread only. Others (those that look names up) may hold locks, but
        // the allocator's are seen to by the C library, and no other is taken before `execve`.
        let pid = check(unsafe { libc::fork() })?;
        if pid > 0 {
            return Ok(Child { pid });
        }
        let prepared = catch_unwind(AssertUnwindSafe(prepare));
        let error = match prepared {
            Ok(Ok(())) => {
                for standard in 1..=2 {
                    // SAFETY: both are open.
                    unsafe { libc::dup2(said.as_raw_fd(), standard) };
                }
                // SAFETY: it is open.
                unsafe { libc::fcntl(kept.as_raw_fd(), libc::F_SETFD, 0) };
                exec.run()
            }
            Ok(Err(e)) => e,
            Err(_) => io::Error::other("the state cannot be written"),
        };
        let text = super::reason(&error);
        // SAFETY: so many bytes are read. Then it ends at once: what it shares with its parent stays.
        unsafe {
            libc::write(said.as_raw_fd(), text.as_ptr().cast(), text.len());
            libc::_exit(127)
        }
    }
}

/// A process that this one has started.
#[derive(Debug)]
pub struct Child {
    pid: libc::pid_t,
}

/// How a child ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// It still runs.
    None,
    /// With this status.
    Status(i32),
    /// By this signal.
    Signal(i32),
}

impl Child {
    /// Whether it has ended. To be asked until it has, so that nothing is left of it.
    pub fn end(&self) -> End {
        let mut status = 0;
        // SAFETY: status is ours to write.
        match unsafe { libc::waitpid(self.pid, &mut status, libc::WNOHANG) } {
            0 => End::None,
            -1 => End::Status(0),
            _ if libc::WIFSIGNALED(status) => End::Signal(libc::WTERMSIG(status)),
            _ => End::Status(libc::WEXITSTATUS(status)),
        }
    }

    /// Ends it, and waits for that.
    pub fn kill(&self) {
        // SAFETY: plain numbers; nobody else has this pid before it was waited for.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, std::ptr::null_mut(), 0);
        }
    }
}
