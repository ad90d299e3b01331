//! Keys that a server was found to hold and that are to be looked at one by one, within a bound.
//!
//! ```text
//!  slices of the keys' hashes   0 1 2 3 … │ end … 255
//!                               kept      │ too many: dropped, for the next listing
//! ```
//!
//! A listing cannot be halted, so what does not fit is dropped: the highest slice that holds keys, and
//! all that belongs there or above from now on. The next listing begins where this one was cut.

/// Slices of all hashes.
const SLICES: usize = 256;

/// What a key takes besides its bytes: its length and the size of its item.
const HEAD: usize = 5;

/// Keys of one slice, one behind the other.
#[derive(Default, Debug)]
struct Slice {
    bytes: Vec<u8>,
    /// How far they were taken out.
    at: usize,
    /// How many are left.
    len: usize,
}

/// Keys to look at.
#[derive(Debug)]
pub struct Spool {
    slices: Vec<Slice>,
    /// Slices below are done with, in this listing.
    from: usize,
    /// Slices from here on were dropped.
    end: usize,
    limit: usize,
    bytes: usize,
    len: usize,
    /// Keys that found no room though theirs is the only slice.
    lost: u64,
}

impl Spool {
    /// An empty one of at most `limit` bytes.
    pub fn new(limit: usize) -> Spool {
        let mut slices = Vec::new();
        slices.resize_with(SLICES, Slice::default);
        Spool {
            slices,
            from: 0,
            end: SLICES,
            limit,
            bytes: 0,
            len: 0,
            lost: 0,
        }
    }

    /// How many keys it holds.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Bytes that it holds.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Keys that found no room, however often the server is listed.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Forgets all: the next listing is a first one.
    pub fn clear(&mut self) {
        *self = Spool::new(self.limit);
    }

    /// Adds a key with the size of its item. False if it is not of this listing's part, or there is no
    /// room for it.
    pub fn push(&mut self, hash: u64, key: &[u8], size: u32) -> bool {
        // The low bits: links are chosen by higher ones.
        let slice = (hash % SLICES as u64) as usize;
        let Ok(length) = u8::try_from(key.len()) else {
            return false;
        };
        if !(self.from..self.end).contains(&slice) {
            return false;
        }
        let takes = HEAD + key.len();
        while self.bytes + takes > self.limit {
            if !self.drop_last() {
                self.lost += 1;
                return false;
            }
            if slice >= self.end {
                return false;
            }
        }
        let bytes = &mut self.slices[slice].bytes;
        bytes.push(length);
        bytes.extend_from_slice(&size.to_le_bytes());
        bytes.extend_from_slice(key);
        self.slices[slice].len += 1;
        self.bytes += takes;
        self.len += 1;
        true
    }

    /// Drops the highest slice but the first. False if there is none.
    fn drop_last(&mut self) -> bool {
        if self.end <= self.from + 1 {
            return false;
        }
        self.end -= 1;
        let slice = std::mem::take(&mut self.slices[self.end]);
        self.bytes -= slice.bytes.len();
        self.len -= slice.len;
        true
    }

    /// Takes a key out: its bytes, and the size of its item.
    pub fn pop(&mut self, key: &mut Vec<u8>) -> Option<u32> {
        if self.len == 0 {
            return None;
        }
        let slice = self.slices.iter_mut().find(|s| !s.bytes.is_empty())?;
        let (name, size) = slice.take()?;
        key.clear();
        key.extend_from_slice(name);
        slice.len -= 1;
        self.len -= 1;
        if slice.len == 0 {
            self.bytes -= slice.bytes.len();
            *slice = Slice::default();
        }
        Some(size)
    }

    /// The listing was cut, and all that came of it was looked at: the next one is for the same part.
    pub fn restart(&mut self) {
        self.end = SLICES;
    }

    /// All that it held was looked at: true if the server must be listed once more for the rest, from
    /// which on it takes keys.
    pub fn goes_on(&mut self) -> bool {
        (self.from, self.end) = (self.end, SLICES);
        let more = self.from < SLICES;
        if !more {
            self.from = 0;
        }
        more
    }
}

impl Slice {
    /// The next key and the size of its item.
    fn take(&mut self) -> Option<(&[u8], u32)> {
        let rest = &self.bytes[self.at..];
        let (head, rest) = rest.split_at_checked(HEAD)?;
        let name = rest.get(..usize::from(head[0]))?;
        let size = u32::from_le_bytes([head[1], head[2], head[3], head[4]]);
        self.at += HEAD + name.len();
        Some((name, size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(spool: &mut Spool, keys: u64) -> usize {
        let push = |n: &u64| {
            let hash = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
            spool.push(hash, format!("key{n}").as_bytes(), *n as u32)
        };
        (0..keys).filter(push).count()
    }

    #[test]
    fn what_does_not_fit_is_listed_again_and_no_key_is_forgotten() {
        for limit in [500, 3_000, 20_000, 1_000_000] {
            let mut spool = Spool::new(limit);
            let (mut seen, mut key) = (vec![0; 2000], Vec::new());
            for listing in 1.. {
                fill(&mut spool, 2000);
                assert!(spool.bytes() <= limit);
                while let Some(size) = spool.pop(&mut key) {
                    assert_eq!(key, format!("key{size}").as_bytes());
                    seen[size as usize] += 1;
                }
                assert_eq!((spool.len(), spool.bytes()), (0, 0));
                if !spool.goes_on() {
                    assert!(listing <= 2000 * 13 / limit * 2 + 3, "{listing} of {limit}");
                    break;
                }
            }
            assert!(seen.iter().all(|n| *n == 1), "{limit}");
            assert_eq!(spool.lost(), 0);
        }
    }

    #[test]
    fn a_slice_that_is_too_large_loses_the_rest() {
        let mut spool = Spool::new(40);
        let held = (0..10u8).filter(|n| spool.push(0, &[*n; 5], 0)).count();
        assert_eq!((held, spool.len(), spool.lost()), (4, 4, 6));
        assert!(!spool.push(0, &[0; 300], 0), "no key of memcached's");
    }
}
