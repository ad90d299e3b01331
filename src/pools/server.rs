//! One server, whatever pools name it: its address with its links, its health and its journal.

use super::awaited::Awaited;
use super::board::Board;
use super::figures::Verified;
use super::name::Name;
use super::outages::Outages;
use super::quiet::Quiet;
use super::refill::Progress;
use super::{NOBODY, ServerId};
use crate::config::{Address, Endpoint, Farms, PoolConfig, ServerSpec};
use crate::health::{Health, Policy, Probing};
use crate::journal::Journal;
use crate::placement::{Distribution, Farm, LANES};
use crate::stats::{Latency, ServerStats};
use crate::time::{Time, nanos};
use std::net::SocketAddr;
use std::time::Duration;

/// A server.
#[derive(Debug)]
pub struct Server {
    /// As configured, under the name that it has where it is named first.
    pub spec: ServerSpec,
    /// Its name in the log, with its pools and what it is to them.
    pub title: String,
    /// Its host's, if that is a name.
    pub name: Option<Name>,
    /// Pools that name it as a primary.
    pub primary_of: Vec<u32>,
    /// Pools that name it as a backup.
    pub backup_of: Vec<u32>,
    /// A key always travels on the same one.
    pub links: Vec<usize>,
    /// Up, warming, down.
    pub health: Health,
    /// What it missed.
    pub journal: Journal,
    /// It missed something while it was away.
    pub missed: bool,
    /// `flush_all`s of clients of which it is one of the primaries: until they are done nothing is
    /// copied to it.
    pub flushes: usize,
    /// Parts of such that were late, and that it still owes an answer to.
    pub late_flushes: usize,
    /// A flush that it missed is on its way to it.
    pub flushing: bool,
    /// When nothing is copied from or to it.
    pub quiet: Quiet,
    /// All pools that name it put its keys to the same partners, so its keys may be listed.
    pub same_partners: bool,
    /// It does not tell its keys.
    pub no_metadump: bool,
    /// The log says that it is not refilled, or nobody from it.
    pub is_told: bool,
    /// What came of its last refill.
    pub refilled: Option<Progress>,
    /// What came of its last comparison with its partners.
    pub verified: Option<Box<Verified>>,
    /// On the list of servers whose journal is to be sent.
    pub listed: bool,
    /// It knows meta commands (1.6); as of the last handshake.
    pub meta: bool,
    /// So do lists that are written back by compare-and-set (1.6.13).
    pub holds_marks: bool,
    /// What is known of the marks on it.
    pub board: Board,
    /// Until then it may be asked whatever its backups' lists say: they said so lately, or it has none.
    pub free_until: Time,
    /// Its pairs: as the primary; those whose list it has; as a backup that may miss mirrors.
    pub pairs: Vec<usize>,
    pub stands_in_for: Vec<usize>,
    pub follows: Vec<usize>,
    /// Links that were given up with writes unanswered and are not at their end.
    pub given_up: usize,
    /// Requests that were lost here and that `settle` has not decided on.
    pub losing: usize,
    /// TCP keepalive on its links.
    pub keepalive: bool,
    /// A connect may take so long, in nanoseconds.
    pub connect_timeout: u64,
    /// An answer of the handshake may take so long, in nanoseconds.
    pub timeout: u64,
    /// Timeouts in a row until it counts as down.
    pub failure_limit: u32,
    /// In a ring, of today or before, of a pool whose keys move.
    pub moves: bool,
    /// No longer configured.
    pub removed: Option<Removal>,
    /// Its figures.
    pub stats: ServerStats,
    /// How long its answers took.
    pub latency: Latency,
    /// When it was away lately.
    pub outages: Outages,
    /// When it last left a ring, in seconds since the epoch; 0: never.
    pub ejected_at: u64,
}

/// A server that is no longer configured finishes what it owes.
#[derive(Clone, Copy, Debug)]
pub struct Removal {
    /// It is kept until then for clients of its pools, which finish too.
    pub keep: Time,
    /// It is given up then, whatever it owes.
    pub until: Time,
}

impl Server {
    /// Where the next link of it may be opened when so many addresses were tried in vain.
    pub fn candidate(&self, tried: usize) -> Option<Address> {
        match (&self.spec.endpoint, &self.name) {
            (Endpoint::Fixed(address), _) => (tried == 0).then(|| address.clone()),
            (Endpoint::Name(..), name) => name.as_ref()?.candidate(tried).map(Address::Tcp),
        }
    }

