//! Random requests on few keys, each pipeline sent to a bare memcached and through magent: the
//! answers must be the same bytes. Only cas numbers differ, and the order of one multi-get's values.
//!
//! A failure prints its seed; `MAGENT_SEED=… cargo test --test differential` starts from it.

mod common;
#[path = "differential/normal.rs"]
mod normal;
#[path = "differential/requests.rs"]
mod requests;

use common::{Client, Magent, Memcached, show, wait_for};
use normal::{binary, text};
use requests::{Dialect, KEYS, Kinds, Rng, Tokens};
use std::time::{Duration, Instant};

/// Pipelines of one test.
const ROUNDS: usize = 150;

/// Deepest pipeline.
const DEPTH: usize = 12;

/// Pipelines are sent for no longer than this, however slow the machine is.
const LONGEST: Duration = Duration::from_millis(2500);

/// A bare memcached, and a farm of two primaries and a backup behind magent.
struct Pair {
    bare: Memcached,
    servers: Vec<Memcached>,
    magent: Magent,
    rng: Rng,
    /// Cas tokens differ on purpose since a primary was lost.
    compare_cas: bool,
    /// Keys are placed by modulo, and no primary was lost.
    compare_state: bool,
    /// What may be asked.
    kinds: Kinds,
    end: Instant,
}

/// A connection to each of them.
struct Clients {
    bare: Client,
    proxied: Client,
}

fn seed() -> u64 {
    let chosen = std::env::var("MAGENT_SEED").ok();
    chosen.and_then(|s| s.parse().ok()).unwrap_or(20_111)
}

/// Bytes as a person can read them: long runs of one byte are counted.
fn short(bytes: &[u8]) -> String {
    let runs = bytes.chunk_by(|a, b| a == b);
    let one = |run: &[u8]| match run.len() {
        0..100 => run.escape_ascii().to_string(),
        n => format!("({n} of {})", run[0].escape_ascii()),
    };
    runs.map(one).collect()
}

impl Pair {
    fn start(options: &[&str]) -> Pair {
        let servers: Vec<Memcached> = (0..3).map(|_| Memcached::start()).collect();
        let names: Vec<&str> = servers.iter().map(|s| s.name.as_str()).collect();
        Pair {
            bare: Memcached::start(),
            magent: Magent::farm(&names[..2], &names[2..], options),
            servers,
            rng: Rng::new(seed()),
            compare_cas: true,
            compare_state: true,
            kinds: Kinds {
                flush: true,
                vivify: true,
            },
            end: Instant::now() + LONGEST,
        }
    }

    fn clients(&self) -> Clients {
        Clients {
            bare: self.bare.client(),
            proxied: self.magent.client(),
        }
    }

    /// The cas number of each key, here and there.
    fn tokens(&self, c: &mut Clients) -> (Tokens, Tokens) {
        let ask = |client: &mut Client| {
            KEYS.map(|key| {
                let line = client.ask_line(format!("mg {key} c\r\n"));
                let token = line.strip_prefix("HD c").and_then(|n| n.parse().ok());
                token.unwrap_or(0)
            })
        };
        (ask(&mut c.bare), ask(&mut c.proxied))
    }

    /// One pipeline to both; `disturb` runs while it is under way.
    fn round(
        &mut self,
        c: &mut Clients,
        dialect: Dialect,
        depth: usize,
        disturb: impl FnOnce(&mut Vec<Memcached>),
    ) {
        let seed = self.rng.state();
        let (bare, proxied) = match self.compare_cas {
            true => {
                let mut text = self.clients();
                self.tokens(&mut text)
            }
            false => (Tokens::default(), Tokens::default()),
        };
        let depth = 1 + self.rng.below(depth);
        let mut twin = self.rng.clone();
        let asked = requests::pipeline(&mut self.rng, dialect, depth, &bare, self.kinds);
        let other = requests::pipeline(&mut twin, dialect, depth, &proxied, self.kinds);
        let end = dialect.end();
        c.bare.send([&asked[..], end.0].concat());
        c.proxied.send([&other[..], end.0].concat());
        disturb(&mut self.servers);
        let read = |client: &mut Client| {
            let mut all = client.read_until(end.1);
            all.truncate(all.len() - end.1.len());
            match dialect {
                Dialect::Text => text(&all),
                Dialect::Binary => binary(&all),
            }
        };
        let (wanted, got) = (read(&mut c.bare), read(&mut c.proxied));
        assert!(
            wanted == got,
            "MAGENT_SEED={seed} {dialect:?}\n   asked {}\n  wanted {}\n     got {}",
            short(&other),
            short(&wanted),
            short(&got)
        );
        if self.compare_state {
            self.primaries_agree(seed, &other);
        }
    }

