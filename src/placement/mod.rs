//! Key → server: hashes, distributions, weights. Pure; nothing else knows where a key goes.
//!
//! ```text
//! key ─tag──▶ part of it ─hash──▶ u32 ─┬─ modulo: slots, each server as many as its weight
//!                                      └─ ketama: ring of points, the next one's server
//! ```
//!
//! There are magent 0.6's own rules and those of twemproxy 0.5. Both are checked against placements
//! that were observed on the originals (`tests/placement.rs`).

mod hash;
mod lanes;
mod ring;

pub use lanes::LANES;
use ring::Ring;

/// How a key becomes a number. `Magent` is DJB (with ketama MD5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Hash {
    Magent,
    OneAtATime,
    Md5,
    Crc16,
    Crc32,
    Crc32a,
    Fnv1_64,
    Fnv1a64,
    Fnv1_32,
    Fnv1a32,
    Hsieh,
    Murmur,
    Jenkins,
}

/// The hashes under the names that users give them.
const HASHES: [(&str, Hash); 13] = [
    ("magent", Hash::Magent),
    ("one_at_a_time", Hash::OneAtATime),
    ("md5", Hash::Md5),
    ("crc16", Hash::Crc16),
    ("crc32", Hash::Crc32),
    ("crc32a", Hash::Crc32a),
    ("fnv1_64", Hash::Fnv1_64),
    ("fnv1a_64", Hash::Fnv1a64),
    ("fnv1_32", Hash::Fnv1_32),
    ("fnv1a_32", Hash::Fnv1a32),
    ("hsieh", Hash::Hsieh),
    ("murmur", Hash::Murmur),
    ("jenkins", Hash::Jenkins),
];

impl Hash {
    /// All of them, in the order of the documentation.
    pub fn all() -> impl Iterator<Item = Hash> {
        HASHES.iter().map(|h| h.1)
    }

    /// The hash of that name (`fnv1a_64` …).
    pub fn named(name: &str) -> Option<Hash> {
        HASHES.iter().find(|h| h.0 == name).map(|h| h.1)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        HASHES.iter().find(|h| h.1 == self).map_or("", |h| h.0)
    }
}

/// How a number becomes a server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Distribution {
    /// magent's modulo, in the order of `-s`.
    Magent,
    /// magent's ketama (`-k`).
    MagentKetama,
    /// twemproxy's ketama.
    Ketama,
    /// twemproxy's modula.
    Modula,
    /// Any server.
    Random,
}

/// The distributions under the names that users give them.
const DISTRIBUTIONS: [(&str, Distribution); 5] = [
    ("magent", Distribution::Magent),
    ("magent-ketama", Distribution::MagentKetama),
    ("ketama", Distribution::Ketama),
    ("modula", Distribution::Modula),
    ("random", Distribution::Random),
];

impl Distribution {
    /// All of them, in the order of the documentation.
    pub fn all() -> impl Iterator<Item = Distribution> {
        DISTRIBUTIONS.iter().map(|d| d.1)
    }

    /// The distribution of that name (`ketama` …).
    pub fn named(name: &str) -> Option<Distribution> {
        DISTRIBUTIONS.iter().find(|d| d.0 == name).map(|d| d.1)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        DISTRIBUTIONS
            .iter()
            .find(|d| d.1 == self)
            .map_or("", |d| d.0)
    }

    /// True for twemproxy's, which name servers in their own way and sort them by name first.
    pub fn is_twemproxy(self) -> bool {
        matches!(
            self,
            Distribution::Ketama | Distribution::Modula | Distribution::Random
        )
    }

    /// True where keys are placed on a ring of points.
    fn is_ketama(self) -> bool {
        matches!(self, Distribution::Ketama | Distribution::MagentKetama)
    }
}

/// One server as placement sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FarmServer {
    /// What a ring hashes and what twemproxy's distributions sort by.
    pub hash_name: String,
    /// At least 1.
    pub weight: u32,
}

/// All that placement depends on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FarmSpec {
    /// In the order configured, which is the order of the numbers that [`Farm::place`] gives.
    pub servers: Vec<FarmServer>,
    /// Key → number.
    pub hash: Hash,
    /// Number → server.
    pub distribution: Distribution,
    /// Only the key's part between these two is hashed.
    pub hash_tag: Option<(u8, u8)>,
}

/// Steps of magent's ring for a server of average weight; each step makes four points.
const MAGENT_STEPS: f32 = 500.0;
/// Points of twemproxy's ring for a server of average weight.
const TWEMPROXY_POINTS: f32 = 160.0;

