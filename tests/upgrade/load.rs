//! Clients that never stop asking.

use super::common::rng::Rng;
use super::common::{Client, wait_for};
use super::{Farm, pauses};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

const CLIENTS: usize = 64;

/// Changes of programs in the suite; `MAGENT_UPGRADES` asks for more.
const CHANGES: usize = 6;

/// What a client speaks.
#[derive(Clone, Copy)]
enum Speaks {
    Text,
    Meta,
    Binary,
}

/// One client with keys of its own: what it was told, it must find.
struct Asker {
    client: Client,
    speaks: Speaks,
    name: usize,
    rng: Rng,
    values: Vec<u64>,
    counter: u64,
}

impl Asker {
    fn new(client: Client, name: usize) -> Asker {
        let speaks = [Speaks::Text, Speaks::Meta, Speaks::Binary][name % 3];
        Asker {
            client,
            speaks,
            name,
            rng: Rng::new(name as u64),
            values: vec![0; 10],
            counter: 0,
        }
    }

    /// Several requests in one write, and all their answers.
    fn round(&mut self) -> u64 {
        let depth = self.rng.range(1, 30);
        let (mut asked, mut wanted) = (Vec::new(), Vec::new());
        for _ in 0..depth {
            let at = self.rng.below(self.values.len() as u64) as usize;
            match self.rng.below(4) {
                0 if self.counter > 0 => self.incr(&mut asked, &mut wanted),
                1 => {
                    self.values[at] += 1;
                    self.set(at, &mut asked, &mut wanted);
                }
                _ if self.values[at] > 0 => self.get(at, &mut asked, &mut wanted),
                _ => self.begin_counter(&mut asked, &mut wanted),
            }
        }
        // Cut anywhere.
        let cut = self.rng.below(asked.len() as u64 + 1) as usize;
        self.client.send(&asked[..cut]).send(&asked[cut..]);
        match self.speaks {
            Speaks::Binary => assert_eq!(without_cas(self.client.read_exact(wanted.len())), wanted),
            _ => _ = self.client.expect(wanted),
        }
        depth
    }

    fn key(&self, at: usize) -> String {
        format!("key{}-{at}", self.name)
    }

    /// Some are large.
    fn value(&self, at: usize) -> Vec<u8> {
        let len = if at == 0 { 30_000 } else { 20 };
        let text = format!("{}-{at}-{};", self.name, self.values[at]);
        text.repeat(len / text.len() + 1).into_bytes()
    }

    fn set(&self, at: usize, asked: &mut Vec<u8>, wanted: &mut Vec<u8>) {
        let (key, value) = (self.key(at), self.value(at));
        let mut line = |head: String, answer: &str| {
            asked.extend_from_slice(head.as_bytes());
            asked.extend_from_slice(&value);
            asked.extend_from_slice(b"\r\n");
            wanted.extend_from_slice(answer.as_bytes());
        };
        match self.speaks {
            Speaks::Text => line(format!("set {key} 0 0 {}\r\n", value.len()), "STORED\r\n"),
            Speaks::Meta => line(format!("ms {key} {} Oabc\r\n", value.len()), "HD Oabc\r\n"),
            Speaks::Binary => {
                asked.extend(binary(0x80, 0x01, &[0; 8], &key, &value));
                wanted.extend(binary(0x81, 0x01, b"", "", b""));
            }
        }
    }

    fn get(&self, at: usize, asked: &mut Vec<u8>, wanted: &mut Vec<u8>) {
        let (key, value) = (self.key(at), self.value(at));
        let (request, head, end) = match self.speaks {
            Speaks::Text => (
                format!("get {key}\r\n"),
                format!("VALUE {key} 0 {}\r\n", value.len()),
                "\r\nEND\r\n",
            ),
            Speaks::Meta => (
                format!("mg {key} v k\r\n"),
                format!("VA {} k{key}\r\n", value.len()),
                "\r\n",
            ),
            Speaks::Binary => {
                asked.extend(binary(0x80, 0x00, b"", &key, b""));
                wanted.extend(binary(0x81, 0x00, &[0; 4], "", &value));
                return;
            }
        };
        asked.extend_from_slice(request.as_bytes());
        wanted.extend_from_slice(head.as_bytes());
        wanted.extend_from_slice(&value);
        wanted.extend_from_slice(end.as_bytes());
    }

