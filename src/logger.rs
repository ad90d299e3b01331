//! The `log` backend: stderr, a file that HUP reopens, or syslog.
//!
//! One line is `2026-11-21T04:08:59.123Z warn text`; syslog gets the text alone, since it adds
//! its own time. Bytes that came from a peer may stand in a text, so control characters are
//! written as `\x0a` and long texts are cut: nobody can forge a line, reach the terminal or
//! fill the disk with one request.
//!
//! Logging never waits. A line that can't be written at once is dropped and counted, and the
//! next one that can be is preceded by the count.

mod sink;

use crate::config::LogTarget;
use crate::files::{self, Owner};
use crate::time::Utc;
use log::{Level, LevelFilter, Log, Metadata, Record};
use sink::{Stream, Syslog, WRITE_MAX};
use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Where every system's syslog listens.
const SYSLOG: &str = "/dev/log";

/// syslog's number for daemons.
const FACILITY: u8 = 3;

/// The target of lines that are logged whatever was asked for: what starts, stops and changes.
pub const NOTICE: &str = "notice";

/// Bytes at most of what goes with a text: time, level and line end, and a line that says how
/// many were lost before it.
const HEADS_MAX: usize = 160;

/// Bytes of one text at most.
const TEXT_MAX: usize = WRITE_MAX - HEADS_MAX;

/// Bytes of one piece of a text at most, so that what stands behind a long request is seen.
const PIECE_MAX: usize = 1024;

/// Lines that are kept for operators.
const RECENT: usize = 30;

/// The present sink.
enum Sink {
    /// Before [`start`].
    Nowhere,
    Stderr(Stream),
    File(PathBuf, Stream),
    Syslog(Syslog),
}

/// A line of the log, whether or not the sink took it.
#[derive(Clone, Debug)]
pub struct Line {
    /// When, in seconds since the epoch.
    pub at: u64,
    /// Its level in one word.
    pub level: &'static str,
    /// What it says.
    pub text: String,
}

/// The sink, and the lines that it did not take.
struct State {
    sink: Sink,
    /// The last lines, but for those of requests, oldest first.
    recent: VecDeque<Line>,
    /// Since the start.
    lost: u64,
    /// Since the log said so last.
    unreported: u64,
}

/// The one logger of the process, as the crate `log` wants it.
struct Logger {
    state: Mutex<State>,
    /// See [`start`].
    verbosity: AtomicU8,
}

static LOGGER: Logger = Logger {
    state: Mutex::new(State {
        sink: Sink::Nowhere,
        recent: VecDeque::new(),
        lost: 0,
        unreported: 0,
    }),
    verbosity: AtomicU8::new(0),
};

/// Sends all lines to `target` from now on; a log file is given to `owner`. `verbosity`: 0
/// what an administrator should know, 1 what happens to servers and listeners too, 2 and more
/// every request.
///
/// # Errors
/// The log can't be opened.
pub fn start(target: &LogTarget, verbosity: u8, owner: Owner) -> io::Result<()> {
    let sink = match target {
        LogTarget::Stderr => Sink::Stderr(Stream::stderr()?),
        LogTarget::Syslog => Sink::Syslog(Syslog::new(Path::new(SYSLOG))),
        LogTarget::File(path) => {
            let stream = Stream::open(path)?;
            files::give(stream.file(), owner)?;
            Sink::File(path.clone(), stream)
        }
    };
    LOGGER.state().sink = sink;
    // It only fails if it was called before, and then this logger is in place already.
    let _ = log::set_logger(&LOGGER);
    set_verbosity(verbosity);
    Ok(())
}

/// From now on so much is logged; see [`start`].
pub fn set_verbosity(verbosity: u8) {
    let stored = &LOGGER.verbosity;
    stored.store(verbosity.min(2), Ordering::Relaxed);
    log::set_max_level(match verbosity {
        0 | 1 => LevelFilter::Info,
        _ => LevelFilter::Debug,
    });
}

/// How much is logged; see [`start`].
pub fn verbosity() -> u8 {
    LOGGER.verbosity.load(Ordering::Relaxed)
}

/// Opens the log file anew, after it was moved away. Stderr and syslog need nothing.
///
/// # Errors
/// The file can't be opened; lines then go on to the one that was moved.
pub fn reopen() -> io::Result<()> {
    let path = match &LOGGER.state().sink {
        Sink::File(path, _) => path.clone(),
        _ => return Ok(()),
    };
    let stream = Stream::open(&path)?;
    LOGGER.state().sink = Sink::File(path, stream);
    Ok(())
}

/// The last lines, but for those of requests, oldest first.
pub fn recent() -> Vec<Line> {
    LOGGER.state().recent.iter().cloned().collect()
}

