//! What copies are for, all of it in a row, with real memcacheds: a backup that restarts and is filled before its
//! primaries die, a reboot of all servers one after the other, servers that come and go by a reload; while
//! clients read and write all the time. `MAGENT_COPIES_KEYS=100000` is what `make soak` plays.

mod common;

use common::farm::get_all;
use common::rng::Rng;
use common::time::{measure_for, think, wait_within};
use common::{Client, Magent, Memcached, keys, wait_for};
use hdrhistogram::Histogram;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Keys that are stored once and read all the time.
fn number_of_keys() -> usize {
    let keys = std::env::var("MAGENT_COPIES_KEYS").ok();
    keys.and_then(|n| n.parse().ok()).unwrap_or(2000)
}

/// A second for each thousand keys, and a minute more than any of it should take.
fn patience() -> Duration {
    Duration::from_secs(60 + number_of_keys() as u64 / 200)
}

/// 20 bytes to 60 KB, 1.1 KB on average.
fn value(i: usize) -> Vec<u8> {
    let size = match i % 100 {
        0 => 60_000,
        n if n < 10 => 3000,
        n => 20 + 5 * n,
    };
    let mut value = format!("{i}.").into_bytes();
    value.resize(size, b'0' + (i % 10) as u8);
    value
}

/// Keys whose values nobody changes, with flags and times to live.
struct Fixed {
    names: Vec<String>,
}

impl Fixed {
    fn store(client: &mut Client) -> Fixed {
        let names: Vec<String> = (0..number_of_keys()).map(|i| format!("fixed{i}")).collect();
        for (part, some) in names.chunks(50).enumerate() {
            let mut sets = Vec::new();
            for (at, name) in some.iter().enumerate() {
                let i = part * 50 + at;
                let (value, ttl) = (value(i), if i % 3 == 0 { 0 } else { 20_000 + i });
                sets.extend(format!("set {name} {i} {ttl} {}\r\n", value.len()).into_bytes());
                sets.extend(value);
                sets.extend(b"\r\n");
            }
            client.ask(sets, "STORED\r\n".repeat(some.len()));
        }
        Fixed { names }
    }

    /// Every one of them is there as it was stored.
    #[track_caller]
    fn check(&self, client: &mut Client, when: &str) {
        let got = get_all(client, &self.names);
        for (i, name) in self.names.iter().enumerate() {
            let want = (i as u32, value(i));
            assert!(got.get(name) == Some(&want), "{name} {when}");
        }
    }
}

/// What a client knows.
#[derive(Default)]
struct Known {
    /// Of its keys.
    values: BTreeMap<String, u64>,
    /// How often which error was answered to it.
    failed: BTreeMap<String, usize>,
}

/// What clients know of each other.
struct Load {
    is_over: AtomicBool,
    /// Keys have this in their names: what was written under another one is asked for no more, since a ring that
    /// comes back finds what was changed after the move from there.
    generation: AtomicUsize,
    /// How often backups were killed, by name.
    kills: Mutex<BTreeMap<String, usize>>,
    /// How long answers took, in microseconds.
    times: Mutex<Histogram<u64>>,
    answers: AtomicUsize,
}

impl Load {
    fn new() -> Load {
        Load {
            is_over: AtomicBool::new(false),
            generation: AtomicUsize::new(0),
            kills: Mutex::default(),
            times: Mutex::new(Histogram::new(3).expect("a histogram")),
            answers: AtomicUsize::new(0),
        }
    }

    /// p99 of what was answered since the last call, in milliseconds.
    fn p99(&self) -> f64 {
        let mut times = self.times.lock().expect("nobody panics");
        let p99 = times.value_at_quantile(0.99);
        times.reset();
        p99 as f64 / 1000.0
    }

    /// A request that creates a key may fail if the backup was killed when it was asked whether it has the key: once
    /// since the link is lost, and once more since the one that is opened in its place is refused. Then it is down,
    /// and the primary decides. `failed` are the failures of one client so far.
    #[track_caller]
    fn check_failure(&self, said: &str, failed: &mut BTreeMap<String, usize>) {
        let causes = [" connection lost", " connection refused"];
        let name = said.strip_prefix("SERVER_ERROR ");
        let name = name.and_then(|said| causes.iter().find_map(|cause| said.strip_suffix(cause)));
        let kills = self.kills.lock().expect("nobody panics");
        let kills = name.and_then(|name| kills.get(name)).copied();
        let times = failed.entry(said.to_string()).or_default();
        *times += 1;
        assert!(
            kills.is_some_and(|kills| *times <= kills),
            "{said}: {times}, {kills:?} kills"
        );
    }

