//! The process: its start, its files, its rights, its signals and its end.

mod common;
#[path = "daemon/files.rs"]
mod files;
#[path = "daemon/given.rs"]
mod given;
#[path = "daemon/lines.rs"]
mod lines;
#[path = "daemon/log.rs"]
mod log;
#[path = "daemon/rights.rs"]
mod rights;
#[path = "daemon/signals.rs"]
mod signals;
#[path = "daemon/start.rs"]
mod start;

use common::magent::free_port;
use common::process::{finish, is_gone, is_root, own_uid, public_copy, status_line, text};
use common::{Client, TempDir, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

const MAGENT: &str = env!("CARGO_BIN_EXE_magent");

fn magent(options: &[&str]) -> Command {
    let mut command = Command::new(MAGENT);
    command.args(options);
    command
}

/// A magent in the background, with pid file and log; it ends with its value.
struct Daemon {
    pid: u32,
    port: u16,
    dir: TempDir,
}

impl Daemon {
    /// With these options; no server listens unless they name one.
    #[track_caller]
    fn start(options: &[&str]) -> Daemon {
        Daemon::start_in(TempDir::new(), options)
    }

    #[track_caller]
    fn start_in(dir: TempDir, options: &[&str]) -> Daemon {
        let run = || {
            let port = free_port();
            let mut command = magent(&["-s", "127.0.0.1:1", "-l", "127.0.0.1", "-p"]);
            command.arg(port.to_string()).args(options);
            // Root is warned that it stays root.
            if own_uid() == 0 && !options.contains(&"-u") {
                command.args(["-u", "root"]);
            }
            command.arg("-P").arg(dir.path().join("pid"));
            command.arg("-L").arg(dir.path().join("log"));
            command.arg("-f").arg(dir.path().join("s"));
            (port, finish(command))
        };
        // Somebody else may have taken the port meanwhile.
        let lucky = |o: &Output| !text(&o.stderr).contains("in use");
        let mut tries = (0..20).map(|_| run()).filter(|(_, o)| lucky(o));
        let (port, output) = tries.next().expect("a free port");
        drop(tries);
        let said = text(&output.stderr);
        assert!(output.status.success(), "{}: {said}", output.status);
        assert_eq!((said.as_str(), text(&output.stdout).as_str()), ("", ""));
        // Status 0 means that it serves by now.
        let pid = fs::read_to_string(dir.path().join("pid")).expect("the pid file");
        let number = pid.strip_suffix('\n').and_then(|p| p.parse().ok());
        Daemon {
            pid: number.unwrap_or_else(|| panic!("pid file: {pid:?}")),
            port,
            dir,
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.file("log")).expect("the log")
    }

    fn client(&self) -> Client {
        Client::tcp(self.port)
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid as i32), signal).expect("a signal");
    }

    fn status(&self, name: &str) -> String {
        status_line(self.pid, name)
    }

    #[track_caller]
    fn terminate(&self) {
        self.signal(Signal::SIGTERM);
        wait_for("the daemon to end", || is_gone(self.pid).then_some(()));
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if !is_gone(self.pid) {
            let _ = kill(Pid::from_raw(self.pid as i32), Signal::SIGKILL);
        }
        if std::thread::panicking() {
            let log = fs::read_to_string(self.file("log")).unwrap_or_default();
            eprintln!("--- daemon {}; its log:\n{log}---", self.pid);
        }
    }
}
