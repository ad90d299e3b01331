//! Real memcacheds killed, restarted, stopped and woken at random under 16 clients.
//!
//! Every value says whose it is, which key's, and its number in that key's life, and is filled up
//! so that a torn one shows. One failure at a time: the next begins when all servers are trusted
//! and have been told what they missed. Then nothing foreign, torn, out of order, or older than
//! acknowledged may ever be read. Misses and errors are allowed: it is a cache, and servers die.
//!
//! `MAGENT_CHAOS_SECONDS` says how long, `MAGENT_CHAOS_SEED` repeats a run's choices (the kernel
//! makes its own).

mod common;

use common::farm::are_back;
use common::rng::Rng;
use common::time::look_within;
use common::{Client, Magent, Memcached, pause_of, show};
use std::fmt::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const CLIENTS: usize = 16;
const KEYS: usize = 6;
const PRIMARIES: usize = 3;
const SECONDS: u64 = 20;

/// On a busy machine a memcached may take seconds to start, and the wait between two probes grows
/// with the absence, to 30 s.
const RECOVERY: Duration = Duration::from_secs(45);

/// What is known of a key. A delete has a number too; no value ever bears it.
#[derive(Default)]
struct Known {
    /// The last number that was sent.
    sent: AtomicU64,
    /// The last number that was acknowledged.
    acknowledged: AtomicU64,
}

struct World {
    known: Vec<Known>,
    over: AtomicBool,
    /// Keys are deleted. Not where several magents are: what one deletes at a primary that is warming, others may
    /// read for a moment (docs/operations.md).
    deletes: bool,
    answers: AtomicU64,
    hits: AtomicU64,
    errors: AtomicU64,
}

fn key_name(key: usize) -> String {
    format!("c{}k{}", key / KEYS, key % KEYS)
}

/// `key number filling`: the filling follows from both.
fn value(key: usize, number: u64) -> Vec<u8> {
    let mut random = Rng::new((key as u64 + 1) << 32 | number);
    let size = match random.below(20) {
        0 => 20_000,
        n => 10 * n as usize,
    };
    let mut text = format!("{} {number} ", key_name(key));
    while text.len() < size {
        let _ = write!(text, "{:x}", random.below(u64::MAX));
    }
    text.into_bytes()
}

/// One of the clients. It alone writes its keys; it reads everybody's.
struct Worker<'a> {
    number: usize,
    world: &'a World,
    client: Client,
    random: Rng,
    /// The highest number that it has read of each key.
    seen: Vec<u64>,
    counter: u64,
}