    /// True if it may execute what other magents sent it before it went away: they may have died since, so that
    /// nobody knows of it. `is_new`: this magent has not reached it before.
    pub fn may_run_others_writes(&self, is_new: bool) -> bool {
        let is_paired = !self.pairs.is_empty() || !self.follows.is_empty();
        is_paired && (is_new || !self.board.beacon.others().is_empty())
    }

    /// The address it is at, as far as that is known; `None` for a socket's path.
    pub fn address(&self) -> Option<SocketAddr> {
        match (&self.spec.endpoint, &self.name) {
            (Endpoint::Fixed(Address::Tcp(address)), _) => Some(*address),
            (_, name) => name.as_ref()?.in_use(),
        }
    }

    /// True if a pool names it.
    pub fn is_named(&self) -> bool {
        !self.primary_of.is_empty() || !self.backup_of.is_empty()
    }

    /// The link that a key of this hash travels on.
    #[inline]
    pub fn link_for(&self, hash: u64) -> usize {
        match self.links.len() {
            1 => self.links[0],
            n => self.links[(hash >> 7) as usize % n],
        }
    }
}

/// What decides about a server that these pools name. Where they differ: the most patient of them.
pub fn policy<'a>(pools: impl Iterator<Item = &'a PoolConfig>, probing: Probing) -> Option<Policy> {
    pools
        .map(|config| Policy {
            timeout: nanos(config.timeout),
            failure_limit: config.failure_limit,
            retry: nanos(config.retry),
            probing,
            warm: nanos(config.warm),
            eject: config.auto_eject,
        })
        .reduce(|a, b| Policy {
            timeout: a.timeout.max(b.timeout),
            failure_limit: a.failure_limit.max(b.failure_limit),
            retry: a.retry.min(b.retry),
            probing,
            warm: a.warm.max(b.warm),
            eject: a.eject && b.eject,
        })
}

/// Each of these servers once, by number. A farm names one several times by its weight.
pub fn distinct(ids: &[ServerId]) -> Vec<ServerId> {
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// One pool: its settings and where its keys go.
#[derive(Debug)]
pub struct Pool {
    /// As configured.
    pub config: PoolConfig,
    /// See [`Pool::span`] and [`Pool::timeout_ms`]: each request needs them.
    times: (u64, u32),
    /// A number that pools have in common which put the same keys to the same servers.
    pub rings: u64,
    /// Its primaries, all of them.
    pub primaries: Farm,
    /// Their servers, in the farm's order.
    pub primary_ids: Vec<ServerId>,
    /// Of the primaries those that are up, while others are ejected.
    pub ring: Option<Farm>,
    /// A server came or went: the ring is to be made anew.
    pub ring_is_stale: bool,
    /// Its backups, if it has some.
    pub backups: Option<Farm>,
    /// Their servers, in the farm's order.
    pub backup_ids: Vec<ServerId>,
    /// Changes with the ring.
    pub ring_number: u8,
    /// Where its keys were until the last reload that changed that, while they move.
    pub before: Option<Box<Before>>,
    /// No longer configured; its clients finish what they are owed.
    pub removed: bool,
    /// Lines that requests with several keys were split into.
    pub fragments: u64,
    /// Servers that left its ring.
    pub ejections: u64,
}

/// The ring that a pool had before a reload, while keys move from there.
#[derive(Debug)]
pub struct Before {
    farms: Farms,
    primary_ids: Vec<ServerId>,
    backup_ids: Vec<ServerId>,
    /// When that reload was.
    pub since: Time,
    /// Every request that was asked before has its answer by then, or was lost.
    pub ordered_at: Time,
    /// What one answer may take there, or could, in milliseconds.
    pub timeout: u32,
    /// Keys that were fetched from there for clients.
    pub fetched: u64,
    /// Keys that were copied from there in the background.
    pub copied: u64,
    /// They are being copied, or will be.
    pub copying: bool,
    /// Its servers that may be listed, each with the pools that named it: a key tells nothing of its pool.
    pub listable: Vec<(ServerId, Vec<u32>)>,
    /// Keys that were deleted there, since they were changed.
    pub deleted: u64,
    /// Other magents that have this ring.
    pub rolling: Awaited,
}

impl Before {
    /// Primary and backup of a key; [`NOBODY`] where it has none.
    pub fn place(&self, key: &[u8]) -> [ServerId; 2] {
        let primary = self.primary_ids[self.farms.primaries.place(key, 0)];
        let place = |farm: &Farm| farm.place(key, 0);
        let backup = backup_of(&self.farms.backups, &self.backup_ids, primary, place);
        [primary, backup]
    }

    /// When the move is over that takes `warm`: not before all answers are there that may come from here, and
    /// never while keys are copied.
    pub fn ends_at(&self, warm: Duration) -> Time {
        match self.copying {
            true => Time::NEVER,
            false => self.since.plus(nanos(warm)).max(self.copied_at()),
        }
    }

    /// When keys may be copied: all has its answer that this magent asked before, and that others did.
    pub fn copied_at(&self) -> Time {
        self.ordered_at.max(self.rolling.begins_at)
    }

    /// True if keys of this pool have other primaries since, and other backups.
    pub fn differs(&self, pool: &Pool) -> (bool, bool) {
        let is_same = |a: &Farm, b: &Farm| a.spec() == b.spec();
        let primaries =
            self.primary_ids == pool.primary_ids && is_same(&self.farms.primaries, &pool.primaries);
        let backups = self.backup_ids == pool.backup_ids
            && match (&self.farms.backups, &pool.backups) {
                (Some(a), Some(b)) => is_same(a, b),
                (a, b) => a.is_none() && b.is_none(),
            };
        // Where a backup would be its key's primary, the next one is the backup.
        let shares = |primaries: &[ServerId], backups: &[ServerId]| {
            backups.iter().any(|id| primaries.contains(id))
        };
        let moves_backups = !primaries
            && (shares(&self.primary_ids, &self.backup_ids)
                || shares(&pool.primary_ids, &pool.backup_ids));
        (!primaries, !backups || moves_backups)
    }

    /// All its servers, those several times that have several places.
    pub fn servers(&self) -> impl Iterator<Item = ServerId> {
        self.primary_ids.iter().chain(&self.backup_ids).copied()
    }
}

/// Where a key goes.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Who is asked first.
    pub primary: ServerId,
    /// Who holds its copy; [`NOBODY`] if it has none.
    pub backup: ServerId,
    /// Where it belongs when that is out of the ring, or the ring moved it: else [`NOBODY`].
    pub full_ring: ServerId,
    /// Chooses the link.
    pub hash: u64,
}

