//! The real magent, in the foreground.

use super::process::{public_copy, status_line};
use super::{Client, DEADLINE, Memcached, TempDir, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use socket2::{Domain, Socket, Type};
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// Ports tried until one was not taken by somebody else in between.
const TRIES: usize = 20;

/// Its stderr, in its folder.
const LOG: &str = "stderr";

/// One process; it ends with its value, and its log is printed if the test failed.
pub struct Magent {
    child: Child,
    dir: TempDir,
    /// Where it listens on 127.0.0.1.
    pub port: u16,
}

impl Magent {
    /// One in front of `primaries` and `backups` (`127.0.0.1:PORT` each), with more `options`.
    pub fn farm(primaries: &[&str], backups: &[&str], options: &[&str]) -> Magent {
        let mut args = Vec::new();
        primaries.iter().for_each(|p| args.extend(["-s", *p]));
        backups.iter().for_each(|b| args.extend(["-b", *b]));
        args.extend(options);
        Magent::start(&args)
    }

    /// One with these options, in which `DIR` is a folder for sockets; it listens on a free port of
    /// 127.0.0.1 and on [`Magent::socket`].
    pub fn start(options: &[&str]) -> Magent {
        for _ in 0..TRIES {
            if let Some(magent) = Magent::try_start(options) {
                return magent;
            }
        }
        panic!("no free port in {TRIES} tries");
    }

    /// The same from a copy of the program that a test may replace: `magent` in its folder.
    pub fn replaceable(options: &[&str]) -> Magent {
        for _ in 0..TRIES {
            let dir = TempDir::new();
            let program = public_copy(dir.path());
            if let Some(magent) = Magent::try_start_in(dir, &program, options) {
                return magent;
            }
        }
        panic!("no free port in {TRIES} tries");
    }

    /// Puts another file in the place of its program: what `script` makes of `$NEW`, run by a shell. `$REAL`
    /// is the program under test.
    pub fn replace_program(&self, script: &str) {
        let (new, place) = (self.dir().join("new"), self.dir().join("magent"));
        // By another process, as in `public_copy`.
        let mut shell = Command::new("sh");
        shell.args(["-ec", script]).env("NEW", &new);
        let done = shell.env("REAL", env!("CARGO_BIN_EXE_magent")).status();
        assert!(done.expect("sh").success(), "{script}");
        fs::rename(new, place).expect("its program");
    }

    /// USR2; true if another program took over, once that is known.
    #[track_caller]
    pub fn upgrade(&self) -> bool {
        let mut client = self.client();
        let mut counts = || {
            let all = client.stats("stats proxy\r\n");
            ["upgrades", "upgrades_failed"].map(|name| all[name].clone())
        };
        let before = counts();
        self.signal(Signal::SIGUSR2);
        let after = wait_for("another program", || {
            Some(counts()).filter(|now| *now != before)
        });
        after[0] != before[0]
    }

    fn try_start(options: &[&str]) -> Option<Magent> {
        let program = Path::new(env!("CARGO_BIN_EXE_magent"));
        Magent::try_start_in(TempDir::new(), program, options)
    }

    fn try_start_in(dir: TempDir, program: &Path, options: &[&str]) -> Option<Magent> {
        let port = free_port();
        let socket = dir.path().join("s").display().to_string();
        let port_text = port.to_string();
        let mut args = vec!["-l", "127.0.0.1", "-p", &port_text, "-f", &socket];
        let folder = dir.path().display().to_string();
        let options: Vec<String> = options.iter().map(|o| o.replace("DIR", &folder)).collect();
        args.extend(options.iter().map(String::as_str));
        Magent::spawn(program, &args, &[], port, dir)
    }

    /// One that serves the pools of a file (`-c`). `PORT` in the text is where
    /// [`Magent::client`] will connect to, `DIR` a folder for sockets.
    pub fn with_file(text: &str) -> Magent {
        Magent::with_file_and(text, &[])
    }

    /// The same with more options.
    pub fn with_file_and(text: &str, options: &[&str]) -> Magent {
        Magent::with_file_of(text, options, &[])
    }

    /// The same under more variables of the environment.
    pub fn with_file_under(text: &str, environment: &[(&str, &Path)]) -> Magent {
        Magent::with_file_of(text, &[], environment)
    }

    fn with_file_of(text: &str, options: &[&str], environment: &[(&str, &Path)]) -> Magent {
        for _ in 0..TRIES {
            let (port, dir) = (free_port(), TempDir::new());
            let path = |name: &str| dir.path().join(name).display().to_string();
            let (file, door) = (path("pools.yml"), path("admin"));
            write_file(&dir, port, text);
            let args = [&["-c", &file, "--admin", &door], options].concat();
            let program = Path::new(env!("CARGO_BIN_EXE_magent"));
            if let Some(magent) = Magent::spawn(program, &args, environment, port, dir) {
                return magent;
            }
        }
        panic!("no free port in {TRIES} tries");
    }

    /// Replaces the file; nothing more.
    pub fn write_file(&self, text: &str) {
        write_file(&self.dir, self.port, text);
    }

    /// Replaces the file, sends HUP and waits until it was read. True if it was taken over.
    #[track_caller]
    pub fn reload(&self, text: &str) -> bool {
        let counts = || (self.stat("reloads"), self.stat("reloads_failed"));
        let before = counts();
        self.write_file(text);
        self.signal(Signal::SIGHUP);
        let after = wait_for("a reload", || Some(counts()).filter(|now| *now != before));
        after.0 > before.0
    }

    /// The folder of its sockets.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// One more process on the port of this one, where both have `--reuseport`; from a copy of the program that a
    /// test may replace.
    pub fn beside(&self, options: &[&str]) -> Magent {
        let dir = TempDir::new();
        let (program, port) = (public_copy(dir.path()), self.port.to_string());
        let socket = dir.path().join("s").display().to_string();
        let own = ["-l", "127.0.0.1", "-p", &port, "-f", &socket];
        let args = [&own, options].concat();
        let mut magent = Magent::launch(&program, &args, &[], self.port, dir);
        // Whoever connects to the port comes to any of them.
        wait_for("one more to listen", || {
            let ended = magent.child.try_wait().expect("its status");
            assert!(ended.is_none(), "{}", magent.log());
            UnixStream::connect(magent.socket()).ok()
        });
        magent
    }

    fn spawn(
        program: &Path,
        args: &[&str],
        environment: &[(&str, &Path)],
        port: u16,
        dir: TempDir,
    ) -> Option<Magent> {
        let mut magent = Magent::launch(program, args, environment, port, dir);
        magent.wait_listening().then_some(magent)
    }

    fn launch(
        program: &Path,
        args: &[&str],
        environment: &[(&str, &Path)],
        port: u16,
        dir: TempDir,
    ) -> Magent {
        // A file and no pipe: what was logged before an answer is there when the answer is.
        let log = fs::File::create(dir.path().join(LOG)).expect("a log");
        let child = Command::new(program)
            .arg("-D")
            .args(args)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("magent starts");
        Magent { child, dir, port }
    }

    /// False if the port was taken. An answer means that it listens everywhere, and not only on
    /// the first of its addresses.
    fn wait_listening(&mut self) -> bool {
        wait_for("magent to listen", || {
            if let Some(status) = self.child.try_wait().expect("its status") {
                let log = self.log();
                assert!(log.contains("in use"), "magent ended with {status}:\n{log}");
                return Some(false);
            }
            let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
            stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
            stream.write_all(b"version\r\n").ok()?;
            let answer = stream.read(&mut [0; 64]).ok()?;
            (answer > 0).then_some(true)
        })
    }

    /// Its Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    /// A session at its door, for one that has a file or was started with `--admin DIR/admin`.
    pub fn operator(&self) -> Client {
        Client::unix(&self.dir.path().join("admin"))
    }

    /// A client over TCP.
    pub fn client(&self) -> Client {
        Client::tcp(self.port)
    }

    /// The same, and it has taken so many answers that it may have 1024 requests in flight.
    pub fn old_client(&self) -> Client {
        let mut client = self.client();
        for _ in 0..6 {
            client.ask("mn\r\n", "MN\r\n");
        }
        client
    }

    /// What it wrote to stderr so far.
    pub fn log(&self) -> String {
        let log = fs::read(self.dir.path().join(LOG)).expect("its log");
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `stats servers` of one server: field to value.
    pub fn server(&self, name: &str) -> BTreeMap<String, String> {
        let prefix = format!("{name}:");
        let all = self.client().stats("stats servers\r\n");
        let own = all
            .into_iter()
            .filter_map(|(k, v)| Some((k.strip_prefix(&prefix)?.to_string(), v)));
        own.collect()
    }

    /// A number of `stats proxy`.
    pub fn stat(&self, name: &str) -> u64 {
        let all = self.client().stats("stats proxy\r\n");
        all.get(name)
            .and_then(|v| v.parse().ok())
            .unwrap_or_else(|| panic!("no number {name} in stats proxy"))
    }

    /// Waits until at least so many bytes are in flight and their number stays, as it does when
    /// everybody waits for everybody else; the most that it was.
    #[track_caller]
    pub fn wait_stuck(&self, least: usize) -> usize {
        const SAME_IN_A_ROW: usize = 50;
        let mut client = self.client();
        let (mut most, mut last, mut same) = (0, 0, 0);
        wait_for(&format!("{least} bytes in flight that stay"), || {
            let held = &client.stats("stats proxy\r\n")["bytes_in_flight"];
            let held: usize = held.parse().expect("a number");
            let stays = held == last && held >= least;
            (most, last) = (most.max(held), held);
            same = if stays { same + 1 } else { 0 };
            (same >= SAME_IN_A_ROW).then_some(most)
        })
    }

    /// Memory in bytes, as the kernel counts it: now (`VmRSS`), or the most so far (`VmHWM`).
    pub fn memory(&self, name: &str) -> usize {
        let line = status_line(self.pid(), name);
        let kb = line
            .strip_suffix(" kB")
            .and_then(|kb| kb.parse::<usize>().ok());
        kb.unwrap_or_else(|| panic!("{name}: {line}")) << 10
    }

    /// Waits until `stats servers` says that `name` is `state` (`up`, `warming`, `down`).
    #[track_caller]
    pub fn wait_state(&self, name: &str, state: &str) {
        wait_for(&format!("{name} to be {state}"), || {
            (self.server(name).get("state").map(String::as_str) == Some(state)).then_some(())
        });
    }

    /// TERM; its status, which must come in time.
    #[track_caller]
    pub fn terminate(&mut self) -> ExitStatus {
        self.terminate_while(|| ()).0
    }

    /// Its status at its end.
    #[track_caller]
    pub fn wait_end(&mut self) -> ExitStatus {
        wait_for("magent to end", || {
            self.child.try_wait().expect("its status")
        })
    }

    /// TERM, then what `meanwhile` does; its status and what that gave.
    #[track_caller]
    pub fn terminate_while<T>(&mut self, meanwhile: impl FnOnce() -> T) -> (ExitStatus, T) {
        self.signal(Signal::SIGTERM);
        let got = meanwhile();
        (self.wait_end(), got)
    }

    /// Does something while magent can do nothing, so that it finds all of it at once.
    pub fn while_stopped<T>(&self, work: impl FnOnce() -> T) -> T {
        self.signal(Signal::SIGSTOP);
        let file = format!("/proc/{}/stat", self.pid());
        wait_for("magent to stop", || {
            let stat = fs::read_to_string(&file).expect("its state");
            stat.rsplit(") ").next()?.starts_with('T').then_some(())
        });
        let done = work();
        self.signal(Signal::SIGCONT);
        done
    }

    /// Any signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("a signal");
    }
}

impl Drop for Magent {
    fn drop(&mut self) {
        let ended = self.child.try_wait().ok().flatten();
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let how = ended.map_or("still ran".to_string(), |s| format!("had ended with {s}"));
            eprintln!(
                "--- magent on port {} {how}; its log:\n{}---",
                self.port,
                self.log()
            );
        } else if let Some(status) = ended {
            assert!(
                status.success() || self.log().contains("in use"),
                "magent ended with {status}:\n{}",
                self.log()
            );
        }
    }
}

