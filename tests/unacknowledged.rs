//! Writes that a server was sent and never answered: it may execute them long after magent has
//! given their link up, when it wakes. Nothing that it executes late may be read, fetched, copied,
//! or outlive a delete.
//!
//! ```text
//!  writer ─▶ magent ──old link──▶ server: stopped, the writes lie in its socket
//!                   ──new link──▶ server: awake, answers; now it reads the old link as well
//! ```
//!
//! How that old link ends for magent is not up to the server alone: by its own end of stream, by a
//! reset on the way, or not at all.
//!
//! `MAGENT_ASLEEP_SECONDS` says how long real servers are stopped; `make soak` has them stopped
//! for longer than any wait for a link's end.

mod common;

use common::farm::{Farm, are_back, quick};
use common::time::wait_within;
use common::world::State;
use common::{Client, Fake, FakeLink, Magent, Memcached, World, pause_of, wait_for};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const KEYS: usize = 20;

/// A server that wakes executes what it had received within this time of its first answer.
const LATE: Duration = Duration::from_millis(500);

/// The answer to the request that runs behind all late writes.
const LAST_ANSWER: &[u8] = b"MN\r\n";

/// How the link with unanswered writes ends for magent.
#[derive(Clone, Copy, PartialEq, Debug)]
enum End {
    /// The server reads it to its end, executes, and closes.
    OfStream,
    /// It is reset on the way; the server executes all the same.
    Reset,
    /// It stays as it is; the server executes all the same.
    Never,
}

/// What the test says, and what has come to pass.
#[derive(Default)]
struct Wire {
    /// What is written on the links there are is not read for the time being, and new links are
    /// not answered.
    stopped: AtomicBool,
    /// New links are answered.
    awake: AtomicBool,
    /// A new link was answered.
    answered: AtomicBool,
    /// Old links with writes that were not read.
    asleep: AtomicUsize,
    /// Those of them whose writes have run.
    executed: AtomicUsize,
}

impl Wire {
    fn all_executed(&self) -> bool {
        let asleep = self.asleep.load(SeqCst);
        asleep > 0 && self.executed.load(SeqCst) == asleep
    }
}

/// A real server behind a wire of the test's.
struct Sleeper {
    server: Memcached,
    fake: Fake,
    wire: Arc<Wire>,
}

impl Sleeper {
    fn new(end: End) -> Sleeper {
        let server = Memcached::start();
        let wire = Arc::new(Wire::default());
        let (port, theirs) = (server.port, wire.clone());
        let fake = Fake::raw(move |link| carry(link, port, &theirs, end));
        Sleeper { server, fake, wire }
    }
}

/// Carries one link to the server on `port` and back.
fn carry(link: &mut FakeLink, port: u16, wire: &Arc<Wire>, end: End) {
    let is_new = wire.stopped.load(SeqCst);
    link.wait(|| !is_new || wire.awake.load(SeqCst));
    let mut server = TcpStream::connect(("127.0.0.1", port)).expect("the server");
    let back = Arc::new(Mutex::new(Some(link.sender())));
    let (from, to, theirs) = (server.try_clone(), back.clone(), wire.clone());
    let from = from.expect("a second handle");
    let answers = std::thread::spawn(move || carry_back(from, &to, is_new, &theirs));
    while let Some(bytes) = link.bytes() {
        if !is_new && wire.stopped.load(SeqCst) {
            wire.asleep.fetch_add(1, SeqCst);
            let late = Late {
                bytes,
                server,
                answers,
                end,
            };
            return sleep(link, late, &back, wire);
        }
        if server.write_all(&bytes).is_err() {
            break;
        }
    }
    let _ = server.shutdown(Shutdown::Both);
}

/// The server's answers; those of a link that was given up go to nobody.
fn carry_back(mut from: TcpStream, to: &Mutex<Option<TcpStream>>, is_new: bool, wire: &Wire) {
    let (mut chunk, mut unheard) = ([0; 65536], Vec::new());
    while let Ok(n @ 1..) = from.read(&mut chunk) {
        if !is_new && wire.stopped.load(SeqCst) {
            unheard.extend_from_slice(&chunk[..n]);
            if unheard.ends_with(LAST_ANSWER) {
                wire.executed.fetch_add(1, SeqCst);
                return;
            }
        } else if let Some(to) = &mut *to.lock().expect("a link") {
            let _ = to.write_all(&chunk[..n]);
            wire.answered.fetch_or(is_new, SeqCst);
        }
    }
}

