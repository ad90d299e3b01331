//! Requests of clients on their way to the pools.

use super::Proxy;
use crate::buffer::Source;
use crate::clients::{Clients, Next, Portions, Ticket, line_reply, needs_line_end};
use crate::net::Socket;
use crate::pools::{Ask, Place, Split};
use crate::protocol::{Request, Status, Verb, forms};
use crate::work::{REQUEST, Work};

/// Reads of one client in one turn, so that a fast one does not hold up the others.
const READS_PER_TURN: usize = 4;

/// Requests of one client at once, so that one that sends thousands does not fill its servers
/// before others have had their turn.
const REQUESTS_PER_TURN: usize = 20;

impl<S: Socket> Proxy<S> {
    /// Reads clients that are ready, and asks what they want.
    pub(super) fn serve_clients(&mut self, work: &mut Work) {
        self.is_behind = false;
        for _ in 0..self.clients.ready_len() {
            if work.is_done() {
                self.is_behind = true;
                break;
            }
            let Some(key) = self.clients.take_ready() else {
                break;
            };
            for _ in 0..READS_PER_TURN {
                if work.is_done() || !self.clients.fill(key, &mut self.input, work) {
                    break;
                }
                self.take_requests(key, work);
            }
            self.clients.list_again(key);
        }
        self.pools.follow(work, &mut self.clients);
    }

    /// Lets clients that wait for memory go on.
    pub(super) fn serve_hungry(&mut self, work: &mut Work) {
        if !self.clients.has_hungry() {
            return;
        }
        if let Some((key, most)) = self.clients.next_hungry() {
            if self.clients.fill_hungry(key, most, &mut self.input, work) {
                self.take_requests(key, work);
            }
            self.clients.list_again(key);
        }
    }

    /// Asks what the input holds, until it is used up or the client is paused.
    fn take_requests(&mut self, key: usize, work: &mut Work) {
        for taken in 0.. {
            if work.is_done() || taken == REQUESTS_PER_TURN {
                self.input.stop();
                break;
            }
            work.count(REQUEST);
            match self.clients.next_request(key, &mut self.input) {
                Next::Nothing => break,
                Next::Done => {}
                Next::Request => {
                    if !self.take_request(key) {
                        break;
                    }
                }
                Next::Head => {
                    if !self.take_head(key) {
                        break;
                    }
                }
                Next::Value(value) => {
                    let request = value.request;
                    let source = Source::Queue(&value.bytes, value.bytes.start());
                    let len = value.bytes.len();
                    let mut name = std::mem::take(&mut self.input.name);
                    name.clear();
                    let line = source.slice(0..value.line);
                    forms::raw_key(request.verb, line, &mut name);
                    let ask = Ask {
                        verb: request.verb,
                        traits: request.traits,
                        line: (source, 0..value.line),
                        data: (source, value.line..len),
                        end_line: needs_line_end(&request),
                    };
                    // A full server cannot stop a request that has arrived; it stops the next one.
                    self.ask(key, &request, &name, &ask);
                    self.input.name = name;
                    self.clients.value_taken(value);
                }
                Next::Keys => self.take_keys(key, work),
                Next::Portion(portions) => self.take_portion(key, portions, work),
                Next::Again(slot) => self.ask_again(key, slot, work),
                Next::Local(what) => self.local(key, what, self.input.request.format, work),
                Next::Drop => {
                    if let Some(pool) = self.clients.pool_of(key) {
                        self.pools.drop_key(pool, &self.input.scratch.line);
                    }
                }
            }
        }
        self.clients.keep_rest(key, &mut self.input);
    }

    /// A request with one key at the front of the input. False if its server has no room: the
    /// client waits.
    #[inline]
    fn take_request(&mut self, key: usize) -> bool {
        let Some(pool) = self.clients.pool_of(key) else {
            return false;
        };
        let place = self.place(pool);
        if !self.pools.has_room_for(&place, key, &mut self.clients) {
            self.input.stop();
            return false;
        }
        let (request, name) = (&self.input.request, self.input.key());
        let ask = Ask {
            verb: request.verb,
            traits: request.traits,
            line: self.input.line(),
            data: self.input.data(),
            end_line: needs_line_end(request),
        };
        if let Some(ticket) = self.clients.owe(key, request, ask.bytes()) {
            if request.verb == Verb::MetaSet && self.pools.is_too_old(place.primary) {
                answer_unknown(ticket, &ask, &mut self.clients);
            } else {
                self.pools.count_key(pool, name, place.hash);
                self.pools.ask(ticket, pool, &place, name, &ask);
            }
        }
        self.input.consume();
        true
    }

    /// Where the key of the request at the front goes.
    #[inline]
    fn place(&mut self, pool: usize) -> Place {
        let hash = match self.input.hash() {
            Some(hash) => hash,
            None => self.hash(pool),
        };
        self.pools.place_hashed(pool, self.input.key(), hash)
    }

    /// The hash of that key. Keys of the next requests are hashed with it where that takes less time.
    fn hash(&mut self, pool: usize) -> u32 {
        let ahead = match self.pools.hashes_together(pool) {
            true => self.input.keys_ahead(),
            false => None,
        };
        let Some(keys) = ahead else {
            return self.pools.hash(pool, self.input.key());
        };
        let names = keys.map(|(from, to)| self.input.source().slice(from..to));
        let hashes = self.pools.hash_all(pool, &names);
        self.input.note_hashes(keys, hashes);
        hashes[0]
    }

