//! Pid file, log file and socket file.

use super::common::keys::key_on;
use super::common::{Client, Fake, TempDir, wait_for};
use super::{Daemon, MAGENT, finish, is_root, magent, own_uid, text};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

fn mode(path: &Path) -> u32 {
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

/// Who starts it again need not wait for its end, and the pid file is the successor's then.
#[test]
fn a_successor_may_come_while_clients_are_owed() {
    let (server, gate) = Fake::holding("get", |_| "END\r\n");
    let daemon = Daemon::start(&["-s", &server.name, "--timeout", "20000"]);
    let mut client = daemon.client();
    client.send(format!("get {}\r\n", key_on(1, 2, "key", 0)));
    server.wait_count("get", 1);
    daemon.signal(Signal::SIGTERM);
    let (port, pid) = (daemon.port.to_string(), daemon.file("pid"));
    wait_for("a successor", || {
        let options = ["-s", "127.0.0.1:1", "-l", "127.0.0.1", "-p", &port, "-P"];
        let mut command = magent(&options);
        command.arg(&pid).args(["-u", "root"]);
        let output = finish(command);
        // Until it stops, the first one has the pid file and the port.
        output.status.success().then_some(())
    });
    let next = fs::read_to_string(&pid).unwrap();
    let next = Daemon {
        pid: next.trim_end().parse().unwrap(),
        port: daemon.port,
        dir: TempDir::new(),
    };
    assert_ne!(next.pid, daemon.pid);
    gate.open();
    client.expect("END\r\n").read_to_end();
    wait_for("its end", || super::is_gone(daemon.pid).then_some(()));
    assert_eq!(fs::read_to_string(&pid).unwrap(), format!("{}\n", next.pid));
    next.terminate();
    assert!(!pid.exists());
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
    let daemon = Daemon::start(&["-s", "127.0.0.1:2"]);
    let (key, other) = (key_on(0, 2, "key", 0), key_on(1, 2, "key", 0));
    let moved = daemon.file("log.1");
    fs::rename(daemon.file("log"), &moved).unwrap();
    daemon.client().ask_line(format!("get {key}\r\n"));
    let old = fs::read_to_string(&moved).unwrap();
    assert!(
        old.contains("127.0.0.1:1: down: connection refused"),
        "{old}"
    );
    assert!(!daemon.file("log").exists());
    daemon.signal(Signal::SIGHUP);
    wait_for("a new log", || daemon.file("log").exists().then_some(()));
    let size = fs::metadata(&moved).unwrap().len();
    daemon.client().ask_line(format!("get {other}\r\n"));
    assert!(daemon.log().contains("127.0.0.1:2: down: "));
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

/// A start with this option and path fails with one line that names both and says why.
#[track_caller]
fn refused(option: &str, path: &Path, why: &str) {
    let name = path.to_str().unwrap();
    let server = ["-s", "127.0.0.1:1", "-l", "127.0.0.1", "-p", "0"];
    let socket = path.with_file_name("own-socket");
    let socket = ["-f", socket.to_str().unwrap()];
    let own = if option == "-f" { &[][..] } else { &socket };
    let options = [&server, own, &["-u", "nobody", option, name]].concat();
    let output = finish(magent(&options));
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said, format!("magent: {option} {name}: {why}\n"));
}

/// What root is told to open may be a trap that somebody else has set.
#[test]
fn no_link_leads_to_another_file() {
    let dir = TempDir::new();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("precious"), "precious\n").unwrap();
    fs::set_permissions(path("precious"), fs::Permissions::from_mode(0o600)).unwrap();
    symlink(path("precious"), path("link")).unwrap();
    symlink(path("absent"), path("dangling")).unwrap();
    fs::hard_link(path("precious"), path("second")).unwrap();
    for link in ["link", "dangling"] {
        refused("-P", &path(link), "it is a symbolic link");
        // The folder is everybody's.
        refused("-L", &path(link), "it is a symbolic link");
        refused("-f", &path(link), "it exists and is not a socket");
    }
    for option in ["-P", "-L"] {
        let why = "it has more than one name (hard links)";
        refused(option, &path("second"), why);
    }
    refused("-f", &path("second"), "it exists and is not a socket");
    let precious = fs::metadata(path("precious")).unwrap();
    assert_eq!((precious.uid(), precious.nlink()), (own_uid(), 2));
    assert_eq!(mode(&path("precious")), 0o600);
    assert_eq!(fs::read(path("precious")).unwrap(), b"precious\n");
    assert!(!path("absent").exists());
}

