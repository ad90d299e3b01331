//! The command line: one table of options, from which parsing, the help text, completion, and the tests
//! of man page and README are made.

use super::check;
use super::typed::{self, Typed, wrong};
use super::values::{self, Bad};
use super::{Action, Address, Config, ListenSpec, LogTarget, PoolConfig, UsageError, file};
use crate::placement::{Distribution, Hash};
use std::ffi::OsString;
use std::path::PathBuf;

/// How often an option may stand on a command line, and whether it takes a value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Takes {
    /// No value; giving it again changes nothing but for `-v`.
    Nothing,
    /// One value, given once.
    One(&'static str),
    /// A value each time.
    Many(&'static str),
}

/// One option.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Opt {
    /// As typed: `-s` or `--timeout`.
    pub name: &'static str,
    /// A second spelling, for what is typed by whoever does not know the program yet.
    pub long: Option<&'static str>,
    /// Its value.
    pub takes: Takes,
    /// What it means, for `-h`.
    help: &'static str,
    /// The value in force without it, as it would be typed.
    pub default: Option<&'static str>,
    /// It describes the one pool of the command line, so it has no place beside `-c`: the key of the
    /// file that says the same.
    key: Option<&'static str>,
}

const fn opt(name: &'static str, takes: Takes, help: &'static str) -> Opt {
    Opt {
        name,
        long: None,
        takes,
        help,
        default: None,
        key: None,
    }
}

impl Opt {
    const fn default(self, text: &'static str) -> Opt {
        Opt {
            default: Some(text),
            ..self
        }
    }

    const fn long(self, name: &'static str) -> Opt {
        Opt {
            long: Some(name),
            ..self
        }
    }

    const fn key(self, name: &'static str) -> Opt {
        Opt {
            key: Some(name),
            ..self
        }
    }

    /// The name without its dashes.
    pub fn bare(&self) -> &'static str {
        self.name.trim_start_matches('-')
    }

    /// What its value is called, if it takes one.
    pub fn argument(&self) -> Option<&'static str> {
        match self.takes {
            Takes::Nothing => None,
            Takes::One(name) | Takes::Many(name) => Some(name),
        }
    }
}

use Takes::{Many, Nothing, One};