    fn ask(&mut self, key: usize, request: &Request, name: &[u8], ask: &Ask<'_>) {
        let Some(pool) = self.clients.pool_of(key) else {
            return;
        };
        let place = self.pools.place(pool, name);
        if let Some(ticket) = self.clients.owe(key, request, ask.bytes()) {
            if request.verb == Verb::MetaSet && self.pools.is_too_old(place.primary) {
                return answer_unknown(ticket, ask, &mut self.clients);
            }
            self.pools.count_key(pool, name, place.hash);
            self.pools.ask(ticket, pool, &place, name, ask);
        }
    }

    /// The head of a request whose value is still on its way. False if its server has no room.
    fn take_head(&mut self, key: usize) -> bool {
        let Some(pool) = self.clients.pool_of(key) else {
            return false;
        };
        let place = self.pools.place(pool, self.input.key());
        if !self.pools.has_room_for(&place, key, &mut self.clients) {
            self.input.stop();
            return false;
        }
        self.clients.begin_value(key, &mut self.input);
        true
    }

    /// A request with several keys at the front of the input: as many of them as may be are asked
    /// at once.
    fn take_keys(&mut self, key: usize, work: &mut Work) {
        let request = &self.input.request;
        let (Some(pool), keys) = (self.clients.pool_of(key), self.input.scratch.keys.len()) else {
            return;
        };
        let Some(ticket) = self.clients.owe_keys(key, request, keys) else {
            return;
        };
        let portion = self.clients.portion(key).min(keys);
        let Some(mut multi) = self.clients.take_multi(ticket) else {
            return;
        };
        multi.begin_portion(portion < keys);
        let head = self.input.head();
        let scratch = &self.input.scratch;
        let split = Split::new(ticket, pool, request, &scratch.line);
        let names = scratch.keys[..portion].iter();
        let names = names.map(|range| (None, &head[range.clone()]));
        let (asked, bytes) = self
            .pools
            .ask_keys(&split, &mut multi, names, &mut self.clients);
        work.count(asked * REQUEST);
        let rest = scratch.keys.get(asked..).unwrap_or_default();
        let portions = rest.first().zip(rest.last()).map(|(first, last)| {
            // In one allocation: there may be hundreds of thousands.
            Box::new(Portions {
                request: *request,
                slot: ticket.slot,
                prefix: scratch.line.clone(),
                keys: head[first.start..last.end].to_vec(),
                at: 0,
            })
        });
        multi.set_more(portions.is_some());
        self.clients.give_multi(ticket, multi, bytes);
        self.input.consume();
        if let Some(portions) = portions {
            self.clients.keep_portions(key, portions);
        }
    }

    /// The next keys of a request that is asked for in portions.
    fn take_portion(&mut self, key: usize, mut portions: Box<Portions>, work: &mut Work) {
        let ticket = portions.ticket(key);
        let (Some(pool), portion) = (self.clients.pool_of(key), self.clients.portion(key)) else {
            return;
        };
        let Some(mut multi) = self.clients.take_multi(ticket) else {
            return;
        };
        multi.begin_portion(true);
        let split = Split::new(ticket, pool, &portions.request, &portions.prefix);
        let left = &portions.keys[portions.at..];
        let names = left.split(|b| *b == b' ').filter(|name| !name.is_empty());
        let names = names.take(portion).map(|name| (None, name));
        let (asked, bytes) = self
            .pools
            .ask_keys(&split, &mut multi, names, &mut self.clients);
        work.count(asked * REQUEST);
        portions.at += end_of(left, asked);
        let is_over = portions.at == portions.keys.len();
        multi.set_more(!is_over);
        self.clients.give_multi(ticket, multi, bytes);
        if !is_over {
            self.clients.keep_portions(key, portions);
        }
    }

    /// Keys whose values there was no memory for.
    fn ask_again(&mut self, key: usize, slot: u32, work: &mut Work) {
        let Some(pool) = self.clients.pool_of(key) else {
            return;
        };
        let Some((ticket, verb, traits, prefix)) = self.clients.asked_in(key, slot) else {
            return;
        };
        let Some(mut multi) = self.clients.take_multi(ticket) else {
            return;
        };
        let keys = multi.take_again();
        let portion = self.clients.portion(key);
        let split = Split {
            ticket,
            pool,
            verb,
            traits,
            prefix: &prefix,
        };
        let names = keys
            .iter()
            .take(portion)
            .map(|(n, name)| (Some(*n), &name[..]));
        let (asked, bytes) = self
            .pools
            .ask_keys(&split, &mut multi, names, &mut self.clients);
        work.count(asked * REQUEST);
        multi.put_back(keys.into_iter().skip(asked));
        self.clients.give_multi(ticket, multi, bytes);
    }
}

/// Answers a request as a server that does not know it.
fn answer_unknown<S: Socket>(ticket: Ticket, ask: &Ask<'_>, clients: &mut Clients<S>) {
    let reply = line_reply(b"ERROR\r\n", Status::Unknown);
    clients.answer(ticket, ask.verb, ask.line_bytes(), &reply);
}

/// Where the key after the first `count` of `keys` begins, or their end.
fn end_of(keys: &[u8], count: usize) -> usize {
    let is_first = |(i, b): &(usize, &u8)| **b != b' ' && (*i == 0 || keys[i - 1] == b' ');
    let mut firsts = keys.iter().enumerate().filter(is_first);
    firsts.nth(count).map_or(keys.len(), |(i, _)| i)
}

#[cfg(test)]
mod tests {
    use super::end_of;

    #[test]
    fn keys_may_have_several_spaces_between_them() {
        let keys = b"a  bc d";
        let ends: Vec<usize> = (0..5).map(|n| end_of(keys, n)).collect();
        assert_eq!(ends, [0, 3, 6, 7, 7]);
    }
}
