//! How it starts, and how it says why it can't.

use super::common::{TempDir, wait_for};
use super::{Daemon, MAGENT, finish, free_port, is_root, magent, public_copy, text};
use std::fs;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::process::Command;

#[test]
fn the_shell_gets_status_0_from_a_daemon_that_serves() {
    let daemon = Daemon::start(&[]);
    let version = daemon.client().ask_line("version\r\n");
    assert_eq!(version, "VERSION 1.6.18");
    let stat = fs::read_to_string(format!("/proc/{}/stat", daemon.pid)).unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    let (session, terminal) = (fields[3], fields[4]);
    assert_eq!(terminal, "0");
    // A session without its leader never gets a terminal again.
    assert_ne!(session, daemon.pid.to_string());
    let own = fs::read_to_string("/proc/self/stat").unwrap();
    let own: Vec<&str> = own.rsplit(") ").next().unwrap().split(' ').collect();
    assert_ne!(session, own[3], "it is in a session of its own");
    let link = |name: &str| fs::read_link(format!("/proc/{}/{name}", daemon.pid)).unwrap();
    assert_eq!(link("cwd").to_str(), Some("/"));
    for standard in ["fd/0", "fd/1", "fd/2"] {
        assert_eq!(link(standard).to_str(), Some("/dev/null"));
    }
    assert_eq!(
        daemon.client().stats("stats proxy\r\n")["pid"],
        daemon.pid.to_string()
    );
    daemon.terminate();
    for name in ["pid", "s"] {
        assert!(!daemon.file(name).exists(), "{name} stays behind");
    }
}

#[test]
fn relative_paths_survive_the_change_of_folder() {
    let dir = TempDir::new();
    let mut command = magent(&[
        "-s",
        "127.0.0.1:1",
        "-p",
        "0",
        "-f",
        "s",
        "-P",
        "p",
        "-L",
        "l",
    ]);
    command.current_dir(dir.path());
    assert!(finish(command).status.success());
    let pid = fs::read_to_string(dir.path().join("p")).unwrap();
    let pid: u32 = pid.trim_end().parse().unwrap();
    let daemon = Daemon { pid, port: 0, dir };
    assert!(daemon.file("s").exists() && daemon.file("l").exists());
    daemon.terminate();
    assert!(!daemon.file("s").exists() && !daemon.file("p").exists());
    fs::rename(daemon.file("l"), daemon.file("log")).unwrap();
}

#[test]
fn a_start_that_fails_leaves_nothing_behind() {
    let dir = TempDir::new();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let holder = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let held = holder.local_addr().unwrap().port().to_string();
    let (socket, pid) = (path("s"), path("pid"));
    let options = [
        "-s",
        "127.0.0.1:1",
        "-l",
        "127.0.0.1",
        "-p",
        &held,
        "-f",
        &socket,
        "-P",
        &pid,
    ];
    let output = finish(magent(&options));
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn help_and_version_go_to_stdout_with_status_0() {
    for [h, v] in [["-h", "-V"], ["--help", "--version"]] {
        let help = finish(magent(&[h]));
        assert!(help.status.success() && help.stderr.is_empty());
        for option in magent::config::OPTIONS {
            assert!(text(&help.stdout).contains(&format!("  {}", option.name)));
        }
        let version = finish(magent(&[v]));
        assert!(version.status.success() && version.stderr.is_empty());
        let wanted = concat!("magent ", env!("CARGO_PKG_VERSION"), "\n");
        assert_eq!(text(&version.stdout), wanted);
    }
}

#[test]
fn what_cannot_be_printed_is_no_success() {
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec \"$0\" -h >/dev/full", MAGENT]);
    let output = finish(shell);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        text(&output.stderr),
        "magent: stdout: No space left on device\n"
    );
    // A reader that has seen enough is none of magent's business.
    let mut shell = Command::new("sh");
    shell.args(["-c", "\"$0\" -h; echo $? >&2", MAGENT]);
    let (read, write) = std::io::pipe().unwrap();
    drop(read);
    let child = shell
        .stdout(write)
        .stderr(std::process::Stdio::piped())
        .spawn();
    let output = child.unwrap().wait_with_output().unwrap();
    assert_eq!(text(&output.stderr), "0\n");
}

/// The soft and the hard limit of descriptors of a process.
fn descriptors(pid: &str) -> (u64, u64) {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits
        .lines()
        .find_map(|l| l.strip_prefix("Max open files"));
    let mut words = line.expect("its line").split_whitespace();
    let mut number = || words.next().and_then(|w| w.parse().ok()).expect("a number");
    (number(), number())
}

