//! What a process leaves to its next program: a sealed file in memory that begins with what is known outside
//! of the proxy, and goes on with the proxy's own.

use crate::config::Config;
use crate::net::Given;
use crate::saved::{Damaged, FORMAT, Loaded, Loader, Saved, Saver, load_all, save_all};
use crate::sys;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{OwnedFd, RawFd};
use std::time::{Duration, Instant};

/// The file begins with this.
const MAGIC: &[u8; 8] = b"magent\0\n";

/// Names the file's descriptor in the environment of the next program.
pub(super) const VARIABLE: &str = "MAGENT_STATE";

/// A listener: its descriptor, and the socket file that is removed with it.
type Number = (RawFd, Option<(u64, u64)>);

/// The head of a state: what is known outside of the proxy.
#[derive(Debug)]
pub(super) struct Head {
    /// The version of the program that wrote it.
    pub version: String,
    /// See [`Config::places`].
    pub places: String,
    /// How long the proxy had been running when this was written, in nanoseconds, and the system's clock then.
    pub age: u64,
    pub clock: u64,
    /// The same clock when the loop stopped reading clients.
    pub quiet_since: u64,
    /// How much is logged; see [`crate::logger::start`].
    pub verbosity: u8,
    /// A HUP came while programs were changing: the next program reloads.
    pub hangup: bool,
    pub pid_file: Option<RawFd>,
    pub listeners: Vec<Number>,
}

impl Head {
    pub fn save(&self, to: &mut Saver<'_>) {
        self.version.save(to);
        self.places.save(to);
        self.age.save(to);
        self.clock.save(to);
        self.quiet_since.save(to);
        self.verbosity.save(to);
        self.hangup.save(to);
        self.pid_file.map(|fd| fd as u32).save(to);
        let listeners: Vec<(u32, Option<(u64, u64)>)> =
            (self.listeners.iter().map(|(fd, own)| (*fd as u32, *own))).collect();
        save_all(to, listeners.iter());
    }

    fn load(from: &mut Loader<'_>) -> Loaded<Head> {
        Ok(Head {
            version: Saved::load(from)?,
            places: Saved::load(from)?,
            age: Saved::load(from)?,
            clock: Saved::load(from)?,
            quiet_since: Saved::load(from)?,
            verbosity: Saved::load(from)?,
            hangup: Saved::load(from)?,
            pid_file: Option::<u32>::load(from)?.map(|fd| fd as RawFd),
            listeners: load_all(from, |from| {
                let (fd, own) = <(u32, Option<(u64, u64)>)>::load(from)?;
                Ok((fd as RawFd, own))
            })?,
        })
    }
}

/// Writes a state: the head, then what `rest` writes.
///
/// # Errors
/// What the system says.
pub(super) fn write(
    mut file: &File,
    head: &Head,
    rest: impl FnOnce(&mut Saver<'_>),
) -> io::Result<()> {
    file.write_all(MAGIC)?;
    let mut to = Saver::new(&mut file);
    FORMAT.save(&mut to);
    head.save(&mut to);
    rest(&mut to);
    to.finish()?;
    sys::seal(file)
}

/// What the program before has left.
pub struct State {
    head: Head,
    from: Loader<'static>,
}

impl State {
    /// What the program before has left, if there was one.
    ///
    /// # Errors
    /// A line: the state cannot be read, or is of another format.
    pub fn left() -> Result<Option<State>, String> {
        let Some(number) = std::env::var_os(VARIABLE) else {
            return Ok(None);
        };
        let number = number.to_str().and_then(|n| n.parse().ok());
        let file = sys::sealed_file(number.unwrap_or(-1));
        let file = file.map_err(|e| format!("{VARIABLE}: {}", sys::reason(&e)))?;
        State::read(file).map(Some)
    }

    /// The state in this file.
    ///
    /// # Errors
    /// A line: it cannot be read, or is of another format.
    pub(super) fn read(mut file: File) -> Result<State, String> {
        let mut magic = [0; MAGIC.len()];
        let mut start = || {
            file.rewind()?;
            file.read_exact(&mut magic)?;
            Ok(file.metadata()?.len() as usize)
        };
        let len = start().map_err(|e: io::Error| format!("the state: {}", sys::reason(&e)))?;
        if &magic != MAGIC {
            return Err("the state is none of magent's".into());
        }
        let mut from = Loader::new(file, len);
        let head = u64::load(&mut from).and_then(|format| match format {
            FORMAT => Head::load(&mut from),
            other => Err(Damaged(format!(
                "the state has format {other}, this program knows {FORMAT}"
            ))),
        });
        match head {
            Ok(head) => Ok(State { head, from }),
            Err(Damaged(why)) => Err(why),
        }
    }

    /// An error unless `config` has clients come in and keys go where they did.
    ///
    /// # Errors
    /// A line.
    pub fn suits(&self, config: &Config) -> Result<(), String> {
        match self.head.places == config.places() {
            true => Ok(()),
            false => Err(
                "listeners, servers or their order are others than those in force: reload first"
                    .into(),
            ),
        }
    }

    /// The listeners.
    ///
    /// # Errors
    /// A line.
    pub fn listeners(&self) -> Result<Vec<Given>, String> {
        let all: io::Result<_> = self
            .head
            .listeners
            .iter()
            .copied()
            .map(Given::inherited)
            .collect();
        all.map_err(|e| format!("a listener: {}", sys::reason(&e)))
    }

    /// The pid file, open.
    ///
    /// # Errors
    /// A line.
    pub fn pid_file(&self) -> Result<Option<OwnedFd>, String> {
        let fd = self.head.pid_file.map(sys::inherited).transpose();
        fd.map_err(|e| format!("the pid file: {}", sys::reason(&e)))
    }

    /// When the proxy began.
    pub(super) fn start(&self, now: Instant) -> Instant {
        let age = self.head.age + sys::monotonic().saturating_sub(self.head.clock);
        now.checked_sub(Duration::from_nanos(age)).unwrap_or(now)
    }

    pub(super) fn parts(self) -> (Head, Loader<'static>) {
        (self.head, self.from)
    }
}
