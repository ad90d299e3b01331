//! Base64 as memcached reads and writes it in meta keys.

const TABLE: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Appends the base64 of `bytes` to `out`.
pub fn encode(bytes: &[u8], out: &mut Vec<u8>) {
    for c in bytes.chunks(3) {
        let b = [c[0], *c.get(1).unwrap_or(&0), *c.get(2).unwrap_or(&0)];
        let n = u32::from_be_bytes([0, b[0], b[1], b[2]]);
        for i in 0..4 {
            out.push(if i <= c.len() {
                TABLE[(n >> (18 - 6 * i)) as usize & 63]
            } else {
                b'='
            });
        }
    }
}

/// Appends what `text` means to `out`; false if it is not base64.
pub fn decode(text: &[u8], out: &mut Vec<u8>) -> bool {
    for c in text.chunks(4) {
        let digits = c.iter().take_while(|&&b| b != b'=').count();
        let mut n = 0;
        for &b in &c[..digits] {
            let Some(v) = TABLE.iter().position(|&t| t == b) else {
                return false;
            };
            n = n << 6 | v as u32;
        }
        if c.len() != 4 || digits < 2 {
            return false;
        }
        let bytes = (n << (6 * (4 - digits))).to_be_bytes();
        out.extend_from_slice(&bytes[1..digits]);
    }
    !text.is_empty()
}
