//! What may become of magents and of the servers that they share, case by case: nothing old is read, the primary is
//! used again in the end, and it is flushed where somebody has died owing, and nowhere else.
//!
//! `several` has the cases in which servers alone fail.

mod common;

use common::time::pause_of;
use common::{Magent, Memcached, Scene, Wire, wait_for};
use magent::marks::bytes::{self, Hold};
use magent::marks::{Id, Lines};
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};

const OPTIONS: [&str; 2] = ["--retry", "300"];

/// Two magents, and wires to the primary and to the backup.
fn wired(options: &[&str]) -> (Scene, Wire, Wire) {
    let servers = [Memcached::start(), Memcached::start()];
    let wires = servers.each_ref().map(Wire::to);
    let names = wires.each_ref().map(|wire| wire.name.clone());
    let scene = Scene::of(servers, names, options);
    let [to_primary, to_backup] = wires;
    (scene, to_primary, to_backup)
}

/// True if one of the chunks says this.
fn is_said(wire: &Wire, what: &str) -> bool {
    wire.chunks(0).iter().any(|c| c.text.contains(what))
}

// ---- writes that come late

#[test]
fn a_write_that_is_late_but_answered_in_time_keeps_nobody_away() {
    let (scene, to_primary, to_backup) = wired(&OPTIONS);
    let before = scene.watch.reads();
    to_primary.hold(&scene.magents[0], "ms k0 ");
    to_primary.wait_held(1);
    pause_of(Duration::from_millis(100));
    to_primary.release_all();
    scene.watch.wait_written(0);
    assert!(scene.watch.reads() > before);
    assert!(!is_said(&to_backup, "ms AG1hZ2VudC9h "), "a line");
    assert_eq!(scene.flushes(), [0, 0]);
    scene.end();
}

/// Writes of so many magents take longer than the timeout, on links that live. They are answered as soon as
/// others can know of it, or once the backup was used. The answer that comes before that counts, if one magent
/// alone was late.
#[track_caller]
fn late_writes(magents: usize, is_replaced: bool) {
    let (scene, to_primary, to_backup) = wired(&["--retry", "300", "--timeout", "500"]);
    for magent in &scene.magents[..magents] {
        to_primary.hold(magent, "ms k");
    }
    to_primary.wait_held(magents);
    to_backup.wait_chunk(0, "ms AG1hZ2VudC9h 0 b ME\r\n");
    if is_replaced {
        (0..magents).for_each(|at| scene.watch.wait_written(at));
    }
    to_primary.release_all();
    let begun = Instant::now();
    scene.wait_used();
    let took = begun.elapsed();
    println!("used again after {took:?}");
    assert!(took < Duration::from_secs(4), "{took:?}");
    for magent in &scene.magents {
        let log = magent.log();
        assert!(!log.contains("down:"), "{log}");
    }
    let failovers: u64 = scene.magents.iter().map(|m| m.stat("failovers")).sum();
    match (is_replaced, magents) {
        (true, _) => assert!(failovers > 0),
        (false, 1) => assert_eq!(failovers, 0),
        // The line of one may keep the answer of the other from counting.
        (false, _) => {}
    }
    assert_eq!(scene.flushes(), [0, 0]);
    scene.end();
}

#[test]
fn a_write_that_is_answered_just_after_its_time() {
    late_writes(1, false);
}

#[test]
fn a_write_that_is_answered_after_the_backup_was_used() {
    late_writes(1, true);
}

#[test]
fn writes_of_two_magents_that_are_answered_just_after_their_time() {
    late_writes(2, false);
}

#[test]
fn writes_of_two_magents_that_are_answered_after_the_backup_was_used() {
    late_writes(2, true);
}

// ---- magents that die

/// What it wrote on the backup nobody knows: another one flushes the primary, and fills it.
#[test]
fn a_magent_that_dies_owing() {
    let (mut scene, to_primary, _to_backup) = wired(&OPTIONS);
    to_primary.cut(&scene.magents[0]);
    scene.magents[0].wait_state(&to_primary.name, "down");
    scene.watch.wait_written(0);
    scene.kill_first();
    wait_for("the primary to be flushed", || {
        (scene.primary.stat("cmd_flush") > 0).then_some(())
    });
    scene.wait_used();
    let log = scene.magents[0].log();
    assert!(log.contains("is gone; it will be flushed"), "{log}");
    assert_eq!(scene.flushes(), [1, 0]);
    scene.end();
}