/// Every option there is, in the order of the help text.
#[rustfmt::skip]
pub const OPTIONS: &[Opt] = &[
    opt("-h", Nothing, "this help").long("--help"),
    opt("-V", Nothing, "the version").long("--version"),
    opt("-s", Many("HOST[:PORT][:WEIGHT]"), "a primary; also [V6]:PORT or /PATH.sock; repeat; port 11211, weight 1").key("servers"),
    opt("-b", Many("HOST[:PORT][:WEIGHT]"), "a backup, written like a primary; repeat").key("backups"),
    opt("-l", Many("ADDR"), "listen address, IPv4 or IPv6; repeat").default("0.0.0.0").key("listen"),
    opt("-p", One("PORT"), "listen port; 0: no TCP, then -f is needed").default("11211").key("listen"),
    opt("-f", One("PATH"), "listen on a Unix socket too").key("listen"),
    opt("-a", One("MODE"), "octal mode of the Unix socket").default("0700").key("listen"),
    opt("-u", One("USER"), "user to run as, name or number"),
    opt("-g", One("GROUP"), "group to run as, name or number"),
    opt("-n", One("N"), "client connections").default("4096"),
    opt("-i", One("N"), "connections kept open to one server").default("1"),
    opt("-k", Nothing, "ketama instead of modulo").key("distribution"),
    opt("-D", Nothing, "stay in the foreground"),
    opt("-v", Nothing, "verbose, implies -D; -vv logs every request"),
    opt("-P", One("FILE"), "pid file"),
    opt("-L", One("FILE"), "log file, reopened on SIGHUP; else stderr, or syslog as a daemon"),
    opt("-I", One("SIZE"), "largest value; sizes are bytes, or end in k, m or g").default("1m"),
    opt("-m", One("SIZE"), "memory for bytes in flight; at least 4 times -I").default("256m"),
    opt("-F", Nothing, "refuse flush_all"),
    opt("--timeout", One("MS"), "wait for one answer").default("1000"),
    opt("--connect-timeout", One("MS"), "wait for one connect").default("1000"),
    opt("--failure-limit", One("N"), "timeouts in a row until a server is down").default("3"),
    opt("--retry", One("MS"), "first wait before a down server is probed").default("1000"),
    opt("--retry-max", One("MS"), "longest wait between two probes of a down server").default("2000"),
    opt("--probe", One("MS"), "probe a server that was silent for so long; 0: never").default("1000"),
    opt("--refill", One("SIZE"), "bytes a second for filling servers that lack keys; 0: never").default("8m"),
    opt("--resolve", One("SECONDS"), "look servers' names up so often; 0: only at a reconnect").default("30"),
    opt("--warm", One("SECONDS"), "how long a primary is warming after its start; 0: never").default("3600"),
    opt("--journal", One("SIZE"), "memory for what one absent server missed").default("64m"),
    opt("--idle-timeout", One("SECONDS"), "close a client that is silent for so long; 0: never").default("0"),
    opt("--slow", One("MS"), "requests that take so long are kept for the operator's `slow`").default("100"),
    opt("--reuseport", Nothing, "several magents may listen on one -l and -p"),
    opt("--alone", Nothing, "leave no marks on servers for other magents, and look for none"),
    opt("--memcached-stats", Nothing, "answer stats as memcached does"),
    opt("--admin", Many("ADDR:PORT"), "a door for operators and monitors; also /PATH.sock, of mode 0600; repeat"),
    opt("--twemproxy-stats", One("ADDR:PORT"), "tell whoever connects there what twemproxy tells on port 22222"),
    opt("-c", One("FILE"), "pools of a configuration file, twemproxy's or magent's own"),
    opt("-t", Nothing, "check the options, and the file of -c, and exit"),
    opt("--hash", One("NAME"), "hash of the keys").default("magent").key("hash"),
    opt("--distribution", One("NAME"), "how a hash becomes a server").default("magent").key("distribution"),
    opt("--hash-tag", One("XY"), "hash only the key's part between these two characters").key("hash_tag"),
    opt("--auto-eject", Nothing, "a failing server leaves the ring; not with -b").key("auto_eject_hosts"),
];

/// The help text of `-h`.
pub fn help() -> String {
    let mut text = String::from(
        "magent: a proxy between memcached clients and memcached servers\n\n\
         usage: magent -s HOST[:PORT][:WEIGHT] ... [options]\n\
         \x20      magent -c FILE [options]\n\n",
    );
    let left = |o: &Opt| {
        let long = o.long.map(|long| format!(", {long}"));
        let argument = o.argument().map(|argument| format!(" {argument}"));
        [Some(o.name.to_string()), long, argument]
            .into_iter()
            .flatten()
            .collect::<String>()
    };
    let width = OPTIONS.iter().map(|o| left(o).len()).max().unwrap_or(0);
    for o in OPTIONS {
        text.push_str(&format!("  {:width$}  {}", left(o), o.help));
        if let Some(default) = o.default {
            text.push_str(&format!(" (default {default})"));
        }
        text.push('\n');
    }
    text.push_str(&format!(
        "\nhashes: {}\n",
        names(Hash::all().map(Hash::name))
    ));
    let distributions = names(Distribution::all().map(Distribution::name));
    text.push_str(&format!("distributions: {distributions}\n"));
    text
}

/// Names for a message, separated by spaces.
pub(super) fn names(all: impl Iterator<Item = &'static str>) -> String {
    all.collect::<Vec<_>>().join(" ")
}

