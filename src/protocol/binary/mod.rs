//! The binary protocol, a dialect of clients only: requests become meta commands, replies binary
//! again.
//!
//! ```text
//!  0x80 header, extras, key, value ──parse──▶ `ms KEY 5 F7 c` ──▶ server
//!  0x81 header, extras, key, value ◀─answer── `HD c12`        ◀── server
//! ```
//!
//! What is answered, refused or kept silent follows memcached 1.6.18 byte for byte. The client's
//! opcode and opaque are its [`BinaryFormat`]; everything else is read from the upstream request
//! line.

mod answer;
mod parse;
#[cfg(test)]
mod tests;

pub use answer::{answer, error, ok, stat, stat_end, stat_unknown};
pub use parse::parse;

use super::BinaryFormat;

/// First byte of every request.
const REQUEST: u8 = 0x80;
/// First byte of every answer.
const RESPONSE: u8 = 0x81;
/// Bytes of a header, of requests and answers alike.
const HEADER: usize = 24;

/// What an opcode asks for, whether quietly or not, with or without the key in the answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Op {
    Get,
    GetAndTouch,
    Touch,
    Set,
    Add,
    Replace,
    Append,
    Prepend,
    Delete,
    Increment,
    Decrement,
    Quit,
    Flush,
    Noop,
    Version,
    Stat,
    Verbosity,
    SaslMechanisms,
    Sasl,
    Unknown,
}

impl Op {
    /// True if a value follows the key.
    fn stores(self) -> bool {
        matches!(
            self,
            Op::Set | Op::Add | Op::Replace | Op::Append | Op::Prepend
        )
    }
}

/// The opcodes of memcached 1.6.18, and 0x1b (verbosity), which the protocol has and it lacks.
fn op(opcode: u8) -> Op {
    match opcode {
        0x00 | 0x09 | 0x0c | 0x0d => Op::Get,
        0x01 | 0x11 => Op::Set,
        0x02 | 0x12 => Op::Add,
        0x03 | 0x13 => Op::Replace,
        0x04 | 0x14 => Op::Delete,
        0x05 | 0x15 => Op::Increment,
        0x06 | 0x16 => Op::Decrement,
        0x07 | 0x17 => Op::Quit,
        0x08 | 0x18 => Op::Flush,
        0x0a => Op::Noop,
        0x0b => Op::Version,
        0x0e | 0x19 => Op::Append,
        0x0f | 0x1a => Op::Prepend,
        0x10 => Op::Stat,
        0x1b => Op::Verbosity,
        0x1c => Op::Touch,
        0x1d | 0x1e | 0x23 | 0x24 => Op::GetAndTouch,
        0x20 => Op::SaslMechanisms,
        0x21 | 0x22 => Op::Sasl,
        _ => Op::Unknown,
    }
}

/// True if the opcode is a quiet form: a miss of get and a success of anything else is not
/// answered.
pub fn is_quiet(opcode: u8) -> bool {
    matches!(opcode, 0x09 | 0x0d | 0x11..=0x1a | 0x1e | 0x24)
}

/// True if the answer holds the key (getk, getkq, gatk, gatkq).
fn returns_key(opcode: u8) -> bool {
    matches!(opcode, 0x0c | 0x0d | 0x23 | 0x24)
}

/// The status field of an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Code {
    Success = 0x00,
    NotFound = 0x01,
    Exists = 0x02,
    TooLarge = 0x03,
    Invalid = 0x04,
    NotStored = 0x05,
    NotANumber = 0x06,
    NotAllowed = 0x20,
    UnknownCommand = 0x81,
    OutOfMemory = 0x82,
    NotSupported = 0x83,
    Temporary = 0x86,
}

impl Code {
    /// The body that goes with it; memcached's words where memcached has the code.
    fn text(self) -> &'static [u8] {
        match self {
            Code::Success => b"",
            Code::NotFound => b"Not found",
            Code::Exists => b"Data exists for key.",
            Code::TooLarge => b"Too large.",
            Code::Invalid => b"Invalid arguments",
            Code::NotStored => b"Not stored.",
            Code::NotANumber => b"Non-numeric server-side value for incr or decr",
            Code::NotAllowed => b"Auth failure.",
            Code::UnknownCommand => b"Unknown command",
            Code::OutOfMemory => b"Out of memory",
            Code::NotSupported => b"Not supported",
            Code::Temporary => b"Temporary failure",
        }
    }
}

/// An answer's header. `body` counts extras, key and value.
fn header(
    d: &BinaryFormat,
    code: Code,
    key: u16,
    extras: u8,
    body: usize,
    cas: u64,
) -> [u8; HEADER] {
    let mut h = [0; HEADER];
    h[0] = RESPONSE;
    h[1] = d.opcode;
    h[2..4].copy_from_slice(&key.to_be_bytes());
    h[4] = extras;
    h[6..8].copy_from_slice(&(code as u16).to_be_bytes());
    h[8..12].copy_from_slice(&(body as u32).to_be_bytes());
    h[12..16].copy_from_slice(&d.opaque);
    h[16..24].copy_from_slice(&cas.to_be_bytes());
    h
}
