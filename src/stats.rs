//! Counters and latency histograms.

use crate::protocol::{Reply, Status, Traits, Verb};

/// Declares a struct of counters whose names are what `stats proxy` calls them.
macro_rules! counters {
    ($(#[$outer:meta])* $name:ident { $($(#[$doc:meta])* $field:ident,)* }) => {
        $(#[$outer])*
        #[derive(Clone, Default, Debug)]
        pub struct $name { $($(#[$doc])* pub $field: u64,)* }

        impl $name {
            /// Calls `f` with each counter's name and value.
            pub fn each(&self, mut f: impl FnMut(&'static str, u64)) {
                $(f(stringify!($field), self.$field);)*
            }
        }
    };
}

counters! {
    /// What the loop did since the start or the last `stats reset`.
    LoopCounters {
        /// Turns of the event loop.
        polls,
        /// Times accepting paused because there were no descriptors.
        limit_accept_paused,
        /// Configurations taken over while running.
        reloads,
        /// Configurations that could not be used.
        reloads_failed,
    }
}

counters! {
    /// What clients asked and got since the start or the last `stats reset`.
    ClientCounters {
        /// Clients accepted.
        total_connections,
        /// Clients over `-n`, told so and closed.
        rejected_connections,
        /// Keys asked for by get and its sisters.
        cmd_get,
        /// Values stored or tried to.
        cmd_set,
        /// `flush_all`.
        cmd_flush,
        /// touch, gat and `mg` with `T`.
        cmd_touch,
        /// Meta commands.
        cmd_meta,
        /// Keys found.
        get_hits,
        /// Keys not found.
        get_misses,
        /// Bytes from clients.
        bytes_read,
        /// Bytes to clients.
        bytes_written,
        /// Requests of clients, magent's own answers included.
        requests,
        /// Reads from clients.
        reads,
        /// Writes to clients.
        writes,
        /// Keys of a request with several keys that no server answered for.
        multi_get_keys_lost,
        /// Requests answered with `SERVER_ERROR` because no server could be had.
        server_errors,
        /// Times clients were not read because all connections together held too much.
        limit_memory_paused,
        /// Gets answered out of memory.
        limit_memory_gets,
        /// Stores answered out of memory.
        limit_memory_stores,
        /// Clients closed in the middle of a long line that there was no memory for.
        limit_memory_requests,
        /// Times a client was not read because it was owed too much.
        limit_client_paused,
        /// Clients closed because they took nothing of what they were owed.
        limit_client_stalled,
        /// Clients closed in the middle of a large request that did not go on.
        limit_client_half_sent,
        /// Clients closed because they sent nothing for `--idle-timeout`.
        limit_client_idle,
    }
}

counters! {
    /// What servers were asked since the start or the last `stats reset`.
    PoolCounters {
        /// Reads from servers.
        reads,
        /// Writes to servers.
        writes,
        /// Bytes from servers.
        server_bytes_read,
        /// Bytes to servers.
        server_bytes_written,
        /// Requests that went to a backup because the primary was lost.
        failovers,
        /// Reads asked once more over a fresh link.
        retries,
        /// Fetches from backups for warming primaries.
        fetches,
        /// Values copied from a backup to its primary.
        repairs,
        /// Copies dropped because something newer happened to the key.
        repairs_dropped,
        /// Deletes sent after a write whose outcome was not known.
        chases,
        /// Servers that left the ring.
        ejections,
        /// Links reset because a server spoke out of turn.
        protocol_errors,
        /// Times a client was not read because a server had too much in flight.
        limit_server_paused,
        /// Mirrors that went to the journal because their server had too much in flight.
        limit_mirrors_journaled,
        /// Journals that overflowed.
        limit_journal_overflows,
        /// Reads that were not sent any more because their client had left.
        requests_withdrawn,
    }
}

impl ClientCounters {
    /// Counts what a client's reply says of hits. Misses are what was asked for and not found.
    #[inline]
    pub fn count_reply(&mut self, verb: Verb, reply: &Reply<'_>) {
        match verb {
            Verb::Get | Verb::Gets | Verb::Gat | Verb::Gats => {
                self.get_hits += reply.items.len() as u64;
            }
            Verb::MetaGet => self.get_hits += u64::from(reply.status == Status::Done),
            _ => {}
        }
    }

    /// Counts a client's request for so many keys.
    #[inline]
    pub fn count_command(&mut self, verb: Verb, traits: Traits, keys: u64) {
        match verb {
            Verb::Get | Verb::Gets => self.cmd_get += keys,
            Verb::Gat | Verb::Gats => {
                self.cmd_get += keys;
                self.cmd_touch += keys;
            }
            Verb::Touch => self.cmd_touch += 1,
            Verb::Set | Verb::Add | Verb::Replace | Verb::Append | Verb::Prepend | Verb::Cas => {
                self.cmd_set += 1;
            }
            Verb::MetaGet => {
                self.cmd_meta += 1;
                self.cmd_get += 1;
                self.cmd_touch += u64::from(traits.has(Traits::WRITES));
            }
            Verb::MetaSet => {
                self.cmd_meta += 1;
                self.cmd_set += 1;
            }
            Verb::MetaDelete | Verb::MetaArithmetic | Verb::MetaDebug => self.cmd_meta += 1,
            Verb::Incr | Verb::Decr | Verb::Delete => {}
            Verb::FlushAll | Verb::Version | Verb::Stats => {}
        }
    }
}

/// What a proxy holds at one moment: all of it comes to nothing when nobody is owed anything.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Holdings {
    /// Clients connected.
    pub clients: usize,
    /// Answers that clients are owed.
    pub slots: usize,
    /// Answers that servers owe.
    pub pending: usize,
    /// Links that were given up and are not at their end.
    pub drains: usize,
    /// Requests that wait for a step of theirs, or were lost and are to go elsewhere.
    pub waiters: usize,
    /// Keys that are looked for or fetched.
    pub fetches: usize,
    /// `flush_all`s on their way.
    pub flushes: usize,
    /// Bytes of all connections.
    pub bytes: usize,
    /// Servers that are not up.
    pub servers_away: usize,
    /// Servers that missed something.
    pub journals: usize,
}

/// Buckets of a [`Histogram`]: four to each doubling, from 1 µs on.
const BUCKETS: usize = 96;

/// How long answers took: logarithmic buckets, a quarter of a doubling wide.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: [u32; BUCKETS],
    total: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram {
            counts: [0; BUCKETS],
            total: 0,
        }
    }
}

impl Histogram {
    /// Counts one answer that took so many nanoseconds.
    #[inline]
    pub fn add(&mut self, nanos: u64) {
        let micros = (nanos / 1000).max(1);
        let doubling = 63 - micros.leading_zeros() as u64;
        let quarter = if doubling >= 2 {
            (micros >> (doubling - 2)) & 3
        } else {
            0
        };
        let i = ((doubling * 4 + quarter) as usize).min(BUCKETS - 1);
        self.counts[i] = self.counts[i].saturating_add(1);
        self.total += 1;
    }

    /// The time, in microseconds, that `permille` of a thousand answers did not exceed.
    pub fn quantile(&self, permille: u64) -> u64 {
        let wanted = (self.total * permille).div_ceil(1000);
        let mut seen = 0;
        for (i, n) in self.counts.iter().enumerate() {
            seen += u64::from(*n);
            if seen >= wanted && seen > 0 {
                let (doubling, quarter) = (i as u64 / 4, i as u64 % 4);
                return if doubling >= 2 {
                    (1 << doubling) + ((quarter + 1) << (doubling - 2))
                } else {
                    2 << doubling
                };
            }
        }
        0
    }
}

/// One server's figures.
#[derive(Clone, Default, Debug)]
pub struct ServerStats {
    /// Requests sent.
    pub requests: u64,
    /// Answers that were errors, and requests lost.
    pub errors: u64,
    /// Answers that did not come in time.
    pub timeouts: u64,
    /// Connections opened.
    pub connects: u64,
    /// Bytes from it.
    pub bytes_read: u64,
    /// Bytes to it.
    pub bytes_written: u64,
    /// Keys copied to it from a backup.
    pub keys_copied: u64,
    /// Mirrors sent to it.
    pub mirrors: u64,
    /// Mirrors that it did not take.
    pub mirrors_failed: u64,
    /// How long its answers took.
    pub latency: Histogram,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_a_quarter_of_a_doubling() {
        let mut h = Histogram::default();
        for micros in 1..=1000u64 {
            h.add(micros * 1000);
        }
        let (median, high) = (h.quantile(500), h.quantile(990));
        assert!((500..=640).contains(&median), "{median}");
        assert!((990..=1100).contains(&high), "{high}");
        assert_eq!(Histogram::default().quantile(500), 0);
    }

    #[test]
    fn counters_are_named_as_their_fields() {
        let c = PoolCounters {
            failovers: 3,
            ..PoolCounters::default()
        };
        let mut seen = None;
        c.each(|name, value| {
            if name == "failovers" {
                seen = Some(value);
            }
        });
        assert_eq!(seen, Some(3));
    }
}
