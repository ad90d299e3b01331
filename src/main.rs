//! The command: options → everything that can fail → the background → the loop → the status.

use magent::config::{Action, Config, LogTarget};
use magent::event_loop::{self, Bound, EventLoop};
use magent::logger;
use magent::net::Owner;
use magent::sys::{self, Readiness, Signals, State, reason};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown, lchown};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let text = match Config::from_args(&args) {
        Ok(Action::Run(config)) => return run(config),
        Ok(Action::Help(text) | Action::Version(text) | Action::Check(text)) => text,
        Err(e) => {
            complain(&e.line);
            return ExitCode::from(u8::try_from(e.status).unwrap_or(1));
        }
    };
    let end = if text.ends_with('\n') { "" } else { "\n" };
    // A reader like `head` may be gone already.
    let _ = write!(io::stdout(), "{text}{end}");
    ExitCode::SUCCESS
}

/// A stderr that is closed changes nothing.
fn complain(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

fn run(config: Config) -> ExitCode {
    let prepared = match prepare(&config) {
        Ok(prepared) => prepared,
        Err(line) => {
            complain(&format!("magent: {line}"));
            return ExitCode::FAILURE;
        }
    };
    let readiness = if config.daemon {
        match sys::daemonise() {
            Ok(readiness) => readiness,
            Err(e) => {
                complain(&format!("magent: going to the background: {}", reason(&e)));
                return ExitCode::FAILURE;
            }
        }
    } else {
        Readiness::foreground()
    };
    serve(config, prepared, readiness)
}

/// What was made while the shell still waits and the process may still do as root does.
struct Prepared {
    bound: Bound,
    owner: Owner,
    pid_file: Option<PidFile>,
}

/// Everything that can fail, in an order that leaves nothing behind if it does.
fn prepare(config: &Config) -> Result<Prepared, String> {
    let identity = sys::identity(config.user.as_deref(), config.group.as_deref())?;
    // As with memcached, -u means something to root only.
    let identity = identity.filter(|_| sys::is_root());
    let owner = identity.as_ref().map(|i| (i.uid, i.gid));
    sys::raise_nofile(event_loop::descriptors(config))
        .map_err(|why| format!("-n {}: {why}", config.clients))?;
    start_log(config, owner)?;
    let bound = event_loop::bind(config, owner)?;
    let pid_file = match &config.pid_file {
        Some(path) => Some(
            PidFile::open(path, owner)
                .map_err(|e| format!("-P {}: {}", path.display(), reason(&e)))?,
        ),
        None => None,
    };
    if let Some(identity) = &identity {
        sys::drop_privileges(identity).map_err(|why| {
            let user = config.user.as_deref().unwrap_or("root");
            format!("-u {user}: {why}")
        })?;
    }
    Ok(Prepared {
        bound,
        owner,
        pid_file,
    })
}

fn start_log(config: &Config, owner: Owner) -> Result<(), String> {
    let target = &config.log;
    let failed = |path: &Path, e: io::Error| format!("-L {}: {}", path.display(), reason(&e));
    match (logger::start(target, config.verbose.into()), target) {
        (Err(e), LogTarget::File(path)) => return Err(failed(path, e)),
        (Err(e), _) => return Err(format!("the log: {}", reason(&e))),
        (Ok(()), LogTarget::File(path)) => {
            give(path, owner).map_err(|e| failed(path, e))?;
        }
        (Ok(()), _) => {}
    }
    // Nobody reads a daemon's stderr, so a panic must go where all else goes.
    std::panic::set_hook(Box::new(|panic| log::error!("{panic}")));
    Ok(())
}

/// Gives a file to `owner`; links and devices (`/dev/stderr`) stay whose they are.
fn give(path: &Path, owner: Owner) -> io::Result<()> {
    match owner {
        Some((uid, gid)) if fs::symlink_metadata(path)?.is_file() => {
            lchown(path, Some(uid), Some(gid))
        }
        _ => Ok(()),
    }
}

/// The loop's whole life, in the process that runs it.
fn serve(config: Config, prepared: Prepared, readiness: Readiness) -> ExitCode {
    let Prepared {
        bound,
        owner,
        mut pid_file,
    } = prepared;
    let started = start(config, bound, owner, pid_file.as_mut());
    let event_loop = match started {
        Ok(event_loop) => event_loop,
        Err(line) => {
            drop(pid_file);
            readiness.failed(&format!("magent: {line}"))
        }
    };
    readiness.ready();
    event_loop::tell_systemd(State::Ready);
    log::info!("serving, process {}", std::process::id());
    let outcome = event_loop.run();
    drop(pid_file);
    match outcome {
        Ok(()) => {
            log::info!("stopped");
            ExitCode::SUCCESS
        }
        Err(e) => {
            log::error!("no more events can be had: {}", reason(&e));
            ExitCode::FAILURE
        }
    }
}

fn start(
    config: Config,
    bound: Bound,
    owner: Owner,
    pid_file: Option<&mut PidFile>,
) -> Result<EventLoop, String> {
    let signals = Signals::install().map_err(|e| format!("signals: {}", reason(&e)))?;
    if let Some(file) = pid_file {
        file.write()
            .map_err(|e| format!("-P {}: {}", file.path.display(), reason(&e)))?;
    }
    EventLoop::new(config, bound, signals, owner)
        .map_err(|e| format!("waiting for events: {}", reason(&e)))
}

/// The pid file, kept open: where it can't be removed any more it can still be emptied.
struct PidFile {
    path: PathBuf,
    file: File,
    /// Whose pid it holds. Until it holds ours, dropping it removes it only if we made it.
    written: bool,
    made: bool,
}

impl PidFile {
    /// Opens it, so that it is known that it can be written; what it holds stays.
    fn open(path: &Path, owner: Owner) -> io::Result<PidFile> {
        let made = fs::symlink_metadata(path).is_err();
        // Reading too, or opening a pipe that nobody reads would never return.
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .open(path)?;
        let pid_file = PidFile {
            path: path.to_path_buf(),
            file,
            written: false,
            made,
        };
        if let (Some((uid, gid)), true) = (owner, pid_file.is_ours()) {
            fchown(&pid_file.file, Some(uid), Some(gid))?;
        }
        Ok(pid_file)
    }

    /// Writes the pid of this process.
    fn write(&mut self) -> io::Result<()> {
        self.written = true;
        self.empty()?;
        writeln!(self.file, "{}", std::process::id())
    }

    fn empty(&self) -> io::Result<()> {
        match self.file.metadata()?.is_file() {
            true => self.file.set_len(0),
            false => Ok(()),
        }
    }

    /// True if the path still names the file that was opened, and it is a plain one.
    fn is_ours(&self) -> bool {
        match (fs::symlink_metadata(&self.path), self.file.metadata()) {
            (Ok(there), Ok(here)) => {
                there.is_file() && (there.dev(), there.ino()) == (here.dev(), here.ino())
            }
            _ => false,
        }
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if !(self.written || self.made) || !self.is_ours() {
            return;
        }
        if let Err(e) = fs::remove_file(&self.path) {
            let path = self.path.display();
            log::warn!("the pid file {path} can't be removed: {}", reason(&e));
            // An empty one misleads nobody into sending signals to a stranger.
            if let Err(e) = self.empty() {
                log::warn!("the pid file {path} can't be emptied: {}", reason(&e));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("magent-{}-{name}", std::process::id()));
        let _ = fs::remove_file(&path);
        path
    }

    #[test]
    fn a_pid_file_comes_and_goes() {
        let path = path("comes");
        let mut file = PidFile::open(&path, None).unwrap();
        file.write().unwrap();
        let pid = format!("{}\n", std::process::id());
        assert_eq!(fs::read_to_string(&path).unwrap(), pid);
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn a_failed_start_leaves_no_pid_file_and_spoils_none() {
        let path = path("failed");
        drop(PidFile::open(&path, None).unwrap());
        assert!(!path.exists());
        fs::write(&path, "123456\n").unwrap();
        drop(PidFile::open(&path, None).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "123456\n");
        PidFile::open(&path, None).unwrap().write().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_successors_pid_file_stays() {
        let path = path("successor");
        let mut file = PidFile::open(&path, None).unwrap();
        file.write().unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "123456\n").unwrap();
        drop(file);
        assert_eq!(fs::read_to_string(&path).unwrap(), "123456\n");
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn devices_are_written_but_never_removed() {
        let null = Path::new("/dev/null");
        let mut file = PidFile::open(null, Some((65534, 65534))).unwrap();
        file.write().unwrap();
        drop(file);
        assert_eq!(fs::metadata(null).unwrap().uid(), 0);
    }
}