/// An old link's writes, and the server that will run them.
struct Late {
    bytes: Vec<u8>,
    server: TcpStream,
    /// Ends when all is answered.
    answers: JoinHandle<()>,
    end: End,
}

/// The old link of a server that sleeps.
fn sleep(link: &mut FakeLink, late: Late, back: &Mutex<Option<TcpStream>>, wire: &Arc<Wire>) {
    link.wait(|| wire.awake.load(SeqCst));
    let (end, rest, theirs) = (late.end, link.bytes_so_far(), wire.clone());
    let execution = std::thread::spawn(move || execute(late, &rest, &theirs));
    match end {
        End::OfStream => execution.join().expect("the late writes"),
        // Until the test is over.
        End::Never => link.wait(|| false),
        End::Reset => {
            *back.lock().expect("a link") = None;
            link.reset();
        }
    }
}

fn execute(mut late: Late, rest: &[u8], wire: &Wire) {
    // Who waits for the end of stream asks nothing before it.
    let due = || late.end == End::OfStream || wire.answered.load(SeqCst);
    wait_for("a new link to be answered", || due().then_some(()));
    pause_of(LATE);
    late.bytes.extend_from_slice(rest);
    late.bytes.extend(b"mn\r\n");
    let _ = late.server.write_all(&late.bytes);
    let _ = late.answers.join();
}

fn names() -> Vec<String> {
    (0..KEYS).map(|i| format!("k{i}")).collect()
}

/// Writes each key many times over, from several clients at once, so that it need not wait for
/// one timeout after the other. All are acknowledged.
fn write_many(magent: &Magent, clients: usize, rounds: usize) {
    let keys = names();
    let round: String = keys
        .iter()
        .map(|k| format!("set {k} 0 0 3\r\nold\r\n"))
        .collect();
    let mut clients: Vec<Client> = (0..clients).map(|_| magent.client()).collect();
    let sent = clients
        .iter()
        .map(|c| c.send_aside(round.repeat(rounds).into()));
    let sent: Vec<_> = sent.collect();
    for client in &mut clients {
        client.expect("STORED\r\n".repeat(rounds * KEYS));
    }
    sent.into_iter()
        .for_each(|s| s.join().expect("all is sent"));
}

/// Writes until the server counts as down, each time another key that nobody reads.
#[track_caller]
fn write_until_down(magent: &Magent, name: &str) {
    let mut client = magent.client();
    let mut n = 0;
    wait_for(&format!("{name} to be down"), || {
        n += 1;
        client.set(&format!("other{n}"), "x");
        (magent.server(name)["state"] == "down").then_some(())
    });
}

fn delete_all(client: &mut Client) {
    for key in names() {
        client.ask(format!("delete {key}\r\n"), "DELETED\r\n");
    }
}

/// Reads all keys until `done`, and a moment more; each must be absent each time.
#[track_caller]
fn read_nothing_until(
    client: &mut Client,
    what: &str,
    within: Duration,
    mut done: impl FnMut() -> bool,
) {
    let line = format!("get {}\r\n", names().join(" "));
    let begin = Instant::now();
    let mut read_nothing = || {
        client.send(&line);
        let got = client.read_until(b"END\r\n");
        assert!(
            got == b"END\r\n",
            "read {:?} after {what}: {}",
            begin.elapsed(),
            common::show(&got)
        );
    };
    wait_within(within, &format!("an end after {what}"), || {
        read_nothing();
        done().then_some(())
    });
    (0..200).for_each(|_| read_nothing());
}

/// Neither server may hold what was deleted, whenever it ran.
#[track_caller]
fn check_gone(servers: [&Memcached; 2]) {
    for server in servers {
        let held: Vec<String> = names()
            .into_iter()
            .filter(|k| server.value(k).is_some())
            .collect();
        assert!(held.is_empty(), "{} still holds {held:?}", server.name);
    }
}

/// A server that sleeps with writes in its socket, wakes, and executes them after it has
/// answered on a new link. The sleeper is the primary, or the backup.
fn wakes_and_executes(is_primary: bool, end: End, links: &str) {
    let (sleeper, other) = (Sleeper::new(end), Memcached::start());
    let mut farm = [&sleeper.fake.name[..], &other.name];
    if !is_primary {
        farm.reverse();
    }
    let magent = Magent::farm(
        &farm[..1],
        &farm[1..],
        &quick(&["--failure-limit", "1", "-i", links]),
    );
    let mut client = magent.client();
    client.set("k0", "first");
    sleeper.server.wait_value("k0", Some(b"first"));
    sleeper.wire.stopped.store(true, SeqCst);
    write_many(&magent, 20, 5);
    write_until_down(&magent, &sleeper.fake.name);
    delete_all(&mut client);
    sleeper.wire.awake.store(true, SeqCst);
    let mut watcher = magent.client();
    // 5 s for the end of the old link, 1 s more, a wait between two probes.
    let within = Duration::from_secs(15);
    read_nothing_until(&mut client, "the server woke", within, || {
        sleeper.wire.all_executed() && are_back(&mut watcher, &[&sleeper.fake.name])
    });
    check_gone([&sleeper.server, &other]);
}