/// The servers and the rule by which keys go to them.
#[derive(Clone, Debug)]
pub struct Farm {
    spec: FarmSpec,
    /// Which servers are in it; all of them if none is live, since a key must go somewhere.
    live: Vec<bool>,
    table: Table,
    warnings: Vec<String>,
}

/// How numbers become servers, ready for lookups.
#[derive(Clone, Debug)]
enum Table {
    /// All keys go there: nothing to choose.
    One(u32),
    /// Every weight is 1: the number modulo the length.
    Equal(Vec<u32>),
    /// The number modulo `total`, then the first entry above it.
    Weighted { total: u32, ends: Vec<(u32, u32)> },
    /// Points, and the slots that magent falls back to for hash 0.
    Ring { ring: Ring, slots: Box<Table> },
}

impl Farm {
    /// Prepares `spec`. `live` tells which servers are in the ring (all without it); twemproxy
    /// gives each more points when fewer are.
    pub fn new(spec: FarmSpec, live: Option<&[bool]>) -> Farm {
        let count = spec.servers.len();
        let mut live: Vec<bool> = match live {
            Some(live) => (0..count).map(|i| live.get(i) == Some(&true)).collect(),
            None => vec![true; count],
        };
        if !live.contains(&true) {
            live.fill(true);
        }
        let mut farm = Farm {
            spec,
            live,
            table: Table::One(0),
            warnings: Vec::new(),
        };
        farm.table = farm.build();
        farm
    }

    /// Number of servers, in the ring or not.
    pub fn len(&self) -> usize {
        self.spec.servers.len()
    }

    /// True without servers; then [`Farm::place`] has no meaning and gives 0.
    pub fn is_empty(&self) -> bool {
        self.spec.servers.is_empty()
    }

    /// What it was made of.
    pub fn spec(&self) -> &FarmSpec {
        &self.spec
    }

    /// Which servers are in the ring, in the order configured.
    pub fn live(&self) -> &[bool] {
        &self.live
    }

    /// What the user should know: servers whose weight is too small for a single point.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Where `key` goes: the server's index in the order configured. `draw` is any number that
    /// changes from call to call (a counter will do); only [`Distribution::Random`] looks at it.
    pub fn place(&self, key: &[u8], draw: u32) -> usize {
        let hash = if self.needs_hash() { self.hash(key) } else { 0 };
        self.place_hashed(key, hash, draw)
    }

    /// True if [`Farm::place_hashed`] looks at the hash.
    #[inline]
    pub fn needs_hash(&self) -> bool {
        let is_random = self.spec.distribution == Distribution::Random;
        !matches!(self.table, Table::One(_)) && !is_random
    }

    /// [`Farm::place`] of a key whose [`Farm::hash`] is known.
    pub fn place_hashed(&self, key: &[u8], hash: u32, draw: u32) -> usize {
        match &self.table {
            Table::One(server) => *server as usize,
            _ if self.spec.distribution == Distribution::Random => self.random(draw),
            Table::Ring { ring, slots } => match hash {
                // magent's ketama said 0 for "no answer" and took modulo then.
                0 if self.spec.distribution == Distribution::MagentKetama => {
                    slots.slot(hash::hash(Hash::Magent, self.tagged(key)))
                }
                h => ring.server(h) as usize,
            },
            slots => slots.slot(hash),
        }
    }

    /// True if [`Farm::hash_all`] takes less time than to hash keys one after the other.
    #[inline]
    pub fn hashes_together(&self) -> bool {
        self.needs_hash() && self.rule() == Hash::Md5
    }

    /// [`Farm::hash`] of several keys; those at the end may be empty.
    pub fn hash_all(&self, keys: &[&[u8]; LANES]) -> [u32; LANES] {
        if keys[1].is_empty() {
            return [self.hash(keys[0]), 0, 0, 0];
        }
        let parts = keys.map(|key| self.tagged(key));
        let is_short = parts.iter().all(|part| part.len() <= lanes::LONGEST);
        match self.rule() {
            Hash::Md5 if is_short => lanes::md5_first(&parts),
            rule => parts.map(|part| hash::hash(rule, part)),
        }
    }

    /// The number that `key` is placed by, its hash tag respected.
    pub fn hash(&self, key: &[u8]) -> u32 {
        hash::hash(self.rule(), self.tagged(key))
    }

    /// What keys are hashed by.
    fn rule(&self) -> Hash {
        match self.spec.hash {
            Hash::Magent if self.spec.distribution.is_ketama() => Hash::Md5,
            rule => rule,
        }
    }

