//! What this run of magent is to others on the same servers.

use crate::marks::Id;
use crate::marks::bytes::Process;
use std::hash::{BuildHasher, Hasher, RandomState};

/// What this run of magent is to others.
#[derive(Debug)]
pub struct Me {
    /// Its id.
    pub id: Id,
    host: String,
    /// `--alone`: it leaves no marks.
    pub is_alone: bool,
    /// `--share`: it keeps servers away from others, and heeds what they keep away.
    pub shares: bool,
}

impl Me {
    /// A new id.
    pub fn new(is_alone: bool, shares: bool) -> Me {
        let random = RandomState::new().build_hasher().finish();
        let host = crate::sys::host_name();
        let is_odd = |c: char| c.is_whitespace() || c.is_control();
        Me {
            id: Id(random),
            host: match host.is_empty() || host.contains(is_odd) {
                true => "?".into(),
                false => host,
            },
            is_alone,
            shares: shares && !is_alone,
        }
    }

    /// The name of its host.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Where it runs.
    pub fn process(&self) -> Process {
        Process {
            host: self.host.clone(),
            pid: std::process::id(),
        }
    }
}
