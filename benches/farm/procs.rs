//! The processes under test: started on ports of their own, measured through `/proc`, and ended by
//! their own handle whatever happens.
//!
//! Each is started through `setpriv --pdeathsig KILL`: should this process be killed, the kernel
//! ends them.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Result;

/// Time to start, to attach or to end, at most.
const PATIENCE: Duration = Duration::from_secs(10);

/// Ports are taken from here: below those that the kernel gives to clients.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Processor time of a process up to a moment.
#[derive(Clone, Copy, Default, Debug)]
pub struct Cpu {
    /// The scheduler's own sum over all threads, in nanoseconds.
    total: u64,
    /// User time in ticks of 10 ms, for telling how the sum divides.
    user: u64,
    /// System time in the same ticks.
    system: u64,
}

/// One tick of `/proc/PID/stat` in nanoseconds; the same on every Linux since 2.6.
const TICK: u64 = 10_000_000;

impl Cpu {
    /// User and system time since `earlier`, in nanoseconds.
    pub fn since(self, earlier: Cpu) -> (f64, f64) {
        let (user, system) = (self.user - earlier.user, self.system - earlier.system);
        let ticks = (user + system).max(1);
        let total = match self.total - earlier.total {
            0 => (user + system) * TICK,
            total => total,
        };
        let user = total as f64 * user as f64 / ticks as f64;
        (user, total as f64 - user)
    }
}

/// Gives out ports and names the folder for configurations and logs.
pub struct Workshop {
    folder: PathBuf,
    next_port: u16,
}

