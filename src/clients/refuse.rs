//! Requests that magent refuses by itself: for want of memory, or because their value is malformed.

use super::active::{Intake, Slot};
use super::client::Ending;
use super::{Clients, answer};
use crate::buffer::Queue;
use crate::net::Socket;
use crate::protocol::{self, Format, Limits, Parsed, Request, Scratch, Verb};

impl<S: Socket> Clients<S> {
    /// Refuses a value for want of memory; the rest of it is thrown away as it arrives.
    pub(super) fn no_memory_to_store(&mut self, key: usize, request: &Request, missing: usize) {
        self.count_request(key);
        self.counters.limit_memory_stores += 1;
        self.say(key, request.format, |out, format| {
            answer::write_error(format, b"out of memory storing object", out);
        });
        self.swallow(key, missing);
    }

    /// Refuses a request that is half sent.
    pub(super) fn no_memory_for_partial(&mut self, key: usize) {
        let Some(client) = self.table.get_mut(key) else {
            return;
        };
        let rules = &self.pools[client.pool as usize];
        let limits = Limits {
            max_value: rules.max_value,
            flush_all: rules.flush_all,
        };
        let (Some(dialect), Some(active)) = (client.dialect, client.active.as_mut()) else {
            return;
        };
        let mut partial = std::mem::take(&mut active.partial);
        partial.drain(..std::mem::take(&mut active.parsed));
        let wants = std::mem::take(&mut active.wants);
        active.searched = 0;
        let mut scratch = Scratch::default();
        match protocol::parse(dialect, &partial, 0, &limits, &mut scratch) {
            Parsed::Request(request) if wants > 0 => {
                self.no_memory_to_store(key, &request, wants);
            }
            _ => self.no_memory_to_read(key),
        }
    }

    /// Refuses a line without an end, as memcached does: where it would end is not known.
    fn no_memory_to_read(&mut self, key: usize) {
        self.counters.limit_memory_requests += 1;
        self.say(key, Format::Text, |out, _| {
            out.push_slice(b"SERVER_ERROR out of memory reading request\r\n");
        });
        self.end(key, Ending::AfterAnswers);
    }

    pub(super) fn bad_data_chunk(&mut self, key: usize, request: &Request) {
        if request.format != Format::Silent {
            self.say(key, Format::Text, |out, _| {
                out.push_slice(b"CLIENT_ERROR bad data chunk\r\n");
            });
        }
    }

    /// Adds an answer of magent's own in its place.
    pub fn say(&mut self, key: usize, format: Format, write: impl FnOnce(&mut Queue, Format)) {
        let Some(client) = self.table.get_mut(key) else {
            return;
        };
        let seq = client.owe(&mut self.spares, Slot::new(format, Verb::Version));
        client.deliver(&mut self.spares, seq, |out, slot| write(out, slot.format));
        self.changed(key);
    }

    /// Throws away the next bytes of the client.
    pub(super) fn swallow(&mut self, key: usize, bytes: usize) {
        if let Some(client) = self.table.get_mut(key).filter(|_| bytes > 0) {
            client.active(&mut self.spares).intake = Intake::Swallow(bytes);
        }
    }
}
