//! Logging: it never holds up the service, whatever the log is and whoever does not read it.

use super::common::magent::free_port;
use super::common::{Client, Memcached, TempDir, wait_for};
use super::{is_root, public_copy};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::pty::openpty;
use nix::sys::stat::Mode;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::mkfifo;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

/// Requests that log more than any pipe, socket or terminal holds by default.
const REQUESTS: usize = 6_000;

/// A magent in the foreground; it ends with its value.
struct Noisy {
    child: Child,
    port: u16,
    server: Memcached,
    _dir: TempDir,
}

impl Noisy {
    fn start(stderr: OwnedFd, prepare: impl FnOnce(&mut Command)) -> Noisy {
        let dir = TempDir::new();
        let (server, port) = (Memcached::start(), free_port());
        let mut command = Command::new(public_copy(dir.path()));
        command
            .args(["-l", "127.0.0.1", "-p", &port.to_string()])
            .args(["-s", &server.name])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr);
        prepare(&mut command);
        let noisy = Noisy {
            child: command.spawn().expect("magent starts"),
            port,
            server,
            _dir: dir,
        };
        wait_for("magent to listen", || {
            std::net::TcpStream::connect(("127.0.0.1", port)).ok()
        });
        noisy
    }

    fn client(&self) -> Client {
        Client::tcp(self.port)
    }

    fn lost(&self) -> u64 {
        let all = self.client().stats("stats proxy\r\n");
        all["log_lines_lost"].parse().expect("a number")
    }

    /// All is served while nobody reads the log; whoever reads it then is told what he missed.
    fn check(&self, mut log: impl Read) {
        let mut client = self.client();
        for n in 0..REQUESTS {
            let answer = client.ask_line("touch nobody-reads-what-is-logged-of-this 100\r\n");
            assert_eq!(answer, "NOT_FOUND", "request {n}");
        }
        let lost = self.lost();
        assert!(lost > 0, "all of it was taken");
        let (mut said, mut chunk) = (Vec::new(), [0; 8192]);
        wait_for("lines that say what is lost", || {
            client.ask_line("touch now-somebody-reads 100\r\n");
            let n = log.read(&mut chunk).expect("the log");
            said.extend_from_slice(&chunk[..n]);
            (told(&said) >= lost).then_some(())
        });
        // Lines are whole, the one before a gap too.
        let said = String::from_utf8_lossy(&said).replace('\r', "");
        let end = said.rfind('\n').unwrap_or(0);
        for line in said[..end].lines().filter(|l| !l.is_empty()) {
            let good = line.starts_with("20") && line.matches(" debug ").count() <= 1;
            assert!(good, "a broken line: {line}");
        }
        client.ask_line(format!("touch {} 100\r\n", self.server.port));
    }
}

impl Drop for Noisy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How many lines are missing, by what a log says.
fn told(log: &[u8]) -> u64 {
    let log = String::from_utf8_lossy(log);
    let notice = |line: &str| {
        let text = line.strip_suffix(" log lines were lost")?;
        let (_, count) = text.split_once(" warn ")?;
        count.parse::<u64>().ok()
    };
    log.lines().map(|l| l.trim_end()).filter_map(notice).sum()
}

fn null() -> OwnedFd {
    let null = File::options().write(true).open("/dev/null");
    null.expect("/dev/null").into()
}

/// True if whoever shares this open file would be disturbed.
fn is_nonblocking(fd: impl AsFd) -> bool {
    let flags = fcntl(fd, FcntlArg::F_GETFL).expect("its flags");
    OFlag::from_bits_retain(flags).contains(OFlag::O_NONBLOCK)
}

#[test]
fn a_pipe_that_nobody_reads() {
    let (read, write) = std::io::pipe().unwrap();
    let shared = write.try_clone().unwrap();
    let magent = Noisy::start(write.into(), |magent| {
        magent.arg("-vv");
    });
    magent.check(read);
    assert!(!is_nonblocking(shared));
}

/// One that magent may write to but not open: it belongs to somebody else.
#[test]
fn a_pipe_of_somebody_else_that_nobody_reads() {
    if !is_root("a pipe of another user") {
        return;
    }
    let (read, write) = std::io::pipe().unwrap();
    let shared = write.try_clone().unwrap();
    let magent = Noisy::start(write.into(), |magent| {
        magent.arg("-vv").uid(65534).gid(65534);
    });
    magent.check(read);
    assert!(!is_nonblocking(shared));
}