/// Reads a whole command line, without the program's name.
pub(super) fn from_args(args: &[OsString]) -> Result<Action, UsageError> {
    let typed = Typed::parse(args)?;
    if typed.flag("-h") {
        return Ok(Action::Help(help()));
    }
    if typed.flag("-V") {
        return Ok(Action::Version(format!(
            "magent {}\n",
            env!("CARGO_PKG_VERSION")
        )));
    }
    let shown = typed.text("-c");
    if shown.is_some() {
        no_pool_options(&typed)?;
    }
    let mut config = process(&typed)?;
    no_file_twice(&typed)?;
    config.template = template(&typed)?;
    let check_only = typed.flag("-t");
    let subject = match shown {
        Some(shown) => {
            let status = |bad: Bad| match bad {
                Bad::World(why) if !check_only => UsageError::other(why),
                Bad::World(why) | Bad::Value(why) => UsageError::usage(why),
            };
            let path = config.file.clone().unwrap_or_default();
            config.pools =
                file::load(&path, &shown, &config.template, config.memory).map_err(status)?;
            shown
        }
        None => {
            config.pools = vec![pool(&typed, &config.template)?];
            no_circle(&config)?;
            if typed.flag("-a") && !typed.flag("-f") {
                let mode = typed.text("-a").unwrap_or_default();
                let why = "has no effect without a Unix socket; add -f PATH or leave it out";
                config.unused.push(format!("-a {mode}: {why}"));
            }
            "command line".to_string()
        }
    };
    memory_holds_values(&typed, &config)?;
    match check_only {
        true => Ok(Action::Check { config, subject }),
        false => Ok(Action::Run(config)),
    }
}

/// The options that describe a pool have no place beside a file of pools.
fn no_pool_options(typed: &Typed) -> Result<(), UsageError> {
    let mut all = OPTIONS.iter().filter(|o| typed.flag(o.name));
    let Some((o, key)) = all.find_map(|o| Some((o, o.key?))) else {
        return Ok(());
    };
    let value = typed.texts(o.name).into_iter().next();
    let value = value.map(|t| format!(" {t}")).unwrap_or_default();
    let why = format!("not together with -c; its place is `{key}` in the file");
    let line = format!("{}{value}: {why}{}", o.name, typed.hint(o.name));
    Err(UsageError::usage(line))
}

/// Each file has one use: a log would grow into the configuration, a pid would be written over it.
fn no_file_twice(typed: &Typed) -> Result<(), UsageError> {
    let mut named = Vec::new();
    for option in ["-c", "-f", "-P", "-L"] {
        named.extend(typed.path(option)?.map(|path| (option, path)));
    }
    for door in admin(typed)? {
        if let Address::Unix(path) = door.address {
            named.push(("--admin", path));
        }
    }
    let mut seen: Vec<(&str, PathBuf)> = Vec::new();
    for (option, path) in named {
        if let Some((other, _)) = seen.iter().find(|(_, p)| *p == path) {
            let line = format!("{option} {}: is the file of {other} too", path.display());
            return Err(UsageError::usage(line));
        }
        seen.push((option, path));
    }
    Ok(())
}

/// `-m` against `-I`, where a pool has it from there; the error names the one that was typed.
fn memory_holds_values(typed: &Typed, config: &Config) -> Result<(), UsageError> {
    let needed = |p: &PoolConfig| check::memory_needed(p.max_value, config.memory);
    let Some(need) = config.pools.iter().find_map(needed) else {
        return Ok(());
    };
    let [m, i] = ["-m", "-I"].map(|option| typed.text(option).unwrap_or_default());
    let line = match typed.flag("-m") {
        false => format!("-I {i}: too large for the default -m of {m}; add -m {need}"),
        true => format!(
            "-m {m}: must be at least {} times the largest value, {i} (-I); write -m {need} or more{}",
            check::VALUES_IN_MEMORY,
            typed.hint("-m")
        ),
    };
    Err(UsageError::usage(line))
}

/// No server of the command line is magent itself.
fn no_circle(config: &Config) -> Result<(), UsageError> {
    match check::circle(&config.pools) {
        Some(circle) => {
            let option = circle.role.option();
            let server = &circle.server(&config.pools).name;
            let why = "magent itself listens there, so a request would go round for ever; \
                       give magent another port (-p) or name the memcached";
            Err(UsageError::usage(format!("{option} {server}: {why}")))
        }
        None => Ok(()),
    }
}