    /// Reads and writes keys of its own, whose values it knows, and reads the fixed ones.
    fn talk(&self, mut client: Client, number: usize, fixed: &Fixed) {
        let (mut rng, mut generation) = (Rng::new(number as u64), 0);
        let mut want = Known::default();
        while !self.is_over.load(Ordering::Relaxed) {
            let now = self.generation.load(Ordering::Relaxed);
            if std::mem::replace(&mut generation, now) != now {
                want.values.clear();
            }
            think();
            let from = Instant::now();
            self.act(
                &mut client,
                &mut rng,
                &format!("w{number}.{now}."),
                &mut want,
                fixed,
            );
            let took = from.elapsed().as_micros() as u64;
            let mut times = self.times.lock().expect("nobody panics");
            times.record(took.max(1)).expect("a time");
            self.answers.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn act(
        &self,
        client: &mut Client,
        rng: &mut Rng,
        prefix: &str,
        want: &mut Known,
        fixed: &Fixed,
    ) {
        let Known {
            values: want,
            failed,
        } = want;
        let key = format!("{prefix}{}", rng.below(200));
        let known = want.get(&key).copied();
        match (rng.below(10), known) {
            (0..=4, _) => {
                let i = rng.below(fixed.names.len() as u64) as usize;
                let (name, value) = (&fixed.names[i], value(i));
                assert!(client.get(name).as_ref() == Some(&value), "{name}");
            }
            (5, _) => {
                let number = 1000 + rng.below(1000);
                client.ask(format!("set {key} 0 0 4\r\n{number}\r\n"), "STORED\r\n");
                want.insert(key, number);
            }
            (6, Some(number)) => {
                client.ask(format!("incr {key} 1\r\n"), format!("{}\r\n", number + 1));
                want.insert(key, number + 1);
            }
            (7, Some(_)) => {
                client.ask(format!("delete {key}\r\n"), "DELETED\r\n");
                want.remove(&key);
            }
            (7, None) => {
                let said = client.ask_line(format!("add {key} 0 0 4\r\n1000\r\n"));
                match said == "STORED" {
                    true => drop(want.insert(key, 1000)),
                    false => self.check_failure(&said, failed),
                }
            }
            (_, known) => {
                let value = known.map(|n| n.to_string().into_bytes());
                assert_eq!(client.get(&key), value, "{key}");
            }
        }
    }
}

/// Ends the clients, also when a check failed.
struct Ends<'a>(&'a Load);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::Relaxed);
    }
}

/// Runs `steps` while three clients ask.
fn under_load(magent: &Magent, fixed: &Fixed, steps: impl FnOnce(&Load)) {
    let load = Load::new();
    std::thread::scope(|scope| {
        let _ends = Ends(&load);
        for number in 0..3 {
            let (client, load) = (magent.client(), &load);
            scope.spawn(move || load.talk(client, number, fixed));
        }
        steps(&load);
    });
    println!(
        "{} answers to clients, all right",
        load.answers.load(Ordering::Relaxed)
    );
}

/// Kills a server and starts it again empty, when its uptime can tell.
fn restart(magent: &Magent, server: &mut Memcached, load: &Load) {
    wait_for("an uptime that can fall", || {
        (server.stat("uptime") > 5).then_some(())
    });
    let shown = magent.server(&server.name);
    if shown["role"] == "backup" {
        let mut kills = load.kills.lock().expect("nobody panics");
        *kills.entry(server.name.clone()).or_default() += 1;
    }
    let restarts = shown["restarts"].clone();
    server.restart();
    wait_for("the restart to be seen", || {
        (magent.server(&server.name)["restarts"] != restarts).then_some(())
    });
}

/// Waits until a server is filled, and says how fast that was.
fn wait_refilled(magent: &Magent, name: &str, load: &Load) {
    let before = load.p99();
    let (from, ticks) = (Instant::now(), processor_time(magent));
    wait_within(patience(), &format!("the refill of {name}"), || {
        let all = magent.server(name);
        (all["refill"] == "done" && all["journal_keys"] == "0").then_some(())
    });
    let all = magent.server(name);
    let copied: f64 = all["refill_copied"].parse().expect("a number");
    let (took, used) = (from.elapsed().as_secs_f64(), processor_time(magent) - ticks);
    println!(
        "{name}: {copied} keys in {took:.1} s; magent used {used:.2} s for them and its clients, whose p99 was \
         {before:.2} ms before and {:.2} ms meanwhile",
        load.p99()
    );
}

/// What magent has used so far, in seconds.
fn processor_time(magent: &Magent) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", magent.pid())).expect("its stat");
    let fields: Vec<&str> = stat
        .rsplit(") ")
        .next()
        .expect("fields")
        .split(' ')
        .collect();
    let ticks = |at: usize| fields[at].parse::<f64>().expect("ticks");
    (ticks(11) + ticks(12)) / 100.0
}

/// Both hold the same of every key, as magent itself finds.
fn verify(magent: &Magent, server: &Memcached) {
    let mut client = magent.client();
    let ask = format!("stats verify {}\r\n", server.name);
    let shown = wait_within(patience(), "the comparison", || {
        let shown = client.stats(&ask);
        (!matches!(&shown["state"][..], "running" | "waiting")).then_some(shown)
    });
    let found = ["missing", "extra", "different"].map(|name| &shown[name][..]);
    assert_eq!(
        (&shown["state"][..], found),
        ("done", ["0"; 3]),
        "{shown:#?}"
    );
}

