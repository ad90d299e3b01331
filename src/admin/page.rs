//! The page for people: one document without anything from elsewhere, which asks for `/page.json` each
//! second. Without JavaScript it is a table that the browser loads again.

use crate::proxy::{PoolFigures, ServerFigures, Snapshot};
use crate::stats::Histogram;
use crate::time::Utc;
use std::fmt::Write as _;

/// It runs its own script and asks its own address, and nothing else whatever stands in it.
pub const POLICY: &str = "Content-Security-Policy: default-src 'none'; script-src 'unsafe-inline'; \
     style-src 'unsafe-inline'; img-src data:; connect-src 'self'; base-uri 'none'; \
     form-action 'none'; frame-ancestors 'none'\r\n";

const HEAD: &str = include_str!("page/head.html");
const STYLE: &str = include_str!("page/page.css");
const BODY: &str = include_str!("page/body.html");
const SCRIPT: &str = include_str!("page/page.js");

/// Writes piece `at`. False if that was the last.
pub fn write(snapshot: &Snapshot, at: usize, out: &mut String) -> bool {
    let (pools, servers) = (snapshot.pools.len(), snapshot.servers.len());
    match at {
        0 => {
            let _ = write!(out, "{HEAD}<style>\n{STYLE}</style>\n{BODY}<noscript>\n");
            before_tables(snapshot, out);
        }
        _ if at <= pools => pool(&snapshot.pools[at - 1], out),
        _ if at == pools + 1 => {
            out.push_str("</tbody></table></section>\n");
            begin_table("Servers", &SERVER_COLUMNS, out);
        }
        _ if at <= pools + 1 + servers => server(&snapshot.servers[at - pools - 2], out),
        _ => {
            out.push_str("</tbody></table></section>\n</noscript>\n");
            let _ = write!(out, "<script>\n{SCRIPT}</script>\n</body>\n</html>\n");
        }
    }
    at <= pools + 1 + servers
}

fn before_tables(snapshot: &Snapshot, out: &mut String) {
    let p = &snapshot.process;
    let _ = write!(out, "<p class=\"card\">{} on ", env!("CARGO_PKG_VERSION"));
    text(&p.host, out);
    let _ = writeln!(
        out,
        ", process {}, at {}. Clients: {} of {}. Bytes in flight: {} of {}.</p>",
        p.pid,
        date(p.time),
        p.clients.0,
        p.clients.1,
        p.memory.0,
        p.memory.1
    );
    begin_table("Pools", &POOL_COLUMNS, out);
}

const POOL_COLUMNS: [&str; 8] = [
    "pool",
    "primaries up",
    "backups up",
    "clients",
    "hits",
    "misses",
    "p50",
    "p99",
];

fn pool(p: &PoolFigures, out: &mut String) {
    row(
        &POOL_COLUMNS,
        &[
            p.name.clone(),
            format!("{} of {}", p.primaries.1, p.primaries.0),
            format!("{} of {}", p.backups.1, p.backups.0),
            p.clients.0.to_string(),
            p.commands.get_hits.to_string(),
            p.commands.get_misses.to_string(),
            micros(&p.recent, 500),
            micros(&p.recent, 990),
        ],
        out,
    );
}

const SERVER_COLUMNS: [&str; 10] = [
    "server",
    STATE,
    "role",
    "since",
    "last error",
    "requests",
    "p50",
    "p99",
    "journal",
    "refill",
];

/// This column's cells have the colours of what they say.
const STATE: &str = "state";

fn server(s: &ServerFigures, out: &mut String) {
    let state = if s.is_drained { "drained" } else { s.state };
    row(
        &SERVER_COLUMNS,
        &[
            s.name.clone(),
            state.to_string(),
            s.role.replace(',', ", "),
            date(s.since),
            s.last_error.map_or("none", |(_, why)| why).to_string(),
            s.stats.requests.all().to_string(),
            micros(&s.recent, 500),
            micros(&s.recent, 990),
            format!("{}\u{a0}keys", s.journal_keys),
            s.refill.state.to_string(),
        ],
        out,
    );
}

fn date(unix: u64) -> String {
    format!("{}\u{a0}UTC", Utc(unix).to_string().replace('T', " "))
}

fn micros(latency: &Histogram, per_mille: u64) -> String {
    match latency.count() {
        0 => "–".into(),
        _ => format!("{}\u{a0}µs", latency.quantile(per_mille)),
    }
}

fn begin_table(title: &str, columns: &[&str], out: &mut String) {
    let _ = write!(
        out,
        "<section class=\"card\"><h2>{title}</h2><table class=\"farm\"><thead><tr>"
    );
    for column in columns {
        let _ = write!(out, "<th>{column}</th>");
    }
    out.push_str("</tr></thead><tbody>\n");
}

fn row(columns: &[&str], cells: &[String], out: &mut String) {
    out.push_str("<tr>");
    for (column, cell) in columns.iter().zip(cells) {
        if *column == STATE {
            let _ = write!(
                out,
                "<td class=\"state\"><span class=\"pill {cell}\">{cell}</span></td>"
            );
            continue;
        }
        match *column == columns[0] {
            true => out.push_str("<td class=\"title name\">"),
            false => drop(write!(out, "<td data-label=\"{column}\">")),
        }
        text(cell, out);
        out.push_str("</td>");
    }
    out.push_str("</tr>\n");
}

/// What may come from a configuration, as text of HTML.
fn text(text: &str, out: &mut String) {
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::text;

    #[test]
    fn names_are_no_tags() {
        let mut out = String::new();
        text("<script>\"&'", &mut out);
        assert_eq!(out, "&lt;script&gt;&quot;&amp;'");
    }
}
