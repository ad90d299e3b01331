//! What shows only when a configuration is looked at as a whole: servers that are magent itself, keys
//! that have no backup, rings that leave somebody out.

use super::values::show_size;
use super::{Address, Endpoint, Farms, PoolConfig, ServerSpec};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::path::{Path, PathBuf};

/// One of a pool's two farms.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Role {
    Primaries,
    Backups,
}

impl Role {
    /// The key that lists its servers in a file.
    pub fn key(self) -> &'static str {
        match self {
            Role::Primaries => "servers",
            Role::Backups => "backups",
        }
    }

    /// The option that names one of them.
    pub fn option(self) -> &'static str {
        match self {
            Role::Primaries => "-s",
            Role::Backups => "-b",
        }
    }

    fn servers(self, pool: &PoolConfig) -> &[ServerSpec] {
        match self {
            Role::Primaries => &pool.primaries,
            Role::Backups => &pool.backups,
        }
    }
}

/// A server that is a listener of magent's own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Own {
    /// The pool that asks it.
    pub pool: usize,
    /// Where in that pool it is named.
    pub role: Role,
    /// Its number there.
    pub number: usize,
    /// The pool that listens there.
    pub listener: usize,
}

impl Own {
    /// As configured.
    pub fn server<'a>(&self, pools: &'a [PoolConfig]) -> &'a ServerSpec {
        &self.role.servers(&pools[self.pool])[self.number]
    }
}

/// A server through which a pool asks itself, at once or through other pools of magent: a request
/// would go round for ever.
pub(super) fn circle(pools: &[PoolConfig]) -> Option<Own> {
    let all = own(pools);
    let mut each = all.iter();
    let back = |o: &&Own| leads(&all, o.listener, o.pool, &mut Vec::new());
    each.find(back).copied()
}

/// Every server that is a listener of magent's own.
fn own(pools: &[PoolConfig]) -> Vec<Own> {
    let mut all = Vec::new();
    for (number_of_pool, pool) in pools.iter().enumerate() {
        for role in [Role::Primaries, Role::Backups] {
            for (number, server) in role.servers(pool).iter().enumerate() {
                let listens =
                    |p: &PoolConfig| p.listen.iter().any(|l| meets(&server.endpoint, &l.address));
                all.extend(pools.iter().position(listens).map(|listener| Own {
                    pool: number_of_pool,
                    role,
                    number,
                    listener,
                }));
            }
        }
    }
    all
}

/// True if requests to pool `from` come to pool `to`; `seen`: pools that were looked at.
fn leads(all: &[Own], from: usize, to: usize, seen: &mut Vec<usize>) -> bool {
    if from == to {
        return true;
    }
    if seen.contains(&from) {
        return false;
    }
    seen.push(from);
    let mut next = all.iter().filter(|o| o.pool == from);
    next.any(|o| leads(all, o.listener, to, seen))
}

/// True if a connection to `server` comes out at `listener`, as far as that is known.
fn meets(server: &Endpoint, listener: &Address) -> bool {
    let Some(server) = server.known() else {
        return false;
    };
    match (&server, listener) {
        (Address::Tcp(server), Address::Tcp(listener)) => {
            let (to, at) = (target(server.ip()), listener.ip());
            let any = at.is_unspecified() && at.is_ipv4() == to.is_ipv4();
            server.port() == listener.port() && (to == at || any && is_own(to))
        }
        (Address::Unix(server), Address::Unix(listener)) => real(server) == real(listener),
        _ => false,
    }
}

/// Where a connection to this address goes.
fn target(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    }
}

/// True for an address of this host: the system speaks to it from itself. Nothing is sent.
fn is_own(ip: IpAddr) -> bool {
    let any: IpAddr = match ip {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let from = UdpSocket::bind((any, 0)).and_then(|socket| {
        // The port is never used: it must only not be 0.
        socket.connect((ip, 9))?;
        socket.local_addr()
    });
    ip.is_loopback() || from.is_ok_and(|from| from.ip() == ip)
}

/// The path without links to folders: `/var/run` is `/run`.
fn real(path: &Path) -> PathBuf {
    let folder = path.parent().and_then(|p| p.canonicalize().ok());
    match (folder, path.file_name()) {
        (Some(folder), Some(name)) => folder.join(name),
        _ => path.to_path_buf(),
    }
}

/// True if two endpoints are surely one server.
pub(super) fn is_same(a: &Endpoint, b: &Endpoint) -> bool {
    match (a.known(), b.known()) {
        (Some(Address::Tcp(a)), Some(Address::Tcp(b))) => {
            (target(a.ip()), a.port()) == (target(b.ip()), b.port())
        }
        (Some(Address::Unix(a)), Some(Address::Unix(b))) => real(&a) == real(&b),
        _ => a == b,
    }
}

/// How many of the largest values `-m` must hold: one is held with its request and once more as a copy, and
/// others need room too.
pub(super) const VALUES_IN_MEMORY: usize = 4;

/// What `-m` must be at least for values of this size, where `memory` is less.
pub(super) fn memory_needed(value: usize, memory: usize) -> Option<String> {
    let is_less = memory / VALUES_IN_MEMORY < value;
    is_less.then(|| show_size(VALUES_IN_MEMORY * value))
}

/// What is allowed and yet likely not meant, a line each; `farms`: of each pool.
pub(super) fn warnings(pools: &[PoolConfig], farms: &[Farms]) -> Vec<String> {
    let mut all = Vec::new();
    for (pool, farms) in pools.iter().zip(farms) {
        let both = [
            (Role::Primaries, Some(&farms.primaries)),
            (Role::Backups, farms.backups.as_ref()),
        ];
        for (role, farm) in both {
            let of_farm = farm.into_iter().flat_map(|f| f.warnings());
            all.extend(of_farm.map(|w| format!("pool {}: {}: {w}", pool.name, role.key())));
        }
        all.extend(no_backup(pool).map(|w| format!("pool {}: {w}", pool.name)));
    }
    for own in own(pools) {
        let (pool, server) = (&pools[own.pool].name, &own.server(pools).name);
        let (key, listener) = (own.role.key(), &pools[own.listener].name);
        let why = "so a request passes magent twice; name that pool's servers instead";
        all.push(format!(
            "pool {pool}: {key}: {server}: pool {listener} listens there, {why}"
        ));
    }
    all
}

/// Where all backups are one server and that is a primary too, its own keys have no backup.
fn no_backup(pool: &PoolConfig) -> Option<String> {
    let backup = pool.backups.first()?;
    let is_it = |s: &ServerSpec| is_same(&s.endpoint, &backup.endpoint);
    if !pool.backups.iter().all(is_it) || !pool.primaries.iter().any(is_it) {
        return None;
    }
    let whose = match pool.primaries.iter().all(is_it) {
        true => "is the only primary and the only backup, so no key has a backup",
        false => "is a primary and the only backup, so its own keys have no backup",
    };
    Some(format!("{} {whose}; add another backup", backup.name))
}