#[test]
fn a_backup_whose_old_link_is_reset() {
    wakes_and_executes(false, End::Reset, "1");
}

#[test]
fn a_backup_whose_old_link_stays() {
    wakes_and_executes(false, End::Never, "1");
}

#[test]
fn a_backup_that_closes_its_old_link() {
    wakes_and_executes(false, End::OfStream, "1");
}

#[test]
fn a_primary_whose_old_link_is_reset() {
    wakes_and_executes(true, End::Reset, "1");
}

#[test]
fn a_primary_whose_old_link_stays() {
    wakes_and_executes(true, End::Never, "1");
}

#[test]
fn a_primary_that_closes_its_old_link() {
    wakes_and_executes(true, End::OfStream, "1");
}

/// One link of several that ends well says nothing about the others.
#[test]
fn a_backup_whose_three_old_links_are_reset() {
    wakes_and_executes(false, End::Reset, "3");
}

#[test]
fn a_primary_whose_three_old_links_are_reset() {
    wakes_and_executes(true, End::Reset, "3");
}

/// How long real servers are stopped: by default for longer than the wait for a link's end, 5 s.
fn asleep() -> Duration {
    let seconds = std::env::var("MAGENT_ASLEEP_SECONDS");
    Duration::from_secs(seconds.ok().and_then(|s| s.parse().ok()).unwrap_or(7))
}

/// The same with a real one that is really stopped, and many more writes in flight.
fn is_stopped(is_primary: bool) {
    // A probe waits for its answer nearly all the time, so that one is there when the server wakes.
    let times = ["--timeout", "500", "--connect-timeout", "10000"];
    let options = [&times[..], &["--failure-limit", "1"]].concat();
    let farm = Farm::new(1, 1, &options);
    let (primary, backup) = (&farm.primaries[0], &farm.backups[0]);
    let stopped = if is_primary { primary } else { backup };
    let mut client = farm.magent.client();
    client.set("k0", "first");
    backup.wait_value("k0", Some(b"first"));
    let begin = Instant::now();
    stopped.stop();
    write_many(&farm.magent, 60, 50);
    write_until_down(&farm.magent, &stopped.name);
    delete_all(&mut client);
    let over = || begin.elapsed() >= asleep();
    read_nothing_until(&mut client, "it was stopped", asleep() * 2, over);
    stopped.cont();
    let mut watcher = farm.magent.client();
    let within = Duration::from_secs(60);
    read_nothing_until(&mut client, "it woke", within, || {
        are_back(&mut watcher, &[&stopped.name])
    });
    check_gone([primary, backup]);
}

#[test]
fn a_stopped_backup() {
    is_stopped(false);
}

#[test]
fn a_stopped_primary() {
    is_stopped(true);
}

/// When the first of them is read its server is down, and the others are given up before they were
/// read: how they ended is asked all the same.
#[test]
fn links_that_are_reset_together_have_not_been_ended_by_their_server() {
    for key in 0..6 {
        let options = ["-s", "127.0.0.1:1", "-i", "3", "--retry", "100"];
        let mut core = World::new(&options);
        let client = core.client();
        let reads = format!("get {}\r\n", names().join(" "));
        core.ask(&client, &reads[..]);
        assert_eq!(core.open_links(1), 3);
        core.become_state(1, State::Hung);
        core.send(&client, &reads[..]);
        core.send(&client, format!("set k{key} 0 0 1\r\nv\r\n"));
        core.step();
        core.cut(0, 1, true);
        core.step();
        core.mend(0, 1);
        core.become_state(1, State::Well);
        let state = |core: &mut World| core.stats("stats servers\r\n")["127.0.0.1:1:state"].clone();
        core.advance(Duration::from_millis(800));
        assert_eq!(
            state(&mut core),
            "down",
            "k{key}: it may still run the write"
        );
        core.advance(Duration::from_millis(1000));
        assert_eq!(state(&mut core), "up");
    }
}
