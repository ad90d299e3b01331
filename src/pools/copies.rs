//! Keys that are being copied to a server that lacks them, a bounded number at a time.
//!
//! ```text
//!  Look: me k ─▶ target: absent ─▶ Fetch: mg k u f t v c ─▶ source: found ─▶ Add: add k ─▶ target
//! ```
//!
//! A key that is compared is on its way in the same manner: it is asked for on both sides, and nothing is
//! stored.
//!
//! A copy is *changed* when its key was written at its primary meanwhile: after the look where the
//! primary is the target, after the fetch where it is the source. Then it is not stored.

use super::ServerId;
use super::verify::Seen;
use crate::slab::Slab;
use std::collections::HashMap;

/// The step that a copy is at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// The target is asked whether it has the key.
    Look,
    /// The source is asked for the key.
    Fetch,
    /// The value is on its way to the target.
    Add,
    /// To compare it, the target is asked for the key.
    Here,
    /// And then the source.
    There,
    /// What the source holds is deleted there, since its primary lacks it or holds something else.
    Mend,
}

/// Whose a key on its way is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Job {
    /// The server that is filled, or compared with its partners.
    pub target: ServerId,
    /// It is compared.
    pub verifies: bool,
    /// How often that began anew.
    pub round: u32,
}

/// What happened to the key at its primary since it was to be copied.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Changed {
    /// Nothing.
    No,
    /// A client's request changed it.
    Written,
    /// What is known of it does not hold any more: it was deleted by magent, or a server was lost.
    Void,
}

/// A key on its way.
#[derive(Debug)]
pub struct Copy {
    /// Who is asked for it, or will be.
    pub source: ServerId,
    /// Who is asked then, if that one lacks it.
    pub further: Vec<ServerId>,
    /// One that may have it could not be asked.
    pub is_untold: bool,
    pub job: Job,
    /// Source or target.
    pub primary: ServerId,
    /// Its link at the primary.
    pub link: usize,
    pub key: Box<[u8]>,
    pub hash: u64,
    /// The pool that it is of.
    pub pool: u32,
    pub listed: Listed,
    pub step: Step,
    pub changed: Changed,
    /// Length of the value that was fetched.
    pub value: usize,
    /// What the target holds, where it is compared.
    pub seen: Option<Seen>,
    /// The number by which it is looked after.
    pub watch: Option<usize>,
    /// The key was deleted on the target meanwhile: it is looked at once more.
    pub again: bool,
}

impl Copy {
    /// The key is written at its primary. `leaves_absent`: not where that lacks it.
    pub fn note_write(&mut self, is_client: bool, leaves_absent: bool) {
        let changed = match is_client {
            _ if leaves_absent && self.primary == self.job.target => Changed::No,
            true => Changed::Written,
            false => Changed::Void,
        };
        self.changed = self.changed.max(changed);
    }
}

/// What is known of a key that is to be copied.
#[derive(Clone, Copy, Default, Debug)]
pub struct Listed {
    /// Bytes of its item as listed; 0 if not known.
    pub size: u32,
    /// How often it was tried in vain.
    pub tries: u32,
    /// It was listed by the target itself, for a comparison.
    pub is_own: bool,
}

/// All copies.
#[derive(Default, Debug)]
pub struct Copies {
    pub table: Slab<Copy>,
    by_key: HashMap<(usize, u64), usize>,
    /// Bytes of their items as listed.
    bytes: usize,
}

impl Copies {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Bytes of their items as listed.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// True if none is on its way to this server, or none is compared.
    pub fn is_over(&self, target: ServerId, verifies: bool) -> bool {
        let is_its = |c: &Copy| c.job.target == target && c.job.verifies == verifies;
        !self.table.values().any(is_its)
    }

    /// The copy of a key with this hash, from or to this link of its primary.
    pub fn find(&mut self, link: usize, hash: u64) -> Option<&mut Copy> {
        let key = self.by_key.get(&(link, hash))?;
        self.table.get_mut(*key)
    }

    /// A copy begins. There is none of a key with this hash and link.
    pub fn insert(&mut self, copy: Copy) -> usize {
        let of = (copy.link, copy.hash);
        self.bytes += copy.listed.size as usize;
        let key = self.table.insert(copy);
        self.by_key.insert(of, key);
        key
    }

    /// A copy is over.
    pub fn remove(&mut self, key: usize) -> Option<Copy> {
        let copy = self.table.remove(key)?;
        self.bytes -= copy.listed.size as usize;
        self.by_key.remove(&(copy.link, copy.hash));
        Some(copy)
    }

    /// A key with this hash is written on this link: the copy of it, if there is one.
    #[inline]
    pub fn written(&mut self, link: usize, hash: u64) -> Option<&mut Copy> {
        match self.by_key.is_empty() {
            true => None,
            false => self.find(link, hash),
        }
    }

    /// A server is flushed, or away: what is copied from or to it is void.
    pub fn void(&mut self, server: ServerId) {
        for copy in self.table.values_mut() {
            let all = [copy.source, copy.job.target];
            if all.contains(&server) || copy.further.contains(&server) {
                copy.changed = Changed::Void;
            }
        }
    }

    /// All copies are void.
    pub fn void_all(&mut self) {
        for copy in self.table.values_mut() {
            copy.changed = Changed::Void;
        }
    }
}
