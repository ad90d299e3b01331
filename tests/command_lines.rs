//! Wrong and doubtful command lines, each with its whole answer: what the shell is told, and with which
//! status. The real program, as a daemon, in the foreground, and under `-t`.

mod common;

use common::magent::free_port;
use common::process::{finish, is_gone, is_root, public_copy, text};
use common::{Client, TempDir, wait_for};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

const NOBODY: u32 = 65534;

/// Lines that nothing can be done with, the status, and the one line on stderr behind `magent: `.
/// `FARM` stands for a server and a free port, `HELD` for a port that is taken, `DIR` for a folder.
#[rustfmt::skip]
const WRONG: &[(&str, i32, &str)] = &[
    // Too little, too much, or no option at all.
    ("", 2, "-s: at least one primary is needed"),
    ("-b 127.0.0.1:1", 2, "-s: at least one primary is needed"),
    ("-s", 2, "-s: needs a value: HOST[:PORT][:WEIGHT]"),
    ("FARM stray", 2, "\"stray\": not an option"),
    ("FARM -v 5", 2, "\"5\": not an option"),
    ("FARM -Z", 2, "-Z: unknown option, magent -h lists all"),
    ("FARM --no-such-option", 2, "--no-such-option: unknown option, magent -h lists all"),
    ("FARM -n 5 -n 6", 2, "-n: given twice"),
    ("FARM -d", 2, "-d: unknown option; leave it out, magent goes to the background by itself"),
    // Servers.
    ("FARM -s ::1", 2, "-s ::1: an IPv6 address is written in brackets: [::1]:11211"),
    ("FARM -s ::1:11211", 2, "-s ::1:11211: an IPv6 address is written in brackets: [::1]:11211"),
    ("FARM -b fe80::1:1121", 2, "-b fe80::1:1121: an IPv6 address is written in brackets: [fe80::1]:1121 or [fe80::1:1121]:11211"),
    ("FARM -s [::1:11211", 2, "-s [::1:11211: the closing bracket is missing"),
    ("FARM -s 127.0.0.1:0", 2, "-s 127.0.0.1:0: port must be 1 to 65535"),
    ("FARM -s 127.0.0.1:2:0", 2, "-s 127.0.0.1:2:0: weight must be 1 to 2147483647"),
    ("FARM -s 127.0.0.1:1", 2, "-s 127.0.0.1:1: given twice; HOST:PORT:2 gives a server twice the keys"),
    ("FARM -s localhost:1", 2, "-s localhost:1: given twice; HOST:PORT:2 gives a server twice the keys"),
    ("FARM -s no/such/host:11211", 2, "-s no/such/host:11211: no/such/host is no host name"),
    ("FARM -b no*such*host", 2, "-b no*such*host: no*such*host is no host name"),
    ("FARM -b 127.0.0.1:2 --auto-eject", 2, "-b 127.0.0.1:2: not together with --auto-eject"),
    ("FARM -k --distribution modula", 2, "-k: not together with --distribution modula"),
    ("FARM --hash sha", 2, "--hash sha: must be one of magent one_at_a_time md5 …"),
    // Servers that are magent itself. The first is what is typed when -p is forgotten.
    ("-s 127.0.0.1:11211 -s 127.0.0.1:11212", 2, "-s 127.0.0.1:11211: magent itself listens there, so a request would go round for ever; give magent another port (-p) or name the memcached"),
    ("-s 127.0.0.1:2 -l 127.0.0.1 -p 2", 2, "-s 127.0.0.1:2: magent itself listens there, so a request would go round for ever; give magent another port (-p) or name the memcached"),
    ("-s 127.0.0.1:1 -b localhost:2 -p 2", 2, "-b localhost:2: magent itself listens there, so a request would go round for ever; give magent another port (-p) or name the memcached"),
    ("-s DIR/s -p 0 -f DIR/s", 2, "-s DIR/s: magent itself listens there, so a request would go round for ever; give magent another port (-p) or name the memcached"),
    ("-c DIR/own.yml", 2, "DIR/own.yml:4: pool a: servers: 127.0.0.1:2: pool a listens there, so a request would go round for ever; name the memcached"),
    ("-c DIR/round.yml", 2, "DIR/round.yml:4: pool a: servers: 127.0.0.1:3: pool b listens there, so a request would go round for ever; name the memcached"),
    // Listeners.
    ("-s 127.0.0.1:1 -l 127.0.0.1 -p HELD", 1, "-l 127.0.0.1 -p HELD: Address already in use"),
    // Shared are the ports of those who all say so, and no doors or sockets.
    ("-s 127.0.0.1:1 --reuseport -l 127.0.0.1 -p HELD", 1, "-l 127.0.0.1 -p HELD: Address already in use"),
    ("FARM --reuseport -f DIR/live", 1, "-f DIR/live: Address already in use"),
    ("FARM --reuseport --admin DIR/live", 1, "--admin DIR/live: Address already in use"),
    ("FARM --reuseport --admin 127.0.0.1:HELD", 1, "--admin 127.0.0.1:HELD: Address already in use"),
    ("FARM -l no-such-host.invalid", 1, "-l no-such-host.invalid: cannot resolve no-such-host.invalid: …"),
    ("-s 127.0.0.1:1 -l 192.0.2.1 -p 2", 1, "-l 192.0.2.1 -p 2: Cannot assign requested address"),
    ("-s 127.0.0.1:1 -l 127.0.0.1:2", 2, "-l 127.0.0.1:2: must be an address without a port; the port is -p"),
    ("-s 127.0.0.1:1 -p 70000", 2, "-p 70000: port must be 0 to 65535"),
    ("-s 127.0.0.1:1 -p x", 2, "-p x: port must be 0 to 65535"),
    ("-s 127.0.0.1:1 -p 0", 2, "-p 0: no TCP, so -f PATH is needed"),
    ("FARM -f DIR/no/such/folder", 1, "-f DIR/no/such/folder: No such file or directory"),
    ("FARM -f DIR/plain", 1, "-f DIR/plain: it exists and is not a socket"),
    ("FARM -f DIR/live", 1, "-f DIR/live: Address already in use"),
    ("FARM -a 999", 2, "-a 999: must be an octal mode, 0 to 0777"),
    // Doors.
    ("FARM --admin 12001", 2, "--admin 12001: must be ADDR:PORT, [V6]:PORT, or a path with a slash in it"),
    ("FARM --admin 127.0.0.1:0", 2, "--admin 127.0.0.1:0: port must be 1 to 65535"),
    ("FARM --admin :12001", 2, "--admin :12001: the host is missing"),
    ("FARM --admin 127.0.0.1:HELD", 1, "--admin 127.0.0.1:HELD: Address already in use"),
    ("FARM --admin DIR/live", 1, "--admin DIR/live: Address already in use"),
    ("FARM --admin DIR/plain", 1, "--admin DIR/plain: it exists and is not a socket"),
    ("FARM --admin DIR/no/such/folder", 1, "--admin DIR/no/such/folder: No such file or directory"),
    ("FARM --admin DIR/x --admin DIR/x", 2, "--admin DIR/x: given twice"),
    ("FARM -f DIR/x --admin DIR/x", 2, "--admin DIR/x: is the file of -f too"),
    ("FARM --twemproxy-stats 22222", 2, "--twemproxy-stats 22222: must be ADDR:PORT or [V6]:PORT"),
    ("FARM --twemproxy-stats DIR/x:1", 2, "--twemproxy-stats DIR/x:1: must be ADDR:PORT or [V6]:PORT"),
    ("FARM --twemproxy-stats 127.0.0.1:HELD", 1, "--twemproxy-stats 127.0.0.1:HELD: Address already in use"),
    ("FARM --admin 127.0.0.1:2 --twemproxy-stats 127.0.0.1:2", 2, "--twemproxy-stats 127.0.0.1:2: is a door of --admin too"),
    ("FARM --slow 0", 2, "--slow 0: must be a number, 1 to 86400000"),
    // Rights, files, descriptors.
    ("FARM -u no-such-user", 1, "-u no-such-user: no such user"),
    ("FARM -u nobody -g no-such-group", 1, "-g no-such-group: no such group"),
    ("FARM -u 4711", 1, "-u 4711: no user has this number, so -g must name the group"),
    ("FARM -P DIR/no/such/folder", 1, "-P DIR/no/such/folder: No such file or directory"),
    ("FARM -P DIR/held.pid", 1, "-P DIR/held.pid: process 4711 uses it"),
    ("FARM --reuseport -P DIR/held.pid", 1, "-P DIR/held.pid: process 4711 uses it"),
    ("FARM -P DIR/live", 1, "-P DIR/live: it exists and is not a regular file"),
    ("FARM -L DIR/no/such/folder", 1, "-L DIR/no/such/folder: No such file or directory"),
    ("FARM -P DIR/x -L DIR/x", 2, "-L DIR/x: is the file of -P too"),
    ("-c DIR/good.yml -P DIR/good.yml", 2, "-P DIR/good.yml: is the file of -c too"),
    // Numbers and sizes.
    ("FARM -n 0", 2, "-n 0: must be a number, 1 to 10000000"),
    ("FARM -n -5", 2, "-n -5: must be a number, 1 to 10000000"),
    ("FARM -n 12x", 2, "-n 12x: must be a number, 1 to 10000000"),
    ("FARM -n 99999999999999999999", 2, "-n 99999999999999999999: must be a number, 1 to 10000000"),
    ("FARM -i 0", 2, "-i 0: must be a number, 1 to 1024"),
    ("FARM -I 1q", 2, "-I 1q: must be a size, 1k to 1g"),
    ("FARM -I 0", 2, "-I 0: must be a size, 1k to 1g"),
    ("FARM -m lots", 2, "-m lots: must be a size, 1 to 1024g"),
    ("FARM -I 100m", 2, "-I 100m: too large for the default -m of 256m; add -m 400m"),
    ("FARM -m 3m", 2, "-m 3m: must be at least 4 times the largest value, 1m (-I); write -m 4m or more"),
    ("FARM -m 8m -I 4m", 2, "-m 8m: must be at least 4 times the largest value, 4m (-I); write -m 16m or more"),
    ("-c DIR/large.yml", 2, "DIR/large.yml:3: pool a: max_value: 100m: too large for -m 256m; start with -m 400m"),
    ("FARM --timeout 0", 2, "--timeout 0: must be a number, 1 to 86400000"),
    ("FARM --timeout 1.5", 2, "--timeout 1.5: must be a number, 1 to 86400000"),
    ("FARM --connect-timeout soon", 2, "--connect-timeout soon: must be a number, 1 to 86400000"),
    ("FARM --failure-limit 0", 2, "--failure-limit 0: must be a number, 1 to 1000000"),
    ("FARM --retry -1", 2, "--retry -1: must be a number, 1 to 86400000"),
    ("FARM --warm x", 2, "--warm x: must be a number, 0 to 4294967295"),
    ("FARM --journal 1", 2, "--journal 1: must be a size, 1k to 1024g"),
    ("FARM --idle-timeout x", 2, "--idle-timeout x: must be a number, 0 to 4294967295"),
    // Files of pools, and twemproxy's command line beside them.
    ("-c DIR/absent.yml", 1, "-c DIR/absent.yml: No such file or directory"),
    ("-c DIR/plain", 2, "DIR/plain:1: …"),
    ("-c DIR/good.yml -k", 2, "-k: not together with -c; its place is `distribution` in the file"),
    ("-d -c DIR/good.yml", 2, "-d: unknown option; of twemproxy only the configuration file is compatible, not the command line: leave it out, magent goes to the background by itself"),
    ("-c DIR/good.yml -s 22222", 2, "-s 22222: not together with -c; its place is `servers` in the file; of twemproxy only the configuration file is compatible, not the command line: there is no port for statistics: send `stats` to a pool"),
    ("-c DIR/good.yml -i 30000", 2, "-i 30000: must be a number, 1 to 1024; of twemproxy only the configuration file is compatible, not the command line: there is no interval of statistics: -i is connections to a server"),
    ("-c DIR/good.yml -m 16384", 2, "-m 16384: must be at least 4 times the largest value, 1m (-I); write -m 4m or more; of twemproxy only the configuration file is compatible, not the command line: there are no mbufs: -m is memory for all that is in flight"),
    ("-c DIR/good.yml -I 100m", 2, "-I 100m: too large for the default -m of 256m; add -m 400m"),
    ("-c DIR/good.yml -v 6", 2, "\"6\": not an option; of twemproxy only the configuration file is compatible, not the command line: write -v or -vv, without a number"),
];

