//! The limits that need a process: memory as the kernel counts it, descriptors, connections.

use super::common::magent::single;
use super::common::{Client, Magent, Memcached, measure_for, noise, wait_for};
use std::fs;
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

const MB: usize = 1024 * 1024;

/// What was done to `magent` made it grow, within `-m 32m` and what goes with it.
#[track_caller]
fn assert_bounded(magent: &Magent, at_rest: usize) {
    let most = magent.memory("VmHWM");
    assert!(
        most < at_rest + 64 * MB,
        "{at_rest} at rest, {most} at most"
    );
    assert!(most > at_rest + 4 * MB, "there was nothing to bound");
}

fn open_files(magent: &Magent) -> usize {
    let folder = format!("/proc/{}/fd", magent.pid());
    fs::read_dir(folder).expect("its descriptors").count()
}

/// Processor time so far, in clock ticks of 10 ms.
fn ticks(magent: &Magent) -> u64 {
    let file = format!("/proc/{}/stat", magent.pid());
    let text = fs::read_to_string(file).expect("its times");
    let (_, fields) = text.rsplit_once(") ").expect("a name in parentheses");
    let fields: Vec<&str> = fields.split(' ').collect();
    [11, 12]
        .iter()
        .map(|i| fields[*i].parse::<u64>().expect("a number"))
        .sum()
}

/// A gigabyte and more is asked for and not taken; `-m` is 32 MB.
#[test]
fn slow_readers_of_large_values_do_not_make_it_grow() {
    let server = Memcached::with(&["-I", "2m"]);
    let magent = Magent::farm(&[&server.name], &[], &["-m", "32m", "--timeout", "60000"]);
    let value = noise(1_000_000);
    server.client().set("big", &value);
    let at_rest = magent.memory("VmRSS");
    let mut slow: Vec<Client> = (0..150).map(|_| Client::narrow(magent.port)).collect();
    for client in &mut slow {
        client.send("get big\r\n".repeat(10));
    }
    magent.wait_stuck(4 * MB);
    // One that takes what it is owed gets it all: values or the reason why not.
    let mut taker = slow.pop().expect("a client");
    for _ in 0..10 {
        let line = taker.read_line();
        if line == b"VALUE big 0 1000000\r\n" {
            assert_eq!(taker.read_exact(value.len()), value);
            taker.expect("\r\nEND\r\n");
        } else {
            assert_eq!(line, b"SERVER_ERROR out of memory reading\r\n");
        }
    }
    assert_bounded(&magent, at_rest);
    drop(slow);
    drop(taker);
    wait_for("memory to fall", || {
        (magent.stat("bytes_in_flight") == 0).then_some(())
    });
    assert!(magent.stat("limit_memory_gets") > 0);
    wait_for("the process to shrink", || {
        (magent.memory("VmRSS") < at_rest + 12 * MB).then_some(())
    });
}

#[test]
fn writers_of_large_values_to_a_stopped_server_do_not_make_it_grow() {
    let server = Memcached::start();
    let magent = Magent::farm(&[&server.name], &[], &["-m", "32m", "--timeout", "60000"]);
    magent.client().set("a", "x");
    let at_rest = magent.memory("VmRSS");
    server.stop();
    let set = [&b"set a 0 0 500000\r\n"[..], &noise(500_000), b"\r\n"].concat();
    let writers: Vec<Client> = (0..100).map(|_| magent.client()).collect();
    for writer in &writers {
        let mut copy = writer.second_handle();
        let all = set.repeat(4);
        // magent stops reading some of them; they end with the connection.
        std::thread::spawn(move || copy.try_send(&all));
    }
    magent.wait_stuck(4 * MB);
    server.cont();
    for mut writer in writers {
        for _ in 0..4 {
            let line = writer.read_line();
            assert!(
                line == b"STORED\r\n" || line == b"SERVER_ERROR out of memory storing object\r\n",
                "{}",
                line.escape_ascii()
            );
        }
    }
    assert_bounded(&magent, at_rest);
    wait_for("memory to fall", || {
        (magent.stat("bytes_in_flight") == 0).then_some(())
    });
}

#[test]
fn a_client_too_many_is_told_so_and_the_connection_ends() {
    let server = Memcached::start();
    let magent = Magent::farm(&[&server.name], &[], &["-n", "2"]);
    let mut one = Client::unix(&magent.socket());
    wait_for("the one that looked if it listens to be gone", || {
        (one.stats("stats proxy\r\n")["curr_connections"] == "1").then_some(())
    });
    let mut two = magent.client();
    one.set("a", "x");
    two.set("b", "x");
    for _ in 0..50 {
        let mut three = magent.client();
        // Its bytes are on the way already, and must not turn the goodbye into a reset.
        let _ = three.try_send(b"get a\r\n");
        assert_eq!(three.read_to_end(), b"SERVER_ERROR OUT OF CONNECTION\r\n");
    }
    assert_eq!(one.get("b").as_deref(), Some(&b"x"[..]));
    let rejected = one.stats("stats proxy\r\n")["rejected_connections"].clone();
    assert_eq!(rejected, "50");
    drop(two);
    wait_for("a free place", || {
        let mut again = magent.client();
        let _ = again.try_send(b"version\r\n");
        again.read_line().starts_with(b"VERSION").then_some(())
    });
    wait_for("refused clients to be let go", || {
        // Standard streams, signals, poll, listeners, a link, a client, and the like.
        (open_files(&magent) < 20).then_some(())
    });
}

#[test]
fn without_descriptors_accepting_pauses_and_does_not_spin() {
    let (magent, _server) = single();
    let mut old = magent.client();
    old.set("a", "x");
    let room = 5;
    limit_files(&magent, open_files(&magent) + room);
    let crowd: Vec<TcpStream> = (0..60)
        .filter_map(|_| TcpStream::connect(("127.0.0.1", magent.port)).ok())
        .collect();
    wait_for("a pause", || {
        let all = old.stats("stats proxy\r\n");
        (all["limit_accept_paused"] != "0").then_some(())
    });
    assert_eq!(old.get("a").as_deref(), Some(&b"x"[..]));
    let before = ticks(&magent);
    measure_for(Duration::from_secs(1));
    let spent = ticks(&magent) - before;
    assert!(spent <= 20, "{spent}0 ms of processor time in a second");
    assert_eq!(
        old.get("a").as_deref(),
        Some(&b"x"[..]),
        "the old are served"
    );
    drop(crowd);
    limit_files(&magent, 10_000);
    let mut late = magent.client();
    assert_eq!(late.get("a").as_deref(), Some(&b"x"[..]));
    assert!(
        magent.log().contains("can't be accepted"),
        "{}",
        magent.log()
    );
}

/// The limit of a running process, which no call of this program's own can set.
fn limit_files(magent: &Magent, count: usize) {
    let status = Command::new("prlimit")
        .args(["--pid", &magent.pid().to_string()])
        .arg(format!("--nofile={count}:10000"))
        .status();
    assert!(status.expect("prlimit, of util-linux").success());
}
