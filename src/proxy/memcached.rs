//! A bare `stats` with every name of memcached 1.6.18, for programs that read these names: what is the
//! proxy's is the client's pool's or the process's, what is the servers' is summed over the pool's primaries.

use super::Proxy;
use crate::logger;
use crate::net::Socket;
use crate::pools::{Lines, Names, Value, line};
use crate::sys;
use crate::time::SECOND;
use std::collections::BTreeMap;

/// The protocol level that magent speaks, for clients that choose features by it.
pub(super) const PROTOCOL: &str = "1.6.18";

/// Its names, in its order.
#[rustfmt::skip]
const NAMES: &[&str] = &[
    "pid", "uptime", "time", "version", "libevent", "pointer_size", "rusage_user", "rusage_system",
    "max_connections", "curr_connections", "total_connections", "rejected_connections",
    "connection_structures", "response_obj_oom", "response_obj_count", "response_obj_bytes",
    "read_buf_count", "read_buf_bytes", "read_buf_bytes_free", "read_buf_oom", "reserved_fds",
    "cmd_get", "cmd_set", "cmd_flush", "cmd_touch", "cmd_meta", "get_hits", "get_misses",
    "get_expired", "get_flushed", "delete_misses", "delete_hits", "incr_misses", "incr_hits",
    "decr_misses", "decr_hits", "cas_misses", "cas_hits", "cas_badval", "touch_hits", "touch_misses",
    "store_too_large", "store_no_memory", "auth_cmds", "auth_errors", "bytes_read", "bytes_written",
    "limit_maxbytes", "accepting_conns", "listen_disabled_num", "time_in_listen_disabled_us",
    "threads", "conn_yields", "hash_power_level", "hash_bytes", "hash_is_expanding",
    "slab_reassign_rescues", "slab_reassign_chunk_rescues", "slab_reassign_evictions_nomem",
    "slab_reassign_inline_reclaim", "slab_reassign_busy_items", "slab_reassign_busy_deletes",
    "slab_reassign_running", "slabs_moved", "lru_crawler_running", "lru_crawler_starts",
    "lru_maintainer_juggles", "malloc_fails", "log_worker_dropped", "log_worker_written",
    "log_watcher_skipped", "log_watcher_sent", "log_watchers", "unexpected_napi_ids",
    "round_robin_fallback", "bytes", "curr_items", "total_items", "slab_global_page_pool",
    "expired_unfetched", "evicted_unfetched", "evicted_active", "evictions", "reclaimed",
    "crawler_reclaimed", "crawler_items_checked", "lrutail_reflocked", "moves_to_cold",
    "moves_to_warm", "moves_within_lru", "direct_reclaims", "lru_bumps_dropped",
];

/// Names that would mislead if they were summed over servers, since magent has no such part.
#[rustfmt::skip]
const NONE_HERE: &[&str] = &[
    "response_obj_count", "response_obj_bytes", "read_buf_count", "read_buf_bytes",
    "read_buf_bytes_free", "reserved_fds", "auth_cmds", "auth_errors", "time_in_listen_disabled_us",
    "conn_yields",
];

impl<S: Socket> Proxy<S> {
    /// What the process says of itself under memcached's names.
    pub(super) fn process_lines(&self) -> Lines {
        let (user, system) = sys::cpu_time();
        vec![
            line("pid", std::process::id()),
            line("uptime", self.now.0 / SECOND),
            line("time", self.unix),
            line("version", PROTOCOL),
            line("pointer_size", usize::BITS),
            line("rusage_user", format!("{:.6}", user.as_secs_f64())),
            line("rusage_system", format!("{:.6}", system.as_secs_f64())),
            line("threads", 1),
        ]
    }

    /// The names, with the values that are known without asking servers, of one pool or of all.
    pub(super) fn memcached_stats(&self, pool: Option<usize>) -> Names {
        let mut own: BTreeMap<String, String> = self.process_lines().into_iter().collect();
        let mut put = |name: &str, value: u64| own.insert(name.into(), value.to_string());
        let (counts, most, connected) = match pool {
            Some(pool) => (
                self.clients.counts(pool),
                self.clients.most_of(pool),
                self.clients.in_pool(pool),
            ),
            None => (
                self.clients.all_counts(),
                self.config.clients,
                self.clients.count(),
            ),
        };
        counts.each(|name, value| drop(put(name, value)));
        NONE_HERE.iter().for_each(|name| drop(put(name, 0)));
        put("max_connections", most as u64);
        put("curr_connections", connected as u64);
        put("connection_structures", self.clients.count() as u64);
        put("response_obj_oom", self.clients.counters.limit_memory_gets);
        put("read_buf_oom", self.clients.counters.limit_memory_requests);
        put("accepting_conns", 1);
        put("listen_disabled_num", self.counters.limit_accept_paused);
        Names::closed(NAMES.iter().map(|name| {
            let value = match *name {
                // Values that magent refused itself are added to those that servers refused.
                "store_too_large" => Value::Number(counts.store_too_large),
                "store_no_memory" => Value::Number(self.clients.counters.limit_memory_stores),
                _ => own.remove(*name).map_or(Value::Number(0), Value::Own),
            };
            (*name, value)
        }))
    }

    /// Settings under memcached's names, for programs that look for them.
    pub(super) fn memcached_settings(&self, pool: usize) -> Lines {
        let config = self.pools.config(pool);
        vec![
            line("maxconns", self.clients.most_of(pool)),
            line("verbosity", logger::verbosity()),
            line("num_threads", 1),
            line("item_size_max", config.max_value),
            line("flush_enabled", yes_no(config.flush_all)),
            line(
                "idle_timeout",
                config.idle_timeout.map_or(0, |d| d.as_secs()),
            ),
            line("cas_enabled", "yes"),
            line("binding_protocol", "auto-negotiate"),
        ]
    }
}

fn yes_no(yes: bool) -> &'static str {
    match yes {
        true => "yes",
        false => "no",
    }
}