    /// The part of `key` that is hashed.
    fn tagged<'a>(&self, key: &'a [u8]) -> &'a [u8] {
        let between = |(open, close): (u8, u8)| {
            let start = key.iter().position(|&b| b == open)? + 1;
            let len = key[start..].iter().position(|&b| b == close)?;
            (len > 0).then(|| &key[start..start + len])
        };
        self.spec.hash_tag.and_then(between).unwrap_or(key)
    }

    /// One of the live servers; a draw is stirred so that a plain counter spreads well.
    fn random(&self, draw: u32) -> usize {
        let mut x = draw.wrapping_mul(0x9e37_79b9) ^ 0x2545_f491;
        x ^= x >> 15;
        x = x.wrapping_mul(0x85eb_ca6b);
        self.table.slot(x ^ (x >> 13))
    }

    /// The servers in the ring, in the order in which they are counted.
    fn order(&self) -> Vec<u32> {
        let mut order: Vec<u32> = (0..self.len() as u32).collect();
        order.retain(|&i| self.live[i as usize]);
        if self.spec.distribution.is_twemproxy() {
            let name = |i: &u32| self.spec.servers[*i as usize].hash_name.as_bytes();
            order.sort_by_key(|i| (name(i).len(), name(i).to_vec()));
        }
        order
    }

    fn build(&mut self) -> Table {
        let order = self.order();
        match order[..] {
            [] => return Table::One(0),
            [only] => return Table::One(only),
            _ => {}
        }
        // twemproxy's random knows no weights.
        let weigh = self.spec.distribution != Distribution::Random;
        let slots = Table::slots(&order, |i| if weigh { self.weight(i) } else { 1 });
        if !self.spec.distribution.is_ketama() {
            return slots;
        }
        let total: u32 = order
            .iter()
            .map(|&i| self.weight(i))
            .fold(0, u32::saturating_add);
        let mut points = Vec::new();
        for (rank, &server) in order.iter().enumerate() {
            let steps = steps(
                self.spec.distribution,
                self.weight(server),
                total,
                order.len(),
            );
            let FarmServer { hash_name, weight } = &self.spec.servers[server as usize];
            if steps == 0 {
                self.warnings.push(format!(
                    "{hash_name}: weight {weight} of {total} is too small for a point on the ring, no key goes there"
                ));
            }
            for step in 0..steps {
                let text = format!("{hash_name}-{step}");
                let four = hash::md5_points(text.as_bytes());
                points.extend(four.map(|p| (p, rank as u32)));
            }
        }
        // Equal points go to the one counted first, so ranks are sorted and then become servers.
        points.sort_unstable();
        points.dedup_by_key(|p| p.0);
        match Ring::new(points.iter().map(|&(p, rank)| (p, order[rank as usize]))) {
            Some(ring) => Table::Ring {
                ring,
                slots: Box::new(slots),
            },
            None => slots,
        }
    }

    fn weight(&self, server: u32) -> u32 {
        self.spec.servers[server as usize].weight.max(1)
    }
}

/// How many names of a server are hashed into four points each. Both originals compute in f32, and
/// where that falls just below a whole number a step is lost: magent must lose it too.
fn steps(distribution: Distribution, weight: u32, total: u32, live: usize) -> u32 {
    let share = weight as f32 / total as f32;
    if distribution == Distribution::MagentKetama {
        return (share * MAGENT_STEPS * live as f32).floor() as u32;
    }
    let steps = share * TWEMPROXY_POINTS / 4.0 * live as f32;
    ((steps as f64 + 0.000_000_000_1) as f32).floor() as u32
}

impl Table {
    fn slots(order: &[u32], weight: impl Fn(u32) -> u32) -> Table {
        if order.iter().all(|&i| weight(i) == 1) {
            return Table::Equal(order.to_vec());
        }
        let mut total = 0u32;
        let mut ends = Vec::with_capacity(order.len());
        for &i in order {
            total = total.saturating_add(weight(i));
            ends.push((total, i));
        }
        Table::Weighted { total, ends }
    }

    /// The server whose slot `hash` falls into.
    fn slot(&self, hash: u32) -> usize {
        match self {
            Table::One(server) => *server as usize,
            Table::Equal(servers) => servers[hash as usize % servers.len()] as usize,
            Table::Weighted { total, ends } => {
                let slot = hash % total;
                ends[ends.partition_point(|e| e.0 <= slot)].1 as usize
            }
            Table::Ring { slots, .. } => slots.slot(hash),
        }
    }
}

#[cfg(test)]
mod tests;