/// Who starts it.
#[derive(Clone, Copy, PartialEq, Debug)]
enum By {
    Root,
    Nobody,
}

/// Lines that start it, and what is said of them, each behind `magent: warning: `.
#[rustfmt::skip]
const DOUBTFUL: &[(By, &str, &[&str])] = &[
    // What is right is not talked about: the published recipe, and a user that is the starter.
    (By::Root, "-u root -n 512 -l 127.0.0.1 -p FREE -s 127.0.0.1:1 -s 127.0.0.1:2 -b 127.0.0.1:3", &[]),
    (By::Root, "FARM -u nobody -f DIR/s -a 0770", &[]),
    (By::Root, "FARM -u nobody -s 127.0.0.1:2 -b 127.0.0.1:2 -b 127.0.0.1:1", &[]),
    (By::Nobody, "FARM -u nobody", &[]),
    (By::Root, "FARM", &["no -u: it runs as root; add -u USER, or -u root if that is meant"]),
    (By::Root, "FARM -g daemon", &["no -u: it runs as root; add -u USER, or -u root if that is meant"]),
    (By::Nobody, "FARM -u root", &["-u root: has no effect, since only root can change its user; start it as root or leave it out"]),
    (By::Nobody, "FARM -u daemon -g daemon", &[
        "-u daemon: has no effect, since only root can change its user; start it as root or leave it out",
        "-g daemon: has no effect, since only root can change its group; start it as root or leave it out",
    ]),
    (By::Nobody, "FARM --admin 127.0.0.1:FREE2 --admin DIR/admin", &[]),
    (By::Nobody, "FARM --admin 0.0.0.0:FREE2", &["--admin 0.0.0.0:FREE2: whoever reaches it may stop service; name 127.0.0.1 or a socket unless a firewall stands before it"]),
    (By::Nobody, "FARM -a 0770", &["-a 0770: has no effect without a Unix socket; add -f PATH or leave it out"]),
    (By::Nobody, "FARM -b 127.0.0.1:1", &["pool default: 127.0.0.1:1 is the only primary and the only backup, so no key has a backup; add another backup"]),
    (By::Nobody, "FARM -s 127.0.0.1:2 -b 0.0.0.0:2", &["pool default: 0.0.0.0:2 is a primary and the only backup, so its own keys have no backup; add another backup"]),
    (By::Nobody, "FARM -k -s 127.0.0.1:2:1000000", &["pool default: servers: 127.0.0.1-1: weight 1 of 1000001 …"]),
    (By::Root, "-c DIR/same.yml -u nobody", &["pool a: 127.0.0.1:2 is a primary and the only backup, so its own keys have no backup; add another backup"]),
    (By::Root, "-c DIR/chain.yml -u nobody", &["pool a: servers: 127.0.0.1:FREE2: pool b listens there, so a request passes magent twice; name that pool's servers instead"]),
    (By::Root, "FARM -u nobody -a 0770 -b 127.0.0.1:1", &[
        "pool default: 127.0.0.1:1 is the only primary and the only backup, so no key has a backup; add another backup",
        "-a 0770: has no effect without a Unix socket; add -f PATH or leave it out",
    ]),
];

