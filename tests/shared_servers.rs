//! A server is its address: one link, one health, one journal, whatever pools name it.

mod common;

use common::fake::empty;
use common::{Client, Fake, Magent, Memcached, wait_for};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Two pools, `alpha` and `beta`, with the same primary and backup.
fn pools(primary: &str, backup: Option<&str>, alpha: &str, beta: &str) -> Magent {
    let farm = format!("  servers:\n  - {primary}:1\n");
    let backups = backup.map_or(String::new(), |b| format!("  backups:\n  - {b}:1\n"));
    Magent::with_file(&format!(
        "alpha:\n  listen: 127.0.0.1:PORT\n  {alpha}\n{farm}{backups}\
         beta:\n  listen: DIR/b\n  {beta}\n{farm}{backups}"
    ))
}

/// A client of `beta`; [`Magent::client`] is one of `alpha`.
fn beta(magent: &Magent) -> Client {
    Client::unix(&magent.dir().join("b"))
}

fn state(client: &mut Client, name: &str) -> String {
    client.stats("stats servers\r\n")[&format!("{name}:state")].clone()
}

/// Both servers hold `k` = `old`; then `away` is stopped and known to be down through `alpha`.
fn with_one_away(is_primary: bool) -> (Magent, [Memcached; 2]) {
    let servers = [Memcached::start(), Memcached::start()];
    let times = "timeout: 250\n  server_retry_timeout: 1000\n  server_failure_limit: 1";
    let magent = pools(&servers[0].name, Some(&servers[1].name), times, times);
    let (mut alpha, mut beta) = (magent.client(), beta(&magent));
    alpha.set("k", "old").set("b", "old");
    servers[1].wait_value("b", Some(b"old"));
    assert_eq!(beta.get("k").as_deref(), Some(&b"old"[..]));
    let away = &servers[usize::from(!is_primary)];
    away.stop();
    wait_for("alpha to know that it is away", || {
        alpha.set("other", "x");
        (state(&mut alpha, &away.name) == "down").then_some(())
    });
    (magent, servers)
}

/// Through both pools again and again; each answer must be the new one.
#[track_caller]
fn read_new(magent: &Magent, key: &str, new: Option<&[u8]>, name: &str) {
    let mut clients = [magent.client(), beta(magent)];
    let begin = Instant::now();
    let mut reads_once_back = 0;
    while reads_once_back < 100 {
        for (client, pool) in clients.iter_mut().zip(["alpha", "beta"]) {
            let got = client.get(key);
            let after = begin.elapsed();
            assert!(
                got.as_deref() == new,
                "through {pool}, {after:?} after it woke: {key} is {:?}, not {:?}",
                got.map(|v| common::show(&v)),
                new.map(common::show)
            );
        }
        let back = clients.iter_mut().all(|c| state(c, name) != "down");
        reads_once_back += usize::from(back);
        assert!(begin.elapsed() < common::DEADLINE, "it is not back");
    }
}

#[test]
fn what_one_pool_wrote_while_the_primary_was_away_is_read_through_the_other() {
    let (magent, servers) = with_one_away(true);
    let mut alpha = magent.client();
    alpha.set("k", "new").ask("delete b\r\n", "DELETED\r\n");
    servers[0].cont();
    read_new(&magent, "k", Some(b"new"), &servers[0].name);
    read_new(&magent, "b", None, &servers[0].name);
}

/// What the backup missed of one pool's writes, the other pool must not read from it.
#[test]
fn what_one_pool_wrote_while_the_backup_was_away_is_read_through_the_other() {
    let (magent, mut servers) = with_one_away(false);
    let mut alpha = magent.client();
    alpha.set("k", "new").ask("delete b\r\n", "DELETED\r\n");
    servers[0].kill();
    let mut beta = beta(&magent);
    // It wakes with these in its socket, if it was asked.
    beta.send("get k\r\nget b\r\n");
    servers[1].cont();
    for key in ["k", "b"] {
        let line = String::from_utf8_lossy(&beta.read_line()).into_owned();
        let away = line.starts_with("SERVER_ERROR ");
        assert!(away || line == "END\r\n", "{key}: {line}");
    }
    let begin = Instant::now();
    let mut reads_once_back = 0;
    while reads_once_back < 100 {
        beta.send("get k b\r\n");
        let (answer, _) = beta.read_until_true(|b| {
            b.ends_with(b"END\r\n") || (b.starts_with(b"SERVER_ERROR") && b.ends_with(b"\n"))
        });
        let old = String::from_utf8_lossy(&answer).contains("VALUE");
        assert!(
            !old,
            "{:?} after it woke: {}",
            begin.elapsed(),
            common::show(&answer)
        );
        let back = state(&mut beta, &servers[1].name) != "down";
        reads_once_back += usize::from(back);
        assert!(begin.elapsed() < common::DEADLINE, "it is not back");
    }
}

