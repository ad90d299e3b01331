//! A real memcached on loopback.

use super::{Client, TempDir, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::io::ErrorKind;
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

/// The connection that asks counts too.
const OWN_CONNECTIONS: u64 = 1;

/// One process; it ends with its value, also when a test fails.
pub struct Memcached {
    child: Child,
    options: Vec<String>,
    /// Where it listens on 127.0.0.1.
    pub port: u16,
    /// `127.0.0.1:PORT`, as magent is told and as it names it.
    pub name: String,
}

impl Memcached {
    /// A fresh one on a port that the kernel chose.
    pub fn start() -> Memcached {
        Memcached::with(&[])
    }

    /// The same with more options.
    pub fn with(options: &[&str]) -> Memcached {
        let options: Vec<String> = options.iter().map(|o| o.to_string()).collect();
        let dir = TempDir::new();
        let file = dir.path().join("port");
        let mut command = command("-1", &options);
        let mut child = spawn(command.env("MEMCACHED_PORT_FILENAME", &file));
        let port = wait_for("memcached's port", || {
            assert!(
                child.try_wait().expect("its status").is_none(),
                "memcached ended at once"
            );
            let text = fs::read_to_string(&file).ok()?;
            text.lines()
                .find_map(|l| l.strip_prefix("TCP INET: ")?.parse().ok())
        });
        Memcached {
            child,
            options,
            port,
            name: format!("127.0.0.1:{port}"),
        }
        .ready()
    }

    fn ready(mut self) -> Memcached {
        let port = self.port;
        wait_for("memcached to listen", || {
            assert!(
                self.child.try_wait().expect("its status").is_none(),
                "memcached ended at once"
            );
            TcpStream::connect(("127.0.0.1", port)).ok()
        });
        self
    }

    /// `-9`, and gone when this returns.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// An empty one on the same address; it may still run.
    pub fn restart(&mut self) {
        self.kill();
        // The port may be held for a moment by a connection of somebody else: then it ends at once.
        wait_for(&format!("memcached to be back on {}", self.port), || {
            self.child = spawn(&mut command(&self.port.to_string(), &self.options));
            let listens = wait_for("memcached to listen or to end", || {
                let listens = TcpStream::connect(("127.0.0.1", self.port)).is_ok();
                let ended = self.child.try_wait().expect("its status").is_some();
                (listens || ended).then_some(!ended)
            });
            listens.then_some(())
        });
    }

    /// It stays, but does nothing any more: what a hung machine looks like.
    pub fn stop(&self) {
        self.signal(Signal::SIGSTOP);
        // A thread on another processor may still run for a moment.
        let tasks = format!("/proc/{}/task", self.child.id());
        wait_for("memcached to stop", || {
            let tasks = fs::read_dir(&tasks).expect("its threads");
            let mut states = tasks.map(|task| {
                let file = task.expect("a thread").path().join("stat");
                fs::read_to_string(file).unwrap_or_default()
            });
            // PID (NAME) STATE …
            states
                .all(|s| s.rsplit(") ").next().is_some_and(|s| s.starts_with('T')))
                .then_some(())
        });
    }

    /// Ends [`Memcached::stop`].
    pub fn cont(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("a signal");
    }

    /// A client of its own, past any magent.
    pub fn client(&self) -> Client {
        Client::tcp(self.port)
    }

    /// The answer to a plain get, past any magent: `None` if the key is absent.
    pub fn value(&self, key: &str) -> Option<Vec<u8>> {
        self.client().get(key)
    }

    /// Waits until it holds `value` under `key`: mirrors travel behind the client's answer.
    #[track_caller]
    pub fn wait_value(&self, key: &str, value: Option<&[u8]>) {
        let mut client = self.client();
        wait_for(&format!("{key} on {}", self.name), || {
            (client.get(key).as_deref() == value).then_some(())
        });
    }

    /// Waits until it has `n` connections beside the one that asks.
    #[track_caller]
    pub fn wait_connections(&self, n: u64) {
        wait_for(&format!("{n} connections to {}", self.name), || {
            (self.stat("curr_connections") == n + OWN_CONNECTIONS).then_some(())
        });
    }

    /// One field of its `stats`.
    pub fn stat(&self, name: &str) -> u64 {
        let all = self.client().stats("stats\r\n");
        all.get(name)
            .and_then(|v| v.parse().ok())
            .unwrap_or_else(|| panic!("no {name} in memcached's stats"))
    }
}

impl Drop for Memcached {
    fn drop(&mut self) {
        self.kill();
    }
}

fn command(port: &str, options: &[String]) -> Command {
    let mut command = Command::new("memcached");
    command.args([
        "-u",
        "nobody",
        "-l",
        "127.0.0.1",
        "-U",
        "0",
        "-t",
        "1",
        "-m",
        "64",
        "-p",
        port,
    ]);
    command
        .args(options)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

fn spawn(command: &mut Command) -> Child {
    match command.spawn() {
        Ok(child) => child,
        Err(e) if e.kind() == ErrorKind::NotFound => {
            panic!("these tests need a real memcached: apt-get install memcached")
        }
        Err(e) => panic!("memcached does not start: {e}"),
    }
}