    fn begin_counter(&mut self, asked: &mut Vec<u8>, wanted: &mut Vec<u8>) {
        self.counter = 1;
        let key = self.key(99);
        match self.speaks {
            Speaks::Binary => {
                asked.extend(binary(0x80, 0x01, &[0; 8], &key, b"1"));
                wanted.extend(binary(0x81, 0x01, b"", "", b""));
            }
            _ => {
                asked.extend_from_slice(format!("set {key} 0 0 1\r\n1\r\n").as_bytes());
                wanted.extend_from_slice(b"STORED\r\n");
            }
        }
    }

    /// What is done twice or not at all shows in each number from then on.
    fn incr(&mut self, asked: &mut Vec<u8>, wanted: &mut Vec<u8>) {
        self.counter += 1;
        let (key, n) = (self.key(99), self.counter);
        match self.speaks {
            Speaks::Text => {
                asked.extend_from_slice(format!("incr {key} 1\r\n").as_bytes());
                wanted.extend_from_slice(format!("{n}\r\n").as_bytes());
            }
            Speaks::Meta => {
                asked.extend_from_slice(format!("ma {key} v\r\n").as_bytes());
                let len = n.to_string().len();
                wanted.extend_from_slice(format!("VA {len}\r\n{n}\r\n").as_bytes());
            }
            Speaks::Binary => {
                // By 1; no initial value: it must be there.
                let mut extras = [0xff; 20];
                extras[..8].copy_from_slice(&1u64.to_be_bytes());
                extras[8..16].copy_from_slice(&[0; 8]);
                asked.extend(binary(0x80, 0x05, &extras, &key, b""));
                wanted.extend(binary(0x81, 0x05, b"", "", &n.to_be_bytes()));
            }
        }
    }
}

/// Answers with their cas set to 0.
fn without_cas(mut answers: Vec<u8>) -> Vec<u8> {
    let mut at = 0;
    while let Some(header) = answers.get_mut(at..at + 24) {
        header[16..].fill(0);
        at += 24 + u32::from_be_bytes([header[8], header[9], header[10], header[11]]) as usize;
    }
    answers
}

/// A request or an answer. Its cas is 0, and not looked at.
fn binary(magic: u8, opcode: u8, extras: &[u8], key: &str, value: &[u8]) -> Vec<u8> {
    let total = (extras.len() + key.len() + value.len()) as u32;
    let mut bytes = vec![magic, opcode];
    bytes.extend_from_slice(&(key.len() as u16).to_be_bytes());
    bytes.extend_from_slice(&[extras.len() as u8, 0, 0, 0]);
    bytes.extend_from_slice(&total.to_be_bytes());
    bytes.extend_from_slice(&[0; 12]);
    bytes.extend_from_slice(extras);
    bytes.extend_from_slice(key.as_bytes());
    bytes.extend_from_slice(value);
    bytes
}

#[test]
fn clients_of_all_protocols_see_nothing_of_many_changes() {
    let changes =
        std::env::var("MAGENT_UPGRADES").map_or(CHANGES, |n| n.parse().expect("a number"));
    let farm = Farm::new(2, 1, &["-m", "64m"]);
    let (over, asked) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let askers: Vec<_> = (0..CLIENTS)
        .map(|name| {
            let client = match name % 2 {
                0 => farm.magent.client(),
                _ => Client::unix(&farm.magent.socket()),
            };
            let mut asker = Asker::new(client, name);
            let (over, asked) = (over.clone(), asked.clone());
            thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    asked.fetch_add(asker.round(), Ordering::Relaxed);
                }
            })
        })
        .collect();
    for _ in 0..changes {
        let before = asked.load(Ordering::Relaxed);
        farm.change();
        wait_for("requests under the other program", || {
            (asked.load(Ordering::Relaxed) > before + 1000).then_some(())
        });
    }
    over.store(true, Ordering::Relaxed);
    for asker in askers {
        asker.join().expect("a client that noticed nothing");
    }
    let stats = farm.magent.client().stats("stats proxy\r\n");
    let number = |name: &str| stats[name].parse::<u64>().expect("a number");
    assert_eq!(number("upgrades"), changes as u64);
    for name in ["server_errors", "failovers", "rejected_connections"] {
        assert_eq!(number(name), 0, "{name}");
    }
    // Counters go on.
    assert!(number("requests") >= asked.load(Ordering::Relaxed));
    let mut pauses = pauses(&farm.magent.log());
    assert_eq!(pauses.len(), changes);
    pauses.sort_by(f64::total_cmp);
    println!(
        "{changes} changes, {} requests; pauses: half {:.1} ms, longest {:.1} ms",
        asked.load(Ordering::Relaxed),
        pauses[changes / 2],
        pauses[changes - 1]
    );
    assert!(pauses[changes / 2] < 100.0, "{pauses:?}");
}