/// It has told all: nothing is left to do.
#[test]
fn a_magent_that_dies_after_it_has_told() {
    let (mut scene, _to_primary, _to_backup) = wired(&OPTIONS);
    scene.primary.stop();
    scene.wait_replaced();
    scene.primary.cont();
    scene.wait_used();
    scene.kill_first();
    wait_for("its death to be known", || {
        let [other] = &scene.magents[..] else {
            return None;
        };
        let is_there = |name: &String| other.server(name).contains_key("other_magents");
        (!scene.names.iter().any(is_there)).then_some(())
    });
    scene.watch.wait_written(1);
    assert_eq!(scene.flushes(), [0, 0]);
    scene.end();
}

/// Kills the first magent in the middle of telling the primary what it missed; `hold` and `wire` make it the middle.
#[track_caller]
fn dies_while_it_tells(hold: &'static str, at_backup: bool) {
    let (mut scene, to_primary, to_backup) = wired(&OPTIONS);
    scene.primary.stop();
    scene.wait_replaced();
    let wire = match at_backup {
        true => to_backup,
        false => to_primary,
    };
    wire.hold(&scene.magents[0], hold);
    scene.primary.cont();
    wire.wait_held(1);
    // What is held dies with it.
    wire.cut(&scene.magents[0]);
    scene.kill_first();
    wire.release_all();
    wait_for("the primary to be flushed", || {
        (scene.primary.stat("cmd_flush") > 0).then_some(())
    });
    scene.wait_used();
    assert_eq!(scene.flushes(), [1, 0]);
    scene.end();
}

#[test]
fn a_magent_that_dies_before_its_deletes_are_told() {
    dies_while_it_tells("delete k0", false);
}

#[test]
fn a_magent_that_dies_before_its_line_is_out() {
    // Of two lines the first goes by a write, the last one by a delete.
    dies_while_it_tells(" b C", true);
}

// ---- magents that stand still

/// Both have used the backup when the first one stops, and the primary answers again.
fn with_one_that_stands_still() -> (Scene, Wire, Wire) {
    let (scene, to_primary, to_backup) = wired(&OPTIONS);
    scene.primary.stop();
    scene.wait_replaced();
    scene.magents[0].signal(Signal::SIGSTOP);
    scene.primary.cont();
    (scene, to_primary, to_backup)
}

#[test]
fn a_magent_that_stands_still_for_longer_than_its_hold() {
    let (scene, _to_primary, to_backup) = with_one_that_stands_still();
    let [still, other] = &scene.magents[..] else {
        panic!("two magents");
    };
    wait_for("the primary to be flushed", || {
        (scene.primary.stat("cmd_flush") > 0).then_some(())
    });
    wait_for("the line to be out", || (scene.lines() == 0).then_some(()));
    scene.watch.wait_written(1);
    // The backup is behind when the one that stood still is asked, which has used it until then.
    to_backup.hold(other, "ms k1 ");
    to_backup.wait_held(1);
    scene.watch.wait_written(1);
    let from = to_backup.count();
    scene.watch.read_across(still, 1, || {
        still.signal(Signal::SIGCONT);
        to_backup.wait_chunk(from, "ms AG1hZ2VudC9h 0 b ME\r\n");
        to_backup.release_all();
    });
    scene.wait_used();
    scene.watch.wait_written(0);
    assert_eq!(scene.flushes(), [1, 0]);
    scene.end();
}

#[test]
fn a_magent_that_stands_still_for_three_seconds() {
    let (scene, _to_primary, _to_backup) = with_one_that_stands_still();
    pause_of(Duration::from_secs(3));
    // The other one waits for it.
    assert_eq!(scene.lines(), 2);
    scene.magents[0].signal(Signal::SIGCONT);
    scene.wait_used();
    scene.watch.wait_written(0);
    assert_eq!(scene.flushes(), [0, 0]);
    scene.end();
}

// ---- a primary that some reach

