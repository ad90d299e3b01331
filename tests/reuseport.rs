//! Several processes on one port (`--reuseport`): each is a magent of its own, and the system spreads clients over them.

mod common;

use common::{Client, Magent, Memcached, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{setsockopt, sockopt::ReusePort};
use nix::unistd::Pid;
use socket2::{Domain, Socket, Type};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

const PROCESSES: usize = 3;

struct Farm {
    magents: Vec<Magent>,
    primaries: [Memcached; 2],
    _backup: Memcached,
}

impl Farm {
    fn new() -> Farm {
        let primaries = [Memcached::start(), Memcached::start()];
        let backup = Memcached::start();
        let [one, two] = primaries.each_ref().map(|p| &p.name[..]);
        let options = ["--reuseport", "-s", one, "-s", two, "-b", &backup.name];
        let first = Magent::replaceable(&options);
        let others: Vec<Magent> = (1..PROCESSES).map(|_| first.beside(&options)).collect();
        Farm {
            magents: [first].into_iter().chain(others).collect(),
            primaries,
            _backup: backup,
        }
    }

    fn port(&self) -> u16 {
        self.magents[0].port
    }
}

/// `stats proxy` of one process: its port is the others' too.
fn stats(magent: &Magent) -> BTreeMap<String, String> {
    Client::unix(&magent.socket()).stats("stats proxy\r\n")
}

fn number(magent: &Magent, name: &str) -> u64 {
    stats(magent)[name].parse().expect("a number")
}

/// Whom a client has come to.
fn process_of(client: &mut Client) -> String {
    client.stats("stats proxy\r\n")["pid"].clone()
}

#[test]
fn clients_come_to_all_of_them_and_find_the_same() {
    let farm = Farm::new();
    let mut clients: Vec<Client> = (0..150).map(|_| Client::tcp(farm.port())).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        client.set(&format!("key{n}"), format!("value{n}"));
    }
    let mut seen = BTreeSet::new();
    for (n, client) in clients.iter_mut().enumerate() {
        let (key, value) = (format!("key{}", (n + 71) % 150), (n + 71) % 150);
        let value = format!("value{value}").into_bytes();
        assert_eq!(client.get(&key), Some(value), "{key}");
        seen.insert(process_of(client));
    }
    let pids: BTreeSet<String> = farm.magents.iter().map(|m| m.pid().to_string()).collect();
    assert_eq!(seen, pids);
    let counts = farm.magents.iter().map(|m| number(m, "curr_connections"));
    // One of each is who asks.
    assert_eq!(counts.sum::<u64>(), 150 + PROCESSES as u64);
    // And they know of each other.
    for magent in &farm.magents {
        let mut client = Client::unix(&magent.socket());
        let field = format!("{}:other_magents", farm.primaries[0].name);
        wait_for("the others", || {
            (0..20).for_each(|n| _ = client.get(&format!("key{n}")));
            let all = client.stats("stats servers\r\n");
            let others = all.get(&field)?.split(", ").count();
            (others == PROCESSES - 1).then_some(())
        });
    }
}

#[test]
fn each_goes_over_to_another_program_and_ends_by_itself() {
    let mut farm = Farm::new();
    let port = farm.port();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for name in 0..12 {
            let over = &over;
            scope.spawn(move || {
                let mut client = Client::tcp(port);
                let key = format!("key{name}");
                for n in 0.. {
                    client.set(&key, n.to_string());
                    let got = client.get(&key);
                    assert_eq!(got, Some(n.to_string().into_bytes()));
                    // Others come all the time, but no more than there are ports for.
                    if n % 8 == 0 {
                        Client::tcp(port).ask("mn\r\n", "MN\r\n");
                    }
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
        }
        for round in 1..=2 {
            for magent in &farm.magents {
                magent.replace_program("cp \"$REAL\" \"$NEW\"; date +%N >> \"$NEW\"");
                magent.signal(Signal::SIGUSR2);
                wait_for("another program", || {
                    assert_eq!(number(magent, "upgrades_failed"), 0, "{}", magent.log());
                    (number(magent, "upgrades") == round).then_some(())
                });
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    while let Some(mut last) = farm.magents.pop() {
        assert!(last.terminate().success());
        for _ in 0..30 * farm.magents.len() {
            Client::tcp(port).ask("version\r\n", "VERSION 1.6.18\r\n");
        }
    }
}

/// A process that is killed takes its own clients along, and nobody else.
#[test]
fn one_that_is_killed_is_felt_by_its_own_clients_only() {
    let mut farm = Farm::new();
    let victim = farm.magents[1].pid().to_string();
    let mut clients: Vec<Client> = (0..60).map(|_| Client::tcp(farm.port())).collect();
    let owners: Vec<String> = clients.iter_mut().map(process_of).collect();
    assert!(owners.contains(&victim));
    // SIGKILL.
    drop(farm.magents.remove(1));
    for (client, owner) in clients.iter_mut().zip(&owners) {
        match *owner == victim {
            true => _ = client.read_to_end(),
            false => _ = client.ask("mn\r\n", "MN\r\n"),
        }
    }
    for _ in 0..60 {
        assert_ne!(process_of(&mut Client::tcp(farm.port())), victim);
    }
}

/// A socket as systemd makes it, with `ReusePort=yes`.
fn shared(port: u16) -> (Socket, u16) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    setsockopt(&socket, ReusePort, &true).expect("SO_REUSEPORT");
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    socket.bind(&address.into()).expect("the port");
    socket.listen(64).expect("it listens");
    let own = socket.local_addr().expect("its address").as_socket();
    (socket, own.expect("an address").port())
}

/// magent under a shell that puts the socket where systemd puts it, and becomes magent.
fn activated(socket: Socket, port: u16) -> Child {
    let script = "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\"";
    let mut shell = Command::new("sh");
    shell.args(["-c", script, "sh", env!("CARGO_BIN_EXE_magent"), "-D"]);
    shell.args(["-u", "root", "-s", "127.0.0.1:1", "--reuseport"]);
    shell.args(["-l", "127.0.0.1", "-p", &port.to_string()]);
    shell.stdin(OwnedFd::from(socket)).stderr(Stdio::null());
    shell.stdout(Stdio::null()).spawn().expect("magent")
}

#[test]
fn sockets_of_systemd_may_be_shared() {
    let (first, port) = shared(0);
    let (second, _) = shared(port);
    let mut children = [activated(first, port), activated(second, port)];
    let wanted: BTreeSet<String> = children.iter().map(|c| c.id().to_string()).collect();
    let mut seen = BTreeSet::new();
    wait_for("both to be seen", || {
        seen.insert(process_of(&mut Client::tcp(port)));
        (seen == wanted).then_some(())
    });
    for child in &mut children {
        kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).expect("a signal");
        wait_for("its end", || child.try_wait().expect("its status"));
    }
}