impl Worker<'_> {
    fn run(&mut self) {
        while !self.world.over.load(SeqCst) {
            let own = self.number * KEYS + self.random.below(KEYS as u64) as usize;
            let any = self.random.below((CLIENTS * KEYS) as u64) as usize;
            match self.random.below(12) {
                0..=2 => self.set(own),
                3 if self.world.deletes => self.delete(own),
                3 => self.set(own),
                4 => self.set_and_get(own),
                5 => self.count(),
                6..=7 => self.get(&[own]),
                8..=10 => self.get(&[any]),
                _ => {
                    let keys: Vec<usize> =
                        (0..10).map(|i| (any + i * 7) % (CLIENTS * KEYS)).collect();
                    self.get(&keys);
                }
            }
        }
    }

    fn line(&mut self) -> String {
        let line = String::from_utf8_lossy(&self.client.read_line())
            .trim_end()
            .to_string();
        self.world.answers.fetch_add(1, SeqCst);
        if line.starts_with("SERVER_ERROR 127.0.0.1:") {
            self.world.errors.fetch_add(1, SeqCst);
            return "error".into();
        }
        line
    }

    fn next(&self, key: usize) -> u64 {
        self.world.known[key].sent.fetch_add(1, SeqCst) + 1
    }

    fn acknowledged(&self, key: usize, number: u64) {
        self.world.known[key].acknowledged.store(number, SeqCst);
    }

    fn set_line(key: usize, number: u64) -> Vec<u8> {
        let value = value(key, number);
        let head = format!("set {} {} 0 {}\r\n", key_name(key), key, value.len());
        [head.as_bytes(), &value, b"\r\n"].concat()
    }

    fn set(&mut self, key: usize) {
        let number = self.next(key);
        self.client.send(Self::set_line(key, number));
        self.stored(key, number);
    }

    fn stored(&mut self, key: usize, number: u64) {
        match &self.line()[..] {
            "STORED" => self.acknowledged(key, number),
            "error" => {}
            line => panic!("set {} was answered {line:?}", key_name(key)),
        }
    }

    fn delete(&mut self, key: usize) {
        let number = self.next(key);
        self.client.send(format!("delete {}\r\n", key_name(key)));
        match &self.line()[..] {
            "DELETED" | "NOT_FOUND" => self.acknowledged(key, number),
            "error" => {}
            line => panic!("delete {} was answered {line:?}", key_name(key)),
        }
    }

    /// Both in one write.
    fn set_and_get(&mut self, key: usize) {
        let number = self.next(key);
        let get = format!("get {}\r\n", key_name(key));
        let both = [&Self::set_line(key, number), get.as_bytes()].concat();
        self.client.send(both);
        let begin = self.floor(&[key]);
        self.stored(key, number);
        self.values(&[key], &begin);
    }

    /// A number that is acknowledged is never given again.
    fn count(&mut self) {
        let name = format!("n{}", self.number);
        self.client.send(format!("incr {name} 1\r\n"));
        match &self.line()[..] {
            "error" => {}
            "NOT_FOUND" => {
                self.counter += 1000;
                let text = self.counter.to_string();
                self.client
                    .send(format!("set {name} 0 0 {}\r\n{text}\r\n", text.len()));
                let line = self.line();
                assert!(line == "STORED" || line == "error", "{line:?}");
            }
            line => {
                let n: u64 = line.parse().unwrap_or_else(|_| panic!("incr: {line:?}"));
                assert!(n > self.counter, "{name} went from {} to {n}", self.counter);
                self.counter = n;
            }
        }
    }

    /// What must at least be read of each key from now on.
    fn floor(&self, keys: &[usize]) -> Vec<u64> {
        let known = |k: &usize| {
            self.world.known[*k]
                .acknowledged
                .load(SeqCst)
                .max(self.seen[*k])
        };
        keys.iter().map(known).collect()
    }

    fn get(&mut self, keys: &[usize]) {
        let floor = self.floor(keys);
        let names: Vec<String> = keys.iter().map(|k| key_name(*k)).collect();
        self.client.send(format!("get {}\r\n", names.join(" ")));
        self.values(keys, &floor);
    }

    fn values(&mut self, keys: &[usize], floor: &[u64]) {
        let mut left: Vec<usize> = (0..keys.len()).collect();
        loop {
            let line = self.line();
            let words: Vec<&str> = line.split(' ').collect();
            let (name, flags, size) = match words[..] {
                ["END"] => return,
                ["error"] if left.len() == keys.len() => return,
                ["VALUE", name, flags, size] => (name, flags, size),
                _ => panic!("a get was answered {line:?}"),
            };
            let at = left.iter().position(|i| key_name(keys[*i]) == name);
            let i = left.remove(at.unwrap_or_else(|| panic!("{name} was not asked for")));
            let data = self
                .client
                .read_exact(size.parse::<usize>().expect("a size") + 2);
            self.check(keys[i], flags, &data[..data.len() - 2], floor[i]);
        }
    }

    fn check(&mut self, key: usize, flags: &str, data: &[u8], floor: u64) {
        let text = String::from_utf8_lossy(&data[..data.len().min(40)]).into_owned();
        let number: u64 = text
            .split(' ')
            .nth(1)
            .and_then(|n| n.parse().ok())
            .unwrap_or_else(|| panic!("{}: torn: {}", key_name(key), show(data)));
        assert!(
            data == value(key, number),
            "{}: foreign or torn: {}",
            key_name(key),
            show(data)
        );
        assert_eq!(flags, key.to_string());
        assert!(
            number >= floor,
            "{}: read {number} after {floor}",
            key_name(key)
        );
        let sent = self.world.known[key].sent.load(SeqCst);
        assert!(
            number <= sent,
            "{}: read {number} before it was sent",
            key_name(key)
        );
        self.seen[key] = number;
        self.world.hits.fetch_add(1, SeqCst);
    }
}

/// Ends the clients also when the other side panics.
struct Over<'a>(&'a World);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, SeqCst);
    }
}