#[test]
fn the_limit_of_descriptors_is_raised_to_hold_all_clients() {
    // 1024 is what most systems start with.
    let raised = |clients: &str| {
        let dir = TempDir::new();
        let mut command = Command::new("prlimit");
        command.args(["--nofile=1024:", MAGENT, "-s", "127.0.0.1:1", "-p", "0"]);
        command
            .args(["-n", clients, "-f"])
            .arg(dir.path().join("s"));
        command.arg("-P").arg(dir.path().join("pid"));
        (finish(command), dir)
    };
    for clients in ["900", "4096", "51200"] {
        let (output, dir) = raised(clients);
        let said = text(&output.stderr);
        let needed: u64 = clients.parse().unwrap();
        let hard = descriptors("self").1;
        if hard < needed && !output.status.success() {
            // Not even root may raise it here.
            assert!(said.contains(&format!("-n {clients}")), "{said}");
            assert!(said.contains(&hard.to_string()), "{said}");
            continue;
        }
        assert!(output.status.success(), "-n {clients}: {said}");
        let pid = fs::read_to_string(dir.path().join("pid")).unwrap();
        let daemon = Daemon {
            pid: pid.trim_end().parse().unwrap(),
            port: 0,
            dir,
        };
        assert!(descriptors(pid.trim_end()).0 > needed, "-n {clients}");
        drop(daemon);
    }
}

#[test]
fn more_clients_than_descriptors_allow_is_an_error() {
    let dir = TempDir::new();
    let mut command = Command::new("prlimit");
    let program = public_copy(dir.path());
    command.args(["--nofile=64:256"]).arg(program);
    command.args(["-D", "-s", "127.0.0.1:1", "-l", "127.0.0.1", "-p"]);
    command.args([&free_port().to_string(), "-n", "200"]);
    // Root may raise the hard limit too.
    if is_root("that it is somebody else's") {
        command.uid(65534).gid(65534);
    }
    let output = finish(command);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("-n 200") && said.contains("256"), "{said}");
    assert_eq!(said.lines().count(), 1);
}

#[test]
fn it_listens_wherever_it_was_told() {
    let v6 = TcpListener::bind(("::1", 0)).is_ok();
    let mut options = vec!["-l", "127.0.0.2", "-l", "127.0.0.3"];
    if v6 {
        options.extend(["-l", "::1"]);
    } else {
        eprintln!("there is no IPv6 here, so it was not tested");
    }
    let daemon = Daemon::start(&options);
    for host in ["127.0.0.1", "127.0.0.2", "127.0.0.3", "::1"] {
        if host == "::1" && !v6 {
            continue;
        }
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect((host, daemon.port)).unwrap();
        stream.write_all(b"version\r\nquit\r\n").unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).unwrap();
        assert!(said.trim_end() == "VERSION 1.6.18", "{host}: {said}");
    }
}

#[test]
fn vv_logs_every_request_and_where_it_went() {
    let dir = TempDir::new();
    let server = super::common::Memcached::start();
    let port = free_port().to_string();
    let mut child = Command::new(MAGENT)
        .args(["-vv", "-l", "127.0.0.1", "-p", &port, "-s", &server.name])
        .args(["-s", "127.0.0.1:1", "-L"])
        .arg(dir.path().join("log"))
        .spawn()
        .unwrap();
    let log = || fs::read_to_string(dir.path().join("log")).unwrap_or_default();
    wait_for("it to serve", || log().contains("serving").then_some(()));
    let mut client = super::common::Client::tcp(port.parse().unwrap());
    let (up, down) = (
        super::common::keys::key_on(0, 2, "key", 0),
        super::common::keys::key_on(1, 2, "key", 0),
    );
    client.set(&up, "x");
    client.ask_line(format!("get {down}\r\n"));
    client.ask_line(format!("get {down}\r\n"));
    client.ask_line(format!("touch {up} 100\r\n"));
    client.ask_line("version\r\n");
    client.ask_line("nonsense\r\n");
    wait_for("all lines", || log().contains("nonsense").then_some(()));
    let log = log();
    let line = |end: &str| {
        log.lines()
            .any(|l| l.contains(" debug ") && l.contains(end))
    };
    assert!(line(&format!("{} <- set {up} 0 0 1", server.name)), "{log}");
    assert!(line(&format!("{} <- touch {up} 100", server.name)), "{log}");
    assert!(line(&format!("127.0.0.1:1 <- get {down}")), "{log}");
    assert!(
        line(&format!("nobody <- get {down} (127.0.0.1:1 down)")),
        "{log}"
    );
    assert!(
        line("magent <- version") && line("magent <- nonsense"),
        "{log}"
    );
    let _ = child.kill();
    let _ = child.wait();
}
