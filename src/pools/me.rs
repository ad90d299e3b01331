//! What this run of magent is to others on the same servers.

use crate::marks::Id;
use crate::marks::bytes::Process;
use std::hash::{BuildHasher, Hasher, RandomState};

/// What this run of magent is to others.
#[derive(Debug)]
pub struct Me {
    /// No other run has it.
    pub id: Id,
    /// Where it runs.
    pub process: Process,
}

impl Me {
    /// This process, under a new id.
    pub fn here() -> Me {
        let random = RandomState::new().build_hasher().finish();
        let host = crate::sys::host_name();
        let is_odd = |c: char| c.is_whitespace() || c.is_control();
        let host = match host.is_empty() || host.contains(is_odd) {
            true => "?",
            false => &host,
        };
        Me::new(random, host, std::process::id())
    }

    /// A run that is the same each time: for tests.
    pub fn new(id: u64, host: &str, pid: u32) -> Me {
        Me {
            id: Id(id),
            process: Process {
                host: host.to_string(),
                pid,
            },
        }
    }
}
