//! A configuration with all that takes long to make of it: rings of thousands of points, which no
//! turn of the loop has time for. A reload makes them beside it.

use super::{Config, PoolConfig, ServerSpec, check};
use crate::placement::Farm;

/// The farms of one pool.
#[derive(Clone, Debug)]
pub struct Farms {
    /// All its primaries.
    pub primaries: Farm,
    /// All its backups, if it has some.
    pub backups: Option<Farm>,
}

impl Farms {
    fn new(pool: &PoolConfig) -> Farms {
        let farm = |servers: &[ServerSpec]| Farm::new(pool.farm(servers), None);
        Farms {
            primaries: farm(&pool.primaries),
            backups: (!pool.backups.is_empty()).then(|| farm(&pool.backups)),
        }
    }
}

/// A configuration that can be put in force at once.
#[derive(Debug)]
pub struct Prepared {
    /// As it was read.
    pub config: Config,
    /// Of each pool, in its order.
    pub farms: Vec<Farms>,
    /// What is allowed and yet likely not meant; one line each.
    pub warnings: Vec<String>,
}

impl Prepared {
    /// Prepares a configuration. Takes long if its rings are large.
    pub fn new(config: Config) -> Prepared {
        let farms: Vec<Farms> = config.pools.iter().map(Farms::new).collect();
        Prepared {
            warnings: check::warnings(&config.pools, &farms),
            config,
            farms,
        }
    }
}
