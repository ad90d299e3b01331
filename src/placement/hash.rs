//! Key → number: magent's DJB, and the twelve hashes of twemproxy 0.5, bit for bit.
//!
//! twemproxy's byte-wise hashes read the key as C's signed `char`, so a byte from 0x80 on counts
//! as a negative number. Every placement in the field was made that way, so it stays.

use super::Hash;
use super::lanes::{self, LONGEST};

/// The number that `hash` makes of `key`. For [`Hash::Magent`] the 31-bit DJB hash.
pub fn hash(hash: Hash, key: &[u8]) -> u32 {
    match hash {
        Hash::Magent => djb(key),
        Hash::OneAtATime => one_at_a_time(key),
        Hash::Md5 => md5_first(key),
        Hash::Crc16 => crc16(key),
        Hash::Crc32 => (crc32(key) >> 16) & 0x7fff,
        Hash::Crc32a => crc32(key),
        Hash::Fnv1_64 => fnv1_64(key),
        Hash::Fnv1a64 => fnv1a_64(key),
        Hash::Fnv1_32 => fnv1_32(key),
        Hash::Fnv1a32 => fnv1a_32(key),
        Hash::Hsieh => hsieh(key),
        Hash::Murmur => murmur(key),
        Hash::Jenkins => jenkins(key),
    }
}

/// A byte as C's signed `char`, widened.
fn signed(byte: u8) -> u32 {
    byte as i8 as u32
}

/// The 31-bit DJB hash of magent 0.6 (D. J. Bernstein, times 33 and add).
fn djb(key: &[u8]) -> u32 {
    let step = |h: u32, &b: &u8| h.wrapping_mul(33).wrapping_add(signed(b));
    key.iter().fold(5381, step) & 0x7fff_ffff
}

/// The four little-endian numbers of an MD5: four points of a ketama ring.
pub fn md5_points(text: &[u8]) -> [u32; 4] {
    let d = md5::compute(text).0;
    let at = |i: usize| u32::from_le_bytes([d[i], d[i + 1], d[i + 2], d[i + 3]]);
    [at(0), at(4), at(8), at(12)]
}

/// The first little-endian number of the key's MD5.
pub fn md5_first(key: &[u8]) -> u32 {
    match key.len() {
        0..=LONGEST => lanes::md5_first(&[key])[0],
        _ => md5_points(key)[0],
    }
}

/// Bob Jenkins' one-at-a-time.
fn one_at_a_time(key: &[u8]) -> u32 {
    let mut h = 0u32;
    for &b in key {
        h = h.wrapping_add(signed(b));
        h = h.wrapping_add(h << 10);
        h ^= h >> 6;
    }
    h = h.wrapping_add(h << 3);
    h ^= h >> 11;
    h.wrapping_add(h << 15)
}

/// The table of CRC-32 (IEEE 802.3, reflected).
const fn crc32_table() -> [u32; 256] {
    let mut table = [0u32; 256];
    let mut i = 0;
    while i < 256 {
        let mut c = i as u32;
        let mut bit = 0;
        while bit < 8 {
            let poly = if c & 1 == 1 { 0xedb8_8320 } else { 0 };
            c = (c >> 1) ^ poly;
            bit += 1;
        }
        table[i] = c;
        i += 1;
    }
    table
}

/// The table of CRC-16/XMODEM (polynomial 0x1021).
const fn crc16_table() -> [u32; 256] {
    let mut table = [0u32; 256];
    let mut i = 0;
    while i < 256 {
        let mut c = (i as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            let poly = if c & 0x8000 != 0 { 0x1021 } else { 0 };
            c = (c << 1) ^ poly;
            bit += 1;
        }
        table[i] = c as u32;
        i += 1;
    }
    table
}

static CRC32: [u32; 256] = crc32_table();
static CRC16: [u32; 256] = crc16_table();

/// CRC-16 in a register of 32 bits that is never masked: what was shifted out stays on top.
fn crc16(key: &[u8]) -> u32 {
    let step = |c: u32, &b: &u8| (c << 8) ^ CRC16[(((c >> 8) ^ b as u32) & 0xff) as usize];
    key.iter().fold(0, step)
}

fn crc32(key: &[u8]) -> u32 {
    let step = |c: u32, &b: &u8| (c >> 8) ^ CRC32[((c ^ b as u32) & 0xff) as usize];
    !key.iter().fold(u32::MAX, step)
}

/// Offset and prime of the 64-bit FNV; the low halves are used by twemproxy's `fnv1a_64`.
const FNV64: (u64, u64) = (0xcbf2_9ce4_8422_2325, 0x0100_0000_01b3);
/// Offset and prime of the 32-bit FNV.
const FNV32: (u32, u32) = (2_166_136_261, 16_777_619);

fn fnv1_64(key: &[u8]) -> u32 {
    let step = |h: u64, &b: &u8| h.wrapping_mul(FNV64.1) ^ (b as i8 as u64);
    key.iter().fold(FNV64.0, step) as u32
}

/// Only the low 32 bits were ever computed: the same as the whole cut to 32 bits.
fn fnv1a_64(key: &[u8]) -> u32 {
    let step = |h: u32, &b: &u8| (h ^ signed(b)).wrapping_mul(FNV64.1 as u32);
    key.iter().fold(FNV64.0 as u32, step)
}

fn fnv1_32(key: &[u8]) -> u32 {
    let step = |h: u32, &b: &u8| h.wrapping_mul(FNV32.1) ^ signed(b);
    key.iter().fold(FNV32.0, step)
}

fn fnv1a_32(key: &[u8]) -> u32 {
    let step = |h: u32, &b: &u8| (h ^ signed(b)).wrapping_mul(FNV32.1);
    key.iter().fold(FNV32.0, step)
}

