//! Where keys go, computed here once more so that the tests don't ask the tested.

/// magent's 31-bit DJB hash: bytes from 0x80 on are negative, 32-bit wrap, top bit cleared.
pub fn djb(key: &[u8]) -> u32 {
    let step = |h: u32, b: &u8| h.wrapping_mul(33).wrapping_add(*b as i8 as u32);
    key.iter().fold(5381, step) & 0x7fff_ffff
}

/// The server of `servers` that holds `key` under modulo.
pub fn home(key: &str, servers: usize) -> usize {
    djb(key.as_bytes()) as usize % servers
}

/// Key number `number` of those that begin with `prefix` and live on `server`.
pub fn key_on(server: usize, servers: usize, prefix: &str, number: usize) -> String {
    let all = (0..).map(|i| format!("{prefix}{i}"));
    all.filter(|k| home(k, servers) == server)
        .nth(number)
        .expect("keys never end")
}

#[test]
fn the_hash_is_the_one_of_the_vectors() {
    for line in include_str!("../vectors/magent.tsv")
        .lines()
        .filter(|l| !l.starts_with('#'))
        .skip(1)
    {
        let mut fields = line.split('\t');
        let (key, hash) = (
            fields.next().expect("a key"),
            fields.next().expect("a hash"),
        );
        assert_eq!(djb(key.as_bytes()).to_string(), hash, "{key}");
    }
}