/// What the hold of a magent on its line says.
fn hold_of(scene: &Scene, magent: &Magent) -> Option<Hold> {
    let mut client = scene.backup.client();
    let mut read = |key: &[u8]| {
        let key = String::from_utf8_lossy(key).into_owned();
        let line = client.ask_line(format!("mg {key} b v\r\n"));
        let len = line.strip_prefix("VA ")?.parse().expect("a length");
        let value = client.read_exact(len);
        client.read_line();
        Some(value)
    };
    let list = read(bytes::LIST)?;
    let mut ids = Lines(&list).iter().map(|line| line.id);
    ids.find_map(|id: Id| {
        let hold = Hold::parse(&read(&bytes::hold_key(id, scene.names[0].as_bytes()))?);
        (hold.process.pid == magent.pid()).then_some(hold)
    })
}

/// One tells the primary all and takes its line out, the other one loses the primary again before it has.
#[test]
fn a_primary_that_is_lost_to_one_while_the_other_has_told() {
    let (scene, to_primary, _to_backup) = wired(&["--retry", "300", "-v"]);
    let [one, other] = &scene.magents[..] else {
        panic!("two magents");
    };
    scene.primary.stop();
    scene.wait_replaced();
    to_primary.hold(one, "");
    scene.primary.cont();
    wait_for("the primary to answer the other one", || {
        hold_of(&scene, other).filter(|hold| hold.answers)
    });
    to_primary.hold(other, "");
    to_primary.release(one);
    wait_for("the first one's line to be out", || {
        one.log()
            .contains("told what it missed; others still keep it away")
            .then_some(())
    });
    // Nobody knows how long that takes: the backup stands in again.
    scene.watch.wait_written(0);
    scene.watch.wait_written(1);
    assert_eq!(scene.lines(), 2);
    to_primary.cut(other);
    to_primary.release(other);
    other.wait_state(&to_primary.name, "down");
    scene.watch.wait_written(0);
    scene.watch.wait_written(1);
    to_primary.mend();
    scene.wait_used();
    assert_eq!(scene.flushes(), [0, 0]);
    scene.end();
}

/// It was never answered by the primary, so it keeps nobody away and serves nothing until it is.
#[test]
fn a_newcomer_in_an_outage() {
    let mut scene = Scene::new(&OPTIONS);
    scene.primary.stop();
    scene.wait_replaced();
    scene.add();
    let newcomer = &scene.magents[2];
    let answer = newcomer.client().ask_line("set n 0 0 1\r\nx\r\n");
    assert!(answer.starts_with("SERVER_ERROR"), "{answer}");
    newcomer.wait_state(&scene.names[0], "down");
    let answer = newcomer.client().ask_line("set n 0 0 1\r\nx\r\n");
    assert!(answer.starts_with("SERVER_ERROR"), "{answer}");
    assert_eq!(scene.lines(), 2);
    for at in [0, 1] {
        scene.watch.wait_written(at);
    }
    assert_eq!(scene.watch.floors()[2], 0);
    scene.primary.cont();
    scene.wait_used();
    scene.watch.wait_written(2);
    assert_eq!(scene.flushes(), [0, 0]);
    scene.end();
}

// ---- a backup that is slow

/// Looks that take longer than a lease are not waited for.
#[test]
fn a_backup_that_takes_three_hundred_milliseconds_for_everything() {
    let (scene, _to_primary, to_backup) = wired(&OPTIONS);
    to_backup.slow(Duration::from_millis(300));
    // What was asked before is answered.
    pause_of(Duration::from_millis(300));
    let before = (scene.watch.reads(), scene.watch.floors());
    pause_of(Duration::from_secs(3));
    let after = (scene.watch.reads(), scene.watch.floors());
    println!("{before:?} {after:?}");
    assert!(after.0 > before.0 + 200, "{before:?} {after:?}");
    for (before, after) in before.1.iter().zip(&after.1) {
        assert!(after > before, "{before:?} {after:?}");
    }
    assert_eq!(scene.lines(), 0);
    to_backup.slow(Duration::ZERO);
    let floors = scene.watch.floors();
    let mut client = scene.backup.client();
    wait_for("mirrors", || {
        let mut value = |at| {
            let value = client.get(&format!("k{at}")).unwrap_or_default();
            String::from_utf8_lossy(&value).parse().unwrap_or(0u64)
        };
        (value(0) >= floors[0] && value(1) >= floors[1]).then_some(())
    });
    assert_eq!(scene.flushes(), [0, 0]);
    scene.end();
}
