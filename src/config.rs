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

// A stand-in for the option table, to build and try the process around it. Dropped at merge.

/// What the command line asks for.
#[allow(missing_docs)]
pub enum Action {
    Run(Config),
    Help(String),
    Version(String),
    Check(String),
}

/// Why it can't be done.
#[derive(Debug)]
pub struct UsageError {
    /// Exit status.
    pub status: i32,
    /// For stderr.
    pub line: String,
}

impl Config {
    /// Options.
    pub fn from_args(args: &[std::ffi::OsString]) -> Result<Action, UsageError> {
        let bad = |line: String| UsageError { status: 2, line };
        let mut o = getopts::Options::new();
        for name in ["s", "b", "l"] {
            o.optmulti(name, "", "", "");
        }
        for name in ["p", "f", "a", "u", "g", "n", "P", "L", "c"] {
            o.optopt(name, "", "", "");
        }
        for name in ["h", "V", "D", "t"] {
            o.optflag(name, "", "");
        }
        o.optflagmulti("v", "", "");
        let m = o.parse(args).map_err(|e| bad(format!("magent: {e}")))?;
        if m.opt_present("h") {
            return Ok(Action::Help("usage\n".into()));
        }
        let port: u16 = m.opt_str("p").map_or(11211, |p| p.parse().unwrap_or(0));
        let mode = m.opt_str("a").map_or(0o700, |a| u32::from_str_radix(&a, 8).unwrap_or(0));
        let spec = |address| ListenSpec { address, mode, backlog: 1024 };
        let mut listen = Vec::new();
        let mut ips = m.opt_strs("l");
        if ips.is_empty() {
            ips.push("0.0.0.0".into());
        }
        if let Some(file) = m.opt_str("c") {
            let text = std::fs::read_to_string(file).map_err(|e| bad(e.to_string()))?;
            for line in text.lines() {
                listen.push(spec(match line.parse() {
                    Ok(a) => Address::Tcp(a),
                    Err(_) => Address::Unix(line.into()),
                }));
            }
        } else if port != 0 {
            for ip in ips {
                let ip = ip.parse().map_err(|_| bad(format!("magent: -l {ip}")))?;
                listen.push(spec(Address::Tcp(SocketAddr::new(ip, port))));
            }
        }
        listen.extend(m.opt_str("f").map(|f| spec(Address::Unix(f.into()))));
        let server = |s: String| ServerSpec {
            address: Address::Tcp(s.parse().expect("address")),
            name: s.clone(),
            hash_name: s,
            weight: 1,
        };
        let verbose = m.opt_count("v") as u8;
        let daemon = !m.opt_present("D") && verbose == 0;
        Ok(Action::Run(Config {
            pools: vec![PoolConfig {
                name: "default".into(),
                listen,
                primaries: m.opt_strs("s").into_iter().map(server).collect(),
                backups: Vec::new(),
                hash: Hash::Magent,
                distribution: Distribution::Magent,
                hash_tag: None,
                timeout: Duration::from_secs(1),
                connect_timeout: Duration::from_secs(1),
                failure_limit: 3,
                retry: Duration::from_secs(1),
                warm: Duration::ZERO,
                journal: 1,
                max_value: 1,
                idle_timeout: None,
                flush_all: true,
                connections: 1,
                preconnect: false,
                keepalive: false,
                auto_eject: false,
                clients: None,
            }],
            file: m.opt_str("c").map(PathBuf::from),
            daemon,
            verbose,
            clients: m.opt_str("n").map_or(4096, |n| n.parse().unwrap_or(0)),
            memory: 1,
            user: m.opt_str("u"),
            group: m.opt_str("g"),
            pid_file: m.opt_str("P").map(PathBuf::from),
            log: match m.opt_str("L") {
                Some(l) => LogTarget::File(l.into()),
                None if daemon => LogTarget::Syslog,
                None => LogTarget::Stderr,
            },
            memcached_stats: false,
        }))
    }

    /// The file again.
    pub fn reload(&self) -> Result<Config, String> {
        let mut args: Vec<std::ffi::OsString> = Vec::new();
        if let Some(file) = &self.file {
            args.extend(["-c".into(), file.clone().into_os_string()]);
        }
        match Config::from_args(&args) {
            Ok(Action::Run(c)) => Ok(Config { pools: c.pools, ..self.clone() }),
            Ok(_) => Err("no".into()),
            Err(e) => Err(e.line),
        }
    }
}