/// Paul Hsieh's SuperFastHash, started from 0; only its last odd byte of three is signed.
fn hsieh(key: &[u8]) -> u32 {
    let pair = |s: &[u8]| u16::from_le_bytes([s[0], s[1]]) as u32;
    let mut h = 0u32;
    let mut quads = key.chunks_exact(4);
    for q in &mut quads {
        h = h.wrapping_add(pair(q));
        h = (h << 16) ^ (pair(&q[2..]) << 11) ^ h;
        h = h.wrapping_add(h >> 11);
    }
    match quads.remainder() {
        [a, b, c] => {
            h = h.wrapping_add(pair(&[*a, *b]));
            h ^= h << 16;
            h ^= signed(*c) << 18;
            h = h.wrapping_add(h >> 11);
        }
        [a, b] => {
            h = h.wrapping_add(pair(&[*a, *b]));
            h ^= h << 11;
            h = h.wrapping_add(h >> 17);
        }
        [a] => {
            h = h.wrapping_add(*a as u32);
            h ^= h << 10;
            h = h.wrapping_add(h >> 1);
        }
        _ => {}
    }
    h ^= h << 3;
    h = h.wrapping_add(h >> 5);
    h ^= h << 4;
    h = h.wrapping_add(h >> 17);
    h ^= h << 25;
    h.wrapping_add(h >> 6)
}

/// Austin Appleby's MurmurHash2, seeded with 0xdeadbeef times the length.
fn murmur(key: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let len = key.len() as u32;
    let mut h = 0xdead_beef_u32.wrapping_mul(len) ^ len;
    let mut quads = key.chunks_exact(4);
    for q in &mut quads {
        let mut k = u32::from_le_bytes([q[0], q[1], q[2], q[3]]).wrapping_mul(M);
        k ^= k >> 24;
        h = h.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let rest = quads.remainder();
    if !rest.is_empty() {
        h = (h ^ little_endian(rest)).wrapping_mul(M);
    }
    h ^= h >> 13;
    h = h.wrapping_mul(M);
    h ^ (h >> 15)
}

/// Up to four bytes as a little-endian number, the missing ones zero.
fn little_endian(bytes: &[u8]) -> u32 {
    let shifted = |(i, &b): (usize, &u8)| (b as u32) << (8 * i);
    bytes.iter().take(4).enumerate().map(shifted).sum()
}

/// Bob Jenkins' lookup3 (`hashlittle`), started with 13.
fn jenkins(key: &[u8]) -> u32 {
    let start = 0xdead_beef_u32
        .wrapping_add(key.len() as u32)
        .wrapping_add(13);
    let (mut a, mut b, mut c) = (start, start, start);
    if key.is_empty() {
        return c;
    }
    let mut rest = key;
    loop {
        // The last block may be short; lookup3 pads it with zeros.
        let block = &rest[..rest.len().min(12)];
        let word = |i: usize| little_endian(block.get(4 * i..).unwrap_or(&[]));
        a = a.wrapping_add(word(0));
        b = b.wrapping_add(word(1));
        c = c.wrapping_add(word(2));
        if rest.len() <= 12 {
            return jenkins_final(a, b, c);
        }
        (a, b, c) = jenkins_mix(a, b, c);
        rest = &rest[12..];
    }
}

fn jenkins_mix(mut a: u32, mut b: u32, mut c: u32) -> (u32, u32, u32) {
    for turns in [[4, 6, 8], [16, 19, 4]] {
        a = a.wrapping_sub(c) ^ c.rotate_left(turns[0]);
        c = c.wrapping_add(b);
        b = b.wrapping_sub(a) ^ a.rotate_left(turns[1]);
        a = a.wrapping_add(c);
        c = c.wrapping_sub(b) ^ b.rotate_left(turns[2]);
        b = b.wrapping_add(a);
    }
    (a, b, c)
}

fn jenkins_final(mut a: u32, mut b: u32, mut c: u32) -> u32 {
    c = (c ^ b).wrapping_sub(b.rotate_left(14));
    a = (a ^ c).wrapping_sub(c.rotate_left(11));
    b = (b ^ a).wrapping_sub(a.rotate_left(25));
    c = (c ^ b).wrapping_sub(b.rotate_left(16));
    a = (a ^ c).wrapping_sub(c.rotate_left(4));
    b = (b ^ a).wrapping_sub(a.rotate_left(14));
    (c ^ b).wrapping_sub(b.rotate_left(24))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check values that the algorithms' own documents give; the vectors in `tests/` do the rest.
    #[test]
    fn published_check_values() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(crc16(b"123456789") & 0xffff, 0x31c3);
        assert_eq!(fnv1a_32(b"foobar"), 0xbf9c_f968);
        assert_eq!(fnv1_32(b"foobar"), 0x31f0_b262);
        assert_eq!(fnv1a_64(b"foobar"), 0x8594_4171_f739_67e8_u64 as u32);
        assert_eq!(fnv1_64(b"foobar"), 0x340d_8765_a4dd_a9c2_u64 as u32);
        assert_eq!(one_at_a_time(b"a"), 0xca2e_9442);
    }

    #[test]
    fn djb_takes_high_bytes_as_negative_and_clears_the_top_bit() {
        assert_eq!(djb(b""), 5381);
        assert_eq!(djb(b"a"), 5381 * 33 + 97);
        assert_eq!(djb(&[0xff]), 5381 * 33 - 1);
        assert!(djb(&[b'z'; 250]) < 1 << 31);
    }

    #[test]
    fn no_length_and_no_byte_panics() {
        for h in Hash::all() {
            for len in 0..260 {
                hash(h, &vec![0xff; len]);
                hash(h, &vec![0; len]);
            }
        }
    }
}
