//! Cas numbers between the farms: those of backups are marked on their way to the client.
//!
//! ```text
//! backup says 7 ──mark_cas──▶ client holds 2^62 + 7 ──flip_cas──▶ backup is asked with 7
//!                             client holds 9        ──flip_cas──▶ backup is asked with 2^62 + 9
//! ```
//!
//! So a number works only on the farm that it came from: servers count from 1 and never get to
//! 2^62. The number 0 is none, and stays what it is.

use super::{Decimal, flags_index, number, tokens};
use crate::buffer::Queue;
use crate::protocol::{Item, Reply, Verb};

/// The bit that marks a cas number as a backup's. Alone it is a number that never matches.
pub const BACKUP_CAS: u64 = 1 << 62;

/// Appends `line` with the mark of its cas number turned over, for the backup.
pub fn flip_cas(verb: Verb, line: &[u8], out: &mut Vec<u8>) {
    let first_flag = flags_index(verb);
    for (i, token) in tokens(line).enumerate() {
        if i > 0 {
            out.push(b' ');
        }
        let cas = match token {
            _ if verb == Verb::Cas && i == 5 => token,
            [b'C', cas @ ..] if verb.is_meta() && i >= first_flag => {
                out.push(b'C');
                cas
            }
            _ => {
                out.extend_from_slice(token);
                continue;
            }
        };
        let cas = match number(cas.strip_prefix(b"+").unwrap_or(cas)) {
            Some(0) => 0,
            Some(n) => n ^ BACKUP_CAS,
            // Some other way to write a number; no number of ours, so it must not match.
            None => u64::MAX,
        };
        out.extend_from_slice(Decimal::new(cas).bytes());
    }
    out.extend_from_slice(b"\r\n");
}

/// Pushes a backup's reply with each of its cas numbers marked; the rest is shared. Returns where
/// its values stand then.
pub fn mark_cas(verb: Verb, reply: &Reply, out: &mut Queue) -> Vec<Item> {
    let mut from = reply.at;
    let start = out.end();
    let mut items = Vec::new();
    match verb {
        Verb::Gets | Verb::Gats => {
            for item in reply.items {
                let at = reply.at + item.at;
                let line = reply.source.slice(at..at + item.line);
                let moved = (out.end() - start) as usize + at - from;
                let mut marked = *item;
                marked.at = moved;
                // VALUE KEY FLAGS LENGTH CAS
                if let Some(cas) = tokens(line).nth(4) {
                    marked.line += mark(reply, at + offset(line, cas), cas, &mut from, out);
                }
                items.push(marked);
            }
        }
        _ if verb.is_meta() => {
            let line = reply.source.slice(reply.at..reply.at + reply.line);
            let mut tokens = tokens(line).skip(1);
            if let Some(cas) = tokens.find_map(|token| token.strip_prefix(b"c")) {
                mark(reply, reply.at + offset(line, cas), cas, &mut from, out);
                // The rest of the line is copied too: a line stands in one piece.
                let behind = reply.at + reply.line;
                out.push(reply.source, from..behind);
                from = behind;
            }
        }
        _ => {}
    }
    out.push(reply.source, from..reply.at + reply.len);
    items
}

/// Pushes what stands from `from` to the cas number at `at`, then that number marked. Returns by
/// how many bytes it became longer.
fn mark(reply: &Reply, at: usize, cas: &[u8], from: &mut usize, out: &mut Queue) -> usize {
    let Some(value) = number(cas).filter(|&value| value != 0) else {
        return 0;
    };
    let marked = Decimal::new(value | BACKUP_CAS);
    out.push(reply.source, *from..at);
    out.push_slice(marked.bytes());
    *from = at + cas.len();
    marked.bytes().len().saturating_sub(cas.len())
}

/// Where `part`, a piece of `line`, starts in it.
fn offset(line: &[u8], part: &[u8]) -> usize {
    part.as_ptr() as usize - line.as_ptr() as usize
}
