//! The process under another program: its files, its rights, its signals, systemd.

use super::common::magent::free_port;
use super::common::process::{finish, is_gone, is_root, public_copy, status_line, text};
use super::common::{Client, Fake, Magent, TempDir, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::process::{Command, Stdio};

fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid as i32), signal).expect("a signal");
}

#[test]
fn a_daemon_keeps_its_files_and_its_rights() {
    let (dir, port) = (TempDir::new(), free_port());
    let file = |name: &str| dir.path().join(name);
    let mut command = Command::new(public_copy(dir.path()));
    command.args(["-s", "127.0.0.1:1", "-l", "127.0.0.1", "-p"]);
    command.arg(port.to_string()).current_dir(dir.path());
    // Relative to where it was started, which it has left.
    command.args(["-P", "pid", "-L", "log", "-f", "s"]);
    if is_root("-u") {
        command.args(["-u", "nobody"]);
    }
    let output = finish(command);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let read = |name: &str| fs::read_to_string(file(name)).expect("its file");
    let pid: u32 = read("pid").trim_end().parse().expect("a pid");
    let uid = status_line(pid, "Uid");
    let mut clients = [Client::tcp(port), Client::unix(&file("s"))];
    for n in 1..4 {
        let mut cp = Command::new("sh");
        cp.args(["-ec", "cp magent new; echo >> new; mv new magent"]);
        assert!(
            finish({
                cp.current_dir(dir.path());
                cp
            })
            .status
            .success()
        );
        signal(pid, Signal::SIGUSR2);
        wait_for("another program", || {
            let stats = clients[0].stats("stats proxy\r\n");
            assert_eq!(stats["upgrades_failed"], "0", "{}", read("log"));
            (stats["upgrades"] == n.to_string()).then_some(())
        });
        for client in &mut clients {
            client.ask("version\r\n", "VERSION 1.6.18\r\n");
        }
        assert_eq!(read("pid"), format!("{pid}\n"));
        assert_eq!(status_line(pid, "Uid"), uid);
        let cwd = fs::read_link(format!("/proc/{pid}/cwd")).expect("its folder");
        assert_eq!(cwd.to_str(), Some("/"));
        Client::unix(&file("s")).ask("version\r\n", "VERSION 1.6.18\r\n");
        Client::tcp(port).ask("version\r\n", "VERSION 1.6.18\r\n");
    }
    fs::rename(file("log"), file("moved")).expect("its log");
    signal(pid, Signal::SIGHUP);
    wait_for("a new log", || file("log").exists().then_some(()));
    // Nobody else has the state or the clients.
    let descriptors = || {
        fs::read_dir(format!("/proc/{pid}/fd"))
            .expect("them")
            .flatten()
    };
    let leads = |name: &str| {
        let all = descriptors().filter_map(|d| fs::read_link(d.path()).ok());
        all.filter(|to| to.to_string_lossy().contains(name)).count()
    };
    assert_eq!(leads("memfd"), 0);
    signal(pid, Signal::SIGTERM);
    wait_for("the daemon to end", || is_gone(pid).then_some(()));
    assert!(!file("pid").exists() && !file("s").exists());
}

/// What was doubtful at the start keeps nobody from going over, and is not said again.
#[test]
fn a_doubtful_configuration_goes_over_too() {
    let server = Fake::start(|link| while link.request().is_some() {});
    let options = ["-s", &server.name, "-b", &server.name];
    let magent = Magent::replaceable(&options);
    for _ in 0..2 {
        magent.replace_program(super::ANOTHER);
        assert!(magent.upgrade(), "{}", magent.log());
    }
    let doubts = magent.log().matches("so no key has a backup").count();
    assert_eq!(doubts, 1, "{}", magent.log());
}

/// Only root may take a low port, and it is not root any more.
#[test]
fn a_low_port_stays() {
    if !is_root("a low port") {
        return;
    }
    let dir = TempDir::new();
    let program = public_copy(dir.path());
    let start = |port: u16| {
        let mut command = Command::new(&program);
        command.args(["-s", "127.0.0.1:1", "-u", "nobody", "-P"]);
        command.arg(dir.path().join("pid"));
        command.args(["-l", "127.0.0.1", "-p", &port.to_string()]);
        finish(command).status.success().then_some(port)
    };
    let port = (700..1000).find_map(start).expect("a low port");
    let pid = fs::read_to_string(dir.path().join("pid")).expect("the pid file");
    let pid: u32 = pid.trim_end().parse().expect("a pid");
    let mut client = Client::tcp(port);
    for n in 1..3 {
        signal(pid, Signal::SIGUSR2);
        wait_for("another program", || {
            (client.stats("stats proxy\r\n")["upgrades"] == n.to_string()).then_some(())
        });
        assert!(status_line(pid, "Uid").starts_with("65534 65534 65534"));
        Client::tcp(port).ask("version\r\n", "VERSION 1.6.18\r\n");
    }
    signal(pid, Signal::SIGTERM);
    wait_for("the daemon to end", || is_gone(pid).then_some(()));
}