    /// The primaries hold what the bare memcached holds, also after requests without answers.
    fn primaries_agree(&self, seed: u64, asked: &[u8]) {
        let look = |server: &Memcached, key: &str| {
            server
                .client()
                .send(format!("mg {key} f v\r\n"))
                .read_until_quiet()
        };
        for key in KEYS {
            let wanted = look(&self.bare, key);
            let got = look(&self.servers[common::keys::home(key, 2)], key);
            assert!(
                wanted == got,
                "MAGENT_SEED={seed} {key}\n   asked {}\n  wanted {}\n     got {}",
                short(asked),
                short(&wanted),
                short(&got)
            );
        }
    }

    fn rounds(&mut self, c: &mut [(Dialect, Clients); 2], rounds: usize, depth: usize) {
        for _ in 0..rounds {
            if Instant::now() > self.end {
                return;
            }
            let (dialect, clients) = &mut c[self.rng.below(2)];
            self.round(clients, *dialect, depth, |_| {});
        }
    }

    fn both(&self) -> [(Dialect, Clients); 2] {
        [Dialect::Text, Dialect::Binary].map(|d| (d, self.clients()))
    }

    /// The backup was told everything: it holds what the primaries hold.
    fn backup_agrees(&self) {
        let backup = &self.servers[2];
        for key in KEYS {
            wait_for(&format!("the same {key} on primary and backup"), || {
                let home = &self.servers[common::keys::home(key, 2)];
                let (wanted, got) = (home.value(key), backup.value(key));
                if wanted != got {
                    let show = |v: Option<Vec<u8>>| v.map_or("nothing".into(), |v| show(&v));
                    eprintln!("{key}: {} there, {} here", show(wanted), show(got));
                    return None;
                }
                Some(())
            });
        }
    }
}

#[test]
fn a_fresh_farm_answers_like_one_memcached() {
    let mut pair = Pair::start(&[]);
    pair.kinds.vivify = false;
    let mut clients = pair.both();
    pair.rounds(&mut clients, ROUNDS, DEPTH);
    pair.backup_agrees();
}

#[test]
fn a_farm_that_is_not_warming_answers_like_one_memcached() {
    let mut pair = Pair::start(&["--warm", "0"]);
    let mut clients = pair.both();
    pair.rounds(&mut clients, ROUNDS, DEPTH);
}

#[test]
fn several_links_to_a_server_answer_like_one_memcached() {
    let mut pair = Pair::start(&["-i", "3", "-k"]);
    pair.compare_state = false;
    let mut clients = pair.both();
    pair.rounds(&mut clients, ROUNDS, DEPTH);
}

#[test]
fn a_primary_that_dies_and_comes_back_empty_is_not_felt() {
    let mut pair = Pair::start(&["--retry", "20"]);
    pair.kinds.vivify = false;
    let mut clients = pair.both();
    for life in 0..3 {
        pair.compare_cas = life == 0;
        pair.rounds(&mut clients, ROUNDS / 6, DEPTH);
        // From here on a token may be of the other farm: none is used.
        (pair.compare_cas, pair.compare_state) = (false, false);
        pair.kinds.flush = false;
        let dying = life % 2;
        let (dialect, c) = &mut clients[pair.rng.below(2)];
        pair.round(c, *dialect, DEPTH, |servers| servers[dying].kill());
        pair.rounds(&mut clients, ROUNDS / 6, DEPTH);
        pair.servers[dying].restart();
        let name = pair.servers[dying].name.clone();
        pair.magent.wait_state(&name, "warming");
        // A write behind a request that waits for its value drops that value on purpose: so
        // what the primary lacks is asked for one request at a time, then the rest is there.
        pair.rounds(&mut clients, ROUNDS / 6, 1);
        for key in KEYS {
            clients[0].1.proxied.get(key);
        }
    }
    pair.backup_agrees();
}
