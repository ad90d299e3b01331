//! The configuration file: twemproxy's keys and magent's own, strictly.

use super::options::{JOURNAL, MAX_MS, MAX_SECONDS, VALUE};
use super::values::{self, Bad, Written};
use super::yaml::{self, Entry, Item, Value};
use super::{Address, ListenSpec, PoolConfig, ServerSpec, check};
use crate::placement::{Distribution, Hash};
use crate::sys::reason;
use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

/// twemproxy's bound of its numbers.
const MAX_NUMBER: u64 = i32::MAX as u64;
/// `backlog` of a file that has none: twemproxy's.
const BACKLOG: u32 = 512;
/// `server_retry_timeout` of a pool that ejects and has none: twemproxy's, milliseconds.
const RETRY_MS: u64 = 30_000;

/// What a key may hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Shape {
    Scalar,
    List,
    Either,
}

/// One key of a pool.
pub struct Key {
    /// As written in the file.
    pub name: &'static str,
    shape: Shape,
    /// Takes the scalar, or one item of the list.
    set: fn(&mut Draft, &Item) -> Result<(), Bad>,
}

/// A pool whose keys are being read: what depends on other keys waits here.
struct Draft {
    pool: PoolConfig,
    backlog: u32,
    retry: Option<Duration>,
    listen: Vec<(usize, Address, Option<u32>)>,
    servers: Vec<(usize, Written)>,
    backups: Vec<(usize, Written)>,
}

const fn scalar(name: &'static str, set: fn(&mut Draft, &Item) -> Result<(), Bad>) -> Key {
    Key {
        name,
        shape: Shape::Scalar,
        set,
    }
}

const fn list(name: &'static str, set: fn(&mut Draft, &Item) -> Result<(), Bad>) -> Key {
    Key {
        name,
        shape: Shape::List,
        set,
    }
}

/// Every key there is.
#[rustfmt::skip]
pub const KEYS: &[Key] = &[
    Key { name: "listen", shape: Shape::Either, set: listen },
    scalar("hash", |d, v| values::hash(&v.text).map(|x| d.pool.hash = x)),
    scalar("distribution", |d, v| values::distribution(&v.text).map(|x| d.pool.distribution = x)),
    scalar("hash_tag", |d, v| values::hash_tag(&v.text).map(|x| d.pool.hash_tag = Some(x))),
    list("servers", |d, v| values::file_server(&v.text).map(|x| d.servers.push((v.line, x)))),
    list("backups", |d, v| values::file_server(&v.text).map(|x| d.backups.push((v.line, x)))),
    scalar("timeout", timeout),
    scalar("backlog", |d, v| number(v, 0, MAX_NUMBER).map(|x| d.backlog = x as u32)),
    scalar("preconnect", |d, v| boolean(v).map(|x| d.pool.preconnect = x)),
    scalar("tcpkeepalive", |d, v| boolean(v).map(|x| d.pool.keepalive = x)),
    scalar("server_connections", |d, v| number(v, 1, 1024).map(|x| d.pool.connections = x as usize)),
    scalar("client_connections", client_connections),
    scalar("auto_eject_hosts", |d, v| boolean(v).map(|x| d.pool.auto_eject = x)),
    scalar("server_failure_limit", |d, v| number(v, 0, MAX_NUMBER).map(|x| d.pool.failure_limit = x.max(1) as u32)),
    scalar("server_retry_timeout", |d, v| number(v, 0, MAX_NUMBER).map(|x| d.retry = Some(values::ms(x.max(1))))),
    scalar("warm", |d, v| number(v, 0, MAX_SECONDS).map(|x| d.pool.warm = values::seconds(x))),
    scalar("journal", |d, v| values::size(&v.text, JOURNAL).map(|x| d.pool.journal = x)),
    scalar("max_value", |d, v| values::size(&v.text, VALUE).map(|x| d.pool.max_value = x)),
    scalar("idle_timeout", |d, v| number(v, 0, MAX_SECONDS).map(|x| d.pool.idle_timeout = values::some_seconds(x))),
    scalar("flush_all", |d, v| boolean(v).map(|x| d.pool.flush_all = x)),
    scalar("redis", redis),
    scalar("redis_auth", |_, _| Err(Bad::Value(ONLY_MEMCACHED.to_string()))),
    scalar("redis_db", |_, _| Err(Bad::Value(ONLY_MEMCACHED.to_string()))),
];

const ONLY_MEMCACHED: &str = "magent speaks memcached only";

fn number(item: &Item, low: u64, high: u64) -> Result<u64, Bad> {
    values::number(&item.text, low..=high)
}