/// The files that lines name.
const FILES: &[(&str, &str)] = &[
    ("plain", "precious"),
    ("held.pid", "4711\n"),
    (
        "good.yml",
        "a:\n  listen: 127.0.0.1:FREE\n  servers:\n  - 127.0.0.1:1:1\n",
    ),
    (
        "own.yml",
        "a:\n  listen: 127.0.0.1:2\n  servers:\n  - 127.0.0.1:2:1\n",
    ),
    (
        "round.yml",
        "a:\n  listen: 127.0.0.1:2\n  servers:\n  - 127.0.0.1:3:1\n\
         b:\n  listen: 127.0.0.1:3\n  servers:\n  - 127.0.0.1:4:1\n  backups:\n  - 127.0.0.1:2:1\n",
    ),
    (
        "large.yml",
        "a:\n  listen: 127.0.0.1:2\n  max_value: 100m\n  servers:\n  - 127.0.0.1:1:1\n",
    ),
    (
        "same.yml",
        "a:\n  listen: 127.0.0.1:FREE\n  servers:\n  - 127.0.0.1:1:1\n  - 127.0.0.1:2:1\n  \
         backups:\n  - 127.0.0.1:2:1\n",
    ),
    (
        "chain.yml",
        "a:\n  listen: 127.0.0.1:FREE\n  servers:\n  - 127.0.0.1:FREE2:1\n\
         b:\n  listen: 127.0.0.1:FREE2\n  servers:\n  - 127.0.0.1:1:1\n",
    ),
];

