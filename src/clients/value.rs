//! Large values, which arrive in pieces and gather behind their upstream request line.

use super::Clients;
use super::active::{Arriving, Intake};
use super::input::Input;
use crate::buffer::{CHUNK, Queue, Source};
use crate::net::Socket;
use crate::protocol::Request;
use std::ops::Range;

/// A piece of a large value is shared from this size on, in bytes. A smaller one would hold, and be
/// counted as, a whole chunk until its client sends the rest.
const GATHER_SHARE: usize = CHUNK / 2;

/// A binary value has no line end of its own; the server needs one.
#[inline]
pub fn needs_line_end(request: &Request) -> bool {
    request.value.is_some() && request.value == Some(request.data)
}

/// True if a text value does not end in `\r\n`. `end`: the offset behind it.
pub(super) fn has_bad_end(request: &Request, source: Source<'_>, end: usize) -> bool {
    !needs_line_end(request) && source.tail::<2>(end) != Some(*b"\r\n")
}

/// Appends a piece of a value.
fn gather(value: &mut Queue, source: Source<'_>, piece: Range<usize>) {
    if piece.len() < GATHER_SHARE {
        value.push_slice(source.slice(piece));
    } else {
        value.push(source, piece);
    }
}

impl<S: Socket> Clients<S> {
    /// A large value starts to arrive: it gathers behind its upstream request line.
    pub fn begin_value(&mut self, key: usize, input: &mut Input) {
        let request = &input.request;
        let start = input.at + request.head..input.len;
        let (source, line) = input.line();
        let missing = request.data - start.len();
        let mut value = self.spares.arriving(request, line.len(), missing);
        value.bytes.push_slice(source.slice(line));
        gather(&mut value.bytes, input.source(), start);
        input.at = input.len;
        if let Some(client) = self.table.get_mut(key) {
            client.active(&mut self.spares).intake = Intake::Value(value);
        }
    }

    /// More of a large value has come: returns it once it is whole.
    pub(super) fn value_arrives(
        &mut self,
        key: usize,
        input: &mut Input,
        mut value: Box<Arriving>,
    ) -> Option<Box<Arriving>> {
        let piece = input.at..input.at + value.missing.min(input.len - input.at);
        input.at = piece.end;
        value.missing -= piece.len();
        gather(&mut value.bytes, input.source(), piece);
        if value.missing > 0 {
            let client = self.table.get_mut(key)?;
            client.active(&mut self.spares).intake = Intake::Value(value);
            return None;
        }
        let source = Source::Queue(&value.bytes, value.bytes.start());
        if has_bad_end(&value.request, source, value.bytes.len()) {
            self.count_request(key);
            self.bad_data_chunk(key, &value.request);
            self.spares.give_arriving(value);
            return None;
        }
        Some(value)
    }

    /// The value was sent on: its memory serves the next one.
    pub fn value_taken(&mut self, value: Box<Arriving>) {
        self.spares.give_arriving(value);
    }
}