/// A pool of these primaries and backups. Its primaries are warming for so many seconds, and so long a move takes at
/// least.
fn file(primaries: &[&Memcached], backups: &[&Memcached], warm: u32) -> String {
    let mut text = format!(
        "a:\n  listen:\n  - 127.0.0.1:PORT\n  hash: magent\n  distribution: magent\n  timeout: 3000\n  \
         warm: {warm}\n"
    );
    for (list, of) in [("servers", primaries), ("backups", backups)] {
        if !of.is_empty() {
            text += &format!("  {list}:\n");
            text.extend(of.iter().map(|s| format!("  - {}:1\n", s.name)));
        }
    }
    text
}

/// Changes the servers of the pool and waits until its keys are where they belong.
fn change(magent: &Magent, text: &str, load: &Load) {
    load.generation.fetch_add(1, Ordering::Relaxed);
    let before = load.p99();
    let (from, misses) = (Instant::now(), magent.stat("multi_get_keys_lost"));
    assert!(magent.reload(text), "{}", magent.log());
    let mut client = magent.client();
    wait_within(patience(), "the end of the move", || {
        (client.stats("stats pools\r\n")["a:moving"] == "no").then_some(())
    });
    let log = magent.log();
    let line = log.lines().rfind(|l| l.contains("its keys have moved"));
    println!(
        "{} s: {}; p99 was {before:.2} ms before and {:.2} ms meanwhile",
        from.elapsed().as_secs(),
        line.expect("the end of the move")
            .split("pool a: ")
            .last()
            .expect("a text"),
        load.p99()
    );
    assert_eq!(magent.stat("multi_get_keys_lost"), misses);
}

fn started(n: usize) -> Vec<Memcached> {
    (0..n).map(|_| Memcached::with(&["-m", "1024"])).collect()
}

#[test]
fn all_servers_restart_and_die_and_nothing_is_lost() {
    let (mut primaries, mut backups) = (started(2), started(2));
    let text = file(
        &[&primaries[0], &primaries[1]],
        &[&backups[0], &backups[1]],
        3600,
    );
    let magent = Magent::with_file(&text);
    let mut client = magent.client();
    let fixed = Fixed::store(&mut client);
    under_load(&magent, &fixed, |load| {
        measure_for(Duration::from_secs(1));
        println!("a backup restarts");
        restart(&magent, &mut backups[0], load);
        wait_refilled(&magent, &backups[0].name, load);
        println!("both primaries die, and come back empty");
        primaries.iter_mut().for_each(Memcached::kill);
        fixed.check(&mut client, "with the primaries dead");
        for server in &mut primaries {
            let restarts = magent.server(&server.name)["restarts"].clone();
            server.restart();
            wait_for("the restart to be seen", || {
                (magent.server(&server.name)["restarts"] != restarts).then_some(())
            });
        }
        for server in &primaries {
            wait_refilled(&magent, &server.name, load);
        }
        println!("all servers restart, each after the one before was filled");
        for server in backups.iter_mut().chain(primaries.iter_mut()) {
            restart(&magent, server, load);
            wait_refilled(&magent, &server.name, load);
        }
        fixed.check(&mut client, "after the reboots");
    });
    for server in backups.iter().chain(&primaries) {
        verify(&magent, server);
    }
    primaries.iter_mut().for_each(Memcached::kill);
    fixed.check(&mut client, "with the primaries dead for good");
}

fn servers_come_and_go(backups: &[Memcached]) {
    let (primaries, backups) = (started(3), backups.iter().collect::<Vec<_>>());
    let two = file(&[&primaries[0], &primaries[1]], &backups, 5);
    let three = file(&[&primaries[0], &primaries[1], &primaries[2]], &backups, 5);
    let magent = Magent::with_file(&two);
    let mut client = magent.client();
    let fixed = Fixed::store(&mut client);
    under_load(&magent, &fixed, |load| {
        measure_for(Duration::from_secs(1));
        for (text, servers) in [(&three, 3), (&two, 2)] {
            println!("{servers} primaries, {} backups", backups.len());
            change(&magent, text, load);
            fixed.check(&mut client, "after the change");
            // Past magent: each is where it belongs.
            for (at, server) in primaries.iter().enumerate().take(servers) {
                let own = fixed
                    .names
                    .iter()
                    .filter(|name| keys::home(name, servers) == at);
                let own: Vec<String> = own.cloned().collect();
                let there = get_all(&mut server.client(), &own);
                assert_eq!(
                    there.len(),
                    own.len(),
                    "of {} on {}",
                    own.len(),
                    server.name
                );
            }
        }
    });
    for server in primaries[..2].iter().chain(backups) {
        if magent.server(&server.name)["role"] == "backup" {
            verify(&magent, server);
        }
    }
}

#[test]
fn a_third_primary_comes_and_goes() {
    servers_come_and_go(&started(2));
}

#[test]
fn a_third_primary_comes_and_goes_without_backups() {
    servers_come_and_go(&[]);
}