/// A folder with all that lines name.
struct Scene {
    dir: TempDir,
    held: TcpListener,
    /// The lock of a pid file.
    pid: Option<Flock<File>>,
    _live: UnixListener,
    free: [u16; 2],
}

impl Scene {
    fn new() -> Scene {
        let dir = TempDir::new();
        let mut scene = Scene {
            pid: None,
            held: TcpListener::bind(("127.0.0.1", 0)).expect("a port"),
            _live: UnixListener::bind(dir.path().join("live")).expect("a socket"),
            free: [free_port(), free_port()],
            dir,
        };
        for (name, text) in FILES {
            fs::write(scene.dir.path().join(name), scene.fill(text)).expect("a file");
        }
        let pid = File::open(scene.dir.path().join("held.pid")).expect("it was written");
        let lock = Flock::lock(pid, FlockArg::LockExclusiveNonblock);
        scene.pid = Some(lock.map_err(|(_, e)| e).expect("nobody has it"));
        scene
    }

    /// The text with what stands for something put in.
    fn fill(&self, text: &str) -> String {
        let held = self.held.local_addr().expect("its address").port();
        text.replace("FARM", "-s 127.0.0.1:1 -l 127.0.0.1 -p FREE")
            .replace("FREE2", &self.free[1].to_string())
            .replace("FREE", &self.free[0].to_string())
            .replace("HELD", &held.to_string())
            .replace("DIR", &self.dir.path().display().to_string())
    }

