//! The option table and the validated configuration.
//!
//! ```text
//! command line ─options─▶ process-wide settings ──────────────┐
//!                       ├▶ the pool `default` ────────────────┼─▶ Config
//!                       └▶ template ─┐                        │
//! file ──yaml──▶ text of each pool ──┴─file─▶ pools of -c ────┘
//! ```
//!
//! Everything that can be wrong is said here, before anything starts: listeners' names are resolved,
//! paths absolute, numbers within their bounds. Servers' names are looked up while they are served.

mod check;
mod file;
mod options;
mod prepared;
mod report;
mod typed;
mod values;
mod written;
mod yaml;

pub use file::{KEYS, Key};
pub use options::{OPTIONS, Opt, Takes, help};
pub use prepared::{Farms, Prepared};
pub use values::look_up;

use crate::placement::{Distribution, FarmServer, FarmSpec, Hash};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Where a server or a listener is.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Address {
    /// A resolved TCP address.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl Address {
    /// For people: `127.0.0.1:11211`, `[::1]:11211`, `/path/to.sock`.
    pub fn place(&self) -> String {
        match self {
            Address::Tcp(address) => address.to_string(),
            Address::Unix(path) => path.display().to_string(),
        }
    }
}

/// Where a server is.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Endpoint {
    /// At this address.
    Fixed(Address),
    /// At a host name, which is looked up while it is served, and a port.
    Name(String, u16),
}

impl Endpoint {
    /// Its address, as far as that is known without name service.
    fn known(&self) -> Option<Address> {
        match self {
            Endpoint::Fixed(address) => Some(address.clone()),
            Endpoint::Name(host, port) if host == "localhost" => {
                Some(Address::Tcp(SocketAddr::from(([127, 0, 0, 1], *port))))
            }
            Endpoint::Name(..) => None,
        }
    }
}

/// One server as configured.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerSpec {
    /// Where it is.
    pub endpoint: Endpoint,
    /// Its name in answers, logs and stats: `127.0.0.1:11211`, `[::1]:11211`, `/path/to.sock`.
    pub name: String,
    /// What ketama hashes: `HOST-PORT` for magent's, the server's name for twemproxy's.
    pub hash_name: String,
    /// At least 1.
    pub weight: u32,
}

/// Where clients may come in.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ListenSpec {
    /// Where.
    pub address: Address,
    /// Permission bits of a Unix socket.
    pub mode: u32,
    /// Length of the accept queue.
    pub backlog: u32,
}

impl ListenSpec {
    /// Mode of a Unix socket that is given without one: `-a`'s default.
    const MODE: u32 = 0o700;
    /// Accept queue of the command line's listeners: memcached's default.
    const BACKLOG: u32 = 1024;

    /// Mode of a socket of the door: it is the operator's alone.
    const ADMIN_MODE: u32 = 0o600;

    /// As a file writes it.
    fn written(&self) -> String {
        match &self.address {
            Address::Tcp(_) => self.place(),
            Address::Unix(_) => format!("{} {:04o}", self.place(), self.mode),
        }
    }

    /// True if it is no socket in the file system.
    pub fn is_tcp(&self) -> bool {
        matches!(self.address, Address::Tcp(_))
    }

    /// True if other hosts may reach it.
    pub fn is_public(&self) -> bool {
        matches!(&self.address, Address::Tcp(address) if !address.ip().is_loopback())
    }

    /// Where it is, for people.
    pub fn place(&self) -> String {
        self.address.place()
    }

    /// A listener of the command line.
    pub fn new(address: Address, mode: u32) -> ListenSpec {
        ListenSpec {
            address,
            mode,
            backlog: ListenSpec::BACKLOG,
        }
    }
}

/// One pool: its listeners, its farms and how it treats them.
#[derive(Clone, PartialEq, Debug)]
pub struct PoolConfig {
    /// `default` on the command line.
    pub name: String,
    /// At least one.
    pub listen: Vec<ListenSpec>,
    /// The primaries, in the order given; at least one.
    pub primaries: Vec<ServerSpec>,
    /// The backups, may be empty.
    pub backups: Vec<ServerSpec>,
    /// Of both farms.
    pub hash: Hash,
    /// Of both farms.
    pub distribution: Distribution,
    /// Only the key's part between these two is hashed.
    pub hash_tag: Option<(u8, u8)>,
    /// `--timeout`.
    pub timeout: Duration,
    /// `--connect-timeout`.
    pub connect_timeout: Duration,
    /// `--failure-limit`.
    pub failure_limit: u32,
    /// `--retry`.
    pub retry: Duration,
    /// `--warm`; zero: never.
    pub warm: Duration,
    /// `--journal`, bytes for one server.
    pub journal: usize,
    /// `-I`, bytes.
    pub max_value: usize,
    /// `--idle-timeout`; `None`: never.
    pub idle_timeout: Option<Duration>,
    /// False with `-F`.
    pub flush_all: bool,
    /// `-i`: connections to one server.
    pub connections: usize,
    /// Connect to all servers at the start.
    pub preconnect: bool,
    /// TCP keepalive on connections to servers.
    pub keepalive: bool,
    /// A failing server leaves the ring. Not together with backups.
    pub auto_eject: bool,
    /// This pool's bound on clients; `None`: only the process' bound.
    pub clients: Option<usize>,
}

