//! Answers on their way to the sockets of clients.

use super::Clients;
use super::client::Ending;
use crate::buffer::Chunk;
use crate::net::Socket;
use crate::work::Work;
use std::rc::Rc;

/// Bytes written to one client in one turn; more waits for the next one.
const MAX_WRITE: usize = 128 * 1024;

impl<S: Socket> Clients<S> {
    /// Makes the chunk one that can be read into. Large values in it go to their clients first:
    /// they are still in the processor's cache, and once they are taken the chunk is free again.
    pub fn renew_chunk(&mut self, chunk: &mut Rc<Chunk>, work: &mut Work) {
        if Chunk::writable(chunk).is_none() {
            self.write(work);
        }
        if Chunk::writable(chunk).is_none() {
            let fresh = self.budget.chunks().take();
            let full = std::mem::replace(chunk, fresh);
            self.budget.chunks().give(full);
        }
    }

    /// Writes to each client that gained something, once.
    pub fn write(&mut self, work: &mut Work) {
        for _ in 0..self.dirty.len() {
            if work.is_done() {
                break;
            }
            match self.dirty.take() {
                Some(key) => self.write_one(key, work),
                None => break,
            }
        }
    }

    #[inline]
    fn write_one(&mut self, key: usize, work: &mut Work) {
        let Some(client) = self.table.get_mut(key) else {
            return;
        };
        client.dirty = false;
        if client.ending == Ending::Dead {
            return;
        }
        if client.is_worth_writing() && client.conn.is_writable() {
            let Some(active) = client.active.as_mut() else {
                return;
            };
            let at = active.out.start();
            let Ok((bytes, calls)) = client.conn.write(&active.out, at, MAX_WRITE) else {
                return self.end(key, Ending::Dead);
            };
            active.out.release(at + bytes as u64);
            work.count_write(bytes);
            self.calls.writes += calls as u64;
            self.pools[client.pool as usize].counts.bytes_written += bytes as u64;
            let has_more = !active.out.is_empty();
            if bytes > 0 {
                client.last_moved = self.now;
                client.was_answered();
            }
            if has_more && client.conn.is_writable() {
                self.dirty.add(key, &mut client.dirty);
            }
        }
        self.written(key);
    }

    /// What follows when a client has taken something.
    #[inline]
    fn written(&mut self, key: usize) {
        self.account(key);
        self.check_changed(key);
        let Some(client) = self.table.get_mut(key) else {
            return;
        };
        if client.ending == Ending::AfterAnswers && client.is_answered() {
            return self.end(key, Ending::Dead);
        }
        client.rest(&mut self.spares);
        if client.may_be_served() {
            self.ready.add(key, &mut client.listed);
        }
    }
}