/// What holds for the whole process; the pools come later.
fn process(typed: &Typed) -> Result<Config, UsageError> {
    let verbose = typed.count("-v").min(2) as u8;
    let daemon = !typed.flag("-D") && verbose == 0;
    let log = match typed.path("-L")? {
        Some(path) => LogTarget::File(path),
        None if daemon => LogTarget::Syslog,
        None => LogTarget::Stderr,
    };
    let account = |option: &str| match typed.text(option) {
        Some(name) if name.is_empty() => {
            Err(UsageError::usage(format!("{option}: the name is empty")))
        }
        name => Ok(name),
    };
    let config = Config {
        pools: Vec::new(),
        file: typed.path("-c")?,
        daemon,
        verbose,
        clients: typed.number("-n", 1..=10_000_000)? as usize,
        memory: typed.value("-m", |t| values::size(t, 1..=MAX_MEMORY))?,
        user: account("-u")?,
        group: account("-g")?,
        pid_file: typed.path("-P")?,
        log,
        memcached_stats: typed.flag("--memcached-stats"),
        admin: admin(typed)?,
        twemproxy_stats: twemproxy_stats(typed)?,
        unused: Vec::new(),
        retry_max: values::ms(typed.number("--retry-max", 1..=MAX_MS)?),
        probe: values::ms(typed.number("--probe", 0..=MAX_MS)?),
        resolve: values::seconds(typed.number("--resolve", 0..=MAX_SECONDS)?),
        refill: typed.value("--refill", |t| values::size(t, 0..=MAX_MEMORY))?,
        slow: values::ms(typed.number("--slow", 1..=MAX_MS)?),
        reuseport: typed.flag("--reuseport"),
        alone: typed.flag("--alone"),
        template: PoolConfig::default(),
    };
    Ok(config)
}

/// The most that `-m` and `--journal` may be, bytes: beyond it somebody mistyped.
const MAX_MEMORY: usize = 1 << 40;
/// The most that `-I` may be, bytes: memcached's own bound.
const MAX_VALUE: usize = 1 << 30;
/// The longest time in milliseconds, a day: beyond it somebody mistyped the unit.
pub(super) const MAX_MS: u64 = 86_400_000;
/// The longest time in seconds that memcached counts.
pub(super) const MAX_SECONDS: u64 = u32::MAX as u64;

/// Sizes of one journal that make sense, bytes.
pub(super) const JOURNAL: std::ops::RangeInclusive<usize> = 1024..=MAX_MEMORY;
/// Sizes of the largest value, bytes; memcached's own bounds.
pub(super) const VALUE: std::ops::RangeInclusive<usize> = 1024..=MAX_VALUE;

/// What the command line says of every pool, the file's included; no servers, no listeners.
fn template(typed: &Typed) -> Result<PoolConfig, UsageError> {
    let ms = |option: &str| Ok::<_, UsageError>(values::ms(typed.number(option, 1..=MAX_MS)?));
    Ok(PoolConfig {
        timeout: ms("--timeout")?,
        connect_timeout: ms("--connect-timeout")?,
        failure_limit: typed.number("--failure-limit", 1..=1_000_000)? as u32,
        retry: ms("--retry")?,
        warm: values::seconds(typed.number("--warm", 0..=MAX_SECONDS)?),
        journal: typed.value("--journal", |t| values::size(t, JOURNAL))?,
        max_value: typed.value("-I", |t| values::size(t, VALUE))?,
        idle_timeout: values::some_seconds(typed.number("--idle-timeout", 0..=MAX_SECONDS)?),
        flush_all: !typed.flag("-F"),
        connections: typed.number("-i", 1..=1024)? as usize,
        ..PoolConfig::default()
    })
}