#[test]
fn one_health_for_all_pools() {
    let (magent, servers) = with_one_away(true);
    let mut beta = beta(&magent);
    assert_eq!(
        state(&mut beta, &servers[0].name),
        "down",
        "as beta sees it"
    );
    // It costs nobody a timeout, a quarter of a second here, in neither pool.
    let begin = Instant::now();
    for _ in 0..10 {
        assert_eq!(beta.get("k").as_deref(), Some(&b"old"[..]));
    }
    assert!(
        begin.elapsed() < Duration::from_millis(250),
        "{:?}",
        begin.elapsed()
    );
    let all = |c: &mut Client| c.stats("stats servers\r\n");
    let journal = format!("{}:journal_keys", servers[0].name);
    let mut alpha = magent.client();
    beta.set("more", "x");
    assert_eq!(all(&mut alpha)[&journal], all(&mut beta)[&journal]);
    servers[0].cont();
}

#[test]
fn one_link_for_all_pools() {
    let fakes = [Fake::answering(empty), Fake::answering(empty)];
    let magent = pools(&fakes[0].name, Some(&fakes[1].name), "warm: 0", "warm: 0");
    let (mut alpha, mut beta) = (magent.client(), beta(&magent));
    for i in 0..5 {
        alpha.set(&format!("a{i}"), "x");
        beta.set(&format!("b{i}"), "x");
    }
    for fake in &fakes {
        fake.wait_count("set", 10);
    }
    let links = fakes.iter().map(Fake::links).collect::<Vec<_>>();
    assert_eq!(links, [1, 1], "links to the primary and the backup");
}

/// The link is one, the time that a request may take is its own pool's.
#[test]
fn each_request_has_its_own_pool_s_timeout() {
    let may_answer = Arc::new(AtomicUsize::new(0));
    let theirs = may_answer.clone();
    let fake = Fake::start(move |link| {
        let mut answers = 0;
        while let Some(request) = link.request() {
            answers += 1;
            link.wait(|| theirs.load(Ordering::SeqCst) >= answers);
            let keys = String::from_utf8_lossy(&request).into_owned();
            let key = keys.split_whitespace().nth(1).unwrap_or("");
            link.send(format!("VALUE {key} 0 1\r\nx\r\nEND\r\n"));
        }
    });
    let limit = "server_failure_limit: 1000\n  timeout:";
    let (short, long) = (format!("{limit} 100"), format!("{limit} 20000"));
    let magent = pools(&fake.name, None, &short, &long);
    let (mut alpha, mut beta) = (magent.client(), beta(&magent));
    let late = format!("SERVER_ERROR {} timed out", fake.name);
    for round in 1..=2 {
        beta.send("get b\r\n");
        fake.wait_count("get b", round);
        assert_eq!(alpha.ask_line("get a\r\n"), late);
        // Both, when the one has given up and the other has not.
        may_answer.fetch_add(2, Ordering::SeqCst);
        beta.expect("VALUE b 0 1\r\nx\r\nEND\r\n");
    }
    assert_eq!(fake.links(), 1);
}

/// One pool's primary is the other's backup: still one server, which was away once.
#[test]
fn a_primary_of_one_pool_that_is_the_backup_of_another() {
    let servers = [Memcached::start(), Memcached::start()];
    let pool = |name, listen, first: &Memcached, second: &Memcached| {
        format!(
            "{name}:\n  listen: {listen}\n  timeout: 250\n  server_retry_timeout: 30\n  \
             server_failure_limit: 1\n  servers:\n  - {}:1\n  backups:\n  - {}:1\n",
            first.name, second.name
        )
    };
    let magent = Magent::with_file(&format!(
        "{}{}",
        pool("alpha", "127.0.0.1:PORT", &servers[0], &servers[1]),
        pool("beta", "DIR/b", &servers[1], &servers[0])
    ));
    let (mut alpha, mut beta) = (magent.client(), beta(&magent));
    for client in [&mut alpha, &mut beta] {
        client.set("k", "old");
    }
    servers.iter().for_each(|s| s.wait_value("k", Some(b"old")));
    // alpha writes while its primary is away; beta has it as its backup.
    servers[0].stop();
    wait_for("the first to be down", || {
        alpha.set("other", "x");
        (state(&mut alpha, &servers[0].name) == "down").then_some(())
    });
    alpha.set("k", "new");
    assert_eq!(
        state(&mut beta, &servers[0].name),
        "down",
        "as beta sees it"
    );
    servers[0].cont();
    read_new(&magent, "k", Some(b"new"), &servers[0].name);
    assert_eq!(servers[1].value("k").as_deref(), Some(&b"new"[..]));
}
