//! Magents over the same memcacheds act as one: nothing is read through any of them that is older than what was
//! acknowledged by another.

mod common;

use common::time::{pause_of, think};
use common::{Magent, Memcached, wait_for};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const OPTIONS: [&str; 2] = ["--retry", "300"];

/// What was read and written.
#[derive(Debug, Default)]
struct Seen {
    reads: usize,
    old: Vec<String>,
}

/// Writes a key of its own through each port, and reads all of them through all, until `is_over`.
fn watch(ports: &[u16], is_over: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    let mut floors = vec![0u64; ports.len()];
    let mut clients: Vec<Option<Lines>> = ports.iter().map(|_| None).collect();
    let mut n = 0;
    while !is_over.load(Ordering::Relaxed) {
        think();
        n += 1;
        for at in 0..ports.len() {
            let set = format!("set k{at} 0 0 {}\r\n{n}\r\n", n.to_string().len());
            let answer = ask(&mut clients[at], ports[at], &set, 1);
            if answer.is_some_and(|lines| lines[0] == "STORED") {
                floors[at] = n;
            }
            for through in 0..ports.len() {
                let floor = floors[at];
                let get = format!("mg k{at} v\r\n");
                let Some(lines) = ask(&mut clients[through], ports[through], &get, 1) else {
                    continue;
                };
                seen.reads += 1;
                let value = lines.get(1).and_then(|v| v.parse::<u64>().ok());
                if value.is_some_and(|value| value < floor) {
                    seen.old
                        .push(format!("k{at} through {through}: {value:?} after {floor}"));
                }
            }
        }
    }
    seen
}

/// A connection that may break, since its magent is killed.
struct Lines {
    stream: std::io::BufReader<TcpStream>,
}

/// The answer's lines; a value is a line of its own.
fn ask(client: &mut Option<Lines>, port: u16, request: &str, lines: usize) -> Option<Vec<String>> {
    use std::io::{BufRead, Write};
    if client.is_none() {
        let stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
        let _ = stream.set_read_timeout(Some(Duration::from_secs(20)));
        let _ = stream.set_nodelay(true);
        let stream = std::io::BufReader::new(stream);
        *client = Some(Lines { stream });
    }
    let link = client.as_mut()?;
    let mut all = Vec::new();
    let mut wanted = lines;
    if link.stream.get_mut().write_all(request.as_bytes()).is_err() {
        *client = None;
        return None;
    }
    while all.len() < wanted {
        let mut line = String::new();
        match link.stream.read_line(&mut line) {
            Ok(1..) => {}
            _ => {
                *client = None;
                return None;
            }
        }
        wanted += usize::from(line.starts_with("VA "));
        all.push(line.trim_end().to_string());
    }
    Some(all)
}

/// Ends the watch, also where a story fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Two magents before a primary and a backup, watched while `story` happens. Nothing old may be read.
#[track_caller]
fn during(story: impl FnOnce(&mut Vec<Magent>, &mut Memcached, &Memcached)) {
    let (mut primary, backup) = (Memcached::start(), Memcached::start());
    let farm = || Magent::farm(&[&primary.name], &[&backup.name], &OPTIONS);
    let mut magents = vec![farm(), farm()];
    let ports: Vec<u16> = magents.iter().map(|m| m.port).collect();
    let is_over = AtomicBool::new(false);
    let seen = std::thread::scope(|s| {
        let watcher = s.spawn(|| watch(&ports, &is_over));
        let over = Over(&is_over);
        wait_for("both to use the primary", || {
            let shared = |m: &Magent| m.server(&backup.name).contains_key("other_magents");
            magents.iter().all(shared).then_some(())
        });
        story(&mut magents, &mut primary, &backup);
        drop(over);
        watcher.join().expect("the watcher")
    });
    println!("{} reads, {} old", seen.reads, seen.old.len());
    assert!(seen.reads > 100, "{seen:?}");
    assert!(
        seen.old.is_empty(),
        "{:?}",
        &seen.old[..seen.old.len().min(5)]
    );
    // No line is left.
    wait_for("the list to be gone", || {
        let list = backup.client().ask_line("mg AG1hZ2VudC9h b v\r\n");
        (list == "EN").then_some(())
    });
}

#[track_caller]
fn wait_used(magents: &[Magent], name: &str, primary: &Memcached) {
    for magent in magents {
        wait_for("the primary to be there", || {
            let state = magent.server(name)["state"].clone();
            (state != "down").then_some(())
        });
    }
    let before = primary.stat("cmd_set");
    wait_for("the primary to be used again", || {
        (primary.stat("cmd_set") > before + 100).then_some(())
    });
}

#[test]
fn a_primary_that_comes_back_empty() {
    during(|magents, primary, _| {
        primary.kill();
        magents
            .iter()
            .for_each(|m| m.wait_state(&primary.name, "down"));
        primary.restart();
        wait_used(magents, &primary.name, primary);
    });
}

#[test]
fn a_primary_that_stands_still_for_three_seconds() {
    during(|magents, primary, _| {
        primary.stop();
        pause_of(Duration::from_secs(3));
        primary.cont();
        wait_used(magents, &primary.name, primary);
    });
}