/// FNV-1a, 64 bits: chooses a key's link and tells keys apart in tables that only have to be
/// right almost always. (Fowler, Noll, Vo.)
#[inline]
pub fn fnv(key: &[u8]) -> u64 {
    key.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| {
        (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

impl Pool {
    /// A pool whose servers are still to be found.
    pub fn new(config: PoolConfig, farms: Farms) -> Pool {
        Pool {
            primaries: farms.primaries,
            primary_ids: Vec::new(),
            ring: None,
            ring_is_stale: config.auto_eject,
            backups: farms.backups,
            backup_ids: Vec::new(),
            ring_number: 0,
            before: None,
            removed: false,
            fragments: 0,
            ejections: 0,
            times: times(&config),
            rings: rings(&config),
            config,
        }
    }

    /// Other settings and farms; the servers are still to be found.
    /// Returns true if keys move.
    pub fn configure(&mut self, config: PoolConfig, farms: Farms, now: Time) -> bool {
        let moves = !self.has_ring_of(&config) && self.moves_to(&config);
        let timeout = self.timeout_ms();
        let spans = self.span().max(times(&config).0);
        let farms = Farms {
            primaries: std::mem::replace(&mut self.primaries, farms.primaries),
            backups: std::mem::replace(&mut self.backups, farms.backups),
        };
        self.times = times(&config);
        self.rings = rings(&config);
        self.config = config;
        self.ring_is_stale = true;
        if !moves {
            return false;
        }
        self.ring_number = self.ring_number.wrapping_add(1);
        self.before = Some(Box::new(Before {
            farms,
            primary_ids: std::mem::take(&mut self.primary_ids),
            backup_ids: std::mem::take(&mut self.backup_ids),
            since: now,
            // A request that was fetched for has half a span more.
            ordered_at: now.plus(spans + spans / 2),
            timeout,
            fetched: 0,
            copied: 0,
            copying: false,
            listable: Vec::new(),
            deleted: 0,
            rolling: Awaited::default(),
        }));
        true
    }

    /// True if keys that move to the ring of another configuration are to be had from where they
    /// were.
    fn moves_to(&self, config: &PoolConfig) -> bool {
        let is_random = |c: &PoolConfig| c.distribution == Distribution::Random;
        !config.warm.is_zero() && !is_random(config) && !is_random(&self.config)
    }

    /// True if every key has the same servers in another configuration.
    pub fn has_ring_of(&self, config: &PoolConfig) -> bool {
        let is_same = |a: &[ServerSpec], b: &[ServerSpec]| {
            let place = |s: &ServerSpec| (s.endpoint.clone(), s.hash_name.clone(), s.weight);
            a.iter().map(place).eq(b.iter().map(place))
        };
        let rule = |c: &PoolConfig| (c.hash, c.distribution, c.hash_tag);
        let own = &self.config;
        rule(own) == rule(config)
            && is_same(&own.primaries, &config.primaries)
            && is_same(&own.backups, &config.backups)
    }

    /// What a request may take at one server, in nanoseconds.
    #[inline]
    pub fn span(&self) -> u64 {
        self.times.0
    }

    /// What one answer may take, in milliseconds.
    #[inline]
    pub fn timeout_ms(&self) -> u32 {
        self.times.1
    }

    /// What [`Pool::place_hashed`] is told of a key: both farms hash it in the same way.
    #[inline]
    pub fn hash(&self, key: &[u8]) -> u32 {
        if self.needs_hash() {
            self.primaries.hash(key)
        } else {
            0
        }
    }

    #[inline]
    fn needs_hash(&self) -> bool {
        self.primaries.needs_hash() || self.backups.as_ref().is_some_and(Farm::needs_hash)
    }

    /// [`Pool::hash`] of several keys; those at the end may be empty.
    pub fn hash_all(&self, keys: &[&[u8]; LANES]) -> [u32; LANES] {
        match self.needs_hash() {
            true => self.primaries.hash_all(keys),
            false => [0; LANES],
        }
    }

    /// Where a key goes; `draw` is what `random` draws from.
    pub fn place(&self, key: &[u8], draw: u32) -> Place {
        self.place_hashed(key, self.hash(key), draw)
    }

    /// [`Pool::place`] of a key that was hashed.
    #[inline]
    pub fn place_hashed(&self, key: &[u8], hash: u32, draw: u32) -> Place {
        let home = self.primary_ids[self.primaries.place_hashed(key, hash, draw)];
        let (primary, full_ring) = self.stand_in((key, hash), home, draw);
        let place = |farm: &Farm| farm.place_hashed(key, hash, draw);
        let backup = backup_of(&self.backups, &self.backup_ids, primary, place);
        Place {
            primary,
            backup,
            full_ring,
            hash: fnv(key),
        }
    }

    /// Where a key is placed while servers are out of the ring, and its home if that is another.
    #[inline]
    fn stand_in(
        &self,
        (key, hash): (&[u8], u32),
        home: ServerId,
        draw: u32,
    ) -> (ServerId, ServerId) {
        let Some(ring) = &self.ring else {
            return (home, NOBODY);
        };
        let now = self.primary_ids[ring.place_hashed(key, hash, draw)];
        // With `random` no server is a key's home.
        if now == home || self.config.distribution == Distribution::Random {
            return (now, NOBODY);
        }
        (now, home)
    }
}

/// FNV-1a of the settings that decide where keys go.
fn rings(config: &PoolConfig) -> u64 {
    let (hash, how) = (config.hash.name(), config.distribution.name());
    let mut text = format!("{hash} {how} {:?}", config.hash_tag);
    for spec in config.primaries.iter().chain(&config.backups) {
        text += &format!(" {} {}", spec.hash_name, spec.weight);
    }
    text += &format!(" {}", config.primaries.len());
    fnv(text.as_bytes())
}

/// What [`Pool::span`] and [`Pool::timeout_ms`] say of such a pool.
fn times(config: &PoolConfig) -> (u64, u32) {
    let span = nanos(config.connect_timeout) + nanos(config.timeout);
    (span, config.timeout.as_millis() as u32)
}

/// The backup of a key with this primary; `place` says where the key goes in a farm.
#[inline]
fn backup_of(
    farm: &Option<Farm>,
    ids: &[ServerId],
    primary: ServerId,
    place: impl Fn(&Farm) -> usize,
) -> ServerId {
    let Some(farm) = farm else {
        return NOBODY;
    };
    let (n, first) = (ids.len(), place(farm));
    // Where both would be one server, the next of the backups is the backup.
    (0..n)
        .map(|i| ids[(first + i) % n])
        .find(|id| *id != primary)
        .unwrap_or(NOBODY)
}
