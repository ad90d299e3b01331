//! Single stories, told step by step: what the seeds found, or would find once in a long while.

use super::history::lossy;
use super::plan::{Mode, PORT, Plan};
use super::sim::{MS, Sim};
use crate::common::keys;
use crate::common::world::State;
use std::cell::Cell;

/// A world in which nothing happens but what the story says.
struct Scene {
    sim: Sim,
    client: usize,
}

/// Primary and backup of every story.
const PRIMARY: u16 = PORT;
const BACKUP: u16 = PORT + 1;

impl Scene {
    fn new(connections: usize) -> Scene {
        Scene::with(connections, |_| ())
    }

    fn with(connections: usize, change: impl FnOnce(&mut Plan)) -> Scene {
        let mut plan = Plan::new(1);
        (plan.crowd, plan.deaf, plan.leavers, plan.pools) = (0, 0, 0, 1);
        plan.mode = Mode::Calm;
        (plan.primaries, plan.backups, plan.clients) = (1, 1, 0);
        (plan.timeout, plan.connect_timeout, plan.warm) = (200, 200, 3600);
        (plan.probe, plan.moves, plan.spare) = (0, false, 0);
        plan.connections = connections;
        plan.memory = 256 << 20;
        plan.journal = "64m";
        (plan.choppy, plan.tardy) = (false, false);
        (plan.rude, plan.mad) = (false, false);
        plan.pace = 20_000;
        plan.upgrades = false;
        change(&mut plan);
        let mut sim = Sim::new(1, plan);
        sim.exact = true;
        let client = sim.world.connect_client(0, 0, 1 << 20).expect("room");
        Scene { sim, client }
    }

    /// So many milliseconds pass.
    fn pass(&mut self, ms: u64) -> &mut Scene {
        let until = self.sim.world.now + ms * MS;
        if let Err(why) = self.sim.run(until) {
            panic!("{}\n{why}", self.sim.trace());
        }
        self
    }

    fn send(&mut self, text: &str) -> &mut Scene {
        let sent = (self.sim.world.net.borrow_mut()).put(self.client, text.as_bytes());
        assert_eq!(sent, text.len());
        self.sim.note(|| format!("client asks {text:?}"));
        // The edge is seen in a turn of its own.
        self.sim.turn_now().expect("a turn");
        self
    }

    /// What the client has got.
    fn got(&mut self) -> String {
        let mut got = Vec::new();
        (self.sim.world.net.borrow_mut()).take(self.client, 1 << 20, &mut got);
        lossy(&got)
    }

    /// Asks, waits and reads.
    fn ask(&mut self, text: &str) -> String {
        self.send(text).pass(600).got()
    }

    /// From now on a server takes so many milliseconds for one thing.
    fn lag(&mut self, server: u16, ms: u64) -> &mut Scene {
        self.sim.lags.insert(server, ms * MS);
        self
    }

    fn state(&mut self, server: u16, state: State) -> &mut Scene {
        self.sim.become_state(server, state);
        self
    }

    /// Both hold `old`; the primary came back empty.
    fn primary_empty(&mut self) -> &mut Scene {
        assert_eq!(self.ask("set k 0 0 3\r\nold\r\n"), "STORED\r\n");
        self.state(PRIMARY, State::Gone).pass(100);
        self.state(PRIMARY, State::Well).pass(2000)
    }
}

fn value(text: &str) -> String {
    format!("VALUE k 0 {}\r\n{text}\r\nEND\r\n", text.len())
}

/// A primary that comes back empty is not felt, and is filled again by what is read.
#[test]
fn a_restart_is_not_felt() {
    let mut s = Scene::new(1);
    s.primary_empty();
    assert_eq!(s.ask("get k\r\n"), value("old"));
    assert!(s.sim.world.servers[&PRIMARY].store.get("k", 0).is_some());
    s.state(PRIMARY, State::Gone).pass(100);
    s.state(PRIMARY, State::Well).pass(2000);
    assert_eq!(s.ask("append k 0 0 1\r\n+\r\n"), "STORED\r\n");
    assert_eq!(s.ask("get k\r\n"), value("old+"));
}

