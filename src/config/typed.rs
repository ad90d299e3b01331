//! What was typed on a command line, looked up in the table of options; and what is wrong with it, in
//! words that name option and value.

use super::UsageError;
use super::options::{OPTIONS, Opt, Takes};
use super::values::{self, Bad};
use getopts::{Fail, HasArg, Matches, Occur, Options};
use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

/// What is said where twemproxy's command line was brought along with its file.
const ONLY_THE_FILE: &str =
    "of twemproxy only the configuration file is compatible, not the command line";

/// twemproxy's options, and what to do about each here.
const TWEMPROXY: &[(&[&str], &str)] = &[
    (
        &["-d", "--daemonize"],
        "leave it out, magent goes to the background by itself",
    ),
    (&["-t", "--test-conf"], "write -t"),
    (&["-c", "--conf-file"], "write -c FILE"),
    (&["-o", "--output"], "the log is -L FILE"),
    (&["-p", "--pid-file"], "the pid file is -P FILE"),
    (&["-v", "--verbose"], "write -v or -vv, without a number"),
    (
        &["-s", "--stats-port"],
        "there is no port for statistics: send `stats` to a pool",
    ),
    (
        &["-a", "--stats-addr"],
        "there is no address for statistics: send `stats` to a pool",
    ),
    (
        &["-i", "--stats-interval"],
        "there is no interval of statistics: -i is connections to a server",
    ),
    (
        &["-m", "--mbuf-size"],
        "there are no mbufs: -m is memory for all that is in flight",
    ),
    (
        &["-D", "--describe-stats"],
        "`man magent` describes the statistics",
    ),
];

/// What was typed, and the table to look it up with. Options are named with their dashes.
pub(super) struct Typed {
    matches: Matches,
}

impl Typed {
    /// Looks every word up; values are read later.
    pub fn parse(args: &[OsString]) -> Result<Typed, UsageError> {
        let mut options = Options::new();
        for o in OPTIONS {
            let (short, long) = match o.name.strip_prefix("--") {
                Some(long) => ("", long),
                None => (o.bare(), o.long.map_or("", |l| l.trim_start_matches('-'))),
            };
            let (has, occurs) = match o.takes {
                Takes::Nothing => (HasArg::No, Occur::Multi),
                Takes::One(_) => (HasArg::Yes, Occur::Optional),
                Takes::Many(_) => (HasArg::Yes, Occur::Multi),
            };
            options.opt(short, long, "", "", has, occurs);
        }
        let matches = options
            .parse(args)
            .map_err(|fail| UsageError::usage(explain(fail, args)))?;
        let typed = Typed { matches };
        match typed.matches.free.first() {
            Some(word) => {
                let option = if typed.flag("-v") { "-v" } else { "" };
                let hint = typed.hint(option);
                Err(UsageError::usage(format!("{word:?}: not an option{hint}")))
            }
            None => Ok(typed),
        }
    }

    /// True if it stands there.
    pub fn flag(&self, option: &str) -> bool {
        self.matches.opt_present(option.trim_start_matches('-'))
    }

    /// How often it stands there.
    pub fn count(&self, option: &str) -> usize {
        self.matches.opt_count(option.trim_start_matches('-'))
    }

    /// The value typed, or the table's default.
    pub fn text(&self, option: &str) -> Option<String> {
        let typed = self.matches.opt_str(option.trim_start_matches('-'));
        let default = || OPTIONS.iter().find(|o| o.name == option)?.default;
        typed.or_else(|| default().map(str::to_string))
    }

    /// All values typed.
    pub fn texts(&self, option: &str) -> Vec<String> {
        self.matches.opt_strs(option.trim_start_matches('-'))
    }

    /// The option's value through `read`; an error names option and value.
    pub fn value<T>(
        &self,
        option: &str,
        read: impl Fn(&str) -> Result<T, Bad>,
    ) -> Result<T, UsageError> {
        let text = self.text(option).unwrap_or_default();
        read(&text).map_err(|bad| match bad {
            Bad::Value(why) => wrong(option, &text, Bad::Value(why + &self.hint(option))),
            world => wrong(option, &text, world),
        })
    }

    /// A number within these bounds.
    pub fn number(&self, option: &str, range: RangeInclusive<u64>) -> Result<u64, UsageError> {
        self.value(option, |text| values::number(text, range.clone()))
    }

    /// A path, made absolute.
    pub fn path(&self, option: &str) -> Result<Option<PathBuf>, UsageError> {
        let text = self.text(option);
        text.map(|text| absolute(option, &text)).transpose()
    }

    /// The end of a message about an option that means something else to twemproxy, if it is
    /// twemproxy's command line that was typed: beside `-c`.
    pub fn hint(&self, option: &str) -> String {
        match twemproxys(option).filter(|_| self.flag("-c")) {
            Some(advice) => format!("; {ONLY_THE_FILE}: {advice}"),
            None => String::new(),
        }
    }
}

/// The value of an option as an absolute path.
pub(super) fn absolute(option: &str, text: &str) -> Result<PathBuf, UsageError> {
    if text.is_empty() {
        return Err(UsageError::usage(format!("{option}: the path is empty")));
    }
    std::path::absolute(Path::new(text))
        .map_err(|e| UsageError::other(format!("{option} {text}: {e}")))
}

/// What to do about an option that twemproxy has.
fn twemproxys(option: &str) -> Option<&'static str> {
    let known = TWEMPROXY.iter().find(|t| t.0.contains(&option))?;
    Some(known.1)
}

/// The error of a value that does not do.
pub(super) fn wrong(option: &str, text: &str, bad: Bad) -> UsageError {
    match bad {
        Bad::Value(why) => UsageError::usage(format!("{option} {text}: {why}")),
        Bad::World(why) => UsageError::other(format!("{option} {text}: {why}")),
    }
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
        Fail::UnrecognizedOption(name) => {
            let option = dashed(&name);
            // Its long options are nobody else's; `-d` may come from memcached.
            let beside_file = |a: &OsString| a.as_encoded_bytes().starts_with(b"-c");
            let is_twemproxys = option.starts_with("--") || args.iter().any(beside_file);
            match twemproxys(&option) {
                Some(advice) if is_twemproxys => {
                    format!("{option}: unknown option; {ONLY_THE_FILE}: {advice}")
                }
                Some(advice) => format!("{option}: unknown option; {advice}"),
                None => format!("{option}: unknown option, magent -h lists all"),
            }
        }
        Fail::OptionMissing(name) => format!("{}: is needed", dashed(&name)),
        Fail::OptionDuplicated(name) => format!("{}: given twice", dashed(&name)),
        Fail::UnexpectedArgument(name) => format!("{}: takes no value", dashed(&name)),
    }
}
