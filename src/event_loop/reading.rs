//! Reads the configuration in a thread beside the loop: the file may be on a disk that hangs,
//! looking up listeners takes as long as name service likes, and large rings take long to make. No
//! client waits for that.

use crate::config::{Config, Prepared};
use crate::sys;
use mio::Waker;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread::Builder;
use std::time::{Duration, Instant};

/// A file that takes longer than this is read anew if that was asked for: the disk or the name
/// server may have come back, and the old attempt may never end.
const PATIENCE: Duration = Duration::from_secs(5);

/// A configuration that a thread may be reading.
pub struct Reading {
    waker: Arc<Waker>,
    current: Option<Attempt>,
    /// The file may have changed since it was read.
    again: bool,
}

struct Attempt {
    result: Receiver<Result<Prepared, String>>,
    since: Instant,
}

impl Reading {
    /// Not reading yet. `waker` wakes the loop when a configuration was read.
    pub fn new(waker: Arc<Waker>) -> Reading {
        Reading {
            waker,
            current: None,
            again: false,
        }
    }

    /// Reads the file of `config` again; if it is being read already, once more after that, or
    /// after [`Reading::wait`].
    ///
    /// # Errors
    /// The system has no thread for it.
    pub fn begin(&mut self, config: &Config, now: Instant) -> io::Result<()> {
        if let Some(attempt) = &self.current {
            let taken = now.duration_since(attempt.since);
            self.again = taken < PATIENCE;
            if self.again {
                return Ok(());
            }
            let seconds = taken.as_secs();
            log::warn!("the configuration was not read in {seconds} s; it is read anew");
        }
        let (sender, result) = channel();
        let (config, waker) = (config.clone(), self.waker.clone());
        Builder::new().name("reload".into()).spawn(move || {
            // Neither can fail while the loop exists.
            let _ = sender.send(config.reload().map(Prepared::new));
            let _ = waker.wake();
        })?;
        self.current = Some(Attempt { result, since: now });
        Ok(())
    }

    /// What was read; `None` if nothing is read, or not to its end.
    pub fn take(&mut self, config: &Config, now: Instant) -> Option<Result<Prepared, String>> {
        let read = self.current.as_ref()?.result.try_recv().ok()?;
        self.current = None;
        if std::mem::take(&mut self.again) {
            if let Err(e) = self.begin(config, now) {
                return Some(Err(sys::reason(&e)));
            }
        }
        Some(read)
    }

    /// How long until [`Reading::begin`] is to be called again; `None` if that is not wanted.
    pub fn wait(&self, now: Instant) -> Option<Duration> {
        let attempt = self.current.as_ref().filter(|_| self.again)?;
        Some((attempt.since + PATIENCE).saturating_duration_since(now))
    }

    /// True while the file is read.
    pub fn is_under_way(&self) -> bool {
        self.current.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Action;
    use mio::{Events, Poll, Token};
    use std::ffi::OsString;
    use std::fs;
    use std::io::Write;
    use std::path::Path;
    use std::process::Command;

    /// A configuration in a file of this name.
    fn config(path: &Path) -> Config {
        fs::write(
            path,
            "a:\n  listen: 127.0.0.1:1\n  servers:\n  - 127.0.0.1:2:1\n",
        )
        .unwrap();
        let args: Vec<OsString> = vec!["-D".into(), "-c".into(), path.into()];
        match Config::from_args(&args) {
            Ok(Action::Run(config)) => config,
            other => panic!("{other:?}"),
        }
    }

    /// Waits for what is read.
    fn wait(poll: &mut Poll, reading: &mut Reading, config: &Config, now: Instant) -> String {
        let mut events = Events::with_capacity(8);
        loop {
            poll.poll(&mut events, Some(Duration::from_secs(30)))
                .unwrap();
            assert!(!events.is_empty(), "nothing was read");
            match reading.take(config, now) {
                None => {}
                Some(Ok(read)) => return read.config.pools[0].name.clone(),
                Some(Err(why)) => return why,
            }
        }
    }

    #[test]
    fn a_file_that_hangs_is_read_anew_when_that_is_asked_for() {
        let dir = std::env::temp_dir().join(format!("magent-reading-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let path = dir.join("pools.yml");
        let config = config(&path);
        let text = fs::read(&path).unwrap();
        let mut poll = Poll::new().unwrap();
        let waker = Waker::new(poll.registry(), Token(1)).unwrap();
        let mut reading = Reading::new(Arc::new(waker));
        let now = Instant::now();

        fs::remove_file(&path).unwrap();
        assert!(
            Command::new("mkfifo")
                .arg(&path)
                .status()
                .unwrap()
                .success()
        );
        reading.begin(&config, now).unwrap();
        let mut slow = fs::File::options().write(true).open(&path).unwrap();
        fs::rename(&path, dir.join("slow")).unwrap();
        fs::write(&path, &text).unwrap();
        // Not yet.
        assert_eq!(reading.wait(now), None);
        reading.begin(&config, now + PATIENCE / 2).unwrap();
        assert!(reading.take(&config, now).is_none() && reading.is_under_way());
        assert_eq!(reading.wait(now), Some(PATIENCE));
        assert_eq!(reading.wait(now + PATIENCE), Some(Duration::ZERO));
        reading.begin(&config, now + PATIENCE).unwrap();
        assert_eq!(reading.wait(now + PATIENCE), None);
        assert_eq!(wait(&mut poll, &mut reading, &config, now), "a");
        assert!(!reading.is_under_way());
        // The first attempt ends at last, and nobody cares.
        slow.write_all(b"b: [").unwrap();
        drop(slow);
        assert!(reading.take(&config, now).is_none());
        reading.begin(&config, now).unwrap();
        assert_eq!(wait(&mut poll, &mut reading, &config, now), "a");
        fs::remove_dir_all(&dir).unwrap();
    }
}