/// Nobody waits for a primary that stopped when nobody asked it.
#[test]
fn an_idle_primary_that_stops_is_not_felt() {
    let mut s = Scene::with(1, |plan| plan.probe = 100);
    assert_eq!(s.ask("set k 0 0 3\r\nold\r\n"), "STORED\r\n");
    s.state(PRIMARY, State::Hung).pass(310);
    assert_eq!(s.send("get k\r\n").pass(2).got(), value("old"));
    assert_eq!(s.send("set k 0 0 3\r\nnew\r\n").pass(2).got(), "STORED\r\n");
    s.state(PRIMARY, State::Well).pass(3000);
    assert_eq!(s.ask("get k\r\n"), value("new"), "{}", s.sim.trace());
}

/// What is written while a primary is drained is read when it is used again.
#[test]
fn a_drain_is_not_felt() {
    let mut s = Scene::new(1);
    assert_eq!(s.ask("set k 0 0 3\r\nold\r\n"), "STORED\r\n");
    s.lag(PRIMARY, 50).send("get k\r\n").pass(2);
    s.sim.drain(PRIMARY);
    assert_eq!(s.pass(20).got(), value("old"), "it is asked at the backup");
    assert_eq!(
        s.send("set k 0 0 3\r\nnew\r\n").pass(20).got(),
        "STORED\r\n"
    );
    // However well it answers.
    s.pass(20_000);
    let held = s.sim.world.servers[&PRIMARY].store.get("k", 0);
    assert_eq!(held.map(|item| &item.data[..]), Some(&b"old"[..]));
    s.sim.end_drain(PRIMARY);
    s.lag(PRIMARY, 0).pass(2000);
    assert_eq!(s.ask("get k\r\n"), value("new"), "{}", s.sim.trace());
    let item = s.sim.world.servers[&PRIMARY].store.get("k", 0);
    assert!(item.is_some_and(|i| i.data == b"new"), "it was copied");
}

/// A key that is deleted while it is fetched stays deleted.
#[test]
fn a_fetch_does_not_outlive_a_delete() {
    let mut s = Scene::new(1);
    s.primary_empty().ask("get other\r\n");
    s.lag(BACKUP, 60).send("get k\r\n").pass(1);
    s.send("delete k\r\n").pass(400);
    assert_eq!(s.got(), value("old") + "DELETED\r\n");
    s.lag(BACKUP, 0);
    assert_eq!(s.ask("get k\r\n"), "END\r\n", "{}", s.sim.trace());
}

/// A value that is being fetched is not copied if the key was written elsewhere and the primary
/// was told so by a replay meanwhile.
#[test]
fn a_fetch_does_not_outlive_a_replay() {
    let mut s = Scene::new(1);
    s.primary_empty().ask("get other\r\n");
    s.lag(BACKUP, 60).send("get k\r\n").pass(1);
    // The value is on its way. The primary's link is cut with a write on it: it is down until
    // it has been told of that, and a new value goes to the backup meanwhile.
    s.lag(PRIMARY, 5).send("set other 0 0 1\r\nx\r\n").pass(1);
    s.sim.cut_links(PRIMARY);
    s.sim.turn_now().expect("a turn");
    s.send("set k 0 0 3\r\nnew\r\n").pass(600);
    let got = s.got();
    assert!(got.ends_with("STORED\r\nSTORED\r\n"), "{got}");
    s.lag(BACKUP, 0);
    assert_eq!(s.ask("get k\r\n"), value("new"), "{}", s.sim.trace());
}

/// A value that was fetched is had, though the primary takes nothing more: the backup is asked
/// in time.
#[test]
fn a_primary_that_stops_behind_a_fetch_leaves_time_for_the_backup() {
    let mut s = Scene::new(1);
    s.primary_empty().ask("get other\r\n");
    s.lag(BACKUP, 60).send("get k\r\n").pass(30);
    for link in s.sim.world.links_of(PRIMARY) {
        s.sim.world.net.borrow_mut().conns[link].out.cap = 0;
    }
    s.pass(780);
    assert_eq!(s.got(), value("old"), "{}", s.sim.trace());
}