#[test]
fn a_socket_that_nobody_reads() {
    let (read, write) = UnixStream::pair().unwrap();
    let shared = write.try_clone().unwrap();
    let magent = Noisy::start(write.into(), |magent| {
        magent.arg("-vv");
    });
    magent.check(read);
    assert!(!is_nonblocking(shared));
}

/// A raw one, since lines are looked at: the side that magent gets, and the reader's.
fn terminal() -> (OwnedFd, File) {
    let pty = openpty(None, None).unwrap();
    let mut mode = tcgetattr(&pty.slave).unwrap();
    cfmakeraw(&mut mode);
    tcsetattr(&pty.slave, SetArg::TCSANOW, &mode).unwrap();
    (pty.slave, File::from(pty.master))
}

#[test]
fn a_terminal_that_stands_still() {
    let (slave, master) = terminal();
    let shared = slave.try_clone().unwrap();
    let magent = Noisy::start(slave, |magent| {
        magent.arg("-vv");
    });
    magent.check(master);
    assert!(!is_nonblocking(shared));
}

#[test]
fn a_terminal_of_somebody_else_that_stands_still() {
    if !is_root("a terminal of another user") {
        return;
    }
    let (slave, master) = terminal();
    let shared = slave.try_clone().unwrap();
    let magent = Noisy::start(slave, |magent| {
        magent.arg("-vv").uid(65534).gid(65534);
    });
    magent.check(master);
    assert!(!is_nonblocking(shared));
}

/// A fifo as log file: nobody reads it at the start either.
#[test]
fn a_log_file_that_is_a_fifo_which_nobody_reads() {
    let dir = TempDir::new();
    let path = dir.path().join("fifo");
    mkfifo(&path, Mode::from_bits_retain(0o666)).unwrap();
    let magent = Noisy::start(null(), |magent| {
        magent.args(["-vv", "-L"]).arg(&path);
    });
    magent.check(File::open(&path).unwrap());
}

/// A client that fills the log: its lines are bounded, and no byte of it does harm there.
#[test]
fn what_clients_send_makes_short_lines() {
    let dir = TempDir::new();
    let path = dir.path().join("log");
    let magent = Noisy::start(null(), |magent| {
        magent.args(["-vv", "-L"]).arg(&path);
    });
    let mut client = magent.client();
    let key = format!("{}\u{1b}[2J\u{9b}1m", "k".repeat(200));
    let long = format!("get{}\r\n", format!(" {key}").repeat(4_000));
    client.ask(long, "END\r\n");
    client.ask_line(format!("nonsense {}\r\n", "\u{1}".repeat(2_000)));
    let log = wait_for("both lines", || {
        let log = std::fs::read_to_string(&path).ok()?;
        log.contains("nonsense").then_some(log)
    });
    let longest = log.lines().map(str::len).max();
    assert!(longest.is_some_and(|n| n < 4096), "{longest:?} bytes");
    let odd = log.chars().find(|c| c.is_control() && *c != '\n');
    assert_eq!(odd, None);
    // The end of such a line tells as much as its beginning.
    let asked = log.lines().find(|l| l.contains(" <- get kkk")).unwrap();
    assert!(asked.contains("\\x1b[2J\\x9b1m"), "{asked}");
    assert!(asked.ends_with(')') && asked.contains("..."), "{asked}");
}

/// `verbosity` is answered as memcached answers it, and no client has a say in the log.
#[test]
fn verbosity_changes_nothing() {
    for level in ["-D", "-v", "-vv"] {
        let dir = TempDir::new();
        let path = dir.path().join("log");
        let magent = Noisy::start(null(), |magent| {
            magent.arg(level).arg("-L").arg(&path);
        });
        let mut client = magent.client();
        for n in ["2", "0", "1"] {
            client.ask(format!("verbosity {n}\r\n"), "OK\r\n");
            client.ask_line(format!("nonsense {n}\r\n"));
        }
        // The binary form: four bytes of extras, opcode 0x1b.
        let mut packet = vec![0; 28];
        (packet[0], packet[1], packet[4], packet[11]) = (0x80, 0x1b, 4, 4);
        packet[27] = 2;
        let answer = magent.client().send(&packet).read_exact(24);
        assert_eq!((answer[0], answer[1], answer[7]), (0x81, 0x1b, 0));
        client.ask_line("nonsense at last\r\n");
        let log = std::fs::read_to_string(&path).unwrap();
        let told = log.lines().filter(|l| l.contains("<- nonsense")).count();
        assert_eq!(told, if level == "-vv" { 4 } else { 0 }, "{log}");
    }
}
