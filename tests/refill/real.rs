//! The same with real memcacheds.

use crate::common::farm::{Farm, get_all, held};
use crate::common::rng::Rng;
use crate::common::time::think;
use crate::common::{Client, Magent, Memcached, keys, wait_for};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

const KEYS: usize = 3000;

/// Waits until a server's refill is in this state, twice: a first look may be one too early.
#[track_caller]
fn wait_refill(magent: &Magent, name: &str, state: &str) {
    wait_for(&format!("the refill of {name} to be {state}"), || {
        (magent.server(name)["refill"] == state).then_some(())
    });
}

/// Kills a server and starts it again empty, when magent has known it for long enough to tell.
fn restart(magent: &Magent, server: &mut Memcached) {
    // A restart is told by an uptime that is 2 s less.
    wait_for("an uptime that can fall", || {
        (server.stat("uptime") > 5).then_some(())
    });
    let restarts = magent.server(&server.name)["restarts"].clone();
    server.restart();
    wait_for("the restart to be seen", || {
        (magent.server(&server.name)["restarts"] != restarts).then_some(())
    });
}

fn value(i: usize) -> String {
    format!("value{i}-").repeat(1 + i % 40)
}

/// Stores all keys, with flags and times to live by their numbers.
fn store_all(client: &mut Client, names: &[String]) {
    for (i, name) in names.iter().enumerate() {
        let (value, ttl) = (value(i), if i % 3 == 0 { 0 } else { 1000 + i });
        let line = format!("set {name} {i} {ttl} {}\r\n{value}\r\n", value.len());
        client.ask(line, "STORED\r\n");
    }
}

#[track_caller]
fn check_all(client: &mut Client, names: &[String], when: &str) {
    let got = get_all(client, names);
    for (i, name) in names.iter().enumerate() {
        let want = (i as u32, value(i).into_bytes());
        assert_eq!(got.get(name), Some(&want), "{name} {when}");
    }
}

#[test]
fn a_rolling_reboot_of_all_servers_loses_nothing() {
    let mut farm = Farm::new(2, 2, &["--warm", "0"]);
    let mut client = farm.magent.client();
    let names: Vec<String> = (0..KEYS).map(|i| format!("k{i}")).collect();
    store_all(&mut client, &names);
    let Farm {
        magent,
        primaries,
        backups,
    } = &mut farm;
    for server in backups.iter_mut().chain(primaries.iter_mut()) {
        restart(magent, server);
        wait_refill(magent, &server.name, "done");
    }
    check_all(&mut client, &names, "after the reboots");
    for (i, name) in names.iter().enumerate() {
        let on = [
            &primaries[keys::home(name, 2)],
            &backups[keys::home(name, 2)],
        ];
        for server in on {
            let (flags, ttl, data) = held(server, name).unwrap_or_else(|| panic!("{name} is lost"));
            assert_eq!((flags, data), (i as u32, value(i).into_bytes()), "{name}");
            let lived = 1000 + i as i64 - ttl;
            assert!(
                i % 3 == 0 && ttl == -1 || (0..100).contains(&lived),
                "{name} lives {ttl} s"
            );
        }
    }
    primaries.iter_mut().for_each(|p| p.kill());
    check_all(&mut client, &names, "with the primaries dead");
}

#[test]
fn keys_of_any_bytes_and_values_as_large_as_may_be() {
    let mut farm = Farm::new(1, 1, &["-I", "1m"]);
    let mut client = farm.magent.client();
    // 250 bytes of text, any bytes that base64 can carry, and spaces.
    let text = "%".repeat(250);
    client.set(&text, "text");
    let bytes = "/w8A".repeat(62);
    for key in [&bytes[..], "IA==", "DQo="] {
        client.ask(format!("ms {key} 5 b F7 T500\r\nbytes\r\n"), "HD\r\n");
    }
    // memcached's own -I is for the whole item.
    let large = "x".repeat((1 << 20) - 512);
    client.ask(
        format!("set large 1 0 {}\r\n{large}\r\n", large.len()),
        "STORED\r\n",
    );
    // Stale: it is not copied, and whoever comes next has the right to renew it.
    client.set("stale", "old");
    client.ask("md stale I T300\r\n", "HD\r\n");
    client.set("short", "gone soon");
    client.ask("touch short 1\r\n", "TOUCHED\r\n");
    restart(&farm.magent, &mut farm.backups[0]);
    wait_refill(&farm.magent, &farm.backups[0].name, "done");
    let mut backup = farm.backups[0].client();
    assert_eq!(farm.backups[0].value(&text).as_deref(), Some(&b"text"[..]));
    for key in [&bytes[..], "IA==", "DQo="] {
        backup.send(format!("mg {key} b f v\r\n"));
        assert_eq!(backup.read_line(), b"VA 5 f7\r\n", "{key}");
        backup.read_exact(7);
    }
    assert_eq!(
        farm.backups[0].value("large").map(|v| v.len()),
        Some(large.len())
    );
    assert_eq!(farm.backups[0].value("stale"), None);
    assert_eq!(farm.backups[0].value("short"), None);
    let line = client.ask_line("mg stale v\r\n");
    assert!(line.starts_with("VA 3 ") && line.contains(" W"), "{line}");
}