/// An unacknowledged copy is a write like any other.
#[test]
fn a_copy_that_a_stopped_primary_runs_late_is_no_old_value() {
    let mut s = Scene::new(1);
    s.primary_empty().ask("get other\r\n");
    s.lag(PRIMARY, 10).send("get k\r\n").pass(25);
    // The primary has said that it lacks the key; it stops before it reads the copy.
    let old = s.sim.world.links_of(PRIMARY);
    s.state(PRIMARY, State::Hung).pass(10);
    for _ in 0..5 {
        s.send("get k\r\n").pass(210);
    }
    s.got();
    s.send("set k 0 0 3\r\nnew\r\n").pass(100);
    assert_eq!(s.got(), "STORED\r\n");
    // It wakes while it is probed, and reads what is new before what is old.
    let probed = s.sim.world.links_of(PRIMARY).len() + 1;
    while s.sim.world.links_of(PRIMARY).len() < probed {
        s.pass(10);
    }
    s.lag(PRIMARY, 0).sim.lag_links(&old, 30);
    s.state(PRIMARY, State::Well).pass(5000);
    assert_eq!(s.ask("get k\r\n"), value("new"), "{}", s.sim.trace());
}

/// Who creates a key on a warming primary must know whether the backup holds it.
#[test]
fn nothing_is_created_while_the_backup_hangs() {
    let mut s = Scene::new(1);
    s.primary_empty().ask("get other\r\n");
    s.state(BACKUP, State::Hung);
    for create in [
        "add k 0 0 1\r\nx\r\n",
        "ms k 1 ME\r\nx\r\n",
        "mg k v N30\r\n",
    ] {
        let got = s.send(create).pass(850).got();
        assert!(got.starts_with("SERVER_ERROR "), "{create}: {got}");
    }
    assert!(s.sim.world.servers[&PRIMARY].store.get("k", 0).is_none());
    s.state(BACKUP, State::Well).pass(5000);
    assert_eq!(s.ask("get k\r\n"), value("old"));
}

/// A look that finds a key says nothing any more once the key's delete was sent behind it.
#[test]
fn a_look_before_a_delete_creates_nothing() {
    let mut s = Scene::new(1);
    s.primary_empty().ask("get k\r\n");
    s.state(PRIMARY, State::Hung);
    // Its timeout makes the key due to be deleted; the look stands before that delete.
    let set = s.client;
    s.send("set k 0 0 3\r\nnew\r\n").pass(100);
    s.client = s.sim.world.connect_client(0, 0, 1 << 20).expect("room");
    s.send("add k 0 0 1\r\nx\r\n").pass(170);
    s.state(PRIMARY, State::Well).pass(600);
    assert_eq!(s.got(), "NOT_STORED\r\n", "{}", s.sim.trace());
    assert_eq!(s.ask("get k\r\n"), value("new"));
    s.client = set;
    assert_eq!(s.got(), "STORED\r\n");
}

/// What waits behind a request that creates a key has time left when the backup hangs.
#[test]
fn a_backup_that_hangs_leaves_time_for_what_waits() {
    let mut s = Scene::new(1);
    s.primary_empty().ask("get other\r\n");
    for link in s.sim.world.links_of(BACKUP) {
        s.sim.world.net.borrow_mut().conns[link].out.cap = 0;
    }
    s.send("add fresh 0 0 1\r\nx\r\nget fresh\r\n").pass(810);
    let got = s.got();
    assert!(
        got.starts_with("SERVER_ERROR ") && got.ends_with("\r\nEND\r\n"),
        "{got}"
    );
}

