//! Single stories, told step by step: what the seeds found, or would find once in a long while.

use super::history::lossy;
use super::plan::{Mode, PORT, Plan};
use super::sim::{MS, Sim};
use crate::common::world::State;

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
        let mut plan = Plan::new(1);
        plan.mode = Mode::Calm;
        (plan.primaries, plan.backups, plan.clients) = (1, 1, 0);
        (plan.timeout, plan.connect_timeout, plan.warm) = (200, 200, 3600);
        plan.connections = connections;
        plan.memory = 256 << 20;
        plan.journal = "64m";
        (plan.choppy, plan.tardy) = (false, false);
        (plan.rude, plan.mad) = (false, false);
        plan.pace = 20_000;
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

/// A copy in the dead letter box is a write like any other.
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

/// Nothing is created while a backup that says nothing may hold it.
#[test]
fn add_is_not_stored_while_the_backup_hangs() {
    let mut s = Scene::new(1);
    s.primary_empty().ask("get other\r\n");
    s.state(BACKUP, State::Hung).sim.cut_links(BACKUP);
    let error = "SERVER_ERROR 127.0.0.1:11002 timed out\r\n";
    assert_eq!(s.ask("add fresh 0 0 1\r\nx\r\n"), error);
    assert_eq!(s.ask("get fresh\r\n"), "END\r\n");
}

/// What waits behind a request that creates a key has time left when the backup hangs.
#[test]
fn a_backup_that_hangs_leaves_time_for_what_waits() {
    let mut s = Scene::new(1);
    s.primary_empty().ask("get other\r\n");
    for link in s.sim.world.links_of(BACKUP) {
        s.sim.world.net.borrow_mut().conns[link].out.cap = 0;
    }
    s.send("add fresh 0 0 1\r\nx\r\nget fresh\r\n").pass(790);
    let got = s.got();
    assert_eq!(got, "SERVER_ERROR 127.0.0.1:11002 timed out\r\nEND\r\n");
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