#[test]
fn a_target_that_is_too_small_does_not_keep_magent_busy() {
    let primary = Memcached::start();
    let backup = Memcached::with(&["-m", "2"]);
    let mut farm = Farm::of(vec![primary], vec![backup], &[]);
    let mut client = farm.magent.client();
    let value = "v".repeat(20_000);
    for i in 0..400 {
        client.set(&format!("k{i}"), &value);
    }
    restart(&farm.magent, &mut farm.backups[0]);
    wait_refill(&farm.magent, &farm.backups[0].name, "done");
    let listed: u64 = farm.magent.server(&farm.backups[0].name)["refill_listed"]
        .parse()
        .expect("a number");
    assert_eq!(listed, 400);
}

#[test]
fn without_an_lru_crawler_there_is_no_refill_and_it_says_so() {
    let primary = Memcached::with(&["-o", "no_lru_crawler"]);
    let mut farm = Farm::of(vec![primary], vec![Memcached::start()], &[]);
    farm.magent.client().set("k", "v");
    restart(&farm.magent, &mut farm.backups[0]);
    wait_refill(&farm.magent, &farm.backups[0].name, "partial");
    assert_eq!(
        farm.magent.server(&farm.primaries[0].name)["metadump"],
        "no"
    );
    assert_eq!(farm.backups[0].value("k"), None);
}

/// What one client did with its own keys, and what they must be.
struct Writer {
    client: Client,
    rng: Rng,
    number: usize,
    want: BTreeMap<String, Vec<u8>>,
}

impl Writer {
    fn new(client: Client, number: usize) -> Writer {
        Writer {
            client,
            rng: Rng::new(number as u64),
            number,
            want: BTreeMap::new(),
        }
    }

    /// One request, and a look at what it came to.
    fn act(&mut self, n: usize) {
        let key = format!("w{}key{}", self.number, self.rng.below(400));
        let counter = format!("w{}counter{}", self.number, self.rng.below(20));
        let client = &mut self.client;
        match self.rng.below(10) {
            0..=2 => {
                let value = format!("{n}.").repeat(1 + n % 50);
                client.set(&key, &value);
                self.want.insert(key, value.into());
            }
            3 => {
                let was = self.want.remove(&key).is_some();
                let answer = if was { "DELETED\r\n" } else { "NOT_FOUND\r\n" };
                client.ask(format!("delete {key}\r\n"), answer);
            }
            4 => match self.want.get_mut(&counter) {
                Some(value) => {
                    let text = String::from_utf8_lossy(value);
                    let next = (text.parse::<u64>().expect("a number") + 7).to_string();
                    client.ask(format!("incr {counter} 7\r\n"), format!("{next}\r\n"));
                    *value = next.into();
                }
                None => {
                    client.ask(format!("add {counter} 0 0 3\r\n100\r\n"), "STORED\r\n");
                    self.want.insert(counter, b"100".to_vec());
                }
            },
            5 => {
                let answer = match self.want.get_mut(&key) {
                    Some(value) => {
                        value.extend(b"more");
                        "STORED\r\n"
                    }
                    None => "NOT_STORED\r\n",
                };
                client.ask(format!("append {key} 0 0 4\r\nmore\r\n"), answer);
            }
            6 => {
                let there = self.want.contains_key(&key);
                let answer = if there {
                    "TOUCHED\r\n"
                } else {
                    "NOT_FOUND\r\n"
                };
                client.ask(format!("touch {key} 3000\r\n"), answer);
            }
            _ => assert_eq!(client.get(&key), self.want.get(&key).cloned(), "{key}"),
        }
    }
}

