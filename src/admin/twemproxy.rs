//! What twemproxy 0.5 tells whoever connects to its stats port: its names, its nesting, its order and its
//! spaces, for what reads them.

use super::json::string;
use crate::proxy::{Member, PoolFigures, ServerFigures, Snapshot};
use std::fmt::Write as _;

/// The version whose names these are.
const VERSION: &str = "0.5.0";

/// Writes piece `at`. False if that was the last.
pub fn write(snapshot: &Snapshot, at: usize, out: &mut String) -> bool {
    if at == 0 {
        process(snapshot, out);
        return true;
    }
    let mut first = 1;
    for (number, of_pool) in snapshot.pools.iter().enumerate() {
        let servers = of_pool.members.len();
        match at - first {
            0 => {
                out.push_str(if number > 0 { "}," } else { "" });
                pool(of_pool, out);
                return true;
            }
            n if n <= servers => {
                out.push_str(if n > 1 { "," } else { "" });
                server(&of_pool.members[n - 1], snapshot, out);
                return true;
            }
            _ => first += 1 + servers,
        }
    }
    out.push_str("}}\n");
    false
}

fn process(snapshot: &Snapshot, out: &mut String) {
    let (p, pools, servers) = (&snapshot.process, &snapshot.pools, &snapshot.servers);
    let accepted: u64 = pools.iter().map(|p| p.commands.total_connections).sum();
    let connected: u64 = servers.iter().map(|s| s.stats.connects).sum();
    let open: usize = servers.iter().map(|s| s.connections).sum();
    out.push_str("{\"service\":\"nutcracker\", \"source\":");
    string(&p.host, out);
    let _ = write!(
        out,
        ", \"version\":\"{VERSION}\", \"uptime\":{}, \"timestamp\":{}, \"total_connections\":{}, \
         \"curr_connections\":{}, ",
        p.uptime,
        p.time,
        accepted + connected,
        p.clients.0 + open
    );
}

fn pool(p: &PoolFigures, out: &mut String) {
    string(&p.name, out);
    let _ = write!(
        out,
        ": {{\"client_eof\":{}, \"client_err\":{}, \"client_connections\":{}, \"server_ejects\":{}, \
         \"forward_error\":{}, \"fragments\":{}, ",
        p.commands.connections_closed,
        p.commands.connections_broken,
        p.clients.0,
        p.ejections,
        p.commands.server_errors,
        p.fragments
    );
}

fn server(member: &Member, snapshot: &Snapshot, out: &mut String) {
    string(&member.label, out);
    let s: &ServerFigures = &snapshot.servers[member.server];
    let _ = write!(
        out,
        ": {{\"server_eof\":{}, \"server_err\":{}, \"server_timedout\":{}, \"server_connections\":{}, \
         \"server_ejected_at\":{}, \"requests\":{}, \"request_bytes\":{}, \"responses\":{}, \
         \"response_bytes\":{}, \"in_queue\":{}, \"in_queue_bytes\":{}, \"out_queue\":{}, \
         \"out_queue_bytes\":{}}}",
        s.stats.closes,
        s.stats.failures,
        s.stats.timeouts,
        s.connections,
        s.ejected_at * 1_000_000,
        s.stats.requests.all(),
        s.stats.bytes_written,
        s.latency.count(),
        s.stats.bytes_read,
        s.unsent.0,
        s.unsent.1,
        s.in_flight - s.unsent.0,
        s.bytes_in_flight - s.unsent.1
    );
}
