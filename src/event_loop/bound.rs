//! The listeners of a configuration, bound before the loop exists. Sockets that the process was given are taken over.

use super::listeners::{self, Listeners, Plan};
use super::{FIRST_DOOR, FIRST_LISTENER, door};
use crate::config::{Address, Config, ListenSpec, PoolConfig};
use crate::files::Owner;
use crate::net::Given;
use crate::sys;

/// Descriptors for standard streams, log, pid file, poll, signals, syslog, the reserve, a
/// configuration being read, name service, and then some.
const SPARE_DESCRIPTORS: usize = 32 + listeners::LINGERING;

/// Listeners that were bound before the loop exists: before the fork, and while the process
/// may still take low ports.
pub struct Bound {
    pub(super) listeners: Listeners,
    pub(super) plan: Plan,
    pub(super) door: door::Bound,
}

/// Binds every listener of `config` but those that are among `given`; socket files are given to `owner`.
///
/// # Errors
/// A line that names the listener and why it can't be bound, or one of `given` that `config` does not name.
pub fn bind(config: &Config, owner: Owner, mut given: Vec<Given>) -> Result<Bound, String> {
    let mut listeners = Listeners::new(FIRST_LISTENER, config.reuseport);
    let plan = plan(&mut listeners, config, owner, &mut given)?;
    let door = door::bind(config, owner, &mut given, FIRST_DOOR)?;
    if let Some(left) = given.first() {
        let place = left.address().place();
        // Nobody would accept there: clients would connect and wait for ever.
        return Err(format!(
            "LISTEN_FDS: {place}: magent is not told to listen there; write the same address in both places"
        ));
    }
    Ok(Bound {
        listeners,
        plan,
        door,
    })
}

pub(super) fn plan(
    listeners: &mut Listeners,
    config: &Config,
    owner: Owner,
    given: &mut Vec<Given>,
) -> Result<Plan, String> {
    let all = config
        .pools
        .iter()
        .flat_map(|pool| pool.listen.iter().map(move |spec| (pool, spec)));
    let (pools, wanted): (Vec<&PoolConfig>, Vec<&ListenSpec>) = all.unzip();
    listeners.plan(&wanted, owner, given).map_err(|(at, why)| {
        let (pool, spec) = (&pools[at].name, wanted[at]);
        let why = sys::reason(&why);
        match (&config.file, &spec.address) {
            (Some(_), Address::Tcp(tcp)) => format!("pool {pool}: listen {tcp}: {why}"),
            (Some(_), Address::Unix(path)) => {
                format!("pool {pool}: listen {}: {why}", path.display())
            }
            (None, Address::Tcp(tcp)) => format!("-l {} -p {}: {why}", tcp.ip(), tcp.port()),
            (None, Address::Unix(path)) => format!("-f {}: {why}", path.display()),
        }
    })
}

/// Descriptors that `config` may need at a time. Links count twice: one that was given up is
/// read to its end while its successor works.
pub fn descriptors(config: &Config) -> u64 {
    let pools = config.pools.iter().map(|pool| {
        let servers = pool.primaries.len() + pool.backups.len();
        pool.listen.len() + 2 * servers * pool.connections
    });
    let others = door::descriptors(config) + SPARE_DESCRIPTORS;
    (config.clients + pools.sum::<usize>() + others) as u64
}
