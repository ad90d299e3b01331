//! Keys of warming primaries that are looked for, and what waits for them.

use super::pending::{Ask, Pending};
use super::{NOBODY, ServerId};
use crate::buffer::Queue;
use crate::slab::Slab;
use crate::time::Time;
use std::collections::{HashMap, VecDeque};
use std::vec;

/// The step that a flow is at.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// The primary is asked whether it has the key.
    Look,
    /// The server that held the key before a reload is to answer what was asked of it then.
    Await,
    /// Another server is asked for the key.
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

/// A server that was asked for a key in vain.
#[derive(Debug)]
pub struct Asked {
    pub server: ServerId,
    /// Why it did not say whether it has the key; `None` if it said that it has not.
    pub failure: Option<Box<[u8]>>,
}

/// A key of a warming primary that is looked for.
#[derive(Debug)]
pub struct Flow {
    pub primary: ServerId,
    /// Who is asked for the key, or was last.
    pub source: ServerId,
    /// Who is asked next if that one lacks it.
    pub further: vec::IntoIter<ServerId>,
    /// Those who were asked and do not have it, or did not say so.
    pub asked: Vec<Asked>,
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

impl Flow {
    /// A key that another server may have, in the order of `sources`; nothing waits for it yet.
    pub fn new(p: &Pending, key: &[u8], step: Step, sources: Vec<ServerId>) -> Flow {
        Flow {
            primary: p.home.primary,
            source: NOBODY,
            further: sources.into_iter(),
            asked: Vec::new(),
            pool: p.home.pool,
            key: key.into(),
            hash: p.hash,
            step,
            holds: !matches!(step, Step::Fetch { .. }),
            deadline: p.deadline,
            waiting: VecDeque::new(),
            charged: 0,
        }
    }
}

impl Flow {
    /// True if the primary is asked for the key first.
    pub fn is_look(&self) -> bool {
        matches!(self.step, Step::Look)
    }
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
    #[cfg(debug_assertions)]
    pub fn charged(&self) -> usize {
        self.table.values().map(|f| f.charged).sum()
    }

    /// Links, with the number of the oldest request on them after which writes matter.
    pub fn asked_about(&self) -> impl Iterator<Item = (usize, u64)> {
        self.table.values().filter_map(|f| match f.step {
            Step::Fetch { link, since, .. } => Some((link, since)),
            Step::Look | Step::Await => None,
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

    /// A flow begins. The one that was found under its key, if one was, goes on unseen.
    pub fn add(&mut self, flow: Flow) -> usize {
        let entry = (flow.primary, flow.hash);
        let key = self.table.insert(flow);
        self.by_key.insert(entry, key);
        key
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