/// A running child.
pub struct Process {
    child: Child,
    name: String,
    log: PathBuf,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Workshop {
    /// Uses `folder`, which it creates.
    pub fn new(folder: &Path) -> Result<Workshop> {
        fs::create_dir_all(folder)?;
        let width = u32::from(PORTS.end - PORTS.start);
        let skip = std::process::id() * 200 % width;
        Ok(Workshop {
            folder: folder.to_path_buf(),
            next_port: PORTS.start + skip as u16,
        })
    }

    /// An address nobody listens on.
    fn free_address(&mut self) -> Result<SocketAddr> {
        for _ in PORTS {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.next_port));
            self.next_port += 1;
            if self.next_port == PORTS.end {
                self.next_port = PORTS.start;
            }
            if TcpListener::bind(address).is_ok() {
                return Ok(address);
            }
        }
        Err("no free port".into())
    }

    fn spawn(&self, name: &str, mut command: Command, address: SocketAddr) -> Result<Process> {
        let log = self.folder.join(format!("{}.log", name.replace(' ', "-")));
        let file = File::create(&log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .map_err(|e| format!("{name}: {command:?}: {e}"))?;
        Ok(Process {
            child,
            name: name.to_string(),
            log,
            address,
        })
    }

    /// A memcached with one worker thread.
    pub fn memcached(&mut self, name: &str) -> Result<Process> {
        let address = self.free_address()?;
        let mut command = guarded("memcached");
        let port = address.port().to_string();
        command.args(["-u", "root", "-l", "127.0.0.1", "-p", &port, "-t", "1"]);
        command.args(["-m", "256", "-I", "2m", "-c", "12000", "-b", "4096"]);
        let mut process = self.spawn(name, command, address)?;
        process.wait_until_ready()?;
        Ok(process)
    }

    /// twemproxy with one pool over `servers`.
    pub fn twemproxy(&mut self, servers: &[Process]) -> Result<Process> {
        let address = self.free_address()?;
        let stats = self.free_address()?.port().to_string();
        let config = self.folder.join("nutcracker.yml");
        let mut text = format!(
            "bench:\n  listen: {address}\n  backlog: 4096\n  hash: md5\n  distribution: ketama\n  \
             auto_eject_hosts: false\n  preconnect: true\n  servers:\n"
        );
        for server in servers {
            text.push_str(&format!("   - {}:1\n", server.address));
        }
        fs::write(&config, text)?;
        let mut command = guarded("nutcracker");
        command.arg("-c").arg(&config);
        command.args(["-a", "127.0.0.1", "-s", &stats]);
        command.arg("-p").arg(self.folder.join("nutcracker.pid"));
        command.arg("-o").arg(self.folder.join("twemproxy.log"));
        let mut process = self.spawn("twemproxy", command, address)?;
        process.wait_until_ready()?;
        Ok(process)
    }

    /// magent over `servers` and `backups`.
    pub fn magent(
        &mut self,
        name: &str,
        program: &Path,
        servers: &[Process],
        backups: &[Process],
    ) -> Result<Process> {
        let address = self.free_address()?;
        let mut command = guarded(program);
        command.args(["-D", "-k", "-n", "12000", "-l", "127.0.0.1", "-p"]);
        command.arg(address.port().to_string());
        // twemproxy waits for ever, the load generator 10 s: a machine that stands still for a
        // second does not end the run.
        command.args(["--timeout", "10000"]);
        for (option, farm) in [("-s", servers), ("-b", backups)] {
            for server in farm {
                command.arg(option).arg(server.address.to_string());
            }
        }
        let mut process = self.spawn(name, command, address)?;
        process.wait_until_ready()?;
        Ok(process)
    }

    /// System calls that `process` makes while `work` runs, by `strace -c`; `None` if strace is
    /// missing or not allowed.
    pub fn count_calls<T>(
        &self,
        process: &Process,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<Option<(T, u64)>> {
        let summary = self.folder.join("strace.txt");
        let mut command = guarded("strace");
        command.args(["-f", "-c", "--summary-columns=calls,name", "-o"]);
        command
            .arg(&summary)
            .args(["-p", &process.id().to_string()]);
        let mut strace = self.spawn("strace", command, process.address)?;
        let is_traced = look(|| match strace.child.try_wait()? {
            Some(_) => Ok(Some(false)),
            None => Ok(process.traced()?.then_some(true)),
        })?;
        if is_traced != Some(true) {
            return Ok(None);
        }
        let result = work()?;
        kill(Pid::from_raw(strace.id() as i32), Signal::SIGINT)?;
        strace.wait()?;
        let text = fs::read_to_string(&summary)?;
        Ok(sum_calls(&text).map(|calls| (result, calls)))
    }
}

/// The calls in a summary of `strace -c`: its rows begin with a number, the last is the total.
fn sum_calls(text: &str) -> Option<u64> {
    let total = text
        .lines()
        .rev()
        .find(|l| l.trim_end().ends_with("total"))?;
    total.split_whitespace().next()?.parse().ok()
}

/// Looks until there is something; `None` if it takes longer than [`PATIENCE`].
pub fn look<T>(mut at: impl FnMut() -> Result<Option<T>>) -> Result<Option<T>> {
    let start = Instant::now();
    loop {
        let found = at()?;
        if found.is_some() || start.elapsed() > PATIENCE {
            return Ok(found);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn guarded(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program);
    command
}

impl Process {
    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it answers a get.
    fn wait_until_ready(&mut self) -> Result<()> {
        let mut last = String::new();
        let ready = look(|| {
            self.check()?;
            last = match ask(self.address) {
                Ok(answer) if answer == *b"END\r\n" => return Ok(Some(())),
                Ok(answer) => format!("answers a get with {}", answer.escape_ascii()),
                Err(e) => format!("does not answer: {e}"),
            };
            Ok(None)
        })?;
        ready.ok_or_else(|| format!("{} {last}", self.name).into())
    }

    /// An error that tells how it died, if it did.
    pub fn check(&mut self) -> Result<()> {
        let Some(status) = self.child.try_wait()? else {
            return Ok(());
        };
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        let mut death = format!("{} (pid {}) ended: {status}", self.name, self.id());
        for line in &lines[lines.len().saturating_sub(5)..] {
            death.push_str("\n  ");
            death.push_str(line);
        }
        Err(death.into())
    }

    fn wait(&mut self) -> Result<()> {
        match look(|| Ok(self.child.try_wait()?))? {
            Some(_) => Ok(()),
            None => Err(format!("{} does not end", self.name).into()),
        }
    }

    fn proc_file(&self, name: &str) -> Result<String> {
        let path = format!("/proc/{}/{name}", self.id());
        fs::read_to_string(&path).map_err(|e| format!("{} {path}: {e}", self.name).into())
    }

    fn threads(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(format!("/proc/{}/task", self.id()))? {
            names.push(format!("task/{}", entry?.file_name().to_string_lossy()));
        }
        Ok(names)
    }

    /// True if a tracer holds all its threads.
    fn traced(&self) -> Result<bool> {
        for thread in self.threads()? {
            let status = self.proc_file(&format!("{thread}/status"))?;
            if field(&status, "TracerPid:") == Some(0) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Processor time so far, of all its threads.
    pub fn cpu(&self) -> Result<Cpu> {
        let mut total = 0;
        for thread in self.threads()? {
            let text = self.proc_file(&format!("{thread}/schedstat"))?;
            total += text.split(' ').next().map_or(Ok(0), str::parse::<u64>)?;
        }
        let stat = self.proc_file("stat")?;
        // The name in parentheses may hold anything; user and system time are the 12th and
        // 13th fields behind it.
        let mut fields = stat.rsplit(')').next().unwrap_or("").split_whitespace();
        Ok(Cpu {
            total,
            user: fields.nth(11).unwrap_or("0").parse()?,
            system: fields.next().unwrap_or("0").parse()?,
        })
    }

    /// The most memory that it ever had resident, in bytes.
    pub fn peak_memory(&self) -> Result<u64> {
        let status = self.proc_file("status")?;
        Ok(field(&status, "VmHWM:").unwrap_or(0) * 1024)
    }

    /// Memory of its own (no program text) that is resident now, in bytes; exact.
    pub fn own_memory(&self) -> Result<u64> {
        let rollup = self.proc_file("smaps_rollup")?;
        Ok(field(&rollup, "Anonymous:").unwrap_or(0) * 1024)
    }
}

/// The number behind `name` in a file of `/proc`.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

fn ask(address: SocketAddr) -> std::io::Result<[u8; 5]> {
    let mut io = TcpStream::connect(address)?;
    io.set_read_timeout(Some(Duration::from_secs(2)))?;
    io.write_all(b"get bench:none\r\n")?;
    let mut answer = [0; 5];
    io.read_exact(&mut answer)?;
    Ok(answer)
}

/// What a server answers to a `stats` command, as text.
pub fn stats(address: SocketAddr, command: &str) -> Result<String> {
    let mut io = TcpStream::connect(address)?;
    io.set_read_timeout(Some(Duration::from_secs(2)))?;
    io.write_all(format!("{command}\r\n").as_bytes())?;
    let mut answer = Vec::new();
    let mut some = [0; 4096];
    while !answer.ends_with(b"END\r\n") {
        match io.read(&mut some)? {
            0 => return Err(format!("closed on {command}").into()),
            n => answer.extend_from_slice(&some[..n]),
        }
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