/// All servers are trusted and were told what they missed, by each magent, and nobody keeps one away.
fn wait_healthy(magents: &[Magent], names: &[&str]) {
    for magent in magents {
        let mut client = Client::unix(&magent.socket());
        let is_well = |client: &mut Client| {
            let all = client.stats("stats servers\r\n");
            let is_away = |name: &&str| all.contains_key(&format!("{name}:kept_away_by"));
            !names.iter().any(is_away) && are_back(client, names)
        };
        let well = look_within(RECOVERY, || is_well(&mut client).then_some(()));
        if well.is_none() {
            let all = client.stats("stats servers\r\n");
            panic!("not all servers are well: {all:#?}");
        }
    }
}

/// One failure from its begin to its end; what it was.
fn fail_once(servers: &mut [Memcached], random: &mut Rng) -> String {
    let i = random.below(servers.len() as u64) as usize;
    let pause = |random: &mut Rng, most| pause_of(Duration::from_millis(random.below(most)));
    match random.below(4) {
        0 => {
            servers[i].restart();
            format!("{i} restarted")
        }
        1 => {
            servers[i].kill();
            pause(random, 600);
            servers[i].restart();
            format!("{i} away")
        }
        n => {
            servers[i].stop();
            // Shorter than a timeout, or long enough to be found out.
            pause(random, if n == 2 { 200 } else { 1500 });
            servers[i].cont();
            format!("{i} stopped")
        }
    }
}

fn environment(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn nothing_foreign_torn_out_of_order_or_old() {
    chaos(1);
}

/// Three processes on one port: what one acknowledged is read through all.
#[test]
fn nor_through_several_processes_on_one_port() {
    chaos(3);
}

fn chaos(processes: usize) {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("a time");
    let seed = environment("MAGENT_CHAOS_SEED").unwrap_or(now.as_nanos() as u64);
    let seconds = environment("MAGENT_CHAOS_SECONDS").unwrap_or(SECONDS);
    println!("MAGENT_CHAOS_SEED={seed}, magents: {processes}");
    let mut random = Rng::new(seed);
    let mut servers: Vec<Memcached> = (0..PRIMARIES + 2).map(|_| Memcached::start()).collect();
    let names: Vec<String> = servers.iter().map(|s| s.name.clone()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let links = ["1", "3"][random.below(2) as usize];
    let warm = ["1", "3600"][random.below(2) as usize];
    println!("-i {links} --warm {warm}");
    let options = [
        "--timeout",
        "200",
        "--connect-timeout",
        "200",
        "--retry",
        "20",
        "-i",
        links,
        "--warm",
        warm,
    ];
    let mut all: Vec<&str> = Vec::new();
    names[..PRIMARIES]
        .iter()
        .for_each(|p| all.extend(["-s", *p]));
    names[PRIMARIES..]
        .iter()
        .for_each(|b| all.extend(["-b", *b]));
    all.extend(options);
    if processes > 1 {
        all.push("--reuseport");
    }
    let mut magents = vec![Magent::start(&all)];
    for _ in 1..processes {
        magents.push(magents[0].beside(&all));
    }
    let world = World {
        known: (0..CLIENTS * KEYS).map(|_| Known::default()).collect(),
        over: AtomicBool::new(false),
        deletes: processes == 1,
        answers: AtomicU64::new(0),
        hits: AtomicU64::new(0),
        errors: AtomicU64::new(0),
    };
    let mut story = Vec::new();
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            let mut worker = Worker {
                number,
                world: &world,
                client: magents[0].client(),
                random: Rng::new(seed.wrapping_add(1 + number as u64)),
                seen: vec![0; CLIENTS * KEYS],
                counter: 0,
            };
            scope.spawn(move || {
                let _over = Over(worker.world);
                worker.run();
            });
        }
        let _over = Over(&world);
        let end = Instant::now() + Duration::from_secs(seconds);
        let begin = Instant::now();
        while Instant::now() < end && !world.over.load(SeqCst) {
            wait_healthy(&magents, &names);
            // So long all is well.
            pause_of(Duration::from_millis(random.below(100)));
            let what = fail_once(&mut servers, &mut random);
            println!("{:7.3} {what}", begin.elapsed().as_secs_f64());
            story.push(what);
        }
        wait_healthy(&magents, &names);
    });
    let (answers, hits) = (world.answers.load(SeqCst), world.hits.load(SeqCst));
    let errors = world.errors.load(SeqCst);
    println!(
        "{} failures, {answers} answers, {hits} hits, {errors} errors",
        story.len()
    );
    assert!(
        answers > 1000 && hits > 100,
        "{answers} answers, {hits} hits"
    );
}
