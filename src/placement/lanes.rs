//! The first number of the MD5 of short keys, of one or of several at once (RFC 1321). Each step of MD5
//! waits for the one before it, so a processor that does the same step for four keys together takes little
//! longer than for one.

/// Keys that are hashed together.
pub const LANES: usize = 4;

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
pub fn md5_first<const N: usize>(keys: &[&[u8]; N]) -> [u32; N] {
    let block = load(keys);
    let mut first = [0; N];
    // One loop over whole digests: the compiler does each step for all lanes by one instruction.
    for (lane, first) in first.iter_mut().enumerate() {
        let mut state = START;
        let word = |i: usize| block[i][lane];
        round(&mut state, word, (0, [7, 12, 17, 22]), (0, 1), |x, y, z| {
            z ^ (x & (y ^ z))
        });
        round(&mut state, word, (1, [5, 9, 14, 20]), (1, 5), |x, y, z| {
            (x & z) | (y & !z)
        });
        round(&mut state, word, (2, [4, 11, 16, 23]), (5, 3), |x, y, z| {
            x ^ (y ^ z)
        });
        round(&mut state, word, (3, [6, 10, 15, 21]), (0, 7), |x, y, z| {
            y ^ (x | !z)
        });
        *first = state[0].wrapping_add(START[0]);
    }
    first
}

/// The one block of each key, by words.
#[inline(always)]
fn load<const N: usize>(keys: &[&[u8]; N]) -> [[u32; N]; 16] {
    let mut words = [[0; N]; 16];
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

/// One of the four rounds, of 16 steps: its number and what it rotates by. `order` is the first word
/// that it takes and how far on the next one is.
#[inline(always)]
fn round(
    state: &mut [u32; 4],
    word: impl Fn(usize) -> u32,
    (number, bits): (usize, [u32; 4]),
    order: (usize, usize),
    mix: impl Fn(u32, u32, u32) -> u32,
) {
    let [mut a, mut b, mut c, mut d] = *state;
    let step = |bits: u32, [a, b, c, d]: [u32; 4], i: usize| {
        let given = word((order.0 + order.1 * i) % 16).wrapping_add(TABLE[number][i]);
        let sum = a.wrapping_add(given).wrapping_add(mix(b, c, d));
        sum.rotate_left(bits).wrapping_add(b)
    };
    for i in (0..16).step_by(4) {
        a = step(bits[0], [a, b, c, d], i);
        d = step(bits[1], [d, a, b, c], i + 1);
        c = step(bits[2], [c, d, a, b], i + 2);
        b = step(bits[3], [b, c, d, a], i + 3);
    }
    *state = [a, b, c, d];
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
            let expected = keys.map(|key| hash::md5_points(key)[0]);
            assert_eq!(md5_first(&keys), expected, "{len}");
            let alone = keys.map(|key| md5_first(&[key])[0]);
            assert_eq!(alone, expected, "{len}");
        }
    }
}
