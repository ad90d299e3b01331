//! The keys and values of a run. A value can be told from every other, so that a mixed-up answer
//! is noticed, and none is stored: all are windows of one block.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::Result;

/// What every key starts with; eight digits follow.
const PREFIX: &[u8] = b"bench:";

/// Values of neighbours start so many bytes apart in the block; prime, so that no two of the
/// first [`SPREAD`] keys share a window.
const STEP: usize = 97;

/// Windows start within the block's first so many bytes. Small, to stay in the cache.
const SPREAD: usize = 64 * 1024;

/// All values together take at most so many bytes of a server's memory.
const FARM_BYTES: usize = 32 << 20;

/// So many sets are written before their answers are read while filling. Their bytes and their
/// answers fit into socket buffers, so neither side can wait for the other.
const FILL_BATCH: usize = 64;

/// Keys and values of one size.
pub struct Data {
    block: Vec<u8>,
    /// Bytes of a value.
    pub size: usize,
    /// How many keys there are.
    pub count: usize,
}

impl Data {
    /// Keys with values of `size` bytes: ten thousand, or fewer if values are large.
    pub fn new(size: usize) -> Data {
        let mut seed = 0x9e37_79b9_7f4a_7c15;
        Data {
            block: (0..size + SPREAD)
                .map(|_| b'!' + (random(&mut seed) % 94) as u8)
                .collect(),
            size,
            count: (FARM_BYTES / size.max(1)).clamp(64, 10_000),
        }
    }

    /// The value of key number `n`.
    pub fn value(&self, n: usize) -> &[u8] {
        let at = n * STEP % SPREAD;
        &self.block[at..at + self.size]
    }

    /// Appends a set of key number `n`.
    pub fn push_set(&self, out: &mut Vec<u8>, n: usize) {
        out.extend_from_slice(b"set ");
        push_key(out, n);
        out.extend_from_slice(b" 0 0 ");
        push_number(out, self.size);
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(self.value(n));
        out.extend_from_slice(b"\r\n");
    }

    /// Appends one get of `keys` keys from number `first` on.
    pub fn push_get(&self, out: &mut Vec<u8>, first: usize, keys: usize) {
        out.extend_from_slice(b"get");
        for n in first..first + keys {
            out.push(b' ');
            push_key(out, n % self.count);
        }
        out.extend_from_slice(b"\r\n");
    }

    /// Sets every key through whoever listens at `to`.
    pub fn fill(&self, to: SocketAddr) -> Result<()> {
        let mut io = TcpStream::connect(to)?;
        io.set_nodelay(true)?;
        io.set_read_timeout(Some(Duration::from_secs(10)))?;
        let batch = if self.size > 1024 { 1 } else { FILL_BATCH };
        let mut out = Vec::new();
        for first in (0..self.count).step_by(batch) {
            out.clear();
            let last = (first + batch).min(self.count);
            (first..last).for_each(|n| self.push_set(&mut out, n));
            io.write_all(&out)?;
            let mut answer = vec![0; (last - first) * STORED.len()];
            io.read_exact(&mut answer)
                .map_err(|e| format!("filling {to}: {e}: {}", answer.escape_ascii()))?;
            if answer.chunks(STORED.len()).any(|a| a != STORED) {
                return Err(format!("filling {to}: {}", answer.escape_ascii()).into());
            }
        }
        Ok(())
    }
}

/// The answer to a set.
pub const STORED: &[u8] = b"STORED\r\n";

/// The number of the key at the start of `text` and what follows it; `None` if no key is there.
pub fn parse_key(text: &[u8]) -> Option<(usize, &[u8])> {
    let digits = text.strip_prefix(PREFIX)?;
    let (digits, rest) = digits.split_at_checked(8)?;
    Some((parse_number(digits)?, rest))
}

/// A decimal number of up to eight digits.
pub fn parse_number(digits: &[u8]) -> Option<usize> {
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    digits.iter().try_fold(0, |n, &d| {
        d.is_ascii_digit().then(|| n * 10 + usize::from(d - b'0'))
    })
}

fn push_key(out: &mut Vec<u8>, n: usize) {
    out.extend_from_slice(PREFIX);
    let mut digits = [b'0'; 8];
    let mut rest = n;
    for d in digits.iter_mut().rev() {
        *d = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    out.extend_from_slice(&digits);
}

fn push_number(out: &mut Vec<u8>, n: usize) {
    if n >= 10 {
        push_number(out, n / 10);
    }
    out.push(b'0' + (n % 10) as u8);
}

/// Xorshift: the same numbers in every run, and next to no time.
pub fn random(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}
