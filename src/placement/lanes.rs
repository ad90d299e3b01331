//! MD5 of several short keys at once. Each step of MD5 waits for the one before it, so a processor
//! that does the same step for four keys together takes little longer than for one. RFC 1321.

/// Keys that are hashed together.
pub const LANES: usize = 4;

/// One number of each key.
type Lanes = [u32; LANES];

/// Longest key, in bytes, that is one block with its end mark and its length.
pub const LONGEST: usize = 55;

/// What a step adds: `floor(2^32 * abs(sin(i + 1)))`, by round.
const TABLE: [[u32; 16]; 4] = [
    [
        0xd76a_a478,
        0xe8c7_b756,
        0x2420_70db,
        0xc1bd_ceee,
        0xf57c_0faf,
        0x4787_c62a,
        0xa830_4613,
        0xfd46_9501,
        0x6980_98d8,
        0x8b44_f7af,
        0xffff_5bb1,
        0x895c_d7be,
        0x6b90_1122,
        0xfd98_7193,
        0xa679_438e,
        0x49b4_0821,
    ],
    [
        0xf61e_2562,
        0xc040_b340,
        0x265e_5a51,
        0xe9b6_c7aa,
        0xd62f_105d,
        0x0244_1453,
        0xd8a1_e681,
        0xe7d3_fbc8,
        0x21e1_cde6,
        0xc337_07d6,
        0xf4d5_0d87,
        0x455a_14ed,
        0xa9e3_e905,
        0xfcef_a3f8,
        0x676f_02d9,
        0x8d2a_4c8a,
    ],
    [
        0xfffa_3942,
        0x8771_f681,
        0x6d9d_6122,
        0xfde5_380c,
        0xa4be_ea44,
        0x4bde_cfa9,
        0xf6bb_4b60,
        0xbebf_bc70,
        0x289b_7ec6,
        0xeaa1_27fa,
        0xd4ef_3085,
        0x0488_1d05,
        0xd9d4_d039,
        0xe6db_99e5,
        0x1fa2_7cf8,
        0xc4ac_5665,
    ],
    [
        0xf429_2244,
        0x432a_ff97,
        0xab94_23a7,
        0xfc93_a039,
        0x655b_59c3,
        0x8f0c_cc92,
        0xffef_f47d,
        0x8584_5dd1,
        0x6fa8_7e4f,
        0xfe2c_e6e0,
        0xa301_4314,
        0x4e08_11a1,
        0xf753_7e82,
        0xbd3a_f235,
        0x2ad7_d2bb,
        0xeb86_d391,
    ],
];

/// What a digest begins with, before the first block.
const START: [u32; 4] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];

/// The first little-endian number of the MD5 of each key. None may be longer than [`LONGEST`].
pub fn md5_first(keys: &[&[u8]; LANES]) -> Lanes {
    let block = load(keys);
    let mut state = START.map(|n| [n; LANES]);
    round::<7, 12, 17, 22>(&mut state, &block, 0, (0, 1), |x, y, z| z ^ (x & (y ^ z)));
    round::<5, 9, 14, 20>(&mut state, &block, 1, (1, 5), |x, y, z| y ^ (z & (x ^ y)));
    round::<4, 11, 16, 23>(&mut state, &block, 2, (5, 3), |x, y, z| x ^ y ^ z);
    round::<6, 10, 15, 21>(&mut state, &block, 3, (0, 7), |x, y, z| y ^ (x | !z));
    state[0].map(|n| n.wrapping_add(START[0]))
}

/// The one block of each key, by words.
fn load(keys: &[&[u8]; LANES]) -> [Lanes; 16] {
    let mut words = [[0; LANES]; 16];
    for (lane, key) in keys.iter().enumerate() {
        let mut bytes = [0; 64];
        bytes[..key.len()].copy_from_slice(key);
        bytes[key.len()] = 0x80;
        bytes[56..].copy_from_slice(&(key.len() as u64 * 8).to_le_bytes());
        for (word, four) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            word[lane] = u32::from_le_bytes([four[0], four[1], four[2], four[3]]);
        }
    }
    words
}

/// One of the four rounds, of 16 steps. `A` to `D` are what it rotates by; `order` is the first word
/// that it takes and how far on the next one is.
#[inline(always)]
fn round<const A: u32, const B: u32, const C: u32, const D: u32>(
    state: &mut [Lanes; 4],
    block: &[Lanes; 16],
    number: usize,
    order: (usize, usize),
    mix: impl Fn(u32, u32, u32) -> u32 + Copy,
) {
    let [mut a, mut b, mut c, mut d] = *state;
    let given = |i: usize| (block[(order.0 + order.1 * i) % 16], TABLE[number][i]);
    for i in (0..16).step_by(4) {
        a = step::<A>([a, b, c, d], given(i), mix);
        d = step::<B>([d, a, b, c], given(i + 1), mix);
        c = step::<C>([c, d, a, b], given(i + 2), mix);
        b = step::<D>([b, c, d, a], given(i + 3), mix);
    }
    *state = [a, b, c, d];
}

#[inline(always)]
fn step<const BITS: u32>(
    [a, b, c, d]: [Lanes; 4],
    (word, add): (Lanes, u32),
    mix: impl Fn(u32, u32, u32) -> u32,
) -> Lanes {
    let mut next = [0; LANES];
    for i in 0..LANES {
        let sum = a[i].wrapping_add(mix(b[i], c[i], d[i]));
        let sum = sum.wrapping_add(word[i]).wrapping_add(add);
        next[i] = sum.rotate_left(BITS).wrapping_add(b[i]);
    }
    next
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::hash;

    #[test]
    fn each_lane_is_the_md5_of_its_key() {
        let text: Vec<u8> = (0..LONGEST as u8)
            .map(|b| b.wrapping_mul(37) ^ 0x80)
            .collect();
        for len in 0..=LONGEST {
            let keys = [
                &text[..len],
                &text[1..len.max(1)],
                b"key",
                &text[LONGEST - len..],
            ];
            let expected = keys.map(hash::md5_first);
            assert_eq!(md5_first(&keys), expected, "{len}");
        }
    }
}
