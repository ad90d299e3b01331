//! Base64 as memcached reads and writes it (RFC 4648, with its own idea of what to refuse).

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// The mark of a byte that is no part of base64.
const NONE: u8 = 0x80;

/// What each byte stands for; `=` counts as a digit of value 0, as in memcached.
const DIGITS: [u8; 256] = {
    let mut table = [NONE; 256];
    let mut i = 0;
    while i < ALPHABET.len() {
        table[ALPHABET[i] as usize] = i as u8;
        i += 1;
    }
    table[b'=' as usize] = 0;
    table
};

/// Appends the canonical base64 of `bytes` to `out`.
pub fn encode(bytes: &[u8], out: &mut Vec<u8>) {
    let digit = |n: u8| ALPHABET[usize::from(n & 0x3f)];
    for block in bytes.chunks(3) {
        let at = |i: usize| block.get(i).copied().unwrap_or(0);
        out.push(digit(at(0) >> 2));
        out.push(digit(at(0) << 4 | at(1) >> 4));
        out.push(match block.len() {
            1 => b'=',
            _ => digit(at(1) << 2 | at(2) >> 6),
        });
        out.push(match block.len() {
            3 => digit(at(2)),
            _ => b'=',
        });
    }
}

/// Appends what `text` means to `out`; false (and nothing appended) where memcached fails.
///
/// Like memcached it skips foreign bytes, wants whole blocks of four, and stops behind the
/// first block with padding. So many texts mean the same bytes: only what [`encode`] makes
/// of them may be compared.
pub fn decode(text: &[u8], out: &mut Vec<u8>) -> bool {
    let is_digit = |&b: &u8| DIGITS[usize::from(b)] != NONE;
    let digits = text.iter().filter(|b| is_digit(b)).count();
    if digits == 0 || digits % 4 != 0 {
        return false;
    }
    let before = out.len();
    let (mut block, mut filled, mut padding) = ([0u8; 4], 0, 0);
    for &byte in text.iter().filter(|b| is_digit(b)) {
        block[filled] = DIGITS[usize::from(byte)];
        filled += 1;
        padding += usize::from(byte == b'=');
        if filled < block.len() {
            continue;
        }
        filled = 0;
        let bytes = [
            block[0] << 2 | block[1] >> 4,
            block[1] << 4 | block[2] >> 2,
            block[2] << 6 | block[3],
        ];
        match padding {
            0 => out.extend_from_slice(&bytes),
            1 | 2 => {
                out.extend_from_slice(&bytes[..bytes.len() - padding]);
                break;
            }
            _ => {
                out.truncate(before);
                return false;
            }
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(text: &[u8]) -> Option<Vec<u8>> {
        let mut out = b"kept".to_vec();
        let good = decode(text, &mut out);
        assert!(out.starts_with(b"kept") && (good || out.len() == 4));
        good.then(|| out[4..].to_vec())
    }

    #[test]
    fn rfc_4648_vectors() {
        for (bytes, text) in [
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            let mut out = Vec::new();
            encode(bytes.as_bytes(), &mut out);
            assert_eq!(out, text.as_bytes());
            assert_eq!(decoded(text.as_bytes()).as_deref(), Some(bytes.as_bytes()));
        }
    }

    #[test]
    fn every_length_comes_back() {
        let bytes: Vec<u8> = (0..=255).rev().collect();
        for n in 1..bytes.len() {
            let mut text = Vec::new();
            encode(&bytes[..n], &mut text);
            assert_eq!(decoded(&text).as_deref(), Some(&bytes[..n]));
        }
    }

    #[test]
    fn what_memcached_refuses_and_what_it_takes() {
        for text in [
            "", "!", "Z", "Zg", "Zg=", "Zm9vY", "====", "Z===", "Zm9vZ===",
        ] {
            assert_eq!(decoded(text.as_bytes()), None, "{text}");
        }
        for (text, bytes) in [
            ("Z!m-9_v", "foo"),
            ("Zg==Zm9v", "f"),
            ("Zh==", "f"),
            ("=m9v", "\u{2}o"),
            ("Zm9vZ=g=", "food"),
        ] {
            assert_eq!(
                decoded(text.as_bytes()).as_deref(),
                Some(bytes.as_bytes()),
                "{text}"
            );
        }
    }
}