/// How many lines could not be written since the start.
pub fn lost() -> u64 {
    LOGGER.state().lost
}

impl Logger {
    /// A panic elsewhere leaves no half-made state behind, so a poisoned lock is as good.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let asked = match verbosity() {
            0 => Level::Warn,
            1 => Level::Info,
            _ => Level::Debug,
        };
        metadata.level() <= asked || metadata.target() == NOTICE
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        // Made before the lock is taken: the text's own formatting may log or panic.
        let mut text = Text(String::with_capacity(128));
        // It ends early where the text is cut.
        let _ = write!(text, "{}", record.args());
        self.state().write(record.level(), &text.0);
    }

    fn flush(&self) {}
}

impl State {
    fn write(&mut self, level: Level, text: &str) {
        if level <= Level::Info {
            self.keep(level, text);
        }
        if self.put(level, text).is_ok() {
            self.unreported = 0;
        } else {
            self.lost += 1;
            self.unreported += 1;
        }
    }

    fn keep(&mut self, level: Level, text: &str) {
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        let mut ends = (0..=PIECE_MAX.min(text.len())).rev();
        let end = ends.find(|end| text.is_char_boundary(*end));
        self.recent.push_back(Line {
            at: since_epoch(SystemTime::now()).as_secs(),
            level: word(level),
            text: text[..end.unwrap_or(0)].to_string(),
        });
    }

    /// Writes a line, and before it how many were lost there: both or neither.
    fn put(&mut self, level: Level, text: &str) -> io::Result<()> {
        let notice = match self.unreported {
            0 => None,
            n => Some(format!("{n} log lines were lost")),
        };
        let notice = notice.as_deref().map(|n| (Level::Warn, n));
        let lines = notice.into_iter().chain([(level, text)]);
        let mut out = String::with_capacity(text.len() + HEADS_MAX);
        match &mut self.sink {
            Sink::Nowhere => Ok(()),
            Sink::Stderr(stream) | Sink::File(_, stream) => {
                for (level, text) in lines {
                    let _ = start_line(&mut out, SystemTime::now(), level);
                    out.push_str(text);
                    out.push('\n');
                }
                stream.put(out.as_bytes())
            }
            Sink::Syslog(syslog) => {
                let pid = std::process::id();
                for (level, text) in lines {
                    let priority = FACILITY << 3 | gravity(level);
                    out.clear();
                    let _ = write!(out, "<{priority}>magent[{pid}]: {text}");
                    syslog.put(out.as_bytes())?;
                    self.unreported = 0;
                }
                Ok(())
            }
        }
    }
}

/// A text in the making: control characters become `\x..`, and what is too long `...`.
struct Text(String);

impl std::fmt::Write for Text {
    fn write_str(&mut self, piece: &str) -> std::fmt::Result {
        let end = TEXT_MAX.min(self.0.len() + PIECE_MAX);
        for c in piece.chars() {
            if self.0.len() >= end {
                self.0.push_str("...");
                break;
            }
            if c.is_control() {
                write!(self.0, "\\x{:02x}", u32::from(c))?;
            } else {
                self.0.push(c);
            }
        }
        match self.0.len() < TEXT_MAX {
            true => Ok(()),
            false => Err(std::fmt::Error),
        }
    }
}

/// syslog's number for a level.
fn gravity(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

fn start_line(out: &mut String, time: SystemTime, level: Level) -> std::fmt::Result {
    let since = since_epoch(time);
    let (seconds, milli) = (Utc(since.as_secs()), since.subsec_millis());
    write!(out, "{seconds}.{milli:03}Z {} ", word(level))
}

fn since_epoch(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO)
}

fn word(level: Level) -> &'static str {
    match level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug | Level::Trace => "debug",
    }
}