#[test]
fn systemd_is_told() {
    let dir = TempDir::new();
    let path = dir.path().join("notify");
    let systemd = UnixDatagram::bind(&path).expect("a socket");
    systemd
        .set_read_timeout(Some(super::common::DEADLINE))
        .expect("a timeout");
    let next = || {
        let mut bytes = [0; 500];
        let n = systemd.recv(&mut bytes).expect("what systemd is told");
        text(&bytes[..n])
    };
    let file = "a:\n  listen: 127.0.0.1:PORT\n  warm: 0\n  servers:\n  - 127.0.0.1:1:1\n";
    let mut magent = Magent::with_file_under(file, &[("NOTIFY_SOCKET", &path)]);
    assert!(next().starts_with("READY=1\n"));
    assert!(magent.upgrade());
    let told = next();
    assert!(told.starts_with("RELOADING=1\nMONOTONIC_USEC=") && told.contains("going over to /"));
    assert!(next().starts_with("READY=1\nSTATUS=serving, configuration "));
    // The file is another one than that in force: first that is to be put right.
    magent.write_file(&file.replace(":1:1", ":2:1"));
    assert!(!magent.upgrade());
    assert!(next().starts_with("RELOADING=1\n"));
    let told = next();
    assert!(
        told.starts_with("READY=1\n") && told.contains("reload first"),
        "{told}"
    );
    assert!(magent.reload(&file.replace(":1:1", ":2:1")));
    // What a reload removes is kept for some seconds; the change waits for that.
    magent.signal(Signal::SIGUSR2);
    magent.signal(Signal::SIGHUP);
    wait_for("the change", || {
        (magent.stat("upgrades") == 2).then_some(())
    });
    assert!(magent.terminate().success());
}

#[test]
fn a_reload_meanwhile_is_not_forgotten() {
    let server = Fake::start(|link| while link.request().is_some() {});
    let text = format!(
        "a:\n  listen: 127.0.0.1:PORT\n  servers:\n  - {}:1\n",
        server.name
    );
    let magent = Magent::with_file(&text);
    for _ in 0..5 {
        let before = (magent.stat("upgrades"), magent.stat("reloads"));
        magent.signal(Signal::SIGUSR2);
        magent.signal(Signal::SIGHUP);
        magent.signal(Signal::SIGUSR2);
        wait_for("both", || {
            let now = (magent.stat("upgrades"), magent.stat("reloads"));
            (now.0 > before.0 && now.1 > before.1).then_some(())
        });
    }
    assert_eq!(magent.stat("reloads_failed"), 0);
}

#[test]
fn sockets_of_systemd_stay_systemds() {
    let dir = TempDir::new();
    let path = dir.path().join("s");
    let unix = UnixListener::bind(&path).expect("a socket");
    let tcp = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = tcp.local_addr().expect("its port").port();
    let mut shell = Command::new("sh");
    let script = "exec 3<&0 4>&1 </dev/null >/dev/null; LISTEN_PID=$$ LISTEN_FDS=2 exec \"$@\"";
    shell.args([
        "-c",
        script,
        "sh",
        env!("CARGO_BIN_EXE_magent"),
        "-D",
        "-u",
        "root",
    ]);
    shell.args([
        "-s",
        "127.0.0.1:1",
        "-l",
        "127.0.0.1",
        "-p",
        &port.to_string(),
        "-f",
    ]);
    shell
        .arg(&path)
        .stdin(OwnedFd::from(tcp))
        .stdout(OwnedFd::from(unix));
    let mut child = shell.stderr(Stdio::null()).spawn().expect("magent");
    let mut client = Client::tcp(port);
    for n in 1..3 {
        client.ask("version\r\n", "VERSION 1.6.18\r\n");
        signal(child.id(), Signal::SIGUSR2);
        wait_for("another program", || {
            (client.stats("stats proxy\r\n")["upgrades"] == n.to_string()).then_some(())
        });
        Client::unix(&path).ask("version\r\n", "VERSION 1.6.18\r\n");
    }
    signal(child.id(), Signal::SIGTERM);
    wait_for("magent to end", || child.try_wait().expect("its status"));
    assert!(path.exists(), "it is systemd's");
}
