//! The command: options → everything that can fail → the background → the loop → the status.

mod pid_file;

use magent::config::{Action, Config, LogTarget};
use magent::event_loop::{self, Bound, EventLoop};
use magent::files::Owner;
use magent::logger;
use magent::sys::{self, Readiness, Signals, reason};
use pid_file::PidFile;
use std::ffi::OsString;
use std::io::{self, Write};
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
    logger::start(&config.log, config.verbose.into(), owner).map_err(|e| match &config.log {
        LogTarget::File(path) => format!("-L {}: {}", path.display(), reason(&e)),
        _ => format!("the log: {}", reason(&e)),
    })?;
    // Nobody reads a daemon's stderr, so a panic must go where all else goes.
    std::panic::set_hook(Box::new(|panic| log::error!("{panic}")));
    Ok(())
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
    event_loop.tell_ready();
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
            .map_err(|e| format!("-P {}: {}", file.path().display(), reason(&e)))?;
    }
    EventLoop::new(config, bound, signals, owner)
        .map_err(|e| format!("waiting for events: {}", reason(&e)))
}