    /// Runs a line, with more options before it, to its end.
    fn run(&self, program: &Path, by: By, more: &[&str], line: &str) -> Output {
        let mut command = Command::new(program);
        command.args(more.iter().map(|word| self.fill(word)));
        command.args(self.fill(line).split_whitespace());
        if by == By::Nobody {
            command.uid(NOBODY).gid(NOBODY);
        }
        finish(command)
    }

    /// True if `said` is the line that a table wants; one that ends in `…` may go on.
    fn is_told(&self, said: &str, wanted: &str) -> bool {
        match self.fill(wanted).strip_suffix('…') {
            Some(start) => said.starts_with(start) && said.len() > start.len(),
            None => said == self.fill(wanted),
        }
    }
}

#[test]
fn what_is_wrong_is_one_line_before_the_shell_goes_on() {
    let scene = Scene::new();
    let magent = Path::new(env!("CARGO_BIN_EXE_magent"));
    for (line, status, answer) in WRONG {
        // What only shows when things are opened is none of -t's business.
        let ways: &[&[&str]] = match status {
            2 => &[&[], &["-D"], &["-t"]],
            _ => &[&[], &["-D"]],
        };
        for more in ways {
            let output = scene.run(magent, By::Root, more, line);
            let said = text(&output.stderr);
            let what = format!("magent {} {line}\n{said}", more.join(" "));
            assert_eq!(output.status.code(), Some(*status), "{what}");
            let told = said
                .strip_prefix("magent: ")
                .and_then(|s| s.strip_suffix('\n'));
            let told = told.unwrap_or_else(|| panic!("{what}"));
            assert!(scene.is_told(told, answer), "{what}wanted {answer}");
            assert!(!told.contains('\n') && output.stdout.is_empty(), "{what}");
        }
    }
    let plain = fs::read_to_string(scene.dir.path().join("plain"));
    assert_eq!(plain.expect("it is still there"), "precious");
    let mut left: Vec<_> = fs::read_dir(scene.dir.path())
        .expect("the folder")
        .collect();
    left.retain(|f| f.as_ref().is_ok_and(|f| f.file_name() != "live"));
    assert_eq!(left.len(), FILES.len(), "{left:?}");
}

