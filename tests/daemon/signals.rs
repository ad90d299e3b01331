//! TERM, INT, PIPE, and what systemd is told.

use super::common::{Client, DEADLINE, Magent, Memcached, TempDir, magent::farm, wait_for};
use super::{Daemon, MAGENT, free_port};
use nix::sys::signal::Signal;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Requests that a client sends in one go.
const BATCH: usize = 200;

fn value_of(i: usize) -> String {
    format!("value-{i}-{}", "v".repeat(i % 97))
}

fn answer_of(i: usize) -> String {
    let value = value_of(i);
    format!("VALUE k{i} 0 {}\r\n{value}\r\nEND\r\n", value.len())
}

fn batch(from: usize) -> (String, String) {
    let keys = (0..BATCH).map(|i| (from + i) % 50);
    let ask = keys.clone().map(|i| format!("get k{i}\r\n")).collect();
    (ask, keys.map(answer_of).collect())
}

/// Sends batch after batch until the connection ends; `answered` counts those of all clients.
/// Every byte up to that end is right, and the last answer is whole.
fn busy(mut client: Client, number: usize, started: &Barrier, answered: &AtomicUsize) -> usize {
    let (ask, answer) = batch(number);
    let mut sent = 0;
    started.wait();
    while client.try_send(ask.as_bytes()).is_ok() {
        sent += 1;
        let (got, _) = client.read_until_true(|b| b.len() >= answer.len());
        if got.len() == answer.len() {
            assert_eq!(got, answer.as_bytes());
            answered.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        let got = String::from_utf8(got).expect("text");
        assert!(answer.starts_with(&got), "{got}");
        assert!(got.is_empty() || got.ends_with("END\r\n"), "{got}");
        break;
    }
    sent
}

/// Sends everything and then waits: it is owed every answer.
fn patient(mut client: Client, number: usize, sent: &Barrier) {
    let (ask, answer) = batch(number);
    client.send(ask.repeat(5));
    sent.wait();
    let got = client.read_to_end();
    assert_eq!(String::from_utf8_lossy(&got), answer.repeat(5));
}

#[test]
fn term_under_load_loses_no_answer() {
    // Batches that were answered until then.
    for progress in [0, 8, 40] {
        let (mut magent, _servers) = farm(true, &[]);
        let mut filler = magent.client();
        for i in 0..50 {
            filler.set(&format!("k{i}"), value_of(i));
        }
        drop(filler);
        let clients: Vec<Client> = (0..16).map(|_| magent.client()).collect();
        let (all_sent, answered) = (Barrier::new(17), AtomicUsize::new(0));
        let status = std::thread::scope(|scope| {
            for (number, client) in clients.into_iter().enumerate() {
                let (all_sent, answered) = (&all_sent, &answered);
                scope.spawn(move || {
                    if number % 2 == 0 {
                        patient(client, number, all_sent);
                    } else {
                        assert!(busy(client, number, all_sent, answered) > 0);
                    }
                });
            }
            all_sent.wait();
            wait_for("the load to be under way", || {
                (answered.load(Ordering::Relaxed) >= progress).then_some(())
            });
            magent.terminate()
        });
        assert!(status.success(), "{status}");
    }
}

/// Who has connected is a client, though magent has not looked at it yet.
#[test]
fn term_answers_those_who_have_just_connected() {
    let (mut magent, _servers) = farm(true, &[]);
    magent.client().set("k", "x");
    let mut clients = magent.while_stopped(|| {
        let mut clients: Vec<Client> = (0..100).map(|_| magent.client()).collect();
        for client in &mut clients {
            client.send("get k\r\n");
        }
        magent.signal(Signal::SIGTERM);
        clients
    });
    for client in &mut clients {
        let got = client.read_to_end();
        assert_eq!(String::from_utf8_lossy(&got), "VALUE k 0 1\r\nx\r\nEND\r\n");
    }
    assert!(magent.wait_end().success());
}

/// Written on the primary and answered, so the backup gets it too, whatever happens to magent.
#[test]
fn term_tells_the_backup_what_was_written() {
    let (mut magent, servers) = farm(true, &[]);
    let mut client = magent.client();
    let sets: String = (0..500)
        .map(|i| format!("set k{i} 0 0 1\r\nx\r\n"))
        .collect();
    client.send(sets);
    let (status, got) = magent.terminate_while(|| client.read_to_end());
    assert!(status.success());
    assert_eq!(got.len(), 500 * "STORED\r\n".len());
    for i in 0..500 {
        let key = format!("k{i}");
        assert_eq!(servers[3].value(&key).as_deref(), Some(&b"x"[..]), "{key}");
    }
}

#[test]
fn int_is_a_term_and_pipe_is_nothing() {
    let daemon = Daemon::start(&[]);
    daemon.signal(Signal::SIGPIPE);
    daemon.signal(Signal::SIGPIPE);
    assert!(
        daemon
            .client()
            .ask_line("version\r\n")
            .starts_with("VERSION")
    );
    daemon.signal(Signal::SIGINT);
    wait_for("its end", || super::is_gone(daemon.pid).then_some(()));
    assert!(!daemon.file("pid").exists() && !daemon.file("s").exists());
}

fn hung() -> (Magent, Memcached, Client) {
    let server = Memcached::start();
    let magent = Magent::farm(&[&server.name], &[], &["--timeout", "60000"]);
    let mut client = magent.client();
    client.set("a", "x");
    server.stop();
    client.send("get a\r\n");
    let mut other = magent.client();
    wait_for("the request to be on its way", || {
        let all = other.stats("stats servers\r\n");
        (all[&format!("{}:in_flight", server.name)] == "1").then_some(())
    });
    (magent, server, client)
}

#[test]
fn a_second_term_ends_it_at_once() {
    let (mut magent, _server, _client) = hung();
    magent.signal(Signal::SIGTERM);
    wait_for("it to stop listening", || {
        std::net::TcpStream::connect(("127.0.0.1", magent.port)).err()
    });
    let begun = Instant::now();
    assert!(magent.terminate().success());
    assert!(begun.elapsed() < Duration::from_secs(3));
}

#[test]
fn a_server_that_hangs_delays_the_end_by_five_seconds_at_most() {
    let (mut magent, _server, mut client) = hung();
    let begun = Instant::now();
    assert!(magent.terminate().success());
    let took = begun.elapsed();
    assert!((4..9).contains(&took.as_secs()), "{took:?}");
    assert_eq!(client.read_to_end(), b"");
    assert!(magent.log().contains("still owed"), "{}", magent.log());
}

/// What arrives late is still waited for.
#[test]
fn an_answer_that_is_late_is_waited_for() {
    let (mut magent, server, mut client) = hung();
    let (status, got) = magent.terminate_while(|| {
        server.cont();
        client.read_to_end()
    });
    assert!(status.success());
    assert_eq!(got, b"VALUE a 0 1\r\nx\r\nEND\r\n");
}

#[test]
fn systemd_is_told_when_it_serves_and_when_it_stops() {
    let dir = TempDir::new();
    let path = dir.path().join("notify");
    let systemd = UnixDatagram::bind(&path).unwrap();
    systemd.set_read_timeout(Some(DEADLINE)).unwrap();
    let hear = || {
        let mut said = [0; 200];
        let n = systemd.recv(&mut said).expect("a datagram");
        String::from_utf8_lossy(&said[..n]).into_owned()
    };
    let port = free_port().to_string();
    let mut child = Command::new(MAGENT)
        .args(["-D", "-s", "127.0.0.1:1", "-l", "127.0.0.1", "-p", &port])
        .env("NOTIFY_SOCKET", &path)
        .spawn()
        .unwrap();
    let ready = hear();
    let configuration = ready.strip_prefix("READY=1\nSTATUS=serving, configuration ");
    let mut client = Client::tcp(port.parse().unwrap());
    let settings = client.stats("stats settings\r\n");
    assert_eq!(configuration, Some(settings["configuration"].as_str()));
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    nix::sys::signal::kill(pid, Signal::SIGTERM).unwrap();
    let stopping = "STOPPING=1\nSTATUS=finishing what clients are owed";
    assert_eq!(hear(), stopping);
    assert!(child.wait().unwrap().success());
}