/// Another program goes on with the line of the one before: nobody takes that for dead, so nothing is flushed.
#[test]
fn another_program_in_the_middle_of_an_outage() {
    during(|magents, primary, _| {
        primary.stop();
        magents
            .iter()
            .for_each(|m| m.wait_state(&primary.name, "down"));
        for magent in magents.iter() {
            assert!(magent.upgrade(), "{}", magent.log());
        }
        pause_of(Duration::from_secs(1));
        primary.cont();
        wait_used(magents, &primary.name, primary);
        assert_eq!(primary.stat("cmd_flush"), 0);
    });
}

/// What a magent owes that is killed while a primary hangs is known to its successor, and the primary is flushed
/// before it is used.
#[test]
fn a_magent_that_is_killed_and_started_again_while_a_primary_hangs() {
    let (primary, backup) = (Memcached::start(), Memcached::start());
    let farm = || {
        let options = [&OPTIONS[..], &["--timeout", "300", "--failure-limit", "1"]].concat();
        Magent::farm(&[&primary.name], &[&backup.name], &options)
    };
    let magent = farm();
    let mut client = magent.client();
    client.set("k", "old");
    backup.wait_value("k", Some(b"old"));
    primary.stop();
    magent.wait_state(&primary.name, "down");
    wait_for("the backup to stand in", || {
        let answer = client.ask_line("set k 0 0 3\r\nnew\r\n");
        (answer == "STORED").then_some(())
    });
    drop(client);
    drop(magent);
    let magent = farm();
    primary.cont();
    let begun = Instant::now();
    let mut answers = 0;
    let mut client = magent.client();
    while begun.elapsed() < Duration::from_secs(14) {
        let got = client.ask_line("mg k v\r\n");
        if got.starts_with("VA ") {
            let value = client.read_line();
            assert_eq!(value, b"new\r\n", "after {:?}", begun.elapsed());
            answers += 1;
        }
    }
    assert!(answers > 0, "{}", magent.log());
    assert!(
        magent.log().contains("is gone; it will be flushed"),
        "{}",
        magent.log()
    );
}

/// Stands between magents and a server, and can cut one of them off.
struct Relay {
    name: String,
    /// The process whose connections do not pass; 0: all pass.
    cut: Arc<AtomicU32>,
    /// The sockets to a magent and to the server.
    links: Arc<Mutex<Vec<(TcpStream, TcpStream)>>>,
}

/// True if a process holds the other end of a connection that was accepted here.
fn is_of(near: &TcpStream, pid: u32) -> bool {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let end = |address: std::io::Result<std::net::SocketAddr>| {
        address.map_or(String::new(), |a| format!("0100007F:{:04X}", a.port()))
    };
    let ends = [end(near.peer_addr()), end(near.local_addr())];
    let inode = table.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let is_it = words.get(1..3)? == ends;
        is_it.then(|| words.get(9).map(|w| w.to_string()))?
    });
    let link = format!("socket:[{}]", inode.unwrap_or_default());
    let files = std::fs::read_dir(format!("/proc/{pid}/fd"));
    let mut names = files.into_iter().flatten().flatten();
    names.any(|f| std::fs::read_link(f.path()).is_ok_and(|to| to.to_string_lossy() == link))
}

/// Copies what comes from one socket to the other.
fn pass(from: &TcpStream, into: &TcpStream) {
    let handle = |s: &TcpStream| s.try_clone().expect("a handle");
    let (mut from, mut into) = (handle(from), handle(into));
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut into);
        let _ = into.shutdown(Shutdown::Write);
    });
}

impl Relay {
    fn start(server: &Memcached) -> Relay {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let name = listener.local_addr().expect("its address").to_string();
        let (cut, links) = (
            Arc::new(AtomicU32::new(0)),
            Arc::new(Mutex::new(Vec::new())),
        );
        let (theirs, held, to) = (cut.clone(), links.clone(), server.name.clone());
        std::thread::spawn(move || {
            while let Ok((near, _)) = listener.accept() {
                let mut held = held.lock().expect("links");
                let pid = theirs.load(Ordering::SeqCst);
                if pid > 0 && is_of(&near, pid) {
                    continue;
                }
                let Ok(far) = TcpStream::connect(&to) else {
                    continue;
                };
                pass(&near, &far);
                pass(&far, &near);
                held.push((near, far));
            }
        });
        Relay { name, cut, links }
    }

    /// Nothing of this process passes from now on.
    fn cut(&self, magent: &Magent) {
        let mut links = self.links.lock().expect("links");
        self.cut.store(magent.pid(), Ordering::SeqCst);
        links.retain(|(near, far)| {
            let is_cut = is_of(near, magent.pid());
            if is_cut {
                let _ = near.shutdown(Shutdown::Both);
                let _ = far.shutdown(Shutdown::Both);
            }
            !is_cut
        });
    }

    /// All passes again.
    fn mend(&self) {
        self.cut.store(0, Ordering::SeqCst);
    }
}