fn boolean(item: &Item) -> Result<bool, Bad> {
    match item.text.as_str() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(Bad::Value("must be true or false".to_string())),
    }
}

fn listen(draft: &mut Draft, item: &Item) -> Result<(), Bad> {
    let (address, mode) = values::file_listen(&item.text)?;
    draft.listen.push((item.line, address, mode));
    Ok(())
}

/// twemproxy's timeout bounds the connect as well; 0 is its "wait for ever", as if there were no
/// such key.
fn timeout(draft: &mut Draft, item: &Item) -> Result<(), Bad> {
    let ms = number(item, 0, MAX_MS)?;
    if ms > 0 {
        draft.pool.timeout = values::ms(ms);
        draft.pool.connect_timeout = draft.pool.connect_timeout.min(values::ms(ms));
    }
    Ok(())
}

/// 0 is twemproxy's "no bound".
fn client_connections(draft: &mut Draft, item: &Item) -> Result<(), Bad> {
    let n = number(item, 0, MAX_NUMBER)?;
    draft.pool.clients = (n > 0).then_some(n as usize);
    Ok(())
}

fn redis(_: &mut Draft, item: &Item) -> Result<(), Bad> {
    match boolean(item)? {
        true => Err(Bad::Value(ONLY_MEMCACHED.to_string())),
        false => Ok(()),
    }
}

/// The pools of the file at `path`, which messages call `shown`; what a pool does not say is
/// taken from `template`, and `memory` (`-m`) bounds its values. Errors are whole lines.
pub(super) fn load(
    path: &Path,
    shown: &str,
    template: &PoolConfig,
    memory: usize,
) -> Result<Vec<PoolConfig>, Bad> {
    match std::fs::read(path) {
        Ok(bytes) => parse(&bytes, shown, template, memory),
        Err(e) => Err(Bad::World(format!("-c {shown}: {}", reason(&e)))),
    }
}

/// The pools in `bytes`; see [`load`].
pub(super) fn parse(
    bytes: &[u8],
    shown: &str,
    template: &PoolConfig,
    memory: usize,
) -> Result<Vec<PoolConfig>, Bad> {
    let at = |line: usize, what: String| format!("{shown}:{line}: {what}");
    let written = yaml::read(bytes).map_err(|e| Bad::Value(at(e.line, e.what)))?;
    if written.is_empty() {
        return Err(Bad::Value(format!("{shown}: holds no pool")));
    }
    let mut pools: Vec<PoolConfig> = Vec::new();
    let mut taken: HashMap<Address, String> = HashMap::new();
    for w in &written {
        let name = |line: usize, bad: Bad| match bad {
            Bad::Value(why) => Bad::Value(at(line, format!("pool {}: {why}", w.name))),
            Bad::World(why) => Bad::World(at(line, format!("pool {}: {why}", w.name))),
        };
        if pools.iter().any(|p| p.name == w.name) {
            return Err(name(
                w.line,
                Bad::Value("there is one of that name already".to_string()),
            ));
        }
        let draft = keys(w, template).map_err(|(line, why)| name(line, why))?;
        for (line, address, _) in &draft.listen {
            if let Some(other) = taken.insert(address.clone(), w.name.clone()) {
                let why = format!("listen: pool {other} listens there already");
                return Err(name(*line, Bad::Value(why)));
            }
        }
        let pool = finish(w, draft).map_err(|(line, why)| name(line, why))?;
        fits(w, &pool, memory).map_err(|(line, why)| name(line, why))?;
        pools.push(pool);
    }
    match check::circle(&pools) {
        Some(own) => {
            let (pool, server) = (&written[own.pool], &own.server(&pools).name);
            let (key, listener) = (own.role.key(), &written[own.listener].name);
            let why = "so a request would go round for ever; name the memcached";
            let what = format!(
                "pool {}: {key}: {server}: pool {listener} listens there, {why}",
                pool.name
            );
            Err(Bad::Value(at(pool.line_of(key, own.number), what)))
        }
        None => Ok(pools),
    }
}

/// A `max_value` of its own against `-m`; what `-I` says is not the file's.
fn fits(written: &yaml::Pool, pool: &PoolConfig, memory: usize) -> Result<(), (usize, Bad)> {
    let own = written.entries.iter().find(|e| e.key == "max_value");
    let needed = check::memory_needed(pool.max_value, memory);
    let (Some(entry), Some(need)) = (own, needed) else {
        return Ok(());
    };
    let [value, memory] = [pool.max_value, memory].map(values::show_size);
    let why = format!("max_value: {value}: too large for -m {memory}; start with -m {need}");
    Err((entry.line, Bad::Value(why)))
}

