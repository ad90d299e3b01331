//! Text commands, one a line.

use super::lists;
use super::task::Task;
use crate::buffer::Queue;
use crate::clients::write_stats;
use crate::net::Socket;
use crate::protocol::Format;
use crate::proxy::{Proxy, Stats};
use crate::work::{REPORT, REPORT_LINES, Work};

const HELP: &str = "\
stats [servers|proxy|settings|pools|route KEY|verify NAME|reset|...]  as on clients' ports, of all pools
clients                      a line for each client
kill N                       closes client N
server NAME drain            takes a server out of use, as if it were down
server NAME use              uses a drained server again
server NAME probe            asks a server now whether it answers
server NAME refill           fills a server with what it lacks, from its partners
server NAME verify           compares a server with its partners; see stats verify NAME
slow [reset]                 the last requests that took longer than --slow; or forgets them
hot                          the keys asked most in the last minute
config                       the configuration in force, as a file for -c
reload                       reads the file of -c again
reload now                   the same, and ends a move of keys that is under way
log warn|info|debug          how much is logged from now on
quit                         ends the session
";

/// Levels of the log by their names, as `-v` counts them.
const LEVELS: [&str; 3] = ["warn", "info", "debug"];

/// What follows a line.
pub enum Follows {
    /// The answer is this task's, or complete already.
    Task(Task),
    /// The session ends.
    Close,
}

/// One operator's line, and who that is.
pub struct Asked<'a> {
    /// The session's number.
    pub number: usize,
    /// For the log.
    pub peer: &'a str,
    /// Without its end.
    pub line: &'a str,
}

/// Answers a line.
pub fn answer<S: Socket>(
    asked: &Asked<'_>,
    proxy: &mut Proxy<S>,
    out: &mut Queue,
    work: &mut Work,
) -> Follows {
    let words: Vec<&str> = asked.line.split_ascii_whitespace().collect();
    let task = match words[..] {
        [] => Task::Nothing,
        ["quit"] => return Follows::Close,
        ["clients"] => Task::Clients(0),
        ["stats", ref arguments @ ..] => {
            work.count(REPORT);
            stats(asked, arguments, proxy, out, work)
        }
        ["help"] => {
            say_lines(HELP, "END\r\n", out);
            Task::Nothing
        }
        ["slow"] => {
            work.count(REPORT);
            list(proxy.slow_requests(), out, |(at, pool, request), text| {
                lists::slow(request, pool, at, text);
            })
        }
        ["hot"] => {
            work.count(REPORT);
            let keys = proxy.hot_keys();
            list(keys, out, |(pool, key), text| lists::hot(&key, pool, text))
        }
        ["config"] => {
            work.count(REPORT);
            // It can be saved as it comes.
            say_lines(&proxy.configuration(), "# END\r\n", out);
            Task::Nothing
        }
        ["reload"] | ["reload", "now"] => {
            log_change(asked);
            proxy.end_moves_at_reload(words.len() > 1);
            Task::Reload
        }
        _ => {
            let done = change(&words, proxy);
            if done.is_ok() {
                log_change(asked);
            }
            say(&done, out);
            Task::Nothing
        }
    };
    Follows::Task(task)
}

/// What changes something. The error is what stands behind `ERROR`.
fn change<S: Socket>(words: &[&str], proxy: &mut Proxy<S>) -> Result<(), String> {
    match *words {
        ["kill", number] => proxy.kill(number),
        ["kill", ..] => Err("usage: kill N".into()),
        ["server", name, "drain"] => proxy.drain_server(name),
        ["server", name, "use"] => proxy.end_drain(name),
        ["server", name, "probe"] => proxy.probe_server(name),
        ["server", name, "refill"] => proxy.refill_server(name),
        ["server", name, "verify"] => proxy.verify_server(name),
        ["server", _, word, ..] => Err(word.into()),
        ["server", ..] => Err("usage: server NAME drain|use|probe|refill|verify".into()),
        ["slow", "reset"] => {
            proxy.forget_slow();
            Ok(())
        }
        ["reload", ..] => Err("usage: reload [now]".into()),
        ["slow", ..] => Err("usage: slow [reset]".into()),
        ["log", level] if LEVELS.contains(&level) => {
            let verbosity = LEVELS.iter().position(|l| *l == level);
            proxy.set_verbosity(verbosity.unwrap_or(0) as u8);
            Ok(())
        }
        ["log", ..] => Err("usage: log warn|info|debug".into()),
        _ => Err(words.first().copied().unwrap_or_default().into()),
    }
}

/// Answers with a line for each, and an end.
fn list<T>(
    all: impl IntoIterator<Item = T>,
    out: &mut Queue,
    write: impl Fn(T, &mut String),
) -> Task {
    let mut text = String::new();
    all.into_iter().for_each(|one| write(one, &mut text));
    text.push_str("END\r\n");
    out.push_slice(text.as_bytes());
    Task::Nothing
}

fn stats<S: Socket>(
    asked: &Asked<'_>,
    arguments: &[&str],
    proxy: &mut Proxy<S>,
    out: &mut Queue,
    work: &mut Work,
) -> Task {
    match proxy.operator_stats(asked.number, &arguments.join(" ")) {
        Some(Stats::Lines(lines)) => {
            work.count(lines.len() / REPORT_LINES);
            write_stats(Format::Text, &lines, out);
        }
        Some(Stats::Text(text)) => {
            if arguments.first() == Some(&"reset") {
                log_change(asked);
            }
            out.push_slice(text.as_bytes());
        }
        Some(Stats::Refused(why)) => {
            out.push_slice(why.as_bytes());
            out.push_slice(b"\r\n");
        }
        Some(Stats::Later) => return Task::Report,
        None => say(&Err(arguments.join(" ")), out),
    }
    Task::Nothing
}

/// The answer to what changes something.
pub fn say(done: &Result<(), String>, out: &mut Queue) {
    let line = match done {
        Ok(()) => "OK\r\n".to_string(),
        Err(why) => format!("ERROR {}\r\n", why.escape_debug()),
    };
    out.push_slice(line.as_bytes());
}

fn say_lines(text: &str, end: &str, out: &mut Queue) {
    for line in text.lines() {
        out.push_slice(line.as_bytes());
        out.push_slice(b"\r\n");
    }
    out.push_slice(end.as_bytes());
}

fn log_change(asked: &Asked<'_>) {
    log::warn!("operator {}: {}", asked.peer, asked.line.trim());
}