#[test]
fn a_magent_that_is_cut_off_from_a_primary_for_three_seconds() {
    let (primary, backup) = (Memcached::start(), Memcached::start());
    let relay = Relay::start(&primary);
    let farm = || Magent::farm(&[&relay.name], &[&backup.name], &OPTIONS);
    let magents = [farm(), farm()];
    let ports: Vec<u16> = magents.iter().map(|m| m.port).collect();
    let is_over = AtomicBool::new(false);
    let seen = std::thread::scope(|s| {
        let watcher = s.spawn(|| watch(&ports, &is_over));
        let over = Over(&is_over);
        wait_for("both to know each other", || {
            let shared = |m: &Magent| m.server(&backup.name).contains_key("other_magents");
            magents.iter().all(shared).then_some(())
        });
        relay.cut(&magents[0]);
        magents[0].wait_state(&relay.name, "down");
        pause_of(Duration::from_secs(3));
        relay.mend();
        wait_used(&magents[..1], &relay.name, &primary);
        drop(over);
        watcher.join().expect("the watcher")
    });
    println!("{} reads, {} old", seen.reads, seen.old.len());
    assert!(
        seen.reads > 100 && seen.old.is_empty(),
        "{:?}",
        &seen.old[..seen.old.len().min(5)]
    );
}

/// Two magents of which one has lost the backup, and has replaced `old` of `k` on the primary; the other one has
/// heard of it.
fn with_a_backup_behind() -> ([Magent; 2], Relay, Memcached, Memcached) {
    let (primary, backup) = (Memcached::start(), Memcached::start());
    let relay = Relay::start(&backup);
    let farm = || {
        let options = [&OPTIONS[..], &["--timeout", "500", "--failure-limit", "1"]].concat();
        Magent::farm(&[&primary.name], &[&relay.name], &options)
    };
    let magents = [farm(), farm()];
    let [one, other] = &magents;
    wait_for("both to know each other", || {
        let shared = |m: &Magent| {
            m.client().get("k");
            m.server(&relay.name).contains_key("other_magents")
        };
        magents.iter().all(shared).then_some(())
    });
    one.client().set("k", "old");
    backup.wait_value("k", Some(b"old"));
    relay.cut(one);
    one.wait_state(&relay.name, "down");
    one.client().set("k", "new");
    wait_for("the other one to hear of it", || {
        other.client().get("k");
        let keepers = other.server(&relay.name).get("kept_away_by").cloned();
        keepers.filter(|k| k.ends_with(&format!(" {}", one.pid())))
    });
    (magents, relay, primary, backup)
}

/// What is read of `k` through a magent: what was replaced never is.
#[track_caller]
fn read_not_old(magent: &Magent) -> Option<String> {
    let mut client = magent.client();
    let line = client.ask_line("mg k v\r\n");
    let value = line.starts_with("VA ").then(|| client.read_line());
    let value = value.map(|v| String::from_utf8_lossy(&v).trim_end().to_string());
    assert_ne!(value.as_deref(), Some("old"), "{}", magent.log());
    value
}

#[test]
fn a_backup_that_has_missed_what_one_magent_wrote_is_read_by_nobody() {
    let ([one, other], relay, primary, backup) = with_a_backup_behind();
    primary.stop();
    other.wait_state(&primary.name, "down");
    for _ in 0..20 {
        assert_eq!(read_not_old(&other), None);
        pause_of(Duration::from_millis(20));
    }
    primary.cont();
    wait_for("the primary to be read", || read_not_old(&other));
    // It is told when it is reached again, and read then.
    relay.mend();
    wait_for("the line to be out", || {
        one.client().get("k");
        other.client().get("k");
        let is_out = |m: &Magent| !m.server(&relay.name).contains_key("kept_away_by");
        (is_out(&one) && is_out(&other)).then_some(())
    });
    assert_eq!(primary.client().ask_line("mg AG1hZ2VudC9h b v\r\n"), "EN");
    backup.wait_value("k", Some(b"new"));
    // A copy is deleted if the primary does not answer the look behind it.
    wait_for("the look behind the copy", || {
        let is_idle = |s: &str| one.server(s)["in_flight"] == "0";
        (is_idle(&relay.name) && is_idle(&primary.name)).then_some(())
    });
    primary.stop();
    other.wait_state(&primary.name, "down");
    let value = wait_for("the backup to stand in", || read_not_old(&other));
    assert_eq!(value, "new");
    primary.cont();
}

/// What one that has died owed a backup nobody knows: it is flushed, and filled.
#[test]
fn a_backup_that_has_missed_what_a_dead_magent_wrote_is_flushed_and_filled() {
    let ([one, other], relay, _primary, backup) = with_a_backup_behind();
    drop(one);
    wait_for("the backup to be flushed", || {
        assert_eq!(read_not_old(&other).as_deref(), Some("new"));
        (backup.stat("cmd_flush") > 0).then_some(())
    });
    wait_for("the line to be out", || {
        assert_eq!(read_not_old(&other).as_deref(), Some("new"));
        (!other.server(&relay.name).contains_key("kept_away_by")).then_some(())
    });
    backup.wait_value("k", Some(b"new"));
}