/// The pool `default` that the command line describes.
fn pool(typed: &Typed, template: &PoolConfig) -> Result<PoolConfig, UsageError> {
    let distribution = distribution(typed)?;
    let servers = |option: &str| -> Result<Vec<_>, UsageError> {
        let read =
            |t: &String| values::server(t, distribution).map_err(|bad| wrong(option, t, bad));
        typed.texts(option).iter().map(read).collect()
    };
    let pool = PoolConfig {
        name: "default".to_string(),
        listen: listen(typed)?,
        primaries: servers("-s")?,
        backups: servers("-b")?,
        hash: typed.value("--hash", values::hash)?,
        distribution,
        hash_tag: match typed.text("--hash-tag") {
            Some(_) => Some(typed.value("--hash-tag", values::hash_tag)?),
            None => None,
        },
        auto_eject: typed.flag("--auto-eject"),
        ..template.clone()
    };
    if pool.primaries.is_empty() {
        return Err(UsageError::usage(
            "-s: at least one primary is needed".to_string(),
        ));
    }
    for (option, servers) in [("-s", &pool.primaries), ("-b", &pool.backups)] {
        if let Some(twice) = values::address_twice(servers) {
            return Err(UsageError::usage(format!(
                "{option} {}: given twice; HOST:PORT:2 gives a server twice the keys",
                twice.name
            )));
        }
    }
    let no_backups = match pool {
        _ if pool.backups.is_empty() => None,
        _ if pool.auto_eject => Some("--auto-eject"),
        _ if distribution == Distribution::Random => Some("--distribution random"),
        _ => None,
    };
    match no_backups {
        Some(option) => Err(UsageError::usage(format!(
            "-b {}: not together with {option}",
            pool.backups[0].name
        ))),
        None => Ok(pool),
    }
}

/// The doors.
fn admin(typed: &Typed) -> Result<Vec<ListenSpec>, UsageError> {
    let mut doors: Vec<ListenSpec> = Vec::new();
    for text in typed.texts("--admin") {
        let address = match text.contains('/') {
            true => Address::Unix(typed::absolute("--admin", &text)?),
            false => values::host_and_port(&text).map_err(|bad| wrong("--admin", &text, bad))?,
        };
        if doors.iter().any(|d| d.address == address) {
            return Err(UsageError::usage(format!("--admin {text}: given twice")));
        }
        doors.push(ListenSpec::new(address, ListenSpec::ADMIN_MODE));
    }
    Ok(doors)
}

/// twemproxy's stats port.
fn twemproxy_stats(typed: &Typed) -> Result<Option<ListenSpec>, UsageError> {
    let Some(text) = typed.text("--twemproxy-stats") else {
        return Ok(None);
    };
    let address = match text.contains(':') && !text.contains('/') {
        true => values::host_and_port(&text),
        false => Err(Bad::Value("must be ADDR:PORT or [V6]:PORT".into())),
    };
    let address = address.map_err(|bad| wrong("--twemproxy-stats", &text, bad))?;
    if admin(typed)?.iter().any(|d| d.address == address) {
        let line = format!("--twemproxy-stats {text}: is a door of --admin too");
        return Err(UsageError::usage(line));
    }
    Ok(Some(ListenSpec::new(address, ListenSpec::ADMIN_MODE)))
}

fn distribution(typed: &Typed) -> Result<Distribution, UsageError> {
    let given = typed.value("--distribution", values::distribution)?;
    let named = typed.flag("--distribution");
    match typed.flag("-k") {
        false => Ok(given),
        true if !named || given == Distribution::MagentKetama => Ok(Distribution::MagentKetama),
        true => Err(UsageError::usage(format!(
            "-k: not together with --distribution {}",
            given.name()
        ))),
    }
}

fn listen(typed: &Typed) -> Result<Vec<ListenSpec>, UsageError> {
    let port = typed.number("-p", 0..=65535).map_err(|_| {
        let text = typed.text("-p").unwrap_or_default();
        UsageError::usage(format!("-p {text}: port must be 0 to 65535"))
    })? as u16;
    let mode = typed.value("-a", values::mode)?;
    let mut specs = Vec::new();
    let mut hosts = typed.texts("-l");
    if hosts.is_empty() {
        hosts.extend(typed.text("-l"));
    }
    for host in &hosts {
        let address = values::listen_host(host, port).map_err(|bad| wrong("-l", host, bad))?;
        if specs.iter().any(|s: &ListenSpec| s.address == address) {
            return Err(UsageError::usage(format!("-l {host}: given twice")));
        }
        if port != 0 {
            specs.push(ListenSpec::new(address, mode));
        }
    }
    if let Some(path) = typed.path("-f")? {
        specs.push(ListenSpec::new(Address::Unix(path), mode));
    }
    match specs.is_empty() {
        true => Err(UsageError::usage(
            "-p 0: no TCP, so -f PATH is needed".to_string(),
        )),
        false => Ok(specs),
    }
}
