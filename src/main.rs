//! The command: options → everything that can fail → the background → the loop → the status.

mod pid_file;

use magent::config::{Action, Config, LogTarget, Prepared};
use magent::event_loop::{self, Bound, EventLoop, State, TRY_OUT};
use magent::files::Owner;
use magent::logger;
use magent::net::Given;
use magent::sys::{self, Identity, Program, Readiness, Signals, reason};
use pid_file::PidFile;
use std::ffi::OsString;
use std::io::{self, ErrorKind, Write};
use std::os::fd::RawFd;
use std::process::ExitCode;

fn main() -> ExitCode {
    let program = Program::own();
    let mut args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let state = match &args[..] {
        [word, state, ..] if word == TRY_OUT => Some(state.to_string_lossy().into_owned()),
        _ => None,
    };
    args.drain(..if state.is_some() { 2 } else { 0 });
    match Config::from_args(&args) {
        Ok(Action::Run(config)) => match state {
            Some(state) => match try_out(config, &state) {
                Ok(text) => print(text),
                Err(line) => fail(&line),
            },
            None => run(config, program),
        },
        Ok(Action::Check { config, subject }) => match verdict(config, &subject) {
            Ok(text) => print(&text),
            Err(line) => fail(&line),
        },
        Ok(Action::Help(text) | Action::Version(text)) => print(&text),
        Err(e) => {
            complain(&e.line);
            ExitCode::from(u8::try_from(e.status).unwrap_or(1))
        }
    }
}

fn print(text: &str) -> ExitCode {
    match io::stdout().write_all(text.as_bytes()) {
        // A reader like `head` may be gone already.
        Err(e) if e.kind() != ErrorKind::BrokenPipe => fail(&format!("stdout: {}", reason(&e))),
        _ => ExitCode::SUCCESS,
    }
}

/// A stderr that is closed changes nothing.
fn complain(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

fn fail(line: &str) -> ExitCode {
    complain(&format!("magent: {line}"));
    ExitCode::FAILURE
}

/// What `-t` says of what can run: its warnings, and that it is valid. Nothing is opened or bound.
fn verdict(config: Config, subject: &str) -> Result<String, String> {
    let identity = sys::identity(config.user.as_deref(), config.group.as_deref())?;
    let mut doubts = doubts(&config, identity.as_ref());
    doubts.extend(config.unknown_hosts());
    let Prepared {
        config, warnings, ..
    } = Prepared::new(config);
    let mut text = String::new();
    for warning in warnings.iter().chain(&doubts) {
        text.push_str(&format!("magent: warning: {warning}\n"));
    }
    let pools: Vec<&str> = config.pools.iter().map(|p| p.name.as_str()).collect();
    text.push_str(&format!(
        "magent: {subject}: valid; pools: {}\n",
        pools.join(" ")
    ));
    Ok(text)
}

/// A process that is to be replaced asks whether this program can go on with its state: all that can fail
/// is done that leaves no trace.
fn try_out(config: Config, state: &str) -> Result<&'static str, String> {
    sys::identity(config.user.as_deref(), config.group.as_deref())?;
    raise_nofile(&config)?;
    start_log(&config, None)?;
    // What is logged may go where the verdict goes. What is doubtful was said at the start.
    log::set_max_level(log::LevelFilter::Error);
    event_loop::try_out(state, Prepared::new(config))
}

fn run(config: Config, program: io::Result<Program>) -> ExitCode {
    let made = match prepare(config) {
        Ok(made) => made,
        Err(line) => return fail(&line),
    };
    let config = &made.prepared.config;
    let goes_on = made.state.is_some();
    // The log says them too, and in the foreground without -L it is stderr.
    if config.log != LogTarget::Stderr {
        for warning in &made.prepared.warnings {
            complain(&format!("magent: warning: {warning}"));
        }
    }
    let readiness = if config.daemon && goes_on {
        // It is one. As at its start, it must not keep a file system busy.
        match std::env::set_current_dir("/") {
            Ok(()) => Readiness::foreground(),
            Err(e) => return fail(&format!("/: {}", reason(&e))),
        }
    } else if config.daemon {
        match sys::daemonise() {
            Ok(readiness) => readiness,
            Err(e) => return fail(&format!("going to the background: {}", reason(&e))),
        }
    } else {
        Readiness::foreground()
    };
    serve(made, readiness, program)
}

/// What was made while the shell still waits and the process may still do as root does.
struct Made {
    prepared: Prepared,
    bound: Bound,
    owner: Owner,
    pid_file: Option<PidFile>,
    /// What the program before this one has left.
    state: Option<State>,
}

/// Sockets that systemd made (`LISTEN_FDS`).
fn given() -> Result<Vec<Given>, String> {
    let sockets = sys::given_sockets()?.into_iter().map(Given::new);
    let all: io::Result<Vec<Given>> = sockets.collect();
    all.map_err(|e| format!("LISTEN_FDS: {}", reason(&e)))
}

