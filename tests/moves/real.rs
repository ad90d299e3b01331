//! The program and real memcacheds: clients that write and read all the time, each its own keys, while the
//! servers change under them.

use crate::common::time::think;
use crate::common::{Client, Magent, Memcached, wait_for};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Keys of each client.
const KEYS: usize = 25;

/// Asks until it is told to stop. Nobody else writes these keys, so every answer is known.
fn talk(mut client: Client, name: usize, stop: &AtomicBool) -> u64 {
    let key = |i: usize| format!("client{name}.{i}");
    for i in 0..KEYS {
        client.ask(format!("set {} 0 0 1\r\n0\r\n", key(i)), "STORED\r\n");
    }
    let mut round = 0;
    while !stop.load(Ordering::Relaxed) {
        think();
        round += 1;
        for i in 0..KEYS {
            let (key, number) = (key(i), format!("{round}"));
            let n = number.len();
            client.ask(format!("incr {key} 1\r\n"), format!("{number}\r\n"));
            match i % 5 {
                // A third of them are not asked for all the time.
                0 if round % 40 > 0 => {}
                1 => {
                    client.ask(format!("delete {key}\r\n"), "DELETED\r\n");
                    let add = format!("add {key} 0 0 {n}\r\n{number}\r\n");
                    client.ask(add.repeat(2), "STORED\r\nNOT_STORED\r\n");
                }
                2 => {
                    client.ask(format!("append {key} 0 0 1\r\n+\r\n"), "STORED\r\n");
                    let value = format!("VALUE {key} 0 {}\r\n{number}+\r\nEND\r\n", n + 1);
                    client.ask(format!("get {key}\r\n"), value);
                    client.ask(format!("set {key} 0 0 {n}\r\n{number}\r\n"), "STORED\r\n");
                }
                _ => {
                    let value = format!("VALUE {key} 0 {n}\r\n{number}\r\nEND\r\n");
                    client.ask(format!("get {key}\r\n"), value);
                }
            }
        }
        let keys: Vec<String> = (0..KEYS).map(key).collect();
        let shown = |key: &String| {
            let number = format!("{round}");
            format!("VALUE {key} 0 {}\r\n{number}\r\n", number.len())
        };
        let all: String = keys.iter().map(shown).collect();
        client.ask(format!("get {}\r\n", keys.join(" ")), all + "END\r\n");
    }
    round
}

/// Ends the talkers, also when a check failed.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn change_under_load(backups: &[&[usize]; 3]) {
    let servers: Vec<Memcached> = (0..7).map(|_| Memcached::start()).collect();
    let primaries: [&[usize]; 3] = [&[0, 1], &[0, 1, 2], &[2, 3]];
    let file = |at: usize, timeout: u32| {
        let mut text = format!(
            "a:\n  listen:\n  - 127.0.0.1:PORT\n  hash: md5\n  timeout: {timeout}\n  warm: 2\n"
        );
        for (list, of) in [("servers", primaries[at]), ("backups", backups[at])] {
            if !of.is_empty() {
                text += &format!("  {list}:\n");
            }
            for server in of {
                text += &format!("  - {}:1\n", servers[*server].name);
            }
        }
        text
    };
    let magent = Magent::with_file(&file(0, 3000));
    let (stop, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let _ends = Ends(&stop);
        for name in 0..8 {
            let client = magent.client();
            let (stop, rounds) = (&stop, &rounds);
            scope.spawn(move || rounds.fetch_add(talk(client, name, stop), Ordering::Relaxed));
        }
        for at in 1..3 {
            wait_for("keys everywhere", || {
                let all = servers.iter().map(|s| s.stat("curr_items")).sum::<u64>();
                (all >= 8 * KEYS as u64).then_some(())
            });
            assert!(magent.reload(&file(at, 3000)), "{}", magent.log());
            // The next one is too early, unless it leaves the servers as they are.
            assert!(!magent.reload(&file(0, 3000)));
            assert!(magent.reload(&file(at, 2000)), "{}", magent.log());
            wait_for("the end of the move", || {
                let pools = magent.client().stats("stats pools\r\n");
                (pools["a:moving"] == "no").then_some(())
            });
        }
    });
    assert!(rounds.load(Ordering::Relaxed) > 16);
    let log = magent.log();
    let told = "error the configuration stays as it was: pool a: its servers cannot change while keys \
                move to those of the last reload (";
    assert_eq!(log.matches(told).count(), 2, "{log}");
    assert_eq!(log.matches("its keys have moved").count(), 2, "{log}");
    assert_eq!(magent.stat("server_errors"), 0);
    // Nothing that was changed since is where it was: all has been.
    for server in &servers[..2] {
        wait_for(
            "nothing but a sign of life, which is taken away too",
            || (server.stat("curr_items") == 0).then_some(()),
        );
    }
}

#[test]
fn clients_do_not_notice_other_servers() {
    change_under_load(&[&[], &[], &[]]);
}

#[test]
fn clients_do_not_notice_other_servers_and_backups() {
    change_under_load(&[&[4], &[4, 5], &[5, 6]]);
}

#[test]
fn an_operator_ends_a_move_at_the_door() {
    let servers: Vec<Memcached> = (0..3).map(|_| Memcached::start()).collect();
    let file = |n: usize| {
        let head = "a:\n  listen:\n  - 127.0.0.1:PORT\n  timeout: 200\n  warm: 1000\n  servers:\n";
        let lines = servers.iter().take(n);
        head.to_string()
            + &lines
                .map(|s| format!("  - {}:1\n", s.name))
                .collect::<String>()
    };
    let magent = Magent::with_file(&file(2));
    let (mut client, mut operator) = (magent.client(), magent.operator());
    for i in 0..50 {
        client.set(&format!("k{i}"), "v");
    }
    assert!(magent.reload(&file(3)), "{}", magent.log());
    magent.write_file(&file(2));
    let refused = operator.ask_line("reload\n");
    assert!(
        refused.starts_with("ERROR pool a: its servers cannot change while keys move"),
        "{refused}"
    );
    operator.ask("reload soon\n", "ERROR usage: reload [now]\r\n");
    // Not before all that was asked before the first reload must be answered.
    wait_for("reload now", || {
        let said = operator.ask_line("reload now\n");
        assert!(said == "OK" || said.contains("try again"), "{said}");
        (said == "OK").then_some(())
    });
    let log = magent.log();
    for line in [
        ": reload now\n",
        "pool a: an operator has ended the move of its keys: ",
    ] {
        assert!(log.contains(line), "{line}: {log}");
    }
    for i in 0..50 {
        assert_eq!(
            client.get(&format!("k{i}")).as_deref(),
            Some(&b"v"[..]),
            "k{i}"
        );
    }
    // It was for that one.
    magent.write_file(&file(3));
    assert!(operator.ask_line("reload\n").starts_with("ERROR pool a: "));
}