/// A scene in which the line started a daemon, and what it said.
fn start(by: By, line: &str) -> (Scene, Output) {
    for _ in 0..20 {
        let scene = Scene::new();
        let program = public_copy(scene.dir.path());
        let files = ["-P", "DIR/pid", "-L", "DIR/log"];
        let output = scene.run(&program, by, &files, line);
        // Somebody else may have taken the port meanwhile.
        if !text(&output.stderr).contains("in use") {
            return (scene, output);
        }
    }
    panic!("no free port");
}

#[test]
fn what_is_doubtful_is_said_and_served() {
    if !is_root("warnings of rights, and others as another user") {
        return;
    }
    for (by, line, warnings) in DOUBTFUL {
        let (scene, output) = start(*by, line);
        let said = text(&output.stderr);
        let what = format!("magent {line}, by {by:?}\n{said}");
        assert!(output.status.success(), "{what}");
        let path = |name: &str| scene.dir.path().join(name);
        let pid = fs::read_to_string(path("pid")).expect("the pid file");
        let pid: u32 = pid.trim_end().parse().expect("its number");
        let end = End(pid);
        let version = Client::tcp(scene.free[0]).ask_line("version\r\n");
        assert!(version.starts_with("VERSION "), "{what}");
        // Each line of it is one of the warnings, in their order, and behind `before`.
        let check = |told: &str, before: &str| {
            let lines = told
                .lines()
                .map(|l| l.split_once(before).map_or(l, |l| l.1));
            let lines: Vec<&str> = lines.collect();
            let mut pairs = lines.iter().zip(*warnings);
            let is_so = lines.len() == warnings.len() && pairs.all(|(l, w)| scene.is_told(l, w));
            assert!(is_so, "{what}told:\n{told}");
        };
        check(&said, "magent: warning: ");
        // The log also says that it serves.
        let log = fs::read_to_string(path("log")).expect("the log");
        let warned = log.lines().filter(|l| !l.contains(" info serving, "));
        check(&warned.collect::<Vec<_>>().join("\n"), " warn ");
        // Nothing is started to say the same.
        let checked = scene.run(&path("magent"), *by, &["-t"], line);
        assert!(
            checked.status.success() && checked.stderr.is_empty(),
            "{what}"
        );
        let told = text(&checked.stdout);
        let (told, valid) = told
            .trim_end()
            .rsplit_once('\n')
            .unwrap_or(("", told.trim_end()));
        check(told, "magent: warning: ");
        assert!(
            valid.starts_with("magent: ") && valid.contains(": valid; pools: "),
            "{valid}"
        );
        kill(Pid::from_raw(pid as i32), Signal::SIGTERM).expect("TERM");
        wait_for("its end", || is_gone(pid).then_some(()));
        assert!(!path("pid").exists(), "{what}");
        drop(end);
    }
}

/// Ends a daemon that a failed check left.
struct End(u32);

impl Drop for End {
    fn drop(&mut self) {
        if !is_gone(self.0) {
            let _ = kill(Pid::from_raw(self.0 as i32), Signal::SIGKILL);
        }
    }
}