/// Reads the keys of one pool.
fn keys(written: &yaml::Pool, template: &PoolConfig) -> Result<Draft, (usize, Bad)> {
    let mut draft = Draft {
        pool: PoolConfig {
            name: written.name.clone(),
            hash: Hash::Fnv1a64,
            distribution: Distribution::Ketama,
            ..template.clone()
        },
        backlog: BACKLOG,
        retry: None,
        listen: Vec::new(),
        servers: Vec::new(),
        backups: Vec::new(),
    };
    for (at, entry) in written.entries.iter().enumerate() {
        let wrong = |why: &str| (entry.line, Bad::Value(format!("{}: {why}", entry.key)));
        let Some(key) = KEYS.iter().find(|k| k.name == entry.key) else {
            return Err(wrong("unknown key"));
        };
        if written.entries[..at].iter().any(|e| e.key == entry.key) {
            return Err(wrong("given twice"));
        }
        let one;
        let items = match (&entry.value, key.shape) {
            (Value::Empty, Shape::Scalar) => return Err(wrong("the value is missing")),
            (Value::Empty, _) => return Err(wrong("the list is empty")),
            (Value::List(_), Shape::Scalar) => return Err(wrong("must be one value, not a list")),
            (Value::Scalar(_), Shape::List) => {
                return Err(wrong("must be a list of `- item` lines"));
            }
            (Value::List(items), _) => items,
            (Value::Scalar(text), _) => {
                one = [Item {
                    line: entry.line,
                    text: text.clone(),
                }];
                &one[..]
            }
        };
        for item in items {
            (key.set)(&mut draft, item).map_err(|bad| (item.line, named(entry, item, bad)))?;
        }
    }
    Ok(draft)
}

/// The error with key and value before it, but for a password.
fn named(entry: &Entry, item: &Item, bad: Bad) -> Bad {
    let with = |why: String| match entry.key.as_str() {
        "redis_auth" => format!("redis_auth: {why}"),
        key => format!("{key}: {}: {why}", item.text),
    };
    match bad {
        Bad::Value(why) => Bad::Value(with(why)),
        Bad::World(why) => Bad::World(with(why)),
    }
}

/// Puts together what depends on several keys.
fn finish(written: &yaml::Pool, draft: Draft) -> Result<PoolConfig, (usize, Bad)> {
    let mut pool = draft.pool;
    let value = |line: usize, why: String| (line, Bad::Value(why));
    if draft.listen.is_empty() {
        return Err(value(written.line, "listen: is missing".to_string()));
    }
    if draft.servers.is_empty() {
        return Err(value(written.line, "servers: is missing".to_string()));
    }
    if let Some((line, _)) = draft.backups.first() {
        if pool.auto_eject {
            return Err(value(
                *line,
                "backups: not together with auto_eject_hosts: true".to_string(),
            ));
        }
        if pool.distribution == Distribution::Random {
            return Err(value(
                *line,
                "backups: not together with distribution: random".to_string(),
            ));
        }
    }
    let backlog = draft.backlog;
    let listen = draft
        .listen
        .into_iter()
        .map(|(_, address, mode)| ListenSpec {
            address,
            mode: mode.unwrap_or(ListenSpec::MODE),
            backlog,
        });
    pool.listen = listen.collect();
    pool.primaries = servers("servers", &draft.servers, pool.distribution)?;
    pool.backups = servers("backups", &draft.backups, pool.distribution)?;
    // A pool that does not eject has no use for twemproxy's long default: a server that is back
    // is wanted back.
    pool.retry = match draft.retry {
        Some(retry) => retry,
        None if pool.auto_eject => values::ms(RETRY_MS),
        None => pool.retry,
    };
    Ok(pool)
}

fn servers(
    key: &str,
    written: &[(usize, Written)],
    distribution: Distribution,
) -> Result<Vec<ServerSpec>, (usize, Bad)> {
    let mut servers: Vec<ServerSpec> = Vec::new();
    for (line, w) in written {
        let server = w.spec(distribution).map_err(|bad| match bad {
            Bad::Value(why) => (*line, Bad::Value(format!("{key}: {}: {why}", w.host))),
            Bad::World(why) => (*line, Bad::World(format!("{key}: {why}"))),
        })?;
        if servers.iter().any(|s| s.hash_name == server.hash_name) {
            let why = format!("{key}: two servers have the name {}", server.hash_name);
            return Err((*line, Bad::Value(why)));
        }
        servers.push(server);
    }
    Ok(servers)
}

#[cfg(test)]
mod tests;