/// A client's or server's line for a text, without its end; what is no UTF-8 as `\xff`.
pub fn shown(line: &[u8]) -> Cow<'_, str> {
    let line = line.trim_ascii_end();
    match std::str::from_utf8(line) {
        Ok(text) => text.into(),
        Err(_) => {
            let mut out = String::new();
            for chunk in line.utf8_chunks() {
                out.push_str(chunk.valid());
                for b in chunk.invalid() {
                    let _ = write!(out, "\\x{b:02x}");
                }
            }
            out.into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        for (seconds, line) in [
            (0, "1970-01-01T00:00:00.000Z warn "),
            (951_782_400, "2000-02-29T00:00:00.000Z warn "),
            (951_868_799, "2000-02-29T23:59:59.000Z warn "),
            (1_709_251_199, "2024-02-29T23:59:59.000Z warn "),
            (1_735_689_599, "2024-12-31T23:59:59.000Z warn "),
            (4_107_542_400, "2100-03-01T00:00:00.000Z warn "),
        ] {
            let mut out = String::new();
            let time = UNIX_EPOCH + Duration::from_secs(seconds);
            start_line(&mut out, time, Level::Warn).unwrap();
            assert_eq!(out, line);
        }
    }

    fn text(args: std::fmt::Arguments<'_>) -> String {
        let mut text = Text(String::new());
        let _ = text.write_fmt(args);
        text.0
    }

    #[test]
    fn nobody_forges_a_line() {
        assert_eq!(
            text(format_args!("key {} ü", "a\r\nb\x1b[2J\0\u{85}")),
            "key a\\x0d\\x0ab\\x1b[2J\\x00\\x85 ü"
        );
    }

    #[test]
    fn long_texts_are_cut() {
        let long = "ü".repeat(1 << 20);
        let said = text(format_args!("a <- {long} (why)"));
        assert!(said.starts_with("a <- üü") && said.ends_with("ü... (why)"));
        assert!(said.len() < PIECE_MAX + 32, "{}", said.len());
        let (many, zeros) = (format!("{long}\0"), "\0".repeat(10_000));
        let said = text(format_args!("{many}{zeros}{many}{zeros}{many}{zeros}"));
        assert!((TEXT_MAX..TEXT_MAX + 8).contains(&said.len()));
    }

    #[test]
    fn a_syslog_that_nobody_reads_is_not_waited_for() {
        let dir = std::env::temp_dir().join(format!("magent-syslog-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("log");
        let mut state = State {
            sink: Sink::Syslog(Syslog::new(&path)),
            recent: VecDeque::new(),
            lost: 0,
            unreported: 0,
        };
        state.write(Level::Info, "nobody listens");
        assert_eq!((state.lost, state.unreported), (1, 1));
        let bind = || {
            let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        };
        let read = |socket: &std::os::unix::net::UnixDatagram| {
            let mut buf = [0; 2 * WRITE_MAX];
            let n = socket.recv(&mut buf).ok()?;
            let said = String::from_utf8_lossy(&buf[..n]).into_owned();
            Some(said.replace(&format!("magent[{}]", std::process::id()), "magent"))
        };
        let log = bind();
        state.write(Level::Error, "a");
        assert_eq!(read(&log).unwrap(), "<28>magent: 1 log lines were lost");
        assert_eq!(read(&log).unwrap(), "<27>magent: a");
        let before = state.lost;
        // More than any socket takes.
        (0..50_000).for_each(|_| state.write(Level::Debug, "b"));
        let lost = state.lost - before;
        assert!((1..50_000).contains(&lost), "{lost}");
        while read(&log).is_some() {}
        // Syslog was started again meanwhile.
        drop(log);
        std::fs::remove_file(&path).unwrap();
        let log = bind();
        state.write(Level::Info, "c");
        let told = format!("<28>magent: {lost} log lines were lost");
        assert_eq!(read(&log).unwrap(), told);
        assert_eq!(read(&log).unwrap(), "<30>magent: c");
        std::fs::remove_dir_all(&dir).unwrap();
    }

    /// One test for all that touches the one logger of the process.
    #[test]
    fn a_file_is_reopened() {
        let dir = std::env::temp_dir().join(format!("magent-log-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (path, moved) = (dir.join("log"), dir.join("log.1"));
        start(&LogTarget::File(path.clone()), 1, None).unwrap();
        log::warn!("first\nline");
        log::debug!("not asked for");
        std::fs::rename(&path, &moved).unwrap();
        log::info!("still the old file");
        reopen().unwrap();
        log::set_max_level(LevelFilter::Warn);
        log::info!("too quiet");
        log::error!("second");
        std::fs::rename(&path, dir.join("log.2")).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(reopen().is_err());
        log::error!("third");
        let texts = |path: &Path| -> Vec<String> {
            let all = std::fs::read_to_string(path).unwrap();
            all.lines().map(|l| l[25..].to_string()).collect()
        };
        let first = texts(&moved);
        assert!(
            first.contains(&"warn first\\x0aline".to_string()),
            "{first:?}"
        );
        assert!(first.contains(&"info still the old file".to_string()));
        assert!(!first.iter().any(|l| l.contains("not asked for")));
        let second = texts(&dir.join("log.2"));
        assert!(second.contains(&"error second".to_string()), "{second:?}");
        assert!(second.contains(&"error third".to_string()));
        assert!(!second.iter().any(|l| l.contains("too quiet")));
        start(&LogTarget::Stderr, 0, None).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
