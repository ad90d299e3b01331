//! Key → server: hashes, distributions, weights. Pure; nothing else knows where a key goes.

/// How a key becomes a number (behaviour.md §8). `Magent` is DJB (with ketama MD5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Hash {
    Magent,
    OneAtATime,
    Md5,
    Crc16,
    Crc32,
    Crc32a,
    Fnv1_64,
    Fnv1a64,
    Fnv1_32,
    Fnv1a32,
    Hsieh,
    Murmur,
    Jenkins,
}

/// How a number becomes a server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Distribution {
    /// magent's modulo, in the order of `-s`.
    Magent,
    /// magent's ketama (`-k`).
    MagentKetama,
    /// twemproxy's ketama.
    Ketama,
    /// twemproxy's modula.
    Modula,
    /// Any server.
    Random,
}
