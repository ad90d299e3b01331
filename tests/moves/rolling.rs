//! Two magents over the same servers, and a reload that comes to one after the other.

use crate::common::farm::get_all;
use crate::common::time::think;
use crate::common::{Client, Magent, Memcached, keys, wait_for};
use std::sync::atomic::{AtomicBool, Ordering};

/// Keys whose values nobody changes.
const KEYS: usize = 600;

/// Two magents, three primaries of which they name two, two backups.
struct Two {
    primaries: Vec<Memcached>,
    backups: Vec<Memcached>,
    magents: [Magent; 2],
    names: Vec<String>,
}

fn file(primaries: &[Memcached], backups: &[Memcached]) -> String {
    let mut text = "a:\n  listen:\n  - 127.0.0.1:PORT\n  hash: magent\n  distribution: magent\n  \
                    timeout: 2000\n  warm: 2\n"
        .to_string();
    for (list, of) in [("servers", primaries), ("backups", backups)] {
        text += &format!("  {list}:\n");
        text.extend(of.iter().map(|s| format!("  - {}:1\n", s.name)));
    }
    text
}

fn value(i: usize) -> Vec<u8> {
    format!("value{i}.").repeat(1 + i % 30).into_bytes()
}

/// True if a third primary takes this key over.
fn moves(key: &str) -> bool {
    keys::home(key, 2) != keys::home(key, 3)
}

fn moving(magent: &Magent) -> String {
    magent.client().stats("stats pools\r\n")["a:moving"].clone()
}

impl Two {
    /// Both have the ring of two primaries, and know of each other.
    fn start() -> Two {
        let start = |n| -> Vec<Memcached> { (0..n).map(|_| Memcached::start()).collect() };
        let (primaries, backups) = (start(3), start(2));
        let text = file(&primaries[..2], &backups);
        let magents = [(); 2].map(|()| Magent::with_file(&text));
        let names: Vec<String> = (0..KEYS).map(|i| format!("fixed{i}")).collect();
        let mut clients = magents.each_ref().map(Magent::client);
        for (i, name) in names.iter().enumerate() {
            let value = String::from_utf8(value(i)).expect("text");
            let set = format!("set {name} {i} 0 {}\r\n{value}\r\n", value.len());
            clients[i % 2].ask(set, "STORED\r\n");
        }
        for magent in &magents {
            wait_for("both to know of each other", || {
                clients.iter_mut().for_each(|c| drop(get_all(c, &names)));
                let all = primaries[..2].iter().chain(&backups);
                let mut all = all.map(|s| magent.server(&s.name));
                all.all(|s| s.contains_key("other_magents")).then_some(())
            });
        }
        Two {
            primaries,
            backups,
            magents,
            names,
        }
    }

    fn with_three(&self) -> String {
        file(&self.primaries, &self.backups)
    }

    #[track_caller]
    fn check(&self, client: &mut Client, when: &str) {
        let got = get_all(client, &self.names);
        for (i, name) in self.names.iter().enumerate() {
            assert!(
                got.get(name) == Some(&(i as u32, value(i))),
                "{name} {when}"
            );
        }
    }

    /// Each key is at its primary.
    #[track_caller]
    fn check_places(&self) {
        for (at, server) in self.primaries.iter().enumerate() {
            let own = self.names.iter().filter(|n| keys::home(n, 3) == at);
            let own: Vec<String> = own.cloned().collect();
            assert_eq!(get_all(&mut server.client(), &own).len(), own.len());
        }
    }
}

/// Writes numbers to keys of its own until it is told to stop; the numbers, which are all read again by the same
/// magent, as far as the keys do not move.
fn write(mut client: Client, prefix: &str, stop: &AtomicBool) -> Vec<(String, u64)> {
    let mut all: Vec<(String, u64)> = (0..40).map(|i| (format!("{prefix}{i}"), 0)).collect();
    let mut round = 0;
    while !stop.load(Ordering::Relaxed) {
        think();
        round += 1;
        for (key, number) in &mut all {
            let (len, last) = (round.to_string().len(), *number);
            if last > 0 && !moves(key) {
                assert_eq!(
                    client.get(key),
                    Some(last.to_string().into_bytes()),
                    "{key}"
                );
            }
            client.ask(format!("set {key} 0 0 {len}\r\n{round}\r\n"), "STORED\r\n");
            *number = round;
        }
    }
    all
}

struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn keys_move_when_all_magents_have_the_new_ring() {
    let two = Two::start();
    let [one, other] = &two.magents;
    let mut clients = [one.client(), other.client()];
    let stop = AtomicBool::new(false);
    let third = &two.primaries[2];
    let written = std::thread::scope(|scope| {
        let _ends = Ends(&stop);
        // The other one writes all the time, also what moves.
        let writer = scope.spawn(|| write(other.client(), "own", &stop));
        let reader = |magent: &Magent| {
            let mut client = magent.client();
            let (two, stop) = (&two, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    think();
                    two.check(&mut client, "all the time");
                }
            });
        };
        two.magents.iter().for_each(reader);

        assert!(one.reload(&two.with_three()), "{}", one.log());
        let whom = format!(
            "waits for magent {} {}",
            magent::sys::host_name(),
            other.pid()
        );
        wait_for("one to wait for the other", || {
            moving(one).starts_with(&whom).then_some(())
        });
        let log = one.log();
        assert!(
            log.contains("pool a: its keys do not move yet: magent "),
            "{log}"
        );
        let key = two
            .names
            .iter()
            .position(|k| keys::home(k, 2) == 0)
            .expect("one");
        wait_for("the other rings to show", || {
            clients[0].get(&two.names[key]);
            let shown = one.server(&two.primaries[0].name)["other_magents"].clone();
            shown.ends_with(" (other rings)").then_some(())
        });
        // Longer than a move takes that waits for nobody: 1.5 times two timeouts, and then `warm`.
        wait_for("time to pass", || {
            let since = moving(one);
            let since = since
                .split(", ")
                .nth(1)
                .and_then(|s| s.split(' ').next()?.parse().ok());
            (since.unwrap_or(0u64) >= 8).then_some(())
        });
        assert!(moving(one).starts_with(&whom), "{}", moving(one));
        let there = get_all(&mut third.client(), &two.names);
        assert!(
            there.is_empty(),
            "{} keys were copied too early",
            there.len()
        );
        // What is written by a magent of the ring before is read by the one of the new ring.
        let key = two
            .names
            .iter()
            .find(|k| keys::home(k, 3) == 2)
            .expect("one");
        assert_eq!(clients[0].get(key), clients[1].get(key));

        assert!(other.reload(&two.with_three()), "{}", other.log());
        for magent in [one, other] {
            wait_for("the end of the move", || {
                (moving(magent) == "no").then_some(())
            });
        }
        let log = one.log();
        assert!(
            log.contains("pool a: all magents have its ring: its keys move"),
            "{log}"
        );
        stop.store(true, Ordering::Relaxed);
        writer.join().expect("the writer")
    });
    for client in &mut clients {
        two.check(client, "at the end");
        for (key, number) in &written {
            assert_eq!(
                client.get(key),
                Some(number.to_string().into_bytes()),
                "{key}"
            );
        }
    }
    two.check_places();
}

#[test]
fn a_magent_that_dies_with_the_ring_before_is_not_waited_for() {
    let mut two = Two::start();
    let text = two.with_three();
    let Two {
        magents: [one, other],
        ..
    } = &mut two;
    assert!(one.reload(&text), "{}", one.log());
    wait_for("one to wait for the other", || {
        moving(one).starts_with("waits for magent ").then_some(())
    });
    assert!(other.terminate().success());
    wait_for("the end of the move", || {
        (moving(one) == "no").then_some(())
    });
    two.check(&mut two.magents[0].client(), "at the end");
    two.check_places();
}
