//! The last write of each key on the links of warming servers: a value that was fetched before a
//! newer write must not be copied.

use std::collections::HashMap;

/// Old entries are pruned when there are so many.
const PRUNE: usize = 8192;

/// Numbers of writes, by link and key hash.
#[derive(Default, Debug)]
pub struct RecentWrites {
    last: HashMap<(usize, u64), u64>,
    prune_at: usize,
}

impl RecentWrites {
    /// Request number `seq` of the link writes a key of this hash.
    pub fn note(&mut self, link: usize, hash: u64, seq: u64) {
        self.last.insert((link, hash), seq);
    }

    /// True if a key of this hash was written after request number `since` of the link.
    pub fn is_newer(&self, link: usize, hash: u64, since: u64) -> bool {
        self.last.get(&(link, hash)).is_some_and(|seq| *seq > since)
    }

    /// True if it is time for [`RecentWrites::prune`].
    pub fn is_large(&self) -> bool {
        self.last.len() >= self.prune_at.max(PRUNE)
    }

    /// Forgets what nobody can ask about any more: `oldest` tells the number of the oldest request
    /// of a link that may still be asked about.
    pub fn prune(&mut self, oldest: impl Fn(usize) -> u64) {
        self.last.retain(|(link, _), seq| *seq >= oldest(*link));
        self.prune_at = self.last.len() * 2;
    }
}