/// A server stops for over half a minute with writes that it has received; the keys are deleted
/// meanwhile. It does them when it wakes, on threads of their own, and nobody reads them.
fn deleted_while_stopped(server: u16, reset: bool) {
    let mut s = Scene::new(1);
    assert_eq!(s.ask("set k 0 0 3\r\nold\r\n"), "STORED\r\n");
    let links = s.sim.world.links_of(server);
    s.state(server, State::Hung);
    for _ in 0..5 {
        s.send("set k 0 0 3\r\nold\r\n").pass(210);
    }
    if reset {
        s.sim.sever_links(server);
    }
    s.pass(2000).got();
    let deleted = s.ask("delete k\r\n");
    assert!(
        ["DELETED\r\n", "NOT_FOUND\r\n"].contains(&&deleted[..]),
        "{deleted}"
    );
    s.pass(34_000);
    // It wakes while it is probed, and does what it received last first.
    let probed = s.sim.world.links_of(server).len() + 1;
    while s.sim.world.links_of(server).len() < probed {
        s.pass(10);
    }
    s.sim.lag_links(&links, 700);
    s.state(server, State::Well);
    for _ in 0..100 {
        s.pass(100);
        assert_eq!(s.ask("get k\r\n"), "END\r\n", "{}", s.sim.trace());
    }
    for port in [PRIMARY, BACKUP] {
        let now = s.sim.world.now;
        let held = s.sim.world.servers[&port].store.get("k", now);
        assert!(held.is_none(), "{port} holds it: {}", s.sim.trace());
    }
}

#[test]
fn a_key_deleted_while_its_backup_was_stopped_stays_deleted() {
    deleted_while_stopped(BACKUP, false);
    deleted_while_stopped(BACKUP, true);
}

#[test]
fn a_key_deleted_while_its_primary_was_stopped_stays_deleted() {
    deleted_while_stopped(PRIMARY, false);
    deleted_while_stopped(PRIMARY, true);
}

/// Two keys of the first of two primaries, one of the second.
fn keys_of_two() -> [String; 3] {
    [(0, 0), (0, 1), (1, 0)].map(|(server, n)| keys::key_on(server, 2, "k", n))
}

/// A set of many bytes that the server refuses before it has read them leaves nobody waiting.
#[test]
fn a_set_that_is_refused_early_leaves_nobody_waiting() {
    let mut s = Scene::with(2, |plan| plan.memory = 256 << 10);
    assert_eq!(s.ask("get k\r\n"), "END\r\n");
    for link in s.sim.world.links_of(PRIMARY) {
        s.sim.world.net.borrow_mut().conns[link].out.cap = 1000;
    }
    let other = s.sim.world.connect_client(0, 0, 1 << 20).expect("room");
    let set = format!("set k 0 0 60000\r\n{}\r\n", "v".repeat(60_000));
    s.lag(PRIMARY, 1).send(&set);
    (s.sim.world.net.borrow_mut()).put(other, b"get k\r\nget k1\r\nget k2\r\n");
    s.pass(790);
    assert!(s.got().starts_with("SERVER_ERROR object too large"));
    let mut got = Vec::new();
    s.sim.world.net.borrow_mut().take(other, 1 << 20, &mut got);
    assert_eq!(lossy(&got), "END\r\n".repeat(3), "{}", s.sim.trace());
}

/// A get of several keys waits for no server that it does not ask.
#[test]
fn gets_of_several_keys_do_not_wait_for_a_server_that_they_do_not_ask() {
    let mut s = Scene::with(1, |plan| {
        (plan.primaries, plan.backups) = (2, 0);
        (plan.memory, plan.timeout) = (256 << 10, 5000);
    });
    let [one, other, hung] = keys_of_two();
    s.ask(&format!("get {one} {hung}\r\n"));
    s.state(PORT + 1, State::Hung);
    let writer = s.sim.world.connect_client(0, 0, 1 << 20).expect("room");
    let value = "v".repeat(30_000);
    let set = format!("set {hung} 0 0 30000\r\n{value}\r\n");
    (s.sim.world.net.borrow_mut()).put(writer, set.repeat(4).as_bytes());
    s.pass(100);
    assert_eq!(s.send(&format!("get {one}\r\n")).pass(20).got(), "END\r\n");
    let got = s.send(&format!("get {one} {other}\r\n")).pass(20).got();
    assert_eq!(got, "END\r\n", "{}", s.sim.trace());
}

