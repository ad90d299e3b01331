//! The command line: one table of options, from which parsing, the help text, and the tests of
//! man page and README are made.

use super::values::{self, Bad};
use super::{Action, Address, Config, ListenSpec, LogTarget, PoolConfig, UsageError, check, file};
use crate::placement::{Distribution, Hash};
use getopts::{Fail, HasArg, Matches, Occur, Options};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

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
    /// As typed: `-s` or `--timeout`. Every option has one spelling.
    pub name: &'static str,
    /// Its value.
    pub takes: Takes,
    /// What it means, for `-h`.
    help: &'static str,
    /// The value in force without it, as it would be typed.
    pub default: Option<&'static str>,
    /// It describes the one pool of the command line, so it has no place beside `-c`.
    pub pool: bool,
}

const fn opt(name: &'static str, takes: Takes, help: &'static str) -> Opt {
    Opt {
        name,
        takes,
        help,
        default: None,
        pool: false,
    }
}

impl Opt {
    const fn default(self, text: &'static str) -> Opt {
        Opt {
            default: Some(text),
            ..self
        }
    }

    const fn pool(self) -> Opt {
        Opt { pool: true, ..self }
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
    opt("-h", Nothing, "this help"),
    opt("-V", Nothing, "the version"),
    opt("-s", Many("HOST[:PORT][:WEIGHT]"), "a primary; also [V6]:PORT or /PATH.sock; repeat; port 11211, weight 1").pool(),
    opt("-b", Many("HOST[:PORT][:WEIGHT]"), "a backup, written like a primary; repeat").pool(),
    opt("-l", Many("ADDR"), "listen address, IPv4 or IPv6; repeat").default("0.0.0.0").pool(),
    opt("-p", One("PORT"), "listen port; 0: no TCP, then -f is needed").default("11211").pool(),
    opt("-f", One("PATH"), "listen on a Unix socket too").pool(),
    opt("-a", One("MODE"), "octal mode of the Unix socket").default("0700").pool(),
    opt("-u", One("USER"), "user to run as, name or number"),
    opt("-g", One("GROUP"), "group to run as, name or number"),
    opt("-n", One("N"), "client connections").default("4096"),
    opt("-i", One("N"), "connections kept open to one server").default("1"),
    opt("-k", Nothing, "ketama instead of modulo").pool(),
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
    opt("--warm", One("SECONDS"), "how long a primary is warming after its start; 0: never").default("3600"),
    opt("--journal", One("SIZE"), "memory for what one absent server missed").default("64m"),
    opt("--idle-timeout", One("SECONDS"), "close a client that is silent for so long; 0: never").default("0"),
    opt("--memcached-stats", Nothing, "answer stats as memcached does"),
    opt("-c", One("FILE"), "pools of a configuration file, twemproxy's or magent's own"),
    opt("-t", Nothing, "check the file of -c and exit"),
    opt("--hash", One("NAME"), "hash of the keys").default("magent").pool(),
    opt("--distribution", One("NAME"), "how a hash becomes a server").default("magent").pool(),
    opt("--hash-tag", One("XY"), "hash only the key's part between these two characters").pool(),
    opt("--auto-eject", Nothing, "a failing server leaves the ring; not with -b").pool(),
];

/// The help text of `-h`.
pub fn help() -> String {
    let mut text = String::from(
        "magent: a proxy between memcached clients and memcached servers\n\n\
         usage: magent -s HOST[:PORT][:WEIGHT] ... [options]\n\
         \x20      magent -c FILE [options]\n\n",
    );
    let left = |o: &Opt| match o.argument() {
        Some(argument) => format!("{} {argument}", o.name),
        None => o.name.to_string(),
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

/// What was typed, and the table to look it up with.
struct Typed {
    matches: Matches,
}

impl Typed {
    fn flag(&self, option: &str) -> bool {
        self.matches.opt_present(option.trim_start_matches('-'))
    }

    /// The value typed, or the table's default.
    fn text(&self, option: &str) -> Option<String> {
        let typed = self.matches.opt_str(option.trim_start_matches('-'));
        let default = || OPTIONS.iter().find(|o| o.name == option)?.default;
        typed.or_else(|| default().map(str::to_string))
    }

    fn texts(&self, option: &str) -> Vec<String> {
        self.matches.opt_strs(option.trim_start_matches('-'))
    }

    /// The option's value through `read`; an error names option and value.
    fn value<T>(
        &self,
        option: &str,
        read: impl Fn(&str) -> Result<T, Bad>,
    ) -> Result<T, UsageError> {
        let text = self.text(option).unwrap_or_default();
        read(&text).map_err(|bad| wrong(option, &text, bad))
    }

    fn number(
        &self,
        option: &str,
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<u64, UsageError> {
        self.value(option, |text| values::number(text, range.clone()))
    }

    fn path(&self, option: &str) -> Result<Option<PathBuf>, UsageError> {
        let Some(text) = self.text(option) else {
            return Ok(None);
        };
        if text.is_empty() {
            return Err(UsageError::usage(format!("{option}: the path is empty")));
        }
        match std::path::absolute(Path::new(&text)) {
            Ok(path) => Ok(Some(path)),
            Err(e) => Err(UsageError::other(format!("{option} {text}: {e}"))),
        }
    }
}

/// The error of a value that does not do.
fn wrong(option: &str, text: &str, bad: Bad) -> UsageError {
    match bad {
        Bad::Value(why) => UsageError::usage(format!("{option} {text}: {why}")),
        Bad::World(why) => UsageError::other(format!("{option} {text}: {why}")),
    }
}

fn parse(args: &[OsString]) -> Result<Typed, UsageError> {
    let mut options = Options::new();
    for o in OPTIONS {
        let (short, long) = match o.name.strip_prefix("--") {
            Some(long) => ("", long),
            None => (o.bare(), ""),
        };
        let (has, occurs) = match o.takes {
            Nothing => (HasArg::No, Occur::Multi),
            One(_) => (HasArg::Yes, Occur::Optional),
            Many(_) => (HasArg::Yes, Occur::Multi),
        };
        options.opt(short, long, "", "", has, occurs);
    }
    let matches = options
        .parse(args)
        .map_err(|fail| UsageError::usage(explain(fail, args)))?;
    if let Some(bare) = matches.free.first() {
        return Err(UsageError::usage(format!("{bare:?}: not an option")));
    }
    Ok(Typed { matches })
}

/// What was wrong, in words that name the option as it was typed.
fn explain(fail: Fail, args: &[OsString]) -> String {
    let dashed = |name: &str| match name.chars().count() {
        // What is not UTF-8 comes as a quoted whole.
        _ if name.starts_with('"') => name.to_string(),
        1 => format!("-{name}"),
        _ => format!("--{name}"),
    };
    match fail {
        Fail::ArgumentMissing(name) => {
            let option = dashed(&name);
            let table = OPTIONS.iter().find(|o| o.name == option);
            let what = table.and_then(Opt::argument).unwrap_or("value");
            format!("{option}: needs a value: {what}")
        }
        Fail::UnrecognizedOption(name) if args.iter().any(|a| a == "-c") => {
            format!("{}: unknown option; {ONLY_THE_FILE}", dashed(&name))
        }
        Fail::UnrecognizedOption(name) => {
            format!("{}: unknown option, magent -h lists all", dashed(&name))
        }
        Fail::OptionMissing(name) => format!("{}: is needed", dashed(&name)),
        Fail::OptionDuplicated(name) => format!("{}: given twice", dashed(&name)),
        Fail::UnexpectedArgument(name) => format!("{}: takes no value", dashed(&name)),
    }
}

const ONLY_THE_FILE: &str =
    "of twemproxy only the configuration file is compatible, not the command line";

/// Reads a whole command line, without the program's name.
pub(super) fn from_args(args: &[OsString]) -> Result<Action, UsageError> {
    let typed = parse(args)?;
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
    if shown.is_none() && typed.flag("-t") {
        return Err(UsageError::usage("-t: needs -c FILE".to_string()));
    }
    if shown.is_some() {
        no_pool_options(&typed)?;
    }
    let mut config = process(&typed)?;
    config.template = template(&typed)?;
    let Some(shown) = shown else {
        config.pools = vec![pool(&typed, &config.template)?];
        check(&config).map_err(UsageError::usage)?;
        return Ok(Action::Run(config));
    };
    let path = config.file.clone().unwrap_or_default();
    let check_only = typed.flag("-t");
    let status = |bad: Bad| match bad {
        Bad::World(why) if !check_only => UsageError::other(why),
        Bad::World(why) | Bad::Value(why) => UsageError::usage(why),
    };
    config.pools = file::load(&path, &shown, &config.template).map_err(status)?;
    check(&config).map_err(UsageError::usage)?;
    if check_only {
        return Ok(Action::Check(verdict(&config, &shown)));
    }
    Ok(Action::Run(config))
}

/// What `-t` says of a good file.
fn verdict(config: &Config, shown: &str) -> String {
    let mut text = String::new();
    for warning in config.warnings() {
        text.push_str(&format!("magent: {shown}: warning: {warning}\n"));
    }
    let pools: Vec<&str> = config.pools.iter().map(|p| p.name.as_str()).collect();
    text.push_str(&format!(
        "magent: {shown}: valid; pools: {}\n",
        pools.join(" ")
    ));
    text
}

/// The options that describe a pool have no place beside a file of pools.
fn no_pool_options(typed: &Typed) -> Result<(), UsageError> {
    let Some(o) = OPTIONS.iter().find(|o| o.pool && typed.flag(o.name)) else {
        return Ok(());
    };
    let text = typed.matches.opt_str(o.bare());
    let value = text.map(|t| format!(" {t}")).unwrap_or_default();
    let line = format!("{}{value}: not together with -c: {ONLY_THE_FILE}", o.name);
    Err(UsageError::usage(line))
}

/// What holds for the whole process; the pools come later.
fn process(typed: &Typed) -> Result<Config, UsageError> {
    let verbose = typed.matches.opt_count("v").min(2) as u8;
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