/// One magent in front of one memcached.
pub fn single() -> (Magent, Memcached) {
    let server = Memcached::start();
    (Magent::farm(&[&server.name], &[], &[]), server)
}

/// One magent in front of three primaries, and of one backup (the last) if asked for.
pub fn farm(backup: bool, options: &[&str]) -> (Magent, Vec<Memcached>) {
    let count = if backup { 4 } else { 3 };
    let servers: Vec<Memcached> = (0..count).map(|_| Memcached::start()).collect();
    let names: Vec<&str> = servers.iter().map(|s| s.name.as_str()).collect();
    (Magent::farm(&names[..3], &names[3..], options), servers)
}

/// A port that is free now.
pub fn free_port() -> u16 {
    // Below the ports that the kernel gives out, and each once in a process: between the look
    // and the use nobody else takes it.
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let n = (std::process::id() % 1_000_000) * 257 + NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 10_000 + (n % 22_000) as u16;
        // Bound, but not listened on: a process that another thread starts meanwhile has the
        // socket too until it runs its program, and would take connections that are magent's.
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.set_reuse_address(true).expect("SO_REUSEADDR");
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if socket.bind(&address.into()).is_ok() {
            return port;
        }
    }
}

fn write_file(dir: &TempDir, port: u16, text: &str) {
    let dir = dir.path();
    let text = text
        .replace("PORT", &port.to_string())
        .replace("DIR", &dir.display().to_string());
    // As editors do it: whoever reads it sees the old one or the new one.
    fs::write(dir.join("new"), text).expect("the file");
    fs::rename(dir.join("new"), dir.join("pools.yml")).expect("the file in its place");
}