/// Values come in the order of the keys, one that is named twice twice, whoever answers first.
#[test]
fn values_come_in_the_order_of_the_keys() {
    let mut s = Scene::with(1, |plan| (plan.primaries, plan.backups) = (2, 0));
    let [one, other, there] = keys_of_two();
    for key in [&one, &other, &there] {
        s.ask(&format!("set {key} 0 0 1\r\nx\r\n"));
    }
    for (first, second) in [(5, 0), (0, 5)] {
        s.lag(PORT, first).lag(PORT + 1, second);
        let order = [&one, &there, &one, &other, &there];
        let names = order.map(String::as_str).join(" ");
        let values = order.map(|k| format!("VALUE {k} 0 1\r\nx\r\n")).concat();
        assert_eq!(s.ask(&format!("get {names}\r\n")), values + "END\r\n");
    }
}

/// A mirror on another link does not run behind an acknowledged `flush_all`.
#[test]
fn flush_all_waits_for_every_link() {
    let mut s = Scene::new(2);
    // Two keys, so that both links are open; then a mirror that takes its time.
    for i in 0..8 {
        let key = format!("set k{i} 0 0 1\r\nx\r\n");
        assert_eq!(s.ask(&key), "STORED\r\n");
    }
    for i in 0..8 {
        let links = s.sim.world.links_of(BACKUP);
        s.sim.lag_links(&links[1..], 50);
        s.send(&format!("set k{i} 0 0 3\r\nold\r\n")).pass(3);
        assert_eq!(s.got(), "STORED\r\n");
        assert_eq!(s.ask("flush_all\r\n"), "OK\r\n");
        s.sim.lag_links(&[], 0);
        assert_eq!(s.ask(&format!("get k{i}\r\n")), "END\r\n", "{i}");
    }
}

/// Many who create one key on a warming primary that lacks it: its backup holds it, so nobody
/// creates it, and what one more of them costs does not depend on how many there are.
#[test]
fn nobody_of_a_crowd_creates_a_key_that_the_backup_holds() {
    const CROWD: usize = 10;
    const EACH: usize = 100;
    let mut s = Scene::new(1);
    s.primary_empty();
    let crowd: Vec<usize> = (0..CROWD)
        .map(|_| s.sim.world.connect_client(0, 0, 1 << 20).expect("room"))
        .collect();
    s.sim.world.around = counted;
    WORK.set(0);
    for client in &crowd {
        let adds = "add k 0 0 3\r\nnew\r\n".repeat(EACH);
        s.sim.world.net.borrow_mut().put(*client, adds.as_bytes());
    }
    s.pass(700);
    let (mut stored, mut refused) = (0, 0);
    for client in crowd {
        let mut got = Vec::new();
        s.sim.world.net.borrow_mut().take(client, 1 << 20, &mut got);
        let got = String::from_utf8(got).expect("text");
        refused += got.matches("NOT_STORED\r\n").count();
        stored += got.lines().filter(|l| *l == "STORED").count();
    }
    println!("stored {stored} refused {refused} work {}", WORK.get());
    assert_eq!((stored, refused), (0, CROWD * EACH));
    assert_eq!(s.ask("get k\r\n"), value("old"));
    let work = WORK.get();
    assert!(work < (20 * CROWD * EACH) as u64, "{work} allocations");
}

thread_local! {
    static WORK: Cell<u64> = const { Cell::new(0) };
}

/// Counts what magent allocates: a measure of its work, where there is no clock.
fn counted(turn: &mut dyn FnMut()) {
    let info = allocation_counter::measure(turn);
    WORK.set(WORK.get() + info.count_total);
}