impl PoolConfig {
    /// The farm of `servers` (the primaries or the backups) under this pool's rules.
    fn farm(&self, servers: &[ServerSpec]) -> FarmSpec {
        let server = |s: &ServerSpec| FarmServer {
            hash_name: s.hash_name.clone(),
            weight: s.weight,
        };
        FarmSpec {
            servers: servers.iter().map(server).collect(),
            hash: self.hash,
            distribution: self.distribution,
            hash_tag: self.hash_tag,
        }
    }
}

impl Default for PoolConfig {
    /// The defaults of the option table; no name, listeners or servers. That it agrees with the
    /// table is tested.
    fn default() -> PoolConfig {
        PoolConfig {
            name: String::new(),
            listen: Vec::new(),
            primaries: Vec::new(),
            backups: Vec::new(),
            hash: Hash::Magent,
            distribution: Distribution::Magent,
            hash_tag: None,
            timeout: Duration::from_secs(1),
            connect_timeout: Duration::from_secs(1),
            failure_limit: 3,
            retry: Duration::from_secs(1),
            warm: Duration::from_secs(3600),
            journal: 64 << 20,
            max_value: 1 << 20,
            idle_timeout: None,
            flush_all: true,
            connections: 1,
            preconnect: false,
            keepalive: false,
            auto_eject: false,
            clients: None,
        }
    }
}

/// Where log lines go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LogTarget {
    /// In the foreground without `-L`.
    Stderr,
    /// As a daemon without `-L`.
    Syslog,
    /// `-L`; SIGHUP reopens it.
    File(PathBuf),
}

/// The whole configuration.
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    /// At least one.
    pub pools: Vec<PoolConfig>,
    /// `-c`, absolute.
    pub file: Option<PathBuf>,
    /// False with `-D` or `-v`.
    pub daemon: bool,
    /// How often `-v` was given.
    pub verbose: u8,
    /// `-n`.
    pub clients: usize,
    /// `-m`, bytes.
    pub memory: usize,
    /// `-u`, as given; resolved by `sys`.
    pub user: Option<String>,
    /// `-g`, as given.
    pub group: Option<String>,
    /// `-P`, absolute.
    pub pid_file: Option<PathBuf>,
    /// Where the log goes.
    pub log: LogTarget,
    /// `--memcached-stats`.
    pub memcached_stats: bool,
    /// `--admin`: doors for operators.
    pub admin: Vec<ListenSpec>,
    /// `--twemproxy-stats`.
    pub twemproxy_stats: Option<ListenSpec>,
    /// Warnings of options that were typed and have no effect.
    pub unused: Vec<String>,
    /// `--retry-max`.
    pub retry_max: Duration,
    /// `--probe`; zero: never.
    pub probe: Duration,
    /// `--resolve`; zero: only at a reconnect.
    pub resolve: Duration,
    /// `--refill`, bytes a second; 0: never.
    pub refill: usize,
    /// `--slow`.
    pub slow: Duration,
    /// `--reuseport`: other processes may listen where this one does.
    pub reuseport: bool,
    /// `--alone`.
    pub alone: bool,
    /// What the command line says of every pool of the file; no name, listeners or servers.
    template: PoolConfig,
}

/// What the command line asks for.
#[derive(Clone, PartialEq, Debug)]
pub enum Action {
    /// Run with this.
    Run(Config),
    /// Print the help, status 0.
    Help(String),
    /// Print the version, status 0.
    Version(String),
    /// Say that this would run, with its warnings, status 0.
    Check {
        /// What would run.
        config: Config,
        /// What was checked, in words.
        subject: String,
    },
}

/// Why it cannot run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UsageError {
    /// Exit status: 2 for a wrong command line or file, 1 for the rest.
    pub status: i32,
    /// One line for stderr, with `magent: ` before it and no line end.
    pub line: String,
}

impl UsageError {
    fn new(status: i32, why: String) -> UsageError {
        let one_line = |c: char| if c.is_control() { '?' } else { c };
        let why: String = why.chars().map(one_line).collect();
        UsageError {
            status,
            line: format!("magent: {why}"),
        }
    }

    /// A wrong option or a wrong file.
    fn usage(why: String) -> UsageError {
        UsageError::new(2, why)
    }

    /// Well-formed, but this machine says no: a host that does not resolve, a file that is not
    /// there.
    fn other(why: String) -> UsageError {
        UsageError::new(1, why)
    }
}

impl Config {
    /// Reads a command line (without the program's name) and the file that it names. Resolves
    /// the host names of listeners, and with `-t` of servers, so it may wait for DNS.
    pub fn from_args(args: &[OsString]) -> Result<Action, UsageError> {
        options::from_args(args)
    }

    /// Reads the file again under the same command line. An error is one line that says what is
    /// wrong; nothing changes then.
    pub fn reload(&self) -> Result<Config, String> {
        let Some(path) = &self.file else {
            return Err("there is no configuration file (-c) to read again".to_string());
        };
        let shown = path.display().to_string();
        let pools = file::load(path, &shown, &self.template, self.memory);
        let pools = pools.map_err(|bad| match bad {
            values::Bad::Value(why) | values::Bad::World(why) => why,
        })?;
        for pool in &pools {
            if let Some(need) = check::memory_needed(pool.max_value, self.memory) {
                let [value, memory] = [pool.max_value, self.memory].map(values::show_size);
                let why = format!("-I {value} is too large for -m {memory}; start with -m {need}");
                return Err(format!("{shown}: pool {}: {why}", pool.name));
            }
        }
        Ok(Config {
            pools,
            ..self.clone()
        })
    }
}

#[cfg(test)]
mod tests;
