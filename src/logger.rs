//! The `log` backend: stderr, a file that HUP reopens, or syslog.
//!
//! One line is `2026-11-21T04:08:59.123Z warn text`; syslog gets the text alone, since it adds
//! its own time. Bytes that came from a peer may stand in a text, so control characters are
//! written as `\x0a`: nobody can forge a line or reach the terminal.

use crate::config::LogTarget;
use crate::files::{self, Owner};
use crate::sys::{self, Gravity};
use log::{Level, LevelFilter, Log, Metadata, Record};
use std::ffi::CString;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Where lines go now.
enum Sink {
    Stderr,
    Syslog,
    File { path: PathBuf, file: File },
}

/// What `log` wants: one object that lives for ever.
struct Logger(Mutex<Sink>);

static LOGGER: Logger = Logger(Mutex::new(Sink::Stderr));

/// Sends all lines to `target` from now on; a log file is given to `owner`, `verbosity` is as
/// in [`set_verbosity`].
///
/// # Errors
/// The file can't be opened.
pub fn start(target: &LogTarget, verbosity: u32, owner: Owner) -> io::Result<()> {
    let sink = match target {
        LogTarget::Stderr => Sink::Stderr,
        LogTarget::Syslog => {
            sys::open_syslog();
            Sink::Syslog
        }
        LogTarget::File(path) => {
            let file = files::open_log(path)?;
            files::give(&file, owner)?;
            Sink::File {
                path: path.clone(),
                file,
            }
        }
    };
    LOGGER.set(sink);
    // It only fails if it was called before, and then this logger is in place already.
    let _ = log::set_logger(&LOGGER);
    set_verbosity(verbosity);
    Ok(())
}

/// What is logged: 0 what an administrator should know, 1 what happens to servers and
/// listeners too, 2 and more every request.
pub fn set_verbosity(verbosity: u32) {
    log::set_max_level(match verbosity {
        0 => LevelFilter::Warn,
        1 => LevelFilter::Info,
        _ => LevelFilter::Debug,
    });
}

/// Opens the log file anew, after it was moved away. Stderr and syslog need nothing.
///
/// # Errors
/// The file can't be opened; lines then go on to the one that was moved.
pub fn reopen() -> io::Result<()> {
    let path = match &*LOGGER.sink() {
        Sink::File { path, .. } => path.clone(),
        Sink::Stderr | Sink::Syslog => return Ok(()),
    };
    let file = files::open_log(&path)?;
    LOGGER.set(Sink::File { path, file });
    Ok(())
}

impl Logger {
    /// A panic elsewhere leaves no half-made sink behind, so a poisoned lock is as good.
    fn sink(&self) -> std::sync::MutexGuard<'_, Sink> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, sink: Sink) {
        *self.sink() = sink;
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        // Made before the lock is taken: the text's own formatting may log or panic.
        let mut line = Line(String::with_capacity(128));
        let _ = start_line(&mut line.0, SystemTime::now(), record.level());
        let text = line.0.len();
        let _ = write!(line, "{}", record.args());
        // A log that can't be written must not stop what it is about.
        let _ = match &mut *self.sink() {
            Sink::Stderr => io::stderr().write_all(line.end().as_bytes()),
            Sink::File { file, .. } => file.write_all(line.end().as_bytes()),
            Sink::Syslog => {
                // No NUL is left, so this always succeeds.
                if let Ok(line) = CString::new(&line.0[text..]) {
                    sys::syslog(gravity(record.level()), &line);
                }
                Ok(())
            }
        };
    }

    fn flush(&self) {}
}

/// A line in the making: control characters become `\x..`.
struct Line(String);

impl Line {
    fn end(&mut self) -> &str {
        self.0.push('\n');
        &self.0
    }
}

impl std::fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for c in text.chars() {
            if c.is_control() {
                write!(self.0, "\\x{:02x}", u32::from(c))?;
            } else {
                self.0.push(c);
            }
        }
        Ok(())
    }
}

fn gravity(level: Level) -> Gravity {
    match level {
        Level::Error => Gravity::Error,
        Level::Warn => Gravity::Warning,
        Level::Info => Gravity::Info,
        Level::Debug | Level::Trace => Gravity::Debug,
    }
}

fn start_line(out: &mut String, time: SystemTime, level: Level) -> std::fmt::Result {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let milli = since.subsec_millis();
    let word = match level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug | Level::Trace => "debug",
    };
    write!(
        out,
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z {word} "
    )
}

/// Year, month and day of the day so many days after 1970-01-01. Howard Hinnant's
/// `civil_from_days`: years that start in March have their leap day at the end.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

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

    #[test]
    fn nobody_forges_a_line() {
        let mut line = Line(String::new());
        write!(line, "key a\r\nb\x1b[2J\0\u{85} ü").unwrap();
        assert_eq!(line.end(), "key a\\x0d\\x0ab\\x1b[2J\\x00\\x85 ü\n");
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
        set_verbosity(0);
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
