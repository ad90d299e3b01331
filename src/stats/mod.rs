//! Counters, latencies, the last ten minutes, slow requests, hot keys.

mod history;
mod hot;
mod latency;
mod saved;
mod slow;

pub use history::{Histories, History, STEP, Sample};
pub use hot::{HotKey, HotKeys};
pub use latency::{Histogram, Latency};
pub use slow::{Asked, SlowLog, SlowRequest};

use crate::protocol::{Status, Traits, Verb, forms};

/// Declares a struct of counters whose names are what `stats proxy` calls them.
macro_rules! counters {
    ($(#[$outer:meta])* $name:ident { $(#[doc = $doc:literal] $field:ident,)* }) => {
        $(#[$outer])*
        #[derive(Clone, Default, Debug)]
        pub struct $name { $(#[doc = $doc] pub $field: u64,)* }

        impl $name {
            /// Calls `f` with each counter's name and value.
            pub fn each(&self, mut f: impl FnMut(&'static str, u64)) {
                $(f(stringify!($field), self.$field);)*
            }

            /// The same with a sentence that says what it counts.
            pub fn each_with_help(&self, mut f: impl FnMut(&'static str, &'static str, u64)) {
                $(f(stringify!($field), $doc.trim_ascii(), self.$field);)*
            }

            /// Sets the counter with this name, if there is one.
            fn set(&mut self, name: &str, value: u64) {
                match name {
                    $(stringify!($field) => self.$field = value,)*
                    _ => {}
                }
            }

            /// Adds the numbers of another one.
            pub fn add(&mut self, other: &$name) {
                $(self.$field += other.$field;)*
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
        /// Times that another program took over (USR2).
        upgrades,
        /// Times that a change of programs was asked for and failed.
        upgrades_failed,
    }
}

counters! {
    /// What the clients of one pool asked and got since the start or the last `stats reset`: memcached's
    /// names, each counted where memcached counts it.
    CommandCounters {
        /// Clients accepted.
        total_connections,
        /// Clients over `-n`, told so and closed.
        rejected_connections,
        /// Clients that closed their connection.
        connections_closed,
        /// Clients whose connection broke.
        connections_broken,
        /// Keys asked for by get, gets and `mg`.
        cmd_get,
        /// Values stored or tried to.
        cmd_set,
        /// `flush_all`.
        cmd_flush,
        /// Keys of touch, gat, gats and `mg` with `T`.
        cmd_touch,
        /// Meta commands.
        cmd_meta,
        /// Of `cmd_get` those found.
        get_hits,
        /// Of `cmd_get` those not found, or asked of several keys and lost.
        get_misses,
        /// Keys to be deleted that were not there.
        delete_misses,
        /// Keys deleted.
        delete_hits,
        /// Keys to be incremented that were not there.
        incr_misses,
        /// Keys incremented.
        incr_hits,
        /// Keys to be decremented that were not there.
        decr_misses,
        /// Keys decremented.
        decr_hits,
        /// Keys to be compared and set that were not there.
        cas_misses,
        /// Keys compared and set.
        cas_hits,
        /// Keys that had changed meanwhile.
        cas_badval,
        /// Of `cmd_touch` those found.
        touch_hits,
        /// Of `cmd_touch` those not found.
        touch_misses,
        /// Requests answered with `SERVER_ERROR` because no server could be had.
        server_errors,
        /// Values over `-I`.
        store_too_large,
        /// Bytes from clients.
        bytes_read,
        /// Bytes to clients.
        bytes_written,
    }
}

counters! {
    /// Calls of the system, of either half, since the start or the last `stats reset`.
    CallCounters {
        /// Reads from clients and servers.
        reads,
        /// Writes to clients and servers.
        writes,
    }
}

counters! {
    /// What was done for the clients of all pools since the start or the last `stats reset`.
    ClientCounters {
        /// Requests of clients, magent's own answers included.
        requests,
        /// Keys of a request with several keys that no server answered for.
        multi_get_keys_lost,
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
        /// Looks whether a copied value still is what its source holds, where other magents write too.
        looks_again,
        /// Copies that were deleted since it was not, or nobody could tell.
        doubts,
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

/// The counters of memcached that a request belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Get,
    Touch,
    Store,
    /// A store that compares.
    Cas,
    Delete,
    Incr,
    Decr,
    Other,
}

impl Kind {
    /// `line` is what a server is asked; it tells what `ma` does.
    #[inline]
    fn of(verb: Verb, traits: Traits, line: &[u8]) -> Kind {
        match verb {
            Verb::Get | Verb::Gets => Kind::Get,
            // memcached counts what finds a key and touches it as a touch.
            Verb::Gat | Verb::Gats | Verb::Touch => Kind::Touch,
            Verb::MetaGet if traits.has(Traits::WRITES) && !traits.has(Traits::CREATES) => {
                Kind::Touch
            }
            Verb::MetaGet => Kind::Get,
            Verb::Cas => Kind::Cas,
            Verb::MetaSet if traits.has(Traits(Traits::SETS.0 | Traits::SENDS_CAS.0)) => Kind::Cas,
            Verb::Set | Verb::Add | Verb::Replace | Verb::Append | Verb::Prepend => Kind::Store,
            Verb::MetaSet => Kind::Store,
            Verb::Delete => Kind::Delete,
            // With `I` it makes the key stale.
            Verb::MetaDelete if traits.has(Traits::DELETES) => Kind::Delete,
            Verb::Incr => Kind::Incr,
            Verb::Decr => Kind::Decr,
            Verb::MetaArithmetic if forms::is_decrement(line) => Kind::Decr,
            Verb::MetaArithmetic => Kind::Incr,
            Verb::MetaDelete | Verb::MetaDebug => Kind::Other,
            Verb::FlushAll | Verb::Version | Verb::Stats => Kind::Other,
        }
    }
}

impl CommandCounters {
    /// Counts a client's request for so many keys.
    #[inline]
    pub fn count_command(&mut self, verb: Verb, traits: Traits, keys: u64) {
        match Kind::of(verb, traits, b"") {
            Kind::Get => self.cmd_get += keys,
            Kind::Touch => self.cmd_touch += keys,
            Kind::Store | Kind::Cas => self.cmd_set += 1,
            Kind::Delete | Kind::Incr | Kind::Decr | Kind::Other => {}
        }
        self.cmd_meta += u64::from(verb.is_meta());
    }

    /// Counts what became of a request with one key; `line` is what was asked. An error is neither a hit
    /// nor a miss.
    #[inline]
    pub fn count_reply(&mut self, verb: Verb, traits: Traits, line: &[u8], status: Status) {
        let kind = Kind::of(verb, traits, line);
        let counter = match (kind, status) {
            (Kind::Get | Kind::Touch, Status::Done) => return self.count_keys(kind, 1, 0),
            (Kind::Get | Kind::Touch, Status::Absent) => return self.count_keys(kind, 0, 1),
            (Kind::Cas, Status::Done) => &mut self.cas_hits,
            (Kind::Cas, Status::Absent) => &mut self.cas_misses,
            (Kind::Cas, Status::Exists) => &mut self.cas_badval,
            (Kind::Delete, Status::Done) => &mut self.delete_hits,
            (Kind::Delete, Status::Absent | Status::Exists) => &mut self.delete_misses,
            (Kind::Incr, Status::Done | Status::Number(_)) => &mut self.incr_hits,
            (Kind::Incr, Status::Absent) => &mut self.incr_misses,
            (Kind::Decr, Status::Done | Status::Number(_)) => &mut self.decr_hits,
            (Kind::Decr, Status::Absent) => &mut self.decr_misses,
            _ => return,
        };
        *counter += 1;
    }

    /// Counts what became of some keys of a request with several.
    pub fn count_found(&mut self, verb: Verb, traits: Traits, found: u64, missing: u64) {
        self.count_keys(Kind::of(verb, traits, b""), found, missing);
    }

    fn count_keys(&mut self, kind: Kind, found: u64, missing: u64) {
        if kind == Kind::Touch {
            self.touch_hits += found;
            self.touch_misses += missing;
        } else {
            self.get_hits += found;
            self.get_misses += missing;
        }
    }
}

/// Kinds of requests to servers, for metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// A key, or several, to be read.
    Get,
    /// The same with another time to live, or that alone.
    Touch,
    /// A value to be stored, in whatever way.
    Set,
    /// A key to be deleted.
    Delete,
    /// A number to be changed.
    Arithmetic,
    /// `flush_all`.
    Flush,
    /// Whatever else: `stats`, `version`, looks.
    Other,
}

impl Command {
    /// All of them.
    pub const ALL: [Command; 7] = [
        Command::Get,
        Command::Touch,
        Command::Set,
        Command::Delete,
        Command::Arithmetic,
        Command::Flush,
        Command::Other,
    ];

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Command::Get => "get",
            Command::Touch => "touch",
            Command::Set => "set",
            Command::Delete => "delete",
            Command::Arithmetic => "arithmetic",
            Command::Flush => "flush_all",
            Command::Other => "other",
        }
    }

    #[inline]
    fn of(verb: Verb, traits: Traits) -> Command {
        match Kind::of(verb, traits, b"") {
            Kind::Get => Command::Get,
            Kind::Touch => Command::Touch,
            Kind::Store | Kind::Cas => Command::Set,
            Kind::Delete => Command::Delete,
            Kind::Incr | Kind::Decr => Command::Arithmetic,
            Kind::Other if verb == Verb::MetaDelete => Command::Delete,
            Kind::Other if verb == Verb::FlushAll => Command::Flush,
            Kind::Other => Command::Other,
        }
    }
}

/// Requests by what they ask.
#[derive(Clone, Default, Debug)]
pub struct Requests([u64; Command::ALL.len()]);

impl Requests {
    /// Counts one.
    #[inline]
    pub fn count(&mut self, verb: Verb, traits: Traits) {
        self.0[Command::of(verb, traits) as usize] += 1;
    }

    /// Those of one kind.
    pub fn of(&self, command: Command) -> u64 {
        self.0[command as usize]
    }

    /// All of them.
    pub fn all(&self) -> u64 {
        self.0.iter().sum()
    }
}

/// What a proxy holds at one moment. Nearly all of it is 0 when no answer is owed: otherwise something leaks.
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
    /// Keys at warming primaries that are being looked for or fetched.
    pub fetches: usize,
    /// `flush_all`s on their way.
    pub flushes: usize,
    /// `stats` of servers on their way.
    pub reports: usize,
    /// Bytes of all connections.
    pub bytes: usize,
    /// Servers that are to be refilled, and keys on their way to them.
    pub refills: usize,
    /// Servers that are not up.
    pub servers_away: usize,
    /// Servers that missed something.
    pub journals: usize,
}

/// One server's figures.
#[derive(Clone, Default, Debug)]
pub struct ServerStats {
    /// Requests sent.
    pub requests: Requests,
    /// Answers that were errors, and requests lost.
    pub errors: u64,
    /// Answers that did not come in time.
    pub timeouts: u64,
    /// Connections opened.
    pub connects: u64,
    /// Connections that it closed.
    pub closes: u64,
    /// Connections that broke, or could not be opened.
    pub failures: u64,
    /// Times that its process was another than before.
    pub restarts: u64,
    /// Times that it was asked for a sign of life.
    pub probes: u64,
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
    /// Looks whether what was copied to it still is what its source has.
    pub looks_again: u64,
    /// Copies that were deleted on it since that was not so, or not known.
    pub doubts: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What memcached 1.6.18 does is in `tests/monitors.rs`; this is what magent's lines are.
    #[test]
    fn replies_count_as_what_was_asked() {
        let both = Traits(Traits::SETS.0 | Traits::SENDS_CAS.0);
        let touches = Traits::WRITES;
        let none = Traits::default();
        for (verb, traits, line, status, counter) in [
            (Verb::Get, none, "get a", Status::Absent, "get_misses"),
            (
                Verb::MetaGet,
                touches,
                "mg a T1",
                Status::Done,
                "touch_hits",
            ),
            (
                Verb::MetaSet,
                both,
                "ms a 1 C7",
                Status::Exists,
                "cas_badval",
            ),
            (Verb::MetaSet, both, "ms a 1 C7", Status::Done, "cas_hits"),
            (
                Verb::MetaDelete,
                Traits::DELETES,
                "md a",
                Status::Absent,
                "delete_misses",
            ),
            (
                Verb::MetaArithmetic,
                none,
                "ma a N0 v",
                Status::Number(1),
                "incr_hits",
            ),
            (
                Verb::MetaArithmetic,
                none,
                "ma a MD v",
                Status::Number(1),
                "decr_hits",
            ),
            (
                Verb::MetaArithmetic,
                none,
                "ma a M- v",
                Status::Absent,
                "decr_misses",
            ),
            (Verb::MetaDelete, none, "md a I", Status::Done, ""),
            (Verb::MetaSet, Traits::SETS, "ms a 1", Status::Done, ""),
            (Verb::Incr, none, "incr a 1", Status::ClientError, ""),
        ] {
            let mut c = CommandCounters::default();
            c.count_reply(verb, traits, line.as_bytes(), status);
            let mut counted = Vec::new();
            c.each(|name, value| (0..value).for_each(|_| counted.push(name)));
            assert_eq!(counted.join(" "), counter, "{line}");
        }
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
