//! Sockets that systemd has made and that outlive the process (`LISTEN_FDS`).

use super::MAGENT;
use super::common::{Client, TempDir, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// magent under a shell that puts two descriptors where systemd puts them, and becomes magent.
fn activated(fds: [OwnedFd; 2], pid: &str, options: &[&str]) -> Command {
    let mut shell = Command::new("sh");
    let script =
        format!("exec 3<&0 4>&1 </dev/null >/dev/null; LISTEN_PID={pid} LISTEN_FDS=2 exec \"$@\"");
    let [first, second] = fds;
    shell.arg("-c").arg(script).args(["sh", MAGENT, "-D"]);
    shell
        .args(["-u", "root", "-s", "127.0.0.1:1"])
        .args(options);
    shell.stdin(first).stdout(second);
    shell
}

/// What systemd holds.
struct Sockets {
    tcp: TcpListener,
    unix: UnixListener,
    dir: TempDir,
    path: String,
}

impl Sockets {
    fn new() -> Sockets {
        let dir = TempDir::new();
        let path = dir.path().join("s");
        Sockets {
            tcp: TcpListener::bind("127.0.0.1:0").expect("a port"),
            unix: UnixListener::bind(&path).expect("a socket"),
            path: path.display().to_string(),
            dir,
        }
    }

    fn fds(&self) -> [OwnedFd; 2] {
        let tcp = self.tcp.try_clone().expect("another descriptor");
        let unix = self.unix.try_clone().expect("another descriptor");
        [tcp.into(), unix.into()]
    }

    fn port(&self) -> u16 {
        self.tcp.local_addr().expect("its port").port()
    }

    /// A magent that is told to listen there.
    fn run(&self) -> Child {
        let port = self.port().to_string();
        let own = ["-l", "127.0.0.1", "-p", &port, "-f", &self.path];
        let mut command = activated(self.fds(), "$$", &own);
        command.stderr(Stdio::null()).spawn().expect("magent")
    }
}

fn end(mut child: Child, signal: Signal) {
    kill(Pid::from_raw(child.id() as i32), signal).expect("a signal");
    wait_for("magent to end", || child.try_wait().expect("its status"));
}

#[test]
fn clients_wait_while_the_process_is_away() {
    let sockets = Sockets::new();
    for signal in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGKILL] {
        // Nobody listens yet, as far as processes go.
        let mut early = Client::tcp(sockets.port());
        early.send("version\r\n");
        let child = sockets.run();
        early.expect("VERSION 1.6.18\r\n");
        let mut clients = [
            early,
            Client::tcp(sockets.port()),
            Client::unix(Path::new(&sockets.path)),
        ];
        for client in &mut clients {
            client.ask("version\r\n", "VERSION 1.6.18\r\n");
        }
        end(child, signal);
        assert!(Path::new(&sockets.path).exists(), "it is systemd's");
    }
}

#[test]
fn a_door_may_be_systemds() {
    let sockets = Sockets::new();
    let port = sockets.port().to_string();
    let options = ["-l", "127.0.0.1", "-p", &port, "--admin", &sockets.path];
    let mut command = activated(sockets.fds(), "$$", &options);
    let child = command.stderr(Stdio::null()).spawn().expect("magent");
    let mut operator = Client::unix(Path::new(&sockets.path));
    assert!(
        operator
            .ask_line("server x use\r\n")
            .contains("no server x")
    );
    end(child, Signal::SIGTERM);
}

#[test]
fn what_is_given_must_be_named_and_listen() {
    let sockets = Sockets::new();
    let port = sockets.port().to_string();
    let say = |fds, pid: &str, options: &[&str]| {
        let mut command = activated(fds, pid, options);
        let log = sockets.dir.path().join("said");
        command.stderr(fs::File::create(&log).expect("a file"));
        let status = wait_for_status(command);
        let said = fs::read_to_string(&log).expect("what it said");
        assert_eq!(status, Some(1), "{said}");
        said
    };
    let tcp = ["-l", "127.0.0.1", "-p", &port];
    let said = say(sockets.fds(), "$$", &tcp);
    let wanted = format!(
        "LISTEN_FDS: {}: magent is not told to listen there",
        sockets.path
    );
    assert!(said.contains(&wanted), "{said}");
    // Those of another process are none of its business.
    let said = say(sockets.fds(), "1", &tcp);
    assert!(
        said.contains(&format!("-p {port}: Address already in use")),
        "{said}"
    );
    let [first, _] = sockets.fds();
    let null = fs::File::options().write(true).open("/dev/null");
    let said = say([first, null.expect("it").into()], "$$", &tcp);
    assert!(said.contains("LISTEN_FDS: descriptor 4: "), "{said}");
}

fn wait_for_status(mut command: Command) -> Option<i32> {
    let mut child = command.spawn().expect("magent");
    wait_for("magent to end", || child.try_wait().expect("its status")).code()
}
