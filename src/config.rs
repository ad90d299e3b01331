//! The option table and the validated configuration.

use crate::farm::{Distribution, Hash};
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

/// One server as configured.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerSpec {
    /// Where it is.
    pub address: Address,
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

/// Everything that the process was told.
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
}
