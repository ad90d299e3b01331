//! Keys of warming primaries that are looked for, and what waits for them.

use super::ServerId;
use super::pending::{Ask, Pending};
use crate::buffer::Queue;
use crate::slab::Slab;
use crate::time::Time;
use std::collections::{HashMap, VecDeque};

/// The step that a flow is at.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// The primary is asked whether it has the key.
    Look,
    /// The backup is asked for the key.
    Fetch {
        /// The primary's link and the number, on it, of the request that missed.
        link: usize,
        since: u64,
        /// Something newer may be at the primary when the answer arrives.
        is_outdated: bool,
    },
}

/// A request that waits.
#[derive(Debug)]
pub struct Waiting {
    pub pending: Pending,
    pub bytes: Queue,
    /// The primary has answered that it lacks the key.
    pub missed: bool,
}

impl Waiting {
    /// What is asked.
    pub fn ask(&self) -> Ask<'_> {
        Ask::queued(&self.pending, &self.bytes, self.bytes.start())
    }
}

/// A key of a warming primary that is looked for.
#[derive(Debug)]
pub struct Flow {
    pub primary: ServerId,
    pub backup: ServerId,
    pub pool: u32,
    pub key: Box<[u8]>,
    pub hash: u64,
    pub step: Step,
    /// What is asked of the key meanwhile waits.
    pub holds: bool,
    pub deadline: Time,
    pub waiting: VecDeque<Waiting>,
    pub charged: usize,
}

/// All flows.
#[derive(Default, Debug)]
pub struct Flows {
    pub table: Slab<Flow>,
    pub by_key: HashMap<(ServerId, u64), usize>,
}

impl Flows {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// How many requests wait in them.
    pub fn waiting(&self) -> usize {
        self.table.values().map(|f| f.waiting.len()).sum()
    }

    /// Copied bytes charged for them.
    pub fn charged(&self) -> usize {
        self.table.values().map(|f| f.charged).sum()
    }

    /// Links, with the number of the oldest request on them after which writes matter.
    pub fn asked_about(&self) -> impl Iterator<Item = (usize, u64)> {
        self.table.values().filter_map(|f| match f.step {
            Step::Fetch { link, since, .. } => Some((link, since)),
            Step::Look => None,
        })
    }

    /// A primary is flushed, or away, so that its keys are written elsewhere: values that are
    /// fetched for it now are not copied.
    pub fn outdate(&mut self, server: ServerId) {
        for flow in self.table.values_mut() {
            if flow.primary == server {
                if let Step::Fetch { is_outdated, .. } = &mut flow.step {
                    *is_outdated = true;
                }
            }
        }
    }

    /// The flow of a key with this hash.
    pub fn find(&self, primary: ServerId, hash: u64) -> Option<usize> {
        if self.by_key.is_empty() {
            return None;
        }
        self.by_key.get(&(primary, hash)).copied()
    }

    /// Takes a flow out.
    pub fn take(&mut self, key: usize) -> Option<Flow> {
        let flow = self.table.remove(key)?;
        let entry = (flow.primary, flow.hash);
        if self.by_key.get(&entry) == Some(&key) {
            self.by_key.remove(&entry);
        }
        if self.by_key.is_empty() {
            self.by_key.shrink_to(64);
        }
        Some(flow)
    }
}