/// Everything that can fail, in an order that leaves nothing behind if it does.
fn prepare(config: Config) -> Result<Made, String> {
    let state = State::left()?;
    // First of all: they are known by their numbers.
    let given = match &state {
        Some(state) => {
            state.suits(&config)?;
            state.listeners()?
        }
        None => given()?,
    };
    let identity = sys::identity(config.user.as_deref(), config.group.as_deref())?;
    let mut prepared = Prepared::new(config);
    match &state {
        None => prepared
            .warnings
            .extend(doubts(&prepared.config, identity.as_ref())),
        // They were said at the start.
        Some(_) => prepared.warnings.clear(),
    }
    let config = &prepared.config;
    // As with memcached, -u means something to root only.
    let identity = identity.filter(|_| sys::is_root());
    let owner = identity.as_ref().map(|i| (i.uid, i.gid));
    raise_nofile(config)?;
    start_log(config, owner)?;
    let bound = event_loop::bind(config, owner, given)?;
    let left = state.as_ref().map(State::pid_file).transpose()?;
    let pid_file = match (&config.pid_file, left.flatten()) {
        (Some(path), Some(file)) => Some(PidFile::inherited(path, file)),
        (Some(path), None) => Some(
            PidFile::open(path, owner)
                .map_err(|e| format!("-P {}: {}", path.display(), reason(&e)))?,
        ),
        (None, _) => None,
    };
    if let Some(identity) = &identity {
        sys::drop_privileges(identity).map_err(|why| {
            let user = config.user.as_deref().unwrap_or("root");
            format!("-u {user}: {why}")
        })?;
    }
    Ok(Made {
        prepared,
        bound,
        owner,
        pid_file,
        state,
    })
}

fn raise_nofile(config: &Config) -> Result<(), String> {
    sys::raise_nofile(event_loop::descriptors(config))
        .map_err(|why| format!("-n {}: {why}", config.clients))
}

/// What of the command line has no effect, or leaves more rights than are needed; a line each.
fn doubts(config: &Config, identity: Option<&Identity>) -> Vec<String> {
    let mut all = config.unused.clone();
    for door in config.admin.iter().filter(|door| door.is_public()) {
        let advice = "name 127.0.0.1 or a socket unless a firewall stands before it";
        let door = door.place();
        all.push(format!(
            "--admin {door}: whoever reaches it may stop service; {advice}"
        ));
    }
    if sys::is_root() {
        if config.user.is_none() {
            let advice = "add -u USER, or -u root if that is meant";
            all.push(format!("no -u: it runs as root; {advice}"));
        }
        return all;
    }
    let why = |who| {
        format!(
            "has no effect, since only root can change its {who}; start it as root or leave it out"
        )
    };
    match &config.user {
        Some(user) if identity.is_none_or(|i| i.uid != sys::user()) => {
            all.push(format!("-u {user}: {}", why("user")));
        }
        _ => {}
    }
    if let Some(group) = &config.group {
        all.push(format!("-g {group}: {}", why("group")));
    }
    all
}

fn start_log(config: &Config, owner: Owner) -> Result<(), String> {
    logger::start(&config.log, config.verbose, owner).map_err(|e| match &config.log {
        LogTarget::File(path) => format!("-L {}: {}", path.display(), reason(&e)),
        _ => format!("the log: {}", reason(&e)),
    })?;
    // Nobody reads a daemon's stderr, so a panic must go where all else goes.
    std::panic::set_hook(Box::new(|panic| log::error!("{panic}")));
    Ok(())
}

/// The loop's whole life, in the process that runs it.
fn serve(made: Made, readiness: Readiness, program: io::Result<Program>) -> ExitCode {
    let Made {
        prepared,
        bound,
        owner,
        mut pid_file,
        state,
    } = made;
    let started = start(prepared, bound, owner, pid_file.as_mut(), state);
    let mut event_loop = match started {
        Ok(event_loop) => event_loop,
        Err(line) => {
            drop(pid_file);
            readiness.failed(&format!("magent: {line}"))
        }
    };
    if let Ok(program) = program {
        let pid_file: Option<RawFd> = pid_file.as_ref().map(PidFile::descriptor);
        event_loop.may_change_to(program, pid_file);
    }
    readiness.ready();
    event_loop.tell_ready();
    log::info!(target: logger::NOTICE, "serving, process {}: {}", std::process::id(), event_loop.summary());
    let outcome = event_loop.run();
    drop(pid_file);
    match outcome {
        Ok(()) => {
            log::info!(target: logger::NOTICE, "stopped");
            ExitCode::SUCCESS
        }
        Err(e) => {
            log::error!("no more events can be had: {}", reason(&e));
            ExitCode::FAILURE
        }
    }
}

fn start(
    prepared: Prepared,
    bound: Bound,
    owner: Owner,
    pid_file: Option<&mut PidFile>,
    state: Option<State>,
) -> Result<EventLoop, String> {
    let signals = Signals::install().map_err(|e| format!("signals: {}", reason(&e)))?;
    if let Some(file) = pid_file {
        file.write()
            .map_err(|e| format!("-P {}: {}", file.path().display(), reason(&e)))?;
    }
    EventLoop::new(prepared, bound, signals, owner, state)
        .map_err(|e| format!("waiting for events: {}", reason(&e)))
}
