//! Pid file, log file and socket file.

use super::common::{Client, TempDir, wait_for};
use super::{Daemon, finish, magent, text};
use nix::sys::signal::Signal;
use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;

fn mode(path: &std::path::Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn a_unix_socket_has_its_mode_and_serves() {
    let daemon = Daemon::start(&[]);
    assert_eq!(mode(&daemon.file("s")), 0o700);
    let version = Client::unix(&daemon.file("s")).ask_line("version\r\n");
    assert!(version.starts_with("VERSION"));
    let daemon = Daemon::start(&["-a", "0660"]);
    assert_eq!(mode(&daemon.file("s")), 0o660);
    let daemon = Daemon::start(&["-a", "777"]);
    assert_eq!(mode(&daemon.file("s")), 0o777);
}

#[test]
fn a_stale_socket_is_replaced() {
    let dir = TempDir::new();
    drop(UnixListener::bind(dir.path().join("s")).unwrap());
    assert!(dir.path().join("s").exists(), "it stays behind");
    let daemon = Daemon::start_in(dir, &[]);
    let socket = fs::symlink_metadata(daemon.file("s")).unwrap();
    assert!(socket.file_type().is_socket());
    Client::unix(&daemon.file("s")).ask_line("version\r\n");
    // After a crash too.
    daemon.signal(Signal::SIGKILL);
    wait_for("its end", || super::is_gone(daemon.pid).then_some(()));
    assert!(daemon.file("s").exists() && daemon.file("pid").exists());
    let path = |name: &str| daemon.file(name).to_str().unwrap().to_string();
    let (socket, pid) = (path("s"), path("pid"));
    let options = ["-s", "127.0.0.1:1", "-p", "0", "-f", &socket, "-P", &pid];
    assert!(finish(magent(&options)).status.success());
    let next = fs::read_to_string(daemon.file("pid")).unwrap();
    let next = Daemon {
        pid: next.trim_end().parse().unwrap(),
        port: 0,
        dir: TempDir::new(),
    };
    assert_ne!(next.pid, daemon.pid);
    Client::unix(&daemon.file("s")).ask_line("version\r\n");
    // A second one on the same socket is refused, and does no harm.
    let output = finish(magent(&options));
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("in use"),
        "{}",
        text(&output.stderr)
    );
    Client::unix(&daemon.file("s")).ask_line("version\r\n");
    let pid = fs::read_to_string(daemon.file("pid")).unwrap();
    assert_eq!(
        pid.trim_end(),
        next.pid.to_string(),
        "the pid file is the first one's"
    );
    next.terminate();
    assert!(!daemon.file("s").exists() && !daemon.file("pid").exists());
}

#[test]
fn a_socket_of_a_successor_is_left_alone() {
    let daemon = Daemon::start(&[]);
    fs::remove_file(daemon.file("s")).unwrap();
    let _successor = UnixListener::bind(daemon.file("s")).unwrap();
    fs::write(daemon.file("pid.new"), "1\n").unwrap();
    fs::rename(daemon.file("pid.new"), daemon.file("pid")).unwrap();
    daemon.terminate();
    assert!(daemon.file("s").exists() && daemon.file("pid").exists());
}

#[test]
fn hup_reopens_the_log() {
    let daemon = Daemon::start(&[]);
    daemon.client().ask("verbosity 1\r\n", "OK\r\n");
    let moved = daemon.file("log.1");
    fs::rename(daemon.file("log"), &moved).unwrap();
    daemon.client().ask_line("get a\r\n");
    let old = fs::read_to_string(&moved).unwrap();
    assert!(
        old.contains("127.0.0.1:1: down: connection refused"),
        "{old}"
    );
    assert!(!daemon.file("log").exists());
    daemon.signal(Signal::SIGHUP);
    wait_for("a new log", || daemon.file("log").exists().then_some(()));
    let size = fs::metadata(&moved).unwrap().len();
    daemon.client().ask("verbosity 2\r\n", "OK\r\n");
    daemon.client().ask_line("get b\r\n");
    wait_for("lines in it", || {
        daemon.log().contains("get b").then_some(())
    });
    assert_eq!(fs::metadata(&moved).unwrap().len(), size);
    // A log that can't be opened again does not stop the service.
    fs::remove_file(daemon.file("log")).unwrap();
    fs::create_dir(daemon.file("log")).unwrap();
    daemon.signal(Signal::SIGHUP);
    daemon.client().ask_line("version\r\n");
    daemon.terminate();
    fs::remove_dir(daemon.file("log")).unwrap();
    fs::rename(&moved, daemon.file("log")).unwrap();
}
