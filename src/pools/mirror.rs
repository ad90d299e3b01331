//! Mirrors: the backup is sent what changed at the primary, in the order of the primary's replies.

use super::pending::{Answered, Ask, Attempt, Pending, To};
use super::server::fnv;
use super::watched::{Kind, Watch};
use super::{NOBODY, Pools, ServerId};
use crate::buffer::Source;
use crate::net::Socket;
use crate::protocol::forms::{self, Mirror};
use crate::protocol::{Status, Traits, Verb};

impl<S: Socket> Pools<S> {
    /// The primary answered a write: the backup is sent the same.
    pub(super) fn mirror(&mut self, answered: &Answered<'_>) {
        let (id, at, p) = (answered.link, answered.at, answered.request);
        if p.home.several {
            return self.mirror_each(answered);
        }
        if p.home.backup == NOBODY && !self.is_moving(p.home.pool as usize) {
            return;
        }
        let mut line = std::mem::take(&mut self.line);
        line.clear();
        let mirror = self.links.get(id).map(|link| {
            let asked = link.line_at(at, p.line);
            forms::mirror(p.verb, p.traits, asked, answered.reply.status, &mut line)
        });
        if let Some(Mirror::Send {
            verb,
            with_data,
            number,
        }) = mirror
        {
            let key = self.key_at(answered);
            let backup = self.mirror_to(&p.home, &key);
            let mut sent = (verb, with_data, To::Mirror(number));
            if self.is_shared(p.home.primary, backup) {
                let watch = Watch::new(p.home.primary, backup, p.hash, Kind::Value);
                let mirror = (verb, with_data, number);
                sent = self.watch_mirror(&watch, &key, answered.reply, mirror, &mut line);
            }
            let (verb, with_data, to) = sent;
            let data = with_data.then_some((id, at));
            self.send_mirror(backup, &key, p.hash, verb, &line, to, data, p);
            self.key = key;
        }
        self.line = line;
    }

    /// The backup answered a write in the primary's place: what it changed leaves the ring before.
    pub(super) fn leave_changed(&mut self, answered: &Answered<'_>) {
        let (p, mut line) = (answered.request, Vec::new());
        if !self.is_moving(p.home.pool as usize) {
            return;
        }
        let Some(link) = self.links.get(answered.link) else {
            return;
        };
        let asked = link.line_at(answered.at, p.line).to_vec();
        if p.home.several {
            return forms::multi_keys(&asked, answered.reply, |key, item| {
                if item.is_some() {
                    self.leave(p, key);
                }
            });
        }
        let status = answered.reply.status;
        if forms::mirror(p.verb, p.traits, &asked, status, &mut line) != Mirror::Nothing {
            let key = self.key_at(answered);
            self.leave(p, &key);
            self.key = key;
        }
    }

    /// The same for a gat with several keys: each key that was found is touched.
    fn mirror_each(&mut self, answered: &Answered<'_>) {
        let p = answered.request;
        let Some(link) = self.links.get(answered.link) else {
            return;
        };
        let asked = link.line_at(answered.at, p.line).to_vec();
        let (mut single, mut line) = (Vec::new(), Vec::new());
        forms::multi_keys(&asked, answered.reply, |key, item| {
            if item.is_none() {
                return;
            }
            let home = self.home_of(&p.home, key);
            single.clear();
            line.clear();
            forms::write_single(p.verb, &asked, key, &mut single);
            let mirror = forms::mirror(p.verb, p.traits, &single, Status::Done, &mut line);
            if let Mirror::Send { verb, .. } = mirror {
                let backup = self.mirror_to(&home, key);
                let mut sent = (verb, false, To::Mirror(None));
                if self.is_shared(p.home.primary, backup) {
                    let watch = Watch::new(p.home.primary, backup, fnv(key), Kind::Touch);
                    let mirror = (verb, false, None);
                    sent = self.watch_mirror(&watch, key, answered.reply, mirror, &mut line);
                }
                let (verb, _, to) = sent;
                self.send_mirror(backup, key, fnv(key), verb, &line, to, None, p);
            }
        });
    }

    #[allow(clippy::too_many_arguments)]
    fn send_mirror(
        &mut self,
        backup: ServerId,
        key: &[u8],
        hash: u64,
        verb: Verb,
        line: &[u8],
        to: To,
        data: Option<(usize, u64)>,
        p: &Pending,
    ) {
        // The primary was flushed first: what is written to it before the backup is flushed goes there.
        // So it may on one connection of the backup before a late flush runs on another one.
        let primary = self.servers.get(p.home.primary);
        let is_flushed_later = primary.is_some_and(|s| s.flushes > 0)
            || self.servers.get(backup).is_some_and(|s| s.late_flushes > 0);
        if is_flushed_later {
            self.wants_key(backup, key);
        }
        let Some(server) = self.servers.get_mut(backup) else {
            return;
        };
        if verb.is_meta() && !server.meta {
            // It knows none of them.
            if let To::Watched(id) = to {
                self.forget_watch(id);
            }
            return self.invalidate(backup, key, hash);
        }
        let link_id = server.link_for(hash);
        let is_full = self.links.get(link_id).is_none_or(|l| l.is_full());
        if !server.health.takes_writes() || is_full {
            self.counters.limit_mirrors_journaled += u64::from(is_full);
            server.stats.mirrors_failed += 1;
            if let To::Watched(id) = to {
                self.forget_watch(id);
            }
            return self.journal(backup, key);
        }
        server.stats.mirrors += 1;
        let pending = Pending {
            attempt: Attempt::Backup,
            ..self.own(to, verb, Traits::WRITES, hash)
        };
        let Some((from, at)) = data else {
            return self.send(backup, pending, &Ask::line(verb, Traits::WRITES, line));
        };
        let Some((from, link)) = self.links.get_two(from, link_id) else {
            return;
        };
        let start = link.queue.end();
        link.queue.push_slice(line);
        let source = Source::Queue(&from.queue, at);
        link.queue.push(source, p.line as usize..p.len as usize);
        let len = (link.queue.end() - start) as u32;
        self.send_pushed(
            link_id,
            Pending {
                line: line.len() as u32,
                len,
                ..pending
            },
        );
    }

    /// A mirror was answered: anything but success, not found or not stored means that the backup
    /// may hold something else, so the key is deleted there. `number`: what incr or decr must have
    /// answered.
    pub(super) fn settle_mirror(&mut self, answered: &Answered<'_>, number: Option<u64>) {
        if forms::mirror_ok(answered.reply.status, number) {
            return;
        }
        let server = self.server_of(answered.link);
        if let Some(server) = self.servers.get_mut(server) {
            server.stats.mirrors_failed += 1;
        }
        let key = self.key_at(answered);
        self.invalidate(server, &key, answered.request.hash);
        self.key = key;
    }

    /// Whose link it is.
    #[inline]
    pub(super) fn server_of(&self, id: usize) -> ServerId {
        self.links.get(id).map_or(NOBODY, |l| l.server)
    }

    /// The key of a request, in `self.key`'s memory: give it back.
    pub(super) fn key_at(&mut self, answered: &Answered<'_>) -> Vec<u8> {
        let mut key = std::mem::take(&mut self.key);
        key.clear();
        if let Some(link) = self.links.get(answered.link) {
            let p = answered.request;
            forms::raw_key(p.verb, link.line_at(answered.at, p.line), &mut key);
        }
        key
    }
}