#[test]
fn a_pid_file_is_a_plain_file() {
    let dir = TempDir::new();
    let path = |name: &str| dir.path().join(name);
    mkfifo(&path("fifo"), Mode::from_bits_retain(0o666)).unwrap();
    let _socket = UnixListener::bind(path("socket")).unwrap();
    for name in ["fifo", "socket"] {
        let why = "it exists and is not a regular file";
        refused("-P", &path(name), why);
    }
    refused("-P", dir.path(), "Is a directory");
    // One that a crash has left, in a folder where others may leave one too.
    fs::write(path("pid"), "1234567890123\n").unwrap();
    let daemon = Daemon::start_in(dir, &[]);
    let pid = fs::read_to_string(daemon.file("pid")).unwrap();
    assert_eq!(pid, format!("{}\n", daemon.pid));
    if is_root("a pid file of another user") {
        let theirs = daemon.file("theirs");
        fs::write(&theirs, "1\n").unwrap();
        chown(&theirs, Some(4711), None).unwrap();
        refused("-P", &theirs, "it belongs to another user");
        assert_eq!(fs::read(&theirs).unwrap(), b"1\n");
    }
}

/// Runs a magent in the background on a socket in `dir` alone.
fn run(mut command: Command, dir: TempDir) -> Daemon {
    let path = |name: &str| dir.path().join(name).display().to_string();
    command.args(["-s", "127.0.0.1:1", "-p", "0", "-f", &path("s")]);
    command.args(["-P", &path("pid")]);
    let output = finish(command);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let pid = fs::read_to_string(path("pid")).unwrap();
    Daemon {
        pid: pid.trim_end().parse().unwrap(),
        port: 0,
        dir,
    }
}

/// With any umask: nobody else reads the log, and only its user writes it.
#[test]
fn files_have_their_modes() {
    for umask in ["0", "022", "077"] {
        let dir = TempDir::new();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let script = format!("umask {umask}; exec \"$@\"");
        let mut shell = Command::new("sh");
        shell.args(["-c", &script, "sh", MAGENT, "-L", &path("log")]);
        let daemon = run(shell, dir);
        let (log, pid) = match umask {
            "077" => (0o600, 0o600),
            _ => (0o640, 0o644),
        };
        assert_eq!(mode(&daemon.file("log")), log, "the log, umask {umask}");
        assert_eq!(mode(&daemon.file("pid")), pid, "the pid, umask {umask}");
        fs::rename(daemon.file("log"), daemon.file("log.1")).unwrap();
        daemon.signal(Signal::SIGHUP);
        wait_for("a new log", || daemon.file("log").exists().then_some(()));
        assert_eq!(mode(&daemon.file("log")), log, "a new log, umask {umask}");
    }
}

/// `/dev/stderr` is a link; so may a log be in a folder that is its administrator's.
#[test]
fn a_log_may_be_a_link_where_nobody_else_can_set_one() {
    let dir = TempDir::new();
    let own = dir.path().join("own");
    fs::create_dir(&own).unwrap();
    fs::set_permissions(&own, fs::Permissions::from_mode(0o755)).unwrap();
    symlink(dir.path().join("target"), own.join("log")).unwrap();
    let mut command = magent(&["-L"]);
    command.arg(own.join("log"));
    let daemon = run(command, dir);
    daemon.terminate();
    assert!(daemon.file("target").exists());
}
