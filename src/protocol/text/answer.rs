//! What was asked in text may be asked of a server as a meta command, for the sake of what that answers:
//! its answer, as text.

use crate::buffer::Queue;
use crate::protocol::{Reply, Status};

/// Writes the text answer for a server's reply to `ms` or `ma`. Errors pass as they are.
pub fn answer(reply: &Reply<'_>, out: &mut Queue) {
    out.push_slice(match reply.status {
        Status::Done => b"STORED\r\n",
        Status::NotStored => b"NOT_STORED\r\n",
        Status::Exists => b"EXISTS\r\n",
        Status::Absent => b"NOT_FOUND\r\n",
        // The value of `ma` is the number.
        Status::Number(_) => {
            return out.push(reply.source, reply.at + reply.line..reply.at + reply.len);
        }
        Status::Unknown | Status::ClientError | Status::ServerError => {
            return out.push(reply.source, reply.at..reply.at + reply.len);
        }
    });
}