#[test]
fn clients_that_read_and_write_all_the_time_notice_nothing_and_lose_nothing() {
    let mut farm = Farm::new(2, 2, &["--timeout", "2000"]);
    let is_over = AtomicBool::new(false);
    let Farm {
        magent,
        primaries,
        backups,
    } = &mut farm;
    let mut writers: Vec<Writer> = (0..3).map(|n| Writer::new(magent.client(), n)).collect();
    std::thread::scope(|s| {
        for writer in &mut writers {
            let is_over = &is_over;
            s.spawn(move || {
                let mut n = 0;
                while !is_over.load(Ordering::Relaxed) {
                    think();
                    writer.act(n);
                    n += 1;
                }
            });
        }
        // However it ends, the writers must.
        let _end = OnDrop(|| is_over.store(true, Ordering::Relaxed));
        for server in backups.iter_mut().chain(primaries.iter_mut()) {
            restart(magent, server);
            wait_refill(magent, &server.name, "done");
        }
    });
    for server in backups.iter().chain(primaries.iter()) {
        wait_for("all that was missed to be copied again", || {
            let all = magent.server(&server.name);
            (all["journal_keys"] == "0" && all["refill"] == "done").then_some(())
        });
    }
    primaries.iter_mut().for_each(|p| p.kill());
    for writer in &mut writers {
        for (key, value) in &writer.want {
            assert_eq!(writer.client.get(key).as_ref(), Some(value), "{key}");
        }
        let gone = (0..400).map(|i| format!("w{}key{i}", writer.number));
        for key in gone.filter(|k| !writer.want.contains_key(k)) {
            assert_eq!(writer.client.get(&key), None, "{key} was deleted");
        }
    }
}

/// Clients write all the time, and nothing of theirs is taken for a difference.
#[test]
fn a_comparison_under_load_finds_what_was_changed_past_magent_and_nothing_else() {
    let farm = Farm::new(2, 2, &["--timeout", "2000"]);
    let is_over = AtomicBool::new(false);
    let mut client = farm.magent.client();
    let names: Vec<String> = (0..KEYS).map(|i| format!("k{i}")).collect();
    store_all(&mut client, &names);
    for (i, name) in names.iter().enumerate() {
        farm.backups[keys::home(name, 2)].wait_value(name, Some(value(i).as_bytes()));
    }
    let (lost, changed) = ("k7", "k8");
    for (key, request, answer) in [
        (lost, "delete k7\r\n", "DELETED\r\n"),
        (changed, "append k8 0 0 1\r\n!\r\n", "STORED\r\n"),
    ] {
        let backup = &farm.backups[keys::home(key, 2)];
        backup.client().ask(request, answer);
    }
    let mut writers: Vec<Writer> = (0..3)
        .map(|n| Writer::new(farm.magent.client(), n))
        .collect();
    std::thread::scope(|s| {
        for writer in &mut writers {
            let is_over = &is_over;
            s.spawn(move || {
                let mut n = 0;
                while !is_over.load(Ordering::Relaxed) {
                    think();
                    writer.act(n);
                    n += 1;
                }
            });
        }
        // However it ends, the writers must.
        let _end = OnDrop(|| is_over.store(true, Ordering::Relaxed));
        for (at, server) in farm.backups.iter().enumerate() {
            let ask = format!("stats verify {}\r\n", server.name);
            let mut shown = client.stats(&ask);
            wait_for("the comparison", || {
                shown = client.stats(&ask);
                (shown["state"] == "done").then_some(())
            });
            let is_here = |key: &str| keys::home(key, 2) == at;
            let want = |key| if is_here(key) { "1" } else { "0" };
            let found = ["missing", "extra", "different"].map(|name| &shown[name][..]);
            assert_eq!(found, [want(lost), "0", want(changed)], "{shown:?}");
            assert_eq!(
                shown.get("missing_1").map(String::as_str),
                is_here(lost).then_some(lost)
            );
            let of_it = names.iter().filter(|name| is_here(name)).count();
            let same: usize = shown["same"].parse().expect("a number");
            assert!(same >= of_it - 2, "{shown:?}");
        }
    });
}

struct OnDrop<F: Fn()>(F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        self.0();
    }
}
